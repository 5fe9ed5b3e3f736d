"""Clustering of one node type of a heterogeneous graph: groups found without labels, judged by the labels that there are.

The whole graph is seen, and no label: folds differ in nothing, repeats are seeds. The task's read-out is k-means on an
encoder's vectors, with the number of classes for that of clusters; which of its starts counts is decided by how close points
lie to their centres (inertia), never by labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Encoder, Method, Model, Predictor
from latticework.core.result import Findings, Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Task
from latticework.core.value import Value, setting
from latticework.data.hetero import (
    HeteroGraph,
    HeteroNodes,
    biadjacency,
    doubled_of,
    hetero_schema,
    labels_file,
    steps_from,
    target_of,
)
from latticework.layers.sparse_features import SparseFeatures, narrow

from .hetero_tasks import match_hetero
from .network import features_of
from .tasks import Truth, asked_schema

Array = NDArray[Any]
CLUSTERING = ("hetero-node-clustering",)


class HeteroNodeClustering(Task):
    """A group for each node of the target type; the headline is normalised mutual information with the classes.

    NMI is mutual information over the mean of both entropies: 1 for the same partition, whatever the groups are called, 0
    where one says nothing of the other. ARI is the adjusted Rand index: 0 for groups drawn by chance. Nodes without a label
    are clustered with the rest and not judged; data without any label can be clustered where `clusters` says into how many.
    """

    name: ClassVar[str] = "hetero-node-clustering"
    kinds: ClassVar[tuple[str, ...]] = ("heterogeneous graph",)
    role: ClassVar[type[Any]] = Predictor
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("nmi", "", "higher"), Metric("ari", "", "higher"))
    headline_metric: ClassVar[str] = "nmi"
    readouts: ClassVar[Mapping[str, str]] = {"Encoder": "kmeans-readout"}

    target: str | None = setting(None, "the node type that is clustered; left out: the one that has labels")
    clusters: int = setting(0, "how many groups; 0: as many as there are classes", ge=0, le=100_000)

    # -- folds ---------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> HeteroNodeClustering:
        graph: HeteroGraph = data.read()
        if not graph.labelled and (self.target is None or not self.clusters):
            raise UserError(
                "no node has a label, which would say into how many groups: say it, and whose, with -s task.clusters=5 "
                f"-s task.target={self.target or graph.types[0]}"
            )
        target = target_of(graph, self.target)
        clusters = self.clusters or len(graph.classes.get(target, ()))
        if target not in graph.labelled and not self.clusters:
            raise UserError(f"no {target} node has a label; say into how many groups with -s task.clusters=5")
        if clusters < 2:
            raise UserError(f"all labelled {target} nodes have one class; say into how many groups with -s task.clusters=5")
        if clusters > graph.sizes[target]:
            raise UserError(f"task.clusters: {clusters} groups of {graph.sizes[target]} {target} nodes; give fewer")
        return self.but(target=target, clusters=clusters)

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return ("one-cluster", "kmeans")

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [("whole", seed) for seed in range(repeats)]

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.y]

    def fold(self, data: Dataset, name: str) -> Fold:
        task = self.for_data(data)
        graph: HeteroGraph = data.read()
        target = str(task.target)
        y = graph.y.get(target, np.full(graph.sizes[target], -1, np.int64))
        rows = np.flatnonzero(y >= 0)
        schema = hetero_schema(graph, target) | {"clusters": task.clusters}
        ids = graph.ids[target]
        train = Part(graph.tensors(), HeteroNodes(np.arange(graph.sizes[target]), ids, target), None, schema)
        return Fold(train, None, Part(graph.tensors(), HeteroNodes(rows, ids, target), Truth(y[rows]), schema))

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert data is not None
        target = schema["target"]
        read: HeteroGraph = data.read()
        if target not in read.types:
            raise UserError(f"the model clusters {target!r} nodes, and there are none here; types: {', '.join(read.types)}")
        graph = match_hetero(read, schema)
        nodes = HeteroNodes(np.arange(graph.sizes[target]), graph.ids[target], target)
        kept = {**asked_schema(schema), "clusters": schema["clusters"]}
        return Part(graph.tensors(), nodes, None, hetero_schema(graph, target) | kept)

    # -- answers -------------------------------------------------------------------------------------------------
    def answer(self, model: Any, part: Part, run: Run) -> Array:
        found = np.asarray(model.predict(part))
        asked = len(part.query.rows)
        if found.shape != (asked,) or found.dtype.kind not in "iu":
            raise UserError(
                f"{model.method.name} gave {found.dtype} {list(found.shape)} instead of group numbers, integers [{asked}]"
            )
        return found.astype(np.int64)

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        return _scores(part.truth.y, answer)

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: id, cluster."""
        import polars as pl

        write_whole(to, pl.DataFrame({"id": [part.query.ids[i] for i in part.query.rows], "cluster": answer}).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        from latticework.data.graph import read_labels
        from latticework.data.table import need, read_table

        found = read_table(answers)
        ids = found[need(answers, found, "id", "node")].to_list()
        groups = found[need(answers, found, "cluster", "prediction")].to_list()
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise UserError(f"{answers}: id {twice!r} stands more than once; one answer a node")
        known = read_labels(labels_file(truth, self.target) if truth.is_dir() else truth)
        strange = [i for i in ids if i not in known]
        if len(strange) == len(ids):
            raise UserError(
                f"{answers}: no id has a label in {truth}, first {ids[0]!r}" if ids else f"{answers} holds no answers"
            )
        pairs = [(known[i], g) for i, g in zip(ids, groups, strict=True) if i in known]
        return _scores(np.array([p[0] for p in pairs], object), np.array([str(p[1]) for p in pairs], object))


def _scores(y: Array, said: Array) -> list[Score]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if not len(y):
        return [Score(name, None, {}, "no node has a label") for name in ("nmi", "ari")]
    return [
        Score("nmi", float(normalized_mutual_info_score(y, said))),
        Score("ari", float(adjusted_rand_score(y, said))),
    ]


# -- what must be beaten, and the read-out ---------------------------------------------------------------------------
class OneClusterModel(Model):
    """Group 0 for everything."""

    def __init__(self, method: Method, schema: Mapping[str, Any]) -> None:
        self.method, self.schema = method, schema

    def predict(self, part: Part) -> Array:
        return np.zeros(len(part.query.rows), np.int64)

    def state(self) -> Mapping[str, Any]:
        return {}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema)


class OneCluster(Method):
    """Puts all nodes into one group: an NMI and an ARI of 0."""

    name: ClassVar[str] = "one-cluster"
    tasks: ClassVar[tuple[str, ...]] = CLUSTERING
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[OneClusterModel]] = OneClusterModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> OneClusterModel:
        return OneClusterModel(self, dict(train.schema))


class CentresModel(Model):
    """The nearest of k centres float64 [k, F], in the target's features or in an encoder's vectors."""

    def __init__(self, method: Any, schema: Mapping[str, Any], centres: Tensor, sizes: Tensor, encoder: Any = None) -> None:
        self.method, self.schema, self.centres, self.sizes, self.encoder = method, schema, centres, sizes, encoder
        # what stands for features that are not there is a list of this graph's own nodes
        linked = encoder is None and not schema["features"]
        self.scope = encoder.scope if encoder is not None else "fitted data" if linked else "new data"

    def predict(self, part: Part) -> Array:
        """int64 [q]."""
        if self.encoder is None and self.scope == "fitted data":
            from .baselines import same_graph

            same_graph(self, part)
        x = self.method.matrix(part) if self.encoder is None else np.asarray(self.encoder.embed(part), np.float64)
        return nearest_centre(x[part.query.rows], self.centres.numpy())

    def state(self) -> Mapping[str, Any]:
        inner = {} if self.encoder is None else {f"encoder.{name}": value for name, value in self.encoder.state().items()}
        return {**inner, "centres": self.centres, "sizes": self.sizes}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        encoder = None
        if "encoder" in schema:
            inner = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
            encoder = type(method.encoder).model.restore(method.encoder, schema["encoder"], inner)
        return cls(method, schema, state["centres"], state["sizes"], encoder)

    def explain(self, part: Part) -> Findings:
        """The groups' sizes, and what the encoder says of itself."""
        rows = [{"cluster": k, "nodes": int(size)} for k, size in enumerate(self.sizes)]
        inner = Findings() if self.encoder is None else self.encoder.explain(part)
        return inner._replace(tables={**inner.tables, "sizes of the clusters": rows})


def nearest_centre(x: Any, centres: Array) -> Array:
    """int64 [n], the centre with the smallest Euclidean distance; x [n, F] dense or scipy CSR, centres [k, F]."""
    return np.asarray((np.asarray(x @ centres.T) - 0.5 * (centres**2).sum(1)).argmax(1), np.int64)


def kmeans_centres(x: Any, k: int, starts: int, run: Run) -> tuple[Tensor, Tensor]:
    """scikit-learn's k-means++ with `starts` starts, the one of least inertia kept: centres float64 [k, F], sizes [k]."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if x.shape[0] < k:
        raise UserError(f"{k} groups of {x.shape[0]} nodes; ask for fewer with -s task.clusters")
    if not np.isfinite(x.data if sp.issparse(x) else x).all():
        raise UserError("the vectors to be clustered hold NaN or infinite values")
    seed = int(run.rng("kmeans").integers(2**31))
    with threadpool_limits(limits=run.threads):
        centres = KMeans(k, n_init=starts, random_state=seed).fit(x).cluster_centers_.astype(np.float64)
    sizes = np.bincount(nearest_centre(x, centres), minlength=k)
    return torch.from_numpy(centres), torch.from_numpy(sizes)


class KMeansMethod(Method):
    """k-means (scikit-learn) on the target's features; where there are none, on which nodes each is linked to."""

    name: ClassVar[str] = "kmeans"
    tasks: ClassVar[tuple[str, ...]] = CLUSTERING
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[CentresModel]] = CentresModel
    starts: int = setting(10, "starts, of which the one of least inertia is kept", ge=1, le=1000)
    row_normalise: bool = setting(True, "divide a node's features by their sum where all are 0 or 1 (bags of words)")

    def matrix(self, part: Part) -> Any:
        """float64 [n, F], dense or CSR."""
        if part.schema["features"]:
            x = features_of(part, "cpu", self.row_normalise)
            return x.scipy().astype(np.float64) if isinstance(x, SparseFeatures) else x.numpy().astype(np.float64)
        steps = steps_from(tuple(part.data.edge_types), part.query.target, doubled_of(part.schema))
        if not steps:
            raise UserError(f"{part.query.target} nodes have neither features nor edges: there is nothing to cluster them by")
        return narrow(sp.csr_array(sp.hstack([biadjacency(part.data, step) for step in steps], format="csr", dtype=np.float64)))

    def fit(self, train: Part, valid: Part | None, run: Run) -> CentresModel:
        return CentresModel(
            self, dict(train.schema), *kmeans_centres(self.matrix(train), train.schema["clusters"], self.starts, run)
        )


class KMeansReadout(Method):
    """The task's read-out: k-means (scikit-learn) on an encoder's vectors of all target nodes, the same for all encoders."""

    name: ClassVar[str] = "kmeans-readout"
    tasks: ClassVar[tuple[str, ...]] = CLUSTERING
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[CentresModel]] = CentresModel
    encoder: Method = setting(..., "the method whose vectors are clustered")
    starts: int = setting(10, "starts, of which the one of least inertia is kept", ge=1, le=1000)

    def row(self) -> str:
        return f"{self.encoder.row()} + k-means"

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if Encoder not in self.encoder.gives:
            return f"{self.encoder.name} gives no vectors"
        return self.encoder.refuses(task, facts)

    def fit(self, train: Part, valid: Part | None, run: Run) -> CentresModel:
        encoder = run.model(self.encoder, train, valid)
        vectors = np.asarray(encoder.embed(train), np.float64)
        centres, sizes = kmeans_centres(vectors, train.schema["clusters"], self.starts, run)
        return CentresModel(self, {**train.schema, "encoder": dict(encoder.schema)}, centres, sizes, encoder)
