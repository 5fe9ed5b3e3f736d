"""FED-PUB: aggregation, masks, penalties and the functional embedding against their formulas; a fit that learns and explains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.layers.propagation import normalised_adjacency
from latticework.layers.sparse_features import SparseFeatures
from latticework.nodes.fed_pub import (
    FedPub,
    FedPubStrategy,
    MaskedGCN,
    Proxy,
    aggregate,
    distance_to,
    functional_embedding,
    l1_of,
    mixing_weights,
    proxy_graph,
    similarities,
)
from latticework.nodes.federated import Update, flat


def graph(n: int = 20, features: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    u, v = np.nonzero(np.triu(rng.random((n, n)) < 0.2, 1))
    x = torch.from_numpy(rng.normal(size=(n, features)).astype(np.float32))
    return x, torch.from_numpy(np.concatenate([np.stack([u, v]), np.stack([v, u])], axis=1))


# -- aggregation ---------------------------------------------------------------------------------------------------------
def test_worked_example_of_the_weights() -> None:
    S = np.array([[1, 0.9, 0.5], [0.9, 1, 0.2], [0.5, 0.2, 1]])
    assert np.allclose(mixing_weights(S, 3.0)[0], [0.5092, 0.3772, 0.1136], atol=1e-3)
    assert np.allclose(mixing_weights(S, weighting="cosine")[0], np.array([1, 0.9, 0.5]) / 2.4)
    unlike = np.array([[1, -0.999], [-0.999, 1]])
    assert np.allclose(mixing_weights(unlike, weighting="cosine"), np.eye(2))  # nobody counts below nothing


@given(st.integers(1, 8), st.floats(0, 50), st.integers(0, 10_000), st.sampled_from(["softmax", "cosine"]))
@settings(max_examples=60, deadline=None)
def test_weights_are_shares(k: int, tau: float, seed: int, weighting: Any) -> None:
    f = np.random.default_rng(seed).normal(size=(k, 5)) + 2
    alpha = mixing_weights(similarities(f), tau, weighting)
    assert np.allclose(alpha.sum(1), 1, atol=1e-6)
    if weighting == "softmax":  # nobody is liked more than oneself
        assert (alpha > 0).all() and (np.diag(alpha) >= alpha.max(1) - 1e-12).all()  # equal where tau is next to nothing
    order = np.random.default_rng(seed + 1).permutation(k)
    assert np.allclose(mixing_weights(similarities(f[order]), tau, weighting), alpha[order][:, order])


def test_no_sharpness_and_equal_embeddings_are_the_plain_mean() -> None:
    theta = torch.randn(5, 40, dtype=torch.float64)
    f = torch.randn(5, 7)
    for alpha in (mixing_weights(similarities(f), 0.0), mixing_weights(similarities(f[:1].repeat(5, 1)), 9.0)):
        assert torch.allclose(aggregate(alpha, theta), theta.mean(0).expand(5, -1), atol=1e-7)


def test_great_sharpness_leaves_everyone_alone() -> None:
    theta = torch.randn(4, 30, dtype=torch.float64)
    alpha = mixing_weights(similarities(torch.randn(4, 7)), 1e4)
    assert np.array_equal(np.diag(alpha), np.ones(4)) and torch.equal(aggregate(alpha, theta), theta)


def test_a_zero_embedding_is_like_nobody() -> None:
    S = similarities(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    assert np.array_equal(S[0], np.zeros(3)) and S[1, 2] == pytest.approx(math.sqrt(0.5))
    assert np.allclose(mixing_weights(S, weighting="cosine")[0], 1 / 3)
    strategy = FedPubStrategy(torch.zeros(3))
    strategy.receive({"a": Update(torch.ones(3), torch.zeros(2), 1, 0, 0), "b": Update(torch.ones(3), torch.ones(2), 1, 0, 0)})
    assert any("the functional embedding of a is zero" in note for note in strategy.notes)


def test_only_participants_are_averaged() -> None:
    strategy = FedPubStrategy(torch.zeros(2), tau=0.0)
    f = torch.ones(3)
    strategy.receive({"a": Update(torch.tensor([2.0, 0.0]), f, 1, 0, 0), "b": Update(torch.tensor([4.0, 2.0]), f, 1, 0, 0)})
    assert strategy.model_for("a").tolist() == [3, 1]
    assert strategy.model_for("c").tolist() == [3, 1]  # no model of its own yet: the mean of the newest round
    strategy.receive({"c": Update(torch.tensor([9.0, 9.0]), f, 1, 0, 0)})
    assert strategy.model_for("c").tolist() == [9, 9] and strategy.model_for("a").tolist() == [3, 1]


@pytest.mark.parametrize("bad", ["theta", "embedding", "size", "none"])
def test_what_is_not_finite_is_dropped_and_said(bad: str) -> None:
    good = Update(torch.tensor([1.0, 2.0]), torch.ones(3), 1, 0, 0)
    wrong = {
        "theta": good._replace(theta=torch.tensor([math.nan, 1.0])), "embedding": good._replace(embedding=torch.tensor([math.inf, 0, 0])),
        "size": good._replace(theta=torch.ones(5)), "none": good._replace(embedding=None),
    }[bad]  # fmt: skip
    strategy = FedPubStrategy(torch.zeros(2))
    assert strategy.receive({"a": good, "b": wrong, "c": good._replace(theta=torch.tensor([3.0, 4.0]))}) == ["a", "c"]
    assert strategy.model_for("a").tolist() == [2, 3] and "b sent" in strategy.notes[0] and "dropped" in strategy.notes[0]
    assert strategy.receive({"b": wrong}) == [] and strategy.model_for("a").tolist() == [2, 3]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="tau must be >= 0"):
        mixing_weights(np.eye(2), -1.0)
    with pytest.raises(ValueError, match="K >= 1"):
        mixing_weights(np.zeros((0, 0)))
    with pytest.raises(ValueError, match="weighting must be"):
        mixing_weights(np.eye(2), 1.0, "other")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="tau"):
        entry_of("fed-pub(tau=-1)")
    with pytest.raises(ValueError, match="the network reads 4 features"):
        functional_embedding(MaskedGCN(4, 2), proxy_graph(5, 0))


# -- the network ---------------------------------------------------------------------------------------------------------
def test_masks_of_one_are_a_plain_gcn() -> None:
    x, edges = graph()
    net = MaskedGCN(6, 3, hidden=8).eval()
    first, second = GCNConv(6, 8), GCNConv(8, 8)
    with torch.no_grad():
        for conv, layer in ((first, net.first), (second, net.second)):
            conv.lin.weight.copy_(layer.weight)
            layer.bias.uniform_(-1, 1)
            assert conv.bias is not None
            conv.bias.copy_(layer.bias)
        expected = F.linear(F.relu(second(F.relu(first(x, edges)), edges)), net.head.weight, net.head.bias)
        S = normalised_adjacency(edges, len(x))
        assert torch.allclose(net(x, S), expected, atol=1e-5)
        assert torch.allclose(net(SparseFeatures.from_dense(x), S), expected, atol=1e-5)
        assert torch.allclose(net(x, S.to_torch()), expected, atol=1e-5)


def test_a_small_mask_counts_in_training_alone() -> None:
    x, edges = graph()
    S = normalised_adjacency(edges, len(x))
    net = MaskedGCN(6, 3, hidden=8, dropout=0.0, threshold=1e-3)
    with torch.no_grad():
        assert net.first.mask is not None
        net.first.mask[2, 3] = -0.5e-3
    without = MaskedGCN(6, 3, hidden=8, dropout=0.0)
    without.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert without.first.mask is not None
        without.first.mask[2, 3] = 0
    assert torch.equal(net.eval()(x, S), without.eval()(x, S))
    assert not torch.equal(net.train()(x, S), without.train()(x, S))
    assert net.active_entries() == sum(layer.weight.numel() for layer in net.layers) - 1 and net.sparsity() > 0
    plain = MaskedGCN(6, 3, hidden=8, mask=False).eval()
    plain.load_state_dict({n: v for n, v in net.evaluated().items()})
    assert torch.equal(plain(x, S), net.eval()(x, S))


def test_gradient_of_the_penalties() -> None:
    torch.manual_seed(0)
    x, edges = graph()
    S = normalised_adjacency(edges, len(x), dtype=torch.float64)
    net = MaskedGCN(6, 3, hidden=4, dropout=0.0).double()
    for p in net.parameters():
        torch.nn.init.normal_(p)
    x, y = x.double(), torch.arange(len(x)) % 3
    received = {n: p.detach() + 0.3 * torch.randn_like(p) for n, p in net.shared().items()}
    for method in (FedPub(l1=1e-2, l2=0.5), FedPub(l1=1e-2, l2=0.5, proximal="squared")):

        def loss(round: int, method: FedPub = method) -> torch.Tensor:
            return F.cross_entropy(net(x, S), y) + method.penalty(net, received, round)

        for p, at in ((net.first.mask, (1, 2)), (net.second.weight, (0, 3)), (net.head.bias, (1,))):
            assert p is not None
            exact = torch.autograd.grad(loss(1), p)[0][at]
            with torch.no_grad():
                p[at] += 1e-6
                high = loss(1)
                p[at] -= 2e-6
                low = loss(1)
                p[at] += 1e-6
            assert float(exact) == pytest.approx(float((high - low) / 2e-6), abs=1e-6)
        free = torch.autograd.grad(F.cross_entropy(net(x, S), y), net.first.mask)[0]  # type: ignore[arg-type]
        mask = net.first.mask
        assert mask is not None
        assert torch.allclose(torch.autograd.grad(loss(1), mask)[0] - free, 1e-2 * mask.detach().sign())
        # the first round has no proximal term
        assert float(loss(0)) == pytest.approx(float(F.cross_entropy(net(x, S), y) + 1e-2 * l1_of(net.masks())))


def test_the_norm_is_one_for_each_tensor() -> None:
    a, b = [torch.tensor([3.0, 4.0]), torch.tensor([[2.0]])], [torch.zeros(2), torch.zeros(1, 1)]
    assert float(distance_to(a, b)) == 7 and float(distance_to(a, b, squared=True)) == 29
    at = torch.zeros(2, requires_grad=True)
    distance_to([at], [torch.zeros(2)]).backward()
    assert at.grad is not None and at.grad.tolist() == [0, 0]


def test_what_travels_holds_no_mask() -> None:
    net = MaskedGCN(6, 3, hidden=8)
    assert set(net.shared()) == {f"{layer}.{kind}" for layer in ("first", "second", "head") for kind in ("weight", "bias")}
    assert len(flat(net.shared())) == 6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    assert all(float(m.min()) == 1 == float(m.max()) for m in net.masks())


# -- the functional embedding --------------------------------------------------------------------------------------------
def test_the_random_graph_is_blocks_and_the_same_for_all() -> None:
    proxy, again = proxy_graph(7, 3), proxy_graph(7, 3)
    assert torch.equal(proxy.x, again.x) and proxy.x.shape == (500, 7)
    A = proxy.S.to_scipy()  # type: ignore[union-attr]
    assert (abs(A - again.S.to_scipy())).max() == 0  # type: ignore[union-attr]
    u, v = A.nonzero()
    assert (u // 100 == v // 100).all()
    density = ((u != v).sum() / (5 * 100 * 99), float(proxy.x.mean()), float(proxy.x.std()))
    assert density == pytest.approx((0.1, 0, 1), abs=0.02)
    assert not torch.equal(proxy.x, proxy_graph(7, 4).x)


def test_the_embedding_is_the_mean_hidden_state() -> None:
    net = MaskedGCN(7, 3, hidden=5, dropout=0.9)
    proxy = proxy_graph(7, 0, blocks=2, size=10, p=0.3)
    net.train()
    found = functional_embedding(net, proxy)
    assert net.training and torch.equal(found, functional_embedding(net, proxy))  # no dropout in it
    S = torch.from_numpy(proxy.S.to_scipy().toarray()).float()  # type: ignore[union-attr]
    h = S @ F.relu(S @ proxy.x @ net.first.weight.T + net.first.bias) @ net.second.weight.T + net.second.bias
    assert torch.allclose(found, h.mean(0), atol=1e-5)
    assert bool((found < 0).any())  # before the ReLU
    assert isinstance(proxy, Proxy)


def test_likeness_is_seen_without_the_data() -> None:
    """Two kinds of clients whose labels are swapped: their networks are told apart by the random graph alone."""
    x, edges = graph(60, 5, seed=2)
    S, proxy = normalised_adjacency(edges, 60), proxy_graph(5, 0, blocks=2, size=30)
    y = (x[:, 0] > 0).long()
    embeddings = []
    for k in range(4):
        torch.manual_seed(7)  # all start alike
        net = MaskedGCN(5, 2, hidden=16, dropout=0.0)
        with torch.random.fork_rng():
            optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
            for _ in range(80):
                optimiser.zero_grad()
                F.cross_entropy(net(x, S), y if k % 2 else 1 - y).backward()
                optimiser.step()
        embeddings.append(functional_embedding(net, proxy))
    S_ = similarities(torch.stack(embeddings))
    assert S_[0, 2] > S_[0, 1] and S_[1, 3] > S_[1, 2]
