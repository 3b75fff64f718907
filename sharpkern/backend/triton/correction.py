"""What a method makes of the gradient in the second half of a step, as in `csrc/correction.h`: one function a formula.

A formula takes g2, the gradient g of the first pass, what is kept of the covariance, ε, the updates done before, the
radius, the norm of the first pass, the scalars of the covariance and others. It gives what the base update takes and
what is kept. What it does not read may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from sharpkern.backend.triton.covariance import damped, moved, tracer_fisher, tracer_s, within
from sharpkern.backend.triton.covariance import scalars as covariance_scalars
from sharpkern.backend.triton.philox import normals
from sharpkern.base import Number
from sharpkern.correction import Correction, Traced


@triton.jit
def natural(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """The natural gradient s g2, with s from the f of the first pass."""
    return damped(f, scalars) * g2, f


@triton.jit
def drawn(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """MFVI: s moves by the slope g2 ε / 2."""
    return g2, moved(f, 0.5 * g2 * epsilon, scalars)


@triton.jit
def _average(g, f, scalars):
    """TRACER: the next f, where it is no moment of Adam's."""
    return tl.fma(scalars[2], g * g, scalars[1] * f)


@triton.jit
def traced(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """TRACER: g + c (g2 - g), c = factor rho norm. Then f moves."""
    return tl.fma(others[0] * radius * norm, g2 - g, g), _average(g, f, scalars)


@triton.jit
def traced_scaled(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """TRACER: the same times s."""
    s = tracer_s(tracer_fisher(f, step, scalars), scalars)
    return tl.fma(others[0] * radius * norm, g2 - g, g) * s, _average(g, f, scalars)


@triton.jit
def known(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """TRACER where g2 is the gradient of the penalised loss already."""
    return g2, _average(g, f, scalars)


@triton.jit
def known_scaled(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """TRACER: the same times s."""
    return g2 * tracer_s(tracer_fisher(f, step, scalars), scalars), _average(g, f, scalars)


@triton.jit
def estimated(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """Evolution strategies with s = 1, from the sums over the draws."""
    return g2 / (others[0] * radius), f


@triton.jit
def estimated_learned(g2, g, f, epsilon, step, radius, norm, scalars, others):
    """Evolution strategies that learn s."""
    g2, f = estimated(g2, g, f, epsilon, step, radius, norm, scalars, others)
    return g2 / tl.sqrt(f), within(f * tl.exp(0.5 * others[1] * epsilon))


@triton.jit
def summed(pairs, count, key, draw, place, j, SIZE: tl.constexpr, CUT: tl.constexpr):
    """Σ_k weights_k η_k and Σ_k utilities_k (η_k² - 1) over the draws from `draw` on."""
    weighted, squares = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
    for k in range(count):
        noise = normals(key, draw + k, place, j, SIZE, CUT)
        weighted = tl.fma(tl.load(pairs + k), noise, weighted)
        squares = tl.fma(tl.load(pairs + count + k), tl.fma(noise, noise, -1.0), squares)
    return weighted, squares


class Formula(NamedTuple):
    """A correction and what it reads and writes.

    Attributes:
        function: Gives the gradient and what is kept.
        first: Whether it reads g, which a second moment takes then.
        state: Whether it reads what is kept.
        epsilon: Whether it reads ε.
        moves: Whether it writes what is kept.
        step: Whether it reads the updates done before.
    """

    function: Any
    first: bool = False
    state: bool = False
    epsilon: bool = False
    moves: bool = False
    step: bool = False


def formula(correction: Correction | None, state: bool) -> Formula:
    """What a kernel runs; `state` whether anything is kept of the covariance."""
    if correction is None:
        return Formula(None)
    if isinstance(correction, Traced):
        average, scaled = not correction.tracer.adam, correction.precondition
        function = (traced_scaled if scaled else traced) if correction.factor else (known_scaled if scaled else known)
        return Formula(function, True, average or scaled, moves=average, step=scaled and not average)
    if correction.kernel == "estimated":
        return Formula(estimated_learned if state else estimated, state=state, moves=state)
    natural_, drawn_ = Formula(natural, state=True), Formula(drawn, state=True, epsilon=True, moves=True)
    return {"natural": natural_, "drawn": drawn_}[correction.kernel]


def arguments(correction: Correction | None) -> tuple[Number, tuple[float, ...], tuple[float, float]]:
    """What a formula takes: the radius, the scalars of the covariance, and others."""
    none: Sequence[Number] = ()
    kernel, values = ("", none) if correction is None else (correction.kernel, correction.scalars)
    radius: Number = 0.0
    others = (0.0, 0.0)
    if kernel == "estimated":
        noise, lr, radius = values
        others, values = (float(noise), float(lr)), ()
    elif kernel == "traced":
        *of_tracer, factor, _, radius = values
        others, values = (float(factor), 0.0), of_tracer
    return radius, covariance_scalars(kernel, [float(x) for x in values]), others
