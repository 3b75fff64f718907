"""Lightning: automatic optimization with both passes, against SAM in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import largest_gap, same
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from training import BATCH, CLIP, FACTOR, LR, RHO, data, network, plain_sam

import sharpkern

pl = pytest.importorskip("lightning.pytorch")
from sharpkern.integrations.lightning import SharpnessAwareCallback  # ruff: ignore[module-import-not-at-top-of-file]

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own are not ours


class Task(pl.LightningModule):  # type: ignore[misc, name-defined]
    """A module as people write them; it knows nothing of two passes."""

    def __init__(self, make: Any = sharpkern.SAM, **options: Any) -> None:
        super().__init__()
        self.model, self.make, self.options = network(), make, options
        self.calls: list[str] = []
        self.perturbed: list[bool] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss, logged."""
        inputs, labels = batch
        loss = cross_entropy(self.model(inputs), labels)
        self.calls.append("training_step")
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"one": 1.0}, on_step=False, on_epoch=True, reduce_fx="sum")
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Count."""
        self.calls.append("on_before_optimizer_step")

    def on_train_batch_end(self, *_: Any) -> None:
        """What is saved after a batch is w."""
        optimizer = self.trainer.optimizers[0]
        self.perturbed.append(getattr(optimizer, "_perturbed", None) is not None)

    def configure_optimizers(self) -> Any:
        """SAM with momentum and a schedule by step."""
        options = {"lr": LR, "rho": RHO, "momentum": 0.9, **self.options}
        if self.make is torch.optim.SGD:
            del options["rho"]
        optimizer = self.make(self.parameters(), **options)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FACTOR)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(task: Task, root: Path, epochs: int, callback: bool = True, path: Any = None, **options: Any) -> Any:
    """Train."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SharpnessAwareCallback()] if callback else [],
        **{"enable_checkpointing": False, **options},
    )
    loader = DataLoader(TensorDataset(*data()), batch_size=BATCH)
    trainer.fit(task, loader, ckpt_path=path)
    return trainer


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_callback_makes_the_steps_of_sam(accumulate: int, clip: bool, tmp_path: Path) -> None:
    """Lightning divides the losses of a last, shorter step by the full number of micro-batches."""
    task = Task()
    clipping = {"gradient_clip_val": CLIP} if clip else {}
    trainer = fit(task, tmp_path, 3, accumulate_grad_batches=accumulate, **clipping)
    weights, losses = plain_sam(3, accumulate, clip, divisor=lambda _: accumulate)
    assert largest_gap(list(task.parameters()), weights) < 1e-5
    steps = 3 * -(-5 // accumulate)
    assert trainer.global_step == steps
    assert task.calls.count("on_before_optimizer_step") == steps
    assert task.calls.count("training_step") == 2 * len(losses)
    assert not any(task.perturbed)
    assert trainer.logged_metrics["loss_step"].item() == pytest.approx(losses[-1], rel=1e-4)
    assert trainer.logged_metrics["loss_epoch"].item() == pytest.approx(sum(losses[-5:]) / 5, rel=1e-4)
    assert trainer.logged_metrics["one"].item() == 5
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR * FACTOR**steps)


def test_what_hooks_around_backward_log_counts_in_the_first_pass(tmp_path: Path) -> None:
    class Logging(Task):
        """It logs the norm of the gradient, so to speak."""

        def on_after_backward(self) -> None:
            """Log."""
            self.log("hook", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")

    trainer = fit(Logging(), tmp_path, 1)
    assert trainer.logged_metrics["hook"].item() == 5


def test_without_the_callback_the_closure_makes_both_passes(tmp_path: Path) -> None:
    """So the weights are those of SAM where nothing is accumulated, but hooks and logs see both passes."""
    task = Task()
    trainer = fit(task, tmp_path, 2, callback=False)
    assert largest_gap(list(task.parameters()), plain_sam(2)[0]) < 1e-5
    assert trainer.global_step == 10
    assert trainer.logged_metrics["one"].item() == 10


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_rho_0_and_with_another_optimizer_it_is_lightning_as_ever(accumulate: int, tmp_path: Path) -> None:
    sharp, plain, bare = Task(rho=0.0), Task(torch.optim.SGD), Task(torch.optim.SGD)
    fit(sharp, tmp_path, 2, accumulate_grad_batches=accumulate)
    fit(plain, tmp_path, 2, accumulate_grad_batches=accumulate)
    fit(bare, tmp_path, 2, callback=False, accumulate_grad_batches=accumulate)
    assert same(list(plain.parameters()), list(bare.parameters()))
    assert largest_gap(list(sharp.parameters()), list(plain.parameters())) < 1e-5


@pytest.mark.parametrize("make", [sharpkern.RandomSAM, sharpkern.FisherSAM])
def test_a_resumed_fit_equals_an_uninterrupted_one(make: Any, tmp_path: Path) -> None:
    whole, first, rest = Task(make), Task(make), Task(make)
    fit(whole, tmp_path, 4, accumulate_grad_batches=2)
    trainer = fit(first, tmp_path, 2, accumulate_grad_batches=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer = fit(rest, tmp_path, 4, path=tmp_path / "half.ckpt", accumulate_grad_batches=2)
    assert trainer.global_step == 12
    assert same(list(rest.parameters()), list(whole.parameters()))


def test_bfloat16_autocast_runs(tmp_path: Path) -> None:
    task = Task()
    fit(task, tmp_path, 2, precision="bf16-mixed", accumulate_grad_batches=2)
    gap = largest_gap(list(task.parameters()), plain_sam(2, 2, divisor=lambda _: 2)[0])
    assert 0 < gap < 0.05


def test_an_exception_in_a_pass_leaves_w(tmp_path: Path) -> None:
    for number in (1, 2):
        task = Task()
        before = [p.detach().clone() for p in task.parameters()]

        def training_step(batch: Any, batch_idx: int, task: Task = task, number: int = number) -> Tensor:
            if len(task.calls) + 1 == number:
                raise KeyError("of the user")
            return Task.training_step(task, batch, batch_idx)

        task.training_step = training_step  # type: ignore[method-assign]
        with pytest.raises(KeyError, match="of the user"):
            fit(task, tmp_path, 1)
        assert same(list(task.parameters()), before)
