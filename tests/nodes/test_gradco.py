"""Orbit adjacencies: the definition, worked examples, identities on any graph, walks, blocks of rows, errors, real graphs."""

from __future__ import annotations

import itertools
import time
from typing import Any

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.layers.orbits import PairCounts, edge_numbers
from latticework.nodes.gradco.counts import (
    EDGE_ORBITS,
    GRAPHLETS,
    ORBITS,
    SIZES,
    OrbitCounts,
    _at_distance_one,
    _Near,
    orbit_adjacencies,
    orbit_name,
    read_orbit,
    read_orbits,
    simple_graph,
)
from latticework.nodes.gradco.definition import orbits_by_definition
from latticework.nodes.gradco.method import simple_adjacency


def random_graph(n: int, p: float, seed: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < p, 1).astype(np.int64)
    return upper + upper.T


def dense(graph: nx.Graph) -> np.ndarray:
    return nx.to_numpy_array(graph, weight=None, dtype=np.int64)


def same(found: dict[Any, Any], expected: dict[Any, Any], what: Any = "") -> None:
    assert set(found) == set(expected) == set(ORBITS)
    for orbit in ORBITS:
        assert np.array_equal(found[orbit].toarray(), expected[orbit]), (orbit_name(orbit), what)


# -- against the definition --------------------------------------------------------------------------------------------------
def slowly(graph: nx.Graph) -> dict[Any, np.ndarray]:
    """The definition again, through networkx: isomorphism to named graphlets, orbits by their automorphisms, shortest paths."""
    named = {
        "edge": (nx.path_graph(2), [0, 0]),
        "path of three": (nx.path_graph(3), [1, 2, 1]),
        "triangle": (nx.complete_graph(3), [3] * 3),
        "path of four": (nx.path_graph(4), [4, 5, 5, 4]),
        "star": (nx.star_graph(3), [7, 6, 6, 6]),
        "cycle of four": (nx.cycle_graph(4), [8] * 4),
        "paw": (nx.Graph([(0, 1), (1, 2), (2, 3), (3, 1)]), [9, 11, 10, 10]),
        "diamond": (nx.Graph([(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]), [12, 13, 13, 12]),
        "clique of four": (nx.complete_graph(4), [14] * 4),
    }
    n = len(graph)
    found = {orbit: np.zeros((n, n), np.int64) for orbit in ORBITS}
    for size in (2, 3, 4):
        for nodes in itertools.combinations(range(n), size):
            part = graph.subgraph(nodes)
            if not nx.is_connected(part):
                continue
            for model, orbits in named.values():  # noqa: B007  (the last one stays)
                match = nx.isomorphism.GraphMatcher(part, model)
                if match.is_isomorphic():
                    break
            distance = dict(nx.all_pairs_shortest_path_length(part))
            for i, j in itertools.permutations(nodes, 2):
                found[(distance[i][j], orbits[match.mapping[i]], orbits[match.mapping[j]])][i, j] += 1
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_fast_enumeration_is_the_definition(seed: int) -> None:
    A = random_graph(8, [0.25, 0.4, 0.5, 0.6, 0.75, 0.9][seed], seed)
    expected, found = slowly(nx.from_numpy_array(A)), orbits_by_definition(A)
    assert all(np.array_equal(found[o], expected[o]) for o in ORBITS)


def test_all_graphs_of_five_nodes() -> None:
    """All 1,024 of them, side by side in one graph."""
    pairs = list(itertools.combinations(range(5), 2))
    each = np.zeros((1 << len(pairs), 5, 5), np.int64)
    for bit, (i, j) in enumerate(pairs):
        each[:, i, j] = each[:, j, i] = np.arange(len(each)) >> bit & 1
    found = orbit_adjacencies(sp.block_diag(each, format="csr"))
    expected: dict[Any, list[np.ndarray]] = {orbit: [] for orbit in ORBITS}
    for A in each:
        for orbit, matrix in orbits_by_definition(A).items():
            expected[orbit].append(matrix)
    for orbit in ORBITS:
        assert (found[orbit] != sp.block_diag(expected[orbit], format="csr")).nnz == 0, orbit_name(orbit)


def test_a_hundred_random_graphs() -> None:
    rng = np.random.default_rng(0)
    for seed in range(100):
        A = random_graph(int(rng.integers(2, 12)), rng.uniform(0.1, 0.9), seed)
        same(orbit_adjacencies(A), orbits_by_definition(A), seed)


@pytest.mark.parametrize(
    "graph",
    [
        nx.complete_graph(7), nx.cycle_graph(4), nx.cycle_graph(5), nx.cycle_graph(9), nx.star_graph(8), nx.complete_bipartite_graph(3, 4),
        nx.petersen_graph(), nx.empty_graph(6), nx.empty_graph(1), nx.path_graph(2), nx.hypercube_graph(3), nx.barbell_graph(4, 2),
    ],
    ids=lambda g: f"{len(g)} nodes, {g.number_of_edges()} edges",
)  # fmt: skip
def test_named_graphs(graph: nx.Graph) -> None:
    A = dense(graph)
    same(orbit_adjacencies(sp.coo_array(A)), orbits_by_definition(A))


@pytest.mark.parametrize("build", [nx.karate_club_graph, nx.les_miserables_graph])
def test_real_graphs_equal_the_definition(build: Any) -> None:
    A = dense(build())
    same(orbit_adjacencies(sp.csr_array(A)), orbits_by_definition(A))


def test_worked_example_of_a_diamond() -> None:
    A = np.zeros((4, 4), np.int64)
    for i, j in [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]:
        A[i, j] = A[j, i] = 1
    found = {o: m.toarray() for o, m in orbit_adjacencies(A).items()}

    def entries(orbit: Any) -> dict[tuple[int, int], int]:
        return {(int(i), int(j)): int(found[orbit][i, j]) for i, j in zip(*found[orbit].nonzero(), strict=True)}

    assert entries((2, 12, 12)) == {(0, 3): 1, (3, 0): 1}
    assert entries((1, 13, 13)) == {(1, 2): 1, (2, 1): 1}
    assert entries((1, 12, 13)) == {(0, 1): 1, (0, 2): 1, (3, 1): 1, (3, 2): 1}
    outer = {(i, j): 1 for i, j in itertools.permutations(range(4), 2) if {i, j} not in ({0, 3}, {1, 2})}
    assert entries((1, 3, 3)) == outer | {(1, 2): 2, (2, 1): 2}
    assert entries((2, 1, 1)) == {(0, 3): 2, (3, 0): 2}
    assert entries((1, 1, 2)) == {(0, 1): 1, (0, 2): 1, (3, 1): 1, (3, 2): 1}
    seen = {(1, 0, 0), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 3, 3), (2, 12, 12), (1, 12, 13), (1, 13, 12), (1, 13, 13)}
    assert all(not found[o].any() for o in ORBITS if o not in seen)


# -- identities on any graph -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["sparse", "clustered", "hubs"])
def graph(request: pytest.FixtureRequest) -> nx.Graph:
    if request.param == "sparse":
        return nx.gnm_random_graph(300, 900, seed=1)
    if request.param == "clustered":
        return nx.watts_strogatz_graph(200, 12, 0.1, seed=2)
    return nx.barabasi_albert_graph(250, 6, seed=3)


def test_totals_degrees_and_triangles(graph: nx.Graph) -> None:
    counts = OrbitCounts(nx.to_scipy_sparse_array(graph, weight=None))
    found, degrees = counts.matrices(), counts.node_orbits()
    assert degrees.dtype == np.int64 and degrees.shape == (len(graph), 15)
    # each graphlet once for every ordered pair of its nodes, and once for each of its nodes
    holders = {
        "edge": [0], "path of three": [1, 2], "triangle": [3], "path of four": [4, 5], "star": [6, 7], "cycle of four": [8],
        "paw": [9, 10, 11], "diamond": [12, 13], "clique of four": [14],
    }  # fmt: skip
    for name, orbits in GRAPHLETS.items():
        size = SIZES[name]
        by_nodes = int(degrees[:, holders[name]].sum())
        assert sum(int(found[o].sum()) for o in orbits) == by_nodes * (size - 1), name
        assert by_nodes % size == 0
    assert np.array_equal(degrees[:, 0], [d for _, d in graph.degree()])
    assert np.array_equal(degrees[:, 3], list(nx.triangles(graph).values()))
    cliques = [c for c in nx.enumerate_all_cliques(graph) if len(c) == 4]
    assert int(degrees[:, 14].sum()) == 4 * len(cliques)


def test_linear_relations_between_degrees(graph: nx.Graph) -> None:
    """What all three-node extensions of a node's own graphlets must add up to (the relations that ORCA solves)."""
    A = nx.to_scipy_sparse_array(graph, weight=None, dtype=np.int64)
    o = OrbitCounts(A).node_orbits().T
    d = o[0]
    pairs = d * (d - 1) // 2
    assert np.array_equal(o[2] + o[3], pairs)
    assert np.array_equal(o[1] + 2 * o[3], A @ (d - 1))
    # a middle of a path of three, or a corner of a triangle, with one more neighbour
    assert np.array_equal(d * (d - 1) * (d - 2) // 6, o[7] + o[11] + o[13] + o[14])
    assert np.array_equal((d - 2) * o[3], o[11] + 2 * o[13] + 3 * o[14])
    # a neighbour with two more neighbours: it is the centre, the hub, or of degree three
    ends = A @ ((d - 1) * (d - 2) // 2)
    assert np.array_equal(ends, o[6] + o[9] + o[10] + 2 * o[12] + o[13] + 3 * o[14])


def test_walks_are_fixed_sums_of_orbit_adjacencies(graph: nx.Graph) -> None:
    """Length two: open and closed triples together. Length three: ten matrices in a fixed mixture; the others never appear."""
    A = nx.to_numpy_array(graph, weight=None, dtype=np.int64)
    found = {o: m.toarray() for o, m in orbit_adjacencies(A).items()}
    apart = ~np.eye(len(A), dtype=bool)
    two, three = A @ A, A @ A @ A
    assert np.array_equal(two[apart], (found[2, 1, 1] + found[1, 3, 3])[apart])
    mixture = {
        (1, 0, 0): 1, (1, 1, 2): 1, (1, 2, 1): 1, (1, 3, 3): 2, (1, 8, 8): 1, (1, 12, 13): 1, (1, 13, 12): 1, (1, 14, 14): 2,
        (3, 4, 4): 1, (2, 9, 10): 1, (2, 10, 9): 1, (2, 12, 12): 2,
    }  # fmt: skip
    assert np.array_equal(three[apart], sum(c * found[o] for o, c in mixture.items())[apart])
    assert np.array_equal(found[1, 13, 13] + found[1, 14, 14], found[1, 3, 3] * (found[1, 3, 3] - 1) // 2)


def test_walks_cannot_tell_apart_what_orbits_can() -> None:
    """Two graphs with the same number of walks of lengths one to three between two nodes, and other orbits there."""
    square_and_pendants = nx.Graph([(0, 1), (0, 2), (0, 3), (2, 3)])  # a paw: 1 pendant, 0 hub
    star = nx.star_graph(3)
    walks, orbits = [], []
    for g in (square_and_pendants, star):
        A = dense(g)
        walks.append([int(np.linalg.matrix_power(A, k)[0, 1]) for k in (1, 2, 3)])
        orbits.append([int(m[0, 1]) for m in orbit_adjacencies(A).values()])
    assert walks[0] == walks[1] == [1, 0, 3] and orbits[0] != orbits[1]


@given(seed=st.integers(0, 10_000), n=st.integers(1, 30), p=st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_entries_symmetry_and_relabelling(seed: int, n: int, p: float) -> None:
    A = random_graph(n, p, seed)
    order = np.random.default_rng(seed).permutation(n)
    found, turned = orbit_adjacencies(A), orbit_adjacencies(A[order][:, order])
    for h, a, b in ORBITS:
        matrix = found[h, a, b]
        assert matrix.dtype == np.int64 and matrix.has_sorted_indices and matrix.shape == (n, n)
        assert (matrix.data > 0).all() and not matrix.diagonal().any()
        assert np.array_equal(matrix.toarray(), found[h, b, a].toarray().T)
        assert np.array_equal(turned[h, a, b].toarray(), matrix.toarray()[order][:, order])


def test_edge_orbits_and_graphlet_adjacencies() -> None:
    A = random_graph(14, 0.4, 5)
    counts, found = OrbitCounts(A), orbits_by_definition(A)
    edges, each = counts.edge_orbits()
    assert len(EDGE_ORBITS) == 12 and each.shape == (len(edges), 12) and (edges[:, 0] < edges[:, 1]).all()
    assert np.array_equal(edges, np.argwhere(np.triu(A)))
    for column, (a, b) in zip(each.T, EDGE_ORBITS, strict=True):
        whole = found[1, a, b] + (found[1, b, a] if a != b else 0)
        assert np.array_equal(column, whole[edges[:, 0], edges[:, 1]])
    for name in GRAPHLETS:
        expected = sum(found[o] for o in GRAPHLETS[name])
        assert np.array_equal(counts.graphlet_adjacency(name).toarray(), expected)
        assert np.array_equal(expected, expected.T)
    with pytest.raises(ValueError, match=r"'pentagon'; known: edge, path of three"):
        counts.graphlet_adjacency("pentagon")


# -- blocks of rows ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [1, 20_000, 200_000])
def test_blocks_of_rows_are_the_matrices(budget: int) -> None:
    A = dense(nx.barabasi_albert_graph(120, 4, seed=0))
    whole, parts, starts = orbit_adjacencies(A), {o: [] for o in ORBITS}, []
    for start, found in OrbitCounts(A).blocks(ORBITS, budget):
        starts.append(start)
        for orbit, block in found.items():
            assert block.shape[0] <= 120 and sum(b.shape[0] for b in parts[orbit]) == start
            parts[orbit].append(block)
    assert len(set(starts)) == 120 if budget == 1 else 1 < len(set(starts)) < 120
    for orbit in ORBITS:
        assert np.array_equal(sp.vstack(parts[orbit]).toarray(), whole[orbit].toarray())


def test_any_choice_of_orbits_in_any_order_gives_the_same() -> None:
    A = random_graph(40, 0.3, 1)
    whole, counts = orbit_adjacencies(A), OrbitCounts(A)
    for asked in ([(1, 1, 2)], [(1, 14, 14), (1, 1, 2)], [(2, 1, 1)], [(3, 4, 4), (1, 8, 8)], [(1, 3, 3), (2, 12, 12)], []):
        found = counts.matrices(asked)
        assert list(found) == asked
        assert all(np.array_equal(found[o].toarray(), whole[o].toarray()) for o in asked)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    A = dense(nx.barabasi_albert_graph(150, 5, seed=4))
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(orbit_adjacencies(A))
    torch.set_num_threads(before)
    assert all(np.array_equal(found[0][o].toarray(), found[1][o].toarray()) for o in ORBITS)


def test_triangles_and_common_neighbours() -> None:
    A = random_graph(50, 0.3, 2)
    csr = sp.csr_array(A)
    pairs = PairCounts(csr.indptr, csr.indices)
    numbers = edge_numbers(csr.indptr, csr.indices)
    rows = np.repeat(np.arange(50), np.diff(csr.indptr))
    edges = np.argwhere(np.triu(A))
    assert np.array_equal(edges[numbers], np.stack([np.minimum(rows, csr.indices), np.maximum(rows, csr.indices)], 1))
    assert np.array_equal(pairs.T, (A * (A @ A))[rows, csr.indices])
    for e, (i, j) in enumerate(edges):
        assert np.array_equal(pairs.members[pairs.starts[e] : pairs.starts[e + 1]], np.flatnonzero(A[i] & A[j]))
    with pytest.raises(ValueError, match="four-cliques"):
        list(pairs.sweep(cliques=False, far=True))


def test_estimates_are_upper_bounds() -> None:
    for seed, p in enumerate((0.02, 0.1, 0.4)):
        A = random_graph(150, p, seed)
        counts = OrbitCounts(A)
        need, found = counts.need(), counts.matrices()
        assert need.far >= found[3, 4, 4].nnz and all(need.pairs >= found[o].nnz for o in ORBITS if o[0] == 2)
        assert counts.need([(1, 1, 2)]).far == counts.need([(1, 1, 2)]).pairs == 0
    with pytest.raises(ValueError, match=r"up to 0\.\d GB for these matrices .* and 0\.0 GB are free"):
        counts.matrices(limit=1000)
    assert counts.matrix((1, 0, 0), limit=1 << 40).nnz == A.sum()


def test_counts_beyond_32_bits() -> None:
    """The products of a hub's degree: a centre with 70,001 neighbours, and an edge between two such."""
    hub, zero = np.array([70_001]), np.zeros(1, np.int64)
    near = _Near(hub, hub, zero, zero, hub, hub, zero, zero, zero, zero, zero, 2 * hub - 1)
    assert _at_distance_one((6, 7), near)[0] == 70_000 * 69_999 // 2 > 2**31
    assert _at_distance_one((5, 5), near)[0] == 70_000**2 > 2**32
    # and in the kernels: 64-bit accumulators throughout
    star = nx.star_graph(2_000)
    found = OrbitCounts(nx.to_scipy_sparse_array(star)).node_orbits()
    assert found[0, 7] == 2_000 * 1_999 * 1_998 // 6


# -- what is refused ---------------------------------------------------------------------------------------------------------
def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    A = random_graph(6, 0.5, 0)
    for broken, message in (
        (A[:4], r"square, is \(4, 6\)"),
        (A + np.eye(6, dtype=int), "6 self-loops, the first at node 0"),
        (np.triu(A), "symmetric"),
        (2 * A, r"entry \(\d, \d\) is 2: a simple graph has 0 and 1 only"),
        (A * 0.5, "0 and 1 only"),
        (A * 1j, "complex"),
    ):
        with pytest.raises(ValueError, match=message):
            simple_graph(broken)
    twice = sp.coo_array((np.ones(4), ([0, 0, 1, 1], [1, 1, 0, 0])), shape=(2, 2))
    with pytest.raises(ValueError, match=r"entry \(0, 1\) is 2"):
        simple_graph(twice)
    stored = sp.csr_array((np.array([1.0, 1.0, 0.0]), (np.array([0, 1, 2]), np.array([1, 0, 2]))), shape=(3, 3))
    assert simple_graph(stored).nnz == 2 and stored.nnz == 3
    monkeypatch.setattr("latticework.nodes.gradco.counts._MOST_NEIGHBOURS", 3)
    with pytest.raises(ValueError, match="more than 3 neighbours"):
        simple_graph(dense(nx.star_graph(4)))


def test_names_of_orbits() -> None:
    assert len(ORBITS) == 28 and [sum(o[0] == h for o in ORBITS) for h in (1, 2, 3)] == [19, 8, 1]
    for orbit in ORBITS:
        h, a, b = orbit
        forms = (orbit_name(orbit), str(orbit), f"{h},{a},{b}", orbit, list(orbit), [f"({h}", a, f"{b})"])
        assert all(read_orbit(form) == orbit for form in forms)
    assert read_orbits("all") == ORBITS and read_orbits("2:1-1,3:4-4,2:1-1") == ((2, 1, 1), (3, 4, 4))
    assert read_orbits(["1:0-0", "1:3-3"]) == ((1, 0, 0), (1, 3, 3)) == read_orbits(((1, 0, 0), (1, 3, 3)))
    rows = np.array([[2, 1, 1], [3, 4, 4]])
    for several in (rows, rows.astype(np.int32), list(rows), [tuple(row) for row in rows], tuple(tuple(row) for row in rows)):
        assert read_orbits(several) == ((2, 1, 1), (3, 4, 4))
    assert read_orbit(rows[0]) == read_orbit(tuple(rows[0])) == (2, 1, 1)
    path = np.eye(3, k=1) + np.eye(3, k=-1)
    assert set(orbit_adjacencies(path, rows)) == set(orbit_adjacencies(path, "2:1-1,3:4-4")) == {(2, 1, 1), (3, 4, 4)}
    assert set(orbit_adjacencies(path, "all")) == set(ORBITS)
    for wrong in ("2:1-2", "1:10-12", "4:4-4", "1-1", "", "hub", (2, 1), "2:1-1:3", None, 7):
        with pytest.raises(ValueError, match=r"one of 1:0-0, 1:1-2, .*, 3:4-4"):
            read_orbits(wrong)
    with pytest.raises(ValueError, match="names 2"):
        read_orbit("2:1-1,3:4-4")


# -- real data ---------------------------------------------------------------------------------------------------------------
def test_cora(mirror: Any) -> None:
    mirror("planetoid-cora")
    graph = open_data("planetoid-cora").read()
    A, notes = simple_adjacency(graph.edge_index, graph.nodes)
    assert notes == []
    before = time.perf_counter()
    counts = OrbitCounts(A)
    found, degrees = counts.matrices(), counts.node_orbits()
    assert time.perf_counter() - before < 30
    assert sum(int(found[o].sum()) for o in GRAPHLETS["triangle"]) == 6 * 1630  # Cora's triangles, as published
    assert np.array_equal(degrees[:, 3], list(nx.triangles(nx.from_scipy_sparse_array(A)).values()))
    three = (A @ A @ A).astype(np.int64).toarray()
    np.fill_diagonal(three, 0)
    far = (three > 0) & (A.toarray() == 0)
    mixed = found[3, 4, 4] + found[2, 9, 10] + found[2, 10, 9] + 2 * found[2, 12, 12]
    assert np.array_equal(mixed.toarray()[far], three[far])
