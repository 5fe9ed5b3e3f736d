"""LAGNN's science: the VAE's loss by hand, pairs against a dense oracle, the choice of the generator, consistency."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from latticework.layers.propagation import adjacency, normalised_adjacency
from latticework.layers.sparse_features import SparseFeatures
from latticework.nodes.lagnn import cvae as science
from latticework.nodes.lagnn.consistency import consistency, sharpen
from latticework.nodes.lagnn.cvae import (
    NeighbourCVAE,
    Reconstruction,
    ReferenceGCN,
    acquisition,
    cvae_loss,
    neighbour_pairs,
    receptive_field,
    row_normalise,
)  # fmt: skip
from latticework.nodes.lagnn.generator import Sampler, pair_batches


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bags(n: int, f: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(n, f, generator=torch.Generator().manual_seed(seed)) < 0.3).double()


def made(features: int = 5, latent: int = 3, hidden: int = 4, variant: str = "bernoulli") -> NeighbourCVAE:
    torch.manual_seed(1)
    return NeighbourCVAE(features, latent, hidden, variant).double()  # type: ignore[arg-type]


# -- the VAE ----------------------------------------------------------------------------------------------------------


def test_loss_of_three_pairs_by_hand() -> None:
    """Every number once more in numpy, from the joined inputs on."""
    net, x, c, eps = made(), bags(3, 5, 1), bags(3, 5, 2), draw(3, 3, seed=3)
    p = {k: v.detach().numpy() for k, v in net.named_parameters()}
    X, C = x.numpy(), c.numpy()
    encoder = np.concatenate([p["from_neighbour.weight"], p["from_centre.weight"]], axis=1)
    h = np.maximum(np.concatenate([X, C], axis=1) @ encoder.T + p["from_centre.bias"], 0)
    mu = h @ p["mean.weight"].T + p["mean.bias"]
    logvar = h @ p["log_variance.weight"].T + p["log_variance.bias"]
    z = mu + np.exp(0.5 * logvar) * eps.numpy()
    decoder = np.concatenate([p["from_noise.weight"], p["from_condition.weight"]], axis=1)
    g = np.maximum(np.concatenate([z, C], axis=1) @ decoder.T + p["from_condition.bias"], 0)
    out = 1 / (1 + np.exp(-(g @ p["output.weight"].T + p["output.bias"])))
    loss = 0.0
    for b in range(3):
        for k in range(5):
            loss -= X[b, k] * np.log(out[b, k]) + (1 - X[b, k]) * np.log(1 - out[b, k])
        for k in range(3):
            loss -= 0.5 * (1 + logvar[b, k] - mu[b, k] ** 2 - np.exp(logvar[b, k]))
    assert float(cvae_loss(net(x, c, eps), x).detach()) == pytest.approx(loss / 3, abs=1e-9)
    assert np.allclose(net.sample(torch.from_numpy(z), net.condition(c)).numpy(), out, atol=1e-12)


def test_divergence_of_known_heads() -> None:
    """Outputs that hit x leave the divergence alone: 0 at mu = log sigma^2 = 0, 0.5 at mu = 1 in one dimension."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    sure = torch.tensor([[1e3, -1e3]], dtype=torch.float64)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert float(cvae_loss(Reconstruction(sure, zero, zero), x)) == 0
    assert float(cvae_loss(Reconstruction(sure, one, zero), x)) == pytest.approx(0.5, abs=1e-12)
    # and of squares
    assert float(cvae_loss(Reconstruction(x + 2, zero, zero), x, "gaussian")) == pytest.approx(8)


def test_gradient_of_the_log_variance_head() -> None:
    net, x, c, eps = made(), bags(4, 5, 1), bags(4, 5, 2), draw(4, 3, seed=3)
    weight = net.log_variance.weight
    cvae_loss(net(x, c, eps), x).backward()
    assert weight.grad is not None
    for at in ((0, 0), (1, 2), (2, 3)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[at] += sign * 1e-5
                values.append(float(cvae_loss(net(x, c, eps), x)))
                weight[at] -= sign * 1e-5
        assert float(weight.grad[at]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-7)


def test_maps_start_as_one_map_of_the_joined_input() -> None:
    torch.manual_seed(0)
    net = NeighbourCVAE(300, latent=100, hidden=64)
    for layers, joined in (((net.from_neighbour, net.from_centre), 600), ((net.from_noise, net.from_condition), 400)):
        for layer in layers:
            bound = joined**-0.5
            assert float(layer.weight.detach().abs().max()) <= bound
            assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)
            assert layer.bias is None or float(layer.bias.detach().abs().max()) <= bound


def test_condition_of_sparse_features_is_the_same() -> None:
    net, c = made(30).float(), bags(20, 30).float()
    assert torch.allclose(net.condition(SparseFeatures.from_dense(c)), net.condition(c), atol=1e-5)


def test_large_variant_keeps_to_the_scale_of_the_data() -> None:
    x = draw(50, 4).float() * torch.tensor([1.0, 10, 100, 0]) + torch.tensor([0.0, 5, -300, 7])
    net = made(4, variant="gaussian").float()
    net.fit_scale(x)
    scaled = net.scaled(x)
    assert float(scaled.abs().max()) == pytest.approx(1, abs=1e-5) and float(scaled[:, 3].abs().max()) == 0
    net.eval()
    sample = net.sample(torch.randn(50, 3) * 100, net.condition(scaled))
    low, high = x.amin(0) - 1e-3, x.amax(0) + 1e-3
    assert bool((sample[:, :3] >= low[:3]).all()) and bool((sample[:, :3] <= high[:3]).all())
    assert float((sample[:, 3] - 7).abs().max()) <= 1  # a column of one value has no scale: it is moved to 0 only
    # features that lie in [-1, 1] already stay as they are
    small = made(4, variant="gaussian").float()
    small.fit_scale(scaled * 0.5)
    assert torch.equal(small.scaled(scaled), scaled)


def test_large_variant_has_the_official_layers() -> None:
    net = made(4, variant="gaussian")
    assert [type(m).__name__ for m in net.norms] == ["BatchNorm1d"] * 3
    out = net(draw(6, 4, seed=1), draw(6, 4, seed=2), draw(6, 3)).output
    assert float(out.detach().abs().max()) < 1
    assert all(isinstance(m, torch.nn.Identity) for m in made().norms)


# -- pairs ------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), n=st.integers(1, 12), m=st.integers(0, 40))
@settings(deadline=None, max_examples=40)
def test_pairs_equal_the_dense_oracle(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, n, (2, m))  # repeats, loops and nodes without an edge among them
    weight = rng.integers(0, 2, m).astype(float)
    A = np.zeros((n, n))
    np.add.at(A, (edges[0], edges[1]), weight)
    joined = np.maximum(A, A.T) > 0
    expected = Counter((i, j) for i in range(n) for j in range(n) if joined[i, j])
    found = neighbour_pairs(adjacency(edges, n, weight, undirected=True))
    assert Counter(map(tuple, found.T.tolist())) == expected


def test_an_entry_stored_twice_is_one_pair() -> None:
    A = sp.coo_array((np.ones(3), ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    assert neighbour_pairs(A).tolist() == [[0, 1], [1, 0]]


@given(pairs=st.integers(1, 60), size=st.integers(2, 20), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_batches_hold_each_pair_once(pairs: int, size: int, seed: int) -> None:
    batches = pair_batches(pairs, size, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat(batches).tolist()) == list(range(pairs))
    assert all(2 <= len(b) <= size + 1 for b in batches) or pairs == 1


def test_rows_of_zeros_stay() -> None:
    x = torch.tensor([[0.0, 0, 0], [1, 3, 0]])
    assert row_normalise(x).tolist() == [[0, 0, 0], [0.25, 0.75, 0]]


# -- choosing the generator -------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), passes=st.integers(1, 6), nodes=st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_acquisition_is_the_gap_of_jensen(seed: int, passes: int, nodes: int) -> None:
    logits = 3 * draw(passes, nodes, 4, seed=seed)
    y = torch.arange(nodes) % 4
    p = torch.softmax(logits, -1)
    of_mean = np.mean([-np.log(float(p[:, i, y[i]].mean())) for i in range(nodes)])
    mean_of = np.mean([[-np.log(float(p[m, i, y[i]])) for i in range(nodes)] for m in range(passes)])
    found = float(acquisition(logits, y))
    assert found == pytest.approx(of_mean - mean_of, abs=1e-10) and found <= 1e-12
    assert float(acquisition(logits[:1].expand(7, -1, -1), y)) == pytest.approx(0, abs=1e-12)


def small_graph(n: int = 40) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(5)
    return bags(n, 12, 4).float(), rng.integers(0, n, (2, 2 * n))


def test_field_answers_as_the_whole_graph() -> None:
    x, edges = small_graph()
    S = normalised_adjacency(edges, 40, undirected=True)
    torch.manual_seed(0)
    net = ReferenceGCN(12, 3).eval()
    whole = receptive_field(S, torch.arange(40))
    asked = torch.tensor([7, 0, 31])
    field = receptive_field(S, asked)
    assert len(field.nodes) < 40 and len(whole.nodes) == 40
    dense = torch.from_numpy(S.to_scipy().toarray())
    expected = dense @ F.relu(dense @ net.first(x) + net.first_bias) @ net.second.weight.T + net.second_bias
    assert torch.allclose(net(x, whole)[0], expected, atol=1e-5)
    assert torch.allclose(net(x[field.nodes], field)[0], expected[asked], atol=1e-5)


def test_passes_differ_in_training_mode_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, edges = small_graph()
    field = receptive_field(normalised_adjacency(edges, 40, undirected=True), torch.arange(10))
    y = torch.arange(10) % 3
    torch.manual_seed(0)
    net = ReferenceGCN(12, 3)
    x = x[field.nodes]
    for most in (1 << 24, 2 * x.numel(), 7 * x.shape[1]):  # all at once, in blocks of two, and a few rows at a time
        monkeypatch.setattr(science, "AT_ONCE_ON_A_CPU", most)
        with torch.no_grad():
            logits = net.train()(x, field, 5)
            still = net.eval()(x, field, 5)
        torch.testing.assert_close(still, net(x, field, 5).detach())  # the same where a gradient is asked for, in one piece
        assert logits.shape == (5, 10, 3)
        assert not torch.equal(logits[0], logits[1]) and float(acquisition(logits, y)) < 0
    still = net.eval()(x, field, 5).detach()
    assert torch.equal(still[0], still[4]) and float(acquisition(still, y)) == pytest.approx(0, abs=1e-6)


def test_masks_keep_the_mean() -> None:
    net = ReferenceGCN(6, 2, dropout=0.3).train()
    torch.manual_seed(0)
    dropped = net._dropped(torch.ones(50, 6), 400)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    assert float(dropped.mean((0, 2)).std()) < 0.05 and float(dropped.mean((1, 2)).std()) < 0.06


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_samples_are_fresh_and_repeat_under_one_seed() -> None:
    net, x = made(12).float(), bags(30, 12).float()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    sampler = Sampler(net, x, normalise=True)
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    a, b, again = sampler(sampler.noise(first)), sampler(sampler.noise(first)), sampler(sampler.noise(second))
    assert not torch.equal(a, b) and torch.equal(a, again)
    assert not a.requires_grad and torch.allclose(a.sum(1), torch.ones(30), atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    plain = Sampler(net, x, normalise=False)(sampler.noise(torch.Generator().manual_seed(3)))
    assert torch.allclose(row_normalise(plain), a) and bool(((plain > 0) & (plain < 1)).all())


# -- consistency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 3.0])
def test_worked_example_of_two_views(temperature: float) -> None:
    p = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    assert torch.allclose(sharpen(p.mean(0), temperature), torch.full((1, 2), 0.5, dtype=torch.float64))
    assert float(consistency(p, temperature)) == pytest.approx(0.5, abs=1e-12)


@given(seed=st.integers(0, 10_000), s=st.integers(1, 5), temperature=st.floats(0.1, 4))
@settings(deadline=None, max_examples=30)
def test_consistency_equals_its_loops(seed: int, s: int, temperature: float) -> None:
    p = torch.softmax(2 * draw(s, 6, 3, seed=seed), -1)
    mean = p.mean(0) ** (1 / temperature)
    target = mean / mean.sum(1, keepdim=True)
    expected = np.mean([[float(((p[k, i] - target[i]) ** 2).sum()) for i in range(6)] for k in range(s)])
    assert float(consistency(p, temperature)) == pytest.approx(expected, abs=1e-10)
    assert torch.allclose(sharpen(p, temperature).sum(-1), torch.ones(s, 6, dtype=torch.float64))


def test_limits_of_the_sharpened_mean() -> None:
    p = torch.softmax(draw(1, 8, 4), -1)
    assert float(consistency(p, 1.0)) == pytest.approx(0, abs=1e-20)
    assert torch.allclose(sharpen(p[0], 1e-4), F.one_hot(p[0].argmax(1), 4).double())
    assert torch.allclose(sharpen(p, 1.0), p)


def test_the_target_carries_no_gradient() -> None:
    logits = draw(3, 5, 4).requires_grad_()
    p = torch.softmax(logits, -1)
    assert not sharpen(p.mean(0), 0.5).requires_grad
    (found,) = torch.autograd.grad(consistency(p, 0.5), logits)
    fixed = sharpen(p.mean(0), 0.5)
    (expected,) = torch.autograd.grad(((torch.softmax(logits, -1) - fixed) ** 2).sum(-1).mean(), logits)
    assert torch.equal(found, expected) and float(found.abs().sum()) > 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="temperature must be > 0"):
        sharpen(torch.ones(2, 2) / 2, 0.0)
    with pytest.raises(ValueError, match="s >= 1"):
        consistency(torch.empty(0, 3, 2))
    with pytest.raises(ValueError, match="variant"):
        NeighbourCVAE(3, variant="poisson")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=">= 1"):
        NeighbourCVAE(3, latent=0)
    with pytest.raises(ValueError, match="passes"):
        field = receptive_field(normalised_adjacency(np.array([[0], [1]]), 2), torch.arange(2))
        ReferenceGCN(3, 2)(torch.ones(2, 3), field, 0)
