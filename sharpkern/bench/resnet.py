"""ResNet-20 for images of 32 × 32 (He et al. 2016, section 4.2), the network of the training steps that are timed."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

CLASSES = 10
WIDTHS = (16, 32, 64)
BLOCKS = 3  # a width


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters: every `stride`-th pixel, new channels of zeros.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out, at least as many.
        stride: Of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.residual = nn.Sequential(*_conv(inputs, outputs, stride), nn.ReLU(), *_conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return relu(self.residual(x) + shortcut)


def resnet20() -> nn.Sequential:
    """Images (n, 3, 32, 32) to logits (n, 10); its parameters have the shapes of `shapes.resnet20`."""
    layers, before = [*_conv(3, WIDTHS[0]), nn.ReLU()], WIDTHS[0]
    for width in WIDTHS:
        for _ in range(BLOCKS):
            layers.append(Block(before, width, stride=1 if width == before else 2))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))
