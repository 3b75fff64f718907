"""The figures, each drawn from its CSV file alone, as PNG, PDF and SVG beside it; to be read without colour."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from sharpkern.analysis.estimate import Estimate
from sharpkern.analysis.grid import read_grid
from sharpkern.analysis.kinds import KINDS
from sharpkern.analysis.rows import read_rows
from sharpkern.train.figure import STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = dict[str, dict[str, dict[float, list[tuple[float, float]]]]]  # perturbation, checkpoint, ρ: loss, accuracy
_LINEAR = 30  # times the lowest loss: up to there its axis is linear
_GOOD = 10  # percent below the best
_LEVELS = 12
_LOWEST = 1e-6  # of the highest loss: below, contours would show rounding


def draw_curves(data: Path) -> list[Path]:
    """Accuracy above, loss below, over ρ; one column a perturbation, one line a checkpoint ([F] Fig. 4).

    Noise is averaged over its seeds, with a band of one standard error.

    Args:
        data: `curves.csv`.

    Returns:
        The paths of the figure.
    """
    from matplotlib.figure import Figure

    curves: Curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in read_rows(data):
        values = float(row["loss"]), float(row["accuracy"])
        curves[row["perturbation"]][row["checkpoint"]][float(row["rho"])].append(values)
    figure = Figure(figsize=(2.9 * len(curves), 5.4), layout="constrained")
    rows = figure.subplots(2, len(curves), squeeze=False, sharex="col", sharey="row")
    for k, (name, lines) in enumerate(curves.items()):
        accuracy, loss = rows[0][k], rows[1][k]
        _lines(accuracy, lines, 1)
        _lines(loss, lines, 0)
        kind = KINDS[name]
        accuracy.set_title(f"{kind.title} noise" if kind.random else f"adversarial, {kind.title}", fontsize=10)
        loss.set_xlabel(rf"$\rho$ ({kind.unit})")
    rows[0][0].set_ylabel("accuracy (%)")
    rows[1][0].set_ylabel("loss")
    figure.align_ylabels()
    losses = [pair[0] for lines in curves.values() for points in lines.values() for x in points.values() for pair in x]
    if max(losses) > _LINEAR * min(losses):
        rows[1][0].set_yscale("log")
    handles, titles = rows[0][0].get_legend_handles_labels()
    figure.legend(
        handles, titles, loc="outside lower center", ncols=min(len(titles), 4), frameon=False, handlelength=3.5
    )
    return _save(figure, data)


def _lines(axes: Axes, lines: dict[str, dict[float, list[tuple[float, float]]]], which: int) -> None:
    for k, (name, points) in enumerate(lines.items()):
        color, dashes, marker = STYLES[k % len(STYLES)]
        rhos = sorted(points)
        estimates = [Estimate.of(pair[which] for pair in points[rho]) for rho in rhos]
        means = [x.mean for x in estimates]
        axes.plot(
            rhos, means, color=color, linestyle=dashes, linewidth=1.5, label=name,
            marker=marker, markersize=4, markevery=(k % 4, 4),
        )  # fmt: skip
        if len(points[rhos[0]]) > 1:
            low, high = [x.mean - x.error for x in estimates], [x.mean + x.error for x in estimates]
            axes.fill_between(rhos, low, high, color=color, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_surface(data: Path) -> list[Path]:
    """Contours of the loss over the plane, one panel a checkpoint; all have the same levels, even in log L.

    Args:
        data: `surface.csv`.

    Returns:
        The paths of the figure.
    """
    import numpy
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    panels: dict[str, dict[tuple[float, float], float]] = defaultdict(dict)
    for row in read_rows(data):
        panels[row["checkpoint"]][float(row["a"]), float(row["b"])] = float(row["loss"])
    losses = [loss for points in panels.values() for loss in points.values() if math.isfinite(loss)]
    levels = numpy.geomspace(max(min(losses), _LOWEST * max(losses)), max(losses), _LEVELS)
    figure = Figure(figsize=(3.6 * len(panels) + 1.0, 3.8), layout="constrained")
    row_of_axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (name, points) in zip(row_of_axes, panels.items(), strict=True):
        x, y = sorted({a for a, _ in points}), sorted({b for _, b in points})
        z = [[points[a, b] for a in x] for b in y]
        shades = axes.contourf(x, y, z, levels, cmap="Greys", norm=LogNorm(levels[0], levels[-1]), alpha=0.6)
        lines = axes.contour(x, y, z, levels, colors="#303030", linewidths=0.5)
        axes.clabel(lines, levels[1::2], fmt=lambda value: f"{value:.2g}", fontsize=7)
        axes.plot(0, 0, marker="+", color="black", markersize=9)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("$a$")
        axes.set_aspect("equal")
    row_of_axes[0].set_ylabel("$b$")
    bar = figure.colorbar(shades, ax=list(row_of_axes), format=lambda value, _: f"{value:.2g}", shrink=0.8)
    bar.set_ticks(levels[::2].tolist())
    bar.set_label("loss")
    return _save(figure, data)


def draw_grid(data: Path, epochs: int, noise: float) -> list[Path]:
    """Test accuracy over ρ × η, the mean over seeds; each cell says its number ([F] Fig. 5).

    The colours are for the cells within 10 points of the best. Others, where training failed, are white.

    Args:
        data: `grid.csv`.
        epochs: Of the cells that are drawn.
        noise: Of the cells that are drawn.

    Returns:
        The paths of the figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found: dict[tuple[float, float], list[float]] = defaultdict(list)
    for cell, accuracy in read_grid(data).items():
        if (cell.epochs, cell.noise) == (epochs, noise):
            found[cell.rho, cell.eta].append(accuracy)
    rhos, etas = sorted({rho for rho, _ in found}), sorted({eta for _, eta in found})
    means = {pair: sum(values) / len(values) for pair, values in found.items()}
    high = max(means.values())
    low = min(mean for mean in means.values() if mean >= high - _GOOD)
    table = [[means.get((rho, eta), float("nan")) for eta in etas] for rho in rhos]
    figure = Figure(figsize=(0.85 * len(etas) + 2.2, 0.62 * len(rhos) + 1.2), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"].with_extremes(under="white")
    image = axes.imshow(table, cmap=colours, origin="lower", aspect="auto", vmin=low, vmax=high)
    for (rho, eta), mean in means.items():
        dark = low <= mean < (low + high) / 2
        axes.text(
            etas.index(eta), rhos.index(rho), f"{mean:.1f}", ha="center", va="center", fontsize=9,
            color="white" if dark else "black",
        )  # fmt: skip
    axes.set_xticks(range(len(etas)), [f"{eta:g}" for eta in etas])
    axes.set_yticks(range(len(rhos)), [f"{rho:g}" for rho in rhos])
    axes.set_xlabel(r"$\eta$")
    axes.set_ylabel(r"$\rho$")
    failed = min(means.values()) < low
    figure.colorbar(image, ax=axes, label="test accuracy (%)", extend="min" if failed else "neither")
    return _save(figure, data)


def _save(figure: Figure, data: Path) -> list[Path]:
    paths = [data.with_suffix(ending) for ending in (".png", ".pdf", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=160)
    return paths
