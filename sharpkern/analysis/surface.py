"""The loss over a plane through w."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sharpkern.analysis.gradients import lent
from sharpkern.variants import SAM

Direction = Sequence[Tensor]  # one tensor a parameter


def filter_normalised(params: Iterable[Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    """A random direction d in which every filter has the norm of the weights' (Li et al. 2018, section 4).

    d_f ← d_f ‖w_f‖/‖d_f‖, d normal. A filter is what one output sees: a slice along the first dimension. Parameters of
    fewer than two dimensions, biases and those of normalisation layers, do not move.

    Args:
        params: The parameters.
        seed: Of the normal numbers, drawn on the CPU. Two seeds give two directions that are nearly orthogonal.

    Returns:
        One tensor a parameter, of its shape, dtype and device; in units of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_normalised(p.detach(), generator) for p in params)


def _normalised(w: Tensor, generator: torch.Generator) -> Tensor:
    d = torch.randn(w.shape, generator=generator).to(w)
    if w.ndim < 2:
        return torch.zeros_like(w)
    rest = tuple(range(1, w.ndim))
    ratio = torch.linalg.vector_norm(w, dim=rest, keepdim=True) / torch.linalg.vector_norm(d, dim=rest, keepdim=True)
    return d.mul_(ratio)


@contextmanager
def displaced(optimizer: SAM, direction: Direction) -> Generator[None]:
    """w + d inside the block, and w again after it, bit for bit, exceptions included.

    SAM with g = d and ρ = ‖d‖ goes by ρ g/‖g‖ = d, so that its fused perturb and restore serve any direction.

    Args:
        optimizer: Of the parameters, in one group; what its ρ was comes back.
        direction: d.
    """
    (group,) = optimizer.param_groups
    rho = group["rho"]
    norms = [torch.linalg.vector_norm(d, dtype=torch.float64) for d in direction]
    with lent(group["params"], direction):
        try:
            group["rho"] = sum(x.item() ** 2 for x in norms) ** 0.5
            with optimizer.perturbed():
                yield
        finally:
            group["rho"] = rho


def loss_surface(
    params: Iterable[Tensor],
    directions: tuple[Direction, Direction],
    along: tuple[Sequence[float], Sequence[float]],
    measure: Callable[[], float],
) -> Tensor:
    """Whatever is measured at w + a d₁ + b d₂, such as the loss, on a grid of (a, b).

    Every point is reached from w itself, and w comes back bit for bit, also after an exception.

    Args:
        params: The parameters.
        directions: d₁ and d₂, such as `filter_normalised` makes them; one tensor a parameter.
        along: Values of a and of b.
        measure: Called at every point, without gradients. Call `model.eval()` before: at each point running statistics
            would move on.

    Returns:
        Of shape (number of a, number of b), float64.
    """
    optimizer = SAM(list(params))
    values = torch.empty(len(along[0]), len(along[1]), dtype=torch.float64)
    with torch.no_grad():
        for i, a in enumerate(along[0]):
            for j, b in enumerate(along[1]):
                d = [a * x + b * y for x, y in zip(*directions, strict=True)]
                with displaced(optimizer, d):
                    values[i, j] = measure()
    return values
