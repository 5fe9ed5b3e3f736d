"""Frames: for each input a small set of group elements that moves with the input, to average over instead of the group.

A frame of a group G is a map F from inputs to finite subsets of G with ``F(g X) = g F(X)``. Then, for ANY map phi,
``<phi>(X) = 1/|F(X)| sum_{g in F(X)} phi(g^-1 X)`` is invariant, and ``1/|F(X)| sum g Phi(g^-1 X)`` equivariant.

Frames here: of the motions ``g x = s R x + t`` of d dimensions and their subgroups (E(d), SE(d), O(d), SO(d), translations,
scale, products), from the mean and the eigenvectors of the scatter, with weights; of S_n on graphs, from spectral keys of
nodes; products of both. Frames carry no gradient, and eigenvectors are computed in float64.

    group = SE3()
    frame = group.frame(X)                       # X [B, n, 3], or any leading dimensions; weights [B, n]
    Z = frame.into(X, "points")                  # [B, F, n, 3]: X seen from each element
    frame.back(Z, "points").mean(1)              # X again

Where it ends: a repeated eigenvalue that is not 0 (a square, a sphere) makes the true frame infinite; the finite one then
follows the numerical eigenvectors and the symmetry is lost. `Frame.gap` says how near that is. Points on a line, on a plane
or all in one place are no such case: their coordinates along an eigenvalue of 0 are 0 in every choice of the eigenvectors, so
maps of the coordinates alone stay exact, and what an equivariant map says along those directions averages to 0.

Source: Puny et al., "Frame Averaging for Invariant and Equivariant Network Design" (ICLR 2022, arXiv 2110.03336), sections 2
and 3; the weighted frame is that of Atzmon et al. (ICLR 2024).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from .hashing import uniform

MOST_DIMENSIONS = 8  # 2^d elements
GAP = 1e-6  # below it a frame is as good as degenerate
LARGEST = 1e150  # of a coordinate
Linear = Literal["none", "SO", "O"]

# what may stand in a tensor: how an element acts on it. Plural: one a point or node, [*, n, ...]; singular: one a cloud.
KINDS = (
    "invariant", "point", "points", "vector", "vectors", "direction", "directions", "nodes", "graph",
)  # fmt: skip


class Element(Protocol):
    """Of a group: what it makes of a tensor."""

    def act(self, X: Tensor, kind: str) -> Tensor: ...


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of tensor; there are {', '.join(KINDS)}")


def _turn(X: Tensor, R: Tensor) -> Tensor:
    """X [*, ..., d] times R [*, d, e] from the right, whatever stands between."""
    lead = R.ndim - 2
    if X.ndim == lead + 2:
        return X @ R
    if X.ndim == lead + 1:
        return (X.unsqueeze(-2) @ R).squeeze(-2)
    return (X.flatten(lead, -2) @ R).unflatten(lead, X.shape[lead:-1])


def _beside(a: Tensor, X: Tensor, lead: int) -> Tensor:
    """a [*lead, ...] with ones after the leading dimensions, so that it stands beside X."""
    rest = a.shape[lead:]
    return a.reshape(*a.shape[:lead], *([1] * (X.ndim - lead - len(rest))), *rest)


@dataclass(frozen=True)
class Frame:
    """F motions ``x -> scale * R x + t`` for each cloud; those of a cloud share t and scale.

    R [*, F, d, d] (columns are eigenvectors), t [*, d], scale [*], gap [*]: ``min (l_{i+1} - l_i) / l_max`` of the scatter's
    eigenvalues, 0 where all points coincide, 1 where no eigenvectors are needed.
    """

    R: Tensor
    t: Tensor
    scale: Tensor
    gap: Tensor

    @property
    def size(self) -> int:
        return int(self.R.shape[-3])

    @property
    def elements(self) -> int:
        """All of them, over all clouds."""
        return self.gap.numel() * self.size

    @property
    def owners(self) -> Tensor:
        """int64 [elements]: whose cloud's each row of a `batch` is."""
        return torch.arange(self.gap.numel(), device=self.gap.device).repeat_interleave(self.size)

    def into(self, X: Tensor, kind: str) -> Tensor:
        """``g^-1 X`` for every element: points ``(x - t) R / scale``, vectors ``v R / scale``, directions ``v R``; [*, F, ...]."""
        _check_kind(kind)
        lead, R = self.gap.ndim, self.R.to(X.dtype)
        if kind in ("invariant", "nodes", "graph"):
            return X.unsqueeze(lead).expand(*X.shape[:lead], self.size, *X.shape[lead:])
        if kind in ("point", "points"):
            X = X - _beside(self.t.to(X.dtype), X, lead)
        if not kind.startswith("direction"):
            X = X / _beside(self.scale.to(X.dtype), X, lead)
        return _turn(X.unsqueeze(lead).expand(*X.shape[:lead], self.size, *X.shape[lead:]), R)

    def back(self, Z: Tensor, kind: str) -> Tensor:
        """``g Z`` for every element, [*, F, ...] -> [*, F, ...]."""
        _check_kind(kind)
        if kind in ("invariant", "nodes", "graph"):
            return Z
        lead = self.gap.ndim
        X = _turn(Z, self.R.to(Z.dtype).mT)
        if not kind.startswith("direction"):
            X = X * _beside(self.scale.to(Z.dtype), X, lead)
        if kind in ("point", "points"):
            X = X + _beside(self.t.to(Z.dtype).unsqueeze(lead), X, lead + 1)
        return X

    def average(self, Z: Tensor, kind: str) -> Tensor:
        """The mean of ``g Z`` over the elements: [*, F, ...] -> [*, ...]."""
        return self.back(Z, kind).mean(self.gap.ndim)

    def act(self, X: Tensor, kind: str) -> Tensor:
        """``g X`` for the one element of a cloud (`random`, `sample(1)`): [*, ...] -> [*, ...]."""
        if self.size != 1:
            raise ValueError(f"{self.size} elements a cloud; only one can act")
        lead = self.gap.ndim
        return self.back(X.unsqueeze(lead), kind).squeeze(lead)

    def sample(self, k: int, generator: torch.Generator | None = None, own: bool = False) -> Frame:
        """k of the elements, drawn for each cloud without replacement (all of them where there are no more).

        With `own` the draw hangs on nothing but the number of elements: a cloud's is the same in every batch. Else the generator draws.
        """
        if k >= self.size:
            return self
        if own:
            draws = torch.from_numpy(uniform(np.arange(self.size))).expand(*self.gap.shape, self.size)
        else:
            draws = torch.rand(*self.gap.shape, self.size, generator=generator)
        chosen = draws.argsort(-1)[..., :k].to(self.R.device)
        index = chosen[..., None, None].expand(*chosen.shape, *self.R.shape[-2:])
        return replace(self, R=self.R.gather(self.gap.ndim, index))

    # -- as one batch -----------------------------------------------------------------------------------------------------
    def batch(self, X: Tensor, kind: str) -> Tensor:
        """`into` with all elements in one batch: [B, ...] -> [B F, ...]."""
        return self.into(X, kind).flatten(0, 1)

    def unbatch(self, Z: Tensor, kind: str) -> Tensor:
        """`average` of a batch: [B F, ...] -> [B, ...]."""
        return self.average(Z.unflatten(0, (len(self.gap), self.size)), kind)


# -- motions -------------------------------------------------------------------------------------------------------------------
def moments(X: Tensor, weights: Tensor | None = None, centred: bool = True) -> tuple[Tensor, Tensor]:
    """Mean t [*, d] and scatter C [*, d, d] of points X [*, n, d], in float64 and without gradient.

    ``t = sum w x / sum w``, ``C = sum w (x - t)(x - t)^T``; with `centred` false, t = 0. Weights [*, n] are at least 0; where
    all of a cloud's are 0, t and C are 0; whatever stands where a weight is 0 counts for nothing. Leading dimensions of X and weights may
    broadcast. ``ValueError`` for no points, coordinates that are not finite or above 1e150, and negative weights.
    """
    if X.ndim < 2 or X.shape[-2] == 0:
        raise ValueError(f"points have shape {list(X.shape)}: a cloud needs at least one point, [..., n, d] with n > 0")
    with torch.no_grad():
        Y = X.detach().double()
        if weights is not None:
            w = weights.detach().double()
            if bool((w < 0).any()) or not bool(torch.isfinite(w).all()):
                raise ValueError("weights must be finite and at least 0")
            if not w.ndim or w.shape[-1] != Y.shape[-2]:
                raise ValueError(
                    f"weights of shape {list(w.shape)} beside {Y.shape[-2]} points a cloud: one weight a point, [..., n]"
                )
            Y = torch.where((w > 0).unsqueeze(-1), Y, torch.zeros_like(Y))
        finite = torch.isfinite(Y).all(-1)
        if not bool(finite.all()):
            where = [int(i) for i in torch.nonzero(~finite)[0]]
            raise ValueError(f"the coordinates of the point at {where} are {Y[tuple(where)].tolist()}: not finite")
        if Y.numel() and (far := float(Y.abs().amax())) > LARGEST:
            raise ValueError(f"a coordinate of {far:.3g}: squares of what is above {LARGEST:g} are no numbers any more")
        if weights is None:
            if not centred:
                return Y.new_zeros(*Y.shape[:-2], Y.shape[-1]), Y.mT @ Y
            t = Y.mean(-2)
            Y = _about(Y, t)
            return t, Y.mT @ Y
        total = w.sum(-1, keepdim=True)
        t = (w.unsqueeze(-2) @ Y).squeeze(-2) / torch.where(total > 0, total, torch.ones_like(total))
        if not centred:
            t = torch.zeros_like(t)
        Y = _about(Y, t) if centred else Y
        return t, (Y * w.unsqueeze(-1)).mT @ Y


def _about(Y: Tensor, t: Tensor) -> Tensor:
    """Y - t, with 0 for what is no more than the rounding of the mean: points in one place have no extent, wherever that is."""
    far = Y.abs().amax((-2, -1), keepdim=True)
    Y = Y - t.unsqueeze(-2)
    return torch.where(Y.abs() <= 16 * torch.finfo(Y.dtype).eps * far, torch.zeros_like(Y), Y)


_SIGNS: dict[tuple[int, Linear], Tensor] = {}


def signs(d: int, linear: Linear) -> Tensor:
    """The sign patterns of a frame: all 2^d for O, those with an even number of -1 for SO, float64 [F, d]."""
    if (d, linear) not in _SIGNS:
        every = torch.tensor(list(itertools.product((1.0, -1.0), repeat=d)), dtype=torch.float64)
        _SIGNS[d, linear] = every if linear == "O" else every[every.prod(1) > 0]
    return _SIGNS[d, linear]


def frame_from(t: Tensor, C: Tensor, linear: Linear = "O") -> Frame:
    """The frame of O(d) or SO(d) about t [*, d] from a scatter C [*, d, d]: eigenvectors V, ``{V diag(signs)}``; scale 1.

    2^d elements for O; the 2^(d-1) with determinant +1 for SO. ``ValueError`` for d above 8.
    """
    d = int(C.shape[-1])
    if d > MOST_DIMENSIONS:
        raise ValueError(f"{d} dimensions need {2**d} frames; at most {MOST_DIMENSIONS} are taken: project the points first")
    with torch.no_grad():
        values, V = torch.linalg.eigh(C.double())
        if linear == "SO":
            V = torch.cat([V[..., :1] * torch.linalg.det(V).sign()[..., None, None], V[..., 1:]], -1)
        R = V.unsqueeze(-3) * signs(d, linear).to(V.device).unsqueeze(-2)
        largest = values[..., -1]
        gap = torch.ones_like(largest)
        if d > 1:
            gap = (values[..., 1:] - values[..., :-1]).amin(-1) / torch.where(largest > 0, largest, gap)
        return Frame(R, t.double(), torch.ones_like(largest), torch.where(largest > 0, gap, torch.zeros_like(gap)))


@dataclass(frozen=True)
class Motions:
    """A group of maps ``x -> s R x + t`` of d dimensions (none: any): which of R, t and s it has.

    With R and without t, R turns about the origin; `centred` takes the scatter about the mean all the same, as the official code does.
    """

    d: int | None = None
    linear: Linear = "none"
    translations: bool = False
    scales: bool = False
    centred: bool = False

    def __post_init__(self) -> None:
        if self.d is not None and not 1 <= self.d <= MOST_DIMENSIONS:
            raise ValueError(f"{self.d} dimensions; frames are taken of 1 to {MOST_DIMENSIONS} (2^d elements)")
        if self.d is None and self.linear != "none":
            raise ValueError("a group of rotations needs its dimension")

    @property
    def name(self) -> str:
        if self.linear == "none":
            parts = (["Translations"] if self.translations else []) + (["Scale"] if self.scales else [])
            return " * ".join(parts) or "Trivial"
        whole = {("O", True): "E", ("SO", True): "SE", ("O", False): "O", ("SO", False): "SO"}[self.linear, self.translations]
        return f"{whole}({self.d})" + (" * Scale" if self.scales else "")

    @property
    def size(self) -> int:
        """Elements of a frame."""
        return 1 if self.linear == "none" else len(signs(self.d or 1, self.linear))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Motions):
            if None not in (self.d, other.d) and self.d != other.d:
                raise ValueError(f"{self.name} and {other.name} act on different dimensions")
            order: tuple[Linear, ...] = ("none", "SO", "O")
            return Motions(
                self.d or other.d, order[max(order.index(self.linear), order.index(other.linear))],
                self.translations or other.translations, self.scales or other.scales, self.centred or other.centred,
            )  # fmt: skip
        return Product(self, other) if isinstance(other, Sn) else NotImplemented

    def frame(self, X: Tensor, weights: Tensor | None = None) -> Frame:
        """The frame of points X [*, n, d] (weights [*, n], at least 0). ``ValueError`` as `moments` and `frame_from`.

        Scale is the root mean square distance from t (from the origin, without translations), and 1 where that is 0.
        """
        d = int(X.shape[-1])
        if self.d not in (None, d):
            raise ValueError(f"{self.name} acts on {self.d} dimensions, the points have {d}")
        t, C = moments(X, weights, self.translations or self.centred)
        if self.linear == "none":
            R = torch.eye(d, dtype=t.dtype, device=t.device).expand(*t.shape[:-1], 1, d, d)
            found = Frame(R, t, t.new_ones(t.shape[:-1]), t.new_ones(t.shape[:-1]))
        else:
            found = frame_from(t, C, self.linear)
        if not self.translations:
            found = replace(found, t=torch.zeros_like(t))
        if self.scales:
            if self.centred and not self.translations:
                C = moments(X, weights, False)[1]
            trace = C.diagonal(dim1=-2, dim2=-1).sum(-1)
            total = weights.detach().double().sum(-1) if weights is not None else trace.new_full((), X.shape[-2])
            spread = (trace / torch.where(total > 0, total, torch.ones_like(total))).sqrt()
            some = spread > 0
            gap = torch.where(some, found.gap, torch.zeros_like(found.gap))
            found = replace(found, scale=torch.where(some, spread, torch.ones_like(spread)), gap=gap)
        return found

    def random(self, X: Tensor, generator: torch.Generator | None = None, far: float = 3.0) -> Frame:
        """A random element for each cloud of X [B, n, d]: R uniform, t ~ N(0, far^2), scale in [1/2, 2]."""
        B, d = len(X), int(X.shape[-1])
        R = torch.eye(d, dtype=torch.float64).expand(B, d, d)
        if self.linear != "none":
            Q, upper = torch.linalg.qr(torch.randn(B, d, d, generator=generator, dtype=torch.float64))
            R = Q * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
            if self.linear == "SO":
                R = torch.cat([R[..., :1] * torch.linalg.det(R)[:, None, None].sign(), R[..., 1:]], -1)
        t = far * torch.randn(B, d, generator=generator, dtype=torch.float64)
        scale = 2 ** (2 * torch.rand(B, generator=generator, dtype=torch.float64) - 1)
        one = torch.ones(B, dtype=torch.float64)
        found = Frame(R.unsqueeze(1), t if self.translations else 0 * t, scale if self.scales else one, one)
        return Frame(*(v.to(X.device) for v in (found.R, found.t, found.scale, found.gap)))


@dataclass(frozen=True)
class Finite:
    """A finite group of matrices, as nested tuples [m, d, d]: its frame is the whole group (group averaging)."""

    matrices: tuple[tuple[tuple[float, ...], ...], ...]

    @property
    def name(self) -> str:
        return f"a group of {len(self.matrices)} matrices"

    @property
    def size(self) -> int:
        return len(self.matrices)

    @classmethod
    def of(cls, matrices: Any) -> Finite:
        return cls(tuple(tuple(tuple(float(v) for v in row) for row in m) for m in matrices))

    def frame(self, X: Tensor, weights: Tensor | None = None) -> Frame:
        t, _ = moments(X, weights)
        R = torch.tensor(self.matrices, dtype=t.dtype, device=t.device)
        if R.shape[-1] != X.shape[-1]:
            raise ValueError(f"{self.name} acts on {R.shape[-1]} dimensions, the points have {X.shape[-1]}")
        one = t.new_ones(t.shape[:-1])
        return Frame(R.expand(*t.shape[:-1], *R.shape), torch.zeros_like(t), one, one)

    def random(self, X: Tensor, generator: torch.Generator | None = None) -> Frame:
        return self.frame(X).sample(1, generator)


def E(d: int) -> Motions:
    """Rotations, reflections and translations of d dimensions: 2^d frames."""
    return Motions(d, "O", True)


def SE(d: int) -> Motions:
    """Rotations and translations: 2^(d-1) frames."""
    return Motions(d, "SO", True)


def O(d: int, centred: bool = False) -> Motions:  # noqa: E743  (the group's own name)
    """Rotations and reflections about the origin: 2^d frames."""
    return Motions(d, "O", centred=centred)


def SO(d: int, centred: bool = False) -> Motions:
    """Rotations about the origin: 2^(d-1) frames."""
    return Motions(d, "SO", centred=centred)


def E3() -> Motions:
    return E(3)


def SE3() -> Motions:
    return SE(3)


def O3() -> Motions:
    return O(3)


def SO3() -> Motions:
    return SO(3)


def Translations(d: int | None = None) -> Motions:
    """Shifts: one frame, the mean."""
    return Motions(d, translations=True)


def Scale(d: int | None = None) -> Motions:
    """Positive scales: one frame, the root mean square distance from the origin (from the mean, beside translations)."""
    return Motions(d, scales=True)


def cyclic(m: int) -> Finite:
    """The m rotations of the plane by ``2 pi k / m``."""
    angles = [2 * math.pi * k / m for k in range(m)]
    return Finite.of([[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles])


# -- S_n on graphs ---------------------------------------------------------------------------------------------------------------
def check_adjacency(A: Tensor, directed: bool = False) -> None:
    """``ValueError`` unless A [..., n, n] is square, finite, has nodes, is of one graph at least, and is symmetric (or declared directed)."""
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"an adjacency is square, [..., n, n]; this one has shape {list(A.shape)}")
    if A.shape[-1] == 0:
        raise ValueError("the graph has no nodes")
    if not A.numel():
        raise ValueError(f"a batch of no graphs, {list(A.shape)}")
    if not bool(torch.isfinite(A).all()):
        raise ValueError("the adjacency holds numbers that are not finite")
    if not directed and not bool((A.mT == A).all()):
        worst = float((A - A.mT).abs().max())
        if worst > 1e-6 * float(A.abs().max()):
            raise ValueError(
                f"the adjacency is not symmetric (entries differ by up to {worst:.3g}); say Sn(directed=True) if that is meant"
            )


def _levels(values: np.ndarray[Any, Any], tolerance: float) -> np.ndarray[Any, Any]:
    """Dense ranks of values [B, n, K] along n: a new rank starts where the next larger value is more than `tolerance` away."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, 1)
    steps = np.zeros(ordered.shape, np.int64)
    steps[:, 1:] = np.diff(ordered, axis=1) > tolerance
    found = np.empty_like(steps)
    np.put_along_axis(found, order, np.cumsum(steps, axis=1), 1)
    return found


def spectral_keys(A: Tensor, tolerance: float = 1e-6, directed: bool = False) -> np.ndarray[Any, Any]:
    """Keys of the nodes of graphs of one size, A [B, n, n] -> int64 [B, n, n]: equivariant to renumbering.

    The Laplacian ``L = D - A`` (of ``(A + A^T)/2`` where directed); for each distinct eigenvalue the column
    ``sqrt(sum_k u_ik^2)`` over its eigenvectors, which no choice of a basis changes; each column as ranks of its values. Values
    count as equal within `tolerance` of the next one (eigenvalues: relative to the largest, too): rounding to decimals, as the official
    code does, parts values that lie on both sides of a boundary. Columns of absent eigenvalues are 0.
    """
    check_adjacency(A, directed)
    W = A.detach().double().cpu().numpy()
    if directed:
        W = (W + W.swapaxes(-1, -2)) / 2
    B, n, _ = W.shape
    L = -W.copy()
    at = np.arange(n)
    L[:, at, at] += W.sum(-1)
    values, U = np.linalg.eigh(L)
    scale = np.maximum(np.abs(values).max(-1, keepdims=True), 1.0)
    space = np.zeros((B, n), np.int64)
    space[:, 1:] = np.cumsum(np.diff(values, axis=1) > tolerance * scale, axis=1)
    belongs = (space[:, :, None] == at).astype(np.float64)  # [B, eigenvector, eigenspace]
    return _levels(np.sqrt(U**2 @ belongs), tolerance)


def spectral_ranks(A: Tensor, x: Tensor | None = None, tolerance: float = 1e-6, directed: bool = False) -> np.ndarray[Any, Any]:
    """Places of the nodes by their keys, sorted lexicographically: A [B, n, n], features x [B, n, F] -> int64 [B, n].

    Equal numbers are nodes that may change places: rank r means that r nodes of other keys come before. Features, where given,
    stand behind the spectral columns in the key: they move with the nodes, so it stays a frame, and break ties alone. (Before them they
    tear the components apart that the first spectral column puts side by side: on EXP a network of ids then learns visibly worse.)
    """
    keys = spectral_keys(A, tolerance, directed)
    B, n, _ = keys.shape
    columns = [keys.reshape(B * n, -1)]
    if x is not None:
        if x.shape[:2] != (B, n):
            raise ValueError(f"node features of shape {list(x.shape)} beside {B} graphs of {n} nodes: [B, n, ...] is needed")
        if not bool(torch.isfinite(x).all()):
            raise ValueError("the node features hold numbers that are not finite")
        columns.append(x.detach().double().cpu().numpy().reshape(B * n, -1))  # type: ignore[arg-type]
    graph = np.repeat(np.arange(B), n)
    table = np.concatenate([graph[:, None], *columns], 1)
    order = np.lexsort(table.T[::-1])
    table = table[order]
    new = np.ones(B * n, bool)
    new[1:] = (table[1:] != table[:-1]).any(1)
    first = np.maximum.accumulate(np.where(new, np.arange(B * n), 0))
    ranks = np.empty(B * n, np.int64)
    ranks[order] = first
    return ranks.reshape(B, n) - np.arange(B)[:, None] * n


def frame_size(ranks: np.ndarray[Any, Any]) -> int:
    """|F| of a graph: the product of the factorials of the numbers of nodes that share a rank."""
    return math.prod(math.factorial(int(c)) for c in np.unique(ranks, return_counts=True)[1])


def all_orderings(ranks: np.ndarray[Any, Any], most: int = 40_320) -> np.ndarray[Any, Any]:
    """Every ordering of the frame: int64 [|F|, n], row r lists the nodes in their order. ``ValueError`` for more than `most`."""
    size = frame_size(ranks)
    if size > most:
        raise ValueError(f"the frame has {size:.3g} orderings; at most {most} are listed: draw some instead (samples=8)")
    groups = [np.flatnonzero(ranks == r) for r in np.unique(ranks)]
    found = np.empty((1, 0), np.int64)
    for group in groups:
        mine = np.array(list(itertools.permutations(group)), np.int64)
        found = np.concatenate([np.repeat(found, len(mine), 0), np.tile(mine, (len(found), 1))], 1)
    return found


def distinct_orderings(
    ranks: np.ndarray[Any, Any], A: np.ndarray[Any, Any], x: np.ndarray[Any, Any] | None = None, most: int = 40_320
) -> np.ndarray[Any, Any]:
    """One ordering for each different framed graph: int64 [m, n], m = |F| / |Aut|.

    Orderings that differ by an automorphism of (A [n, n], x [n, F]) show the same framed graph, and each framed graph is shown by as many
    of them; so the mean over these is the mean over the frame, where phi sees no more of a graph than A and x. K_8 has 40,320 orderings
    and one framed graph. ``ValueError`` as `all_orderings`.
    """
    orders = all_orderings(ranks, most)
    if len(orders) == 1:
        return orders
    rows = []
    for some in np.array_split(orders, max(1, orders.size * orders.shape[1] // 4_000_000)):
        shown = A[some[:, :, None], some[:, None]].reshape(len(some), -1)
        rows.append(shown if x is None else np.concatenate([shown, x[some].reshape(len(some), -1)], 1))
    table = np.ascontiguousarray(np.concatenate(rows))
    _, first = np.unique(table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1]))).ravel(), return_index=True)
    return orders[np.sort(first)]


@dataclass(frozen=True)
class Orderings:
    """Elements of S_n for each of B graphs: order int64 [M, n] lists nodes in their order, owner [M] says whose it is.

    ``g^-1``: nodes sorted into the order; ``g``: back to where they were. `sizes` are |F| of each graph (as float: they may be
    beyond any integer), the elements at hand may be a sample.
    """

    order: Tensor
    owner: Tensor
    graphs: int
    sizes: tuple[float, ...] = ()
    inner: Frame | None = None  # elements of a group of motions of each graph, before the ordering

    @property
    def elements(self) -> int:
        return len(self.order) * (1 if self.inner is None else self.inner.size)

    @property
    def owners(self) -> Tensor:
        """int64 [elements]: whose graph's each row of a `batch` is."""
        return self.owner if self.inner is None else self.owner.repeat_interleave(self.inner.size)

    @property
    def gap(self) -> Tensor:
        return torch.ones(self.graphs) if self.inner is None else self.inner.gap

    def _each(self) -> tuple[Tensor, Tensor]:
        """(row of the inner batch, ordering) of every element."""
        if self.inner is None:
            return self.owner, self.order
        F = self.inner.size
        rows = (self.owner[:, None] * F + torch.arange(F, device=self.owner.device)).flatten()
        return rows, self.order.repeat_interleave(F, 0)

    def batch(self, X: Tensor, kind: str) -> Tensor:
        """``g^-1 X`` of every element in one batch: [B, ...] -> [M, ...]."""
        _check_kind(kind)
        rows, order = self._each()
        Z = (X if self.inner is None else self.inner.batch(X, kind))[rows]
        return _reorder(Z, order, kind)

    def unbatch(self, Z: Tensor, kind: str) -> Tensor:
        """The mean of ``g Z`` over the elements of each graph: [M, ...] -> [B, ...]."""
        _check_kind(kind)
        rows, order = self._each()
        Z = _reorder(Z, order.argsort(1), kind)
        if self.inner is not None:
            picked = replace(
                self.inner, R=self.inner.R.flatten(0, 1)[rows].unsqueeze(1), t=self.inner.t[rows // self.inner.size],
                scale=self.inner.scale[rows // self.inner.size], gap=self.inner.gap[rows // self.inner.size],
            )  # fmt: skip
            Z, rows = picked.act(Z, kind), rows // self.inner.size
        total = Z.new_zeros(self.graphs, *Z.shape[1:]).index_add(0, rows, Z)
        count = torch.bincount(rows, minlength=self.graphs).to(Z.dtype)
        return total / _beside(count, total, 1)

    def act(self, X: Tensor, kind: str) -> Tensor:
        """``g X`` for the one element of a graph: [B, ...] -> [B, ...]."""
        if len(self.order) != self.graphs:
            raise ValueError("only one element a graph can act")
        X = _reorder(X, self.order.argsort(1), kind)
        return X if self.inner is None else self.inner.act(X, kind)


def _reorder(X: Tensor, order: Tensor, kind: str) -> Tensor:
    if kind in ("invariant", "point", "vector", "direction"):
        return X
    if X.ndim < 2 or X.shape[1] != order.shape[1]:
        raise ValueError(f"{kind} of shape {list(X.shape)} in a graph of {order.shape[1]} nodes")
    rows = torch.arange(len(X), device=X.device)[:, None]
    X = X[rows, order]
    return X[rows[..., None], torch.arange(X.shape[1], device=X.device)[None, :, None], order[:, None]] if kind == "graph" else X


@dataclass(frozen=True)
class Sn:
    """Permutations of the nodes of a graph; the frame of section 3.3, from `spectral_ranks`.

    `tolerance`: values of keys within it are equal. `features`: node features stand in the keys. `uniform`: no keys, so that the
    frame is all of S_n (group averaging, the paper's control). `most`: orderings that are listed exactly.
    """

    tolerance: float = 1e-6
    features: bool = True
    directed: bool = False
    uniform: bool = False
    most: int = 40_320

    @property
    def name(self) -> str:
        return "Sn"

    def __mul__(self, other: Any) -> Product:
        return Product(other, self) if isinstance(other, Motions) else NotImplemented

    def ranks(self, A: Tensor, x: Tensor | None = None) -> np.ndarray[Any, Any]:
        """`spectral_ranks` of A [B, n, n] by this group's fields."""
        if self.uniform:
            check_adjacency(A, self.directed)
            return np.zeros(A.shape[:2], np.int64)
        return spectral_ranks(A, x if self.features else None, self.tolerance, self.directed)

    def frame(
        self, A: Tensor, x: Tensor | None = None, samples: int | None = None, generator: torch.Generator | None = None,
        own: bool = False,
    ) -> Orderings:  # fmt: skip
        """The frame of graphs A [B, n, n]: all orderings (none), or `samples` of each graph, uniform and with replacement.

        With `own` each graph draws for itself, as in `Frame.sample`.
        """
        ranks = self.ranks(A, x)
        B, n = ranks.shape
        sizes = [frame_size(r) for r in ranks]
        if samples is None:
            orders = [all_orderings(r, self.most) for r in ranks]
            order, owner = np.concatenate(orders), np.repeat(np.arange(B), [len(o) for o in orders])
        else:
            if own:
                u = np.broadcast_to(uniform(np.arange(samples)[:, None], np.arange(n)), (B, samples, n))
            else:
                u = torch.rand(B, samples, n, generator=generator, dtype=torch.float64).numpy()
            order = np.lexsort((u, np.broadcast_to(ranks[:, None], u.shape)), axis=-1).reshape(B * samples, n)
            owner = np.repeat(np.arange(B), samples)
        to = A.device
        return Orderings(torch.from_numpy(order).to(to), torch.from_numpy(owner).to(to), B, tuple(float(s) for s in sizes))

    def random(self, X: Tensor, generator: torch.Generator | None = None) -> Orderings:
        """A random permutation for each of [B, n, ...]."""
        order = torch.rand(X.shape[0], X.shape[1], generator=generator).argsort(1).to(X.device)
        return Orderings(order, torch.arange(len(X), device=X.device), len(X))


@dataclass(frozen=True)
class Product:
    """Motions of the points and permutations of the nodes at once: ``F = F_motions(X) x F_Sn(A)``.

    The frame of the motions does not change with the numbering, and the keys of the graph do not change with the pose, so the
    product is a frame of the product. Needed where the backbone is not symmetric in its points by itself; a point network is, and
    then the motions alone are enough.
    """

    motions: Motions
    permutations: Sn

    @property
    def name(self) -> str:
        return f"{self.motions.name} * {self.permutations.name}"

    def frame(
        self, X: Tensor, A: Tensor | None = None, x: Tensor | None = None, weights: Tensor | None = None,
        samples: int | None = None, generator: torch.Generator | None = None, own: bool = False,
    ) -> Orderings:  # fmt: skip
        """Of points X [B, n, d] with a graph A [B, n, n]; without one, the graph of their distances over the mean distance."""
        inner = self.motions.frame(X, weights)
        if A is None:
            D = torch.cdist(X.detach().double(), X.detach().double(), compute_mode="donot_use_mm_for_euclid_dist")
            D = (D + D.mT) / 2
            mean = D.mean((-1, -2), keepdim=True)
            A = D / torch.where(mean > 0, mean, torch.ones_like(mean))
        found = self.permutations.frame(A, x, samples, generator, own)
        return replace(found, inner=inner if samples is None else inner.sample(1, generator, own))

    def random(self, X: Tensor, generator: torch.Generator | None = None) -> Orderings:
        return replace(self.permutations.random(X, generator), inner=self.motions.random(X, generator))


Group = Motions | Finite | Sn | Product


def group_of(name: str, d: int = 3) -> Group:
    """A group by name: ``E3``, ``SE3``, ``O3``, ``SO3`` (or any digit), ``Translations``, ``Scale``, ``Sn``; ``*`` multiplies."""
    found: Any = None
    for part in (p.strip() for p in name.split("*")):
        word, digits = part.rstrip("0123456789"), part[len(part.rstrip("0123456789")) :]
        makers: dict[str, Any] = {"E": E, "SE": SE, "O": O, "SO": SO}
        if word in makers:
            one: Any = makers[word](int(digits) if digits else d)
        elif part in ("Translations", "Scale", "Sn"):
            one = {"Translations": Translations, "Scale": Scale, "Sn": Sn}[part]()
        else:
            raise ValueError(
                f"no group is called {part!r}; there are E3, SE3, O3, SO3, Translations, Scale, Sn, and products with *"
            )
        found = one if found is None else found * one
    return found  # type: ignore[no-any-return]


# -- how well it holds -----------------------------------------------------------------------------------------------------------
def equivariance_error(
    fn: Any, group: Any, inputs: Sequence[tuple[str, Tensor]], output: str | Sequence[str] = "invariant",
    generator: torch.Generator | None = None,
) -> float:  # fmt: skip
    """``max |fn(g X) - g fn(X)| / max(1, max |g fn(X)|)`` for one random element of each cloud.

    `inputs` are (kind, tensor) pairs, the first of which has the shape that an element is drawn for; `output` is the kind of the answer,
    or of each of several.
    """
    g = group.random(inputs[0][1], generator)
    with torch.no_grad():
        before = fn(*(X for _, X in inputs))
        after = fn(*(g.act(X, kind) for kind, X in inputs))
    kinds = (output,) if isinstance(output, str) else tuple(output)
    before, after = (v if isinstance(v, tuple | list) else (v,) for v in (before, after))
    if not len(before) == len(after) == len(kinds):
        raise ValueError(f"{len(before)} outputs, {len(kinds)} kinds")
    worst = 0.0
    for kind, a, b in zip(kinds, before, after, strict=True):
        wanted = g.act(a, kind)
        error = float((b - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
        worst = math.inf if math.isnan(error) else max(worst, error)
    return worst
