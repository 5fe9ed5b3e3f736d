"""HNeRV's sizes: parameter counts, widths, kernels and shapes that the paper and its code fix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.errors import UserError
from latticework.video.hnerv.method import HNeRVMethod, NeRVMethod
from latticework.video.hnerv.network import (
    ENCODER_WIDTH,
    HNeRVDecoder,
    HNeRVEncoder,
    NeRVDecoder,
    count,
    embedding_numbers,
    hnerv_parameters,
    nerv_parameters,
    position_code,
    psnr_loss,
    solve_width,
    warm_cosine,
)

PAPER = (5, 4, 4, 2, 2)
TARGETS = {350_000: (32, 312_830), 750_000: (48, 719_256), 1_500_000: (68, 1_488_276), 3_000_000: (97, 3_012_686)}


def _first(target: int) -> int:
    return solve_width(target - embedding_numbers(132, (640, 1280), PAPER, 16), PAPER)


@pytest.mark.parametrize("target", TARGETS)
def test_sizes_of_the_paper(target: int) -> None:
    assert embedding_numbers(132, (640, 1280), PAPER, 16) == 16_896
    first = _first(target)
    decoder = HNeRVDecoder(first, PAPER)
    assert (first, count(decoder)) == TARGETS[target]
    if target == 1_500_000:
        assert [b.in_channels for b in decoder.blocks] + [decoder.head.in_channels] == [68, 57, 48, 40, 33, 28]
        assert [b.kernel_size[0] for b in decoder.blocks] == [1, 3, 5, 5, 5]


def test_encoder_of_the_paper() -> None:
    encoder = HNeRVEncoder(PAPER)
    assert ENCODER_WIDTH == 64 and count(encoder) == 306_160
    with torch.no_grad():
        e = encoder(torch.rand(1, 3, 640, 1280))
        assert e.shape == (1, 16, 2, 4)
        y = HNeRVDecoder(12, PAPER)(e)
    assert y.shape == (1, 3, 640, 1280) and y.min() > 0 and y.max() < 1


@pytest.mark.parametrize("target", TARGETS)
def test_width_solver_is_near_its_target(target: int) -> None:
    stored = hnerv_parameters(_first(target), PAPER, 16, 1.2, 12, (1, 5)) + 16_896
    assert abs(stored - target) <= 0.06 * target


def test_parameters_are_spread() -> None:
    decoder = HNeRVDecoder(68, PAPER)
    blocks = [b.weight.numel() for b in decoder.blocks]
    assert [round(n / 1000) for n in blocks] == [97, 394, 768, 132, 92]
    assert max(blocks) / count(decoder) < 0.53
    nerv = NeRVDecoder(54, (8, 16), (5, 4, 2, 2))
    assert round(nerv.stem.weight.numel() / 1000) == 1106 and round(count(nerv) / 1000) == 1508
    assert nerv.stem.weight.numel() / count(nerv) > 0.73


def test_nerv_width_is_the_nearest() -> None:
    assert NeRVMethod.make().first_width(132, (640, 1280), (5, 4, 2, 2)) == 54
    small = NeRVMethod.make({"size": 46_819, "strides": [5, 4], "narrowest": 8})
    assert small.first_width(132, (40, 80), (5, 4)) == 12
    assert count(NeRVDecoder(12, (2, 4), (5, 4), 2.0, 8)) == 46_819
    assert count(NeRVDecoder(13, (2, 4), (5, 4), 2.0, 12)) == 73_399


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 20), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 6))
def test_counts_without_building(first: int, strides: list[int], narrowest: int) -> None:
    kernel = (1, 5)
    assert count(HNeRVDecoder(first, strides, 4, 1.2, narrowest, kernel)) == hnerv_parameters(
        first, strides, 4, 1.2, narrowest, kernel
    )
    assert count(NeRVDecoder(first, (2, 3), strides, 2.0, narrowest)) == nerv_parameters(first, (2, 3), strides, 2.0, narrowest)


def test_stem_places_follow_pixel_shuffle() -> None:
    """With a square base the rearrangement of the stem is a pixel shuffle."""
    torch.manual_seed(0)
    net = NeRVDecoder(3, (2, 2), (2,), 2.0, 2)
    e = torch.randn(2, 160, 1, 1)
    x = torch.nn.functional.pixel_shuffle(torch.nn.functional.gelu(net.stem(e)), 2)
    x = torch.nn.functional.gelu(torch.nn.functional.pixel_shuffle(net.blocks[0](x), 2))
    torch.testing.assert_close(net(e), 0.5 * torch.tanh(net.head(x)) + 0.5)


def test_position_code() -> None:
    code = position_code(torch.tensor([0.0, 0.5], dtype=torch.float64))[:, :, 0, 0]
    assert code.shape == (2, 160) and torch.equal(code[0], torch.cat([torch.zeros(80), torch.ones(80)]))
    for k in (0, 7, 79):
        assert float(code[1, k]) == pytest.approx(math.sin(1.25**k * math.pi * 0.5), abs=1e-5)
        assert float(code[1, 80 + k]) == pytest.approx(math.cos(1.25**k * math.pi * 0.5), abs=1e-5)


def test_masked_loss_ignores_hidden_pixels() -> None:
    x, y = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    seen = torch.ones(4, 4, dtype=torch.bool)
    assert torch.allclose(psnr_loss(x, y, seen)[0], torch.nn.functional.mse_loss(x, y))
    seen[1:3, 1:3] = False
    loss = psnr_loss(x, y, seen)[0]
    y[:, :, 1:3, 1:3] += 5
    assert torch.equal(loss, psnr_loss(x, y, seen)[0])


def test_schedule() -> None:
    assert warm_cosine(0) == pytest.approx(0.1) and warm_cosine(0.1) == pytest.approx(1)
    assert warm_cosine(0.05) == pytest.approx(0.55) and warm_cosine(0.55) == pytest.approx(0.5)
    assert warm_cosine(1) == pytest.approx(0, abs=1e-12)


# -- sizes that do not fit -----------------------------------------------------------------------------------------------
def test_indivisible_frames_offer_crop_or_pad() -> None:
    with pytest.raises(UserError, match=r"720 are not divisible by 320.*crop the clip to 1280x640.*pad=true.*1280x960"):
        HNeRVMethod.make().plan(132, 720, 1280)
    with pytest.raises(UserError, match="pad=true") as found:  # nothing would be left of a crop
        HNeRVMethod.make().plan(132, 144, 176)
    assert "crop the clip" not in str(found.value)
    plan = HNeRVMethod.make({"pad": True}).plan(132, 720, 1280)
    assert (plan.height, plan.width) == (960, 1280)


def test_too_few_frames_and_too_small_a_budget() -> None:
    with pytest.raises(UserError, match="at least 2 frames"):
        HNeRVMethod.make().plan(1, 640, 1280)
    with pytest.raises(UserError, match=r"size=40000 is too small.*16896 numbers.*set size to"):
        HNeRVMethod.make({"size": 40_000}).plan(132, 640, 1280)
    with pytest.raises(UserError, match="too small"):
        NeRVMethod.make({"size": 1_000}).plan(132, 640, 1280)


@pytest.mark.parametrize(
    ("fields", "found"),
    [({"bits": 0}, "bits"), ({"bits": 9}, "bits"), ({"embedding_bits": 9}, "embedding_bits"), ({"kernel": [2, 5]}, "odd"),
     ({"strides": [0, 2]}, "strides"), ({"bitz": 8}, "did you mean 'bits'")],
)  # fmt: skip
def test_fields_out_of_bounds(fields: dict[str, object], found: str) -> None:
    with pytest.raises(UserError, match=found):
        HNeRVMethod.make(fields)


@pytest.mark.parametrize(
    ("height", "width", "strides"),
    [
        (80, 160, (5, 4, 2)),
        (144, 176, (5, 4, 2, 2)),
        (480, 854, (5, 4, 4, 2, 2)),
        (720, 1280, (5, 4, 4, 2, 2)),
        (16, 16, (5, 4, 2)),
    ],
)
def test_small_preset_takes_any_clip(height: int, width: int, strides: tuple[int, ...]) -> None:
    small = HNeRVMethod.make({"size": 0, "strides": []})
    plan = small.plan(132, height, width)
    assert plan.strides == strides and plan.first == 16 and plan.height >= height and plan.width >= width
    peer = NeRVMethod.make({"size": 0, "strides": []}).plan(132, height, width)
    base = (peer.height // math.prod(peer.strides), peer.width // math.prod(peer.strides))
    numbers = nerv_parameters(peer.first, base, peer.strides, 2.0, 12)
    assert numbers == pytest.approx(small.chosen_numbers(132, (height, width)), rel=0.5)
