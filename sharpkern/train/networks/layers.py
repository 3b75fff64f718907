"""What several of the networks are made of."""

from __future__ import annotations

from torch import nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of 3 × 3 without bias that keeps the size, or divides it by the stride."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def initialise(model: nn.Module) -> None:
    """He et al. 2015: convolutions normal with variance 2/fan-out; biases of linear layers zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
