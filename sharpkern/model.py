"""What concerns the model around the optimizer: parameter groups and running statistics."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_STATISTICS = ("running_", "moving_", "num_batches_tracked")


def param_groups(model: nn.Module, **unscaled_options: Any) -> list[dict[str, Any]]:
    """Two parameter groups: the weights, and what is not scaled (biases and the parameters of norms).

    The second group has `scaled=False`, that is s = 1 in every method, as the ASAM authors' code does for all
    parameters not named "weight". Here the line is drawn by shape, as is usual for weight decay: vectors and scalars
    are not scaled. Parameters that need no gradient are left out, tied ones are taken once.

    Args:
        model: The model.
        **unscaled_options: Options of the second group alone, such as `weight_decay=0.0`.

    Returns:
        The groups, in the form that every optimizer here takes; an empty group is left out.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> [(len(g["params"]), g["scaled"]) for g in param_groups(model, weight_decay=0.0)]
        [(1, True), (1, False)]
    """
    params = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.dim() > 1], "scaled": True},
        {"params": [p for p in params if p.dim() <= 1], "scaled": False, **unscaled_options},
    ]
    return [group for group in groups if group["params"]]


class Snapshot:
    """The running statistics of a model as they stand, to be put back."""

    def __init__(self, model: nn.Module) -> None:
        names = model.named_buffers()
        self._pairs = [(b, b.clone()) for name, b in names if name.rpartition(".")[2].startswith(_STATISTICS)]

    @torch.no_grad()
    def put_back(self) -> None:
        """Writes the statistics back, in place."""
        for buffer, kept in self._pairs:
            buffer.copy_(kept)


@contextmanager
def frozen_statistics(model: nn.Module) -> Generator[None]:
    """Running statistics stand still: after the block they are bit for bit what they were before it.

    Meant for the second pass of a step, whose activations belong to w + ε. Counts every buffer named `running_*`,
    `moving_*` or `num_batches_tracked`, of torch's normalisation layers and of any other module. Outputs in training
    mode are the same as without.

    Args:
        model: The model.

    Example:
        >>> norm = torch.nn.BatchNorm1d(1)
        >>> with frozen_statistics(norm):
        ...     _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> norm.running_mean
        tensor([0.])
    """
    snapshot = Snapshot(model)
    try:
        yield
    finally:
        snapshot.put_back()
