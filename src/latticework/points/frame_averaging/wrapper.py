"""Frame Averaging around any network: exact invariance or equivariance, from a few views of the input instead of a whole group."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latticework.layers.frames import GAP, KINDS, Frame, Motions, Orderings, Product, Sn

from ..network import gather, nearest

Degenerate = Literal["warn", "error", "ignore"]


class FrameWarning(UserWarning):
    """A frame is nearly degenerate: the symmetry of what was averaged over it is not to be relied on."""


class FrameAveraging(nn.Module):
    """``1/|F(X)| sum_{g in F(X)} g phi(g^-1 X)`` for a network phi of the user's own: exactly symmetric under the group.

        net = FrameAveraging(my_net, SE3(), output="vectors")
        net(points)                                   # my_net sees [B 4, n, 3], and gives [B 4, n, 3]

    All elements go through phi as one batch, [B |F|, ...], the elements of a cloud side by side. If phi is symmetric already nothing
    changes. (Equations 3 and 4 of Puny et al.; section 3 for the groups.)

    group       `E3()`, `SE(d)`, `O3()`, `SO(d)`, `Translations()`, `Scale()`, `Sn()`, a `Finite` group, products of them
    inputs      how an element acts on each argument: "points" [B, n, d] (the first one makes the frame), "vectors" (velocities),
                "directions" (normals: not scaled), "invariant" (anything), and for S_n "graph" [B, n, n] and "nodes" [B, n, ...];
                the last axis of what turns is d, as [B, n, c, d] for c vectors a point. Left out: points alone; for S_n a graph, and
                nodes beside it
    output      the same words for the answer, or a tuple of them for a tuple of answers: "invariant" for anything that must not move
                (also one a point, [B, n, k], since frames of motions leave the numbering alone), "points", "vectors", "directions";
                in the singular for one a cloud ([B, d]); for S_n "nodes" for rows that move with the nodes
    samples     elements that are averaged: none for all; k: drawn for each cloud at each call (an unbiased estimate)
    train_samples   the same while training; 1 trains at the cost of the bare network
    own_draws   an attribute: in eval mode each cloud's draw is its own, the same in every batch; else torch's generator draws
    at_once     in eval mode without gradients, so many clouds (an element of a cloud counts as one) go through phi at a time: saves memory,
                and time where one batch of all would not fit a cache; none: all as one batch. phi must then answer each by itself
    degenerate  what a frame gap below 1e-6 does: "warn", "error", "ignore"; `last_gap` [B] holds the gaps of the last call
    same_dropout    `nn.Dropout` modules of phi draw one mask for all elements of a cloud or graph, without which training mode is not
                    equivariant (a dropout that phi calls as a function cannot be seen, the mask of an AlphaDropout not be shared:
                    switch them off)

    BatchNorm within phi takes its statistics over all elements and clouds at once: shared, so that they are symmetric, too.
    A single cloud may come without its batch axis, [n, d] or a graph [n, n] (and all else without it). Weights [B, n] (0: padding)
    count in the frame alone. ``ValueError``: NaN, no points, no clouds, a dimension other than the group's or above 8, an adjacency that is not square or not
    symmetric, kinds that do not fit the arguments.
    """

    last_gap: Tensor | None

    def __init__(
        self, backbone: nn.Module, group: Any, output: str | Sequence[str] = "invariant", inputs: Sequence[str] | None = None, *,
        samples: int | None = None, train_samples: int | None = None, at_once: int | None = None, degenerate: Degenerate = "warn",
        same_dropout: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.group = backbone, group
        self.output = (output,) if isinstance(output, str) else tuple(output)
        self.single = isinstance(output, str)
        self.inputs = None if inputs is None else tuple(inputs)
        for kind in (*self.output, *(self.inputs or ())):
            if kind not in KINDS:
                raise ValueError(f"{kind!r} is no kind of tensor; there are {', '.join(KINDS)}")
        for number in (samples, train_samples, at_once):
            if number is not None and number < 1:
                raise ValueError(f"at least 1 element is averaged, not {number}; None takes all")
        if degenerate not in ("warn", "error", "ignore"):
            raise ValueError(f"degenerate is warn, error or ignore, not {degenerate!r}")
        self.samples, self.train_samples, self.at_once = samples, train_samples, at_once
        self.degenerate, self.same_dropout = degenerate, same_dropout
        self.own_draws = False
        self.last_gap = None

    def forward(self, *given: Any, weights: Tensor | None = None) -> Any:
        kinds = self._kinds(given)
        first = self._first("points", kinds, given)
        first = self._first("graph", kinds, given) if first is None else first
        lone = first is not None and first.ndim == 2
        if lone:
            given = tuple(v.unsqueeze(0) if isinstance(v, Tensor) else v for v in given)
            weights = None if weights is None else weights.unsqueeze(0)
        given = tuple(_ready(v, kind) for v, kind in zip(given, kinds, strict=True))
        frame = self.frame(*given, weights=weights)
        self._look_at(frame.gap)
        seen = [frame.batch(v, kind) if isinstance(v, Tensor) else v for v, kind in zip(given, kinds, strict=True)]
        with self._shared_dropout(frame):
            answers = self._answers(seen, frame.elements)
        if len(answers) != len(self.output):
            raise ValueError(f"the network gives {len(answers)} answers, output names {len(self.output)} kinds")
        found = [frame.unbatch(z, kind) for z, kind in zip(answers, self.output, strict=True)]
        found = [v.squeeze(0) for v in found] if lone else found
        return found[0] if self.single else tuple(found)

    def _answers(self, seen: Sequence[Any], rows: int) -> tuple[Tensor, ...]:
        """The network's answers to all elements, in pieces where that is asked for and allowed."""

        def call(*given: Any) -> tuple[Tensor, ...]:
            out = self.backbone(*given)
            return (out,) if isinstance(out, Tensor) else tuple(out)

        step = self.at_once
        if step is None or step >= rows or self.training or torch.is_grad_enabled():
            return call(*seen)
        pieces = [
            call(*(v[start : start + step] if isinstance(v, Tensor) else v for v in seen)) for start in range(0, rows, step)
        ]
        return tuple(torch.cat(some) for some in zip(*pieces, strict=True))

    def frame(self, *given: Any, weights: Tensor | None = None) -> Frame | Orderings:
        """The elements that a call with these (batched) arguments averages over."""
        kinds = self._kinds(given)
        k = self.train_samples if self.training and self.train_samples is not None else self.samples
        own = self.own_draws and not self.training
        points, A, x = (self._first(kind, kinds, given) for kind in ("points", "graph", "nodes"))
        if weights is not None and points is not None and weights.shape != points.shape[:2]:
            raise ValueError(f"weights of shape {list(weights.shape)} beside points {list(points.shape)}: one a point is needed")
        if isinstance(self.group, Sn):
            if A is None:
                raise ValueError("Sn takes its frame from a graph [B, n, n]: name it in inputs")
            return self.group.frame(A, x, samples=k, own=own)
        if points is None:
            raise ValueError(f"{self.group.name} takes its frame from points [B, n, d]: name them in inputs")
        if isinstance(self.group, Product):
            return self.group.frame(points, A, x, weights, samples=k, own=own)
        frame: Frame = self.group.frame(points, weights)
        return frame if k is None else frame.sample(k, own=own)

    @staticmethod
    def _first(kind: str, kinds: Sequence[str], given: Sequence[Any]) -> Any:
        return next((v for v, mine in zip(given, kinds, strict=True) if mine == kind and isinstance(v, Tensor)), None)

    def _kinds(self, given: Sequence[Any]) -> tuple[str, ...]:
        if not given:
            raise ValueError("nothing was given")
        if self.inputs is None:
            usual = {Sn: ("graph", "nodes"), Product: ("points", "graph", "nodes")}.get(type(self.group), ("points",))
            if len(given) > len(usual):
                raise ValueError(
                    f"{len(given)} arguments: say with inputs=(...) how {self.group.name} acts on each: {', '.join(KINDS)}"
                )
            return usual[: len(given)]
        if len(given) != len(self.inputs):
            raise ValueError(f"{len(given)} arguments, inputs names {len(self.inputs)}: {', '.join(self.inputs)}")
        return self.inputs

    def _look_at(self, gap: Tensor) -> None:
        self.last_gap = gap.detach()
        if self.degenerate == "ignore":
            return
        low = torch.nonzero(self.last_gap.flatten() < GAP).flatten()
        if not len(low):
            return
        says = (
            f"{len(low)} of {gap.numel()} frames are nearly degenerate (gap below {GAP:g}, cloud {int(low[0])} first): a repeated "
            "eigenvalue leaves the axes open, so the answer may change when such a cloud is turned (not if its points lie on a line "
            "and nothing else turns with them)"
        )
        if self.degenerate == "error":
            raise ValueError(says)
        warnings.warn(says, FrameWarning, stacklevel=3)

    @contextlib.contextmanager
    def _shared_dropout(self, frame: Frame | Orderings) -> Iterator[None]:
        """One dropout mask for all elements of a cloud, in every dropout module of the network."""
        modules = [m for m in self.backbone.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0]
        owners = frame.owners
        M, B = len(owners), len(frame.gap)
        if not (self.training and self.same_dropout and modules) or M == B:
            yield
            return

        def shared(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            X = args[0]
            r, rest = divmod(len(X), M)
            if rest or not r:
                raise ValueError(f"a dropout of {len(X)} rows in {M} elements: set same_dropout=False, or its p to 0")
            ones = X.new_ones(B * r, *X.shape[1:])
            mask = type(module).forward(module, ones).unflatten(0, (B, r))
            return (X.unflatten(0, (M, r)) * mask[owners]).flatten(0, 1)

        for module in modules:
            if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
                raise ValueError(f"the mask of {type(module).__name__} cannot be shared: set same_dropout=False, or its p to 0")
        inplace = [m for m in modules if m.inplace]
        handles = [m.register_forward_hook(shared) for m in modules]
        try:
            for module in inplace:  # the hook needs what the module was given
                module.inplace = False
            yield
        finally:
            for module in inplace:
                module.inplace = True
            for handle in handles:
                handle.remove()


def _ready(v: Any, kind: str) -> Any:
    """An argument as the frame takes it: what turns is floating, and there is a cloud or graph."""
    if not isinstance(v, Tensor):
        return v
    if kind in ("points", "graph") and not len(v):
        raise ValueError(f"{kind} of shape {list(v.shape)}: a batch of none")
    turns = kind not in ("invariant", "graph", "nodes")
    return v.to(torch.get_default_dtype()) if turns and not v.is_floating_point() else v


class LayerwiseFrameAveraging(nn.Module):
    """Frames that are taken anew between the layers of a network, so that each layer sees the vectors of the one before.

    embed: [M, n, i 3] -> [M, n, 3 c]; each layer [M, n, 3 c] -> [M, n, 3 c] (with the invariant extras as further arguments, repeated
    for the elements); decode: [M, n, 3 c] -> [M, n, 3]. After each layer but the last, the hidden state is read as c vectors a
    point, mapped back and averaged over the elements; the n c vectors, centred on their mean, make the next frame. The last layer's frame
    maps the decoded displacement back, and `output` = "points" adds the centre of the first points. (Section 3.2; the form of the official
    n-body network.)

    ``forward(X, *vectors, extras=(), weights=None)``: points X [B, n, 3] and vectors [B, n, 3] (or [B, n, v, 3]) are embedded side by
    side -> [B, n, 3]; points of weight 0 are padding.
    """

    def __init__(
        self, embed: nn.Module, layers: Sequence[nn.Module], decode: nn.Module, group: Motions, output: str = "points"
    ) -> None:
        super().__init__()
        if output not in ("points", "vectors"):
            raise ValueError(f"the answer is points or vectors, not {output!r}")
        if not group.translations or group.scales or group.linear == "none":
            raise ValueError(f"frames of layers are those of E(d) or SE(d), not of {group.name}")
        self.embed, self.layers, self.decode = embed, nn.ModuleList(layers), decode
        self.group, self.output = group, output
        self.last_gap: Tensor | None = None

    def forward(self, X: Tensor, *vectors: Tensor, extras: Sequence[Tensor] = (), weights: Tensor | None = None) -> Tensor:
        frame = self.group.frame(X, weights)
        centre, gap, d = frame.t, frame.gap, X.shape[-1]
        seen = [frame.batch(X, "points"), *(frame.batch(v, "vectors").flatten(2) for v in vectors)]
        more = [frame.batch(v, "invariant") for v in extras]
        h = self.embed(torch.cat(seen, -1))
        for number, layer in enumerate(self.layers):
            h = layer(h, *more)
            if number == len(self.layers) - 1:
                break
            c, rest = divmod(h.shape[-1], d)
            if rest:
                raise ValueError(f"a hidden state of {h.shape[-1]} numbers is no whole number of {d}-vectors")
            mean = frame.unbatch(h.unflatten(-1, (c, d)), "vectors")  # [B, n, c, d]
            frame = self.group.frame(mean.flatten(1, 2), None if weights is None else weights.repeat_interleave(c, 1))
            gap = torch.minimum(gap, frame.gap)
            h = frame.batch(mean, "points").flatten(-2)
        self.last_gap = gap
        found = frame.unbatch(self.decode(h), "vectors")
        return found + centre.to(found.dtype).unsqueeze(1) if self.output == "points" else found


class LocalVectors(nn.Module):
    """c vectors a point from its k nearest neighbours, each neighbourhood in a frame of its own: [B, n, d] -> [B, n, c, d].

    A shared network of the k framed neighbours (k d -> d c/2 -> d c -> d c), averaged over the elements: equivariant under O(d) (or SO(d)),
    unchanged by shifts. (The local stage of FA-Local-PointNet: k = 20, c = 42.)
    """

    def __init__(self, vectors: int = 42, k: int = 20, group: Motions | None = None, d: int = 3) -> None:
        super().__init__()
        self.group = Motions(d, "O", True) if group is None else Motions(d, group.linear, True, scales=group.scales)
        self.k, self.vectors = k, vectors
        width = d * max(vectors // 2, 1)
        self.net = nn.Sequential(
            nn.Linear(k * d, width), nn.ReLU(), nn.Linear(width, d * vectors), nn.ReLU(), nn.Linear(d * vectors, d * vectors)
        )

    def forward(self, X: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            index = nearest(X, self.k, mask)
        short = self.k - index.shape[-1]
        if short:  # a cloud of fewer points: the point itself again, as where padding is masked
            index = torch.cat([index, index[..., :1].expand(*index.shape[:-1], short)], -1)
        near = gather(X, index)  # [B, n, k, d]
        frame = self.group.frame(near)
        Z = frame.into(near, "points").flatten(-2)  # [B, n, F, k d]
        return frame.average(self.net(Z).unflatten(-1, (self.vectors, X.shape[-1])), "vectors")
