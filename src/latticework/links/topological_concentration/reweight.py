"""The re-weighting: more weight on the edges along which a link predictor expects links, so that neighbourhoods concentrate.

With S the operator of the encoder and h its states, node i has ``a_i = sum_j S_ij h_j``; edge j -> i is scored ``q_ij =
sigmoid(f(a_i, h_j))`` by the predictor f, and with ``p_ij`` the softmax of q over i's incoming edges (its loop included, where
S has one) the new weight is ``w_ij = S_ij + alpha u_i p_ij``, ``u_i = sum_j S_ij``. It always starts from S: nothing compounds.

Source: Wang et al. (ICLR 2024), section 5 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from latticework.layers.propagation import SparseOperator

# Edges that are scored at once.
_EDGES = 1 << 16


def row_softmax(values: Tensor, rows: Tensor, n: int) -> Tensor:
    """Softmax of values [nnz] within equal `rows` int64 [nnz]: they sum to 1 in each row that has any."""
    top = torch.full((n,), -torch.inf, dtype=values.dtype, device=values.device).scatter_reduce(0, rows, values, "amax")
    weight = torch.exp(values - top[rows])
    return weight / torch.zeros(n, dtype=values.dtype, device=values.device).index_add(0, rows, weight)[rows]


def edge_scores(S: SparseOperator, h: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``q_ij = sigmoid(f(a_i, h_j))`` of the stored entries of S, in its order. ``h`` [n, d] -> [nnz], without gradient.

    `score` maps two blocks of states [b, d] to logits [b].
    """
    rows, columns = _entries(S, h.device)
    with torch.no_grad():
        h = h.detach()
        a = S @ h
        blocks = [
            torch.sigmoid(score(a[rows[i : i + _EDGES]], h[columns[i : i + _EDGES]])).reshape(-1)
            for i in range(0, len(rows), _EDGES)
        ]
        return torch.cat(blocks) if blocks else h.new_zeros(0)


def reweighted(S: SparseOperator, q: Tensor, alpha: float, transposed: bool = False) -> SparseOperator:
    """``w_ij = S_ij + alpha u_i softmax_j(q_ij)``: S's pattern with other values; row i gains alpha u_i.

    ``q`` [nnz] in S's order, S square. alpha = 0 gives S's own values, bit for bit. `transposed`: the mass that is found for j
    -> i goes to i -> j, as in the official code, which normalises by destination and then builds the matrix by source; S's
    pattern must then be symmetric. Errors: ``ValueError`` for alpha < 0, another number of scores, a pattern that isn't.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be >= 0, is {alpha}")
    if q.shape != (S.nnz,):
        raise ValueError(f"S has {S.nnz} entries, {tuple(q.shape)} scores were given")
    if alpha == 0:
        return S
    rows, columns = _entries(S, torch.device("cpu"))
    n = S.shape[0]
    values = torch.from_numpy(S.values)
    share = row_softmax(q.detach().cpu().to(values.dtype), rows, n)
    mass = torch.zeros(n, dtype=values.dtype).index_add(0, rows, values)
    added = alpha * mass[rows] * share
    if transposed:
        added = added[_turned(rows, columns, n)]
    return S.with_values((values + added).numpy())


def _entries(S: SparseOperator, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = np.repeat(np.arange(S.shape[0]), np.diff(S.indptr))
    return torch.from_numpy(rows).to(device), torch.from_numpy(S.indices.astype(np.int64)).to(device)


def _turned(rows: Tensor, columns: Tensor, n: int) -> Tensor:
    """Where the reverse of each entry stands."""
    own, other = rows * n + columns, columns * n + rows
    order = torch.argsort(own)
    place = torch.searchsorted(own[order], other).clamp(max=max(len(own) - 1, 0))
    found = order[place]
    if not torch.equal(own[found], other):
        raise ValueError("an edge lacks its reverse, so the mass cannot go the other way")
    return found
