"""The figures of docs/benchmarks.md, drawn from the CSV alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from sharpkern.bench import figure, results

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Draws what the rows give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, default=ROOT / "bench" / "data" / "cpu.csv")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--format", nargs="+", default=["svg"], help="such as svg, pdf, png")
    args = parser.parse_args()
    try:
        rows = results.current(results.read(args.csv))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    paths = figure.draw(rows, args.out, args.format)
    if not paths:
        parser.error(f"{args.csv} has no rows that a figure could be drawn from")
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
