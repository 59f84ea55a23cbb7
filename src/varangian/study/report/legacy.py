"""Reads result folders of the paper's own code, so that old results stand beside new ones.

Such a folder has config.json and two tables of tab-separated columns named in a first line that begins with "# ":
eval (step and accuracy) and study (a row a step). Nothing of it is trusted: sizes are bounded, links are not followed,
numbers must be numbers.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...core.checks import cut, shown, unknown
from ...core.references import importing
from ...core.rules import published_names
from ...runs.experiment import Experiment
from ...runs.files import folders_in, make_folder, read_json, read_text
from ...runs.folders import FORMAT
from ...simulation.metrics import COLUMNS, Measures
from ..outcomes import write_csv

MAX_CONFIG, MAX_TABLE, MAX_CELLS = 2**20, 2**27, 5 * 10**6

DATASETS = {"mnist": "mnist", "fashionmnist": "fashion-mnist", "cifar10": "cifar-10", "cifar100": "cifar-100"}
MODELS = {
    "simples-full": "fully-connected",
    "simples-logit": "linear",
    "simples-linear": "linear",
    "empire-cnn": "cnn",
    "wide-resnet": "wide-resnet",
    "wide-resnet-wide-resnet": "wide-resnet",
}
PLACES = {"update": "server", "server": "shared", "worker": "worker"}

# Our measure -> the words that its column's name must hold, and those that it must not.
MEASURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "points": (("point",), ()),
    "loss": (("loss",), ()),
    "distance": (("origin",), ()),
    **{
        f"{who}_{ours}": ((who if who != "aggregate" else "defen[cs]e|aggregat", theirs), ("cosin", "composite"))
        for who in ("sampled", "honest", "attack", "aggregate")
        for ours, theirs in (("norm", "norm"), ("deviation", "deviation"), ("max", "max"))
        if (who, ours) != ("aggregate", "deviation")
    },
    **{
        f"cosine_{a}_{b}": ((a, b if b != "aggregate" else "defen[cs]e|aggregat", "cosin"), ("prev",))
        for a, b in (("sampled", "honest"), ("sampled", "attack"), ("sampled", "aggregate"))
    },
    **{
        f"cosine_{a}_{b}": ((a, b if b != "aggregate" else "defen[cs]e|aggregat", "cosin"), ("prev",))
        for a, b in (("honest", "attack"), ("honest", "aggregate"), ("attack", "aggregate"))
    },
    "cosine_previous": (("prev", "cosin"), ()),
    "curvature": (("composite|curvature",), ()),
    "byzantine_share": (("accept|ratio|byzantine",), ("norm", "deviation")),
}


@importing(False)
def import_runs(source: str | Path, out: str | Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Rewrites the result folders under a folder, or that folder itself, as run folders under ``<out>/imported``.

    Returns:
        The folders made, and those that could not be read with the reason.

    Raises:
        ValueError: there is no result folder.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder.")
    candidates = [source] if _has_config(source) else []
    candidates += folders_in(source, source, _has_config)
    if not candidates:
        raise ValueError(f"{source}: neither it nor a folder in it holds config.json, eval and study.")
    made: dict[Path, Path] = {}
    refused = []
    target = make_folder(out, "imported")
    for folder in candidates:
        try:
            experiment = read_configuration(folder / "config.json")
            place = target / f"{experiment.name}-{experiment.digest}"
            if place in made:
                raise ValueError(f"it is of the same settings and seed as {made[place]}, which is imported.")
            _rewrite(folder, experiment, place)
            made[place] = folder
        except (ValueError, OSError) as error:
            refused.append((folder, "; ".join(str(error).splitlines())))
    return list(made), refused


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _rewrite(folder: Path, experiment: Experiment, made: Path) -> None:
    evaluations = read_evaluations(folder / "eval")
    measures = read_study(folder / "study") if (folder / "study").exists() else []
    temporary = made.with_name(made.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "experiment.json").write_text(experiment.to_json())
    rows = [[str(s), f"{a:.9g}", "nan"] for s, a in evaluations]
    write_csv(temporary / "evaluations.csv", ["step", "accuracy", "loss"], rows)
    write_csv(temporary / "metrics.csv", COLUMNS, [m.row() for m in measures])
    accuracies = [a for _, a in evaluations]
    summary = {
        **{"format": FORMAT, "name": experiment.name, "digest": experiment.digest, "imported_from": folder.name},
        **{"max_accuracy": max(accuracies), "final_accuracy": accuracies[-1], "final_loss": None},
        **{"steps": max(len(measures), evaluations[-1][0]), "stopped": None, "seconds": None},
    }
    (temporary / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
    shutil.rmtree(made, ignore_errors=True)
    temporary.replace(made)


# ------------------------------------------------------------------------------------------------------- configuration


def read_configuration(path: Path) -> Experiment:
    """The run that config.json describes, in the profile "published".

    Raises:
        ValueError: it lacks a setting, or has one that we have no equal of.
    """
    values = read_json(path, MAX_CONFIG)
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if plain.setdefault(_plain(str(key)), value) != value:
            raise ValueError(
                f"{path} says {_plain(str(key))!r} twice: {shown(plain[_plain(str(key))])}, {shown(value)}."
            )
    config = _Configuration(path, plain)
    workers, real = config.whole("nb-workers"), config.whole("nb-real-byz", default=0)
    steps = config.whole("nb-steps", "steps")
    clip = config.number("gradient-clip", default=0.0)
    rule = config.name("rule", published_names(), "gar")
    attack = _attack(config) if real else None
    return Experiment(
        dataset=config.name("dataset", DATASETS, "dataset", strip="-"),
        model=config.name("model", MODELS, "model"),
        workers=workers,
        byzantine=0 if rule == "average" else config.whole("nb-decl-byz", default=real),
        real_byzantine=real if attack is not None and real != config.whole("nb-decl-byz", default=real) else None,
        rule=rule,
        attack=attack,
        momentum=config.number("momentum", default=0.0),
        dampening=config.number("dampening", default=0.0),
        nesterov=bool(config.get("momentum-nesterov", "nesterov", default=False)),
        momentum_at=config.name("place of momentum", PLACES, "momentum-at", default="update"),  # type: ignore[arg-type]
        clip=clip or None,
        batch_size=config.whole("batch-size"),
        steps=steps,
        learning_rate=_rate(config, steps),
        l2=config.number("l2-regularize", "weight-decay", default=0.0),
        evaluate_every=config.whole("evaluation-delta", default=0),
        seed=max(0, config.whole("seed", default=0)),
        profile="published",
    )


class _Configuration:
    """The settings of config.json by their plain names; every failure names the file and the setting."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    def get(self, *names: str, default: Any = ...) -> Any:
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        if default is ...:
            raise ValueError(f"{self.path} lacks {names[0]!r}.")
        return default

    def number(self, *names: str, default: Any = ...) -> float:
        value = self.get(*names, default=default)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{self.path}: {names[0]} must be a number, got {shown(value)}.")
        return number

    def whole(self, *names: str, default: Any = ...) -> int:
        number = self.number(*names, default=default)
        if number != int(number) or abs(number) > 2**53:
            raise ValueError(f"{self.path}: {names[0]} must be a whole number, got {number}.")
        return int(number)

    def name(self, kind: str, table: dict[str, str], *names: str, strip: str = "", default: Any = ...) -> str:
        value = _plain(str(self.get(*names, default=default)))
        for character in strip:
            value = value.replace(character, "")
        if value not in table:
            raise ValueError(f"{self.path}: {unknown(kind, value, table)}")
        return table[value]


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _attack(config: _Configuration) -> str:
    name = _plain(str(config.get("attack")))
    arguments = config.get("attack-args", default=[])
    if isinstance(arguments, dict):
        given = {_plain(str(k)): str(v) for k, v in arguments.items()}
    else:
        items = [arguments] if isinstance(arguments, str) else list(arguments) if isinstance(arguments, list) else []
        given = {_plain(k): v for k, _, v in (str(item).partition(":") for item in items)}
    if name not in ("little", "empire", "nan"):
        raise ValueError(f"{config.path}: {unknown('attack', name, ('little', 'empire', 'nan'))}")
    if name == "nan":
        return name
    try:
        factor = float(given.get("factor", "1.5" if name == "little" else "1.1"))
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise ValueError(f"{config.path}: the attack's factor must be a number, got {shown(given['factor'])}.")
    options = [f"factor={factor!r}"] if factor != (1.5 if name == "little" else 1.1) else []
    if name == "little" and given.get("negative", "true").strip().lower() not in ("true", "1", "yes"):
        options.append("sign=1")
    return name + (f"({', '.join(options)})" if options else "")


def _rate(config: _Configuration, steps: int) -> float | tuple[tuple[int, float], ...]:
    """rate / (step / decay + 1), computed anew every so many steps; constant without a decay."""
    rate = config.number("learning-rate")
    decay = config.number("learning-rate-decay", default=0)
    every = config.whole("learning-rate-decay-delta", default=1)
    if decay <= 0 or every <= 0:
        return rate
    if steps / every > 10_000:
        raise ValueError(f"{config.path}: the learning rate changes more than 10,000 times.")
    pieces = tuple((step, rate / (step / decay + 1)) for step in range(0, max(1, steps), every))
    return pieces if len(pieces) > 1 else rate


# -------------------------------------------------------------------------------------------------------------- tables


def read_table(path: Path) -> tuple[list[str], list[list[float]]]:
    """Column names and rows of numbers of a tab-separated file with a "# " header.

    Raises:
        ValueError: anything else; the message names the line.
    """
    lines = read_text(path, MAX_TABLE).splitlines()
    if not lines or not lines[0].startswith("#"):
        raise ValueError(f'{path} does not begin with "# " and the names of its columns.')
    names = [name.strip() for name in lines[0].lstrip("# ").split("\t")]
    if len(lines) * len(names) > MAX_CELLS:
        raise ValueError(f"{path} has {len(lines):,} lines of {len(names):,} columns, over {MAX_CELLS:,} cells.")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t")
        if len(cells) != len(names):
            raise ValueError(f"{path}, line {number}: {len(cells)} columns, the header has {len(names)}.")
        try:
            rows.append([_number(cell) for cell in cells])
        except ValueError:
            raise ValueError(f"{path}, line {number}: not numbers.") from None
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    return names, rows


def _number(cell: str) -> float:
    cell = cell.strip()
    if len(cell) > 40 or "_" in cell or not cell.isascii():  # float() takes 1_0 for ten
        raise ValueError(cell)
    return float(cell) if cell else math.nan


def _find(names: Sequence[str], words: Sequence[str], without: Sequence[str] = ()) -> int | None:
    for place, name in enumerate(names):
        plain = name.lower()
        if all(re.search(word, plain) for word in words) and not any(word in plain for word in without):
            return place
    return None


def _steps(path: Path, rows: list[list[float]], place: int) -> list[int]:
    steps = [row[place] for row in rows]
    if any(not math.isfinite(s) or s < 0 or s != int(s) or s > 2**53 for s in steps):
        raise ValueError(f"{path}: step numbers must be whole and not negative.")
    if any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"{path}: step numbers must go up.")
    return [int(s) for s in steps]


def read_evaluations(path: Path) -> list[tuple[int, float]]:
    """(step, accuracy in [0, 1]) of each evaluation. Accuracies in per cent are recognised."""
    names, rows = read_table(path)
    step, accuracy = _find(names, ("step",)), _find(names, ("accura|top-?1",))
    if step is None or accuracy is None:
        raise ValueError(f"{path} lacks a column of steps or of accuracies; it has {cut(', '.join(names))}.")
    values = [row[accuracy] for row in rows]
    if any(not 0 <= v <= 100 for v in values):
        raise ValueError(f"{path}: accuracies must lie between 0 and 1, or 0 and 100 %.")
    scale = 100 if max(values) > 1 else 1
    return list(zip(_steps(path, rows, step), [v / scale for v in values], strict=True))


def read_study(path: Path) -> list[Measures]:
    """The measures of each step, as far as its columns are recognised."""
    names, rows = read_table(path)
    step = _find(names, ("step",))
    if step is None:
        raise ValueError(f"{path} lacks a column of steps; it has {cut(', '.join(names))}.")
    places = {ours: _find(names, words, without) for ours, (words, without) in MEASURES.items()}
    found = []
    known = {f.name for f in fields(Measures)}
    for number, row in zip(_steps(path, rows, step), rows, strict=True):
        values = {
            ours: row[p] for ours, p in places.items() if p is not None and ours in known and not math.isnan(row[p])
        }
        points = values.pop("points", 0.0)
        deviation, norm = values.get("honest_deviation"), values.get("honest_norm")
        ratio = (q * q if math.isfinite(q := deviation / norm) else None) if deviation is not None and norm else None
        loss = values.pop("loss", math.nan)
        found.append(
            Measures(number, int(points) if math.isfinite(points) else 0, math.nan, loss, **values, ratio=ratio)
        )
    return found
