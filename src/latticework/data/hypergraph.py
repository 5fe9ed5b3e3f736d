"""The kind *hypergraph*: container, reader of users' files, check, writer.

A user's folder holds ``hyperedges.csv`` (edge,node: one line a membership) and ``nodes.csv`` (id[,label][,features...]);
also read: parquet, a lone ``hyperedges.csv``, a PyG ``HyperGraphData``. A folder with ``nodes.csv`` alone, without labels,
is a hypergraph whose hyperedges are not known: a model that reads features alone answers for it. Reading is lossless and
says what it did: ids and class names are text, hyperedges keep their order, equal hyperedges stay apart, and each act is a
sentence in `Hypergraph.notes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_folder
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, bytes_digest, stamps
from .graph import Graph, Nodes, bags_of, coded, fact_lines, ids_of, nodes_table, with_columns
from .table import column_named, find_table, header, line_of, need, read_table

Array = np.ndarray[Any, Any]
EDGE_WORDS, NODE_WORDS = ("edge", "hyperedge"), ("node", "vertex")


@dataclass(frozen=True)
class Hypergraph:
    """A hypergraph as it was written.

    Hyperedge e holds the vertices ``edge_nodes[edge_ptr[e]:edge_ptr[e + 1]]``, each once: edge_ptr int64 [E + 1],
    edge_nodes int64 [memberships]. x float32 [n, F] or none; y int64 [n] with -1 where unknown, or none. `linked` is false
    where no hyperedges were given at all.
    """

    edge_ptr: Array
    edge_nodes: Array
    ids: tuple[str, ...]
    edge_ids: tuple[str, ...]
    x: Array | None = None
    y: Array | None = None
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    linked: bool = True
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def nodes(self) -> int:
        return len(self.ids)

    @property
    def hyperedges(self) -> int:
        return len(self.edge_ptr) - 1

    @property
    def sizes(self) -> Array:
        """int64 [E]: vertices of each hyperedge."""
        return np.diff(self.edge_ptr)

    @property
    def edge_index(self) -> Array:
        """int64 [2, memberships]: vertex above, hyperedge below."""
        return np.stack([self.edge_nodes, np.repeat(np.arange(self.hyperedges), self.sizes)])

    @property
    def degrees(self) -> Array:
        """int64 [n]: hyperedges of each vertex."""
        return np.bincount(self.edge_nodes, minlength=self.nodes)

    @property
    def labelled(self) -> Array:
        """bool [n]: vertices with a known label."""
        return np.zeros(self.nodes, bool) if self.y is None else np.asarray(self.y >= 0)

    def tensors(self) -> Any:
        """A PyG ``HyperGraphData`` without labels: what a model may see.

        `vertices`, `hyperedges` and `linked` stand beside: its own ``num_nodes`` is guessed anew where it equals the number
        of hyperedges, and then misses isolated vertices at the end.
        """
        if "data" not in self._cache:
            import torch
            from torch_geometric.data.hypergraph_data import HyperGraphData

            data = HyperGraphData(
                x=None if self.x is None else torch.from_numpy(np.ascontiguousarray(self.x, dtype=np.float32)),
                edge_index=torch.from_numpy(np.ascontiguousarray(self.edge_index)),
                num_nodes=self.nodes,
            )
            data.vertices, data.hyperedges, data.linked = self.nodes, self.hyperedges, self.linked
            self._cache["data"] = data
        return self._cache["data"]


# -- making --------------------------------------------------------------------------------------------------------------
def from_memberships(vertex: Array, edge: Array, edges: int) -> tuple[Array, Array, int]:
    """(edge_ptr, edge_nodes, repeats left out) of memberships int64 [m] (vertex, hyperedge), in the order of their lines."""
    order = np.argsort(edge, kind="stable")
    vertex, edge = vertex[order], edge[order]
    n = int(vertex.max(initial=-1)) + 1
    first = np.unique(edge * n + vertex, return_index=True)[1] if len(vertex) else np.zeros(0, np.int64)
    repeats = len(vertex) - len(first)
    if repeats:
        keep = np.sort(first)
        vertex, edge = vertex[keep], edge[keep]
    pointer = np.concatenate([[0], np.cumsum(np.bincount(edge, minlength=edges))]).astype(np.int64)
    return pointer, vertex.astype(np.int64), repeats


def finish(graph: Hypergraph) -> Hypergraph:
    """Refuse empty hyperedges; count singletons, isolated vertices and equal hyperedges, and say so."""
    n = graph.nodes
    if len(graph.edge_nodes) and (graph.edge_nodes.min() < 0 or graph.edge_nodes.max() >= n):
        raise UserError(f"a hyperedge names a vertex outside 0..{n - 1}")
    empty = np.flatnonzero(graph.sizes == 0)
    if len(empty):
        raise UserError(
            f"hyperedge {graph.edge_ids[int(empty[0])]!r} has no node ({len(empty)} such); remove it or name its nodes"
        )
    notes = list(graph.notes)
    single = int((graph.sizes == 1).sum())
    alone = int((graph.degrees == 0).sum())
    same = graph.hyperedges - distinct_hyperedges(graph)
    if single:
        notes.append(f"{single} hyperedges of one node kept; they join nothing")
    if same:
        notes.append(f"{same} hyperedges repeat the nodes of another; all are kept and count")
    if alone and graph.linked:
        notes.append(f"{alone} nodes are in no hyperedge; methods give each one of its own")
    return replace(graph, notes=tuple(notes))


def distinct_hyperedges(graph: Hypergraph) -> int:
    """How many different sets of vertices the hyperedges are."""
    order = np.lexsort((graph.edge_nodes, graph.edge_index[1]))
    pieces = np.split(graph.edge_nodes[order], graph.edge_ptr[1:-1])
    return len({p.tobytes() for p in pieces}) if graph.hyperedges else 0


def subhypergraph(graph: Hypergraph, nodes: Array) -> Hypergraph:
    """The hypergraph on some of the vertices, in the order given: others leave their hyperedges, empty ones are dropped."""
    place = np.full(graph.nodes, -1, np.int64)
    place[nodes] = np.arange(len(nodes))
    vertex, edge = graph.edge_index
    stays = place[vertex] >= 0
    vertex, edge = place[vertex[stays]], edge[stays]
    kept, code = np.unique(edge, return_inverse=True)
    pointer, members, _ = from_memberships(vertex, code, len(kept))
    return replace(
        graph, edge_ptr=pointer, edge_nodes=members, ids=tuple(graph.ids[i] for i in nodes),
        edge_ids=tuple(graph.edge_ids[e] for e in kept), x=None if graph.x is None else graph.x[nodes],
        y=None if graph.y is None else graph.y[nodes],
        notes=(*graph.notes, f"{len(nodes)} of {graph.nodes} nodes kept"), _cache={},
    )  # fmt: skip


# -- reading -------------------------------------------------------------------------------------------------------------
def read_hypergraph(path: Path | str) -> Hypergraph:
    """A user's folder, or a lone file of memberships."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if not path.is_dir():
        return _from_tables(path, None)
    members, nodes = find_table(path, "hyperedges"), find_table(path, "nodes")
    if members is None and nodes is None:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise UserError(f"{path} has neither hyperedges.csv (edge,node) nor nodes.csv; found {found}")
    return _from_tables(members, nodes)


def _from_tables(members_path: Path | None, nodes_path: Path | None) -> Hypergraph:
    notes: list[str] = []
    nodes = read_table(nodes_path) if nodes_path else None
    ids = ids_of(nodes_path, nodes) if nodes_path is not None and nodes is not None else None
    pointer, member, edge_names = np.zeros(1, np.int64), np.zeros(0, np.int64), ()
    if members_path is None:
        notes.append("no hyperedges.csv: how nodes belong together is not known, so only models of features alone can answer")
    else:
        table = read_table(members_path)
        edge_column, node_column = need(members_path, table, *EDGE_WORDS), need(members_path, table, *NODE_WORDS)
        for column, word in ((edge_column, "hyperedge has no name"), (node_column, "hyperedge {} has no node")):
            empty = (table[column].is_null() | (table[column] == "")).arg_true()
            if len(empty):
                said = word.format(repr(table[edge_column][empty[0]]))
                raise UserError(f"{members_path}, line {line_of(empty[0])}: the {said}; remove the line or fill the {column}")
        names, (edge,) = coded([table[edge_column]])
        ids, (vertex,) = coded([table[node_column]], ids)
        if nodes_path is None:
            notes.append(f"no nodes.csv: the {len(ids)} nodes are those that hyperedges name")
        unknown = np.flatnonzero(vertex < 0)
        if len(unknown):
            row = int(unknown[0])
            more = f" ({len(unknown)} such lines)" if len(unknown) > 1 else ""
            raise UserError(
                f"{members_path}, line {line_of(row)}: {node_column} {table[node_column][row]!r} is not an id of "
                f"{nodes_path.name if nodes_path else 'the nodes'}{more}; add the node or remove the line"
            )
        edge_names = tuple(names.to_list())
        pointer, member, repeats = from_memberships(vertex, edge, len(edge_names))
        if repeats:
            notes.append(f"{repeats} repeated lines of {members_path.name} left out: a node is in a hyperedge once")
        unused = [c for c in table.columns if c not in (edge_column, node_column)]
        if unused:
            notes.append(f"columns of {members_path.name} that nothing reads: {', '.join(unused)}")
    assert ids is not None
    # what nodes.csv says of its nodes is read as for graphs
    columns = Graph(np.zeros((2, 0), np.int64), tuple(ids.to_list()))
    if nodes is not None and nodes_path is not None:
        if column_named(nodes, "labels"):
            raise UserError(
                f"{nodes_path}: column 'labels' holds several labels a node; hypergraphs take one, in a column 'label'"
            )
        columns = with_columns(columns, nodes_path, nodes, notes)
        if columns.fixed is not None:
            notes.append("column 'split' is not used: labels are drawn by the task (task.labels, task.valid)")
    return finish(
        Hypergraph(
            pointer, member, columns.ids, edge_names, x=columns.x, y=columns.y, classes=columns.classes,
            features=columns.features, linked=members_path is not None, notes=tuple(notes),
        )
    )  # fmt: skip


def is_hypergraph_data(given: Any) -> bool:
    """Whether an object is a PyG ``HyperGraphData``, without importing PyG."""
    return any(kind.__name__ == "HyperGraphData" for kind in type(given).__mro__)


def from_pyg(data: Any) -> Hypergraph:
    """A PyG ``HyperGraphData``: x, y (-1: unknown) and edge_index [2, memberships], vertex above and hyperedge below."""
    held = data.to_dict()
    index = held.get("edge_index")
    if index is None or index.ndim != 2 or index.shape[0] != 2:
        raise UserError("a HyperGraphData needs edge_index [2, memberships]: vertices above, hyperedges below")
    vertex, edge = index.cpu().numpy().astype(np.int64)
    if len(vertex) and min(vertex.min(), edge.min()) < 0:
        raise UserError("edge_index of a HyperGraphData holds a negative number")
    x, y = held.get("x"), held.get("y")
    n = len(x) if x is not None else len(y) if y is not None else int(held.get("num_nodes") or vertex.max(initial=-1) + 1)
    if y is not None and ((y.ndim > 1 and y.shape[1] > 1) or len(y) != n):
        raise UserError(f"y of a HyperGraphData is {list(y.shape)}; one label for each of the {n} vertices is needed")
    if x is not None and x.ndim != 2:
        raise UserError(f"x of a HyperGraphData is {list(x.shape)}; [{n}, features] is read, a row for each vertex")
    values = None if x is None else x.cpu().numpy().astype(np.float32)
    if values is not None and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise UserError(f"x of a HyperGraphData holds a value that is not finite, first in row {row}")
    labels = None if y is None else y.reshape(-1).cpu().numpy().astype(np.int64)
    edges = int(edge.max(initial=-1)) + 1
    pointer, member, repeats = from_memberships(vertex, edge, edges)
    return finish(
        Hypergraph(
            pointer, member, tuple(str(i) for i in range(n)), tuple(str(e) for e in range(edges)), x=values, y=labels,
            classes=() if labels is None else tuple(str(c) for c in range(int(labels.max(initial=-1)) + 1)),
            features=() if values is None else tuple(f"x{i}" for i in range(values.shape[1])),
            notes=(f"{repeats} repeated memberships left out",) if repeats else (),
        )
    )  # fmt: skip


# -- what a hypergraph is like -------------------------------------------------------------------------------------------
def agreement(graph: Hypergraph) -> Array:
    """float64 [E]: share of the commonest class among a hyperedge's labelled vertices; NaN below two of them."""
    assert graph.y is not None
    vertex, edge = graph.edge_index
    known = graph.y[vertex] >= 0
    counts = np.zeros((graph.hyperedges, len(graph.classes)))
    np.add.at(counts, (edge[known], graph.y[vertex[known]]), 1)
    total = counts.sum(1)
    return np.where(total >= 2, counts.max(1, initial=0) / np.maximum(total, 1), np.nan)


def facts(graph: Hypergraph) -> dict[str, Any]:
    """Counts and shapes: what ``data check`` prints and what methods look at before they refuse."""
    size, degree = graph.sizes, graph.degrees
    found: dict[str, Any] = {
        "nodes": graph.nodes,
        "hyperedges": graph.hyperedges,
        "linked": graph.linked,
        "memberships": len(graph.edge_nodes),
        "hyperedge size min / median / max": _spread(size),
        "hyperedges of a node min / median / max": _spread(degree),
        "hyperedges of one node": int((size == 1).sum()),
        "equal hyperedges": graph.hyperedges - distinct_hyperedges(graph),
        "isolated nodes": int((degree == 0).sum()),
        "features": 0 if graph.x is None else int(graph.x.shape[1]),
        "classes": len(graph.classes),
        "multi-label": False,
        "labelled": int(graph.labelled.sum()),
    }
    if graph.y is not None and len(graph.classes):
        counts = np.bincount(graph.y[graph.y >= 0], minlength=len(graph.classes))
        found["class sizes"] = {name: int(c) for name, c in zip(graph.classes, counts, strict=True)}
        share = agreement(graph)
        # one class in each hyperedge would be 1; nodes of random classes give about the largest class's share or more
        found["mean share of a hyperedge's commonest class"] = float(np.nanmean(share)) if np.isfinite(share).any() else None
    return found


def _spread(values: Array) -> list[float]:
    return [int(values.min()), float(np.median(values)), int(values.max())] if len(values) else [0, 0.0, 0]


def schema_of(graph: Hypergraph) -> dict[str, Any]:
    """What a model keeps of the hypergraph it was fitted on."""
    return {
        "classes": list(graph.classes),
        "features": list(graph.features),
        "multi": False,
        "nodes": graph.nodes,
        "graph": digest_of([graph.nodes, hashlib.sha256(graph.edge_index.tobytes()).hexdigest(), list(graph.ids[:5])])[:16],
        "bags": bags_of(graph),
    }


def whole_part(graph: Hypergraph) -> Part:
    """The whole hypergraph without labels, for methods that need none."""
    return Part(graph.tensors(), Nodes(np.arange(graph.nodes), graph.ids), None, schema_of(graph))


# -- writing -------------------------------------------------------------------------------------------------------------
def write_hypergraph(graph: Hypergraph, folder: Path) -> None:
    """``hyperedges.csv`` and ``nodes.csv`` that `read_hypergraph` reads back as the same hypergraph."""
    import polars as pl

    def fill(draft: Path) -> None:
        if graph.linked:
            vertex, edge = graph.edge_index
            names, ids = np.array(graph.edge_ids, object), np.array(graph.ids, object)
            pl.DataFrame({"edge": names[edge].tolist(), "node": ids[vertex].tolist()}).write_csv(draft / "hyperedges.csv")
        alone = Graph(np.zeros((2, 0), np.int64), graph.ids, x=graph.x, y=graph.y, classes=graph.classes, features=graph.features)
        nodes_table(alone).write_csv(draft / "nodes.csv")

    write_folder(folder, fill)


# -- the data set of a user's files --------------------------------------------------------------------------------------
class HypergraphSet(Dataset):
    """What hypergraph data sets share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "hypergraph"

    def facts(self) -> Mapping[str, Any]:
        return facts_of(self.read())

    def check(self) -> list[str]:
        return check_lines(self.read())

    def write(self, to: Path) -> None:
        write_hypergraph(self.read(), to)

    def whole(self) -> Part:
        return whole_part(self.read())


class HypergraphFiles(HypergraphSet):
    """A user's hypergraph, by path; its identity is the bytes of the files, not where they lie."""

    name: ClassVar[str] = "hypergraph-files"
    path: Path = setting(..., "a folder with hyperedges.csv and nodes.csv (or, to predict from features, nodes.csv alone)")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By header: memberships have an edge and a node; a folder of nodes alone has neither labels nor other tables."""
        if not path.is_dir():
            names = set(header(path)) if path.suffix in (".csv", ".parquet") else set()
            return bool(names & set(EDGE_WORDS)) and bool(names & set(NODE_WORDS))
        if find_table(path, "hyperedges") is not None:
            return True
        nodes = find_table(path, "nodes")
        if nodes is None or any(p.suffix in (".csv", ".parquet") and p != nodes for p in path.iterdir()):
            return False
        # with labels it is what somebody wants to train on, and a forgotten table of edges must not pass unseen
        return not set(header(nodes)) & {"label", "labels"}

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """A PyG ``HyperGraphData`` or a `Hypergraph` made in Python."""
        from .hypergraph_sets import GivenHypergraph

        if isinstance(given, Hypergraph):
            return GivenHypergraph.hold(given)
        return GivenHypergraph.hold(from_pyg(given)) if is_hypergraph_data(given) else None

    def read(self) -> Hypergraph:
        return _read_cached(self.path, stamps(_files(self.path), self.path))

    def digest(self) -> str:
        return digest_of([self.name, bytes_digest(stamps(_files(self.path), self.path))])


def check_lines(graph: Hypergraph) -> list[str]:
    """What was understood, as lines for people."""
    return fact_lines(facts_of(graph)) + list(graph.notes)


def facts_of(graph: Hypergraph) -> dict[str, Any]:
    """`facts`, computed once a hypergraph."""
    if "facts" not in graph._cache:
        graph._cache["facts"] = facts(graph)
    found: dict[str, Any] = graph._cache["facts"]
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [p for p in (find_table(path, "hyperedges"), find_table(path, "nodes")) if p is not None]
    return [path] if path.exists() else []


@lru_cache(maxsize=8)
def _read_cached(path: Path, stamp: tuple[Stamp, ...]) -> Hypergraph:
    return read_hypergraph(path)
