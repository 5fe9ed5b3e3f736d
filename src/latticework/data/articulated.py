"""Clouds with parts that move: bodies of capsules along recorded skeletons, and rooms of shapes set down at random.

Both are stand-ins, made here, for scans that are not to be had: `Capsules` for scanned bodies in motion (its motion is
recorded, its flesh is not), `Rooms` for scanned rooms with movable furniture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator, model_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .bvh import Motion, read_bvh
from .mirror import locate
from .point_sets import rotations, sample_clouds
from .points import Array, Clouds, PointSetData, group_of

CLIPS: Mapping[str, str] = {
    "walk8": "f81412d16adb128b3ab0bf9c12dc5d847f89490bd2974b87d2c0ca604ee484a4",
    "walk01": "f89895b89546fea340d28916ee9270aa6d155b53e09b5cb6c69a4091b2355c6f",
    "mocapbank": "c12f37b39d931ee0bc8b081984255587eb8983e1d1a61fa0681ca6d5ea58e348",
}
SHORT = 0.02  # of the body's height: shorter bones carry no points
THICK = 0.18  # radius over length of a bone
LEAST, MOST = 0.03, 0.08  # of the body's height: radius

# what the joints of the clips are called: the part that hangs on a joint, by its name without the side
_MIDDLE = {
    "hips": "hips", "spine": "torso", "spine1": "torso", "chest": "torso", "chest2": "torso", "neck": "head", "head": "head",
}  # fmt: skip
_SIDED = {
    "shoulder": "shoulder", "collar": "shoulder", "arm": "upper arm", "forearm": "forearm", "elbow": "forearm", "hand": "hand",
    "handthumb1": "hand", "hand_end": "hand", "wrist": "hand", "upleg": "thigh", "hip": "thigh", "leg": "shin", "knee": "shin",
    "foot": "foot", "toebase": "foot", "ankle": "foot",
}  # fmt: skip


def body_part(joint: str, collars: bool) -> str | None:
    """The part of the body that hangs on a joint, by common names; `collars`: in a skeleton with them, a shoulder turns the upper arm."""
    low = joint.lower()
    if low in _MIDDLE:
        return _MIDDLE[low]
    for side in ("left", "right"):
        if low.startswith(side) and low[len(side) :] in _SIDED:
            rest = low[len(side) :]
            return f"{side} {'upper arm' if rest == 'shoulder' and collars else _SIDED[rest]}"
    return None


class Capsules(PointSetData):
    """Bodies of capsules along the bones of recorded people: real motion, simple geometry; a stand-in for scanned bodies.

    Each frame of a clip is a cloud: points spread evenly by area on capsules about the bones (joint to joint) that are longer than 2 % of the
    body's height, of radius .18 x length within 3 and 8 % of the height; normals are the capsules'. The unit is the height of the skeleton
    at rest. A clip is a group. Parts: ``body``, 10 kinds of limb that all clips share by the names of their joints; ``sided``, the same with left and
    right apart, which capsules do not show (a limb is its own mirror image): only where it hangs says so; ``bone``, each bone by itself.
    """

    name: ClassVar[str] = "capsules"
    clips: tuple[str, ...] = setting(tuple(CLIPS), f"of {', '.join(CLIPS)}; or paths of .bvh files")
    frames: int = setting(128, "of each clip, evenly spaced; a shorter clip gives all; 0: all", ge=0)
    points: int = setting(1024, "points of each", ge=1, le=1_000_000)
    parts: Literal["body", "sided", "bone"] = setting(
        "body", "body: 10 kinds of limb that all clips share by name; sided: left and right apart (17); bone: each bone by itself"
    )
    seed: int = setting(0, "of the points", ge=0)

    @field_validator("clips", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("clips")
    @classmethod
    def _known(cls, clips: tuple[str, ...]) -> tuple[str, ...]:
        strange = [c for c in clips if c not in CLIPS and not c.lower().endswith(".bvh")]
        if strange or not clips or len(set(clips)) < len(clips):
            raise ValueError(f"clips are some of {', '.join(CLIPS)}, or paths of .bvh files, each once")
        return clips

    def _digests(self) -> list[str]:
        found = []
        for clip in self.clips:
            if clip not in CLIPS and not Path(clip).is_file():
                raise UserError(f"{clip} does not exist")
            found.append(CLIPS[clip] if clip in CLIPS else hashlib.sha256(Path(clip).read_bytes()).hexdigest())
        return found

    def digest(self) -> str:
        names = [c if c in CLIPS else Path(c).stem for c in self.clips]
        return digest_of([self.name, self.revision, names, self._digests(), self.frames, self.points, self.parts, self.seed])

    def read(self) -> Clouds:
        return _capsules(self, self.digest())


@lru_cache(maxsize=4)
def _motion(path: Path, digest: str) -> Motion:
    return read_bvh(path)


@lru_cache(maxsize=4)
def _capsules(of: Capsules, digest: str) -> Clouds:
    ids: list[str] = []
    groups: list[str] = []
    held: list[tuple[Array, Array, Array]] = []
    names: list[str] = []
    for number, (clip, content) in enumerate(zip(of.clips, of._digests(), strict=True)):
        path = locate("mocap-bvh", f"{clip}.bvh", content) if clip in CLIPS else Path(clip)
        motion = _motion(path, content)
        word = clip if clip in CLIPS else path.stem
        many = min(of.frames, len(motion)) if of.frames else len(motion)
        chosen = np.unique(np.linspace(0, len(motion) - 1, many).round().astype(np.int64))
        height = float(np.ptp(motion.rest(), axis=0).max())
        if not height > 0:
            raise UserError(f"{path}: the skeleton has no extent")
        places = motion.world(chosen)[1] / height
        ends, words = bones(motion, height, of.parts, path)
        code = []
        for part in words:
            if part not in names:
                names.append(part)
            code.append(names.index(part))
        width = len(str(len(motion) - 1))
        for frame, now in zip(chosen.tolist(), places, strict=True):
            rng = np.random.default_rng([of.seed, number, frame, 0x636170])
            xyz, normals, bone = capsule_points(now[ends[:, 0]], now[ends[:, 1]], of.points, rng)
            held.append((xyz, normals, np.array(code)[bone]))
            ids.append(f"{word}#{frame:0{width}d}")
            groups.append(word)
    xyz, normals, parts = (np.concatenate(v) for v in zip(*held, strict=True))
    return Clouds(
        tuple(ids), np.full(len(ids), of.points, np.int64), xyz.astype(np.float32), normals.astype(np.float32),
        parts=parts.astype(np.int64), part_names=tuple(names), groups=tuple(groups),
        notes=("a stand-in made here: capsules along recorded skeletons, in body heights",),
    )  # fmt: skip


def bones(motion: Motion, height: float, parts: str, path: Path) -> tuple[Array, list[str]]:
    """Joints at both ends int64 [b, 2] of the bones that carry points, and the part of each. `UserError` names a joint without a known one."""
    lengths = np.linalg.norm(motion.offsets, axis=1)
    collars = any("collar" in name.lower() for name in motion.names)
    ends, words = [], []
    for j, parent in enumerate(motion.parents):
        if parent < 0 or lengths[j] <= SHORT * height:
            continue
        name = motion.names[parent]
        part = f"{name} to {motion.names[j]}" if parts == "bone" else body_part(name, collars)
        if part is not None and parts == "body":
            part = part.removeprefix("left ").removeprefix("right ")
        if part is None:
            raise UserError(f"{path}: the joint {name!r} is none of the known ones; take each bone for a part: parts=bone")
        ends.append((parent, j))
        words.append(part)
    if not ends:
        raise UserError(f"{path}: no bone is longer than {SHORT:.0%} of the body's height")
    return np.array(ends, np.int64), words


def capsule_points(a: Array, b: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """`n` points spread evenly by area on capsules from a to b [m, 3] in body heights: points, normals float64 [n, 3], capsule int64 [n]."""
    along = b - a
    length = np.linalg.norm(along, axis=1)
    radius = np.clip(THICK * length, LEAST, MOST)
    side, caps = 2 * np.pi * radius * length, 4 * np.pi * radius**2
    area = side + caps
    which = rng.choice(len(a), n, p=area / area.sum())
    axis = along / length[:, None]
    least = np.eye(3)[np.abs(axis).argmin(1)]
    first = np.cross(axis, least)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(axis, first)
    on_side = rng.random(n) < (side / area)[which]
    angle, place, up = rng.uniform(0, 2 * np.pi, n), rng.random(n), rng.uniform(-1, 1, n)
    flat = np.where(on_side, 1.0, np.sqrt(1 - up**2))  # caps: half spheres, evenly by height
    normal = (
        (flat * np.cos(angle))[:, None] * first[which] + (flat * np.sin(angle))[:, None] * second[which]
        + np.where(on_side, 0.0, up)[:, None] * axis[which]
    )  # fmt: skip
    share = np.where(on_side, place, (up > 0).astype(float))
    return a[which] + share[:, None] * along[which] + radius[which, None] * normal, normal, which


# -- rooms ---------------------------------------------------------------------------------------------------------------
class Rooms(PointSetData):
    """Rooms of several shapes, each turned freely and set down at random; a stand-in for scanned rooms.

    The first `kinds` shapes that differ are the objects that there are; `sets` fixed choices of `objects` of them are the classes of the
    rooms. Each object is scaled to extent 1 and stands at least 1.2 from the next. Parts are the kinds; every room is its own group.
    """

    name: ClassVar[str] = "rooms"
    of: Dataset = setting("cad-shapes", "meshes or points: the shapes")
    rooms: int = setting(280, "how many, the sets in turn", ge=1, le=100_000)
    objects: int = setting(4, "of each room", ge=1, le=64)
    kinds: int = setting(8, "shapes that are used", ge=1, le=1000)
    sets: int = setting(4, "classes: different choices of objects", ge=1, le=1000)
    points: int = setting(1024, "points of each room, the same number on each object", ge=1, le=1_000_000)
    seed: int = setting(0, "of the draw", ge=0)

    @model_validator(mode="after")
    def _kind(self) -> Rooms:
        if self.of.kind not in ("points", "meshes"):
            raise ValueError(f"rooms needs points or meshes, not {self.of.kind}")
        if self.objects > self.kinds or self.points < self.objects:
            raise ValueError(
                f"{self.objects} objects a room need as many kinds and points; there are {self.kinds} and {self.points}"
            )
        return self

    def digest(self) -> str:
        return digest_of([
            self.name, self.revision, self.of.digest(), self.rooms, self.objects, self.kinds, self.sets, self.points, self.seed,
        ])  # fmt: skip

    def read(self) -> Clouds:
        return _rooms(self, self.of.digest())


POOL = 4096  # points sampled once on each shape


@lru_cache(maxsize=4)
def _rooms(of: Rooms, digest: str) -> Clouds:
    from itertools import combinations, islice

    held = of.of.read()
    if not isinstance(held, Clouds):
        raise UserError(f"rooms needs points or meshes, not {of.of.kind}")
    if len(held) < of.kinds:
        raise UserError(f"{len(held)} shapes are there and {of.kinds} kinds are asked; use fewer (kinds={len(held)})")
    shapes = held.take(range(of.kinds))
    pools = sample_clouds(shapes, POOL, 1, of.seed)
    rng = np.random.default_rng([of.seed, 0x726F6F])
    many = list(islice(combinations(range(of.kinds), of.objects), 100_000))
    if len(many) < of.sets:
        raise UserError(f"{of.kinds} kinds make {len(many)} sets of {of.objects}; {of.sets} are asked")
    chosen = [many[i] for i in rng.permutation(len(many))[: of.sets]]
    share = np.full(of.objects, of.points // of.objects)
    share[: of.points % of.objects] += 1
    xyz, normals, parts = [], [], []
    for room in range(of.rooms):
        draw = np.random.default_rng([of.seed, room, 0x726F6F])
        turns = rotations(of.objects, of.seed, room + 1)
        for number, (kind, place) in enumerate(zip(chosen[room % of.sets], _places(of.objects, draw), strict=True)):
            one = pools.cloud(kind)
            rows = draw.choice(len(one["xyz"]), share[number], replace=len(one["xyz"]) < share[number])
            low, high = one["xyz"].min(0).astype(np.float64), one["xyz"].max(0)
            local = (one["xyz"][rows] - (low + high) / 2) / max(float(np.linalg.norm(high - low)), 1e-30)
            xyz.append(local @ turns[number].T + place)
            if "normals" in one:
                normals.append(one["normals"][rows] @ turns[number].T)
            parts.append(np.full(share[number], kind))
    width = len(str(of.rooms - 1))
    ids = tuple(f"room {i:0{width}d}" for i in range(of.rooms))
    names = group_of(shapes) if len(set(group_of(shapes))) == of.kinds else shapes.ids
    return Clouds(
        ids, np.full(of.rooms, of.points, np.int64), np.concatenate(xyz).astype(np.float32),
        np.concatenate(normals).astype(np.float32) if normals else None, parts=np.concatenate(parts).astype(np.int64),
        part_names=tuple(names), y=np.arange(of.rooms) % of.sets,
        classes=tuple(f"set {i:0{len(str(of.sets - 1))}d}" for i in range(of.sets)), notes=("a stand-in made here: shapes set down at random",),
    )  # fmt: skip


def _places(n: int, rng: np.random.Generator) -> Array:
    """Places float64 [n, 3] on the floor, at least 1.2 from each other; the floor grows where they do not fit."""
    side = 1.6 * np.sqrt(n)
    found: list[Array] = []
    tries = 0
    while len(found) < n:
        place = np.append(rng.uniform(0, side, 2), 0.0)
        if all(np.linalg.norm(place - other) >= 1.2 for other in found):
            found.append(place)
        tries += 1
        if tries % 200 == 0:
            side *= 1.1
    return np.stack(found)
