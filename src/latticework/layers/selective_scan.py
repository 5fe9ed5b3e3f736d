"""The selective scan: a diagonal linear recurrence whose step, input and output maps depend on the input.

For every channel c and state k, from ``h_0 = 0``:

    h_t[c, k] = exp(Delta_t[c] A[c, k]) h_{t-1}[c, k] + Delta_t[c] B_t[k] u_t[c]        y_t[c] = sum_k C_t[k] h_t[c, k] + D[c] u_t[c]

On a CPU compiled kernels walk the time inside and run over sequences and blocks of channels in parallel, forward and (written
by hand) backward; between them only one state in `EVERY` steps is kept, and the others are computed again, so memory is that of
a few more inputs, O(b l e), and never O(b l e N). Elsewhere, or by ``backend="torch"``, it is cut into chunks that torch's
operators do at once by segment sums. Both take a mask (such a step leaves the state as it is) and either direction of time.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752), algorithm 2 and
section 3.5; its bidirectional block is that of Behrouz and Hashemi, "Graph Mamba" (KDD 2024), section 4.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .first_order import first_order
from .propagation import run_parallel

Array = NDArray[Any]
Backend = Literal["auto", "numba", "torch"]

EVERY = 32  # steps from one kept state to the next
BLOCK = 64  # channels of one unit of parallel work
GROUPS = 16  # units that a batch of sequences is cut into; fixed, so that sums do not depend on the number of threads
_FLOATS, _HALVES = (torch.float32, torch.float64), (torch.float16, torch.bfloat16)


# -- the exponential function -----------------------------------------------------------------------------------------------
# numba's exp is a call for each number, which keeps the loops from using vector registers. This one is plain arithmetic:
# x = n ln 2 + r with |r| <= ln 2 / 2 and a polynomial in r; within 2 units in the last place for -87 <= x <= 88 (float32) or
# -708 <= x <= 709 (float64); 0 below, held at the upper end above; NaN stays NaN.
@intrinsic
def _bits(typing: Any, x: Any) -> Any:
    """The bits of a float as an integer of the same size, or back."""
    pairs = {types.float32: types.int32, types.float64: types.int64, types.int32: types.float32, types.int64: types.float64}
    target = pairs[x]
    words = {
        types.int32: ir.IntType(32),
        types.int64: ir.IntType(64),
        types.float32: ir.FloatType(),
        types.float64: ir.DoubleType(),
    }

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], words[target])

    return target(x), generate


# the magic number's own last bits count whole numbers, so adding it rounds
_M32, _M64 = np.float32(1.5 * 2**23), np.float64(1.5 * 2**52)
_LOG2E32, _LOG2E64 = np.float32(1 / math.log(2)), np.float64(1 / math.log(2))
_HI32, _LO32 = np.float32(0.693359375), np.float32(-2.12194440e-4)
_HI64, _LO64 = np.float64(6.93145751953125e-1), np.float64(1.42860682030941723212e-6)
_LEAST32, _MOST32, _LEAST64, _MOST64 = np.float32(-87), np.float32(88), np.float64(-708), np.float64(709)
_C32 = tuple(np.float32(1 / math.factorial(k)) for k in range(8))
_C64 = tuple(np.float64(1 / math.factorial(k)) for k in range(14))
_EXPONENT32, _EXPONENT64 = np.int32(127), np.int64(1023)
_SHIFT32, _SHIFT64 = np.int32(23), np.int64(52)


def fast_exp(x: Any) -> Any:
    """``exp(x)`` inside compiled kernels (see above)."""
    return np.exp(x)


@overload(fast_exp, inline="never")
def _fast_exp(x: Any) -> Any:  # pragma: no cover - compiled
    if x == types.float32:

        def single(x: Any) -> Any:
            none = x < _LEAST32
            x = _LEAST32 if x < _LEAST32 else x
            x = _MOST32 if x > _MOST32 else x
            shifted = x * _LOG2E32 + _M32
            n = shifted - _M32
            r = (x - n * _HI32) - n * _LO32
            p = _C32[7]
            p = p * r + _C32[6]
            p = p * r + _C32[5]
            p = p * r + _C32[4]
            p = p * r + _C32[3]
            p = p * r + _C32[2]
            p = p * r + _C32[1]
            p = p * r + _C32[0]
            found = p * _bits(np.int32((_bits(shifted) + _EXPONENT32) << _SHIFT32))
            return np.float32(0) if none else found

        return single

    def double(x: Any) -> Any:
        none = x < _LEAST64
        x = _LEAST64 if x < _LEAST64 else x
        x = _MOST64 if x > _MOST64 else x
        shifted = x * _LOG2E64 + _M64
        n = shifted - _M64
        r = (x - n * _HI64) - n * _LO64
        p = _C64[13]
        p = p * r + _C64[12]
        p = p * r + _C64[11]
        p = p * r + _C64[10]
        p = p * r + _C64[9]
        p = p * r + _C64[8]
        p = p * r + _C64[7]
        p = p * r + _C64[6]
        p = p * r + _C64[5]
        p = p * r + _C64[4]
        p = p * r + _C64[3]
        p = p * r + _C64[2]
        p = p * r + _C64[1]
        p = p * r + _C64[0]
        found = p * _bits(np.int64((_bits(shifted) + _EXPONENT64) << _SHIFT64))
        return 0.0 if none else found

    return double


# -- kernels ----------------------------------------------------------------------------------------------------------------
@numba.njit(cache=True, fastmath={"contract"})
def _step(  # pragma: no cover - compiled
    h: Array, A: Array, delta: Array, fed: Array, B: Array, C: Array, y: Array
) -> None:
    """One step of a block of channels: h [N, w] in place, ``y`` [w] is added to."""
    for k in range(h.shape[0]):
        b, c = B[k], C[k]
        for j in range(h.shape[1]):
            h[k, j] = fast_exp(delta[j] * A[k, j]) * h[k, j] + fed[j] * b
            y[j] += c * h[k, j]


@numba.njit(cache=True)
def _forward_unit(  # pragma: no cover - compiled
    u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, reverse: bool, y: Array, kept: Array,
    low: int, width: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start .. stop of a block of channels."""
    steps, states = u.shape[1], A.shape[0]
    own, h = np.empty((states, width), u.dtype), np.empty((states, width), u.dtype)
    fed, step, out = np.empty(width, u.dtype), np.empty(width, u.dtype), np.empty(width, u.dtype)
    for k in range(states):
        for j in range(width):
            own[k, j] = A[k, low + j]
    for row in range(start, stop):
        for k in range(states):
            for j in range(width):
                h[k, j] = 0
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            if kept.shape[0] and s and s % EVERY == 0:
                for k in range(states):
                    for j in range(width):
                        kept[row, s // EVERY - 1, k, low + j] = h[k, j]
            for j in range(width):
                step[j] = delta[row, t, low + j]
                fed[j] = step[j] * u[row, t, low + j]
                out[j] = D[low + j] * u[row, t, low + j]
            _step(h, own, step, fed, B[row, t], C[row, t], out)
            for j in range(width):
                y[row, t, low + j] = out[j]


@numba.njit(cache=True, parallel=True)
def _forward(  # pragma: no cover - compiled
    u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, reverse: bool, groups: int, y: Array, kept: Array
) -> None:
    """u, delta, y [b, l, e]; A [N, e]; B, C [b, l, N]; kept [b, ceil(l / EVERY) - 1, N, e] or empty: states between chunks."""
    blocks = (u.shape[2] + BLOCK - 1) // BLOCK
    for unit in numba.prange(groups * blocks):
        low, group = (unit % blocks) * BLOCK, unit // blocks
        start, stop = group * u.shape[0] // groups, (group + 1) * u.shape[0] // groups
        _forward_unit(u, delta, A, B, C, D, reverse, y, kept, low, min(BLOCK, u.shape[2] - low), start, stop)


@numba.njit(cache=True, fastmath={"contract"})
def _replay(  # pragma: no cover - compiled
    h: Array, A: Array, delta: Array, fed: Array, B: Array, before: Array, decay: Array
) -> None:
    """One step again, whose state before it and whose decays [N, w] are kept."""
    for k in range(h.shape[0]):
        b = B[k]
        for j in range(h.shape[1]):
            a = fast_exp(delta[j] * A[k, j])
            before[k, j] = h[k, j]
            decay[k, j] = a
            h[k, j] = a * h[k, j] + fed[j] * b


@numba.njit(cache=True, fastmath={"contract", "reassoc"})
def _step_back(  # pragma: no cover - compiled
    dh: Array, A: Array, delta: Array, fed: Array, B: Array, C: Array, before: Array, decay: Array, dy: Array,
    dA: Array, dB: Array, dC: Array, dfed: Array, ddelta: Array,
) -> None:  # fmt: skip
    """One step backwards: dh [N, w] is the gradient by the state, from after the step to before it; others are added to."""
    for k in range(dh.shape[0]):
        b, c = B[k], C[k]
        by_b, by_c = dB[k], dC[k]
        for j in range(dh.shape[1]):
            g = dh[k, j] + c * dy[j]
            carried = decay[k, j] * before[k, j]
            by_c += dy[j] * (carried + fed[j] * b)
            by_b += g * fed[j]
            dfed[j] += g * b
            q = g * carried
            ddelta[j] += q * A[k, j]
            dA[k, j] += q * delta[j]
            dh[k, j] = g * decay[k, j]
        dB[k], dC[k] = by_b, by_c


@numba.njit(cache=True)
def _backward_unit(  # pragma: no cover - compiled
    u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, reverse: bool, kept: Array, dy: Array,
    du: Array, ddelta: Array, dA: Array, dB: Array, dC: Array, dD: Array, low: int, width: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start .. stop of a block of channels: dA [N, e], dD [e] float64 of this group, dB, dC [b, l, N] of this block."""
    steps, states = u.shape[1], A.shape[0]
    most = min(EVERY, steps)
    before, decay = np.empty((most, states, width), u.dtype), np.empty((most, states, width), u.dtype)
    step, fed = np.empty((most, width), u.dtype), np.empty((most, width), u.dtype)
    own, h = np.empty((states, width), u.dtype), np.empty((states, width), u.dtype)
    dh, part = np.empty((states, width), u.dtype), np.empty((states, width), u.dtype)
    seen, by_fed, by_step = np.empty(width, u.dtype), np.empty(width, u.dtype), np.empty(width, u.dtype)
    for k in range(states):
        for j in range(width):
            own[k, j] = A[k, low + j]
    for row in range(start, stop):
        for k in range(states):
            for j in range(width):
                dh[k, j] = 0
        for chunk in range((steps + EVERY - 1) // EVERY - 1, -1, -1):
            first = chunk * EVERY
            size = min(EVERY, steps - first)
            for k in range(states):
                for j in range(width):
                    h[k, j] = kept[row, chunk - 1, k, low + j] if chunk else 0
                    part[k, j] = 0
            for i in range(size):
                t = steps - 1 - (first + i) if reverse else first + i
                for j in range(width):
                    step[i, j] = delta[row, t, low + j]
                    fed[i, j] = step[i, j] * u[row, t, low + j]
                _replay(h, own, step[i], fed[i], B[row, t], before[i], decay[i])
            for i in range(size - 1, -1, -1):
                t = steps - 1 - (first + i) if reverse else first + i
                for j in range(width):
                    seen[j] = dy[row, t, low + j]
                    by_fed[j] = 0
                    by_step[j] = 0
                _step_back(
                    dh, own, step[i], fed[i], B[row, t], C[row, t], before[i], decay[i], seen,
                    part, dB[row, t], dC[row, t], by_fed, by_step,
                )  # fmt: skip
                for j in range(width):
                    value = u[row, t, low + j]
                    du[row, t, low + j] = by_fed[j] * step[i, j] + D[low + j] * seen[j]
                    ddelta[row, t, low + j] = by_step[j] + by_fed[j] * value
                    dD[low + j] += seen[j] * value
            for k in range(states):
                for j in range(width):
                    dA[k, low + j] += part[k, j]


@numba.njit(cache=True, parallel=True)
def _backward(  # pragma: no cover - compiled
    u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, reverse: bool, groups: int, kept: Array, dy: Array,
    du: Array, ddelta: Array, dA: Array, dB: Array, dC: Array, dD: Array,
) -> None:  # fmt: skip
    """Gradients: du, ddelta [b, l, e]; dA [groups, N, e] and dD [groups, e] float64; dB, dC [blocks, b, l, N], zeros at first."""
    blocks = (u.shape[2] + BLOCK - 1) // BLOCK
    for unit in numba.prange(groups * blocks):
        block, group = unit % blocks, unit // blocks
        low = block * BLOCK
        start, stop = group * u.shape[0] // groups, (group + 1) * u.shape[0] // groups
        _backward_unit(
            u, delta, A, B, C, D, reverse, kept, dy, du, ddelta, dA[group], dB[block], dC[block], dD[group],
            low, min(BLOCK, u.shape[2] - low), start, stop,
        )  # fmt: skip


class _Scan(torch.autograd.Function):
    """The kernels as a function of u, Delta, A, B, C, D; once differentiable."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
        given = [x.detach().contiguous() for x in (u, delta, A.T, B, C, D)]
        arrays = [x.numpy() for x in given]
        b, steps, e = u.shape
        y = torch.empty_like(given[0])
        wanted = any(ctx.needs_input_grad)
        kept = torch.empty((b, max(-(-steps // EVERY) - 1, 0), A.shape[1], e) if wanted else (0, 0, 0, 0), dtype=u.dtype)
        if y.numel():
            run_parallel(_forward, *arrays, reverse, min(b, GROUPS), y.numpy(), kept.numpy())
        ctx.save_for_backward(*given, kept)
        ctx.reverse = reverse
        return y

    @staticmethod
    @first_order("use selective_scan(..., backend='torch')")
    def backward(ctx: Any, dy: Tensor) -> Any:
        *given, kept = ctx.saved_tensors
        u, _, A, B, _, _ = given
        b, _, e = u.shape
        groups, blocks = min(b, GROUPS), -(-e // BLOCK)
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        dA, dD = u.new_zeros((groups, *A.shape), dtype=torch.float64), u.new_zeros((groups, e), dtype=torch.float64)
        dB, dC = u.new_zeros((blocks, *B.shape)), u.new_zeros((blocks, *B.shape))
        if u.numel():
            run_parallel(
                _backward, *(x.numpy() for x in given), ctx.reverse, groups, kept.numpy(), dy.contiguous().numpy(),
                *(x.numpy() for x in (du, ddelta, dA, dB, dC, dD)),
            )  # fmt: skip
        return du, ddelta, dA.sum(0).T.to(u.dtype), dB.sum(0), dC.sum(0), dD.sum(0).to(u.dtype), None


# -- torch's operators ------------------------------------------------------------------------------------------------------
def _chunk(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk of q steps at once, from the state h [b, e, N]: its y [b, q, e] and the state after it.

    ``y_t = sum_{s <= t} C_t . exp(A (S_t - S_s)) B_s Delta_s u_s + C_t . exp(A S_t) h``, S the running sum of Delta: every
    exponent is a difference of sums over steps s+1 .. t, so for A <= 0 nothing overflows and nothing is divided by.
    """
    q = u.shape[1]
    # sums over s+1 .. t taken as such: a difference of long sums would lose digits
    apart = delta[:, None].expand(-1, q, -1, -1).masked_fill(~_below(q, -1, u.device)[None, :, :, None].transpose(1, 2), 0)
    segment = apart.transpose(1, 2).cumsum(1)  # [b, t, s, e]
    reach = segment[..., None] * A
    reach = reach.masked_fill(~_below(q, 0, u.device)[None, :, :, None, None], -math.inf).exp()
    fed = (delta * u)[..., None] * B[:, :, None]  # [b, s, e, N]
    inside = torch.einsum("btsek,bsek->btek", reach, fed)
    states = inside + (delta.cumsum(1)[..., None] * A).exp() * h[:, None]
    return torch.einsum("btek,btk->bte", states, C), states[:, -1]


def _below(q: int, diagonal: int, device: torch.device) -> Tensor:
    return torch.ones(q, q, dtype=torch.bool, device=device).tril(diagonal)


def _chunked(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool, chunk: int) -> Tensor:
    if reverse:
        u, delta, B, C = (x.flip(1) for x in (u, delta, B, C))
    if not u.shape[1]:
        return D * u
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    parts = []
    for piece in zip(*(x.split(chunk, 1) for x in (u, delta, B, C)), strict=True):
        u_c, delta_c, B_c, C_c = piece
        if torch.is_grad_enabled():  # the chunk's [q, q] terms are computed again when its gradient is asked for
            y, h = checkpoint(_chunk, u_c, delta_c, A, B_c, C_c, h, use_reentrant=False)
        else:
            y, h = _chunk(u_c, delta_c, A, B_c, C_c, h)
        parts.append(y)
    found = torch.cat(parts, 1) + D * u
    return found.flip(1) if reverse else found


# -- the function -----------------------------------------------------------------------------------------------------------
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
    mask: Tensor | None = None, reverse: bool = False, backend: Backend = "auto", chunk: int = 32,
) -> Tensor:  # fmt: skip
    """The selective scan of b sequences of l steps with e channels of N states each (formula at the top of the module).

    ``u``, ``delta`` [b, l, e] (delta >= 0 after its softplus, A < 0 in Mamba; any sign is computed); ``A`` [e, N]; ``B``, ``C``
    [b, l, N]; ``D`` [e], left out: 0 -> y [b, l, e]. `mask` bool [b, l]: a step that is False leaves the state as it is and
    gives 0. ``reverse=True`` runs from the last step to the first. float32 or float64, the same for all; where any is float16 or
    bfloat16 (as under autocast) all such are computed in float32. ``y`` has the dtype of u.

    `backend`: ``numba``, compiled kernels with a hand-written gradient (CPU only; not differentiable twice), ``torch``, chunks of
    `chunk` steps (twice differentiable; memory b chunk^2 e N for a moment), ``auto`` the kernels on a CPU and torch elsewhere.
    ``l = 0`` gives an empty y. A change of steps after t leaves y up to t as it is, bit by bit.

    ``ValueError`` for shapes that do not fit, an unknown backend or numba off the CPU; ``TypeError`` for another dtype.
    """
    if backend not in ("auto", "numba", "torch"):
        raise ValueError(f"backend is auto, numba or torch, not {backend!r}")
    D = u.new_zeros(u.shape[-1]) if D is None else D
    _fits(u, delta, A, B, C, D, mask, chunk)
    given = u.dtype
    u, delta, A, B, C, D = (x.float() if x.dtype in _HALVES else x for x in (u, delta, A, B, C, D))
    kinds = {x.dtype for x in (u, delta, A, B, C, D)}
    if len(kinds) > 1 or u.dtype not in _FLOATS:
        raise TypeError(f"all of one dtype, float32 or float64, not {', '.join(sorted(str(k) for k in kinds))}")
    if mask is not None:
        u, delta, B, C = _where(mask, u, delta, B, C)
    if backend == "numba" and u.device.type != "cpu":
        raise ValueError(f"the compiled scan runs on a CPU, the sequences are on {u.device}; use backend='auto'")
    if backend == "numba" or (backend == "auto" and u.device.type == "cpu"):
        y: Tensor = _Scan.apply(u, delta, A, B, C, D, reverse)
    else:
        y = _chunked(u, delta, A, B, C, D, reverse, chunk)
    if mask is not None:
        y = y.masked_fill(~mask[..., None], 0)
    return y.to(given)


def _where(mask: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """Rows [b, l, ...] with 0 at masked steps, whatever padding holds (0 times NaN would be NaN)."""
    return tuple(x.masked_fill(~mask[..., None], 0) for x in rows)


def _fits(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, mask: Tensor | None, chunk: int) -> None:
    if u.ndim != 3 or delta.shape != u.shape:
        raise ValueError(f"u and delta are [b, l, e] alike, not {list(u.shape)} and {list(delta.shape)}")
    b, steps, e = u.shape
    if A.ndim != 2 or A.shape[0] != e or A.shape[1] < 1:
        raise ValueError(f"A is [{e}, N], not {list(A.shape)}")
    if B.shape != (b, steps, A.shape[1]) or C.shape != B.shape:
        raise ValueError(f"B and C are {[b, steps, A.shape[1]]}, not {list(B.shape)} and {list(C.shape)}")
    if D.shape != (e,):
        raise ValueError(f"D is [{e}], not {list(D.shape)}")
    if mask is not None and (mask.shape != (b, steps) or mask.dtype != torch.bool):
        raise ValueError(f"the mask is bool [{b}, {steps}], not {mask.dtype} {list(mask.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk must be 1 or more, is {chunk}")


def scan_by_steps(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, *,
    mask: Tensor | None = None, reverse: bool = False,
) -> Tensor:  # fmt: skip
    """`selective_scan` as its definition reads: a Python loop over the steps. Slow: what the others are compared with."""
    if mask is not None:
        u, delta, B, C = _where(mask, u, delta, B, C)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    found: list[Tensor] = [u] * u.shape[1]  # each step puts its own in its place
    for t in reversed(range(u.shape[1])) if reverse else range(u.shape[1]):
        step = delta[:, t]
        h = (step[..., None] * A).exp() * h + (step * u[:, t])[..., None] * B[:, t, None]
        y = (h * C[:, t, None]).sum(-1) + (0 if D is None else D * u[:, t])
        found[t] = y if mask is None else y * mask[:, t, None]
    return torch.stack(found, 1) if found else torch.zeros_like(u)


# -- the block --------------------------------------------------------------------------------------------------------------
class SelectiveSSM(nn.Module):
    """One direction of a Mamba block: a short causal convolution, the maps that choose, the scan, a gate. [b, l, d] -> [b, l, e].

    ``(v, z) = x W``, ``v = SiLU(conv(v))`` (each channel by itself, over `conv` steps back), ``(q, B, C) = v W_x``,
    ``Delta = softplus(q W_dt + b_dt)``, ``A = -exp(A_log)``, ``y = scan(v) * SiLU(z)``. At first ``A_log = log(1 .. N)``, D = 1 and
    b_dt the inverse softplus of a log-uniform draw from [0.001, 0.1]. (The paper's map into the block and the one into each
    direction have nothing between them: they are one map here.)

    `reverse`: time runs backwards, in the convolution too. Masked steps neither feed nor are fed.
    """

    def __init__(
        self, width: int, inner: int, state: int = 16, conv: int = 4, rank: int | None = None, reverse: bool = False
    ) -> None:
        super().__init__()
        rank = max(math.ceil(width / 16), 1) if rank is None else rank
        if min(width, inner, state, conv, rank) < 1:
            raise ValueError(
                f"all sizes must be 1 or more: width {width}, inner {inner}, state {state}, conv {conv}, rank {rank}"
            )
        self.inner, self.state, self.rank, self.reverse = inner, state, rank, reverse
        self.enter = nn.Linear(width, 2 * inner, bias=False)
        bound = 1 / math.sqrt(conv)
        self.conv = nn.Parameter(torch.empty(conv, inner).uniform_(-bound, bound))  # row i: weight of the step i back
        self.conv_bias = nn.Parameter(torch.empty(inner).uniform_(-bound, bound))
        self.choose = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        first = torch.exp(torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1)))
        with torch.no_grad():
            self.step.weight.uniform_(-(rank**-0.5), rank**-0.5)
            self.step.bias.copy_(first + torch.log(-torch.expm1(-first)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, state + 1, dtype=torch.float32)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def convolve(self, v: Tensor) -> Tensor:
        """``sum_i w_i v_{t-i} + bias`` [b, l, e]; steps before the first (`reverse`: after the last) count as 0."""
        steps = v.shape[1]
        out = v * self.conv[0] + self.conv_bias
        for i in range(1, min(len(self.conv), steps)):
            moved = v[:, i:] if self.reverse else v[:, : steps - i]
            out = out + F.pad(moved * self.conv[i], (0, 0, 0, i) if self.reverse else (0, 0, i, 0))
        return out

    def forward(self, x: Tensor, mask: Tensor | None = None, backend: Backend = "auto") -> Tensor:
        v, z = self.enter(x).chunk(2, -1)
        if mask is not None:
            v = v.masked_fill(~mask[..., None], 0)
        v = F.silu(self.convolve(v))
        q, B, C = self.choose(v).split([self.rank, self.state, self.state], -1)
        delta = F.softplus(self.step(q))
        y = selective_scan(v, delta, -self.A_log.exp(), B, C, self.D, mask=mask, reverse=self.reverse, backend=backend)
        return y * F.silu(z)


class BidirectionalMamba(nn.Module):
    """A Mamba block that reads a sequence both ways: ``x + W_out (y_f * SiLU(z_f) + y_b * SiLU(z_b))`` of ``LayerNorm(x)``.

    Each direction has weights of its own (`tie` makes them equal); ``bidirectional=False`` keeps the forward one. ``x`` [b, l, d],
    `mask` bool [b, l] (False: padding, at either end or between; such rows come back unchanged and touch no other) -> [b, l, d].
    `inner` is e, left out 2d. Parameters: O(d e + e N) for each direction. ``ValueError`` for shapes that do not fit or a sequence
    longer than `longest` (0: no limit).
    """

    def __init__(
        self, width: int, state: int = 16, inner: int = 0, conv: int = 4, rank: int | None = None,
        bidirectional: bool = True, dropout: float = 0.0, longest: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= dropout < 1 or longest < 0:
            raise ValueError(f"dropout lies in [0, 1) and longest is 0 or more: {dropout} and {longest} were given")
        inner = inner or 2 * width
        self.width, self.longest = width, longest
        self.norm = nn.LayerNorm(width)
        self.onward = SelectiveSSM(width, inner, state, conv, rank)
        self.backward_ = SelectiveSSM(width, inner, state, conv, rank, reverse=True) if bidirectional else None
        self.leave = nn.Linear(inner, width, bias=False)
        self.dropout = dropout

    def tie(self) -> BidirectionalMamba:
        """Give the backward direction the forward one's weights (they are shared from now on); itself."""
        if self.backward_ is not None:
            for name in dict(self.onward.named_children()):
                setattr(self.backward_, name, getattr(self.onward, name))
            for name, _ in list(self.onward.named_parameters(recurse=False)):
                setattr(self.backward_, name, getattr(self.onward, name))
        return self

    def forward(self, x: Tensor, mask: Tensor | None = None, backend: Backend = "auto") -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.width:
            raise ValueError(f"x is [b, l, {self.width}], not {list(x.shape)}")
        if self.longest and x.shape[1] > self.longest:
            raise ValueError(
                f"a sequence of {x.shape[1]} steps is longer than the {self.longest} allowed; cut it or raise the limit"
            )
        h = self.norm(x)
        y = self.onward(h, mask, backend)
        if self.backward_ is not None:
            y = y + self.backward_(h, mask, backend)
        out = F.dropout(self.leave(y), self.dropout, self.training)
        return x + (out if mask is None else out.masked_fill(~mask[..., None], 0))
