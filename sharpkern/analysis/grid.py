"""[F] Fig. 5: the test accuracy of Fisher SAM over ρ × η, on the handwritten digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from sharpkern.analysis.rows import read_rows, write_rows
from sharpkern.train.data import Digits, batches, flip_labels, load_digits, shifted
from sharpkern.train.network import make_network
from sharpkern.usage import UsageError
from sharpkern.variants import FisherSAM

RHOS = (0.01, 0.05, 0.1, 0.5, 1.0)
ETAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
BATCH_SIZE = 128
LR, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.1, 0.9, 5e-4, 0.1  # those of [F] section 5.1


@dataclass(frozen=True)
class Cell:
    """One training run of a grid.

    Attributes:
        rho: Radius ρ, in units of sqrt(s).
        eta: η of s = 1/(1 + η f).
        seed: Of flips, initial weights and batches.
        epochs: Passes over the training images.
        noise: Share of the training labels that are flipped.
    """

    rho: float
    eta: float
    seed: int = 0
    epochs: int = 40
    noise: float = 0.0


def train_cell(cell: Cell, digits: Digits) -> float:
    """Trains the network of `sharpkern train` by Fisher SAM, its schedule and all other options as there.

    Args:
        cell: What to train with.
        digits: The images.

    Returns:
        The test accuracy after the last epoch, in percent.
    """
    generator = torch.Generator().manual_seed(cell.seed)
    labels, views = flip_labels(digits.train_labels, cell.noise, generator), shifted(digits.train_images)
    model = make_network(cell.seed).to(digits.train_images.device)
    optimizer = FisherSAM(
        model.parameters(), rho=cell.rho, eta=cell.eta, model=model, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    scheduler = CosineAnnealingLR(optimizer, T_max=cell.epochs)
    for _ in range(cell.epochs):
        for images, classes in batches(views, labels, BATCH_SIZE, generator):

            def closure(images: Tensor = images, classes: Tensor = classes) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(images), classes, label_smoothing=LABEL_SMOOTHING)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.step(closure)
        scheduler.step()
    model.eval()
    with torch.no_grad():
        hits = model(digits.test_images).argmax(dim=1) == digits.test_labels
    return 100 * int(hits.sum()) / len(hits)


def grid_cells(
    rhos: Sequence[float] = RHOS, etas: Sequence[float] = ETAS, seeds: int = 1, epochs: int = 40, noise: float = 0.0
) -> list[Cell]:
    """The runs of a grid, [F]'s unless told otherwise; seeds are the outer loop.

    Args:
        rhos: Values of ρ.
        etas: Values of η.
        seeds: Runs of each pair.
        epochs: Passes over the training images.
        noise: Share of the training labels that are flipped.

    Returns:
        The cells.

    Raises:
        UsageError: An option is out of range.
    """
    inside = all(0 <= x < math.inf for x in (*rhos, *etas))
    if not rhos or not etas or not inside or seeds < 1 or epochs < 1 or not 0 <= noise < 1:
        raise UsageError(
            f"rhos={tuple(rhos)}, etas={tuple(etas)}, seeds={seeds}, epochs={epochs}, noise={noise}: wanted finite "
            "rho and eta >= 0, at least one of each, of seeds and of epochs, and 0 <= noise < 1"
        )
    return [Cell(rho, eta, seed, epochs, noise) for seed, rho, eta in product(range(seeds), rhos, etas)]


def run_grid(
    cells: Sequence[Cell],
    path: Path,
    advance: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
) -> dict[Cell, float]:
    """Trains every cell that the file does not hold yet, and writes the file anew after each.

    Args:
        cells: What to train, such as `grid_cells()`.
        path: A CSV file; one row a cell.
        advance: Called after each cell, trained or found.
        device: Where to train.

    Returns:
        Test accuracy in percent, of these cells alone; the file keeps other ones that it had.

    Raises:
        UsageError: The file is there and no grid.
    """
    digits = load_digits(device)
    known = read_grid(path) if path.exists() else {}
    for cell in cells:
        if cell not in known:
            known[cell] = train_cell(cell, digits)
            write_rows(path, ({**asdict(key), "test_accuracy": value} for key, value in known.items()))
        advance()
    return {cell: known[cell] for cell in cells}


def read_grid(path: Path) -> dict[Cell, float]:
    """The cells of a file that `run_grid` wrote.

    Args:
        path: Of the file.

    Returns:
        Their test accuracy in percent.

    Raises:
        UsageError: The file has other columns, or something else than numbers in them.
    """
    try:
        return {
            Cell(
                float(row["rho"]), float(row["eta"]), int(row["seed"]), int(row["epochs"]), float(row["noise"])
            ): float(row["test_accuracy"])
            for row in read_rows(path)
        }  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:  # TypeError: a row that was cut off
        columns = ", ".join((*(column.name for column in fields(Cell)), "test_accuracy"))
        raise UsageError(f"{path}: wanted the columns {columns}, numbers in all; give another --out") from error
