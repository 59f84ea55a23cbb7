"""Datasets: readers of true and of hostile files, transforms, partitions."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import struct
import tarfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from varangian.simulation import data
from varangian.simulation.data import readers
from varangian.simulation.sampling import Sampler

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path_factory):
    """No test finds data of this machine or asks the network for some, unless it says so."""
    monkeypatch.delenv("VARANGIAN_DATA", raising=False)
    monkeypatch.setattr(readers, "_DEBIAN", tmp_path_factory.mktemp("debian") / "none")
    monkeypatch.setattr(readers, "_URLS", dict.fromkeys(readers._URLS, "http://127.0.0.1:9/"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def random_bytes(count: int, below: int = 256, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, below, count, dtype=np.uint8).tobytes()


def idx(payload: bytes, *sizes: int, magic: int | None = None) -> bytes:
    return struct.pack(f">{1 + len(sizes)}I", 0x800 + len(sizes) if magic is None else magic, *sizes) + payload


def mnist_files(train: int = 12, test: int = 5) -> dict[str, bytes]:
    return {
        IDX[0]: idx(random_bytes(train * 784), train, 28, 28),
        IDX[1]: idx(random_bytes(train, 10, seed=2), train),
        IDX[2]: idx(random_bytes(test * 784, seed=3), test, 28, 28),
        IDX[3]: idx(random_bytes(test, 10, seed=4), test),
    }


def cifar_10_files(count: int = 3) -> dict[str, bytes]:
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    return {
        name: b"".join(bytes([(i + k) % 10]) + random_bytes(3072, seed=10 * k + i) for i in range(count))
        for k, name in enumerate(names)
    }


def cifar_100_files(count: int = 4) -> dict[str, bytes]:
    return {
        name: b"".join(bytes([i % 20, 99 - i]) + random_bytes(3072, seed=100 * k + i) for i in range(count))
        for k, name in enumerate(("train.bin", "test.bin"))
    }


def write(folder: Path, files: dict[str, bytes], suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(content, 1) if suffix == ".gz" else content)
    return folder


def tar(path: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, level: int = 1) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=level) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info, io.BytesIO(content))
    return path


def refused(name: str, folder: Path, *words: str, download: bool = False) -> str:
    """`load` must answer a DataError of one line that has all these words and says how to get good data."""
    with pytest.raises(data.DataError) as caught:
        data.load(name, folder, download)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    for word in (*words, "VARANGIAN_DATA", "download"):
        assert word in message, (word, message)
    assert caught.value.__suppress_context__
    return message


# ---------------------------------------------------------------------------------------------------------------------
# Real data


def test_digits_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.datasets")
    theirs = sklearn.load_digits()
    ours = data.load("digits")
    assert torch.cat([ours.train.images, ours.test.images])[:, 0].numpy().tolist() == theirs.images.tolist()
    assert torch.cat([ours.train.labels, ours.test.labels]).tolist() == theirs.target.tolist()
    assert (len(ours.train), len(ours.test), ours.classes, ours.scale) == (1297, 500, 10, 16)
    assert (ours.mean, ours.std, ours.flip, ours.synthetic) == (None, None, False, False)
    assert ours.train.images.dtype == torch.uint8
    assert ours.train.labels.dtype == torch.int64


def test_fashion_mnist_of_debian(monkeypatch, tmp_path):
    debian = Path("/usr/share/datasets/fashion-mnist")
    if not debian.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed: apt-get install dataset-fashion-mnist")
    monkeypatch.setattr(readers, "_DEBIAN", debian)
    fashion = data.load("fashion-mnist", tmp_path, download=False)
    assert fashion.train.images.shape == (60_000, 1, 28, 28)
    assert fashion.test.images.shape == (10_000, 1, 28, 28)
    assert fashion.train.labels.bincount().tolist() == [6000] * 10
    assert fashion.test.labels.bincount().tolist() == [1000] * 10
    # The published mean and deviation of its pixels, as everybody normalises with.
    assert fashion.train.images.float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert fashion.train.images.float().std().item() / 255 == pytest.approx(0.3530, abs=1e-4)
    assert (fashion.flip, fashion.mean, fashion.scale) == (True, None, 255)


# ---------------------------------------------------------------------------------------------------------------------
# Where files are found


@pytest.mark.parametrize(("place", "advice"), [(".", "To get it"), ("MNIST/raw", "Delete it to get a good one")])
def test_nobody_is_told_to_delete_a_good_file_of_another_set(place: str, advice: str, tmp_path: Path) -> None:
    labels = bytes(readers._FIRST_LABELS["fashion-mnist", "train"])
    write(tmp_path / place, dict(zip(IDX, [idx(bytes(7840), 10, 28, 28), idx(labels, 10)] * 2, strict=True)))
    with pytest.raises(data.DataError, match=f"is fashion-mnist's, not mnist's. {advice}: "):
        data.load("mnist", tmp_path, download=False)
    assert data.load("fashion-mnist", tmp_path / place, download=False).train.labels.tolist() == list(labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "."),
        ("mnist", "mnist"),
        ("mnist", "raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
    ],
)
def test_idx_files_are_found_and_read(name, place, suffix, tmp_path):
    files = mnist_files()
    write(tmp_path / place, files, suffix)
    dataset = data.load(name, tmp_path, download=False)
    assert dataset.train.images.numpy().tobytes() == files[IDX[0]][16:]
    assert dataset.train.labels.tolist() == list(files[IDX[1]][8:])
    assert dataset.test.images.numpy().tobytes() == files[IDX[2]][16:]
    assert dataset.test.labels.tolist() == list(files[IDX[3]][8:])
    assert dataset.shape == (1, 28, 28)
    assert dataset.train.images.dtype == torch.uint8


def test_dotted_names_and_the_environment(tmp_path, monkeypatch):
    write(tmp_path, {name.replace("-idx", ".idx"): content for name, content in mnist_files().items()})
    monkeypatch.setenv("VARANGIAN_DATA", str(tmp_path))
    assert len(data.load("mnist", download=False).train) == 12


def test_a_given_folder_is_preferred_to_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_DEBIAN", write(tmp_path / "debian", mnist_files(train=3), ".gz"))
    assert len(data.load("fashion-mnist", tmp_path / "mine", download=False).train) == 3
    write(tmp_path / "mine", mnist_files(train=4))
    assert len(data.load("fashion-mnist", tmp_path / "mine", download=False).train) == 4


def check_cifar(dataset, train: list[bytes], test: bytes, labels: int):
    for split, records in ((dataset.train, b"".join(train)), (dataset.test, test)):
        rows = np.frombuffer(records, np.uint8).reshape(-1, labels + 3072)
        assert split.labels.tolist() == rows[:, labels - 1].tolist()
        assert split.images.shape == (len(rows), 3, 32, 32)
        assert split.images.flatten(1).tolist() == rows[:, labels:].tolist()


@pytest.mark.parametrize("place", ["cifar-10-batches-bin", ".", "tar"])
def test_cifar_10(place, tmp_path):
    files = cifar_10_files()
    if place == "tar":
        tar(tmp_path / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{name}": files[name] for name in files})
    else:
        write(tmp_path / place, files)
    dataset = data.load("cifar-10", tmp_path, download=False)
    *train, test = files.values()
    check_cifar(dataset, train, test, 1)
    assert (dataset.classes, dataset.flip) == (10, True)
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize("place", ["cifar-100-binary", ".", "tar"])
def test_cifar_100_uses_the_fine_labels(place, tmp_path):
    files = cifar_100_files()
    if place == "tar":
        tar(tmp_path / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{name}": files[name] for name in files})
    else:
        write(tmp_path / place, files)
    dataset = data.load("cifar-100", tmp_path, download=False)
    check_cifar(dataset, [files["train.bin"]], files["test.bin"], 2)
    assert dataset.train.labels.tolist() == [99, 98, 97, 96]
    assert dataset.classes == 100


# ---------------------------------------------------------------------------------------------------------------------
# Files that are missing or wrong


def test_missing_files_say_where_and_how(tmp_path):
    refused(
        "fashion-mnist", tmp_path, IDX[0], str(tmp_path / "FashionMNIST" / "raw"), "apt-get install dataset-fashion"
    )
    refused("mnist", tmp_path / "nowhere", IDX[0], str(tmp_path / "nowhere"))
    refused("cifar-10", tmp_path, "cifar-10-binary.tar.gz", "cifar-10-batches-bin", str(tmp_path))
    refused("cifar-100", tmp_path, "cifar-100-binary.tar.gz", "cifar-100-binary", str(tmp_path))
    (tmp_path / "file").touch()
    refused("mnist", tmp_path / "file", "found no")


@pytest.mark.parametrize("file", IDX)
def test_one_file_missing(file, tmp_path):
    (write(tmp_path, mnist_files()) / file).unlink()
    refused("mnist", tmp_path, f"found no {file}")


def with_label(labels: bytes, value: int) -> bytes:
    return labels[:-1] + bytes([value])


IMAGES, LABELS = random_bytes(12 * 784), random_bytes(12, 10, seed=2)
BAD_IDX = {
    "empty": (IDX[0], b"", "truncated"),
    "half a header": (IDX[0], idx(IMAGES, 12, 28, 28)[:9], "truncated"),
    "truncated": (IDX[0], idx(IMAGES, 12, 28, 28)[:-1], "truncated"),
    "header only": (IDX[1], idx(b"", 12), "truncated"),
    "longer than its header": (IDX[0], idx(IMAGES + b"x", 12, 28, 28), "more data"),
    "magic of labels": (IDX[0], idx(LABELS, 12) + bytes(16), "magic number 0x00000801, expected 0x00000803"),
    "magic of another type": (IDX[0], idx(IMAGES, 12, 28, 28, magic=0xD03), "magic number 0x00000d03"),
    "text": (IDX[0], b"<html>404 Not Found</html>" * 10, "magic number"),
    "no image": (IDX[0], idx(b"", 0, 28, 28), "wrong header"),
    "other sides": (IDX[0], idx(IMAGES, 12, 56, 14), "12 x 56 x 14"),
    "huge count": (IDX[0], idx(IMAGES, 2**32 - 1, 28, 28), "4294967295 x 28 x 28"),
    "huge sides": (IDX[0], idx(IMAGES, 12, 2**31, 2**31), "wrong header"),
    "huge labels": (IDX[1], idx(LABELS, 2**31), "wrong header"),
    "largest count allowed, no data": (IDX[0], idx(b"", 60_000, 28, 28), "truncated"),
    "label out of range": (IDX[1], idx(with_label(LABELS, 10), 12), "label 10 at position 11"),
    "label 255": (IDX[1], idx(with_label(LABELS, 255), 12), "label 255"),
    "fewer labels": (IDX[1], idx(LABELS[:-1], 11), "12 images, but"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_files(case, suffix, tmp_path):
    file, content, words = BAD_IDX[case]
    write(tmp_path, mnist_files(), suffix)
    write(tmp_path, {file: content}, suffix)
    refused("mnist", tmp_path, str(tmp_path / file), words)


def test_bad_compression(tmp_path):
    good = gzip.compress(mnist_files()[IDX[0]])
    write(tmp_path, mnist_files(), ".gz")
    file = tmp_path / (IDX[0] + ".gz")
    for content, word in (
        (good[:-4], "truncated"),
        (good[: len(good) // 2], "truncated"),
        (good[:3], "truncated"),
        (good[:-6] + bytes([good[-6] ^ 1]) + good[-5:], "corrupt"),  # a bit of the checksum
        (good[:200] + bytes([good[200] ^ 1]) + good[201:], "corrupt"),  # a bit of an image
        (good + b"rubbish", "corrupt"),
        (b"\x1f\x8b" + bytes(100), "corrupt"),
    ):
        file.write_bytes(content)
        refused("mnist", tmp_path, str(file), word)


def test_a_bomb_is_not_decompressed(tmp_path):
    """300 MB of zeros after an honest header: neither memory nor time is spent on them."""
    import tracemalloc

    write(tmp_path, mnist_files(), ".gz")
    zeros = gzip.compress(bytes(30_000_000), 9) * 10
    file = tmp_path / (IDX[0] + ".gz")
    file.write_bytes(gzip.compress(idx(b"", 12, 28, 28)) + zeros)
    tracemalloc.start()
    refused("mnist", tmp_path, str(file), "more data than the 9,408 bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_another_datasets_files_are_recognised(tmp_path):
    files = mnist_files()
    files[IDX[1]] = idx(bytes([5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5]), 12)
    write(tmp_path, files)
    assert len(data.load("mnist", tmp_path, download=False).train) == 12
    refused("fashion-mnist", tmp_path, IDX[1], "is mnist's")


def test_bad_cifar_files(tmp_path):
    good = cifar_10_files()
    folder = write(tmp_path / "cifar-10-batches-bin", good)
    for file, content, word in (
        ("data_batch_2.bin", good["data_batch_2.bin"][:-1], "truncated"),
        ("data_batch_2.bin", b"", "truncated"),
        ("test_batch.bin", b"\x0a" + good["test_batch.bin"][1:], "label 10 at position 0"),
        ("data_batch_5.bin", bytes(3073 * 10_001), "more than"),
    ):
        write(folder, {file: content})
        refused("cifar-10", tmp_path, str(folder / file), word)
        write(folder, {file: good[file]})
    (folder / "data_batch_4.bin").unlink()
    refused("cifar-10", tmp_path, "has no data_batch_4.bin")


def test_bad_cifar_100_labels(tmp_path):
    good = cifar_100_files()
    for coarse, fine in ((20, 0), (0, 100)):
        write(tmp_path, {**good, "train.bin": bytes([coarse, fine]) + good["train.bin"][2:]})
        refused("cifar-100", tmp_path, f"label {max(coarse, fine)} at position 0")


def test_bad_archives(tmp_path):
    files = {f"cifar-10-batches-bin/{name}": content for name, content in cifar_10_files().items()}
    path = tmp_path / "cifar-10-binary.tar.gz"
    good = tar(path, files).read_bytes()
    for content, word in (
        (b"", "lacks"),
        (b"not an archive", "corrupt"),
        (gzip.compress(b"not an archive"), "corrupt"),
        (good[: len(good) // 2], "truncated"),
        (good[:-5], "truncated"),
        (good[:20_000] + bytes([good[20_000] ^ 1]) + good[20_001:], "corrupt"),
    ):
        path.write_bytes(content)
        refused("cifar-10", tmp_path, str(path), word)
    tar(path, {"../../cifar-10-batches-bin/data_batch_1.bin": b"", **dict(list(files.items())[1:])})
    refused("cifar-10", tmp_path, "lacks cifar-10-batches-bin/data_batch_1.bin")
    tar(path, files, kind=tarfile.SYMTYPE)
    refused("cifar-10", tmp_path, "lacks cifar-10-batches-bin/data_batch_1.bin, ")
    tar(path, {**files, "cifar-10-batches-bin/test_batch.bin": bytes(3073 * 10_000 + 1)})
    refused("cifar-10", tmp_path, "test_batch.bin' claims 30,730,001 bytes")
    assert list(tmp_path.iterdir()) == [path]


def test_archives_full_of_zeros_are_given_up(tmp_path):
    path = tmp_path / "cifar-100-binary.tar.gz"
    files = {f"cifar-100-binary/{name}": content for name, content in cifar_100_files().items()}
    honest = tar(path, files).read_bytes()
    path.write_bytes(honest + gzip.compress(bytes(20_000_000)) * 10)
    refused("cifar-100", tmp_path, "more data than the dataset has")
    for claim in (2**30, 8**11 - 1):
        header = tarfile.TarInfo("cifar-100-binary/readme")
        header.size = claim
        path.write_bytes(gzip.compress(header.tobuf()) + honest)
        refused("cifar-100", tmp_path, f"readme' claims {claim:,} bytes")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_forms_of_tar(form, tmp_path):
    """With directories, other members, long names and the extended headers that Python writes for odd dates."""
    long = "cifar-100-binary/" + "/".join(["long" * 10] * 4)
    files = {f"cifar-100-binary/{name}": content for name, content in cifar_100_files().items()}
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz", format=form) as archive:
        folder = tarfile.TarInfo("cifar-100-binary")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in {long: b"text", **files, "cifar-100-binary/readme.html": b"text" * 300}.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1
            archive.addfile(member, io.BytesIO(content))
    assert data.load("cifar-100", tmp_path, download=False).train.labels.tolist() == [99, 98, 97, 96]


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_archives_never_leak_another_exception(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("damaged")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in cifar_100_files(2).items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size, info.pax_headers = len(content), {"comment": "x" * 600, "mtime": "1.5"}
            archive.addfile(info, io.BytesIO(content))
    content = bytearray(stream.getvalue())
    for position, value in damage:
        content[position % len(content) if position % 3 else position % 2048] = value
    (folder / "cifar-100-binary.tar.gz").write_bytes(content)
    with suppress(data.DataError):  # some damage is to a byte of an image, which no checksum covers here
        data.load("cifar-100", folder, download=False)


def test_python_version_of_cifar_is_named_and_never_read(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (tmp_path / "cifar-100-python.tar.gz").touch()
    for download in (False, True):
        refused("cifar-10", tmp_path, "cifar-10-batches-py is the Python version", "binary version", download=download)
        refused("cifar-100", tmp_path, "cifar-100-python.tar.gz is the Python version", download=download)


# ---------------------------------------------------------------------------------------------------------------------
# Downloads


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    """A folder served over HTTP, where all datasets are now downloaded from."""
    folder = tmp_path_factory.mktemp("server")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(readers, "_URLS", dict.fromkeys(readers._URLS, f"http://127.0.0.1:{http.server_port}/"))
        yield folder
        http.shutdown()
        thread.join()


def trust(monkeypatch, name: str, folder: Path):
    sums = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in readers._SHA256[name]}
    monkeypatch.setitem(readers._SHA256, name, sums)


def test_download_mnist_where_torchvision_looks(server, tmp_path, monkeypatch):
    write(server, mnist_files(), ".gz")
    trust(monkeypatch, "mnist", server)
    root = tmp_path / "new" / "folder"
    assert len(data.load("mnist", root).train) == 12
    assert sorted(file.name for file in (root / "MNIST" / "raw").iterdir()) == sorted(readers._SHA256["mnist"])
    for file in server.iterdir():
        file.unlink()
    assert len(data.load("mnist", root, download=False).train) == 12


def test_only_what_is_missing_is_downloaded(server, tmp_path, monkeypatch):
    files = mnist_files()
    write(server, files, ".gz")
    trust(monkeypatch, "fashion-mnist", server)
    del files[IDX[3]]
    write(tmp_path, files)
    data.load("fashion-mnist", tmp_path)
    assert [file.name for file in tmp_path.rglob("*.gz")] == [IDX[3] + ".gz"]


def test_download_cifar(server, tmp_path, monkeypatch, caplog, capfd):
    files = {f"cifar-10-batches-bin/{name}": content for name, content in cifar_10_files().items()}
    tar(server / "cifar-10-binary.tar.gz", files)
    trust(monkeypatch, "cifar-10", server)
    assert len(data.load("cifar-10", tmp_path).train) == 15
    assert [file.name for file in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert [r.getMessage().split(" (")[0][-22:] for r in caplog.records if r.name == "varangian.simulation.data"] == [
        "cifar-10-binary.tar.gz"
    ]
    assert "varangian" not in capfd.readouterr().out


def test_what_has_another_checksum_is_thrown_away(server, tmp_path):
    write(server, mnist_files(), ".gz")
    refused("mnist", tmp_path / "new", "SHA-256", IDX[0], download=True)
    assert not (tmp_path / "new").exists()


def test_failed_downloads(server, tmp_path, monkeypatch):
    refused("cifar-10", tmp_path / "new", "HTTP status 404", "found neither", download=True)
    monkeypatch.setattr(readers, "_URLS", dict.fromkeys(readers._URLS, "http://127.0.0.1:9/"))
    refused("cifar-10", tmp_path / "new", "ConnectionError", "http://127.0.0.1:9/", download=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    refused("cifar-10", tmp_path / "file", "could not", download=True)


def test_checksums_have_the_form_of_sha256():
    for sums in readers._SHA256.values():
        assert all(len(bytes.fromhex(digest)) == 32 for digest in sums.values())


# ---------------------------------------------------------------------------------------------------------------------
# Names, transforms, synthetic data


def test_unknown_names_suggest_a_close_one():
    with pytest.raises(ValueError, match=r"unknown dataset 'fashionmnist'.*'fashion-mnist'.*cifar-100"):
        data.load("fashionmnist")
    with pytest.raises(ValueError, match=r"unknown partition 'dirichet'.*'dirichlet'"):
        data.partition(np.arange(10), 2, "dirichet", 1)


def image_dataset(channels: int = 3, **options) -> data.Dataset:
    split = data.Split(torch.zeros(1, channels, 2, 4, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    return data.Dataset("test", split, split, 10, **options)


def test_prepare_against_the_formula():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    dataset = image_dataset(mean=mean, std=std)
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 3, 2, 4), dtype=np.uint8))
    untouched = images.clone()
    flip = torch.tensor([True, False, True, False, False])
    out = data.prepare(dataset, images, flip)
    assert out.dtype == torch.float32
    expected = np.empty(images.shape)
    for image in range(5):
        for channel in range(3):
            pixels = images[image, channel].numpy() / 255
            pixels = pixels[:, ::-1] if flip[image] else pixels
            expected[image, channel] = (pixels - mean[channel]) / std[channel]
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)
    assert torch.equal(images, untouched)
    torch.testing.assert_close(data.prepare(dataset, images)[1], out[1])


def test_prepare_without_normalisation_and_with_another_scale():
    images = torch.tensor([0, 4, 8, 16], dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert data.prepare(image_dataset(scale=16), images).flatten().tolist() == [0, 0.25, 0.5, 1]
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    assert data.prepare(image_dataset(), white).item() == 1
    normalised = data.prepare(image_dataset(1, mean=(0.1307,), std=(0.3081,)), white).item()
    assert normalised == pytest.approx((1 - 0.1307) / 0.3081, abs=1e-6)


def accuracy_of_least_squares(dataset: data.Dataset) -> float:
    x, test = (data.prepare(dataset, split.images).flatten(1) for split in (dataset.train, dataset.test))
    x, test = (torch.cat([part, torch.ones(len(part), 1)], dim=1).double() for part in (x, test))
    targets = torch.nn.functional.one_hot(dataset.train.labels, dataset.classes).double()
    weight = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ targets)
    return ((test @ weight).argmax(1) == dataset.test.labels).double().mean().item()


@pytest.mark.parametrize(
    ("shape", "classes", "at_least"), [((1, 8, 8), 10, 0.8), ((3, 12, 9), 20, 0.8), ((1, 5, 1), 2, 0.7)]
)
def test_synthetic_is_learnable(shape, classes, at_least):
    dataset = data.synthetic(shape, classes, train=1500, test=500, seed=3)
    assert accuracy_of_least_squares(dataset) > at_least
    assert dataset.shape == shape
    assert dataset.synthetic
    assert dataset.name.startswith("synthetic(")


def test_synthetic_depends_on_its_arguments_alone():
    one = data.synthetic((1, 600, 600), 3, train=7, test=4, seed=1)
    more = data.synthetic((1, 600, 600), 3, train=9, test=4, seed=1)
    other = data.synthetic((1, 600, 600), 3, train=7, test=4, seed=2)
    assert torch.equal(one.train.images, more.train.images[:7])
    assert torch.equal(one.test.images, more.test.images)
    assert not torch.equal(one.train.images, other.train.images)
    assert not torch.equal(one.train.images[:4], one.test.images)
    assert one.name != other.name
    assert sorted(set(one.train.labels.tolist())) == [0, 1, 2]


def test_synthetic_of_large_images_is_small():
    dataset = data.synthetic((3, 224, 224), 1000)
    assert 40 <= len(dataset.train) < 1000
    assert dataset.train.images.numel() < 2**27


def test_synthetic_prototypes_are_symmetric():
    dataset = data.synthetic((2, 7, 9), 2, train=4000, test=2, seed=1)
    mean = dataset.train.images[dataset.train.labels == 1].double().mean(0)
    assert (mean - mean.flip(-1)).abs().max() < 10  # noise has a deviation of 37 / sqrt(2000)
    assert mean.std() > 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (8, 8)}, "three positive integers"),
        ({"shape": (1, 8, 0)}, "three positive integers"),
        ({"shape": 5}, "three positive integers"),
        ({"classes": 0}, "classes must be"),
        ({"train": 0}, "train must be"),
        ({"test": -1}, "test must be"),
        ({"shape": (3, 10**6, 10**6)}, "GiB"),
        ({"train": 10**12}, "GiB"),
        ({"classes": 10**12}, "GiB"),
    ],
)
def test_synthetic_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        data.synthetic(**options)


# ---------------------------------------------------------------------------------------------------------------------
# Partitions

disjoint = st.one_of(
    st.floats(1e-6, 1e6).map(lambda alpha: data.Dirichlet(alpha=alpha)),
    st.floats(0, 1).map(lambda gamma: data.Similarity(gamma=gamma)),
    st.just(data.Extreme()),
    st.floats(1e-6, 1e6).map(lambda alpha: data.DirichletMixture(alpha=alpha)),
    st.floats(1e-6, 1e6).map(lambda alpha: data.Quantity(alpha=alpha)),
    st.just(data.Shards(per_worker=1)),
    st.just(data.LongTail(imbalance=1)),
)


@settings(max_examples=200, deadline=None)
@given(disjoint, st.integers(1, 30), st.integers(0, 60), st.integers(1, 12), st.integers(0, 2**31))
def test_disjoint_partitions(how, workers, more, classes, seed):
    labels = np.random.default_rng(seed).integers(0, classes, workers + more)
    parts = data.partition(labels, workers, how, seed)
    assert len(parts) == workers
    assert all(len(part) > 0 and (np.diff(part) > 0).all() and part.dtype == np.int64 for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    again = data.partition(labels, workers, how, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 999))
def test_shards_and_classes_hold_as_many_as_they_say_or_refuse(each, workers, counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    if len(labels) == 0:
        return
    if len(labels) < workers * each:
        with pytest.raises(ValueError, match="needs at least one example per shard"):
            data.partition(labels, workers, data.Shards(each), seed)
    else:
        parts = data.partition(labels, workers, data.Shards(each), seed)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
        assert np.ptp([len(part) for part in parts]) <= each
    present, least = sum(count > 0 for count in counts), min(count for count in counts if count)
    refused = len(labels) < workers or each > present or workers * each < present
    try:
        parts = data.partition(labels, workers, data.Classes(each), seed)
    except ValueError as error:
        refused |= "leaves worker" in str(error) and least < workers
        parts = []
    assert refused == (not parts)
    if not parts:
        return
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    table = np.array([np.bincount(labels[part], minlength=len(counts)) for part in parts])
    assert ((table > 0).sum(1) <= each).all()
    if least >= workers:
        assert ((table > 0).sum(1) == each).all()  # everybody has all that it is to hold
        assert np.ptp((table > 0).sum(0)[np.array(counts) > 0]) <= 1
    for column, count in zip(table.T, counts, strict=True):
        assert count == 0 or np.ptp(column[column > 0]) <= 1


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 1e9), st.one_of(st.none(), st.floats(0.05, 100)), st.integers(1, 9), st.integers(0, 999))
def test_long_tails_keep_what_the_formula_says(imbalance, alpha, workers, seed):
    counts = np.random.default_rng(seed).integers(1, 60, seed % 7 + 2)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    exact = [c * imbalance ** (-k / (len(counts) - 1)) for k, c in enumerate(counts.tolist())]
    assume(all(abs(x % 1 - 0.5) > 1e-9 for x in exact))  # a half goes up or down by the last bit of the power
    kept = [max(round(x), 1) for x in exact]
    if sum(kept) < workers:
        with pytest.raises(ValueError, match=f"{workers} workers, and keeps {sum(kept)} of {len(labels)} examples"):
            data.partition(labels, workers, data.LongTail(imbalance, alpha), seed)
        return
    together = np.concatenate(data.partition(labels, workers, data.LongTail(imbalance, alpha), seed))
    assert len(np.unique(together)) == len(together)
    assert np.bincount(labels[together]).tolist() == kept


LABEL_COLUMN = torch.arange(1000) % 10


def heterogeneity(how: data.Partition) -> float:
    """Mean, over the workers, of the share of the commonest class: 0.1 when even, 1 when each has one class."""
    parts = data.partition(LABEL_COLUMN, 10, how, seed=1)
    counts = [np.bincount(LABEL_COLUMN.numpy()[part], minlength=10) for part in parts]
    return float(np.mean([count.max() / count.sum() for count in counts]))


def test_iid_gives_everything_to_everybody():
    parts = data.partition(LABEL_COLUMN, 7, "iid", seed=1)
    assert len(parts) == 7
    assert all(np.array_equal(part, np.arange(1000)) for part in parts)


def test_heterogeneity_grows_as_it_should():
    dirichlet = [heterogeneity(data.Dirichlet(alpha=alpha)) for alpha in (1e4, 1.0, 0.05)]
    similarity = [heterogeneity(data.Similarity(gamma=gamma)) for gamma in (1.0, 0.5, 0.0)]
    assert dirichlet == sorted(dirichlet)
    assert similarity == sorted(similarity)
    assert dirichlet[0] < 0.15
    assert dirichlet[2] > 0.6
    assert similarity[0] < 0.25
    assert similarity[2] == 1
    assert similarity[1] == pytest.approx(0.5, abs=0.06)
    assert heterogeneity(data.Extreme()) == 1


def test_dirichlet_has_the_moments_of_its_formula():
    """The share of a class at one worker has mean 1/n and variance (1/n)(1 - 1/n) / (n alpha + 1)."""
    labels = np.repeat(np.arange(400), 200)
    parts = data.partition(labels, 4, data.Dirichlet(alpha=0.5), seed=1)
    shares = np.bincount(labels[parts[0]], minlength=400) / 200
    assert shares.mean() == pytest.approx(0.25, abs=0.05)
    assert shares.var() == pytest.approx(0.25 * 0.75 / 3, rel=0.25)


def test_the_two_conventions_of_dirichlet():
    """Over the workers amounts differ and each class has its own proportions; over the classes amounts are equal."""
    labels = np.repeat(np.arange(5), 4000)
    parts = data.partition(labels, 500, data.DirichletMixture(alpha=2.0), seed=1)
    assert {len(part) for part in parts} == {40}
    shares = np.array([np.bincount(labels[part], minlength=5) for part in parts[:250]]) / 40  # before any is used up
    # q ~ Dirichlet(0.4, ..., 0.4), then 40 draws: variance p(1-p) (1/3 + (1 - 1/3) / 40)
    assert shares.mean(0) == pytest.approx([0.2] * 5, abs=0.06)
    assert shares.var() == pytest.approx(0.16 * (1 / 3 + 2 / 3 / 40), rel=0.15)
    amounts = [len(part) for part in data.partition(labels, 50, data.Dirichlet(alpha=0.4), seed=1)]
    assert max(amounts) > 2 * min(amounts)


def test_amounts_have_the_moments_of_their_formula():
    """A share has mean 1/n and variance (1/n)(1 - 1/n) / (n alpha + 1)."""
    labels = np.zeros(100_000, np.int64)
    shares = [len(p) / 1e5 for seed in range(300) for p in data.partition(labels, 4, data.Quantity(0.5), seed)]
    assert np.var(shares) == pytest.approx(0.25 * 0.75 / 3, rel=0.1)


def test_quantities_take_labels_of_any_kind():
    for labels in (np.random.default_rng(1).normal(size=(50, 3)), np.arange(100).reshape(50, 2), np.arange(50) % 3):
        parts = data.partition(labels, 6, "quantity(alpha=0.3)", seed=1)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(50))
    for how in ("shards", "classes", "long-tail", "dirichlet-mixture", "dirichlet", "similarity", "extreme"):
        with pytest.raises(ValueError, match="have numbers to predict: use iid or quantity, or one of your own"):
            data.partition(np.ones(50), 6, how, seed=1)
        with pytest.raises(ValueError, match="have a class for each token: use iid or quantity, or one of your own"):
            data.partition(np.ones((50, 2), np.int64), 6, how, seed=1)


def test_one_worker_has_everything_and_one_class_is_shared():
    for how in data.PARTITIONS:
        if how not in ("classes", "long-tail"):
            [part] = data.partition(LABEL_COLUMN, 1, how, seed=1)
            assert np.array_equal(part, np.arange(1000))
        one = "classes(per_worker=1)" if how == "classes" else how
        for workers in (1, 7, 11):
            parts = data.partition(np.zeros(40, np.int64), workers, one, seed=1)
            assert min(map(len, parts)) >= 1
            if how != "iid":
                assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(40))


def test_shards_of_one_are_blocks_dealt_at_random():
    """So each worker of `Shards(1)` sees what some worker of `Extreme` sees."""
    labels = np.arange(120) % 5
    kinds = [
        sorted(np.bincount(labels[p], minlength=5).tolist() for p in data.partition(labels, 7, how, seed=3))
        for how in (data.Shards(1), data.Extreme())
    ]
    assert sorted(map(sum, kinds[0])) == sorted(map(sum, kinds[1]))
    assert kinds[0] == kinds[1]


def test_each_worker_samples_from_its_own_part_whatever_its_size() -> None:
    """Unequal amounts are real: a worker with one example sends its gradient, one with many draws from all of them."""
    inputs = torch.arange(60.0)[:, None]
    split = data.Split(inputs, torch.arange(60) % 3)
    sampler = Sampler(data.Dataset("mine", split, split, 3), 4, 50, seed=1, deal=Pieces())
    drawn = torch.cat([sampler(step).inputs for step in range(20)], 1)[:, :, 0].long()
    assert [sorted(set(row.tolist())) for row in drawn] == [[59], [0, 1], list(range(2, 7)), list(range(7, 59))]


@dataclass(frozen=True)
class Pieces:
    """Parts of one, two, five and all other examples."""

    def __call__(self, labels: np.ndarray, classes: int, workers: int, seed: int) -> list[np.ndarray]:
        return [np.array([59]), np.arange(2), np.arange(2, 7), np.arange(7, 59)]


def test_seeds_matter():
    for how in ("dirichlet", "similarity", "dirichlet-mixture", "shards", "classes", "long-tail", "quantity"):
        one, two = (data.partition(LABEL_COLUMN, 5, how, seed) for seed in (1, 2))
        assert not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("kind", [data.Dirichlet, data.DirichletMixture, data.Quantity])
def test_dirichlet_at_its_limits(alpha, kind):
    parts = data.partition(LABEL_COLUMN, 20, kind(alpha=alpha), seed=1)
    assert sum(map(len, parts)) == 1000
    assert min(map(len, parts)) >= 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.Dirichlet(alpha=0), "alpha > 0, got 0"),
        (lambda: data.Dirichlet(alpha=float("nan")), "alpha > 0, got nan"),
        (lambda: data.Dirichlet(alpha=float("inf")), "alpha > 0, got inf"),
        (lambda: data.Similarity(gamma=1.1), "gamma from 0 to 1, got 1.1"),
        (lambda: data.DirichletMixture(alpha=0), "DirichletMixture needs a finite alpha > 0, got 0"),
        (lambda: data.Quantity(alpha=-1), "Quantity needs a finite alpha > 0, got -1"),
        (lambda: data.LongTail(imbalance=0.5), "LongTail needs a finite imbalance >= 1, got 0.5"),
        (lambda: data.LongTail(alpha=0), "LongTail needs a finite alpha > 0 or None, got 0"),
        (lambda: data.Shards(per_worker=0), "Shards needs per_worker >= 1, got 0"),
        (lambda: data.Classes(per_worker=1.5), "Classes needs per_worker >= 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: data.partition(np.arange(9), 5, "shards", 1), "5 workers have 10 shards, got 9 examples"),
        (lambda: data.partition(np.arange(9), 4, "classes", 1), "4 hold 8 of 9, and the examples of the others would"),
        (lambda: data.partition(np.zeros(9, int), 4, "classes", 1), "as many classes as each worker .*, got 1"),
        (lambda: data.partition([0, 0, 0, 0, 0, 1], 4, data.Classes(1), 1), "leaves worker . with nothing"),  # type: ignore[arg-type]
        (lambda: data.partition(np.arange(3), 4, "dirichlet-mixture", 1), "4 workers, got 3 examples"),
        (lambda: data.partition(np.arange(3), 4, "quantity", 1), "4 workers, got 3 examples"),
        (lambda: data.partition(np.arange(3), 4, "classes", 1), "4 workers, got 3 examples"),
        (lambda: data.partition(np.arange(3), 4, "extreme", 1), "4 workers, got 3 examples"),
        (lambda: data.partition(np.arange(3), 0, "iid", 1), "at least one worker"),
        (lambda: data.partition(np.arange(0), 2, "iid", 1), "at least one worker and one example"),
    ],
)
def test_partitions_refuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# ------------------------------------------------------------------------------------------- data of one's own

IMAGES, LABELS = torch.zeros(4, 2, 3, 3, dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
NO_INPUTS = (
    "Split needs inputs [N, ...] of pixels (uint8, 3 dimensions or more), floats or tokens (int64) in main memory, "
)
NO_INPUTS += "not empty, got "
NO_LABELS = (
    "Split needs labels int64 [N] (classes) or [N, T] (of tokens), or floats [N] or [N, k] in main memory, not empty"
)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (IMAGES, LABELS[:3], "Split needs a label for each input, got 4 inputs and 3 labels."),
        (IMAGES, torch.cat([LABELS, LABELS]), "Split needs a label for each input, got 4 inputs and 8 labels."),
        (IMAGES, LABELS.int(), f"{NO_LABELS}, got int32 [4]."),
        (IMAGES, LABELS.half(), f"{NO_LABELS}, got float16 [4]."),
        (IMAGES, LABELS[:, None, None].double(), f"{NO_LABELS}, got float64 [4, 1, 1]."),
        (IMAGES, LABELS / 0, "Split needs finite labels, got some with NaN or infinity."),
        (IMAGES, [0, 1, 2, 1], f"{NO_LABELS}, got a list."),
        (IMAGES[:, 0, 0], LABELS, f"{NO_INPUTS}uint8 [4, 3]."),
        (IMAGES[:, 0, 0, 0].float(), LABELS, f"{NO_INPUTS}float32 [4]."),
        (IMAGES[:0], LABELS[:0], f"{NO_INPUTS}uint8 [0, 2, 3, 3]."),
        (IMAGES.int(), LABELS, f"{NO_INPUTS}int32 [4, 2, 3, 3]."),
        (IMAGES.numpy(), LABELS, f"{NO_INPUTS}a ndarray"),
        (IMAGES.to("meta"), LABELS, f"{NO_INPUTS}uint8 [4, 2, 3, 3] on meta"),
        (IMAGES.float().requires_grad_(), LABELS, f"{NO_INPUTS}float32 [4, 2, 3, 3] that requires grad"),
        (IMAGES.float() * math.nan, LABELS, "Split needs finite inputs, got some with NaN or infinity."),
    ],
)
def test_splits_that_are_none(inputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        data.Split(inputs, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": 2}, "Dataset 'mine' needs labels from 0 to 1, got 0 to 2 in train."),
        ({"classes": 0}, "Dataset 'mine' needs classes >= 1, got 0."),
        ({"classes": 3.0}, "Dataset 'mine' needs classes >= 1, got 3.0."),
        ({"train": data.Split(IMAGES, LABELS - 1)}, "Dataset 'mine' needs labels from 0 to 2, got -1 to 1 in train."),
        ({"test": data.Split(IMAGES, LABELS + 1)}, "Dataset 'mine' needs labels from 0 to 2, got 1 to 3 in test."),
        ({"test": data.Split(IMAGES[:, :1], LABELS)},
         "Dataset 'mine' needs inputs of one shape, got [2, 3, 3] in train and [1, 3, 3] in test."),
        ({"train": (IMAGES, LABELS)}, "Dataset 'mine' needs train to be a Split, got a tuple."),
        ({"mean": (0.5,), "std": (1.0,)}, "Dataset 'mine' needs mean to be a finite number for each of 2 channels"),
        ({"mean": (0.5, math.nan), "std": (1.0, 1.0)}, "Dataset 'mine' needs mean to be a finite number for each of 2"),
        ({"mean": (0.5, 0.5), "std": (1.0, 0.0)}, "Dataset 'mine' needs std to be a finite number > 0 for each of 2"),
        ({"mean": (0.5, 0.5)}, "Dataset 'mine' needs both mean and std, or neither, got one."),
        ({"scale": 0}, "Dataset 'mine' needs a finite scale > 0, got 0."),
        ({"scale": math.inf}, "Dataset 'mine' needs a finite scale > 0, got inf."),
        ({"test": data.Split(IMAGES.float(), LABELS)},
         "Dataset 'mine' needs inputs of one type, got uint8 in train and float32 in test."),
        ({"test": data.Split(IMAGES, LABELS.float())},
         "Dataset 'mine' needs labels of one type, got int64 in train and float32 in test."),
        (dict.fromkeys(("train", "test"), data.Split(IMAGES, LABELS.float())),
         "Dataset 'mine' needs classes to be how many numbers are to be predicted, got 3 of 1."),
        (dict.fromkeys(("train", "test"), data.Split(IMAGES[:, 0], LABELS)) | {"flip": True},
         "Dataset 'mine' needs images [N, C, H, W] for mean, std and flip, got uint8 [N, 3, 3]."),
        (dict.fromkeys(("train", "test"), data.Split(IMAGES.long(), LABELS)) | {"flip": True},
         "Dataset 'mine' needs images [N, C, H, W] for mean, std and flip, got int64 [N, 2, 3, 3]."),
        (dict.fromkeys(("train", "test"), data.Split(IMAGES.long(), LABELS)) | {"scale": 255},
         "Dataset 'mine' needs no scale: its inputs are tokens, got 255."),
        (dict.fromkeys(("train", "test"), data.Split(IMAGES, torch.full((4, 3), -100))),
         "Dataset 'mine' needs tokens that count in train, got labels -100 only."),
        ({"flip": "yes"}, "Dataset 'mine' needs flip to be True or False, got 'yes'."),
        ({"name": 7}, "Dataset 7 needs a name that is text, got 7."),
    ],
)  # fmt: skip
def test_datasets_that_are_none(changed: dict[str, Any], message: str) -> None:
    split = data.Split(IMAGES, LABELS)
    settings: dict[str, Any] = {"name": "mine", "train": split, "test": split, "classes": 3} | changed
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        data.Dataset(**settings)
    assert "\n" not in str(error.value)


def test_partition_takes_what_experiments_take() -> None:
    labels = np.arange(60) % 5
    for text, deal in (("dirichlet(alpha=0.1)", data.Dirichlet(0.1)), ("similarity(gamma=1)", data.Similarity(1.0))):
        for one, other in zip(
            data.partition(labels, 4, text, seed=2), data.partition(labels, 4, deal, seed=2), strict=True
        ):
            assert (one == other).all()
    with pytest.raises(ValueError, match="Dirichlet needs a finite alpha > 0, got 0"):
        data.partition(labels, 4, "dirichlet(alpha=0)", seed=1)


@pytest.mark.parametrize(
    "parts",
    [
        lambda n, w: [np.array([n])] * w,  # beyond the data
        lambda n, w: [np.array([-1])] * w,
        lambda n, w: [np.arange(n)] * (w - 1),
        lambda n, w: [np.array([], np.int64)] * w,
        lambda n, w: [np.arange(n) / 1.0] * w,
        lambda n, w: [[0, 1]] * w,
        lambda n, w: np.arange(n),
        lambda n, w: None,
    ],
)
def test_what_somebodys_own_partition_answers_is_looked_at(parts: Any) -> None:
    """Indices beyond the data would be read somewhere in memory."""

    def deal(labels: np.ndarray, classes: int, workers: int, seed: int) -> Any:
        return parts(len(labels), workers)

    with pytest.raises(ValueError, match="must answer a"):
        data.partition(LABELS, 3, deal, seed=1)
    with pytest.raises(ValueError, match="how must be a partition"):
        data.partition(LABELS, 3, None, seed=1)  # type: ignore[arg-type]
