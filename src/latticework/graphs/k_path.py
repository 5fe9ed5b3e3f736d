"""k-path: every node is read as the sub-graph that its simple paths of at most k edges span, and only then as part of its graph.

The rooted sub-graph ``S_k(v)`` is labelled with the root's mark and with ``log(1 + c_l(v, u))``, l = 1 .. k, the numbers of simple
paths with l edges from v to u. A small GIN runs inside all rooted sub-graphs at once (one disjoint union), gives a vector a node,
``z_v = MLP(h_root || mean_u h_u || x_v)``, and a second GIN runs over these on the graph itself. A plain k-hop ego network holds
the same nodes; what the labels add is that numbers of paths and cycles of up to k + 1 edges can be read off the root
(`paths_from`, `cycles_through`), which no 1-WL network can count.

Source: "Revisiting Graph Neural Networks on Graph-level Tasks" (arXiv 2501.00773, 2025). Its abstract alone is in reach: that paths
of length k around a root are encoded, and that this counts sub-graphs such as paths and cycles, is the paper's; the labels, the two
GINs and the sizes are this library's reading of it. GIN: Xu et al., "How Powerful are Graph Neural Networks?" (ICLR 2019),
equation 4.1; edge features as in GINE, Hu et al. (ICLR 2020).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data

from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.value import setting
from latticework.layers.paths import Rooted, Simple, rooted_paths, simple_graph
from latticework.layers.propagation import SparseOperator

from .network import GraphModel, GraphNet, GraphNetwork, simple_degree_of, unlike_simple
from .wl_kernel import NEIGHBOUR, mixed

Array = NDArray[Any]
MOST_EXACT = 8  # longest paths that are walked in full


# -- what the labels tell without learning -----------------------------------------------------------------------------------
def paths_from(rooted: Rooted) -> Array:
    """float64 [r, k]: simple paths with 1 .. k edges that start at each root, ``sum_u c_l(v, u)``; over all roots, each twice."""
    total = np.zeros((len(rooted.ptr) - 1, rooted.counts.shape[1]))
    np.add.at(total, rooted.root, rooted.counts)
    return total


def cycles_through(rooted: Rooted) -> Array:
    """float64 [r, k - 1]: cycles with 3 .. k + 1 edges through each root, ``(1/2) sum_{u in N(v)} c_l(v, u)``, l = 2 .. k.

    Summed over the roots of a graph each cycle of length L is counted L times.
    """
    found = np.zeros((len(rooted.ptr) - 1, max(rooted.counts.shape[1] - 1, 0)))
    near = rooted.distance == 1
    np.add.at(found, rooted.root[near], rooted.counts[near, 1:] / 2)
    return found


def rooted_colours(
    graph: Simple, ptr: Array, k: int, tags: Array | None = None, *, inner: int = 2, outer: int = 0, labels: bool = True
) -> NDArray[np.uint64]:
    """The colour of each graph by 1-WL inside its labelled rooted sub-graphs: equal where no k-path network tells two apart.

    ``ptr`` int64 [G + 1]: nodes of each graph; `tags` int [n] start the colours with the root's mark and the path counts; `inner`
    rounds inside, then a node's colour is (its root's, the multiset of its sub-graph's), and `outer` rounds on the graph.
    Without `labels` the counts are left out: ego networks with a marked root. -> uint64 [G]. Sums of 64-bit mixes stand for
    multisets (two differ by chance once in 1.8e19 pairs), integers alone, the same in every process.
    """
    rooted = rooted_paths(graph, k, max_paths=2**62)
    start = np.zeros(graph.nodes, np.int64) if tags is None else np.asarray(tags, np.int64)
    colour = _mix(start.astype(np.uint64)[rooted.node])
    root = np.zeros(len(rooted.node), np.uint64)
    root[rooted.ptr[:-1]] = 1
    rows = np.zeros(len(rooted.node) + 1, np.int64)
    np.cumsum(np.bincount(rooted.edges[1], minlength=len(rooted.node)), out=rows[1:])
    with np.errstate(over="ignore"):
        colour = _mix(colour * np.uint64(3) + root)
        for level in range(k if labels else 0):
            colour = _mix(colour * np.uint64(5) + rooted.counts[:, level].astype(np.uint64))
        for _ in range(inner):
            colour = _mix(colour * np.uint64(7) + _sums(_mix(colour)[rooted.edges[0]], rows))
        node = _mix(_mix(colour[rooted.ptr[:-1]]) * np.uint64(11) + _sums(_mix(colour), rooted.ptr))
        for _ in range(outer):
            node = _mix(node * np.uint64(13) + _sums(_mix(node)[graph.indices], graph.indptr))
        return _sums(_mix(node), np.asarray(ptr, np.int64))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return mixed(x + NEIGHBOUR)  # 0 would stay 0


def _sums(values: NDArray[np.uint64], ptr: Array) -> NDArray[np.uint64]:
    """The sum (modulo 2^64) of each consecutive range of values."""
    with np.errstate(over="ignore"):
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
        return total[ptr[1:]] - total[ptr[:-1]]


# -- the network -------------------------------------------------------------------------------------------------------------
class Union(NamedTuple):
    """The rooted sub-graphs of a batch: what the inner GIN reads.

    ``node`` int64 [N]; ``size`` int64 [n], rows of each root (the root first); ``labels`` float [N, k], ``log(1 + c_l)`` or c_l; ``edges``
    int64 [2, M], sorted by target, both directions; ``entry`` int64 [M], the column of the graph's edges behind each, or none.
    """

    node: Tensor
    size: Tensor
    labels: Tensor
    edges: Tensor
    entry: Tensor | None = None


def mlp(inputs: int, width: int, outputs: int, dropout: float = 0.0, norm: bool = True) -> nn.Sequential:
    """Linear, batch normalisation, ReLU, dropout, Linear."""
    middle = [nn.BatchNorm1d(width)] if norm else []
    return nn.Sequential(nn.Linear(inputs, width), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))


def neighbour_sums(h: Tensor, edges: Tensor, weight: Tensor | None = None) -> Tensor:
    """``sum_{e: target(e) = u} w_e h_source(e)``, [N, d] -> [N, d]; `edges` hold both directions, sorted by target.

    On the CPU without weights it is a CSR product whose operator is its own transpose; else torch's index_add.
    """
    if weight is None and h.device.type == "cpu":
        source, target = edges.numpy()
        indptr = np.zeros(len(h) + 1, np.int64)
        np.cumsum(np.bincount(target, minlength=len(h)), out=indptr[1:])
        ones = np.ones(len(source), np.float64 if h.dtype == torch.float64 else np.float32)
        operator = SparseOperator.unchecked(indptr, source, ones, (len(h), len(h)))
        operator._symmetric = True
        return operator @ h
    messages = h[edges[0]]
    return torch.zeros_like(h).index_add(0, edges[1], messages if weight is None else messages * weight[:, None])


class GINLayer(nn.Module):
    """``h_u <- relu(BN(MLP((1 + eps) h_u + sum_{w in N(u)} w_uw m(h_w, e_uw))))``, eps learned.

    ``m(h, e) = relu(h + W e)`` where there are edge features, else h. Shapes: h [N, d], edges int64 [2, M] (sources, targets; both
    directions, sorted by target), edge_x [M, D] or none, weight [M] or none for ones -> [N, d].
    """

    def __init__(self, width: int, edge_features: int = 0, dropout: float = 0.0, norm: bool = True) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(()))
        self.edge = nn.Linear(edge_features, width) if edge_features else None
        self.mlp = mlp(width, width, width, 0.0, norm)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.dropout = dropout

    def forward(self, h: Tensor, edges: Tensor, edge_x: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        if self.edge is None:
            near = neighbour_sums(h, edges, weight)
        else:
            if edge_x is None:
                raise ValueError("this layer reads edge features, and there are none")
            messages = F.relu(h[edges[0]] + self.edge(edge_x))
            near = torch.zeros_like(h).index_add(0, edges[1], messages if weight is None else messages * weight[:, None])
        h = self.norm(self.mlp((1 + self.eps) * h + near))
        return F.dropout(F.relu(h), self.dropout, self.training)


class RootedGIN(nn.Module):
    """A vector for each node from its k-path rooted sub-graph: ``z_v = MLP(h_root || mean_u h_u || x_v)``, h by L GIN layers.

    With ``pool="sum"`` the mean is a sum; with `totals` the sums of the labels, ``sum_u label_l(v, u)``, stand beside: with plain
    counts as labels these are the numbers of paths from v, and a GIN layer's sum at the root the numbers of cycles through it.
    Inputs: x [n, F], the `Union` of the rooted sub-graphs, edge features [m, D] and weights [m] of the graph's edges or none
    (which need the union's `entry`) -> [n, d]. With k = 0 a sub-graph is its root alone and z an MLP of x.
    """

    def __init__(
        self, features: int, k: int, width: int, layers: int = 2, edge_features: int = 0, dropout: float = 0.0, norm: bool = True,
        pool: Literal["mean", "sum"] = "mean", totals: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pool, self.totals = pool, totals
        self.x, self.label = nn.Linear(features, width), nn.Linear(k + 1, width)
        self.layers = nn.ModuleList(GINLayer(width, edge_features, dropout, norm) for _ in range(layers))
        self.out = mlp(2 * width + features + (k if totals else 0), width, width, 0.0, norm)

    def forward(self, x: Tensor, union: Union, edge_x: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        first = union.size.cumsum(0) - union.size
        root = union.labels.new_zeros(len(union.node), 1)
        root[first] = 1
        h = self.x(x)[union.node] + self.label(torch.cat([root, union.labels], 1))
        if edge_x is not None or weight is not None:
            assert union.entry is not None, "the union was made without its edges' places in the graph"
            edge_x = None if edge_x is None else edge_x[union.entry]
            weight = None if weight is None else weight[union.entry]
        for layer in self.layers:
            h = layer(h, union.edges, edge_x, weight)
        own = torch.arange(len(x), device=x.device).repeat_interleave(union.size)
        total = h.new_zeros(len(x), h.shape[1]).index_add(0, own, h)
        if self.pool == "mean":
            total = total / union.size[:, None].to(h.dtype)
        parts = [h[first], total, x]
        if self.totals:
            parts.append(x.new_zeros(len(x), union.labels.shape[1]).index_add(0, own, union.labels))
        z: Tensor = self.out(torch.cat(parts, 1))
        return z


class KPathNet(GraphNet):
    """`RootedGIN`, then GIN layers on the graph over its vectors, then sum and mean over the graph (or one of them).

    It reads batches of `RootedData`: x [n, F], edge_index int64 [2, m] (both directions, sorted by target), the union, and where it
    is there `edge_weight` [m], which scales the messages inside and outside of the rooted sub-graphs. [G, d] or [G, 2d] -> [G, out].
    """

    def __init__(
        self, features: int, outputs: int, k: int = 3, width: int = 64, inner: int = 2, outer: int = 2, edge_features: int = 0,
        dropout: float = 0.3, pool: Literal["sum", "mean", "sum+mean"] = "sum+mean", norm: bool = True,
        pool_inside: Literal["mean", "sum"] = "mean", totals: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rooted = RootedGIN(features, k, width, inner, edge_features, dropout, norm, pool_inside, totals)
        self.outer = nn.ModuleList(GINLayer(width, edge_features, dropout, norm) for _ in range(outer))
        self.pool = pool
        total = width * len(pool.split("+"))
        self.norm = nn.BatchNorm1d(total) if norm else nn.Identity()  # sums grow with the graph
        self.last = nn.Sequential(
            nn.Linear(total, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(width, outputs),
        )  # fmt: skip
        self.width = width

    def nodes(self, batch: Batch) -> Tensor:
        """[n, d]: the vector of each node after the outer layers."""
        edge_x, weight = batch.edge_attr if self._reads_edges else None, batch.edge_weight
        h = self.rooted(batch.x, union_of(batch), edge_x, weight)
        for layer in self.outer:
            h = layer(h, batch.edge_index, edge_x, weight)
        return h

    @property
    def _reads_edges(self) -> bool:
        return any(layer.edge is not None for layer in (*self.rooted.layers, *self.outer))  # type: ignore[union-attr]

    def read_out(self, h: Tensor, batch: Batch) -> Tensor:
        """[n, d] -> [G, d] or [G, 2d]; a graph without nodes reads 0."""
        total = h.new_zeros(batch.num_graphs, h.shape[1]).index_add(0, batch.batch, h)
        sizes = (batch.ptr[1:] - batch.ptr[:-1]).clamp(min=1)[:, None].to(h.dtype)
        parts = {"sum": total, "mean": total / sizes}
        return torch.cat([parts[word] for word in self.pool.split("+")], 1)

    def encode(self, batch: Batch) -> Tensor:
        z: Tensor = self.norm(self.read_out(self.nodes(batch), batch))
        return z

    def head(self, z: Tensor) -> Tensor:
        out: Tensor = self.last(z)
        return out


# -- batches -----------------------------------------------------------------------------------------------------------------
class RootedData(Data):
    """A graph with its rooted sub-graphs: `path_node`, `path_size`, `path_labels`, `path_edges`, `path_entry`, joined as a batch is."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if key == "path_edges":
            return len(self.path_node)
        if key == "path_node":
            return self.num_nodes
        if key == "path_entry":
            return self.edge_index.shape[1]
        return super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 1 if key == "path_edges" else super().__cat_dim__(key, value, *args, **kwargs)


def union_of(batch: Any) -> Union:
    """The union in a graph or a batch of them."""
    entry = batch.path_entry if "path_entry" in batch else None
    return Union(batch.path_node, batch.path_size, batch.path_labels, batch.path_edges, entry)


class Counting(NamedTuple):
    """How paths are counted: the longest, the cap of a root, whether all are sampled, whether labels are ``log(1 + c)`` or c."""

    k: int = 3
    max_paths: int = 2000
    sampled: bool = False
    log: bool = True

    def labels(self, rooted: Rooted) -> Tensor:
        """float32 [N, k]."""
        return torch.from_numpy((np.log1p(rooted.counts) if self.log else rooted.counts).astype(np.float32))

    def of(self, edge_index: Tensor, sizes: Sequence[int] | Array) -> tuple[Simple, Rooted]:
        """The simple graph and the rooted sub-graphs of a disjoint union whose graphs have `sizes` nodes.

        A graph's draws are set by its roots' places in it, so it is counted alike in every batch.
        """
        n = int(np.sum(sizes))
        graph = simple_graph(edge_index.cpu().numpy(), n)
        starts = np.cumsum(sizes) - sizes
        within = np.arange(n) - np.repeat(starts, sizes)
        return graph, rooted_paths(graph, self.k, max_paths=self.max_paths, sampled=self.sampled, streams=within)


def rooted_data(graphs: Sequence[Data], counting: Counting) -> list[RootedData]:
    """New graphs with their rooted sub-graphs, counted in one call; `edge_index` becomes simple and goes both ways.

    Self-loops and repeated edges are left out; an edge that was written in one direction has its features in both.
    """
    if not graphs:
        return []
    sizes = np.array([int(g.num_nodes or 0) for g in graphs], np.int64)
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    columns = np.array([g.edge_index.shape[1] for g in graphs], np.int64)
    starts = np.cumsum(columns) - columns
    whole = torch.cat([g.edge_index + int(p) for g, p in zip(graphs, ptr[:-1], strict=True)], 1)
    graph, rooted = counting.of(whole, sizes)
    rows, entries = rooted.ptr[ptr], graph.indptr[ptr]
    ends = np.concatenate([[0], np.cumsum(np.bincount(rooted.edges[1], minlength=len(rooted.node)))])[rows]
    simple, labels = _both_ways(graph), counting.labels(rooted)
    node, size = torch.from_numpy(rooted.node), torch.from_numpy(np.diff(rooted.ptr))
    edges, entry = torch.from_numpy(rooted.edges), torch.from_numpy(rooted.entry)
    edge = torch.from_numpy(graph.edge[graph.turned])  # entry (row, column) is the edge column -> row
    made = []
    for i, given in enumerate(graphs):
        new = RootedData(**given.to_dict())
        a, b, p = int(entries[i]), int(entries[i + 1]), int(ptr[i])
        new.num_nodes = int(sizes[i])
        new.edge_index = simple[:, a:b] - p
        if given.edge_attr is not None:
            new.edge_attr = given.edge_attr[edge[a:b] - int(starts[i])]
            new.path_entry = entry[ends[i] : ends[i + 1]] - a
        new.path_node, new.path_size = node[rows[i] : rows[i + 1]] - p, size[p : p + int(sizes[i])]
        new.path_labels = labels[rows[i] : rows[i + 1]]
        new.path_edges = edges[:, ends[i] : ends[i + 1]] - int(rows[i])
        made.append(new)
    return made


def _both_ways(graph: Simple) -> Tensor:
    """The edges of a simple graph, int64 [2, 2m], sorted by target: each CSR entry is the edge (column -> row)."""
    target = np.repeat(np.arange(graph.nodes), np.diff(graph.indptr))
    return torch.from_numpy(np.stack([graph.indices.astype(np.int64), target]))


def rooted_view(batch: Any, kept: Tensor, counting: Counting, weight: Tensor | None = None) -> Any:
    """A batch with the edges `kept` bool [m] alone, its rooted sub-graphs built anew: exactly what the smaller graphs would give.

    `kept` and `weight` [m] are the same for both directions of an edge.
    """
    made = copy.copy(batch)
    device = batch.edge_index.device
    sizes = (batch.ptr[1:] - batch.ptr[:-1]).cpu().numpy()
    made.edge_index = batch.edge_index[:, kept]
    _, rooted = counting.of(made.edge_index, sizes)
    # a subset of sorted edges stays sorted, and it goes both ways: entry e of the CSR is column e
    made.path_node = torch.from_numpy(rooted.node).to(device)
    made.path_size = torch.from_numpy(np.diff(rooted.ptr)).to(device)
    made.path_labels = counting.labels(rooted).to(batch.path_labels)
    made.path_edges = torch.from_numpy(rooted.edges).to(device)
    made.path_entry = torch.from_numpy(rooted.entry).to(device)
    if batch.edge_attr is not None:
        made.edge_attr = batch.edge_attr[kept]
    if weight is not None:
        made.edge_weight = weight[kept]
    return made


# -- the recipe --------------------------------------------------------------------------------------------------------------
class KPathModel(GraphModel):
    """A trained k-path network, which can say how many paths it reads."""

    def explain(self, part: Part) -> Findings:
        """Rooted sub-graphs and paths of the part's graphs, beside those of the train part."""
        rows = [{"part": "train", **self.schema["paths"]}, {"part": "this one", **self.method.paths_of(part.data)}]  # type: ignore[attr-defined]
        return Findings({}, {"paths and rooted sub-graphs": rows})


class KPathMethod(GraphNetwork):
    """Every node is encoded as the sub-graph of its simple paths of at most `k` edges, labelled with path counts (arXiv 2501.00773).

    Edges are read as undirected; self-loops and repeated edges are left out. Paths are counted once a data set, on the CPU. A root
    with more than `max_paths` paths has the longer ones sampled (an unbiased estimate; the same graph is always counted alike,
    but a renumbered one may be sampled otherwise). ``k-path:social`` (k=2) is for dense graphs, where d^k explodes;
    ``k-path:counting`` reads sums alone, without batch normalisation, to count paths and cycles of up to six edges; ``k-path:small``
    is a few epochs of a quarter of the width.
    """

    name: ClassVar[str] = "k-path"
    model: ClassVar[type[GraphModel]] = KPathModel
    degrees: ClassVar[Callable[[Data], Any]] = staticmethod(simple_degree_of)

    k: int = setting(3, "longest path from a root; beyond 8 only sampled", ge=0, le=32, search=[2, 3, 4])
    inner: int = setting(2, "GIN layers inside the rooted sub-graphs", ge=0, le=16)
    layers: int = setting(2, "GIN layers on the graph, over the rooted vectors", ge=0, le=16, search=(1, 4))
    max_paths: int = setting(2000, "paths of a root that are walked in full; more are sampled, as many", ge=1, le=10_000_000)
    sampled: bool = setting(False, "sample the paths of every root; needed for k > 8")
    pool: Literal["sum", "mean", "sum+mean"] = setting("sum+mean", "how a graph is read from its nodes")
    pool_inside: Literal["mean", "sum"] = setting("mean", "how a rooted sub-graph is read from its nodes")
    labels: Literal["log", "plain"] = setting("log", "path counts on the nodes: log(1 + c), or c as it is, which counts exactly")
    totals: bool = setting(False, "the sums of a rooted sub-graph's labels stand beside its vector")
    norm: bool = setting(True, "batch normalisation")
    anneal: bool = setting(False, "the learning rate falls to 0 along half a cosine over all epochs")

    @model_validator(mode="after")
    def _walkable(self) -> Self:
        if self.k > MOST_EXACT and not self.sampled:
            raise ValueError(f"k={self.k}: paths of more than {MOST_EXACT} edges are not walked in full; set sampled=true")
        return self

    @property
    def counting(self) -> Counting:
        return Counting(self.k, self.max_paths, self.sampled, self.labels == "log")

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        return KPathNet(
            inputs, outputs, self.k, self.width, self.inner, self.layers, schema["edge inputs"], self.dropout, self.pool, self.norm,
            self.pool_inside, self.totals,
        )  # fmt: skip

    def schedule(self) -> Callable[[int], float] | None:
        return (lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))) if self.anneal else None

    def prepare(self, graphs: Sequence[Data], schema: Mapping[str, Any]) -> list[Data]:
        return list(rooted_data(super().prepare(graphs, schema), self.counting))

    def view(self, batch: Any, kept: Tensor, weight: Tensor | None = None) -> Any:
        """A prepared batch with some edges alone (see `rooted_view`): what contrastive wrappers ask for."""
        return rooted_view(batch, kept, self.counting, weight)

    def settled(self, train: Part) -> dict[str, Any]:
        return super().settled(train) | {"paths": self.paths_of(train.data)}

    def paths_of(self, graphs: Sequence[Data]) -> dict[str, Any]:
        """Roots, rows and paths a root, and how many roots were sampled."""
        sizes = np.array([int(g.num_nodes or 0) for g in graphs], np.int64)
        ptr = np.cumsum(sizes) - sizes
        edges = [g.edge_index + int(p) for g, p in zip(graphs, ptr, strict=True)]
        _, rooted = self.counting.of(torch.cat(edges, 1) if edges else torch.zeros(2, 0, dtype=torch.int64), sizes)
        roots = max(len(rooted.paths), 1)
        return {
            "roots": len(rooted.paths), "nodes of a rooted sub-graph": len(rooted.node) / roots,
            "paths of a root": float(rooted.paths.sum()) / roots, "most paths of a root": float(rooted.paths.max(initial=0)),
            "sampled roots": int((rooted.exact < self.k).sum()),
        }  # fmt: skip

    def notes_of(self, train: Part) -> list[str]:
        """What a fit says of the paths that it reads."""
        before = time.perf_counter()
        found = self.paths_of(train.data)
        notes = [
            f"paths of up to {self.k} edges: {found['paths of a root']:.1f} a root (at most {found['most paths of a root']:.0f}), "
            f"{found['nodes of a rooted sub-graph']:.1f} nodes a rooted sub-graph, counted in {time.perf_counter() - before:.2f} s"
        ]
        if found["sampled roots"]:
            why = "" if self.sampled else f" with more than {self.max_paths} paths"
            notes.append(f"{found['sampled roots']} of {found['roots']} roots{why} were sampled")
        loops, repeats, lacking = (
            (sum(each) for each in zip(*map(unlike_simple, train.data), strict=True)) if train.data else (0, 0, 0)
        )
        if loops or repeats or lacking:
            notes.append(
                f"edges are read both ways: {lacking} lacked their reverse, {loops} self-loops and {repeats} repeats left out"
            )
        return notes

    def fit(self, train: Part, valid: Part | None, run: Run) -> GraphModel:
        run.notes += self.notes_of(train)
        return super().fit(train, valid, run)
