"""Published meshes, by name; solids by a generator; clouds sampled from meshes, and clouds turned at random."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from pydantic import model_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .mirror import locate, read_arrays
from .points import Array, Clouds, PointSetData, face_areas, group_of, sample_mesh

CAD_SHAPES: Mapping[str, str] = {
    "1002_tray_bottom": "1d77a15930995111f8866d9c73d83db83ca786df5cfe800c033b3486a27febe2",
    "abc_00011084": "7f5f3eaecef2acaa7a6ae02963b642c27b6476d22474f60c332b8f75adcee87a",
    "abc_00016513": "ff1b1b6587e91244b9cc1b6af678cf76a421f68dabb93ad4c0d45aead1d39a9d",
    "abc_00994122": "e83bb7b513abff948c956991b94290edc4b331b144eaf8a740d973d5b48a7d53",
    "adis16480": "e88c9120b6b3fa4d185410700ced1524ec5fca487b06f248914ca882e12c2e0d",
    "angle_block": "065b130afde426ec0ebf19d5e6bc03fc679b785eb5dc4f1c2c51c6d6d4a628c0",
    "balla": "bb7329aa087cdb3669d4eeea11bf4871c6f867c0cea55449f63f6fe095137b25",
    "box": "ef5adafd3937c759c3e2cb8369df2ac613ffc228495971ccc5bc71e01ae01b87",
    "bunny": "2d65374a3b03ffdc22cf0855b5363993bc3a5c63fb106f8fa29669caa32a0a1b",
    "busted": "d2ee08b941f5ea126bd1e78c783f037daa2eb3abc48a9853321c713b87780990",
    "cycloidal": "b6c72628229310aba0a6c71899d257a81e92d2b42ade7a94c191e38cf75dae6a",
    "cylinder": "c38649e9b1dc58e9cb654a6066e69f7fc30b9674d6a25cfb7cde78e30e8ff909",
    "fandisk": "88fdafbcf5cd4a669c32daafdf3f56044ed3de1d7e20229fedd1aaa78f149468",
    "featuretype": "afc8986a271571267438360a9aaf5ff145bb4ee316a9e86a12f92ef7ed1cd9ee",
    "fixed_top": "5f84b5d50066150aad10638b9edeb00ce6daaf054c7a32cca410eb329e165a78",
    "idler_riser": "4c5dfc33520ba0a23db1cf84dcedb08de2df8625b57703583a10c168d2f38c91",
    "octagonal_pocket": "e9f752114b8850ad0b5e5ed61b7aed77ad1f1ef1b5e68fa3008bf95b6ae51616",
    "plate_holes": "373948d166555be1aec035327902094bdeaed913eb30e758c9f31144741136e0",
    "round": "a66591b1a14b8e0c32d028e7e05e661ada72803e1abc2a4b9b0082e7e154f295",
    "torus": "ee0ed5bc1b467b01f7343400b58d772166a1e77f3b276abcaa6b20334bdebe47",
}


class CadShapes(PointSetData):
    """Twenty triangle meshes under ``LATTICEWORK_DATA``: CAD parts, three of the ABC set among them, and a scanned bunny.

    Faces are wound outwards. ``cad-shapes`` is all of them, ``cad-shapes:NAME`` one.
    """

    name: ClassVar[str] = "mirrored-meshes"
    kind: ClassVar[str] = "meshes"
    shape: str = setting("", "one shape by its name; left out: all")

    def _names(self) -> tuple[str, ...]:
        if self.shape and self.shape not in CAD_SHAPES:
            raise UserError(f"no shape of cad-shapes is called {self.shape!r}; known: {', '.join(CAD_SHAPES)}")
        return (self.shape,) if self.shape else tuple(CAD_SHAPES)

    def digest(self) -> str:
        return digest_of([self.name, self.revision, [CAD_SHAPES[name] for name in self._names()]])

    def read(self) -> Clouds:
        for name in self._names():
            locate("cad-shapes", f"{name}.npz", CAD_SHAPES[name])
        return _cad(self._names())


@lru_cache(maxsize=4)
def _cad(names: tuple[str, ...]) -> Clouds:
    held = [read_arrays(locate("cad-shapes", f"{name}.npz", CAD_SHAPES[name])) for name in names]
    sizes = np.array([len(h["vertices"]) for h in held], np.int64)
    xyz = np.concatenate([h["vertices"] for h in held]).astype(np.float32)
    return Clouds(names, sizes, xyz, faces=tuple(h["faces"].astype(np.int64) for h in held))


# -- solids --------------------------------------------------------------------------------------------------------------
SOLIDS = ("sphere", "box", "cylinder", "torus")
SOLID_PARTS = ("shell", "side", "cap", "ring")


class Solids(PointSetData):
    """Points on spheres, boxes, cylinders and tori of random proportions, upright, with exact normals, parts and classes.

    A box and a cylinder have sides and two caps, a sphere is one shell, a torus one ring. Points are spread evenly by area.
    """

    name: ClassVar[str] = "solids"
    clouds: int = setting(48, "how many, the four kinds in turn", ge=1, le=1_000_000)
    points: int = setting(128, "points of each", ge=1, le=1_000_000)
    noise: float = setting(0.0, "standard deviation of what is added to the coordinates; a solid's size is about 1", ge=0, le=10)
    seed: int = setting(0, "of the draw", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Clouds:
        return _solids(self)


@lru_cache(maxsize=8)
def _solids(of: Solids) -> Clouds:
    xyz, normals, parts = [], [], []
    for i in range(of.clouds):
        rng = np.random.default_rng([of.seed, i, 0x736F6C])
        found = (_sphere, _box, _cylinder, _torus)[i % 4](of.points, rng)
        xyz.append(found[0] + of.noise * rng.standard_normal((of.points, 3)))
        normals.append(found[1])
        parts.append(found[2])
    width = len(str(of.clouds - 1))
    ids = tuple(f"{SOLIDS[i % 4]} {i:0{width}d}" for i in range(of.clouds))
    return Clouds(
        ids, np.full(of.clouds, of.points, np.int64), np.concatenate(xyz).astype(np.float32),
        np.concatenate(normals).astype(np.float32), parts=np.concatenate(parts).astype(np.int64), part_names=SOLID_PARTS,
        y=np.arange(of.clouds) % 4, classes=SOLIDS,
    )  # fmt: skip


def _directions(n: int, rng: np.random.Generator) -> Array:
    found: Array = rng.standard_normal((n, 3))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def _sphere(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    radius = rng.uniform(0.4, 1.0)
    normal = _directions(n, rng)
    return radius * normal, normal, np.zeros(n, np.int64)


def _box(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    half = rng.uniform(0.3, 1.0, 3)
    areas = np.array([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    axis = rng.choice(3, n, p=areas / areas.sum())
    sign = rng.choice((-1.0, 1.0), n)
    points = rng.uniform(-1, 1, (n, 3)) * half
    points[np.arange(n), axis] = sign * half[axis]
    normal = np.zeros((n, 3))
    normal[np.arange(n), axis] = sign
    return points, normal, np.where(axis == 2, 2, 1)


def _cylinder(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    radius, half = rng.uniform(0.3, 0.8), rng.uniform(0.3, 1.0)
    side = rng.random(n) < 2 * half / (2 * half + radius)  # areas 4 pi r h and 2 pi r^2
    angle = rng.uniform(0, 2 * np.pi, n)
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    sign = rng.choice((-1.0, 1.0), n)
    out = np.where(side, 1.0, np.sqrt(rng.random(n)))[:, None] * radius * around
    height = np.where(side, rng.uniform(-half, half, n), sign * half)
    normal = np.where(side[:, None], np.pad(around, ((0, 0), (0, 1))), np.pad(sign[:, None], ((0, 0), (2, 0))))
    return np.concatenate([out, height[:, None]], 1), normal, np.where(side, 1, 2)


def _torus(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    large, small = rng.uniform(0.5, 0.9), rng.uniform(0.1, 0.3)
    tube = np.zeros(0)
    while len(tube) < n:  # the outer half has more area: angles are kept with probability (R + r cos) / (R + r)
        drawn = rng.uniform(0, 2 * np.pi, 2 * n)
        tube = np.concatenate([tube, drawn[rng.random(2 * n) < (large + small * np.cos(drawn)) / (large + small)]])
    tube, turn = tube[:n], rng.uniform(0, 2 * np.pi, n)
    around = np.stack([np.cos(turn), np.sin(turn), np.zeros(n)], 1)
    normal = np.cos(tube)[:, None] * around + np.sin(tube)[:, None] * np.array([0.0, 0.0, 1.0])
    return large * around + small * normal, normal, np.full(n, 3, np.int64)


# -- derived -------------------------------------------------------------------------------------------------------------
def _clouds_of(of: Dataset, why: str) -> Clouds:
    held = of.read()
    if not isinstance(held, Clouds):
        raise UserError(f"{why} points or meshes, not {of.kind}")
    return held


class Sampled(PointSetData):
    """Clouds drawn from shapes: on a mesh by area, with the normals of the faces; from a cloud, some of its points.

    Each shape gives `clouds` of them, which make one group: no split tears them apart.
    """

    name: ClassVar[str] = "sampled"
    of: Dataset = setting(..., "meshes or points")
    points: int = setting(512, "points of each", ge=1, le=1_000_000)
    clouds: int = setting(16, "clouds of each shape", ge=1, le=100_000)
    seed: int = setting(0, "of the draw", ge=0)

    @model_validator(mode="after")
    def _kind(self) -> Sampled:
        if self.of.kind not in ("points", "meshes"):
            raise ValueError(f"sampled needs points or meshes, not {self.of.kind}")
        return self

    def digest(self) -> str:
        return digest_of([self.name, self.revision, self.of.digest(), self.points, self.clouds, self.seed])

    def read(self) -> Clouds:
        return _sampled(self, self.of.digest())


@lru_cache(maxsize=4)
def _sampled(of: Sampled, digest: str) -> Clouds:
    return sample_clouds(_clouds_of(of.of, "sampled needs"), of.points, of.clouds, of.seed)


def sample_clouds(shapes: Clouds, points: int, clouds: int, seed: int = 0) -> Clouds:
    """`clouds` draws of `points` points of each shape, shape after shape; draw k of shape i depends on (seed, i, k) alone.

    Draw k of shape NAME is called NAME#k, or NAME where it is the only one. A cloud with at most `points` points is taken whole,
    once. `UserError` names a mesh without area.
    """
    ids: list[str] = []
    groups: list[str] = []
    rows: list[int] = []
    held: dict[str, list[Array]] = {"xyz": [], "normals": [], "x": [], "parts": []}
    for i, (name, group) in enumerate(zip(shapes.ids, group_of(shapes), strict=True)):
        one = shapes.cloud(i)
        whole = "faces" not in one and len(one["xyz"]) <= points
        for k in range(1 if whole else clouds):
            rng = np.random.default_rng([seed, i, k, 0x73616D])
            for key, values in _draw(one, points, whole, name, rng).items():
                held[key].append(values)
            ids.append(name if whole or clouds == 1 else f"{name}#{k}")
            groups.append(group)
            rows.append(i)
    sizes = np.array([len(xyz) for xyz in held["xyz"]], np.int64)
    joined = {key: np.concatenate(values) if values else None for key, values in held.items()}
    assert joined["xyz"] is not None
    dropped: tuple[str, ...] = ()
    if shapes.faces is not None and (shapes.parts is not None or shapes.features):
        dropped = ("columns of vertices are not carried over to points on the faces",)
    return Clouds(
        tuple(ids), sizes, joined["xyz"], joined["normals"], joined["x"], shapes.features if joined["x"] is not None else (),
        joined["parts"], shapes.part_names if joined["parts"] is not None else (), None if shapes.y is None else shapes.y[rows],
        shapes.classes, tuple(groups), None, None if shapes.splits is None else shapes.splits[rows], shapes.notes + dropped,
    )  # fmt: skip


def _draw(one: Mapping[str, Any], points: int, whole: bool, name: str, rng: np.random.Generator) -> dict[str, Array]:
    if "faces" in one:
        try:
            xyz, normals, _ = sample_mesh(one["xyz"], one["faces"], points, rng)
        except ValueError:
            raise UserError(f"no face of the mesh {name!r} has an area: nothing can be sampled on it") from None
        return {"xyz": xyz, "normals": normals}
    chosen = np.arange(len(one["xyz"])) if whole else rng.choice(len(one["xyz"]), points, replace=False)
    return {key: one[key][chosen] for key in ("xyz", "normals", "x", "parts") if key in one}


def rotations(n: int, seed: int, stream: int = 0) -> Array:
    """`n` uniformly random rotations float64 [n, 3, 3]; rotation i depends on (seed, stream, i) alone."""
    from scipy.spatial.transform import Rotation

    if not n:
        return np.zeros((0, 3, 3))
    quaternions = np.stack([np.random.default_rng([seed, stream, i, 0x726F74]).standard_normal(4) for i in range(n)])
    return np.asarray(Rotation.from_quat(quaternions).as_matrix())


class Rotated(PointSetData):
    """Each cloud turned about its mean by a random rotation of its own; normals turn with it."""

    name: ClassVar[str] = "rotated"
    of: Dataset = setting(..., "points; meshes are sampled first: rotated(of=sampled(of=…))")
    seed: int = setting(0, "of the rotations", ge=0)

    @model_validator(mode="after")
    def _kind(self) -> Rotated:
        if self.of.kind != "points":
            raise ValueError(f"rotated needs points, not {self.of.kind}; sample meshes first: rotated(of=sampled(of=…))")
        return self

    def digest(self) -> str:
        return digest_of([self.name, self.revision, self.of.digest(), self.seed])

    def read(self) -> Clouds:
        return _rotated(self, self.of.digest())


@lru_cache(maxsize=4)
def _rotated(of: Rotated, digest: str) -> Clouds:
    from dataclasses import replace

    clouds = _clouds_of(of.of, "rotated needs")
    turns, ptr = rotations(len(clouds), of.seed), clouds.ptr
    xyz, normals = clouds.xyz.astype(np.float64), None if clouds.normals is None else clouds.normals.astype(np.float64)
    for turn, a, b in zip(turns, ptr, ptr[1:], strict=False):
        centre = xyz[a:b].mean(0)
        xyz[a:b] = (xyz[a:b] - centre) @ turn.T + centre
        if normals is not None:
            normals[a:b] = normals[a:b] @ turn.T
    return replace(clouds, xyz=xyz.astype(np.float32), normals=None if normals is None else normals.astype(np.float32))


def mesh_normals(vertices: Array, faces: Array) -> Array:
    """Unit normals float32 [v, 3] of vertices: the mean of their faces' by area; 0 where a vertex has no face with area."""
    areas, normals = face_areas(vertices, faces)
    total = np.zeros((len(vertices), 3))
    for k in range(3):
        np.add.at(total, faces[:, k], areas[:, None] * normals)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 0, total / np.maximum(length, 1e-300), 0.0).astype(np.float32)
