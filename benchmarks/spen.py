"""Local equivariant maps against global ones: peak memory as graphs grow and on NCI1, a training step against GIN, egos cut."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from graph_steps import against_gin, step_costs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch_geometric.data import Batch, Data

from latticework.core.dataset import open_data
from latticework.graphs.spen import SPEN, LocalMaps, LocalReadOut, with_egos

WIDTH = 16


class Held(TorchDispatchMode):
    """Bytes of the storages that live at once while it is entered, and the most there were.

    Counted at every operation from the storages that its results stand on; a storage is gone when nothing refers to it. What was
    there before is not counted, so the peak is that of the computation, on any device, without a profiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._seen or not size:
                continue
            self._seen[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)


def peak_of(net: nn.Module, batch: Any) -> int:
    """Bytes held at most by a forward and a backward pass, parameters and input left out."""
    target = torch.zeros(int(batch.num_graphs), dtype=torch.int64)
    net.train()
    F.cross_entropy(net(batch), target).backward()  # gradients of the parameters are there from now on
    with Held() as held:
        F.cross_entropy(net(batch), target).backward()
    return held.peak


class Padded(nn.Module):
    """What a user would write for a global network: graphs padded to the largest of the batch, the same maps, a masked mean."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs, nodes = 1 + inputs, 0
        self.layers = nn.ModuleList()
        for width in widths:
            self.layers.append(LocalMaps(pairs, nodes, width))
            pairs = nodes = 2 * width if nodes else width
        self.read_out = LocalReadOut(pairs, nodes, widths[-1])
        self.head = nn.Linear(2 * widths[-1], outputs)

    def forward(self, batch: Any) -> Tensor:
        size = torch.diff(batch.ptr)
        n, graphs = int(size.max()), len(size)
        place = torch.arange(len(batch.batch)) - batch.ptr[batch.batch]
        u, v = batch.edge_index
        X = torch.zeros(graphs, n, n, 1 + (0 if batch.x is None else batch.x.shape[1]))
        degree = torch.bincount(u, minlength=len(place)).float()
        X[batch.batch[u], place[u], place[v], 0] = (degree[u] * degree[v]).rsqrt()
        if batch.x is not None:
            X[batch.batch, place, place, 1:] = batch.x
        y = None
        for layer in self.layers:
            X, y = layer(X, y, size)
            X, y = F.elu(X), F.elu(y)
        return self.head(F.elu(self.read_out(X, y, size)))


def cubic(n: int, graphs: int) -> list[Data]:
    """Random graphs in which every node has three neighbours: sparse whatever their size."""
    found = []
    for seed in range(graphs):
        edges = np.array(nx.random_regular_graph(3, n, seed=seed).edges()).T
        found.append(Data(edge_index=torch.from_numpy(np.concatenate([edges, edges[::-1]], 1)), num_nodes=n))
    return found


def by_size() -> list[dict[str, Any]]:
    rows = []
    for hops, most in ((1, 256), (2, 128)):
        n = 8
        while n <= most:
            graphs = cubic(n, 4)
            local = with_egos(graphs, hops)
            sizes = torch.cat([g.ego_size for g in local]).unique().tolist()
            torch.manual_seed(0)
            ours = peak_of(SPEN(0, 2, sizes, (WIDTH,) * 2, hidden=(8,)), Batch.from_data_list(local))
            theirs = peak_of(
                SPEN(0, 2, [1], (WIDTH,) * 2, hidden=(8,)), Batch.from_data_list(with_egos(graphs, whole=True, most=0))
            )
            rows.append({
                "name": f"peak memory, cubic graphs, hops {hops}, {n} nodes", "ours_bytes": ours, "peer": "ign", "peer_bytes": theirs,
                "ratio": theirs / ours, "nodes": n,
            })  # fmt: skip
            n *= 2
    return rows


def on_sets() -> list[dict[str, Any]]:
    """Batches of 32 graphs: the local network, the library's global one (no padding), and a padded one, all of equal width."""
    rows = []
    for name in ("tu-nci1", "tu-mutag", "tu-imdbbinary"):
        data: Any = open_data(name)
        chosen = np.random.default_rng(0).choice(len(data.read()), 64, replace=False)
        graphs = data.read().graphs(chosen)
        inputs = 0 if graphs[0].x is None else graphs[0].x.shape[1]
        local, everywhere = with_egos(graphs, 1), with_egos(graphs, whole=True, most=0)
        sizes = torch.cat([g.ego_size for g in local]).unique().tolist()
        torch.manual_seed(0)
        nets: dict[str, tuple[nn.Module, Sequence[Data]]] = {
            "spen": (SPEN(inputs, 2, sizes, (WIDTH,) * 3), local),
            "ign": (SPEN(inputs, 2, [1], (WIDTH,) * 3), everywhere),
            "spen without norm": (SPEN(inputs, 2, sizes, (WIDTH,) * 3, norm="none"), local),
            "padded ign": (Padded(inputs, 2, (WIDTH,) * 3), graphs),
        }
        peak = {
            key: max(peak_of(net, Batch.from_data_list(list(of[i : i + 32]))) for i in (0, 32)) for key, (net, of) in nets.items()
        }
        for ours, theirs in (("spen", "ign"), ("spen without norm", "padded ign")):
            rows.append({
                "name": f"peak memory on {name}, {ours} against {theirs}", "ours_bytes": peak[ours], "peer": theirs,
                "peer_bytes": peak[theirs], "ratio": peak[theirs] / peak[ours], "share": peak[ours] / peak[theirs],
            })  # fmt: skip
    return rows


def steps() -> list[dict[str, Any]]:
    """A training step on batches of 32 graphs of NCI1 against a GIN of three layers and equal width."""
    entries = {
        "spen": "spen(layers=3; cap=5)", "spen, egos not shared": "spen(layers=3; cap=5; share=false)", "ign": "ign(layers=3)",
        "gin": f"gin(layers=3; width={WIDTH})",
    }  # fmt: skip
    costs = step_costs("tu-nci1", entries)
    rows = [against_gin(f"a training step on NCI1, {name}", costs, name) for name in entries if name != "gin"]
    shared, apart = costs["spen"].step, costs["spen, egos not shared"].step
    rows.append({
        "name": "what computing equal egos once saves of a step", "ours_s": shared, "peer": "spen(share=false)", "peer_s": apart,
        "ratio": apart / shared,
    })  # fmt: skip
    return rows


def run() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return by_size() + on_sets() + steps()
