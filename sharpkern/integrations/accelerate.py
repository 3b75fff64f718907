"""Hugging Face Accelerate: both passes where a loop has `accelerator.backward(loss)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from sharpkern import accumulation


def passes(accelerator: Accelerator, model: nn.Module, optimizer: Any, compute_loss: Callable[[], Tensor]) -> Tensor:
    """Both passes of one micro-batch, with `accelerator.backward`; then clip, step and zero as without SAM.

    Works within `accelerator.accumulate(model)`: every micro-batch has its own perturbation. On several processes the
    first pass is not synchronised, so ε is each process's own; the second is as the accelerator has it.

    Args:
        accelerator: The accelerator.
        model: What `accelerator.prepare` returned.
        optimizer: What `accelerator.prepare` returned for an optimizer of sharpkern.
        compute_loss: Computes the loss and returns it, without backward. Called twice, or once by a method of one pass.

    Returns:
        The loss at w, detached; by a method of one pass, at w + ε.

    Raises:
        ValueError: The method's second half is more than the base update; see `sharpkern.passes`.
        RuntimeError: The weights stand perturbed.
    """

    def backward() -> Tensor:
        loss = compute_loss()
        accelerator.backward(loss)
        return loss.detach()

    loss: Tensor = accumulation.passes(
        getattr(optimizer, "optimizer", optimizer), backward, lambda: accelerator.no_sync(model)
    )
    return loss
