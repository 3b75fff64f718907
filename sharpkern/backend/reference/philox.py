"""Random bits and stochastic rounding: the definition of `csrc/philox.h` in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sharpkern.tensors import GROUP

NORMAL, ROUNDING = 0, 1  # streams: what the numbers are for
_MASK = 0xFFFFFFFF


def philox(seed: int, group: Tensor, draw: int, stream: int) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): four words of 32 bits for each counter (group, draw, stream).

    Args:
        seed: The key, 64 bits.
        group: int64, one counter an element.
        draw: Number of the draw, 32 bits.
        stream: What the numbers are for.

    Returns:
        int64 of shape (4, *group.shape), each from 0 to 2^32 - 1.
    """
    c0, c1 = group & _MASK, (group >> 32) & _MASK
    c2, c3 = torch.full_like(group, draw & _MASK), torch.full_like(group, stream)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # modulo 2^64: the high word comes out right after the mask
        c0, c2 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, ((p0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack([c0, c1, c2, c3])


Rows = tuple[int, int]
CONTIGUOUS: Rows = (0, 0)


def _counters(start: int, rows: Rows, like: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The counters of the elements of a tensor, `size` elements each: which, then for each element which and where."""
    run, pitch = rows
    i = torch.arange(like.numel(), device=like.device)
    index = start + (i if run == 0 else i // run * pitch + i % run)
    group, of_element = torch.unique_consecutive(index // size, return_inverse=True)
    return group, of_element, index % size


def normals(seed: int, draw: int, start: int, like: Tensor, rows: Rows = CONTIGUOUS) -> Tensor:
    """One standard normal number an element, in the elements' order in memory; the transform of Box and Muller (1958).

    Args:
        seed: The key.
        draw: Number of the draw.
        start: Index of the first element in the flattened parameters.
        like: The tensor; dense.
        rows: Where the elements are no run of them but several, the length of each, and the distance of their starts.

    Returns:
        float64 in the shape and layout of `like`; of magnitude 6.7 at most.
    """
    group, of_element, lane = _counters(start, rows, like, 4)
    words = philox(seed, group, draw, NORMAL).reshape(2, 2, -1)  # pair, word, group
    uniform = ((words[:, 0] >> 1).to(torch.float32) * 2.0**-31 + 2.0**-32).double()  # rounded as in the kernels
    radius, angle = (-2 * uniform.log()).sqrt(), words[:, 1].double() * (2 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], 1).reshape(4, -1)  # lane, group
    return pairs[lane, of_element].as_strided(like.shape, like.stride())


def rounding_bits(seed: int, draw: int, start: int, like: Tensor, rows: Rows = CONTIGUOUS) -> Tensor:
    """16 random bits an element, in the elements' order in memory.

    Args:
        seed: The key.
        draw: Number of the draw.
        start: Index of the first element in the flattened parameters.
        like: The tensor; dense.
        rows: As for `normals`.

    Returns:
        int64 in the shape and layout of `like`, from 0 to 65535.
    """
    group, of_element, lane = _counters(start, rows, like, GROUP)
    words = philox(seed, group, draw, ROUNDING)
    halves = torch.stack([words & 0xFFFF, words >> 16], 1).reshape(GROUP, -1)  # lane, group
    return halves[lane, of_element].as_strided(like.shape, like.stride())


def stochastic(x: Tensor, dtype: torch.dtype, seed: int, draw: int, start: int, rows: Rows = CONTIGUOUS) -> Tensor:
    """One of the two neighbours of x in a dtype of 16 bits, each with the probability of x's place between them.

    Args:
        x: float32, dense.
        dtype: bfloat16 or float16; x comes back as it is for any other.
        seed: The key.
        draw: Number of the draw.
        start: Index of the first element in the flattened parameters.
        rows: As for `normals`.

    Returns:
        float32 values that `dtype` has.
    """
    if dtype.itemsize != 2:
        return x
    random = rounding_bits(seed, draw, start, x, rows)
    bits = x.view(torch.int32).to(torch.int64) & _MASK
    sign, a = bits & 0x80000000, bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        rounded = (a + random) & 0x7FFF0000
    else:
        normal = (a + (random >> 3)) & 0x7FFFE000
        small = (((x.abs() * 2.0**40).to(torch.int64) + random) >> 16).to(torch.float32) * 2.0**-24
        rounded = torch.where(a < 0x38800000, small.view(torch.int32).to(torch.int64), normal)
    rounded = torch.where(a >= 0x7F800000, a, rounded) | sign
    return (rounded - ((rounded & 0x80000000) << 1)).to(torch.int32).view(torch.float32)
