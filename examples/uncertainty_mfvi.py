"""Predictive uncertainty on handwritten digits: mean-field variational inference against SGD.

MFVI learns a mean and a standard deviation of every weight. Predictions are averaged over weights drawn from that
Gaussian. SGD runs with the usual weight decay, and with the one that comes from MFVI's prior, which makes it the search
for the most probable weights under the same prior. The test images are shown as they are and moved by one pixel, which
the training images never were.

    python examples/uncertainty_mfvi.py            five seeds
    python examples/uncertainty_mfvi.py --quick    one seed, a few epochs
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, nll_loss
from torch.optim.lr_scheduler import CosineAnnealingLR

import sharpkern

TRAIN_IMAGES, BATCH = 400, 50
SAMPLES, BINS = 64, 15
BASE: dict[str, Any] = {"lr": 0.05, "momentum": 0.9}
# 1/N would be Bayes' posterior; a colder one fitted better on training images set aside, which also chose the rest
KL_WEIGHT, PRIOR_STD, LR_COVARIANCE = 0.1 / TRAIN_IMAGES, 0.5, 40.0
START_STD = 0.03  # of every weight, before it is learned

Predict = Callable[[Tensor], Tensor]  # images to log probabilities (n, 10)


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 8, 8) and labels to train with, and to test with; another split for every seed."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), train_size=TRAIN_IMAGES, stratify=labels, random_state=seed)
    return images[train], labels[train], images[test], labels[test]


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains; SGD and MFVI both call the closure once a step, MFVI at weights that it draws."""
    schedule = CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):

            def closure(rows: Tensor = rows) -> Tensor:
                optimizer.zero_grad()
                loss = cross_entropy(model(images[rows]), labels[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
        schedule.step()


def by_sgd(weight_decay: float) -> Callable[..., Predict]:
    """What trains a network with SGD and gives its predictions."""

    def train(model: nn.Module, seed: int, *data: Tensor, epochs: int) -> Predict:
        fit(model, torch.optim.SGD(model.parameters(), weight_decay=weight_decay, **BASE), *data, epochs)
        return lambda images: model(images).log_softmax(1)

    return train


def by_mfvi(model: nn.Module, seed: int, *data: Tensor, epochs: int) -> Predict:
    """Trains a network with MFVI and gives predictions averaged over the posterior."""
    count = sum(p.numel() for p in model.parameters())
    rho = START_STD * math.sqrt(count)  # a weight's standard deviation is rho/sqrt(count) · sqrt(s), and s starts at 1
    options: dict[str, Any] = {
        "rho": rho,
        "kl_weight": KL_WEIGHT,
        "prior_std": PRIOR_STD,
        "lr_covariance": LR_COVARIANCE,
        "seed": seed,
    }
    optimizer = sharpkern.MFVI(model.parameters(), torch.optim.SGD, **options, **BASE)
    fit(model, optimizer, *data, epochs)
    means = {name: p.detach() for name, p in model.named_parameters()}
    deviations = [START_STD * s.sqrt() for s in optimizer.covariance()]

    def predict(images: Tensor) -> Tensor:
        drawn = []
        for _ in range(SAMPLES):
            pairs = zip(means.items(), deviations, strict=True)
            weights = {name: mean + std * torch.randn_like(mean) for (name, mean), std in pairs}
            drawn.append(functional_call(model, weights, images).log_softmax(1))
        return torch.stack(drawn).logsumexp(0) - math.log(SAMPLES)

    return predict


METHODS: dict[str, Callable[..., Predict]] = {
    "SGD, weight decay 0.0005": by_sgd(5e-4),
    "SGD, decay of the prior": by_sgd(KL_WEIGHT / PRIOR_STD**2),
    "MFVI": by_mfvi,
}


def measure(log_chances: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """What predictions are worth.

    Returns:
        Accuracy in percent; negative log likelihood in nats; expected calibration error in percent, the mean of
        |accuracy - confidence| over `BINS` bins of confidence, each with the weight of its images.
    """
    confidence, guess = log_chances.exp().max(1)
    right = (guess == labels).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS).index_add(0, bins, right - confidence).abs()
    calibration = 100 * gaps.sum().item() / len(labels)
    return 100 * right.mean().item(), nll_loss(log_chances, labels).item(), calibration


def main() -> None:
    """Trains with every method and prints what its predictions are worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a few epochs")
    quick = parser.parse_args().quick
    seeds, epochs = (1, 20) if quick else (5, 200)
    print(f"{TRAIN_IMAGES} training images, seeds: {seeds}, epochs: {epochs}")
    print(f"{'':32} {'accuracy, %':>16} {'NLL, nats':>16} {'ECE, %':>16}")
    for title, train in METHODS.items():
        found: dict[str, list[tuple[float, float, float]]] = {"as they are": [], "moved": []}
        for seed in range(seeds):
            torch.manual_seed(seed)  # the same initial weights for every method
            images, labels, test_images, test_labels = load(seed)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
            predict = train(model, seed, images, labels, epochs=epochs)
            with torch.no_grad():
                for kind, shown in zip(found, (test_images, test_images.roll(1, dims=2)), strict=True):
                    found[kind].append(measure(predict(shown), test_labels))
        for kind, values in found.items():
            cells = []
            for figure in zip(*values, strict=True):
                error = f" ± {statistics.stdev(figure) / seeds**0.5:.3f}" if seeds > 1 else ""
                cells.append(f"{statistics.mean(figure):.3f}{error}".rjust(16))
            print(f"{title:24} {kind:>11}", *cells)


if __name__ == "__main__":
    main()
