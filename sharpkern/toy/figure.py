"""The figures of the toy: trajectories after [F] Fig. 1-3, smoothed losses after [V] Fig. 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sharpkern.toy.loss import Minimum, loss
from sharpkern.toy.path import Scene, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Paths = Mapping[tuple[str, str], Sequence[Step]]  # by scene and method
MU, SIGMA = (-45.0, 50.0), (2.0, 50.0)
SMOOTH = (10.0, 50.0)  # of σ: nearer to 0 than ρ, where the loss is infinite, the smoothed ones mean little
_PROBES = (0, 8, 24, 60)  # the steps whose neighbourhood is drawn
_LEVELS = 26
_HIGHEST = 6.0  # of the contours: beyond, the loss has nothing to show


def grid(sigma: tuple[float, float] = SIGMA, columns: int = 96, rows: int = 64) -> Tensor:
    """Points (μ, σ) over the range.

    Args:
        sigma: The range of σ.
        columns: How many along μ.
        rows: How many along σ.

    Returns:
        Of shape (rows, columns, 2), float64.
    """
    x = torch.linspace(*MU, columns, dtype=torch.float64)
    y = torch.linspace(*sigma, rows, dtype=torch.float64)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def draw_paths(paths: Paths, scenes: Mapping[str, Scene], minima: tuple[Minimum, Minimum], out: Path) -> list[Path]:
    """One panel a scene and method but SGD: contours, minima, the path, and at some steps neighbourhood and probe.

    Args:
        paths: The trajectories.
        scenes: Theirs.
        minima: The flat and the sharp one.
        out: Path of the figure, without its ending.

    Returns:
        The paths of the figure, PNG and PDF.
    """
    from matplotlib.figure import Figure

    shown = [[(name, m) for m in scene.rho if m != "SGD"] for name, scene in scenes.items()]
    figure = Figure(figsize=(5.2 * len(shown[0]), 4.1 * len(shown)), layout="constrained")
    for row, keys in zip(figure.subplots(len(shown), len(shown[0]), squeeze=False), shown, strict=True):
        for axes, (name, method) in zip(row, keys, strict=True):
            _contours(axes, grid(), loss(grid()), minima)
            _path(axes, paths[name, "SGD"], "#777777", (0, (1, 1.5)), "SGD with momentum")
            _path(axes, paths[name, method], "#0b5fa5", "-", method)
            _neighbourhoods(axes, paths[name, method])
            rho = scenes[name].rho[method]
            axes.set_title(f"{method}, $\\rho$ = {rho:g} at the start (as [F] {scenes[name].figure})", fontsize=10)
            axes.legend(loc="upper right", fontsize=8, framealpha=0.9)
    return _save(figure, out)


def draw_smoothed(losses: Mapping[str, Tensor], minima: tuple[Minimum, Minimum], out: Path) -> list[Path]:
    """One panel a smoothed loss.

    Args:
        losses: Their values over `grid(SMOOTH)`, by title.
        minima: Of the loss itself.
        out: Path of the figure, without its ending.

    Returns:
        The paths of the figure, PNG and PDF.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 8.2), layout="constrained")
    for axes, letter, (title, values) in zip(figure.subplots(2, 2).flat, "ABCD", losses.items(), strict=True):
        _contours(axes, grid(SMOOTH), values, minima)
        axes.set_title(f"{letter}: {title}", fontsize=10)
    return _save(figure, out)


def _contours(axes: Axes, points: Tensor, values: Tensor, minima: tuple[Minimum, Minimum]) -> None:
    low = float(values.min())
    levels = [low + (_HIGHEST - low) * (k / _LEVELS) ** 2 for k in range(_LEVELS + 1)]
    x, y = points.unbind(-1)
    axes.contourf(x, y, values, levels, cmap="Greys", alpha=0.55, extend="max")
    axes.contour(x, y, values, levels, colors="#404040", linewidths=0.35)
    for minimum, marker, color, name in zip(minima, "*o", ("#009e73", "#d55e00"), ("flat", "sharp"), strict=True):
        size = 13 if marker == "*" else 7
        axes.plot(
            *minimum.theta, marker=marker, markersize=size, color=color, markeredgecolor="white", linestyle="none",
            label=f"{name} minimum", zorder=5,
        )  # fmt: skip
    axes.set_xlim(*MU)
    axes.set_ylim(float(y.min()), float(y.max()))
    axes.set_xlabel(r"$\mu$")
    axes.set_ylabel(r"$\sigma$")


def _path(axes: Axes, steps: Sequence[Step], color: str, dashes: object, label: str) -> None:
    x, y = zip(*(step.theta for step in steps), strict=True)
    axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.6, label=label, zorder=3)
    axes.plot(x[0], y[0], marker="D", color=color, markersize=6, markeredgecolor="white", zorder=4)


def _neighbourhoods(axes: Axes, steps: Sequence[Step]) -> None:
    from matplotlib.patches import Ellipse

    for step in (steps[k] for k in _PROBES):
        a, b = step.radii
        axes.add_patch(Ellipse(step.theta, 2 * a, 2 * b, facecolor="#f0c000", alpha=0.3, edgecolor="#806000", zorder=2))
        (x, y), (dx, dy) = step.theta, step.probe
        arrow = {"arrowstyle": "-|>", "color": "#d55e00", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x + dx, y + dy), (x, y), arrowprops=arrow, zorder=4)


def _save(figure: Figure, out: Path) -> list[Path]:
    paths = [out.with_suffix(ending) for ending in (".png", ".pdf")]
    for path in paths:
        figure.savefig(path, dpi=160)
    return paths
