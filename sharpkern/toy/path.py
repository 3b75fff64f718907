"""Trajectories of the methods on the toy loss, by the package's own optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharpkern.optimizer import SharpnessAware
from sharpkern.toy.loss import fisher, loss
from sharpkern.variants import ASAM, SAM, FisherSAM

MOMENTUM = 0.9
STEPS = 600
TINY = 1e-12  # damping of the exact Fisher


@dataclass(frozen=True)
class Step:
    """One step of a trajectory.

    Attributes:
        theta: (μ, σ) before it.
        probe: ε.
        radii: Half axes of the neighbourhood, ρ sqrt(s).
    """

    theta: tuple[float, float]
    probe: tuple[float, float]
    radii: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """One start and the methods that are compared from there.

    Attributes:
        start: (μ, σ).
        lr: Learning rate; the gradient is of size 0.01, the largest curvature 0.004.
        rho: Radius of each method at the start; a cosine takes it to 0. Fisher SAM alone reaches the flat minimum.
        figure: Of [F].
    """

    start: tuple[float, float]
    lr: float
    rho: dict[str, float]
    figure: str


SCENES = {
    "sam": Scene((-30.0, 28.0), 20.0, {"SGD": 0.0, "SAM": 2.0, "Fisher SAM": 0.4}, "Fig. 2"),
    "asam": Scene((-10.0, 10.0), 150.0, {"SGD": 0.0, "ASAM": 0.2, "Fisher SAM": 0.4}, "Fig. 3"),
}


def _fisher_sam(theta: Tensor, **options: Any) -> SharpnessAware:
    return FisherSAM([theta], eta=TINY, damping="additive", fisher=lambda: [fisher(theta.detach())], **options)


METHODS: dict[str, Callable[..., SharpnessAware]] = {
    "SGD": lambda theta, **options: SAM([theta], **options),
    "SAM": lambda theta, **options: SAM([theta], **options),
    "ASAM": lambda theta, **options: ASAM([theta], eta=0.0, **options),
    "Fisher SAM": _fisher_sam,
}


def trajectory(scene: Scene, method: str) -> list[Step]:
    """The steps of a method from the start of a scene, SGD with momentum as the base update.

    Args:
        scene: Start, learning rate and radii.
        method: One of its methods.

    Returns:
        STEPS steps, and where they end as a last one without a probe.
    """
    theta = torch.nn.Parameter(torch.tensor(scene.start, dtype=torch.float64))
    optimizer = METHODS[method](theta, rho=scene.rho[method], lr=scene.lr, momentum=MOMENTUM)
    group = optimizer.param_groups[0]
    found = []
    for k in range(STEPS):
        group["rho"] = scene.rho[method] * (1 + math.cos(math.pi * k / STEPS)) / 2
        before = theta.detach().clone()
        loss(theta).backward()  # type: ignore[no-untyped-call]
        optimizer.first_step(zero_grad=True)
        probe, radii = theta.detach() - before, group["rho"] * optimizer.covariance()[0].sqrt()
        loss(theta).backward()  # type: ignore[no-untyped-call]
        optimizer.second_step(zero_grad=True)
        found.append(Step(_pair(before), _pair(probe), _pair(radii)))
    return [*found, Step(_pair(theta.detach()), (0.0, 0.0), (0.0, 0.0))]


def _pair(x: Tensor) -> tuple[float, float]:
    return x[0].item(), x[1].item()
