"""Part segmentation: folds over recordings, stress after the cut, scores by hand, files, and the commands as a user types them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run, fitted
from latticework.data.point_sets import Solids, rotations
from latticework.data.points import Clouds, GivenPoints, PointFiles, write_clouds
from latticework.points.part_tasks import PartSegmentation, part_ply, part_scores, turned_parts
from latticework.testing import check_method, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints_apen.json"
SOLIDS = "solids(clouds=16; points=40)"
ROOMS = "rooms(of=solids(clouds=6; points=200); kinds=4; objects=3; sets=2; rooms=6; points=90)"
CLIPS = f"sampled(of={ROOMS}; points=30; clouds=5)"  # six recordings of five clouds
here = pytest.mark.skipif(
    not (Path(os.environ.get("LATTICEWORK_DATA", "/nowhere")) / "mocap-bvh").is_dir(),
    reason="mocap-bvh: LATTICEWORK_DATA is absent",
)


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("part-segmentation", SOLIDS), ("part-segmentation(stress=none,part-rotations)", CLIPS),
        ("part-segmentation(poses=I/I,I/SO3; stress=part-rotations,none; protocol=folds; folds=3)", SOLIDS),
        ("part-segmentation(partition=given; normals=false)", CLIPS), ("part-segmentation(protocol=random; points=20)", CLIPS),
    ],
)  # fmt: skip
def test_battery(task: str, data: str) -> None:
    check_task(task, data)


class Leaky(PartSegmentation):
    """A task that leaves the parts themselves in what a method sees."""

    name: ClassVar[str] = "part-segmentation"

    def seen(self, clouds: Clouds, schema: Any, turns: Any = None) -> list[Any]:
        found = super().seen(clouds, schema, turns)
        for i, data in enumerate(found):
            data.told = clouds.parts if i == 0 else None
        return found


def test_a_planted_leak_is_caught() -> None:
    with pytest.raises(AssertionError, match="the truth of the test part can be read"):
        check_task(Leaky(), SOLIDS)


@pytest.mark.parametrize("method", ["most-frequent-part", "pointnet:small(epochs=2)"])
def test_baselines(method: str) -> None:
    check_method(method, CLIPS, "part-segmentation(stress=none,part-rotations)", fingerprints=FINGERPRINTS)


def test_most_frequent_part_by_hand() -> None:
    data = open_data(SOLIDS)
    task = task_of("part-segmentation").for_data(data)
    fold = task.fold(data, "random-0")
    run = Run(task=task, digest=data.digest(), fold="a")
    model: Any = fitted(entry_of("most-frequent-part"), fold.train, fold.valid, run)
    shares = np.bincount(fold.train.truth.y, minlength=4) / len(fold.train.truth.y)
    answer = task.answer(model, fold.test.blind(), run)
    assert answer.shape == (40 * len(fold.test.query), 4) and np.allclose(answer[0], shares) and (answer == answer[0]).all()


# -- folds ---------------------------------------------------------------------------------------------------------------
def test_a_fold_trains_on_one_recording_and_tests_the_rest_and_all_others() -> None:
    data = open_data(CLIPS)
    task: Any = task_of("part-segmentation(test=0.4; valid=0.2)").for_data(data)
    assert task.protocol == "clips" and task.plan(data, 2) == [("clips-0", 0), ("clips-1", 1)] and task.overlap(data) is None
    names = [i.split("#")[0] for i in data.read().ids]
    first = list(dict.fromkeys(names))
    for number in (0, 1, 7):
        fold = task.fold(data, f"clips-{number}")
        mine = first[number % 6]
        train, valid, test = ([i.split("#")[0] for i in p.query.ids] for p in (fold.train, fold.valid, fold.test))
        assert set(train) == set(valid) == {mine} and (len(train), len(valid)) == (2, 1)
        assert test.count(mine) == 2 and len(test) == 27
        assert [int(c) for c in fold.test.truth.clip] == [0 if name == mine else 1 for name in test]
        assert not set(fold.train.query.ids) & set(fold.test.query.ids)
    assert task.fold(data, "clips-0").train.query.ids != task.fold(data, "clips-6").train.query.ids  # the next round draws anew
    scores = task.score(np.eye(4)[fold.test.truth.y], fold.test, None)
    assert [s.at for s in scores if s.metric == "accuracy"] == [{"clip": "other"}, {"clip": "same"}]
    assert all(s.value == 1 for s in scores) and task.headline(scores) == 1 and scores[0].at["clip"] == "other"


def test_a_cloud_of_its_own_is_no_recording() -> None:
    data = open_data(SOLIDS)
    assert task_of("part-segmentation").for_data(data).protocol == "random"
    with pytest.raises(UserError, match="protocol=clips needs recordings"):
        task_of("part-segmentation(protocol=clips)").for_data(data)
    assert len(task_of("part-segmentation(valid=0.0)").for_data(data).fold(data, "all").train.query) == 16


# -- stress --------------------------------------------------------------------------------------------------------------
def test_stress_turns_each_part_of_the_test_clouds_and_nothing_else() -> None:
    data = open_data(SOLIDS)
    plain, stressed = (
        task_of(f"part-segmentation(stress={s})").for_data(data).fold(data, "random-0") for s in ("none", "part-rotations")
    )
    for a, b in zip(plain.train.data, stressed.train.data, strict=True):  # no fit sees it
        assert np.array_equal(a.pos, b.pos)
    truth = plain.test.truth.y.reshape(-1, 40)
    moved = 0
    for a, b, y in zip(plain.test.data, stressed.test.data, truth, strict=True):
        for part in np.unique(y):
            p, q = (d.pos.numpy().astype(np.float64)[y == part] for d in (a, b))
            assert np.allclose(p.mean(0), q.mean(0), atol=1e-5)  # about its own centre
            assert np.allclose(np.linalg.norm(p[:, None] - p, axis=2), np.linalg.norm(q[:, None] - q, axis=2), atol=1e-5)
            u, v = (d.normal.numpy()[y == part] for d in (a, b))
            assert np.allclose(
                (p - p.mean(0) @ np.eye(3)) * 0 + (u * u).sum(1, keepdims=True), (v * v).sum(1, keepdims=True), atol=1e-4
            )
            if len(p) > 3:  # normals turn with the points
                turn = np.linalg.lstsq(p - p.mean(0), q - q.mean(0), rcond=None)[0]
                if np.linalg.matrix_rank(p - p.mean(0), tol=1e-3) == 3:
                    assert np.allclose(u @ turn, v, atol=1e-2)
                    moved += np.abs(turn - np.eye(3)).max() > 0.1
    assert moved > 3


def test_turned_parts_by_hand() -> None:
    xyz = np.array([[0.0, 0, 0], [2, 0, 0], [5, 5, 5], [9, 9, 9]])
    turn = np.array([[[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], np.eye(3)])
    found, faced = turned_parts(xyz, xyz, np.array([0, 0, 1, -1]), turn)
    assert np.allclose(found, [[1, -1, 0], [1, 1, 0], [5, 5, 5], [9, 9, 9]])
    assert faced is not None and np.allclose(faced, [[0, 0, 0], [0, 2, 0], [5, 5, 5], [9, 9, 9]])
    assert turned_parts(xyz, None, np.zeros(4, int), rotations(1, 0))[1] is None


def test_the_given_partition_has_the_parts_and_not_their_names() -> None:
    data = open_data(SOLIDS)
    task = task_of("part-segmentation(partition=given)").for_data(data)
    fold = task.fold(data, "random-0")
    assert fold.train.schema["features"] == ["partition"]
    names: set[tuple[int, int]] = set()
    y = fold.train.truth.y.reshape(-1, 40)
    for cloud, parts in zip(fold.train.data, y, strict=True):
        column = cloud.x[:, 0].numpy()
        pairs = {(int(c), int(p)) for c, p in zip(column, parts, strict=True)}
        assert len(pairs) == len(np.unique(parts)) == len(np.unique(column))  # one number a part
        names |= pairs
    assert len({c for c, p in names if p == 1}) > 1  # another number in another cloud


# -- scores --------------------------------------------------------------------------------------------------------------
def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 4, 200), rng.integers(0, 5, 200)  # a part that truth has not is only wrong
    scores = part_scores(truth, said, list("abcde"), {})
    per_part = jaccard_score(truth, said, labels=[0, 1, 2, 3], average=None)
    assert abs(scores[0].value - per_part.mean()) < 1e-12 and abs(scores[1].value - (truth == said).mean()) < 1e-12
    assert [(s.at["range"], round(float(s.value), 9)) for s in scores[2:]] == [
        (n, round(float(v), 9)) for n, v in zip("abcd", per_part, strict=True)
    ]


def test_unknown_points_count_for_nothing() -> None:
    clouds = Solids(clouds=8, points=40).read()
    parts = clouds.parts.copy()
    parts[::3] = -1
    data = GivenPoints.hold(replace(clouds, parts=parts))
    task = task_of("part-segmentation").for_data(data)
    test = task.fold(data, "random-0").test
    right = np.eye(4)[np.maximum(test.truth.y, 0)]
    right[test.truth.y < 0] = np.eye(4)[3]
    assert {s.value for s in task.score(right, test, None)} == {1.0}


def test_what_is_asked_of_the_data() -> None:
    clouds = Solids(clouds=4, points=20).read()
    with pytest.raises(UserError, match="no point has a part label"):
        task_of("part-segmentation").for_data(GivenPoints.hold(replace(clouds, parts=None, part_names=())))
    one = GivenPoints.hold(replace(clouds, parts=np.zeros(80, np.int64), part_names=("all",)))
    with pytest.raises(UserError, match="all points are of one part"):
        task_of("part-segmentation").for_data(one)
    for bad, says in (("stress=shaken", "stress is some of"), ("stress=none,none", "each once"), ("poses=I/X", "poses are some")):
        with pytest.raises(UserError, match=says):
            task_of(f"part-segmentation({bad})")
    half = Solids(clouds=4, points=20).read()
    data = GivenPoints.hold(replace(half, parts=np.where(np.arange(80) < 60, 0, 1), splits=np.array([0, 0, 0, 2], np.int8)))
    with pytest.raises(UserError, match="the train points are all of part 'shell'"):
        task_of("part-segmentation(valid=0.0)").for_data(data).fold(data, "given")
    with pytest.raises(UserError, match=r"a normal|normals of the points, and these clouds have none"):
        task = task_of("part-segmentation").for_data(GivenPoints.hold(clouds))
        schema = task.schema_for(clouds)
        task.ask(GivenPoints.hold(replace(clouds, normals=None)), task.Query(), schema)


# -- files ---------------------------------------------------------------------------------------------------------------
def test_a_written_cloud_reads_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xyz, answer = rng.normal(size=(9, 3)), rng.random((9, 4))
    (tmp_path / "parts.ply").write_bytes(part_ply(xyz, answer, ["foot", "left arm", "head"]))
    found = PointFiles(path=tmp_path / "parts.ply").read()
    said = [found.part_names[p] for p in found.parts]
    assert said == [["foot", "left arm", "head"][k] for k in answer[:, :3].argmax(1)]
    assert found.features == ("red", "green", "blue", "p0", "p1", "p2", "uncertainty")
    assert np.allclose(found.x[:, 3:], answer, atol=1e-6) and np.allclose(found.xyz, xyz, atol=1e-6)
    assert len({tuple(c) for c in found.x[:, :3]}) == len(set(said))


def test_commands(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    clouds = Solids(clouds=12, points=40).read()
    write_clouds(clouds, tmp_path / "scans")
    model = tmp_path / "model"
    status, out, err = command(
        "fit",
        "pointnet:small",
        tmp_path / "scans",
        "-s",
        "task=part-segmentation",
        "-s",
        "data.label=part",
        "-s",
        "epochs=2",
        "-o",
        model,
    )
    assert status == 0, err
    one = tmp_path / "scans" / "clouds" / "03.ply"
    status, out, err = command("predict", model, one, "-o", tmp_path / "parts.ply")
    assert status == 0, err
    status, out, err = command("score", "part-segmentation", tmp_path / "parts.ply", one)
    assert status == 0 and "mean-iou" in out, err
    status, out, err = command("predict", model, tmp_path / "scans", "-o", tmp_path / "parts")
    assert status == 0, err
    status, out, err = command("score", "part-segmentation", tmp_path / "parts", tmp_path / "scans")
    assert status == 0 and "accuracy" in out, err
    status, _, err = command("predict", model, tmp_path / "scans", "-o", tmp_path / "all.ply")
    assert status != 0 and "name a folder" in err
    status, _, err = command("predict", model, one, "-o", tmp_path / "parts.npz")
    assert status == 0 and (tmp_path / "parts.npz").exists(), err
    status, _, err = command("predict", model, one, "-o", tmp_path / "parts.xyz")
    assert status == 0, err
    scores = [command("score", "part-segmentation", tmp_path / f"parts.{form}", one) for form in ("ply", "npz", "xyz")]
    assert scores[0][0] == 0 and len({out for _, out, _ in scores}) == 1, scores
    text = (tmp_path / "parts.xyz").read_text()
    for number, name in enumerate(clouds.part_names):
        text = text.replace(f" {name}\n", f" {number}\n")
    (tmp_path / "numbered.xyz").write_text(text)
    status, _, err = command("score", "part-segmentation", tmp_path / "numbered.xyz", one)
    assert status != 0 and "numbered.xyz has numbers for parts" in err
    status, _, err = command("score", "part-segmentation", tmp_path / "parts.ply", tmp_path / "scans" / "clouds" / "04.ply")
    assert status != 0 and "same points" in err
    (tmp_path / "bare.xyz").write_text("x y z\n0 0 0\n1 1 1\n")
    status, _, err = command("score", "part-segmentation", tmp_path / "parts.ply", tmp_path / "bare.xyz")
    assert status != 0 and "no part labels" in err
    status, _, err = command("predict", model, tmp_path / "bare.xyz", "-o", tmp_path / "no.ply")
    assert status != 0 and "normals" in err


@here
def test_recordings_of_the_catalogue() -> None:
    data = open_data("capsules(frames=6; points=64)")
    task: Any = task_of("part-segmentation(stress=none,part-rotations)").for_data(data)
    fold = task.fold(data, "clips-0")
    assert {i.split("#")[0] for i in fold.train.query.ids} == {"walk8"}
    assert {i.split("#")[0] for i in fold.test.query.ids} == {"walk8", "walk01", "mocapbank"}
