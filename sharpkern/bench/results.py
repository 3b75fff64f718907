"""Rows as they stand in a CSV file: one format for everything that is measured."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sharpkern.usage import UsageError

Row = Mapping[str, Any]

ABOUT = (
    *("date", "cpu", "cores", "governor", "mhz", "load", "huge_pages"),
    *("gpu", "python", "torch", "peers", "sharpkern", "commit", "threads"),
)
# What was measured: a candidate, and against which other one where it is a ratio; `group` was measured together.
KEY = ("table", "group", "shapes", "elements", "tensors", "dtype", "candidate", "against")
# bytes a call; microseconds, ratios, bytes a parameter or instructions; GB/s and their share of a copy's
FIGURES = ("unit", "bytes", "p20", "p50", "p80", "gb_s", "share_of_copy")
FIELDS = (*ABOUT, *KEY, *FIGURES)
INTEGERS = ("elements", "tensors", "threads", "bytes")
NUMBERS = ("p20", "p50", "p80", "gb_s", "share_of_copy")
SAME = ("table", "group", "shapes", "dtype", "threads", "candidate", "against")


def check(path: Path, fields: Sequence[str] = FIELDS) -> None:
    """Sees that rows can be appended to a CSV; where there is none, folder and empty file are made.

    Args:
        path: Of the file.
        fields: The columns.

    Raises:
        UsageError: The file is there and has other columns.
        OSError: It cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        found = next(csv.reader(file), list(fields))
    if found != list(fields):
        raise UsageError(f"{path} has the columns {','.join(found)}: wanted {','.join(fields)}; take another file")


def append(path: Path, rows: Iterable[Row], fields: Sequence[str] = FIELDS) -> None:
    """Appends rows to a CSV, which is made where there is none.

    Args:
        path: Of the file; its folder is made too.
        rows: With these fields, of which some may be missing.
        fields: The columns.

    Raises:
        UsageError: The file is there and has other columns.
        OSError: It cannot be made or written to.
    """
    check(path, fields)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        if not path.stat().st_size:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV: numbers as numbers, None where there is none.

    Args:
        path: Of the file.

    Returns:
        The rows; none where there is no such file.

    Raises:
        UsageError: A column is missing.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in FIELDS if name not in (reader.fieldnames or FIELDS)]
        if missing:
            raise UsageError(f"{path} has no columns {','.join(missing)}: wanted a CSV of the benchmark")
        return [{key: _value(key, text) for key, text in row.items()} for row in reader]


def _value(key: str, text: str) -> Any:
    if key in INTEGERS:
        return int(text) if text else None
    if key in NUMBERS:
        return float(text) if text else None
    return text


def key(row: Row) -> tuple[str, ...]:
    """What makes two rows the same measurement: all but where, when and with what."""
    return tuple(str(row[name]) for name in SAME)


def by_key(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The rows of every measurement, in their order."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def standing(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that count: those on the machine of the last row, of every measurement those of its last commit.

    Args:
        rows: In the order of their making.

    Returns:
        All runs of every measurement, one measurement after the other.
    """
    here = by_key(row for row in rows if all(row[name] == rows[-1][name] for name in ("cpu", "gpu")))
    return [row for same in here.values() for row in same if row["commit"] == same[-1]["commit"]]


def current(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the `standing` rows say.

    Args:
        rows: In the order of their making.

    Returns:
        A row a measurement, that of the last run, with the medians of the numbers over its runs.
    """
    return [
        {**same[-1], **{name: _median(row[name] for row in same) for name in NUMBERS}}
        for same in by_key(standing(rows)).values()
    ]


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def chosen(rows: Iterable[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]
