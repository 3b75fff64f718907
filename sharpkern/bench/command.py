"""The command line of `sharpkern bench`."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from sharpkern.bench import figure, report, results
from sharpkern.bench.experiment import run
from sharpkern.bench.options import NAMES, SHORT, Options
from sharpkern.bench.shapes import SHAPES
from sharpkern.usage import require_extra

WIDTH = 100  # characters of a table where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a description and the options of `Options` to a parser; `main` takes what it parses."""
    parser.description = (
        "Measures single ops against a copy and whole optimizer steps against the peers that are installed. Gradients "
        "are ready: no forward or backward pass is run, but with --overhead. Prints tables; writes their rows as CSV, "
        "and figures."
    )
    default = Options()
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=(),
        help=f"some of {', '.join(SHAPES)}, or tensors x elements such as 65x1000 (default: {' '.join(SHORT)})",
    )
    parser.add_argument("--dtype", nargs="+", default=default.dtypes, help=f"some of {', '.join(NAMES)}")
    parser.add_argument(
        "--threads", nargs="+", type=int, default=(), help="each by itself, the most first (default: torch's)"
    )
    parser.add_argument("--repeats", type=int, default=0, help="turns (default: as many as fit a few seconds)")
    parser.add_argument("--full", action="store_true", help="all shapes, 10^3 to 10^9 elements, 1 to 2000 tensors")
    parser.add_argument(
        "--overhead", action="store_true", help="training steps of ResNet-20 and the optimizer's share in them instead"
    )
    parser.add_argument("--device", default=default.device, help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/bench-<date>-<time>)")


def main(args: argparse.Namespace) -> int:
    """Measures.

    Args:
        args: What a parser with `add_arguments` gave.

    Returns:
        The exit status, 0.

    Raises:
        MissingExtraError: A package of the extra `bench` that every run needs is not installed.
        UsageError: An option is wrong, or the folder has rows of another version.
        OSError: The folder of the results cannot be made or written to.
    """
    require_extra("sharpkern bench", "bench", "rich", "matplotlib")
    options = options_of(args)
    folder = options.out or Path("runs") / datetime.datetime.now().astimezone().strftime("bench-%Y%m%d-%H%M%S")
    path = folder / "bench.csv"
    measure(options, path)
    paths = figure.draw(results.current(results.read(path)), folder, ("png", "pdf"))
    if paths:
        print("figures:", *paths)
    return 0


def measure(options: Options, path: Path) -> None:
    """Runs what the options ask for; tables go to the terminal, rows to a CSV."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    count = run(options, path, lambda rows: console.print(report.table(rows)), console.print)
    console.print(f"appended {count} rows to {path}", highlight=False)


def options_of(args: argparse.Namespace) -> Options:
    """The options that a command line asks for."""
    return Options(
        shapes=tuple(args.shapes),
        dtypes=tuple(args.dtype),
        threads=tuple(args.threads),
        repeats=args.repeats,
        full=args.full,
        device=args.device,
        overhead=args.overhead,
        out=args.out,
    )
