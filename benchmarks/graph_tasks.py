"""Whole graphs: WL colours against a loop with networkx, batches by gathering against PyG's, and what a GIN's step is made of."""

from __future__ import annotations

from collections import Counter
from typing import Any

import networkx as nx
import numpy as np
import torch
from timing import taken
from torch_geometric.data import Batch, Data

from latticework.common.graph_batches import Packed
from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.graphs import wl_kernel
from latticework.graphs.network import loss_of

ITERATIONS = 4


def as_networkx(graph: Data) -> nx.Graph:
    made = nx.Graph()
    made.add_nodes_from((i, {"tag": str(int(t))}) for i, t in enumerate(graph.x.argmax(1)))
    made.add_edges_from(graph.edge_index.T.tolist())
    return made


def wl_rows(graphs: list[Data]) -> list[dict[str, Any]]:
    def ours(some: list[Data]) -> None:
        found, owner = wl_kernel.colours_of(some, ITERATIONS)
        wl_kernel.counts(found, owner, len(some), wl_kernel.vocabulary(found))

    few = graphs[:200]
    held = [as_networkx(g) for g in few]

    def peer() -> list[Counter[str]]:
        said = (nx.weisfeiler_lehman_subgraph_hashes(g, node_attr="tag", iterations=ITERATIONS) for g in held)
        return [Counter(c for colours in each.values() for c in colours) for each in said]

    a, b = taken(lambda: ours(few)), taken(peer, 1)
    rows = [
        {
            "name": f"WL counts, {ITERATIONS} iterations, 200 graphs of PROTEINS", "ours_s": a, "peer": "networkx, a graph at a time",
            "peer_s": b, "ratio": b / a,
        }
    ]  # fmt: skip
    sizes, seconds = [250, 500, len(graphs)], []
    for size in sizes:
        seconds.append(taken(lambda size=size: ours(graphs[:size])))  # type: ignore[misc]
    nodes = [sum(int(g.num_nodes or 0) for g in graphs[:size]) for size in sizes]
    exponent = float(np.polyfit(np.log(nodes), np.log(seconds), 1)[0])
    rows.append({"name": f"WL counts, {nodes[-1]} nodes", "ours_s": seconds[-1], "exponent in nodes": exponent})
    return rows


def gin_rows(part: Any) -> list[dict[str, Any]]:
    method: Any = entry_of("gin")
    schema = method.settled(part)
    graphs = method.prepare(part.data, schema)
    packed = Packed(graphs)
    torch.manual_seed(0)
    cuts = packed.batches(method.batch, torch.Generator().manual_seed(0))
    gathered = taken(lambda: [packed.batch(rows) for rows in cuts])
    collated = taken(lambda: [Batch.from_data_list([graphs[int(r)] for r in rows]) for rows in cuts])
    net = method.module(schema["inputs"], len(schema["classes"]), schema)
    optimiser = method.optimiser(net)
    target = torch.from_numpy(part.truth.y)
    batches = [packed.batch(rows) for rows in cuts]

    def epoch() -> None:
        for rows, batch in zip(cuts, batches, strict=True):
            optimiser.zero_grad(set_to_none=True)
            loss_of(net(batch), target[rows]).backward()
            optimiser.step()

    trained = taken(epoch, 2)
    return [
        {
            "name": f"batches of {method.batch} graphs, an epoch of PROTEINS", "ours_s": gathered, "peer": "PyG's from_data_list",
            "peer_s": collated, "ratio": collated / gathered,
        },
        {
            "name": "GIN, an epoch of PROTEINS without its batches", "ours_s": trained, "a step, ms": 1000 * trained / len(cuts),
            "batches, share of the epoch": gathered / (gathered + trained),
        },
    ]  # fmt: skip


def run() -> list[dict[str, Any]]:
    data = open_data("tu-proteins")
    task = task_of("graph-classification").for_data(data)
    part = task.fold(data, "folds-0").train
    return [*wl_rows(part.data), *gin_rows(part)]
