"""The only place from which kernels are launched, and the tables of addresses that they read.

A list of tensors has one table, made once, and a few tables of gradients, so that buffers that come back cost nothing.
All are written by a kernel that takes the words as arguments. While a graph is captured they are made and written anew
within it for every pass: the graph owns them then, and nothing outside it can free or change them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sharpkern.backend.triton import kernels
from sharpkern.tensors import GROUP, Tensors

CHUNK = 2048  # elements, 8 a thread
WORDS = 64  # that one launch writes
PARTIALS = 8192  # most programs of a norm, each with a share of the chunks
KEPT = 4  # tables of gradients a list


def run(kernel: Any, where: tuple[torch.device, int, int], *args: Any, **constants: Any) -> None:
    """Launches a kernel on the current stream of a device.

    Args:
        kernel: Of `kernels.py`.
        where: The device, the number of programs, and the warps of each.
        *args: What the kernel takes.
        **constants: For which it is compiled.
    """
    device, programs, warps = where
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        kernel[programs,](*args, **constants, **options(warps))


def options(warps: int) -> dict[str, Any]:
    """How a kernel is compiled: fused is what the formulas fuse."""
    # left to itself ptxas spills rather than give 512 threads more than 40 registers
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": 64 if warps > 8 else None}


def arguments(words: Sequence[int]) -> tuple[int, ...]:
    """Up to WORDS words as `kernels.write` takes them."""
    return tuple(2 * word + kernels.BIAS.value for word in words) + (kernels.BIAS.value,) * (WORDS - len(words))


def _write(table: Tensor, words: Sequence[int]) -> None:
    for first in range(0, len(words), WORDS):
        part = words[first : first + WORDS]
        run(kernels.write, (table.device, 1, 1), table, first, len(part), arguments(part))


def _addresses(tensors: Sequence[Tensor | None], count: int) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in tensors] or [0] * count


class Table:
    """The tables of one list of tensors.

    Args:
        t: The list.
        captured: Whether they are part of a graph.

    Attributes:
        words: The table as the kernels read it.
        count: Number of tensors.
        chunk: Elements in a chunk.
        chunks: Number of chunks of all tensors, at least 1.
        keeps_first: Whether gradients of the first pass are kept.
        cut: Whether random numbers are drawn for a tensor that is a shard and does not start a group of them.
        partials: Room for the sums of a norm's programs.
    """

    def __init__(self, t: Tensors, captured: bool) -> None:
        self._made_for = captured, t.revision
        self.count, self.chunk = len(t.weights), CHUNK
        numel = [w.numel() for w in t.weights]
        chunks = [-(-n // CHUNK) for n in numel]
        first = [0]
        for n in chunks:
            first.append(first[-1] + n)
        self.chunks = max(first[-1], 1)
        rows = {
            "weight": _addresses(t.weights, self.count),
            "saved": _addresses(t.saved, self.count),
            "source": _addresses(t.source, self.count),
            "fisher": _addresses(t.fisher, self.count),
            "m": _addresses(t.m, self.count),
            "v": _addresses(t.v, self.count),
            "first": _addresses(t.first, self.count),
            "numel": numel,
            "start": t.start or [0] * self.count,
            "run": [run for run, _ in t.rows] or [0] * self.count,
            "pitch": [pitch for _, pitch in t.rows] or [0] * self.count,
            "chunk": first[:-1],
        }
        self.keeps_first = any(rows["first"])
        self.cut = any(rows["run"]) or any(start % GROUP for start in rows["start"])
        head = [0, t.seed & 0xFFFFFFFF, t.seed >> 32 & 0xFFFFFFFF]
        words = head + [word for row in kernels.ROWS for word in rows[row]]
        self.words = torch.empty(len(words) + self.chunks, dtype=torch.int64, device=t.device)
        _write(self.words, words)
        starts, of_chunk = self.words[len(words) - self.count : len(words)], self.words[len(words) :]
        torch.searchsorted(starts, torch.arange(self.chunks, device=t.device), right=True, out=of_chunk).sub_(1)
        self.partials = torch.empty(min(self.chunks, PARTIALS), dtype=torch.float64, device=t.device)
        self._gradients: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._current: tuple[int, Tensor] | None = None

    def serves(self, captured: bool, revision: int) -> bool:
        """Whether the tables may be used: a graph wants its own for every pass."""
        return (not captured and not self._made_for[0]) or (captured, revision) == self._made_for

    def gradients(self, t: Tensors) -> Tensor:
        """The addresses of the gradients as they stand."""
        if self._current is None or self._current[0] != t.revision:
            key = tuple(t.gradient_addresses)
            table = self._gradients.get(key)
            if table is None:
                full = len(self._gradients) == KEPT
                table = self._gradients.popitem(last=False)[1] if full else torch.empty_like(self.words[: self.count])
                _write(table, key)
                self._gradients[key] = table
            else:
                self._gradients.move_to_end(key)
            self._current = (t.revision, table)
        return self._current[1]


def table_of(t: Tensors) -> Table:
    """The tables of a list: those that it has, or new ones."""
    captured = t.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if t.handle is None or not t.handle.serves(captured, t.revision):
        t.handle = Table(t, captured)
    found: Table = t.handle
    return found
