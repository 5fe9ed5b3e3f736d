"""How graphs are cut into parts and made harder: strata, folds that test every graph, noise in edges, few and unequal labels.

Plain functions of arrays and of PyG `Data`; every draw comes from the generator that is given.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data

Array = NDArray[Any]
Noise = Literal["remove", "rewire", "add"]


def generator(*names: str | int) -> np.random.Generator:
    """A generator of its own for each list of names and numbers."""
    digest = hashlib.sha256("\n".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


# -- strata and splits -------------------------------------------------------------------------------------------------------
def quantile_strata(values: Array, bins: int = 10) -> Array:
    """int64 [n]: the quantile bin of each number, by rank (ties in the order given), so that bins are equally filled."""
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * min(bins, max(len(values) // 2, 1)) // max(len(values), 1)


def deal(strata: Array, folds: int, rng: np.random.Generator) -> Array:
    """int64 [n] in 0..folds-1: shuffled within each stratum and dealt in turn.

    Fold sizes differ by one at most, and so do a stratum's shares of the folds.
    """
    shuffled = rng.permutation(len(strata))
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    fold = np.empty(len(strata), np.int64)
    fold[order] = np.arange(len(strata)) % folds
    return fold


def spread(folds: Array, strata: Array) -> Array:
    """Published test folds int [n] (1..k; 0: never tested) -> int64 [n] in 0..k-1 where every graph is tested once.

    Those in none go, in the order of strata and then of the file, to the fold with the fewest of their stratum (then the fewest
    graphs, then the lowest number): nothing is drawn, so everybody has the same folds.
    """
    k = int(folds.max())
    fold = folds.astype(np.int64) - 1
    for row in np.flatnonzero(folds == 0)[np.argsort(strata[folds == 0], kind="stable")]:
        alike = np.bincount(fold[(fold >= 0) & (strata == strata[row])], minlength=k)
        sizes = np.bincount(fold[fold >= 0], minlength=k)
        fold[row] = min(range(k), key=lambda f: (alike[f], sizes[f], f))
    return fold


def quotas(counts: Array, total: int) -> Array:
    """int64 [c]: `total` shared out in proportion to `counts`, by largest remainders (the first of equal ones)."""
    exact = counts * (total / max(counts.sum(), 1))
    given = np.minimum(np.floor(exact + 1e-9).astype(np.int64), counts)
    for c in np.argsort(-(exact - given), kind="stable"):
        if given.sum() < total and given[c] < counts[c]:
            given[c] += 1
    return given


def drawn(strata: Array, total: int, rng: np.random.Generator) -> Array:
    """bool [n]: `total` of them, a stratified draw."""
    found = np.zeros(len(strata), bool)
    words, counts = np.unique(strata, return_counts=True)
    for word, quota in zip(words, quotas(counts, total), strict=True):
        found[rng.permutation(np.flatnonzero(strata == word))[:quota]] = True
    return found


def thinned(y: Array, keep: Array, rng: np.random.Generator) -> Array:
    """bool [n]: ``keep[c]`` members of each class c (all, where there are no more), drawn without replacement."""
    found = np.zeros(len(y), bool)
    for c, most in enumerate(keep):
        found[rng.permutation(np.flatnonzero(y == c))[: int(most)]] = True
    return found


# -- noise in edges ----------------------------------------------------------------------------------------------------------
def disturbed(graph: Data, noise: Noise, share: float, rng: np.random.Generator) -> Data:
    """A graph of which ``round(share * pairs)`` pairs of joined nodes are removed, rewired or added; the given one stays as it is.

    A pair stands for all edges between two nodes, in both directions; self-loops are left alone. A rewired pair keeps its edges'
    features and directions between two new ends that were not joined; an added pair copies those of a pair of the graph. Where
    fewer pairs are unjoined than would be needed, as many as there are. Removal is nested: a larger share removes the same and more.
    """
    n = int(graph.num_nodes or 0)
    u, v = graph.edge_index.numpy()
    low, high = np.minimum(u, v), np.maximum(u, v)
    between = low != high
    pairs, of = np.unique(low * max(n, 1) + high, return_inverse=True)
    real = np.unique(of[between])  # pairs that are no self-loop
    count = int(share * len(real) + 0.5)
    if not count:
        return graph
    chosen = rng.permutation(real)[:count]
    new = copy.copy(graph)
    keep = np.ones(len(u), bool)
    if noise == "remove":
        keep = ~np.isin(of, chosen)
        _edges(new, u[keep], v[keep], np.flatnonzero(keep), graph)
        return new
    free = _unjoined(n, pairs[real], len(chosen), rng)
    moved = np.isin(of, chosen[: len(free)])
    place = np.searchsorted(np.sort(chosen[: len(free)]), of[moved])
    ends = free[place]  # the pair that an edge of a chosen pair goes to
    a, b = ends // max(n, 1), ends % max(n, 1)
    forward = u[moved] < v[moved]
    new_u, new_v = np.where(forward, a, b), np.where(forward, b, a)
    if noise == "rewire":
        keep = ~moved
    rows = np.concatenate([np.flatnonzero(keep), np.flatnonzero(moved)])
    _edges(new, np.concatenate([u[keep], new_u]), np.concatenate([v[keep], new_v]), rows, graph)
    return new


def _edges(new: Data, u: Array, v: Array, rows: Array, old: Data) -> None:
    """Set the edges of a new graph; `rows` are the old edges whose features they carry."""
    new.edge_index = torch.from_numpy(np.stack([u, v]).astype(np.int64))
    if old.edge_attr is not None:
        new.edge_attr = old.edge_attr[torch.from_numpy(rows)]


def _unjoined(n: int, joined: Array, count: int, rng: np.random.Generator) -> Array:
    """Up to `count` different pairs ``low * n + high`` of nodes that are not joined, uniformly; in random order."""
    open_pairs = n * (n - 1) // 2 - len(joined)
    count = min(count, open_pairs)
    if n <= 300 or open_pairs < 4 * count:  # list them all
        low, high = np.triu_indices(n, 1)
        codes = np.setdiff1d(low * n + high, joined, assume_unique=True)
        return rng.permutation(codes)[:count]
    found = np.zeros(0, np.int64)
    while len(found) < count:
        ends = rng.integers(n, size=(2 * count + 8, 2))
        low, high = ends.min(1), ends.max(1)
        codes = np.setdiff1d((low * n + high)[low != high], np.concatenate([joined, found]))
        found = np.concatenate([found, rng.permutation(codes)])
    return found[:count]
