"""MEOW and AdaMEOW: meta-path graphs, weights of negatives, losses and the encoder against brute force and limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from latticework.layers.contrastive import block_sum, weighted_info_nce
from latticework.layers.propagation import SparseOperator
from latticework.layers.sparse_features import SparseFeatures
from latticework.nodes.meow import MEOW, SharedGCN, SoftWeights, ViewAttention, Views, push
from latticework.nodes.meow.losses import Clustering, cluster_weights, concentration, prototype_loss, spherical_kmeans
from latticework.nodes.meow.views import (
    masked_features,
    masked_graph,
    mean_graph,
    nearest,
    operator,
    path_graph,
    pathsim,
    reached,
)


def links(n: int, m: int, p: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, m)) < p).astype(np.int64)


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=-1)


# -- meta-path graphs ------------------------------------------------------------------------------------------------------
def test_worked_example_of_pathsim() -> None:
    assert pathsim(np.array([[2, 1], [1, 4]])).toarray()[0, 1] == pytest.approx(1 / 3, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_pathsim_and_the_cut_against_brute_force(seed: int) -> None:
    B = links(30, 12, 0.2, seed)
    B[7] = 0  # a node without any path
    C = B @ B.T
    near = pathsim(sp.csr_array(C)).toarray()
    for i, j in itertools.product(range(30), repeat=2):
        expected = 2 * C[i, j] / (C[i, i] + C[j, j]) if C[i, j] else 0.0
        assert near[i, j] == pytest.approx(expected, abs=1e-15)
    kept = nearest(sp.csr_array(C), 4).toarray()
    for i in range(30):
        best = sorted((-near[i, j], j) for j in range(30) if C[i, j])[:4]
        row = np.zeros(30)
        for _, j in best:
            row[j] = C[i, j]
        if not C[i].any():
            row[i] = 1
        assert (kept[i] == row).all()


def test_ties_go_to_the_smaller_index() -> None:
    C = np.ones((5, 5), np.int64)
    assert (nearest(C, 2).toarray() == np.array([[1, 1, 0, 0, 0]] * 5)).all()


@given(seed=st.integers(0, 10_000), most=st.integers(1, 12))
@settings(deadline=None, max_examples=25)
def test_the_cut_keeps_counts_and_every_node(seed: int, most: int) -> None:
    B = links(12, 5, 0.3, seed)
    C = B @ B.T
    kept = nearest(sp.csr_array(C), most)
    sizes = np.diff(kept.indptr)
    assert (sizes == np.maximum(np.minimum((C > 0).sum(1), most), 1)).all()
    dense = kept.toarray()
    alone = C.sum(1) == 0
    assert (dense[alone] == np.eye(12)[alone]).all()
    assert ((dense == C) | (dense == 0))[~alone].all()


def test_normalisation_is_by_row_sums_and_may_be_transposed() -> None:
    kept = nearest(links(20, 8, 0.3, 3) @ links(20, 8, 0.3, 3).T, 5)
    K, d = kept.toarray(), kept.toarray().sum(1)
    expected = K / np.sqrt(np.outer(d, d))
    assert np.abs(path_graph(kept).toarray() - expected).max() < 1e-14
    assert np.abs(path_graph(kept, transposed=True).toarray() - expected.T).max() < 1e-14
    assert np.abs(expected - expected.T).max() > 0.01  # the cut is not symmetric
    other = path_graph(nearest(links(20, 9, 0.3, 4) @ links(20, 9, 0.3, 4).T, 5))
    assert np.abs(mean_graph([path_graph(kept), other]).toarray() - (expected + other.toarray()) / 2).max() < 1e-14


def test_the_masked_twin_lacks_its_share_and_no_more() -> None:
    kept = nearest(links(40, 10, 0.3, 5) @ links(40, 10, 0.3, 5).T, 9)
    off = kept.toarray() * (1 - np.eye(40))
    m = int((off > 0).sum())
    twin = masked_graph(kept, 0.3, np.random.default_rng(0)).toarray()
    rest = twin * (1 - np.eye(40))
    assert (np.diag(twin) == 1).all() and set(np.unique(rest)) == {0.0, 1.0}
    assert (rest <= (off > 0)).all() and int(rest.sum()) == m - int(0.3 * m)
    whole = masked_graph(kept, 0.0, np.random.default_rng(0)).toarray()
    assert ((whole > 0) == ((off > 0) | np.eye(40, dtype=bool))).all()
    other = masked_graph(kept, 0.3, np.random.default_rng(1)).toarray()
    assert (other != twin).any()


def test_masked_features_lack_their_share() -> None:
    x = sp.random_array((30, 20), density=0.2, rng=np.random.default_rng(0), format="csr")
    found = masked_features(x, 0.25, np.random.default_rng(1)).toarray()
    assert (found > 0).sum() == x.nnz - int(0.25 * x.nnz)
    assert ((found == 0) | np.isclose(found, x.toarray())).all()


def test_context_means_against_brute_force() -> None:
    AP, PC = links(9, 14, 0.15, 0), links(14, 4, 0.3, 1)
    means = reached([AP, PC, PC.T, AP.T])  # author, paper, conference, paper, author: three inner places
    assert [M.shape for M in means] == [(9, 14), (9, 4), (9, 14)]
    for a in range(9):
        papers = {p for p in range(14) if AP[a, p]}
        venues = {c for p in papers for c in range(4) if PC[p, c]}
        further = {p for c in venues for p in range(14) if PC[p, c]}
        for M, nodes in zip(means, (papers, venues, further), strict=True):
            row = np.zeros(M.shape[1])
            row[sorted(nodes)] = 1 / max(len(nodes), 1)
            assert np.abs(M.toarray()[a] - row).max() < 1e-7
    assert len(reached([AP, AP.T])) == 1


def test_a_nearly_full_matrix_becomes_dense_and_multiplies_alike() -> None:
    sparse, full = (sp.csr_array(links(20, 20, p, 6).astype(float)) for p in (0.1, 0.6))
    assert isinstance(operator(sparse), SparseOperator) and isinstance(operator(full), torch.Tensor)
    x = torch.randn(20, 3)
    for M in (sparse, full):
        assert (operator(M) @ x - torch.from_numpy(M.toarray()).float() @ x).abs().max() < 1e-5


# -- weights of negatives ----------------------------------------------------------------------------------------------------
def test_weights_are_symmetric_whole_numbers_without_diagonal() -> None:
    a = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (3, 25)))
    w = cluster_weights(a)(torch.arange(25))
    assert torch.equal(w, w.T) and not w.diagonal().any()
    assert set(w.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    for i, j in itertools.product(range(25), repeat=2):
        assert w[i, j] == 3 - sum(int(a[t, i] == a[t, j]) for t in range(3))
    assert torch.equal(cluster_weights(a)(torch.tensor([4, 2])), w[[4, 2]])


def test_one_cluster_each_is_info_nce_without_the_positive() -> None:
    c, f = unit(12, 5), unit(12, 5, seed=1)
    w = cluster_weights(torch.arange(12)[None])
    assert torch.equal(w(torch.arange(12)), 1 - torch.eye(12))
    s = c @ f.T / 0.4
    expected = (torch.logsumexp(s.masked_fill(torch.eye(12, dtype=torch.bool), -math.inf), 1) - s.diagonal()).mean()
    assert (weighted_info_nce(c, f, 0.4, w) - expected).abs() < 1e-12


def test_without_weights_it_is_cross_entropy() -> None:
    c, f = unit(12, 5), unit(12, 5, seed=1)
    expected = F.cross_entropy(c @ f.T / 0.3, torch.arange(12))
    assert (weighted_info_nce(c, f, 0.3) - expected).abs() < 1e-12


def test_all_in_one_cluster_is_an_error() -> None:
    c = unit(6, 3)
    together = torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="row 0 has no negative"):
        weighted_info_nce(c, c, 0.4, cluster_weights(together))
    one_left = torch.tensor([[0, 0, 0, 0, 0, 1]])
    assert torch.isfinite(weighted_info_nce(c, c, 0.4, cluster_weights(one_left)))


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_bad_temperature(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be > 0"):
        weighted_info_nce(unit(4, 2), unit(4, 2), tau)


def test_views_of_two_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        weighted_info_nce(unit(4, 2), unit(5, 2), 0.4)


@pytest.mark.parametrize("tau", [0.4, 0.05])
def test_the_push_on_a_negative_is_its_weight_times_its_share(tau: float) -> None:
    """``dL/d(c_i . f_j) = w_ij e^(s_ij/tau) / (tau sum_l w_il e^(s_il/tau))`` for j other than i, by autograd."""
    n = 20
    a = torch.from_numpy(np.random.default_rng(2).integers(0, 3, (2, n)))
    w = cluster_weights(a)(torch.arange(n)).double()
    S = (unit(n, 6) @ unit(n, 6, seed=1).T).requires_grad_()
    # similarities as leaves: anchors S, others the identity, so that <anchors_i, others_j> = S_ij
    loss = weighted_info_nce(S, torch.eye(n, dtype=torch.float64), tau, cluster_weights(a)) * n
    loss.backward()
    mass = w * torch.exp(S.detach() / tau)
    expected = mass / (tau * mass.sum(1, keepdim=True))
    assert (push(S.detach(), tau, w) - expected).abs().max() < 1e-10
    off = ~torch.eye(n, dtype=torch.bool)
    assert (S.grad - expected)[off].abs().max() < 1e-8
    assert (S.grad.diagonal() + 1 / tau).abs().max() < 1e-8  # w_ii = 0: the positive is pulled, never pushed
    # without weights the nearest negative is pushed most, whatever it is
    S2 = S.detach().clone().requires_grad_()
    (weighted_info_nce(S2, torch.eye(n, dtype=torch.float64), tau) * n).backward()
    hidden = S.detach().masked_fill(~off, -2)
    assert torch.equal(S2.grad.masked_fill(~off, -2).argmax(1), hidden.argmax(1))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_change_nothing(block: int) -> None:
    a = torch.from_numpy(np.random.default_rng(3).integers(0, 5, (2, 30)))
    rows = torch.tensor([3, 29, 8, 8])
    whole: list[torch.Tensor] = []
    for size in (1000, block):
        c, f = unit(30, 4).requires_grad_(), unit(30, 4, seed=1).requires_grad_()
        loss = weighted_info_nce(c, f, 0.2, cluster_weights(a), block=size)
        some = weighted_info_nce(c, f, 0.2, cluster_weights(a), block=size, rows=rows)
        (3 * loss + some).backward()
        whole += [loss.detach(), some.detach(), c.grad, f.grad]
    for x, y in zip(whole[:4], whole[4:], strict=True):
        assert (x - y).abs().max() < 1e-12


def test_gradient_against_finite_differences() -> None:
    a = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 0, 2]])
    soft = SoftWeights(3, 4).double()
    c, f = unit(5, 3).requires_grad_(), unit(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, f: weighted_info_nce(c, f, 0.5, cluster_weights(a), block=2), (c, f))
    assert torch.autograd.gradcheck(
        lambda c, f, *p: weighted_info_nce(c, f, 0.5, soft.weights, parameters=p, block=2), (c, f, *soft.learned())
    )


def test_a_small_temperature_neither_overflows_nor_gives_nan() -> None:
    c, f = unit(30, 4, dtype=torch.float32).requires_grad_(), unit(30, 4, seed=1, dtype=torch.float32)
    a = torch.from_numpy(np.random.default_rng(3).integers(0, 5, (1, 30)))
    loss = weighted_info_nce(c, f, 0.002, cluster_weights(a))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(c.grad).all()


def test_blocks_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="block must be"):
        block_sum(lambda rows, x: x.sum(), torch.arange(3), [unit(3, 2)], 0)


# -- soft weights ------------------------------------------------------------------------------------------------------------
def test_factored_soft_weights_equal_the_naive_ones() -> None:
    torch.manual_seed(0)
    f, c = unit(40, 64, dtype=torch.float32).requires_grad_(), unit(40, 64, seed=1, dtype=torch.float32).requires_grad_()
    for row_mean in (False, True):
        soft = SoftWeights(64, 16, row_mean)
        mlp = torch.nn.Sequential(soft.first, torch.nn.Tanh(), soft.second, torch.nn.Sigmoid())
        naive = mlp(f[:, None] + c[None])[..., 0]  # the n^2 x 64 form
        naive = naive / naive.mean(1, keepdim=True) if row_mean else naive
        assert (soft(f, c) - naive).abs().max() < 1e-6
        s = f @ c.T
        expected = (torch.log((naive * torch.exp(s)).sum(1)) - s.diagonal()).mean()
        found = weighted_info_nce(f, c, 1.0, soft.weights, parameters=soft.learned(), block=16)
        assert (found - expected).abs() < 1e-6
        wanted = torch.autograd.grad(expected, (f, c, *soft.learned()))
        for x, y in zip(torch.autograd.grad(found, (f, c, *soft.learned())), wanted, strict=True):
            assert (x - y).abs().max() < 1e-6


def test_constant_soft_weights_are_info_nce_with_row_mean_and_shrink_the_loss_without() -> None:
    f, c = unit(15, 8), unit(15, 8, seed=1)
    plain = weighted_info_nce(f, c, 0.7)
    for bias in (0.0, -3.0):
        for row_mean in (True, False):
            soft = SoftWeights(8, 4, row_mean).double()
            with torch.no_grad():
                soft.second.weight.zero_()
                soft.second.bias.fill_(bias)
            found = weighted_info_nce(f, c, 0.7, soft.weights, parameters=soft.learned())
            # smaller weights for all lower the loss by their logarithm, and nothing is learned
            lower = 0.0 if row_mean else math.log(1 + math.exp(-bias))
            assert abs(float(found.detach() - plain) + lower) < 1e-12


# -- clusters and prototypes -------------------------------------------------------------------------------------------------
def blobs(sizes: tuple[int, ...], spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.eye(8)[: len(sizes)]
    x = centres[y] + spread * rng.normal(size=(len(y), 8))
    return F.normalize(torch.from_numpy(x), dim=1), torch.from_numpy(y)


def test_kmeans_finds_separate_clusters() -> None:
    x, y = blobs((30, 50, 20), 0.05)
    found = spherical_kmeans(x, 3, torch.Generator().manual_seed(0))
    same = found.assignment[:, None] == found.assignment[None]
    assert torch.equal(same, y[:, None] == y[None])
    for k in range(3):
        mean = F.normalize(x[found.assignment == k].sum(0), dim=0)
        assert (found.centroids[k] - mean).abs().max() < 1e-12


def test_kmeans_does_not_lose_to_sklearn() -> None:
    from sklearn.cluster import KMeans

    x, _ = blobs((20, 20, 20, 20, 20), 0.5)
    found = spherical_kmeans(x, 5, torch.Generator().manual_seed(0), iterations=50, restarts=10)
    peer = KMeans(5, n_init=10, random_state=0).fit_predict(x.numpy())
    theirs = sum(float(x[torch.from_numpy(peer == k)].sum(0).norm()) for k in range(5))
    ours = float((x * found.centroids[found.assignment]).sum())
    assert ours > 0.99 * theirs


def test_kmeans_assigns_to_the_nearest_centroid_and_repeats() -> None:
    x = unit(60, 6)
    first, again = (spherical_kmeans(x, 9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.assignment, again.assignment) and torch.equal(first.centroids, again.centroids)
    assert torch.equal(first.assignment, (x @ first.centroids.T).argmax(1))
    more = spherical_kmeans(x, 9, torch.Generator().manual_seed(4), restarts=20)
    score = [float((x * f.centroids[f.assignment]).sum()) for f in (first, more)]
    assert score[1] >= score[0] - 1e-9


def test_kmeans_with_equal_points_and_at_its_limits() -> None:
    x = unit(3, 4).repeat_interleave(5, 0)  # fewer distinct points than clusters
    found = spherical_kmeans(x, 6, torch.Generator().manual_seed(0))
    assert torch.isfinite(found.centroids).all() and int(found.assignment.max()) < 6
    every = spherical_kmeans(unit(7, 4), 7, torch.Generator().manual_seed(0))
    assert len(set(every.assignment.tolist())) == 7
    for k in (0, 8):
        with pytest.raises(ValueError, match=f"{k} clusters of 7 points"):
            spherical_kmeans(unit(7, 4), k, torch.Generator().manual_seed(0))


def test_tight_clusters_get_the_lowest_concentration() -> None:
    x, y = blobs((10, 10, 10, 10, 10, 10), 0.3)
    x[y == 2] = x[y == 2][:1]  # identical points
    centroids = torch.stack([F.normalize(x[y == k].sum(0), dim=0) for k in range(6)])
    phi = concentration(x, Clustering(y, centroids), 0.4)
    assert int(phi.argmin()) == 2 and float(phi[2]) < float(phi[[0, 1, 3, 4, 5]].min()) and float(phi.min()) > 0
    assert abs(float(phi.mean()) - 0.4) < 1e-6
    # the larger of two equally wide clusters is the tighter one
    wide = torch.cat([x[y == 0], x[y == 0], x[y == 1]])
    sizes = Clustering(torch.tensor([0] * 20 + [1] * 10), centroids[:2])
    both = concentration(torch.cat([x[y == 0]] * 2 + [x[y == 0]]), Clustering(sizes.assignment, centroids[[0, 0]]), 0.4)
    assert len(wide) == 30 and float(both[0]) < float(both[1])


def test_concentration_of_singletons_and_of_nothing() -> None:
    x, y = blobs((8, 8, 1, 8, 8), 0.2)
    centroids = torch.stack([F.normalize(x[y == k].sum(0), dim=0) for k in range(5)] + [x[0]])
    phi = concentration(x, Clustering(y, centroids), 0.9)  # the sixth cluster is empty
    assert float(phi[2]) == float(phi.max()) == float(phi[5]) and abs(float(phi.mean()) - 0.9) < 1e-6
    same = concentration(x[:1].expand(6, -1), Clustering(torch.zeros(6, dtype=torch.int64), x[:1]), 0.9)
    assert torch.allclose(same, torch.full((1,), 0.9, dtype=same.dtype))
    alone = concentration(x[:4], Clustering(torch.arange(4), x[:4]), 0.5)
    assert torch.allclose(alone, torch.full((4,), 0.5, dtype=alone.dtype))


def test_prototype_loss_against_its_formula() -> None:
    c, g, phi = unit(9, 4), unit(3, 4, seed=1), torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    a = torch.arange(9) % 3
    total = 0.0
    for i in range(9):
        masses = [math.exp(float(c[i] @ g[k]) / float(phi[k])) for k in range(3)]
        total -= math.log(masses[int(a[i])] / (9 * sum(masses) / 3)) / 9
    assert abs(float(prototype_loss(c, Clustering(a, g), phi)) - total) < 1e-12


# -- the encoder -------------------------------------------------------------------------------------------------------------
def small_views(order: np.ndarray | None = None, n: int = 24) -> Views:
    """Two paths over 24 papers (authors; authors and subjects two steps on), with the papers in another order."""
    rng = np.random.default_rng(8)
    PA, AS = links(n, 10, 0.2, 1), links(10, 5, 0.4, 2)
    x = sp.csr_array(rng.random((n, 12)) * (rng.random((n, 12)) < 0.15))
    masked = masked_features(x, 0.3, np.random.default_rng(0))
    authors = sp.csr_array(np.random.default_rng(3).normal(size=(10, 6)))
    steps = [[PA, PA.T], [PA, AS, AS.T, PA.T]]
    kept = [nearest(C, 6) for C in (PA @ PA.T, PA @ AS @ AS.T @ PA.T)]
    graphs = [path_graph(K) for K in kept]
    twins = [path_graph(masked_graph(K, 0.3, np.random.default_rng(5))) for K in kept]
    means = [reached(s) for s in steps]
    if order is not None:
        x, masked = x[order], masked[order]
        graphs, twins = ([M[order][:, order] for M in group] for group in (graphs, twins))
        means = [[M[order] for M in group] for group in means]
    features = [SparseFeatures(x), torch.from_numpy(authors.toarray()).float(), SparseFeatures(sp.eye_array(5))]
    places = [[1], [1, 2, 1]]
    return Views(
        features, SparseFeatures(masked), operator(mean_graph(graphs)), [operator(A) for A in graphs],
        [operator(A) for A in twins],
        [[(p, operator(M)) for p, M in zip(at, group, strict=True)] for at, group in zip(places, means, strict=True)],
    )  # fmt: skip


def network(context: bool = True) -> MEOW:
    torch.manual_seed(0)
    return MEOW([12, 6, 5], [[1], [1, 2, 1]], width=16, dropout=0.3, context=context)


def test_permutation_equivariance_and_a_quiet_eval_mode() -> None:
    net = network().eval()
    order = np.random.default_rng(1).permutation(24)
    with torch.no_grad():
        Z, beta, _ = net.fine(small_views())
        turned, beta_turned, _ = net.fine(small_views(order))
        again, _, _ = net.fine(small_views())
        c, f = net(small_views())
        c_turned, f_turned = net(small_views(order))
    assert (turned - Z[order]).abs().max() < 1e-5 and (beta - beta_turned).abs().max() < 1e-5
    assert (c_turned - c[order]).abs().max() < 1e-5 and (f_turned - f[order]).abs().max() < 1e-5
    assert torch.equal(Z, again)
    net.train()
    assert not torch.equal(net.fine(small_views())[0], net.fine(small_views())[0])  # dropout is live in training alone


def test_the_encoder_against_its_formula() -> None:
    net, views = network().eval(), small_views()
    dense = [A.to_scipy().toarray() if isinstance(A, SparseOperator) else A.numpy() for A in views.graphs]
    A = torch.from_numpy(dense[0]).float()
    x, gcn = torch.randn(24, 16), net.encoder
    assert isinstance(gcn, SharedGCN)
    hidden = A @ x @ gcn.first
    Z = A @ torch.where(hidden > 0, hidden, gcn.act.weight * hidden) @ gcn.second
    expected = (Z - Z.mean()) / torch.sqrt(Z.var(unbiased=False) + 1e-5)
    assert (gcn(x, views.graphs[0]) - expected).abs().max() < 1e-5
    # the first fine view by hand: the paper's own state, and the mean of its authors'
    h, authors = (F.elu(net.maps[i](views.features[i])) for i in (0, 1))
    M = views.contexts[0][0][1]
    first = F.normalize(gcn(F.elu(h + net.passed[0][0](M @ authors)), views.graphs[0]), dim=1)
    calls: list[list[torch.Tensor]] = []
    net.attention.register_forward_pre_hook(lambda _, given: calls.append(list(given[0])))
    Z_fine, beta, _ = net.fine(views)
    assert len(calls[0]) == 4 and (calls[0][0] - first).abs().max() < 1e-5
    assert (Z_fine - sum(b * v for b, v in zip(beta, calls[0], strict=True))).abs().max() < 1e-6
    assert (net(views)[0].norm(dim=1) - 1).abs().max() < 1e-5


def test_attention_sums_to_one_and_equal_views_share_alike() -> None:
    torch.manual_seed(0)
    attention = ViewAttention(8, 0.5).eval()
    Z = torch.randn(10, 8)
    out, beta = attention([Z, Z, Z])
    assert torch.allclose(beta, torch.full((3,), 1 / 3)) and torch.allclose(out, Z, atol=1e-6)
    _, uneven = attention([Z, -Z, 2 * Z])
    shares = uneven.detach()
    assert float(shares.sum()) == pytest.approx(1) and float(shares.max()) > float(shares.min())


def test_without_context_only_the_graphs_differ() -> None:
    net, views = network(context=False).eval(), small_views()
    assert not any(len(maps) for maps in net.passed)
    other = views._replace(features=[views.features[0], torch.randn(10, 6), views.features[2]])
    assert torch.equal(net.fine(views)[0], net.fine(other)[0])
    seen = network().eval()
    assert not torch.equal(seen.fine(views)[0], seen.fine(other)[0])
    with pytest.raises(ValueError, match="at least one meta-path"):
        MEOW([3], [])


def test_the_number_of_parameters() -> None:
    net = MEOW([1902, 1902, 60], [[1], [2]])
    maps = (1902 + 1902 + 60) * 64 + 3 * 64
    shared = 2 * 64 * 64 + 1 + (64 * 64 + 64) + 64 + (64 * 64 + 64)
    assert sum(p.numel() for p in net.parameters()) == maps + 2 * 64 * 64 + shared


# -- real relations ----------------------------------------------------------------------------------------------------------
def test_counts_equal_the_products_of_relations(mirror: Callable[[str], Path]) -> None:
    from latticework.core.dataset import open_data
    from latticework.data.hetero import biadjacency, chain_counts, parse_path

    mirror("hetero-heco")
    for name, path in (("acm", "paper-author-paper"), ("acm", "paper-subject-paper"), ("imdb", "movie-actor-movie")):
        data = open_data(f"hetero-heco:{name}").whole().data
        chain = parse_path(path, data)
        B = biadjacency(data, chain[0])
        found = chain_counts(data, chain)
        assert found.dtype == np.int64 and (found != B @ B.T).nnz == 0
    subjects = chain_counts(*(lambda d: (d, parse_path("paper-subject-paper", d)))(open_data("hetero-heco:acm").whole().data))
    # every pair of ACM's papers shares at most one subject: all of PathSim is ties, and the cut goes by the index
    assert (subjects.data == 1).all() and (pathsim(subjects).data == 1).all()
