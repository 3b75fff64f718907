"""`--dry-run`: what would run, and about how long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharpkern.train import networks
from sharpkern.train.protocol import ledger
from sharpkern.train.protocol.job import Job, distinct, jobs, kinds
from sharpkern.train.protocol.report import print_markdown
from sharpkern.train.protocol.request import Request
from sharpkern.train.protocol.runner import RESULTS, finished
from sharpkern.train.protocol.timing import Timer
from sharpkern.train.threads import threads

if TYPE_CHECKING:
    from rich.console import Console

WORDS = ("table", "trained on", "network", "method")
NUMBERS = ("epochs", "lr", "batch", "steps", "seeds left", "time")


def dry_run(request: Request, console: Console | None = None) -> None:
    """Prints the plan: a line for each setting and method with its steps and time, and the sum.

    Args:
        request: What would be run.
        console: Where to print; None is the standard output.

    Raises:
        UsageError: A preset cannot be run as asked.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    rows = ledger.read(request.out / RESULTS)
    table = Table(box=box.MARKDOWN)
    for column in WORDS:
        table.add_column(column, no_wrap=True)
    for column in NUMBERS:
        table.add_column(column, justify="right", no_wrap=True)
    total = 0.0
    with threads(request.threads):
        timer = Timer(request.backend, request.device)
        for same in kinds(distinct(jobs(request))):
            left = sum(not finished(job, rows, request) for job in same)
            seconds = left * timer.seconds(same[0]) if left else 0.0
            total += seconds
            table.add_row(*_cells(same[0], left, seconds))
    print_markdown(table, console)
    cores = f"{request.threads} thread{'s' * (request.threads > 1)}"
    text = f"about {duration(total)} on {request.device}, {cores}; reading data and training a start come on top"
    console.print(text, highlight=False, soft_wrap=True)


def _cells(job: Job, left: int, seconds: float) -> tuple[str, ...]:
    method = f"{job.contender.title} {job.options_text}".strip()
    network = networks.NETWORKS[job.setting.network].title
    numbers = (job.epochs, f"{job.lr:g}", job.batch_size, job.steps, left, duration(seconds))
    setting = (job.setting.short,) if job.data == "digits" else (job.setting.row, job.setting.column)
    where = [job.source.title, *(word for word in setting if word not in {"", job.source.title, network})]
    return job.preset.table, ", ".join(where), network, method, *map(str, numbers)


def duration(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.5 h or 21 days."""
    for limit, unit, name in ((100, 1, "s"), (6000, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds < 10 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.3g} days"
