"""Triangles, four-cliques and short walks of an undirected graph, counted for every pair of nodes, row by row.

With A the 0/1 adjacency, ``T = A ∘ A²`` (triangles on an edge) and S (edges inside the common neighbourhood of two nodes),
all counts of graphlets up to four nodes for a pair (i, j) follow from six numbers: ``A²``, ``AT``, ``TA``, ``ADA``, ``S`` and
``A³`` at (i, j). A row of the first five costs ``Σ_k d_k`` over the neighbours k, plus the common neighbours of each edge
between two of them; a row of A³ costs the degrees of the nodes two steps away. Rows are taken in blocks, so that nothing
of the size n x n is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from .propagation import run_parallel, threads

Array = NDArray[Any]

# Columns of a row's accumulator: one cache line for each node.
_A2, _AT, _TA, _ADA, _S, _NEAR, _WIDTH = 0, 1, 2, 3, 4, 5, 8
_VALUES = 5
# A touched list longer than this share of all nodes is found again by a scan, not sorted.
_SCAN = 16
# Less work than this is done by one thread.
_ALONE = 1 << 18
# A block's bytes are there this many times at most: gathered, put together, and as the matrices made from it.
_BLOCK_COPIES = 5


# -- edges and their common neighbours ---------------------------------------------------------------------------------------
def edge_numbers(indptr: Array, indices: Array) -> NDArray[np.int64]:
    """The number 0..m-1 of the undirected edge at each entry of a symmetric CSR pattern with sorted columns, no diagonal.

    Edges are numbered by (smaller end, larger end). int64 [2m].
    """
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    upper = rows < indices
    numbers = np.cumsum(upper) - 1
    # the entries below the diagonal, by column and then by row, are the transposed ones above in their order
    lower = np.flatnonzero(~upper)
    numbers[lower[np.argsort(indices[lower], kind="stable")]] = np.arange(len(lower))
    return numbers


@numba.njit(cache=True)
def _before(a: int, b: int, degrees: Array) -> bool:  # pragma: no cover - compiled
    return degrees[a] < degrees[b] or (degrees[a] == degrees[b] and a < b)


@numba.njit(cache=True, parallel=True)
def _common(  # pragma: no cover - compiled
    indptr: Array,
    indices: Array,
    degrees: Array,
    edge: Array,
    marks: Array,
    bounds: Array,
    starts: Array,
    members: Array,
    fill: bool,
) -> None:
    # The longer of two lists is marked, the shorter one read.
    for c in numba.prange(bounds.shape[0] - 1):
        mark = marks[c]
        for i in range(bounds[c], bounds[c + 1]):
            for p in range(indptr[i], indptr[i + 1]):
                mark[indices[p]] = i + 1
            for p in range(indptr[i], indptr[i + 1]):
                j = indices[p]
                if _before(j, i, degrees):
                    at = starts[edge[p]] if fill else 0
                    found = 0
                    for q in range(indptr[j], indptr[j + 1]):
                        if mark[indices[q]] == i + 1:
                            if fill:
                                members[at + found] = indices[q]
                            found += 1
                    if not fill:
                        starts[edge[p] + 1] = found


# -- rows --------------------------------------------------------------------------------------------------------------------
@numba.njit(cache=True)
def _gather(  # pragma: no cover - compiled
    i: int, indptr: Array, indices: Array, degrees: Array, T: Array, edge: Array, starts: Array, members: Array,
    cliques: bool, work: Array, touched: Array,
) -> int:  # fmt: skip
    """Row i of A2, AT, TA, ADA and S into `work`; how many nodes it touched."""
    count = 0
    for p in range(indptr[i], indptr[i + 1]):
        work[indices[p], _NEAR] = 1
    for p in range(indptr[i], indptr[i + 1]):
        k = indices[p]
        own, degree = T[p], degrees[k]
        for q in range(indptr[k], indptr[k + 1]):
            j = indices[q]
            if work[j, _A2] == 0:
                touched[count] = j
                count += 1
            work[j, _A2] += 1
            work[j, _AT] += T[q]
            work[j, _TA] += own
            work[j, _ADA] += degree
            if cliques and j > k and work[j, _NEAR]:
                e = edge[q]
                for r in range(starts[e], starts[e + 1]):
                    work[members[r], _S] += 1
    return count


@numba.njit(cache=True)
def _in_order(count: int, n: int, work: Array, touched: Array) -> None:  # pragma: no cover - compiled
    if count * _SCAN < n:
        touched[:count].sort()
        return
    at = 0
    for j in range(n):
        if work[j, _A2]:
            touched[at] = j
            at += 1


@numba.njit(cache=True, parallel=True)
def _pair_sizes(  # pragma: no cover - compiled
    first: int, indptr: Array, indices: Array, marks: Array, bounds: Array, sizes: Array
) -> None:
    # Nodes two steps away and not adjacent. A mark is the row's number + 1, or - that for a neighbour.
    for c in numba.prange(bounds.shape[0] - 1):
        mark = marks[c]
        for i in range(bounds[c], bounds[c + 1]):
            mark[i] = -(i + 1)
            for p in range(indptr[i], indptr[i + 1]):
                mark[indices[p]] = -(i + 1)
            count = 0
            for p in range(indptr[i], indptr[i + 1]):
                k = indices[p]
                for q in range(indptr[k], indptr[k + 1]):
                    j = indices[q]
                    if mark[j] != i + 1 and mark[j] != -(i + 1):
                        mark[j] = i + 1
                        count += 1
            sizes[i - first] = count


@numba.njit(cache=True, parallel=True)
def _block(  # pragma: no cover - compiled
    first: int, indptr: Array, indices: Array, degrees: Array, T: Array, edge: Array, starts: Array, members: Array,
    cliques: bool, near: bool, pairs: bool, far: bool, works: Array, lists: Array, walks: Array, bounds: Array,
    near_values: Array, pair_starts: Array, pair_columns: Array, pair_values: Array,
    far_columns: Array, far_values: Array, far_sizes: Array,
) -> None:  # fmt: skip
    n = degrees.shape[0]
    for c in numba.prange(bounds.shape[0] - 1):
        work, touched, walk = works[c], lists[c], walks[c]
        for i in range(bounds[c], bounds[c + 1]):
            count = _gather(i, indptr, indices, degrees, T, edge, starts, members, cliques, work, touched)
            if near:
                for p in range(indptr[i], indptr[i + 1]):
                    j = indices[p]
                    near_values[0, p] = work[j, _AT]
                    near_values[1, p] = work[j, _TA]
                    near_values[2, p] = work[j, _ADA]
                    near_values[3, p] = work[j, _S]
                    total = 0
                    for q in range(indptr[j], indptr[j + 1]):
                        total += work[indices[q], _A2]
                    near_values[4, p] = total
            if pairs:
                _in_order(count, n, work, touched)
                at = pair_starts[i - first]
                for t in range(count):
                    j = touched[t]
                    if j != i and not work[j, _NEAR]:
                        pair_columns[at] = j
                        for v in range(_VALUES):
                            pair_values[v, at] = work[j, v]
                        at += 1
            if far:
                # row i of A^3, as A times the row of A^2
                for t in range(count):
                    k = touched[t]
                    ways = work[k, _A2]
                    for q in range(indptr[k], indptr[k + 1]):
                        walk[indices[q]] += ways
                at = 0
                for j in range(n):
                    ways = walk[j]
                    if ways:
                        walk[j] = 0
                        if j != i and not work[j, _NEAR]:
                            left = ways - work[j, _AT] - work[j, _TA] + 2 * work[j, _S]
                            if left:
                                far_columns[i - first, at] = j
                                far_values[i - first, at] = left
                                at += 1
                far_sizes[i - first] = at
            for p in range(indptr[i], indptr[i + 1]):
                work[indices[p], _NEAR] = 0
            for t in range(count):
                for v in range(_VALUES):
                    work[touched[t], v] = 0


@numba.njit(cache=True, parallel=True)
def _compact(  # pragma: no cover - compiled
    columns: Array, values: Array, ends: Array, out_columns: Array, out_values: Array
) -> None:
    for i in numba.prange(columns.shape[0]):
        size = ends[i + 1] - ends[i]
        out_columns[ends[i] : ends[i + 1]] = columns[i, :size]
        out_values[ends[i] : ends[i + 1]] = values[i, :size]


class Rows(NamedTuple):
    """What a block of rows holds, columns sorted.

    `start` first row; `indptr` int64 [r + 1] and `columns` int32 [k] of the pairs at distance two (all zero where they were
    not asked for); `A2`, `AT`, `TA`, `ADA`, `S` int64 [k] there; `far_indptr`, `far_columns`, `far_values` the same for the
    pairs at the ends of an induced path of four nodes, with how many such paths join them.
    """

    start: int
    indptr: Array
    columns: Array
    A2: Array
    AT: Array
    TA: Array
    ADA: Array
    S: Array
    far_indptr: Array
    far_columns: Array
    far_values: Array

    @property
    def rows(self) -> int:
        return len(self.indptr) - 1


class Need(NamedTuple):
    """Upper bounds of what a sweep takes: `memory` bytes at its peak beside the graph, `pairs` and `far` entries in all."""

    memory: int
    pairs: int
    far: int


class PairCounts:
    """Short walks and triangles between pairs of nodes of one undirected graph.

    ``indptr`` [n + 1], ``indices`` [2m]: a symmetric CSR pattern without diagonal, columns sorted and distinct (not checked
    here). Kept: `degrees` int64 [n]; `T` int64 [2m], triangles on the edge at each entry; `triangles` int64 [n], at each
    node. :meth:`sweep` then leaves `near` int64 [5, 2m]: AT, TA, ADA, S and A³ at the entries.

    Time ``Σ_i Σ_{k~i} d_k`` for T and the pairs, ``Σ_e t_e²`` for S, and for the far pairs the degrees of all nodes two steps
    away, summed over all i. All numbers are int64; none exceeds the number of walks of length three between two nodes.
    """

    def __init__(self, indptr: Array, indices: Array) -> None:
        self.indptr = np.ascontiguousarray(indptr, np.int64)
        self.indices = np.ascontiguousarray(indices, np.int32)
        self.n, self.m = len(self.indptr) - 1, len(self.indices) // 2
        self.degrees = np.diff(self.indptr)
        self.edge = edge_numbers(self.indptr, self.indices)
        self.starts = np.zeros(self.m + 1, np.int64)
        self.near: Array = np.zeros((_VALUES, 0), np.int64)
        self._members: Array | None = None
        self.walks2 = self._neighbour_sums(self.degrees)
        self._find_common(np.zeros(0, np.int32), fill=False)
        self.T = self.starts[1:][self.edge]
        np.cumsum(self.starts, out=self.starts)
        self.triangles = self._row_sums(self.T) // 2

    def _row_sums(self, values: Array) -> Array:
        ends = np.concatenate([[0], np.cumsum(values)])
        return np.asarray(ends[self.indptr[1:]] - ends[self.indptr[:-1]])

    def _neighbour_sums(self, values: Array) -> Array:
        return self._row_sums(values[self.indices])

    def _find_common(self, members: Array, fill: bool) -> None:
        if self.m:
            chunks = self._cut(0, self.n, self.walks2)
            marks = np.zeros((len(chunks) - 1, self.n), np.int32)
            arguments = (self.indptr, self.indices, self.degrees, self.edge, marks, chunks, self.starts, members, fill)
            run_parallel(_common, *arguments)

    @property
    def members(self) -> Array:
        """The common neighbours of each edge, int32, sorted; those of edge e lie at ``starts[e]:starts[e + 1]``. Made once."""
        if self._members is None:
            members = np.empty(self.starts[-1], np.int32)
            self._find_common(members, fill=True)
            self._members = members
        return self._members

    def _cut(self, start: int, stop: int, work: Array) -> Array:
        """The rows from `start` to `stop` in as many consecutive chunks of nearly equal work as there are threads."""
        done = np.cumsum(work[start:stop] + 1)
        goals = np.linspace(0, done[-1], threads() + 1)[1:-1] if done[-1] > _ALONE else []
        return np.unique(np.concatenate([[start], start + np.searchsorted(done, goals), [stop]])).astype(np.int64)

    def need(self, *, cliques: bool = True, pairs: bool = True, far: bool = False, budget: int = 1 << 26) -> Need:
        """What a sweep of these parts takes at most, before any of it is made."""
        most = np.maximum(self.n - 1 - self.degrees, 0)
        near = np.minimum(most, self.walks2)
        distant = np.minimum(most, self._neighbour_sums(self.walks2))
        each = self._row_bytes(pairs, far)
        block = min(max(budget, int(each.max(initial=0))), int(each.sum()))
        memory = threads() * self.n * (_WIDTH * 8 + 4 + 4 + 8) + _BLOCK_COPIES * block + 8 * _VALUES * 2 * self.m
        memory += 4 * int(self.starts[-1]) if cliques else 0
        return Need(memory, int(near.sum()) if pairs else 0, int(distant.sum()) if far else 0)

    def _row_bytes(self, pairs: bool, far: bool) -> Array:
        return pairs * (4 + 8 * _VALUES) * np.minimum(self.walks2, self.n) + far * 12 * self.n + 1

    def sweep(
        self, *, cliques: bool = True, near: bool = True, pairs: bool = True, far: bool = False, budget: int = 1 << 26
    ) -> Iterator[Rows]:
        """All rows, in blocks of about `budget` bytes (at least a row each); each part only where asked for.

        Without `cliques` S is 0 everywhere (and `far` is refused, which needs it). `near` is filled when the last block is.
        """
        if far and not cliques:
            raise ValueError("far pairs need the four-cliques' counts")
        if near:
            self.near = np.zeros((_VALUES, 2 * self.m), np.int64)
        members = self.members if cliques else np.zeros(0, np.int32)
        each = self._row_bytes(pairs, far)
        cost = self.walks2 + (self._neighbour_sums(self.walks2) if far else 0)
        most = threads()
        works, lists = np.zeros((most, self.n, _WIDTH), np.int64), np.empty((most, self.n), np.int32)
        walks = np.zeros((most, self.n if far else 0), np.int64)
        marks = np.zeros((most, self.n if pairs else 0), np.int32)
        ends = np.cumsum(each)
        start = 0
        while start < self.n:
            before = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, before + budget, side="right")), start + 1)
            chunks, size = self._cut(start, stop, cost), stop - start
            indptr = np.zeros(size + 1, np.int64)
            if pairs:
                run_parallel(_pair_sizes, start, self.indptr, self.indices, marks, chunks, indptr[1:])
                np.cumsum(indptr, out=indptr)
            columns, values = np.empty(indptr[-1], np.int32), np.empty((_VALUES, indptr[-1]), np.int64)
            width = self.n if far else 0
            slots, numbers = np.empty((size, width), np.int32), np.empty((size, width), np.int64)
            sizes = np.zeros(size + 1, np.int64)
            run_parallel(
                _block, start, self.indptr, self.indices, self.degrees, self.T, self.edge, self.starts, members, cliques, near,
                pairs, far, works, lists, walks, chunks, self.near, indptr, columns, values, slots, numbers, sizes[1:],
            )  # fmt: skip
            np.cumsum(sizes, out=sizes)
            far_columns, far_values = np.empty(sizes[-1], np.int32), np.empty(sizes[-1], np.int64)
            if far:
                run_parallel(_compact, slots, numbers, sizes, far_columns, far_values)
            del slots, numbers
            yield Rows(start, indptr, columns, *values, sizes, far_columns, far_values)
            start = stop
