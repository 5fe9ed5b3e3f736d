"""The kind *graph*: container, readers of users' files, check, writer.

A user's folder holds ``edges.csv`` (source,target[,weight]) and ``nodes.csv`` (id[,label][,split][,features...]); also
read: parquet, a lone edge list, GraphML and GML, Matrix Market, a PyG ``Data``. Reading is lossless and says what it did:
ids and class names are text, edges stay as written, and each act is a sentence in `Graph.notes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_folder
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, bytes_digest, stamps
from .table import column_named, find_table, header, line_of, need, numbers, read_table, some

if TYPE_CHECKING:
    import polars as pl

SPLIT_WORDS = {"train": 0, "valid": 1, "val": 1, "validation": 1, "test": 2, "": -1}
MAX_CATEGORIES = 1_000
MAX_CLASSES = 10_000


class Nodes(NamedTuple):
    """What is asked: `rows` int64 [q] of the graph; `ids` of all its nodes."""

    rows: np.ndarray[Any, Any]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A graph as it was written.

    edge_index int64 [2, m]; weight float32 [m] or none; x float32 [n, F] or none; y int64 [n] with -1 where unknown, or
    bool [n, C] for several labels a node; `fixed`, the one published or written split, int8 [n] and `splits`, repeated
    ones, int8 [S, n] (0 train, 1 valid, 2 test, -1 none).
    """

    edge_index: np.ndarray[Any, Any]
    ids: tuple[str, ...]
    x: np.ndarray[Any, Any] | None = None
    y: np.ndarray[Any, Any] | None = None
    weight: np.ndarray[Any, Any] | None = None
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    fixed: np.ndarray[Any, Any] | None = None
    splits: np.ndarray[Any, Any] | None = None
    directed: bool = True
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def nodes(self) -> int:
        return len(self.ids)

    @property
    def multi_label(self) -> bool:
        return self.y is not None and self.y.ndim == 2

    @property
    def labelled(self) -> np.ndarray[Any, Any]:
        """bool [n]: nodes with a known label."""
        if self.y is None:
            return np.zeros(self.nodes, bool)
        return np.asarray(self.y.any(1) if self.y.ndim == 2 else self.y >= 0)

    def tensors(self) -> Any:
        """A PyG ``Data`` without labels: what a model may see."""
        if "data" not in self._cache:
            import torch
            from torch_geometric.data import Data

            data = Data(
                x=None if self.x is None else torch.from_numpy(np.ascontiguousarray(self.x, dtype=np.float32)),
                edge_index=torch.from_numpy(np.ascontiguousarray(self.edge_index)),
                edge_weight=None if self.weight is None else torch.from_numpy(self.weight),
                num_nodes=self.nodes,
            )
            data.directed = self.directed
            self._cache["data"] = data
        return self._cache["data"]


# -- reading -------------------------------------------------------------------------------------------------------------
def read_graph(path: Path | str, directed: bool | None = None) -> Graph:
    """A user's folder or file. `directed` left out: directed if any edge lacks its reverse, and the notes say so."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        edges, nodes = find_table(path, "edges"), find_table(path, "nodes")
        if edges is None:
            found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise UserError(f"{path} has no edges.csv (source,target[,weight]); found {found}")
        return _from_tables(edges, nodes, directed)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        return _from_tables(path, None, directed)
    if suffix in (".graphml", ".gml"):
        return _from_networkx(path, directed)
    if suffix == ".mtx":
        return _from_matrix_market(path, directed)
    raise UserError(f"{path}: graphs are read from a folder, .csv, .parquet, .graphml, .gml or .mtx, not {suffix or 'this'}")


def _from_tables(edges_path: Path, nodes_path: Path | None, directed: bool | None) -> Graph:

    edges = read_table(edges_path)
    source = need(edges_path, edges, "source", "src", "from")
    target = need(edges_path, edges, "target", "dst", "to")
    notes: list[str] = []
    for column in (source, target):
        empty = (edges[column].is_null() | (edges[column] == "")).arg_true()
        if len(empty):
            raise UserError(f"{edges_path}, line {line_of(empty[0])}: the {column} is empty")
    nodes = read_table(nodes_path) if nodes_path else None
    if nodes is None:
        ids, ends = coded([edges[source], edges[target]])
        notes.append(f"no nodes.csv: the {len(ids)} nodes are those that edges name")
    else:
        assert nodes_path is not None
        ids, ends = coded([edges[source], edges[target]], ids_of(nodes_path, nodes))
    for column, code in zip((source, target), ends, strict=True):
        unknown = np.flatnonzero(code < 0)
        if len(unknown):
            row = int(unknown[0])
            more = f" ({len(unknown)} such lines)" if len(unknown) > 1 else ""
            raise UserError(
                f"{edges_path}, line {line_of(row)}: {column} {edges[column][row]!r} is not an id of "
                f"{nodes_path.name if nodes_path else 'the nodes'}{more}; add the node or remove the edge"
            )
    edge_index = np.stack(ends)
    weight = None
    weight_column = column_named(edges, "weight")
    if weight_column is not None:
        values = numbers(edges_path, edges[weight_column])
        negative = (values < 0).arg_true()
        if len(negative):
            row = negative[0]
            raise UserError(
                f"{edges_path}, line {line_of(row)}: weight {edges[weight_column][row]} is negative; weights are >= 0"
            )
        weight = values.to_numpy().astype(np.float32)
    unused = [c for c in edges.columns if c not in (source, target, weight_column)]
    if unused:
        notes.append(f"columns of {edges_path.name} that nothing reads: {', '.join(unused)}")
    graph = Graph(edge_index, tuple(ids.to_list()), weight=weight)
    if nodes is not None:
        assert nodes_path is not None
        graph = with_columns(graph, nodes_path, nodes, notes)
    return finish(replace(graph, notes=tuple(notes)), directed)


def coded(columns: Sequence[pl.Series], ids: pl.Series | None = None) -> tuple[pl.Series, list[np.ndarray[Any, Any]]]:
    """Ids (left out: those of the columns, by first appearance) and each column as int64 numbers of them, -1 for none.

    Ids are text; where all of them are written as plain whole numbers, numbers are compared instead, which is faster.
    """
    import polars as pl

    texts = [*columns, ids] if ids is not None else list(columns)
    whole = [_whole_numbers(column) for column in texts]
    plain = [w for w in whole if w is not None]
    if len(plain) == len(texts):
        known = plain[-1] if ids is not None else pl.concat([w.rename("id") for w in plain]).unique(maintain_order=True)
        values = known.to_numpy()
        names = ids if ids is not None else known.cast(pl.Utf8)
        top = int(values.max()) if len(values) else 0
        if top < 50_000_000 + 10 * len(values):
            place = np.full(top + 2, -1, np.int64)
            place[values] = np.arange(len(values))
            return names, [place[np.minimum(w.to_numpy(), top + 1)] for w in plain[: len(columns)]]
        order = np.argsort(values)
        ranked = values[order]
        codes = []
        for w in plain[: len(columns)]:
            found = np.minimum(np.searchsorted(ranked, w.to_numpy()), len(ranked) - 1)
            codes.append(np.where(ranked[found] == w.to_numpy(), order[found], -1))
        return names, codes
    names = ids if ids is not None else pl.concat([c.rename("id") for c in columns]).unique(maintain_order=True)
    kind = pl.Enum(names)
    physical = [column.cast(kind, strict=False).to_physical().cast(pl.Int64).fill_null(-1) for column in columns]
    return names, [p.to_numpy() for p in physical]


def _whole_numbers(column: pl.Series) -> pl.Series | None:
    """A text column as int64 where every text is a whole number without sign or leading zeros, else none."""
    import polars as pl

    if column.dtype != pl.Utf8 or not len(column):
        return None
    values = column.cast(pl.Int64, strict=False)
    if values.null_count() or int(values.min()) < 0:  # type: ignore[arg-type]
        return None
    numbers = values.to_numpy()
    digits = np.searchsorted(10 ** np.arange(1, 19, dtype=np.int64), numbers, side="right") + 1
    # another way of writing a number (007, +7) is longer, so equal totals mean that none is
    return values if int(digits.sum()) == int(column.str.len_bytes().sum()) else None


def distinct(keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sorted, each once; faster than numpy's unique on large integers."""
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def ids_of(path: Path, nodes: pl.DataFrame) -> pl.Series:
    ids = nodes[need(path, nodes, "id", "node")].rename("id")
    empty = (ids.is_null() | (ids == "")).arg_true()
    if len(empty):
        raise UserError(f"{path}, line {line_of(empty[0])}: the id is empty")
    twice = ids.is_duplicated()
    if twice.any():
        rows = twice.arg_true()
        same = [r for r in rows if ids[r] == ids[rows[0]]]
        raise UserError(
            f"{path}: id {ids[rows[0]]!r} stands on lines {', '.join(str(line_of(r)) for r in same[:4])}; ids are unique"
        )
    return ids


def with_columns(graph: Graph, path: Path, nodes: pl.DataFrame, notes: list[str]) -> Graph:
    id_column = need(path, nodes, "id", "node")
    label, labels, split = column_named(nodes, "label"), column_named(nodes, "labels"), column_named(nodes, "split")
    if label and labels:
        raise UserError(f"{path} has both a column 'label' and 'labels'; keep one")
    if label:
        graph = _labels(graph, path, nodes[label], notes)
    elif labels:
        graph = _many_labels(graph, nodes[labels], notes)
    if split:
        graph = replace(graph, fixed=read_split(path, nodes[split]))
    blocks, names = [], []
    for column in nodes.columns:
        if column in (id_column, label, labels, split):
            continue
        values, columns = _feature(path, nodes[column], notes)
        blocks.append(values)
        names += columns
    if blocks:
        graph = replace(graph, x=np.concatenate(blocks, axis=1, dtype=np.float32), features=tuple(names))
    return graph


def _labels(graph: Graph, path: Path, column: pl.Series, notes: list[str]) -> Graph:
    text = column.fill_null("")
    known = text.filter(text != "")
    different = known.n_unique()
    if different > MAX_CLASSES or (different > 50 and different == len(known)):
        raise UserError(
            f"{path}: column 'label' has {different} different values in {len(known)} rows; it looks like an id or a number, not a class"
        )
    classes = sorted(known.unique().to_list())
    code = {name: i for i, name in enumerate(classes)}
    y = np.array([code.get(v, -1) for v in text.to_list()], np.int64)
    missing = int((y < 0).sum())
    if missing:
        notes.append(f"{missing} nodes have no label: they are the ones to predict")
    return replace(graph, y=y, classes=tuple(classes))


def _many_labels(graph: Graph, column: pl.Series, notes: list[str]) -> Graph:
    sets = [[part.strip() for part in v.split("|") if part.strip()] for v in column.fill_null("").to_list()]
    classes = sorted({name for row in sets for name in row})
    code = {name: i for i, name in enumerate(classes)}
    y = np.zeros((len(sets), len(classes)), bool)
    for i, row in enumerate(sets):
        y[i, [code[name] for name in row]] = True
    missing = sum(not row for row in sets)
    if missing:
        notes.append(f"{missing} nodes have no label: they are the ones to predict")
    return replace(graph, y=y, classes=tuple(classes))


def read_labels(path: Path) -> dict[str, str]:
    """id -> label text of a ``nodes.csv`` (or of the one in a folder), for the nodes that have one."""
    if path.is_dir():
        found = find_table(path, "nodes")
        if found is None:
            raise UserError(f"{path} has no nodes.csv with the true labels")
        path = found
    nodes = read_table(path)
    ids = ids_of(path, nodes).to_list()
    labels = nodes[need(path, nodes, "label", "labels", "class")].to_list()
    return {i: label for i, label in zip(ids, labels, strict=True) if label}


def read_split(path: Path, column: pl.Series) -> np.ndarray[Any, Any]:
    words = column.fill_null("").str.to_lowercase().to_list()
    for row, word in enumerate(words):
        if word not in SPLIT_WORDS:
            raise UserError(f"{path}, line {line_of(row)}: split {column[row]!r}; use train, valid, test or nothing")
    return np.array([SPLIT_WORDS[w] for w in words], np.int8)


def _feature(path: Path, column: pl.Series, notes: list[str]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """A column of numbers, or of categories as one-hot columns named ``column=value``."""
    import polars as pl

    parsed = column.cast(pl.Float64, strict=False)
    numeric = int(parsed.is_not_null().sum())
    filled = int(((column != "") & column.is_not_null()).sum())
    if numeric > filled / 2 or filled == 0:
        return numbers(path, column).to_numpy()[:, None], [column.name]
    text = column.fill_null("")
    categories = sorted(text.unique().to_list())
    if len(categories) > MAX_CATEGORIES:
        raise UserError(
            f"{path}: column {column.name!r} has {len(categories)} different texts ({some(categories)}); it looks like free text: remove it or group it"
        )
    code = {name: i for i, name in enumerate(categories)}
    hot = np.zeros((len(text), len(categories)), np.float32)
    hot[np.arange(len(text)), [code[v] for v in text.to_list()]] = 1
    notes.append(f"column {column.name!r} is categorical: {len(categories)} one-hot features")
    return hot, [f"{column.name}={name}" for name in categories]


def _from_networkx(path: Path, directed: bool | None) -> Graph:
    import networkx as nx

    try:
        g = nx.read_graphml(path, force_multigraph=True) if path.suffix.lower() == ".graphml" else nx.read_gml(path, label="id")
    except Exception as error:  # parsers of XML and GML raise many kinds
        raise UserError(f"{path} is not readable as {path.suffix[1:]}: {error}") from None
    ids = [str(n) for n in g]
    if not ids:
        raise UserError(f"{path} holds no nodes")
    place = {n: i for i, n in enumerate(g)}
    pairs = [(place[u], place[v]) for u, v in g.edges()]
    if not pairs:
        raise UserError(f"{path} holds no edges")
    weights = [d.get("weight") for _, _, d in g.edges(data=True)]
    edge_index = np.array(pairs, np.int64).reshape(-1, 2).T
    weight = np.array([float(w) for w in weights], np.float32) if all(w is not None for w in weights) else None
    notes: list[str] = []
    import polars as pl

    columns = sorted({key for _, d in g.nodes(data=True) for key in d})
    frame = pl.DataFrame(
        {"id": ids}
        | {
            k: ["" if (v := d.get(k)) is None else str(v) for _, d in g.nodes(data=True)]
            for k in columns
            if k.lower() not in ("id", "node")
        }
    )
    graph = Graph(edge_index, tuple(ids), weight=weight)
    graph = with_columns(graph, path, frame, notes)
    if not g.is_directed():
        graph = _both_ways(graph)
        directed = False
        notes.append("undirected file: each edge stands in both directions")
    return finish(replace(graph, notes=tuple(notes)), directed)


def _from_matrix_market(path: Path, directed: bool | None) -> Graph:
    import scipy.io

    try:
        matrix = scipy.io.mmread(path, spmatrix=False).tocoo()
    except Exception as error:  # the parser raises several kinds
        raise UserError(f"{path} is not a Matrix Market file: {error}") from None
    if matrix.shape[0] != matrix.shape[1]:
        raise UserError(f"{path} is {matrix.shape[0]} x {matrix.shape[1]}: an adjacency matrix is square")
    weight = np.asarray(matrix.data, np.float32)
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise UserError(f"{path} has a negative or non-finite weight; weights are >= 0")
    edge_index = np.stack([matrix.row, matrix.col]).astype(np.int64)
    ids = tuple(str(i + 1) for i in range(matrix.shape[0]))
    return finish(Graph(edge_index, ids, weight=None if (weight == 1).all() else weight), directed)


def from_pyg(data: Any, directed: bool | None = None) -> Graph:
    """A PyG ``Data``: x, y, edge_index, edge_weight and the usual masks."""
    n = int(data.num_nodes)
    y = None if getattr(data, "y", None) is None else data.y.cpu().numpy()
    splits = None
    if getattr(data, "train_mask", None) is not None:
        masks = [getattr(data, f"{k}_mask", None) for k in ("train", "val", "test")]
        shape = np.atleast_2d(masks[0].cpu().numpy().T).shape if masks[0] is not None else (1, n)
        splits = np.full(shape, -1, np.int8)
        for i, mask in enumerate(masks):
            if mask is not None:
                splits[np.atleast_2d(mask.cpu().numpy().T)] = i
    many = y is not None and y.ndim == 2 and y.shape[1] > 1
    if y is not None and not many:
        y = y.reshape(-1).astype(np.int64)
    classes = () if y is None else tuple(str(c) for c in range(y.shape[1] if many else int(y.max()) + 1))
    weight = getattr(data, "edge_weight", None)
    return finish(
        Graph(
            data.edge_index.cpu().numpy().astype(np.int64), tuple(str(i) for i in range(n)),
            x=None if data.x is None else data.x.cpu().numpy().astype(np.float32),
            y=y.astype(bool) if many and y is not None else y, classes=classes,
            fixed=splits[0] if splits is not None and len(splits) == 1 else None,
            splits=splits if splits is not None and len(splits) > 1 else None,
            features=() if data.x is None else tuple(f"x{i}" for i in range(data.x.shape[1])),
            weight=None if weight is None else weight.cpu().numpy().astype(np.float32),
        ),
        directed,
    )  # fmt: skip


def finish(graph: Graph, directed: bool | None) -> Graph:
    """Count loops and repeats, decide on direction, and say so."""
    notes = list(graph.notes)
    u, v = graph.edge_index
    n = graph.nodes
    if len(u) and (min(u.min(), v.min()) < 0 or max(u.max(), v.max()) >= n):
        raise UserError(f"an edge names a node outside 0..{n - 1}")
    check_numbers(graph)
    keys = u * n + v
    unique = distinct(keys)
    loops, repeats = int((u == v).sum()), len(keys) - len(unique)
    if loops:
        notes.append(f"{loops} self-loops kept")
    if repeats:
        notes.append(f"{repeats} repeated edges kept; methods that build a matrix sum their weights")
    if directed is None:
        reverse = (unique % n) * n + unique // n
        lacking = len(distinct(np.concatenate([unique, reverse]))) - len(unique)
        directed = lacking > 0
        if directed:
            notes.append(
                f"directed: {lacking} of {len(unique)} edges lack their reverse (say data.directed=false if they are undirected)"
            )
        else:
            notes.append("undirected: every edge has its reverse")
    elif not directed:
        before = graph.edge_index.shape[1]
        graph = _both_ways(graph)
        notes.append(f"declared undirected: {graph.edge_index.shape[1] - before} reverse edges added")
    return replace(graph, directed=bool(directed), notes=tuple(notes))


def check_numbers(graph: Graph) -> None:
    """`UserError` that names the first feature that is not finite, or weight that is not finite or negative."""
    if graph.x is not None and not np.isfinite(graph.x).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(graph.x))[0])
        name = graph.features[column] if column < len(graph.features) else f"x{column}"
        raise UserError(f"feature {name!r} of node {graph.ids[row]!r} is {graph.x[row, column]:g}; features are finite numbers")
    if graph.weight is not None:
        bad = np.flatnonzero(~(np.isfinite(graph.weight) & (graph.weight >= 0)))
        if len(bad):
            u, v = (graph.ids[int(i)] for i in graph.edge_index[:, bad[0]])
            raise UserError(
                f"the edge from {u!r} to {v!r} has weight {graph.weight[bad[0]]:g} ({len(bad)} such); weights are finite and at least 0"
            )


def _both_ways(graph: Graph) -> Graph:
    """Add the reverse of every edge that lacks it."""
    u, v = graph.edge_index
    n = graph.nodes
    lacking = ~np.isin(v * n + u, u * n + v)
    edge_index = np.concatenate([graph.edge_index, np.stack([v[lacking], u[lacking]])], axis=1)
    weight = None if graph.weight is None else np.concatenate([graph.weight, graph.weight[lacking]])
    return replace(graph, edge_index=edge_index, weight=weight, _cache={})


# -- what a graph is like ------------------------------------------------------------------------------------------------
def joined(edge_index: Any, weight: Any) -> Any:
    """The columns of an edge index [2, m], an array or a tensor, whose weight [m] is not 0; all of them without weights."""
    return edge_index if weight is None else edge_index[:, weight != 0]


def undirected_pairs(graph: Graph) -> np.ndarray[Any, Any]:
    """int64 [2, k]: each joined pair once, without loops; an edge of weight 0 joins nothing."""
    u, v = joined(graph.edge_index, graph.weight)
    low, high = np.minimum(u, v), np.maximum(u, v)
    keys = distinct((low * graph.nodes + high)[low != high])
    return np.stack([keys // graph.nodes, keys % graph.nodes])


def degrees(graph: Graph) -> np.ndarray[Any, Any]:
    """int64 [n]: neighbours of each node, without loops and repeats."""
    a, b = undirected_pairs(graph)
    return np.bincount(a, minlength=graph.nodes) + np.bincount(b, minlength=graph.nodes)


def local_homophily(graph: Graph) -> np.ndarray[Any, Any]:
    """float64 [n]: share of labelled neighbours with the node's label; NaN without any (single label only)."""
    assert graph.y is not None and not graph.multi_label
    a, b = undirected_pairs(graph)
    both = (graph.y[a] >= 0) & (graph.y[b] >= 0)
    a, b = a[both], b[both]
    same = (graph.y[a] == graph.y[b]).astype(float)
    total = np.bincount(a, minlength=graph.nodes) + np.bincount(b, minlength=graph.nodes)
    alike = np.bincount(a, same, graph.nodes) + np.bincount(b, same, graph.nodes)
    return np.where(total > 0, alike / np.maximum(total, 1), np.nan)


def facts(graph: Graph) -> dict[str, Any]:
    """Counts and shapes: what ``data check`` prints and what methods look at before they refuse."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    degree = degrees(graph)
    u, v = graph.edge_index
    a, b = joined(graph.edge_index, graph.weight)
    adjacency = coo_array((np.ones(len(a), bool), (a, b)), shape=(graph.nodes, graph.nodes)).tocsr()
    found: dict[str, Any] = {
        "nodes": graph.nodes,
        "edges as written": len(u),
        "pairs joined": int(degree.sum()) // 2,
        "directed": graph.directed,
        "self-loops": int((u == v).sum()),
        "weighted": graph.weight is not None and bool((graph.weight != 1).any()),
        "degree min / median / max": [int(degree.min()), float(np.median(degree)), int(degree.max())],
        "isolated nodes": int((degree == 0).sum()),
        "components": int(connected_components(adjacency, directed=False)[0]),
        "features": 0 if graph.x is None else int(graph.x.shape[1]),
        "classes": len(graph.classes),
        "multi-label": graph.multi_label,
        "labelled": int(graph.labelled.sum()),
        "splits": 0 if graph.splits is None else len(graph.splits),
        "fixed split": split_sizes(graph.fixed),
    }
    if graph.y is not None and len(graph.classes):
        counts = graph.y.sum(0) if graph.multi_label else np.bincount(graph.y[graph.y >= 0], minlength=len(graph.classes))
        found["class sizes"] = {name: int(c) for name, c in zip(graph.classes, counts, strict=True)}
        if not graph.multi_label:
            a, b = undirected_pairs(graph)
            both = (graph.y[a] >= 0) & (graph.y[b] >= 0)
            found["edge homophily"] = float((graph.y[a] == graph.y[b])[both].mean()) if both.any() else None
            local = local_homophily(graph)
            found["node homophily"] = float(np.nanmean(local)) if np.isfinite(local).any() else None
    return found


def split_sizes(split: np.ndarray[Any, Any] | None) -> Any:
    if split is None:
        return "none"
    return {word: int((split == code).sum()) for code, word in enumerate(("train", "valid", "test"))}


# -- as a part of a fold ---
def schema_of(graph: Graph) -> dict[str, Any]:
    """What a model keeps of the graph it was fitted on."""
    u, v = graph.edge_index
    marks: list[Any] = [graph.nodes, len(u), edge_sum(u, v), list(graph.ids[:5])]
    if graph.weight is not None and bool((graph.weight != 1).any()):
        marks.append(edge_sum(np.ascontiguousarray(graph.weight, np.float32).view(np.uint32), v))
    return {
        "classes": list(graph.classes),
        "features": list(graph.features),
        "multi": graph.multi_label,
        "directed": graph.directed,
        "nodes": graph.nodes,
        "graph": digest_of(marks)[:16],
        "bags": bags_of(graph),
    }


def bags_of(graph: Any, kind: str | None = None) -> bool:
    """Whether the features (of nodes of a kind) are bags of words, 0 or 1 throughout. A fit settles it: later data are read alike."""
    if ("bags", kind) not in graph._cache:
        x = graph.x if kind is None else graph.x.get(kind)
        values = x if x is None or isinstance(x, np.ndarray) else x.data  # of a sparse matrix the rest is 0
        graph._cache["bags", kind] = values is not None and bool(((values == 0) | (values == 1)).all())
    found: bool = graph._cache["bags", kind]
    return found


def edge_sum(u: np.ndarray[Any, Any], v: np.ndarray[Any, Any]) -> int:
    """An order-dependent check sum of the edges."""
    mixed = (u.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ (v.astype(np.uint64) + np.uint64(0x7F4A7C15))
    return int((mixed * np.arange(1, len(u) + 1, dtype=np.uint64)).sum(dtype=np.uint64) % (1 << 62))


def whole_part(graph: Graph) -> Part:
    """The whole graph without labels, for methods that need none."""
    return Part(graph.tensors(), Nodes(np.arange(graph.nodes), graph.ids), None, schema_of(graph))


# -- writing -------------------------------------------------------------------------------------------------------------
def write_graph(graph: Graph, folder: Path) -> None:
    """``edges.csv`` and ``nodes.csv`` that `read_graph` reads back as the same graph."""
    import polars as pl

    def fill(draft: Path) -> None:
        ids = np.array(graph.ids, object)
        edges = pl.DataFrame({"source": ids[graph.edge_index[0]].tolist(), "target": ids[graph.edge_index[1]].tolist()})
        if graph.weight is not None:
            edges = edges.with_columns(pl.Series("weight", graph.weight))
        edges.write_csv(draft / "edges.csv")
        nodes_table(graph).write_csv(draft / "nodes.csv")

    write_folder(folder, fill)


def nodes_table(graph: Graph, splits: Mapping[str, np.ndarray[Any, Any]] = {}) -> pl.DataFrame:
    """A graph's nodes as ``nodes.csv`` has them; `splits` are further columns ``split:NAME``."""
    import polars as pl

    nodes: dict[str, Sequence[Any]] = {"id": list(graph.ids)}
    if graph.multi_label and graph.y is not None:
        nodes["labels"] = ["|".join(graph.classes[c] for c in np.flatnonzero(row)) for row in graph.y]
    elif graph.y is not None:
        nodes["label"] = [graph.classes[c] if c >= 0 else "" for c in graph.y]
    words = {0: "train", 1: "valid", 2: "test", -1: ""}
    written = {} if graph.fixed is None else {"split": graph.fixed}
    for name, split in (written | {f"split:{name}": s for name, s in splits.items()}).items():
        nodes[name] = [words[int(s)] for s in split]
    frame = pl.DataFrame(nodes)
    if graph.x is not None:
        frame = frame.hstack([pl.Series(name, graph.x[:, i]) for i, name in enumerate(graph.features)])
    return frame


# -- the data set of a user's files --------------------------------------------------------------------------------------
class GraphDataset(Dataset):
    """What graph data sets share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "graph"

    def facts(self) -> Mapping[str, Any]:
        return facts_of(self.read())

    def check(self) -> list[str]:
        return check_lines(self.read())

    def write(self, to: Path) -> None:
        write_graph(self.read(), to)

    def whole(self) -> Part:
        return whole_part(self.read())


class GraphFiles(GraphDataset):
    """A user's graph, by path; its identity is the bytes of the files, not where they lie."""

    name: ClassVar[str] = "graph-files"
    path: Path = setting(..., "a folder with edges.csv and nodes.csv, or one file")
    directed: bool | None = setting(None, "true or false declares the edges; left out, it is found out")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By header: an edge list has a source and a target, and no time."""
        if path.is_dir():
            return find_table(path, "edges") is not None
        if path.suffix.lower() in (".graphml", ".gml", ".mtx"):
            return True
        names = set(header(path)) if path.suffix in (".csv", ".parquet") else set()
        return (
            bool(names & {"source", "src", "from"})
            and bool(names & {"target", "dst", "to"})
            and not names & {"time", "t", "timestamp"}
        )

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """A PyG ``Data`` or a `Graph` made in Python."""
        from .graph_sets import GivenGraph
        from .hypergraph import is_hypergraph_data

        if isinstance(given, Graph):
            return GivenGraph.hold(given)
        # PyG's hypergraphs have an edge_index, too, of memberships; so have sets of graphs, but no number of nodes in their class
        is_graph = hasattr(type(given), "num_nodes") and hasattr(given, "edge_index") and not is_hypergraph_data(given)
        return GivenGraph.hold(from_pyg(given)) if is_graph else None

    def read(self) -> Graph:
        return read_cached(self.path, self.directed)

    def digest(self) -> str:
        return digest_of([bytes_digest(stamps(_files(self.path), self.path)), self.directed])


def fact_lines(found: Mapping[str, Any]) -> list[str]:
    """Facts as lines for people."""
    lines = []
    for key, value in found.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"{key}: {shown:.3f}" if isinstance(shown, float) else f"{key}: {shown}")
    return lines


def check_lines(graph: Graph) -> list[str]:
    """What was understood, as lines for people."""
    lines = fact_lines(facts_of(graph))
    if graph.fixed is not None and graph.y is not None and not graph.multi_label:
        seen = set(graph.y[graph.fixed == 0].tolist())
        for code, name in enumerate(graph.classes):
            if code not in seen:
                lines.append(f"no train node has class {name!r}: it cannot be predicted")
    return lines + list(graph.notes)


def facts_of(graph: Graph) -> dict[str, Any]:
    """`facts`, computed once a graph."""
    if "facts" not in graph._cache:
        graph._cache["facts"] = facts(graph)
    found: dict[str, Any] = graph._cache["facts"]
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [p for p in (find_table(path, "edges"), find_table(path, "nodes")) if p is not None]
    return [path] if path.exists() else []


def read_cached(path: Path, directed: bool | None) -> Graph:
    """`read_graph`, once while the files stay the same."""
    return _read_cached(path, directed, stamps(_files(path), path))


@lru_cache(maxsize=8)
def _read_cached(path: Path, directed: bool | None, stamp: tuple[Stamp, ...]) -> Graph:
    return read_graph(path, directed)
