"""A small task, and SAM on it in plain torch, for the tests of trainers: micro-batches, clipping, schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

RHO, LR, CLIP, EXAMPLES, BATCH = 0.3, 0.2, 0.05, 40, 8
FACTOR = 0.9  # of the learning rate, a step


def network() -> nn.Sequential:
    """The start of a network."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def data() -> tuple[Tensor, Tensor]:
    """Inputs and labels."""
    draw = torch.Generator().manual_seed(6)
    return torch.randn(EXAMPLES, 6, generator=draw), torch.randint(3, (EXAMPLES,), generator=draw)


def plain_sam(
    epochs: int,
    accumulate: int = 1,
    clip: bool = False,
    smoothing: float = 0.0,
    divisor: Callable[[int], int] | None = None,
    factor: float = FACTOR,
) -> tuple[list[Tensor], list[float]]:
    """SAM with momentum in plain torch, one perturbation a micro-batch; the weights and the losses at w.

    `divisor` says by what the losses of a step with this many micro-batches are divided; all trainers differ there.
    """
    model, (inputs, labels) = network(), data()
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=LR, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, factor)
    losses: list[float] = []
    micro = [slice(i, i + BATCH) for i in range(0, EXAMPLES, BATCH)]
    for _ in range(epochs):
        for start in range(0, len(micro), accumulate):
            rows = micro[start : start + accumulate]
            by = len(rows) if divisor is None else divisor(len(rows))
            sums = [torch.zeros_like(p) for p in params]
            for row in rows:

                def gradient(row: slice = row, by: int = by) -> tuple[Tensor, Any]:
                    loss = cross_entropy(model(inputs[row]), labels[row], label_smoothing=smoothing)
                    return loss, torch.autograd.grad(loss / by, params)

                loss, g = gradient()
                losses.append(loss.item())
                norm = torch.cat([x.reshape(-1) for x in g]).double().norm()
                before = [p.detach().clone() for p in params]
                with torch.no_grad():
                    for p, x in zip(params, g, strict=True):
                        p.add_((RHO / norm * x.double()).float())
                for total, x in zip(sums, gradient()[1], strict=True):
                    total.add_(x)
                with torch.no_grad():
                    for p, w in zip(params, before, strict=True):
                        p.copy_(w)
            for p, total in zip(params, sums, strict=True):
                p.grad = total
            if clip:
                torch.nn.utils.clip_grad_norm_(params, CLIP)
            optimizer.step()
            schedule.step()
    return [p.detach() for p in params], losses
