"""Topological Concentration as mathematics: against multisets, known statistics, worked examples and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

import latticework as lw
from latticework.data.graph import undirected_pairs
from latticework.layers.propagation import SparseOperator, normalised_adjacency
from latticework.links.heuristics import pattern as joined
from latticework.links.topological_concentration import (
    approximate,
    atc_embedding,
    atc_limit,
    binned,
    edge_scores,
    per_node,
    reweighted,
    row_softmax,
    subgraph_density,
    topological_concentration,
)  # fmt: skip
from latticework.links.topological_concentration import concentration as inner


def drawn(n: int, p: float, seed: int, share: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a random graph, cut at random into train, valid and test."""
    rng = np.random.default_rng(seed)
    pairs = np.array(np.nonzero(np.triu(rng.random((n, n)) < p, 1)))
    part = rng.choice(3, pairs.shape[1], p=[1 - share, share / 2, share / 2])
    return pairs[:, part == 0], pairs[:, part == 1], pairs[:, part == 2]


# -- the oracle: multisets of walk ends, by hand ---------------------------------------------------------------------------
def multisets(train: dict[int, set[int]], node: int, hops: int) -> list[Counter[int]]:
    ends, found = Counter({node: 1}), []
    for _ in range(hops):
        following: Counter[int] = Counter()
        for v, count in ends.items():
            for u in train[v]:
                following[u] += count
        found.append(following)
        ends = following
    return found


def by_hand(n: int, train: np.ndarray, asked: np.ndarray | None, hops: int) -> np.ndarray:
    """TC from the definition, with the double sum over hops, in plain Python."""
    near: dict[int, set[int]] = {i: set() for i in range(n)}
    for u, v in train.T.tolist():
        near[u].add(v)
        near[v].add(u)
    ask = near
    if asked is not None:
        ask = {i: set() for i in range(n)}
        for u, v in asked.T.tolist():
            ask[u].add(v)
            ask[v].add(u)
    beta = n / sum(len(s) for s in near.values())
    out = np.zeros(n)
    for i in range(n):
        if not ask[i] or len(near[i]) < (2 if asked is None else 1):
            continue
        own = multisets(near, i, hops)
        total = 0.0
        for a in range(hops):
            for b in range(hops):
                size = sum(own[a].values())
                total += beta ** (a + b) * (size - 1 if asked is None and a == b == 0 else size)
        values = []
        for j in ask[i]:
            other = multisets(near, j, hops)
            shared = sum(
                beta ** (a + b) * sum(count for u, count in own[a].items() if other[b][u] > 0)
                for a in range(hops)
                for b in range(hops)
            )
            values.append(shared / total)
        out[i] = sum(values) / len(values)
    return out


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_sparse_equals_multisets(hops: int) -> None:
    for seed in range(50):
        n = 8 + seed % 17
        train, valid, test = drawn(n, 0.15 + 0.01 * (seed % 20), seed)
        if not train.shape[1]:
            continue
        A = joined(train, n)
        for asked in (None, valid, test):
            found = topological_concentration(A, None if asked is None else joined(asked, n), hops)
            expected = by_hand(n, train, asked, hops)
            assert np.abs(found.values - expected).max() <= 1e-12
            assert (found.values[~found.defined] == 0).all()


def test_blocks_of_neighbourhoods_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _, test = drawn(60, 0.2, 3)
    A, B = joined(train, 60), joined(test, 60)
    whole = [topological_concentration(A, asked, 2).values for asked in (None, B)]
    monkeypatch.setattr(inner, "_HELD", 300)
    assert len(inner._blocks(np.full(60, 100.0))) > 10
    for asked, values in zip((None, B), whole, strict=True):
        assert np.allclose(topological_concentration(A, asked, 2).values, values, atol=1e-14)


def test_result_does_not_depend_on_threads() -> None:
    A = joined(drawn(300, 0.05, 1)[0], 300)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = topological_concentration(A, hops=2).values
        torch.set_num_threads(2)
        two = topological_concentration(A, hops=2).values
    finally:
        torch.set_num_threads(before)
    assert (one == two).all()


def test_one_hop_is_the_clustering_coefficient() -> None:
    for seed in range(20):
        G = nx.gnp_random_graph(40, 0.05 + 0.02 * seed, seed=seed)
        found = topological_concentration(joined(np.array(G.edges()).reshape(-1, 2).T, 40))
        clustering = np.array([nx.clustering(G, i) for i in range(40)])
        degree = np.array([d for _, d in G.degree()])
        assert (found.values == clustering).all() and (found.defined == (degree >= 2)).all()


def test_one_hop_of_held_out_pairs_is_the_shared_share() -> None:
    train, _, test = drawn(50, 0.2, 5)
    A, B = joined(train, 50).toarray(), joined(test, 50).toarray()
    found = topological_concentration(joined(train, 50), joined(test, 50))
    common, degree = A @ A, A.sum(1)
    for i in np.flatnonzero(found.defined):
        assert found.values[i] == pytest.approx((common[i] / degree[i])[B[i] > 0].mean(), abs=1e-14)


# -- worked examples -------------------------------------------------------------------------------------------------------
def graph_of(G: Any) -> Any:
    return joined(np.array(G.edges()).T, G.number_of_nodes())


def test_worked_examples() -> None:
    assert topological_concentration(graph_of(nx.cycle_graph(5))).values.tolist() == [0] * 5
    tail = topological_concentration(joined(np.array([[0, 1, 2, 2], [1, 2, 0, 3]]), 4))
    assert tail.values.tolist() == [1, 1, 1 / 3, 0] and tail.defined.tolist() == [True, True, True, False]
    star = topological_concentration(graph_of(nx.star_graph(4)))
    assert star.values.tolist() == [0] * 5 and star.defined.tolist() == [True] + [False] * 4
    path = topological_concentration(joined(np.array([[0, 1], [1, 2]]), 3), joined(np.array([[0], [2]]), 3))
    assert path.values.tolist() == [1, 0, 1] and path.defined.tolist() == [True, False, True]


def test_complete_and_triangle_free_graphs() -> None:
    for n in (3, 5, 9):
        assert (topological_concentration(graph_of(nx.complete_graph(n))).values == 1).all()
    for G in (nx.complete_bipartite_graph(3, 4), nx.petersen_graph(), nx.balanced_tree(2, 3)):
        assert not topological_concentration(graph_of(G)).values.any()


@given(seed=st.integers(0, 10_000), n=st.integers(4, 25), hops=st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_relabelling_and_range(seed: int, n: int, hops: int) -> None:
    train, _, test = drawn(n, 0.35, seed)
    if not train.shape[1]:
        return
    order = np.random.default_rng(seed).permutation(n)
    for asked in (None, test):
        found = topological_concentration(joined(train, n), None if asked is None else joined(asked, n), hops)
        turned = topological_concentration(joined(order[train], n), None if asked is None else joined(order[asked], n), hops)
        assert np.abs(turned.values[order] - found.values).max() < 1e-12
        assert (turned.defined[order] == found.defined).all()
        assert found.values.min() >= 0 and found.values.max() <= 1 + 1e-12


def test_repeats_loops_and_direction_are_taken_out() -> None:
    A = joined(np.array([[0, 1, 1, 2, 0, 3], [1, 0, 2, 0, 1, 3]]), 4)
    assert (joined(np.array([[0, 1, 0], [1, 2, 2]]), 4) != A).nnz == 0


def test_errors() -> None:
    A = joined(np.array([[0, 1], [1, 2]]), 4)
    for wrong, word in (
        (lambda: topological_concentration(A, hops=0), "hops must be >= 1"),
        (lambda: topological_concentration(A, joined(np.array([[0, 2], [3, 1]]), 4)), "1 of the held-out pairs are edges"),
        (lambda: topological_concentration(joined(np.zeros((2, 0), int), 4)), "no edge"),
        (lambda: joined(np.array([[0], [4]]), 4), "edge 0 joins 0 and 4"),
        (lambda: joined(np.array([0, 1]), 4), r"must be \[2, m\]"),
        (lambda: topological_concentration(A, beta=0.0), "beta must be > 0"),
        (lambda: topological_concentration(2 * A), "of ones"),
        (lambda: topological_concentration(A, joined(np.array([[0], [3]]), 5)), "5 nodes"),
        (lambda: atc_embedding(A, dim=0), "dim must be >= 1"),
        (lambda: atc_embedding(A, hops=2, weights=[1.0]), "as many weights"),
        (lambda: atc_embedding(joined(np.zeros((2, 0), int), 4)), "no edge"),
    ):
        with pytest.raises(ValueError, match=word):
            wrong()


# -- approximate -----------------------------------------------------------------------------------------------------------
def test_limit_is_the_dense_double_sum() -> None:
    train, _, test = drawn(30, 0.25, 2)
    A, B = joined(train, 30), joined(test, 30)
    dense = A.toarray()
    P = dense / np.maximum(dense.sum(1, keepdims=True), 1)
    powers = [P, P @ P]
    for asked, matrix in ((None, A), (B, B)):
        full = sum(0.5 ** (a + b) * powers[a] @ powers[b].T for a in range(2) for b in range(2))
        mask = matrix.toarray()
        expected = (full * mask).sum(1) / np.maximum(mask.sum(1), 1)
        assert np.abs(atc_limit(A, asked, 2, [1.0, 0.5]) - expected).max() < 1e-12
    degree = dense.sum(1)
    shared = (dense @ dense) / np.maximum(np.outer(degree, degree), 1)
    one = (shared * dense).sum(1) / np.maximum(degree, 1)
    assert np.abs(atc_limit(A) - one).max() < 1e-12


def test_embedding_is_fastrps_gaussian_projection() -> None:
    """The same propagation with the same projection: FastRP with beta = 0, and nothing normalised."""
    from latticework.nodes.fastrp import merge_orders, orders, projection_matrix, transition

    A, weights = joined(drawn(40, 0.2, 0)[0], 40), [1.0, 0.5, 0.25]
    R = projection_matrix(40, 16, kind="gaussian", dtype=np.float64) / 4
    P, scale = transition(A, 0.0, np.float64)
    theirs = merge_orders(orders(P, scale, R, 3), weights, normalise=False, standardise=False)

    class Given:
        def standard_normal(self, shape: Any, dtype: Any) -> np.ndarray:
            return np.array(R * 4, dtype=dtype)

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(inner.np.random, "default_rng", lambda rng: rng)
        ours = atc_embedding(A, 16, 3, weights, Given(), np.float64)
    assert np.abs(ours - theirs).max() < 1e-12


def test_error_falls_with_the_root_of_the_dimension() -> None:
    A = joined(drawn(150, 0.08, 4)[0], 150)
    limit, dims = atc_limit(A, hops=2), 2 ** np.arange(4, 13)
    error = [
        np.mean([np.abs(approximate(A, atc_embedding(A, int(d), 2, rng=seed)).values - limit).mean() for seed in range(5)])
        for d in dims
    ]
    slope = np.polyfit(np.log(dims), np.log(error), 1)[0]
    assert -0.6 < slope < -0.4


def test_stated_error_covers_the_truth() -> None:
    train, _, test = drawn(120, 0.1, 6)
    A, B = joined(train, 120), joined(test, 120)
    for asked in (None, B):
        limit, inside, spread = atc_limit(A, asked, 2), [], []
        draws = [approximate(A, atc_embedding(A, 128, 2, rng=seed), asked) for seed in range(60)]
        ok = draws[0].defined
        for found in draws:
            inside.append(np.abs(found.values - limit)[ok] <= 1.96 * found.error[ok])
            spread.append(found.values[ok])
        assert 0.92 < np.mean(inside) < 0.98
        # the stated error is that of the draws
        assert np.median(np.mean([d.error[ok] for d in draws], axis=0) / np.std(spread, axis=0)) == pytest.approx(1, abs=0.15)


def test_cosine_is_bounded_and_one_among_twins() -> None:
    A = joined(np.array(nx.complete_graph(6).edges()).T, 6)
    found = approximate(A, atc_embedding(A, 256, 2), cosine=True)
    assert (found.values > 0.9).all() and (found.values <= 1 + 1e-6).all()
    leaf = approximate(joined(np.array([[0], [1]]), 3), atc_embedding(joined(np.array([[0], [1]]), 3), 8))
    assert leaf.defined.tolist() == [True, True, False] and leaf.values[2] == 0


def test_order_of_the_approximation_on_cora(mirror: Callable[[str], Path]) -> None:
    mirror("planetoid-cora")
    graph = lw.dataset("planetoid-cora").read()
    A = joined(undirected_pairs(graph), graph.nodes)
    exact, limit = topological_concentration(A), atc_limit(A)
    found = approximate(A, atc_embedding(A, 256))
    ok = exact.defined
    assert spearmanr(found.values[ok], limit[ok])[0] >= 0.9
    # another quantity, but one that orders nodes much alike
    assert spearmanr(limit[ok], exact.values[ok])[0] > 0.8


def test_density_of_the_subgraph() -> None:
    for seed in range(5):
        G = nx.gnp_random_graph(30, 0.2, seed=seed)
        expected = [nx.density(nx.ego_graph(G, i)) if G.degree(i) else 0 for i in range(30)]
        assert np.allclose(subgraph_density(graph_of(G)), expected, atol=1e-12)


# -- answers at a node -----------------------------------------------------------------------------------------------------
def test_measures_of_one_ranking_by_hand() -> None:
    scores = np.array([[9.0, 8, 7, 6, 5, 4, 3, 2]])
    known = np.array([[1, 0, 0, 0, 0, 0, 0, 0]], bool)
    truth = np.array([[0, 0, 1, 0, 0, 1, 0, 0]], bool)  # ranks 2 and 5 of the seven candidates
    found = per_node(scores, truth, known, (2, 5, 50))
    assert found["mrr"][0] == 0.5 and found["hits@2"][0] == 1
    assert (found["precision@2"][0], found["recall@2"][0], found["f1@2"][0]) == (0.5, 0.5, 0.5)
    assert (found["precision@5"][0], found["recall@5"][0]) == (0.4, 1.0)
    assert found["precision@50"][0] == 2 / 50
    best = 1 + 1 / np.log2(3)
    assert found["ndcg@2"][0] == pytest.approx((1 / np.log2(3)) / best)
    assert found["ndcg@5"][0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(6)) / best)


@given(seed=st.integers(0, 10_000), ties=st.booleans())
@settings(deadline=None, max_examples=30)
def test_measures_against_a_plain_ranking(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    n = 30
    scores = rng.integers(0, 4, (6, n)).astype(float) if ties else rng.normal(size=(6, n))
    known = rng.random((6, n)) < 0.2
    truth = ~known & (rng.random((6, n)) < 0.15)
    truth[np.arange(6), 0], known[np.arange(6), 0] = True, False
    order = rng.permutation(n)
    found = per_node(scores, truth, known, (5, 20), order)
    for r in range(6):
        ranked = sorted((c for c in order if not known[r, c]), key=lambda c: -scores[r, c])  # sorted is stable
        hit = [bool(truth[r, c]) for c in ranked]
        assert found["mrr"][r] == pytest.approx(1 / (hit.index(True) + 1))
        for k in (5, 20):
            assert found[f"recall@{k}"][r] == pytest.approx(sum(hit[:k]) / truth[r].sum())
            assert found[f"hits@{k}"][r] == float(any(hit[:k]))


def test_measures_refuse_what_they_cannot_rank() -> None:
    s, none = np.zeros((1, 3)), np.zeros((1, 3), bool)
    one = np.array([[True, False, False]])
    for args, word in (((s, none, none), "no ranking"), ((s, one, one), "known ones"), ((s * np.nan, one, none), "finite")):
        with pytest.raises(ValueError, match=word):
            per_node(*args)


def test_bins_of_equal_width() -> None:
    x = np.concatenate([np.zeros(30), np.full(5, 0.45), np.ones(40)])
    found = binned(x, 2 * x)
    assert [(b.x, b.y, b.nodes) for b in found] == [(0, 0, 30), (1, 2, 40)]
    assert binned(np.ones(50), np.ones(50)) == []


# -- re-weighting ----------------------------------------------------------------------------------------------------------
def operator(kind: str = "symmetric", seed: int = 0, n: int = 25) -> SparseOperator:
    pairs = drawn(n, 0.2, seed)[0]
    edges = np.concatenate([pairs, pairs[::-1]], axis=1)
    return normalised_adjacency(edges, n, kind=kind)  # type: ignore[arg-type]


class Predictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.maps(a * b).squeeze(1)


def states(n: int = 25) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["symmetric", "row"])
def test_weights_are_those_of_the_formula(kind: str) -> None:
    S, h, torch_net = operator(kind), states(), Predictor()
    q = edge_scores(S, h, torch_net)
    dense = torch.from_numpy(S.to_scipy().toarray())
    a = dense @ h
    got = torch.from_numpy(reweighted(S, q, 1.7).to_scipy().toarray())
    for i in range(25):
        near = dense[i].nonzero()[:, 0]
        with torch.no_grad():
            scores = torch.sigmoid(torch_net(a[i].expand(len(near), -1), h[near]))
        expected = dense[i, near] + 1.7 * dense[i].sum() * torch.softmax(scores, 0)
        assert (got[i, near] - expected).abs().max() < 1e-6
        # the mass that is added to a node's incoming edges
        assert float((got[i] - dense[i]).sum()) == pytest.approx(1.7 * float(dense[i].sum()), abs=1e-6)


def test_no_weight_no_change() -> None:
    S = operator()
    same = reweighted(S, edge_scores(S, states(), Predictor()), 0.0)
    assert (same.values == S.values).all() and (same.indices == S.indices).all()


def test_weights_do_not_compound() -> None:
    """The new weights are a function of S alone; S itself stays."""
    S = operator()
    kept = S.values.copy()
    first, second = (reweighted(S, edge_scores(S, states(), net), 1.0) for net in [Predictor()] * 2)
    assert (first.values == second.values).all() and (S.values == kept).all()


def test_no_gradient_reaches_the_encoder_or_the_predictor() -> None:
    S, net, encoder = operator(), Predictor(), nn.Linear(8, 8)
    h = encoder(states())
    q = edge_scores(S, h, net)
    assert not q.requires_grad
    (reweighted(S, q, 2.0) @ states().requires_grad_()).sum().backward()
    assert all(p.grad is None for p in [*net.parameters(), *encoder.parameters()])


def test_the_official_orientation_is_the_transpose() -> None:
    S = operator()
    q = edge_scores(S, states(), Predictor())
    added, turned = (reweighted(S, q, 1.0, transposed).to_scipy() - S.to_scipy() for transposed in (False, True))
    assert abs(turned - added.T).max() < 1e-7
    # its mass leaves a node instead of arriving there
    mass = S.to_scipy().sum(1)
    assert np.allclose(turned.sum(0), mass, atol=1e-6) and not np.allclose(turned.sum(1), mass, atol=1e-3)
    one_way = SparseOperator.from_scipy(np.triu(np.ones((3, 3), np.float32)))
    with pytest.raises(ValueError, match="lacks its reverse"):
        reweighted(one_way, torch.zeros(6), 1.0, transposed=True)


def test_softmax_of_rows() -> None:
    values, rows = torch.tensor([1.0, 2.0, 1000.0, 1001.0]), torch.tensor([0, 0, 2, 2])
    found = row_softmax(values, rows, 3)
    assert torch.allclose(found[:2], torch.softmax(values[:2], 0)) and torch.allclose(found[2:], torch.softmax(values[2:], 0))


def test_only_rows_that_are_asked_for_are_held() -> None:
    """One asked pair of leaves of a star: what is held does not grow with the square of the leaves."""
    import tracemalloc

    n = 3000
    star = joined(np.stack([np.zeros(n - 1, np.int64), np.arange(1, n)]), n)
    asked = joined(np.array([[1], [2]]), n)
    tracemalloc.start()
    found = topological_concentration(star, asked, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.defined.sum() == 2 and peak < 20e6
