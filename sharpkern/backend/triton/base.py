"""The base update at one coordinate, as in `csrc/base.h`: one function a formula, passed to the kernels.

A formula takes w0, g, raw, m, v, the updates done before, the learning rate, the other options, and whether a second
moment takes raw instead of g; it gives w, m and v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from sharpkern.base import Number


@triton.jit
def decayed(weight_decay, w0, g):
    """g + weight_decay w0; without decay an infinite weight leaves g alone, as in torch."""
    return tl.where(weight_decay == 0, g, tl.fma(weight_decay, w0, g))


@triton.jit
def sgd(w0, g, raw, m, v, step, lr, options, RAW: tl.constexpr):
    """w = w0 - lr d."""
    return tl.fma(-lr, decayed(options[2], w0, options[3] * g), w0), m, v


@triton.jit
def momentum(w0, g, raw, m, v, step, lr, options, RAW: tl.constexpr):
    """m ← momentum m + fresh d; w = w0 - lr m."""
    m = tl.fma(tl.where(step == 0, 1.0, options[1]), decayed(options[2], w0, options[3] * g), options[0] * m)
    return tl.fma(-lr, m, w0), m, v


@triton.jit
def nesterov(w0, g, raw, m, v, step, lr, options, RAW: tl.constexpr):
    """m ← momentum m + fresh d; w = w0 - lr (d + momentum m)."""
    d = decayed(options[2], w0, options[3] * g)
    m = tl.fma(tl.where(step == 0, 1.0, options[1]), d, options[0] * m)
    return tl.fma(-lr, tl.fma(options[0], m, d), w0), m, v


@triton.jit
def one_minus_exp(x):
    """1 - e^x for x ≤ 0 within 2 ulp: near 0, where the difference would cancel, by the series of (1 - e^x)/x."""
    series = x * 0 + 1
    for k in tl.static_range(8, 1, -1):
        series = tl.fma(series * x, 1.0 / k, 1.0)
    return tl.where(x > -0.5, -x * series, 1 - tl.exp(x))


@triton.jit
def adam(w0, g, raw, m, v, step, lr, options, RAW: tl.constexpr):
    """m ← m + (1 - β1)(g - m);  v ← β2 v + (1 - β2) raw²;  w = (1 - lr decay) w0 - lr m̂ / (sqrt(v̂) + eps)."""
    fresh1, fresh2 = options[0], options[2]
    g = decayed(options[4], w0, options[5] * g)
    if not RAW:
        raw = g
    m = tl.where(fresh1 < 0.5, tl.fma(fresh1, g - m, m), tl.fma(fresh1 - 1, g - m, g))
    v = tl.fma(fresh2 * raw, raw, options[1] * v)
    size = tl.div_rn(lr, one_minus_exp((step + 1) * options[6]))
    root = tl.sqrt_rn(one_minus_exp((step + 1) * options[7]))
    w0 = w0 * tl.fma(-lr, options[8], 1.0)
    return w0 - tl.div_rn(size * m, tl.div_rn(tl.sqrt_rn(v), root) + options[3]), m, v


class Formula(NamedTuple):
    """A base update, and how many of m, v it keeps."""

    function: Any
    states: int


FORMULAS = {
    "sgd": Formula(sgd, 0),
    "momentum": Formula(momentum, 1),
    "nesterov": Formula(nesterov, 1),
    "adam": Formula(adam, 2),
}


def arguments(kernel: str, options: Sequence[Number]) -> tuple[Number, tuple[float, ...], bool]:
    """What a formula takes.

    Args:
        kernel: Its name.
        options: Those of the update.

    Returns:
        The learning rate, the other options, and whether the updates done before matter.
    """
    lr, *others = options
    if FORMULAS[kernel].states < 2:
        momentum, dampening, weight_decay, sign = map(float, others)
        return lr, (momentum, 1.0 - dampening, weight_decay, sign, *5 * (0.0,)), bool(momentum and dampening)
    beta1, beta2, eps, added, sign, decay = map(float, others)
    # the logarithm keeps what float32 would lose of 1 - beta
    logarithms = (math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2))
    return lr, (1.0 - beta1, beta2, 1.0 - beta2, eps, added, sign, *logarithms, decay), True
