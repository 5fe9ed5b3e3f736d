"""The join of two N-caches and the network around it (sections 4.2 and 4.3 of NAT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.layers.time_code import TimeCode

from .cache import Hash, NCache, Slots

CODES = 64  # a bit for each of three hops and two sides
REPEAT, COMMON = 2 + 8, 2 + 16  # v is a first neighbour of u; a first neighbour of both


class Rows(NamedTuple):
    """The joint neighbourhood of P pairs, one row for each pair and key: pair, key, code int64 [r], vector float [r, F]."""

    pair: Tensor
    key: Tensor
    code: Tensor
    vector: Tensor


def join(seen: Slots, hop: Tensor, left: Tensor, right: Tensor, together: bool = True) -> Rows:
    """Keys of two nodes' caches brought together, for P pairs (u, v) at once.

    ``code = sum over where the key occurs of 2^k (in u's hop k) and 2^(k + 3) (in v's)``; a key sits once a hop at most, so
    the sum is a bit mask of 0 .. 63. ``vector = sum of its z`` over the same places. `seen` are the caches of R nodes, hop
    int64 [S] the hop of each slot, left and right int64 [P] the pairs as rows of `seen`. ``together=False`` keeps the keys of u
    and v apart, a row for each: what two separate vectors would know (the control).
    """
    pairs, total = len(left), len(hop)
    side = torch.cat([left, right])
    used = seen.key[side] >= 0  # hop 0 always is
    entry = torch.nonzero(used.view(-1)).flatten()
    at, slot = entry // total, entry % total
    of, second = at % pairs, at // pairs
    key = seen.key[side[at], slot]
    span = int(seen.key.max()) + 1 if len(key) else 1
    name = of * span + key
    if not together:
        name = name * 2 + second
    names, inverse = torch.unique(name, return_inverse=True)
    code = torch.zeros_like(names).index_add_(0, inverse, torch.ones_like(entry) << (hop[slot] + 3 * second))
    z = seen.z.reshape(-1, seen.z.shape[2]).index_select(0, side[at] * total + slot)
    vector = z.new_zeros(len(names), z.shape[1]).index_add(0, inverse, z)
    if not together:
        names = names // 2
    return Rows(names // span, names % span, code, vector)


class Pool(nn.Module):
    """Rows of a pair to one vector: ``p = mean over heads of sum_i a_hi W_h row_i + b``.

    Without `attention` a_hi = 1, as in the released code. With it ``a_h = softmax over the pair's rows of
    LeakyReLU_.2(a_h . W_h row_i)``, as in the paper. Sum and map commute, so rows are summed first and mapped once a pair; for
    the same reason the second dropout is on the mapped sum (the released code drops from each mapped row).

    Shapes: rows [r, D], pair int64 [r] -> [pairs, P].
    """

    def __init__(self, width: int, out: int, heads: int = 2, attention: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(heads, width, out))
        self.bias = nn.Parameter(torch.zeros(out))
        # the bound of one map to all heads, as in the released code
        nn.init.uniform_(self.weight, -1, 1)
        with torch.no_grad():
            self.weight *= math.sqrt(6 / (width + heads * out))
        self.score = nn.Parameter(torch.empty(heads, out)) if attention else None
        if self.score is not None:
            nn.init.xavier_uniform_(self.score)

    def forward(self, rows: Tensor, pair: Tensor, pairs: int) -> Tensor:
        rows = F.dropout(rows, self.dropout, self.training)
        if self.score is None:
            total = rows.new_zeros(pairs, rows.shape[1]).index_add(0, pair, rows)
            out = total @ self.weight.mean(0)
        else:
            from torch_geometric.utils import softmax

            e = F.leaky_relu(rows @ torch.einsum("hdp,hp->dh", self.weight, self.score), 0.2)
            a = softmax(e, pair, num_nodes=pairs)
            heads = [
                rows.new_zeros(pairs, rows.shape[1]).index_add(0, pair, a[:, h : h + 1] * rows) @ weight
                for h, weight in enumerate(self.weight)
            ]
            out = torch.stack(heads).mean(0)
        return F.dropout(out, self.dropout, self.training) + self.bias


class Seen(NamedTuple):
    """What was read of R nodes before a batch: their caches with refreshed vectors, and their refreshed states [R, d]."""

    slots: Slots
    state: Tensor


class NAT(nn.Module):
    """Neighbourhood-aware temporal network: logits of pairs at a time from the join of two dictionaries.

    1. Read: ``z~ = GRU_F(W_n [s_key, x, T(time)], z)`` in every slot that was written, 0 in the others; s_key is the
       neighbour's state now, so news reach a node without a write to its dictionary.
    2. State: ``s~_u = GRU_d(W_s [s_partner, x, T(time)], s_u)`` with u's last event; a node without events keeps 0.
    3. Logit: ``W_2 ReLU(W_1 [p_uv, s~_u, s~_v] + b_1) + b_2``, p_uv the `Pool` of rows [node features, vector, embedding of
       the code] of the `join`.
    4. Write, of events that happened: `NCache.write`, ``s <- s~`` and the last event, the latest of a batch. Events of one batch
       do not see each other. What is written carries no gradient.

    T is a `TimeCode` of the time since `origin` in units of `unit` (the released code's, there since 0), or, with `elapsed`, of
    the time from then to the question. Times are float64 until they have been subtracted.

    `ask` reads and changes nothing; only `write` does. Caches and states are buffers: they go with ``state_dict``.
    `node_features` float32 [nodes, Dn], if any, are fixed; nodes that come later have zeros.
    """

    state: Tensor
    partner: Tensor
    latest: Tensor
    latest_x: Tensor
    origin: Tensor
    now: Tensor
    features: Tensor

    def __init__(
        self,
        nodes: int,
        *,
        slots: Sequence[int] = (1, 32, 16),
        width: int = 4,
        state: int = 72,
        code_width: int = 16,
        pool_width: int = 64,
        heads: int = 2,
        attention: bool = False,
        join: bool = True,
        dropout: float = 0.1,
        time_width: int = 1,
        elapsed: bool = False,
        unit: float = 1.0,
        edge: int = 0,
        node_features: Tensor | None = None,
        replace: float = 0.9,
        hash: Hash = "mixing",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.join, self.elapsed, self.unit = join, elapsed, unit
        self.cache = NCache(nodes, slots, width, edge, replace, hash, seed)
        self.register_buffer("state", torch.zeros(nodes, state))
        self.register_buffer("partner", torch.full((nodes,), -1, dtype=torch.int64))
        self.register_buffer("latest", torch.zeros(nodes, dtype=torch.float64))
        self.register_buffer("latest_x", torch.zeros(nodes, edge))
        self.register_buffer("origin", torch.zeros((), dtype=torch.float64))
        self.register_buffer("now", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("features", torch.zeros(nodes, 0) if node_features is None else node_features.clone())
        self.time = TimeCode(time_width)
        told = state + edge + time_width
        self.near_in, self.near = nn.Linear(told, width, bias=False), nn.GRUCell(width, width)
        self.own_in, self.own = nn.Linear(told, state, bias=False), nn.GRUCell(state, state)
        self.code = nn.Embedding(CODES, code_width)
        self.pool = Pool(self.features.shape[1] + width + code_width, pool_width, heads, attention, dropout)
        both = pool_width + 2 * state
        self.hidden, self.out = nn.Linear(both, both), nn.Linear(both, 1)
        for layer in (self.hidden, self.out):
            nn.init.xavier_normal_(layer.weight)

    # -- what is kept --------------------------------------------------------------------------------------------------
    @property
    def nodes(self) -> int:
        return len(self.state)

    def reset(self) -> None:
        """Forget all events."""
        self.cache.reset()
        for table in (self.state, self.latest, self.latest_x):
            table.zero_()
        self.partner.fill_(-1)
        self.now.fill_(-math.inf)

    def grow(self, nodes: int) -> None:
        """Nothing is known of new nodes up to `nodes`."""
        more = nodes - self.nodes
        if more > 0:
            self.cache.grow(nodes)
            self.partner = torch.cat([self.partner, self.partner.new_full((more,), -1)])
            self.state, self.latest, self.latest_x, self.features = (
                torch.cat([table, table.new_zeros((more, *table.shape[1:]))])
                for table in (self.state, self.latest, self.latest_x, self.features)
            )

    # -- reading -------------------------------------------------------------------------------------------------------
    def _coded(self, then: Tensor, now: Tensor) -> Tensor:
        since = now - then if self.elapsed else then - self.origin
        return self.time(since / self.unit)

    def read(self, nodes: Tensor, t: Tensor) -> Seen:
        """What is known of nodes int64 [R] when they are asked about at t float64 [R]."""
        slots = self.cache.look(nodes)
        known = nodes < self.nodes
        own = torch.where(known, nodes, 0)
        moved = known & (self.partner[own] >= 0) if self.nodes else known
        # in training the empty places are left out; else they are computed and dropped, so that what is found of a node does
        # not hang, by a rounding, on how much is known of the others in the batch
        all_of_it = not self.training and self.nodes > 0
        row, slot = torch.nonzero(torch.ones_like(slots.filled) if all_of_it else slots.filled, as_tuple=True)
        key = slots.key[row, slot].clamp(0, max(self.nodes - 1, 0))
        told = [self.state[key], slots.x[row, slot], self._coded(slots.time[row, slot], t[row])]
        fresh = self.near(self.near_in(torch.cat(told, 1)), slots.z[row, slot])
        z = torch.zeros_like(slots.z).index_put((row, slot), fresh)
        (row,) = torch.nonzero(torch.ones_like(moved) if all_of_it else moved, as_tuple=True)
        own = own[row]
        told = [self.state[self.partner[own].clamp(min=0)], self.latest_x[own], self._coded(self.latest[own], t[row])]
        fresh = self.own(self.own_in(torch.cat(told, 1)), self.state[own])
        state = self.state.new_zeros(len(nodes), self.state.shape[1]).index_put((row,), fresh)
        return Seen(slots._replace(z=torch.where(slots.filled[..., None], z, 0)), torch.where(moved[:, None], state, 0))

    def rows(self, seen: Seen, left: Tensor, right: Tensor) -> Rows:
        """The joint neighbourhoods of pairs, given as rows of `seen`."""
        return join(seen.slots, self.cache.hop, left, right, self.join)

    def link(self, seen: Seen, left: Tensor, right: Tensor) -> Tensor:
        """Logits [P] of pairs, given as rows of `seen`."""
        found = self.rows(seen, left, right)
        parts = [found.vector, self.code(found.code)]
        if self.features.shape[1]:
            known = (found.key < self.nodes)[:, None]
            parts.insert(0, torch.where(known, self.features[found.key.clamp(max=self.nodes - 1)], 0))
        pooled = self.pool(torch.cat(parts, 1), found.pair, len(left))
        return self.out(F.relu(self.hidden(torch.cat([pooled, seen.state[left], seen.state[right]], 1)))).squeeze(1)

    def ask(self, src: Tensor, dst: Tensor, t: Tensor) -> tuple[Tensor, Seen]:
        """Logits [B, c] of src int64 [B] with dst int64 [B, c] at t float64 [B], and what was read of ``[src, dst by columns]``."""
        B, c = dst.shape
        seen = self.read(torch.cat([src, dst.T.reshape(-1)]), t.repeat(1 + c))
        one = torch.arange(B, device=src.device)
        logits = self.link(seen, one.repeat(c), torch.arange(B, B * (1 + c), device=src.device))
        return logits.view(c, B).T, seen

    def forward(self, src: Tensor, dst: Tensor, t: Tensor) -> Tensor:
        return self.ask(src, dst, t)[0]

    # -- writing -------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def write(self, src: Tensor, dst: Tensor, t: Tensor, x: Tensor | None = None, seen: Seen | None = None) -> None:
        """Take in events that happened, src, dst int64 [B], t float64 [B], x float32 [B, De]; the oldest first.

        `seen` is what was read of ``cat(src, dst)`` before them, if it was (more rows may follow); left out, it is read.
        ``ValueError``: a time before the one before it, in the batch or before it; a time that is not finite; event features
        of another width. Nothing is written then.
        """
        B = len(src)
        if not B:
            return
        x = t.new_zeros((B, 0), dtype=self.latest_x.dtype) if x is None else x
        if x.shape != (B, self.latest_x.shape[1]):
            raise ValueError(f"{B} events with {self.latest_x.shape[1]} features each are wanted, not {list(x.shape)}")
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"event {int(torch.nonzero(~torch.isfinite(t))[0])} has a time that is not finite")
        if bool((t[1:] < t[:-1]).any()):
            raise ValueError(f"event {int(torch.nonzero(t[1:] < t[:-1])[0]) + 1} is older than the one before it")
        if bool(t[0] < self.now):
            raise ValueError(f"the events begin at {float(t[0]):.17g}, before the last one taken in, at {float(self.now):.17g}")
        both, when = torch.cat([src, dst]), t.repeat(2)
        self.grow(int(both.max()) + 1)
        seen = seen or self.read(both, when)
        slots = Slots(*(table[: 2 * B].detach() for table in seen.slots))
        self.cache.write(src, dst, t, x, slots)
        self.now.copy_(t[-1])
        # a node's last event of the batch
        last = both.new_full((2 * B,), -1)
        nodes, place = torch.unique(both, return_inverse=True)
        event = torch.arange(B, device=src.device).repeat(2)
        last = last[: len(nodes)].scatter_reduce(0, place, event, "amax")
        row = last + B * (src[last] != nodes)
        self.state[nodes] = seen.state[: 2 * B].detach()[row].to(self.state.dtype)
        self.partner[nodes] = torch.cat([dst, src])[row]
        self.latest[nodes], self.latest_x[nodes] = t[last], x[last]
