"""Hypergraph smoothing as two sparse products: vertices to hyperedges, hyperedges to vertices.

With the incidence matrix ``H`` [n, E], vertex degrees ``D_v`` and hyperedge sizes ``D_e``, the operator is
``L = D_v^-1/2 H D_e^-1 H^T D_v^-1/2`` (symmetric) or ``D_v^-1 H D_e^-1 H^T`` (the mean over a vertex's hyperedges of their
means). ``L`` is never formed: a hyperedge of k vertices costs 2 k entries instead of k^2.

Source: Feng et al., "Hypergraph Neural Networks" (AAAI 2019), equation 10, with hyperedge weights 1; the row form is Gao et
al., "HGNN+" (TPAMI 2023), and Bai et al., "Hypergraph Convolution and Hypergraph Attention" (PR 2021), equation 5.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import Tensor

from .propagation import SparseOperator

Array = NDArray[Any]


def incidence(edge_index: Tensor | Array, nodes: int, edges: int) -> sp.csr_array:
    """``H`` [n, E] of 0 and 1, float64 CSR; a membership that stands twice counts once.

    ``edge_index`` integer [2, m]: vertices above, hyperedges below. ``ValueError`` for another shape, or a vertex or
    hyperedge out of range (with its column).
    """
    index = edge_index.detach().cpu().numpy() if isinstance(edge_index, Tensor) else np.asarray(edge_index)
    if index.ndim != 2 or index.shape[0] != 2:
        raise ValueError(f"edge_index must be [2, m], is {list(index.shape)}")
    for row, most, word in ((index[0], nodes, "vertex"), (index[1], edges, "hyperedge")):
        wrong = np.flatnonzero((row < 0) | (row >= most))
        if len(wrong):
            raise ValueError(f"membership {int(wrong[0])} names {word} {int(row[wrong[0]])}, outside 0..{most - 1}")
    H = sp.csr_array((np.ones(index.shape[1]), (index[0], index[1])), shape=(nodes, edges))
    H.data[:] = 1.0  # the constructor has summed repeats
    H.sort_indices()
    return H


def with_singletons(H: sp.csr_array) -> sp.csr_array:
    """``H`` with a hyperedge of its own, at the end, for each vertex that is in none: [n, E] -> [n, E + isolated]."""
    alone = np.flatnonzero(np.diff(H.indptr) == 0)
    if not len(alone):
        return H
    own = sp.csr_array((np.ones(len(alone)), (alone, np.arange(len(alone)))), shape=(H.shape[0], len(alone)))
    return sp.csr_array(sp.hstack([H, own], format="csr"))


class HypergraphOperator:
    """``L`` as two CSR products: ``L @ X = to_vertices @ (to_edges @ X)``, for X [n, ...], differentiable in X.

    ``H`` [n, E] sparse, of 0 and 1, without empty hyperedges or isolated vertices (`with_singletons` first). `kind`
    ``symmetric``: ``to_edges = D_e^-1/2 H^T D_v^-1/2`` and its transpose, so ``L`` is symmetric with spectrum in [0, 1];
    ``row``: ``D_e^-1 H^T`` and ``D_v^-1 H``, rows of ``L`` sum to 1. float32, or as `dtype`. ``ValueError`` for an empty
    hyperedge, an isolated vertex, or an unknown kind.
    """

    def __init__(self, H: Any, kind: Literal["symmetric", "row"] = "symmetric", dtype: Any = np.float32) -> None:
        H = sp.csr_array(H, dtype=np.float64)
        degrees, sizes = np.asarray(H.sum(1)).ravel(), np.asarray(H.sum(0)).ravel()
        for values, word in ((sizes, "hyperedge"), (degrees, "vertex")):
            empty = np.flatnonzero(values == 0)
            if len(empty):
                what = "holds no vertex" if word == "hyperedge" else "is in no hyperedge; give it one of its own"
                raise ValueError(f"{word} {int(empty[0])} {what}")
        if kind == "symmetric":
            half = sp.csr_array(sp.diags_array(degrees**-0.5) @ H @ sp.diags_array(sizes**-0.5))
            to_edges, to_vertices = sp.csr_array(half.T), half
        elif kind == "row":
            to_edges = sp.csr_array(sp.diags_array(1 / sizes) @ H.T)
            to_vertices = sp.csr_array(sp.diags_array(1 / degrees) @ H)
        else:
            raise ValueError(f"kind must be symmetric or row, not {kind!r}")
        self.kind, self.degrees, self.sizes = kind, degrees, sizes
        self.to_edges = SparseOperator.from_scipy(to_edges, dtype)
        self.to_vertices = SparseOperator.from_scipy(to_vertices, dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.to_vertices.shape[0], self.to_vertices.shape[0]

    def __matmul__(self, X: Any) -> Any:
        return self.to_vertices @ (self.to_edges @ X)

    def to_scipy(self) -> sp.csr_array:
        """``L`` itself, CSR [n, n]: as many entries as there are pairs that share a hyperedge."""
        return sp.csr_array(self.to_vertices.to_scipy() @ self.to_edges.to_scipy())


def edge_mean(H: Any, dtype: Any = np.float32) -> SparseOperator:
    """``D_e^-1 H^T`` [E, n]: the mean over each hyperedge's vertices. ``ValueError`` for an empty hyperedge."""
    H = sp.csr_array(H, dtype=np.float64)
    sizes = np.asarray(H.sum(0)).ravel()
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        raise ValueError(f"hyperedge {int(empty[0])} holds no vertex")
    return SparseOperator.from_scipy(sp.csr_array(sp.diags_array(1 / sizes) @ H.T), dtype)


def clique_expansion(H: Any, most: int = 200_000_000) -> sp.csr_array:
    """0/1 adjacency [n, n] of vertices that share a hyperedge, without loops.

    ``ValueError`` where the hyperedges hold more than `most` pairs: one of k vertices has k^2.
    """
    H = sp.csr_array(H, dtype=np.float64)
    pairs = float((np.asarray(H.sum(0)).ravel() ** 2).sum())
    if pairs > most:
        raise ValueError(f"the clique expansion has {pairs:.3g} pairs, more than {most:.3g}")
    A = sp.csr_array(H @ H.T)
    A.setdiag(0)
    A.eliminate_zeros()
    A.data[:] = 1.0
    A.sort_indices()
    return A


def receptive_field(H: sp.csr_array, rows: Array, layers: int = 2) -> list[tuple[Array, Array]]:
    """What `layers` smoothings read to answer for some vertices: for each, from the last to the first, its (vertices,
    hyperedges).

    The vertices of step 0 are `rows`; each step's hyperedges are those of its vertices, and the next step's vertices are
    all of those hyperedges'. int64, sorted but for `rows`. ``ValueError`` for a vertex out of range.
    """
    rows = np.asarray(rows)
    if len(rows) and (rows.min() < 0 or rows.max() >= H.shape[0]):
        bad = int(rows[(rows < 0) | (rows >= H.shape[0])][0])
        raise ValueError(f"vertex {bad} is outside 0..{H.shape[0] - 1}")
    turned = sp.csr_array(H.T)
    steps, vertices = [], rows
    for _ in range(layers):
        edges = np.unique(H[vertices].indices).astype(np.int64)
        steps.append((vertices, edges))
        vertices = np.unique(turned[edges].indices).astype(np.int64)
    return [*steps, (vertices, np.zeros(0, np.int64))]
