"""Shapes of the parameters of well-known networks, in the order of their modules."""

from __future__ import annotations

import re
from collections.abc import Callable

from sharpkern.usage import UsageError

Shape = tuple[int, ...]


def resnet20() -> list[Shape]:
    """ResNet-20 for CIFAR-10 (0.27M in 59 tensors), shortcuts without parameters."""
    shapes: list[Shape] = [(16, 3, 3, 3), (16,), (16,)]
    before = 16
    for width in (16, 32, 64):
        for _ in range(3):
            shapes += [(width, before, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            before = width
    return [*shapes, (10, 64), (10,)]


def wrn28_10() -> list[Shape]:
    """WRN-28-10 for CIFAR-10 (36.5M): three stages of four pre-activation blocks, projections where widths change."""
    shapes: list[Shape] = [(16, 3, 3, 3)]
    before = 16
    for width in (160, 320, 640):
        for _ in range(4):
            shapes += [(before,), (before,), (width, before, 3, 3), (width,), (width,), (width, width, 3, 3)]
            if before != width:
                shapes.append((width, before, 1, 1))
            before = width
    return [*shapes, (640,), (640,), (10, 640), (10,)]


def resnet50() -> list[Shape]:
    """ResNet-50 for ImageNet (25.6M in 161 tensors): bottlenecks of 3, 4, 6 and 3 blocks."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for out, into, size in ((width, before, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, into, size, size), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, before, 1, 1), (4 * width,), (4 * width,)]
            before = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def _transformer(width: int, layers: int) -> list[Shape]:
    """Blocks of two norms, an attention with one projection of queries, keys and values, and a layer of 4 × width."""
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(3 * width, width), (3 * width,), (width, width), (width,)]
    layer: list[Shape] = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*norm, *attention, *norm, *layer] * layers


def vit_b() -> list[Shape]:
    """ViT-B/16 for ImageNet (86.6M in 152 tensors): class token, 197 positions, 12 blocks of width 768."""
    embedding: list[Shape] = [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,)]
    return [*embedding, *_transformer(768, 12), (768,), (768,), (1000, 768), (1000,)]


def gpt2() -> list[Shape]:
    """GPT-2 small (124.4M in 148 tensors): 50257 tokens, 1024 positions, 12 blocks of width 768; the head is tied."""
    return [(50257, 768), (1024, 768), *_transformer(768, 12), (768,), (768,)]


def bert_base() -> list[Shape]:
    """BERT-base, uncased (109.5M in 199 tensors): three embeddings, 12 blocks with four projections each, a pooler."""
    layer: list[Shape] = [(768, 768), (768,)] * 4 + [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    embeddings: list[Shape] = [(30522, 768), (512, 768), (2, 768), (768,), (768,)]
    return [*embeddings, *[*layer, (768,), (768,)] * 12, (768, 768), (768,)]


def small() -> list[Shape]:
    """161 tensors of 256 elements: almost nothing but host time."""
    return [(256,)] * 161


def many() -> list[Shape]:
    """2000 tensors of 1000 elements."""
    return [(1000,)] * 2000


SHAPES: dict[str, Callable[[], list[Shape]]] = {
    "resnet20": resnet20,
    "wrn28_10": wrn28_10,
    "resnet50": resnet50,
    "vit_b": vit_b,
    "bert_base": bert_base,
    "gpt2": gpt2,
    "small": small,
    "many": many,
}


def find(name: str) -> list[Shape]:
    """Shapes by name.

    Args:
        name: One of `SHAPES`, or such as "65x1000": 65 tensors of 1000 elements.

    Returns:
        The shapes.

    Raises:
        UsageError: There are none of that name.
    """
    if name in SHAPES:
        return SHAPES[name]()
    equal = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if equal is None:
        raise UsageError(f"shapes {name!r}: wanted one of {', '.join(SHAPES)}, or tensors x elements such as 65x1000")
    return [(int(equal[2]),)] * int(equal[1])


def spread_over(total: int, tensors: int) -> str:
    """The name of shapes that hold some `total` elements in that many tensors of equal size."""
    return f"{tensors}x{max(total // tensors, 1)}"
