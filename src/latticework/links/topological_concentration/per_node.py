"""How well a link predictor does at each node: its candidates in order, the true ones among the first k; and binned means.

For a node with held-out neighbours T all other nodes are ranked but those whose link is known (train and validation
neighbours, and the node itself). With c_k true ones among the first k: precision c_k / k, recall c_k / |T|, F1 of the two,
``NDCG = sum_{true ranks r <= k} 1 / log2(r + 1)`` over its best value, hits whether c_k > 0, MRR 1 / rank of the first true one.

Source: Wang et al. (ICLR 2024), section 3; the protocol as in the official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
KS = (5, 10, 20, 50, 100)
MEASURES = ("f1", "recall", "precision", "ndcg", "hits")


class Bin(NamedTuple):
    """Means of x and of y over the nodes of a bin, and how many they are."""

    x: float
    y: float
    nodes: int


def per_node(scores: Array, truth: Array, known: Array, ks: Sequence[int] = KS, order: Array | None = None) -> dict[str, Array]:
    """Measures of each row, float64 [b]: ``hits@5`` and so on for all of `MEASURES` and `ks`, and ``mrr``.

    `scores` float [b, n], higher is likelier; `truth` bool [b, n], some true in each row; `known` bool [b, n] is left out of
    the ranking. Equal scores rank in the `order` of the columns, a permutation of n (left out: as they stand), so that with a
    drawn one nobody gains by numbers. A cut at k beyond the candidates counts those that there are not as misses.
    ``ValueError`` for scores that aren't finite, a row without a true candidate, a true one that is known.
    """
    b, n = scores.shape
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if (truth & known).any():
        raise ValueError("a held-out neighbour is among the known ones")
    if not truth.any(1).all():
        raise ValueError("a node without held-out neighbours has no ranking")
    columns = np.arange(n) if order is None else order
    s = np.where(known, -np.inf, scores)[:, columns]
    t = truth[:, columns]
    top = min(max(ks), n)
    # the best are found by value, ties at the edge by column: a stable sort of all is what it must equal
    ranked = np.argsort(-s, axis=1, kind="stable")[:, :top]
    found = np.zeros((b, max(ks)), bool)
    found[:, :top] = np.take_along_axis(t, ranked, 1) & np.isfinite(np.take_along_axis(s, ranked, 1))
    count, true = np.cumsum(found, axis=1), t.sum(1)
    gain = np.cumsum(found / np.log2(np.arange(2, max(ks) + 2)), axis=1)
    best = np.cumsum(1 / np.log2(np.arange(2, max(ks) + 2)))
    measured: dict[str, Array] = {}
    for k in ks:
        c = count[:, k - 1]
        precision, recall = c / k, c / true
        both = precision + recall
        measured[f"f1@{k}"] = np.divide(2 * precision * recall, both, out=np.zeros(b), where=both > 0)
        measured[f"recall@{k}"], measured[f"precision@{k}"] = recall, precision
        measured[f"ndcg@{k}"] = gain[:, k - 1] / best[np.minimum(true, k) - 1]
        measured[f"hits@{k}"] = (c > 0).astype(np.float64)
    first = np.where(t, s, -np.inf).max(1, keepdims=True)
    place = np.where(t & (s == first), np.arange(n), n).min(1, keepdims=True)
    ahead = (s > first).sum(1) + ((s == first) & (np.arange(n) < place)).sum(1)
    measured["mrr"] = 1.0 / (1 + ahead)
    return measured


def binned(x: Array, y: Array, bins: int = 10, least: int = 20) -> list[Bin]:
    """Means of y over `bins` ranges of x of equal width, those with fewer than `least` nodes left out; x, y float [q]."""
    if not len(x) or not np.ptp(x):
        return []
    place = np.minimum(((x - x.min()) / np.ptp(x) * bins).astype(int), bins - 1)
    return [
        Bin(float(x[place == c].mean()), float(y[place == c].mean()), int((place == c).sum()))
        for c in range(bins)
        if (place == c).sum() >= least
    ]


def rank_correlation(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float | None:
    """Spearman's; none for fewer than three points, or where either does not vary."""
    from scipy.stats import spearmanr

    if len(x) < 3 or not np.ptp(np.asarray(x)) or not np.ptp(np.asarray(y)):
        return None
    return float(spearmanr(x, y)[0])
