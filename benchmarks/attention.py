"""Attention over neighbours, forward and backward, against PyG's layers that it stands in for, on the same graphs and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timing import ROUNDS, medians
from torch import Tensor, nn
from torch_geometric.nn import GATConv, HANConv

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.nodes.baselines import GATLayer
from latticework.nodes.han_layer import HANLayer

HEADS, WIDTH = 8, 64


def step(net: nn.Module, call: Callable[[], Tensor], by: Tensor) -> Callable[[], object]:
    def one() -> None:
        net.zero_grad(set_to_none=True)
        call().backward(by)

    return one


def gat(name: str, rounds: int) -> dict[str, Any]:
    data = open_data(name)
    part = task_of("node-classification").for_data(data).fold(data, "given-0").train
    method: Any = entry_of("gat")
    _, edges = method.inputs(part, "cpu")
    torch.manual_seed(0)
    layer = GATLayer(WIDTH, WIDTH, HEADS, 0.6).train()
    peer = GATConv(WIDTH, WIDTH // HEADS, heads=HEADS, dropout=0.6, add_self_loops=False).train()
    x, index = torch.randn(edges.shape[0], WIDTH), torch.stack([edges.column, edges.row])
    by = torch.randn_like(x)
    found = medians({"ours": step(layer, lambda: layer(x, edges), by), "peer": step(peer, lambda: peer(x, index), by)}, rounds)
    return row(f"GAT layer, {name}, {len(edges):,} edges", "PyG's GATConv", found)


def han(rounds: int) -> dict[str, Any]:
    data = open_data("hetero-heco:acm")
    part = task_of("hetero-node-classification").for_data(data).fold(data, "20").train
    method: Any = entry_of("han(paths=paper-author-paper,paper-subject-paper)")
    _, edges = method.inputs(part, "cpu")
    kinds = list(edges)
    torch.manual_seed(0)
    layer, peer = (kind(WIDTH, WIDTH, (["paper"], kinds), heads=HEADS, dropout=0.6).train() for kind in (HANLayer, HANConv))
    x = torch.randn(edges[kinds[0]].shape[0], WIDTH)
    index = {kind: torch.stack([e.column, e.row]) for kind, e in edges.items()}
    by = torch.randn_like(x)
    rivals = {
        "ours": step(layer, lambda: layer({"paper": x}, edges)["paper"], by),
        "peer": step(peer, lambda: peer({"paper": x}, index)["paper"], by),
    }
    return row(f"HAN layer, ACM, {sum(map(len, edges.values())):,} pairs", "PyG's HANConv", medians(rivals, rounds))


def row(name: str, peer: str, found: dict[str, float]) -> dict[str, Any]:
    return {"name": name, "ours_s": found["ours"], "peer": peer, "peer_s": found["peer"], "ratio": found["peer"] / found["ours"]}


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    return [gat("heterophilous:squirrel", rounds), gat("heterophilous:tolokers", 1), han(1)]
