"""Data files: found, downloaded, and read as files of anybody.

Files are treated as hostile. Nothing is unpickled or extracted, no more is read than the format allows, and whatever is
wrong with a file comes out as one ``DataError`` of one line.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .dataset import DataError, Split

logger = logging.getLogger("varangian.simulation.data")

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


_URLS = {
    "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "cifar-10": "https://www.cs.toronto.edu/~kriz/",
    "cifar-100": "https://www.cs.toronto.edu/~kriz/",
}


# The same sums as in the checksum lists of TensorFlow Datasets 4.9.10. Fashion-MNIST's were also computed here: Debian
# ships the published files without the names and dates in their gzip headers, and with these put back they have the MD5
# sums that the authors publish. For the others that check was not possible offline.
_SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "cifar-10": {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    "cifar-100": {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
}


_LARGEST = 2**28  # bytes of a download; the largest of these files has 170 million


def data_root(folder: str | Path | None) -> Path:
    chosen = folder or os.environ.get("VARANGIAN_DATA")
    if chosen:
        return Path(os.path.expanduser(chosen))
    import platformdirs  # only who leaves the choice to us pays for it

    return platformdirs.user_data_path("varangian", appauthor=False)


def _first_file(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    # os.path.isfile, unlike Path.is_file, answers False in a folder that may not be entered.
    return next((place / name for place in places for name in names if os.path.isfile(place / name)), None)


class _MissingError(DataError):
    """There is no file of this set, so none to delete."""


def _explained(name: str, target: Path, error: DataError) -> DataError:
    """The error that the user sees: what is wrong, in which dataset, and what to do now."""
    verb = "To get it" if isinstance(error, _MissingError) else "Delete it to get a good one"
    package = '"apt-get install dataset-fashion-mnist" (Debian, Ubuntu), or ' if name == "fashion-mnist" else ""
    return DataError(
        f"{name}: {error}. {verb}: {package}download {', '.join(_SHA256[name])} from {_URLS[name]} into {target} "
        "(done for you where downloads are allowed), or set VARANGIAN_DATA to the folder that has it."
    )


def _download(name: str, file: str, target: Path, searched: str, allowed: bool) -> Path:
    """Fetch one file of a dataset into ``target``; it appears there only once its SHA-256 has been checked.

    ``searched`` says where the file was looked for: the start of the message where it cannot be fetched either.
    """
    if not allowed:
        raise _MissingError(searched)
    import pooch  # who downloads nothing does not pay for these
    import requests

    url = _URLS[name] + file

    def fetch(url: str, output: str, _: object) -> None:
        with requests.get(url, stream=True, timeout=20) as response, open(output, "wb") as copy:
            response.raise_for_status()
            length = response.headers.get("content-length", "")
            size = f"{int(length) / 1e6:.1f} MB" if re.fullmatch("[0-9]{1,12}", length) else "unknown size"
            logger.warning("downloading %s (%s) into %s.", url, size, target)
            came, said = 0, time.monotonic()
            for chunk in response.iter_content(2**16):
                if (came := came + len(chunk)) > _LARGEST:
                    raise ValueError(f"more than {_LARGEST:,} bytes")  # it cannot have the right checksum
                copy.write(chunk)
                if time.monotonic() > said + 5:
                    said = time.monotonic()
                    logger.info("%s: %.1f of %s", file, came / 1e6, size)

    missing = [place for place in (target, *target.parents) if not os.path.exists(place)]
    done = False
    try:
        # pooch annotates the downloader with other arguments than those it calls it with.
        known = f"sha256:{_SHA256[name][file]}"
        pooch.retrieve(url, known, file, target, downloader=fetch)  # pyright: ignore[reportArgumentType]
        done = True
    except requests.RequestException as error:
        reason = f"HTTP status {error.response.status_code}" if error.response is not None else type(error).__name__
        raise _MissingError(f"{searched}; could not download {url} ({reason})") from None
    except OSError as error:
        raise _MissingError(
            f"{searched}; could not download it to {target / file} ({error.strerror or error})"
        ) from None
    except ValueError:
        raise _MissingError(
            f"{searched}; what {url} gave does not have the known SHA-256, so it was thrown away"
        ) from None
    finally:
        if not done:  # leave the disk as it was, also on Ctrl-C
            for place in missing:
                with suppress(OSError):
                    place.rmdir()
    return target / file


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _take(stream: _Readable, count: int) -> bytearray:
    """Up to ``count`` bytes, in pieces: a read of all would set aside memory for a size that nobody has checked."""
    data = bytearray()
    while piece := stream.read(min(2**20, count - len(data))):
        data += piece
    return data


@contextmanager
def _open(path: Path) -> Iterator[_Readable]:
    """A file as a stream of bytes, decompressed if need be; what goes wrong in the block is a DataError on ``path``."""
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                with gzip.open(file) as stream:
                    yield stream
            else:
                file.seek(0)
                yield file
    except EOFError:
        raise DataError(f"{path} is truncated: the compressed data stop before their end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is corrupt ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def _check_labels(where: str, labels: np.ndarray, classes: int) -> None:
    if labels.max() >= classes:
        position = int(np.argmax(labels >= classes))
        raise DataError(f"{where} is corrupt: label {labels[position]} at position {position}, over {classes - 1}")


# MNIST and Fashion-MNIST: the same file names, magic numbers and sizes. Only the content tells which is which.
_FIRST_LABELS = {
    ("mnist", "train"): (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ("mnist", "t10k"): (7, 2, 1, 0, 4, 1, 4, 9, 5, 9),
    ("fashion-mnist", "train"): (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
    ("fashion-mnist", "t10k"): (9, 2, 1, 1, 6, 1, 4, 6, 5, 7),
}


def load_idx(name: str, torchvision: str, root: Path, download: bool) -> tuple[Split, Split]:
    """The two splits of a dataset in the four files of MNIST."""
    target = root / torchvision / "raw"
    places = [target, root / name, root / "raw", root] + [_DEBIAN] * (name == "fashion-mnist")
    try:
        paths: dict[str, Path] = {}
        for file in _SHA256[name]:
            plain = file.removesuffix(".gz")
            dotted = plain.replace("-idx", ".idx")
            path = _first_file(places, (plain, file, dotted, dotted + ".gz"))
            paths[file] = path or _download(
                name, file, target, f"found no {plain}[.gz] in {', '.join(map(str, places))}", download
            )

        def split(part: str, most: int) -> Split:
            images_at, labels_at = paths[f"{part}-images-idx3-ubyte.gz"], paths[f"{part}-labels-idx1-ubyte.gz"]
            images = _read_idx(images_at, (28, 28), most)
            labels = _read_idx(labels_at, (), most)
            if len(images) != len(labels):
                raise DataError(f"{images_at} has {len(images):,} images, but {labels_at} {len(labels):,} labels")
            _check_labels(str(labels_at), labels, 10)
            for (other, which), first in _FIRST_LABELS.items():
                if other != name and which == part and tuple(labels[:10].tolist()) == first:
                    # Elsewhere it is as it should be, and nobody is told to delete it.
                    kind = DataError if labels_at.parent == target else _MissingError
                    raise kind(f"{labels_at} is {other}'s, not {name}'s")
            return Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))

        return split("train", 60_000), split("t10k", 10_000)
    except DataError as error:
        raise _explained(name, target, error) from None


def _read_idx(path: Path, sides: tuple[int, ...], most: int) -> np.ndarray:
    """The array in an IDX file: a magic number, one size per dimension (big-endian, 32 bits), the bytes.

    Shape: uint8 [N, *sides], with N from 1 to ``most``; header and file must agree on it exactly.
    """
    with _open(path) as stream:
        header = _take(stream, 4 * (2 + len(sides)))
        if len(header) < 4 * (2 + len(sides)):
            raise DataError(f"{path} is truncated: {len(header)} bytes, less than its header")
        magic, count, *found = struct.unpack(f">{2 + len(sides)}I", header)
        if magic != 0x801 + len(sides):
            raise DataError(f"{path} is not IDX data: magic number {magic:#010x}, expected {0x801 + len(sides):#010x}")
        if tuple(found) != sides or not 1 <= count <= most:
            came, due = (" x ".join(map(str, shape)) for shape in ((count, *found), (f"(1 to {most})", *sides)))
            raise DataError(f"{path} has a wrong header: it says {came} bytes, expected {due}")
        size = count * math.prod(sides)
        body = _take(stream, size + 1)  # one more, to see the end: gzip's checksum is compared there
    if len(body) < size:
        raise DataError(f"{path} is truncated: its header says {size:,} bytes of data, it has {len(body):,}")
    if len(body) > size:
        raise DataError(f"{path} is corrupt: more data than the {size:,} bytes that its header says")
    return np.frombuffer(body, np.uint8).reshape(count, *sides)


def load_cifar(
    name: str,
    directory: str,
    train: tuple[str, ...],
    most: int,
    label_limits: tuple[int, ...],
    root: Path,
    download: bool,
) -> tuple[Split, Split]:
    """The two splits of a CIFAR dataset: records of one label per limit (the last one counts) and a 3 x 32 x 32 image.

    Args:
        directory: the folder of the .bin files, on disk or in the archive.
        train: the files of the training split, with at most ``most`` records each.
    """
    (archive,) = _SHA256[name]
    test = "test_batch.bin" if name == "cifar-10" else "test.bin"
    files = (*train, test)
    sizes = {file: (10_000 if file == test else most) * (len(label_limits) + 3072) for file in files}
    try:
        path, contents = _cifar_contents(name, root, directory, archive, sizes, download)
        parts = {file: _parse_cifar(f"{path / file}", contents.pop(file), label_limits) for file in files}
        images, labels = (np.concatenate([parts[file][which] for file in train]) for which in (0, 1))
        splits = [Split(torch.from_numpy(x), torch.from_numpy(y)) for x, y in ((images, labels), parts[test])]
        return splits[0], splits[1]
    except DataError as error:
        raise _explained(name, root, error) from None


# What torchvision reads, so what people have.
_PICKLED = {
    "cifar-10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar-100": ("cifar-100-python", "cifar-100-python.tar.gz"),
}


def _cifar_contents(
    name: str, root: Path, directory: str, archive: str, sizes: dict[str, int], download: bool
) -> tuple[Path, dict[str, bytearray]]:
    """Where the .bin files were found, and the content of each: in a folder, in the archive, or downloaded."""
    folders = [root / directory, root / name / directory, root]
    for folder in folders:
        if all(os.path.isfile(folder / file) for file in sizes):
            contents = {}
            for file, size in sizes.items():
                with _open(folder / file) as stream:
                    contents[file] = _take(stream, size + 1)
                if len(contents[file]) > size:
                    raise DataError(f"{folder / file} is corrupt: more than {size:,} bytes")
            return folder, contents
    path = _first_file([root, root / name], [archive])
    if path is None:
        clues = "".join(
            [f"; {place} is the Python version, a pickle, which is never read; get the binary version, {archive}"
             for place in (root / pickled for pickled in _PICKLED[name]) if place.exists()]
            + [f"; {folder} has no {file}" for folder in folders for file in sizes
               if not os.path.isfile(folder / file) and any(os.path.isfile(folder / other) for other in sizes)]
        )  # fmt: skip
        searched = f"found neither the folder {directory} nor {archive} in {root}{clues}"
        path = _download(name, archive, root, searched, download)
    return path / directory, _read_members(path, {f"{directory}/{file}": size for file, size in sizes.items()})


def _parse_cifar(where: str, data: bytearray, label_limits: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one .bin file."""
    width = len(label_limits) + 3072
    if not data or len(data) % width:
        raise DataError(f"{where} is truncated or corrupt: {len(data):,} bytes, not a multiple of {width:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, width)
    for column, limit in enumerate(label_limits):
        _check_labels(where, records[:, column], limit)
    images = records[:, len(label_limits) :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(images), records[:, len(label_limits) - 1].astype(np.int64)


def _read_members(path: Path, sizes: dict[str, int]) -> dict[str, bytearray]:
    """The content of the named members of a tar archive, by the last part of their names; nothing goes to disk.

    The format is a header of 512 bytes and the content, padded to a multiple of 512, for each member; then zeros. The
    standard library's tarfile knows all its extensions, but a header that claims an exabyte keeps it busy for ever.

    Args:
        sizes: the full name of each member and how many bytes it may have.
    """
    contents: dict[str, bytearray] = {}
    left = sum(sizes.values()) + 2**20  # a small file can hold any amount of zeros
    position = 0
    with _open(path) as stream:
        while any(header := _take(stream, 512)):
            size = _octal(header[124:136])
            blank = 8 * ord(" ")  # what the checksum's own field counts for
            if len(header) < 512 or _octal(header[148:156]) != sum(header) - sum(header[148:156]) + blank or size < 0:
                raise DataError(f"{path} is corrupt or no tar archive: no header at byte {position:,}")
            prefix = header[345:500] if header[257:263] == b"ustar\0" else b""
            name = "/".join(part.split(b"\0")[0].decode("latin-1") for part in (prefix, header[:100]) if any(part))
            wanted = name in sizes and header[156] in b"0\0"  # a plain file
            if size > (sizes[name] if wanted else left):
                raise DataError(f"{path} is corrupt: {name!r} claims {size:,} bytes")
            content = _take(stream, size) if wanted else bytearray()
            skipped = _skip(stream, -(-size // 512) * 512 - len(content))
            if len(content) + skipped < size:
                raise DataError(f"{path} is truncated: it stops in {name!r}")
            if wanted:
                contents[name.rpartition("/")[2]] = content
            position += 512 + len(content) + skipped
            left -= 512 + len(content) + skipped
            if left < 0:
                break
        if _skip(stream, left + 1) > left:  # to the end, where gzip's checksum is compared
            raise DataError(f"{path} is corrupt: more data than the dataset has")
    lacking = [name for name in sizes if name.rpartition("/")[2] not in contents]
    if lacking:
        raise DataError(f"{path} lacks {', '.join(lacking)}")
    return contents


def _octal(field: bytearray) -> int:
    """A number of a tar header; -1 where it is none."""
    digits = bytes(field).strip(b"\0 ")
    return int(digits or b"0", 8) if re.fullmatch(b"[0-7]*", digits) else -1


def _skip(stream: _Readable, count: int) -> int:
    """Read past up to ``count`` bytes; how many there were."""
    done = 0
    while done < count and (piece := stream.read(min(2**20, count - done))):
        done += len(piece)
    return done
