"""Mutual information of edges and walks against dense oracles, its factors, and the two recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.run import Run, fitted
from latticework.layers.pointwise_information import factorise, positive_information, unit_scale, walk_information
from latticework.layers.walks import random_walks
from latticework.nodes.matrix_embeddings import NetMF, _walk_bytes
from latticework.testing import check_method

FINGERPRINTS = Path(__file__).parent / "fingerprints_gradco.json"


def random_graph(n: int, p: float, seed: int, weighted: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < p, 1) * (rng.uniform(0.2, 3, (n, n)) if weighted else 1.0)
    return upper + upper.T


def dense_information(M: np.ndarray) -> np.ndarray:
    rows, columns = M.sum(1, keepdims=True), M.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(M > 0, np.maximum(np.log(M * M.sum() / (rows * columns)), 0), 0)


def dense_walks(A: np.ndarray, window: int, negative: float) -> np.ndarray:
    d = A.sum(1)
    inverse = np.divide(1.0, d, out=np.zeros_like(d), where=d > 0)
    P, power, total = inverse[:, None] * A, np.eye(len(A)), np.zeros_like(A)
    for _ in range(window):
        power = power @ P
        total += power
    return np.log(np.maximum(A.sum() / (negative * window) * total * inverse[None], 1.0))


@given(seed=st.integers(0, 1000), n=st.integers(1, 25), p=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_positive_information_is_its_formula(seed: int, n: int, p: float) -> None:
    M = random_graph(n, p, seed, weighted=True) * np.random.default_rng(seed).uniform(0.5, 2, (n, n))  # not symmetric
    found = positive_information(sp.csr_array(M))
    assert np.abs(found.toarray() - dense_information(M)).max() < 1e-12
    assert (found.data > 0).all() and found.dtype == np.float64
    assert np.abs(positive_information(7 * M) - found).max() < 1e-12


def test_worked_example_of_information() -> None:
    """A path of three: vol 4, degrees 1, 2, 1, so log(4 / 2) on both edges; repeated entries add up, stored zeros go."""
    A = sp.coo_array((np.array([0.5, 0.5, 1, 1, 1, 0]), ([0, 0, 1, 1, 2, 2], [1, 1, 0, 2, 1, 2])), shape=(3, 3))
    found = positive_information(A)
    assert found.nnz == 4 and np.allclose(found.data, np.log(2))
    # a complete graph: log(n (n-1) / (n-1)^2) everywhere; one edge more often than chance is all that counts
    full = positive_information(np.ones((5, 5)) - np.eye(5))
    assert np.allclose(full.toarray()[0, 1:], np.log(5 / 4))
    assert positive_information(np.ones((3, 3))).nnz == 0 and positive_information(sp.csr_array((4, 4))).nnz == 0
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and >= 0"):
            positive_information(np.array([[0, bad], [1.0, 0]]))


@pytest.mark.parametrize(("window", "negative"), [(1, 1.0), (2, 1.0), (3, 5.0), (10, 1.0)])
@pytest.mark.parametrize("budget", [1, 1 << 24])
def test_walks_are_their_formula(window: int, negative: float, budget: int) -> None:
    A = random_graph(40, 0.08, 1, weighted=True)
    A[5] = A[:, 5] = 0  # a node without edges
    found = walk_information(sp.csr_array(A), window, negative, budget=budget)
    assert np.abs(found.toarray() - dense_walks(A, window, negative)).max() < 1e-12
    assert not found[[5]].nnz and abs(found - found.T).max() < 1e-12


def test_a_window_of_one_is_the_information_of_the_edges() -> None:
    A = random_graph(50, 0.1, 2, weighted=True)
    assert np.abs(walk_information(A, 1) - positive_information(A)).max() < 1e-12


def test_the_closed_form_is_the_limit_of_sampled_walks() -> None:
    A = sp.csr_array(nx.to_scipy_sparse_array(nx.karate_club_graph(), weight=None, dtype=float))
    window, n = 3, A.shape[0]
    rng = np.random.default_rng(0)
    # walks start in proportion to degrees, so that every step of theirs is stationary
    degrees = np.diff(A.indptr)
    walks = random_walks(A.indptr, A.indices, 10_000, window + 1, rng)
    keep = rng.random(len(walks)) < (degrees / degrees.max())[walks[:, 0]]
    walks = walks[keep]
    pairs = np.zeros((n, n))
    for r in range(1, window + 1):
        np.add.at(pairs, (walks[:, 0], walks[:, r]), 1)
    sampled, exact = dense_information(pairs + pairs.T), walk_information(A, window).toarray()
    often = (pairs + pairs.T > 1_000) & (exact > 0)
    assert often.sum() > 100 and np.abs(sampled - exact)[often].max() < 0.1


def test_errors_of_walks() -> None:
    A = random_graph(5, 0.5, 0)
    for bad, window, negative, message in (
        (A, 0, 1.0, "window"), (A, 2, 0.0, "negative"), (A[:3], 2, 1.0, "square"), (np.triu(A), 2, 1.0, "symmetric"), (-A, 2, 1.0, ">= 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            walk_information(bad, window, negative)


@pytest.mark.parametrize("shape", [(30, 30), (450, 450), (430, 600)])
def test_factors_are_those_of_the_dense_decomposition(shape: tuple[int, int]) -> None:
    M = sp.random_array(shape, density=0.05, rng=np.random.default_rng(0), format="csr")
    U, s, Vt = np.linalg.svd(M.toarray(), full_matrices=False)
    left, right = factorise(M, 6)
    best = (U[:, :6] * s[:6]) @ Vt[:6]
    assert np.abs(left @ right.T - best).max() < 1e-8
    assert np.allclose((left**2).sum(0), s[:6]) and np.allclose((right**2).sum(0), s[:6])
    assert (left[np.abs(left).argmax(0), np.arange(6)] > 0).all()
    again = factorise(M.copy(), 6)
    assert np.array_equal(left, again[0]) and np.array_equal(right, again[1])


def test_fewer_singular_values_than_asked_for() -> None:
    M = np.outer(np.arange(1, 6), np.ones(5))
    left, right = factorise(M, 9)
    assert left.shape == (5, 9) and not left[:, 1:].any() and np.allclose(left @ right.T, M)
    zero = factorise(sp.csr_array((500, 500)), 3)
    assert not zero[0].any() and zero[1].shape == (500, 3)
    with pytest.raises(ValueError, match="dim"):
        factorise(M, 0)
    with pytest.raises(ValueError, match="finite"):
        factorise(np.array([[np.nan]]), 1)


def test_unit_scale() -> None:
    V = np.random.default_rng(0).normal(size=(7, 3))
    assert np.mean(unit_scale(V) ** 2) == pytest.approx(1) and np.allclose(unit_scale(V), unit_scale(100 * V))
    assert not unit_scale(np.zeros((2, 2))).any() and unit_scale(np.zeros((0, 3))).shape == (0, 3)


# -- recipes -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["ppmi(dim=8)", "netmf(dim=8)"])
def test_batteries(text: str) -> None:
    check_method(entry_of(text), "karate", fingerprints=FINGERPRINTS)


def vectors(text: str) -> np.ndarray:
    data = open_data("karate")
    model: Any = fitted(entry_of(text), data.whole(), None, Run(task=None, digest=data.digest(), fold="all"))
    return np.asarray(model.embed(data.whole()))


def test_recipes_give_the_factors() -> None:
    A = nx.to_numpy_array(nx.karate_club_graph(), weight=None)
    for text, M in (("ppmi(dim=5)", dense_information(A)), ("netmf(dim=5; window=4; negative=2)", dense_walks(A, 4, 2.0))):
        expected = unit_scale(factorise(M, 5)[0])
        assert np.allclose(vectors(text), expected, atol=1e-4)
    assert np.allclose(vectors("netmf(dim=5; window=1)"), vectors("ppmi(dim=5)"), atol=1e-5)


def test_a_window_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    A = sp.csr_array(random_graph(60, 0.05, 0))
    for window in (1, 2, 3):
        assert _walk_bytes(A, window) >= 48 * walk_information(A, window).nnz
    monkeypatch.setattr("latticework.nodes.matrix_embeddings.free_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"netmf with a window of 3 may take 0\.0 GB on this graph of 34 nodes"):
        vectors("netmf")
    assert NetMF().search_space() == {"window": (1, 10)}
