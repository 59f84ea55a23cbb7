"""What a line of events.jsonl holds. Version 1: later ones add events and fields, and take none away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from ...core.checks import cut, printable
from ...simulation.metrics import EVERY_COLUMN
from ..files import MAX_ROWS, MAX_TABLE, parse_json, read_text
from ..folders import EVENTS

Number = float | Literal["nan", "inf", "-inf"]
Count = Annotated[int, Field(ge=0, le=2**53)]
Line = Annotated[str, Field(max_length=2000)]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Timed(_Event):
    time: Time


class RunBegun(_Timed):
    """A run starts, or goes on: from ``step``. The first line of the file of a run."""

    event: Literal["begun"]
    what: Literal["run"]
    version: Literal[1]
    name: Line
    digest: Annotated[str, Field(pattern="^[0-9a-f]{10}$")]
    step: Count
    steps: Count
    pid: Count
    settings: dict[str, Any]


class SweepBegun(_Timed):
    """A sweep starts, also that of a tuning. Of its ``runs`` so many are ``complete``, and ``todo`` are to do here."""

    event: Literal["begun"]
    what: Literal["sweep"]
    version: Literal[1]
    command: Line
    runs: Count
    complete: Count
    todo: Count
    jobs: Count
    threads: Count
    pid: Count


class Evaluated(_Event):
    """The model before the update of that step; as a row of evaluations.csv."""

    event: Literal["evaluation"]
    step: Count
    accuracy: Number
    loss: Number
    validation_accuracy: Number | None = None
    validation_loss: Number | None = None
    metrics: dict[Line, Number] = {}


class OfRun(_Timed):
    """What a sweep heard of one of its runs. ``folder`` is that of the run, in the sweep's."""

    event: Literal["run"]
    state: Literal["started", "complete", "failed", "elsewhere", "died"]
    folder: Line
    seconds: Annotated[float, Field(ge=0)] | None = None
    why: Line | None = None


class Stopped(_Timed):
    """A run came to an end before its last step: its rule refused, or its parameters diverged."""

    event: Literal["stopped"]
    step: Count
    why: Line


class Interrupted(_Timed):
    """By Ctrl-C, a signal, or a listener that said so; ``step`` steps were done. It can go on."""

    event: Literal["interrupted"]
    step: Count | None = None


class Failed(_Timed):
    """By an error, of the machine or of somebody's own code."""

    event: Literal["failed"]
    step: Count | None = None
    why: Line


class RunComplete(_Timed):
    """``result`` is what result.json holds."""

    event: Literal["complete"]
    what: Literal["run"]
    result: dict[str, Any]


class SweepComplete(_Timed):
    """All that there was to do here is done: ``done`` runs, beside ``failed`` ones and those that are ``left``."""

    event: Literal["complete"]
    what: Literal["sweep"]
    done: Count
    failed: Count
    left: Count
    seconds: Annotated[float, Field(ge=0)]


class Chosen(_Timed):
    """What a tuning chose, as text; its accuracy on the data set aside, and the condition under which that is least."""

    event: Literal["chosen"]
    settings: dict[Line, Line]
    validation: Number
    under: Line


_columns: dict[str, Any] = dict.fromkeys(EVERY_COLUMN, (Number | None, None))
_columns |= dict.fromkeys(("step", "points"), (Count, ...))
_columns |= dict.fromkeys(("learning_rate", "loss"), (Number, ...)) | {"event": (Literal["step"], ...)}
Step = create_model("Step", __base__=_Event, **_columns)
Step.__doc__ = "The measures of a step, as a row of metrics.csv; what means nothing there is left out."

_Begun = Annotated[RunBegun | SweepBegun, Field(discriminator="what")]
_Complete = Annotated[RunComplete | SweepComplete, Field(discriminator="what")]
_KINDS: Any = Union[_Begun, Step, Evaluated, OfRun, Chosen, Stopped, Interrupted, Failed, _Complete]  # noqa: UP007
_LINE: Any = Annotated[_KINDS, Field(discriminator="event")]
_ANY: TypeAdapter[Any] = TypeAdapter(_LINE)


def schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    return _ANY.json_schema()


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """The events in a file, or in the folder of a run. A line that is still being written is not among them.

    Raises:
        ValueError: a line is not what it should be.
        OSError: there is no such file.

    Example:
        >>> import tempfile
        >>> import varangian as vg
        >>> with tempfile.TemporaryDirectory() as out:
        ...     kept = vg.run(vg.Experiment(model="linear", steps=2), out, events=True)
        ...     told = read_events(kept.folder)
        >>> [line["event"] for line in told]
        ['begun', 'evaluation', 'step', 'step', 'evaluation', 'complete']
        >>> told[0]["name"] == kept.experiment.name, told[2]["loss"] == float(f"{kept.measures[0].loss:.9g}")
        (True, True)
    """
    path = Path(path).expanduser()
    path = path / EVENTS if path.is_dir() else path
    lines = read_text(path, MAX_TABLE).split("\n")[:-1]
    if len(lines) > MAX_ROWS:
        raise ValueError(f"{path} has more than {MAX_ROWS:,} lines.")
    return [_checked(path, number, line) for number, line in enumerate(lines, start=1)]


def _checked(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
        _ANY.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(f"{path}, line {number}: {cut(printable(said))}.") from None
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {cut(printable(str(error)))}.") from None
    if number == 1 and value["event"] != "begun":
        raise ValueError(f"{path}, line 1: the first event is not begun.")
    return value
