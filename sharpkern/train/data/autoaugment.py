"""AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019, Table 7), with Pillow's operations.

One of 25 pairs of operations is drawn for every image; each is applied with its probability, at its strength from 0
to 9, and with a random sign where it has one. The same policy serves CIFAR-100, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = (128, 128, 128)
LEVELS = 9

# operation, probability in tenths, strength; twice a row
_POLICY = """
Invert 1 0 Contrast 2 6
Rotate 7 2 TranslateX 3 9
Sharpness 8 1 Sharpness 9 3
ShearY 5 8 TranslateY 7 9
AutoContrast 5 0 Equalize 9 0
ShearY 2 7 Posterize 3 7
Color 4 3 Brightness 6 7
Sharpness 3 9 Brightness 7 9
Equalize 6 0 Equalize 5 0
Contrast 6 7 Sharpness 6 5
Color 7 7 TranslateX 5 8
Equalize 3 0 AutoContrast 4 0
TranslateY 4 3 Sharpness 2 6
Brightness 9 6 Color 2 8
Solarize 5 2 Invert 0 0
Equalize 2 0 AutoContrast 6 0
Equalize 2 0 Equalize 6 0
Color 9 9 Equalize 6 0
AutoContrast 8 0 Solarize 2 8
Brightness 1 3 Color 7 0
Solarize 4 5 AutoContrast 9 0
TranslateY 9 9 TranslateY 7 9
AutoContrast 9 0 Solarize 8 3
Equalize 8 0 Invert 1 0
TranslateY 7 9 AutoContrast 9 0
"""

Operation = tuple[str, float, int]


def _operation(name: str, tenths: str, strength: str) -> Operation:
    return name, int(tenths) / 10, int(strength)


POLICY: tuple[tuple[Operation, Operation], ...] = tuple(
    (_operation(*words[:3]), _operation(*words[3:])) for words in map(str.split, _POLICY.strip().splitlines())
)


def _affine(image: Image, *matrix: float) -> Image:
    from PIL import Image as pil

    return image.transform(image.size, pil.Transform.AFFINE, matrix, fillcolor=GREY)


def _enhance(name: str) -> Callable[[Image, float], Image]:
    def apply(image: Image, level: float) -> Image:
        from PIL import ImageEnhance

        enhanced: Image = getattr(ImageEnhance, name)(image).enhance(1 + 0.9 * level)
        return enhanced

    return apply


def _plain(name: str, *arguments: Callable[[float], int]) -> Callable[[Image, float], Image]:
    def apply(image: Image, level: float) -> Image:
        from PIL import ImageOps

        changed: Image = getattr(ImageOps, name)(image, *(argument(abs(level)) for argument in arguments))
        return changed

    return apply


# level is the signed share of the largest strength
_OPERATIONS: Mapping[str, Callable[[Image, float], Image]] = {
    "ShearY": lambda image, level: _affine(image, 1, 0, 0, 0.3 * level, 1, 0),
    "TranslateX": lambda image, level: _affine(image, 1, 0, int(150 / 331 * image.width * level), 0, 1, 0),
    "TranslateY": lambda image, level: _affine(image, 1, 0, 0, 0, 1, int(150 / 331 * image.height * level)),
    "Rotate": lambda image, level: image.rotate(30 * level, fillcolor=GREY),
    **{name: _enhance(name) for name in ("Brightness", "Color", "Contrast", "Sharpness")},
    "Posterize": _plain("posterize", lambda level: 8 - round(4 * level)),
    "Solarize": _plain("solarize", lambda level: int(255 * (1 - level))),
    "AutoContrast": _plain("autocontrast"),
    "Equalize": _plain("equalize"),
    "Invert": _plain("invert"),
}


def autoaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image changed by a pair of the policy of its own.

    Args:
        images: (n, 3, h, w), uint8, on the CPU.
        generator: On the CPU; it advances equally far whatever is drawn.

    Returns:
        New images of the same shape.
    """
    import numpy as np
    from PIL import Image as pil

    n = len(images)
    pairs = torch.randint(len(POLICY), (n,), generator=generator).tolist()
    chances = torch.rand(n, 2, generator=generator).tolist()
    signs = (2 * torch.randint(2, (n, 2), generator=generator) - 1).tolist()
    changed = []
    for pixels, pair, chance, sign in zip(images.permute(0, 2, 3, 1).numpy(), pairs, chances, signs, strict=True):
        image = pil.fromarray(np.ascontiguousarray(pixels))
        for (name, probability, strength), draw, direction in zip(POLICY[pair], chance, sign, strict=True):
            if draw < probability:
                image = _OPERATIONS[name](image, direction * strength / LEVELS)
        changed.append(np.asarray(image))
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)
