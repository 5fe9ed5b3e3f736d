"""An epoch of LATTE-2 against PyG's HANConv on the same pairs, and the peak memory of each in a process of its own, on DBLP.

HANConv reads the chains that LATTE composes from the author: author-paper-author as it is, and for the chains that end at conferences
and terms the bipartite pairs; a convolution gets them as relations of types with features of the same width.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.core.run import peak_bytes, reset_peak

WIDTH = 64


def setting() -> tuple[Any, Any, Any]:
    data = open_data("hetero-heco:dblp")
    task = task_of("hetero-node-classification").but(split="random").for_data(data)
    part = task.fold(data, "random-0").train
    method = entry_of(f"latte(width={WIDTH}; heads=2)")
    return part, method, method.inputs(part, "cpu")


def latte(part: Any, method: Any, inputs: Any) -> Any:
    torch.manual_seed(0)
    net = method.module(0, len(part.schema["classes"]), part.schema).train()
    return net, lambda: net(*inputs)[torch.from_numpy(part.query.rows)]


def han(part: Any, method: Any, inputs: Any) -> Any:
    """The same maps of features and the same pairs, layer by layer, with HANConv in the place of LATTE's layers."""
    from torch_geometric.nn import HANConv

    torch.manual_seed(0)
    source, _ = latte(part, method, inputs)
    layers, features = [], inputs[0]
    for layer in source.layers:
        triples = {
            (tail, f"m{m}", head): torch.stack([inputs[1][m].column, inputs[1][m].row]) for m, (head, tail) in layer.ends.items()
        }
        kinds = list(dict.fromkeys(kind for a, _, b in triples for kind in (a, b)))
        layers.append((HANConv(WIDTH, WIDTH, (kinds, list(triples)), heads=2, dropout=0.2), triples, kinds))
    net = torch.nn.ModuleList([source.inputs, source.classifier, *(conv for conv, _, _ in layers)]).train()

    def forward() -> Any:
        h, outs = source.start(features), []
        for conv, triples, kinds in layers:
            found = conv({kind: h[kind] for kind in kinds}, triples)
            h = {kind: F.dropout(v, 0.2) for kind, v in found.items() if v is not None}
            outs.append(h[source.target])
        return source.classifier(torch.cat(outs, 1))[torch.from_numpy(part.query.rows)]

    return net, forward


def epoch(net: Any, forward: Any, y: Any) -> float:
    before = time.perf_counter()
    net.zero_grad(set_to_none=True)
    F.cross_entropy(forward(), y).backward()
    return time.perf_counter() - before


def _memory(side: str, answer: Any) -> None:
    part, method, inputs = setting()
    net, forward = SIDES[side](part, method, inputs)
    y = torch.from_numpy(part.truth.y)
    reset_peak()
    before = peak_bytes()
    for _ in range(3):
        epoch(net, forward, y)
    answer.put(peak_bytes() - before)


SIDES = {"latte": latte, "han": han}


def memory(side: str) -> int:
    """Bytes that three epochs add to what the data take, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_memory, args=(side, answer))
    process.start()
    found = int(answer.get())
    process.join()
    return found


def run(rounds: int = 15) -> list[dict[str, Any]]:
    part, method, inputs = setting()
    made = {name: make(part, method, inputs) for name, make in SIDES.items()}
    y = torch.from_numpy(part.truth.y)
    taken: dict[str, list[float]] = {name: [] for name in made}
    for r in range(rounds + 2):
        for name, (net, forward) in made.items():
            seconds = epoch(net, forward, y)
            if r >= 2:
                taken[name].append(seconds)
    ours, peer = (float(np.median(taken[name])) for name in SIDES)
    counts = {name: sum(p.numel() for p in net.parameters()) for name, (net, _) in made.items()}
    bytes_of = {name: memory(name) for name in SIDES}
    return [
        {
            "name": "LATTE-2 against HANConv, DBLP, an epoch", "ours_s": ours, "peer": "PyG's HANConv on the same pairs",
            "peer_s": peer, "ratio": peer / ours, "parameters": counts["latte"], "peer's parameters": counts["han"],
        },
        {
            "name": "LATTE-2 against HANConv, DBLP, peak memory of an epoch", "ours_bytes": bytes_of["latte"],
            "peer": "PyG's HANConv on the same pairs", "peer_bytes": bytes_of["han"], "ratio": bytes_of["han"] / bytes_of["latte"],
        },
    ]  # fmt: skip


if __name__ == "__main__":
    for row in run():
        print(row)
