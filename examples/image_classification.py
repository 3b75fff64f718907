"""Handwritten digits from few training images: SGD against SAM, ASAM and Fisher SAM.

A sharpness-aware step takes two backward passes, so SGD also runs with twice the epochs, which takes the same time.
The test images chose nothing: learning rate, rho and eta are those of the papers.

    python examples/image_classification.py            five seeds
    python examples/image_classification.py --quick    one seed, a few epochs
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

import sharpkern

TRAIN_IMAGES = 300
BATCH = 50
BASE: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer to compare with."""
    return torch.optim.SGD(model.parameters(), **BASE)


def sam(model: nn.Module) -> torch.optim.Optimizer:
    """SAM; with `model` the running statistics of its batch normalisation see the first pass only."""
    return sharpkern.SAM(model.parameters(), torch.optim.SGD, rho=0.05, model=model, **BASE)


def asam(model: nn.Module) -> torch.optim.Optimizer:
    """Adaptive SAM."""
    return sharpkern.ASAM(model.parameters(), torch.optim.SGD, rho=0.5, eta=0.01, model=model, **BASE)


def fisher_sam(model: nn.Module) -> torch.optim.Optimizer:
    """Fisher SAM with f = g²."""
    return sharpkern.FisherSAM(model.parameters(), torch.optim.SGD, rho=0.1, eta=1.0, model=model, **BASE)


# what is compared: title, optimizer, multiple of the epochs
METHODS: tuple[tuple[str, Callable[[nn.Module], torch.optim.Optimizer], int], ...] = (
    ("SGD", sgd, 1),
    ("SGD, twice the epochs", sgd, 2),
    ("SAM", sam, 1),
    ("ASAM", asam, 1),
    ("Fisher SAM", fisher_sam, 1),
)


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 1, 8, 8) and labels to train with, and to test with; another split for every seed."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), train_size=TRAIN_IMAGES, stratify=labels, random_state=seed)
    return images[train], labels[train], images[test], labels[test]


def make_network() -> nn.Module:
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def train(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], epochs: int, seed: int) -> float:
    """Trains a network and gives its accuracy on the test images, in percent."""
    torch.manual_seed(seed)  # the same initial weights and batches for every optimizer
    images, labels, test_images, test_labels = load(seed)
    model = make_network()
    optimizer = make_optimizer(model)
    schedule = CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):

            def closure(rows: Tensor = rows) -> Tensor:  # SGD calls it once, SAM twice
                optimizer.zero_grad()
                loss = cross_entropy(model(images[rows]), labels[rows])
                loss.backward()
                return loss

            optimizer.step(closure)
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = model(test_images).argmax(1) == test_labels
    return 100 * right.float().mean().item()


def main() -> None:
    """Trains with every method and prints the test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a few epochs")
    quick = parser.parse_args().quick
    seeds, epochs = (1, 4) if quick else (5, 40)
    print(f"test accuracy in percent, {TRAIN_IMAGES} training images, seeds: {seeds}, epochs: {epochs}")
    for title, make_optimizer, factor in METHODS:
        found = [train(make_optimizer, factor * epochs, seed) for seed in range(seeds)]
        error = f" ± {statistics.stdev(found) / seeds**0.5:.2f}" if seeds > 1 else ""
        print(f"{title:22} {statistics.mean(found):6.2f}{error}")


if __name__ == "__main__":
    main()
