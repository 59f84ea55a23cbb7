"""The federated regime: who is in a round, local steps, and what absent clients remember."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import varangian as vg
from varangian.runs import folders
from varangian.runs.building import build, open_dataset, sampler_of
from varangian.simulation.clients import Bank, Population
from varangian.simulation.gradients import Batch, WorkerGradients
from varangian.simulation.metrics import COLUMNS, ROUND, WEIGHT
from varangian.simulation.simulate import Simulation
from varangian.study.report.holdings import report_holdings

FEW = {"rule": "median", "attack": "little", "steps": 12, "workers": 10, "byzantine": 3, "real_byzantine": 2}


def experiment(**settings: object) -> vg.Experiment:
    return vg.Experiment(**{**FEW, **settings})  # type: ignore[arg-type]


def quiet(e: vg.Experiment, **options: object) -> vg.Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vg.run(e, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- rounds


def test_a_round_is_drawn_uniformly_and_counts_are_hypergeometric() -> None:
    people, steps = Population(clients=30, workers=8, byzantine=9), 4000
    rounds = [people.round(3, step) for step in range(steps)]
    counts = np.zeros(30)
    attackers = np.zeros(9)
    for r in rounds:
        assert len(np.unique(r.clients)) == 8
        assert len(r.honest) >= 2
        counts[r.clients] += 1
        attackers[len(r.byzantine)] += 1
    assert abs(counts / steps - 8 / 30).max() < 5 * math.sqrt(8 / 30 * 22 / 30 / steps)
    for k, p in people.chances().items():
        assert abs(attackers[k] / steps - p) < 5 * math.sqrt(p / steps) + 1e-9
        exact = math.comb(9, k) * math.comb(21, 8 - k) / math.comb(30, 8)
        assert p == pytest.approx(exact, rel=1e-3)  # rounds with too few honest workers are drawn again


def test_the_pool_stays_or_changes_when_it_should() -> None:
    still, moving = Population(50, 50, 10), Population(50, 50, 10, changes=4)
    assert all(np.array_equal(still.pool(1, 0), still.pool(1, step)) for step in range(20))
    assert np.array_equal(moving.pool(1, 0), moving.pool(1, 3))
    assert not np.array_equal(moving.pool(1, 3), moving.pool(1, 4))
    assert not np.array_equal(still.pool(1, 0), still.pool(2, 0))
    for step in range(8):
        assert np.array_equal(moving.round(1, step).byzantine, moving.pool(1, step))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clients": 3, "workers": 4}, "workers of at most clients = 3"),
        ({"clients": 4, "workers": 4, "byzantine": 3}, "at least 2 clients that are honest"),
        ({"clients": 1, "workers": 1, "byzantine": 1}, "at least 1 clients that are honest"),
        ({"clients": 4, "workers": 2, "byzantine": -1}, "byzantine"),
        ({"clients": 4, "workers": 2, "changes": -1}, "changes"),
    ],
)
def test_populations_that_cannot_be(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Population(**settings)


def test_how_often_there_are_more_than_f() -> None:
    people = Population(1000, 20, 200)
    total = sum(math.comb(200, k) * math.comb(800, 20 - k) for k in range(5, 19)) / math.comb(1000, 20)
    assert people.exceeding(4) == pytest.approx(total, rel=1e-6)
    assert people.exceeding(20) == 0
    assert Population(20, 20, 4).exceeding(4) == 0
    assert Population(20, 20, 5).exceeding(4) == 1


# --------------------------------------------------------------------------------------------------------------- bank


@pytest.mark.parametrize("absent", ["kept", "kept-on-disk", "decayed", "dropped"])
def test_what_becomes_of_momenta_follows_its_definition(absent: str) -> None:
    random, people = np.random.default_rng(0), Population(12, 4)
    bank = Bank(5, 4, absent, decay=0.5, stages=2, dtype=torch.float64)  # type: ignore[arg-type]
    kept: dict[int, list[torch.Tensor]] = {}
    last: dict[int, int] = {}
    for step in range(60):
        clients = people.round(1, step).honest
        out = [torch.full((4, 5), math.nan, dtype=torch.float64) for _ in range(2)]
        bank.take(clients, step, out)
        for i, c in enumerate(clients):
            for stage in range(2):
                wanted = torch.zeros(5, dtype=torch.float64)
                if int(c) in kept:
                    missed = step - last[int(c)] - 1
                    factor = {"decayed": 0.5**missed, "dropped": float(missed == 0)}.get(absent, 1.0)
                    wanted = factor * kept[int(c)][stage]
                assert (out[stage][i] - wanted).abs().max() <= 2.0**-50 * 10
        momenta = [torch.from_numpy(random.normal(size=(4, 5))) for _ in range(2)]
        bank.keep(clients, step, momenta)
        for i, c in enumerate(clients):
            kept[int(c)], last[int(c)] = [m[i].clone() for m in momenta], step
        if absent == "dropped":
            assert sorted(bank.rows) == clients.tolist()
    assert (len(bank.rows) == 12) == (absent != "dropped")


def test_a_decayed_momentum_is_forgotten_once_it_is_less_than_a_rounding_error() -> None:
    bank = Bank(3, 2, "decayed", decay=0.9, stages=1, dtype=torch.float32)
    bank.keep(np.array([0, 1]), 0, [torch.ones(2, 3)])
    after = int(bank.forgets_after)
    assert 0.9 ** (after - 1) > torch.finfo(torch.float32).eps >= 0.9**after
    out = torch.empty(1, 3)
    bank.keep(np.array([1]), after, [torch.ones(1, 3)])
    bank.take(np.array([0]), after + 1, [out])
    assert 0 in bank.rows
    assert out.min() > 0
    bank.keep(np.array([1]), after + 1, [torch.ones(1, 3)])
    bank.take(np.array([0]), after + 2, [out])
    assert 0 not in bank.rows
    assert out.max() == 0


def test_a_bank_goes_on_from_its_state_and_refuses_others() -> None:
    bank = Bank(3, 2, "kept", decay=0.9, stages=1, dtype=torch.float32)
    bank.keep(np.array([4, 7]), 5, [torch.arange(6.0).reshape(2, 3)])
    other = Bank(3, 2, "kept", decay=0.9, stages=1, dtype=torch.float32)
    other.keep(np.array([1, 2]), 0, [torch.ones(2, 3)])
    other.restore(bank.state(), 10, 6)
    assert all(torch.equal(a, b) for a, b in zip(bank.state(), other.state(), strict=True))
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(bank.state(), other.state(), strict=True))
    numbers, since, *momenta = bank.state()
    for wrong in (
        (numbers,),
        (numbers, since),
        (numbers.double(), since, *momenta),
        (numbers.flip(0), since, *momenta),
        (numbers + 5, since, *momenta),
        (numbers, since + 2, *momenta),
        (numbers, since, *(m.double() for m in momenta)),
        (numbers, since, *momenta, momenta[0]),
        "nothing",
    ):
        with pytest.raises(ValueError, match=r"^clients: "):
            other.restore(wrong, 10, 6)  # type: ignore[arg-type]
        assert len(other.rows) == 2


# ------------------------------------------------------------------------------------------------- against definitions


def quadratic(clients: int, d: int = 4, h: int | None = None) -> tuple[WorkerGradients, list[torch.Tensor]]:
    """A linear model and, of each client, what it learns: gradients are known by hand."""
    model = torch.nn.Linear(d, 2, bias=False).double()
    random = torch.Generator().manual_seed(0)
    return WorkerGradients(model), [torch.randn(1, d, generator=random).double() for _ in range(clients)]


@pytest.mark.parametrize("absent", ["kept", "decayed", "dropped"])
@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("place", ["worker", "server"])
def test_rounds_follow_their_definition(absent: str, local_steps: int, place: str) -> None:
    gradients, data = quadratic(clients=9)
    people, lr, l2, limit, mu = Population(9, 4, 2), 0.05, 0.1, 0.5, 0.8
    labels = [c % 2 for c in range(9)]

    def batches(draw: int, clients: np.ndarray) -> Batch:
        inputs = torch.stack([data[c] * (1 + draw % 3) for c in clients])
        return Batch(inputs, torch.tensor([[labels[c]] for c in clients]))

    momentum = vg.Momentum(mu)
    stages = ((vg.Clip(limit), momentum), ()) if place == "worker" else ((vg.Clip(limit),), (momentum,))
    algorithm = vg.Algorithm(stages[0], (), vg.Median(f=1), stages[1])
    attack = vg.Empire()
    simulation = Simulation(
        gradients, batches, algorithm, 4, attack=attack, learning_rate=lambda step: lr, l2=l2, seed=5,  # type: ignore[arg-type]
        population=people, absent=absent, local_steps=local_steps,  # type: ignore[arg-type]
    )  # fmt: skip

    theta = simulation.parameters.clone()
    kept: dict[int, torch.Tensor] = {}
    last: dict[int, int] = {}
    server = torch.zeros_like(theta)

    def gradient(point: torch.Tensor, client: int, draw: int) -> torch.Tensor:
        w = point.reshape(2, 4).clone().requires_grad_()
        x = data[client] * (1 + draw % 3)
        loss = torch.nn.functional.cross_entropy(x @ w.T, torch.tensor([labels[client]]))
        g = torch.autograd.grad(loss, w)[0].reshape(-1) + l2 * point
        return g * min(1.0, limit / float(g.norm()))

    for step in range(12):
        honest, byzantine = people.round(5, step)
        rows = []
        for c in map(int, honest):
            here, total = theta.clone(), torch.zeros_like(theta)
            for e in range(local_steps):
                total = total + gradient(here, c, step * local_steps + e)
                here = theta - lr * total
            if place == "worker":
                missed = step - last.get(c, step - 1) - 1
                factor = {"kept": 1.0, "decayed": mu**missed, "dropped": float(missed == 0)}[absent]
                total = total + mu * factor * kept.get(c, torch.zeros_like(total))
                kept[c], last[c] = total, step
            rows.append(total)
        vectors = torch.stack(rows)
        if len(byzantine):
            crafted = attack(vectors, f=len(byzantine))
            vectors = torch.cat([vectors, crafted])
        server = (mu * server if place == "server" else 0) + vg.Median(f=1)(vectors)
        theta = theta - lr * server
        measures = simulation.step()
        assert measures.attackers == len(byzantine)
        assert measures.points == sum(len(people.round(5, s).honest) * local_steps for s in range(step))
        assert (simulation.parameters - theta).abs().max() < 1e-12


# --------------------------------------------------------------------------------------------------------------- runs


def test_all_clients_and_one_step_is_the_run_of_always(tmp_path: Path) -> None:
    plain = experiment()
    said = experiment(clients=10, absent="kept", attackers_change=0, local_steps=1)
    assert said == plain
    assert said.digest == plain.digest
    assert said.name == plain.name
    assert "clients" not in plain.to_dict()
    assert plain.population() is None


def everybody() -> list[dict[str, object]]:
    return [
        {"clients": 40},
        {"clients": 40, "absent": "kept-on-disk"},
        {"clients": 40, "absent": "decayed", "momentum": 0.5},
        {"clients": 40, "absent": "dropped", "local_steps": 2},
        {"clients": 40, "attack": "label-flip", "real_byzantine": 3},
        {"clients": 40, "knowledge": "own", "attack": "empire"},
        {"clients": 40, "knowledge": "last-round"},
        {"clients": 40, "attack": "rop(history=own)"},
        {"attackers_change": 3},
        {"clients": 40, "attackers_change": 2, "momentum_at": "shared"},
        {"local_steps": 3, "momentum_at": "adaptive"},
        {"clients": 40, "partition": "dirichlet(alpha=0.3)", "momentum_at": "server", "local_steps": 2},
    ]


@pytest.mark.parametrize("settings", everybody(), ids=str)
def test_a_run_goes_on_byte_for_byte(settings: dict[str, object], tmp_path: Path) -> None:
    e = experiment(**settings)
    whole = quiet(e, out=tmp_path / "whole")

    class Stop(KeyboardInterrupt):
        pass

    def stop(step: int, newest: object) -> None:
        if step in (5, 6, 9):
            seen.add(step)
            if len(seen) > stops[0]:
                stops[0] += 1
                raise Stop

    seen: set[int] = set()
    stops = [0]
    for _ in range(4):
        try:
            quiet(e, out=tmp_path / "torn", progress=stop, checkpoint_every=0)
        except Stop:
            continue
    assert stops[0] >= 2
    one, other = whole.folder, tmp_path / "torn" / whole.folder.name  # type: ignore[union-attr]
    assert one is not None
    for name in (folders.METRICS, folders.EVALUATIONS):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    models = [torch.cat([p.reshape(-1) for p in vg.load_model(f).parameters()]) for f in (one, other)]
    assert torch.equal(*models)
    header = (one / folders.METRICS).read_text().split("\n")[0].split(",")
    if e.population() is not None:
        assert header == [*COLUMNS, *ROUND]


def test_memory_is_that_of_the_policy() -> None:
    remembering = {
        absent: [m.remembering for m in quiet(experiment(clients=200, steps=40, absent=absent)).measures]
        for absent in ("kept", "kept-on-disk", "decayed", "dropped")
    }
    assert remembering["kept"] == remembering["kept-on-disk"]
    assert remembering["kept"][0] == 0
    assert remembering["kept"][-1] > 100  # type: ignore[operator]
    assert max(remembering["dropped"]) <= 10  # type: ignore[type-var]
    assert {m.remembering for m in quiet(experiment(clients=30, momentum_at="server")).measures} == {0}


def test_on_disk_or_in_memory_the_numbers_are_the_same() -> None:
    one, other = (quiet(experiment(clients=60, absent=a, steps=25)) for a in ("kept", "kept-on-disk"))
    assert one.measures == other.measures
    assert [x.values for x in one.evaluations] == [x.values for x in other.evaluations]


def test_who_attacks_changes_nothing_for_those_who_learn_from_other_clients() -> None:
    """Without an attack everybody is honest, and no pool is drawn from."""
    result = quiet(experiment(clients=30, attack=None, real_byzantine=None))
    assert {m.attackers for m in result.measures} == {0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clients": 9}, "clients: 10 workers are drawn of them for each step, got 9"),
        ({"clients": 0}, "clients: "),
        ({"clients": 2.5}, "clients: "),
        ({"clients": 20, "profile": "published"}, "clients: in the published profile"),
        ({"local_steps": 2, "profile": "published"}, "local_steps: in the published profile"),
        ({"local_steps": 2, "nesterov": True}, "nesterov: "),
        ({"local_steps": 0}, "local_steps: "),
        ({"clients": 20, "momentum_at": "adaptive"}, "momentum_at: adaptive compares"),
        ({"attackers_change": 2, "momentum_at": "adaptive"}, "with attackers_change"),
        ({"absent": "forgotten"}, "absent: "),
        ({"clients": 20, "attack": "mimic(warmup=4)"}, "attack: mimic(warmup=4) goes by the same workers"),
        ({"attackers_change": 2, "attack": 'scattered(attack="mimic(warmup=4)")'}, "goes by the same workers"),
        ({"attackers_change": -1}, "attackers_change: "),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, object], said: str) -> None:
    with pytest.raises(vg.ConfigurationError) as error:
        experiment(**settings)
    assert any(fault.startswith(said) or said in fault for fault in error.value.faults), error.value.faults


def test_rounds_with_more_attackers_than_tolerated_are_told_beforehand() -> None:
    with pytest.warns(UserWarning, match=r"of 100 clients 30 attack, so that in \d+\.\d% of the steps more than"):
        vg.run(experiment(clients=100, real_byzantine=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vg.run(experiment(clients=100, real_byzantine=None, attack=None))
        vg.run(experiment(attackers_change=3))  # always as many


def test_rounds_without_an_attack_send_zeros_and_say_so() -> None:
    e = experiment(clients=40, knowledge="own", steps=6)
    with pytest.warns(UserWarning, match="there is no attack, and zeros are sent: Little needs at least 2"):
        result = vg.run(e)
    people = e.population()
    assert people is not None
    norms = {len(people.round(e.seed, m.step).byzantine): m.attack_norm for m in result.measures}
    assert norms[1] == 0
    assert norms[2] != 0


def test_a_population_needs_its_own_workers() -> None:
    gradients, _ = quadratic(4)
    algorithm = vg.Algorithm(rule=vg.Median(f=1))
    with pytest.raises(ValueError, match="workers must be 3"):
        Simulation(gradients, lambda step: None, algorithm, 4, population=Population(9, 3))  # type: ignore[arg-type,return-value]
    nesterov = vg.Algorithm((vg.Momentum(0.9, nesterov=True),), (), vg.Median(f=1))
    with pytest.raises(ValueError, match="Nesterov"):
        Simulation(gradients, lambda step: None, nesterov, 4, local_steps=2)  # type: ignore[arg-type,return-value]


def test_a_snapshot_of_a_run_without_clients_does_not_fit() -> None:
    gradients, data = quadratic(9)

    def batches(draw: int, clients: np.ndarray | None = None) -> Batch:
        chosen = range(4) if clients is None else clients
        return Batch(torch.stack([data[c] for c in chosen]), torch.tensor([[0]] * len(list(chosen))))

    algorithm = vg.Algorithm((vg.Momentum(0.9),), (), vg.Median(f=1))
    federated = Simulation(gradients, batches, algorithm, 4, population=Population(9, 4))
    plain = Simulation(gradients, batches, algorithm, 4)
    for s in (federated, plain):
        s.step()
    with pytest.raises(ValueError, match="momenta are needed"):
        plain.restore(federated.snapshot())
    with pytest.raises(ValueError, match="momenta are needed"):
        federated.restore(plain.snapshot())
    with pytest.raises(ValueError, match="clients: "):
        federated.restore(replace(federated.snapshot(), clients=None))


def test_of_very_many_clients_a_round_is_drawn_as_fast() -> None:
    """The pool is drawn once for all the rounds that it attacks in."""
    people = Population(10**6, 20, 10**5)
    assert people.pool(1, 0) is people.pool(1, 7)
    assert not people.pool(1, 0).flags.writeable
    drawn = people.round(1, 3)
    assert np.array_equal(drawn.byzantine, np.intersect1d(drawn.clients, people.pool(1, 3)))


def test_what_is_dropped_is_not_kept_until_then() -> None:
    """Who is not in the next round forgets at once, which changes no number."""
    bank = Bank(3, 2, "dropped", decay=0.9, stages=1, dtype=torch.float32)
    bank.keep(np.array([4, 7, 1]), 5, [torch.arange(9.0).reshape(3, 3)], np.array([0, 1, 7]))
    assert sorted(bank.rows) == [1, 7]
    out = torch.full((2, 3), math.nan)
    bank.take(np.array([1, 4]), 6, [out])
    assert out.tolist() == [[6.0, 7.0, 8.0], [0.0, 0.0, 0.0]]


def test_a_step_done_again_takes_momenta_as_they_are() -> None:
    bank = Bank(3, 2, "decayed", decay=0.5, stages=1, dtype=torch.float32)
    bank.keep(np.array([4]), 5, [torch.ones(1, 3)])
    out = torch.empty(1, 3)
    bank.take(np.array([4]), 5, [out])
    assert out.tolist() == [[1.0, 1.0, 1.0]]
    bank.restore(tuple(x.clone() for x in bank.state()), 10, 5)


def test_a_full_disk_is_an_error_and_no_end_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    bank = Bank(3, 2, "kept-on-disk", decay=0.5, stages=1, dtype=torch.float32)
    with pytest.raises(OSError, match=r"no more fit there \(No space left on device\); name another folder in TMPDIR"):
        bank.keep(np.array([4]), 5, [torch.ones(1, 3)])


def test_without_a_folder_for_temporary_files_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", none)
    with pytest.raises(OSError, match="there is no folder for temporary files"):
        Bank(3, 2, "kept-on-disk", decay=0.5, stages=1, dtype=torch.float32)
    Bank(3, 2, "kept-on-disk", decay=0.5, stages=0, dtype=torch.float32)  # which remembers nothing


def test_a_replay_says_whose_the_vectors_are(tmp_path: Path) -> None:
    e = experiment(clients=40, steps=8)
    kept = quiet(e, out=tmp_path)
    assert kept.folder is not None
    people = e.population()
    assert people is not None
    rounds = [people.round(e.seed, step) for step in range(8)]
    step = next(i for i, r in enumerate(rounds) if len(r.byzantine) not in (0, 2))
    again = vg.replay(kept.folder, step)
    h = len(rounds[step].honest)
    assert again.agrees
    assert again.honest == h
    text = str(again).split("\n")[0]
    assert f"vectors 0 to {h - 1} are honest, {h} to 9 are of little" in text
    assert f"of clients {', '.join(map(str, rounds[step].clients.tolist()))};" in text
    changing = quiet(experiment(attackers_change=2, steps=4), out=tmp_path)
    assert changing.folder is not None
    assert "in this order, of workers " in str(vg.replay(changing.folder, 3))


@pytest.mark.parametrize("change", [0, 2])
def test_who_holds_what_is_told_of_all_clients(change: int, tmp_path: Path) -> None:
    e = experiment(clients=40, attackers_change=change, partition="dirichlet(alpha=0.3)")
    found = vg.heterogeneity(e, gradients="start")
    people = e.population()
    assert people is not None
    assert len(found.sizes) == 40
    assert found.sizes.sum() == found.held
    pool = [] if change else people.pool(e.seed, 0).tolist()
    assert np.flatnonzero(found.attacks).tolist() == pool
    assert found.honest == 40 - len(pool)
    assert f"{found.honest} honest clients with" in str(found)
    page = report_holdings(found, tmp_path)
    assert "client" in page.read_text()
    rows = (tmp_path / "holdings.csv").read_text().splitlines()
    assert rows[0].startswith("client,honest,")
    assert [i for i, row in enumerate(rows[1:]) if row.split(",")[1] == "no"] == pool


# ------------------------------------------------------------------------------------------------------------ weights

HEAVY = {"weighting": "size", "cap": 1.5, "partition": "quantity(alpha=1.0)"}


def test_weights_are_those_of_the_clients_in_the_round() -> None:
    e = experiment(clients=40, **HEAVY)
    dataset = open_dataset(e)
    simulation, _ = build(e, dataset)
    people = e.population()
    assert people is not None
    sizes = [len(part) for part in sampler_of(e, dataset)[0].parts]
    for step in range(6):
        r = people.round(e.seed, step)
        held = [sizes[c] for c in r.honest]
        wanted = vg.size_weights([*held, *[max(held)] * len(r.byzantine)], cap=1.5)
        measures = simulation.step()
        assert simulation.weights is not None
        assert np.array_equal(simulation.weights, wanted)
        assert measures.byzantine_weight == wanted[len(held) :].sum() / wanted.sum()
        assert measures.columns == [*COLUMNS, *ROUND, *WEIGHT]


def test_the_server_weighs_what_workers_send() -> None:
    """Of a mean without momentum the parameters are those of the data, as by hand."""
    gradients, data = quadratic(4)
    sizes = np.array([10, 20, 30, 40])

    def batches(draw: int) -> Batch:
        return Batch(torch.stack(data), torch.tensor([[0], [1], [0], [1]]))

    s = Simulation(gradients, batches, vg.Algorithm(rule=vg.Average()), 4, sizes=sizes)
    theta = s.parameters.clone()
    row = s.step()
    wanted = (torch.from_numpy(sizes / 25.0)[:, None] * s.vectors).mean(0)
    assert (theta - 0.1 * wanted - s.parameters).abs().max() < 1e-15
    assert row.byzantine_weight == 0


def test_equal_sizes_are_no_weights(tmp_path: Path) -> None:
    plain, weighed = quiet(experiment()), quiet(experiment(weighting="size"), out=tmp_path)
    assert [x.values for x in plain.evaluations] == [x.values for x in weighed.evaluations]
    assert {m.byzantine_weight for m in weighed.measures} == {0.2}
    assert weighed.folder is not None
    again = vg.replay(weighed.folder, 3)
    assert again.agrees
    assert vg.Experiment.from_json(weighed.experiment.to_json()) == weighed.experiment
    assert vg.Experiment.from_toml(weighed.experiment.to_toml()) == weighed.experiment


def test_runs_with_weights_go_on_and_are_replayed(tmp_path: Path) -> None:
    for settings in (HEAVY, {**HEAVY, "clients": 40}, {**HEAVY, "attack": "worst-case", "steps": 3}):
        kept = quiet(experiment(**settings), out=tmp_path)
        assert kept.folder is not None
        assert kept.stopped is None
        assert vg.replay(kept.folder, 2).agrees


def test_an_attack_that_tries_the_defence_tries_it_with_weights() -> None:
    tried: list[np.ndarray | None] = []

    class Trying(vg.Attack):
        def craft(self, seen: vg.Knowledge) -> torch.Tensor:
            tried.append(seen.defence.weights)  # type: ignore[union-attr]
            return -seen.mean

    gradients, data = quadratic(4)

    def batches(draw: int) -> Batch:
        return Batch(torch.stack(data[:3]), torch.tensor([[0], [1], [0]]))

    algorithm, sizes = vg.Algorithm(rule=vg.Median(f=1)), np.array([10, 15, 20])
    s = Simulation(gradients, batches, algorithm, 4, real_byzantine=1, attack=Trying(), sizes=sizes)
    s.step()
    assert tried[0] is not None
    assert np.allclose(tried[0], vg.size_weights([10, 15, 20, 20]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cap": 2}, "cap: it limits weights by size, and weighting is equal"),
        ({"weighting": "size", "cap": 0.5}, "cap: "),
        ({"weighting": "size", "rule": "dnc"}, "weighting: DivideAndConquer"),
        ({"weighting": "size", "pre": "nnm"}, "takes no weights of workers"),
        ({"weighting": "size", "profile": "published"}, "weighting: in the published profile"),
        ({"weighting": "size", "momentum_at": "adaptive"}, "weighting: momentum_at adaptive"),
    ],
)
def test_weights_that_cannot_be_are_said(settings: dict[str, object], said: str) -> None:
    with pytest.raises(vg.ConfigurationError) as error:
        experiment(**settings)
    assert any(said in fault for fault in error.value.faults), error.value.faults


def test_weights_that_are_too_much_for_the_rule_are_said_before_a_run() -> None:
    with pytest.raises(ValueError, match=r"^weighting: Median\(f=3\) tolerates less than .* lower cap\.$"):
        quiet(experiment(weighting="size", partition="quantity(alpha=0.3)"))
    with pytest.raises(ValueError, match=r"^weighting: in step \d+ Median.* lower cap\.$"):
        quiet(experiment(weighting="size", partition="quantity(alpha=0.3)", clients=40))


def test_a_round_that_is_too_heavy_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varangian.runs.building.LOOKED_AT", 0)
    result = quiet(experiment(weighting="size", partition="quantity(alpha=0.3)", clients=40))
    assert result.stopped is not None
    assert "heaviest of these 10 vectors weigh" in result.stopped


def test_clients_that_attack_need_an_attack() -> None:
    gradients, _ = quadratic(4)
    with pytest.raises(ValueError, match="2 clients attack, and no attack is given"):
        Simulation(
            gradients, lambda step: None, vg.Algorithm(rule=vg.Median(f=1)), 4, population=Population(9, 4, 2)  # type: ignore[arg-type,return-value]
        )  # fmt: skip
