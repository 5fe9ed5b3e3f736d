"""Propagation: the product of a sparse graph operator with a dense matrix, and what is built on it.

A graph becomes a constant CSR matrix with int32 columns, and ``Y = S X`` runs over its rows in
parallel; the rows are cut by non-zeros and not by count, so a few hubs do not keep one thread busy
while the others wait. Every row is summed by one thread in the order in which it is stored, so the
result has the same bits for any number of threads. It is differentiable in ``X``:
``dL/dX = S^T dL/dY``, with the transpose built once, at the first need, and kept.

Source: the normalisations are those of Kipf and Welling, "Semi-Supervised Classification with
Graph Convolutional Networks" (ICLR 2017), equation 2, and of the random walk.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast, overload

import numba
import numpy as np
import scipy.sparse as sp
import torch
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_item_pointer
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Kind = Literal["symmetric", "row", "column", "none"]
Rows = Literal["target", "source"]

# Many more chunks than threads are not needed: chunks already hold equal work.
_CHUNKS = 64
# A row costs something even when empty; this many non-zeros, roughly.
_ROW_COST = 2
# Bytes of a cache line; bytes of X asked for ahead of their use, and the most rows that may be.
_LINE, _AHEAD, _MOST_AHEAD = 64, 4096, 32
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
# numba's fallback threading layer aborts when two Python threads enter it at once.
_PARALLEL = threading.Lock()


@intrinsic
def _prefetch(typing: Any, X: Any, row: Any, column: Any) -> Any:
    """Ask for the cache line of ``X[row, column]``; a hint to the processor without effect on any value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        array = make_array(kind)(context, builder, arguments[0])
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        place = builder.bitcast(get_item_pointer(context, builder, kind, array, arguments[1:], wraparound=False), byte)
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, word, word, word]))
        builder.call(hint, [place, word(0), word(3), word(1)])  # to be read, kept in all caches, data
        return context.get_dummy_value()

    return types.void(X, types.int64, types.int64), generate


@numba.njit(cache=True)
def _rows_product(  # pragma: no cover - compiled
    indptr: Array, indices: Array, values: Array, X: Array, out: Array, start: int, stop: int
) -> None:
    width = X.shape[1]
    line = _LINE // X.itemsize
    ahead = max(1, min(_MOST_AHEAD, _AHEAD // max(1, width * X.itemsize)))
    last = indptr[stop]
    for i in range(start, stop):
        for f in range(width):
            out[i, f] = 0
        for e in range(indptr[i], indptr[i + 1]):
            # Rows of X are read in random order: asking for them early hides most of the wait for memory.
            if e + ahead < last:
                later = np.int64(indices[e + ahead])
                for f in range(0, width, line):
                    _prefetch(X, later, np.int64(f))
            v = values[e]
            j = indices[e]
            for f in range(width):
                out[i, f] += v * X[j, f]


@numba.njit(cache=True, parallel=True)
def _parallel_product(  # pragma: no cover - compiled
    indptr: Array, indices: Array, values: Array, X: Array, out: Array, bounds: Array
) -> None:
    for c in numba.prange(bounds.shape[0] - 1):
        _rows_product(indptr, indices, values, X, out, bounds[c], bounds[c + 1])


def threads() -> int:
    """Number of threads that the kernels use: torch's, as far as numba was started with as many."""
    return max(1, min(torch.get_num_threads(), int(numba.config.NUMBA_NUM_THREADS)))


def run_parallel(kernel: Callable[..., None], *arguments: Any) -> None:
    """Call a ``numba`` kernel compiled with ``parallel=True`` on :func:`threads` threads."""
    with _PARALLEL:
        before, torchs = numba.get_num_threads(), torch.get_num_threads()
        numba.set_num_threads(threads())
        try:
            kernel(*arguments)
        finally:
            numba.set_num_threads(before)
            if torch.get_num_threads() != torchs:  # numba's first parallel kernel starts OpenMP anew, with its own number
                torch.set_num_threads(torchs)


def balanced_chunks(indptr: Array, chunks: int = _CHUNKS) -> NDArray[np.int64]:
    """Cut the rows of a CSR matrix into consecutive chunks of nearly equal work.

    ``indptr`` [n + 1]; the work of a row is its number of non-zeros plus a constant. Returns the
    boundaries, int64 [c + 1] with ``c <= chunks``, from 0 to n, without empty chunks (n = 0 gives
    [0]). A row is never cut, so a chunk holds at least its heaviest row.
    """
    n = len(indptr) - 1
    if n <= 0:
        return np.zeros(1, dtype=np.int64)
    work = np.asarray(indptr, dtype=np.int64) + _ROW_COST * np.arange(n + 1, dtype=np.int64)
    goals = np.linspace(0, int(work[-1]), min(chunks, n) + 1)[1:-1]
    inner = np.searchsorted(work, goals)
    return np.unique(np.concatenate([[0], inner, [n]])).astype(np.int64)


class SparseOperator:
    """A constant sparse matrix [rows, columns] in CSR form that multiplies dense matrices.

    ``S @ X`` is ``Y_i = sum_j S_ij X_j`` for ``X`` [columns, ...], a torch tensor (differentiable,
    also twice; no gradient for S) or a numpy array. On the CPU a row-parallel kernel does it, whose
    result doesn't depend on the number of threads; on another device torch's sparse CSR does, with
    no such promise. The transpose is built when first asked for and kept; a symmetric operator is
    its own transpose.

    ``indptr`` integer [rows + 1], ``indices`` int32 [nnz], ``values`` float32 or float64 [nnz],
    ``shape`` (rows, columns). Not to be changed afterwards. Entries stored twice count twice.
    The product has the dtype of ``X``, float32 or float64 (values are converted, once); float16
    and bfloat16 are summed in float32.

    Raises ``ValueError`` where the arrays don't form a CSR matrix of that shape, ``TypeError`` for
    values of another dtype.
    """

    def __init__(self, indptr: Array, indices: Array, values: Array, shape: tuple[int, int]) -> None:
        rows, columns = int(shape[0]), int(shape[1])
        self.indptr: NDArray[np.int64] = np.ascontiguousarray(indptr, dtype=np.int64)
        if rows < 0 or columns < 0 or columns > np.iinfo(np.int32).max:
            raise ValueError(f"shape {shape}: sizes must lie in 0..2^31 - 1")
        if self.indptr.shape != (rows + 1,) or self.indptr[0] != 0:
            raise ValueError(f"indptr must hold {rows + 1} entries from 0, has {len(self.indptr)}")
        if np.any(np.diff(self.indptr) < 0):
            raise ValueError("indptr must not decrease")
        wide = np.asarray(indices)
        if wide.shape != (self.indptr[-1],) or np.shape(values) != wide.shape:
            raise ValueError(
                f"indptr announces {self.indptr[-1]} entries; {wide.shape} indices and {np.shape(values)} values were given"
            )
        if wide.size and (wide.min() < 0 or wide.max() >= columns):
            bad = int(wide[(wide < 0) | (wide >= columns)][0])
            raise ValueError(f"column index {bad} is outside 0..{columns - 1}")
        self.indices: NDArray[np.int32] = np.ascontiguousarray(wide, dtype=np.int32)
        self.values: Array = np.ascontiguousarray(values)
        if self.values.dtype not in _FLOATS:
            raise TypeError(f"values must be float32 or float64, not {self.values.dtype}")
        self.shape: tuple[int, int] = (rows, columns)
        self._bounds: NDArray[np.int64] | None = None
        self._transpose: SparseOperator | None = None
        self._casts: dict[np.dtype[Any], SparseOperator] = {}
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def unchecked(cls, indptr: Array, indices: Array, values: Array, shape: tuple[int, int]) -> SparseOperator:
        """For arrays that are known to form a CSR matrix (int32 indices, float values): no look at them."""
        made = object.__new__(cls)
        made.indptr = np.ascontiguousarray(indptr, dtype=np.int64)
        made.indices = np.ascontiguousarray(indices, dtype=np.int32)
        made.values, made.shape = np.ascontiguousarray(values), shape
        made._bounds, made._transpose, made._casts, made._on_device = None, None, {}, {}
        return made

    def with_values(self, values: Array) -> SparseOperator:
        """The same pattern with other values [nnz]; the cut into chunks is shared."""
        made = SparseOperator.unchecked(self.indptr, self.indices, values, self.shape)
        made._bounds = self.bounds
        return made

    @classmethod
    def from_scipy(cls, matrix: Any, dtype: Any = None) -> SparseOperator:
        """From any scipy sparse matrix or array; ``dtype`` float32 or float64, left out: its own,
        or float32 where that is neither."""
        csr = sp.csr_array(matrix)
        if dtype is None:
            dtype = csr.dtype if csr.dtype in _FLOATS else np.float32
        values = csr.data.astype(np.dtype(dtype), copy=False)
        return cls(csr.indptr, csr.indices, values, cast(tuple[int, int], csr.shape))

    @classmethod
    def from_edges(
        cls,
        edge_index: Tensor | Array,
        weight: Tensor | Array | None,
        n: int,
        *,
        rows: Rows = "target",
        dtype: torch.dtype = torch.float32,
    ) -> SparseOperator:
        """From an edge list: ``edge_index`` integer [2, m] (sources, targets), ``weight`` [m] or
        None for ones. With ``rows="target"`` a node sums over the edges that enter it (PyG's
        default flow). Repeated edges add up. Errors as :func:`adjacency`."""
        return cls.from_scipy(adjacency(edge_index, n, weight, rows=rows), _numpy_dtype(dtype))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.values.dtype == np.float64 else torch.float32

    @property
    def nnz(self) -> int:
        return int(self.values.size)

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Chunks of rows with nearly equal work, see :func:`balanced_chunks`."""
        if self._bounds is None:
            self._bounds = balanced_chunks(self.indptr)
        return self._bounds

    @property
    def T(self) -> SparseOperator:
        """The transpose, kept; the operator itself where it equals its transpose."""
        if self._symmetric:
            return self
        origin = None if self._transpose_of is None else self._transpose_of()
        if origin is not None:
            return origin
        if self._transpose is None:
            turned = sp.csr_array(self.to_scipy().T)
            turned.sort_indices()
            same = (
                self.shape[0] == self.shape[1]
                and np.array_equal(turned.indptr, self.indptr)
                and np.array_equal(turned.indices, self.indices)
                and np.array_equal(turned.data, self.values)
            )
            if same:
                # No reference to itself: a cycle would keep large arrays until the collector runs.
                self._symmetric = True
                return self
            other = SparseOperator.from_scipy(turned)
            other._transpose_of = weakref.ref(self)
            self._transpose = other
        return self._transpose

    _symmetric: bool = False
    _transpose_of: weakref.ref[SparseOperator] | None = None

    def astype(self, dtype: torch.dtype) -> SparseOperator:
        """The same operator with float32 or float64 values; kept, so asking again is free."""
        wanted = _numpy_dtype(dtype)
        if wanted == self.values.dtype:
            return self
        if wanted not in self._casts:
            values = self.values.astype(wanted)
            self._casts[wanted] = SparseOperator(self.indptr, self.indices, values, self.shape)
        return self._casts[wanted]

    def to_scipy(self) -> sp.csr_array:
        """The CSR array; it shares values and columns with the operator."""
        # With wider row pointers scipy would copy the columns to their width.
        indptr = self.indptr.astype(np.int32) if self.nnz < 2**31 else self.indptr
        return sp.csr_array((self.values, self.indices, indptr), shape=self.shape)

    def to_torch(self, device: torch.device | str = "cpu") -> Tensor:
        """A torch sparse CSR tensor on ``device``; kept per device."""
        key = (torch.device(device), self.dtype)
        if key not in self._on_device:
            # torch wants both index arrays in one dtype.
            crow = self.indptr.astype(np.int32) if self.nnz < 2**31 else self.indptr
            column = self.indices.astype(crow.dtype, copy=False)
            self._on_device[key] = torch.sparse_csr_tensor(
                torch.from_numpy(crow),
                torch.from_numpy(column),
                torch.from_numpy(self.values),
                size=self.shape,
                device=key[0],
                check_invariants=False,
            )
        return self._on_device[key]

    def multiply(self, X: Array, out: Array | None = None) -> Array:
        """``S X`` for a numpy array ``X`` [columns, width] of the operator's dtype. Writes into
        ``out`` [rows, width], C-contiguous and apart from ``X``, where given."""
        if X.ndim != 2 or X.shape[0] != self.shape[1]:
            raise ValueError(f"X must be [{self.shape[1]}, width], is {list(X.shape)}")
        if X.dtype != self.values.dtype:
            raise TypeError(f"X is {X.dtype}, the operator {self.values.dtype}")
        X = np.ascontiguousarray(X)
        if out is None:
            out = np.empty((self.shape[0], X.shape[1]), dtype=X.dtype)
        elif out.shape != (self.shape[0], X.shape[1]) or out.dtype != X.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be C-contiguous [{self.shape[0]}, {X.shape[1]}] {X.dtype}")
        if np.may_share_memory(out, X):
            raise ValueError("out must not share memory with X")
        arrays = (self.indptr, self.indices, self.values, X, out)
        # Small products and single threads skip the threading layer: it costs more than it gives.
        if threads() == 1 or (self.nnz + self.shape[0]) * X.shape[1] < 1 << 18:
            _rows_product(*arrays, 0, self.shape[0])
        else:
            run_parallel(_parallel_product, *arrays, self.bounds)
        return out

    @overload
    def matmul(self, X: Tensor) -> Tensor: ...
    @overload
    def matmul(self, X: Array) -> Array: ...
    def matmul(self, X: Tensor | Array) -> Tensor | Array:
        """``S X`` for ``X`` [columns, ...]; returns [rows, ...] in the dtype of ``X``.

        Raises ``ValueError`` where ``X`` has another number of rows than S has columns, and
        ``TypeError`` for integers and other dtypes.
        """
        if X.ndim == 0 or X.shape[0] != self.shape[1]:
            raise ValueError(f"X has {X.shape[0] if X.ndim else 'no'} rows, the operator {self.shape[1]} columns")
        trailing = tuple(int(size) for size in X.shape[1:])
        width = int(np.prod(trailing, dtype=np.int64))
        if isinstance(X, Tensor):
            if X.dtype in (torch.float16, torch.bfloat16):
                return self.matmul(X.float()).to(X.dtype)
            operator = self.astype(X.dtype)
            flat = X.reshape(self.shape[1], width)
            return _apply(flat, operator).reshape(self.shape[0], *trailing)
        if X.dtype not in _FLOATS:
            raise TypeError(f"X must be float32 or float64, not {X.dtype}")
        cast_to = torch.float64 if X.dtype == np.float64 else torch.float32
        product = self.astype(cast_to).multiply(X.reshape(self.shape[1], width))
        return product.reshape(self.shape[0], *trailing)

    @overload
    def __matmul__(self, X: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, X: Array) -> Array: ...
    def __matmul__(self, X: Tensor | Array) -> Tensor | Array:
        return self.matmul(X)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"SparseOperator({rows} x {columns}, {self.nnz} non-zeros, {self.values.dtype})"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: Tensor, operator: SparseOperator) -> Tensor:
        ctx.operator = operator
        if X.device.type != "cpu":
            return operator.to_torch(X.device) @ X
        # asarray of a detached tensor shares its memory.
        return torch.from_numpy(operator.multiply(X.detach().contiguous().numpy()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return _apply(gradients[0], ctx.operator.T), None


def _apply(X: Tensor, operator: SparseOperator) -> Tensor:
    return cast(Tensor, _Product.apply(X, operator))  # type: ignore[no-untyped-call]


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    if dtype not in _NUMPY:
        raise TypeError(f"dtype must be float32 or float64, not {dtype}")
    return _NUMPY[dtype]


def _numpy(values: Tensor | Array) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def adjacency(
    edge_index: Tensor | Array,
    n: int,
    weight: Tensor | Array | None = None,
    *,
    self_loops: bool = False,
    undirected: bool = False,
    rows: Rows = "target",
) -> sp.csr_array:
    """The adjacency matrix of an edge list, float64 CSR [n, n] with sorted indices.

    ``edge_index`` integer [2, m] (sources, targets), ``weight`` [m] or None for ones. With
    ``rows="target"`` ``A[t, s]`` is the weight of s -> t, with ``rows="source"`` ``A[s, t]`` is.
    Repeated edges add up. ``undirected`` takes ``max(A, A^T)``, which leaves a symmetric matrix
    alone. ``self_loops`` adds a loop of weight 1 to every node that has none; an existing loop,
    also one of weight 0, keeps its weight.

    Raises ``ValueError`` for another shape, a node outside 0..n-1 (with its column), or a weight
    that is NaN or infinite; ``TypeError`` for node numbers that are no integers.
    """
    edges = _numpy(edge_index)
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise ValueError(f"edge_index must be [2, m], is {list(edges.shape)}")
    if edges.size and not np.issubdtype(edges.dtype, np.integer):
        raise TypeError(f"edge_index must hold integers, not {edges.dtype}")
    if not 0 <= n < 2**31:
        raise ValueError(f"the number of nodes must lie in 0..2^31 - 1, is {n}")
    wrong = np.flatnonzero(((edges < 0) | (edges >= n)).any(axis=0)) if edges.size else []
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(f"edge {at} joins {edges[0, at]} and {edges[1, at]}: nodes are numbered 0..{n - 1}")
    source, target = edges.astype(np.int32)
    if weight is None:
        values = np.ones(source.size)
    else:
        values = _numpy(weight).astype(np.float64)
        if values.shape != source.shape:
            raise ValueError(f"{source.size} edges, but weights of shape {list(values.shape)}")
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"the weight of edge {at} is {values[at]}")
    row, column = (target, source) if rows == "target" else (source, target)
    matrix = sp.csr_array(sp.coo_array((values, (row, column)), shape=(n, n)))
    if undirected:
        matrix = sp.csr_array(matrix.maximum(matrix.T))
    if self_loops:
        has_loop = np.zeros(n, dtype=bool)
        has_loop[source[source == target]] = True
        matrix = sp.csr_array(matrix + sp.diags_array((~has_loop).astype(np.float64)))
    matrix.sort_indices()
    return matrix


def normalise(matrix: Any, kind: Kind = "symmetric") -> sp.csr_array:
    """Scale a sparse matrix of weights >= 0 by its sums; float64 CSR of the same shape.

    ``symmetric``: ``D^-1/2 A D^-1/2`` with ``D`` the row sums (square matrices only); ``row``:
    ``D^-1 A``, rows sum to 1; ``column``: ``A D^-1`` with the column sums, columns sum to 1;
    ``none``: A. Where a sum is 0 the factor is 0.

    Raises ``ValueError`` for a negative weight, an unknown kind or a matrix that is not square.
    """
    result = sp.csr_array(matrix, dtype=np.float64, copy=True)
    if result.nnz and not (result.data >= 0).all():
        raise ValueError("weights must be >= 0 and not NaN to be normalised")
    if kind == "none":
        return result
    rows = np.repeat(np.arange(result.shape[0]), np.diff(result.indptr))
    if kind == "symmetric":
        if result.shape[0] != result.shape[1]:
            raise ValueError(f"symmetric normalisation needs a square matrix, not {result.shape}")
        factor = _inverse(np.sqrt(np.asarray(result.sum(axis=1)).ravel()))
        # One product of both factors: entries ij and ji get the same bits.
        result.data *= factor[rows] * factor[result.indices]
    elif kind == "row":
        result.data *= _inverse(np.asarray(result.sum(axis=1)).ravel())[rows]
    elif kind == "column":
        result.data *= _inverse(np.asarray(result.sum(axis=0)).ravel())[result.indices]
    else:
        raise ValueError(f"kind must be symmetric, row, column or none, not {kind!r}")
    return result


def _inverse(sums: Array) -> Array:
    return np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)


class WeakCache:
    """Operators by the identity of an object, forgotten with it."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Any], dict[Any, Any]]] = {}
        self._lock = threading.RLock()

    def of(self, owner: object) -> dict[Any, Any]:
        key = id(owner)
        with self._lock:
            entry = self._kept.get(key)
            if entry is None or entry[0]() is not owner:

                def forget(dead: weakref.ref[Any]) -> None:
                    with self._lock:
                        current = self._kept.get(key)
                        # The number may already belong to a new object.
                        if current is not None and current[0] is dead:
                            del self._kept[key]

                entry = (weakref.ref(owner, forget), {})
                self._kept[key] = entry
            return entry[1]

    def get(self, owner: object, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave for this object and key, made once."""
        found = self.of(owner)
        if key not in found:
            found[key] = make()
        return found[key]

    def __len__(self) -> int:
        return len(self._kept)


_cache = WeakCache()


def _version(tensor: Tensor) -> int | None:
    # Tensors made in inference mode count no changes, so they are not cached.
    return None if tensor.is_inference() else int(tensor._version)


def normalised_adjacency(
    edge_index: Tensor | Array,
    n: int,
    weight: Tensor | Array | None = None,
    kind: Kind = "symmetric",
    *,
    self_loops: bool = True,
    undirected: bool = False,
    dtype: torch.dtype = torch.float32,
    owner: object | None = None,
) -> SparseOperator:
    """The normalised operator of a graph, ``D~^-1/2 (A + I) D~^-1/2`` unless told otherwise.

    ``edge_index`` integer [2, m] (sources, targets); rows of the operator are targets, so sums run
    by destination on a directed graph. ``weight`` [m] >= 0 or None for ones. A loop of weight 1 is
    added only to nodes without one (``self_loops``); ``undirected`` takes ``max(A, A^T)`` first;
    ``kind`` as in :func:`normalise`. A node whose sum is 0 gets the factor 0.

    The operator is kept for as long as ``owner`` lives, one for every normalisation. Without an
    owner it is kept with the tensor ``edge_index``, and made anew when that or ``weight`` was
    changed in place or is another object; numpy arrays count no changes and aren't cached. Who
    gives an owner vouches that its graph and its weights don't change.

    Errors as :func:`adjacency` and :func:`normalise`.
    """
    key: tuple[Any, ...] = (n, kind, self_loops, undirected, dtype, tuple(edge_index.shape))
    kept: dict[Any, Any] | None = None
    if owner is not None:
        kept = _cache.of(owner)
        key = (*key, weight is not None)
    elif isinstance(edge_index, Tensor) and (weight is None or isinstance(weight, Tensor)):
        stamp = _version(edge_index), 0 if weight is None else _version(weight)
        if None not in stamp:
            kept = _cache.of(edge_index)
            key = (*key, None if weight is None else id(weight))
            found = kept.get(key)
            if found is not None and found[1] == stamp and (weight is None or found[2]() is weight):
                return cast(SparseOperator, found[0])
    if owner is not None and kept is not None and key in kept:
        return cast(SparseOperator, kept[key])
    matrix = adjacency(edge_index, n, weight, self_loops=self_loops, undirected=undirected)
    operator = SparseOperator.from_scipy(normalise(matrix, kind), _numpy_dtype(dtype))
    if kept is not None:
        if owner is not None:
            kept[key] = operator
        else:
            kept[key] = (operator, stamp, None if weight is None else weakref.ref(weight))
    return operator


def hop_stack(S: SparseOperator | Tensor, Z: Tensor, hops: int) -> Iterator[Tensor]:
    """Yield ``Z, S Z, S^2 Z, ..., S^hops Z``, one at a time, so that nothing need be stacked.

    ``S`` [n, n], an operator or a torch tensor (sparse or dense); ``Z`` [n, ...]. Gives
    ``hops + 1`` tensors like Z, differentiable in Z.

    Raises ``ValueError`` at once, before the first is asked for, where ``hops < 0`` or shapes
    don't fit.
    """
    if hops < 0:
        raise ValueError(f"hops must be >= 0, is {hops}")
    if S.shape[0] != S.shape[1] or Z.ndim == 0 or Z.shape[0] != S.shape[1]:
        raise ValueError(f"an operator {tuple(S.shape)} can't be applied to {tuple(Z.shape)}")

    def walk() -> Iterator[Tensor]:
        current = Z
        yield current
        for _ in range(hops):
            current = S @ current
            yield current

    return walk()
