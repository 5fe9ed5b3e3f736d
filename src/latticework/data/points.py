"""The kinds *points* and *meshes*: clouds of points in space, and triangle meshes. Container, readers, check, writers.

A user's path is one ``.ply``, ``.xyz`` or ``.npz`` file, or a folder of them: a folder a class, such folders inside ``train``,
``valid`` and ``test``, a table ``clouds.csv`` (file[,label][,group][,split]), or the files alone. Columns are known by name:
``x y z``, ``nx ny nz`` (normals), the part label of a point (the field `label`: ``part`` or ``label`` where there is one), and
all others are features. A mesh is a file with faces (a PLY element ``face``, an array ``faces`` of an ``.npz``); its
points are the vertices. Coordinates stay as written: nothing is centred, scaled, turned or thinned out here.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.ledger import write_folder, write_whole
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, arrays_digest, bytes_digest, stamps
from .mirror import read_arrays
from .table import is_number

Array = np.ndarray[Any, Any]
SUFFIXES = (".ply", ".xyz", ".npz")
TABLE = "clouds.csv"
SPLITS: Mapping[str, int] = {"train": 0, "valid": 1, "validation": 1, "val": 1, "test": 2}
SPLIT_NAMES = ("train", "valid", "test")
XYZ, NORMAL = ("x", "y", "z"), ("nx", "ny", "nz")
LABELS = ("part", "label")  # columns that are taken for part labels where nothing else is said
UNKNOWN = "-1"  # the part of a point whose part is unknown, where parts are words
_NPZ_POINTS = ("xyz", "pos", "points", "vertices")
_NORMAL_WORDS = {f"{stem}{axis}": f"n{axis}" for stem in ("normal_", "normal", "n") for axis in "xyz"}


class Asked(NamedTuple):
    """Which clouds of a part are asked about: `rows` int64 [q], numbers of its list of clouds; `ids`, a text each."""

    rows: Array
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Clouds:
    """B clouds of n points in all, one after another.

    sizes int64 [B]; xyz float32 [n, 3] in the file's units; normals float32 [n, 3]; x float32 [n, F], further columns by the
    names `features`; parts int64 [n], numbers of `part_names`, -1 unknown; y int64 [B], numbers of `classes`, -1 unknown;
    groups: of each cloud, what must not be torn apart by a split; splits int8 [B], 0 train, 1 valid, 2 test, -1 none;
    faces: of each mesh int64 [f, 3], numbers of its own points. What is none is not there.
    """

    ids: tuple[str, ...]
    sizes: Array
    xyz: Array
    normals: Array | None = None
    x: Array | None = None
    features: tuple[str, ...] = ()
    parts: Array | None = None
    part_names: tuple[str, ...] = ()
    y: Array | None = None
    classes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    faces: tuple[Array, ...] | None = None
    splits: Array | None = None
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)  # never that of another

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ptr(self) -> Array:
        """int64 [B + 1]: cloud i has the points ptr[i] to ptr[i + 1]."""
        return np.concatenate(([0], np.cumsum(self.sizes))).astype(np.int64)

    def take(self, rows: Iterable[int]) -> Clouds:
        """Some clouds, in the order of `rows`."""
        chosen = np.asarray(list(rows), np.int64)
        ptr = self.ptr
        spans = [np.arange(ptr[i], ptr[i + 1]) for i in chosen]
        at = np.concatenate(spans) if spans else np.zeros(0, np.int64)

        def points(values: Array | None) -> Array | None:
            return None if values is None else values[at]

        return replace(
            self, ids=tuple(self.ids[i] for i in chosen), sizes=self.sizes[chosen], xyz=self.xyz[at],
            normals=points(self.normals), x=points(self.x), parts=points(self.parts),
            y=None if self.y is None else self.y[chosen], groups=tuple(self.groups[i] for i in chosen) if self.groups else (),
            faces=None if self.faces is None else tuple(self.faces[i] for i in chosen),
            splits=None if self.splits is None else self.splits[chosen],
        )  # fmt: skip

    def cloud(self, i: int) -> dict[str, Any]:
        """The arrays of one cloud by name (xyz, normals, x, parts, faces), those that are there."""
        low, high = self.ptr[i], self.ptr[i + 1]
        found = {name: getattr(self, name) for name in ("xyz", "normals", "x", "parts")}
        held: dict[str, Any] = {name: values[low:high] for name, values in found.items() if values is not None}
        if self.faces is not None:
            held["faces"] = self.faces[i]
        return held


def group_of(clouds: Clouds) -> tuple[str, ...]:
    """The group of each cloud; a cloud is its own where the data name none."""
    return clouds.groups or clouds.ids


def schema_of(clouds: Clouds) -> dict[str, Any]:
    """What a model keeps: names of classes, parts and features in their order, and whether there are normals."""
    return {
        "classes": list(clouds.classes), "parts": list(clouds.part_names), "features": list(clouds.features),
        "normals": clouds.normals is not None,
    }  # fmt: skip


# -- sampling a mesh -----------------------------------------------------------------------------------------------------
def face_areas(vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Areas float64 [f] and outward unit normals float64 [f, 3] (by the winding; 0 of a face without area)."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    cross = np.cross(b - a, c - a)
    twice = np.linalg.norm(cross, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        normals = np.where(twice[:, None] > 0, cross / twice[:, None], 0.0)
    return twice / 2, normals


def sample_mesh(vertices: Array, faces: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """`n` points on the triangles, each face drawn by its area and the place on it evenly.

    vertices [v, 3], faces int [f, 3] -> points float32 [n, 3], normals of their faces float32 [n, 3], faces int64 [n].
    ``ValueError`` where no face has an area.
    """
    areas, normals = face_areas(vertices, faces)
    total = np.cumsum(areas)
    if not len(total) or not total[-1] > 0:
        raise ValueError("no face has an area")
    face = np.searchsorted(total, rng.random(n) * total[-1], side="right")
    root, v = np.sqrt(rng.random(n))[:, None], rng.random(n)[:, None]
    a, b, c = (vertices[faces[face, k]].astype(np.float64) for k in range(3))
    points = (1 - root) * a + root * (1 - v) * b + root * v * c
    return points.astype(np.float32), normals[face].astype(np.float32), face


# -- the data sets -------------------------------------------------------------------------------------------------------
class PointSetData(Dataset):
    """What all clouds share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "points"

    def read(self) -> Clouds:
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        return facts(self.read())

    def check(self) -> list[str]:
        return fact_lines(self.read())

    def write(self, to: Path) -> None:
        write_clouds(self.read(), to)

    def whole(self) -> Part:
        clouds = self.read()
        return Part(clouds, Asked(np.arange(len(clouds)), clouds.ids), None, schema_of(clouds))

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        return GivenPoints.hold(given) if isinstance(given, Clouds) else None


def _kept(clouds: Clouds, name: str, make: Any) -> Any:
    if name not in clouds._cache:
        clouds._cache[name] = make()
    return clouds._cache[name]


def facts(clouds: Clouds) -> dict[str, Any]:
    """What `refuses` looks at; computed once a container."""
    return dict(_kept(clouds, "facts", lambda: _facts(clouds)))


def _facts(clouds: Clouds) -> dict[str, Any]:
    sizes, ptr = clouds.sizes, clouds.ptr
    low = np.minimum.reduceat(clouds.xyz, ptr[:-1]) if len(clouds) else np.zeros((1, 3))
    high = np.maximum.reduceat(clouds.xyz, ptr[:-1]) if len(clouds) else np.zeros((1, 3))
    extents = np.linalg.norm((high - low).astype(np.float64), axis=1)
    known = np.zeros(0, np.int64) if clouds.y is None else clouds.y[clouds.y >= 0]
    class_sizes = np.bincount(known, minlength=len(clouds.classes))
    parts = np.zeros(0, np.int64) if clouds.parts is None else clouds.parts[clouds.parts >= 0]
    part_sizes = np.bincount(parts, minlength=len(clouds.part_names))
    split = "none"
    if clouds.splits is not None:
        split = "/".join(str(int((clouds.splits == code).sum())) for code in range(3))
    doubled = sum(int(s) - len(np.unique(clouds.xyz[a:b], axis=0)) for s, a, b in zip(sizes, ptr, ptr[1:], strict=False))
    return {
        "clouds": len(clouds),
        "points": int(sizes.sum()),
        "largest": int(sizes.max(initial=0)),
        "median": int(np.median(sizes)) if len(sizes) else 0,
        "smallest": int(sizes.min()) if len(sizes) else 0,
        "normals": clouds.normals is not None,
        "features": len(clouds.features),
        "feature names": list(clouds.features),
        "classes": len(clouds.classes),
        "class sizes": {name: int(n) for name, n in zip(clouds.classes, class_sizes, strict=True)},
        "labelled": len(known),
        "parts": len(clouds.part_names),
        "part sizes": {name: int(n) for name, n in zip(clouds.part_names, part_sizes, strict=True)},
        "groups": len(set(group_of(clouds))),
        "split": split,
        "faces": 0 if clouds.faces is None else int(sum(len(f) for f in clouds.faces)),
        "low": [float(v) for v in low.min(0)],
        "high": [float(v) for v in high.max(0)],
        "largest extent": float(extents.max()),
        "smallest extent": float(extents.min()),
        "without extent": int((extents == 0).sum()),
        "duplicates": len(clouds) - len({_content(clouds.xyz[a:b]) for a, b in pairwise(ptr)}),
        "doubled points": int(doubled),
    }


def _content(xyz: Array) -> bytes:
    """The same for the same points in any order."""
    return hashlib.sha256(xyz[np.lexsort(xyz.T)].tobytes()).digest()


def fact_lines(clouds: Clouds) -> list[str]:
    """What was understood, for people."""
    f = facts(clouds)
    word = "mesh" if clouds.faces is not None else "cloud"

    def many(n: int) -> str:
        return f"{n} {word if n == 1 else 'meshes' if word == 'mesh' else 'clouds'}"

    spread = "" if f["smallest"] == f["largest"] else f" to {f['largest']} (median {f['median']})"
    lines = [f"{many(f['clouds'])} of {f['smallest']}{spread} points" + (f", {f['faces']} faces in all" if f["faces"] else "")]
    axes = ", ".join(f"{a} {lo:g} to {hi:g}" for a, lo, hi in zip("xyz", f["low"], f["high"], strict=True))
    lines.append(f"coordinates: {axes}; extents {f['smallest extent']:g} to {f['largest extent']:g}")
    lines.append("normals: " + ("yes" if f["normals"] else "by the faces" if f["faces"] else "none"))
    if f["features"]:
        ranges = zip(clouds.features, clouds.x.min(0), clouds.x.max(0), strict=True)  # type: ignore[union-attr]
        shown = [f"{name} {lo:g} to {hi:g}" for name, lo, hi in ranges]
        lines.append("features: " + ", ".join(shown[:8]) + (" …" if len(shown) > 8 else ""))
    for of, count in (("class", "labelled"), ("part", "")):
        if f.get(f"{of} sizes"):
            shown = [f"{name} {n}" for name, n in f[f"{of} sizes"].items()]
            listed = ", ".join(shown[:12]) + (" …" if len(shown) > 12 else "")
            head = f"{f[count]} labelled, {len(shown)} classes: " if count else f"{len(shown)} parts, points of each: "
            lines.append(head + listed)
    if not f["classes"]:
        lines.append("no cloud has a class")
    lines.append("no split of their own" if f["split"] == "none" else f"split train/valid/test: {f['split']}")
    if f["groups"] < f["clouds"]:
        lines.append(f"{f['groups']} groups, which no split tears apart")
    if f["duplicates"]:
        lines.append(f"{many(f['duplicates'])} with exactly the points of an earlier one; all are kept")
    if f["doubled points"]:
        lines.append(f"points that stand where another of their {word} does: {f['doubled points']}; all are kept")
    if f["without extent"]:
        lines.append(f"{many(f['without extent'])} without extent (one point, or all points equal): no shape can be read there")
    return lines + list(clouds.notes)


# -- users' files --------------------------------------------------------------------------------------------------------
class Listed(NamedTuple):
    """What a path says before a cloud is read: files, ids, class names (or none), groups, splits."""

    files: tuple[Path, ...]
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] = ()
    splits: tuple[str, ...] | None = None


class PointFiles(PointSetData):
    """A user's clouds, by path; their identity is names and bytes, not where they lie."""

    name: ClassVar[str] = "point-files"
    path: Path = setting(..., "a .ply, .xyz or .npz file, a folder of them, class folders, or a folder with clouds.csv")
    part_label: str = setting(
        "auto",
        "the column with the part label of a point, also as data.label; auto: 'part' or 'label' where there is one; or none",
    )

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """As of every value; ``label`` is short for `part_label` (a field of that name would hide a value's own label)."""
        return super().with_settings({"part_label" if key == "label" else key: v for key, v in settings.items()})

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By header: the first file has points, with faces for meshes and without for points."""
        return kind_of(path) == cls.kind

    def read(self) -> Clouds:
        listed, stamp = self._files()
        return _read_files(listed, self.part_label, stamp)

    def digest(self) -> str:
        listed, stamp = self._files()
        said = [listed.ids, listed.labels, listed.groups, listed.splits]
        return digest_of([self.name, self.revision, self.part_label, repr(said), bytes_digest(stamp)])

    def _files(self) -> tuple[Listed, tuple[Stamp, ...]]:
        listed = list_files(self.path)
        return listed, stamps(listed.files, self.path)


class MeshFiles(PointFiles):
    """A user's triangle meshes, by path."""

    name: ClassVar[str] = "mesh-files"
    kind: ClassVar[str] = "meshes"


def kind_of(path: Path) -> str | None:
    """``points``, ``meshes`` or none: what the first file of a path that can be told is, by its header.

    Where none can and there is a .ply or .xyz, ``points``: their reader then says what is wrong.
    """
    files = [path] if path.is_file() else _first(path)
    found = next(filter(None, map(_kind_of_file, files)), None)
    if found is None and any(file.suffix.lower() in (".ply", ".xyz") for file in files):
        return "points"
    return found


def _kind_of_file(file: Path) -> str | None:
    suffix = file.suffix.lower()
    if suffix == ".ply":
        lines = _ply_header(file)
        if not lines or lines[0] != "ply":
            return None
        return "meshes" if any(w[:2] == ["element", "face"] and w[2:] != ["0"] for w in map(str.split, lines)) else "points"
    if suffix == ".npz":
        names = set(_npz_names(file))
        if not names & set(_NPZ_POINTS):
            return None
        return "meshes" if "faces" in names else "points"
    return "points" if suffix == ".xyz" else None


def _first(path: Path) -> list[Path]:
    """The clouds of the first folder that has some."""
    if not path.is_dir():
        return []
    folders = (path, *_folders(path), *(inner for outer in _folders(path) for inner in _folders(outer)))
    return next(filter(None, map(_clouds_in, folders)), [])


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _clouds_in(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _ply_header(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            head = file.read(65_536)
    except OSError:
        return []
    return [line.strip() for line in head.partition(b"end_header")[0].decode("latin-1").splitlines()]


def _npz_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as held:
            return [name.removesuffix(".npy") for name in held.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


def list_files(path: Path) -> Listed:
    """The clouds of a user's path with what the folders or ``clouds.csv`` say about each; nothing is read yet."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give a .ply, .xyz or .npz file, or a folder of them")
    if path.is_file():
        return Listed((path,), (path.name,), ("",))
    if (path / TABLE).is_file():
        return _from_table(path)
    outer = [f for f in _folders(path) if f.name.lower() in SPLITS and any(_clouds_in(g) for g in _folders(f))]
    if outer:
        strange = [f.name for f in _folders(path) if f not in outer]
        if strange:
            raise UserError(f"{path} holds {outer[0].name} and beside it {strange[0]}; expected train, valid and test only")
        found = [(f, *_class_folders(f)) for f in outer]
        files = tuple(file for _, some, _ in found for file in some)
        splits = tuple(SPLIT_NAMES[SPLITS[f.name.lower()]] for f, some, _ in found for _ in some)
        return Listed(files, _ids(path, files), tuple(w for _, _, words in found for w in words), (), splits)
    held, words = _class_folders(path)
    loose = _clouds_in(path)
    if held and loose:
        raise UserError(
            f"{path} holds class folders and, beside them, {loose[0].name}; move each file into the folder of its class"
        )
    files = tuple(held or loose)
    if not files:
        raise UserError(f"{path} holds no .ply, .xyz or .npz file; expected one folder a class, or the files alone")
    return Listed(files, _ids(path, files), tuple(words) or ("",) * len(files))


def _ids(root: Path, files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(f.relative_to(root).as_posix() for f in files)


def _class_folders(path: Path) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    labels: list[str] = []
    for folder in _folders(path):
        found = _clouds_in(folder)
        if not found:
            inner = next((f for f in _folders(folder) if _clouds_in(f)), None)
            where = f"its files lie a level deeper, in {inner.name}" if inner else "it holds no .ply, .xyz or .npz file"
            raise UserError(f"{folder} should be the folder of a class, but {where}")
        files += found
        labels += [folder.name] * len(found)
    return files, labels


def _from_table(path: Path) -> Listed:
    from .table import column_named, line_of, need, read_table

    table = path / TABLE
    frame = read_table(table)
    names = frame[need(table, frame, "file")].to_list()
    words: dict[str, list[str]] = {}
    for role in ("label", "group", "split"):
        column = column_named(frame, role)
        if column is not None:
            words[role] = frame[column].to_list()
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in seen:
            raise UserError(f"{table}, line {line_of(row)}: {name!r} stands on line {line_of(seen[name])}, too")
        seen[name] = row
        if not (path / name).resolve().is_relative_to(path.resolve()):
            raise UserError(f"{table}, line {line_of(row)}: {name!r} lies outside of {path}")
        if not name or not (path / name).is_file():
            raise UserError(f"{table}, line {line_of(row)}: there is no file {name!r} in {path}")
        if "split" in words and words["split"][row] and words["split"][row].lower() not in SPLITS:
            text = words["split"][row]
            raise UserError(f"{table}, line {line_of(row)}: split {text!r}; expected train, valid, test or nothing")
        if "group" in words and not words["group"][row]:
            raise UserError(
                f"{table}, line {line_of(row)}, column 'group': empty; name the group of each file, or drop the column"
            )
    splits = None
    if "split" in words:
        splits = tuple(SPLIT_NAMES[SPLITS[t.lower()]] if t else "" for t in words["split"])
    labels = tuple(words.get("label", [""] * len(names)))
    return Listed(tuple(path / n for n in names), tuple(names), labels, tuple(words.get("group", ())), splits)


# -- reading one file ----------------------------------------------------------------------------------------------------
class One(NamedTuple):
    """One file: columns by name (numbers, or texts), the faces of a mesh, and names of part labels that it brings."""

    columns: dict[str, Array]
    faces: Array | None = None
    names: Mapping[int, str] = {}
    notes: tuple[str, ...] = ()
    line: int = 0  # the line of the first point, where the file is text


def read_one(path: Path) -> One:
    """The columns of one file. `UserError` names the file and what is wrong with it."""
    reader = {".ply": _read_ply, ".xyz": _read_xyz, ".npz": _read_npz}.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: expected .ply, .xyz or .npz; convert it")
    found = reader(path)
    missing = [axis for axis in XYZ if axis not in found.columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; found {', '.join(found.columns) or 'none'}")
    if not len(found.columns["x"]):
        raise UserError(f"{path} holds no point; remove the file, or write its points again")
    return found


def _named(name: str) -> str:
    plain = name.strip().lower()
    return plain if plain in XYZ else _NORMAL_WORDS.get(plain, name.strip())


def _read_ply(path: Path) -> One:
    plyfile = _plyfile()
    try:
        held = plyfile.PlyData.read(str(path), mmap=False)
    except (plyfile.PlyParseError, ValueError, EOFError, UnicodeDecodeError, KeyError, IndexError, OSError) as error:
        raise UserError(f"{path} cannot be read as PLY: {error or 'it is cut short'}; write it again") from None
    elements = {element.name: element for element in held.elements}
    if "vertex" not in elements:
        raise UserError(f"{path} has no element 'vertex'; found {', '.join(elements) or 'none'}")
    vertex = elements["vertex"].data
    columns: dict[str, Array] = {}
    for name in vertex.dtype.names or ():
        if vertex.dtype[name].kind == "O":
            raise UserError(f"{path}: the property {name!r} of a vertex is a list; expected one number a point")
        columns[_named(name)] = np.asarray(vertex[name])
    faces = None
    if "face" in elements and len(elements["face"].data):
        lists = next((n for n in elements["face"].data.dtype.names or () if n in ("vertex_indices", "vertex_index")), None)
        if lists is None:
            raise UserError(f"{path}: the element 'face' has no property vertex_indices")
        faces = _triangles(path, list(elements["face"].data[lists]), len(vertex))
    names: dict[int, str] = {}
    for comment in held.comments:
        words = comment.split(maxsplit=2)
        if len(words) == 3 and words[0] == "part" and words[1].isdecimal():
            names[int(words[1])] = words[2]
    return One(columns, faces, names)


def _plyfile() -> Any:
    try:
        import plyfile
    except ImportError:
        raise UserError(".ply files need the extra 'points': pip install 'latticework[points]'") from None
    return plyfile


def _triangles(path: Path, faces: Sequence[Any], points: int) -> Array:
    """int64 [f, 3]: faces with more corners are cut into fans."""
    if all(len(face) == 3 for face in faces):
        return _checked_faces(path, np.stack(faces).astype(np.int64), points)
    found = []
    for i, face in enumerate(faces):
        corners = np.asarray(face, np.int64)
        if len(corners) < 3:
            raise UserError(f"{path}: face {i} has {len(corners)} corners; a face has three or more")
        found.append(np.stack([np.full(len(corners) - 2, corners[0]), corners[1:-1], corners[2:]], 1))
    return _checked_faces(path, np.concatenate(found), points)


def _checked_faces(path: Path, faces: Array, points: int) -> Array:
    outside = np.flatnonzero(((faces < 0) | (faces >= points)).any(1))
    if len(outside):
        raise UserError(f"{path}: face {outside[0]} names vertex {int(faces[outside[0]].max())}, and there are {points}")
    return faces.astype(np.int64)


def _read_xyz(path: Path) -> One:
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); expected lines of numbers: x y z …") from None
    lines = text.splitlines()
    comma = "," in next((line for line in lines if line.strip()), "")
    cells = [(line.replace(",", " ") if comma else line).split() for line in lines]
    header: list[str] | None = None
    start = 0
    for row in cells:  # lines of comments, the last of which may name the columns, or a line of names
        if not row:
            start += 1
        elif row[0].startswith(("#", "//")):
            words = [w for w in (row[0].lstrip("#/"), *row[1:]) if w]
            header = words if {w.lower() for w in words[:3]} == set(XYZ) else header
            start += 1
        elif not is_number(row[0]) and {w.lower() for w in row[:3]} == set(XYZ):
            header, start = row, start + 1
            break
        else:
            break
    rows = [(number, row) for number, row in enumerate(cells[start:], start + 1) if row]
    if rows and len(rows[0][1]) == 1 and rows[0][1][0].isdecimal():
        raise UserError(
            f"{path}, line {rows[0][0]}: one number alone, as in the .xyz files of chemistry; expected three or more a line: x y z …"
        )
    if not rows:
        raise UserError(f"{path} holds no point; remove the file, or write its points again")
    width = len(header) if header else len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            against = "the header has" if header else f"line {rows[0][0]} has"
            raise UserError(f"{path}, line {number}: {len(row)} values where {against} {width}")
    if width < 3:
        raise UserError(f"{path}, line {rows[0][0]}: {width} values; expected three or more: x y z …")
    table = np.array([row for _, row in rows])
    named = [_named(w) for w in header] if header else [*XYZ, *(f"c{i}" for i in range(4, width + 1))]
    if len(set(named)) < len(named):
        raise UserError(f"{path}: its header names a column twice: {' '.join(named)}")
    columns: dict[str, Array] = {}
    for i, name in enumerate(named):
        try:
            columns[name] = table[:, i].astype(np.float64)
        except ValueError:
            if header and name not in (*XYZ, *NORMAL):
                columns[name] = table[:, i]  # a label in words, or an error once it is read as a feature
                continue
            bad = next(r for r, cell in enumerate(table[:, i]) if not is_number(cell))
            raise UserError(
                f"{path}, line {rows[bad][0]}, column {name!r}: {str(table[bad, i])!r} where a number is expected"
            ) from None
    notes: tuple[str, ...] = ()
    if not header and width >= 6:
        lengths = np.linalg.norm(np.stack([columns[c] for c in ("c4", "c5", "c6")], 1), axis=1)
        if np.abs(lengths - 1).max() < 1e-2:
            columns = {{"c4": "nx", "c5": "ny", "c6": "nz"}.get(k, k): v for k, v in columns.items()}
            notes = ("columns 4 to 6 have no name and length 1: taken for normals",)
        else:
            notes = ("columns from the fourth on have no name: taken for features c4, c5 …",)
    return One(columns, None, {}, notes, rows[0][0])


def _read_npz(path: Path) -> One:
    try:
        arrays = read_arrays(path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; write plain arrays with numpy.savez") from None
    key = next((name for name in _NPZ_POINTS if name in arrays), None)
    if key is None:
        raise UserError(f"{path} has no array 'xyz'; found {', '.join(arrays) or 'none'}")
    xyz = arrays.pop(key)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype.kind not in "fiu":
        raise UserError(f"{path}: {key} is {xyz.dtype} {list(xyz.shape)}; expected numbers [n, 3]")
    columns: dict[str, Array] = {axis: xyz[:, i] for i, axis in enumerate(XYZ)}
    faces = arrays.pop("faces", None)
    names: dict[int, str] = {}
    if "part_names" in arrays:
        names = dict(enumerate(str(w) for w in arrays.pop("part_names").tolist()))
    if faces is not None:
        if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
            raise UserError(f"{path}: faces is {faces.dtype} {list(faces.shape)}; expected whole numbers [f, 3]")
        if not len(faces):
            raise UserError(f"{path} has an array 'faces' without a face; leave the array out for points")
        faces = _checked_faces(path, faces.astype(np.int64), len(xyz))
    for name, values in arrays.items():
        if values.ndim not in (1, 2) or len(values) != len(xyz) or values.dtype.kind not in "biufU":
            raise UserError(
                f"{path}: the array {name!r} is {values.dtype} {list(values.shape)}; expected one row for each of {len(xyz)} points"
            )
        if name.lower() in ("normals", "normal") and values.shape[1:] == (3,):
            columns |= {n: values[:, i] for i, n in enumerate(NORMAL)}
        elif values.ndim == 1:
            columns[_named(name)] = values
        else:
            columns |= {f"{name}{i}": values[:, i] for i in range(values.shape[1])}
    return One(columns, faces, names)


# -- many files ----------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=4)
def _read_files(listed: Listed, label: str, stamp: tuple[Stamp, ...]) -> Clouds:
    return assemble(listed, [read_one(file) for file in listed.files], label)


def assemble(listed: Listed, found: Sequence[One], label: str = "auto") -> Clouds:
    """Files with the same columns as one container. `UserError` names the file, the column and the point."""
    first, files = found[0], listed.files
    for file, one in zip(files, found, strict=True):
        if (one.faces is None) != (first.faces is None):
            with_faces, without = (file, files[0]) if one.faces is not None else (files[0], file)
            raise UserError(f"{with_faces} is a mesh and {without} has points alone; give one of the two kinds")
        differ = sorted(set(one.columns) ^ set(first.columns))
        if differ:
            has, lacks = (file, files[0]) if differ[0] in one.columns else (files[0], file)
            raise UserError(f"{has} has a column {differ[0]!r}, which {lacks} lacks; all files need the same columns")
    columns = {name: np.concatenate([one.columns[name] for one in found]) for name in first.columns}
    sizes = np.array([len(one.columns["x"]) for one in found], np.int64)
    column = _label_column(label, columns, files[0])
    parts, part_names = _parts(columns.pop(column), found) if column else (None, ())
    notes = list(dict.fromkeys(n for one in found for n in one.notes))
    if column:
        notes.append(f"part labels: the column {column!r}")
    for name, values in columns.items():
        _finite(name, values, sizes, listed, found)
    xyz = np.stack([columns.pop(axis) for axis in XYZ], 1).astype(np.float32)
    normals = None
    if set(NORMAL) <= set(columns):
        normals = np.stack([columns.pop(axis) for axis in NORMAL], 1).astype(np.float32)
    features = tuple(columns)
    x = np.stack([columns[name] for name in features], 1).astype(np.float32) if features else None
    classes = tuple(sorted({word for word in listed.labels if word}))
    code = {name: i for i, name in enumerate(classes)}
    y = np.array([code.get(word, -1) for word in listed.labels], np.int64) if classes else None
    splits = None if listed.splits is None else np.array([SPLITS.get(word, -1) for word in listed.splits], np.int8)
    faces = None if first.faces is None else tuple(one.faces for one in found if one.faces is not None)
    return Clouds(
        listed.ids, sizes, xyz, normals, x, features, parts, part_names, y, classes, listed.groups, faces, splits, tuple(notes)
    )


def _label_column(label: str, columns: Mapping[str, Array], file: Path) -> str | None:
    if label == "none":
        return None
    if label == "auto":
        return next((name for name in LABELS if name in columns and name not in XYZ), None)
    if label not in columns or label in XYZ:
        others = [c for c in columns if c not in (*XYZ, *NORMAL)]
        raise UserError(f"{file} has no column {label!r} for the part labels; further columns: {', '.join(others) or 'none'}")
    return label


def _parts(values: Array, found: Sequence[One]) -> tuple[Array, tuple[str, ...]]:
    """Numbers and names of the parts; -1, and an empty text, are unknown."""
    if values.dtype.kind in "U":
        names = tuple(sorted(set(values.tolist()) - {"", UNKNOWN}))
        code = {name: i for i, name in enumerate(names)}
        return np.array([code.get(v, -1) for v in values.tolist()], np.int64), names
    whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        bad = values[np.flatnonzero(whole != values)[0]]
        raise UserError(f"a part label is {bad:g}; labels are whole numbers or names, -1 where unknown")
    told: dict[int, str] = {}
    for one in found:
        told |= one.names
    numbers = np.unique(np.concatenate([whole[whole >= 0], np.array(sorted(told), np.int64)]))
    place = np.searchsorted(numbers, whole)
    return np.where(whole >= 0, place, -1).astype(np.int64), tuple(told.get(int(v), str(int(v))) for v in numbers)


def _finite(name: str, values: Array, sizes: Array, listed: Listed, found: Sequence[One]) -> None:
    if values.dtype.kind == "U":
        raise UserError(f"{listed.files[0]}, column {name!r}: {str(values[0])!r} where a number is expected")
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)))
    if not len(bad):
        return
    ends = np.cumsum(sizes)
    cloud = int(np.searchsorted(ends, bad[0], side="right"))
    point = int(bad[0] - (ends[cloud] - sizes[cloud]))
    start = found[cloud].line
    where = f"line {start + point}" if start else f"point {point}"
    raise UserError(
        f"{listed.files[cloud]}, {where}, column {name!r}: {values[bad[0]]:g} where a finite number is expected"
        + (f" ({len(bad)} such values)" if len(bad) > 1 else "")
    )


# -- writing -------------------------------------------------------------------------------------------------------------
def write_clouds(clouds: Clouds, to: Path) -> None:
    """One file where `to` ends in .ply, .xyz or .npz and there is one cloud; else a folder with ``clouds.csv``, read back as is."""
    if to.suffix.lower() in SUFFIXES:
        if len(clouds) != 1:
            raise UserError(f"{to} is one file, and there are {len(clouds)} clouds; name a folder")
        write_whole(to, encode(clouds, 0, to.suffix.lower()))
        return
    import csv

    def fill(folder: Path) -> None:
        (folder / "clouds").mkdir()
        width = len(str(max(len(clouds) - 1, 0)))
        roles = [
            w
            for w, held in (("label", clouds.y), ("group", clouds.groups), ("split", clouds.splits))
            if held is not None and len(held)
        ]
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", *roles])
            for i in range(len(clouds)):
                name = f"clouds/{i:0{width}d}.ply"
                (folder / name).write_bytes(encode(clouds, i, ".ply"))
                words = {
                    "label": clouds.classes[clouds.y[i]] if clouds.y is not None and clouds.y[i] >= 0 else "",
                    "group": clouds.groups[i] if clouds.groups else "",
                    "split": SPLIT_NAMES[clouds.splits[i]] if clouds.splits is not None and clouds.splits[i] >= 0 else "",
                }
                table.writerow([name, *(words[role] for role in roles)])

    write_folder(to, fill)


def columns_of(clouds: Clouds, i: int) -> dict[str, Array]:
    """The columns of one cloud by name, part labels last."""
    held = clouds.cloud(i)
    columns = {axis: held["xyz"][:, k] for k, axis in enumerate(XYZ)}
    if "normals" in held:
        columns |= {axis: held["normals"][:, k] for k, axis in enumerate(NORMAL)}
    if "x" in held:
        columns |= {name: held["x"][:, k] for k, name in enumerate(clouds.features)}
    if "parts" in held:
        columns["part"] = held["parts"].astype(np.int32)
    return columns


def _word(name: str) -> str:
    """A part's name as .xyz can hold it."""
    if not name or name == UNKNOWN or any(c.isspace() or c == "," for c in name) or (is_number(name) and not name.isdecimal()):
        raise UserError(f"the part {name!r} is no single word, which .xyz needs; write .ply or .npz, or name it otherwise")
    return name


def encode(clouds: Clouds, i: int, suffix: str) -> bytes:
    """The bytes of one cloud as .ply (binary), .xyz (with a line of names; parts by name) or .npz."""
    import io

    columns, held = columns_of(clouds, i), clouds.cloud(i)
    if suffix == ".xyz":
        text = {name: [f"{v:.9g}" for v in values.tolist()] for name, values in columns.items()}
        if "parts" in held:
            words = [*map(_word, clouds.part_names), UNKNOWN]  # the last for -1
            text["part"] = [words[v] for v in held["parts"].tolist()]
        lines = [" ".join(text), *(" ".join(row) for row in zip(*text.values(), strict=True))]
        return ("\n".join(lines) + "\n").encode()
    out = io.BytesIO()
    if suffix == ".npz":
        arrays: dict[str, Any] = {"xyz": held["xyz"], **{k: v for k, v in columns.items() if k not in (*XYZ, *NORMAL)}}
        arrays |= {name: held[name] for name in ("normals", "faces") if name in held}
        if clouds.parts is not None:
            arrays["part_names"] = np.array(clouds.part_names)
        np.savez_compressed(out, **arrays)
        return out.getvalue()
    plyfile = _plyfile()
    vertex = np.empty(len(held["xyz"]), [(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        vertex[name] = values
    elements = [plyfile.PlyElement.describe(vertex, "vertex")]
    if "faces" in held:
        face = np.empty(len(held["faces"]), [("vertex_indices", "i4", (3,))])
        face["vertex_indices"] = held["faces"]
        elements.append(plyfile.PlyElement.describe(face, "face"))
    comments = [f"part {k} {name}" for k, name in enumerate(clouds.part_names)]
    plyfile.PlyData(elements, byte_order="<", comments=comments).write(out)
    return out.getvalue()


# -- made in Python ------------------------------------------------------------------------------------------------------
class GivenPoints(Given, PointSetData):
    """Clouds made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-points"

    @classmethod
    def hold(cls, clouds: Clouds) -> GivenPoints:
        """Clouds, or meshes where they have faces, as a data set. `UserError` where an array does not fit the others."""
        n, b = len(clouds.xyz), len(clouds)
        if (
            not b
            or len(clouds.sizes) != b
            or clouds.xyz.shape != (n, 3)
            or int(clouds.sizes.sum()) != n
            or clouds.sizes.min() < 1
        ):
            raise UserError(
                f"clouds are ids, sizes [B] of 1 or more and xyz [{int(clouds.sizes.sum())}, 3], not {clouds.xyz.shape}"
            )
        if len(set(clouds.ids)) < b:
            raise UserError("two clouds have the same id")
        for what, values, rows in (
            ("normals", clouds.normals, n), ("x", clouds.x, n), ("parts", clouds.parts, n), ("y", clouds.y, b),
            ("groups", clouds.groups or None, b), ("faces", clouds.faces, b), ("splits", clouds.splits, b),
        ):  # fmt: skip
            if values is not None and len(values) != rows:
                raise UserError(f"{what} has {len(values)} rows where {rows} are expected")
        for what, values in (("xyz", clouds.xyz), ("normals", clouds.normals), ("x", clouds.x)):
            if values is not None and not np.isfinite(values).all():
                raise UserError(f"{what} has a value that is not finite")
        arrays = (
            clouds.sizes, clouds.xyz, clouds.normals, clouds.x, clouds.parts, clouds.y, clouds.splits, *(clouds.faces or ()),
        )  # fmt: skip
        words = (clouds.ids, clouds.features, clouds.part_names, clouds.classes, clouds.groups)
        digest = arrays_digest(arrays, words)
        cls._held[digest] = clouds
        return (GivenMeshes if clouds.faces is not None else GivenPoints)(content=digest)


class GivenMeshes(GivenPoints):
    """Meshes made in Python."""

    name: ClassVar[str] = "given-meshes"
    kind: ClassVar[str] = "meshes"
