"""Attention over neighbours: the sum that PyG's layers make, its gradients, its masks, and the same bits for any number of threads."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from latticework.layers import attention
from latticework.layers.attention import Edges, attend, attention_weights


def edges_of(n: int, m: int, chance: float, seed: int = 0) -> Edges:
    return Edges(sp.csr_array((np.random.default_rng(seed).random((n, m)) < chance).astype(float)))


def draws(edges: Edges, heads: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    n, m = edges.shape
    made = torch.Generator().manual_seed(1)
    sizes = ((n, heads), (m, heads), (m, heads, width))
    return [torch.randn(size, generator=made, dtype=dtype).requires_grad_() for size in sizes]


@given(n=st.integers(0, 7), m=st.integers(0, 7), heads=st.integers(1, 5), width=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_node_sums_what_it_reads_by_a_softmax(n: int, m: int, heads: int, width: int, seed: int) -> None:
    edges = edges_of(n, m, 0.5, seed)
    here, there, R = draws(edges, heads, width)
    found = attend(attention_weights(here, there, edges, 0.3), R, edges)
    for i in range(n):
        mine = edges.column[edges.row == i]
        if len(mine):
            a = torch.softmax(F.leaky_relu(here[i] + there[mine], 0.3), 0)
            torch.testing.assert_close(found[i], (a[:, :, None] * R[mine]).sum(0))
        else:
            assert not found[i].any()
    assert found.shape == (n, heads, width)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_gradients_are_those_of_finite_differences_twice(rate: float) -> None:
    edges = edges_of(5, 4, 0.6)
    given_ = draws(edges, 3, 2)

    def run(here: Tensor, there: Tensor, R: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend(attention_weights(here, there, edges, 0.2, rate), R, edges)

    assert torch.autograd.gradcheck(run, given_)
    assert torch.autograd.gradgradcheck(run, given_)


def test_it_is_pygs_layer() -> None:
    from torch_geometric.nn import GATConv

    edges = edges_of(40, 40, 0.2)
    conv = GATConv(6, 3, heads=4, add_self_loops=False).double()
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    R = conv.lin(x).unflatten(1, (4, 3))
    weights = attention_weights((R * conv.att_dst).sum(2), (R * conv.att_src).sum(2), edges)
    ours, theirs = attend(weights, R, edges).flatten(1) + conv.bias, conv(x, torch.stack([edges.column, edges.row]))
    torch.testing.assert_close(ours, theirs)
    by = torch.randn_like(ours)
    held = [x, *conv.parameters()]
    for a, b in zip(torch.autograd.grad(ours, held, by), torch.autograd.grad(theirs, held, by), strict=True):
        torch.testing.assert_close(a, b)


def test_dropped_weights_are_as_many_and_as_large_as_asked() -> None:
    edges = edges_of(300, 300, 0.5)
    here, there, _ = draws(edges, 7, 1, torch.float32)
    full = attention_weights(here, there, edges, dropout=0.3, training=False)
    torch.manual_seed(0)
    some = attention_weights(here, there, edges, dropout=0.3)
    assert torch.equal(full, attention_weights(here, there, edges))
    kept = some > 0
    torch.testing.assert_close(some[kept], full[kept] / 0.7)
    spread = 4 * (0.3 * 0.7 / len(edges)) ** 0.5  # of a share among so many, four deviations
    assert ((~kept).double().mean(0) - 0.3).abs().max() < spread
    for h in range(6):  # no head's mask tells of another's
        assert abs(np.corrcoef(kept[:, h].numpy(), kept[:, h + 1].numpy())[0, 1]) < 4 / len(edges) ** 0.5
    assert not torch.equal(some, attention_weights(here, there, edges, dropout=0.3))
    torch.manual_seed(0)
    assert torch.equal(some, attention_weights(here, there, edges, dropout=0.3))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is allowed")
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = edges_of(400, 400, 0.3)
    assert len(edges) > 1 << 14
    given_ = draws(edges, 4, 8, torch.float32)

    def run(count: int) -> list[Tensor]:
        monkeypatch.setattr(attention, "threads", lambda: count)
        torch.manual_seed(5)
        out = attend(attention_weights(*given_[:2], edges, dropout=0.5), given_[2], edges)
        return [out, *torch.autograd.grad(out.square().sum(), given_)]

    for a, b in zip(run(1), run(2), strict=True):
        assert torch.equal(a, b)


def test_other_places_and_numbers_take_torchs_way() -> None:
    edges = edges_of(6, 6, 0.5)
    here, there, R = (x.detach() for x in draws(edges, 2, 3, torch.float32))
    expected = attend(attention_weights(here, there, edges), R, edges)
    half = attend(attention_weights(here.bfloat16(), there.bfloat16(), edges), R.bfloat16(), edges)
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


def test_the_transpose_numbers_the_same_edges() -> None:
    edges = edges_of(5, 7, 0.5)
    turned = edges.T
    assert turned.shape == (7, 5) and torch.equal(turned.row, edges.column[edges.order])
    assert torch.equal(turned.column, edges.row[edges.order])
    values = torch.rand(len(edges))
    assert np.array_equal(turned.matrix(values[edges.order]).toarray(), edges.matrix(values).toarray().T)


def test_what_does_not_fit_is_refused() -> None:
    edges = edges_of(4, 3, 0.9)
    here, there, R = draws(edges, 2, 2)
    for wrong in ((there, here), (here[:, :1], there), (here, there[0])):
        with pytest.raises(ValueError, match="edges of shape"):
            attention_weights(*wrong, edges)
    for slope, dropout in ((-0.1, 0.0), (1.5, 0.0), (0.2, 1.0), (0.2, -0.1)):
        with pytest.raises(ValueError, match="slope must be"):
            attention_weights(here, there, edges, slope, dropout)
    with pytest.raises(ValueError, match="edges of shape"):
        attend(torch.ones(len(edges), 3), R, edges)
