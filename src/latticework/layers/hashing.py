"""Numbers that look random and hang on what they are made of alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(*numbers: Any) -> Array:
    """float64 in [0, 1), as if random, of whole numbers >= 0 (arrays that broadcast): the same wherever they are asked."""
    state = np.zeros((), np.uint64)
    for part in numbers:
        state = mixed(state + (np.asarray(part, np.uint64) + np.uint64(1)) * GOLDEN)
    return to_unit(state)


def to_unit(values: Array) -> Array:
    """uint64 [...] -> float64 [...] in [0, 1), by the upper 53 bits."""
    return np.asarray((values >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def mixed(values: Array) -> Array:
    """uint64 [...] -> uint64 [...]: the finaliser of splitmix64, a bijection that spreads every bit."""
    x = values.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
