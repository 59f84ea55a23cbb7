"""Many experiments as one small text: settings whose values are lists multiply."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit

from ..core.checks import MOST_SEED, shown, unknown
from ..core.references import importing
from ..core.specs import describe, split
from ..runs.experiment import ELSEWHERE, HASHES, MAX_TOML, SPECS, ConfigurationError, Experiment
from ..runs.fields import NAMED, name_of_code
from ..runs.files import MAX_TEXT, make_folder, read_text, write_whole

MOST = 100_000  # runs of one grid: what a table of runs holds
MOST_FAULTS = 20  # that are listed
MOST_GRIDS, MOST_STRANGE = 1000, 3  # files of grids in a folder, and those among them that are none
PARTS = ("seeds", "exclude", "case")  # of a text, beside the settings
SETTINGS = {f.name: f.default for f in fields(Experiment)}


@dataclass(frozen=True)
class Grid:
    """All combinations of some settings as experiments, each made and checked once, in an order that stays.

    A setting whose value is a list takes each of its values in turn; all others are for all runs. So every setting of
    :class:`Experiment` is one of a grid, with the same text, and a grid without lists is a single run. Two settings
    are themselves lists: ``pre`` takes a list of texts or of lists ("none", "nnm", ["bucketing(s=2)", "nnm"]), and
    ``learning_rate`` takes pieces as text ("0.02,8000:0.004") or as pairs of a step and a rate.

    Args:
        settings: by name; a value or a list of values each.
        seeds: "1-5", "1,3,7" or a list of numbers; each combination runs with each of them.
        exclude: combinations to leave out: each names some settings and the value, or a list of values, that a run must
            have in all of them to be left out.
        cases: settings that go together: the grid is then that of ``settings`` with those of the first case in their
            place, that with those of the second, and so on. Their values may be lists too.

    Raises:
        ConfigurationError: with one line per fault, of all runs at once. A combination that cannot be run is a fault;
            more than 100,000 runs are refused before any is made.

    Example:
        >>> grid = Grid(
        ...     {"rule": ["median", "bulyan"], "attack": ["little", "empire"], "workers": 11, "byzantine": [2, 4]},
        ...     seeds="1-3",
        ...     exclude=[{"rule": "bulyan", "byzantine": 4}],
        ... )
        >>> len(grid), grid.experiments()[0].name
        (18, 'digits-fully-connected-median-little-n11-f2-worker0.9-lr0.1-seed1')
        >>> Grid.from_toml(grid.to_toml()) == grid
        True
    """

    settings: Mapping[str, Any]
    seeds: str | Sequence[int] | None = None
    exclude: Sequence[Mapping[str, Any]] = ()
    cases: Sequence[Mapping[str, Any]] = ()
    _axes: tuple[dict[str, list[Any]], ...] = field(init=False, repr=False, compare=False)
    _made: tuple[Experiment, ...] = field(init=False, repr=False, compare=False)
    _notes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        faults: list[str] = []
        settings = _settings("", self.settings, faults)
        exclude = _tables("exclude", self.exclude, faults)
        cases = _tables("case", self.cases, faults)
        seeds = None
        if self.seeds is not None:
            try:
                seeds = numbers(self.seeds)
            except ValueError as error:
                faults.append(f"seeds: {error}")
            if any("seed" in table for table in (settings, *cases)):
                faults.append("seeds: seed says the same; name one of the two.")
        axes = []
        for case in cases or [{}]:
            values = {"seed": list(seeds)} if seeds else {}
            values |= {name: values_of(name, value) for name, value in (settings | case).items()}
            axes.append({"seed": values.pop("seed", [SETTINGS["seed"]])} | values)
        empty = dict.fromkeys(name for case in axes for name, values in case.items() if not values)
        faults += [f"{name}: a list without values leaves nothing to run." for name in empty]
        if any(isinstance(table, Mapping) and not table for table in _listed(self.exclude)):
            faults.append("exclude: an exclusion that names no setting leaves nothing to run.")
        counts = [math.prod(len(values) for values in case.values()) for case in axes]
        if sum(counts) > MOST:
            longest = {n: len(v) for n, v in axes[counts.index(max(counts))].items() if len(v) > 1}
            product_of = " x ".join(f"{name} ({count:,})" for name, count in longest.items())
            faults.append(
                f"this grid has {sum(counts):,} runs before its exclusions, over {MOST:,}: {product_of}. Shorten a "
                "list, or make several grids of it."
            )
        if faults:
            raise ConfigurationError(_first(faults))
        short: dict[str, dict[str, set[str]]] = {}
        made, notes = _make(axes, exclude, short)
        # Whoever reads the grid later, and imports nothing, is to see the texts that its runs are known by.
        settings, *exclude = (_shortened(table, short) for table in (settings, *exclude))
        cases = [_shortened(table, short) for table in cases]
        values = {"settings": settings, "seeds": seeds, "exclude": tuple(exclude), "cases": tuple(cases)}
        for name, value in (values | {"_axes": tuple(axes), "_made": tuple(made), "_notes": tuple(notes)}).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self._made)

    def experiments(self) -> list[Experiment]:
        """All runs: one seed after the other, cases in turn, and in each the last setting that has a list first."""
        return list(self._made)

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on each exclusion that leaves out nothing, and on combinations that are the same run."""
        return self._notes

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The settings that have several values, and these, those of all cases together."""
        found: dict[str, list[Any]] = {}
        for case in self._axes:
            for name, values in case.items():
                there = found.setdefault(name, [])
                there += [value for value in values if value not in there]
        return {name: values for name, values in found.items() if len(values) > 1}

    def replaced(self, settings: Mapping[str, Any]) -> Grid:
        """The grid with some settings, or ``seeds``, said anew, in all its cases.

        Raises:
            ConfigurationError: as at construction.
        """
        return Grid.from_dict(replaced(self.to_dict(), settings)) if settings else self

    def to_dict(self) -> dict[str, Any]:
        """As plain values: what a JSON or TOML file of this grid holds."""
        content: dict[str, Any] = dict(self.settings)
        if self.seeds is not None:
            content["seeds"] = list(self.seeds)
        if self.exclude:
            content["exclude"] = [dict(table) for table in self.exclude]
        if self.cases:
            content["case"] = [dict(table) for table in self.cases]
        return _written(content)

    def to_toml(self) -> str:
        """As TOML, which has no null: "none" stands for it."""
        return tomlkit.dumps(_written(self.to_dict(), "none"))

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits of its text."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()[:10]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Grid:
        """From plain values: settings by name, and seeds, exclude and case where there are any."""
        settings = {name: value for name, value in content.items() if name not in PARTS}
        return cls(settings, content.get("seeds"), content.get("exclude", ()), content.get("case", ()))

    @classmethod
    def from_toml(cls, text: str) -> Grid:
        """From settings as TOML, of which those that are lists multiply."""
        return cls.from_dict(Experiment.values_from_text(text, toml=True))

    @classmethod
    def from_json(cls, text: str) -> Grid:
        """From settings as JSON, of which those that are lists multiply."""
        return cls.from_dict(Experiment.values_from_text(text))

    @classmethod
    def from_file(cls, path: str | Path, settings: Mapping[str, Any] | None = None) -> Grid:
        """From a JSON file, or TOML where its name ends in .toml; ``settings`` stand in place of those of the file.

        Raises:
            ConfigurationError: as at construction; each fault names the file.
            OSError: it cannot be opened.
        """
        path = Path(path).expanduser()
        content = read_content(path)
        try:
            return cls.from_dict(replaced(content, settings or {}))
        except ConfigurationError as error:
            raise ConfigurationError([f"{path}: {fault}" for fault in error.faults]) from None


def read_content(path: Path) -> dict[str, Any]:
    """What a file of settings holds, not looked at yet.

    Raises:
        ConfigurationError: it is no TOML or JSON.
        OSError: it cannot be opened.
    """
    text = read_text(path, MAX_TEXT, follow=True)
    try:
        return Experiment.values_from_text(text, toml=path.suffix.lower() == ".toml")
    except ConfigurationError as error:
        fault = f"{path}: {str(error).rstrip('.')}. A grid is read as JSON, or as TOML from a file named .toml."
        raise ConfigurationError([fault]) from None


def replaced(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds, with some settings said anew in it and in all its cases."""
    seeds = {"seed", "seeds"} & set(settings)
    gone = {"seed", "seeds"} - seeds if seeds else set()
    rest: dict[str, Any] = {
        name: settings.get(name, value) for name, value in content.items() if name not in gone
    } | dict(settings)
    cases = rest.get("case")
    if isinstance(cases, list):
        rest["case"] = [
            {name: value for name, value in case.items() if name not in {*settings, *gone}}
            if isinstance(case, Mapping)
            else case
            for case in cases
        ]
    return rest


def record_grid(folder: Path, grid: Grid) -> Path:
    """Keeps the grid among those of a study: ``<folder>/grids/<digest>.toml``, the same bytes for the same grid.

    One that is longer than a TOML text that is read, as of a search of thousands, is kept as JSON.
    """
    text, ending = grid.to_toml(), "toml"
    if len(text) > MAX_TOML:
        text, ending = json.dumps(grid.to_dict(), indent=2) + "\n", "json"
    path = make_folder(folder, "grids") / f"{grid.digest}.{ending}"
    if not path.exists():
        write_whole(path, lambda file: file.write(text.encode()))
    return path


@importing(False)
def grids_of(folder: Path) -> list[Grid]:
    """The grids that were swept into a folder; a file there that is none says nothing, and nothing is imported.

    Files of anybody: no more are read once there are too many runs, or files that are no grids.
    """
    found: list[Grid] = []
    strange = 0
    paths = [path for path in sorted((folder / "grids").glob("*")) if path.suffix in (".toml", ".json")]
    for path in paths[:MOST_GRIDS]:
        if sum(map(len, found)) > MOST or strange > MOST_STRANGE:
            break
        try:
            text = read_text(path)
            found.append(Grid.from_toml(text) if path.suffix == ".toml" else Grid.from_json(text))
        except (OSError, ValueError):
            strange += 1
    return found


def numbers(value: object) -> tuple[int, ...]:
    """Seeds in this order, each once, of "1-5", "1,3,7" or a list.

    Raises:
        ValueError: anything else, or more than 10,000.

    Example:
        >>> numbers("1-3,7"), numbers([2, 1, 2])
        ((1, 2, 3, 7), (2, 1))
    """
    if isinstance(value, str):
        found: list[int] = []
        for piece in value.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,19})\s*(?:-\s*([0-9]{1,19})\s*)?", piece)
            if match is None:
                raise ValueError(f"{shown(value)} is not of the form 1-5 or 1,3,7.")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or len(found) + last - first >= 10_000:
                raise ValueError(f"{shown(value)} goes down, or holds more than 10,000 seeds.")
            found += range(first, last + 1)
    elif isinstance(value, (list, tuple, range, np.ndarray)):
        if len(value) > 10_000:
            raise ValueError(f"more than 10,000 seeds ({len(value):,}).")
        found = [seed.item() if isinstance(seed, np.generic) else seed for seed in value]
    elif value == 1 and not isinstance(value, bool):
        found = [1]
    elif isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f'{value} may be so many seeds, or one: write "1-{value}" or [{value}].')
    else:
        raise ValueError(f'must be a list, or text such as "1-5", got {shown(value)}.')
    for seed in found:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
            raise ValueError(f"a seed is a whole number from 0 to 2^63 - 1, got {shown(seed)}.")
    if not found:
        raise ValueError("a list without seeds leaves nothing to run.")
    return tuple(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------ what a user writes


def _tables(part: str, given: Any, faults: list[str]) -> list[dict[str, Any]]:
    """The exclusions or cases: tables of settings, or one such table."""
    if not isinstance(given, (list, tuple, Mapping)):
        faults.append(f"{part}: must be a list of tables of settings, got {shown(given)}.")
    return [_settings(f"{part} {i}: ", table, faults) for i, table in enumerate(_listed(given), start=1)]


def _listed(given: Any) -> Sequence[Any]:
    return [given] if isinstance(given, Mapping) else given if isinstance(given, (list, tuple)) else []


def _settings(where: str, given: Any, faults: list[str]) -> dict[str, Any]:
    """A table of settings as plain values, whose names are known."""
    if not isinstance(given, Mapping):
        faults.append(f"{where}must be a table of settings by name, got {shown(given)}.")
        return {}
    found = {}
    for name, value in given.items():
        if name in PARTS and not where:
            faults.append(f"{name} is no setting, and is handed over beside them.")
            continue
        if name not in SETTINGS:
            known = [known for known in SETTINGS if known not in HASHES]
            faults.append(where + unknown("setting", str(name), [*known, *([] if where else PARTS)], ELSEWHERE))
            continue
        try:
            found[name] = plain(value, name in ("model", "loss"))
        except ValueError as error:
            faults.append(f"{where}{name}: {error}")
    return found


def plain(value: Any, code: bool = False) -> Any:
    """Arrays and tuples as lists, and besides only what a file can hold, or what has a name there."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, range)):
        return [plain(item, code) for item in value]
    if code and callable(value):
        return name_of_code(value)
    if not is_dataclass(value) or isinstance(value, type):
        raise ValueError(f"must be a value or a list of values, got {shown(value)}.")
    describe(value, NAMED)
    return value


def values_of(name: str, value: Any) -> list[Any]:
    """The values that a setting takes in turn."""
    if not isinstance(value, list):
        return [value]
    one = not value if name == "pre" else name == "learning_rate" and value and all(map(_is_piece, value))
    return [value] if one else value


def _is_piece(value: Any) -> bool:
    """[8000, 0.004], of a schedule; a list of such is one, and one of those has two schedules."""
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(item, list) for item in value)


def _written(value: Any, nothing: str | None = None) -> Any:
    """For a file: rules, mixings, attacks and partitions as their text."""
    if isinstance(value, dict):
        return {name: _written(item, nothing) for name, item in value.items()}
    if isinstance(value, list):
        return [_written(item, nothing) for item in value]
    if value is None:
        return nothing
    return value if isinstance(value, (bool, int, float, str)) else describe(value, NAMED)


# ------------------------------------------------------------------------------------------------------ what it makes


def _make(
    axes: Sequence[dict[str, list[Any]]], exclude: Sequence[dict[str, Any]], short: dict[str, dict[str, set[str]]]
) -> tuple[list[Experiment], list[str]]:
    """The runs, each once, and what is to be said about them; ``short`` gets what became of texts that name code."""
    needless = set(range(len(exclude)))
    excluded = _Exclusions(exclude)
    made: dict[str, Experiment] = {}
    again: list[tuple[Experiment, Experiment]] = []
    faults: dict[str, list[dict[str, Any]]] = {}
    count = 0
    for cell in _cells(axes):
        matching = excluded.of(cell)
        needless -= matching
        if matching:
            continue
        count += 1
        try:
            e = Experiment(**{name: value for name, value in cell.items() if name != "case"})
        except ConfigurationError as error:
            for fault in error.faults:
                faults.setdefault(fault, []).append(cell)
            continue
        for name in SPECS.keys() & cell.keys():
            asked, kept = cell[name], getattr(e, name)
            if isinstance(asked, str):
                asked, kept = [asked], [",".join(kept) if isinstance(kept, tuple) else kept]
            if isinstance(asked, list) and len(asked) == len(kept):
                for text, now in zip(asked, kept, strict=True):
                    if isinstance(text, str) and ":" in text:
                        short.setdefault(name, {}).setdefault(text, set()).add(now)
        there = made.setdefault(e.digest, e)
        if there is not e:
            again.append((there, e))
    if faults:
        raise ConfigurationError(_located(faults, axes, count))
    if not made:
        raise ConfigurationError(["exclude: the exclusions leave nothing to run."])
    notes = [f"exclude {i + 1} ({_text(exclude[i])}) leaves out nothing." for i in sorted(needless)]
    if again:
        what = "combination is a run that another one is too, and is" if len(again) == 1 else (
            "combinations are runs that others are too, and are")  # fmt: skip
        there, e = again[0]
        names = ", ".join(f for f in SETTINGS if getattr(there, f) != getattr(e, f))
        but = f", but for {names}, which changes nothing there" if names else ""
        notes.append(f"{len(again):,} {what} run once: the first is {there.name} again{but}.")
    return list(made.values()), notes


def _shortened(table: dict[str, Any], short: Mapping[str, Mapping[str, set[str]]]) -> dict[str, Any]:
    """Texts that name code as all runs that have them keep them."""

    def of(value: Any, kept: Mapping[str, set[str]]) -> Any:
        if isinstance(value, list):
            return [of(item, kept) for item in value]
        found = kept.get(value, ()) if isinstance(value, str) else ()
        return next(iter(found)) if len(found) == 1 else value

    return {name: of(value, short.get(name, {})) for name, value in table.items()}


def _cells(axes: Sequence[dict[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    """Every combination, with the number of its case: one seed after the other."""
    for seed in dict.fromkeys(seed for case in axes for seed in map(_hashable, case["seed"])):
        for number, case in enumerate(axes, start=1):
            here = case | {"seed": [own for own in case["seed"] if _hashable(own) == seed]}
            for values in product(*here.values()):
                yield dict(zip(here, values, strict=True)) | {"case": number}


def _hashable(value: Any) -> Any:
    return repr(value) if isinstance(value, list) else value


class _Exclusions:
    """Finds those that leave out a run by its values: many runs times many exclusions are never gone through."""

    def __init__(self, exclude: Sequence[Mapping[str, Any]]) -> None:
        self.naming = [len(partial) for partial in exclude]
        self.by_value: dict[str, dict[Any, set[int]]] = {}  # name: value: the exclusions that it agrees with
        for i, partial in enumerate(exclude):
            for name, values in partial.items():
                for value in values_of(name, values):
                    self.by_value.setdefault(name, {}).setdefault(_key(name, _written(value)), set()).add(i)

    def of(self, cell: Mapping[str, Any]) -> set[int]:
        """Those all of whose settings agree. Text may stand for a number, for nothing and for a list of mixings."""
        agreeing = Counter(
            chain.from_iterable(
                found.get(_key(name, _written(cell.get(name, SETTINGS[name]))), ())
                for name, found in self.by_value.items()
            )
        )
        return {i for i, count in agreeing.items() if count == self.naming[i]}


def _key(name: str, value: Any) -> Any:
    if name == "pre":
        listed = split(value) if isinstance(value, str) else value or ()
        return tuple(str(item).replace(" ", "") for item in listed if str(item).strip().lower() not in ("", "none"))
    text = str(value).replace(" ", "")
    small = text.lower()
    try:
        return float({"true": 1, "false": 0}.get(small, small))
    except ValueError:
        return None if small in ("none", "") else text  # whose case counts: names of classes differ by it


def _located(faults: Mapping[str, list[dict[str, Any]]], axes: Sequence[dict[str, list[Any]]], count: int) -> list[str]:
    """Each fault once, with the combinations that have it."""
    used = {"case": list(range(1, len(axes) + 1))} if len(axes) > 1 else {}
    for case in axes:
        for name, values in case.items():
            used.setdefault(name, [])
            used[name] += [value for value in values if value not in used[name]]
    lines, some = [], False
    for fault, cells in faults.items():
        here = {name: [v for v in values if any(c.get(name) == v for c in cells)] for name, values in used.items()}
        which = {name: values for name, values in here.items() if len(values) < len(used[name])}
        if len(cells) == count or not which:
            lines.append(fault)
            continue
        some |= len(which.keys() - {"case"}) > 1
        lines.append(f"{_text(which)} ({len(cells):,} of {count:,} runs): {fault}")
    if some:
        lines[-1] += " Combinations that cannot be run are left out by an exclusion ([[exclude]] in a file)."
    return _first(lines)


def _text(partial: Mapping[str, Any]) -> str:
    """A combination for a message: rule = 'bulyan', byzantine = 4 or 5."""
    parts = []
    for name, value in partial.items():
        listed = value if isinstance(value, list) else [value]
        more = f" or {len(listed) - 4:,} others" if len(listed) > 4 else ""
        parts.append(f"{name} = {' or '.join(shown(item) for item in listed[:4])}{more}")
    return ", ".join(parts)


def _first(faults: list[str]) -> list[str]:
    more = [f"and {len(faults) - MOST_FAULTS:,} more faults."] if len(faults) > MOST_FAULTS else []
    return faults[:MOST_FAULTS] + more
