"""What speed is aimed at on the CPU, and how it is read from the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sharpkern.bench.candidates import PUBLISHED
from sharpkern.bench.results import chosen

Rows = Sequence[dict[str, Any]]
Found = Iterator[tuple[str, float]]
LARGE = ("wrn28_10", "vit_b", "bert_base")
NOTHING = "no row yet"


@dataclass(frozen=True)
class Bar:
    """A figure that is aimed at.

    Attributes:
        what: The figure.
        limit: What it has to be at most, or at least.
        find: What was measured, each with where.
        shown: How a value is written.
        least: Whether it has to be at least the limit.
    """

    what: str
    limit: float
    find: Callable[[Rows], Found]
    shown: str = "{:.2f}"
    least: bool = False

    def row(self, rows: Rows) -> tuple[str, str, str, str]:
        """The cells: figure, bar, worst and other values, whether it is met."""
        bar = f"{'≥' if self.least else '≤'} {self.shown.format(self.limit)}"
        found = sorted(self.find(rows), key=lambda item: item[1], reverse=not self.least)
        if not found:
            return self.what, bar, NOTHING, ""
        met = found[0][1] >= self.limit if self.least else found[0][1] <= self.limit
        values = [f"{self.shown.format(value)} ({where})" for where, value in found]
        measured = values[0] if len(values) == 1 else f"{values[0]} at worst, {values[-1]} at best, of {len(values)}"
        return self.what, bar, measured, "yes" if met else "**no**"


def _ratios(rows: Rows, shapes: Iterable[str], ours: Sequence[str], theirs: Sequence[str], **where: Any) -> Found:
    """Ratios of candidates by the beginning of the other one's name, on these shapes."""
    for row in chosen(rows, unit="ratio", **where):
        if row["shapes"] in shapes and row["candidate"] in ours and row["against"].startswith(tuple(theirs)):
            yield f"{row['shapes']}: {row['candidate']} / {row['against']}".replace("sharpkern ", ""), row["p50"]


def _of_copy(rows: Rows) -> Found:
    for row in chosen(rows, table="steps", unit="us", dtype="float32"):
        plain = row["candidate"] in {"sharpkern SAM sgd", "sharpkern SAM adamw"} and " " not in row["group"]
        if plain and row["shapes"] in LARGE and row["share_of_copy"] is not None:
            yield f"{row['shapes']}: {row['candidate']}".replace("sharpkern ", ""), row["share_of_copy"]


def _published(rows: Rows) -> Found:
    ours = [f"sharpkern {method} {base}" for method in ("SAM", "FisherSAM") for base in ("sgd", "adamw")]
    for base in ("sgd", "adamw"):
        yield from _ratios(rows, LARGE, ours, PUBLISHED, group=base)
        yield from _ratios(rows, LARGE, [f"sharpkern ASAM {base}"], PUBLISHED, group=f"{base} adaptive")


def _foreach(rows: Rows) -> Found:
    return _ratios(rows, LARGE, ["sharpkern SAM sgd", "sharpkern SAM adamw"], ["foreach SAM"])


def _one(shapes: str, against: str) -> Callable[[Rows], Found]:
    return lambda rows: _ratios(rows, [shapes], ["sharpkern SAM sgd"], [against], group="sgd")


def _bf16(rows: Rows) -> Found:
    for base in ("sgd", "adamw"):
        ours, theirs = f"sharpkern SAM {base} bfloat16", f"sharpkern SAM {base}"
        yield from _ratios(chosen(rows, against=theirs), LARGE, [ours], [theirs])


def _noise(rows: Rows) -> Found:
    return _ratios(rows, ["wrn28_10"], ["ascend noise"], ["ascend identity"], dtype="float32")


def _import(rows: Rows) -> Found:
    return ((row["candidate"], row["p50"] / 1e3) for row in chosen(rows, table="import"))


BARS = (
    Bar(
        "whole step, WRN-28-10, ViT-B, BERT-base: counted bytes over time, of a streaming copy",
        1,
        _of_copy,
        "{:.0%}",
        True,
    ),
    Bar("the same shapes: SAM, ASAM, Fisher SAM, SGD momentum and AdamW, of the best published peer", 0.40, _published),
    Bar("the same shapes: of the tightest exact in-place `_foreach` SAM over torch's fused base", 0.52, _foreach),
    Bar("ResNet-20, whole SAM step, of torch's fused SGD step without SAM", 0.75, _one("resnet20", "torch fused")),
    Bar("161 tensors of 256 elements, whole step, of eager SAM", 0.04, _one("small", "eager SAM"), "{:.3f}"),
    Bar("2000 tensors of 1000 elements, whole step, of eager SAM", 0.05, _one("many", "eager SAM"), "{:.3f}"),
    Bar("bf16 weights and gradients, whole step, of fp32", 0.70, _bf16),
    Bar("WRN-28-10, the perturbation of RandomSAM, of SAM's", 2.5, _noise),
    Bar("import of sharpkern beyond torch's, ms", 60, _import, "{:.0f}"),
)
