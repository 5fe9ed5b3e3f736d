"""GRADCO: how often two nodes sit together on a given pair of orbits of the same graphlet, for graphlets of up to four nodes.

A graphlet is a connected induced subgraph, an orbit a position in it that its symmetries cannot tell apart:
``O^h_ab[i, j]`` counts the graphlets that hold i on orbit a and j on orbit b at distance h inside the graphlet. There are
28 such matrices. Random walks mix them (``A²_ij = O_11 + O_33`` cannot tell an open from a closed triple); taken one by
one they give 28 kinds of neighbourhood, and each, as positive pointwise mutual information factorised by an SVD, vectors.

Orbits (standard numbering): edge 0; path of three: end 1, middle 2; triangle 3; path of four: end 4, inner 5; star: leaf 6,
centre 7; cycle of four: 8; paw: pendant 9, the two nodes of degree two 10, hub 11; diamond: degree two 12, degree three 13;
clique of four: 14.

Source: "Graphlets correct for the topological information missed by random walks" (arXiv 2405.14194). The closed forms below
are derived independently of the published program, which was not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from latticework.layers.orbits import Need, PairCounts, Rows

Array = NDArray[Any]
Orbit = tuple[int, int, int]

# graphlet -> its (distance, orbit of i, orbit of j)
GRAPHLETS: Mapping[str, tuple[Orbit, ...]] = {
    "edge": ((1, 0, 0),),
    "path of three": ((1, 1, 2), (1, 2, 1), (2, 1, 1)),
    "triangle": ((1, 3, 3),),
    "path of four": ((1, 4, 5), (1, 5, 4), (1, 5, 5), (2, 4, 5), (2, 5, 4), (3, 4, 4)),
    "star": ((1, 6, 7), (1, 7, 6), (2, 6, 6)),
    "cycle of four": ((1, 8, 8), (2, 8, 8)),
    "paw": ((1, 9, 11), (1, 11, 9), (1, 10, 10), (1, 10, 11), (1, 11, 10), (2, 9, 10), (2, 10, 9)),
    "diamond": ((1, 12, 13), (1, 13, 12), (1, 13, 13), (2, 12, 12)),
    "clique of four": ((1, 14, 14),),
}
SIZES: Mapping[str, int] = {
    name: 2 if name == "edge" else 3 if name in ("path of three", "triangle") else 4 for name in GRAPHLETS
}
ORBITS: tuple[Orbit, ...] = tuple(sorted(orbit for orbits in GRAPHLETS.values() for orbit in orbits))
# the last one lives on the pattern of A³, which is nearly dense where the world is small
FAR: Orbit = (3, 4, 4)
# node orbit -> the matrix whose row sums count it, and how many partners of that kind its graphlet offers
_PARTNERS: tuple[tuple[Orbit, int], ...] = (
    ((1, 0, 0), 1), ((1, 1, 2), 1), ((1, 2, 1), 2), ((1, 3, 3), 2), ((1, 4, 5), 1), ((1, 5, 5), 1), ((1, 6, 7), 1), ((1, 7, 6), 3),
    ((1, 8, 8), 2), ((1, 9, 11), 1), ((1, 10, 10), 1), ((1, 11, 9), 1), ((1, 12, 13), 2), ((1, 13, 12), 2), ((1, 14, 14), 3),
)  # fmt: skip
# what the graphlet degree vectors are read from
DEGREE_ORBITS: tuple[Orbit, ...] = tuple(orbit for orbit, _ in _PARTNERS)
EDGE_ORBITS: tuple[tuple[int, int], ...] = tuple((a, b) for h, a, b in ORBITS if h == 1 and 0 < a <= b)
_CLIQUE_FREE = frozenset({(1, 0, 0), (1, 1, 2), (1, 2, 1), (1, 3, 3), (2, 1, 1)})
# bytes of an entry while its blocks are put together: int64 value and int32 column, twice
_WHOLE = 24
# bytes of an entry of A while its matrices at distance one are made: what is known there, and one matrix
_EDGE_BYTES = 8 * 14
# a hub of more neighbours would have more stars than int64 holds
_MOST_NEIGHBOURS = 2_000_000


def orbit_name(orbit: Sequence[int]) -> str:
    """``(2, 1, 1)`` as ``2:1-1``: distance, orbit of the row's node, orbit of the column's."""
    return "{}:{}-{}".format(*orbit)


def read_orbits(given: Any) -> tuple[Orbit, ...]:
    """``all``, or texts like ``2:1-1`` or ``(2,1,1)``, or numbers, three for each: distance, row's orbit, column's; repeats drop out.

    ``ValueError`` for anything else, listing the 28.
    """
    if isinstance(given, str) and given == "all":
        return ORBITS
    # numpy's integers and arrays are written with their type, whose digits are none of an orbit's
    text = re.sub(r"np\.u?int\d+|array|dtype=u?int\d+", "", str(list(given) if isinstance(given, tuple) else given))
    numbers = [int(d) for d in re.findall(r"\d+", text)]
    found = [tuple(numbers[i : i + 3]) for i in range(0, len(numbers), 3)]
    strange = re.sub(r"[\d:,\-()\[\]'\"\s]", "", text) != "" or not found
    wrong = next((o for o in found if o not in ORBITS), None)
    if strange or wrong is not None:
        shown = text if strange or wrong is None or len(wrong) != 3 else orbit_name(wrong)
        raise ValueError(
            f"no pair of orbits is called {shown}; write distance:row-column, one of {', '.join(orbit_name(o) for o in ORBITS)}"
        )
    return tuple(dict.fromkeys(found))  # type: ignore[arg-type]


def read_orbit(given: Any) -> Orbit:
    """One of the 28, written as :func:`read_orbits` takes it."""
    found = read_orbits(given)
    if len(found) != 1:
        raise ValueError(
            f"one pair of orbits is asked for, and {given} names {len(found)}; write distance:row-column, as in 2:1-1"
        )
    return found[0]


def simple_graph(A: Any) -> sp.csr_array:
    """The adjacency of an undirected simple graph, checked: int64 CSR, sorted columns, no stored zeros.

    Errors: ``ValueError`` where A isn't square, has a self-loop, an entry other than 0 and 1 (repeated entries add up), isn't
    symmetric, or has a node of more than 2,000,000 neighbours, whose stars int64 cannot count.
    """
    given = sp.csr_array(A)
    if given.shape[0] != given.shape[1]:
        raise ValueError(f"the adjacency must be square, is {given.shape}")
    if given.data.dtype.kind not in "biuf":
        raise ValueError(f"the adjacency must hold 0 and 1, not {given.data.dtype}")
    if not given.has_canonical_format:
        given = given.copy()
        given.sum_duplicates()
    other = np.flatnonzero((given.data != 0) & (given.data != 1))
    if len(other):
        row = int(np.searchsorted(given.indptr, other[0], side="right")) - 1
        raise ValueError(
            f"entry ({row}, {int(given.indices[other[0]])}) is {given.data[other[0]]}: a simple graph has 0 and 1 only"
        )
    found = given.astype(np.int64)
    found.eliminate_zeros()
    loops = np.flatnonzero(found.diagonal())
    if len(loops):
        raise ValueError(f"{len(loops)} self-loops, the first at node {loops[0]}: graphlets have none; drop them")
    turned = sp.csr_array(found.T)
    turned.sort_indices()
    if not (np.array_equal(found.indptr, turned.indptr) and np.array_equal(found.indices, turned.indices)):
        raise ValueError("the adjacency must be symmetric; take max(A, A^T)")
    if np.diff(found.indptr).max(initial=0) > _MOST_NEIGHBOURS:
        raise ValueError(f"a node has more than {_MOST_NEIGHBOURS:,} neighbours: counts of its stars would exceed int64")
    return found


# -- closed forms ------------------------------------------------------------------------------------------------------------
class _Near(NamedTuple):
    """What is known at each entry of A, int64 [2m]: degrees, triangles and neighbours' degrees of both ends, and products."""

    di: Array
    dj: Array
    ti: Array
    tj: Array
    wi: Array
    wj: Array
    T: Array
    AT: Array
    TA: Array
    ADA: Array
    S: Array
    A3: Array

    def turned(self) -> _Near:
        """The same at the transposed entries (T, ADA, S and A³ are symmetric)."""
        return _Near(self.dj, self.di, self.tj, self.ti, self.wj, self.wi, self.T, self.TA, self.AT, self.ADA, self.S, self.A3)


def _at_distance_one(pair: tuple[int, int], e: _Near) -> Array:
    """``O^1_ab`` at the entries of A; d degrees, t triangles at a node, ``T = A ∘ A²``, S edges among common neighbours."""
    if pair in ((2, 1), (5, 4), (7, 6), (11, 9), (11, 10), (13, 12)):
        return _at_distance_one((pair[1], pair[0]), e.turned())
    forms = {
        (0, 0): lambda: np.ones_like(e.T),
        (1, 2): lambda: e.dj - 1 - e.T,
        (3, 3): lambda: e.T,
        (14, 14): lambda: e.S,
        (13, 13): lambda: e.T * (e.T - 1) // 2 - e.S,
        (12, 13): lambda: e.AT - e.T - 2 * e.S,
        (9, 11): lambda: e.tj - e.AT + e.S,
        (10, 10): lambda: e.ADA - e.AT - e.TA + 2 * e.S,
        (10, 11): lambda: e.T * (e.dj - e.T) - e.AT + 2 * e.S,
        (6, 7): lambda: (e.dj - 1 - e.T) * (e.dj - 2 - e.T) // 2 - (e.tj - e.AT + e.S),
        (8, 8): lambda: e.A3 - e.di - e.dj + 1 - e.AT - e.TA + 2 * e.T + 2 * e.S,
        (5, 5): lambda: (e.di - 1 - e.T) * (e.dj - 1 - e.T) - _at_distance_one((8, 8), e),
        (4, 5): lambda: e.wj - 2 * e.tj - e.ADA + 2 * e.AT + e.TA - e.A3 - 2 * e.S,
    }
    return np.asarray(forms[pair]())


def _at_distance_two(pair: tuple[int, int], di: Array, dj: Array, b: Rows) -> Array:
    """``O^2_ab`` at the pairs that share a neighbour and are not adjacent."""
    forms = {
        (1, 1): lambda: b.A2,
        (12, 12): lambda: b.S,
        (9, 10): lambda: b.AT - 2 * b.S,
        (10, 9): lambda: b.TA - 2 * b.S,
        (6, 6): lambda: b.ADA - 2 * b.A2 - b.AT - b.TA + 2 * b.S,
        (8, 8): lambda: b.A2 * (b.A2 - 1) // 2 - b.S,
        (4, 5): lambda: b.A2 * (dj - b.A2) - b.AT + 2 * b.S,
        (5, 4): lambda: b.A2 * (di - b.A2) - b.TA + 2 * b.S,
    }
    return np.asarray(forms[pair]())


def _without_zeros(values: Array, columns: Array, indptr: Array, n: int) -> sp.csr_array:
    """CSR [r, n], int64, columns sorted, from arrays with zeros among the values (not changed)."""
    ends = indptr
    if not values.all():
        keep = values != 0
        ends = np.concatenate([[0], np.cumsum(keep)])[indptr]
        values, columns = values[keep], columns[keep]
    kind = np.int32 if ends[-1] < 2**31 else np.int64  # scipy wants both index arrays in one dtype
    arrays = values, columns.astype(kind, copy=False), ends.astype(kind)
    return sp.csr_array(arrays, shape=(len(indptr) - 1, n))


class OrbitCounts:
    """The orbit adjacencies of one graph, made when asked for.

    ``A`` as :func:`simple_graph` takes it. What lives on the edges costs two passes over paths of two and is kept; the
    matrices at distance two and three come in blocks of rows (:meth:`blocks`) or, where memory allows, whole (:meth:`matrix`).
    All counts are exact, int64.
    """

    def __init__(self, A: Any) -> None:
        graph = simple_graph(A)
        self.n, self.m = graph.shape[0], graph.nnz // 2
        self.pairs = PairCounts(graph.indptr, graph.indices)
        self._near: _Near | None = None
        self._cliques = False

    def need(self, orbits: Iterable[Orbit] = ORBITS, budget: int = 1 << 26) -> Need:
        """Upper bounds for :meth:`blocks`: bytes at its peak, entries at distance two (of a matrix) and three."""
        asked = set(orbits)
        need = self.pairs.need(
            cliques=not asked <= _CLIQUE_FREE, pairs=any(h == 2 for h, _, _ in asked), far=FAR in asked, budget=budget
        )
        return need._replace(memory=need.memory + _EDGE_BYTES * 2 * self.m)

    def blocks(self, orbits: Iterable[Orbit] = ORBITS, budget: int = 1 << 26) -> Iterator[tuple[int, dict[Orbit, sp.csr_array]]]:
        """(first row, matrices [r, n]) for the asked orbits at distance two and three, in one sweep over all rows.

        Blocks hold about `budget` bytes. Those at distance one come last and whole, (0, [n, n]), one by one.
        """
        asked = list(orbits)
        near, second, far = (any(o[0] == h for o in asked) for h in (1, 2, 3))
        cliques = not _CLIQUE_FREE.issuperset(asked)
        if near and self._near is not None and (self._cliques or not cliques):
            near = False  # known already
        if near or second or far:
            for rows in self.pairs.sweep(cliques=cliques, near=near, pairs=second, far=far, budget=budget):
                yield rows.start, self._block(rows, asked)
        if near:
            self._near, self._cliques = self._known_at_edges(), cliques
        for orbit in asked:
            if orbit[0] == 1:
                assert self._near is not None
                values = _at_distance_one(orbit[1:], self._near)
                yield 0, {orbit: _without_zeros(values, self.pairs.indices, self.pairs.indptr, self.n)}

    def _block(self, rows: Rows, asked: Sequence[Orbit]) -> dict[Orbit, sp.csr_array]:
        degrees = self.pairs.degrees
        di = np.repeat(degrees[rows.start : rows.start + rows.rows], np.diff(rows.indptr))
        dj = degrees[rows.columns]
        found: dict[Orbit, sp.csr_array] = {}
        for orbit in asked:
            if orbit[0] == 2:
                values = _at_distance_two(orbit[1:], di, dj, rows)
                found[orbit] = _without_zeros(values, rows.columns, rows.indptr, self.n)
            elif orbit == FAR:
                found[FAR] = _without_zeros(rows.far_values, rows.far_columns, rows.far_indptr, self.n)
        return found

    def _known_at_edges(self) -> _Near:
        pairs = self.pairs
        columns, lengths = pairs.indices, np.diff(pairs.indptr)
        ends = [(np.repeat(v, lengths), v[columns]) for v in (pairs.degrees, pairs.triangles, pairs.walks2)]
        AT, TA, ADA, S, A3 = pairs.near
        return _Near(*ends[0], *ends[1], *ends[2], pairs.T, AT, TA, ADA, S, A3)

    def matrices(
        self, orbits: Iterable[Orbit] = ORBITS, limit: int | None = None, on_rows: Callable[[int], None] | None = None
    ) -> dict[Orbit, sp.csr_array]:
        """The asked matrices whole: orbit -> int64 CSR [n, n] without zeros. `on_rows` hears the first row of each block.

        ``limit`` bytes: ``ValueError`` with the numbers where they could take more, before anything is made.
        """
        asked = list(orbits)
        if limit is not None:
            need = self.need(asked)
            most = need.memory + _WHOLE * (sum(o[0] == 2 for o in asked) * need.pairs + need.far)
            if most > limit:
                raise ValueError(
                    f"up to {most / 1e9:.1f} GB for these matrices (at most {need.far:,} entries in 3:4-4 and {need.pairs:,} in each "
                    f"at distance two), and {limit / 1e9:.1f} GB are free; take fewer orbits, or blocks of rows"
                )
        parts: dict[Orbit, list[sp.csr_array]] = {orbit: [] for orbit in asked}
        for start, found in self.blocks(asked):
            if on_rows is not None:
                on_rows(start)
            for orbit, block in found.items():
                parts[orbit].append(block)
        empty = sp.csr_array((self.n, self.n), dtype=np.int64)
        return {o: sp.csr_array(sp.vstack(p, format="csr")) if len(p) > 1 else p[0] if p else empty for o, p in parts.items()}

    def matrix(self, orbit: Orbit, limit: int | None = None) -> sp.csr_array:
        """One of the matrices, see :meth:`matrices`."""
        return self.matrices([orbit], limit)[orbit]

    def node_orbits(self) -> NDArray[np.int64]:
        """The graphlet degree vectors: how often each node sits on each orbit 0..14. int64 [n, 15]."""
        counts = np.zeros((self.n, len(_PARTNERS)), np.int64)
        place = {orbit: (o, partners) for o, (orbit, partners) in enumerate(_PARTNERS)}
        for _, found in self.blocks(place):
            for orbit, matrix in found.items():
                o, partners = place[orbit]
                counts[:, o] = np.asarray(matrix.sum(axis=1)).ravel() // partners
        return counts

    def edge_orbits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Edges (i < j) int64 [m, 2], and how often each sits on the edge orbits ``EDGE_ORBITS``, int64 [m, 12].

        An edge orbit is an unordered pair of node orbits at distance one: its matrix is ``O_ab + O_ba`` for a != b.
        """
        ones = self.matrix((1, 0, 0))  # fills what is known at the edges
        self.matrix((1, 14, 14))
        assert self._near is not None
        rows = np.repeat(np.arange(self.n), np.diff(ones.indptr))
        upper = rows < ones.indices
        counts = np.empty((self.m, len(EDGE_ORBITS)), np.int64)
        for c, (a, b) in enumerate(EDGE_ORBITS):
            values = _at_distance_one((a, b), self._near)
            counts[:, c] = (values if a == b else values + _at_distance_one((b, a), self._near))[upper]
        return np.stack([rows[upper], ones.indices[upper]], axis=1).astype(np.int64), counts

    def graphlet_adjacency(self, graphlet: str, limit: int | None = None) -> sp.csr_array:
        """How many graphlets of a kind (a key of ``GRAPHLETS``) hold both nodes of a pair. int64 CSR [n, n]."""
        if graphlet not in GRAPHLETS:
            raise ValueError(f"no graphlet is called {graphlet!r}; known: {', '.join(GRAPHLETS)}")
        found = self.matrices(GRAPHLETS[graphlet], limit)
        total = sp.csr_array((self.n, self.n), dtype=np.int64)
        for matrix in found.values():
            total = total + matrix
        return sp.csr_array(total)


def orbit_adjacencies(A: Any, orbits: Iterable[Orbit] | str = ORBITS, limit: int | None = None) -> dict[Orbit, sp.csr_array]:
    """The orbit adjacency matrices of an undirected simple graph: (distance, orbit of i, orbit of j) -> int64 CSR [n, n].

    ``A`` sparse or dense [n, n], 0/1, symmetric, no diagonal. Row = first orbit; ``(h, b, a)`` is the transpose of
    ``(h, a, b)``; orbits as :func:`read_orbits` takes them; entries are exact, positive, and the diagonal is empty. ``limit`` bytes as in :meth:`OrbitCounts.matrices`.
    Errors: ``ValueError`` as :func:`simple_graph` and :func:`read_orbit`.
    Source: arXiv 2405.14194, definition of orbit adjacency.
    """
    return OrbitCounts(A).matrices(read_orbits(orbits) if isinstance(orbits, str) else [read_orbit(o) for o in orbits], limit)
