"""Classes of the user's own: what they return is held to the contract where it enters, in one line, and they are
called, whatever they derive from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import programs
import varangian as vg
from varangian.core.geometry import Geometry

N, D = 7, 5
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def bug(call: Callable[[], object], *words: str) -> None:
    """It is a mistake of whoever wrote the class: a ValueError of one line, and not a refusal of the vectors."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    text = str(error.value)
    assert "\n" not in text
    assert not isinstance(error.value, vg.Refused)
    assert all(word in text for word in words), text


def everywhere(stage: vg.Rule | vg.Mixing, x: Any = X) -> list[Callable[[], object]]:
    """All ways in which a rule or a mixing is called."""
    rule = stage if isinstance(stage, vg.Rule) else vg.Average()
    pre = () if isinstance(stage, vg.Rule) else (stage,)
    a = vg.Algorithm(pre=pre, rule=rule)
    return [
        lambda: stage(x),
        lambda: stage(x.numpy()),
        lambda: a.aggregate(x, a.init(N, D)),
        lambda: vg.explain(x, a),
        lambda: vg.WorstCase(evaluations=4)(x[:5], 2, defence=a),
    ]


@dataclass(frozen=True)
class Ranks(vg.Coordinatewise):
    answer: Any = (0, 1, 0)

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def statistic(self, n: int) -> Any:
        return self.answer


WRONG_RANKS: list[Any] = [
    (0, N + 1, 0), (0, N + 40, 0), (-1, 3, 0), (3, 3, 0), (4, 3, 0), (N, N + 1, 0), (0, 1, N + 1), (0, 1, -1),
    (0.0, 1.0, 0), (0, 1), (0, 1, 0, 0), None, "abc", (True, 2, 0), 3, (0, 10**30, 0),
]  # fmt: skip


@pytest.mark.parametrize("answer", WRONG_RANKS, ids=str)
@pytest.mark.parametrize("columns", [D, 200_000])
def test_ranks_are_within_n(answer: Any, columns: int) -> None:
    x = X if columns == D else torch.zeros(N, columns)
    for call in everywhere(Ranks(f=1, answer=answer), x)[: None if columns == D else 1]:
        bug(call, "Ranks must answer ranks 0 <= low < high <= n and a window")


def test_ranks_of_numpy_are_ranks() -> None:
    assert torch.equal(Ranks(f=1, answer=(np.int64(3), np.int64(4), 0))(X), vg.Median(f=1)(X))
    assert torch.equal(Ranks(f=1, answer=[3, 4, 0])(X), vg.Median(f=1)(X))


@dataclass(frozen=True)
class Weighing(vg.Selecting):
    make: Any = None

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def weights(self, geometry: Geometry) -> Any:
        return self.make(geometry.n)


WRONG_WEIGHTS: dict[str, Any] = {
    "too long": lambda n: np.full(n + 2000, 1 / n),
    "one more": lambda n: np.full(n + 1, 1 / n),
    "one less": lambda n: np.full(n - 1, 1 / n),
    "one number": lambda n: np.float64(1.0),
    "none": lambda n: None,
    "list": lambda n: [1 / n] * n,
    "tensor": lambda n: torch.full((n,), 1 / n),
    "NaN": lambda n: np.append(np.full(n - 1, 1 / n), np.nan),
    "infinite": lambda n: np.append(np.full(n - 1, 1 / n), np.inf),
    "words": lambda n: np.array(["a"] * n),
    "complex": lambda n: np.full(n, 1j),
    "truth values": lambda n: np.ones(n, bool),
    "cube": lambda n: np.ones((1, 1, n)),
    "empty": lambda n: np.ones((0, n)),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
@pytest.mark.parametrize("columns", [D, 200_000])
def test_weights_of_a_rule_are_n_finite_numbers(name: str, columns: int) -> None:
    x = X if columns == D else torch.zeros(N, columns)
    for call in everywhere(Weighing(f=1, make=WRONG_WEIGHTS[name]), x)[: None if columns == D else 1]:
        bug(call, "Weighing must answer")


@dataclass(frozen=True)
class Mixed(vg.Mixing):
    make: Any = None
    m: int | None = None

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def rows(self, n: int) -> int:
        return n if self.m is None else self.m

    def rows_for(self, m: int) -> int:
        return m

    def weights(self, geometry: Geometry) -> Any:
        return self.make(geometry.n)


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_of_a_mixing_are_m_by_n_finite_numbers(name: str) -> None:
    make = WRONG_WEIGHTS[name]
    for call in everywhere(Mixed(make=make)):
        bug(call, "Mixed must answer")
    if name not in ("one number", "none", "list", "tensor", "cube", "empty"):
        for call in everywhere(Mixed(make=lambda n: np.stack([make(n)] * n))):
            bug(call, "Mixed must answer")


def test_a_mixing_answers_as_many_vectors_as_it_says() -> None:
    for m, rows in ((3, 4), (3, 2), (None, 3)):
        for call in everywhere(Mixed(make=lambda n, rows=rows: np.full((rows, n), 1 / n), m=m)):
            bug(call, "Mixed must answer weights")
    for call in everywhere(Mixed(make=lambda n: np.ones(n), m=3)):
        bug(call, "Mixed must answer weights of shape [3, 7], got [7]")


@pytest.mark.parametrize(
    "rule", [vg.Krum(f=0), vg.MultiKrum(f=0), vg.Medoid(f=1), vg.CAF(f=1), vg.Bulyan(f=0)], ids=str
)
def test_a_mixing_to_fewer_vectors_is_explained(rule: vg.Rule) -> None:
    """Behind it no score belongs to a vector that came."""
    pairs = Mixed(make=lambda n: np.eye(n)[:-1] / 2 + np.eye(n)[1:] / 2, m=N - 1)
    found = vg.explain(X, vg.Algorithm(pre=(pairs,), rule=rule))
    assert found.score is None
    assert found.suspicion.shape == (N,)
    assert str(found)


@dataclass(frozen=True)
class Answering(vg.General):
    make: Any = None

    @property
    def needs(self) -> tuple[str, int]:
        return "1", 1

    def combine(self, x: Tensor, previous: Tensor | None) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x, lambda x: x.mean(), lambda x: x.mean(0)[:-1], lambda x: x[:1].clone(), lambda x: None,
        lambda x: x.mean(0).numpy(), lambda x: x.mean(0).double(), lambda x: x.mean(0).to("meta"),
        lambda x: (x.mean(0), 1), lambda x: x.mean(0).tolist(),
    ],
)  # fmt: skip
def test_the_aggregate_is_a_vector_like_those_that_came(make: Any) -> None:
    for call in everywhere(Answering(f=1, make=make)):
        bug(call, "Answering must answer float32 [5], got")


@dataclass(frozen=True)
class Transformed(vg.Transform):
    make: Any = None
    remembers = True

    def __call__(self, x: Tensor, memory: Any = None) -> Any:
        return self.make(x, memory)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, m: x, lambda x, m: (x, None), lambda x, m: (x, m[..., :-1]), lambda x, m: (x[..., :-1], m),
        lambda x, m: (x.double(), m), lambda x, m: (x.numpy(), m), lambda x, m: (x, m, m), lambda x, m: None,
        lambda x, m: (x, m.half()), lambda x, m: (x.sum(), m), lambda x, m: (x.unsqueeze(0), m),
    ],
)  # fmt: skip
def test_a_transform_answers_vectors_like_those_that_came_and_its_memory(make: Any) -> None:
    stage = Transformed(make=make)
    worker, server = vg.Algorithm(worker=(stage,)), vg.Algorithm(server=(stage,))
    bug(lambda: worker.send(X, worker.init(N, D)), "Transformed")
    bug(lambda: worker.send(X.clone(), worker.init(N, D), out=torch.empty_like(X)), "Transformed")
    bug(lambda: server.aggregate(X, server.init(N, D)), "Transformed")


@dataclass(frozen=True)
class OwnMomentum(vg.Transform):
    """Momentum, as one would write it: what leaves is what is remembered."""

    beta: float = 0.9
    remembers = True
    columnwise = True

    def __call__(self, x: Tensor, memory: Tensor | None = None) -> Any:
        assert memory is not None
        moved = self.beta * memory + x
        return moved, moved


@dataclass(frozen=True)
class OldMomentum(vg.Transform):
    """The same, to the signature of before, which had ``out`` and rules on what may share memory."""

    beta: float = 0.9
    remembers = True

    def __call__(self, x: Tensor, memory: Any = None, previous: Any = None, out: Any = None) -> Any:
        moved = torch.add(x, memory, alpha=self.beta, out=out)
        return moved, moved.clone() if out is None else moved

    def look_ahead(self, parameters: Tensor, memory: Any, previous: Any, lr: float) -> Tensor:
        return parameters


@dataclass(frozen=True)
class Passing(vg.Transform):
    """What came leaves, and is remembered beside."""

    remembers = True

    def __call__(self, x: Tensor, memory: Tensor | None = None) -> Any:
        return x, x


@dataclass(frozen=True)
class Delayed(vg.Transform):
    """Sends what came a step before."""

    remembers = True

    def __call__(self, x: Tensor, memory: Tensor | None = None) -> Any:
        return memory, x


@dataclass(frozen=True)
class Pulled(vg.Transform):
    """Half the way from the last aggregate."""

    uses_previous = True

    def __call__(self, x: Tensor, memory: Any = None, previous: Any = None) -> Any:
        return (x + previous) / 2, None


CHAINS: list[list[Any]] = [
    [OwnMomentum()], [OldMomentum()], [Passing()], [Delayed()], [vg.Clip(1.0), OwnMomentum()], [Pulled()],
    [OwnMomentum(), vg.Clip(1.0)], [vg.Momentum(0.5), Passing()], [Passing(), vg.Momentum(0.5)],
    [Delayed(), vg.Momentum(0.5), Passing()], [OwnMomentum(), Delayed(), vg.Clip(1.0)],
]  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_own_transforms_send_the_same_whatever_memory_is_used_again(chain: list[Any]) -> None:
    """Beside a run in which nothing shares memory: with ``out``, with vectors that the caller writes into, in place."""
    a = vg.Algorithm(worker=chain, rule=vg.Average(), server=[OwnMomentum(), Delayed()])
    plain, reusing, writing = (a.init(4, D) for _ in range(3))
    out = torch.empty(4, D)
    reusing = replace(reusing, worker=(*reusing.worker[:-1], None if reusing.worker[-1] is None else out.zero_()))
    for step in range(5):
        g = torch.randn(4, D, generator=torch.Generator().manual_seed(step))
        wanted, plain = a.send(g.clone(), plain)
        update, plain = a.aggregate(wanted.clone(), plain)
        sent, reusing = a.send(g.clone(), reusing, out=out)
        assert torch.equal(sent, wanted)
        there, reusing = a.finish(a.decide(sent, reusing), reusing, in_place=True)
        assert torch.equal(there, update)
        given = g.clone()
        mine, writing = a.send(given, writing)
        assert torch.equal(mine, wanted)
        answer, writing = a.aggregate(mine.clone(), writing)
        assert torch.equal(answer, update)
        given.fill_(99.0)
        mine.fill_(99.0)
        answer.fill_(99.0)


def test_own_momentum_is_momentum() -> None:
    a, b = vg.Algorithm(worker=(OwnMomentum(0.5),)), vg.Algorithm(worker=(vg.Momentum(0.5),))
    s, t = a.init(3, D), b.init(3, D)
    for step in range(4):
        g = torch.randn(3, D, generator=torch.Generator().manual_seed(step))
        mine, s = a.send(g, s)
        ours, t = b.send(g, t)
        torch.testing.assert_close(mine, ours)


def test_nothing_crashes_python() -> None:
    """In a process of its own: what read foreign memory or ended the interpreter is one line now."""
    done = programs.run("-c", PROGRAM)
    assert done.stdout.split() == ["refused"] * 4, (done.returncode, done.stderr[-300:])


PROGRAM = """
import numpy as np, torch
from dataclasses import dataclass
import varangian as vg
@dataclass(frozen=True)
class High(vg.Coordinatewise):
    @property
    def needs(self): return "1", 1
    def statistic(self, n): return 0, n + 40, 0
@dataclass(frozen=True)
class Long(vg.Selecting):
    @property
    def needs(self): return "1", 1
    def weights(self, geometry): return np.full(geometry.n + 2000, 1 / geometry.n)
for rule in (High(f=1), Long(f=1)):
    for x in (torch.randn(7, 100_000), torch.randn(7, 100_000).half()):
        try: rule(x); print("answered")
        except ValueError: print("refused")
"""


# ------------------------------------------------------------------------------------------------ derived classes


@dataclass(frozen=True)
class Halved(vg.Average):
    def apply(self, x: Tensor, table: np.ndarray | None, previous: Tensor | None) -> Tensor:
        return x.mean(0) / 2


def test_a_rule_derived_from_ours_is_called_by_adversaries_too() -> None:
    x, rule = X.double(), Halved(f=0)
    found = vg.WorstCase(directions=("empire",), evaluations=6).search(x[:5], 2, defence=rule)
    sent = torch.cat([x[:5], found.vector.expand(2, -1)])
    assert found.damage == pytest.approx(float((rule(sent) - x[:5].mean(0)).norm()))


# ------------------------------------------------------------------------------------------------ vectors


def test_what_vectors_may_be() -> None:
    rule = vg.Median(f=1)
    expected = rule(X)
    wrong: list[Any] = [
        [[1.0, True]] * 3, [[1.0], [1.0, 2.0]], [[None]] * 3,
        [1.0, 2.0], [None] * 3, ["a"] * 3, [X[0], X[1].numpy(), X[2]], [X[0], X[1].double(), X[2]],
        [X[0].numpy(), X[1].double().numpy()], "abc", 3, None, {1: 2},
    ]  # fmt: skip
    for given in wrong:
        bug(lambda given=given: rule(given), "Median needs")
        bug(lambda given=given: vg.NearestNeighborMixing(f=1)(given), "NearestNeighborMixing needs")
        bug(lambda given=given: vg.explain(given, rule), "Median needs")
    assert torch.equal(rule(list(X)), expected)
    assert np.array_equal(rule(X.double().tolist()), rule(X.double().numpy()))
    assert np.array_equal(rule(list(X.numpy())), expected.numpy())
    for order in "<>":
        for size in (2, 4, 8):
            x = X.numpy().astype(f"{order}f{size}")
            y = rule(x)
            assert y.dtype == x.dtype
            assert np.array_equal(y, rule(X.numpy().astype(f"=f{size}")))


@pytest.mark.parametrize("name", vg.RULES)
def test_vectors_that_require_grad_are_aggregated(name: str) -> None:
    kind = vg.RULES[name]
    if kind.needs_root:
        return
    x, rule = torch.randn(11, 6, generator=torch.Generator().manual_seed(2)), kind(f=1)
    wanted, needing = rule(x), x.clone().requires_grad_()
    a = vg.Algorithm(worker=(vg.Momentum(0.9),), rule=rule, server=(vg.Clip(1e9),))
    sent, state = a.send(needing, a.init(11, 6))
    assert torch.equal(a.aggregate(needing, state)[0], wanted)
    assert torch.equal(a.aggregate(sent, state)[0], wanted)
    assert torch.equal(rule(needing), wanted)
    assert torch.equal(vg.explain(needing, a).aggregate, wanted)


def test_previous_is_a_vector() -> None:
    wrong: list[Any] = ["abc", [1.0, 2.0], torch.ones(D + 1), torch.ones(1, D), 3, {"a": 1}]
    for previous in wrong:
        for rule in (vg.CenteredClipping(f=1), vg.FLTrust(f=1)):
            bug(lambda p=previous, r=rule: r(X, previous=p), f"needs previous of shape [{D}]")
            bug(lambda p=previous, r=rule: vg.explain(X, r, previous=p), f"needs previous of shape [{D}]")


def test_without_a_root_there_is_no_fltrust() -> None:
    for call in (lambda: vg.FLTrust(f=2)(X), lambda: vg.explain(X, vg.FLTrust(f=2))):
        bug(call, "FLTrust", "needs previous=root")
    assert vg.FLTrust(f=2)(X, previous=X[0]).shape == (D,)


@pytest.mark.parametrize("pre", [vg.Bucketing(2), vg.Bucketing(1), Mixed(make=np.eye)], ids=["two", "one", "own"])
def test_a_trusted_place_is_no_place_behind_what_moves_vectors(pre: vg.Mixing) -> None:
    bug(lambda: vg.Algorithm(pre=(vg.NearestNeighborMixing(f=1), pre), rule=vg.MoNNA(f=1)), "MoNNA", type(pre).__name__)
    for kept in (vg.NearestNeighborMixing(f=1), vg.AdaptiveClipping(f=1), vg.StaticClipping(1.0)):
        vg.Algorithm(pre=(kept,), rule=vg.MoNNA(f=1))
    with pytest.raises(vg.ConfigurationError, match=r"pre: Algorithm: MoNNA\(f=3\) trusts the vector"):
        vg.Experiment(rule="monna", pre=("bucketing",))


def test_explain_wants_an_algorithm_or_a_rule() -> None:
    wrong: list[Any] = ["median", vg.Median, None, vg.NearestNeighborMixing(f=1), lambda x: x]
    for algorithm in wrong:
        bug(lambda a=algorithm: vg.explain(X, a), "explain needs an algorithm or a rule")


def test_bulyan_averages_no_more_than_there_are() -> None:
    rule = vg.Bulyan(f=1, base="multi-krum", m=100)
    bug(lambda: rule(torch.randn(11, 3)), "m + f = 101")
    assert vg.Bulyan(f=1, base="multi-krum", m=10)(torch.randn(11, 3)).shape == (3,)
    assert rule.min_n == 101


def test_lasa_counts_a_value_at_the_bound_as_within() -> None:
    """And in any order: on small integers, where equality is usual."""
    x = torch.tensor([[-2, 0, -1], [2, -1, -1], [-2, 1, -2], [-1, -1, 0], [1, 1, 2], [-2, 1, -1]], dtype=torch.float64)
    rule = vg.LASA(f=1, sparsity=0.0)
    assert torch.equal(rule(x), rule(x[[1, 0, 4, 5, 3, 2]]))
    random = np.random.default_rng(0)
    for _ in range(400):
        n = int(random.integers(4, 9))
        x = torch.from_numpy(random.integers(-2, 3, (n, 3))).double()
        order = random.permutation(n)
        for sparsity in (0.0, 0.4):
            rule = vg.LASA(f=1, sparsity=sparsity)
            torch.testing.assert_close(rule(x), rule(x[order]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("center", [8, 50, -3, -50, 1.5, "0"])
def test_a_center_that_is_no_vector(center: Any) -> None:
    @dataclass(frozen=True)
    class Around(vg.Selecting):
        @property
        def needs(self) -> tuple[str, int]:
            return "1", 1

        @property
        def center(self) -> Any:
            return center

        def weights(self, geometry: vg.Geometry) -> np.ndarray:
            return np.full(geometry.n, 1 / geometry.n)

    x = torch.randn(8, 5)
    with pytest.raises(ValueError, match="Around must have a center that is one of 8 vectors"):
        Around(f=1)(x)
    a = vg.Algorithm(pre=(vg.Bucketing(2),), rule=Around(f=1))
    with pytest.raises(ValueError, match="Around must have a center that is one of 4 vectors"):
        a.aggregate(x, a.init(8, 5))


def test_an_answer_is_no_view_of_the_vectors() -> None:
    @dataclass(frozen=True)
    class First(vg.General):
        @property
        def needs(self) -> tuple[str, int]:
            return "1", 1

        def combine(self, x: Tensor, previous: Tensor | None) -> Tensor:
            return x[0]

    with pytest.raises(ValueError, match="First must answer a vector of its own, got a view"):
        First(f=0)(torch.ones(3, 2))


@pytest.mark.parametrize("kind", [vg.Median, vg.MultiKrum, vg.NearestNeighborMixing], ids=lambda kind: kind.__name__)
def test_what_no_algorithm_would_call_is_refused(kind: Any) -> None:
    @dataclass(frozen=True)
    class Mine(kind):
        def __call__(self, x: Any, *more: Any) -> Any:
            return x[0]

    place = {"rule": Mine(f=1)} if issubclass(kind, vg.Rule) else {"pre": (Mine(f=1),)}
    with pytest.raises(ValueError, match="Mine has a __call__ of its own, which no algorithm calls; override"):
        vg.Algorithm(**place)


def test_an_attack_that_no_run_would_call_is_refused() -> None:
    @dataclass(frozen=True)
    class Mine(vg.Little):
        def __call__(self, *given: Any, **more: Any) -> Any:
            return None

    vg.ATTACKS["mine"] = Mine
    try:
        with pytest.raises(ValueError, match="Mine has a __call__ of its own, which no run calls; override craft"):
            vg.run(vg.Experiment(attack="mine(factor=1.0)", steps=1))
    finally:
        del vg.ATTACKS["mine"]
