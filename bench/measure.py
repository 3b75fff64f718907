"""Candidates measured in turns, on the CPU or on a GPU, and rows that say where and with what."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from shapes import Shape

import sharpkern

Step = Callable[[], Any]
PLUGS = 4_000_000, 32_000_000  # cycles, some 2 and 16 ms, for which a GPU is kept busy while work is queued behind it


def parameters(shapes: Sequence[Shape], device: str = "cpu") -> list[torch.nn.Parameter]:
    """Random parameters with gradients."""
    params = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.05) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 0.01
    return params


def two_passes(optimizer: Any) -> Step:
    """One step, with the same gradients in both passes."""

    def step() -> None:
        optimizer.first_step()
        optimizer.second_step()

    return step


class HostClock:
    """Seconds that the host spends; on a GPU, those that it takes to enqueue the work."""

    def __init__(self, device: str = "cpu") -> None:
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def time(self, step: Step, calls: int) -> Callable[[], float]:
        """Calls the step and gives what reads the seconds a call."""
        self.wait()
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        seconds = (time.perf_counter() - begin) / calls
        return lambda: seconds


class DeviceClock:
    """Seconds between two CUDA events.

    With `plugged` the GPU is busy until all calls are queued, so that it works through them without waiting for the
    host: the time of the kernels alone. Otherwise it is idle before them and its waits for the host count.
    """

    def __init__(self, plugged: bool) -> None:
        self.plug, self.longest = PLUGS if plugged else (0, 0)
        self.wait = torch.cuda.synchronize

    def time(self, step: Step, calls: int) -> Callable[[], float]:
        """Calls the step and gives what reads the seconds a call, once the device was waited for."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self.plug:
            torch.cuda._sleep(self.plug)
        else:
            self.wait()
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        if begin.query():  # the GPU was through with waiting before all was queued
            self.plug = min(2 * self.plug, self.longest)
        return lambda: begin.elapsed_time(end) / 1e3 / calls


def in_turns(
    steps: Mapping[str, Step], repeats: int, calls: int, clock: HostClock | DeviceClock | None = None
) -> dict[str, list[float]]:
    """Seconds a call, by candidate and turn; the order changes from turn to turn, so that nobody gains by it.

    Args:
        steps: The candidates.
        repeats: How many turns count; two more come before them.
        calls: How often a candidate is called in a turn.
        clock: What measures; the host's by default.
    """
    clock = clock or HostClock()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, repeats):
        readings = {}
        for name in random.Random(turn).sample(list(steps), len(steps)):
            step = steps[name]
            for _ in range(min(calls, 3) if calls > 1 else 0):
                step()
            readings[name] = clock.time(step, calls)
        clock.wait()
        if turn >= 0:
            for name, read in readings.items():
                seconds[name].append(read())
    return seconds


def spread(values: list[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The spread of a ratio that is taken turn by turn, as columns of a row."""
    return dict(zip(("p20", "p50", "p80"), spread([a / b for a, b in zip(above, below, strict=True)]), strict=True))


def _output(*command: str) -> str:
    """What a command prints, or nothing where there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """When and with what the rows were measured."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sharpkern": sharpkern.__version__,
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
    }


def cpu() -> dict[str, str]:
    """The processor, and how many threads are used."""
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "?: ?")
    return {"cpu": model.split(":")[1].strip(), "threads": str(torch.get_num_threads())}


def gpu() -> dict[str, str]:
    """The GPU and what stands between it and us."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {"gpu": name, "driver": driver, "cuda": str(torch.version.cuda), "triton": triton}


def append(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a CSV, which is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerows(rows)
