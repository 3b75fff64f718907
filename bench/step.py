"""Optimizer work of one whole step: sharpkern, pytorch_optimizer's SAM, and torch's plain fused optimizers.

Gradients are ready, no forward or backward pass is run. All candidates live in one process and are measured in turns;
ratios are taken turn by turn and their median is reported. Every run appends its rows to `<out>/step.csv`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measure import Step, append, cpu, in_turns, parameters, ratio, spread, two_passes, versions
from pytorch_optimizer import SAM as PeerSAM
from shapes import SHAPES, Shape

import sharpkern
from sharpkern.backend.native import _kernels
from sharpkern.base import SGD, Adam
from sharpkern.tensors import Tensors

MOMENTUM = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"lr": 1e-3}
COPY_ELEMENTS = 1 << 28  # 1 GiB read and 1 GiB written

# Every figure is a ratio of the times of two candidates in the same turn.
FIGURES = {
    "SAM + SGD momentum / pytorch_optimizer SAM + SGD(foreach)": ("SAM sgd", "peer SAM sgd"),
    "Fisher SAM / SAM": ("FisherSAM sgd", "SAM sgd"),
    "ASAM / SAM": ("ASAM sgd", "SAM sgd"),
    "whole SAM step / torch SGD(fused) plain step": ("SAM sgd", "torch SGD fused"),
    "update alone / torch SGD(fused)": ("update sgd", "torch SGD fused"),
    "update alone / torch AdamW(fused)": ("update adamw", "torch AdamW fused"),
}
# bytes a parameter that a candidate has to move
BYTES = {"SAM sgd": 40, "FisherSAM sgd": 40, "ASAM sgd": 44, "SAM adamw": 48, "update sgd": 20, "update adamw": 28}


def update_alone(shapes: list[Shape], update: Any) -> Step:
    """The fused second half: restore and base update."""
    params = parameters(shapes)
    names = {"lr": 1e-3, "momentum": 0.9} if isinstance(update, SGD) else {"lr": 1e-3}
    optimizer = sharpkern.SAM(params, torch.optim.SGD if isinstance(update, SGD) else torch.optim.AdamW, **names)
    two_passes(optimizer)()
    plan = optimizer._plan
    assert plan is not None
    t: Tensors = plan.tensors[0]
    t.read_gradients()
    return lambda: plan.ops.descend_(t, update, None, plan.total, None)


def streaming_copy() -> Step:
    """A copy of 1 GiB with streaming stores by all threads."""
    source, target = torch.zeros(COPY_ELEMENTS), torch.ones(COPY_ELEMENTS)
    table = _kernels.Table([COPY_ELEMENTS], "float32", "float32", _kernels.instruction_sets()[0], True)
    table.set("weight", [target.data_ptr()])
    table.set("source", [source.data_ptr()])
    total = torch.zeros((), dtype=torch.float64)
    kept = (source, target, total)
    return lambda: table.restore(torch.get_num_threads(), kept[2].data_ptr())


def candidates(shapes: list[Shape], copy: bool) -> dict[str, Step]:
    """Every candidate as a function that makes one step."""
    steps: dict[str, Step] = {}
    for name in ("SAM", "ASAM", "FisherSAM"):
        steps[f"{name} sgd"] = two_passes(getattr(sharpkern, name)(parameters(shapes), **MOMENTUM))
    steps["SAM adamw"] = two_passes(sharpkern.SAM(parameters(shapes), torch.optim.AdamW, **ADAMW))
    steps["update sgd"] = update_alone(shapes, SGD(1e-3, 0.9, weight_decay=5e-4))
    steps["update adamw"] = update_alone(shapes, Adam(1e-3, (0.9, 0.999), 1e-8, 0.01, decoupled=True, maximize=False))
    steps["peer SAM sgd"] = two_passes(PeerSAM(parameters(shapes), torch.optim.SGD, rho=0.05, foreach=True, **MOMENTUM))
    steps["torch SGD fused"] = torch.optim.SGD(parameters(shapes), fused=True, **MOMENTUM).step
    steps["torch AdamW fused"] = torch.optim.AdamW(parameters(shapes), fused=True, **ADAMW).step
    if copy:
        steps["streaming copy"] = streaming_copy()
    return steps


def resident_bytes() -> int:
    """The memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def extra_bytes(shapes: list[Shape]) -> float:
    """Bytes a parameter that are there between the passes and were not before: resident memory of a fresh process."""
    params = parameters(shapes)
    optimizer = sharpkern.SAM(params, **MOMENTUM)
    before = resident_bytes()
    optimizer.first_step()
    between = resident_bytes()
    optimizer.second_step()
    return (between - before) / sum(p.numel() for p in params)


def report(name: str, shapes: list[Shape], seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Prints one set of shapes and gives its rows."""
    count = sum(torch.Size(shape).numel() for shape in shapes)
    print(f"\n{name}: {count:,} parameters in {len(shapes)} tensors")
    copy = seconds.get("streaming copy")
    rows = []
    for candidate, times in seconds.items():
        p20, p50, p80 = spread(times)
        size = 8 * COPY_ELEMENTS if candidate == "streaming copy" else BYTES.get(candidate, 0) * count
        pairs = zip(times, copy or times, strict=True)
        share = (
            statistics.median(size / t / (8 * COPY_ELEMENTS / c) for t, c in pairs) if copy and size else float("nan")
        )
        row = {"shapes": name, "parameters": count, "tensors": len(shapes), "figure": candidate, "unit": "ms"}
        rows.append({**row, "p20": p20 * 1e3, "p50": p50 * 1e3, "p80": p80 * 1e3, "share_of_copy": share})
        of_copy = f"{share:7.1%} of the copy's rate" if share == share else ""
        print(f"  {candidate:20} {p50 * 1e3:9.3f} ms  (p20 {p20 * 1e3:.3f}, p80 {p80 * 1e3:.3f}) {of_copy}")
    for figure, (ours, theirs) in FIGURES.items():
        row = {"shapes": name, "parameters": count, "tensors": len(shapes), "figure": figure, "unit": "ratio"}
        rows.append({**row, **ratio(seconds[ours], seconds[theirs]), "share_of_copy": float("nan")})
        print(f"  {rows[-1]['p50']:6.3f}  {figure}")
    return rows


def main() -> None:
    """Measures and appends to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["resnet20", "wrn28_10"])
    parser.add_argument("--repeats", type=int, default=0, help="turns (default: 100 for small networks, 21 for large)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    rows = []
    for name in args.shapes:
        shapes = SHAPES[name]()
        large = sum(torch.Size(shape).numel() for shape in shapes) > 1 << 22
        seconds = in_turns(candidates(shapes, large), args.repeats or (21 if large else 100), 1 if large else 5)
        rows += report(name, shapes, seconds)
        if large:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                extra = fresh.submit(extra_bytes, shapes).result()
            print(f"  {extra:6.3f}  bytes a parameter between the passes, beyond weights, gradients and base state")
            memory = {"shapes": name, "parameters": rows[-1]["parameters"], "tensors": len(shapes)}
            rows.append({**memory, "figure": "extra memory between the passes", "unit": "B/param", "p50": extra})
    path, about = args.out / "step.csv", versions()
    about = {"date": about.pop("date"), **cpu(), **about}
    fields = [*about, "shapes", "parameters", "tensors", "figure", "unit", "p20", "p50", "p80", "share_of_copy"]
    append(path, fields, [{**about, **row} for row in rows])
    print(f"\nappended {len(rows)} rows to {path}")


if __name__ == "__main__":
    main()
