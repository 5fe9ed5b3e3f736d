"""The kind *images*: pictures of one size with class labels: users' folders, built-in sets, the catalogue.

A user's folder holds one sub-folder a class (``cat/1.png``), or such folders inside ``train``, ``valid`` and ``test``, or a
table ``labels.csv`` (file,label[,split]) that names its pictures; without any of these its pictures have no label.
Pixels are uint8 ``[n, H, W, C]``, C = 1 where every picture is grey, else 3.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .mirror import digest_of_file, locate

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[Any]
TRAIN, VALID, TEST = 0, 1, 2
SPLITS: Mapping[str, int] = {"train": TRAIN, "valid": VALID, "validation": VALID, "val": VALID, "test": TEST}
SPLIT_NAMES = ("train", "valid", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_SPLIT_SEED = 0  # of the splits that the built-in sets and the catalogue have here


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures of one size.

    pixels: uint8 [n, H, W, C]; labels: int64 [n], -1 where unknown; ids: a text each; classes: names, in the order of the
    labels; splits: int8 [n], 0 train, 1 valid, 2 test, -1 none of them, or none where the data bring no split; notes: what
    reading did.
    """

    pixels: Array
    labels: Array
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    splits: Array | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.pixels.shape[1:]
        return int(height), int(width), int(channels)

    def subset(self, index: Array) -> Images:
        """Some of the pictures, in the order of `index`."""
        splits = None if self.splits is None else self.splits[index]
        return replace(
            self, pixels=self.pixels[index], labels=self.labels[index], ids=tuple(self.ids[i] for i in index), splits=splits
        )

    def hidden(self) -> Images:
        """The same pictures without their labels and splits."""
        return replace(self, labels=np.full(len(self), -1, np.int64), splits=None)

    def schema(self) -> dict[str, Any]:
        """What a model keeps: class names in their order, height, width, channels."""
        height, width, channels = self.size
        return {"classes": list(self.classes), "height": height, "width": width, "channels": channels}


class ImageSet(Dataset):
    """What all images share: facts and the lines of the check."""

    kind: ClassVar[str] = "images"

    def read(self) -> Images:
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        images = self.read()
        height, width, channels = images.size
        known = images.labels[images.labels >= 0]
        sizes = np.bincount(known, minlength=len(images.classes))
        split = "none"
        if images.splits is not None:
            split = "/".join(str(int(((images.splits == code) & (images.labels >= 0)).sum())) for code in (TRAIN, VALID, TEST))
        return {
            "images": len(images),
            "height": height,
            "width": width,
            "channels": channels,
            "classes": len(images.classes),
            "labelled": len(known),
            "class sizes": {name: int(n) for name, n in zip(images.classes, sizes, strict=True)},
            "split": split,
            "duplicates": _duplicates(images),
        }

    def check(self) -> list[str]:
        facts = self.facts()
        colour = "grey" if facts["channels"] == 1 else "colour"
        lines = [f"{facts['images']} images of {facts['width']}x{facts['height']}, {colour}"]
        if facts["labelled"]:
            sizes = facts["class sizes"]
            shown = ", ".join(f"{name} {n}" for name, n in list(sizes.items())[:12]) + (" …" if len(sizes) > 12 else "")
            lines.append(f"{facts['labelled']} labelled, {facts['classes']} classes: {shown}")
        else:
            lines.append("no image is labelled: they can be predicted, not learnt from")
        lines.append("no split of their own" if facts["split"] == "none" else f"split train/valid/test: {facts['split']}")
        if facts["duplicates"]:
            lines.append(f"{facts['duplicates']} images are exact copies of an earlier one; all are kept")
        return lines + list(self.read().notes)

    def write(self, to: Path) -> None:
        write_images(self.read(), to)

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        if isinstance(given, Images):
            return from_arrays(given.pixels, given.labels, given.classes, given.splits, given.ids)
        return None


_counted: weakref.WeakKeyDictionary[Images, int] = weakref.WeakKeyDictionary()


def _duplicates(images: Images) -> int:
    """How many pictures are exact copies of an earlier one; counted once a set."""
    if images not in _counted:
        _counted[images] = len(images) - len({hashlib.sha256(p.tobytes()).digest() for p in images.pixels})
    return _counted[images]


# -- users' files --------------------------------------------------------------------------------------------------------
class Listed:
    """What a folder says before any picture is decoded: files, their class names (or none) and splits (or none)."""

    def __init__(self, files: Sequence[Path], ids: Sequence[str], labels: Sequence[str], splits: Sequence[str] | None) -> None:
        self.files, self.ids, self.labels, self.splits = tuple(files), tuple(ids), tuple(labels), splits


class ImageFiles(ImageSet):
    """A user's pictures, by path; their identity is names and bytes, not where they lie."""

    name: ClassVar[str] = "image-files"
    path: Path = setting(..., "a folder of class folders, a folder with labels.csv, a flat folder, or one picture")
    side: int = setting(0, "0: pictures as they are; else each is scaled and centre-cropped to side x side", ge=0, le=4096)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By content: PNG or JPEG files in class folders, in split folders, beside a labels.csv, or alone."""
        if path.is_file():
            return _is_picture(path)
        if not path.is_dir():
            return False
        if (path / "labels.csv").is_file():
            from .table import header

            return "file" in header(path / "labels.csv")
        inside = [*_folders(path), *(c for s in _folders(path) if s.name.lower() in SPLITS for c in _folders(s))]
        first = next((files[0] for folder in (path, *inside) if (files := _pictures(folder))), None)
        return first is not None and _is_picture(first)

    def read(self) -> Images:
        return _read_files(str(self.path), self.side, _stamp(self.path))

    def digest(self) -> str:
        return digest_of([self.name, self.revision, self.side, _files_digest(str(self.path), _stamp(self.path))])


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _is_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(_MAGIC)
    except OSError:
        return False


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder of pictures")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(p, p.stat()) for p in files if p.suffix.lower() in SUFFIXES or p.name == "labels.csv"]
    return tuple((str(p), s.st_mtime_ns, s.st_size) for p, s in stats)


@lru_cache(maxsize=8)
def _files_digest(path: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    listed = list_files(Path(path))
    lines = [
        f"{i}\t{label}\t{'' if listed.splits is None else listed.splits[n]}\t{_sha(file)}"
        for n, (i, label, file) in enumerate(zip(listed.ids, listed.labels, listed.files, strict=True))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sha(file: Path) -> str:
    stat = file.stat()
    return digest_of_file(str(file), stat.st_mtime_ns, stat.st_size)


def list_files(path: Path) -> Listed:
    """The pictures of a user's path with what the folder says about each; nothing is decoded."""
    if path.is_file():
        return Listed([path], [path.name], [""], None)
    if (path / "labels.csv").is_file():
        return _from_table(path)
    split_folders = [f for f in _folders(path) if f.name.lower() in SPLITS and _folders(f)]
    if split_folders:
        return _from_splits(path, split_folders)
    files, labels = _class_folders(path)
    if not files:
        files, labels = _pictures(path), [""] * len(_pictures(path))
    elif loose := _pictures(path):
        raise UserError(
            f"{path} holds class folders and, beside them, {loose[0].name}"
            + (f" and {len(loose) - 1} more pictures" if len(loose) > 1 else "")
            + "; move each into the folder of its class"
        )
    if not files:
        raise UserError(f"{path} holds no PNG or JPEG pictures; expected one folder a class, or labels.csv (file,label)")
    return Listed(files, [_id(path, f) for f in files], labels, None)


def _id(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()


def _class_folders(path: Path) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    labels: list[str] = []
    for folder in _folders(path):
        found = _pictures(folder)
        if not found:
            inner = next((f for f in _folders(folder) if _pictures(f)), None)
            where = f"its pictures lie a level deeper, in {inner.name}" if inner else "it holds no PNG or JPEG picture"
            raise UserError(f"{folder} should be the folder of a class, but {where}")
        files += found
        labels += [folder.name] * len(found)
    return files, labels


def _from_splits(path: Path, folders: Sequence[Path]) -> Listed:
    strange = [f.name for f in _folders(path) if f not in folders]
    if strange:
        raise UserError(f"{path} holds {folders[0].name} and beside it {strange[0]}; expected train, valid and test only")
    files: list[Path] = []
    labels: list[str] = []
    splits: list[str] = []
    for folder in folders:
        found, words = _class_folders(folder)
        files += found
        labels += words
        splits += [SPLIT_NAMES[SPLITS[folder.name.lower()]]] * len(found)
    return Listed(files, [_id(path, f) for f in files], labels, splits)


def _from_table(path: Path) -> Listed:
    from .table import column_named, line_of, need, read_table

    table = path / "labels.csv"
    frame = read_table(table)
    names = frame[need(table, frame, "file")].to_list()
    labels = frame[need(table, frame, "label")].to_list()
    column = column_named(frame, "split")
    splits = None
    if column is not None:
        splits = [text.lower() for text in frame[column].to_list()]
        for row, text in enumerate(splits):
            if text and text not in SPLITS:
                raise UserError(f"{table}, line {line_of(row)}: split {text!r}; expected train, valid, test or nothing")
        splits = [SPLIT_NAMES[SPLITS[t]] if t else "" for t in splits]
    root = path.resolve()
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in seen:
            raise UserError(f"{table}, line {line_of(row)}: {name!r} stands on line {line_of(seen[name])}, too")
        seen[name] = row
        if not (path / name).resolve().is_relative_to(root):
            raise UserError(f"{table}, line {line_of(row)}: {name!r} lies outside of {path}")
        if not name or not (path / name).is_file():
            raise UserError(f"{table}, line {line_of(row)}: there is no file {name!r} in {path}")
    return Listed([path / n for n in names], names, labels, splits)


@lru_cache(maxsize=4)
def _read_files(path: str, side: int, stamp: tuple[tuple[str, int, int], ...]) -> Images:
    listed = list_files(Path(path))
    acts: Counter[str] = Counter()
    found: list[Array] = []
    for file in listed.files:
        picture = read_picture(file, side, acts)
        if found and picture.shape[:2] != found[0].shape[:2]:
            (h, w), (k, v) = picture.shape[:2], found[0].shape[:2]
            raise UserError(
                f"{file} is {w}x{h}, but {listed.files[0]} is {v}x{k}; give pictures of one size, or -s data.side={min(k, v)} to "
                "scale and crop them all"
            )
        found.append(picture)
    grey = sum(p.shape[2] == 1 for p in found)
    if 0 < grey < len(found):
        acts[f"{grey} grey pictures among colour ones were given three equal channels"] = 0
        found = [np.repeat(p, 3, axis=2) if p.shape[2] == 1 else p for p in found]
    classes = tuple(sorted({label for label in listed.labels if label}))
    code = {name: i for i, name in enumerate(classes)}
    labels = np.array([code.get(label, -1) for label in listed.labels], np.int64)
    splits = None
    if listed.splits is not None:
        splits = np.array([SPLITS.get(word, -1) for word in listed.splits], np.int8)
    notes = tuple(f"{n} {text}" if n else text for text, n in acts.items())
    return Images(np.stack(found), labels, listed.ids, classes, splits, notes)


def read_picture(file: Path, side: int = 0, acts: Counter[str] | None = None) -> Array:
    """uint8 [H, W, 1] of a grey picture, [H, W, 3] of a coloured one; what was changed is counted in `acts`."""
    from PIL import Image as pil
    from PIL import ImageOps, UnidentifiedImageError

    acts = Counter() if acts is None else acts
    try:
        with pil.open(file) as opened:
            opened.load()
            picture: Image = opened
            if opened.format not in ("PNG", "JPEG"):
                raise UserError(f"{file} is {opened.format}, not PNG or JPEG; convert it")
            turned = ImageOps.exif_transpose(opened)
            if turned is not None and opened.getexif().get(0x0112, 1) != 1:
                acts["pictures were turned as their camera says (EXIF)"] += 1
                picture = turned
            picture = _plain(file, picture, acts)
            if side:
                if picture.size != (side, side):
                    acts[f"pictures were scaled and centre-cropped to {side}x{side}"] += 1
                picture = ImageOps.fit(picture, (side, side), pil.Resampling.BICUBIC)
            array = np.asarray(picture)
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        text = "cut short or no picture" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        raise UserError(f"{file} cannot be read: {text}; remove it or save it again as PNG or JPEG") from None
    return array[:, :, None] if array.ndim == 2 else array


def _plain(file: Path, picture: Image, acts: Counter[str]) -> Image:
    """The picture in mode L or RGB."""
    from PIL import Image as pil

    if picture.mode in ("L", "RGB"):
        if "transparency" not in picture.info:
            return picture
        picture = picture.convert("LA" if picture.mode == "L" else "RGBA")
    if picture.mode.startswith("I;16"):
        acts["16-bit pictures were reduced to 8 bits"] += 1
        return pil.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("RGBA", "LA", "PA"):
        target = "L" if picture.mode == "LA" else "RGB"
        picture = picture.convert("RGBA")
        if np.asarray(picture)[..., 3].min() < 255:
            acts["pictures with transparent parts were laid on white"] += 1
        ground = pil.new("RGBA", picture.size, (255, 255, 255, 255))
        return pil.alpha_composite(ground, picture).convert(target)
    if picture.mode == "RGB":
        return picture
    if picture.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        acts[f"pictures were converted from {picture.mode} to RGB"] += 1
        return picture.convert("RGB")
    raise UserError(f"{file} has pixels of mode {picture.mode}; save it with 8 bits a channel, grey or RGB")


def write_images(images: Images, to: Path) -> None:
    """A folder that `ImageFiles` reads back: pictures as PNG and labels.csv (file,label[,split]); it appears whole."""
    import csv

    from PIL import Image as pil

    from latticework.core.ledger import write_folder

    width = len(str(max(len(images) - 1, 0)))

    def fill(folder: Path) -> None:
        (folder / "images").mkdir()
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "label"] + (["split"] if images.splits is not None else []))
            for i, picture in enumerate(images.pixels):
                name = f"images/{i:0{width}d}.png"
                pil.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(folder / name)
                label = images.classes[images.labels[i]] if images.labels[i] >= 0 else ""
                split = []
                if images.splits is not None:
                    split = [SPLIT_NAMES[images.splits[i]] if images.splits[i] >= 0 else ""]
                table.writerow([name, label, *split])

    write_folder(to, fill)


# -- built in and catalogue ----------------------------------------------------------------------------------------------
class Digits(ImageSet):
    """scikit-learn's 1,797 handwritten digits of 8x8: 1,167 train, 130 valid and 500 test images by one fixed draw.

    The values 0 to 16 are stretched to 0 to 255 and rounded, which loses nothing.
    """

    name: ClassVar[str] = "digits"

    def read(self) -> Images:
        return _digits()

    def digest(self) -> str:
        images = _digits()
        assert images.splits is not None
        content = hashlib.sha256(images.pixels.tobytes() + images.labels.tobytes() + images.splits.tobytes()).hexdigest()
        return digest_of([self.name, self.revision, content])


@lru_cache(maxsize=1)
def _digits() -> Images:
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(pixels))
    splits = np.full(len(pixels), TRAIN, np.int8)
    splits[order[:500]], splits[order[500:630]] = TEST, VALID
    ids = tuple(f"digit-{i:04d}" for i in range(len(pixels)))
    notes = ("values 0 to 16 stretched to 0 to 255",)
    return Images(pixels, found.target.astype(np.int64), ids, tuple("0123456789"), splits, notes)


_GARMENTS = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# name -> (classes, ((file, SHA-256) of the train images), (file, SHA-256) of the test images)
CATALOGUE: Mapping[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, str]]] = {
    "fashion-mnist": (
        _GARMENTS,
        (("train.npz", "331b31361b8bd33363ead49e4cc2ee0d7d9723b16db2c85e30526b858e804253"),),
        ("test.npz", "977c73c31a40a5d610af0b04324e184b3f62dd223ea264ea51ecd49eb9113df6"),
    ),
    "mnist": (
        tuple("0123456789"),
        (
            ("train-0.npz", "c95e3d2c6214b1b866b57e5c7c6b1ecdfa1d3b338829a51320ae6bedcbc192e5"),
            ("train-1.npz", "14d9b9a4b2c0807cfd81859e53c3e379e6d7536b462368ef2a37a107e68befd9"),
        ),
        ("test.npz", "848c1799343f9e864f64e67aed584cb24cd78e351c3c81172eb26ecd46dba42e"),
    ),
}


class CatalogueImages(ImageSet):
    """A published set under ``LATTICEWORK_DATA``; a tenth of its train images, by one fixed draw, validates."""

    name: ClassVar[str] = "catalogue-images"
    file: str = setting(..., "the catalogue name: fashion-mnist or mnist")

    def _entry(self) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, str]]:
        if self.file not in CATALOGUE:
            raise UserError(f"no images of the catalogue are called {self.file!r}; known: {', '.join(CATALOGUE)}")
        return CATALOGUE[self.file]

    def read(self) -> Images:
        classes, train, test = self._entry()
        paths = [str(locate(self.file, name, sha)) for name, sha in (*train, test)]
        return _read_catalogue(tuple(paths), classes)

    def digest(self) -> str:
        _, train, test = self._entry()
        return digest_of([self.name, self.revision, [sha for _, sha in (*train, test)]])


@lru_cache(maxsize=2)
def _read_catalogue(paths: tuple[str, ...], classes: tuple[str, ...]) -> Images:
    pixels, labels, ids, splits = [], [], [], []
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            pixels.append(arrays["images"][..., None])
            labels.append(arrays["labels"].astype(np.int64))
            word = "test" if path == paths[-1] else "train"
            ids += [f"{word}-{i:05d}" for i in arrays["index"]]
            splits.append(np.full(len(labels[-1]), SPLITS[word], np.int8))
    split, y = np.concatenate(splits), np.concatenate(labels)
    train = np.flatnonzero(split == TRAIN)
    split[np.random.default_rng(_SPLIT_SEED).permutation(train)[: len(train) // 10]] = VALID
    return Images(np.concatenate(pixels), y, tuple(ids), classes, split)


# -- made in Python ------------------------------------------------------------------------------------------------------
class GivenImages(Given, ImageSet):
    """Images made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-images"


def from_arrays(
    pixels: Any,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    splits: Any = None,
    ids: Sequence[str] | None = None,
) -> GivenImages:
    """Images of arrays: pixels uint8 [n, H, W] or [n, H, W, C] with C 1 or 3; labels integers [n], -1 where unknown.

    `classes` are the names in the order of the labels (left out: the numbers); `splits` [n]: 0 train, 1 valid, 2 test, -1.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise UserError(f"images are uint8 [n, H, W] or [n, H, W, C] with C 1 or 3, not {pixels.dtype} {list(pixels.shape)}")
    n = len(pixels)
    y = np.full(n, -1, np.int64) if labels is None else np.asarray(labels)
    if y.shape != (n,) or not np.issubdtype(y.dtype, np.integer) or y.min() < -1:
        raise UserError(f"labels are {n} whole numbers, -1 where unknown, not {y.dtype} {list(y.shape)}")
    names = tuple(str(i) for i in range(int(y.max()) + 1)) if classes is None else tuple(classes)
    if y.max() >= len(names) or len(set(names)) < len(names):
        raise UserError(f"the labels go up to {int(y.max())}, and there are {len(set(names))} different class names")
    split = None if splits is None else np.asarray(splits).astype(np.int8)
    if split is not None and (split.shape != (n,) or not np.isin(split, (-1, TRAIN, VALID, TEST)).all()):
        raise UserError(f"splits are {n} numbers: 0 train, 1 valid, 2 test, -1 none of them")
    words = tuple(str(i) for i in range(n)) if ids is None else tuple(ids)
    if len(words) != n or len(set(words)) < n:
        raise UserError(f"ids are {n} different texts, one an image")
    images = Images(np.ascontiguousarray(pixels), y.astype(np.int64), words, names, split)
    sha = hashlib.sha256(repr((pixels.shape, names, words)).encode() + images.pixels.tobytes() + images.labels.tobytes())
    sha.update(b"" if split is None else split.tobytes())
    GivenImages._held[sha.hexdigest()] = images
    return GivenImages(content=sha.hexdigest())
