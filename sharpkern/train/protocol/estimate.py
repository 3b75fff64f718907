"""`--dry-run`: what would run, and about how long, from steps of the actual networks timed here and now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sharpkern.train import networks
from sharpkern.train.protocol import ledger
from sharpkern.train.protocol.job import Job, jobs
from sharpkern.train.protocol.request import Request
from sharpkern.train.protocol.run import RESULTS
from sharpkern.train.threads import threads

if TYPE_CHECKING:
    from rich.console import Console

FEW = 8  # images that are timed first; the whole batch only where these are quick
QUICK = 0.05  # seconds
FORWARD = 1 / 3  # of a forward and a backward pass


def dry_run(request: Request, console: Console | None = None) -> None:
    """Prints the plan: a line for each setting and method with its steps and time, and the sum.

    Args:
        request: What would be run.
        console: Where to print; None is the standard output.

    Raises:
        ValueError: A preset cannot be run as asked.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    planned = jobs(request)
    rows = ledger.read(request.out / RESULTS)
    table = Table(box=box.MARKDOWN)
    for column in ("table", "trained on", "network", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("epochs", "lr", "batch", "steps", "seeds left", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    total = 0.0
    with threads(request.threads):
        pass_seconds = _times(planned, request.device, console)
        for kind in dict.fromkeys(tuple(job.columns().items())[:-1] for job in planned):
            same = [job for job in planned if tuple(job.columns().items())[:-1] == kind]
            left = sum(not ledger.find(rows, job) for job in same)
            job = same[0]
            seconds = left * job_seconds(job, pass_seconds[job.setting.network, job.batch_size])
            total += seconds
            label = job.setting.short if job.data == "digits" else f"{job.setting.row} {job.setting.column}".strip()
            options = " ".join(f"{name}={value:g}" for name, value in job.options.items())
            cells = (job.preset.table, f"{job.source.title}, {label}", networks.NETWORKS[job.setting.network].title)
            numbers = (job.epochs, f"{job.lr:g}", job.batch_size, job.steps, left, duration(seconds))
            table.add_row(*cells, f"{job.contender.title} {options}".strip(), *map(str, numbers))
    console.print(table, width=200, crop=False, no_wrap=True, highlight=False)
    console.print(f"about {duration(total)} on {request.device} with {request.threads} threads, data apart")


def job_seconds(job: Job, one_pass: float) -> float:
    """Seconds of a run, test included, whose forward and backward pass over a batch takes `one_pass` seconds."""
    tests = FORWARD * job.source.test / job.batch_size
    return one_pass * (job.steps * job.contender.passes + tests)


def _times(planned: list[Job], device: str, console: Console) -> dict[tuple[str, int], float]:
    kinds = {(job.setting.network, job.batch_size): job for job in planned}
    times = {}
    for (network, batch), job in kinds.items():
        channels, *size = job.source.shape
        model = networks.make(network, channels, job.source.classes, seed=0).to(device)
        times[network, batch] = _pass_seconds(model, (channels, *size), job.source.classes, batch, device)
        title = networks.NETWORKS[network].title
        console.print(
            f"{title}: {1e3 * times[network, batch]:.1f} ms for a pass over a batch of {batch}", highlight=False
        )
    return times


def _pass_seconds(model: nn.Module, shape: tuple[int, ...], classes: int, batch: int, device: str) -> float:
    few = min(FEW, batch)
    _timed(model, shape, classes, few, device)  # the first pass allocates
    seconds = _timed(model, shape, classes, few, device)
    if seconds > QUICK and torch.device(device).type == "cpu":
        return seconds * batch / few
    _timed(model, shape, classes, batch, device)
    return min(_timed(model, shape, classes, batch, device) for _ in range(3))


def _timed(model: nn.Module, shape: tuple[int, ...], classes: int, images: int, device: str) -> float:
    x, labels = torch.randn(images, *shape, device=device), torch.randint(classes, (images,), device=device)
    begin = time.perf_counter()
    loss = cross_entropy(model(x), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()  # waits for the device
    return time.perf_counter() - begin


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.5 h or 21 days."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds < 10 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.3g} days"
