"""Graph sets drawn by a seed, with a number at each node: the second smallest of the neighbours' values, and the tasks of PNA.

A task may draw more graphs by the same recipe, also larger ones (`DrawnGraphs.draw`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .graphs import GraphSet, GraphSetData

if TYPE_CHECKING:
    import networkx as nx

Array = np.ndarray[Any, Any]


class DrawnGraphs(GraphSetData):
    """Graphs drawn by a seed; the numbers of nodes lie evenly between `size_range` of the recipe."""

    graphs: int = setting(400, "how many graphs", ge=1, le=1_000_000)
    seed: int = setting(0, "of the draw", ge=0)

    def size_range(self) -> tuple[int, int]:
        """Fewest and most nodes of a graph."""
        raise NotImplementedError

    def test_sizes(self) -> tuple[int, ...]:
        """Numbers of nodes that a task tests at where nothing else is said: the recipe's own, and larger ones."""
        raise NotImplementedError

    def draw(self, sizes: Array, rng: np.random.Generator) -> GraphSet:
        """Fresh graphs with `sizes` int64 [G] nodes."""
        raise NotImplementedError

    def sizes(self, count: int, rng: np.random.Generator) -> Array:
        low, high = self.size_range()
        return rng.integers(low, high + 1, count)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> GraphSet:
        return _drawn(self)


@lru_cache(maxsize=4)
def _drawn(of: DrawnGraphs) -> GraphSet:
    rng = np.random.default_rng([of.seed, 0x6472])
    return of.draw(of.sizes(of.graphs, rng), rng)


def _joined(pairs: list[Array], sizes: Array) -> Array:
    """Pairs [2, k] of each graph, one direction each and numbered within it, as edges of the set in both directions."""
    starts = np.cumsum(sizes) - sizes
    both = [np.concatenate([p, p[::-1]], 1) + s for p, s in zip(pairs, starts.tolist(), strict=True)]
    return np.concatenate(both, 1).astype(np.int64) if both else np.zeros((2, 0), np.int64)


class NeighbourSecondMinimum(DrawnGraphs):
    """Erdős–Rényi graphs, a value from U(0, 1) at each node; the target of a node is the second smallest value among its neighbours.

    1 where it has fewer than two neighbours.
    """

    name: ClassVar[str] = "neighbour-second-minimum"
    nodes: int = setting(64, "nodes of a graph", ge=1, le=100_000)
    p: float = setting(0.15, "chance that two nodes are joined", ge=0, le=1)

    def size_range(self) -> tuple[int, int]:
        return self.nodes, self.nodes

    def test_sizes(self) -> tuple[int, ...]:
        return self.nodes, 4 * self.nodes

    def draw(self, sizes: Array, rng: np.random.Generator) -> GraphSet:
        pairs = []
        for n in sizes.tolist():
            u, v = np.triu_indices(n, 1)
            kept = rng.random(len(u)) < self.p
            pairs.append(np.stack([u[kept], v[kept]]))
        edges = _joined(pairs, sizes)
        x = rng.random(int(sizes.sum()), np.float32)
        return GraphSet(
            tuple(map(str, range(len(sizes)))), sizes.astype(np.int64), edges, x[:, None], ("value",),
            node_targets=second_smallest(x[edges[0]], edges[1], len(x)),
        )  # fmt: skip


def second_smallest(values: Array, index: Array, n: int) -> Array:
    """float32 [n]: the second smallest of the values of each index; 1 where there are fewer than two."""
    order = np.lexsort((values, index))
    counts = np.bincount(index, minlength=n)
    found = np.ones(n, np.float32)
    many = counts > 1
    found[many] = values[order][(np.cumsum(counts) - counts)[many] + 1]
    return found


Family = Literal["erdos-renyi", "barabasi-albert", "grid", "caveman", "tree", "ladder", "line", "star", "caterpillar", "lobster"]
FAMILIES: tuple[tuple[Family, float], ...] = (
    ("erdos-renyi", 0.2), ("barabasi-albert", 0.2), ("grid", 0.05), ("caveman", 0.05), ("tree", 0.15), ("ladder", 0.05),
    ("line", 0.05), ("star", 0.05), ("caterpillar", 0.1), ("lobster", 0.1),
)  # fmt: skip
TOGGLED = 0.1  # share of the joined pairs that lose their edge; as many others are joined on average


class PnaMultitask(DrawnGraphs):
    """The multi-task benchmark of principal neighbourhood aggregation, made anew from its description (Corso et al. 2020, appendix).

    Ten families of graphs (`FAMILIES`), a tenth of the edges of each moved at random. Features: a value from U(0, 1), and whether the
    node is the source. Targets of a node (the field `node_target` says which): its *eccentricity*, its distance from the source
    (*sssp*), or its row of ``L x`` with the Laplacian L = D - A and the values x (*laplacian*). Targets of a graph: whether it is
    *connected* (0 or 1), its *diameter*, and the *spectral radius* of A. Distances are hops, and where a graph is not connected
    those within a component count; the distance of a node that the source does not reach is unknown.
    """

    name: ClassVar[str] = "pna-multitask"
    smallest: int = setting(15, "nodes of a graph, at least", ge=4, le=1000)
    largest: int = setting(24, "nodes of a graph, at most", ge=4, le=1000)
    node_target: Literal["eccentricity", "sssp", "laplacian"] = setting("eccentricity", "what is asked of a node")

    def size_range(self) -> tuple[int, int]:
        if self.smallest > self.largest:
            raise UserError(f"pna-multitask: smallest={self.smallest} is above largest={self.largest}")
        return self.smallest, self.largest

    def test_sizes(self) -> tuple[int, ...]:
        return (self.smallest + self.largest) // 2, 2 * self.largest

    def draw(self, sizes: Array, rng: np.random.Generator) -> GraphSet:
        names, chances = zip(*FAMILIES, strict=True)
        families = rng.choice(len(names), len(sizes), p=np.array(chances) / sum(chances))
        pairs, x, of_nodes, of_graphs = [], [], [], []
        for n, family in zip(sizes.tolist(), families.tolist(), strict=True):
            joined = toggled(adjacency(names[family], n, rng), rng)
            value, source = rng.random(n), int(rng.integers(n))
            pairs.append(np.stack(np.nonzero(np.triu(joined))))
            x.append(np.stack([value, np.arange(n) == source], 1))
            nodes, whole = targets_of(joined, value, source)
            of_nodes.append(nodes[self.node_target])
            of_graphs.append(whole)
        return GraphSet(
            tuple(map(str, range(len(sizes)))), sizes.astype(np.int64), _joined(pairs, sizes),
            np.concatenate(x).astype(np.float32), ("value", "source"), targets=np.array(of_graphs, np.float64),
            target_names=("connected", "diameter", "spectral radius"),
            node_targets=np.concatenate(of_nodes).astype(np.float32),
        )  # fmt: skip


def adjacency(family: str, n: int, rng: np.random.Generator) -> Array:
    """bool [n, n], symmetric without a diagonal: a graph of a family with exactly n nodes."""
    import networkx as nx

    seed = int(rng.integers(2**31))
    if family == "erdos-renyi":
        graph = nx.gnp_random_graph(n, float(rng.random()), seed=seed)
    elif family == "barabasi-albert":
        graph = nx.barabasi_albert_graph(n, int(rng.integers(1, n)), seed=seed)
    elif family == "grid":
        high = next(k for k in range(int(np.sqrt(n)), 0, -1) if n % k == 0)
        graph = nx.grid_2d_graph(high, n // high)
    elif family == "caveman":
        size = next(k for k in range(int(np.sqrt(n)), 0, -1) if n % k == 0)
        graph = nx.caveman_graph(n // size, size) if size > 1 else nx.complete_graph(n)
    elif family == "tree":
        graph = nx.random_labeled_tree(n, seed=seed)
    elif family == "ladder":
        graph = nx.ladder_graph(n // 2)
    elif family == "line":
        graph = nx.path_graph(n)
    elif family == "star":
        graph = nx.star_graph(n - 1)
    else:
        graph = _legged(n, 2 if family == "lobster" else 1, rng)
    joined = np.zeros((n, n), bool)
    found = nx.to_numpy_array(graph, dtype=bool)
    joined[: len(found), : len(found)] = found
    if len(found) < n:  # a ladder over an odd number of nodes
        joined[n - 1, n - 2] = True
    joined |= joined.T
    np.fill_diagonal(joined, False)
    return joined


def _legged(n: int, depth: int, rng: np.random.Generator) -> nx.Graph:
    """A path of random length whose nodes get legs, and at depth 2 the legs' ends get legs of their own."""
    import networkx as nx

    spine = int(rng.integers(1, n))
    graph = nx.path_graph(spine)
    legs = n - spine if depth == 1 else int(rng.integers(1, n - spine + 1))
    for leg in range(spine, n):
        on = int(rng.integers(spine)) if leg < spine + legs else int(rng.integers(spine, spine + legs))
        graph.add_edge(leg, on)
    return graph


def toggled(joined: Array, rng: np.random.Generator) -> Array:
    """A share `TOGGLED` of the edges taken away, and as many pairs joined on average: the mean degree stays."""
    n = len(joined)
    u, v = np.triu_indices(n, 1)
    edge = joined[u, v]
    edges, others = int(edge.sum()), int((~edge).sum())
    add = TOGGLED * edges / others if others else 0.0
    draw = rng.random(len(u))
    new = np.where(edge, draw >= TOGGLED, draw < add)
    found = np.zeros_like(joined)
    found[u[new], v[new]] = True
    return found | found.T


def targets_of(joined: Array, value: Array, source: int) -> tuple[dict[str, Array], tuple[float, float, float]]:
    """The targets of nodes, by name, and those of the graph: connected, diameter, spectral radius."""
    from scipy.sparse.csgraph import shortest_path

    hops = shortest_path(joined.astype(float), unweighted=True, directed=False)
    reached = np.where(np.isfinite(hops), hops, 0.0)
    eccentricity = reached.max(1)
    from_source = np.where(np.isfinite(hops[source]), hops[source], np.nan)
    laplacian = joined.sum(1) * value - joined @ value
    radius = float(np.abs(np.linalg.eigvalsh(joined.astype(float))).max())
    nodes = {"eccentricity": eccentricity, "sssp": from_source, "laplacian": laplacian}
    return nodes, (float(np.isfinite(hops).all()), float(eccentricity.max()), radius)
