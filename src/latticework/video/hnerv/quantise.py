"""Quantisation of tensors after the fit, step 5 of HNeRV: uniform levels, per tensor or per slice, whichever errs least.

``q = round((x - min) / scale)`` clamped to ``[0, 2^b - 1]`` with ``scale = (max - min) / (2^b - 1)``, and
``x^ = min + scale q``. One (min, scale) serves the whole tensor as float32, or one each slice as float16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WHOLE = -1
SLICE_SHARE = 0.02  # slices are tried along an axis only where their minima are fewer than this share of the elements


class Quantised(NamedTuple):
    """`symbols` int64 with the tensor's shape; `axis` the one that a slice runs along (-1: the whole tensor is one);
    `low` and `scale`: float32 [] for the whole tensor, else float16 with that axis of length 1."""

    symbols: Tensor
    axis: int
    low: Tensor
    scale: Tensor
    bits: int

    def values(self) -> Tensor:
        """The tensor that these symbols stand for, float32."""
        return self.low.float() + self.scale.float() * self.symbols.float()

    @property
    def side_bits(self) -> int:
        """Bits of the minima and scales."""
        return 2 * self.low.numel() * (32 if self.axis == WHOLE else 16)


def quantise(x: Tensor, bits: int) -> Quantised:
    """The candidate with the least mean absolute error; the whole tensor first where they tie.

    x: finite float tensor of any shape; bits 1..8. ValueError otherwise. A constant slice has scale 0 and is exact.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits are 1 to 8 (symbols are bytes), not {bits}")
    if x.numel() == 0 or not torch.isfinite(x).all():
        raise ValueError("only a non-empty, finite tensor can be quantised")
    x = x.detach().float()
    best, error = _levels(x, WHOLE, bits), float("inf")
    error = _error(best, x)
    for axis in range(x.ndim):
        if x.numel() // x.shape[axis] < SLICE_SHARE * x.numel():
            candidate = _levels(x, axis, bits)
            other = _error(candidate, x)
            if other < error:  # False as well for NaN, where a float16 overflowed
                best, error = candidate, other
    return best


def _levels(x: Tensor, axis: int, bits: int) -> Quantised:
    top = 2**bits - 1
    if axis == WHOLE:
        low, high = x.min(), x.max()
    else:
        low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    scale = (high - low) / top
    if axis != WHOLE:
        low, scale = low.half(), scale.half()  # what is stored is also what is divided by
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    symbols = torch.round((x - low.float()) / divisor).clamp(0, top)
    symbols = torch.where(scale > 0, symbols, torch.zeros_like(symbols))
    return Quantised(symbols.nan_to_num(0.0).long(), axis, low, scale, bits)


def _error(q: Quantised, x: Tensor) -> float:
    return float((q.values() - x).abs().mean())
