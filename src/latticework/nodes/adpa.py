"""AMUD and ADPA: should a directed graph be modelled as directed, and a classifier that can do it.

AMUD compares how well the two-arc patterns of a directed graph predict that two nodes are alike: if
they do so equally, the direction carries nothing and the graph may be symmetrised. Its score is
``S = sqrt(mean_{i<j} (R2_i - R2_j)^2) / max_i R2_i`` over ``AA``, ``A A^T`` and ``A^T A``; above
0.5 the arcs are worth keeping. ADPA propagates the features along every pattern once, without
learning, and then classifies each node alone, with attention over hops and over patterns, so that
training costs nothing that depends on the graph.

Source: "Breaking the Entanglement of Homophily and Heterophily in Semi-supervised Node
Classification" (ICDE 2024, arXiv 2312.04111). There is no published code for AMUD; ADPA follows the
published code except for its hop attention, which reshapes a vertical stack so that a node receives
the scores of other nodes. Here the weights of a node depend on that node alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Predictor
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.data.graph import joined
from latticework.layers.directed import adjacency, directed_patterns, normalise_patterns, row_blocks
from latticework.layers.propagation import SparseOperator
from latticework.layers.sparse_features import FeatureLinear, SparseFeatures, compact

from .network import NodeModel, NodeNetwork, features_of, fit_network

# AT and ATAT are the transposes of A and AA; agreement is symmetric, so their counts are the same.
_COUNTED = ("A", "AA", "AAT", "ATA")
_TWIN = {"A": "A", "AT": "A", "AA": "AA", "ATAT": "AA", "AAT": "AAT", "ATA": "ATA"}
_SCORED = ("AA", "AAT", "ATA")

Form = Literal["density-free", "literal"]


class AMUD(NamedTuple):
    """What :func:`amud` found. Dicts are keyed by pattern: A, AT, AA, ATAT, AAT, ATA.

    ``S`` score in [0, 0.8165]; ``decision`` "directed" where ``S > threshold``, else "undirected";
    ``r`` Pearson correlation of link and agreement (NaN where not asked for, see ``amud``);
    ``kappa`` chance-corrected agreement of linked pairs; ``R2`` the squares that ``S`` compares;
    ``empty`` True where no counted pair is linked (``r = kappa = R2 = 0`` there); ``links`` number
    of linked ordered pairs; ``agreeing`` sum of the agreement over them; ``chance`` mean agreement
    of all pairs; ``pairs`` number of ordered pairs; ``nodes`` number of nodes counted; ``interval``
    95 % percentile interval of S over resampled nodes, None where not asked for.
    """

    S: float
    decision: Literal["directed", "undirected"]
    threshold: float
    form: Form
    profile: Literal["labels", "features"]
    r: dict[str, float]
    kappa: dict[str, float]
    R2: dict[str, float]
    empty: dict[str, bool]
    links: dict[str, int]
    agreeing: dict[str, float]
    chance: float
    pairs: int
    nodes: int
    interval: tuple[float, float] | None


def amud(
    A: sp.spmatrix,
    profile: np.ndarray | sp.spmatrix,
    form: Form = "density-free",
    *,
    threshold: float = 0.5,
    bootstrap: int = 0,
    rng: np.random.Generator | None = None,
    budget: int = 8_000_000,
) -> AMUD:
    """Says whether the direction of the arcs carries information about the nodes.

    Own self-loops are dropped, arcs and then each pattern G are binarised, the diagonal is ignored.
    Over the ordered pairs u != v of profiled nodes, ``e = [G_uv > 0]`` and ``s`` is the agreement:
    ``[y_u = y_v]`` for labels, the cosine for features. With p_e, p_s the means of e and s, p_es the
    mean of e s, h = p_es / p_e the agreement of linked pairs:

    - ``form="literal"``: ``R2 = r^2``, ``r = (p_es - p_e p_s) / sqrt(p_e (1 - p_e) var(s))``, the
      Pearson correlation that the paper describes. It falls with the density of a pattern, and
      calls nearly every public graph directed;
    - ``form="density-free"``: ``R2 = kappa^2``, ``kappa = (h - p_s) / (1 - p_s)``. This is this
      library's statistic, **not the paper's**. It was kept out of about eight variants because it
      gave the remembered decisions on eight graphs: that agreement is a fit, not a validation.

    ``S = sqrt(mean_{i<j} (R2_i - R2_j)^2) / max R2`` over AA, AAT, ATA (0 where max R2 < 1e-12). A
    symmetric A gives exactly 0. An empty pattern counts with R2 = 0 and is flagged, not dropped: S
    is then at least 0.707, so read ``empty`` beside it. Squares lose the sign: a pattern that
    joins unlike nodes as strongly as another joins like ones is not told apart from it, and a graph
    of cyclic flow between classes with as many links inside as between them comes out undirected.

    ``bootstrap`` > 0 resamples the profiled nodes that often (pairs of copies of one node are not
    counted) and gives the 95 % percentile interval of S; S being a spread, resampling pushes it
    upwards where the graph is small. Replicates with one class only are left out.

    Shapes: ``A`` sparse ``[n, n]`` (any weight but 0 is an arc; row = source); ``profile`` integer
    labels ``[n]``, -1 for unknown, or features ``[n, f]``, dense or sparse, without missing values.
    With features ``r`` is computed in the literal form only (it needs all pairs: O(n^2 f)), NaN
    otherwise. Labels cost O(path count), streamed in blocks of about ``budget`` paths.
    Errors: ``ValueError`` for no arcs, missing or single-class labels, features all alike, wrong
    shapes, an unknown form, a bootstrap without ``rng``.
    Source: arXiv 2312.04111, AMUD; score and threshold reconstructed (no code was published).
    """
    if form not in ("density-free", "literal"):
        raise ValueError(f"form must be 'density-free' or 'literal', not {form!r}")
    if bootstrap < 0 or (bootstrap > 0 and rng is None):
        raise ValueError("bootstrap must be >= 0, and needs a numpy Generator as rng")
    arcs = _plain_arcs(A)
    agreement = _agreement(profile, arcs.shape[0])
    nodes = agreement.nodes
    k = len(nodes)

    # One column of node multiplicities per replicate, the first all ones: the point value and the
    # interval are then the same bilinear forms, and integer counts stay exact in float64.
    weights = np.ones((k, 1 + bootstrap))
    if rng is not None and bootstrap:
        weights[:, 1:] = rng.multinomial(k, np.full(k, 1.0 / k), size=bootstrap).T
    pairs, chance, square = agreement.moments(weights, second=form == "literal")
    if np.isclose(chance[0], 1.0, rtol=0, atol=1e-12):
        raise ValueError(
            "all profiled nodes are alike (one class only): chance agreement is 1 and neither form "
            "is defined; give labels of at least two classes"
        )

    counted = {name: _count(arcs, name, agreement, weights, budget) for name in _COUNTED}
    with np.errstate(divide="ignore", invalid="ignore"):
        stats = {name: _statistics(*c, pairs, chance, square) for name, c in counted.items()}
    literal = form == "literal"
    R2 = {name: (r if literal else kappa) ** 2 for name, (r, kappa) in stats.items()}
    S = _spread(np.stack([R2[name] for name in _SCORED]))
    interval = None
    if bootstrap:
        valid = S[1:][np.isfinite(S[1:])]
        if len(valid):
            low, high = np.percentile(valid, [2.5, 97.5])
            interval = (float(low), float(high))

    def six(values: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: float(values[twin][0]) for name, twin in _TWIN.items()}

    links = six({name: c[0] for name, c in counted.items()})
    return AMUD(
        S=float(S[0]),
        decision="directed" if S[0] > threshold else "undirected",
        threshold=threshold,
        form=form,
        profile=agreement.kind,
        r=six({name: s[0] for name, s in stats.items()}),
        kappa=six({name: s[1] for name, s in stats.items()}),
        R2=six(R2),
        empty={name: value == 0 for name, value in links.items()},
        links={name: int(value) for name, value in links.items()},
        agreeing=six({name: c[1] for name, c in counted.items()}),
        chance=float(chance[0]),
        pairs=int(pairs[0]),
        nodes=k,
        interval=interval,
    )


def _plain_arcs(A: sp.spmatrix) -> sp.csr_matrix:
    arcs = sp.coo_matrix(A)
    if arcs.shape[0] != arcs.shape[1]:
        raise ValueError(f"the adjacency must be square, not {arcs.shape}")
    # A loop before a product would make every arc a path of two: it must go first.
    keep = (arcs.row != arcs.col) & (arcs.data != 0)
    if not keep.any():
        raise ValueError("the graph has no arcs between different nodes: there is no direction to judge")
    ones = np.ones(int(keep.sum()), dtype=np.int32)
    plain = sp.csr_matrix((ones, (arcs.row[keep], arcs.col[keep])), shape=arcs.shape)
    plain.data[:] = 1
    return plain


class _Labels:
    kind: Literal["labels"] = "labels"

    def __init__(self, labels: np.ndarray) -> None:
        self.nodes = np.flatnonzero(labels >= 0)
        if len(self.nodes) < 2:
            raise ValueError(f"labels are missing: {len(self.nodes)} of {len(labels)} nodes have one, AMUD needs two")
        self.y = np.unique(labels[self.nodes], return_inverse=True)[1]

    def of(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return (self.y[rows] == self.y[columns]).astype(np.float64)

    def moments(self, weights: np.ndarray, second: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own = (weights**2).sum(0)
        pairs = weights.sum(0) ** 2 - own
        sizes = sp.csr_matrix((np.ones(len(self.y)), (self.y, np.arange(len(self.y))))) @ weights
        same = ((sizes**2).sum(0) - own) / pairs
        return pairs, same, same  # s is 0 or 1, so its square has the same mean


class _Cosine:
    kind: Literal["features"] = "features"

    def __init__(self, features: np.ndarray | sp.spmatrix) -> None:
        X = sp.csr_matrix(features, dtype=np.float64)
        if not np.isfinite(X.data).all():
            raise ValueError("features hold missing or infinite values")
        norms = np.sqrt(np.asarray(X.multiply(X).sum(axis=1)).ravel())
        if not norms.any():
            raise ValueError("features are all zero: the cosine is undefined")
        inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
        self.X = sp.csr_matrix(sp.diags(inverse) @ X)
        self.own = (norms > 0).astype(np.float64)
        self.nodes = np.arange(X.shape[0])

    def of(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        values = np.empty(len(rows))
        for i in range(0, len(rows), 1 << 17):
            span = slice(i, i + (1 << 17))
            product = self.X[rows[span]].multiply(self.X[columns[span]])
            values[span] = np.asarray(product.sum(axis=1)).ravel()
        return values

    def moments(self, weights: np.ndarray, second: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = weights.sum(0) ** 2 - (weights**2).sum(0)
        loops = self.own @ weights**2
        mean = (np.square(self.X.T @ weights).sum(0) - loops) / pairs
        if not second:
            return pairs, mean, np.full_like(mean, np.nan)
        total = -loops
        for i in range(0, len(self.own), 512):  # the n x n cosines are never held whole
            block = (self.X[i : i + 512] @ self.X.T).toarray() ** 2
            total = total + ((block @ weights) * weights[i : i + 512]).sum(0)
        return pairs, mean, total / pairs


def _agreement(profile: np.ndarray | sp.spmatrix, n: int) -> _Labels | _Cosine:
    shape = profile.shape if sp.issparse(profile) else np.asarray(profile).shape
    if not shape or shape[0] != n or len(shape) > 2:
        raise ValueError(f"profile must be labels [{n}] or features [{n}, f], not {tuple(shape)}")
    if len(shape) == 2:
        return _Cosine(profile)
    labels = np.asarray(profile)
    if labels.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, -1 where missing, not {labels.dtype}")
    return _Labels(labels.astype(np.int64))


def _count(
    arcs: sp.csr_matrix,
    name: str,
    agreement: _Labels | _Cosine,
    weights: np.ndarray,
    budget: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(linked pairs, their agreement), each per column of ``weights``; paths pass any node."""
    back = sp.csr_matrix(arcs.T)
    out, into = arcs[agreement.nodes], sp.csr_matrix(back[agreement.nodes].T)
    # to the profiled nodes / from them: only the ends of a path need a profile
    if name == "A":
        left, right = out[:, agreement.nodes], None
    elif name == "AA":
        left, right = out, into
    elif name == "AAT":
        left, right = out, sp.csr_matrix(out.T)
    else:
        left, right = back[agreement.nodes], into
    k = len(agreement.nodes)
    linked, agreeing = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    blocks = [(0, k)] if right is None else row_blocks(left, right, budget)
    for i, j in blocks:
        block = sp.coo_matrix(left[i:j] if right is None else left[i:j] @ right)
        keep = block.row + i != block.col
        rows, columns = block.row[keep], block.col[keep]
        same = agreement.of(rows + i, columns)
        if weights.shape[1] == 1:
            linked += len(rows)
            agreeing += same.sum()
            continue
        shape = (j - i, k)
        ends = weights[i:j]
        ones = np.ones(len(rows))
        linked += ((sp.csr_matrix((ones, (rows, columns)), shape=shape) @ weights) * ends).sum(0)
        agreeing += ((sp.csr_matrix((same, (rows, columns)), shape=shape) @ weights) * ends).sum(0)
    return linked, agreeing


def _statistics(
    linked: np.ndarray,
    agreeing: np.ndarray,
    pairs: np.ndarray,
    chance: np.ndarray,
    square: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    density = linked / pairs
    deviation = np.sqrt(density * (1 - density) * (square - chance**2))
    r = np.where(deviation == 0, 0.0, (agreeing / pairs - density * chance) / deviation)
    kappa = np.where(linked == 0, 0.0, (agreeing / linked - chance) / (1 - chance))
    alike = np.isclose(chance, 1.0, rtol=0, atol=1e-12)  # one class only: neither is defined
    return np.where(alike, np.nan, r), np.where(alike, np.nan, kappa)


def _spread(R2: np.ndarray) -> np.ndarray:
    """``[patterns, replicates] -> [replicates]``: rms difference over the largest."""
    i, j = np.triu_indices(len(R2), 1)
    top = R2.max(0)
    rms = np.sqrt(np.mean((R2[i] - R2[j]) ** 2, axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(top < 1e-12, 0.0, rms / top)


# ---------------------------------------------------------------------------------------------- ADPA

Cache = tuple[tuple[Tensor | SparseFeatures, ...], ...]


def hop_weights(hops: int, hop_weight: Literal["log", "one"] = "log") -> list[float]:
    """``w_1 .. w_K``: ``1 + ln(1/l) + 1e-6`` ("log", the published code) or 1 ("one").

    Errors: ``ValueError`` for more than two hops with "log": from the third on the weight is
    negative and would turn the features round. Source: published ADPA code.
    """
    if hops < 0:
        raise ValueError(f"hops must be >= 0, not {hops}")
    if hop_weight == "one":
        return [1.0] * hops
    if hop_weight != "log":
        raise ValueError(f"hop_weight must be 'log' or 'one', not {hop_weight!r}")
    if hops > 2:
        raise ValueError(
            f"hops={hops} with the logarithmic weight: 1 - ln(l) is negative from l = 3 on; take hops <= 2 or hop_weight='one'"
        )
    return [1.0 + math.log(1.0 / hop) + 1e-6 for hop in range(1, hops + 1)]


@torch.no_grad()
def propagate_patterns(
    patterns: Mapping[str, sp.spmatrix],
    x: Tensor,
    hops: int = 2,
    hop_weight: Literal["log", "one"] = "log",
) -> Cache:
    """Propagates the features along every pattern, once and without learning.

    ``X_G^(0) = X`` and ``X_G^(l) = G (w_l X_G^(l-1))`` for each normalised pattern G, with ``w`` of
    :func:`hop_weights`. The result is indexed ``[pattern][hop]``, in the order of ``patterns``;
    hop 0 of every pattern *is* the given tensor, so P patterns and K hops hold P K + 1 matrices.

    Shapes: patterns sparse ``[n, n]`` (normalised, see ``layers.directed``), ``x`` floating
    ``[n, f]`` -> P tuples of K + 1 tensors ``[n, f]`` of the dtype and device of ``x``.
    Errors: ``ValueError`` for no pattern, other shapes or an integer ``x``; see ``hop_weights``.
    Source: arXiv 2312.04111, propagation of ADPA; weights as in the published code.
    """
    weights = hop_weights(hops, hop_weight)
    if not patterns:
        raise ValueError("no pattern to propagate along")
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be floating [n, f], not {x.dtype} {tuple(x.shape)}")
    cache = []
    for name, pattern in patterns.items():
        if pattern.shape != (x.shape[0], x.shape[0]):
            raise ValueError(f"pattern {name} is {pattern.shape}, but x has {x.shape[0]} rows")
        matrix = SparseOperator.from_scipy(sp.csr_array(pattern))
        states = [x]
        for weight in weights:
            states.append((matrix @ states[-1]).mul_(weight))  # a scalar commutes with G
        cache.append(tuple(states))
    return tuple(cache)


def select_nodes(cache: Cache, nodes: Tensor) -> Cache:
    """The rows ``nodes`` (int64 ``[b]``) of a cache: a mini-batch. Hop 0 stays one shared tensor."""
    raw = cache[0][0][nodes]
    return tuple(tuple(raw if hop == 0 else state[nodes] for hop, state in enumerate(states)) for states in cache)


def compact_cache(cache: Cache, most: float = 0.1) -> Cache:
    """The same cache with the matrices that are mostly zero kept sparse, which the first layer reads as they are."""
    raw = compact(cache[0][0], most)
    return tuple(tuple(raw if hop == 0 else compact(state, most) for hop, state in enumerate(states)) for states in cache)


def _product(state: Tensor | SparseFeatures, matrix: Tensor) -> Tensor:
    """``X M^T``."""
    return state @ matrix.T if isinstance(state, SparseFeatures) else F.linear(state, matrix)


class HopAttention(nn.Module):
    """Attention of a node over its own hops.

    With ``c_i = [X^(0)_i || ... || X^(K)_i]`` the weights of node i are ``softmax_l sigmoid(v .
    [c_i || X^(l)_i] + b)``. The sigmoid keeps any two weights of a node within a factor e. No other
    node enters; the published code mixes nodes and hops in a reshape, which is not reproduced.

    Shapes: K + 1 tensors ``[b, f]`` -> weights ``[b, K + 1]``. Source: arXiv 2312.04111, hop
    attention; the gate as in the published code.
    """

    def __init__(self, features: int, hops: int) -> None:
        super().__init__()
        self.features, self.hops = features, hops
        self.gate = nn.Linear((hops + 2) * features, 1)

    def directions(self) -> tuple[Tensor, Tensor]:
        """``v`` in its two parts: context ``[K + 1, f]`` and own ``[f]``."""
        v = self.gate.weight.view(self.hops + 2, self.features)
        return v[:-1], v[-1]

    def weigh(self, context: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
        """Weights from the products ``X^(l) . v_context_l`` and ``X^(l) . v_own``, each ``[b]``."""
        total = torch.stack(list(context)).sum(0) + self.gate.bias
        return torch.softmax(torch.sigmoid(torch.stack(list(own), dim=1) + total[:, None]), dim=1)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        context, own = self.directions()
        return self.weigh([h @ context[hop] for hop, h in enumerate(states)], [h @ own for h in states])


class Attention(NamedTuple):
    """``branches`` names (patterns, then "raw"); ``pattern`` ``[P + 1]`` scalars of the branches;
    ``hop`` ``[P, b, K + 1]`` weights per pattern and node (pattern-first: one row for all, P = 1)."""

    branches: tuple[str, ...]
    pattern: Tensor
    hop: Tensor


class ADPA(nn.Module):
    """Adaptive directed pattern aggregation: a node classifier over cached propagated features.

    ``order="hop-first"`` (the published code): per pattern ``Y_G = sum_l a_l X_G^(l)`` by
    :class:`HopAttention`, ``Z_G = MLP_G(Y_G)``, and for the raw features ``Z_0 = MLP_0(X)``; then
    ``logits = Linear([w_1 Z_1 || ... || w_P Z_P || w_0 Z_0])`` with one learnable scalar per branch,
    drawn from a standard normal. ``order="pattern-first"`` (the paper's presentation, details
    reconstructed): the branches are scaled and joined at every hop, ``H^(l) = [w_G MLP_G(X_G^(l))
    || w_0 MLP_0(X)]``, one hop attention sums the ``H^(l)``, then Linear. An MLP is ``depth`` times
    Linear -> ReLU -> Dropout, dropout also after the last.

    Shapes: ``forward(cache, nodes=None)``: cache of :func:`propagate_patterns`, nodes int64 ``[b]``
    or None for all -> logits ``[b, classes]`` of the cache's dtype. Nodes do not touch one another,
    so any batch of nodes gives the same rows (in eval mode). A node's cost is free of the graph.
    For repeated steps on the same nodes take ``select_nodes(cache, nodes)`` once.
    Errors: ``ValueError`` for a cache of other patterns, hops or features, or bad sizes.
    Source: arXiv 2312.04111, ADPA.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        patterns: Sequence[str] = ("A", "AT", "AA", "ATAT", "AAT", "ATA"),
        hops: int = 2,
        width: int = 32,
        depth: int = 1,
        dropout: float = 0.5,
        order: Literal["hop-first", "pattern-first"] = "hop-first",
    ) -> None:
        super().__init__()
        if min(features, classes, width, depth, len(patterns)) < 1 or hops < 0:
            raise ValueError("features, classes, width, depth, patterns must be >= 1 and hops >= 0")
        if order not in ("hop-first", "pattern-first"):
            raise ValueError(f"order must be 'hop-first' or 'pattern-first', not {order!r}")
        self.patterns, self.hops, self.features = tuple(patterns), hops, features
        self.order, self.width = order, width
        branches = len(self.patterns) + 1
        self.first = nn.ModuleList(FeatureLinear(features, width) for _ in range(branches))
        self.rest = nn.ModuleList(self._rest(width, depth, dropout) for _ in range(branches))
        if order == "hop-first":
            gates = [HopAttention(features, hops) for _ in self.patterns]
        else:
            gates = [HopAttention(branches * width, hops)]
        self.hop_attention = nn.ModuleList(gates)
        self.pattern_attention = nn.Parameter(torch.randn(branches))
        self.head = nn.Linear(branches * width, classes)

    @staticmethod
    def _rest(width: int, depth: int, dropout: float) -> nn.Sequential:
        layers: list[nn.Module] = [nn.ReLU(), nn.Dropout(dropout)]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers)

    def forward(self, cache: Cache, nodes: Tensor | None = None) -> Tensor:
        return self.head(self._encode(cache, nodes)[0])

    def encode(self, cache: Cache, nodes: Tensor | None = None) -> Tensor:
        """What the head reads: ``[b, (P + 1) width]``."""
        return self._encode(cache, nodes)[0]

    @torch.no_grad()
    def attention(self, cache: Cache, nodes: Tensor | None = None) -> Attention:
        """The weights now in force, per branch and, for each node, per pattern and hop."""
        hop = self._encode(cache, nodes)[1]
        return Attention((*self.patterns, "raw"), self.pattern_attention.detach().clone(), hop)

    def _encode(self, cache: Cache, nodes: Tensor | None) -> tuple[Tensor, Tensor]:
        self._check(cache)
        if nodes is not None:
            cache = select_nodes(cache, nodes)
        return self._hop_first(cache) if self.order == "hop-first" else self._pattern_first(cache)

    def _check(self, cache: Cache) -> None:
        if len(cache) != len(self.patterns) or any(len(s) != self.hops + 1 for s in cache):
            raise ValueError(
                f"the cache must hold {len(self.patterns)} patterns of {self.hops + 1} hops each, not "
                f"{[len(states) for states in cache]}"
            )
        if cache[0][0].shape[1] != self.features:
            raise ValueError(f"x has {cache[0][0].shape[1]} features, the model {self.features}")

    def _hop_first(self, cache: Cache) -> tuple[Tensor, Tensor]:
        # The first layer is linear, so it may be applied to every hop before the hops are summed:
        # each cached matrix is then read once a pass, and no gradient of its size is ever formed.
        width, count = self.width, len(self.patterns)
        directions = [gate.directions() for gate in self.hop_attention]
        columns = [torch.cat([self.first[g].weight, directions[g][0][:1], directions[g][1][None]]) for g in range(count)]
        raw = _product(cache[0][0], torch.cat([*columns, self.first[count].weight]))
        start = raw[:, : count * (width + 2)].unflatten(1, (count, width + 2)).unbind(1)
        outputs, weights = [], []
        for g, states in enumerate(cache):
            context, own = directions[g]
            products = [start[g]]
            for hop in range(1, self.hops + 1):
                matrix = torch.cat([self.first[g].weight, context[hop : hop + 1], own[None]])
                products.append(_product(states[hop], matrix))
            a = self.hop_attention[g].weigh([z[:, width] for z in products], [z[:, width + 1] for z in products])
            y = sum(a[:, hop : hop + 1] * z[:, :width] for hop, z in enumerate(products))
            outputs.append(self.rest[g](y + self.first[g].bias))
            weights.append(a)
        outputs.append(self.rest[count](raw[:, count * (width + 2) :] + self.first[count].bias))
        scaled = [w * z for w, z in zip(self.pattern_attention, outputs, strict=True)]
        return torch.cat(scaled, dim=1), torch.stack(weights)

    def _pattern_first(self, cache: Cache) -> tuple[Tensor, Tensor]:
        scale = self.pattern_attention
        raw = scale[-1] * self.rest[-1](self.first[-1](cache[0][0]))
        joined = []
        for hop in range(self.hops + 1):
            parts = [scale[g] * self.rest[g](self.first[g](states[hop])) for g, states in enumerate(cache)]
            joined.append(torch.cat([*parts, raw], dim=1))
        a = self.hop_attention[0](joined)
        return sum(a[:, hop : hop + 1] * h for hop, h in enumerate(joined)), a[None]


# ---------------------------------------------------------------------------------------- the recipes


class ADPAModel(NodeModel):
    """A trained ADPA; it keeps the side (directed or undirected) that was taken in the fit."""

    def _sided(self, part: Part) -> Part:
        return part._replace(schema={**part.schema, "direction": self.schema["direction"]})

    def predict(self, part: Part) -> Any:
        return super().predict(self._sided(part))

    def explain(self, part: Part) -> Findings:
        """S, the side taken, and the attention per pattern and hop."""
        net = self.net
        assert isinstance(net, ADPA)
        found = net.attention(*self.method.inputs(self._sided(part), "cpu"))
        hops = [
            {"pattern": name, **{f"hop {k}": float(w) for k, w in enumerate(row.mean(0))}}
            for name, row in _named_hops(net, found)
        ]
        weights = [{"pattern": name, "weight": float(w)} for name, w in zip(found.branches, found.pattern, strict=True)]
        scalars = {"direction": self.schema["direction"], **self.schema.get("amud", {})}
        figure = bars(list(found.branches), [abs(float(w)) for w in found.pattern], "size of the pattern weights", "pattern")
        return Findings(
            scalars, {"hop attention (mean over nodes)": hops, "pattern weights": weights}, {"pattern weights": figure}
        )


def _named_hops(net: ADPA, found: Attention) -> list[tuple[str, Tensor]]:
    names = net.patterns if net.order == "hop-first" else ("all patterns",)
    return list(zip(names, found.hop, strict=True))


class ADPAMethod(NodeNetwork):
    """Attention over directed patterns of a graph and over hops, on features that are propagated once.

    ``direction=auto`` asks AMUD (density-free form, on the train labels of this fold alone) whether to keep the arcs'
    direction; where the train labels cannot say (one class, no arcs) the graph is symmetrised. Arcs count alike whatever
    their weight, one of weight 0 is none. The published protocol:
    Adam, at most 500 epochs, 50 without a better validation accuracy.
    """

    name: ClassVar[str] = "adpa"
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[NodeModel]] = ADPAModel

    direction: Literal["auto", "directed", "undirected"] = setting("auto", "whose side to take; auto asks AMUD in the fit")
    hops: int = setting(2, "K, propagation steps; at most 2 with the logarithmic weight", ge=0, le=20)
    r: float = setting(0.42749, "normalisation D^(r-1) G D^(-r) by row sums", ge=0, le=1, search=(0.0, 1.0))
    hidden: int = setting(32, "width of each branch", ge=1, le=4096)
    depth: int = setting(1, "layers of each branch", ge=1, le=8, search=(1, 2))
    order: Literal["hop-first", "pattern-first"] = setting("hop-first", "hop attention first (published code) or pattern first")
    hop_weight: Literal["log", "one"] = setting("log", "w_l = 1 + ln(1/l) + 1e-6, or 1")
    dropout: float = setting(0.64251, "after every layer", ge=0, lt=1, search=(0.0, 0.8))
    lr: float = setting(0.06036, "learning rate of Adam", gt=0, le=1, search=(1e-3, 1e-1, "log"))
    weight_decay: float = setting(0.01273, "on all parameters", ge=0, le=1, search=(1e-5, 2e-2, "log"))
    epochs: int = setting(500, "at most", ge=1, le=100_000)
    patience: int = setting(50, "epochs without a better validation value before the fit stops", ge=1)
    stop: Literal["loss", "metric"] = setting("metric", "the epoch is chosen by the headline, or by validation loss")
    row_normalise: bool = setting(False, "divide a node's features by their sum where all are 0 or 1 (bags of words)")
    cap: int = setting(0, "keep the largest counts of each row of a second-order pattern; 0: all", ge=0)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if self.hop_weight == "log" and self.hops > 2:
            return "with hop_weight=log the weight turns negative from the third hop on; use hops=2 or hop_weight=one"
        return super().refuses(task, facts)

    def fit(self, train: Part, valid: Part | None, run: Run) -> NodeModel:
        side, found = self._side(train, run)
        schema = {**train.schema, "direction": side, "amud": found}
        return fit_network(self, train._replace(schema=schema), valid, run)

    def _side(self, train: Part, run: Run) -> tuple[str, dict[str, Any]]:
        if self.direction != "auto":
            return self.direction, {}
        labels = np.full(int(train.data.num_nodes), -1, np.int64)
        y = train.truth.y
        if y.ndim == 2:
            run.notes.append("AMUD reads one label a node: with several the graph is symmetrised")
            return "undirected", {}
        labels[train.query.rows] = y
        try:
            found = amud(adjacency(_arcs(train), len(labels)), labels)
        except ValueError as reason:
            run.notes.append(f"AMUD cannot say ({reason}): the graph is symmetrised")
            return "undirected", {}
        run.notes.append(f"AMUD on the train labels: S = {found.S:.3f}, {found.decision} (threshold {found.threshold})")
        return found.decision, {"S": found.S, "threshold": found.threshold}

    def module(self, features: int, classes: int, schema: Mapping[str, Any]) -> nn.Module:
        names = ("A", "AT", "AA", "ATAT", "AAT", "ATA") if schema["direction"] == "directed" else ("A", "AA")
        return ADPA(features, classes, names, self.hops, self.hidden, self.depth, self.dropout, self.order)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        n = int(part.data.num_nodes)
        x = features_of(part, "cpu", self.row_normalise)
        dense = x.dense() if isinstance(x, SparseFeatures) else x
        A = adjacency(_arcs(part), n)
        patterns = directed_patterns(A, directed=part.schema["direction"] == "directed", cap=self.cap or None)
        cache = propagate_patterns(normalise_patterns(patterns, self.r), dense, self.hops, self.hop_weight)
        if device == "cpu":
            return (compact_cache(cache),)
        return (tuple(tuple(state.to(device) for state in states) for states in cache),)


def _arcs(part: Part) -> np.ndarray:
    """int64 [2, m]: the arcs of a part's graph; weights say no more than whether an arc is there."""
    return np.asarray(joined(part.data.edge_index, part.data.edge_weight).numpy())


class AMUDProbe(Probe):
    """Whether the direction of a graph's edges carries information about its nodes: treat them as directed, or not.

    With `fold` it reads the train labels of that fold of the task alone; without, all labels. ``form=literal`` is the
    correlation that the paper describes, ``density-free`` this library's own statistic (see `amud`).
    """

    name: ClassVar[str] = "amud"
    kinds: ClassVar[tuple[str, ...]] = ("graph",)
    form: Form = setting("density-free", "which statistic")
    profile: Literal["labels", "features"] = setting("labels", "what tells whether two nodes are alike")
    task: Task | None = setting(None, "with fold: the task whose train labels are read (left out: node-classification)")
    fold: str | None = setting(None, "a fold of the task; left out: all labels")
    bootstrap: int = setting(200, "resamples of nodes for the interval; 0: none", ge=0, le=100_000)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("amud needs a graph")
        graph = data.read()
        labels, which = graph.y, "all labels"
        if self.profile == "features":
            if graph.x is None:
                raise UserError("the nodes have no features; use -s profile=labels")
            profile, which = graph.x, "features"
        else:
            if labels is None or labels.ndim == 2:
                raise UserError("amud needs one label a node; use -s profile=features")
            if self.fold is not None:
                from .tasks import NodeClassification

                task = (self.task or NodeClassification()).for_data(data)
                train = task.fold(data, self.fold).train
                labels = np.full(graph.nodes, -1, np.int64)
                labels[train.query.rows] = train.truth.y
                which = f"train labels of fold {self.fold}"
            profile = labels
        try:
            found = amud(
                adjacency(joined(graph.edge_index, graph.weight), graph.nodes), profile, self.form,
                bootstrap=self.bootstrap, rng=run.rng("bootstrap"),
            )  # fmt: skip
        except ValueError as reason:
            raise UserError(f"AMUD cannot be computed: {reason}") from None
        rows = [
            {
                "pattern": name, "r": found.r[name], "kappa": found.kappa[name], "R2": found.R2[name],
                "linked pairs": found.links[name], "empty": found.empty[name],
            }
            for name in found.r
        ]  # fmt: skip
        scalars = {
            "S": found.S,
            "decision": found.decision,
            "advice": f"treat your edges as {found.decision}",
            "threshold": found.threshold,
            "form": found.form,
            "read": which,
            "interval low": None if found.interval is None else found.interval[0],
            "interval high": None if found.interval is None else found.interval[1],
            "chance agreement": found.chance,
        }
        return Findings(
            scalars,
            {"patterns": rows},
            {"R2 per pattern": bars(list(found.R2), list(found.R2.values()), "R2 per pattern", "pattern")},
        )
