"""Wide residual networks (Zagoruyko and Komodakis 2016): normalisation first, three stages of 16k to 64k channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from sharpkern.train.networks.layers import conv3x3, initialise


class Block(nn.Module):
    """Norm, ReLU, convolution, twice; where the shape changes, a convolution of 1 × 1 beside it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.side = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs, h, w) to (n, outputs, h/stride, w/stride)."""
        active = relu(self.norm1(x))
        y: Tensor = self.conv2(relu(self.norm2(self.conv1(active))))
        return y + (x if self.side is None else self.side(active))


def wide_resnet(depth: int, factor: int, channels: int, classes: int) -> nn.Sequential:
    """A WRN-depth-factor, without dropout.

    Args:
        depth: 6n + 4, such as 28.
        factor: k, such as 2 or 10.
        channels: Of the images.
        classes: Outputs.

    Returns:
        A module from images (n, channels, 32, 32) to logits (n, classes).
    """
    blocks: list[nn.Module] = []
    width = 16
    for outputs in (16 * factor, 32 * factor, 64 * factor):
        for k in range((depth - 4) // 6):
            blocks.append(Block(width, outputs, stride=2 if k == 0 and outputs > 16 * factor else 1))
            width = outputs
    model = nn.Sequential(
        conv3x3(channels, 16),
        *blocks,
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )
    initialise(model)
    return model
