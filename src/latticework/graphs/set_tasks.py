"""Set regression and node regression: a number for each set, or for each node of graphs that were not trained on.

Both are judged by the mean absolute error, *at* the sizes of the sets or graphs, the headline being that over the sizes trained on:
what happens at other sizes is the interesting rest. On data drawn by a recipe a fold is a seed, and train, validation and test
parts are all fresh draws by that recipe, at sizes which are the task's own: no method can train on the test sizes. On given data a
fold is their own split, or a random one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from torch_geometric.data import Data

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data import graphs as graph_sets
from latticework.data.drawn_graphs import DrawnGraphs
from latticework.data.graph import Graph
from latticework.data.graphs import GraphSet
from latticework.data.sets import DrawnSets, SetRows, Sets, schema_of
from latticework.data.table import matched_columns

from .scenarios import generator

Array = NDArray[Any]
TRAIN, VALID, TEST = 0, 1, 2
MOST_SIZES = 12  # given data with more different sizes than this are judged in ranges of sizes


class Numbers(NamedTuple):
    """An answer: `values` float64 [q], and how far they move with another order of the elements, `gap` float64 [q], where known."""

    values: Array
    gap: Array | None = None


class NodeRows(NamedTuple):
    """Which nodes are asked about: `rows` int64 [q], numbered over all graphs of the part; `graphs`, their ids; `ids` of all nodes."""

    rows: Array
    graphs: tuple[str, ...]
    ids: tuple[str, ...]


class NumberTask(Task):
    """What tasks share that ask for one number a thing: parts by protocol, the form of an answer, its scores."""

    role: ClassVar[type[Any]] = Predictor
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("mae", "", "lower"),
        Metric("rmse", "", "lower"),
        Metric("permutation-gap", "", "lower"),
    )
    headline_metric: ClassVar[str] = "mae"

    protocol: Literal["auto", "drawn", "given", "random"] = setting(
        "auto",
        "drawn: fresh draws by the data's recipe; given: the data's own split; random: one a fold; auto: what the data allow",
    )
    test_sizes: tuple[int, ...] = setting((), "protocol=drawn: sizes that are tested at; left out: as the task says")
    tests: int = setting(0, "protocol=drawn: sets (or graphs) tested at each size; 0: 2,000 sets, 100 graphs", ge=0, le=1_000_000)
    train: float = setting(0.7, "protocol=random: share that trains", gt=0, lt=1)
    valid: float = setting(0.1, "protocol=random: share that validates", ge=0, lt=1)

    @model_validator(mode="after")
    def _bounds(self) -> Any:
        if self.train + self.valid >= 1:
            raise ValueError(f"train={self.train} and valid={self.valid} leave nothing to test")
        if any(size < 1 for size in self.test_sizes) or len(set(self.test_sizes)) < len(self.test_sizes):
            raise ValueError(f"test_sizes are different sizes of 1 or more, not {self.test_sizes}")
        return self

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth]

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        protocol = self.for_data(data).protocol
        if protocol == "given":
            return [("given", i) for i in range(repeats)]
        return [(f"{protocol}-{i}", i) for i in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "drawn-0" if self.for_data(data).protocol == "drawn" else "all"

    def overlap(self, data: Dataset) -> float | None:
        return (1 - self.train - self.valid) / self.train if self.for_data(data).protocol == "random" else None

    def cut(self, n: int, name: str, own: Array | None) -> Array:
        """int8 [n]: 0 train, 1 valid, 2 test, -1 neither, of things that all have a truth."""
        split = np.full(n, TRAIN, np.int8)
        if name == "given":
            assert own is not None
            return own.astype(np.int8)
        shares = (0.0, max(self.valid, 0.1)) if name == "all" else (1 - self.train - self.valid, self.valid)
        order = generator("numbers", name).permutation(n)
        tests, valids = round(shares[0] * n), round(shares[1] * n)
        split[order[:tests]] = TEST
        split[order[tests : tests + valids]] = VALID
        return split

    # -- answers -----------------------------------------------------------------------------------------------------
    def answer(self, model: Any, part: Part, run: Run) -> Numbers:
        found = np.asarray(model.predict(part), np.float64)
        q = len(part.query.rows)
        if found.shape not in ((q,), (q, 1)):
            raise UserError(f"{model.method.name} gave {list(found.shape)} instead of numbers [{q}], one for each that was asked")
        if not np.isfinite(found).all():
            place = self.things(part)[int(np.flatnonzero(~np.isfinite(found.reshape(-1)))[0])]
            raise UserError(f"{model.method.name} gave a value that is not finite for {place!r}")
        gap = model.permutation_gap(part) if hasattr(model, "permutation_gap") else None
        return Numbers(found.reshape(-1), None if gap is None else np.asarray(gap, np.float64))

    def things(self, part: Part) -> Sequence[str]:
        """A name for each thing that is asked about."""
        raise NotImplementedError

    def coordinates(self, part: Part) -> tuple[Array, Array]:
        """The size of each thing that is asked about int64 [q], and whether it is one that was trained on bool [q]."""
        raise NotImplementedError

    def groups(self, part: Part) -> list[tuple[dict[str, Any], Array]]:
        """Coordinates of further scores, with the rows bool [q] that they are about."""
        size, _ = self.coordinates(part)
        found = np.unique(size)
        if self.protocol == "drawn" or len(found) <= MOST_SIZES:
            return [({"size": int(s)}, size == s) for s in found]
        return ranges("size", size)

    def score(self, answer: Numbers, part: Part, run: Run | None) -> list[Score]:
        error = np.abs(answer.values - part.truth)
        _, trained = self.coordinates(part)
        own = trained if trained.any() else np.ones(len(error), bool)
        scores = [Score("mae", float(error[own].mean())), Score("rmse", float(np.sqrt((error[own] ** 2).mean())))]
        if answer.gap is not None:
            scores.append(Score("permutation-gap", float(answer.gap[own].mean())))
        for at, rows in self.groups(part):
            at = {**at, "count": int(rows.sum())} if "slice" in at else at
            scores.append(Score("mae", float(error[rows].mean()), at))
            if answer.gap is not None:
                scores.append(Score("permutation-gap", float(answer.gap[rows].mean()), at))
        return scores


def ranges(what: str, values: Array) -> list[tuple[dict[str, Any], Array]]:
    """Up to four ranges of whole numbers with about as many things each, as slices."""
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75], method="higher"))
    group, found = np.searchsorted(edges, values, side="left"), []
    for i in np.unique(group):
        low, high = int(values[group == i].min()), int(values[group == i].max())
        found.append(({"slice": what, "range": f"{low}" if low == high else f"{low}–{high}"}, group == i))
    return found


# -- sets ----------------------------------------------------------------------------------------------------------------
class SetQuery(Query):
    """Which of the user's sets are predicted."""

    name: ClassVar[str] = "sets"
    sets: Literal["unlabelled", "all"] = setting("unlabelled", "those without a target (all, where every one has one), or all")


class SetRegression(NumberTask):
    """A number for each set. Drawn data: sizes evenly from `train_sizes` in training, `tests` fresh sets at each of `test_sizes`.

    The headline is the MAE over test sets of sizes within the training range. On given data `train_sizes` leaves out of training (not
    of the test) what is smaller or larger.
    """

    name: ClassVar[str] = "set-regression"
    kinds: ClassVar[tuple[str, ...]] = ("sets",)
    Query: ClassVar[type[Value]] = SetQuery

    train_sizes: tuple[int, ...] = setting(
        (), "smallest and largest set trained on; left out: 2,16 of drawn sets, all of given ones"
    )

    @model_validator(mode="after")
    def _range(self) -> Any:
        if self.train_sizes and (len(self.train_sizes) != 2 or not 0 <= self.train_sizes[0] <= self.train_sizes[1]):
            raise ValueError(f"train_sizes are the smallest and the largest size, as in 2,16, not {self.train_sizes}")
        return self

    def for_data(self, data: Dataset) -> SetRegression:
        drawn = isinstance(data, DrawnSets)
        if not drawn:
            sets: Sets = data.read()
            if sets.y is None or np.isnan(sets.y).all():
                raise UserError("no set has a target; add a column or an array 'target'")
        if self.protocol == "auto":
            own = not drawn and _complete(data.read().split)
            return self.but(protocol="drawn" if drawn else "given" if own else "random").for_data(data)
        if self.protocol == "drawn":
            if not drawn:
                raise UserError("protocol=drawn is for data with a recipe to draw by; use given or random")
            open_fields = {"train_sizes": (2, 16), "test_sizes": (4, 8, 16, 32, 64), "tests": 2000}
            left = {key: value for key, value in open_fields.items() if not getattr(self, key)}
            return self.but(**left) if left else self
        if self.protocol == "given" and (drawn or not _complete(data.read().split)):
            raise UserError("the data bring no split into train and test; use protocol=random")
        return self

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "median", "set-net:sum"

    # -- folds -------------------------------------------------------------------------------------------------------
    def fold(self, data: Dataset, name: str) -> Fold:
        task = self.for_data(data)
        if isinstance(data, DrawnSets):
            return task._drawn(data, name)
        sets: Sets = data.read()
        assert sets.y is not None
        known = np.flatnonzero(~np.isnan(sets.y))
        split = task.cut(len(known), name, None if sets.split is None else sets.split[known])
        inside = task.within(sets.sizes[known])
        train, valid, test = (known[(split == code) & (inside if code != TEST else True)] for code in (TRAIN, VALID, TEST))
        for word, rows in (("train", train), ("test", test)):
            if not len(rows) and not (word == "test" and name == "all"):
                raise UserError(f"the {word} part of {name} holds no set: {len(known)} sets with a target are too few")
        parts = [self._part(sets.take(rows)) for rows in (train, valid, test)]
        return Fold(parts[0], parts[1] if len(valid) else None, parts[2])

    def _drawn(self, data: DrawnSets, name: str) -> Fold:
        """Train and validation sizes evenly from the range; a tenth as many sets validate as train."""
        parts = []
        low, high = self.train_sizes
        for word, count in (("train", data.sets), ("valid", max(data.sets // 10, 1))):
            rng = generator("sets", data.seed, name, word)
            parts.append(self._part(data.draw(rng.integers(low, high + 1, count), rng)))
        sizes = np.repeat(np.array(self.test_sizes, np.int64), self.tests)
        return Fold(parts[0], parts[1], self._part(data.draw(sizes, generator("sets", data.seed, name, "test"))))

    @staticmethod
    def _part(sets: Sets) -> Part:
        return Part(sets.hidden(), SetRows(np.arange(len(sets)), sets.ids), sets.y, schema_of(sets))

    def within(self, sizes: Array) -> Array:
        if not self.train_sizes:
            return np.ones(len(sizes), bool)
        return np.asarray((sizes >= self.train_sizes[0]) & (sizes <= self.train_sizes[1]))

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, SetQuery) and data is not None
        sets: Sets = data.read()
        if query.sets == "unlabelled" and sets.y is not None and np.isnan(sets.y).any():
            sets = sets.take(np.flatnonzero(np.isnan(sets.y)))
        values = matched_columns(sets.values, sets.features, schema["features"], len(sets.values), "element", "value")
        sets = replace(sets.hidden(), values=values, features=tuple(schema["features"]), _cache={})
        return Part(sets, SetRows(np.arange(len(sets)), sets.ids), None, schema_of(sets))

    # -- judging -----------------------------------------------------------------------------------------------------
    def things(self, part: Part) -> Sequence[str]:
        return part.query.ids  # type: ignore[no-any-return]

    def coordinates(self, part: Part) -> tuple[Array, Array]:
        sizes = part.data.sizes[part.query.rows]
        return sizes, self.within(sizes)

    def write(self, answer: Numbers, part: Part, to: Path) -> None:
        """CSV: set, prediction."""
        import polars as pl

        ids = [part.query.ids[i] for i in part.query.rows.tolist()]
        write_whole(to, pl.DataFrame({"set": ids, "prediction": answer.values}).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Scores of a CSV (set,prediction) against sets with their targets (``sets.npz`` or ``sets.csv``), by the ids of the sets."""
        from latticework.data.sets import read_sets
        from latticework.data.table import need, numbers, read_table

        sets = read_sets(truth)
        frame = read_table(answers)
        names = frame[need(answers, frame, "set")].to_list()
        said = dict(zip(names, numbers(answers, frame[need(answers, frame, "prediction")]).to_list(), strict=True))
        if len(said) < len(names):
            raise UserError(f"{answers}: a set stands more than once; one line a set")
        place = {name: i for i, name in enumerate(sets.ids)}
        strange = [name for name in names if name not in place or sets.y is None or np.isnan(sets.y[place[name]])]
        if strange:
            raise UserError(f"{answers}: set {strange[0]!r} has no target in {truth} ({len(strange)} such)")
        chosen = sets.take(np.array([place[name] for name in names], np.int64))
        return self.score(Numbers(np.array(list(said.values()), np.float64)), self._part(chosen), None)


def _complete(split: Array | None) -> bool:
    """Whether a split names both what trains and what tests."""
    return split is not None and bool((split == TRAIN).any() and (split == TEST).any())


# -- nodes ---------------------------------------------------------------------------------------------------------------
class NodeQuery(Query):
    """Which nodes of the user's graphs are predicted."""

    name: ClassVar[str] = "node-numbers"
    nodes: Literal["all", "unlabelled"] = setting(
        "all", "all, or those of graphs with unknown targets (all, where every one is known)"
    )


class NodeRegression(NumberTask):
    """A number for each node of graphs of which none was trained on.

    Drawn data: `graphs` of the data train, a tenth as many validate, `tests` fresh ones test at each of `test_sizes` (nodes of a graph;
    left out: the recipe's own number and larger ones); the headline is the MAE over nodes of test graphs as large as trained ones.
    Graph sets of the user's own are split by graph. A single graph (kind *graph*) has its numbers in a column of ``nodes.csv`` that
    `target` names, which no method sees as a feature; its nodes are split, by the column ``split`` or at random, and the whole graph
    without the numbers is seen in training and in testing.
    """

    name: ClassVar[str] = "node-regression"
    kinds: ClassVar[tuple[str, ...]] = ("graph-set", "graph")
    Query: ClassVar[type[Value]] = NodeQuery

    target: str = setting("", "kind graph: the numeric column of nodes.csv that is predicted")

    def for_data(self, data: Dataset) -> NodeRegression:
        drawn, whole = isinstance(data, DrawnGraphs), data.kind == "graph"
        if whole:
            column_of(data.read(), self.target)
        else:
            known = data.read().node_targets
            if known is None or np.isnan(known).all():
                raise UserError("the graphs have no numbers at their nodes to train on (node_targets)")
        if self.protocol == "auto":
            own = whole and _complete(data.read().fixed)
            return self.but(protocol="drawn" if drawn else "given" if own else "random").for_data(data)
        if self.protocol == "drawn":
            if not isinstance(data, DrawnGraphs):
                raise UserError("protocol=drawn is for data with a recipe to draw by; use random")
            left = {"test_sizes": data.test_sizes(), "tests": 100}
            left = {key: value for key, value in left.items() if not getattr(self, key)}
            return self.but(**left) if left else self
        if self.protocol == "given" and not (whole and _complete(data.read().fixed)):
            raise UserError("the data bring no split into train and test; use protocol=random")
        return self

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "median", "graph-net:sum"

    # -- folds -------------------------------------------------------------------------------------------------------
    def fold(self, data: Dataset, name: str) -> Fold:
        task = self.for_data(data)
        if isinstance(data, DrawnGraphs):
            return task._drawn(data, name)
        if data.kind == "graph":
            return task._of_one(data.read(), name)
        given: GraphSet = data.read()
        assert given.node_targets is not None
        has = np.add.reduceat((~np.isnan(given.node_targets)).astype(np.int64), given.ptr[:-1]) > 0
        known = np.flatnonzero(has)
        split = task.cut(len(known), name, None)
        rows = [known[split == code] for code in (TRAIN, VALID, TEST)]
        for word, index in (("train", rows[0]), ("test", rows[2])):
            if not len(index) and not (word == "test" and name == "all"):
                raise UserError(f"the {word} part of {name} holds no graph: {len(known)} graphs with node targets are too few")
        schema = node_schema(given)
        train, valid, test = (self._part(given.take(index), schema) for index in rows)
        return Fold(train, valid if len(rows[1]) else None, test)

    def _drawn(self, data: DrawnGraphs, name: str) -> Fold:
        parts = []
        for word, count in (("train", data.graphs), ("valid", max(data.graphs // 10, 1))):
            rng = generator("graphs", data.seed, name, word)
            parts.append(data.draw(data.sizes(count, rng), rng))
        sizes = np.repeat(np.array(self.test_sizes, np.int64), self.tests)
        parts.append(data.draw(sizes, generator("graphs", data.seed, name, "test")))
        low, high = data.size_range()
        schema = node_schema(parts[0]) | {"train nodes": [low, high]}
        train, valid, test = (self._part(graphs, schema) for graphs in parts)
        return Fold(train, valid, test)

    def _of_one(self, graph: Graph, name: str) -> Fold:
        y, rest = column_of(graph, self.target)
        split = self.cut(graph.nodes, name, graph.fixed)
        schema = node_schema(rest, self.target)
        parts = [
            Part([rest.tensors()], NodeRows(np.flatnonzero(split == code), ("graph",), rest.ids), y[split == code], schema)
            for code in (TRAIN, VALID, TEST)
        ]
        for word, part in (("train", parts[0]), ("test", parts[2])):
            if not len(part.truth) and not (word == "test" and name == "all"):
                raise UserError(f"the {word} part of {name} holds no node: {graph.nodes} nodes are too few")
        return Fold(parts[0], parts[1] if len(parts[1].truth) else None, parts[2])

    @staticmethod
    def _part(given: GraphSet, schema: Mapping[str, Any]) -> Part:
        y = given.node_targets
        rows = np.flatnonzero(~np.isnan(y)) if y is not None else np.arange(given.nodes)
        truth = None if y is None else y[rows].astype(np.float64)
        return Part(given.graphs(), NodeRows(rows, given.ids, ()), truth, schema)

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, NodeQuery) and data is not None
        given: Any = data.read()
        if isinstance(given, Graph):
            graph = column_of(given, self.target)[1] if self.target in given.features else given
            x = matched_columns(graph.x, graph.features, schema["features"], graph.nodes)
            graph = replace(graph, x=x, features=tuple(schema["features"]), _cache={})
            return Part([graph.tensors()], NodeRows(np.arange(graph.nodes), ("graph",), graph.ids), None, node_schema(graph))
        given = graph_sets.match_features(given, schema)
        if query.nodes == "unlabelled" and given.node_targets is not None and np.isnan(given.node_targets).any():
            of = np.repeat(np.arange(len(given)), given.sizes)
            given = given.take(np.unique(of[np.isnan(given.node_targets)]))
        return self._part(replace(given, node_targets=None, _cache={}), node_schema(given))

    # -- judging -----------------------------------------------------------------------------------------------------
    def things(self, part: Part) -> Sequence[str]:
        graph, node = _places(part)
        ids = part.query.ids
        return [ids[n] if ids else f"node {n} of graph {part.query.graphs[g]}" for g, n in zip(graph, node, strict=True)]

    def coordinates(self, part: Part) -> tuple[Array, Array]:
        graph, _ = _places(part)
        sizes = np.array([int(g.num_nodes) for g in part.data], np.int64)[graph]
        low, high = part.schema.get("train nodes", [0, np.inf])
        return sizes, (sizes >= low) & (sizes <= high)

    def groups(self, part: Part) -> list[tuple[dict[str, Any], Array]]:
        """By the number of nodes, and by degree among those of trained sizes."""
        degree = np.concatenate([np.bincount(g.edge_index[1].numpy(), minlength=int(g.num_nodes)) for g in part.data])
        found = super().groups(part) if len(part.data) > 1 else []
        return found + ranges("degree", degree[part.query.rows])

    def write(self, answer: Numbers, part: Part, to: Path) -> None:
        """CSV: graph, node, prediction."""
        import polars as pl

        graph, node = _places(part)
        ids = part.query.ids
        columns = {
            "graph": [part.query.graphs[g] for g in graph], "node": [ids[n] if ids else str(n) for n in node],
            "prediction": answer.values,
        }  # fmt: skip
        write_whole(to, pl.DataFrame(columns).write_csv())


def _places(part: Part) -> tuple[list[int], list[int]]:
    """The graph of each asked node, and its number in it."""
    ptr = np.concatenate(([0], np.cumsum([int(g.num_nodes) for g in part.data])))
    graph = np.searchsorted(ptr, part.query.rows, side="right") - 1
    return graph.tolist(), (part.query.rows - ptr[graph]).tolist()


def node_schema(given: GraphSet | Graph, target: str = "node target") -> dict[str, Any]:
    """What a model keeps; the keys are those of graph tasks, with one target and no class."""
    edge = tuple(given.edge_features) if isinstance(given, GraphSet) else ()
    return {
        "classes": [], "features": list(given.features), "edge_features": list(edge), "targets": [target], "multi": False,
        "at": "nodes",
    }  # fmt: skip


def column_of(graph: Graph, target: str) -> tuple[Array, Graph]:
    """The numbers float64 [n] of a column of the nodes, and the graph without it."""
    if graph.x is None or target not in graph.features:
        found = ", ".join(graph.features[:8]) or "none"
        asked = f"no numeric column {target!r}" if target else "no target"
        raise UserError(f"{asked}: name a numeric column of nodes.csv by -s task.target=NAME; found {found}")
    place = graph.features.index(target)
    rest = [i for i in range(len(graph.features)) if i != place]
    y = graph.x[:, place].astype(np.float64)
    names = tuple(graph.features[i] for i in rest)
    # labels say more about a node than a user who names a target wants seen
    return y, replace(graph, x=graph.x[:, rest] if rest else None, features=names, y=None, classes=(), _cache={})


def graphs_of(part: Part) -> list[Data]:
    """The graphs of a part of either kind, as networks take them: edges both ways, `x` and `edge_attr` where there are some."""
    found = []
    for graph in part.data:
        edges = graph.edge_index
        if getattr(graph, "directed", False):
            from torch_geometric.utils import to_undirected

            edges = to_undirected(edges, num_nodes=int(graph.num_nodes))
        held = {"edge_index": edges, "num_nodes": int(graph.num_nodes)}
        held |= {key: graph[key] for key in ("x", "edge_attr") if graph.get(key) is not None}
        found.append(Data(**held))
    return found
