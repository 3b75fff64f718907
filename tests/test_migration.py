"""What docs/migration.md says of others, and of the steps that it puts in their place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import BASES, VARIANTS, build, closure_of, largest_gap, network_loss, network_weights, parameters
from oracles import value_and_gradients as gradients_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from training import BATCH, LR, RHO, data, network, plain_sam

import sharpkern

SEED = 60


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("base", ["sgd-momentum", "sgd-nesterov", "adam-decay", "adamw"])
def test_plain_steps_in_between_share_momentum_and_moments(base: str, first: int, backend: str) -> None:
    """Composer's interval, here 2, starting with a plain step or with SAM."""
    params = parameters(network_weights(SEED))
    optimizer = build(sharpkern, "sam", base, params, backend)
    oracle = VARIANTS["sam"].oracle(params, BASES[base][1](**BASES[base][2]))
    for step in range(8):
        loss = network_loss(SEED, step)
        closure = closure_of(optimizer, params, loss)
        if step % 2 == first:
            optimizer.step(closure)
            oracle.step(loss)
        else:
            closure()
            optimizer.base_optimizer.step()
            oracle.descend(gradients_of(loss, oracle.w)[1])
    assert largest_gap(params, oracle.w) < 1e-5


def test_pytorch_optimizer_counts_batches_twice_and_sharpkern_once() -> None:
    peer = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer, a test dependency, is not installed")
    norms = [nn.BatchNorm1d(3), nn.BatchNorm1d(3)]
    x = torch.randn(8, 3)

    def closure(norm: nn.Module, optimizer: Any) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = norm(x).cos().mean()
        loss.backward()
        return loss

    theirs = peer.SAM(norms[0].parameters(), torch.optim.SGD, lr=0.1)
    closure(norms[0], theirs)
    peer.disable_running_stats(norms[0])
    theirs.step(lambda: closure(norms[0], theirs))
    ours = sharpkern.SAM(norms[1].parameters(), lr=0.1, model=norms[1])
    ours.step(lambda: closure(norms[1], ours))
    assert [int(norm.num_batches_tracked) for norm in norms] == [2, 1]
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)


@pytest.mark.filterwarnings("default:.*LeafSpec")  # Lightning's own
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_recipe_of_manual_optimization_in_lightning(wrapped: bool, tmp_path: Path) -> None:
    """It works on the optimizer itself, and `global_step` does not count."""
    pl = pytest.importorskip("lightning.pytorch")

    class Task(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization, self.model = False, network()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=wrapped)
            self.manual_backward(cross_entropy(self.model(batch[0]), batch[1]))
            optimizer.first_step(zero_grad=True)
            self.manual_backward(cross_entropy(self.model(batch[0]), batch[1]))
            optimizer.second_step(zero_grad=True)

        def on_train_epoch_end(self) -> None:
            self.lr_schedulers().step()

        def configure_optimizers(self) -> Any:
            optimizer = sharpkern.SAM(self.parameters(), lr=LR, rho=RHO, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)]

    task, loader = Task(), DataLoader(TensorDataset(*data()), batch_size=BATCH)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **quiet,
    )
    if wrapped:
        with pytest.raises(RuntimeError, match="was called on a LightningSAM that imitates the optimizer"):
            trainer.fit(task, loader)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        trainer.fit(task, loader)
    assert trainer.global_step == 0
    assert largest_gap(list(task.parameters()), plain_sam(1, factor=1.0)[0]) < 1e-5
