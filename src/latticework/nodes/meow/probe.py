"""The probe ``negative-push``: which negatives InfoNCE pushes away, and how many of them are of the node's own class."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from latticework.core.errors import UserError
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import lines
from latticework.core.value import setting
from latticework.data.hetero import target_of
from latticework.layers.contrastive import weighted_info_nce

from .losses import cluster_weights
from .recipe import MEOWMethod

BINS = 10
CHECKED = 64  # nodes on which autograd is asked for the same gradient


def push(similarity: Tensor, tau: float, weights: Tensor | None = None) -> Tensor:
    """``dL/ds_ij = w_ij e^(s_ij/tau) / (tau sum_l w_il e^(s_il/tau))``: how hard anchor i pushes each negative j away.

    similarity, weights [b, n] -> [b, n]; L is an anchor's InfoNCE term and the pull on the positive is not in it.
    """
    logits = similarity / tau
    if weights is not None:
        logits = logits + torch.log(weights)
    return torch.softmax(logits, 1) / tau


class NegativePush(Probe):
    """Which negatives a contrastive loss pushes away on these data, without weights and weighted by clusterings.

    An encoder is trained (`encoder`, plain InfoNCE for a few epochs) and read: the push of each anchor on each negative, by
    how similar the two are. A near negative is pushed hardest, and where labels are known the probe says how many near ones
    are of the anchor's own class, which should not be pushed at all, and which share of the whole push they get. That the
    formula is the gradient is checked against autograd on some of the nodes.
    """

    name: ClassVar[str] = "negative-push"
    kinds: ClassVar[tuple[str, ...]] = ("heterogeneous graph",)
    encoder: MEOWMethod = setting(
        MEOWMethod(weights=False, prototypes=0.0, epochs=20), "trained first; its clusters give the weights that are compared"
    )
    anchors: int = setting(1000, "nodes whose negatives are looked at, at most", ge=1, le=1_000_000)
    target: str | None = setting(None, "the node type that is looked at; left out, the one with labels, or the first")

    def measure(self, data: Any, run: Run) -> Findings:
        if data is None:
            raise UserError("negative-push needs a heterogeneous graph")
        read = data.read()
        part = data.whole(target_of(read, self.target, "target") if self.target or read.labelled else None)
        target, method = part.query.target, self.encoder
        n = int(part.data[target].num_nodes)
        method.but(weights=True).ready(n, target)
        net, seen = method.trained(part, run)
        encoder: Any = net["encoder"]
        with torch.no_grad():
            coarse, fine = (x.cpu().double() for x in encoder(seen.views))
        found = method.clusterings(fine.float(), "clusters", run)
        weights = cluster_weights(torch.stack([c.assignment for c in found]))
        rows = torch.from_numpy(np.sort(run.rng("anchors").permutation(n)[: self.anchors]))
        similarity, w = coarse[rows] @ fine.T, weights(rows).double()
        negative = torch.ones_like(w, dtype=torch.bool)
        negative[torch.arange(len(rows)), rows] = False
        plain, weighted = push(similarity, method.tau), push(similarity, method.tau, w)
        scalars: dict[str, Any] = {
            "anchors": len(rows),
            "largest difference from autograd": _difference(coarse[:CHECKED], fine[:CHECKED], method, found),
            "push on the nearest negative over the mean push": _ratio(similarity, plain, negative),
        }
        labels = read.y.get(target)
        same = None
        if labels is not None and bool((labels >= 0).any()):
            y = torch.from_numpy(labels)
            known = negative & (y[None] >= 0) & (y[rows, None] >= 0)
            same = known & (y[rows, None] == y[None])

            def share(of: Tensor) -> float | None:  # one labelled node alone has no labelled negative
                return float(of[same].sum() / of[known].sum()) if bool(of[known].sum() > 0) else None

            scalars |= {
                "negatives of the anchor's own class": share(torch.ones_like(plain)), "their share of the push": share(plain),
                "their share of the push, weighted by clusterings": share(weighted),
            }  # fmt: skip
        return Findings(scalars, *_by_similarity(similarity, plain, weighted, negative, same))


def _difference(coarse: Tensor, fine: Tensor, method: MEOWMethod, found: Any) -> float:
    """Between `push` and the gradient of the loss with respect to the similarities, on a few nodes."""
    m = len(coarse)
    apart = cluster_weights(torch.stack([c.assignment[:m] for c in found]))
    w = apart(torch.arange(m)).double()
    if bool((w.sum(1) == 0).any()):  # so few nodes may lie in one cluster
        w, apart = torch.ones(m, m, dtype=torch.float64), None  # type: ignore[assignment]
    S = (coarse @ fine.T).requires_grad_()
    value = weighted_info_nce(S, torch.eye(m, dtype=torch.float64), method.tau, apart) * m
    (gradient,) = torch.autograd.grad(value, S)
    off = ~torch.eye(m, dtype=torch.bool)
    return float((gradient - push(S.detach(), method.tau, w))[off].abs().max()) if m > 1 else 0.0


def _ratio(similarity: Tensor, pushed: Tensor, negative: Tensor) -> float:
    nearest = similarity.masked_fill(~negative, -torch.inf).argmax(1)
    return float((pushed.gather(1, nearest[:, None])[:, 0] / ((pushed * negative).sum(1) / negative.sum(1))).mean())


def _by_similarity(
    similarity: Tensor, plain: Tensor, weighted: Tensor, negative: Tensor, same: Tensor | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Tenths of the negatives by similarity: the push on each, and how many are of the anchor's own class."""
    order = torch.argsort(similarity[negative])
    pushes = {"push": plain[negative][order], "push, weighted": weighted[negative][order]}
    cosine = similarity[negative][order]
    rows: list[dict[str, Any]] = []
    for piece in torch.arange(len(order)).chunk(BINS):
        row: dict[str, Any] = {"similarity": float(cosine[piece].mean())}
        row |= {name: float(values[piece].sum() / values.sum()) for name, values in pushes.items()}
        if same is not None:
            row["of the own class"] = float(same[negative][order][piece].double().mean())
        rows.append(row)
    series = {name: [(r["similarity"], r[name]) for r in rows] for name in rows[0] if name != "similarity"}
    return {"negatives by similarity": rows}, {
        "push by similarity": lines(series, "share of the push by similarity", "similarity")
    }
