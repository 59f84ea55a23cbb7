"""Cards, where there is none: how torch would compute on them, what is said of them, and what comes after them."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import varangian as vg
from pretended import CARD as PRETENDED
from pretended import PretendedCard
from varangian.runs import building, cards, folders, replaying, running
from varangian.runs.cards import numerics
from varangian.runs.environment import environment
from varangian.runs.experiment import moved
from varangian.study.outcomes import collect

Program = Callable[..., Any]

B = torch.backends
NEW: Any = getattr(B.cudnn, "conv", None)  # since torch 2.9 each operation has a precision of its own
SMALL = vg.Experiment(model="linear", rule="median", workers=5, byzantine=1, steps=6, evaluate_every=3, batch_size=8)


def switches() -> list[Any]:
    """All that torch shows of what decides numbers on cards, "mixed" where it refuses to say."""
    readers: list[Callable[[], Any]] = [
        lambda: B.cudnn.allow_tf32, lambda: B.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision,
        lambda: (B.cudnn.deterministic, B.cudnn.benchmark), torch.get_deterministic_debug_mode,
        lambda: torch.utils.deterministic.fill_uninitialized_memory,  # pyright: ignore[reportAttributeAccessIssue]
        lambda: os.environ.get(cards.WORKSPACE),
    ]  # fmt: skip
    if NEW is not None:
        places: tuple[Any, ...] = (B, B.cudnn, B.cuda.matmul, NEW, B.cudnn.rnn, B.mkldnn, B.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]
        readers += [lambda place=place: place.fp32_precision for place in places]
    found = []
    for read in readers:
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    return found


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Whatever a test sets, the next one finds what torch starts with."""
    start = cards._Switches.now()
    before = switches()
    yield
    start.put_back()
    assert switches() == before


def changes() -> dict[str, Callable[[], None]]:
    """What a user's process may have set."""
    found: dict[str, Callable[[], None]] = {
        "no tf32 in cudnn": lambda: setattr(B.cudnn, "allow_tf32", False),
        "tf32 in products": lambda: setattr(B.cuda.matmul, "allow_tf32", True),
        "medium": lambda: torch.set_float32_matmul_precision("medium"),
        "strict": lambda: torch.use_deterministic_algorithms(True),
        "benchmark": lambda: setattr(B.cudnn, "benchmark", True),
        "workspace": lambda: os.environ.__setitem__(cards.WORKSPACE, ":16:8"),
    }
    if NEW is not None:
        found |= {
            "all tf32": lambda: setattr(B, "fp32_precision", "tf32"),
            "cuda ieee": lambda: setattr(B.cudnn, "fp32_precision", "ieee"),
            "products tf32": lambda: setattr(B.cuda.matmul, "fp32_precision", "tf32"),
            "convolutions ieee": lambda: setattr(NEW, "fp32_precision", "ieee"),
            "convolutions inherit": lambda: setattr(NEW, "fp32_precision", "none"),
        }
    return found


PAIRS = list(itertools.permutations(changes(), 2))


@pytest.mark.parametrize("names", [(), *((name,) for name in changes()), *PAIRS], ids=" then ".join)
def test_inside_is_as_a_run_says_and_outside_as_before(names: tuple[str, ...]) -> None:
    for name in names:
        changes()[name]()
    before = switches()
    for precision, autotune in (("float32", False), ("tf32", True)):
        with numerics("cuda:1", precision, autotune):
            tf32 = precision == "tf32"
            assert (B.cudnn.allow_tf32, B.cuda.matmul.allow_tf32) == (tf32, tf32)
            assert (B.cudnn.deterministic, B.cudnn.benchmark) == (True, autotune)
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled() == ("strict" not in names)
            assert os.environ[cards.WORKSPACE] == (":16:8" if "workspace" in names else ":4096:8")
            if NEW is not None:
                kept = {p.fp32_precision for p in (B.cuda.matmul, NEW, B.cudnn.rnn)}  # pyright: ignore[reportAttributeAccessIssue]
                assert kept == {"tf32" if tf32 else "ieee"}
        assert switches() == before
    if NEW is not None:  # what was inherited is inherited still
        B.fp32_precision = "ieee" if "all tf32" in names else "tf32"  # pyright: ignore[reportAttributeAccessIssue]
        after = switches()
        cards._Switches.now().put_back()
        assert switches() == after


def test_memory_is_not_filled_before_it_is_written() -> None:
    torch.use_deterministic_algorithms(True)
    with numerics("cuda"):
        assert torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(False)
    with numerics("cuda"):
        assert not torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_other_devices_touch_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards._guests, "enter", lambda *_: pytest.fail("was entered"))
    before = switches()
    with numerics(device):
        assert switches() == before


def test_errors_and_nesting() -> None:
    before = switches()
    with pytest.raises(ZeroDivisionError), numerics("cuda", "tf32"), numerics("cuda"), numerics("cuda", "tf32"):
        raise ZeroDivisionError
    assert switches() == before
    with numerics("cuda", "tf32"):
        with numerics("cuda", autotune=True):
            assert (B.cudnn.allow_tf32, B.cudnn.benchmark) == (False, True)
        assert (B.cudnn.allow_tf32, B.cudnn.benchmark) == (True, False)
    assert switches() == before


def test_threads_share_the_switches_or_are_refused() -> None:
    before = switches()

    def in_thread(precision: str, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
        said: list[str] = []

        def enter() -> None:
            try:
                with numerics("cuda", precision):
                    meanwhile()
            except ValueError as error:
                said.append(str(error))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return said

    outer = ExitStack()
    outer.enter_context(numerics("cuda", "tf32"))
    assert in_thread("tf32", outer.close) == []  # who came first leaves first
    assert switches() == before
    with numerics("cuda", "tf32"):
        (line,) = in_thread("float32")
        assert line.startswith("precision: another thread of this process runs on a card with precision 'tf32'")
        assert "\n" not in line
        assert B.cudnn.allow_tf32
        with numerics("cuda", "float32"):  # of both this thread says
            assert len(in_thread("tf32")) == len(in_thread("float32")) == 1
    assert in_thread("float32") == []
    assert switches() == before


# ----------------------------------------------------------------------------------------- what is said of them


def name_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card of {device}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(cards, "driver", lambda: "580.65.06")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says what it would say of a card."""
    name_cards(monkeypatch)


def test_the_environment_says_what_is_really_set(named: None, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = environment("cpu")
    with numerics("cuda:1", "tf32", autotune=True):
        found = environment("cuda:1")
        assert environment("cpu") == on_cpu
    assert list(found)[: len(on_cpu)] == list(on_cpu)
    assert found | on_cpu == found | {"device": "cpu"}
    said = {name: value for name, value in found.items() if name not in on_cpu}
    assert said.pop("triton") == cards.version_of("triton")
    assert said == {
        "capability": "9.0", "cuda": "13.0", "cudnn": 91900, "driver": "580.65.06", "precision": "tf32",
        "autotune": True, "deterministic": True, "cublas_workspace": ":4096:8",
    }  # fmt: skip
    with numerics("cuda:1"):
        assert environment("cuda:1")["precision"] == "float32"
        B.cudnn.allow_tf32 = True  # by the code of somebody's own
        assert environment("cuda:1")["precision"] == "mixed"
    monkeypatch.setattr(cards, "version_of", lambda name: None)
    assert environment("cuda:1")["triton"] is None


def test_theversion_of_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "version"
    monkeypatch.setattr(cards, "Path", lambda _: said)
    assert cards.driver() is None
    said.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 16 2025\nGCC version: 12.2.0\n")
    assert cards.driver() == "570.86.15"
    said.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)\n")
    assert cards.driver() == "580.65.06"
    said.write_bytes(b"\xff")
    assert cards.driver() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_devices_that_are_not_here_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(device: str) -> str:
        with pytest.raises(ValueError, match=rf"^device: '{device}' ") as error:
            cards.usable(device)
        assert "\n" not in str(error.value)
        return str(error.value).partition(" cannot be used here: ")[2]

    if torch.version.cuda is None and torch.version.hip is None:
        assert why("cuda") == why("cuda:3") == "torch is built for processors only."
    assert why("xpu") == "torch finds no xpu that it can use."
    assert why("mps") == "torch finds no mps that it can use."
    assert why("gpu") == ""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    none = "torch is built for CUDA 13.0, and finds no GPU or driver that it can use"
    assert why("cuda") == f"{none}."
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert why("cuda") == f"{none}; CUDA_VISIBLE_DEVICES is '7'."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert why("cuda:2") == "of this number of GPUs, 2, the last is cuda:1."
    assert why("cuda:1") != ""  # it is there, and does not work: torch's own words


def test_a_device_without_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Single(torch.Tensor):
        def double(self) -> torch.Tensor:
            raise TypeError("Cannot convert a MPS Tensor to float64")

    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1).as_subclass(Single))
    with pytest.raises(ValueError, match=r"^device: 'mps' cannot be used: it has no float64, in which distances are"):
        cards.usable("mps")


def test_which_cards_there_are(monkeypatch: pytest.MonkeyPatch, named: None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (70 + i, 80))
    assert cards.cards() == [cards.Card("Card of 0", 70, 80), cards.Card("Card of 1", 71, 80)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cards.cards() == []


# --------------------------------------------------------------------------------------------------- settings


def test_which_of_several_cards_is_no_other_run() -> None:
    one, other = (replace(SMALL, device=device) for device in ("cuda", "cuda:1"))
    assert (one.name, one.digest) == (other.name, other.digest)
    assert one != other
    assert len({replace(SMALL, device=device).digest for device in ("cpu", "cuda", "mps", "xpu")}) == 4
    assert SMALL.digest == "e4f6714e17"
    assert one.digest == "5e7b2c0849"


@pytest.mark.parametrize("setting", [{"precision": "tf32"}, {"autotune": True}])
def test_what_is_of_cards_is_refused_elsewhere(setting: dict[str, Any]) -> None:
    (name,) = setting
    for device in ("cpu", "mps", "xpu"):
        with pytest.raises(ValueError, match=rf"^{name}: .* of cards \(device cuda\), and device is {device}; "):
            replace(SMALL, device=device, **setting)
    e = replace(SMALL, device="cuda:2", **setting)
    assert e.digest != replace(SMALL, device="cuda").digest
    assert vg.Experiment.from_json(e.to_json()) == vg.Experiment.from_toml(e.to_toml()) == e
    assert moved(e, "cpu") == SMALL
    assert moved(e, "cuda") == replace(e, device="cuda")
    assert name not in replace(SMALL, device="cuda").to_json()


def test_tf32_is_of_float32() -> None:
    with pytest.raises(ValueError, match=r"^precision: tf32 is of numbers of float32, and dtype is float64; use"):
        replace(SMALL, device="cuda", dtype="float64", precision="tf32")
    assert replace(SMALL, device="cuda", dtype="float64").precision == "float32"


# ----------------------------------------------------------------------------------- what was computed on a card


@pytest.fixture
def on_a_card() -> Iterator[pytest.MonkeyPatch]:
    """Runs on cuda happen on the processor, and say that they did not; until ``undo()``: there is then no card."""
    if torch.cuda.is_available():
        pytest.skip("this is about machines without a GPU")
    with pytest.MonkeyPatch.context() as patch:
        name_cards(patch)
        for module in (running, replaying):
            patch.setattr(module, "usable", lambda _: None, raising=False)
            patch.setattr(module, "build", lambda e, *rest: building.build(moved(e, "cpu"), *rest))
        yield patch


CARD = replace(SMALL, device="cuda:1", precision="tf32", attack="little")


def cut_short(e: vg.Experiment, out: Path, step: int = 4) -> Path:
    def progress(done: int, _: object) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vg.run(e, out, progress=progress)
    return out / f"{e.name}-{e.digest}"


def sessions(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "environment.json").read_text())["sessions"]


def test_a_complete_run_of_a_card_is_read_where_there_is_none(on_a_card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = vg.run(CARD, tmp_path / "runs")
    folder = made.folder
    assert folder is not None
    on_a_card.undo()
    (session,) = sessions(folder)
    assert (session["device"], session["precision"], session["cudnn"]) == ("Card of cuda:1", "tf32", 91900)
    again = vg.run(CARD, tmp_path / "runs")
    assert again.from_disk
    assert vg.run(replace(CARD, device="cuda"), tmp_path / "runs").from_disk  # on whichever card it was
    assert vg.resume(folder).max_accuracy == again.max_accuracy == vg.read(folder).max_accuracy == made.max_accuracy
    state = torch.load(folder / "state.pt", weights_only=True)
    assert {t.device.type for t in (state["parameters"], *state["buffers"].values())} == {"cpu"}
    (model,) = {str(p.device) for p in vg.load_model(folder).parameters()}
    assert model == "cpu"
    ((outcome,), _) = collect(tmp_path / "runs")
    assert outcome.experiment == replace(CARD, device="cuda")
    assert "Card of cuda:1" in (outcome.machine or "")
    with pytest.raises(
        ValueError, match=r"device: 'cuda:1' cannot be used here: .* With --device cpu .* it goes on"
    ) as error:
        vg.replay(folder, 2)
    assert "\n" not in str(error.value)
    on_cpu = vg.replay(folder, 2, device="cpu")
    assert on_cpu.agrees  # it was computed on this processor, in truth
    assert on_cpu.elsewhere == ("device Card of cuda:1 then, cpu now",)
    lines = (folder / "metrics.csv").read_text().splitlines()
    cells = lines[3].split(",")
    cells[5] = f"{float(cells[5]) * 1.003:.9g}"
    lines[3] = ",".join(cells)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    shown = str(vg.replay(folder, 2, device="cpu")).splitlines()[0]
    assert shown.endswith(
        "its measures ARE NOT those of the folder: they are apart by up to 0.003 of their size, and the folder was "
        "made elsewhere (device Card of cuda:1 then, cpu now)"
    )
    cells[5] = "nonsense"
    lines[3] = ",".join(cells)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert vg.replay(folder, 2, device="cpu").apart == math.inf
    environment = json.loads((folder / "environment.json").read_text())
    environment["sessions"] += [
        {"from_step": "0"},
        {"from_step": 1, "device": "x" * 10_000 + "\n"},
        {"from_step": 3, "device": "later"},
    ]
    (folder / "environment.json").write_text(json.dumps(environment))
    first, second = vg.replay(folder, 2, device="cpu").elsewhere
    assert first == "device Card of cuda:1 then, cpu now"
    assert len(second) < 500
    assert "\n" not in second


def test_a_run_that_a_card_began_is_completed_without_one(on_a_card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = vg.run(CARD, tmp_path / "whole").folder
    assert whole is not None
    folder = cut_short(CARD, tmp_path)
    on_a_card.undo()
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert {t.device.type for t in folders._tensors(content)} == {"cpu"}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for call in (lambda: vg.resume(folder), lambda: vg.run(CARD, tmp_path), lambda: vg.resume(folder, device="cuda:7")):
        with pytest.raises(ValueError, match=r"device: 'cuda:\d' cannot be used here: ") as error:
            call()
        assert "\n" not in str(error.value)
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"} == {
            name: content for name, content in before.items() if name != ".lock"
        }
    with pytest.raises(ValueError, match="device: 'gpu' is no device"):
        vg.resume(folder, device="gpu")
    with pytest.warns(
        UserWarning, match="going on from step 4 in another environment.*: device Card of cuda:1 then, cpu now"
    ):
        result = vg.resume(folder, device=torch.device("cpu"))
    assert result.experiment == CARD
    for name in ("metrics.csv", "evaluations.csv"):  # computed on this processor, all of it
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert [session["device"] for session in sessions(folder)] == ["Card of cuda:1", "cpu"]
    assert "precision" not in sessions(folder)[1]
    assert vg.Experiment.from_json((folder / "experiment.json").read_text()) == CARD
    assert vg.read(folder).experiment.digest == CARD.digest
    assert vg.resume(folder, device="cuda").from_disk
    with pytest.raises(ValueError, match="device: 'gpu' is no device"):
        vg.resume(folder, device="gpu")


def test_a_run_goes_on_on_a_card(on_a_card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = cut_short(SMALL, tmp_path)
    with pytest.warns(UserWarning, match="device cpu then, Card of cuda now"):
        vg.resume(folder, device="cuda")
    assert sessions(folder)[1]["precision"] == "float32"
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_card_is_said(on_a_card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cut_short(CARD, tmp_path)
    on_a_card.setattr(torch.backends.cudnn, "version", lambda: 92000)
    with pytest.warns(UserWarning, match="device Card of cuda:1 then, Card of cuda now; cudnn 91900 then, 92000 now"):
        vg.run(replace(CARD, device="cuda"), tmp_path)


def test_the_commands_on_a_run_of_a_card(on_a_card: pytest.MonkeyPatch, tmp_path: Path, varangian: Program) -> None:
    folder = str(cut_short(CARD, tmp_path / "runs"))
    on_a_card.undo()
    end = varangian("run", "--resume", folder)
    assert (end.status, end.out, end.err.count("\n")) == (2, "", 1)
    assert "device: 'cuda:1' cannot be used here: " in end.err
    assert "--device cpu" in end.err
    end = varangian("run", "--resume", folder, "--device", "cpu")
    assert end.status == 0
    assert "device Card of cuda:1 then, cpu now" in end.err
    assert varangian("run", "--resume", folder).status == 0  # complete
    assert varangian("run", "--resume", folder, "--device", "cuda").status == 0
    assert varangian("run", "--resume", folder, "--device", "cpu", "--steps", "9").status == 2
    end = varangian("replay", folder, "--step", "1")
    assert (end.status, end.out, end.err.count("\n")) == (2, "", 1)
    assert varangian("replay", folder, "--step", "1", "--device", "cpu").status == 0
    assert varangian("report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")).status == 0


# ------------------------------------------------------------------------------------------- on a pretended card


class Normed(torch.nn.Module):
    """With buffers, which are part of the state, and dropout, which draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)
        self.norm, self.dropout = torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(self.norm(self.first(x.flatten(1)))))


class Generators(torch.Generator):
    """torch.Generator, where there is a card: what draws there is called so, and draws on the processor."""

    def __new__(cls, device: str | torch.device = "cpu") -> Generators:
        made: Any = OfCard if torch.device(device).type == "cuda" else cls
        return super().__new__(made)


class OfCard(Generators):
    device = property(lambda self: PRETENDED)  # type: ignore[assignment]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> torch.Generator:
    """The card's own generator."""
    default = Generators(PRETENDED)
    default.manual_seed(77)
    monkeypatch.setattr(torch, "Generator", Generators)
    monkeypatch.setattr(torch.cuda, "default_generators", (default,))
    return default


@pytest.fixture
def net() -> torch.nn.Module:
    return Normed()


WIDE = replace(SMALL, attack="mimic", pre=("nnm",), momentum_at="worker", workers=7)


def alike(one: vg.Result, other: vg.Result) -> None:
    for a, b in zip(one.evaluations, other.evaluations, strict=True):
        assert (a.step, a.loss) == (b.step, pytest.approx(b.loss, rel=1e-4))
    for a, b in zip(one.measures, other.measures, strict=True):
        assert [float(x or "nan") for x in a.row()] == pytest.approx(
            [float(x or "nan") for x in b.row()], rel=1e-3, abs=1e-5, nan_ok=True
        )


@pytest.mark.parametrize(("began", "went_on"), [("cuda:0", "cpu"), ("cpu", "cuda:0"), ("cuda:0", None)])
@pytest.mark.parametrize("changed", [{}, {"momentum_at": "server"}, {"nesterov": True}, {"dtype": "float64"}], ids=str)
def test_checkpoints_move_between_devices(
    began: str, went_on: str | None, changed: dict[str, Any], tmp_path: Path, net: torch.nn.Module,
    drawing: torch.Generator,
) -> None:  # fmt: skip
    e = replace(WIDE, device=began, **changed)
    whole = vg.run(moved(e, "cpu"), model=net)

    def on(device: str, call: Callable[[], Any]) -> Any:
        with PretendedCard() if device != "cpu" else nullcontext():
            return call()

    def progress(done: int, _: object) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on(began, lambda: vg.run(e, tmp_path, model=net, progress=progress))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    found = list(folders._tensors(torch.load(folder / "checkpoint.pt", weights_only=True)))
    assert len(found) > 5
    assert {type(t) for t in found} == {torch.Tensor}
    assert {t.device.type for t in found} == {"cpu"}
    before = torch.get_rng_state(), drawing.get_state()
    with pytest.warns(UserWarning, match="a pretended card") if went_on else nullcontext():
        result = on(went_on or began, lambda: vg.resume(folder, model=net, device=went_on))
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], drawing.get_state())
    assert result.began in (4, 5)  # a card may be a step ahead of what is known
    alike(result, whole)
    state = torch.load(folder / "state.pt", weights_only=True)
    assert {type(t) for t in (state["parameters"], *state["buffers"].values())} == {torch.Tensor}
    assert len(state["buffers"]) == 3
    assert next(vg.load_model(folder, model=net).parameters()).device.type == "cpu"
    again = vg.replay(folder, 5, model=net, device="cpu")
    assert again.explanation is not None
    assert {session["device"] for session in sessions(folder)} == {"a pretended card", "cpu"} - (
        {"cpu"} if not went_on else set()
    )


def test_global_random_states_are_untouched(net: torch.nn.Module, drawing: torch.Generator, tmp_path: Path) -> None:
    def fail(done: int, _: object) -> None:
        if done == 2:
            raise ZeroDivisionError

    before = torch.get_rng_state(), drawing.get_state()
    vg.run(replace(SMALL, attack="gaussian"), model=net)
    with PretendedCard():
        vg.run(replace(SMALL, attack="gaussian", device="cuda:0"), tmp_path, model=net)
        with pytest.raises(ZeroDivisionError):
            vg.run(replace(SMALL, device="cuda:0"), model=net, progress=fail)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], drawing.get_state())


def test_the_same_bytes_each_time(net: torch.nn.Module, drawing: torch.Generator, tmp_path: Path) -> None:
    e = replace(WIDE, device="cuda:0", precision="tf32")
    with PretendedCard():
        made = [vg.run(e, tmp_path / name, model=net).folder for name in ("one", "other")]
    for name in ("metrics.csv", "evaluations.csv", "state.pt"):
        one, other = ((folder / name).read_bytes() for folder in made if folder is not None)
        assert one == other, name


ADDING = re.compile(
    r"(?<!np\.)\b(scatter_add_?|index_add_?|scatter_reduce_?|index_reduce_?|put_|bincount|histc|tl\.atomic_\w+)\("
)
SOUND = {  # sums of whole numbers, which are the same in any order; and of arrays of the processor
    ("simulation/scores.py", "bincount"),
    ("simulation/gradients/chain.py", "log_p.exp_().scatter_add_(2, answers,"),
}


def test_nothing_is_summed_with_atomics() -> None:
    """On a card the order of such sums, and with it their last digit, is another one each time."""
    root = Path(vg.__file__).parent
    lines = [
        (path.relative_to(root).as_posix(), line.strip())
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if ADDING.search(line) and not line.lstrip().startswith((">>>", "#"))
    ]
    assert [found for found in lines if not any(found[0] == name and part in found[1] for name, part in SOUND)] == []
    assert {name for name, _ in lines} == {name for name, _ in SOUND}
