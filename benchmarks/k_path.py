"""Rooted sub-graphs and path counts in graphs a second against networkx, their growth with k, and a training step against GIN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from graph_steps import against_gin, step_costs
from timing import taken

from latticework.core.dataset import open_data
from latticework.layers.paths import motif_totals, rooted_paths, simple_graph


def by_networkx(graphs: Sequence[nx.Graph], k: int) -> list[dict[tuple[int, int, int], int]]:
    """What a user would write: ego networks cut to size, and the simple paths walked from every node."""
    found = []
    for graph in graphs:
        counts: dict[tuple[int, int, int], int] = {}
        for v in graph:
            far = nx.single_source_shortest_path_length(graph, v, cutoff=k)
            ego = graph.subgraph(far).copy()
            ego.remove_edges_from([e for e in ego.edges() if far[e[0]] == far[e[1]] == k])
            for path in nx.all_simple_paths(ego, v, [u for u in ego if u != v], cutoff=k):
                key = (v, path[-1], len(path) - 1)
                counts[key] = counts.get(key, 0) + 1
        found.append(counts)
    return found


def run() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    data: Any = open_data("tu-proteins")
    whole = data.read()
    simple = simple_graph(whole.edge_index, whole.nodes)
    sample = [int(g) for g in np.random.default_rng(0).choice(len(whole), 24, replace=False)]
    some = whole.take(np.array(sample))
    graphs = []
    for g, item in enumerate(some.graphs()):
        graph = nx.Graph()
        graph.add_nodes_from(range(int(some.sizes[g])))
        graph.add_edges_from(item.edge_index.T.tolist())
        graphs.append(graph)
    part = simple_graph(some.edge_index, some.nodes)
    for k in (2, 3):
        ours = taken(lambda k=k: rooted_paths(part, k, max_paths=10**12)) / len(graphs)
        theirs = taken(lambda k=k: by_networkx(graphs, k), 1) / len(graphs)
        rows.append({
            "name": f"rooted sub-graphs and paths of PROTEINS, k = {k}, a graph", "ours_s": ours, "peer": "networkx", "peer_s": theirs,
            "ratio": theirs / ours, "graphs_per_s": 1 / ours,
        })  # fmt: skip
    before = None
    for k in (1, 2, 3, 4, 5):
        seconds = taken(lambda k=k: rooted_paths(simple, k))
        found = rooted_paths(simple, k)
        rows.append({
            "name": f"growth with k: all of PROTEINS, k = {k}", "ours_s": seconds, "times_before": None if before is None else seconds / before,
            "rows_per_root": len(found.node) / whole.nodes, "paths_per_root": float(found.paths.mean()),
        })  # fmt: skip
        before = seconds
    club = nx.karate_club_graph()
    karate = simple_graph(np.array(list(club.edges())).T, 34)
    ours = taken(lambda: motif_totals(karate, 0, 6))
    theirs = taken(lambda: sum(1 for _ in nx.simple_cycles(club, length_bound=6)), 1)
    rows.append({
        "name": "cycles of up to 6 nodes in the karate club", "ours_s": ours, "peer": "networkx simple_cycles", "peer_s": theirs,
        "ratio": theirs / ours,
    })  # fmt: skip
    costs = step_costs("tu-proteins", {"k-path": "k-path", "contrast": "contrast", "gin": "gin"})
    return rows + [against_gin(f"a training step on PROTEINS, {name} at k = 3", costs, name) for name in ("k-path", "contrast")]
