"""The four things. Nothing here knows more of Latticework than its nouns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch

from latticework.core.dataset import Dataset
from latticework.core.method import Method, Model, Predictor
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.value import digest_of, setting
from latticework.data.graph import Graph, GraphDataset, finish
from latticework.nodes.tasks import NodeClassification


class TwoRings(GraphDataset):
    """Two rings of equal size joined by one edge; each ring is a class."""

    name: ClassVar[str] = "two-rings"
    size: int = setting(20, "nodes of each ring", ge=3, le=10_000)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Graph:
        n = self.size
        ring = np.stack([np.arange(n), (np.arange(n) + 1) % n])
        edges = np.concatenate([ring, ring + n, [[0], [n]]], axis=1)
        y = np.repeat([0, 1], n)
        x = np.stack([y + 0.1 * np.arange(2 * n) / n, np.ones(2 * n)], 1).astype(np.float32)
        ids = tuple(f"{side}{i}" for side in "ab" for i in range(n))
        return finish(Graph(edges, ids, x=x, y=y.astype(np.int64), classes=("a", "b"), features=("height", "one")), False)


class NearestModel(Model):
    """Features and labels of the train nodes."""

    def __init__(self, method: Method, schema: Mapping[str, Any], x: torch.Tensor, y: torch.Tensor) -> None:
        self.method, self.schema, self.x, self.y = method, schema, x, y

    def predict(self, part: Part) -> Any:
        asked = part.data.x[torch.from_numpy(part.query.rows)]
        nearest = torch.cdist(asked, self.x).argmin(1)
        return torch.eye(len(self.schema["classes"]))[self.y[nearest]].numpy()

    def state(self) -> Mapping[str, Any]:
        return {"x": self.x, "y": self.y}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["x"], state["y"])


class NearestNeighbour(Method):
    """The label of the nearest labelled node."""

    name: ClassVar[str] = "nearest-neighbour"
    tasks: ClassVar[tuple[str, ...]] = ("node-classification", "node-guessing")
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[NearestModel]] = NearestModel
    scale: float = setting(1.0, "factor on the features", gt=0)

    def fit(self, train: Part, valid: Part | None, run: Run) -> NearestModel:
        x = train.data.x[torch.from_numpy(train.query.rows)]
        return NearestModel(self, dict(train.schema), x, torch.from_numpy(train.truth.y))


class Triangles(Probe):
    """Counts triangles of the undirected graph."""

    name: ClassVar[str] = "triangles"
    kinds: ClassVar[tuple[str, ...]] = ("graph",)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        import networkx as nx

        assert data is not None
        g = nx.Graph(data.read().edge_index.T.tolist())
        return Findings({"triangles": sum(nx.triangles(g).values()) // 3})


class NodeGuessing(NodeClassification):
    """Node classification with five labels a class, judged by macro-F1."""

    name: ClassVar[str] = "node-guessing"
    per_class: int = setting(5, "train nodes a class", ge=1)
    valid_per_class: int = setting(3, "validation nodes a class", ge=0)
    rank_by: str = setting("macro-f1", "the headline")  # type: ignore[assignment]

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "majority", "nearest-neighbour"
