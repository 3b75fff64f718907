"""Kernels against a copy on the same GPU, whole steps against eager and compiled PyTorch, host time, memory.

Gradients are ready, no forward or backward pass is run. All candidates of a table live in one process and are measured
in turns; ratios are taken turn by turn and their median is reported. Every run appends its rows to `<out>/gpu.csv`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sharpkern
from sharpkern import ops
from sharpkern.base import SGD, Adam, Update
from sharpkern.bench import traffic
from sharpkern.bench.candidates import base_update
from sharpkern.bench.measure import (
    Clock,
    HostClock,
    Step,
    clock_of,
    columns,
    in_turns,
    parameters,
    ratio,
    spread,
    two_passes,
)
from sharpkern.bench.provenance import gpu, versions
from sharpkern.bench.results import append
from sharpkern.bench.rivals import BASES, RHO, Compiled, Foreach, Usual, plain
from sharpkern.bench.shapes import SHAPES, Shape
from sharpkern.bench.traffic import Sizes
from sharpkern.covariance import Identity
from sharpkern.tensors import Tensors

Row = dict[str, Any]
FIELDS = ("table", "candidate", "dtype", "shapes", "elements", "tensors", "bytes")
FIGURES = ("unit", "p20", "p50", "p80", "share_of_copy")

UPDATES: dict[str, Update] = {
    "descend sgd": SGD(1e-3, 0.9, weight_decay=5e-4),
    "descend adamw": Adam(1e-3, (0.9, 0.999), 1e-8, 0.01, decoupled=True, maximize=False),
}
STEP_BYTES = {base: traffic.step(Identity(), base_update(base), Sizes()) for base in BASES}  # a float32 parameter
CACHE = 256 << 20  # bytes; buffers rotate over more than any cache holds
LARGE = "copy, 1 GiB"


def op_bytes(dtype: torch.dtype) -> dict[str, int]:
    """Bytes a parameter of every op."""
    each = Sizes.of(dtype)
    updates = {name: traffic.descend(update, each) for name, update in UPDATES.items()}
    norm, ascend = traffic.sq_norm(Identity(), each), traffic.ascend(Identity(), each)
    restore = traffic.restore(each)
    return {"sq_norm": norm, "ascend": ascend, **updates, "restore": restore, "copy": restore}


class Bench:
    """What is measured where, and how long it may take.

    Args:
        device: "cuda" or "cpu".
        small: Whether everything is tiny, to try the program.
        repeats: How many turns.
        compile_seconds: How much time torch.compile may take altogether.
    """

    def __init__(self, device: str, small: bool, repeats: int, compile_seconds: float) -> None:
        self.device = device
        self.repeats = repeats
        self.elements = [1 << 10, 3000] if small else [10**6, 25 * 10**6, 10**8, 4 * 10**8]
        self.networks = ["resnet20"] if small else ["resnet50", "wrn28_10", "vit_b", "gpt2"]
        self.cache = 1 << 14 if small else CACHE
        self.copied = 1 << 12 if small else 1 << 28
        self.compile_seconds = compile_seconds
        skipped = () if device == "cpu" else ("reference",)
        self.backends = [
            name for name in ops.NAMES if name not in skipped and not ops.load(name).why_not(torch.device(device))
        ]

    def clock(self, plugged: bool = False) -> Clock:
        """What measures the device."""
        return clock_of(self.device, plugged)

    def large_copy(self) -> Step:
        """The copy that everything is compared with: 1 GiB read and 1 GiB written."""
        source = torch.randn(self.copied, device=self.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def time(self, steps: Mapping[str, Step], sizes: Mapping[str, int], common: Row, plugged: bool) -> Iterator[Row]:
        """Measures candidates together with the large copy; `sizes` are the bytes that they move."""
        steps = {**steps, LARGE: self.large_copy()}
        sizes = {**sizes, LARGE: 8 * self.copied}
        seconds = in_turns(steps, self.repeats, 10 if plugged else 5, self.clock(plugged))
        for name, times in seconds.items():
            row = {**common, "candidate": name, "unit": "us", **columns([t * 1e6 for t in times])}
            if name in sizes:
                share = [sizes[name] / t / (8 * self.copied / c) for t, c in zip(times, seconds[LARGE], strict=True)]
                row |= {"bytes": sizes[name], "share_of_copy": spread(share)[1]}
            yield row
        for base in BASES:
            for ours in self.backends:
                for theirs in (f"{kind} {base}" for kind in ("usual", "foreach", "compiled", "plain")):
                    if f"{ours} {base}" in seconds and theirs in seconds:
                        both = ratio(seconds[f"{ours} {base}"], seconds[theirs])
                        yield {**common, "candidate": f"{ours} {base} / {theirs}", "unit": "ratio", **both}

    # The four tables ---------------------------------------------------------------------------------------------

    def ops(self) -> Iterator[Row]:
        """Each op of each backend on one tensor."""
        for dtype, elements in itertools.product((torch.float32, torch.bfloat16), self.elements):
            sizes = {name: elements * n for name, n in op_bytes(dtype).items()}
            buffers = [
                _Buffers(elements, dtype, self.device) for _ in range(math.ceil(self.cache / sizes["ascend"]) + 1)
            ]
            steps = {"copy": _rotate([lambda b=b: b.saved.copy_(b.weight) for b in buffers])}
            for name in self.backends:
                lists = [b.tensors() for b in buffers]
                steps |= {f"{name} {op}": _rotate(calls) for op, calls in _ops(ops.load(name), lists).items()}
            moved = {name: sizes[name.split(" ", 1)[1] if name != "copy" else name] for name in steps}
            common = {"table": "ops", "dtype": _name(dtype), "elements": elements, "tensors": 1}
            yield from self.time(steps, moved, common, plugged=True)

    def optimizers(self, shapes: Sequence[Shape]) -> Iterator[tuple[str, Any]]:
        """Every optimizer on parameters of its own."""
        for base, (kind, options) in BASES.items():
            for backend in self.backends:
                params = parameters(shapes, self.device)
                yield f"{backend} {base}", sharpkern.SAM(params, kind, rho=RHO, backend=backend, **options)
            yield f"usual {base}", Usual(parameters(shapes, self.device), base)
            yield f"foreach {base}", Foreach(parameters(shapes, self.device), base)

    def compiled(self, shapes: Sequence[Shape]) -> dict[str, Step]:
        """The compiled rivals, as long as there is time to compile them."""
        steps: dict[str, Step] = {}
        torch.compiler.reset()
        for base in BASES:
            if self.compile_seconds <= 0:
                print(f"  compiled {base}: left out, the time for torch.compile is used up")
                continue
            begin = time.monotonic()
            step = two_passes(Compiled(parameters(shapes, self.device), base))
            step()
            step()
            spent = time.monotonic() - begin
            self.compile_seconds -= spent
            print(f"  compiled {base}: {spent:.1f} s of torch.compile")
            steps[f"compiled {base}"] = step
        return steps

    def steps(self) -> Iterator[Row]:
        """Whole optimizer steps on the shapes of networks."""
        for network in self.networks:
            shapes = SHAPES[network]()
            count = sum(map(math.prod, shapes))
            steps = {name: two_passes(optimizer) for name, optimizer in self.optimizers(shapes)}
            for base in BASES:
                steps[f"plain {base}"] = plain(parameters(shapes, self.device), base, fused=True).step
            steps |= self.compiled(shapes)
            sizes = {f"{name} {base}": n * count for base, n in STEP_BYTES.items() for name in self.backends}
            common = {"table": "steps", "dtype": "float32", "shapes": network, "elements": count}
            yield from self.time(steps, sizes, {**common, "tensors": len(shapes)}, plugged=False)

    def host(self) -> Iterator[Row]:
        """What a step costs the host, where the device has next to nothing to do."""
        shapes = SHAPES["small"]()
        steps = {name: two_passes(optimizer) for name, optimizer in self.optimizers(shapes)}
        for backend in self.backends:
            params = parameters(shapes, self.device)
            optimizer = sharpkern.SAM(params, rho=RHO, backend=backend, **BASES["sgd"][1])
            assign = _assignment(params)
            steps[f"{backend} sgd, new gradients"] = _between(optimizer, assign)
            steps["assignment of new gradients, twice"] = lambda assign=assign: (assign(), assign())
        seconds = in_turns(steps, self.repeats, 40, HostClock(self.device))
        for name, times in seconds.items():
            row = {"table": "host", "candidate": name, "dtype": "float32", "shapes": "small", "tensors": len(shapes)}
            yield {**row, "elements": 256 * len(shapes), "unit": "us", **columns([t * 1e6 for t in times])}

    def memory(self) -> Iterator[Row]:
        """The most bytes a parameter that a step takes beyond weights, gradients and the state of the base update."""
        if self.device != "cuda":
            return
        network = self.networks[0]
        shapes = SHAPES[network]()
        count = sum(map(math.prod, shapes))
        for name, optimizer in self.optimizers(shapes):
            update = base_update(name.rpartition(" ")[2])
            extra = _extra_bytes(optimizer) / count - Sizes().state * len(update.states)
            row = {"table": "memory", "candidate": name, "dtype": "float32", "shapes": network, "elements": count}
            yield {**row, "tensors": len(shapes), "unit": "B/param", "p50": extra}


def _extra_bytes(optimizer: Any) -> int:
    """The peak of two steps above what was there before, and what the optimizer allocated when it was made."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        optimizer.first_step()
        optimizer.second_step()
    torch.cuda.synchronize()
    saved = getattr(optimizer, "saved", ())
    return torch.cuda.max_memory_allocated() - before + sum(x.nbytes for x in saved)


class _Buffers:
    """One tensor of everything that an op may want, random."""

    def __init__(self, elements: int, dtype: torch.dtype, device: str) -> None:
        self.weight, self.gradient = (torch.randn(elements, device=device).mul_(0.05).to(dtype) for _ in range(2))
        self.saved = self.weight.clone()
        self.m, self.v = torch.zeros(elements, device=device), torch.zeros(elements, device=device)

    def tensors(self) -> Tensors:
        """A list of them; each backend wants one of its own, in which it caches addresses."""
        param = torch.nn.Parameter(self.weight)
        param.grad = self.gradient
        t = Tensors([param], 0)
        t.read_gradients()
        t.saved, t.m, t.v = [self.saved], [self.m], [self.v]
        t.set_source()
        return t


def _ops(backend: ops.Ops, lists: Sequence[Tensors]) -> dict[str, list[Step]]:
    """Every op as a call on each list."""
    for t in lists:
        backend.sq_norm(t, Identity(), t.total)
    calls: dict[str, list[Step]] = {
        "sq_norm": [lambda t=t: backend.sq_norm(t, Identity(), t.total) for t in lists],
        "ascend": [lambda t=t: backend.ascend_(t, Identity(), RHO, t.total, True) for t in lists],
        "restore": [lambda t=t: backend.restore_(t, t.total) for t in lists],
    }
    for name, update in UPDATES.items():
        calls[name] = [lambda t=t, update=update: backend.descend_(t, update, None, t.total, None) for t in lists]
    return calls


def _rotate(calls: Sequence[Step]) -> Step:
    """One call after the other."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def _assignment(params: Sequence[Tensor]) -> Step:
    """Gives every parameter the other one of two gradients, at another address."""
    gradients = [p.grad for p in params]
    turns = itertools.cycle([[g.clone() for g in gradients if g is not None], gradients])

    def assign() -> None:
        for p, g in zip(params, next(turns), strict=True):
            p.grad = g

    return assign


def _between(optimizer: Any, assign: Step) -> Step:
    """One step whose gradients lie elsewhere in every pass."""

    def step() -> None:
        assign()
        optimizer.first_step()
        assign()
        optimizer.second_step()

    return step


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def show(row: Row) -> None:
    """Prints a row."""
    what = f"{row.get('shapes', '')} {row['elements']:,} {row['dtype']}".strip()
    share = f"{row['share_of_copy']:7.1%} of the copy's rate" if "share_of_copy" in row else ""
    print(f"  {row['table']:7}{what:28}{row['candidate']:36}{row['p50']:12.3f} {row['unit']:8}{share}", flush=True)


def main() -> None:
    """Measures and appends to the CSV."""
    tables = ("ops", "host", "memory", "steps")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"which of {', '.join(tables)} (default: all)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="everything tiny, to try the program")
    parser.add_argument("--repeats", type=int, default=15, help="turns")
    parser.add_argument("--compile-seconds", type=float, default=45, help="time that torch.compile may take")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(tables):
        parser.error(f"no table {', '.join(sorted(unknown))}: wanted {', '.join(tables)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU: torch.cuda.is_available() is False")
    bench = Bench(args.device, args.small, args.repeats, args.compile_seconds)
    about = {**versions(), **gpu()}
    path, count = args.out / "gpu.csv", 0
    for table in args.tables or tables:
        for row in getattr(bench, table)():
            show(row)
            append(path, [{**about, **row}], [*about, *FIELDS, *FIGURES])  # one at a time: what is measured is kept
            count += 1
    print(f"appended {count} rows to {path}")


if __name__ == "__main__":
    main()
