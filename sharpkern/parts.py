"""m-sharpness: a step whose batch is split in parts, each with its own perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sharpkern.optimizer import SharpnessAware


def m_sharpness(optimizer: SharpnessAware, closures: Sequence[Callable[[], Any]]) -> Any:
    """One step in m parts: ε_i from the gradient of part i alone, one update with the mean of the parts' g2.

    With one part this is `optimizer.step(closure)`. Averages that a method keeps (f̄, a learned s) move with the last
    part; noise is drawn anew for each.

    Args:
        optimizer: Any whose second half is the base update alone: not MFVI, TRACER or EvolutionStrategies.
        closures: One a part, as `step` takes them: each zeroes the gradients, computes the mean loss of its part, calls
            backward and returns the loss.

    Returns:
        The mean of the parts' losses.

    Raises:
        ValueError: There is no closure, or the method is none of those.
        RuntimeError: The weights stand perturbed.
    """
    if not closures:
        raise ValueError("closures is empty: wanted one closure a part of the batch")
    *others, last = closures
    params = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[torch.Tensor, torch.Tensor] = {}
    losses = []

    def add() -> None:
        for p in params:
            if p.grad is not None:
                sums[p] = sums[p].add_(p.grad) if p in sums else p.grad.clone()

    for closure in others:
        losses.append(optimizer._part(closure))
        add()

    def mean() -> Any:
        loss = last()
        if optimizer._perturbed is not None:
            add()
            for p in params:
                p.grad = sums[p].div_(len(closures)) if p in sums else None
        return loss

    losses.append(optimizer.step(mean if others else last))
    return sum(losses[1:], losses[0]) / len(losses)
