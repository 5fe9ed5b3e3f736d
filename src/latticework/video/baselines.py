"""What must be beaten: one picture for all frames, and the codecs that everyone has.

A frame that was kept from the fit is the mean of its two neighbours as decoded; a hidden pixel is filled from the nearest
seen one before coding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import model_validator

from latticework.core.errors import OutOfTime, UserError
from latticework.core.method import Codec, Method, Model
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.value import setting
from latticework.data.clip_io import Coded, decode_frames, encode_frames, png_bytes

from .parts import Array, ClipView, fill_hole, neighbours


def _planes(frame: Array) -> Array:
    return frame.transpose(2, 0, 1).astype(np.float32) / 255


# -- trivial -------------------------------------------------------------------------------------------------------------
class TemporalMeanModel(Model):
    """One picture, given back for every frame."""

    scope: Literal["fitted data", "new data"] = "fitted data"

    def __init__(self, method: Method, schema: Mapping[str, Any], picture: Array) -> None:
        self.method, self.schema, self.picture = method, schema, picture

    def stored(self) -> bytes:
        """The picture as PNG."""
        return png_bytes(self.picture)

    def decode(self, frames: range) -> Iterator[Array]:
        for _ in frames:
            yield _planes(self.picture)

    def state(self) -> Mapping[str, Any]:
        return {"picture": torch.from_numpy(self.picture)}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["picture"].numpy())


class TemporalMean(Method):
    """The mean over time of all frames that may be seen, rounded to 8 bits."""

    name: ClassVar[str] = "temporal-mean"
    tasks: ClassVar[tuple[str, ...]] = ("video-regression",)
    gives: ClassVar[tuple[type[Any], ...]] = (Codec,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[TemporalMeanModel]] = TemporalMeanModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> TemporalMeanModel:
        view: ClipView = train.data
        total = np.zeros(view.frames.shape[1:], np.int64)
        for frame in view.frames:
            total += frame
        mean = np.rint(total / len(view.frames)).astype(np.uint8)
        return TemporalMeanModel(self, view.schema(), fill_hole(mean[None], view.hole)[0])


# -- codecs --------------------------------------------------------------------------------------------------------------
class CodecModel(Model):
    """The clip as coded streams, one a rate; the late field `crf` chooses among them."""

    scope: Literal["fitted data", "new data"] = "fitted data"
    method: CodecMethod

    def __init__(self, method: CodecMethod, schema: Mapping[str, Any], streams: Mapping[int, bytes]) -> None:
        self.method, self.schema, self.streams = method, schema, streams

    def at(self, **late: Any) -> Self:
        other = super().at(**late)
        if other is not self:
            other.__dict__.pop("_frames", None)
        return other

    def points(self) -> Sequence[Mapping[str, Any]]:
        rates = [self.method.crf, *(c for c in self.method.rates if c != self.method.crf)]
        return tuple({"crf": crf} for crf in rates if crf in self.streams)

    def stored(self) -> bytes:
        """The bare coded stream, without a container."""
        if self.method.crf not in self.streams:
            raise UserError(f"time ran out before crf={self.method.crf} was coded; there are {', '.join(map(str, self.streams))}")
        return self.streams[self.method.crf]

    @cached_property
    def _frames(self) -> Array:
        seen = self.schema["frames"] if self.schema["seen"] is None else len(self.schema["seen"])
        return decode_frames(Coded(self.stored(), self.method.codec, self.schema["height"], self.schema["width"], seen))

    def decode(self, frames: range) -> Iterator[Array]:
        seen = self.schema["seen"]
        index = np.arange(self.schema["frames"]) if seen is None else np.asarray(seen)
        for i in frames:
            if not 0 <= i < self.schema["frames"]:
                raise UserError(f"frame {i} is not in the clip, which has {self.schema['frames']} frames")
            a, b, weight = neighbours(index, i)
            first = _planes(self._frames[a])
            yield first if a == b else (1 - weight) * first + weight * _planes(self._frames[b])

    def state(self) -> Mapping[str, Any]:
        return {f"crf{crf}": torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for crf, data in self.streams.items()}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, {int(name[3:]): value.numpy().tobytes() for name, value in state.items()})

    def parameters(self) -> int:
        """A coded stream holds no parameters."""
        return 0


class CodecMethod(Method):
    """A codec run over the seen frames at each of its rates (4:2:0, one thread, so that bytes repeat)."""

    tasks: ClassVar[tuple[str, ...]] = ("video-regression",)
    gives: ClassVar[tuple[type[Any], ...]] = (Codec,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[CodecModel]] = CodecModel
    codec: ClassVar[str]

    crf: int = setting(28, "constant rate factor of the file that is stored: one of `rates`", ge=0, le=63, late=True)
    rates: tuple[int, ...] = setting((18, 23, 28, 33, 38), "constant rate factors that are coded; low is good and large")
    preset: str | int = setting("medium", "the encoder's own name for how hard it tries")

    @model_validator(mode="after")
    def _coded(self) -> Self:
        if any(not 0 <= rate <= 63 for rate in self.rates):
            raise ValueError(f"rates are 0 to 63, not {self.rates}")
        if self.crf not in self.rates:
            raise ValueError(f"crf={self.crf} is not among the coded rates {self.rates}; add it to `rates`")
        return self

    def fit(self, train: Part, valid: Part | None, run: Run) -> CodecModel:
        view: ClipView = train.data
        frames = fill_hole(view.frames, view.hole)
        streams = {}
        for step, crf in enumerate(self.rates):
            streams[crf] = encode_frames(frames, self.codec, crf=crf, preset=str(self.preset)).data
            try:
                run.log(step, bytes=len(streams[crf]))
            except OutOfTime:
                run.stopped = True
                break
        return CodecModel(self, view.schema(), streams)


class X264(CodecMethod):
    """H.264 by x264."""

    name: ClassVar[str] = "x264"
    codec: ClassVar[str] = "libx264"


class X265(CodecMethod):
    """H.265 by x265."""

    name: ClassVar[str] = "x265"
    codec: ClassVar[str] = "libx265"


class SvtAv1(CodecMethod):
    """AV1 by SVT-AV1."""

    name: ClassVar[str] = "svt-av1"
    codec: ClassVar[str] = "libsvtav1"
    crf: int = setting(35, "constant rate factor of the file that is stored: one of `rates`", ge=0, le=63, late=True)
    rates: tuple[int, ...] = setting((20, 28, 35, 43, 55), "constant rate factors that are coded; low is good and large")
    preset: str | int = setting("8", "the encoder's own name for how hard it tries: 0 (most) to 13")
