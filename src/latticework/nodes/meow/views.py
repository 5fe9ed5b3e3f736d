"""What MEOW looks at: meta-path graphs cut to their nearest neighbours, a masked twin of them, and contexts.

Everything here is a scipy CSR matrix and plain numpy; nothing of n x n is ever dense but what is full anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from latticework.layers.propagation import SparseOperator, normalise
from latticework.layers.sparse_features import SparseFeatures

Features = Tensor | SparseFeatures
Operator = SparseOperator | Tensor
FULL = 0.25  # from this share of non-zeros on a dense matrix is smaller than a CSR one, and faster


class Views(NamedTuple):
    """What the network is fed: P meta-paths over n target nodes.

    `features` [n_t, F_t] of each type, in the network's order, the target first; `masked` those of the target with some
    entries put to 0; `coarse` [n, n] the mean of the paths' graphs; `graphs` and `masked_graphs` P x [n, n]; `contexts`
    for each path the (place of the type, mean over the nodes of that type that it passes [n, n_t]) of its inner types.
    """

    features: Sequence[Features]
    masked: Features
    coarse: Operator
    graphs: Sequence[Operator]
    masked_graphs: Sequence[Operator]
    contexts: Sequence[Sequence[tuple[int, Operator]]]


def pathsim(C: Any) -> sp.csr_array:
    """PathSim ``s_ij = 2 C_ij / (C_ii + C_jj)`` where ``C_ij > 0``; float64 CSR with the pattern of C, columns sorted.

    C [n, n] counts of meta-path instances. Where neither end returns to itself (asymmetric chains) the sum is taken as 1.
    Source: Sun et al., "PathSim: Meta Path-Based Top-K Similarity Search" (VLDB 2011). ``ValueError`` for a matrix that is not square.
    """
    C = sp.csr_array(C)
    if C.shape[0] != C.shape[1]:
        raise ValueError(f"counts of a meta-path from a type to itself are square, these are {C.shape}")
    C = sp.csr_array((C.data.astype(np.float64), C.indices, C.indptr), shape=C.shape, copy=True)
    C.eliminate_zeros()
    C.sort_indices()
    own = C.diagonal()
    rows = np.repeat(np.arange(C.shape[0]), np.diff(C.indptr))
    total = own[rows] + own[C.indices]
    C.data = 2 * C.data / np.where(total > 0, total, 1.0)
    return C


def nearest(C: Any, most: int) -> sp.csr_array:
    """The counts of the `most` columns with the largest PathSim in each row; of equal ones the smaller index comes first.

    float64 CSR [n, n]; not symmetric, since who is near to a hub need not be near from it. A row without any entry gets 1
    on its diagonal: a node that no path touches sees itself alone. ``ValueError`` for most < 1.
    """
    if most < 1:
        raise ValueError(f"at least one neighbour must be kept, not {most}")
    near = pathsim(C)
    n = near.shape[0]
    counts = sp.csr_array(C, dtype=np.float64, copy=True)
    counts.eliminate_zeros()
    counts.sort_indices()
    rows = np.repeat(np.arange(n), np.diff(near.indptr))
    left = np.ones(near.nnz, bool)
    # row by row: one sort of all entries takes many times as long
    for start, stop in zip(near.indptr[:-1].tolist(), near.indptr[1:].tolist(), strict=True):
        if stop - start > most:
            left[start + np.argsort(-near.data[start:stop], kind="stable")[most:]] = False
    alone = np.flatnonzero(np.diff(near.indptr) == 0)
    values = np.concatenate([counts.data[left], np.ones(len(alone))])
    places = (np.concatenate([rows[left], alone]), np.concatenate([near.indices[left], alone]))
    found = sp.coo_array((values, places), shape=(n, n)).tocsr()
    found.sort_indices()
    return found


def masked_graph(kept: sp.csr_array, share: float, rng: np.random.Generator) -> sp.csr_array:
    """A cut graph without a `share` of its off-diagonal edges (rounded down), the rest of weight 1, with self-loops.

    float64 CSR [n, n], not normalised.
    """
    entries = kept.tocoo()
    off = np.flatnonzero(entries.row != entries.col)
    left = np.sort(rng.permutation(off)[int(share * len(off)) :])
    n = kept.shape[0]
    ones = sp.coo_array((np.ones(len(left)), (entries.row[left], entries.col[left])), shape=(n, n))
    return sp.csr_array(ones + sp.eye_array(n))


def masked_features(x: Any, share: float, rng: np.random.Generator) -> sp.csr_array:
    """Features with a `share` of their non-zero entries (rounded down) put to 0; float32 CSR [n, F]."""
    x = sp.csr_array(x, dtype=np.float32, copy=True)
    x.eliminate_zeros()
    x.data[rng.permutation(x.nnz)[: int(share * x.nnz)]] = 0
    x.eliminate_zeros()
    return x


def path_graph(kept: sp.csr_array, transposed: bool = False) -> sp.csr_array:
    """``A = D^-1/2 K D^-1/2`` with D the row sums of the cut graph K; the official product is its transpose."""
    A = normalise(kept, "symmetric")
    return sp.csr_array(A.T) if transposed else A


def reached(steps: Sequence[Any]) -> list[sp.csr_array]:
    """For each inner place of a chain, the mean over the distinct nodes that are reached there; rows sum to 1 or are empty.

    `steps` are the biadjacency matrices [n_0, n_1], [n_1, n_2], ... of the chain; float32 CSR [n_0, n_k] for k = 1 to
    their number - 1.
    """
    found, seen = [], None
    for step in steps[:-1]:
        there = sp.csr_array(step).astype(bool)
        seen = there if seen is None else sp.csr_array((seen @ there).astype(bool))
        seen.sort_indices()
        counts = np.diff(seen.indptr)
        values = np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32)
        found.append(sp.csr_array((values, seen.indices, seen.indptr), shape=seen.shape))
    return found


def operator(matrix: sp.csr_array, device: str = "cpu") -> Operator:
    """A matrix in the form in which products with it are fast: CSR, or dense where it is nearly full."""
    if matrix.nnz > FULL * matrix.shape[0] * matrix.shape[1]:
        return torch.from_numpy(matrix.toarray().astype(np.float32)).to(device)
    made = SparseOperator.from_scipy(matrix, np.float32)
    return made if device == "cpu" else made.to_torch(device)


def mean_graph(graphs: Sequence[sp.csr_array]) -> sp.csr_array:
    """The coarse view: the mean of the paths' normalised graphs."""
    total = graphs[0]
    for graph in graphs[1:]:
        total = total + graph
    return sp.csr_array(total / len(graphs))
