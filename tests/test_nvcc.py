"""What nvcc makes of the CUDA kernels, without a GPU: registers, stack and spills, and 16-byte accesses."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from compiled import CUDA, folder, run

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-cubin", "-Xptxas", "-v", "--keep")

# Registers a thread at most: with 16-bit weights or gradients, in float32, in float64. 40 leave room for 6 blocks on a
# multiprocessor, 64 for 4, 80 for 3, 128 for 2.
BUDGET = {
    "sq_norm": (44, 44, 44),
    "ascend": (64, 48, 80),
    "ascend Learned": (64, 48, 96),
    "mixed": (80, 72, 80),
    "gaussian": (80, 64, 64),
    "descend": (80, 60, 104),
    "drawn": (80, 80, 96),
    "traced": (120, 80, 104),
    "estimated": (80, 64, 120),
    "restore": (40, 32, 40),
}

# Lists that a kernel reads and writes. ascend and mixed also copy the gradient; descend also has the way back, and a
# Fisher diagonal to read; so do its kin, which also read the weight or the first gradient, and write what is kept.
LISTS = {
    "sq_norm": {"": (1, 0), "Adaptive": (2, 0), "Average": (2, 0), "Learned": (2, 0), "Tracer": (2, 0)},
    "ascend": {"": (2, 3), "Average": (3, 4), "Learned": (3, 4), "Tracer": (3, 3)},
    "mixed": {"": (2, 3), "Average": (3, 4), "Learned": (3, 4), "Tracer": (3, 3)},
    "gaussian": {"": (1, 2), "Average": (2, 2), "Learned": (2, 2), "Tracer": (2, 2)},
    "descend": {"Sgd": (4, 2), "Momentum": (5, 3), "Adam": (6, 4)},
    "drawn": {"Sgd": (5, 3), "Momentum": (6, 4), "Adam": (7, 5)},
    "traced": {"Sgd": (5, 3), "Momentum": (6, 4), "Adam": (7, 5)},
    "estimated": {"Sgd": (3, 3), "Momentum": (4, 4), "Adam": (5, 5)},
    "restore": {"": (1, 1)},
}

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")


@dataclass
class Kernel:
    """One kernel on one architecture."""

    op: str
    formula: str  # the functor's name, without what it is templated on
    types: str  # the rest of the template arguments
    architecture: str
    registers: int
    stack: int
    spills: int
    accesses: Counter[str] = field(repr=False)  # loads and stores in its PTX

    @property
    def budget(self) -> int:
        """The registers that it may take."""
        kind = 2 if "double" in self.types else int(set(self.types.split(", ")[:-1]) == {"float"})
        return BUDGET.get(f"{self.op} {self.formula}", BUDGET[self.op])[kind]


def kernels_of(log: str, ptx: str) -> list[Kernel]:
    """The kernels of one source on one architecture."""
    functions = dict(re.findall(r"\.entry (\w+)\((.*?)\n\}", ptx, re.DOTALL))
    pattern = (
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, log, re.DOTALL)
    mangled = "\n".join(name for name, *_ in found)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout.splitlines()
    kernels = []
    for full, (name, architecture, stack, *spills, registers) in zip(names, found, strict=True):
        read = re.search(r"(\w+)_kernel<(?:sharpkern::generic::(\w+)<.*?>, )?(.*?)>\(", full)
        assert read is not None, full
        kernels.append(
            Kernel(
                read[1],
                read[2] or "",
                read[3].replace("sharpkern::cuda::", ""),
                architecture,
                int(registers),
                int(stack),
                sum(map(int, spills)),
                Counter(re.findall(r"\b(?:ld|st)\.[.a-z0-9]+", functions[name])),
            )
        )
    return kernels


@pytest.fixture(scope="module")
def kernels(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    """All kernels on all architectures."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    built = folder(pytestconfig, tmp_path_factory, FLAGS, ARCHITECTURES, [version])
    missing: list[tuple[Path, list[str]]] = []
    for source in sorted(CUDA, key=lambda path: path.stem not in {"ascend", "descend", "mixed"}):  # the longest first
        for architecture in ARCHITECTURES:
            place = built / source.stem / architecture
            if not (place / "log").exists():
                place.mkdir(parents=True, exist_ok=True)
                output = ["--keep-dir", str(place), "-o", str(place / "cubin")]
                missing.append((place, ["nvcc", *FLAGS, f"-arch={architecture}", *output, str(source)]))
    for (place, _), log in zip(missing, run(*(command for _, command in missing)), strict=True):
        for made in place.iterdir():
            if made.suffix != ".ptx":
                made.unlink()
        (place / "log").write_text(log)
    return [
        kernel
        for log in sorted(built.glob("*/*/log"))
        for kernel in kernels_of(log.read_text(), next(log.parent.glob("*.ptx")).read_text())
    ]


def test_no_kernel_needs_a_stack_or_spills(kernels: list[Kernel]) -> None:
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    assert {kernel.op for kernel in kernels} == set(LISTS)
    assert [kernel for kernel in kernels if kernel.stack or kernel.spills] == []


def test_registers(kernels: list[Kernel]) -> None:
    most: dict[tuple[str, str], int] = {}
    for kernel in kernels:
        for types in ("any", kernel.types.rpartition(", ")[0]):
            row = f"{kernel.op:8} {kernel.formula:9} {types:14}", kernel.architecture
            most[row] = max(most.get(row, 0), kernel.registers)
    for name in sorted({name for name, _ in most}):
        print(name, *(f"{architecture}: {most[name, architecture]:3}" for architecture in ARCHITECTURES))
    assert [kernel for kernel in kernels if kernel.registers > kernel.budget] == []


def test_memory_is_accessed_16_bytes_at_a_time(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        known = {name for name in kernel.accesses if name.split(".")[1] in {"global", "param", "shared"}}
        assert set(kernel.accesses) == known, kernel  # no address of which the compiler does not know what it is of
        wide = Counter(
            name[:2] for name in kernel.accesses.elements() if re.search(r"global.*\.(v4.[fu]32|v2.f64)", name)
        )
        lists = LISTS[kernel.op]
        reads, writes = lists.get(kernel.formula, lists.get("", (0, 0)))
        assert wide["ld"] >= reads, kernel
        assert wide["st"] >= writes, kernel
