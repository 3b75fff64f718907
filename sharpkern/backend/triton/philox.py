"""Random numbers: stochastic rounding bit for bit as in `csrc/philox.h`, normal numbers by the formulas of `normal.h`.

A thread that holds all elements of a counter sees the same words for each of them and computes them once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sharpkern.backend.reference.philox import NORMAL, ROUNDING
from sharpkern.tensors import GROUP

_GROUP = tl.constexpr(GROUP)
_NORMAL_GROUP = tl.constexpr(4)
_NORMAL, _ROUNDING = tl.constexpr(NORMAL), tl.constexpr(ROUNDING)


@triton.jit
def _words(key, draw, group, STREAM: tl.constexpr):
    """Four words of 32 bits for each counter (group, draw, stream)."""
    c0, c1 = group.to(tl.uint32), (group >> 32).to(tl.uint32)
    c2, c3 = c0 * 0 + draw.to(tl.uint32), c0 * 0 + STREAM
    return tl.philox_impl(c0, c1, c2, c3, tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32), 10)


@triton.jit
def _counters(place, j, GROUP: tl.constexpr, SIZE: tl.constexpr, CUT: tl.constexpr):
    """The counter of each of SIZE elements of a tensor from element j on, and which of its GROUP elements it is.

    `place` is index of the first element, run and pitch, as in `csrc/table.h`; without CUT the index is a multiple of 8
    and there is one run.

    Returns:
        Both, for every element.
    """
    i = tl.arange(0, SIZE)
    start, run, pitch = place
    group, lane = (start + j) // GROUP + i // GROUP, i % GROUP
    if CUT:
        index = j + i
        length = tl.where(run == 0, index + 1, run)
        index = start + index // length * pitch + index % length
        group, lane = index // GROUP, (index % GROUP).to(tl.int32)
    return group, lane


@triton.jit
def rounding_bits(key, draw, place, j, SIZE: tl.constexpr, CUT: tl.constexpr):
    """16 random bits for each of SIZE elements of a tensor from element j on; one counter serves 8 elements."""
    group, lane = _counters(place, j, _GROUP, SIZE, CUT)
    x0, x1, x2, x3 = _words(key, draw, group, _ROUNDING)
    word = tl.where(lane < 4, tl.where(lane < 2, x0, x1), tl.where(lane < 6, x2, x3))
    return (word >> (lane % 2 * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def _log_uniform(word):
    """ln u for u = (word / 2 + 1/2) 2^-31: exponent, and a polynomial on [sqrt(1/2), sqrt(2)]."""
    uniform = tl.fma((word >> 1).to(tl.int32).to(tl.float32), 4.656612873077393e-10, 2.3283064365386963e-10)
    bits = uniform.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f * 0 + 0.08722243458, f, -0.14366787672)
    p = tl.fma(p, f, 0.14952282608)
    p = tl.fma(p, f, -0.16562402248)
    p = tl.fma(p, f, 0.19956833124)
    p = tl.fma(p, f, -0.25002074242)
    p = tl.fma(p, f, 0.33334186673)
    p = tl.fma(p, f, -0.49999988079)
    p = tl.fma(p, f, 1.0)
    return tl.fma(exponent.to(tl.float32), 0.69314718056, p * f)


@triton.jit
def normals(key, draw, place, j, SIZE: tl.constexpr, CUT: tl.constexpr):
    """A standard normal number for each of SIZE elements of a tensor from element j on."""
    # two words serve two elements: a radius, and an angle, of which the nearest quarter of the turn is taken off
    group, lane = _counters(place, j, _NORMAL_GROUP, SIZE, CUT)
    x0, x1, x2, x3 = _words(key, draw, group, _NORMAL)
    pair = lane < 2
    radius = tl.sqrt(-2.0 * _log_uniform(tl.where(pair, x0, x2)))
    turn = tl.where(pair, x1, x3)
    quarter = (turn + 0x20000000) >> 30
    a = (turn - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # half turns
    t = a * a
    sine = tl.fma(t * 0 - 0.58901220560, t, 2.54976105690)
    sine = tl.fma(sine, t, -5.16770792007)
    sine = tl.fma(sine, t, 3.14159274101) * a
    cosine = tl.fma(t * 0 + 0.23126092553, t, -1.33503592014)
    cosine = tl.fma(cosine, t, 4.05870676041)
    cosine = tl.fma(cosine, t, -4.93480205536)
    cosine = tl.fma(cosine, t, 1.0)
    second = (lane % 2).to(tl.uint32)  # of the two elements: the sine, which is the cosine a quarter before
    magnitude = tl.where((quarter + second) % 2 == 0, cosine, sine)
    negative = ((quarter + 1 - second) & 2) != 0
    return radius * tl.where(negative, -magnitude, magnitude)


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
