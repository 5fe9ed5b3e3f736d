"""What stands in a file of answers, and how a file of answers is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from latticework.core.task import Part
from latticework.data.graph import Nodes, write_graph
from latticework.nodes.tasks import NodeClassification, Truth

Command = Callable[..., tuple[int, str, str]]


def test_nodes_of_an_unlabelled_graph_get_several_labels_where_the_fit_had_several(
    tmp_path: Path, make_blocks: Any, command: Command
) -> None:
    graph = make_blocks()
    assert graph.y is not None
    y = np.eye(3, dtype=bool)[graph.y]
    y[: graph.nodes - 5, 0] = True
    several = replace(graph, y=y, _cache={})
    write_graph(several, tmp_path / "known")
    write_graph(replace(several, y=None, classes=(), _cache={}), tmp_path / "new")
    model, said = tmp_path / "model", [tmp_path / "known.csv", tmp_path / "new.csv"]
    assert command("fit", "mlp", tmp_path / "known", "-s", "epochs=200", "-s", "dropout=0", "-o", model)[0] == 0
    for folder, to in zip(("known", "new"), said, strict=True):
        assert command("predict", model, tmp_path / folder, "-o", to)[0] == 0
    known, new = (pl.read_csv(path) for path in said)
    assert new["prediction"].str.contains(r"\|").any()
    assert known.equals(new)


def table(path: Path, **columns: Any) -> Path:
    pl.DataFrame(columns).write_csv(path)
    return path


def judged(answers: Path, truth: Path) -> dict[str, float | None]:
    return {s.metric: s.value for s in NodeClassification().judge(answers, truth)}


def test_spaces_between_several_labels_mean_nothing(tmp_path: Path) -> None:
    answers = table(tmp_path / "a.csv", id=["x", "y", "z"], prediction=["a|b", "b", "a | c"])
    close = table(tmp_path / "close.csv", id=["x", "y", "z"], labels=["a|b", "b", "a|c"])
    apart = table(tmp_path / "apart.csv", id=["x", "y", "z"], labels=["a | b", "b", "a| c"])
    assert judged(answers, apart) == judged(answers, close)
    assert judged(answers, close)["micro-f1"] == 1.0


def test_several_labels_for_a_node_that_has_one_are_judged(tmp_path: Path) -> None:
    answers = table(tmp_path / "a.csv", id=["x", "y"], prediction=["a|b", "b"])
    truth = table(tmp_path / "t.csv", id=["x", "y"], label=["a", "b"])
    assert judged(answers, truth)["micro-f1"] == pytest.approx(4 / 5)  # two right, one too many


def test_classes_that_differ_in_case_have_columns_of_their_own(tmp_path: Path) -> None:
    chances = {"p(A)": [0.9, 0.8, 0.1, 0.2], "p(a)": [0.1, 0.2, 0.9, 0.8]}
    answers = table(tmp_path / "a.csv", id=list("wxyz"), prediction=["A", "A", "a", "a"], **chances)
    truth = table(tmp_path / "t.csv", id=list("wxyz"), label=["A", "A", "a", "a"])
    assert judged(answers, truth)["roc-auc"] == 1.0


@pytest.mark.parametrize("several", [False, True])
def test_a_file_of_answers_is_judged_as_the_answers_are(several: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(int(several))
    classes, ids = ("a", "b", "c"), tuple(f"n{i}" for i in range(40))
    # no node here is of the last class, which the fit knew, nor is said to be
    chances = rng.dirichlet(np.ones(3), 40) * [1, 1, 0.01]
    y = rng.random((40, 3)) < [0.7, 0.6, 0] if several else rng.integers(0, 2, 40)
    if several:
        y[~y.any(1), 0] = True
    task = NodeClassification(labels="multi" if several else "single")
    part = Part(None, Nodes(np.arange(40), ids), Truth(y), {"classes": list(classes), "multi": several})
    task.write(chances, part, tmp_path / "a.csv")
    words = ["|".join(classes[c] for c in np.flatnonzero(row)) for row in y] if several else [classes[c] for c in y]
    truth = table(tmp_path / "t.csv", id=list(ids), **{"labels" if several else "label": words})
    assert judged(tmp_path / "a.csv", truth) == pytest.approx({s.metric: s.value for s in task.score(chances, part, None)})
