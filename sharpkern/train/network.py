"""The network: two convolutions with batch normalisation, for images of 8 × 8."""

from __future__ import annotations

import torch
from torch import nn

from sharpkern.train.data import CLASSES

WIDTHS = (16, 32)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def small(classes: int = CLASSES) -> nn.Sequential:
    """A network of ten thousand weights, from images (n, 1, 8, 8) to logits (n, classes)."""
    first, second = WIDTHS
    return nn.Sequential(
        *_block(1, first, stride=1),
        *_block(first, second, stride=2),
        nn.Flatten(),
        nn.Linear(second * 4 * 4, classes),
    )


def make_network(seed: int) -> nn.Sequential:
    """The network; the same seed gives the same initial weights.

    Args:
        seed: Of the initial weights; torch's own random state is left as it was.

    Returns:
        A module from images (n, 1, 8, 8) to logits (n, 10).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small()
