"""An epoch of ADPA on its cached features against a two-layer GAT on film; AMUD on squirrel in seconds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.layers.directed import adjacency
from latticework.nodes.adpa import amud


def run(rounds: int = 5) -> list[dict[str, Any]]:
    data = open_data("geom-gcn:film")
    task = task_of("node-classification").for_data(data)
    part = task.fold(data, "given-0").train
    part = part._replace(schema={**part.schema, "direction": "directed"})
    nets, inputs = {}, {}
    for name in ("adpa", "gat"):
        method: Any = entry_of(name)
        torch.manual_seed(0)
        nets[name] = method.module(len(part.schema["features"]), len(part.schema["classes"]), part.schema).train()
        inputs[name] = method.inputs(part, "cpu")
    taken: dict[str, list[float]] = {name: [] for name in nets}
    rows, target = torch.from_numpy(part.query.rows), torch.from_numpy(part.truth.y)
    for r in range(rounds + 1):
        for name, net in nets.items():
            before = time.perf_counter()
            net.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(net(*inputs[name])[rows], target).backward()
            if r:
                taken[name].append(time.perf_counter() - before)
    ours, peer = (float(np.median(taken[n])) for n in ("adpa", "gat"))
    graph = open_data("geom-gcn:squirrel").read()
    before = time.perf_counter()
    amud(adjacency(graph.edge_index, graph.nodes), graph.y)
    probing = time.perf_counter() - before
    return [
        {
            "name": "ADPA epoch against GAT, film",
            "ours_s": ours,
            "peer": "GAT, two layers, 8 heads of 8",
            "peer_s": peer,
            "ratio": peer / ours,
        },
        {"name": "AMUD, squirrel", "ours_s": probing},
    ]
