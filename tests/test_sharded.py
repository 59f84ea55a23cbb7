"""Vectors in pieces give what whole vectors give: every rule and mixing, on ranks that are threads of this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import varangian as vg
from varangian.core.algorithm import State
from varangian.core.evidence import distances_and_norms, suspicion
from varangian.core.geometry import Geometry
from varangian.core.history import Evidence, History
from varangian.engines.sharded import (
    Aggregation,
    Chunk,
    Owner,
    Ranks,
    Refused,
    Span,
    check_algorithm,
    check_options,
    check_state,
)
from varangian.study.report.figures.suspects import over_time

SIZES = (37, 5, 256, 1)  # of four parameters
D = sum(SIZES)
NAN, INF = float("nan"), float("inf")


class Threads:
    """Stands for torch.distributed: each rank is a thread, and a collective is a barrier and a shared list."""

    def __init__(self, size: int) -> None:
        self.barrier, self.slots = threading.Barrier(size, timeout=30), [None] * size

    def swap(self, rank: int, value: object) -> list:
        self.slots[rank] = value
        self.barrier.wait()
        everyone = list(self.slots)
        self.barrier.wait()
        return everyone


class ThreadRanks:
    def __init__(self, threads: Threads, rank: int, size: int) -> None:
        self.threads, self.rank, self.size, self.device = threads, rank, size, torch.device("cpu")

    def exchange(self, vector: Tensor, matrix: Tensor) -> None:
        rows = self.threads.swap(self.rank, vector.clone())
        matrix.copy_(torch.stack([row.view(self.size, -1)[self.rank] for row in rows]))

    swap, share, agree, tell = Ranks.swap, Ranks.share, Ranks.agree, Ranks.tell
    total, vector, waits, _there = Ranks.total, Ranks.vector, Ranks.waits, Ranks._there

    def gather(self, part: Tensor, whole: Tensor) -> None:
        whole.copy_(torch.cat(self.threads.swap(self.rank, part.clone())))

    def add(self, block: Tensor) -> None:
        block.copy_(torch.stack(self.threads.swap(self.rank, block.clone())).sum(0))


def together(size: int, work: Callable[[ThreadRanks], object]) -> list:
    threads = Threads(size)
    with ThreadPoolExecutor(size) as pool:
        return [f.result() for f in [pool.submit(work, ThreadRanks(threads, r, size)) for r in range(size)]]


def spans() -> list[list[Span]]:
    """Two chunks whose order is not that of the parameters, as DistributedDataParallel's buckets are."""
    ends = np.cumsum(SIZES)
    parts = [Span(f"p{i}", size, int(end - size)) for i, (size, end) in enumerate(zip(SIZES, ends, strict=True))]
    return [[parts[3], parts[1]], [parts[2], parts[0]]]


def in_pieces(
    algorithm: vg.Algorithm, x: Tensor, previous: Tensor | None = None, steps: int = 1, replicated: bool = False
) -> list[Tensor]:
    """What each rank gets for the rows of x."""

    def work(ranks: ThreadRanks) -> tuple[Tensor, History]:
        history = History("", ("host",) * ranks.size, window=10)
        aggregation = Aggregation(algorithm, ranks, d=D, gathers=True)
        chunks = []
        for group in [[Span("all", D, 0)]] if replicated else spans():
            size = sum(span.size for span in group)
            state = algorithm.init(1, size, torch.promote_types(x.dtype, torch.float32))
            if state.previous is not None and previous is not None:
                state = replace(
                    state, previous=torch.cat([previous[span.first : span.first + span.size] for span in group])
                )
            chunks.append(Chunk(group, ranks.size, state))
        result = torch.empty(D, dtype=x.dtype)
        for number in range(steps):
            step = aggregation.begin(number)
            if replicated:
                updates = [step.replicate(chunks[0], x[ranks.rank], history.name_of)]
            else:
                for chunk in chunks:
                    row = torch.cat([x[ranks.rank, span.first : span.first + span.size] for span in chunk.spans])
                    step.add(chunk, row)
                updates = step.finish(history.name_of)
            step.adopt()
            for chunk, update in zip(chunks, updates, strict=True):
                at = 0
                for span in chunk.spans:
                    result[span.first : span.first + span.size] = update[at : at + span.size]
                    at += span.size
            history.step([step.evidence], algorithm.rule.f)
        return result, history

    return together(x.shape[0], work)


def whole(algorithm: vg.Algorithm, x: Tensor, previous: Tensor | None = None, steps: int = 1) -> Tensor:
    state, update = algorithm.init(x.shape[0], D, x.dtype), x[0]
    if state.previous is not None and previous is not None:
        state = replace(state, previous=previous)
    for _ in range(steps):
        vectors, state = algorithm.send(x, state)
        update, state = algorithm.aggregate(vectors, state)
    return update


def vectors(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, D, generator=generator, dtype=torch.float64) + 0.5).to(dtype)


def check(algorithm: vg.Algorithm, x: Tensor, tolerance: float, previous: Tensor | None = None, steps: int = 1) -> None:
    expected = whole(algorithm, x, previous, steps)
    for got, _ in in_pieces(algorithm, x, previous, steps):
        if tolerance:
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(got, expected)


COLUMNS = ("median", "trimmed-mean", "phocas", "meamed", "average")
SHARDED = [name for name, kind in vg.RULES.items() if kind.columnwise and not kind.needs_root]


def rule_of(name: str, f: int) -> vg.Rule:
    return vg.Average() if name == "average" else vg.RULES[name](f)


@pytest.mark.parametrize("n", [7, 11])
@pytest.mark.parametrize("name", SHARDED)
def test_every_rule_on_pieces_is_the_rule(name: str, n: int) -> None:
    rule = rule_of(name, (n - 3) // 4)
    for seed in range(3):
        check(vg.Algorithm(rule=rule), vectors(n, seed), 0 if name in COLUMNS else 1e-6)


@pytest.mark.parametrize("name", SHARDED)
def test_with_faulty_ranks(name: str) -> None:
    if name == "average":
        return
    for value in (NAN, INF, -INF, 0.0, 1e30, -3e38):
        x = vectors(7)
        x[6] = value
        check(vg.Algorithm(rule=rule_of(name, 1)), x, 0 if name in COLUMNS else 1e-6)
    x = vectors(7)
    x[2, 17] = NAN  # a single number
    check(vg.Algorithm(rule=rule_of(name, 1)), x, 0 if name in COLUMNS else 1e-6)


def test_the_rules_of_the_poster_are_among_them() -> None:
    assert {"krum", "multi-krum", "median", "trimmed-mean", "phocas", "meamed", "bulyan"} <= set(SHARDED)


@pytest.mark.parametrize("published", ["krum", "median", "trmean", "phocas", "meamed", "bulyan", "brute", "cge"])
def test_published_conventions(published: str) -> None:
    check(vg.Algorithm(rule=vg.published(published, 2)), vectors(11), 1e-6)


@pytest.mark.parametrize(
    "mixing", [vg.NearestNeighborMixing(2), vg.Bucketing(2), vg.AdaptiveClipping(2), vg.StaticClipping(3.0)]
)
@pytest.mark.parametrize("name", ["multi-krum", "median", "geometric-median", "bulyan", "centered-clipping"])
def test_mixings_on_pieces(mixing: vg.Mixing, name: str) -> None:
    for seed in range(3):
        check(vg.Algorithm(pre=(mixing,), rule=rule_of(name, 1)), vectors(15, seed), 1e-6)


def test_far_vectors_are_measured_again_across_ranks() -> None:
    """1e30 clipped to size 1 leaves nothing of derived distances: the mixtures are measured, by all ranks together."""
    x = vectors(7)
    x[6] = 1e30
    algorithm = vg.Algorithm(pre=(vg.StaticClipping(1.0), vg.NearestNeighborMixing(1)), rule=vg.GeometricMedian(1))
    check(algorithm, x, 1e-6)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_ties_go_where_the_simulator_sends_them(n: int) -> None:
    """Krum among 3 always ties: the two nearest have the same score. Value decides, over the parameters' own order."""
    for seed in range(8):
        for rule in (vg.Krum(0), vg.Medoid(1), vg.MinimumDiameterAveraging(1)):
            x = (4 * vectors(n, seed)).round()  # whole numbers: distances are exact, however they are summed
            x[:, :40] = x[0, :40]  # what tells them apart comes late, in another chunk
            check(vg.Algorithm(rule=rule), x, 1e-6)
            if seed % 2:
                x[1] = 2 * x[0] - x[2]  # equally far from both sides
                check(vg.Algorithm(rule=rule), x, 1e-6)


def test_memories_over_steps() -> None:
    previous = torch.linspace(-1, 1, D)
    for algorithm in (
        vg.Algorithm(worker=(vg.Momentum(0.9),), rule=vg.Median(1), server=(vg.Momentum(0.5, dampening=0.5),)),
        vg.Algorithm(worker=(vg.SharedMomentum(0.9),), rule=vg.TrimmedMean(1)),
    ):
        check(algorithm, vectors(5), 0, previous, steps=4)
    check(vg.Algorithm(rule=vg.CenteredClipping(1, tau=0.5, iterations=3)), vectors(5), 1e-6, previous, steps=4)


def test_double_precision() -> None:
    for name in ("median", "multi-krum", "bulyan", "geometric-median"):
        check(vg.Algorithm(rule=rule_of(name, 1)), vectors(7, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    for name in ("median", "multi-krum", "bulyan", "trimmed-mean"):
        check(vg.Algorithm(rule=rule_of(name, 1)), vectors(7, dtype=dtype), 0)


def test_more_than_f_that_are_not_finite_stop_every_rank() -> None:
    """Even where no rank sees more than f of them: each of the two has its NaN in another rank's piece."""
    x = vectors(7)
    x[2, 0], x[5, D - 1] = NAN, INF
    for rule in (vg.Median(1), vg.MultiKrum(1), vg.Bulyan(1)):

        def work(ranks: ThreadRanks, rule: vg.Rule = rule) -> str:
            algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=rule)
            chunk = Chunk([Span("all", D, 0)], ranks.size, algorithm.init(1, D))
            before = chunk.state
            aggregation = Aggregation(algorithm, ranks, d=D, gathers=True)
            step = aggregation.begin(0)
            step.add(chunk, x[ranks.rank])
            with pytest.raises(Refused) as error:
                step.finish(History("", tuple("abcdefg")).name_of)
            assert chunk.state is before
            assert step.finite.tolist() == [True, True, False, True, True, False, True]
            return str(error.value)

        wanted = f"{rule} tolerates 1 vectors with NaN or infinity, got 2, of rank 2 (c), rank 5 (f)."
        assert together(7, work) == [wanted] * 7


def test_a_nan_is_sent_but_not_remembered() -> None:
    def work(ranks: ThreadRanks) -> Tensor:
        algorithm = vg.Algorithm(worker=(vg.Momentum(0.5),), rule=vg.Median(1))
        chunk = Chunk([Span("all", D, 0)], ranks.size, algorithm.init(1, D))
        aggregation = Aggregation(algorithm, ranks, d=D, gathers=True)
        history = History("", ("host",) * ranks.size, window=10)
        for number in range(3):
            step = aggregation.begin(number)
            step.add(chunk, torch.full((D,), NAN) if (ranks.rank, number) == (1, 1) else torch.ones(D))
            step.finish(history.name_of)
            step.adopt()
            history.step([step.evidence], 1)
        if ranks.rank == 0:
            assert history.report().ranks[1].nonfinite == 1
        memory = chunk.state.worker[0]
        assert memory is not None
        return memory[0, 0]

    assert together(3, work) == [1.75, 1.5, 1.75]


PREPARED = [(), (vg.NearestNeighborMixing(1),), (vg.AdaptiveClipping(1),), (vg.Bucketing(2),)]


@pytest.mark.slow
@pytest.mark.parametrize("replicated", [False, True], ids=["in pieces", "replicated"])
@pytest.mark.parametrize("name", [name for name in vg.RULES if not vg.RULES[name].needs_root])
def test_the_report_is_what_explain_says_of_the_same_vectors(name: str, replicated: bool) -> None:
    if not replicated and name not in SHARDED:
        return
    x, rule = vectors(15), rule_of(name, 1)
    x[3] *= 20
    x[9, 17] = 0.0 if name == "average" else NAN
    for pre in PREPARED if rule.robust else PREPARED[:1]:
        if name == "monna" and not all(mixing.aligned for mixing in pre):
            continue  # which vector is trusted is lost, so it is refused
        algorithm = vg.Algorithm(pre=pre, rule=rule)
        said = vg.explain(x, algorithm, algorithm.init(15, D).previous)
        for _, history in in_pieces(algorithm, x, replicated=replicated):
            report = history.report()
            near = {"rtol": 1e-4, "atol": 1e-5}
            np.testing.assert_allclose(report.suspicion[0], said.suspicion, **near)
            assert report.rejected[0].tolist() == said.rejected.tolist()
            if said.weight is not None and report.ranks[0].used:
                expected = np.abs(said.weight) / max(np.abs(said.weight).sum(), 1e-300)
                np.testing.assert_allclose(report.weight[0], np.where(said.finite, expected, 0), **near)
            if report.skipped:
                continue
            np.testing.assert_allclose(report.distance[0], said.distance, **near)
            np.testing.assert_allclose(report.cosine[0], said.cosine, **near)
            score = said.distance * NAN if said.score is None else np.where(said.finite, said.score, NAN)
            np.testing.assert_allclose(report.score[0], score, **near)


def test_a_vector_of_flipped_bits_has_a_cosine_too() -> None:
    x = vectors(7)
    x[6, ::4] *= 1e36
    expected = torch.nn.functional.cosine_similarity(x.double(), x.double()[:6].mean(0), dim=1)
    for replicated in (False, True):
        for _, history in in_pieces(vg.Algorithm(rule=vg.MultiKrum(1, m=6)), x, replicated=replicated):
            report = history.report()
            np.testing.assert_allclose(report.cosine[0], expected, atol=1e-6)
            assert report.rank[0].argmax() == 6
            assert report.distance[0, 6] > 1e35


def test_a_rank_with_flipped_bits_is_detected_and_drawn_as_a_worker_of_a_simulation_is() -> None:
    """The functions that read simulated workers and nodes read ranks."""
    x = vectors(7)
    bits = x[6].clone().view(torch.int32)
    bits[::10] ^= 1 << 30
    x[6] = bits.view(torch.float32)
    for replicated in (False, True):
        (_, history), *_ = in_pieces(vg.Algorithm(rule=vg.TrimmedMean(1)), x, steps=30, replicated=replicated)
        report = history.report()
        found = vg.detection(report, byzantine=[6], window=5)
        assert (found.precision, found.delay, found.noun) == (1.0, 3.0, "rank")
        assert found.recall == 0.8  # of the last 10 steps, in the third of which it is named
        assert len(over_time([("flipped bits", report)]).axes) >= 1


def test_weights_and_suspicion_of_the_report() -> None:
    x = vectors(7)
    x[6] = 1e6
    for rule in (vg.Median(1), vg.MultiKrum(1), vg.Bulyan(1), vg.GeometricMedian(1)):
        for _, history in in_pieces(vg.Algorithm(rule=rule), x, steps=3):
            report = history.report()
            assert report.steps == 3
            assert report.weight.shape == report.suspicion.shape == report.rejected.shape == (3, 7)
            assert report.ranks[6].rejected == 3
            assert report.ranks[6].weight < 1e-5
            assert report.ranks[6].suspicion > 0.99
            assert max(r.suspicion for r in report.ranks[:6]) < 0.5
            assert sum(r.weight for r in report.ranks) == pytest.approx(1)
    explained = vg.explain(x, vg.MultiKrum(1))
    (_, history), *_ = in_pieces(vg.Algorithm(rule=vg.MultiKrum(1)), x)
    assert explained.weight is not None
    np.testing.assert_allclose(history.report().weight[0], explained.weight)
    np.testing.assert_allclose(history.report().suspicion[0], explained.suspicion, rtol=1e-5, atol=1e-6)


def test_pieces_of_the_update_where_nobody_wants_it_whole() -> None:
    x, algorithm = vectors(4), vg.Algorithm(rule=vg.MultiKrum(0), server=(vg.Momentum(0.5),))
    padded = torch.nn.functional.pad(x, (0, 1))

    def work(ranks: ThreadRanks) -> Tensor:
        width = (D + 1) // 4
        own = algorithm.init(1, width)
        chunk = Chunk([Span("all", D + 1, 0)], 4, State((), own.server, None))
        aggregation = Aggregation(algorithm, ranks, d=D + 1, gathers=False)
        part = torch.empty(0)
        for number in range(2):
            step = aggregation.begin(number)
            step.add(chunk, padded[ranks.rank])
            part = step.finish(str)[0]
            step.adopt()
        return part

    assert (D + 1) % 4 == 0
    torch.testing.assert_close(torch.cat(together(4, work))[:D], whole(algorithm, x, steps=2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "size", "message"),
    [
        (vg.Algorithm(rule=vg.MultiKrum(2)), 6, r"needs n >= 2f \+ 3 = 7 vectors, got 6.*start more ranks"),
        (vg.Algorithm(pre=(vg.Bucketing(2),), rule=vg.Median(1)), 4, r"Median\(f=1\) needs .* got 2 after the mixings"),
        (vg.Algorithm(worker=(vg.Momentum(0.9, nesterov=True),), rule=vg.Median(1)), 4, "nesterov=True.*classical"),
        (vg.Algorithm(server=(vg.Momentum(0.9, nesterov=True),), rule=vg.Median(1)), 4, "nesterov=True"),
        (vg.Algorithm(rule=vg.Average(1)), 4, r"protects from somebody, got Average\(f=1\)"),
        (vg.Algorithm(worker=(vg.Momentum(0.9),)), 4, r"protects from somebody, got Average\(f=0\)"),
        (vg.Algorithm(pre=(vg.NearestNeighborMixing(1),)), 4, r"protects from somebody, got Average\(f=0\)"),
        (vg.Median(f=1), 4, r"needs a varangian.Algorithm, got Median\(f=1"),
        (vg.Algorithm(rule=vg.DivideAndConquer(1)), 4, r"pieces of vectors, got DivideAndConquer\(f=1\); do that"),
        (vg.Algorithm(rule=vg.SignGuard(1)), 4, "SignGuard.*do that"),
        (vg.Algorithm(rule=vg.LASA(1)), 4, "LASA.*do that"),
        (vg.Algorithm(rule=vg.Aksel(1)), 4, "Aksel.*do that"),
    ],
)  # fmt: skip
def test_what_cannot_be_protected_is_refused(algorithm: vg.Algorithm, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_algorithm("protect", algorithm, size, columnwise=True, advice="do that")


class Bug(vg.Momentum):
    """Of the user's own, and wrong."""

    def __call__(self, *_: object) -> tuple[Tensor, Tensor | None]:
        raise KeyError("mine")


@dataclass(frozen=True)
class BadMedian(vg.Median):
    where: str = "apply"

    def apply(self, x: Tensor, table: np.ndarray | None, previous: Tensor | None) -> Tensor:
        if self.where == "apply":
            raise KeyError("mine")
        return super().apply(x, table, previous)[int(self.where == "shape") :]

    def statistic(self, n: int) -> tuple[int, int, int]:
        if self.where == "statistic":
            raise KeyError("mine")
        return super().statistic(n)


@dataclass(frozen=True)
class BadWeights(vg.Krum):
    fails: bool = True

    def weights(self, geometry: Geometry) -> np.ndarray:
        if self.fails:
            raise KeyError("mine")
        return super().weights(geometry)


def memory_of(state: State) -> list[list[float]]:
    return [memory.flatten().tolist() for memory in (*state.worker, *state.server) if memory is not None]


class TestAgreement:
    """What goes wrong on one rank goes wrong on all, at once."""

    def heard(self, size: int, work: Callable[[ThreadRanks], object]) -> list[Exception]:
        def caught(ranks: ThreadRanks) -> Exception:
            with pytest.raises(Exception) as error:  # noqa: PT011
                work(ranks)
            return error.value

        return together(size, caught)

    def test_an_error_of_one(self) -> None:
        def told(ranks: ThreadRanks) -> dict[str, str]:
            if ranks.rank == 1:
                raise KeyError("mine")
            return {"algorithm": "one"}

        found = self.heard(3, lambda ranks: ranks.agree("protect", lambda: told(ranks)))
        assert isinstance(found[1], KeyError)
        assert [str(e) for e in found[::2]] == ["rank 1: KeyError: 'mine'"] * 2

    def test_other_texts(self) -> None:
        for told, what in (("algorithm", "algorithm"), ("parameters", "parameters")):
            texts = {"algorithm": "one", "parameters": "two"}

            def work(ranks: ThreadRanks, told: str = told, texts: dict[str, str] = texts) -> object:
                return ranks.agree("protect", lambda: texts | ({told: "three"} if ranks.rank else {}))

            wanted = f"protect needs the same {what} on all ranks, got others on [1, 2] than on rank 0."
            assert [str(e) for e in self.heard(3, work)] == [wanted] * 3
        found = self.heard(2, lambda ranks: ranks.agree("one" if ranks.rank else "two", dict))
        assert "needs the same call on all ranks" in str(found[0])

    def test_kinds_of_errors_stay(self) -> None:
        for kind in (Refused, ValueError, RuntimeError):
            error = kind("long " * 300)
            found = self.heard(2, lambda ranks, e=error: ranks.share(e if ranks.rank == 0 else None))
            assert [type(e) for e in found] == [kind, kind]
            assert "long long" in str(found[1])

    @pytest.mark.parametrize("rule", [vg.Median(1), vg.MultiKrum(0), vg.GeometricMedian(1)])
    @pytest.mark.parametrize("pre", [(), (vg.NearestNeighborMixing(1),)])
    def test_a_stage_that_fails_on_one_rank(self, rule: vg.Rule, pre: tuple[vg.Mixing, ...]) -> None:
        x = vectors(3)
        states = {}

        def work(ranks: ThreadRanks) -> None:
            own = Bug(0.9) if ranks.rank == 1 else vg.Momentum(0.9)
            algorithm = vg.Algorithm(worker=(own,), pre=pre, rule=rule)
            chunk = Chunk([Span("all", D, 0)], ranks.size, algorithm.init(1, D))
            states[ranks.rank] = chunk, chunk.state
            aggregation = Aggregation(algorithm, ranks, d=D, gathers=True)
            step = aggregation.begin(0)
            step.add(chunk, x[ranks.rank])
            step.finish(str)

        found = self.heard(3, work)
        assert isinstance(found[1], KeyError)
        assert [str(e) for e in found[::2]] == ["rank 1: KeyError: 'mine'"] * 2
        assert all(chunk.state is before for chunk, before in states.values())

    @pytest.mark.parametrize("pre", [(), (vg.NearestNeighborMixing(1),)])
    @pytest.mark.parametrize("where", ["apply", "statistic", "shape", "weights", "server", "server, refused"])
    def test_what_fails_behind_the_exchange_on_one_rank(self, where: str, pre: tuple[vg.Mixing, ...]) -> None:
        x = vectors(5)
        if where == "weights":
            x[:] = x[0].clone()  # equal distances: the others measure them again, together
        x[:2] *= NAN if where == "server, refused" else 1
        states = {}

        def work(ranks: ThreadRanks) -> None:
            fails = ranks.rank == 1
            rule = BadWeights(1, fails=fails) if where == "weights" else BadMedian(1, where=where if fails else "")
            server = Bug(0.5) if fails and "server" in where else vg.Momentum(0.5)
            algorithm = vg.Algorithm(worker=(vg.Momentum(0.9),), pre=pre, rule=rule, server=(server,))
            chunks = [
                Chunk(group, ranks.size, algorithm.init(1, sum(span.size for span in group))) for group in spans()
            ]
            states[ranks.rank] = [(chunk, chunk.state, memory_of(chunk.state)) for chunk in chunks]
            aggregation = Aggregation(algorithm, ranks, d=D, gathers=True)
            step = aggregation.begin(0)
            for chunk in chunks:
                step.add(chunk, torch.cat([x[ranks.rank, span.first : span.first + span.size] for span in chunk.spans]))
            step.finish(str)

        found = self.heard(5, work)
        if where == "server, refused":
            assert {type(error) for error in found} == {Refused}
        elif where == "shape":
            assert [str(e).startswith("rank 1: ") for e in found] == [True, False, True, True, True]
            assert all("BadMedian must answer" in str(error) for error in found)
        else:
            assert isinstance(found[1], KeyError)
            assert [str(e) for e in found[:1] + found[2:]] == ["rank 1: KeyError: 'mine'"] * 4
        for chunk, before, memory in (each for own in states.values() for each in own):
            assert chunk.state is before
            assert memory_of(before) == memory

    def test_a_rule_that_decides_otherwise_on_one_rank(self) -> None:
        x = vectors(7)

        def work(ranks: ThreadRanks) -> None:
            rule = vg.MultiKrum(1, m=2 if ranks.rank == 2 else 3)
            chunk = Chunk([Span("all", D, 0)], ranks.size, vg.Algorithm(rule=rule).init(1, D))
            aggregation = Aggregation(vg.Algorithm(rule=rule), ranks, d=D, gathers=True)
            step = aggregation.begin(0)
            step.add(chunk, x[ranks.rank])
            step.finish(str)

        assert all("was decided otherwise on ranks [2] than on rank 0" in str(e) for e in self.heard(7, work))

    def test_what_is_no_state(self) -> None:
        owner = Owner(vg.Algorithm(rule=vg.Median(1)), 0, ThreadRanks(Threads(1), 0, 3))
        for given, came in ((None, "nothing"), (5, "a int"), ([("rank", torch.tensor(0))], "a list")):
            with pytest.raises(ValueError, match=f"what state_dict gave, a dictionary of tensors, got {came}"):
                owner.check(given)  # type: ignore[arg-type]

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float16, torch.complex64])
    def test_memories_of_another_type(self, dtype: torch.dtype) -> None:
        with pytest.raises(ValueError, match=f"'worker.0.a' of torch.float32, got {dtype}"):
            check_state({"worker.0.a": torch.ones(2)}, {"worker.0.a": torch.ones(2, dtype=dtype)})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rank": torch.tensor(1)}, "the state of rank 0 here, got that of rank 1"),
            ({"ranks": torch.tensor(5)}, "a state of 3 ranks, got one of 5"),
            ({"algorithm": torch.tensor([65], dtype=torch.uint8)}, "got one of A"),
            ({"worker.0.a": torch.tensor([1.0, NAN])}, "finite numbers, got NaN or infinity in 'worker.0.a'"),
            ({"worker.0.a": [1.0]}, "tensors, got list in 'worker.0.a'"),
            ({"rank": None}, "says whose it is, got one without rank"),
            ({"step": torch.tensor(-5)}, "needs 'step' >= 0, got -5"),
            ({"step": torch.tensor(1.7)}, r"'step' as one number of int64, got float32 \[\]"),
            ({"step": torch.tensor(NAN)}, r"'step' as one number of int64, got float32 \[\]"),
            ({"step": torch.tensor(True)}, r"'step' as one number of int64, got bool \[\]"),
            ({"rank": torch.tensor([0, 0])}, r"'rank' as one number of int64, got int64 \[2\]"),
            ({"ranks": torch.tensor([], dtype=torch.int64)}, r"'ranks' as one number of int64, got int64 \[0\]"),
            ({"algorithm": torch.tensor([65.0])}, r"'algorithm' as a text in bytes, uint8 \[length\], got float32"),
            ({"algorithm": torch.tensor(65, dtype=torch.uint8)}, r"'algorithm' as a text in bytes.* got uint8 \[\]"),
            ({"worker.0.a": torch.ones(2).to_sparse()}, "dense tensors, got torch.sparse_coo in 'worker.0.a'"),
            (
                {"worker.0.a": torch.ones(2, device="meta")},
                r"dense tensors, got one without numbers \(meta\) in 'worker.0.a'",
            ),
            ({5: torch.ones(2)}, "needs names of tensors, got 5"),
        ],
    )
    def test_states_of_somebody_else(self, change: dict[str, object], message: str) -> None:
        owner = Owner(vg.Algorithm(rule=vg.Median(1)), 0, ThreadRanks(Threads(1), 0, 3))
        state = owner.named(3) | {"worker.0.a": torch.ones(2)}
        assert owner.check(state).keys() == {"worker.0.a"}
        with pytest.raises(ValueError, match=message):
            owner.check({key: value for key, value in (state | change).items() if value is not None})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("ignore", 10, None), 'on_refusal "raise" or "skip", got \'ignore\''),
            (("skip", 0, None), "window >= 1, got 0"),
            (("skip", 10, "print"), "a function of one line as warn, got 'print'"),
        ],
    )
    def test_options(self, options: tuple, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check_options("protect", on_refusal=options[0], window=options[1], warn=options[2], seed=0)


class TestHistory:
    def history(self, window: int = 20) -> tuple[History, list[str]]:
        lines: list[str] = []
        return History("rule", ("a", "b", "c", "d"), window=window, warn=lines.append), lines

    def feed(self, history: History, weight: list[float], squared: list[float], finite: list[bool]) -> None:
        good = np.array(finite)
        history.step([Evidence(np.array(weight), suspicion(np.sqrt(squared), good), good, 1)], 1)

    def test_a_rank_that_is_always_rejected_is_named_once_a_window(self) -> None:
        history, lines = self.history()
        for step in range(45):
            bad = step != 30
            self.feed(history, [0.3, 0.3, 0.4, 0.0] if bad else [0.25] * 4, [1.0, 1.0, 1.0, 9.0], [True] * 4)
        assert lines == [
            "rank 3 rejected in 20 of the last 20 steps (host d, step 20)",
            "rank 3 rejected in 19 of the last 20 steps (host d, step 40)",
        ]

    def test_nan_is_said(self) -> None:
        history, lines = self.history(2)
        for _ in range(2):
            self.feed(history, [0.3, 0.3, 0.4, 0.0], [1.0, 1.0, 1.0, NAN], [True, True, True, False])
        assert lines == ["rank 3 rejected in 2 of the last 2 steps, with NaN or infinity in 2 (host d, step 2)"]
        assert history.report().ranks[3].suspicion == 1

    def test_a_rank_that_keeps_some_weight_far_from_the_others_is_named_too(self) -> None:
        history, lines = self.history(10)
        for step in range(10):
            self.feed(history, [0.25] * 4, [1.0, 1.2, 1.1, 9.0 if step else 1.0], [True] * 4)
        assert lines == ["rank 3 far from the others in 9 of the last 10 steps (host d, step 10)"]
        assert history.report().ranks[3].rejected == 0

    def test_a_rule_that_rejects_nearly_all_names_nobody(self) -> None:
        history, lines = self.history(40)
        for step in range(80):
            weight = [0.0] * 4
            weight[step % 4 if step % 8 else 0] = 1.0
            self.feed(history, weight, [1.0] * 4, [True] * 4)
        assert lines == []

    def test_without_weights_nobody_finite_is_rejected_but_the_far_one_is_named(self) -> None:
        history, lines = self.history(2)
        for _ in range(2):
            self.feed(history, [NAN] * 4, [1.0, 1.0, 1.0, 100.0], [True, False, True, True])
        report = history.report()
        assert [r.rejected for r in report.ranks] == [0, 2, 0, 0]
        assert np.isnan([r.weight for r in report.ranks]).all()
        assert [r.suspicion for r in report.ranks] == [0, 1, 0, pytest.approx(0.9)]
        assert "rank 3 far from the others in 2 of the last 2 steps (host d, step 2)" in lines

    def test_parts_of_a_step_add_up(self) -> None:
        history, _ = self.history()
        first = Evidence(np.array([1.0, 0, 0, 0]), np.array([0, 0.4, 0.8, 0]), np.array([True] * 4), 3)
        other = Evidence(np.array([0, 1.0, 0, 0]), np.array([0, 0, 0.4, 1]), np.array([True, True, True, False]), 1)
        history.step([first, other], 1)
        report = history.report()
        np.testing.assert_allclose(report.weight, [[0.75, 0.25, 0, 0]])
        np.testing.assert_allclose(report.suspicion, [[0, 0.3, 0.7, 1]])
        assert report.rejected.tolist() == [[False, False, True, True]]
        assert "rule: 4 ranks, 1 steps, 0 skipped" in str(history.report())

    def test_distances_and_cosines_of_parts_are_those_of_the_whole(self) -> None:
        history, x = self.history()[0], vectors(4)
        mean, usual = x.mean(0), np.zeros(4)
        parts = []
        for part in (slice(0, 3), slice(3, None)):
            measured = distances_and_norms(x[:, part], mean[part]).numpy()
            parts.append(Evidence(usual, usual, np.ones(4, bool), 1, measured=measured))
        history.step(parts, 1)
        history.step([parts[0], replace(parts[1], measured=None)], 1)
        report = history.report()
        np.testing.assert_allclose(report.distance[0], (x - mean).norm(dim=1), rtol=1e-6)
        np.testing.assert_allclose(report.cosine[0], torch.nn.functional.cosine_similarity(x, mean, dim=1), rtol=1e-5)
        assert np.isnan(report.distance[1]).all()
        assert np.isnan(report.cosine[1]).all()

    def test_skipped_steps_are_counted(self) -> None:
        history, _ = self.history()
        history.skip(np.array([True, False, False, True]), 1, "too many")
        report = history.report()
        assert [r.suspicion for r in report.ranks[1:3]] == [1, 1]
        assert np.isnan([r.suspicion for r in report.ranks[::3]]).all()
        assert (report.steps, report.skipped) == (1, 1)
        assert [r.nonfinite for r in report.ranks] == [0, 1, 1, 0]

    def test_a_warning_that_fails_stops_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        def fails(line: str) -> None:
            raise KeyError(line)

        history = History("rule", ("a", "b", "c", "d"), window=2, warn=fails)
        for _ in range(3):
            self.feed(history, [0.3, 0.3, 0.4, 0.0], [1.0, 1.0, 1.0, 9.0], [True] * 4)
        assert history.steps == 3
        assert "warn failed on the line: rank 3 rejected in 2 of the last 2 steps" in caplog.text

    def test_one_rank_speaks(self, caplog: pytest.LogCaptureFixture) -> None:
        lines: list[str] = []
        History("rule", ("a", "b"), window=2, warn=lines.append, first=False).say("nothing")
        History("rule", ("a", "b"), window=2, first=False).say("nothing")
        assert (lines, caplog.text) == ([], "")
        History("rule", ("a", "b"), window=2).say("a line")
        assert "a line" in caplog.text

    def test_as_dict(self) -> None:
        history, _ = self.history()
        self.feed(history, [0.25] * 4, [1.0] * 4, [True] * 4)
        found = json.loads(json.dumps(history.report().as_dict()))
        assert found["ranks"][3] | {"rank": 3, "weight": 0.25} == found["ranks"][3]
        assert found["weight"] == [[0.25] * 4]

    def test_an_empty_report(self) -> None:
        assert self.history()[0].report().steps == 0

    def test_the_window(self) -> None:
        with pytest.raises(ValueError, match="window >= 1, got 0"):
            History("", ("a",), window=0)
