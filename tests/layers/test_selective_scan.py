"""The selective scan against its definition: values, gradients, limits, causality, padding; the bidirectional block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latticework.layers.selective_scan import BLOCK, EVERY, BidirectionalMamba, SelectiveSSM, scan_by_steps, selective_scan

Pieces = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def pieces(b: int, steps: int, e: int, N: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Pieces:
    torch.manual_seed(seed)
    made = (
        torch.randn(b, steps, e, dtype=dtype), 0.5 * torch.rand(b, steps, e, dtype=dtype), -4 * torch.rand(e, N, dtype=dtype),
        torch.randn(b, steps, N, dtype=dtype), torch.randn(b, steps, N, dtype=dtype), torch.randn(e, dtype=dtype),
    )  # fmt: skip
    return tuple(x.requires_grad_() for x in made)  # type: ignore[return-value]


def with_gradients(y: Tensor, given: Pieces, weight: Tensor) -> list[Tensor]:
    return [y, *torch.autograd.grad((y * weight).sum(), given)]


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 2 * EVERY + 3), st.integers(1, BLOCK + 5), st.integers(1, 5), st.booleans(), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_kernels_and_chunks_equal_the_loop_with_gradients(
    b: int, steps: int, e: int, N: int, reverse: bool, masked: bool, seed: int
) -> None:
    held = pieces(b, steps, e, N, seed=seed)
    mask = torch.rand(b, steps) < 0.7 if masked else None
    weight = torch.randn(b, steps, e, dtype=torch.float64)
    wanted = with_gradients(scan_by_steps(*held, mask=mask, reverse=reverse), held, weight)
    for backend in ("numba", "torch"):
        found = with_gradients(selective_scan(*held, mask=mask, reverse=reverse, backend=backend, chunk=16), held, weight)  # type: ignore[arg-type]
        assert max(far(x, y) for x, y in zip(found, wanted, strict=True)) < 1e-10, backend


def test_no_steps_give_nothing() -> None:
    held = [x.detach() for x in pieces(2, 0, 3, 2)]
    assert scan_by_steps(*held).shape == selective_scan(*held).shape == (2, 0, 3)


def test_single_precision() -> None:
    held = pieces(2, 3 * EVERY + 5, 33, 16, torch.float32)
    exact = tuple(x.detach().double().requires_grad_() for x in held)
    weight = torch.randn(held[0].shape)
    wanted = with_gradients(scan_by_steps(*exact), exact, weight.double())  # type: ignore[arg-type]
    for backend in ("numba", "torch"):
        found = with_gradients(selective_scan(*held, backend=backend), held, weight)  # type: ignore[arg-type]
        assert all(x.dtype == torch.float32 for x in found)
        assert max(far(x.double(), y) for x, y in zip(found, wanted, strict=True)) < 1e-5, backend
    half = selective_scan(*(x.detach().bfloat16() for x in held))
    assert half.dtype == torch.bfloat16 and far(half.double(), wanted[0]) < 0.1


def test_a_long_sequence_against_a_recurrence_in_numpy() -> None:
    u, delta, A, B, C, D = (x.detach() for x in pieces(1, 65_536, 2, 2))
    y = selective_scan(u, delta, A, B, C, D)[0].numpy()
    a = np.exp(delta[0].numpy()[:, :, None] * A.numpy())
    fed = (delta * u)[0].numpy()[:, :, None] * B[0].numpy()[:, None]
    h, wanted, out = np.zeros((2, 2)), np.empty_like(y), C[0].numpy()
    for t in range(len(y)):
        h = a[t] * h + fed[t]
        wanted[t] = h @ out[t] + D.numpy() * u[0, t].numpy()
    assert np.abs(y - wanted).max() < 1e-10
    back = selective_scan(*(x.flip(1) for x in (u, delta)), A, *(x.flip(1) for x in (B, C)), D, reverse=True)[0].flip(0).numpy()
    assert np.array_equal(back, y)


def test_memory_grows_with_the_input_and_not_with_the_states() -> None:
    """What is kept for the backward pass: the inputs, and one state in EVERY steps."""
    held = pieces(1, 4096, 8, 16, torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        selective_scan(*held)
    inputs = sum(x.numel() for x in held)
    assert sum(kept) <= inputs + 4096 // EVERY * 8 * 16


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_worked_example_and_limits(backend: Any) -> None:
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    A = torch.full((1, 1), -math.log(2), dtype=torch.float64)
    impulse = torch.tensor([1.0, 0, 0], dtype=torch.float64)[None, :, None]
    zero = torch.zeros(1, dtype=torch.float64)
    got = selective_scan(impulse, one, A, one, one, zero, backend=backend).flatten()
    assert got.tolist() == pytest.approx([1, 0.5, 0.25], abs=1e-15)
    assert selective_scan(one, one, A, one, one, backend=backend).flatten().tolist() == pytest.approx([1, 1.5, 1.75], abs=1e-15)
    u, delta, A, B, C, D = pieces(2, 40, 3, 4)
    still = selective_scan(u, torch.zeros_like(delta), A, B, C, D, backend=backend)
    assert torch.equal(still, D * u)  # Delta -> 0
    ones = torch.ones(2, 40, 1, dtype=torch.float64)
    sums = selective_scan(u, delta, torch.zeros(3, 1, dtype=torch.float64), ones, ones, backend=backend)
    assert far(sums, (delta * u).cumsum(1)) < 1e-12  # A = 0: the running sum
    assert selective_scan(*(x[:, :0] for x in (u, delta)), A, B[:, :0], C[:, :0], D, backend=backend).shape == (2, 0, 3)


def test_extreme_decay_neither_overflows_nor_divides() -> None:
    u, delta, A, B, C, D = (x.detach() for x in pieces(1, 200, 2, 3))
    delta, A = delta + 50, A * 1000
    for backend in ("numba", "torch"):
        y = selective_scan(u, delta, A, B, C, D, backend=backend)  # type: ignore[arg-type]
        alone = delta * u * (B * C).sum(-1, keepdim=True) + D * u  # nothing is remembered
        assert bool(torch.isfinite(y).all()) and far(y, alone) < 1e-12
    u[0, 5] = math.nan
    got = selective_scan(u, delta, A, B, C, D)
    assert bool(torch.isnan(got[0, 5:]).all()) and bool(torch.isfinite(got[0, :5]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_so_large_that_all_is_forgotten_has_no_gradient_by_the_decay(dtype: torch.dtype) -> None:
    u, delta, A, B, C, D = (x.detach().to(dtype) for x in pieces(1, 6, 2, 3))
    A = A.requires_grad_()
    for backend in ("numba", "torch"):
        y = selective_scan(u, delta + 1e20, A, B, C, D, backend=backend)  # type: ignore[arg-type]
        [by_A] = torch.autograd.grad(y.sum(), A)
        assert not by_A.any(), backend


def test_mixed_precision() -> None:
    torch.manual_seed(0)
    net, x = block().float().eval(), torch.randn(2, 9, 6)
    whole = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x)
    half.sum().backward()
    assert far(half.double(), whole.double()) < 0.05 and all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_causal_bit_by_bit(backend: Any) -> None:
    held = [x.detach() for x in pieces(2, 80, 5, 4)]
    before = selective_scan(*held, backend=backend)
    for k in (0, 1, 3, 4):
        held[k] = held[k].clone()
        held[k][:, 50:] = torch.rand_like(held[k][:, 50:])
    after = selective_scan(*held, backend=backend)
    assert torch.equal(before[:, :50], after[:, :50]) and not torch.equal(before[:, 50:], after[:, 50:])


def test_padding_before_between_and_after_changes_nothing() -> None:
    held = [x.detach() for x in pieces(3, 20, 70, 4)]
    y = selective_scan(*held)
    place = torch.tensor([i for i in range(31) if i not in (0, 1, 2, 9, 10, 17, 25, 26, 28, 29, 30)])
    mask = torch.zeros(3, 31, dtype=torch.bool)
    mask[:, place] = True
    wide = []
    for x in held:
        if x.ndim == 3:
            padded = torch.rand(3, 31, x.shape[2], dtype=x.dtype)
            padded[:, place] = x
            x = padded
        wide.append(x)
    for reverse in (False, True):
        got = selective_scan(*wide, mask=mask, reverse=reverse)
        assert torch.equal(got[:, place], selective_scan(*held, reverse=reverse)) and not got[~mask].any()
    assert torch.equal(selective_scan(*(x[[2, 0, 1]] if x.ndim == 3 else x for x in held)), y[[2, 0, 1]])


# -- the block --------------------------------------------------------------------------------------------------------------
def block(bidirectional: bool = True, **more: Any) -> BidirectionalMamba:
    torch.manual_seed(1)
    return BidirectionalMamba(6, state=4, bidirectional=bidirectional, **more).double()


def test_tied_directions_turn_with_the_sequence() -> None:
    net, x = block().tie(), torch.randn(2, 9, 6, dtype=torch.float64)
    assert float((net(x.flip(1)) - net(x).flip(1)).detach().abs().max()) < 1e-12
    assert float((block()(x.flip(1)) - block()(x).flip(1)).detach().abs().max()) > 1e-3
    loose, tied = (sum(p.numel() for p in m.parameters()) for m in (block(), net))
    assert loose - tied == sum(p.numel() for p in net.onward.parameters())


def test_one_direction_is_causal_and_two_are_not() -> None:
    x = torch.randn(1, 12, 6, dtype=torch.float64)
    other = x.clone()
    other[:, 8:] = torch.randn(1, 4, 6, dtype=torch.float64)
    causal, both = block(False), block()
    assert torch.equal(causal(x)[:, :8], causal(other)[:, :8])
    assert float((both(x) - both(other)).detach()[:, :8].abs().max()) > 1e-6


@pytest.mark.parametrize("bidirectional", [True, False])
def test_padding_and_batch_order_of_the_block(bidirectional: bool) -> None:
    net, x = block(bidirectional), torch.randn(3, 7, 6, dtype=torch.float64)
    y = net(x)
    for front, back in ((4, 0), (0, 3), (2, 2)):
        wide = torch.randn(3, front + 7 + back, 6, dtype=torch.float64)
        wide[:, front : front + 7] = x
        mask = torch.zeros(wide.shape[:2], dtype=torch.bool)
        mask[:, front : front + 7] = True
        got = net(wide, mask)
        assert float((got[:, front : front + 7] - y).detach().abs().max()) < 1e-12
        assert torch.equal(got[~mask], wide[~mask])
    assert float((net(x[[2, 0, 1]]) - y[[2, 0, 1]]).detach().abs().max()) < 1e-12
    torch.testing.assert_close(net(x, backend="torch"), y, rtol=0, atol=1e-10)


def test_direction_by_hand() -> None:
    """The convolution, the maps and the gate as the formulas say, one step at a time."""
    torch.manual_seed(3)
    net = SelectiveSSM(3, 4, state=2, conv=3, rank=1).double()
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    W = net.enter.weight
    v, z = x[0] @ W[:4].T, x[0] @ W[4:].T
    h, wanted = torch.zeros(4, 2, dtype=torch.float64), []
    for t in range(5):
        c = sum((net.conv[i] * v[t - i] for i in range(3) if t >= i), net.conv_bias)
        c = c / (1 + torch.exp(-c))
        chosen = net.choose.weight @ c
        q, B, C = chosen[:1], chosen[1:3], chosen[3:]
        delta = torch.log1p(torch.exp(net.step.weight @ q + net.step.bias))
        h = torch.exp(-delta[:, None] * torch.exp(net.A_log)) * h + (delta * c)[:, None] * B
        wanted.append((h @ C + net.D * c) * z[t] / (1 + torch.exp(-z[t])))
    torch.testing.assert_close(net(x)[0], torch.stack(wanted), rtol=0, atol=1e-12)


def test_first_weights_are_those_of_mamba() -> None:
    torch.manual_seed(0)
    net = SelectiveSSM(64, 128, state=16)
    torch.testing.assert_close(net.A_log.exp(), torch.arange(1.0, 17).expand(128, -1))
    first = torch.nn.functional.softplus(net.step.bias)
    assert float(first.min()) >= 0.999e-3 and float(first.max()) <= 0.1001 and bool((net.D == 1).all())
    assert net.rank == 4 and net.conv.shape == (4, 128)


def test_mistakes_are_named() -> None:
    u, delta, A, B, C, D = pieces(2, 5, 3, 4)
    for given_, words in (
        ((u, delta[:, :4], A, B, C, D), "alike"), ((u, delta, A[:2], B, C, D), r"A is \[3, N\]"),
        ((u, delta, A, B[:, :, :3], C, D), "B and C"), ((u, delta, A, B, C, D[:2]), r"D is \[3\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            selective_scan(*given_)
    with pytest.raises(ValueError, match="mask"):
        selective_scan(u, delta, A, B, C, D, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="backend"):
        selective_scan(u, delta, A, B, C, D, backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="runs on a CPU"):
        selective_scan(*(x.detach().to("meta") for x in (u, delta, A, B, C, D)), backend="numba")
    with pytest.raises(TypeError, match="one dtype"):
        selective_scan(u, delta.float(), A, B, C, D)
    with pytest.raises(ValueError, match="longer than the 8 allowed"):
        block(longest=8)(torch.zeros(1, 9, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\[b, l, 6\]"):
        block()(torch.zeros(1, 9, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="1 or more"):
        SelectiveSSM(4, 0)
    for wrong in ({"dropout": 1.5}, {"longest": -1}):
        with pytest.raises(ValueError, match=r"dropout lies in"):
            block(**wrong)


def test_a_direction_equals_the_block_of_mambapy() -> None:
    """The same weights in another's block of the same paper give the same answers and gradients."""
    mamba = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    theirs = mamba.MambaBlock(mamba.MambaConfig(d_model=8, n_layers=1, d_state=4))
    ours = SelectiveSSM(8, 16, state=4)
    with torch.no_grad():
        ours.enter.weight.copy_(theirs.in_proj.weight)
        ours.conv.copy_(theirs.conv1d.weight[:, 0].flip(1).T)
        ours.conv_bias.copy_(theirs.conv1d.bias)
        ours.choose.weight.copy_(theirs.x_proj.weight)
        ours.step.weight.copy_(theirs.dt_proj.weight)
        ours.step.bias.copy_(theirs.dt_proj.bias)
        ours.A_log.copy_(theirs.A_log)
        ours.D.copy_(theirs.D)
    x = torch.randn(2, 21, 8)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, wanted = ours(a) @ theirs.out_proj.weight.T.detach(), theirs(b)
    assert far(y, wanted) < 1e-5
    y.square().sum().backward(), wanted.square().sum().backward()
    assert a.grad is not None and b.grad is not None and far(a.grad, b.grad) < 1e-5


def test_a_second_derivative_is_right_or_refused() -> None:
    """torch's operators give it; the compiled kernels say that they do not, whatever the read-out."""
    held = pieces(1, 5, 2, 2)
    y = selective_scan(*held, backend="torch")
    (first,) = torch.autograd.grad(y.sum(), held[1], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), held[1])
    assert float(second.abs().max()) > 0.1
    with pytest.raises(RuntimeError, match="backend='torch'"):
        torch.autograd.grad(selective_scan(*held, backend="numba").sum(), held[1], create_graph=True)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_padding_may_hold_anything(backend: Any) -> None:
    given = [x.detach() for x in pieces(2, 6, 3, 2)]
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :3] = False
    clean = selective_scan(*given, mask=mask, backend=backend)
    for k in (0, 1, 3, 4):
        spoilt = [x.clone() for x in given]
        spoilt[k][0, :3] = math.nan
        assert torch.equal(selective_scan(*spoilt, mask=mask, backend=backend), clean)
        torch.testing.assert_close(scan_by_steps(*spoilt, mask=mask), clean)
