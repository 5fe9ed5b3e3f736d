"""The node-memory socket: tables against a loop over nodes, gradients, growth, saving, and the two models that meet it."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latticework.temporal.memory import (
    SOCKET,
    EventBatch,
    MemoryTable,
    NodeMemory,
    advance,
    flat_state,
    latest_of,
    load_flat,
    mean_of,
    messages_of,
    missing,
)
from latticework.temporal.memory_baselines import JODIE, TGN, Clock, Targets, TGNMethod, Whole, drawn_without, train_step


def stream(m: int = 300, n: int = 12, seed: int = 0, features: int = 0, span: float = 1e5) -> EventBatch:
    """Events with ties in time and self-loops, at UNIX seconds."""
    rng = np.random.default_rng(seed)
    t = np.sort(np.floor(rng.random(m) * span)) + 1.6e9
    x = rng.standard_normal((m, features)).astype(np.float32) if features else None
    weight = rng.choice([-3.0, -1.0, 1.0, 2.0], m)
    return EventBatch.of(SimpleNamespace(src=rng.integers(n, size=m), dst=rng.integers(n, size=m), t=t, weight=weight, x=x))


def clock_of(events: EventBatch) -> Clock:
    return Clock.of(SimpleNamespace(**{k: v.numpy() for k, v in events._asdict().items()}))


def nets(n: int = 12, seed: int = 0, features: int = 0) -> list[Any]:
    torch.manual_seed(seed)
    clock = clock_of(stream(features=features))
    return [
        TGN(n, 8, clock, time=6, neighbours=4, dropout=0.0), JODIE(n, 8, clock, time=6, dropout=0.0),
        TGN(n, 8, clock, time=6, neighbours=4, dropout=0.0, aggregate="mean"),
    ]  # fmt: skip


class Sums(MemoryTable):
    """A memory whose rows add up the weights of their events: the smallest model that meets the socket."""

    def updated(self, nodes: Tensor, messages: Any) -> Tensor:
        total = torch.zeros(len(nodes)).index_add(0, messages.to, messages.weight)
        return self.rows(nodes) + total[:, None]

    def embed(self, nodes: Tensor, t: Tensor) -> Tensor:
        return self.rows(nodes)

    def link(self, source: Tensor, target: Tensor) -> Tensor:
        return (source * target).sum(1)


# -- messages ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), m=st.integers(1, 60), n=st.integers(1, 15))
@settings(deadline=None, max_examples=40)
def test_messages_equal_a_dictionary_per_node(seed: int, m: int, n: int) -> None:
    events = stream(m, n, seed, features=2)
    held: dict[int, list[tuple[Any, ...]]] = {}
    for k in range(m):
        u, v = int(events.src[k]), int(events.dst[k])
        for own, other, out in ((u, v, True), (v, u, False)):
            held.setdefault(own, []).append((other, float(events.t[k]), float(events.weight[k]), out, events.x[k].tolist()))
    found = messages_of(events)
    assert found is not None and found.nodes.tolist() == sorted(held)
    said = found.messages
    for row, node in enumerate(found.nodes.tolist()):
        mine = torch.nonzero(said.to == row).ravel()
        rows = [
            (int(said.other[k]), float(said.t[k]), float(said.weight[k]), bool(said.out[k]), said.x[k].tolist()) for k in mine
        ]
        assert rows == held[node]
        assert float(found.t[row]) == max(entry[1] for entry in held[node])
        assert int(latest_of(said.to, len(found.nodes))[row]) == int(mine[-1])
    assert messages_of(events.rows(0, 0)) is None


def test_mean_of_messages() -> None:
    values, to = torch.arange(10.0).view(5, 2), torch.tensor([1, 0, 1, 1, 1])
    assert mean_of(values, to, 3).tolist() == [[2, 3], [4.5, 5.5], [0, 0]]


# -- the table --------------------------------------------------------------------------------------------------------


def test_rows_equal_a_loop_over_events() -> None:
    """Sums of weights batch by batch, against a dictionary; a batch's rows move when the next begins."""
    events, net = stream(200, 9, 3), Sums(9, 1)
    rows, last = dict.fromkeys(range(9), 0.0), dict.fromkeys(range(9), -math.inf)
    for a in range(0, 200, 30):
        batch = events.rows(a, a + 30)
        net.hold(batch)
        everyone = torch.arange(9)
        assert net.rows(everyone).ravel().tolist() == [rows[i] for i in range(9)]
        advance(net)
        for u, v, t, w in zip(*(c.tolist() for c in batch[:4]), strict=True):
            for end in (u, v):
                rows[end] += w
                last[end] = t
        assert net.rows(everyone).ravel().tolist() == [rows[i] for i in range(9)]
        assert net.times(everyone).tolist() == [last[i] for i in range(9)]
        assert net.pending() is None and advance(net) is None


def test_two_batches_held_are_one() -> None:
    events, one, two = stream(40, 6, 1), Sums(6, 1), Sums(6, 1)
    one.hold(events)
    two.hold(events.rows(0, 15))
    two.hold(events.rows(15, 40))
    for a, b in zip(one.pending().messages, two.pending().messages, strict=True):
        assert torch.equal(a, b)


def test_written_rows_keep_their_gradient_until_settled() -> None:
    net = Sums(5, 2)
    rows = torch.ones(2, 2, requires_grad=True)
    net.write(torch.tensor([3, 1]), rows * 2, torch.tensor([5.0, 6.0], dtype=torch.float64))
    assert not net.memory.any()  # the settled table is not touched yet
    net.rows(torch.tensor([1, 1, 0, 3]))[:2].sum().backward()
    assert rows.grad is not None and rows.grad.tolist() == [[0, 0], [4, 4]]
    net.settle()
    assert net.rows(torch.arange(5)).tolist() == [[0, 0], [2, 2], [0, 0], [2, 2], [0, 0]]
    assert not net.rows(torch.arange(5)).requires_grad and net.memory.grad_fn is None
    assert net.times(torch.tensor([1, 3, 0])).tolist() == [6, 5, -math.inf]


def test_unseen_nodes_are_zero_and_growth_changes_nothing() -> None:
    for net in [*nets(), Sums(12, 3)]:
        events = stream()
        net.hold(events)
        with torch.no_grad():
            advance(net)
            asked, t = torch.tensor([0, 5, 40, 11]), torch.full((4,), 1.7e9, dtype=torch.float64)
            before = net.embed(asked, t)
            assert not net.rows(torch.tensor([40, 99])).any() and net.times(torch.tensor([40])).item() == -math.inf
            assert torch.isfinite(before).all() and net.nodes == 12
            net.grow(50)
            assert net.nodes == 50 and torch.equal(net.embed(asked, t), before)
            # an event with a new number grows the table by itself
            net.hold(EventBatch.of(SimpleNamespace(src=[60], dst=[2], t=[1.8e9], weight=None, x=None)))
            advance(net)
            assert net.nodes == 61 and net.times(torch.tensor([60])).item() == 1.8e9


def test_reading_changes_nothing() -> None:
    for net in nets():
        with torch.no_grad():
            net.hold(stream())
            before = {k: v.clone() for k, v in flat_state(net).items()}
            found = net.pending()
            net.rows(found.nodes), net.times(found.nodes), net.updated(found.nodes, found.messages)
            z = net.embed(found.nodes, found.t)
            net.link(z, z)
            after = flat_state(net)
        assert all(torch.equal(before[k], after[k]) for k in before)


# -- the models -------------------------------------------------------------------------------------------------------


def test_models_meet_the_socket() -> None:
    for net in [*nets(), Sums(3, 1)]:
        assert isinstance(net, NodeMemory) and missing(net) == ()
    assert missing(nn.Linear(2, 2)) == SOCKET

    assert missing(MemoryTable(2, 1)) == ("updated", "embed", "link")


@pytest.mark.parametrize("which", [0, 1])
def test_update_equals_a_loop_over_nodes(which: int) -> None:
    """The last message of each node, built by hand from the rows before the batch."""
    net, events = nets()[which], stream(80, 12, 5)
    with torch.no_grad():
        net.hold(events.rows(0, 40))
        advance(net)
        old, times = net.memory.clone(), net.last.clone()
        batch = events.rows(40, 80)
        net.hold(batch)
        advance(net)
        for node in range(12):
            rows = [k for k in range(40) if node in (int(batch.src[k]), int(batch.dst[k]))]
            if not rows:
                assert torch.equal(net.memory[node], old[node])
                continue
            k = rows[-1]
            other = int(batch.dst[k]) if int(batch.src[k]) == node else int(batch.src[k])
            passed = (batch.t[k] - times[node]) if torch.isfinite(times[node]) else torch.tensor(0.0, dtype=torch.float64)
            edge = (batch.weight[k] / net.heaviest).float().view(1)
            said = torch.cat([old[node], old[other], edge, net.code(passed / net.unit)])
            expected = net.cell(said[None], old[node][None])[0]
            assert torch.allclose(net.memory[node], expected, atol=1e-6)
            assert float(net.last[node]) == float(batch.t[k])


def test_mean_aggregate_is_the_mean_message() -> None:
    net, events = nets()[2], stream(60, 5, 2)
    with torch.no_grad():
        net.hold(events)
        found = net.pending()
        said = net.message(found.nodes, found.messages)
        by_hand = torch.stack([said[found.messages.to == i].mean(0) for i in range(len(found.nodes))])
        assert torch.allclose(net.updated(found.nodes, found.messages), net.cell(by_hand, net.rows(found.nodes)), atol=1e-6)


def test_attention_equals_a_loop_over_neighbours() -> None:
    """Heads, scaling and mask written out, from the list of past events; and a node without any gets the bare row."""
    net, events = nets(14)[0], stream(60, 12, 7)
    with torch.no_grad():
        net.hold(events)
        advance(net)
        t = float(events.t[-1]) + 500
        found = net.embed(torch.arange(14), torch.full((14,), t, dtype=torch.float64))
        att, d = net.attend, 8 + 6
        for node in range(14):
            past: list[tuple[int, float, float]] = []
            for u, v, when, w in zip(*(c.tolist() for c in events[:4]), strict=True):
                if node in (u, v):
                    past.append((v if u == node else u, when, w))
            past = past[::-1][:4]
            own = net.memory[node]
            out = torch.zeros(d)
            if past:
                keys = torch.stack(
                    [torch.cat([net.memory[j], (torch.tensor([w]) / net.heaviest).float(), net.code(torch.tensor(t - s) / net.unit)])
                     for j, s, w in past]
                )  # fmt: skip
                q = att.q_proj_weight @ torch.cat([own, net.code(torch.tensor(0.0))]) + att.in_proj_bias[:d]
                k = keys @ att.k_proj_weight.T + att.in_proj_bias[d : 2 * d]
                v = keys @ att.v_proj_weight.T + att.in_proj_bias[2 * d :]
                heads = []
                for h in range(2):
                    part = slice(h * d // 2, (h + 1) * d // 2)
                    alpha = torch.softmax(k[:, part] @ q[part] / math.sqrt(d // 2), 0)
                    heads.append(alpha @ v[:, part])
                out = att.out_proj(torch.cat(heads))
            assert torch.allclose(found[node], net.merge(torch.cat([out, own])), atol=2e-5), node


def test_jodie_drifts_linearly_in_time() -> None:
    net, events = nets()[1], stream(60, 12, 7)
    with torch.no_grad():
        net.hold(events)
        advance(net)
        last = float(net.times(torch.tensor([3])).item())
        at = [net.embed(torch.tensor([3]), torch.tensor([last + h * net.pace], dtype=torch.float64)) for h in (0.0, 1.0, 2.0)]
        assert torch.allclose(at[0], net.rows(torch.tensor([3]))) and not torch.allclose(at[1], at[0])
        assert torch.allclose(at[2] - at[1], at[1] - at[0], atol=1e-5)


def test_no_unit_of_time_or_weight_matters() -> None:
    """Times shifted and stretched, weights scaled: the same vectors, scales being the events' own."""
    for which in range(2):
        found = []
        for shift, stretch, heavy in ((0.0, 1.0, 1.0), (-1.6e9, 1 / 64, 8.0)):
            events = stream(120, 12, 4)
            events = events._replace(t=(events.t + shift) * stretch, weight=events.weight * heavy)
            torch.manual_seed(0)
            clock = clock_of(events)
            net = TGN(12, 8, clock, time=6, neighbours=4, dropout=0) if which == 0 else JODIE(12, 8, clock, time=6, dropout=0)
            with torch.no_grad():
                for a in range(0, 120, 30):
                    net.hold(events.rows(a, a + 30))
                    advance(net)
                found.append(net.embed(torch.arange(12), (events.t[-1] + 128 * stretch).repeat(12)))
        assert torch.allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_weights_and_features_of_past_events_are_read(which: int) -> None:
    events = stream(40, 12, 4, features=2)
    changed = [events, events._replace(weight=-events.weight), events._replace(x=events.x + 1)]
    rows, vectors = [], []
    for given_ in changed:
        net = nets(features=2)[which]
        with torch.no_grad():
            net.hold(given_)
            advance(net)
            rows.append(net.memory.clone())
            vectors.append(net.embed(torch.arange(12), (events.t[-1] + 5).repeat(12)))
    for other in (1, 2):
        assert not torch.allclose(rows[0], rows[other]) and not torch.allclose(vectors[0], vectors[other])


def test_scales_by_hand() -> None:
    events = SimpleNamespace(
        src=np.array([0, 1, 0]), dst=np.array([1, 2, 0]), t=np.array([0.0, 4.0, 10.0]), weight=np.array([1.0, -5.0, 2.0]),
        x=np.array([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]]),
    )  # fmt: skip
    found = Clock.of(events)
    # node 0: events at 0, 10 and 10; node 1: 0 and 4; node 2: 4
    assert (found.unit, found.pace, found.heaviest) == (5.0, 14 / 3, 5.0)
    assert found.mean == (3.0, 7.0) and found.spread == pytest.approx((math.sqrt(8 / 3), 1.0))
    alone = Clock.of(SimpleNamespace(src=np.array([0]), dst=np.array([1]), t=np.array([3.0]), weight=None, x=None))
    assert alone == Clock(1.0, 1.0, 1.0)


def test_false_targets_are_known_by_the_end_of_the_batch() -> None:
    events = stream(100, 30, 9)
    targets = Targets(events)
    for row in (1, 10, 55, 100, 400):
        assert targets.by(row).tolist() == sorted(set(events.dst[:row].tolist()))


def test_false_targets_are_uniform_over_the_others() -> None:
    targets, rng = torch.tensor([2, 5, 6, 9]), np.random.default_rng(0)
    found = drawn_without(targets, torch.tensor([5]).repeat(9000), rng)
    counts = torch.bincount(found, minlength=10)
    assert counts[5] == 0 and counts.sum() == 9000 and (counts[torch.tensor([2, 6, 9])] - 3000).abs().max() < 200
    assert drawn_without(torch.tensor([7]), torch.tensor([7, 7]), rng).tolist() == [7, 7]


# -- steps ------------------------------------------------------------------------------------------------------------


def trained(seed: int = 0, epochs: int = 1, correct: nn.Module | None = None) -> tuple[Whole, Any]:
    base = TGNMethod(width=8, time=6, neighbours=4, dropout=0.0, batch=30)
    events = stream(150, 12, seed)
    torch.manual_seed(seed)
    whole = Whole(base.module(12, clock_of(events), {}), correct)
    optimiser = torch.optim.Adam(whole.parameters(), lr=1e-2)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        whole.reset()
        for a in range(0, 150, 30):
            train_step(whole, optimiser, base, events.rows(a, a + 30), torch.unique(events.dst), rng)
    return whole, base


def test_the_updater_learns_from_the_next_batch() -> None:
    base, events = TGNMethod(width=8, time=6, dropout=0.0), stream(60, 12)
    torch.manual_seed(0)
    whole = Whole(base.module(12, clock_of(events), {}))
    optimiser, rng = torch.optim.SGD(whole.parameters(), lr=0.0), np.random.default_rng(0)
    train_step(whole, optimiser, base, events.rows(0, 30), torch.unique(events.dst), rng)
    assert whole.net.cell.weight_ih.grad is None  # nothing had moved yet
    train_step(whole, optimiser, base, events.rows(30, 60), torch.unique(events.dst), rng)
    assert whole.net.cell.weight_ih.grad is not None and bool(whole.net.cell.weight_ih.grad.any())


def test_future_and_false_targets_leave_no_trace() -> None:
    """Scores of a batch do not move when the batch and all after it change; false targets enter no table."""
    whole, base = trained()
    a, b = copy.deepcopy(whole), copy.deepcopy(whole)
    events, other = stream(90, 12, 3, span=1e4), stream(90, 12, 4, span=1e4)
    events = events._replace(t=events.t + 1e6)
    other = other._replace(t=other.t + 1e6)
    mixed = EventBatch(*(torch.cat([x[:40], y[40:]]) for x, y in zip(events, other, strict=True)))
    mixed = mixed._replace(t=torch.cummax(mixed.t, 0).values)
    query = SimpleNamespace(src=np.arange(4), dst=np.array([[1, 5], [2, 6], [3, 7], [4, 40]]), t=np.full(4, float(events.t[39])))
    a.take_in(events.rows(0, 40), 200)
    b.take_in(mixed.rows(0, 40), 200)
    state = {k: v.clone() for k, v in flat_state(a).items()}
    with torch.no_grad():
        assert torch.equal(base.answer(a.net, query), base.answer(b.net, query))
    assert all(torch.equal(state[k], v) for k, v in flat_state(a).items())
    a.take_in(events.rows(40, 90), 200)
    b.take_in(mixed.rows(40, 90), 200)
    with torch.no_grad():
        assert not torch.equal(base.answer(a.net, query), base.answer(b.net, query))


def test_asking_in_chunks_and_one_by_one_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from latticework.temporal import memory_baselines

    whole, base = trained()
    rng = np.random.default_rng(0)
    query = SimpleNamespace(src=rng.integers(12, size=50), dst=rng.integers(14, size=(50, 3)), t=np.full(50, 1.61e9))
    with torch.no_grad():
        all_at_once = base.answer(whole.net, query)
        monkeypatch.setattr(memory_baselines, "ASKED", 7)
        assert torch.allclose(base.answer(whole.net, query), all_at_once, atol=1e-6)


def test_pieces_of_two_hundred_whatever_the_chunk() -> None:
    events, (whole, _) = stream(1000, 12, 2), trained()
    events = events._replace(t=events.t + 1e6)
    one, many = copy.deepcopy(whole), copy.deepcopy(whole)
    one.take_in(events, 200)
    for a in range(0, 1000, 400):
        many.take_in(events.rows(a, a + 400), 200)
    assert all(torch.equal(x, y) for x, y in zip(flat_state(one).values(), flat_state(many).values(), strict=True))


def test_saved_and_loaded_goes_on_bit_for_bit() -> None:
    events, (whole, base) = stream(400, 20, 2), trained()
    events = events._replace(t=events.t + 1e6)
    whole.take_in(events.rows(0, 200), 200)
    again = Whole(base.module(whole.net.nodes, Clock(1, 1, 1), {}))
    load_flat(again, {k: v.clone() for k, v in flat_state(whole).items()})
    for w in (whole, again):
        w.take_in(events.rows(200, 400), 200)
    assert whole.net.nodes == 20
    assert all(torch.equal(x, y) for x, y in zip(flat_state(whole).values(), flat_state(again).values(), strict=True))


def test_a_copy_shares_nothing() -> None:
    whole, _ = trained()
    before = {k: v.clone() for k, v in flat_state(whole).items()}
    other = copy.deepcopy(whole)
    events = stream(200, 30, 2)
    other.take_in(events._replace(t=events.t + 1e6), 200)
    assert all(torch.equal(before[k], v) for k, v in flat_state(whole).items())


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors() -> None:
    clock = Clock(1.0, 1.0, 1.0)
    for nodes, width in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="nodes >= 1"):
            MemoryTable(nodes, width)
    with pytest.raises(ValueError, match="do not divide"):
        TGN(4, 8, clock, time=5)
    with pytest.raises(ValueError, match="last or mean"):
        TGN(4, 8, clock, time=6, aggregate="sum")  # type: ignore[arg-type]
    net = TGN(4, 8, clock, time=6)
    events = stream(20, 4)
    with pytest.raises(ValueError, match="order of time"):
        net.hold(EventBatch(*(c.flip(0) for c in events)))
    net.hold(events.rows(10, 20))
    with pytest.raises(ValueError, match="after those already held"):
        net.hold(events.rows(0, 10))
    with pytest.raises(ValueError, match="3 features"):
        net.hold(stream(5, 4, features=3))
    with pytest.raises(ValueError, match="without neighbours"):
        JODIE(4, 8, clock).neighbourhood(torch.tensor([0]))
