"""Clouds, meshes and particles: reading, writing, sampling, generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.particles import ChargedParticles, GivenParticles, Particles, forces, simulate, write_particles
from latticework.data.point_sets import CAD_SHAPES, Solids, mesh_normals, rotations, sample_clouds
from latticework.data.points import Clouds, GivenPoints, PointFiles, encode, face_areas, read_one, sample_mesh, write_clouds
from latticework.testing import check_data

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def mesh(scale: tuple[float, float, float] = (1, 1, 1)) -> Clouds:
    vertices = (CUBE * np.array(scale)).astype(np.float32)
    return Clouds(("cube",), np.array([8]), vertices, faces=(CUBE_FACES,))


def same(a: Clouds, b: Clouds) -> None:
    for name in ("sizes", "xyz", "normals", "x", "parts", "y", "splits"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        assert one is None or np.array_equal(one, other), name
    assert (a.features, a.part_names, a.classes, a.groups) == (b.features, b.part_names, b.classes, b.groups)
    assert (a.faces is None) == (b.faces is None)
    assert a.faces is None or all(np.array_equal(f, g) for f, g in zip(a.faces, b.faces or (), strict=True))


# -- sampling ------------------------------------------------------------------------------------------------------------
def test_sampled_points_lie_on_their_triangles_and_have_their_normals() -> None:
    points, normals, face = sample_mesh(CUBE, CUBE_FACES, 4000, np.random.default_rng(0))
    a, b, c = (CUBE[CUBE_FACES[face, k]].astype(np.float64) for k in range(3))
    weights = np.linalg.solve(np.stack([b - a, c - a, np.cross(b - a, c - a)], 2), (points - a)[..., None])[..., 0]
    assert np.abs(weights[:, 2]).max() < 1e-6  # in the plane
    assert weights[:, :2].min() > -1e-6 and weights[:, :2].sum(1).max() < 1 + 1e-6  # within the triangle
    assert np.abs((normals * (b - a)).sum(1)).max() < 1e-6
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    assert ((points - 0.5) * normals).sum(1).min() > 0.49  # outwards: the cube's faces are wound so
    # each triangle has a twelfth of the area; the mean of a triangle is its centre
    assert np.abs(np.bincount(face, minlength=12) / 4000 - 1 / 12).max() < 0.02
    assert np.abs(points[face == 0].mean(0) - CUBE[CUBE_FACES[0]].mean(0)).max() < 0.05


def test_sampling_goes_by_area_and_passes_over_faces_without() -> None:
    vertices = (CUBE * np.array([1, 1, 9])).astype(np.float32)
    faces = np.concatenate([CUBE_FACES, [[0, 0, 1]]])
    areas, normals = face_areas(vertices, faces)
    assert areas.sum() == pytest.approx(2 + 4 * 9) and areas[-1] == 0 and (normals[-1] == 0).all()
    _, _, face = sample_mesh(vertices, faces, 2000, np.random.default_rng(1))
    assert 12 not in face
    assert np.isin(face, np.flatnonzero(areas > 4)).mean() == pytest.approx(36 / 38, abs=0.02)
    with pytest.raises(ValueError, match="no face has an area"):
        sample_mesh(vertices, faces[-1:], 5, np.random.default_rng(0))


def test_draws_depend_on_their_own_place_alone() -> None:
    two = replace(mesh(), ids=("a", "b"), sizes=np.array([8, 8]), xyz=np.concatenate([CUBE, CUBE]), faces=(CUBE_FACES,) * 2)
    many, few = sample_clouds(two, 30, 3), sample_clouds(two, 30, 2)
    assert many.ids == ("a#0", "a#1", "a#2", "b#0", "b#1", "b#2") and many.groups == ("a",) * 3 + ("b",) * 3
    assert np.array_equal(many.take([0, 1]).xyz, few.take([0, 1]).xyz)
    assert not np.array_equal(many.cloud(0)["xyz"], many.cloud(1)["xyz"])
    assert not np.array_equal(many.cloud(0)["xyz"], many.cloud(3)["xyz"])


def test_a_small_cloud_is_taken_whole_and_once() -> None:
    solids = Solids(clouds=2, points=20).read()
    assert np.array_equal(sample_clouds(solids, 20, 5).xyz, solids.xyz)
    some = sample_clouds(solids, 10, 2)
    assert list(some.sizes) == [10] * 4 and list(some.y) == [0, 0, 1, 1]
    rows = {tuple(r) for r in solids.cloud(0)["xyz"].tolist()}
    assert {tuple(r) for r in some.cloud(0)["xyz"].tolist()} <= rows and len(np.unique(some.cloud(0)["xyz"], axis=0)) == 10


def test_normals_of_vertices_point_outwards() -> None:
    assert np.allclose(((CUBE - 0.5) * mesh_normals(CUBE, CUBE_FACES)).sum(1) > 0.5, True)


# -- generators ----------------------------------------------------------------------------------------------------------
def test_solids_have_exact_normals() -> None:
    held = Solids(clouds=8, points=400, seed=3).read()
    assert np.allclose(np.linalg.norm(held.normals, axis=1), 1, atol=1e-6)
    sphere, box, cylinder, torus = (held.cloud(i) for i in range(4))
    radius = np.linalg.norm(sphere["xyz"], axis=1)
    assert np.ptp(radius) < 1e-6 and np.allclose(sphere["xyz"] / radius[:, None], sphere["normals"], atol=1e-6)
    half = np.abs(box["xyz"]).max(0)
    assert np.allclose((np.abs(box["xyz"]) * np.abs(box["normals"])).sum(1), (half * np.abs(box["normals"])).sum(1), atol=1e-6)
    side = cylinder["parts"] == 1
    assert np.ptp(np.linalg.norm(cylinder["xyz"][side, :2], axis=1)) < 1e-6
    assert (np.abs(cylinder["normals"][~side, 2]) == 1).all() and (
        cylinder["xyz"][~side, 2] * cylinder["normals"][~side, 2] > 0
    ).all()
    ring = np.linalg.norm(torus["xyz"][:, :2], axis=1)
    middle = np.pad(torus["xyz"][:, :2] / ring[:, None], ((0, 0), (0, 1)))
    # the axis of the tube lies one tube radius below each point, along its normal
    away = np.einsum("nk,nk->n", torus["normals"], middle)
    small = (torus["xyz"][:, 2] / torus["normals"][:, 2]).mean()
    assert np.allclose(torus["xyz"][:, 2], small * torus["normals"][:, 2], atol=1e-5)
    assert np.ptp(ring - small * away) < 1e-5
    assert not np.array_equal(Solids(clouds=8, seed=4).read().xyz, Solids(clouds=8, seed=3).read().xyz)


def test_rotations_are_uniform_and_proper() -> None:
    turns = rotations(3000, 0)
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-12) and np.allclose(np.linalg.det(turns), 1)
    assert np.abs(turns.mean(0)).max() < 0.05
    assert np.trace(turns, axis1=1, axis2=2).var() == pytest.approx(1, abs=0.1)  # the trace is a character: variance 1
    assert np.array_equal(turns[:5], rotations(5, 0)) and not np.allclose(turns[0], rotations(1, 1)[0])


def test_rotated_keeps_distances_and_turns_normals_along() -> None:
    plain, turned = Solids(clouds=4, points=50).read(), open_data("rotated(of=solids(clouds=4; points=50))").read()
    for i in range(4):
        a, b = plain.cloud(i), turned.cloud(i)
        (x, y), (m, n) = ((c["xyz"] - c["xyz"].mean(0)).astype(np.float64) for c in (a, b)), (a["normals"], b["normals"])
        assert np.allclose(x @ x.T, y @ y.T, atol=1e-5) and np.allclose((x * m).sum(1), (y * n).sum(1), atol=1e-5)
        assert not np.allclose(x, y, atol=0.1)


# -- particles -----------------------------------------------------------------------------------------------------------
def _leapfrog_oracle(x: Any, v: Any, q: Any, frames: int, every: int, dt: float, limit: float) -> tuple[Any, Any]:
    x, v = x.copy(), v.copy()
    saved: list[Any] = []
    v += 0.5 * dt * forces(x, q, limit)
    for step in range(1, frames * every + 1):
        x += dt * v
        if step % every == 0:
            saved.append((x.copy(), v.copy()))
        v += dt * forces(x, q, limit)
    return np.stack([s[0] for s in saved], 1), np.stack([s[1] for s in saved], 1)


@pytest.mark.parametrize("limit", [np.inf, 2.0])
def test_the_kernel_is_the_plain_leapfrog(limit: float) -> None:
    rng = np.random.default_rng(0)
    x, v, q = rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 4, 3)), rng.choice((-1.0, 1.0), (3, 4))
    for ours, theirs in zip(simulate(x, v, q, 3, 7, 1e-3, limit), _leapfrog_oracle(x, v, q, 3, 7, 1e-3, limit), strict=True):
        assert np.abs(ours - theirs).max() < 1e-12


def test_forces_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    x, q = rng.normal(size=(2, 5, 3)), rng.choice((-1.0, 1.0), (2, 5))
    found = forces(x, q, np.inf)
    for s in range(2):
        for i in range(5):
            apart = x[s, i] - np.delete(x[s], i, 0)
            pull = (q[s, i] * np.delete(q[s], i))[:, None] * apart / np.linalg.norm(apart, axis=1, keepdims=True) ** 3
            assert np.allclose(found[s, i], pull.sum(0))
    near = np.array([[[0.0, 0, 0], [1e-3, 0, 0]]])
    assert forces(near, np.ones((1, 2)))[0, 0].tolist() == [-100.0, 0, 0]


def test_momentum_and_energy_are_kept_without_clipping() -> None:
    held = ChargedParticles(systems=40, frames=5, clip=0, seed=2).read()
    momentum = held.velocities.astype(np.float64).sum(2)
    scale = np.abs(held.velocities).max()
    assert np.abs(momentum - momentum[:, :1]).max() < 1e-5 * scale
    start = ChargedParticles(systems=40, frames=2, clip=0, every=1, seed=2).read()
    # at the very start speeds are 0.5, before charges have acted for long
    assert np.abs(np.linalg.norm(start.velocities[:, 0], axis=-1) - 0.5).mean() < 0.01


def test_frames_of_charged_particles_lie_a_tenth_apart() -> None:
    held = ChargedParticles(systems=30, seed=1).read()
    assert held.positions.shape == (30, 41, 5, 3) and held.span(30, 10) == pytest.approx(1.0)
    assert set(np.unique(held.charges)) == {-1.0, 1.0}
    moved = (held.positions[:, 1] - held.positions[:, 0]) / 0.1
    assert np.median(np.abs(moved - held.velocities[:, 1])) < 0.05


# -- users' files --------------------------------------------------------------------------------------------------------
@pytest.fixture
def some() -> Clouds:
    held = Solids(clouds=6, points=12, noise=0.1).read()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(72, 2)).astype(np.float32)
    return replace(
        held, x=x, features=("red", "heat"), classes=tuple(sorted(held.classes)), y=np.array([2, 0, 1, 3, 2, -1]),
        groups=("a", "a", "b", "b", "c", "c"), splits=np.array([0, 0, 1, 1, 2, 2], np.int8),
    )  # fmt: skip


def test_a_folder_comes_back_as_it_was(some: Clouds, tmp_path: Path) -> None:
    pytest.importorskip("plyfile")
    write_clouds(some, tmp_path / "out")
    found = open_data(tmp_path / "out")
    assert found.kind == "points"
    again = found.read()
    same(again, some)
    assert again.ids[0] == "clouds/0.ply"
    write_clouds(mesh(), tmp_path / "cube.ply")
    assert open_data(tmp_path / "cube.ply").kind == "meshes"
    same(open_data(tmp_path / "cube.ply").read(), mesh())


@pytest.mark.parametrize("suffix", [".ply", ".xyz", ".npz"])
def test_each_form_comes_back_as_it_was(some: Clouds, tmp_path: Path, suffix: str) -> None:
    if suffix == ".ply":
        pytest.importorskip("plyfile")
    one = replace(some.take([2]), y=None, classes=(), groups=(), splits=None)
    (tmp_path / f"one{suffix}").write_bytes(encode(one, 0, suffix))
    again = open_data(tmp_path / f"one{suffix}").read()
    if suffix == ".xyz":  # words, of those parts that are there
        assert [again.part_names[p] for p in again.parts] == [one.part_names[p] for p in one.parts]
        again, one = replace(again, parts=None, part_names=()), replace(one, parts=None, part_names=())
    same(again, one)


@pytest.mark.parametrize("suffix", [".ply", ".xyz", ".npz"])
def test_unknown_parts_and_their_names_come_back(tmp_path: Path, suffix: str) -> None:
    if suffix == ".ply":
        pytest.importorskip("plyfile")
    cloud = Clouds(
        ("a",), np.array([3]), np.eye(3, dtype=np.float32), parts=np.array([1, -1, 0]), part_names=("door", "wall")
    )  # fmt: skip
    (tmp_path / f"a{suffix}").write_bytes(encode(cloud, 0, suffix))
    found = open_data(tmp_path / f"a{suffix}").read()
    assert found.part_names == ("door", "wall") and found.parts.tolist() == [1, -1, 0]
    for name in ("left arm", "a,b", "1.5", "-1", "nan"):
        with pytest.raises(UserError, match="no single word"):
            encode(replace(cloud, part_names=(name, "wall")), 0, ".xyz")


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 1000), suffix=st.sampled_from([".xyz", ".npz", ".ply"]), parts=st.booleans())
def test_any_cloud_comes_back(n: int, seed: int, suffix: str, parts: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, 3, n)) if parts else None
    names = tuple(str(p) for p in np.unique(labels)) if labels is not None else ()
    cloud = Clouds(
        ("a",), np.array([n]), (rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32),
        parts=None if labels is None else np.unique(labels, return_inverse=True)[1].astype(np.int64), part_names=names,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("cloud") / f"a{suffix}"
    file.write_bytes(encode(cloud, 0, suffix))
    found = open_data(file).read()
    assert np.array_equal(found.xyz, cloud.xyz)
    assert (found.parts is None) == (cloud.parts is None)
    assert cloud.parts is None or np.array_equal(found.parts, cloud.parts)


ASCII = """ply
format ascii 1.0
element vertex 4
property float x
property float y
property float z
property uchar red
property int part
element face 2
property list uchar int vertex_indices
end_header
0 0 0 255 3
1 0 0 10 3
1 1 0 20 7
0 1 0 30 7
3 0 1 2
4 0 1 2 3
"""


def test_an_ascii_ply_and_faces_with_four_corners(tmp_path: Path) -> None:
    pytest.importorskip("plyfile")
    (tmp_path / "a.ply").write_text(ASCII)
    found = open_data(tmp_path / "a.ply")
    held = found.read()
    assert found.kind == "meshes" and held.features == ("red",) and held.part_names == ("3", "7")
    assert held.faces is not None and held.faces[0].tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
    assert open_data(tmp_path / "a.ply", {"label": "none"}).read().features == ("red", "part")
    assert open_data(tmp_path / "a.ply", {"label": "red"}).read().part_names == ("10", "20", "30", "255")
    assert isinstance(open_data(tmp_path / "a.ply", {"label": "red"}).label, str)  # a value's own label is still there


def test_the_columns_of_an_xyz(tmp_path: Path) -> None:
    def read(text: str) -> Any:
        (tmp_path / "a.xyz").write_text(text)
        return open_data(tmp_path / "a.xyz").read()

    assert read("0 0 0\n1 2 3\n").xyz.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert read("0,0,0\n1,2,3\n").xyz.tolist() == [[0, 0, 0], [1, 2, 3]]
    held = read("0 0 0 1 0 0\n1 2 3 0 0.6 0.8\n")
    assert held.normals.tolist() == [[1, 0, 0], [0, np.float32(0.6), np.float32(0.8)]]
    assert "taken for normals" in held.notes[0]
    held = read("0 0 0 9 0 0\n1 2 3 0 5 5\n")
    assert held.normals is None and held.features == ("c4", "c5", "c6") and "taken for features" in held.notes[0]
    held = read("# a comment\n# x y z heat part\n\n0 0 0 9 door\n1 2 3 0 wall\n")
    assert held.features == ("heat",) and held.part_names == ("door", "wall") and held.parts.tolist() == [0, 1]
    assert read("z y x\n0 1 2\n3 4 5\n").xyz.tolist() == [[2, 1, 0], [5, 4, 3]]


def test_class_folders_splits_and_tables(tmp_path: Path) -> None:
    for place in ("train/cat/1.xyz", "train/dog/1.xyz", "test/cat/2.xyz", "valid/dog/3.xyz"):
        (tmp_path / "s" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / place).write_text("0 0 0\n1 0 0\n")
    held = open_data(tmp_path / "s").read()
    assert held.classes == ("cat", "dog") and held.ids[0] == "test/cat/2.xyz"
    assert held.splits.tolist() == [2, 0, 0, 1] and open_data(tmp_path / "s").facts()["split"] == "2/1/1"
    plain = open_data(tmp_path / "s" / "train").read()
    assert plain.classes == ("cat", "dog") and plain.splits is None and plain.y.tolist() == [0, 1]
    (tmp_path / "s" / "clouds.csv").write_text("file,label,group\ntrain/cat/1.xyz,cat,room 1\ntest/cat/2.xyz,,room 2\n")
    held = open_data(tmp_path / "s").read()
    assert (
        held.ids == ("train/cat/1.xyz", "test/cat/2.xyz") and held.groups == ("room 1", "room 2") and held.y.tolist() == [0, -1]
    )


def test_kinds_are_told_by_headers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", xyz=np.zeros((3, 3)), heat=np.arange(3))
    assert open_data(tmp_path / "a.npz").kind == "points"
    np.savez(tmp_path / "b.npz", vertices=CUBE, faces=CUBE_FACES)
    assert open_data(tmp_path / "b.npz").kind == "meshes"
    np.savez(tmp_path / "c.npz", positions=np.zeros((1, 2, 3, 3)), velocities=np.zeros((1, 2, 3, 3)))
    assert open_data(tmp_path / "c.npz").kind == "particles"
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 3)))
    with pytest.raises(UserError, match=r"cannot tell what|no array|expected"):
        open_data(tmp_path / "d.npz").read()


def test_a_broken_file_among_others_is_named(tmp_path: Path) -> None:
    for i, (name, content) in enumerate(
        {"a.ply": b"", "b.npz": b"junk", "c.ply": b"ply\nformat ascii 1.0\n", "d.ply": b"\x00\x01\x02"}.items()
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / name).write_bytes(content)
        if name.endswith(".ply"):
            for path in (folder, folder / name):
                with pytest.raises(UserError, match=rf"{name} (cannot be read as PLY|has no element|holds no point)"):
                    open_data(path).read()
        (folder / "z.xyz").write_text("0 0 0\n1 2 3\n")
        with pytest.raises(UserError, match=rf"{name} (cannot be read|has no element|holds no point)"):
            open_data(folder).read()


def test_the_digest_is_that_of_the_content(some: Clouds, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.xyz").write_text("0 0 0\n1 2 3\n")
    first = open_data(tmp_path / "x").digest()
    (tmp_path / "x").rename(tmp_path / "y")
    assert open_data(tmp_path / "y").digest() == first
    (tmp_path / "y" / "a.xyz").write_text("0 0 0\n1 2 4\n")
    assert open_data(tmp_path / "y").digest() != first
    assert GivenPoints.hold(some).digest() != GivenPoints.hold(replace(some, y=None, classes=())).digest()
    assert GivenPoints.hold(mesh()).kind == "meshes" and open_data(some).kind == "points"


def test_the_check_says_what_was_understood(some: Clouds, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    for name, text in (("a", "0 0 0\n1 0 0\n1 0 0\n"), ("b", "1 0 0\n0 0 0\n1 0 0\n"), ("c", "5 5 5\n"), ("d", "2 2 2\n2 2 2\n")):
        (tmp_path / f"{name}.xyz").write_text(text)
    status, out, _ = command("data", "check", tmp_path)
    assert status == 0
    for line in (
        "4 clouds of 1 to 3 (median 2) points", "coordinates: x 0 to 5, y 0 to 5, z 0 to 5; extents 0 to 1",
        "1 cloud with exactly the points of an earlier one; all are kept", "points that stand where another of their cloud does: 3",
        "2 clouds without extent (one point, or all points equal)", "no cloud has a class",
    ):  # fmt: skip
        assert line in out, out
    lines = "\n".join(GivenPoints.hold(some).check())
    assert "5 labelled, 4 classes: box 1, cylinder 1, sphere 2, torus 1" in lines and "3 groups" in lines


def test_given_clouds_are_checked() -> None:
    one = Clouds(("a",), np.array([2]), np.zeros((2, 3), np.float32))
    for wrong, says in (
        (replace(one, sizes=np.array([3])), "sizes"), (replace(one, sizes=np.array([0])), "sizes"),
        (replace(one, xyz=np.array([[0, 0, np.nan], [0, 0, 0]], np.float32)), "not finite"),
        (replace(one, normals=np.zeros((1, 3), np.float32)), "normals has 1 rows"),
        (Clouds(("a", "a"), np.array([1, 1]), np.zeros((2, 3), np.float32)), "same id"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            GivenPoints.hold(wrong)


def test_particles_come_back_and_are_checked(tmp_path: Path) -> None:
    held = ChargedParticles(systems=3, frames=3, every=2).read()
    write_particles(held, tmp_path / "p")
    again = open_data(tmp_path / "p").read()
    for name in ("positions", "velocities", "charges", "times"):
        assert np.array_equal(getattr(held, name), getattr(again, name))
    assert GivenParticles.hold(held).facts()["systems"] == 3
    with pytest.raises(UserError, match=r"velocities is float32 \[3, 1, 5, 3\]"):
        GivenParticles.hold(Particles(held.ids, held.positions, held.velocities[:, :1]))


def test_plyfile_is_asked_for_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "a.ply").write_text(ASCII)
    monkeypatch.setitem(sys.modules, "plyfile", None)
    with pytest.raises(UserError, match=r"need the extra 'points': pip install 'latticework\[points\]'"):
        read_one(tmp_path / "a.ply")
    assert PointFiles.recognises(tmp_path / "a.ply") is False  # a mesh, told without it


@pytest.mark.parametrize(
    "name", ["solids(clouds=8; points=16)", "sampled(of=solids(clouds=4); points=20; clouds=2)",
             "rotated(of=solids(clouds=4; points=16))", "charged-particles(systems=4; frames=3; every=2)"],
)  # fmt: skip
def test_generators_and_derived_sets(name: str) -> None:
    check_data(name)


def test_the_published_meshes(mirror: Callable[[str], Path]) -> None:
    mirror("cad-shapes")
    check_data("cad-shapes:bunny")
    facts = open_data("cad-shapes").facts()
    assert (facts["clouds"], facts["points"], facts["faces"]) == (20, len(open_data("cad-shapes").read().xyz), 143611)
    held = open_data("sampled(of=cad-shapes; points=64; clouds=2)").read()
    assert (
        len(held) == 40
        and set(held.groups) == set(CAD_SHAPES)
        and np.allclose(np.linalg.norm(held.normals, axis=1), 1, atol=1e-5)
    )
