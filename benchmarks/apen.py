"""What a partition costs: APEN against the same network with one frame for the whole cloud, and hard parts against dense ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timing import medians
from torch import Tensor

from latticework.points.apen.network import APEN, PiecewiseLayer, views
from latticework.points.apen.partition import em, partition

N, COMPONENTS = 2048, 40
WORDS = "the same network with one frame of the whole cloud"


def body(n: int, b: int = 1) -> Tensor:
    """Points on a chain of eight sticks, root mean square 1; float32 [b, n, 3]."""
    generator = torch.Generator().manual_seed(0)
    stick = torch.arange(n) * 8 // n
    joints = torch.randn(b, 9, 3, generator=generator).cumsum(1)
    place = torch.rand(b, n, 1, generator=generator)
    X = joints[:, stick] * (1 - place) + joints[:, stick + 1] * place + 0.1 * torch.randn(b, n, 3, generator=generator)
    X = X - X.mean(1, keepdim=True)
    return X / X.square().sum(2).mean(1).sqrt()[:, None, None]


def network(components: int) -> APEN:
    torch.manual_seed(0)
    return APEN(0, 10, True, components=components, blocks=4).eval()


def run() -> list[dict[str, Any]]:
    rows = []
    for n in (512, N, 8192):
        X, ours, whole = body(n), network(COMPONENTS), network(1)
        with torch.no_grad():
            found = medians({"ours": lambda X=X, net=ours: net(X), "peer": lambda X=X, net=whole: net(X)}, 3)  # type: ignore[misc]
        rows.append({
            "name": f"a forward pass, {n} points in {COMPONENTS} components, 8 frames", "ours_s": found["ours"], "peer": WORDS,
            "peer_s": found["peer"], "ratio": found["peer"] / found["ours"], "times": found["ours"] / found["peer"],
        })  # fmt: skip
    return [*rows, a_step(), *a_layer()]


def a_step() -> dict[str, Any]:
    """A training step on four bodies, with the gradient through the fixed point."""
    X = body(1024, 4)

    def stepper(components: int) -> Callable[[], None]:
        net = network(components).train()

        def step() -> None:
            net.zero_grad(set_to_none=True)
            net(X).square().mean().backward()

        return step

    found = medians({"ours": stepper(COMPONENTS), "peer": stepper(1)}, 3)
    return {
        "name": "a training step on 4 clouds of 1,024 points", "ours_s": found["ours"], "peer": WORDS, "peer_s": found["peer"],
        "ratio": found["peer"] / found["ours"], "times": found["ours"] / found["peer"],
    }  # fmt: skip


def a_layer() -> list[dict[str, Any]]:
    X = body(N)
    with torch.no_grad():
        part = partition(X, COMPONENTS, 0.005, gradient="none").part[0]
        torch.manual_seed(0)
        layer = PiecewiseLayer(0, 0, 8, 8).eval()
        Z = torch.nn.functional.one_hot(part, COMPONENTS).float()
        none, empty = X.new_zeros(N, 0), X.new_zeros(N, 0, 3)
        found = medians({
            "ours": lambda: layer(X[0], none, empty, views(X[0], part, COMPONENTS, 8, 10)), "peer": lambda: layer.soft(X[0], none, empty, Z),
            "em": lambda: em(X, COMPONENTS, 0.005),
        }, 3)  # fmt: skip
    return [
        {
            "name": f"a layer, {N} points in {COMPONENTS} parts, with its frames and neighbours", "ours_s": found["ours"],
            "peer": "the same layer of a dense assignment, parts x frames x points rows", "peer_s": found["peer"],
            "ratio": found["peer"] / found["ours"],
        },
        {"name": f"a partition: 16 rounds, {COMPONENTS} components, {N} points", "ours_s": found["em"]},
    ]  # fmt: skip
