"""Simple paths of an undirected graph: counted from every root, the sub-graphs that they span, and whole-graph totals.

``c_l(v, u)`` is the number of simple paths with exactly l edges from v to u. The k-path rooted sub-graph ``S_k(v)`` holds all
nodes and edges on some simple path of at most k edges that starts at v: the k-hop ego network without the edges that join two
nodes at distance exactly k from v. Paths are walked depth first with a stack of k + 1 places; a graph may be the disjoint union
of many. There is no kernel for a GPU: these are counts of the data, made once on the CPU; what reads them is torch alone.

Sampled counts are the importance sampling of Rosenbluth and Rosenbluth, "Monte Carlo Calculation of the Average Extension of
Molecular Chains" (1955): a walk that never returns to where it was, each step uniform among the unvisited neighbours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from .hashing import GOLDEN
from .splitmix import FIRST, SECOND, mix

Array = NDArray[Any]


class Simple(NamedTuple):
    """A graph without self-loops and repeated edges, in both directions: CSR with sorted columns.

    ``indptr`` int64 [n + 1], ``indices`` int32 [2m]; ``edge`` int64 [2m]: the column of the edges as given behind each entry
    (its own direction where that was given, else the other one).
    """

    indptr: Array
    indices: Array
    edge: Array

    @property
    def nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def turned(self) -> Array:
        """int64 [2m]: which entry is the other direction of each."""
        rows = np.repeat(np.arange(self.nodes), np.diff(self.indptr))
        found = np.empty(len(rows), np.int64)
        found[np.argsort(self.indices * np.int64(max(self.nodes, 1)) + rows)] = np.arange(len(rows))
        return found


class Rooted(NamedTuple):
    """The k-path rooted sub-graphs of r roots as one disjoint union of N rows and M directed edges.

    ``ptr`` int64 [r + 1]: rows of each root, the root first, then by distance; ``node`` int64 [N]; ``distance`` int64 [N];
    ``counts`` float64 [N, k]: c_1 .. c_k (the root's row is 0); ``edges`` int64 [2, M]: source and target rows, sorted by target;
    ``entry`` int64 [M]: the CSR entry (target node -> source node) behind each; ``paths`` float64 [r]: simple paths of 1 to k
    edges; ``exact`` int64 [r]: paths up to this length were all walked (k where nothing was sampled).
    """

    ptr: Array
    node: Array
    distance: Array
    counts: Array
    edges: Array
    entry: Array
    paths: Array
    exact: Array

    @property
    def root(self) -> Array:
        """int64 [N]: the number (0 .. r - 1) of each row's root."""
        return np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))


def simple_graph(edge_index: Array, nodes: int) -> Simple:
    """``edge_index`` int [2, m] as written -> the simple undirected graph below it. ``ValueError`` for ends out of range."""
    a, b = np.asarray(edge_index, np.int64).reshape(2, -1)
    if len(a) and (min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= nodes):
        raise ValueError(f"edges name node {max(int(a.max()), int(b.max()))} of a graph with nodes 0..{nodes - 1}")
    there = np.flatnonzero(a != b)
    a, b = a[there], b[there]
    # the given direction first: a stable sort keeps it before the one that is added
    source, target, edge = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([there, there])
    order = np.argsort(source * max(nodes, 1) + target, kind="stable")
    source, target, edge = source[order], target[order], edge[order]
    first = np.ones(len(source), bool)
    first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    source, target, edge = source[first], target[first], edge[first]
    indptr = np.zeros(nodes + 1, np.int64)
    np.cumsum(np.bincount(source, minlength=nodes), out=indptr[1:])
    return Simple(indptr, target.astype(np.int32), edge)


# -- kernels -----------------------------------------------------------------------------------------------------------------
@numba.njit(cache=True)
def _near(  # pragma: no cover - compiled
    root: int, k: int, indptr: Array, indices: Array, stamp: Array, far: Array, queue: Array
) -> int:
    """Nodes at distance <= k into `queue`, breadth first; `far` is their distance where `stamp` is the root's number."""
    queue[0] = root
    stamp[root], far[root] = root, 0
    count, at = 1, 0
    while at < count:
        u = queue[at]
        at += 1
        if far[u] == k:
            break
        for p in range(indptr[u], indptr[u + 1]):
            w = indices[p]
            if stamp[w] != root:
                stamp[w], far[w] = root, far[u] + 1
                queue[count] = w
                count += 1
    return count


@numba.njit(cache=True)
def _sizes(  # pragma: no cover - compiled
    roots: Array, k: int, indptr: Array, indices: Array, rows: Array, edges: Array
) -> None:
    n = len(indptr) - 1
    stamp, far, queue = np.full(n, -1, np.int64), np.zeros(n, np.int64), np.empty(n, np.int64)
    for i in range(len(roots)):
        count = _near(roots[i], k, indptr, indices, stamp, far, queue)
        total = 0
        for j in range(count):
            u = queue[j]
            for p in range(indptr[u], indptr[u + 1]):
                w = indices[p]
                if stamp[w] == roots[i] and (far[u] < k or far[w] < k):
                    total += 1
        rows[i], edges[i] = count, total
        for j in range(count):
            stamp[queue[j]] = -1  # a root may be asked for twice


@numba.njit(cache=True)
def _walk_all(  # pragma: no cover - compiled
    root: int, k: int, most: int, indptr: Array, indices: Array, place: Array, path: Array, at: Array, on: Array, counts: Array
) -> int:
    """Every simple path of 1 .. k edges into `counts` [rows, k]; how many, or -1 where there are more than `most`."""
    depth, total = 0, 0
    path[0], at[0], on[root] = root, indptr[root], True
    while depth >= 0:
        u = path[depth]
        if at[depth] == indptr[u + 1]:
            on[u] = False
            depth -= 1
            continue
        w = indices[at[depth]]
        at[depth] += 1
        if on[w]:
            continue
        total += 1
        if total > most:
            for d in range(depth + 1):
                on[path[d]] = False
            return -1
        counts[place[w], depth] += 1
        if depth + 1 < k:
            depth += 1
            path[depth], at[depth], on[w] = w, indptr[w], True
    return total


@numba.njit(cache=True)
def _uniform(state: Any) -> tuple[Any, float]:  # pragma: no cover - compiled
    """splitmix64: the next state, and a number in [0, 1)."""
    state = state + GOLDEN
    return state, np.float64(mix(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True)
def _walk_some(  # pragma: no cover - compiled
    root: int, k: int, start: int, walks: int, state: Any, indptr: Array, indices: Array, place: Array, path: Array, on: Array,
    counts: Array,
) -> None:  # fmt: skip
    """`walks` self-avoiding walks; a path of more than `start` edges counts with its inverse probability."""
    for _ in range(walks):
        path[0], on[root] = root, True
        weight, length = 1.0 / walks, 0
        while length < k:
            u = path[length]
            free = 0
            for p in range(indptr[u], indptr[u + 1]):
                if not on[indices[p]]:
                    free += 1
            if free == 0:
                break
            state, chance = _uniform(state)
            left = int(chance * free)
            w = -1
            for p in range(indptr[u], indptr[u + 1]):
                if not on[indices[p]]:
                    if left == 0:
                        w = indices[p]
                        break
                    left -= 1
            weight *= free
            if length >= start:
                counts[place[w], length] += weight
            length += 1
            path[length], on[w] = w, True
        for d in range(length + 1):
            on[path[d]] = False


@numba.njit(cache=True)
def _fill(  # pragma: no cover - compiled
    roots: Array, streams: Array, k: int, most: int, sampled: bool, indptr: Array, indices: Array, ptr: Array, edge_ptr: Array,
    node: Array, distance: Array, counts: Array, edges: Array, entry: Array, paths: Array, exact: Array,
) -> None:  # fmt: skip
    n = len(indptr) - 1
    stamp, far, queue = np.full(n, -1, np.int64), np.zeros(n, np.int64), np.empty(n, np.int64)
    place, on = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    path, at = np.zeros(k + 1, np.int64), np.zeros(k + 1, np.int64)
    for i in range(len(roots)):
        root, base, e = roots[i], ptr[i], edge_ptr[i]
        count = _near(root, k, indptr, indices, stamp, far, queue)
        for j in range(count):
            place[queue[j]] = base + j
            node[base + j], distance[base + j] = queue[j], far[queue[j]]
        for j in range(count):
            u = queue[j]
            for p in range(indptr[u], indptr[u + 1]):
                w = indices[p]
                if stamp[w] == root and (far[u] < k or far[w] < k):
                    edges[0, e], edges[1, e], entry[e] = place[w], base + j, p
                    e += 1
        if k > 0:
            whole = 0 if sampled else k
            while whole > 0:
                if _walk_all(root, whole, most, indptr, indices, place, path, at, on, counts) >= 0:
                    break
                for j in range(base, base + count):
                    for level in range(k):
                        counts[j, level] = 0
                whole -= 1
            exact[i] = whole
            if whole < k:
                _walk_some(root, k, whole, most, streams[i], indptr, indices, place, path, on, counts)
            for j in range(base, base + count):
                for level in range(k):
                    paths[i] += counts[j, level]
        for j in range(count):
            stamp[queue[j]] = -1


@numba.njit(cache=True)
def _motifs(  # pragma: no cover - compiled
    indptr: Array, indices: Array, ptr: Array, longest: int, girth: int, limit: int, paths: Array, cycles: Array
) -> None:
    n = len(indptr) - 1
    most = max(longest, girth, 1)
    path, at, on = np.zeros(most + 1, np.int64), np.zeros(most + 1, np.int64), np.zeros(n, np.bool_)
    for g in range(len(ptr) - 1):
        for what in range(2):  # 0: paths from every node; 1: cycles, from their smallest node alone
            steps = 0
            last = longest - 1 if what == 0 else girth - 1  # of a stack's places, the last whose neighbours are looked at
            for root in range(ptr[g], ptr[g + 1]):
                if steps > limit or last < 0:
                    break
                depth = 0
                path[0], at[0], on[root] = root, indptr[root], True
                while depth >= 0:
                    u = path[depth]
                    if at[depth] == indptr[u + 1] or steps > limit:
                        on[u] = False
                        depth -= 1
                        continue
                    w = indices[at[depth]]
                    at[depth] += 1
                    steps += 1
                    if what == 0:
                        if on[w]:
                            continue
                        paths[g, depth] += 1
                    else:
                        if w == root and depth >= 2:
                            cycles[g, depth - 2] += 1
                        if w < root or on[w]:
                            continue
                    if depth < last:
                        depth += 1
                        path[depth], at[depth], on[w] = w, indptr[w], True
            for d in range(paths.shape[1] if what == 0 else cycles.shape[1]):
                table = paths if what == 0 else cycles
                table[g, d] = -1 if steps > limit else table[g, d] // 2


# -- what is asked of them ---------------------------------------------------------------------------------------------------
def rooted_paths(
    graph: Simple, k: int, *, roots: Array | None = None, max_paths: int = 2000, sampled: bool = False, seed: int = 0,
    streams: Array | None = None,
) -> Rooted:  # fmt: skip
    """``S_k(v)`` and the path counts ``c_1(v, .) .. c_k(v, .)`` of every root (all nodes).

    A root with more than `max_paths` simple paths of 1 .. k edges has its counts estimated: lengths that fit into the cap are
    walked in full, longer ones sampled by `max_paths` self-avoiding walks, each path weighted by its inverse probability, which
    is unbiased. With `sampled` every length of every root is sampled. The sub-graphs are exact in any case. Draws are set by
    `seed` and a number for each root, `streams` int64 [r] (its place among the roots), so that they do not depend on
    what else is counted in the call.

    Cost: O(min(n d^k, n max_paths k)) for the counts. ``ValueError`` for k < 0, max_paths < 1, a root out of range.
    """
    if k < 0 or max_paths < 1:
        raise ValueError(f"k must be >= 0 and max_paths >= 1, are {k} and {max_paths}")
    chosen = np.arange(graph.nodes) if roots is None else np.ascontiguousarray(roots, np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= graph.nodes):
        raise ValueError(f"roots must be nodes 0..{graph.nodes - 1}, go from {chosen.min()} to {chosen.max()}")
    r = len(chosen)
    numbers = np.arange(r) if streams is None else np.asarray(streams, np.int64)
    with np.errstate(over="ignore"):
        # far apart on the generator's cycle: a multiple of an odd number, not of its step
        states = (numbers.astype(np.uint64) + np.uint64(1)) * FIRST + np.uint64(seed) * SECOND
    rows, sizes = np.zeros(r + 1, np.int64), np.zeros(r + 1, np.int64)
    _sizes(chosen, k, graph.indptr, graph.indices, rows[1:], sizes[1:])
    np.cumsum(rows, out=rows)
    np.cumsum(sizes, out=sizes)
    n, m = int(rows[-1]), int(sizes[-1])
    found = Rooted(
        rows, np.empty(n, np.int64), np.empty(n, np.int64), np.zeros((n, k)), np.empty((2, m), np.int64), np.empty(m, np.int64),
        np.zeros(r), np.full(r, k, np.int64),
    )  # fmt: skip
    _fill(
        chosen, states, k, max_paths, sampled, graph.indptr, graph.indices, rows, sizes, found.node, found.distance, found.counts,
        found.edges, found.entry, found.paths, found.exact,
    )  # fmt: skip
    return found


def motif_totals(
    graph: Simple, paths: int, cycles: int, ptr: Array | None = None, limit: int = 1_000_000_000
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Simple paths of 1 .. `paths` edges and cycles of length 3 .. `cycles` in each graph of a disjoint union, exact.

    ``ptr`` int64 [G + 1]: the nodes of each graph (left out: it is one). -> int64 [G, paths], int64 [G, max(cycles - 2, 0)];
    each path and cycle counts once, whatever its direction and start. A graph that takes more than `limit` steps of either
    search has -1 there: nothing is estimated. ``ValueError`` for paths < 0, or cycles that are neither 0 nor >= 3.
    """
    if paths < 0 or (cycles != 0 and cycles < 3):
        raise ValueError(f"paths must be >= 0 and cycles 0 or >= 3, are {paths} and {cycles}")
    cut = np.array([0, graph.nodes], np.int64) if ptr is None else np.ascontiguousarray(ptr, np.int64)
    found = np.zeros((len(cut) - 1, paths), np.int64), np.zeros((len(cut) - 1, max(cycles - 2, 0)), np.int64)
    _motifs(graph.indptr, graph.indices, cut, paths, cycles, limit, *found)
    return found
