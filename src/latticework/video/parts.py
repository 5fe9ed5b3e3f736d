"""What a clip's parts hold: the frames and pixels that may be seen, the frames asked for, and holes to be filled."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from scipy.ndimage import distance_transform_edt

from latticework.core.errors import UserError
from latticework.data.clip_io import png_bytes

Array = np.ndarray[Any, Any]
OFFICIAL_HEIGHT, OFFICIAL_SIDE = 640, 50  # HNeRV's inpainting mask: squares of side 50 on frames 640 high


@dataclass(frozen=True)
class ClipView:
    """What may be seen of a clip.

    frames: uint8 [n, H, W, 3], zero under the hole; index: int64 [n], their places among the `total` frames, ascending;
    hole: bool [H, W], the pixels that no frame shows, or none.
    """

    frames: Array
    index: Array
    total: int
    hole: Array | None = None
    fps: float | None = None

    @property
    def seen(self) -> Array | None:
        """bool [H, W]: the pixels that may be seen, or none where all may."""
        return None if self.hole is None else ~self.hole

    def schema(self) -> dict[str, Any]:
        """What a model must remember of the clip, JSON-able."""
        return {
            "frames": self.total,
            "height": int(self.frames.shape[1]),
            "width": int(self.frames.shape[2]),
            "fps": self.fps,
            "seen": None if len(self.index) == self.total else [int(i) for i in self.index],
        }


def held_out(total: int) -> Array:
    """bool [total]: every second frame that has a neighbour on both sides (1, 3, 5, …)."""
    held = np.zeros(total, bool)
    held[1 : total - 1 : 2] = True
    return held


def five_squares(height: int, width: int) -> Array:
    """bool [H, W]: squares at the centre and the four quarter points; side 50 for 640 rows, in proportion elsewhere."""
    side = max(round(OFFICIAL_SIDE * height / OFFICIAL_HEIGHT), 1)
    hole = np.zeros((height, width), bool)
    for y, x in ((2, 2), (1, 1), (1, 3), (3, 1), (3, 3)):
        top, left = max(height * y // 4 - side // 2, 0), max(width * x // 4 - side // 2, 0)
        hole[top : top + side, left : left + side] = True
    if hole.all():
        raise UserError(f"frames of {width}x{height} are too small for the five squares: they would hide everything")
    return hole


def fill_hole(frames: Array, hole: Array | None) -> Array:
    """The frames with each hidden pixel replaced by the nearest seen pixel of its frame; [n, H, W, 3] of any type."""
    if hole is None:
        return frames
    rows, columns = distance_transform_edt(hole, return_distances=False, return_indices=True)
    filled: Array = frames[:, rows, columns]
    return filled


def neighbours(index: Array, i: int) -> tuple[int, int, float]:
    """Places (a, b) in `index` of the seen frames around frame i, and the weight of b: 0.5 midway; the nearest at the ends."""
    after = int(np.searchsorted(index, i))
    if after < len(index) and index[after] == i:
        return after, after, 0.0
    if after == 0 or after == len(index):
        at = min(after, len(index) - 1)
        return at, at, 0.0
    a, b = int(index[after - 1]), int(index[after])
    return after - 1, after, (i - a) / (b - a)


def frame_range(text: str, total: int) -> range:
    """``"100:120"`` (from 100 up to 119), ``"7"``, ``":50"``, ``"::10"``; empty: all. Counted from 0."""
    if not text:
        return range(total)
    pieces = text.split(":")
    try:
        numbers = [int(p) if p.strip() else None for p in pieces]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) > 3 or (len(numbers) == 1 and numbers[0] is None):
        raise UserError(f"frames={text!r} is no range; write 100:120 (frames 100 to 119), 7, or 0:100:10")
    start, stop, step = [*numbers, None, None][:3]
    if len(numbers) == 1:
        assert start is not None
        stop = start + 1
    start, stop, step = start or 0, total if stop is None else stop, 1 if step is None else step
    if start < 0 or step < 1 or stop > total or start >= stop:
        raise UserError(f"frames={text!r} is not within the clip's {total} frames, 0 to {total - 1}")
    return range(start, stop, step)


def to_bytes(frame: Array) -> Array:
    """float [3, H, W] in 0..1 to uint8 [H, W, 3], rounded."""
    return np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def side_by_side(rows: Sequence[tuple[str, Sequence[Array | None]]], columns: Sequence[str], height: int = 150) -> str:
    """An SVG of uint8 frames, a row each series and a column each frame, embedded as PNG; none leaves its place empty."""
    known = next(f for _, frames in rows for f in frames if f is not None)
    width = max(round(height * known.shape[1] / known.shape[0]), 1)
    left, gap, top = 90, 6, 22
    across, down = left + len(columns) * (width + gap), top + len(rows) * (height + gap)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" width="{across}" height="{down}" '
        'font-family="sans-serif" font-size="12">'
    ]
    for c, title in enumerate(columns):
        out.append(f'<text x="{left + c * (width + gap)}" y="15">{escape(title)}</text>')
    for r, (title, frames) in enumerate(rows):
        y = top + r * (height + gap)
        out.append(f'<text x="2" y="{y + height // 2}">{escape(title)}</text>')
        for c, frame in enumerate(frames):
            if frame is not None:
                data = base64.b64encode(png_bytes(frame)).decode()
                out.append(
                    f'<image x="{left + c * (width + gap)}" y="{y}" width="{width}" height="{height}" '
                    f'preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
                )
    return "".join(out) + "</svg>"
