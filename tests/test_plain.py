"""The kernels in torch's operations: the answers of main memory, on a card without a wait and with few launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import varangian as vg
from contract import FLOATS, FUNCTIONS, cases, hostile, pictures
from pretended import CardTensor, PretendedCard
from test_layouts import layouts
from varangian.core import kernels
from varangian.core.kernels.runtime import _say_slow, has_float64

by_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)
# A single row or column, groups of four rows and the rest of one, and more rows than are sorted in registers.
SHAPES = [(1, 1), (2, 1), (1, 23), (3, 2), (5, 40), (11, 300), (25, 129), (64, 30), (65, 31), (129, 22)]


def test_every_implementation_has_every_function_of_the_contract() -> None:
    for module in (kernels, kernels.cpu, kernels.plain):
        assert [name for name in FUNCTIONS if not callable(getattr(module, name, None))] == []
    tried = {case.function for case in [*cases(5, 40, torch.float32), *pictures()]}
    assert tried == set(FUNCTIONS)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@by_dtype
def test_answers_are_those_of_main_memory(dtype: torch.dtype, n: int, d: int) -> None:
    for case in cases(n, d, dtype):
        case.check(case.run(kernels.plain), case.run(kernels.cpu))


def test_images_are_those_of_main_memory() -> None:
    for case in pictures():
        case.check(case.run(kernels.plain), case.run(kernels.cpu))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "dtype"), [(11, 40, torch.float32), (5, 23, torch.float64), (1, 1, torch.float32)])
@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")  # by the interpreter, which is NumPy
def test_so_are_those_of_the_kernels_for_cards(n: int, d: int, dtype: torch.dtype) -> None:
    """On a card, or without one in Triton's interpreter."""
    pytest.importorskip("triton", "3.5", reason="Triton 3.5 or later is not installed: make setup")
    from varangian.core.kernels import cuda

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for case in [*cases(n, d, dtype), *pictures()]:
        found = case.run(cuda, lambda x: x.to(device))
        case.check(tuple(t.cpu() for t in found), case.run(kernels.cpu))


@by_dtype
def test_whatever_the_layout(dtype: torch.dtype) -> None:
    names = [name for name, _ in layouts(torch.zeros(2, 2, dtype=dtype))]
    for number, name in enumerate(names):
        for case in cases(6, 41, dtype, lay=lambda x, at=number: list(layouts(x))[at][1]):
            found, expected = case.run(kernels.plain), case.run(kernels.cpu)
            case._replace(name=f"{case.name}, {name}").check(found, expected)
            assert not any(t.requires_grad for t in found), case.name


class Largest(TorchDispatchMode):
    """The most bytes that an operation made, and of float64."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple) else (out,):
            if isinstance(made, Tensor) and made.dtype in (torch.float64, torch.int64):
                self.wide = max(self.wide, made.untyped_storage().nbytes())
        return out


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_panel_by_panel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers, and never more than a panel of float64 (or of what is sorted) at hand."""
    n, d = 11, 900
    expected = [case.run(kernels.plain) for case in cases(n, d, dtype)]
    monkeypatch.setattr(kernels.plain, "NUMBERS", 1 << 10)
    for case, whole in zip(cases(n, d, dtype), expected, strict=True):
        with Largest() as largest:
            found = case.run(kernels.plain)
        case.check(found, whole)
        if dtype != torch.float64 and case.function not in ("weighted_panel",):
            row = 8 * d  # float64 and what a sort tells of a single row, where rows are ranked one by one
            assert largest.wide <= max(3 * 8 * (1 << 10), row + 64), case.name


# ----------------------------------------------------------------------------------------------------- on a card

# Launches of one panel, copies of weights and tables included; of what is told layer by layer, of three layers.
LAUNCHES = {
    "blend": 4, "column_statistic": 31, "compared": 12, "gather_images": 7, "inner_products": 12, "kept_mean": 35,
    "kept_of": 15, "kept_sums": 42, "mean_and_std": 10, "mixed_distances": 26, "norms": 4, "relations": 19,
    "send_rows": 34, "squared_around": 14, "squared_distances": 7, "squared_distances_to": 4, "squared_norms": 3,
    "statistic_weights": 49, "weighted_panel": 19, "weighted_rows": 21, "weighted_statistic": 82, "zeros_like_row": 1,
}  # fmt: skip
SCALED = {"mean_and_std": 24, "norms": 10, "send_rows": 69}  # of float64, whose squares may leave its range


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_on_a_card_nothing_waits_and_launches_are_few(dtype: torch.dtype) -> None:
    most = Counter[str]()
    for n, d in [(1, 1), (11, 70)]:
        for case in [*cases(n, d, dtype), *pictures()]:
            expected = case.run(kernels.plain)
            with PretendedCard() as card:
                found = case.run(kernels, CardTensor)
                assert all(isinstance(t, CardTensor) for t in found), case.name
                assert card.waits.total() == 0, (case.name, card)
                assert card.to_host == 0, case.name
                most[case.function] = max(most[case.function], card.launches.total())
                for one, other in zip(found, expected, strict=True):
                    held = one.held  # type: ignore[attr-defined]
                    assert torch.equal(held.nan_to_num(), other.nan_to_num()), case.name
    allowed = LAUNCHES | (SCALED if dtype == torch.float64 else {})
    assert {name: count for name, count in most.items() if count > allowed[name]} == {}


# ---------------------------------------------------------------------------------------- what is promised of each


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("d", [1, 8191, 8192, 8193, 20_000])
def test_distances_are_right_whatever_the_common_offset(d: int, offset: float) -> None:
    random = np.random.default_rng(d)
    x = torch.from_numpy((random.normal(size=(6, d)) * 1e-2 + offset * random.normal(size=d)).astype(np.float32))
    wide = np.concatenate([x.double().numpy(), np.zeros((1, d))])
    exact = np.square(wide[:, None] - wide[None]).sum(-1)
    np.testing.assert_allclose(kernels.plain.squared_distances(x).numpy(), exact, rtol=1e-12)
    halves = kernels.plain.squared_distances(x[:3], x[3:])
    np.testing.assert_allclose(halves.numpy(), exact, rtol=1e-12)


@by_dtype
def test_a_distance_does_not_depend_on_where_its_rows_stand(dtype: torch.dtype) -> None:
    for d in (7, 300, 8193):
        x = hostile(9, d, dtype)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(d))
        there = torch.cat([order, torch.tensor([9])])
        found, moved = kernels.plain.squared_distances(x), kernels.plain.squared_distances(x[order])
        assert torch.equal(moved.nan_to_num(-1), found[there][:, there].nan_to_num(-1))
        assert torch.equal(found.nan_to_num(-1), found.T.nan_to_num(-1))


def test_norms_and_moments_of_float64_out_of_range() -> None:
    for size in (1e300, 1e160, 1.0, 1e-160, 1e-300, 5e-324):
        x = torch.tensor([[3.0, 4.0, 0.0], [-3.0, 0.0, -4.0]], dtype=torch.float64) * size
        if size > 1e-320:
            torch.testing.assert_close(kernels.plain.norms(x) / size, torch.full((2,), 5.0, dtype=torch.float64))
            mean, std = kernels.plain.mean_and_std(x, 0)
            torch.testing.assert_close(mean / size, torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64))
            torch.testing.assert_close(std / size, torch.tensor([3.0, 2.0, 2.0], dtype=torch.float64))
        torch.testing.assert_close(kernels.plain.norms(x), kernels.cpu.norms(x), rtol=1e-15, atol=0)


def test_units_change_no_bit_of_ordinary_numbers() -> None:
    x = torch.randn(9, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    assert torch.equal(kernels.plain.norms(x), x.square().sum(-1).sqrt())
    mean, std = kernels.plain.mean_and_std(x)
    assert torch.equal(mean, x.sum(0) / 9)
    assert torch.equal(std, ((x - mean).square().sum(0) / 8).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_workers_send_has_the_bits_of_the_operations_one_by_one(dtype: torch.dtype) -> None:
    x, y, memory = (hostile(7, 90, dtype, seed=seed) for seed in range(3))
    scales = torch.linspace(0.1, 1, 7, dtype=torch.float64)
    out = memory.clone()
    first, second = kernels.plain.send_rows(
        x, 1e-4, y[0], scale=lambda norms: scales, keep=0.1, beta=0.9, memory=out, out=out, moments=True
    )
    sampled = (x + y[0] * torch.tensor(1e-4, dtype=dtype)) * scales.to(dtype)[:, None]
    sent = sampled * torch.tensor(0.1, dtype=dtype) + memory * torch.tensor(0.9, dtype=dtype)
    assert torch.equal(out.nan_to_num(), sent.nan_to_num())
    for found, rows in ((first, sampled), (second, sent)):
        assert found is not None
        for one, other in zip(found, kernels.plain.mean_and_std(rows), strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("n", [15, 32, 33, 51, 64, 65, 100])
@by_dtype
def test_no_sign_of_a_nan_puts_it_before_the_least(dtype: torch.dtype, n: int) -> None:
    """A card sorts many values by their bits: a NaN with a sign would come first, and move every rank."""
    x, f = torch.from_numpy(np.random.default_rng(n).normal(size=(n, 40))).to(dtype), n // 4
    signed = torch.full_like(x[: f - 2], np.nan).copysign(torch.tensor(-1.0))
    assert signed.isnan().all()
    assert signed.signbit().all()
    x[: f - 2], x[f - 2], x[f - 1] = signed, np.nan, -np.inf
    mixing = np.roll(np.eye(n), 1, axis=0) + np.eye(n)
    with PretendedCard():
        there = x.to("cuda:0")
        assert bool(there.sort(dim=0).values[0].isnan().all()) == (n > 32)  # as on a card
        for low, high, window in ((n // 2, n // 2 + 1, 0), (f, n - f, 0), (f, n - f, n - f), (n // 2, n // 2 + 1, 5)):
            for table in (None, mixing):
                found = [t.cpu() for t in kernels.plain.column_statistic(there, low, high, window, mixing=table)]
                wanted = kernels.cpu.column_statistic(x, low, high, window, mixing=table)
                torch.testing.assert_close(found, list(wanted), equal_nan=True, msg=f"{low} {high} {window} {table}")


def test_a_weight_of_zero_is_never_multiplied() -> None:
    """By neither of what stands in front of a row, nor behind it, whatever the others are given."""
    x = torch.tensor([[1.0], [np.nan], [np.inf], [-np.inf], [2.0]])
    table = np.array(
        [[1, 0, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, -1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], float
    )
    found = kernels.plain.weighted_rows(x, table)[:, 0].tolist()
    assert found[:2] == [3.0, np.inf]
    assert np.isnan(found[2])
    assert found[3] == -np.inf
    assert np.isnan(found[4])
    assert found[5] == 0
    assert [case for case in found if case == 3.0] == [kernels.plain.weighted_rows(x, table[0]).item()]


def test_mixtures_as_near_as_rounding_tells_are_equally_near() -> None:
    """Of tenths, whose sums are rounded: without a slack some windows lie elsewhere than in main memory."""
    for seed in range(200):
        random = np.random.default_rng(seed)
        x, table = torch.from_numpy(random.integers(-9, 10, (5, 1)) * 0.1), np.zeros((5, 5))
        for row in table:
            row[random.permutation(5)[:3]] = 1 / 3
        found, expected = (k.column_statistic(x, 1, 4, 3, mixing=table)[0] for k in (kernels.plain, kernels.cpu))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------- where there is no double precision


@pytest.fixture
def narrow() -> Iterator[PretendedCard]:
    """A pretended device like Apple's."""
    has_float64.cache_clear()
    _say_slow.cache_clear()
    with PretendedCard(torch.device("mps", 0)) as card:
        with pytest.raises(TypeError):
            torch.ones(2, device="mps:0").double()
        yield card
    has_float64.cache_clear()


def test_without_float64_rules_mixings_and_attacks_pass_through_main_memory(
    narrow: PretendedCard, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(11, 30, generator=torch.Generator().manual_seed(0))
    root = x.mean(0)
    calls: dict[str, Any] = {name: rule(f=2) for name, rule in vg.RULES.items()}
    calls |= {name: m(f=2) if "f" in m.__dataclass_fields__ else m() for name, m in vg.MIXINGS.items()}
    for name, call in calls.items():
        options = {"previous": root} if isinstance(call, vg.Rule) and call.needs_root else {}
        found = call(x.to("mps:0"), **{key: value.to("mps:0") for key, value in options.items()})
        assert found.device.type == "mps", name
        assert torch.equal(found.cpu(), call(x, **options)), name
    flipped = torch.linspace(-1, 1, 60).reshape(2, 30)
    for name, made in vg.ATTACKS.items():
        attack = made()
        options: dict[str, Any] = {"poisoned": flipped} if attack.poisons else {}
        options |= {"defence": vg.Median(f=2)} if attack.uses_defence else {}
        found = attack(x.to("mps:0"), 2, **options)
        assert found.device.type == "mps", name
        np.testing.assert_array_equal(found.cpu().numpy(), attack(x, 2, **options).numpy(), err_msg=name)
    assert [record.getMessage() for record in caplog.records if "mps" in record.getMessage()] == [
        "vectors on mps pass through main memory: it has no float64, in which sums are added up."
    ]


def test_without_float64_what_adds_up_is_refused_and_what_does_not_works(narrow: PretendedCard) -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    there = x.to("mps:0")
    assert torch.equal(kernels.blend(0.5, there, 2.0, there[0]).cpu(), kernels.blend(0.5, x, 2.0, x[0]))
    assert torch.equal(kernels.zeros_like_row(there).cpu(), torch.zeros(7))
    algorithm = vg.Algorithm(rule=vg.Median(f=1))
    with pytest.raises(ValueError, match=r"^vectors on mps cannot be added up there: it has no float64"):
        algorithm.aggregate(there, algorithm.init(5, 7, device=torch.device("mps:0")))


# ------------------------------------------------------------------------------------------------------ its callers


@pytest.mark.parametrize("layers", [(), (7, 300, 512, 900, 901)], ids=["one layer", "six layers"])
def test_lasa_waits_twice_however_many_layers(layers: tuple[int, ...]) -> None:
    """For the norms, and for what of each layer the host decides on."""
    rule = vg.LASA(f=2, layers=layers, sparsity=0.4)
    x = torch.randn(11, 1000, generator=torch.Generator().manual_seed(0)).mul_(4).round_()  # full of equal sizes
    x[3] = torch.nan
    with PretendedCard() as card:
        there = CardTensor(x.clone())
        found = rule(there)
        assert card.waits.total() <= 2, card
        assert card.to_host <= 8 * (11 + 3 * 6 * 11)
    torch.testing.assert_close(found.held, rule(x), rtol=1e-6, atol=0)  # type: ignore[attr-defined]
