"""`--dry-run`: what would run, and about how long, from steps of the actual networks timed here and now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharpkern.train import networks
from sharpkern.train.protocol import ledger
from sharpkern.train.protocol.job import jobs
from sharpkern.train.protocol.report import print_markdown
from sharpkern.train.protocol.request import Request
from sharpkern.train.protocol.run import RESULTS
from sharpkern.train.protocol.timing import Timer
from sharpkern.train.threads import threads

if TYPE_CHECKING:
    from rich.console import Console


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
        timer = Timer(request.backend, request.device)
        for kind in dict.fromkeys(tuple(job.columns().items())[:-1] for job in planned):
            same = [job for job in planned if tuple(job.columns().items())[:-1] == kind]
            left = sum(not ledger.find(rows, job) for job in same)
            job = same[0]
            seconds = left * timer.seconds(job) if left else 0.0
            total += seconds
            label = job.setting.short if job.data == "digits" else f"{job.setting.row} {job.setting.column}".strip()
            options = " ".join(f"{name}={value:g}" for name, value in job.options.items())
            cells = (job.preset.table, f"{job.source.title}, {label}", networks.NETWORKS[job.setting.network].title)
            numbers = (job.epochs, f"{job.lr:g}", job.batch_size, job.steps, left, duration(seconds))
            table.add_row(*cells, f"{job.contender.title} {options}".strip(), *map(str, numbers))
    print_markdown(table, console)
    console.print(
        f"about {duration(total)} on {request.device} with {request.threads} threads, the reading of data and a first training of starts apart"
    )


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.5 h or 21 days."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds < 10 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.3g} days"
