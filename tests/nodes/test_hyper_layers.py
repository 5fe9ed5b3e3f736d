"""Hypergraph operators and what distillation needs: dense formulas, worked examples, limits, oracles."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import HypergraphConv

from latticework.layers.distillation import entropy, kl_divergence, kl_of_probabilities, perturb, soften
from latticework.layers.hypergraph import (
    HypergraphOperator,
    clique_expansion,
    edge_mean,
    incidence,
    receptive_field,
    with_singletons,
)
from latticework.nodes.hyper_baselines import HGNN, HNHN


def random_incidence(n: int, edges: int, seed: int, p: float = 0.3) -> sp.csr_array:
    """Without empty hyperedges; isolated vertices in hyperedges of their own."""
    rng = np.random.default_rng(seed)
    H = (rng.random((n, edges)) < p).astype(float)
    H[rng.integers(0, n, edges), np.arange(edges)] = 1
    return with_singletons(sp.csr_array(H))


def dense(H: sp.csr_array) -> np.ndarray:
    full = H.toarray()
    Dv, De = np.diag(full.sum(1) ** -0.5), np.diag(1 / full.sum(0))
    return Dv @ full @ De @ full.T @ Dv


@given(seed=st.integers(0, 10_000), n=st.integers(1, 25), edges=st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_the_operator_is_the_dense_formula(seed: int, n: int, edges: int) -> None:
    H = random_incidence(n, edges, seed)
    L = HypergraphOperator(H, dtype=np.float64)
    expected = dense(H)
    X = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3)))
    assert np.abs((L @ X).numpy() - expected @ X.numpy()).max() < 1e-12
    assert np.abs(L.to_scipy().toarray() - expected).max() < 1e-12
    assert np.abs(expected - expected.T).max() < 1e-12
    values = np.linalg.eigvalsh(expected)
    assert values.min() > -1e-9 and values.max() < 1 + 1e-9
    # float32 is what networks use
    assert np.abs((HypergraphOperator(H) @ X.float()).numpy() - expected @ X.numpy()).max() < 1e-5


def test_the_leading_eigenvector_of_a_connected_hypergraph() -> None:
    H = random_incidence(20, 15, 1)
    joined = sp.csgraph.connected_components(clique_expansion(H), directed=False)[0]
    assert joined == 1
    L = HypergraphOperator(H, dtype=np.float64)
    v = torch.from_numpy(L.degrees**0.5)[:, None]
    assert (L @ v - v).abs().max() < 1e-12
    assert (np.linalg.eigvalsh(L.to_scipy().toarray()) > 1 - 1e-9).sum() == 1


def test_hyperedges_of_two_vertices_are_a_lazy_graph() -> None:
    rng = np.random.default_rng(0)
    A = np.triu(rng.random((12, 12)) < 0.4, 1)
    A[0, 1:] = True  # nobody is alone
    u, v = np.nonzero(A)
    H = incidence(np.stack([np.concatenate([u, v]), np.tile(np.arange(len(u)), 2)]), 12, len(u))
    full = (A | A.T).astype(float)
    D = full.sum(1)
    expected = (full + np.diag(D)) / np.sqrt(np.outer(D, D)) / 2
    assert np.abs(HypergraphOperator(H, dtype=np.float64).to_scipy().toarray() - expected).max() < 1e-12


def test_worked_example() -> None:
    H = incidence(np.array([[0, 1, 0, 1, 2], [0, 0, 1, 1, 1]]), 3, 2)
    L = HypergraphOperator(H, dtype=np.float64).to_scipy().toarray()
    assert L[0, 0] == pytest.approx(5 / 12) and L[2, 2] == pytest.approx(1 / 3)
    assert L[0, 2] == pytest.approx(1 / (3 * np.sqrt(2))) == pytest.approx(0.2357, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_row_form_is_pyg_s_hypergraph_conv(seed: int) -> None:
    H = random_incidence(15, 10, seed)
    index = torch.from_numpy(np.stack(H.nonzero()))
    x = torch.randn(15, 6, generator=torch.Generator().manual_seed(seed))
    conv = HypergraphConv(6, 4)
    L = HypergraphOperator(H, "row")
    assert (conv(x, index) - (L @ conv.lin(x) + conv.bias)).abs().max() < 1e-5
    # and the symmetric form is its rescaling by vertex degrees
    root = torch.from_numpy(L.degrees**0.5).float()[:, None]
    bare = HypergraphConv(6, 4, bias=False)
    scaled = root * bare(x / root, index)
    assert (scaled - HypergraphOperator(H) @ bare.lin(x)).abs().max() < 1e-5


def test_hgnn_is_its_formula_and_counts_its_parameters() -> None:
    H = random_incidence(15, 10, 4)
    L, x = torch.from_numpy(dense(H)).float(), torch.randn(15, 6)
    net = HGNN(6, 3, hidden=8).eval()
    with torch.no_grad():
        net.first_bias.normal_()
        net.second_bias.normal_()
    hidden = torch.relu(L @ x @ net.first.weight.T + net.first_bias)
    expected = L @ hidden @ net.second.weight.T + net.second_bias
    assert (net(x, HypergraphOperator(H)) - expected).abs().max() < 1e-5
    assert (net.encode(x, HypergraphOperator(H)) - hidden).abs().max() < 1e-5
    assert sum(p.numel() for p in net.parameters()) == 6 * 8 + 8 + 8 * 3 + 3
    with pytest.raises(ValueError, match="x has 14 rows, the hypergraph 15 vertices"):
        net(x[:14], HypergraphOperator(H))


@pytest.mark.parametrize("kind", [HGNN, HNHN])
def test_relabelling_vertices_relabels_the_answers(kind: type) -> None:
    H, x = random_incidence(20, 12, 7), torch.randn(20, 5)
    order = np.random.default_rng(0).permutation(20)
    net = kind(5, 3, hidden=8).eval()
    form = "row" if kind is HNHN else "symmetric"
    plain = net(x, HypergraphOperator(H, form))
    turned = net(x[order], HypergraphOperator(sp.csr_array(H[order]), form))
    assert (turned - plain[order]).abs().max() < 1e-5


def test_gradients_pass_through_both_products() -> None:
    L = HypergraphOperator(random_incidence(8, 6, 2), dtype=np.float64)
    X = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda X: L @ X, (X,))


def test_isolated_vertices_get_their_own_before_degrees() -> None:
    H = incidence(np.array([[0, 1], [0, 0]]), 4, 1)
    with pytest.raises(ValueError, match="vertex 2 is in no hyperedge"):
        HypergraphOperator(H)
    full = with_singletons(H)
    assert full.shape == (4, 3) and np.asarray(full.sum(1)).tolist() == [1, 1, 1, 1]
    assert np.allclose(HypergraphOperator(full, dtype=np.float64).to_scipy().toarray()[2:, 2:], np.eye(2))
    assert with_singletons(full) is full
    with pytest.raises(ValueError, match="hyperedge 1 holds no vertex"):
        HypergraphOperator(incidence(np.array([[0, 1], [0, 0]]), 2, 2))
    with pytest.raises(ValueError, match="hyperedge 1 holds no vertex"):
        edge_mean(incidence(np.array([[0, 1], [0, 0]]), 2, 2))


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (np.array([[0, 5], [0, 0]]), "membership 1 names vertex 5, outside 0..2"),
        (np.array([[0, 1], [0, 4]]), "membership 1 names hyperedge 4"),
        (np.array([[0, -1], [0, 0]]), "vertex -1"),
        (np.zeros((3, 2), int), r"must be \[2, m\]"),
    ],
)
def test_memberships_out_of_range(index: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        incidence(index, 3, 2)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_means_cliques_and_reach_by_brute_force(seed: int) -> None:
    H = random_incidence(14, 9, seed, p=0.15)
    sets = [set(np.flatnonzero(column)) for column in H.toarray().T]
    x = np.random.default_rng(seed).standard_normal((14, 3))
    mean = edge_mean(H, np.float64) @ torch.from_numpy(x)
    assert np.abs(mean.numpy() - np.stack([x[sorted(s)].mean(0) for s in sets])).max() < 1e-12
    joined = np.array([[float(i != j and any(i in s and j in s for s in sets)) for j in range(14)] for i in range(14)])
    assert np.array_equal(clique_expansion(H).toarray(), joined)
    reach = {3, 5}
    steps = receptive_field(H, np.array([3, 5]), 2)
    for vertices, edges in steps:
        assert set(vertices.tolist()) == reach
        touched = {e for e, s in enumerate(sets) if s & reach}
        if len(edges):
            assert set(edges.tolist()) == touched
        reach = set().union(*(sets[e] for e in touched))
    assert len(steps) == 3


def test_what_is_too_dense_or_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="the clique expansion has 1e\\+04 pairs"):
        clique_expansion(sp.csr_array(np.ones((100, 1))), most=5000)
    with pytest.raises(ValueError, match="vertex 14 is outside"):
        receptive_field(random_incidence(14, 9, 0), np.array([14]))
    with pytest.raises(ValueError, match="symmetric or row"):
        HypergraphOperator(random_incidence(5, 3, 0), "column")  # type: ignore[arg-type]


# -- distillation --------------------------------------------------------------------------------------------------------
def chances(n: int = 6, c: int = 4, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.softmax(scale * torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), 1)


def test_entropy_and_kl_against_torch() -> None:
    p, q = chances(seed=1), chances(seed=2)
    assert torch.allclose(entropy(p), torch.distributions.Categorical(p).entropy())
    expected = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(1)
    assert torch.allclose(kl_divergence(p, q.log()), expected)
    assert (kl_divergence(p, q.log()) > 0).all() and kl_divergence(p, p.log()).abs().max() < 1e-12
    sure = torch.tensor([[1.0, 0.0]])
    assert entropy(sure).item() == 0 and kl_divergence(sure, torch.tensor([[0.5, 0.5]]).log()).item() == pytest.approx(np.log(2))
    assert entropy(torch.full((1, 8), 1 / 8)).item() == pytest.approx(np.log(8))


def test_the_divergence_is_least_at_the_target_and_the_official_form_is_not() -> None:
    target = chances(seed=3)
    logits = target.log().clone().requires_grad_()
    kl_divergence(target, torch.log_softmax(logits, 1)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-12
    logits = target.log().clone().requires_grad_()
    kl_of_probabilities(target, torch.log_softmax(logits, 1)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() > 0.1
    # its own minimiser is softmax(t): nearly uniform, in the same order
    least = torch.softmax(target, 1)
    logits = target.clone().requires_grad_()
    kl_of_probabilities(target, torch.log_softmax(logits, 1)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-12
    assert torch.equal(least.argsort(1), target.argsort(1)) and (least.max() / least.min()) < np.e
    # and it is what torch's log_target gives when it is fed probabilities
    q = chances(seed=4)
    fed = torch.nn.functional.kl_div(q.log(), target, reduction="none", log_target=True).sum(1)
    assert torch.allclose(kl_of_probabilities(target, q.log()), fed)


def test_a_temperature_divides_logits() -> None:
    z = torch.randn(5, 3, dtype=torch.float64)
    for tau in (0.5, 1.0, 3.0):
        assert torch.allclose(soften(torch.softmax(z, 1), tau), torch.softmax(z / tau, 1))
    with pytest.raises(ValueError, match="tau must be > 0"):
        soften(chances(), 0)


def test_perturbed_features() -> None:
    x = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).repeat(500, 1)
    made = perturb(x, 1.0, torch.Generator().manual_seed(0))
    assert ((made == 0) == (x == 0)).all()
    factor = made[x != 0] / x[x != 0]
    assert factor.mean().item() == pytest.approx(1, abs=0.15) and factor.std().item() == pytest.approx(1, abs=0.15)
    assert torch.equal(made, perturb(x, 1.0, torch.Generator().manual_seed(0)))
    assert torch.allclose(perturb(x, 0.5, torch.Generator().manual_seed(0)), made / 2)
    with pytest.raises(ValueError, match="noise must be > 0"):
        perturb(x, 0, torch.Generator())
