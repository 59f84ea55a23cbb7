"""The oracles are right: they reproduce the golden files, hand-computed examples, and the laws of their definitions."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

import golden_conventions as golden
import oracles

CASES = list(golden.cases())
TRAJECTORIES = list(golden.trajectories())


# ---------------------------------------------------------------------------------------------------------------------
# Golden files
# ---------------------------------------------------------------------------------------------------------------------


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("name", "x", "f", "expected"), [c[1:] for c in CASES], ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_golden_rules(name: str, x: np.ndarray, f: int, expected: np.ndarray) -> None:
    assert relative_error(golden.GOLDEN[name](x.astype(np.float64), f), expected) < 1e-5


def test_golden_names_are_all_mapped() -> None:
    named = {name for _, name, *_ in CASES}
    described = json.loads((golden.FOLDER / "rules.json").read_text())
    assert named == set(golden.GOLDEN) == set(golden.CONSTRUCTORS)
    assert len(CASES) == sum(len(case["outputs"]) for case in described)


def test_golden_ties_are_the_only_outputs_that_hang_on_position() -> None:
    by_value = {
        "published:multi-krum": lambda x, f: oracles.multi_krum(x, f, neighbours="n-f-1", distance="plain"),
        "published:multi-krum-m1": lambda x, f: oracles.krum(x, f, neighbours="n-f-1", distance="plain"),
        "published:bulyan": lambda x, f: oracles.bulyan(
            x, f, base="multi-krum", selection="frozen", distance="plain", even="lower"
        ),
        "published:mda": oracles.mda,
        "byzfl:MDA": oracles.mda,
    }
    differ = {
        (case, name)
        for case, name, x, f, expected in CASES
        if name in by_value and relative_error(by_value[name](x.astype(np.float64), f), expected) > 1e-5
    }
    assert differ == golden.TIED


@pytest.mark.parametrize(("case", "expected"), TRAJECTORIES, ids=[case["name"] for case, _ in TRAJECTORIES])
def test_golden_trajectories(case: dict, expected: np.ndarray) -> None:
    actual = oracles.trajectory(case, golden.batches(), start=expected[0])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Hand-computed examples
# ---------------------------------------------------------------------------------------------------------------------


def column(*values: float) -> np.ndarray:
    """Vectors of one coordinate."""
    return np.array(values, dtype=np.float64)[:, None]


BY_HAND = {
    # Two nearest others, squared: scores 5, 2, 5, 13 and a lot.
    "krum": (oracles.krum(column(0, 1, 2, 4, 100), 1), 1),
    # The two of score 5 tie: the lesser value first, so (1 + 0) / 2; by position, (1 + 2) / 2.
    "multi-krum": (oracles.multi_krum(column(2, 1, 0, 4, 100), 1), 0.5),
    "multi-krum-position": (oracles.multi_krum(column(2, 1, 0, 4, 100), 1, ties="position"), 1.5),
    # Three nearest others, plain: 7, 5, 5, 9: the tie goes to 1.
    "krum-plain": (oracles.krum(column(0, 2, 1, 4, 100), 1, neighbours="n-f-1", distance="plain"), 1),
    "median-mid": (oracles.median(column(10, 1, 3, 2)), 2.5),
    "median-lower": (oracles.median(column(10, 1, 3, 2), even="lower"), 2),
    "median-upper": (oracles.median(column(10, 1, 3, 2), even="upper"), 3),
    "trimmed-mean": (oracles.trimmed_mean(column(100, 1, 2, 3, 10), 1), 5),
    "phocas": (oracles.phocas(column(100, 1, 2, 3, 10), 1), 4),
    # Four closest to the trimmed mean 5.
    "phocas-far": (oracles.phocas(column(-100, 0, 5, 10, 12), 1), 6.75),
    "meamed": (oracles.meamed(column(100, 1, 2, 3, 10), 1), 4),
    "meamed-tie": (oracles.meamed(column(4, 2, 0), 1), 1),
    # Rounds select 2 (tied with 3), 3, 1 (tied with 4), 4 (tied with 5), 0 (tied with 5); the 3 closest to 2: 1, 2, 3.
    "bulyan": (oracles.bulyan(column(0, 1, 2, 3, 4, 5, 100), 1), 2),
    # Ranks 2 3 1 4 0 5: the means of ranks 0-3, 1-3, 2-3 are 2.5, 8/3, 2.5; the one closest to their median.
    "bulyan-frozen": (
        oracles.bulyan(
            column(0, 1, 2, 3, 4, 5, 100), 1, base="multi-krum", selection="frozen", distance="plain", even="lower"
        ),
        2.5,
    ),
    "bulyan-multi-krum": (oracles.bulyan(column(0, 1, 2, 3, 4, 5, 100), 1, base="multi-krum"), 2.5),
    # m = 1: rank 0 of each round: 2, 3, 1.
    "bulyan-m1": (oracles.bulyan(column(0, 1, 2, 3, 4, 5, 100), 1, base="multi-krum", m=1), 2),
    "mda": (oracles.mda(column(0, 1, 2, 10), 1), 1),
    # {0, 2, 4} and {0, 3, 4} both span 4, as {0, 2, 3} would not: 3 is least. Then {2, 3, 4}: diameter 2.
    "mda-least": (oracles.mda(column(0, 2, 3, 4), 1), 3),
    "cge": (oracles.cge(column(3, -1, 2), 1), 0.5),
    "aksel-mid": (oracles.aksel(column(0, 1, 2, 10, 100), 2, mode="mid"), 1),
    "aksel-n-f": (oracles.aksel(column(0, 1, 2, 10, 100), 1, mode="n-f"), 3.25),
    "geometric-median": (oracles.geometric_median(column(0, 1, 100)), 1),
    "geometric-median-even": (oracles.geometric_median(column(0, 1, 3, 100)), 2),
    "medoid": (oracles.medoid(column(0, 1, 100)), 1),
    "centered-clipping": (oracles.centered_clipping(column(10, 0), tau=1.0), 0.5),
    "centered-clipping-2": (oracles.centered_clipping(column(10, 0), tau=1.0, iterations=2), 0.75),
    "centered-clipping-from": (oracles.centered_clipping(column(10, 0), tau=2.0, previous=[1.0]), 1.5),
    "monna": (oracles.monna(column(0, 1, 5), 1, pivot=0), 0.5),
    "monna-vector": (oracles.monna(column(0, 1, 5), 1, pivot=[4.0]), 3),
    "smea": (oracles.smea(column(0, 4, 5, 6), 1), 5),
    # Centred: -25.75, -24.75, -23.75, 74.25; the last is dropped in the only round.
    "dnc": (oracles.dnc(column(0, 1, 2, 100), 1, coordinates=[[0]]), 1),
    # Trust 1, 0 and 1, rescaled to the root's norm 2.
    "fltrust": (oracles.fltrust(column(5, -3, 1), 1, root=[2.0]), 2),
    "fltrust-nobody": (oracles.fltrust(column(-5, -3), 1, root=[2.0]), 0),
    # Median norm 2: 1, 2, 2 against -2.
    "clipped-clustering": (oracles.clipped_clustering(column(1, 2, 3, -2)), 5 / 3),
    "flame": (oracles.flame(column(1, 2, 3, -2)), 5 / 3),
    "signguard": (oracles.signguard(column(1, 2, 3, -2)), 5 / 3),
    # 100 has a ratio 50 to the median norm 2; the others' mean.
    "signguard-norm": (oracles.signguard(column(1, 2, 2, 100)), 5 / 3),
    "little": (oracles.little(column(0, 2), 1, factor=1.5), 1 - 1.5 * np.sqrt(2)),
    "little-biased": (oracles.little(column(0, 2), 1, factor=1.5, ddof=0, sign=1), 2.5),
    "empire": (oracles.empire(column(0, 2), 1, factor=1.1), -0.1),
    "sign-flip": (oracles.sign_flip(column(0, 2), 1), -1),
    "hidden-vulnerability": (oracles.hidden_vulnerability(column(0, 2), 1, factor=7.0), 8),
    # h - f = 2 least: 1 and 2; the next has norm 4.
    "anti-cge": (oracles.anti_cge(column(4, 1, 2), 1, margin=0.25), -3),
    "mimic": (oracles.mimic(column(1, -5, 2), 1), -5),
    # mean 1, std 1: |1 - gamma - 2| <= 2.
    "min-max": (oracles.min_max(column(0, 2), 1, ddof=0), 0),
    # 2 + 2 gamma^2 <= 4.
    "min-sum": (oracles.min_sum(column(0, 2), 1, ddof=0), 0),
    "min-max-sign": (oracles.min_max(column(0, 2), 1, direction="sign"), 0),
    "fang-trimmed-mean": (oracles.fang_trimmed_mean(column(2, 4), 1, uniform=1.0), 1),
    "fang-trimmed-mean-negative": (oracles.fang_trimmed_mean(column(-2, -4), 1, uniform=0.5), -1.5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    actual, expected = BY_HAND[name]
    np.testing.assert_allclose(actual.ravel(), [expected], rtol=1e-12, atol=1e-12)


def test_mixings_by_hand() -> None:
    np.testing.assert_allclose(oracles.nnm(column(0, 1, 10), 1).ravel(), [0.5, 0.5, 5.5])
    np.testing.assert_allclose(oracles.bucketing(column(0, 1, 2, 3, 9), 2, [4, 0, 1, 2, 3]).ravel(), [4.5, 1.5, 3])
    np.testing.assert_allclose(oracles.arc(column(-10, 1, 3, 2), 1).ravel(), [-3, 1, 3, 2])
    np.testing.assert_allclose(
        oracles.static_clipping(np.array([[3.0, 4.0], [0.3, 0.4]]), 1.0), [[0.6, 0.8], [0.3, 0.4]]
    )


def test_geometric_median_of_known_figures() -> None:
    square = np.array([[0.0, 0.0], [4.0, 3.0], [4.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(oracles.geometric_median(square), [2, 1.5], atol=1e-12)
    # Four corners of a convex figure: where the diagonals cross.
    kite = np.array([[0.0, -1.0], [0.0, 5.0], [-2.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(oracles.geometric_median(kite), [0, 0], atol=1e-10)
    # An angle above 120 degrees: its vertex, a data point.
    flat = np.array([[-10.0, 1.0], [0.0, 0.0], [10.0, 1.0]])
    np.testing.assert_array_equal(oracles.geometric_median(flat), [0, 0])
    # Fermat's point of an equilateral triangle.
    triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    np.testing.assert_allclose(oracles.geometric_median(triangle), triangle.mean(axis=0), atol=1e-12)


def test_geometric_median_is_a_minimum() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = rng.normal(size=(7, 3))
        y = oracles.geometric_median(x)
        best = np.linalg.norm(x - y, axis=1).sum()
        for step in rng.normal(size=(20, 3)) * 1e-3:
            assert np.linalg.norm(x - y - step, axis=1).sum() >= best - 1e-14


def test_caf_rejects_an_outlier_exactly() -> None:
    # Values 0, 0, 0, 8 (f = 1): mean 2, tau 4, 4, 4, 36; c = 8/9, 8/9, 8/9, 0, sum 8/3 > 2: the mean 0, of variance 0.
    np.testing.assert_allclose(oracles.caf(column(0, 0, 8, 0), 1), [0], atol=1e-15)


def test_foolsgold_drops_sybils() -> None:
    honest = np.eye(3, 4)
    sybils = np.repeat([[0.0, 0.0, 0.0, 5.0]], 2, axis=0)
    x = np.concatenate([honest, sybils])
    np.testing.assert_allclose(oracles.foolsgold_weights(x), [1, 1, 1, 0, 0])
    np.testing.assert_allclose(oracles.foolsgold(x), honest.mean(axis=0))


def test_lasa_filters_by_norm_and_by_sign_per_layer() -> None:
    x = np.array([[1.0, 1.0], [1.1, 1.0], [1.0, 1.1], [1.05, 1.0], [-1.0, 1.0]])
    layers = [slice(0, 1), slice(1, 2)]
    out = oracles.lasa(x, 1, layers=layers, sparsity=0.0, lambda_norm=10.0)
    radius = np.median(np.linalg.norm(x, axis=1))
    clipped = oracles.clipped(x, float(radius))
    np.testing.assert_allclose(out, [clipped[:4, 0].mean(), clipped[:, 1].mean()])
    # Half the coordinates are zeroed: only the greatest of each vector remains.
    sparse = oracles.lasa(np.array([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0]]), 0, sparsity=0.5)
    np.testing.assert_allclose(sparse, [3, 0])


def test_clustering_matches_scipy() -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    rng = np.random.default_rng(2)
    for _ in range(20):
        x = rng.normal(size=(9, 4)) + 1.0
        clipped = oracles.clipped(x, float(np.median(np.linalg.norm(x, axis=1))))
        labels = hierarchy.fcluster(hierarchy.linkage(clipped, "average", metric="cosine"), 2, "maxclust")
        counts = np.bincount(labels)
        np.testing.assert_allclose(oracles.clipped_clustering(x), clipped[labels == counts.argmax()].mean(axis=0))


# ---------------------------------------------------------------------------------------------------------------------
# Laws
# ---------------------------------------------------------------------------------------------------------------------

ROUNDS = ([0, 1, 2], [1, 2, 3], [0, 2, 3])

# Every rule as a function of (x, f) and of a point that moves along with x (a previous aggregate, a pivot, a root).
RULES = {
    "average": lambda x, f, p: oracles.average(x),
    "krum": lambda x, f, p: oracles.krum(x, f),
    "krum-plain": lambda x, f, p: oracles.krum(x, f, neighbours="n-f-1", distance="plain"),
    "multi-krum": lambda x, f, p: oracles.multi_krum(x, f),
    "median": lambda x, f, p: oracles.median(x),
    "trimmed-mean": lambda x, f, p: oracles.trimmed_mean(x, f),
    "phocas": lambda x, f, p: oracles.phocas(x, f),
    "meamed": lambda x, f, p: oracles.meamed(x, f),
    "bulyan": lambda x, f, p: oracles.bulyan(x, f),
    "bulyan-frozen": lambda x, f, p: oracles.bulyan(x, f, selection="frozen"),
    "bulyan-multi-krum": lambda x, f, p: oracles.bulyan(x, f, base="multi-krum"),
    "bulyan-multi-krum-frozen": lambda x, f, p: oracles.bulyan(x, f, base="multi-krum", selection="frozen"),
    "mda": lambda x, f, p: oracles.mda(x, f),
    "cge": lambda x, f, p: oracles.cge(x, f),
    "aksel-mid": lambda x, f, p: oracles.aksel(x, f),
    "aksel-n-f": lambda x, f, p: oracles.aksel(x, f, mode="n-f"),
    "geometric-median": lambda x, f, p: oracles.geometric_median(x),
    "medoid": lambda x, f, p: oracles.medoid(x),
    "centered-clipping": lambda x, f, p: oracles.centered_clipping(x, tau=1.0, iterations=3, previous=p),
    "monna": lambda x, f, p: oracles.monna(x, f, pivot=p),
    "smea": lambda x, f, p: oracles.smea(x, f),
    "caf": lambda x, f, p: oracles.caf(x, f),
    "dnc": lambda x, f, p: oracles.dnc(x, f, coordinates=ROUNDS),
    "signguard": lambda x, f, p: oracles.signguard(x),
    "clipped-clustering": lambda x, f, p: oracles.clipped_clustering(x),
    "fltrust": lambda x, f, p: oracles.fltrust(x, f, root=p),
    "foolsgold": lambda x, f, p: oracles.foolsgold(x),
    "flame": lambda x, f, p: oracles.flame(x),
    "lasa": lambda x, f, p: oracles.lasa(x, sparsity=0.0),
}
ABOUT_THE_ORIGIN = {"cge", "signguard", "clipped-clustering", "fltrust", "foolsgold", "flame", "lasa"}
COORDINATE_WISE = {"average", "median", "trimmed-mean", "phocas", "meamed"}
NOT_ROTATING = COORDINATE_WISE - {"average"} | {name for name in RULES if name.startswith(("bulyan", "aksel"))}
NOT_ROTATING |= {"dnc", "signguard", "lasa"}
# With f = 0 nobody is suspect, so these keep everybody.
AVERAGE_WHEN_TRUSTING = {"average", "trimmed-mean", "phocas", "meamed", "bulyan", "bulyan-frozen", "mda", "cge"}
AVERAGE_WHEN_TRUSTING |= {"aksel-n-f", "monna", "smea", "caf", "dnc"}


@pytest.fixture(params=range(6))
def sample(request: pytest.FixtureRequest) -> tuple[np.ndarray, int, np.ndarray]:
    """Random vectors around a point away from the origin, some of them far off, as (x, f, point)."""
    rng = np.random.default_rng(request.param)
    n, f = ((11, 2), (8, 1), (7, 1))[request.param % 3]
    point = rng.normal(size=4)
    x = point + 0.7 * rng.normal(size=(n, 4))
    if request.param >= 3:
        x[0] -= 6
    return x, f, point + 0.1


@pytest.mark.parametrize("name", RULES)
def test_rules_ignore_the_order_of_vectors(name: str, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, f, point = sample
    order = np.random.default_rng(9).permutation(len(x))
    np.testing.assert_allclose(RULES[name](x[order], f, point), RULES[name](x, f, point), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_rules_leave_their_input_alone(name: str, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, f, point = sample
    before = x.copy()
    out = RULES[name](x, f, point)
    assert out.shape == (4,)
    assert not np.shares_memory(out, x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", sorted(set(RULES) - ABOUT_THE_ORIGIN))
def test_rules_follow_translations(name: str, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, f, point = sample
    shift = np.array([3.0, -1.0, 0.5, 2.0])
    moved = RULES[name](x + shift, f, point + shift)
    np.testing.assert_allclose(moved, RULES[name](x, f, point) + shift, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"centered-clipping"}))
def test_rules_follow_scale(name: str, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, f, point = sample
    np.testing.assert_allclose(RULES[name](4 * x, f, 4 * point), 4 * RULES[name](x, f, point), rtol=1e-8, atol=1e-8)


def test_centered_clipping_follows_scale_with_its_radius(sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, _, point = sample
    scaled = oracles.centered_clipping(4 * x, tau=4.0, iterations=3, previous=4 * point)
    np.testing.assert_allclose(scaled, 4 * oracles.centered_clipping(x, tau=1.0, iterations=3, previous=point))


@pytest.mark.parametrize("name", sorted(set(RULES) - NOT_ROTATING))
def test_rules_of_distances_follow_rotations(name: str, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, f, point = sample
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 4)))[0]
    np.testing.assert_allclose(
        RULES[name](x @ turn, f, point @ turn), RULES[name](x, f, point) @ turn, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("name", sorted(COORDINATE_WISE))
def test_coordinate_wise_rules_see_one_column_at_a_time(name: str, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, f, point = sample
    whole = RULES[name](x, f, point)
    for j in range(4):
        np.testing.assert_allclose(RULES[name](x[:, [j]], f, point[[j]]), whole[[j]], rtol=1e-13)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"foolsgold"}))
def test_rules_answer_what_everybody_says(name: str) -> None:
    vector = np.array([0.3, -2.0, 1.0, 5.0])
    np.testing.assert_allclose(RULES[name](np.tile(vector, (11, 1)), 2, vector), vector, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(AVERAGE_WHEN_TRUSTING))
def test_rules_average_when_nobody_is_suspect(name: str, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, _, point = sample
    np.testing.assert_allclose(RULES[name](x, 0, point), x.mean(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"average", "fltrust", "foolsgold", "centered-clipping", "lasa"}))
def test_robust_rules_follow_a_unanimous_majority(name: str) -> None:
    """All honest vectors equal: every robust rule answers them; DnC too, as the f others spread along one direction."""
    honest = np.tile([1.0, 2.0, -1.0, 0.5], (9, 1))
    x = np.concatenate([honest, [[-1e3, 50.0, 2.0, -8.0], [-1e3, 70.0, 4.0, -8.0]]])
    np.testing.assert_allclose(RULES[name](x, 2, honest[0] + 0.01), honest[0], rtol=1e-9)


def test_centered_clipping_moves_at_most_its_radius() -> None:
    x = np.random.default_rng(0).normal(size=(9, 4)) * 1e6
    start = np.ones(4)
    out = oracles.centered_clipping(x, tau=0.5, iterations=4, previous=start)
    assert np.linalg.norm(out - start) <= 4 * 0.5


# Rules whose answer to "n-f zeros, f ones" is 0, so that kappa is exactly the lower bound f/(n-2f) there.
EXACT = (
    "krum",
    "multi-krum",
    "median",
    "trimmed-mean",
    "phocas",
    "meamed",
    "mda",
    "geometric-median",
    "medoid",
    "smea",
)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (9, 3)])
def test_kappa_of_the_worst_case_of_the_lower_bound(name: str, n: int, f: int) -> None:
    x = np.repeat([[0.0], [1.0]], [n - f, f], axis=0)
    out = RULES[name](x, f, np.zeros(1))
    assert oracles.kappa_of(out, x, f) == pytest.approx(oracles.kappa_lower_bound(n, f), rel=1e-12)
    paid = float(((out - x.mean(axis=0)) ** 2).sum()) / float(x.var(axis=0).sum())
    assert paid == pytest.approx(oracles.price_of_f(n, f), rel=1e-12)


@pytest.mark.parametrize("name", ["krum", "trimmed-mean", "median", "geometric-median"])
@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (9, 3)])
def test_kappa_never_passes_the_published_bound(name: str, n: int, f: int) -> None:
    rng = np.random.default_rng(n)
    bound = oracles.kappa_bound(name, n, f)
    assert bound >= oracles.kappa_lower_bound(n, f)
    for trial in range(12):
        x = rng.normal(size=(n, 2))
        x[:f] = x[f:].mean(axis=0) + (trial - 6) * x[f:].std(axis=0)
        for pre, allowed in (
            (x, bound),
            (oracles.nnm(x, f), oracles.kappa_after_nnm(bound, n, f)),
            (oracles.arc(x, f), oracles.kappa_after_arc(bound, n, f)),
        ):
            assert oracles.kappa_of(RULES[name](pre, f, np.zeros(2)), x, f) <= allowed


def test_variance_bounds_are_those_of_the_papers() -> None:
    assert oracles.variance_bound("krum", 51, 24) ** 2 == pytest.approx(3.2e-5, rel=0.02)
    assert oracles.variance_bound("krum", 25, 5) ** 2 == pytest.approx(7.9e-3, rel=0.01)
    for n, f in ((11, 2), (25, 5), (25, 11), (51, 12), (51, 24), (7, 0)):
        eta = np.sqrt(2 * (n - f + (f * (n - f - 2) + f**2 * (n - f - 1)) / (n - 2 * f - 2)))
        assert oracles.variance_bound("krum", n, f) == pytest.approx(1 / eta, rel=1e-12)
    assert oracles.variance_bound("median", 25, 9) == 0.25
    assert oracles.variance_bound("mda", 12, 4) == pytest.approx(1 / np.sqrt(2))


# ---------------------------------------------------------------------------------------------------------------------
# Mixings
# ---------------------------------------------------------------------------------------------------------------------


def test_mixings_keep_what_they_should(sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    x, f, _ = sample
    n = len(x)
    np.testing.assert_allclose(oracles.nnm(x, 0), np.tile(x.mean(axis=0), (n, 1)))
    np.testing.assert_array_equal(oracles.arc(x, 0), x)
    np.testing.assert_array_equal(oracles.bucketing(x, 1, range(n)), x)
    assert len(oracles.bucketing(x, 3, range(n))) == -(-n // 3)
    order = np.random.default_rng(3).permutation(n)
    np.testing.assert_allclose(oracles.nnm(x[order], f), oracles.nnm(x, f)[order])
    np.testing.assert_allclose(oracles.arc(x[order], f), oracles.arc(x, f)[order])

    norms, after = np.linalg.norm(x, axis=1), np.linalg.norm(oracles.arc(x, f), axis=1)
    k = 2 * f * (n - f) // n
    assert (after < norms - 1e-12).sum() == k
    np.testing.assert_allclose(after.max(), np.sort(norms)[n - k - 1])


# ---------------------------------------------------------------------------------------------------------------------
# Attacks
# ---------------------------------------------------------------------------------------------------------------------

ATTACKS = {
    "little": oracles.little,
    "little-z": lambda honest, f: oracles.little(honest, f, factor=None),
    "empire": oracles.empire,
    "sign-flip": oracles.sign_flip,
    "zero": oracles.zero,
    "mimic": oracles.mimic,
    "anti-cge": oracles.anti_cge,
    "hidden-vulnerability": oracles.hidden_vulnerability,
    "min-max": oracles.min_max,
    "min-sum": oracles.min_sum,
    "rop": oracles.rop,
    "fang-krum": oracles.fang_krum,
    "fang-trimmed-mean": oracles.fang_trimmed_mean,
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("f", [0, 1, 3])
def test_attacks_send_f_vectors_and_leave_honest_ones_alone(name: str, f: int) -> None:
    honest = np.random.default_rng(f).normal(size=(8, 5)) + 0.3
    before = honest.copy()
    out = ATTACKS[name](honest, f)
    assert out.shape == (f, 5)
    assert np.isfinite(out).all()
    assert not np.shares_memory(out, honest)
    np.testing.assert_array_equal(honest, before)
    np.testing.assert_allclose(ATTACKS[name](honest[::-1], f), out, rtol=1e-9, atol=1e-12)


def test_little_factor_is_the_quantile() -> None:
    stats = pytest.importorskip("scipy.stats")
    # n = 50, f = 24: s = 2 supporters, z = Phi^-1(24/26), about 1.43.
    assert oracles.little_factor(50, 24) == pytest.approx(float(stats.norm.ppf(24 / 26)), rel=1e-9)
    assert oracles.little_factor(51, 24) == pytest.approx(float(stats.norm.ppf(25 / 27)), rel=1e-9)


@pytest.mark.parametrize("direction", ["std", "sign", "unit"])
def test_min_max_and_min_sum_go_as_far_as_allowed(direction: str) -> None:
    honest = np.random.default_rng(4).normal(size=(9, 6)) + 1
    between = oracles.squared_distances(honest)
    for attack, measure, allowed in (
        (oracles.min_max, np.max, between.max()),
        (oracles.min_sum, np.sum, between.sum(axis=1).max()),
    ):
        sent = attack(honest, 1, direction=direction)[0]
        mean = honest.mean(axis=0)
        assert measure(((honest - sent) ** 2).sum(axis=1)) == pytest.approx(allowed, rel=1e-9)
        further = mean + 1.001 * (sent - mean)
        assert measure(((honest - further) ** 2).sum(axis=1)) > allowed
        assert (sent - mean) @ oracles.perturbation(honest, direction) < 0


def test_targeted_attacks_reach_their_rule() -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        honest = rng.normal(size=(10, 5)) + 0.3
        sent = oracles.anti_cge(honest, 3)
        assert np.linalg.norm(sent[0]) < np.sort(np.linalg.norm(honest, axis=1))[7]
        kept = honest[np.argsort(np.linalg.norm(honest, axis=1))[:7]]
        expected = np.concatenate([kept, sent]).mean(axis=0)
        np.testing.assert_allclose(oracles.cge(np.concatenate([honest, sent]), 3), expected)

        crafted = oracles.fang_krum(honest, 3)
        np.testing.assert_array_equal(oracles.krum(np.concatenate([honest, crafted]), 3), crafted[0])
        np.testing.assert_array_equal(np.sign(crafted[0]), -np.sign(honest.mean(axis=0)))

        past = oracles.fang_trimmed_mean(honest, 3, uniform=rng.uniform(size=(3, 5)))
        assert ((past <= honest.min(axis=0)) | (past >= honest.max(axis=0))).all()
        pulled = oracles.trimmed_mean(np.concatenate([honest, past]), 3) - honest.mean(axis=0)
        assert (pulled * np.sign(honest.mean(axis=0)) < 0).all()

        assert any((oracles.mimic(honest, 2) == row).all() for row in honest)


def test_rop_is_orthogonal_to_the_running_mean() -> None:
    honest = np.random.default_rng(7).normal(size=(6, 5)) + 1
    before, last = np.full(5, 0.3), np.arange(5.0)
    u = oracles.rop_reference(honest, before)
    np.testing.assert_allclose(u, 0.9 * before + 0.1 * honest.mean(axis=0))
    sent = oracles.rop(honest, 1, z=2.0, reference=before, previous=last)[0] - last
    assert abs(sent @ u) < 1e-12
    assert np.linalg.norm(sent) == pytest.approx(2.0)
    # 270 degrees: against the coordinates' common direction.
    assert sent.sum() < 0
    along = oracles.rop(honest, 1, z=2.0, reference=before, previous=last, angle=180.0)[0] - last
    np.testing.assert_allclose(along, -2 * u / np.linalg.norm(u), atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Momentum
# ---------------------------------------------------------------------------------------------------------------------

PLACES = (oracles.sgd_server_momentum, oracles.sgd_worker_momentum, oracles.sgd_shared_momentum)


def quadratic(t: int, i: int, point: np.ndarray) -> np.ndarray:
    """Gradient of worker i on 1/2 ||A (theta - c_i)||^2, with noise that depends on the step."""
    noise = np.random.default_rng((t, i)).normal(size=2)
    return np.array([1.0, 3.0]) * (point - i) + noise


@pytest.mark.parametrize("simulate", PLACES)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [0.0, 0.4])
def test_average_does_not_see_where_momentum_stands(simulate: Callable, nesterov: bool, dampening: float) -> None:
    """Averaging commutes with momentum; for affine gradients it commutes with the look-ahead too."""
    settings = {"rule": oracles.average, "dampening": dampening, "nesterov": nesterov}
    expected = oracles.sgd_server_momentum(quadratic, 5, 0, [1.0, -2.0], [0.05] * 12, 0.8, **settings)
    actual = simulate(quadratic, 5, 0, [1.0, -2.0], [0.05] * 12, 0.8, **settings)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("attack", [oracles.little, oracles.empire])
@pytest.mark.parametrize("rule", [oracles.median, oracles.multi_krum])
def test_robust_rules_see_where_momentum_stands(rule: Callable, attack: Callable) -> None:
    a, b, c = (simulate(quadratic, 7, 2, [1.0, -2.0], [0.05] * 12, 0.8, rule, attack) for simulate in PLACES)
    assert np.abs(a[-1] - b[-1]).max() > 1e-3
    # Shared momentum adds beta G to every vector. Where rule and attack follow translations (Little does, Empire does
    # not), F(g_i + beta G) = F(g_i) + beta G: it is momentum at the server.
    if attack is oracles.little:
        np.testing.assert_allclose(c, a, rtol=1e-9)
    else:
        assert np.abs(a[-1] - c[-1]).max() > 1e-3


@pytest.mark.parametrize("simulate", PLACES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_without_momentum_all_is_plain_sgd(simulate: Callable, nesterov: bool) -> None:
    theta = np.array([1.0, -2.0])
    rows = [theta]
    for t in range(6):
        theta = theta - 0.1 * np.median([quadratic(t, i, theta) for i in range(5)], axis=0)
        rows.append(theta)
    actual = simulate(quadratic, 5, 0, rows[0], [0.1] * 6, 0.0, oracles.median, nesterov=nesterov)
    np.testing.assert_allclose(actual, rows, rtol=1e-12)


@pytest.mark.parametrize("simulate", PLACES)
def test_momentum_by_hand(simulate: Callable) -> None:
    """Gradient theta, lr 0.1, beta 0.5: m = 1, then 0.5 + 0.9 = 1.4; with the look-ahead at 0.9 - 0.05, 0.5 + 0.85."""

    def gradient(t: int, i: int, point: np.ndarray) -> np.ndarray:
        return point.copy()

    classical = simulate(gradient, 3, 0, [1.0], [0.1, 0.1], 0.5, oracles.average)
    np.testing.assert_allclose(classical.ravel(), [1, 0.9, 0.76])
    nesterov = simulate(gradient, 3, 0, [1.0], [0.1, 0.1], 0.5, oracles.average, nesterov=True)
    np.testing.assert_allclose(nesterov.ravel(), [1, 0.9, 0.765])
    # Dampening applies from the first step on: m = 0.75, then 0.375 + 0.75 * 0.925. (PyTorch's SGD spares the first.)
    damped = simulate(gradient, 3, 0, [1.0], [0.1, 0.1], 0.5, oracles.average, dampening=0.25)
    np.testing.assert_allclose(damped.ravel(), [1, 0.925, 0.925 - 0.1 * (0.375 + 0.75 * 0.925)])


def test_softmax_gradient_matches_finite_differences() -> None:
    rng = np.random.default_rng(8)
    x, y, theta = rng.normal(size=(6, 12)), rng.integers(0, 5, size=6), rng.normal(size=65) * 0.3

    def loss(parameters: np.ndarray) -> float:
        logits = x @ parameters[:60].reshape(5, 12).T + parameters[60:]
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), y]))

    steps = np.eye(65) * 1e-6
    numeric = [(loss(theta + step) - loss(theta - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(oracles.softmax_gradient(theta, x, y), numeric, atol=1e-8)


def test_clip_and_l2_conventions() -> None:
    gradient = np.array([3.0, 4.0])
    np.testing.assert_allclose(oracles.clip(gradient, 2.0), [1.2, 1.6])
    np.testing.assert_allclose(oracles.clip(gradient, 2.0, "unit"), [0.6, 0.8])
    np.testing.assert_array_equal(oracles.clip(gradient, 5.0, "unit"), gradient)
    np.testing.assert_array_equal(oracles.clip(gradient, None), gradient)
    np.testing.assert_allclose(oracles.l2_gradient(gradient, 0.1, "squared"), [0.3, 0.4])
    np.testing.assert_allclose(oracles.l2_gradient(gradient, 0.1, "norm"), [0.006, 0.008])
    np.testing.assert_array_equal(oracles.l2_gradient(np.zeros(2), 0.1, "norm"), [0, 0])


def test_no_oracle_imports_the_package() -> None:
    source = (golden.FOLDER.parent / "oracles.py").read_text()
    assert "import varangian" not in source
    assert "torch" not in source.replace("or torch", "")
