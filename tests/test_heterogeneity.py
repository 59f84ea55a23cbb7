"""Who holds which data in a run, and G and B of the honest gradients: against definitions written out, and by hand."""

from __future__ import annotations

import copy
import csv
import json
import math
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import programs
import varangian as vg
from pretended import PretendedCard
from varangian.runs.building import build, open_dataset
from varangian.runs.holdings import Heterogeneity
from varangian.simulation import dissimilarity
from varangian.simulation.dissimilarity import Dissimilarity, LocalGradients, fit
from varangian.simulation.losses import CrossEntropy, OwnLoss, SquaredError
from varangian.study.report.holdings import report_holdings

SMALL = vg.Experiment(
    model="linear", rule="median", workers=9, byzantine=2, attack="empire", steps=12, evaluate_every=4,
    partition="dirichlet(alpha=0.2)", dtype="float64",
)  # fmt: skip


def dissimilarity_of(gradients: np.ndarray) -> tuple[float, float]:
    """(||mean||^2, (1/h) sum ||g_i - mean||^2), as they are written."""
    mean = gradients.mean(0)
    return float(mean @ mean), float(np.mean([(g - mean) @ (g - mean) for g in gradients]))


def gradients_of(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, parts: list[np.ndarray]) -> np.ndarray:
    """By plain autograd, a worker at a time on its whole part."""
    rows = []
    for part in parts:
        loss = functional.cross_entropy(model(inputs[part]), labels[part])
        found = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in found]).detach().double().numpy())
    return np.stack(rows)


@dataclass(frozen=True)
class Pieces:
    """The first workers have one, two, ... examples, the last the rest."""

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        ends = np.cumsum(np.arange(1, workers))
        return np.split(np.arange(len(labels)), ends)


# ------------------------------------------------------------------------------------------------- the gradients


@pytest.mark.parametrize("chunk", [1000, 7])
def test_local_gradients_are_those_of_plain_autograd(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dissimilarity, "CHUNK", chunk)
    digits = vg.DATASETS["digits"]()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).double()
    parts = Pieces()(digits.train.labels.numpy(), 10, 8, 1)
    local = LocalGradients(model, CrossEntropy(), digits, parts, dtype=torch.float64)
    found = local(local.gradients.parameters(), step=3)
    inputs = digits.train.inputs.double() / 16
    squared_norm, spread = dissimilarity_of(gradients_of(model, inputs, digits.train.labels, parts))
    assert found.step == 3
    assert found.squared_norm == pytest.approx(squared_norm, rel=1e-9)
    assert found.spread == pytest.approx(spread, rel=1e-9)
    assert found.ratio == pytest.approx(spread / squared_norm, rel=1e-9)


def test_points_and_buffers_are_those_that_are_handed_over() -> None:
    """In evaluation mode: running statistics of the run, and no dropout."""
    digits = vg.DATASETS["digits"]()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 10)).double()
    parts = [np.arange(100), np.arange(50, 400), np.arange(400, 403)]
    local = LocalGradients(copy.deepcopy(model), CrossEntropy(), digits, parts, dtype=torch.float64)
    torch.manual_seed(2)
    point = torch.randn(local.gradients.d, dtype=torch.float64) / 3
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    buffers["2.running_mean"] += 0.7
    buffers["2.running_var"] *= 3
    found = [local(point, buffers) for _ in range(2)]
    assert found[0] == found[1]
    model.load_state_dict(model.state_dict() | buffers)
    with torch.no_grad():
        nn.utils.vector_to_parameters(point, model.parameters())
    model.eval()
    inputs = digits.train.inputs.double() / 16
    squared_norm, spread = dissimilarity_of(gradients_of(model, inputs, digits.train.labels, parts))
    assert (found[0].squared_norm, found[0].spread) == pytest.approx((squared_norm, spread), rel=1e-9)


def test_chunks_count_by_what_counts_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that do not count, and a loss of one's own whose labels are negative numbers."""
    monkeypatch.setattr(dissimilarity, "CHUNK", 3)
    tokens = torch.randint(0, 5, (10, 4), generator=torch.Generator().manual_seed(1))
    labels = torch.where(tokens > 2, -100, tokens)
    data = vg.dataset((tokens, labels), (tokens, labels), classes=5)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).double()
    parts = [np.arange(10), np.arange(2, 9)]
    found = LocalGradients(model, CrossEntropy(), data, parts, dtype=torch.float64)
    rows = []
    for part in parts:
        loss = functional.cross_entropy(model(tokens[part]).flatten(0, 1), labels[part].flatten())
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    squared_norm, spread = dissimilarity_of(torch.stack(rows).numpy())
    measured = found(found.gradients.parameters())
    assert (measured.squared_norm, measured.spread) == pytest.approx((squared_norm, spread), rel=1e-9)

    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = -x.sum(1, keepdim=True) - 5
    data, model = vg.dataset((x, y), (x, y)), nn.Linear(3, 1).double()
    answers = []
    for loss in (SquaredError(), OwnLoss(functional.mse_loss)):
        local = LocalGradients(model, loss, data, parts, dtype=torch.float64)
        answers.append(local(local.gradients.parameters()))
    assert answers[0].spread > 0
    assert answers[1].spread == pytest.approx(answers[0].spread, rel=1e-9)
    assert answers[1].squared_norm == pytest.approx(answers[0].squared_norm, rel=1e-9)


def test_iid_workers_have_one_gradient_and_it_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    of = LocalGradients._of
    monkeypatch.setattr(LocalGradients, "_of", lambda self, part: calls.append(len(part)) or of(self, part))
    [point] = vg.heterogeneity(replace(SMALL, partition="iid")).points
    assert (point.spread, calls) == (0, [1297])
    assert point.squared_norm > 0


def test_samples_are_drawn_once_and_larger_ones_are_nearer() -> None:
    experiment = replace(SMALL, partition="iid", attack=None)
    found = {k: vg.heterogeneity(experiment, examples=k) for k in (20, 200, 5000)}
    again = vg.heterogeneity(experiment, examples=20)
    assert found[20].points == again.points
    assert found[20].points[0].spread > 3 * found[200].points[0].spread > 0  # the noise of the sample alone
    assert found[5000].points[0].spread == 0
    assert (found[20].sampled, vg.heterogeneity(experiment).sampled) == (20, None)


def test_heterogeneity_grows_as_the_partitions_say() -> None:
    def spread(partition: str) -> float:
        [point] = vg.heterogeneity(replace(SMALL, partition=partition, byzantine=0, attack=None)).points
        return point.spread

    dirichlet = [spread(f"dirichlet-mixture(alpha={a})") for a in (1e5, 5.0, 0.1)]
    similarity = [spread(f"similarity(gamma={g})") for g in (1, 0.5, 0)]
    assert dirichlet == sorted(dirichlet)
    assert similarity == sorted(similarity)
    assert spread("extreme") > 3 * spread("shards(per_worker=5)") > 0


# ------------------------------------------------------------------------------------------------------- the fit


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=12),
    st.sampled_from([1e-150, 1e-9, 1.0, 1e9, 1e150]),
)
def test_the_fit_is_the_least_of_all_that_are_allowed(pairs: list[tuple[float, float]], scale: float) -> None:
    found = fit([Dissimilarity(t, n * scale, s * scale) for t, (n, s) in enumerate(pairs)])
    assert found is not None
    n, s = np.array(pairs).T

    def error(a: float, b: float) -> float:
        return float(((s - a - b * n) ** 2).sum())

    a, b = found.G**2 / scale, found.B**2
    best = error(a, b)
    for da in np.linspace(-2, 2, 9):
        for db in np.linspace(-2, 2, 9):
            assert best <= error(max(a + da, 0), max(b + db, 0)) * (1 + 1e-9) + 1e-9
    above = found.G_above**2 / scale
    assert (s <= above + b * n + 1e-6 * (1 + above)).all()
    assert above >= a * (1 - 1e-9)
    assert found.points == len(pairs)


def test_fits_by_hand() -> None:
    line = fit([Dissimilarity(t, n, 9 + 4 * n) for t, n in enumerate((0.0, 1.0, 5.0))])
    assert line is not None
    assert (line.G, line.B, line.G_above) == pytest.approx((3, 2, 3))
    assert line.breakdown == pytest.approx(1 / 6)
    falling = fit([Dissimilarity(0, 1.0, 4.0), Dissimilarity(1, 2.0, 2.0)])  # B^2 would be negative
    assert falling is not None
    assert (falling.G, falling.B, falling.G_above) == pytest.approx((math.sqrt(3), 0, 2))
    below = fit([Dissimilarity(0, 1.0, 0.0), Dissimilarity(1, 2.0, 2.0)])  # G^2 would be
    assert below is not None
    assert pytest.approx((0, math.sqrt(4 / 5))) == (below.G, below.B)
    one = fit([Dissimilarity(7, 3.0, 4.0), Dissimilarity(9, math.nan, 1.0), Dissimilarity(9, 1.0, math.inf)])
    assert one is not None
    assert (one.G, one.B, one.points) == (2, 0, 1)
    assert fit([]) is None
    assert fit([Dissimilarity(0, math.nan, math.nan)]) is None
    assert [Dissimilarity(0, 0.0, s).ratio for s in (0.0, 1.0)] == [0, math.inf]


# ---------------------------------------------------------------------------------------------------- along a run


def test_along_a_run_it_is_that_run_at_its_evaluation_steps() -> None:
    found, run = vg.heterogeneity(SMALL, gradients="run"), vg.run(SMALL)
    assert [p.step for p in found.points] == [e.step for e in run.evaluations] == [0, 4, 8, 12]
    assert [e.values for e in found.evaluations] == [e.values for e in run.evaluations]
    data = open_dataset(SMALL)
    simulation, _ = build(SMALL, data)
    model, parts = simulation.gradients.model, simulation.batches.parts[: SMALL.honest]  # type: ignore[attr-defined]
    inputs = data.train.inputs.double() / 16
    for point in found.points:
        while simulation.steps_done < point.step:
            simulation.step()
        with torch.no_grad():
            nn.utils.vector_to_parameters(simulation.parameters.clone(), model.parameters())
        expected = dissimilarity_of(gradients_of(model, inputs, data.train.labels, parts))
        assert (point.squared_norm, point.spread) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gradients", ["start", "run"])
@pytest.mark.parametrize("model", ["fully-connected(hidden=16)", "cnn-small"])
def test_on_a_card_it_is_what_it_is_on_the_cpu(gradients: Any, model: str) -> None:
    shape = "(1,28,28)" if model == "cnn-small" else "(1,8,8)"
    e = vg.Experiment(
        dataset=f"synthetic(shape={shape},classes=4,train=60,test=12)", model=model, workers=7, byzantine=2,
        rule="median", attack="little", steps=3, evaluate_every=2, batch_size=5, partition="dirichlet(alpha=0.5)",
    )  # fmt: skip
    host = vg.heterogeneity(e, gradients=gradients)
    with PretendedCard():
        card = vg.heterogeneity(replace(e, device="cuda:0"), gradients=gradients)
    assert len(card.points) == len(host.points) == (1 if gradients == "start" else 3)
    for one, other in zip(card.points, host.points, strict=True):
        assert (one.squared_norm, one.spread) == pytest.approx((other.squared_norm, other.spread), rel=1e-3)
    assert (card.counts == host.counts).all()


def test_parts_are_those_of_the_run(tmp_path: Path) -> None:
    for settings_ in (
        {},
        {"validation": 0.2},
        {"attack": "label-flip", "partition": "classes"},
        {"partition": "iid"},
        {"profile": "published", "partition": "iid"},
        {"partition": "quantity(alpha=0.1)", "seed": 4},
        {"partition": "long-tail"},
    ):
        e = replace(SMALL, **settings_)  # type: ignore[arg-type]
        found = vg.heterogeneity(e, gradients="no")
        simulation, _ = build(e, open_dataset(e))
        sampler: Any = simulation.batches
        labels = sampler.examples.split.labels
        assert len(found.sizes) == (e.workers if e.attack == "label-flip" else e.honest) == sampler.h
        for i, part in enumerate(sampler.parts):
            assert found.sizes[i] == len(part) == found.counts[i].sum()
            assert found.counts[i].tolist() == np.bincount(labels[part], minlength=10).tolist()
            drawn = sampler(0).labels[i]
            assert set(drawn.tolist()) <= set(labels[part].tolist())
        assert found.total == len(labels)
        assert found.held == len(np.unique(np.concatenate(sampler.parts)))
        assert (found.points, found.fit) == ((), None)


def test_what_examples_are_told_apart_by() -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    e = replace(SMALL, loss="mse", partition="quantity", attack=None)
    found = vg.heterogeneity(e, dataset=((x, x[:, 0]), (x, x[:, 0])))
    assert (found.what, len(found.columns)) == ("range", 10)
    assert found.counts.sum(0).tolist() == [10] * 10
    assert found.columns[0].startswith("to -")
    several = vg.heterogeneity(e, dataset=((x, x[:, :2]), (x, x[:, :2])))
    assert (several.what, several.counts.sum()) == ("examples", 100)
    same = vg.heterogeneity(e, dataset=((x, torch.ones(100)), (x, torch.ones(100))))
    assert same.counts.sum() == 100
    tokens = torch.arange(80).reshape(20, 4) % 5
    labels = torch.where(tokens == 4, -100, tokens)
    of_tokens = vg.heterogeneity(
        replace(SMALL, partition="quantity", attack=None, dtype="float32"),
        dataset=((tokens, labels), (tokens, labels)), model=lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)),
    )  # fmt: skip
    assert (of_tokens.what, of_tokens.counts.sum(0).tolist()) == ("class of tokens", [16] * 4)
    with pytest.raises(ValueError, match="have numbers to predict: use iid or quantity"):
        vg.heterogeneity(replace(e, partition="shards"), dataset=((x, x[:, 0]), (x, x[:, 0])))


def test_refusals() -> None:
    with pytest.raises(ValueError, match='gradients must be "no", "start" or "run", got \'always\''):
        vg.heterogeneity(SMALL, gradients="always")  # type: ignore[arg-type]
    for examples in (0, 2.5, "all"):
        with pytest.raises(ValueError, match="examples must be a whole number >= 1 or None, got"):
            vg.heterogeneity(SMALL, examples=examples)  # type: ignore[arg-type]
    digits = vg.DATASETS["digits"]()
    with pytest.raises(ValueError, match="at least one worker, got none"):
        LocalGradients(nn.Linear(1, 1), CrossEntropy(), digits, [])


def test_a_run_that_diverges_is_told() -> None:
    found = vg.heterogeneity(
        replace(SMALL, attack="inf", rule="average", byzantine=0, real_byzantine=2), gradients="run"
    )
    assert found.stopped is not None
    assert found.fit is not None
    assert math.isfinite(found.fit.G)


# ------------------------------------------------------------------------------------------- the page, the command


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_and_its_tables_say_what_was_found(tmp_path: Path) -> None:
    found = vg.heterogeneity(replace(SMALL, attack="label-flip", partition="long-tail"), gradients="run")
    page = report_holdings(found, tmp_path, "varangian data --x '<b>'")
    text = page.read_text("utf-8")
    assert "&lt;b&gt;" in text
    assert "<b>'" not in text
    assert "Who holds what: long-tail" in text
    assert f"{found.total - found.held:,} of 1,297 training examples with nobody" in text
    table = rows(tmp_path / "holdings.csv")
    assert [int(row["examples"]) for row in table] == found.sizes.tolist()
    assert [[int(row[f"class {c}"]) for c in range(10)] for row in table] == found.counts.tolist()
    assert [row["honest"] for row in table] == ["yes"] * 7 + ["no"] * 2
    assert text.count("Byzantine</th>") == 2
    gradients = rows(tmp_path / "gradients.csv")
    assert [float(row["spread"]) for row in gradients] == pytest.approx([p.spread for p in found.points])
    assert [float(row["accuracy"]) for row in gradients] == pytest.approx([e.accuracy for e in found.evaluations])
    assert (tmp_path / "figures" / "gradients.png").read_bytes()[:4] == b"\x89PNG"
    report_holdings(vg.heterogeneity(SMALL, gradients="no"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.html", "figures", "holdings.csv"]
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["holdings.pdf", "holdings.png"]


def test_a_thousand_workers_and_two_hundred_fifty_columns(tmp_path: Path) -> None:
    counts = np.random.default_rng(1).integers(0, 2, (1000, 250)) * np.arange(250)
    names = tuple(map(str, range(250)))
    e = replace(SMALL, workers=1000, attack=None, byzantine=0)
    found = Heterogeneity(e, names, "class", counts, counts.sum(1), 1, 1, (Dissimilarity(0, 0.0, 1.0),))
    text = report_holdings(found, tmp_path).read_text("utf-8")
    assert "and 800 more workers and 50 more columns, in holdings.csv" in text
    assert len(rows(tmp_path / "holdings.csv")) == 1000
    assert len(text) < 4e6


def varangian(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return programs.run("-m", "varangian", "data", *arguments, cwd=folder)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\nclass Halves:\n    def __call__(self, labels, classes, workers, seed):\n"
        "        return [np.flatnonzero(labels % 2 == i % 2) for i in range(workers)]\n"
    )
    asked = ["--model", "linear", "--rule", "median", "--workers", "7"]
    done = varangian(tmp_path, *asked, "--partition", "mine.py:Halves", "--gradients", "run", "--steps", "4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    held = [[count > 0 for count in row] for row in found["counts"]]
    assert held == [[c % 2 == i % 2 for c in range(10)] for i in range(7)]
    assert found["honest"] == 7
    assert found["G_above"] >= found["G"]
    assert (tmp_path / found["page"]).exists()
    done = varangian(tmp_path, *asked, "--partition", "shards")
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()[2:9]]
    assert [int(row[0]) for row in table] == list(range(7))
    assert sum(int(row[1]) for row in table) == 1297
    assert all(sum(int(v) for v in row[2:] if v != "·") == int(row[1]) for row in table)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--partition", "shard"], "unknown partition 'shard'. Did you mean 'shards'?"),
        (["--partition", "classes(per_worker=0)"], "partition: Classes needs per_worker >= 1, got 0."),
        (["--partition", "shards", "--workers", "1000"], "1000 workers have 2000 shards, got 1297 examples."),
        (["--partition", "classes(per_worker=11)"], "needs as many classes as each worker is to hold, got 10."),
        (["--gradients", "sometimes"], "'sometimes' is not one of 'no', 'start', 'run'."),
        (["--examples", "0"], "0 is not in the range x>=1."),
        (["--config", "nothing.toml"], "'nothing.toml' does not exist."),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = varangian(tmp_path, "--rule", "median", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
