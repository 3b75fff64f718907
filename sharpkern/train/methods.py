"""The table of methods that `sharpkern train` compares: a new method is a new row of `METHODS`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sharpkern import (
    ASAM,
    MFVI,
    SAM,
    TRACER,
    EvolutionStrategies,
    FisherSAM,
    MixSAM,
    RandomSAM,
    SharpnessAware,
    VariationalSAM,
    frozen_statistics,
)

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """What an optimizer is built from, beside the model.

    Attributes:
        base: Options of SGD: lr, momentum, weight_decay.
        backend: Of sharpkern's optimizers.
        noisy: Whether training labels were flipped, which the papers give other rho and eta.
    """

    base: Mapping[str, Any]
    backend: str
    noisy: bool


@dataclass(frozen=True)
class Batch:
    """Images with their labels, and the loss that a model is trained by.

    Attributes:
        model: The network.
        images: (n, 1, 8, 8).
        labels: (n,).
        label_smoothing: Of the loss.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    label_smoothing: float

    def loss(self) -> Tensor:
        """The mean loss."""
        return cross_entropy(self.model(self.images), self.labels, label_smoothing=self.label_smoothing)

    def backward(self) -> Tensor:
        """The same, its gradients computed."""
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


Factory = Callable[[nn.Module, Setup], Any]
Style = Callable[[Any, Batch], tuple[Tensor, float]]


@dataclass(frozen=True)
class Method:
    """A row: how the optimizer is made and how it takes a step.

    Attributes:
        name: What is typed after `--methods`.
        title: What the table and the figure show.
        factory: Makes the optimizer of a model.
        style: Takes one step; see the functions below.
        passes: Backward passes a step, or what takes as long, by which the progress bar weighs it.
        epoch_factor: Multiple of `Options.epochs`.
    """

    name: str
    title: str
    factory: Factory
    style: Style
    passes: int
    epoch_factor: int = 1


def one_pass(optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[Tensor, float]:
    """A step of an ordinary optimizer.

    Args:
        optimizer: Of torch.
        batch: What the step sees.

    Returns:
        The loss, and the seconds spent in `step`.
    """
    loss = batch.backward()
    seconds = _seconds(optimizer.step, loss.device)
    optimizer.zero_grad()
    return loss, seconds


def two_passes(optimizer: SharpnessAware, batch: Batch) -> tuple[Tensor, float]:
    """A step of two backward passes; the running statistics see the first only.

    Args:
        optimizer: Of sharpkern.
        batch: What the step sees.

    Returns:
        The loss at the unperturbed weights, and the seconds spent in `first_step` and `second_step` together.
    """
    loss = batch.backward()
    seconds = _seconds(optimizer.first_step, loss.device)
    optimizer.zero_grad()
    with frozen_statistics(batch.model):
        batch.backward()
    seconds += _seconds(optimizer.second_step, loss.device)
    optimizer.zero_grad()
    return loss, seconds


def noisy_pass(optimizer: SharpnessAware, batch: Batch) -> tuple[Tensor, float]:
    """A step of one backward pass at a random perturbation.

    Args:
        optimizer: Of sharpkern.
        batch: What the step sees.

    Returns:
        The loss at the perturbed weights, and the seconds spent in `first_step` and `second_step` together.
    """
    seconds = _seconds(optimizer.first_step, batch.images.device)
    loss = batch.backward()
    seconds += _seconds(optimizer.second_step, loss.device)
    optimizer.zero_grad()
    return loss, seconds


def forward_passes(optimizer: EvolutionStrategies, batch: Batch) -> tuple[Tensor, float]:
    """A step without backward passes.

    Args:
        optimizer: Of sharpkern.
        batch: What the step sees.

    Returns:
        The mean loss, and the seconds spent in `step` but not in the forward passes.
    """
    device = batch.images.device
    start = time.perf_counter()
    passes = 0.0

    def closure() -> Tensor:
        nonlocal passes
        begin = time.perf_counter()
        loss = batch.loss()
        _finish(device)
        passes += time.perf_counter() - begin
        return loss

    loss = optimizer.step(closure)
    _finish(device)
    return loss, time.perf_counter() - start - passes


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _sgd(model: nn.Module, setup: Setup) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **setup.base)


def _sharp(optimizer: Callable[..., SharpnessAware], clean: Options, noisy: Options | None = None) -> Factory:
    def factory(model: nn.Module, setup: Setup) -> SharpnessAware:
        options = noisy if setup.noisy and noisy is not None else clean
        return optimizer(model.parameters(), torch.optim.SGD, backend=setup.backend, **options, **setup.base)

    return factory


def _adam_tracer(model: nn.Module, setup: Setup) -> TRACER:
    base = {"lr": setup.base["lr"] / 10, "eps": 1e-4, "weight_decay": setup.base["weight_decay"]}
    return TRACER(model.parameters(), torch.optim.Adam, backend=setup.backend, **base)


def _evolution(model: nn.Module, setup: Setup) -> EvolutionStrategies:
    base = {"lr": setup.base["lr"] / 10, "model": model}
    return EvolutionStrategies(model.parameters(), torch.optim.Adam, pairs=PAIRS, backend=setup.backend, **base)


PAIRS = 8

_ROWS = (
    Method("sgd", "SGD", _sgd, one_pass, passes=1),
    Method("sgd2x", "SGD 2x epochs", _sgd, one_pass, passes=1, epoch_factor=2),
    Method("sam", "SAM", _sharp(SAM, {"rho": 0.05}, {"rho": 0.1}), two_passes, passes=2),
    Method("asam", "ASAM", _sharp(ASAM, {"rho": 0.5, "eta": 0.01}), two_passes, passes=2),
    Method(
        "fishersam",
        "Fisher SAM",
        _sharp(FisherSAM, {"rho": 0.1, "eta": 1.0}, {"rho": 0.1, "eta": 0.001}),
        two_passes,
        passes=2,
    ),
    Method("mixsam", "MixSAM", _sharp(MixSAM, {"rho": 0.05}, {"rho": 0.1}), two_passes, passes=2),
    Method("variationalsam", "VariationalSAM", _sharp(VariationalSAM, {"rho": 0.05}), two_passes, passes=2),
    Method("tracer", "SGD-TRACER", _sharp(TRACER, {}), two_passes, passes=2),
    Method("adamtracer", "Adam-TRACER", _adam_tracer, two_passes, passes=2),
    Method("randomsam", "RandomSAM", _sharp(RandomSAM, {"rho": 0.05}), noisy_pass, passes=1),
    Method("mfvi", "MFVI", _sharp(MFVI, {"rho": 0.05}), noisy_pass, passes=1),
    Method("es", "ES", _evolution, forward_passes, passes=PAIRS),
)

METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}
