"""The Triton backend where there is no GPU: why it does not run, and what it does in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ON_CPU

from sharpkern import ops

TESTS = Path(__file__).parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
interpreted = ON_CPU["triton"].usable


@pytest.mark.parametrize("name", ON_CPU)
def test_a_backend_runs_on_the_cpu_or_says_why_not(name: str) -> None:
    status = ON_CPU[name]
    if status.usable:
        assert ops.choose(name, CPU) == (name, None)
        return
    assert status.why_not
    with pytest.raises(RuntimeError, match="cannot be used on cpu"):
        ops.choose(name, CPU)
    pytest.skip(f"{name}: {status.why_not}")


def test_what_triton_cannot_do_is_said() -> None:
    pytest.importorskip("triton")
    triton = ops.load("triton")
    assert triton.why_not(CUDA, {torch.float32, torch.bfloat16}) is None
    assert triton.why_not(CUDA, {torch.float32, torch.float64}) == (
        "float64 weights: the Triton kernels compute in float32; use native or reference"
    )
    assert interpreted or triton.why_not(CPU) == "Triton kernels run on CUDA devices only"


def test_without_triton_there_is_a_reason_and_the_rest_works(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import sharpkern; from sharpkern import ops; import torch\n"
        "print(ops.load('triton').why_not(torch.device('cuda'))); print(ops.choose('auto', torch.device('cpu'))[0])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0] == "triton is not installed"


CHOICES = {
    # damping and beta are arguments: one of each formula
    "ops": ("test_ops.py", "triton and not (f64 or f16-f32 or additive or adaptive-0 or kept)"),
    "trajectories": ("test_trajectories.py", "triton and (natural-adam-decay or tensor or groups) and not float64"),
    "family": (
        "test_family.py",
        "triton and not float64 and (backends_draw or mixtures or the_first_step or s_stays or missing or masters)",
    ),
    "evolution": (
        "test_evolution.py",
        "triton and not (float64 or 0.3) and (way_back or no_copy or narrows or running)",
    ),
    "rest": ("triton_interpreted.py", ""),
}


@pytest.mark.skipif(interpreted, reason="this is Triton's interpreter already")
@pytest.mark.parametrize("choice", CHOICES)
def test_in_the_interpreter(choice: str) -> None:
    """The tests of every backend, and some of its own, in a process in which Triton interprets its kernels."""
    pytest.importorskip("triton")
    name, words = CHOICES[choice]
    # NaN and overflow are part of the tests: NumPy, of which the interpreter is made, need not warn; nor of what
    # Triton 3.6 does with it
    quiet = ["-W", "ignore::RuntimeWarning", "-W", "ignore:Conversion of an array:DeprecationWarning"]
    options = ["-q", "-p", "triton_plugin", *quiet, "-p", "no:cacheprovider", "-k", words]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([*sys.path[1:], str(TESTS)])}
    command = [sys.executable, "-m", "pytest", *options, str(TESTS / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    summary = (done.stdout.strip().splitlines() or [""])[-1]
    print(summary)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in summary
    assert "skipped" not in summary


def test_values_make_no_new_kernel() -> None:
    """A kernel is compiled anew for some values of arguments: none of those that change from step to step."""
    pytest.importorskip("triton")
    if interpreted:
        pytest.skip("the interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from sharpkern.backend.triton import kernels, launch

    def bound(kernel: Any, *arguments: Any, **constants: Any) -> str:
        bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
        constants = {p.name: 0 for p in kernel.params if p.is_constexpr}
        return str(bind(*arguments, **constants)[1])

    tables = [torch.zeros(64, dtype=torch.int64)[i:] for i in (0, 1)]
    totals = [torch.zeros(4, dtype=torch.float64)[i] for i in (0, 1)]
    words = (0, 1, 15, 16, 17, 2**31, 2**32 + 16, 2**57)
    numbers = (0.0, 1.0, 16.0, -1.0, 1e-30, float("-inf"))
    written = {
        bound(kernels.write, table, first, 2, launch.arguments([word, 3]))
        for table in tables
        for first in (0, 1, 16)
        for word in words
    }
    assert len(written) == 1
    rho = {
        bound(kernels.ascend, tables[0], table, total, None, table, total, x, x, x, again, count, (x, 0.0, 0.0, 1.0))
        for table in tables
        for total in totals
        for x in numbers
        for again, count in ((0, 1), (1, 16), (16, 17))
    }
    assert len(rho) == 1
    lr = {
        bound(
            *(kernels.descend, tables[0], table, total, tables[0], total, tables[0], total, totals[0], x, x),
            *(count, count, (x,) * 9, (x,) * 4, (x,) * 2),
        )
        for table in tables
        for total in totals
        for x in numbers
        for count in (1, 16, 17)
    }
    assert len(lr) == 1
