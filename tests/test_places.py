"""Sweeps over cards, where there is none: which worker has which, how many share one, and whole sweeps on pretended
ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import varangian as vg
from varangian.core.references import packed
from varangian.runs.cards import Card
from varangian.study.sweep import cluster, find_devices, local, places
from varangian.study.sweep.places import Need, Place, deal
from varangian.study.sweep.plan import kind_of_run

BASE = vg.Experiment(model="linear", rule="median", workers=5, byzantine=1, steps=4, evaluate_every=2, batch_size=8)
GIB = 2**30
BIG = Need(30 * GIB, 2)
SMALL = Need(GIB, 4)


def runs(*devices: str) -> list[vg.Experiment]:
    return [replace(BASE, device=device, seed=k) for k, device in enumerate(devices)]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two cards, of 80 and 40 GiB."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(places, "look", lambda: [Card("H100", 80 * GIB, 80 * GIB), Card("A100", 40 * GIB, 40 * GIB)])
    monkeypatch.setattr(places, "needs", lambda runs, _: [SMALL])
    return monkeypatch


def numbers(experiments: list[vg.Experiment], jobs: int | None = None, most: int = 100) -> list[int]:
    return [place.number for place in deal(experiments, jobs, most, None)]


def test_without_runs_on_cards_nobody_looks_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "look", lambda: pytest.fail("looked"))
    assert deal(runs("cpu", "cpu"), None, 8, None) == deal([], None, 8, None) == ()


def test_processes_are_dealt_in_turn_as_many_as_fit(two: pytest.MonkeyPatch) -> None:
    assert numbers(runs("cuda")) == [0, 1, 0, 1, 0, 1, 0, 1]
    assert numbers(runs("cuda"), most=3) == [0, 1, 0]
    assert numbers(runs("cuda"), most=0) == [0]
    two.setattr(places, "needs", lambda runs, _: [SMALL, BIG])  # of the one that needs most
    assert numbers(runs("cuda")) == [0, 1, 0]
    two.setattr(places, "needs", lambda runs, _: [Need(500 * GIB, 4)])  # the estimate may be wrong: one is tried
    assert numbers(runs("cuda")) == [0, 1]


def test_jobs_say_how_many_in_all(two: pytest.MonkeyPatch) -> None:
    two.setattr(places, "needs", lambda runs, _: [BIG])
    for jobs, expected in ((1, [0]), (2, [0, 1]), (3, [0, 1, 0]), (7, [0, 1, 0, 0, 1, 0, 0])):
        assert numbers(runs("cuda"), jobs, most=1) == expected


def test_runs_that_name_a_card_have_that_one(two: pytest.MonkeyPatch) -> None:
    assert numbers(runs("cuda:1")) == [1, 1, 1, 1]
    assert numbers(runs("cuda:1", "cuda:0")) == [0, 1, 0, 1, 0, 1, 0, 1]
    assert numbers(runs("cuda:1", "cuda")) == numbers(runs("cuda", "cpu")) == [0, 1, 0, 1, 0, 1, 0, 1]


def test_only_visible_cards_are_used_and_each_worker_sees_one(two: pytest.MonkeyPatch) -> None:
    assert deal(runs("cuda"), 2, 9, None) == (Place(0, "0", "H100"), Place(1, "1", "A100"))
    two.setenv("CUDA_VISIBLE_DEVICES", " GPU-8932f937, 3,5")
    dealt = deal(runs("cuda"), 2, 9, None)
    assert [place.visible for place in dealt] == ["GPU-8932f937", "3"]
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    with places.seeing(dealt[1]):
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "3\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == " GPU-8932f937, 3,5"
    two.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(ZeroDivisionError), places.seeing(dealt[0]):
        raise ZeroDivisionError
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with places.seeing(None):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_card_that_is_not_here_is_a_line_before_anything_starts(two: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for devices in (("cuda:2",), ("cuda", "cpu", "cuda:9")):
        with pytest.raises(ValueError, match=r"^device: 'cuda:\d' cannot be used here: of this number of GPUs, 2, the"):
            vg.sweep(runs(*devices), tmp_path / "out")
    two.setattr(places, "look", list)
    for device in ("cuda", "cuda:1", "xpu", "mps"):
        with pytest.raises(ValueError, match=rf"^device: '{device}' cannot be used here: ") as error:
            vg.sweep(runs("cpu", device), tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_looking_happens_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if not torch.cuda.is_available():
        assert places.look() == []
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        ValueError, match=r"^device: 'cuda' cannot be used here: ModuleNotFoundError: No module"
    ) as error:
        places.look()
    assert "\n" not in str(error.value)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert places.look() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(places, "PATIENCE", 0.01)
    with pytest.raises(
        ValueError, match=r"^device: 'cuda' cannot be used here: its driver has not answered for 0.01 s"
    ):
        places.look()


# ----------------------------------------------------------------------------------------------- what a run needs


def need(e: vg.Experiment) -> Need:
    (found,) = places.needs([e], None)
    return found


IMAGES = "synthetic(shape=(3,32,32),train=100,test=20)"


def test_what_a_run_needs_grows_with_all_that_takes_memory() -> None:
    small = replace(BASE, device="cuda", dataset=IMAGES)
    convolutions = replace(small, model="cnn", workers=25, byzantine=5, batch_size=50)
    assert (need(small).at_a_time, need(convolutions).at_a_time) == (places.OTHERS, places.CONVOLUTIONS)
    assert GIB < need(small).memory < 1.1 * GIB
    d = 1_310_922
    vectors = 4 * d * (places.VECTORS * 25 + places.SINGLE)
    images = need(replace(convolutions, batch_size=100)).memory - need(convolutions).memory  # as many again
    assert need(convolutions).memory - GIB == pytest.approx(vectors + images, rel=0.01)
    for changed in ({"workers": 50}, {"batch_size": 100}, {"dtype": "float64"}):
        assert need(replace(convolutions, **changed)).memory > need(convolutions).memory, changed
    data = replace(small, dataset=IMAGES.replace("100", "1000"))
    assert need(data).memory - need(small).memory == 900 * 3 * 32 * 32


def test_each_kind_of_run_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    model = places.Model(4000, 100.0, 10_000, False)
    monkeypatch.setattr(places, "model_of", lambda e, _: looked.append(e.model) or model)
    same = [replace(BASE, seed=k, rule=rule) for k in range(3) for rule in ("median", "krum")]
    found = places.needs([*same, replace(BASE, model="fully-connected"), replace(BASE, workers=9)], None)
    assert len(found) == 2  # of as many models, and numbers of workers
    assert looked == ["linear", "fully-connected"]


def test_what_one_card_took_tells_of_another() -> None:
    """How long runs take is learned from all cards, and asked for thousands of runs at a time."""
    e = replace(BASE, device="cuda")
    assert kind_of_run(e) == kind_of_run(replace(e, device="cuda:3"))
    assert len({kind_of_run(x) for x in (e, BASE, replace(e, precision="tf32"))}) == 3
    many = [replace(BASE, device="cuda:1")] * 2000
    start = time.perf_counter()
    assert len(set(map(kind_of_run, many))) == 1
    assert time.perf_counter() - start < 0.5


def test_what_is_kept_for_the_gradient_is_counted_once() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7), torch.nn.ReLU(), torch.nn.Linear(7, 10))
    state = torch.get_rng_state()
    dataset = vg.DATASETS["digits"]()
    assert places.kept_of_an_example(model, dataset) == 4 * (64 + 7)  # the input, and what ReLU answers
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_known_is_left_to_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = tmp_path / "own.py"
    own.write_text("import torch\n\nclass Broken(torch.nn.Linear):\n    def forward(self, x):\n        return {}[0]\n\n"
                   "def broken(shape, classes):\n    return Broken(64, classes)\n")  # fmt: skip
    assert need(replace(BASE, model=f"{own}:broken")) == Need(places.CONTEXT, places.CONVOLUTIONS)
    assert need(replace(BASE, dataset="cifar-10")).at_a_time <= places.OTHERS  # whose files may not be here


# ------------------------------------------------------------------------------------------------------------- Ray


class Ray:
    """What a sweep asks of Ray."""

    def __init__(self, **resources: float) -> None:
        self.resources, self.options, self.sent = resources, {}, []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda task: SimpleNamespace(remote=lambda *arguments: self.sent.append(arguments) or len(self.sent))


@pytest.mark.parametrize(
    ("gpus", "jobs", "expected"),
    [(2, None, (8, 1 / 4)), (2, 3, (3, 1 / 2)), (2, 1, (1, 1.0)), (1, 5, (5, 1 / 5)), (9, None, (16, 1 / 2))],
)
def test_on_ray_each_run_has_its_share_of_a_card(gpus: int, jobs: int | None, expected: tuple[int, float]) -> None:
    todo = [replace(BASE, device="cuda:3", seed=k) for k in range(20)]
    plan = SimpleNamespace(
        todo=todo, jobs=0, threads=1, data_folder=None, out=Path("out"), events=False, tensorboard=False
    )
    ray = Ray(CPU=16.0, GPU=float(gpus))
    with cluster._RayWorkers(ray, "auto", plan, jobs) as workers:  # type: ignore[arg-type]
        assert (plan.jobs, ray.options["num_gpus"]) == expected
        workers.give(0, "run", todo[0])
        workers.running.clear()
    assert vg.Experiment.from_json(ray.sent[0][0]) == replace(todo[0], device="cuda")


# --------------------------------------------------------------------------------- whole sweeps, on pretended cards

START = '''
"""Each process of a sweep has a pretended card, and says which its environment leaves it."""
import os, sys
if any("multiprocessing.spawn" in word or "varangian.runs.cards" in word for word in sys.orig_argv):
    import torch
    from pretended import PretendedCard
    PretendedCard().__enter__()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "a,b").split(",")
    torch.cuda.device_count = lambda: len(seen)
    torch.cuda.get_device_name = lambda device=None: "pretended card"
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.mem_get_info = lambda device=None: (2**33, 2**34)
    torch.cuda.empty_cache = lambda: None
    torch.backends.cudnn.version = lambda: 90000 + sum(map(ord, seen[0]))
'''


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Cards a and b, in the processes that a sweep starts; where it keeps its runs."""
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(START)
    paths = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return tmp_path / "out"


def cards_of(out: Path) -> set[int]:
    environments = [json.loads(path.read_text()) for path in (out / "runs").glob("*/environment.json")]
    return {session["cudnn"] - 90000 for found in environments for session in found["sessions"]}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_a_sweep_over_two_cards(pretended: Path) -> None:
    written = StringIO()
    asked = [replace(BASE, seed=k, device="cuda:1" if k == 2 else "cuda") for k in range(4)]
    found = vg.sweep(asked, pretended, jobs=2, notices=Console(file=written, width=200))
    assert (found.done, found.failed) == (4, ())
    assert cards_of(pretended) == {ord("a"), ord("b")}
    assert "with 2 processes of 1 thread(s) on cuda:0 (1), cuda:1 (1), pretended card (estimated" in written.getvalue()
    settings = [json.loads(path.read_text()) for path in (pretended / "runs").glob("*/experiment.json")]
    assert {s["device"] for s in settings} == {"cuda"}
    (record,) = (json.loads(path.read_text()) for path in (pretended / "sweeps").iterdir())
    assert record["cards"] == [{"device": f"cuda:{i}", "name": "pretended card", "jobs": 1} for i in range(2)]
    table = (pretended / "runs.csv").read_bytes()
    find_devices(asked, pretended)  # nothing is to do: nobody looks for cards
    again = vg.sweep(asked, pretended)
    assert (again.done, again.skipped, len(again.outcomes)) == (0, 4, 4)
    assert (pretended / "runs.csv").read_bytes() == table


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_a_dry_run_says_where(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*asked: vg.Experiment) -> str:
        written = StringIO()
        found = vg.sweep(asked, pretended, dry_run=True, jobs=1, notices=Console(file=written, width=200))
        assert found.left == len(asked)
        return written.getvalue()

    assert "with 1 process of 1 thread(s) on cuda:1 (1), pretended card (estimated from a short" in said(
        replace(BASE, device="cuda:1")
    )
    monkeypatch.setattr(places, "look", list)
    assert said(*runs("cuda", "cuda")).startswith("device: 'cuda' cannot be used here: ")
    assert not pretended.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")
def test_a_worker_whose_card_fails_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an error leaves of a card is of no use to this process: the sweep starts another in its place."""
    signals, sent = signal.getsignal(signal.SIGINT), []
    threads = torch.get_num_threads()

    def failing() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", failing)
    monkeypatch.setattr(local, "run", lambda *_, **__: failing())
    pipe: Any = SimpleNamespace(send=sent.append, recv=lambda: ("run", replace(BASE, device="cuda")))
    arguments = (pipe, str(tmp_path), threads, None, packed(), True, False, False)
    try:
        with pytest.raises(SystemExit, match=r"^device: 'cuda' cannot be used here: "):
            local._work(*arguments)
        assert sent == []
        monkeypatch.setattr(local, "usable", lambda _: None)
        local._work(*arguments)
    finally:
        signal.signal(signal.SIGINT, signals)
    assert [kind for kind, _ in sent] == ["ready", "failed"]
    assert "illegal memory access" in sent[1][1]
