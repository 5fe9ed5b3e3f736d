"""From a graph to sequences: neighbourhood tokens of nodes, the order of nodes, positional and structural codes."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data

from latticework.layers.propagation import run_parallel
from latticework.layers.walks import walk_from

Array = NDArray[Any]
Ordering = Literal["degree", "pagerank", "shuffled"]
_BELOW_ONE = np.float32(1 - 2**-24)


class Tokens(NamedTuple):
    """Sequences of tokens, S = repeats * m + 1 for each of n nodes, the node itself last.

    lengths int64 [n, S]: the walks' steps; nodes int64 [K]: the different nodes of all tokens, one token after the other (each
    token's own node first); sizes int64 [n S]: how many each has; shape float32 [n S, 2]: the share of different nodes among the
    most there could be (walks * r + 1), and the share of steps that stood on the token's own node again.
    """

    lengths: Array
    nodes: Array
    sizes: Array
    shape: Array


def csr_of(edge_index: Array, n: int, both_ways: bool = False) -> tuple[Array, Array]:
    """(indptr int64 [n + 1], indices int32 [m]) of the edges as written, source to target, each once; self-loops count."""
    u, v = np.asarray(edge_index)
    if both_ways:
        u, v = np.concatenate([u, v]), np.concatenate([v, u])
    found = sp.csr_array((np.ones(len(u), np.int8), (u, v)), shape=(n, n))
    found.sum_duplicates()
    return found.indptr.astype(np.int64), found.indices.astype(np.int32)


@numba.njit(cache=True)
def _token(  # pragma: no cover - compiled
    indptr: Array, indices: Array, node: int, steps: int, chances: Array, starts: Array, paths: Array, found: Array, shape: Array
) -> int:
    """The different nodes that the walks from `node` visit, into `found`; how many."""
    walks = len(starts)
    found[0] = node
    count, back, taken = 1, 0, 0
    if steps:
        starts[:] = node
        paths[:] = -1
        walk_from(indptr, indices, starts, chances, paths[:, : steps + 1])
        for w in range(walks):
            for i in range(1, steps + 1):
                here = paths[w, i]
                if here < 0:
                    break
                taken += 1
                if here == node:
                    back += 1
                known = False
                for k in range(count):
                    if found[k] == here:
                        known = True
                        break
                if not known:
                    found[count] = here
                    count += 1
    shape[0] = count / (walks * steps + 1)
    shape[1] = back / taken if taken else 0
    return count


@numba.njit(cache=True, parallel=True)
def _all_tokens(  # pragma: no cover - compiled
    indptr: Array, indices: Array, lengths: Array, chances: Array, found: Array, sizes: Array, shape: Array
) -> None:
    """lengths [n, S], chances [n, S - 1, M, m]; found int32 [n, S, most], sizes [n, S], shape [n, S, 2]."""
    for node in numba.prange(len(lengths)):
        walks, most = chances.shape[2], chances.shape[3]
        starts = np.empty(walks, np.int64)
        paths = np.empty((walks, most + 1), np.int32)
        for s in range(lengths.shape[1] - 1):
            sizes[node, s] = _token(
                indptr, indices, node, lengths[node, s], chances[node, s], starts, paths, found[node, s], shape[node, s]
            )
        last = lengths.shape[1] - 1
        found[node, last, 0] = node
        sizes[node, last] = 1
        shape[node, last, 0], shape[node, last, 1] = 1, 0


def lengths_of(n: int, walk_length: int, repeats: int, shuffle: Array | None = None) -> Array:
    """int64 [n, S]: m, .. m, .., 1, .. 1, 0; with `shuffle` (numbers [n, S - 1]) all but the last in the order of these.

    Tokens of one length are drawn alike and independently, so any order among them is a random one.
    """
    row = np.concatenate([np.repeat(np.arange(walk_length, 0, -1), repeats), [0]])
    lengths = np.tile(row, (n, 1))
    if shuffle is not None:
        lengths[:, :-1] = np.take_along_axis(lengths[:, :-1], np.argsort(shuffle, axis=1), axis=1)
    return lengths


def tokenise(
    indptr: Array, indices: Array, walk_length: int, walks: int, repeats: int, rng: np.random.Generator | None = None, *,
    lengths: Array | None = None, chances: Array | None = None,
) -> Tokens:  # fmt: skip
    """The tokens of all nodes of a graph in CSR form (several graphs end to end are one).

    For each length r = 1 .. m (`walk_length`), `repeats` tokens of `walks` walks of r steps; a step goes to a uniform neighbour, and
    a walk that meets a node without any ends there, so an isolated node's tokens all hold itself alone. `chances` float32
    [n, S - 1, walks, m] in [0, 1) are the draws (left out: of `rng`), so walks can be given; `lengths` (left out: farthest first).
    ``ValueError`` for m < 0, walks < 1, or repeats < 1 where m >= 1.
    """
    if walk_length < 0 or walks < 1 or (walk_length and repeats < 1):
        raise ValueError(f"walk_length >= 0, walks >= 1, repeats >= 1 must hold: {walk_length}, {walks}, {repeats} were given")
    n = len(indptr) - 1
    lengths = lengths_of(n, walk_length, repeats) if lengths is None else lengths
    if chances is None:
        if rng is None:
            raise ValueError("give a generator, or the draws themselves")
        chances = rng.random((n, lengths.shape[1] - 1, walks, walk_length), dtype=np.float32)
    slots = lengths.shape[1]
    most = min(walks * walk_length + 1, max(n, 1))
    found = np.empty((n, slots, most), np.int32)
    sizes, shape = np.empty((n, slots), np.int64), np.empty((n, slots, 2), np.float32)
    if n:
        run_parallel(_all_tokens, indptr, indices, lengths, np.minimum(chances, _BELOW_ONE), found, sizes, shape)
    inside = np.arange(most) < sizes[:, :, None]
    return Tokens(lengths, found[inside].astype(np.int64), sizes.ravel(), shape.reshape(-1, 2))


def induced_edges(indptr: Array, indices: Array, nodes: Array, sizes: Array) -> tuple[Array, Array]:
    """The edges inside each token's sub-graph, as CSR over the K places of `Tokens.nodes`: indptr [K + 1], neighbours [E]."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    count = np.zeros(len(nodes) + 1, np.int64)
    _count_induced(indptr, indices, nodes, ends, count)
    first = np.cumsum(count)
    source = np.empty(int(first[-1]), np.int32)
    _fill_induced(indptr, indices, nodes, ends, first, source)
    return first, source


@numba.njit(cache=True)
def _count_induced(indptr: Array, indices: Array, nodes: Array, ends: Array, count: Array) -> None:  # pragma: no cover - compiled
    for token in range(len(ends) - 1):
        for place in range(ends[token], ends[token + 1]):
            for e in range(indptr[nodes[place]], indptr[nodes[place] + 1]):
                for other in range(ends[token], ends[token + 1]):
                    if nodes[other] == indices[e]:
                        count[place + 1] += 1
                        break


@numba.njit(cache=True)
def _fill_induced(  # pragma: no cover - compiled
    indptr: Array, indices: Array, nodes: Array, ends: Array, first: Array, source: Array
) -> None:
    for token in range(len(ends) - 1):
        for place in range(ends[token], ends[token + 1]):
            at = first[place]
            for e in range(indptr[nodes[place]], indptr[nodes[place] + 1]):
                for other in range(ends[token], ends[token + 1]):
                    if nodes[other] == indices[e]:
                        source[at] = other
                        at += 1
                        break


# -- the order of nodes -----------------------------------------------------------------------------------------------------
def importance(indptr: Array, indices: Array, ordering: Ordering) -> Array:
    """float64 [n]: what nodes are sorted by: out-degree, PageRank (damping 0.85), or nothing (all 0, so that ties decide)."""
    n = len(indptr) - 1
    degree = np.diff(indptr).astype(np.float64)
    if ordering == "degree":
        return degree
    if ordering == "shuffled":
        return np.zeros(n)
    A = sp.csr_array((np.ones(len(indices)), indices, indptr), shape=(n, n))
    back = sp.csr_array((sp.diags_array(1 / np.maximum(degree, 1)) @ A).T)
    rank = np.full(n, 1 / max(n, 1))
    for _ in range(100):
        lost = rank[degree == 0].sum()  # of nodes without a way out: to all alike
        new = 0.85 * (back @ rank + lost / n) + 0.15 / n
        if np.abs(new - rank).sum() < 1e-10:
            break
        rank = new
    # what differs by rounding alone is a tie, which no numbering may decide
    return np.round(rank * n, 8)


def orders(value: Array, graph: Array, tie: Array) -> Array:
    """int64 [n]: each node's place in its graph's sequence, by ascending `value`, ties by `tie`; `graph` [n] ascending."""
    order = np.lexsort((tie, value, graph))
    start = np.searchsorted(graph, graph)
    place = np.empty(len(graph), np.int64)
    place[order] = np.arange(len(graph))
    return np.asarray(place - start)


# -- a set of graphs --------------------------------------------------------------------------------------------------------
class Joined(NamedTuple):
    """Graphs end to end: sizes int64 [G], graph int64 [n], CSR of all."""

    sizes: Array
    graph: Array
    indptr: Array
    indices: Array


def joined(graphs: list[Data], both_ways: bool) -> Joined:
    sizes = np.array([int(g.num_nodes or 0) for g in graphs], np.int64)
    starts = np.cumsum(sizes) - sizes
    edges = [g.edge_index.numpy() for g in graphs]
    counts = [e.shape[1] for e in edges]
    edge_index = np.concatenate(edges, axis=1) + np.repeat(starts, counts) if edges else np.zeros((2, 0), np.int64)
    indptr, indices = csr_of(edge_index, int(sizes.sum()), both_ways)
    return Joined(sizes, np.repeat(np.arange(len(sizes)), sizes), indptr, indices)


def with_sequences(
    graphs: list[Data], walk_length: int, walks: int, repeats: int, ordering: Ordering, both_ways: bool,
    rng: np.random.Generator | None, draw: int = 0,
) -> list[Data]:  # fmt: skip
    """New graphs with `place` int64 [n], and for walks of a step or more `token_index` [K], `token_size` [n S], `token_shape` [n S, 2].

    With `rng` all draws come from it (training). Without, each graph has a generator of its own that depends on its size and on
    `draw` alone, so that what is said of a graph does not depend on the others it was asked with.
    """
    all_of = joined(graphs, both_ways)
    n, slots = len(all_of.graph), walk_length * repeats
    value = np.concatenate([g.value.numpy() for g in graphs]) if graphs else np.zeros(0)
    shuffled = ordering == "shuffled" and slots > 0

    def draws(count: int, rng: np.random.Generator) -> tuple[Array, Array | None, Array]:
        tie = rng.random(count)
        mixed = rng.random((count, slots)) if shuffled else None
        return tie, mixed, rng.random((count, slots, walks, walk_length), dtype=np.float32)

    if rng is not None:
        tie, mixed, chances = draws(n, rng)
    else:
        parts = [draws(int(size), np.random.default_rng([0x6D616D62, draw, int(size)])) for size in all_of.sizes]
        tie = np.concatenate([p[0] for p in parts]) if parts else np.zeros(0)
        mixed = np.concatenate([p[1] for p in parts if p[1] is not None]) if shuffled and parts else None
        chances = np.concatenate([p[2] for p in parts]) if parts else np.zeros((0, slots, walks, walk_length), np.float32)
    place = torch.from_numpy(orders(value, all_of.graph, tie))
    cut = np.cumsum(all_of.sizes)
    starts = cut - all_of.sizes
    made = [copy.copy(g) for g in graphs]
    for g, a, b in zip(made, starts.tolist(), cut.tolist(), strict=True):
        g.place = place[a:b]
    if not walk_length:
        return made
    lengths = lengths_of(n, walk_length, repeats, mixed)
    tokens = tokenise(all_of.indptr, all_of.indices, walk_length, walks, repeats, lengths=lengths, chances=chances)
    S = lengths.shape[1]
    ends = np.concatenate([[0], np.cumsum(tokens.sizes)])
    index = torch.from_numpy(tokens.nodes - np.repeat(np.repeat(starts, all_of.sizes * S), tokens.sizes))
    size, shape = torch.from_numpy(tokens.sizes), torch.from_numpy(tokens.shape)
    for g, a, b in zip(made, (starts * S).tolist(), (cut * S).tolist(), strict=True):
        g.token_index, g.token_size, g.token_shape = index[ends[a] : ends[b]], size[a:b], shape[a:b]
    return made
