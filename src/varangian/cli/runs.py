"""The commands of single runs: run, replay, and the demo."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..core.references import importing
from ..runs.experiment import HASHES, SUCCESS, ConfigurationError, Experiment, differences
from ..runs.files import read_text
from ..runs.interrupts import termination_interrupts
from ..runs.replaying import replay
from ..runs.results import Evaluation, Result, settings_of
from ..runs.running import CHECKPOINT_EVERY
from ..runs.running import resume as resume_experiment
from ..runs.running import run as run_experiment
from ..study import demo as demonstration
from ..study.outcomes import attack_name, rule_name

output = Console()
notices = Console(stderr=True)
MANY_CLASSES, FEW_CLASSES = 12, 5  # more than so many are not all told


def knobs(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each field of Experiment. Values stay text: Experiment reports all faults at once."""
    hints = get_type_hints(Experiment)
    for knob in reversed([field for field in fields(Experiment) if field.name not in HASHES]):
        flag = "--" + knob.name.replace("_", "-")
        text = knob.metadata["help"]
        shown = ",".join(knob.default) if isinstance(knob.default, tuple) else knob.default
        if isinstance(knob.default, bool):
            option = click.option(f"{flag}/--no-{flag[2:]}", default=None, help=f"{text}  [{'on' if shown else 'off'}]")
        else:
            option = click.option(
                flag,
                default=None,
                metavar=_choices(hints[knob.name]) or "VALUE",
                help=text + (f"  [{shown}]" if shown not in (None, "") else ""),
            )
        command = option(command)
    return command


OUTLETS = (
    click.option("--events", is_flag=True, help="also write events.jsonl: a JSON line for whatever happens"),
    click.option("--tensorboard", is_flag=True, help="also write for TensorBoard; needs varangian[tensorboard]"),
)


def _choices(hint: Any) -> str | None:
    """[worker|server|shared], where a setting is one of a few words."""
    words = [word for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal for word in get_args(kind)]
    return f"[{'|'.join(words)}]" if words else None


def experiment_of(config: Path | None, settings: dict[str, Any]) -> Experiment:
    values: dict[str, Any] = {}
    if config is not None:
        text = read_text(config, follow=True)
        try:  # leniently: what the command line overrides need not be right in the file
            values = Experiment.values_from_text(text, toml=config.suffix.lower() == ".toml")
        except ConfigurationError as error:
            raise ValueError(
                f"{config}: {str(error).rstrip('.')}. Settings are read as JSON, or as TOML from a file named .toml."
            ) from None
    asked = {key: value for key, value in settings.items() if value is not None}
    try:
        return Experiment.from_dict(values | asked)
    except ConfigurationError as error:
        if config is None:
            raise
        mistaken = _faults(values)  # before the command line overrides anything
        raise ConfigurationError([f"{config}: {f}" if f in mistaken else f for f in error.faults]) from None


def _faults(values: dict[str, Any]) -> list[str]:
    try:
        Experiment.from_dict(values)
    except ConfigurationError as error:
        return error.faults
    return []


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


@click.command("run")
@knobs
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON or TOML file of settings; options override it.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="folder of run folders"
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="folder of data files  [$VARANGIAN_DATA or the user's data folder]"
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [all cores]")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
@click.option("--quiet", is_flag=True, help="no progress bar")
@click.option("--fresh", is_flag=True, help="start over, whatever is there of this run")
@click.option(
    "--resume",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="go on with the run in that folder; its settings are known there",
)
@click.option("--trust", is_flag=True, help="with --resume: import the code of somebody's own that the folder names")
@click.option(
    "--checkpoint-every",
    type=float,
    default=CHECKPOINT_EVERY,
    show_default=True,
    metavar="SECONDS",
    help="time between two checkpoints, more where they would cost over 1 %; 0 for every step",
)
@OUTLETS[0]
@OUTLETS[1]
@click.pass_context
def run_command(
    context: click.Context, config: Path | None, out: Path, data: Path | None, threads: int | None, as_json: bool,
    quiet: bool, fresh: bool, resume: Path | None, trust: bool, checkpoint_every: float, events: bool,
    tensorboard: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train once: n workers, some Byzantine, one rule.

    \b
    Example: varangian run --rule median --attack little --workers 15 --byzantine 3 --momentum-at worker
    Names of rules, attacks, ...: varangian list. Options of one in parentheses: --rule "multi-krum(m=5)".
    The same command again goes on with an interrupted run, and answers at once where it is complete.
    """
    if resume is not None:
        given = context.get_parameter_source("out") is not click.core.ParameterSource.DEFAULT
        if fresh or config is not None or given:
            raise click.UsageError("--resume takes everything from its folder: leave out --fresh, --config and --out.")
        experiment = _unchanged(resume, settings, trust)
    else:
        if trust:
            raise click.UsageError("--trust is for --resume: what is named here or in your own --config is imported.")
        experiment = experiment_of(config, settings)
    set_threads(threads)
    with termination_interrupts(), progress_of(experiment, quiet) as step:
        if resume is not None:
            result = resume_experiment(
                resume, data_folder=data, progress=step, checkpoint_every=checkpoint_every, trust=trust,
                device=settings["device"], events=events, tensorboard=tensorboard,
            )  # fmt: skip
        else:
            result = run_experiment(
                experiment, out, data_folder=data, progress=step, fresh=fresh, checkpoint_every=checkpoint_every,
                events=events, tensorboard=tensorboard,
            )  # fmt: skip
    if as_json:
        click.echo(json.dumps(result.summary() | {"folder": str(result.folder), "experiment": experiment.to_dict()}))
    else:
        _show(result)


def _unchanged(folder: Path, settings: dict[str, Any], trust: bool) -> Experiment:
    """The experiment of a folder, which settings may repeat and not change; where it goes on, is free."""
    there = settings_of(folder, trust)
    repeated = {key: value for key, value in settings.items() if value is not None and key != "device"}
    with importing(trust):
        asked = Experiment.from_dict(there.to_dict() | repeated)
    if asked.digest != there.digest:
        lines = "\n  - ".join(differences(there, asked))
        raise ValueError(f"{folder} can only be resumed with its own settings:\n  - {lines}")
    return there


@contextmanager
def progress_of(experiment: Experiment, quiet: bool) -> Iterator[Callable[[int, Evaluation | None], None] | None]:
    if quiet or not notices.is_terminal:  # elsewhere a bar would leave an empty line, and nothing else
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TextColumn("{task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notices, transient=True) as bar:
        task = bar.add_task("training", total=experiment.steps, accuracy="")

        def step(done: int, newest: Evaluation | None) -> None:
            bar.update(task, completed=done, accuracy="" if newest is None else _newest(newest))

        yield step


def _newest(evaluation: Evaluation) -> str:
    if math.isnan(evaluation.accuracy):
        return f"loss {evaluation.loss:.4g}"
    return f"accuracy {evaluation.accuracy:.1%}"


def _by_class(accuracies: Sequence[float]) -> str:
    """The accuracy on each class; of many those on which it is least."""
    ranked = sorted((accuracy, c) for c, accuracy in enumerate(accuracies) if not math.isnan(accuracy))
    shown = ranked[:FEW_CLASSES] if len(accuracies) > MANY_CLASSES else sorted(ranked, key=lambda pair: pair[1])
    text = ", ".join(f"{c}: {accuracy:.0%}" for accuracy, c in shown)
    return text if len(shown) == len(ranked) else f"{text}; {len(ranked) - len(shown)} others are no worse"


def _liars(e: Experiment) -> str:
    """The attack and by how many; that nobody lies, is said too: so many are tolerated and not there."""
    if e.attack is None or not e.attackers:
        return "none: nobody lies"
    people = e.population()
    if people is not None:
        return f"{attack_name(e)}, by {people.byzantine:,} of {people.clients:,} clients"
    return f"{attack_name(e)}, by {e.attackers:,} of {e.workers:,} workers"


def _show(result: Result) -> None:
    e = result.experiment
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    synthetic = " (made-up images)" if e.dataset.startswith("synthetic") else ""
    last, classifies = result.evaluations[-1], not math.isnan(result.max_accuracy)
    table.add_row("rule", escape(f"{rule_name(e)}, against {e.byzantine:,} of {e.workers:,} workers"))
    table.add_row("attack", escape(_liars(e)))
    if classifies:
        table.add_row("max accuracy", f"[bold]{result.max_accuracy:.2%}[/bold] on the test set{synthetic}")
        table.add_row("final accuracy", f"{result.final_accuracy:.2%}")
    else:
        table.add_row("final loss", f"[bold]{last.loss:.4g}[/bold] on the test set")
    if result.chosen is not None and not classifies:
        table.add_row("least validation", f"{result.chosen.validation_loss:.4g}, the loss on training data set aside")
        table.add_row("loss there", f"{result.chosen.loss:.4g} on the test set, step {result.chosen.step}")
    elif result.chosen is not None:
        table.add_row("max validation", f"{result.max_validation:.2%}, on training data set aside")
        table.add_row("accuracy there", f"{result.chosen.accuracy:.2%} on the test set, step {result.chosen.step}")
    for name, value in last.metrics.items():
        if name.removeprefix("validation_") == SUCCESS:
            table.add_row(name.replace("_", " "), f"{value:.2%} at the end")
        elif result.class_accuracy is None or re.fullmatch(r"(validation_)?class_\d+", name) is None:
            table.add_row(name.replace("_", " ", 1), f"{value:.4g} at the end")
    if result.class_accuracy is not None:
        table.add_row("by class", _by_class(result.class_accuracy))
    if result.measures:
        each = 1e3 * result.seconds / len(result.measures)
        table.add_row("steps", f"{len(result.measures)} of {e.steps}, {result.seconds:.1f} s, {each:.1f} ms each")
    if result.began:
        table.add_row("resumed", f"from the checkpoint of step {result.began}")
    if result.stopped:
        table.add_row("[red]stopped[/red]", result.stopped)
    output.print(table)
    where = "read from       " if result.from_disk else "kept in         "
    rest = ", complete before: nothing was trained" if result.from_disk else ""
    output.print(f"{where}{result.folder}{rest}", soft_wrap=True, highlight=False, markup=False)


@click.command("replay")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--step", type=click.IntRange(0), required=True, help="which step, from 0")
@click.option("--trust", is_flag=True, help="import the code of somebody's own that the folder names")
@click.option(
    "--data", type=click.Path(path_type=Path), help="folder of data files  [$VARANGIAN_DATA or the user's data folder]"
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [all cores]")
@click.option("--device", help="where to compute: cpu, cuda, cuda:1 ...  [where the run was]")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="keep the vectors, as .npy"
)
def replay_command(
    folder: Path, step: int, trust: bool, data: Path | None, threads: int | None, device: str | None,
    save: Path | None,
) -> None:  # fmt: skip
    """Rebuild all n vectors of one step of a run, and explain what the server made of them.

    \b
    Example: varangian replay runs/digits-fully-connected-... --step 120
    Steps are done again from the nearest checkpoint, or from the start. Byzantine rows are the last ones.
    """
    set_threads(threads)
    with progress_of(settings_of(folder), quiet=False) as progress:
        found = replay(folder, step, data_folder=data, progress=progress, trust=trust, device=device)
    click.echo(str(found))
    if save is not None:
        with open(save, "wb") as file:
            np.save(file, found.vectors.cpu().numpy(), allow_pickle=False)
        output.print(f"vectors kept in {save}", soft_wrap=True, highlight=False, markup=False)


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="where the report goes",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads  [all cores]")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
def demo_command(out: Path, threads: int | None, as_json: bool) -> None:
    """The paper's comparison in small, in under a minute.

    6 rules, 2 attacks, momentum in 2 places, and 3 batch sizes, since the effect grows with the noise of gradients.
    """
    set_threads(threads)
    demonstration.demo(out, output, notices, as_json)
