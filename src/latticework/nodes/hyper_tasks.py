"""Hypergraph node classification: which class has each vertex of a hypergraph, where some are known.

Labels are few and drawn by a seed. Transductive, all vertices are seen while training; in production a share of the test
vertices is new: they and their memberships are out of what is trained on, and come back with the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part
from latticework.core.value import Value, setting
from latticework.data.graph import Nodes
from latticework.data.hypergraph import Hypergraph, schema_of, subhypergraph

from .tasks import TEST, TRAIN, VALID, NodeAnswers, NodeQuery, Truth, asked_schema, match_features

Array = NDArray[Any]
CALIBRATION_BINS = 15


class HypergraphNodeClassification(NodeAnswers):
    """Probabilities over classes for vertices of a hypergraph; the headline is accuracy over all test vertices.

    `labels` vertices of each class train and up to `valid` validate, drawn by the seed of the repeat; the rest tests. A class
    with too few vertices for that gives at most half of them to train, and half of what is left to validate; models say so.
    ``protocol=production`` takes the share `unseen` of the test vertices out of the hypergraph that is trained on; scores
    stand at vertices observed and unseen, and over both, with the drop from the first to the second. Beside accuracy, the
    calibration error says how far stated probabilities are from the truth.
    """

    name: ClassVar[str] = "hypergraph-node-classification"
    kinds: ClassVar[tuple[str, ...]] = ("hypergraph",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "", "higher"),
        Metric("macro-f1", "", "higher"),
        Metric("roc-auc", "", "higher"),
        Metric("calibration-error", "", "lower"),
        Metric("unseen-drop", "", "lower"),
    )
    headline_metric: ClassVar[str] = "accuracy"
    readouts: ClassVar[Mapping[str, str]] = {}

    protocol: Literal["transductive", "production"] = setting("transductive", "whether a share of the test vertices is new")
    labels: int = setting(20, "train vertices of each class", ge=1, le=100_000)
    valid: int = setting(100, "validation vertices of each class, at most; 0: there is no validation part", ge=0, le=100_000)
    unseen: float = setting(0.2, "production: share of the test vertices that is new", gt=0, lt=1)

    def for_data(self, data: Dataset) -> HypergraphNodeClassification:
        facts = data.facts()
        if not facts["labelled"]:
            raise UserError("no node has a label; add a column 'label' to nodes.csv with some of them filled")
        if facts["classes"] < 2:
            only = next(iter(facts["class sizes"]))
            raise UserError(f"all labelled nodes have one class ({only!r}); two are needed")
        empty = [name for name, size in facts["class sizes"].items() if not size]
        if empty:
            raise UserError(
                f"no node has class {empty[0]!r} ({len(empty)} such classes): it cannot be learnt; number the others anew"
            )
        return self

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return ("majority", "mlp")

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [(f"draw-{i}", i) for i in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "all-0"

    def overlap(self, data: Dataset) -> float | None:
        split = self.split(data.read(), "draw-0")
        train, labelled = int((split == TRAIN).sum()), int((split >= 0).sum())
        # two draws share about train / labelled of their train vertices: where labels are few, repeats are all but independent
        return float((split == TEST).sum() / train) if train > 0.1 * labelled else None

    # -- folds ---------------------------------------------------------------------------------------------------
    def split(self, graph: Hypergraph, fold: str) -> Array:
        """int8 [n]: 0 train, 1 valid, 2 test, -1 without a label."""
        kind, _, number = fold.partition("-")
        rng = np.random.default_rng([int(number), 0x68797065])
        split = np.full(graph.nodes, -1, np.int8)
        assert graph.y is not None
        for c in range(len(graph.classes)):
            nodes = rng.permutation(np.flatnonzero(graph.y == c))
            if kind == "all":  # a model for use: nothing is kept back but what chooses the epoch
                train = max(round(0.8 * len(nodes)), 1)
                valid = len(nodes) - train
            else:
                train, valid = self._counts(len(nodes))
            split[nodes] = TEST
            split[nodes[: train + valid]] = VALID
            split[nodes[:train]] = TRAIN
        return split

    def _counts(self, size: int) -> tuple[int, int]:
        """Train and validation vertices of a class of `size`, as asked where one is left to test."""
        if size > self.labels + self.valid:
            return self.labels, self.valid
        train = min(self.labels, (size + 1) // 2)
        return train, min(self.valid, (size - train) // 2)

    def short(self, graph: Hypergraph) -> dict[str, tuple[int, int]]:
        """Class -> (train, validation vertices), for the classes that have fewer than was asked for."""
        assert graph.y is not None
        sizes = np.bincount(graph.y[graph.y >= 0], minlength=len(graph.classes))
        counts = {name: self._counts(int(size)) for name, size in zip(graph.classes, sizes, strict=True)}
        return {name: found for name, found in counts.items() if found != (self.labels, self.valid)}

    def fold(self, data: Dataset, name: str) -> Fold:
        graph: Hypergraph = data.read()
        self.for_data(data)
        split = self.split(graph, name)
        test = np.flatnonzero(split == TEST)
        if not len(test) and not name.startswith("all"):
            raise UserError("no labelled node is left to test on; ask for fewer with -s task.labels and -s task.valid")
        fresh = np.zeros(graph.nodes, bool)
        if self.protocol == "production" and not name.startswith("all"):
            number = int(name.partition("-")[2])
            drawn = np.random.default_rng([number, 0x6E6577]).permutation(test)
            fresh[drawn[: max(round(self.unseen * len(test)), 1)]] = True
        observed = np.flatnonzero(~fresh)
        seen = subhypergraph(graph, observed) if len(observed) < graph.nodes else graph
        place = np.full(graph.nodes, -1, np.int64)
        place[observed] = np.arange(len(observed))
        schema = schema_of(seen)
        few = {} if name.startswith("all") else self.short(graph)
        if few:
            schema["fewer labels"] = {c: list(counts) for c, counts in few.items()}
        assert graph.y is not None
        parts = [
            Part(seen.tensors(), Nodes(place[np.flatnonzero(split == code)], seen.ids), Truth(graph.y[split == code]), schema)
            for code in (TRAIN, VALID)
        ]
        asked = Part(
            graph.tensors(), Nodes(test, graph.ids), Truth(graph.y[test], self._slices(graph, test, fresh)),
            schema | schema_of(graph) | asked_schema(schema),
        )  # fmt: skip
        return Fold(parts[0], parts[1] if len(parts[1].query.rows) else None, asked)

    def _slices(self, graph: Hypergraph, test: Array, fresh: Array) -> dict[str, tuple[Array, tuple[str, ...]]]:
        """Test vertices by whether they were seen in training, and by the number of their hyperedges."""
        degree = np.searchsorted([0, 1, 3], graph.degrees[test], side="left")
        slices = {"hyperedges": (degree, ("none", "1", "2–3", "4 or more"))}
        if self.protocol == "production":
            slices["vertices"] = (fresh[test].astype(np.int64), ("observed", "unseen"))
        return slices

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, NodeQuery) and data is not None
        graph: Hypergraph = data.read()
        if graph.x is not None or schema["features"]:
            graph = match_features(graph, schema["features"])  # type: ignore[arg-type, assignment]
        index = np.flatnonzero(~graph.labelled) if query.nodes == "unlabelled" else np.arange(graph.nodes)
        index = index if len(index) else np.arange(graph.nodes)
        return Part(graph.tensors(), Nodes(index, graph.ids), None, schema_of(graph) | asked_schema(schema))

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        scores = super().score(answer, part, run)
        scores.append(Score("calibration-error", calibration_error(np.asarray(answer), part.truth.y)))
        at = {s.at["range"]: s.value for s in scores if s.at.get("slice") == "vertices" and s.value is not None}
        if len(at) == 2:
            scores.append(Score("unseen-drop", at["observed"] - at["unseen"]))
        return scores


def calibration_error(chances: Array, y: Array, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: the mean over answers of how far their bin's accuracy is from its mean confidence.

    chances [q, C], y int64 [q]; `bins` equal bins of the largest probability (torchmetrics).
    """
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    found = multiclass_calibration_error(
        torch.from_numpy(np.ascontiguousarray(chances, np.float32)), torch.from_numpy(y), chances.shape[1], n_bins=bins, norm="l1"
    )
    return float(found)
