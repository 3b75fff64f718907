"""Bytes that an op has to move, counted from the definitions of the formulas.

Everything that is read or written counts once: what was written is not read before where it is streamed past the cache.
All functions give bytes a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sharpkern.base import Update
from sharpkern.covariance import Covariance


@dataclass(frozen=True)
class Sizes:
    """Bytes of one element.

    Attributes:
        weight: Of a weight and of its copy.
        gradient: Of a gradient.
        state: Of what is kept.
    """

    weight: int = 4
    gradient: int = 4
    state: int = 4

    @classmethod
    def of(cls, dtype: torch.dtype) -> Sizes:
        """Those of weights and gradients of a dtype."""
        return cls(dtype.itemsize, dtype.itemsize, 8 if dtype == torch.float64 else 4)


def reads_weight(covariance: Covariance) -> bool:
    """Whether s depends on w."""
    one = torch.ones(1)
    f = covariance.fisher(one, one)
    return bool(covariance.s(one, f) != covariance.s(2 * one, f))


def _moves(covariance: Covariance) -> bool:
    """Whether the perturbation writes what is kept."""
    one = torch.ones(1)
    return covariance.after(one, covariance.fisher(one, one), 1.0) is not None


def sq_norm(covariance: Covariance, sizes: Sizes) -> int:
    """Σ s g²: reads g, and w and what is kept where s wants them."""
    kept = sizes.state if covariance.state else 0
    return sizes.gradient + (sizes.weight if reads_weight(covariance) else 0) + kept


def ascend(covariance: Covariance, sizes: Sizes, gradient: bool = True) -> int:
    """w0 ← w, w ← w + ε: reads w and g, writes both weights; without `gradient` ε is noise alone."""
    kept = sizes.state * (1 + _moves(covariance)) if covariance.state else 0
    return 3 * sizes.weight + (sizes.gradient if gradient else 0) + kept


def descend(update: Update, sizes: Sizes) -> int:
    """w ← update(w0, g): reads w0 and g, writes w, reads and writes the state."""
    return 2 * sizes.weight + sizes.gradient + 2 * sizes.state * len(update.states)


def restore(sizes: Sizes) -> int:
    """w ← w0."""
    return 2 * sizes.weight


def step(covariance: Covariance, update: Update, sizes: Sizes, passes: int = 2, second_norm: bool = False) -> int:
    """A whole step.

    Args:
        covariance: Of the perturbation.
        update: The base update.
        sizes: Bytes of an element.
        passes: Backward passes; with one there is no norm and no gradient in the perturbation.
        second_norm: Whether the norm of the second gradient is taken too, to clip it or to see that it is finite.

    Returns:
        Bytes a parameter: 40 for SAM with SGD and momentum in float32, 48 with Adam.
    """
    norm = sq_norm(covariance, sizes) if passes == 2 else 0
    again = sizes.gradient if second_norm else 0
    return norm + ascend(covariance, sizes, gradient=passes == 2) + again + descend(update, sizes)


def held(update: Update, sizes: Sizes) -> int:
    """What there is without any perturbation: weight, gradient, and the state of the base update."""
    return sizes.weight + sizes.gradient + sizes.state * len(update.states)
