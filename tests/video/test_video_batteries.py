"""The batteries over every video method, the task and clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from latticework.core.evaluate import evaluate
from latticework.core.grid import entry_of
from latticework.core.ledger import Ledger
from latticework.data.clip_io import write_frames
from latticework.data.clips import ClipFiles, Cropped, Excerpt, GivenClip, Scaled, from_frames
from latticework.testing import check_data, check_method, check_task
from latticework.video.tasks import VideoRegression

TINY = {"size": 12_000, "strides": [8, 4], "epochs": 3, "narrowest": 4}
METHODS: dict[str, dict[str, Any]] = {
    "hnerv": TINY,
    "nerv": TINY,
    "temporal-mean": {},
    "x264": {"rates": [23, 33], "crf": 33},
    "x265": {"rates": [23, 33], "crf": 33},
    "svt-av1": {"rates": [25, 45], "crf": 45, "preset": 12},
}


def data() -> GivenClip:
    y, x = np.mgrid[:64, :64]
    wave = [127 + 60 * np.sin((x + 3 * t) / 6)[..., None] * [1, 0.5, -1] + 50 * np.cos(y / 9)[..., None] for t in range(5)]
    return from_frames(np.stack(wave).clip(0, 255).astype(np.uint8), 25)


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    method = entry_of(name).with_settings(METHODS[name])
    check_method(method, data())


@pytest.mark.parametrize(("name", "expected"), [("hnerv", 13.543), ("nerv", 13.501)])
def test_stored_scores(name: str, expected: float) -> None:
    """The PSNR of a tiny fit, stored for this revision: where it was meant to change, raise `revision` and store the new one."""
    method = entry_of(name).with_settings(METHODS[name])
    assert method.revision == 1
    result = evaluate(VideoRegression(), data(), method, "clip", 0, Ledger())
    assert next(s.value for s in result.scores if s.metric == "psnr") == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("hold_out", ["none", "every-second"])
@pytest.mark.parametrize("mask", ["none", "five-squares"])
def test_task(hold_out: str, mask: str) -> None:
    check_task(VideoRegression(hold_out=hold_out, mask=mask), data())  # type: ignore[arg-type]


def test_data(tmp_path: Path) -> None:
    given = data()
    write_frames(tmp_path / "mine.mp4", given.read().frames, 25)
    write_frames(tmp_path / "frames", given.read().frames)
    for clip in (
        given, Scaled(of=given, by=4), Cropped(of=given, height=10, width=12), Excerpt(of=given, start=1, frames=2),
        ClipFiles(path=tmp_path / "mine.mp4"), ClipFiles(path=tmp_path / "frames"),
    ):  # fmt: skip
        check_data(clip)


class Leaky(VideoRegression):
    """A task that leaves the held-out frames in what a method sees."""

    name: ClassVar[str] = "video-regression"

    def view(self, clip: Any) -> Any:
        return replace(super().view(clip), frames=clip.frames)


def test_a_planted_leak_is_caught() -> None:
    with pytest.raises(AssertionError, match="the truth of the test part can be read"):
        check_task(Leaky(hold_out="every-second"), data())
