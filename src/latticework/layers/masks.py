"""Dropout masks, many at once: where a CPU spends its time on random numbers, not on the network behind them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .hashing import GOLDEN
from .splitmix import mix

LANES = 1 << 16  # a rate is kept to one in so many


def dropped(x: Tensor, passes: int, rate: float) -> Tensor:
    """x [n, f] under `passes` dropout masks [passes, n, f]: entries are 0 with probability `rate` in [0, 1), else x / (1 - rate).

    Seeded from torch's generator; on a CPU the masks are the same for any number of threads, and the rate is rounded to a
    multiple of 2^-16. Elsewhere, and where x asks for a gradient, torch draws.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the rate must be in [0, 1), is {rate}")
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
        return (x / (1 - rate)) * (torch.rand(passes, *x.shape, device=x.device) >= rate)
    out = torch.empty(passes, *x.shape)
    seed = np.uint64(int(torch.randint(2**62, ())))
    _fill(x.contiguous().numpy(), np.uint16(min(round(rate * LANES), LANES - 1)), np.float32(1 / (1 - rate)), seed, out.numpy())
    return out


@numba.njit(cache=True, parallel=True)
def _fill(x: Any, threshold: Any, scale: Any, seed: Any, out: Any) -> None:  # pragma: no cover - compiled
    passes, rows, columns = out.shape
    for i in numba.prange(passes * rows):
        p, r = i // rows, i % rows
        state = mix(seed + np.uint64(i + 1) * GOLDEN)
        bits = np.empty((columns + 3) // 4, np.uint64)
        for j in range(len(bits)):
            state = state + GOLDEN
            bits[j] = mix(state)
        lanes = bits.view(np.uint16)
        for j in range(columns):  # no branch: it would be guessed wrong half of the time
            out[p, r, j] = x[r, j] * (scale * np.float32(lanes[j] >= threshold))
