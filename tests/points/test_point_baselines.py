"""The baselines on points: oracles of what they compute, and the batteries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.data.point_sets import rotations
from latticework.points.baselines import (
    DGCNN,
    EGNN,
    ConstantNormal,
    DeepSets,
    EdgeConv,
    ParticleGNN,
    PointNet,
    pca_normals,
)  # fmt: skip
from latticework.points.network import (
    Batch,
    PointBackbone,
    PointModel,
    collate,
    gather,
    inputs_of,
    nearest,
    normed,
    pooled,
    random_rotations,
    scaled,
    turn,
    turned,
)  # fmt: skip
from latticework.testing import check_method

FINGERPRINTS = Path(__file__).parent / "fingerprints.json"
SOLIDS = "solids(clouds=12; points=16)"
PARTICLES = "charged-particles(systems=12; frames=4; every=5)"
NETS = {
    "pointnet": lambda per_point, norm=True: PointNet(2, 5, per_point, 0, (8, 16), (8,), 0.0, norm),
    "deepsets": lambda per_point, norm=True: DeepSets(2, 5, per_point, 0, (8, 8), (8,), 0.0, norm),
    "dgcnn": lambda per_point, norm=True: DGCNN(2, 5, per_point, 0, 4, (8, 8), 16, (8,), 0.0, norm),
}


def cloud(b: int = 2, n: int = 11, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(b, n, 5, generator=generator, dtype=torch.float64)
    return draw[..., :3], draw[..., 3:]


# -- planes --------------------------------------------------------------------------------------------------------------
def test_the_normals_of_a_plane_are_exact() -> None:
    rng = np.random.default_rng(0)
    turn_by = rotations(1, 3)[0]
    flat = np.pad(rng.normal(size=(60, 2)), ((0, 0), (0, 1))) @ turn_by.T + 5
    assert np.abs(np.abs(pca_normals(flat, 8) @ turn_by[:, 2]) - 1).max() < 1e-12


def test_normals_of_planes_turn_with_the_cloud() -> None:
    rng = np.random.default_rng(1)
    xyz, turn_by = rng.normal(size=(50, 3)), rotations(1, 4)[0]
    a, b = pca_normals(xyz, 10) @ turn_by.T, pca_normals(xyz @ turn_by.T + 3, 10)
    assert np.abs(np.abs((a * b).sum(1)) - 1).max() < 1e-8


@pytest.mark.parametrize("xyz", [np.zeros((1, 3)), np.ones((5, 3)), np.arange(9.0).reshape(3, 3)])
def test_degenerate_clouds_get_some_unit_normal(xyz: Any) -> None:
    assert np.allclose(np.linalg.norm(pca_normals(xyz, 16), axis=1), 1)


def test_the_constant_normal_is_the_best_one() -> None:
    data = open_data("solids(clouds=12; points=30)")
    task = task_of("normal-estimation").for_data(data)
    train = task.fold(data, "random-0").train
    model = ConstantNormal().fit(train, None, Run(task=task))
    y = train.truth.y.astype(np.float64)
    ours = 1 - (y @ model.direction.double().numpy()) ** 2
    for direction in rotations(200, 0)[:, 0]:
        assert ours.mean() <= (1 - (y @ direction) ** 2).mean() + 1e-9


# -- blocks --------------------------------------------------------------------------------------------------------------
def test_nearest_rows_agree_with_a_tree() -> None:
    from scipy.spatial import cKDTree

    pos, _ = cloud(3, 40)
    found = nearest(pos, 6)
    for b in range(3):
        expected = cKDTree(pos[b].numpy()).query(pos[b].numpy(), 6)[1]
        assert np.array_equal(found[b].numpy(), expected)
    assert torch.equal(nearest(pos, 5, own=False), found[:, :, 1:])


def test_nearest_rows_keep_to_the_mask_and_small_clouds() -> None:
    pos, _ = cloud(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 3:] = False
    found = nearest(pos, 5, mask)
    assert (found[1, :3] < 3).all()  # and the point itself where there are no more
    assert torch.equal(found[1, :3, 3:], torch.arange(3)[:, None].expand(3, 2))
    assert nearest(pos, 50).shape == (2, 9, 9)


def test_batches_scale_and_turn() -> None:
    clouds = [Data(pos=torch.randn(n, 3) * 4 + 7, velocity=torch.randn(n, 3), x=torch.randn(n, 1)) for n in (5, 8)]
    schema = {"output": "position", "vectors": ["velocity"], "features": ["charge"], "classes": [], "parts": []}
    assert inputs_of(schema) == 4
    batch = collate(clouds, schema)
    assert batch.mask is not None and batch.mask.sum(1).tolist() == [5, 8] and batch.pos.shape == (2, 8, 3)
    held = scaled(batch)
    for i, n in enumerate((5, 8)):
        mine = held.pos[i, :n]
        assert mine.mean(0).abs().max() < 1e-5 and mine.square().sum(1).mean() == pytest.approx(1, abs=1e-5)
        assert (held.pos[i, n:] == 0).all()
    dirty = batch._replace(pos=batch.pos.masked_fill(~batch.mask[..., None], torch.nan))
    assert torch.equal(scaled(dirty).pos, held.pos)
    rotation = random_rotations(2, torch.Generator().manual_seed(0))
    moved = turned(batch, rotation, 1)
    assert moved.x is not None and batch.x is not None
    assert torch.allclose(moved.pos[1, 3], rotation[1] @ batch.pos[1, 3], atol=1e-5)
    assert torch.allclose(moved.x[0, 2, :3], rotation[0] @ batch.x[0, 2, :3], atol=1e-5)
    assert torch.equal(moved.x[..., 3:], batch.x[..., 3:])
    assert turn(torch.randn(2, 4, 6), rotation).shape == (2, 4, 6)
    assert torch.linalg.det(rotation).allclose(torch.ones(2), atol=1e-5)
    assert (scaled(Batch(torch.full((1, 4, 3), 2.0), None, None)).pos == 0).all()  # all points equal: no size to divide by


@pytest.mark.parametrize("how", ["max", "mean", "sum"])
def test_pools_leave_out_what_is_not_there(how: Any) -> None:
    h = torch.randn(2, 6, 3)
    mask = torch.arange(6)[None] < torch.tensor([6, 2])[:, None]
    assert torch.allclose(pooled(h, mask, how)[1:], pooled(h[1:, :2], None, how), atol=1e-6)
    assert torch.allclose(pooled(h, mask, how)[:1], pooled(h[:1], None, how), atol=1e-6)


def test_batch_norm_counts_the_rows_that_are_there() -> None:
    norm = nn.BatchNorm1d(3).train()
    h = torch.randn(2, 6, 3)
    mask = torch.arange(6)[None] < torch.tensor([6, 2])[:, None]
    out = normed(h, norm, mask)
    assert torch.allclose(out[mask].mean(0), torch.zeros(3), atol=1e-6) and (out[~mask] == 0).all()


def test_an_edge_convolution_is_the_maximum_over_plain_edges() -> None:
    h, _ = cloud(2, 9)
    conv = EdgeConv(3, 5, norm=False).double()
    index = nearest(h, 4)
    edges = torch.cat([gather(h, index) - h[:, :, None], h[:, :, None].expand(-1, -1, 4, -1)], 3)
    weight = torch.cat([conv.apart.weight, conv.own.weight], 1)
    plain = F.leaky_relu(edges @ weight.T + conv.own.bias, 0.2).amax(2)
    assert (conv(h, index) - plain).abs().max() < 1e-12


# -- properties of the networks ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("per_point", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_the_order_of_points_does_not_matter(name: str, per_point: bool) -> None:
    net = NETS[name](per_point).double().eval()
    pos, x = cloud()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    out, again = net(pos, x), net(pos[:, order], x[:, order])
    assert (again - (out[:, order] if per_point else out)).abs().max() < 1e-10
    assert out.shape == ((2, 11, 5) if per_point else (2, 5))


@pytest.mark.parametrize("per_point", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_padding_changes_nothing(name: str, per_point: bool) -> None:
    net = NETS[name](per_point).double().eval()
    pos, x = cloud()
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 7:] = False
    out = net(pos, x, mask)
    alone = net(pos[1:, :7], x[1:, :7])
    assert ((out[1:, :7] if per_point else out[1:]) - alone).abs().max() < 1e-10
    pos[1, 7:], x[1, 7:] = 1e3, -1e3
    other = net(pos, x, mask)
    assert ((other - out)[mask] if per_point else other - out).abs().max() < 1e-10


def _systems(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    charge = torch.randint(0, 2, (3, 5, 1), generator=generator) * 2.0 - 1
    return draw[..., :3], torch.cat([draw[..., 3:], charge.double()], 2)


def _turn_all(x: Tensor, rotation: Tensor) -> Tensor:
    return torch.cat([x[..., :3] @ rotation.T, x[..., 3:]], 2)


def test_egnn_turns_and_moves_with_the_particles() -> None:
    net = EGNN(4, 1, 16, 3).double()
    for along in net.along:
        nn.init.xavier_uniform_(along[2].weight)  # large steps, or there is little to see
    pos, x = _systems()
    out = net(pos, x)
    for seed, flip in ((0, 1.0), (1, -1.0)):
        rotation = torch.from_numpy(rotations(1, seed)[0]) * flip
        assert (net(pos @ rotation.T + 3, _turn_all(x, rotation)) - out @ rotation.T).abs().max() < 1e-10
    single = EGNN(4, 1, 16, 3)
    rotation = torch.from_numpy(rotations(1, 5)[0]).float()
    pos, x = pos.float(), x.float()
    assert (single(pos @ rotation.T, _turn_all(x, rotation)) - single(pos, x) @ rotation.T).abs().max() < 1e-5


def test_the_plain_network_does_not_turn() -> None:
    net = ParticleGNN(4, 3, 1, 16, 2).double()
    pos, x = _systems()
    rotation = torch.from_numpy(rotations(1, 0)[0])
    assert (net(pos @ rotation.T, _turn_all(x, rotation)) - net(pos, x) @ rotation.T).abs().max() > 1e-3


@pytest.mark.parametrize("net", [EGNN(4, 1, 8, 2).double(), ParticleGNN(4, 3, 1, 8, 2).double()])
def test_particles_in_any_order_and_padded(net: PointBackbone) -> None:
    pos, x = _systems()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert (net(pos[:, order], x[:, order]) - net(pos, x)[:, order]).abs().max() < 1e-10
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[2, 3:] = False
    assert (net(pos, x, mask)[2:, :3] - net(pos[2:, :3], x[2:, :3])).abs().max() < 1e-10


def test_one_round_of_egnn_by_hand() -> None:
    net = EGNN(4, 1, 8, 1).double()
    pos, x = (t[:1, :3] for t in _systems())
    h = net.embed(torch.cat([x[0, :, :3].norm(dim=1, keepdim=True), x[0, :, 3:]], 1))
    expected = []
    for i in range(3):
        step = net.speed[0](h[i]) * x[0, i, :3]
        for j in {0, 1, 2} - {i}:
            apart = pos[0, i] - pos[0, j]
            message = net.message[0](torch.cat([h[i], h[j], apart.square().sum()[None], x[0, i, 3:] * x[0, j, 3:]]))
            step = step + apart * net.along[0](message) / 2
        expected.append(step)
    assert (net(pos, x)[0] - torch.stack(expected)).abs().max() < 1e-12


# -- answering -----------------------------------------------------------------------------------------------------------
def test_large_clouds_are_answered_in_pieces_each_point_once() -> None:
    class Echo(PointBackbone):
        per_point = True

        def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            assert pos.shape[1] < 20
            return pos

    method: Any = entry_of("pointnet(scale=none)")
    schema = {"output": "normal", "vectors": [], "features": [], "classes": [], "parts": [], "points": 8, "turned": False}
    clouds = [Data(pos=torch.randn(n, 3)) for n in (5, 33, 16)]
    found = PointModel(method, schema, Echo()).outputs(clouds)
    assert torch.allclose(found.float(), torch.cat([c.pos for c in clouds]))


def test_positions_are_not_asked_of_scaled_clouds() -> None:
    data = open_data(PARTICLES)
    task = task_of("n-body(start=0; horizon=1)").for_data(data)
    fold = task.fold(data, "random-0")
    with pytest.raises(UserError, match="scale=cloud would lose where the points are"):
        entry_of("egnn(scale=cloud; epochs=1; width=4)").fit(fold.train, None, Run(task=task))


def test_clouds_that_come_turned_are_trained_turned() -> None:
    """A net that sees every pose scores alike in all of them; one that does not cannot."""
    data = open_data("solids(clouds=24; points=24; seed=1)")
    gaps = {}
    for poses in ("I/SO3", "SO3/SO3"):
        task: Any = task_of(f"normal-estimation(poses={poses}; valid=0)").for_data(data)
        fold = task.fold(data, "random-0")
        run = Run(task=task)
        with run.seeded():
            method = entry_of("pointnet(widths=[16,32]; head=[16]; dropout=0; epochs=60; lr=0.01)")
            model = method.fit(fold.train, None, run)
        still, moved = (task.part(task.drawn(data.read(), np.arange(24), 0), fold.test.schema, [word]) for word in ("I", "SO3"))
        errors = [task.score(task.answer(model, p.blind(), run), p, run)[0].value for p in (still, moved)]
        gaps[poses] = errors[1] - errors[0]
    assert gaps["I/SO3"] > 0.1 and abs(gaps["SO3/SO3"]) < 0.1


# -- batteries -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "data", "task"),
    [
        ("majority-points", SOLIDS, "point-classification"),
        ("constant-normal", SOLIDS, "normal-estimation"),
        ("pca-normals(k=6)", SOLIDS, "normal-estimation"),
        ("pointnet(widths=[8,8,16]; head=[8]; epochs=2; batch=4)", SOLIDS, "point-classification"),
        ("pointnet(widths=[8,8,16]; head=[8]; epochs=2; batch=4)", SOLIDS, "normal-estimation(poses=SO3/SO3)"),
        ("deepsets(widths=[8,8]; head=[8]; epochs=2; batch=4; pool=mean)", SOLIDS, "point-classification(normals=true)"),
        ("dgcnn(widths=[8,8]; whole=16; head=[8]; k=4; epochs=2; batch=4)", SOLIDS, "normal-estimation"),
        ("constant-velocity", PARTICLES, "n-body(start=0; horizon=2)"),
        ("particle-gnn(width=8; layers=2; epochs=2; batch=4)", PARTICLES, "n-body(start=0; horizon=2)"),
        ("egnn(width=8; layers=2; epochs=2; batch=4)", PARTICLES, "n-body(start=0; horizon=2)"),
    ],
)  # fmt: skip
def test_method(name: str, data: str, task: str) -> None:
    check_method(entry_of(name), data, task, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("sizes", [(1, 3, 16), (2, 2, 2)])
def test_clouds_of_one_point_and_equal_points(sizes: tuple[int, ...]) -> None:
    """They have no shape, but nothing breaks, in training or after."""
    from latticework.data.points import Clouds, GivenPoints

    counts = np.array(sizes * 4)
    rng = np.random.default_rng(0)
    xyz = np.concatenate([np.full((n, 3), i, np.float32) if i % 2 else rng.normal(size=(n, 3)) for i, n in enumerate(counts)])
    normals = np.tile(np.array([0, 0, 1], np.float32), (len(xyz), 1))
    clouds = Clouds(
        tuple(f"c{i}" for i in range(12)), counts, xyz.astype(np.float32), normals, y=np.arange(12) % 2, classes=("a", "b")
    )
    data = GivenPoints.hold(clouds)
    for task_name in ("point-classification(valid=0)", "normal-estimation(valid=0)"):
        task: Any = task_of(task_name).for_data(data)
        fold = task.fold(data, "random-0")
        for name in ("pointnet(widths=[8,8]; head=[4]; epochs=1)", "dgcnn(widths=[8]; whole=8; head=[4]; epochs=1)"):
            run = Run(task=task)
            with run.seeded():
                model = entry_of(name).fit(fold.train, None, run)
            task.score(task.answer(model, fold.test.blind(), run), fold.test, run)


def test_real_normals_of_planes(mirror: Any) -> None:
    mirror("cad-shapes")
    data = open_data("cad-shapes:torus")
    task: Any = task_of("normal-estimation(held_out=samples; clouds=2)").for_data(data)
    test = task.fold(data, "random-0").test
    found = np.concatenate([pca_normals(c.pos.numpy(), 16) for c in test.data])
    assert task.score(found, test, None)[0].value < 0.05
