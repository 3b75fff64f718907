"""CIFAR-10 and CIFAR-100 as published: pickles unpacked in a folder, or either archive as it is.

The MD5 sums are those that the data's authors and the common loaders give: of the pickles' members one by one, of the
binary version's archive as a whole. So the binary version is read from its archive.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharpkern.usage import UsageError

PIXELS = 3 * 32 * 32


class DataError(UsageError):
    """The files of a data set are missing or are not the published ones."""


@dataclass(frozen=True)
class Published:
    """The files of a data set.

    Attributes:
        folder: Of the pickles in their archive.
        train: Pickles of the training part and their MD5 sums, in order.
        test: The same of the test part.
        label: Key of the labels in a pickle.
        archive: Name of the archive of pickles.
        binary: Name of the archive of the binary version.
        binary_md5: Of that archive.
        binary_train: Its members with training images, in order.
        binary_test: The same of the test part.
        label_bytes: Bytes before the pixels of a binary record; the last of them is the label.
    """

    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    label: str
    archive: str
    binary: str
    binary_md5: str
    binary_train: tuple[str, ...]
    binary_test: tuple[str, ...]
    label_bytes: int


PUBLISHED: Mapping[str, Published] = {
    "cifar10": Published(
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
        "labels",
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6)),
        ("cifar-10-batches-bin/test_batch.bin",),
        label_bytes=1,
    ),
    "cifar100": Published(
        "cifar-100-python",
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        "fine_labels",
        "cifar-100-python.tar.gz",
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ("cifar-100-binary/train.bin",),
        ("cifar-100-binary/test.bin",),
        label_bytes=2,
    ),
}


def load(name: str, folder: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reads what is there: the folder of pickles, the archive of pickles, or the archive of the binary version.

    Args:
        name: "cifar10" or "cifar100".
        folder: That holds one of them; it may be the folder of pickles itself.

    Returns:
        Training images (n, 3, 32, 32) in uint8, their labels (n,) in int64, test images, their labels.

    Raises:
        DataError: Says what was looked for and where, or which file's checksum is wrong.
    """
    files = PUBLISHED[name]
    if folder is None:
        raise DataError(f"{name} needs --data-dir FOLDER, a folder with {_wanted(files)}")
    for pickles in (folder / files.folder, folder):
        if all((pickles / member).is_file() for member in (*files.train, *files.test)):
            contents = [
                [_read(pickles / member, md5) for member, md5 in part.items()] for part in (files.train, files.test)
            ]
            return _join([[_unpickle(content, files.label) for content in part] for part in contents])
    if (folder / files.archive).is_file():
        return _from_archive(folder / files.archive, files)
    if (folder / files.binary).is_file():
        return _from_binary(folder / files.binary, files)
    raise DataError(f"{name}: nothing to read in {folder}: put there {_wanted(files)}")


def _wanted(files: Published) -> str:
    members = ", ".join((*files.train, *files.test))
    return f"the folder {files.folder} (with {members}), or {files.archive}, or {files.binary}, as published"


def _read(path: Path, md5: str) -> bytes:
    content = path.read_bytes()
    _check(content, md5, path)
    return content


def _check(content: bytes, md5: str, what: object) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"{what}: its MD5 sum is {found}, that of the published file {md5}: "
            "it was not copied whole, or is another file; put the published one there"
        )


def _unpickle(content: bytes, label: str) -> tuple[Any, Any]:
    raw = pickle.loads(content, encoding="latin1")  # checked above: only the published files come here
    return raw["data"], raw[label]


def _from_archive(path: Path, files: Published) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = []
    try:
        with tarfile.open(path) as archive:
            for part in (files.train, files.test):
                read = []
                for member, md5 in part.items():
                    content = _member(archive, f"{files.folder}/{member}", path)
                    _check(content, md5, f"{path}, {member}")
                    read.append(_unpickle(content, files.label))
                parts.append(read)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole archive ({error}); put the published one there") from error
    return _join(parts)


def _from_binary(path: Path, files: Published) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    content = _read(path, files.binary_md5)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        parts = [[_member(archive, name, path) for name in part] for part in (files.binary_train, files.binary_test)]
    return _join([[_records(part, files.label_bytes) for part in members] for members in parts])


def _member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise DataError(f"{path}: has no file {name}; put the published archive there")
    return file.read()


def _records(content: bytes, label_bytes: int) -> tuple[Any, Any]:
    import numpy as np

    rows = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + PIXELS)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


def _join(parts: Sequence[Sequence[tuple[Any, Any]]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import numpy as np

    joined = []
    for part in parts:
        pixels = np.concatenate([np.asarray(data, np.uint8) for data, _ in part])
        labels = np.concatenate([np.asarray(label, np.int64) for _, label in part])
        joined += [torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels)]
    return joined[0], joined[1], joined[2], joined[3]
