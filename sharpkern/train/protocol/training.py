"""One run, epoch by epoch, with a checkpoint after each."""

from __future__ import annotations

import time
from collections.abc import Callable
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
from sharpkern.train.protocol.job import Job
from sharpkern.train.protocol.start import load_weights, save

STEPS_AT = (0.3, 0.6, 0.8)
STEP_FACTOR = 0.2
TEST_BATCH = 500


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


def train(
    job: Job,
    data: Images,
    start: Path | None,
    checkpoint: Path,
    backend: str,
    device: str,
    advance: Callable[[int], None],
) -> Outcome:
    """Trains one network, or goes on where its checkpoint stands: bit for bit as if it had never stopped.

    Args:
        job: The run.
        data: Its images.
        start: Weights to start from; None for random ones.
        checkpoint: Where the state after every epoch goes.
        backend: Of sharpkern's optimizers.
        device: Where to train.
        advance: Called after each epoch, one from the checkpoint too, with its backward passes.

    Returns:
        What came out.

    Raises:
        ValueError: `start` does not fit the network.
    """
    generator = torch.Generator().manual_seed(job.seed)
    labels = flip_labels(data.train_labels, job.setting.noise, generator, data.source.classes)
    model = networks.make(job.setting.network, data.source.shape[0], data.source.classes, job.seed)
    if start is not None:
        load_weights(model, start)
    model.to(device)
    optimizer = make_optimizer(job, model, backend)
    scheduler = schedule(job.preset.schedule, optimizer, job.epochs)
    done, train_loss, seconds = 0, float("nan"), 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for part, name in ((model, "model"), (optimizer, "optimizer"), (scheduler, "schedule")):
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"].cpu())
        done, train_loss, seconds = saved["epochs"], saved["train_loss"], saved["seconds"]
    passes = job.contender.passes * (len(labels) // job.batch_size)
    advance(done * passes)
    for epoch in range(done, job.epochs):
        begin = time.perf_counter()
        losses = [
            job.contender.style(
                optimizer, Batch(model, images.to(device), classes.to(device), job.setting.label_smoothing)
            )[0]
            for images, classes in batches(data, labels, job.batch_size, job.setting.augmentation, generator)
        ]
        train_loss = torch.stack(losses).mean().item()
        scheduler.step()
        seconds += time.perf_counter() - begin
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": scheduler.state_dict(),
            "generator": generator.get_state(),
            "epochs": epoch + 1,
            "train_loss": train_loss,
            "seconds": seconds,
        }
        save(state, checkpoint)
        advance(passes)
    return Outcome(accuracy(model, data, device), train_loss, seconds, model.state_dict())


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
