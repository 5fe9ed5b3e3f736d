"""The kind *graph set*: many small graphs, each with a class, numbers, or numbers at its nodes. Container, readers, check, writer.

A user brings a TUDataset folder (``NAME_A.txt``, ``NAME_graph_indicator.txt``, …), the one-file text form (the number of graphs;
per graph ``n label``, then a line ``tag m neighbours`` for each node), ``.g6`` lines, a CSV with a column ``smiles`` (in
`data.molecules`), or a list of PyG ``Data``. Reading is lossless and says what it did: edges stay as written, class names and
node tags are text, each act is a sentence in `GraphSet.notes`.

Two graphs are *WL twins* where 1-WL colour refinement, started from the node features, cannot tell them apart. Twins in train
and test are a leak that published sets do have; `check` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, arrays_digest, bytes_digest, stamps
from .graph import distinct, fact_lines
from .ratings import id_order
from .table import header, matched_columns, some

Array = np.ndarray[Any, Any]
SMILES = "smiles"
FORM = (
    "a TUDataset folder (NAME_A.txt, NAME_graph_indicator.txt, …), its one-file text, graph6 (.g6), or a CSV with a column smiles"
)


class Graphs(NamedTuple):
    """What is asked: `rows` int64 [q] of a part's graphs; `ids` of all its graphs."""

    rows: Array
    ids: tuple[str, ...]


@dataclass(frozen=True)
class GraphSet:
    """Graphs as they were written, end to end.

    sizes int64 [G], nodes of each graph; edge_index int64 [2, m], numbered over the whole set and sorted by graph (both
    directions where the file lists both); x float32 [n, F] and edge_x float32 [m, D] or none; y int64 [G] with -1 where
    unknown; targets float64 [G, T] and node_targets float32 [n] with NaN where unknown; folds int8 [G], the published test
    fold 1..k of each graph, 0: in none.
    """

    ids: tuple[str, ...]
    sizes: Array
    edge_index: Array
    x: Array | None = None
    features: tuple[str, ...] = ()
    edge_x: Array | None = None
    edge_features: tuple[str, ...] = ()
    y: Array | None = None
    classes: tuple[str, ...] = ()
    targets: Array | None = None
    target_names: tuple[str, ...] = ()
    node_targets: Array | None = None
    folds: Array | None = None
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nodes(self) -> int:
        """How many nodes there are in all."""
        return int(self.ptr[-1])

    @property
    def ptr(self) -> Array:
        """int64 [G + 1]: graph g has the nodes ptr[g] to ptr[g + 1] - 1."""
        if "ptr" not in self._cache:
            self._cache["ptr"] = ends_of(self.sizes)
        return self._cache["ptr"]  # type: ignore[no-any-return]

    @property
    def graph_of_edge(self) -> Array:
        """int64 [m]: the graph of each edge."""
        if "graph of edge" not in self._cache:
            self._cache["graph of edge"] = np.repeat(np.arange(len(self)), self.sizes)[self.edge_index[0]]
        return self._cache["graph of edge"]  # type: ignore[no-any-return]

    @property
    def edge_ptr(self) -> Array:
        """int64 [G + 1]: where the edges of each graph stand."""
        if "edge ptr" not in self._cache:
            self._cache["edge ptr"] = ends_of(np.bincount(self.graph_of_edge, minlength=len(self)))
        return self._cache["edge ptr"]  # type: ignore[no-any-return]

    def take(self, rows: Any) -> GraphSet:
        """Some of the graphs (numbers in the order wanted, or a mask bool [G]), numbered anew."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        sizes, counts = self.sizes[rows], np.diff(self.edge_ptr)[rows]
        shift = self.ptr[rows] - ends_of(sizes)[:-1]
        node, edge = ranges(self.ptr[rows], sizes), ranges(self.edge_ptr[rows], counts)

        def some_of(array: Array | None, which: Array) -> Array | None:
            return None if array is None else array[which]

        return replace(
            self, ids=tuple(self.ids[i] for i in rows.tolist()), sizes=sizes,
            edge_index=self.edge_index[:, edge] - np.repeat(shift, counts), x=some_of(self.x, node),
            edge_x=some_of(self.edge_x, edge), y=some_of(self.y, rows), targets=some_of(self.targets, rows),
            node_targets=some_of(self.node_targets, node), folds=some_of(self.folds, rows), _cache={},
        )  # fmt: skip

    def graphs(self, rows: Any = None) -> list[Any]:
        """PyG ``Data`` of some graphs (left out: all) without any truth: edge_index, num_nodes, x and edge_attr where the set has them.

        The tensors are views of this set: whoever changes one clones it first.
        """
        import torch
        from torch_geometric.data import Data

        if rows is not None:
            return self.take(rows).graphs()
        local = torch.from_numpy(self.edge_index - self.ptr[self.graph_of_edge])
        x = None if self.x is None else torch.from_numpy(self.x)
        edge_x = None if self.edge_x is None else torch.from_numpy(self.edge_x)
        at, to = self.ptr.tolist(), self.edge_ptr.tolist()
        found = []
        for g in range(len(self)):
            held = {"edge_index": local[:, to[g] : to[g + 1]], "num_nodes": at[g + 1] - at[g]}
            if x is not None:
                held["x"] = x[at[g] : at[g + 1]]
            if edge_x is not None:
                held["edge_attr"] = edge_x[to[g] : to[g + 1]]
            found.append(Data(**held))
        return found


def ends_of(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def ranges(starts: Array, counts: Array) -> Array:
    """starts[0], starts[0] + 1, … (counts[0] of them), starts[1], …"""
    return np.repeat(starts - ends_of(counts)[:-1], counts) + np.arange(int(counts.sum()))


def schema_of(graphs: GraphSet) -> dict[str, Any]:
    """What a model keeps of the graphs it was fitted on."""
    return {
        "classes": list(graphs.classes),
        "features": list(graphs.features),
        "edge_features": list(graphs.edge_features),
        "targets": list(graphs.target_names),
        "multi": False,
    }


def checked(graphs: GraphSet, where: str = "the graphs") -> GraphSet:
    """The same graphs, their shapes, numbers and names looked at; `UserError` names the first graph at fault."""
    G, n, m = len(graphs), int(np.sum(graphs.sizes)), graphs.edge_index.shape[1]
    if not G:
        raise UserError(f"{where}: there is no graph")
    if len(set(graphs.ids)) < G:
        twice = next(i for k, i in enumerate(graphs.ids) if i in graphs.ids[:k])
        raise UserError(f"{where}: two graphs have the id {twice!r}; ids are unique")
    shapes: tuple[tuple[str, Array | None, tuple[int, ...]], ...] = (
        ("sizes", graphs.sizes, (G,)), ("edge_index", graphs.edge_index, (2, m)), ("x", graphs.x, (n, len(graphs.features))),
        ("edge_x", graphs.edge_x, (m, len(graphs.edge_features))), ("y", graphs.y, (G,)),
        ("targets", graphs.targets, (G, len(graphs.target_names))), ("node_targets", graphs.node_targets, (n,)),
        ("folds", graphs.folds, (G,)),
    )  # fmt: skip
    for what, array, shape in shapes:
        if array is not None and array.shape != shape:
            raise UserError(f"{where}: {what} has shape {array.shape}, expected {shape}")
    if graphs.sizes.min() < 1:
        raise UserError(f"{where}: graph {graphs.ids[int(graphs.sizes.argmin())]!r} has no node; leave it out")
    if m:
        u, v = graphs.edge_index
        if min(u.min(), v.min()) < 0 or max(u.max(), v.max()) >= n:
            raise UserError(f"{where}: an edge names a node outside 0 to {n - 1}")
        of = np.repeat(np.arange(G), graphs.sizes)
        a, b = of[u], of[v]
        if (a != b).any():
            e = int(np.argmax(a != b))
            raise UserError(f"{where}: an edge joins a node of graph {graphs.ids[a[e]]!r} with one of {graphs.ids[b[e]]!r}")
        if (np.diff(a) < 0).any():
            raise UserError(f"{where}: the edges are not sorted by graph")
    for what, array, names in (
        ("node feature", graphs.x, graphs.features),
        ("edge feature", graphs.edge_x, graphs.edge_features),
    ):
        if array is not None and not np.isfinite(array).all():
            row, column = np.argwhere(~np.isfinite(array))[0].tolist()
            g = (
                int(np.searchsorted(graphs.ptr, row, side="right")) - 1
                if what == "node feature"
                else int(graphs.graph_of_edge[row])
            )
            at = row - int((graphs.ptr if what == "node feature" else graphs.edge_ptr)[g])
            raise UserError(
                f"{where}: {what} {names[column]!r} of {what.split()[0]} {at} in graph {graphs.ids[g]!r} is {array[row, column]}, not a finite number"
            )
    for what, array in (("target", graphs.targets), ("node target", graphs.node_targets)):
        if array is not None and np.isinf(array).any():
            raise UserError(f"{where}: a {what} is infinite; NaN says that one is unknown")
    if graphs.y is not None and not (graphs.y.min() >= -1 and graphs.y.max() < len(graphs.classes)):
        raise UserError(f"{where}: a class has a number outside -1 to {len(graphs.classes) - 1}")
    return graphs


# -- lists of Data ------------------------------------------------------------------------------------------------------
def coded_texts(texts: Sequence[str]) -> tuple[tuple[str, ...], Array]:
    """The different texts in order (by value where all are whole numbers) and each one's number, -1 for the empty text."""
    known = list(dict.fromkeys(t for t in texts if t))
    names = tuple(known[i] for i in id_order(known).tolist())
    code = {name: i for i, name in enumerate(names)} | {"": -1}
    return names, np.fromiter((code[t] for t in texts), np.int64, len(texts))


def coded_classes(where: str, texts: Sequence[str], advice: str) -> tuple[tuple[str, ...], Array]:
    """`coded_texts` of labels; many different ones are numbers to predict, or names."""
    classes, y = coded_texts(texts)
    if len(classes) > 50 and len(classes) > len(y) / 2:
        raise UserError(
            f"{where}: {len(classes)} different labels of {len(y)} ({some(classes)}) look like numbers or names; {advice}"
        )
    return classes, y


def target_names_of(count: int) -> tuple[str, ...]:
    """Names of targets that nothing names."""
    return ("target",) if count == 1 else tuple(f"target{i}" for i in range(count))


def from_data(given: Sequence[Any]) -> GraphSet:
    """A list of PyG ``Data``: x, edge_index, edge_attr, and y.

    y is a class where it is one whole number a graph, a number for each node where it is as long as the graph has nodes, and
    targets of the graph elsewhere ([1, T]). All have the same attributes and widths; an error names the first graph that has not.
    """
    if not len(given):
        raise UserError("the list of graphs is empty")

    def array(g: int, data: Any, name: str) -> Array | None:
        value = getattr(data, name, None)
        if value is None:
            return None
        if name == "y" and isinstance(value, str):
            value = [value]
        found = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
        return found[:, None] if name in ("x", "edge_attr") and found.ndim == 1 else found

    parts: dict[str, list[Array]] = {}
    sizes: list[int] = []
    notes = [
        f"{name} of the graphs is not read" + ("; put it into edge_attr" if name == "edge_weight" else "; put it into x")
        for name in ("edge_weight", "pos")
        if any(getattr(data, name, None) is not None for data in given)
    ]
    # one number a node, as long as all graphs say so
    lengths = [len(data.y) if getattr(getattr(data, "y", None), "ndim", 0) == 1 else -1 for data in given]
    by_node = all(length == getattr(data, "num_nodes", None) for length, data in zip(lengths, given, strict=True))
    by_node = by_node and max(lengths) > 1
    for g, data in enumerate(given):
        if not hasattr(data, "edge_index") or hasattr(data, "edge_types"):
            raise UserError(f"graph {g} of the list is a {type(data).__name__}, not a PyG Data with an edge_index")
        n, edges = data.num_nodes, array(g, data, "edge_index")
        if not n:
            raise UserError(f"graph {g} of the list has no node; leave it out")
        edges = np.zeros((2, 0), np.int64) if edges is None else edges.astype(np.int64)
        if edges.ndim != 2 or len(edges) != 2:
            raise UserError(f"graph {g} of the list has an edge_index of shape {edges.shape}, expected (2, edges)")
        if edges.size and (edges.min() < 0 or edges.max() >= n):
            raise UserError(
                f"graph {g} of the list has an edge to node {int(edges.max() if edges.max() >= n else edges.min())}, outside 0 to {n - 1}"
            )
        parts.setdefault("edge_index", []).append(edges)
        sizes.append(int(n))
        for name, rows in (("x", int(n)), ("edge_attr", edges.shape[1]), ("y", None)):
            value = array(g, data, name)
            before = parts.get(name)
            if (value is not None) != (before is not None) and g:
                has, lacks = (g, 0) if value is not None else (0, g)
                raise UserError(f"graph {has} of the list has {name}, and graph {lacks} has none; give all of them one, or none")
            if value is None:
                continue
            if name == "y":
                value = value.reshape((-1, 1) if by_node else (1, -1))
            if value.ndim != 2 or (rows is not None and len(value) != rows):
                raise UserError(f"graph {g} of the list has {name} of shape {value.shape}, expected ({rows}, columns)")
            if before and before[0].shape[1] != value.shape[1]:
                raise UserError(f"graph {g} of the list has {value.shape[1]} columns in {name}, graph 0 has {before[0].shape[1]}")
            parts.setdefault(name, []).append(value)
    ptr = ends_of(np.array(sizes))
    edge_index = np.concatenate([e + p for e, p in zip(parts["edge_index"], ptr[:-1], strict=True)], axis=1)
    joined = {name: np.concatenate(values) for name, values in parts.items() if name != "edge_index"}
    x, edge_x, y = joined.get("x"), joined.get("edge_attr"), joined.get("y")
    code: Array | None = None
    classes: tuple[str, ...] = ()
    targets: Array | None = None
    node_targets = y[:, 0].astype(np.float32) if y is not None and by_node else None
    if y is None or by_node:
        pass
    elif y.dtype.kind in "iub" and y.shape[1] == 1:
        classes, code = coded_texts([str(int(v)) if v >= 0 else "" for v in y[:, 0]])
        if below := int((y[:, 0] < 0).sum()):
            notes.append(f"{below} graphs have a y below 0, which is read as no label; number classes from 0")
    elif y.dtype.kind == "U" and y.shape[1] == 1:
        classes, code = coded_texts(y[:, 0].tolist())
    elif y.dtype.kind == "U":
        raise UserError(f"graph 0 of the list has a y of {y.shape[1]} texts; a class is one text a graph")
    else:
        targets = y.astype(np.float64)
    return GraphSet(
        tuple(str(g) for g in range(len(given))), np.array(sizes, np.int64), edge_index,
        x=None if x is None else x.astype(np.float32), features=() if x is None else tuple(f"x{i}" for i in range(x.shape[1])),
        edge_x=None if edge_x is None else edge_x.astype(np.float32),
        edge_features=() if edge_x is None else tuple(f"e{i}" for i in range(edge_x.shape[1])), y=code, classes=classes,
        targets=targets, target_names=() if targets is None else target_names_of(targets.shape[1]),
        node_targets=node_targets, notes=tuple(notes),
    )  # fmt: skip


# -- direction -----------------------------------------------------------------------------------------------------------
def _lacking(graphs: GraphSet) -> Array:
    """bool [m]: edges whose reverse is not written."""
    u, v = graphs.edge_index
    n = graphs.nodes
    held = np.sort(u * n + v)
    place = np.minimum(np.searchsorted(held, v * n + u), max(len(held) - 1, 0))
    return np.asarray(held[place] != v * n + u) if len(held) else np.zeros(0, bool)


def both_ways(graphs: GraphSet) -> GraphSet:
    """The same graphs with the reverse of every edge that lacks it, with the features of the edge."""
    lacking = _lacking(graphs)
    edge_index = np.concatenate([graphs.edge_index, graphs.edge_index[::-1][:, lacking]], axis=1)
    order = np.argsort(np.concatenate([graphs.graph_of_edge, graphs.graph_of_edge[lacking]]), kind="stable")
    edge_x = None if graphs.edge_x is None else np.concatenate([graphs.edge_x, graphs.edge_x[lacking]])[order]
    note = f"declared undirected: {int(lacking.sum())} reverse edges added"
    return replace(graphs, edge_index=edge_index[:, order], edge_x=edge_x, notes=(*graphs.notes, note), _cache={})


# -- 1-WL ----------------------------------------------------------------------------------------------------------------
def _mixed(values: Array) -> Array:
    """A permutation of uint64 that scatters its bits (the finaliser of splitmix64)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _row_codes(x: Array | None, rows: int) -> Array:
    """uint64 [rows]: a number of each row's content; zeros add nothing, so further columns of zeros change nothing."""
    code = np.zeros(rows, np.uint64)
    for k in range(0 if x is None else x.shape[1]):
        assert x is not None
        bits = (x[:, k] + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0: one zero, not two
        code += np.where(bits != 0, _mixed(bits ^ np.uint64((k + 1) << 32)), np.uint64(0))
    return _mixed(code)


def wl_node_codes(graphs: GraphSet, rounds: int) -> Iterator[Array]:
    """uint64 [n] after 0, 1, …, `rounds` rounds of colour refinement: equal codes are equal colours.

    c_0(v) = h(x_v);  c_t(v) = h(c_{t-1}(v), {{ h(c_{t-1}(u), e_uv) : u -> v }}), a multiset by the sum of its members' codes
    modulo 2^64. Nothing is numbered by a set's content, so codes can be compared across sets with the same features. Two
    colours share a code with probability below n^2 / 2^64 (Shervashidze et al. 2011, section 3, with a fixed 64-bit hash).
    """
    order = np.argsort(graphs.edge_index[1], kind="stable")
    source = graphs.edge_index[0][order]
    ends = ends_of(np.bincount(graphs.edge_index[1], minlength=graphs.nodes))
    along = None if graphs.edge_x is None else _row_codes(graphs.edge_x, graphs.edge_index.shape[1])[order]
    code = _row_codes(graphs.x, graphs.nodes)
    yield code
    for _ in range(rounds):
        sent = _mixed(code)[source] if along is None else _mixed(_mixed(code)[source] + along)
        code = _mixed(_mixed(code) * np.uint64(3) + _mixed(_sums(sent, ends) + np.uint64(1)))
        yield code


def _sums(values: Array, ends: Array) -> Array:
    """Sums modulo 2^64 of the runs of values that end at `ends`."""
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    return np.asarray(total[ends[1:]] - total[ends[:-1]])


def wl_colours(graphs: GraphSet, rounds: int | None = 3) -> Array:
    """int64 [G]: the class of each graph by 1-WL, numbered by first appearance: equal numbers are WL-equivalent graphs.

    `rounds` of refinement, started from the node features and along the edges' features; none: until no colour splits any more,
    which is all that 1-WL can tell. The same in every process.
    """
    key = f"wl {rounds}"
    if key not in graphs._cache:
        before, last = 0, np.zeros(0, np.uint64)
        for code in wl_node_codes(graphs, int(graphs.sizes.max()) if rounds is None else rounds):
            last = code
            if rounds is None:
                colours = len(distinct(code))
                if colours == before:
                    break
                before = colours
        whole = _mixed(_sums(_mixed(last), graphs.ptr) + graphs.sizes.astype(np.uint64))
        _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        graphs._cache[key] = rank[inverse]
    return graphs._cache[key]  # type: ignore[no-any-return]


# -- what graphs are like ------------------------------------------------------------------------------------------------
def facts(graphs: GraphSet) -> dict[str, Any]:
    """Counts and shapes; computed once."""
    if "facts" not in graphs._cache:
        graphs._cache["facts"] = _facts(graphs)
    found: dict[str, Any] = graphs._cache["facts"]
    return found


def _facts(graphs: GraphSet) -> dict[str, Any]:
    u, v = graphs.edge_index
    n, sizes = graphs.nodes, graphs.sizes
    pairs = distinct((np.minimum(u, v) * n + np.maximum(u, v))[u != v])
    joined = np.zeros(n, bool)
    joined[np.concatenate([u[u != v], v[u != v]])] = True
    colours = wl_colours(graphs, None)
    found: dict[str, Any] = {
        "graphs": len(graphs),
        "nodes": n,
        "nodes, largest/median/smallest": [int(sizes.max()), float(np.median(sizes)), int(sizes.min())],
        "edges": len(u),
        "pairs joined": len(pairs),
        "directed": bool(_lacking(graphs).any()),
        "self-loops": int((u == v).sum()),
        "repeated edges": len(u) - len(distinct(u * n + v)),
        "isolated nodes": int((~joined).sum()),
        "graphs without edges": int((np.diff(graphs.edge_ptr) == 0).sum()),
        "features": len(graphs.features),
        "edge features": len(graphs.edge_features),
        "classes": len(graphs.classes),
        "labelled": 0 if graphs.y is None else int((graphs.y >= 0).sum()),
        "targets": list(graphs.target_names),
        "node targets": 0 if graphs.node_targets is None else int(np.isfinite(graphs.node_targets).sum()),
        "folds": 0 if graphs.folds is None else len(np.unique(graphs.folds[graphs.folds > 0])),
        "duplicates": int((np.bincount(colours)[colours] > 1).sum()),
    }
    if graphs.y is not None:
        counts = np.bincount(graphs.y[graphs.y >= 0], minlength=len(graphs.classes))
        found["class sizes"] = {name: int(c) for name, c in zip(graphs.classes, counts, strict=True)}
    return found


def twin_pairs(graphs: GraphSet) -> tuple[int, int]:
    """(pairs of WL twins, those of them with different known classes)."""
    colours = wl_colours(graphs, None)

    def pairs(counts: Array) -> int:
        return int((counts * (counts - 1) // 2).sum())

    every = pairs(np.bincount(colours))
    if graphs.y is None or not (graphs.y >= 0).any():
        return every, 0
    known = graphs.y >= 0
    alike = np.unique(colours[known] * len(graphs.classes) + graphs.y[known], return_counts=True)[1]
    return every, pairs(np.bincount(colours[known])) - pairs(alike)


def twins_across(graphs: GraphSet, folds: Array) -> int:
    """How many test graphs have a WL twin outside of their fold, over all folds (0 is never tested)."""
    colours = wl_colours(graphs, None)
    k = int(folds.max()) + 1
    total, inside = np.bincount(colours), np.bincount(colours * k + folds, minlength=(colours.max() + 1) * k)
    return int(((total[colours] > inside[colours * k + folds]) & (folds > 0)).sum())


def remarks(graphs: GraphSet) -> list[str]:
    """What `data check` says beside the facts."""
    found = facts(graphs)
    lines = list(graphs.notes)
    if found["directed"]:
        lacking = int(_lacking(graphs).sum())
        lines.append(
            f"directed: {lacking} of {found['edges']} edges lack their reverse (say data.directed=false if they are undirected)"
        )
    for key, says in (
        ("self-loops", "self-loops kept"),
        ("repeated edges", "repeated edges kept; sums over neighbours count them again"),
        ("graphs without edges", "graphs have no edge"),
    ):
        if found[key]:
            lines.append(f"{found[key]} {says}")
    alone = int((graphs.sizes == 1).sum())
    if alone:
        lines.append(f"{alone} graphs have one node")
    if graphs.x is None:
        lines.append("no node features: methods start from the degrees of the nodes")
    lines += _ranges_of("feature", graphs.x, graphs.features) + _ranges_of("edge feature", graphs.edge_x, graphs.edge_features)
    if graphs.targets is not None:
        for k, name in enumerate(graphs.target_names):
            known = graphs.targets[np.isfinite(graphs.targets[:, k]), k]
            spread = f"{known.min():.4g} to {known.max():.4g}, mean {known.mean():.4g}" if len(known) else "nothing known"
            lines.append(f"target {name}: {spread}; {len(graphs) - len(known)} unknown")
    for name, count in found.get("class sizes", {}).items():
        if count < 10:
            lines.append(f"class {name!r} has {count} graphs: ten folds leave some without it")
    pairs, unlike = twin_pairs(graphs)
    if pairs:
        says = (
            f"; {unlike} of them have different classes, which 1-WL and message passing cannot tell apart"
            if found["classes"]
            else ""
        )
        lines.append(f"{found['duplicates']} graphs have a WL twin: {pairs} pairs{says}")
    if graphs.folds is not None:
        never = int((graphs.folds == 0).sum())
        lines.append(f"the {found['folds']} published folds never test {never} of {len(graphs)} graphs")
        folds, which = graphs.folds.astype(np.int64), "over the published folds"
        lines += _folds_without_a_class(graphs)
    else:
        folds, which = np.random.default_rng(0).permutation(len(graphs)) % 10 + 1, "over ten folds cut by chance"
    if pairs:
        across, tested = twins_across(graphs, folds), int((folds > 0).sum())
        lines.append(f"{across} of {tested} test graphs ({across / max(tested, 1):.1%}) have a WL twin in train, {which}")
    return lines


def _folds_without_a_class(graphs: GraphSet) -> list[str]:
    if graphs.y is None or graphs.folds is None:
        return []
    lines = []
    for fold in np.unique(graphs.folds[graphs.folds > 0]).tolist():
        inside, outside = set(graphs.y[graphs.folds == fold].tolist()), set(graphs.y[graphs.folds != fold].tolist())
        for code, name in enumerate(graphs.classes):
            if code not in outside:
                lines.append(f"outside of fold {fold} no graph has class {name!r}: it cannot be predicted there")
            elif code not in inside:
                lines.append(f"fold {fold} tests no graph of class {name!r}")
    return lines


def _ranges_of(what: str, x: Array | None, names: tuple[str, ...]) -> list[str]:
    """Ranges of the columns (categories counted), and which are constant."""
    if x is None or not len(x):
        return []
    low, high = x.min(0), x.max(0)
    lines = []
    groups: dict[str, int] = {}
    numeric = []
    for k, name in enumerate(names):
        if "=" in name and low[k] >= 0 and high[k] <= 1:
            groups[name.partition("=")[0]] = groups.get(name.partition("=")[0], 0) + 1
        else:
            numeric.append(k)
    lines += [f"{what} {name}: {count} categories" for name, count in groups.items()]
    lines += [f"{what} {names[k]}: {low[k]:.4g} to {high[k]:.4g}" for k in numeric[:12]]
    if len(numeric) > 12:
        lines.append(f"{len(numeric) - 12} further columns of {what}s: {low[numeric].min():.4g} to {high[numeric].max():.4g}")
    same = [names[k] for k in np.flatnonzero(low == high)]
    if same:
        lines.append(f"constant {what}s, which tell nothing: {', '.join(same[:8])}{' …' if len(same) > 8 else ''}")
    return lines


# -- a new file for a fitted model ---------------------------------------------------------------------------------------
def match_features(graphs: GraphSet, wanted: Mapping[str, Any]) -> GraphSet:
    """The graphs with the features of a schema (`schema_of`), by name and in its order; see `matched_columns`."""
    features, edge_features = tuple(wanted.get("features", ())), tuple(wanted.get("edge_features", ()))
    x = matched_columns(graphs.x, graphs.features, features, graphs.nodes)
    edge_x = matched_columns(graphs.edge_x, graphs.edge_features, edge_features, graphs.edge_index.shape[1], "edge")
    if x is graphs.x and edge_x is graphs.edge_x:
        return graphs
    return replace(graphs, x=x, features=features, edge_x=edge_x, edge_features=edge_features, _cache={})


# -- the data sets -------------------------------------------------------------------------------------------------------
class GraphSetData(Dataset):
    """What data sets of graphs share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "graph-set"

    def facts(self) -> Mapping[str, Any]:
        return facts(self.read())

    def check(self) -> list[str]:
        graphs: GraphSet = self.read()
        return fact_lines(facts(graphs)) + remarks(graphs)

    def write(self, to: Path) -> None:
        from .graph_texts import write_graphs

        write_graphs(self.read(), to)

    def whole(self) -> Part:
        graphs: GraphSet = self.read()
        return Part(graphs.graphs(), Graphs(np.arange(len(graphs)), graphs.ids), None, schema_of(graphs))


class GraphSetFiles(GraphSetData):
    """A user's graphs, by path; their identity is the bytes of the files, not where they lie."""

    name: ClassVar[str] = "graph-set-files"
    path: Path = setting(..., FORM)
    directed: bool | None = setting(None, "false adds the reverse of every edge; left out, edges are as written")
    label_column: str | None = setting(None, "the column of a CSV that holds the classes; left out: label")
    target_column: str | None = setting(None, "the column of a CSV that holds a number to predict; left out: target")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By content: a TUDataset folder, a count and ``n label``, graph6 lines, or a header with smiles."""
        return bool(forms_in(path))

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """A `GraphSet` made in Python, or a list of PyG ``Data`` (a PyG data set of many graphs, too)."""
        if isinstance(given, GraphSet):
            return GivenGraphSet.hold(given)
        many = isinstance(given, list | tuple) or hasattr(type(given), "indices")  # a PyG data set has indices
        if not many or not len(given):
            return None
        first = given[0]
        plain = hasattr(first, "edge_index") and not hasattr(first, "edge_types") and not hasattr(first, "hyperedge_index")
        return GivenGraphSet.hold(list(given)) if plain else None

    def _found(self) -> tuple[str, Path]:
        found = forms_in(self.path)
        if not found:
            raise UserError(f"{self.path} holds no graph set; expected {FORM}")
        if len(found) > 1:
            raise UserError(f"{self.path} holds several graph sets: {some([p.name for _, p in found], 8)}; give the path of one")
        return found[0]

    def _stamps(self) -> tuple[Stamp, ...]:
        from .graph_texts import TU_PARTS, tu_name

        form, path = self._found()
        if form != "tu":
            beside = path.with_name("folds.txt")
            files = [path, beside] if form == "text" and beside.is_file() else [path]
            return stamps(files, path.parent)
        name = tu_name(path)
        return stamps([f for part in TU_PARTS if (f := path / f"{name}_{part}.txt").is_file()] + _beside(path), path)

    def read(self) -> GraphSet:
        form, path = self._found()
        return _read_cached(form, path, self.directed, self.label_column, self.target_column, self._stamps())

    def digest(self) -> str:
        return digest_of([self.name, bytes_digest(self._stamps()), self.directed, self.label_column, self.target_column])


def _beside(folder: Path) -> list[Path]:
    return [folder / "folds.txt"] if (folder / "folds.txt").is_file() else []


def forms_in(path: Path) -> list[tuple[str, Path]]:
    """(form, file or folder) of the graph sets that a path holds; forms: tu, text, g6, smiles."""
    if not path.is_dir():
        form = _form_of(path)
        return [(form, path)] if form else []
    for folder in (path, path / "raw"):
        if folder.is_dir() and any(True for part in ("A", "graph_indicator") for _ in folder.glob(f"*_{part}.txt")):
            return [("tu", folder)]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".txt", ".g6", ".csv", ".parquet") and p.is_file())
    return [(form, p) for p in files if (form := _form_of(p))]


def _form_of(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix == ".g6":
        return "g6"
    if suffix in (".csv", ".parquet"):
        return "smiles" if SMILES in header(path) else None
    if suffix != ".txt":
        return None
    try:
        with path.open("rb") as file:
            head = [line.split() for line in file.read(4096).decode("utf-8-sig").splitlines() if line.strip()][:2]
    except (OSError, UnicodeDecodeError):
        return None
    counted = len(head) == 2 and len(head[0]) == 1 and len(head[1]) == 2 and head[0][0].isdecimal() and head[1][0].isdecimal()
    return "text" if counted else None


@lru_cache(maxsize=8)
def _read_cached(
    form: str, path: Path, directed: bool | None, label: str | None, target: str | None, stamp: tuple[Stamp, ...]
) -> GraphSet:
    if form != "smiles" and (label or target):
        raise UserError(f"label_column and target_column name columns of a CSV; {path} is none")
    from .graph_texts import read_graph6, read_text, read_tu

    if form == "smiles":
        from .molecules import read_smiles

        graphs = read_smiles(path, label, target)
    else:
        graphs = {"tu": read_tu, "text": read_text, "g6": read_graph6}[form](path)
    graphs = checked(graphs, str(path))
    return both_ways(graphs) if directed is False else graphs


TYPES = {
    "sizes": np.int64, "edge_index": np.int64, "x": np.float32, "edge_x": np.float32, "y": np.int64, "targets": np.float64,
    "node_targets": np.float32, "folds": np.int8,
}  # fmt: skip


def _typed(graphs: GraphSet) -> GraphSet:
    """The same graphs, every array of the type that the container promises."""
    held = {name: (getattr(graphs, name), kind) for name, kind in TYPES.items()}
    other: dict[str, Any] = {
        name: np.asarray(array).astype(kind) for name, (array, kind) in held.items() if array is not None and array.dtype != kind
    }
    return replace(graphs, **other, _cache={}) if other else graphs


def content_digest(graphs: GraphSet) -> str:
    """SHA-256 of all that graphs hold."""
    arrays = [getattr(graphs, name) for name in TYPES]
    return arrays_digest(arrays, (graphs.ids, graphs.features, graphs.edge_features, graphs.classes, graphs.target_names))


class GivenGraphSet(Given, GraphSetData):
    """Graphs made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-graph-set"

    @classmethod
    def hold(cls, given: GraphSet | Sequence[Any]) -> GivenGraphSet:
        graphs = checked(_typed(given) if isinstance(given, GraphSet) else from_data(given), "the graphs given")
        digest = content_digest(graphs)
        cls._held[digest] = graphs
        return cls(content=digest)
