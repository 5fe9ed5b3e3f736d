"""PRES: the filter by hand and against a loop, the incoherence, its limits, what a step keeps alive, pending events."""

from __future__ import annotations

import copy
import gc
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.temporal.memory import EventBatch, Moved, advance, flat_state
from latticework.temporal.memory_baselines import Clock, JODIEMethod, Targets, TGNMethod, Whole, train_step
from latticework.temporal.pres import (
    PredictionCorrection,
    dropped_messages,
    gradient_variance,
    incoherence,
    pending_events,
)


def double(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def stream(m: int = 240, n: int = 12, seed: int = 0, after: float = 0.0) -> EventBatch:
    rng = np.random.default_rng(seed)
    t = np.sort(np.floor(rng.random(m) * 1e5)) + after
    return EventBatch.of(SimpleNamespace(src=rng.integers(n, size=m), dst=rng.integers(n, size=m), t=t, weight=None, x=None))


# -- the filter -------------------------------------------------------------------------------------------------------


def test_worked_step() -> None:
    """s(t1) = 1, dt = 2, xi = .6, n = 3: mu .2, prediction 1.4; the model says 2 and g = .75: 1.85, delta .425."""
    correct = PredictionCorrection(3, 1, 0.75).double()
    correct.n[1], correct.xi[1], correct.psi[1] = 3.0, 0.6, 0.3
    node = torch.tensor([1])
    assert correct.rate(node).item() == pytest.approx(0.2)
    assert correct.variance(node).item() == pytest.approx(0.3 / 3 - 0.04)
    written = correct(node, double([1.0]), double([2.0]), double(10.0), double(12.0))
    assert written.item() == pytest.approx(1.85)
    assert correct.n.tolist() == [0, 4, 0] and correct.xi[1].item() == pytest.approx(1.025)
    assert correct.psi[1].item() == pytest.approx(0.3 + 0.180625)


@pytest.mark.parametrize("with_dt", [True, False])
def test_trackers_equal_a_loop_over_nodes(with_dt: bool) -> None:
    rng, g, unit = np.random.default_rng(0), 0.6, 3.0
    correct = PredictionCorrection(8, 3, g, with_dt=with_dt, unit=unit).double()
    n, xi, psi = np.zeros(8), np.zeros((8, 3)), np.zeros((8, 3))
    s, last = np.zeros((8, 3)), np.full(8, -np.inf)
    for step in range(60):
        chosen = np.sort(rng.choice(8, rng.integers(1, 9), replace=False))
        now = step * 2.0 + rng.random(len(chosen)) * 2
        after = rng.standard_normal((len(chosen), 3))
        written = correct(*(torch.from_numpy(v) for v in (chosen, s[chosen], after, last[chosen], now)))
        for row, i in enumerate(chosen):
            dt = 1.0 if not with_dt or last[i] == -np.inf else max((now[row] - last[i]) / unit, 1.0)
            mu = xi[i] / n[i] if n[i] else np.zeros(3)
            new = (1 - g) * (s[i] + dt * mu) + g * after[row]
            delta = (new - s[i]) / dt
            n[i], xi[i], psi[i], s[i], last[i] = n[i] + 1, xi[i] + delta, psi[i] + delta**2, new, now[row]
            assert np.abs(written[row].numpy() - new).max() < 1e-10
    assert np.abs(correct.n.numpy() - n).max() == 0
    assert np.abs(correct.xi.numpy() - xi).max() < 1e-10 and np.abs(correct.psi.numpy() - psi).max() < 1e-10
    variance = psi / n[:, None] - (xi / n[:, None]) ** 2
    assert np.abs(correct.variance(torch.arange(8)).numpy() - variance).max() < 1e-10


def drift_errors(dims: int = 4, seed: int = 0, **how: Any) -> tuple[float, float]:
    """Mean squared errors of what is written and of what is observed, steps 25 to 50 of rows that drift linearly."""
    draw = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(200, dims, generator=draw, dtype=torch.float64)

    correct, nodes, start, speed = PredictionCorrection(200, dims, 0.5, **how).double(), torch.arange(200), normal(), normal()
    row, found = torch.zeros(200, dims, dtype=torch.float64), []
    for step in range(1, 51):
        true = start + speed * step
        seen = true + normal()
        now = torch.full((200,), float(step), dtype=torch.float64)
        row = correct(nodes, row, seen, now - 1, now)
        if step >= 25:
            found.append([((row - true) ** 2).mean(), ((seen - true) ** 2).mean()])
    ours, observed = torch.tensor(found).mean(0).tolist()
    return ours, observed


@pytest.mark.parametrize("seed", range(3))
def test_filter_halves_the_error_of_drifting_rows(seed: int) -> None:
    ours, observed = drift_errors(seed=seed)
    assert observed == pytest.approx(1, abs=0.05)
    assert ours < observed / 2 and ours == pytest.approx(1 / 3, abs=0.04)  # g^2 / (1 - (1 - g)^2), a known drift's


def test_a_filter_without_trackers_is_worse_than_none() -> None:
    """The gain is the drift's: predicting no change lags behind by the drift."""
    ours, observed = drift_errors(anchors=torch.tensor([0]))
    assert ours > observed


@given(seed=st.integers(0, 10_000), g=st.floats(0, 1), q=st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_written_lies_between_prediction_and_update(seed: int, g: float, q: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    correct = PredictionCorrection(q, 2, g).double()
    correct.track(torch.arange(q), torch.randn(q, 2, generator=draw, dtype=torch.float64))
    before, after = (torch.randn(q, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    since = torch.zeros(q, dtype=torch.float64)
    predicted = before + 3 * correct.rate(torch.arange(q))
    written = correct(torch.arange(q), before, after, since, since + 3)
    assert torch.allclose(written, (1 - g) * predicted + g * after, atol=1e-12)


def test_gate_one_is_the_update_and_gate_zero_the_prediction() -> None:
    before, after, t = torch.randn(4, 3), torch.randn(4, 3), torch.zeros(4, dtype=torch.float64)
    assert PredictionCorrection(4, 3, 1.0)(torch.arange(4), before, after, t, t + 5) is after
    still = PredictionCorrection(4, 3, 0.0)
    # nothing tracked: the prediction is the old row, for ever
    assert torch.equal(still(torch.arange(4), before, after, t, t + 5), before) and not still.xi.any()
    still.xi[:] = 1.0
    still.n[:] = 2.0
    assert torch.allclose(still(torch.arange(4), before, after, t, t + 5), before + 5 * 0.5)


def test_ties_first_events_and_the_floor_of_dt() -> None:
    correct = PredictionCorrection(4, 1, 0.5, unit=10.0).double()
    since, now = double(-math.inf, 100, 100, 100), double(100.0, 100, 105, 130)
    assert correct.steps(since, now).tolist() == [1, 1, 1, 3]
    written = correct(torch.arange(4), torch.zeros(4, 1).double(), torch.ones(4, 1).double(), since, now)
    assert torch.isfinite(written).all() and torch.isfinite(correct.rate(torch.arange(4))).all()
    assert correct.xi.ravel().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5 / 3])


def test_learned_gate_starts_where_it_should_and_learns() -> None:
    correct = PredictionCorrection(2, 2, start=0.8)
    assert float(correct.g.detach()) == pytest.approx(0.8)
    t = torch.zeros(2, dtype=torch.float64)
    correct(torch.arange(2), torch.zeros(2, 2), torch.ones(2, 2), t, t).sum().backward()
    # d/dlogit of g * 4 ones
    assert correct.logit is not None and correct.logit.grad is not None
    assert correct.logit.grad.item() == pytest.approx(4 * 0.8 * 0.2, rel=1e-5)


def test_anchors_are_tracked_alone_and_growth_keeps_all() -> None:
    correct = PredictionCorrection(5, 2, 0.5, anchors=torch.tensor([1, 4]))
    t = torch.zeros(5, dtype=torch.float64)
    correct(torch.arange(5), torch.zeros(5, 2), torch.ones(5, 2), t, t)
    assert correct.n.tolist() == [1, 1] and correct.rate(torch.arange(5))[:, 0].tolist() == [0, 0.5, 0, 0, 0.5]
    correct(torch.arange(5), torch.zeros(5, 2), 2 * torch.ones(5, 2), t, t)  # 1.25 beside 0.5: a spread of 0.375
    assert correct.variance(torch.arange(5))[:, 0].tolist() == [0, 0.375**2, 0, 0, 0.375**2]
    correct.reset()
    correct(torch.arange(5), torch.zeros(5, 2), torch.ones(5, 2), t, t)
    correct.grow(8)
    assert correct.rate(torch.tensor([7, 4])).tolist() == [[0, 0], [0.5, 0.5]]
    everyone = PredictionCorrection(2, 2, 0.5)
    everyone.track(torch.tensor([0]), torch.ones(1, 2))
    everyone.grow(4)
    assert everyone.n.tolist() == [1, 0, 0, 0] and everyone.xi.shape == (4, 2)
    everyone.reset()
    assert not everyone.n.any() and not everyone.xi.any() and not everyone.psi.any()
    # storage: 2 k d + k numbers
    for filter_, k in ((correct, 2), (everyone, 4)):
        assert filter_.n.numel() + filter_.xi.numel() + filter_.psi.numel() == 2 * k * 2 + k


# -- incoherence ------------------------------------------------------------------------------------------------------


def test_incoherence_of_same_orthogonal_and_empty_rows() -> None:
    rows = torch.randn(6, 4)
    assert float(incoherence(rows, rows)) == pytest.approx(0, abs=1e-6)
    assert float(incoherence(rows, 3 * rows)) == pytest.approx(0, abs=1e-6)
    assert float(incoherence(double([1, 0], [0, 2]), double([0, 5], [3, 0]))) == 1
    assert float(incoherence(double([1, 0]), double([-1, 0]))) == 2
    # rows that were 0 have no direction and do not count
    assert float(incoherence(double([0, 0], [1, 0]), double([1, 1], [0, 1]))) == 1
    nothing = incoherence(torch.zeros(3, 2), torch.ones(3, 2, requires_grad=True))
    assert float(nothing) == 0


def test_incoherence_gradient_passes_the_numerical_check() -> None:
    before = torch.randn(3, 4, dtype=torch.float64)
    after = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: incoherence(before, a), (after,))


def whole_of(base: Any, gate: Any = "learned", seed: int = 0, **how: Any) -> Whole:
    torch.manual_seed(seed)
    net = base.module(12, Clock(400.0, 4000.0, 1.0), {})
    return Whole(net, None if gate is None else PredictionCorrection(12, base.width, gate, unit=4000.0, **how))


SMALL = TGNMethod(width=8, time=6, neighbours=4, dropout=0.0, batch=40)
JUMPY = JODIEMethod(width=8, time=6, dropout=0.0, batch=40)


@pytest.mark.parametrize("base", [SMALL, JUMPY])
def test_incoherence_reaches_the_updater(base: Any) -> None:
    """Its gradient alone, through the written rows, to the weights of the cell, and to the gate (official: detached)."""
    whole, events = whole_of(base), stream()
    with torch.no_grad():
        for a in (0, 40):
            whole.net.hold(events.rows(a, a + 40))
            advance(whole.net, whole.correct)
    whole.net.hold(events.rows(80, 120))
    moved = advance(whole.net, whole.correct)
    assert moved is not None
    incoherence(moved.before, moved.written).backward()
    for weight in (whole.net.cell.weight_ih, whole.net.cell.weight_hh, whole.correct.logit):
        assert weight.grad is not None and bool(weight.grad.abs().sum() > 0)


# -- steps ------------------------------------------------------------------------------------------------------------


def epoch(whole: Whole, base: Any, events: EventBatch, optimiser: Any, beta: float = 0.0) -> list[float]:
    rng, targets = np.random.default_rng(0), Targets(events)

    def penalty(moved: Moved) -> torch.Tensor:
        return beta * incoherence(moved.before, moved.written)

    whole.reset()
    return [
        train_step(
            whole, optimiser, base, events.rows(a, a + base.batch), targets.by(a + base.batch), rng, penalty if beta else None
        )
        for a in range(0, len(events.src), base.batch)
    ]


@pytest.mark.parametrize("base", [SMALL, JUMPY, SMALL.but(aggregate="mean")])
def test_gate_one_without_penalty_is_the_base_bit_for_bit(base: Any) -> None:
    events, found = stream(), []
    for gate in (None, 1.0):
        whole = whole_of(base, gate)
        optimiser = torch.optim.Adam(whole.parameters(), lr=1e-2)
        losses = [epoch(whole, base, events, optimiser) for _ in range(2)]
        whole.take_in(stream(100, seed=1, after=1e6), 200)
        found.append((losses, flat_state(whole.net)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(v, found[1][1][k]) for k, v in found[0][1].items())


def test_gate_zero_follows_the_prediction_alone() -> None:
    """The model's update never reaches the memory: rows that start at 0 stay there."""
    whole, events = whole_of(SMALL, 0.0), stream()
    epoch(whole, SMALL, events, torch.optim.Adam(whole.parameters(), lr=1e-2))
    assert not whole.net.memory.any() and bool(torch.isfinite(whole.net.last).any())


def test_the_filter_and_the_penalty_change_the_fit() -> None:
    events, found = stream(), []
    for gate, beta in ((1.0, 0.0), (0.7, 0.0), (1.0, 1.0)):
        whole = whole_of(SMALL, gate)
        optimiser = torch.optim.Adam(whole.parameters(), lr=1e-2)
        for _ in range(2):
            epoch(whole, SMALL, events, optimiser, beta)
        found.append(whole.net.memory.clone())
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_steps_against_incoherence_lower_it() -> None:
    events, whole = stream(), whole_of(SMALL)
    whole.take_in(events.rows(0, 80), 40)
    optimiser, turns = torch.optim.SGD(whole.parameters(), lr=0.1), []
    for _ in range(20):
        trial = copy.deepcopy(whole.net)
        trial.hold(events.rows(80, 120))
        found = trial.pending()
        before, after = trial.rows(found.nodes), whole.net.updated(found.nodes, found.messages)
        turn = incoherence(before, after)
        optimiser.zero_grad()
        turn.backward()
        optimiser.step()
        turns.append(float(turn.detach()))
    assert turns[0] > 0 and all(b < a for a, b in itertools.pairwise(turns)) and turns[-1] < 0.7 * turns[0]


def live_tensors() -> tuple[int, int]:
    gc.collect()
    held = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return len(held), sum(t.numel() for t in held)


def test_no_graph_lives_across_500_steps() -> None:
    """As many tensors, of as many numbers, are alive after 500 steps as after 20; trackers and memory have no gradient."""
    base, events = JUMPY.but(batch=2), stream(1000)
    whole = whole_of(base)
    optimiser, rng = torch.optim.Adam(whole.parameters(), lr=1e-3), np.random.default_rng(0)
    targets, seen = torch.unique(events.dst), []

    def penalty(moved: Moved) -> torch.Tensor:
        return 0.1 * incoherence(moved.before, moved.written)

    for step in range(500):
        train_step(whole, optimiser, base, events.rows(2 * step, 2 * step + 2), targets, rng, penalty)
        if step in (20, 499):
            seen.append(live_tensors())
    assert seen[0] == seen[1]
    tables = [whole.net.memory, whole.net.last, whole.correct.n, whole.correct.xi, whole.correct.psi]
    assert all(t.grad_fn is None and not t.requires_grad for t in tables)


def test_saved_trackers_go_on_bit_for_bit() -> None:
    from latticework.temporal.memory import load_flat

    whole = whole_of(SMALL, 0.5)
    whole.take_in(stream(), 200)
    again = whole_of(SMALL, 0.5, seed=5)
    load_flat(again, {k: v.clone() for k, v in flat_state(whole).items()})
    other = copy.deepcopy(whole)
    for w in (whole, again, other):
        w.take_in(stream(100, 12, 1, after=1e6), 200)
    assert bool(whole.correct.n.any())
    for w in (again, other):
        assert all(torch.equal(x, y) for x, y in zip(flat_state(whole).values(), flat_state(w).values(), strict=True))
    # a memory that is carried on without its trackers goes elsewhere
    bare = copy.deepcopy(whole)
    bare.correct.reset()
    for w in (whole, bare):
        w.take_in(stream(100, 12, 2, after=2e6), 200)
    assert not torch.equal(whole.net.memory, bare.net.memory)


# -- pending events ---------------------------------------------------------------------------------------------------


def test_pending_events_by_hand() -> None:
    src, dst = np.array([0, 1, 3]), np.array([1, 2, 4])
    assert pending_events(src, dst, 3).tolist() == [False, True, False]
    assert not pending_events(src, dst, 1).any()
    assert pending_events(src, dst, 2).tolist() == [False, True, False]
    # a self-loop is not earlier than itself
    assert pending_events(np.array([5, 5]), np.array([5, 1]), 2).tolist() == [False, True]
    assert pending_events(np.zeros(0, int), np.zeros(0, int), 5).shape == (0,)
    with pytest.raises(ValueError, match="at least one event"):
        pending_events(src, dst, 0)


@given(seed=st.integers(0, 10_000), m=st.integers(1, 60), n=st.integers(1, 12), batch=st.integers(1, 70))
@settings(deadline=None, max_examples=50)
def test_pending_events_equal_a_loop(seed: int, m: int, n: int, batch: int) -> None:
    rng = np.random.default_rng(seed)
    src, dst = rng.integers(n, size=m), rng.integers(n, size=m)
    expected, lost = [], 0
    for start in range(0, m, batch):
        met: set[int] = set()
        for u, v in zip(src[start : start + batch].tolist(), dst[start : start + batch].tolist(), strict=True):
            expected.append(u in met or v in met)
            met |= {u, v}
        lost += 2 * len(src[start : start + batch]) - len(met)
    assert pending_events(src, dst, batch).tolist() == expected
    assert dropped_messages(src, dst, batch) == pytest.approx(lost / (2 * m))


# -- theorem 1 --------------------------------------------------------------------------------------------------------


def test_gradient_variance_is_that_of_independent_epochs() -> None:
    """Against the unbiased variance over whole epochs, drawn and stored one by one."""
    events, whole = stream(120), whole_of(JUMPY, None)
    found = gradient_variance(whole.net, JUMPY, events, 40, 5, np.random.default_rng(3))
    rng, grads = np.random.default_rng(3), []
    for _ in range(5):
        whole.net.reset()
        whole.net.zero_grad()
        for a in range(0, 120, 40):
            advance(whole.net)
            JUMPY.loss(whole.net, events.rows(a, a + 40), Targets(events).by(a + 40), rng).backward()
            whole.net.settle()
            whole.net.hold(events.rows(a, a + 40))
        grads.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).ravel() for p in whole.net.parameters()]))
    assert found == pytest.approx(float(torch.stack(grads).double().var(0).sum()), rel=1e-4)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors() -> None:
    for gate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            PredictionCorrection(3, 2, gate)
    with pytest.raises(ValueError, match="unit"):
        PredictionCorrection(3, 2, unit=0.0)
    with pytest.raises(ValueError, match="starts within"):
        PredictionCorrection(3, 2, start=1.0)
    with pytest.raises(ValueError, match="nodes >= 1"):
        PredictionCorrection(0, 2)
    with pytest.raises(ValueError, match="no node is tracked"):
        PredictionCorrection(3, 2, anchors=torch.zeros(0, dtype=torch.int64))
