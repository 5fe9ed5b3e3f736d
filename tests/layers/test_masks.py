"""Dropout masks: their law, the same for any number of threads, torch's own where a gradient is asked for."""

from __future__ import annotations

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.layers import sparse_features
from latticework.layers.masks import LANES, dropped
from latticework.layers.sparse_features import feature_dropout


@given(seed=st.integers(0, 2**32), n=st.integers(1, 7), f=st.integers(1, 11), passes=st.integers(1, 4), rate=st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_entries_are_zero_or_scaled(seed: int, n: int, f: int, passes: int, rate: float) -> None:
    x = torch.randn(f, n, generator=torch.Generator().manual_seed(seed)).T  # not contiguous where n and f are above 1
    torch.manual_seed(seed)
    out = dropped(x, passes, rate)
    assert out.shape == (passes, n, f)
    kept = out != 0
    torch.testing.assert_close(out[kept], (x / (1 - rate)).expand(passes, n, f)[kept])
    torch.manual_seed(seed)
    assert torch.equal(dropped(x, passes, rate), out)
    assert not torch.equal(dropped(x, 40, 0.5), dropped(x, 40, 0.5))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_the_law_of_the_masks(rate: float) -> None:
    """Shares within five standard errors: over all, by row, by column and by pass; neighbours in each direction independent."""
    torch.manual_seed(0)
    kept = (dropped(torch.ones(60, 50), 400, rate) != 0).double()
    for over in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
        share = kept.mean(over)
        error = (rate * (1 - rate) * share.numel() / kept.numel()) ** 0.5
        assert float((share - (1 - rate)).abs().max()) <= 5 * error + 1 / LANES
    centred = kept - kept.mean()
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1]), (centred[..., 1:], centred[..., :-1])):
        assert abs(float((a * b).mean())) <= 5 * rate * (1 - rate) / a.numel() ** 0.5


def test_the_same_masks_for_any_number_of_threads() -> None:
    x = torch.rand(500, 33)
    before, found = numba.get_num_threads(), []
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            torch.manual_seed(7)
            found.append(dropped(x, 3, 0.3))
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


def test_torch_draws_where_a_gradient_is_asked_for() -> None:
    x = torch.rand(30, 20, requires_grad=True)
    out = dropped(x, 2, 0.5)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, ((out != 0) / 0.5).sum(0))
    assert dropped(torch.rand(3, 2, dtype=torch.float64), 2, 0.5).dtype == torch.float64
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="rate"):
            dropped(x, 1, rate)


def test_large_dense_features_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(40, 30)
    torch.manual_seed(0)
    ours = dropped(x, 1, 0.5)[0]
    monkeypatch.setattr(sparse_features, "LARGE", x.numel())
    torch.manual_seed(0)
    assert torch.equal(feature_dropout(x, 0.5, True), ours)  # type: ignore[arg-type]
    assert feature_dropout(x, 0.5, False) is x
    monkeypatch.setattr(sparse_features, "LARGE", x.numel() + 1)
    torch.manual_seed(0)
    theirs = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(feature_dropout(x, 0.5, True), theirs)  # type: ignore[arg-type]
