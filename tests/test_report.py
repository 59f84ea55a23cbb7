"""The report: complete, safe to send, right about what it says, and good to look at."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner

import varangian as vg
from varangian import Experiment, Median, run
from varangian.cli.study import import_command, report_command, reproduce
from varangian.runs.building import code_of
from varangian.study.outcomes import Outcome, Point, gather, write_runs
from varangian.study.paper import PANELS, mean_gain, pairs, unattacked, verdicts
from varangian.study.report import figures, judge, report, report_results, style
from varangian.study.report.layout import Group, groups
from varangian.study.report.legacy import import_runs, read_evaluations, read_study, read_table
from varangian.study.report.page import Picture, render
from varangian.study.report.records import SweepRecord
from varangian.study.report.statistics import _drawn, estimate, summarize

EVIL = "<img src=x onerror=alert(1)>"


def made(rules=("median", "bulyan"), seeds=(1, 2), base: Experiment | None = None, f: int = 12) -> list[Outcome]:
    """A partial study, with curves and ratios, whose accuracies are a function of the configuration."""
    base = PANELS["fashion-mnist"].base if base is None else base
    found = []
    for seed in seeds:
        for nesterov in (False, True):
            e = replace(base, seed=seed, nesterov=nesterov, learning_rate=0.5)
            runs = [(unattacked(e, e.workers - f), 0.85)]
            for number, rule in enumerate(rules):
                for attack in ("little", "empire"):
                    attacked = replace(e, rule=rule, byzantine=f, attack=attack)
                    runs.append((replace(attacked, momentum_at="server"), 0.4 + 0.1 * number))
                    runs.append((replace(attacked, momentum_at="worker"), 0.7 + 0.02 * number))
            for experiment, best in runs:
                best += 0.01 * seed
                curve = tuple(Point(s, best * s / 300, 3.0 / (s + 1)) for s in range(0, 301, 50))
                found.append(Outcome(experiment, best, best - 0.02, 0.5, 300, None, 0.1, 0.25, 9.0, curve))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    outcomes = made()
    outcomes[1] = replace(outcomes[1], stopped=f"step 3: {EVIL}")
    return report(outcomes, out, command=f"varangian reproduce --out '{EVIL}'")


@pytest.mark.slow
def test_one_file_that_fetches_nothing(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    found: list[str] = []

    class Places(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data"))

    Places().feed(text)
    assert found
    assert all(place.startswith("data:image/png") for place in found)
    assert not re.search(r"https?://", text)


def test_names_are_escaped(page: Path) -> None:
    text = page.read_text()
    assert EVIL not in text
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") > 2


def test_hostile_names_stay_text_in_the_script_too() -> None:
    group = Group("</script>" + EVIL, "described", tuple(made(rules=("median",), seeds=(1,))))
    text = render([group], {"</h3>" + EVIL: verdicts(group.pairs)}, [], {EVIL: (1, 2)}, [Picture(EVIL + '"', b"")])
    assert EVIL not in text
    assert text.count("</script>") == 4


def test_hostile_settings_are_refused(tmp_path: Path) -> None:
    write_runs(tmp_path, made(rules=("median",), seeds=(1,)))
    text = (tmp_path / "runs.csv").read_text()
    (tmp_path / "runs.csv").write_text(text.replace(",little,", f",{EVIL},"))
    with pytest.raises(ValueError, match=r"runs.csv, line \d+"):
        gather(tmp_path)


def test_what_it_says(page: Path) -> None:
    text = page.read_text()
    assert "16</b><span>pairs" in text
    assert "Incomplete: fashion-mnist, described: 36 of 920 runs." in text
    assert text.count('<span class="verdict') == 11
    assert "1 run ended early" in text
    assert "25.0 %" in text  # share of steps that satisfy the condition
    rows = list(csv.DictReader((page.parent / "claims.csv").read_text().splitlines()))
    assert [(r["claim"], r["verdict"]) for r in rows][:2] == [("C1", "holds"), ("C2", "holds")]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages alone: figures take most of the time, and have tests of their own."""
    monkeypatch.setattr(figures, "draw", lambda group: iter(()))
    monkeypatch.setattr(figures, "draw_grid", lambda *asked: iter(()))


def test_settings_and_what_computed_them(undrawn: None, tmp_path: Path) -> None:
    record = SweepRecord("varangian demo", "2026-11-26T10:00:00+00:00", versions={"torch": "2.9"}, processor="Some CPU")
    page = report(made(), tmp_path, record=record).read_text()
    rows = dict(re.findall(r"<tr><th>([^<]*)</th><td[^>]*>([^<]*)</td></tr>", page))
    assert rows == rows | {
        **{"workers n": "51", "Byzantine, f tolerated": "12", "batch size": "83", "steps": "300", "clip": "2"},
        **{"learning rate": "0.5", "momentum μ": "0.9", "seeds": "1, 2", "profile": "described"},
        **{"run by": "torch 2.9", "processor": "Some CPU", "date": "2026-11-26T10:00:00+00:00"},
    }
    bare = report(made(), tmp_path).read_text()
    assert bare.count("not recorded beside these runs") == 3


def test_settings_that_differ_stand_in_columns(undrawn: None, tmp_path: Path) -> None:
    small = Experiment(workers=15, steps=300)
    sizes = [o for size in (2, 83) for o in made(base=replace(small, batch_size=size), f=3)]
    page = report(sizes, tmp_path).read_text()
    assert "<tr><th>batch size</th><td>2</td><td>83</td></tr>" in page
    assert "accuracies at several batch sizes" in page
    narrow = re.search(r'<p class="picture narrow">(.*?)</p>', page)
    assert narrow is not None
    assert narrow[1].count("<img") == 2  # a batch size each, below each other


def test_nothing_stands_over_nothing(undrawn: None, tmp_path: Path) -> None:
    """No heading without what it announces, and no verdict on time where nobody kept the machine quiet."""
    bare = [replace(o, curve=(), ratio_within=None) for o in made()]
    page = report(bare, tmp_path / "bare").read_text()
    assert "Learning curves" not in page
    assert "Variance-norm" not in page
    unmeasured = [replace(o, curve=tuple(replace(p, ratio=None) for p in o.curve)) for o in made()]
    page = report(unmeasured, tmp_path / "unmeasured").read_text()
    assert "<h2>Learning curves" in page
    assert "<h2>Variance-norm" not in page
    own = report(made(base=Experiment(workers=51, steps=40)), tmp_path / "own").read_text()
    assert "<td>C1</td>" in own
    assert "<td>C7</td>" not in own
    [alone, *_] = [o for o in made() if o.experiment.attack]
    page = report([alone], tmp_path / "alone").read_text()
    for question in ("pair by pair", "claims", "Where should momentum stand", "What is not there", "Rule ×"):
        assert question not in page
    assert "<h1>1 run</h1>" in page


def test_what_a_maximum_is_stands_beside_it(page: Path) -> None:
    text = page.read_text()
    assert "it selects on the test set" in text
    assert "mean gain in final accuracy" in text
    assert "poster's figure" not in text


def test_figures_in_both_formats_and_always_the_same(page: Path, tmp_path: Path) -> None:
    names = {p.name for p in (page.parent / "figures").iterdir()}
    assert {n[:-4] for n in names if n.endswith(".png")} == {n[:-4] for n in names if n.endswith(".pdf")}
    assert {n.split("-")[0].split(".")[0] for n in names} == {"boxes", "curves", "ratios", "gains", "heat"}
    for name, outcomes in (("a", made()), ("b", list(reversed(made())))):
        [group] = groups(outcomes)
        style.save(figures.boxes(group, "0.5"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_a_table_alone_makes_a_report(tmp_path: Path) -> None:
    write_runs(tmp_path, made(rules=("median",), seeds=(1,)))
    (tmp_path / "curves.csv").unlink()
    result = CliRunner().invoke(report_command, [str(tmp_path / "runs.csv"), "--out", str(tmp_path / "page")])
    assert result.exit_code == 0, result.output
    assert '"curves":[]' in (tmp_path / "page" / "report.html").read_text()


def test_runs_that_were_kept_nowhere(tmp_path: Path) -> None:
    base = Experiment(rule="median", attack="little", workers=11, byzantine=2, steps=6, batch_size=2, measure=False)
    experiments = [unattacked(base, 9), replace(base, momentum_at="server"), base]
    text = report_results([run(e) for e in experiments], tmp_path).read_text()
    assert "These runs are not the paper's" in text
    assert "1</b><span>pair:" in text
    assert "varangian demo" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns"),
        ("name,digest,source,max_accuracy,final_accuracy\n", "holds no runs"),
        (
            "name,digest,source,max_accuracy,final_accuracy\na,b,varangian,2,0.5\n",
            "line 2: max_accuracy must be a number",
        ),
        ("name,digest,source,max_accuracy,final_accuracy\na,b,varangian,x,0.5\n", "line 2"),
        ("name,digest,source,max_accuracy,final_accuracy\na,b,other,0.5,0.5\n", "source"),
        ("name,digest,source,max_accuracy,final_accuracy\na,b\n", "line 2: 2 cells, the header has 5"),
        (
            "name,digest,source,max_accuracy,final_accuracy,rule\na,b,varangian,0.5,0.5,medain\n",
            "Did you mean 'median'",
        ),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        gather(tmp_path)


def test_folders_without_runs_and_runs_without_attacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no complete runs"):
        report(tmp_path)
    with pytest.raises(ValueError, match="no runs to report"):
        report([], tmp_path)
    text = report([o for o in made() if o.experiment.attack is None], tmp_path).read_text()
    assert "Where should momentum stand" not in text
    assert "<title>Report: 2 kinds of momentum: 4 runs</title>" in text


@pytest.mark.slow
def test_nothing_vanishes_without_a_word(tmp_path: Path) -> None:
    """Every run that was left out, is in no pair, or in no verdict, is counted and named on the page."""
    outcomes = made(rules=("median",), seeds=(1,))
    attacked = [o for o in outcomes if o.experiment.attack]
    alone = replace(attacked[0], experiment=replace(attacked[0].experiment, seed=9))
    other = [replace(o, experiment=replace(o.experiment, learning_rate=7.0)) for o in outcomes]
    bare = Outcome(Experiment(rule="median", attack=None), 0.5, 0.5)
    with pytest.warns(UserWarning, match="left out: .* is there more than once, with other numbers"):
        page = report([*outcomes, alone, *other, bare, replace(outcomes[0], max_accuracy=0.1)], tmp_path)
    text = page.read_text()
    assert "is there more than once, with other numbers (" in text
    assert "1 attacked run without a twin" in text
    assert alone.experiment.name in text
    assert "4 of 8 pairs (described) are not of the paper's main study".replace("'", "&#39;") in text
    assert f"1 run without attack, beside which none was attacked: {bare.experiment.name}" in text
    assert "Incomplete: fashion-mnist, described: 10 of 920 runs" in text


def test_other_runs_are_judged_by_group(tmp_path: Path) -> None:
    """Two tasks of somebody's own are two questions: no claim adds them up."""
    runs = []
    for dataset, gain in (("digits", 0.1), ("synthetic(shape=(1, 8, 8), classes=10)", -0.1)):
        e = Experiment(dataset=dataset, rule="median", attack="little", momentum_at="server")
        runs += [Outcome(e, 0.5, 0.5), Outcome(replace(e, momentum_at="worker"), 0.5 + gain, 0.5)]
    judged = judge(groups(runs))
    found = {study: next(v.finding.ours for v in verdict if v.finding) for study, verdict in judged.items()}
    assert sorted(found.values()) == ["0.00 % (0 of 1)", "100.00 % (1 of 1), 1 of another kind"]
    text = report(runs, tmp_path).read_text()
    assert text.count('<div class="cards">') == 2


def test_settings_that_change_numbers_are_never_drawn_together(tmp_path: Path) -> None:
    e = Experiment(rule="multi-krum", attack="little", momentum_at="server")
    for changed in ({"clip_mode": "unit"}, {"dtype": "float64"}, {"momentum": 0.5}, {"profile": "published"}):
        assert len(groups([Outcome(e, 0.5, 0.5), Outcome(replace(e, **changed), 0.5, 0.5)])) == 2
    [group] = groups([Outcome(replace(e, rule=f"multi-krum(m={m})"), 0.5, 0.5) for m in (1, 5)])
    assert group.rules == ["multi-krum(m=1)", "multi-krum(m=5)"]


def test_one_rule_has_one_name_however_it_is_written() -> None:
    e = Experiment(rule="median", attack="little", momentum_at="server")
    other = replace(e, rule="median( even='mid' )", attack="little(factor=1.5)", momentum_at="worker", seed=2**60)
    [group] = groups([Outcome(run, 0.5, 0.5) for run in (e, other, replace(other, momentum_at="server"))])
    assert group.rules == ["median"]
    assert [c.attack for c in group.columns] == ["little"]
    assert len(group.pairs) == 1
    assert f'"{2**60}"' in render([group], {}, [], {}, [])


def test_no_figure_is_written_over_another(tmp_path: Path) -> None:
    """Names of files are cut: two data sets whose names begin alike have figures each."""
    runs = []
    for last in (1, 2):
        data = f"synthetic(shape=(1, 8, 8), train=12345678, test=12345678, classes=12, seed=90000000000000000{last})"
        e = Experiment(dataset=data, rule="median", attack="little", momentum_at="server")
        runs += [Outcome(e, 0.5, 0.5), Outcome(replace(e, momentum_at="worker"), 0.6, 0.5)]
    report(runs, tmp_path)
    assert len(list((tmp_path / "figures").glob("gains-*.png"))) == 2


def test_rules_of_ones_own_stand_beside_the_others_until_their_code_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Mine(Median):
        pass

    monkeypatch.setitem(vg.RULES, "mine", Mine)
    code = code_of(Experiment(rule="mine"))
    assert code is not None
    e = Experiment(rule="median", attack="little", momentum_at="server")
    runs = [e, replace(e, momentum_at="worker"), unattacked(e, e.honest)]
    runs += [replace(run, rule="mine", code_hash=code) for run in runs[:2]]
    [group] = groups([Outcome(run, 0.5, 0.5) for run in runs])
    assert [p.reference is not None for p in group.pairs] == [True, True]
    edited = [replace(run, code_hash="0" * 16) for run in runs[3:]]
    found = groups([Outcome(run, 0.5, 0.5) for run in (*runs, *edited)])
    assert [len(g.pairs) for g in found] == [1, 1, 1]
    assert len({g.title for g in found}) == 3
    assert all(p.reference is not None for g in found for p in g.pairs if p.experiment.code_hash != "0" * 16)


@pytest.mark.slow
def test_a_long_report_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varangian.study.report.SILENCE", 0.0)
    said: list[str] = []
    report(made(rules=("median",), seeds=(1,)), tmp_path, say=said.append)
    assert said[0] == "10 runs read: 2 places of momentum × 2 attacks × 2 kinds of momentum"
    assert said[1].startswith("0 figures drawn; now those of Fully connected, Fashion-MNIST")
    assert said[-1] == "writing the page ..."
    assert len(said) > 5


# --------------------------------------------------------------------------------------------------------- statistics


def test_statistics() -> None:
    found = pairs(made())
    s = summarize(found)
    assert (s.pairs, s.raised, s.lowered, s.configurations, s.seeds) == (16, 16, 0, 8, 2)
    assert s.mean == pytest.approx(26) == mean_gain(found)
    assert s.low is not None
    assert s.high is not None
    assert s.low < 26 < s.high
    assert s.p is not None
    assert s.p < 0.05


def table(random: np.random.Generator, rows: int, columns: int, effects: tuple[float, float, float], gaps: float = 0.0):
    """Gains whose true mean is zero, of configurations by seeds: effects of either and a rest, some cells missing."""
    of_row, of_column, rest = effects
    values = of_row * random.standard_normal((rows, 1)) + of_column * random.standard_normal((1, columns))
    values = values + rest * random.standard_normal((rows, columns))
    there = random.random((rows, columns)) >= gaps
    return [{c: v for c, v in enumerate(row) if ok[c]} for row, ok in zip(values, there, strict=True) if ok.any()]


@pytest.mark.parametrize(
    ("rows", "columns", "effects", "gaps", "most"),
    [
        (88, 5, (5.0, 1.0, 3.0), 0.0, 0.98),  # a whole panel
        (88, 5, (0.0, 3.0, 3.0), 0.0, 0.98),  # what is shared is the seed alone
        (24, 5, (3.0, 1.0, 1.0), 0.2, 0.98),  # a panel that is not complete
        (12, 5, (1.0, 3.0, 1.0), 0.0, 0.98),
        (1, 5, (0.0, 1.0, 1.0), 0.0, 0.98),  # Student's t
        (3, 3, (1.0, 1.0, 1.0), 0.0, 1.0),  # of so few, it promises less than it could
        (2, 5, (0.0, 0.0, 1.0), 0.0, 1.0),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    rows: int, columns: int, effects: tuple, gaps: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varangian.study.report.statistics.DRAWS", 4000)
    _drawn.cache_clear()
    random, studies = np.random.default_rng(7), 1000
    found = [estimate(table(random, rows, columns, effects, gaps)) for _ in range(studies)]
    _drawn.cache_clear()
    covered = sum(e.low <= 0 <= e.high for e in found) / studies  # type: ignore[operator]
    assert 0.92 <= covered <= most
    false = sum(e.p <= 0.05 for e in found) / studies  # type: ignore[operator]
    assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert all((e.p <= 0.05) == (not e.low <= 0 <= e.high) for e in found if abs(e.p - 0.05) > 0.001)  # type: ignore[operator]


def test_one_configuration_is_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    for values in ([1.0, 5.0, 9.0, -3.0, 20.0], [2.0, 3.0], [4.0, 4.5, 1.0]):
        found = estimate([dict(enumerate(values))])
        theirs = stats.ttest_1samp(values, 0)
        interval = theirs.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx(tuple(interval), abs=0.02 * (interval.high - interval.low))
        assert found.p == pytest.approx(theirs.pvalue, abs=0.005)


def test_few_gains_and_gains_that_are_equal_have_no_interval() -> None:
    none = (None, None, None)
    for table_ in ([{1: 5.0}], [{1: 5.0}, {1: 7.0}, {1: 9.0}], [{1: 0.1 + 0.2, 2: 0.3}], [{1: 0.0, 2: 0.0}] * 3):
        found = estimate(table_)
        assert (found.low, found.high, found.p) == none
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])
    with pytest.raises(ValueError, match="finite"):
        estimate([{1: math.nan, 2: 1.0}])


def test_order_does_not_matter_and_scale_does_not_either() -> None:
    random = np.random.default_rng(3)
    configurations = table(random, 9, 4, (2.0, 1.0, 1.0), 0.3)
    a = estimate(configurations)
    b = estimate([{-s: 10 * v for s, v in reversed(list(c.items()))} for c in reversed(configurations)])
    assert (b.mean, b.low, b.high) == pytest.approx((10 * a.mean, 10 * a.low, 10 * a.high))  # type: ignore[operator]
    assert (a.p, a.configurations, a.seeds) == (b.p, b.configurations, b.seeds)


def test_seeds_that_configurations_share_are_not_counted_twice() -> None:
    """Many configurations do not make up for few seeds: where all of them see the same seeds, those decide."""
    shared = [dict(enumerate((1.0, 2.0, 6.0)))] * 200
    alone = estimate(shared[:1])
    together = estimate(shared)
    assert together.p == pytest.approx(alone.p, abs=0.01)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=0.3)


def test_layout_of_the_poster() -> None:
    [group] = groups(made() + made(f=24, rules=("median",)))
    assert group.title == "Fully connected, Fashion-MNIST"
    assert [c.title for c in group.columns] == [
        *("24 of 51 Byzantine, Little", "24 of 51 Byzantine, Empire"),
        *("12 of 51 Byzantine, Little", "12 of 51 Byzantine, Empire"),
    ]
    assert (group.kinds, group.rules) == ([True, False], ["median", "bulyan"])
    assert len(group.cell(group.columns[2], True, "0.5", "worker")) == 4  # 2 rules x 2 seeds
    assert len(group.reference(group.columns[2], True, "0.5")) == 2


# ------------------------------------------------------------------------------------------- the paper's result folders


CONFIG = {
    **{"seed": 3, "nb_steps": 20, "nb_workers": 51, "nb_decl_byz": 24, "nb_real_byz": 24, "gar": "krum"},
    **{"attack": "little", "attack_args": ["factor:1.5", "negative:True"], "model": "simples-full"},
    **{"dataset": "fashionmnist", "batch_size": 83, "learning_rate": 0.5, "learning_rate_decay": -1, "momentum": 0.9},
    **{"dampening": 0.0, "nesterov": False, "momentum_at": "update", "l2_regularize": 1e-4, "gradient_clip": 2.0},
    **{"evaluation_delta": 10},
}
EVAL = "# Step number\tCross-accuracy\n0\t0.1\n10\t0.45\n20\t0.4\n"
STUDY = (
    "# Step number\tTraining point count\tAverage loss\tHonest gradient deviation\tHonest gradient "
    "norm\tSampled-honest cosine\n"
    "0\t0\t2.3\t3.0\t1.5\t1.0\n1\t4233\t2.2\tnan\t1.0\t0.9\n"
)


def old_run(
    folder: Path, name: str = "run", evaluations: str = EVAL, study: str | None = STUDY, **changed: object
) -> Path:
    run_folder = folder / name
    run_folder.mkdir(parents=True)
    (run_folder / "config.json").write_text(json.dumps(CONFIG | changed))
    (run_folder / "eval").write_text(evaluations)
    if study is not None:
        (run_folder / "study").write_text(study)
    return run_folder


def test_old_results_become_runs_beside_new_ones(tmp_path: Path) -> None:
    old_run(tmp_path / "old", "a")
    old_run(tmp_path / "old", "b", momentum_at="worker", study=None)
    old_run(tmp_path / "old", "c", gar="average", nb_workers=27, nb_real_byz=0)
    result = CliRunner().invoke(import_command, [str(tmp_path / "old"), "--out", str(tmp_path / "study")])
    assert result.exit_code == 0, result.output
    found = gather(tmp_path / "study")
    assert {(o.study, o.max_accuracy, o.final_accuracy) for o in found} == {("imported", 0.45, 0.4)}
    [pair] = pairs(found)
    e = pair.experiment
    assert (e.dataset, e.rule, e.attack, e.workers, e.byzantine, e.seed) == (
        "fashion-mnist",
        "multi-krum",
        "little",
        51,
        24,
        3,
    )
    assert (e.profile, e.clip, e.steps, e.momentum_at, e.learning_rate) == ("published", 2.0, 20, "server", 0.5)
    assert pair.reference is not None
    assert pair.server.curve[0] == Point(0, 0.1, 4.0)
    assert "imported" in report(tmp_path / "study").read_text()


def test_old_results_of_one_run_are_imported_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        old_run(tmp_path / "old", name, seed=-1)  # "any seed" there
    for _ in range(2):  # and once again the second time
        made_folders, [(refused, reason)] = import_runs(tmp_path / "old", tmp_path / "out")
        assert (len(made_folders), refused.name) == (1, "b")
        assert "the same settings and seed as" in reason


def test_runs_without_clipping_come_back_from_a_table_without(tmp_path: Path) -> None:
    old_run(tmp_path / "old", gradient_clip=0.0)
    import_runs(tmp_path / "old", tmp_path / "study")
    [o] = gather(tmp_path / "study")
    assert o.experiment.clip is None
    write_runs(tmp_path, [o])
    [again] = gather(tmp_path / "runs.csv")
    assert (again.experiment, again.source) == (o.experiment, "imported")


def test_old_schedules_and_attacks(tmp_path: Path) -> None:
    folder = old_run(
        tmp_path, learning_rate_decay=10, learning_rate_decay_delta=10, attack_args=["factor:2", "negative:False"]
    )
    [made_folder], _ = import_runs(folder, tmp_path / "out")
    e = Experiment.from_json((made_folder / "experiment.json").read_text())
    assert e.learning_rate == ((0, 0.5), (10, 0.25))
    assert e.attack == "little(factor=2.0, sign=1)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gar": "kurm"}, "Did you mean 'krum'"),
        ({"nb_workers": None}, "lacks 'nb-workers'"),
        ({"nb_workers": "many"}, "must be a number"),
        ({"nb_steps": 1.5}, "whole number"),
        ({"nb-steps": 21}, "says 'nb-steps' twice: 20, 21"),
        ({"dataset": "../../etc"}, "unknown dataset"),
        ({"evaluations": ""}, "does not begin with"),
        ({"evaluations": "# Step number\tCross-accuracy\n"}, "holds no rows"),
        ({"evaluations": "# Step number\tCross-accuracy\n0\tx\n"}, "line 2: not numbers"),
        ({"evaluations": "# Step number\tCross-accuracy\n0\t1\t2\n"}, "line 2: 3 columns"),
        ({"evaluations": "# Step number\tCross-accuracy\n0\t-1\n"}, "between 0 and 1"),
        ({"evaluations": "# Step number\tCross-accuracy\n5\t0.1\n5\t0.1\n"}, "must go up"),
        ({"evaluations": "# Step number\tLoss\n5\t0.1\n"}, "lacks a column"),
        ({"study": "# Step number\nnan\n"}, "whole and not negative"),
    ],
)
def test_old_results_that_are_none(tmp_path: Path, changed: dict, message: str) -> None:
    folder = old_run(tmp_path / "old", **changed)
    made_folders, [(refused, reason)] = import_runs(folder.parent, tmp_path / "out")
    assert (made_folders, refused) == ([], folder)
    assert message in reason
    assert not list((tmp_path / "out").rglob("*.json"))


def test_old_tables_are_bounded_and_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = old_run(tmp_path)
    (folder / "link").symlink_to(folder / "eval")
    with pytest.raises(ValueError, match="a link, and not followed"):
        read_table(folder / "link")
    monkeypatch.setattr("varangian.study.report.legacy.MAX_TABLE", 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_evaluations(folder / "eval")


def test_old_columns_are_found_by_their_words(tmp_path: Path) -> None:
    path = tmp_path / "study"
    path.write_text(
        "# step\tTraining points\tLoss\tHonest deviation\tHonest norm\tAttack norm\tDefense norm\n1\t5\t2\t2\t1\t7\t8\n"
    )
    [m] = read_study(path)
    assert (m.step, m.points, m.loss, m.ratio, m.attack_norm, m.aggregate_norm) == (1, 5, 2.0, 4.0, 7.0, 8.0)


# ------------------------------------------------------------------------------------------------------- command line


def test_panels_without_data_say_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from varangian.cli import study as cli_study
    from varangian.simulation.data import DataError

    def lacks(experiment: Experiment, folder: Path | None) -> None:
        if experiment.dataset.startswith("cifar"):
            raise DataError(f"{experiment.dataset}: get it there")

    ran = []
    monkeypatch.setattr(cli_study, "open_dataset", lacks)
    taken = lambda grids, *_, **__: ran.extend(e for g in grids for e in g.experiments()) or _nothing()  # noqa: E731
    monkeypatch.setattr(cli_study, "sweep", taken)
    result = CliRunner().invoke(reproduce, ["--seeds", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {e.dataset for e in ran} == {"mnist", "fashion-mnist"}
    assert {e.model for e in ran} == {"fully-connected"}  # a panel of our own is run where it is asked for
    assert "left out: cifar-10: cifar-10: get it there" in result.output
    ran.clear()
    asked = CliRunner().invoke(reproduce, ["--panel", "cnn-fashion-mnist", "--seeds", "1", "--out", str(tmp_path)])
    assert asked.exit_code == 0, asked.output
    assert {(e.dataset, e.model) for e in ran} == {("fashion-mnist", "cnn(pad=2)")}
    assert len(ran) == 184
    nothing = CliRunner().invoke(reproduce, ["--panel", "cifar-10", "--out", str(tmp_path)])
    assert nothing.exit_code != 0
    assert "none of the chosen panels has its data" in nothing.output


def _nothing():
    from varangian.study.sweep import Sweep

    return Sweep((), 0, 0, (), 0, 0.0)


@pytest.mark.parametrize(
    "arguments",
    [["--seeds", "5-1"], ["--seeds", "a"], ["--seeds", "1-99999"], ["--shard", "3/2"], ["--shard", "x"],
     ["--time-budget", "soon"], ["--panel", "imagenet"], ["--jobs", "0"]],
)  # fmt: skip
def test_mistakes_on_the_command_line(arguments: list[str]) -> None:
    assert CliRunner().invoke(reproduce, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--device", "CUDA"], "device: 'CUDA' is no device"),
        (["--device", "cpu:1"], "device: 'cpu:1' is no device"),
        (["--device", "cuda", "--precision", "tf33"], "precision: must be 'float32' or 'tf32'"),
        (["--precision", "tf32"], "precision: tf32 is of cards"),
    ],
)
def test_a_wrong_device_or_precision_is_refused_before_data_is_looked_for(
    asked: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from varangian.cli import study as cli_study

    looked = []
    monkeypatch.setattr(cli_study, "open_dataset", lambda *given: looked.append(given))
    result = CliRunner().invoke(reproduce, [*asked, "--dry-run", "--out", str(tmp_path / "study")])
    assert message in str(result.exception)
    assert not looked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rules", [("median",), ("median", "bulyan"), ("median", "krum", "phocas", "meamed")])
def test_names_of_low_panels_are_whole(rules: tuple[str, ...]) -> None:
    [group] = groups(made(rules))
    said = [text.get_text().replace("\n", " ") for text in figures.gains(group).texts]
    assert {"Classical, 0.5", "Nesterov, 0.5"} <= set(said)


def test_curves_of_one_point_are_seen_and_none_is_said() -> None:
    """A ratio of five steps evaluated at the end is known at step 0 alone: a line through it shows nothing."""
    one = [replace(o, curve=(Point(0, 0.1, 0.8), Point(5, 0.5))) for o in made(("median",))]
    [group] = groups(one)
    panel = figures.curves(group, "0.5", False, ratios=True).axes[0]
    assert {line.get_marker() for line in panel.lines if list(line.get_ydata()) == [0.8]} == {"o", "D"}
    [bare] = groups([replace(o, curve=(Point(0, 0.1), Point(5, 0.5))) for o in one])
    assert {t.get_text() for t in figures.curves(bare, "0.5", False, ratios=True).axes[0].texts} == {
        "no ratio measured"
    }


def test_plain_run_folders_say_what_computed_them(undrawn: None, tmp_path: Path) -> None:
    e = Experiment(workers=7, byzantine=1, rule="median", attack="little", steps=2, evaluate_every=0)
    for seed in (1, 2):
        run(replace(e, seed=seed), out=tmp_path)
    noted = sorted(tmp_path.glob("*/environment.json"))
    session = json.loads(noted[0].read_text())["sessions"][0]
    noted[1].write_text("[" * 1000)  # says nothing, and breaks nothing
    page = report(tmp_path).read_text()
    rows = dict(re.findall(r"<tr><th>([^<]*)</th><td[^>]*>([^<]*)</td></tr>", page))
    assert f"torch {session['torch']}" in rows["run by"]
    assert (rows["processor"], rows["date"]) == (session["processor"], session["started"])
    assert "<pre></pre>" not in page


def test_an_interval_wider_than_all_gains_is_none(undrawn: None, tmp_path: Path) -> None:
    few = [o for o in made(("median",), seeds=(1, 2)) if o.experiment.attack != "empire" and not o.experiment.nesterov]
    server = next(o for o in few if o.experiment.attack and o.experiment.momentum_at == "server")
    far = [replace(o, max_accuracy=0.05) if o is server else o for o in few]
    assert not summarize(pairs(far)).says
    page = report(far, tmp_path).read_text()
    assert "too few runs, it would be wider than all gains there could be" in page
    assert "too few runs</span>" in page  # two pairs make no verdict
    assert "of pairs are better with momentum at the workers; 0 are worse" in page


def test_one_is_one(undrawn: None, tmp_path: Path) -> None:
    lone = [o for o in made(("median",), seeds=(1,)) if o.experiment.attack == "little" and not o.experiment.nesterov]
    page = re.sub(r"<script.*?</script>", "", report(lone, tmp_path).read_text(), flags=re.DOTALL)
    assert "1 configuration, 1 seed" in page
    assert not re.search(r"\b1 (runs|pairs|seeds|configurations|attacked runs)\b", page)


# ------------------------------------------------------------------------------------------------------------ browser


def chromium(page: Path, folder: Path, *options: str) -> str:
    program = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += [
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    done = subprocess.run(
        [program, *quiet, *options, page.as_uri()], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.browser
def test_drawn_in_a_browser_without_a_fault(page: Path, tmp_path: Path) -> None:
    dom = chromium(page, tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in dom  # the script came to its end
    drawn = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert drawn.count("<figure>") == 4 + 8 + 8  # boxes; curves of 2 rules; ratios of 2 rules
    assert "NaN" not in drawn
    assert "undefined" not in drawn
    assert '<option value="bulyan">Bulyan</option>' in dom


def framed(page: Path, tmp_path: Path, width: int, script: str) -> str:
    """The DOM of a page that holds this one in a frame of that width, since a headless window is at least 500 wide."""
    probe = tmp_path / "probe.html"
    inner = page.read_text().replace("</body>", f"<script>{script}</script></body>")
    frame = inner.replace("&", "&amp;").replace('"', "&quot;")
    listener = "onmessage = (m) => { document.body.dataset.said = m.data; }"
    probe.write_text(
        f'<body><script>{listener}</script><iframe style="width:{width}px;height:800px;border:0" '
        f'srcdoc="{frame}"></iframe>'
    )
    return chromium(probe, tmp_path, "--dump-dom", "--virtual-time-budget=3000", "--window-size=1400,900")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path, width: int) -> None:
    dom = framed(page, tmp_path, width, "parent.postMessage(document.documentElement.scrollWidth, '*')")
    found = re.search(r'data-said="(\d+)"', dom)
    assert found is not None
    assert int(found[1]) <= width


@pytest.mark.browser
def test_all_of_what_batch_sizes_bring_is_seen_on_a_narrow_screen(undrawn: None, tmp_path: Path) -> None:
    """Of three panels side by side a telephone once showed the first, and of the settings half."""
    small = Experiment(workers=15, steps=300)
    sizes = [o for size in (2, 20, 83) for o in made(base=replace(small, batch_size=size), f=3)]
    record = SweepRecord("varangian demo", versions=dict.fromkeys(("torch", "numpy", "numba"), "2.13.0+cpu"))
    page = report(sizes, tmp_path / "out", record=record)
    measure = (
        "const seen = [...document.querySelectorAll('.picture, .wide:has(.settings)')].filter((p) => p.clientWidth);"
        "parent.postMessage([seen.length, ...seen.map((p) => p.scrollWidth - p.clientWidth)].join(' '), '*')"
    )
    dom = framed(page, tmp_path, 400, measure)
    assert re.search(r'data-said="([^"]*)"', dom)[1] == "2 0 0"  # type: ignore[index]


def pixels(picture: Path) -> np.ndarray:
    return matplotlib.image.imread(picture)[..., :3]


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_light_and_dark(page: Path, tmp_path: Path, scheme: int, dark: bool) -> None:
    shot = tmp_path / "page.png"
    setting = f"--blink-settings=preferredColorScheme={scheme}"
    chromium(page, tmp_path, "--window-size=1280,3000", setting, f"--screenshot={shot}")
    found = pixels(shot)
    assert (float(np.median(found)) < 0.2) == dark
    # Of a page that forgot some of its colours a part stays in the other scheme.
    assert float(((found.mean(axis=2) > 0.9) if dark else (found.mean(axis=2) < 0.15)).mean()) < 0.06


@pytest.mark.browser
@pytest.mark.parametrize(("width", "across"), [(1280, 2), (400, 2)])
def test_panels_fill_the_page_and_letters_keep_their_size(page: Path, tmp_path: Path, width: int, across: int) -> None:
    """Panels once were a third narrower than their column, with titles smaller than the numbers of the axes."""
    measure = (
        "const f = document.querySelector('#boxes figure'), s = f.querySelector('svg'), p = f.parentNode;"
        "const scale = s.getBoundingClientRect().width / s.viewBox.baseVal.width;"
        "const title = parseFloat(getComputedStyle(f.querySelector('figcaption')).fontSize);"
        "const letters = parseFloat(getComputedStyle(s.querySelector('text')).fontSize) * scale;"
        "const hint = getComputedStyle(document.querySelector('.hint')).display;"
        "const columns = Math.round(p.clientWidth / s.getBoundingClientRect().width);"
        "const filled = s.getBoundingClientRect().width / f.clientWidth;"
        "parent.postMessage([filled, title, letters, columns, hint].join(' '), '*')"
    )
    dom = framed(page, tmp_path, width, measure)
    filled, title, letters, columns, hint = re.search(r'data-said="([^"]*)"', dom)[1].split()  # type: ignore[index]
    assert float(filled) > 0.98
    assert 11 < float(letters) < 14
    assert float(title) > float(letters)
    assert int(columns) == across
    assert hint == ("none" if width > 760 else "block")


@pytest.mark.browser
def test_screenshot_and_print(page: Path, tmp_path: Path) -> None:
    shot, pdf = tmp_path / "page.png", tmp_path / "page.pdf"
    chromium(page, tmp_path, "--window-size=1280,2400", f"--screenshot={shot}")
    assert shot.stat().st_size > 50_000
    chromium(page, tmp_path, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
