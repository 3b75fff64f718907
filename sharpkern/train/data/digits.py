"""The handwritten digits inside scikit-learn: 1797 grey images of 8 × 8, ten classes, all of it in tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

CLASSES = 10
TRAIN_IMAGES = 1198
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) in float32, standardised by the training part, and labels (n,) in int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def split() -> tuple[Any, Any, Any, Any]:
    """Two thirds for training and one third for the test, stratified by class, always the same split.

    Returns:
        Arrays: training images (n, 8, 8) from 0 to 16, their labels, test images, their labels.
    """
    from sklearn.datasets import load_digits as load  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    raw = load()
    train, test, train_labels, test_labels = train_test_split(
        raw.images, raw.target, test_size=1 / 3, stratify=raw.target, random_state=SPLIT_SEED
    )
    return train, train_labels, test, test_labels


def load_digits(device: torch.device | str = "cpu") -> Digits:
    """The split, standardised.

    Args:
        device: Where the tensors go.

    Returns:
        1198 images to train with and 599 to test with.
    """
    images, labels, others, other_labels = split()
    train, test = (torch.as_tensor(x, dtype=torch.float32, device=device).unsqueeze(1) for x in (images, others))
    train_labels, test_labels = (torch.as_tensor(x, dtype=torch.int64, device=device) for x in (labels, other_labels))
    mean, std = train.mean(), train.std()
    return Digits((train - mean) / std, train_labels, (test - mean) / std, test_labels)


def flip_labels(labels: Tensor, share: float, generator: torch.Generator, classes: int = CLASSES) -> Tensor:
    """Symmetric label noise: round(share * n) labels, drawn without replacement, move to another class.

    Args:
        labels: Classes (n,), int64.
        share: Of the labels to flip, between 0 and 1.
        generator: On the CPU. It advances equally far whatever the share, so the batches drawn after are the same.
        classes: How many there are.

    Returns:
        New labels (n,). Each of the other classes is equally likely.
    """
    n = len(labels)
    chosen = torch.randperm(n, generator=generator)[: round(share * n)].to(labels.device)
    offset = torch.randint(1, classes, (n,), generator=generator).to(labels.device)
    flipped = labels.clone()
    flipped[chosen] = (labels + offset)[chosen] % classes
    return flipped


def shifted(images: Tensor) -> Tensor:
    """The images (n, 1, h, w) moved by -1, 0, 1 pixel in both directions: (9, n, 1, h, w)."""
    height, width = images.shape[-2:]
    padded = pad(images, (1, 1, 1, 1), value=images.min().item())
    views = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(views)


def batches(
    views: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, every image in a random view; the rest short of a batch is left out.

    Args:
        views: The same n images in several variants (v, n, 1, h, w), as `shifted` makes them.
        labels: Classes (n,).
        batch_size: Images in each batch.
        generator: On the CPU; equal states give equal batches.

    Yields:
        Images (batch_size, 1, h, w) and their labels (batch_size,).
    """
    n = len(labels)
    order = torch.randperm(n, generator=generator).to(labels.device)
    view = torch.randint(len(views), (n,), generator=generator).to(labels.device)
    for index in order[: n - n % batch_size].view(-1, batch_size):
        yield views[view[index], index], labels[index]
