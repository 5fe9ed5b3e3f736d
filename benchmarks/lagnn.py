"""A step of LA-GCN against one of GCN on Cora; ten epochs of its generator; one look of the generator's selection."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.nodes.lagnn import NeighbourCVAE, ReferenceGCN, Sampler, acquisition, consistency, receptive_field
from latticework.nodes.lagnn.cvae import row_normalise
from latticework.nodes.network import operator_of


def timed(rounds: int, **actions: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each, taken in turns after one turn that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for r in range(rounds + 1):
        for name, action in actions.items():
            before = time.perf_counter()
            action()
            if r:
                taken[name].append(time.perf_counter() - before)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def run(rounds: int = 5) -> list[dict[str, Any]]:
    data = open_data("planetoid-cora")
    task = task_of("node-classification").for_data(data)
    part = task.fold(data, "fixed").train
    method: Any = entry_of("lagnn:small")
    backbone, copies, forwards = method.backbone, method.copies, method.forwards
    sparse, S = backbone.inputs(part, "cpu")
    x, index, y = part.data.x, torch.from_numpy(part.query.rows), torch.from_numpy(part.truth.y)
    dense = row_normalise(x)
    torch.manual_seed(0)
    augmented = method.network(part.schema).train()
    plain = backbone.module(x.shape[1], 7, part.schema).train()
    sampler = Sampler(NeighbourCVAE(x.shape[1]), x, normalise=True)
    draws = torch.Generator().manual_seed(0)

    def ours() -> None:
        augmented.zero_grad(set_to_none=True)
        samples = [[sampler(sampler.noise(draws)) for _ in range(copies)] for _ in range(forwards)]
        logits = torch.stack([augmented([*own, sparse], S) for own in samples])
        loss = sum(F.cross_entropy(one[index], y) for one in logits) / forwards
        (loss + consistency(torch.softmax(logits, -1))).backward()  # type: ignore[operator]

    def gcn(features: Any) -> None:
        plain.zero_grad(set_to_none=True)
        F.cross_entropy(plain(features, S)[index], y).backward()

    step = timed(rounds, ours=ours, dense=lambda: gcn(dense), sparse=lambda: gcn(sparse))
    most = 1.3 * (forwards * (copies + 1) + 1)
    rows = [
        {
            "name": f"LA-GCN step against GCN on {kind} features, Cora", "ours_s": step["ours"], "peer": "GCN", "peer_s": step[kind],
            "ratio": step[kind] / step["ours"], "GCN steps": step["ours"] / step[kind], "GCN steps allowed": most,
        }
        for kind in ("dense", "sparse")
    ]  # fmt: skip
    generator: Any = entry_of("neighbour-cvae:small").but(epochs=1)
    before = time.perf_counter()
    context = Run(task=task)
    with context.seeded():
        generator.fit(part, None, context)
    rows.append({"name": "ten epochs of the CVAE, Cora", "ours_s": 10 * (time.perf_counter() - before)})
    rows.append(_look(part, sampler, x, y, rounds=2))
    return rows


def _look(part: Any, sampler: Sampler, x: torch.Tensor, y: torch.Tensor, rounds: int, passes: int = 100) -> dict[str, Any]:
    """The score of one sample: passes in one product around the train nodes, against one by one over the whole graph."""
    S = operator_of(part)
    rows = torch.from_numpy(part.query.rows)
    near, whole = receptive_field(S, rows), receptive_field(S, torch.arange(len(x)))
    reference = ReferenceGCN(x.shape[1], 7).train()
    few = Sampler(sampler.net, x[near.nodes], normalise=True)
    draws = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return acquisition(reference(few(few.noise(draws)), near, passes), y)

    @torch.no_grad()
    def peer() -> torch.Tensor:
        sample = sampler(sampler.noise(draws))
        logits = []
        for _ in range(passes):
            h = whole.inner @ reference.first(F.dropout(sample, 0.5, True)) + reference.first_bias
            h = whole.outer @ reference.second(F.dropout(F.relu(h), 0.5, True)) + reference.second_bias
            logits.append(h[rows])
        return acquisition(torch.stack(logits), y)

    seconds = timed(rounds, ours=ours, peer=peer)
    return {
        "name": f"one look of selection=bayes, {passes} passes, Cora", "ours_s": seconds["ours"],
        "peer": "passes one by one over the whole graph", "peer_s": seconds["peer"], "ratio": seconds["peer"] / seconds["ours"],
        "nodes read": len(near.nodes),
    }  # fmt: skip
