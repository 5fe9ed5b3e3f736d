"""The conditional VAE of a node's neighbours, and the score by which the paper chooses one on the way.

Source: Liu et al., "Local Augmentation for Graph Neural Networks" (ICML 2022), section 3; sizes and the large
variant from the official code.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.layers.masks import dropped
from latticework.layers.propagation import SparseOperator
from latticework.layers.sparse_features import FeatureLinear, SparseFeatures

Features = Tensor | SparseFeatures
Variant = Literal["bernoulli", "gaussian"]
MOST_AT_ONCE = 1 << 24  # numbers of dropped-out features held at a time
AT_ONCE_ON_A_CPU = 1 << 18  # what a core's cache holds


def neighbour_pairs(A: sp.sparray) -> Tensor:
    """Centre and neighbour of every stored entry that is not zero: int64 [2, m], in the order of rows.

    A [n, n]; with a symmetric A each edge gives two pairs, a loop one. An edge stored twice counts once.
    """
    A = sp.csr_array(A, copy=True)
    A.sum_duplicates()
    A.eliminate_zeros()
    centre = np.repeat(np.arange(A.shape[0], dtype=np.int64), np.diff(A.indptr))
    return torch.from_numpy(np.stack([centre, A.indices.astype(np.int64)]))


class Reconstruction(NamedTuple):
    """`output` [b, f]: logits (bernoulli) or values in [-1, 1] (gaussian); `mean` and `log_variance` [b, L] of z."""

    output: Tensor
    mean: Tensor
    log_variance: Tensor


class NeighbourCVAE(nn.Module):
    """``p(x_j | x_i)`` for an edge ij: the features of a neighbour, given those of the centre.

    Encoder: ``[x_j || x_i] -> Linear(hidden) -> ReLU -> mu, log sigma^2`` [L]; ``z = mu + exp(log sigma^2 / 2) eps``.
    Decoder: ``[z || x_i] -> Linear(hidden) -> ReLU -> Linear(f)``, then a sigmoid. A map of joined inputs is kept as one map
    for each of them, so the centres' share of the decoder can be computed once, and from sparse features (`condition`).

    ``variant="bernoulli"``: features in [0, 1]. ``"gaussian"`` (the official code's large variant): BatchNorm after each
    linear map, tanh at the end; features are scaled to [-1, 1] by `fit_scale`, and samples scaled back.

    Shapes: x, c [b, f] float32, eps [b, L] -> `Reconstruction`. ``ValueError`` for an unknown variant or sizes below 1.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: int, latent: int = 10, hidden: int = 256, variant: Variant = "bernoulli") -> None:
        super().__init__()
        if variant not in ("bernoulli", "gaussian"):
            raise ValueError(f"variant must be bernoulli or gaussian, not {variant!r}")
        if min(features, latent, hidden) < 1:
            raise ValueError(f"features, latent and hidden must be >= 1, are {features}, {latent}, {hidden}")
        self.variant, self.latent = variant, latent
        self.from_neighbour, self.from_centre = nn.Linear(features, hidden, bias=False), nn.Linear(features, hidden)
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.from_noise, self.from_condition = nn.Linear(latent, hidden, bias=False), FeatureLinear(features, hidden)
        self.output = nn.Linear(hidden, features)
        # drawn as one map of the joined input would be
        _joint_start(self.from_neighbour, self.from_centre)
        _joint_start(self.from_noise, self.from_condition)
        wide = variant == "gaussian"
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) if wide else nn.Identity() for size in (hidden, hidden, features))
        if wide:
            self.register_buffer("shift", torch.zeros(features))
            self.register_buffer("scale", torch.ones(features))

    def fit_scale(self, x: Tensor) -> None:
        """Scale columns to [-1, 1] from now on, where x [n, f] does not lie there (gaussian)."""
        if bool((x.abs() <= 1).all()):
            return
        low, high = x.amin(0), x.amax(0)
        self.shift.copy_((low + high) / 2)
        self.scale.copy_(torch.where(high > low, (high - low) / 2, torch.ones_like(low)))

    def scaled(self, x: Features) -> Features:
        """Features as the network sees them."""
        if self.variant == "bernoulli":
            return x
        return ((x.dense() if isinstance(x, SparseFeatures) else x) - self.shift) / self.scale

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """``mu`` and ``log sigma^2`` [b, L] of q(z | x, c), for scaled features."""
        h = F.relu(self.norms[0](self.from_neighbour(x) + self.from_centre(c)))
        return self.mean(h), self.log_variance(h)

    def condition(self, c: Features) -> Tensor:
        """The centres' share of the decoder's first map [b, hidden], for scaled features."""
        return self.from_condition(c)

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """z [b, L], condition [b, hidden] -> logits, or values in [-1, 1] (gaussian), [b, f]."""
        h = F.relu(self.norms[1](self.from_noise(z) + condition))
        out = self.norms[2](self.output(h))
        return torch.tanh(out) if self.variant == "gaussian" else out

    def forward(self, x: Tensor, c: Tensor, eps: Tensor) -> Reconstruction:
        mean, log_variance = self.encode(x, c)
        z = mean + torch.exp(0.5 * log_variance) * eps
        return Reconstruction(self.decode(z, self.condition(c)), mean, log_variance)

    @torch.no_grad()
    def sample(self, z: Tensor, condition: Tensor) -> Tensor:
        """Features of a neighbour [b, f] on the scale of the data: the decoder's mean for z [b, L] ~ N(0, I)."""
        out = self.decode(z, condition)
        return out.sigmoid_() if self.variant == "bernoulli" else out * self.scale + self.shift


def _joint_start(*maps: nn.Linear) -> None:
    """Torch's default start of one linear map that takes the inputs of all, bias included."""
    bound = 1 / math.sqrt(sum(m.in_features for m in maps))
    for layer in maps:
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound)


def cvae_loss(found: Reconstruction, x: Tensor, variant: Variant = "bernoulli") -> Tensor:
    """``(sum of errors - 1/2 sum(1 + log sigma^2 - mu^2 - sigma^2)) / b``: the negative ELBO of a batch.

    Errors are cross-entropies of x [b, f] in [0, 1] (bernoulli), or squares (gaussian, scaled x). A scalar.
    """
    if variant == "bernoulli":
        error = F.binary_cross_entropy_with_logits(found.output, x, reduction="sum")
    else:
        error = F.mse_loss(found.output, x, reduction="sum")
    mu, log_variance = found.mean, found.log_variance
    divergence = -0.5 * (1 + log_variance - mu * mu - log_variance.exp()).sum()
    return (error + divergence) / len(x)


def row_normalise(x: Tensor) -> Tensor:
    """Rows of x [n, f] >= 0 divided by their sum; a row of zeros stays."""
    return row_normalise_(x.clone())


def row_normalise_(x: Tensor) -> Tensor:
    """The same in place: a second matrix of all nodes costs more than the division."""
    return x.div_(x.sum(1, keepdim=True).clamp_(min=1e-12))


# -- choosing the generator ----------------------------------------------------------------------------------------------
class Field(NamedTuple):
    """What two convolutions read to answer for t nodes: `nodes` int64 [r2] within two hops; S cut to [r1, r2] and [t, r1]."""

    nodes: Tensor
    inner: SparseOperator
    outer: SparseOperator


def receptive_field(S: SparseOperator, asked: Tensor) -> Field:
    """The part of S [n, n] that two convolutions need for the nodes `asked` int64 [t]; their answers are the whole graph's."""
    matrix = S.to_scipy()
    outer = matrix[asked.numpy()]
    near = np.unique(outer.indices)
    inner = matrix[near]
    far = np.unique(inner.indices)
    return Field(
        torch.from_numpy(far.astype(np.int64)),
        SparseOperator.from_scipy(sp.csr_array(inner[:, far])),
        SparseOperator.from_scipy(sp.csr_array(outer[:, near])),
    )


class ReferenceGCN(nn.Module):
    """The two-layer GCN whose dropout passes judge samples; evaluated on a `Field` alone.

    It stays in training mode: without dropout all passes agree and every sample scores 0.
    """

    def __init__(self, features: int, classes: int, hidden: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features, hidden, bias=False), nn.Linear(hidden, classes, bias=False)
        self.first_bias, self.second_bias = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(classes))
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.xavier_uniform_(self.second.weight)
        self.dropout = dropout

    def forward(self, x: Tensor, field: Field, passes: int = 1) -> Tensor:
        """x [r2, f] -> logits [passes, t, C], each pass with dropout of its own; all passes in one product of S."""
        if passes < 1:
            raise ValueError(f"passes must be >= 1, is {passes}")
        h = field.inner @ self._first_of(x, passes).transpose(0, 1).reshape(x.shape[0], -1)
        h = F.relu(h.view(len(h), passes, -1) + self.first_bias)
        h = self.second(F.dropout(h, self.dropout, self.training))
        out = field.outer @ h.reshape(len(h), -1)
        return out.view(len(out), passes, -1).transpose(0, 1) + self.second_bias

    def _first_of(self, x: Tensor, passes: int) -> Tensor:
        """The first map of each pass, [passes, r2, hidden], without holding all that was dropped out at a time."""
        n, f = x.shape
        most = AT_ONCE_ON_A_CPU if x.device.type == "cpu" else MOST_AT_ONCE
        rows = n if torch.is_grad_enabled() else max(1, min(n, most // max(1, f)))
        block = max(1, min(passes, most // max(1, rows * f)))
        parts = [
            self.first(self._dropped(part, min(block, passes - i))) for i in range(0, passes, block) for part in x.split(rows)
        ]
        each = math.ceil(n / rows)
        return torch.cat([torch.cat(parts[i : i + each], 1) for i in range(0, len(parts), each)])

    def _dropped(self, x: Tensor, passes: int) -> Tensor:
        """x under `passes` masks [passes, r2, f]."""
        if not self.training or self.dropout == 0:
            return x.expand(passes, *x.shape)
        return dropped(x, passes, self.dropout)


def acquisition(logits: Tensor, y: Tensor) -> Tensor:
    """``U = NLL(mean_m p_m) - mean_m NLL(p_m)`` over nodes: <= 0 by Jensen, 0 where all passes agree.

    logits [M, t, C] of M stochastic passes, y int64 [t]. A scalar; the larger, the better.
    """
    picked = torch.log_softmax(logits, -1).gather(2, y[None, :, None].expand(len(logits), -1, 1))[..., 0]
    return picked.mean() - (torch.logsumexp(picked, 0) - math.log(len(logits))).mean()
