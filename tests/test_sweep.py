"""Sweeps: nothing is run twice, nothing is lost, whatever is killed."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from numba.core import event
from rich.console import Console

import programs
import ranks
from cluster import only_ray
from varangian import DATASETS, Experiment
from varangian.runs.running import run
from varangian.simulation.gradients import WorkerGradients
from varangian.simulation.simulate import Simulation
from varangian.study.outcomes import gather, read_runs, write_runs
from varangian.study.sweep import Sweep, local, manager, sweep
from varangian.study.sweep.display import Display
from varangian.study.sweep.plan import Estimate, Plan

BASE = Experiment(workers=11, byzantine=2, attack="little", batch_size=2, steps=25, clip=2.0, evaluate_every=10)
GRID = [
    replace(BASE, rule=rule, momentum_at=place) for rule in ("median", "multi-krum") for place in ("server", "worker")
]
SCRIPT = """
import sys
from dataclasses import replace
from varangian import DATASETS, Experiment
from varangian.study.sweep import sweep
if __name__ == "__main__":
    out, seeds, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    base = Experiment(workers=11, byzantine=2, rule="median", attack="little", batch_size=2, steps=steps, clip=2.0,
                      evaluate_every=10)
    print("done", sweep([replace(base, seed=seed) for seed in range(seeds)], out, jobs=1).done)
"""


@pytest.fixture
def forked() -> Iterator[None]:
    """For tests that say nothing of what a worker is."""
    with ranks.forking():
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep, str]:
    """A sweep of the grid that nothing disturbed, and what it said."""
    out, said = tmp_path_factory.mktemp("swept"), StringIO()
    return out, sweep(GRID, out, jobs=1, notices=Console(file=said)), said.getvalue()


def tables(out: Path) -> tuple[bytes, bytes]:
    return (out / "runs.csv").read_bytes(), (out / "curves.csv").read_bytes()


@pytest.mark.slow
def test_all_runs_and_a_tidy_table(swept: tuple[Path, Sweep, str]) -> None:
    out, result, said = swept
    assert (result.done, result.skipped, result.failed, result.left) == (4, 0, (), 0)
    assert "4 to do" in said
    assert "a short calibration" in said
    assert "4 of 4 complete" in said
    rows = read_runs(out / "runs.csv")
    assert {o.experiment for o in rows} == set(GRID)
    assert [o.max_accuracy for o in rows] == [o.max_accuracy for o in gather(out)]
    assert all(len(o.curve) == 4 and o.seconds and o.ratio for o in rows)
    record = json.loads(next((out / "sweeps").iterdir()).read_text())
    assert (record["done"], record["failed"], record["jobs"]) == (4, 0, 1)
    assert not list(out.rglob("*.partial"))


def test_complete_runs_are_not_run_again(swept: tuple[Path, Sweep, str], tmp_path: Path) -> None:
    out, _, _ = swept
    before = tables(out)
    again = sweep(GRID, out, jobs=1)
    assert (again.done, again.skipped) == (0, 4)
    assert tables(out) == before
    write_runs(tmp_path, reversed(read_runs(out / "runs.csv")))
    assert tables(tmp_path) == before  # the order of the runs does not matter, and the table can be read back


@pytest.mark.usefixtures("forked")
def test_spellings_of_one_run_are_run_once(tmp_path: Path) -> None:
    base = replace(BASE, rule="median", momentum=0.0, steps=3)
    spellings = [
        replace(base, **changed)
        for changed in ({"momentum_at": "worker"}, {"momentum_at": "server"}, {"clip_mode": "norm"})
    ]
    result = sweep([*spellings, spellings[0], replace(base, seed=2)], tmp_path, jobs=1)
    assert (result.done, result.left) == (2, 0)
    assert [o.experiment for o in result.outcomes] == [spellings[0], replace(base, seed=2)]
    assert len(read_runs(tmp_path / "runs.csv")) == 2


def test_what_a_sweep_learns_from_it_reads_within_bounds(swept: tuple[Path, Sweep, str], tmp_path: Path) -> None:
    """Files of anybody: too long, a link, no number. The run is named as one that cannot be read, and nothing ends."""
    shutil.copytree(swept[0], tmp_path / "copy")
    folders = sorted((tmp_path / "copy" / "runs").iterdir())
    (folders[0] / "result.json").write_text('{"seconds": 1e999}')
    (folders[1] / "experiment.json").write_text(" " * 2**23)
    (folders[2] / "result.json").rename(tmp_path / "elsewhere.json")
    (folders[2] / "result.json").symlink_to(tmp_path / "elsewhere.json")
    result = sweep(GRID, tmp_path / "copy", jobs=1)
    assert (len(result.outcomes), len(result.failed)) == (1, 3)


def start(out: Path, seeds: int, steps: int, workers: bool = True) -> programs.Started | subprocess.Popen[str]:
    """Forked; without ``workers``, its workers begin as a new interpreter does."""
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    return programs.start(script, out, seeds, steps, env=environment, workers=workers)


def wait_for(condition, seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def complete(out: Path) -> int:
    return len(list(out.glob("runs/*/result.json")))


def started(out: Path) -> int:
    return len(list(out.glob("runs/*/metrics.csv")))


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_killed_at_any_point_and_started_again(tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for done in (0, 1):  # kill -9 of the whole sweep in the middle of a run, twice
        process = start(cut, 3, 150)
        wait_for(lambda done=done: started(cut) > done)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=180)
        assert complete(cut) < 3
    last = start(cut, 3, 150)
    assert last.communicate(timeout=180)[0].startswith("done")
    base = replace(BASE, rule="median", steps=150)
    sweep([replace(base, seed=seed) for seed in range(3)], whole, jobs=1)  # and now undisturbed
    assert tables(cut) == tables(whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_ctrl_c_keeps_what_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, 40, 60, workers=False)
    wait_for(lambda: complete(out) >= 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    lines = errors[errors.index("Traceback") :].splitlines()
    assert lines[-1].startswith("KeyboardInterrupt: ")
    assert lines[-1].endswith(" of 40 runs are complete; the same call goes on.")
    assert len(lines) <= 8, errors  # where it was waiting is nobody's business
    done = complete(out)
    assert 2 <= len(read_runs(out / "runs.csv")) == done < 40
    wait_for(lambda: not alive_in(process.pid))  # no process is left behind


LONG = 700  # steps, of which a signal comes in the midst


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two long runs come to that no signal cuts."""
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    assert start(out, 2, LONG).communicate(timeout=180)[0].startswith("done 2")
    return out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_runs_that_were_under_way_go_on_from_where_they_were(name: str, undisturbed: Path, tmp_path: Path) -> None:
    """Their processes write checkpoints before they end, whoever gets the signal: all of them, or the parent alone."""
    cut = tmp_path / "cut"
    process = start(cut, 2, LONG)
    wait_for(lambda: any(path.stat().st_size > 8000 for path in cut.glob("runs/*/metrics.csv")))
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=180)
    wait_for(lambda: not alive_in(process.pid))
    [folder] = [path.parent for path in cut.glob("runs/*/checkpoint.pt")]
    assert not (folder / "result.json").exists()
    assert start(cut, 2, LONG).communicate(timeout=180)[0].startswith("done 2")
    sessions = json.loads((folder / "environment.json").read_text())["sessions"]
    assert [session["from_step"] > 0 for session in sessions] == [False, True]
    assert tables(cut) == tables(undisturbed)
    again = undisturbed / "runs" / folder.name
    assert all(
        (folder / table).read_bytes() == (again / table).read_bytes() for table in ("metrics.csv", "evaluations.csv")
    )


def test_a_run_whose_sweep_is_gone_writes_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe closes a moment before the signal: a report in between, as of long steps, must not cost the run."""
    monkeypatch.setattr(local, "HEARTBEAT", 0.0)
    theirs, ours = multiprocessing.Pipe()
    ours.close()
    e = replace(BASE, rule="median", steps=5)
    with pytest.raises(KeyboardInterrupt):
        run(e, tmp_path, progress=local._reporter(theirs))
    assert (tmp_path / f"{e.name}-{e.digest}" / "checkpoint.pt").exists()


def alive_in(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def kill_the_worker(out: Path) -> threading.Thread:
    """Kills the process that trains once its run is under way, from another thread."""

    def work() -> None:
        wait_for(lambda: started(out) > 0)
        time.sleep(0.1)
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_killed_worker_is_replaced_and_its_run_tried_again(tmp_path: Path) -> None:
    slow, said = replace(BASE, rule="median", steps=1500, measure=False), StringIO()
    thread = kill_the_worker(tmp_path)
    result = sweep([slow], tmp_path, jobs=1, notices=Console(file=said))
    thread.join()
    assert (result.done, result.failed) == (1, ())
    assert "SIGKILL" in said.getvalue()
    assert "tried again" in said.getvalue()


@pytest.mark.usefixtures("forked")
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = replace(BASE, rule="median", dataset="cifar-10", model="linear")
    result = sweep([bad, GRID[0]], tmp_path, jobs=1, data_folder=tmp_path / "nothing")
    assert (result.done, result.left) == (1, 1)
    [(experiment, reason)] = result.failed
    assert experiment == bad
    assert "DataError" in reason


@pytest.mark.usefixtures("forked")
def test_shards_are_disjoint_and_complete_each_other(swept: tuple[Path, Sweep, str], tmp_path: Path) -> None:
    first = sweep(GRID, tmp_path, jobs=1, shard=(1, 2))
    assert (first.done, first.left) == (2, 2)
    assert {o.experiment for o in first.outcomes} == set(GRID[::2])
    second = sweep(GRID, tmp_path, jobs=2, shard=(2, 2))
    assert (second.done, second.left) == (2, 0)
    assert tables(tmp_path) == tables(swept[0])  # nor does the number of processes matter


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_neither_the_order_nor_the_number_of_processes_matters(swept: tuple[Path, Sweep, str], tmp_path: Path) -> None:
    sweep(GRID[::-1], tmp_path, jobs=3)
    assert tables(tmp_path) == tables(swept[0])
    for folder in (tmp_path / "runs").iterdir():
        for table in ("metrics.csv", "evaluations.csv"):
            assert (folder / table).read_bytes() == (swept[0] / "runs" / folder.name / table).read_bytes()


@pytest.mark.usefixtures("forked")
def test_a_run_that_diverges_is_a_result_and_the_sweep_goes_on(tmp_path: Path) -> None:
    bad = replace(BASE, rule="average", attack="nan")
    refused = replace(BASE, rule="median", attack="inf", real_byzantine=3)
    result = sweep([bad, refused, GRID[0]], tmp_path, jobs=1)
    assert (result.done, result.failed, result.left) == (3, (), 0)
    found = {o.experiment: o for o in read_runs(tmp_path / "runs.csv")}
    assert found[bad].stopped == "step 0: the parameters are no longer finite."
    assert (found[bad].steps, found[bad].final_loss, len(found[bad].curve)) == (1, None, 2)
    assert "tolerates 2 vectors with NaN or infinity, got 3" in str(found[refused].stopped)
    assert found[GRID[0]].stopped is None


@pytest.mark.usefixtures("forked")
def test_no_run_is_started_that_would_not_end_in_time(tmp_path: Path) -> None:
    result = sweep(GRID, tmp_path, jobs=1, time_budget=0.001)
    assert (result.done, result.left, result.failed) == (0, 4, ())


class SlowWorkers:
    """Two workers who time a run in so many seconds of a clock that goes on as they are asked; the second one never
    answers where these are none."""

    calibrates = True

    def __init__(self, first: float, second: float | None) -> None:
        self.now = 100.0
        self.seconds, self.tasks = (first, second), dict[int, tuple[float, Experiment]]()
        self.given: list[Experiment] = []

    def __enter__(self) -> SlowWorkers:
        return self

    def __exit__(self, *error: object) -> None: ...

    def idle(self) -> list[int]:
        return [i for i in range(2) if i not in self.tasks]

    def give(self, worker: int, task: str, experiment: Experiment) -> None:
        assert task == "calibrate"
        self.given.append(experiment)
        self.tasks[worker] = self.now, experiment

    def events(self) -> list[manager.Event]:
        self.now += 0.01
        found = []
        for worker, seconds in enumerate(self.seconds):
            begun, experiment = self.tasks.get(worker, (0.0, BASE))
            if worker in self.tasks and seconds is not None and self.now - begun >= seconds:
                del self.tasks[worker]
                found.append(manager.Event(worker, "calibrated", experiment, 100.0))
        return found


def foretold(workers: SlowWorkers, patient: bool, monkeypatch: pytest.MonkeyPatch, out: Path) -> tuple[Plan, list[str]]:
    """What is said of six runs of three kinds."""
    monkeypatch.setattr(manager, "CALIBRATION", 1.0)
    monkeypatch.setattr(manager, "SPOKEN", 0.3)
    runs = [replace(BASE, workers=n, seed=seed) for n in (11, 12, 13) for seed in (1, 2)]
    plan, said = Plan(out, 2, 1, None, None, runs, 0, 0), StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(manager, "time", SimpleNamespace(monotonic=lambda: workers.now))
        manager.foretell(plan, workers, Display(plan, Console(file=said, width=300)), patient)
    assert workers.now - 100 < 10
    return plan, said.getvalue().splitlines()


def test_what_is_timed_is_told_of_and_has_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workers = SlowWorkers(0.02, 0.02)
    plan, said = foretold(workers, False, monkeypatch, tmp_path)
    assert [e.workers for e in workers.given] == [11, 12, 13, 11, 12, 13]  # each kind once before one is twice
    assert said[0] == "timing a few steps of 6 runs ..."
    assert re.search(r"about 5 min, until \w{3} \d\d:\d\d with", said[-1])
    assert not any("all the time" in line for line in said)

    plan, said = foretold(SlowWorkers(0.7, 0.7), False, monkeypatch, tmp_path)
    assert "timed 0 of 6 ..." in said
    assert re.match(r"timed 4 of 6 in \d s, which is all the time for it: the others are taken to last as lo", said[-2])
    assert plan.foretold == 300.0

    plan, said = foretold(SlowWorkers(5.0, None), False, monkeypatch, tmp_path)
    assert re.match(r"timed 0 of 6 in \d s, which is all the time for it: it is not known how long they last", said[-2])
    assert "unknown time" in said[-1]
    assert plan.foretold is None

    workers = SlowWorkers(1.5, 1.5)  # of a sweep, which needs them
    plan, said = foretold(workers, True, monkeypatch, tmp_path)
    assert (len(workers.given), workers.tasks, plan.foretold) == (2, {}, 300.0)


@pytest.mark.parametrize(
    ("seconds", "end"), [(1e3, r"\w{3} \d\d:\d\d"), (1e7, r"\d{4}-\d\d-\d\d"), (1e15, "the year .*")]
)
def test_the_end_of_what_lasts_for_weeks_is_a_date(seconds: float, end: str, tmp_path: Path) -> None:
    plan, said = Plan(tmp_path, 2, 1, None, None, [BASE], 0, 0), StringIO()
    Display(plan, Console(file=said, width=300)).announce(Estimate(seconds, "a short calibration"))
    assert re.search(rf", until {end} with 2 processes", said.getvalue())


@pytest.mark.parametrize("compiling", [0.0, 30.0])
@pytest.mark.parametrize(("seconds", "steps", "timed"), [(28.0, 1, 1000), (1.0, 4, 1000), (0.01, 9, 2500)])
def test_of_a_run_that_takes_long_less_is_timed(
    seconds: float, steps: int, timed: int, compiling: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that steps, evaluations and, in the first step, compiling alone move. The last is not the run's."""
    now, done, evaluated = [0.0], [], []

    def step(simulation: Simulation) -> None:
        if not done:
            with event.trigger_event("numba:compile"):
                now[0] += compiling
        done.append(1)
        now[0] += seconds

    def evaluate(gradients: WorkerGradients, parameters: object, inputs: list[torch.Tensor], *rest: object) -> tuple:
        evaluated.append(sum(map(len, inputs)))
        now[0] += 0.001 * evaluated[-1]
        return 0.0, 0.0

    monkeypatch.setattr(Simulation, "step", step)
    monkeypatch.setattr(WorkerGradients, "evaluate", evaluate)
    monkeypatch.setattr(local.time, "perf_counter", lambda: now[0])
    dataset = DATASETS["synthetic"](train=500, test=2500)
    e = replace(BASE, dataset=dataset.name, steps=100, evaluate_every=50)
    assert local.time_of(e, dataset) == pytest.approx(100 * seconds + 3 * 2.5)
    assert (len(done), evaluated) == (steps, [timed])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": 0}, "jobs >= 1"),
        ({"threads": 0}, "threads >= 1"),
        ({"shard": (3, 2)}, "1 <= i <= N"),
        ({"jobs": "2"}, "jobs >= 1, a whole number, got '2'"),
        ({"time_budget": float("nan")}, "seconds >= 0"),
        ({"time_budget": -1.0}, "seconds >= 0"),
        ({"experiments": ["median"]}, "a sweep is of experiments, got 'median'"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(**{"experiments": GRID, "out": tmp_path} | settings)
    assert not list(tmp_path.iterdir())


def test_an_unreadable_run_is_named_and_the_rest_is_kept(swept: tuple[Path, Sweep, str], tmp_path: Path) -> None:
    shutil.copytree(swept[0], tmp_path / "copy")
    victim = next(iter((tmp_path / "copy" / "runs").iterdir()))
    (victim / "result.json").write_text("{")
    result = sweep(GRID, tmp_path / "copy", jobs=1)
    assert len(result.outcomes) == 3
    assert victim.name in result.failed[0][1]


def test_ray_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'varangian\[ray\]'"):
        sweep(GRID, tmp_path, ray="auto")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("jobs=1", 'ray="auto"'))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(script), str(tmp_path / "out"), "1", "5"]
    environment["RAY_ADDRESS"] = ""
    with only_ray():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].startswith("ValueError: --ray needs a Ray cluster that answers at 'auto': ")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A cluster of two cores and a GPU that is not there."""
    ray = pytest.importorskip("ray")
    names = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    options = {"include_dashboard": False, "log_to_driver": False, "runtime_env": {"env_vars": names}}
    with only_ray():
        ray.init(address="local", num_cpus=2, num_gpus=1, **options)
        yield
        ray.shutdown()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        pid = parent(pid)
    return pid == ancestor


def training_on_ray() -> list[int]:
    """The processes of this test's cluster that train at this moment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::_ray_run" in (folder / "cmdline").read_bytes() and descends(int(folder.name), os.getpid()):
                found.append(int(folder.name))
        except OSError:  # it is gone
            continue
    return found


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_on_ray(local_ray: None, swept: tuple[Path, Sweep, str], tmp_path: Path) -> None:
    said = StringIO()
    bad = replace(BASE, rule="median", dataset="cifar-10", model="linear")
    result = sweep([*GRID, bad], tmp_path, ray="auto", data_folder=tmp_path / "none", notices=Console(file=said))
    assert (result.done, result.left) == (4, 1)
    assert tables(tmp_path) == tables(swept[0])
    [(experiment, reason)] = result.failed
    assert experiment == bad
    assert "DataError" in reason
    assert "2 processes of 1 thread" in said.getvalue()
    again = sweep(GRID, tmp_path, jobs=1, ray="auto", notices=Console(file=said))
    assert (again.done, again.skipped) == (0, 4)


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_the_text_of_a_file_travels_to_ray(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "examples" / "my_rule.py", tmp_path)
    grid = [replace(BASE, rule="my_rule.py:MyRule", steps=2, seed=seed) for seed in (1, 2)]
    (tmp_path / "my_rule.py").unlink()
    result = sweep(grid, tmp_path / "study", ray="auto")
    assert (result.done, result.failed) == (2, ())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # it may be the first that starts Ray
def test_a_killed_worker_on_ray(local_ray: None, tmp_path: Path) -> None:
    slow, killed = replace(BASE, rule="median", steps=1500, measure=False), []

    def kill() -> None:
        wait_for(lambda: started(tmp_path / "cut") > 0 and training_on_ray())
        killed.extend(training_on_ray())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    result = sweep([slow], tmp_path / "cut", jobs=1, ray="auto")
    thread.join()
    assert (result.done, result.failed, len(killed)) == (1, (), 1)
    sweep([slow], tmp_path / "whole", jobs=1)
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_gpus_on_ray(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on cuda asks for its share of a GPU: this cluster has one in name only, so the run itself must fail."""
    if torch.cuda.is_available():
        pytest.skip("this is about machines without a GPU")
    on_gpu = replace(BASE, rule="median", device="cuda")
    [(_, reason)] = sweep([on_gpu], tmp_path, ray="auto").failed
    assert "cuda" in reason
    ray = importlib.import_module("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ValueError, match="needs a cluster with GPUs"):
        sweep([on_gpu], tmp_path, ray="auto")
