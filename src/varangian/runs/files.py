"""Files that anybody may have written, and files that nobody may redirect.

What is read is bounded before it is read, plain data only, and refused as a whole where it is not what it should be:
always with a ValueError of one line. What is written appears whole or not at all, and never through a link.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import secrets
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..core.checks import shown

MAX_TEXT = 2**22  # bytes of a configuration or a result
MAX_TABLE = 2**28  # bytes of a table
MAX_ROWS = 2 * 10**6  # of a table
MAX_DEPTH = 16  # of nested JSON or TOML values
MAX_ENTRIES = 10**5  # of a folder
csv.field_size_limit(2**20)


# -------------------------------------------------------------------------------------------------------------- reading


def read_text(path: Path, limit: int = MAX_TEXT, follow: bool = False) -> str:
    """The text of a plain file.

    Args:
        path: what to read.
        limit: the most bytes that it may have; no more than these are read, whatever it is.
        follow: whether it may be a link, a pipe and the like: for a file that the user named, not for one found in a
            folder.

    Raises:
        ValueError: it is larger, not UTF-8, a link, or not a plain file.
        OSError: it cannot be opened.
    """
    if not follow:
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is {'a link, and not followed' if stat.S_ISLNK(mode) else 'not a plain file'}.")
    with open(path, "rb", opener=None if follow else no_follow) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file.") from None


def no_follow(path: str, flags: int) -> int:
    """For ``open(opener=...)``: a link that somebody put there after it was looked for is not followed either."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def parse_json(text: str) -> Any:
    """The value of a JSON text, with only what JSON has: finite numbers of at most 40 characters, no name twice.

    Raises:
        ValueError: anything else, or values nested too deeply.

    Example:
        >>> parse_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant
        )
    except RecursionError:
        raise ValueError(_DEEP) from None
    return check_depth(value)


_DEEP = f"nested more than {MAX_DEPTH} deep"


def check_depth(value: Any) -> Any:
    """The value itself, whose lists and dictionaries are not nested too deeply.

    Raises:
        ValueError: they are.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [item for items in inner for item in items]
    if level:
        raise ValueError(_DEEP)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} occurs twice")
        found[name] = value
    return found


def _int(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is beyond all floating-point numbers")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def read_json(path: Path, limit: int = MAX_TEXT) -> dict[str, Any]:
    """The JSON object in a plain file.

    Raises:
        ValueError: as :func:`read_text` and :func:`parse_json`, or no object.
        OSError: it cannot be opened.
    """
    text = read_text(path, limit)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return value


def number(value: Any, what: str, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number within bounds.

    Raises:
        ValueError: anything else; text and truth values are not numbers.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{what} must be a number{_bounds(least, most)}, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{what} must be a finite number, got {shown(value)}")
    return found


def whole(value: Any, what: str, least: int = 0, most: int = 2**53) -> int:
    """A whole number within bounds.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{what} must be a whole number{_bounds(least, most)}, got {shown(value)}")
    return value


def _bounds(least: float, most: float) -> str:
    if math.isinf(least) and math.isinf(most):
        return ""
    return f" of at least {least:g}" if math.isinf(most) or most >= 2**53 else f" from {least:g} to {most:g}"


_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)


def number_of(text: str, what: str, least: float = -math.inf, most: float = math.inf) -> float:
    """The finite number that a cell of a table says; see :func:`number`."""
    if len(text) > 40 or not _DECIMAL.fullmatch(text):
        raise ValueError(f"{what} must be a number{_bounds(least, most)}, got {shown(text)}")
    return number(float(text), what, least, most)


def whole_of(text: str, what: str, least: int = 0, most: int = 2**53) -> int:
    """The whole number that a cell of a table says; see :func:`whole`."""
    if not re.fullmatch(r"[0-9]{1,16}", text):
        raise ValueError(f"{what} must be a whole number{_bounds(least, most)}, got {shown(text)}")
    return whole(int(text), what, least, most)


def line_of_text(value: Any, what: str) -> str:
    """One line of plain text, which no spreadsheet takes for a formula and no terminal for a command.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, str) or not value.isprintable() or len(value) > 2000 or value[:1] in ("=", "+", "-", "@"):
        raise ValueError(f"{what} must be one line of plain text, got {shown(value)}")
    return value


def read_rows(path: Path, needed: Sequence[str] = (), most: int = MAX_ROWS) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by the names of its header, all as long as that.

    Args:
        path: what to read.
        needed: columns that it must have; others may be there too.
        most: rows that it may have.

    Raises:
        ValueError: anything else.
        OSError: it cannot be opened.
    """
    text = read_text(path, MAX_TABLE).removeprefix("\ufeff")  # with which spreadsheets mark UTF-8
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        lacking = [name for name in needed if name not in header]
        if lacking:
            raise ValueError(f"{path} lacks the columns {', '.join(lacking)}.")
        if len(set(header)) < len(header):
            raise ValueError(f"{path} has two columns of one name.")
        for count, row in enumerate(reader):
            if len(row) != len(header):
                raise ValueError(f"{path}, line {reader.line_num}: {len(row)} cells, the header has {len(header)}.")
            if count >= most:
                raise ValueError(f"{path} has more than {most:,} rows.")
            yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}.") from None


def read_columns(path: Path, needed: Sequence[str], wanted: Sequence[str], most: int = MAX_ROWS) -> Iterator[list[str]]:
    """Some columns of a CSV file of numbers, without quotes: several times as fast as :func:`read_rows`.

    Args:
        path: what to read.
        needed: columns that it must have.
        wanted: those of them that are asked for.
        most: rows that it may have.

    Raises:
        ValueError: anything else.
        OSError: it cannot be opened.
    """
    head, _, body = read_text(path, MAX_TABLE).replace("\r\n", "\n").partition("\n")
    header = head.split(",")
    lacking = [name for name in needed if name not in header]
    if lacking:
        raise ValueError(f"{path} lacks the columns {', '.join(lacking)}.")
    if not re.fullmatch(r"[0-9a-z+\-.,\n]*", body):
        raise ValueError(f"{path} holds something else than numbers.")
    if body.count("\n") > most:
        raise ValueError(f"{path} has more than {most:,} rows.")
    places = [header.index(name) for name in wanted]
    for line, text in enumerate(body.removesuffix("\n").split("\n") if body else (), start=2):
        cells = text.split(",")
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {line}: {len(cells)} cells, the header has {len(header)}.")
        yield [cells[place] for place in places]


def _warn_of(line: str) -> None:
    warnings.warn(f"left out: {line}", stacklevel=3)


def folders_in(
    place: Path, root: Path, wanted: Callable[[Path], bool], left_out: Callable[[str], object] = _warn_of
) -> list[Path]:
    """The wanted folders in a folder, in order. Links that lead out of the root are left out.

    Args:
        place: where they are looked for.
        root: what they must not lead out of.
        wanted: which they are.
        left_out: is told of each link that leads out, in a line.

    Raises:
        ValueError: it holds too much.
    """
    if not place.is_dir():
        return []
    entries = sorted(place.iterdir())
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"{place} holds more than {MAX_ENTRIES:,} entries.")
    inside = root.resolve()
    found = []
    for entry in entries:
        if not entry.is_dir() or not wanted(entry):
            continue
        if entry.resolve().is_relative_to(inside):
            found.append(entry)
        else:
            left_out(f"{entry} leads out of {root}.")
    return found


# -------------------------------------------------------------------------------------------------------------- writing


def sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    if os.name == "nt":
        return  # Windows opens no folders; its journal keeps the order of renames
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_partial(path: Path, write: Callable[[BinaryIO], object], suffix: str) -> Path:
    """The file beside its place, whole and on the disk; renaming is left to the caller."""
    partial = path.with_name(path.name + suffix)
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "xb") as file:  # x: never through a link that waits there
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return partial


def write_whole(path: Path, write: Callable[[BinaryIO], object], suffix: str | None = None) -> None:
    """The file appears whole or not at all, and is on the disk when this returns. A link in its place is replaced.

    Until then it is beside its place, under its name and ``suffix``, by default one that nobody else has: processes of
    other machines and containers may have this one's number.
    """
    partial = write_partial(path, write, suffix or f".{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(root: Path, name: str) -> Path:
    """The folder of that name in a folder, made if need be.

    Raises:
        ValueError: it is a link.
    """
    folder = root / name
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, and not written through.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
