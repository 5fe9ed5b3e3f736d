"""Classic embeddings by factorising a matrix of pointwise mutual information: of the edges (ppmi), of walks (netmf)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from latticework.core.errors import UserError
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.value import setting
from latticework.layers.memory import free_memory
from latticework.layers.pointwise_information import factorise, positive_information, unit_scale, walk_information

from .baselines import undirected_matrix
from .embedding import EmbeddingMethod, EmbeddingModel


class PPMI(EmbeddingMethod):
    """Positive pointwise mutual information of the adjacency matrix, factorised: who is joined more than degrees would say.

    ``max(log(A_ij vol / (d_i d_j)), 0) ≈ U Σ V^T``, and a node's vector is its row of ``U √Σ``, times one number for all nodes
    (entries of mean square 1). Weights count; edges are taken both ways. Source: Levy and Goldberg, NIPS 2014; it is also
    `netmf` with a window of one.
    """

    name: ClassVar[str] = "ppmi"
    chance: ClassVar[bool] = False
    dim: int = setting(64, "length of a node's vector", ge=1, le=4096)

    def fit(self, train: Part, valid: Part | None, run: Run) -> EmbeddingModel:
        return self._model(positive_information(undirected_matrix(train)), train)

    def _model(self, information: sp.csr_array, train: Part) -> EmbeddingModel:
        vectors = unit_scale(factorise(information, self.dim)[0])
        return EmbeddingModel(self, dict(train.schema), torch.from_numpy(vectors.astype(np.float32)))


class NetMF(PPMI):
    """DeepWalk in closed form: the matrix that skip-gram on random walks factorises, factorised by an SVD instead.

    ``max(log(vol / (b w) Σ_(r=1..w) P^r D^-1), 0) ≈ U Σ V^T`` with ``P = D^-1 A`` and a window of w; a node's vector is its row
    of ``U √Σ``, times one number for all nodes. The matrix is exact and fills up as the window grows (the published form for
    large graphs and windows approximates it). Source: Qiu et al., WSDM 2018, algorithm 3.
    """

    name: ClassVar[str] = "netmf"
    window: int = setting(3, "w: how many steps apart two nodes may be on a walk", ge=1, le=100, search=(1, 10))
    negative: float = setting(1.0, "b: negative samples for each pair", gt=0, le=100)

    def fit(self, train: Part, valid: Part | None, run: Run) -> EmbeddingModel:
        A = undirected_matrix(train)
        most, free = _walk_bytes(A, self.window), free_memory()
        if free is not None and most > free:
            raise UserError(
                f"netmf with a window of {self.window} may take {most / 1e9:.1f} GB on this graph of {A.shape[0]:,} nodes, and "
                f"{free / 1e9:.1f} GB are free; use -s window=1, or deepwalk"
            )
        return self._model(walk_information(A, self.window, self.negative), train)


def _walk_bytes(A: Any, window: int) -> int:
    """At most: entries that walks of so many steps can reach, 12 bytes each, four times (blocks, whole, SVD's copy, slack)."""
    ends = np.ones(A.shape[0])
    pattern = (A != 0).astype(np.float64)
    for _ in range(window):
        ends = np.minimum(ends + pattern @ ends, A.shape[0])
    return int(48 * ends.sum())
