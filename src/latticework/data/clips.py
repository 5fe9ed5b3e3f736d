"""The kind *clip*: frames of one video, users' files, the catalogue, and clips made from other clips.

A user's clip is one video file that PyAV reads, or a folder of PNG frames. Frames are uint8 ``[T, H, W, 3]`` in RGB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError, nearest
from latticework.core.value import digest_of, setting

from .clip_io import Array, Frames, frame_files, probe_frames, read_frames, write_frames
from .mirror import digest_of_file, locate

FOLDER = "clips"
CATALOGUE: Mapping[str, tuple[str, str]] = {
    "bunny": ("bunny.mp4", "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"),
    "carphone": ("carphone.mp4", "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"),
    "bikes": ("bikes.mp4", "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"),
    "bear": ("bear.mp4", "eeffab1780be601b19b2097be81a8c2d4fa2b624ac1028be0a32191d25acca0f"),
    "launch": ("launch.mp4", "4cdc5c670b372cc93763a4cbed99a79080ff98185b9386cea90920d71c14d31f"),
    "cat": ("cat.mp4", "a41ab94e89fd0f44f829d545ab6e604437146608357266709e0cc726378d1872"),
    "parkour": ("parkour.mp4", "e0856abcba55f21e41830a58bde1681c6be5790a0dd1431d844e29687b36d891"),
    "bmx": ("bmx.mp4", "3cab99f0dfb741937f4c0c53fbbff5b040bb158d6186fe275e6c9d36c675f419"),
    "tennis": ("tennis.mp4", "0460651f035adcd37387da10acc88b4e3d30c0c6e967fbb47b1a77231be29690"),
    "makeup": ("makeup.avi", "cc3ebb11e80d2900071ff929633b7476a33ee1698ac9a91206e2ba64c1c28920"),
    "pool": ("pool.mp4", "019048c7c7e6ceb3b4821f027ff3cda0e198ab33dd28b32d9ee7e397be87b4b3"),
    "golf": ("golf.mov", "bbdd549fd5b47b137a95bebbaa8e0f2c3bd97254e4e7b3b215915e7d19b6058d"),
    "nasa": ("nasa.mp4", "53705221cac65086253367787e964e5d7d37beeba007646106a2c780d087c9e1"),
    "odd": ("odd.mp4", "cbb2809650a6586020357e4095c7bd94ff5665cffbe82ca32518bbb5387e67c7"),
    "calendar": (
        "calendar",
        "e5d334ca5dfc422465b3e9c18bc25ea357c314dc3bc21eeeb524e94dbe4aa8a5",
    ),  # of the folder: see `folder_digest`
}


class Clip:
    """One clip. Frames are decoded when they are first asked for, and then kept.

    frames: uint8 [T, H, W, 3]; fps: none where the source says no rate; notes: what reading did.
    """

    def __init__(self, load: Callable[[], Frames], name: str = "clip") -> None:
        self._load, self.name = load, name

    @cached_property
    def _frames(self) -> Frames:
        return self._load()

    @property
    def frames(self) -> Array:
        return self._frames.frames

    @property
    def fps(self) -> float | None:
        return self._frames.fps

    @property
    def notes(self) -> tuple[str, ...]:
        return self._frames.notes

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        count, height, width = self.frames.shape[:3]
        return count, height, width

    def __len__(self) -> int:
        return len(self.frames)


class ClipSet(Dataset):
    """What all clips share: facts and the lines of the check."""

    kind: ClassVar[str] = "clip"

    def read(self) -> Clip:
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        clip = self.read()
        count, height, width = clip.size
        return {
            "frames": count,
            "width": width,
            "height": height,
            "fps": clip.fps,
            "motion": _motion(clip.frames),
        }

    def check(self) -> list[str]:
        facts = self.facts()
        rate = f"{facts['fps']:.2f} frames/s" if facts["fps"] else "no frame rate"
        lines = [
            f"{facts['frames']} frames of {facts['width']}x{facts['height']}, {rate}",
            f"motion: {facts['motion']:.1f} grey levels from frame to frame",
        ]
        return lines + list(self.read().notes)

    def write(self, to: Path) -> None:
        """A video file, or a folder of PNG frames that reads back exactly."""
        clip = self.read()
        write_frames(to, clip.frames, clip.fps)


def _motion(frames: Array) -> float:
    """Mean absolute difference of the brightness of consecutive frames, on every fourth pixel, in grey levels."""
    if len(frames) < 2:
        return 0.0
    grey = frames[:, ::4, ::4].mean(-1, dtype=np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean())


# -- users' files --------------------------------------------------------------------------------------------------------
class ClipFiles(ClipSet):
    """A user's clip, by path; its identity is the bytes of the files, not where they lie."""

    name: ClassVar[str] = "clip-files"
    path: Path = setting(..., "a video file, or a folder of PNG frames")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By content: PyAV opens it and finds a video stream, or it is a flat folder of PNG pictures."""
        return probe_frames(path)

    def read(self) -> Clip:
        return _clip_of(str(self.path), _stamp(self.path))

    def digest(self) -> str:
        _stamp(self.path)
        return digest_of([self.name, self.revision, path_digest(self.path)])


def path_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder of frames, `folder_digest`."""
    if path.is_dir():
        return folder_digest(path)
    stat = path.stat()
    return digest_of_file(str(path), stat.st_mtime_ns, stat.st_size)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the lines ``name SHA-256`` of the PNG frames, in their order."""
    text = "".join(f"{file.name} {path_digest(file)}\n" for file in frame_files(folder))
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    if not path.exists():
        raise UserError(f"{path} does not exist; give a video file or a folder of PNG frames")
    files = frame_files(path) if path.is_dir() else [path]
    return tuple((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files)


@lru_cache(maxsize=2)  # a clip may take hundreds of megabytes
def _clip_of(path: str, stamp: Any) -> Clip:
    return Clip(lambda: read_frames(path), Path(path).stem)


# -- the catalogue -------------------------------------------------------------------------------------------------------
class CatalogueClip(ClipSet):
    """A published clip, found by name and SHA-256 under ``LATTICEWORK_DATA``."""

    name: ClassVar[str] = "catalogue-clip"
    clip: str = setting(..., "the clip's name")

    def _path(self) -> Path:
        if self.clip not in CATALOGUE:
            raise UserError(f"no clip of the catalogue is called {self.clip!r}; {nearest(self.clip, CATALOGUE)}")
        file, sha256 = CATALOGUE[self.clip]
        if Path(file).suffix:
            return locate(FOLDER, file, sha256)
        root = os.environ.get("LATTICEWORK_DATA")
        folder = Path(root or "") / FOLDER / file
        if not root or not folder.is_dir():
            where = f"{root} has no {FOLDER}/{file}" if root else "LATTICEWORK_DATA is not set"
            raise UserError(
                f"the clip {self.clip} is not here: {where}; set LATTICEWORK_DATA to a folder that holds {FOLDER}/{file}"
            )
        if folder_digest(folder) != sha256:
            raise UserError(
                f"{folder} (under LATTICEWORK_DATA) does not hold the catalogue's frames: the SHA-256 over them differs from "
                f"{sha256[:12]}…; get it again"
            )
        return folder

    def read(self) -> Clip:
        path = self._path()
        return _clip_of(str(path), _stamp(path))

    def digest(self) -> str:
        if self.clip not in CATALOGUE:
            self._path()
        return digest_of([self.name, self.revision, CATALOGUE[self.clip][1]])


# -- clips made in Python ------------------------------------------------------------------------------------------------
class GivenClip(Given, ClipSet):
    """A clip made in Python; it lives as long as the process and is named by its content."""

    name: ClassVar[str] = "given-clip"


def from_frames(frames: Any, fps: float | None = None) -> GivenClip:
    """A clip of an array or tensor: uint8 [T, H, W, 3], or float in 0..1 (rounded to 8 bits)."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise UserError(f"frames are [T, H, W, 3] with T, H, W >= 1, not {list(frames.shape)}")
    notes: tuple[str, ...] = ()
    if np.issubdtype(frames.dtype, np.floating):
        if not np.isfinite(frames).all() or frames.min() < 0 or frames.max() > 1:
            raise UserError("float frames hold numbers from 0 to 1; some here are beyond that, or not finite")
        frames, notes = np.rint(frames * 255).astype(np.uint8), ("float frames rounded to 8 bits",)
    elif frames.dtype != np.uint8:
        raise UserError(f"frames are uint8, or float in 0..1, not {frames.dtype}")
    frames = np.ascontiguousarray(frames)
    content = hashlib.sha256(repr((frames.shape, fps)).encode() + frames.tobytes()).hexdigest()
    held = Frames(frames, fps, notes)
    GivenClip._held[content] = Clip(lambda: held, "given")
    return GivenClip(content=content)


# -- clips of clips ------------------------------------------------------------------------------------------------------
class Scaled(ClipSet):
    """Another clip made smaller by a whole factor: each pixel is the mean of a square, rounded to 8 bits."""

    name: ClassVar[str] = "scaled"
    of: Dataset = setting(..., "the larger clip")
    by: int = setting(2, "how many pixels become one, along each side", ge=1, le=64)

    def read(self) -> Clip:
        return _derived(self)

    def digest(self) -> str:
        return digest_of([self.name, self.revision, self.of.digest(), self.by])

    def make_frames(self) -> Frames:
        whole = _clip(self.of)
        frames, by = whole.frames, self.by
        count, height, width = whole.size
        if height % by or width % by:
            raise UserError(
                f"frames of {width}x{height} cannot be reduced by {by}; crop them first to "
                f"{width - width % by}x{height - height % by}: cropped(of=..., height={height - height % by}, "
                f"width={width - width % by})"
            )
        out = np.empty((count, height // by, width // by, 3), np.uint8)
        for i, frame in enumerate(frames):
            squares = frame.reshape(height // by, by, width // by, by, 3)
            out[i] = np.rint(squares.sum((1, 3), dtype=np.int64) / by**2)
        return Frames(out, whole.fps, (*whole.notes, f"reduced by {by}: means over squares, rounded to 8 bits"))


class Cropped(ClipSet):
    """The centre of another clip; an odd margin leaves the extra row or column at the bottom or right."""

    name: ClassVar[str] = "cropped"
    of: Dataset = setting(..., "the whole clip")
    height: int = setting(..., "rows kept", ge=1, le=65536)
    width: int = setting(..., "columns kept", ge=1, le=65536)

    def read(self) -> Clip:
        return _derived(self)

    def digest(self) -> str:
        return digest_of([self.name, self.revision, self.of.digest(), self.height, self.width])

    def make_frames(self) -> Frames:
        whole = _clip(self.of)
        _, height, width = whole.size
        if self.height > height or self.width > width:
            raise UserError(f"a crop of {self.width}x{self.height} does not fit into frames of {width}x{height}")
        top, left = (height - self.height) // 2, (width - self.width) // 2
        frames = np.ascontiguousarray(whole.frames[:, top : top + self.height, left : left + self.width])
        return Frames(frames, whole.fps, (*whole.notes, f"centre crop of {width}x{height} to {self.width}x{self.height}"))


class Excerpt(ClipSet):
    """Some consecutive frames of another clip."""

    name: ClassVar[str] = "excerpt"
    of: Dataset = setting(..., "the whole clip")
    start: int = setting(0, "the first frame, from 0", ge=0)
    frames: int = setting(..., "how many frames", ge=1)

    def read(self) -> Clip:
        return _derived(self)

    def digest(self) -> str:
        return digest_of([self.name, self.revision, self.of.digest(), self.start, self.frames])

    def make_frames(self) -> Frames:
        whole = _clip(self.of)
        if self.start + self.frames > len(whole):
            raise UserError(f"frames {self.start} to {self.start + self.frames - 1} are asked of a clip of {len(whole)}")
        kept = whole.frames[self.start : self.start + self.frames].copy()
        return Frames(kept, whole.fps, (*whole.notes, f"{self.frames} frames from frame {self.start}"))


def _clip(data: Dataset) -> Clip:
    if data.kind != "clip":
        raise UserError(f"{data.label} holds {data.kind}, not a clip")
    clip: Clip = data.read()
    return clip


def _derived(data: Scaled | Cropped | Excerpt) -> Clip:
    return _derived_cached(data.digest(), data)


@lru_cache(maxsize=4)
def _derived_cached(digest: str, data: Scaled | Cropped | Excerpt) -> Clip:
    return Clip(data.make_frames, data.name)
