"""Clips: reading, writing, refusing; the catalogue; clips of clips."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.clip_io import (
    decode_frames,
    encode_frames,
    png_bytes,
    probe_frames,
    read_frames,
    seek_frame,
    write_frames,
)
from latticework.data.clips import CATALOGUE, CatalogueClip, ClipFiles, Cropped, Excerpt, Scaled, from_frames

av = pytest.importorskip("av")
DATA = os.environ.get("LATTICEWORK_DATA", "")


def _clip(name: str) -> Path:
    path = Path(DATA) / "clips" / CATALOGUE[name][0]
    if not DATA or not path.exists():
        pytest.skip(f"clips:{name} is not under LATTICEWORK_DATA")
    return path


def moving(frames: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    """A smooth picture that slides to the right."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [
            np.stack([120 + 100 * np.sin((x + 2 * t) / 7), 120 + 100 * np.cos(y / 5), 60 + 2 * (x + t) % 120], -1)
            for t in range(frames)
        ]
    ).astype(np.uint8)


# -- files ---------------------------------------------------------------------------------------------------------------
def test_png_folder_is_lossless(tmp_path: Path) -> None:
    frames = moving(12)
    write_frames(tmp_path / "frames", frames)
    back = read_frames(tmp_path / "frames")
    assert np.array_equal(back.frames, frames) and back.fps is None and back.notes == ()
    assert probe_frames(tmp_path / "frames")


def test_png_folder_goes_by_numbers(tmp_path: Path) -> None:
    frames = moving(11)
    for i, frame in enumerate(frames):
        (tmp_path / f"f{i}.png").write_bytes(png_bytes(frame))
    (tmp_path / "notes.txt").write_text("mine")
    back = read_frames(tmp_path)
    assert np.array_equal(back.frames, frames) and back.notes == ("1 other entry of the folder not read",)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm", ".avi"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_video_files_keep_count_size_and_rate(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    frames = moving(8, *size)
    write_frames(tmp_path / f"clip{suffix}", frames, 20)
    back = read_frames(tmp_path / f"clip{suffix}")
    assert back.frames.shape == frames.shape and back.fps == 20
    assert np.abs(back.frames.astype(int) - frames).mean() < 6
    assert probe_frames(tmp_path / f"clip{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"clip{suffix}"]  # nothing half-written is left


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_codec_round_trip(codec: str) -> None:
    frames = moving(5, 67, 71)
    preset = "10" if codec == "libsvtav1" else "fast"
    good = encode_frames(frames, codec, crf=12, preset=preset)
    poor = encode_frames(frames, codec, crf=45, preset=preset)
    assert len(poor.data) < len(good.data) and good.data == encode_frames(frames, codec, crf=12, preset=preset).data
    back = decode_frames(good)
    assert back.shape == frames.shape and np.abs(back.astype(int) - frames).mean() < 8
    with pytest.raises(UserError, match=r"cut short|damaged"):
        decode_frames(good._replace(frames=7))


def test_codec_refuses_other_arrays() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_frames(moving().astype(np.float32))
    with pytest.raises(ValueError, match="codec is one of"):
        encode_frames(moving(), "theora")


def test_grey_and_alpha_are_stated(tmp_path: Path) -> None:
    frame = moving(1)[0]
    for folder, kind in (("grey", "gray"), ("alpha", "rgba"), ("deep", "rgb48be")):
        (tmp_path / folder).mkdir()
        context = av.CodecContext.create("png", "w")
        context.width, context.height, context.pix_fmt, context.time_base = 48, 32, kind, Fraction(1, 25)
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=kind)
        data = b"".join(bytes(p) for p in [*context.encode(picture), *context.encode(None)])
        (tmp_path / folder / "1.png").write_bytes(data)
    grey = read_frames(tmp_path / "grey")
    assert (grey.frames == grey.frames[..., :1]).all() and "grey" in grey.notes[0]
    alpha = read_frames(tmp_path / "alpha")
    assert np.array_equal(alpha.frames[0], frame) and "alpha channel left out" in alpha.notes[0]
    assert "16 bits a channel" in read_frames(tmp_path / "deep").notes[0]


def test_uneven_times_are_stated(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "vfr.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.max_b_frames = 0
        for i, frame in enumerate(moving(6)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = i * i, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    back = read_frames(tmp_path / "vfr.mkv")
    assert len(back.frames) == 6 and any("variable frame rate" in n for n in back.notes)


# -- bad files -----------------------------------------------------------------------------------------------------------
def test_missing_empty_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_frames(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        read_frames(tmp_path / "empty.mp4")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(UserError, match="not a video"):
        read_frames(tmp_path / "noise.mp4")
    (tmp_path / "text.csv").write_text("source,target\na,b\n")
    assert not probe_frames(tmp_path / "text.csv") and not probe_frames(tmp_path / "noise.mp4") and not probe_frames(tmp_path)
    with pytest.raises(UserError, match="no PNG frames"):
        (tmp_path / "folder").mkdir()
        read_frames(tmp_path / "folder")
    picture = tmp_path / "one.png"
    picture.write_bytes(png_bytes(moving(1)[0]))
    with pytest.raises(UserError, match="single picture"):
        read_frames(picture)
    assert not probe_frames(picture)


def test_truncated_files(tmp_path: Path) -> None:
    write_frames(tmp_path / "whole.mp4", moving(30), 25)
    whole = (tmp_path / "whole.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])  # the index stands at the end
    with pytest.raises(UserError, match="without its index"):
        read_frames(cut)
    assert probe_frames(cut)  # so that it is this error which a user sees
    with av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in moving(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    fast = (tmp_path / "fast.mp4").read_bytes()
    cut.write_bytes(fast[:-60])  # the index is whole, the last frames are not
    with pytest.raises(UserError, match=r"cut short: its index names 30 frames"):
        read_frames(cut)
    (tmp_path / "frames").mkdir()
    data = png_bytes(moving(1)[0])
    (tmp_path / "frames" / "1.png").write_bytes(data[:20])
    with pytest.raises(UserError, match=r"1\.png"):
        read_frames(tmp_path / "frames")


def test_no_video_stream(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 16000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"no video stream \(found: audio\)"):
        read_frames(tmp_path / "sound.mp4")


def test_frames_of_two_sizes(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png_bytes(moving(1)[0]))
    (tmp_path / "2.png").write_bytes(png_bytes(moving(1, 16, 16)[0]))
    with pytest.raises(UserError, match=r"2\.png is 16x16, 1\.png is 48x32"):
        read_frames(tmp_path)


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frame"):
        write_frames(tmp_path / "a.mp4", moving()[:0])
    with pytest.raises(UserError, match=r"\.mp4"):
        write_frames(tmp_path / "a.gif", moving())
    assert list(tmp_path.iterdir()) == []


def test_seek_gives_the_same_frame(tmp_path: Path) -> None:
    write_frames(tmp_path / "a.mp4", moving(40), 25)
    frames = read_frames(tmp_path / "a.mp4").frames
    with av.open(str(tmp_path / "a.mp4")) as container:
        for i in (0, 17, 39, 3):
            assert np.array_equal(seek_frame(container, container.streams.video[0], i, 25), frames[i])


# -- data sets -----------------------------------------------------------------------------------------------------------
def test_users_clip_is_recognised(tmp_path: Path) -> None:
    write_frames(tmp_path / "mine.mkv", moving(), 25)
    data = open_data(tmp_path / "mine.mkv")
    assert isinstance(data, ClipFiles) and data.kind == "clip"
    facts = data.facts()
    assert (facts["frames"], facts["height"], facts["width"], facts["fps"]) == (6, 32, 48, 25)
    moved = tmp_path / "other.mkv"
    (tmp_path / "mine.mkv").rename(moved)
    assert ClipFiles(path=moved).digest() == data.but(path=moved).digest()
    assert any("6 frames of 48x32" in line for line in ClipFiles(path=moved).check())
    with pytest.raises(UserError, match="does not exist"):
        data.digest()


def test_scaled_is_the_mean_of_squares() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
    small = Scaled(of=from_frames(frames), by=4).read().frames
    for t in range(3):
        for i in range(2):
            for j in range(3):
                square = frames[t, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(-1, 3)
                assert (small[t, i, j] == np.rint(square.mean(0))).all()
    with pytest.raises(UserError, match=r"crop them first to 10x5"):
        Scaled(of=from_frames(frames), by=5).read().frames  # noqa: B018


def test_cropped_and_excerpt() -> None:
    frames = moving(6, 9, 10)
    data = from_frames(frames, 24)
    assert np.array_equal(Cropped(of=data, height=4, width=4).read().frames, frames[:, 2:6, 3:7])
    part = Excerpt(of=data, start=2, frames=3).read()
    assert np.array_equal(part.frames, frames[2:5]) and part.fps == 24
    with pytest.raises(UserError, match="does not fit"):
        Cropped(of=data, height=10, width=4).read().frames  # noqa: B018
    with pytest.raises(UserError, match="clip of 6"):
        Excerpt(of=data, start=4, frames=3).read().frames  # noqa: B018


def test_identity_holds_bytes_and_fields() -> None:
    a, b = from_frames(moving()), from_frames(moving()[::-1])
    digests = [
        a.digest(), b.digest(), from_frames(moving(), 5).digest(), Scaled(of=a, by=2).digest(), Scaled(of=a, by=4).digest(),
        Scaled(of=b, by=2).digest(), Cropped(of=a, height=8, width=8).digest(), Excerpt(of=a, frames=2).digest(),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests) and from_frames(moving()).digest() == a.digest()
    nested = Scaled(of=Cropped(of=a, height=8, width=8), by=2)
    assert Scaled.model_validate(nested.plain()) == nested


def test_arrays_are_checked() -> None:
    assert from_frames(moving()[:2] / 255.0).read().notes == ("float frames rounded to 8 bits",)
    for bad in (np.zeros((2, 3, 4)), np.zeros((0, 3, 4, 3)), np.full((1, 2, 2, 3), 2.0), np.full((1, 2, 2, 3), np.nan)):
        with pytest.raises(UserError):
            from_frames(bad)


def test_catalogue_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATTICEWORK_DATA", raising=False)
    monkeypatch.delenv("LATTICEWORK_MIRROR", raising=False)
    for name in ("bunny", "calendar"):
        with pytest.raises(UserError, match="LATTICEWORK_DATA"):
            CatalogueClip(clip=name).read()
    monkeypatch.setenv("LATTICEWORK_DATA", str(tmp_path))
    write_frames(tmp_path / "clips" / "bunny.mp4", moving())
    write_frames(tmp_path / "clips" / "calendar", moving())
    for name in ("bunny", "calendar"):
        with pytest.raises(UserError, match="SHA-256"):
            CatalogueClip(clip=name).read()
    with pytest.raises(UserError, match="did you mean 'bunny'"):
        CatalogueClip(clip="buny").read()


# -- the catalogue's own clips ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "shape", "note"),
    [("odd", (24, 143, 175, 3), None), ("pool", (32, 256, 340, 3), "variable frame rate"), ("calendar", (41, 144, 180, 3), None),
     ("makeup", (164, 240, 320, 3), "1 audio stream not read"), ("nasa", (325, 180, 320, 3), "1 more video stream not read")],
)  # fmt: skip
def test_catalogue_clips(name: str, shape: tuple[int, ...], note: str | None) -> None:
    _clip(name)
    clip = open_data(f"clips:{name}").read()
    assert clip.frames.shape == shape
    assert note is None or any(note in n for n in clip.notes)


def test_cut_avi_is_refused(tmp_path: Path) -> None:
    data = _clip("makeup").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[:200_000])
    with pytest.raises(UserError, match=r"declares 164 frames and it holds"):
        read_frames(tmp_path / "cut.avi")


def test_a_clip_is_exported_as_frames_that_read_back(tmp_path: Path) -> None:
    given = from_frames(np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3))
    given.write(tmp_path / "out")
    assert np.array_equal(ClipFiles(path=tmp_path / "out").read().frames, given.read().frames)


def test_x264_is_the_same_whatever_its_memory_held_before() -> None:
    """The C library fills fresh memory with a byte of our choice; the stream may not depend on it."""
    code = (
        "import sys, numpy as np\nfrom latticework.data.clip_io import encode_frames\n"
        "y, x = np.mgrid[:32, :48]\n"
        "wave = [np.stack([np.sin((x + 2 * t) / 5), np.cos((y - t) / 6), np.sin((x * y + t) / 60)], -1) for t in range(8)]\n"
        "noise = np.random.default_rng(0).normal(0, 4, (8, 32, 48, 3))\n"
        "frames = np.clip(120 + 90 * np.stack(wave) + noise, 0, 255)\n"
        "sys.stdout.write(encode_frames(frames.astype(np.uint8), 'libx264', crf=18).data.hex())"
    )
    streams = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "MALLOC_PERTURB_": byte}, capture_output=True, check=True
        ).stdout
        for byte in ("1", "85", "255")
    }
    assert len(streams) == 1
