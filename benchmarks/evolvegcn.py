"""EvolveGCN in milliseconds a snapshot against GCN-GRU of equal width; scoring all pairs of a step; an epoch of training."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
import torch
from timing import taken

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of
from latticework.temporal.snapshot_network import PairHead, SnapshotNetModel, all_pairs, cases_of, false_pairs, logits_of
from latticework.temporal.snapshots import SnapshotPrediction, rank_all

WIDTH = "layers=50,50; head=100"
ENTRIES = {
    "EvolveGCN-O": f"evolvegcn({WIDTH})", "EvolveGCN-H": f"evolvegcn({WIDTH}; variant=H)", "GCN-GRU": f"gcn-gru({WIDTH})",
    "GCN": f"snapshot-gcn({WIDTH})",
}  # fmt: skip


def concatenated(head: PairHead, H: torch.Tensor) -> float:
    """The peer of the split head: each pair's vectors side by side through the whole first map, a source at a time."""
    best = -np.inf
    with torch.no_grad():
        for u in range(len(H)):
            logits = head.second(torch.relu(head.first(torch.cat([H[u].expand(len(H), -1), H], 1))))
            best = max(best, float((logits[:, 1] - logits[:, 0]).max()))
    return best


def run(nodes: int = 1899, width: int = 50, hidden: int = 100) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    torch.manual_seed(0)
    head, H = PairHead(width, hidden, 2), torch.randn(nodes, width)
    out = np.empty((nodes, nodes), np.float32)

    def split() -> None:
        with torch.no_grad():
            source, target = (v.numpy() for v in head.halves(H))
            w = (head.second.weight[1] - head.second.weight[0]).numpy()
        across = np.ascontiguousarray(target.T)
        for a in range(0, nodes, 256):  # in blocks, as the task asks
            all_pairs(source[a : a + 256], across, w, 0.0, out[: len(source[a : a + 256])])

    ours, peer = taken(split, 5), taken(lambda: concatenated(head, H), 1)
    rows.append({
        "name": f"scores of all {nodes}^2 pairs, split head", "ours_s": ours, "peer": "concatenated vectors", "peer_s": peer,
        "ratio": peer / ours, "block_MB": 256 * nodes * 4 / 1e6,
    })  # fmt: skip
    data, task = open_data("college-msg"), SnapshotPrediction(window=190_080.0)
    part = task.fold(data, "by-time-0").train
    forward, epoch, seconds = {}, {}, {}
    for name, text in ENTRIES.items():
        method: Any = entry_of(text)
        schema = method.schema_for(part)
        torch.manual_seed(0)
        model = SnapshotNetModel(method, schema, method.module(schema))
        model.observe(part.data)
        cases = cases_of(model, part.data)
        net, some = model.net, cases[::5]

        def look(net: Any = net, some: Any = some) -> None:
            with torch.no_grad():
                for case in some:
                    net.body(case.history)

        forward[name] = taken(look, 5) / (len(some) * len(some[0].history))
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)

        def train(net: Any = net, cases: Any = cases, optimiser: Any = optimiser) -> None:
            rng = np.random.default_rng(0)
            for case in cases:
                false = false_pairs(case, 50, rng)
                logits = logits_of(net, case.history, np.concatenate([case.rows, false], axis=1))
                y = torch.cat([torch.ones(case.rows.shape[1]), torch.zeros(false.shape[1])]).long()
                optimiser.zero_grad(set_to_none=True)
                torch.nn.functional.cross_entropy(logits, y, torch.tensor([0.1, 0.9])).backward()
                optimiser.step()

        net.train()
        epoch[name] = taken(train, 1)
        net.eval()
        w = int(schema["windows"])
        pairs = cases[-1].rows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        rank_all(model, w, pairs, nodes, schema)
        seconds[name] = (time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    for name in ("EvolveGCN-O", "EvolveGCN-H"):
        rows.append({
            "name": f"{name} against GCN-GRU, forward, a snapshot of the history", "ours_s": forward[name], "peer": "GCN-GRU",
            "peer_s": forward["GCN-GRU"], "ratio": forward["GCN-GRU"] / forward[name], "ms": 1000 * forward[name],
        })  # fmt: skip
        rows.append({
            "name": f"{name} against GCN-GRU, an epoch of 52 steps", "ours_s": epoch[name], "peer": "GCN-GRU",
            "peer_s": epoch["GCN-GRU"], "ratio": epoch["GCN-GRU"] / epoch[name], "over_gcn": epoch[name] / epoch["GCN"],
        })  # fmt: skip
    for name in ("EvolveGCN-O", "EvolveGCN-H"):
        rows.append({
            "name": f"{name}: a window's links ranked among all {nodes}^2 pairs", "ours_s": seconds[name][0],
            "grown_MB": max(seconds[name][1], 0.0),
        })  # fmt: skip
    return rows
