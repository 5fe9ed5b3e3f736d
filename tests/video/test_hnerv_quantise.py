"""The quantiser of HNeRV: its worked example, exact constants, the bound on its error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latticework.video.hnerv.quantise import WHOLE, quantise

TENSORS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=7), elements=st.floats(-1e3, 1e3, width=32)
)  # fmt: skip


def test_worked_example() -> None:
    q = quantise(torch.tensor([0, 0.1, 0.5, 1]), 2)
    assert q.symbols.tolist() == [0, 0, 2, 3]  # 0.5 stands at 1.5 levels: halves go to the even one
    torch.testing.assert_close(q.values(), torch.tensor([0, 0, 2 / 3, 1]))
    assert float((q.values() - torch.tensor([0, 0.1, 0.5, 1])).abs().mean()) == pytest.approx(0.0667, abs=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e-30, 1e30])
def test_constant_is_exact(bits: int, value: float) -> None:
    for shape in ((5,), (70, 60, 3)):
        x = torch.full(shape, value)
        q = quantise(x, bits)
        assert torch.equal(q.values(), x) and q.axis == WHOLE


@settings(deadline=None, max_examples=60)
@given(TENSORS, st.integers(1, 8))
def test_error_is_at_most_half_a_level(x: np.ndarray, bits: int) -> None:
    t = torch.from_numpy(x)
    q = quantise(t, bits)
    assert int(q.symbols.min()) >= 0 and int(q.symbols.max()) <= 2**bits - 1
    assert q.axis == WHOLE  # no axis here is long enough for slices
    slack = 4e-7 * float(t.abs().max()) + 255 * 2e-45  # float32 rounding of min + scale q, and of a subnormal scale
    assert float((q.values() - t).abs().max()) <= float(q.scale) / 2 + slack


def test_slices_are_taken_where_they_err_less() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 200) * torch.logspace(-3, 0, 60)[:, None]
    q = quantise(x, 4)
    assert q.axis == 1 and q.low.shape == (60, 1) and q.low.dtype == torch.float16
    whole = (x.max() - x.min()) / 15
    plain = x.min() + whole * torch.round((x - x.min()) / whole)
    assert float((q.values() - x).abs().mean()) < 0.5 * float((plain - x).abs().mean())
    assert q.side_bits == 2 * 60 * 16


def test_slices_need_a_long_axis() -> None:
    """A minimum a slice must be fewer than 2 % of the elements: the axis holds more than 50."""
    scale = torch.logspace(-3, 0, 60)[:, None]
    torch.manual_seed(0)
    assert quantise(torch.randn(60, 50) * scale, 4).axis != 1
    assert quantise(torch.randn(60, 51) * scale, 4).axis == 1


def test_constant_slices_give_no_nan() -> None:
    x = torch.cat([torch.full((1, 100), 0.5), torch.randn(60, 100)])
    for bits in (1, 8):
        assert torch.isfinite(quantise(x, bits).values()).all()
    big = torch.cat([torch.full((30, 100), 1e6), torch.zeros(30, 100)])  # beyond float16: only the whole tensor can hold it
    assert torch.equal(quantise(big, 8).values(), big)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_bounds(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        quantise(torch.ones(3), bits)
    with pytest.raises(ValueError, match="finite"):
        quantise(torch.tensor([1.0, float("nan")]), 8)
