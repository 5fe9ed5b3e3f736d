"""What common neighbours cost: steps of NCN and NCNC, scoring in chunks, and queries per second against a subgraph per link.

The peer of the last rows extracts the one-hop subgraph of every pair, labels its nodes by their distances to the two (DRNL) and
runs a three-layer GCN of width 32 with mean pooling on a batch of them, as SEAL does. All rows run in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from latticework.core.dataset import open_data
from latticework.core.run import peak_bytes, reset_peak
from latticework.core.task import Part
from latticework.data.graph import Graph, finish, schema_of, undirected_pairs
from latticework.links.neural_common_neighbor.method import NCN, LinkNet, NCNModel, pattern_of
from latticework.links.tasks import LinkPairs, non_links

SUBGRAPHS = 512  # pairs that the peer scores


def part_of(graph: Graph, pairs: np.ndarray) -> Part:
    return Part(graph.tensors(), LinkPairs(pairs, graph.ids), None, schema_of(graph))


def median(call: Callable[[], Any], rounds: int) -> float:
    taken = []
    for r in range(rounds + 1):  # the first round warms up
        before = time.perf_counter()
        call()
        if r:
            taken.append(time.perf_counter() - before)
    return float(np.median(taken))


def steps(rounds: int) -> list[dict[str, Any]]:
    """One training step of the autoencoder, NCN and NCNC on Cora's training links, official settings."""
    graph = open_data("planetoid-cora").read()
    links = undirected_pairs(graph)
    rng = np.random.default_rng(0)
    links = links[:, rng.permutation(links.shape[1])[: int(0.7 * links.shape[1])]]
    train = finish(Graph(links, graph.ids, x=graph.x, features=graph.features), False)
    part = part_of(train, links)
    A, batch = pattern_of(part.data), NCN().batch
    positives, negatives = links[:, :batch], non_links(A, batch, rng)
    seconds = {}
    for name, method in (("gae", NCN(common="none")), ("ncn", NCN()), ("ncnc", NCN(depth=1))):
        torch.manual_seed(0)
        net = LinkNet(method, part.schema).train()
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        x = method.features(part, "cpu")

        def step(method: NCN = method, net: LinkNet = net, optimiser: Any = optimiser, x: Any = x) -> None:
            optimiser.zero_grad(set_to_none=True)
            method.loss(net, A, positives, negatives, part, x, "cpu").backward()
            optimiser.step()

        seconds[name] = median(step, rounds)
    return [
        {
            "name": "NCN step against GAE step, Cora, batch 1152", "ours_s": seconds["ncn"], "peer": "GAE, the same encoder",
            "peer_s": seconds["gae"], "ratio": seconds["gae"] / seconds["ncn"],
        },
        {
            "name": "NCNC step against NCN step, Cora, batch 1152", "ours_s": seconds["ncnc"], "peer": "NCN",
            "peer_s": seconds["ncn"], "ratio": seconds["ncn"] / seconds["ncnc"],
        },
    ]  # fmt: skip


def fresh(graph: Graph, **fields: Any) -> NCNModel:
    """An untrained model: what it says is nothing, what it costs is all."""
    torch.manual_seed(0)
    method = NCN(**fields)
    return NCNModel(method, schema_of(graph), LinkNet(method, schema_of(graph)))


def many(pairs: int) -> list[dict[str, Any]]:
    """Random pairs of Router in chunks."""
    graph = open_data("seal-links:router").read()
    n = graph.nodes
    rng = np.random.default_rng(0)
    asked = rng.integers(0, n, (2, pairs))
    asked[1] = np.where(asked[0] == asked[1], (asked[1] + 1) % n, asked[1])
    rows = []
    for name, fields in (("NCN", {}), ("NCNC", {"depth": 1})):
        model, part = fresh(graph, **fields), part_of(graph, asked)
        reset_peak()
        start = peak_bytes()
        before = time.perf_counter()
        model.predict(part)
        seconds = time.perf_counter() - before
        rows.append(
            {
                "name": f"{name}, {pairs} pairs of Router in chunks", "ours_s": seconds, "pairs_per_s": pairs / seconds,
                "peak_bytes": peak_bytes(), "before_bytes": start,
            }
        )  # fmt: skip
    return rows


# -- one subgraph per link -----------------------------------------------------------------------------------------------
def subgraph(A: sp.csr_array, i: int, j: int) -> tuple[sp.csr_array, np.ndarray]:
    """The one-hop enclosing subgraph of a pair, and the DRNL label of each node; the pair's own link is left out."""
    nodes = np.unique(np.concatenate([A.indices[A.indptr[i] : A.indptr[i + 1]], A.indices[A.indptr[j] : A.indptr[j + 1]]]))
    nodes = np.concatenate([[i, j], nodes[(nodes != i) & (nodes != j)]])
    edges = sp.coo_array(A[nodes][:, nodes])
    kept = np.maximum(edges.row, edges.col) > 1  # all but the pair's own link: it is what is asked
    own = sp.csr_array((edges.data[kept], (edges.row[kept], edges.col[kept])), shape=edges.shape)
    distances = []
    for end, other in ((0, 1), (1, 0)):
        keep = np.delete(np.arange(len(nodes)), other)
        found = sp.csgraph.shortest_path(own[keep][:, keep], unweighted=True, indices=end if end < other else 0)
        distances.append(np.insert(found, other, np.inf))
    a, b = distances
    total = np.where(np.isfinite(a + b), a + b, 0).astype(np.int64)
    half = total // 2
    label = 1 + np.minimum(np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)) + half * (half + total % 2 - 1)
    label = np.where(np.isfinite(a + b), label, 0).astype(np.int64)
    label[:2] = 1
    return own, np.minimum(label, 99)


class SubgraphNet(nn.Module):
    """Three convolutions on labels, mean pooling, a small head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.label = nn.Embedding(100, width)
        self.layers = nn.ModuleList(GCNConv(width, width) for _ in range(3))
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, batch: Any) -> torch.Tensor:
        from torch_geometric.nn import global_mean_pool

        h = self.label(batch.z)
        for layer in self.layers:
            h = torch.relu(layer(h, batch.edge_index))
        return self.head(global_mean_pool(h, batch.batch)).squeeze(-1)


def one_by_one(A: sp.csr_array, pairs: np.ndarray, net: SubgraphNet, size: int = 32) -> None:
    from torch_geometric.data import Batch, Data

    with torch.no_grad():
        for start in range(0, pairs.shape[1], size):
            items = []
            for i, j in pairs[:, start : start + size].T:
                own, label = subgraph(A, int(i), int(j))
                edges = own.tocoo()
                index = torch.from_numpy(np.stack([edges.row, edges.col]).astype(np.int64))
                items.append(Data(z=torch.from_numpy(label), edge_index=index, num_nodes=len(label)))
            net(Batch.from_data_list(items))


def queries(graph: Graph, name: str, pairs: int) -> list[dict[str, Any]]:
    """Pairs per second, half links and half not, of NCN and NCNC against a dot decoder and a subgraph per link."""
    rng = np.random.default_rng(0)
    data = graph.tensors()
    A = pattern_of(data)
    links = undirected_pairs(graph)
    links = links[:, rng.permutation(links.shape[1])[: pairs // 2]]
    asked = np.concatenate([links, non_links(A, pairs - links.shape[1], rng)], axis=1)
    asked = asked[:, rng.permutation(asked.shape[1])]
    net = SubgraphNet().eval()
    few = asked[:, :SUBGRAPHS]
    seal = median(lambda: one_by_one(A, few, net), 1) / few.shape[1]
    rows = []
    for label, fields, share in (("NCN", {}, 1), ("NCNC", {"depth": 1}, 8)):
        model = fresh(graph, **fields)
        part = part_of(graph, asked[:, : pairs // share])
        before = time.perf_counter()
        _, vectors = model.vectors(part)  # one pass of the encoder for all pairs
        encoding = time.perf_counter() - before
        each = median(lambda model=model, part=part: model.predict(part), 1) / part.query.pairs.shape[1]
        rows.append(
            {
                "name": f"{label} per pair against one subgraph per link, {name}", "ours_s": each, "peer": "SEAL-like, one hop",
                "peer_s": seal, "ratio": seal / each, "pairs_per_s": 1 / each, "encoding_s": encoding,
            }
        )  # fmt: skip
        if label == "NCN":
            h = vectors.h
            i, j = torch.from_numpy(asked)
            dot = median(lambda h=h, i=i, j=j: (h[i] * h[j]).sum(1), 1) / pairs
            rows.append(
                {
                    "name": f"NCN per pair against a dot decoder, {name}", "ours_s": each, "peer": "dot product of the same vectors",
                    "peer_s": dot, "ratio": dot / each, "pairs_per_s": 1 / dot,
                }
            )  # fmt: skip
    return rows


def uneven(nodes: int, edges: int) -> Graph:
    """A random graph with a heavy tail of degrees: both ends are drawn by weights of a Pareto law."""
    rng = np.random.default_rng(0)
    weight = rng.pareto(2.0, nodes) + 1
    ends = rng.choice(nodes, (2, edges), p=weight / weight.sum())
    return finish(Graph(ends[:, ends[0] != ends[1]], tuple(map(str, range(nodes)))), False)


def run(rounds: int = 15, pairs: int = 1_000_000) -> list[dict[str, Any]]:
    rows = many(pairs)  # first: its peak is the whole process's
    rows += steps(rounds)
    rows += queries(open_data("seal-links:usair").read(), "USAir", 4096)
    return rows + queries(uneven(100_000, 1_000_000), "100,000 nodes and 1 M edges", 40_960)


if __name__ == "__main__":
    for row in run():
        print(row)
