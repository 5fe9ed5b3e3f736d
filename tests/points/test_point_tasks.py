"""Point classification, normal estimation and n-body: folds, poses, scores, and the commands as a user types them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import UserError
from latticework.core.task import Part
from latticework.data.particles import ChargedParticles
from latticework.data.point_sets import Solids, rotations
from latticework.data.points import GivenPoints, group_of, write_clouds
from latticework.points.tasks import NBody, NormalEstimation, PointClassification, cut_groups, fold_groups
from latticework.testing import check_task

SOLIDS = "solids(clouds=24; points=24)"
GROUPED = "sampled(of=solids(clouds=16; points=60); points=20; clouds=3)"


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("point-classification", SOLIDS), ("point-classification(poses=I/I,I/SO3; points=10)", GROUPED),
        ("point-classification(protocol=folds; folds=3; normals=true)", GROUPED), ("normal-estimation(poses=SO3/SO3)", SOLIDS),
        ("normal-estimation(poses=I/I,I/SO3; points=12; clouds=2)", GROUPED),
        ("normal-estimation(held_out=samples; points=12; clouds=2)", SOLIDS),
        ("n-body(start=1; horizon=2)", "charged-particles(systems=20; frames=5; every=5)"),
    ],
)  # fmt: skip
def test_battery(task: str, data: str) -> None:
    check_task(task, data)


class Leaky(NormalEstimation):
    """A task that leaves the true normals in what a method sees."""

    name: ClassVar[str] = "normal-estimation"

    def schema_for(self, clouds: Any) -> dict[str, Any]:
        return super().schema_for(clouds) | {"vectors": ["normal"]}


def test_a_planted_leak_is_caught() -> None:
    with pytest.raises(AssertionError, match="the truth of the test part can be read"):
        check_task(Leaky(), "solids(clouds=4; points=24)")


# -- splits --------------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=20), classes=st.integers(1, 3), number=st.integers(0, 20),
    valid=st.sampled_from([0.0, 0.15, 0.3]),
)  # fmt: skip
def test_a_draw_keeps_groups_whole_and_parts_filled(sizes: list[int], classes: int, number: int, valid: float) -> None:
    groups = [f"g{g}" for g, n in enumerate(sizes) for _ in range(n)]
    strata = np.array([g % classes for g, n in enumerate(sizes) for _ in range(n)])
    part = cut_groups(groups, strata, (valid, 0.25), number, 7)
    for g in range(len(sizes)):
        assert len({int(p) for p, name in zip(part, groups, strict=True) if name == f"g{g}"}) == 1
    assert set(strata[part == 0]) == set(strata)  # every class is trained on
    if len(sizes) > classes + 1:
        assert (part == 2).any() and (valid == 0) == (not (part == 1).any())
    assert np.array_equal(part, cut_groups(groups, strata, (valid, 0.25), number, 7))


def test_folds_test_every_group_once() -> None:
    groups = [f"g{i // 2}" for i in range(24)]
    strata = np.repeat([0, 1], 12)
    tests = np.zeros(24, int)
    for number in range(4):
        part = fold_groups(groups, strata, 4, 0.2, number, 3)
        tests += part == 2
        for name in set(groups):
            assert len({int(p) for p, g in zip(part, groups, strict=True) if g == name}) == 1
        assert (part == 1).any()
    assert (tests == 1).all()


def test_a_fold_holds_out_whole_shapes() -> None:
    data = open_data(GROUPED)
    held = dict(zip(data.read().ids, group_of(data.read()), strict=True))
    task = NormalEstimation(points=0).for_data(data)
    fold = task.fold(data, "random-1")
    parts = [
        {held[i.split("#")[0] + "#" + i.split("#")[1]] for i in p.query.ids} for p in (fold.train, fold.valid, fold.test) if p
    ]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2] and all(parts)


def test_new_samples_are_of_the_same_shapes_and_other_points() -> None:
    task = NormalEstimation(points=12, clouds=2, held_out="samples")
    fold = task.fold(open_data(SOLIDS), "random-0")
    assert fold.train.query.ids == fold.test.query.ids
    assert all(not np.array_equal(a.pos, b.pos) for a, b in zip(fold.train.data, fold.test.data, strict=True))
    other = task.fold(open_data(SOLIDS), "random-1")
    assert not np.array_equal(other.train.data[0].pos, fold.train.data[0].pos)


def test_the_own_split_is_taken_where_there_is_one() -> None:
    clouds = Solids(clouds=12, points=8).read()
    data = GivenPoints.hold(replace(clouds, splits=np.repeat([0, 2, 1], 4).astype(np.int8)))
    task = PointClassification().for_data(data)
    assert task.protocol == "given" and task.plan(data, 2) == [("given", 0), ("given", 1)]
    fold = task.fold(data, "given")
    assert fold.train.query.ids == clouds.ids[:4] and fold.test.query.ids == clouds.ids[4:8]
    assert fold.valid is not None and fold.valid.query.ids == clouds.ids[8:]
    assert len(task.fold(data, "all").train.query) == 8
    two = GivenPoints.hold(replace(clouds, splits=np.repeat([0, 0, 2], 4).astype(np.int8)))
    fold = PointClassification(valid=0.3).for_data(two).fold(two, "given")
    assert fold.valid is not None and not set(fold.valid.query.ids) & set(fold.train.query.ids)


def test_clouds_without_a_class_are_left_out() -> None:
    clouds = Solids(clouds=16, points=8).read()
    data = GivenPoints.hold(replace(clouds, y=np.where(np.arange(16) < 12, clouds.y, -1)))
    fold = PointClassification().for_data(data).fold(data, "random-0")
    seen = [i for p in (fold.train, fold.valid, fold.test) if p for i in p.query.ids]
    assert sorted(seen) == sorted(clouds.ids[:12])


# -- poses ---------------------------------------------------------------------------------------------------------------
def test_poses_turn_clouds_and_their_truth_together() -> None:
    data = open_data(SOLIDS)
    task = NormalEstimation(poses=("I/I", "I/SO3")).for_data(data)
    test = task.fold(data, "random-0").test
    half = len(test.data) // 2
    turns = rotations(half, 0, 2)
    normals = test.truth.y.reshape(2, half, 24, 3)
    for i in range(half):
        assert np.allclose(test.data[i].pos @ turns[i].T, test.data[half + i].pos, atol=1e-5)
        assert np.allclose(normals[0, i] @ turns[i].T, normals[1, i], atol=1e-5)
    assert test.query.ids[0].endswith("(I)") and test.query.ids[half].endswith("(SO3)")
    train = task.fold(data, "random-0").train
    assert train.schema["turned"] is False
    assert NormalEstimation(poses="SO3/SO3").fold(data, "random-0").train.schema["turned"] is True


def test_a_score_says_its_pose_where_several_are_asked() -> None:
    data = open_data(SOLIDS)
    task = NormalEstimation(poses=("I/I", "I/SO3")).for_data(data)
    test = task.fold(data, "random-0").test
    answer = test.truth.y.astype(np.float64).copy()
    answer[len(answer) // 2 :] = np.roll(answer[len(answer) // 2 :], 1, axis=1)
    scores = [s for s in task.score(answer, test, None) if s.metric == "1-cos2" and "slice" not in s.at]
    assert [s.at for s in scores] == [{"pose": "I/I"}, {"pose": "I/SO3"}]
    assert scores[0].value == pytest.approx(0, abs=1e-7) and scores[1].value > 0.3
    assert task.headline(task.score(answer, test, None)) == scores[0].value
    one = NormalEstimation().for_data(data)
    assert one.score(one.fold(data, "random-0").test.truth.y, one.fold(data, "random-0").test, None)[0].at == {}


def test_poses_that_train_differently_are_refused() -> None:
    for poses, says in (("I/SO2", "poses are some of"), (("I/I", "SO3/SO3"), "train differently"), ((), "poses are some of")):
        with pytest.raises(UserError, match=says):
            NormalEstimation.make({"poses": poses})


# -- scores --------------------------------------------------------------------------------------------------------------
def test_the_error_of_normals_knows_no_sign_and_no_length() -> None:
    data = open_data(SOLIDS)
    task = NormalEstimation().for_data(data)
    test = task.fold(data, "random-0").test
    truth = test.truth.y.astype(np.float64)
    sign = np.random.default_rng(0).choice((-3.0, 0.1), (len(truth), 1))
    values = {s.metric: s.value for s in task.score(sign * truth, test, None) if not s.at}
    assert values["1-cos2"] == pytest.approx(0, abs=1e-6) and values["angle"] == pytest.approx(0, abs=0.2)
    values = {s.metric: s.value for s in task.score(np.zeros_like(truth), test, None) if not s.at}
    assert values == {"1-cos2": 1.0, "angle": 90.0}
    across = np.cross(truth, np.random.default_rng(1).normal(size=truth.shape))
    both = truth + across / np.linalg.norm(across, axis=1, keepdims=True)  # 45 degrees away
    values = {s.metric: s.value for s in task.score(both, test, None) if not s.at}
    assert values["1-cos2"] == pytest.approx(0.5, abs=1e-6) and values["angle"] == pytest.approx(45, abs=1e-3)


def test_the_mean_squared_error_of_standing_still() -> None:
    data = ChargedParticles(systems=20, frames=5, every=5)
    task = NBody(start=1, horizon=2).for_data(data)
    assert (task.train, task.valid, task.test) == (10, 5, 5)  # 3,000 to 2,000 to 2,000 of twenty
    test = task.fold(data, "random-0").test
    still = np.concatenate([d.pos.numpy() for d in test.data])
    held = data.read()
    rows = [int(i) for i in test.query.ids]
    expected = ((held.positions[rows, 1] - held.positions[rows, 3]) ** 2).mean()
    assert task.score(still, test, None)[0].value == pytest.approx(float(expected), rel=1e-5)
    assert test.schema["span"] == pytest.approx(0.01)


# -- errors --------------------------------------------------------------------------------------------------------------
def _given(**changes: Any) -> Dataset:
    return GivenPoints.hold(replace(Solids(clouds=8, points=6).read(), **changes))


@pytest.mark.parametrize(
    ("task", "changes", "says"),
    [
        (PointClassification(), {"y": None, "classes": ()}, "no cloud has a class; put each file into a folder"),
        (PointClassification(), {"y": np.zeros(8, np.int64), "classes": ("a",)}, "all clouds have one class"),
        (PointClassification(normals=True), {"normals": None}, "have no normals; leave out"),
        (PointClassification(protocol="given"), {}, "bring no split of their own"),
        (PointClassification(protocol="folds", folds=9), {}, "8 groups cannot make 9 folds"),
        (NormalEstimation(), {"normals": None}, "no normals to learn from; add columns nx ny nz, or bring meshes"),
        (NormalEstimation(), {"groups": ("a",) * 4 + ("b",) * 4}, "2 shapes cannot be cut into train, valid and test"),
        (NormalEstimation(held_out="samples"), {}, "it needs meshes, or clouds of more than"),
    ],
)  # fmt: skip
def test_data_without_what_is_asked(task: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        task.for_data(_given(**changes))


def test_a_normal_of_length_zero_is_named() -> None:
    normals = Solids(clouds=8, points=6).read().normals.copy()
    normals[7] = 0
    with pytest.raises(UserError, match="'box 1' has a normal of length 0"):
        NormalEstimation(test=0.6).fold(_given(normals=normals), "all")


def test_answers_of_another_shape_are_refused() -> None:
    class Odd:
        method = type("m", (), {"name": "odd"})

        def __init__(self, answer: Any) -> None:
            self.predict = lambda part: answer

    data = open_data(SOLIDS)
    task = NormalEstimation().for_data(data)
    test: Part = task.fold(data, "random-0").test
    n = len(test.truth.y)
    with pytest.raises(UserError, match=r"odd gave \[2, 3\] where \[\d+, 3\] is asked"):
        task.answer(Odd(np.zeros((2, 3))), test, None)  # type: ignore[arg-type]
    bad = np.zeros((n, 3))
    bad[30, 0] = np.nan
    with pytest.raises(UserError, match=f"not finite for '{test.query.ids[1]}'"):
        task.answer(Odd(bad), test, None)  # type: ignore[arg-type]


# -- as a user types it --------------------------------------------------------------------------------------------------
def test_classes_by_the_commands(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    clouds = Solids(clouds=16, points=20).read()
    for i in range(16):
        place = tmp_path / "clouds" / clouds.classes[clouds.y[i]] / f"{i}.xyz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(" ".join(f"{v:.9g}" for v in row) for row in clouds.cloud(i)["xyz"]))
    model = tmp_path / "model"
    status, out, err = command("fit", "deepsets:small", tmp_path / "clouds", "-s", "epochs=2", "-o", model)
    assert status == 0, err
    status, out, err = command("predict", model, tmp_path / "clouds", "-o", tmp_path / "said.csv")
    assert status == 0, err
    lines = (tmp_path / "said.csv").read_text().splitlines()
    assert lines[0] == "file,prediction,p(box),p(cylinder),p(sphere),p(torus)" and len(lines) == 17
    assert lines[1].startswith("box/1.xyz,")
    status, out, err = command("score", "point-classification", tmp_path / "said.csv", tmp_path / "clouds")
    assert status == 0 and "accuracy" in out and "macro-f1" in out, err


def test_normals_by_the_commands(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    pytest.importorskip("plyfile")
    clouds = Solids(clouds=8, points=40).read()
    write_clouds(replace(clouds, y=None, classes=()), tmp_path / "parts")
    model = tmp_path / "model"
    status, _, err = command("fit", "pca-normals", tmp_path / "parts", "-s", "k=6", "-o", model)
    assert status == 0, err
    one = tmp_path / "parts" / "clouds" / "1.ply"
    status, _, err = command("predict", model, one, "-o", tmp_path / "normals.ply")
    assert status == 0, err
    status, out, err = command("score", "normal-estimation", tmp_path / "normals.ply", one)
    assert status == 0 and "1-cos2" in out and "degrees" not in err, err
    status, _, err = command("predict", model, tmp_path / "parts", "-o", tmp_path / "normals")
    assert status == 0 and len(list((tmp_path / "normals" / "clouds").glob("*.ply"))) == 8, err
    status, out, err = command("score", "normal-estimation", tmp_path / "normals", tmp_path / "parts")
    assert status == 0, err
    status, _, err = command("predict", model, tmp_path / "parts", "-o", tmp_path / "all.ply")
    assert status == 2 and "is one file, and 8 clouds were asked; name a folder" in err
    status, _, err = command("score", "normal-estimation", tmp_path / "normals.ply", tmp_path / "parts" / "clouds" / "2.ply")
    assert status == 2 and "have not the same points in the same order" in err


def test_meshes_are_sampled_by_the_task(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    rng = np.random.default_rng(0)
    from scipy.spatial import ConvexHull

    for i in range(6):
        points = rng.normal(size=(20, 3))
        hull = ConvexHull(points)
        faces = hull.simplices.astype(np.int64)
        outward = np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]])
        flip = (outward * hull.equations[:, :3]).sum(1) < 0
        faces[flip] = faces[flip][:, ::-1]
        (tmp_path / "meshes").mkdir(exist_ok=True)
        np.savez(tmp_path / "meshes" / f"{i}.npz", vertices=points.astype(np.float32), faces=faces)
    status, out, err = command("data", "check", tmp_path / "meshes")
    assert status == 0 and "6 meshes of 20 points" in out and "task normal-estimation fits" in out, err
    model = tmp_path / "model"
    settings = ("-s", "task=normal-estimation", "-s", "task.points=60", "-s", "task.clouds=2")
    status, _, err = command("fit", "pointnet:small", tmp_path / "meshes", *settings, "-s", "epochs=2", "-o", model)
    assert status == 0, err
    status, _, err = command("predict", model, tmp_path / "meshes" / "0.npz", "-o", tmp_path / "n.xyz", "--sample", "33")
    assert status == 0 and len((tmp_path / "n.xyz").read_text().splitlines()) == 34, err


def test_particles_by_the_commands(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    ChargedParticles(systems=12, frames=5, every=5).write(tmp_path / "p.npz")
    status, out, err = command("data", "check", tmp_path / "p.npz")
    assert status == 0 and "12 systems of 5 particles over 5 frames, 0.005 apart" in out, err
    model, task = tmp_path / "model", ("-s", "task.start=1", "-s", "task.horizon=2")
    status, _, err = command("fit", "egnn", tmp_path / "p.npz", *task, "-s", "epochs=2", "-s", "width=8", "-o", model)
    assert status == 0, err
    status, _, err = command("predict", model, tmp_path / "p.npz", "-o", tmp_path / "then.csv")
    lines = (tmp_path / "then.csv").read_text().splitlines()
    assert status == 0 and lines[0] == "system,particle,x,y,z" and len(lines) == 61, err
