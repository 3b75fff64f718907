"""All runs of a request, those that are finished left out."""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Sequence
from contextlib import contextmanager
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
from sharpkern.train.protocol.training import Outcome, Training, train
from sharpkern.train.threads import threads
from sharpkern.usage import UsageError, results_folder

if TYPE_CHECKING:
    from rich.console import Console

RESULTS = "results.csv"
LOCK = ".lock"


def run(request: Request, console: Console | None = None) -> None:
    """Trains what is not finished yet, appends a row for each run, and prints the tables.

    Args:
        request: What was asked for.
        console: Where to print; None is the standard output.

    Raises:
        MissingExtraError: A package of the extra `train` is not installed.
        UsageError: A preset cannot be run as asked, the data's files are not right, or another run uses the folder.
        OSError: The folder of the results cannot be made or written to.
    """
    require_packages()
    from rich.console import Console

    console = console or Console()
    planned = jobs(request)
    with results_folder(request.out), locked(request.out):
        _run(request, planned, console)


def _run(request: Request, planned: Sequence[Job], console: Console) -> None:
    results = request.out / RESULTS
    rows = ledger.read(results)
    once = distinct(planned)
    left = [job for job in once if not finished(job, rows, request)]
    if len(left) < len(once):
        console.print(f"{len(once) - len(left)} of {len(once)} runs are in {results}", soft_wrap=True)
    if again := sum(bool(ledger.find(rows, job)) for job in left):
        console.print(f"{again} runs left no weights and are trained again; their rows stay", soft_wrap=True)
    if left:
        data = load(request.data, request.data_dir)
        work = [job.steps * job.contender.passes for job in left]
        with threads(request.threads), terminal.progress(console, sum(work)) as advance:
            for job in left:
                known = bool(ledger.find(rows, job))
                _finish(job, data, request, results, known, partial(advance, job.title))
    report.show(planned, ledger.read(results), console)
    console.print(f"\nall runs: {results}", highlight=False, soft_wrap=True)


def finished(job: Job, rows: Sequence[ledger.Row], request: Request) -> bool:
    """Whether a run is left out: it has a row and, where weights are kept, a file of them.

    Args:
        job: The run.
        rows: Of the CSV file.
        request: What was asked for.

    Returns:
        False where it has to be trained.
    """
    return bool(ledger.find(rows, job)) and (not request.keep_weights or weights_file(job, request).exists())


def weights_file(job: Job, request: Request) -> Path:
    """Where `keep_weights` leaves the weights of a run."""
    name = "-".join((job.preset.name, job.data, job.setting.network, job.contender.name, job.key()))
    return request.out / "weights" / f"{name}.pt"


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Keeps a folder for one process: two would append to one file and share checkpoints.

    Args:
        folder: Which has to be there; a file named `LOCK` stays in it.

    Raises:
        UsageError: Another process has it.
    """
    with (folder / LOCK).open("w") as file:  # closing it, or the end of the process, gives the lock back
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"--out {folder}: another run uses this folder") from error
        yield


def _finish(job: Job, data: Images, request: Request, results: Path, known: bool, advance: partial[None]) -> None:
    checkpoint = request.out / "checkpoints" / f"{job.key()}.pt"
    training = Training(job, data, _start(job, data, request), request.backend, request.device)
    passes = job.steps // job.epochs * job.contender.passes
    outcome = train(training, checkpoint, lambda epochs: advance(epochs * passes))
    if request.keep_weights:
        save(outcome.weights, weights_file(job, request))
    if not known:
        _append(results, job, outcome, request)
    checkpoint.unlink()


def _append(results: Path, job: Job, outcome: Outcome, request: Request) -> None:
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


def _start(job: Job, data: Images, request: Request) -> Path | None:
    if not job.start or request.checkpoint is not None:
        return request.checkpoint
    path = request.out / "starts" / f"{job.setting.network}-{job.preset.start}.pt"
    make_start(job.setting.network, data, job.preset.start, path)
    return path
