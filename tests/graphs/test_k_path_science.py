"""Simple paths, rooted sub-graphs, the k-path network, contrastive views: oracles, identities, published counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from latticework.common.graph_batches import Packed
from latticework.core.dataset import open_data
from latticework.graphs.contrast import (
    ContrastMethod,
    ContrastNet,
    EdgeScorer,
    captured,
    drop_chances,
    nt_xent,
    pairs_of,
    plain_view,
    straight_through,
    weighted_messages,
    without_statistics,
)
from latticework.graphs.counted import counts_of, pattern_of
from latticework.graphs.k_path import (
    Counting,
    KPathMethod,
    KPathNet,
    RootedGIN,
    cycles_through,
    neighbour_sums,
    paths_from,
    rooted_colours,
    rooted_data,
    rooted_view,
    union_of,
)
from latticework.layers.paths import Simple, motif_totals, rooted_paths, simple_graph

ALL = 10**12  # a cap that is never met


def of_networkx(graph: nx.Graph) -> Simple:
    edges = np.array(list(graph.edges())).reshape(-1, 2).T
    return simple_graph(edges, graph.number_of_nodes())


def dense_counts(graph: Simple, k: int) -> np.ndarray[Any, Any]:
    """c_l(v, u) as [n, n, k]."""
    rooted = rooted_paths(graph, k, max_paths=ALL)
    out = np.zeros((graph.nodes, graph.nodes, k))
    out[rooted.root, rooted.node] = rooted.counts
    return out


def walked(graph: nx.Graph, root: int, k: int) -> Iterator[tuple[int, ...]]:
    """All simple paths of 1 .. k edges from a root: the plain recursion."""

    def on(path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        for w in graph[path[-1]]:
            if w not in path:
                yield (*path, w)
                if len(path) < k:
                    yield from on((*path, w))

    yield from on((root,))


@st.composite
def graphs(draw: Any, most: int = 7) -> nx.Graph:
    n = draw(st.integers(1, most))
    pairs = list(itertools.combinations(range(n), 2))
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(pair for pair in pairs if draw(st.booleans()))
    return graph


def as_data(graph: nx.Graph, x: Tensor | None = None) -> Data:
    n = graph.number_of_nodes()
    pairs = np.array(sorted(graph.edges())).reshape(-1, 2)
    edges = torch.from_numpy(np.concatenate([pairs, pairs[:, ::-1]]).T.copy())
    return Data(x=torch.ones(n, 2) if x is None else x, edge_index=edges, num_nodes=n)


# -- counts ------------------------------------------------------------------------------------------------------------------
def test_worked_counts() -> None:
    ring = dense_counts(of_networkx(nx.cycle_graph(5)), 4)[0]
    assert ring.T.tolist() == [[0, 1, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]
    clique = dense_counts(of_networkx(nx.complete_graph(4)), 3)[0]
    assert clique.tolist() == [[0, 0, 0], [1, 2, 2], [1, 2, 2], [1, 2, 2]]


@given(graphs(), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_counts_and_rooted_sub_graphs_equal_the_paths_walked_one_by_one(graph: nx.Graph, k: int) -> None:
    simple = of_networkx(graph)
    rooted = rooted_paths(simple, k, max_paths=ALL)
    for v in graph:
        a, b = rooted.ptr[v], rooted.ptr[v + 1]
        nodes, counts = rooted.node[a:b], np.zeros((graph.number_of_nodes(), max(k, 1)))
        joined: set[tuple[int, int]] = set()
        reached = {v}
        for path in walked(graph, v, k) if k else ():
            counts[path[-1], len(path) - 2] += 1
            reached |= set(path)
            joined |= set(itertools.pairwise(path))
        assert nodes[0] == v and set(nodes.tolist()) == reached and len(nodes) == len(reached)
        assert np.array_equal(rooted.counts[a:b], counts[nodes, :k])
        mine = (rooted.edges[1] >= a) & (rooted.edges[1] < b)
        found = {(int(rooted.node[s]), int(rooted.node[t])) for s, t in rooted.edges[:, mine].T}
        assert found == joined | {(b_, a_) for a_, b_ in joined} and len(found) == int(mine.sum())
        assert rooted.paths[v] == counts.sum() and rooted.exact[v] == k
    assert (np.diff(rooted.edges[1]) >= 0).all()
    target = np.repeat(np.arange(simple.nodes), np.diff(simple.indptr))
    assert np.array_equal(simple.indices[rooted.entry], rooted.node[rooted.edges[0]])
    assert np.array_equal(target[rooted.entry], rooted.node[rooted.edges[1]])


@given(graphs(), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_rooted_sub_graph_is_the_ego_network_without_edges_between_its_outermost_nodes(graph: nx.Graph, k: int) -> None:
    rooted = rooted_paths(of_networkx(graph), k)
    for v in graph:
        ego = nx.ego_graph(graph, v, radius=k)
        far = nx.single_source_shortest_path_length(ego, v)
        kept = {frozenset(e) for e in ego.edges() if min(far[e[0]], far[e[1]]) < k}
        a, b = rooted.ptr[v], rooted.ptr[v + 1]
        mine = (rooted.edges[1] >= a) & (rooted.edges[1] < b)
        assert {frozenset((int(rooted.node[s]), int(rooted.node[t]))) for s, t in rooted.edges[:, mine].T} == kept
        assert dict(zip(rooted.node[a:b].tolist(), rooted.distance[a:b].tolist(), strict=True)) == dict(far)


def brute(graph: nx.Graph, longest: int, girth: int) -> tuple[list[int], list[int]]:
    """Totals over all tuples of nodes."""
    A = nx.to_numpy_array(graph, nodelist=range(graph.number_of_nodes()))
    paths, cycles = [], []
    for length in range(1, longest + 1):
        tuples = itertools.permutations(range(len(A)), length + 1)
        paths.append(sum(all(A[a, b] for a, b in itertools.pairwise(t)) for t in tuples) // 2)
    for length in range(3, girth + 1):
        tuples = itertools.permutations(range(len(A)), length)
        cycles.append(sum(all(A[a, b] for a, b in itertools.pairwise((*t, t[0]))) for t in tuples) // (2 * length))
    return paths, cycles


@given(graphs(6))
@settings(max_examples=20, deadline=None)
def test_totals_equal_brute_force_over_tuples_of_nodes(graph: nx.Graph) -> None:
    simple = of_networkx(graph)
    paths, cycles = motif_totals(simple, 4, 5)
    wanted = brute(graph, 4, 5)
    assert [paths[0].tolist(), cycles[0].tolist()] == list(wanted)
    rooted = rooted_paths(simple, 4, max_paths=ALL)
    assert (paths_from(rooted).sum(0) / 2).tolist() == wanted[0]
    assert (cycles_through(rooted).sum(0) / np.arange(3, 6)).tolist() == wanted[1]


def test_totals_on_nine_nodes_equal_networkx_and_formulas() -> None:
    rng = np.random.default_rng(0)
    for p in (0.3, 0.6, 1.0):
        graph = nx.gnp_random_graph(9, p, seed=int(rng.integers(100)))
        paths, cycles = motif_totals(of_networkx(graph), 4, 6)
        walks = [sum(1 for v in graph for path in walked(graph, v, 4) if len(path) == length + 1) // 2 for length in range(1, 5)]
        assert paths[0].tolist() == walks
        lengths = np.bincount([len(c) for c in nx.simple_cycles(graph, length_bound=6)], minlength=7)
        assert cycles[0].tolist() == lengths[3:].tolist()


def test_totals_of_the_karate_club() -> None:
    simple = of_networkx(nx.karate_club_graph())
    paths, cycles = motif_totals(simple, 5, 6)
    assert paths[0].tolist() == [78, 528, 2371, 11032, 43244] and cycles[0].tolist() == [45, 154, 374, 969]
    rooted = rooted_paths(simple, 5, max_paths=ALL)
    assert (paths_from(rooted).sum(0) / 2).tolist() == paths[0].tolist()
    assert (cycles_through(rooted).sum(0) / np.arange(3, 7)).tolist() == cycles[0].tolist()


def test_totals_of_mutag(mirror: Callable[[str], Path]) -> None:
    mirror("tu-mutag")
    found: Any = open_data("tu-mutag").read()
    counts = counts_of(found, [f"path-{i}" for i in range(1, 6)] + [f"cycle-{i}" for i in range(3, 7)])
    assert counts.sum(0).tolist() == [3721, 5428, 7506, 10353, 14115, 0, 0, 68, 470]
    assert counts.dtype == np.int64 and counts[0, -1] == 5


def test_a_graph_beyond_the_limit_has_no_count_and_the_next_one_has() -> None:
    both = nx.disjoint_union(nx.complete_graph(9), nx.cycle_graph(5))
    paths, cycles = motif_totals(of_networkx(both), 4, 5, np.array([0, 9, 14]), limit=1000)
    assert (paths[0] == -1).all() and (cycles[0] == -1).all()
    assert paths[1].tolist() == [5, 5, 5, 5] and cycles[1].tolist() == [0, 0, 1]


def test_lone_nodes_self_loops_repeated_edges_and_no_edge() -> None:
    edges = np.array([[0, 1, 1, 2, 2, 0], [1, 0, 1, 1, 1, 1]])
    simple = simple_graph(edges, 4)
    assert simple.indptr.tolist() == [0, 1, 3, 4, 4] and simple.indices.tolist() == [1, 0, 2, 1]
    # its own direction where that was given (the first time), else the other one
    assert simple.edge.tolist() == [0, 1, 3, 3]
    rooted = rooted_paths(simple, 3)
    assert rooted.node[rooted.ptr[3] : rooted.ptr[4]].tolist() == [3] and rooted.paths[3] == 0
    empty = rooted_paths(simple_graph(np.zeros((2, 0), int), 2), 3)
    assert empty.node.tolist() == [0, 1] and empty.edges.shape == (2, 0) and not empty.counts.any()
    assert rooted_paths(simple_graph(np.zeros((2, 0), int), 0), 2).ptr.tolist() == [0]


def test_mistakes_are_named() -> None:
    simple = of_networkx(nx.cycle_graph(4))
    for call, words in (
        (lambda: simple_graph(np.array([[0], [4]]), 4), "nodes 0..3"),
        (lambda: rooted_paths(simple, -1), "k must be >= 0"),
        (lambda: rooted_paths(simple, 2, max_paths=0), "max_paths"),
        (lambda: rooted_paths(simple, 2, roots=np.array([4])), "roots must be nodes 0..3"),
        (lambda: motif_totals(simple, -1, 3), "paths must be"),
        (lambda: motif_totals(simple, 1, 2), "cycles 0 or >= 3"),
        (lambda: pattern_of("star-3"), "is no pattern"),
        (lambda: pattern_of("cycle-2"), "cycle-3 to cycle-12"),
        (lambda: nt_xent(torch.ones(2, 3), torch.ones(3, 3)), "one shape"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# -- sampling ----------------------------------------------------------------------------------------------------------------
def test_sampled_counts_are_unbiased() -> None:
    """On K_8 for k = 4: the mean of 2,000 estimates within 4 standard errors of the exact number."""
    simple = of_networkx(nx.complete_graph(8))
    exact = dense_counts(simple, 4)[0]
    found = rooted_paths(
        simple, 4, roots=np.zeros(2000, np.int64), max_paths=3, sampled=True, streams=np.arange(2000)
    ).counts.reshape(2000, 8, 4)
    error = found.std(0, ddof=1) / np.sqrt(2000)
    assert (np.abs(found.mean(0) - exact) <= 4 * error + 1e-12).all() and (error[1:] > 0).all()


def test_sampled_counts_are_unbiased_where_weights_differ_and_walks_end() -> None:
    graph = nx.lollipop_graph(5, 3)  # a clique with a tail: dead ends, unequal degrees
    simple = of_networkx(graph)
    exact = dense_counts(simple, 5)[5]
    found = rooted_paths(simple, 5, roots=np.full(2000, 5), max_paths=4, sampled=True, streams=np.arange(2000))
    estimates = np.zeros((2000, 8, 5))
    estimates[found.root, found.node] = found.counts
    error = estimates.std(0, ddof=1) / np.sqrt(2000)
    assert (np.abs(estimates.mean(0) - exact) <= 4 * error + 1e-12).all()


def test_only_roots_beyond_the_cap_are_sampled_and_only_the_lengths_that_do_not_fit() -> None:
    simple = of_networkx(nx.karate_club_graph())
    exact, capped = rooted_paths(simple, 3, max_paths=ALL), rooted_paths(simple, 3, max_paths=150)
    beyond = exact.paths > 150
    assert 0 < beyond.sum() < 34 and np.array_equal(capped.exact < 3, beyond)
    assert np.array_equal(capped.node, exact.node) and np.array_equal(capped.edges, exact.edges)
    whole = capped.exact[capped.root]
    for level in range(3):
        walked_in_full = whole > level
        assert np.array_equal(capped.counts[walked_in_full, level], exact.counts[walked_in_full, level])
    total = exact.counts[whole == 2, 2].sum()
    assert abs(capped.counts[whole == 2, 2].sum() / total - 1) < 0.2 and not np.array_equal(capped.counts, exact.counts)


def test_a_graph_is_sampled_alike_wherever_it_stands() -> None:
    club, ring = nx.karate_club_graph(), nx.cycle_graph(7)
    counting = Counting(4, 50, sampled=True)
    alone = rooted_data([as_data(club)], counting)[0]
    beside = rooted_data([as_data(ring), as_data(club)], counting)[1]
    assert torch.equal(alone.path_labels, beside.path_labels) and torch.equal(alone.path_edges, beside.path_edges)
    long = Counting(20, 200, sampled=True)  # far beyond what could be walked
    assert bool(torch.isfinite(rooted_data([as_data(club)], long)[0].path_labels).all())


# -- what it tells apart -----------------------------------------------------------------------------------------------------
def unresolved(colours: Any) -> int:
    counts = np.unique(colours, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def separation(name: str, graphs: int | None = None) -> tuple[Simple, Any, Any]:
    found: Any = open_data(f"graph-separation:{name}").read()
    found = found if graphs is None else found.take(np.arange(graphs))
    tags = None if found.x is None else found.x.argmax(1)
    return simple_graph(found.edge_index, found.nodes), found.ptr, tags


def test_all_connected_graphs_of_eight_nodes_are_told_apart_with_k_2(mirror: Callable[[str], Path]) -> None:
    mirror("graph-separation")
    simple, ptr, _ = separation("graph8c")
    assert len(ptr) == 11118
    assert unresolved(rooted_colours(simple, ptr, 0, inner=0, outer=8)) == 312  # plain 1-WL
    assert unresolved(rooted_colours(simple, ptr, 2)) == 0


@pytest.mark.parametrize(("name", "left"), [("exp-pyg", (200, 200, 0)), ("cexp", (100, 100, 0))])
def test_pairs_that_wl_cannot_tell_apart(name: str, left: tuple[int, ...], mirror: Callable[[str], Path]) -> None:
    mirror("graph-separation")
    simple, ptr, tags = separation(name, 400)
    colours = [rooted_colours(simple, ptr, 0, tags, inner=0, outer=8)]
    colours += [rooted_colours(simple, ptr, k, tags, inner=6, outer=6) for k in (2, 3)]
    assert tuple(int((c[::2] == c[1::2]).sum()) for c in colours) == left


def test_strongly_regular_graphs_stay_one_class_up_to_k_4(mirror: Callable[[str], Path]) -> None:
    mirror("graph-separation")
    simple, ptr, _ = separation("sr251256")
    for k in (2, 3, 4):
        assert len(np.unique(rooted_colours(simple, ptr, k, outer=3))) == 1


def vectors(name: str, k: int, graphs: int = 40) -> Tensor:
    """The vectors [G, h] of the first graphs of a set under a network of random weights, float64."""
    found: Any = open_data(f"graph-separation:{name}").read().take(np.arange(graphs))
    columns = 1 if found.x is None else found.x.shape[1]
    torch.manual_seed(0)
    net = KPathNet(columns, 8, k, 16).double().eval()
    data = rooted_data(found.graphs(), Counting(k))
    for item in data:
        item.x = torch.ones(item.num_nodes, 1).double() if found.x is None else item.x.double()
        item.path_labels = item.path_labels.double()
    with torch.no_grad():
        return net.encode(Packed(data).batch(torch.arange(graphs)))


@pytest.mark.parametrize(("name", "left"), [("exp-pyg", {2: 20, 3: 0}), ("cexp", {2: 10, 3: 0})])
def test_random_weights_tell_apart_what_the_colours_do(name: str, left: dict[int, int], mirror: Callable[[str], Path]) -> None:
    mirror("graph-separation")
    simple, ptr, tags = separation(name, 40)
    for k, same in left.items():
        colours = rooted_colours(simple, ptr, k, tags, inner=2, outer=2)
        z = vectors(name, k)
        gap, equal = (z[::2] - z[1::2]).abs().sum(1).numpy(), colours[::2] == colours[1::2]
        assert np.array_equal(gap < 1e-9, equal) and (gap[~equal] > 1e-6).all() and int(equal.sum()) == same


def test_random_weights_do_not_tell_strongly_regular_graphs_apart(mirror: Callable[[str], Path]) -> None:
    mirror("graph-separation")
    z = vectors("sr251256", 3, 15)
    assert float((z - z[0]).abs().sum(1).max()) < 1e-8 * float(z[0].abs().sum())


def test_a_marked_root_is_not_enough_for_the_pairs_of_exp(mirror: Callable[[str], Path]) -> None:
    """What the labels add: without the counts k = 3 leaves pairs that it tells apart with them, or as many, never fewer."""
    mirror("graph-separation")
    simple, ptr, tags = separation("exp-pyg", 400)
    plain = rooted_colours(simple, ptr, 2, tags, labels=False)
    assert int((plain[::2] == plain[1::2]).sum()) >= 200
    ring, triangles = nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    both = of_networkx(nx.disjoint_union(ring, triangles))
    cut = np.array([0, 6, 12])
    assert len(np.unique(rooted_colours(both, cut, 1, labels=False, inner=0))) == 1
    assert len(np.unique(rooted_colours(both, cut, 2, inner=0))) == 2


# -- the network -------------------------------------------------------------------------------------------------------------
def some_graphs(count: int = 6, seed: int = 0, width: int = 3) -> list[Data]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        graph = nx.gnp_random_graph(int(rng.integers(4, 12)), 0.35, seed=seed * 100 + i)
        made.append(as_data(graph, torch.from_numpy(rng.normal(size=(graph.number_of_nodes(), width)))))
    return made


def doubled(data: list[Any]) -> list[Any]:
    for item in data:
        item.path_labels = item.path_labels.double()
    return data


def trained_statistics(net: nn.Module, batch: Any) -> nn.Module:
    """Batch normalisation with statistics that are not 0 and 1."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(batch)
    return net.eval()


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_answer_does_not_change_with_the_numbering_of_nodes(k: int) -> None:
    data = some_graphs()
    torch.manual_seed(1)
    net = KPathNet(3, 4, k, 8).double()
    batch = Packed(doubled(rooted_data(data, Counting(k)))).batch(torch.arange(6))
    trained_statistics(net, batch)
    turned = []
    for i, item in enumerate(data):
        place = torch.from_numpy(np.random.default_rng(i).permutation(item.num_nodes))
        x = torch.empty_like(item.x)
        x[place] = item.x
        edges = place[item.edge_index][:, torch.randperm(item.edge_index.shape[1])]
        turned.append(Data(x=x, edge_index=edges, num_nodes=item.num_nodes))
    other = Packed(doubled(rooted_data(turned, Counting(k)))).batch(torch.arange(6))
    with torch.no_grad():
        a, b = net(batch), net(other)
    assert float(a.std()) > 1e-3 and float((a - b).abs().max()) < 1e-9


def test_batches_are_pygs_and_answers_do_not_depend_on_them() -> None:
    data = rooted_data(some_graphs(), Counting(3))
    rows = torch.tensor([4, 1, 5])
    ours, theirs = Packed(data).batch(rows), Batch.from_data_list([data[int(r)] for r in rows])
    assert Packed(data).plain
    for key in ("x", "edge_index", "path_node", "path_size", "path_labels", "path_edges", "batch", "ptr"):
        assert torch.equal(ours[key], theirs[key]), key
    data = doubled(data)
    torch.manual_seed(0)
    net = KPathNet(3, 2, 3, 8).double().eval()
    with torch.no_grad():
        together = net(Packed(data).batch(torch.arange(6)))
        alone = torch.cat([net(Packed(data).batch(torch.tensor([i]))) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_a_layer_equals_a_loop_over_nodes() -> None:
    item = doubled(rooted_data(some_graphs(1), Counting(2)))[0]
    torch.manual_seed(0)
    net = RootedGIN(3, 2, 5, layers=1).double().eval()
    with torch.no_grad():
        net.layers[0].eps.fill_(0.3)  # type: ignore[operator, union-attr]
        z = net(item.x, union_of(item))
        layer: Any = net.layers[0]
        rows = np.concatenate([[0], np.cumsum(item.path_size)])
        for v in range(item.num_nodes):
            mine = range(rows[v], rows[v + 1])
            start = {
                u: net.x(item.x[item.path_node[u]])
                + net.label(torch.cat([torch.tensor([float(u == rows[v])]), item.path_labels[u]]))
                for u in mine
            }
            near = {u: sum((start[int(s)] for s, t in item.path_edges.T if t == u), torch.zeros(5)) for u in mine}
            h = {u: torch.relu(layer.norm(layer.mlp((1.3 * start[u] + near[u])[None])))[0] for u in mine}
            mean = torch.stack(list(h.values())).mean(0)
            torch.testing.assert_close(net.out(torch.cat([h[rows[v]], mean, item.x[v]])[None])[0], z[v], rtol=0, atol=1e-12)


def test_exact_numbers_of_paths_and_cycles_are_within_the_networks_span() -> None:
    """Weights set by hand: paths of 3 edges from the sums of labels, 5-cycles from a GIN layer's sum at the root."""
    clubs = [nx.karate_club_graph(), nx.petersen_graph(), nx.complete_graph(6), nx.path_graph(3)]
    net = KPathNet(2, 2, 4, 8, inner=1, outer=0, norm=False, pool="sum", pool_inside="sum", totals=True).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        rooted, layer = net.rooted, net.rooted.layers[0]
        rooted.label.weight[:4, 1:] = torch.eye(4)  # h_u = the four counts
        layer.eps.fill_(-1.0)  # type: ignore[operator, union-attr]
        layer.mlp[0].weight[:] = layer.mlp[-1].weight[:] = torch.eye(8)  # type: ignore[index, union-attr]
        rooted.out[0].weight[0, -2] = 1 / 2  # type: ignore[operator, index]
        rooted.out[0].weight[1, 3] = 1 / 10  # type: ignore[operator, index]
        rooted.out[-1].weight[:] = net.last[0].weight[:] = net.last[3].weight[:] = torch.eye(8)  # type: ignore[index, operator]
        net.last[-1].weight[:] = torch.eye(8)[:2]  # type: ignore[index, operator]
        data = doubled(rooted_data([as_data(g) for g in clubs], Counting(4, ALL, log=False)))
        for item in data:
            item.x = item.x.double()
        found = net(Packed(data).batch(torch.arange(4)))
    for row, graph in zip(found, clubs, strict=True):
        paths, cycles = motif_totals(of_networkx(graph), 3, 5)
        assert row.tolist() == pytest.approx([paths[0, 2], cycles[0, 2]], rel=1e-12)


def test_with_k_0_the_rooted_encoder_is_an_mlp_of_the_features() -> None:
    item = doubled(rooted_data(some_graphs(1), Counting(0)))[0]
    assert item.path_edges.shape == (2, 0) and item.path_labels.shape == (item.num_nodes, 0)
    net = RootedGIN(3, 0, 5).double().eval()
    same = item.x.clone()
    same[1] = same[0]
    z = net(same, union_of(item))
    torch.testing.assert_close(z[0], z[1], rtol=0, atol=1e-12)  # whatever their neighbours
    assert not torch.allclose(z[0], z[2], atol=1e-6)


def test_sums_over_neighbours_are_alike_with_and_without_weights_and_have_the_right_gradient() -> None:
    item = rooted_data(some_graphs(1), Counting(3))[0]
    h = torch.randn(len(item.path_node), 4, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(item.path_edges.shape[1], dtype=torch.float64, requires_grad=True)
    plain, weighed = neighbour_sums(h, item.path_edges), neighbour_sums(h, item.path_edges, weight)
    torch.testing.assert_close(plain, weighed)
    for out in (plain, weighed):
        (gradient,) = torch.autograd.grad((out**2).sum(), h, retain_graph=True)
        dense = torch.zeros(len(h), len(h), dtype=torch.float64)
        dense[item.path_edges[1], item.path_edges[0]] = 1
        torch.testing.assert_close(gradient, 2 * dense.T @ dense @ h)


def test_edge_features_reach_both_the_inner_and_the_outer_layers() -> None:
    data = some_graphs(3)
    for item in data:  # the same on both directions of an edge, which is written in one direction alone
        m = item.edge_index.shape[1] // 2
        item.edge_index, item.edge_attr = item.edge_index[:, :m], torch.arange(m, dtype=torch.float64)[:, None]
    made = doubled(rooted_data(data, Counting(2)))
    for item, before in zip(made, data, strict=True):
        known = {frozenset(e): float(a) for e, a in zip(before.edge_index.T.tolist(), before.edge_attr, strict=True)}
        assert [known[frozenset(e)] for e in item.edge_index.T.tolist()] == item.edge_attr[:, 0].tolist()
        rooted = item.path_node[item.path_edges]
        assert torch.equal(item.edge_index[:, item.path_entry], rooted)
    for layers in ((1, 0), (0, 1)):
        torch.manual_seed(0)
        net = KPathNet(3, 2, 2, 8, *layers, edge_features=1).double().eval()
        batch = Packed(made).batch(torch.arange(3))
        first = net(batch)
        batch.edge_attr = batch.edge_attr + 1
        assert not torch.allclose(first, net(batch))


def test_every_parameter_has_a_gradient() -> None:
    batch = Packed(doubled(rooted_data(some_graphs(), Counting(3)))).batch(torch.arange(6))
    net = KPathNet(3, 2, 3, 8, dropout=0.0).double()
    (net(batch) ** 2).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


# -- views -------------------------------------------------------------------------------------------------------------------
def test_a_view_is_what_the_smaller_graphs_would_give() -> None:
    """Paths that use a dropped edge are gone and rooted sub-graphs shrink: counted anew, not masked."""
    data = some_graphs()
    batch = Packed(rooted_data(data, Counting(3))).batch(torch.arange(6))
    pairs, pair = pairs_of(batch.edge_index, int(batch.num_nodes))
    kept = torch.rand(pairs.shape[1], generator=torch.Generator().manual_seed(0)) < 0.7
    view = rooted_view(batch, kept[pair], Counting(3))
    smaller = []
    for i, item in enumerate(data):
        mine = (batch.batch[batch.edge_index[0]] == i) & kept[pair]
        smaller.append(Data(x=item.x, edge_index=batch.edge_index[:, mine] - batch.ptr[i], num_nodes=item.num_nodes))
    wanted = Packed(rooted_data(smaller, Counting(3))).batch(torch.arange(6))
    for key in ("x", "edge_index", "path_node", "path_size", "path_labels", "path_edges", "batch", "ptr"):
        assert torch.equal(view[key], wanted[key]), key
    everything = rooted_view(batch, torch.ones(len(pair), dtype=torch.bool), Counting(3))
    assert all(torch.equal(everything[key], batch[key]) for key in ("edge_index", "path_edges", "path_labels", "path_node"))
    assert torch.equal(view.edge_index[:, view.path_entry], view.path_node[view.path_edges])


def test_importance_is_symmetric_and_pairs_cover_both_directions() -> None:
    scorer, h = EdgeScorer(4).double(), torch.randn(6, 4, dtype=torch.float64)
    pairs = torch.tensor([[0, 1, 2], [3, 4, 5]])
    a = scorer(h, pairs)
    assert torch.equal(a, scorer(h, pairs.flip(0))) and bool(((a > 0) & (a < 1)).all())
    edges = torch.tensor([[0, 3, 1, 1, 2], [3, 0, 1, 2, 1]])
    found, pair = pairs_of(edges, 4)
    assert found.tolist() == [[0, 1], [3, 2]] and pair.tolist() == [0, 0, -1, 1, 1]
    assert pairs_of(torch.zeros(2, 0, dtype=torch.int64), 3)[0].shape == (2, 0)


def test_chances_of_being_dropped() -> None:
    a, graph = torch.tensor([0.9, 0.8, 0.7, 0.5, 0.5, 0.3], dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2])
    p = drop_chances(a, graph, 3, 0.2)
    torch.testing.assert_close(p, torch.tensor([0.0, 0.2, 0.4, 0.0, 0.0, 0.0], dtype=torch.float64))  # a = a_max: never
    assert float(drop_chances(a, graph, 3, 0.0).abs().max()) == 0
    assert float(drop_chances(a, graph, 3, 0.9).max()) == 0.7
    many = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = drop_chances(many, torch.zeros(500, dtype=torch.int64), 1, 0.2)
    assert float(found.mean()) == pytest.approx(0.2, abs=1e-6)
    gone = torch.stack(
        [~straight_through(found, torch.rand(500, generator=torch.Generator().manual_seed(i)).double())[0] for i in range(1000)]
    )
    deviation = float((found * (1 - found)).sum().sqrt()) / np.sqrt(1000)
    assert abs(float(gone.sum(1).double().mean()) - float(found.sum())) < 3 * deviation


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.2, 0.3, 0.9]))
@settings(max_examples=40, deadline=None)
def test_chances_hold_within_each_graph(seed: int, p: float) -> None:
    """None above p_max, less for a more important edge, none for the most important; the mean is p unless one is cut."""
    g = torch.Generator().manual_seed(seed)
    graph = torch.randint(0, 4, (30,), generator=g)
    a = torch.rand(30, generator=g, dtype=torch.float64)
    found = drop_chances(a, graph, 5, p)  # the last graph has no edge
    for i in range(4):
        mine, chance = a[graph == i], found[graph == i]
        if len(mine) < 2:
            continue
        assert float(chance[mine.argmax()]) == 0 and float(chance.min()) >= 0 and float(chance.max()) <= 0.7
        assert bool((chance[mine.argsort()].diff() <= 0).all())
        mean = float(chance.mean())
        assert mean <= p + 1e-6 and (float(chance.max()) == 0.7 or mean == pytest.approx(p, abs=1e-6))
        alone = drop_chances(mine, torch.zeros(len(mine), dtype=torch.int64), 1, p)
        torch.testing.assert_close(alone, chance, rtol=0, atol=1e-12)


def test_straight_through_is_hard_forwards_and_soft_backwards() -> None:
    chance = torch.tensor([0.0, 0.3, 0.3, 0.6], dtype=torch.float64, requires_grad=True)
    uniform = torch.tensor([0.0, 0.29, 0.31, 0.8], dtype=torch.float64)
    kept, weight = straight_through(chance, uniform)
    assert kept.tolist() == [True, False, True, True] and weight.tolist() == [1.0, 0.0, 1.0, 1.0]
    for temperature in (1.0, 0.5):
        _, weight = straight_through(chance, uniform, temperature)
        (gradient,) = torch.autograd.grad(weight.sum(), chance)
        keep = 1 - chance.detach()[1:]
        logit = (torch.logit(keep) + torch.logit(uniform[1:])) / temperature
        soft = torch.sigmoid(logit)
        wanted = -soft * (1 - soft) / temperature / (keep * (1 - keep))
        torch.testing.assert_close(gradient[1:], wanted)
        assert bool(((soft > 0.5) == kept[1:]).all()) and bool((gradient[1:] < 0).all())


def closed(z: Tensor, tau: float) -> float:
    s = torch.nn.functional.normalize(z, dim=1)
    s = torch.exp(s @ s.T / tau)
    return float((torch.log(2 * (s.sum(1) - s.diagonal()))).mean() - 1 / tau)


def test_nt_xent_equals_a_loop_and_its_closed_value() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 4, dtype=torch.float64)
    z = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    total = 0.0
    for i in range(10):
        other = (i + 5) % 10
        others = sum(float(torch.exp(z[i] @ z[j] / 0.5)) for j in range(10) if j not in (i, other))
        total -= float(z[i] @ z[other]) / 0.5 - np.log(others)
    assert float(nt_xent(first, second)) == pytest.approx(total / 10, abs=1e-12)
    assert float(nt_xent(first, first, 0.3)) == pytest.approx(closed(first, 0.3), abs=1e-12)
    assert float(nt_xent(first[:1], second[:1])) == 0.0
    first.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: nt_xent(a, second), (first,))


def of_features(*names: str) -> dict[str, Any]:
    """The schema of two classes and these node features."""
    found: dict[str, Any] = {"features": list(names), "edge_features": [], "classes": ["0", "1"], "targets": []}
    return found | {"rule": "given", "inputs": len(names), "edge inputs": 0}


def contrast(
    drop: str, p: tuple[float, float] = (0.2, 0.3), backbone: str = "k-path(width=8; dropout=0.0)"
) -> tuple[Any, Any, Any]:
    """(method, network in train mode, batch) of a few random graphs."""
    method = ContrastMethod.make({"backbone": backbone, "drop": drop, "p": p})
    schema = of_features("a", "b", "c")
    torch.manual_seed(0)
    net = method.module(3, 2, schema).train()
    data = some_graphs()
    for item in data:
        item.x = item.x.float()
    return method, net, Packed(method.prepare(data, schema)).batch(torch.arange(6))


@pytest.mark.parametrize("drop", ["adaptive", "random", "none"])
def test_with_p_0_both_views_are_the_graph(drop: str) -> None:
    method, net, batch = contrast(drop, (0.0, 0.0))
    net(batch)
    loss = method.extra_loss(net, batch, None)
    z = net.projector(net.net.encode(batch))
    assert float(loss.detach()) == pytest.approx(0.1 * closed(z.detach(), 0.5), abs=1e-5) and not net.dropped


@pytest.mark.parametrize("backbone", ["k-path(width=8; dropout=0.0)", "gin(width=8; dropout=0.0)"])
def test_the_scorer_learns_through_the_weights_of_the_kept_edges(backbone: str) -> None:
    method, net, batch = contrast("adaptive", backbone=backbone)
    net(batch)
    assert net.seen is not None and net.seen.shape[0] == batch.num_nodes and not net.seen.requires_grad
    method.extra_loss(net, batch, None).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in net.scorer.parameters())
    gone, edges = (sum(c) for c in zip(*net.dropped, strict=True))
    assert 0 < gone < edges


@pytest.mark.parametrize("backbone", ["k-path(width=8; dropout=0.0)", "gin(width=8; dropout=0.0)"])
def test_weights_of_one_change_nothing_and_a_weight_scales_its_messages(backbone: str) -> None:
    method, net, batch = contrast("random", backbone=backbone)
    net.eval()
    stays = torch.ones(batch.edge_index.shape[1], dtype=torch.bool)

    def encoded(weight: Tensor) -> Tensor:
        if hasattr(method.backbone, "view"):
            return net.net.encode(method.backbone.view(batch, stays, weight))
        with weighted_messages(net.net, batch.edge_index, weight):
            return net.net.encode(plain_view(batch, stays))

    with torch.no_grad():
        plain, ones = net.net.encode(batch), encoded(torch.ones(len(stays)))
        torch.testing.assert_close(plain, ones, rtol=0, atol=1e-5)
        assert not torch.allclose(plain, encoded(torch.full((len(stays),), 0.5)), atol=1e-3)
        torch.testing.assert_close(plain, net.net.encode(batch))  # the masks are gone


def test_views_leave_the_running_statistics_alone() -> None:
    method, net, batch = contrast("adaptive")
    net(batch)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    method.extra_loss(net, batch, None)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with without_statistics(net):
        net(batch)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net(batch)
    assert any(not torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_wrapped_network_starts_as_the_bare_one_and_leaves_the_generator_as_it_does() -> None:
    schema = of_features("a")
    torch.manual_seed(3)
    bare = KPathMethod(width=8).module(1, 2, schema)
    after = torch.rand(1)
    torch.manual_seed(3)
    wrapped = ContrastMethod.make({"backbone": "k-path(width=8)"}).module(1, 2, schema)
    assert isinstance(wrapped, ContrastNet) and torch.equal(torch.rand(1), after)
    assert all(torch.equal(v, wrapped.net.state_dict()[k]) for k, v in bare.state_dict().items())


def test_states_of_nodes_are_the_last_ones_of_the_encoder() -> None:
    _, net, batch = contrast("random", backbone="gin(width=8; layers=2; dropout=0.0)")
    with captured(net.net, int(batch.num_nodes)) as found:
        net.net.encode(batch)
    assert found[-1].shape == (batch.num_nodes, 8) and len(found) > 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_each_direction_keeps_its_own_features(n: int, seed: int) -> None:
    """A message from u to w reads the features of the edge u -> w where that was written, else those of w -> u."""
    rng = np.random.default_rng(seed)
    pairs = np.stack(np.nonzero(rng.random((n, n)) < 0.4))
    pairs = pairs[:, rng.permutation(pairs.shape[1])]
    told = torch.arange(pairs.shape[1], dtype=torch.float32)[:, None] + 1
    item = Data(x=torch.ones(n, 1), edge_index=torch.from_numpy(pairs), edge_attr=told, num_nodes=n)
    known = {(u, w): float(a) for (u, w), a in zip(pairs.T.tolist(), told, strict=True)}
    first = as_data(nx.path_graph(3))
    first.edge_attr = torch.zeros(4, 1)
    once = rooted_data([first, item], Counting(2))[1]
    for made in (once, rooted_data([once], Counting(2))[0]):
        assert {tuple(e) for e in made.edge_index.T.tolist()} == {e for u, w in known for e in ((u, w), (w, u)) if u != w}
        for (u, w), a in zip(made.edge_index.T.tolist(), made.edge_attr, strict=True):
            assert float(a) == known.get((u, w), known.get((w, u)))
        ends = made.path_node[made.path_edges]  # (source, target) nodes behind each edge of a rooted sub-graph
        assert torch.equal(made.edge_index[:, made.path_entry], ends)
