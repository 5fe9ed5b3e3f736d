"""Pairs that are no links, to learn from and to judge against: drawn uniformly, or those that heuristics rank highest."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from latticework.core.errors import UserError

from .heuristics import blocks_of, linked, pagerank_rows

Array = NDArray[Any]
# a random walk with these settings ranks hard negatives (beside resource allocation and the features)
RESTART, STEPS = 0.15, 20


def non_links(A: sp.csr_array, count: int, rng: np.random.Generator) -> Array:
    """int64 [2, count]: uniform pairs i != j that are no links of the pattern A, drawn with replacement.

    Errors: ``UserError`` where all pairs are linked.
    """
    n = A.shape[0]
    if n * (n - 1) - A.nnz <= 0:
        raise UserError(f"all {n} nodes are joined to one another: there is no pair to tell links from")
    found: list[Array] = []
    have = 0
    while have < count:
        pairs = rng.integers(0, n, (2, 2 * (count - have) + 16))
        pairs = pairs[:, pairs[0] != pairs[1]]
        pairs = pairs[:, ~linked(A, pairs)]
        found.append(pairs)
        have += pairs.shape[1]
    return np.concatenate(found, axis=1)[:, :count] if found else np.zeros((2, 0), np.int64)


def distinct_non_links(A: sp.csr_array, count: int, rng: np.random.Generator) -> Array:
    """int64 [2, count], i < j: different pairs that are no links of A, each set of them as likely, in random order.

    Errors: ``UserError`` where there are not so many.
    """
    n = A.shape[0]
    free = n * (n - 1) // 2 - A.nnz // 2
    if free < count:
        other = "use -s task.negatives=hard, or a graph that is less dense" if free else "every node is joined to every other"
        raise UserError(
            f"{count} pairs without a link are needed to judge against, and there are {free} among the {n} nodes; {other}"
        )
    if free <= 2 * count or n <= 200:  # few: list them all
        i, j = np.nonzero(np.triu(A.toarray() == 0, 1))
        chosen = rng.permutation(len(i))[:count]
        return np.stack([i[chosen], j[chosen]]).astype(np.int64)
    keys = np.zeros(0, np.int64)
    while len(keys) < count:
        pairs = np.sort(non_links(A, count - len(keys) + 16, rng), axis=0)
        joint = np.concatenate([keys, pairs[0] * n + pairs[1]])
        keys = joint[np.sort(np.unique(joint, return_index=True)[1])]  # each once, in the order of the draw
    keys = keys[:count]
    return np.stack([keys // n, keys % n])


def ranked_partners(
    A: sp.csr_array, known: sp.csr_array, nodes: Array, most: int, rng: np.random.Generator, x: Array | None = None
) -> dict[int, Array]:
    """For each node its `most` likeliest partners that it is not linked to, by heuristics on A, best first (fewer if there are not).

    Candidates are ranked by resource allocation, personalised PageRank and, with features x [n, F], their cosine; the mean of
    the ranks counts (Borda), ties (to 12 decimals) are dealt
    at random. What `known` links is no candidate. Source: Li et al., "Evaluating graph
    neural networks for link prediction" (NeurIPS 2023), section 4, with these heuristics.
    """
    from scipy.stats import rankdata

    n = A.shape[0]
    degree = np.diff(A.indptr)
    spread = sp.csr_array(sp.diags_array(1 / np.maximum(degree, 1)) @ A)
    unit = None if x is None else sp.csr_array(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
    found: dict[int, Array] = {}
    for block in blocks_of(nodes, 4 * n):
        views = [(A[block] @ spread).toarray(), pagerank_rows(A, block, RESTART, STEPS)]
        if unit is not None:
            views.append((unit[block] @ unit.T).toarray())
        rank = np.mean([rankdata(-view.round(12), axis=1, method="average") for view in views], axis=0)
        taken = known[block].toarray() > 0
        taken[np.arange(len(block)), block] = True
        rank[taken] = np.inf
        rank += rng.random(rank.shape) * 1e-6  # rank means are multiples of 1/6: this only breaks ties
        order = np.argsort(rank, axis=1)[:, :most]
        for row, node in enumerate(block.tolist()):
            found[node] = order[row][np.isfinite(np.take(rank[row], order[row]))]
    return found


def hard_negatives(
    A: sp.csr_array, known: sp.csr_array, links: Array, each: int, rng: np.random.Generator, x: Array | None = None
) -> tuple[Array, Array]:
    """(pairs int64 [2, t], list int64 [t]): for each link (i, j) up to `each` non-links, half (i, *) and half (*, j)."""
    partners = ranked_partners(A, known, np.unique(links), (each + 1) // 2, rng, x)
    pairs, lists = [], []
    for number, (i, j) in enumerate(links.T.tolist()):
        mine, yours = partners[i], partners[j][: each // 2]
        pairs.append(np.stack([np.append(np.full(len(mine), i), yours), np.append(mine, np.full(len(yours), j))]))
        lists.append(np.full(pairs[-1].shape[1], number))
    if not pairs:
        return np.zeros((2, 0), np.int64), np.zeros(0, np.int64)
    return np.concatenate(pairs, axis=1).astype(np.int64), np.concatenate(lists)
