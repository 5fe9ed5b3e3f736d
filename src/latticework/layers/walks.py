"""Uniform random walks on a graph in CSR form."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@numba.njit(cache=True)
def walk_from(indptr: Array, indices: Array, starts: Array, chances: Array, out: Array) -> None:  # pragma: no cover - compiled
    """One walk from each of `starts` into the rows of `out` [w, length], filled with -1; `chances` [w, length - 1] in [0, 1)."""
    for w in range(len(starts)):
        node = starts[w]
        out[w, 0] = node
        for step in range(1, out.shape[1]):
            degree = indptr[node + 1] - indptr[node]
            if degree == 0:
                break
            node = indices[indptr[node] + int(chances[w, step - 1] * degree)]
            out[w, step] = node


def random_walks(indptr: Array, indices: Array, walks: int, length: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Walks that start `walks` times at every node, in shuffled rounds; every step goes to a uniform neighbour.

    ``indptr`` [n + 1], ``indices`` [m] -> int32 [n * walks, length]; a walk that meets a node without neighbours ends there
    and is filled up with -1. Each round's draws are float32 [n, length - 1].
    """
    n = len(indptr) - 1
    out = np.full((n * walks, length), -1, np.int32)
    for i in range(walks):
        starts = rng.permutation(n)
        chances = rng.random((n, length - 1), dtype=np.float32)
        walk_from(indptr, indices, starts, np.minimum(chances, np.float32(1 - 2**-24)), out[i * n : (i + 1) * n])
    return out
