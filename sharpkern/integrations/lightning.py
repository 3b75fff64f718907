"""Lightning: a callback that makes automatic optimization run both passes of every micro-batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior

from sharpkern.accumulation import passes
from sharpkern.optimizer import SharpnessAware


@contextmanager
def _silent(module: pl.LightningModule) -> Generator[None]:
    """`log` and `log_dict` do nothing: the second pass is none that a reader of logs knows of."""
    module.log = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del module.log


class _Optimization(_AutomaticOptimization):
    """Automatic optimization whose gradients are those of the second pass."""

    def run(self, optimizer: torch.optim.Optimizer, batch_idx: int, kwargs: OrderedDict[str, Any]) -> dict[str, Any]:
        """Both passes, and the update at the end of an accumulation.

        Args:
            optimizer: The optimizer.
            batch_idx: Index of the batch.
            kwargs: Those of `training_step`.

        Returns:
            What `training_step` gave at w.
        """
        if not isinstance(optimizer, SharpnessAware) or self._skip_backward:
            output: dict[str, Any] = super().run(optimizer, batch_idx, kwargs)
            return output
        strategy, accumulate = self.trainer.strategy, self.trainer.fit_loop._should_accumulate()
        zero_grad = self._make_zero_grad_fn(batch_idx, optimizer)
        if zero_grad is not None:
            zero_grad()
        results: list[ClosureResult] = []
        with _block_parallel_sync_behavior(strategy, block=accumulate):
            passes(
                optimizer,
                lambda: self._backward(optimizer, kwargs, results),
                lambda: _block_parallel_sync_behavior(strategy),
            )
        if not accumulate:
            optimizer._parts.hooked = True  # clipping and hooks of users hang on the closure
            self._optimizer_step(batch_idx, lambda: results[0].loss)
        return {} if results[0].loss is None else results[0].asdict()

    def _backward(
        self, optimizer: torch.optim.Optimizer, kwargs: OrderedDict[str, Any], results: list[ClosureResult]
    ) -> None:
        """One pass; the results of the first are those that count."""
        with _silent(self.trainer.lightning_module) if results else nullcontext():
            result = self._training_step(kwargs)
            if result.closure_loss is not None:
                self._make_backward_fn(optimizer)(result.closure_loss)
        results.append(result)


class SharpnessAwareCallback(pl.Callback):
    """Runs both passes of every micro-batch, in automatic optimization with an optimizer of sharpkern.

    Lightning then accumulates, clips, steps, schedules, logs and saves as ever, with g2 in place of the gradient;
    `on_before_optimizer_step` and clipping see g2, once a step. `log` counts in the first pass only; `training_step`
    and the hooks around `backward` run in both. On several processes the first pass is not synchronised. With another
    optimizer nothing changes.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Puts the loop in place.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: "fit", or another, where nothing is done.
        """
        loop = trainer.fit_loop.epoch_loop
        if stage == "fit" and not isinstance(loop.automatic_optimization, _Optimization):
            progress = loop.automatic_optimization.optim_progress
            loop.automatic_optimization = _Optimization(trainer)
            loop.automatic_optimization.optim_progress = progress
