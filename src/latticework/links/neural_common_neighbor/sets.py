"""Neighbour sets of many pairs at once, as sparse rows: the intersection, both differences, and what lies two steps away.

A graph is its pattern: float32 CSR [n, n] of ones, symmetric, without loops, columns sorted. The sets of B pairs are the
rows of CSR arrays [B, n], so that a sum over a set is one sparse product with the node vectors.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from latticework.layers.hashing import GOLDEN, mixed, to_unit
from latticework.layers.propagation import SparseOperator

from .. import heuristics

Array = NDArray[Any]


class Sets(NamedTuple):
    """For pairs (i, j): `both` N(i) n N(j), `left` N(i) \\ N(j), `right` N(j) \\ N(i); CSR [B, n], entries > 0."""

    both: sp.csr_array
    left: sp.csr_array | None = None
    right: sp.csr_array | None = None


def pattern(edge_index: Tensor | Array, n: int, weight: Tensor | Array | None = None) -> sp.csr_array:
    """The pattern of an edge list [2, m], read both ways, without loops; weights must be >= 0 and count for nothing else.

    ``ValueError`` for a node outside 0..n-1 or a negative weight.
    """
    if weight is not None and len(weight) and not float(weight.min()) >= 0:
        raise ValueError(f"an edge has weight {float(weight.min()):g}: weights of links are >= 0")
    return plain(heuristics.pattern(edge_index, n))


def plain(A: sp.csr_array) -> sp.csr_array:
    """float32, int32 columns, sorted."""
    A.sort_indices()
    return sp.csr_array((A.data.astype(np.float32, copy=False), A.indices, A.indptr), shape=A.shape)


def check_pairs(pairs: Array, n: int) -> Array:
    """int64 [2, B]; ``ValueError`` for another shape, a node outside 0..n-1, or a node paired with itself."""
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[0] != 2:
        raise ValueError(f"pairs must be [2, B], are {list(pairs.shape)}")
    wrong = np.flatnonzero(((pairs < 0) | (pairs >= n)).any(0))
    if len(wrong):
        raise ValueError(f"pair {int(wrong[0])} is {pairs[:, wrong[0]].tolist()}: nodes are numbered 0..{n - 1}")
    same = np.flatnonzero(pairs[0] == pairs[1])
    if len(same):
        raise ValueError(f"pair {int(same[0])} joins node {int(pairs[0, same[0]])} with itself")
    return pairs.astype(np.int64, copy=False)


def rows_of(pairs: Array, n: int) -> sp.csr_array:
    """Pairs [2, B] as a pattern [n, n], both ways."""
    ends = np.concatenate([pairs, pairs[::-1]], axis=1)
    B = sp.csr_array((np.ones(ends.shape[1], np.float32), (ends[0], ends[1])), shape=(n, n))
    B.data[:] = 1  # a pair that stands twice is one link
    return B


def without(A: sp.csr_array, pairs: Array) -> sp.csr_array:
    """A with the links of these pairs [2, B] deleted, both ways; a pair that is no link changes nothing."""
    rest = sp.csr_array(A - A.multiply(rows_of(pairs, A.shape[0])))
    rest.eliminate_zeros()
    return plain(rest)


def joined(A: sp.csr_array, pairs: Array) -> sp.csr_array:
    """A with links between these pairs [2, B] added."""
    return plain(sp.csr_array(A.maximum(rows_of(pairs, A.shape[0]))))


def thinned(A: sp.csr_array, p: float) -> sp.csr_array:
    """Each stored entry is kept with probability 1 - p, one direction apart from the other; values are not rescaled."""
    if p == 0:
        return A
    keep = (torch.rand(A.nnz) >= p).numpy()
    indptr = np.concatenate([[0], np.cumsum(keep)])[A.indptr].astype(A.indptr.dtype)
    return sp.csr_array((A.data[keep], A.indices[keep], indptr), shape=A.shape)


def second_ring(A: sp.csr_array) -> sp.csr_array:
    """The nodes at distance two of each node: reached in two steps, not in one, and not the node itself."""
    two = sp.csr_array(A @ A)
    two.setdiag(0)
    two.data = np.ones(two.nnz, np.float32) * (two.data > 0)
    rest = sp.csr_array(two - two.multiply(A))
    rest.eliminate_zeros()
    return plain(rest)


def neighbour_sets(A: sp.csr_array, pairs: Array, differences: bool = False, B: sp.csr_array | None = None) -> Sets:
    """The sets of B pairs [2, B] as products of sparse rows. With `B`, the second node's neighbours are read there.

    ``both = A[i] * B[j]`` entry by entry, ``left = A[i] - both``, ``right = B[j] - both``. An empty graph has empty sets.
    """
    other = A if B is None else B
    i, j = A[pairs[0]], other[pairs[1]]
    both = sp.csr_array(i.multiply(j))
    if not differences:
        return Sets(both)
    return Sets(both, sp.csr_array(i - both), sp.csr_array(j - both))


def sampled(rows: sp.csr_array, most: int, keys: Array | None = None) -> sp.csr_array:
    """`most` draws with replacement from each row that holds more, weighted so that a sum over the row stays unbiased.

    An entry that was drawn c times gets ``c * size / most`` times its value. Draws come from torch's global generator; with `keys`
    uint64 [B] they hang on a row's key alone: the same for it in any company.
    """
    size = np.diff(rows.indptr)
    long = size > most
    if not long.any():
        return rows
    draws = torch.rand(int(long.sum()), most).numpy() if keys is None else _uniform(keys[long], most)
    picked = (
        rows.indptr[:-1][long, None] + np.minimum((draws * size[long, None]).astype(np.int64), size[long, None] - 1)
    ).ravel()
    count = np.bincount(picked, minlength=rows.nnz).astype(np.float32)
    scale = np.where(np.repeat(long, size), count * np.repeat(size, size) / most, 1).astype(np.float32)
    thin = sp.csr_array((rows.data * scale, rows.indices, rows.indptr), shape=rows.shape, copy=True)
    thin.eliminate_zeros()
    return thin


def _uniform(keys: Array, many: int) -> Array:
    """float64 [B, many] in [0, 1), as if random, of numbers uint64 [B]."""
    return to_unit(mixed(keys[:, None] + np.arange(1, many + 1, dtype=np.uint64) * GOLDEN))


def sum_rows(rows: sp.csr_array, h: Tensor) -> Tensor:
    """``sum_u rows[b, u] h[u]``: [B, n] and [n, d] -> [B, d]; its gradient is the product with the transpose."""
    values = rows.data.astype(np.float64 if h.dtype == torch.float64 else np.float32, copy=False)
    return SparseOperator.unchecked(rows.indptr, rows.indices, values, rows.shape) @ h


def row_numbers(rows: sp.csr_array) -> Array:
    """int64 [nnz]: the row of each stored entry."""
    return np.repeat(np.arange(rows.shape[0], dtype=np.int64), np.diff(rows.indptr))


def expected(rows: sp.csr_array, values: Array) -> sp.csr_array:
    """The same entries with other values."""
    return sp.csr_array((values, rows.indices, rows.indptr), shape=rows.shape)


def row_totals(rows: sp.csr_array) -> Array:
    """float64 [B]: the sum of each row's values."""
    return np.bincount(row_numbers(rows), rows.data.astype(np.float64), rows.shape[0])


def chunks(A: sp.csr_array, pairs: Array, budget: int) -> list[slice]:
    """Consecutive cuts of the pairs, each with at most about `budget` neighbours (and a pair at least)."""
    degree = np.diff(A.indptr)
    work = np.cumsum(degree[pairs[0]] + degree[pairs[1]] + 32)
    bounds = [0]
    while bounds[-1] < pairs.shape[1]:
        done = work[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(work, done + budget, side="right"))))
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
