"""Positive pointwise mutual information of a matrix of co-occurrences, the same of random walks, and their factors.

``PMI_ij = log(M_ij vol / (r_i c_j))`` with row sums r, column sums c and ``vol = Σ M`` compares how often i and j meet with
how often they would by chance; what is below 0, or where they never meet, counts as 0. Walks have a closed form: skip-gram on
walks with a window of w factorises ``log(vol / (b w) Σ_(r ≤ w) P^r D^-1)``. Vectors are ``U √Σ`` of a truncated SVD.

Source: Levy and Goldberg, "Neural word embedding as implicit matrix factorization" (NIPS 2014), equation 12 for the positive
part; Qiu et al., "Network embedding as matrix factorization" (WSDM 2018), equation 4 and section 3.2 for walks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

Array = NDArray[Any]

# Up to this many rows a dense decomposition is faster and has no trouble with equal singular values.
_DENSE = 400


def positive_information(M: Any) -> sp.csr_array:
    """``max(log(M_ij vol / (r_i c_j)), 0)`` where ``M_ij > 0``, else 0. Sparse [n, k], entries >= 0 -> float64 CSR [n, k].

    Entries that come out as 0 are not stored. A factor common to all entries changes nothing.
    Errors: ``ValueError`` for an entry that is negative, NaN or infinite.
    """
    found = sp.csr_array(M, dtype=np.float64, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    if found.nnz and not (np.isfinite(found.data).all() and found.data.min() > 0):
        raise ValueError("co-occurrences must be finite and >= 0")
    rows, columns = np.asarray(found.sum(axis=1)).ravel(), np.asarray(found.sum(axis=0)).ravel()
    total = rows.sum()
    if not found.nnz:
        return found
    row_of = np.repeat(np.arange(found.shape[0]), np.diff(found.indptr))
    found.data *= total / columns[found.indices]
    found.data /= rows[row_of]
    np.log(found.data, out=found.data)
    np.maximum(found.data, 0, out=found.data)
    found.eliminate_zeros()
    return found


def walk_information(A: Any, window: int, negative: float = 1.0, *, budget: int = 1 << 24) -> sp.csr_array:
    """``max(log(vol / (b w) Σ_(r=1..w) P^r D^-1), 0)``, the matrix that DeepWalk with a window of w factorises.

    ``A`` sparse [n, n], weights >= 0, symmetric; ``P = D^-1 A``, b = `negative` -> float64 CSR [n, n], symmetric up to
    rounding. A node without edges has an empty row. The sum is made in blocks of rows of about `budget` entries and only its
    positive logarithms are kept.

    Errors: ``ValueError`` for window < 1, negative <= 0, a matrix that isn't square, symmetric, finite and >= 0.
    """
    if window < 1 or not negative > 0:
        raise ValueError(f"window must be >= 1 and negative > 0, are {window} and {negative}")
    A = sp.csr_array(A, dtype=np.float64)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"the adjacency must be square, is {A.shape}")
    if A.nnz and not (np.isfinite(A.data).all() and A.data.min() >= 0):
        raise ValueError("weights must be finite and >= 0")
    if abs(A - A.T).sum() > 0:
        raise ValueError("the adjacency must be symmetric; take max(A, A^T)")
    n = A.shape[0]
    degrees = np.asarray(A.sum(axis=1)).ravel()
    inverse = np.divide(1.0, degrees, out=np.zeros_like(degrees), where=degrees > 0)
    P = sp.csr_array(sp.diags_array(inverse) @ A)
    scale = degrees.sum() / (negative * window)
    blocks = []
    size = max(budget // max(n, 1), 1)
    for start in range(0, n, size):
        power = P[start : start + size]
        total = power
        for _ in range(window - 1):
            power = power @ P
            total = total + power
        found = sp.csr_array(total)
        found.data *= scale * inverse[found.indices]
        found.data = np.log(np.maximum(found.data, 1.0))
        found.eliminate_zeros()
        blocks.append(found)
    return sp.csr_array(sp.vstack(blocks, format="csr")) if blocks else sp.csr_array((n, n))


def factorise(M: Any, dim: int) -> tuple[Array, Array]:
    """``(U √Σ, V √Σ)`` of the `dim` largest singular values, ``M ≈ U Σ V^T``. [n, k] -> float64 [n, dim] and [k, dim].

    The same bits each time on one machine: the start of the iteration is fixed, and each pair of columns has the sign that
    makes the entry of U of largest size positive. Where M has fewer than `dim` singular values the rest is 0.
    Errors: ``ValueError`` for dim < 1 or a matrix that isn't finite.
    """
    if dim < 1:
        raise ValueError(f"dim must be >= 1, is {dim}")
    n, k = M.shape
    left, right = np.zeros((n, dim)), np.zeros((k, dim))
    values = M.data if sp.issparse(M) else np.asarray(M)
    if not np.isfinite(values).all():
        raise ValueError("the matrix must be finite")
    if not values.any():
        return left, right
    least = min(n, k)
    if least <= max(_DENSE, dim + 1):
        U, s, Vt = np.linalg.svd(M.toarray() if sp.issparse(M) else M, full_matrices=False)
    else:
        start = np.random.default_rng(0).standard_normal(least)  # ARPACK's own start is not repeatable
        U, s, Vt = svds(sp.csr_array(M, dtype=np.float64), k=dim, v0=start, solver="arpack")
        order = np.argsort(-s, kind="stable")
        U, s, Vt = U[:, order], s[order], Vt[order]
    kept = min(dim, len(s))
    U, V, root = U[:, :kept], Vt[:kept].T, np.sqrt(np.where(s[:kept] > s[0] * 1e-10, s[:kept], 0.0))
    sign = np.sign(U[np.abs(U).argmax(axis=0), np.arange(kept)])
    left[:, :kept], right[:, :kept] = U * (root * sign), V * (root * sign)
    return left, right


def unit_scale(V: Array) -> Array:
    """V times one number, so that the mean square of its entries is 1: a penalty on a read-out then means the same for all V."""
    size = float(np.sqrt(np.mean(np.square(V)))) if V.size else 0.0
    return V / size if size > 0 else V
