"""spen, ign and ego-sizes as a user meets them: batteries, sizes never met, mistakes, the commands, a short fit on MUTAG."""

from __future__ import annotations

import json
import re
import warnings
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

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.run import Run
from latticework.data.graphs import GivenGraphSet
from latticework.graphs.ego_sizes import EgoSizes
from latticework.testing import check_method, check_probe, first_fit

FINGERPRINTS = Path(__file__).parent / "fingerprints_spen.json"
RINGS = "rings-and-cliques(graphs=60; seed=0)"
SMALL = "spen(width=4; layers=2; epochs=2; hidden=8; cap=4)"
GLOBAL = "ign(width=4; layers=2; epochs=2; hidden=8)"
Command = Callable[..., tuple[int, str, str]]


def of_networkx(graph: nx.Graph, y: int | None = None) -> Data:
    pairs = np.array(sorted(graph.edges())).reshape(-1, 2)
    edges = torch.from_numpy(np.concatenate([pairs, pairs[:, ::-1]]).T.copy())
    data = Data(edge_index=edges, num_nodes=graph.number_of_nodes())
    if y is not None:
        data.y = torch.tensor([y])
    return data


# -- batteries ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [SMALL, GLOBAL])
def test_classes(name: str) -> None:
    check_method(name, RINGS, "graph-classification", fingerprints=FINGERPRINTS)


def test_numbers() -> None:
    check_method(SMALL.replace("hidden", "hops=2; hidden"), RINGS, "graph-regression", fingerprints=FINGERPRINTS)


def test_probe() -> None:
    check_probe("ego-sizes", "rings-and-cliques(graphs=20; seed=0)")
    check_probe("ego-sizes(hops=2; cap=3)", "rings-and-cliques(graphs=20; seed=0)")


# -- what must hold of the recipes ---------------------------------------------------------------------------------------------
def test_sharing_changes_no_answer() -> None:
    a, fold, run = first_fit(SMALL, RINGS)
    b, _, control = first_fit(SMALL.replace("cap", "share=false; cap"), RINGS)
    np.testing.assert_allclose(a.predict(fold.test.blind()), b.predict(fold.test.blind()), atol=2e-4)
    for (_, one), (_, other) in zip(run.curve["loss"], control.curve["loss"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_size_never_met_takes_the_nearest_weights_and_says_so() -> None:
    model, fold, _ = first_fit(SMALL, RINGS)
    assert max(model.schema["weight sizes"]) == 4
    largest = max(model.schema["ego sizes"])
    hub = nx.star_graph(largest + 3)
    data = of_networkx(hub)
    data.x = torch.zeros(len(hub), len(model.schema["features"]))
    part = fold.test.blind()
    asked = part._replace(data=[data, data], query=type(part.query)(np.arange(2), ("a", "b")))
    with pytest.warns(UserWarning, match=rf"spen: 1 ego sizes were not in the train part .*\({largest + 4} those of 4\)") as said:
        answer = model.predict(asked)
    assert len([w for w in said if "ego sizes" in str(w.message)]) == 1
    assert answer.shape == (2, 2) and np.isfinite(answer).all() and np.array_equal(answer[0], answer[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(part._replace(data=fold.train.data[:2], query=type(part.query)(np.arange(2), ("a", "b"))))


def test_a_model_answers_for_graphs_it_has_not_seen_in_any_batch() -> None:
    model, fold, _ = first_fit(SMALL, RINGS)
    part = fold.test.blind()
    whole = model.predict(part)
    one = part._replace(data=part.data[:1], query=type(part.query)(np.arange(1), part.query.ids[:1]))
    np.testing.assert_allclose(model.predict(one), whole[:1], atol=1e-5)
    assert model.predict(part._replace(data=[])).shape == (0, 2)


def test_what_a_model_says_of_its_egos() -> None:
    model, fold, _ = first_fit(SMALL, RINGS)
    part = fold.test.blind()
    found = model.explain(part)
    rows = found.tables["ego sizes"]
    nodes = sum(int(g.num_nodes) for g in part.data)
    assert sum(row["egos"] for row in rows) == nodes == found.scalars["egos"]
    assert {row["weights of size"] for row in rows} <= set(model.schema["weight sizes"])
    held = sum(row["egos"] * row["ego size"] ** 2 for row in rows)
    assert found.scalars["floats a channel in egos"] == held
    assert found.scalars["global over local"] == pytest.approx(sum(int(g.num_nodes) ** 2 for g in part.data) / held)
    assert 0 < found.scalars["share of egos not computed again in the first layer"] < 1


def test_two_hops_learn_what_message_passing_cannot() -> None:
    """A ring of eight or two of four, no features: one colour for 1-WL and equal egos for one hop without GraphNorm."""
    kinds = [nx.cycle_graph(8), nx.disjoint_union(nx.cycle_graph(4), nx.cycle_graph(4))]
    graphs = [of_networkx(kinds[i % 2], i % 2) for i in range(40)]
    score = {}
    for hops in (1, 2):
        name = f"spen(hops={hops}; norm=none; width=8; layers=2; hidden=16; dropout=0; epochs=25; lr=0.01; drop_every=0)"
        model, fold, run = first_fit(name, graphs)
        scores = run.task.score(run.task.answer(model, fold.test.blind(), run), fold.test, run)  # type: ignore[union-attr]
        score[hops] = next(s.value for s in scores if s.metric == "accuracy" and not s.at)
    assert score == {1: 0.5, 2: 1.0}


def test_lone_nodes_and_graphs_without_edges_are_borne() -> None:
    shapes = [nx.empty_graph(1 + i % 3) if i % 4 == 0 else nx.path_graph(2 + i % 5) for i in range(40)]
    graphs = [of_networkx(g, int(i % 4 == 0)) for i, g in enumerate(shapes)]
    for name in (SMALL, GLOBAL, SMALL.replace("cap", "features=degree; cap")):
        model, fold, _ = first_fit(name, graphs)
        assert np.isfinite(model.predict(fold.test.blind())).all()


def test_edge_features_reach_the_first_tensor() -> None:
    rng = np.random.default_rng(0)
    graphs = []
    for i in range(40):
        data = of_networkx(nx.path_graph(4 + i % 3), i % 2)
        data.edge_attr = torch.from_numpy(rng.random((data.edge_index.shape[1], 2)).astype(np.float32))
        graphs.append(data)
    model, fold, _ = first_fit(SMALL, graphs)
    assert model.net.edge_inputs == 2 and np.isfinite(model.predict(fold.test.blind())).all()


# -- the probe -------------------------------------------------------------------------------------------------------------------
def test_ego_sizes_by_hand() -> None:
    given = GivenGraphSet.hold([of_networkx(nx.star_graph(4)), of_networkx(nx.path_graph(3))])
    found = EgoSizes(cap=3).measure(given, Run(task=None))
    # star: one ego of 5, four of 2; path: one of 3, two of 2
    assert found.tables["ego sizes"] == [
        {"ego size": 2, "egos": 6, "share": 0.75, "weights": "its own"},
        {"ego size": 3, "egos": 1, "share": 0.125, "weights": "its own"},
        {"ego size": 5, "egos": 1, "share": 0.125, "weights": "of size 3"},
    ]
    scalars = found.scalars
    assert scalars["floats a channel, local"] == 25 + 4 * 4 + 9 + 2 * 4 and scalars["floats a channel, global"] == 25 + 9
    assert scalars["global over local"] == pytest.approx(34 / 58) and "1.71 times as much as" in scalars["says"]
    assert scalars["largest ego"] == 5 and scalars["where it is"].startswith("node 0 of graph ")
    # leaves of the star are not those of the path: their hub has another degree
    assert scalars["egos with different input"] == 4 and scalars["weight sets"] == 2
    two = EgoSizes(hops=2, max_ego=4).measure(given, Run(task=None)).scalars
    assert two["floats a channel, local"] == 5 * 25 + 3 * 9 and two["egos above max_ego"] == 5


# -- mistakes --------------------------------------------------------------------------------------------------------------------
def test_mistakes_are_named() -> None:
    for text, words in (
        ("spen(hops=0)", "hops"),
        ("spen(cap=0)", "a size of 1 or more, or a percentile"),
        ("spen(cap=p101)", "a percentile, p0 to p100"),
        ("spen(cap=many)", "a percentile, p0 to p100"),
        ("spen(hidden=8,0)", "widths are 1 or more"),
        ("spen(max_ego=0)", "max_ego"),
        ("ign(cap=5)", "all graphs share their weights"),
        ("ign(hops=2)", "hops"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            entry_of(text)
    with pytest.raises(UserError, match="needs a graph set"):
        EgoSizes().measure(None, Run(task=None))


def test_an_ego_that_is_too_large_is_named() -> None:
    graphs = [of_networkx(nx.path_graph(4), i % 2) for i in range(30)]
    hubs = [of_networkx(nx.star_graph(9), i % 2) for i in range(30)]
    for name, words in (
        (SMALL.replace("cap", "max_ego=6; cap"), "node 0: its ego has 10 nodes, and at most 6 .* use fewer hops, or set max_ego"),
        (GLOBAL.replace("hidden", "max_ego=6; hidden"), "has 10 nodes, and at most 6 .* use spen"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            first_fit(name, graphs + hubs)
        named = re.match(r"graph '(\d+)': ", str(caught.value))  # by the user's id, wherever the fold put it
        assert named and 30 <= int(named[1]) < 60


def test_broken_sets_are_named_before_a_fit() -> None:
    outside = [of_networkx(nx.path_graph(4), i % 2) for i in range(20)]
    outside[3].edge_index = outside[3].edge_index + 4
    with pytest.raises(UserError, match="node"):
        first_fit(SMALL, outside)
    one = [of_networkx(nx.path_graph(4 + i % 3), 0) for i in range(20)]
    with pytest.raises(UserError, match="class"):
        first_fit(SMALL, one)


# -- the commands ----------------------------------------------------------------------------------------------------------------
def test_as_typed(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    open_data("rings-and-cliques(graphs=40; seed=1)").write(tmp_path / "mygraphs")
    status, out, err = command("probe", "ego-sizes", "mygraphs", "-o", "sizes")
    assert status == 0 and "global over local" in out and "weight sets" in out, out + err
    scalars = json.loads((tmp_path / "sizes" / "findings.json").read_text())["scalars"]
    assert scalars["graphs"] == 40 and scalars["egos above max_ego"] == 0
    small = ("-s", "width=4", "-s", "layers=2", "-s", "epochs=1", "-s", "hidden=8")
    status, out, err = command("fit", "spen", "mygraphs", "-s", "hops=2", *small, "-o", "MODEL")
    assert status == 0, out + err
    status, out, err = command("predict", "MODEL", "mygraphs", "-o", "classes.csv")
    assert status == 0 and pl.read_csv("classes.csv").columns == ["id", "prediction", "p(ring)", "p(clique)"], out + err
    status, out, err = command("fit", "spen", "mygraphs", "-s", "max_ego=2", *small, "-o", "x")
    assert status == 2 and "its ego has" in " ".join((out + err).split()) and not (tmp_path / "x").exists()
    status, out, err = command(
        "compare", "mygraphs", "-m", f"{SMALL},gin(width=4; layers=2; epochs=1)", "--repeats", "1", "--classic", "1"
    )
    assert status == 0 and "spen" in out and "gin" in out, out + err


def test_every_preset_is_an_entry_and_can_be_tuned() -> None:
    for preset in ("mutag", "nci109", "proteins", "imdb-binary", "small"):
        assert entry_of(f"spen:{preset}").name == "spen"
    assert entry_of("ign:small").name == "ign"
    assert {"hops", "width", "layers", "lr"} <= set(entry_of("spen").search_space())
    assert "hops" not in entry_of("ign").search_space()


# -- real ------------------------------------------------------------------------------------------------------------------------
def test_a_short_fit_on_mutag(mirror: Callable[[str], Path]) -> None:
    mirror("tu-mutag")
    model, fold, run = first_fit("spen:small(epochs=4; lr=0.005; width=8)", "tu-mutag")
    scores = run.task.score(run.task.answer(model, fold.test.blind(), run), fold.test, run)  # type: ignore[union-attr]
    assert next(s.value for s in scores if s.metric == "accuracy" and not s.at) > 0.5
    assert model.schema["weight sizes"] == [2, 3, 4, 5] or model.schema["weight sizes"] == [2, 3, 4]
    found: Any = EgoSizes().measure(open_data("tu-mutag"), Run(task=None)).scalars
    assert found["global over local"] == pytest.approx(1.76, abs=0.005) and found["largest ego"] == 5
    plain: Any = GivenGraphSet.hold(replace(open_data("tu-mutag").read(), _cache={}))
    assert EgoSizes(hops=2).measure(plain, Run(task=None)).scalars["global over local"] == pytest.approx(0.43, abs=0.005)
