"""The probe temporal-statistics: against loops over events, worked values, single events, signs, the command line, real logs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.registry import value_of
from latticework.core.run import Run
from latticework.data.events import Events, GivenEvents, write_events
from latticework.temporal.statistics import first_times, gaps, novelty, pair_codes, repeats, surprise
from latticework.testing import check_probe


def log(seed: int, m: int, n: int = 8) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    src, dst = rng.integers(0, n, (2, m))
    return src, dst, np.cumsum(rng.integers(0, 3, m)).astype(np.float64)


def measured(events: Events, **fields: Any) -> Any:
    probe: Any = value_of("probe", "temporal-statistics")
    return probe.but(**fields).measure(GivenEvents.hold(events), Run(task=None))


def events_of(src: Any, dst: Any, t: Any, **more: Any) -> Events:
    n = int(max(max(src), max(dst))) + 1
    ids = tuple(str(i) for i in range(n))
    return Events(ids, np.asarray(src, np.int64), np.asarray(dst, np.int64), np.asarray(t, np.float64), **more)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), m=st.integers(1, 60), directed=st.booleans())
def test_pairs_equal_a_loop_over_events(seed: int, m: int, directed: bool) -> None:
    src, dst, t = log(seed, m)
    names = [(u, v) if directed else tuple(sorted((u, v))) for u, v in zip(src.tolist(), dst.tolist(), strict=True)]
    first: dict[Any, float] = {}
    again = []
    for name, when in zip(names, t.tolist(), strict=True):
        again.append(name in first and first[name] < when)
        first.setdefault(name, when)
    assert repeats(src, dst, t, directed).tolist() == again
    shares = []
    for when in sorted(set(t.tolist())):
        now = {name for name, s in zip(names, t.tolist(), strict=True) if s == when}
        before = {name for name, s in zip(names, t.tolist(), strict=True) if s < when}
        shares.append(len(now - before) / len(now))
    code = pair_codes(src, dst, directed)
    assert novelty(code, t) == pytest.approx(np.mean(shares))
    assert first_times(code, t).tolist() == [first[name] for name in names]
    half = np.arange(m) < m // 2
    if m // 2 > 0:
        known, asked = set(names[: m // 2]), set(names[m // 2 :])
        found = surprise(code, half, ~half)
        assert found.surprise == pytest.approx(len(asked - known) / len(asked))
        assert found.reoccurrence == pytest.approx(len(asked & known) / len(known))
        assert found.events == pytest.approx(np.mean([name not in known for name in names[m // 2 :]]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), m=st.integers(0, 60))
def test_gaps_equal_a_loop_over_owners(seed: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    owner, t = rng.integers(0, 5, m), rng.integers(0, 50, m).astype(np.float64)
    wanted, pairs = [], []
    for u in range(5):
        gap = np.diff(np.sort(t[owner == u])).tolist()
        wanted += gap
        pairs += list(itertools.pairwise(gap))
    found = gaps(owner, t)
    assert sorted(found.gap.tolist()) == sorted(wanted) and sorted(zip(*found.pairs.tolist(), strict=True)) == sorted(pairs)


def test_burstiness_of_a_clock_a_poisson_process_and_bursts() -> None:
    one = np.zeros(20_000, np.int64)
    assert gaps(one, np.arange(20_000.0)).burstiness == -1
    rng = np.random.default_rng(0)
    assert abs(gaps(one, np.cumsum(rng.exponential(size=20_000))).burstiness) < 0.02
    bursts = gaps(one, np.cumsum(rng.pareto(1.1, 20_000)))
    assert bursts.burstiness > 0.7 and abs(bursts.memory) < 0.05
    # gaps that come in long runs remember
    assert gaps(one, np.cumsum(np.repeat(rng.exponential(size=200), 100))).memory > 0.9


def test_worked_values() -> None:
    # train: ab ab cd | test: ab, xa (x is new), xy (both new)
    src, dst, t = [0, 0, 2, 0, 4, 4], [1, 1, 3, 1, 0, 5], [0, 1, 2, 3, 4, 5]
    found = measured(events_of(src, dst, t), train=0.5, valid=0.0).scalars
    assert found["repeat rate"] == pytest.approx(2 / 6) and found["distinct pairs"] == 4
    assert found["surprise"] == pytest.approx(2 / 3) == found["surprise, of events"]
    assert found["reoccurrence"] == 0.5
    assert found["new nodes in test"] == 2 and found["share of test nodes that are new"] == 0.5
    assert found["share of test events with a node new in test"] == pytest.approx(2 / 3)
    assert found["share of test events between two such nodes"] == pytest.approx(1 / 3)
    assert found["share of events with a new node"] == pytest.approx(4 / 6)
    assert found["distinct times"] == 6 and found["share of events with a tied time"] == 0


def test_events_of_one_time_do_not_see_each_other() -> None:
    found = measured(events_of([0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 5])).scalars
    assert found["repeat rate"] == 0.25 and found["reciprocity"] == 0.25
    assert found["share of events with a tied time"] == 0.75 and found["most events at one time"] == 3
    # undirected, the third event is the pair of the first two, at the same time still
    assert measured(events_of([0, 1, 0], [1, 0, 1], [0, 3, 5]), directed=False).scalars["repeat rate"] == pytest.approx(2 / 3)


def test_self_loops_are_one_event_of_their_node() -> None:
    found = measured(events_of([0, 0, 1], [0, 0, 1], [0, 4, 5]))
    assert found.scalars["self-loops"] == 1 and found.scalars["reciprocity"] is None
    assert next(r for r in found.tables["gaps"] if r["of"] == "of a node")["gaps"] == 1


def test_sign_drift() -> None:
    sign = np.array([1, 1, 1, 1, 1, -1, -1, 1, -1, -1], np.float32)
    events = events_of([0] * 10, [1, 2] * 5, range(10), weight=sign, signed=True)
    found = measured(events, train=0.5, valid=0.0).scalars
    assert found["negative share"] == pytest.approx(0.4) and found["negative share in train"] == 0
    assert found["sign drift"] == pytest.approx(0.8)
    # pair 01: + + + - -; pair 02: + + - + -
    assert found["share of repeats with another sign than before"] == pytest.approx(4 / 8)
    assert "sign drift" not in measured(replace(events, weight=None, signed=False), train=0.5, valid=0.0).scalars


def test_what_cannot_be_cut_is_still_told() -> None:
    one = measured(events_of([0], [1], [3.0]))
    assert one.scalars["events"] == 1 and "cannot be cut by time" in one.scalars["parts"] and "surprise" not in one.scalars
    assert one.scalars["burstiness of the stream"] is None


def test_errors(meetings: GivenEvents) -> None:
    probe: Any = value_of("probe", "temporal-statistics")
    with pytest.raises(UserError, match="needs events"):
        probe.measure(None, Run(task=None))
    with pytest.raises(UserError, match="leave nothing to test"):
        probe.but(train=0.8, valid=0.3).measure(meetings, Run(task=None))
    with pytest.raises(ValueError, match="both parts"):
        surprise(np.zeros(3, np.int64), np.zeros(3, bool), np.ones(3, bool))


@pytest.mark.parametrize("signed", [False, True])
def test_battery(signed: bool, meetings: GivenEvents) -> None:
    events = meetings.read()
    weight = np.where(np.arange(len(events)) % 3, 1, -2).astype(np.float32)
    data = GivenEvents.hold(replace(events, weight=weight, signed=True, _cache={})) if signed else meetings
    check_probe("temporal-statistics", data)
    check_probe("temporal-statistics(directed=false; valid=0; windows=3)", data)


def test_as_a_user(command: Callable[..., tuple[int, str, str]], tmp_path: Any, meetings: GivenEvents) -> None:
    write_events(meetings.read(), tmp_path / "events.csv")
    status, out, err = command("probe", "temporal-statistics", tmp_path / "events.csv")
    assert status == 0 and "repeat rate" in out and "surprise" in out and "of a pair" in out, out + err


def test_real_logs(mirror: Any) -> None:
    """Counts that a re-run of the logs' descriptions gives: events, pairs, and (seen pairs of a two-year log) the repeat rate."""
    mirror("college-msg")
    data = open_data("college-msg")
    found = value_of("probe", "temporal-statistics").measure(data, Run(task=None)).scalars  # type: ignore[attr-defined]
    assert (found["events"], found["distinct pairs"]) == (59_835, 20_296)
    # every event is a pair's first or a repeat, but for pairs that met twice at their first time
    firsts = 1 - found["repeat rate"]
    assert 20_296 / 59_835 <= firsts < 20_296 / 59_835 + 0.002
    assert 0.85 < found["surprise"] < 0.95 and found["burstiness of a node"] > 0.5
