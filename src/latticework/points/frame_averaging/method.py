"""The recipe: any backbone of the points wing (or, on S_n, of the graphs wing) inside Frame Averaging, trained as it is by itself.

A backbone is a method that builds a bare net. It is subclassed on the spot: the subclass's net is the same net behind frames, and what
else it does (features, batches, loss, choice of the epoch) is what it does without them. So wrapper and baseline differ in frames alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import PrivateAttr, field_validator
from torch import Tensor, nn

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Model, Predictor
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.layers.frames import GAP, Motions, Sn, equivariance_error, frame_size, group_of

from ..baselines import charge_products, pairs_of
from ..network import POINTS_AT_ONCE, PointBackbone, collate
from .graphs import FramedGraphs, add_frames
from .wrapper import FrameAveraging, LayerwiseFrameAveraging, LocalVectors

Samples = int | Literal["all"]
POINT_TASKS = ("normal-estimation", "point-classification", "part-segmentation", "n-body")
GRAPH_TASKS = ("graph-classification", "graph-regression", "subgraph-counting")
EQUIVARIANT = ("normal", "position")  # what turns with the points


class Socket(nn.Module):
    """A point backbone with its columns apart: (pos, vectors [M, n, v, 3], rest, mask) -> its answer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pos: Tensor, vectors: Tensor | None, rest: Tensor | None, mask: Tensor | None) -> Tensor:
        columns = ([] if vectors is None else [vectors.flatten(-2)]) + ([] if rest is None else [rest])
        found: Tensor = self.net(pos, torch.cat(columns, -1) if columns else None, mask)
        return found


class FramedPoints(PointBackbone):
    """A point backbone behind frames, itself a point backbone: (pos [B, n, 3], x [B, n, F], mask [B, n]) -> as the backbone answers.

    The first `vectors` triples of x turn with the points, the rest are invariant; padding counts for nothing. With `local`, c vectors a
    point from its neighbourhood (`LocalVectors`) stand before the others in what the backbone reads. `kind` of the answer: vectors, or
    invariant. `lowest_gap`: the smallest frame gap seen so far.
    """

    def __init__(
        self, net: nn.Module, group: Motions, kind: str, vectors: int, local: LocalVectors | None, train_samples: int | None
    ) -> None:
        super().__init__()
        self.per_point, self.vectors = bool(getattr(net, "per_point", kind == "vectors")), vectors
        self.local = local
        self.average = FrameAveraging(
            Socket(net), group, kind, ("points", "vectors", "invariant", "invariant"), train_samples=train_samples,
            degenerate="ignore",
        )  # fmt: skip
        self.lowest_gap = 1.0

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        v = 3 * self.vectors
        turning = [] if x is None or not v else [x[..., :v].unflatten(-1, (self.vectors, 3))]
        rest = None if x is None or x.shape[-1] == v else x[..., v:]
        if mask is not None:
            pos = pos.masked_fill(~mask[..., None], 0.0)
        if self.local is not None:
            turning.insert(0, self.local(pos, mask))
        self.average.at_once = max(1, POINTS_AT_ONCE // max(pos.shape[1], 1))
        both = torch.cat(turning, 2) if turning else None
        found: Tensor = self.average(pos, both, rest, mask, weights=None if mask is None else mask.to(pos.dtype))
        assert self.average.last_gap is not None
        self.lowest_gap = min(self.lowest_gap, float(self.average.last_gap.min()))
        return found


class MessageLayer(nn.Module):
    """One round of a `ParticleGNN`: (h [M, n, w], edges [M, n, n, e], pairs [M, n, n, 1]) -> [M, n, w]."""

    def __init__(self, message: nn.Module, update: nn.Module) -> None:
        super().__init__()
        self.message, self.update = message, update

    def forward(self, h: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        n = h.shape[1]
        both = torch.cat([h[:, :, None].expand(-1, -1, n, -1), h[:, None].expand(-1, n, -1, -1), edges], 3)
        found: Tensor = h + self.update(torch.cat([h, (self.message(both) * pairs).sum(2)], 2))
        return found


class FramedLayers(PointBackbone):
    """A particle network whose every layer stands in a frame of its own (`LayerwiseFrameAveraging`), itself a point backbone.

    Edges are read as the bare network reads them: products of the invariant columns, squared distance. Answers displacements.
    """

    per_point = True

    def __init__(self, net: Any, group: Motions) -> None:
        super().__init__()
        lacking = [name for name in ("embed", "message", "update", "decode") if not hasattr(net, name)]
        if lacking:
            raise UserError(
                f"layerwise frames stand between the layers of a network of messages; {type(net).__name__} lacks "
                f"{', '.join(lacking)}: use backbone=particle-gnn"
            )
        self.vectors = int(net.vectors)
        layers = [MessageLayer(m, u) for m, u in zip(net.message, net.update, strict=True)]
        width = int(net.decode[0].in_features)
        if width % 3:
            raise UserError(f"layerwise frames read {width} hidden numbers as vectors; give backbone.width a multiple of 3")
        self.average = LayerwiseFrameAveraging(net.embed, layers, net.decode, group, "vectors")
        self.lowest_gap = 1.0

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            pos = pos.masked_fill(~mask[..., None], 0.0)
        pairs, products = pairs_of(pos.shape[1], mask).to(pos), charge_products(x, self.vectors)
        held = [(pos[:, :, None] - pos[:, None]).square().sum(3, keepdim=True)]
        edges = torch.cat(held if products is None else [products, *held], 3)
        turning = [] if x is None or not self.vectors else [x[..., : 3 * self.vectors].unflatten(-1, (self.vectors, 3))]
        weights = None if mask is None else mask.to(pos.dtype)
        found: Tensor = self.average(
            pos, *turning, extras=(edges, pairs.expand(len(pos), -1, -1, -1)), weights=weights
        )  # fmt: skip
        assert self.average.last_gap is not None
        self.lowest_gap = min(self.lowest_gap, float(self.average.last_gap.min()))
        return found


@functools.cache
def framed(kind: type[Any]) -> type[Any]:
    """The subclass of a backbone whose net stands behind frames."""
    on_graphs = getattr(kind, "encode_head", False)

    class Framed(kind):  # type: ignore[misc]
        _outer: Any = PrivateAttr(default=None)

        def model(self, method: Any, schema: Mapping[str, Any], net: nn.Module, *rest: Any) -> FramedModel:
            return FramedModel(self._outer, schema, kind.model(self, schema, net, *rest))

        if on_graphs:

            def settled(self, train: Part) -> dict[str, Any]:
                schema: dict[str, Any] = super().settled(train)
                return schema | {"frame positions": max((int(g.num_nodes or 0) for g in train.data), default=1)}

            def prepare(self, graphs: Sequence[Any], schema: Mapping[str, Any]) -> list[Any]:
                return add_frames(super().prepare(graphs, schema), self._outer.group_value)

            def redraw(self, graphs: Any, schema: Mapping[str, Any], epoch: int, run: Run) -> Any:
                drawn = super().redraw(graphs, schema, epoch, run)
                return None if drawn is None else add_frames(drawn, self._outer.group_value)

            def module(self, inputs: int, outputs: int, schema: Mapping[str, Any], *more: Any) -> nn.Module:
                places = schema["frame positions"]
                net = super().module(inputs + places, outputs, schema, *more)
                return FramedGraphs(net, places, self._outer.draws, self._outer.training_samples)
        else:

            def module(self, inputs: int, outputs: int, schema: Mapping[str, Any], *more: Any) -> nn.Module:
                return self._outer.around(super().module, inputs, outputs, schema, *more)

    Framed.__name__ = Framed.__qualname__ = f"Framed{kind.__name__}"
    return Framed


class FramedModel(Model):
    """A trained backbone behind frames; `samples` may change after the fit."""

    def __init__(self, method: FrameAveragingMethod, schema: Mapping[str, Any], inner: Any) -> None:
        self.method: FrameAveragingMethod = method
        self.schema, self.inner = schema, inner
        self.scope = inner.scope

    def predict(self, part: Part) -> Any:
        """As the backbone's model. Where elements are drawn, each cloud or graph draws its own, the same in every call and company."""
        net = self.inner.net
        samples = None if self.method.samples == "all" else int(self.method.samples)
        if not isinstance(net, FramedLayers):
            drawing = net if isinstance(net, FramedGraphs) else net.average
            drawing.samples, drawing.own_draws = samples, True
        was = self.inner.method
        self.inner.method = self.method.inner()
        try:
            return self.inner.predict(part)
        finally:
            self.inner.method = was

    def state(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.inner.state()
        return found

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        inner = method.inner()
        return cls(method, schema, type(method.backbone).model.restore(inner, schema, state))

    def parameters(self) -> int:
        return int(self.inner.parameters())

    def explain(self, part: Part) -> Findings:
        """The smallest frame gap and the measured equivariance error; on S_n the sizes of the frames."""
        found = self.inner.explain(part)
        scalars, rows = self.on_graphs(part) if isinstance(self.inner.net, FramedGraphs) else self.on_points(part)
        return Findings({**found.scalars, **scalars}, {**found.tables, "frames": rows}, found.figures, found.files)

    def on_points(self, part: Part, most: int = 200, turned: int = 8) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Gap of the first clouds; the error of one random element of the group for each of the first few."""
        net, group = self.inner.net, self.method.group_value
        rows, worst = [], 0.0
        generator = torch.Generator().manual_seed(0)
        asked = [int(i) for i in part.query.rows][:most]
        for place, i in enumerate(asked):
            batch = self.inner.method.prepared(collate([part.data[i]], self.schema), self.schema)
            gap = float(group.frame(batch.pos).gap.min())
            row: dict[str, Any] = {"cloud": str(part.query.ids[place]), "points": batch.pos.shape[1], "gap": gap}
            if place < turned:
                inputs = [("points", batch.pos)]
                if batch.x is not None:
                    v = 3 * net.vectors
                    inputs += [("vectors", batch.x[..., :v].unflatten(-1, (-1, 3)))] if v else []
                    inputs += [("invariant", batch.x[..., v:])] if batch.x.shape[-1] > v else []
                kinds = [kind for kind, _ in inputs]

                def answer(*given: Tensor, kinds: list[str] = kinds) -> Tensor:
                    columns = [v.flatten(-2) if kind == "vectors" else v for kind, v in zip(kinds[1:], given[1:], strict=True)]
                    out: Tensor = net(given[0], torch.cat(columns, -1) if columns else None)
                    return out

                kind = "vectors" if self.schema["output"] in EQUIVARIANT else "invariant"
                if isinstance(net, FramedPoints):
                    net.average.samples = None
                row["error"] = equivariance_error(answer, group, inputs, kind, generator)
                worst = max(worst, row["error"])
            rows.append(row)
        scalars = {"smallest frame gap": min((r["gap"] for r in rows), default=1.0), "equivariance error": worst}
        return scalars, rows

    def on_graphs(self, part: Part, most: int = 200) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """log10 |F| of the first graphs, how many framed graphs are listed, and how far answers move when nodes are renumbered."""
        some = list(part.data[:most])
        made = self.method.inner().prepare(some, self.schema)
        rows = []
        for place, graph in enumerate(made):
            size = frame_size(graph.frame_rank.numpy())
            rows.append({
                "graph": str(part.query.ids[place]), "nodes": int(graph.num_nodes), "log10 of orderings": _log10(size),
                "framed graphs listed": int(graph.frame_copies),
            })  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        few = part._replace(data=some[:32], query=part.query._replace(rows=part.query.rows[:32], ids=part.query.ids[:32]))
        moved = few._replace(data=[_renumbered(g, generator) for g in few.data])
        error = float(np.abs(np.asarray(self.predict(few)) - np.asarray(self.predict(moved))).max(initial=0.0))
        sizes = [r["log10 of orderings"] for r in rows] or [0.0]
        scalars = {
            "log10 of orderings, median": float(np.median(sizes)), "log10 of orderings, largest": max(sizes),
            "frames listed whole": float(np.mean([r["framed graphs listed"] > 0 for r in rows])) if rows else 1.0,
            "largest change of an answer under renumbering": error,
        }  # fmt: skip
        return scalars, rows


def _log10(size: int) -> float:
    """Of an integer that may be beyond any float."""
    import math

    return math.log10(size)


def _renumbered(graph: Any, generator: torch.Generator) -> Any:
    new, order = copy.copy(graph), torch.randperm(int(graph.num_nodes), generator=generator)
    new.edge_index = order.argsort()[graph.edge_index]
    if graph.get("x") is not None:
        new.x = graph.x[order]
    return new


class FrameAveragingMethod(Backbone):
    """A backbone inside Frame Averaging (Puny et al., ICLR 2022): exactly symmetric under the group, whatever the backbone.

    On points the groups are those of motions; 8 views of each cloud for E3 and O3, 4 for SE3 and SO3, all in one batch, so a fit and an
    answer cost as many times the backbone's. ``train_samples=1`` trains at the backbone's cost. On graphs ``group=Sn`` numbers the nodes in the
    orders of their spectral keys and gives the backbone these numbers as one-hot columns (GIN+ID: ``backbone=gin``); where
    a graph has too many orderings to list, one is drawn at each access in training, and `draws` of them answer.

    A sampled cloud whose scatter has a nearly repeated eigenvalue (gap below 1e-6) has no stable frame: the fit's notes and `explain` say
    the smallest gap.
    """

    name: ClassVar[str] = "frame-averaging"
    revision: ClassVar[int] = 2  # 1 drew the baselines' dropout for each view
    tasks: ClassVar[tuple[str, ...]] = (*POINT_TASKS, *GRAPH_TASKS)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[FramedModel]] = FramedModel

    backbone: Backbone = setting("pointnet", "the network that is averaged: pointnet, dgcnn, …; with group=Sn gin, …")
    group: str = setting("E3", "E3, SE3, O3, SO3, Translations, Scale, a product as SE3*Scale; on graphs Sn")
    output: Literal["auto", "invariant", "equivariant"] = setting("auto", "what the answer does; auto: as the task asks")
    local: int | None = setting(None, "vectors from frames of so many nearest neighbours of each point stand beside; none, or 20")
    vectors: int = setting(42, "local: vectors of a point", ge=1, le=1024)
    layerwise: bool = setting(False, "a frame of its own for each layer (backbone=particle-gnn), not one for the whole network")
    train_samples: Samples | Literal["auto"] = setting(
        "auto", "elements in training: all, or so many drawn at each access; auto: all, on Sn 1"
    )
    draws: int = setting(
        8, "group=Sn: orderings drawn of a frame that is too large to list, where all are asked", ge=1, le=10_000
    )
    uniform: bool = setting(False, "group=Sn: no keys, all orderings are drawn (group averaging, the paper's control)")
    samples: Samples = setting("all", "elements that answer: all, or so many drawn", late=True)

    @field_validator("group")
    @classmethod
    def _group(cls, group: str) -> str:
        group_of(group)
        return group.replace(" ", "")

    @field_validator("local")
    @classmethod
    def _local(cls, local: int | None) -> int | None:
        if local is not None and not 2 <= local <= 1024:
            raise ValueError("a neighbourhood has 2 to 1024 points (20 in the paper), or there is none")
        return local

    @field_validator("samples", "train_samples")
    @classmethod
    def _samples(cls, samples: int | str) -> int | str:
        if not isinstance(samples, str) and samples < 1:
            raise ValueError("at least 1 element is averaged, or all")
        return samples

    @property
    def group_value(self) -> Any:
        return Sn(directed=True, uniform=self.uniform) if self.group == "Sn" else group_of(self.group)

    @property
    def training_samples(self) -> int | None:
        if self.train_samples == "auto":
            return 1 if self.group == "Sn" else None
        return None if self.train_samples == "all" else int(self.train_samples)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        names, known = set(task.names()), self.backbone.name
        graphs = bool(names & set(GRAPH_TASKS))
        if graphs != (self.group == "Sn"):
            wanted = "group=Sn and backbone=gin" if graphs else "group=E3, SE3, O3 or SO3 and backbone=pointnet or dgcnn"
            return f"group={self.group} does not act on what {task.name} asks about; use {wanted}"
        if not graphs and not isinstance(self.group_value, Motions):
            return f"group={self.group}: point networks are symmetric in their points already; leave Sn out"
        kind = type(self.backbone)
        if not (getattr(kind, "encode_head", False) if graphs else getattr(kind, "socket", "") == "points"):
            return f"backbone={known} has no socket for {'(A, x)' if graphs else 'points'} in, features out"
        if not names & set(self.backbone.tasks):
            return f"its backbone {known} is made for {', '.join(self.backbone.tasks)}"
        if getattr(kind, "computes_equals_once", False):
            return f"backbone={known} computes equal graphs once, which numbered nodes make different, and is symmetric already"
        if graphs and self.local is not None:
            return "local frames are of points; leave local out on graphs"
        if self.layerwise and (self.local is not None or self.group not in ("E3", "SE3") or "n-body" not in names):
            return "layerwise frames are those of E3 or SE3 on particles, without local ones"
        asked = "equivariant" if names & {"normal-estimation", "n-body"} else "invariant"
        if self.output not in ("auto", asked):
            return f"output={self.output}, and {task.name} asks for an answer that is {asked}"
        return self.backbone.refuses(task, facts)

    def inner(self) -> Any:
        """The backbone as a method whose net stands behind this one's frames."""
        kind = framed(type(self.backbone))
        made = kind.model_construct(**{name: getattr(self.backbone, name) for name in type(self.backbone).model_fields})
        made._outer = self
        return made

    def around(self, module: Any, inputs: int, outputs: int, schema: Mapping[str, Any], *more: Any) -> nn.Module:
        """The point backbone that `module` builds, behind frames."""
        if self.layerwise:
            return FramedLayers(module(inputs, outputs, schema, *more), self.group_value)
        local = None if self.local is None else LocalVectors(self.vectors, self.local, self.group_value)
        net = module(inputs + (0 if local is None else 3 * self.vectors), outputs, schema, *more)
        kind = "vectors" if schema["output"] in EQUIVARIANT else "invariant"
        return FramedPoints(net, self.group_value, kind, len(schema["vectors"]), local, self.training_samples)

    # -- what a method on graphs is asked by others (an untrained net needs its features, too) ---------------------------------
    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        found: nn.Module = self.inner().module(inputs, outputs, schema)
        return found

    def settled(self, train: Part) -> dict[str, Any]:
        found: dict[str, Any] = self.inner().settled(train)
        return found

    def prepare(self, graphs: Sequence[Any], schema: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = self.inner().prepare(graphs, schema)
        return found

    def build(self, train: Part, run: Run) -> nn.Module:
        found: nn.Module = self.inner().build(train, run)
        return found

    def fit(self, train: Part, valid: Part | None, run: Run) -> FramedModel:
        reason = None if run.task is None else self.refuses(run.task, {})
        if reason is not None:
            raise UserError(f"frame-averaging: {reason}")
        model: FramedModel = self.inner().fit(train, valid, run)
        net = model.inner.net
        if isinstance(net, FramedPoints | FramedLayers):
            run.notes.append(f"smallest frame gap in the fit: {net.lowest_gap:.3g}")
            if net.lowest_gap < GAP:
                run.notes.append(
                    f"a frame gap below {GAP:g}: a cloud's axes are open (a repeated eigenvalue), and its answer may change when it is turned"
                )
        return model
