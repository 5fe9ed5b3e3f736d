"""The product of a symmetric sparse matrix, whose values may be learned, with a dense one.

Where `SparseOperator` holds constant values, here the pattern is constant and the values are an argument with a gradient.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

with warnings.catch_warnings():  # torch says once that CSR is young; it is used here for products alone
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1), check_invariants=False)


def csr(start: Tensor, column: Tensor, values: Tensor) -> Tensor:
    """A square CSR tensor on the arrays as they are: start int64 [n + 1], column int64 [m], values [m]."""
    n = len(start) - 1
    return torch.sparse_csr_tensor(start, column, values, (n, n), check_invariants=False)


def symmetric_product(values: Tensor, X: Tensor, start: Tensor, column: Tensor) -> Tensor:
    """``Y = A X`` with A symmetric [n, n] in CSR (`start` [n + 1], `column` [m], `values` [m]) and X [n, D].

    ``dL/dX = A dL/dY``, by the symmetry, and ``dL/dA_vu = <dL/dY_v, X_u>`` on the pattern, without an [m, D] array in either
    direction. The caller sees to it that the values are symmetric; each entry's gradient is that of this entry alone.
    """
    return _Product.apply(values, X.contiguous(), start, column)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, X: Tensor, start: Tensor, column: Tensor) -> Tensor:
        ctx.save_for_backward(values, X, start, column)
        return csr(start, column, values) @ X

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, ...]:
        values, X, start, column = ctx.saved_tensors
        dY = dY.contiguous()
        of_values = of_X = None
        if ctx.needs_input_grad[0]:
            pattern = csr(start, column, torch.zeros_like(values))
            of_values = torch.sparse.sampled_addmm(pattern, dY, X.t(), beta=0.0).values()
        if ctx.needs_input_grad[1]:
            of_X = csr(start, column, values) @ dY
        return of_values, of_X, None, None
