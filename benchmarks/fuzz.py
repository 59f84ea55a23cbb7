"""Mutated files and texts for everything of ours that reads what anybody may have written, with a count by outcome.

    python benchmarks/fuzz.py --seconds 200 [--seed 0] [--only runs.csv] [--case 17]

A reader gets a valid file with one to three changes (cut, flipped, spliced, repeated, huge numbers, deep nesting, other
encodings; tests/fuzzing.py) and must answer with an error of ours or a correct result. The process may use --memory
GiB of address space beyond what it starts with, and an input may take --limit seconds.
Every case is a function of (seed, reader, case), so a surprise is repeated with --seed, --only and --case.
"""

from __future__ import annotations

import argparse
import platform
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import fuzzing


class TooLongError(Exception):
    """An input took longer than it may."""


def interrupt(*_: object) -> None:
    raise TooLongError


def bound_memory(gib: float) -> None:
    """Of this process, from now on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def one(reader: fuzzing.Reader, folder: Path, seed: str, limit: float) -> tuple[str, float]:
    """The outcome of a case, and its seconds."""
    fuzzing.case(reader, folder, random.Random(seed).randrange)
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        try:
            found = fuzzing.outcome(reader, folder)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TooLongError:
        found = f"took over {limit:g} s"
    except fuzzing.Surprise as error:
        found = str(error)
        if "TooLongError" in found:
            found = f"took over {limit:g} s"
        place = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]
        found += f" ({Path(place.filename).name}:{place.lineno})"
    return found, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name begins with this")
    parser.add_argument("--case", type=int, help="this one only, with its files kept and its traceback")
    parser.add_argument("--limit", type=float, default=5, help="seconds that an input may take")
    parser.add_argument("--memory", type=float, default=1.5, help="GiB beyond what the process starts with")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    table = {n: r for n, r in fuzzing.readers(folder / "valid").items() if n.startswith(options.only or "")}
    if options.case is not None:
        [(name, reader)] = table.items()
        fuzzing.case(reader, folder / "case", random.Random(f"{options.seed} {name} {options.case}").randrange)
        print(f"files in {folder / 'case'}")
        print(fuzzing.outcome(reader, folder / "case"))
        return
    signal.signal(signal.SIGALRM, interrupt)
    bound_memory(options.memory)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts: dict[str, Counter[str]] = {name: Counter() for name in table}
    slowest = dict.fromkeys(table, 0.0)
    surprises: Counter[tuple[str, str]] = Counter()
    start, number = time.perf_counter(), 0
    while time.perf_counter() - start < options.seconds:
        for name, reader in table.items():
            found, took = one(reader, folder / "case", f"{options.seed} {name} {number}", options.limit)
            slowest[name] = max(slowest[name], took)
            counts[name][found if found in ("read", "refused") else "surprise"] += 1
            if found not in ("read", "refused"):
                if not surprises[name, found]:
                    print(f"! {name}, case {number}: {found}", flush=True)
                surprises[name, found] += 1
        number += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) / 2**10
    print(f"{'reader':22} {'inputs':>8} {'refused':>8} {'read':>7} {'surprises':>9} {'slowest, s':>10}")
    for name, found in counts.items():
        cells = found.total(), found["refused"], found["read"], found["surprise"], f"{slowest[name]:.2f}"
        print("{:22} {:>8} {:>8} {:>7} {:>9} {:>10}".format(name, *cells))
    total = sum((found for found in counts.values()), Counter())
    print(
        f"{total.total():,} inputs, {total['refused']:,} refused, {total['read']:,} read, "
        f"{total['surprise']} surprises; "
        f"seed {options.seed}, {time.perf_counter() - start:.0f} s, memory grew by {grown:.0f} MiB; "
        f"{datetime.now(timezone.utc):%Y-%m-%d}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    sys.exit(1 if total["surprise"] else 0)


if __name__ == "__main__":
    main()
