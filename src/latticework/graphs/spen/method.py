"""SPEN as a recipe, and `ign`, the global network of the same maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import field_validator
from torch import nn
from torch_geometric.data import Data

from latticework.core.errors import UserError
from latticework.core.result import Findings
from latticework.core.svg import bars
from latticework.core.task import Part
from latticework.core.value import setting

from ..network import GraphFault, GraphModel, GraphNetwork, inputs_of, ready, told_by_id, with_features
from .egos import GraphError, egos_of, union_of, with_egos
from .network import SPEN, weight_size


def weight_sizes(sizes: Any, cap: int | str) -> list[int]:
    """The ego sizes that carry own weights: those of the train part (int64 [E]), larger ones than `cap` as one.

    ``cap="p90"``: their 90th percentile, any ``pK`` with K from 0 to 100; a number: that size.
    """
    most = int(np.percentile(sizes, float(cap[1:]), method="higher")) if isinstance(cap, str) else cap
    return np.unique(np.minimum(sizes, most)).tolist()  # type: ignore[no-any-return]


def checked_cap(cap: int | str) -> int | str:
    """`cap` as it may be written: a size of 1 or more, or a percentile, p0 to p100."""
    if isinstance(cap, int) and cap >= 1:
        return cap
    if isinstance(cap, str) and cap.startswith("p") and cap[1:].isdecimal() and int(cap[1:]) <= 100:
        return cap
    raise ValueError("give a size of 1 or more, or a percentile, p0 to p100")


class SPENModel(GraphModel):
    """A trained SPEN, which can say what its egos are."""

    def explain(self, part: Part) -> Findings:
        """Sizes of the egos asked about, the weights each takes, how many of them differ, and what is held against a global net."""
        graphs = ready(self.method, part, self.schema)
        if not graphs:
            return Findings()
        size = torch.cat([g.ego_size for g in graphs]).numpy()
        kinds = len(torch.cat([g.ego_class for g in graphs]).unique())
        own = self.schema["weight sizes"]
        nodes = np.array([int(g.num_nodes or 0) for g in graphs])
        values, counts = np.unique(size, return_counts=True)
        rows = [
            {"ego size": m, "egos": c, "weights of size": weight_size(m, own)}
            for m, c in zip(values.tolist(), counts.tolist(), strict=True)
        ]
        local, everywhere = float((size.astype(float) ** 2).sum()), float((nodes.astype(float) ** 2).sum())
        scalars = {
            "egos": len(size), "egos with different input in the first layer": kinds,
            "share of egos not computed again in the first layer": 1 - kinds / len(size),
            "floats a channel in egos": local, "floats a channel in a global network": everywhere,
            "global over local": everywhere / local,
        }  # fmt: skip
        figure = bars([str(r["ego size"]) for r in rows], [float(r["egos"]) for r in rows], "egos by size", "nodes in the ego")
        return Findings(scalars, {"ego sizes": rows}, {"egos by size": figure})


class SPENMethod(GraphNetwork):
    """All permutation-equivariant linear maps inside every node's ego network, weights shared by egos of one size.

    It tells apart graphs that message passing cannot where their egos differ: on sparse graphs with ``hops=2`` or more; with
    ``hops=1`` the egos of a graph without triangles are stars. It holds ``sum m^2`` numbers a channel over the egos, a global
    network of the same maps (`ign`) ``sum n^2`` over the graphs: less on sparse graphs with ``hops=1``, more on dense ones and with
    ``hops=2``. Look with ``latticework probe ego-sizes`` first.

    Adam; the learning rate falls to a tenth every `drop_every` epochs; the epoch with the best validation value is kept (the
    official runs take the mean over the last ten epochs on the test fold, which chooses on the test). Egos are found once a part.
    Those with equal input, up to the order of their nodes, are computed once in the first layer (`share`); later layers' inputs
    depend on the rest of the graph, so nothing is shared there. It changes no result. Where graphs have no node features, the
    diagonal of the first tensor holds a constant.

    Defaults are the official settings for most sets; ``spen:small`` is for a small machine.
    """

    name: ClassVar[str] = "spen"
    model: ClassVar[type[GraphModel]] = SPENModel
    reads_edges: ClassVar[bool] = False  # egos are found beforehand
    computes_equals_once: ClassVar[bool] = True

    width: int = setting(
        16, "channels that each map of a layer gives; two maps stand side by side", ge=1, le=4096, search=[8, 16, 32]
    )
    layers: int = setting(5, "local layers", ge=1, le=64, search=(2, 6))
    dropout: float = setting(0.5, "dropout in the head", ge=0, lt=1, search=(0.0, 0.6))
    lr: float = setting(6e-4, "learning rate", gt=0, le=1, search=(3e-4, 1e-2, "log"))
    epochs: int = setting(36, "at most", ge=1, le=100_000)
    drop_every: int = setting(30, "epochs after which the learning rate falls to a tenth, again and again; 0: never", ge=0)
    features: Literal["auto", "given", "degree", "constant"] = setting(
        "auto", "on the diagonal of the first tensor: given features; one-hot degree; a constant; auto: given, where there are none a constant"
    )  # fmt: skip
    hops: int = setting(1, "k: an ego holds the nodes within k hops of its root", ge=1, le=64, search=[1, 2])
    cap: int | str = setting("p90", "largest ego size with weights of its own; pK: the K-th percentile of the train part's sizes")
    max_ego: int = setting(200, "an ego with more nodes is an error", ge=1, le=100_000)
    hidden: tuple[int, ...] = setting((256, 128), "widths of the head's hidden layers")
    norm: Literal["graph", "none"] = setting(
        "graph", "GraphNorm after each layer (over all pairs of the graph, so it also knows how many there are), or none"
    )
    share: bool = setting(True, "compute egos with equal input once in the first layer; false: a control that costs time alone")

    _cap = field_validator("cap")(checked_cap)

    @field_validator("hidden", mode="before")
    @classmethod
    def _one_width(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int) else given

    @field_validator("hidden")
    @classmethod
    def _hidden(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 1 for width in given):
            raise ValueError("widths are 1 or more")
        return given

    whole: ClassVar[bool] = False

    def settled(self, train: Part) -> dict[str, Any]:
        rule = "constant" if self.features == "auto" and not train.schema["features"] else self.features
        schema = dict(train.schema) | inputs_of(rule, train.data, train.schema)
        sizes = told_by_id(train, lambda: self._found(lambda: egos_of(union_of(train.data), self.hops, self.max_ego).size))
        return schema | {"weight sizes": weight_sizes(sizes, self.cap), "ego sizes": np.unique(sizes).tolist()}

    def prepare(self, graphs: Sequence[Data], schema: Mapping[str, Any]) -> list[Data]:
        given = with_features(graphs, schema)
        made: list[Data] = self._found(lambda: with_egos(given, self.hops, self.max_ego, self.whole, self.share))
        known, own = set(schema["ego sizes"]), schema["weight sizes"]
        new = sorted({m for g in made for m in g.ego_size.unique().tolist()} - known)
        if new and not self.whole:
            taken = ", ".join(f"{m} those of {weight_size(m, own)}" for m in new[:5])
            warnings.warn(
                f"{self.name}: {len(new)} ego sizes were not in the train part and take the weights of the nearest ({taken}"
                f"{', …' if len(new) > 5 else ''})", stacklevel=2,
            )  # fmt: skip
        return made

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        return SPEN(
            inputs, outputs, schema["weight sizes"], (self.width,) * self.layers, schema["edge inputs"], self.hidden, self.dropout,
            self.norm,
        )  # fmt: skip

    def schedule(self) -> Callable[[int], float] | None:
        return (lambda epoch: 0.1 ** (epoch // self.drop_every)) if self.drop_every else None

    def _found(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except GraphError as reason:
            raise GraphFault(reason.graph, f"{reason.words}{self._advice(reason.words)}") from None
        except ValueError as reason:
            raise UserError(f"{self.name}: {reason}{self._advice(str(reason))}") from None

    def _advice(self, reason: str) -> str:
        return " (max_ego); use fewer hops, or set max_ego" if "at most" in reason else ""


class IGNMethod(SPENMethod):
    """The global network of the same maps: one ego a graph, the graph itself, and one set of weights for all sizes.

    Invariant graph networks of order 2 (Maron et al. 2019). It holds a number a channel for each ordered pair of nodes.
    `hops`, `cap` and `share` have no meaning here and stay as they are.
    """

    name: ClassVar[str] = "ign"
    whole: ClassVar[bool] = True

    hops: int = setting(1, "no meaning here: every node sees the whole graph", ge=1, le=1)
    max_ego: int = setting(400, "a graph with more nodes is an error", ge=1, le=100_000)
    cap: int | str = setting(1, "no meaning here: all sizes share their weights")
    share: bool = setting(True, "compute equal graphs of a batch once in the first layer")

    @field_validator("cap")
    @classmethod
    def _one(cls, given: int | str) -> int | str:
        if given != 1:
            raise ValueError("all graphs share their weights here: leave it at 1")
        return given

    def settled(self, train: Part) -> dict[str, Any]:
        rule = "constant" if self.features == "auto" and not train.schema["features"] else self.features
        return dict(train.schema) | inputs_of(rule, train.data, train.schema) | {"weight sizes": [1], "ego sizes": []}

    def _advice(self, reason: str) -> str:
        return " (max_ego); use spen, which looks at each node's ego alone" if "at most" in reason else ""
