"""All networks by name: a new one is a row of `NETWORKS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sharpkern.train.network import small
from sharpkern.train.networks.resnet import resnet
from sharpkern.train.networks.vgg import vgg19
from sharpkern.train.networks.vit import VisionTransformer
from sharpkern.train.networks.wide_resnet import wide_resnet


@dataclass(frozen=True)
class Network:
    """A row: what tables show, and how the network is made for so many channels and classes."""

    title: str
    make: Callable[[int, int], nn.Module]


NETWORKS: Mapping[str, Network] = {
    "small": Network("two convolutions", lambda _, classes: small(classes)),
    "tiny-vit": Network("ViT of 0.1M weights", lambda *sizes: VisionTransformer(8, 2, 64, 2, 4, *sizes)),
    "resnet20": Network("ResNet-20", lambda *sizes: resnet(20, *sizes)),
    "resnet32": Network("ResNet-32", lambda *sizes: resnet(32, *sizes)),
    "resnet56": Network("ResNet-56", lambda *sizes: resnet(56, *sizes)),
    "wrn28-2": Network("WRN-28-2", lambda *sizes: wide_resnet(28, 2, *sizes)),
    "wrn28-10": Network("WRN-28-10", lambda *sizes: wide_resnet(28, 10, *sizes)),
    "vgg19-bn": Network("VGG-19-BN", lambda *sizes: vgg19(*sizes)),
    "vit-b16": Network("ViT-B/16", lambda *sizes: VisionTransformer(224, 16, 768, 12, 12, *sizes)),
}


def make(name: str, channels: int, classes: int, seed: int) -> nn.Module:
    """A network; the same seed gives the same initial weights.

    Args:
        name: A key of `NETWORKS`.
        channels: Of the images.
        classes: Outputs.
        seed: Of the initial weights; torch's own random state is left as it was.

    Returns:
        A module from images (n, channels, h, w) to logits (n, classes).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name].make(channels, classes)
