"""FED-PUB on Cora, ten METIS clients: bytes a round against FedAvg, masks' sparsity, the server's share of the time, likeness."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.data.clients import label_likeness
from latticework.nodes.federated import FederatedMethod, Strategy

ROUNDS = 100


class Timed(Strategy):
    """A strategy whose server work is timed."""

    def __init__(self, inner: Strategy) -> None:
        self.inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def model_for(self, client: str) -> torch.Tensor:
        return self.inner.model_for(client)

    def seen(self, names: Any) -> Any:
        return self.inner.seen(names)

    def receive(self, updates: Any) -> list[str]:
        before = time.perf_counter()
        used = self.inner.receive(updates)
        self.seconds += time.perf_counter() - before
        return used


def fitted(text: str, fold: Any, task: Any, seed: int = 0) -> tuple[Any, float, float]:
    """(model, seconds of all rounds, of which the server's)."""
    method: Any = entry_of(text)
    timed: list[Timed] = []
    build = type(method).strategy

    def strategy(self: FederatedMethod, start: torch.Tensor) -> Strategy:
        timed.append(Timed(build(self, start)))
        return timed[0]

    run = Run(task=task, seed=seed)
    with run.seeded():
        before = time.perf_counter()
        try:
            type(method).strategy = strategy
            model = method.fit(fold.train, fold.valid, run)
        finally:
            type(method).strategy = build
        taken = time.perf_counter() - before
    return model, taken, timed[0].seconds


def wire_bytes(model: Any, embedding: bool) -> int | None:
    """Bytes of one update as Flower's records, where Flower is there."""
    try:
        from latticework.nodes.federated_processes import pack_update
    except ImportError:
        return None
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    from latticework.nodes.federated import Update

    theta = model.weights["last"][0]
    content = pack_update(Update(theta, torch.zeros(model.method.hidden) if embedding else None, 1, 1, 1))
    return sum(len(o.deflate()) for o in get_all_nested_objects(content).values())


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    data = open_data("partition")
    task = task_of("federated-node-classification").for_data(data)
    fold = task.fold(data, "random-0")
    avg, avg_s, _ = fitted(f"fedavg(rounds={rounds})", fold, task)
    pub, pub_s, server_s = fitted(f"fed-pub(rounds={rounds})", fold, task)
    dense = float(avg.history["sent"].mean())
    likeness, S = label_likeness(data.read()), pub.history["similarity"][-1].numpy()
    apart = ~np.eye(len(S), dtype=bool)
    rows: list[dict[str, Any]] = [
        {
            "name": "server's share of a round, 10 clients", "ours_s": server_s / rounds, "peer": "the whole round",
            "peer_s": pub_s / rounds, "ratio": pub_s / max(server_s, 1e-9), "percent": 100 * server_s / pub_s,
        },
        {
            "name": "in-process round of FED-PUB against FedAvg", "ours_s": pub_s / rounds, "peer": "FedAvg", "peer_s": avg_s / rounds,
            "ratio": avg_s / pub_s, "rounds a second": rounds / pub_s,
        },
        {
            "name": "similarity against likeness of labels", "pearson": float(np.corrcoef(S[apart], likeness[apart])[0, 1]),
            "least": float(S[apart].min()), "most": float(S[apart].max()),
        },
    ]  # fmt: skip
    # one row a strength of the L1: what is sent where only active weights travel, and what it costs
    for l1 in (0.0, 1e-5, 1e-4, 1e-3):
        model = pub if l1 == 0 else fitted(f"fed-pub(rounds={rounds}; l1={l1})", fold, task)[0]
        mean = float(model.history["sent"].mean())
        scores = task.score(task.answer(model, fold.test.blind(), Run(task=task)), fold.test, None)
        row = {
            "name": f"bytes of a client's round, l1 = {l1:g}", "ours": mean, "peer": "FedAvg", "theirs": dense, "ratio": dense / mean,
            "bytes in the last round": float(model.history["sent"][-1].mean()), "sparsity": float(model.history["sparsity"][-1].mean()),
            "accuracy": task.headline(scores), "l1": l1,
        }  # fmt: skip
        rows.append(row)
    ours, theirs = wire_bytes(pub, True), wire_bytes(avg, False)
    if ours is not None and theirs is not None:
        rows.append(
            {
                "name": "bytes of an update as Flower's records, all weights",
                "ours": ours,
                "peer": "FedAvg",
                "theirs": theirs,
                "ratio": theirs / ours,
            }
        )
    return rows
