"""HNeRV as a codec: the file is what is decoded, its bytes are counted, any frame comes alone, bad files are refused."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from latticework.core.errors import UserError
from latticework.core.evaluate import fit
from latticework.core.ledger import Ledger
from latticework.core.run import Run
from latticework.core.store import load_model, save_model
from latticework.data.clips import from_frames
from latticework.video.hnerv.container import counted_bits, overhead, pack, unpack
from latticework.video.hnerv.method import HNeRVMethod, NeRVMethod, NeuralClip, read_model
from latticework.video.hnerv.quantise import quantise
from latticework.video.parts import held_out
from latticework.video.tasks import VideoRegression

FIELDS = {"size": 12_000, "strides": [4, 2], "epochs": 4, "narrowest": 6}


@cache
def frames(count: int = 7, height: int = 16, width: int = 24) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    wave = [np.stack([np.sin((x + t) / 4), np.cos((y - t) / 3), np.sin((x + y) / 5)], -1) for t in range(count)]
    return (127 + 100 * np.stack(wave)).astype(np.uint8)


@cache
def model(kind: str = "hnerv", hold_out: str = "none", mask: str = "none") -> NeuralClip:
    method = {"hnerv": HNeRVMethod, "nerv": NeRVMethod}[kind].make(FIELDS)
    task = VideoRegression(hold_out=hold_out, mask=mask)
    return fit(method, from_frames(frames()), task, ledger=Ledger())[0]  # type: ignore[return-value]


def decoded(codec: NeuralClip, span: range | None = None) -> np.ndarray:
    return np.stack(list(codec.decode(range(7) if span is None else span)))


# -- the file --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["hnerv", "nerv"])
def test_file_gives_the_quantised_network(kind: str, tmp_path: Path) -> None:
    """Bit for bit: the file's frames are those of the network with its weights quantised here, by hand."""
    for bits in (8, 5, 1):
        fitted = model(kind).at(bits=bits)
        fitted.write(tmp_path / "clip.hnerv")
        back = read_model(tmp_path / "clip.hnerv")
        network = fitted.method.decoder(fitted.schema)
        network.load_state_dict({k: quantise(v, bits).values() for k, v in fitted.weights.items()})
        codes = fitted.codes(range(7))
        if fitted.embeddings is not None:
            assert torch.equal(codes, quantise(fitted.embeddings, 6).values())
        with torch.inference_mode():
            expected = network.to(memory_format=torch.channels_last).eval()(codes).numpy()
        assert np.array_equal(decoded(back), expected) and np.array_equal(decoded(fitted), expected)
        assert back.stored() == fitted.stored() and back.method.bits == bits and back.schema == fitted.schema


def test_bytes_are_the_counted_bits() -> None:
    for kind in ("hnerv", "nerv"):
        for bits in (8, 4):
            fitted = model(kind).at(bits=bits)
            content = fitted.content()
            expected = counted_bits(content) / 8 + overhead(content)
            assert abs(len(fitted.stored()) - expected) <= 0.02 * expected
            assert len(fitted.stored()) - expected < 1 + 1e-9  # no more than the padding of the last byte
            assert overhead(content) < 1200
    assert len(model().at(bits=4).stored()) < len(model().stored())


def test_content_survives() -> None:
    content = model().content()
    back = unpack(pack(content))
    assert dict(back.head) == dict(content.head) and list(back.tensors) == list(content.tensors)
    for name, q in content.tensors.items():
        other = back.tensors[name]
        assert torch.equal(q.symbols, other.symbols) and torch.equal(q.values(), other.values())
        assert (q.axis, q.bits, q.low.dtype) == (other.axis, other.bits, other.low.dtype)


def test_slices_survive() -> None:
    torch.manual_seed(0)
    q = quantise(torch.randn(60, 80) * torch.logspace(-3, 0, 60)[:, None], 4)
    assert q.axis == 1
    content = model().content()
    back = unpack(pack(content._replace(tensors={**content.tensors, "sliced": q})))
    assert torch.equal(back.tensors["sliced"].values(), q.values()) and back.tensors["sliced"].low.dtype == torch.float16


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    data = model().stored()
    for cut in (5, 12, len(data) // 2, len(data) - 1):
        with pytest.raises(UserError, match="cut short"):
            read_model(data[:cut])
    with pytest.raises(UserError, match="after its end"):
        read_model(data + b"\0")
    with pytest.raises(UserError, match="is damaged"):
        read_model(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    with pytest.raises(UserError, match=r"no \.hnerv file"):
        read_model(b"RIFF" + data[4:])
    for version, advice in ((2, "upgrade latticework"), (0, "compress the clip again")):
        other = bytearray(data)
        other[4:6] = struct.pack("<H", version)
        with pytest.raises(UserError, match=f"version {version}.*reads version 1.*{advice}"):
            read_model(bytes(other))
    (tmp_path / "cut.hnerv").write_bytes(data[:100])
    with pytest.raises(UserError, match=r"cut\.hnerv is cut short"):
        read_model(tmp_path / "cut.hnerv")
    with pytest.raises(UserError, match="not a file"):
        read_model(tmp_path / "none.hnerv")


def test_a_head_that_lies_is_refused() -> None:
    """A file whose check sum fits but whose network does not fit its tensors."""
    content = model().content()
    lying = {**content.head, "clip": {**content.head["clip"], "first": 3}}
    with pytest.raises(UserError, match="does not describe a network"):
        read_model(pack(content._replace(head=lying)))
    data = bytearray(model().stored()[:-4])
    data[14:18] = struct.pack("<I", 9)
    with pytest.raises(UserError, match="not a valid"):
        read_model(bytes(data) + struct.pack("<I", zlib.crc32(data)))


# -- decoding --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["hnerv", "nerv"])
def test_a_frame_alone_is_the_same_frame(kind: str) -> None:
    whole = decoded(model(kind))
    assert whole.shape == (7, 3, 16, 24) and whole.dtype == np.float32 and whole.min() > 0 and whole.max() < 1
    for i in range(7):
        np.testing.assert_allclose(decoded(model(kind), range(i, i + 1))[0], whole[i], atol=1e-6, rtol=0)
    np.testing.assert_allclose(decoded(model(kind), range(6, 0, -2)), whole[6:0:-2], atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="7 frames"):
        next(model(kind).decode(range(7, 8)))


def test_held_out_frames_use_the_neighbours_mean() -> None:
    fitted = model("hnerv", "every-second")
    assert fitted.schema["seen"] == [0, 2, 4, 6] and fitted.embeddings is not None and len(fitted.embeddings) == 4
    codes = fitted.codes(range(7))
    torch.testing.assert_close(codes[3], (codes[2] + codes[4]) / 2)
    back = read_model(fitted.stored())
    assert back.schema == fitted.schema and np.array_equal(decoded(back), decoded(fitted))
    assert held_out(6).tolist() == [False, True, False, True, False, False]  # the last has no neighbour after it


def test_hidden_frames_and_pixels_change_nothing() -> None:
    """The fit cannot depend on what is kept from it."""
    task = VideoRegression(hold_out="every-second", mask="five-squares")
    other = frames().copy()
    hole = task.view(from_frames(frames()).read()).hole
    assert hole is not None
    other[1::2] = 0
    other[:, hole] = 77
    a, b = (
        fit(HNeRVMethod.make({**FIELDS, "epochs": 1}), from_frames(x), task, ledger=Ledger())[0].state()
        for x in (frames(), other)
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


# -- late fields, saving, resuming -----------------------------------------------------------------------------------------
def test_bits_change_after_the_fit() -> None:
    fitted = model()
    points = list(fitted.points())
    assert points[0] == {"bits": 8, "embedding_bits": 6} and [p["bits"] for p in points] == [8, 6, 4]
    error = [float(np.abs(decoded(fitted.at(bits=b)) - decoded(fitted)).mean()) for b in (8, 4, 2)]
    assert error[0] == 0 < error[1] < error[2]
    back = read_model(fitted.stored())
    assert len(back.points()) == 1
    with pytest.raises(UserError, match="read from a file"):
        back.at(bits=4)
    with pytest.raises(UserError, match="cannot change after the fit"):
        fitted.at(epochs=3)


def test_saved_model_gives_the_same_file(tmp_path: Path) -> None:
    save_model(model(), tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert isinstance(back, NeuralClip) and back.stored() == model().stored()


def test_fit_repeats_and_resumes(tmp_path: Path) -> None:
    """Equal seeds give equal bytes, and a fit that was cut off goes on from its checkpoint to the same bytes."""
    task, data = VideoRegression(), from_frames(frames())
    method = HNeRVMethod.make(FIELDS)
    part = task.fold(data, "clip").train

    def once(folder: str, stop: int | None) -> bytes | None:
        run = Run(task=task, seed=3, ledger=Ledger(tmp_path / folder))
        run.fit_key = "k"
        keep = run.keep
        run.keep = lambda step, state: keep(step, state, every_s=0)  # type: ignore[method-assign]
        if stop is not None:
            log = run.log

            def cut(step: int, **values: float) -> None:
                if step == stop:
                    raise KeyboardInterrupt
                log(step, **values)

            run.log = cut  # type: ignore[method-assign]
        with run.seeded():
            try:
                return method.fit(part, None, run).stored()
            except KeyboardInterrupt:
                return None

    whole = once("a", None)
    assert once("b", 2) is None
    assert once("b", None) == whole


def test_padding_is_cut_off() -> None:
    data = from_frames(frames(4, 13, 18))
    fitted = fit(HNeRVMethod.make({**FIELDS, "pad": True}), data, VideoRegression(), ledger=Ledger())[0]
    assert fitted.schema["padded"] == [16, 24]
    assert np.stack(list(fitted.decode(range(4)))).shape == (4, 3, 13, 18)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="pad=true"):
        fit(HNeRVMethod.make(FIELDS), data, VideoRegression(), ledger=Ledger())


def test_figure_shows_frames() -> None:
    task = VideoRegression(hold_out="every-second")
    found = model("hnerv", "every-second").explain(task.fold(from_frames(frames()), "clip").test.blind())
    (svg,) = found.figures.values()
    assert svg.startswith("<svg") and svg.count("data:image/png;base64,") >= 6 and "(not seen)" in svg
    assert found.scalars["file bytes"] == len(model("hnerv", "every-second").stored())


def test_overfits_a_still_clip() -> None:
    """A clip of one repeated picture is learned: the loss falls and the PSNR rises well above that of grey."""
    still = np.repeat(frames()[:1], 4, 0)
    run_model, run = fit(
        HNeRVMethod.make({**FIELDS, "epochs": 60, "lr": 3e-3}), from_frames(still), VideoRegression(), ledger=Ledger()
    )
    curve = [v for _, v in run.curve["psnr"]]
    assert curve[-1] > curve[0] + 6
    error = np.stack(list(run_model.decode(range(4)))) - still.transpose(0, 3, 1, 2) / 255  # type: ignore[attr-defined]
    assert -10 * np.log10((error**2).mean()) == pytest.approx(curve[-1], abs=1.0)
