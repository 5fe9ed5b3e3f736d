"""k-path, contrast, counted and motifs as a user meets them: batteries, arms of equal budget, files, errors, commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import polars as pl
import pytest
import torch
from torch_geometric.data import Data

import latticework as lw
from latticework.core import registry
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.core.tuning import search_space
from latticework.data.graphs import GivenGraphSet, GraphSet
from latticework.graphs.counted import Counted, counts_of
from latticework.graphs.motifs import Motifs
from latticework.testing import check_data, check_method, check_probe, first_fit

FINGERPRINTS = Path(__file__).parent / "fingerprints_k_path.json"
RINGS = "rings-and-cliques(graphs=60; seed=0)"
SMALL = "k-path(k=2; width=8; epochs=2)"
Command = Callable[..., tuple[int, str, str]]


def of_networkx(graphs: list[nx.Graph], **more: Any) -> list[Data]:
    made = []
    for graph in graphs:
        pairs = np.array(sorted(graph.edges())).reshape(-1, 2)
        edges = torch.from_numpy(np.concatenate([pairs, pairs[:, ::-1]]).T.copy())
        made.append(Data(edge_index=edges, num_nodes=graph.number_of_nodes(), **more))
    return made


# -- batteries -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [SMALL, f"contrast(backbone={SMALL})", "contrast(backbone=gin(width=8; layers=2; epochs=2))"])
def test_classes(name: str) -> None:
    check_method(name, RINGS, "graph-classification", fingerprints=FINGERPRINTS)


def test_counts_as_a_task() -> None:
    data = "counted(of=rings-and-cliques(graphs=60; seed=0); target=cycle-5,path-3)"
    check_method("k-path:counting(k=3; width=8; epochs=2)", data, "subgraph-counting", fingerprints=FINGERPRINTS)


def test_counted_and_motifs() -> None:
    check_data("counted(of=rings-and-cliques(graphs=20; seed=0); target=cycle-5,path-3)")
    check_probe("motifs", "rings-and-cliques(graphs=20; seed=0)")


# -- what must hold of the recipes -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backbone", [SMALL, "gin(width=8; layers=2; epochs=2)"])
def test_without_strength_contrast_is_its_backbone_bit_for_bit(backbone: str) -> None:
    plain, fold, run = first_fit(backbone, RINGS)
    other, _, with_it = first_fit(f"contrast(backbone={backbone}; strength=0)", RINGS)
    assert np.array_equal(plain.predict(fold.test.blind()), other.predict(fold.test.blind()))
    assert run.curve["loss"] == with_it.curve["loss"]
    third, _, _ = first_fit(f"contrast(backbone={backbone}; strength=10)", RINGS)
    assert not np.array_equal(plain.predict(fold.test.blind()), third.predict(fold.test.blind()))


def test_random_and_adaptive_views_drop_at_the_same_rate() -> None:
    shares = {}
    for drop in ("adaptive", "random"):
        _, _, run = first_fit(f"contrast(backbone={SMALL}; drop={drop}; p=0.2,0.3; p_max=0.95)", RINGS)
        note = next(n for n in run.notes if n.startswith("views dropped"))
        shares[drop] = float(note.split()[2].rstrip("%"))
        assert drop in note
    assert abs(shares["random"] - 25) < 1.5 and abs(shares["adaptive"] - 25) < 2.5
    assert not any(n.startswith("views") for n in first_fit(f"contrast(backbone={SMALL}; drop=none)", RINGS)[2].notes)


def test_what_they_say_of_themselves() -> None:
    model, fold, run = first_fit(f"contrast(backbone={SMALL})", RINGS)
    assert any("paths of up to 2 edges" in n and "a root" in n for n in run.notes)
    found = model.explain(fold.test.blind())
    rows = found.tables["importance of edges"]
    assert {row["graph"] for row in rows} <= set(fold.test.query.ids) and all(0 < row["importance"] < 1 for row in rows)
    edges = sum(g.edge_index.shape[1] // 2 for g in fold.test.data[:3])
    assert len(rows) == edges
    model, fold, _ = first_fit(SMALL, RINGS)
    rows = model.explain(fold.test.blind()).tables["paths and rooted sub-graphs"]
    assert [row["part"] for row in rows] == ["train", "this one"] and rows[0]["sampled roots"] == 0
    assert rows[1]["roots"] == sum(g.num_nodes for g in fold.test.data)
    _, _, run = first_fit("k-path(k=2; width=8; epochs=1; max_paths=4)", RINGS)
    assert any("with more than 4 paths were sampled" in n for n in run.notes)


def test_k_path_tells_apart_what_gin_cannot() -> None:
    """Two triangles or a ring of six, no features: one colour for 1-WL, a chance for whoever counts cycles."""
    rings = [nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))]
    graphs = of_networkx([rings[i % 2] for i in range(60)])
    for i, graph in enumerate(graphs):
        graph.y = torch.tensor([i % 2])
    score = {}
    for name in ("k-path(k=2; width=16; epochs=30; lr=0.01; dropout=0)", "gin(width=16; epochs=5)"):
        model, fold, run = first_fit(name, graphs)
        scores = run.task.score(run.task.answer(model, fold.test.blind(), run), fold.test, run)  # type: ignore[union-attr]
        score[name.partition("(")[0]] = next(s.value for s in scores if s.metric == "accuracy" and not s.at)
    assert score["k-path"] == 1.0 and score["gin"] == 0.5


def test_lone_nodes_and_graphs_without_edges_are_borne() -> None:
    graphs = of_networkx([nx.empty_graph(1 + i % 3) if i % 4 == 0 else nx.path_graph(2 + i % 5) for i in range(40)])
    for i, graph in enumerate(graphs):
        graph.y = torch.tensor([int(i % 4 == 0)])
    for name in (
        SMALL,
        f"contrast(backbone={SMALL})",
        "k-path(k=0; width=8; epochs=1)",
        "contrast(backbone=gin(width=8; epochs=1))",
    ):
        model, fold, _ = first_fit(name, graphs)
        assert np.isfinite(model.predict(fold.test.blind())).all()


def test_a_model_answers_for_graphs_it_has_not_seen_in_any_batch(tmp_path: Path) -> None:
    model, fold, _ = first_fit(SMALL, RINGS)
    part = fold.test.blind()
    whole = model.predict(part)
    one = part._replace(data=part.data[:1], query=type(part.query)(np.arange(1), part.query.ids[:1]))
    np.testing.assert_allclose(model.predict(one), whole[:1], atol=1e-6)
    assert model.predict(part._replace(data=[])).shape == (0, 2)


# -- data --------------------------------------------------------------------------------------------------------------------
def test_counted_targets_are_the_counts_and_labels_are_gone() -> None:
    base: Any = open_data(RINGS).read()
    found: Any = open_data("counted(of=rings-and-cliques(graphs=60; seed=0); target=cycle-5,cycle-4,path-1)").read()
    assert found.target_names == ("cycle-5", "cycle-4", "path-1") and found.y is None and found.folds is None
    for g in range(60):
        graph = nx.Graph()
        graph.add_edges_from(base.graphs([g])[0].edge_index.T.tolist())
        lengths = np.bincount([len(c) for c in nx.simple_cycles(graph, length_bound=5)], minlength=6)
        assert found.targets[g].tolist() == [lengths[5], lengths[4], graph.number_of_edges()]
    assert np.array_equal(found.x, base.x)


def test_two_sets_one_after_the_other() -> None:
    rings = "rings-and-cliques(graphs=10; seed={})"
    both: Any = open_data(f"counted(of={rings.format(0)}; also={rings.format(1)}; target=cycle-5)").read()
    assert len(both) == 20 and len(set(both.ids)) == 20 and both.x is not None
    alone: Any = open_data(f"counted(of={rings.format(1)}; target=cycle-5)").read()
    assert np.array_equal(both.targets[10:], alone.targets)
    plain = GivenGraphSet.hold(replace(open_data(rings.format(1)).read(), x=None, features=(), _cache={}))
    mixed: Any = Counted.make({"of": rings.format(0), "also": plain}).read()
    assert mixed.x is None and any("node features of the two sets differ" in note for note in mixed.notes)
    edged = plain.read()
    edged = replace(edged, edge_x=np.ones((edged.edge_index.shape[1], 1), np.float32), edge_features=("length",), _cache={})
    mixed = Counted.make({"of": rings.format(0), "also": GivenGraphSet.hold(edged)}).read()
    assert mixed.edge_x is None and "edge features are left out" in mixed.notes
    assert "edge features are left out" not in both.notes


def test_targets_of_mutag_and_ptc(mirror: Callable[[str], Path]) -> None:
    mirror("tu-mutag"), mirror("tu-ptc")
    found: Any = open_data("counted(of=tu-mutag; also=tu-ptc; target=cycle-5,cycle-6,path-4)").read()
    assert found.targets[:188].sum(0).tolist() == [68, 470, 10353] and found.targets.sum(0).tolist() == [140, 883, 36485]


def test_motifs_writes_a_row_a_graph(tmp_path: Path) -> None:
    given = open_data(RINGS)
    found = Motifs(paths=3, cycles=5).measure(given, Run(task=None, folder=tmp_path))
    table = pl.read_csv(tmp_path / "counts.csv")
    assert found.files == [tmp_path / "counts.csv"]
    assert table.columns == ["id", "nodes", "edges", "path-1", "path-2", "path-3", "cycle-3", "cycle-4", "cycle-5"]
    graphs: GraphSet = given.read()
    assert table["id"].to_list() == list(graphs.ids) and table["nodes"].to_list() == graphs.sizes.tolist()
    assert np.array_equal(table["cycle-5"].to_numpy(), counts_of(graphs, ["cycle-5"])[:, 0])
    # a ring of five is the class 'ring', a clique of four has three rings of four and four triangles
    means = {row["pattern"]: row for row in found.tables["mean count by class"]}
    assert means["cycle-5"] == {"pattern": "cycle-5", "ring": 1.0, "clique": 0.0}
    assert means["cycle-4"]["clique"] == 3.0 and means["cycle-3"]["clique"] == 4.0
    assert found.scalars["cycle-4 in all"] == 90 and found.scalars["graphs beyond the limit"] == 0


def test_motifs_beyond_the_limit_are_left_empty(tmp_path: Path) -> None:
    given = GivenGraphSet.hold(of_networkx([nx.complete_graph(12), nx.cycle_graph(4)]))
    found = Motifs(paths=4, cycles=4, limit=5000).measure(given, Run(task=None, folder=tmp_path))
    table = pl.read_csv(tmp_path / "counts.csv")
    assert table["path-4"].to_list() == [None, 0] and table["edges"].to_list() == [66, 4] and table["cycle-4"].to_list()[1] == 1
    assert found.scalars["graphs beyond the limit"] == 1


# -- errors --------------------------------------------------------------------------------------------------------------
def test_mistakes_are_named() -> None:
    for text, words in (
        ("k-path(k=9)", "set sampled=true"),
        ("k-path(k=33; sampled=true)", "k"),
        ("contrast(p=0.2,1.0)", "shares lie in"),
        ("contrast(drop=clever)", "drop"),
        ("k-path(pool=max)", "pool"),
    ):
        with pytest.raises(UserError, match=words):
            entry_of(text)
    entry_of("k-path(k=12; sampled=true)"), entry_of("k-path(k=8)")
    for text, words in (
        ("counted(of=rings-and-cliques; target=star-3)", "'star-3' is no pattern"),
        ("counted(of=rings-and-cliques; target=cycle-5,cycle-5)", "different ones"),
        ("counted(of=rings-and-cliques; target=cycle-13)", "cycle-3 to cycle-12"),
    ):
        with pytest.raises(UserError, match=words):
            open_data(text)
    with pytest.raises(UserError, match="karate is data of kind 'graph'"):
        open_data("counted(of=karate)").read()
    contrast: Any = entry_of("contrast(backbone=gcn)")
    assert "no socket encode/head" in contrast.refuses(task_of("graph-classification"), {})
    for probe, words in ((Motifs(cycles=2), "shortest cycle"), (Motifs(paths=0, cycles=0), "nothing is asked")):
        with pytest.raises(UserError, match=words):
            probe.measure(open_data(RINGS), Run(task=None))


def test_a_graph_too_dense_to_count_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from latticework.graphs import counted

    monkeypatch.setattr(counted, "LIMIT", 1000)
    monkeypatch.setattr(counted.counts_of, "__defaults__", (1000,))
    given = GivenGraphSet.hold(of_networkx([nx.cycle_graph(5), nx.complete_graph(11)]))
    with pytest.raises(UserError, match=r"11 nodes\) takes more than 1,000 steps to count cycle-6"):
        Counted.make({"of": given, "target": "cycle-6"}).read()


# -- the commands --------------------------------------------------------------------------------------------------------
def test_as_typed(tmp_path: Path, command: Command) -> None:
    data = tmp_path / "mygraphs"
    open_data("rings-and-cliques(graphs=40; seed=1)").write(data)
    status, out, err = command("probe", "motifs", data, "-s", "cycles=5", "-o", tmp_path / "motifs")
    assert status == 0 and "counts" in out, out + err
    table = pl.read_csv(tmp_path / "motifs" / "counts.csv")
    assert len(table) == 40 and table["cycle-5"].sum() == 20
    assert json.loads((tmp_path / "motifs" / "findings.json").read_text())["scalars"]["graphs"] == 40
    status, out, err = command("fit", "k-path", data, "-s", "k=4", "-s", "epochs=2", "-s", "width=8", "-o", tmp_path / "MODEL")
    assert status == 0 and "paths of up to 4 edges" in out, out + err
    status, out, err = command("predict", tmp_path / "MODEL", data, "-o", tmp_path / "answers.csv")
    assert status == 0 and len(pl.read_csv(tmp_path / "answers.csv")) == 40, out + err
    status, out, err = command("fit", "k-path", data, "-s", "k=9", "-o", tmp_path / "x")
    assert status == 2 and "sampled=true" in out + err and not (tmp_path / "x").exists()


def test_compared_under_a_scenario(tmp_path: Path, command: Command) -> None:
    data = tmp_path / "mygraphs"
    open_data("rings-and-cliques(graphs=60; seed=1)").write(data)
    status, out, err = command(
        "compare", data, "-m", f"{SMALL},contrast(backbone={SMALL})", "-s", "task.scenario=few-shot", "-s", "task.labels=10",
        "--repeats", "1", "--classic", "0", "--runs", tmp_path / "runs", "-o", tmp_path / "board.csv",
    )  # fmt: skip
    assert status == 0, out + err
    rows = pl.read_csv(tmp_path / "board.csv")
    text = "\n".join(map(str, rows.rows()))
    assert "k-path" in text and "contrast" in text and "graph-majority" in text


def test_every_value_is_registered() -> None:
    for noun, name in (("method", "k-path"), ("method", "contrast"), ("data", "counted"), ("probe", "motifs")):
        assert registry.knows(noun, name)
    for preset in ("counting", "social", "small"):
        assert entry_of(f"k-path:{preset}").name == "k-path"
    space = search_space(entry_of("contrast"))
    assert "strength" in space and "backbone.width" in space


# -- real ----------------------------------------------------------------------------------------------------------------
def test_two_epochs_on_mutag(mirror: Callable[[str], Path]) -> None:
    mirror("tu-mutag")
    model, fold, run = first_fit("k-path(epochs=2; width=32; lr=0.005)", "tu-mutag")
    scores = run.task.score(run.task.answer(model, fold.test.blind(), run), fold.test, run)  # type: ignore[union-attr]
    assert next(s.value for s in scores if s.metric == "accuracy" and not s.at) > 0.5
    assert model.schema["paths"]["most paths of a root"] == 20 and model.schema["paths"]["sampled roots"] == 0


# -- how edges are written -----------------------------------------------------------------------------------------------------
def test_answers_do_not_hang_on_how_an_edge_is_written() -> None:
    """Once, the other way round, both ways, twice, with loops beside: the same degrees, so the same answers; the notes say it."""
    rng = np.random.default_rng(0)
    graphs = []
    for i in range(40):
        pairs = np.argwhere(np.triu(rng.random((8, 8)) < 0.2 + 0.3 * (i % 2), 1)).T
        graphs.append(Data(edge_index=torch.from_numpy(pairs), num_nodes=8, y=torch.tensor([i % 2])))
    model = lw.fit("k-path", graphs, settings={"k": 2, "width": 8, "epochs": 3})
    assert any("edges are read both ways" in note and "0 self-loops" in note for note in model.run.notes)
    wanted = model.predict(graphs).values

    def written(e: torch.Tensor) -> list[torch.Tensor]:
        loops = torch.arange(3).repeat(2, 1)
        turned = torch.where(torch.rand(e.shape[1]) < 0.5, e, e.flip(0))
        return [turned, torch.cat([e, e.flip(0)], 1), torch.cat([e, e, loops], 1)]

    for k in range(3):
        other = [Data(edge_index=written(g.edge_index)[k], num_nodes=8, y=g.y) for g in graphs]
        assert np.allclose(
            lw.fit("k-path", other, settings={"k": 2, "width": 8, "epochs": 3}).predict(other).values, wanted, atol=1e-5
        )
        assert np.allclose(model.predict(other).values, wanted, atol=1e-5)


def test_contrast_explains_where_there_are_no_edges_and_refuses_what_reads_none() -> None:
    single = [Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=1, y=torch.tensor([i % 2])) for i in range(20)]
    paths = [Data(edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), num_nodes=3, y=torch.tensor([i % 2])) for i in range(10)]
    board = lw.compare(single + paths, ["contrast(backbone=k-path(k=2;width=8;epochs=1))"], repeats=3, baselines=False)
    assert not board.cases[0].rows[0].failures
    for backbone in ("spen", "ign"):
        reason = entry_of(f"contrast(backbone={backbone})").refuses(task_of("graph-classification"), {})
        assert reason is not None and "would change nothing" in reason
