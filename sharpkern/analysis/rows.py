"""Rows of CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes a CSV file as a whole: whoever is killed meanwhile leaves the file of before.

    Args:
        path: Of the file.
        rows: At least one; all have the columns of the first.

    Returns:
        The path.
    """
    rows = list(rows)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, path)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Args:
        path: Of the file.

    Returns:
        One mapping a row, from column to text.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
