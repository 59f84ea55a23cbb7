"""A disk that forgets: what a folder may hold after the power failed at any moment.

It watches a program write. A file keeps what it held at its last fsync; of what was written since, any part may be on
the disk, blocks of zeros in between. A folder keeps the names it had at its last fsync; of the changes since, any
subset may have happened, in their order; a rename happens whole or not at all.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

BLOCK = 512
Names = dict[str, int]


@dataclass(frozen=True)
class Moment:
    """What is on the disk and what is on its way: names, changes of them, and per file (on the disk, written)."""

    names: Names
    pending: tuple[tuple[tuple[str, int | None], ...], ...]
    contents: dict[int, tuple[bytes, bytes]]
    promised: int  # whatever the caller says has been promised by now

    def after(self, chance: random.Random) -> dict[str, bytes]:
        """One of the states that the folder may be found in."""
        names = dict(self.names)
        share = chance.choice((0.0, 0.5, 0.9, 1.0))
        for change in self.pending:
            if chance.random() < share:
                for name, number in change:
                    names.pop(name, None) if number is None else names.__setitem__(name, number)
        return {name: _torn(*self.contents[number], chance) for name, number in names.items()}


def _torn(kept: bytes, written: bytes, chance: random.Random) -> bytes:
    how = chance.choice(("kept", "written", "torn", "torn"))
    if how != "torn" or kept == written:
        return written if how == "written" else kept
    low, high = sorted((len(kept), len(written)))
    size = chance.randint(low, high)
    found = bytearray((written + kept[len(written) :])[:size])
    for start in range(0, size, BLOCK):
        piece = slice(start, min(start + BLOCK, size))
        if chance.random() < 0.3:  # this block did not get there
            old = kept[piece]
            found[piece] = old + bytes(piece.stop - piece.start - len(old))
    return bytes(found)


@dataclass
class Disk:
    """Watches one folder. ``moments`` holds what it saw at each fsync and each rename."""

    folder: Path
    moments: list[Moment] = field(default_factory=list)
    promised: int = 0
    _names: Names = field(default_factory=dict)
    _listed: Names = field(default_factory=dict)
    _pending: list[tuple[tuple[str, int | None], ...]] = field(default_factory=list)
    _kept: dict[int, bytes] = field(default_factory=dict)
    _handles: dict[int, int] = field(default_factory=dict)  # open, so that no number is used twice

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        self._look(together=False)
        self._names, self._pending = dict(self._listed), []
        self._kept = {number: self._read(number) for number in self._handles}
        fsync, replace = os.fsync, os.replace

        def spy_fsync(handle: int) -> None:
            self._note()
            status = os.fstat(handle)
            if stat.S_ISREG(status.st_mode):
                self._kept[status.st_ino] = self._read(status.st_ino) if status.st_ino in self._handles else b""
            elif self.folder.exists() and os.path.samestat(status, os.stat(self.folder)):
                self._names, self._pending = dict(self._listed), []
            self._note()

        def spy_replace(source: Path, target: Path) -> None:
            self._note()
            replace(source, target)
            self._look(together=True)
            self._note()

        try:
            with patch.object(os, "fsync", spy_fsync), patch.object(os, "replace", spy_replace):
                yield self
            self._note()
        finally:
            assert fsync is os.fsync
            for handle in self._handles.values():
                os.close(handle)

    def _read(self, number: int) -> bytes:
        handle = self._handles[number]
        return os.pread(handle, os.fstat(handle).st_size, 0)

    def _look(self, together: bool) -> None:
        """Notes what has changed among the names, as one change or as one each."""
        found: Names = {}
        for path in sorted(self.folder.iterdir()) if self.folder.exists() else ():
            if path.name == ".lock":  # holds nothing
                continue
            number = path.stat().st_ino
            found[path.name] = number
            if number not in self._handles:
                self._handles[number] = os.open(path, os.O_RDONLY)
        changes: list[tuple[str, int | None]] = [(n, i) for n, i in found.items() if self._listed.get(n) != i]
        changes += [(n, None) for n in self._listed if n not in found]
        if changes:
            self._pending += [tuple(changes)] if together else [(change,) for change in changes]
        self._listed = found

    def _note(self) -> None:
        self._look(together=False)
        contents = {number: (self._kept.get(number, b""), self._read(number)) for number in self._handles}
        self.moments.append(Moment(dict(self._names), tuple(self._pending), contents, self.promised))
