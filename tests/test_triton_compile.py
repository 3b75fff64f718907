"""Every Triton kernel is compiled for real GPUs, which needs none: its accesses, its registers, its stack.

The ops themselves launch; what they launch is compiled instead of run, so the arguments are those of a real launch.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import COVARIANCES, DTYPES, NATURAL, UPDATES, Lists, scalar

from sharpkern.correction import Correction, Drawn, Estimated, Traced
from sharpkern.covariance import Identity, Learned, Tracer

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

# All kernels for one GPU, every fifth for the others: a third of a second each adds up.
EVERY = {80: 5, 90: 1, 100: 5}
# Registers a thread, of 64 Ki that a multiprocessor has: with 64 it holds 1024 threads, with 48 a third more.
BUDGET = {
    "sq_norm": 56,
    "ascend": 64,
    "noise": 64,
    "descend sgd": 56,
    "descend adam": 64,
    "correct sgd": 64,
    "correct adam": 80,  # 256 threads with 8 elements each, as many elements as 1024 with 4
    "estimate": 64,
    "restore": 40,
}
CHECKED = ["identity", "adaptive", "inverse", "inverse-average"]  # one a formula; damping and beta are arguments
FEW = ("f32", "bf16", "f16-f32")  # dtypes of the rest of the family
LEARNED, ADAM_TRACER = Learned(0.1, 0.1, 0.1), Tracer(0.1, 0.1, 0.999)


@dataclass(frozen=True)
class Compiled:
    """What became of one kernel; bytes are those of an element that go in accesses of several words."""

    name: str
    registers: int
    stack: int
    loaded: int
    stored: int
    narrowest: int  # of these accesses, in bytes
    wanted_loaded: int
    wanted_stored: int


Case = tuple[str, Callable[[], None], int, int]  # name, launch, bytes of an element to load and to store


def lists(dtypes: str, master: bool = False, draw: bool = False) -> Any:
    """A small list of tensors."""
    t, weight = Lists(dtypes, 1, (8,)).t, DTYPES[dtypes][0]
    if master:
        t.master, t.saved = True, [w.float() for w in t.weights]
        t.set_source()
    if draw:
        t.draw, t.start, t.stochastic = torch.tensor(0), [0], weight.itemsize == 2
    return t


def cases() -> Iterator[Case]:
    """Every kernel with every formula, dtypes and way of storing weights."""
    from sharpkern import ops

    triton, total = ops.load("triton"), scalar(1.0)
    for dtypes, (weight, gradient) in DTYPES.items():
        if weight == torch.float64:
            continue
        w, g = weight.itemsize, gradient.itemsize
        for master in (False, True)[: 3 - w // 2]:
            exact, label = 4 if master else w, f"{dtypes}{' master' * master}"
            for name in CHECKED:
                core = COVARIANCES[name][0]
                f, reads_w = 4 * (core.state is not None), exact * (name == "adaptive")
                for add in (False, True)[: 1 + (name == "identity")]:
                    t = lists(dtypes, master)
                    run = partial(triton.sq_norm, t, core, total, add)
                    yield f"sq_norm {name} {label}{' add' * add}", run, g + reads_w + f, 0
                for draw in (False, True)[: 3 - w // 2]:
                    for track in (False, True)[1 - (core.state is not None or draw) :]:
                        t = lists(dtypes, master, draw)
                        run = partial(triton.ascend_, t, core, 0.1, total, track)
                        kind = f"{label}{' draw' * draw}{' track' * track}"
                        yield f"ascend {name} {kind}", run, g + exact + f, w + w * (not master) + f * track
            for name, (make, _, options) in UPDATES.items():
                if name.endswith("decay"):
                    continue  # an argument
                for natural in ("plain", "inverse"):
                    update, core = make(**options), NATURAL[natural][0]
                    t, states = lists(dtypes, master), 4 * len(update.states)
                    run = partial(triton.descend_, t, update, core, total, None)
                    family = "adam" if len(update.states) == 2 else "sgd"
                    loaded = g + exact + states + 4 * (natural != "plain") + exact
                    stored = states + 4 * master + w + w
                    yield f"descend {family} {name} {natural} {label}", run, loaded, stored
            t = lists(dtypes, master)
            yield f"restore {label}", partial(triton.restore_, t, total), exact, w
    yield from rest_of_the_family(triton)
    t = lists("f32")
    rate = torch.tensor(0.1)
    yield "ascend rho on the device", partial(triton.ascend_, t, COVARIANCES["identity"][0], rate, total, True), 8, 8
    update = UPDATES["adamw"][0](**{**UPDATES["adamw"][2], "lr": rate})
    yield "descend adam lr on the device", partial(triton.descend_, t, update, None, total, None), 20, 16
    t = lists("f32")
    t.take = scalar(1.0).expand(2)
    update = UPDATES["adamw"][0](**UPDATES["adamw"][2])
    yield "sq_norm taken", partial(triton.sq_norm, t, COVARIANCES["identity"][0], total), 4, 0
    yield "ascend taken", partial(triton.ascend_, t, COVARIANCES["identity"][0], 0.1, total, True), 8, 8
    yield "descend adam taken", partial(triton.descend_, t, update, None, total, None), 20, 16


def rest_of_the_family(triton: Any) -> Iterator[Case]:
    """The kernels of noise, learned covariances, TRACER and evolution strategies."""
    total = scalar(1.0)
    for dtypes, master in [*((name, False) for name in FEW), ("bf16", True)]:
        (weight, gradient), label = DTYPES[dtypes], f"{dtypes}{' master' * master}"
        w, g, exact = weight.itemsize, gradient.itemsize, 4 if master else weight.itemsize
        copied = w * (not master)
        for name, core in (("learned", LEARNED), ("tracer", ADAM_TRACER)):
            yield f"sq_norm {name} {label}", partial(triton.sq_norm, lists(dtypes, master), core, total), g + 4, 0
            t = lists(dtypes, master)
            t.first = [x.clone() for x in t.gradients] if name == "tracer" else t.first
            stored = w + copied + (4 if name == "learned" else g)
            yield f"ascend {name} {label}", partial(triton.ascend_, t, core, 0.1, total, True), g + exact + 4, stored
        for name, core in (("identity", Identity()), ("learned", LEARNED)):
            state = 4 * (core.state is not None)
            for kind in ("gaussian", "mixed", "again", "rounded"):
                if kind == "rounded" and w == 4:
                    continue
                t, mixed = lists(dtypes, master, draw=True), kind == "mixed"
                t.stochastic = kind == "rounded"
                again = 1 if kind == "again" else None
                run = partial(triton.ascend_, t, core, 0.1, total if mixed else None, True, 0.5, 0.5, again)
                moved = state if mixed else 0
                yield f"noise {kind} {name} {label}", run, exact + g * mixed + state, w + copied * (not again) + moved
        corrections: dict[str, tuple[Correction, int, int]] = {
            "drawn": (Drawn(LEARNED), w + 4, 4),
            "traced": (Traced(Tracer(0.1, 0.1), 0.1, 2.0, False), g + 4, 4),
            "traced scaled": (Traced(Tracer(0.1, 0.1), 0.1, 2.0, True), g + 4, 4),
            "traced adam": (Traced(ADAM_TRACER, 0.1, 2.0, False), g, 0),
            "traced adam scaled": (Traced(ADAM_TRACER, 0.1, 2.0, True), g + 4, 0),
            "estimated": (Estimated(0.1, 0.1, 0.1), -g, 0),
            "estimated learned": (Estimated(0.1, 0.1, 0.1), 4 - g, 4),
        }
        for name, (correction, more, moved) in corrections.items():
            for base in ("nesterov", "adam"):
                if name.startswith("traced") and ("adam" in name) != (base == "adam"):
                    continue
                make, _, options = UPDATES[base]
                update = make(**options)
                t, states = lists(dtypes, master, draw=True), 4 * len(update.states)
                t.first, t.pairs = [x.clone() for x in t.gradients], torch.zeros(2, 3)
                t.fisher = [None] if name == "estimated" else t.fisher
                run = partial(triton.descend_, t, update, correction, total, None)
                kind = "estimate" if name.startswith("estimated") else f"correct {'adam' * (base == 'adam') or 'sgd'}"
                loaded, stored = g + exact + states + more + exact, states + 4 * master + w + w + moved
                yield f"{kind} {base} {name} {label}", run, loaded, stored


class Target:
    """A driver of Triton that knows which GPU to compile for and nothing else."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        """The GPU to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Any."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Any."""
        return 0


def resources(kernel: Any, folder: Path) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    import triton

    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said.stdout + said.stderr)
    assert found
    return int(found[1]), int(found[2]) + int(found[3]) + kernel.asm["ptx"].count(".local")


def compile_part(capability: int, part: int, parts: int, folder: Path) -> list[Compiled]:
    """Compiles every so-manieth kernel, in a process of its own."""
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    from triton.runtime import driver

    from sharpkern.backend.triton import kernels, launch

    driver.set_active(Target(capability))
    made: list[Any] = []

    def compiled(kernel: Any, where: Any, *args: Any, **constants: Any) -> None:
        if kernel is not kernels.write:
            made.append((kernel.warmup(*args, grid=(1,), **constants, **launch.options(where[2])), where[2]))

    launch.run = compiled
    results = []
    for name, run, loads, stores in list(cases())[part::parts]:
        run()
        kernel, warps = made[-1]
        elements = launch.CHUNK // (32 * warps)
        accesses = [re.findall(rf"{kind}\.global\S*\.v(\d)\.b(\d+)", kernel.asm["ptx"]) for kind in ("ld", "st")]
        sizes = [[int(n) * int(bits) // 8 for n, bits in found] for found in accesses]
        bytes_ = [sum(found) // elements for found in sizes]
        results.append(Compiled(name, *resources(kernel, folder), *bytes_, min(sizes[0] + sizes[1]), loads, stores))
    return results


@pytest.mark.parametrize("capability", EVERY)
def test_kernels_are_what_they_should_be(capability: int, tmp_path: Path) -> None:
    """No stack, no more registers than pinned, and all of every list but a remainder in wide accesses."""
    folders = [tmp_path / str(part) for part in range(2)]
    for folder in folders:
        folder.mkdir()
    parts = 2 * EVERY[capability]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        running = [pool.submit(compile_part, capability, part, parts, folder) for part, folder in enumerate(folders)]
        found = [kernel for part in running for kernel in part.result()]
    print(f"\nsm_{capability}: {len(found)} kernels; the most registers of each kind")
    for kind, budget in BUDGET.items():
        most = max((x for x in found if x.name.startswith(f"{kind} ")), key=lambda x: x.registers)
        print(f"{kind:14}{most.registers:4} of {budget}  {most.name}")
        assert most.registers <= budget, most.name
    for kernel in found:
        if (kernel.loaded, kernel.stored) != (kernel.wanted_loaded, kernel.wanted_stored):
            print(kernel)
    assert not [x for x in found if x.stack]
    assert not [x for x in found if (x.loaded, x.stored) != (x.wanted_loaded, x.wanted_stored)]
    # lists of 16 bits go in accesses of 8 bytes beside lists of float32, whose accesses have 16
    assert not [x for x in found if x.narrowest < (8 if "16" in x.name else 16)]
