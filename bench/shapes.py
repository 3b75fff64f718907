"""Shapes of the parameters of well-known networks, in the order of their modules."""

from __future__ import annotations

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


def small() -> list[Shape]:
    """161 tensors of 256 elements: almost nothing but host time."""
    return [(256,)] * 161


SHAPES = {"resnet20": resnet20, "wrn28_10": wrn28_10, "small": small}
