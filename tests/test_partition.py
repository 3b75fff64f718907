"""Which elements the blocks and threads of a CUDA launch touch: each element once, no vector misaligned."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest
import torch
from compiled import HOST, compiler, folder, run
from torch import Tensor

SIZES = (0, 1, 3, 4, 7, 8, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 65535, 65536, 65537)
LISTS = {2: (8, 8), 4: (4, 4, 4), 8: (2, 4, 4)}  # bytes an element in each list, by the length of a vector


@pytest.fixture(scope="module")
def partition(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The partition as a library."""
    command = [compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", str(HOST / "partition.cpp")]
    library = folder(pytestconfig, tmp_path_factory, command) / "partition.so"
    if not library.exists():
        run([*command, "-o", str(library)])
    return ctypes.CDLL(str(library))


def at(numbers: Tensor) -> ctypes.c_void_p:
    """Where numbers lie, for C++."""
    return ctypes.c_void_p(numbers.data_ptr())


def check(partition: ctypes.CDLL, length: int, sizes: Sequence[int], offsets: Tensor) -> None:
    """Each element is visited once; `offsets` are in elements, a row a list."""
    numel, visits = torch.tensor(sizes), torch.zeros(sum(sizes), dtype=torch.uint8)
    itemsize = torch.tensor(LISTS[length], dtype=torch.int32)
    addresses = (1 << 20) + offsets * itemsize[:, None]
    misaligned = partition.walk(length, len(sizes), at(numel), len(itemsize), at(addresses), at(itemsize), at(visits))
    assert misaligned == 0
    assert (visits == 1).all()


@pytest.mark.parametrize("length", LISTS)
def test_every_element_once_in_every_size_and_misalignment(length: int, partition: ctypes.CDLL) -> None:
    for offset in range(8):
        for misaligned in range(len(LISTS[length])):
            offsets = torch.zeros((len(LISTS[length]), len(SIZES)), dtype=torch.int64)
            offsets[misaligned] = offset
            check(partition, length, SIZES, offsets)
    for size in SIZES:
        check(partition, length, [size], torch.zeros((len(LISTS[length]), 1), dtype=torch.int64))


@pytest.mark.parametrize("length", LISTS)
def test_every_element_once_in_mixed_lists(length: int, partition: ctypes.CDLL) -> None:
    choices = torch.tensor([0, 0, 1, 5, 31, 4095, 4096, 4097, 9001])
    for tensors in torch.randint(1, 400, (40,)).tolist():
        sizes = choices[torch.randint(len(choices), (tensors,))].tolist()
        check(partition, length, sizes, torch.randint(8, (len(LISTS[length]), tensors)))
    check(partition, length, [3] * 2000, torch.randint(8, (len(LISTS[length]), 2000)))


def test_tensors_of_more_than_2_to_the_31_elements(partition: ctypes.CDLL) -> None:
    huge, found = (1 << 33) + 5, torch.zeros(3, dtype=torch.int64)
    numel = torch.tensor([7, huge, 0, 9])
    chunks = -(-huge // 4096)
    expected = {
        0: [0, 0, 7],
        1: [1, 0, 4096],
        chunks - 1: [1, (chunks - 2) * 4096, 4096],
        chunks: [1, (chunks - 1) * 4096, 5],
        chunks + 1: [3, 0, 9],
    }
    for chunk, wanted in expected.items():
        partition.find(4, at(numel), ctypes.c_int64(chunk), at(found))
        assert found.tolist() == wanted


def test_a_norm_has_room_for_its_partial_sums(partition: ctypes.CDLL) -> None:
    partition.blocks.restype = ctypes.c_int64
    for chunks in (1, 8191, 8192, 8193, 16384, 16385, 100_000, 1 << 30):
        assert 0 < partition.blocks(ctypes.c_int64(chunks)) <= 8192
    assert partition.blocks(ctypes.c_int64(8192)) == 8192
