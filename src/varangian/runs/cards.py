"""Cards (GPUs): which there are, how torch computes on them while a run goes, and what a run folder says of both."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..core.checks import cut, shown

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = ":4096:8"  # buffers of cuBLAS whose number and size are given, so that its sums do not depend on what else runs


@dataclass(frozen=True)
class Card:
    """A card that this process sees.

    Attributes:
        name: of its kind.
        free, total: bytes of its memory.
    """

    name: str
    free: int
    total: int


def cards() -> list[Card]:
    """Those that this process sees, by number. It holds some memory of each from then on."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [Card(torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)) for i in range(count)]


def device_of(name: str) -> torch.device:
    """The device of that name, which this machine need not have: runs of others are read here too."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    # Names of devices that nobody computes on, such as meta, are known to torch too; it takes indices modulo 256.
    if device is None or device.type not in ("cpu", "cuda", "mps", "xpu") or str(device) != name:
        raise ValueError(f"{shown(name)} is no device, such as cpu, cuda or cuda:1.")
    if device.type == "cpu" and device.index is not None:  # which torch takes, whatever the number
        raise ValueError(f"{shown(name)} is no device: there is one, cpu, without a number.")
    return device


def asked(name: str) -> torch.device:
    """The same, for who asks for a device and not for settings."""
    try:
        return device_of(name)
    except ValueError as error:
        raise ValueError(f"device: {error}") from None


def usable(name: str) -> torch.device:
    """The device of that name, if this machine can compute on it; of "cuda" this thread's, by its number, since other
    threads have another.

    Raises:
        ValueError: it cannot.
    """
    device = asked(name)
    failures = (RuntimeError, AssertionError, NotImplementedError, TypeError)
    try:
        one = torch.ones(1, device=device)
        one.cpu()
    except failures as error:
        why = why_no_card(device.index) if device.type == "cuda" else f"torch finds no {device.type} that it can use"
        why = why or cut(str(error))
        raise ValueError(f"device: {shown(name)} cannot be used here: {why.rstrip('.')}.") from None
    try:
        one.double().cpu()
    except failures:
        raise ValueError(
            f"device: {shown(name)} cannot be used: it has no float64, in which distances are computed; use cpu."
        ) from None
    return one.device


def why_no_card(index: int | None = None) -> str:
    """Why this process can use no card, or not the one of that number; "" where it can."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "torch is built for processors only"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        said = "" if hidden is None else f"; CUDA_VISIBLE_DEVICES is {cut(hidden)!r}"
        return f"torch is built for {built}, and finds no GPU or driver that it can use{said}"
    if index is not None and index >= count:
        return f"of this number of GPUs, {count}, the last is cuda:{count - 1}"
    return ""


def driver() -> str | None:
    """The version of NVIDIA's driver, as far as the system says it."""
    with suppress(OSError, ValueError):
        found = re.search(r"\s(\d+\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text("ascii"))
        return None if found is None else found[1]
    return None


def facts(device: str) -> dict[str, str | int | None]:
    """What the numbers of a run on a card may depend on beside what they depend on anywhere, as it is just now."""
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "device": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver(),
        "triton": version_of("triton"),
        "precision": _precision(),
        "autotune": torch.backends.cudnn.benchmark,
        "deterministic": torch.backends.cudnn.deterministic and torch.are_deterministic_algorithms_enabled(),
        "cublas_workspace": os.environ.get(WORKSPACE),
    }


def version_of(package: str) -> str | None:
    """Of an installed package; None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------- how torch computes on them

# Since torch 2.9 each kind of operation has a precision of its own, in which what was not set is inherited; the two
# switches of before are kept beside them, and reading these fails where they say something else.
_CONVOLUTIONS: Any = getattr(torch.backends.cudnn, "conv", None)
_PLACES: tuple[Any, ...] = (
    ()
    if _CONVOLUTIONS is None
    else (torch.backends, torch.backends.cudnn, torch.backends.cuda.matmul, _CONVOLUTIONS, torch.backends.cudnn.rnn)  # pyright: ignore[reportAttributeAccessIssue]
)
_DETERMINISTIC: Any = torch.utils.deterministic


def _precision() -> str:
    """Of products and convolutions."""
    products, convolutions = bool(torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.allow_tf32
    return "mixed" if products != convolutions else "tf32" if products else "float32"


@dataclass(frozen=True)
class _Switches:
    """Those of the process that decide which numbers a card computes: what they stood at, to be put back."""

    products: str
    convolutions: bool
    precisions: tuple[str, ...]
    mkldnn: str | None
    cudnn: tuple[bool, bool]
    deterministic: int
    filled: bool
    workspace: str | None

    @staticmethod
    def now() -> _Switches:
        precisions: list[str] = []
        for place in _PLACES:  # from what is inherited to who inherits
            precisions.append(place.fp32_precision)
            place.fp32_precision = "none"
        mkldnn: Any = torch.backends.mkldnn
        of_mkldnn = mkldnn.matmul.fp32_precision if _PLACES else None
        if of_mkldnn is not None:
            mkldnn.matmul.fp32_precision = "none"
        products = torch.get_float32_matmul_precision()
        try:
            convolutions = torch.backends.cudnn.allow_tf32
        except RuntimeError:  # which they are now, and the precisions no longer say so
            convolutions = True
        found = _Switches(
            products=products,
            convolutions=convolutions,
            precisions=tuple(precisions),
            mkldnn=of_mkldnn,
            cudnn=(torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
            deterministic=torch.get_deterministic_debug_mode(),
            filled=_DETERMINISTIC.fill_uninitialized_memory,
            workspace=os.environ.get(WORKSPACE),
        )
        found._put_precisions()
        return found

    def _put_precisions(self) -> None:
        torch.set_float32_matmul_precision(self.products)
        torch.backends.cudnn.allow_tf32 = self.convolutions
        if self.mkldnn is not None:
            mkldnn: Any = torch.backends.mkldnn
            mkldnn.matmul.fp32_precision = self.mkldnn
        for place, precision in zip(_PLACES, self.precisions, strict=True):
            place.fp32_precision = precision

    def put_back(self) -> None:
        self._put_precisions()
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = self.cudnn
        torch.set_deterministic_debug_mode(self.deterministic)
        _DETERMINISTIC.fill_uninitialized_memory = self.filled
        if self.workspace is None:
            os.environ.pop(WORKSPACE, None)


def _set(precision: str, autotune: bool) -> None:
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    for place in _PLACES[2:]:  # said outright: what the user's process lets them inherit may be something else
        place.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, autotune
    if not torch.are_deterministic_algorithms_enabled():
        # What has no deterministic form warns, once, and computes; memory is not filled with NaN before it is written.
        torch.set_deterministic_debug_mode("warn")
        _DETERMINISTIC.fill_uninitialized_memory = False
    os.environ.setdefault(WORKSPACE, FIXED)


@dataclass(eq=False)
class _Guests:
    """Who is inside :func:`numerics` just now: the switches are of the process, and put back by whoever is last."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: list[tuple[int, str, bool]] = field(default_factory=list)  # thread, precision, autotune
    before: _Switches | None = None

    def enter(self, precision: str, autotune: bool) -> tuple[int, str, bool]:
        me = threading.get_ident(), precision, autotune
        with self.lock:
            for thread, *theirs in self.inside:
                if thread != me[0] and theirs != [precision, autotune]:
                    raise ValueError(
                        f"precision: another thread of this process runs on a card with precision {theirs[0]!r} and "
                        f"autotune {theirs[1]}, got {precision!r} and {autotune}; both must be the same there, or run "
                        "in two processes."
                    )
            if self.before is None:
                self.before = _Switches.now()
            self.inside.append(me)
            _set(precision, autotune)
        return me

    def leave(self, me: tuple[int, str, bool]) -> None:
        with self.lock:
            self.inside.reverse()
            self.inside.remove(me)  # the last of several alike
            self.inside.reverse()
            if self.inside:
                _set(*self.inside[-1][1:])
            elif self.before is not None:
                self.before.put_back()
                self.before = None


_guests = _Guests()


@contextmanager
def numerics(device: str, precision: str = "float32", autotune: bool = False) -> Iterator[None]:
    """Inside, torch computes on cards as a run says; outside as before. For other devices nothing is touched.

    Products and convolutions of float32 have all digits of it, or those of TF32, on every card and whatever the process
    had set. Where an operation has a form that gives the same bits each time, that is taken (cuDNN's, cuBLAS's with
    workspaces of fixed size, torch's own); where it has none, torch warns. ``autotune``: cuDNN tries its algorithms and
    takes the fastest, which may be another one the next time.

    These are switches of the whole process: of two runs at a time in threads both must say the same.

    Raises:
        ValueError: another thread is inside, and says something else.

    Example:
        >>> with numerics("cuda"):
        ...     torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
        (False, True)
        >>> torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
        (True, False)
    """
    if torch.device(device).type != "cuda":
        yield
        return
    me = _guests.enter(precision, autotune)
    try:
        yield
    finally:
        _guests.leave(me)
