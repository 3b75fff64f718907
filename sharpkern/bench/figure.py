"""The figures, drawn from rows alone. Each tells its lines apart by colour, dashes and marker, for print in grey."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpkern.bench.results import chosen
from sharpkern.train.figure import STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[dict[str, Any]]
Lines = dict[str, list[tuple[float, float]]]
OPS = ("sq_norm identity", "ascend identity", "descend momentum", "descend adamw")
STEPS = ("sharpkern SAM sgd", "sharpkern FisherSAM sgd")
REFERENCE = "sharpkern SAM sgd"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo")
EQUAL = re.compile(r"(\d+)x\d+")  # shapes of tensors of equal size


def _most_threads(rows: Rows) -> list[dict[str, Any]]:
    most = max((row["threads"] for row in rows), default=0)
    return chosen(rows, threads=most)


def _lines(axes: Axes, lines: Lines) -> None:
    for (color, dashes, marker), (name, points) in zip(STYLES, lines.items(), strict=False):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.5, marker=marker, markersize=5, label=name)
    axes.set_xscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, handlelength=3.5, loc="center left", bbox_to_anchor=(1.0, 0.5))


def roofline(rows: Rows, axes: Axes) -> bool:
    """GB/s over float32 elements, with the copy's line: single tensors of several sizes, else networks."""
    lines: Lines = {"copy": []}
    found = [row for row in _most_threads(chosen(rows, dtype="float32")) if row["gb_s"] is not None]
    single = chosen(found, tensors=1)
    if len({row["elements"] for row in single}) < 2:
        single = [row for row in found if not EQUAL.fullmatch(row["shapes"])]
    for row in single:
        if row["candidate"].startswith("copy") and row["table"] == "ops":
            lines["copy"].append((row["elements"], row["gb_s"]))
        elif row["candidate"] in (OPS if row["table"] == "ops" else STEPS) and row["group"] in {"ops", "sgd"}:
            lines.setdefault(row["candidate"], []).append((row["elements"], row["gb_s"]))
    if not lines["copy"]:
        return False
    _lines(axes, lines)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("float32 elements")
    axes.set_ylabel("GB/s, counted bytes")
    return True


def speedup(rows: Rows, axes: Axes) -> bool:
    """How many times as long others take for a SAM step with SGD and momentum, by shapes."""
    from matplotlib.ticker import LogLocator, NullLocator

    ratios = chosen(_most_threads(rows), table="steps", group="sgd", candidate=REFERENCE, unit="ratio")
    ratios = [
        row for row in ratios if not EQUAL.fullmatch(row["shapes"]) and not row["against"].startswith("sharpkern")
    ]
    names = list(dict.fromkeys(row["shapes"] for row in sorted(ratios, key=lambda row: row["elements"])))
    rivals = list(dict.fromkeys(row["against"] for row in ratios))
    if not ratios:
        return False
    height = 0.8 / len(rivals)
    for k, (rival, (color, _, _)) in enumerate(zip(rivals, STYLES, strict=False)):
        found = chosen(ratios, against=rival)
        y = [names.index(row["shapes"]) + (k - (len(rivals) - 1) / 2) * height for row in found]
        longer = [1 / row["p50"] - 1 for row in found]
        axes.barh(
            y, longer, 0.9 * height, 1, color=color, hatch=HATCHES[k % 7], edgecolor="white", lw=0, label=_short(rival)
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    whole = axes.get_figure(root=True)
    assert whole is not None
    whole.set_size_inches(8.0, max(4.6, 1 + 0.12 * len(names) * (len(rivals) + 2)))
    axes.set_xlabel("time of a step over that of sharpkern's SAM, SGD with momentum")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def _short(candidate: str) -> str:
    """Without method and base where a figure has one of each."""
    return candidate.replace(" SAM sgd", "").removesuffix(" sgd") + ("" if "SAM" in candidate else ", without SAM")


def tensors(rows: Rows, axes: Axes) -> bool:
    """Time of a step over the number of tensors that the same elements are split into."""
    found = [row for row in chosen(rows, table="steps", group="sgd", unit="us") if EQUAL.fullmatch(row["shapes"])]
    found = [row for row in _most_threads(found) if 1.9e6 <= row["elements"] <= 2.1e6]
    lines: Lines = {}
    for row in found:
        if not row["candidate"].startswith("copy"):
            lines.setdefault(_short(row["candidate"]), []).append((row["tensors"], row["p50"] / 1e3))
    if not any(len(points) > 1 for points in lines.values()):
        return False
    _lines(axes, lines)
    axes.set_yscale("log")
    axes.set_xlabel("tensors that hold 2 million elements")
    axes.set_ylabel("ms a step")
    return True


def memory(rows: Rows, axes: Axes) -> bool:
    """Peak bytes a parameter beyond weights, gradients and the state of the base update."""
    found = _most_threads(chosen(rows, table="memory"))
    if not found:
        return False
    found = chosen(found, shapes=max(found, key=lambda row: float(row["elements"]))["shapes"])
    names = [_short(row["candidate"]) for row in found]
    colors = ["#0b5fa5" if name.startswith("sharpkern") else "#aaaaaa" for name in names]
    extra = [max(row["p50"], 0.0) for row in found]
    bars = axes.barh(names, extra, color=colors)
    axes.bar_label(bars, [f"{size:.1f}" for size in extra], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"extra bytes a parameter at the peak of a step, {found[0]['shapes']}")
    axes.spines[["top", "right"]].set_visible(False)
    return True


FIGURES: dict[str, Callable[[Rows, Axes], bool]] = {
    "roofline": roofline,
    "speedup": speedup,
    "tensors": tensors,
    "memory": memory,
}


def draw(rows: Rows, folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Draws every figure for which there are rows.

    Args:
        rows: As `results.current` gives them.
        folder: Where the files go; it is made.
        suffixes: Such as "svg" and "png", a file each.

    Returns:
        The paths.
    """
    import matplotlib
    from matplotlib.figure import Figure

    paths = []
    for name, fill in FIGURES.items():
        figure = Figure(figsize=(8.0, 4.6), layout="constrained")
        if not fill(rows, figure.subplots()):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": name}):  # the same rows, the same file
            for suffix in suffixes:
                paths.append(folder / f"{name}.{suffix}")
                dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
                figure.savefig(paths[-1], dpi=160, metadata=dated)
    return paths
