"""Two CSV files of `bench/step.py` or `bench/instructions.py`: what got slower, by ratio, beyond the noise of both.

    python bench/compare.py OLD.csv NEW.csv        exit status 1 if something got worse

Of each file count the rows on the machine of its last row, and of every measurement those of its last commit. Noise is
taken from these rows: the spread of turns (p20 to p80) and, where that commit has several runs, that between them. A
ratio counts where it exceeds 1 + tolerance and three standard deviations of that. Times are compared between runs on
one machine only; ratios, shares of the copy's rate, memory and instructions between any.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpkern.bench import results

Row = dict[str, Any]
FIFTHS = 2 * 0.8416  # standard deviations between the 20th and the 80th percentile of a normal distribution


@dataclass(frozen=True)
class Change:
    """One measurement in both files.

    Attributes:
        name: What was measured.
        ratio: New over old, such that more is worse.
        bound: What the ratio may be.
    """

    name: str
    ratio: float
    bound: float

    @property
    def worse(self) -> bool:
        """Whether it got worse beyond the noise."""
        return self.ratio > self.bound


def middle(rows: Sequence[Row], column: str) -> tuple[float, float]:
    """The median over runs, and the relative standard deviation of turns and runs."""
    values = [row[column] for row in rows]
    turns = [(row["p80"] - row["p20"]) / row["p50"] / FIFTHS for row in rows if row["p20"] is not None]
    between = statistics.stdev(values) / statistics.mean(values) if len(values) > 1 else 0.0
    return statistics.median(values), math.hypot(statistics.median(turns) if turns else 0.0, between)


def change(name: str, old: Sequence[Row], new: Sequence[Row], column: str, tolerance: float) -> Change | None:
    """The ratio of two measurements, or None where there is nothing to put in relation."""
    (before, noise), (after, more) = middle(old, column), middle(new, column)
    if before <= 0 or after <= 0:
        return None
    ratio = before / after if column == "share_of_copy" else after / before
    return Change(name, ratio, 1 + max(tolerance, 3 * math.hypot(noise, more)))


def compare(old: Sequence[Row], new: Sequence[Row], tolerance: float) -> tuple[list[Change], list[str]]:
    """All changes, and the names of what only the old file has.

    Args:
        old: Rows in the order of their making.
        new: The same.
        tolerance: What a ratio may be above 1, whatever the noise.

    Returns:
        Changes in the order of the new file, and names.
    """
    old, new = results.standing(old), results.standing(new)
    before, after = results.by_key(old), results.by_key(new)
    machine = {(row["cpu"], row["gpu"]) for row in (*old, *new)}
    changes = []
    for key, rows in after.items():
        if key not in before:
            continue
        name, unit = " | ".join(part for part in key if part), rows[0]["unit"]
        columns = ["p50"] if unit != "us" or len(machine) == 1 else []
        if all(row["share_of_copy"] is not None for row in (*before[key], *rows)):
            columns.append("share_of_copy")
        for column in columns:
            found = change(f"{name} [{unit if column == 'p50' else 'of copy'}]", before[key], rows, column, tolerance)
            changes += [found] if found else []
    missing = [" | ".join(part for part in key if part) for key in before if key not in after]
    return changes, missing


def main() -> int:
    """Prints what changed and gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.05, help="what a ratio may be above 1 (default: 0.05)")
    args = parser.parse_args()
    try:
        old, new = results.read(args.old), results.read(args.new)
    except (OSError, ValueError, csv.Error) as error:
        parser.error(str(error))
    for path, rows in ((args.old, old), (args.new, new)):
        if not rows:
            parser.error(f"{path} has no rows" if path.exists() else f"{path}: there is no such file")
    changes, missing = compare(old, new, args.tolerance)
    if not changes:
        parser.error("the two files have no measurement in common: nothing can be compared")
    return report(changes, missing)


def report(changes: Sequence[Change], missing: Sequence[str]) -> int:
    """Prints what got worse, what is missing and a summary; gives the exit status."""
    worse = [c for c in changes if c.worse]
    for c in sorted(worse, key=lambda c: c.ratio / c.bound, reverse=True):
        print(f"WORSE    {c.ratio:7.3f} (bound {c.bound:.3f})  {c.name}")
    for name in missing:
        print(f"missing  {name}")
    overall = math.exp(statistics.mean(math.log(c.ratio) for c in changes))
    print(
        f"{len(changes)} compared, {len(worse)} worse, {len(missing)} missing; geometric mean of ratios {overall:.3f}"
    )
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
