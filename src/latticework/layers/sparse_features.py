"""Sparse features through a linear layer, with dropout, at the cost of their non-zeros.

Bag-of-words features are about one per cent full. ``X W`` and its gradient ``X^T dY`` are then two sparse products, and
dropout on X draws for the stored entries only: the others are zero before and after it, so the law is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .masks import dropped
from .propagation import SparseOperator

LARGE = 1 << 18  # of how many numbers on features are worth masks of their own


def narrow(matrix: sp.csr_array) -> sp.csr_array:
    """The same CSR matrix with 32-bit indices where they fit: several of scikit-learn's estimators take no others."""
    if max(matrix.nnz, *matrix.shape) >= 2**31:
        return matrix
    indices, indptr = (a.astype(np.int32, copy=False) for a in (matrix.indices, matrix.indptr))
    return sp.csr_array((matrix.data, indices, indptr), shape=matrix.shape)


class SparseFeatures:
    """A constant feature matrix [n, f] in CSR form; `values` float32 [nnz] may differ from call to call (dropout).

    Raises ``ValueError`` for a dense input that is not two-dimensional.
    """

    def __init__(self, matrix: Any) -> None:
        csr = sp.csr_array(matrix, dtype=np.float32)
        csr.sort_indices()
        self.shape: tuple[int, int] = (int(csr.shape[0]), int(csr.shape[1]))
        self._rows = SparseOperator(csr.indptr, csr.indices, csr.data, self.shape)
        # the transpose's entries, by their place in the CSR arrays: values move along without sorting again
        order = sp.csr_array((np.arange(1, csr.nnz + 1, dtype=np.int64), csr.indices, csr.indptr), shape=csr.shape).T.tocsr()
        self._order = torch.from_numpy(order.data - 1)
        self._turned = (order.indptr, order.indices)
        self.values = torch.from_numpy(np.ascontiguousarray(csr.data))

    @classmethod
    def from_dense(cls, x: Tensor) -> SparseFeatures:
        """From a dense [n, f] tensor."""
        if x.ndim != 2:
            raise ValueError(f"features must be [n, f], are {tuple(x.shape)}")
        return cls(sp.csr_array(x.detach().cpu().numpy()))

    def dropout(self, p: float, training: bool) -> SparseFeatures:
        """The same features with dropout on the stored entries."""
        return self if not training or p == 0 else self.with_values(F.dropout(self.values, p, True))

    def with_values(self, values: Tensor) -> SparseFeatures:
        other = object.__new__(SparseFeatures)
        other.__dict__.update(self.__dict__)
        other.values = values
        return other

    def matmul(self, weight: Tensor) -> Tensor:
        """``X W`` for ``W`` [f, h], differentiable in W (not in X)."""
        product: Tensor = _FeatureProduct.apply(weight, self)
        return product

    def __matmul__(self, weight: Tensor) -> Tensor:
        return self.matmul(weight)

    def __getitem__(self, rows: Tensor) -> SparseFeatures:
        """The features of some rows, int64 [b]."""
        return SparseFeatures(self.scipy()[rows.cpu().numpy()])

    def scipy(self) -> sp.csr_array:
        """CSR [n, f] float32, with 32-bit indices where they fit."""
        return narrow(sp.csr_array((self.values.numpy(), self._rows.indices, self._rows.indptr), shape=self.shape))

    def dense(self) -> Tensor:
        """[n, f] float32."""
        return torch.from_numpy(self.scipy().toarray())


class _FeatureProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: SparseFeatures) -> Tensor:
        ctx.x = x
        operator = x._rows.with_values(x.values.numpy())
        return torch.from_numpy(operator.multiply(np.ascontiguousarray(weight.detach().numpy())))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x: SparseFeatures = ctx.x
        indptr, indices = x._turned
        turned = SparseOperator.unchecked(indptr, indices, x.values[x._order].numpy(), (x.shape[1], x.shape[0]))
        return torch.from_numpy(turned.multiply(np.ascontiguousarray(gradients[0].numpy()))), None


def feature_dropout(x: Tensor | SparseFeatures, p: float, training: bool) -> Tensor | SparseFeatures:
    """Dropout for features of either form; large dense ones on a CPU get their masks from `dropped`, ten times as fast as torch's."""
    if isinstance(x, SparseFeatures):
        return x.dropout(p, training)
    if training and 0 < p < 1 and x.numel() >= LARGE and x.device.type == "cpu" and not x.requires_grad:
        return dropped(x, 1, p)[0]
    return F.dropout(x, p, training)


class FeatureLinear(nn.Linear):
    """`torch.nn.Linear` that also takes `SparseFeatures`: ``X W^T + b``, X [n, f] -> [n, h]."""

    def forward(self, input: Tensor | SparseFeatures) -> Tensor:
        if not isinstance(input, SparseFeatures):
            return super().forward(input)
        if input.shape[1] != self.in_features:
            raise ValueError(f"features have {input.shape[1]} columns, the layer takes {self.in_features}")
        out = input @ self.weight.T
        return out if self.bias is None else out + self.bias


def compact(x: Tensor | SparseFeatures, most: float = 0.2) -> Tensor | SparseFeatures:
    """Features as `SparseFeatures` where they lie on the CPU and at most a share `most` of them is not zero."""
    if (
        isinstance(x, SparseFeatures)
        or x.device.type != "cpu"
        or x.ndim != 2
        or x.numel() == 0
        or float((x != 0).float().mean()) > most
    ):
        return x
    return SparseFeatures.from_dense(x)
