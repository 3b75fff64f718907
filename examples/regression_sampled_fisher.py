"""A regression by Fisher SAM with several Fisher diagonals: g², per example, and sampled from the model itself.

The model gives the mean of a Gaussian of variance 1, so its Fisher diagonal is the mean of (∂ output/∂ w)² over inputs.
`sampled` estimates it with targets drawn from the model's own Gaussian ([G] 50). g², the default of FisherSAM, squares
the mean gradient of the batch ([F] 12); `per_example` takes the mean of squares with the targets of the data ([F] 11).
Both depend on how well the model fits. How near each one comes to the true diagonal is measured after the training.

    python examples/regression_sampled_fisher.py            ten seeds
    python examples/regression_sampled_fisher.py --quick    one seed, a few epochs
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import sharpkern

BATCH = 32
BASE: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
Diagonal = tuple[Tensor, ...]
Compared = dict[str, tuple[float, float]]


def half_square(output: Tensor, target: Tensor) -> Tensor:
    """Minus the logarithm of the Gaussian, but for its constant."""
    return (output - target).square().mean() / 2


def squared_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Diagonal:
    """f = g², g the gradient of the batch."""
    return tuple(g.square() for g in torch.autograd.grad(half_square(model(x), y), list(model.parameters())))


def per_example(model: nn.Module, x: Tensor, y: Tensor) -> Diagonal:
    """The mean of squared gradients, one an example, with the targets of the data: the empirical Fisher diagonal."""
    return sharpkern.fisher.per_example(model, half_square, x, y)


def sampled(model: nn.Module, x: Tensor, y: Tensor) -> Diagonal:
    """The same with targets drawn from the model."""
    return sharpkern.fisher.sampled(model, x, likelihood="gaussian")


def exact(model: nn.Module, x: Tensor) -> Diagonal:
    """The mean of (∂ output/∂ w)²."""
    return sharpkern.fisher.per_example(model, lambda output, _: output.sum(), x, x)


ESTIMATES: dict[str, Callable[[nn.Module, Tensor, Tensor], Diagonal]] = {
    "g²": squared_gradient,
    "per example": per_example,
    "sampled": sampled,
}


def load(seed: int) -> list[Tensor]:
    """Inputs (n, 10) and progress of diabetes (n, 1) after a year, standardised by the training half."""
    x, y = load_diabetes(return_X_y=True)
    parts = train_test_split(x, y.reshape(-1, 1), test_size=0.5, random_state=seed)
    train_x, test_x, train_y, test_y = (torch.tensor(part, dtype=torch.float32) for part in parts)
    means = (train_x.mean(0), train_x.std(0)), (train_y.mean(), train_y.std())
    return [
        (part - mean) / std for part, (mean, std) in zip((train_x, train_y, test_x, test_y), 2 * means, strict=True)
    ]


def compare(model: nn.Module, x: Tensor, y: Tensor) -> Compared:
    """Each estimate from one batch against the exact diagonal: their correlation, and the ratio of their sums."""
    true = torch.cat([f.flatten() for f in exact(model, x)])
    found = {
        title: torch.cat([f.flatten() for f in make(model, x[:BATCH], y[:BATCH])]) for title, make in ESTIMATES.items()
    }
    return {
        title: (torch.corrcoef(torch.stack([f, true]))[0, 1].item(), (f.sum() / true.sum()).item())
        for title, f in found.items()
    }


def train(estimate: str | None, epochs: int, seed: int) -> tuple[float, Compared]:
    """Trains a network with Fisher SAM, with SGD if there is no estimate.

    Returns:
        The root mean square error on the test half, in standard deviations of the target, and `compare` on the training
        half.
    """
    torch.manual_seed(seed)
    x, y, test_x, test_y = load(seed)
    model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 1))
    batch = x, y

    def fisher() -> Diagonal:  # what FisherSAM calls in its first pass; the batch is the current one
        return ESTIMATES[str(estimate)](model, *batch)

    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), **BASE)
    if estimate == "g²":
        optimizer = sharpkern.FisherSAM(model.parameters(), **BASE)  # its own kernels compute g²
    elif estimate:
        optimizer = sharpkern.FisherSAM(model.parameters(), fisher=fisher, **BASE)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = half_square(model(batch[0]), batch[1])
        loss.backward()
        return loss

    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            batch = x[rows], y[rows]
            optimizer.step(closure)
    with torch.no_grad():
        error = (model(test_x) - test_y).square().mean().sqrt().item()
    return error, compare(model, x, y)


def main() -> None:
    """Trains with every Fisher diagonal and prints errors and correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a few epochs")
    quick = parser.parse_args().quick
    seeds, epochs = (1, 5) if quick else (10, 60)

    def shown(values: list[float]) -> str:
        error = f" ± {statistics.stdev(values) / seeds**0.5:.3f}" if seeds > 1 else ""
        return f"{statistics.mean(values):6.3f}{error}"

    print(f"root mean square error on the test half; seeds: {seeds}, epochs: {epochs}")
    for title in (None, *ESTIMATES):
        found = [train(title, epochs, seed) for seed in range(seeds)]
        print(f"{f'Fisher SAM, {title}' if title else 'SGD':25} {shown([error for error, _ in found])}")
        compared = [measured for _, measured in found]
    print("estimates from a batch against the exact diagonal, networks trained last: correlation, ratio of the sums")
    for title in ESTIMATES:
        figures = zip(*(measured[title] for measured in compared), strict=True)
        print(f"{title:25}", *(shown(list(values)) for values in figures))


if __name__ == "__main__":
    main()
