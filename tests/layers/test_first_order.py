"""Backward passes without a derivative of their own say so, also where the gradient that comes in is a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latticework.layers.contrastive import block_sum
from latticework.layers.selective_scan import selective_scan
from latticework.links.sheaf_recsys import inverse_root


def scanned(x: Tensor) -> Tensor:
    rows = x[None]
    return selective_scan(
        rows, rows.detach().abs(), -torch.ones(4, 2).double(), rows[..., :2], rows[..., :2], backend="numba"
    ).sum()


@pytest.mark.parametrize(
    "value",
    [
        scanned,
        lambda x: block_sum(lambda rows, held: held[rows].square().sum(), torch.arange(4), [x], 2),
        lambda x: inverse_root(x @ x.T + torch.eye(4).double()).sum(),
    ],
)
def test_second_derivatives_are_refused_and_first_ones_given(value: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    (first,) = torch.autograd.grad(value(x), x)
    assert bool(torch.isfinite(first).all()) and float(first.abs().max()) > 0
    with pytest.raises(RuntimeError, match="first derivatives alone"):
        torch.autograd.grad(value(x), x, create_graph=True)
