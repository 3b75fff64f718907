"""Random variations of a batch, by name: none, crop and flip, AutoAugment with Cutout."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from sharpkern.train.data.autoaugment import autoaugment
from sharpkern.train.data.images import Images

AUGMENTATIONS = {
    "none": "no augmentation",
    "basic": "random crops and flips",
    "auto": "random crops and flips, AutoAugment, Cutout",
}


def batches(
    data: Images, labels: Tensor, batch_size: int, augmentation: str, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, every image augmented; the rest short of a batch is left out.

    Args:
        data: Whose training images are taken.
        labels: (n,), perhaps flipped.
        batch_size: Images in each batch.
        augmentation: A key of `AUGMENTATIONS`. The digits are cropped only: a mirrored digit is another sign, and
            AutoAugment and Cutout were made for larger images in colour.
        generator: On the CPU; equal states give equal batches.

    Yields:
        Standardised images (batch_size, c, h, w) in float32 and their labels (batch_size,).
    """
    n = len(labels)
    order = torch.randperm(n, generator=generator)
    for index in order[: n - n % batch_size].view(-1, batch_size):
        yield augmented(data, data.train_images[index], augmentation, generator), labels[index]


def augmented(data: Images, images: Tensor, augmentation: str, generator: torch.Generator) -> Tensor:
    """Images varied and standardised.

    Args:
        data: Says what its images stand: a mirrored digit, say, is no digit.
        images: (n, c, h, w), uint8.
        augmentation: A key of `AUGMENTATIONS`.
        generator: On the CPU.

    Returns:
        Images (n, c, h, w) in float32.
    """
    source = data.source
    if augmentation == "none":
        return data.standardise(images)
    images = crop(images, source.padding, generator)
    if source.flips:
        images = flip(images, generator)
    if augmentation == "basic" or not source.cutout:
        return data.standardise(images)
    return cutout(data.standardise(autoaugment(images, generator)), source.cutout, generator)


def crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Every image moved by up to `padding` pixels in both directions, zeros shifted in."""
    n, _, height, width = images.shape
    corners = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
    rows, columns = corners[0] + torch.arange(height), corners[1] + torch.arange(width)
    padded = pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image mirrored left to right with probability one half."""
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of zeros at a random centre of every image, cut at its border (DeVries and Taylor 2017)."""
    n, _, height, width = images.shape
    near = [
        (torch.arange(size) - torch.randint(size, (n, 1), generator=generator) + 0.5).abs() < side / 2
        for size in (height, width)
    ]
    hidden = near[0][:, None, :, None] & near[1][:, None, None, :]
    return images.masked_fill(hidden, 0.0)
