"""Hugging Face Trainer: both passes in training_step, against SAM in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import largest_gap, same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler
from training import BATCH, CLIP, FACTOR, LR, RHO, data, network, plain_sam

import sharpkern

transformers = pytest.importorskip("transformers")
from sharpkern.integrations.transformers import SharpnessAwareTrainer  # ruff: ignore[module-import-not-at-top-of-file]

pytestmark = pytest.mark.filterwarnings("default")  # those of transformers are not ours


class Rows(Dataset):  # type: ignore[type-arg]
    """The data, a dictionary an example."""

    def __len__(self) -> int:
        return len(data()[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs, labels = data()
        return {"inputs": inputs[index], "labels": labels[index]}


class Classifier(nn.Module):
    """A network that gives its loss, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.calls, self.config = 0, transformers.PretrainedConfig()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where there are labels."""
        self.calls += 1
        logits = self.model(inputs)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


class Mine(SharpnessAwareTrainer):  # type: ignore[misc, unused-ignore]
    """In the order of the data."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(Rows())


def trainer_of(root: Path, epochs: int, make: Any = sharpkern.SAM, **options: Any) -> Any:
    """A Trainer with SAM and a schedule."""
    model = Classifier()
    settings = {"lr": LR, "momentum": 0.9, **({} if make is torch.optim.SGD else {"rho": RHO})}
    optimizer = make(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FACTOR)
    arguments = transformers.TrainingArguments(
        output_dir=str(root),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", "logging_steps": 1, "max_grad_norm": 0.0, **options},
    )
    return Mine(model=model, args=arguments, train_dataset=Rows(), optimizers=(optimizer, schedule))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_trainer_makes_the_steps_of_sam(accumulate: int, clip: bool, tmp_path: Path) -> None:
    """It divides the losses of a last, shorter step by the number of its micro-batches."""
    clipping = {"max_grad_norm": CLIP} if clip else {}
    trainer = trainer_of(tmp_path, 3, gradient_accumulation_steps=accumulate, **clipping)
    trainer.train()
    weights, losses = plain_sam(3, accumulate, clip)
    assert largest_gap(list(trainer.model.parameters()), weights) < 1e-5
    steps = 3 * -(-5 // accumulate)
    assert trainer.state.global_step == steps
    assert trainer.model.calls == 2 * len(losses)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == steps
    assert logged[0] == pytest.approx(sum(losses[:accumulate]) / accumulate, abs=1e-4)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(LR * FACTOR**steps)


def test_label_smoothing_is_in_both_passes(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, label_smoothing_factor=0.1)
    trainer.train()
    assert largest_gap(list(trainer.model.parameters()), plain_sam(2, smoothing=0.1)[0]) < 1e-5


def test_with_another_optimizer_nothing_changes(tmp_path: Path) -> None:
    mine = trainer_of(tmp_path, 2, torch.optim.SGD)
    mine.train()
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FACTOR)
    for _ in range(2):
        for i in range(0, len(Rows()), BATCH):
            optimizer.zero_grad()
            model(data()[0][i : i + BATCH], data()[1][i : i + BATCH])["loss"].backward()
            optimizer.step()
            schedule.step()
    assert largest_gap(list(mine.model.parameters()), list(model.parameters())) < 1e-6


@pytest.mark.parametrize("make", [sharpkern.RandomSAM, sharpkern.FisherSAM])
def test_a_resumed_trainer_equals_an_uninterrupted_one(make: Any, tmp_path: Path) -> None:
    """From a checkpoint of its own making, in the middle of an epoch."""
    saving = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    whole = trainer_of(tmp_path / "whole", 4, make, **saving)
    whole.train()
    rest = trainer_of(tmp_path / "rest", 4, make, **saving)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert rest.state.global_step == whole.state.global_step == 12
    assert same(list(rest.model.parameters()), list(whole.model.parameters()))


def test_the_trainer_makes_the_optimizer(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 1)
    options = {"base_optimizer": torch.optim.AdamW, "lr": 0.01, "rho": 0.1}
    made = Mine(
        model=Classifier(),
        args=trainer.args,
        train_dataset=Rows(),
        optimizer_cls_and_kwargs=(sharpkern.SAM, options),
    )
    made.train()
    assert isinstance(made.optimizer.optimizer, sharpkern.SAM)
    assert made.model.calls == 10


def test_bfloat16_autocast_runs(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, 2, bf16=True, gradient_accumulation_steps=2)
    trainer.train()
    assert 0 < largest_gap(list(trainer.model.parameters()), plain_sam(2, 2)[0]) < 0.05
