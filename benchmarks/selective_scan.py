"""The selective scan, forward and backward, against a loop over the steps and against mambapy's parallel scan; its growth with length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graph_mamba import peak_of
from timing import taken
from torch import Tensor

from latticework.layers.selective_scan import scan_by_steps, selective_scan

CHANNELS, STATES = 64, 16
LENGTHS = (256, 1024, 4096, 16_384, 65_536)


def pieces(length: int) -> list[Tensor]:
    torch.manual_seed(0)
    made = (
        torch.randn(1, length, CHANNELS), 0.1 * torch.rand(1, length, CHANNELS), -torch.rand(CHANNELS, STATES),
        torch.randn(1, length, STATES), torch.randn(1, length, STATES), torch.ones(CHANNELS),
    )  # fmt: skip
    return [x.requires_grad_() for x in made]


def training(scan: Callable[..., Tensor], held: list[Tensor]) -> Callable[[], None]:
    def work() -> None:
        torch.autograd.grad(scan(*held).sum(), held)

    return work


def by_mambapy(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    from mambapy.pscan import pscan

    fed = delta[..., None] * B[:, :, None] * u[..., None]
    y: Tensor = (pscan(torch.exp(delta[..., None] * A), fed) @ C[..., None])[..., 0] + D * u
    return y


def run() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    peers: list[tuple[str, Callable[..., Tensor], tuple[int, ...]]] = [
        ("a loop over the steps", scan_by_steps, (256, 1024)), ("mambapy's parallel scan", by_mambapy, (1024, 4096, 16_384)),
    ]  # fmt: skip
    for peer, scan, lengths in peers:
        for length in lengths:
            held = pieces(length)
            times = 3 if length < 10_000 else 1
            ours, theirs = taken(training(selective_scan, held), times), taken(training(scan, held), times)
            gap = float((selective_scan(*held) - scan(*held)).detach().abs().max())
            row = {
                "name": f"against {peer}, {length:,} steps", "steps": length, "ours_s": ours, "peer": peer, "peer_s": theirs,
                "ratio": theirs / ours, "largest difference": gap,
            }  # fmt: skip
            if length >= 4096:
                mine, other = peak_of(training(selective_scan, held)), peak_of(training(scan, held))
                if mine and other:
                    row |= {"ours_mb": mine / 2**20, "peer_mb": other / 2**20, "memory_ratio": other / mine}
            rows.append(row)
    for length in LENGTHS:
        held = pieces(length)
        seconds = taken(training(selective_scan, held), 3 if length < 10_000 else 1)
        peak = peak_of(training(selective_scan, held))
        rows.append({
            "name": f"growth, {length:,} steps", "steps": length, "ours_s": seconds, "ours_mb": None if peak is None else peak / 2**20,
            "steps_per_s": length / seconds,
        })  # fmt: skip
    return rows
