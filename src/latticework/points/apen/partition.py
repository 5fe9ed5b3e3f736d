"""Partitions: a mixture of isotropic Gaussians with one fixed variance on the seeds of the points, fitted by EM.

    log r_ij = log pi_j - |y_i - mu_j|^2 / (2 var) - logsumexp_j(...)     responsibilities, the soft assignment W
    mu_j = sum_i r_ij y_i / sum_i r_ij,  pi_j = mean_i r_ij               one round

Everything here commutes with motions of all seeds at once, and with their order (the start is the point farthest from the mean).
Clouds come side by side, seeds [B, n, 3] with a mask bool [B, n] where they differ in size; components that were merged
away, or that hold nothing, have weight 0 (``log_pi = -inf``).

Source: Atzmon et al., "Approximately Piecewise E(3) Equivariant Point Networks" (ICLR 2024, arXiv 2402.08529), section 3.3; the gradient
through the fixed point is that of its appendix with the observed instead of the expected information, which is exact.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Gradient = Literal["implicit", "unrolled", "none"]


class Mixture(NamedTuple):
    """mu [B, k, 3]; log_pi [B, k], -inf where there is no component; `var`; log-likelihoods [rounds + 1, B] before each round and
    after the last; `merged`: before which of them components were merged or dropped (there the likelihood may fall)."""

    mu: Tensor
    log_pi: Tensor
    var: float
    likelihood: Tensor
    merged: tuple[int, ...] = ()

    @property
    def alive(self) -> Tensor:
        """int64 [B]: components that hold something."""
        return self.log_pi.isfinite().sum(1)


def farthest_points(Y: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """int64 [B, k]: the point farthest from the mean, then always that farthest from all chosen. A cloud of fewer points repeats some."""
    B, n, _ = Y.shape
    there = torch.ones(B, n, dtype=torch.bool, device=Y.device) if mask is None else mask
    w = there[..., None].to(Y.dtype)
    far = (Y - (Y * w).sum(1, keepdim=True) / w.sum(1, keepdim=True)).square().sum(2)
    far = far.masked_fill(~there, -1.0)
    every = torch.arange(B, device=Y.device)
    chosen = [far.argmax(1)]
    least = torch.full_like(far, torch.inf).masked_fill(~there, -1.0)
    for _ in range(k - 1):
        least = torch.minimum(least, (Y - Y[every, chosen[-1]][:, None]).square().sum(2))
        chosen.append(least.argmax(1))
    return torch.stack(chosen, 1)


def joint(Y: Tensor, mu: Tensor, log_pi: Tensor, var: float) -> Tensor:
    """log pi_j N(y_i; mu_j, var) [B, n, k]."""
    squared = torch.cdist(Y, mu, compute_mode="donot_use_mm_for_euclid_dist").square()
    return log_pi[:, None] - squared / (2 * var) - 1.5 * torch.log(torch.tensor(2 * torch.pi * var, dtype=Y.dtype))


def log_responsibilities(Y: Tensor, mixture: Mixture) -> Tensor:
    """log r [B, n, k]: rows of exp sum to 1."""
    return torch.log_softmax(joint(Y, mixture.mu, mixture.log_pi, mixture.var), 2)


def _held(Y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Seeds with zeros for padding, and w [B, n, 1]: 1 where there is a point."""
    if mask is None:
        return Y, torch.ones_like(Y[..., :1])
    return Y.masked_fill(~mask[..., None], 0.0), mask[..., None].to(Y.dtype)


def _round(Y: Tensor, mu: Tensor, log_pi: Tensor, var: float, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One round: new means and weights, and the log-likelihood before it. w [B, n, 1]: 1 where there is a point."""
    each = joint(Y, mu, log_pi, var)
    top = each.amax(2, keepdim=True)
    # below e^-80 nothing counts, and numbers too small to be normal are slow; components that are no more stay at 0
    r = (each - top).clamp(min=-80.0).exp() * log_pi.isfinite()[:, None]
    scale = r.sum(2, keepdim=True)
    total = top + scale.log()
    r = r * (w / scale)
    held = r.sum(1)
    found = held > 0
    safe = torch.where(found, held, torch.ones_like(held))
    moved = torch.where(found[..., None], (r.mT @ Y) / safe[..., None], mu)
    weight = torch.where(found, (safe / w.sum(1)).log(), torch.full_like(held, -torch.inf))
    return moved, weight, (total * w).sum((1, 2))


def merge(mu: Tensor, log_pi: Tensor, var: float, closer: float) -> tuple[Tensor, Tensor]:
    """Components whose Mahalanobis distance |mu_i - mu_j| / sqrt(var) is below `closer`, and chains of them, become one: weights add, means
    are the weighted mean. The one with the least number stays."""
    B, k, _ = mu.shape
    alive = log_pi.isfinite()
    near = torch.cdist(mu, mu, compute_mode="donot_use_mm_for_euclid_dist") < closer * var**0.5
    near = near & alive[:, :, None] & alive[:, None]
    near = near | torch.eye(k, dtype=torch.bool, device=mu.device)
    number = torch.arange(k, device=mu.device).expand(B, k)
    while True:  # the least number along chains
        least = torch.where(near, number[:, None], k).amin(2)
        if torch.equal(least, number):
            break
        number = least
    pi = log_pi.exp()
    total = torch.zeros_like(pi).scatter_add(1, number, pi)
    sums = torch.zeros_like(mu).scatter_add(1, number[..., None].expand_as(mu), mu * pi[..., None])
    stays = (number == torch.arange(k, device=mu.device)) & alive
    safe = torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(stays[..., None], sums / safe[..., None], mu), torch.where(stays, safe.log(), -torch.inf)


def drop(log_pi: Tensor, below: float) -> Tensor:
    """Components of less weight vanish; the others' weights sum to 1. The heaviest always stays."""
    light = (log_pi < torch.log(torch.tensor(below))) & (log_pi < log_pi.amax(1, keepdim=True))
    return torch.log_softmax(log_pi.masked_fill(light, -torch.inf), 1)


def em(
    Y: Tensor, k: int, var: float, rounds: int = 16, mask: Tensor | None = None, *, closer: float = 0.5, lighter: float = 1e-4,
    start: Tensor | None = None,
) -> Mixture:  # fmt: skip
    """EM from farthest points (or from means `start` [B, k, 3]), with fixed variance and without gradient.

    Y [B, n, 3], mask bool [B, n]; k components, cut to what the smallest cloud can hold only by merging. Components are
    merged before round 1 and after half of the rounds (`closer`, a Mahalanobis distance; 0: never), light ones dropped after three
    quarters (`lighter`; 0: never). Padding may hold anything. ``ValueError`` for k < 1, no cloud, a cloud with fewer than k points, and
    seeds that are not finite.
    """
    if k < 1:
        raise ValueError(f"{k} components; at least 1 is needed")
    if not len(Y):
        raise ValueError(f"seeds of shape {list(Y.shape)}: there is no cloud")
    if var <= 0:
        raise ValueError(f"a variance of {var:g}; it must be above 0")
    sizes = torch.full((len(Y),), Y.shape[1]) if mask is None else mask.sum(1).cpu()
    if int(sizes.min()) < k:
        raise ValueError(f"a cloud has {int(sizes.min())} points and {k} components are asked; use fewer components")
    with torch.no_grad():
        Y, w = _held(Y.detach(), mask)
        if not bool(torch.isfinite(Y).all()):
            raise ValueError("the seeds hold a value that is not finite")
        if start is None:
            index = farthest_points(Y, k, mask)
            start = Y.gather(1, index[..., None].expand(-1, -1, 3))
        mu, log_pi = start.to(Y.dtype), Y.new_full(start.shape[:2], 1 / start.shape[1]).log()
        likelihood: list[Tensor] = []
        merged: list[int] = []
        for number in range(rounds):
            if closer and number in {0, rounds // 2} and not (number == 0 and rounds == 1):
                mu, log_pi = merge(mu, log_pi, var, closer)
                merged.append(number)
            if lighter and rounds > 3 and number == 3 * rounds // 4:
                log_pi = drop(log_pi, lighter)
                merged.append(number)
            mu, log_pi, value = _round(Y, mu, log_pi, var, w)
            likelihood.append(value)
        likelihood.append((joint(Y, mu, log_pi, var).logsumexp(2) * w[..., 0]).sum(1))
        return Mixture(mu, log_pi, var, torch.stack(likelihood), tuple(merged))


def unrolled(Y: Tensor, mixture: Mixture, mask: Tensor | None = None) -> Mixture:
    """One more round with the gradient by the seeds, through responsibilities and means, at constants that have none."""
    Y, w = _held(Y, mask)
    mu, log_pi, _ = _round(Y, mixture.mu.detach(), mixture.log_pi.detach(), mixture.var, w)
    return mixture._replace(mu=mu, log_pi=log_pi)


def implicit(Y: Tensor, mixture: Mixture, mask: Tensor | None = None) -> Mixture:
    """One Newton step from the fixed point, which leaves it where it is and gives its derivative by the seeds.

    theta = theta* - H^+ g(theta*, Y), g the gradient of the log-likelihood by the means and the logits of the weights, H its second
    derivative at theta* (a constant), so that d theta / d Y = -H^+ dg/dY: the implicit function theorem. Exact where theta* is a fixed
    point; the pseudo-inverse leaves out the free shift of the logits and components that hold nothing.
    """
    B, _n, _ = Y.shape
    k, var = mixture.mu.shape[1], mixture.var
    Y, w = _held(Y, mask)
    count = w.sum(1)  # [B, 1]
    mu, log_pi = mixture.mu.detach(), mixture.log_pi.detach()
    alive, pi = log_pi.isfinite(), log_pi.exp()
    r = torch.softmax(joint(Y, mu, log_pi, var), 2) * w
    # gradients: by mu_j sum_i r_ij (y_i - mu_j) / var, by the logits sum_i r_ij - n pi_j
    by_mu = (r.mT @ Y - r.sum(1)[..., None] * mu) / var
    g = torch.cat([by_mu.flatten(1), r.sum(1) - count * pi], 1)
    with torch.no_grad():
        held = r.detach()
        s = (Y.detach()[:, :, None] - mu[:, None]) / var  # [B, n, k, 3]
        u = torch.cat([(held[..., None] * s).flatten(2), held], 2)  # [B, n, 4 k]
        H = -(u.mT @ u)
        outer = torch.einsum("bnk,bnkc,bnkd->bkcd", held, s, s) - torch.eye(3).to(Y) * held.sum(1)[..., None, None] / var
        cross = torch.einsum("bnk,bnkc->bkc", held, s)
        j = torch.arange(k, device=Y.device)
        rows = (3 * j[:, None] + torch.arange(3, device=Y.device)).flatten()
        blocks = H[:, : 3 * k, : 3 * k].reshape(B, k, 3, k, 3)
        blocks[:, j, :, j] += outer.transpose(0, 1)
        H[:, rows, 3 * k + j.repeat_interleave(3)] += cross.flatten(1)
        H[:, 3 * k + j.repeat_interleave(3), rows] += cross.flatten(1)
        H[:, 3 * k + j, 3 * k + j] += held.sum(1) - count * pi
        H[:, 3 * k :, 3 * k :] += count[..., None] * pi[:, :, None] * pi[:, None]
        there = torch.cat([alive.repeat_interleave(3, 1), alive], 1).to(Y.dtype)
        H = H * there[:, :, None] * there[:, None]
        inverse = torch.linalg.pinv(H.double(), hermitian=True, rtol=1e-9).to(Y.dtype)
    step = -(inverse @ (g * there)[..., None])[..., 0]
    step = step - step.detach()  # the constants may be a little off the fixed point: only the derivative is taken
    moved = torch.where(alive[..., None], mu + step[:, : 3 * k].unflatten(1, (k, 3)), mu)
    return mixture._replace(mu=moved, log_pi=torch.log_softmax(log_pi + torch.where(alive, step[:, 3 * k :], 0.0), 1))


class Partition(NamedTuple):
    """part int64 [B, n], number of the component of each point (-1 where there is none); W [B, n], the assignment to that part, 1 in
    value, which carries the gradient of its responsibility; uncertainty [B, n] = 1 - max_j r_ij; log_r [B, n, k]; the mixture."""

    part: Tensor
    W: Tensor
    uncertainty: Tensor
    log_r: Tensor
    mixture: Mixture


def partition(
    Y: Tensor, k: int, var: float, rounds: int = 16, mask: Tensor | None = None, *, gradient: Gradient = "implicit",
    draw: Literal["argmax", "sampled"] = "argmax", generator: torch.Generator | None = None, temperature: float = 10.0,
    closer: float = 0.5, lighter: float = 1e-4,
) -> Partition:  # fmt: skip
    """The hard partition of seeds Y [B, n, 3], by the largest responsibility or a draw from them (Gumbel-softmax, straight through)."""
    mixture = em(Y, k, var, rounds, mask, closer=closer, lighter=lighter)
    if gradient != "none" and Y.requires_grad and torch.is_grad_enabled():
        mixture = (implicit if gradient == "implicit" else unrolled)(Y, mixture, mask)
    log_r = log_responsibilities(_held(Y, mask)[0], mixture)
    if draw == "sampled":
        noise = -torch.empty(log_r.shape, dtype=log_r.dtype).exponential_(generator=generator).log().to(log_r.device)
        part, soft = (log_r.detach() + noise).argmax(2), torch.softmax((log_r + noise) / temperature, 2)
    else:
        part, soft = log_r.detach().argmax(2), log_r.exp()
    own = soft.gather(2, part[..., None])[..., 0]
    W = 1 + own - own.detach()
    uncertainty = 1 - log_r.detach().amax(2).exp()
    if mask is not None:
        part, uncertainty = part.masked_fill(~mask, -1), uncertainty.masked_fill(~mask, 0.0)
    return Partition(part, W, uncertainty, log_r, mixture)


def impure(part: Tensor, truth: Tensor) -> Tensor:
    """float [n]: 1 for points of a part that holds points of two true parts, else 0. part, truth int64 [n]; a truth below 0 is unknown.

    Its mean is the share of parts that are not inside a true part, weighted by points: the second term of the bound.
    """
    known = truth >= 0
    k = int(part.max()) + 1 if part.numel() else 0
    low, high = truth.new_full((k,), 2**62), truth.new_full((k,), -1)
    low = low.scatter_reduce(0, part[known], truth[known], "amin")
    high = high.scatter_reduce(0, part[known], truth[known], "amax")
    return ((low != high) & (high >= 0))[part].double()
