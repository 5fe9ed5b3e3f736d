"""A vision transformer small enough for one core, with the socket that stitching, shrinking and growing need."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.value import setting

from .small_cnn import ImageNetwork, Standardise

TOKENS = 64  # a chosen patch size leaves at most this many


class PatchEmbedding(nn.Module):
    """Standardised patches as tokens, a class token before them (where there is one), a learnt position added.

    [N, C, H, W] in 0..1 -> [N, ceil(H / p) ceil(W / p) (+ 1), width]; sides that p does not divide are padded with the mean.
    """

    def __init__(self, channels: int, size: tuple[int, int], patch: int, width: int, cls_token: bool = True) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        tokens = ceil(size[0] / patch) * ceil(size[1] / patch)
        self.standardise = Standardise(channels)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if cls_token else None
        self.position = nn.Parameter(torch.randn(1, tokens + cls_token, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(f"this net was made for images of {self.size[1]}x{self.size[0]}, not {x.shape[-1]}x{x.shape[-2]}")
        x = self.standardise(x)
        margin = [-side % self.patch for side in self.size]
        if any(margin):
            x = F.pad(x, (0, margin[1], 0, margin[0]))
        h = self.patches(x).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            h = torch.cat([self.cls_token.expand(len(h), -1, -1), h], dim=1)
        return h + self.position


class Attention(nn.Module):
    """Multi-head self-attention, ``softmax(Q K^T / sqrt(width / heads)) V``. [N, T, width] -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width: {heads} heads, width {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width))


class TransformerBlock(nn.Module):
    """Pre-norm block: ``h + attention(norm h)``, then ``h + MLP(norm h)`` with GELU. [N, T, width] -> the same."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        hidden = max(round(width * mlp_ratio), 1)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h))
        return h + self.mlp(self.norm2(h))


class TokenHead(nn.Module):
    """LayerNorm, then a linear map of the class token, or of the mean over tokens. [N, T, width] -> [N, classes]."""

    def __init__(self, width: int, classes: int, cls_token: bool = True) -> None:
        super().__init__()
        self.cls_token = cls_token
        self.norm = nn.LayerNorm(width)
        self.map = nn.Linear(width, classes)

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm(h)
        return self.map(h[:, 0] if self.cls_token else h.mean(1))


class TinyViT(nn.Module):
    """``head(block_L(.. block_1(embed(x))))``: a plain pre-norm vision transformer.

    [N, C, H, W] in 0..1 -> logits [N, classes]. Parameters: see :func:`tiny_vit_parameters`.
    Errors: ``ValueError`` for sizes < 1, fewer than two classes, or heads that do not divide the width.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        classes: int,
        patch: int = 2,
        width: int = 32,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        cls_token: bool = True,
    ) -> None:
        super().__init__()
        if min(channels, *size, patch, width, depth, heads) < 1 or classes < 2 or mlp_ratio <= 0:
            raise ValueError(
                f"channels {channels}, size {size}, patch {patch}, width {width}, depth {depth} and heads {heads} must be >= 1, "
                f"classes {classes} >= 2, mlp_ratio {mlp_ratio} > 0"
            )
        self.width = width
        self.embed = PatchEmbedding(channels, tuple(size), patch, width, cls_token)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.head = TokenHead(width, classes, cls_token)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def tiny_vit_parameters(
    channels: int, size: tuple[int, int], classes: int, patch: int, width: int, mlp_ratio: float = 2.0, cls_token: bool = True
) -> tuple[int, int, int]:
    """Parameters of embed, of one block, and of head.

    embed ``C p^2 D + D + D (T + 2 cls)`` with T patches; block ``4 D + (3 D^2 + 3 D) + (D^2 + D) + (2 D h + h + D)`` with
    ``h = mlp_ratio D``; head ``2 D + D K + K``.
    """
    tokens = ceil(size[0] / patch) * ceil(size[1] / patch)
    hidden = max(round(width * mlp_ratio), 1)
    embed = channels * patch**2 * width + width + width * (tokens + 2 * cls_token)
    block = 4 * width + 4 * width**2 + 4 * width + 2 * width * hidden + hidden + width
    return embed, block, 2 * width + width * classes + classes


def chosen_patch(height: int, width: int) -> int:
    """The smallest patch size of at least 2 that leaves at most 64 tokens."""
    patch = 2
    while ceil(height / patch) * ceil(width / patch) > TOKENS:
        patch += 1
    return patch


class TinyViTMethod(ImageNetwork):
    """A small vision transformer trained from scratch."""

    name: ClassVar[str] = "tiny-vit"
    width: int = setting(32, "numbers a token", ge=1, le=8192, search=[16, 32, 64])
    depth: int = setting(6, "transformer blocks", ge=1, le=128, search=[2, 4, 6])
    heads: int = setting(4, "attention heads; they divide the width", ge=1, le=256)
    mlp_ratio: float = setting(2.0, "hidden width of a block's MLP over the width", gt=0, le=16)
    patch: int = setting(0, "side of a patch; 0: the smallest that leaves at most 64 tokens", ge=0, le=1024)
    cls_token: bool = setting(True, "classify a class token; false: the mean over tokens")

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width: {self.heads} heads, width {self.width}")
        return self

    def network(self, schema: Mapping[str, Any]) -> TinyViT:
        size = int(schema["height"]), int(schema["width"])
        patch = self.patch or chosen_patch(*size)
        return TinyViT(
            schema["channels"], size, len(schema["classes"]), patch, self.width, self.depth, self.heads, self.mlp_ratio,
            self.cls_token,
        )  # fmt: skip
