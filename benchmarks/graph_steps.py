"""Seconds of training steps of graph networks on the same batches, for the benchmarks that compare them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timing import taken

from latticework.common.graph_batches import Packed
from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.graphs.network import loss_of, outputs_of

STEPS, BATCH = 6, 32


class Cost(NamedTuple):
    """Seconds of one step, and of what is prepared once for all graphs."""

    step: float
    prepare: float


def step_costs(data: str, entries: Mapping[str, str]) -> dict[str, Cost]:
    """A training step of each entry on the first `STEPS` batches of `BATCH` graphs of the first fold's train part."""
    given = open_data(data)
    task = task_of("graph-classification").for_data(given)
    part = task.fold(given, task.plan(given, 1)[0][0]).train
    target = torch.from_numpy(part.truth.y)
    found = {}
    for name, text in entries.items():
        method: Any = entry_of(text)
        schema = method.settled(part)
        started = time.perf_counter()
        packed = Packed(method.prepare(part.data, schema))
        prepared = time.perf_counter() - started
        torch.manual_seed(0)
        net = method.module(schema["inputs"], outputs_of(schema), schema).train()
        optimiser = method.optimiser(net)
        batches = packed.batches(BATCH, torch.Generator().manual_seed(0))[:STEPS]

        def train(
            net: Any = net, packed: Any = packed, optimiser: Any = optimiser, method: Any = method, batches: Any = batches
        ) -> None:
            for chosen in batches:
                batch = packed.batch(chosen)
                optimiser.zero_grad(set_to_none=True)
                loss = loss_of(net(batch), target[chosen])
                extra = method.extra_loss(net, batch, None)
                (loss if extra is None else loss + extra).backward()
                optimiser.step()

        found[name] = Cost(taken(train) / len(batches), prepared)
    return found


def against_gin(name: str, costs: Mapping[str, Cost], entry: str) -> dict[str, Any]:
    """A row of an entry's step beside that of the entry "gin"."""
    ours, theirs = costs[entry].step, costs["gin"].step
    return {
        "name": name, "ours_s": ours, "peer": "gin", "peer_s": theirs, "ratio": theirs / ours, "over_gin": ours / theirs,
        "prepare_s": costs[entry].prepare,
    }  # fmt: skip
