"""The covariance s at one coordinate, as in `csrc/covariance.h`: one function a formula, passed to the kernels.

A formula takes the weight, the gradient, the stored Fisher diagonal and the scalars. It gives s and the Fisher diagonal
that s was taken from. What it does not read may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl


@triton.jit
def identity(w, g, f, scalars):
    """SAM: s = 1."""
    return tl.full(g.shape, 1.0, tl.float32), f


@triton.jit
def adaptive(w, g, f, scalars):
    """ASAM: s = (|w| + eta)²."""
    root = tl.abs(w) + scalars[0]
    return root * root, f


@triton.jit
def damped(f, scalars):
    """Fisher SAM: s = 1/(a + b f)."""
    return 1.0 / tl.fma(scalars[1], f, scalars[0])


@triton.jit
def fisher(w, g, f, scalars):
    """Fisher SAM with f = g², never stored."""
    f = g * g
    return damped(f, scalars), f


@triton.jit
def average(w, g, f, scalars):
    """Fisher SAM with f ← (1 - beta) f + beta g²."""
    f = tl.fma(scalars[2], g * g, scalars[3] * f)
    return damped(f, scalars), f


class Formula(NamedTuple):
    """A covariance and what it reads: `weight` whether the weight, `state` whether a stored Fisher diagonal."""

    function: Any
    weight: bool = False
    state: bool = False


FORMULAS = {
    "identity": Formula(identity),
    "adaptive": Formula(adaptive, weight=True),
    "fisher": Formula(fisher),
    "fisher_average": Formula(average, state=True),
}


def scalars(values: Sequence[float]) -> tuple[float, float, float, float]:
    """What a formula takes, of one length for all: a or eta, b, beta, 1 - beta."""
    a, b, beta = (*values, 0.0, 0.0, 0.0)[:3]
    return float(a), float(b), float(beta), 1.0 - beta
