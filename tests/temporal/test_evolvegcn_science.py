"""EvolveGCN's science: oracles in plain numpy, limits, the worked example, changing node sets, no look-ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latticework.layers.propagation import SparseOperator
from latticework.temporal.evolvegcn import EvolveGCN, EvolvingLayer, MatrixGRU, summarise
from latticework.temporal.snapshot_baselines import GraphConvolutions
from latticework.temporal.snapshot_network import OneHot, PairHead, all_pairs, place_of, recency_of, snapshot_of

Array = np.ndarray[Any, Any]


def sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


def graph(n: int, rng: np.random.Generator, chance: float = 0.2) -> Array:
    """``D^-1/2 (A + I) D^-1/2`` of a random graph, dense float64."""
    upper = np.triu(rng.random((n, n)) < chance, 1) * rng.integers(1, 4, (n, n))
    A = upper + upper.T + np.eye(n)
    scale = 1 / np.sqrt(A.sum(1))
    return np.asarray(scale[:, None] * A * scale[None])


def stack(T: int, n: int, F: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    rng = np.random.default_rng(seed)
    A = [torch.from_numpy(graph(n, rng)) for _ in range(T)]
    X = [torch.from_numpy(rng.normal(size=(n, F))) for _ in range(T)]
    return A, X, [torch.from_numpy(rng.random(n) < 0.8) for _ in range(T)]


def randomised(net: nn.Module, seed: int = 0, scale: float = 0.4) -> Any:
    """Every parameter random, the biases too, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


def numpy_layer(layer: EvolvingLayer, A: list[Array], X: list[Array], active: list[Array]) -> list[Array]:
    """One evolving layer as the card's steps 4 to 6 say, in a loop."""
    p = {k.replace("cell.", ""): v.detach().numpy() for k, v in layer.named_parameters()}
    W, found = p["W_0"], []
    for A_t, X_t, seen in zip(A, X, active, strict=True):
        P = W
        if layer.variant == "H":
            y = (X_t @ p["p"]).ravel() / np.linalg.norm(p["p"])
            masked = np.where(seen, y, -np.inf)
            best = np.argsort(-masked, kind="stable")[: min(layer.width, int(seen.sum()))]
            best = np.append(best, np.repeat(best[-1], layer.width - len(best)))
            P = (X_t[best] * np.tanh(y[best])[:, None]).T
        Z = sigmoid(p["W_z"] @ P + p["U_z"] @ W + p["B_z"])
        R = sigmoid(p["W_r"] @ P + p["U_r"] @ W + p["B_r"])
        C = np.tanh(p["W_c"] @ P + p["U_c"] @ (R * W) + p["B_c"])
        W = (1 - Z) * W + Z * C
        H = A_t @ X_t @ W
        found.append(np.where(H >= 0, H, H * (1 / 8 + 1 / 3) / 2))
    return found


@pytest.mark.parametrize("variant", ["O", "H"])
@pytest.mark.parametrize("width", [3, 7])
def test_a_layer_equals_a_loop_in_numpy(variant: Any, width: int) -> None:
    A, X, active = stack(3, 20, 5)
    layer = randomised(EvolvingLayer(5, width, variant))
    wanted = numpy_layer(layer, [a.numpy() for a in A], [x.numpy() for x in X], [m.numpy() for m in active])
    for ours, theirs in zip(layer(A, X, active), wanted, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["O", "H"])
@pytest.mark.parametrize("skip", [False, True])
def test_two_layers_equal_layers_run_one_after_another(variant: Any, skip: bool) -> None:
    A, X, active = stack(4, 20, 5)
    net = randomised(EvolveGCN(5, (6, 3), variant, skip))
    sequence: list[Any] = X
    for layer in net.layers:
        sequence = layer(A, sequence, active)
    wanted = torch.cat([sequence[-1], X[-1]], 1) if skip else sequence[-1]
    torch.testing.assert_close(net(A, X, active), wanted, rtol=0, atol=1e-12)
    weights = net.weights(X, A, active)
    assert [len(w) for w in weights] == [5, 5] and weights[1][0] is net.layers[1].W_0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=12), st.integers(1, 15), st.data())
def test_top_rows_equal_argsort_with_ties_to_the_lower_row(values: list[float], k: int, data: st.DataObject) -> None:
    n = len(values)
    seen = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    X = torch.tensor([[v, float(i)] for i, v in enumerate(values)], dtype=torch.float64)
    p = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    found = summarise(X, p, k, torch.from_numpy(seen))
    if not seen.any():
        assert found is None
        return
    order = np.argsort(-np.where(seen, values, -np.inf), kind="stable")[: min(k, int(seen.sum()))]
    order = np.append(order, np.repeat(order[-1], k - len(order)))
    assert found is not None and found.shape == (2, k)
    np.testing.assert_allclose(found.numpy(), (X.numpy()[order] * np.tanh(np.array(values)[order])[:, None]).T, atol=1e-15)


@pytest.mark.parametrize("variant", ["O", "H"])
def test_shapes_and_parameter_counts(variant: Any) -> None:
    A, X, active = stack(2, 9, 7)
    for width in (4, 7, 11):
        net = EvolveGCN(7, (width,), variant).double()
        assert net(A, X, active).shape == (9, width)
        count = sum(p.numel() for p in net.parameters())
        assert count == 6 * 49 + 4 * 7 * width + (7 if variant == "H" else 0)
        assert count == sum(v.numel() for v in net.state_dict().values())


@pytest.mark.parametrize("variant", ["O", "H"])
def test_a_closed_update_gate_is_the_static_gcn(variant: Any) -> None:
    A, X, active = stack(4, 15, 5)
    net = randomised(EvolveGCN(5, (4, 3), variant), scale=0.1)
    static = GraphConvolutions(5, (4, 3)).double().eval()
    with torch.no_grad():
        for layer, W in zip(net.layers, static.weights, strict=True):
            layer.cell.B_z.fill_(-40.0)
            W.copy_(layer.W_0)
    last = type("S", (), {"A": A[-1], "X": X[-1]})()
    torch.testing.assert_close(net(A, X, active), static.convolve(last), rtol=0, atol=1e-10)  # type: ignore[arg-type]
    for mine in net.weights(X, A, active):
        for W in mine:
            torch.testing.assert_close(W, mine[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["O", "H"])
def test_an_open_gate_onto_nothing_gives_nothing(variant: Any) -> None:
    A, X, active = stack(3, 15, 5)
    net = randomised(EvolveGCN(5, (4,), variant), scale=0.1)
    with torch.no_grad():
        cell = net.layers[0].cell
        cell.B_z.fill_(60.0)
        for p in (cell.U_c, cell.W_c, cell.B_c):
            p.zero_()
    assert float(net(A, X, active).detach().abs().max()) < 1e-20
    assert net(A[:1], X[:1], active[:1]).shape == (15, 4)


def test_worked_example() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    layer = EvolvingLayer(1, 1, "O", nn.Identity()).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.W_0.fill_(1.0)
    found = layer([one, one], [one, one], [None, None])
    assert [float(h.detach()) for h in found] == [0.5, 0.25]


def test_weights_of_o_do_not_see_the_data_and_those_of_h_do() -> None:
    A, X, active = stack(3, 12, 5, seed=0)
    B, Y, other = stack(3, 12, 5, seed=1)
    for variant, same in (("O", True), ("H", False)):
        net = randomised(EvolveGCN(5, (4, 4), variant))  # type: ignore[arg-type]
        for mine, theirs in zip(net.weights(X, A, active), net.weights(Y, B, other), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)) == same


@pytest.mark.parametrize("variant", ["O", "H"])
def test_nodes_may_be_numbered_otherwise_in_every_snapshot(variant: Any) -> None:
    A, X, active = stack(4, 20, 5)
    layer = randomised(EvolvingLayer(5, 4, variant))
    rng = np.random.default_rng(5)
    orders = [torch.from_numpy(rng.permutation(20)) for _ in A]
    turned = layer(
        [a[o][:, o] for a, o in zip(A, orders, strict=True)], [x[o] for x, o in zip(X, orders, strict=True)],
        [m[o] for m, o in zip(active, orders, strict=True)],
    )  # fmt: skip
    for H, G, order in zip(layer(A, X, active), turned, orders, strict=True):
        torch.testing.assert_close(G, H[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["O", "H"])
def test_node_sets_may_differ_in_number_and_in_all(variant: Any) -> None:
    rng = np.random.default_rng(0)
    sizes = (7, 30, 1, 12)
    A = [torch.from_numpy(graph(n, rng)) for n in sizes]
    X = [torch.from_numpy(rng.normal(size=(n, 5))) for n in sizes]
    net = randomised(EvolveGCN(5, (4, 6), variant))
    assert net(A, X).shape == (12, 6)


def test_h_ignores_inactive_nodes_and_bears_an_empty_snapshot() -> None:
    A, X, active = stack(3, 12, 5)
    active[1][:] = False
    net = randomised(EvolveGCN(5, (4, 4), "H"))
    before = net.weights(X, A, active)
    # an inactive node has a self-loop alone, so that its features reach no other one
    for t, (a, m) in enumerate(zip(A, active, strict=True)):
        a[~m], a[:, ~m] = 0.0, 0.0
        a[~m, ~m] = 1.0
        A[t] = a
    before = net.weights(X, A, active)
    changed = [torch.where(m[:, None], x, torch.full_like(x, 9.0)) for x, m in zip(X, active, strict=True)]
    for mine, theirs in zip(before, net.weights(changed, A, active), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert torch.equal(mine[2], mine[1]) and not torch.equal(mine[3], mine[2])  # no one active: W stays


@pytest.mark.parametrize("variant", ["O", "H"])
def test_no_look_ahead(variant: Any) -> None:
    A, X, active = stack(5, 12, 5)
    B, Y, other = stack(5, 12, 5, seed=9)
    layer = randomised(EvolvingLayer(5, 4, variant))
    mixed = layer([*A[:3], *B[3:]], [*X[:3], *Y[3:]], [*active[:3], *other[3:]])
    for t, H in enumerate(layer(A, X, active)):
        assert torch.equal(H, mixed[t]) == (t < 3)


@pytest.mark.parametrize("variant", ["O", "H"])
def test_every_parameter_has_a_gradient_and_it_is_the_right_one(variant: Any) -> None:
    A, X, active = stack(3, 10, 4)
    net = randomised(EvolveGCN(4, (3, 2), variant, activation=torch.tanh))

    def loss() -> Tensor:
        return (net(A, X, active) ** 2).sum()

    loss().backward()
    rng = np.random.default_rng(0)
    for name, p in net.named_parameters():
        assert p.grad is not None and bool((p.grad != 0).any()), name
        flat, at = p.detach().view(-1), int(rng.integers(p.numel()))
        kept = float(flat[at])
        ends = []
        for step in (1e-6, -1e-6):
            flat[at] = kept + step
            ends.append(float(loss().detach()))
        flat[at] = kept
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(p.grad.view(-1)[at]), rel=1e-4, abs=1e-7), name
    assert {n for n, _ in net.named_parameters()} == set(net.state_dict())


def test_sparse_graphs_and_one_hot_rows_give_the_same() -> None:
    rng = np.random.default_rng(0)
    A = [graph(15, rng) for _ in range(3)]
    place = [torch.from_numpy(rng.integers(0, 6, 15)) for _ in A]
    dense = [torch.nn.functional.one_hot(p, 6).double() for p in place]
    for variant in ("O", "H"):
        net = randomised(EvolveGCN(6, (4, 3), variant, True))  # type: ignore[arg-type]
        one = net([torch.from_numpy(a) for a in A], dense)
        sparse = [SparseOperator.from_scipy(sp.csr_array(a)) for a in A]
        other = net(sparse, [OneHot(p, 6) for p in place])
        torch.testing.assert_close(one, other.double(), rtol=0, atol=1e-6 if variant == "H" else 1e-12)


def test_matrix_gru_is_a_gru_cell_for_each_column_where_the_biases_are_alike() -> None:
    ours, cell = randomised(MatrixGRU(4, 3)), nn.GRUCell(4, 4, bias=True).double()
    with torch.no_grad():
        for gate in "zrc":
            getattr(ours, f"B_{gate}").copy_(getattr(ours, f"B_{gate}")[:, :1].expand(4, 3))
        # torch: r, z, n; its z is the share that is kept, and r acts after the map: with r = 1 both are one
        ours.B_r.fill_(60.0)
        cell.weight_ih.copy_(torch.cat([ours.W_r, -ours.W_z, ours.W_c]))
        cell.weight_hh.copy_(torch.cat([ours.U_r, -ours.U_z, ours.U_c]))
        cell.bias_ih.copy_(torch.cat([ours.B_r[:, 0], -ours.B_z[:, 0], ours.B_c[:, 0]]))
        cell.bias_hh.zero_()
    P, Q = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(P, Q), cell(P.T, Q.T).T, rtol=0, atol=1e-12)


def test_mistakes_are_named() -> None:
    A, X, active = stack(3, 8, 5)
    net = EvolveGCN(5, (4,), "O").double()
    with pytest.raises(ValueError, match="one of each a snapshot"):
        net(A, X[:2], active)
    with pytest.raises(ValueError, match="at least one"):
        net([], [], [])
    with pytest.raises(ValueError, match="snapshot 1 has 4 features"):
        net(A, [X[0], X[1][:, :4], X[2]], active)
    with pytest.raises(ValueError, match="snapshot 2: 7 rows"):
        net(A, [*X[:2], X[2][:7]], active)
    with pytest.raises(ValueError, match="O or H"):
        EvolvingLayer(3, 3, "G")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or more"):
        EvolveGCN(5, ())


# -- snapshots -----------------------------------------------------------------------------------------------------------
def test_a_compact_snapshot_is_the_dense_one_with_all_others_in_its_last_row() -> None:
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, 9, 30) * 2, rng.integers(0, 9, 30) * 2  # odd nodes have no link
    n, width = 20, 5
    A = np.zeros((n, n))
    for u, v in zip(src, dst, strict=True):
        if u != v:
            A[u, v] += 1
            A[v, u] += 1
    degree = (A > 0).sum(1)
    S = A + np.eye(n)
    S /= np.sqrt(S.sum(1)[:, None] * S.sum(1)[None])
    found = snapshot_of(src, dst, width)
    rows = place_of(found.nodes, np.arange(n))
    assert (rows[1::2] == len(found.nodes)).all()
    assert (found.X.place.numpy()[rows] == np.minimum(degree, width - 1)).all() and degree.max() > width - 1
    np.testing.assert_allclose(found.A.to_scipy().toarray()[np.ix_(rows, rows)][::2, ::2], S[::2, ::2], atol=1e-7)
    assert found.A.to_scipy().toarray()[-1].tolist() == [0.0] * len(found.nodes) + [1.0]
    net = randomised(EvolveGCN(width, (4, 3), "O"))
    whole = net(
        [torch.from_numpy(S)], [torch.nn.functional.one_hot(torch.from_numpy(np.minimum(degree, width - 1)), width).double()]
    )
    small = net([found.A], [found.X])
    torch.testing.assert_close(small[torch.from_numpy(rows)], whole, rtol=0, atol=1e-6)
    empty = snapshot_of(src[:0], dst[:0], width)
    assert len(empty.nodes) == 0 and empty.A.to_scipy().toarray().tolist() == [[1.0]] and not empty.active.any()


def test_split_head_scores_all_pairs_as_the_whole_one() -> None:
    torch.manual_seed(0)
    head, H = PairHead(4, 6, 2), torch.randn(11, 4)
    rows = torch.cartesian_prod(torch.arange(11), torch.arange(11)).T
    whole = torch.cat([H[rows[0]], H[rows[1]]], 1)
    logits = head.second(torch.relu(head.first(whole)))
    torch.testing.assert_close(head(H, rows), logits)
    source, target = (v.detach().numpy() for v in head.halves(H))
    w = (head.second.weight[1] - head.second.weight[0]).detach().numpy()
    bias = float((head.second.bias[1] - head.second.bias[0]).detach())
    out = np.empty((11, 11), np.float32)
    all_pairs(source, np.ascontiguousarray(target.T), w, bias, out)
    np.testing.assert_allclose(out.ravel(), (logits[:, 1] - logits[:, 0]).detach().numpy(), atol=1e-6)
    some = np.empty((3, 11), np.float32)
    all_pairs(source[4:7], np.ascontiguousarray(target.T), w, bias, some)
    assert np.array_equal(some, out[4:7])


def test_recency_by_hand() -> None:
    past = {5: ([0, 0], [1, 1]), 4: ([1], [2]), 3: ([0], [1])}
    links = lambda w: tuple(np.array(v, np.int64) for v in past.get(w, ([], [])))  # noqa: E731
    found = recency_of(links, 6, 1, 0.5, 3, of="events").toarray()
    assert found.tolist() == [[0, 2, 0], [2, 0, 0.5], [0, 0.5, 0]]
    found = recency_of(links, 6, 2, 0.5, 3, directed=True).toarray()
    assert found.tolist() == [[0, 1.25, 0], [0, 0, 0.5], [0, 0, 0]]
