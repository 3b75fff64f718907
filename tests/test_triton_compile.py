"""Every Triton kernel is compiled for real GPUs, which needs none: its accesses, its registers, its stack.

The ops themselves launch; what they launch is compiled instead of run, so the arguments are those of a real launch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import COVARIANCES, DTYPES, NATURAL, UPDATES, Lists, scalar

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

CAPABILITIES = (80, 90, 100)
# Registers a thread, of 64 Ki that 256 threads a program share: 64 let 4 programs run side by side, 80 let 3.
BUDGET = {"sq_norm": 64, "ascend": 64, "descend sgd": 64, "descend adam": 80, "restore": 40, "write": 24}
ELEMENTS = 8  # of a list, that a thread has
CHECKED = ["identity", "adaptive", "inverse", "inverse-average"]  # one a formula; damping and beta are arguments


@dataclass(frozen=True)
class Compiled:
    """What became of one kernel; `loaded` and `stored` are bytes a thread in accesses of several words."""

    name: str
    registers: int
    stack: int
    loaded: int
    stored: int
    wide: bool  # float32, and lists of 16 bits where all are, go in accesses of 16 bytes

    @property
    def budget(self) -> int:
        return BUDGET[" ".join(self.name.split()[: 2 if self.name.startswith("descend") else 1])]


Case = tuple[str, Callable[[], None], int, int]  # name, launch, bytes a thread that it has to load and to store


def lists(dtypes: str, master: bool = False, draw: bool = False) -> Any:
    """A small list of tensors."""
    t = Lists(dtypes, 1, (8,)).t
    if master:
        t.master, t.saved = True, [w.float() for w in t.weights]
        t.set_source()
    if draw:
        t.draw, t.start = torch.tensor(0), [0]
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
                f, reads_w = 4 * core.stored, exact * (name == "adaptive")
                for add in (False, True)[: 1 + (name == "identity")]:
                    t = lists(dtypes, master)
                    run = lambda t=t, core=core, add=add: triton.sq_norm(t, core, total, add)
                    yield f"sq_norm {name} {label}{' add' * add}", run, g + reads_w + f, 0
                for draw in (False, True)[: 3 - w // 2]:
                    for track in (False, True)[1 - (core.stored or draw) :]:
                        t = lists(dtypes, master, draw)
                        run = lambda t=t, core=core, track=track: triton.ascend_(t, core, 0.1, total, track)
                        kind = f"{label}{' draw' * draw}{' track' * track}"
                        yield f"ascend {name} {kind}", run, g + exact + f, w + w * (not master) + f * track
            for name, (make, _, options) in UPDATES.items():
                if name.endswith("decay"):
                    continue  # an argument
                for natural in ("plain", "inverse"):
                    update, core = make(**options), NATURAL[natural][0]
                    t, states = lists(dtypes, master), 4 * len(update.states)
                    run = lambda t=t, update=update, core=core: triton.descend_(t, update, core, total, None)
                    family = "adam" if len(update.states) == 2 else "sgd"
                    loaded = g + exact + states + 4 * (natural != "plain") + exact
                    stored = states + 4 * master + w + w
                    yield f"descend {family} {name} {natural} {label}", run, loaded, stored
            t = lists(dtypes, master)
            yield f"restore {label}", lambda t=t: triton.restore_(t, total), exact, w
    t = lists("f32")
    rate = torch.tensor(0.1)
    yield "ascend rho on the device", lambda: triton.ascend_(t, COVARIANCES["identity"][0], rate, total, True), 8, 8
    update = UPDATES["adamw"][0](**{**UPDATES["adamw"][2], "lr": rate})
    yield "descend adam lr on the device", lambda: triton.descend_(t, update, None, total, None), 20, 16


class Target:
    """A driver of Triton that knows which GPU to compile for and nothing else."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def accessed(ptx: str, kind: str) -> tuple[int, int]:
    """Bytes that go in accesses of several words, and the narrowest of these accesses."""
    sizes = [int(n) * int(b) // 8 for n, b in re.findall(rf"{kind}\.global\S*\.v(\d)\.b(\d+)", ptx)]
    return sum(sizes), min(sizes, default=16)


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

    def compiled(device: torch.device, kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
        if kernel is not kernels.write:
            made.append(kernel.warmup(*args, grid=(programs,), **constants, **launch.OPTIONS))

    launch.run = compiled
    results = []
    for name, run, loads, stores in list(cases())[part::parts]:
        run()
        ptx = made[-1].asm["ptx"]
        (loaded, narrow_load), (stored, narrow_store) = accessed(ptx, "ld"), accessed(ptx, "st")
        if (loaded, stored) != (ELEMENTS * loads, ELEMENTS * stores): print(f"{name}: {loaded}, {stored} {loads*8} {stores*8}")
        mixed = "f32" in name or "master" in name or "average" in name or "descend" in name
        wide = min(narrow_load, narrow_store) == 16 or (mixed and min(narrow_load, narrow_store) == 8)
        results.append(Compiled(name, *resources(made[-1], folder), loaded, stored, wide))
    return results


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_are_what_they_should_be(capability: int, tmp_path: Path) -> None:
    """No stack, no more registers than pinned, and all of every list but a remainder in wide accesses."""
    folders = [tmp_path / str(part) for part in range(2)]
    for folder in folders:
        folder.mkdir()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        running = [pool.submit(compile_part, capability, part, 2, folder) for part, folder in enumerate(folders)]
        found = [kernel for part in running for kernel in part.result()]
    print(f"\nsm_{capability}: {len(found)} kernels; the most registers of each kind")
    for kind in BUDGET:
        kernels = [x for x in found if x.name.startswith(kind)]
        if kernels:
            most = max(kernels, key=lambda x: x.registers)
            print(f"{kind:14}{most.registers:4} of {most.budget:3}  {most.name}")
    assert not [x for x in found if x.stack]
    assert not [x for x in found if not x.wide]
    assert not [x for x in found if x.registers > x.budget]
