"""One run, epoch by epoch, with a checkpoint after each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from sharpkern.train import networks
from sharpkern.train.data import flip_labels
from sharpkern.train.data.augment import batches
from sharpkern.train.data.images import Images
from sharpkern.train.methods import Batch
from sharpkern.train.options import Options
from sharpkern.train.protocol.job import Job
from sharpkern.train.protocol.start import HEAD, save
from sharpkern.train.weights import load_weights
from sharpkern.usage import UsageError

STEPS_AT = (0.3, 0.6, 0.8)
STEP_FACTOR = 0.2
TEST_BATCH = 500
PARTS = ("model", "optimizer", "scheduler")
NUMBERS = ("epochs", "train_loss", "seconds")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        test_accuracy: Percent, after the last epoch.
        train_loss: Mean over the steps of the last epoch.
        seconds: Of training, evaluation left out, over all parts of an interrupted run.
        weights: The model's last state.
    """

    test_accuracy: float
    train_loss: float
    seconds: float
    weights: dict[str, Any]


def schedule(name: str, optimizer: torch.optim.Optimizer, epochs: int) -> LRScheduler:
    """The learning rate by epochs.

    Args:
        name: "cosine" or "step"; see `Preset`.
        optimizer: Whose.
        epochs: Of the whole run.

    Returns:
        A scheduler to step after every epoch.
    """
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=epochs)
    return MultiStepLR(optimizer, [max(1, round(share * epochs)) for share in STEPS_AT], STEP_FACTOR)


class Training:
    """One run at the end of an epoch; what it needs to go on is its `state_dict`.

    Args:
        job: The run.
        data: Its images.
        start: Weights to start from; None for random ones.
        backend: Of sharpkern's optimizers.
        device: Where to train.

    Raises:
        UsageError: `start` does not fit the network.
    """

    def __init__(self, job: Job, data: Images, start: Path | None, backend: str, device: str) -> None:
        self.job, self.data, self.device = job, data, device
        ours = job.contender.optimizer is not None
        self.backend = Options(backend=backend, device=device).chosen_backend() if ours else ""
        self.generator = torch.Generator().manual_seed(job.seed)
        self.labels = flip_labels(data.train_labels, job.setting.noise, self.generator, data.source.classes)
        self.model = networks.make(job.setting.network, data.source.shape[0], data.source.classes, job.seed)
        if start is not None:
            load_weights(self.model, start, HEAD)
        self.model.to(device)
        self.optimizer = make_optimizer(job, self.model, backend)
        self.scheduler = schedule(job.preset.schedule, self.optimizer, job.epochs)
        self.epochs, self.train_loss, self.seconds = 0, math.nan, 0.0

    def epoch(self) -> None:
        """All batches once."""
        begin = time.perf_counter()
        setting, losses = self.job.setting, []
        for images, labels in batches(
            self.data, self.labels, self.job.batch_size, setting.augmentation, self.generator
        ):
            batch = Batch(self.model, images.to(self.device), labels.to(self.device), setting.label_smoothing)
            losses.append(self.job.contender.style(self.optimizer, batch)[0])
        self.train_loss = torch.stack(losses).mean().item()
        self.scheduler.step()
        self.seconds += time.perf_counter() - begin
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to equal one that was not interrupted."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {**parts, **numbers, "generator": self.generator.get_state(), "backend": self.backend}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where the state was taken."""
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in NUMBERS:
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"].cpu())

    def outcome(self) -> Outcome:
        """What it came to so far."""
        test_accuracy = accuracy(self.model, self.data, self.device)
        return Outcome(test_accuracy, self.train_loss, self.seconds, self.model.state_dict())


def train(training: Training, checkpoint: Path, advance: Callable[[int], None]) -> Outcome:
    """Trains to the end, or goes on where a checkpoint stands: bit for bit as if the run had never stopped.

    Args:
        training: At its beginning.
        checkpoint: Where the state goes after every epoch.
        advance: Called with the epochs of the checkpoint, then after each epoch with 1.

    Returns:
        What came out.

    Raises:
        UsageError: The checkpoint cannot be read, or is of another backend.
    """
    if checkpoint.exists():
        _resume(training, checkpoint)
    advance(training.epochs)
    while training.epochs < training.job.epochs:
        training.epoch()
        save(training.state_dict(), checkpoint)
        advance(1)
    return training.outcome()


def _resume(training: Training, checkpoint: Path) -> None:
    told = f"{checkpoint}: cannot be read; delete it and the run starts anew"
    try:
        state = torch.load(checkpoint, map_location=training.device, weights_only=True)
    except Exception as error:  # torch has no type of its own for a damaged file: UnpicklingError, EOFError, ...
        raise UsageError(told) from error
    if not isinstance(state, dict) or not {*PARTS, *NUMBERS, "generator"} <= state.keys():
        raise UsageError(told)
    backend = state.get("backend", training.backend)
    if backend != training.backend:
        raise UsageError(
            f"{checkpoint}: the run began with backend {backend}, now it would go on with {training.backend}; give "
            f"--backend {backend}, or delete the file and the run starts anew"
        )
    training.load_state_dict(state)


def make_optimizer(job: Job, model: nn.Module, backend: str) -> Any:
    """The optimizer of a run, of torch or of sharpkern."""
    base: dict[str, float] = {"lr": job.lr, "weight_decay": job.setting.weight_decay}
    if job.contender.base == "SGD":
        base["momentum"] = job.preset.momentum
    options = dict(job.options)
    if job.contender.sigma is not None:
        options["seed"] = job.seed
    return job.contender.make(model, options, base, backend)


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, device: str) -> float:
    """Percent of the test images that the model, in evaluation mode, gives their labels."""
    model.eval()
    hits = 0
    for first in range(0, len(data.test_labels), TEST_BATCH):
        part = slice(first, first + TEST_BATCH)
        images, labels = data.test_images[part], data.test_labels[part]
        hits += int((model(data.standardise(images).to(device)).argmax(dim=1).cpu() == labels).sum())
    model.train()
    return 100 * hits / len(data.test_labels)
