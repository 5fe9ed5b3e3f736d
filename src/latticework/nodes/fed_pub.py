"""FED-PUB: a node classifier for each client, from weights averaged by likeness and masked by the client.

The server never sees a graph. Each client answers the same random graph with its network; the mean of the hidden states is
its functional embedding ``f_k``, and client i gets ``theta_i = sum_j alpha_ij theta_j`` with ``alpha_ij = softmax_j(tau
cos(f_i, f_j))``. A personal mask ``mu_k``, which never leaves the client, multiplies the weights and so selects what of the
average it uses: ``(W * M) x``.

Source: Baek, Jeong, Jin, Yoon, Hwang, "Personalized Subgraph Federated Learning" (ICML 2023, arXiv 2206.10206): functional
embeddings (section 4.1), aggregation by them (4.2), personal masks (4.3). Published figures are those of the official code,
in which neither penalty has a gradient (it regularises detached tensors): they are made with ``l1 = l2 = 0``, and so are the
defaults here. Its proximal term is a norm for each tensor; the paper writes the squared norm. Both stand here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.result import Findings
from latticework.core.svg import lines, picture
from latticework.core.task import Part
from latticework.core.value import setting
from latticework.layers.propagation import SparseOperator, normalised_adjacency
from latticework.layers.sparse_features import SparseFeatures

from .federated import FederatedMethod, FederatedModel, Shared, Strategy, Update, finite
from .network import Features

Array = NDArray[Any]
Graph = SparseOperator | Tensor


class MaskedLinear(nn.Module):
    """``x (W * M)^T + b`` with a mask M of W's shape, learnt and of any sign, one at the start; the bias is not masked.

    In training M is used as it is; in eval mode entries with ``|M| < threshold`` are exactly 0. ``mask=False`` has no M.
    x [n, f] (a tensor or `SparseFeatures`) -> [n, o].
    """

    def __init__(self, features: int, out: int, mask: bool = True, threshold: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, features))
        self.bias = nn.Parameter(torch.zeros(out))
        self.mask = nn.Parameter(torch.ones(out, features)) if mask else None
        self.threshold = threshold
        nn.init.xavier_uniform_(self.weight)

    def active(self) -> Tensor:
        """bool [o, f]: the entries that eval mode uses."""
        return torch.ones_like(self.weight, dtype=torch.bool) if self.mask is None else self.mask.detach().abs() >= self.threshold

    def effective(self) -> Tensor:
        """The weights that the present mode multiplies with."""
        if self.mask is None:
            return self.weight
        return self.weight * (self.mask if self.training else self.mask * self.active())

    def multiply(self, x: Features) -> Tensor:
        """``x (W * M)^T``, without the bias."""
        return x @ self.effective().T if isinstance(x, SparseFeatures) else F.linear(x, self.effective())


class MaskedGCN(nn.Module):
    """Two graph convolutions and a linear classifier, every weight masked.

    ``H1 = ReLU(S x (W1 * M1)^T + b1)``, dropout, ``H2 = S H1 (W2 * M2)^T + b2``,
    ``logits = dropout(ReLU(H2)) (Wc * Mc)^T + bc``. Weights are Glorot uniform, convolution biases 0, the classifier's bias
    Glorot as a row [1, C], masks 1.

    Shapes: x [n, F] (a tensor or `SparseFeatures`), ``S`` [n, n] symmetric normalised with loops -> logits [n, C].
    ``ValueError`` for sizes below 1, a threshold below 0, or x that does not fit.
    """

    def __init__(
        self, features: int, classes: int, hidden: int = 128, dropout: float = 0.5, mask: bool = True, threshold: float = 1e-3
    ) -> None:
        super().__init__()
        if min(features, classes, hidden) < 1:
            raise ValueError(f"features, classes and hidden must be >= 1, are {features}, {classes}, {hidden}")
        if threshold < 0:
            raise ValueError(f"threshold must be >= 0, is {threshold}")
        self.features, self.dropout = features, dropout
        self.first = MaskedLinear(features, hidden, mask, threshold)
        self.second = MaskedLinear(hidden, hidden, mask, threshold)
        self.head = MaskedLinear(hidden, classes, mask, threshold)
        with torch.no_grad():
            bound = math.sqrt(6 / (1 + classes))
            self.head.bias.uniform_(-bound, bound)

    def hidden(self, x: Features, S: Graph) -> Tensor:
        """``H2`` [n, h], before its ReLU."""
        if x.shape[1] != self.features or x.shape[0] != S.shape[0]:
            raise ValueError(f"x is {list(x.shape)}; the network reads {self.features} features of {S.shape[0]} nodes")
        h = F.relu(S @ self.first.multiply(x) + self.first.bias)
        return S @ self.second.multiply(F.dropout(h, self.dropout, self.training)) + self.second.bias

    def forward(self, x: Features, S: Graph) -> Tensor:
        h = F.dropout(F.relu(self.hidden(x, S)), self.dropout, self.training)
        return self.head.multiply(h) + self.head.bias

    @property
    def layers(self) -> tuple[MaskedLinear, ...]:
        return self.first, self.second, self.head

    def shared(self) -> Shared:
        """theta: the weights and biases, which travel; never a mask."""
        return {n: p for n, p in self.named_parameters() if not n.endswith(".mask")}

    def masks(self) -> list[Tensor]:
        """mu: the personal masks, none where the network has no masks."""
        return [layer.mask for layer in self.layers if layer.mask is not None]

    @torch.no_grad()
    def evaluated(self) -> dict[str, Tensor]:
        """theta as eval mode uses it: pruned masks multiplied in."""
        found = {n: p.detach().clone() for n, p in self.shared().items()}
        for name, layer in (("first", self.first), ("second", self.second), ("head", self.head)):
            if layer.mask is not None:
                found[f"{name}.weight"] = layer.weight * layer.mask * layer.active()
        return found

    def active_entries(self) -> int:
        """Weights that are not pruned."""
        return int(sum(int(layer.active().sum()) for layer in self.layers))

    def sparsity(self) -> float:
        """Share of the weights that is pruned."""
        return 1 - self.active_entries() / sum(layer.weight.numel() for layer in self.layers)


def l1_of(masks: Iterable[Tensor]) -> Tensor:
    """``||mu||_1``, with the gradient ``sign(mu)``."""
    return torch.stack([m.abs().sum() for m in masks]).sum()


def distance_to(shared: Iterable[Tensor], received: Iterable[Tensor], squared: bool = False) -> Tensor:
    """``sum_p ||theta_p - received_p||_2`` over the tensors (official code), or the sum of the squared norms (paper).

    The gradient of the norm at 0 is taken as 0.
    """
    parts = [torch.linalg.vector_norm(p - r) for p, r in zip(shared, received, strict=True)]
    return torch.stack([d**2 for d in parts] if squared else parts).sum()


class Proxy(NamedTuple):
    """The random graph that all clients answer: x float32 [n, F] and its normalised operator."""

    x: Tensor
    S: Graph


def proxy_graph(features: int, seed: int, blocks: int = 5, size: int = 100, p: float = 0.1) -> Proxy:
    """A stochastic block model: Erdos-Renyi (p) inside each block, no edge between, features N(0, 1).

    The same for all who draw with the same numbers, so only the seed need be agreed on.
    """
    import networkx as nx

    if min(features, blocks, size) < 1 or not 0 <= p <= 1:
        raise ValueError(f"features, blocks and size must be >= 1 and 0 <= p <= 1, are {features}, {blocks}, {size}, {p}")
    pairs = np.array(nx.random_partition_graph([size] * blocks, p, 0.0, seed=seed).edges(), np.int64).reshape(-1, 2).T
    n = size * blocks
    x = np.random.default_rng([seed, 0x70726F78]).standard_normal((n, features), dtype=np.float32)
    return Proxy(torch.from_numpy(x), normalised_adjacency(np.concatenate([pairs, pairs[::-1]], axis=1), n))


@torch.no_grad()
def functional_embedding(net: MaskedGCN, proxy: Proxy) -> Tensor:
    """``f`` [h]: the mean of H2 over the nodes of the proxy graph, in eval mode. The net is left in its mode."""
    was = net.training
    net.eval()
    try:
        return net.hidden(proxy.x, proxy.S).mean(0)
    finally:
        net.train(was)


def similarities(embeddings: Tensor | Array) -> Array:
    """Cosines between functional embeddings [K, h] -> float64 [K, K]; 0 with an embedding that is zero."""
    f = np.asarray(embeddings, np.float64)
    length = np.linalg.norm(f, axis=1, keepdims=True)
    unit = np.divide(f, length, out=np.zeros_like(f), where=length > 0)
    return np.asarray(np.clip(unit @ unit.T, -1, 1))


def mixing_weights(S: Array, tau: float = 3.0, weighting: Literal["softmax", "cosine"] = "softmax") -> Array:
    """``alpha_ij = exp(tau s_ij) / sum_l exp(tau s_il)``, or ``s_ij / sum_l s_il`` with s at least 0; float64 [K, K], rows sum to 1.

    j runs over all participants, i among them. A client that is unlike (a cosine below 0) has no part in a mean; a row of cosines without
    one above 0 is mixed uniformly. ``ValueError`` for tau < 0, no client, or a matrix that is not square.
    """
    S = np.asarray(S, np.float64)
    if S.ndim != 2 or S.shape[0] != S.shape[1] or not len(S):
        raise ValueError(f"similarities must be [K, K] with K >= 1, are {list(S.shape)}")
    if tau < 0:
        raise ValueError(f"tau must be >= 0, is {tau}")
    if weighting == "softmax":
        e = np.exp(tau * (S - S.max(axis=1, keepdims=True)))
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    if weighting != "cosine":
        raise ValueError(f"weighting must be softmax or cosine, not {weighting!r}")
    S = np.maximum(S, 0)
    total = S.sum(axis=1, keepdims=True)
    return np.where(total > 1e-12, S / np.where(total > 1e-12, total, 1), 1 / len(S))


def aggregate(alpha: Array, theta: Tensor) -> Tensor:
    """``theta_i <- sum_j alpha_ij theta_j``: one product [K, K] x [K, P]."""
    return torch.from_numpy(np.asarray(alpha)).to(theta.dtype) @ theta


# -- the strategy and the recipe -----------------------------------------------------------------------------------------
class FedPubStrategy(Strategy):
    """The server's side: personal averages by the likeness of functional embeddings, of `width` numbers where it is given."""

    def __init__(
        self, start: Tensor, tau: float = 3.0, weighting: Literal["softmax", "cosine"] = "softmax", width: int | None = None
    ) -> None:
        super().__init__(start)
        self.tau, self.weighting, self.width = tau, weighting, width
        self.similarity: dict[tuple[str, str], float] = {}

    def usable(self, update: Update) -> str | None:
        if update.embedding is None:
            return "no functional embedding"
        if self.width is not None and update.embedding.shape != (self.width,):
            return f"a functional embedding of {update.embedding.numel()} numbers instead of {self.width}"
        return None if finite(update.embedding) else "a functional embedding that is not finite"

    def combine(self, names: Sequence[str], theta: Tensor, updates: Sequence[Update]) -> Tensor:
        f = torch.stack([u.embedding for u in updates if u.embedding is not None])
        zero = [name for name, row in zip(names, f, strict=True) if not bool(row.any())]
        if zero:
            self.notes.append(f"the functional embedding of {', '.join(zero)} is zero: it is like nobody (cosine taken as 0)")
        self.common = theta.mean(0)
        S = similarities(f)
        self.similarity |= {(a, b): float(S[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}
        return aggregate(mixing_weights(S, self.tau, self.weighting), theta)

    def seen(self, names: Sequence[str]) -> Tensor:
        """The newest similarity of each pair, float32 [K, K]; NaN where two were never in one round."""
        return torch.tensor([[self.similarity.get((a, b), math.nan) for b in names] for a in names])


class FedPubModel(FederatedModel):
    """K personal models, and what the server learnt about their likeness."""

    def explain(self, part: Part) -> Findings:
        """Similarity between clients at the end (a heat map), pruned weights and validation per round, bytes sent."""
        found = super().explain(part)
        if "similarity" not in self.history:  # a party's own model: the server alone knows the others
            return found
        names = list(self.schema["clients"])
        last = self.history["similarity"][-1].numpy()
        table = [
            {"client": a, **{b: _number(v) for b, v in zip(names, row, strict=True)}} for a, row in zip(names, last, strict=True)
        ]
        apart = last[~np.eye(len(names), dtype=bool)]
        apart = apart[np.isfinite(apart)]
        scalars = {
            "similarity between clients, least": float(apart.min()) if len(apart) else None,
            "similarity between clients, most": float(apart.max()) if len(apart) else None,
            "share of a client's own weights in its average": self._own(last),
            **found.scalars,
        }
        sparse = self.history["sparsity"].mean(1).tolist()
        figures = {
            "similarity between clients": heat_map(last, names, "cosine of functional embeddings, last round"),
            **found.figures,
            "pruned weights": lines(
                {"share pruned": list(enumerate(sparse))}, "share of weights pruned, mean over clients", "round"
            ),
        }
        return Findings(scalars, {"similarity between clients": table, **found.tables}, figures)

    def _own(self, S: Array) -> float | None:
        if not np.isfinite(S).all():
            return None
        method: Any = self.method
        return float(np.diag(mixing_weights(S, method.tau, method.weighting)).mean())


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def heat_map(values: Array, names: Sequence[str], title: str) -> str:
    """A square matrix as an SVG picture with its scale."""

    def draw(axes: Any) -> None:
        image = axes.imshow(values, cmap="viridis")
        places = range(0, len(names), max(len(names) // 20, 1))
        axes.set_xticks(places, [names[i] for i in places], rotation=90)
        axes.set_yticks(places, [names[i] for i in places])
        axes.figure.colorbar(image, ax=axes)

    return picture(draw, title)


class FedPub(FederatedMethod):
    """A personal node classifier for each of several clients that may not pool their graphs.

    A round: each client gets its own average, trains `epochs` full batches with Adam, and sends its weights and its answer
    to a random graph; masks, the optimiser's moments, features, edges and labels stay with it. The server averages for each
    client by likeness. After local training the client is judged on its validation nodes; `read_out` says which round's
    models are used: the last, that of the best mean validation, or for each client its own best one.

    Compare with `local`: where that is as good, no party need send anything; ``tau=0`` shows what the masks alone give. tau acts
    on cosines, which lie close together after many rounds, so a small tau is near to uniform; it is the field to tune. The
    penalties of the paper are 0 as in the figures that were published. The distance to the received weights has no gradient where
    a round begins, so with one full batch a round (``epochs=1``) `l2` changes nothing; it acts from ``epochs=2`` on.
    """

    name: ClassVar[str] = "fed-pub"
    model: ClassVar[type[FederatedModel]] = FedPubModel

    tau: float = setting(3.0, "sharpness of the weights by likeness; 0: uniform", ge=0, le=1e4, search=(1.0, 20.0))
    l1: float = setting(0.0, "L1 of the masks in the loss", ge=0, le=1)
    l2: float = setting(0.0, "distance to the received weights in the loss, from the second round on", ge=0, le=100)
    proximal: Literal["norm", "squared"] = setting("norm", "that distance: a norm for each tensor, or squared")
    threshold: float = setting(1e-3, "mask entries below this size are 0 when the model is used", ge=0, le=1)
    weighting: Literal["softmax", "cosine"] = setting("softmax", "weights from similarities")
    mask: bool = setting(True, "personal masks")

    def module(self, features: int, classes: int, plain: bool = False) -> nn.Module:
        return MaskedGCN(features, classes, self.hidden, self.dropout, self.mask and not plain, self.threshold)

    def strategy(self, start: Tensor) -> Strategy:
        return FedPubStrategy(start, self.tau, self.weighting, self.hidden)

    def proxy(self, features: int, seed: int, device: str) -> Proxy:
        x, S = proxy_graph(features, seed)
        assert isinstance(S, SparseOperator)
        return Proxy(x.to(device), S if device == "cpu" else S.to_torch(device))

    def embedding(self, net: Any, proxy: Any) -> Tensor | None:
        return functional_embedding(net, proxy).cpu()

    def penalty(self, net: Any, received: Mapping[str, Tensor], round: int) -> Tensor | float:
        loss: Tensor | float = 0.0
        if self.l1 and self.mask:
            loss = loss + self.l1 * l1_of(net.masks())
        if self.l2 and round > 0:
            loss = loss + self.l2 * distance_to(net.shared().values(), received.values(), self.proximal == "squared")
        return loss
