"""HNeRV decoding against seeking in an H.264 file with PyAV, in one process and on one thread.

A batch of all frames, and single frames by index. The peer's container stays open between frames, which favours it; its
file has one key frame a 250 frames, x264's own default. Weights are drawn, since a decoder's speed does not depend on them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from latticework.core.dataset import open_data
from latticework.data.clip_io import seek_frame, write_frames
from latticework.video.hnerv.method import HNeRVMethod, NeuralClip
from latticework.video.parts import to_bytes

FPS = 25.0
CASES = {
    "80x160": ("clips:bunny-80x160", {"size": 60_000, "strides": [5, 4, 2]}),
    "640x1280": ("clips:bunny-640x1280", {"size": 350_000}),
}
FRAMES = 132


def clip(name: str, height: int, width: int) -> np.ndarray:
    """The catalogue's clip, or a sliding pattern of its size where it is not here."""
    if os.environ.get("LATTICEWORK_DATA"):
        frames: np.ndarray = open_data(name).read().frames
        return frames
    y, x = np.mgrid[:height, :width]
    tone = [127 + 60 * np.sin((x + 2 * t) / 9) + 60 * np.cos((y - t) / 7) for t in range(FRAMES)]
    return np.repeat(np.stack(tone)[..., None], 3, -1).astype(np.uint8)


def drawn(fields: dict[str, Any], height: int, width: int) -> NeuralClip:
    """A model of this size whose weights are drawn, not fitted."""
    method = HNeRVMethod.make(fields)
    plan = method.plan(FRAMES, height, width)
    schema = {
        "frames": FRAMES, "height": height, "width": width, "fps": FPS, "seen": None,
        "strides": list(plan.strides), "first": plan.first, "padded": [plan.height, plan.width],
    }  # fmt: skip
    torch.manual_seed(0)
    places = [n // int(np.prod(plan.strides)) for n in (plan.height, plan.width)]
    weights = method.decoder(schema).state_dict()
    return NeuralClip(method, schema, weights, torch.randn(FRAMES, method.embedding, *places))


def by_index(one: Callable[[int], Any], index: list[int], rounds: int) -> np.ndarray:
    """Least seconds of each frame over the rounds: the work is fixed, and whatever else runs can only add to it."""
    taken = np.empty((rounds, len(index)))
    for r in range(-1, rounds):  # the first round warms up
        for place in np.random.default_rng(r + 1).permutation(len(index)):
            start = time.perf_counter()
            one(index[place])
            if r >= 0:
                taken[r, place] = time.perf_counter() - start
    return np.asarray(taken.min(axis=0))


def race(name: str, rounds: int, count: int, batch: int) -> list[dict[str, Any]]:
    data, fields = CASES[name]
    height, width = (int(n) for n in name.split("x"))
    frames = clip(data, height, width)
    model = drawn(fields, height, width)
    index = np.linspace(0, FRAMES - 1, count).round().astype(int).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_frames(path, frames, FPS, crf=28)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            ours = np.inf
            for _ in range(3):  # the first pass warms up
                start = time.perf_counter()
                for frame in model.decode(range(batch)):
                    to_bytes(frame)
                ours = min(ours, (time.perf_counter() - start) / batch)
            seconds = by_index(lambda i: to_bytes(next(model.decode(range(i, i + 1)))), index, rounds)
            theirs = by_index(lambda i: seek_frame(container, stream, i, FPS), index, rounds)
    peer = float(theirs.mean())
    rows: list[dict[str, Any]] = [
        {
            "name": f"{name} batch decode", "frames": batch, "ours_s": ours, "frames_per_s": 1 / ours,
            "peer": "seeking random frames with PyAV (H.264, crf 28)", "peer_s": peer, "peer_frames_per_s": 1 / peer,
            "ratio": peer / ours,
        },
        {
            "name": f"{name} random frame", "ours_s": float(seconds.mean()), "peer": "the same", "peer_s": peer,
            "ratio": peer / float(seconds.mean()),
        },
        {
            "name": f"{name} slowest over fastest frame", "ratio": float(seconds.max() / seconds.min()),
            "peer": "seeking with PyAV", "peer_ratio": float(theirs.max() / theirs.min()),
        },
    ]  # fmt: skip
    rows += [
        {"name": f"{name} frame {i}", "frame": i, "seconds": float(a), "peer_seconds": float(b)}
        for i, a, b in zip(index, seconds, theirs, strict=True)
    ]
    return rows


def run(large: bool = True) -> list[dict[str, Any]]:
    """Rows of decoding speed (ratio > 1 where ours is faster), of slowest over fastest frame, and seconds by frame."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = race("80x160", 15, 33, FRAMES)
        if large:
            rows += race("640x1280", 1, 3, 4)
    finally:
        torch.set_num_threads(before)
    return [{**row, "threads": 1} for row in rows]


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
