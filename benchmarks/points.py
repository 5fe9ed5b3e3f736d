"""Points and particles: normals of planes, neighbours, edge convolutions, samples of meshes, readers, and the particles' generator."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latticework.data.particles import forces, simulate
from latticework.data.point_sets import Solids
from latticework.data.points import encode, read_one, sample_mesh
from latticework.points.baselines import EdgeConv, pca_normals
from latticework.points.network import gather, nearest


def seconds(call: Callable[[], Any], times: int = 3) -> float:
    """The shortest of some calls, after one to warm up."""
    call()
    best = float("inf")
    for _ in range(times):
        before = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - before)
    return best


def row(name: str, ours: float, peer: str, theirs: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "ours_s": ours, "peer": peer, "peer_s": theirs, "ratio": theirs / ours, **more}


def normals_by_loop(xyz: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """What a user would write: neighbours by scikit-learn, and an eigenproblem a point."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k).fit(xyz).kneighbors(xyz, return_distance=False)
    return np.stack([np.linalg.eigh(np.cov(xyz[i].T))[1][:, 0] for i in index])


def leapfrog(x: Any, v: Any, q: Any, steps: int, dt: float = 1e-3) -> Any:
    """The generator of the field's data sets: one array operation after another, over all systems at once."""
    x, v = x.copy(), v + 0.5 * dt * forces(x, q)
    for _ in range(steps):
        x += dt * v
        v += dt * forces(x, q)
    return x


class PlainEdges(torch.nn.Module):
    """The same layer as written in the paper: a linear map of (x_i, x_j - x_i) for every edge."""

    def __init__(self, like: EdgeConv, a: int, b: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2 * a, b, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.cat([like.own.weight, like.apart.weight], 1))
        self.norm = like.norm

    def forward(self, h: Tensor, index: Tensor) -> Tensor:
        edges = torch.cat([h[:, :, None].expand(-1, -1, index.shape[2], -1), gather(h, index) - h[:, :, None]], 3)
        made = self.linear(edges)
        if self.norm is not None:
            made = self.norm(made.flatten(0, 2)).view_as(made)
        return torch.nn.functional.leaky_relu(made, 0.2).amax(2)


def run() -> list[dict[str, Any]]:
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []

    xyz = rng.normal(size=(4000, 3))
    same = np.abs((pca_normals(xyz, 16) * normals_by_loop(xyz, 16)).sum(1)).min()
    rows.append(row("normals of planes, 4,000 points, k = 16", seconds(lambda: pca_normals(xyz, 16)),
                    "scikit-learn's neighbours and a loop", seconds(lambda: normals_by_loop(xyz, 16), 1), least_cosine=float(same)))  # fmt: skip
    before = None
    for n in (4000, 16_000, 64_000):
        cloud = rng.normal(size=(n, 3))
        taken = seconds(lambda cloud=cloud: pca_normals(cloud, 16), 1)
        rows.append(
            {
                "name": f"growth with size: normals of {n} points",
                "ours_s": taken,
                "times_before": taken / before if before else None,
            }
        )
        before = taken

    batch = torch.from_numpy(rng.normal(size=(8, 512, 3))).float()
    ours = seconds(lambda: nearest(batch, 20))
    theirs = seconds(lambda: [cKDTree(c).query(c, 20) for c in batch.numpy()])
    rows.append(row("20 nearest of 8 clouds of 512 points", ours, "scipy cKDTree, a tree a cloud", theirs))
    wide = torch.from_numpy(rng.normal(size=(8, 512, 64))).float()
    ours = seconds(lambda: nearest(wide, 20))
    theirs = seconds(lambda: [cKDTree(c).query(c, 20) for c in wide.numpy()], 1)
    rows.append(row("20 nearest of 8 clouds of 512 points in 64 dimensions", ours, "scipy cKDTree, a tree a cloud", theirs))

    torch.manual_seed(0)
    conv = EdgeConv(64, 64).train()
    plain, index = PlainEdges(conv, 64, 64).train(), nearest(wide, 20)
    assert (conv(wide, index) - plain(wide, index)).abs().max() < 1e-3
    rows.append(row("an edge convolution 64 to 64, forward and backward", seconds(lambda: conv(wide, index).sum().backward()),
                    "a linear map of every edge", seconds(lambda: plain(wide, index).sum().backward())))  # fmt: skip

    grid = np.stack(np.meshgrid(np.arange(60.0), np.arange(60.0)), -1).reshape(-1, 2)
    vertices = np.concatenate([grid, np.sin(grid[:, :1] / 9)], 1)
    corner = (np.arange(59)[:, None] * 60 + np.arange(59)).ravel()
    faces = np.concatenate([np.stack([corner, corner + 1, corner + 61], 1), np.stack([corner, corner + 61, corner + 60], 1)])

    def by_loop(n: int) -> Any:
        a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        found = []
        for f in rng.choice(len(faces), n, p=area / area.sum()):
            u, v = rng.random(2)
            u, v = (1 - u, 1 - v) if u + v > 1 else (u, v)
            found.append(a[f] + u * (b[f] - a[f]) + v * (c[f] - a[f]))
        return np.array(found)

    rows.append(row("2,048 points on a mesh of 6,962 triangles", seconds(lambda: sample_mesh(vertices, faces, 2048, rng)),
                    "a loop over points", seconds(lambda: by_loop(2048))))  # fmt: skip

    solid = Solids(clouds=1, points=50_000).read()
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".ply", ".xyz", ".npz"):
            (Path(folder) / f"a{suffix}").write_bytes(encode(solid, 0, suffix))
        text = (Path(folder) / "a.xyz").read_text()
        plain_text = seconds(lambda: np.loadtxt(io.StringIO(text), skiprows=1), 1)
        rows.append(row("reading an .xyz of 50,000 points", seconds(lambda: read_one(Path(folder) / "a.xyz"), 1), "numpy.loadtxt", plain_text,
                        ply_s=seconds(lambda: read_one(Path(folder) / "a.ply")), npz_s=seconds(lambda: read_one(Path(folder) / "a.npz"))))  # fmt: skip

    x, v, q = rng.normal(size=(400, 5, 3)), rng.normal(size=(400, 5, 3)), rng.choice((-1.0, 1.0), (400, 5))
    assert np.abs(simulate(x, v, q, 1, 20)[0][:, 0] - leapfrog(x, v, q, 20)).max() < 1e-9
    ours, theirs = seconds(lambda: simulate(x, v, q, 3, 100)), seconds(lambda: leapfrog(x, v, q, 300), 1)
    rows.append(row("300 steps of 400 systems of five charges", ours, "numpy over all systems", theirs,
                    full_set_s=ours / 300 * 4100 / 400 * 7000))  # fmt: skip
    return rows
