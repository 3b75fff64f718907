"""Images as the presets see them, whatever their source, and the table of the sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sharpkern.train.data import cifar, digits


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read.

    Attributes:
        title: What tables show.
        shape: Channels, height and width of an image.
        classes: How many.
        train: Training images.
        test: Test images.
        padding: Pixels by which a random crop may move an image.
        flips: Whether a mirrored image is of the same class.
        cutout: Side of the square that Cutout blanks; 0 leaves it, and AutoAugment, out.
    """

    title: str
    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int
    padding: int
    flips: bool
    cutout: int


SOURCES: Mapping[str, Source] = {
    "digits": Source("digits", (1, 8, 8), digits.CLASSES, digits.TRAIN_IMAGES, 599, padding=1, flips=False, cutout=0),
    "cifar10": Source("CIFAR-10", (3, 32, 32), 10, 50_000, 10_000, padding=4, flips=True, cutout=16),
    "cifar100": Source("CIFAR-100", (3, 32, 32), 100, 50_000, 10_000, padding=4, flips=True, cutout=16),
}


@dataclass(frozen=True)
class Images:
    """A data set on the CPU.

    Attributes:
        source: What it is.
        train_images: (n, c, h, w), uint8.
        train_labels: (n,), int64.
        test_images: As the training images.
        test_labels: As the training labels.
    """

    source: Source
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def standardise(self, images: Tensor) -> Tensor:
        """Images in float32; each channel of the training part has mean 0 and standard deviation 1."""
        mean, std = self._moments
        return (images.float() - mean) / std

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        values = self.train_images.transpose(0, 1).flatten(1).double()
        return values.mean(1).float().view(-1, 1, 1), values.std(1).float().view(-1, 1, 1)

    def classes_below(self, classes: int) -> Images:
        """The images of the first so many classes."""
        train, test = self.train_labels < classes, self.test_labels < classes
        return Images(
            replace(self.source, classes=classes, train=int(train.sum()), test=int(test.sum())),
            self.train_images[train],
            self.train_labels[train],
            self.test_images[test],
            self.test_labels[test],
        )


def load(name: str, folder: Path | None) -> Images:
    """Reads a data set.

    Args:
        name: A key of `SOURCES`.
        folder: Where CIFAR's files are; not used for the digits, which scikit-learn holds.

    Returns:
        All of it, on the CPU.

    Raises:
        DataError: CIFAR's files are missing or are not the published ones.
    """
    if name == "digits":
        return Images(SOURCES[name], *_digits())
    return Images(SOURCES[name], *cifar.load(name, folder))


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels, test_images, test_labels = digits.split()
    pixels = [torch.as_tensor(part, dtype=torch.uint8).unsqueeze(1) for part in (images, test_images)]
    classes = [torch.as_tensor(part, dtype=torch.int64) for part in (labels, test_labels)]
    return pixels[0], classes[0], pixels[1], classes[1]
