"""The command line of `sharpkern sharpness`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sharpkern.analysis import figure, grid, measure
from sharpkern.analysis.checkpoint import Subject, load_subject
from sharpkern.analysis.extra import require_extra
from sharpkern.analysis.report import Number, Stage, stages, table
from sharpkern.analysis.rows import write_rows
from sharpkern.train.options import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console

HERE = "sharpkern.analysis.checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a description and the options to a parser; `main` takes what it parses."""
    parser.description = (
        "Measures how flat the loss is around trained weights: worst-case and mean sharpness, the Hessian, curves over "
        "the radius of a perturbation, the loss over a plane. Prints a table; writes figures and their data as CSV."
    )
    add = parser.add_argument
    add("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help="files of a state_dict, compared side by side")
    add("--network", default=f"{HERE}:digits_network", help="module:factory of the network (default: %(default)s)")
    add(
        "--data",
        default=f"{HERE}:digits_test",
        help=f"module:callable that returns inputs and classes (default: %(default)s; also {HERE}:digits_training)",
    )
    add("--device", default="cpu", help="where to compute (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="of the Fisher's batches (default: %(default)s)")
    add("--seed", type=int, default=0, help="of noise, probes and directions (default: %(default)s)")
    add("--hessian", action="store_true", help="trace and largest eigenvalue of the Hessian")
    add("--curves", action="store_true", help="loss and accuracy over the radius: adversarial and Gaussian")
    add("--longest", type=float, help="largest radius of the curves (default: one for each perturbation; [F]: 5)")
    add("--surface", action="store_true", help="the loss over two random directions, filter normalised")
    add("--grid", action="store_true", help="train Fisher SAM over rho x eta on the digits; wants no checkpoint")
    add("--rhos", type=_numbers, default=grid.RHOS, help="of the grid (default: those of [F] Fig. 5)")
    add("--etas", type=_numbers, default=grid.ETAS, help="of the grid (default: those of [F] Fig. 5)")
    add("--epochs", type=int, default=40, help="of the grid (default: %(default)s)")
    add("--seeds", type=int, default=1, help="of the grid (default: %(default)s)")
    add("--noise", type=float, default=0.0, help="share of flipped training labels of the grid (default: %(default)s)")
    add("--out", type=Path, help="folder; a grid found there is continued (default: runs/sharpness-<date>-<time>)")


def main(args: argparse.Namespace) -> int:
    """Measures and draws.

    Args:
        args: What a parser with `add_arguments` gave.

    Returns:
        The exit status: 0, or 2 where an option is wrong, a package is missing or a file cannot be read or written; the
        reason goes to the standard error.
    """
    try:
        require_extra("sharpkern sharpness", "scipy", "matplotlib", "rich", "sklearn")
        _run(args)
    except (MissingExtraError, ValueError, OSError) as error:
        print(f"sharpkern sharpness: {error}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console

    if not args.checkpoints and not args.grid:
        raise ValueError("wanted a CHECKPOINT, or --grid")
    if args.longest is not None and not 0 < args.longest < math.inf:
        raise ValueError(f"--longest {args.longest}: wanted a finite number > 0")
    names = _names(args.checkpoints)
    subjects = [
        load_subject(name, path, args.network, args.data, args.device)
        for name, path in zip(names, args.checkpoints, strict=True)
    ]
    cells = grid.grid_cells(args.rhos, args.etas, args.seeds, args.epochs, args.noise) if args.grid else []
    out: Path = args.out or Path("runs") / f"sharpness-{datetime.now():%Y%m%d-%H%M%S}"
    out.mkdir(parents=True, exist_ok=True)
    console, written = Console(), []
    with stages(console) as stage:
        if subjects:
            written += _numbers_of(subjects, args, out, stage, console)
        if args.curves:
            rows = (row for subject in subjects for row in measure.curves(subject, args.longest, args.seed, stage))
            written += _figure(out / "curves.csv", rows, figure.draw_curves)
        if args.surface:
            rows = (row for subject in subjects for row in measure.surface(subject, args.seed, stage))
            written += _figure(out / "surface.csv", rows, figure.draw_surface)
        if cells:
            path = out / "grid.csv"
            grid.run_grid(cells, path, stage("grid", len(cells)))
            written += [path, *figure.draw_grid(path, args.epochs, args.noise)]
    for path in written:
        console.print(path, highlight=False, soft_wrap=True)


def _numbers_of(
    subjects: Sequence[Subject], args: argparse.Namespace, out: Path, stage: Stage, console: Console
) -> list[Path]:
    found: list[Number] = []
    for subject in subjects:
        found += measure.worst_case(subject, args.seed, stage)
        found += measure.trace_ratio(subject, args.batch_size, stage)
        if args.hessian:
            found += measure.hessian(subject, args.seed, stage)
    console.print(table(found, f"{len(subjects[0].targets)} examples"))
    return [write_rows(out / "sharpness.csv", (x.row() for x in found))]


def _figure(path: Path, rows: Iterable[dict[str, object]], draw: Callable[[Path], list[Path]]) -> list[Path]:
    return [write_rows(path, rows), *draw(path)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest names that tell the files apart: stems, or whole paths."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
