"""What the reference shows comes from the classes, as the site is made: this is a Sphinx extension with its directives.

{api} Algorithm State           the docstrings of public names
{rule} krum                     of a rule: pictures, what its class says, its score card, its docstring
{mixing} {attack} {transform} {knowledge}     likewise
{overview} rules                a table of all
{names} DATASETS                what a table of names holds
{settings}                      the settings of an experiment
{command} run                   a command with its options
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import docstrings
import pictures
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import signature as signature_of
from sphinx.util.inspect import stringify_signature

import varangian as vg
from varangian import engines, testing
from varangian.cli import COMMANDS, commands
from varangian.cli.catalogue import catalogue
from varangian.core.attacks import Attack
from varangian.core.mixing import Mixing
from varangian.core.rules import Rule
from varangian.study.score.folder import read_cards

ROOT = Path(__file__).resolve().parents[2]
HERE = "docs/reference"
CARDS = "../../results/scorecard/cards"
TRANSFORMS = {kind.__name__: kind for kind in (vg.Momentum, vg.SharedMomentum, vg.Clip)}
STAGES: dict[str, dict[str, Any]] = {  # of our own: tutorials, run in this process, may add to the tables
    "rule": dict(vg.RULES),
    "mixing": dict(vg.MIXINGS),
    "attack": dict(vg.ATTACKS),
    "transform": TRANSFORMS,
    "knowledge": dict(vg.KNOWLEDGE),
}
SIZES = ((11, 2), (25, 5), (51, 12))  # (n, f) that bounds are given for
OPTION = {
    "rule": "--rule",
    "mixing": "--pre",
    "attack": "--attack",
    "transform": "",
    "knowledge": "--attack little --knowledge",
}
RUNS_WITH = {  # where a name alone is not what a run wants
    ("transform", "Momentum"): "--momentum 0.9 --momentum-at worker",
    ("transform", "SharedMomentum"): "--momentum 0.9 --momentum-at shared",
    ("transform", "Clip"): "--clip 2.0",
    ("mixing", "bucketing"): "bucketing --byzantine 2",  # half as many vectors are left
    ("knowledge", "spied"): '"spied(k=3)"',
}
VALUES = {  # public names that are neither classes nor functions
    "RULES": "Name to class, of all rules.",
    "MIXINGS": "Name to class, of all mixings.",
    "ATTACKS": "Name to class, of all attacks.",
    "KNOWLEDGE": "Name to class, of what the adversary may know.",
    "DATASETS": "Name to loader, of all data sets.",
    "PARTITIONS": "Name to class, of the ways in which data are dealt to workers.",
    "MODELS": "Name to what builds it, of all models.",
    "LOSSES": "Name to function, of what may be learned.",
    "METRICS": "Name to function, of what evaluations may measure beside accuracy and loss.",
    "Defence": "What an adversary may try out: any function [n, d] -> [d], a rule, or an algorithm.",
}


# --------------------------------------------------------------------------------------------------- what is public


def public() -> dict[str, Any]:
    """All public names, and what they are: of the package, of its engines, and of ``varangian.testing``."""
    found = {f"varangian.{name}": getattr(vg, name) for name in vg.__all__ if name not in ("engines", "testing")}
    for engine in engines.ENGINES:
        module = getattr(engines, engine)
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    return found | {f"{testing.__name__}.{name}": getattr(testing, name) for name in testing.__all__}


def members(kind: type) -> list[str]:
    """The public methods and properties that a class itself has, and says something of."""
    return [
        name
        for name, value in vars(kind).items()
        if (not name.startswith("_") or (name == "__call__" and not isinstance(value, staticmethod)))
        and (inspect.isroutine(value) or isinstance(value, property) or hasattr(value, "func"))
        and not inspect.isclass(value)
        and inspect.getdoc(getattr(kind, name))
        and not (isinstance(value, staticmethod) and value.__func__.__name__ == "<lambda>")
    ]


def is_stage(value: Any) -> bool:
    """Whether something has a section of its own, where its methods, those of its family, are not told again."""
    return any(value in table.values() for table in STAGES.values())


@lru_cache(maxsize=1)
def known() -> dict[str, str]:
    """What docstrings may refer to -> its full name in the reference."""
    found: dict[str, str] = {}
    for full, value in public().items():
        short = full.rpartition(".")[2]
        for name in (full, short):
            found.setdefault(name, full)
        if isinstance(value, type):
            found.setdefault(f"{value.__module__}.{value.__qualname__}", full)
            for member in () if is_stage(value) else members(value):
                found |= {f"{full}.{member}": f"{full}.{member}", f"{short}.{member}": f"{full}.{member}"}
    return found


def resolver(within: str) -> docstrings.Resolve:
    def resolve(target: str) -> str | None:
        target = target.lstrip(".~")
        kind = within if within in known().values() else within.rpartition(".")[0]
        return known().get(f"{kind}.{target}") or known().get(target)

    return resolve


def process_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    text = "\n".join(lines)
    if obj is vg.Experiment:  # whose settings are a table
        text = re.sub(r"^Args:\n(    .*\n)+", "", text, flags=re.MULTILINE)
    lines[:] = docstrings.rest(text, resolver(name))


def process_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Of a dataclass, what its fields are; of the experiment, whose settings are a table, next to nothing."""
    if obj is vg.Experiment:
        return "(**settings)", None
    if isinstance(obj, type) and is_dataclass(obj):
        fields_of = signature_of(obj.__init__, bound_method=True)
        return stringify_signature(fields_of, show_return_annotation=False, unqualified_typehints=True), None
    return None


def missing_reference(app: Sphinx, env: Any, node: nodes.Element, text: nodes.Element) -> nodes.Element | None:
    """A type in a signature that is of another library, or not public, stays plain text."""
    place: Any = node
    while place is not None and not isinstance(place, addnodes.desc_signature):
        place = place.parent
    return None if place is None else text


# --------------------------------------------------------------------------------------------------------- autodoc


def api(full: str) -> Iterator[str]:
    """The lines, in reStructuredText, that show one public name."""
    value = public()[full]
    if isinstance(value, type):
        yield f".. {'autoexception' if issubclass(value, BaseException) else 'autoclass'}:: {full}"
        shown = [] if is_stage(value) else members(value)
        if shown:
            yield f"   :members: {', '.join(shown)}"
            yield f"   :special-members: {', '.join(one for one in shown if one.startswith('__'))}"
            yield "   :member-order: bysource"
    elif inspect.isroutine(value):
        yield f".. autofunction:: {full}"
    else:
        yield f".. py:data:: {full}"
        yield ""
        yield f"   {docstrings.escape(text_of(full, value))}"
    yield ""


def text_of(full: str, value: Any) -> str:
    """What is said of a public name."""
    if isinstance(value, testing.Guarantee):
        return f"A promise: {value.text}."
    return VALUES.get(full.rpartition(".")[2]) or inspect.getdoc(value) or ""


def in_rest(lines: Iterator[str] | list[str]) -> str:
    return "\n".join(["``````{eval-rst}", *lines, "``````", ""])


class Shown(SphinxDirective):
    """A directive whose content is Markdown made from the library."""

    required_arguments = 1
    final_argument_whitespace = True
    make: Callable[..., str]

    def run(self) -> list[nodes.Node]:
        for path in (Path(__file__), ROOT / HERE / "docstrings.py", ROOT / HERE / "pictures.py"):
            self.env.note_dependency(str(path))
        text = type(self).make(*(self.arguments[0].split() if self.arguments else ()))
        return self.parse_text_to_nodes(text)


class Api(Shown):
    @staticmethod
    def make(*names: str) -> str:
        return in_rest([line for name in names for line in api(known()[name])])


# ---------------------------------------------------------------------------------------------------------- stages


def stage_text(family: str, name: str) -> str:
    kind = STAGES[family][name]
    full = known()[kind.__name__]
    return "\n".join([shown_pictures(family, name), table(facts(family, name, kind)), in_rest(api(full))])


def shown_pictures(family: str, name: str) -> str:
    made = pictures.of(family, name)
    lines = ["``````{container} pictures"]
    for picture in made:
        lines += [f"```{{image}} pictures/{picture.file}", f":alt: {picture.alt}", "```"]
    return "\n".join([*lines, "``````", "", *(f"*{one}*" for one in dict.fromkeys(p.note for p in made) if one), ""])


def table(rows: list[tuple[str, str]]) -> str:
    lines = ["```{list-table}", ":class: facts", ":stub-columns: 1", ":widths: auto", ""]
    for name, said in rows:
        lines += [f"* - {name}", f"  - {said}"]
    return "\n".join([*lines, "```", ""])


def facts(family: str, name: str, kind: type) -> list[tuple[str, str]]:
    of_family = {"rule": of_rule, "mixing": of_mixing, "attack": of_attack, "transform": of_transform}
    runs = f"`varangian run {OPTION[family]} {RUNS_WITH.get((family, name), name)}`"
    if family == "transform":
        runs = f"`varangian run {RUNS_WITH[family, name]}`"
    elif getattr(kind, "needs_root", False):
        runs = "none: a run keeps no root vector; call the rule"
    listed = "" if family == "transform" else f"<br>`varangian list {name}`"
    found = of_family[family](name, kind) if family in of_family else []
    return [("command", runs + listed), *found, ("source", source_of(kind))]


def source_of(kind: type) -> str:
    path = Path(inspect.getfile(kind)).relative_to(Path(vg.__file__).parent)
    return f"`src/varangian/{path.as_posix()}`, line {inspect.getsourcelines(kind)[1]}"


def of_rule(name: str, kind: type[Rule]) -> list[tuple[str, str]]:
    rows = [("needs", needs_of(kind))]
    if kind.robust:
        told = ", ".join(f"{kind(f=0).breakdown(n)} of {n}" for n, _ in SIZES)
        rows.append(("tolerates at most", f"f = {told}"))
    if kind.kappa is not None:
        rows.append(("κ proved", f"$\\displaystyle {tex_of(kind.kappa)}$: {values_of(kind, 'kappa_bound')}"))
    if kind.variance is not None:
        rows.append(
            (
                "resilient below",
                f"$\\displaystyle {tex_of(kind.variance)}$ deviation / norm: {values_of(kind, 'variance')}",
            )
        )
    if "ROBUST" not in kind.exempt:
        rows.append(("f hostile vectors leave it", kind.guarantee.text))
    looks = "all pairwise distances" if kind.needs_geometry else "columns or vectors themselves"
    if kind.needs_geometry and getattr(kind, "center", None) is not Rule.center:
        looks = "distances to one point"
    rows.append(("looks at", looks + (", and the last aggregate or a root vector" if kind.uses_previous else "")))
    if kind.draws:
        rows.append(("draws", "yes: a function of seed and step"))
    rows.append(("[weights of workers](../howto/weights.md)", "yes" if kind.weighs else "no"))
    if kind.published is not None:
        options = "".join(f", {key}={value!r}" for key, value in kind.published.items())
        rows.append(("as the paper's code had it", f"`{kind.__name__}(f{options})`"))
    return [*rows, *exempt_of(kind), *card_of(name)]


def of_mixing(name: str, kind: type[Mixing]) -> list[tuple[str, str]]:
    rows = [("needs", needs_of(kind)), ("f hostile vectors leave it", kind.guarantee.text)]
    rows.append(("vector i becomes vector i", "yes" if kind.aligned else "no"))
    if kind.draws:
        rows.append(("draws", "yes: a function of seed and step"))
    rows.append(("[weights of workers](../howto/weights.md)", "yes" if kind.weighs else "no"))
    return [*rows, *exempt_of(kind), *cards_behind(name)]


def of_attack(name: str, kind: type[Attack]) -> list[tuple[str, str]]:
    made = kind()  # what it asks for may depend on its options
    asks = {
        "the defence, which it tries": made.uses_defence,
        "the last aggregate": made.uses_previous,
        "what its workers learn from poisoned data": made.poisons,
    }
    options = isinstance(inspect.getattr_static(kind, "remembers"), property)
    rows = [("asks for, beside honest vectors", ", ".join(what for what, so in asks.items() if so) or "nothing")]
    rows.append(
        ("remembers from step to step", ("yes" if made.remembers else "no") + (", by default" if options else ""))
    )
    if made.aims:
        rows.append(("aims", "yes: evaluations count `attack_success`"))
    return [*rows, *exempt_of(kind), *card_of(name, "attack")]


def of_transform(name: str, kind: type[vg.Transform]) -> list[tuple[str, str]]:
    return [
        ("stands", "before F only" if kind.worker_only else "before F or behind it"),
        ("remembers", "a vector per row" if kind.remembers else "nothing"),
        (
            "looks at",
            ("each coordinate alone" if kind.columnwise else "whole vectors")
            + (", and the last aggregate" if kind.uses_previous else ""),
        ),
    ]


def needs_of(kind: type[Rule] | type[Mixing]) -> str:
    has_f = any(option.name == "f" for option in fields(kind))
    needs = (kind(f=2) if has_f else kind()).needs  # type: ignore[call-arg]
    return f"$n \\ge {needs[0]}$" + (f": {needs[1]} at f = 2" if "f" in needs[0] else "")


def exempt_of(kind: type) -> list[tuple[str, str]]:
    exempt = getattr(kind, "exempt", {})
    return [("does not claim", "; ".join(f"{check}: {why}" for check, why in exempt.items()))] if exempt else []


@lru_cache(maxsize=1)
def cards() -> dict[tuple[str, str], Any]:
    return {(card.kind, card.name): card for card in read_cards(ROOT / "results/scorecard")}


def card_of(name: str, kind: str = "rule") -> list[tuple[str, str]]:
    """What the score card says, in its first lines."""
    stem = f"{'attack-' if kind == 'attack' else ''}{name}"
    found = [card for (which, named), card in cards().items() if which == kind and named.partition("(")[0] == name]
    if not found:
        return [("score card", f"none kept: `varangian score {name}` makes one")]
    [card] = found
    if card.name != name:
        stem = f"{'attack-' if kind == 'attack' else ''}{card.name}"
    link = f"[score card](<{CARDS}/{stem}.html>)"
    return [(link, "<br>".join(map(plain, card.verdict)))]


def cards_behind(name: str) -> list[tuple[str, str]]:
    found = [card.name for (kind, _), card in cards().items() if kind == "rule" and card.name.startswith(f"{name} + ")]
    links = ", ".join(f"[{one}](<{CARDS}/{one.replace(' + ', '+')}.html>)" for one in found)
    return [("score cards", links)] if links else []


def values_of(kind: type[Rule], bound: str) -> str:
    values = []
    for n, f in SIZES:
        if kind(f=f).min_n <= n:
            value = kind(f=f).kappa_bound(n) if bound == "kappa_bound" else kind(f=f).variance_bound(n, 1)
            values.append(f"{value:.3g} at ({n}, {f})")
    return ", ".join(values)


# ----------------------------------------------------------------------------------------------- formulas of bounds


def tex_of(bound: Callable[[int, int], float]) -> str:
    """The formula of a bound, from its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(bound)).strip())
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            return tex(node.body)
        if isinstance(node, ast.Return) and node.value is not None:
            return tex(node.value)
    raise ValueError(f"{bound} has no formula.")


def tex(node: ast.expr) -> str:
    """An expression in n and f as LaTeX.

    Example:
        >>> tex(ast.parse("6 * (1 + f / (n - 2 * f)) ** 2", mode="eval").body)
        '6 \\\\left(1 + \\\\frac{f}{n - 2 f}\\\\right)^{2}'
    """
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return {"inf": r"\infty"}.get(node.id, node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sqrt":
        return rf"\sqrt{{{tex(node.args[0])}}}"
    if isinstance(node, ast.IfExp):
        return rf"{tex(node.body)} \text{{ where }} {tex(node.test)} > 0"
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Div):
            return rf"\frac{{{tex(node.left)}}}{{{tex(node.right)}}}"
        if isinstance(node.op, ast.Pow):
            return f"{_grouped(node.left)}^{{{tex(node.right)}}}"
        if isinstance(node.op, ast.Mult):
            return f"{_grouped(node.left)} {_grouped(node.right)}"
        sign = {ast.Add: "+", ast.Sub: "-"}.get(type(node.op))
        if sign:
            return f"{tex(node.left)} {sign} {_grouped(node.right) if sign == '-' else tex(node.right)}"
    raise ValueError(f"no formula is written for {ast.unparse(node)}")


def _grouped(node: ast.expr) -> str:
    sum_of = isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub))
    return rf"\left({tex(node)}\right)" if sum_of else tex(node)


# ---------------------------------------------------------------------------------------------------------- tables


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


def first_line(text: str) -> str:
    return plain(" ".join(text.split("\n\n")[0].split()))


def plain(text: str) -> str:
    """A text with nothing in it that Markdown would take for a command."""
    parts = docstrings.KEPT.split(text), docstrings.KEPT.findall(text)
    out = [_plain(parts[0][0])]
    for kept, after in zip(parts[1], parts[0][1:], strict=True):
        role = docstrings.ROLE.fullmatch(kept)
        out += [f"`{role[2].lstrip('.~')}`" if role else f"`{kept.strip('`')}`", _plain(after)]
    return "".join(out)


def _plain(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\*_`<>[]$#" else c for c in text)


class Overview(Shown):
    @staticmethod
    def make(which: str) -> str:
        family = which.removesuffix("s")
        rows = []
        for name, kind in STAGES[family].items():
            row = [f"[`{name}`](#{name})", first_line(inspect.getdoc(kind) or "")]
            rows.append([*row, needs_of(kind).partition(":")[0]] if family == "rule" else row)
        return markdown_table(["name", "in a sentence", *(["needs"] if family == "rule" else [])], rows)


class Names(Shown):
    @staticmethod
    def make(which: str) -> str:
        rows = []
        for name, entry in catalogue()[which.lower()].items():
            rows.append(
                [f"`{name}`", plain(entry.summary) + ".", ", ".join(f"`{one}`" for one in entry.options) or "-"]
            )
        return markdown_table(["name", "what it is", "options"], rows)


class Settings(Shown):
    required_arguments = 0

    @staticmethod
    def make() -> str:
        rows = []
        for setting in fields(vg.Experiment):
            default = "none" if setting.default in (None, ()) else setting.default
            option = setting.name.replace("_", "-")
            rows.append([f"`{setting.name}`", f"`{default}`", plain(setting.metadata["help"]), f"`--{option}`"])
        return markdown_table(["setting", "default", "what it is", "option"], rows)


# -------------------------------------------------------------------------------------------------- the command line


class Everything(Shown):
    required_arguments = 0

    @staticmethod
    def make() -> str:
        """All public names in the order of the alphabet; what is offered twice, where it is first named."""
        seen: list[Any] = []
        lines = [".. list-table::", "   :widths: auto", ""]
        for full, value in sorted(public().items(), key=lambda one: one[0].rpartition(".")[2].lower()):
            if not any(value is one for one in seen):
                seen.append(value)
                said = " ".join(text_of(full, value).split("\n\n")[0].split())
                lines += [f"   * - :py:obj:`{full.removeprefix('varangian.')} <{full}>`"]
                lines += [f"     - {docstrings.escaped(said, resolver(full))}"]
        return in_rest(lines)


class Command(Shown):
    @staticmethod
    def make(name: str) -> str:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        return in_rest(command_lines(name, command))


def command_lines(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"varangian {name}")
    yield from (f".. program:: varangian {name}", "")
    yield from (
        ".. code-block:: text",
        "",
        f"   {context.command_path} {' '.join(command.collect_usage_pieces(context))}",
        "",
    )
    for block in inspect.cleandoc(command.help or COMMANDS[name][2]).split("\n\n"):
        if block.startswith("\b"):
            yield from (".. code-block:: text", "", textwrap.indent(block.strip("\b\n"), "   "), "")
        else:
            yield from (docstrings.escape(" ".join(block.split())), "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None and not parameter.hidden:
            options = ", ".join(
                f"{one}{'' if parameter.is_flag or parameter.count else ' ' + metavar(parameter, context)}"
                for one in (*parameter.opts, *parameter.secondary_opts)
            )
            yield from (f".. option:: {options}", "", f"   {docstrings.escape(record[1].replace('  [', ' ['))}", "")


def metavar(parameter: click.Option, context: click.Context) -> str:
    return f"<{(parameter.metavar or parameter.type.name).lower()}>".replace("[", "").replace("]", "")


DIRECTIVES: dict[str, type[Shown]] = {
    "api": Api,
    "overview": Overview,
    "names": Names,
    "settings": Settings,
    "everything": Everything,
    "command": Command,
}


def stage(family: str) -> type[Shown]:
    return type(family.capitalize(), (Shown,), {"make": staticmethod(lambda name: stage_text(family, name))})


def draw(app: Sphinx) -> None:
    pictures.draw(ROOT / HERE / "pictures")


def setup(app: Sphinx) -> dict[str, bool]:
    for name, directive in (DIRECTIVES | {family: stage(family) for family in STAGES}).items():
        app.add_directive(name, directive)
    app.connect("builder-inited", draw)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("missing-reference", missing_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
