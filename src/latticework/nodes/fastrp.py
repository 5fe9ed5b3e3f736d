"""FastRP: node embeddings by a very sparse random projection of a mixture of random-walk powers; nothing is trained.

With ``P = D^-1 A``, ``L = diag((d_j / 2m)^beta)`` and R random, ``U_t = P^t L R`` comes from t sparse products, and the
embedding is ``sum_t a_t U_t`` of the row-normalised U_t. As the power grows ``P^t_ij`` tends to ``d_j / 2m``: beta = -1
cancels that limit, beta = 0 keeps it. R is drawn by a counter-based generator keyed by (seed, node id, column), so its
entries depend neither on threads nor on blocks, and an old node keeps its row when the graph grows.

Source: "Fast and Accurate Network Embeddings via Very Sparse Random Projection" (CIKM 2019); merging and standardisation
as in the published code.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numba
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.value import setting
from latticework.layers.hashing import GOLDEN
from latticework.layers.propagation import SparseOperator, adjacency, run_parallel
from latticework.layers.splitmix import FIRST, mix

from .embedding import EmbeddingMethod, EmbeddingModel

Array = NDArray[Any]
Projection = Literal["sparse", "gaussian"]
Merge = Literal["sum", "concat"]

_S11 = np.uint64(11)
_ONE = np.uint64(1)
# Above this density R is cheaper as a dense matrix than with an index per entry.
_SPARSE_ENOUGH = 0.25
_ROWS = 1 << 14


@numba.njit(cache=True)
def _row_key(seed: Any, node: Any) -> Any:  # pragma: no cover - compiled
    # Seed and node are mixed one after the other, so that (seed, node) pairs with equal sums don't share a stream.
    return mix(mix(seed + GOLDEN) ^ mix(np.uint64(node) * GOLDEN + FIRST))


@numba.njit(cache=True, parallel=True)
def _count_entries(  # pragma: no cover - compiled
    nodes: Array, seed: Any, most: Any, start: int, stop: int, counts: Array
) -> None:
    for i in numba.prange(nodes.shape[0]):
        key = _row_key(seed, nodes[i])
        found = 0
        for c in range(start, stop):
            found += mix(key + np.uint64(c + 1) * GOLDEN) <= most
        counts[i] = found


@numba.njit(cache=True, parallel=True)
def _fill_entries(  # pragma: no cover - compiled
    nodes: Array, seed: Any, most: Any, start: int, stop: int, indptr: Array, indices: Array, values: Array, size: Any
) -> None:
    for i in numba.prange(nodes.shape[0]):
        key = _row_key(seed, nodes[i])
        at = indptr[i]
        for c in range(start, stop):
            h = mix(key + np.uint64(c + 1) * GOLDEN)
            if h <= most:
                indices[at] = c - start
                # Below the threshold the lowest bit is still a fair coin.
                values[at] = size if h & _ONE else -size
                at += 1


@numba.njit(cache=True, parallel=True)
def _uniform(nodes: Array, seed: Any, start: int, out: Array) -> None:  # pragma: no cover - compiled
    for i in numba.prange(nodes.shape[0]):
        key = _row_key(seed, nodes[i])
        for c in range(out.shape[1]):
            h = mix(key + np.uint64(start + c + 1) * GOLDEN)
            out[i, c] = (np.float64(h >> _S11) + 0.5) * 2.0**-53


@numba.njit(cache=True, parallel=True)
def _scale_rows(  # pragma: no cover - compiled
    indptr: Array, data: Array, factor: Array, out: Array
) -> None:
    for i in numba.prange(indptr.shape[0] - 1):
        for e in range(indptr[i], indptr[i + 1]):
            out[e] = data[e] * factor[i]


@numba.njit(cache=True, parallel=True)
def _first_order(  # pragma: no cover - compiled
    indptr: Array, indices: Array, values: Array, starts: Array, columns: Array, entries: Array, out: Array, bounds: Array
) -> None:
    # Sparse times sparse into a dense matrix: the cost is that of the non-zeros that meet.
    for c in numba.prange(bounds.shape[0] - 1):
        for i in range(bounds[c], bounds[c + 1]):
            out[i, :] = 0
            for e in range(indptr[i], indptr[i + 1]):
                v = values[e]
                j = indices[e]
                for q in range(starts[j], starts[j + 1]):
                    out[i, columns[q]] += v * entries[q]


# Reassociation lets the sum of squares run in vector lanes; a row is still summed by one thread in one fixed order.
@numba.njit(cache=True, parallel=True, fastmath={"reassoc", "contract"})
def _add_order(  # pragma: no cover - compiled
    U: Array, weight: float, unit: bool, add: bool, out: Array, place: int
) -> None:
    width = U.shape[1]
    for i in numba.prange(U.shape[0]):
        scale = weight
        if unit:
            square = 0.0
            for f in range(width):
                square += np.float64(U[i, f]) * np.float64(U[i, f])
            scale = weight / math.sqrt(square) if square > 0 else 0.0
        s = U.dtype.type(scale)
        if add:
            for f in range(width):
                out[i, place + f] += s * U[i, f]
        else:
            for f in range(width):
                out[i, place + f] = s * U[i, f]


@numba.njit(cache=True, parallel=True)
def _standardise(X: Array, block: int, flat: float) -> None:  # pragma: no cover - compiled
    rows, columns = X.shape
    # A block of columns is one thread's, and reads whole cache lines; every column is summed in row order.
    for b in numba.prange((columns + block - 1) // block):
        start = b * block
        stop = min(start + block, columns)
        mean = np.zeros(block)
        square = np.zeros(block)
        for i in range(rows):
            for f in range(start, stop):
                mean[f - start] += X[i, f]
        mean /= rows
        for i in range(rows):
            for f in range(start, stop):
                square[f - start] += (X[i, f] - mean[f - start]) ** 2
        for f in range(start, stop):
            deviation = math.sqrt(square[f - start] / rows)
            # Rounding alone leaves a constant column with a tiny spread.
            constant = deviation <= flat * abs(mean[f - start])
            square[f - start] = 0.0 if constant else 1.0 / deviation
        for i in range(rows):
            for f in range(start, stop):
                X[i, f] = (X[i, f] - mean[f - start]) * square[f - start]


def projection_matrix(
    n: int,
    dim: int,
    density: float | Literal["auto"] = "auto",
    seed: int = 0,
    kind: Projection = "sparse",
    *,
    ids: Array | None = None,
    columns: tuple[int, int] | None = None,
    dtype: Any = np.float32,
) -> Any:
    """The random matrix R [n, dim], ``E[R R^T] = dim I``.

    ``sparse``: with ``s = 1 / density`` an entry is ``+sqrt(s)`` or ``-sqrt(s)`` with chance 1/(2s) each, else 0; density
    1/3 is Achlioptas' law, 1 the signs alone, "auto" ``1/sqrt(n)``. -> scipy CSR (int32 indices below 2^31 entries). ``gaussian``: standard
    normal entries, by the inverse of the distribution function. -> dense. The factor ``1/sqrt(dim)`` that scikit-learn
    puts in is left out: it is common to all entries.

    Entry (i, c) depends on the seed, ``ids[i]`` (integers; the row number where left out), c, the density and the kind
    alone, bit for bit: for any number of threads, and for any block ``columns=(start, stop)``. When a graph grows, give
    the density as a number: "auto" changes with n.

    Time O(n dim). Errors: ``ValueError`` for n, dim < 1, a density outside (0, 1], an unknown kind, a block outside
    0..dim, ids of another shape or not integers, a dtype other than float32 and float64.
    Source: CIKM 2019, very sparse random projection; density as in the published code.
    """
    if n < 1 or dim < 1:
        raise ValueError(f"n and dim must be >= 1, are {n} and {dim}")
    if kind not in ("sparse", "gaussian"):
        raise ValueError(f"projection must be 'sparse' or 'gaussian', not {kind!r}")
    share = _density(density, n)
    start, stop = (0, dim) if columns is None else columns
    if not 0 <= start < stop <= dim:
        raise ValueError(f"columns must be a block of 0..{dim}, are {columns}")
    wanted = _floating(dtype)
    nodes = np.arange(n, dtype=np.int64) if ids is None else np.asarray(ids)
    if nodes.shape != (n,) or not np.issubdtype(nodes.dtype, np.integer):
        raise ValueError(f"ids must be {n} integers, are {nodes.dtype} {list(nodes.shape)}")
    nodes = np.ascontiguousarray(nodes.astype(np.int64))
    word = np.uint64(int(seed) % 2**64)
    if kind == "gaussian":
        out = np.empty((n, stop - start), dtype=wanted)
        for i in range(0, n, _ROWS):
            block = np.empty((min(_ROWS, n - i), stop - start))
            run_parallel(_uniform, nodes[i : i + _ROWS], word, start, block)
            out[i : i + _ROWS] = ndtri(block, out=block)
        return out
    most = np.uint64(max(min(int(share * 2.0**64), 2**64) - 1, 0))
    counts = np.empty(n, dtype=np.int64)
    run_parallel(_count_entries, nodes, word, most, start, stop, counts)
    # scipy wants both index arrays in one dtype
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32 if counts.sum() < 2**31 else np.int64)
    indices, values = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=wanted)
    run_parallel(_fill_entries, nodes, word, most, start, stop, indptr, indices, values, wanted.type(math.sqrt(1.0 / share)))
    return sp.csr_array((values, indices, indptr), shape=(n, stop - start))


def transition(A: Any, beta: float = -0.64, dtype: Any = np.float32) -> tuple[SparseOperator, NDArray[np.float64]]:
    """``P = D^-1 A`` as an operator, and the diagonal of L, ``(d_j / 2m)^beta``, float64 [n].

    ``A`` sparse [n, n] (scipy or SparseOperator), weights >= 0, ``A[i, j]`` the edge i -> j. P takes the sums of rows
    (out-degrees), L those of columns (in-degrees: the limit of ``P^t_ij`` follows that side), ``2m`` the sum of all
    weights; on an undirected graph the two agree. Self-loops stay, repeated entries add up. A row without weight is a zero
    row of P, and a node with d = 0 gets L = 0.

    Errors: ``ValueError`` for a matrix that isn't square, no nodes, a weight that is negative, NaN or infinite, a beta
    that isn't finite. A beta outside [-1, 1] is warned of.
    """
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite, is {beta}")
    if not -1 <= beta <= 1:
        warnings.warn(f"beta = {beta} lies outside [-1, 1]: hubs then outweigh everything else", stacklevel=2)
    wanted = _floating(dtype)
    matrix = _checked(A)
    rows = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    into = np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel()
    total = float(rows.sum())
    scale = np.zeros_like(into)
    scale[into > 0] = (into[into > 0] / total) ** beta
    inverse = np.divide(1.0, rows, out=np.zeros_like(rows), where=rows > 0)
    P = SparseOperator.unchecked(matrix.indptr, matrix.indices, np.empty(matrix.nnz, dtype=wanted), (len(rows), len(rows)))
    run_parallel(_scale_rows, P.indptr, matrix.data, inverse, P.values)
    return P, scale


def orders(P: SparseOperator, scale: Array, R: Any, count: int, *, overwrite: bool = False) -> Iterator[Array]:
    """Yield ``U_t = P^t L R`` for t = 1..count: ``U_1 = P (L R)``, ``U_t = P U_(t-1)``; no power of P is ever formed.

    ``P`` and ``scale`` [n] of :func:`transition`; ``R`` scipy sparse or dense [n, dim] of P's dtype -> arrays [n, dim],
    written into two buffers in turn: copy what is to be kept. ``overwrite`` lets a dense R be one of them.

    Errors, at once: ``ValueError`` for count < 1 or shapes that don't fit, ``TypeError`` for another dtype.
    """
    if count < 1:
        raise ValueError(f"at least one order is needed, not {count}")
    n = P.shape[0]
    if R.ndim != 2 or R.shape[0] != n or np.shape(scale) != (n,):
        raise ValueError(f"P is {P.shape}, so R must be [{n}, dim] and scale [{n}]; are {list(R.shape)}, {list(np.shape(scale))}")
    if R.dtype != P.values.dtype:
        raise TypeError(f"R is {R.dtype}, P {P.values.dtype}")
    scale = np.asarray(scale, dtype=np.float64)

    def walk() -> Iterator[Array]:
        current = np.empty(R.shape, dtype=P.values.dtype)
        other: Array | None = None
        if sp.issparse(R):
            csr = sp.csr_array(R)
            starts, entries = csr.indptr.astype(np.int64), np.empty_like(csr.data)
            run_parallel(_scale_rows, starts, csr.data, scale, entries)
            arrays = (P.indptr, P.indices, P.values, starts, csr.indices.astype(np.int32, copy=False), entries)
            run_parallel(_first_order, *arrays, current, P.bounds)
            del csr, starts, entries, arrays
        else:
            other = R if overwrite and R.flags.c_contiguous else np.array(R, order="C")
            other *= scale[:, None].astype(other.dtype)
            P.multiply(other, out=current)
        yield current
        for _ in range(count - 1):
            if other is None:
                other = np.empty_like(current)
            P.multiply(current, out=other)
            current, other = other, current
            yield current

    return walk()


def merge_orders(
    U: Iterable[Array],
    weights: Sequence[float],
    normalise: bool = True,
    merge: Merge = "sum",
    standardise: bool = True,
) -> Array:
    """``sum_t a_t U_t``, or the ``a_t U_t`` side by side, of orders as :func:`orders` yields them.

    Orders of weight 0 are left out. ``normalise`` divides each row of each U_t by its Euclidean norm before (zero rows
    stay zero), which changes what the weights mean. ``standardise`` then takes the mean from each column and divides by
    its standard deviation (ddof 0); constant columns become 0. Under "concat" it undoes the weights but for their sign.

    Shapes: ``U`` as many arrays [n, dim] as weights, none is changed -> [n, dim], or [n, q dim] with q weights other than
    0. The published code standardises sums only, and gives concatenated orders no weights (take ones).
    Errors: ``ValueError`` for no weights, weights all 0 or not finite, an unknown merge, another number of orders.
    """
    weights = _weights(weights)
    if merge not in ("sum", "concat"):
        raise ValueError(f"merge must be 'sum' or 'concat', not {merge!r}")
    kept = int(np.count_nonzero(weights))
    out: Array | None = None
    seen, place = 0, 0
    for u in U:
        seen += 1
        if seen > len(weights):
            raise ValueError(f"{len(weights)} weights, but more orders")
        weight = weights[seen - 1]
        if weight == 0:
            continue
        n, dim = u.shape
        if out is None:
            out = np.empty((n, dim if merge == "sum" else kept * dim), dtype=u.dtype)
        add = merge == "sum" and place > 0
        run_parallel(_add_order, np.ascontiguousarray(u), weight, normalise, add, out, 0 if merge == "sum" else place)
        place += dim
    if seen < len(weights) or out is None:
        raise ValueError(f"{len(weights)} weights, but {seen} orders")
    if standardise:
        run_parallel(_standardise, out, 16, 10 * float(np.finfo(out.dtype).eps))
    return out


def fastrp(
    A: Any,
    dim: int = 512,
    weights: Sequence[float] = (0.0, 0.0, 1.0, 6.67),
    beta: float = -0.64,
    normalise: bool = True,
    projection: Projection = "sparse",
    density: float | Literal["auto"] = "auto",
    merge: Merge = "sum",
    standardise: bool = True,
    *,
    seed: int = 0,
    ids: Array | None = None,
    dtype: Any = np.float32,
) -> Array:
    """Embeds the nodes of a graph: ``(sum_t a_t P^t L) R`` by repeated sparse products, see the pieces above.

    ``A`` sparse [n, n] (scipy or SparseOperator), weights >= 0, directed or not; ``weights`` a_1..a_k, k the highest order
    -> float32 (``dtype``) [n, dim], or [n, q dim] with ``merge="concat"`` and q weights other than 0. A node without edges
    gets the zero vector before standardisation. The same seed gives the same bytes for any number of threads.

    Time O(k nnz dim + n dim); memory at most 4 n dim numbers beside the graph.
    Errors: ``ValueError`` as the pieces list them. Source: CIKM 2019, algorithm 1 and the published code's merging.
    """
    weights = _weights(weights)
    if merge not in ("sum", "concat"):
        raise ValueError(f"merge must be 'sum' or 'concat', not {merge!r}")
    P, scale = transition(A, beta, dtype)
    R = projection_matrix(P.shape[0], dim, density, seed, projection, ids=ids, dtype=dtype)
    if sp.issparse(R) and _density(density, P.shape[0]) > _SPARSE_ENOUGH:
        R = R.toarray()
    steps = orders(P, scale, R, len(weights), overwrite=True)
    del R
    return merge_orders(steps, weights, normalise, merge, standardise)


def _weights(weights: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(w) for w in weights)
    if not values:
        raise ValueError("weights are empty: give one per order, a_1..a_k")
    if not all(math.isfinite(w) for w in values):
        raise ValueError(f"weights must be finite, are {values}")
    if not any(values):
        raise ValueError("weights are all 0: nothing would be left of the graph")
    return values


def _density(density: float | str, n: int) -> float:
    if density == "auto":
        return 1.0 / math.sqrt(n)
    if isinstance(density, str) or not 0 < density <= 1:
        raise ValueError(f"density must be 'auto' or lie in (0, 1], is {density!r}")
    return float(density)


def _floating(dtype: Any) -> np.dtype[Any]:
    wanted = np.dtype(dtype)
    if wanted not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64, not {wanted}")
    return wanted


def _checked(A: Any) -> sp.csr_array:
    matrix = sp.csr_array(A.to_scipy() if isinstance(A, SparseOperator) else A)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the adjacency must be square, is {matrix.shape}")
    if matrix.shape[0] == 0:
        raise ValueError("the graph has no nodes")
    if matrix.data.dtype.kind not in "fiub":
        raise ValueError(f"weights must be real numbers, not {matrix.data.dtype}")
    if matrix.data.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        matrix = matrix.astype(np.float64)
    if matrix.nnz and not (np.isfinite(matrix.data.min()) and matrix.data.min() >= 0 and np.isfinite(matrix.data.max())):
        at = int(np.flatnonzero(~(np.isfinite(matrix.data) & (matrix.data >= 0)))[0])
        row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
        raise ValueError(f"weights must be finite and >= 0; that of {row} -> {int(matrix.indices[at])} is {matrix.data[at]}")
    return matrix


class FastRPModel(EmbeddingModel):
    """The vectors; under other `weights` they are computed again from the fitted graph."""

    def embed(self, part: Part) -> Any:
        vectors = super().embed(part)
        method = self.method
        assert isinstance(method, FastRPMethod)
        if list(method.weights) == self.schema["weights"]:
            return vectors
        return method.vectors(part, self.schema["seed"])

    def at(self, **late: Any) -> Self:
        other = super().at(**late)
        if late:
            _weights(other.method.weights)  # type: ignore[attr-defined]
        return other


class FastRPMethod(EmbeddingMethod):
    """Vectors of nodes by a very sparse random projection of a mixture of random-walk powers; nothing is trained.

    Directed graphs are taken as they are: walks follow the edges, and `beta` damps by in-degree. The published tuning
    keeps ``a_1 = a_2 = 0, a_3 = 1`` and looks for a_4 and beta. `weights` may change after the fit.
    """

    name: ClassVar[str] = "fastrp"
    model: ClassVar[type[EmbeddingModel]] = FastRPModel
    dim: int = setting(512, "length of a node's vector (times the orders kept, with merge=concat)", ge=1, le=65_536)
    weights: tuple[float, ...] = setting(
        (0.0, 0.0, 1.0, 6.67), "a_1 .. a_k of the walk lengths 1 .. k", late=True,
        search=["0,0,1,1", "0,0,1,2.5", "0,0,1,6.67", "0,0,1,16", "0,0,1,40"],
    )  # fmt: skip
    beta: float = setting(-0.64, "below 0 damps hubs, 0 keeps them", ge=-1, le=1, search=(-1.0, 0.0))
    normalise: bool = setting(True, "divide each order's rows by their length before the sum")
    projection: Projection = setting("sparse", "law of the random matrix")
    density: float | Literal["auto"] = setting("auto", "share of its entries that are not zero; auto: 1 / sqrt(nodes)")
    merge: Merge = setting("sum", "add the orders up, or put them side by side")
    standardise: bool = setting(True, "columns of mean 0 and deviation 1")

    def vectors(self, part: Part, seed: int) -> Array:
        """float32 [n, dim] for the graph of a part."""
        data = part.data
        A = adjacency(data.edge_index, int(data.num_nodes), data.edge_weight, rows="source")
        return fastrp(
            A, self.dim, self.weights, self.beta, self.normalise, self.projection, self.density, self.merge,
            self.standardise, seed=seed,
        )  # fmt: skip

    def fit(self, train: Part, valid: Part | None, run: Run) -> FastRPModel:
        _weights(self.weights)
        seed = int(run.rng("projection").integers(2**62))
        schema: Mapping[str, Any] = {**train.schema, "seed": seed, "weights": list(self.weights)}
        return FastRPModel(self, schema, torch.from_numpy(self.vectors(train, seed)))
