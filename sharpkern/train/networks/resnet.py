"""Residual networks for CIFAR (He et al. 2016, section 4.2): three stages of n blocks, 16 to 64 channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from sharpkern.train.networks.layers import conv3x3, initialise


class Block(nn.Module):
    """Two convolutions and the identity beside them; its added channels are zero (option A, no weights)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs, h, w) to (n, outputs, h/stride, w/stride)."""
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        side = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return relu(y + side)


def resnet(depth: int, channels: int, classes: int) -> nn.Sequential:
    """A ResNet of depth 6n + 2.

    Args:
        depth: 20, 32, 56, ...
        channels: Of the images.
        classes: Outputs.

    Returns:
        A module from images (n, channels, 32, 32) to logits (n, classes).
    """
    blocks: list[nn.Module] = []
    width = 16
    for outputs in (16, 32, 64):
        for k in range((depth - 2) // 6):
            blocks.append(Block(width, outputs, stride=2 if k == 0 and outputs > 16 else 1))
            width = outputs
    model = nn.Sequential(
        conv3x3(channels, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )
    initialise(model)
    return model
