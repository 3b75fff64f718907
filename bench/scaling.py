"""What a step costs: t = bytes / bandwidth + host + tensors · c, fitted to the rows of a CSV, printed with its errors.

The squares of relative errors are least, and no term is negative. What it says of larger models is arithmetic.

    python bench/scaling.py bench/data/cpu.csv
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharpkern.bench import results

CANDIDATES = ("sharpkern SAM sgd", "sharpkern SAM adamw")
# Name, parameters, tensors (9 a layer and 3; 32 and 80 layers) of decoders with gated layers.
MODELS = (("7B", 7e9, 291), ("70B", 70e9, 723))
DEVICES = (1, 8, 64, 512)


@dataclass(frozen=True)
class Model:
    """A fitted cost.

    Attributes:
        candidate: Whose step.
        threads: Of torch.
        bandwidth: Bytes a second; infinite where no row depends on bytes.
        host: Seconds a step.
        tensor: Seconds a tensor.
        errors: Relative errors of the fitted rows, by the name of their shapes.
    """

    candidate: str
    threads: int
    bandwidth: float
    host: float
    tensor: float
    errors: dict[str, float]

    def seconds(self, size: float, tensors: int) -> float:
        """The time of a step that moves so many bytes."""
        return size / self.bandwidth + self.host + tensors * self.tensor

    @property
    def typical(self) -> float:
        """The median of the errors' sizes."""
        return statistics.median(map(abs, self.errors.values()))

    @property
    def worst(self) -> tuple[str, float]:
        """Where the error is largest, and what it is there."""
        return max(self.errors.items(), key=lambda item: abs(item[1]))


def fit(rows: Sequence[dict[str, Any]], candidate: str, threads: int) -> Model | None:
    """Fits one candidate's whole steps.

    Args:
        rows: As `results.current` gives them.
        candidate: Whose.
        threads: Of torch.

    Returns:
        The model, or None where there are no more rows than terms.
    """
    base = candidate.rpartition(" ")[2]
    found = results.chosen(
        rows, table="steps", group=base, candidate=candidate, threads=threads, unit="us", dtype="float32"
    )
    if len(found) <= 3:
        return None
    terms = torch.tensor([[row["bytes"], 1.0, row["tensors"]] for row in found], dtype=torch.float64)
    seconds = torch.tensor([row["p50"] / 1e6 for row in found], dtype=torch.float64)
    weighted = terms / seconds[:, None]
    scale = weighted.norm(dim=0)
    best, least = torch.zeros(3, dtype=torch.float64), float("inf")
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        columns = list(chosen)
        solution = torch.zeros(3, dtype=torch.float64)
        ones = torch.ones(len(found), 1, dtype=torch.float64)
        solution[columns] = torch.linalg.lstsq(weighted[:, columns] / scale[columns], ones).solution[:, 0]
        solution /= scale
        residual = float((weighted @ solution - 1).square().sum())
        if bool((solution >= 0).all()) and residual < least:
            best, least = solution, residual
    errors = dict(zip((row["shapes"] for row in found), (weighted @ best - 1).tolist(), strict=True))
    inverse, host, tensor = best.tolist()
    return Model(candidate, threads, 1 / inverse if inverse else float("inf"), host, tensor, errors)


def models(rows: Sequence[dict[str, Any]]) -> list[Model]:
    """All that can be fitted, by candidate and number of threads."""
    threads = sorted({row["threads"] for row in rows if row["table"] == "steps"})
    fitted = (fit(rows, candidate, n) for candidate in CANDIDATES for n in threads)
    return [model for model in fitted if model is not None]


def bytes_a_parameter(rows: Sequence[dict[str, Any]], candidate: str) -> float:
    """What a step moves, from the rows."""
    row = next(row for row in rows if row["candidate"] == candidate and row["bytes"] and row["elements"])
    return float(row["bytes"] / row["elements"])


def extrapolated(rows: Sequence[dict[str, Any]], model: Model) -> list[tuple[str, int, float, float, float]]:
    """Model, devices, bytes that a device moves, seconds a step, bytes of the copy on a device."""
    moved = bytes_a_parameter(rows, model.candidate)
    return [
        (name, n, moved * count / n, model.seconds(moved * count / n, tensors), 4 * count / n)
        for name, count, tensors in MODELS
        for n in DEVICES
    ]


def main() -> None:
    """Prints the models and what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    rows = results.current(results.read(parser.parse_args().csv))
    for model in models(rows):
        where, worst = model.worst
        print(f"{model.candidate}, {model.threads} threads, {len(model.errors)} rows")
        print(f"  {model.bandwidth / 1e9:.1f} GB/s, {model.host * 1e6:.1f} µs, {model.tensor * 1e9:.1f} ns a tensor")
        print(f"  relative error {model.typical:.1%} in the median, {worst:+.1%} at worst ({where})")
        for name, n, size, seconds, extra in extrapolated(rows, model):
            what = f"{name} over {n} devices"
            print(f"  {what:22} {size / 1e9:9.2f} GB, {seconds:9.3f} s, {extra / 1e9:7.2f} GB of copy a device")


if __name__ == "__main__":
    main()
