"""The command line of `sharpkern sharpness`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sharpkern.analysis import figure, grid, measure
from sharpkern.analysis.checkpoint import Choice, Subject, load_subjects
from sharpkern.analysis.grid import Cell
from sharpkern.analysis.report import Number, Stage, stages, table
from sharpkern.analysis.rows import write_rows
from sharpkern.train.data.images import SOURCES
from sharpkern.train.networks import NETWORKS
from sharpkern.usage import UsageError, require_extra, results_folder, usable_device

if TYPE_CHECKING:
    from rich.console import Console

GRID = ("rhos", "etas", "epochs", "seeds", "noise")  # options of the grid alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a description and the options to a parser; `main` takes what it parses."""
    parser.description = (
        "Measures how flat the loss is around trained weights: worst-case and mean sharpness, the Hessian, curves over "
        "the radius of a perturbation, the loss over a plane. Prints a table; writes figures and their data as CSV."
    )
    add, default = parser.add_argument, Choice()
    add("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT", help="files of a state_dict, compared side by side")
    add(
        "--network",
        default=default.network,
        help=f"{', '.join(NETWORKS)}, or module:factory of a network of your own (default: %(default)s)",
    )
    add(
        "--data",
        default=default.data,
        help=f"test images of {', '.join(SOURCES)}, or module:callable of what returns inputs and classes "
        "(default: %(default)s)",
    )
    add("--data-dir", type=Path, help="folder with CIFAR's files")
    add("--examples", type=int, help="look at the first so many (default: all)")
    add("--device", default=default.device, help="where to compute (default: %(default)s)")
    add("--batch-size", type=int, default=128, help="of the Fisher's batches (default: %(default)s)")
    add("--seed", type=int, default=0, help="of noise, probes and directions (default: %(default)s)")
    add("--hessian", action="store_true", help="trace and largest eigenvalue of the Hessian")
    add("--curves", action="store_true", help="loss and accuracy over the radius: adversarial and Gaussian")
    add("--longest", type=float, help="largest radius of the curves (default: one for each perturbation; [F]: 5)")
    add("--surface", action="store_true", help="the loss over two random directions, filter normalised")
    add("--grid", action="store_true", help="train Fisher SAM over rho x eta on the digits; wants no checkpoint")
    add("--rhos", type=_numbers, help="of the grid (default: those of [F] Fig. 5)")
    add("--etas", type=_numbers, help="of the grid (default: those of [F] Fig. 5)")
    add("--epochs", type=int, help=f"of the grid (default: {Cell.epochs})")
    add("--seeds", type=int, help="of the grid (default: 1)")
    add("--noise", type=float, help=f"share of flipped training labels of the grid (default: {Cell.noise})")
    add("--out", type=Path, help="folder; a grid found there is continued (default: runs/sharpness-<date>-<time>)")


def main(args: argparse.Namespace) -> int:
    """Measures and draws.

    Args:
        args: What a parser with `add_arguments` gave.

    Returns:
        The exit status, 0.

    Raises:
        MissingExtraError: A package of the extra `analysis` is not installed.
        UsageError: An option is wrong, or a file is not what it should be.
        OSError: The folder of the results cannot be made or written to.
    """
    require_extra("sharpkern sharpness", "analysis", "scipy", "matplotlib", "rich", "sklearn")
    _check(args)
    choice = Choice(args.network, args.data, args.data_dir, args.examples, args.device)
    subjects = load_subjects(_named(args.checkpoints), choice) if args.checkpoints else []
    given = {name: getattr(args, name) for name in GRID if getattr(args, name) is not None}
    cells = grid.grid_cells(**given) if args.grid else []
    out: Path = args.out or Path("runs") / f"sharpness-{datetime.now():%Y%m%d-%H%M%S}"
    with results_folder(out):
        _measure(args, subjects, cells, out)
    return 0


def _measure(args: argparse.Namespace, subjects: Sequence[Subject], cells: Sequence[Cell], out: Path) -> None:
    path = out / "grid.csv"
    if cells and path.exists():
        grid.read_grid(path)  # one that is no grid is told now
    from rich.console import Console

    console = Console()
    written: list[Path] = []
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
            grid.run_grid(cells, path, stage("grid", len(cells)), usable_device(args.device))
            written += [path, *figure.draw_grid(path, cells[0].epochs, cells[0].noise)]
    for path in written:
        console.print(path, highlight=False, soft_wrap=True)


def _check(args: argparse.Namespace) -> None:
    """Refuses what could not be done, before hours are spent on the rest."""
    if not args.checkpoints and not args.grid:
        raise UsageError("wanted a CHECKPOINT, or --grid")
    for name in ("hessian", "curves", "surface"):
        if getattr(args, name) and not args.checkpoints:
            raise UsageError(f"wanted a CHECKPOINT for --{name}")
    for name in GRID:
        if getattr(args, name) is not None and not args.grid:
            raise UsageError(f"--{name} needs --grid")
    if args.longest is not None and not args.curves:
        raise UsageError("--longest needs --curves")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}: wanted an integer >= 0")
    if args.batch_size < 1:
        raise UsageError(f"--batch-size {args.batch_size}: wanted at least 1")
    if args.longest is not None and not 0 < args.longest < math.inf:
        raise UsageError(f"--longest {args.longest}: wanted a finite number > 0")


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


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by the shortest names that tell them apart: stems, or whole paths."""
    stems = [path.stem for path in paths]
    return dict(zip(stems if len(set(stems)) == len(stems) else map(str, paths), paths, strict=True))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
