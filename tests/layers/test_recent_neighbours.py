"""The ring of latest neighbours against lists, and the code of time."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.layers.recent_neighbours import RecentNeighbours
from latticework.layers.time_code import TimeCode


@given(
    events=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60),
    size=st.integers(1, 5),
    chunk=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_equals_lists_whatever_the_chunks(events: list[tuple[int, int]], size: int, chunk: int) -> None:
    ring, told = RecentNeighbours(0, size, 1), defaultdict[int, list[tuple[int, float]]](list)
    pairs = torch.tensor(events)
    time = torch.arange(len(events), dtype=torch.float64)
    for start in range(0, len(events), chunk):
        cut = slice(start, start + chunk)
        ring.insert(pairs[cut, 0], pairs[cut, 1], time[cut], -time[cut, None].float())
    for k, (a, b) in enumerate(events):
        told[a].append((b, float(k)))
        if a != b:
            told[b].append((a, float(k)))
    neighbour, when, payload = ring.latest(torch.arange(9))
    for node in range(9):
        expected = told[node][::-1][:size]
        assert neighbour[node].tolist() == [n for n, _ in expected] + [-1] * (size - len(expected))
        assert when[node, : len(expected)].tolist() == [t for _, t in expected]
        assert payload[node, : len(expected), 0].tolist() == [-t for _, t in expected]


def test_copies_and_states_are_apart() -> None:
    ring = RecentNeighbours(2, 2)
    ring.insert(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]))
    other, again = copy.deepcopy(ring), RecentNeighbours(0, 2)
    again.load(ring.state())
    other.insert(torch.tensor([0]), torch.tensor([5]), torch.tensor([2.0]))
    for one in (ring, again):
        assert one.latest(torch.tensor([0]))[0].tolist() == [[1, -1]] and one.nodes == 2
    assert other.latest(torch.tensor([0]))[0].tolist() == [[5, 1]]
    with pytest.raises(ValueError, match="at least one"):
        RecentNeighbours(1, 0)


def test_code_of_time() -> None:
    code = TimeCode(4, 3.0)
    t = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    assert code(t).shape == (1, 2, 4) and code(t).dtype == torch.float32
    assert torch.allclose(code(t)[0, 1], torch.cos(2.0 * torch.tensor([1.0, 0.1, 0.01, 0.001])))
    assert torch.equal(code(t)[0, 0], torch.ones(4))
    assert TimeCode(1).weight.tolist() == [1.0]
