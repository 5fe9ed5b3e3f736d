"""LATTE's science: composition by brute force, attention and its oracle, pruning, the proximity loss, and what it costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import latticework as lw
from latticework.core.errors import UserError
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.hetero import HeteroGraph, chain_types, finish_hetero, keep_nodes, whole_hetero
from latticework.data.hetero_sets import HeteroBlocks, WithoutRelation
from latticework.layers.attention import Edges
from latticework.nodes.hetero_tasks import HeteroNodeClassification
from latticework.nodes.latte import (
    LATTE,
    LATTEMethod,
    compose,
    composed_edges,
    kept_edges,
    meta_relations,
    needed_types,
    number_chains,
    other_pairs,
    pairs_joined,
    proximity_loss,
    sampled_edges,
)

RELATIONS = (("P", "by", "A"), ("P", "at", "C"))
SIZES = {"A": 5, "P": 7, "C": 3}


def random_edges(seed: int = 0, share: float = 0.4) -> dict[tuple[str, str, str], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {key: np.stack(np.nonzero(rng.random((SIZES[key[0]], SIZES[key[2]])) < share)) for key in RELATIONS}


def part_of(edges: dict[Any, Any], sizes: dict[str, int] = SIZES, target: str = "A", width: int = 3) -> Part:
    rng = np.random.default_rng(9)
    graph = finish_hetero(
        HeteroGraph(
            tuple(sizes), {t: tuple(f"{t}{i}" for i in range(n)) for t, n in sizes.items()}, edges,
            x={t: rng.normal(size=(n, width)).astype(np.float32) for t, n in sizes.items()},
            features={t: tuple(f"f{i}" for i in range(width)) for t in sizes},
            y={target: np.arange(sizes[target]) % 2}, classes={target: ("u", "v")},
        )
    )  # fmt: skip
    return whole_hetero(graph)


def network(part: Part, layers: int = 2, **how: Any) -> LATTE:
    relations = [tuple(key) for key in part.schema["relations"]]
    torch.manual_seed(0)
    widths = {kind: len(part.schema["all_features"].get(kind, ())) for kind in part.schema["types"]}
    net = LATTE(relations, widths, part.schema["types"], part.query.target, 2, width=8, layers=layers, **how)
    return net.eval()


def inputs(part: Part, layers: int = 2) -> tuple[dict[str, Any], dict[int, Edges]]:
    return {kind: part.data[kind].x for kind in part.data.node_types}, composed_edges(part, layers, 10**6)


# -- composition -------------------------------------------------------------------------------------------------------
def test_lengths_and_heads_of_the_card() -> None:
    one, two = meta_relations(RELATIONS, 2)
    assert sorted("".join(chain_types(c)) for c in one) == ["AP", "CP", "PA", "PC"]
    assert sorted("".join(chain_types(c)) for c in two) == ["APA", "APC", "CPA", "CPC", "PAP", "PCP"]
    with pytest.raises(ValueError, match="layers"):
        meta_relations(RELATIONS, 0)


def test_worked_value_and_a_middle_node_with_one_side() -> None:
    A, B = sp.csr_array([[1.0, 1.0]]), sp.csr_array([[1.0], [1.0]])
    assert compose(A, B).toarray().tolist() == [[1.0]]
    # the second middle node has no edge on either side: its factor is 0, not infinite
    assert compose(sp.csr_array([[1.0, 0.0]]), sp.csr_array([[1.0], [0.0]])).toarray().tolist() == [[0.5]]
    with pytest.raises(ValueError, match="do not meet"):
        compose(A, sp.csr_array([[1.0]]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_values_equal_the_formula_entry_by_entry(seed: int) -> None:
    rng = np.random.default_rng(seed)
    A = rng.random((4, 5)) * (rng.random((4, 5)) < 0.5)
    B = rng.random((5, 3)) * (rng.random((5, 3)) < 0.5)
    wanted = np.zeros((4, 3))
    for i in range(4):
        for j in range(3):
            for k in range(5):
                total = A[:, k].sum() + B[k].sum()
                wanted[i, j] += A[i, k] * B[k, j] / total if total else 0.0
    found = compose(sp.csr_array(A), sp.csr_array(B))
    assert np.abs(found.toarray() - wanted).max() < 1e-12
    assert pairs_joined(sp.csr_array(A), sp.csr_array(B), 0) == ((A > 0).astype(int) @ (B > 0) > 0).sum()


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_edge_sets_equal_brute_force(seed: int, layers: int) -> None:
    edges = random_edges(seed)
    part = part_of(edges)
    levels = meta_relations(RELATIONS, layers)
    numbers, found = number_chains(levels), composed_edges(part, layers, 10**6)
    needed = needed_types(levels, "A")
    looked = 0
    for depth, chains in enumerate(levels):
        for chain in chains:
            if depth and chain_types(chain)[0] not in needed[depth]:
                continue
            types = chain_types(chain)
            pairs = {(i, i) for i in range(SIZES[types[0]])}
            for key, forward in chain:
                steps = {(u, v) if forward else (v, u) for u, v in edges[key].T.tolist()}
                pairs = {(i, b) for i, a in pairs for c, b in steps if a == c}
            at = found[numbers[chain]]
            assert set(zip(at.row.tolist(), at.column.tolist(), strict=True)) == pairs
            assert len(at) == len(pairs)
            looked += 1
    assert looked >= 6


def test_one_layer_builds_no_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    part = part_of(random_edges())

    def refuse(*_: Any) -> None:
        raise AssertionError("a composition was built")

    monkeypatch.setattr("latticework.nodes.latte.pairs_joined", refuse)
    monkeypatch.setattr("latticework.nodes.latte.compose", refuse)
    found = composed_edges(part, 1, 1)
    assert len(found) == 4
    network(part, 1)(inputs(part, 1)[0], found)
    with pytest.raises(AssertionError, match="was built"):
        composed_edges(part, 2, 10**6)


def test_the_budget_names_the_size_before_it_is_made() -> None:
    part = part_of(random_edges())
    sizes = {m: len(e) for m, e in composed_edges(part, 2, 10**6).items()}
    numbers = number_chains(meta_relations(RELATIONS, 2))
    total = sum(sizes[m] for chain, m in numbers.items() if len(chain) == 2 and m in sizes)
    assert composed_edges(part, 2, total).keys() == sizes.keys()
    with pytest.raises(UserError, match=rf"join {total} pairs, above edge_budget {total - 1}"):
        composed_edges(part, 2, total - 1)


# -- attention ---------------------------------------------------------------------------------------------------------
def test_pairs_are_counted_without_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of any size, by brute force; a hub of more pairs than memory holds is refused, by HAN too."""
    rng = np.random.default_rng(0)
    for work in (1, 7, 1 << 22):
        monkeypatch.setattr("latticework.nodes.latte._WORK", work)
        A, B = (sp.csr_array(rng.random(shape) < 0.3, dtype=np.int64) for shape in ((30, 12), (12, 25)))
        exact = int(((A.toarray() @ B.toarray()) > 0).sum())
        assert pairs_joined(A, B, 10) == pairs_joined(A, B, 10, 10**9) == exact
        assert pairs_joined(A, B, 10**6) == int((A.toarray() @ B.toarray()).sum())
        assert 10 < pairs_joined(A, B, 10, 10) <= exact
    n = 400_000
    hub = {("a", "at", "v"): np.stack([np.arange(n), np.zeros(n, np.int64)])}
    graph = finish_hetero(
        HeteroGraph(
            ("a", "v"), {"a": tuple(map(str, range(n))), "v": ("0",)}, hub, x={"a": np.ones((n, 1), np.float32)},
            features={"a": ("f",)}, y={"a": np.arange(n) % 2}, classes={"a": ("u", "w")},
        )
    )  # fmt: skip
    for name, text in (("latte", "join .* pairs or more, above edge_budget 2,000,000"), ("han", "a-v-a alone .* or more")):
        with pytest.raises(UserError, match=text):
            lw.fit(name, graph, epochs=1)


def test_the_budget_is_for_all_chains_whether_their_edges_follow_the_attention_or_not() -> None:
    """A threshold that drops nothing joins the same pairs, so the same budgets are enough for them."""
    graph = HeteroBlocks(authors=20, papers=30).read()
    for layers in (2, 3):
        every = composed_edges(whole_hetero(graph), layers, 10**9)
        levels = meta_relations(tuple(graph.relations), layers)
        total = sum(len(every[m]) for chain, m in number_chains(levels).items() if len(chain) > 1 and m in every)
        for threshold in (0.0, 1e-30):
            lw.fit("latte", graph, layers=layers, epochs=1, edge_threshold=threshold, edge_budget=total)
            with pytest.raises(UserError, match="edge_budget"):
                lw.fit("latte", graph, layers=layers, epochs=1, edge_threshold=threshold, edge_budget=total - 1)


def test_attention_and_relation_weights_sum_to_one() -> None:
    part = part_of(random_edges(1))
    net = network(part)
    found = net.run(*inputs(part))
    for betas, attention in zip(found.betas, found.attention, strict=True):
        for beta in betas.values():
            assert torch.allclose(beta.sum(1), torch.ones(len(beta)), atol=1e-6)
        for a in attention.values():
            total = torch.zeros(a.edges.shape[0], a.weights.shape[1]).index_add(0, a.edges.row, a.weights)
            has = torch.zeros(a.edges.shape[0], dtype=torch.bool)
            has[a.edges.row] = True
            assert torch.allclose(total[has], torch.ones_like(total[has]), atol=1e-6)
            assert bool((total[~has] == 0).all())


def test_a_node_without_edges_keeps_its_own_share() -> None:
    edges = random_edges(2)
    edges[RELATIONS[0]] = edges[RELATIONS[0]][:, edges[RELATIONS[0]][1] != 0]  # the first author writes nothing
    part = part_of(edges)
    net = network(part, 1)
    layer: Any = net.layers[0]
    h = net.start(inputs(part, 1)[0])
    out, betas, _ = layer(h, inputs(part, 1)[1])
    left = layer.left["type A"](h["A"])
    assert torch.allclose(out["A"][0], F.relu(betas["A"][0, -1] * left[0]), atol=1e-6)
    assert not torch.allclose(out["A"][1], F.relu(betas["A"][1, -1] * left[1]), atol=1e-4)


def test_single_type_equals_dense_attention() -> None:
    """One type, one relation, beta of the node itself forced to 0: attention with two projections and no self-loop."""
    rng = np.random.default_rng(3)
    n = 6
    A = rng.random((n, n)) < 0.4
    A[:, 0] = True
    part = part_of({("N", "to", "N"): np.stack(np.nonzero(A))}, {"N": n}, "N")
    net = network(part, 1).double()
    layer: Any = net.layers[0]
    with torch.no_grad():  # softmax over (forwards, backwards, itself) with all of the mass on the first
        layer.phi["type N"].weight.zero_()
        layer.phi["type N"].bias.copy_(torch.tensor([0.0, -1e4, -1e4]))
        layer.sharp["0"].fill_(1.7)
    h = {"N": torch.from_numpy(rng.normal(size=(n, 8)))}
    out, _, _ = layer(h, composed_edges(part, 1, 1))
    L, R = layer.left["type N"](h["N"]), layer.right["type N"](h["N"])
    wanted = []
    for k in range(2):
        cut = slice(4 * k, 4 * k + 4)
        logits = 1.7 * F.leaky_relu((L[:, cut] @ layer.u["0"][k])[:, None] + (R[:, cut] @ layer.v["0"][k])[None], 0.2)
        weights = torch.softmax(logits.masked_fill(~torch.from_numpy(A), -math.inf), 1)
        wanted.append(weights @ R[:, cut])
    assert (out["N"] - F.relu(torch.cat(wanted, 1))).abs().max() < 1e-10


def test_permutation_equivariance_by_type() -> None:
    edges = random_edges(4)
    part = part_of(edges)
    net = network(part)
    plain = net(*inputs(part))
    rng = np.random.default_rng(0)
    order = {kind: rng.permutation(n) for kind, n in SIZES.items()}  # new place i holds old node order[i]
    place = {kind: np.argsort(o) for kind, o in order.items()}
    turned = {key: np.stack([place[key[0]][u], place[key[2]][v]]) for key, (u, v) in edges.items()}
    other = part_of(turned)
    x = {kind: part.data[kind].x[torch.from_numpy(order[kind])] for kind in SIZES}
    moved = net(x, composed_edges(other, 2, 10**6))
    assert (moved - plain[torch.from_numpy(order["A"])]).abs().max() < 1e-5


@pytest.mark.parametrize("layers", [2, 3])
def test_pruned_equals_unpruned(layers: int) -> None:
    edges = random_edges(5)
    part = part_of(edges)
    full, cut = network(part, layers, prune=False), network(part, layers)
    cut.load_state_dict({k: v for k, v in full.state_dict().items() if k in cut.state_dict()})
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in full.parameters())
    levels = meta_relations(RELATIONS, layers)
    every = {}
    for chain, m in number_chains(levels).items():
        matrix = sp.csr_array(np.eye(SIZES[chain_types(chain)[0]]))
        for key, forward in chain:
            u, v = edges[key]
            step = sp.coo_array((np.ones(len(u)), (u, v)), shape=(SIZES[key[0]], SIZES[key[2]]))
            matrix = matrix @ (step if forward else step.T)
        every[m] = Edges(sp.csr_array(matrix))
    x, seen = inputs(part, layers)
    assert (full(x, every) - cut(x, seen)).abs().max() < 1e-6


def test_sizes_grow_by_relation_not_by_projection() -> None:
    """One more relation of two known types adds 2d + 1 and d + 1 numbers for each direction."""
    edges = random_edges()
    more = {**edges, ("P", "of", "A"): edges[RELATIONS[0]]}
    d = 8
    counts = [sum(p.numel() for p in network(part_of(e), 1, prune=False).parameters()) for e in (edges, more)]
    assert counts[1] - counts[0] == 2 * ((2 * d + 1) + (d + 1))


@pytest.mark.parametrize("pool", ["concat", "last", "mean", "max"])
def test_pools(pool: Any) -> None:
    part = part_of(random_edges())
    net = network(part, 2, pool=pool)
    assert net(*inputs(part)).shape == (5, 2)
    assert net.classifier.in_features == (16 if pool == "concat" else 8)


def test_errors_of_the_network() -> None:
    part = part_of(random_edges())
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        network(part, heads=3)
    with pytest.raises(ValueError, match="classes must be >= 2"):
        LATTE(RELATIONS, dict.fromkeys(SIZES, 3), SIZES, "A", 1)
    with pytest.raises(ValueError, match="no relation touches 'Z'"):
        LATTE(RELATIONS, dict.fromkeys(SIZES, 3), SIZES, "Z", 2)


# -- edges that follow the attention -------------------------------------------------------------------------------------
def test_threshold_keeps_the_largest_where_none_is_left_and_leaves_the_edges_alone() -> None:
    edges = Edges(sp.csr_array([[1.0, 1.0], [0.0, 1.0]]))
    values = torch.tensor([0.3, 0.7, 1.0])
    assert kept_edges(edges, values, 0.5).toarray().tolist() == [[0.0, pytest.approx(0.7)], [0.0, 1.0]]
    assert kept_edges(edges, values * 0.1, 0.5).nnz == 1
    assert edges.matrix().nnz == 3 and edges.column.tolist() == [0, 1, 1]


def test_sampling_draws_by_value_and_takes_the_largest_without_a_generator() -> None:
    C = sp.csr_array(np.array([[1.0, 2.0, 3.0, 94.0]]))
    assert sampled_edges(C, 2, None).toarray().tolist() == [[0, 0, 3.0, 94.0]]
    drawn = [sampled_edges(C, 1, torch.Generator().manual_seed(i)).indices[0] for i in range(300)]
    assert np.mean(np.array(drawn) == 3) > 0.88
    assert sampled_edges(C, 9, None).nnz == 4


def test_dynamic_edges_without_threshold_are_the_composed_ones() -> None:
    part = part_of(random_edges(6))
    static, dynamic = network(part), network(part, threshold=1e-12)
    dynamic.load_state_dict(static.state_dict())
    x, edges = inputs(part)
    assert torch.allclose(static(x, edges), dynamic(x, composed_edges(part, 1, 1)), atol=1e-6)
    strict = network(part, threshold=0.99)
    strict.load_state_dict(static.state_dict())
    assert not torch.allclose(static(x, edges), strict(x, composed_edges(part, 1, 1)), atol=1e-4)


# -- proximity ---------------------------------------------------------------------------------------------------------
def test_proximity_with_zero_logits_is_log_two_a_layer() -> None:
    assert float(proximity_loss(torch.zeros(7), torch.zeros(14))) == pytest.approx(2 * math.log(2), abs=1e-6)
    part = part_of(random_edges(share=0.3))
    net = network(part)
    with torch.no_grad():
        for layer in net.layers:
            for held in (layer.u, layer.v):  # type: ignore[union-attr]
                for p in held.values():  # type: ignore[union-attr]
                    p.zero_()
    found = net.run(*inputs(part))
    method = LATTEMethod(proximity=True, proximity_weights="one")
    assert float(method.nearness(net, found, torch.Generator().manual_seed(0))) == pytest.approx(2 * math.log(2), abs=1e-6)
    weighted = LATTEMethod(proximity=True).nearness(net, found, torch.Generator().manual_seed(0))
    assert float(weighted) < 2 * math.log(2) - 0.05  # attention weighs joined pairs by less than one


def test_proximity_by_hand() -> None:
    logits, others, w = torch.tensor([1.0, -2.0]), torch.tensor([0.5]), torch.tensor([0.25, 0.75])
    sigmoid = lambda e: 1 / (1 + math.exp(-e))  # noqa: E731
    near = -(0.25 * math.log(sigmoid(1.0)) + 0.75 * math.log(sigmoid(-2.0))) / 2
    assert float(proximity_loss(logits, others, w)) == pytest.approx(near - math.log(sigmoid(-0.5)), abs=1e-6)


def test_other_pairs_are_not_joined_and_uniform() -> None:
    rng = np.random.default_rng(0)
    A = rng.random((6, 5)) < 0.5
    rows, columns = other_pairs(Edges(sp.csr_array(A.astype(float))), 4000, torch.Generator().manual_seed(0))
    assert not A[rows.numpy(), columns.numpy()].any()
    counts = np.zeros((6, 5))
    np.add.at(counts, (rows.numpy(), columns.numpy()), 1)
    assert counts[~A].min() > 90 and counts[~A].max() < 180


# -- what it reads and says --------------------------------------------------------------------------------------------
def fitted(data: Any, **fields: Any) -> tuple[Any, Any]:
    task = HeteroNodeClassification(split="random").for_data(data)
    fold = task.fold(data, "random-0")
    run = Run(task=task, digest="test", fold="random-0")
    with run.seeded():
        model = LATTEMethod(**({"epochs": 12, "width": 16, "lr": 0.01} | fields)).fit(fold.train, fold.valid, run)
    return model, fold


def test_neighbour_means_are_scaled_to_unit_size() -> None:
    data = HeteroBlocks()
    task = HeteroNodeClassification(split="random").for_data(data)
    part = task.fold(data, "random-0").train
    x, _ = LATTEMethod().inputs(part, "cpu")
    paper, venue = part.data["paper"].x.numpy(), part.data["paper", "at", "venue"].edge_index.numpy()
    wanted = np.stack([paper[venue[0][venue[1] == v]].mean(0) for v in range(6)])
    wanted /= np.sqrt((wanted**2).mean())
    assert np.abs(np.asarray(x["venue"]) - wanted).max() < 1e-5


def test_explain_reads_as_chains() -> None:
    model, fold = fitted(HeteroBlocks())
    findings = model.explain(fold.test.blind())
    second = {k: v for k, v in findings.scalars.items() if k.startswith("layer 2: ")}
    assert set(second) == {"layer 2: author-paper-author", "layer 2: author-paper-venue", "layer 2: itself"}
    assert sum(second.values()) == pytest.approx(1, abs=1e-5)
    assert str(findings.scalars["strongest"]).split(" % ")[1] in {k.removeprefix("layer 2: ") for k in second}
    assert "<svg" in findings.figures["weight of meta-relations"]
    assert {r["layer"] for r in findings.tables["weight of meta-relations"]} == {1, 2}


def test_free_vectors_answer_for_their_graph_alone() -> None:
    data = HeteroBlocks()
    model, fold = fitted(data, featureless="free")
    assert model.scope == "fitted data" and fitted(data)[0].scope == "new data"
    other = HeteroNodeClassification(split="random").for_data(HeteroBlocks(seed=1)).fold(HeteroBlocks(seed=1), "random-0").test
    with pytest.raises(UserError, match="answers for the graph it was fitted on"):
        model.predict(other.blind())
    assert model.predict(fold.test.blind()).shape == (84, 3)


def test_refusals_before_training() -> None:
    data, inductive = HeteroBlocks(), HeteroNodeClassification(protocol="inductive")
    assert "venue have no features" in str(LATTEMethod(featureless="free").refuses(inductive, data.facts()))
    assert LATTEMethod().refuses(inductive, data.facts()) is None
    assert "not a multiple of 3 heads" in str(LATTEMethod(heads=3).refuses(inductive, data.facts()))


def test_inductive_training_sees_no_test_author() -> None:
    data = HeteroBlocks()
    task = HeteroNodeClassification(protocol="inductive", split="random").for_data(data)
    fold = task.fold(data, "random-0")
    assert (fold.train.data["author"].num_nodes, fold.valid.data["author"].num_nodes) == (24, 36)  # type: ignore[union-attr]
    run = Run(task=task, digest="test", fold="random-0")
    with run.seeded():
        model = LATTEMethod(epochs=5, width=16).fit(fold.train, fold.valid, run)
    assert model.predict(fold.test.blind()).shape == (84, 3)


def test_the_venue_carries_the_class() -> None:
    """Planted: an author's class shows two steps away, so two layers beat one, and the venue's chain is needed."""
    from sklearn.metrics import f1_score

    data = HeteroBlocks(authors=300, papers=600, venues=6, clear=0.95, signal=0.4)
    how: dict[str, Any] = {"epochs": 60, "patience": 60, "width": 32, "weight_decay": 1e-3, "featureless": "free"}

    def judged(data: Any, **fields: Any) -> float:
        model, fold = fitted(data, **how, **fields)
        return float(f1_score(fold.test.truth.y, model.predict(fold.test.blind()).argmax(1), average="macro"))

    two, one, without = judged(data), judged(data, layers=1), judged(WithoutRelation(of=data, relation="at"))
    assert two > 0.75 and two > one + 0.1 and two > without + 0.1, (two, one, without)


def test_kept_nodes_leave_no_edge_behind() -> None:
    graph = HeteroBlocks().read()
    rows = np.array([5, 2, 9])
    kept = keep_nodes(graph, "author", rows)
    edges = kept.relations["author", "writes", "paper"]
    old = {(rows[u], v) for u, v in edges.T.tolist()}
    wanted = {(u, v) for u, v in graph.relations["author", "writes", "paper"].T.tolist() if u in rows}
    assert old == wanted and kept.ids["author"] == ("author 5", "author 2", "author 9")
    assert kept.dense("paper") is graph.dense("paper")
