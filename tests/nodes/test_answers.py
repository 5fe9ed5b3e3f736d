"""What stands in a file of answers, and how a file of answers is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from latticework.data.graph import write_graph

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
