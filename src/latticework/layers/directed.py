"""Directed patterns of a graph, their two-sided normalisation, and a directed block model.

A directed pattern says how two nodes can be joined by one or two arcs when each arc may be walked
either way: ``A`` (u -> v), ``AT`` (u <- v), ``AA`` (u -> w -> v), ``ATAT`` (u <- w <- v), ``AAT``
(u -> w <- v, a shared successor) and ``ATA`` (u <- w -> v, a shared predecessor). Each is a sparse
matrix whose entries count the paths, so one product per pattern is all that is ever computed. The
normalisation is ``D^(r-1) G D^(-r)`` with the *row* sums of ``G`` on both sides, as the published
ADPA code has it: row-stochastic at ``r = 0``, columns divided by row sums at ``r = 1``.

Source: "Breaking the Entanglement of Homophily and Heterophily in Semi-supervised Node
Classification" (ICDE 2024, arXiv 2312.04111), directed patterns and the normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import scipy.sparse as sp

FIRST_ORDER = ("A", "AT")
SECOND_ORDER = ("AA", "ATAT", "AAT", "ATA")


def adjacency(edge_index: np.ndarray, n: int) -> sp.csr_matrix:
    """The 0/1 matrix ``A[u, v] = 1`` for every arc u -> v; repeated arcs count once.

    Shapes: ``edge_index`` integer ``[2, m]`` -> CSR ``[n, n]`` float64; self-loops are kept.
    Errors: ``ValueError`` for another shape or for a node outside ``0 .. n-1``.
    """
    edges = np.asarray(edge_index)
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise ValueError(f"edge_index must have shape [2, m], not {edges.shape}")
    if edges.size and (edges.min() < 0 or edges.max() >= n):
        raise ValueError(f"edge_index names a node outside 0..{n - 1}")
    A = sp.csr_matrix((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(n, n))
    A.data[:] = 1.0  # the constructor has summed repeated arcs
    return A


def symmetrise(A: sp.spmatrix) -> sp.csr_matrix:
    """The undirected reading ``max(A, A^T)``; CSR ``[n, n]`` -> CSR ``[n, n]`` float64."""
    A = _square(A)
    return sp.csr_matrix(A.maximum(A.T))


def row_blocks(left: sp.csr_matrix, right: sp.csr_matrix, budget: int) -> Iterator[tuple[int, int]]:
    """Row ranges ``(i, j)`` of ``left`` whose part of ``left @ right`` takes about ``budget`` steps.

    The number of multiplications of a row bounds the entries that it can produce, so a hub's dense
    rows never stand in memory together. A single row above the budget is a block of its own.
    """
    lengths = np.diff(right.indptr)
    steps = sp.csr_matrix((np.ones(left.nnz), left.indices, left.indptr), shape=left.shape) @ lengths.astype(np.float64)
    done = np.concatenate([[0.0], np.cumsum(steps)])
    start, rows = 0, left.shape[0]
    while start < rows:
        stop = int(np.searchsorted(done, done[start] + budget, side="right")) - 1
        stop = min(max(stop, start + 1), rows)
        yield start, stop
        start = stop


def directed_patterns(
    A: sp.spmatrix,
    order: int = 2,
    *,
    directed: bool = True,
    cap: int | None = None,
    budget: int = 20_000_000,
) -> dict[str, sp.csr_matrix]:
    """The directed patterns of ``A``, with path counts as entries and the diagonal kept.

    ``A, AT`` for ``order=1``; with ``order=2`` also ``AA = A A``, ``ATAT = A^T A^T``,
    ``AAT = A A^T`` and ``ATA = A^T A``. With ``directed=False`` the graph is symmetrised first
    (``max(A, A^T)``) and, all patterns of one order being equal then, only ``A`` and ``AA`` come
    back. ``cap`` keeps the ``cap`` largest counts of each row of a second-order pattern, block by
    block of about ``budget`` multiplications, so that a hub's dense product is never held whole;
    ties at the cap are broken by column number, so a capped pattern is no longer exactly
    equivariant under relabelling, nor are capped ``AAT`` and ``ATA`` symmetric.

    Shapes: ``A`` sparse ``[n, n]``, non-negative -> dict of CSR ``[n, n]`` float64.
    Errors: ``ValueError`` for a matrix that is not square or has negative or non-finite weights,
    an order other than 1 and 2, a cap below 1.
    Source: arXiv 2312.04111, directed patterns of order 1 and 2.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, not {order}")
    if cap is not None and cap < 1:
        raise ValueError(f"cap must be at least 1, not {cap}")
    A = _square(A) if directed else symmetrise(A)
    if not directed:
        return {"A": A} if order == 1 else {"A": A, "AA": _product(A, A, cap, budget)}
    AT = sp.csr_matrix(A.T)
    patterns = {"A": A, "AT": AT}
    if order == 2:
        for name, (left, right) in {
            "AA": (A, A),
            "ATAT": (AT, AT),
            "AAT": (A, AT),
            "ATA": (AT, A),
        }.items():
            patterns[name] = _product(left, right, cap, budget)
    return patterns


def normalise_pattern(G: sp.spmatrix, r: float, *, loops: bool = False) -> sp.csr_matrix:
    """``D^(r-1) G D^(-r)`` with ``D`` the row sums of ``G``, after ``G + I`` where ``loops``.

    A row sum of zero gives the factor 0 on both sides: an empty row stays empty, and a node without
    a row of its own passes nothing on unless ``r = 0``, where the right factor is 1 for all (without
    that exception ``r = 0`` would not be row-stochastic).

    Shapes: sparse ``[n, n]`` -> CSR ``[n, n]`` float64. Errors: ``ValueError`` for ``r`` outside
    [0, 1], a matrix that is not square, negative or non-finite weights.
    Source: published ADPA code; the row sums on both sides are its choice.
    """
    if not 0.0 <= r <= 1.0:
        raise ValueError(f"r must lie in [0, 1], not {r}")
    G = _square(G)
    if loops:
        G = sp.csr_matrix(G + sp.identity(G.shape[0], format="csr"))
    sums = np.asarray(G.sum(axis=1)).ravel()
    alive = sums > 0
    left, right = np.zeros_like(sums), np.zeros_like(sums)
    left[alive] = sums[alive] ** (r - 1.0)
    right[alive] = sums[alive] ** (-r)
    if r == 0.0:
        right[:] = 1.0
    return sp.csr_matrix(sp.diags(left) @ G @ sp.diags(right))


def normalise_patterns(patterns: Mapping[str, sp.spmatrix], r: float) -> dict[str, sp.csr_matrix]:
    """Each pattern normalised: order 1 (``A``, ``AT``) with ``+I`` before, order 2 without.

    ``A A^T`` and ``A^T A`` have a diagonal of their own (a node shares its neighbours with itself),
    which is why order 2 gets none. Shapes and errors: see :func:`normalise_pattern`.
    """
    return {name: normalise_pattern(G, r, loops=name in FIRST_ORDER) for name, G in patterns.items()}


def cyclic_dsbm(n: int, classes: int, p: float, q: float, seed: int, directed: bool = True) -> tuple[sp.csr_matrix, np.ndarray]:
    """A block model whose arcs between classes run round a cycle, or, undirected, at random.

    Every unordered pair of nodes is joined by one arc with probability ``p`` inside a class and
    ``q`` between two classes. With ``directed`` an arc between neighbouring classes of the cycle
    runs from class c to class c + 1 (mod ``classes``), and every other arc runs either way with
    chance 1/2; without it all arcs do, and the direction carries nothing. Both readings come from
    the same draws: the seed gives the same undirected graph either way.

    Shapes: -> CSR ``[n, n]`` float64 of 0/1, and labels int64 ``[n]`` (equal classes, shuffled).
    Time O(n^2), memory O(arcs). Errors: ``ValueError`` for fewer than two classes, fewer nodes than
    classes, a probability outside [0, 1]. With two classes c + 1 and c - 1 are the same class, so
    the arcs run from class 0 to class 1.
    Source: directed stochastic block models of the directed-graph literature; no single equation.
    """
    if classes < 2 or n < classes:
        raise ValueError(f"need classes >= 2 and n >= classes, not n={n}, classes={classes}")
    for name, value in (("p", p), ("q", q)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], not {value}")
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n, dtype=np.int64) % classes)
    sources, targets = [], []
    for u in range(n - 1):
        draw, coin = rng.random(n - u - 1), rng.random(n - u - 1)
        others = y[u + 1 :]
        hit = np.flatnonzero(draw < np.where(others == y[u], p, q))
        forward = coin[hit] < 0.5
        if directed:
            step = (others[hit] - y[u]) % classes
            if classes == 2:
                forward = np.where(step == 1, y[u] == 0, forward)
            else:
                forward = np.where(step == 1, True, np.where(step == classes - 1, False, forward))
        v = hit + u + 1
        sources.append(np.where(forward, u, v))
        targets.append(np.where(forward, v, u))
    edges = np.stack([np.concatenate(sources), np.concatenate(targets)])
    return adjacency(edges, n), y


def _square(A: sp.spmatrix) -> sp.csr_matrix:
    A = sp.csr_matrix(A, dtype=np.float64)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"the adjacency must be square, not {A.shape}")
    if A.nnz and not (np.isfinite(A.data).all() and A.data.min() >= 0):
        raise ValueError("the adjacency must have finite, non-negative weights")
    return A


def _product(left: sp.csr_matrix, right: sp.csr_matrix, cap: int | None, budget: int) -> sp.csr_matrix:
    if cap is None:
        return sp.csr_matrix(left @ right)
    blocks = [_largest(left[i:j] @ right, cap) for i, j in row_blocks(left, right, budget)]
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def _largest(block: sp.csr_matrix, cap: int) -> sp.csr_matrix:
    block.sort_indices()  # the tie rule needs columns in order
    keep = np.ones(block.nnz, dtype=bool)
    for row in np.flatnonzero(np.diff(block.indptr) > cap):
        span = slice(block.indptr[row], block.indptr[row + 1])
        keep[span] = False
        keep[block.indptr[row] + np.argsort(-block.data[span], kind="stable")[:cap]] = True
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[keep]
    return sp.csr_matrix((block.data[keep], (rows, block.indices[keep])), shape=block.shape)
