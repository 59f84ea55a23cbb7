"""Quarantine: its policy against a slow definition, in algorithms and in runs, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import varangian as vg
from varangian.core.evidence import suspicion
from varangian.core.stages import check_rows
from varangian.runs.folders import CHECKPOINT
from varangian.runs.replaying import replay
from varangian.simulation.metrics import COLUMNS, QUARANTINE

N, D = 9, 6


class Watchman:
    """The policy, worker by worker and in words: what :class:`varangian.Quarantine` is held to."""

    def __init__(self, policy: vg.Quarantine) -> None:
        self.policy = policy
        self.seen: dict[int, list[float]] = {}
        self.times: dict[int, int] = {}
        self.back: dict[int, int] = {}
        self.mean: dict[int, float] = {}

    def away(self, workers: list[int], step: int, most: int) -> set[int]:
        held = [w for w in workers if self.back.get(w, 0) > step]
        held.sort(key=lambda w: (-self.mean[w], workers.index(w)))
        return set(held[:most])

    def told(self, workers: list[int], values: list[float], step: int, most: int) -> None:
        p = self.policy
        for w, value in zip(workers, values, strict=True):
            if not np.isnan(value):
                self.seen[w] = [*self.seen.get(w, []), value][-p.window :]
        held = sum(self.back.get(w, 0) > step + 1 for w in workers)
        free = [w for w in workers if self.back.get(w, 0) <= step + 1]
        free.sort(key=lambda w: (-sum(self.seen.get(w, [])), workers.index(w)))
        for w in free:
            mean = sum(self.seen.get(w, [])) / p.window
            if held >= most or mean < p.threshold:
                break
            held += 1
            again = w in self.times and step - self.back[w] < p.longest
            self.times[w] = self.times[w] + 1 if again else 1
            self.back[w] = step + 1 + min(p.term * 2 ** (self.times[w] - 1), p.longest)
            self.mean[w], self.seen[w] = mean, []


@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_its_definition_says(seed: int) -> None:
    """Also where others come at each step, in any order, and more are away than may be."""
    random = np.random.default_rng(seed)
    policy = vg.Quarantine(window=3, threshold=0.4, term=2, longest=9)
    slow, watched, rule = Watchman(policy), policy.init(), vg.Median(f=2)
    ever: set[int] = set()
    for step in range(120):
        workers = random.permutation(12)[:N] if seed % 2 else np.arange(N)
        most = int(random.integers(0, 4)) if seed > 3 else policy.most((), rule, N)
        admitted = policy.admit(watched, (), rule, workers=workers, step=step)
        gone = {int(w) for w in workers[admitted.excluded]}
        assert gone == slow.away(workers.tolist(), step, admitted.most)
        assert len(gone) <= rule.f
        ever |= gone
        values = np.where(admitted.excluded, np.nan, random.integers(0, 4, N) / 4)
        watched = policy.after(watched, workers, values, most=most, step=step)
        watched.check(policy.window, 12)
        slow.told(workers.tolist(), values.tolist(), step, most)
    assert len(ever) > 5  # and they came back, and others went


def attacked(step: int, hostile: int = 2, seed: int = 0) -> torch.Tensor:
    """[N, D], of whom the last stand far off."""
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(seed * 1000 + step), dtype=torch.float64)
    x += 3.0
    x[N - hostile :] += 20.0
    return x


def course(algorithm: vg.Algorithm, steps: int, state: vg.State | None = None, first: int = 0) -> tuple[list, vg.State]:
    state = algorithm.init(N, D, torch.float64) if state is None else state
    found = []
    for step in range(first, first + steps):
        gone = tuple(np.flatnonzero(algorithm.admit(state, N).excluded).tolist())
        update, state = algorithm.aggregate(attacked(step), state)
        found.append((gone, update))
    return found, state


RULES = [
    vg.Median(f=2),
    vg.TrimmedMean(f=2),
    vg.Krum(f=2),
    vg.MultiKrum(f=2),
    vg.GeometricMedian(f=2),
    vg.Average(f=2),
]
POLICY = vg.Quarantine(window=4, term=5, longest=10)


@pytest.mark.parametrize("lower_f", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_offenders_go_and_come_back_for_ever_longer(rule: vg.Rule, lower_f: bool) -> None:
    algorithm = vg.Algorithm(rule=rule, quarantine=replace(POLICY, lower_f=lower_f))
    if type(rule) is vg.Average and lower_f is False:
        algorithm = replace(algorithm, rule=vg.Average(f=2))
    found, _ = course(algorithm, 3 + 5 + 3 + 10 + 3 + 10)
    gone = [names for names, _ in found]
    assert gone == [()] * 3 + [(7, 8)] * 5 + [()] * 3 + [(7, 8)] * 10 + [()] * 3 + [(7, 8)] * 10


@pytest.mark.parametrize("pre", [(), (vg.NearestNeighborMixing(f=2),)], ids=["bare", "nnm"])
@pytest.mark.parametrize("lower_f", [False, True])
def test_what_is_decided_without_them_is_what_the_others_give(lower_f: bool, pre: tuple[vg.Mixing, ...]) -> None:
    """f stays, or is lowered in rule and mixings."""
    rule = vg.MultiKrum(f=2)
    algorithm = vg.Algorithm(pre=pre, rule=rule, quarantine=replace(POLICY, lower_f=lower_f))
    found, _ = course(algorithm, 6)
    x = attacked(5)[:7]
    alone = vg.Algorithm(pre=pre, rule=rule)
    if lower_f:
        alone = vg.Algorithm(pre=tuple(replace(mixing, f=0) for mixing in pre), rule=vg.MultiKrum(f=0))
    assert found[5][0] == (7, 8)
    assert torch.equal(found[5][1], alone.aggregate(x, alone.init(7, D, torch.float64))[0])


def test_nobody_who_behaves_is_excluded() -> None:
    algorithm = vg.Algorithm(rule=vg.MultiKrum(f=2), quarantine=POLICY)
    state = algorithm.init(N, D, torch.float64)
    for step in range(40):
        assert algorithm.admit(state, N).rows is None
        _, state = algorithm.aggregate(attacked(step, hostile=0), state)


def test_what_is_not_finite_counts_as_most_suspicious() -> None:
    algorithm = vg.Algorithm(rule=vg.Median(f=2), quarantine=POLICY)
    state = algorithm.init(N, D, torch.float64)
    for step in range(5):
        x = attacked(step, hostile=0)
        x[1, 0], x[4] = torch.nan, torch.inf
        gone = algorithm.admit(state, N)
        _, state = algorithm.aggregate(x, state)
    assert np.flatnonzero(gone.excluded).tolist() == [1, 4]
    assert state.quarantine is not None
    assert state.quarantine.terms[[1, 4], 2].tolist() == [0.5, 0.5]  # 1, in two steps of a window of 4


def test_a_refused_step_leaves_no_trace() -> None:
    algorithm = vg.Algorithm(rule=vg.Median(f=2), quarantine=POLICY)
    _, state = course(algorithm, 3)
    x = attacked(3)
    x[:3] = torch.nan
    with pytest.raises(vg.Refused):
        algorithm.aggregate(x, state)
    found, _ = course(algorithm, 4, state, first=3)
    again, _ = course(algorithm, 7)
    assert [names for names, _ in found] == [names for names, _ in again[3:]]


def test_who_is_excluded_is_tolerated_whatever_it_sends() -> None:
    algorithm = vg.Algorithm(rule=vg.Median(f=2), quarantine=POLICY)
    _, state = course(algorithm, 4)
    x = attacked(4)
    x[7:] = torch.nan  # nobody looks
    x[2:4] = 1e30  # and f of the others are tolerated still
    update, state = algorithm.aggregate(x, state)
    assert float(update.abs().max()) < 8


def test_it_goes_on_from_a_state_as_if_nothing_had_been() -> None:
    algorithm = vg.Algorithm(rule=vg.Krum(f=2), quarantine=POLICY)
    whole, last = course(algorithm, 30)
    _, middle = course(algorithm, 12)
    assert middle.quarantine is not None
    kept = replace(middle, quarantine=vg.Watched(*(x.clone() for x in vars(middle.quarantine).values())))
    rest, end = course(algorithm, 18, kept, first=12)
    assert [(a, b.tolist()) for a, b in rest] == [(a, b.tolist()) for a, b in whole[12:]]
    assert last.quarantine is not None
    assert end.quarantine is not None
    for one, other in zip(vars(last.quarantine).values(), vars(end.quarantine).values(), strict=True):
        assert torch.equal(torch.nan_to_num(one.double(), -1), torch.nan_to_num(other.double(), -1))


def test_the_order_of_rows_does_not_matter() -> None:
    """As where rows are shuffled: who is who stays known."""
    algorithm = vg.Algorithm(rule=vg.Krum(f=2), quarantine=POLICY)
    plain, turned = (algorithm.init(N, D, torch.float64) for _ in range(2))
    random = np.random.default_rng(0)
    for step in range(20):
        x, rows = attacked(step), random.permutation(N)
        one, other = algorithm.decide(x, plain), algorithm.decide(x, turned, rows=rows)
        assert torch.allclose(one.aggregate, other.aggregate)
        assert one.table is not None
        assert other.table is not None
        assert np.allclose(one.table, other.table)
        plain, turned = algorithm.finish(one, plain)[1], algorithm.finish(other, turned)[1]
        assert (algorithm.admit(plain, N).excluded == algorithm.admit(turned, N).excluded).all()
    assert algorithm.admit(plain, N).excluded.any()


def test_workers_who_are_not_there_stand_still() -> None:
    algorithm = vg.Algorithm(rule=vg.Median(f=1), quarantine=vg.Quarantine(window=3, threshold=0.7, term=4))
    state = algorithm.init(5, D, torch.float64)
    gone = []
    for step in range(14):  # worker 40 comes to every second step, and then attacks
        workers = np.array([3, 10, 20, 30, 40 if step % 2 else 50])
        x = attacked(step, hostile=0)[:5]
        x[4] += 20.0 * (step % 2)
        gone.append(workers[algorithm.admit(state, 5, workers).excluded].tolist())
        state = algorithm.finish(algorithm.decide(x, state, workers=workers), state)[1]
    assert gone == [[]] * 7 + [[40], [], [40]] + [[]] * 4  # steps 1, 3 and 5; away in 6 to 9
    assert state.quarantine is not None
    assert state.quarantine.workers.tolist() == [3, 10, 20, 30, 40, 50]


def test_suspicion_is_that_of_explanations() -> None:
    algorithm = vg.Algorithm(rule=vg.MultiKrum(f=2), quarantine=POLICY)
    state = algorithm.init(N, D, torch.float64)
    x = attacked(0)
    _, state = algorithm.aggregate(x, state)
    assert state.quarantine is not None
    assert np.array_equal(state.quarantine.suspicion[:, -1].numpy(), vg.explain(x, algorithm.rule).suspicion)
    assert state.quarantine.suspicion[:, :-1].eq(0).all()
    median = vg.Algorithm(rule=vg.Median(f=2), quarantine=POLICY)
    _, state = median.aggregate(x, median.init(N, D, torch.float64))
    assert state.quarantine is not None
    assert np.allclose(state.quarantine.suspicion[:, -1].numpy(), vg.explain(x, median.rule).suspicion)
    assert suspicion(np.ones(3), np.ones(3, bool)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("lower_f", [False, True])
@pytest.mark.parametrize("n", range(5, 30))
def test_never_more_are_away_than_the_stages_can_do_without(n: int, lower_f: bool) -> None:
    policy = vg.Quarantine(lower_f=lower_f)
    for f in range(4):
        for pre, rule in [((), vg.Krum(f=f)), ((), vg.Bulyan(f=f)), ((vg.NearestNeighborMixing(f=f),), vg.Median(f=f)),
                          ((vg.Bucketing(s=2),), vg.Median(f=f))]:  # fmt: skip
            most = policy.most(pre, rule, n)
            assert most <= f
            for away in range(most + 1):
                check_rows(*policy.stages(pre, rule, away), n - away) if most else None


def test_what_there_is_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Quarantine can exclude nobody of n = 7: .* Krum\(f=2\) .*lower_f=True"):
        vg.Quarantine().check((), vg.Krum(f=2), 7)
    vg.Quarantine(lower_f=True).check((), vg.Krum(f=2), 7)
    with pytest.raises(ValueError, match=r"^Quarantine excludes at most f workers at a time, got Median\(f=0\)"):
        vg.Quarantine().check((), vg.Median(f=0), 7)
    algorithm = vg.Algorithm(rule=vg.Krum(f=2), quarantine=vg.Quarantine())
    with pytest.raises(ValueError, match=r"^Krum\(f=2\) needs n >= 2f \+ 3 = 7 vectors, got 6"):
        algorithm.aggregate(torch.ones(6, D), algorithm.init(6, D))
    with pytest.raises(ValueError, match="takes no weights"):
        algorithm.aggregate(torch.ones(9, D), algorithm.init(9, D), weights=range(1, 10))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "Quarantine needs an integer window >= 1, got 0."),
        ({"window": 2.0}, "Quarantine needs an integer window >= 1, got 2.0."),
        ({"threshold": 0}, "Quarantine needs threshold in (0, 1], got 0."),
        ({"threshold": float("nan")}, "Quarantine needs threshold in (0, 1], got nan."),
        ({"term": True}, "Quarantine needs an integer term >= 1, got True."),
        ({"term": 50, "longest": 40}, "Quarantine needs longest >= term = 50, got 40."),
        ({"lower_f": 1}, "Quarantine needs lower_f True or False, got 1."),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        vg.Quarantine(**options)  # type: ignore[arg-type]


def test_what_does_not_go_with_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Algorithm needs Quarantine or None in quarantine=, got 'yes'"):
        vg.Algorithm(quarantine="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Algorithm: Adaptive\(.*; use one of them\.$"):
        vg.Algorithm(rule=vg.Median(f=1), placement=vg.Adaptive(0.9), quarantine=vg.Quarantine())
    with pytest.raises(ValueError, match="trusts the vector at one place"):
        vg.Algorithm(rule=vg.MoNNA(f=1), quarantine=vg.Quarantine())
    algorithm = vg.Algorithm(rule=vg.Median(f=2), quarantine=vg.Quarantine())
    bare = vg.Algorithm(rule=vg.Median(f=2))
    with pytest.raises(ValueError, match="one of another algorithm"):
        algorithm.aggregate(torch.ones(N, D), bare.init(N, D))
    with pytest.raises(ValueError, match="one of another algorithm"):
        bare.aggregate(torch.ones(N, D), algorithm.init(N, D))


def test_a_memory_that_cannot_be_is_refused() -> None:
    policy = vg.Quarantine(window=2)
    watched = policy.after(policy.init(), np.arange(3), np.array([0.5, np.nan, 0.0]), most=1, step=0)
    watched.check(2, 3)
    seen, terms = watched.suspicion, watched.terms
    for wrong in (
        replace(watched, workers=watched.workers.flip(0)),
        replace(watched, workers=watched.workers + 1),
        replace(watched, workers=watched.workers.int()),
        replace(watched, suspicion=seen * 3),
        replace(watched, suspicion=seen[:, :1]),
        replace(watched, terms=terms - 1),
        replace(watched, terms=terms + 0.5),
        replace(watched, terms=torch.full_like(terms, torch.nan)),
    ):
        with pytest.raises(ValueError, match="memory of a quarantine"):
            wrong.check(2, 3)


# --------------------------------------------------------------------------------------------------------------- runs

RUN = vg.Experiment(
    dataset="synthetic(shape=(1,8,8),classes=4,train=203,test=40)", model="fully-connected(hidden=16)", workers=11,
    byzantine=3, rule="median", attack="sign-flip", batch_size=20, steps=24, evaluate_every=8,
    quarantine="quarantine(window=4, term=5)",
)  # fmt: skip


def away(found: vg.Result) -> list[tuple[float | None, float | None]]:
    return [(row.excluded, row.excluded_byzantine) for row in found.measures]


@pytest.mark.parametrize(
    "settings", [{}, {"rule": "krum"}, {"pre": "nnm"}, {"measure": False}, {"local_steps": 2}], ids=str
)
def test_attackers_of_a_run_are_left_out(settings: dict[str, object]) -> None:
    found = vg.run(replace(RUN, **settings))
    gone = away(found)
    assert gone[0] == (0.0, 0.0)
    assert max(hostile for _, hostile in gone if hostile is not None) >= 2
    assert max(many for many, _ in gone if many is not None) <= 3
    assert found.measures[0].columns == [*COLUMNS, *QUARANTINE]


def test_while_they_are_away_a_run_is_that_of_the_others() -> None:
    """From the same parameters a step with all attackers away is one of a run that never had any."""
    from varangian.runs.building import build, open_dataset

    data = open_dataset(RUN)
    simulation, _ = build(replace(RUN, momentum=0.0), data)
    row, before = simulation.step(), simulation.parameters
    while not row.excluded:
        before = simulation.parameters.clone()
        row = simulation.step()
    assert (row.excluded, row.excluded_byzantine) == (3.0, 3.0)
    others, _ = build(replace(RUN, momentum=0.0, workers=8, attack=None, quarantine=None), data)
    update, _ = others.algorithm.aggregate(simulation.vectors[:8], others.state)
    assert torch.equal(simulation.parameters, before.add_(update, alpha=-RUN.rate(row.step)))


@pytest.mark.filterwarnings("ignore:of 30 clients")
@pytest.mark.parametrize("clients", [None, 30])
def test_a_run_that_is_resumed_goes_on_as_it_would_have(clients: int | None, tmp_path: Path) -> None:
    e = replace(RUN, clients=clients, real_byzantine=2)
    whole = vg.run(e, tmp_path / "whole")
    assert whole.folder is not None

    class Stop(Exception): ...

    def stop(step: int, _: object) -> None:
        if step == 13:
            raise Stop

    with pytest.raises(Stop):
        vg.run(e, tmp_path / "parts", progress=stop, checkpoint_every=0)
    parts = vg.run(e, tmp_path / "parts")
    assert parts.began in (12, 13)
    assert parts.folder is not None
    for name in ("metrics.csv", "evaluations.csv"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert any(many for many, _ in away(whole))
    read = vg.read(whole.folder)
    assert away(read) == away(whole)
    assert read.experiment == e
    for step in (0, 12, 23):
        again = replay(whole.folder, step)
        assert again.agrees
        assert again.explanation is not None
        assert int((~again.explanation.shown).sum()) == whole.measures[step].excluded
        assert ("not shown" in str(again)) == bool(whole.measures[step].excluded)


def test_who_is_watched_in_rounds_is_a_client() -> None:
    from varangian.runs.building import build, open_dataset

    e = replace(RUN, clients=30, real_byzantine=2, steps=40)
    simulation, _ = build(e, open_dataset(e))
    assert simulation.population is not None
    hostile = simulation.population.round(e.seed, 0).byzantine
    while simulation.steps_done < e.steps:
        simulation.step()
        round = simulation.population.round(e.seed, simulation.steps_done - 1)
        assert (simulation.admitted.workers == round.clients).all()
    watched = simulation.state.quarantine
    assert watched is not None
    ever = watched.workers[watched.terms[:, 0] > 0].tolist()
    assert set(hostile.tolist()) <= set(ever)
    assert len(ever) < 12


def test_a_checkpoint_without_what_a_quarantine_remembers_is_none(tmp_path: Path) -> None:
    from varangian.runs.building import build, open_dataset

    data = open_dataset(RUN)
    simulation, _ = build(RUN, data)
    for _ in range(6):
        simulation.step()
    kept = simulation.snapshot()
    for wrong, said in (
        (replace(kept, watched=None), "watched: what Quarantine"),
        (replace(kept, watched=(*(kept.watched or ()), torch.zeros(1))), "positional arguments"),
        (replace(kept, watched=tuple(x + 1 for x in kept.watched or ())), "memory of a quarantine"),
    ):
        other, _ = build(RUN, data)
        before = other.parameters.clone()
        with pytest.raises((ValueError, TypeError), match=said):
            other.restore(wrong)
        assert torch.equal(other.parameters, before)
    bare, _ = build(replace(RUN, quarantine=None), data)
    with pytest.raises(ValueError, match="watched: what None remembers is needed, got some"):
        bare.restore(kept)
    assert CHECKPOINT


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quarantine": "quarantine(window=0)"}, "quarantine: Quarantine needs an integer window >= 1, got 0."),
        ({"quarantine": "quarantine(windw=3)"}, "quarantine: quarantine: .*windw.*Did you mean 'window'"),
        ({"quarantine": "jail"}, "quarantine: .*jail"),
        ({"quarantine": "jail.py:Jail"}, r"quarantine: jail\.py:Jail is none; write quarantine\(window=20"),
        ({"momentum_at": "adaptive"}, "quarantine: momentum_at adaptive compares all workers"),
        ({"weighting": "size"}, "quarantine: it counts workers, and with weighting size"),
        ({"profile": "published"}, "quarantine: in the published profile"),
        ({"rule": "monna"}, "quarantine: Algorithm: MoNNA.* trusts the vector at one place"),
        ({"workers": 9, "rule": "krum"}, r"quarantine: Quarantine can exclude nobody of n = 9: .*lower_f=True"),
        ({"byzantine": 0, "attack": None}, "quarantine: Quarantine excludes at most f workers at a time"),
    ],
)
def test_what_a_run_cannot_have_is_said_before_it(settings: dict[str, object], said: str) -> None:
    with pytest.raises(vg.ConfigurationError, match=said) as caught:
        replace(RUN, **settings)
    assert len(caught.value.faults) == 1


def test_a_quarantine_is_written_as_it_was_meant() -> None:
    e = replace(RUN, quarantine=vg.Quarantine(window=7, lower_f=True))
    assert e.quarantine == "quarantine(window=7, lower_f=True)"
    assert vg.Experiment.from_toml(e.to_toml()) == e == vg.Experiment.from_json(e.to_json())
    assert e.make_algorithm().quarantine == vg.Quarantine(window=7, lower_f=True)
    assert replace(RUN, quarantine=" quarantine( window = 20 ) ").quarantine == "quarantine"
    assert replace(RUN, quarantine="none").quarantine is None
    assert "quarantine" not in replace(RUN, quarantine=None).to_dict()
    assert "quarantine_window=4_term=5" in RUN.name


def test_runs_with_and_without_stand_in_figures_of_their_own() -> None:
    from varangian.study.outcomes import Outcome
    from varangian.study.report.layout import groups

    runs = [replace(RUN, rule=rule, quarantine=q) for rule in ("median", "krum") for q in (None, "quarantine")]
    found = groups([Outcome(e, 0.5, 0.5) for e in runs])
    assert [sorted(str(o.experiment.quarantine) for o in group.outcomes) for group in found] == [
        ["None", "None"],
        ["quarantine", "quarantine"],
    ]
    assert len({group.title for group in found}) == 2
