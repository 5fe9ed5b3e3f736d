"""Clips on disk: reading and writing frames through PyAV, coding them with a codec and decoding them again.

Frames are uint8 ``[T, H, W, 3]`` in RGB, as stored: nothing is scaled, turned, dropped or resampled in time, and what a
file says otherwise (an alpha channel, a turn, times that are not even) becomes a sentence in `Frames.notes`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from latticework.core.errors import UserError
from latticework.core.ledger import disk_errors, write_folder, write_whole

if TYPE_CHECKING:
    import av

Array = np.ndarray[Any, Any]

PNG = b"\x89PNG\r\n\x1a\n"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
STREAM_FORMATS = {"libx264": "h264", "libx265": "hevc", "libsvtav1": "obu"}  # bare streams: no container's bytes are counted
MAX_FRAMES = 1_000_000
_STILLS = ("image2", "tty")  # ffmpeg opens a lone picture, and even a text, as a "video" of one frame


class Frames(NamedTuple):
    """Decoded frames and what was understood of their file."""

    frames: Array  # uint8 [T, H, W, 3]
    fps: float | None  # none: a folder of pictures says no rate
    notes: tuple[str, ...] = ()


class Coded(NamedTuple):
    """A bare coded stream and what is needed to give the frames back."""

    data: bytes
    codec: str
    height: int
    width: int
    frames: int


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("reading and writing video needs PyAV; install it with: pip install 'latticework[video]'") from None
    return av


# -- reading -------------------------------------------------------------------------------------------------------------
def read_frames(path: Path | str) -> Frames:
    """All frames of a video file's first default video stream, or of a folder of PNG frames in the order of their numbers."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    return _read_folder(path) if path.is_dir() else _read_file(path)


def probe_frames(path: Path | str) -> bool:
    """Whether a path holds a clip, by content: PyAV opens it as a video, or it is a flat folder of PNG pictures."""
    path = Path(path)
    if path.is_dir():
        pictures = frame_files(path)
        beside = any(p.is_dir() or p.suffix.lower() == ".csv" for p in path.iterdir())  # then they are labelled images
        return bool(pictures) and not beside and _head(pictures[0], 8) == PNG
    head = _head(path, 4096)
    if not head or b"\0" not in head:  # a text, a table: not worth importing PyAV for
        return False
    try:
        av = _av()
    except UserError:
        return path.suffix.lower() in VIDEO_SUFFIXES  # so that reading it names what to install
    try:
        with av.open(str(path)) as container:
            return not _is_still(container) and _stream(container) is not None
    except (av.error.FFmpegError, OSError, ValueError):
        return path.suffix.lower() in VIDEO_SUFFIXES and head[4:8] == b"ftyp"  # cut short: reading it says so


def frame_files(folder: Path) -> list[Path]:
    """The PNG files of a folder, ordered by the numbers in their names (``frame2`` before ``frame10``)."""
    found = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() == ".png" and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", p.name)])


def _head(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _is_still(container: Any) -> bool:
    name = container.format.name
    return name in _STILLS or name.endswith("_pipe")


def _stream(container: Any) -> Any:
    """The first video stream marked as default, else the first; cover pictures are no video."""
    av = _av()
    cover, default = av.stream.Disposition.attached_pic, av.stream.Disposition.default
    streams = [s for s in container.streams.video if not s.disposition & cover]
    chosen = [s for s in streams if s.disposition & default]
    return (chosen or streams or [None])[0]


def _read_file(path: Path) -> Frames:
    av = _av()
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); give a video file or a folder of PNG frames")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if _head(path, 8)[4:8] == b"ftyp":
            raise UserError(
                f"{path} is an MP4 file without its index: it is cut short or still being written; copy it again"
            ) from (None)
        raise UserError(f"{path} is not a video that PyAV can read ({_text(error)})") from None
    with container:
        if _is_still(container):
            raise UserError(f"{path} is a single picture or a text, not a video; for pictures give their folder")
        stream = _stream(container)
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "no stream at all"
            raise UserError(f"{path} has no video stream (found: {kinds})")
        _check_whole(path, stream)
        notes = _stream_notes(container, stream)
        stream.thread_type = "NONE"  # one thread: the same work on every machine
        frames: list[Array] = []
        times = []
        try:
            for frame in container.decode(stream):
                if len(frames) >= MAX_FRAMES:
                    raise UserError(f"{path} has more than {MAX_FRAMES} frames; cut it into clips")
                if frames and (frame.height, frame.width) != frames[0].shape[:2]:
                    raise UserError(
                        f"{path}: frame {len(frames)} is {frame.width}x{frame.height}, the ones before "
                        f"{frames[0].shape[1]}x{frames[0].shape[0]}; one size a clip"
                    )
                frames.append(_rgb(frame, notes))
                times.append(frame.pts)
        except av.error.FFmpegError as error:
            raise UserError(f"{path}: decoding stops after {len(frames)} frames ({_text(error)}); the file is damaged") from None
        if not frames:
            raise UserError(f"{path} has a video stream but not one frame can be decoded from it; it is empty or cut short")
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else None
        # an MP4's edit list may rightly hide frames, and `_check_whole` has seen its index
        if len(frames) < stream.frames and not container.format.name.startswith("mov"):
            raise UserError(
                f"{path} is cut short: its header declares {stream.frames} frames and it holds {len(frames)}; copy the file again"
            )
        steps = np.diff([t for t in times if t is not None])
        # rounding to the time base makes steps differ by one tick; more is a variable rate. AVI keeps no times of its own:
        # with frames stored out of order they come back shuffled, and say nothing
        if len(steps) and steps.min() > 0 and steps.max() - steps.min() > 1:
            base = float(stream.time_base)
            notes.append(
                f"variable frame rate: gaps of {steps.min() * base:.3f} to {steps.max() * base:.3f} s; frames are taken in "
                "order and their times are not kept"
            )
    return Frames(np.stack(frames), fps, tuple(dict.fromkeys(notes)))


def _check_whole(path: Path, stream: Any) -> None:
    """An index that points beyond the end of the file shows a file that was cut short."""
    size = path.stat().st_size
    entries = list(stream.index_entries)
    beyond = sum(e.pos + e.size > size for e in entries)
    if beyond:
        raise UserError(
            f"{path} is cut short: its index names {len(entries)} frames, and {beyond} of them lie beyond its {size} bytes; "
            "copy the file again"
        )


def _stream_notes(container: Any, stream: Any) -> list[str]:
    notes = []
    others = len(container.streams.video) - 1
    if others:
        notes.append(f"{others} more video stream{'s' * (others > 1)} not read: stream {stream.index} is the first default one")
    sound = len(container.streams.audio)
    if sound:
        notes.append(f"{sound} audio stream{'s' * (sound > 1)} not read")
    return notes


def _rgb(frame: Any, notes: list[str]) -> Array:
    """uint8 [H, W, 3]; grey is repeated over the three channels, alpha is left out, deeper samples are rounded to 8 bits."""
    _format_notes(frame.format, notes)
    if getattr(frame, "rotation", 0):
        notes.append(f"the file asks players to turn frames by {frame.rotation} degrees; they are kept as stored")
    pixels: Array = frame.to_ndarray(format="rgb24")
    return pixels


def _format_notes(pixel: Any, notes: list[str]) -> None:
    name = pixel.name
    if name.startswith(("gray", "ya", "mono")):
        notes.append("grey frames: the one channel is repeated three times")
    if name.startswith(("ya", "rgba", "bgra", "argb", "abgr", "yuva", "gbrap", "pal8")):
        notes.append("alpha channel left out: the colours are kept, nothing is blended")
    if max(c.bits for c in pixel.components) > 8:
        notes.append(f"{max(c.bits for c in pixel.components)} bits a channel, reduced to 8")


def _read_folder(folder: Path) -> Frames:
    files = frame_files(folder)
    if not files:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise UserError(f"{folder} has no PNG frames; found {found}")
    notes: list[str] = []
    frames: list[Array] = []
    for file in files:
        pixels = _read_picture(file, notes)
        if frames and pixels.shape != frames[0].shape:
            raise UserError(
                f"{file} is {pixels.shape[1]}x{pixels.shape[0]}, {files[0].name} is {frames[0].shape[1]}x{frames[0].shape[0]}; "
                "all frames of a clip have one size"
            )
        frames.append(pixels)
    rest = sum(1 for p in folder.iterdir() if not p.name.startswith(".")) - len(files)
    if rest:
        notes.append(f"{rest} other entr{'ies' if rest > 1 else 'y'} of the folder not read")
    return Frames(np.stack(frames), None, tuple(dict.fromkeys(notes)))


def _read_picture(file: Path, notes: list[str]) -> Array:
    av = _av()
    if _head(file, 8) != PNG:
        raise UserError(f"{file} is not a PNG file, though its name says so")
    try:
        with av.open(str(file)) as container:
            return _rgb(next(iter(container.decode(video=0))), notes)
    except StopIteration:
        raise UserError(f"{file} holds no picture; it is cut short") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{file} cannot be decoded ({_text(error)}); it is damaged or cut short") from None


def _text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


# -- writing -------------------------------------------------------------------------------------------------------------
def write_frames(path: Path | str, frames: Sequence[Array] | Array, fps: float | None = None, crf: int = 10) -> None:
    """A video file (H.264 at `crf` 10, visually lossless; 4:2:0, odd sides 4:4:4) or, without a suffix, a folder of PNG frames (lossless).

    Appears whole or not at all. `fps` none is written as 25.
    """
    path = Path(path)
    if len(frames) == 0:
        raise UserError(f"there is no frame to write to {path}")
    if not path.suffix:

        def fill(draft: Path) -> None:
            digits = max(4, len(str(len(frames))))
            for i, frame in enumerate(frames, 1):
                (draft / f"{i:0{digits}d}.png").write_bytes(png_bytes(frame))

        write_folder(path, fill)
        return
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(
            f"{path}: frames are written to {', '.join(VIDEO_SUFFIXES)}, or to a folder of PNG (a name without a suffix)"
        )
    names = {".mkv": "matroska", ".m4v": "mp4"}
    kind = names.get(path.suffix.lower(), path.suffix.lower()[1:])
    codec, options = ("libvpx-vp9", {"crf": str(crf), "b:v": "0"}) if kind == "webm" else ("libx264", {"crf": str(crf)})
    data = io.BytesIO()
    frames = np.asarray(frames)
    odd = frames.shape[1] % 2 or frames.shape[2] % 2  # 4:2:0 has no odd sides in H.264; 4:4:4 has
    _mux(data, kind, codec, frames, fps or 25.0, options, "yuv444p" if odd else "yuv420p")
    with disk_errors(path):
        write_whole(path, data.getvalue())


def png_bytes(frame: Array) -> bytes:
    """One uint8 [H, W, 3] frame as a PNG file."""
    av = _av()
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = frame.shape[1], frame.shape[0], "rgb24"
    context.time_base = Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    packets = [*context.encode(picture), *context.encode(None)]
    return b"".join(bytes(p) for p in packets)


# -- coding --------------------------------------------------------------------------------------------------------------
def encode_frames(
    frames: Array, codec: str = "libx264", *, crf: int = 23, preset: str = "medium", fps: float | None = 25.0
) -> Coded:
    """The clip as a bare coded stream (4:2:0, one thread, so that bytes repeat).

    4:2:0 needs even sides: an odd last row or column is repeated once and cut off again by `decode_frames`.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames are uint8 [T, H, W, 3] with T >= 1, not {frames.dtype} {list(frames.shape)}")
    if codec not in STREAM_FORMATS:
        raise ValueError(f"codec is one of {', '.join(STREAM_FORMATS)}, not {codec!r}")
    options = {"crf": str(crf), "preset": preset}
    if codec == "libx264" and torch.backends.cpu.get_cpu_capability() == "AVX512":
        options["x264-params"] = (
            "asm=avx2"  # its AVX-512 macroblock tree reads memory nobody wrote: one run differs from the next
        )
    if codec == "libx265":
        options["x265-params"] = "log-level=none:pools=none:frame-threads=1"
    if codec == "libsvtav1":
        options["svtav1-params"] = "lp=1"
    data = io.BytesIO()
    odd = ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    even = np.pad(frames, odd, mode="edge") if frames.shape[1] % 2 or frames.shape[2] % 2 else frames
    _mux(data, STREAM_FORMATS[codec], codec, even, fps or 25.0, options, "yuv420p")
    return Coded(data.getvalue(), codec, frames.shape[1], frames.shape[2], len(frames))


def decode_frames(coded: Coded) -> Array:
    """uint8 [T, H, W, 3]: the inverse of `encode_frames`, up to the codec's loss."""
    av = _av()
    try:
        with av.open(io.BytesIO(coded.data), format=STREAM_FORMATS[coded.codec]) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    except av.error.FFmpegError as error:
        raise UserError(f"the {coded.codec} stream cannot be decoded ({_text(error)}); it is damaged or cut short") from None
    if len(frames) != coded.frames:
        raise UserError(f"the {coded.codec} stream gives {len(frames)} of {coded.frames} frames; it is damaged or cut short")
    return np.stack(frames)[:, : coded.height, : coded.width]


def _mux(to: io.BytesIO, kind: str, codec: str, frames: Array, fps: float, options: dict[str, str], pixel: str) -> None:
    av = _av()
    if codec not in av.codecs_available:
        raise UserError(f"this build of PyAV has no encoder {codec!r}; install one that has it: pip install -U av")
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its configuration otherwise
    with av.open(to, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pixel
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def seek_frame(container: av.container.InputContainer, stream: Any, index: int, fps: float) -> Array:
    """One frame by its index: seek to the key frame before it, then decode up to it, as a player does."""
    target = round(index / fps / float(stream.time_base)) + int(stream.start_time or 0)
    container.seek(target, stream=stream, backward=True)
    half = 0.5 / fps / float(stream.time_base)
    for frame in container.decode(stream):
        if frame.pts is not None and frame.pts >= target - half:
            pixels: Array = frame.to_ndarray(format="rgb24")
            return pixels
    raise UserError(f"there is no frame {index} in the file")
