"""How alike two nodes are by the links around them: counts over shared neighbours, sums over paths, random walks.

All take the pattern of an undirected graph, a CSR array A [n, n], symmetric, without loops, and pairs int64 [2, q], and give
float64 [q]; they are symmetric in the two nodes and need no training.

Source: Liben-Nowell and Kleinberg, "The link-prediction problem for social networks" (2007), section 3; Zhou et al.,
"Predicting missing links via local information" (2009) for resource allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from latticework.layers.propagation import adjacency

Array = NDArray[Any]
# entries of a dense block, and neighbours looked through at once
_DENSE, _LOOKED = 1 << 22, 1 << 24


def pattern(edge_index: Any, n: int) -> sp.csr_array:
    """float64 CSR [n, n] of zeros and ones: joined either way, no loops, sorted. Errors: as `layers.propagation.adjacency`."""
    matrix = adjacency(edge_index, n, undirected=True)
    found = sp.csr_array(matrix - sp.diags_array(matrix.diagonal()))
    found.eliminate_zeros()
    found.data[:] = 1.0
    found.sort_indices()
    return found


def keys_of(A: sp.csr_array) -> Array:
    """int64 [nnz], sorted: ``i n + j`` of every entry."""
    n = A.shape[0]
    return np.repeat(np.arange(n, dtype=np.int64), np.diff(A.indptr)) * n + A.indices


def linked(A: sp.csr_array, pairs: Array) -> Array:
    """bool [q]: whether each pair is a link of A."""
    keys, asked = keys_of(A), pairs[0].astype(np.int64) * A.shape[0] + pairs[1]
    if not len(keys):
        return np.zeros(len(asked), bool)
    return np.asarray(keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked)


def shared(A: sp.csr_array, pairs: Array, weight: Array | None = None) -> Array:
    """``sum over u in N(i) n N(j) of weight_u``; without weights the number of common neighbours. float64 [q]."""
    degree = np.diff(A.indptr)
    weight = np.ones(A.shape[0]) if weight is None else weight
    out = np.empty(pairs.shape[1])
    # the node with fewer neighbours is read row by row; pairs are cut so that a block stays small
    i = np.where(degree[pairs[0]] <= degree[pairs[1]], pairs[0], pairs[1])
    j = np.where(degree[pairs[0]] <= degree[pairs[1]], pairs[1], pairs[0])
    ends = np.cumsum(degree[i] + degree[j] + 1)
    start = 0
    while start < len(i):
        stop = max(int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _LOOKED, side="right")), start + 1)
        both = A[i[start:stop]].multiply(A[j[start:stop]])
        out[start:stop] = sp.csr_array(both) @ weight
        start = stop
    return out


def adamic_adar(A: sp.csr_array, pairs: Array) -> Array:
    """``sum over shared neighbours u of 1 / ln d_u``."""
    degree = np.maximum(np.diff(A.indptr), 2)  # a shared neighbour has two or more
    return shared(A, pairs, 1 / np.log(degree))


def resource_allocation(A: sp.csr_array, pairs: Array) -> Array:
    """``sum over shared neighbours u of 1 / d_u``."""
    return shared(A, pairs, 1 / np.maximum(np.diff(A.indptr), 1))


def to_digits(values: Array) -> Array:
    """float64 of 40 binary digits (12 decimal ones): what differs by rounding alone becomes equal, but for a rare pair at the border."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, 40)), exponent - 40))


def blocks_of(sources: Array, n: int) -> list[Array]:
    """Sources cut so that a dense block [k, n] stays small."""
    size = max(1, _DENSE // max(n, 1))
    return [sources[a : a + size] for a in range(0, len(sources), size)]


def katz_rows(A: sp.csr_array, sources: Array, beta: float, steps: int) -> Array:
    """``sum over l = 1..steps of beta^l (A^l)_s``, row by row of the sources. float64 [k, n]."""
    state = np.zeros((A.shape[0], len(sources)))
    state[sources, np.arange(len(sources))] = 1.0
    total = np.zeros_like(state)
    for _ in range(steps):
        state = beta * (A @ state)
        total += state
    return np.ascontiguousarray(total.T)


def pagerank_rows(A: sp.csr_array, sources: Array, restart: float, steps: int) -> Array:
    """Personalised PageRank from each source: ``r <- restart e_s + (1 - restart) P^T r`` with ``P = D^-1 A``. float64 [k, n].

    A walk that finds no neighbour goes back to its source.
    """
    degree = np.diff(A.indptr).astype(float)
    walk = sp.csr_array(A @ sp.diags_array(np.divide(1.0, degree, out=np.zeros_like(degree), where=degree > 0)))
    start = np.zeros((A.shape[0], len(sources)))
    start[sources, np.arange(len(sources))] = 1.0
    lonely = degree[sources] == 0
    state = start
    for _ in range(steps):
        state = restart * start + (1 - restart) * (walk @ state)
    state[:, lonely] = start[:, lonely]
    return np.ascontiguousarray(state.T)


def by_rows(rows: Callable[[Array], Array], pairs: Array, n: int) -> Array:
    """``R_ij`` of pairs (i, j), where `rows` gives dense rows [k, n] of R for k sources; block by block. float64 [q]."""
    i, j = pairs
    order = np.argsort(i, kind="stable")
    sources, first = np.unique(i[order], return_index=True)
    bounds = np.append(first, len(i))
    out, at = np.empty(len(i)), 0
    for block in blocks_of(sources, n):
        mine = order[bounds[at] : bounds[at + len(block)]]
        out[mine] = rows(block)[np.searchsorted(block, i[mine]), j[mine]]
        at += len(block)
    return out
