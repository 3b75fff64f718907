"""What is measured in a process of its own: memory, and the time of an import."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from sharpkern.bench.candidates import Pool, find
from sharpkern.bench.shapes import find as shapes_of

_IMPORT = "import time, torch; begin = time.perf_counter(); import sharpkern; print(time.perf_counter() - begin)"


def import_seconds(repeats: int) -> list[float]:
    """What `import sharpkern` takes after `import torch`, compiled as installers leave it, each time anew."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def seconds() -> float:
            command, path = [sys.executable, "-c", _IMPORT], Path(__file__).parents[2]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=path, env=environment)
            return float(done.stdout)

        seconds()  # compiles
        return [seconds() for _ in range(repeats)]


def extra_bytes(candidate: str, shapes: str, device: str, threads: int) -> float:
    """The peak of a step beyond weights, gradients and the state of the base update, in a process of its own.

    Args:
        candidate: Name of a candidate.
        shapes: Name of the parameters' shapes.
        device: "cpu" or "cuda".
        threads: Of torch.

    Returns:
        Bytes a parameter: resident memory on the CPU, allocated memory on a GPU.

    Raises:
        OSError: The system does not tell the peak of a process's memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_extra_bytes, candidate, shapes, device, threads).result()


def _extra_bytes(name: str, shapes: str, device: str, threads: int) -> float:
    torch.set_num_threads(threads)
    candidate, wanted = find(name), shapes_of(shapes)
    for _ in range(2):  # what is loaded and compiled once is no memory of a step
        candidate.make(Pool([(8,)] * len(wanted), device))()
    gc.collect()
    before = _memory(device)
    pool = Pool(wanted, device)
    step, count = candidate.make(pool), pool.elements
    del pool
    step()
    step()
    gc.collect()
    _forget_peak(device)
    step()
    return (_memory(device, peak=True) - before) / count - candidate.held


def _memory(device: str, peak: bool = False) -> int:
    """Bytes in use, or the most that there were."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    name = "VmHWM" if peak else "VmRSS"
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
