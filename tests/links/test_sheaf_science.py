"""Sheaf diffusion against the dense coboundary, its limits, the worked edge, and derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from latticework.layers.sparse_product import symmetric_product
from latticework.links.recommendation_baselines import Pairs
from latticework.links.sheaf_recsys import Arcs, Sheaf4Rec, SheafDiffusion, SheafLaplacian, inverse_root

KINDS = ["diagonal", "orthogonal", "general"]


def bipartite(users: int = 7, items: int = 6, share: float = 0.4, seed: int = 0) -> Pairs:
    """Random interactions; everybody has one."""
    rng = np.random.default_rng(seed)
    held = rng.random((users, items)) < share
    held[np.arange(users), np.arange(users) % items] = True
    held[np.arange(items) % users, np.arange(items)] = True
    user, item = np.nonzero(held)
    return Pairs(torch.from_numpy(user), torch.from_numpy(item), users, items)


def arcs_of(pairs: Pairs) -> Arcs:
    return Arcs(pairs.edges(), pairs.users + pairs.items)


def coboundary(arcs: Arcs, maps: torch.Tensor) -> torch.Tensor:
    """delta [E d, n d] edge by edge: row block e holds F of one end and minus F of the other."""
    full = torch.diag_embed(maps) if maps.ndim == 2 else maps
    d, rows = full.shape[-1], []
    for e in range(len(arcs.row)):
        if arcs.row[e] < arcs.column[e]:
            row = torch.zeros(d, arcs.nodes * d, dtype=maps.dtype)
            v, u = int(arcs.row[e]), int(arcs.column[e])
            row[:, v * d : v * d + d] = full[e]
            row[:, u * d : u * d + d] = -full[arcs.rev[e]]
            rows.append(row)
    return torch.cat(rows)


def dense(operator: SheafLaplacian) -> torch.Tensor:
    """The matrix [n d, n d] by applying the operator to unit vectors, one stalk coordinate at a time."""
    n = operator.arcs.nodes * operator.d
    eye = torch.eye(n, dtype=operator.off.dtype)
    return torch.stack([(operator @ column.reshape(operator.arcs.nodes, operator.d)).reshape(-1) for column in eye], 1)


def some_maps(arcs: Arcs, d: int, full: bool, seed: int = 0) -> torch.Tensor:
    shape = (len(arcs.row), d, d) if full else (len(arcs.row), d)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("d", "full"), [(1, False), (3, False), (2, True), (3, True)])
def test_laplacian_equals_the_dense_coboundary(d: int, full: bool) -> None:
    arcs = arcs_of(bipartite())
    maps = some_maps(arcs, d, full)
    delta = coboundary(arcs, maps)
    found = dense(SheafLaplacian(maps, arcs, "none"))
    assert torch.allclose(found, delta.T @ delta, atol=1e-12, rtol=0)
    assert torch.allclose(found, found.T, atol=1e-12, rtol=0)
    assert float(torch.linalg.eigvalsh(found)[0]) >= -1e-10
    x = torch.randn(arcs.nodes * d, dtype=torch.float64)
    disagreement = float(((delta @ x) ** 2).sum())
    assert float(x @ (found @ x)) == pytest.approx(disagreement, rel=1e-12)


def test_quadratic_form_is_the_sum_over_edges() -> None:
    arcs = arcs_of(bipartite(seed=2))
    f = some_maps(arcs, 1, False)[:, 0]
    x = torch.randn(arcs.nodes, dtype=torch.float64)
    y = SheafLaplacian(f[:, None], arcs, "none") @ x[:, None]
    ways = (f * x[arcs.row] - f[arcs.rev] * x[arcs.column]) ** 2  # each edge from both of its ends
    assert float(x @ y[:, 0]) == pytest.approx(float(ways.sum()) / 2, rel=1e-12)


@pytest.mark.parametrize(("d", "full"), [(1, False), (3, False), (3, True)])
def test_augmented_normalisation_equals_the_dense_one(d: int, full: bool) -> None:
    arcs = arcs_of(bipartite(seed=1))
    maps = some_maps(arcs, d, full, 1)
    L = dense(SheafLaplacian(maps, arcs, "none"))
    n = arcs.nodes
    N = torch.zeros_like(L)
    for v in range(n):
        block = slice(v * d, v * d + d)
        values, Q = torch.linalg.eigh(L[block, block] + torch.eye(d, dtype=L.dtype))
        N[block, block] = Q @ torch.diag(values**-0.5) @ Q.T
    found = dense(SheafLaplacian(maps, arcs))
    assert torch.allclose(found, N @ L @ N, atol=1e-12, rtol=0)
    values = torch.linalg.eigvalsh(found)
    assert float(values[0]) >= -1e-10 and float(values[-1]) < 2


def test_worked_edge() -> None:
    arcs = Arcs(torch.tensor([[0], [1]]), 2)
    maps = torch.tensor([[0.5], [-0.4]], dtype=torch.float64)  # of 0, then of 1: arcs are sorted by row
    assert torch.allclose(
        dense(SheafLaplacian(maps, arcs, "none")), torch.tensor([[0.25, 0.20], [0.20, 0.16]], dtype=torch.float64), atol=1e-15
    )
    near = 0.20 / 1.45**0.5
    wanted = torch.tensor([[0.2, near], [near, 0.16 / 1.16]], dtype=torch.float64)
    assert torch.allclose(dense(SheafLaplacian(maps, arcs)), wanted, atol=1e-6)

    layer = SheafDiffusion(1).double()
    with torch.no_grad():
        layer.linear.weight.fill_(1)
        layer.linear.bias.zero_()
        # tanh(a . [1 || 2]) = 0.5 and tanh(a . [2 || 1]) = -0.4 fix the two numbers of a
        wanted_a = torch.linalg.solve(
            torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64),
            torch.atanh(torch.tensor([0.5, -0.4], dtype=torch.float64)),
        )
        layer.maps.ends.weight.copy_(wanted_a[None])
    out = layer(torch.tensor([[1.0], [2.0]], dtype=torch.float64), arcs)
    assert out[:, 0].tolist() == pytest.approx([0.467818, 1.558047], abs=1e-6)


# -- limits ----------------------------------------------------------------------------------------------------------------
def graph_laplacian(arcs: Arcs) -> torch.Tensor:
    A = torch.zeros(arcs.nodes, arcs.nodes, dtype=torch.float64)
    A[arcs.row, arcs.column] = 1
    return torch.diag(A.sum(1)) - A


def test_all_ones_give_the_graph_laplacian() -> None:
    arcs = arcs_of(bipartite())
    ones = torch.ones(len(arcs.row), 1, dtype=torch.float64)
    assert torch.allclose(dense(SheafLaplacian(ones, arcs, "none")), graph_laplacian(arcs), atol=1e-12)


def test_constant_maps_without_the_augmentation_give_the_normalised_laplacian() -> None:
    arcs = arcs_of(bipartite())
    root = torch.diff(arcs.start).double().rsqrt()
    wanted = root[:, None] * graph_laplacian(arcs) * root
    constant = torch.full((len(arcs.row), 1), 0.3, dtype=torch.float64)
    assert torch.allclose(dense(SheafLaplacian(constant, arcs, "exact")), wanted, atol=1e-12)


def test_an_orthogonal_constant_gauge_gives_the_graph_laplacian() -> None:
    arcs = arcs_of(bipartite())
    Q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    found = dense(SheafLaplacian(Q.expand(len(arcs.row), 3, 3), arcs, "none", same_degree=True))
    assert torch.allclose(found, torch.kron(graph_laplacian(arcs), torch.eye(3, dtype=torch.float64)), atol=1e-12)


def test_known_degrees_equal_the_computed_ones() -> None:
    arcs = arcs_of(bipartite())
    layer = SheafDiffusion(6, 3, "orthogonal").double()
    maps = layer.maps(torch.randn(arcs.nodes, 6, dtype=torch.float64), arcs)
    assert torch.allclose(maps.transpose(1, 2) @ maps, torch.eye(3, dtype=torch.float64).expand_as(maps), atol=1e-12)
    for normalise in ("augmented", "exact", "none"):
        short, long = (SheafLaplacian(maps, arcs, normalise, same_degree=same) for same in (True, False))  # type: ignore[arg-type]
        assert torch.allclose(dense(short), dense(long), atol=1e-12)


def test_no_maps_and_no_step_leave_all_as_it_is() -> None:
    arcs = arcs_of(bipartite())
    X = torch.randn(arcs.nodes, 8)
    layer = SheafDiffusion(8)
    with torch.no_grad():
        layer.maps.ends.weight.zero_()
    assert torch.equal(layer(X, arcs), X)
    assert torch.equal(SheafDiffusion(8, 2, "general", step=0.0)(X, arcs), X)


def test_a_node_without_edges_keeps_its_vector() -> None:
    arcs = Arcs(torch.tensor([[0, 1], [2, 2]]), 4)
    X = torch.randn(4, 6)
    for kind, d in (("scalar", 1), ("diagonal", 2), ("orthogonal", 2), ("general", 3)):
        for normalise in ("augmented", "exact"):
            if (kind, normalise) == ("general", "exact"):
                continue  # G is singular there: the clamp makes it large, not infinite
            out = SheafDiffusion(6, d, kind, normalise=normalise)(X, arcs)  # type: ignore[arg-type]
            assert torch.equal(out[3], X[3]) and torch.isfinite(out).all()


@pytest.mark.parametrize("kind", ["diagonal", "general"])
def test_stalks_of_one_equal_the_scalar_path_exactly(kind: Any) -> None:
    arcs = arcs_of(bipartite())
    X = torch.randn(arcs.nodes, 8)
    torch.manual_seed(0)
    scalar = SheafDiffusion(8)
    torch.manual_seed(0)
    other = SheafDiffusion(8, 1, kind)
    assert torch.equal(scalar(X, arcs), other(X, arcs))
    one = SheafLaplacian(torch.ones(len(arcs.row), 1), arcs) @ X
    assert torch.equal(SheafDiffusion(8, 1, "orthogonal").laplacian(X, arcs) @ X, one)


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_global_sections_are_in_the_kernel(seed: int) -> None:
    arcs = arcs_of(bipartite(5, 4, 0.5, seed))
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(arcs.nodes, generator=generator, dtype=torch.float64) + 0.5
    agreed = torch.rand(len(arcs.row), generator=generator, dtype=torch.float64) - 0.5
    agreed = torch.where(arcs.row < arcs.column, agreed, agreed[arcs.rev])  # one value an edge
    f = agreed / x[arcs.row]  # so x_v f_e = x_u f_rev
    assert torch.allclose(SheafLaplacian(f[:, None], arcs, "none") @ x[:, None], torch.zeros(1, dtype=torch.float64), atol=1e-12)


def test_maps_are_those_of_the_formula() -> None:
    arcs = arcs_of(bipartite())
    X = torch.randn(arcs.nodes, 4, dtype=torch.float64)
    for kind, d in (("scalar", 1), ("diagonal", 2), ("general", 2), ("orthogonal", 2)):
        layer = SheafDiffusion(4, d, kind).double()  # type: ignore[arg-type]
        found = layer.maps(X, arcs)
        for e in range(len(arcs.row)):
            raw = torch.tanh(layer.maps.ends.weight @ torch.cat([X[arcs.row[e]], X[arcs.column[e]]]))
            if kind == "orthogonal":
                S = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64) * raw
                eye = torch.eye(2, dtype=torch.float64)
                raw = torch.linalg.inv(eye + S) @ (eye - S)
            assert torch.allclose(found[e].reshape(-1), raw.reshape(-1), atol=1e-12)


# -- the graph -------------------------------------------------------------------------------------------------------------
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rev_is_an_involution(users: int, items: int, seed: int) -> None:
    arcs = arcs_of(bipartite(users, items, 0.4, seed))
    assert torch.equal(arcs.rev[arcs.rev], torch.arange(len(arcs.rev)))
    assert torch.equal(arcs.row[arcs.rev], arcs.column) and torch.equal(arcs.column[arcs.rev], arcs.row)
    assert torch.equal(torch.sort(arcs.row * arcs.nodes + arcs.column).values, arcs.row * arcs.nodes + arcs.column)


def test_order_of_edges_and_ends_changes_nothing() -> None:
    pairs = bipartite()
    edges = pairs.edges()
    order = torch.randperm(edges.shape[1])
    turned = torch.where(torch.rand(edges.shape[1]) < 0.5, edges[:, order], edges[:, order].flip(0))
    X = torch.randn(13, 8)
    for d, kind in ((1, "scalar"), (2, "general"), (2, "orthogonal")):
        layer = SheafDiffusion(8, d, kind)  # type: ignore[arg-type]
        assert torch.equal(layer(X, Arcs(edges, 13)), layer(X, Arcs(turned, 13)))


@pytest.mark.parametrize("kind", ["scalar", *KINDS])
def test_relabelling_users_and_items_permutes_the_outcome(kind: Any) -> None:
    pairs = bipartite()
    place = torch.cat([torch.randperm(7), 7 + torch.randperm(6)])  # users among users, items among items
    layer = SheafDiffusion(8, 1 if kind == "scalar" else 2, kind).double()
    X = torch.randn(13, 8, dtype=torch.float64)
    moved = torch.empty_like(X)
    moved[place] = X
    here, there = layer(X, arcs_of(pairs)), layer(moved, Arcs(place[pairs.edges()], 13))
    assert torch.allclose(there[place], here, atol=1e-12)


def test_edges_that_are_no_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="2 edges stand more than once; merge them first"):
        Arcs(torch.tensor([[0, 1, 2, 0], [2, 2, 0, 2]]), 3)
    with pytest.raises(ValueError, match="1 edges join a node to itself"):
        Arcs(torch.tensor([[0, 1], [1, 1]]), 2)
    with pytest.raises(ValueError, match="outside of the 2 nodes"):
        Arcs(torch.tensor([[0], [2]]), 2)
    with pytest.raises(ValueError, match="width of 64 is no multiple of a stalk of 5"):
        SheafDiffusion(64, 5, "general")
    with pytest.raises(ValueError, match="scalar maps are for stalks of 1"):
        SheafDiffusion(64, 2, "scalar")
    with pytest.raises(ValueError, match="maps must be one of"):
        SheafDiffusion(64, 1, "wavy")  # type: ignore[arg-type]


# -- derivatives -----------------------------------------------------------------------------------------------------------
def test_derivative_of_the_product() -> None:
    arcs = arcs_of(bipartite(4, 3))
    values = torch.randn(len(arcs.row), dtype=torch.float64)
    values = (values + values[arcs.rev]).requires_grad_()
    X = torch.randn(arcs.nodes, 3, dtype=torch.float64, requires_grad=True)
    by_hand = torch.zeros(arcs.nodes, 3, dtype=torch.float64).index_add(0, arcs.row, values[:, None] * X[arcs.column])
    assert torch.allclose(symmetric_product(values, X, arcs.start, arcs.column), by_hand, atol=1e-14)
    assert torch.autograd.gradcheck(lambda v, x: symmetric_product(v, x, arcs.start, arcs.column), (values, X))


def test_derivative_of_the_root_is_finite_at_equal_eigenvalues() -> None:
    for A in (torch.eye(3, dtype=torch.float64) * 2, torch.diag(torch.tensor([2.0, 2.0, 5.0], dtype=torch.float64))):
        A = A[None].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda a: inverse_root((a + a.transpose(1, 2)) / 2), (A,))
    A = torch.randn(4, 3, 3, dtype=torch.float64)
    A = A @ A.transpose(1, 2) + torch.eye(3, dtype=torch.float64)
    N = inverse_root(A)
    assert torch.allclose(N @ A @ N, torch.eye(3, dtype=torch.float64).expand_as(A), atol=1e-12)


@pytest.mark.parametrize(("kind", "d"), [("scalar", 1), ("diagonal", 2), ("orthogonal", 3), ("general", 2)])
def test_derivative_of_the_layer(kind: Any, d: int) -> None:
    arcs = arcs_of(bipartite(2, 2))
    width = 3 if d == 3 else 2
    layer = SheafDiffusion(width, d, kind).double()
    X = torch.randn(arcs.nodes, width, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def at(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x, arcs))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(at, (X, *values))


# -- the network -----------------------------------------------------------------------------------------------------------
def test_without_weights_all_layers_are_the_factorisation() -> None:
    pairs = bipartite()
    net = Sheaf4Rec(pairs, 8, 3)
    with torch.no_grad():
        for layer in net.layers:
            layer.linear.weight.zero_()
            layer.linear.bias.zero_()
    out = net()
    assert torch.equal(out, net.X.repeat(1, 4))
    scores, plain = out[:7] @ out[7:].T, net.X[:7] @ net.X[7:].T
    assert torch.allclose(scores, 4 * plain, atol=1e-6)


@pytest.mark.parametrize(("kind", "d", "k"), [("scalar", 1, 1), ("diagonal", 4, 4), ("general", 4, 16), ("orthogonal", 4, 6)])
def test_parameter_count(kind: Any, d: int, k: int) -> None:
    n, D, L = 13, 16, 3
    net = Sheaf4Rec(bipartite(), D, L, d, kind)
    assert sum(p.numel() for p in net.parameters()) == n * D + L * (D**2 + D + 2 * D * k)
    assert net().shape == (n, (L + 1) * D)


def test_a_layer_by_plain_matrices() -> None:
    """The whole layer, scalar stalks, written out with dense matrices in another way."""
    pairs = bipartite(seed=5)
    arcs = arcs_of(pairs)
    layer = SheafDiffusion(4, step=0.7).double()
    X = torch.randn(13, 4, dtype=torch.float64)
    a = layer.maps.ends.weight[0]
    f = torch.zeros(13, 13, dtype=torch.float64)
    for u, i in zip(pairs.user.tolist(), pairs.item.tolist(), strict=True):
        v, w = u, 7 + i
        f[v, w], f[w, v] = torch.tanh(a @ torch.cat([X[v], X[w]])), torch.tanh(a @ torch.cat([X[w], X[v]]))
    L = torch.diag((f**2).sum(1)) - f * f.T
    N = torch.diag(((f**2).sum(1) + 1) ** -0.5)
    wanted = X - 0.7 * N @ L @ N @ F.linear(X, layer.linear.weight, layer.linear.bias)
    assert torch.allclose(layer(X, arcs), wanted, atol=1e-12)


@pytest.mark.parametrize(("d", "full"), [(2, False), (2, True)])
def test_wide_stalks_are_rows_of_their_own(d: int, full: bool) -> None:
    arcs = arcs_of(bipartite())
    operator = SheafLaplacian(some_maps(arcs, d, full), arcs)
    X = torch.randn(arcs.nodes, d * 3, dtype=torch.float64)
    by_column = [dense(operator) @ X.view(arcs.nodes, d, 3)[..., k].reshape(-1) for k in range(3)]
    wanted = torch.stack([y.view(arcs.nodes, d) for y in by_column], 2).reshape(arcs.nodes, -1)
    assert torch.allclose(operator @ X, wanted, atol=1e-12)
