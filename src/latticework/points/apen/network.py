"""The network: layers that are frame-averaged inside each part of a partition, and the partitions between them.

A partition is hard here: every point is of one part, so that a layer is one batch of frames x points with sums over parts, not parts x
frames x points. `PiecewiseLayer.soft` is the same layer for a soft assignment W [n, k], dense; with W one-hot both agree.

Under motions g_1 … g_m of the true parts (any element of E(3), or of SE(3) with 4 frames) a layer's seeds and vectors move with the parts and
its scalars stay, exactly, where each part of its partition lies inside a true one. What a partition gets wrong costs
at most c1 * uncertainty + c2 * impure (`partition.impure`).

Source: Atzmon et al. (ICLR 2024), sections 3.1 to 3.4. A part of fewer than 4 points has no frame of its own: it takes the axes
as they are (``identity``; such a part is not equivariant, and `small` says how many points are in one) or joins the nearest part
(``merge``).
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.layers.frames import Frame, frame_from, moments

from ..network import PointBackbone
from .partition import Gradient, Partition, partition

LEAST_POINTS = 4  # of a part with a frame of its own
LIGHT = 1e-4  # components of less weight vanish; of twice as much after each block
Small = Literal["identity", "merge"]
Draw = Literal["argmax", "sampled"]


class Outputs(NamedTuple):
    """Of a layer, a row a point: scalars [N, a], vectors [N, b, 3], seeds [N, 3]."""

    scalars: Tensor
    vectors: Tensor
    seeds: Tensor


class Views(NamedTuple):
    """What a partition says once for all: part int64 [N] numbered over all clouds, `parts` many; the frames R [parts, F, 3, 3], their
    centres t [parts, 3] and gaps [parts]; neighbours int64 [N, m] inside the part, N where there is none; small bool [N]."""

    part: Tensor
    parts: int
    frame: Frame
    near: Tensor
    small: Tensor


def total_by(values: Tensor, part: Tensor, parts: int) -> Tensor:
    """Sums of rows [N, ...] by part: [parts, ...]."""
    return values.new_zeros(parts, *values.shape[1:]).index_add(0, part, values)


def neighbours(X: Tensor, part: Tensor, k: int) -> Tensor:
    """int64 [N, k]: the k nearest points of the same part, itself first; N where the part has no more. Found by a tree on the CPU."""
    from scipy.spatial import cKDTree

    N = len(X)
    points, label = X.detach().double().cpu().numpy(), part.cpu().numpy()
    apart = 4 * (float(np.ptp(points, axis=0).max(initial=0.0)) + 1)  # parts never meet
    side = int(np.ceil((label.max(initial=0) + 1) ** (1 / 2)))  # on a grid, so that no number grows too large for its digits
    lifted = np.concatenate([points - points.mean(0), np.stack([label // side, label % side], 1) * apart], 1)
    m = min(k, N)
    _, index = cKDTree(lifted).query(lifted, m)
    index = index.reshape(N, m)
    index = np.where(label[index] == label[:, None], index, N)
    index[:, 0] = np.arange(N)  # where two points are one place, each is its own first
    found = torch.from_numpy(index).to(X.device)
    return found if m == k else F.pad(found, (0, k - m), value=N)


def merged_small(X: Tensor, part: Tensor, parts: int) -> Tensor:
    """The parts with those of fewer than 4 points given to the nearest (by centres) that has 4 or more; where there is none, all are one."""
    size = total_by(torch.ones_like(part, dtype=X.dtype), part, parts)
    centre = total_by(X.detach(), part, parts) / size.clamp(min=1)[:, None]
    large = torch.nonzero(size >= LEAST_POINTS)[:, 0]
    if not len(large):
        return torch.zeros_like(part)
    to = torch.arange(parts, device=part.device)
    lost = torch.nonzero((size > 0) & (size < LEAST_POINTS))[:, 0]
    if len(lost):
        to[lost] = large[torch.cdist(centre[lost], centre[large]).argmin(1)]
    return to[part]


def views(X: Tensor, part: Tensor, parts: int, frames: int, k: int, small: Tensor | None = None) -> Views:
    """Frames and neighbours of a hard partition of points X [N, 3] (int64 [N] below `parts`); in float64, without gradient."""
    with torch.no_grad():
        Y = X.detach().double()
        if not bool(torch.isfinite(Y).all()):
            raise ValueError(f"the point {int(torch.nonzero(~torch.isfinite(Y).all(1))[0])} is not finite")
        size = total_by(torch.ones_like(Y[:, :1]), part, parts)
        t = total_by(Y, part, parts) / size.clamp(min=1)
        Y = Y - t[part]
        C = total_by((Y[:, :, None] * Y[:, None]).flatten(1), part, parts).unflatten(1, (3, 3))
        found = frame_from(t, C, "O" if frames == 8 else "SO")
        few = size[:, 0] < LEAST_POINTS
        eye = torch.eye(3, dtype=Y.dtype, device=Y.device).expand_as(found.R)
        gap = torch.where(few, torch.ones_like(found.gap), found.gap)
        found = Frame(torch.where(few[:, None, None, None], eye, found.R), t, found.scale, gap)
        return Views(part, parts, found, neighbours(X, part, k), few[part] if small is None else small)


class SharedNet(nn.Module):
    """phi: a map of each point, the weighted mean over its part, and a head on the mean beside all stages. PointNet's form.

    `widths` of the stages (linear, ReLU), `head` of the layers after them. Rows [..., f] -> [..., out].
    """

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...], head: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (inputs, *widths)
        self.stages = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, widths, strict=False))
        self.beside = nn.Linear(sum(widths), head[0])
        self.mean = nn.Linear(widths[-1], head[0], bias=False)  # of the part: done once a part, not once a point
        after = (*head, outputs)
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(after))

    def stage(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """All stages side by side through the first layer of the head, and the last one."""
        kept = []
        for layer in self.stages:
            h = torch.relu(layer(h))
            kept.append(h)
        return self.beside(torch.cat(kept, -1)), h

    def finish(self, own: Tensor, mean: Tensor) -> Tensor:
        """`mean` [..., head]: of the part of each row, after `self.mean`."""
        h = own + mean
        for layer in self.head:
            h = layer(torch.relu(h))
        return h


class PiecewiseLayer(nn.Module):
    """psi(X, W): points with scalars and vectors -> scalars, vectors and seeds, through phi averaged over the frames of each part.

    A point's row, in each frame of its part: its `near` nearest neighbours in the part, relative to the part's centre (0 where it has no more),
    its given vectors (normals), the vectors of the layer before, and the invariant scalars. phi says `scalars` numbers, `vectors` vectors and a
    displacement; these are turned back and averaged. Coordinates are multiplied by `unit` before phi sees them.
    """

    def __init__(
        self, scalars_in: int, vectors_in: int, scalars: int, vectors: int, frames: int = 8, near: int = 10,
        widths: tuple[int, ...] = (64, 64, 128, 128, 256), head: tuple[int, ...] = (256, 256, 128), unit: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unit = unit
        if frames not in (4, 8):
            raise ValueError(f"{frames} frames; there are 8 (E(3)) or 4 (SE(3))")
        self.frames, self.near, self.scalars, self.vectors = frames, near, scalars, vectors
        self.phi = SharedNet(3 * (near + vectors_in) + scalars_in, scalars + 3 * vectors + 3, widths, head)

    def forward(self, X: Tensor, scalars: Tensor, vectors: Tensor, seen: Views, W: Tensor | None = None) -> Outputs:
        """X [N, 3], scalars [N, a], vectors [N, b, 3] -> `Outputs`; W [N]: weight of each point in its part (1, left out)."""
        R = seen.frame.R.to(X.dtype)[seen.part]  # [N, F, 3, 3]
        Y = X - seen.frame.t.to(X.dtype)[seen.part]
        padded = torch.cat([self.unit * Y, Y.new_zeros(1, 3)])
        rows = torch.cat([padded[seen.near], vectors], 1)  # [N, near + b, 3]
        framed = (rows[:, None] @ R).flatten(2)
        h = torch.cat([framed, scalars[:, None].expand(-1, self.frames, -1)], 2) if scalars.shape[1] else framed
        own, last = self.phi.stage(h)
        weight = torch.ones_like(Y[:, :1]) if W is None else W[:, None]
        held = total_by(weight, seen.part, seen.parts)[:, :, None]
        mean = total_by(last * weight[:, :, None], seen.part, seen.parts) / torch.where(held > 0, held, torch.ones_like(held))
        out = self.phi.finish(own, self.phi.mean(mean)[seen.part])
        if W is not None:
            out = out * W[:, None, None]
        return self._back(out, R, X)

    def _back(self, out: Tensor, R: Tensor, X: Tensor) -> Outputs:
        a = self.scalars
        turned = (out[..., a:].unflatten(-1, (-1, 3)) @ R.mT).mean(1)  # [N, b + 1, 3]
        return Outputs(out[..., :a].mean(1), turned[:, :-1], X + turned[:, -1])

    def soft(self, X: Tensor, scalars: Tensor, vectors: Tensor, W: Tensor) -> Outputs:
        """The same for one cloud and a soft assignment W [n, k] (rows sum to 1), dense: k x frames x n rows.

        Frames of part j have the weights W_j; a neighbour counts by its weight in j (what is missing is the part's centre), and
        answers are summed over parts by W. Neighbours are those inside the part of a point's largest weight.
        """
        n, k = W.shape
        with torch.no_grad():
            t, C = moments(X.expand(k, n, 3), W.mT)
            frame = frame_from(t, C, "O" if self.frames == 8 else "SO")
            few = ((W > 0).sum(0) < LEAST_POINTS) | (W.sum(0) <= 1)
            eye = torch.eye(3, dtype=t.dtype, device=t.device).expand_as(frame.R)
            R = torch.where(few[:, None, None, None], eye, frame.R).to(X.dtype)  # [k, F, 3, 3]
            near = neighbours(X, W.argmax(1), self.near)
        Y = (X - t.to(X.dtype)[:, None]) * W.mT[:, :, None]  # [k, n, 3]
        padded = torch.cat([self.unit * Y, Y.new_zeros(k, 1, 3)], 1)[:, near]  # [k, n, near, 3]
        share = W.mT[:, :, None, None]
        total = W.sum(0)
        mean_of = torch.einsum("nj,nbc->jbc", W, vectors) / torch.where(total > 0, total, torch.ones_like(total))[:, None, None]
        rows = torch.cat([padded, share * vectors + (1 - share) * mean_of[:, None]], 2)
        framed = (rows[:, :, None] @ R[:, None]).flatten(3)  # [k, n, F, ...]
        h = torch.cat([framed, scalars[None, :, None].expand(k, -1, self.frames, -1)], 3) if scalars.shape[1] else framed
        own, last = self.phi.stage(h)
        pooled = torch.einsum("nj,jnfc->jfc", W, last) / torch.where(total > 0, total, torch.ones_like(total))[:, None, None]
        out = self.phi.finish(own, self.phi.mean(pooled)[:, None])
        a = self.scalars
        turned = (out[..., a:].unflatten(-1, (-1, 3)) @ R.mT[:, None]).mean(2)  # [k, n, b + 1, 3]
        summed = torch.einsum("nj,jnbc->nbc", W, turned)
        return Outputs(torch.einsum("nj,jna->na", W, out[..., :a].mean(2)), summed[:, :-1], X + summed[:, -1])


class Trace(NamedTuple):
    """Of the last forward pass, a row for each point that was there: partitions (layer by layer), seeds of each block, `small` share."""

    parts: list[Tensor]
    uncertainty: list[Tensor]
    seeds: list[Tensor]
    components: list[Tensor]
    small: float
    gap: float


class APEN(PointBackbone):
    """Blocks of (partition, piecewise layer), and a decoder, which is a layer whose answer is invariant. See `PointBackbone` for shapes.

    The first partition is of the points themselves, the later ones of the seeds of the block before; `variances` are theirs, in the units of the
    points (a cloud of root mean square 1). The x given are vectors first, then invariant columns. With `own_parts` the last invariant
    column is the partition itself (a number a point), for every layer: the ceiling of what a partition can bring.

    While `beside` is true, a column more says the uncertainty of each point, 1 - max_j W_ij, the mean over the layers.
    """

    def __init__(
        self, inputs: int, outputs: int, per_point: bool, vectors: int = 0, *, components: int = 40, blocks: int = 4, em_rounds: int = 16,
        frames: int = 8, draw: Draw = "argmax", small_part: Small = "merge", gradient: Gradient = "implicit", near: int = 10,
        variances: tuple[float, ...] = (0.005, 0.0043, 0.013, 0.022), widths: tuple[int, ...] = (64, 64, 128, 128, 256),
        head: tuple[int, ...] = (256, 256, 128), scalars: tuple[int, ...] = (8, 8, 8, 32), inner_vectors: tuple[int, ...] = (8, 8, 8, 32),
        own_parts: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if components < 1 or blocks < 1:
            raise ValueError(f"{components} components and {blocks} blocks; 1 or more of each are needed")
        self.per_point, self.vectors, self.own_parts = per_point, vectors, own_parts
        self.components, self.em_rounds, self.draw = components, em_rounds, draw
        self.small_part, self.gradient, self.frames, self.near = small_part, gradient, frames, near
        self.variances = [variances[min(i, len(variances) - 1)] for i in range(blocks + 1)]
        given = inputs - 3 * vectors - int(own_parts)
        unit = components ** (1 / 3)  # parts are so many times smaller than the cloud, which has size 1
        a, b = 0, 0
        layers = []
        for block in range(blocks):
            out_a, out_b = scalars[min(block, len(scalars) - 1)], inner_vectors[min(block, len(inner_vectors) - 1)]
            layers.append(PiecewiseLayer(given + a, vectors + b, out_a, out_b, frames, near, widths, head, unit))
            a, b = out_a, out_b
        self.blocks = nn.ModuleList(layers)
        self.decoder = PiecewiseLayer(given + a, vectors + b, outputs, 0, frames, near, widths, head, unit)
        self.trace: Trace | None = None
        self.beside = False
        self.generator: torch.Generator | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without what the last pass left."""
        return {**super().__getstate__(), "trace": None, "generator": None}

    def parted(self, Y: Tensor, number: int, mask: Tensor | None) -> Partition:
        """The partition before a block; later blocks drop heavier components."""
        return partition(
            Y, self.components, self.variances[number], self.em_rounds, mask, lighter=LIGHT * 2**number,
            gradient=self.gradient if self.training else "none", draw=self.draw, generator=self.generator,
        )  # fmt: skip

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        B, n, _ = pos.shape
        there = torch.ones(B, n, dtype=torch.bool, device=pos.device) if mask is None else mask
        cloud = torch.nonzero(there)[:, 0]
        X = pos[there]
        v = 3 * self.vectors
        extra = X.new_zeros(len(X), 0) if x is None else x[there]
        normals = extra[:, :v].unflatten(1, (-1, 3)) if v else X.new_zeros(len(X), 0, 3)
        given = extra[:, v:-1] if self.own_parts else extra[:, v:]
        told = self._told(extra[:, -1], cloud) if self.own_parts else None
        scalars, vectors = given, normals
        trace = Trace([], [], [], [], 0.0, 1.0)
        small, gap = 0.0, 1.0
        seeds = X
        answer = X
        for number, layer in enumerate([*self.blocks, self.decoder]):
            W = None
            if told is None:
                Y = pos if number == 0 else pos.new_zeros(B, n, 3).masked_scatter(there[..., None], seeds)
                found = self.parted(Y, number, mask)
                k = found.log_r.shape[2]
                part, parts = found.part[there] + k * cloud, B * k
                W = found.W[there] if torch.is_grad_enabled() and found.W.requires_grad else None
                trace.uncertainty.append(found.uncertainty[there])
                trace.components.append(found.mixture.alive)
            else:
                part, parts = told
                trace.uncertainty.append(X.new_zeros(len(X)))
                trace.components.append(part.new_tensor([parts]))
            if self.small_part == "merge":
                part = self._merged(X, part, parts, cloud, B)
            part, parts = _renumbered(part)
            seen = views(X, part, parts, self.frames, self.near)
            small, gap = max(small, float(seen.small.double().mean())), min(gap, float(seen.frame.gap.min()))
            out = layer(X, scalars, vectors, seen, W)
            trace.parts.append(part)
            if number < len(self.blocks):
                seeds = out.seeds
                trace.seeds.append(seeds)
                scalars, vectors = torch.cat([given, out.scalars], 1), torch.cat([normals, out.vectors], 1)
            else:
                answer = out.scalars
        self.trace = trace._replace(small=small, gap=gap)
        if not self.per_point:
            count = total_by(torch.ones_like(answer[:, :1]), cloud, B)
            return total_by(answer, cloud, B) / count
        if self.beside:
            unsure = torch.stack(trace.uncertainty).mean(0)
            answer = torch.cat([answer, unsure[:, None].to(answer.dtype)], 1)
        full = pos.new_zeros(B, n, answer.shape[1])
        full[there] = answer
        return full

    @staticmethod
    def _told(column: Tensor, cloud: Tensor) -> tuple[Tensor, int]:
        pairs = torch.stack([cloud, column.long()], 1)
        _, part = torch.unique(pairs, dim=0, return_inverse=True)
        return part, int(part.max()) + 1

    @staticmethod
    def _merged(X: Tensor, part: Tensor, parts: int, cloud: Tensor, B: int) -> Tensor:
        if B == 1:
            return merged_small(X, part, parts)
        found = torch.empty_like(part)
        for b in range(B):  # never into a part of another cloud
            rows = cloud == b
            found[rows] = merged_small(X[rows], _renumbered(part[rows])[0], int(rows.sum())) + b * len(X)
        return found


def _renumbered(part: Tensor) -> tuple[Tensor, int]:
    """Numbers without gaps, and how many."""
    names, found = torch.unique(part, return_inverse=True)
    return found, len(names)


def pieces(X: Tensor, part: Tensor, k: int = 8) -> Tensor:
    """int64 [N]: connected pieces of each part, in the graph of its k nearest points: two arms of one name are two pieces."""
    import scipy.sparse as sp
    from scipy.sparse.csgraph import connected_components

    near = neighbours(X, part, k).cpu().numpy()
    rows, columns = np.nonzero(near < len(X))
    graph = sp.coo_matrix((np.ones(len(rows), bool), (rows, near[rows, columns])), shape=(len(X), len(X)))
    return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64)).to(X.device)


def seed_loss(trace: Trace, X: Tensor, truth: Tensor, cloud: Tensor, apart: bool = False) -> Tensor:
    """sum over blocks of the mean squared distance of the seeds from the centres of the true parts (`apart`: of their connected pieces).

    X [N, 3], truth int64 [N] (below 0: unknown, left out), cloud int64 [N].
    """
    known = truth >= 0
    if not bool(known.any()):
        return X.sum() * 0
    part, parts = _renumbered((truth[known] + 1) + cloud[known] * (int(truth.max()) + 2))
    if apart:
        part, parts = _renumbered(pieces(X[known], part))
    centre = total_by(X[known], part, parts) / total_by(torch.ones_like(X[known][:, :1]), part, parts)
    wanted = centre[part]
    values = [(seeds[known] - wanted).square().sum(1).mean() for seeds in trace.seeds]
    found: Tensor = torch.stack(values).sum()
    return found


def motion_of_parts(
    part: Any, generator: torch.Generator | None = None, far: float = 5.0, reflect: bool = True
) -> tuple[Tensor, Tensor]:
    """A random motion of E(3) (SE(3) without `reflect`) for each part: R float64 [parts, 3, 3], t [parts, 3], |t| about `far`."""
    many = int(torch.as_tensor(part).max()) + 1
    Q, upper = torch.linalg.qr(torch.randn(many, 3, 3, dtype=torch.float64, generator=generator))
    R = Q * upper.diagonal(dim1=1, dim2=2).sign()[:, None]
    if not reflect:
        R = R * torch.linalg.det(R).sign()[:, None, None]
    t = torch.randn(many, 3, dtype=torch.float64, generator=generator)
    return R, far * t / t.norm(dim=1, keepdim=True)
