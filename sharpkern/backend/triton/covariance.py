"""The covariance s at one coordinate, as in `csrc/covariance.h`: one function a formula, passed to the kernels.

A formula takes the weight, the gradient, what is kept of the covariance, the updates done before and the scalars. It
gives s and the Fisher diagonal that s was taken from. What it does not read may be anything. A second formula gives
what is kept once w + scale s g is reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from sharpkern.backend.triton.base import one_minus_exp
from sharpkern.covariance import S_MAX, S_MIN

_S_MIN, _S_MAX = tl.constexpr(S_MIN), tl.constexpr(S_MAX)


@triton.jit
def identity(w, g, f, step, scalars):
    """SAM: s = 1."""
    return tl.full(g.shape, 1.0, tl.float32), f


@triton.jit
def adaptive(w, g, f, step, scalars):
    """ASAM: s = (|w| + eta)²."""
    root = tl.abs(w) + scalars[0]
    return root * root, f


@triton.jit
def damped(f, scalars):
    """Fisher SAM: s = 1/(a + b f)."""
    return 1.0 / tl.fma(scalars[1], f, scalars[0])


@triton.jit
def fisher(w, g, f, step, scalars):
    """Fisher SAM with f = g², never stored."""
    f = g * g
    return damped(f, scalars), f


@triton.jit
def average(w, g, f, step, scalars):
    """Fisher SAM with f ← (1 - beta) f + beta g²."""
    f = tl.fma(scalars[2], g * g, scalars[3] * f)
    return damped(f, scalars), f


@triton.jit
def as_seen(g, f, scale, scalars):
    """The f that s was taken from."""
    return f


@triton.jit
def learned(w, g, f, step, scalars):
    """VariationalSAM, MFVI: s is kept."""
    return f, f


@triton.jit
def within(s):
    """A learned s within its bounds."""
    return tl.minimum(tl.maximum(s, _S_MIN), _S_MAX)


@triton.jit
def moved(s, slope, scalars):
    """A learned s after a step down the slope of the loss in log s."""
    slope = tl.fma(scalars[1], tl.fma(scalars[2], s, -1.0), slope)
    step = -scalars[0] * slope
    new = within(tl.where(scalars[3] != 0, s * tl.exp(step), s + step / s))
    return tl.where(slope - slope == 0, new, s)


@triton.jit
def learning(g, f, scale, scalars):
    """VariationalSAM: the slope at the worst case."""
    return moved(f, 0.5 * scale * f * (g * g), scalars)


@triton.jit
def tracer_fisher(f, step, scalars):
    """TRACER: f is an average, or Adam's second moment, whose bias is taken off; 0 before its first update."""
    bias = one_minus_exp(step * scalars[3])
    unbias = tl.where(scalars[3] == 0, 1.0, tl.where(step == 0, 0.0, 1.0 / tl.where(bias == 0, 1.0, bias)))
    return unbias * f


@triton.jit
def tracer_s(f, scalars):
    """TRACER: s = 1/(f + delta)."""
    return 1.0 / (f + scalars[0])


@triton.jit
def tracer(w, g, f, step, scalars):
    """TRACER: f moves in the second half of the step."""
    f = tracer_fisher(f, step, scalars)
    return tracer_s(f, scalars), f


class Formula(NamedTuple):
    """A covariance and what it reads.

    Attributes:
        function: Gives s and the Fisher diagonal seen.
        weight: Whether it reads the weight.
        state: Whether it reads what is kept.
        kept: Gives what is kept, where that moves in the first half of the step.
        step: Whether it reads the updates done before.
        direction: Whether the norm sums (s g)² instead of s g².
    """

    function: Any
    weight: bool = False
    state: bool = False
    kept: Any = None
    step: bool = False
    direction: bool = False


FORMULAS = {
    "identity": Formula(identity),
    "adaptive": Formula(adaptive, weight=True),
    "fisher": Formula(fisher),
    "fisher_average": Formula(average, state=True, kept=as_seen),
    "learned": Formula(learned, state=True, kept=learning),
    "tracer": Formula(tracer, state=True, step=True, direction=True),
}


def scalars(kernel: str, values: Sequence[float]) -> tuple[float, float, float, float]:
    """What a formula takes, of one length for all.

    Args:
        kernel: Its name; also one of a correction that takes the same.
        values: Those of the covariance.

    Returns:
        eta; a, b, beta, 1 - beta; lr, penalty, prior, whether log s is learned; or delta, 1 - beta, beta, ln of Adam's
        beta.
    """
    a, b, c, d = (*map(float, values), 0.0, 0.0, 0.0, 0.0)[:4]
    if kernel in ("tracer", "traced"):
        # Adam's moment moves by itself
        return (a, 1.0, 0.0, math.log(b)) if b else (a, 1.0 - c, c, 0.0)
    return (a, b, c, d) if kernel in ("learned", "drawn") else (a, b, c, 1.0 - c)
