"""Stochastic rounding, bit for bit as `csrc/philox.h` and `sharpkern/backend/reference/philox.py` define it."""

from __future__ import annotations

import triton
import triton.language as tl

from sharpkern.backend.reference.philox import ROUNDING
from sharpkern.tensors import GROUP

_GROUP = tl.constexpr(GROUP)
_ROUNDING = tl.constexpr(ROUNDING)


@triton.jit
def rounding_bits(key, draw, first, SIZE: tl.constexpr):
    """16 random bits for each of SIZE elements from `first` on, a multiple of 8; one counter serves 8 elements."""
    i = tl.arange(0, SIZE)
    # a thread that holds the 8 elements of a counter sees 8 times the same number here and computes it once
    group = first // _GROUP + i // _GROUP
    c0, c1 = group.to(tl.uint32), (group >> 32).to(tl.uint32)
    c2, c3 = c0 * 0 + draw.to(tl.uint32), c0 * 0 + _ROUNDING
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    x0, x1, x2, x3 = tl.philox_impl(c0, c1, c2, c3, k0, k1, 10)
    lane = i % _GROUP
    word = tl.where(lane < 4, tl.where(lane < 2, x0, x1), tl.where(lane < 6, x2, x3))
    return (word >> (lane % 2 * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def stochastic(x, random, TYPE: tl.constexpr):
    """One of the two neighbours of x in bfloat16 or float16, as a float32."""
    u = x.to(tl.uint32, bitcast=True)
    a = u & 0x7FFFFFFF
    if tl.bfloat16 == TYPE:
        rounded = (a + random) & 0x7FFF0000
    else:  # below 2^-14 the numbers of float16 are the multiples of 2^-24
        units = (tl.where(a < 0x38800000, tl.abs(x), 0.0) * 1099511627776.0).to(tl.uint32)  # of 2^-40
        small = ((units + random) >> 16).to(tl.float32) * 5.9604644775390625e-08
        rounded = tl.where(a < 0x38800000, small.to(tl.uint32, bitcast=True), (a + (random >> 3)) & 0x7FFFE000)
    rounded = tl.where(a >= 0x7F800000, a, rounded) | (u ^ a)
    return rounded.to(tl.float32, bitcast=True)
