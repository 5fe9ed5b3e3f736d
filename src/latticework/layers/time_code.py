"""A learned code of time: cosines from fast to slow (the functional time encoding of TGAT, as TGN, NAT and SEMBA use it)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TimeCode(nn.Module):
    """T(t)_k = cos(w_k t + b_k), w_k = 10^(-slowest k / (width - 1)) at the start, b = 0; both are learned.

    Takes times or differences of any shape [...] and gives float32 [..., width]. Differences are to be taken in float64
    before: UNIX seconds in float32 are right to 128 s only.
    """

    def __init__(self, width: int, slowest: float = 9.0) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"a code of time has width >= 1, not {width}")
        self.weight = nn.Parameter(10.0 ** -torch.linspace(0, slowest, width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, t: Tensor) -> Tensor:
        return torch.cos(t.to(self.weight.dtype)[..., None] * self.weight + self.bias)
