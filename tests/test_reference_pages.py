"""The reference shows every public name, once, and says of rules, mixings and attacks what their classes say."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import varangian as vg
from varangian.cli import COMMANDS, commands

ROOT = Path(__file__).parents[1]
HERE = ROOT / "docs" / "reference"
PAGES = {path.name: path.read_text("utf-8") for path in sorted(HERE.glob("*.md"))}
FAMILIES = {
    "rule": vg.RULES,
    "mixing": vg.MIXINGS,
    "attack": vg.ATTACKS,
    "transform": {kind.__name__: kind for kind in (vg.Momentum, vg.SharedMomentum, vg.Clip)},
    "knowledge": vg.KNOWLEDGE,
}
STAGES = [(family, name) for family, table in FAMILIES.items() for name in table]
READ = {"momentum": float, "clip": float, "byzantine": int}  # settings that are numbers
DIRECTIVE = re.compile(r"^```\{([a-z]+)\} ?(.*)$", re.MULTILINE)


def asked() -> Iterator[tuple[str, str, str]]:
    """(page, directive, argument) of all directives, in order."""
    for page, text in PAGES.items():
        for name, argument in DIRECTIVE.findall(text):
            yield page, name, argument


@pytest.fixture(scope="module")
def sources() -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    """docs/reference/pages.py, docstrings.py and pictures.py."""
    pytest.importorskip("sphinx")
    pytest.importorskip("flwr")  # whose engine is in the reference
    try:
        importlib.import_module("varangian.engines.fsdp")
    except ImportError as error:
        pytest.skip(str(error))
    names = ("pages", "docstrings", "pictures")
    sys.path.insert(0, str(HERE))
    try:
        found = tuple(__import__(name) for name in names)
        assert all(Path(module.__file__ or "").parent == HERE for module in found)
        yield found  # type: ignore[misc]
    finally:
        sys.path.remove(str(HERE))
        for name in names:
            sys.modules.pop(name, None)


# -------------------------------------------------------------------------------------------------- nothing missing


def test_every_public_name_is_shown_once(sources: tuple[ModuleType, ...]) -> None:
    pages = sources[0]
    public, known = pages.public(), pages.known()
    shown = [known[name] for _, kind, names in asked() if kind == "api" for name in names.split()]
    shown += [known[FAMILIES[kind][name].__name__] for _, kind, name in asked() if kind in FAMILIES]
    twice = [name for name, times in Counter(shown).items() if times > 1]
    assert twice == []
    # What several modules offer is one thing, shown where it is first named.
    missing = {full for full in public if full not in shown and not any(public[full] is public[one] for one in shown)}
    assert missing == set()
    assert len(public) > 130


def test_public_means_all_that_can_be_imported(sources: tuple[ModuleType, ...]) -> None:
    public = sources[0].public()
    assert {name for name in vg.__all__ if name not in ("engines", "testing")} == {
        name.removeprefix("varangian.") for name in public if name.count(".") == 1
    }
    for module in (vg.testing, *(getattr(vg.engines, name) for name in vg.engines.ENGINES)):
        assert {f"{module.__name__}.{name}" for name in module.__all__} <= set(public)


@pytest.mark.parametrize("name", [name for name in vg.__all__ if inspect.isclass(getattr(vg, name))])
def test_every_public_method_is_described(name: str) -> None:
    kind = getattr(vg, name)
    silent = []
    for member, value in vars(kind).items():
        lambda_ = isinstance(value, staticmethod) and value.__func__.__name__ == "<lambda>"  # a bound, say
        known = inspect.isroutine(value) or isinstance(value, property) or type(value).__name__ == "cached_property"
        if known and not lambda_ and not member.startswith("_") and not inspect.getdoc(getattr(kind, member)):
            silent.append(member)
    assert silent == []


@pytest.mark.parametrize(("family", "name"), STAGES)
def test_each_has_a_section_with_its_formula(family: str, name: str) -> None:
    page = PAGES[{"knowledge": "attacks.md"}.get(family, f"{family}s.md")]
    [section] = re.findall(
        rf"^##+ ([^\n]+)\n((?:(?!\n##).)*?)^```\{{{family}\}} {re.escape(name)}$", page, re.DOTALL | re.MULTILINE
    )
    heading, text = section
    assert re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) == name.lower()  # its anchor is its name
    assert family == "knowledge" or "$$" in text


def test_the_table_of_all_names_holds_them(sources: tuple[ModuleType, ...]) -> None:
    text = sources[0].Everything.make()
    rows = re.findall(r"\* - :py:obj:`.*? <(.*?)>`\n     - (.*)", text)
    public = sources[0].public()
    assert [value for value in public.values() if not any(value is public[name] for name, _ in rows)] == []
    assert all(said for _, said in rows)
    shown = {sources[0].known()[name] for _, kind, names in asked() if kind == "api" for name in names.split()}
    stages = {sources[0].known()[kind.__name__] for table in FAMILIES.values() for kind in table.values()}
    assert {name for name, _ in rows} == shown | stages  # so that each row is a link


def test_what_a_tutorial_adds_is_not_shown(sources: tuple[ModuleType, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources[0].Overview.make("rules")
    monkeypatch.setitem(vg.RULES, "of-a-tutorial", vg.Krum)
    assert sources[0].Overview.make("rules") == before


def test_every_command_has_a_section() -> None:
    page = PAGES["command-line.md"]
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == list(COMMANDS)
    assert [argument for _, kind, argument in asked() if kind == "command"] == list(COMMANDS)


def test_every_page_is_in_the_table_of_contents() -> None:
    [listed] = re.findall(r"```\{toctree\}\n:hidden:\n\n(.*?)\n```", PAGES["index.md"], re.DOTALL)
    assert sorted(f"{name}.md" for name in listed.split()) == sorted(set(PAGES) - {"index.md"})
    assert "reference/index" in (ROOT / "docs" / "index.md").read_text("utf-8")


# ------------------------------------------------------------------------------------------ what is said is so


def test_commands_show_all_options(sources: tuple[ModuleType, ...]) -> None:
    import click

    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        text = sources[0].Command.make(name)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(one in text for one in parameter.opts), (name, parameter.opts)


def test_all_settings_are_in_the_table(sources: tuple[ModuleType, ...]) -> None:
    lines = sources[0].Settings.make().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == [setting.name for setting in fields(vg.Experiment)]


def number(tex: str, n: int, f: int) -> float:
    """The value of a formula that ``tex_of`` has written."""
    text = tex.partition(r" \text{ where }")[0]
    for old, new in ((r"\left", ""), (r"\right", ""), (r"\infty", "inf")):
        text = text.replace(old, new)
    while r"\frac{" in text or r"\sqrt{" in text or "^{" in text:
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"((\1)**0.5)", text)
        text = re.sub(r"\^\{([^{}]*)\}", r"**(\1)", text)
        text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", text)
    return eval(text, {"n": n, "f": f, "inf": math.inf})


@pytest.mark.parametrize(("n", "f"), [(11, 2), (25, 5), (51, 12)])
def test_formulas_of_bounds_are_those_of_the_classes(sources: tuple[ModuleType, ...], n: int, f: int) -> None:
    pages, seen = sources[0], 0
    for kind in vg.RULES.values():
        for bound in (kind.kappa, kind.variance):
            if bound is not None:
                assert number(pages.tex_of(bound), n, f) == pytest.approx(bound(n, f)), (kind, pages.tex_of(bound))
                seen += 1
    assert seen >= 9


def test_the_example_of_a_formula(sources: tuple[ModuleType, ...]) -> None:
    assert doctest.testmod(sources[0]) == doctest.TestResults(0, 1)


@pytest.mark.parametrize("text", ["n % 2", "max(n, f)", "n if n > f else f"])
def test_a_bound_that_cannot_be_written_is_an_error(sources: tuple[ModuleType, ...], text: str) -> None:
    with pytest.raises(ValueError, match="no formula is written for"):
        sources[0].tex(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(("family", "name"), STAGES)
def test_facts_are_those_of_the_class(sources: tuple[ModuleType, ...], family: str, name: str) -> None:
    kind = FAMILIES[family][name]
    said = dict(sources[0].facts(family, name, kind))
    path, line = re.fullmatch(r"`(.+)`, line (\d+)", said["source"]).groups()  # type: ignore[union-attr]
    assert f"class {kind.__name__}" in "".join((ROOT / path).read_text("utf-8").splitlines()[int(line) - 1 :][:3])
    if family in ("rule", "mixing"):
        made = kind(f=2) if any(one.name == "f" for one in fields(kind)) else kind()
        assert made.needs[0] in said["needs"]
        assert ("does not claim" in said) == bool(kind.exempt)


@pytest.mark.parametrize(("family", "name"), STAGES)
def test_commands_of_stages_are_runs(sources: tuple[ModuleType, ...], family: str, name: str) -> None:
    import shlex

    said = dict(sources[0].facts(family, name, FAMILIES[family][name]))["command"]
    if getattr(FAMILIES[family][name], "needs_root", False):
        assert "run keeps no root" in said
        return
    [command] = re.findall(r"`varangian run (.*?)`", said)
    words = shlex.split(command)
    settings = {
        option.removeprefix("--").replace("-", "_"): value
        for option, value in zip(words[::2], words[1::2], strict=True)
    }
    vg.Experiment.from_dict({key: READ.get(key, str)(value) for key, value in settings.items()})  # finds all faults


def test_score_cards_that_are_linked_are_there(sources: tuple[ModuleType, ...]) -> None:
    links = 0
    for family, name in STAGES:
        for what, said in sources[0].facts(family, name, FAMILIES[family][name]):
            for link in re.findall(r"\(<(.*?)>\)", what + said):
                assert (HERE / link).is_file(), link
                links += 1
    assert links >= 50


# ------------------------------------------------------------------------------------------------------- docstrings


def rest(sources: tuple[ModuleType, ...], text: str) -> str:
    return "\n".join(sources[1].rest(text, {"Krum": "varangian.Krum", "run": "varangian.run"}.get))


def test_sections_that_begin_on_their_line(sources: tuple[ModuleType, ...]) -> None:
    text = (
        "The mean.\n\nF = |x|_1 * 2 over x_\n\nArgs:\n    f: how many,\n        at most.\n    m: of *which*.\n\n"
        "Shape: [n, d] -> [d].\nCost: one pass,\n    or two.\n\nExample:\n    >>> 1\n    1\n\n"
        'Reference: A, "B: C\nD", 1.'
    )
    assert [line.rstrip() for line in rest(sources, text).splitlines() if line.strip()] == [
        "The mean.",
        r"F = \|x\|\_1 \* 2 over x\_",
        ":Args:",
        "    * **f**: how many, at most.",
        r"    * **m**: of \*which\*.",
        ":Shape:",
        "    [n, d] -> [d].",
        ":Cost:",
        "    one pass, or two.",
        ":Example:",
        "    >>> 1",
        "    1",
        ":Reference:",
        '    A, "B: C D", 1.',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("As docs/howto/live.md says.", "As :doc:`/docs/howto/live` says."),
        ("Args:\n    Krum: a name like another.", ":Args:\n    * **Krum**: a name like another."),
        ("See :class:`Krum` and :func:`.kernels.host`.", "See :py:obj:`Krum <varangian.Krum>` and ``kernels.host``."),
        ("``a_b`` and a_b", r"``a_b`` and a\_b"),
        ("a <- b;\nc = d", "| a <- b;\n| c = d"),  # formulas below each other
        (f"a = {'b ' * 50}\nc", f"a = {'b ' * 50}c".replace("  ", " ")),  # a formula that is wrapped
        ("1. first;  2. second", r"1\. first;  2. second"),
        ("Raises:\n    Krum: never.", ":Raises:\n    * :py:obj:`Krum <varangian.Krum>`: never."),
        ("- one\n  thing\n- two", "* one thing\n* two"),
    ],
)
def test_what_means_something_else_in_restructuredtext(
    sources: tuple[ModuleType, ...], text: str, expected: str
) -> None:
    assert rest(sources, text).strip() == expected


def test_no_docstring_loses_a_word(sources: tuple[ModuleType, ...]) -> None:
    pages, docstrings, _ = sources
    for full, value in pages.public().items():
        text = inspect.getdoc(value) if inspect.isclass(value) or inspect.isroutine(value) else None
        if text is None or value is vg.Experiment:
            continue
        made = "\n".join(docstrings.rest(text, pages.resolver(full)))
        for word in re.findall(r"[A-Za-z]{3,}", docstrings.ROLE.sub("", text)):
            assert word in made, (full, word)


# --------------------------------------------------------------------------------------------------------- pictures


def test_every_stage_has_pictures_that_say_what_they_show(sources: tuple[ModuleType, ...]) -> None:
    pictures = sources[2]
    assert [(family, name) for family, (_, names) in pictures.FAMILIES.items() for name in names] == STAGES
    seen = set()
    for family, name in STAGES:
        for picture in pictures.of(family, name):
            assert name in picture.alt
            assert len(picture.alt) > 40
            seen.add(picture.file)
    assert len(seen) == 2 * (len(STAGES) - len(vg.KNOWLEDGE)) + len(vg.KNOWLEDGE)


def test_pictures_show_what_the_library_computes(sources: tuple[ModuleType, ...]) -> None:
    pictures = sources[2]
    x = np.concatenate([pictures.honest(), pictures.hostile(pictures.REACH)])
    rule = vg.Krum(f=pictures.F)
    weight = pictures.shares(rule, x)
    assert np.array_equal(pictures.answer(rule, x), rule(torch.from_numpy(x)).numpy())
    assert np.flatnonzero(weight).size == 1
    # A rule that does not tell: the share of each vector is how far the answer follows it.
    assert pictures.shares(vg.Aksel(f=2), x).sum() == pytest.approx(1, abs=1e-3)
    far = pictures.reach_of(vg.Average())
    assert far == pytest.approx(np.abs(pictures.FAR) * pictures.F / pictures.N, rel=0.05, abs=0.05)
    for name in vg.RULES:  # what the right-hand pictures say: none but the average follows hostile points for ever
        rule = pictures.made("rule", name, vg.RULES)
        worst = pictures.reach_of(rule)[-1]
        assert (worst > 100) == (name == "average"), (name, worst)
        if rule.kappa_bound(pictures.N) is not None:
            assert pictures.reach_of(rule).max() <= np.sqrt(rule.kappa_bound(pictures.N))


def test_a_picture_is_the_same_bytes_twice(sources: tuple[ModuleType, ...], tmp_path: Path) -> None:
    import matplotlib

    pictures, made = sources[2], []
    for file in ("one.svg", "two.svg"):
        with matplotlib.rc_context(pictures.LOOKS):
            picture = pictures.of("mixing", "nnm")[0]
            picture.plot().savefig(tmp_path / file, format="svg", transparent=True, metadata={"Date": None})
        made.append((tmp_path / file).read_bytes())
    assert made[0] == made[1]


def test_only_what_is_older_than_the_sources_is_drawn_again(
    sources: tuple[ModuleType, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = sources[2]
    monkeypatch.setattr(pictures, "FAMILIES", {"transform": pictures.FAMILIES["transform"]})
    files = pictures.draw(tmp_path)
    assert len(files) == 6
    files[0].unlink()
    files[1].write_text("kept")
    pictures.draw(tmp_path)
    assert files[0].is_file()
    assert files[1].read_text() == "kept"
    monkeypatch.setattr(pictures, "sources", lambda: files[1].stat().st_mtime + 1)
    pictures.draw(tmp_path)
    assert files[1].read_text("utf-8").startswith("<?xml")
