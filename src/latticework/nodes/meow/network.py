"""MEOW's network: one encoder for a coarse view (who is joined) and for fine ones (through whom), and view attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.layers.sparse_features import FeatureLinear

from .views import Operator, Views


class SharedGCN(nn.Module):
    """``Z = A drop(PReLU(A drop(x W1)) W2)``, then a LayerNorm over the whole matrix, without parameters of its own.

    No biases; W uniform in +-1/sqrt(width). x [n, width], A [n, n] -> [n, width]. The norm is over all n x width numbers,
    so it sets one scale for the graph and keeps the differences of scale between nodes.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.first = nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))
        self.second = nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))
        self.act, self.drop = nn.PReLU(), nn.Dropout(dropout)

    def forward(self, x: Tensor, A: Operator) -> Tensor:
        hidden = self.act(A @ self.drop(x @ self.first))
        Z = A @ self.drop(hidden @ self.second)
        return F.layer_norm(Z, list(Z.shape))


class ViewAttention(nn.Module):
    """``beta = softmax_v( q . mean_i tanh(W z_i^v + b) )`` over views, and their sum ``sum_v beta_v Z^v``.

    W and q Xavier normal with gain 1.414; dropout on q. V x [n, width] -> [n, width], beta [V].
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.map, self.query = nn.Linear(width, width), nn.Parameter(torch.empty(1, width))
        self.drop = nn.Dropout(dropout)
        nn.init.xavier_normal_(self.map.weight, gain=1.414)
        nn.init.xavier_normal_(self.query, gain=1.414)

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        query = self.drop(self.query)[0]
        beta = torch.softmax(torch.stack([query @ torch.tanh(self.map(Z)).mean(0) for Z in views]), 0)
        out = beta[0] * views[0]
        for share, Z in zip(beta[1:], views[1:], strict=True):
            out = out + share * Z
        return out, beta


class MEOW(nn.Module):
    """The encoder of both views of a heterogeneous graph's target nodes.

    ``h_t = ELU(drop(x_t W_t + b_t))`` for each type; context of path p ``m_p = sum_k drop(U_pk mean h)`` over the nodes
    that p passes at its k-th inner place; ``h_p = ELU(h + m_p)``. With G the shared encoder (`SharedGCN`): coarse
    ``Z_c = G(h, mean_p A_p)``, fine ``G(h_p, A_p)`` and its masked twin for each path, 2P matrices whose rows are
    normalised and which attention brings together: ``Z_f``, the embedding. Both are projected by the same
    ``z -> tanh(W z + b)``, normalised.

    `features` F_t of each type in the order of `Views.features`, the target first; `contexts` for each path the places of
    its inner types. Without `context` every m_p is 0. ``ValueError`` for no path.
    """

    def __init__(
        self,
        features: Sequence[int],
        contexts: Sequence[Sequence[int]],
        width: int = 64,
        dropout: float = 0.2,
        context: bool = True,
    ) -> None:
        super().__init__()
        if not contexts:
            raise ValueError("at least one meta-path is needed")
        self.maps = nn.ModuleList(FeatureLinear(f, width) for f in features)
        self.passed = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width, bias=False) for _ in (inner if context else ())) for inner in contexts
        )
        self.encoder, self.attention = SharedGCN(width, dropout), ViewAttention(width, dropout)
        self.project, self.drop = nn.Linear(width, width), nn.Dropout(dropout)

    def fine(self, views: Views) -> tuple[Tensor, Tensor, Tensor]:
        """``Z_f`` [n, width], the attention over its 2P views [2P] (path, twin, path, twin, ...), and h [n, width]."""
        used = {place for inner in views.contexts for place, _ in inner} if any(len(u) for u in self.passed) else set()
        states = {place: self._states(place, views.features[place]) for place in sorted(used | {0})}
        h, twin = states[0], self._states(0, views.masked)
        found = []
        for maps, inner, A, A_twin in zip(self.passed, views.contexts, views.graphs, views.masked_graphs, strict=True):
            means = [M @ states[place] for place, M in inner] if len(maps) else []
            for start, graph in ((h, A), (twin, A_twin)):
                for U, mean in zip(maps, means, strict=True):
                    start = start + self.drop(U(mean))
                found.append(F.normalize(self.encoder(F.elu(start), graph), dim=1))
        Z, beta = self.attention(found)
        return Z, beta, h

    def coarse(self, h: Tensor, views: Views) -> Tensor:
        """``Z_c`` [n, width]."""
        return self.encoder(h, views.coarse)

    def forward(self, views: Views) -> tuple[Tensor, Tensor]:
        """The projections of the coarse and of the fine view, rows of length 1, 2 x [n, width]."""
        Z_fine, _, h = self.fine(views)
        return self.projected(self.coarse(h, views)), self.projected(Z_fine)

    def projected(self, Z: Tensor) -> Tensor:
        return F.normalize(torch.tanh(self.project(Z)), dim=1)

    def _states(self, place: int, x: Tensor | object) -> Tensor:
        return F.elu(self.drop(self.maps[place](x)))
