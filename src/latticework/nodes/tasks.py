"""Node classification: which class (or classes) has each node of one graph, where some are known.

The whole graph is seen in training and in testing (transductive); labels are seen for the train part alone. Probabilities
are asked for, so accuracy, F1 and ROC-AUC come from the same answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import dijkstra

from latticework.common.settled import settled
from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.graph import Graph, Nodes, degrees, joined, local_homophily, schema_of
from latticework.data.table import matched_columns

Array = NDArray[Any]
TRAIN, VALID, TEST = 0, 1, 2


class Truth(NamedTuple):
    """`y` int64 [q], or bool [q, C] for several labels a node; `slices` name -> (group int64 [q], names of the groups)."""

    y: Array
    slices: Mapping[str, tuple[Array, tuple[str, ...]]] = {}


class NodeQuery(Query):
    """Which nodes of the user's graph are predicted."""

    name: ClassVar[str] = "nodes"
    nodes: Literal["unlabelled", "all"] = setting("unlabelled", "those without a label (all, where every node has one), or all")


class NodeAnswers(Task):
    """What tasks with probabilities over classes for nodes share: the form of an answer, its scores, its file."""

    role: ClassVar[type[Any]] = Predictor
    readouts: ClassVar[Mapping[str, str]] = {"Encoder": "logistic-readout"}
    Query: ClassVar[type[Value]] = NodeQuery

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.y]

    def several(self) -> bool:
        """Whether a node may have several labels, so far as the task says."""
        return False

    def counts_of(self, truth: Truth) -> Array | None:
        """The true labels, where as many are to be predicted as a node has."""
        return None

    def value(self, answer: Any, part: Part, run: Run) -> float | None:
        if self.headline_metric != "accuracy" or part.truth.y.ndim == 2:
            return super().value(answer, part, run)
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(part.truth.y, self.decide(answer, None, False)))

    def answer(self, model: Any, part: Part, run: Run) -> Array:
        found = np.asarray(model.predict(part), dtype=np.float64)
        expected = (len(part.query.rows), len(part.schema["classes"]))
        if found.shape != expected:
            raise UserError(
                f"{model.method.name} gave {list(found.shape)} instead of class probabilities {list(expected)} (nodes x classes)"
            )
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            raise UserError(
                f"{model.method.name} gave a value that is not finite for node {part.query.ids[part.query.rows[row]]!r}"
            )
        return found

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        truth: Truth = part.truth
        multi = truth.y.ndim == 2
        said = self.decide(answer, self.counts_of(truth), multi)
        scores = _scores(truth.y, said, answer, multi)
        name = "micro-f1" if multi else "accuracy"
        for kind, (group, names) in truth.slices.items():
            for i, words in enumerate(names):
                rows = group == i
                if rows.any():
                    value = next(s.value for s in _scores(truth.y[rows], said[rows], None, multi) if s.metric == name)
                    scores.append(Score(name, value, {"slice": kind, "range": words, "nodes": int(rows.sum())}))
        return scores

    @staticmethod
    def decide(answer: Array, counts_of: Array | None, multi: bool) -> Array:
        """Classes from probabilities: the largest; with several labels, those above 0.5 (at least one) or the true number."""
        if not multi:
            return np.asarray(answer.argmax(1))
        order = np.argsort(-answer, axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(answer.shape[1])[None], axis=1)
        if counts_of is not None:
            return np.asarray(rank < counts_of.sum(1, keepdims=True))
        return (answer > 0.5) | (rank == 0)

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: id, prediction, and a column ``p(class)`` each; several labels are joined by ``|``."""
        import polars as pl

        classes = part.schema["classes"]
        multi = bool(part.schema["multi"])
        said = self.decide(answer, None, multi)
        if multi:
            words = ["|".join(classes[c] for c in np.flatnonzero(row)) for row in said]
        else:
            words = [classes[c] for c in said]
        columns: dict[str, Any] = {"id": [part.query.ids[i] for i in part.query.rows], "prediction": words}
        columns |= {f"p({name})": answer[:, c] for c, name in enumerate(classes)}
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        from latticework.data.graph import read_labels
        from latticework.data.table import need, read_table

        found = read_table(answers)
        ids = found[need(answers, found, "id", "node")].to_list()
        words = found[need(answers, found, "prediction", "label")].to_list()
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise UserError(f"{answers}: id {twice!r} stands more than once; one answer a node")
        known = read_labels(truth)
        strange = [i for i in ids if i not in known]
        if strange:
            raise UserError(
                f"{answers}: id {strange[0]!r} has no label in {truth} ({len(strange)} such); judge labelled nodes only"
            )
        words = [word or "" for word in words]
        multi = self.several() or any("|" in text for text in [*words, *(known[i] for i in ids)])

        def parts(text: str) -> list[str]:
            return [name for name in (part.strip() for part in text.split("|")) if name] if multi else [text]

        classes = sorted({c for text in [*known.values(), *filter(None, words)] for c in parts(text)})
        columns = _chance_columns(found.columns, classes)
        # a class with a column of chances counts as it did in the fit, whether a node here is of it or not
        classes = sorted({*classes, *columns})
        code = {c: k for k, c in enumerate(classes)}

        def read(texts: Sequence[str]) -> Array:
            if not multi:
                return np.array([code[t] for t in texts], np.int64)
            rows = np.zeros((len(texts), len(classes)), bool)
            for r, text in enumerate(texts):
                rows[r, [code[c] for c in parts(text)]] = True
            return rows

        empty = [i for i, w in zip(ids, words, strict=True) if not w]
        if empty and not multi:
            raise UserError(f"{answers}: id {empty[0]!r} has no prediction")
        chances = None
        if columns and all(c in columns for c in classes):
            from latticework.data.table import numbers

            chances = np.stack([numbers(answers, found[columns[c]]).to_numpy() for c in classes], 1)
        return _scores(read([known[i] for i in ids]), read(words), chances, multi)


class NodeClassification(NodeAnswers):
    """Probabilities over classes for nodes of a graph; the headline is accuracy, or micro-F1 with several labels a node.

    `protocol`: ``fixed`` is the data's one published split (repeats are seeds), ``given`` its ten (repeats are splits),
    ``random`` a fresh stratified split each (repeats are splits), ``folds`` stratified cross-validation (repeats are folds,
    then other draws of them; `valid` is a share of each fold's train nodes); ``auto`` takes the first of fixed, given and
    random that the data have. `shift` trains on the train nodes of one half by true homophily and tests on the test nodes
    of the other: how a model fares where neighbourhoods differ from those it was taught on.
    """

    name: ClassVar[str] = "node-classification"
    kinds: ClassVar[tuple[str, ...]] = ("graph",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "", "higher"),
        Metric("micro-f1", "", "higher"),
        Metric("macro-f1", "", "higher"),
        Metric("roc-auc", "", "higher"),
    )

    protocol: Literal["auto", "fixed", "given", "random", "folds"] = setting("auto", "which splits")
    folds: int = setting(5, "protocol=folds: into how many folds", ge=2, le=100, later=True)
    shift: Literal["none", "high-to-low", "low-to-high"] = setting(
        "none", "train on one half by homophily, test on the other", later=True
    )
    labels: Literal["auto", "single", "multi"] = setting("auto", "one label a node, or several")
    rank_by: Literal["auto", "accuracy", "micro-f1", "macro-f1", "roc-auc"] = setting("auto", "the headline")
    train: float = setting(0.48, "share of the labelled nodes of a random split that trains", gt=0, lt=1)
    valid: float = setting(0.32, "share that validates; 0: there is no validation part", ge=0, lt=1)
    per_class: int = setting(0, "random splits: this many train nodes a class instead of a share", ge=0)
    valid_per_class: int = setting(30, "with per_class: validation nodes a class; the rest tests", ge=0)
    true_counts: bool = setting(False, "several labels: as many are predicted as a node truly has (the field's convention)")

    # -- folds ---------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> NodeClassification:
        facts = data.facts()
        if not facts["labelled"]:
            raise UserError("no node has a label; add a column 'label' to nodes.csv with some of them filled")
        if facts["classes"] < 2:
            only = next(iter(facts["class sizes"]))
            raise UserError(f"all labelled nodes have one class ({only!r}); two are needed")
        changes: dict[str, Any] = {}
        if self.protocol == "auto":
            has = "fixed" if facts["fixed split"] != "none" else "given" if facts["splits"] else "random"
            changes["protocol"] = has
        if self.labels == "auto":
            changes["labels"] = "multi" if facts["multi-label"] else "single"
        if self.rank_by == "auto":
            several = (changes.get("labels") or self.labels) == "multi"
            changes["rank_by"] = facts.get("usual metric") or ("micro-f1" if several else "accuracy")
        return self.but(**changes) if changes else self

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        if self.rank_by != "auto":
            return self.rank_by
        return "micro-f1" if self.labels == "multi" else "accuracy"

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return ("majority", "gcn") if facts["features"] and not facts["multi-label"] else ("majority", "svd")

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        task = self.for_data(data)
        if task.protocol == "fixed":
            return [("fixed", seed) for seed in range(repeats)]
        if task.protocol == "random":
            return [(f"random-{i}", i) for i in range(repeats)]
        if task.protocol == "folds":
            return [(f"folds-{i}", i) for i in range(repeats)]
        splits = max(int(data.facts()["splits"]), 1)
        return [(f"given-{i % splits}", i // splits) for i in range(repeats)]

    def several(self) -> bool:
        return self.labels == "multi"

    def counts_of(self, truth: Truth) -> Array | None:
        return truth.y if self.true_counts else None

    def final(self, data: Dataset) -> str:
        if self.for_data(data).protocol != "fixed":
            return "all-0"
        graph: Graph = data.read()
        if graph.fixed is None or (graph.labelled & (graph.fixed == TEST)).any():
            return "fixed"
        return "all-fixed"  # the same nodes train; the test nodes without labels are those that the model is to predict

    def overlap(self, data: Dataset) -> float | None:
        task = self.for_data(data)
        if task.protocol == "fixed":
            return None
        split = task.split(data.read(), task.plan(data, 1)[0][0])
        return float((split == TEST).sum() / max((split == TRAIN).sum(), 1))

    def split(self, graph: Graph, fold: str) -> Array:
        """int8 [n]: 0 train, 1 valid, 2 test, -1 neither."""
        kind, _, number = fold.partition("-")
        if not re.fullmatch(r"fixed|all-fixed|(given|random|folds|all)-\d+", fold):
            raise UserError(f"no split is called {fold!r}; use fixed, or given-0, random-0, folds-0 and so on")
        if "fixed" in (kind, number):
            if graph.fixed is None:
                raise UserError("the data have no fixed split; use -s task.protocol=random")
            split = graph.fixed.copy()
        elif kind == "given":
            if graph.splits is None:
                raise UserError("the data bring no splits; use -s task.protocol=random")
            if int(number) >= len(graph.splits):
                raise UserError(f"split {fold}: the data bring {len(graph.splits)}, given-0 to given-{len(graph.splits) - 1}")
            split = graph.splits[int(number)].copy()
        elif kind == "folds":
            split = self._fold(graph, int(number))
        else:
            split = self._random(graph, int(number), whole=kind == "all")
        split[~graph.labelled] = -1
        return np.asarray(split if kind == "all" else self._shifted(graph, split))

    def _fold(self, graph: Graph, number: int) -> Array:
        """Fold `number` modulo `folds`; each further round of folds is another draw."""
        from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

        assert graph.y is not None
        nodes = np.flatnonzero(graph.labelled)
        draw, place = divmod(number, self.folds)
        strata = None if graph.multi_label else graph.y[nodes]
        kinds = KFold if strata is None else StratifiedKFold
        if strata is not None and np.bincount(strata).max() < self.folds:
            raise UserError(f"no class has {self.folds} labelled nodes, as many as there are folds; use -s task.folds=2")
        if len(nodes) < self.folds:
            raise UserError(f"{len(nodes)} nodes have labels, and there are {self.folds} folds; use -s task.folds=2")
        cut = kinds(self.folds, shuffle=True, random_state=draw)
        rest, test = list(cut.split(nodes, strata))[place]
        split = np.full(graph.nodes, -1, np.int8)
        split[nodes[test]], split[nodes[rest]] = TEST, TRAIN
        if self.valid:
            asked = math.ceil(self.valid * len(rest))
            if asked >= len(rest):
                raise UserError(f"task.valid={self.valid:g} of {len(rest)} nodes leaves none to train; use a smaller share")
            alike = None if strata is None or np.bincount(strata[rest])[np.unique(strata[rest])].min() < 2 else strata[rest]
            if alike is not None and min(asked, len(rest) - asked) < len(np.unique(alike)):
                alike = None  # too few nodes to hold one of each class
            held = train_test_split(rest, test_size=self.valid, random_state=number, stratify=alike)[1]
            split[nodes[held]] = VALID
        return split

    def _shifted(self, graph: Graph, split: Array) -> Array:
        """The split under `shift`: train and valid nodes of one half by true homophily, test nodes of the other."""
        if self.shift == "none":
            return split
        if graph.multi_label:
            raise UserError("shift needs one label a node: homophily is not defined with several")
        local = local_homophily(graph)
        for code in (TRAIN, VALID, TEST):
            nodes = np.flatnonzero((split == code) & np.isfinite(local))
            split[(split == code) & ~np.isfinite(local)] = -1
            high = upper_half(local[nodes])
            split[nodes[high != ((self.shift == "high-to-low") == (code != TEST))]] = -1
        return split

    def _random(self, graph: Graph, number: int, whole: bool = False) -> Array:
        rng = np.random.default_rng([number, 0x6E6F6465])
        split = np.full(graph.nodes, -1, np.int8)
        assert graph.y is not None
        if graph.multi_label:
            nodes = rng.permutation(np.flatnonzero(graph.labelled))
            groups = [nodes]
        else:
            groups = [rng.permutation(np.flatnonzero(graph.y == c)) for c in range(len(graph.classes))]
        for nodes in groups:
            if whole:  # a model for use: nothing is kept back but what chooses the epoch
                train = max(round(0.8 * len(nodes)), 1)
                valid = len(nodes) - train
            elif self.per_class and not graph.multi_label:
                train, valid = self.per_class, self.valid_per_class
            else:
                train = max(round(self.train * len(nodes)), 1)
                valid = round(self.valid * len(nodes))
            split[nodes] = TEST
            split[nodes[: train + valid]] = VALID
            split[nodes[:train]] = TRAIN
        return split

    def fold(self, data: Dataset, name: str) -> Fold:
        graph: Graph = data.read()
        task = self.for_data(data)
        task.check(graph)
        split = task.split(graph, name)
        schema = schema_of(graph)
        slices = (
            node_slices(graph)
            | homophily_halves(graph, np.flatnonzero(split == TEST))
            | label_distances(graph, np.flatnonzero(split == TRAIN))
        )
        parts = [
            task._part(graph, np.flatnonzero(split == code), schema, slices if code == TEST else {})
            for code in (TRAIN, VALID, TEST)
        ]
        for word, part in (("train", parts[0]), ("test", parts[2])):
            if not len(part.query.rows) and not (word == "test" and name.startswith("all")):
                raise UserError(f"the {word} part of split {name} has no labelled node; {task._remedy(name)}")
        seen = parts[0].truth.y
        found = seen.any(1).sum() if graph.multi_label else len(np.unique(seen))
        if found < 2 and not graph.multi_label:
            only = graph.classes[int(seen[0])]
            raise UserError(f"the train part of split {name} holds one class only ({only!r}); two are needed")
        return Fold(parts[0], parts[1] if len(parts[1].query.rows) else None, parts[2])

    def _remedy(self, name: str) -> str:
        """What to do about a part that came out empty."""
        if name.startswith("random") and self.per_class:
            taken = f"task.per_class={self.per_class} and task.valid_per_class={self.valid_per_class}"
            return f"{taken} leave no class any; use smaller numbers"
        if name.startswith("random") and self.train + self.valid >= 1:
            return f"task.train={self.train:g} and task.valid={self.valid:g} leave none; shares must add up to less than 1"
        return "label some, or use task.protocol=random"

    def check(self, graph: Graph) -> None:
        """Errors before any training, where fields do not fit the data."""
        if self.labels == "single" and graph.multi_label:
            raise UserError("the data have several labels a node; use -s task.labels=multi")
        if self.labels == "multi" and not graph.multi_label:
            raise UserError("the data have one label a node; use -s task.labels=single")
        if self.per_class and graph.multi_label and self.protocol == "random":
            raise UserError("per_class needs one label a node: with several a node counts for many classes; use task.train")

    def _part(self, graph: Graph, index: Array, schema: Mapping[str, Any], slices: Any) -> Part:
        assert graph.y is not None
        truth = Truth(graph.y[index], {name: (group[index], names) for name, (group, names) in slices.items()})
        return Part(graph.tensors(), Nodes(index, graph.ids), truth, schema)

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, NodeQuery) and data is not None
        graph: Graph = data.read()
        if not schema.get("reads_features", True):
            graph = replace(graph, x=None, features=(), _cache={})
        elif graph.x is not None or schema["features"]:
            graph = match_features(graph, schema["features"])
        index = np.flatnonzero(~graph.labelled) if query.nodes == "unlabelled" else np.arange(graph.nodes)
        index = index if len(index) else np.arange(graph.nodes)
        return Part(graph.tensors(), Nodes(index, graph.ids), None, schema_of(graph) | asked_schema(schema))


def asked_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What later data take from a fit's schema: its classes, whether a node may have several, and how it reads features."""
    several = {"multi": schema["multi"]} if "multi" in schema else {}
    return {"classes": schema["classes"], **several, **settled(schema)}


def _chance_columns(names: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Class -> its column ``p(class)``; the case of letters is looked at only where it tells two columns apart."""
    found = {name[2:-1]: name for name in names if name[:2].lower() == "p(" and name[-1:] == ")"}
    if len({name.lower() for name in found}) < len(found):
        return found
    written = {c.lower(): c for c in classes}
    return {written.get(name.lower(), name): column for name, column in found.items()}


def _scores(y: Array, said: Array, chances: Array | None, multi: bool) -> list[Score]:
    from sklearn.metrics import accuracy_score, f1_score

    scores = []
    if multi:
        scores.append(Score("micro-f1", float(f1_score(y, said, average="micro", zero_division=0))))
        scores.append(Score("macro-f1", float(f1_score(y, said, average="macro", zero_division=0))))
    else:
        scores.append(Score("accuracy", float(accuracy_score(y, said))))
        scores.append(Score("macro-f1", float(f1_score(y, said, average="macro", zero_division=0))))
    scores.append(_auc(y, chances))
    return scores


def _auc(y: Array, chances: Array | None) -> Score:
    """Mean over the classes that have both positives and negatives here; the one of class 1 where there are two."""
    from sklearn.metrics import roc_auc_score

    if chances is None:
        return Score("roc-auc", None, {}, "no probabilities were given")
    classes = chances.shape[1]
    wanted = [1] if classes == 2 and y.ndim == 1 else range(classes)
    values = []
    for c in wanted:
        positive = y[:, c] if y.ndim == 2 else y == c
        if 0 < positive.sum() < len(positive):
            values.append(float(roc_auc_score(positive, chances[:, c])))
    return Score("roc-auc", float(np.mean(values))) if values else Score("roc-auc", None, {}, "only one class is present")


def match_features(graph: Graph, wanted: Sequence[str]) -> Graph:
    """The graph with the model's feature columns in the model's order, matched by name; see `matched_columns`."""
    if list(graph.features) == list(wanted):
        return graph
    x = matched_columns(graph.x, graph.features, wanted, graph.nodes)
    return replace(graph, x=x, features=tuple(wanted), _cache={})


def upper_half(values: Array) -> Array:
    """bool [q]: the larger half, cut by count after a stable sort (of an odd number the middle one is below)."""
    above = np.zeros(len(values), bool)
    above[np.argsort(values, kind="stable")[(len(values) + 1) // 2 :]] = True
    return above


def homophily_halves(graph: Graph, nodes: Array) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """The less and the more homophilic half of some nodes, by their true neighbours; those without any are in neither."""
    if graph.multi_label or graph.y is None or not len(nodes):
        return {}
    local = local_homophily(graph)[nodes]
    known = np.isfinite(local)
    group = np.full(graph.nodes, -1, np.int64)
    group[nodes[known]] = upper_half(local[known])
    return {"homophily": (group, ("low", "high"))}


def label_distances(graph: Graph, labelled: Array) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Nodes by their hops to the nearest labelled one of training, against edges too; for the judge alone."""
    if not len(labelled):
        return {}
    u, v = joined(graph.edge_index, graph.weight)
    A = sp.csr_array((np.ones(len(u)), (u, v)), shape=(graph.nodes, graph.nodes))
    hops = dijkstra(A, directed=False, indices=labelled, unweighted=True, min_only=True)
    return {"hops to a train node": (np.minimum(hops, 6).astype(np.int64), ("0", "1", "2", "3", "4", "5", "6 or more, or none"))}


def node_slices(graph: Graph) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Groups of nodes by degree (quartiles) and by local homophily, computed from the whole truth, for the judge alone."""
    if "slices" in graph._cache:
        return graph._cache["slices"]  # type: ignore[no-any-return]
    degree = degrees(graph)
    edges = np.unique(np.quantile(degree, [0.25, 0.5, 0.75], method="higher"))
    group = np.searchsorted(edges, degree, side="left")
    names = []
    for i in range(len(edges) + 1):
        low = 0 if i == 0 else int(edges[i - 1]) + 1
        high = int(edges[i]) if i < len(edges) else int(degree.max())
        names.append(f"{low}" if low == high else f"{low}–{high}")
    few = (degree > 2).astype(np.int64)
    slices = {"degree": (group, tuple(names)), "neighbours": (few, ("at most 2", "3 or more"))}
    if not graph.multi_label and graph.y is not None:
        local = local_homophily(graph)
        bins = np.digitize(np.nan_to_num(local, nan=-1.0), [0.0, 0.25, 0.5, 0.75])
        words = ("no labelled neighbour", "0–0.25", "0.25–0.5", "0.5–0.75", "0.75–1")
        slices["local homophily"] = (bins, words)
    graph._cache["slices"] = slices
    return slices
