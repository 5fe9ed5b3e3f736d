"""An epoch of MEOW against one of PyG's HANConv on ACM's papers: seconds and peak memory, on the same meta-path graphs.

HAN is fed what MEOW sees after its cut (110 and 150 neighbours), with eight heads of eight, forward, loss and backward;
MEOW's epoch is all of it: five passes of its encoder, two clusterings, the loss over all pairs. HAN on the whole meta-path graphs
(4.3 million subject pairs) stands beside, and so do MEOW's parts.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of
from latticework.core.run import Run, peak_bytes, reset_peak
from latticework.data.hetero import chain_counts
from latticework.layers.contrastive import weighted_info_nce
from latticework.nodes.meow.losses import spherical_kmeans
from latticework.nodes.meow.views import nearest


def resident() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def measured(step: Callable[[], Any], rounds: int) -> tuple[float, int]:
    """Median seconds, and the most memory above what was there before."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what an earlier step freed is given back, where the C library can
        ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    reset_peak()
    taken = []
    for r in range(rounds + 1):
        started = time.perf_counter()
        step()
        if r:
            taken.append(time.perf_counter() - started)
    return float(np.median(taken)), max(peak_bytes() - before, 1)


def han_step(x: torch.Tensor, edges: list[torch.Tensor], classes: int) -> Callable[[], None]:
    from torch_geometric.nn import HANConv

    kinds = [("paper", f"path {i}", "paper") for i in range(len(edges))]
    torch.manual_seed(0)
    conv = HANConv(x.shape[1], 64, (["paper"], kinds), heads=8, dropout=0.6)
    head = torch.nn.Linear(64, classes)
    given = dict(zip(kinds, edges, strict=True))
    y = torch.arange(x.shape[0]) % classes
    optimiser = torch.optim.Adam([*conv.parameters(), *head.parameters()])

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(head(conv({"paper": x}, given)["paper"]), y).backward()
        optimiser.step()

    return step


def run(rounds: int = 3) -> list[dict[str, Any]]:
    part = open_data("hetero-heco:acm").whole()
    method: Any = entry_of("meow:acm-short")
    context = Run(task=None)
    with context.seeded():
        chains = method.chains(part.data, "paper", context)
        counts = [chain_counts(part.data, c) for c in chains.values()]
        seen = method.seen(part, context)
        net = method.built(seen, context)
        optimiser = torch.optim.Adam(net.parameters(), lr=method.lr)

        def meow() -> None:
            optimiser.zero_grad()
            coarse, fine = net["encoder"](seen.views)
            method.loss(net, coarse, fine, 0, context).backward()
            optimiser.step()

        def edges_of(matrix: Any) -> torch.Tensor:
            coo = matrix.tocoo()
            return torch.from_numpy(np.stack([coo.col, coo.row]).astype(np.int64))

        x = part.data["paper"].x
        cut = [edges_of(nearest(C, most)) for C, most in zip(counts, method.nei_max, strict=True)]
        ours, our_bytes = measured(meow, rounds)
        peer, peer_bytes = measured(han_step(x, cut, 3), rounds)
        whole, whole_bytes = measured(han_step(x, [edges_of(C) for C in counts], 3), 1)
        with torch.no_grad():
            coarse, fine = net["encoder"](seen.views)
        generator = torch.Generator().manual_seed(0)
        clusters, _ = measured(lambda: [spherical_kmeans(fine, k, generator) for k in method.clusters], rounds)
        leaf = coarse.clone().requires_grad_()
        loss, _ = measured(lambda: weighted_info_nce(leaf, fine, method.tau).backward(), rounds)
        library, _ = measured(lambda: sklearn_kmeans(fine.numpy(), method.clusters), 1)
        soft: Any = entry_of("adameow:acm-short(anchors=0)")
        soft_seen = soft.seen(part, context)
        soft_net = soft.built(soft_seen, context)

        def adameow() -> None:
            coarse, fine = soft_net["encoder"](soft_seen.views)
            soft.loss(soft_net, coarse, fine, 0, context).backward()

        ada, ada_bytes = measured(adameow, 1)
    return [
        {
            "name": "MEOW epoch against HANConv, ACM", "ours_s": ours, "peer": "PyG HANConv, same edges", "peer_s": peer,
            "ratio": peer / ours, "clusterings_s": clusters, "plain loss_s": loss, "edges": sum(e.shape[1] for e in cut),
        },
        {
            "name": "MEOW memory against HANConv, ACM", "ours_MB": our_bytes / 1e6, "peer": "PyG HANConv, same edges",
            "peer_MB": peer_bytes / 1e6, "ratio": peer_bytes / our_bytes,
        },
        {
            "name": "MEOW epoch against HANConv on whole meta-path graphs, ACM", "ours_s": ours, "ours_MB": our_bytes / 1e6,
            "peer": "PyG HANConv, all edges", "peer_s": whole, "peer_MB": whole_bytes / 1e6, "ratio": whole / ours,
        },
        {
            "name": "MEOW clusterings against scikit-learn, ACM", "ours_s": clusters, "peer": "KMeans, same starts and steps",
            "peer_s": library, "ratio": library / clusters,
        },
        {
            "name": "AdaMEOW epoch against HANConv, ACM", "ours_s": ada, "ours_MB": ada_bytes / 1e6, "peer": "PyG HANConv, same edges",
            "peer_s": peer, "ratio": peer / ada,
        },
    ]  # fmt: skip


def sklearn_kmeans(x: Any, clusters: tuple[int, ...]) -> None:
    from sklearn.cluster import KMeans

    for k in clusters:
        KMeans(k, n_init=5, max_iter=20, init="random", random_state=0).fit(x)
