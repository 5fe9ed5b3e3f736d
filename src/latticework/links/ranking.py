"""How well links rank above other pairs: Hits@K and ranks, among all other pairs or within lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .heuristics import shared

Array = NDArray[Any]


class Truth(NamedTuple):
    """`y` bool [q]: which pairs are links; `lists` int64 [q]: the list in which a link stands among its own non-links, or none.

    `slices` name -> (group int64 [q], names of the groups), -1 for none.
    """

    y: Array
    lists: Array | None = None
    slices: Mapping[str, tuple[Array, tuple[str, ...]]] = {}


def kth_best(negatives: Array, k: int) -> float:
    """The k-th highest; ``ValueError`` where there are fewer."""
    if k > len(negatives):
        raise ValueError(f"the {k}-th best of {len(negatives)} negatives")
    return float(np.partition(negatives, len(negatives) - k)[len(negatives) - k])


def hits_at(positives: Array, negatives: Array, k: int) -> float:
    """Share of positives strictly above the k-th highest negative (the evaluator of OGB)."""
    return float((positives > kth_best(negatives, k)).mean())


def ranks(positives: Array, negatives: Array) -> Array:
    """float64 [p]: the rank of each positive among all negatives, from 1; ties take the mean."""
    ordered = np.sort(negatives)
    above = len(ordered) - np.searchsorted(ordered, positives, side="right")
    equal = len(ordered) - above - np.searchsorted(ordered, positives, side="left")
    return np.asarray(1 + above + equal / 2)


def list_above(answer: Array, truth: Truth) -> Array:
    """int64 [p]: how many of its own list score at least as high as each link, in the order of the links."""
    return _in_lists(answer, truth, lambda other, mine: other >= mine)


def list_ranks(answer: Array, truth: Truth) -> Array:
    """float64 [p]: the rank of each link in its own list, from 1; ties take the mean."""
    above = _in_lists(answer, truth, lambda other, mine: other > mine)
    equal = _in_lists(answer, truth, lambda other, mine: other == mine)
    return np.asarray(1 + above + equal / 2)


def _in_lists(answer: Array, truth: Truth, of: Any) -> Array:
    assert truth.lists is not None
    mine = np.empty(int(truth.lists.max(initial=-1)) + 1)
    mine[truth.lists[truth.y]] = answer[truth.y]
    counted = of(answer, mine[truth.lists]) & ~truth.y
    return np.bincount(truth.lists[counted], minlength=len(mine))[truth.lists[truth.y]]


def pair_slices(A: sp.csr_array, pairs: Array, y: Array) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Groups of the links by common neighbours and by the smaller degree, in the graph that is seen; -1 for non-links."""
    common = np.full(len(y), -1, np.int64)
    common[y] = np.digitize(shared(A, pairs[:, y]), [0.5, 2.5, 9.5])
    small = np.full(len(y), -1, np.int64)
    degree = np.diff(A.indptr)
    small[y] = np.digitize(np.minimum(degree[pairs[0, y]], degree[pairs[1, y]]), [0.5, 2.5, 9.5])
    words = ("0", "1–2", "3–9", "10 or more")
    return {"common neighbours": (common, words), "smaller degree": (small, words)}
