"""The trace ratio tr(F F̄⁻¹), what TRACER penalises."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sharpkern.analysis.estimate import Estimate
from sharpkern.analysis.gradients import Loss


def fisher_trace(
    losses: Sequence[Loss], params: Iterable[Tensor], *, beta: float = 0.1, delta: float = 0.1
) -> Estimate:
    """tr(F F̄⁻¹) = Σ g²/(f̄ + δ) over batches, with f̄ ← (1-β) f̄ + β g² ([G] 52, 53 and Alg. 1, F as in 57).

    This is TRACER's penalty over ρ, at a w that stands still. f̄ is first averaged over one pass through the batches;
    like Adam's second moment it is divided by 1 - (1-β)^n after n of them. A second pass takes T of each batch with the
    f̄ of all batches before it. With δ = 0 it does not change when weights are rescaled one by one ([G] 55).

    Args:
        losses: One a batch, each computes its mean loss and returns it, without backward.
        params: The parameters.
        beta: Weight of the new g² in f̄, from 0, exclusive, to 1.
        delta: Damping δ >= 0, in units of g². An element whose g is 0 adds nothing, also with δ = 0.

    Returns:
        Mean over the batches and its standard error; without a unit.

    Raises:
        ValueError: There is no batch, no parameter is trainable, or an option is out of range.

    Examples:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -5.0]))
        >>> print(fisher_trace([lambda: w.square().sum()], [w], delta=0.0))  # F = F̄: the number of weights
        2
    """
    params = [p for p in params if p.requires_grad]
    if not losses or not params:
        raise ValueError(f"{len(losses)} batches and {len(params)} trainable parameters: wanted at least one of each")
    if not 0 < beta <= 1 or delta < 0:
        raise ValueError(f"beta={beta}, delta={delta}: wanted 0 < beta <= 1 and delta >= 0")
    average = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64, device=params[0].device)
    traces = []
    for count, loss in enumerate((*losses, *losses)):
        f = _squared_gradient(loss, params)
        if count >= len(losses):
            smoothed = average / (1 - (1 - beta) ** count)
            traces.append(torch.where(f == 0, 0.0, f / (smoothed + delta)).sum().item())
        average.lerp_(f, beta)
    return Estimate.of(traces)


def _squared_gradient(loss: Loss, params: Sequence[Tensor]) -> Tensor:
    with torch.enable_grad():
        found = torch.autograd.grad(loss(), params, materialize_grads=True)
    return torch.cat([g.flatten() for g in found]).double().square()
