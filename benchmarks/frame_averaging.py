"""What frames cost: forward passes and training steps against the bare network, frames alone, and the group average they replace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import medians
from torch import Tensor, nn

from latticework.layers.frames import E3, SE3, SO3, Motions, Sn
from latticework.points.baselines import DGCNN, EGNN, ParticleGNN, PointNet
from latticework.points.frame_averaging import FrameAveraging
from latticework.points.frame_averaging.method import FramedLayers, FramedPoints

B, N = 32, 1024


def pointnet() -> PointNet:
    torch.manual_seed(0)
    return PointNet(0, 3, True, 0, (32, 32, 32, 64, 128), (64, 32), 0.0)


def clouds(b: int = B, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(b, n, 3, generator=generator) * torch.tensor([2.0, 1.0, 0.5])


class Whole(nn.Module):
    """A point backbone on points alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, X: Tensor) -> Tensor:
        found: Tensor = self.net(X, None, None)
        return found


def framed(net: nn.Module, group: Motions, train_samples: int | None = None) -> FrameAveraging:
    return FrameAveraging(Whole(net), group, "vectors", train_samples=train_samples, at_once=16, degenerate="ignore")


def stepper(net: nn.Module, X: Tensor) -> Callable[[], None]:
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        net(X).square().mean().backward()
        optimiser.step()

    return step


def run() -> list[dict[str, Any]]:
    X, bare = clouds(), pointnet().eval()
    rows: list[dict[str, Any]] = []

    def quiet(net: nn.Module, given: Tensor = X) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return net(given)

        return call

    whole = framed(bare, E3()).eval()
    found = medians(
        {
            "bare": quiet(Whole(bare)),
            "E3": quiet(whole),
            "SE3": quiet(framed(bare, SE3()).eval()),
            "frames": lambda: E3().frame(X),
        }
    )
    for name, size in (("E3", 8), ("SE3", 4)):
        rows.append({
            "name": f"{name}, {size} elements: a forward pass of a small PointNet, {B} clouds of {N} points", "ours_s": found[name],
            "peer": "the bare network", "peer_s": found["bare"], "ratio": found["bare"] / found[name],
            "times": found[name] / found["bare"], "times the elements": found[name] / found["bare"] / size,
        })  # fmt: skip
    rows.append({
        "name": f"frames alone: of {B} clouds of {N} points, within a forward pass over E3", "ours_s": found["frames"],
        "share": found["frames"] / found["E3"], "share of the bare network's": found["frames"] / found["bare"],
    })  # fmt: skip

    steps = medians({
        "bare": stepper(Whole(pointnet()), X), "one": stepper(framed(pointnet(), E3(), train_samples=1), X),
        "all": stepper(framed(pointnet(), E3()), X),
    })  # fmt: skip
    rows.append({
        "name": "one drawn element: a training step", "ours_s": steps["one"], "peer": "the bare network", "peer_s": steps["bare"],
        "ratio": steps["bare"] / steps["one"], "times": steps["one"] / steps["bare"], "all 8, times": steps["all"] / steps["bare"],
    })  # fmt: skip

    few = clouds(8, 256)
    torch.manual_seed(0)
    dgcnn = DGCNN(0, 3, True, 0, 12, (16, 16, 32, 32), 64, (64, 32), 0.0).eval()
    found = medians({"bare": quiet(Whole(dgcnn), few), "E3": quiet(framed(dgcnn, E3()).eval(), few)}, 3)
    rows.append({
        "name": "DGCNN within E3: a forward pass, 8 clouds of 256 points", "ours_s": found["E3"], "peer": "the bare network",
        "peer_s": found["bare"], "ratio": found["bare"] / found["E3"], "times": found["E3"] / found["bare"],
    })  # fmt: skip
    return [*rows, group_average(), *particles(), *growth(), *orderings()]


def group_average(wanted: float = 0.01, k: int = 1024) -> dict[str, Any]:
    """The average over k random rotations is equivariant up to an error that falls as k^-1/2: how many it needs, at what cost."""
    X, net, generator = clouds(1, 128), Whole(pointnet().eval()), torch.Generator().manual_seed(1)

    def average(given: Tensor) -> Tensor:
        g = SO3().random(torch.empty(k, 1, 3), generator)
        Z = g.into(given.expand(k, -1, -1), "points")[:, 0]
        return g.back(net(Z).unsqueeze(1), "vectors").mean((0, 1))

    exact = framed(net.net, SE3()).eval()
    turn = SO3().random(X, torch.Generator().manual_seed(2))
    with torch.no_grad():
        size = net(X).square().mean().sqrt()
        mine = float((exact(turn.act(X, "points")) - turn.act(exact(X), "vectors")).square().mean().sqrt() / size)
        apart = [average(turn.act(X, "points")) - turn.act(average(X)[None], "vectors")[0] for _ in range(4)]
        error = float(torch.stack(apart).square().mean().sqrt() / size)
        found = medians({"ours": lambda: exact(X), "theirs": lambda: average(X)}, 3)
    needed = k * (error / wanted) ** 2
    peer = found["theirs"] / k * needed
    return {
        "name": "SE3 against the average over random rotations, at an error of a hundredth of the answer", "ours_s": found["ours"],
        "peer": f"{needed:.0f} rotations, by the error and the cost of {k}", "peer_s": peer, "ratio": peer / found["ours"],
        "our error": mine, f"error of {k} rotations": error,
    }  # fmt: skip


def particles() -> list[dict[str, Any]]:
    """Training steps on 100 systems of five charged particles, the n-body setting."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(100, 5, 7, generator=generator)
    pos, x = draw[..., :3], draw[..., 3:]

    class Both(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, pos: Tensor) -> Tensor:
            found: Tensor = self.net(pos, x)
            return found

    def plain() -> ParticleGNN:
        torch.manual_seed(0)
        return ParticleGNN(4, 3, 1)

    found = medians({
        "gnn": stepper(Both(plain()), pos), "egnn": stepper(Both(EGNN(4, 1)), pos),
        "layers": stepper(Both(FramedLayers(plain(), E3())), pos),
        "plain": stepper(Both(FramedPoints(plain(), E3(), "vectors", 1, None, None)), pos),
        "one": stepper(Both(FramedPoints(plain(), E3(), "vectors", 1, None, 1)), pos),
    }, 3)  # fmt: skip
    words = {"layers": "frames of every layer", "plain": "one frame", "one": "one drawn element"}
    return [
        {
            "name": f"a training step on 100 systems of particles, {words[name]}", "ours_s": found[name], "peer": "particle-gnn",
            "peer_s": found["gnn"], "ratio": found["gnn"] / found[name], "over egnn": found[name] / found["egnn"],
        }
        for name in words
    ]  # fmt: skip


def growth() -> list[dict[str, Any]]:
    """Frames are linear in the points."""
    rows = []
    before = None
    for n in (1024, 4096, 16_384):
        X = clouds(16, n)
        seconds = medians({"frames": lambda X=X: E3().frame(X)})["frames"]  # type: ignore[misc]
        rows.append({
            "name": f"growth with size: frames of 16 clouds of {n} points", "ours_s": seconds,
            "times_before": None if before is None else seconds / before,
        })  # fmt: skip
        before = seconds
    return rows


def orderings() -> list[dict[str, Any]]:
    """Keys of nodes: one batched eigendecomposition against networkx's, graph by graph."""
    import networkx as nx

    graphs = [nx.gnp_random_graph(40, 0.15, seed=s) for s in range(100)]
    A = torch.from_numpy(np.stack([nx.to_numpy_array(g) for g in graphs]))
    found = medians({
        "ours": lambda: Sn().frame(A, samples=1), "peer": lambda: [np.linalg.eigh(nx.laplacian_matrix(g).toarray()) for g in graphs],
    }, 3)  # fmt: skip
    return [{
        "name": "keys and one ordering each of 100 graphs of 40 nodes", "ours_s": found["ours"],
        "peer": "networkx Laplacians and numpy eigh alone", "peer_s": found["peer"], "ratio": found["peer"] / found["ours"],
    }]  # fmt: skip
