"""What is measured, block by block: single ops, whole steps, memory, the import. A block is a list of rows."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharpkern import ops
from sharpkern.bench import fresh, operations
from sharpkern.bench.candidates import GROUPS, OURS, Candidate, Pool
from sharpkern.bench.measure import Step, calls_a_turn, clock_of, columns, in_turns, ratio, spread
from sharpkern.bench.shapes import find
from sharpkern.bench.traffic import Sizes

Row = dict[str, Any]
Tell = Callable[[str], None]
BEYOND = 64 << 20  # bytes of float32 weights from which nothing stays in a cache until the next step
FEWEST, MOST = 7, 101  # turns
COMPILED = ("resnet20", "wrn28_10", "resnet50", "vit_b", "bert_base", "gpt2")
SHARE = 0.9  # of the free memory that is used at most
GIB, SAME = "copy, 1 GiB", "copy, same size"


@dataclass(frozen=True)
class Bench:
    """How to measure.

    Attributes:
        device: "cpu" or "cuda".
        threads: Of torch.
        dtypes: Of weights and gradients.
        repeats: Turns; 0 takes as many as `seconds` allow.
        seconds: What a group may take.
        full: Whether candidates that take long to prepare are measured too.
        tell: Called with a line on everything that is left out.
        first: Whether no other number of threads was measured in this process before.
    """

    device: str
    threads: int
    dtypes: tuple[torch.dtype, ...]
    repeats: int
    seconds: float
    full: bool
    tell: Tell
    first: bool = True

    def ops(self, shapes: str) -> Iterator[list[Row]]:
        """Every op, a block a dtype."""
        wanted, backend = find(shapes), ops.load(ops.choose("auto", torch.device(self.device))[0])
        count = sum(map(torch.Size.numel, map(torch.Size, wanted)))
        for dtype in self.dtypes:
            each = Sizes.of(dtype)
            held = 2 * each.weight + each.gradient + 3 * each.state
            if not self._fits(f"ops on {shapes}", count * held + 8 * self._copied(count)):
                continue
            t = operations.lists(wanted, dtype, self.device)
            moved = {name: size * count for name, size in operations.sizes(dtype).items()}
            common = {"table": "ops", "group": "ops", "shapes": shapes, "elements": count, "tensors": len(wanted)}
            rows = self._time(operations.calls(backend, t), moved, count, {**common, "dtype": _name(dtype)}, True)
            yield [row for row in rows if not row["against"] or row["candidate"] == "ascend noise"]

    def steps(self, shapes: str, groups: Sequence[str] = tuple(GROUPS)) -> Iterator[list[Row]]:
        """Whole steps, a block a group of candidates; those that take long to prepare for networks only."""
        measured = {c.dtype for c in itertools.chain.from_iterable(GROUPS.values())}
        for dtype in self.dtypes:
            if dtype not in measured:
                names = " and ".join(sorted(map(_name, measured), reverse=True))
                self.tell(f"whole steps of {_name(dtype)}: left out, they are measured in {names} only")
        for group in groups:
            pool = Pool(find(shapes), self.device)
            usable = [c for c in GROUPS[group] if self._takes(c) and not (c.slow and shapes not in COMPILED)]
            common = {"table": "steps", "group": group, "shapes": shapes, "elements": pool.elements}
            for batch in self._batches(usable, pool.elements):
                what = f"{', '.join(c.name for c in batch)} on {shapes}"
                if not self._fits(what, self._wanted(batch, pool.elements)):
                    continue
                steps = {c.name: c.make(pool) for c in batch}
                moved = {c.name: c.bytes * pool.elements for c in batch if c.bytes}
                yield self._time(steps, moved, pool.elements, {**common, "tensors": len(pool.shapes)}, False)
                del steps
                torch.compiler.reset()  # compiled steps hold their tensors
                gc.collect()

    def _batches(self, usable: Sequence[Candidate], elements: int) -> Iterator[list[Candidate]]:
        """All side by side, or where memory does not hold them ours with as many of the others at a time as it does."""
        ours = [c for c in usable if c.who == OURS]
        batch = list(ours)
        for c in usable:
            if c in ours:
                continue
            if len(batch) > len(ours) and self._wanted((*batch, c), elements) > SHARE * available(self.device):
                yield batch
                batch = list(ours)
            batch.append(c)
        yield batch

    def memory(self, shapes: str) -> Iterator[list[Row]]:
        """Peak extra memory of a step, a process each; no block where none fits."""
        rows: list[Row] = []
        elements, tensors = Pool(find(shapes)).elements, len(find(shapes))
        for c in GROUPS["sgd"]:
            if c.slow or not self._takes(c) or not self._fits(f"memory of {c.name}", 40 * elements):
                continue
            extra = fresh.extra_bytes(c.name, shapes, self.device, self.threads)
            row = {"table": "memory", "group": "sgd", "shapes": shapes, "elements": elements, "tensors": tensors}
            rows.append({**self._row(c.name), **row, "dtype": _name(c.dtype), "unit": "B/param", "p50": extra})
        if rows:
            yield rows

    def imports(self) -> list[Row]:
        """The import of sharpkern beyond torch's."""
        seconds = fresh.import_seconds(self.repeats or FEWEST)
        row = {"table": "import", "group": "import", "unit": "us", **columns([1e6 * s for s in seconds])}
        return [{**self._row("import sharpkern"), **row}]

    def _row(self, candidate: str, against: str = "") -> Row:
        fields = dict.fromkeys(("table", "group", "shapes", "dtype"), "")
        return {**fields, "threads": self.threads, "candidate": candidate, "against": against}

    def _takes(self, candidate: Candidate) -> bool:
        if candidate.slow and not self.full:
            return False
        reason = candidate.why_not(self.device)
        if candidate.jax and not self.first:
            reason = (
                reason or f"JAX keeps the threads of the first count in a process; run --threads {self.threads} alone"
            )
        if reason:
            self.tell(f"{candidate.name}: left out, {reason}")
        return not reason and candidate.dtype in (torch.float32, *self.dtypes)

    def _copied(self, elements: int) -> int:
        """Elements of the copy that is measured with so many."""
        large = 4 * elements >= BEYOND or self.device == "cuda"
        return operations.COPY_ELEMENTS if large else elements

    def _wanted(self, batch: Iterable[Candidate], elements: int) -> int:
        """Bytes that a batch takes, the copy included."""
        return elements * sum(c.held + c.extra for c in batch) + 8 * self._copied(elements)

    def _fits(self, what: str, wanted: int) -> bool:
        free = available(self.device)
        if wanted > SHARE * free:
            self.tell(f"{what}: left out, wants {wanted / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free")
        return wanted <= SHARE * free

    def _time(
        self, steps: Mapping[str, Step], moved: Mapping[str, int], elements: int, common: Row, plugged: bool
    ) -> list[Row]:
        """Rows of all candidates and of the ratios of ours to every other, with a copy measured among them."""
        copied = self._copied(elements)
        name = GIB if copied == operations.COPY_ELEMENTS else SAME
        steps, moved = {**steps, name: operations.copy(copied, self.device)}, {**moved, name: 8 * copied}
        clock = clock_of(self.device, plugged)
        calls, turn = calls_a_turn(steps, clock)
        repeats = self.repeats or min(max(FEWEST, round(self.seconds / turn)), MOST)
        seconds = in_turns(steps, repeats, calls, clock)
        rows = []
        for candidate, times in seconds.items():
            row = {**self._row(candidate), "dtype": _dtype(candidate), **common, "unit": "us"}
            row |= columns([1e6 * t for t in times])
            if candidate in moved:
                size = moved[candidate]
                share = [size / t / (8 * copied / c) for t, c in zip(times, seconds[name], strict=True)]
                row |= {"bytes": size, "gb_s": size / row["p50"] / 1e3, "share_of_copy": spread(share)[1]}
            rows.append(row)
        for above, below in _pairs(list(steps), common["table"]):
            row = {**self._row(above, below), "dtype": _dtype(above), **common, "unit": "ratio"}
            rows.append({**row, **ratio(seconds[above], seconds[below])})
        return rows


def _pairs(names: Sequence[str], table: str) -> list[tuple[str, str]]:
    """Whose ratios are taken: ours to all others; of single ops, noise to the worst case."""
    if table == "ops":
        return [("ascend noise", "ascend identity")]
    copies = (GIB, SAME)
    return [(a, b) for a in names if a.startswith(OURS) for b in names if b not in copies and a != b]


def _dtype(candidate: str) -> str:
    return "bfloat16" if "bfloat16" in candidate else "float32"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def available(device: str) -> int:
    """Bytes of memory that are free on a device."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
