"""Ego networks of many graphs at once: who is in them, which pairs they hold, and which of them are the same.

The ego of node i holds all nodes within k hops of i, i included. With R [n, n] (0/1: row i is the ego of i) the pairs that stand
together in some ego are the entries of ``R^T R``, and each entry counts the egos that hold the pair. All of it is a sparse
product over the disjoint union of the graphs: nothing is looped over in Python.

Source: "Subgraph Permutation Equivariant Networks" (arXiv 2111.11840), section 4.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data

Array = NDArray[Any]


class GraphError(ValueError):
    """What is wrong with one of the given graphs: its place among them, and what was found."""

    def __init__(self, graph: int, words: str) -> None:
        super().__init__(f"graph {graph}: {words}")
        self.graph, self.words = graph, words


class Union(NamedTuple):
    """Graphs as one disjoint union: `A` [n, n] 0/1 as written (loops and direction kept, doubled edges once), `ptr` [G + 1]."""

    A: sp.csr_array
    ptr: Array


class Egos(NamedTuple):
    """Egos of a union: `size` int64 [E]; `node` int64 [sum m], ego after ego; `ptr` int64 [G + 1], the egos of each graph."""

    size: Array
    node: Array
    ptr: Array


class Pairs(NamedTuple):
    """Ordered pairs that stand together in an ego: `pair` int64 [2, P], sorted; `count` [P], the egos that hold each; `ptr` [G + 1]."""

    pair: Array
    count: Array
    ptr: Array


class EgoGraph(Data):
    """A graph with its egos: `ego_size` [E], `ego_node` [sum m], `ego_pair` [sum m^2] (places among the graph's pairs), `ego_class`
    [E] (equal number, equal input, among the graphs of one `ego_call`), `pair_count` [P], `node_pair` [n] (the place of (i, i)), `edge_pair` [m'], `edge_norm` [m'],
    `edge_channels` [m', D], `ego_total`, `pair_total`."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if key in ("ego_pair", "edge_pair", "node_pair"):
            return int(self.pair_count.shape[0])
        if key == "ego_node":
            return int(self.num_nodes or 0)
        return super().__inc__(key, value, *args, **kwargs)


def union_of(graphs: Sequence[Data]) -> Union:
    """The disjoint union.

    ``GraphError`` (a ``ValueError``) for a graph without a node or an `edge_index`, an edge that names a node outside its graph,
    or features that the first graph lacks, has alone or has in other columns.
    """
    sizes = np.array([int(g.num_nodes or 0) for g in graphs], np.int64)
    if len(sizes) and sizes.min() < 1:
        raise GraphError(int(np.argmin(sizes)), "has no node: there is no ego to look at")
    for number, graph in enumerate(graphs):
        if graph.edge_index is None:
            raise GraphError(number, "has no edge_index; give an empty one, [2, 0], where it has no edges")
        for key in ("x", "edge_attr"):
            first, own = graphs[0].get(key), graph.get(key)
            if (first is None) != (own is None):
                raise GraphError(number, f"has {'no ' if own is None else ''}{key}, unlike graph 0; all have it or none")
            if own is not None and first is not None and (own.ndim, own.shape[1:]) != (first.ndim, first.shape[1:]) and len(own):
                raise GraphError(number, f"its {key} is {list(own.shape)}, and graph 0's {list(first.shape)}: columns must agree")
    edges = [g.edge_index.numpy() for g in graphs]
    for number, (edge, n) in enumerate(zip(edges, sizes.tolist(), strict=True)):
        if edge.size and (edge.min() < 0 or edge.max() >= n):
            worst = edge.min() if edge.min() < 0 else edge.max()
            raise GraphError(number, f"an edge names node {int(worst)}, and its nodes are 0 to {n - 1}")
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    u, v = np.concatenate([e + p for e, p in zip(edges, ptr[:-1], strict=True)], axis=1) if edges else np.zeros((2, 0), np.int64)
    A = sp.csr_array((np.ones(len(u), np.float32), (u, v)), shape=(int(ptr[-1]),) * 2)
    A.sum_duplicates()
    A.data[:] = 1
    return Union(A, ptr)


def egos_of(union: Union, hops: int = 1, most: int = 0) -> Egos:
    """The `hops`-hop ego of every node, along edges in either direction; an ego's nodes in rising order.

    ``ValueError`` for hops < 1, or where an ego has more than `most` nodes (0: any), which names its node and graph.
    """
    if hops < 1:
        raise ValueError(f"hops must be 1 or more, is {hops}: an ego of its root alone sees no edge")
    n = int(union.ptr[-1])
    step = sp.csr_array(union.A + union.A.T + sp.eye_array(n, dtype=np.float32, format="csr"))
    R = _ones(step)
    _refuse_large(R, union, most)
    for _ in range(hops - 1):
        before = R.nnz
        R = _ones(R @ step)
        _refuse_large(R, union, most)
        if R.nnz == before:  # every ego is its whole component
            break
    R.sort_indices()
    return Egos(np.diff(R.indptr).astype(np.int64), R.indices.astype(np.int64), union.ptr)


def whole_graphs(union: Union, most: int = 0) -> Egos:
    """One ego a graph, that holds all of it: what a global network looks at. ``ValueError`` as `egos_of`."""
    sizes = np.diff(union.ptr)
    if most and len(sizes) and sizes.max() > most:
        raise GraphError(int(sizes.argmax()), f"has {int(sizes.max())} nodes, and at most {most} are looked at together")
    return Egos(sizes, np.arange(union.ptr[-1]), np.arange(len(sizes) + 1))


def _ones(R: sp.csr_array) -> sp.csr_array:
    R.data = np.ones(R.nnz, np.float32)
    return R


def _refuse_large(R: sp.csr_array, union: Union, most: int) -> None:
    sizes = np.diff(R.indptr)
    if most and len(sizes) and sizes.max() > most:
        node = int(sizes.argmax())
        graph = int(np.searchsorted(union.ptr, node, "right")) - 1
        own = node - int(union.ptr[graph])
        raise GraphError(graph, f"node {own}: its ego has {int(sizes[node])} nodes, and at most {most} are looked at together")


def pairs_of(union: Union, egos: Egos) -> Pairs:
    """All ordered pairs of nodes, equal ones included, that some ego holds."""
    n = int(union.ptr[-1])
    start = np.concatenate([[0], np.cumsum(egos.size)])
    R = sp.csr_array((np.ones(len(egos.node), np.float32), egos.node, start), shape=(len(egos.size), n))
    P = sp.csr_array(R.T @ R)
    P.sort_indices()
    rows = np.repeat(np.arange(n), np.diff(P.indptr))
    return Pairs(np.stack([rows, P.indices.astype(np.int64)]), P.data, P.indptr[union.ptr].astype(np.int64))


def places(pairs: Pairs, u: Array, v: Array, nodes: int) -> Array:
    """Where (u, v) stand among the pairs; all must be there."""
    return np.searchsorted(pairs.pair[0] * nodes + pairs.pair[1], u * nodes + v)


def places_of_egos(pairs: Pairs, egos: Egos, nodes: int) -> Array:
    """Where ``(e_a, e_b)`` of every ego e stand among the pairs, row by row: int64 [sum m^2]."""
    m = egos.size
    area = m * m
    start, within = np.cumsum(m) - m, np.arange(area.sum()) - np.repeat(np.cumsum(area) - area, area)
    first, width = np.repeat(start, area), np.repeat(m, area)
    return places(pairs, egos.node[first + within // width], egos.node[first + within % width], nodes)


# -- which egos are the same -------------------------------------------------------------------------------------------------
def in_order(union: Union, egos: Egos, node_label: Array, edge_label: Array) -> Egos:
    """The same egos, each with its nodes in an order that depends on the labelled ego alone, as far as colours tell.

    Colours of an ego's nodes are refined until nothing changes, then the first of the first tied nodes gets a colour of its own,
    and so on. Where tied nodes can be exchanged (they nearly always can in small egos) isomorphic egos come out equal.
    `node_label` int64 [n]; `edge_label` int64 [A.nnz], 1 or more.
    """
    node = egos.node.copy()
    start = np.concatenate([[0], np.cumsum(egos.size)])
    A = union.A
    _order(
        start, node, A.indptr.astype(np.int64), A.indices.astype(np.int64), edge_label, node_label, int(egos.size.max(initial=1))
    )
    return egos._replace(node=node)


def classes_of(union: Union, egos: Egos, node_label: Array, edge_label: Array) -> Array:
    """int64 [E]: equal numbers where two egos, as ordered, have equal labels on nodes and pairs; numbers rise with the size.

    So equal numbers mean equal input, always; isomorphic egos of different numbers (a tie broken otherwise) only cost time.
    """
    found = np.zeros(len(egos.size), np.int64)
    L = sp.csr_array((edge_label, union.A.indices, union.A.indptr), shape=union.A.shape)
    start = np.cumsum(egos.size) - egos.size
    known = 0
    for m in np.unique(egos.size).tolist():
        rows = np.flatnonzero(egos.size == m)
        node = egos.node[start[rows][:, None] + np.arange(m)]
        keys = np.empty((len(rows), m + m * m), np.int32)
        keys[:, :m] = node_label[node]
        _labels_of_pairs(node, L.indptr, L.indices, L.data, keys[:, m:])
        whole = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.itemsize * keys.shape[1]))).ravel()
        inverse = np.unique(whole, return_inverse=True)[1]
        found[rows] = known + inverse
        known += int(inverse.max()) + 1
    return found


@numba.njit(cache=True)
def _labels_of_pairs(node: Array, indptr: Array, indices: Array, data: Array, out: Array) -> None:
    """The label of each pair of each row's nodes (0: no edge); out int32 [B, m * m]."""
    m = node.shape[1]
    for b in range(node.shape[0]):
        for i in range(m):
            u = node[b, i]
            for j in range(m):
                out[b, i * m + j] = 0
            for e in range(indptr[u], indptr[u + 1]):
                for j in range(m):
                    if node[b, j] == indices[e]:
                        out[b, i * m + j] = data[e]
                        break


@numba.njit(cache=True)
def _mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True)
def _order(start: Array, node: Array, indptr: Array, indices: Array, edge_label: Array, node_label: Array, most: int) -> None:
    place = np.full(len(node_label), -1, np.int64)
    L = np.zeros((most, most), np.int64)
    code = np.zeros(most, np.uint64)
    for e in range(len(start) - 1):
        m = start[e + 1] - start[e]
        own = node[start[e] : start[e + 1]].copy()
        for i in range(m):
            place[own[i]] = i
        for i in range(m):
            for j in range(m):
                L[i, j] = 0
        for i in range(m):
            for k in range(indptr[own[i]], indptr[own[i] + 1]):
                j = place[indices[k]]
                if j >= 0:
                    L[i, j] = edge_label[k]
        for i in range(m):
            place[own[i]] = -1
        for i in range(m):
            code[i] = _mix(np.uint64(2 * node_label[own[i]] + 1))
        colour, classes = _ranks(code[:m])
        while True:
            while classes < m:  # refine until no colour splits
                for i in range(m):
                    total = np.uint64(0)
                    for j in range(m):
                        if L[i, j] or L[j, i]:
                            pair = _mix(np.uint64(L[i, j]) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(L[j, i]))
                            total += _mix(pair ^ (np.uint64(colour[j] + 1) * np.uint64(0xD1B54A32D192ED03)))
                    # the old colour leads, so that refining never reorders
                    code[i] = (np.uint64(colour[i]) << np.uint64(48)) | (_mix(total) >> np.uint64(16))
                colour, found = _ranks(code[:m])
                if found == classes:
                    break
                classes = found
            if classes == m:
                break
            # the first node of the first tied colour comes before the others of its colour
            seen = np.zeros(m, np.int64)
            for i in range(m):
                seen[colour[i]] += 1
            tied = 0
            while seen[tied] < 2:
                tied += 1
            first = True
            for i in range(m):
                code[i] = np.uint64(2 * colour[i] + 1)
                if first and colour[i] == tied:
                    code[i] -= np.uint64(1)
                    first = False
            colour, classes = _ranks(code[:m])
        for i in range(m):
            node[start[e] + colour[i]] = own[i]


@numba.njit(cache=True)
def _ranks(code: Array) -> tuple[Array, int]:
    """The rank of each code among the different ones, and how many there are."""
    order = np.argsort(code)
    found = np.empty(len(code), np.int64)
    rank = 0
    for k in range(len(code)):
        if k and code[order[k]] != code[order[k - 1]]:
            rank += 1
        found[order[k]] = rank
    return found, rank + 1


# -- all of it, for a list of graphs -----------------------------------------------------------------------------------------
def with_egos(graphs: Sequence[Data], hops: int = 1, most: int = 200, whole: bool = False, share: bool = True) -> list[EgoGraph]:
    """New graphs with their egos (`EgoGraph`), all index work done once; the given ones stay as they are.

    `whole`: one ego, the graph itself. `share`: egos are ordered and compared, so that those with equal input can be computed
    once; without it every ego is a class of its own. `x` float [n, F] or none, `edge_attr` float [m, D] or none are taken as they
    are. ``ValueError`` as `union_of`, `egos_of` and `whole_graphs`.
    """
    if not graphs:
        return []
    union = union_of(graphs)
    A, nodes = union.A, int(union.ptr[-1])
    egos = whole_graphs(union, most) if whole else egos_of(union, hops, most)
    channels = edge_channels(graphs, union)
    if share:
        egos, kinds = alike(graphs, union, egos, channels)
    else:
        kinds = np.empty(len(egos.size), np.int64)
        kinds[np.argsort(egos.size, kind="stable")] = np.arange(len(egos.size))
    row = np.repeat(np.arange(nodes), np.diff(A.indptr))
    leaving, arriving = np.diff(A.indptr), np.bincount(A.indices, minlength=nodes)
    pairs = pairs_of(union, egos)
    norm = 1 / np.sqrt(leaving[row] * np.maximum(arriving[A.indices], 1))
    held = {
        "ego_node": (egos.node, _cut(egos.size, egos.ptr), union.ptr[:-1]),
        "ego_pair": (places_of_egos(pairs, egos, nodes), _cut(egos.size**2, egos.ptr), pairs.ptr[:-1]),
        "ego_size": (egos.size, egos.ptr, None),
        "ego_class": (kinds, egos.ptr, None),
        "pair_count": (pairs.count, pairs.ptr, None),
        "node_pair": (places(pairs, *(np.arange(nodes),) * 2, nodes), union.ptr, pairs.ptr[:-1]),
        "edge_pair": (places(pairs, row, A.indices.astype(np.int64), nodes), A.indptr[union.ptr], pairs.ptr[:-1]),
        "edge_norm": (norm.astype(np.float64), A.indptr[union.ptr], None),
        "edge_channels": (channels, A.indptr[union.ptr], None),
    }
    call = uuid.uuid4().int >> 65  # classes of two calls have nothing to do with each other, and may meet in one batch
    made = []
    for g, graph in enumerate(graphs):
        new = EgoGraph(**{key: graph[key] for key in graph.keys()})  # noqa: SIM118  (a Data is no mapping)
        new.num_nodes = int(graph.num_nodes or 0)
        for key, (values, ptr, before) in held.items():
            own = values[ptr[g] : ptr[g + 1]]
            new[key] = torch.from_numpy(own - before[g] if before is not None else own.copy())
        new.ego_total, new.pair_total = int(egos.ptr[g + 1] - egos.ptr[g]), int(pairs.ptr[g + 1] - pairs.ptr[g])
        new.ego_call = call
        made.append(new)
    return made


def edge_channels(graphs: Sequence[Data], union: Union) -> Array:
    """What each edge of the union carries, float32 [A.nnz, D]: `edge_attr`, of doubled edges the mean."""
    A = union.A
    if not graphs or graphs[0].edge_attr is None:
        return np.zeros((A.nnz, 0), np.float32)
    carried = [g.edge_attr.numpy() for g in graphs]
    given = np.concatenate([a[:, None] if a.ndim == 1 else a for a in carried])  # a graph without an edge has [0, D]
    u, v = np.concatenate([g.edge_index.numpy() + p for g, p in zip(graphs, union.ptr[:-1], strict=True)], axis=1)
    nodes = int(union.ptr[-1])
    place = np.searchsorted(np.repeat(np.arange(nodes), np.diff(A.indptr)) * nodes + A.indices, u * nodes + v)
    found = np.zeros((A.nnz, given.shape[1]), np.float32)
    np.add.at(found, place, given)
    return found / np.maximum(np.bincount(place, minlength=A.nnz), 1)[:, None].astype(np.float32)  # type: ignore[no-any-return]


def alike(graphs: Sequence[Data], union: Union, egos: Egos, channels: Array) -> tuple[Egos, Array]:
    """The egos in their own order, and the class of each: equal where the first layer is given the same (`classes_of`).

    That is: features and degrees in the whole graph of the nodes (the adjacency is divided by them), edges and what they carry.
    """
    A, nodes = union.A, int(union.ptr[-1])
    x = np.concatenate([g.x.numpy() for g in graphs]) if graphs[0].x is not None else np.zeros((nodes, 0), np.float32)
    degrees = np.stack([np.diff(A.indptr), np.bincount(A.indices, minlength=nodes)], 1).astype(np.float32)
    node_label, edge_label = _numbered(np.concatenate([x.reshape(nodes, -1), degrees], axis=1)), _numbered(channels) + 1
    egos = in_order(union, egos, node_label, edge_label)
    return egos, classes_of(union, egos, node_label, edge_label)


def _cut(lengths: Array, ptr: Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)])[ptr]


def _numbered(rows: Array) -> Array:
    """Equal rows, equal numbers from 0."""
    if not rows.shape[1] or not len(rows):
        return np.zeros(len(rows), np.int64)
    whole = np.ascontiguousarray(rows + 0.0).view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()  # -0 is 0
    return np.unique(whole, return_inverse=True)[1].astype(np.int64)
