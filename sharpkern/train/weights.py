"""Weights in a file of torch.save, and a network that takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharpkern.usage import UsageError


def load_weights(model: nn.Module, path: Path, new: str = "") -> None:
    """Copies the weights of a file into a model.

    Args:
        model: Changed in place.
        path: A file of `torch.save`: the weights by name, or a dict that holds them as "model" or "state_dict".
        new: How names begin that may be missing or have another shape; what they name stays as it was. "" for none.

    Raises:
        UsageError: The file is not that, or its weights are another network's.
    """
    weights = _read(path)
    own = model.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and w.shape == own[name].shape}
    apart = (name for name in weights.keys() | own.keys() if name not in fitting)
    wrong = sorted(name for name in apart if not (new and name.startswith(new)))
    if wrong:
        raise UsageError(f"{path}: weights of another network: {len(wrong)} names or shapes differ, as {wrong[0]}")
    model.load_state_dict({**own, **fitting})


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no type of its own for a file that is none: UnpicklingError, IndexError, ...
        raise UsageError(f"{path}: torch.load cannot read it as weights: {str(error).splitlines()[0]}") from error
    for name in ("model", "state_dict"):
        if isinstance(saved, Mapping) and isinstance(saved.get(name), Mapping):
            saved = saved[name]
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UsageError(f"{path}: no weights by name, nor a dict with them as 'model' or 'state_dict'")
    return saved
