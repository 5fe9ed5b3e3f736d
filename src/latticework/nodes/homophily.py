"""Homophily: how often neighbours share a class, by edge, by node, by class, and beyond chance; and what z can tell of it.

Over pairs of different, labelled nodes, each pair once: ``edge = share of pairs of one class``; ``node = mean over nodes of
the share of their neighbours with their class``; with D_c the sum of the degrees in class c, m pairs, ``adjusted = (edge -
sum_c (D_c / 2m)^2) / (1 - sum_c (D_c / 2m)^2)``; with h_c the share of the neighbours of class c that are of it, n_c of n
nodes in it, ``insensitive = 1 / (C - 1) sum_c max(0, h_c - n_c / n)``.

Sources: adjusted: "Characterizing Graph Datasets for Node Classification" (NeurIPS 2023), equation 4; class-insensitive:
"Large Scale Learning on Non-Homophilous Graphs" (NeurIPS 2021), section 3; the pattern z: see `latticework.nodes.hei`.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars, lines
from latticework.core.task import Task
from latticework.core.value import setting
from latticework.data.graph import Graph, joined, local_homophily, undirected_pairs

from .hei import neighbour_pattern
from .tasks import upper_half

Array = NDArray[Any]
BINS = 10


class Homophily(NamedTuple):
    """`edge`, `node`, `adjusted`, `insensitive`; `local` [n], NaN without labelled neighbours; `by_class` [C] is h_c, NaN
    for a class without neighbours; `degrees` [C] is D_c; `pairs` how many were counted."""

    edge: float
    node: float
    adjusted: float
    insensitive: float
    local: Array
    by_class: Array
    degrees: Array
    pairs: int


def homophily(graph: Graph) -> Homophily:
    """All measures of a graph with one label a node; nodes without a label and loops do not count, pairs count once.

    `adjusted` is NaN where all neighbours are of one class. ``ValueError`` for no pair of labelled nodes, or no single labels.
    """
    if graph.y is None or graph.multi_label:
        raise ValueError("homophily needs one label a node")
    y, C = graph.y, len(graph.classes)
    a, b = undirected_pairs(graph)
    both = (y[a] >= 0) & (y[b] >= 0)
    a, b = a[both], b[both]
    if not len(a):
        raise ValueError("no edge joins two different labelled nodes")
    same = y[a] == y[b]
    degree = np.bincount(y[a], minlength=C) + np.bincount(y[b], minlength=C)
    alike = 2 * np.bincount(y[a][same], minlength=C)
    edge = float(same.mean())
    chance = float(((degree / degree.sum()) ** 2).sum())
    by_class = np.divide(alike, degree, out=np.full(C, np.nan), where=degree > 0)
    share = np.bincount(y[y >= 0], minlength=C) / (y >= 0).sum()
    local = local_homophily(graph)
    return Homophily(
        edge, float(np.nanmean(local)), (edge - chance) / (1 - chance) if chance < 1 else float("nan"),
        float(np.maximum(np.nan_to_num(by_class) - share, 0)[degree > 0].sum() / max(C - 1, 1)),
        local, by_class, degree, len(a),
    )  # fmt: skip


class HomophilyProbe(Probe):
    """How homophilic a graph is, whether that differs between nodes and between train and test, and whether z can see it.

    Everything is read from true labels, all of them. `z` is HEI's neighbour pattern, from features and edges alone; its
    correlation with true homophily among the train nodes of `fold` (left out: among all labelled nodes) says what a method
    that infers environments from it has to go on. Near 0, as with most bags of words, that is little.
    """

    name: ClassVar[str] = "homophily"
    kinds: ClassVar[tuple[str, ...]] = ("graph",)
    similarity: Literal["norm2", "cos"] = setting("norm2", "z: mean distance to a node's neighbours, or mean product with them")
    task: Task | None = setting(
        None, "with fold: the task whose train and test nodes are compared (left out: node-classification)"
    )
    fold: str | None = setting(None, "a fold of the task, as in given-0 or fixed; left out: all labelled nodes together")

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("homophily needs a graph")
        graph: Graph = data.read()
        try:
            found = homophily(graph)
        except ValueError as reason:
            raise UserError(f"{reason}; homophily cannot be measured here") from None
        assert graph.y is not None
        local, known = found.local, np.isfinite(found.local)
        scalars: dict[str, Any] = {
            "edge": found.edge,
            "node": found.node,
            "adjusted": _number(found.adjusted),
            "class-insensitive": found.insensitive,
            "pairs of labelled nodes": found.pairs,
            "labelled nodes without labelled neighbour": int((graph.labelled & ~known).sum()),
            "share of nodes with more than half alike": float((local[known] > 0.5).mean()),
            "share of nodes with less than half alike": float((local[known] < 0.5).mean()),
        }
        above = upper_half(local[known])
        scalars["mean of the lower half of nodes"] = float(local[known][~above].mean())
        scalars["mean of the upper half of nodes"] = _number(local[known][above].mean() if above.any() else np.nan)
        rows = [
            {
                "class": name, "nodes": int((graph.y == c).sum()), "share of its neighbours in it": _number(found.by_class[c]),
                "share of all neighbours in it": float(found.degrees[c] / found.degrees.sum()),
                "mean over its nodes": _number(local[known & (graph.y == c)].mean() if (known & (graph.y == c)).any() else np.nan),
            }
            for c, name in enumerate(graph.classes)
        ]  # fmt: skip
        edges = np.linspace(0, 1, BINS + 1)
        words = [f"{low:.1f}–{high:.1f}" for low, high in itertools.pairwise(edges)]
        counts = np.histogram(local[known], edges)[0]
        figures = {
            "nodes by homophily": bars(words, counts.tolist(), "nodes by homophily", "share of neighbours with the node's class"),
            "homophily by class": bars(
                list(graph.classes), np.nan_to_num(found.by_class).tolist(), "homophily by class", "class"
            ),
        }
        tables = {"classes": rows}
        groups = self._groups(data, graph)
        if "train" in groups:
            scalars |= _compared(local, groups)
        scalars |= self._pattern(graph, local, groups.get("train", groups["labelled"]), figures, tables)
        return Findings(scalars, tables, figures)

    def _groups(self, data: Dataset, graph: Graph) -> dict[str, Array]:
        if self.fold is None:
            return {"labelled": np.flatnonzero(graph.labelled)}
        from .tasks import NodeClassification

        parts = (self.task or NodeClassification()).for_data(data).fold(data, self.fold)
        return {"labelled": np.flatnonzero(graph.labelled), "train": parts.train.query.rows, "test": parts.test.query.rows}

    def _pattern(
        self, graph: Graph, local: Array, rows: Array, figures: dict[str, str], tables: dict[str, Any]
    ) -> dict[str, Any]:
        from scipy.stats import pearsonr, spearmanr

        if graph.x is None:
            return {"z": "the nodes have no features, from which it is made"}
        try:
            z = neighbour_pattern(graph.x, joined(graph.edge_index, graph.weight), self.similarity)
        except ValueError as reason:
            raise UserError(f"homophily: {reason}") from None
        rows = rows[np.isfinite(local[rows])]
        own, true = z[rows].astype(np.float64), local[rows]
        found: dict[str, Any] = {"mean z": float(own.mean()), "standard deviation of z": float(own.std())}
        if len(rows) < 3 or not np.ptp(own) or not np.ptp(true):
            return {**found, "correlation of z with homophily": None, "rank correlation of z with homophily": None}
        found["correlation of z with homophily"] = float(pearsonr(own, true)[0])
        found["rank correlation of z with homophily"] = float(spearmanr(own, true)[0])
        found["nodes of the correlation"] = len(rows)
        tenths = np.array_split(np.argsort(own, kind="stable"), min(BINS, len(rows)))
        tables["homophily by pattern"] = [
            {"tenth of nodes by z": i + 1, "mean z": float(own[t].mean()), "mean homophily": float(true[t].mean())}
            for i, t in enumerate(tenths)
        ]
        figures["homophily against the pattern"] = lines(
            {"tenths of nodes by z": [(float(own[t].mean()), float(true[t].mean())) for t in tenths]},
            "mean homophily", "neighbour pattern z", dots=True,
        )  # fmt: skip
        return found


def _compared(local: Array, groups: dict[str, Array]) -> dict[str, Any]:
    """How far the train and test nodes' homophily lie apart."""
    from scipy.stats import ks_2samp

    found: dict[str, Any] = {}
    own = {word: local[groups[word]][np.isfinite(local[groups[word]])] for word in ("train", "test")}
    for word, values in own.items():
        found[f"mean of the {word} nodes"] = float(values.mean()) if len(values) else None
    if min(len(v) for v in own.values()):
        test = ks_2samp(own["train"], own["test"])
        found["distance of train and test (Kolmogorov-Smirnov)"] = float(test.statistic)
        found["p of no distance"] = float(test.pvalue)
    return found


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
