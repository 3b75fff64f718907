"""Accelerate: both passes within `accelerator.accumulate`, against SAM in plain torch."""

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

accelerate = pytest.importorskip("accelerate")
from sharpkern.integrations.accelerate import passes  # ruff: ignore[module-import-not-at-top-of-file]

pytestmark = pytest.mark.filterwarnings("default")  # Accelerate's own are not ours


@pytest.fixture(autouse=True)
def fresh_state() -> None:
    """Accelerate keeps its settings, such as mixed precision, for the whole process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


class Run:
    """A loop as people write it."""

    def __init__(self, accumulate: int, make: Any = sharpkern.SAM) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model = network()
        optimizer = make(model.parameters(), lr=LR, rho=RHO, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FACTOR)
        loader = DataLoader(TensorDataset(*data()), batch_size=BATCH)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, optimizer, loader, schedule
        )

    def go(self, epochs: int, clip: bool = False) -> list[float]:
        """Train; the losses."""
        losses: list[float] = []
        for _ in range(epochs):
            for inputs, labels in self.loader:
                with self.accelerator.accumulate(self.model):

                    def compute_loss(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
                        return cross_entropy(self.model(inputs), labels)

                    loss = passes(self.accelerator, self.model, self.optimizer, compute_loss)
                    if clip and self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                    self.optimizer.step()
                    self.schedule.step()
                    self.optimizer.zero_grad()
                    losses.append(loss.item())
        return losses

    @property
    def weights(self) -> list[Tensor]:
        """As they stand."""
        return [p.detach().clone() for p in self.model.parameters()]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_loop_makes_the_steps_of_sam(accumulate: int, clip: bool) -> None:
    """A last, shorter step is divided by the full number of micro-batches, as ever."""
    run = Run(accumulate)
    losses = run.go(3, clip)
    weights, expected = plain_sam(3, accumulate, clip, divisor=lambda _: accumulate)
    assert largest_gap(run.weights, weights) < 1e-5
    assert losses == pytest.approx(expected, rel=1e-4)
    steps = 3 * -(-5 // accumulate)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(LR * FACTOR**steps)


def test_the_prepared_optimizer_takes_a_closure() -> None:
    run = Run(1)
    for _ in range(2):
        for inputs, labels in run.loader:

            def closure(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
                run.optimizer.zero_grad()
                loss = cross_entropy(run.model(inputs), labels)
                run.accelerator.backward(loss)
                return loss

            run.optimizer.step(closure)
            run.schedule.step()
    assert largest_gap(run.weights, plain_sam(2)[0]) < 1e-5


@pytest.mark.parametrize("make", [sharpkern.RandomSAM, sharpkern.FisherSAM])
def test_a_resumed_loop_equals_an_uninterrupted_one(make: Any, tmp_path: Path) -> None:
    whole = Run(2, make)
    whole.go(4)
    first = Run(2, make)
    first.go(2)
    first.accelerator.save_state(str(tmp_path / "state"))
    rest = Run(2, make)
    with torch.no_grad():
        for p in rest.model.parameters():
            p.zero_()
    rest.accelerator.load_state(str(tmp_path / "state"))
    rest.go(2)
    assert same(rest.weights, whole.weights)
