"""Orbit adjacencies straight from their definition: every set of up to four nodes is looked at. For graphs of a few hundred nodes."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from .counts import ORBITS, Orbit, simple_graph

Array = NDArray[Any]

# (edges, largest degree, degree of the node) -> orbit, for connected sets of four
_FOUR = np.full((7, 4, 4), -1, np.int64)
_FOUR[3, 2, 1], _FOUR[3, 2, 2] = 4, 5
_FOUR[3, 3, 1], _FOUR[3, 3, 3] = 6, 7
_FOUR[4, 2, 2] = 8
_FOUR[4, 3, 1], _FOUR[4, 3, 2], _FOUR[4, 3, 3] = 9, 10, 11
_FOUR[5, 3, 2], _FOUR[5, 3, 3] = 12, 13
_FOUR[6, 3, 3] = 14


@numba.njit(cache=True)
def _four(A: Array, place: Array, orbit_of: Array, counts: Array) -> None:  # pragma: no cover - compiled
    n = A.shape[0]
    nodes, degree, orbit = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    for i in range(n):
        for j in range(i + 1, n):
            for k in range(j + 1, n):
                for m in range(k + 1, n):
                    nodes[0], nodes[1], nodes[2], nodes[3] = i, j, k, m
                    degree[:] = 0
                    for a in range(4):
                        for b in range(4):
                            degree[a] += A[nodes[a], nodes[b]]
                    edges = degree.sum() // 2
                    if edges < 3 or degree.min() == 0:
                        continue  # not connected: two edges apart, or a node alone
                    most = degree.max()
                    for a in range(4):
                        orbit[a] = orbit_of[edges, most, degree[a]]
                    for a in range(4):
                        for b in range(4):
                            if a == b:
                                continue
                            hop = 1
                            if not A[nodes[a], nodes[b]]:
                                hop = 3
                                for c in range(4):
                                    if A[nodes[a], nodes[c]] and A[nodes[c], nodes[b]]:
                                        hop = 2
                            counts[place[hop, orbit[a], orbit[b]], nodes[a], nodes[b]] += 1


@numba.njit(cache=True)
def _three(A: Array, place: Array, counts: Array) -> None:  # pragma: no cover - compiled
    n = A.shape[0]
    for i in range(n):
        for j in range(n):
            if j == i:
                continue
            if A[i, j]:
                counts[place[1, 0, 0], i, j] += 1
            for k in range(n):  # the third node
                if k in (i, j):
                    continue
                joined = A[i, k] + A[k, j]
                if A[i, j] and joined == 2:
                    counts[place[1, 3, 3], i, j] += 1
                elif A[i, j] and A[i, k]:
                    counts[place[1, 2, 1], i, j] += 1
                elif A[i, j] and A[k, j]:
                    counts[place[1, 1, 2], i, j] += 1
                elif not A[i, j] and joined == 2:
                    counts[place[2, 1, 1], i, j] += 1


def orbits_by_definition(A: Any) -> dict[Orbit, NDArray[np.int64]]:
    """The 28 matrices, dense int64 [n, n], by enumerating all sets of two, three and four nodes: O(n^4) time.

    ``A`` and errors as :func:`simple_graph`. Nothing here is shared with the closed forms.
    """
    dense = simple_graph(A).toarray()
    place = np.full((4, 15, 15), -1, np.int64)
    for at, orbit in enumerate(ORBITS):
        place[orbit] = at
    counts = np.zeros((len(ORBITS), *dense.shape), np.int64)
    _three(dense, place, counts)
    _four(dense, place, _FOUR, counts)
    return dict(zip(ORBITS, counts, strict=True))
