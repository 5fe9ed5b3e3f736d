"""SEMBA's identities: the routing table, the gauge of balance, the store, the limits; running counts against a dictionary."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latticework.temporal.camps import camp_events
from latticework.temporal.memory import EventBatch, NodeMemory, advance, flat_state, load_flat, missing
from latticework.temporal.memory_baselines import Clock
from latticework.temporal.semba import ROUTES, SEMBA, routed
from latticework.temporal.signed_counts import NAMES, SignedCounts
from latticework.temporal.signed_memory import class_means, signed_loss

CLOCK = Clock(1.0, 1.0, 1.0)


def log(nodes: int = 12, events: int = 120, seed: int = 0, weights: bool = True) -> EventBatch:
    """A random signed log with self-loops and equal times."""
    g = torch.Generator().manual_seed(seed)
    src, dst = (torch.randint(nodes, (events,), generator=g) for _ in range(2))
    t = torch.randint(3, (events,), generator=g).cumsum(0).double()
    size = torch.randint(1, 4, (events,), generator=g).float() if weights else torch.ones(events)
    sign = torch.where(torch.rand(events, generator=g) < 0.4, -1.0, 1.0)
    return EventBatch(src, dst, t, size * sign, torch.zeros(events, 0))


def net_of(nodes: int = 12, seed: int = 0, **fields: Any) -> SEMBA:
    torch.manual_seed(seed)
    small = {"memory": 6, "width": 8, "time": 4, "heads": 2, "neighbours": 5}
    return SEMBA(nodes, CLOCK, **(small | fields)).eval()


def walked(net: SEMBA, events: EventBatch, batch: int) -> SEMBA:
    with torch.no_grad():
        for a in range(0, len(events.src), batch):
            net.hold(events.rows(a, a + batch))
            advance(net)
    return net


# -- routing -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("sign", "plus", "minus"), [(1.0, [2.0, 5.0], [3.0, 7.0]), (-1.0, [2.0, 7.0], [3.0, 5.0])])
def test_routing_of_the_card(sign: float, plus: list[float], minus: list[float]) -> None:
    """s_i = (2, 3), s_j = (5, 7): a friend's friends and foes, a foe's foes and friends; and likewise for j."""
    net = net_of(2, memory=1, time=1)
    net.memory[:] = torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    event = EventBatch(
        *(torch.tensor([v]) for v in (0, 1)), torch.tensor([1.0]).double(), torch.tensor([sign]), torch.zeros(1, 0)
    )
    net.hold(event)
    found = net.pending()
    assert found is not None and found.nodes.tolist() == [0, 1]
    said = {side: net.messages(found.nodes, found.messages, side)[:, :2].tolist() for side in "+-"}
    assert said["+"][0] == plus and said["-"][0] == minus
    mirrored = {"+": [5.0, 2.0 if sign > 0 else 3.0], "-": [7.0, 3.0 if sign > 0 else 2.0]}
    assert said["+"][1] == mirrored["+"] and said["-"][1] == mirrored["-"]


def test_routings_differ_where_they_should() -> None:
    own, plus, minus = torch.tensor([[1.0], [1.0]]), torch.tensor([[5.0], [5.0]]), torch.tensor([[7.0], [7.0]])
    positive = torch.tensor([True, False])
    read = {
        (name, side): routed(own, plus, minus, positive, side, name)[:, 1].tolist() for name in ROUTES for side in "+-"
    }  # fmt: skip
    assert read["balance", "-"] == [7.0, 5.0] and read["balance", "+"] == [5.0, 7.0]
    assert read["one-sided", "-"] == read["one-sided", "+"] == [5.0, 5.0]
    assert read["official", "-"][1] == 7.0  # the crossed pairing of the released code
    assert ("-", "+") not in ROUTES["official"] and ("-", "+") not in ROUTES["own-sign"] and ("+", "-") not in ROUTES["own-sign"]


def switched(routing: str, batch: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Memories after a log, those after the log switched on a node set, and the set."""
    events, chosen = log(), torch.arange(12) % 3 == 0
    start = torch.randn(12, 12, generator=torch.Generator().manual_seed(5))
    crossing = chosen[events.src] != chosen[events.dst]
    turned = events._replace(weight=torch.where(crossing, -events.weight, events.weight))
    nets = []
    for log_of, exchange in ((events, False), (turned, True)):
        net = net_of(tied=True, routing=routing)
        net.memory[:] = start
        if exchange:
            net.memory[chosen] = torch.cat(start[chosen].chunk(2, 1)[::-1], 1)
        nets.append(walked(net, log_of, batch).memory.clone())
    return nets[0], nets[1], chosen


def test_switching_identity() -> None:
    """Flip every sign that crosses a node set and exchange the memories on it: they stay exchanged there, equal elsewhere."""
    plain, other, chosen = switched("balance")
    assert torch.allclose(other[~chosen], plain[~chosen], atol=1e-6)
    assert torch.allclose(other[chosen], torch.cat(plain[chosen].chunk(2, 1)[::-1], 1), atol=1e-6)


@pytest.mark.parametrize("routing", ["official", "own-sign", "one-sided"])
def test_other_routings_fail_the_switching_identity(routing: str) -> None:
    plain, other, chosen = switched(routing)
    exchanged = torch.cat(plain[chosen].chunk(2, 1)[::-1], 1)
    assert not torch.allclose(other[~chosen], plain[~chosen], atol=1e-3) or not torch.allclose(
        other[chosen], exchanged, atol=1e-3
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_tied_memories_that_start_alike_stay_alike(seed: int, batch: int) -> None:
    net = walked(net_of(tied=True), log(seed=seed, events=60), batch)
    plus, minus = net.memory.chunk(2, 1)
    assert (plus - minus).abs().max() < 1e-6 and bool((plus != 0).any())


# -- the store ---------------------------------------------------------------------------------------------------------------
def by_dictionary(net: SEMBA, events: EventBatch, batch: int) -> Tensor:
    """The same memories node by node, with dictionaries and loops: the card's steps 1 and 2 as they stand."""
    d = net.memory.shape[1] // 2
    store = {(side, i): torch.zeros(d) for side in "+-" for i in range(12)}
    last: dict[tuple[str, int], float] = {}
    cells = {"+": net.plus, "-": net.minus}
    for a in range(0, len(events.src), batch):
        told: dict[tuple[str, int], list[tuple[Tensor, float]]] = {}
        for u, v, t, w in zip(*(c[a : a + batch].tolist() for c in events[:4]), strict=True):
            sign = "+" if w > 0 else "-"
            for i, j in ((u, v), (v, u)):
                for side in "+-":
                    other = ROUTES[net.routing].get((side, sign))
                    if other is None:
                        continue
                    passed = torch.tensor([t - last.get((side, i), t)], dtype=torch.float64)
                    said = torch.cat([store[side, i], store[other, j], torch.tensor([abs(w)]), net.code(passed)[0]])
                    told.setdefault((side, i), []).append((said, t))
        moved = {
            (side, i): cells[side](torch.stack([m for m, _ in said]).mean(0)[None], store[side, i][None])[0]
            for (side, i), said in told.items()
        }  # fmt: skip
        store |= moved
        last |= {key: max(t for _, t in said) for key, said in told.items()}
    return torch.stack([torch.cat([store["+", i], store["-", i]]) for i in range(12)])


@pytest.mark.parametrize("routing", ["balance", "own-sign", "official", "one-sided"])
def test_store_equals_dictionaries(routing: str) -> None:
    events = log(events=2000 if routing == "balance" else 300, seed=3)
    net = walked(net_of(routing=routing), events, 50)
    with torch.no_grad():
        assert torch.allclose(net.memory, by_dictionary(net, events, 50), atol=1e-5)


def test_attention_equals_the_formula() -> None:
    """z_i by loops from the definition, against the vectorised layer; a node without links gets W_1 x_i alone."""
    events = log(events=40, seed=2)
    net = walked(net_of(14, neighbours=4), events, 10)
    nodes = torch.arange(14)
    with torch.no_grad():
        z = net.embed(nodes, torch.full((14,), 1e3).double())
        conv, heads, dh = net.conv, 2, 4
        for i in range(14):
            mine = [
                (int(v if u == i else u), float(t), float(w))
                for u, v, t, w in zip(*(c.tolist() for c in events[:4]), strict=True)
                if i in (int(u), int(v))
            ][-4:]
            x = net.memory
            out = conv.lin_skip(x[i])
            if mine:
                edges = torch.stack([
                    torch.cat([net.code(torch.tensor([float(net.last[j]) - t]).double())[0], torch.tensor([abs(w)])])
                    for j, t, w in mine
                ])  # fmt: skip
                e = conv.lin_edge(edges).view(-1, heads, dh)
                others = x[[j for j, _, _ in mine]]
                q = conv.lin_query(x[i]).view(heads, dh)
                k = conv.lin_key(others).view(-1, heads, dh) + e
                v = conv.lin_value(others).view(-1, heads, dh) + e
                alpha = ((q * k).sum(2) / dh**0.5).softmax(0)
                out = out + (alpha[..., None] * v).sum(0).ravel()
            assert torch.allclose(z[i], out, atol=1e-5), i
    assert torch.allclose(z[13], net.conv.lin_skip(torch.zeros(12)))


def test_one_direction_sees_links_that_point_to_it_alone() -> None:
    event = EventBatch(torch.tensor([0]), torch.tensor([1]), torch.ones(1).double(), torch.tensor([1.0]), torch.zeros(1, 0))
    net = walked(net_of(2, both_directions=False), event, 1)
    assert net._links(torch.tensor([0, 1]))[3].sum(1).tolist() == [0, 1]
    assert walked(net_of(2), event, 1)._links(torch.tensor([0, 1]))[3].sum(1).tolist() == [1, 1]


# -- no leak, memory, saving -------------------------------------------------------------------------------------------------
def scores(net: SEMBA, past: EventBatch, now: EventBatch, official: bool = False) -> Tensor:
    """Scores of a batch from the state before it; `official` enters its links into the attention first, as the released code."""
    net = walked(copy.deepcopy(net), past, 20)
    with torch.no_grad():
        if official:
            net.recent.insert(now.src, now.dst, now.t, net.carried(now))  # type: ignore[union-attr]
        return net.pairs(now.src, now.dst, now.t)


def test_nothing_of_a_batch_moves_its_scores_and_the_official_order_leaks() -> None:
    events = log(events=80)
    past, now = events.rows(0, 60), events.rows(60, 80)
    other = now._replace(weight=-3 * now.weight)
    net = net_of()
    assert torch.equal(scores(net, past, now), scores(net, past, other))
    assert not torch.equal(scores(net, past, now, official=True), scores(net, past, other, official=True))
    # and who links to whom is told by the very presence of the links
    alone = now.rows(0, 1)
    assert not torch.equal(scores(net, past, now, official=True)[:1], scores(net, past, alone, official=True)[:1])


def test_it_meets_the_socket() -> None:
    net = net_of()
    assert not missing(net) and isinstance(net, NodeMemory)
    assert net.rows(torch.tensor([99])).eq(0).all()  # a node never seen
    z = net.embed(torch.tensor([0, 99]), torch.zeros(2).double())
    assert torch.equal(z[0], z[1]) and torch.equal(z[1], net.conv.lin_skip.bias)
    assert net.link(z, z).shape == (2,)


def test_gradients_reach_the_cells_and_end_at_the_batch() -> None:
    net, events = net_of().train(), log(events=40)
    net.hold(events.rows(0, 20))
    advance(net)
    held = net.rows(torch.arange(12))
    assert held.requires_grad
    net.pairs(events.src[20:], events.dst[20:], events.t[20:]).sum().backward()
    for cell in (net.plus, net.minus):
        assert cell.weight_ih.grad is not None and bool(cell.weight_ih.grad.abs().sum() > 0)
    assert net.code.weight.grad is not None
    net.settle()
    assert not net.rows(torch.arange(12)).requires_grad


def test_memory_does_not_grow_with_events() -> None:
    def numbers(net: SEMBA) -> int:
        return sum(v.numel() for v in flat_state(net).values())

    net = net_of()
    few = numbers(walked(net, log(events=50), 10))
    later = log(events=500, seed=1)
    assert numbers(walked(net, later._replace(t=later.t + 1e4), 10)) == few
    assert net._held is None and net._fresh is None


@pytest.mark.parametrize("fields", [{}, {"routing": "single"}, {"counts": True}, {"propagate": False}])
def test_saved_state_goes_on_bit_for_bit(fields: dict[str, Any]) -> None:
    events = log(events=100)
    whole = walked(net_of(**fields), events.rows(0, 60), 10)
    saved = copy.deepcopy(flat_state(whole))
    other = net_of(seed=9, **fields)
    load_flat(other, saved)
    for net in (whole, other):
        walked(net, events.rows(60, 100), 10)
    with torch.no_grad():
        assert torch.equal(*(net.pairs(events.src, events.dst, events.t) for net in (whole, other)))
    assert all(torch.equal(a, b) for a, b in zip(flat_state(whole).values(), flat_state(other).values(), strict=True))


def test_all_positive_log_moves_both_memories_and_is_finite() -> None:
    events = log(events=60)
    events = events._replace(weight=events.weight.abs())
    net = walked(net_of(), events, 10)
    minus = net.memory.chunk(2, 1)[1]
    assert torch.isfinite(net.memory).all() and (minus[torch.unique(events.src)] != 0).any(1).all()
    hostile = walked(net_of(routing="official"), events, 10).memory.chunk(2, 1)[1]
    assert (hostile == 0).all()  # positive events never reach it there
    assert (walked(net_of(routing="own-sign"), events, 10).memory.chunk(2, 1)[1] == 0).all()


def test_a_batch_of_events_to_oneself() -> None:
    loops = EventBatch(
        torch.zeros(3).long(), torch.zeros(3).long(), torch.arange(3.0).double(), torch.tensor([1.0, -1, 1]), torch.zeros(3, 0)
    )
    assert torch.isfinite(walked(net_of(), loops, 2).embed(torch.tensor([0]), torch.zeros(1).double())).all()


def test_bounds_of_the_module() -> None:
    for fields, word in (({"heads": 3}, "heads"), ({"routing": "none"}, "routing"), ({"target": "love"}, "target")):
        with pytest.raises(ValueError, match=word):
            net_of(**fields)


# -- losses ------------------------------------------------------------------------------------------------------------------
def test_losses_by_hand() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0])
    positive = torch.tensor([True, True, False])
    want = (np.log(2) + np.log1p(np.exp(-2.0))) / 2 + np.log1p(np.exp(-1.0))
    assert float(class_means(logits, positive)) == pytest.approx(want, rel=1e-6)
    # a class that is not there adds nothing
    assert float(class_means(logits[:2], positive[:2])) == pytest.approx((np.log(2) + np.log1p(np.exp(-2.0))) / 2, rel=1e-6)
    weight = torch.tensor([2.0, -4.0, 1.0])
    assert float(signed_loss("weight", logits[:, None], weight, heaviest=4.0)) == pytest.approx(
        ((0 - 0.5) ** 2 + (2 + 1) ** 2 + (-1 - 0.25) ** 2) / 3
    )
    three = torch.zeros(3, 3)
    assert float(signed_loss("sign-or-none", three, weight, torch.zeros(2, 3))) == pytest.approx(np.log(3), rel=1e-6)
    assert float(signed_loss("existence", logits[:, None], weight, torch.zeros(2, 1))) == pytest.approx(
        float(class_means(torch.cat([logits, torch.zeros(2)]), torch.tensor([True] * 3 + [False] * 2)))
    )
    with pytest.raises(ValueError, match="not linked"):
        signed_loss("existence", logits[:, None], weight)


def test_balanced_loss_ignores_how_many_there_are_of_a_class() -> None:
    logits, positive = torch.tensor([0.3, -0.2]), torch.tensor([True, False])
    assert float(class_means(logits, positive)) == pytest.approx(
        float(class_means(logits[[0, 0, 0, 0, 1]], positive[[0, 0, 0, 0, 1]])), rel=1e-6
    )


# -- counts ------------------------------------------------------------------------------------------------------------------
def counted(past: list[tuple[int, int, int]], u: int, v: int) -> dict[str, float]:
    """The counts of a pair from a list of links, by plain loops."""
    found = {}
    for word, node in (("source", u), ("target", v)):
        for verb, end in (("gave", 0), ("got", 1)):
            for sign, s in (("+", 1), ("-", -1)):
                found[f"{word} {verb} {sign}"] = np.log1p(sum(link[end] == node and link[2] == s for link in past))
    for name, node, end in (("given by source", u, 0), ("got by target", v, 1)):
        hits = [link[2] for link in past if link[end] == node]
        found[f"negative share {name}"] = (hits.count(-1) + 0.5) / (len(hits) + 5)
    signs: dict[int, dict[int, int]] = {u: {}, v: {}}
    for a, b, s in past:
        for node in (u, v):
            if node in (a, b):
                signs[node][b if node == a else a] = s
    shared = [signs[u][k] * signs[v][k] for k in signs[u] if k in signs[v] and k not in (u, v)]
    found["balanced triads"], found["unbalanced triads"] = np.log1p(shared.count(1)), np.log1p(shared.count(-1))
    back = [s for a, b, s in past if (a, b) == (v, u)]
    found["sign of the way back"], found["way back exists"] = (back[-1], 1) if back else (0, 0)
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_counts_equal_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    src, dst, sign = rng.integers(7, size=40), rng.integers(7, size=40), rng.choice([1, -1], 40)
    rows = SignedCounts().walk(src, dst, sign)
    links = list(zip(src.tolist(), dst.tolist(), sign.tolist(), strict=True))
    for k, (u, v, _) in enumerate(links):
        want = counted(links[:k], u, v)
        assert rows[k] == pytest.approx([want[name] for name in NAMES]), (k, links[: k + 1])
    # in chunks, asked beforehand, it is the same; and asking changes nothing
    counts = SignedCounts()
    for a in range(0, 40, 10):
        row = counts.of(src[a : a + 1], dst[a : a + 1])[0]
        assert row == pytest.approx(rows[a])
        counts.insert(src[a : a + 10], dst[a : a + 10], sign[a : a + 10])
    again = SignedCounts()
    again.load(counts.copy().arrays())
    assert np.array_equal(again.of(src, dst), counts.of(src, dst))
    assert np.array_equal(counts.of(np.array([99]), np.array([3]))[0, :4], np.zeros(4))


# -- camps -------------------------------------------------------------------------------------------------------------------
def test_camps_are_balanced_but_for_the_flips() -> None:
    events = camp_events(30, 4000, 0.1, 0)
    assert len(events) == 4000 and events.signed and not (events.src == events.dst).any()
    # without flips a spanning set of signs gives the camps, and every sign is their product
    clean = camp_events(30, 4000, 0.0, 0)
    camp = np.zeros(clean.nodes)
    camp[0] = 1
    for _ in range(30):
        for u, v, w in zip(clean.src, clean.dst, clean.weight, strict=True):
            if camp[u] and not camp[v]:
                camp[v] = camp[u] * w
            elif camp[v] and not camp[u]:
                camp[u] = camp[v] * w
    assert (camp[clean.src] * camp[clean.dst] == clean.weight).all() and abs(camp.sum()) == 0
    assert 0.08 < (camp[events.src] * camp[events.dst] != events.weight).mean() < 0.12
    with pytest.raises(ValueError, match="two nodes"):
        camp_events(1, 5, 0, 0)
