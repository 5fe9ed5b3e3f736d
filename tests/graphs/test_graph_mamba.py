"""Graph Mamba and long range as a user meets them: batteries, one value for nodes and graphs, notes, errors, commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch_geometric.data import Data

from latticework.core import registry
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.core.store import load_model, save_model
from latticework.data.graph import Graph, finish
from latticework.data.graph_sets import GivenGraph
from latticework.data.graphs import GivenGraphSet
from latticework.testing import check_data, check_method, check_task, first_fit

FINGERPRINTS = Path(__file__).parent / "fingerprints_graph_mamba.json"
RINGS = "rings-and-cliques(graphs=60; seed=0)"
RING_TRANSFER = "ring-transfer(nodes=8; classes=3; graphs=60)"
TINY = "width=8; layers=1; state=4; epochs=2; walk_length=2; walks=2; repeats=1"
Command = Callable[..., tuple[int, str, str]]


def headline(model: Any, fold: Any, run: Run) -> float:
    task: Any = run.task
    scores = task.score(task.answer(model, fold.test.blind(), run), fold.test, run)
    return float(next(s.value for s in scores if s.metric == task.headline_metric and not s.at))


# -- batteries -----------------------------------------------------------------------------------------------------------
def test_nodes() -> None:
    check_method(f"graph-mamba({TINY})", "karate", "node-classification", fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("more", ["", "; encoder=gin; pe=laplacian; codes=3; ordering=pagerank"])
def test_graphs(more: str) -> None:
    check_method(f"graph-mamba({TINY}{more})", RINGS, "graph-classification", fingerprints=FINGERPRINTS)


def test_one_asked_node() -> None:
    name = "graph-mamba:nodes-as-tokens(width=8; state=4; epochs=2)"
    result = check_method(name, RING_TRANSFER, "long-range", fingerprints=FINGERPRINTS)
    at = [s.at for s in result.scores if s.metric == "accuracy" and s.at]
    assert ("distance", "4") in [(a["slice"], a["range"]) for a in at]


def test_majority() -> None:
    result = check_method("long-range-majority", RING_TRANSFER, "long-range", fingerprints=FINGERPRINTS)
    assert result.headline is not None and result.headline < 0.6


def test_the_task_and_the_data() -> None:
    check_task("long-range", RING_TRANSFER)
    check_task("long-range", RINGS)
    check_data(RING_TRANSFER)
    check_data("superpixel-grid(of=digits; cells=4; most=3)")


# -- one value, nodes and graphs -----------------------------------------------------------------------------------------
def test_the_part_decides_what_is_read(tmp_path: Path) -> None:
    name = f"graph-mamba({TINY})"
    on_nodes, fold_n, _ = first_fit(name, "karate", "node-classification")
    on_graphs, fold_g, _ = first_fit(name, RINGS)
    for model, fold in ((on_nodes, fold_n), (on_graphs, fold_g)):
        out = model.predict(fold.test.blind())
        assert out.shape == (len(fold.test.query.rows), len(fold.test.schema["classes"]))
        np.testing.assert_allclose(out.sum(1), 1, atol=1e-9)
    with pytest.raises(UserError, match=r"fitted on nodes and is asked about graphs"):
        on_nodes.predict(fold_g.test.blind())
    with pytest.raises(UserError, match=r"fitted on graphs and is asked about one graph's nodes"):
        on_graphs.predict(fold_n.test.blind())
    assert on_graphs.predict(fold_g.test.blind()._replace(data=[])).shape == (0, 2)
    save_model(on_nodes, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert np.array_equal(again.predict(fold_n.test.blind()), on_nodes.predict(fold_n.test.blind()))


def test_several_labels_a_node() -> None:
    rng = np.random.default_rng(0)
    y = np.stack([np.arange(40) % 2 == 0, np.arange(40) % 3 == 0], 1)
    u, v = np.nonzero(np.triu(rng.random((40, 40)) < 0.1, 1))
    graph = Graph(np.stack([u, v]), tuple(f"v{i}" for i in range(40)), x=(y + rng.normal(size=y.shape)).astype(np.float32), y=y, classes=("a", "b"), features=("p", "q"))  # fmt: skip
    model, fold, _ = first_fit(f"graph-mamba({TINY})", GivenGraph.hold(finish(graph, False)), "node-classification")
    out = model.predict(fold.test.blind())
    assert out.shape[1] == 2 and (out > 0).all() and (out < 1).all() and abs(out.sum(1) - 1).max() > 1e-3


def test_numbers_and_edge_features() -> None:
    torch.manual_seed(0)
    graphs = []
    for i in range(30):
        n = 4 + i % 5
        ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
        both = torch.cat([ring, ring.flip(0)], 1)
        graphs.append(Data(edge_index=both, num_nodes=n, edge_attr=torch.rand(2 * n, 2), y=torch.tensor([[float(n)]])))
    model, fold, _ = first_fit(f"graph-mamba({TINY})", graphs, "graph-regression")
    assert model.schema["edge inputs"] == 2 and model.predict(fold.test.blind()).shape == (len(fold.test.query.rows), 1)


def test_a_graph_is_answered_alike_in_any_company() -> None:
    model, fold, _ = first_fit(f"graph-mamba({TINY})", RINGS)
    part = fold.test.blind()
    whole = model.predict(part)
    for g in (0, 3):
        one = part._replace(data=[part.data[g]], query=type(part.query)(np.arange(1), part.query.ids[g : g + 1]))
        np.testing.assert_allclose(model.predict(one), whole[g : g + 1], atol=1e-6)


def test_draws_are_averaged() -> None:
    model, fold, _ = first_fit(f"graph-mamba({TINY})", RINGS)
    part = fold.test.blind()
    once = model.predict(part)
    assert np.array_equal(once, model.predict(part))  # fixed when answering
    model.method = model.method.but(draws=8)
    several = model.predict(part)
    assert 1e-6 < np.abs(once - several).max() < 0.5
    signed, fold, _ = first_fit(
        f"graph-mamba({TINY}; pe=laplacian; walk_length=0; mixer=attention)".replace("walk_length=2; ", ""), RINGS
    )
    kept = signed.predict(fold.test.blind())
    signed.method = signed.method.but(draws=4)  # an eigenvector's sign is free: other draws flip it
    assert np.abs(kept - signed.predict(fold.test.blind())).max() > 1e-6
    still: Any = entry_of("graph-mamba(walk_length=0; mixer=attention)")
    assert not still.draws_matter()


# -- what it says ----------------------------------------------------------------------------------------------------------
def test_what_the_walks_saw() -> None:
    model, fold, _ = first_fit("graph-mamba(width=8; layers=1; state=4; epochs=1; walk_length=3; walks=2; repeats=2)", RINGS)
    found = model.explain(fold.test.blind())
    rows = found.tables["what the walks saw"]
    assert [row["walk length"] for row in rows] == [3, 2, 1] and found.scalars["tokens a node"] == 7
    assert all(1 <= row["different nodes"] <= row["most"] <= 2 * row["walk length"] + 1 for row in rows)
    assert rows[-1]["share of steps back at the node"] == 0  # one step never stays, where there are no loops
    nodes = sum(int(g.num_nodes) for g in fold.test.data)
    assert found.scalars["steps in all sequences"] == 7 * nodes
    plain, fold, _ = first_fit("graph-mamba(width=8; layers=1; state=4; epochs=1; walk_length=0)", RINGS)
    found = plain.explain(fold.test.blind())
    [cost] = found.tables.values()  # on the user's own graphs, the control of equal width beside
    assert [row["nodes are read by"] for row in cost] == ["selective scan", "attention"]
    assert all(row["milliseconds a pass"] > 0 and row["nodes"] == max(g.num_nodes for g in fold.test.data) for row in cost)
    control, fold, _ = first_fit("graph-mamba(width=8; layers=1; state=4; epochs=1; walk_length=0; mixer=attention)", RINGS)
    assert not control.explain(fold.test.blind()).tables


def test_ways_without_an_end_and_weights_are_noted() -> None:
    n = 30
    graph = Graph(np.stack([np.arange(n - 1), np.arange(1, n)]), tuple(f"v{i}" for i in range(n)), x=np.eye(n, 4, dtype=np.float32), y=np.arange(n) % 2, weight=np.full(n - 1, 2, np.float32), classes=("a", "b"), features=tuple("abcd"))  # fmt: skip
    data = GivenGraph.hold(finish(graph, None))
    _, _, run = first_fit(f"graph-mamba({TINY})", data, "node-classification")
    assert any("1 nodes have edges in and none out" in note for note in run.notes), run.notes
    assert any("weights are not read" in note for note in run.notes)
    _, _, run = first_fit(f"graph-mamba({TINY}; both_ways=true)", data, "node-classification")
    assert not any("none out" in note for note in run.notes)


def test_mistakes_are_named() -> None:
    for text, words in (
        ("graph-mamba(walk_length=-1)", "walk_length"), ("graph-mamba(walks=0)", "walks"), ("graph-mamba(repeats=0)", "repeats"),
        ("graph-mamba(ordering=id)", "ordering"), ("graph-mamba(encoder=gat)", "encoder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            entry_of(text)
    deaf: Any = entry_of("graph-mamba(walk_length=0; mixer=none; mpnn=false)")
    assert "no node hears of another" in deaf.refuses(task_of("graph-classification"), {})
    with pytest.raises(UserError, match=r"34 nodes, and sequences are at most longest=20"):
        first_fit(f"graph-mamba({TINY}; longest=20)", "karate", "node-classification")
    with pytest.raises(UserError, match="even rings"):
        open_data("ring-transfer(nodes=9)").read()


def test_empty_and_lone_nodes_are_borne() -> None:
    graphs = []
    for i in range(40):
        n = 1 + i % 4
        path = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
        edges = torch.cat([path, path.flip(0)], 1) if i % 2 else torch.zeros(2, 0, dtype=torch.int64)
        graphs.append(Data(edge_index=edges, num_nodes=n, y=torch.tensor([i % 2])))
    for more in ("", "; encoder=gin", "; pe=rwse"):
        model, fold, _ = first_fit(f"graph-mamba({TINY}{more})", graphs)
        assert np.isfinite(model.predict(fold.test.blind())).all()


def test_every_value_is_registered() -> None:
    for noun, name in (
        ("method", "graph-mamba"), ("method", "long-range-majority"), ("task", "long-range"), ("data", "ring-transfer"),
        ("data", "superpixel-grid"),
    ):  # fmt: skip
        assert registry.knows(noun, name)
    for preset in ("small", "nodes-as-tokens", "messages", "attention"):
        assert entry_of(f"graph-mamba:{preset}").name == "graph-mamba"
    assert "walk_length" in entry_of("graph-mamba").search_space()


# -- it learns -----------------------------------------------------------------------------------------------------------
def test_what_lies_beyond_the_layers_is_heard_by_the_scan_alone() -> None:
    """Rings of 8, the answer four hops away, two layers: message passing cannot know it, one sequence over the nodes can."""
    data = "ring-transfer(nodes=8; classes=2; graphs=300)"
    short = "width=16; epochs=12; lr=0.005; batch=32"
    assert headline(*first_fit(f"graph-mamba:nodes-as-tokens({short})", data, "long-range")) > 0.9
    assert headline(*first_fit(f"graph-mamba:messages({short})", data, "long-range")) < 0.7


def test_a_few_epochs_on_mutag(mirror: Callable[[str], Path]) -> None:
    mirror("tu-mutag")
    model, fold, run = first_fit("graph-mamba:small(walk_length=2; walks=2; repeats=1; width=16; epochs=3)", "tu-mutag")
    assert headline(model, fold, run) > 0.5


# -- the commands --------------------------------------------------------------------------------------------------------
def test_as_typed(tmp_path: Path, graph_folder: Path, command: Command) -> None:
    fields = [w for f in ("walk_length=2", "width=8", "layers=1", "epochs=2") for w in ("-s", f)]
    status, out, err = command("fit", "graph-mamba", graph_folder, *fields, "-o", tmp_path / "MODEL")
    assert status == 0, out + err
    status, out, err = command("predict", tmp_path / "MODEL", graph_folder, "-o", tmp_path / "predictions.csv")
    table = pl.read_csv(tmp_path / "predictions.csv")
    assert status == 0 and len(table) == 60 and table.columns[:2] == ["id", "prediction"], out + err
    status, out, err = command("fit", "graph-mamba", graph_folder, "-s", "walk_length=-1", "-o", tmp_path / "x")
    assert status == 2 and "walk_length" in out + err and not (tmp_path / "x").exists()


def test_attention_beside_it_on_the_nodes_of_a_graph(tmp_path: Path, graph_folder: Path, command: Command) -> None:
    tiny = "gps(width=8; heads=2; layers=1; epochs=3; steps=4)"
    status, out, err = command(
        "compare", str(graph_folder), "-m", f"gcn(epochs=5),{tiny},graph-mamba({TINY})", "--repeats", "2", "--classic", "1",
        "--runs", str(tmp_path / "runs"),
    )  # fmt: skip
    assert status == 0, err
    assert "gps" in out and "graph-mamba" in out and "failed" not in out
    model, fold, _ = first_fit(tiny, str(graph_folder), "node-classification")
    found = model.predict(fold.test.blind())
    assert found.shape == (len(fold.test.query.rows), len(model.schema["classes"])) and np.allclose(found.sum(1), 1)
    with pytest.raises(UserError, match="fitted on nodes"):
        model.predict(fold.test.blind()._replace(data=[]))


def test_compared_at_distance(tmp_path: Path, command: Command) -> None:
    data = tmp_path / "rings"
    open_data("ring-transfer(nodes=10; classes=2; graphs=60; least=6)").write(data)
    status, out, err = command(
        "compare", data, "--task", "long-range", "-m", "graph-mamba:nodes-as-tokens(width=8; epochs=2)", "--repeats", "1",
        "--no-baselines", "--runs", tmp_path / "runs", "-o", tmp_path / "board.csv",
    )  # fmt: skip
    assert status == 0, out + err
    assert "graph-mamba" in (tmp_path / "board.csv").read_text()
    given = GivenGraphSet.hold(open_data(str(data)).read())
    task = task_of("long-range").for_data(given)
    names = task.fold(given, task.plan(given, 1)[0][0]).test.truth.slices["distance"][1]
    assert set(names) <= {"3", "4", "5"}
