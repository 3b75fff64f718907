"""Gradients that stand in `.grad` for as long as something is evaluated at w + ε, and no longer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sharpkern.optimizer import SharpnessAware

Loss = Callable[[], Tensor]  # the forward pass alone: computes the loss, a 0-d tensor, and returns it


@contextmanager
def lent(params: Sequence[Tensor], values: Sequence[Tensor | None]) -> Generator[None]:
    """`.grad` of every parameter is the given value inside the block, and afterwards the very tensor that it was.

    Args:
        params: The parameters.
        values: One a parameter, of its shape and dtype, or None.
    """
    before = [p.grad for p in params]
    try:
        for p, value in zip(params, values, strict=True):
            p.grad = value
        yield
    finally:
        for p, gradient in zip(params, before, strict=True):
            p.grad = gradient


@contextmanager
def at_gradient(optimizer: SharpnessAware, loss: Loss) -> Generator[float]:
    """Inside the block `.grad` holds g = ∇L(w), which `optimizer.perturbed()` takes; what was there comes back.

    Args:
        optimizer: Whose parameters are differentiated by.
        loss: L.

    Yields:
        L(w).
    """
    params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    with torch.enable_grad():
        value = loss()
        found = torch.autograd.grad(value, params, allow_unused=True)
    with lent(params, found):
        yield value.item()
