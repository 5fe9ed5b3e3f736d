"""Attention over the neighbours of a node, several heads at once, without a tensor of edges x heads x width.

Two steps, each differentiable (also twice) and each a kernel on the CPU whose result has the same bits for any number of
threads; elsewhere torch does both, with tensors of edges x heads x width.

Source: Velickovic et al., "Graph attention networks" (ICLR 2018), equations 3 to 6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

import numba
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .hashing import GOLDEN
from .masks import LANES
from .propagation import balanced_chunks, run_parallel, threads
from .splitmix import mix

Array = NDArray[Any]
_FAST = {"reassoc", "contract"}  # sums within a row may be taken in lanes; the order still hangs on the row alone
_SIXTEEN, _LOW = np.uint64(16), np.uint64(0xFFFF)


class Edges:
    """The pairs that a graph joins, by row: `row` int64 [E] is the node that reads, `column` int64 [E] the one that is read (made
    when they are asked for: sums over rows do without).

    From a sparse matrix [n, m] (its pattern alone counts, entries stored twice count once); kept sorted, and not to be changed.
    """

    def __init__(self, matrix: sp.csr_array, device: str = "cpu") -> None:
        csr = sp.csr_array(matrix, copy=True)
        csr.sum_duplicates()
        self.shape: tuple[int, int] = (int(csr.shape[0]), int(csr.shape[1]))
        self.indptr = np.ascontiguousarray(csr.indptr, np.int64)
        self.indices = np.ascontiguousarray(csr.indices, np.int32)
        self.bounds = balanced_chunks(self.indptr)
        self.device = device

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def row(self) -> Tensor:
        return torch.from_numpy(np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))).to(self.device)

    @cached_property
    def column(self) -> Tensor:
        return torch.from_numpy(self.indices.astype(np.int64)).to(self.device)

    @property
    def T(self) -> Edges:
        """The same pairs by column."""
        return self._turned[0]

    @property
    def order(self) -> Tensor:
        """int64 [E]: which of these edges each edge of the transpose is."""
        return self._turned[1]

    @cached_property
    def _turned(self) -> tuple[Edges, Tensor]:
        numbered = self._matrix(np.arange(1, len(self) + 1)).T.tocsr()
        numbered.sort_indices()
        return Edges(numbered, self.device), torch.from_numpy(numbered.data - 1).to(self.device)

    def _matrix(self, data: Array) -> sp.csr_array:
        return sp.csr_array((data, self.indices, self.indptr), shape=self.shape)

    def matrix(self, values: Tensor | None = None) -> sp.csr_array:
        """float64 CSR [n, m], ones or the values [E] given."""
        data = np.ones(len(self)) if values is None else values.detach().double().cpu().numpy()
        return sp.csr_array(self._matrix(data), copy=True)


# -- weights -----------------------------------------------------------------------------------------------------------
def attention_weights(
    here: Tensor, there: Tensor, edges: Edges, slope: float = 0.2, dropout: float = 0.0, training: bool = True
) -> Tensor:
    """``a_ijh = drop(softmax over j of LeakyReLU(here_ih + there_jh))``: here [n, H], there [m, H] -> [E, H].

    `dropout` in [0, 1) is the share of weights that become 0 while `training`, the others are divided by 1 - dropout; seeded
    from torch's generator, on a CPU with the rate rounded to a multiple of 2^-16. `slope` in [0, 1]. ``ValueError`` for other
    shapes and rates.
    """
    if here.shape != (edges.shape[0], *there.shape[1:]) or there.ndim != 2 or there.shape[0] != edges.shape[1]:
        raise ValueError(f"edges of shape {edges.shape}, here {list(here.shape)}, there {list(there.shape)}")
    if not 0 <= slope <= 1 or not 0 <= dropout < 1:
        raise ValueError(f"slope must be in [0, 1], is {slope}; dropout in [0, 1), is {dropout}")
    rate = dropout if training else 0.0
    if here.device.type != "cpu" or here.dtype not in (torch.float32, torch.float64) or here.dtype != there.dtype:
        return F.dropout(_softmax(here, there, edges, slope), rate)
    seed = int(torch.randint(2**62, ())) if rate else 0
    # laid out before and not within, where what is saved would have lost its graph
    return cast(Tensor, _Weights.apply(here.contiguous(), there.contiguous(), edges, slope, rate, seed))  # type: ignore[no-untyped-call]


def _softmax(here: Tensor, there: Tensor, edges: Edges, slope: float) -> Tensor:
    from torch_geometric.utils import softmax

    return softmax(F.leaky_relu(here[edges.row] + there[edges.column], slope), edges.row, num_nodes=edges.shape[0])


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, here: Tensor, there: Tensor, edges: Edges, slope: float, rate: float, seed: int) -> Tensor:
        alpha = here.new_empty(len(edges), here.shape[1])
        used = torch.empty_like(alpha) if rate else alpha
        kept = np.uint16(min(round(rate * LANES), LANES - 1))
        arrays = (edges.indptr, edges.indices, _array(here), _array(there), alpha.numpy(), used.numpy())
        _rows(_weigh, edges, *arrays, _number(slope, here), kept, _number(1 / (1 - rate), here), np.uint64(seed))
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(here, there, alpha, *([used] if rate else []))
        return used

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        here, there, alpha, *dropped = ctx.saved_tensors
        used, edges = (dropped or [alpha])[0], ctx.edges
        if torch.is_grad_enabled():  # to be differentiated once more
            chance = _softmax(here, there, edges, ctx.slope)
            scale = torch.where(alpha > 0, used / alpha, 0).detach()
            of = torch.autograd.grad(chance * scale, (here, there), gradients[0], create_graph=True)
            return of[0], of[1], None, None, None, None
        G = gradients[0].contiguous()
        of_logit, of_here = torch.empty_like(alpha), torch.empty_like(here)
        arrays = (edges.indptr, edges.indices, _array(here), _array(there), _array(alpha), _array(used), G.numpy())
        _rows(_unweigh, edges, *arrays, _number(ctx.slope, here), of_logit.numpy(), of_here.numpy())
        of_there, turned = torch.empty_like(there), edges.T
        _rows(_collect, turned, turned.indptr, edges.order.numpy(), of_logit.numpy(), of_there.numpy())
        return of_here, of_there, None, None, None, None


# -- sums --------------------------------------------------------------------------------------------------------------
def attend(a: Tensor, R: Tensor, edges: Edges) -> Tensor:
    """``o_ih = sum_j a_ijh R_jh``: a [E, H], R [m, H, d] -> [n, H, d]; differentiable in both, any number of times."""
    if a.shape != (len(edges), R.shape[1]) or R.ndim != 3 or R.shape[0] != edges.shape[1]:
        raise ValueError(f"{len(edges)} edges of shape {edges.shape}, a {list(a.shape)}, R {list(R.shape)}")
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64) or a.dtype != R.dtype:
        return R.new_zeros(edges.shape[0], *R.shape[1:]).index_add(0, edges.row, a[:, :, None] * R[edges.column])
    return cast(Tensor, _Sum.apply(a.contiguous(), R.contiguous(), edges))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, R: Tensor, edges: Edges) -> Tensor:
        ctx.edges = edges
        ctx.save_for_backward(a, R)
        out = R.new_empty(edges.shape[0], *R.shape[1:])
        _rows(_sum, edges, edges.indptr, edges.indices, _array(a), _array(R), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, R = ctx.saved_tensors
        G, edges = gradients[0].contiguous(), ctx.edges
        of_a = _Dots.apply(G, R, edges) if ctx.needs_input_grad[0] else None  # type: ignore[no-untyped-call]
        of_R = attend(a.index_select(0, edges.order), G, edges.T) if ctx.needs_input_grad[1] else None
        return of_a, of_R, None


class _Dots(torch.autograd.Function):
    """``d_ijh = <G_ih, R_jh>``: [n, H, d], [m, H, d] -> [E, H]."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, R: Tensor, edges: Edges) -> Tensor:
        ctx.edges = edges
        ctx.save_for_backward(G, R)
        out = G.new_empty(len(edges), G.shape[1])
        _rows(_dots, edges, edges.indptr, edges.indices, _array(G), _array(R), out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        G, R = ctx.saved_tensors
        d, edges = gradients[0], ctx.edges
        return attend(d, R, edges), attend(d.index_select(0, edges.order), G, edges.T), None


# -- kernels -----------------------------------------------------------------------------------------------------------
def _array(x: Tensor) -> Array:
    return cast(Array, x.detach().numpy())


def _number(value: float, like: Tensor) -> Any:
    return _array(torch.tensor(value, dtype=like.dtype))[()]


def _rows(kernel: tuple[Callable[..., None], Callable[..., None]], edges: Edges, *arrays: Any) -> None:
    """Run a kernel over all rows: at once, or in chunks of equal work on several threads."""
    one, many = kernel
    if threads() == 1 or len(edges) < 1 << 14:
        one(*arrays, 0, edges.shape[0])
    else:
        run_parallel(many, *arrays, edges.bounds)


@numba.njit(cache=True, fastmath=_FAST)
def _weigh_rows(  # pragma: no cover - compiled
    indptr: Array, indices: Array, here: Array, there: Array, alpha: Array, used: Array,
    slope: Any, kept: Any, scale: Any, seed: Any, start: int, stop: int,
) -> None:  # fmt: skip
    heads = here.shape[1]
    blocks = np.uint64((heads + 3) // 4)
    top, total = np.empty(heads, here.dtype), np.empty(heads, here.dtype)
    for i in range(start, stop):
        first, last = indptr[i], indptr[i + 1]
        if first == last:
            continue
        top[:] = -np.inf
        for e in range(first, last):
            j = indices[e]
            for h in range(heads):
                top[h] = max(top[h], there[j, h])
        for h in range(heads):
            z = here[i, h] + top[h]
            top[h] = max(z, slope * z)
            total[h] = 0
        for e in range(first, last):
            j = indices[e]
            for h in range(heads):
                z = here[i, h] + there[j, h]
                w = np.exp(max(z, slope * z) - top[h])
                alpha[e, h] = w
                total[h] += w
        for h in range(heads):
            total[h] = 1 / total[h]
        for e in range(first, last):
            for h in range(heads):
                alpha[e, h] *= total[h]
            if kept > 0:
                bits = np.uint64(0)
                for h in range(heads):
                    if h % 4 == 0:
                        bits = mix(seed + (np.uint64(e) * blocks + np.uint64(h // 4 + 1)) * GOLDEN)
                    used[e, h] = alpha[e, h] * (scale if (bits & _LOW) >= kept else 0)
                    bits >>= _SIXTEEN


@numba.njit(cache=True, parallel=True, fastmath=_FAST)
def _weigh_chunks(  # pragma: no cover - compiled
    indptr: Array, indices: Array, here: Array, there: Array, alpha: Array, used: Array,
    slope: Any, kept: Any, scale: Any, seed: Any, bounds: Array,
) -> None:  # fmt: skip
    for c in numba.prange(bounds.shape[0] - 1):
        _weigh_rows(indptr, indices, here, there, alpha, used, slope, kept, scale, seed, bounds[c], bounds[c + 1])


@numba.njit(cache=True, fastmath=_FAST)
def _unweigh_rows(  # pragma: no cover - compiled
    indptr: Array, indices: Array, here: Array, there: Array, alpha: Array, used: Array, G: Array,
    slope: Any, of_logit: Array, of_here: Array, start: int, stop: int,
) -> None:  # fmt: skip
    heads = here.shape[1]
    shared = np.empty(heads, here.dtype)
    for i in range(start, stop):
        first, last = indptr[i], indptr[i + 1]
        shared[:] = 0
        of_here[i] = 0
        for e in range(first, last):
            for h in range(heads):
                shared[h] += used[e, h] * G[e, h]
        for e in range(first, last):
            j = indices[e]
            for h in range(heads):
                g = used[e, h] * G[e, h] - alpha[e, h] * shared[h]
                g *= 1 if here[i, h] + there[j, h] > 0 else slope
                of_logit[e, h] = g
                of_here[i, h] += g


@numba.njit(cache=True, parallel=True, fastmath=_FAST)
def _unweigh_chunks(  # pragma: no cover - compiled
    indptr: Array, indices: Array, here: Array, there: Array, alpha: Array, used: Array, G: Array,
    slope: Any, of_logit: Array, of_here: Array, bounds: Array,
) -> None:  # fmt: skip
    for c in numba.prange(bounds.shape[0] - 1):
        _unweigh_rows(indptr, indices, here, there, alpha, used, G, slope, of_logit, of_here, bounds[c], bounds[c + 1])


@numba.njit(cache=True)
def _collect_rows(indptr: Array, order: Array, values: Array, out: Array, start: int, stop: int) -> None:  # pragma: no cover
    for j in range(start, stop):
        out[j] = 0
        for e in range(indptr[j], indptr[j + 1]):
            for h in range(out.shape[1]):
                out[j, h] += values[order[e], h]


@numba.njit(cache=True, parallel=True)
def _collect_chunks(indptr: Array, order: Array, values: Array, out: Array, bounds: Array) -> None:  # pragma: no cover
    for c in numba.prange(bounds.shape[0] - 1):
        _collect_rows(indptr, order, values, out, bounds[c], bounds[c + 1])


@numba.njit(cache=True, fastmath=_FAST)
def _sum_rows(  # pragma: no cover - compiled
    indptr: Array, indices: Array, a: Array, R: Array, out: Array, start: int, stop: int
) -> None:
    heads, width = R.shape[1], R.shape[2]
    for i in range(start, stop):
        out[i] = 0
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            for h in range(heads):
                w = a[e, h]
                for d in range(width):
                    out[i, h, d] += w * R[j, h, d]


@numba.njit(cache=True, parallel=True, fastmath=_FAST)
def _sum_chunks(indptr: Array, indices: Array, a: Array, R: Array, out: Array, bounds: Array) -> None:  # pragma: no cover
    for c in numba.prange(bounds.shape[0] - 1):
        _sum_rows(indptr, indices, a, R, out, bounds[c], bounds[c + 1])


@numba.njit(cache=True, fastmath=_FAST)
def _dots_rows(  # pragma: no cover - compiled
    indptr: Array, indices: Array, G: Array, R: Array, out: Array, start: int, stop: int
) -> None:
    heads, width = R.shape[1], R.shape[2]
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            j = indices[e]
            for h in range(heads):
                total = out.dtype.type(0)
                for d in range(width):
                    total += G[i, h, d] * R[j, h, d]
                out[e, h] = total


@numba.njit(cache=True, parallel=True, fastmath=_FAST)
def _dots_chunks(indptr: Array, indices: Array, G: Array, R: Array, out: Array, bounds: Array) -> None:  # pragma: no cover
    for c in numba.prange(bounds.shape[0] - 1):
        _dots_rows(indptr, indices, G, R, out, bounds[c], bounds[c + 1])


_weigh, _unweigh = (_weigh_rows, _weigh_chunks), (_unweigh_rows, _unweigh_chunks)
_collect, _sum, _dots = (_collect_rows, _collect_chunks), (_sum_rows, _sum_chunks), (_dots_rows, _dots_chunks)
