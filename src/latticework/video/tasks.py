"""Video regression: one clip is fitted, stored and given back; what counts is how well, in how many bytes.

One clip is one fold and a repeat is a seed; there is no validation part. With ``hold_out`` every second frame that has a
neighbour on both sides is kept from the fit (interpolation); with ``mask`` five squares of every frame are (inpainting).
Frames are judged as they are delivered: rounded to 8 bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Codec
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.clip_io import decode_frames, encode_frames, read_frames, write_frames
from latticework.data.clips import Clip
from latticework.layers.image_quality import ms_ssim, psnr

from .parts import Array, ClipView, fill_hole, five_squares, frame_range, held_out, to_bytes

REFERENCE_CRF = (18, 23, 28, 33, 38)


class Reconstruction(NamedTuple):
    """An answer: `frames` uint8 [q, H, W, 3], their places `index`, the bytes that the model stores, and the clip's rate."""

    frames: Array
    index: range
    stored: int
    fps: float | None = None


class RatePoint(NamedTuple):
    crf: int
    size: int  # bytes
    psnr: float  # dB


class FrameQuery(Query):
    """Which frames are decoded."""

    name: ClassVar[str] = "frames"
    frames: str | int = setting("", "frames from:to[:step], counted from 0, `to` left out (100:120); empty: all")


_curves: dict[str, tuple[RatePoint, ...]] = {}


def x264_curve(view: ClipView) -> tuple[RatePoint, ...]:
    """x264 (preset medium, 4:2:0) on the frames that may be seen, at five rates; coded once a clip and process."""
    sha = hashlib.sha256(repr(view.frames.shape).encode() + view.frames.tobytes())
    sha.update(b"" if view.hole is None else view.hole.tobytes())
    key = sha.hexdigest()
    if key not in _curves:
        frames = fill_hole(view.frames, view.hole)  # what stands in the hole is not judged, so it should cost little
        points = []
        for crf in REFERENCE_CRF:
            coded = encode_frames(frames, "libx264", crf=crf)
            points.append(RatePoint(crf, len(coded.data), psnr(decode_frames(coded), view.frames, view.seen)))
        _curves[key] = tuple(points)
    return _curves[key]


def bytes_at(curve: Sequence[RatePoint], level: float) -> tuple[float | None, str]:
    """The codec's bytes at a PSNR, interpolated in the logarithm of bytes; none with the reason outside its range."""
    points = sorted((p for p in curve if math.isfinite(p.psnr)), key=lambda p: p.psnr)
    if not points or not points[0].psnr <= level <= points[-1].psnr:
        found = f"{points[0].psnr:.2f} to {points[-1].psnr:.2f} dB" if points else "none that is finite"
        return None, f"{level:.2f} dB is outside the range of x264 at crf {curve[-1].crf} to {curve[0].crf}: {found}"
    return float(np.exp(np.interp(level, [p.psnr for p in points], np.log([p.size for p in points])))), ""


class VideoRegression(Task):
    """Store one clip and give it back. Headline: bytes over x264's at equal PSNR, or the PSNR of what was not seen."""

    name: ClassVar[str] = "video-regression"
    kinds: ClassVar[tuple[str, ...]] = ("clip",)
    needs_data: ClassVar[bool] = False
    role: ClassVar[type[Any]] = Codec
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("bytes-over-x264", "", "lower"),
        Metric("psnr", "dB", "higher"),
        Metric("ms-ssim", "", "higher"),
        Metric("bpp", "bit/pixel", "lower"),
    )
    Query: ClassVar[type[Value]] = FrameQuery

    hold_out: Literal["none", "every-second"] = setting("none", "frames kept from the fit")
    mask: Literal["none", "five-squares"] = setting("none", "pixels kept from the fit, in every frame")
    rank_by: Literal["auto", "bytes-over-x264", "psnr"] = setting(
        "auto", "the headline; auto: psnr of the masked pixels or held-out frames where there are any, else bytes over x264's"
    )

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        if self.rank_by != "auto":
            return self.rank_by
        return "bytes-over-x264" if self.hold_out == "none" and self.mask == "none" else "psnr"

    def headline(self, scores: Sequence[Score]) -> float | None:
        hidden = "masked" if self.mask != "none" else "held-out" if self.hold_out != "none" else "seen"
        wanted = hidden if self.headline_metric == "psnr" else "seen"
        for score in scores:
            if score.metric == self.headline_metric and score.at.get("frames") == wanted:
                return score.value
        return None

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "temporal-mean", "x264"

    # -- folds -----------------------------------------------------------------------------------------------------
    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [("clip", seed) for seed in range(repeats)]

    def fold(self, data: Dataset, name: str) -> Fold:
        clip = _clip(data)
        view = self.view(clip)
        schema = view.schema()
        return Fold(Part(view, None, None, schema), None, Part(view, range(view.total), clip.frames, schema))

    def view(self, clip: Clip) -> ClipView:
        """What a method may see of a clip."""
        total, height, width = clip.size
        held = held_out(total) if self.hold_out == "every-second" else np.zeros(total, bool)
        if self.hold_out != "none" and not held.any():
            raise UserError(f"hold_out={self.hold_out} needs at least 3 frames, the clip has {total}")
        hole = five_squares(height, width) if self.mask == "five-squares" else None
        frames = clip.frames[~held] if held.any() else clip.frames
        if hole is not None:
            frames = np.where(hole[:, :, None], np.uint8(0), frames)
        return ClipView(frames, np.flatnonzero(~held), total, hole, clip.fps)

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        """A part for a user: `data` may be none, since a fitted clip is its own data."""
        view = None
        if data is not None:
            clip = _clip(data)
            size = (schema["frames"], schema["height"], schema["width"])
            if clip.size != size:
                raise UserError(
                    f"this model holds a clip of {size[0]} frames of {size[2]}x{size[1]}, and the data are {clip.size[0]} of "
                    f"{clip.size[2]}x{clip.size[1]}; a codec answers for the clip that it was fitted on: fit it again on this one"
                )
            view = self.view(clip)
        return Part(view, frame_range(str(query.frames), schema["frames"]), None, schema)  # type: ignore[attr-defined]

    def hidden(self, test: Part) -> list[Any]:
        """Frames and pixels kept from the fit; what is seen is what is to be given back, and no secret."""
        view: ClipView = test.data
        held = np.setdiff1d(np.arange(view.total), view.index)
        secret = [] if not len(held) else [test.truth[held], *test.truth[held]]
        return secret if view.hole is None else [*secret, test.truth, test.truth[:, view.hole], *test.truth]

    # -- judging ---------------------------------------------------------------------------------------------------
    def answer(self, model: Any, part: Part, run: Run) -> Reconstruction:
        if hasattr(model, "to"):
            model = model.to(run.device)
        height, width = part.schema["height"], part.schema["width"]
        frames = np.empty((len(part.query), height, width, 3), np.uint8)
        for place, frame in enumerate(model.decode(part.query)):
            frames[place] = to_bytes(frame)
        return Reconstruction(frames, part.query, len(model.stored()), part.schema.get("fps"))

    def score(self, answer: Reconstruction, part: Part, run: Run | None) -> list[Score]:
        view: ClipView = part.data
        truth = part.truth[np.asarray(answer.index)]
        is_seen = np.isin(np.asarray(answer.index), view.index)
        scores = []
        for name, chosen in (("seen", is_seen), ("held-out", ~is_seen)):
            if not chosen.any():
                continue
            at = {"frames": name}
            level = psnr(answer.frames[chosen], truth[chosen], view.seen)
            if name == "seen":
                scores.append(self._over_x264(answer.stored, level, view, at))
            scores.append(Score("psnr", level, at, "" if math.isfinite(level) else "a frame came back without any error"))
            value, why = (
                (None, "part of every frame is hidden")
                if view.hole is not None
                else ms_ssim(answer.frames[chosen], truth[chosen])
            )
            scores.append(Score("ms-ssim", value, at, why))
        if view.hole is not None:
            scores.append(Score("psnr", psnr(answer.frames, truth, view.hole), {"frames": "masked"}))
        pixels = view.total * truth.shape[1] * truth.shape[2]
        scores.append(Score("bpp", 8 * answer.stored / pixels))
        return scores

    def _over_x264(self, stored: int, level: float, view: ClipView, at: Mapping[str, Any]) -> Score:
        if not math.isfinite(level):
            return Score("bytes-over-x264", None, at, "a frame came back without any error: its PSNR is infinite")
        expected, why = bytes_at(x264_curve(view), level)
        return Score("bytes-over-x264", None if expected is None else stored / expected, at, why)

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Scores of a video file or folder of PNG frames made elsewhere; its bytes are those of the file or files."""
        given, true = read_frames(answers), read_frames(truth)
        if given.frames.shape != true.frames.shape:
            (n, h, w), (m, k, v) = given.frames.shape[:3], true.frames.shape[:3]
            raise UserError(f"{answers} holds {n} frames of {w}x{h}, {truth} holds {m} of {v}x{k}; they must agree")
        size = sum(p.stat().st_size for p in answers.iterdir()) if answers.is_dir() else answers.stat().st_size
        view = self.view(Clip(lambda: true))
        part = Part(view, range(view.total), true.frames, view.schema())
        return self.score(Reconstruction(given.frames, part.query, size, given.fps), part, None)

    def write(self, answer: Reconstruction, part: Part, to: Path) -> None:
        """A video file by its suffix, or (without a suffix) a folder of PNG frames."""
        write_frames(to, answer.frames, answer.fps)


def _clip(data: Dataset) -> Clip:
    if data.kind != "clip":
        raise UserError(f"video-regression is for clips, and {data.label} holds {data.kind}")
    clip: Clip = data.read()
    return clip
