"""All runs of a request, those that are finished left out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import sharpkern
from sharpkern.train import report as terminal
from sharpkern.train.data.images import Images, load
from sharpkern.train.options import Options, require_packages
from sharpkern.train.protocol import ledger, report
from sharpkern.train.protocol.job import Job, distinct, jobs
from sharpkern.train.protocol.request import Request
from sharpkern.train.protocol.start import make_start, save
from sharpkern.train.protocol.training import Training, train
from sharpkern.train.threads import threads

if TYPE_CHECKING:
    from rich.console import Console

RESULTS = "results.csv"


def run(request: Request, console: Console | None = None) -> None:
    """Trains what is not finished yet, appends a row for each run, and prints the tables.

    Args:
        request: What was asked for.
        console: Where to print; None is the standard output.

    Raises:
        MissingExtraError: A package of the extra `train` is not installed.
        UsageError: A preset cannot be run as asked, or the data's files are not right.
        OSError: The folder of the results cannot be made or written to.
    """
    require_packages()
    from rich.console import Console

    console = console or Console()
    request.out.mkdir(parents=True, exist_ok=True)
    results = request.out / RESULTS
    planned = jobs(request)
    rows = ledger.read(results)
    once = distinct(planned)
    left = [job for job in once if not ledger.find(rows, job)]
    if len(left) < len(once):
        console.print(f"{len(once) - len(left)} of {len(once)} runs are in {results}", soft_wrap=True)
    if left:
        data = load(request.data, request.data_dir)
        work = [job.steps * job.contender.passes for job in left]
        with threads(request.threads), terminal.progress(console, sum(work)) as advance:
            for job in left:
                _finish(job, data, request, results, partial(advance, job.title))
    report.show(planned, ledger.read(results), console)
    console.print(f"\nall runs: {results}", highlight=False, soft_wrap=True)


def _finish(job: Job, data: Images, request: Request, results: Path, advance: partial[None]) -> None:
    checkpoint = request.out / "checkpoints" / f"{job.key()}.pt"
    training = Training(job, data, _start(job, data, request), request.backend, request.device)
    passes = job.steps // job.epochs * job.contender.passes
    outcome = train(training, checkpoint, lambda epochs: advance(epochs * passes))
    if request.keep_weights:
        name = "-".join((job.preset.name, job.data, job.setting.network, job.contender.name, job.key()))
        save(outcome.weights, request.out / "weights" / f"{name}.pt")
    row = {
        "test_accuracy": outcome.test_accuracy,
        "train_loss": outcome.train_loss,
        "seconds": outcome.seconds,
        "device": request.device,
        "backend": Options(backend=request.backend, device=request.device).chosen_backend(),
        "threads": request.threads,
        "torch": torch.__version__,
        "sharpkern": sharpkern.__version__,
    }
    ledger.append(results, {**job.columns(), **{name: str(value) for name, value in row.items()}})
    checkpoint.unlink()


def _start(job: Job, data: Images, request: Request) -> Path | None:
    if not job.start or request.checkpoint is not None:
        return request.checkpoint
    path = request.out / "starts" / f"{job.setting.network}-{job.preset.start}.pt"
    make_start(job.setting.network, data, job.preset.start, path)
    return path
