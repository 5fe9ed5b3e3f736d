"""The paper's own encoders: smoothing without weights ("puregcn", "puresum") and plain convolutions, on features or on a
learned table, over a graph that changes from step to step (the batch's own links are out of it).
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.layers.propagation import SparseOperator, hop_stack, normalise
from latticework.layers.sparse_features import FeatureLinear, SparseFeatures, feature_dropout

Features = Tensor | SparseFeatures


def smoother(A: sp.csr_array, kind: Literal["symmetric", "sum"] = "symmetric", p: float = 0.0) -> SparseOperator:
    """``D~^-1/2 (A + I) D~^-1/2``, or A for ``sum``; edge dropout p rescales what is kept by 1 / (1 - p), but for loops."""
    looped = sp.csr_array(A + sp.eye_array(A.shape[0], dtype=A.dtype, format="csr"))
    S = normalise(looped, "symmetric") if kind == "symmetric" else A.copy()
    if p > 0:
        rows = np.repeat(np.arange(S.shape[0]), np.diff(S.indptr))
        keep = (torch.rand(S.nnz) >= p).numpy()
        S.data = S.data * np.where(rows == S.indices, 1, keep / (1 - p))
    return SparseOperator.from_scipy(S, np.float32)


class Smoothing(nn.Module):
    """``Drop -> Linear -> Drop``, then hops ``h <- S h`` without weights or nonlinearity, then ``Drop``: [n, F] -> [n, d].

    `jk`: the output is the sum of ``w_l h_l`` over hops 1 .. l with learned w (drawn from a normal law; not a softmax).
    `x_drop`, `in_drop`, `out_drop` are the three dropouts. `features` none: what comes in is a learned table [n, d], which needs
    neither the first dropout nor the map. Without hops it is the map alone.
    """

    def __init__(
        self, features: int | None, width: int, hops: int, jk: bool, x_drop: float = 0, in_drop: float = 0, out_drop: float = 0
    ) -> None:
        super().__init__()
        if hops < 0:
            raise ValueError(f"hops must be >= 0, is {hops}")
        self.linear = None if features is None else FeatureLinear(features, width)
        self.weights = nn.Parameter(torch.randn(hops)) if jk and hops else None
        self.hops, self.x_drop, self.in_drop, self.out_drop = hops, x_drop, in_drop, out_drop

    def forward(self, x: Features, S: SparseOperator | Tensor) -> Tensor:
        h: Any = x if self.linear is None else self.linear(feature_dropout(x, self.x_drop, self.training))
        h = F.dropout(h, self.in_drop, self.training)
        hops = list(hop_stack(S, h, self.hops))
        out = hops[-1]
        if self.weights is not None:
            out = torch.stack([w * hop for w, hop in zip(self.weights, hops[1:], strict=True)]).sum(0)
        return F.dropout(out, self.out_drop, self.training)


class Convolutions(nn.Module):
    """``h <- ReLU(Drop(LN(S h W + b)))`` per layer, plus h where widths agree (`residual`): [n, F] -> [n, d].

    Of several layers the last is ``S h W + b`` alone.
    """

    def __init__(
        self, features: int, width: int, layers: int, norm: bool, residual: bool, x_drop: float = 0, drop: float = 0
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be >= 1, is {layers}")
        sizes = [features] + [width] * layers
        self.maps = nn.ModuleList(FeatureLinear(a, b, bias=False) for a, b in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(layers))
        inner = max(layers - 1, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(inner))
        self.residual, self.x_drop, self.drop = residual, x_drop, drop

    def forward(self, x: Features, S: SparseOperator | Tensor) -> Tensor:
        h: Any = feature_dropout(x, self.x_drop, self.training)
        for k, (layer, bias) in enumerate(zip(self.maps, self.biases, strict=True)):
            new = S @ layer(h) + bias
            if k < len(self.norms):
                new = F.relu(F.dropout(self.norms[k](new), self.drop, self.training))
            h = h + new if self.residual and h.shape == new.shape and isinstance(h, Tensor) else new
        out: Tensor = h
        return out


class Table(nn.Module):
    """A learned vector for each node where there are no features, orthogonal at the start: [n, d]."""

    def __init__(self, nodes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(nodes, width))
        nn.init.orthogonal_(self.vectors)

    def forward(self) -> Tensor:
        return self.vectors
