"""The command line: thin over the functions of the library. A command is imported when it is called, and not before."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from .. import __version__
from ..core.checks import likely, printable, unknown

# name: (module, the command there, what it does)
COMMANDS = {
    "advise": (
        ".advise",
        "advise_command",
        "Which rules n and f allow, what a wrong f costs, where momentum should stand.",
    ),
    "check": (".check", "check_command", "Whether a rule, a mixing or an attack of your own keeps its contract."),
    "data": (".data", "data_command", "Who holds which data, and how far apart that puts honest gradients: G and B."),
    "demo": (".runs", "demo_command", "The paper's comparison in small, in under a minute."),
    "doctor": (".doctor", "doctor_command", "What a bug report should hold: versions, machine, data, a self-test."),
    "heterogeneity": (
        ".study",
        "heterogeneity_command",
        "When momentum should stand at the workers: data that differ, rules, worst attacks.",
    ),
    "import": (".study", "import_command", "Result folders of the paper's own code as runs, for the report."),
    "list": (
        ".catalogue",
        "list_command",
        "What there is: rules, attacks, models, data sets, losses, metrics ...",
    ),
    "replay": (".runs", "replay_command", "Rebuild all n vectors of one step of a run, and explain it."),
    "report": (".study", "report_command", "A page, figures and the claims table of runs."),
    "reproduce": (".study", "reproduce", "The paper's study: all its runs, figures and claims."),
    "run": (".runs", "run_command", "Train once: n workers, some Byzantine, one rule."),
    "score": (".score", "score_command", "Is it any good? One page on a rule, a mixing or an attack, ours or yours."),
    "suspects": (
        ".suspects",
        "suspects_command",
        "Whom suspicion names in kept runs, how right that is, and how soon.",
    ),
    "sweep": (".study", "sweep_command", "All runs of a grid: settings whose values are lists multiply."),
    "tune": (".study", "tune_command", "The learning rate, momentum, clip ... that are best under the worst attack."),
    "watch": (".watch", "watch_command", "Follow the runs in a folder, of a sweep or single ones, in the terminal."),
}

# What others call a command, and what it is called here.
SYNONYMS = {
    "train": "run",
    "start": "run",
    "ls": "list",
    "show": "list",
    "study": "reproduce",
    "plot": "report",
    "status": "watch",
    "follow": "watch",
    "grid": "sweep",
    "placement": "heterogeneity",
    "scorecard": "score",
    "advice": "advise",
    "recommend": "advise",
    "workers": "suspects",
    "detect": "suspects",
}


@dataclass
class _Asked:
    """What was asked for beside a command."""

    debug: bool = False


def _debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        asked = context.find_object(_Asked)
        assert asked is not None
        asked.debug = True


def _with_debug(command: click.Command) -> click.Command:
    """The command, which now also takes --debug."""
    if all(parameter.name != "debug" for parameter in command.params):
        command.params.append(
            click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=_debug, help="show the traceback of an error"
            )
        )
    return command


class _Commands(click.Group):
    """The commands of the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        return _with_debug(getattr(importlib.import_module(module, __name__), name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            raise click.UsageError(unknown("command", args[0], COMMANDS, SYNONYMS), ctx)
        return click.Group.resolve_command(self, ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="varangian")
@click.pass_context
def commands(context: click.Context) -> None:
    """Byzantine-resilient distributed SGD: rules, attacks, and where momentum should stand."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


_with_debug(commands)


def main() -> None:
    """Runs the program. A user's mistake ends with one clear message on stderr and exit status 2, never a traceback.

    So does an error in code of the user's own, with the place and exit status 1; ``--debug`` shows the traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot write is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    asked, written = _Asked(), sys.stdout
    try:
        with _plain_warnings(), _notices():
            status = commands.main(standalone_mode=False, prog_name="varangian", obj=asked)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, and not at the end of the process, where it is too late to say nothing
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        # click hands on an Abort in place of a sweep's own KeyboardInterrupt.
        said = str((stop.__context__ or "") if isinstance(stop, click.Abort) else stop)
        _say(
            f"interrupted; {said or 'what runs and sweeps have done is kept, and the same command goes on from there.'}"
        )
        sys.exit(130)
    except click.ClickException as error:
        _say(_sentence(error))
        sys.exit(2)
    except BrokenPipeError:
        _unread()
    except SystemExit as stop:
        # Rich may have heard of it first, or click, which puts another stream in the place of ours.
        if isinstance(stop.__context__, BrokenPipeError) or sys.stdout is not written:
            _unread()
        raise
    except Exception as error:
        if asked.debug:
            raise
        from ..core.references import place_of  # which few commands need

        place = place_of(error)
        if isinstance(error, MemoryError):
            _say(f"not enough memory: {error}")
        elif place is not None:
            _say(f"{type(error).__name__} at {place}: {error} (--debug shows the traceback)")
            sys.exit(1)
        elif isinstance(error, (ValueError, OSError)):
            _say(str(error))
        else:
            raise
        sys.exit(2)


def _unread() -> NoReturn:
    """Ends as a program does whose reader has gone: without a word, and with the status that SIGPIPE gives others."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is still to be written at the end of the process
    os.close(nowhere)
    sys.exit(141)


# How click says it, and what we say instead.
_SAID = (
    (r"(?:Directory|Path) ('.*') is a file", r"\1 is a file, not a folder"),
    (r"(?:File|Path) ('.*') is a directory", r"\1 is a folder, not a file"),
    (r"(?<=: )('.*') is not a valid integer(?: range)?", r"must be a whole number{}, got \1"),
    (r"(?<=: )('.*') is not a valid float(?: range)?", r"must be a number{}, got \1"),
)


def _bounds(kind: object) -> str:
    if not isinstance(kind, (click.IntRange, click.FloatRange)):
        return ""
    least, most = kind.min, kind.max
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""


def _sentence(error: click.ClickException) -> str:
    """What click has to say, in our form: one line, the likely word, and where to read more."""
    message = " ".join(error.format_message().split())
    if isinstance(error, click.BadParameter):
        bounds = _bounds(error.param.type if error.param is not None else None)
        for theirs, ours in _SAID:
            message = re.sub(theirs, ours.format(bounds), message)
    if isinstance(error, click.NoSuchOption):
        message = f"no such option {error.option_name!r}."
        meant = likely(error.option_name, _options(error.ctx), _elsewhere(error.ctx))
        if error.option_name == "--seeds" and meant == "--seed":
            message += " A run has one --seed; several seeds are several runs."
        elif meant is not None:
            message += f" Did you mean {meant!r}?"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message = (
            f"{message if message.endswith('?') else message.rstrip('.') + '.'} See {error.ctx.command_path} --help."
        )
    return message[:1].lower() + message[1:]


def _elsewhere(context: click.Context | None) -> dict[str, str]:
    if context is None or context.command.name != "run":
        return {}
    from ..runs.experiment import ELSEWHERE  # by now the command has imported it

    settings = {name: meant.replace("_", "-") for name, meant in ELSEWHERE.items()} | {"output": "out"}
    return {f"--{name}": f"--{meant}" for name, meant in settings.items()}


def _options(context: click.Context | None) -> Sequence[str]:
    return [] if context is None else [name for p in context.command.get_params(context) for name in p.opts]


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Inside, what the library warns of is a line like any other message."""
    with warnings.catch_warnings():
        former = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if category is UserWarning:
                _say(str(message))
            else:
                former(message, category, *rest)

        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


class _Notices(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


@contextmanager
def _notices() -> Iterator[None]:
    """Inside, what the library notes is a line like any other message."""
    logger, handler = logging.getLogger("varangian"), _Notices(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _say(message: str) -> None:
    click.echo(f"varangian: {printable(message)}", err=True)
