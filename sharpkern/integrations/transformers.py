"""Hugging Face Trainer: both passes in `training_step`; all else is the Trainer's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from sharpkern.accumulation import passes
from sharpkern.optimizer import SharpnessAware


class SharpnessAwareMixin:
    """Makes a Trainer run both passes of every micro-batch: `class Mine(SharpnessAwareMixin, Seq2SeqTrainer)`.

    The Trainer accumulates, clips, steps and schedules as ever, with g2 in place of the gradient. With an optimizer
    that is not of sharpkern nothing changes. On several processes the first pass is not synchronised.
    """

    optimizer: Any
    accelerator: Any

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As the Trainer's, twice.

        Args:
            model: The model.
            inputs: Those of a micro-batch.
            num_items_in_batch: What the Trainer passes.

        Returns:
            The loss at w.
        """
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        step = super().training_step  # type: ignore[misc]

        def backward() -> Tensor:
            loss: Tensor = step(model, inputs, num_items_in_batch)
            return loss

        if not isinstance(optimizer, SharpnessAware):
            return backward()
        loss: Tensor = passes(optimizer, backward, lambda: self.accelerator.no_sync(model))
        return loss


class SharpnessAwareTrainer(SharpnessAwareMixin, Trainer):
    """`transformers.Trainer` with the mixin."""
