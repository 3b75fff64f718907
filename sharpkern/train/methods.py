"""The table of methods that `sharpkern train` compares: a new method is a new row of `METHODS`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sharpkern import ASAM, SAM, FisherSAM, SharpnessAware, frozen_statistics


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


Factory = Callable[[nn.Module, Setup], Any]
Backward = Callable[[], Tensor]
Style = Callable[[Any, nn.Module, Backward], tuple[Tensor, float]]


@dataclass(frozen=True)
class Method:
    """A row: how the optimizer is made and how it takes a step.

    Attributes:
        name: What is typed after `--methods`.
        title: What the table and the figure show.
        factory: Makes the optimizer of a model.
        style: Takes one step; see `one_pass` and `two_passes`.
        passes: Backward passes a step, by which the progress bar weighs it.
        epoch_factor: Multiple of `Options.epochs`.
    """

    name: str
    title: str
    factory: Factory
    style: Style
    passes: int
    epoch_factor: int = 1


def one_pass(optimizer: torch.optim.Optimizer, model: nn.Module, backward: Backward) -> tuple[Tensor, float]:
    """A step of an ordinary optimizer.

    Args:
        optimizer: Of torch.
        model: The network it trains.
        backward: Computes the loss of the batch and its gradients, and returns the loss.

    Returns:
        The loss, and the seconds spent in `step`.
    """
    loss = backward()
    seconds = _seconds(optimizer.step, loss.device)
    optimizer.zero_grad()
    return loss, seconds


def two_passes(optimizer: SharpnessAware, model: nn.Module, backward: Backward) -> tuple[Tensor, float]:
    """A step of a sharpness-aware optimizer; the running statistics see the first pass only.

    Args:
        optimizer: Of sharpkern.
        model: The network it trains.
        backward: Computes the loss of the batch and its gradients, and returns the loss.

    Returns:
        The loss at the unperturbed weights, and the seconds spent in `first_step` and `second_step` together.
    """
    loss = backward()
    seconds = _seconds(optimizer.first_step, loss.device)
    optimizer.zero_grad()
    with frozen_statistics(model):
        backward()
    seconds += _seconds(optimizer.second_step, loss.device)
    optimizer.zero_grad()
    return loss, seconds


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


def _sharp(optimizer: Callable[..., SharpnessAware], clean: Mapping[str, float], noisy: Mapping[str, float]) -> Factory:
    def factory(model: nn.Module, setup: Setup) -> SharpnessAware:
        options = noisy if setup.noisy else clean
        return optimizer(model.parameters(), torch.optim.SGD, backend=setup.backend, **options, **setup.base)

    return factory


_SAM = _sharp(SAM, clean={"rho": 0.05}, noisy={"rho": 0.1})
_ASAM = _sharp(ASAM, clean={"rho": 0.5, "eta": 0.01}, noisy={"rho": 0.5, "eta": 0.01})
_FISHER_SAM = _sharp(FisherSAM, clean={"rho": 0.1, "eta": 1.0}, noisy={"rho": 0.1, "eta": 0.001})

_ROWS = (
    Method("sgd", "SGD", _sgd, one_pass, passes=1),
    Method("sgd2x", "SGD 2x epochs", _sgd, one_pass, passes=1, epoch_factor=2),
    Method("sam", "SAM", _SAM, two_passes, passes=2),
    Method("asam", "ASAM", _ASAM, two_passes, passes=2),
    Method("fishersam", "Fisher SAM", _FISHER_SAM, two_passes, passes=2),
)

METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}
