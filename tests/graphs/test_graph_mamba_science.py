"""Graph Mamba's steps against their definitions: tokens, order, codes, encoders, the network's symmetries; long range data."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, Data

from latticework.common.graph_batches import Packed
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.graphs import GivenGraphSet, GraphSet
from latticework.data.images import from_arrays
from latticework.graphs.codes import codes_of
from latticework.graphs.graph_mamba import GraphMamba, GraphMambaMethod, NodeLayer, orders, tokenise
from latticework.graphs.graph_mamba.network import FullAttention, GINLayer, LocalEncoder, Sequences
from latticework.graphs.graph_mamba.tokens import csr_of, importance, induced_edges, lengths_of, with_sequences
from latticework.graphs.long_range import (
    LongRange,
    RingTransfer,
    SuperpixelGrid,
    asked_distances,
    diameters,
    distance_slices,
)
from latticework.layers.propagation import SparseOperator

Array = np.ndarray[Any, Any]


def edges_of(graph: nx.Graph) -> Array:
    pairs = np.array(sorted(graph.edges())).reshape(-1, 2)
    return np.concatenate([pairs, pairs[:, ::-1]]).T.astype(np.int64)


def as_data(graph: nx.Graph, x: Tensor | None = None) -> Data:
    return Data(edge_index=torch.from_numpy(edges_of(graph)), num_nodes=graph.number_of_nodes(), x=x)


def tokens_of(graph: nx.Graph, m: int, walks: int, repeats: int, seed: int = 0) -> tuple[Array, list[list[list[int]]], Any]:
    """lengths [n, S], the nodes of each token of each node, and the whole."""
    indptr, indices = csr_of(edges_of(graph), graph.number_of_nodes())
    found = tokenise(indptr, indices, m, walks, repeats, np.random.default_rng(seed))
    cut = np.split(found.nodes, np.cumsum(found.sizes)[:-1])
    slots = found.lengths.shape[1]
    return found.lengths, [[t.tolist() for t in cut[v * slots : (v + 1) * slots]] for v in range(len(graph))], found


def prepared(
    graphs: list[Data], m: int = 2, walks: int = 3, repeats: int = 2, ordering: Any = "degree", **more: Any
) -> list[Data]:
    for g in graphs:
        indptr, indices = csr_of(g.edge_index.numpy(), int(g.num_nodes or 0), bool(more.get("both_ways")))
        g.value = torch.from_numpy(importance(indptr, indices, ordering))
    return with_sequences(graphs, m, walks, repeats, ordering, bool(more.get("both_ways")), more.get("rng"), more.get("draw", 0))


def random_graphs(count: int = 4, seed: int = 0, features: int = 3) -> list[Data]:
    torch.manual_seed(seed)
    made = []
    for i in range(count):
        graph = nx.gnp_random_graph(5 + 3 * i, 0.3, seed=seed + i)
        made.append(as_data(graph, torch.randn(len(graph), features, dtype=torch.float64)))
    return made


def network(m: int, **more: Any) -> GraphMamba:
    torch.manual_seed(7)
    given_ = {"features": 3, "outputs": 2, "width": 8, "layers": 2, "walk_length": m, "state": 4} | more
    return GraphMamba(**given_).double().eval()


# -- tokens ------------------------------------------------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 14), st.floats(0, 0.5), st.integers(0, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_tokens_lie_within_their_length_and_the_node_comes_last(
    n: int, p: float, m: int, walks: int, repeats: int, seed: int
) -> None:
    graph = nx.gnp_random_graph(n, p, seed=seed)
    away = dict(nx.all_pairs_shortest_path_length(graph))
    lengths, tokens, found = tokens_of(graph, m, walks, repeats, seed)
    assert lengths.shape == (n, m * repeats + 1)
    assert lengths[0].tolist() == [r for r in range(m, 0, -1) for _ in range(repeats)] + [0]  # far to near
    for v in range(n):
        assert tokens[v][-1] == [v]
        for r, token in zip(lengths[v], tokens[v], strict=True):
            assert token[0] == v and len(set(token)) == len(token) <= walks * r + 1
            assert all(away[v].get(u, n) <= r for u in token)
            assert nx.is_connected(graph.subgraph(token))  # the walks' union
            if graph.degree(v) == 0:
                assert token == [v]
    share, back = found.shape.T
    assert ((share > 0) & (share <= 1) & (back >= 0) & (back <= 0.5)).all()


def test_many_walks_cover_the_ball() -> None:
    graph = nx.gnp_random_graph(10, 0.25, seed=4)
    lengths, tokens, _ = tokens_of(graph, 3, 500, 1)
    for v in graph:
        for r, token in zip(lengths[v], tokens[v], strict=True):
            assert set(token) == set(nx.single_source_shortest_path_length(graph, v, cutoff=int(r)))


def test_given_draws_give_the_walks_by_hand() -> None:
    """The path 0 - 1 - 2 - 3 from node 1: neighbours in ascending order, a draw below a half is the lower one."""
    indptr, indices = csr_of(edges_of(nx.path_graph(4)), 4)
    chances = np.zeros((4, 2, 2, 2), np.float32)
    chances[1, 0] = [[0.9, 0.9], [0.0, 0.0]]  # 1 2 3 and 1 0 1
    chances[1, 1, :, 0] = [0.9, 0.6]  # 1 2 and 1 2
    found = tokenise(indptr, indices, 2, 2, 1, chances=chances)
    cut = np.split(found.nodes, np.cumsum(found.sizes)[:-1])
    assert [c.tolist() for c in cut[3:6]] == [[1, 2, 3, 0], [1, 2], [1]]
    # 4 different nodes of at most 5, one of 4 steps back home; 2 of at most 3, none back
    np.testing.assert_allclose(found.shape[3:6], [[0.8, 0.25], [2 / 3, 0], [1, 0]])


def test_isolated_nodes_and_ways_without_an_end() -> None:
    graph = nx.Graph()
    graph.add_nodes_from(range(3))
    _, tokens, found = tokens_of(graph, 3, 4, 2)
    assert all(token == [v] for v in graph for token in tokens[v])
    assert np.allclose(found.shape[:-1:7], [1 / 13, 0])  # r = 3: one of at most thirteen
    indptr, indices = csr_of(np.array([[0, 1], [1, 2]]), 3)  # 0 -> 1 -> 2, a sink
    one_way = tokenise(indptr, indices, 3, 2, 1, np.random.default_rng(0))
    assert one_way.sizes.reshape(3, 4).tolist() == [[3, 3, 2, 1], [2, 2, 2, 1], [1, 1, 1, 1]]
    both = tokenise(*csr_of(np.array([[0, 1], [1, 2]]), 3, both_ways=True), 3, 50, 1, np.random.default_rng(0))
    assert both.sizes.reshape(3, 4)[2].tolist() == [3, 3, 2, 1]
    nothing = tokenise(np.zeros(1, np.int64), np.zeros(0, np.int32), 2, 2, 1, np.random.default_rng(0))
    assert nothing.lengths.shape == (0, 3) and not len(nothing.nodes)


def test_steps_go_to_uniform_neighbours() -> None:
    indptr, indices = csr_of(edges_of(nx.star_graph(4)), 5)
    found = tokenise(indptr, indices, 1, 1, 4000, np.random.default_rng(0))
    cut = np.split(found.nodes, np.cumsum(found.sizes)[:-1])[:4000]
    counts = np.bincount([token[1] for token in cut], minlength=5)[1:]
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # chi square, three degrees: p = 0.001


def test_shuffled_tokens_keep_the_node_last_and_every_length() -> None:
    rng = np.random.default_rng(0)
    lengths = lengths_of(200, 3, 2, rng.random((200, 6)))
    assert (lengths[:, -1] == 0).all() and (np.sort(lengths[:, :-1]) == [1, 1, 2, 2, 3, 3]).all()
    assert len({tuple(row) for row in lengths.tolist()}) > 50
    assert abs(lengths[:, 0].mean() - 2) < 0.2


def test_induced_edges_are_those_inside_each_token() -> None:
    graph = nx.gnp_random_graph(12, 0.4, seed=1)
    indptr, indices = csr_of(edges_of(graph), 12)
    _, tokens, found = tokens_of(graph, 3, 3, 2)
    first, near = induced_edges(indptr, indices, found.nodes, found.sizes)
    place = 0
    for token in (t for row in tokens for t in row):
        for i, node in enumerate(token):
            got = sorted(found.nodes[near[first[place + i] : first[place + i + 1]]].tolist())
            assert got == sorted(u for u in graph[node] if u in token)
            assert all(place <= k < place + len(token) for k in near[first[place + i] : first[place + i + 1]])
        place += len(token)


@pytest.mark.parametrize(("m", "walks", "repeats"), [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_impossible_walks_are_named(m: int, walks: int, repeats: int) -> None:
    with pytest.raises(ValueError, match=rf"must hold: {m}, {walks}, {repeats}"):
        tokenise(np.zeros(2, np.int64), np.zeros(0, np.int32), m, walks, repeats, np.random.default_rng(0))


def test_without_walks_repeats_say_nothing_and_draws_need_a_source() -> None:
    with pytest.raises(ValueError, match="generator"):
        tokenise(np.zeros(2, np.int64), np.zeros(0, np.int32), 1, 1, 1)
    found = tokenise(np.zeros(2, np.int64), np.zeros(0, np.int32), 0, 1, 0, np.random.default_rng(0))
    assert found.lengths.tolist() == [[0]] and found.nodes.tolist() == [0]


# -- the order -------------------------------------------------------------------------------------------------------------
def test_importance_is_degree_or_pagerank() -> None:
    graph = nx.gnp_random_graph(30, 0.1, seed=2, directed=True)
    indptr, indices = csr_of(np.array(list(graph.edges())).T, 30)
    assert importance(indptr, indices, "degree").tolist() == [graph.out_degree(v) for v in range(30)]
    rank = nx.pagerank(graph, alpha=0.85, tol=1e-12, max_iter=500)
    np.testing.assert_allclose(importance(indptr, indices, "pagerank") / 30, [rank[v] for v in range(30)], atol=1e-8)
    assert not importance(indptr, indices, "shuffled").any()
    ring = importance(
        *csr_of(edges_of(nx.relabel_nodes(nx.cycle_graph(9), dict(enumerate(np.random.permutation(9))))), 9), "pagerank"
    )
    assert len(set(ring.tolist())) == 1  # a tie is a tie, whatever the numbering


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
def test_places_ascend_within_each_graph_and_ties_go_by_the_draw(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = np.repeat(np.arange(len(sizes)), sizes)
    value, tie = rng.integers(0, 3, len(graph)).astype(float), rng.random(len(graph))
    place = orders(value, graph, tie)
    for g, size in enumerate(sizes):
        mine = np.flatnonzero(graph == g)
        assert place[mine[sorted(range(size), key=lambda i: (value[mine[i]], tie[mine[i]]))]].tolist() == list(range(size))


# -- codes ---------------------------------------------------------------------------------------------------------------
def test_codes_are_return_chances_and_eigenvectors() -> None:
    graph = nx.lollipop_graph(4, 3)
    A = nx.to_numpy_array(graph, nodelist=range(7))
    P = A / A.sum(1, keepdims=True)
    chance = np.stack([np.diag(np.linalg.matrix_power(P, k)) for k in range(1, 6)], 1)
    np.testing.assert_allclose(codes_of(as_data(graph), "rwse", 5).numpy(), chance, atol=1e-6)
    lap = codes_of(as_data(graph), "laplacian", 4).double().numpy()
    L = np.eye(7) - A / np.sqrt(np.outer(A.sum(0), A.sum(0)))
    values = np.linalg.eigvalsh(L)[1:5]
    np.testing.assert_allclose(L @ lap, lap * values, atol=1e-5)
    assert (lap[np.abs(lap).argmax(0), range(4)] > 0).all()
    assert codes_of(as_data(nx.path_graph(2)), "laplacian", 4).shape == (2, 4)
    assert not codes_of(as_data(nx.empty_graph(1)), "laplacian", 4).any()


# -- encoders ----------------------------------------------------------------------------------------------------------------
def ready(graphs: list[Data], **more: Any) -> Batch:
    return Packed(prepared(graphs, **more)).batch(torch.arange(len(graphs)))


def test_the_mean_encoder_equals_a_loop() -> None:
    batch = ready(random_graphs(3))
    torch.manual_seed(0)
    encoder = LocalEncoder(5, "mean").double()
    assert encoder.mix is not None
    e = torch.randn(batch.num_nodes, 5, dtype=torch.float64)
    wanted, start = [], 0
    for size, shape in zip(batch.token_size.tolist(), batch.token_shape, strict=True):
        mean = e[batch.token_index[start : start + size]].mean(0)
        wanted.append(encoder.mix.weight @ torch.cat([mean, shape.double()]) + encoder.mix.bias)
        start += size
    # the shares 1 / size are float32
    torch.testing.assert_close(encoder(e, batch).reshape(-1, 5), torch.stack(wanted), rtol=0, atol=1e-6)
    bare = LocalEncoder(5, "mean", local=False).double()
    assert not list(bare.parameters())
    torch.testing.assert_close(bare(e, batch)[:, -1], e, rtol=0, atol=1e-12)  # the last token is the node itself


def test_the_gin_encoder_equals_a_loop_over_dense_sub_graphs() -> None:
    batch = ready(random_graphs(3))
    torch.manual_seed(0)
    encoder = LocalEncoder(5, "gin", depth=2).double()
    e = torch.randn(batch.num_nodes, 5, dtype=torch.float64)
    A = torch.zeros(batch.num_nodes, batch.num_nodes, dtype=torch.float64)
    A[batch.edge_index[0], batch.edge_index[1]] = 1
    wanted, start = [], 0
    for size in batch.token_size.tolist():
        nodes = batch.token_index[start : start + size]
        h, own = e[nodes], A[nodes][:, nodes]
        for layer in encoder.layers:
            h = h + layer.mlp((1 + layer.eps) * h + own @ h)  # type: ignore[operator]
        wanted.append(h.mean(0))
        start += size
    torch.testing.assert_close(encoder(e, batch).reshape(-1, 5), torch.stack(wanted), rtol=0, atol=1e-6)


def test_message_passing_equals_a_dense_product_with_and_without_edge_features() -> None:
    torch.manual_seed(0)
    graph = random_graphs(1)[0]
    u, v = graph.edge_index
    n = int(graph.num_nodes or 0)
    h = torch.randn(n, 4, dtype=torch.float64)
    A = torch.zeros(n, n, dtype=torch.float64)
    A[v, u] = 1
    plain = GINLayer(4).double()
    sums = SparseOperator.from_edges(graph.edge_index, None, n)
    torch.testing.assert_close(plain(h, sums), plain.mlp(h + A @ h), rtol=0, atol=1e-12)
    with_edges = GINLayer(4, 2).double()
    assert with_edges.edge is not None
    edge_x = torch.randn(len(u), 2, dtype=torch.float64)
    near = torch.zeros(n, 4, dtype=torch.float64)
    for a, b, c in zip(u, v, edge_x, strict=True):
        near[b] += torch.relu(h[a] + with_edges.edge(c)).detach()
    torch.testing.assert_close(with_edges(h, None, graph.edge_index, edge_x), with_edges.mlp(h + near), rtol=0, atol=1e-12)


def test_messages_go_both_ways_where_asked_with_edge_features_too() -> None:
    one_way = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 3]])  # a triangle with a tail, each edge written once
    edge_x = torch.randn(4, 2)
    written = Data(x=torch.randn(4, 3), edge_index=one_way, edge_attr=edge_x)
    both = Data(x=written.x, edge_index=torch.cat([one_way, one_way.flip(0)], 1), edge_attr=torch.cat([edge_x, edge_x]))
    torch.manual_seed(0)
    net = GraphMamba(3, 2, 8, 1, mixer="none", both_ways=True, reads="nodes", edges=2).eval()

    def answer(graph: Data) -> torch.Tensor:
        given = graph.clone()
        given.place = torch.arange(4)
        return net(Packed([given]).batch(torch.arange(1)))

    torch.testing.assert_close(answer(written), answer(both), rtol=0, atol=1e-6)
    net.both_ways = False
    assert (answer(written) - answer(both)).abs().max() > 1e-3


def test_attention_of_a_padded_graph_is_that_of_the_graph_alone() -> None:
    torch.manual_seed(0)
    net = FullAttention(8, 2).double().eval()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    wide, mask = torch.randn(1, 9, 8, dtype=torch.float64), torch.zeros(1, 9, dtype=torch.bool)
    wide[:, 4:], mask[:, 4:] = x, True
    torch.testing.assert_close(net(wide, mask)[:, 4:], net(x), rtol=0, atol=1e-12)


def test_sequences_are_laid_in_front_and_gathered_back() -> None:
    sizes = torch.tensor([2, 0, 3])
    batch, place = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1, 0, 2, 0, 1])
    laid = Sequences(place, batch, sizes)
    h = torch.arange(5.0)[:, None] + 1
    assert laid.lay(h)[..., 0].tolist() == [[0, 2, 1], [0, 0, 0], [4, 5, 3]]
    assert laid.mask.tolist() == [[False, True, True], [False] * 3, [True] * 3] and not laid.full
    assert torch.equal(laid.gather(laid.lay(h)), h)


# -- the network -----------------------------------------------------------------------------------------------------------
CASES = [
    {"m": 0}, {"m": 2}, {"m": 2, "encoder": "gin"}, {"m": 0, "mixer": "attention"}, {"m": 2, "bidirectional": False},
    {"m": 1, "mpnn": False}, {"m": 0, "pool": "sum"},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_and_the_order_of_a_batch_change_nothing(case: dict[str, Any]) -> None:
    m = case["m"]
    net = network(**case)
    graphs = random_graphs()
    made = prepared(graphs, m)
    packed = Packed(made)
    with torch.no_grad():
        whole = net(packed.batch(torch.arange(4)))
        turned = net(packed.batch(torch.tensor([2, 0, 3, 1])))
        alone = torch.cat([net(packed.batch(torch.tensor([g]))) for g in range(4)])
        again = torch.cat([net(Packed(prepared([g], m)).batch(torch.tensor([0]))) for g in graphs])
    assert float((whole - alone).abs().max()) < 1e-12 and float((whole[[2, 0, 3, 1]] - turned).abs().max()) < 1e-12
    # nor does which graphs were prepared together: each has draws of its own
    assert float((whole - again).abs().max()) < 1e-12


@pytest.mark.parametrize("case", [*CASES, {"m": 2, "both_ways": True}], ids=str)
def test_renumbered_nodes_with_walks_renumbered_alike_permute_the_states(case: dict[str, Any]) -> None:
    net = network(**case, reads="nodes")
    graph = prepared(random_graphs(3, seed=5)[2:], case["m"])[0]
    n = int(graph.num_nodes or 0)
    new = torch.randperm(n, generator=torch.Generator().manual_seed(1))  # node i is called new[i]
    old = new.argsort()
    shuffle = torch.randperm(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(2))
    other = Data(x=graph.x[old], edge_index=new[graph.edge_index][:, shuffle], num_nodes=n, place=graph.place[old])
    if case["m"]:
        slots = len(graph.token_size) // n
        cut = torch.split(new[graph.token_index], graph.token_size.tolist())
        other.token_index = torch.cat([cut[int(v) * slots + s] for v in old for s in range(slots)])
        other.token_size = graph.token_size.view(n, slots)[old].flatten()
        other.token_shape = graph.token_shape.view(n, slots, 2)[old].reshape(-1, 2)
    zero = torch.tensor([0])
    with torch.no_grad():
        first, second = net(Packed([graph]).batch(zero)), net(Packed([other]).batch(zero))
    assert float((second[new] - first).abs().max()) < 1e-9
    assert float((first - first[0]).abs().max()) > 1e-3


def test_the_mean_over_tie_breaks_does_not_know_the_numbering() -> None:
    """On a regular graph degrees say nothing, all places are ties: means over 64 draws agree within their error."""
    net = network(0, reads="graph", mpnn=False, layers=1)
    torch.manual_seed(0)
    graph = as_data(nx.random_regular_graph(3, 10, seed=0), torch.randn(10, 3, dtype=torch.float64))
    new = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    other = Data(x=graph.x[new.argsort()], edge_index=new[graph.edge_index], num_nodes=10)
    means, errors = [], []
    for seed, one in enumerate((graph, other)):
        rng = np.random.default_rng(seed)
        with torch.no_grad():  # a batch of 64 copies, each with ties of its own
            out = net(Packed(prepared([one.clone() for _ in range(64)], 0, rng=rng)).batch(torch.arange(64)))
        assert float(out.std(0).min()) > 1e-6  # the order does matter
        means.append(out.mean(0)), errors.append(out.std(0) / 8)
    assert bool(((means[0] - means[1]).abs() < 4 * (errors[0] ** 2 + errors[1] ** 2).sqrt()).all())


def test_read_one_way_a_node_hears_only_of_those_before_it() -> None:
    torch.manual_seed(0)
    graph = prepared([as_data(nx.barabasi_albert_graph(12, 2, seed=0), torch.randn(12, 3, dtype=torch.float64))], 0)[0]
    late = graph.place >= 8
    degree = torch.bincount(graph.edge_index[0], minlength=12)
    assert int(degree[late].min()) >= int(degree[~late].max())  # the important come late
    changed = graph.clone()
    changed.x = torch.where(late[:, None], torch.randn(12, 3, dtype=torch.float64), graph.x)
    zero = torch.tensor([0])
    for bidirectional in (False, True):
        net = network(0, mpnn=False, bidirectional=bidirectional, reads="nodes")
        with torch.no_grad():
            a, b = net(Packed([graph]).batch(zero)), net(Packed([changed]).batch(zero))
        assert torch.equal(a[~late], b[~late]) is not bidirectional
        assert float((a[late] - b[late]).abs().min()) > 0


def test_tied_directions_make_the_node_layer_turn_with_the_order() -> None:
    torch.manual_seed(0)
    layer = NodeLayer(6, 4, mpnn=False).double()
    layer.block.tie()  # type: ignore[union-attr, operator]
    h, batch, sizes = torch.randn(7, 6, dtype=torch.float64), torch.tensor([0] * 4 + [1] * 3), torch.tensor([4, 3])
    place = torch.tensor([2, 0, 1, 3, 1, 2, 0])
    back = sizes[batch] - 1 - place
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    with torch.no_grad():
        onward = layer(h, Sequences(place, batch, sizes), None, nothing, None)
        turned = layer(h, Sequences(back, batch, sizes), None, nothing, None)
    assert float((onward - turned).abs().max()) < 1e-12


def test_read_outs() -> None:
    graphs = random_graphs(3)
    for g in graphs:
        g.asked = torch.arange(int(g.num_nodes or 0)) == 1
    batch = Packed(prepared(graphs, 0)).batch(torch.arange(3))
    net = network(0, reads="nodes")
    with torch.no_grad():
        h = net.encode(batch)
        net.reads = "graph"
        cut = h.split([5, 8, 11])
        torch.testing.assert_close(net.encode(batch), torch.stack([c.mean(0) for c in cut]), rtol=0, atol=1e-12)
        net.pool = "sum"
        torch.testing.assert_close(net.encode(batch), torch.stack([c.sum(0) for c in cut]), rtol=0, atol=1e-12)
        net.reads = "asked"
        assert torch.equal(net.encode(batch), torch.stack([c[1] for c in cut]))
        assert torch.equal(net(batch), net.head(net.encode(batch)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_parameter_has_a_gradient(case: dict[str, Any]) -> None:
    net = network(**case)
    net(Packed(prepared(random_graphs(), case["m"])).batch(torch.arange(4))).square().sum().backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    # the last block's tokens but the last have no reader: read backwards, that one stands first and remembers nothing
    first = {"blocks.1.backward_.A_log"} if case["m"] and case.get("bidirectional", True) else set()
    assert unused == first


def test_what_is_not_finite_or_too_long_is_named() -> None:
    graphs = random_graphs(2)
    graphs[1].x[3, 0] = math.nan
    with pytest.raises(ValueError, match="first in row 8"):
        network(0)(Packed(prepared(graphs, 0)).batch(torch.arange(2)))
    with pytest.raises(ValueError, match="8 steps is longer than the 7"):
        network(0, longest=7)(Packed(prepared(random_graphs(2), 0)).batch(torch.arange(2)))
    schema = {"rule": "given", "features": ["a"], "edge inputs": 0, "reads": "graph"}
    long = [Data(x=torch.zeros(9, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=9)]
    with pytest.raises(UserError, match="9 nodes"):
        GraphMambaMethod(longest=8).prepare(long, schema)
    GraphMambaMethod(longest=8, mixer="none").prepare(long, schema)  # no sequence, no limit


# -- what it can tell apart ------------------------------------------------------------------------------------------------
def shrikhande() -> nx.Graph:
    graph = nx.Graph()
    for i in range(4):
        for j in range(4):
            graph.add_edges_from((4 * i + j, 4 * ((i + a) % 4) + (j + b) % 4) for a, b in ((0, 1), (1, 0), (1, 1)))
    return graph


def test_without_codes_or_messages_walks_tell_a_ring_from_two_triangles() -> None:
    """One colour for 1-WL; the walks' statistics differ, the features alone do not."""
    ring, triangles = nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    for local in (True, False):
        net = network(3, mpnn=False, local=local, features=1, layers=1, width=4)
        graphs = [as_data(g, torch.ones(6, 1, dtype=torch.float64)) for g in (ring, triangles)]
        out = []
        with torch.no_grad():
            for draw in range(8):
                made = prepared(graphs, 3, walks=8, repeats=8, draw=draw)
                for g in made:
                    g.place = torch.arange(6)
                out.append(net(Packed(made).batch(torch.arange(2))))
        gap = torch.stack(out).diff(dim=1)[:, 0]
        if local:
            assert bool((gap.mean(0).abs() > 4 * gap.std(0) / math.sqrt(8)).all())
        else:
            assert float(gap.abs().max()) < 1e-12


def test_tokens_tell_apart_what_even_folklore_2_wl_cannot() -> None:
    """The 4 x 4 rook's graph and Shrikhande's are strongly regular alike; a clique of four nodes is in the first alone."""
    rook = nx.convert_node_labels_to_integers(nx.line_graph(nx.complete_bipartite_graph(4, 4)))
    assert nx.is_strongly_regular(rook) and nx.is_strongly_regular(shrikhande())
    assert nx.intersection_array(rook) == nx.intersection_array(shrikhande())
    cliques = []
    for graph in (rook, shrikhande()):
        indptr, indices = csr_of(edges_of(graph), 16)
        found = tokenise(indptr, indices, 1, 3, 40, np.random.default_rng(0))
        first, _ = induced_edges(indptr, indices, found.nodes, found.sizes)
        ends = np.concatenate([[0], np.cumsum(found.sizes)])
        inside = first[ends[1:]] - first[ends[:-1]]
        cliques.append(int(((found.sizes == 4) & (inside == 12)).sum()))
    assert cliques[0] > 10 and cliques[1] == 0


# -- long range -------------------------------------------------------------------------------------------------------------
def test_rings_are_what_they_say() -> None:
    given_: GraphSet = RingTransfer(nodes=12, classes=3, graphs=30, least=6, seed=2).read()
    assert sorted(set(given_.sizes.tolist())) == [6, 8, 10, 12] and np.bincount(given_.y).tolist() == [10, 10, 10]
    places = set()
    for g, data in enumerate(given_.graphs()):
        ring = nx.Graph(data.edge_index.T.tolist())
        n = int(data.num_nodes or 0)
        assert len(ring) == n and nx.is_connected(ring) and all(d == 2 for _, d in ring.degree())
        source, asked = torch.nonzero(data.x[:, :3].sum(1)).item(), torch.nonzero(data.x[:, 3]).item()
        assert data.x.sum() == 2 and data.x[source, int(given_.y[g])] == 1
        assert nx.shortest_path_length(ring, source, asked) == n // 2 == asked_distances(given_)[g]
        places.add((source, asked))
    assert len(places) > 20  # the numbering says nothing
    assert diameters(given_).tolist() == (given_.sizes // 2).tolist()
    group, names = distance_slices(given_)["distance"]
    assert names == ("3", "4", "5", "6") and [int(names[i]) for i in group] == (given_.sizes // 2).tolist()
    for bad in ({"nodes": 7}, {"nodes": 8, "least": 10}, {"nodes": 8, "least": 5}):
        with pytest.raises(UserError, match="even rings"):
            RingTransfer(**bad).read()


def test_distances_count_hops_to_the_nearest_node_that_tells() -> None:
    torch.manual_seed(0)
    for seed in range(5):
        graph = nx.gnp_random_graph(14, 0.12, seed=seed)
        x = torch.zeros(14, 2)
        x[5, 1], x[3, 0], x[9, 0] = 1, 1, 2
        one = GivenGraphSet.hold([Data(x=x, edge_index=as_data(graph).edge_index, y=torch.tensor([0]))]).read()
        one = GraphSet(**{**vars(one), "features": ("a", "asked"), "_cache": {}})
        far = nx.single_source_shortest_path_length(graph, 5)
        assert asked_distances(one)[0] == min((far[v] for v in (3, 9) if v in far), default=-1)
        reach = max(max(d.values()) for _, d in nx.all_pairs_shortest_path_length(graph))
        assert diameters(one)[0] == reach


def test_a_graph_asks_about_one_node() -> None:
    given_: GraphSet = RingTransfer(nodes=6, graphs=4).read()
    x = given_.x.copy()
    x[:6, -1] = 0
    broken = GraphSet(**{**vars(given_), "x": x, "_cache": {}})
    with pytest.raises(UserError, match="'ring0' has 0 nodes whose feature 'asked'"):
        LongRange().check(broken)


def test_grids_are_means_of_cells() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 7, 5, 3)).astype(np.uint8)
    images = from_arrays(pixels, np.arange(6) % 2)
    given_: GraphSet = SuperpixelGrid(of=images, cells=3).read()
    assert given_.sizes.tolist() == [9] * 6 and given_.features == ("red", "green", "blue", "row", "column")
    rows, columns = [0, 2, 4, 7], [0, 1, 3, 5]
    for g in range(6):
        for i in range(3):
            for j in range(3):
                cell = pixels[g, rows[i] : rows[i + 1], columns[j] : columns[j + 1]].reshape(-1, 3) / 255
                np.testing.assert_allclose(given_.x[9 * g + 3 * i + j], [*cell.mean(0), i / 2, j / 2], atol=1e-6)
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(3, 3))
    for data in given_.graphs():
        assert nx.utils.edges_equal(nx.Graph(data.edge_index.T.tolist()).edges, grid.edges) and data.edge_index.shape == (2, 24)
    few: GraphSet = SuperpixelGrid(of=images, cells=2, most=1).read()
    assert len(few) == 2 and any("stands in" in note for note in few.notes)
    with pytest.raises(UserError, match="8 cells a side, but the images have 7 x 5 pixels"):
        SuperpixelGrid(of=images).read()


def test_open_by_name() -> None:
    assert open_data("ring-transfer(nodes=8; graphs=10)").facts()["graphs"] == 10
