"""N-caches, their join and the network: worked examples, a slow dictionary, brute force, invariances, errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latticework.temporal.nat import NAT, NCache, Pool, join, mixing_hash, official_hash

U, A, V, W, B = range(5)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def events(seed: int, nodes: int, m: int, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    # a few popular nodes, some self-loops, repeats
    ends = (nodes * rng.random((2, m)) ** 2).astype(np.int64)
    t = np.cumsum(rng.integers(0 if ties else 1, 4, m)).astype(np.float64)
    return torch.from_numpy(ends[0]), torch.from_numpy(ends[1]), torch.from_numpy(t)


def walk(net: NAT, src: Tensor, dst: Tensor, t: Tensor, batch: int, x: Tensor | None = None) -> NAT:
    net.eval()
    for a in range(0, len(src), batch):
        piece = slice(a, a + batch)
        net.write(src[piece], dst[piece], t[piece], None if x is None else x[piece])
    return net


def network(nodes: int, weights: int = 0, **fields: Any) -> NAT:
    torch.manual_seed(weights)
    return NAT(nodes, **{"replace": 1.0, "state": 8, "pool_width": 6, **fields}).eval()


def injective(nodes: int) -> dict[str, Any]:
    """Slots and a hash under which no two of the first `nodes` keys collide: (q a + (q + 1) a^2) mod M = -a for q = M - 1."""
    return {"slots": (1, nodes, nodes), "hash": "official", "seed": nodes - 1}


def codes(net: NAT, u: int, v: int, t: float = 9.0) -> dict[int, int]:
    seen = net.read(torch.tensor([u, v]), torch.tensor([t, t], dtype=torch.float64))
    rows = net.rows(seen, torch.tensor([0]), torch.tensor([1]))
    return dict(zip(rows.key.tolist(), rows.code.tolist(), strict=True))


# -- worked examples -------------------------------------------------------------------------------------------------
def toy(**fields: Any) -> NAT:
    """u meets a, then v meets a, and w meets b at the time when v meets a: v and w have had the same things happen to them."""
    net = network(5, **{**injective(5), **fields})
    return walk(net, torch.tensor([U, V, W]), torch.tensor([A, A, B]), torch.tensor([1.0, 2.0, 3.0]).double(), 1)


def test_worked_join() -> None:
    net = toy()
    assert codes(net, U, V) == {U: 1 + 32, A: 2 + 16, V: 8}
    assert codes(net, U, W) == {U: 1, A: 2, W: 8, B: 16}
    # a first hop alone knows nothing of u's second
    assert codes(toy(slots=(1, 5)), U, V) == {U: 1, A: 2 + 16, V: 8}


def test_separate_vectors_cannot_tell_what_the_join_tells() -> None:
    """v and w differ only in whom they met; with the keys of both sides apart, and one hop, their rows are the same multiset."""
    at = torch.tensor([5.0], dtype=torch.float64)
    asked = torch.tensor([[V, W]])
    for joined in (True, False):
        net = network(6, **injective(6) | {"slots": (1, 6)}, join=joined)
        # w meets b when v meets a, and b has met somebody as a has: all times and degrees of v's and w's sides are alike
        src, dst = torch.tensor([U, 5, V, W]), torch.tensor([A, B, A, B])
        walk(net, src, dst, torch.tensor([1.0, 1.0, 2.0, 2.0]).double(), 2)
        v, w = net(torch.tensor([U]), asked, at)[0].tolist()
        assert (abs(v - w) > 1e-4) == joined, (v, w)
        if not joined:
            assert v == pytest.approx(w, abs=1e-6)


def test_worked_hash() -> None:
    assert official_hash(torch.tensor([5, 11]), 32, 7).tolist() == [11, 21]


def test_official_hash_leaves_slots_unused_and_the_mixing_one_none() -> None:
    keys = torch.arange(5000)
    used = {(M, q): len(official_hash(keys, M, q).unique()) for M in (32, 16, 31) for q in (6, 7)}
    assert used == {(32, 6): 7, (16, 6): 4, (32, 7): 32, (16, 7): 16, (31, 6): 16, (31, 7): 16}
    for M in (1, 7, 16, 31, 32):
        for seed in range(4):
            counts = torch.bincount(mixing_hash(keys, M, seed), minlength=M)
            # as even as a draw: five standard deviations around 5000 / M
            assert len(counts) == M and (counts - 5000 / M).abs().max() <= 5 * (5000 / M) ** 0.5
    pairs = torch.stack([mixing_hash(keys, 32, 0), mixing_hash(keys, 16, 1)])
    assert len(pairs.unique(dim=1)[0]) == 32 * 16  # the hops' hashes have nothing to do with one another


def test_node_zero_and_time_zero_are_valid() -> None:
    net = network(3, **injective(3))
    zero = torch.zeros(1, dtype=torch.int64)
    net.write(zero, zero + 1, torch.zeros(1, dtype=torch.float64))
    assert codes(net, 0, 1) == {0: 1 + 16, 1: 2 + 8}
    assert net.cache.time[0].abs().sum() == 0 and int((net.cache.key[0] >= 0).sum()) == 2
    assert net.cache.look(zero).filled.sum() == 2 and net.partner.tolist() == [1, 0, -1]


def test_a_self_loop_has_the_bits_of_both_sides() -> None:
    net = network(3, **injective(3))
    assert codes(net, 1, 1) == {1: 1 + 8}
    both = torch.tensor([1])
    net.write(both, both, torch.ones(1, dtype=torch.float64))
    assert codes(net, 1, 1) == {1: 1 + 2 + 8 + 16}
    net.write(both, torch.tensor([2]), torch.full((1,), 2.0, dtype=torch.float64))
    assert codes(net, 1, 1)[2] == 2 + 16


# -- against a dictionary, written slot by slot ---------------------------------------------------------------------------
class Slow:
    """The same by dictionaries: node -> hop -> slot -> [key, time, vector, features]; one event at a time, alpha = 1."""

    def __init__(self, net: NAT) -> None:
        self.net = net
        self.slots: dict[int, list[dict[int, list[Any]]]] = {}
        self.state: dict[int, Tensor] = {}
        self.last: dict[int, tuple[int, float, Tensor]] = {}
        self.places: dict[tuple[int, int], int] = {}

    def code(self, then: list[float], now: float) -> Tensor:
        since = [now - s if self.net.elapsed else s - float(self.net.origin) for s in then]
        return self.net.time(torch.tensor(since, dtype=torch.float64) / self.net.unit)

    def own(self, u: int) -> Tensor:
        return self.state.get(u, torch.zeros(self.net.state.shape[1]))

    def hops(self, u: int) -> list[dict[int, list[Any]]]:
        return self.slots.get(u, [{} for _ in self.net.cache.slots])

    def read(self, u: int, t: float) -> tuple[list[dict[int, list[Any]]], Tensor]:
        places = [(k, slot) for k, hop in enumerate(self.hops(u)) for slot in hop]
        found: list[dict[int, list[Any]]] = [{} for _ in self.net.cache.slots]
        if places:
            entries = [self.hops(u)[k][slot] for k, slot in places]
            told = torch.cat(
                [
                    torch.stack([self.own(e[0]) for e in entries]),
                    torch.stack([e[3] for e in entries]),
                    self.code([e[1] for e in entries], t),
                ],
                1,
            )
            fresh = self.net.near(self.net.near_in(told), torch.stack([e[2] for e in entries]))
            for (k, slot), (key, then, _, x), z in zip(places, entries, fresh, strict=True):
                found[k][slot] = [key, then, z, x]
        if u not in self.last:
            return found, self.own(u)
        partner, then, x = self.last[u]
        told = torch.cat([self.own(partner), x, self.code([then], t)[0]])[None]
        return found, self.net.own(self.net.own_in(told), self.own(u)[None])[0]

    def slot(self, key: int, hop: int) -> int:
        if (key, hop) not in self.places:
            self.places[key, hop] = int(self.net.cache.slot(torch.tensor(key), hop)) - self.net.cache.start[hop]
        return self.places[key, hop]

    def write(self, u: int, v: int, t: float, x: Tensor) -> None:
        read = {w: self.read(w, t) for w in (u, v)}
        new = {w: [dict(hop) for hop in self.hops(w)] for w in (u, v)}
        for me, other in ((u, v), (v, u)):
            mine, theirs = read[me][0], read[other][0]
            zero = torch.zeros(self.net.cache.width)
            new[me][0][0] = [me, t, mine[0][0][2] if 0 in mine[0] else zero, x]
            slot = self.slot(other, 1)
            owned = slot in mine[1] and mine[1][slot][0] == other
            new[me][1][slot] = [other, t, mine[1][slot][2] if owned else zero, x]
            order = self.net.cache.slots[1]
            for _, entry in sorted(theirs[1].items(), key=lambda item: (item[1][1], item[0] % order)):
                new[me][2][self.slot(entry[0], 2)] = entry
        for me, other in ((u, v), (v, u)):
            self.slots[me], self.state[me], self.last[me] = new[me], read[me][1], (other, t, x)


@pytest.mark.parametrize("elapsed", [False, True])
def test_caches_equal_a_slow_dictionary(elapsed: bool) -> None:
    n, m = 40, 500 if elapsed else 2000
    net = network(n, slots=(1, 8, 4), edge=2, elapsed=elapsed, time_width=3, state=6, unit=10.0)
    src, dst, t = events(3 + elapsed, n, m)
    x = torch.randn(m, 2, generator=torch.Generator().manual_seed(0))
    slow = Slow(net)
    with torch.no_grad():
        for u, v, when, told in zip(src.tolist(), dst.tolist(), t.tolist(), x, strict=True):
            slow.write(u, v, when, told)
    walk(net, src, dst, t, 1, x)
    cache, seen = net.cache, 0
    for u in range(n):
        for k, hop in enumerate(slow.hops(u)):
            columns = range(cache.start[k], cache.start[k] + cache.slots[k])
            held = {c - cache.start[k]: c for c in columns if cache.key[u, c] >= 0}
            assert held.keys() == hop.keys()
            for slot, c in held.items():
                key, then, z, told = hop[slot]
                assert int(cache.key[u, c]) == key and float(cache.time[u, c]) == then
                torch.testing.assert_close(cache.z[u, c], z, atol=1e-5, rtol=0)
                assert torch.equal(cache.x[u, c], told)
                seen += 1
        torch.testing.assert_close(net.state[u], slow.own(u), atol=1e-5, rtol=0)
        if u in slow.last:
            assert (int(net.partner[u]), float(net.latest[u])) == slow.last[u][:2]
    assert seen > 8 * n
    # and the slow reading gives the refreshed vectors of the fast one
    now = float(t[-1]) + 5
    fast = net.read(torch.arange(n), torch.full((n,), now, dtype=torch.float64))
    for u in range(0, n, 7):
        hops, state = slow.read(u, now)
        torch.testing.assert_close(fast.state[u], state, atol=1e-5, rtol=0)
        for k, hop in enumerate(hops):
            for slot, entry in hop.items():
                torch.testing.assert_close(fast.slots.z[u, cache.start[k] + slot], entry[2], atol=1e-5, rtol=0)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), batch=st.integers(1, 9))
def test_common_neighbours_are_exact_without_collisions(seed: int, batch: int) -> None:
    """Rows with both first-hop bits are the common neighbours so far, at every query; repeats are the pairs that met."""
    n, m = 16, 60
    net = network(n, **injective(n))
    src, dst, t = events(seed, n, m)
    met: dict[int, set[int]] = {u: set() for u in range(n)}
    everybody = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    for a in range(0, m, batch):
        seen = net.read(torch.arange(n), t[a].repeat(n))
        rows = net.rows(seen, *everybody)
        common: dict[int, set[int]] = {}
        for pair, key in zip(*(c[(rows.code & 18) == 18].tolist() for c in (rows.pair, rows.key)), strict=True):
            common.setdefault(pair, set()).add(key)
        repeats = set(rows.pair[(rows.key == everybody[1][rows.pair]) & (rows.code & 10 == 10)].tolist())
        for pair, (u, v) in enumerate(everybody.T.tolist()):
            assert common.get(pair, set()) == met[u] & met[v]
            assert (pair in repeats) == (v in met[u])
        piece = slice(a, a + batch)
        net.write(src[piece], dst[piece], t[piece])
        for u, v in zip(src[piece].tolist(), dst[piece].tolist(), strict=True):
            met[u].add(v)
            met[v].add(u)


def test_join_equals_a_loop_over_keys() -> None:
    n = 30
    net = walk(network(n, slots=(1, 8, 4)), *events(5, n, 400), 20)
    left, right = torch.tensor([0, 1, 2, 3, 4, 4]), torch.tensor([1, 0, 7, 29, 4, 28])
    seen = net.read(torch.arange(n), torch.full((n,), 999.0, dtype=torch.float64))
    for together in (True, False):
        rows = join(seen.slots, net.cache.hop, left, right, together)
        found = {
            (p, k, c): z for p, k, c, z in zip(rows.pair.tolist(), rows.key.tolist(), rows.code.tolist(), rows.vector, strict=True)
        }  # fmt: skip
        wanted: dict[Any, list[Any]] = {}
        for p, ends in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            for side, node in enumerate(ends):
                for s, key in enumerate(seen.slots.key[node].tolist()):
                    if key >= 0:
                        entry = wanted.setdefault((p, key) if together else (p, key, side), [0, torch.zeros(4)])
                        entry[0] += 2 ** (int(net.cache.hop[s]) + 3 * side)
                        entry[1] = entry[1] + seen.slots.z[node, s]
        assert found.keys() == {(*name[:2], code) for name, (code, _) in wanted.items()} and len(rows.pair) == len(wanted)
        for name, (code, vector) in wanted.items():
            torch.testing.assert_close(found[(*name[:2], code)], vector, atol=1e-6, rtol=0)


# -- replacement -----------------------------------------------------------------------------------------------------
def colliding(cache: NCache, count: int) -> list[int]:
    """Keys from 1 on that share one slot of the first hop."""
    keys = torch.arange(1, 20_000)
    return keys[cache.slot(keys, 1) == cache.slot(keys[:1], 1)][:count].tolist()


def first_hop(net: NAT, node: int, key: int) -> int:
    return int(net.cache.key[node, int(net.cache.slot(torch.tensor(key), 1))])


@pytest.mark.parametrize("batch", [1, 7])
def test_alpha_zero_never_evicts_and_one_always_does(batch: int) -> None:
    for alpha in (0.0, 1.0):
        net = network(10, replace=alpha)
        keys = colliding(net.cache, 21)
        src, dst = torch.zeros(len(keys), dtype=torch.int64), torch.tensor(keys)
        walk(net, src, dst, torch.arange(float(len(keys))).double(), batch)
        assert first_hop(net, 0, keys[0]) == keys[-1 if alpha else 0]
    # a key that stands is refreshed whatever alpha is
    net = network(10, replace=0.0)
    walk(net, torch.tensor([0, 0]), torch.tensor([keys[0]] * 2), torch.tensor([1.0, 2.0]).double(), batch)
    assert float(net.cache.time[0, int(net.cache.slot(torch.tensor(keys[0]), 1))]) == 2


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_share_of_evictions(alpha: float) -> None:
    """Alternating keys of one slot: each event that finds the other key evicts it with chance alpha."""
    hubs, steps = 500, 40
    net = network(hubs, replace=alpha, slots=(1, 2), state=1, pool_width=1)
    candidates = torch.arange(hubs, hubs + 500)
    same = candidates[net.cache.slot(candidates, 1) == net.cache.slot(candidates[:1], 1)]
    keys = same[:2].tolist()
    slot = int(net.cache.slot(same[0], 1))
    owner = torch.arange(hubs)
    net.write(owner, torch.full((hubs,), keys[0]), torch.zeros(hubs, dtype=torch.float64))
    collisions = evicted = 0
    for step in range(1, steps + 1):
        before = net.cache.key[:hubs, slot].clone()
        other = torch.where(before == keys[0], keys[1], keys[0])
        net.write(owner, other, torch.full((hubs,), float(step), dtype=torch.float64))
        collisions += hubs
        evicted += int((net.cache.key[:hubs, slot] != before).sum())
    assert collisions >= 10_000 and abs(evicted / collisions - alpha) <= 0.02


@pytest.mark.parametrize("device", DEVICES)
def test_within_a_batch_the_latest_event_stands(device: str) -> None:
    """A batch of colliding and repeated writes leaves keys and times of the events one by one, whatever alpha is.

    The chance of a write hangs on the event's number, not on the batch. Second hops depend on the batch on purpose: they
    take over what first hops held before it.
    """
    n, m = 12, 300
    src, dst, t = events(11, n, m)
    for alpha in (0.0, 0.4, 1.0):
        tables = []
        for batch in (1, 4, 64, m):
            net = network(n, replace=alpha, slots=(1, 4)).to(device)
            walk(net, src.to(device), dst.to(device), t.to(device), batch)
            tables.append((net.cache.key.cpu(), net.cache.time.cpu(), net.latest.cpu(), net.partner.cpu()))
        for other in tables[1:]:
            assert all(torch.equal(a, b) for a, b in zip(tables[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_same_seed_same_bits_and_another_seed_another_run(device: str) -> None:
    def run(seed: int) -> NAT:
        return walk(
            network(30, replace=0.5, slots=(1, 4, 4), seed=seed).to(device), *(c.to(device) for c in events(1, 30, 400)), 32
        )

    one, again = run(0), run(0)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    other = run(1)
    assert not torch.equal(one.cache.key, other.cache.key)


def test_of_one_events_second_hop_entries_the_latest_stands() -> None:
    """More first-hop keys than second-hop slots: within one event the entries are written from the oldest to the newest."""
    net = network(40, slots=(1, 32, 1))
    # 0 meets 1 .. 20, then 39 meets 0
    src = torch.cat([torch.zeros(20, dtype=torch.int64), torch.tensor([39])])
    dst = torch.cat([torch.arange(1, 21), torch.tensor([0])])
    walk(net, src, dst, torch.arange(21.0).double(), 1)
    assert int(net.cache.key[39, -1]) == 20 and float(net.cache.time[39, -1]) == 19


# -- causality, symmetry, times ------------------------------------------------------------------------------------------
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), cut=st.integers(0, 5))
def test_later_events_change_no_score(seed: int, cut: int) -> None:
    """Changed or left out events at or after a batch leave its scores as they were."""
    n, m, batch = 20, 120, 20
    src, dst, t = events(seed, n, m, ties=True)

    def scores(src: Tensor, dst: Tensor, t: Tensor, upto: int) -> Tensor:
        net = walk(network(n, replace=0.6), src[:upto], dst[:upto], t[:upto], batch)
        piece = slice(cut * batch, cut * batch + 5)
        found = net(torch.arange(5), torch.arange(5, 15).view(5, 2), t_asked[piece])
        net.write(src[upto:], dst[upto:], t[upto:])
        return found

    t_asked = t
    whole = scores(src, dst, t, cut * batch)
    dst2 = dst.clone()
    dst2[cut * batch :] = (dst2[cut * batch :] + 7) % n
    assert torch.equal(whole, scores(src, dst2, t, cut * batch))
    assert torch.equal(whole, scores(src[: cut * batch], dst[: cut * batch], t[: cut * batch], cut * batch))


def test_asking_leaves_no_trace() -> None:
    """Neither questions nor false targets, whatever their order, change anything kept or any later score."""
    n = 20
    src, dst, t = events(2, n, 200)
    quiet, asked = (walk(network(n, replace=0.6), src[:100], dst[:100], t[:100], 10) for _ in range(2))
    before = copy.deepcopy(asked.state_dict())
    targets = torch.randint(0, n + 30, (100, 6), generator=torch.Generator().manual_seed(0))
    scores = asked(src[100:], targets, t[100:])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(asked(src[100:], targets[:, order], t[100:]), scores[:, order], atol=1e-6, rtol=0)
    assert all(torch.equal(before[k], v) for k, v in asked.state_dict().items())
    for net in (quiet, asked):
        walk(net, src[100:], dst[100:], t[100:], 10)
    assert all(torch.equal(a, b) for a, b in zip(quiet.state_dict().values(), asked.state_dict().values(), strict=True))


def test_what_was_read_before_a_batch_serves_its_writing() -> None:
    """Writing with the rows of the question (targets and false ones behind) is writing with rows read anew."""
    n = 20
    src, dst, t = events(4, n, 60)
    one, other = (walk(network(n), src[:30], dst[:30], t[:30], 10) for _ in range(2))
    asked = torch.stack([dst[30:], (dst[30:] + 3) % n], 1)
    _, seen = one.ask(src[30:], asked, t[30:])
    one.write(src[30:], dst[30:], t[30:], None, seen)
    other.write(src[30:], dst[30:], t[30:])
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("by", [1.7e9, -1e6])
def test_shifted_times_change_nothing(by: float) -> None:
    """With elapsed time nothing at all; with the time since the stream's start nothing when the start moves along."""
    n = 20
    src, dst, t = events(6, n, 150)
    t = t + 0.25  # held exactly in float64 beside 1.7e9, and far below what float32 would keep
    for elapsed in (True, False):
        found = []
        for shift in (0.0, by):
            net = network(n, elapsed=elapsed, time_width=8)
            if not elapsed:
                net.origin.fill_(t[0] + shift)
            walk(net, src, dst, t + shift, 10)
            found.append(net(torch.arange(10), torch.arange(10, 20).view(10, 1), (t[-1] + 3 + shift).repeat(10)))
        assert torch.equal(*found)


def test_absolute_times_matter_and_elapsed_ones_do() -> None:
    """The control of the test above: stretched times change scores, so the codes are read at all."""
    n = 20
    src, dst, t = events(6, n, 150)
    for elapsed in (True, False):
        nets = [walk(network(n, elapsed=elapsed, time_width=8), src, dst, t * s, 10) for s in (1.0, 3.0)]
        asked = (torch.arange(10), torch.arange(10, 20).view(10, 1))
        one, other = (net(*asked, (t[-1] * s + 3).repeat(10)) for net, s in zip(nets, (1.0, 3.0), strict=True))
        assert (one - other).abs().max() > 1e-4


def test_never_seen_nodes_are_defined_and_growing_is_starting_larger() -> None:
    n = 20
    src, dst, t = events(8, n, 150)
    small, large = network(2), network(50)
    assert small(torch.tensor([40]), torch.tensor([[41, 7]]), torch.zeros(1).double()).isfinite().all()
    for net in (small, large):
        walk(net, src, dst, t, 10)
    asked = (torch.tensor([0, 1, 48]), torch.tensor([[2, 49], [30, 0], [1, 47]]), t[-1].repeat(3) + 1)
    assert small.nodes == n and torch.equal(small(*asked), large(*asked))
    # two nodes never seen: their own keys alone, and no vector
    seen = small.read(torch.tensor([48, 49]), t[:2])
    rows = small.rows(seen, torch.tensor([0]), torch.tensor([1]))
    assert rows.key.tolist() == [48, 49] and rows.code.tolist() == [1, 8]
    assert not rows.vector.any() and not seen.state.any()
    nothing = network(0)
    assert nothing(torch.tensor([3]), torch.tensor([[4]]), torch.zeros(1).double()).isfinite().all()


def test_state_travels_through_state_dict() -> None:
    n = 15
    src, dst, t = events(9, n, 200)
    whole = walk(network(n, replace=0.5), src, dst, t, 10)
    first = walk(network(n, replace=0.5), src[:100], dst[:100], t[:100], 10)
    second = network(n, weights=5, replace=0.5)
    second.load_state_dict(first.state_dict())
    walk(second, src[100:], dst[100:], t[100:], 10)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True))


# -- pool --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("attention", [False, True])
def test_sum_first_equals_multiply_first(attention: bool) -> None:
    torch.manual_seed(0)
    pool = Pool(9, 5, heads=3, attention=attention).eval()
    rows, pair = torch.randn(40, 9), torch.randint(0, 6, (40,))
    pair[pair == 4] = 3  # a pair without rows
    wanted = torch.zeros(6, 5)
    for p in range(6):
        own = rows[pair == p]
        for h in range(3):
            mapped = own @ pool.weight[h]
            weight = torch.ones(len(own))
            if pool.score is not None:
                e = torch.nn.functional.leaky_relu(mapped @ pool.score[h], 0.2)
                weight = torch.softmax(e, 0)
            wanted[p] += (weight[:, None] * mapped).sum(0) / 3
    torch.testing.assert_close(pool(rows, pair, 6), wanted + pool.bias, atol=1e-5, rtol=1e-5)


def test_dropout_only_in_training() -> None:
    n = 15
    net = walk(network(n), *events(9, n, 200), 10)
    asked: tuple[Tensor, ...] = (torch.arange(5), torch.arange(5, 15).view(5, 2), torch.full((5,), 999.0).double())
    assert torch.equal(net(*asked), net(*asked))
    net.train()
    assert not torch.equal(net(*asked), net(*asked))


def test_gradients_reach_every_weight() -> None:
    n = 15
    for attention in (False, True):
        net = walk(network(n, attention=attention, time_width=3), *events(9, n, 200), 10)
        net(torch.arange(5), torch.arange(5, 15).view(5, 2), torch.full((5,), 999.0).double()).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        assert not any(b.requires_grad for b in net.buffers())


def test_node_features_reach_the_rows() -> None:
    n = 10
    features = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    nets = [walk(network(n, node_features=f), *events(9, n, 60), 10) for f in (features, torch.zeros(n, 3))]
    asked: tuple[Tensor, ...] = (torch.arange(3), torch.tensor([[4, 30], [5, 6], [30, 7]]), torch.full((3,), 999.0).double())
    one, other = (net(*asked) for net in nets)
    assert one.isfinite().all() and (one - other).abs().min() > 1e-6


# -- cost ----------------------------------------------------------------------------------------------------------------
def test_tables_do_not_grow_with_events() -> None:
    n = 20
    net = network(n, slots=(1, 4, 2), edge=1)
    sizes = []
    for m in (50, 500):
        src, dst, t = events(9, n, m)
        walk(net, src, dst, t + float(net.latest.max()), 25, torch.ones(m, 1))
        sizes.append(sum(b.numel() for b in net.cache.buffers()))
    # key, time, vector, features of every slot; the hop of each slot and the count of events
    assert sizes == [n * 7 * (2 + 4 + 1) + 7 + 1] * 2


# -- errors --------------------------------------------------------------------------------------------------------------
def _write(net: NAT, t: list[float], x: Tensor | None = None) -> Callable[[], None]:
    nodes = torch.arange(len(t))
    return lambda: net.write(nodes, nodes + 1, torch.tensor(t, dtype=torch.float64), x)


def test_errors() -> None:
    net = network(4, edge=2)
    told = torch.zeros(2, 2)
    for call, says in (
        (_write(net, [2.0, 1.0], told), "event 1 is older"),
        (_write(net, [1.0, float("nan")], told), "event 1 has a time that is not finite"),
        (_write(net, [1.0, 2.0], torch.zeros(2, 3)), "2 features each are wanted"),
        (_write(net, [1.0, 2.0]), "2 features each are wanted"),
        (lambda: NCache(3, (1, 0, 4)), "sizes >= 1"),
        (lambda: NCache(3, (2, 4)), "sizes >= 1"),
        (lambda: NCache(3, (1,)), "sizes >= 1"),
        (lambda: NCache(3, replace=1.5), "probability"),
        (lambda: NCache(3, hash="md5"), "mixing, official"),  # type: ignore[arg-type]
        (lambda: NCache(3, width=0), "width >= 1"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert not net.cache.events and (net.cache.key < 0).all(), "a refused batch leaves no trace"
    _write(net, [5.0, 6.0], told)()
    with pytest.raises(ValueError, match="before"):
        _write(net, [3.0, 4.0], told)()
