"""What a step costs: t = bytes / bandwidth + host + tensors · c, fitted to the rows of a CSV, printed with its errors.

There are two bandwidths: of rows whose float32 weights take `BEYOND` or more, which no cache keeps until the next step,
and of all others. The squares of relative errors are least, and no term is negative. What it says of larger models is
arithmetic, with the bandwidth beyond the caches.

    python bench/scaling.py bench/data/cpu.csv
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharpkern.bench import results
from sharpkern.bench.suite import BEYOND

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
        bandwidth: Bytes a second within the caches; infinite where no row there depends on bytes.
        beyond: Bytes a second beyond them; None where there is no row.
        host: Seconds a step.
        tensor: Seconds a tensor.
        within_errors: Relative errors of the fitted rows within the caches, by the name of their shapes.
        beyond_errors: Those beyond them.
    """

    candidate: str
    threads: int
    bandwidth: float
    beyond: float | None
    host: float
    tensor: float
    within_errors: dict[str, float]
    beyond_errors: dict[str, float]

    def seconds(self, size: float, tensors: int) -> float:
        """The time of a step that moves so many bytes, none of which a cache holds."""
        assert self.beyond is not None
        return size / self.beyond + self.host + tensors * self.tensor


def told(errors: Mapping[str, float]) -> tuple[str, str]:
    """Relative errors: the median of their sizes, the largest with where it is; nothing where there are none."""
    if not errors:
        return "", ""
    where, worst = max(errors.items(), key=lambda item: abs(item[1]))
    return f"{statistics.median(map(abs, errors.values())):.0%}", f"{worst:+.0%} ({where})"


def is_beyond(row: Mapping[str, Any]) -> bool:
    """Whether a row's weights are more than a cache keeps."""
    return 4 * int(row["elements"]) >= BEYOND


def fit(rows: Sequence[dict[str, Any]], candidate: str, threads: int) -> Model | None:
    """Fits one candidate's whole steps.

    Args:
        rows: As `results.current` gives them.
        candidate: Whose.
        threads: Of torch.

    Returns:
        The model, or None where there are no more rows within the caches than terms.
    """
    base = candidate.rpartition(" ")[2]
    found = results.chosen(
        rows, table="steps", group=base, candidate=candidate, threads=threads, unit="us", dtype="float32"
    )
    large = [is_beyond(row) for row in found]
    if large.count(False) <= 3:
        return None
    table = [
        [0.0 if far else row["bytes"], row["bytes"] if far else 0.0, 1.0, row["tensors"]]
        for row, far in zip(found, large, strict=True)
    ]
    terms = torch.tensor(table, dtype=torch.float64)
    seconds = torch.tensor([row["p50"] / 1e6 for row in found], dtype=torch.float64)
    weighted = terms / seconds[:, None]
    scale = weighted.norm(dim=0)
    usable = [column for column in range(4) if scale[column] > 0]
    best, least = torch.zeros(4, dtype=torch.float64), float("inf")
    for chosen in itertools.chain.from_iterable(itertools.combinations(usable, n) for n in (1, 2, 3, 4)):
        columns = list(chosen)
        solution = torch.zeros(4, dtype=torch.float64)
        ones = torch.ones(len(found), 1, dtype=torch.float64)
        solution[columns] = torch.linalg.lstsq(weighted[:, columns] / scale[columns], ones).solution[:, 0]
        solution[columns] /= scale[columns]
        residual = float((weighted @ solution - 1).square().sum())
        if bool((solution >= 0).all()) and residual < least:
            best, least = solution, residual
    errors = list(zip((row["shapes"] for row in found), (weighted @ best - 1).tolist(), large, strict=True))
    within, beyond = ({name: error for name, error, far in errors if far == side} for side in (False, True))
    *inverse, host, tensor = best.tolist()
    near, far = (1 / x if x else float("inf") for x in inverse)
    return Model(candidate, threads, near, far if beyond else None, host, tensor, within, beyond)


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
    """Model, devices, bytes that a device moves, seconds a step, bytes of the copy on a device.

    With the bandwidth beyond the caches, however small a device's part is; nothing where that is not known.
    """
    if model.beyond is None:
        return []
    moved = bytes_a_parameter(rows, model.candidate)
    return [
        (name, n, moved * count / n, model.seconds(moved * count / n, tensors), 4 * count / n)
        for name, count, tensors in MODELS
        for n in DEVICES
    ]


def main() -> int:
    """Prints the models and what they say; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    path = parser.parse_args().csv
    try:
        rows = results.current(results.read(path))
    except (OSError, ValueError, csv.Error) as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"{path} has no rows" if path.exists() else f"{path}: there is no such file")
    fitted = models(rows)
    if not fitted:
        parser.error(f"{path} has no more than three whole steps of {' or of '.join(CANDIDATES)} within the caches")
    for model in fitted:
        print(f"{model.candidate}, threads: {model.threads}")
        print(f"  {model.host * 1e6:.1f} µs, {model.tensor * 1e9:.1f} ns a tensor")
        sides = (("within", model.bandwidth, model.within_errors), ("beyond", model.beyond, model.beyond_errors))
        for side, bandwidth, errors in sides:
            if bandwidth is None:
                print(f"  {side} the caches: no row")
            else:
                typical, worst = told(errors)
                print(f"  {side} the caches {bandwidth / 1e9:.1f} GB/s, rows: {len(errors)}")
                print(f"    relative error {typical} in the median, {worst} at worst")
        for name, n, size, seconds, extra in extrapolated(rows, model):
            what = f"{name} over {n} devices"
            print(f"  {what:22} {size / 1e9:9.2f} GB, {seconds:9.3f} s, {extra / 1e9:7.2f} GB of copy a device")
    return 0


if __name__ == "__main__":
    sys.exit(main())
