"""Positional and structural codes of nodes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data


def codes_of(graph: Data, kind: Literal["rwse", "laplacian"], width: int) -> Tensor:
    """float32 [n, width]: return chances of walks of 1 .. width steps, or the first non-trivial Laplacian eigenvectors.

    Directed edges count both ways for the Laplacian. An eigenvector's sign is free: its largest entry is made positive here, and a
    training flips it. Columns that a small graph lacks are 0.
    """
    from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE
    from torch_geometric.utils import to_undirected

    n = int(graph.num_nodes or 0)
    bare = Data(edge_index=graph.edge_index, num_nodes=n)
    if kind == "rwse":
        return AddRandomWalkPE(width, "code")(bare).code.float()
    bare.edge_index = to_undirected(graph.edge_index, num_nodes=n)
    take = min(width, max(n - 1, 0))
    out = torch.zeros(n, width)
    if not take:
        return out
    more = {} if n < AddLaplacianEigenvectorPE.SPARSE_THRESHOLD else {"v0": np.random.default_rng(0).random(n)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the transform draws signs from the global generator
        found = AddLaplacianEigenvectorPE(take, "code", is_undirected=True, **more)(bare).code
    found = torch.as_tensor(np.asarray(found)).reshape(n, -1).float()
    top = found.abs().argmax(0)
    out[:, : found.shape[1]] = found * torch.where(found[top, torch.arange(found.shape[1])] < 0, -1.0, 1.0)
    return out
