"""Contrastive losses over all pairs of two views, computed block by block of rows: n^2 numbers are never held at once.

The loss of a block of anchors and its gradient are taken together, in the forward pass, and the block is forgotten:
memory is O(block x n) instead of O(n^2), and nothing is computed twice.

Source: InfoNCE is equation 4 of van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .first_order import first_order

# (rows int64 [b], anchors [n, d], others [n, d], *parameters) -> weights [b, n] >= 0
Weights = Callable[..., Tensor]
BLOCK = 512


class _BlockSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Callable[..., Tensor], rows: Tensor, block: int, *tensors: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, wanted, strict=True)]
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = [torch.zeros_like(leaf) for leaf in learned]
        total = tensors[0].new_zeros(())
        for some in rows.split(block):
            with torch.set_grad_enabled(bool(learned)):
                part = value(some, *leaves)
            total += part.detach()
            if learned:
                for kept, new in zip(gradients, torch.autograd.grad(part, learned, allow_unused=True), strict=True):
                    if new is not None:
                        kept += new
        ctx.wanted = wanted
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @first_order("sum the blocks with torch's operators, outside block_sum")
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        found = iter(ctx.saved_tensors)
        return (None, None, None, *(upstream[0] * next(found) if need else None for need in ctx.wanted))


def block_sum(value: Callable[..., Tensor], rows: Tensor, tensors: Sequence[Tensor], block: int = BLOCK) -> Tensor:
    """``sum over blocks of value(rows of the block, *tensors)``, a scalar, differentiable once in the tensors.

    `rows` int64 [m]; `value` gives a scalar and sees everything that it differentiates in its arguments. ``ValueError``
    for block < 1.
    """
    if block < 1:
        raise ValueError(f"block must be >= 1, is {block}")
    total: Tensor = _BlockSum.apply(value, rows, block, *tensors)
    return total


def weighted_info_nce(
    anchors: Tensor,
    others: Tensor,
    tau: float,
    weights: Weights | None = None,
    *,
    parameters: Sequence[Tensor] = (),
    rows: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """``-mean_i log( e^(s_ii / tau) / sum_j w_ij e^(s_ij / tau) )`` with ``s_ij = <anchors_i, others_j>``.

    `weights` gives the rows of ``w >= 0`` that are asked for; without it w is 1, which is InfoNCE with the positive among
    the negatives. It may depend on both views and on `parameters`, and gradients flow into all of them. Its gradient is
    ``dL/ds_ij = (p_ij - [i = j]) / (n tau)``, ``p_ij = w_ij e^(s_ij/tau) / sum_l w_il e^(s_il/tau)``.

    Shapes: anchors, others [n, d] float -> scalar; `rows` int64 [m], the anchors that count (all of them). Stable for any
    tau: the largest exponent of a row is taken out. ``ValueError`` for tau <= 0, views of different shapes, and a row
    whose weights are all 0 (its denominator is empty).
    """
    if not tau > 0:
        raise ValueError(f"tau must be > 0, is {tau}")
    if anchors.ndim != 2 or anchors.shape != others.shape:
        raise ValueError(f"the views must have one shape [n, d], have {tuple(anchors.shape)} and {tuple(others.shape)}")
    if rows is None:
        rows = torch.arange(len(anchors), device=anchors.device)

    def value(some: Tensor, a: Tensor, o: Tensor, *more: Tensor) -> Tensor:
        logits = a[some] @ o.T / tau
        own = (a[some] * o[some]).sum(1) / tau
        if weights is None:
            return (torch.logsumexp(logits, 1) - own).sum()
        w = weights(some, a, o, *more)
        top = logits.detach().masked_fill(w.detach() <= 0, -torch.inf).amax(1, keepdim=True)
        if not bool(torch.isfinite(top).all()):
            row = int(some[int(torch.nonzero(~torch.isfinite(top[:, 0]))[0])])
            raise ValueError(f"row {row} has no negative of weight > 0: its denominator is empty")
        # where w is 0 the exponent may be above the top: cut, so that 0 times infinity cannot come up
        mass = (w * torch.exp((logits - top).clamp(max=0.0))).sum(1)
        return (torch.log(mass) + top[:, 0] - own).sum()

    return block_sum(value, rows, (anchors, others, *parameters), block) / len(rows)
