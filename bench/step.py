"""Whole steps and single ops as `sharpkern bench` measures them; rows are appended to `<out>/cpu.csv`, to be committed.

python bench/step.py                     two networks
python bench/step.py --full              everything; takes hours
python bench/step.py --overhead          whole training steps, to `<out>/overhead.csv`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sharpkern.bench.command import add_arguments, measure, options_of


def main() -> int:
    """Measures, appends to the CSV and gives the exit status."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(out=Path(__file__).parent / "data")
    args = parser.parse_args()
    if not (args.full or args.overhead or args.shapes):
        args.shapes = ["resnet20", "wrn28_10"]
    try:
        measure(options_of(args), args.out / ("overhead.csv" if args.overhead else "cpu.csv"))
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
