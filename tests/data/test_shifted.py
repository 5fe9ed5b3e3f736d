"""The shifted environments: the law of the draw, the pattern that the graph carries, and the battery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latticework.core.dataset import open_data
from latticework.core.grid import task_of
from latticework.data.shifted import draw_environments
from latticework.nodes.hei import neighbour_pattern
from latticework.testing import check_data, check_task


def share(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x > 0) == (y == 1)).mean())


def test_the_law_of_the_draw() -> None:
    drawn = draw_environments(20_000, 3)
    n, y, z = drawn.n, drawn.y, drawn.z
    invariant, spurious = drawn.x.T
    assert drawn.x.dtype == np.float32 and len(y) == 60_000
    assert abs(y.mean() - 0.5) < 0.01 and abs(z.mean() - 0.5) < 0.01 and z.min() >= 0 and z.max() < 1
    train, test = slice(0, n), slice(n, None)
    low = np.flatnonzero(z[:n] < 0.5)
    high = np.flatnonzero(z[:n] >= 0.5)
    assert abs(share(invariant[train], y[train]) - 0.8) < 0.01 and abs(share(invariant[test], y[test]) - 0.8) < 0.01
    assert share(spurious[low], y[low]) > 0.995 and abs(share(spurious[high], y[high]) - 0.8) < 0.015
    assert abs(share(spurious[test], y[test]) - 0.1) < 0.01
    # the noise is small and not one-sided, and z says nothing about the label
    rest = drawn.x - np.sign(drawn.x)
    assert abs(rest.std() - 0.1) < 0.002 and abs(rest.mean()) < 0.002
    assert abs(np.corrcoef(z, y)[0, 1]) < 0.02 and abs(np.corrcoef(invariant[test], spurious[test])[0, 1] + 0.48) < 0.03


def test_seeds_draw_anew_and_sizes_are_checked() -> None:
    a, b, c = draw_environments(50, 0), draw_environments(50, 0), draw_environments(50, 1)
    assert np.array_equal(a.x, b.x) and not np.array_equal(a.x, c.x)
    with pytest.raises(ValueError, match="n must be"):
        draw_environments(0)


def test_the_graph_carries_the_pattern() -> None:
    graph: Any = open_data("shifted-environments(n=100; seed=2; graph=true)").read()
    drawn = draw_environments(100, 2)
    z = neighbour_pattern(graph.x, graph.edge_index)
    assert np.abs(z[:300] - drawn.z).max() < 1e-5
    assert np.array_equal(graph.x[:300], drawn.x) and (graph.y[300:] == -1).all() and not graph.directed
    assert [(graph.fixed == code).sum() for code in (0, 1, 2)] == [100, 0, 200]


@pytest.mark.parametrize("graph", ["true", "false"])
def test_battery(graph: str) -> None:
    name = f"shifted-environments(n=30; graph={graph})"
    check_data(name)
    check_task("node-classification", name, 2)
    data = open_data(name)
    fold = task_of("node-classification").for_data(data).fold(data, "fixed")
    assert fold.valid is None and len(fold.train.query.rows) == 30 and len(fold.test.query.rows) == 60


def test_as_a_user(command: Callable[..., tuple[int, str, str]], tmp_path: Any) -> None:
    status, out, err = command("data", "check", "shifted-environments(n=20;graph=true)")
    assert status == 0 and "train 20, valid 0, test 40" in out, out + err
    status, out, err = command("fit", "hei", "shifted-environments(n=20)", "-o", tmp_path / "m", "--runs", tmp_path / "r")
    assert status == 2 and "no node has a neighbour" in err + out
