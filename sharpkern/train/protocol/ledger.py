"""The one CSV file of all finished runs: a row is appended for each, none is ever changed."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sharpkern.train.protocol.job import COLUMNS, Job
from sharpkern.usage import UsageError

Row = Mapping[str, str]

RESULTS = ("test_accuracy", "train_loss", "seconds", "device", "backend", "threads", "torch", "sharpkern")


def read(path: Path) -> list[Row]:
    """The rows of finished runs.

    Args:
        path: Of the file, which need not exist.

    Returns:
        Name of a column -> text, row by row. A last line that a kill left without its end is no row.

    Raises:
        UsageError: The file has other columns.
    """
    lines = _whole(path).splitlines() if path.exists() else []
    if not lines:
        return []
    reader = csv.DictReader(lines)
    if tuple(reader.fieldnames or ()) != (*COLUMNS, *RESULTS):
        raise UsageError(f"{path}: its columns are not those of this version of sharpkern; give another --out")
    return list(reader)


def find(rows: Sequence[Row], job: Job, any_seed: bool = False) -> list[Row]:
    """The rows of a run, or of the run with any seed."""
    columns = job.columns()
    if any_seed:
        del columns["seed"]
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


def append(path: Path, row: Row) -> None:
    """Appends a row and waits until the disk has it; the rest of a torn last line is cut off first.

    Args:
        path: Of the file, made with its header if it is not there.
        row: Name of a column -> text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    whole = _whole(path)
    os.truncate(path, len(whole.encode()))
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *RESULTS), lineterminator="\n")
        if not whole:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def _whole(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1]
