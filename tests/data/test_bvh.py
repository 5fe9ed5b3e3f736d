"""BVH files and the bodies and rooms made of them: kinematics by hand, constant bones, bad lines named, stand-ins that repeat."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.articulated import CLIPS, Capsules, body_part, capsule_points
from latticework.data.bvh import read_bvh, turn
from latticework.data.points import schema_of
from latticework.testing import check_data

ARM = """HIERARCHY
ROOT Hips
{
  OFFSET 0 1 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
  JOINT LeftArm
  {
    OFFSET 0 2 0
    CHANNELS 3 Xrotation Yrotation Zrotation
    End Site
    {
      OFFSET 0 1 0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.5
0 0 0 0 0 0 0 0 0
1 0 0 90 0 0 90 0 0
"""
here = pytest.mark.skipif(
    not (Path(os.environ.get("LATTICEWORK_DATA", "/nowhere")) / "mocap-bvh").is_dir(),
    reason="mocap-bvh: LATTICEWORK_DATA is absent",
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "arm.bvh"
    path.write_text(text)
    return path


def test_kinematics_by_hand(tmp_path: Path) -> None:
    motion = read_bvh(written(tmp_path, ARM))
    assert motion.names == ("Hips", "LeftArm", "LeftArm.end") and motion.parents.tolist() == [-1, 0, 1] and motion.step == 0.5
    R, p = motion.world()
    assert np.allclose(p[0], [[0, 1, 0], [0, 3, 0], [0, 4, 0]]) and np.allclose(motion.rest(), p[0])
    # frame 1: the root stands at (1, 1, 0), turned by 90 degrees about z (y becomes -x); the arm by 90 about its own x (y becomes z)
    assert np.allclose(p[1], [[1, 1, 0], [-1, 1, 0], [-1, 1, 1]])
    assert np.allclose(R[1, 1], turn(2, np.array([np.pi / 2]))[0] @ turn(0, np.array([np.pi / 2]))[0])
    assert np.allclose(motion.world(np.array([1]))[1][0], p[1])


def test_rotations_are_multiplied_as_their_channels_are_written(tmp_path: Path) -> None:
    text = ARM.replace("1 0 0 90 0 0 90 0 0", "0 0 0 30 20 10 40 50 60")
    R, _ = read_bvh(written(tmp_path, text)).world()
    x, y, z = (lambda a, k=k: turn(k, np.radians([a]))[0] for k in range(3))
    assert np.allclose(R[1, 0], z(30) @ x(20) @ y(10)) and np.allclose(R[1, 1], R[1, 0] @ x(40) @ y(50) @ z(60))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("HIERARCHY", "SKELETON"), "no .bvh file"), (("OFFSET 0 2 0", "OFFSET 0 2"), "line 8: 2 numbers where OFFSET has 3"),
        (("OFFSET 0 2 0", "OFFSET 0 a 0"), "line 8: OFFSET is"), (("CHANNELS 3 X", "CHANNELS 4 X"), "line 9: CHANNELS says 4 and names 3"),
        (("Xrotation Yrotation Z", "Qrotation Yrotation Z"), "line 9: no channel is called 'Qrotation'"),
        (("1 0 0 90 0 0 90 0 0", "1 0 0 90"), "line 20: 4 numbers where a frame of this skeleton has 9"),
        (("1 0 0 90 0 0 90 0 0\n", ""), "1 frames where 2 are announced"), (("90 0 0 90", "90 nan 0 90"), "line 20: a value that is not finite"),
        (("Frames: 2", "Frames: none"), "line 17: Frames is"), (("Frame Time: 0.5", "Frame Time: 0"), "of more than 0 s"),
        (("MOTION", "MOTIONS"), "line 16: found 'MOTIONS'"), (("    End Site", "    Tip"), "line 10: found 'Tip'"),
        (("  JOINT LeftArm\n  {", "  JOINT LeftArm"), "line 7: found|line 8|expected"), (("Frames: 2\n", ""), "expected 'Frames: N'"),
        (("  JOINT LeftArm", "  JOINT"), "line 6: JOINT without a name"), (("  OFFSET 0 1 0\n  CHANNELS", "  CHANNELS"), "has no OFFSET"),
    ],
)  # fmt: skip
def test_bad_files_are_named_by_line(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_bvh(written(tmp_path, ARM.replace(*change, 1)))


def test_a_file_that_stops_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ends without MOTION"):
        read_bvh(written(tmp_path, ARM.split("MOTION")[0]))
    with pytest.raises(UserError, match="cannot be read"):
        read_bvh(tmp_path / "nothing.bvh")


@here
@pytest.mark.parametrize("clip", CLIPS)
def test_recorded_bones_keep_their_lengths(clip: str) -> None:
    motion = read_bvh(Path(os.environ["LATTICEWORK_DATA"]) / "mocap-bvh" / f"{clip}.bvh")
    assert len(motion) == {"walk8": 1064, "walk01": 101, "mocapbank": 455}[clip]
    R, p = motion.world(np.arange(0, len(motion), 10))
    lengths = np.linalg.norm(p[:, 1:] - p[:, motion.parents[1:]], axis=2)
    assert np.ptp(lengths, axis=0).max() < 1e-12 * 100 and np.allclose(lengths[0], np.linalg.norm(motion.offsets[1:], axis=1))
    assert np.abs(np.linalg.det(R) - 1).max() < 1e-13
    assert all(body_part(n, "Collar" in "".join(motion.names)) for n in motion.names if not n.endswith(".end"))


# -- bodies --------------------------------------------------------------------------------------------------------------
def test_capsules_are_covered_evenly_by_area() -> None:
    a, b = np.array([[0.0, 0, 0], [0, 0, 0]]), np.array([[0.0, 0, 0.2], [0.5, 0, 0]])
    xyz, normals, which = capsule_points(a, b, 40_000, np.random.default_rng(0))
    radius = np.array([0.036, 0.08])  # .18 x .2; .09 cut to .08
    area = 2 * np.pi * radius * [0.2, 0.5] + 4 * np.pi * radius**2
    assert np.abs(np.bincount(which) / 40_000 - area / area.sum()).max() < 0.01
    for k in range(2):
        rows, axis = which == k, (b - a)[k] / np.linalg.norm((b - a)[k])
        along = xyz[rows] @ axis
        nearest = np.clip(along, 0, np.linalg.norm(b[k]))[:, None] * axis
        assert np.allclose(np.linalg.norm(xyz[rows] - nearest, axis=1), radius[k])
        assert np.allclose((xyz[rows] - nearest) / radius[k], normals[rows])
        length = np.linalg.norm(b[k])
        on_side = (along > 0) & (along < length)
        assert abs(on_side.mean() - 2 * np.pi * radius[k] * length / area[k]) < 0.02
        assert np.abs(normals[rows].mean(0)).max() < 0.03


def test_a_file_of_ones_own_makes_bodies(tmp_path: Path) -> None:
    path = written(tmp_path, ARM)
    data = Capsules(clips=str(path), points=50)
    clouds = data.read()
    assert clouds.ids == ("arm#0", "arm#1") and clouds.groups == ("arm", "arm")
    assert clouds.part_names == ("hips", "upper arm") and schema_of(clouds)["normals"]
    assert np.allclose(np.linalg.norm(clouds.normals, axis=1), 1, atol=1e-5)
    bones = Capsules(clips=str(path), points=50, parts="bone").read()
    assert bones.part_names == ("Hips to LeftArm", "LeftArm to LeftArm.end")
    path.write_text(ARM.replace("LeftArm", "Tail"))
    with pytest.raises(UserError, match=r"joint 'Tail' is none of the known ones; .* parts=bone"):
        Capsules(clips=str(path)).read()
    with pytest.raises(UserError, match="does not exist"):
        Capsules(clips=str(tmp_path / "no.bvh")).read()
    with pytest.raises(UserError, match="clips are some of"):
        open_data("capsules(clips=walk9)")


@here
def test_bodies_of_the_recorded_clips() -> None:
    data = open_data("capsules(frames=4; points=64)")
    check_data(data)
    clouds = data.read()
    sided = open_data("capsules(frames=4; points=64; parts=sided)").read()
    assert len(sided.part_names) == 17 and np.array_equal(sided.xyz, clouds.xyz)
    names = [sided.part_names[p].removeprefix("left ").removeprefix("right ") for p in sided.parts]
    assert names == [clouds.part_names[p] for p in clouds.parts]
    assert len(clouds) == 12 and len(clouds.part_names) == 10 and set(clouds.groups) == set(CLIPS)
    for clip in CLIPS:  # every clip has every part
        mine = clouds.take([i for i, g in enumerate(clouds.groups) if g == clip])
        assert len(np.unique(mine.parts)) == 10
        assert 0.7 < np.ptp(mine.xyz[:, 1]) < 1.4  # in body heights
    assert any("stand-in" in line for line in data.check())
    other = open_data("capsules(frames=4; points=64; seed=1)").read()
    assert not np.array_equal(other.xyz, clouds.xyz) and other.ids == clouds.ids


# -- rooms ---------------------------------------------------------------------------------------------------------------
ROOMS = "rooms(of=solids(clouds=6; points=200); kinds=5; objects=3; sets=3; rooms=12; points=61)"


def test_rooms_hold_the_objects_of_their_set() -> None:
    data = open_data(ROOMS)
    check_data(data)
    clouds = data.read()
    assert len(clouds) == 12 and set(clouds.sizes) == {61} and len(clouds.part_names) == 5
    sets: dict[int, set[int]] = {}
    for i in range(12):
        one = clouds.cloud(i)
        held = set(one["parts"].tolist())
        assert len(held) == 3 and sets.setdefault(int(clouds.y[i]), held) == held
        centres = np.stack([one["xyz"][one["parts"] == p].mean(0) for p in held])
        far = np.linalg.norm(centres[:, None] - centres, axis=2)[~np.eye(3, dtype=bool)]
        assert far.min() > 0.6  # objects of extent 1, 1.2 apart
        assert np.bincount(one["parts"], minlength=5).max() == 21
    assert len({tuple(sorted(s)) for s in sets.values()}) == 3
    assert np.allclose(np.linalg.norm(clouds.normals, axis=1), 1, atol=1e-4)


def test_rooms_that_cannot_be_are_named() -> None:
    with pytest.raises(UserError, match="need as many kinds"):
        open_data("rooms(of=solids; kinds=2; objects=3)")
    with pytest.raises(UserError, match="6 shapes are there and 9 kinds"):
        open_data("rooms(of=solids(clouds=6); kinds=9; objects=3)").read()
    with pytest.raises(UserError, match="make 3 sets of 2; 4 are asked"):
        open_data("rooms(of=solids(clouds=6); kinds=3; objects=2; sets=4)").read()
    with pytest.raises(UserError, match="needs points or meshes"):
        open_data("rooms(of=charged-particles(systems=3; frames=3))")
