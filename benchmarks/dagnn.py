"""Forward and backward of DAGNN with ten hops against APPNP with ten, same width, same kernel, on Cora's graph."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of


def epoch(net: nn.Module, inputs: tuple[Any, ...]) -> float:
    before = time.perf_counter()
    net.zero_grad(set_to_none=True)
    net(*inputs).sum().backward()
    return time.perf_counter() - before


def run(rounds: int = 30) -> list[dict[str, Any]]:
    data = open_data("planetoid-cora")
    task = task_of("node-classification").for_data(data)
    part = task.fold(data, "fixed").train
    nets, inputs = {}, {}
    for name in ("dagnn", "appnp"):
        method: Any = entry_of(name)
        torch.manual_seed(0)
        nets[name] = method.module(len(part.schema["features"]), len(part.schema["classes"]), part.schema).train()
        inputs[name] = method.inputs(part, "cpu")
    taken: dict[str, list[float]] = {name: [] for name in nets}
    for r in range(rounds + 3):
        for name, net in nets.items():
            seconds = epoch(net, inputs[name])
            if r >= 3:
                taken[name].append(seconds)
    ours, peer = (float(np.median(taken[n])) for n in ("dagnn", "appnp"))
    counts = {n: sum(p.numel() for p in net.parameters()) for n, net in nets.items()}
    return [
        {
            "name": "DAGNN against APPNP, 10 hops, Cora, forward and backward", "ours_s": ours, "peer": "APPNP", "peer_s": peer,
            "ratio": peer / ours, "parameters over APPNP's": counts["dagnn"] - counts["appnp"],
        }
    ]  # fmt: skip
