"""Learning curves, drawn from `curves.csv` alone."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sharpkern.train.results import mean_and_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[float, float]]  # mean and standard error of the test accuracy in percent, epoch by epoch

# Colour, dashes and the marker at the end: any one of them tells the methods apart, for print without colour.
STYLES = (
    ("#000000", "-", "o"),
    ("#888888", (0, (6, 2)), "s"),
    ("#0b5fa5", (0, (4, 1, 1, 1)), "^"),
    ("#d55e00", (0, (2, 1)), "D"),
    ("#009e73", (0, (1, 1)), "v"),
    ("#56b4e9", "-", "P"),
    ("#cc79a7", (0, (6, 2)), "X"),
    ("#7a5195", (0, (4, 1, 1, 1)), "<"),
    ("#b8860b", (0, (2, 1)), ">"),
    ("#5f9ea0", (0, (1, 1)), "p"),
    ("#a0522d", "-", "h"),
    ("#404040", (0, (1, 2)), "*"),
)


def read_curves(path: Path) -> dict[float, dict[str, Curve]]:
    """The curves of every condition and method, averaged over seeds.

    Args:
        path: Of a `curves.csv`.

    Returns:
        Share of flipped labels -> title of the method -> curve, in the order of the file.
    """
    points: dict[float, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[float(row["noise"])][row["title"]][int(row["epoch"])].append(float(row["test_accuracy"]))
    return {
        noise: {title: [mean_and_error(epochs[n]) for n in sorted(epochs)] for title, epochs in methods.items()}
        for noise, methods in points.items()
    }


def draw(curves: Path) -> tuple[Path, Path]:
    """Draws two panels a condition: mean test accuracy by epoch, with a band of one standard error; whole, and its top.

    Args:
        curves: Path of a `curves.csv`.

    Returns:
        The paths of the figure, PNG and PDF, next to the data.
    """
    from matplotlib.figure import Figure

    panels = read_curves(curves)
    figure = Figure(figsize=(max(4.8 * len(panels), 7.2), 7.6), layout="constrained")
    rows = figure.subplots(2, len(panels), squeeze=False)
    for whole, top, (noise, methods) in zip(*rows, panels.items(), strict=True):
        for axes in (whole, top):
            _panel(axes, methods)
        whole.set_title(f"{100 * noise:g} % of the training labels flipped" if noise else "clean labels", fontsize=11)
        top.set_ylim(*_range(methods))
    for row in rows:
        row[0].set_ylabel("test accuracy (%)")
    handles, titles = figure.axes[0].get_legend_handles_labels()
    columns = min(len(titles), 5)
    figure.legend(handles, titles, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5)
    png, pdf = curves.with_suffix(".png"), curves.with_suffix(".pdf")
    figure.savefig(png, dpi=160)
    figure.savefig(pdf)
    return png, pdf


def _panel(axes: Axes, methods: Mapping[str, Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    for k, (title, curve) in enumerate(methods.items()):
        color, dashes, marker = STYLES[k % len(STYLES)]
        epochs, means = range(1, len(curve) + 1), [mean for mean, _ in curve]
        axes.plot(
            epochs, means, color=color, linestyle=dashes, linewidth=1.5, marker=marker, markevery=[-1], label=title
        )
        low, high = [mean - error for mean, error in curve], [mean + error for mean, error in curve]
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _range(methods: Mapping[str, Curve]) -> tuple[float, float]:
    """What shows the better curves from a quarter of each on: the first epochs are alike and would flatten the rest."""
    best = max(curve[-1][0] for curve in methods.values())
    good = [curve for curve in methods.values() if curve[-1][0] > best - 8]
    shown = [mean for curve in good for mean, _ in curve[len(curve) // 4 :]]
    margin = 0.08 * (max(shown) - min(shown)) + 0.1
    return min(shown) - margin, max(shown) + margin
