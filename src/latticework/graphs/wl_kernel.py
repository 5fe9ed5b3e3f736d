"""The Weisfeiler-Lehman subtree kernel (Shervashidze et al., JMLR 2011) as counts of hashed colours.

Each node starts with a colour, its features read as a category. In each iteration it takes the colour of the pair (own colour,
multiset of the neighbours' colours), so that after h of them a colour stands for the rooted tree of depth h. The kernel of two
graphs is the number of pairs of nodes, one of each, with equal colours, summed over iterations 0..h. Colours are 64-bit integers
mixed from what they stand for, so new graphs need no dictionary: equal trees have equal colours in every process, and unequal
ones differ but for a chance of about (number of colours)^2 / 2^65.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch_geometric.data import Data

from latticework.layers.hashing import mixed

Array = NDArray[Any]
NEIGHBOUR, EDGE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
ROUND, COLUMN = 0x165667B19E3779F9, 0xD6E8FEB86659FD93


def times(constant: int, k: int) -> np.uint64:
    """A product modulo 2^64, without numpy's warning for scalars."""
    return np.uint64(constant * k % 2**64)


def row_colours(x: Array | None, rows: int) -> Array:
    """uint64 [rows]: equal rows of float32 [rows, F] have equal colours; all equal where there are no features."""
    colour = np.zeros(rows, np.uint64)
    if x is None:
        return colour
    bits = (np.ascontiguousarray(x, np.float32) + np.float32(0)).view(np.uint32)  # + 0: minus zero is zero
    for column in np.flatnonzero((bits != 0).any(0)):
        told = mixed(mixed(bits[:, column]) + times(COLUMN, int(column) + 1))
        colour += np.where(bits[:, column] == 0, np.uint64(0), told)  # a zero says nothing, so a column of zeros may be left out
    return mixed(colour)


def colours(x: Array | None, edge_index: Array, edge_x: Array | None, nodes: int, iterations: int) -> Array:
    """uint64 [iterations + 1, nodes]: the colour of each node after 0, 1, … iterations.

    ``c_0 = mix(x)``; ``c_(t+1)(v) = mix(c_t(v) + R (t + 1) + sum over edges u -> v of mix(mix(c_t(u) + N) + e_uv))`` with constants R, N
    and the colour e_uv of the edge's features: the sum of mixed colours stands for the multiset.
    """
    source, target = edge_index
    edge = row_colours(edge_x, len(source)) * EDGE
    found = np.empty((iterations + 1, nodes), np.uint64)
    found[0] = row_colours(x, nodes)
    order = np.argsort(target, kind="stable")
    source, edge = source[order], edge[order]
    starts = np.searchsorted(target[order], np.arange(nodes + 1))
    for t in range(iterations):
        told = mixed(mixed(found[t] + NEIGHBOUR)[source] + edge)
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(told, dtype=np.uint64)])  # wraps, and so do its differences
        found[t + 1] = mixed(found[t] + times(ROUND, t + 1) + running[starts[1:]] - running[starts[:-1]])
    return found


def colours_of(graphs: Sequence[Data], iterations: int) -> tuple[Array, Array]:
    """Colours uint64 [iterations + 1, n] of the nodes of all graphs, end to end, and the graph int64 [n] of each node."""
    sizes = np.array([int(g.num_nodes or 0) for g in graphs], np.int64)
    shift = np.cumsum(sizes) - sizes
    none = np.zeros((2, 0), np.int64)
    edges = np.concatenate([g.edge_index.numpy() + s for g, s in zip(graphs, shift, strict=True)] or [none], 1)
    x = None if not graphs or graphs[0].x is None else np.concatenate([g.x.numpy() for g in graphs])
    edge_x = None if not graphs or graphs[0].edge_attr is None else np.concatenate([g.edge_attr.numpy() for g in graphs])
    return colours(x, edges, edge_x, int(sizes.sum()), iterations), np.repeat(np.arange(len(graphs)), sizes)


def vocabulary(found: Array) -> Array:
    """uint64 [V], sorted: the colours that occur. An iteration is part of a colour, so those of different depths differ."""
    flat = np.sort(found, axis=None)  # np.unique hashes, which is slower here
    return flat[np.concatenate([[True], flat[1:] != flat[:-1]])] if len(flat) else flat


def counts(found: Array, graph: Array, graphs: int, known: Array) -> tuple[sp.csr_array, Array]:
    """How often each known colour occurs in each graph, float64 CSR [G, V], and the squared norm float64 [G] over all colours.

    The norm counts unknown colours, too: ``k(g, g)`` of a graph with trees that no train graph has.
    """
    flat, owner = found.ravel(), np.tile(graph, len(found))
    words, place = np.unique(flat, return_inverse=True)
    all_of = sp.csr_array((np.ones(len(flat)), (owner, place)), shape=(graphs, max(len(words), 1)))
    all_of.sum_duplicates()
    norm = np.asarray(all_of.multiply(all_of).sum(1)).ravel()
    at = np.searchsorted(known, words)
    there = np.zeros(len(words), bool) if not len(known) else known[np.minimum(at, len(known) - 1)] == words
    kept = np.flatnonzero(there)
    move = sp.csr_array((np.ones(len(kept)), (kept, at[kept])), shape=(max(len(words), 1), len(known)))
    return sp.csr_array(all_of @ move), norm


def normalised(features: sp.csr_array, norm: Array) -> sp.csr_array:
    """Rows divided by their norm, so that ``k(g, g) = 1``; a graph without nodes is 0."""
    scale = 1 / np.sqrt(np.maximum(norm, 1e-300))
    return sp.csr_array(sp.diags_array(np.where(norm > 0, scale, 0.0)) @ features)
