"""The kind *heterogeneous graph*: container, readers of users' files, meta-paths, check, writer.

A user's folder holds ``nodes/<type>.csv`` (id[,label][,split][,split:<name>][,features...]) for each node type and
``edges/<source>__<relation>__<target>.csv`` (source,target[,weight]) for each relation; parquet and a PyG ``HeteroData``
are read too. Reading is lossless and says what it did: ids and class names are text, edges stay as written (no reverses
are added), and each act is a sentence in `HeteroGraph.notes`.

A *meta-path* is a chain of relations, each followed forwards or backwards: ``paper-author-paper`` by its types, or
``paper-[writes]-author`` where several relations join two types (``[<cites]`` follows a relation against its direction).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from .graph import Graph, bags_of, coded, distinct, edge_sum, ids_of, nodes_table, read_split, split_sizes, with_columns
from .table import SUFFIXES, column_named, find_table, header, line_of, need, numbers, read_table, some, text_bytes

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse as sp
    import torch

Array = np.ndarray[Any, Any]
Relation = tuple[str, str, str]  # source type, name, target type
Step = tuple[Relation, bool]  # a relation, followed forwards (true) or backwards
Chain = tuple[Step, ...]
PATHS_SHOWN = 60
_ENDS = (("source", "src", "from"), ("target", "dst", "to"))  # columns of an edge file


class HeteroNodes(NamedTuple):
    """What is asked: `rows` int64 [q] of the nodes of type `target`; `ids` of all nodes of that type."""

    rows: Array
    ids: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class HeteroGraph:
    """A heterogeneous graph as it was written.

    `relations` int64 [2, m] by (source type, name, target type), with `weights` float32 [m] where a relation has them;
    by node type: `ids`; `x` float32 [n_t, F_t], a numpy or a scipy CSR array, with the names of its columns in `features`
    (types without features are absent); `y` int64 [n_t] with -1 where unknown and its `classes`; `fixed`, the one written
    split, and `splits`, named ones, int8 [n_t] (0 train, 1 valid, 2 test, -1 none).
    """

    types: tuple[str, ...]
    ids: Mapping[str, tuple[str, ...]]
    relations: Mapping[Relation, Array]
    weights: Mapping[Relation, Array] = field(default_factory=dict)
    x: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    y: Mapping[str, Array] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Array] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """Nodes of each type."""
        return {kind: len(self.ids[kind]) for kind in self.types}

    @property
    def labelled(self) -> tuple[str, ...]:
        """Types of which some node has a label."""
        return tuple(kind for kind in self.types if kind in self.y and bool((self.y[kind] >= 0).any()))

    def dense(self, kind: str) -> torch.Tensor:
        """float32 [n_t, F_t], made once."""
        kept: dict[str, torch.Tensor] = self._cache.setdefault("dense", {})
        if kind not in kept:
            import torch

            x = self.x[kind]
            kept[kind] = torch.from_numpy(np.ascontiguousarray(x if isinstance(x, np.ndarray) else x.toarray(), np.float32))
        return kept[kind]

    def tensors(self) -> Any:
        """A PyG ``HeteroData`` without labels: what a model may see (x, num_nodes; edge_index and edge_weight)."""
        if "data" not in self._cache:
            import torch
            from torch_geometric.data import HeteroData

            data = HeteroData()
            for kind in self.types:
                data[kind].num_nodes = len(self.ids[kind])
                if kind in self.x:
                    data[kind].x = self.dense(kind)
            for key, edges in self.relations.items():
                data[key].edge_index = torch.from_numpy(np.ascontiguousarray(edges))
                if key in self.weights:
                    data[key].edge_weight = torch.from_numpy(self.weights[key])
            self._cache["data"] = data
        return self._cache["data"]

    def alone(self, kind: str) -> Graph:
        """The nodes of one type as a graph without edges: their labels, classes, features and fixed split."""
        x = self.x.get(kind)
        return Graph(
            np.zeros((2, 0), np.int64), self.ids[kind], y=self.y.get(kind), classes=self.classes.get(kind, ()),
            x=x if x is None or isinstance(x, np.ndarray) else x.toarray(), features=self.features.get(kind, ()),
            fixed=self.fixed.get(kind),
        )  # fmt: skip


# -- reading -------------------------------------------------------------------------------------------------------------
def read_hetero(path: Path | str) -> HeteroGraph:
    """A user's folder with ``nodes/`` and ``edges/``."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder with nodes/ and edges/")
    notes: list[str] = []
    node_files = _tables(path / "nodes", notes)
    edge_files = _tables(path / "edges", notes)
    if not node_files:
        raise UserError(f"{path} has no nodes/<type>.csv (id[,label][,features…]); every node type has a file")
    if not edge_files:
        raise UserError(f"{path} has no edges/<source>__<relation>__<target>.csv (source,target[,weight])")
    parts = {kind: _read_nodes(kind, file, notes) for kind, file in node_files.items()}
    ids = {kind: column for kind, (_, column, _) in parts.items()}
    relations: dict[Relation, Array] = {}
    weights: dict[Relation, Array] = {}
    for stem, file in edge_files.items():
        key = _relation_of(stem, file, node_files)
        edges, weight = _read_edges(file, ids, node_files, key, notes)
        relations[key] = edges
        if weight is not None:
            weights[key] = weight
    alone = {kind: graph for kind, (graph, _, _) in parts.items()}
    return finish_hetero(
        HeteroGraph(
            tuple(node_files), {kind: g.ids for kind, g in alone.items()}, relations, weights,
            x={kind: g.x for kind, g in alone.items() if g.x is not None},
            features={kind: g.features for kind, g in alone.items() if g.x is not None},
            y={kind: g.y for kind, g in alone.items() if g.y is not None},
            classes={kind: g.classes for kind, g in alone.items() if g.y is not None},
            fixed={kind: g.fixed for kind, g in alone.items() if g.fixed is not None},
            splits={kind: named for kind, (_, _, named) in parts.items() if named},
            notes=tuple(notes),
        )
    )  # fmt: skip


def _tables(folder: Path, notes: list[str]) -> dict[str, Path]:
    """stem -> table of a folder, by name; what nothing reads is said."""
    if not folder.is_dir():
        return {}
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    other = [p.name for p in files if p.suffix.lower() not in SUFFIXES]
    if other:
        notes.append(f"files of {folder.name}/ that nothing reads: {', '.join(other)}")
    found = {}
    for p in files:
        table = find_table(folder, p.stem) if p.suffix.lower() in SUFFIXES else None
        if table is not None:
            found[p.stem] = table
    return found


def _read_nodes(kind: str, file: Path, notes: list[str]) -> tuple[Graph, pl.Series, dict[str, Array]]:
    """One type's nodes, their ids, and their named splits."""
    frame = read_table(file)
    ids = ids_of(file, frame)
    if column_named(frame, "labels"):
        raise UserError(f"{file}: column 'labels' (several a node) is read for graphs of one type only; name it 'label'")
    named = {c: c.partition(":")[2].strip() for c in frame.columns if c.lower().startswith("split:")}
    splits = {name: read_split(file, frame[column]) for column, name in named.items()}
    said: list[str] = []
    empty = Graph(np.zeros((2, 0), np.int64), tuple(ids.to_list()))
    graph = with_columns(empty, file, frame.drop(list(named)), said)
    notes += [f"{kind}: {note}" for note in said]
    return graph, ids, splits


def _relation_of(stem: str, file: Path, types: Mapping[str, Path]) -> Relation:
    words = stem.split("__")
    if len(words) != 3 or not all(words):
        raise UserError(f"{file}: an edge file is called <source>__<relation>__<target>, as in author__writes__paper.csv")
    for kind in (words[0], words[2]):
        if kind not in types:
            raise UserError(
                f"{file}: {kind!r} is no node type (there are {', '.join(types)}); add nodes/{kind}.csv or rename the file"
            )
    return words[0], words[1], words[2]


def _read_edges(
    file: Path, ids: Mapping[str, pl.Series], node_files: Mapping[str, Path], key: Relation, notes: list[str]
) -> tuple[Array, Array | None]:
    """int64 [2, m] and float32 [m] or none; a file with a header alone is a relation without edges."""
    if file.suffix.lower() == ".csv" and b"\n" not in (text := file.read_bytes().strip()) and b"\r" not in text:
        text_bytes(file)  # refuses what is no text
        names = header(file)
        for known in _ENDS:
            if not set(known) & set(names):
                raise UserError(f"{file} has no column {known[0]!r}; found {', '.join(names)}")
        return np.zeros((2, 0), np.int64), None
    frame = read_table(file)
    ends = []
    columns = [need(file, frame, *known) for known in _ENDS]
    for column, kind in zip(columns, (key[0], key[2]), strict=True):
        empty = (frame[column].is_null() | (frame[column] == "")).arg_true()
        if len(empty):
            raise UserError(f"{file}, line {line_of(empty[0])}: the {column} is empty")
        code = coded([frame[column]], ids[kind])[1][0]
        unknown = np.flatnonzero(code < 0)
        if len(unknown):
            row = int(unknown[0])
            more = f" ({len(unknown)} such lines)" if len(unknown) > 1 else ""
            raise UserError(
                f"{file}, line {line_of(row)}: {column} {frame[column][row]!r} is not an id of nodes/{node_files[kind].name}"
                f"{more}; add the node or remove the edge"
            )
        ends.append(code)
    weight, weight_column = None, column_named(frame, "weight")
    if weight_column is not None:
        values = numbers(file, frame[weight_column])
        negative = (values < 0).arg_true()
        if len(negative):
            row = negative[0]
            raise UserError(f"{file}, line {line_of(row)}: weight {frame[weight_column][row]} is negative; weights are >= 0")
        weight = values.to_numpy().astype(np.float32)
    unused = [c for c in frame.columns if c not in (*columns, weight_column)]
    if unused:
        notes.append(f"columns of {file.name} that nothing reads: {', '.join(unused)}")
    return np.stack(ends), weight


def from_hetero_data(data: Any) -> HeteroGraph:
    """A PyG ``HeteroData``: x, y and the usual masks by node type; edge_index and edge_weight by edge type."""
    types = tuple(data.node_types)
    ids, x, features, y, classes, fixed = {}, {}, {}, {}, {}, {}
    for kind in types:
        store = data[kind]
        n = int(store.num_nodes)
        ids[kind] = tuple(str(i) for i in range(n))
        if getattr(store, "x", None) is not None:
            if store.x.ndim != 2 or len(store.x) != n:
                raise UserError(f"x of {kind!r} is {list(store.x.shape)}; [{n}, features] is read, a row for each of its nodes")
            x[kind] = store.x.cpu().numpy().astype(np.float32)
            if not np.isfinite(x[kind]).all():
                row = int(np.flatnonzero(~np.isfinite(x[kind]).all(1))[0])
                raise UserError(f"x of {kind!r} holds NaN or infinite values, first in row {row}")
            features[kind] = tuple(f"x{i}" for i in range(x[kind].shape[1]))
        if getattr(store, "y", None) is not None:
            found = store.y.cpu().numpy()
            if found.ndim > 1 and found.shape[1] > 1:
                raise UserError(
                    f"y of {kind!r} is {list(found.shape)}: one class a node is read, int64 [n] with -1 where unknown"
                )
            if found.size != n:
                raise UserError(f"y of {kind!r} is {list(found.shape)}; it has {n} nodes")
            y[kind] = found.reshape(-1).astype(np.int64)
            classes[kind] = tuple(str(c) for c in range(int(y[kind].max(initial=-1)) + 1))
        masks = [getattr(store, f"{word}_mask", None) for word in ("train", "val", "test")]
        if masks[0] is not None and masks[0].ndim == 1:
            split = np.full(n, -1, np.int8)
            for code, mask in enumerate(masks):
                if mask is not None:
                    split[mask.cpu().numpy()] = code
            fixed[kind] = split
    relations, weights = {}, {}
    for key in data.edge_types:
        if "edge_index" not in data[key]:
            raise UserError(
                f"relation {relation_text(key)} has no edge_index ({', '.join(data[key].keys())}); int64 [2, m] is read"
            )
        relations[key] = data[key].edge_index.cpu().numpy().astype(np.int64)
        if getattr(data[key], "edge_weight", None) is not None:
            weights[key] = data[key].edge_weight.cpu().numpy().astype(np.float32).reshape(-1)
    return finish_hetero(HeteroGraph(types, ids, relations, weights, x, features, y, classes, fixed))


def finish_hetero(graph: HeteroGraph) -> HeteroGraph:
    """Check that edges stay within their types; count repeats and loops, and say what has no features."""
    notes = list(graph.notes)
    for key, (u, v) in graph.relations.items():
        for kind, end in ((key[0], u), (key[2], v)):
            if kind not in graph.ids:
                raise UserError(f"relation {relation_text(key)}: {kind!r} is no node type (there are {', '.join(graph.types)})")
            if len(end) and (end.min() < 0 or end.max() >= len(graph.ids[kind])):
                raise UserError(f"relation {relation_text(key)} names a {kind} outside 0..{len(graph.ids[kind]) - 1}")
        if key in graph.weights:
            _check_weights(graph, key)
        if not len(u):
            notes.append(f"relation {relation_text(key)} has no edges")
        repeats = len(u) - len(distinct(u * max(len(graph.ids[key[2]]), 1) + v))
        if repeats:
            notes.append(f"relation {relation_text(key)}: {repeats} repeated edges kept; counts of meta-paths count them")
        if key[0] == key[2] and (loops := int((u == v).sum())):
            notes.append(f"relation {relation_text(key)}: {loops} self-loops kept")
    without = [kind for kind in graph.types if kind not in graph.x]
    if without and graph.x:
        notes.append(f"features for {', '.join(k for k in graph.types if k in graph.x)} only; {', '.join(without)} have none")
    elif without:
        notes.append("no node type has features")
    return replace(graph, notes=tuple(notes), _cache={})


def _check_weights(graph: HeteroGraph, key: Relation) -> None:
    """`UserError` that names the first weight which is not finite or negative, and where there are too few."""
    weight, (u, v) = graph.weights[key], graph.relations[key]
    if len(weight) != len(u):
        raise UserError(f"relation {relation_text(key)} has {len(u)} edges and {len(weight)} weights")
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(bad):
        here, there = graph.ids[key[0]][int(u[bad[0]])], graph.ids[key[2]][int(v[bad[0]])]
        raise UserError(
            f"relation {relation_text(key)}: the edge from {here!r} to {there!r} has weight {weight[bad[0]]:g} ({len(bad)} such); "
            "weights are finite and at least 0"
        )


def keep_nodes(graph: HeteroGraph, kind: str, rows: Array) -> HeteroGraph:
    """The graph with some nodes of one type, in the order given, and the edges that are left; all else is shared."""
    place = np.full(len(graph.ids[kind]), -1, np.int64)
    place[rows] = np.arange(len(rows))
    relations, weights = dict(graph.relations), dict(graph.weights)
    for key, edges in graph.relations.items():
        ends = [place[end] if side == kind else end for side, end in zip((key[0], key[2]), edges, strict=True)]
        left = (ends[0] >= 0) & (ends[1] >= 0)
        relations[key] = np.stack(ends)[:, left]
        if key in weights:
            weights[key] = weights[key][left]

    def cut(given: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v[rows] if k == kind else v for k, v in given.items()}

    return replace(
        graph, ids={**graph.ids, kind: tuple(graph.ids[kind][i] for i in rows)}, relations=relations, weights=weights,
        x=cut(graph.x), y=cut(graph.y), fixed=cut(graph.fixed),
        splits={k: {name: s[rows] if k == kind else s for name, s in named.items()} for k, named in graph.splits.items()},
        _cache={"dense": {k: graph.dense(k) for k in graph.x if k != kind}},
    )  # fmt: skip


# -- meta-paths ----------------------------------------------------------------------------------------------------------
# `data` is a HeteroGraph or a PyG HeteroData in all of them.
def sizes_of(data: Any) -> dict[str, int]:
    """Nodes of each type."""
    return data.sizes if isinstance(data, HeteroGraph) else {kind: int(data[kind].num_nodes) for kind in data.node_types}


def relations_of(data: Any) -> tuple[Relation, ...]:
    """The relations as written."""
    return tuple(data.relations) if isinstance(data, HeteroGraph) else tuple(data.edge_types)


def edges_of(data: Any, key: Relation) -> Array:
    """int64 [2, m] of one relation."""
    return data.relations[key] if isinstance(data, HeteroGraph) else data[key].edge_index.cpu().numpy()


def relation_text(key: Relation) -> str:
    """``author-writes-paper``."""
    return "-".join(key)


def step_types(step: Step) -> tuple[str, str]:
    """The type that a step leaves and the one that it reaches."""
    (source, _, target), forward = step
    return (source, target) if forward else (target, source)


def chain_types(chain: Chain) -> tuple[str, ...]:
    """The types along a chain, one more than its steps."""
    return (step_types(chain[0])[0], *(step_types(step)[1] for step in chain))


def reverse_chain(chain: Chain) -> Chain:
    """The chain walked from its other end."""
    return tuple((key, not forward) for key, forward in reversed(chain))


def steps_from(relations: Sequence[Relation], kind: str, doubled: Collection[Step] = ()) -> tuple[Step, ...]:
    """Every step that leaves a type, forwards and backwards, but for those that are `doubled`."""
    found: list[Step] = []
    for key in relations:
        found += [(key, True)] if key[0] == kind else []
        found += [(key, False)] if key[2] == kind else []
    return tuple(step for step in found if step not in doubled)


def doubled_steps(graph: HeteroGraph) -> tuple[Step, ...]:
    """Steps that walk the very edges of an earlier one; data often hold both directions of a relation, or of edges within a type."""
    if "doubled" not in graph._cache:
        alike: dict[Any, list[Step]] = {}  # by the types that they join and their number of edges
        for key, edges in graph.relations.items():
            for step in ((key, True), (key, False)) if edges.shape[1] else ():
                alike.setdefault((step_types(step), edges.shape[1]), []).append(step)
        doubled: list[Step] = []
        for ((_, there), _), steps in alike.items():
            held: list[Array] = []
            for key, forward in steps if len(steps) > 1 else ():
                here, reached = graph.relations[key] if forward else graph.relations[key][::-1]
                pairs = np.sort(here.astype(np.int64) * graph.sizes[there] + reached)
                if any(np.array_equal(pairs, other) for other in held):
                    doubled.append((key, forward))
                else:
                    held.append(pairs)
        graph._cache["doubled"] = tuple(doubled)
    found: tuple[Step, ...] = graph._cache["doubled"]
    return found


def doubled_of(schema: Mapping[str, Any]) -> frozenset[Step]:
    """The doubled steps of the graph that a fit saw, from its schema."""
    return frozenset(((source, name, to), forward) for source, name, to, forward in schema.get("doubled", ()))


def unread_weights(data: Any, relations: Iterable[Relation]) -> list[str]:
    """A note on the relations among these whose edges have weights, for what reads none."""
    named = [relation_text(key) for key in dict.fromkeys(relations) if "edge_weight" in data[key]]
    return [f"weights of edges are not used ({', '.join(named)}): each edge counts once"] if named else []


def meta_paths(
    relations: Any, start: str, length: int, end: str | None = None, doubled: Collection[Step] = ()
) -> tuple[Chain, ...]:
    """All chains of 1 to `length` steps from a type (that reach `end`, if given) without doubled ones, shorter ones first.

    `relations` is a sequence of (source, name, target), or data that have them. ``ValueError`` for length < 1.
    """
    if length < 1:
        raise ValueError(f"length must be >= 1, is {length}")
    known: tuple[Relation, ...] = tuple(relations) if isinstance(relations, list | tuple) else relations_of(relations)
    found: list[Chain] = []
    level: list[Chain] = [()]
    for _ in range(length):
        level = [(*c, step) for c in level for step in steps_from(known, step_types(c[-1])[1] if c else start, doubled)]
        found += level
    return tuple(c for c in found if end is None or step_types(c[-1])[1] == end)


def types_of(data: Any) -> tuple[str, ...]:
    """The node types."""
    return data.types if isinstance(data, HeteroGraph) else tuple(data.node_types)


def parse_path(text: str, data: Any) -> Chain:
    """``paper-author-paper`` (or with relations, ``paper-[writes]-author``) as a chain of the data's relations.

    Types may hold hyphens themselves: of several readings that the relations allow, the one with the longest types first is taken.
    `UserError` for a type that is not there, two types that nothing joins or that several relations join, and a path of
    one type.
    """
    types, relations = types_of(data), relations_of(data)
    refused: UserError | None = None
    unread = [text.strip()]
    for words in _readings(text.strip(), types, unread):
        try:
            steps = [_step(text, here, name, there, relations) for (here, name), (there, _) in itertools.pairwise(words)]
        except UserError as error:
            refused = refused or error
            continue
        if steps:
            return tuple(steps)
    if refused is not None:
        raise refused
    if text.strip() in types:
        raise UserError(f"meta-path {text!r} has no step; write at least two types, as in {types[0]}-{types[-1]}")
    word = min(unread, key=len).partition("-")[0]
    raise UserError(f"meta-path {text!r}: {word!r} is not a node type; there are {', '.join(types)}")


def _readings(rest: str, types: Sequence[str], unread: list[str]) -> Iterator[list[tuple[str, str]]]:
    """Ways to read a path as (type, name of the relation after it or ""), longer types first; `unread` gathers what was left."""
    unread.append(rest)
    for kind in sorted((t for t in types if rest == t or rest.startswith(f"{t}-")), key=len, reverse=True):
        after = rest[len(kind) :]
        if not after:
            yield [(kind, "")]
            continue
        named = re.match(r"-\[([^\]]+)\]-", after)
        for further in _readings(after[named.end() if named else 1 :], types, unread):
            yield [(kind, named[1].strip() if named else ""), *further]


def _step(text: str, here: str, name: str, there: str, relations: Sequence[Relation]) -> Step:
    wanted, against = name.removeprefix("<"), name.startswith("<")
    ahead = [(key, True) for key in relations if (key[0], key[2]) == (here, there)]
    back = [(key, False) for key in relations if (key[2], key[0]) == (here, there)]
    # within one type every relation can be walked both ways: forwards, unless it is said
    fits = back if against else ahead if here == there else ahead + back
    if name:
        fits = [step for step in fits if step[0][1] == wanted][:1]
    if not fits:
        joining = sorted({key[1] for key, _ in ahead + back})
        if joining and name:
            raise UserError(f"meta-path {text!r}: no relation {name!r} goes from {here} to {there}; {', '.join(joining)} do")
        known = ", ".join(relation_text(key) for key in relations)
        raise UserError(f"meta-path {text!r}: nothing joins {here} and {there}; relations: {known or 'none'}")
    if len(fits) > 1:
        names = [("" if forward else "<" if (key[1] in [k[1] for k, _ in ahead]) else "") + key[1] for key, forward in fits]
        raise UserError(
            f"meta-path {text!r}: {' and '.join(names)} all join {here} and {there}; name one, as in {here}-[{names[0]}]-{there}"
        )
    return fits[0]


def path_text(chain: Chain, data: Any, named: bool = False) -> str:
    """What `parse_path` reads as this chain; relations are named only where types leave them open, or all of them."""
    relations = relations_of(data)
    text = step_types(chain[0])[0]
    for key, forward in chain:
        here, there = step_types((key, forward))
        rivals = [k for k in relations if {k[0], k[2]} == {here, there}]
        against = not forward and (here == there or sum(k[1] == key[1] for k in rivals) > 1)
        plain = len(rivals) == 1 and not against
        text += f"-{there}" if plain and not named else f"-[{'<' if against else ''}{key[1]}]-{there}"
    if not named and any("-" in kind for kind in types_of(data)) and parse_path(text, data) != chain:
        return path_text(chain, data, named=True)
    return text


def biadjacency(data: Any, step: Step) -> sp.csr_array:
    """int64 CSR [n_here, n_there] of one step: how many edges of the relation join two nodes."""
    import scipy.sparse as sp

    key, forward = step
    sizes = sizes_of(data)
    u, v = edges_of(data, key)
    found = sp.coo_array((np.ones(len(u), np.int64), (u, v)), shape=(sizes[key[0]], sizes[key[2]]))
    return (found if forward else found.T).tocsr()


def chain_counts(data: Any, chain: Chain) -> sp.csr_array:
    """int64 CSR [n_first, n_last]: how many instances of a chain join two nodes; the exact product of its steps.

    Products are associative, so the cheapest neighbours are multiplied first. ``ValueError`` for an empty chain or steps
    that do not meet.
    """
    _check_chain(chain)
    factors = [biadjacency(data, step) for step in chain]
    while len(factors) > 1:
        work = [int(np.bincount(a.indices, minlength=a.shape[1]) @ np.diff(b.indptr)) for a, b in itertools.pairwise(factors)]
        i = int(np.argmin(work))
        factors[i : i + 2] = [factors[i] @ factors[i + 1]]
    found = factors[0].tocsr()
    found.sort_indices()
    return found


def chain_instances(data: Any, chain: Chain) -> int:
    """How many instances a chain has in all (exact to 2^53, without the product)."""
    _check_chain(chain)
    found = np.ones(sizes_of(data)[chain_types(chain)[-1]])
    for step in reversed(chain):
        found = biadjacency(data, step).astype(np.float64) @ found
    return int(found.sum())


def _check_chain(chain: Chain) -> None:
    if not chain:
        raise ValueError("the chain is empty")
    for a, b in itertools.pairwise(chain):
        if step_types(a)[1] != step_types(b)[0]:
            raise ValueError(
                f"the chain breaks: {relation_text(a[0])} reaches {step_types(a)[1]}, the next leaves {step_types(b)[0]}"
            )


# -- what it is like -----------------------------------------------------------------------------------------------------
def facts(graph: HeteroGraph) -> dict[str, Any]:
    """Counts by type and relation: what ``data check`` prints and what methods look at before they refuse."""
    touched = {kind: np.zeros(n, bool) for kind, n in graph.sizes.items()}
    for key, (u, v) in graph.relations.items():
        touched[key[0]][u] = True
        touched[key[2]][v] = True
    found: dict[str, Any] = {
        "types": graph.sizes,
        "relations": {relation_text(key): int(e.shape[1]) for key, e in graph.relations.items()},
        "features": {kind: int(x.shape[1]) for kind, x in graph.x.items()},
        "weighted relations": [relation_text(key) for key in graph.weights],
        "isolated nodes": {kind: int((~t).sum()) for kind, t in touched.items()},
        "labelled types": list(graph.labelled),
        "labelled": {kind: int((graph.y[kind] >= 0).sum()) for kind in graph.labelled},
        "classes": {kind: len(graph.classes[kind]) for kind in graph.labelled},
        "class sizes": {
            kind: {
                name: int(c)
                for name, c in zip(
                    graph.classes[kind], np.bincount(graph.y[kind][graph.y[kind] >= 0], minlength=len(graph.classes[kind])), strict=True
                )
            }
            for kind in graph.labelled
        },
        "fixed split": {kind: split_sizes(split) for kind, split in graph.fixed.items()},
        "named splits": {kind: {name: split_sizes(s) for name, s in named.items()} for kind, named in graph.splits.items()},
    }  # fmt: skip
    return found


def facts_of(graph: HeteroGraph) -> dict[str, Any]:
    """`facts`, computed once a graph."""
    if "facts" not in graph._cache:
        graph._cache["facts"] = facts(graph)
    found: dict[str, Any] = graph._cache["facts"]
    return found


def path_lines(graph: HeteroGraph, kind: str) -> list[str]:
    """The meta-paths from a type, to length 2 and the symmetric ones of length 4, each with its number of instances."""
    short = meta_paths(graph, kind, 2, doubled=doubled_steps(graph))
    there_and_back = [c + reverse_chain(c) for c in short if len(c) == 2]
    known = dict.fromkeys([*short, *there_and_back])
    lines = []
    for chain in list(known)[:PATHS_SHOWN]:
        count = chain_instances(graph, chain)
        lines.append(f"meta-path {path_text(chain, graph)}: {count} instances" + ("" if count else ": it matches nothing"))
    if len(known) > PATHS_SHOWN:
        lines.append(f"and {len(known) - PATHS_SHOWN} further meta-paths from {kind}")
    return lines


def check_lines(graph: HeteroGraph) -> list[str]:
    """What was understood, as lines for people."""
    lines = []
    for key, value in facts_of(graph).items():
        shown = _shown(value)
        if shown:
            lines.append(f"{key}: {shown}")
    for kind in graph.labelled or graph.types:
        lines += path_lines(graph, kind)
    for kind in graph.labelled:
        alone = facts_of(graph)["isolated nodes"][kind]
        if alone:
            lines.append(
                f"{alone} of {graph.sizes[kind]} {kind} nodes are in no relation: their own features alone speak for them"
            )
        if kind in graph.fixed:
            seen = set(graph.y[kind][graph.fixed[kind] == 0].tolist())
            absent = [name for code, name in enumerate(graph.classes[kind]) if code not in seen]
            lines += [f"no train node has class {name!r}: it cannot be predicted" for name in absent]
    if len(graph.labelled) > 1:
        lines.append(f"{', '.join(graph.labelled)} have labels: say which is classified with -s task.target={graph.labelled[0]}")
    return lines + list(graph.notes)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} ({_shown(v)})" if isinstance(v, Mapping) else f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return str(value)


# -- as a part of a fold ---
def hetero_schema(graph: HeteroGraph, target: str | None) -> dict[str, Any]:
    """What a model keeps of the graph it was fitted on; `classes` and `features` are those of the target type."""
    sums = [[*key, int(e.shape[1]), edge_sum(*e)] for key, e in graph.relations.items()]
    return {
        "classes": list(graph.classes.get(target or "", ())),
        "features": list(graph.features.get(target or "", ())),
        "multi": False,
        "target": target,
        "all_features": {kind: list(names) for kind, names in graph.features.items()},
        "types": graph.sizes,
        "relations": [list(key) for key in graph.relations],
        "doubled": [[*key, forward] for key, forward in doubled_steps(graph)],
        "nodes": sum(graph.sizes.values()) if target is None else graph.sizes[target],
        "bags": target is not None and bags_of(graph, target),
        "graph": digest_of([graph.sizes, sums, {kind: list(ids[:5]) for kind, ids in graph.ids.items()}])[:16],
    }


def target_of(graph: HeteroGraph, target: str | None, field: str = "task.target") -> str:
    """The type that is asked about: the one named, or the one that has labels; `field` is what names it."""
    if target is not None:
        if target not in graph.types:
            raise UserError(f"target {target!r} is not a node type; there are {', '.join(graph.types)}")
        return target
    if len(graph.labelled) == 1:
        return graph.labelled[0]
    if graph.labelled:
        choice = " or ".join(f"-s {field}={kind}" for kind in graph.labelled)
        raise UserError(f"{', '.join(graph.labelled)} all have labels; say which is meant: {choice}")
    raise UserError(f"no node has a label (types: {', '.join(graph.types)}); add a column 'label' to one file of nodes/")


def whole_hetero(graph: HeteroGraph, target: str | None = None) -> Part:
    """The whole graph without labels, asking for all nodes of a type: the one named, the labelled one, the first where none is."""
    target = target_of(graph, target) if target or graph.labelled else graph.types[0]
    query = HeteroNodes(np.arange(graph.sizes[target]), graph.ids[target], target)
    return Part(graph.tensors(), query, None, hetero_schema(graph, target))


# -- writing -------------------------------------------------------------------------------------------------------------
def write_hetero(graph: HeteroGraph, folder: Path) -> None:
    """``nodes/<type>.csv`` and ``edges/<source>__<relation>__<target>.csv`` that `read_hetero` reads back as the same graph."""
    for name in (*graph.types, *(part for key in graph.relations for part in key)):
        if "__" in name or not re.fullmatch(r"[^/\\:\x00]+", name) or name.startswith((".", "_")) or name.endswith("_"):
            raise UserError(
                f"{name!r} cannot be part of a file name <source>__<relation>__<target>.csv; rename the type or relation"
            )

    def fill(draft: Path) -> None:
        import polars as pl

        (draft / "nodes").mkdir()
        (draft / "edges").mkdir()
        for kind in graph.types:
            nodes_table(graph.alone(kind), graph.splits.get(kind, {})).write_csv(draft / "nodes" / f"{kind}.csv")
        for key, (u, v) in graph.relations.items():
            source, target = np.array(graph.ids[key[0]], object), np.array(graph.ids[key[2]], object)
            edges = pl.DataFrame({"source": source[u].tolist(), "target": target[v].tolist()})
            if key in graph.weights:
                edges = edges.with_columns(pl.Series("weight", graph.weights[key]))
            edges.write_csv(draft / "edges" / f"{'__'.join(key)}.csv")

    write_folder(folder, fill)


# -- the data set of a user's files --------------------------------------------------------------------------------------
class HeteroSet(Dataset):
    """What heterogeneous data sets share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "heterogeneous graph"

    def facts(self) -> Mapping[str, Any]:
        return facts_of(self.read())

    def check(self) -> list[str]:
        return check_lines(self.read())

    def write(self, to: Path) -> None:
        write_hetero(self.read(), to)

    def whole(self, target: str | None = None) -> Part:
        return whole_hetero(self.read(), target)


class HeteroFiles(HeteroSet):
    """A user's heterogeneous graph, by path; its identity is the bytes of the files, not where they lie."""

    name: ClassVar[str] = "hetero-files"
    path: Path = setting(..., "a folder with nodes/<type>.csv and edges/<source>__<relation>__<target>.csv")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By layout: a folder ``nodes`` or ``edges`` with tables in it."""
        return path.is_dir() and any(_tables(path / part, []) for part in ("nodes", "edges"))

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """A PyG ``HeteroData`` or a `HeteroGraph` made in Python."""
        from .hetero_sets import GivenHetero

        if isinstance(given, HeteroGraph):
            return GivenHetero.hold(given)
        return (
            GivenHetero.hold(from_hetero_data(given)) if hasattr(given, "edge_types") and hasattr(given, "node_types") else None
        )

    def read(self) -> HeteroGraph:
        return _read_cached(self.path, stamps(_files(self.path), self.path))

    def digest(self) -> str:
        return digest_of([bytes_digest(stamps(_files(self.path), self.path))])


def labels_file(path: Path, target: str | None) -> Path:
    """The table with the labels in a folder of this kind: the target's, or the only one that has a column ``label``."""
    tables = _tables(path / "nodes", [])
    if target is not None and target in tables:
        return tables[target]
    having = {kind: file for kind, file in tables.items() if "label" in header(file)}
    if len(having) == 1:
        return next(iter(having.values()))
    raise UserError(f"{path}: {some(having) if having else 'no type'} has labels; say whose with -s task.target=TYPE")


def _files(path: Path) -> list[Path]:
    return [file for part in ("nodes", "edges") for file in _tables(path / part, []).values()]


@lru_cache(maxsize=4)
def _read_cached(path: Path, stamp: tuple[Stamp, ...]) -> HeteroGraph:
    return read_hetero(path)
