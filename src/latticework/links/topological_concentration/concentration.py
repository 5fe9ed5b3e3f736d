"""Topological Concentration: how much of a node's neighbourhood it shares with its neighbours, exactly and approximately.

With W_i = sum_k beta^(k-1) A^k[i, :] (walks of the train graph from i) and S_j = sum_k beta^(k-1) 1[A^k[j, :] > 0] (what j
reaches), sums over k = 1..K, the pair term is the product ``I_ij = sum_u W_i[u] S_j[u]``: the double sum over k1 and k2
factorises. Likewise ``Z_i = (sum_k beta^(k-1)) sum_u W_i[u]``, and TC_i is the mean of I_ij / Z_i over i's neighbours j.
ATC is the mean of ``<E_i, E_j>`` with ``E = sum_k a_k (D^-1 A)^k R`` and R random: cheap, and another quantity (walks on both
sides, each divided by degrees), which orders nodes much as TC does.

Source: Wang et al., "A Topological Perspective on Demystifying GNN-Based Link Prediction Performance" (ICLR 2024), sections 3
and 4; what the formulas leave open (multiplicities on i's side alone, the edge itself taken out of Z) as in the official code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from latticework.layers.propagation import SparseOperator, balanced_chunks, normalise, run_parallel

Array = NDArray[Any]
# Entries of the neighbourhoods that are held at once, four bytes each.
_HELD = 1 << 26
# Entries of the powers that `atc_limit` holds at once.
_LIMIT_ROWS = 1 << 24


class Concentration(NamedTuple):
    """`values` float64 [n], 0 where undefined; `defined` bool [n]: leave the others out of every mean."""

    values: Array
    defined: Array

    def mean(self) -> float:
        """Over the nodes where it is defined; NaN where it is nowhere."""
        return float(self.values[self.defined].mean()) if self.defined.any() else math.nan


class Approximation(NamedTuple):
    """ATC `values` float64 [n], its standard `error` float64 [n] over draws of R, and where it is `defined`, bool [n]."""

    values: Array
    error: Array
    defined: Array


def mean_degree_inverse(A: Any) -> float:
    """beta = 1 / mean degree of a graph of ones; ``ValueError`` for one without edges."""
    if not A.nnz:
        raise ValueError("the train graph has no edge, so no node has a neighbourhood")
    return float(A.shape[0] / A.nnz)


@numba.njit(cache=True)
def _walks(  # pragma: no cover - compiled
    indptr: Array, indices: Array, start: int, hops: int, beta: float,
    weight: Array, level: Array, following: Array, touched: Array, front: Array, further: Array,
) -> int:  # fmt: skip
    """W of one node, added into `weight`; how many entries of it, listed in `touched`, are not 0."""
    found, size, factor = 0, 1, 1.0
    front[0] = start
    level[start] = 1.0
    for _ in range(hops):
        reached = 0
        for a in range(size):
            v = front[a]
            count = level[v]
            level[v] = 0.0
            for e in range(indptr[v], indptr[v + 1]):
                u = indices[e]
                if following[u] == 0.0:
                    further[reached] = u
                    reached += 1
                following[u] += count
        for a in range(reached):
            u = further[a]
            if weight[u] == 0.0:
                touched[found] = u
                found += 1
            weight[u] += factor * following[u]
            level[u] = following[u]
            following[u] = 0.0
            front[a] = u
        size = reached
        factor *= beta
    for a in range(size):
        level[front[a]] = 0.0
    return found


@numba.njit(cache=True, parallel=True)
def _shared(  # pragma: no cover - compiled
    indptr: Array, indices: Array, ask_starts: Array, asked: Array, low: int, starts: Array, reach: Array,
    hops: int, beta: float, bounds: Array, sums: Array,
) -> None:  # fmt: skip
    """Add ``sum_j I_ij`` over the asked neighbours j in low..low + rows of `starts` [hops, rows + 1] to `sums`."""
    n = indptr.shape[0] - 1
    high = low + starts.shape[1] - 1
    for c in numba.prange(bounds.shape[0] - 1):
        weight, level, following = np.zeros(n), np.zeros(n), np.zeros(n)
        touched, front, further = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
        for i in range(bounds[c], bounds[c + 1]):
            first, last = ask_starts[i], ask_starts[i + 1]
            while first < last and asked[first] < low:
                first += 1
            while first < last and asked[last - 1] >= high:
                last -= 1
            if first == last:
                continue
            found = _walks(indptr, indices, i, hops, beta, weight, level, following, touched, front, further)
            total, factor = 0.0, 1.0
            for k in range(hops):
                part = 0.0
                for e in range(first, last):
                    j = asked[e] - low
                    for q in range(starts[k, j], starts[k, j + 1]):
                        part += weight[reach[q]]
                total += factor * part
                factor *= beta
            sums[i] += total
            for a in range(found):
                weight[touched[a]] = 0.0


def topological_concentration(A: Any, neighbours: Any | None = None, hops: int = 1, beta: float | None = None) -> Concentration:
    """``TC_i = mean_j I_ij / Z_i`` over i's neighbours j; in [0, 1], exact.

    ``A`` sparse [n, n], symmetric, ones, no loops (`heuristics.pattern`): the train graph, in which all walks go. `neighbours`,
    another such matrix, holds the pairs of the split that is measured; left out, they are A's own (the train split). There
    the pair itself must not count, so the (k1, k2) = (1, 1) part of Z takes d_i - 1 for d_i, and a node of degree <= 1 is
    undefined; with `neighbours` a node without train edge or without asked neighbour is. `beta` left out: 1 / mean degree.

    hops = 1: the local clustering coefficient for the train split, the mean of ``|N_i ∩ N_j| / d_i`` for another. Time: one
    pass over the K-hop neighbourhood of j for each asked pair (i, j), O(m d^K) where neighbourhoods do not fill the graph,
    O(m n) where they do; memory O(n) a thread and a block of neighbourhoods. The result does not depend on threads.

    Errors: ``ValueError`` for hops < 1, beta <= 0, an A without edges, matrices that are not such graphs or of unequal
    size, an asked pair that A holds (a held-out pair in the train graph).
    """
    graph = _checked(A)
    n = graph.shape[0]
    if hops < 1:
        raise ValueError(f"hops must be >= 1, are {hops}")
    scale = mean_degree_inverse(graph) if beta is None else float(beta)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"beta must be > 0, is {beta}")
    ask = graph if neighbours is None else _asked(neighbours, graph)
    degree = np.diff(graph.indptr).astype(np.float64)
    walks, total, levels = np.ones(n), np.zeros(n), []
    for k in range(hops):
        walks = graph @ walks
        total += scale**k * walks
        levels.append(np.minimum(walks, n))
    Z = sum(scale**k for k in range(hops)) * total
    if neighbours is None:
        Z = Z - 1
        defined = degree > 1
    else:
        defined = (degree > 0) & (np.diff(ask.indptr) > 0)
    sums = np.zeros(n)
    bounds = balanced_chunks(np.concatenate([[0], np.cumsum(ask @ np.sum(levels, axis=0))]).astype(np.int64))
    wanted = np.diff(ask.indptr) > 0  # the graph is symmetric: who has a neighbour is one
    for low, high in _blocks(np.where(wanted, np.sum(levels, axis=0), 0)):
        starts, reach = _reached(graph, low, high, hops, wanted)
        run_parallel(
            _shared, graph.indptr.astype(np.int64), graph.indices.astype(np.int32), ask.indptr.astype(np.int64),
            ask.indices.astype(np.int32), low, starts, reach, hops, scale, bounds, sums,
        )  # fmt: skip
    values = np.zeros(n)
    values[defined] = sums[defined] / (np.diff(ask.indptr)[defined] * Z[defined])
    return Concentration(values, defined)


def _checked(A: Any) -> sp.csr_array:
    graph = sp.csr_array(A, dtype=np.float64, copy=True)
    if graph.shape[0] != graph.shape[1]:
        raise ValueError(f"a graph's matrix is square, this is {graph.shape}")
    graph.sum_duplicates()
    graph.eliminate_zeros()
    if (graph.data != 1).any() or graph.diagonal().any() or (graph != graph.T).nnz:
        raise ValueError("the graph must be symmetric, of ones, without loops; make it with heuristics.pattern(pairs, n)")
    return graph


def _asked(neighbours: Any, graph: sp.csr_array) -> sp.csr_array:
    ask = _checked(neighbours)
    if ask.shape != graph.shape:
        raise ValueError(f"the asked pairs are on {ask.shape[0]} nodes, the train graph on {graph.shape[0]}")
    twice = ask.multiply(graph)
    if twice.nnz:
        u, v = (int(x[0]) for x in sp.coo_array(twice).coords)
        raise ValueError(f"{twice.nnz // 2} of the held-out pairs are edges of the train graph, too, first {u} and {v}")
    return ask


def _blocks(sizes: Array) -> list[tuple[int, int]]:
    """Consecutive ranges of rows with at most about `_HELD` entries each."""
    place = (np.cumsum(sizes) // _HELD).astype(np.int64)
    cuts = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), len(sizes)]
    return [(a, b) for a, b in itertools.pairwise(cuts) if sizes[a:b].any()]


def _reached(graph: sp.csr_array, low: int, high: int, hops: int, wanted: Array) -> tuple[Array, Array]:
    """Who is reached from the wanted rows of low..high by walks of exactly k steps: starts int64 [hops, rows + 1] into int32 nodes."""
    step = graph.astype(bool)
    level = step[low:high].copy()
    level.data &= np.repeat(wanted[low:high], np.diff(level.indptr))
    level.eliminate_zeros()
    starts, nodes, size = [], [], 0
    for k in range(hops):
        if k:
            level = level @ step
        starts.append(level.indptr.astype(np.int64) + size)
        nodes.append(level.indices.astype(np.int32))
        size += level.nnz
    return np.stack(starts), np.concatenate(nodes)


# -- approximate -------------------------------------------------------------------------------------------------------------
def atc_embedding(
    A: Any, dim: int = 64, hops: int = 1, weights: Sequence[float] | None = None, rng: Any = 0, dtype: Any = np.float32
) -> Array:
    """``E = sum_{k=1..K} a_k (D^-1 A)^k R`` with R [n, dim] of independent N(0, 1 / dim); -> [n, dim] of `dtype`.

    ``A`` as in :func:`topological_concentration`; `weights` are the a_k, ones where left out; `rng` a generator of numpy or
    a seed. It is FastRP's propagated Gaussian projection with beta = 0 and neither normalisation. Time O(dim K (m + n)),
    memory O(n dim). Errors: ``ValueError`` for dim, hops < 1, other than K weights, an A without edges.
    """
    graph = _checked(A)
    a = _hop_weights(weights, hops)
    if dim < 1:
        raise ValueError(f"dim must be >= 1, is {dim}")
    mean_degree_inverse(graph)
    P = SparseOperator.from_scipy(normalise(graph, "row"), dtype)
    kind = np.dtype(dtype)
    U = np.random.default_rng(rng).standard_normal((graph.shape[0], dim), dtype=kind.type)
    U *= kind.type(1 / math.sqrt(dim))
    E = np.zeros_like(U)
    for factor in a:
        U = P.multiply(U)
        E += kind.type(factor) * U
    return E


def approximate(A: Any, E: Array, neighbours: Any | None = None, cosine: bool = False) -> Approximation:
    """``ATC_i = mean_j <E_i, E_j>`` over i's neighbours j (`cosine`: of the unit vectors), with its standard error.

    ``E`` [n, dim] of :func:`atc_embedding`; `neighbours` as in :func:`topological_concentration`. With M = sum_k a_k
    (D^-1 A)^k and m_i the mean of M's rows over the neighbours, ATC_i estimates <M_i, m_i> and for a Gaussian R its variance
    is ``(|M_i|^2 |m_i|^2 + <M_i, m_i>^2) / dim``; `error` is its root with E's norms in place of M's, so that the truth
    lies within 1.96 of it about 19 times in 20 (with `cosine` it is that of the same ratio, to first order an upper bound).
    A node without neighbours on either side is undefined: 0. Errors as there.
    """
    graph = _checked(A)
    ask = graph if neighbours is None else _asked(neighbours, graph)
    if E.ndim != 2 or E.shape[0] != graph.shape[0]:
        raise ValueError(f"E must be [{graph.shape[0]}, dim], is {list(E.shape)}")
    own = E
    if cosine:
        norm = np.linalg.norm(E, axis=1, keepdims=True)
        own = np.divide(E, norm, out=np.zeros_like(E), where=norm > 0)
    mean = SparseOperator.from_scipy(normalise(ask, "row"), E.dtype).multiply(own)
    values = np.einsum("nd,nd->n", own, mean, dtype=np.float64)
    square = np.einsum("nd,nd->n", own, own, dtype=np.float64) * np.einsum("nd,nd->n", mean, mean, dtype=np.float64)
    defined = (np.diff(graph.indptr) > 0) & (np.diff(ask.indptr) > 0)
    values[~defined] = 0.0
    error = np.sqrt((square + values**2) / E.shape[1])
    error[~defined] = 0.0
    return Approximation(values, error, defined)


def atc_limit(A: Any, neighbours: Any | None = None, hops: int = 1, weights: Sequence[float] | None = None) -> Array:
    """What ATC tends to as dim grows, ``mean_j sum_{k1, k2} a_k1 a_k2 ((D^-1 A)^k1 (D^-1 A)^k2^T)_ij``; float64 [n].

    K = 1: the mean of ``|N_i ∩ N_j| / (d_i d_j)``. Sparse products in blocks of rows, as dear as exact TC and more: for
    tests and small graphs. Errors as :func:`topological_concentration`.
    """
    graph = _checked(A)
    ask = graph if neighbours is None else _asked(neighbours, graph)
    a = _hop_weights(weights, hops)
    mean_degree_inverse(graph)
    P = normalise(graph, "row")
    power, M = P, a[0] * P
    for factor in a[1:]:
        power = power @ P
        M = M + factor * power
    M = sp.csr_array(M)
    average = normalise(ask, "row")
    rows = max(1, _LIMIT_ROWS // graph.shape[0])
    parts = [M[i : i + rows].multiply(average[i : i + rows] @ M).sum(axis=1) for i in range(0, graph.shape[0], rows)]
    return np.concatenate([np.asarray(part).ravel() for part in parts])


def _hop_weights(weights: Sequence[float] | None, hops: int) -> list[float]:
    if hops < 1:
        raise ValueError(f"hops must be >= 1, are {hops}")
    found = [1.0] * hops if weights is None else [float(w) for w in weights]
    if len(found) != hops:
        raise ValueError(f"{hops} hops need as many weights, {len(found)} were given")
    return found


def subgraph_density(A: Any) -> Array:
    """Edges over possible edges among a node and its neighbours, float64 [n]; 0 for a node without any.

    ``2 (d_i + T_i) / ((d_i + 1) d_i)`` with T_i the triangles at i, which hops = 1 TC counts.
    """
    graph = _checked(A)
    degree = np.diff(graph.indptr).astype(np.float64)
    triangles = topological_concentration(graph).values * degree * (degree - 1) / 2
    return np.divide(2 * (degree + triangles), (degree + 1) * degree, out=np.zeros_like(degree), where=degree > 0)
