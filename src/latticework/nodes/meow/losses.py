"""Weights of negatives: from clusterings (MEOW) or by a small network (AdaMEOW), and the prototype loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOWEST = 0.01  # of the mean: a concentration of 0 would divide by 0
BLOCK = 512  # rows of similarities at a time


class Clustering(NamedTuple):
    """`assignment` int64 [n] and `centroids` [k, d] of length 1."""

    assignment: Tensor
    centroids: Tensor


def spherical_kmeans(x: Tensor, k: int, generator: torch.Generator, iterations: int = 20, restarts: int = 5) -> Clustering:
    """k clusters by cosine: assignment to the nearest centroid, which is the normalised sum of its members.

    x [n, d] with rows of length 1. All restarts run side by side as one matrix product with [restarts k, d]; each starts at
    k distinct points, and an empty cluster takes a point that its centroid fits worst. The restart with the largest total
    cosine is kept. scikit-learn's k-means is about as fast on a CPU, but Euclidean, and it would take the vectors off the
    device in every epoch. ``ValueError`` for k < 1 or k > n.
    """
    n, d = x.shape
    if not 1 <= k <= n:
        raise ValueError(f"{k} clusters of {n} points: there must be at least as many points as clusters")
    starts = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(restarts)]).to(x.device)
    G = x[starts.reshape(-1)]
    shift = torch.arange(restarts, device=x.device) * k
    spread = x[:, None].expand(n, restarts, d).reshape(-1, d)
    before: Tensor | None = None
    for turn in range(iterations + 1):
        # in blocks of rows, whose similarities stay in the cache
        found = [(some @ G.T).view(len(some), restarts, k).max(2) for some in x.split(BLOCK)]
        cosine, near = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
        if turn == iterations or (before is not None and torch.equal(near, before)):
            break
        before = near
        place = (near + shift).reshape(-1)
        sums = torch.zeros_like(G).index_add_(0, place, spread)
        size = torch.bincount(place, minlength=restarts * k)
        for empty in torch.nonzero(size == 0).flatten().tolist():
            # marked as taken, so that two empty clusters do not take the same point
            run = empty // k
            worst = int(cosine[:, run].argmin())
            sums[empty], cosine[worst, run] = x[worst], torch.inf
        G = F.normalize(sums, dim=1)
    best = int(cosine.sum(0).argmax())
    return Clustering(near[:, best].contiguous(), G.view(restarts, k, d)[best])


def cluster_weights(assignments: Tensor) -> Callable[..., Tensor]:
    """``w_ij = T - #{t : i and j in one cluster of clustering t}`` for rows i: int64 [b] -> float32 [b, n].

    `assignments` int64 [T, n]. Symmetric, between 0 and T, 0 on the diagonal: companions in every clustering do not count
    as negatives at all.
    """
    small = assignments.to(torch.int32)

    def weights(rows: Tensor, *_: Tensor) -> Tensor:
        out = torch.zeros(len(rows), small.shape[1], device=small.device)
        for one in small:
            out += one[rows, None] != one
        return out

    return weights


def concentration(x: Tensor, found: Clustering, tau: float) -> Tensor:
    """``phi_k = mean distance of the members / log(size + 5)``: how loose each cluster is, scaled to mean tau. [k].

    Distances are Euclidean, between points and centroids of length 1. A cluster of one point or none takes the largest
    value; then all are cut to their 10th and 90th percentile (and from below to a hundredth of the mean). The official
    code puts a cosine in place of the distance, which turns the order round: tight clusters get the largest phi.
    """
    k = len(found.centroids)
    far = (x - found.centroids[found.assignment]).norm(dim=1)
    size = torch.bincount(found.assignment, minlength=k)
    phi = torch.zeros(k, dtype=x.dtype, device=x.device).index_add_(0, found.assignment, far)
    phi = phi / size.clamp(min=1) / torch.log(size.to(x.dtype) + 5)
    phi = torch.where(size > 1, phi, phi[size > 1].max() if bool((size > 1).any()) else phi.new_ones(()))
    phi = phi.clamp(torch.quantile(phi, 0.1), torch.quantile(phi, 0.9))
    if not bool(phi.max() > 0):
        return torch.full_like(phi, tau)
    phi = phi.clamp(min=LOWEST * float(phi.mean()))
    return tau * phi / phi.mean()


def prototype_loss(anchors: Tensor, found: Clustering, phi: Tensor) -> Tensor:
    """``-mean_i log( e^(<a_i, g_c(i)> / phi_c(i)) / (n mean_k e^(<a_i, g_k> / phi_k)) )``, c(i) the cluster of i.

    anchors [n, d], phi [k] -> scalar. Source: Li et al., "Prototypical Contrastive Learning" (ICLR 2021), equation 11, with
    all prototypes as negatives.
    """
    n, k = len(anchors), len(phi)
    logits = anchors @ found.centroids.T / phi
    own = logits.gather(1, found.assignment[:, None])[:, 0]
    return (torch.logsumexp(logits, 1) - own).mean() + torch.log(torch.tensor(n / k, dtype=anchors.dtype, device=anchors.device))


class SoftWeights(nn.Module):
    """``w_ij = sigmoid( v . tanh(V (f_i + c_j) + b) + a )``, a weight for each pair of an anchor and an other.

    ``V (f_i + c_j) = V f_i + V c_j``, so n maps of width d serve n^2 pairs; [hidden, b, n] is the largest array, for a
    block of b anchors. With `row_mean` the weights of an anchor are divided by their mean: without it the loss falls by
    shrinking all of them alike, which teaches nothing.
    """

    def __init__(self, width: int, hidden: int = 16, row_mean: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        self.row_mean = row_mean

    def learned(self) -> Sequence[Tensor]:
        """The parameters in the order in which `weights` takes them."""
        return self.first.weight, self.first.bias, self.second.weight, self.second.bias

    def weights(self, rows: Tensor, anchors: Tensor, others: Tensor, *learned: Tensor) -> Tensor:
        """Rows of w, [b, n], for `weighted_info_nce`."""
        V, b, v, a = learned
        # the hidden units first: sums over them, and over pairs in the gradient, then run along memory
        left, right = F.linear(anchors[rows], V, b).T.contiguous(), F.linear(others, V).T.contiguous()
        hidden = torch.tanh(left[:, :, None] + right[:, None])
        w = torch.sigmoid((v[0] @ hidden.flatten(1)).view(len(rows), -1) + a)
        return w / w.mean(1, keepdim=True) if self.row_mean else w

    def forward(self, anchors: Tensor, others: Tensor) -> Tensor:
        """All of w, [n, n]."""
        return self.weights(torch.arange(len(anchors), device=anchors.device), anchors, others, *self.learned())
