"""Heterogeneous node classification: which class has each node of one type of a graph with several types and relations.

Transductive: the whole graph is seen in training and in testing, labels for the train part alone. Inductive: validation
and test nodes of the target type, and their edges, are out of the train part; the valid part sees no test node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part
from latticework.core.value import Value, setting
from latticework.data.hetero import HeteroGraph, HeteroNodes, hetero_schema, keep_nodes, labels_file, relation_text, target_of

from .tasks import TEST, TRAIN, VALID, NodeAnswers, NodeClassification, NodeQuery, Truth, asked_schema, match_features

Array = NDArray[Any]


class HeteroNodeClassification(NodeAnswers):
    """Probabilities over classes for the nodes of one type; the headline is macro-F1.

    `split`: the name of a split that the data bring (20, 40 or 60 labels a class of the published sets; repeats are seeds),
    ``given`` the one written split, ``random`` a fresh stratified 20/10/70 draw each (repeats are draws); ``auto`` takes the
    written one, the first named one, or a random one. `protocol` inductive keeps validation and test nodes out of the graph
    that trains.
    """

    name: ClassVar[str] = "hetero-node-classification"
    kinds: ClassVar[tuple[str, ...]] = ("heterogeneous graph",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("macro-f1", "", "higher"),
        Metric("micro-f1", "", "higher"),
        Metric("accuracy", "", "higher"),
        Metric("roc-auc", "", "higher"),
    )
    headline_metric: ClassVar[str] = "macro-f1"

    target: str | None = setting(None, "the node type that is classified; left out: the one that has labels")
    protocol: Literal["transductive", "inductive"] = setting(
        "transductive", "inductive: held-out nodes are out of the train graph"
    )
    split: str = setting("auto", "auto, random, given, or the name of a split that the data bring (20, 40, 60)")
    train: float = setting(0.2, "share of the labelled nodes of a random split that trains", gt=0, lt=1)
    valid: float = setting(0.1, "share that validates; 0: there is no validation part", ge=0, lt=1)
    per_class: int = setting(0, "random splits: this many train nodes a class instead of a share", ge=0)
    valid_per_class: int = setting(30, "with per_class: validation nodes a class; the rest tests", ge=0)

    @field_validator("split", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    # -- folds ---------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> HeteroNodeClassification:
        graph: HeteroGraph = data.read()
        target = target_of(graph, self.target)
        if target not in graph.labelled:
            others = f"; {', '.join(graph.labelled)} have" if graph.labelled else ""
            raise UserError(
                f"no {target} node has a label{others}; add a column 'label' to nodes/{target}.csv, or name another target"
            )
        if len(graph.classes[target]) < 2:
            raise UserError(f"all labelled {target} nodes have one class ({graph.classes[target][0]!r}); two are needed")
        split = self.split
        named = list(graph.splits.get(target, {}))
        if split == "auto":
            split = "given" if target in graph.fixed else named[0] if named else "random"
        if split == "given" and target not in graph.fixed:
            raise UserError(f"{target} has no column 'split'; use -s task.split=random{_or(named)}")
        if split not in ("given", "random", *named):
            raise UserError(f"{target} has no split {split!r}; use -s task.split=random{_or(named)}")
        return self.but(target=target, split=split)

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        target = self.target or (facts["labelled types"] or [""])[0]
        return ("majority", "mlp") if target in facts["features"] else ("majority", "metapath2vec")

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        split = self.for_data(data).split
        if split == "random":
            return [(f"random-{i}", i) for i in range(repeats)]
        return [(split, seed) for seed in range(repeats)]

    def final(self, data: Dataset) -> str:
        split = self.for_data(data).split
        return "all-0" if split == "random" else split

    def overlap(self, data: Dataset) -> float | None:
        task = self.for_data(data)
        if task.split != "random":
            return None
        split = task.assign(data.read(), "random-0")
        return float((split == TEST).sum() / max((split == TRAIN).sum(), 1))

    def assign(self, graph: HeteroGraph, fold: str) -> Array:
        """int8 [n] of the target's nodes: 0 train, 1 valid, 2 test, -1 neither."""
        target = str(self.target)
        kind, _, number = fold.partition("-")
        if fold == "given":
            split = graph.fixed[target].copy()
        elif fold in graph.splits.get(target, {}):
            split = graph.splits[target][fold].copy()
        else:
            draw = NodeClassification(
                protocol="random",
                train=self.train,
                valid=self.valid,
                per_class=self.per_class,
                valid_per_class=self.valid_per_class,
            )
            split = draw._random(graph.alone(target), int(number), whole=kind == "all")
        split[graph.y[target] < 0] = -1
        return np.asarray(split)

    def fold(self, data: Dataset, name: str) -> Fold:
        graph: HeteroGraph = data.read()
        task = self.for_data(data)
        target = str(task.target)
        split = task.assign(graph, name)
        wanted = {"train": TRAIN, "valid": VALID, "test": TEST}
        parts = {word: task._part(graph, split, code) for word, code in wanted.items()}
        known = asked_schema(parts["train"].schema)
        parts = {word: part._replace(schema={**part.schema, **known}) for word, part in parts.items()}
        for word in ("train", "test"):
            if not len(parts[word].query.rows) and not (word == "test" and name.startswith("all")):
                raise UserError(f"the {word} part of split {name} has no labelled {target} node; use -s task.split=random")
        seen = parts["train"].truth.y
        if len(np.unique(seen)) < 2:
            only = graph.classes[target][int(seen[0])]
            raise UserError(f"the train part of split {name} holds one class only ({only!r}); two are needed")
        return Fold(parts["train"], parts["valid"] if len(parts["valid"].query.rows) else None, parts["test"])

    def _part(self, graph: HeteroGraph, split: Array, code: int) -> Part:
        target = str(self.target)
        truth = Truth(graph.y[target][split == code])
        if self.protocol == "inductive" and code != TEST:
            # what trains holds neither validation nor test nodes, what validates no test nodes
            left = np.flatnonzero((split == -1) | (split <= code))
            key = f"inductive {target} {hash(left.tobytes())}"
            if key not in graph._cache:
                graph._cache[key] = keep_nodes(graph, target, left)
            kept: HeteroGraph = graph._cache[key]
            graph, split = kept, split[left]
        query = HeteroNodes(np.flatnonzero(split == code), graph.ids[target], target)
        return Part(graph.tensors(), query, truth, hetero_schema(graph, target))

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, NodeQuery) and data is not None
        graph = match_hetero(data.read(), schema)
        target = schema["target"]
        y = graph.y.get(target)
        rows = np.flatnonzero(y < 0) if query.nodes == "unlabelled" and y is not None else np.zeros(0, np.int64)
        rows = rows if len(rows) else np.arange(graph.sizes[target])
        nodes = HeteroNodes(rows, graph.ids[target], target)
        return Part(graph.tensors(), nodes, None, hetero_schema(graph, target) | asked_schema(schema))

    # -- answers ---------------------------------------------------------------------------------------------------
    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        return _with_micro(super().score(answer, part, run))

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        return _with_micro(super().judge(answers, labels_file(truth, self.target) if truth.is_dir() else truth))


def _with_micro(scores: list[Score]) -> list[Score]:
    """With one class a node, micro-F1 is the accuracy: both names are in use."""
    return [*scores, *(Score("micro-f1", s.value, s.at) for s in scores if s.metric == "accuracy")]


def _or(named: list[str]) -> str:
    return f" or one of {', '.join(named)}" if named else ""


def match_hetero(graph: HeteroGraph, schema: Mapping[str, Any]) -> HeteroGraph:
    """The graph with the model's types, relations and feature columns, matched by name and in the model's order.

    `UserError` where one of them is missing; what the model does not know is left out.
    """
    missing = [kind for kind in schema["types"] if kind not in graph.types]
    if missing:
        raise UserError(
            f"the model was fitted with node types {', '.join(schema['types'])}; {', '.join(missing)} are missing here "
            f"(found {', '.join(graph.types)})"
        )
    relations = [tuple(key) for key in schema["relations"]]
    absent = [key for key in relations if key not in graph.relations]
    if absent:
        found = ", ".join(relation_text(key) for key in graph.relations)
        raise UserError(f"the model was fitted with relation {relation_text(absent[0])}, which is missing here; found {found}")
    x = {}
    for kind, names in schema["all_features"].items():
        if list(graph.features.get(kind, ())) == list(names):
            x[kind] = graph.x[kind]
            continue
        try:
            x[kind] = match_features(graph.alone(kind), names).x
        except UserError as error:
            raise UserError(f"{kind}: {error}") from None
    same = set(x) == set(graph.x) and all(x[k] is graph.x[k] for k in x)
    if same and tuple(schema["types"]) == graph.types and relations == list(graph.relations):
        return graph
    return replace(
        graph, types=tuple(schema["types"]), ids={kind: graph.ids[kind] for kind in schema["types"]},
        relations={key: graph.relations[key] for key in relations},
        weights={key: w for key, w in graph.weights.items() if key in relations},
        x=x, features={kind: tuple(names) for kind, names in schema["all_features"].items()}, _cache={},
    )  # fmt: skip
