"""What a comparison leaves behind, and the two CSV files that hold it."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharpkern.train.methods import METHODS
from sharpkern.train.options import Options


@dataclass(frozen=True)
class Epoch:
    """The state after one epoch: test accuracy in percent, and the mean training loss of its steps."""

    test_accuracy: float
    train_loss: float


@dataclass(frozen=True)
class Run:
    """One network trained once.

    Attributes:
        condition: "clean" or "noisy".
        method: Name in `METHODS`.
        seed: Of flips, initial weights and batches.
        steps: Optimizer steps taken.
        seconds: Of training, evaluation left out.
        optimizer_ms: Milliseconds a step in the optimizer's own calls, forward and backward left out; the median.
        curve: One entry an epoch; the last is the result, none is picked by its accuracy.
    """

    condition: str
    method: str
    seed: int
    steps: int
    seconds: float
    optimizer_ms: float
    curve: tuple[Epoch, ...]


@dataclass(frozen=True)
class Result:
    """All runs, and the folder with `runs.csv`, `curves.csv`, `curves.png` and `curves.pdf`."""

    runs: tuple[Run, ...]
    folder: Path


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, which is nan for a single value."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def write_runs(runs: Iterable[Run], options: Options, path: Path) -> None:
    """One row a run: what was run, how, and what came out (percent, seconds, milliseconds)."""
    same = {
        "batch_size": options.batch_size,
        "lr": options.lr,
        "backend": options.chosen_backend(),
        "device": options.device,
        "threads": options.threads,
        "torch": torch.__version__,
    }
    _write(
        path,
        (
            {
                "condition": run.condition,
                "noise": options.noise if run.condition == "noisy" else 0.0,
                "method": run.method,
                "seed": run.seed,
                "epochs": len(run.curve),
                "steps": run.steps,
                "test_accuracy": run.curve[-1].test_accuracy,
                "train_loss": run.curve[-1].train_loss,
                "seconds": run.seconds,
                "optimizer_ms": run.optimizer_ms,
                **same,
            }
            for run in runs
        ),
    )


def write_curves(runs: Iterable[Run], options: Options, path: Path) -> None:
    """One row an epoch of each run: all that the figure needs."""
    _write(
        path,
        (
            {
                "condition": run.condition,
                "noise": options.noise if run.condition == "noisy" else 0.0,
                "method": run.method,
                "title": METHODS[run.method].title,
                "seed": run.seed,
                "epoch": number,
                "test_accuracy": epoch.test_accuracy,
                "train_loss": epoch.train_loss,
            }
            for run in runs
            for number, epoch in enumerate(run.curve, start=1)
        ),
    )


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
