"""The pages of score cards: what they show is what the cards say, whoever wrote them."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from made_cards import SETTINGS, attack, card
from varangian.study.score.card import Breakdown, Card, Conformance, Cost, Failed, Untried, stored
from varangian.study.score.pages import ordered, page_of, strongest, table, write_index, write_page
from varangian.study.score.verdict import verdict

ROOT = Path(__file__).parents[1]


class _Reader(HTMLParser):
    """Tags that are open at the end, and whatever would be fetched."""

    def __init__(self) -> None:
        HTMLParser.__init__(self)
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "srcset", "data") and tag != "td"]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> str:
    text = path.read_text("utf-8")
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(source.startswith("data:") for source in reader.fetched)
    return text


def words(text: str) -> str:
    """What is read on a page."""
    text = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", text)).split())


def test_a_page_says_what_the_card_says(tmp_path: Path) -> None:
    mine = card("krum", 0.7)
    path = write_page(mine, tmp_path / "cards", cards=[mine, card(), card("mda", 0.9)], command="varangian score krum")
    assert path == tmp_path / "cards" / page_of(mine)
    said = words(read(path))
    assert f"{mine.score:.1f} score, in % accuracy; place 3 of 3" in said
    assert "3 of 11 attackers undo it, told to expect 2" in said
    assert "≥ 0.5 κ with f = 2 of 11; least possible 0.29" in said
    assert "2.0 points lost without attack, told to expect 2 instead of nobody" in said
    assert "3.5 × the time of a plain mean; n = 11, d = 1,000" in said
    assert "worst-case(evaluations=8)" in said
    assert "200 µs" in said
    assert "varangian score krum" in said
    for sentence in mine.verdict[1:]:
        assert sentence in said


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    bare = Card(
        kind="rule", rule="krum", pre=(), declared=4, settings=SETTINGS, untried=(Untried("all", "for want of time"),)
    )
    bare = replace(bare, verdict=verdict(bare))
    said = words(read(write_page(bare, tmp_path)))
    assert "all: for want of time" in said
    for heading in ("How many attackers", "Robustness coefficient", "Time and memory", "The contract", "Among the"):
        assert heading not in said
    read(write_index([bare], tmp_path))
    assert not list((tmp_path / "figures").iterdir())
    assert "| `krum` | NOT SHOWN | - | - |" in table([bare])


def test_a_rule_that_is_undone_by_fewer_than_it_declares_is_seen(tmp_path: Path) -> None:
    broken = card("first.py:First", breakdown=(Breakdown(11, 2, 1, None, "one at place 1 of 11"),), ours=False)
    text = read(write_page(broken, tmp_path))
    assert '<td class="fails">✗</td><td class="fails">✗</td><td class="gone">∞</td>' in text
    said = words(text)
    assert "BROKEN told to expect 2 attackers of 11, it is undone by 1" in said
    assert "code of somebody's own" in said


def test_a_card_of_anybodys_cannot_write_into_the_page(tmp_path: Path) -> None:
    evil = '</style><script>alert(1)</script><img src="x" onerror=alert(1)>'
    mine = card(
        evil, title=evil, conformance=(Conformance(evil, (evil,), (Failed(evil, evil, evil),), {evil: evil}, evil),),
        untried=(Untried(evil, evil),), verdict=(evil,), cost=Cost(evil),
    )  # fmt: skip
    mine = replace(mine, verdict=(evil, evil))
    for path in (write_page(mine, tmp_path, command=evil), write_index([mine, card()], tmp_path, command=evil)):
        text = read(path)
        assert "alert(1)" in text
        assert "<script>alert" not in text
        assert "<img" not in text
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in tmp_path.rglob("*"))
    assert all(line.startswith("| ") or not line for line in table([mine]).splitlines())


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("settings", "n"), 0), (("settings", "n"), 10**9), (("settings", "f"), -1), (("breakdown", 0, "n"), 10**9),
        (("trained", 0, "accuracies", "none"), ["nan"]), (("trained", 0, "accuracies", "none"), []),
        (("trained", 0, "accuracies", "none"), [7]), (("kappa", 0, "found"), "nan"), (("cost", "time", 0, "d"), 0),
        (("cost", "time", 0, "seconds"), "nan"), (("noise", 0, "n"), 0),
    ],
)  # fmt: skip
def test_numbers_that_no_card_has_are_refused(where: tuple[Any, ...], value: Any) -> None:
    content = card().to_dict()
    inner = content
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(ValueError, match="this is no score card: "):
        Card.from_dict(content)


def test_a_card_of_many_workers_has_a_page_that_ends(tmp_path: Path) -> None:
    many = card(breakdown=tuple(Breakdown(10_000, f, f + 1, None, "somehow") for f in range(3)))
    assert len(read(write_page(many, tmp_path))) < 100_000


def test_the_index_stands_by_score_and_leads_to_every_card(tmp_path: Path) -> None:
    cards = [card("krum", 0.5), card("mda", 0.9), card(), attack(), attack("zero", None)]
    path = write_index(cards, tmp_path)
    text = read(path)
    links = re.findall(r'href="([^"]+)"', text)
    assert {tmp_path / link for link in links} == {tmp_path / "cards" / page_of(c) for c in cards}
    assert all((tmp_path / link).is_file() for link in links)
    assert [c.name for c in ordered(cards)] == ["mda", "median", "krum", "little", "zero"]
    said = words(text)
    assert said.index("mda") < said.index("median") < said.index("krum")
    assert '<a href="../index.html">' in (tmp_path / "cards" / page_of(cards[0])).read_text("utf-8")
    assert strongest(cards) == ["worst-case(evaluations=8)", "little"]
    lines = (tmp_path / "README.md").read_text("utf-8").splitlines()
    assert lines[1] == "# Score cards: 3 rules and 2 attacks"
    [first] = [i for i, line in enumerate(lines) if line.startswith("| place |")]
    assert lines[first + 2].startswith("| 1 | `mda` | SOUND | 71.0 |")
    assert len({line.count("|") for line in lines[first : first + 5]}) == 1
    assert "| `little` | STRONG | 1 of 2 | 2 | median: 30 instead of 80 % |" in lines
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "scores.png", "scores.pdf", "attacks.png", "attacks.pdf"
    }  # fmt: skip
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_index(reversed(cards), tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_somebody_elses_readme_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n", "utf-8")
    write_index([card()], tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == "# Mine\n"
    assert "# Score cards: 1 rule\n" in (tmp_path / "table.md").read_text("utf-8")
    assert "table.md" in words(read(tmp_path / "index.html"))


def test_without_cards_there_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no score cards"):
        write_index([], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cards").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        write_index([card()], tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_the_cards_of_the_package_have_pages(tmp_path: Path) -> None:
    write_index(stored(), tmp_path)
    for path in tmp_path.rglob("*.html"):
        read(path)
    assert len(list((tmp_path / "cards").glob("*.html"))) == len(stored())


def test_the_command_leaves_pages(varangian: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With cards that are made up: measuring them is another matter."""
    from varangian.study import score

    monkeypatch.setattr(
        score, "score", lambda subject, **how: card(subject.rule, 0.8 if subject.rule == "mda" else 0.6)
    )
    end = varangian("score", "krum", "--out", "mine")
    assert end.status == 0
    assert "Page: mine/cards/krum.html" in end.err
    assert "varangian score krum --out mine" in words(read(tmp_path / "mine" / "cards" / "krum.html"))
    assert not (tmp_path / "mine" / "index.html").exists()
    end = varangian("score", "mda", "--out", "mine")
    assert end.status == 0
    said = words(read(tmp_path / "mine" / "index.html"))
    assert said.index("mda") < said.index("krum")
    assert "index.html" in (tmp_path / "mine" / "cards" / "krum.html").read_text("utf-8")


def test_the_commands_of_the_page_are_commands(varangian: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What they name is there; measured it is elsewhere."""
    from varangian.study import score
    from varangian.study.score import folder

    def made(about: Any, **how: Any) -> Card:
        return attack(about.attack) if about.kind == "attack" else card(about.rule, pre=about.pre)

    monkeypatch.setattr(score, "score", made)
    monkeypatch.setattr(folder, "score_all", lambda subjects, out, **how: [made(about) for about in subjects])
    examples = ROOT / "examples"
    (tmp_path / "examples").symlink_to(examples)
    for name in ("my_rule", "my_attack"):
        (tmp_path / f"{name}.py").write_text((examples / f"{name}.py").read_text("utf-8"), "utf-8")
    blocks = re.findall(
        r"^```sh\n(.*?)^```$", (ROOT / "docs" / "howto" / "score.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 9
    for line in lines:
        end = varangian(*shlex.split(line, comments=True)[1:])
        assert end.status == 0, (line, end.err)
    assert (tmp_path / "results" / "scorecard" / "index.html").is_file()
