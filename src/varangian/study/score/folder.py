"""Cards in a folder: one file each, all of them in one, and the many of ``varangian score --all``."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from ...runs.files import make_folder, read_text, write_whole
from . import Card, Subject, score, training
from .card import STORED, text_of

CARDS = "cards"  # the folder of the single ones
MOST = 2**22  # characters of a file of cards


def file_of(about: Card | Subject) -> str:
    """The name of a card's file: "nnm+krum.json", "attack-little.json"."""
    text = re.sub(r"[^\w.=()+-]+", "-", about.name.replace(" + ", "+"), flags=re.ASCII).strip("-.")
    return f"{'attack-' if about.kind == 'attack' else ''}{text[:150]}.json"


def write_card(card: Card, out: Path) -> Path:
    """``<out>/cards/<name>.json``, and ``<out>/cards.json`` with all cards of that folder."""
    path = make_folder(out, CARDS) / file_of(card)
    write_whole(path, lambda file: file.write(card.to_json().encode()))
    text = text_of(read_cards(out))
    write_whole(out / STORED, lambda file: file.write(text.encode()))
    return path


def read_cards(out: Path) -> list[Card]:
    """The cards of a folder, by the names of their files.

    Raises:
        ValueError: a file is no card; it is named.
    """
    return [read_card(path) for path in sorted((out / CARDS).glob("*.json"))]


def read_card(path: Path) -> Card:
    """One card, which anybody may have written.

    Raises:
        ValueError: it is none; the file is named.
        OSError: it cannot be opened.
    """
    text = read_text(path, MOST)
    try:
        return Card.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def score_all(
    subjects: Sequence[Subject],
    out: Path,
    *,
    jobs: int,
    quick: bool = False,
    budget: float,
    told: Callable[[Subject, Card | str, int, int], object],
) -> list[Card]:
    """The cards of all of these, in a folder; those that are there with the same settings are kept.

    Rules come first, then attacks, which look at the rules' cards.

    Args:
        subjects: what to score.
        out: where the cards are kept.
        jobs: processes, of one thread each.
        quick, budget: see :func:`score`.
        told: called with each subject, its card or the error that came instead, how many are done, and how many there
            are.

    Raises:
        KeyboardInterrupt: the cards that are done are kept, and the same call goes on.
    """
    done: dict[str, Card] = {}
    for name in map(file_of, subjects):
        path = out / CARDS / name
        if path.exists() and (card := read_card(path)).settings == training.settings(quick):
            done[name] = card
    todo = [about for about in subjects if file_of(about) not in done]
    for stage in ([s for s in todo if s.kind != "attack"], [s for s in todo if s.kind == "attack"]):
        if not stage:
            continue
        rules = [card for card in done.values() if card.kind != "attack"]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            under_way: dict[Future[str], Subject] = {pool.submit(_scored, s, quick, budget, rules): s for s in stage}
            try:
                while under_way:
                    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        about = under_way.pop(future)
                        try:
                            card = Card.from_json(future.result())
                        except Exception as error:  # one that is none must not end the others
                            told(about, f"{type(error).__name__}: {error}", len(done), len(subjects))
                            continue
                        write_card(card, out)
                        done[file_of(about)] = card
                        told(about, card, len(done), len(subjects))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return list(done.values())


def _scored(about: Subject, quick: bool, budget: float, cards: Iterable[Card]) -> str:
    """In a process of its own; as text, which is what a card is written as."""
    return score(about, quick=quick, budget=budget, cards=cards).to_json()
