"""The checker of symmetries: planted violations are caught, and what promises a symmetry anywhere in the library keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.layers.equivariant_tensors import DIMENSIONS, EquivariantLinear
from latticework.layers.frames import E3, O3, SE3, SO3, Scale, Sn, Translations, equivariance_error
from latticework.points.baselines import DGCNN, EGNN, DeepSets, ParticleGNN, PointNet, pca_normals
from latticework.points.frame_averaging import FrameAveraging, LocalVectors
from latticework.points.frame_averaging.method import FramedLayers, FramedPoints
from latticework.testing.equivariance import check_equivariance, check_graphs, renumbered

F32, F64 = torch.float32, torch.float64
SINGLE = {F32: 2e-3}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def points(B: int = 3, n: int = 14) -> Tensor:
    return torch.randn(B, n, 3, dtype=F64, generator=torch.Generator().manual_seed(1)) * torch.tensor([2.0, 1.0, 0.5])


def systems() -> list[tuple[str, Tensor]]:
    """Positions, velocities and charges of five particles."""
    generator = torch.Generator().manual_seed(2)
    draw = torch.randn(4, 5, 6, dtype=F64, generator=generator)
    charge = torch.randint(0, 2, (4, 5, 1), generator=generator) * 2.0 - 1
    return [("points", draw[..., :3]), ("vectors", draw[..., 3:]), ("invariant", charge)]


def graphs(features: int = 0, seed: int = 0) -> list[Data]:
    """Connected graphs of a few sizes, both directions of each edge, with as many node features."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in (7, 4, 9):
        pairs = [(i, i + 1) for i in range(n - 1)]
        pairs += [(i, j) for i in range(n) for j in range(i + 2, n) if float(torch.rand((), generator=generator)) < 0.3]
        ends = torch.tensor(pairs).T
        x = {"x": torch.randn(n, features, generator=generator)} if features else {}
        found.append(Data(edge_index=torch.cat([ends, ends.flip(0)], 1), num_nodes=n, **x))
    return found


class Columns(nn.Module):
    """A point backbone called with (pos, vectors, rest): the columns of x one by one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pos: Tensor, *columns: Tensor) -> Tensor:
        found: Tensor = self.net(pos, torch.cat(columns, -1) if columns else None)
        return found


class Bent(nn.Module):
    def forward(self, X: Tensor) -> Tensor:
        return X.sin() + X.roll(1, -1) * X.roll(2, -1)  # the product has a handedness


# -- planted violations ------------------------------------------------------------------------------------------------------
def centred(X: Tensor) -> Tensor:
    return X - X.mean(1, keepdim=True)


def volume(X: Tensor) -> Tensor:
    """The signed volume of four points: turned it stays, mirrored it changes its sign."""
    return torch.linalg.det(X[:, 1:4] - X[:, :1])


VIOLATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Any, str]] = {
    "a mirror image": (volume, E3(), "invariant"),
    "a cross product": (lambda X: torch.linalg.cross(X[:, 0] - X[:, 1], X[:, 0] - X[:, 2]), O3(), "vector"),
    "a shift": (lambda X: X.norm(dim=-1), E3(), "invariant"),
    "one axis": (lambda X: centred(X)[..., :1], SE3(), "invariant"),
    "a scale": (lambda X: torch.cdist(centred(X), centred(X)), Scale(), "invariant"),
    "points called vectors": (lambda X: X, Translations(), "vectors"),
    "vectors called points": (centred, Translations(), "points"),
    "vectors called directions": (centred, Scale(), "directions"),
    "a bias": (lambda X: centred(X) + torch.tensor([0.0, 0.0, 0.1], dtype=X.dtype), SO3(), "vectors"),
    "coordinates one by one": (lambda X: centred(X).relu(), SO3(), "vectors"),
    "one cloud of the batch": (lambda X: torch.cat([X[:1].relu(), X[1:]]), SO3(), "vectors"),
    "a frame of rotations under reflections": (FrameAveraging(Bent(), SE3(), "points"), E3(), "points"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_planted_violations_are_caught(name: str) -> None:
    fn, group, output = VIOLATIONS[name]
    for dtype in (F32, F64):
        with pytest.raises(AssertionError, match=r"variant under .*: error .* \(trial 0, output"):
            check_equivariance(fn, group, points(), output, (dtype,))


@pytest.mark.parametrize(
    ("fn", "group", "output"),
    [(volume, SE3(), "invariant"), (VIOLATIONS["a cross product"][0], SO3(), "vector"), (centred, SE3(), "vectors"),
     (lambda X: X + centred(X), E3() * Scale(), "points"), (lambda X: torch.cdist(X, X), E3(), "invariant"),
     (FrameAveraging(Bent(), E3(), "points"), E3(), "points")],
    ids=["volume", "cross product", "centred", "scaled points", "distances", "framed"],
)  # fmt: skip
def test_the_same_maps_pass_where_they_are_symmetric(fn: Any, group: Any, output: str) -> None:
    found = check_equivariance(fn, group, points(), output, tolerance=SINGLE)
    assert found[F64] < 1e-10 < found[F32]


def test_small_violations_are_seen_in_double_precision() -> None:
    """A millionth of the absolute position, and a detour through float32: both below what float32 can show."""
    for fn in (lambda X: centred(X) + 1e-6 * X, lambda X: centred(X.float()).to(X.dtype)):
        check_equivariance(fn, Translations(), points(), "vectors", (F32,))
        with pytest.raises(AssertionError, match=r"float64"):
            check_equivariance(fn, Translations(), points(), "vectors", (F64,))


def test_one_of_several_answers_and_arguments_is_enough() -> None:
    inputs = systems()
    ok = lambda X, v, q: (X + v * q, v.norm(dim=-1))  # noqa: E731
    check_equivariance(ok, E3(), inputs, ("points", "invariant"))
    for fn in (lambda X, v, q: (X + v * q, v[..., 0]), lambda X, v, q: (X + v.abs(), v.norm(dim=-1))):
        with pytest.raises(AssertionError, match="equivariant"):
            check_equivariance(fn, E3(), inputs, ("points", "invariant"))
    with pytest.raises(ValueError, match="2 outputs, 1 kinds"):
        check_equivariance(ok, E3(), inputs, "points")


def test_what_proves_nothing_is_refused() -> None:
    dead: tuple[tuple[Callable[[Tensor], Tensor], str], ...] = (
        (lambda X: torch.zeros(len(X)), "invariant"), (lambda X: X * 0, "vectors"), (lambda X: X[..., 0].argsort() * 0 + 3.0, "invariant"),
    )  # fmt: skip
    for fn, output in dead:
        with pytest.raises(AssertionError, match="does not depend on the input"):
            check_equivariance(fn, SO3(), points(), output)
    check_equivariance(lambda X: torch.zeros(len(X)), SO3(), points(), "invariant", alive=False)
    with pytest.raises(AssertionError, match=r"error inf|not finite"):
        check_equivariance(lambda X: X / 0 * 0, SO3(), points(), "vectors")


def test_draws_are_the_same_in_every_call_and_the_given_net_is_left_alone() -> None:
    class Dropped(nn.Module):
        def __init__(self, one_mask: bool) -> None:
            super().__init__()
            self.one_mask, self.calls = one_mask, 0

        def forward(self, X: Tensor) -> Tensor:
            self.calls += 1
            mask = torch.nn.functional.dropout(torch.ones_like(X[..., :1] if self.one_mask else X), 0.5, self.training)
            return centred(X) * mask

    net = Dropped(True)
    check_equivariance(net, SO3(), points(), "vectors")
    assert net.calls == 0 and net.training
    with pytest.raises(AssertionError, match="not equivariant"):
        check_equivariance(Dropped(False), SO3(), points(), "vectors")
    check_equivariance(Dropped(False).eval(), SO3(), points(), "vectors")
    before = torch.random.get_rng_state()
    check_equivariance(net, SO3(), points(), "vectors")
    assert torch.equal(before, torch.random.get_rng_state())


def test_orders_of_nodes_are_caught() -> None:
    A = torch.rand(3, 6, 6, dtype=F64)
    A = (A + A.mT).triu(1)
    A = A + A.mT
    given = {"graph": A, "nodes": torch.randn(3, 6, 2, dtype=F64)}
    check_equivariance(lambda A, x: A @ x, Sn(), given, "nodes")
    check_equivariance(lambda A, x: A @ A, Sn(), given, "graph")
    check_equivariance(lambda A, x: (A @ x).sum(1), Sn(), given)
    for fn, output in (
        (lambda A, x: x.cumsum(1), "nodes"), (lambda A, x: A @ x[:, :1].expand_as(x), "nodes"), (lambda A, x: A.triu(), "graph"),
        (lambda A, x: A[:, 0], "invariant"), (lambda A, x: x.sort(1).values, "nodes"),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="under Sn"):
            check_equivariance(fn, Sn(), given, output)


def pooled(batch: Any) -> Tensor:
    from torch_geometric.nn import global_add_pool

    return global_add_pool(batch.x[batch.edge_index[0]] ** 2, batch.batch[batch.edge_index[1]])


def numbered(batch: Any) -> Tensor:
    from torch_geometric.nn import global_add_pool

    place = torch.arange(batch.num_nodes) - batch.ptr[batch.batch]
    return global_add_pool(batch.x * place[:, None], batch.batch)


def test_numbers_and_edge_orders_of_graphs_are_caught() -> None:
    given = graphs(2)
    found = check_graphs(pooled, given)
    assert found[F64] < 1e-12
    assert check_graphs(lambda batch: batch.x**2, given, "nodes")[F64] == 0.0
    with pytest.raises(AssertionError, match="invariant answers change with the numbering"):
        check_graphs(numbered, given)
    with pytest.raises(AssertionError, match="nodes answers change with the numbering"):
        check_graphs(lambda batch: batch.x.cumsum(0), given, "nodes")
    with pytest.raises(
        AssertionError, match="change with the numbering"
    ):  # the nodes' order plays no part, that of the edges does
        check_graphs(lambda batch: batch.x[batch.edge_index[0, :1]].expand(batch.num_graphs, 2), given)
    with pytest.raises(AssertionError, match="change with the numbering"):  # what a recipe adds counts, too
        add = lambda gs: [Data(x=torch.arange(float(g.num_nodes))[:, None], edge_index=g.edge_index) for g in gs]  # noqa: E731
        check_graphs(pooled, given, prepare=add)
    with pytest.raises(AssertionError, match="not finite"):
        check_graphs(lambda batch: pooled(batch) / 0, given)
    with pytest.raises(ValueError, match="invariant or nodes"):
        check_graphs(pooled, given, "edges")


def test_a_renumbered_graph_is_the_same_graph() -> None:
    graph = graphs(3)[2]
    graph.edge_attr = torch.arange(float(graph.num_edges))[:, None]
    graph.root_index = torch.tensor([0, 5])
    new, order = renumbered(graph, torch.Generator().manual_seed(3))
    assert torch.equal(new.x, graph.x[order]) and torch.equal(order[new.root_index], graph.root_index)
    edges = {float(a): (int(u), int(v)) for a, (u, v) in zip(graph.edge_attr, graph.edge_index.T, strict=True)}
    assert edges == {float(a): (int(order[u]), int(order[v])) for a, (u, v) in zip(new.edge_attr, new.edge_index.T, strict=True)}
    assert not torch.equal(new.edge_index, graph.edge_index) and graph.x.shape == (9, 3)


# -- what promises a symmetry -------------------------------------------------------------------------------------------------
def wide_egnn() -> EGNN:
    net = EGNN(4, 1, 16, 3)
    for along in net.along:
        nn.init.xavier_uniform_(along[2].weight)  # large steps, or there is little to see
    return net


def framed(net: nn.Module, group: Any = None, local: LocalVectors | None = None) -> Columns:
    return Columns(FramedPoints(net, group or E3(), "vectors", int(net.vectors), local, None))


PARTICLES: dict[str, Callable[[], nn.Module]] = {
    "egnn": wide_egnn,
    "particle-gnn in frames": lambda: framed(ParticleGNN(4, 3, 1, 16, 2)).net,
    "particle-gnn in frames of its layers": lambda: FramedLayers(ParticleGNN(4, 3, 1, 15, 3), E3()),
}


@pytest.mark.parametrize("name", PARTICLES)
def test_networks_of_particles_turn_with_them(name: str) -> None:
    net = Columns(PARTICLES[name]())
    found = check_equivariance(net, E3(), systems(), "vectors", tolerance=SINGLE | {F64: 1e-9})
    assert found[F64] < found[F32]
    nodes = [("nodes", X) for _, X in systems()]
    check_equivariance(net, Sn(), nodes, "nodes", tolerance=SINGLE | {F64: 1e-9})


def test_the_plain_network_of_particles_is_caught() -> None:
    net = Columns(ParticleGNN(4, 3, 1, 16, 2))
    for group in (SO3(), O3(), Translations()):
        with pytest.raises(AssertionError, match="not equivariant"):
            check_equivariance(net, group, systems(), "vectors")
    check_equivariance(net, Sn(), [("nodes", X) for _, X in systems()], "nodes", tolerance=SINGLE)


def planes(X: Tensor, v: Tensor) -> Tensor:
    """n (n . v) with the normals of fitted planes: their sign plays no part."""
    n = torch.stack([torch.from_numpy(pca_normals(cloud.numpy(), 6)) for cloud in X]).to(X)
    return n * (n * v).sum(-1, keepdim=True)


@pytest.mark.parametrize("group", [E3(), SE3() * Scale()], ids=lambda g: g.name)
def test_normals_of_fitted_planes_turn_with_the_points(group: Any) -> None:
    X, v = points(n=40), torch.randn(3, 40, 3, dtype=F64)
    check_equivariance(planes, group, [("points", X), ("vectors", v)], "vectors", tolerance={F32: 2e-2, F64: 1e-8})
    with pytest.raises(AssertionError, match="not equivariant"):
        check_equivariance(lambda X, v: planes(X * torch.tensor([1, 1, 3.0], dtype=X.dtype), v), group,
                           [("points", X), ("vectors", v)], "vectors", (F64,))  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "pointnet": lambda: PointNet(0, 3, True, 0, (16, 16), (8,), 0.0),
    "deepsets": lambda: DeepSets(0, 3, True, 0, (16, 16), (8,), 0.0),
    "dgcnn": lambda: DGCNN(0, 3, True, 0, 5, (8, 8), 16, (8,), 0.0),
}


@pytest.mark.parametrize("group", [E3(), SO3()], ids=lambda g: g.name)
@pytest.mark.parametrize("name", NETS)
def test_point_networks_turn_behind_frames_and_not_without(name: str, group: Any) -> None:
    bare = NETS[name]().eval()
    check_equivariance(framed(bare, group), group, points(), "vectors", tolerance=SINGLE | {F64: 1e-9})
    check_equivariance(framed(bare, group), Sn(), [("nodes", points())], "nodes", tolerance=SINGLE | {F64: 1e-9})
    with pytest.raises(AssertionError, match="not equivariant"):
        check_equivariance(Columns(bare), group, points(), "vectors")


def test_frames_of_neighbourhoods_turn() -> None:
    local = LocalVectors(4, 6, E3())
    net = framed(PointNet(12, 3, True, 0, (16, 16), (8,), 0.0).eval(), E3(), local)
    check_equivariance(net, E3(), points(n=20), "vectors", tolerance={F32: 2e-2, F64: 1e-8})


@pytest.mark.parametrize(("order", "to"), DIMENSIONS, ids=str)
def test_linear_maps_between_tensors_move_with_the_nodes(order: int, to: int) -> None:
    kinds = {0: "invariant", 1: "nodes", 2: "graph"}
    x = torch.randn(3, *([6] * order), 2, dtype=F64)
    check_equivariance(nn.Sequential(EquivariantLinear(order, to, 2, 3)), Sn(), [(kinds[order], x)], kinds[to])


ENTRIES = [
    "gin(width=8; layers=2)", "graph-gcn(width=8; layers=2)", "graph-sage(width=8; layers=2)", "graph-gat(width=8; layers=2)",
    "pna(width=8; layers=2)", "spen(width=4; layers=2; hops=2)", "ign(width=4; layers=2)",
    "k-path(width=8; layers=2)", "contrast(backbone=gin(width=8; layers=2))",
    "frame-averaging(backbone=gin(width=8; layers=2; norm=none); group=Sn)",
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.partition("(")[0])
def test_networks_of_whole_graphs_do_not_know_the_numbering(entry: str) -> None:
    data = open_data("rings-and-cliques(graphs=30)")
    task = task_of("graph-classification").for_data(data)
    part = task.fold(data, task.plan(data, 1)[0][0]).train
    method: Any = entry_of(entry)
    method = method.inner() if method.name == "frame-averaging" else method
    schema = method.settled(part)
    net = method.module(schema["inputs"], 2, schema).eval()
    some = [g for g in part.data if g.num_nodes <= 12][:4] or part.data[:4]
    check_graphs(net, some, prepare=lambda given: method.prepare(given, schema), tolerance={F32: 1e-3, F64: 1e-9})
    with torch.no_grad():
        answers = net(Batch.from_data_list(method.prepare(some, schema)))
    assert float(answers.std(0).max()) > 1e-6  # not the same answer to every graph


def test_the_measure_is_relative_and_of_the_worst_cloud() -> None:
    X = points()
    generator = torch.Generator().manual_seed(0)
    g = Translations().random(X, generator)
    shift = g.act(torch.zeros_like(X), "points")
    wanted = float(shift.abs().max() / (100 * X).abs().max())
    found = equivariance_error(lambda X: 100 * X, Translations(), [("points", X)], "vectors", torch.Generator().manual_seed(0))
    assert found == pytest.approx(100 * wanted, rel=1e-6)
