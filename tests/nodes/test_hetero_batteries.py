"""Heterogeneous node classification: its task, its baselines and LATTE through the batteries, and as a user types it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latticework as lw
from latticework.common.settled import read_alike
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import suited
from latticework.core.grid import entry_of
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.hetero import HeteroGraph, finish_hetero, hetero_schema, read_hetero
from latticework.data.hetero_sets import HeteroBlocks
from latticework.nodes.hetero_baselines import path_walks, there_and_back
from latticework.nodes.hetero_tasks import HeteroNodeClassification, match_hetero
from latticework.testing import check_method, check_probe, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints_hetero.json"
ENTRIES = [
    "latte(epochs=4)", "latte(epochs=3; edge_threshold=0.5; featureless=free; proximity=true)", "latte(epochs=3; edge_sampling=true)",
    "latte:1", "han(epochs=4)", "r-gcn(epochs=4)", "hgt(epochs=4)", "metapath2vec(walks=2; length=10; dim=8)",
    "mlp(epochs=4)", "logistic-regression", "majority",
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_method(entry: str) -> None:
    # one stored score a method: its first entry's
    first = next(e for e in ENTRIES if re.split("[(:]", e)[0] == re.split("[(:]", entry)[0])
    stored = FINGERPRINTS if entry == first else None
    check_method(entry_of(entry), "hetero-blocks", "hetero-node-classification", fingerprints=stored)


def grown(graph: Any, apart: int) -> Any:
    """The graph with a component beside it, joined to nothing of the rest, whose authors have large features."""
    first = {kind: graph.sizes[kind] for kind in graph.types}
    more = np.arange(apart)
    relations = {
        key: np.concatenate([e, np.stack([first[key[0]] + more, first[key[2]] + more])], 1) for key, e in graph.relations.items()
    }
    return replace(
        graph, ids={k: (*v, *(f"apart {k} {i}" for i in more)) for k, v in graph.ids.items()}, relations=relations,
        x={k: np.concatenate([x, np.full((apart, x.shape[1]), 9, np.float32)]) for k, x in graph.x.items()},
        y={k: np.concatenate([y, np.full(apart, -1)]) for k, y in graph.y.items()}, fixed={}, splits={}, weights={}, _cache={},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["latte", "r-gcn", "hgt"])  # HAN weighs its paths by a mean over all nodes
def test_what_is_joined_to_nothing_here_changes_no_answer_here(name: str, tmp_path: Path) -> None:
    """Nodes without features start from their neighbours' means, on the scale that the fit settled; saved, too."""
    graph = HeteroBlocks().read()
    target = graph.labelled[0]
    model = lw.fit(name, graph, settings={"epochs": 4})
    model.save(tmp_path / "M")
    wanted = np.asarray(model.predict(graph, nodes="all").values)
    for held in (model, lw.load(tmp_path / "M")):
        found = np.asarray(held.predict(grown(graph, 30), nodes="all").values)
        assert len(found) == len(wanted) + 30 == graph.sizes[target] + 30 and np.allclose(found[: len(wanted)], wanted, atol=1e-5)


@pytest.mark.parametrize("protocol", ["transductive", "inductive"])
def test_task(protocol: Any) -> None:
    check_task(HeteroNodeClassification(protocol=protocol), "hetero-blocks")


def test_given_splits_of_the_mirror(mirror: Callable[[str], Path]) -> None:
    mirror("hetero-heco")
    check_task(HeteroNodeClassification(split="40"), "hetero-heco:imdb", repeats=2)
    assert HeteroNodeClassification().for_data(open_data("hetero-heco:imdb")).split == "20"
    assert HeteroNodeClassification.make({"split": 60}).split == "60"


def test_probe() -> None:
    check_probe("meta-relations(latte.epochs=4; latte.width=8)", "hetero-blocks")


def test_probes_and_walks_speak_of_their_own_fields() -> None:
    """What an error says to type can be typed."""
    graph = HeteroBlocks(authors=30, papers=40).read()
    several = replace(
        graph, y={**graph.y, "paper": np.arange(40) % 2}, classes={**graph.classes, "paper": ("u", "v")}, _cache={}
    )  # fmt: skip
    small = {"meta-relations": {"latte.epochs": 1}, "negative-push": {"encoder.epochs": 1, "encoder.clusters": (3,)}}
    for name, settings in small.items():
        with pytest.raises(UserError, match="say which is meant: -s target=author or -s target=paper"):
            lw.probe(name, several, settings=settings)
        assert lw.probe(name, several, settings={**settings, "target": "author"}).scalars
    split = {"author": {"20": np.arange(30, dtype=np.int8) // 3 % 3}}
    assert lw.probe("meta-relations", replace(graph, splits=split, _cache={}), settings={"latte.epochs": 1, "split": 20}).scalars
    for name in ("han", "metapath2vec"):
        with pytest.raises(UserError, match=rf"^{name}.paths: 'author-paper' goes from author to paper"):
            lw.fit(name, graph, paths="author-paper")


def test_walks_follow_their_path() -> None:
    data = HeteroBlocks().read().tensors()
    relations = tuple(data.edge_types)
    chains = there_and_back(relations, "author")
    assert len(chains) == 2
    first = {"author": 0, "paper": 1000, "venue": 2000}
    walks = path_walks(data, chains[1], first, 2, 9, np.random.default_rng(0))
    assert walks.shape == (240, 9)
    assert (walks[:, 0] < 1000).all() and sorted(walks[:120, 0]) == list(range(120))
    joined = {(u, 1000 + v) for u, v in data["author", "writes", "paper"].edge_index.T.tolist()}
    for walk in walks:
        kinds = [node // 1000 for node in walk if node >= 0]
        assert kinds == [0, 1, 2, 1, 0, 1, 2, 1, 0][: len(kinds)]
        assert len(walk) < 2 or walk[1] < 0 or (walk[0], walk[1]) in joined


@pytest.mark.parametrize("name", ["han", "r-gcn", "hgt"])
def test_baselines_take_unseen_nodes(name: str) -> None:
    data = HeteroBlocks()
    task = HeteroNodeClassification(protocol="inductive").for_data(data)
    fold = task.fold(data, "random-0")
    run = Run(task=task, digest="test", fold="random-0")
    with run.seeded():
        model = entry_of(f"{name}(epochs=2)").fit(fold.train, fold.valid, run)
    assert np.allclose(model.predict(fold.test.blind()).sum(1), 1, atol=1e-5)
    assert "inductive test asks for others" in str(entry_of("metapath2vec").refuses(task, data.facts()))


@pytest.mark.parametrize(
    "name", ["latte(width=8; layers=2; epochs=2)", "han(epochs=2)", "r-gcn(epochs=2)", "hgt(epochs=2)", "metapath2vec(dim=8)"]
)
def test_both_directions_of_a_relation_are_one(name: str) -> None:
    """PyG's data sets hold a relation and its reverse; methods that add reverses read neither twice, and say what they do not read."""
    graph = HeteroBlocks().read()
    turned = {(to, f"rev_{name}", source): edges[::-1] for (source, name, to), edges in graph.relations.items()}  # PyG's names
    weight = {key: np.full(edges.shape[1], 2, np.float32) for key, edges in graph.relations.items()}
    found = []
    for relations, weights in ((graph.relations, {}), ({**graph.relations, **turned}, weight)):
        given = open_data(replace(graph, relations=relations, weights=weights, _cache={}))
        task = HeteroNodeClassification(target="author").for_data(given)
        fold, run = task.fold(given, "random-0"), Run(task=task, digest="test", fold="random-0")
        with run.seeded():
            model = suited(task, entry_of(name)).fit(fold.train, fold.valid, run)
        found.append(model.predict(fold.test.blind()))
        if "metapath2vec" not in name:  # an encoder's notes stand in its own run
            assert any("weights of edges are not used" in note for note in run.notes) == bool(weights)
    assert np.array_equal(*found)


def renamed(graph: HeteroGraph, names: dict[str, str]) -> HeteroGraph:
    """The graph with other names of its types."""

    def by_kind(held: Any) -> dict[str, Any]:
        return {names[kind]: value for kind, value in held.items()}

    relations = {(names[a], name, names[b]): e for (a, name, b), e in graph.relations.items()}
    return HeteroGraph(
        tuple(names[k] for k in graph.types), by_kind(graph.ids), relations, {}, by_kind(graph.x), by_kind(graph.features),
        by_kind(graph.y), by_kind(graph.classes), by_kind(graph.fixed), by_kind(graph.splits),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["latte", "han", "hgt", "r-gcn"])
def test_what_types_are_called_changes_no_answer(name: str, tmp_path: Path) -> None:
    """Names that torch's containers have as methods, or refuse, and names with blanks are names like others."""
    graph = HeteroBlocks(authors=30, papers=40).read()
    wanted = np.asarray(lw.fit(name, graph, epochs=2).predict(nodes="all").values)
    for words in (("items", "type", "keys"), ("a.b", "p.q", "v."), ("an author", "a-paper", "pärt")):
        other = renamed(graph, dict(zip(graph.types, words, strict=True)))
        model = lw.fit(name, other, epochs=2)
        assert np.array_equal(np.asarray(model.predict(nodes="all").values), wanted), words
        model.save(tmp_path / words[0])
        assert np.array_equal(np.asarray(lw.load(tmp_path / words[0]).predict(other, nodes="all").values), wanted)


@pytest.mark.parametrize("name", ["latte", "han", "hgt", "r-gcn"])
def test_a_type_that_nothing_joins_to_the_target_counts_for_nothing(name: str) -> None:
    """Without features it would have free vectors, and the model could answer for its own graph alone."""
    graph = HeteroBlocks(authors=40, papers=40).read()
    whole = {**graph.ids, "city": ("rome", "oslo"), "land": ("italy", "norway")}
    lone = replace(
        graph, types=(*graph.types, "city", "land"), ids=whole, _cache={},
        relations={**graph.relations, ("city", "in", "land"): np.array([[0, 1], [0, 1]])},
    )  # fmt: skip
    model = lw.fit(name, lone, fold="random-0", epochs=2, settings={"task.protocol": "inductive", "task.split": "random"})
    assert np.isfinite(np.asarray(model.predict(nodes="all").values)).all() and model.model.scope == "new data"
    alone = replace(graph, relations={("paper", "at", "venue"): graph.relations["paper", "at", "venue"]}, _cache={})
    with pytest.raises(UserError, match="no relation touches 'author'"):
        lw.fit(name, alone, epochs=2)


def test_names_of_reverses_do_not_collide() -> None:
    """A relation of that name which is no reverse keeps its edges, and a model from before steps were told apart walks them all."""
    edges = {("a", "to", "b"): [[0, 1], [0, 1]], ("b", "rev_to", "a"): [[0], [1]], ("b", "back", "a"): [[0, 1], [0, 1]]}
    relations = {key: np.array(e) for key, e in edges.items()}
    graph = finish_hetero(HeteroGraph(("a", "b"), {"a": ("p", "q"), "b": ("r", "s")}, relations))
    schema = hetero_schema(graph, None)
    method: Any = entry_of("hgt")
    along = method._along(schema)
    assert set(along.values()) == {(key, way) for key in edges for way in (True, False) if key[1] != "back"}
    assert along["b", "rev_to", "a"] == (("b", "rev_to", "a"), True) and len(set(along)) == 4
    before = {key: value for key, value in schema.items() if key != "doubled"}
    part = read_alike(Part(None, None, None, schema), before)
    assert len(method._along(before)) == len(method._along(part.schema)) == 6
    assert method.triples(part.schema) == method.triples(before)


def test_new_data_are_matched_by_name() -> None:
    data = HeteroBlocks()
    task = HeteroNodeClassification().for_data(data)
    schema = task.fold(data, "random-0").train.schema
    graph = data.read()
    assert match_hetero(graph, schema) is graph
    from dataclasses import replace

    turned = replace(graph, x={**graph.x, "paper": graph.x["paper"][:, ::-1]}, _cache={})
    turned = replace(turned, features={**graph.features, "paper": graph.features["paper"][::-1]}, _cache={})
    assert np.array_equal(match_hetero(turned, schema).x["paper"], graph.x["paper"])
    fewer = {key: e for key, e in graph.relations.items() if key[1] != "at"}
    with pytest.raises(UserError, match="fitted with relation paper-at-venue"):
        match_hetero(replace(graph, relations=fewer, _cache={}), schema)
    with pytest.raises(UserError, match="paper: the model needs the node features 'g0', 'g1', 'g2' …; found v, w, x, y, z"):
        match_hetero(replace(graph, features={**graph.features, "paper": tuple("vwxyz")}, _cache={}), schema)


def test_as_a_user_types_it(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    network = tmp_path / "my-network"
    assert command("data", "export", "hetero-blocks", network)[0] == 0
    model, answers = tmp_path / "MODEL", tmp_path / "predictions.csv"
    status, out, err = command(
        "fit", "latte", network, "-s", "task.target=author", "-s", "layers=2", "-s", "epochs=5", "-o", model
    )
    assert status == 0, out + err
    status, out, err = command("predict", model, network, "-o", answers)
    assert status == 0, out + err
    lines = answers.read_text().splitlines()
    assert lines[0] == "id,prediction,p(class 0),p(class 1),p(class 2)" and len(lines) == 121
    status, out, err = command("score", "hetero-node-classification", answers, network)
    assert status == 0 and "macro-f1" in out, out + err
    assert len(read_hetero(network).labelled) == 1
