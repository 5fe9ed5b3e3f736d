"""NCN and NCNC: sets against Python's, the heuristics as limits, the worked example, target link removal, completion."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latticework.links.neural_common_neighbor.encoders import Convolutions, Smoothing, Table, smoother
from latticework.links.neural_common_neighbor.predictor import NCNPredictor, prior_odds
from latticework.links.neural_common_neighbor.sets import (
    chunks,
    joined,
    neighbour_sets,
    pattern,
    sampled,
    second_ring,
    sum_rows,
    thinned,
    without,
)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def random_graph(n: int, p: float, seed: int) -> nx.Graph:
    return nx.gnp_random_graph(n, p, seed=seed)


def pattern_of(g: nx.Graph) -> sp.csr_array:
    edges = np.array(list(g.edges()), np.int64).reshape(-1, 2).T
    return pattern(edges, g.number_of_nodes())


def all_pairs(n: int) -> np.ndarray:
    return np.stack(np.triu_indices(n, 1)).astype(np.int64)


def limit(weights: Tensor) -> tuple[NCNPredictor, Tensor]:
    """f_ij = 0, f_cn and g the identity: the logit is the sum of weights over common neighbours."""
    net = NCNPredictor(1, mix=False).double().eval()
    net.pair, net.common, net.score = Nothing(), nn.Identity(), nn.Identity()
    return net, weights.double()[:, None]


def predictor(seed: int = 0, width: int = 8, **how: object) -> NCNPredictor:
    torch.manual_seed(seed)
    return NCNPredictor(width, 12, **how).eval()  # type: ignore[arg-type]


def vectors(n: int, width: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


# -- sets ------------------------------------------------------------------------------------------------------------
@given(seed=st.integers(0, 10_000), n=st.integers(2, 40), p=st.sampled_from([0.0, 0.05, 0.2, 0.6, 1.0]))
@settings(deadline=None, max_examples=30)
def test_sets_equal_pythons(seed: int, n: int, p: float) -> None:
    g = random_graph(n, p, seed)
    A = pattern_of(g)
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, n, (2, 200))
    pairs = pairs[:, pairs[0] != pairs[1]]
    found = neighbour_sets(A, pairs, differences=True)
    for row, (i, j) in enumerate(pairs.T):
        a, b = set(g[i]), set(g[j])
        for rows, expected in ((found.both, a & b), (found.left, a - b), (found.right, b - a)):
            assert rows is not None
            assert set(rows[[row]].indices.tolist()) == expected
    assert all((rows.data == 1).all() for rows in found if rows is not None)


def test_gradient_of_the_sum_is_the_transpose_product() -> None:
    A = pattern_of(random_graph(60, 0.15, 0))
    pairs = np.random.default_rng(0).integers(0, 60, (2, 200))
    both = neighbour_sets(A, pairs).both
    h = vectors(60).double().requires_grad_()
    upstream = torch.randn(200, 8, dtype=torch.float64)
    (sum_rows(both, h) * upstream).sum().backward()
    assert np.abs(both.T @ upstream.numpy() - h.grad.numpy()).max() < 1e-10
    assert np.abs(both @ h.detach().numpy() - sum_rows(both, h).detach().numpy()).max() < 1e-12
    assert torch.autograd.gradcheck(lambda x: sum_rows(both[:5], x), (vectors(60, 2).double().requires_grad_(),))


def test_removing_and_joining_links() -> None:
    g = random_graph(30, 0.2, 3)
    A = pattern_of(g)
    edges = np.array(list(g.edges()), np.int64).T
    batch = np.concatenate([edges[:, :7], edges[::-1, 3:9]], axis=1)  # repeats and both directions
    rest = g.copy()
    rest.remove_edges_from(batch.T.tolist())
    assert (without(A, batch).toarray() == nx.to_numpy_array(rest)).all()
    assert (joined(without(A, batch), batch).toarray() == A.toarray()).all()
    strangers = np.array(list(nx.non_edges(g)), np.int64).T
    assert (without(A, strangers).toarray() == A.toarray()).all()
    assert without(A, edges).nnz == 0 and without(pattern(np.zeros((2, 0), np.int64), 30), batch).nnz == 0


def test_distance_two() -> None:
    g = random_graph(40, 0.06, 1)
    distance = dict(nx.all_pairs_shortest_path_length(g, cutoff=2))
    ring = second_ring(pattern_of(g)).toarray()
    for i in range(40):
        assert set(np.flatnonzero(ring[i])) == {j for j, d in distance[i].items() if d == 2}


def test_thinning_and_sampling_are_unbiased() -> None:
    A = pattern_of(nx.star_graph(60))
    torch.manual_seed(0)
    kept = np.mean([thinned(A, 0.4).nnz for _ in range(200)]) / A.nnz
    assert abs(kept - 0.6) < 0.02
    one_way = thinned(A, 0.4)
    assert (one_way != one_way.T).nnz > 0  # a direction is dropped by itself
    h = vectors(61).double()
    rows = A[[0, 1]]
    draws = torch.stack([sum_rows(sampled(rows, 8), h) for _ in range(1500)])
    assert all(sampled(rows, 8)[[0]].nnz <= 8 for _ in range(5)) and torch.equal(draws[0][1], h[0])
    error = (draws.mean(0)[0] - sum_rows(rows, h)[0]).abs() / (draws.std(0)[0] / 1500**0.5)
    assert float(error.max()) < 4.5


def test_chunks_cover_all_pairs_once() -> None:
    A = pattern_of(random_graph(50, 0.3, 0))
    pairs = all_pairs(50)
    for budget in (1, 300, 10**9):
        cuts = chunks(A, pairs, budget)
        assert [s.start for s in cuts[1:]] == [s.stop for s in cuts[:-1]] and cuts[0].start == 0
        assert cuts[-1].stop == pairs.shape[1] and len(cuts) == {1: pairs.shape[1], 10**9: 1}.get(budget, len(cuts))
    assert chunks(A, pairs[:, :0], 5) == []


# -- limits ----------------------------------------------------------------------------------------------------------
def test_common_neighbours_adamic_adar_and_resource_allocation_are_limits() -> None:
    g = random_graph(60, 0.15, 7)
    g.add_node(60)  # isolated
    A, pairs = pattern_of(g), all_pairs(61)
    ends = pairs.T.tolist()
    degree = torch.tensor([g.degree(u) for u in range(61)], dtype=torch.float64)
    ones = limit(torch.ones(61))
    common = ones[0](ones[1], A, pairs)
    assert common.tolist() == [len(set(g[i]) & set(g[j])) for i, j in ends]
    for weights, measure in ((1 / torch.log(degree), nx.adamic_adar_index), (1 / degree, nx.resource_allocation_index)):
        # a node of degree 1 or 0 is no common neighbour of a pair
        net, h = limit(torch.where(degree > 1, weights, torch.zeros_like(weights)))
        expected = torch.tensor([p for _, _, p in measure(g, ends)], dtype=torch.float64)
        assert float((net(h, A, pairs) - expected).detach().abs().max()) < 1e-12


def test_counting_sees_numbers_alone() -> None:
    A = pattern_of(random_graph(40, 0.2, 0))
    pairs = all_pairs(40)
    net = predictor(common="count")
    net.pair = nn.Sequential(net.pair, Nothing())
    logits = net(vectors(40), A, pairs).detach()
    number = np.asarray(neighbour_sets(A, pairs).both.sum(1)).ravel()
    for value in np.unique(number):
        assert float(logits[number == value].std(correction=0)) < 1e-6
    assert len(torch.unique(logits.round(decimals=5))) == len(np.unique(number))  # rows of a product round by their place


def test_the_autoencoder_looks_at_no_neighbours() -> None:
    net, h, pairs = predictor(common="none"), vectors(40), all_pairs(40)
    a, b = pattern_of(random_graph(40, 0.2, 0)), pattern_of(random_graph(40, 0.5, 1))
    assert torch.equal(net(h, a, pairs), net(h, b, pairs))
    assert not torch.equal(predictor()(h, a, pairs), predictor()(h, b, pairs))


def test_a_pair_without_common_neighbours_gets_the_zero_vector() -> None:
    A, h = pattern_of(nx.path_graph(8)), vectors(8)
    net = predictor()
    pairs = np.array([[0], [5]])
    assert net.common is not None
    expected = net.score(net.pair(h[[0]] * h[[5]]) + net.beta * net.common(torch.zeros(1, 8)))
    assert torch.equal(net(h, A, pairs), expected.squeeze(-1))
    # among many such pairs, too, where they share one answer; also its gradient
    many = all_pairs(8)
    assert net.mix is not None
    both = torch.from_numpy(neighbour_sets(A, many).both.toarray())
    logits = net(h, A, many)
    i, j = torch.from_numpy(many)
    expected = net.score(net.pair(h[i] * h[j]) + net.beta * net.common(both @ (h + net.mix(h)))).squeeze(-1)
    assert float((logits - expected).detach().abs().max()) < 1e-6 and int((both.sum(1) > 0).sum()) == 6
    of = [torch.autograd.grad(out.sum(), list(net.parameters()), retain_graph=True) for out in (logits, expected)]
    assert all(float((a - b).abs().max()) < 1e-4 for a, b in zip(*of, strict=True))


def test_further_sets_by_hand() -> None:
    g = random_graph(30, 0.12, 4)
    A, h, pairs = pattern_of(g), vectors(30), all_pairs(30)[:, ::7]
    distance = dict(nx.all_pairs_shortest_path_length(g, cutoff=2))
    ring = {i: {j for j, d in distance[i].items() if d == 2} for i in g}
    for beyond in ("difference", "second"):
        net = predictor(beyond=beyond)
        assert net.mix is not None and net.common is not None and net.further is not None
        mixed = h + net.mix(h)
        for column, logit in zip(pairs.T, net(h, A, pairs), strict=True):
            i, j = map(int, column)
            a, b = set(g[i]), set(g[j])
            more = (a ^ b, ()) if beyond == "difference" else (a & ring[j], ring[i] & b)
            z = mixed[sorted(a & b)].sum(0)
            y = mixed[sorted(more[0])].sum(0) + mixed[sorted(more[1])].sum(0)
            by_hand = net.score(net.pair(h[i] * h[j]) + net.beta * net.common(z[None]) + net.further(y[None]))
            assert float((by_hand - logit).detach().abs().max()) < 1e-4


# -- completion ------------------------------------------------------------------------------------------------------
def test_prior_odds() -> None:
    logit = torch.linspace(-3, 9, 50, dtype=torch.float64)
    s = torch.sigmoid(4.3 * (logit - 2.8))
    assert torch.allclose(prior_odds(logit, 1.0, 0.7, 4.3, 2.8), 0.7 * s, atol=1e-15)
    assert float(prior_odds(torch.tensor(2.8), 0.75, 1.0, 4.3, 2.8)) == pytest.approx(0.428571, abs=1e-6)
    flat = prior_odds(logit, 0.75, 1.0, 1e-12, 2.8)
    assert float(flat.max() - flat.min()) < 1e-10 and float(flat[0]) == pytest.approx(0.75 / 1.75)
    assert float(prior_odds(torch.tensor(1e4), 0.3, 1.0, 5.0, 3.0)) == 1.0
    # odds are multiplied by pt
    P = prior_odds(logit[:20], 0.2, 1.0, 4.3, 2.8)
    assert torch.allclose(P / (1 - P), 0.2 * s[:20] / (1 - s[:20]), rtol=1e-9)


def by_hand(net: NCNPredictor, g: nx.Graph, h: Tensor, i: int, j: int, depth: int) -> float:
    """The formula with Python's sets, on h (not on h~)."""
    mixed = h if net.mix is None else h + net.mix(h)
    z = sum((mixed[u] for u in set(g[i]) & set(g[j])), torch.zeros_like(h[0]))
    if depth:
        for near, far in ((i, j), (j, i)):
            for u in set(g[near]) - set(g[far]) - {far}:
                inner = torch.tensor(by_hand(net, g, h, far, u, depth - 1))
                z = z + prior_odds(inner, net.pt, net.alpha, net.scale, net.offset) * mixed[u]
    assert net.common is not None
    return net.score(net.pair(h[i] * h[j])[None] + net.beta * net.common(z[None])).item()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_completion_equals_the_formula(depth: int) -> None:
    g = random_graph(11, 0.25, 2)
    net, h = predictor(depth=depth, scale=2.0, offset=0.1).double(), vectors(11).double()
    A, pairs = pattern_of(g), all_pairs(11)  # links are among them
    found = net(h, A, pairs).tolist()
    expected = [by_hand(net, g, h, int(i), int(j), depth) for i, j in pairs.T]
    assert np.abs(np.array(found) - expected).max() < 1e-6


def test_worked_example_of_a_path() -> None:
    """0-1-2-3, pair (0, 2): z = h~_1 + P(0, 3) h~_3, and N(0) \\ N(2) is empty."""
    A, h = pattern_of(nx.path_graph(4)), vectors(4).double()
    for middle in (True, False):
        net = predictor(depth=1, pt=0.75, alpha=1.0, scale=4.3).double()
        inner = net._logits(net.vectors(h), A, np.array([[0], [3]]), 0).item()
        net.offset = inner if middle else inner - 0.2
        P = 0.75 / 1.75 if middle else float(prior_odds(torch.tensor(inner).double(), 0.75, 1.0, 4.3, inner - 0.2))
        assert net.mix is not None and net.common is not None
        mixed = h + net.mix(h)
        z = mixed[1] + P * mixed[3]
        expected = net.score(net.pair(h[[0]] * h[[2]]) + net.beta * net.common(z[None]))
        assert net(h, A, np.array([[0], [2]])).item() == pytest.approx(expected.item(), abs=1e-7)
        counted = net.counts(h, A, np.array([[0], [2]]))
        assert counted.seen.tolist() == [1.0] and counted.expected[0] == pytest.approx(P, abs=1e-6)


def test_without_completion_it_is_ncn_bit_for_bit() -> None:
    A, h, pairs = pattern_of(random_graph(40, 0.15, 5)), vectors(40), all_pairs(40)
    plain = predictor()(h, A, pairs)
    assert torch.equal(predictor(depth=1, alpha=0.0)(h, A, pairs), plain)
    assert torch.equal(predictor(depth=2, alpha=0.0)(h, A, pairs), plain)
    assert torch.equal(predictor(depth=0, alpha=1.0)(h, A, pairs), plain)
    assert not torch.allclose(predictor(depth=1, offset=0.0)(h, A, pairs), plain, atol=1e-4)


def test_inner_recursion() -> None:
    """The clean inner logit is NCN's own; the official one transforms h~ again."""
    A, h, pairs = pattern_of(random_graph(40, 0.15, 5)), vectors(40), all_pairs(40)
    clean, official = (predictor(depth=1, clean=c, offset=0.0) for c in (True, False))
    assert not torch.allclose(clean(h, A, pairs), official(h, A, pairs), atol=1e-5)
    sets = neighbour_sets(A, pairs, differences=True)
    for net in (clean, official):
        given = net.vectors(h)
        rows, logit = net._candidates(given, A, pairs, sets, 1)[0]
        row = np.repeat(np.arange(len(pairs[0])), np.diff(rows.indptr))
        inner = np.stack([pairs[1][row], rows.indices.astype(np.int64)])
        own = predictor()(given.h if net.clean else given.mixed, A, inner)
        assert torch.allclose(logit, own, atol=1e-5)


def test_learned_prior_takes_a_gradient_and_inner_logits_none() -> None:
    A, h, pairs = pattern_of(random_graph(30, 0.2, 5)), vectors(30).double(), all_pairs(30)
    net = predictor(depth=1, learn_pt=True, offset=0.0).double()
    net(h, A, pairs).sum().backward()
    assert net.prior is not None and float(net.prior[0].weight.grad.abs().sum()) > 0
    # pt fixed at 1/2 by zero weights: the same as a constant
    with torch.no_grad():
        net.prior[2].weight.zero_()
        net.prior[2].bias.zero_()
    same = predictor(depth=1, offset=0.0, pt=0.5).double()
    same.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("prior")})
    assert torch.allclose(net(h, A, pairs), same(h, A, pairs), atol=1e-9)
    assert np.allclose(net.counts(h, A, pairs).expected, same.counts(h, A, pairs).expected)


# -- symmetry --------------------------------------------------------------------------------------------------------
@given(seed=st.integers(0, 1000), depth=st.sampled_from([0, 1, 2]))
@settings(deadline=None, max_examples=9)
def test_symmetric_and_equivariant(seed: int, depth: int) -> None:
    g = random_graph(20, 0.15, seed)
    A, h, pairs = pattern_of(g), vectors(20, seed=seed), all_pairs(20)[:, ::4]
    net = predictor(depth=depth, offset=0.0)
    logits = net(h, A, pairs)
    assert float((net(h, A, pairs[::-1]) - logits).abs().max()) < 1e-5
    order = np.random.default_rng(seed).permutation(20)
    place = np.argsort(order)
    turned = sp.csr_array(A[order][:, order])
    turned.sort_indices()
    assert float((net(h[order], turned, place[pairs]) - logits).abs().max()) < 1e-5


# -- target link removal ---------------------------------------------------------------------------------------------
def step_logits(A: sp.csr_array, batch: np.ndarray, removed: bool, depth: int) -> Tensor:
    """A training step's logits in eval mode: encoder and sets both see the graph without the batch, if it is removed."""
    torch.manual_seed(3)
    encoder = Smoothing(5, 8, 2, jk=True).eval()
    net = predictor(depth=depth, offset=0.0)
    seen = without(A, batch) if removed else A
    x = torch.randn(A.shape[0], 5, generator=torch.Generator().manual_seed(0))
    return net(encoder(x, smoother(seen)), seen, batch)


@pytest.mark.parametrize("depth", [0, 1])
def test_target_link_removal(depth: int) -> None:
    g = random_graph(40, 0.15, 5)
    edges = np.array(list(g.edges()), np.int64).T
    batch = edges[:, :20]
    full, bare = pattern_of(g), without(pattern_of(g), batch)
    assert torch.equal(step_logits(full, batch, True, depth), step_logits(bare, batch, True, depth))
    assert not torch.allclose(step_logits(full, batch, False, depth), step_logits(bare, batch, False, depth), atol=1e-3)


# -- encoders --------------------------------------------------------------------------------------------------------
def test_smoothing_by_dense_powers() -> None:
    A = pattern_of(random_graph(30, 0.1, 2))
    looped = A.toarray() + np.eye(30)
    d = looped.sum(1)
    S = torch.from_numpy(looped / np.sqrt(np.outer(d, d))).float()
    torch.manual_seed(0)
    net, x = Smoothing(6, 4, 3, jk=True).eval(), vectors(30, 6)
    h = net.linear(x)
    assert net.weights is not None
    expected = sum(w * torch.linalg.matrix_power(S, k + 1) @ h for k, w in enumerate(net.weights))
    assert torch.allclose(net(x, smoother(A)), expected, atol=1e-5)
    last = Smoothing(6, 4, 3, jk=False).eval()
    assert torch.allclose(last(x, smoother(A)), torch.linalg.matrix_power(S, 3) @ last.linear(x), atol=1e-5)
    total = Smoothing(6, 4, 1, jk=False).eval()
    assert torch.allclose(total(x, smoother(A, "sum")), torch.from_numpy(A.toarray()) @ total.linear(x), atol=1e-4)
    table = Smoothing(None, 4, 2, jk=False).eval()
    assert torch.allclose(table(h, smoother(A)), S @ S @ h, atol=1e-5)
    alone = Smoothing(6, 4, 0, jk=True).eval()
    assert torch.equal(alone(x, smoother(A)), alone.linear(x))


def test_isolated_node_keeps_its_own_map() -> None:
    g = nx.path_graph(5)
    g.add_node(5)
    net, x = Smoothing(3, 4, 2, jk=False).eval(), vectors(6, 3)
    assert torch.allclose(net(x, smoother(pattern_of(g)))[5], net.linear(x)[5], atol=1e-6)


def test_convolutions_and_edge_dropout() -> None:
    A, x = pattern_of(random_graph(30, 0.2, 2)), vectors(30, 8)
    torch.manual_seed(0)
    net = Convolutions(8, 8, 2, norm=True, residual=True).eval()
    S = torch.from_numpy(smoother(A).to_scipy().toarray())
    h = x
    h = h + torch.relu(net.norms[0](S @ net.maps[0](h) + net.biases[0]))
    h = h + S @ net.maps[1](h) + net.biases[1]
    assert torch.allclose(net(x, smoother(A)), h, atol=1e-5)
    torch.manual_seed(0)
    mean = np.mean([smoother(A, p=0.3).to_scipy().toarray() for _ in range(800)], axis=0)
    assert np.abs(mean - smoother(A).to_scipy().toarray()).max() < 0.03
    table = Table(30, 8)
    assert torch.allclose(table().T @ table(), torch.eye(8), atol=1e-5)


# -- errors ----------------------------------------------------------------------------------------------------------
def test_errors() -> None:
    A, h, net = pattern_of(random_graph(10, 0.3, 1)), vectors(10), predictor()
    with pytest.raises(ValueError, match=r"pair 1 is \[3, 10\]: nodes are numbered 0..9"):
        net(h, A, np.array([[0, 3], [1, 10]]))
    with pytest.raises(ValueError, match="pair 0 joins node 4 with itself"):
        net(h, A, np.array([[4], [4]]))
    with pytest.raises(ValueError, match="9 vectors, the graph has 10 nodes"):
        net(h[:9], A, np.array([[0], [1]]))
    with pytest.raises(ValueError, match=r"\[2, B\]"):
        net(h, A, np.array([0, 1]))
    with pytest.raises(ValueError, match="weight -1"):
        pattern(np.array([[0], [1]]), 2, np.array([-1.0]))
    for wrong in ({"common": "sum"}, {"depth": -1}, {"pt": 0.0}, {"common": "none", "depth": 1}, {"alpha": -1.0}):
        with pytest.raises(ValueError):
            predictor(**wrong)
    with pytest.raises(ValueError, match="hops"):
        Smoothing(3, 4, -1, jk=False)
    with pytest.raises(ValueError, match="layers"):
        Convolutions(3, 4, 0, True, True)
