"""Directed patterns: dense oracles, normalisation, capped products, the cyclic block model, errors."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.layers.directed import (
    adjacency,
    cyclic_dsbm,
    directed_patterns,
    normalise_pattern,
    normalise_patterns,
    row_blocks,
    symmetrise,
)


def random_arcs(n: int, p: float, seed: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix((rng.random((n, n)) < p).astype(float))


def test_adjacency_counts_an_arc_once_and_keeps_loops() -> None:
    A = adjacency(np.array([[0, 0, 2], [1, 1, 2]]), 3)
    assert np.array_equal(A.toarray(), [[0, 1, 0], [0, 0, 0], [0, 0, 1]])


@given(seed=st.integers(0, 10_000), n=st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_patterns_count_paths(seed: int, n: int) -> None:
    A = random_arcs(n, 0.2, seed)
    a = A.toarray()
    expected = {"A": a, "AT": a.T, "AA": a @ a, "ATAT": a.T @ a.T, "AAT": a @ a.T, "ATA": a.T @ a}
    found = directed_patterns(A)
    assert list(found) == list(expected)
    for name, matrix in expected.items():
        assert np.array_equal(found[name].toarray(), matrix), name
    assert list(directed_patterns(A, 1)) == ["A", "AT"]
    both = np.maximum(a, a.T)
    plain = directed_patterns(A, directed=False)
    assert list(plain) == ["A", "AA"]
    assert np.array_equal(plain["A"].toarray(), both) and np.array_equal(plain["AA"].toarray(), both @ both)
    # on a symmetric graph all patterns of one order are one
    same = directed_patterns(symmetrise(A))
    for name in ("ATAT", "AAT", "ATA"):
        assert (same[name] != same["AA"]).nnz == 0


@given(seed=st.integers(0, 10_000), r=st.sampled_from([0.0, 0.3, 0.42749, 1.0]), loops=st.booleans())
@settings(deadline=None, max_examples=40)
def test_normalisation_equals_the_dense_one(seed: int, r: float, loops: bool) -> None:
    G = random_arcs(20, 0.1, seed)
    full = G.toarray() + (np.eye(20) if loops else 0)
    sums = full.sum(1)
    left = np.array([s ** (r - 1) if s > 0 else 0.0 for s in sums])
    right = np.array([s**-r if s > 0 else float(r == 0) for s in sums])
    assert np.abs(normalise_pattern(G, r, loops=loops).toarray() - left[:, None] * full * right[None, :]).max() < 1e-12


def test_ends_of_the_normalisation() -> None:
    G = random_arcs(30, 0.03, 5)
    filled = np.asarray(G.sum(1)).ravel() > 0
    rows = np.asarray(normalise_pattern(G, 0.0).sum(1)).ravel()
    assert not filled.all() and np.allclose(rows, filled)
    columns = normalise_pattern(G, 1.0).toarray()
    sums = G.toarray().sum(1)
    expected = np.divide(G.toarray(), sums[None, :], out=np.zeros((30, 30)), where=filled[None, :])
    assert np.allclose(columns[filled], expected[filled], atol=1e-14)


def test_first_order_gets_loops_and_second_order_does_not() -> None:
    patterns = directed_patterns(random_arcs(15, 0.2, 2))
    made = normalise_patterns(patterns, 0.5)
    for name, G in patterns.items():
        assert np.array_equal(made[name].toarray(), normalise_pattern(G, 0.5, loops=name in ("A", "AT")).toarray())
    assert (made["A"].diagonal() > 0).all()


@given(seed=st.integers(0, 1000), budget=st.integers(1, 200))
@settings(deadline=None, max_examples=40)
def test_row_blocks_cover_the_rows_within_the_budget(seed: int, budget: int) -> None:
    left, right = random_arcs(25, 0.2, seed), random_arcs(25, 0.3, seed + 1)
    steps = left.toarray() @ np.diff(right.indptr)
    blocks = list(row_blocks(left, right, budget))
    assert blocks[0][0] == 0 and blocks[-1][1] == 25
    assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
    assert all(j == i + 1 or steps[i:j].sum() <= budget for i, j in blocks)


def test_capped_products_keep_the_largest_counts() -> None:
    A = random_arcs(40, 0.3, 1)
    whole, capped = directed_patterns(A)["AAT"].toarray(), directed_patterns(A, cap=5, budget=100)["AAT"]
    assert np.diff(capped.indptr).max() == 5
    for i in range(40):
        kept = capped[[i]].toarray().ravel()
        assert np.array_equal(kept[kept > 0], whole[i][kept > 0])
        # ties go to the smaller column
        order = np.lexsort((np.arange(40), -whole[i]))[:5]
        assert set(np.flatnonzero(kept)) == {j for j in order if whole[i, j] > 0}
    loose = directed_patterns(A, cap=40, budget=7)
    for name, G in directed_patterns(A).items():
        assert np.array_equal(loose[name].toarray(), G.toarray())


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_cyclic_block_model(classes: int) -> None:
    A, y = cyclic_dsbm(300, classes, 0.05, 0.05, seed=4)
    plain, z = cyclic_dsbm(300, classes, 0.05, 0.05, seed=4, directed=False)
    assert np.array_equal(y, z) and np.ptp(np.bincount(y)) <= 1
    # the same undirected graph, one arc a pair, no loops
    assert (symmetrise(A) != symmetrise(plain)).nnz == 0
    assert A.multiply(A.T).nnz == 0 and not A.diagonal().any()
    u, v = A.nonzero()
    step = (y[v] - y[u]) % classes
    assert not (step == classes - 1).any() if classes > 2 else bool((y[u][step == 1] == 0).all())
    # elsewhere the coin is fair
    inside = step == 0
    assert abs((u < v)[inside].mean() - 0.5) < 5 * 0.5 / np.sqrt(inside.sum())
    expected = 0.05 * 300 * 299 / 2
    assert abs(A.nnz - expected) < 5 * np.sqrt(expected)


def test_errors() -> None:
    A = random_arcs(5, 0.4, 1)
    for call, message in (
        (lambda: adjacency(np.zeros((3, 1), int), 2), r"\[2, m\]"),
        (lambda: adjacency(np.array([[0], [2]]), 2), "outside"),
        (lambda: adjacency(np.array([[-1], [1]]), 2), "outside"),
        (lambda: directed_patterns(A, 3), "order"),
        (lambda: directed_patterns(A, cap=0), "cap"),
        (lambda: directed_patterns(A[:3]), "square"),
        (lambda: directed_patterns(-A), "non-negative"),
        (lambda: symmetrise(A * np.nan), "finite"),
        (lambda: normalise_pattern(A, 1.5), "r must"),
        (lambda: cyclic_dsbm(10, 1, 0.1, 0.1, 0), "classes"),
        (lambda: cyclic_dsbm(2, 3, 0.1, 0.1, 0), "classes"),
        (lambda: cyclic_dsbm(10, 3, 1.1, 0.1, 0), "p must"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
