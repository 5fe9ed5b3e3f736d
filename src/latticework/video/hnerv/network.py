"""HNeRV's networks: a ConvNeXt encoder that is thrown away, the decoder that is the video, and NeRV beside them.

A frame ``x`` of ``[3, H, W]`` becomes an embedding ``e = Encoder(x)`` of ``[d, h, w]`` with ``H = h prod(s)`` and
``W = w prod(s)``; the decoder gives the frame back, ``y = 0.5 tanh(Decoder(e)) + 0.5``. Only the decoder and the embeddings
are stored. Its kernels grow with depth and its channels fall slowly, so that parameters spread evenly over the blocks.

Source: Chen, Gwilliam, Lim, Shrivastava, "HNeRV: A Hybrid Neural Representation for Videos", CVPR 2023; sizes that the
paper leaves open follow its official code. NeRV: Chen et al., NeurIPS 2021, as that code runs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENCODER_WIDTH = 64
NERV_BASE, NERV_LEVELS = 1.25, 80


def kernels(blocks: int, smallest: int, largest: int) -> list[int]:
    """``min(smallest + 2 i, largest)`` for block i: 1, 3, 5, 5, 5 in the paper's decoder."""
    return [min(smallest + 2 * i, largest) for i in range(blocks)]


def widths(first: int, blocks: int, reduction: float, narrowest: int) -> list[int]:
    """Channels before each block and after the last: each is the one before over `reduction`, rounded, at least `narrowest`."""
    out = [first]
    for _ in range(blocks):
        out.append(max(round(out[-1] / reduction), narrowest))
    return out


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """``x + gamma * W2 gelu(W1 norm(depthwise(x)))``, [B, C, H, W] to the same; gamma starts at 1e-6 (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.narrow(F.gelu(self.wide(h))) * self.scale
        return x + h.permute(0, 3, 1, 2)


class HNeRVEncoder(nn.Module):
    """Frames [B, 3, H, W] to embeddings [B, d, H/P, W/P], P the product of the strides.

    Stage i reduces by a convolution whose kernel is its stride and goes through one ConvNeXt block; channel normalisation
    stands after the first reduction and before the others.
    """

    def __init__(self, strides: Sequence[int], embedding: int = 16, width: int = ENCODER_WIDTH) -> None:
        super().__init__()
        sizes = [width] * (len(strides) - 1) + [embedding]
        stages: list[nn.Module] = []
        before = 3
        for i, (stride, size) in enumerate(zip(strides, sizes, strict=True)):
            reduce = nn.Conv2d(before, size, stride, stride)
            norm = ChannelNorm(size if i == 0 else before, eps=1e-6)
            stages += [reduce, norm] if i == 0 else [norm, reduce]
            stages.append(ConvNeXtBlock(size))
            before = size
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


class _Decoder(nn.Module):
    """A 1x1 stem, blocks of convolution, pixel shuffle and GELU, and a 3x3 head into (0, 1)."""

    def __init__(
        self, inputs: int, first: int, base: tuple[int, int], strides: Sequence[int], sizes: Sequence[int], kernel: Sequence[int]
    ) -> None:
        super().__init__()
        self.inputs, self.base = inputs, base
        self.stem = nn.Conv2d(inputs, first * base[0] * base[1], 1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(a, b * s * s, k, padding=k // 2) for a, b, s, k in zip(sizes[:-1], sizes[1:], strides, kernel, strict=True)
        )
        self.strides = tuple(strides)
        self.head = nn.Conv2d(sizes[-1], 3, 3, padding=1)

    def forward(self, e: Tensor) -> Tensor:
        if e.ndim != 4 or e.shape[1] != self.inputs:
            raise ValueError(f"the decoder reads [B, {self.inputs}, h, w], not {list(e.shape)}")
        x = F.gelu(self.stem(e))
        if self.base != (1, 1):
            fh, fw = self.base
            x = x.unflatten(1, (-1, fh, fw)).permute(0, 1, 4, 2, 5, 3).flatten(2, 3).flatten(3, 4)
        for conv, stride in zip(self.blocks, self.strides, strict=True):
            x = F.gelu(F.pixel_shuffle(conv(x), stride))
        return 0.5 * torch.tanh(self.head(x)) + 0.5


class HNeRVDecoder(_Decoder):
    """Embeddings [B, d, h, w] to frames [B, 3, h P, w P] in (0, 1); `first` is C_0, P the product of the strides."""

    def __init__(
        self,
        first: int,
        strides: Sequence[int],
        embedding: int = 16,
        reduction: float = 1.2,
        narrowest: int = 12,
        kernel: tuple[int, int] = (1, 5),
    ) -> None:
        sizes = widths(first, len(strides), reduction, narrowest)
        super().__init__(embedding, first, (1, 1), strides, sizes, kernels(len(strides), *kernel))


class NeRVDecoder(_Decoder):
    """Position codes [B, 160, 1, 1] to frames [B, 3, H, W] in (0, 1): the frame's index alone, no embedding.

    `base` is the size (H/P, W/P) that the stem spells out: most of a small NeRV's parameters stand there.
    """

    def __init__(
        self, first: int, base: tuple[int, int], strides: Sequence[int], reduction: float = 2.0, narrowest: int = 12
    ) -> None:
        sizes = widths(first, len(strides), reduction, narrowest)
        super().__init__(2 * NERV_LEVELS, first, base, strides, sizes, [3] * len(strides))


def position_code(t: Tensor) -> Tensor:
    """``sin(1.25^k pi t), cos(1.25^k pi t)`` for k < 80: [B] to float32 [B, 160, 1, 1]; t = index / frames.

    The angles reach 1.25^79 pi, about 1e8: they are formed in double precision.
    """
    angle = t.double()[:, None] * (NERV_BASE ** torch.arange(NERV_LEVELS, dtype=torch.float64, device=t.device)) * math.pi
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()[:, :, None, None]


def embedding_numbers(frames: int, size: tuple[int, int], strides: Sequence[int], embedding: int) -> int:
    """``E = T d h w``: how many numbers the embeddings of all frames are."""
    product = math.prod(strides)
    return frames * embedding * (size[0] // product) * (size[1] // product)


def solve_width(
    budget: float, strides: Sequence[int], embedding: int = 16, reduction: float = 1.2, kernel: tuple[int, int] = (1, 5)
) -> int:
    """C_0 for a decoder of about `budget` parameters: the floor of the positive root of ``a C^2 + b C = budget``.

    ``a = (1/r) sum_i r^(-2i) s_i^2 k_i^2`` counts the blocks as if widths were not rounded, ``b = 9 d`` is the official
    code's allowance for the stem, nine times its real size: small decoders stay below their budget.
    """
    if budget <= 0:
        raise ValueError(f"nothing is left for the decoder: {budget:.0f} parameters")
    ks = kernels(len(strides), *kernel)
    a = sum(s**2 * k**2 * reduction ** (-2 * i) for i, (s, k) in enumerate(zip(strides, ks, strict=True))) / reduction
    b = 9.0 * embedding
    return math.floor((-b + math.sqrt(b * b + 4 * a * budget)) / (2 * a))


def count(net: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(p.numel() for p in net.parameters())


def nerv_parameters(first: int, base: tuple[int, int], strides: Sequence[int], reduction: float, narrowest: int) -> int:
    """The size of a `NeRVDecoder`, without building it."""
    sizes = widths(first, len(strides), reduction, narrowest)
    total = (2 * NERV_LEVELS + 1) * first * base[0] * base[1] + (9 * sizes[-1] + 1) * 3
    return total + sum((9 * a + 1) * b * s * s for a, b, s in zip(sizes[:-1], sizes[1:], strides, strict=True))


def hnerv_parameters(
    first: int, strides: Sequence[int], embedding: int, reduction: float, narrowest: int, kernel: tuple[int, int]
) -> int:
    """The size of an `HNeRVDecoder`, without building it."""
    sizes = widths(first, len(strides), reduction, narrowest)
    total = (embedding + 1) * first + (9 * sizes[-1] + 1) * 3
    ks = kernels(len(strides), *kernel)
    return total + sum((k * k * a + 1) * b * s * s for a, b, s, k in zip(sizes[:-1], sizes[1:], strides, ks, strict=True))


def psnr_loss(x: Tensor, y: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean squared error over seen pixels, and each frame's PSNR in dB, [B]. seen: bool [H, W]."""
    error = (x - y) ** 2
    if seen is None:
        each = error.flatten(1).mean(1)
    else:
        each = (error * seen).flatten(1).sum(1) / (3 * seen.sum())
    return each.mean(), -10 * torch.log10(each.detach().clamp_min(1e-12))


def warm_cosine(t: float, warm: float = 0.1) -> float:
    """The factor on the learning rate at the share t of all epochs: 0.1 to 1 while ``t < warm``, then a cosine to 0."""
    if t < warm:
        return 0.1 + 0.9 * t / warm
    return 0.5 * (1 + math.cos(math.pi * (t - warm) / (1 - warm)))
