"""The command line of `sharpkern toy`."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from sharpkern.toy import figure
from sharpkern.toy.loss import SMOOTHED, Minimum, minima
from sharpkern.toy.path import SCENES, trajectory
from sharpkern.usage import require_extra, results_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a description and the options to a parser; `main` takes what it parses."""
    parser.description = (
        "The loss with a flat and a sharp minimum of [F] 3.1: the way of SGD, SAM, ASAM and Fisher SAM from starts "
        "where the first three end in the sharp one, and [V]'s four smoothed losses. Writes figures and their data."
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/toy-<date>-<time>)")


def main(args: argparse.Namespace) -> int:
    """Draws all.

    Args:
        args: What a parser with `add_arguments` gave.

    Returns:
        The exit status, 0.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: The folder of the results cannot be made or written to.
    """
    require_extra("sharpkern toy", "train", "matplotlib")
    out: Path = args.out or Path("runs") / f"toy-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    with results_folder(out):
        _run(out)
    return 0


def _run(out: Path) -> None:
    flat, sharp = found = minima()
    for name, minimum, printed in (("flat", flat, "0.51, 0.001"), ("sharp", sharp, "0.49, 0.006")):
        at = f"({minimum.theta[0]:.2f}, {minimum.theta[1]:.2f})"
        print(f"{name:5} minimum at {at:16} loss {minimum.loss:.3f}, trace {minimum.trace:.4f}; [F] prints {printed}")
    paths = {(name, method): trajectory(scene, method) for name, scene in SCENES.items() for method in scene.rho}
    for (name, method), steps in paths.items():
        end = steps[-1].theta
        where = min((flat, "flat"), (sharp, "sharp"), key=lambda pair: _distance(pair[0], end))[1]
        print(f"from {SCENES[name].start!s:14} {method:10} ends at ({end[0]:6.2f}, {end[1]:5.2f}): the {where} minimum")
    rows = (
        (name, method, k, *step.theta, *step.probe, *step.radii)
        for (name, method), steps in paths.items()
        for k, step in enumerate(steps)
    )
    columns = ["scene", "method", "step", "mu", "sigma", "probe_mu", "probe_sigma", "radius_mu", "radius_sigma"]
    written = [_write(out / "paths.csv", columns, rows)]
    written += figure.draw_paths(paths, SCENES, found, out / "paths")
    points = figure.grid(figure.SMOOTH)
    losses = {title: smoothed(points) for title, smoothed in SMOOTHED.items()}
    table = zip(
        *points.flatten(0, 1).T.tolist(), *(values.flatten().tolist() for values in losses.values()), strict=True
    )
    written.append(_write(out / "smoothed.csv", ["mu", "sigma", *losses], table))
    written += figure.draw_smoothed(losses, found, out / "smoothed")
    for path in written:
        print(path)


def _distance(minimum: Minimum, theta: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(minimum.theta, theta, strict=True))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path
