"""The pair predictor: NCN on top of any node vectors, and NCNC, which first fills in common neighbours (completion).

With ``h~ = h + f_x(h)`` a pair (i, j) of an undirected graph has the logit

    g( f_ij(h_i * h_j) + beta f_cn(z_ij) ),      z_ij = sum of h~_u over u in N(i) n N(j)                        (NCN)

and NCNC adds to z_ij the neighbours of one node that the other perhaps has:

    + sum of P(j, u) h~_u over u in N(i) \\ N(j)  +  sum of P(i, u) h~_u over u in N(j) \\ N(i).

P comes from the same predictor without completion (with one less level of it), see `prior_odds`.
Source: Wang et al., ICLR 2024, sections 4 and 5; the blocks' layers as in the official settings.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .sets import (
    Sets,
    check_pairs,
    chunks,
    expected,
    neighbour_sets,
    row_numbers,
    row_totals,
    sampled,
    second_ring,
    sum_rows,
    thinned,
)

Array = NDArray[Any]
# neighbours of one round of the completion: it bounds memory, never a result's law
_BUDGET = 1_000_000


class Vectors(NamedTuple):
    """`h` [n, d] of the encoder, and `mixed` [n, d] (or [n, 1] of ones, where neighbours are counted), which is summed."""

    h: Tensor
    mixed: Tensor


class Counts(NamedTuple):
    """Of each pair: common neighbours `seen`, and `expected` beside them by completion; float64 [B]."""

    seen: Array
    expected: Array


def prior_odds(logit: Tensor, pt: Tensor | float, alpha: float, scale: float, offset: float) -> Tensor:
    """``alpha pt s / (pt s + 1 - s)`` with ``s = sigmoid(scale (logit - offset))``: the chance of a link that is not seen.

    The odds of s are multiplied by pt in (0, 1], since most pairs are no links; pt = 1 gives ``alpha s``. Computed as
    ``alpha sigmoid(scale (logit - offset) + ln pt)``, which is the same and finite for every pt.
    """
    shift = pt.clamp(min=torch.finfo(pt.dtype).tiny).log() if isinstance(pt, Tensor) else math.log(pt)
    return alpha * torch.sigmoid(scale * (logit - offset) + shift)


def block(inputs: int, width: int, dropout: float, norm: bool) -> list[nn.Module]:
    """Linear, LayerNorm (if any), dropout, ReLU."""
    return [nn.Linear(inputs, width), nn.LayerNorm(width) if norm else nn.Identity(), nn.Dropout(dropout), nn.ReLU()]


class NCNPredictor(nn.Module):
    """Logits of pairs from node vectors and the graph's pattern; see the module's text for the formula.

    ``width`` d of the vectors, ``hidden`` of the blocks. `dropout` in the blocks, `edge_dropout` on the pattern before sets
    are taken (each direction by itself, values not rescaled). `norm` puts LayerNorm into the blocks, `mix` is f_x, `tail_act`
    ends f_ij and f_cn with their ReLU, `deep` gives g a second hidden block.

    `common`: ``vectors`` are summed over common neighbours; ``count`` puts their number in their place (h~ = 1);
    ``none`` leaves the pair's product alone (a graph autoencoder). `beyond` adds a term ``f_b`` of the sum over the symmetric
    difference (``difference``), or over N(i) n N2(j) and N2(i) n N(j), N2 the nodes at distance two (``second``).

    `depth` levels of completion (0: NCN, 1: NCNC, 2: its inner logits are completed, too), with `pt`, `alpha`, `scale` and
    `offset` of `prior_odds`; `learn_pt`: ``pt = sigmoid(MLP(h_i * h_j))``. The inner logits take no gradient; they are those
    of the same predictor on h (`clean`), or, for comparison, on h~, which the official code transforms a second time.
    `train_draws` and `test_draws` > 0 sample so many of each difference (unbiased sums).

    Shapes: ``h`` [n, d], ``A`` CSR [n, n] as `sets.pattern` gives it, pairs int64 [2, B] -> [B]. ``ValueError`` for pairs out
    of range or of a node with itself, vectors of another number than nodes, unknown choices, pt outside (0, 1].
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        *,
        dropout: float = 0.0,
        edge_dropout: float = 0.0,
        norm: bool = True,
        mix: bool = True,
        tail_act: bool = True,
        deep: bool = False,
        beta: float = 1.0,
        common: Literal["vectors", "count", "none"] = "vectors",
        beyond: Literal["nothing", "difference", "second"] = "nothing",
        depth: int = 0,
        pt: float = 0.5,
        alpha: float = 1.0,
        scale: float = 5.0,
        offset: float = 3.0,
        learn_pt: bool = False,
        clean: bool = True,
        train_draws: int = 0,
        test_draws: int = 0,
    ) -> None:
        super().__init__()
        if common not in ("vectors", "count", "none") or beyond not in ("nothing", "difference", "second"):
            raise ValueError(
                f"common must be vectors, count or none and beyond nothing, difference or second: {common}, {beyond}"
            )
        if depth < 0 or not 0 < pt <= 1 or alpha < 0:
            raise ValueError(f"depth and alpha must be >= 0 and pt in (0, 1]: {depth}, {alpha}, {pt}")
        if common == "none" and (depth or beyond != "nothing"):
            raise ValueError("without common neighbours there is nothing to complete")
        hidden = hidden or width
        d = 1 if common == "count" else width

        def tail() -> list[nn.Module]:
            return [] if tail_act else [nn.Linear(hidden, hidden)]

        def sums() -> nn.Sequential:
            first = [nn.Linear(d, hidden), nn.Dropout(dropout), nn.ReLU()]
            return nn.Sequential(*first, *block(hidden, hidden, dropout, norm), *tail())

        self.pair: nn.Module = nn.Sequential(*block(width, hidden, dropout, norm), *tail())
        self.common: nn.Module | None = None if common == "none" else sums()
        self.further: nn.Module | None = None if beyond == "nothing" else sums()
        self.mix: nn.Module | None = None
        if mix and common == "vectors":
            first = [nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU()]
            self.mix = nn.Sequential(*first, *block(width, width, dropout, norm))
        layers = block(hidden, hidden, dropout, norm) + (block(hidden, hidden, dropout, norm) if deep else [])
        self.score: nn.Module = nn.Sequential(*layers, nn.Linear(hidden, 1))
        self.beta = nn.Parameter(torch.tensor(float(beta))) if common != "none" else None
        self.prior: nn.Module | None = None
        if learn_pt and depth:
            self.prior = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())
        self.kind, self.beyond, self.depth, self.clean, self.edge_dropout = common, beyond, depth, clean, edge_dropout
        self.pt, self.alpha, self.scale, self.offset = pt, alpha, scale, offset
        self.train_draws, self.test_draws = train_draws, test_draws

    # -- vectors -------------------------------------------------------------------------------------------------------
    def vectors(self, h: Tensor) -> Vectors:
        """What is computed once for all pairs: h and h~."""
        if self.kind == "count":
            return Vectors(h, torch.ones_like(h[:, :1]))
        return Vectors(h, h if self.mix is None else h + self.mix(h))

    # -- logits --------------------------------------------------------------------------------------------------------
    def forward(self, h: Tensor | Vectors, A: sp.csr_array, pairs: Array) -> Tensor:
        """Logits [B] of pairs int64 [2, B]."""
        given = h if isinstance(h, Vectors) else self.vectors(h)
        if given.h.shape[0] != A.shape[0]:
            raise ValueError(f"there are {given.h.shape[0]} vectors, the graph has {A.shape[0]} nodes")
        pairs = check_pairs(pairs, A.shape[0])
        if self.training and self.kind != "none":
            A = thinned(A, self.edge_dropout)
        return self._logits(given, A, pairs, self.depth)

    def _logits(self, given: Vectors, A: sp.csr_array, pairs: Array, depth: int) -> Tensor:
        i, j = (torch.from_numpy(np.ascontiguousarray(end)).to(given.h.device) for end in pairs)
        product = given.h[i] * given.h[j]
        inner = self.pair(product)
        if self.common is None:
            return self.score(inner).squeeze(-1)
        sets = neighbour_sets(A, pairs, differences=depth > 0 or self.beyond == "difference")
        z = sum_rows(sets.both, given.mixed)
        if depth > 0:
            z = z + self._completion(given, A, pairs, sets, product, depth)
        inner = inner + self.beta * self._branch(self.common, z)
        if self.further is not None:
            inner = inner + self._branch(self.further, self._beyond(given, A, pairs, sets))
        return self.score(inner).squeeze(-1)

    def _branch(self, net: nn.Module, z: Tensor) -> Tensor:
        """``net(z)``; without dropout all empty sets, most pairs of a sparse graph, share one answer."""
        some = z.detach().any(1)
        if self.training or 2 * int(some.sum()) > len(z):
            return net(z)
        out: Tensor = net(z.new_zeros(1, z.shape[1])).repeat(len(z), 1)
        out[some] = net(z[some])
        return out

    def _beyond(self, given: Vectors, A: sp.csr_array, pairs: Array, sets: Sets) -> Tensor:
        if self.beyond == "difference":
            assert sets.left is not None and sets.right is not None
            return sum_rows(sets.left, given.mixed) + sum_rows(sets.right, given.mixed)
        ring = second_ring(A)
        first = sum_rows(neighbour_sets(A, pairs, B=ring).both, given.mixed)
        return first + sum_rows(neighbour_sets(ring, pairs, B=A).both, given.mixed)

    # -- completion ----------------------------------------------------------------------------------------------------
    def _completion(self, given: Vectors, A: sp.csr_array, pairs: Array, sets: Sets, product: Tensor, depth: int) -> Tensor:
        pt = None if self.prior is None else self.prior(product).squeeze(-1)
        total: Tensor | None = None
        for rows, logit in self._candidates(given, A, pairs, sets, depth):
            weight = torch.from_numpy(rows.data).to(logit)
            if pt is None:
                P = prior_odds(logit, self.pt, self.alpha, self.scale, self.offset) * weight
                term = sum_rows(expected(rows, P.cpu().numpy()), given.mixed)
            else:  # the gradient of pt runs through the entries themselves
                at = torch.from_numpy(row_numbers(rows)).to(pt.device)
                P = prior_odds(logit, pt[at], self.alpha, self.scale, self.offset) * weight
                columns = torch.from_numpy(rows.indices.astype(np.int64)).to(pt.device)
                term = torch.zeros(pairs.shape[1], given.mixed.shape[1], dtype=P.dtype, device=P.device)
                term = term.index_add(0, at, P[:, None] * given.mixed[columns])
            total = term if total is None else total + term
        assert total is not None
        return total

    @torch.no_grad()
    def _candidates(
        self, given: Vectors, A: sp.csr_array, pairs: Array, sets: Sets, depth: int
    ) -> list[tuple[sp.csr_array, Tensor]]:
        """Both differences, and the inner logit of each of their entries: of (j, u) for u of N(i) \\ N(j), and the reverse."""
        draws = self.train_draws if self.training else self.test_draws
        asked, found = [], []
        for rows, of, near in ((sets.left, *pairs), (sets.right, *pairs[::-1])):
            assert rows is not None
            rows = _apart(rows, near)
            if draws:  # an answer does not hang on what else is asked, nor on which end is named first
                own = of.astype(np.uint64) * np.uint64(A.shape[0]) + near.astype(np.uint64)
                rows = sampled(rows, draws, None if self.training else own)
            found.append(rows)
            asked.append(np.stack([near[row_numbers(rows)], rows.indices.astype(np.int64)]))
        n = A.shape[0]
        both = np.concatenate(asked, axis=1)
        # one inner pair serves all that ask for it, from either end
        keys, place = np.unique(both.min(0) * n + both.max(0), return_inverse=True)
        inner = np.stack([keys // n, keys % n])
        below = given if self.clean else self.vectors(given.mixed)
        logits = [self._logits(below, A, inner[:, cut], depth - 1) for cut in chunks(A, inner, _BUDGET)]
        logit = torch.cat(logits) if logits else given.h.new_zeros(0)
        cut = asked[0].shape[1]
        at = torch.from_numpy(place.reshape(-1)).to(logit.device)
        return [(found[0], logit[at[:cut]]), (found[1], logit[at[cut:]])]

    @torch.no_grad()
    def counts(self, h: Tensor | Vectors, A: sp.csr_array, pairs: Array) -> Counts:
        """Common neighbours of pairs [2, B]: those of the graph, and how many more completion expects."""
        given = h if isinstance(h, Vectors) else self.vectors(h)
        pairs = check_pairs(pairs, A.shape[0])
        sets = neighbour_sets(A, pairs, differences=self.depth > 0)
        more = np.zeros(pairs.shape[1])
        if self.depth:
            i, j = (torch.from_numpy(np.ascontiguousarray(end)).to(given.h.device) for end in pairs)
            pt = None if self.prior is None else self.prior(given.h[i] * given.h[j]).squeeze(-1)
            for rows, logit in self._candidates(given, A, pairs, sets, self.depth):
                odds = self.pt if pt is None else pt[torch.from_numpy(row_numbers(rows)).to(pt.device)]
                P = prior_odds(logit, odds, self.alpha, self.scale, self.offset).cpu().numpy()
                more += row_totals(expected(rows, P * rows.data))
        return Counts(row_totals(sets.both), more)


def _apart(rows: sp.csr_array, near: Array) -> sp.csr_array:
    """Without the entries that would pair a node with itself: they stand where the pair itself is a link."""
    self_pair = near[row_numbers(rows)] == rows.indices
    if not self_pair.any():
        return rows
    values = np.where(self_pair, 0, rows.data).astype(rows.data.dtype)
    rest = sp.csr_array((values, rows.indices, rows.indptr), shape=rows.shape, copy=True)
    rest.eliminate_zeros()
    return rest
