"""Stitchable nets: the time to switch, what is stored, and training all points together against each apart.

The nets are those of the reproduction on digits: three small transformers of widths 16, 32 and 64, 35 operating points. Both
sides of a ratio are timed in one process, step by step in turn, so that a slow spell of the machine falls on both.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.architectures.stitchable import StitchableNet, stitch_loss
from latticework.common.tiny_vit import TinyViT

SIZES = ((16, 2), (32, 4), (64, 4))
IMAGES, BATCH, ANCHOR_EPOCHS, JOINT_EPOCHS = 1167, 32, 25, 50  # 50 joint epochs: preset sn-net:digits
ROUNDS = 5


def family() -> tuple[StitchableNet, Tensor, Tensor]:
    """The stitchable net with images and labels of the size of a batch."""
    torch.manual_seed(0)
    x, y = torch.rand(BATCH, 1, 8, 8), torch.randint(10, (BATCH,))
    return StitchableNet([TinyViT(1, (8, 8), 10, 2, w, 6, h) for w, h in SIZES], x), x, y


def stepper(net: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of AdamW on a loss."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()

    return step


def switching(rounds: int = 20_000) -> dict[str, Any]:
    """Seconds of one switch (the median of batches of a hundred), and the bytes that it allocates."""
    net, _, _ = family()
    ids = np.random.default_rng(0).integers(len(net), size=rounds).tolist()
    taken = []
    for i in range(0, rounds, 100):
        before = time.perf_counter()
        for stitch in ids[i : i + 100]:
            net.set_stitch(stitch)
        taken.append((time.perf_counter() - before) / 100)
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    for stitch in ids[:1000]:
        net.set_stitch(stitch)
    kept = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    seconds = float(np.median(taken))
    return {
        "name": "switching", "seconds": seconds, "ratio": 1e-3 / seconds, "peer": "one millisecond",
        "bytes a switch": max(kept, 0) / 1000,
    }  # fmt: skip


def storage() -> dict[str, Any]:
    """Parameters stored over the sum of those of all points apart."""
    net, _, _ = family()
    stored = sum(p.numel() for p in net.parameters())
    apart = sum(sum(p.numel() for p in net.extract(i).parameters()) for i in range(len(net)))
    return {
        "name": "storage", "share": stored / apart, "ratio": apart / stored, "peer": "every point stored apart",
        "stored": stored, "apart": apart, "points": len(net),
    }  # fmt: skip


def training(rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of three anchors and the joint epochs against those of training every point apart, from timed steps."""
    net, x, y = family()
    apart = [net.extract(i).train() for i in range(len(net))]
    steps = [stepper(alone, lambda alone=alone: F.cross_entropy(alone(x), y)) for alone in apart]
    teacher, generator = torch.randn(BATCH, 10), torch.Generator().manual_seed(0)
    joint = stepper(net.train(), lambda: stitch_loss(net(x, net.draw(generator)), y, teacher))
    single: list[list[float]] = [[] for _ in steps]
    together: list[float] = []
    for r in range(rounds + 1):
        for i, step in enumerate(steps):
            before = time.perf_counter()
            step()
            middle = time.perf_counter()
            joint()
            after = time.perf_counter()
            if r:  # the first round warms up
                single[i].append(middle - before)
                together.append(after - middle)
    per_epoch = -(-IMAGES // BATCH)
    seconds = [float(np.median(s)) * per_epoch * ANCHOR_EPOCHS for s in single]
    before = time.perf_counter()
    net.initialise(torch.rand(100, 1, 8, 8))
    solving = time.perf_counter() - before
    ours = sum(seconds[: len(SIZES)]) + float(np.mean(together)) * per_epoch * JOINT_EPOCHS + solving
    return {
        "name": "training: anchors and joint epochs", "seconds": ours, "ratio": sum(seconds) / ours,
        "peer": f"each of {len(net)} points trained apart", "peer seconds": sum(seconds), "least squares, s": solving,
    }  # fmt: skip


def run() -> list[dict[str, Any]]:
    """All rows."""
    return [switching(), storage(), training()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = run()
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(", ".join(f"{k}: {v:.4g}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items()))
