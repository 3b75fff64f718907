"""Weights to start from: a checkpoint file, or on the digits a network trained here first."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from sharpkern.train import networks
from sharpkern.train.data.augment import batches
from sharpkern.train.data.images import Images

EPOCHS = 40
HALF = 5  # of the ten classes
HEAD = "head."  # new where classes differ


def make_start(network: str, data: Images, kind: str, path: Path) -> None:
    """Trains a network by Adam, 40 epochs with lr 1e-3, and saves its weights, unless the file is there.

    Args:
        network: A key of `NETWORKS`.
        data: The digits.
        kind: "all" for all of their classes, "half" for the first five.
        path: Of the file.
    """
    if path.exists():
        return
    data = data.classes_below(HALF) if kind == "half" else data
    model = networks.make(network, data.source.shape[0], data.source.classes, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for images, labels in batches(data, data.train_labels, 64, "basic", generator):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    save(model.state_dict(), path)


def save(value: object, path: Path) -> None:
    """Saves so that a kill leaves the old file or the new one, none that is half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(value, part)
    part.replace(path)
