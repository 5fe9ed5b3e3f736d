"""The mixer of splitmix64 for compiled loops; `hashing.mixed` is the same over arrays."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@numba.njit(cache=True)
def mix(z: Any) -> Any:  # pragma: no cover - compiled
    """uint64 -> uint64, a bijection that spreads every bit."""
    z = (z ^ (z >> _S30)) * FIRST
    z = (z ^ (z >> _S27)) * SECOND
    return z ^ (z >> _S31)
