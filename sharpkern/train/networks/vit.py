"""Vision transformers (Dosovitskiy et al. 2021), their parameters named as in the checkpoints of DeiT and timm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

EPS = 1e-6


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, t, width) to the same shape."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, t, width) to the same shape."""
        y: Tensor = self.fc2(gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """Attention and MLP, each after its norm and beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, t, width) to the same shape."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class PatchEmbed(nn.Module):
    """Patches to tokens."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, channels, h, w) to tokens (n, h w/patch², width)."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A ViT with a class token and learned positions.

    Args:
        image: Side that images are resized to, bicubic, where theirs is another.
        patch: Side of a patch, in pixels.
        width: Of a token.
        depth: Blocks.
        heads: Of the attention.
        channels: Of the images.
        classes: Outputs.
    """

    def __init__(self, image: int, patch: int, width: int, depth: int, heads: int, channels: int, classes: int) -> None:
        super().__init__()
        self.image = image
        self.patch_embed = PatchEmbed(patch, channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, EPS)
        self.head = nn.Linear(width, classes)
        for weight in (self.cls_token, self.pos_embed, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, channels, h, w) to logits (n, classes)."""
        if images.shape[-1] != self.image:
            images = interpolate(images, size=self.image, mode="bicubic", antialias=True)
        tokens = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits
