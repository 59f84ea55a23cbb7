"""What a bug report should hold: what computes here, what is found, and whether it computes what it should."""

from __future__ import annotations

import getpass
import importlib
import importlib.metadata
import math
import os
import platform
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.references import GROUPS, offered, package_of
from . import environment

# Each part imports what it looks at: what cannot be imported here is then a line of the report, and not its end.
if TYPE_CHECKING:
    import numpy as np

    from ..core.rules import Rule

FILES = ("mnist", "fashion-mnist", "cifar-10", "cifar-100")  # data sets that are files of somebody's
FOR_DEVELOPERS = {"dev", "docs"}  # extras of no interest to whoever uses the package
WIDTH = 200_000  # columns that medians are timed on


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found. ``str()`` of it is the text for a bug report.

    Attributes:
        facts: by subject, each a name and what is so.
        notes: what costs time or is missing, and what would mend it; nothing is wrong.
        broken: what is wrong, and what would mend it.
    """

    facts: dict[str, dict[str, str]]
    notes: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is broken."""
        return not self.broken

    def as_dict(self) -> dict[str, Any]:
        """The same in plain values, as JSON takes them."""
        return {"sound": self.sound, "broken": list(self.broken), "notes": list(self.notes), "facts": self.facts}

    def __str__(self) -> str:
        lines = []
        for subject, facts in self.facts.items():
            lines.append(subject)
            lines += [f"  {name}: {value}" for name, value in facts.items()]
        lines += [f"note: {note}" for note in self.notes] + [f"BROKEN: {fault}" for fault in self.broken]
        lines.append("sound" if self.sound else f"{len(self.broken)} broken")
        return "\n".join(_folded(line) for line in lines)


def doctor() -> Diagnosis:
    """What this installation is, what it finds, and whether it computes what it should; takes about five seconds.

    It holds no name of a user or machine, and the home folder is written ``~``. Nothing is downloaded, and of installed
    packages nothing is imported but what this library needs.

    Example:
        >>> found = doctor()
        >>> found.sound, found.facts["self-test"]["rules"]
        (True, 'as their definitions')
    """
    subjects: dict[str, Callable[[_Case], dict[str, str]]] = {
        "versions": _versions,
        "machine": _machine,
        "threads": _threads,
        "compiled kernels": _kernels,
        "data": _data,
        "GPU": _gpu,
        "engines": _engines,
        "extras": _extras,
        "plug-ins": _plug_ins,
        "terminal": _terminal,
        "self-test": _self_test,
    }
    case, facts = _Case([], []), {}
    for subject, look in subjects.items():
        try:
            facts[subject] = look(case)
        except Exception as error:  # whatever it is, it belongs into the report
            case.broken.append(f"{subject} cannot be told: {type(error).__name__}: {error}")
    plain = {s: {k: _without_home(v) for k, v in facts[s].items()} for s in facts}
    return Diagnosis(plain, tuple(map(_without_home, case.notes)), tuple(map(_without_home, case.broken)))


@dataclass(frozen=True)
class _Case:
    notes: list[str]
    broken: list[str]


def _folded(line: str) -> str:
    """In 80 columns; only what has no space in it, such as a path, may be longer, so that it can be copied."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _without_home(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/\\")
    for place in sorted({home, os.path.realpath(home).rstrip("/\\")} - {"", "~"}, key=len, reverse=True):
        text = re.sub(re.escape(place) + r"(?![\w.-])", "~", text)
    try:
        user = getpass.getuser()
    except Exception:  # of the system's own table of users, whatever it is
        return text
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w.-])", "USER", text)  # in paths elsewhere


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"\d*(?:\.\d+)*", version)[0].split(".") if part)  # type: ignore[index]


def _needs(lines: list[str]) -> Iterator[tuple[str, str | None, str | None]]:
    """Of each requirement that metadata state: the package, the least version, and the extra that asks for it."""
    for line in lines:
        needed = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?\s*(?:>=([\d.]+))?\s*(?:;.*?extra == ['\"]([\w-]+)['\"])?$", line)
        if needed is not None:  # else of other systems, or bounded otherwise
            yield needed[1], needed[2], needed[3]


def _versions(case: _Case) -> dict[str, str]:
    found = {"python": f"{platform.python_version()} ({platform.python_implementation()})"}
    commit = environment.commit()
    try:
        version = importlib.metadata.version("varangian")
        found["varangian"] = f"{__version__}, {f'commit {commit}' if commit else 'installed'}"
        needs = importlib.metadata.requires("varangian") or []
        if version != __version__:
            found["varangian"] += f", though {version} is what was installed"
            case.notes.append(
                f"the code is varangian {__version__} and the installed package {version}, so what it needs may be "
                "missing: install it again"
            )
    except importlib.metadata.PackageNotFoundError:
        case.notes.append("varangian is not installed but runs from its source, so nobody saw to what it needs")
        found["varangian"] = f"{__version__}, not installed, {f'commit {commit}' if commit else 'from its source'}"
        needs = []
    for name, least, extra in _needs(needs):
        if extra is not None:
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
            case.broken.append(f"{name} is needed and not installed: pip install {name}")
            continue
        if least and _release(found[name]) < _release(least):
            case.broken.append(f"{name} {found[name]} is older than {least}: pip install --upgrade {name}")
        try:
            importlib.import_module(name.lower().replace("-", "_"))
        except Exception as error:  # of its own code or of libraries that it loads, whatever it is
            found[name] += ", CANNOT BE IMPORTED"
            case.broken.append(
                f"{name} cannot be imported ({type(error).__name__}: {error}): pip install --force-reinstall {name}"
            )
    return found


def _machine(case: _Case) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    found = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": environment.processor(),
        "instruction sets": f"{_tried(_torch_set)} in torch, {_tried(_vector_sets)} in kernels",
        "cores": f"{os.cpu_count()}, of which {cores} usable here",
    }
    try:
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        found["memory"] = "unknown"
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"):  # what a container may use
        try:
            value = Path(limit).read_text("ascii").split()
        except (OSError, ValueError):
            continue
        if value and value[0].isdigit() and "memory" in limit:
            found["memory"] += f", limited to {int(value[0]) / 2**30:.1f} GiB"
        elif len(value) == 2 and all(part.isdigit() for part in value):
            found["cores"] += f", limited to the time of {int(value[0]) / int(value[1]):.3g}"
    return found


def _tried(look: Callable[[], str]) -> str:
    try:
        return look()
    except Exception:  # versions say why
        return "unknown"


def _torch_set() -> str:
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _vector_sets() -> str:
    from llvmlite import binding  # what Numba compiles with

    features = binding.get_host_cpu_features()
    names = {"avx": "AVX", "avx2": "AVX2", "avx512f": "AVX512", "neon": "NEON"}
    found = [name for key, name in names.items() if features.get(key)]
    return ", ".join(found) or "none of AVX, AVX2, AVX512, NEON"


def _threads(case: _Case) -> dict[str, str]:
    import torch
    from numba.core import config
    from threadpoolctl import threadpool_info

    from ..core import kernels

    pools = [f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info()]
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    said = [f"{name}={os.environ[name]}" for name in variables if name in os.environ]
    return {
        "torch": str(torch.get_num_threads()),
        "kernels": str(kernels.threads()),
        # Asking Numba itself would start a pool that nobody needs, and move torch's number.
        "numba": str(config.NUMBA_NUM_THREADS),  # pyright: ignore[reportAttributeAccessIssue]
        "pools": ", ".join(pools) or "none",
        "environment": ", ".join(said) or "nothing set",
    }


def _kernels(case: _Case) -> dict[str, str]:
    from ..core import algorithm, kernels  # noqa: F401  # what has kernels is known once it is imported

    found = {}
    for place in kernels.cache_folders():
        if place is None:
            found["kept"] = "nowhere"
            continue
        folder = Path(place)
        # A package in a folder of its own keeps the files of each of its folders there.
        count = len(list(folder.glob("*.nbc"))) if folder.is_dir() else 0
        there = folder if folder.is_dir() else next((p for p in folder.parents if p.is_dir()), folder)
        writable = os.access(there, os.W_OK)
        found[place] = f"{'warm' if count else 'cold'}, {count} kernels, {'writable' if writable else 'NOT WRITABLE'}"
    if "kept" in found or any("NOT WRITABLE" in value for value in found.values()):
        case.notes.append(
            "compiled kernels cannot all be kept, so each process may compile for a minute: set NUMBA_CACHE_DIR to a "
            "folder that can be written"
        )
    return found


def _data(case: _Case) -> dict[str, str]:
    from ..simulation.data import DATASETS, DataError
    from ..simulation.data.readers import data_root

    given = os.environ.get("VARANGIAN_DATA")
    found = {"folder": f"{data_root(None)} ({'VARANGIAN_DATA' if given else 'as by default'})"}
    for name in FILES:
        try:
            dataset = DATASETS[name](download=False)
            found[name] = f"found, {len(dataset.train):,} and {len(dataset.test):,} examples"
        except DataError as error:
            missing = "To get it" in str(error)  # not "Delete it"
            found[name] = "not found" if missing else "CANNOT BE READ"
            if not missing:
                case.broken.append(str(error))
        except Exception as error:  # the others are looked at all the same
            found[name] = "CANNOT BE READ"
            case.broken.append(f"{name} cannot be read: {type(error).__name__}: {error}")
    return found


def _gpu(case: _Case) -> dict[str, str]:
    import torch

    from ..core.rules import Median
    from . import cards

    lacking = cards.why_no_card()
    if lacking:
        others = [kind for kind, there in (("mps", torch.backends.mps), ("xpu", torch.xpu)) if there.is_available()]
        found = {"none": lacking}
        for kind in others:
            try:
                cards.usable(kind)
                found[kind] = "can be used, and was never tried"
            except ValueError as error:
                found[kind] = str(error).removeprefix(f"device: {kind!r} ")
        return found
    found = {
        "torch": f"built for CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"built for ROCm {torch.version.hip}",
        "driver": cards.driver() or "unknown",
        "cuDNN": str(torch.backends.cudnn.version() or "none"),
        "Triton": cards.version_of("triton") or "none",
    }
    if cards.version_of("triton") is None:
        case.notes.append("Triton is not installed: runs on a GPU compute with torch's own operations, and take longer")
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        found["visible"] = os.environ["CUDA_VISIBLE_DEVICES"]
    for i in range(torch.cuda.device_count()):
        try:
            properties = torch.cuda.get_device_properties(i)
            free, total = torch.cuda.mem_get_info(i)
            found[f"cuda:{i}"] = (
                f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, compute capability "
                f"{properties.major}.{properties.minor}"
            )
            cards.usable(f"cuda:{i}")
            x = torch.randn(11, 64, generator=torch.Generator().manual_seed(0))
            if not torch.equal(Median(f=3)(x.to(f"cuda:{i}")).cpu(), Median(f=3)(x)):
                case.broken.append(f"cuda:{i} computes another median than the processor: use --device cpu")
        except Exception as error:  # of the driver, whatever it is
            found.setdefault(f"cuda:{i}", "CANNOT BE USED")
            case.broken.append(f"cuda:{i} cannot be used ({type(error).__name__}: {error}): use --device cpu")
    return found


def _engines(case: _Case) -> dict[str, str]:
    import torch

    there = torch.distributed.is_available()
    kinds = {
        "gloo": there and torch.distributed.is_gloo_available(),
        "nccl": there and torch.distributed.is_nccl_available(),
        "mpi": there and torch.distributed.is_mpi_available(),
    }
    return {"torch.distributed": ", ".join(kind for kind, has in kinds.items() if has) or "not in this build of torch"}


def _extras(case: _Case) -> dict[str, str]:
    try:
        needs = importlib.metadata.requires("varangian") or []
    except importlib.metadata.PackageNotFoundError:
        return {"unknown": "varangian is not installed, so what its extras bring is not known"}
    packages: dict[str, dict[str, str]] = {}
    for name, least, extra in _needs(needs):
        if extra is None or extra in FOR_DEVELOPERS:
            continue
        get = f"pip install 'varangian[{extra}]'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = f"not installed ({get})"
        else:
            if least and _release(version) < _release(least):
                case.notes.append(f"{name} {version} is older than the {least} that is asked for: {get}")
        packages.setdefault(extra, {})[name] = version
    return {extra: ", ".join(f"{name} {version}" for name, version in packages[extra].items()) for extra in packages}


def _plug_ins(case: _Case) -> dict[str, str]:
    found = {}
    for kind in (kind for kind in GROUPS if kind != "direction"):
        for name, points in offered(kind).items():
            found[f"{kind} {name}"] = " and ".join(f"{package_of(p)} ({p.value})" for p in points)
            if len(points) > 1:
                case.broken.append(f"{kind} {name} is offered by {found[f'{kind} {name}']}: remove all but one")
    return found or {"none": "no installed package offers any"}


def _terminal(case: _Case) -> dict[str, str]:
    def of(stream: Any) -> str:
        kind = "terminal" if stream is not None and stream.isatty() else "no terminal"
        return f"{kind}, {getattr(stream, 'encoding', None) or 'no encoding'}"

    return {
        "output": of(sys.stdout),
        "errors": of(sys.stderr),
        "files": sys.getfilesystemencoding(),
        "TERM": os.environ.get("TERM", "not set"),
    }


def _self_test(case: _Case) -> dict[str, str]:
    found = {}
    for name, check in {"rules": _rules, "a run, twice": _run_twice, "median": _medians}.items():
        try:
            found[name] = check(case)
        except Exception as error:  # the others are tried all the same
            found[name] = "FAILED"
            case.broken.append(f"self-test, {name}: {type(error).__name__}: {error}")
    return found


def _rules(case: _Case) -> str:
    wrong = _wrong_rules()
    if not wrong:
        return "as their definitions"
    case.broken.append(
        f"{', '.join(wrong)} differ from their definitions on this machine: remove the compiled kernels' folder, "
        "and if that does not help report it"
    )
    return "WRONG: " + ", ".join(wrong)


def _wrong_rules() -> list[str]:
    """Rules that answer something else than their definition, in plain float64, where 3 of 11 vectors are hostile."""
    import numpy as np
    import torch

    from ..core.algorithm import Algorithm
    from ..core.mixing import NearestNeighborMixing
    from ..core.rules import Krum, Median, MultiKrum, TrimmedMean

    x = np.random.default_rng(7).standard_normal((11, 301))
    wrong = []
    for k, bad in enumerate(([np.nan, np.inf, 1e38], [-np.inf, -1e38, np.nan], [0.0, 0.0, 0.0], [3.0, -1e-310, 5.0])):
        y = x.copy()
        y[[2, 5, 9]] = np.array(bad)[:, None]
        for rule in (Median(f=3), TrimmedMean(f=3), Krum(f=3), MultiKrum(f=3)):
            for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
                with np.errstate(all="ignore"):
                    z = y.astype(dtype)
                    expected = _defined(rule, z.astype(np.float64))
                if not np.allclose(rule(z), expected, rtol=tolerance, atol=tolerance):
                    wrong.append(f"{type(rule).__name__} ({np.dtype(dtype)}, case {k})")
    mixed = Algorithm(pre=(NearestNeighborMixing(f=3),), rule=Median(f=3))
    got = mixed.decide(torch.from_numpy(x), mixed.init(0, x.shape[1], torch.float64)).aggregate.numpy()
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :8]
    if not np.allclose(got, np.median(x[nearest].mean(1), axis=0), rtol=1e-12, atol=1e-12):
        wrong.append("NearestNeighborMixing")
    return wrong


def _defined(rule: Rule, x: np.ndarray) -> np.ndarray:
    import numpy as np

    from ..core.rules import Krum, Median, TrimmedMean

    n, f = x.shape[0], rule.f
    ordered = np.sort(np.where(np.isnan(x), np.inf, x), axis=0)
    if isinstance(rule, Median):
        return ordered[n // 2]
    if isinstance(rule, TrimmedMean):
        return ordered[f : n - f].mean(0)
    good = np.asarray(np.isfinite(x).all(axis=1))
    squared = np.where(good[:, None] & good[None], ((x[:, None] - x[None]) ** 2).sum(-1), np.inf)
    np.fill_diagonal(squared, np.inf)
    scores = np.where(good, np.sort(squared, axis=1)[:, : n - f - 2].sum(1), np.inf)
    m = 1 if isinstance(rule, Krum) else n - f - 2
    return x[np.argsort(scores, kind="stable")[:m]].mean(0)


def _run_twice(case: _Case) -> str:
    from .experiment import Experiment
    from .folders import EVALUATIONS, METRICS
    from .running import run

    short = Experiment(rule="multi-krum", attack="little", workers=11, byzantine=3, steps=20, evaluate_every=10)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number in ("1", "2"):
            made = run(short, Path(folder) / number).folder
            assert made is not None
            found.append([(made / name).read_bytes() for name in (METRICS, EVALUATIONS)])
    if found[0] == found[1]:
        return "the same bytes"
    case.broken.append("a short run gave other bytes the second time: report it, with all of this")
    return "OTHER BYTES"


def _medians(case: _Case) -> str:
    """How ours and torch's compare: the best of three each, and whether they answer the same."""
    import torch

    from ..core.rules import Median

    x = torch.randn(25, WIDTH, generator=torch.Generator().manual_seed(0))
    rule = Median(f=5)
    if not torch.equal(rule(x), x.median(0).values):
        case.broken.append(
            "Median differs from torch.median: remove the compiled kernels' folder, and if that does not help report it"
        )
    best = [math.inf, math.inf]
    for _ in range(3):
        for k, compute in enumerate((lambda: rule(x), lambda: x.median(0))):
            start = time.perf_counter()
            compute()
            best[k] = min(best[k], time.perf_counter() - start)
    ours, theirs = best
    return f"{theirs / ours:.3g} times as fast as torch.median, (25, {WIDTH:,}) in {1000 * ours:.1f} ms"


__all__ = ["Diagnosis", "doctor"]
