"""Hostile versions of valid files, and everything of ours that reads files or text of anybody.

Shared by test_hostile.py, where hypothesis chooses, and benchmarks/fuzz.py, where a seeded generator does.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import shutil
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from varangian.cli.study import _Duration, _Numbers, _Shard
from varangian.core.attacks import ATTACKS
from varangian.core.mixing import MIXINGS
from varangian.core.rules import RULES
from varangian.core.specs import describe, make
from varangian.runs.experiment import Experiment
from varangian.runs.fields import NAMED
from varangian.runs.files import read_text
from varangian.runs.live.schema import read_events
from varangian.runs.results import Result, read
from varangian.runs.running import resume, run
from varangian.simulation import data
from varangian.study.outcomes import Outcome, from_result, gather, order, read_outcome, write_runs
from varangian.study.report.legacy import import_runs
from varangian.study.report.records import of_sweeps
from varangian.study.watching import Watcher
from varangian.study.watching.display import shown as shown_view

Choose = Callable[[int], int]  # a whole number below the given one
Files = dict[str, bytes]

DIGITS = b"9" * 100_000
TOKENS: tuple[bytes, ...] = (
    *(b"1e999", b"-1e999", b"NaN", b"-Infinity", b"inf", b"-0", b"1e-400", b"0x10", b"1_0", b"1e5", b"0.5", b"1.0"),
    *(b"-1", b"0", b"2", b"2147483648", b"9223372036854775808", b"1e308", DIGITS, b"-" + DIGITS, b"0." + DIGITS),
    *(b"true", b"null", b"[]", b"{}", b'""', b'"', b"'", b",", b":", b"\t", b"\n", b"\r", b"\r\n", b"\x00", b"(", b")"),
    *(b"[" * 100_000, b'{"a":' * 50_000, b"[" * 20 + b"]" * 20, b"a." * 20_000, b"(" * 900, b"-" * 900, b"x" * 70_000),
    *(b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\\ud800", b"\xef\xbb\xbf", "\u2028".encode(), "\u202e".encode()),
    *("\u0663".encode(), "\uff11".encode(), "é".encode(), b"\x1b[2J", b"<script>alert(1)</script>", b"=1+1", b"@a"),
    *(b"../../../etc/passwd", b"$\\frac{", b"%s%n", b"#", b"# ", b"none", b"median", b"bulyan", b"multi-krum"),
    *(b'{"a": 1, "a": 2}', b"f=1", b"f=-1", b"m=10**9", b"base=1", b"**{}", b"factor=1e999", b"factor=1j", b"True"),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ mutations


def _place(content: bytes, choose: Choose) -> int:
    return choose(len(content) + 1)


def truncate(content: bytes, choose: Choose) -> bytes:
    return content[: _place(content, choose)]


def flip(content: bytes, choose: Choose) -> bytes:
    changed = bytearray(content)
    for _ in range(1 + choose(8)):
        if changed:
            changed[choose(len(changed))] ^= 1 << choose(8)
    return bytes(changed)


def overwrite(content: bytes, choose: Choose) -> bytes:
    """A few bytes with the greatest or the least value: sizes in binary headers above all."""
    place, length = choose(min(len(content), 64) + 1), 1 + choose(8)
    return content[:place] + bytes([(0, 255, 127, 128)[choose(4)]]) * length + content[place + length :]


def insert(content: bytes, choose: Choose) -> bytes:
    place = _place(content, choose)
    return content[:place] + TOKENS[choose(len(TOKENS))] + content[place:]


def remove(content: bytes, choose: Choose) -> bytes:
    place = _place(content, choose)
    return content[:place] + content[place + 1 + choose(200) :]


def splice(content: bytes, choose: Choose) -> bytes:
    start, length, place = _place(content, choose), choose(300), _place(content, choose)
    return content[:place] + content[start : start + length] + content[place:]


def repeat(content: bytes, choose: Choose) -> bytes:
    start, length, times = _place(content, choose), 1 + choose(100), (2, 30, 3000)[choose(3)]
    return content[:start] + content[start : start + length] * times + content[start + length :]


def substitute(content: bytes, choose: Choose) -> bytes:
    """A word, a number or a string becomes something else."""
    words = [(0, 0)]
    start = None
    for place, byte in enumerate(content[:20_000] + b" "):
        inside = chr(byte).isalnum() or byte in b"._+-"
        if inside and start is None:
            start = place
        elif not inside and start is not None:
            words.append((start, place))
            start = None
    start, end = words[choose(len(words))]
    return content[:start] + TOKENS[choose(len(TOKENS))] + content[end:]


def lines(content: bytes, choose: Choose) -> bytes:
    """A line twice, two lines swapped, or one left out."""
    found = content.split(b"\n")
    a, b = choose(len(found)), choose(len(found))
    kind = choose(3)
    if kind == 0:
        found.insert(b, found[a])
    elif kind == 1:
        found[a], found[b] = found[b], found[a]
    else:
        del found[a]
    return b"\n".join(found)


def recode(content: bytes, choose: Choose) -> bytes:
    """Other line ends, byte order marks and encodings."""
    text = content.decode("latin-1")
    return (
        content.replace(b"\n", b"\r"),
        content.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + content,
        text.encode("utf-16"),
        content.replace(b" ", b"").replace(b"\n", b" " * 1000),
        content[::-1],
        b"",
    )[choose(7)]


LEAVES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 10**400, 1e308, 5e-324, 1.5, "", "none", "x" * 5000, "\ud800", "\x00", "\u2028<b>"),
    *([], {}, [[]], [[0, 1]], {"a": 1}, [0] * 3000, ["nnm"] * 20, "nan", "1e999", "0,1:2,3:4", "median(f=2)", "$$"),
    *("=cmd|' /C calc'!A0", "../../x", "cuda:99", "meta", "krum(f=1e9)", "synthetic(shape=(1,8,8),train=10**9)"),
    *(["5" * 5000, 5], "-" * 500 + "1", "little(factor=" + "9" * 600 + ")", "bulyan(base=é)", ",".join(["nnm"] * 3000)),
)  # fmt: skip


def leaf(content: bytes, choose: Choose) -> bytes:
    """A value of a JSON object becomes another, or goes; as it is where the content is no JSON object."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(values, dict) or not values:
        return content
    name = list(values)[choose(len(values))]
    place = choose(len(LEAVES) + 1)
    if place == len(LEAVES):
        del values[name]
    else:
        values[name] = LEAVES[place]
    return json.dumps(values).encode()


def compressed(content: bytes, choose: Choose) -> bytes:
    """What gzip holds changes, and its checksum with it."""
    try:
        inner = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return content
    return gzip.compress(mutate(inner, choose), 1)


MUTATIONS = (truncate, flip, overwrite, insert, remove, splice, repeat, substitute, lines, recode)
MUTATIONS += (leaf, leaf, compressed)


def mutate(content: bytes, choose: Choose) -> bytes:
    """One to three changes."""
    for _ in range(1 + choose(3)):
        content = MUTATIONS[choose(len(MUTATIONS))](content, choose)
        if len(content) > 2**21:
            break
    return content


# -------------------------------------------------------------------------------------------------------------- readers


@dataclass(frozen=True)
class Reader:
    """Something that reads what anybody may have written.

    Attributes:
        files: a valid set of files, or of texts under the name "text".
        read: reads them from a folder, and asserts whatever must hold of an answer.
    """

    files: Files
    read: Callable[[Path], object]


def case(reader: Reader, folder: Path, choose: Choose) -> None:
    """Writes the files into an empty folder, one of them mutated, sometimes two of them swapped."""
    files = dict(reader.files)
    names = sorted(files)
    name = names[choose(len(names))]
    files[name] = mutate(files[name], choose)
    if len(names) > 1 and choose(20) == 0:
        other = names[choose(len(names))]
        files[name], files[other] = files[other], files[name]
    put(folder, files)


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


class Surprise(AssertionError):
    """Neither an error of ours nor a correct result."""


def outcome(reader: Reader, folder: Path) -> str:
    """Reads the files in the folder: "read", or "refused" with an error of ours.

    Raises:
        Surprise: anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left out is warned about
            reader.read(folder)
    except (ValueError, click.UsageError) as error:
        if isinstance(error, UnicodeError):
            raise Surprise(f"not an error of ours: {error!r}") from error
        message = error.message if isinstance(error, click.UsageError) else str(error)
        if not message.strip() or len(message) > 20_000:
            raise Surprise(f"an error that does not say what is wrong, in {len(message):,} characters") from error
        if "sys.set_int_max_str_digits" in message or "Traceback" in message:
            raise Surprise(f"not a message of ours: {message[:200]}") from error
        return "refused"
    except Exception as error:
        raise Surprise(f"not an error of ours: {type(error).__name__}: {str(error)[:200]}") from error
    return "read"


def must(holds: bool, what: str) -> None:
    if not holds:
        raise Surprise(what)


# ---- experiments


def check_experiment(e: Experiment) -> None:
    must(Experiment.from_json(e.to_json()) == e, "does not come back from JSON")
    must(Experiment.from_toml(e.to_toml()) == e, "does not come back from TOML")
    folder = f"{e.name}-{e.digest}"
    must(folder.isascii() and folder.isprintable(), f"a name that is no name: {folder!r}")
    must(not set(folder) & set("/\\:\n") and not folder.startswith("."), f"a name that leads elsewhere: {folder!r}")
    must(len(folder) < 255, "a name that is too long")
    must(1 <= e.workers <= 10_000 and 0 <= e.attackers < e.workers and e.batch_size <= 10**6, "absurd numbers")
    must(all(math.isfinite(e.rate(step)) for step in (0, 1, 10**6)), "a rate that is not finite")
    order(_row(e))


def _row(e: Experiment) -> Outcome:
    return Outcome(e, 0.5, 0.5)


def read_experiment(suffix: str) -> Callable[[Path], object]:
    def reads(folder: Path) -> object:
        text = read_text(folder / f"e.{suffix}")
        e = Experiment.from_toml(text) if suffix == "toml" else Experiment.from_json(text)
        check_experiment(e)
        return e

    return reads


EXAMPLE = Experiment(
    rule="bulyan(base=multi-krum)", pre=("nnm",), attack="little(factor=2.0)", workers=23, byzantine=2,
    learning_rate=((0, 0.1), (10, 0.05)), partition="dirichlet(alpha=0.1)", steps=20,
)  # fmt: skip


# ---- specs and other small texts

TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {"rule": RULES, "mixing": MIXINGS, "attack": ATTACKS}


def read_spec(kind: str) -> Callable[[Path], object]:
    def reads(folder: Path) -> object:
        text = (folder / "text").read_bytes().decode("utf-8", "surrogateescape")
        if kind in TABLES:
            made = make(kind, text, TABLES[kind], f=2)
            again = make(kind, describe(made, NAMED), TABLES[kind])
            must(again == made or "nan" in repr(made), f"{text!r} does not come back from {describe(made, NAMED)!r}")
        elif kind == "partition":
            made = make(kind, text, data.PARTITIONS)
            must(sum(map(len, made(np.arange(40) % 4, 4, 4, 1))) >= 40, "examples are lost")
        elif kind == "model":
            check_experiment(Experiment(model=text))
        else:
            check_experiment(Experiment(dataset=text))
        return text

    return reads


def read_setting(name: str) -> Callable[[Path], object]:
    def reads(folder: Path) -> object:
        text = (folder / "text").read_bytes().decode("utf-8", "surrogateescape")
        values = EXAMPLE.to_dict() | {name: text}
        e = Experiment.from_dict(values)
        check_experiment(e)
        return e

    return reads


def read_argument(kind: click.ParamType) -> Callable[[Path], object]:
    def reads(folder: Path) -> object:
        found = kind.convert((folder / "text").read_bytes().decode("utf-8", "surrogateescape"), None, None)
        if isinstance(kind, _Numbers):
            must(1 <= len(found) <= 10_000 and all(0 <= n < 10**9 for n in found), "absurd seeds")
        elif isinstance(kind, _Shard):
            must(1 <= found[0] <= found[1] < 10**6, "an impossible shard")
        else:
            must(0 <= found < 10**9 * 3600 + 3600, "an absurd time")
        return found

    return reads


# ---- run folders, tables, records


def check_outcome(o: Outcome) -> None:
    numbers = (o.final_loss, o.ratio, o.ratio_within, o.seconds, *(p.ratio for p in o.curve))
    must(all(v is None or math.isfinite(v) for v in numbers), "a number that is not finite")
    must(all(0 <= v <= 1 for v in (o.max_accuracy, o.final_accuracy, *(p.accuracy for p in o.curve))), "an accuracy")
    steps = [p.step for p in o.curve]
    must(steps == sorted(set(steps)) and o.steps >= 0, "steps that do not go up")
    stopped = o.stopped or "none"
    must(stopped.isprintable() and stopped[:1] not in tuple("=+-@"), f"stopped: {stopped!r}")
    check_experiment(o.experiment)


def read_one_outcome(folder: Path) -> object:
    found = read_outcome(folder)
    check_outcome(found)
    return found


def read_result(folder: Path) -> object:
    found = read(folder)
    check_experiment(found.experiment)
    must(len(found.evaluations) >= 1 and 0 <= found.max_accuracy <= 1, "evaluations that are none")
    must(math.isfinite(found.seconds), "seconds")
    return found


def read_workers(folder: Path) -> object:
    found = read(folder).workers()
    with np.errstate(invalid="ignore"):
        sound = [~((values < 0) | (values > 1)).any() for values in (found.weight, found.suspicion)]
    must(all(sound) and found.steps == len(found.rejected), "weights or suspicions that are none")
    return found


def read_tables(folder: Path) -> object:
    found = gather(folder)
    for o in found:
        check_outcome(o)
    write_runs(folder / "again", found) if (folder / "again").mkdir() is None else None
    must(len(gather(folder / "again")) == len(found), "rows are lost")
    return found


def read_records(folder: Path) -> object:
    found = of_sweeps(folder / "sweeps")
    must(all(math.isfinite(r.seconds) and r.jobs >= 0 for r in found), "a record")
    if not found:
        raise ValueError("left out")
    return found


def read_watched(folder: Path) -> object:
    view = Watcher(folder).look()
    json.dumps(view.to_dict(), allow_nan=False)
    for width in (40, 100):
        text = io.StringIO()
        Console(file=text, width=width).print(shown_view(view, width, 10))
        must("\x1b" not in text.getvalue(), "a line for a terminal")
    if any(run.state == "unreadable" for run in view.runs) or view.notes:
        raise ValueError("said of a run or of a sweep")
    return view


def read_legacy(folder: Path) -> object:
    made, refused = import_runs(folder / "old", folder / "out")
    if refused:
        raise ValueError(refused[0][1])
    for place in made:
        must(place.resolve().is_relative_to((folder / "out" / "imported").resolve()), "outside of the folder")
        check_outcome(read_outcome(place, "imported"))
    return made


# ---- data sets


def check_dataset(d: data.Dataset) -> None:
    for split in (d.train, d.test):
        must(str(split.images.dtype) == "torch.uint8" and str(split.labels.dtype) == "torch.int64", "types")
        must(len(split.images) == len(split) >= 1, "lengths")
        must(int(split.labels.min()) >= 0 and int(split.labels.max()) < d.classes, "labels")
        must(tuple(split.images.shape[1:]) == ((1, 28, 28) if d.name == "mnist" else (3, 32, 32)), "shapes")


def read_dataset(name: str) -> Callable[[Path], object]:
    def reads(folder: Path) -> object:
        found = data.load(name, folder, download=False)
        check_dataset(found)
        return found

    return reads


def _bytes(count: int, below: int, seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, below, count, dtype=np.uint8).tobytes()


def idx_files(suffix: str = "") -> Files:
    files: Files = {}
    for part, count in (("train", 6), ("t10k", 3)):
        images = struct.pack(">4I", 0x803, count, 28, 28) + _bytes(count * 784, 256, 1)
        labels = struct.pack(">2I", 0x801, count) + _bytes(count, 10, 2)
        files[f"{part}-images-idx3-ubyte{suffix}"], files[f"{part}-labels-idx1-ubyte{suffix}"] = images, labels
    return {name: gzip.compress(content, 1) if suffix else content for name, content in files.items()}


def cifar_files() -> Files:
    return {
        name: b"".join(bytes([i, 9 * i]) + _bytes(3072, 256, i) for i in range(3)) for name in ("train.bin", "test.bin")
    }


def cifar_archive() -> Files:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, content in cifar_files().items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"cifar-100-binary.tar.gz": packed.getvalue()}


# ---- runs that go on


def interrupted(experiment: Experiment, out: Path) -> Files:
    """The files of a run that was stopped after a checkpoint of every step."""

    def stop(step: int, newest: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        run(experiment, out, progress=stop, checkpoint_every=0)
    [folder] = out.iterdir()
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def read_resumed(reference: Result) -> Callable[[Path], object]:
    """Goes on with the run, which must come to what the undisturbed one came to, or be refused."""

    def reads(folder: Path) -> object:
        victim = folder.parent / "victim"
        found = resume(folder)
        check_experiment(found.experiment)
        if found.experiment == reference.experiment:
            must(found.evaluations[-1].accuracy == reference.evaluations[-1].accuracy, "another result")
            must(len(found.measures) == len(reference.measures), "another number of steps")
        must(not victim.exists(), "written elsewhere")
        return found

    return reads


# ---- all of them

CONFIG = {
    **{"seed": 3, "nb_steps": 20, "nb_workers": 51, "nb_decl_byz": 24, "nb_real_byz": 24, "gar": "krum"},
    **{"attack": "little", "attack_args": ["factor:1.5", "negative:True"], "model": "simples-full"},
    **{"dataset": "fashionmnist", "batch_size": 83, "learning_rate": 0.5, "learning_rate_decay": 10, "momentum": 0.9},
    **{"dampening": 0.0, "nesterov": False, "momentum_at": "update", "l2_regularize": 1e-4, "gradient_clip": 2.0},
    **{"evaluation_delta": 10, "learning_rate_decay_delta": 10},
}
EVAL = b"# Step number\tCross-accuracy\n0\t0.1\n10\t0.45\n20\t0.4\n"
STUDY = (
    b"# Step number\tTraining point count\tAverage loss\tHonest gradient deviation\tHonest gradient norm\tcosine\n"
    b"0\t0\t2.3\t3.0\t1.5\t1.0\n1\t4233\t2.2\tnan\t1.0\t0.9\n"
)
RECORD = {
    **{"command": "varangian reproduce", "started": "2026-11-24T00:00:00+00:00", "seconds": 1.5, "jobs": 2},
    **{"threads": 1, "cores": 2, "done": 3, "versions": {"torch": "2.13.0"}},
}


PROGRESS = {"runs": 4, "complete_before": 1, "failed": 0, "failures": [], "left": 2.5, "ended": False}


def readers(folder: Path) -> dict[str, Reader]:
    """By name. The folder is where valid files are made."""
    e = Experiment(rule="median", attack="little", workers=11, byzantine=2, steps=6, batch_size=2)
    results: list[Result] = [
        run(replace(e, momentum_at=place), folder / "runs", events=True) for place in ("worker", "server")
    ]
    ours = results[0].folder
    assert ours is not None
    whole = {name: (ours / name).read_bytes() for name in ("experiment.json", "metrics.csv", "evaluations.csv")}
    whole["result.json"] = (ours / "result.json").read_bytes()
    write_runs(folder, [from_result(r) for r in results])
    tables = {name: (folder / name).read_bytes() for name in ("runs.csv", "curves.csv", "timings.csv")}
    sweeping = {"sweeps/a.json": json.dumps(RECORD | PROGRESS).encode()}
    old = {"old/a/config.json": json.dumps(CONFIG).encode(), "old/a/eval": EVAL, "old/a/study": STUDY}
    found = {
        "experiment.json": Reader({"e.json": EXAMPLE.to_json().encode()}, read_experiment("json")),
        "experiment.toml": Reader({"e.toml": EXAMPLE.to_toml().encode()}, read_experiment("toml")),
        "run folder": Reader(whole, read_one_outcome),
        "run folder, whole": Reader(whole, read_result),
        "interrupted run": Reader(interrupted(e, folder / "interrupted"), read_resumed(results[0])),
        "workers.bin": Reader(whole | {"workers.bin": (ours / "workers.bin").read_bytes()}, read_workers),
        "events.jsonl": Reader({"events.jsonl": (ours / "events.jsonl").read_bytes()}, read_events),
        "watched": Reader({f"runs/a/{name}": text for name, text in whole.items()} | sweeping, read_watched),
        "watched, under way": Reader({f"a/{name}": whole[name] for name in list(whole)[:3]}, read_watched),
        "runs.csv": Reader(tables, read_tables),
        "sweep record": Reader({"sweeps/a.json": json.dumps(RECORD).encode()}, read_records),
        "imported": Reader(old, read_legacy),
        "idx": Reader(idx_files(), read_dataset("mnist")),
        "idx.gz": Reader(idx_files(".gz"), read_dataset("mnist")),
        "cifar .bin": Reader(cifar_files(), read_dataset("cifar-100")),
        "cifar .tar.gz": Reader(cifar_archive(), read_dataset("cifar-100")),
    }
    texts: dict[str, tuple[str, Callable[[Path], object]]] = {
        "rule": ("multi-krum(m=5, f=2)", read_spec("rule")),
        "rule 2": ("bulyan(base=multi-krum, f=3)", read_spec("rule")),
        "mixing": ("bucketing(s=2)", read_spec("mixing")),
        "attack": ("little(factor=2.0, sign=1)", read_spec("attack")),
        "attack 2": ("empire(factor=1.1)", read_spec("attack")),
        "partition": ("dirichlet(alpha=0.1)", read_spec("partition")),
        "model": ("fully-connected(hidden=10)", read_spec("model")),
        "dataset": ("synthetic(shape=(1,8,8),classes=4,train=40,test=10)", read_spec("dataset")),
        "schedule": ("0.02,8000:0.004,9000:0.001", read_setting("learning_rate")),
        "mixings": ("arc,nnm,bucketing(s=2)", read_setting("pre")),
        "device": ("cpu", read_setting("device")),
        "seeds": ("1-5,7,9-10", read_argument(_Numbers())),
        "shard": ("1/3", read_argument(_Shard())),
        "duration": ("30m", read_argument(_Duration())),
    }
    return found | {f"text: {name}": Reader({"text": t.encode()}, reads) for name, (t, reads) in texts.items()}
