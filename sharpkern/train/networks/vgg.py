"""VGG-19 with batch normalisation (Simonyan and Zisserman 2015) for images of 32 × 32: one linear layer at its end."""

from __future__ import annotations

from torch import nn

from sharpkern.train.networks.layers import initialise

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and convolutions; each ends in a pooling


def vgg19(channels: int, classes: int) -> nn.Sequential:
    """Sixteen convolutions, five poolings by two, one linear layer.

    Args:
        channels: Of the images.
        classes: Outputs.

    Returns:
        A module from images (n, channels, 32, 32) to logits (n, classes).
    """
    layers: list[nn.Module] = []
    width = channels
    for outputs, number in STAGES:
        for _ in range(number):
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            width = outputs
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes))
    initialise(model)
    return model
