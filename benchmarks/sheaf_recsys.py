"""Sheaf diffusion against LightGCN and NGCF on MovieLens 100K: forward and backward of the network, and a whole epoch.

All have three layers of 64 and the same batches; steps of the rivals take turns in one process. LightGCN stands twice: on the
library's symmetric product, and as PyG gives it (`torch_geometric.nn.models.LightGCN` on an edge index).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timing import medians
from torch_geometric.nn.models import LightGCN as PyGLightGCN

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.links.recommendation_baselines import Pairs, PairSampler, bpr_loss

LAYERS, WIDTH, BATCH = 3, 64, 1024


def run(rounds: int = 15, epochs: int = 3) -> list[dict[str, Any]]:
    data = open_data("ml-100k")
    task = task_of("recommendation").for_data(data)
    pairs = Pairs.of(task.fold(data, "random-0").train.data)
    torch.manual_seed(0)
    nets: dict[str, Any] = {
        name: entry_of(f"{name}(layers={LAYERS}; width={WIDTH})").module(pairs).train()  # type: ignore[attr-defined]
        for name in ("sheaf", "lightgcn", "ngcf")
    }
    outputs: dict[str, Callable[[], torch.Tensor]] = dict(nets)
    peer = PyGLightGCN(pairs.users + pairs.items, WIDTH, LAYERS)
    edges = torch.cat([pairs.edges(), pairs.edges().flip(0)], 1)
    nets["PyG's LightGCN"], outputs["PyG's LightGCN"] = peer, lambda: peer.get_embedding(edges)

    def both(name: str) -> None:
        nets[name].zero_grad(set_to_none=True)
        outputs[name]().sum().backward()

    optimisers = {name: torch.optim.Adam(net.parameters(), lr=1e-3) for name, net in nets.items()}
    sampler, generator = PairSampler(pairs), torch.Generator().manual_seed(0)

    def epoch(name: str) -> None:
        for _ in range(len(pairs.user) // BATCH):
            user, positive, negative = sampler.draw(BATCH, generator)
            optimisers[name].zero_grad(set_to_none=True)
            out = outputs[name]()
            u, p, q = out[user], out[positive + pairs.users], out[negative + pairs.users]
            bpr_loss((u * p).sum(1), (u * q).sum(1)).backward()
            optimisers[name].step()

    once_through = medians({name: lambda name=name: both(name) for name in nets}, rounds)  # type: ignore[misc]
    rivals = ("sheaf", "lightgcn", "ngcf")  # an epoch of PyG's takes half a minute
    whole = medians({name: lambda name=name: epoch(name) for name in rivals}, epochs)  # type: ignore[misc]
    where = f"{LAYERS} layers, ml-100k"
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    rows = []
    for peer_name, words in (("lightgcn", "LightGCN"), ("ngcf", "NGCF"), ("PyG's LightGCN", "PyG's LightGCN")):
        for found, what in ((once_through, "forward and backward"), (whole, "epoch")):
            if peer_name not in found:
                continue
            rows.append(
                {
                    "name": f"sheaf {what} against {words}, {where}", "ours_s": found["sheaf"], "peer": words,
                    "peer_s": found[peer_name], "ratio": found[peer_name] / found["sheaf"],
                    "parameters over the peer's": counts["sheaf"] - counts[peer_name],
                }
            )  # fmt: skip
    return rows
