"""Weights to start from: a checkpoint file, or on the digits a network trained here first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sharpkern.train import networks
from sharpkern.train.data.augment import batches
from sharpkern.train.data.images import Images
from sharpkern.usage import UsageError

EPOCHS = 40
HALF = 5  # of the ten classes
HEAD = "head."


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the weights of a file into a model; a head for another number of classes stays as it was.

    Args:
        model: Changed in place.
        path: A file of `torch.save`: the weights by name, or a dict that holds them as "model" or "state_dict".

    Raises:
        UsageError: The file is not that, or its weights are another network's.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... for a file that is no checkpoint
        raise UsageError(f"{path}: torch.load cannot read it as weights: {str(error).splitlines()[0]}") from error
    weights = _weights(saved, path)
    own = model.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and w.shape == own[name].shape}
    wrong = sorted(name for name in weights.keys() | own.keys() if name not in fitting and not name.startswith(HEAD))
    if wrong:
        raise UsageError(f"{path}: weights of another network: {len(wrong)} names or shapes differ, as {wrong[0]}")
    model.load_state_dict({**own, **fitting})


def _weights(saved: Any, path: Path) -> Mapping[str, Tensor]:
    for name in ("model", "state_dict"):
        if isinstance(saved, Mapping) and isinstance(saved.get(name), Mapping):
            saved = saved[name]
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UsageError(f"{path}: no weights by name, nor a dict with them as 'model' or 'state_dict'")
    return saved


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
