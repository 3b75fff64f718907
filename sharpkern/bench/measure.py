"""Candidates measured in turns, on the CPU or on a GPU."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sharpkern.bench.shapes import Shape

Step = Callable[[], Any]
Event: Any = torch.cuda.Event
PLUGS = 4_000_000, 32_000_000  # cycles, some 2 and 16 ms, for which a GPU is kept busy while work is queued behind it
TURN = 2e-3  # seconds that a candidate takes in a turn at least, where it is called more than once


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
        self.wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None

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
        self.wait: Callable[[], None] = torch.cuda.synchronize

    def time(self, step: Step, calls: int) -> Callable[[], float]:
        """Calls the step and gives what reads the seconds a call, once the device was waited for."""
        begin, end = Event(enable_timing=True), Event(enable_timing=True)
        if self.plug:
            torch.cuda._sleep(self.plug)  # type: ignore[no-untyped-call]
        else:
            self.wait()
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        if begin.query():  # the GPU was through with waiting before all was queued
            self.plug = min(2 * self.plug, self.longest)
        return lambda: begin.elapsed_time(end) / 1e3 / calls


Clock = HostClock | DeviceClock


def clock_of(device: str, plugged: bool = False) -> Clock:
    """What measures a device: "cpu" or "cuda"."""
    return DeviceClock(plugged) if device == "cuda" else HostClock()


def calls_a_turn(steps: Mapping[str, Step], clock: Clock) -> tuple[dict[str, int], float]:
    """How often each candidate is called in a turn, from its second call, and the seconds that a turn then takes."""
    calls, turn = {}, 0.0
    for name, step in steps.items():
        step()
        read = clock.time(step, 1)
        clock.wait()
        calls[name] = min(max(1, round(TURN / max(read(), 1e-9))), 200)
        turn += read() * (calls[name] + min(calls[name] - 1, 3))
    return calls, turn


def in_turns(
    steps: Mapping[str, Step], repeats: int, calls: int | Mapping[str, int], clock: Clock | None = None
) -> dict[str, list[float]]:
    """Seconds a call, by candidate and turn; the order changes from turn to turn, so that nobody gains by it.

    Args:
        steps: The candidates.
        repeats: How many turns count; two more come before them.
        calls: How often a candidate is called in a turn, all alike or by candidate.
        clock: What measures; the host's by default.

    Returns:
        For each candidate a list with one entry a turn.
    """
    clock = clock or HostClock()
    often = calls if isinstance(calls, Mapping) else dict.fromkeys(steps, calls)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, repeats):
        readings = {}
        for name in random.Random(turn).sample(list(steps), len(steps)):
            step = steps[name]
            for _ in range(min(often[name] - 1, 3)):
                step()
            readings[name] = clock.time(step, often[name])
        clock.wait()
        if turn >= 0:
            for name, read in readings.items():
                seconds[name].append(read())
    return seconds


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def columns(values: Sequence[float]) -> dict[str, float]:
    """The spread as columns of a row."""
    return dict(zip(("p20", "p50", "p80"), spread(values), strict=True))


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The spread of a ratio that is taken turn by turn, as columns of a row."""
    return columns([a / b for a, b in zip(above, below, strict=True)])


def short(value: float) -> str:
    """Three digits or more."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
