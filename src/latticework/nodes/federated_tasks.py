"""Federated node classification: which class has each node, where the graph lies in pieces at clients that may not pool them.

Every client's graph is seen whole at that client (transductive); labels are seen for the train nodes alone. The split is
drawn once over the nodes of all clients, before anything is cut: a node that two clients hold is on the same side at both,
so no test label is at hand elsewhere, and the share of train nodes varies from client to client, as it would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Task
from latticework.core.value import Value, setting
from latticework.data.clients import Clients, schema_of
from latticework.data.graph import Graph
from latticework.data.table import some

from .tasks import TEST, TRAIN, VALID, NodeQuery, asked_schema, match_features

Array = NDArray[Any]
Answer = tuple[Array, ...]


class ClientNodes(NamedTuple):
    """What is asked of each client: `asked` int64 [q_k] of its graph; `ids` of all its nodes. `names` are the clients'."""

    asked: tuple[Array, ...]
    ids: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]

    @property
    def total(self) -> int:
        return sum(len(rows) for rows in self.asked)


class FederatedNodeClassification(Task):
    """Probabilities over classes for the nodes of several clients' graphs; the headline is the mean of the clients' accuracies.

    Every client counts alike, whatever its size; its own score stands `at` the client. A client without a test node is left
    out of the mean, and one without a train node is an error. ``random`` draws a split of all labelled nodes for each repeat
    (which also draws the seed), ``fixed`` takes the column 'split' that the clients bring (repeats are seeds).
    """

    name: ClassVar[str] = "federated-node-classification"
    kinds: ClassVar[tuple[str, ...]] = ("clients",)
    role: ClassVar[type[Any]] = Predictor
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "", "higher"), Metric("macro-f1", "", "higher"))
    headline_metric: ClassVar[str] = "accuracy"
    Query: ClassVar[type[Value]] = NodeQuery

    protocol: Literal["random", "fixed"] = setting("random", "a fresh split of all nodes each, or the clients' column 'split'")
    train: float = setting(0.2, "share of the labelled nodes of a random split that trains", gt=0, lt=1)
    valid: float = setting(0.4, "share that validates; 0: there is no validation part", ge=0, lt=1)

    # -- folds ---------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> FederatedNodeClassification:
        facts = data.facts()
        if facts["multi-label"]:
            raise UserError("federated node classification needs one label a node (a column 'label'), and these have several")
        if not facts["labelled"]:
            raise UserError("no client has a labelled node; add a column 'label' to each nodes.csv with some of them filled")
        bare = facts["clients without a label"]
        if bare:
            raise UserError(
                f"client {some(bare)} has no labelled node, so it can neither train nor be judged; label some of its nodes, or "
                "leave its folder out"
            )
        if facts["classes"] < 2:
            raise UserError("all labelled nodes of all clients have one class; two are needed")
        if self.train + self.valid >= 1:
            raise UserError(f"train={self.train:g} and valid={self.valid:g} leave no node to test on; make them smaller")
        return self

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return ("client-majority", "local" if facts["features"] else "client-majority")

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        if self.protocol == "fixed":
            return [("fixed", seed) for seed in range(repeats)]
        return [(f"random-{i}", i) for i in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "fixed" if self.protocol == "fixed" else "all-0"

    def hidden(self, test: Part) -> list[Any]:
        return list(test.truth)

    def overlap(self, data: Dataset) -> float | None:
        return None if self.protocol == "fixed" else (1 - self.train - self.valid) / self.train

    def split(self, clients: Clients, fold: str) -> tuple[Array, ...]:
        """int8 [n_k] for each client: 0 train, 1 valid, 2 test, -1 neither."""
        kind, _, number = fold.partition("-")
        if kind == "fixed":
            codes = [self._fixed(name, g) for name, g in zip(clients.names, clients.graphs, strict=True)]
        else:
            whole = np.full(clients.total, -1, np.int8)
            nodes = np.random.default_rng([int(number), 0x666564]).permutation(np.flatnonzero(clients.labelled))
            train, valid = (0.8, 0.2) if kind == "all" else (self.train, self.valid)
            first, second = round(train * len(nodes)), round((train + valid) * len(nodes))
            whole[nodes[:first]], whole[nodes[first:second]], whole[nodes[second:]] = TRAIN, VALID, TEST
            if kind == "all":  # a model for use: a client with few labelled nodes, all drawn to validate, trains on them
                for place, graph in zip(clients.places, clients.graphs, strict=True):
                    own = place[graph.labelled]
                    if not (whole[own] == TRAIN).any():
                        whole[own] = TRAIN
            codes = [whole[place] for place in clients.places]
        for code, graph in zip(codes, clients.graphs, strict=True):
            code[~graph.labelled] = -1
        if kind == "fixed":
            _one_side(clients, codes)
        return tuple(codes)

    @staticmethod
    def _fixed(name: str, graph: Graph) -> Array:
        if graph.fixed is None:
            raise UserError(f"client {name!r} brings no column 'split' in its nodes.csv; use -s task.protocol=random")
        return graph.fixed.copy()

    def fold(self, data: Dataset, name: str) -> Fold:
        clients: Clients = data.read()
        self.for_data(data)
        split = self.split(clients, name)
        without = [n for n, code in zip(clients.names, split, strict=True) if not (code == TRAIN).any()]
        if without:
            raise UserError(
                f"split {name} leaves client {some(without)} without a train node; raise -s task.train, label more of its nodes, "
                "or use fewer clients"
            )
        seen = tuple(g.tensors() for g in clients.graphs)
        schema = schema_of(clients)
        parts = []
        for part in (TRAIN, VALID, TEST):
            rows = tuple(np.flatnonzero(code == part) for code in split)
            truth = tuple(_labels(g)[r] for g, r in zip(clients.graphs, rows, strict=True))
            query = ClientNodes(rows, tuple(g.ids for g in clients.graphs), clients.names)
            parts.append(Part(seen, query, truth, schema))
        if not parts[2].query.total and not name.startswith("all"):
            raise UserError(f"the test part of split {name} has no labelled node on any client")
        return Fold(parts[0], parts[1] if parts[1].query.total else None, parts[2])

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, NodeQuery) and data is not None
        clients: Clients = data.read()
        strange = [n for n in clients.names if n not in schema["clients"]]
        if strange:
            raise UserError(
                f"the model was not fitted for client {some(strange)}; it knows {some(schema['clients'], 20)}. Name the "
                "sub-folders so, or fit again with this client"
            )
        graphs = [match_features(g, schema["features"]) for g in clients.graphs]
        rows = []
        for graph in graphs:
            bare = np.flatnonzero(~graph.labelled) if query.nodes == "unlabelled" else np.arange(graph.nodes)
            rows.append(bare if len(bare) else np.arange(graph.nodes))
        asked = ClientNodes(tuple(rows), tuple(g.ids for g in graphs), clients.names)
        known = {**schema_of(clients), **asked_schema(schema), "features": schema["features"]}
        return Part(tuple(g.tensors() for g in graphs), asked, None, known)

    # -- answers -------------------------------------------------------------------------------------------------
    def answer(self, model: Any, part: Part, run: Run) -> Answer:
        found = tuple(np.asarray(chances, np.float64) for chances in model.predict(part))
        query: ClientNodes = part.query
        if len(found) != len(query.names):
            raise UserError(f"{model.method.name} answered for {len(found)} clients instead of {len(query.names)}")
        for name, chances, rows, ids in zip(query.names, found, query.asked, query.ids, strict=True):
            expected = (len(rows), len(part.schema["classes"]))
            if chances.shape != expected:
                raise UserError(
                    f"{model.method.name} gave {list(chances.shape)} for client {name!r} instead of class probabilities "
                    f"{list(expected)} (nodes x classes)"
                )
            bad = np.flatnonzero(~np.isfinite(chances).all(1))
            if len(bad):
                raise UserError(
                    f"{model.method.name} gave a value that is not finite for node {ids[rows[bad[0]]]!r} of client {name!r}"
                )
        return found

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        said = tuple(chances.argmax(1) for chances in answer)
        return _scores(part.query.names, part.truth, said)

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: client, id, prediction, and a column ``p(class)`` each."""
        import polars as pl

        classes, query = part.schema["classes"], part.query
        columns: dict[str, Any] = {
            "client": [name for name, rows in zip(query.names, query.asked, strict=True) for _ in rows],
            "id": [ids[i] for ids, rows in zip(query.ids, query.asked, strict=True) for i in rows],
            "prediction": [classes[c] for chances in answer for c in chances.argmax(1)],
        }
        chances = np.concatenate(answer)
        columns |= {f"p({name})": chances[:, c] for c, name in enumerate(classes)}
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        from latticework.core.dataset import open_data
        from latticework.data.table import need, read_table

        data = open_data(truth)
        if data.kind != "clients":
            raise UserError(f"{truth} holds {data.kind}; the truth is a folder of graph folders, one a client")
        clients: Clients = data.read()
        found = read_table(answers)
        columns = [need(answers, found, *names) for names in (("client",), ("id", "node"), ("prediction", "label"))]
        code = {name: k for k, name in enumerate(clients.classes)}
        place = {name: {i: r for r, i in enumerate(g.ids)} for name, g in zip(clients.names, clients.graphs, strict=True)}
        true: dict[str, list[int]] = {name: [] for name in clients.names}
        said: dict[str, list[int]] = {name: [] for name in clients.names}
        seen = set()
        for client, node, word in found.select(columns).iter_rows():
            if client not in place:
                raise UserError(f"{answers}: {truth} has no client {client!r}; it has {some(clients.names)}")
            graph = clients.graphs[clients.names.index(client)]
            row = place[client].get(node)
            if row is None or not graph.labelled[row]:
                raise UserError(
                    f"{answers}: node {node!r} of client {client!r} has no label in {truth}; judge labelled nodes only"
                )
            if (client, node) in seen:
                raise UserError(f"{answers}: node {node!r} of client {client!r} stands more than once; one answer a node")
            seen.add((client, node))
            true[client].append(int(_labels(graph)[row]))
            said[client].append(code.get(word, len(code)))
        names = clients.names
        return _scores(names, [np.array(true[n], np.int64) for n in names], [np.array(said[n], np.int64) for n in names])


def _one_side(clients: Clients, codes: Sequence[Array]) -> None:
    """A node that several clients hold is on one side of a split that they bring, or the split lets the test part be trained on."""
    sides, owner = np.full(clients.total, -1), np.zeros(clients.total, np.int64)
    for number, (code, place) in enumerate(zip(codes, clients.places, strict=True)):
        told = code >= 0
        rows = np.flatnonzero(told & (sides[place] >= 0) & (sides[place] != code))
        if len(rows):
            row = int(rows[0])
            words = {TRAIN: "train", VALID: "valid", TEST: "test"}
            other = clients.names[owner[place[row]]]
            raise UserError(
                f"node {clients.graphs[number].ids[row]!r} is in the {words[int(sides[place[row]])]} part of client {other!r} and in the "
                f"{words[int(code[row])]} part of {clients.names[number]!r} ({len(rows)} such); give it one side in both columns "
                "'split', or use -s task.protocol=random"
            )
        sides[place[told]], owner[place[told]] = code[told], number


def _labels(graph: Graph) -> Array:
    assert graph.y is not None
    return graph.y


def _scores(names: Any, truth: Any, said: Any) -> list[Score]:
    """The mean over clients first, then each client's own; a client without a judged node has none and is not in the mean."""
    from sklearn.metrics import accuracy_score, f1_score

    own: dict[str, list[Score]] = {"accuracy": [], "macro-f1": []}
    for name, y, classes in zip(names, truth, said, strict=True):
        at = {"slice": "client", "client": name, "nodes": len(y)}
        if not len(y):
            for metric, found in own.items():
                found.append(Score(metric, None, at, "no node of this client is judged"))
            continue
        own["accuracy"].append(Score("accuracy", float(accuracy_score(y, classes)), at))
        own["macro-f1"].append(Score("macro-f1", float(f1_score(y, classes, average="macro", zero_division=0)), at))
    scores = []
    for metric, found in own.items():
        values = [s.value for s in found if s.value is not None]
        scores.append(Score(metric, float(np.mean(values)) if values else None, {}, "" if values else "no node is judged"))
    return scores + own["accuracy"] + own["macro-f1"]
