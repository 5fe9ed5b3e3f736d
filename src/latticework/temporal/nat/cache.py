"""N-caches: for every node a small hashed dictionary of recent neighbours, for all nodes in one table (section 4.1 of NAT).

A key has one candidate slot a hop, ``hash_k(key)``; there is no probing. So a look-up, a write and the table's size do not
depend on how many neighbours a node has had, and a batch of events is written without a loop over events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

HASHES = ("mixing", "official")
Hash = Literal["mixing", "official"]

# odd 64-bit constants of the splitmix64 generator, as signed integers
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _right(x: Tensor, bits: int) -> Tensor:
    """A shift that brings in zeros (torch's keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mixed(x: Tensor, seed: int) -> Tensor:
    """64 well mixed bits for each of the integers x (splitmix64 of ``x + seed * golden``), int64 of the same shape.

    Integer arithmetic alone: the same bits on every device.
    """
    # the seed's own product is kept within 64 signed bits
    start = (seed * _GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)
    x = (x + start) * _GOLDEN
    x = (x ^ _right(x, 30)) * _FIRST
    x = (x ^ _right(x, 27)) * _SECOND
    return x ^ _right(x, 31)


def uniform(x: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each of the integers x, float64: a stream of chance whose state is a count."""
    return _right(mixed(x, seed), 11).to(torch.float64) * 2.0**-53


def official_hash(key: Tensor, slots: int, q: int) -> Tensor:
    """``(q a + (q + 1) a^2) mod M``, the released code's. For M = 2^r and even q most slots are never used."""
    return (q * key + (q + 1) * key * key) % slots


def mixing_hash(key: Tensor, slots: int, seed: int) -> Tensor:
    """High bits of a 64-bit mix, mod M: every slot is used, whatever M and the seed."""
    return _right(mixed(key, seed), 33) % slots


class Slots(NamedTuple):
    """What a look at R nodes gives, S = M_0 + M_1 + M_2 slots each, hop 0 first.

    key int64 [R, S], -1 where a slot is empty (hop 0 always holds the node itself); filled bool [R, S]: something was ever
    written there; time float64 [R, S]; z float32 [R, S, F]; x float32 [R, S, De], the features of the slot's event.
    """

    key: Tensor
    filled: Tensor
    time: Tensor
    z: Tensor
    x: Tensor


class NCache(nn.Module):
    """The caches of all nodes: key, time, vector and event features of ``slots[k]`` neighbours at hop k = 0, 1, 2.

    The tables are buffers, so they travel with ``state_dict``, ``to`` and ``deepcopy``. Nodes from `nodes` on have empty
    caches; `grow` gives them room. Memory: ``nodes * sum(slots) * (3 + width + edge)`` numbers.

    A slot that is empty or holds the same key is always written; one of another key is overwritten with chance `replace`.
    Writes to one slot go in the order of the events, and within one event the entry of the later time goes last, on every
    device. The chance of a write is a function of the seed, the event's number in the stream and its place in the event: it
    does not depend on how the stream is cut, and its state is `events`, the count of events so far.

    ``ValueError``: `slots` that is not (1, M_1) or (1, M_1, M_2) with all >= 1; `replace` outside 0 .. 1; an unknown hash.
    """

    key: Tensor
    time: Tensor
    z: Tensor
    x: Tensor
    events: Tensor

    def __init__(
        self,
        nodes: int,
        slots: Sequence[int] = (1, 32, 16),
        width: int = 4,
        edge: int = 0,
        replace: float = 0.9,
        hash: Hash = "mixing",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 2 <= len(slots) <= 3 or slots[0] != 1 or min(slots) < 1:
            raise ValueError(f"slots are (1, M_1) or (1, M_1, M_2) with sizes >= 1, not {tuple(slots)}")
        if not 0 <= replace <= 1:
            raise ValueError(f"replace is a probability, not {replace}")
        if hash not in HASHES:
            raise ValueError(f"hash is one of {', '.join(HASHES)}, not {hash!r}")
        if nodes < 0 or width < 1 or edge < 0:
            raise ValueError(f"nodes >= 0, width >= 1 and edge >= 0 are wanted, not {nodes}, {width}, {edge}")
        self.slots, self.width, self.edge, self.replace, self.hash, self.seed = tuple(slots), width, edge, replace, hash, seed
        self.start = tuple(sum(self.slots[:k]) for k in range(len(self.slots)))  # a hop's first slot
        total = sum(self.slots)
        self.register_buffer("hop", torch.repeat_interleave(torch.arange(len(self.slots)), torch.tensor(self.slots)), False)
        self.register_buffer("key", torch.full((nodes, total), -1, dtype=torch.int64))
        self.register_buffer("time", torch.zeros(nodes, total, dtype=torch.float64))
        self.register_buffer("z", torch.zeros(nodes, total, width))
        self.register_buffer("x", torch.zeros(nodes, total, edge))
        self.register_buffer("events", torch.zeros((), dtype=torch.int64))

    @property
    def nodes(self) -> int:
        return len(self.key)

    def reset(self) -> None:
        """Empty all caches."""
        self.key.fill_(-1)
        for table in (self.time, self.z, self.x, self.events):
            table.zero_()

    def grow(self, nodes: int) -> None:
        """Empty caches for nodes up to `nodes`; never fewer than there are."""
        more = nodes - self.nodes
        if more > 0:
            self.key = torch.cat([self.key, self.key.new_full((more, self.key.shape[1]), -1)])
            self.time, self.z, self.x = (
                torch.cat([table, table.new_zeros((more, *table.shape[1:]))]) for table in (self.time, self.z, self.x)
            )

    def slot(self, key: Tensor, hop: int) -> Tensor:
        """The one slot, counted over all hops, where a key may sit at a hop."""
        size = self.slots[hop]
        if self.hash == "official":
            return self.start[hop] + official_hash(key, size, self.seed)
        return self.start[hop] + mixing_hash(key, size, 3 * self.seed + hop)

    def look(self, nodes: Tensor) -> Slots:
        """The caches of nodes int64 [R], as they were written; nothing changes."""
        known = (nodes < self.nodes)[:, None]
        rows = torch.where(known[:, 0], nodes, 0)
        if not self.nodes:
            key = self.key.new_full((len(nodes), self.key.shape[1]), -1)
            time, z, x = (table.new_zeros((len(nodes), *table.shape[1:])) for table in (self.time, self.z, self.x))
        else:
            key = torch.where(known, self.key[rows], -1)
            time, z, x = self.time[rows], self.z[rows], self.x[rows]
        filled = key >= 0
        key[:, 0] = nodes
        return Slots(key, filled, time, z, x)

    @torch.no_grad()
    def write(self, src: Tensor, dst: Tensor, t: Tensor, x: Tensor, seen: Slots) -> None:
        """Take in B events, the oldest first: src, dst int64 [B], t float64 [B], x float32 [B, De].

        `seen` are the caches of ``cat(src, dst)`` [2B] as they were before the batch, with refreshed vectors. For an event
        (u, v, t): hop 0 of u is (u, t, its z); hop 1 of u gets the key v at t, with the vector of v's slot where v owned it
        and zeros where not; hop 2 of u gets all that v's hop 1 held, with its own times. The same for v.
        """
        B = len(src)
        if not B:
            return
        self.grow(int(torch.maximum(src.max(), dst.max())) + 1)
        device = src.device
        owner, other, when, feature = torch.cat([src, dst]), torch.cat([dst, src]), torch.cat([t, t]), torch.cat([x, x])
        event = torch.arange(B, device=device).repeat(2)
        row = torch.arange(2 * B, device=device)
        side = (row >= B).long()
        near = self.slot(other, 1)
        met = (seen.filled[row, near] & (seen.key[row, near] == other))[:, None]
        # an entry: owner, slot, key, time, vector, features, and its number among the entries of all events
        most = 6 * (self.slots[1] + 1)
        number = event * most + side
        parts = [
            (owner, torch.zeros_like(near), owner, when, seen.z[:, 0], feature, number),
            (owner, near, other, when, torch.where(met, seen.z[row, near], 0), feature, number + 2),
        ]
        if len(self.slots) > 2:
            parts.append(self._second_hop(seen, torch.cat([row[B:], row[:B]]), owner, number + 4))
        to, slot, key, time, z, feature, number = (torch.cat(column) for column in zip(*parts, strict=True))
        won = self._winners(to * self.key.shape[1] + slot, key, number, B * most)
        target = (to[won], slot[won])
        self.key[target], self.time[target] = key[won], time[won]
        self.z[target], self.x[target] = z[won].to(self.z.dtype), feature[won].to(self.x.dtype)
        self.events += B

    def _second_hop(self, seen: Slots, partner: Tensor, owner: Tensor, number: Tensor) -> tuple[Tensor, ...]:
        """Entries of the partners' first hops for the owners' second, the oldest first within an event."""
        a, b = self.start[1], self.start[2]
        filled = seen.filled[partner, a:b]
        held = seen.time[partner, a:b]
        order = torch.argsort(held, dim=1, stable=True)
        row, place = torch.nonzero(filled.gather(1, order), as_tuple=True)
        source, column = partner[row], a + order[row, place]
        key = seen.key[source, column]
        return (
            owner[row], self.slot(key, 2), key, seen.time[source, column], seen.z[source, column], seen.x[source, column],
            number[row] + 6 * place,
        )  # fmt: skip

    def _winners(self, place: Tensor, key: Tensor, number: Tensor, most: int) -> Tensor:
        """Which entries stand at the end, one a slot at most, when they are written one after the other.

        After the last entry that takes its slot by chance (or the first, if it was empty) only entries of the same key are
        let in; so the last entry of that key stands. place int64 [C] is node and slot, number int64 [C] < `most` the order of
        writing; gives indices int64 [at most C].
        """
        order = torch.argsort(place * most + number)  # slots together, their entries in order
        place, key, number = place[order], key[order], number[order]
        first = torch.ones_like(place, dtype=torch.bool)
        first[1:] = place[1:] != place[:-1]
        group = torch.cumsum(first, 0) - 1
        groups = int(group[-1]) + 1
        before = self.key.view(-1)[place]
        taken = first & (before < 0)
        if self.replace > 0:
            per_event = 6 * (self.slots[1] + 1)
            taken |= uniform(self.events * per_event + number, self.seed + 1) < self.replace
        rank = torch.arange(len(place), device=place.device)
        none = rank.new_full((groups,), -1)
        last = none.scatter_reduce(0, group, torch.where(taken, rank, -1), "amax")
        kept = torch.where(last >= 0, key[last.clamp(min=0)], before[first])
        stands = none.scatter_reduce(0, group, torch.where(key == kept[group], rank, -1), "amax")
        return order[stands[stands >= 0]]
