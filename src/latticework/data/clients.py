"""The kind *clients*: graphs that may not be pooled, one for each client, with the same features and classes.

A user's folder holds one sub-folder a client, each a graph as the kind *graph* has it (``edges.csv``, ``nodes.csv``).
`Partition` makes such data of one graph, to try federated learning before there are parties. Node ids are kept, so a
node that two clients hold is known to be the same one, and a split can be drawn on all nodes before it is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from latticework.core.dataset import Dataset, Given, open_data
from latticework.core.errors import UserError
from latticework.core.ledger import write_folder
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, bytes_digest, stamps
from .graph import Graph, bags_of, check_numbers, facts_of, read_graph, undirected_pairs, write_graph
from .graph_sets import LargestComponent, MirroredGraph, content_digest, subgraph
from .table import find_table, some

Array = NDArray[Any]
By = Literal["metis", "louvain", "random"]


@dataclass(frozen=True)
class Clients:
    """Graphs of several clients, aligned: the same feature columns and the same numbering of classes.

    `places` says for each client which of all `total` nodes its nodes are, int64 [n_k]; a node that several clients hold
    has one place. `labelled` bool [total].
    """

    names: tuple[str, ...]
    graphs: tuple[Graph, ...]
    places: tuple[Array, ...]
    labelled: Array
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def total(self) -> int:
        return len(self.labelled)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.graphs[0].classes

    @property
    def features(self) -> tuple[str, ...]:
        return self.graphs[0].features

    @property
    def multi_label(self) -> bool:
        return self.graphs[0].multi_label


# -- from graphs of several parties --------------------------------------------------------------------------------------
def gather(graphs: Mapping[str, Graph], where: str = "the data") -> Clients:
    """Graphs by client as one container; nodes are known by their ids.

    Feature columns are matched by name (in the first client's order), classes by name (all that any client has, sorted).
    A category that a client lacks is a column of zeros there. Raises `UserError` for other columns on two clients, features
    or several labels on some only, or a client without a node.
    """
    names, notes = tuple(graphs), list[str]()
    if not names:
        raise UserError(f"{where} holds no client")
    for name, graph in graphs.items():
        if not graph.nodes:
            raise UserError(f"{where}: client {name!r} has no node")
        try:
            check_numbers(graph)
        except UserError as error:
            raise UserError(f"{where}, client {name!r}: {error}") from None
    kept = [g for g in graphs.values() if g.y is not None]
    several = {g.multi_label for g in kept}
    if len(several) > 1:
        who = {multi: next(n for n, g in graphs.items() if g.y is not None and g.multi_label == multi) for multi in several}
        raise UserError(
            f"{where}: client {who[True]!r} has several labels a node (a column 'labels') and {who[False]!r} has one "
            "('label'); use the same on all clients"
        )
    features = _common_features(graphs, where, notes)
    classes = tuple(sorted({c for g in kept for c in g.classes}))
    aligned = [_aligned(g, features, classes, several == {True}) for g in graphs.values()]
    ids: dict[str, int] = {}
    places = tuple(np.array([ids.setdefault(i, len(ids)) for i in g.ids], np.int64) for g in aligned)
    labelled = np.zeros(len(ids), bool)
    for graph, place in zip(aligned, places, strict=True):
        labelled[place[graph.labelled]] = True
    shared = sum(len(p) for p in places) - len(ids)
    if shared:
        notes.append(
            f"{shared} nodes stand in more than one client, by their ids; in a split they are on the same side everywhere"
        )
    _same_labels(names, aligned, places, where)
    return Clients(names, tuple(aligned), places, labelled, tuple(notes))


def _common_features(graphs: Mapping[str, Graph], where: str, notes: list[str]) -> tuple[str, ...]:
    first, *rest = graphs
    wanted = list(graphs[first].features)
    for name in rest:
        mine, theirs = set(graphs[first].features), set(graphs[name].features)
        families = {n.partition("=")[0] for n in mine & theirs if "=" in n} | (
            {n.partition("=")[0] for n in mine if "=" in n} & {n.partition("=")[0] for n in theirs if "=" in n}
        )
        for here, there, lacking in ((first, name, mine - theirs), (name, first, theirs - mine)):
            strange = sorted(n for n in lacking if "=" not in n or n.partition("=")[0] not in families)
            if strange:
                has = f"{len(graphs[there].features)} features" if graphs[there].features else "no features"
                raise UserError(
                    f"{where}: client {here!r} has feature {some(strange)} that client {there!r} lacks ({there!r} has {has}); "
                    "all clients need the same feature columns, by name"
                )
        more = sorted(theirs - set(wanted))
        if more:
            notes.append(f"client {name!r} has {len(more)} categories that others lack (zeros there): {some(more)}")
            wanted += more
        if theirs == mine and graphs[name].features != graphs[first].features:
            notes.append(f"client {name!r} has the feature columns in another order: matched by name")
    return tuple(wanted)


def _aligned(graph: Graph, features: tuple[str, ...], classes: tuple[str, ...], multi: bool) -> Graph:
    """The graph with these feature columns and this numbering of classes."""
    x, y = graph.x, graph.y
    if graph.features != features:
        place = {name: i for i, name in enumerate(features)}
        x = np.zeros((graph.nodes, len(features)), np.float32)
        assert graph.x is not None
        x[:, [place[name] for name in graph.features]] = graph.x
    if y is None:
        y = np.zeros((graph.nodes, len(classes)), bool) if multi else np.full(graph.nodes, -1, np.int64)
    elif graph.classes != classes:
        code = np.array([classes.index(name) for name in graph.classes], np.int64)
        if multi:
            wide = np.zeros((graph.nodes, len(classes)), bool)
            wide[:, code] = y
            y = wide
        else:
            y = np.where(y >= 0, np.append(code, -1)[y], -1)
    return replace(graph, x=x, y=y, features=features, classes=classes, _cache={})


def _same_labels(names: Sequence[str], graphs: Sequence[Graph], places: Sequence[Array], where: str) -> None:
    """A node that two clients hold has the same label on both, where both know one."""
    seen: dict[int, tuple[str, Any]] = {}
    if graphs[0].y is None or sum(len(p) for p in places) == len(np.unique(np.concatenate(places))):
        return
    for name, graph, place in zip(names, graphs, places, strict=True):
        assert graph.y is not None
        for row in np.flatnonzero(graph.labelled):
            other = seen.setdefault(int(place[row]), (name, graph.y[row]))
            if not np.array_equal(other[1], graph.y[row]):
                raise UserError(
                    f"{where}: node {graph.ids[row]!r} has one label on client {other[0]!r} and another on {name!r}; where these "
                    "are different nodes, give them different ids"
                )


# -- from one graph ------------------------------------------------------------------------------------------------------
def cut(graph: Graph, clients: int, by: By = "metis", overlap: int | None = None, seed: int = 0) -> tuple[Array, ...]:
    """The nodes of each of K clients, sorted int64 arrays; edges between clients are for the caller to drop.

    ``metis``: K parts with few edges between them. ``louvain``: communities, the largest first to the client that has the
    fewest nodes so far. ``random``: K parts of equal size. `overlap` m: K / m parts, each of which gives m clients a half of
    its nodes each, drawn without replacement. Raises `UserError` where that is impossible.
    """
    parts = clients if overlap is None else clients // overlap
    if overlap is not None and parts * overlap != clients:
        raise UserError(f"overlap={overlap} makes {overlap} clients of each part: {clients} clients cannot be made so")
    if parts > graph.nodes:
        raise UserError(f"{graph.nodes} nodes cannot be cut into {parts} parts")
    rng = np.random.default_rng([seed, 0x636C69])
    member = np.zeros(graph.nodes, np.int64) if parts == 1 else _PARTITIONERS[by](graph, parts, seed)
    found = [np.flatnonzero(member == k) for k in range(parts)]
    empty = [k for k, nodes in enumerate(found) if len(nodes) < (1 if overlap is None else 2)]
    if empty:
        raise UserError(f"{by} leaves {len(empty)} of {parts} parts without nodes; use fewer clients")
    if overlap is None:
        return tuple(found)
    return tuple(np.sort(rng.choice(nodes, len(nodes) // 2, replace=False)) for nodes in found for _ in range(overlap))


def _metis(graph: Graph, parts: int, seed: int) -> Array:
    try:
        import pymetis
    except ImportError:
        raise UserError("METIS needs pymetis: pip install 'latticework[federated]', or use by=louvain or random") from None
    a, b = undirected_pairs(graph)
    ends = np.concatenate([a, b])
    order = np.argsort(ends, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=graph.nodes))])
    found = pymetis.part_graph(
        parts, xadj=starts.tolist(), adjncy=np.concatenate([b, a])[order].tolist(), options=pymetis.Options(seed=seed)
    )
    return np.asarray(found.vertex_part, np.int64)


def _louvain(graph: Graph, parts: int, seed: int) -> Array:
    import networkx as nx

    g = nx.Graph()
    g.add_nodes_from(range(graph.nodes))
    g.add_edges_from(undirected_pairs(graph).T.tolist())
    communities = sorted((sorted(c) for c in nx.community.louvain_communities(g, seed=seed)), key=lambda c: (-len(c), c[0]))
    if len(communities) < parts:
        raise UserError(f"Louvain finds {len(communities)} communities, fewer than {parts} parts; use fewer clients or by=metis")
    member, sizes = np.zeros(graph.nodes, np.int64), [0] * parts
    for community in communities:
        least = sizes.index(min(sizes))
        member[community] = least
        sizes[least] += len(community)
    return member


def _random(graph: Graph, parts: int, seed: int) -> Array:
    member = np.arange(graph.nodes) % parts
    return np.random.default_rng([seed, 0x72616E]).permutation(member)


_PARTITIONERS: Mapping[str, Any] = {"metis": _metis, "louvain": _louvain, "random": _random}


def partitioned(graph: Graph, nodes: Sequence[Array]) -> Clients:
    """The clients of a graph that was cut; each keeps the ids, the numbering of classes and all feature columns."""
    graphs = tuple(replace(subgraph(graph, own), notes=()) for own in nodes)
    pairs = undirected_pairs(graph)
    kept = np.zeros(pairs.shape[1], bool)
    held = np.zeros(graph.nodes, bool)
    for own in nodes:
        inside = np.zeros(graph.nodes, bool)
        inside[own] = True
        kept |= inside[pairs].all(0)
        held |= inside
    notes = [f"{int((~kept).sum())} of {len(kept)} joined pairs are lost: no client holds both ends"]
    if not held.all():
        notes.append(f"{int((~held).sum())} of {graph.nodes} nodes are held by no client")
    names = tuple(f"client-{k:0{len(str(len(nodes) - 1))}d}" for k in range(len(nodes)))
    return Clients(names, graphs, tuple(nodes), graph.labelled, tuple(notes))


# -- the data sets -------------------------------------------------------------------------------------------------------
class ClientSet(Dataset):
    """What data sets of this kind share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "clients"

    def facts(self) -> Mapping[str, Any]:
        return facts(self.read())

    def check(self) -> list[str]:
        return check_lines(self.read())

    def write(self, to: Path) -> None:
        write_clients(self.read(), to)

    def whole(self) -> Part:
        clients: Clients = self.read()
        return Part(tuple(g.tensors() for g in clients.graphs), None, None, schema_of(clients))


class ClientFolder(ClientSet):
    """Several parties' graphs: a folder with a graph folder for each client; the sub-folders' names are the clients'."""

    name: ClassVar[str] = "client-folder"
    path: Path = setting(..., "a folder with one sub-folder a client, each with edges.csv and nodes.csv")
    directed: bool | None = setting(None, "true or false declares the edges; left out, it is found out for each client")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and find_table(path, "edges") is None and bool(_folders(path))

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """A `Clients` made in Python."""
        return GivenClients.hold(given) if isinstance(given, Clients) else None

    def read(self) -> Clients:
        return _read_clients(self.path, self.directed, stamps(_files(self.path), self.path))

    def digest(self) -> str:
        return digest_of([bytes_digest(stamps(_files(self.path), self.path)), self.directed])


def _folders(path: Path) -> list[Path]:
    return [p for p in sorted(path.iterdir()) if p.is_dir() and find_table(p, "edges") is not None]


def _files(path: Path) -> list[Path]:
    return [f for p in _folders(path) for f in (find_table(p, "edges"), find_table(p, "nodes")) if f is not None]


@lru_cache(maxsize=4)
def _read_clients(path: Path, directed: bool | None, stamp: tuple[Stamp, ...]) -> Clients:
    folders = _folders(path)
    if not folders:
        raise UserError(f"{path} has no sub-folder with edges.csv (source,target[,weight]); each client is one")
    strange = [p.name for p in sorted(path.iterdir()) if p.is_dir() and p not in folders and not p.name.startswith(".")]
    found = gather({p.name: read_graph(p, directed) for p in folders}, str(path))
    if strange:
        found = replace(found, notes=(*found.notes, f"sub-folders that are no client (no edges.csv): {some(strange)}"))
    return found


class GivenClients(Given, ClientSet):
    """Clients made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-clients"

    @classmethod
    def hold(cls, clients: Clients) -> GivenClients:
        digest = digest_of([[content_digest(g) for g in clients.graphs], list(clients.names), _places_digest(clients)])
        cls._held[digest] = clients
        return cls(content=digest)


class Partition(ClientSet):
    """One graph cut into clients, to see what federated learning would give; edges between clients are lost.

    Another way of cutting is another data set: it moves what a client reaches alone by many points. Published figures need
    METIS. `overlap` 5 with 30 clients: six METIS parts, five clients from each, with half of its nodes each.
    """

    name: ClassVar[str] = "partition"
    of: Dataset = setting(LargestComponent(of=MirroredGraph(file="planetoid-cora")), "the whole graph: a name or a path")
    clients: int = setting(10, "how many", ge=1, le=10_000)
    overlap: int | None = setting(None, "none: each node has one client; m: m clients from each part", ge=2, le=1000)
    by: By = setting("metis", "how the graph is cut")
    seed: int = setting(0, "of the draw", ge=0)

    @field_validator("of", mode="before")
    @classmethod
    def _by_path(cls, given: Any) -> Any:
        return open_data(given) if isinstance(given, str) and Path(given).exists() else given

    def read(self) -> Clients:
        return _partition(self.of.digest(), self)

    def digest(self) -> str:
        # the parts themselves: another release of a partitioner may cut otherwise
        return digest_of([self.name, self.of.digest(), _places_digest(self.read()), self.revision])


_partitions: dict[tuple[str, str], Clients] = {}


def _partition(digest: str, value: Partition) -> Clients:
    if value.of.kind != "graph":
        raise UserError(f"partition cuts a graph, and {value.of.label} holds {value.of.kind}")
    key = (digest, value.key())
    if key not in _partitions:
        graph: Graph = value.of.read()
        if len(_partitions) >= 4:
            _partitions.pop(next(iter(_partitions)))
        _partitions[key] = partitioned(graph, cut(graph, value.clients, value.by, value.overlap, value.seed))
    return _partitions[key]


def _places_digest(clients: Clients) -> str:
    if "places" not in clients._cache:
        sha = hashlib.sha256()
        for place in clients.places:
            sha.update(str(len(place)).encode() + place.tobytes())
        clients._cache["places"] = sha.hexdigest()
    return str(clients._cache["places"])


# -- what clients are like -----------------------------------------------------------------------------------------------
def schema_of(clients: Clients) -> dict[str, Any]:
    """What a model keeps of the clients it was fitted on."""
    return {
        "classes": list(clients.classes),
        "features": list(clients.features),
        "clients": list(clients.names),
        "multi": clients.multi_label,
        "bags": all(map(bags_of, clients.graphs)),
    }


def facts(clients: Clients) -> dict[str, Any]:
    """Counts and shapes, over all clients and for each."""
    if "facts" not in clients._cache:
        each = [facts_of(g) for g in clients.graphs]
        likeness = label_likeness(clients)
        apart = likeness[~np.eye(len(each), dtype=bool)]
        sizes = {name: f["class sizes"] for name, f in zip(clients.names, each, strict=True) if "class sizes" in f}
        clients._cache["facts"] = {
            "clients": len(each),
            "nodes of all clients": int(sum(f["nodes"] for f in each)),
            "different nodes": clients.total,
            "joined pairs": int(sum(f["pairs joined"] for f in each)),
            "directed": any(f["directed"] for f in each),
            "weighted": any(f["weighted"] for f in each),
            "features": len(clients.features),
            "classes": len(clients.classes),
            "multi-label": clients.multi_label,
            "labelled": int(sum(f["labelled"] for f in each)),
            "split column": all(g.fixed is not None for g in clients.graphs),
            "clients without a label": [n for n, f in zip(clients.names, each, strict=True) if not f["labelled"]],
            "likeness of label shares (mean cosine)": float(apart.mean()) if len(apart) else None,
            "class sizes": sizes,
        }
    found: dict[str, Any] = clients._cache["facts"]
    return found


def label_likeness(clients: Clients) -> Array:
    """Cosine between the clients' label histograms, float64 [K, K]; 0 for a client without labels."""
    rows = []
    for graph in clients.graphs:
        if graph.y is None:
            rows.append(np.zeros(len(clients.classes)))
        elif graph.multi_label:
            rows.append(graph.y.sum(0).astype(np.float64))
        else:
            rows.append(np.bincount(graph.y[graph.y >= 0], minlength=len(clients.classes)).astype(np.float64))
    counts = np.stack(rows)
    length = np.linalg.norm(counts, axis=1, keepdims=True)
    unit = np.divide(counts, length, out=np.zeros_like(counts), where=length > 0)
    return np.asarray(unit @ unit.T)


def check_lines(clients: Clients) -> list[str]:
    """What was understood, as lines for people: a line for each client."""
    lines = []
    for key, value in facts(clients).items():
        if key in ("class sizes", "clients without a label"):
            continue
        lines.append(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}")
    for name, graph in zip(clients.names, clients.graphs, strict=True):
        found = facts_of(graph)
        have = {k: v for k, v in found.get("class sizes", {}).items() if v}
        most = f", most of class {max(have, key=lambda k: have[k])!r}" if have else ""
        lines.append(
            f"{name}: {found['nodes']} nodes, {found['pairs joined']} joined pairs, {found['labelled']} labelled "
            f"({len(have)} of {len(clients.classes)} classes{most})"
        )
    if all(g.fixed is not None for g in clients.graphs):
        lines.append("every client brings a column 'split'; it is used with -s task.protocol=fixed alone")
    return lines + list(clients.notes)


def write_clients(clients: Clients, folder: Path) -> None:
    """A folder with one graph folder a client, that `ClientFolder` reads back; nodes that no client holds are not in it."""

    def fill(draft: Path) -> None:
        for name, graph in zip(clients.names, clients.graphs, strict=True):
            write_graph(graph, draft / name)

    write_folder(folder, fill)
