"""Baselines for whole graphs: the WL kernel against a dictionary, invariances, odd graphs, batteries, a run on MUTAG."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.graphs import GivenGraphSet, Graphs, GraphSet
from latticework.graphs import wl_kernel
from latticework.graphs.baselines import GIN, bag
from latticework.graphs.codes import codes_of
from latticework.graphs.network import fit_network, inputs_of, with_features
from latticework.graphs.tasks import GraphClassification, GraphRegression, Truth
from latticework.testing import check_method

FINGERPRINTS = Path(__file__).parent / "fingerprints.json"
RINGS = "rings-and-cliques(graphs=60; seed=0)"
TASK = GraphClassification(protocol="random")
NUMBERS = GraphRegression(protocol="random")
SMALL = "width=8; layers=2; epochs=2; batch=16"
NETWORKS = (
    f"gin({SMALL})", f"graph-gcn({SMALL}; residual=true)", f"graph-sage({SMALL}; norm=layer; jump=true)",
    f"graph-gat({SMALL}; readout=max)", f"pna({SMALL}; readout=sum-mean)", f"gps({SMALL}; steps=4)",
)  # fmt: skip
OTHERS = ("graph-majority", "bag-of-features", "wl-svm")


def random_graph(rng: np.random.Generator, n: int, tags: int = 2, edge_tags: int = 0) -> Data:
    u, v = np.nonzero(np.triu(rng.random((n, n)) < 0.4, 1))
    edges = torch.from_numpy(np.stack([np.concatenate([u, v]), np.concatenate([v, u])]))
    found = Data(edge_index=edges, num_nodes=n)
    if tags:
        found.x = torch.eye(tags)[torch.from_numpy(rng.integers(tags, size=n))]
    if edge_tags:
        kind = rng.integers(edge_tags, size=len(u))
        found.edge_attr = torch.eye(edge_tags)[torch.from_numpy(np.concatenate([kind, kind]))]
    return found


def relabelled(graph: Data, place: torch.Tensor) -> Data:
    """Node i becomes place[i]; the edges in another order, too."""
    order = torch.randperm(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(0))
    new = Data(edge_index=place[graph.edge_index][:, order], num_nodes=graph.num_nodes)
    if graph.x is not None:
        new.x = torch.empty_like(graph.x)
        new.x[place] = graph.x
    if graph.edge_attr is not None:
        new.edge_attr = graph.edge_attr[order]
    return new


def whole(graphs: list[Data], y: Any, schema: dict[str, Any]) -> Part:
    ids = tuple(str(i) for i in range(len(graphs)))
    return Part(graphs, Graphs(np.arange(len(graphs)), ids), Truth(np.asarray(y)), schema)


def schema_for(graphs: list[Data], classes: int = 2) -> dict[str, Any]:
    def names(x: Any, word: str) -> list[str]:
        return [] if x is None else [f"{word}{i}" for i in range(x.shape[1])]

    return {
        "classes": [str(c) for c in range(classes)], "targets": [] if classes else ["t"], "multi": False,
        "features": names(graphs[0].x, "f"), "edge_features": names(graphs[0].edge_attr, "e"),
    }  # fmt: skip


def fitted(name: str, part: Part, task: Any = TASK) -> Any:
    run = Run(task=task, label=name)
    with run.seeded():
        return entry_of(name).fit(part, None, run)


# -- WL kernel ---------------------------------------------------------------------------------------------------------------
def dictionary_colours(graphs: list[Data], iterations: int) -> list[list[list[Any]]]:
    """The oracle: [graph][iteration][node], each colour the nested tuple that it stands for."""
    found = []
    for g in graphs:
        n = int(g.num_nodes)
        now = [tuple(row) for row in (g.x if g.x is not None else torch.zeros(n, 0)).tolist()]
        rounds = [now]
        said = (g.edge_attr if g.edge_attr is not None else torch.zeros(g.edge_index.shape[1], 0)).tolist()
        near: list[list[tuple[int, Any]]] = [[] for _ in range(n)]
        for (u, v), e in zip(g.edge_index.T.tolist(), said, strict=True):
            near[v].append((u, tuple(e)))
        for t in range(iterations):
            now = [(t, now[v], tuple(sorted((now[u], e) for u, e in near[v]))) for v in range(n)]
            rounds.append(now)
        found.append(rounds)
    return found


@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 2), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_the_kernel_is_the_dictionarys(seed: int, tags: int, edge_tags: int, iterations: int) -> None:
    rng = np.random.default_rng(seed)
    graphs = [random_graph(rng, int(rng.integers(1, 8)), tags, edge_tags) for _ in range(5)]
    oracle = dictionary_colours(graphs, iterations)
    seen = [
        Counter(c for rounds in g for c in rounds) if False else Counter((t, c) for t, r in enumerate(g) for c in r)
        for g in oracle
    ]
    expected = np.array([[sum(a[c] * b[c] for c in a) for b in seen] for a in seen], float)
    found, owner = wl_kernel.colours_of(graphs, iterations)
    known = wl_kernel.vocabulary(found)
    features, norm = wl_kernel.counts(found, owner, len(graphs), known)
    assert np.array_equal((features @ features.T).toarray(), expected)
    assert np.array_equal(norm, np.diag(expected))
    scale = np.sqrt(np.diag(expected))
    kernel = wl_kernel.normalised(features, norm)
    assert np.allclose((kernel @ kernel.T).toarray(), expected / scale[:, None] / scale[None], atol=1e-12)


def test_colours_do_not_depend_on_the_order_of_nodes_nor_on_columns_of_zeros() -> None:
    rng = np.random.default_rng(0)
    graph = random_graph(rng, 9, 3, 2)
    place = torch.from_numpy(rng.permutation(9))
    a, _ = wl_kernel.colours_of([graph], 3)
    b, _ = wl_kernel.colours_of([relabelled(graph, place)], 3)
    assert np.array_equal(a, b[:, place.numpy()])
    assert graph.x is not None
    one = Data(x=torch.tensor([[1.0, 0.0, 0.0]]), edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=1)
    alone = wl_kernel.row_colours(one.x.numpy(), 1)
    among = wl_kernel.row_colours(np.eye(3, dtype=np.float32), 3)
    assert alone[0] == among[0] and len(np.unique(among)) == 3
    assert (
        wl_kernel.row_colours(np.array([[0.0], [-0.0]], np.float32), 2).tolist()[0]
        == wl_kernel.row_colours(np.array([[0.0]], np.float32), 1)[0]
    )


def test_a_new_graphs_unknown_trees_count_in_its_norm_alone() -> None:
    rng = np.random.default_rng(1)
    train, new = [random_graph(rng, 5) for _ in range(4)], [random_graph(rng, 9) for _ in range(3)]
    found, owner = wl_kernel.colours_of(train, 2)
    known = wl_kernel.vocabulary(found)
    ours = wl_kernel.normalised(*wl_kernel.counts(found, owner, 4, known))
    other, of = wl_kernel.colours_of(new, 2)
    cross = (wl_kernel.normalised(*wl_kernel.counts(other, of, 3, known)) @ ours.T).toarray()
    both, all_of = wl_kernel.colours_of(train + new, 2)
    joint = wl_kernel.normalised(*wl_kernel.counts(both, all_of, 7, wl_kernel.vocabulary(both)))
    assert np.allclose(cross, (joint @ joint.T).toarray()[4:, :4], atol=1e-12)


# -- what the networks read --------------------------------------------------------------------------------------------------
def test_return_chances_by_matrix_powers() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        graph = random_graph(rng, n, 0)
        A = np.zeros((n, n))
        A[graph.edge_index[0], graph.edge_index[1]] = 1
        walk = A / np.maximum(A.sum(1, keepdims=True), 1)
        expected = np.stack([np.diag(np.linalg.matrix_power(walk, k)) for k in range(1, 7)], 1)
        np.testing.assert_allclose(codes_of(graph, "rwse", 6), expected, atol=1e-6)
    alone = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=1)
    assert codes_of(alone, "rwse", 3).tolist() == [[0.0, 0.0, 0.0]]


def test_features_follow_the_rule_and_the_train_part() -> None:
    star = Data(edge_index=torch.tensor([[1, 2, 3, 0, 0, 0], [0, 0, 0, 1, 2, 3]]), num_nodes=4)
    pair = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    schema = schema_for([pair])
    settled = schema | inputs_of("auto", [pair], schema)
    assert settled["rule"] == "degree" and settled["degree cap"] == 1 and settled["inputs"] == 2
    (made,) = with_features([star], settled)
    assert made.x.tolist() == [[0, 1]] * 4 and star.x is None  # a larger degree than any in train is the largest in train
    (made,) = with_features([star], schema | inputs_of("constant", [star], schema))
    assert made.x.tolist() == [[1.0]] * 4
    with pytest.raises(UserError, match="features=given, but the nodes of these graphs have none"):
        inputs_of("given", [star], schema)
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, 6, 2) for _ in range(3)]
    for g in graphs:
        g.x = torch.cat([g.x, 50 + 7 * torch.from_numpy(rng.normal(size=(6, 1))).float()], 1)
    schema = schema_for(graphs)
    settled = schema | inputs_of("auto", graphs[:2], schema)
    x = torch.cat([g.x for g in with_features(graphs[:2], settled)])
    assert torch.equal(x[:, :2], torch.cat([g.x for g in graphs[:2]])[:, :2])  # zeros and ones stay
    assert abs(float(x[:, 2].mean())) < 1e-5 and abs(float(x[:, 2].std(correction=0)) - 1) < 1e-5
    (third,) = with_features(graphs[2:], settled)
    centre, scale = settled["x scales"][2]
    assert torch.allclose(third.x[:, 2], ((graphs[2].x[:, 2].double() - centre) / scale).float())


def test_a_bag_by_hand() -> None:
    graph = Data(x=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    assert np.allclose(bag([graph]), [[4, 6, 2, 3, 2, 2, np.log(3), np.log(3)]])


# -- invariances -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("edge_tags", [0, 2])
@pytest.mark.parametrize("name", [*OTHERS, *NETWORKS])
def test_the_order_of_nodes_and_graphs_changes_nothing(name: str, edge_tags: int) -> None:
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, int(rng.integers(3, 9)), 2, edge_tags) for _ in range(12)]
    y, schema = np.arange(12) % 2, schema_for(graphs)
    model = fitted(name, whole(graphs, y, schema))
    expected = model.predict(whole(graphs, y, schema).blind())
    order = rng.permutation(12)
    moved = [relabelled(graphs[i], torch.from_numpy(rng.permutation(graphs[i].num_nodes))) for i in order]
    found = model.predict(whole(moved, y[order], schema).blind())
    assert np.allclose(found, expected[order], atol=1e-5) and np.allclose(found.sum(1), 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_edge_features_are_read_or_said_not_to_be(name: str) -> None:
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, 7, 2, 2) for _ in range(8)]
    schema = schema_for(graphs)
    model = fitted(name, whole(graphs, np.arange(8) % 2, schema))
    other = [g.clone() for g in graphs]
    for g in other:
        g.edge_attr = g.edge_attr.flip(1)
    same = np.allclose(model.predict(whole(graphs, [0] * 8, schema)), model.predict(whole(other, [0] * 8, schema)), atol=1e-6)
    assert same == name.startswith(("graph-gcn", "graph-sage"))


# -- odd graphs --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*OTHERS, "graph-mean", *NETWORKS])
def test_graphs_of_one_node_without_edges_and_without_features(name: str) -> None:
    none = torch.zeros(2, 0, dtype=torch.int64)
    graphs = [Data(edge_index=none, num_nodes=n) for n in (1, 1, 3, 1, 2, 1)]
    numbers = name == "graph-mean"
    y = np.arange(6.0)[:, None] if numbers else np.arange(6) % 2
    model = fitted(name, whole(graphs, y, schema_for(graphs, 0 if numbers else 2)), NUMBERS if numbers else TASK)
    rng = np.random.default_rng(0)
    asked = [*graphs[:2], random_graph(rng, 6, 0)]
    found = model.predict(whole(asked, y[:3], model.schema).blind())
    assert found.shape == (3, 1 if numbers else 2) and np.isfinite(found).all() and np.allclose(found[0], found[1])
    assert model.predict(whole([], y[:0], model.schema).blind()).shape == (0, 1 if numbers else 2)


# -- numbers -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["bag-of-features", "wl-svm", f"gin({SMALL})", f"pna({SMALL}; error=squared)"])
def test_answers_are_in_the_users_units(name: str) -> None:
    """Targets in other units give the same answers in those units."""
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, int(rng.integers(3, 9))) for _ in range(16)]
    y = np.array([[g.edge_index.shape[1] / 2, g.num_nodes] for g in graphs], float)
    schema = schema_for(graphs, 0) | {"targets": ["edges", "nodes"]}
    scale, shift = np.array([1e3, 0.5]), np.array([-4e4, 7.0])
    first = fitted(name, whole(graphs, y, schema), NUMBERS).predict(whole(graphs, y, schema).blind())
    second = fitted(name, whole(graphs, y * scale + shift, schema), NUMBERS).predict(whole(graphs, y, schema).blind())
    assert np.allclose(second, first * scale + shift, rtol=1e-4, atol=1e-2)
    constant = fitted(name, whole(graphs, y * 0 + 3, schema), NUMBERS).predict(whole(graphs, y, schema).blind())
    assert np.isfinite(constant).all()


def test_a_net_learns_to_count_edges_and_keeps_the_best_epoch() -> None:
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, int(rng.integers(4, 12)), 0) for _ in range(60)]
    y = np.array([[g.edge_index.shape[1] / 2] for g in graphs])
    schema = schema_for(graphs, 0)
    train, valid = (whole(graphs[a:b], y[a:b], schema) for a, b in ((0, 45), (45, 60)))
    run = Run(task=NUMBERS.but(rank_by="mae"), label="gin")
    run._valid = valid
    method = GIN(width=16, layers=2, epochs=60, lr=1e-2, dropout=0.0, batch=8)
    with run.seeded():
        model = fit_network(method, train, valid, run)
    error = np.abs(model.predict(valid.blind()) - valid.truth.y).mean()
    seen = [v for _, v in run.curve["valid"]]
    assert error == pytest.approx(min(seen), rel=1e-5) and error < 0.4 * np.abs(valid.truth.y - y[:45].mean()).mean()
    assert len(seen) <= seen.index(min(seen)) + method.patience + 1
    assert any("chosen on validation metric" in note for note in run.notes)


# -- batteries ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*OTHERS, *NETWORKS])
def test_method(name: str) -> None:
    check_method(entry_of(name), RINGS, TASK, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize(
    "name", ["graph-mean", "graph-mean(of=median)", "bag-of-features", "wl-svm", f"gin({SMALL}; stop=loss; clip=1)"]
)
def test_method_on_numbers(name: str) -> None:
    check_method(entry_of(name), RINGS, NUMBERS, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize(
    ("name", "says"), [("graph-gat(width=6)", "6 is not a multiple of 4 heads"), ("gps(width=6)", "6 is not a")]
)
def test_heads_divide_the_width(name: str, says: str) -> None:
    part = TASK.fold(open_data(RINGS), "random-0").train
    with pytest.raises(UserError, match=says):
        fitted(name, part)


def test_a_class_of_one_graph_is_answered_and_a_class_without_any_gets_nothing() -> None:
    rng = np.random.default_rng(0)
    graphs = [random_graph(rng, 6) for _ in range(9)]
    schema = schema_for(graphs, 4)
    part = whole(graphs, [0, 0, 0, 0, 1, 1, 1, 1, 3], schema)
    for name in ("wl-svm", "bag-of-features", "graph-majority"):
        found = fitted(name, part).predict(part.blind())
        assert found.shape == (9, 4) and (found[:, 2] == 0).all() and np.allclose(found.sum(1), 1)


def test_noise_takes_effect_on_what_a_method_sees() -> None:
    data = open_data(RINGS)
    plain, noisy = TASK.fold(data, "random-0"), TASK.but(scenario="noisy", share=0.3).fold(data, "random-0")
    model = fitted("wl-svm", plain.train)
    assert not np.allclose(model.predict(plain.test.blind()), model.predict(noisy.test.blind()))


def test_mutag(mirror: Any) -> None:
    """One published fold: both of the classics are well above the majority (0.66); no figure is claimed here."""
    mirror("tu-mutag")
    data = open_data("tu-mutag")
    task = GraphClassification().for_data(data)
    fold = task.fold(data, "folds-2")
    for name in ("wl-svm", "gin(width=16; layers=2; epochs=30; lr=0.01)"):
        run = Run(task=task, label=name)
        run._valid = fold.valid
        with run.seeded():
            model = entry_of(name).fit(fold.train, fold.valid, run)
        trained, tested = (
            float((model.predict(p.blind()).argmax(1) == p.truth.y).mean()) for p in (fold.train, fold.test)
        )  # fmt: skip
        assert trained >= 0.75 and tested >= 0.7, (name, trained, tested)


def test_molecules_with_bonds(mirror: Any) -> None:
    """Edge features and numbers: a few epochs on a part of FreeSolv beat the mean."""
    mirror("freesolv")
    given_set: GraphSet = open_data("freesolv").read()
    data = GivenGraphSet.hold(replace(given_set.take(np.arange(200)), _cache={}))
    fold = NUMBERS.fold(data, "random-0")
    assert fold.train.data[0].edge_attr is not None
    for name in ("bag-of-features", "gin(width=16; layers=2; epochs=10; lr=0.01)"):
        model = fitted(name, fold.train, NUMBERS)
        error = np.abs(model.predict(fold.test.blind()) - fold.test.truth.y).mean()
        assert error < np.abs(fold.train.truth.y.mean() - fold.test.truth.y).mean(), name
