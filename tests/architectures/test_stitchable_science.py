"""Stitchable networks: enumeration, least squares, paths, costs and errors, against brute force and closed forms."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from latticework.architectures.stitchable import (
    Point,
    StitchableNet,
    least_squares,
    paired,
    pareto_front,
    rows,
    select,
    stitch_loss,
    unpaired,
)
from latticework.common.small_cnn import SmallCNN
from latticework.common.tiny_vit import TinyViT, tiny_vit_parameters

WIDTHS, HEADS, SIDE, CLASSES = (16, 32, 64), (2, 4, 4), (8, 8), 10


def vit(width: int, heads: int = 4, depth: int = 6, classes: int = CLASSES, patch: int = 2, seed: int = 0) -> TinyViT:
    torch.manual_seed(seed + width)
    return TinyViT(1, SIDE, classes, patch, width, depth, heads)


def images(n: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, *SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def family() -> StitchableNet:
    return StitchableNet([vit(w, h) for w, h in zip(WIDTHS, HEADS, strict=True)], images(1)).eval()


# -- enumeration ---------------------------------------------------------------------------------------------------------
def squares(depth: int, window: int, stride: int) -> set[tuple[int, int]]:
    """The union of all windows' squares, by looking at every pair."""
    starts = range(0, depth, stride)
    return {
        (j, k) for j in range(depth) for k in range(depth) if any(s <= j < s + window and s <= k < s + window for s in starts)
    }


def test_enumeration_of_the_paper() -> None:
    pairs = paired(12, 2)
    assert (len(pairs), len({p.layer for p in pairs})) == (34, 11)
    by_place = {(p.j, p.k): p.layer for p in pairs}
    assert by_place[5, 6] == 5 and by_place[5, 5] == 4
    net = StitchableNet([vit(w, 2, depth=12) for w in (4, 6, 8)], images(1))
    assert len(net) == 71 and len(net.stitches) == 22
    assert [c.anchors for c in net.configurations[:4]] == [(0,), (1,), (2,), (0, 1)]
    assert net.configurations[37].anchors == (1, 2)


@given(st.integers(1, 14), st.integers(1, 16), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_enumeration_is_the_union_of_windows(depth: int, window: int, stride: int) -> None:
    pairs = paired(depth, window, stride)
    assert {(p.j, p.k) for p in pairs} == squares(depth, window, stride)
    assert len({(p.j, p.k) for p in pairs}) == len(pairs)
    layers = [p.layer for p in pairs]
    assert sorted(set(layers)) == list(range(max(layers) + 1)) and layers == sorted(layers)
    if stride == 1 and window <= depth:
        assert len(pairs) == depth * (2 * window - 1) - window * (window - 1)
        assert max(layers) + 1 == max(1, depth - window + 1)


def test_enumeration_at_its_edges() -> None:
    assert paired(1) == ((0, 0, 0),)
    assert [(p.j, p.k) for p in paired(5, 1)] == [(i, i) for i in range(5)]
    for wrong in ((0, 2, 1), (3, 0, 1), (3, 2, 0)):
        with pytest.raises(ValueError, match="must be >= 1"):
            paired(*wrong)


@given(st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None, max_examples=60)
def test_unpaired_rule(small: int, more: int) -> None:
    large = small + more
    pairs = unpaired(small, large)
    brute = [(j, i) for i in range(large) for j in range(small) if j == math.floor(i * small / large + 1e-12) and j < i]
    assert [(p.j, p.k) for p in pairs] == brute
    assert all(p.layer == p.j for p in pairs) and {p.layer for p in pairs} == set(range(small))


def test_unpaired_needs_a_deeper_larger_net() -> None:
    for wrong in ((3, 3), (4, 3), (0, 2)):
        with pytest.raises(ValueError, match="unpaired"):
            unpaired(*wrong)


# -- least squares -------------------------------------------------------------------------------------------------------
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_least_squares_recovers_a_linear_map(width: int, out: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(60, width, generator=g, dtype=torch.float64)
    A, b = torch.randn(out, width, generator=g, dtype=torch.float64), torch.randn(out, generator=g, dtype=torch.float64)
    W, c = least_squares(X, X @ A.T + b)
    assert (W - A).abs().max() < 1e-8 and (c - b).abs().max() < 1e-8


@pytest.mark.parametrize("n", [1, 4, 7])
def test_least_squares_without_full_rank_is_the_pseudo_inverse(n: int) -> None:
    rng = np.random.default_rng(n)
    X, Y = rng.normal(size=(n, 8)), rng.normal(size=(n, 5))
    W, b = least_squares(torch.from_numpy(X), torch.from_numpy(Y))
    A = np.linalg.pinv(np.c_[X, np.ones(n)]) @ Y
    assert torch.isfinite(W).all() and torch.isfinite(b).all()
    assert np.abs(W.numpy() - A[:-1].T).max() < 1e-6 and np.abs(b.numpy() - A[-1]).max() < 1e-6


def test_least_squares_with_repeated_columns_is_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4))
    X, Y = np.c_[X, X[:, :2]], rng.normal(size=(50, 3))
    W, b = least_squares(torch.from_numpy(X), torch.from_numpy(Y))
    A = np.linalg.pinv(np.c_[X, np.ones(50)]) @ Y
    assert np.abs(W.numpy() - A[:-1].T).max() < 1e-6 and np.abs(b.numpy() - A[-1]).max() < 1e-6


def test_least_squares_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="calibration batch is empty"):
        least_squares(torch.zeros(0, 3), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="must be"):
        least_squares(torch.zeros(4, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="NaN"):
        least_squares(torch.full((4, 3), math.nan), torch.zeros(4, 2))


def test_same_anchor_twice_gives_the_identity() -> None:
    first = vit(16, 2).double()
    net = StitchableNet([first, copy.deepcopy(first)], images(1).double()).eval()
    x = images(64).double()
    checked = 0
    for i, c in enumerate(net.configurations):
        if c.j is not None and c.k == c.j + 1:
            W, b = net.solution(i, x)
            assert (W - torch.eye(16, dtype=torch.float64)).abs().max() < 1e-4 and b.abs().max() < 1e-4
            net.stitches[c.layer].put(W, b)
            assert (net(x, i) - first(x)).abs().max() < 1e-6
            checked += 1
    assert checked == 5


def test_shared_map_is_the_mean_of_its_solutions(family: StitchableNet) -> None:
    x = images(40)
    family.initialise(x)
    for layer, stitch in enumerate(family.stitches):
        own = [family.solution(i, x) for i, c in enumerate(family.configurations) if c.layer == layer]
        assert len(own) in (3, 4)
        assert torch.allclose(stitch.map.weight, torch.stack([W for W, _ in own]).mean(0), atol=1e-5)
        assert torch.allclose(stitch.map.bias, torch.stack([b for _, b in own]).mean(0), atol=1e-5)


def test_initialise_uses_evaluation_mode_and_leaves_the_mode_alone() -> None:
    def make() -> StitchableNet:
        nets = [vit(8, 2, depth=2), vit(16, 2, depth=2)]
        for net in nets:
            net.blocks[0].mlp.append(nn.Dropout(0.5))
        torch.manual_seed(3)
        return StitchableNet(nets, images(1))

    calm, live = make().eval(), make().train()
    live.anchors[0].eval()
    calm.initialise(images(30))
    live.initialise(images(30))
    assert torch.equal(calm.stitches[0].map.weight, live.stitches[0].map.weight)
    assert live.training and live.anchors[1].training and not live.anchors[0].training
    assert all(not p.requires_grad or p.grad is None for p in live.parameters())


# -- paths ---------------------------------------------------------------------------------------------------------------
def test_anchors_are_unchanged(family: StitchableNet) -> None:
    bare = [vit(w, h).eval() for w, h in zip(WIDTHS, HEADS, strict=True)]
    x = images()
    family.initialise(x)
    for m, anchor in enumerate(bare):
        assert torch.equal(family(x, m), anchor(x))
        family.set_stitch(m)
        assert torch.equal(family(x), anchor(x))


def test_a_stitch_runs_the_blocks_it_names(family: StitchableNet) -> None:
    x = images()
    for i, c in enumerate(family.configurations):
        if c.j is None:
            continue
        a, b = (family.anchors[m] for m in c.anchors)
        h = a.embed(x)
        for block in a.blocks[: c.j + 1]:
            h = block(h)
        h = h @ family.stitches[c.layer].map.weight.T + family.stitches[c.layer].map.bias
        for block in b.blocks[c.k :]:
            h = block(h)
        assert torch.allclose(family(x, i), b.head(h), atol=1e-5)


def test_a_step_leaves_what_is_off_the_path(family: StitchableNet) -> None:
    x, y = images(8), torch.arange(8) % CLASSES
    family.train()
    optimiser = torch.optim.AdamW(family.parameters(), lr=1e-2, weight_decay=0.5)
    for chosen in (3, 20, 1):
        before = {n: p.detach().clone() for n, p in family.named_parameters()}
        optimiser.zero_grad(set_to_none=True)
        stitch_loss(family(x, chosen), y, family.anchors[2](x)).backward()
        optimiser.step()
        on = {id(p) for part in family._paths[chosen] for p in part.parameters()}
        for name, p in family.named_parameters():
            assert torch.equal(p, before[name]) == (id(p) not in on), name


def test_extract_stands_alone(family: StitchableNet) -> None:
    x = images()
    family.initialise(x)
    parts = [tiny_vit_parameters(1, SIDE, CLASSES, 2, w) for w in WIDTHS]
    for i, c in enumerate(family.configurations):
        alone = family.extract(i)
        assert torch.equal(alone(x), family(x, i))
        count = sum(p.numel() for p in alone.parameters())
        if c.j is None:
            embed, block, head = parts[c.anchors[0]]
            expected = embed + 6 * block + head
        else:
            (embed, before, _), (_, after, head) = (parts[m] for m in c.anchors)
            d, e = (WIDTHS[m] for m in c.anchors)
            expected = embed + (c.j + 1) * before + (d + 1) * e + (6 - c.k) * after + head
        assert count == expected == family.parameters_of(i)
    own = {id(p) for p in family.parameters()}
    assert not any(id(p) in own for p in family.extract(5).parameters())


def test_flops_are_the_counted_ones(family: StitchableNet) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for i in range(len(family)):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            family(images(1), i)
        assert counter.get_total_flops() == family.flops_of(i)
    # block (j, k) = (0, 0) runs one small block and all large ones: dearer than the larger anchor
    dear = next(i for i, c in enumerate(family.configurations) if c.anchors == (0, 1) and (c.j, c.k) == (0, 0))
    assert family.flops_of(dear) > family.flops_of(1)


def test_storage_and_switching(family: StitchableNet) -> None:
    stored = sum(p.numel() for p in family.parameters())
    assert stored / sum(family.parameters_of(i) for i in range(len(family))) <= 0.15
    weights = {n: p.data_ptr() for n, p in family.named_parameters()}
    before = time.perf_counter()
    for i in range(len(family)):
        family.set_stitch(i)
    assert (time.perf_counter() - before) / len(family) < 1e-3
    assert weights == {n: p.data_ptr() for n, p in family.named_parameters()}


def test_draw_is_uniform_and_repeats(family: StitchableNet) -> None:
    drawn = [family.draw(g) for g in [torch.Generator().manual_seed(5)] for _ in range(3500)]
    again = [family.draw(g) for g in [torch.Generator().manual_seed(5)] for _ in range(50)]
    assert drawn[:50] == again
    counts = np.bincount(drawn, minlength=len(family))
    assert counts.min() > 50 and counts.max() < 170  # 100 expected each of 35
    family.freeze_anchors()
    assert min(family.draw(torch.Generator().manual_seed(s)) for s in range(200)) >= 3
    assert not any(p.requires_grad for p in family.anchors.parameters())


# -- other families ------------------------------------------------------------------------------------------------------
def test_unequal_depths_are_stitched_unpaired() -> None:
    net = StitchableNet([vit(8, 2, depth=3), vit(16, 2, depth=5)], images(1)).eval()
    assert [(c.j, c.k) for c in net.configurations[2:]] == [(p.j, p.k) for p in unpaired(3, 5)]
    net.initialise(images(40))
    assert all(torch.isfinite(net(images(4), i)).all() for i in range(len(net)))


def test_stages_are_stitched_inside_the_middle_ones() -> None:
    torch.manual_seed(0)
    nets = [SmallCNN(1, 4, width=w, stages=4, depth=2) for w in (3, 5)]
    net = StitchableNet(nets, images(1)).eval()
    places = [(c.j, c.k) for c in net.configurations[2:]]
    assert places == [(2, 3), (3, 3), (4, 5), (5, 5)]
    assert [s.form for s in net.stitches] == ["pixels", "pixels"]
    net.initialise(images(20))
    i = 2
    c = net.configurations[i]
    W, b = net.solution(i, images(20))
    X, Y = rows(net.features(0, images(20))[c.j + 1]), rows(net.features(1, images(20))[c.k])
    assert torch.allclose(X.T @ (X @ W.T + b - Y), torch.zeros(W.shape[1], W.shape[0]), atol=1e-2)  # normal equations
    assert torch.equal(net.extract(i)(images(3)), net(images(3), i))
    with pytest.raises(ValueError, match="no stage 7"):
        StitchableNet(nets, images(1), stages=(7,))


class ConvAnchor(nn.Module):
    """Pixels as features, in a net of one stage."""

    def __init__(self, width: int, depth: int, side: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 8 // side, 8 // side)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_pixels_become_tokens() -> None:
    torch.manual_seed(0)
    small, large = ConvAnchor(4, 3), TinyViT(1, SIDE, CLASSES, 2, 32, 3, 4, cls_token=False)
    net = StitchableNet([small, large], images(1)).eval()
    assert {s.form for s in net.stitches} == {"pixels-to-tokens"}
    x = images(5)
    h = net.stitches[0](small.embed(x))
    assert h.shape == (5, 16, 32)
    expected = small.embed(x)[2, :, 1, 3] @ net.stitches[0].map.weight.T + net.stitches[0].map.bias
    assert torch.allclose(h[2, 1 * 4 + 3], expected, atol=1e-6)
    with pytest.raises(ValueError, match="grids differ"):
        StitchableNet([ConvAnchor(4, 3, side=8), large], images(1))
    with pytest.raises(ValueError, match="grids differ"):  # a class token has no place in a picture
        StitchableNet([ConvAnchor(4, 3), vit(32, depth=3)], images(1))


# -- errors --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("nets", "says"),
    [
        (lambda: [vit(16, 2)], "at least two anchors"),
        (lambda: [], "at least two anchors"),
        (lambda: [vit(16, 2), vit(32, classes=7)], "same classes.*10, 7"),
        (lambda: [vit(16, 2), vit(128, patch=4)], "grids differ"),
        (lambda: [vit(32), vit(16, 2)], "small to large"),
        (lambda: [vit(16, 2), nn.Linear(3, 3)], "anchor 1 .Linear. has no embed and no blocks and no head"),
        (lambda: [vit(16, 2), "net"], "anchor 1 .str. is not a torch module"),
        (lambda: [vit(8, 2, depth=6), vit(32, depth=3)], "unpaired stitching joins a shallower"),
    ],
)
def test_wrong_families_are_refused(nets: Callable[[], list[nn.Module]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StitchableNet(nets(), images(1))


def test_unequal_depths_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match=r"equal depths.*3 and 5"):
        StitchableNet([vit(8, 2, depth=3), vit(16, 2, depth=5)], images(1), pairing="paired")


def test_loose_sockets_are_refused() -> None:
    class Loose(ConvAnchor):
        def __init__(self) -> None:
            super().__init__(4, 3)
            del self.head

        def head(self, h: Tensor) -> Tensor:
            return h.mean((2, 3))

    with pytest.raises(ValueError, match="head must be modules"):
        StitchableNet([Loose(), Loose()], images(1))

    class Other(ConvAnchor):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    with pytest.raises(ValueError, match="forward is not head"):
        StitchableNet([Other(4, 3), Other(4, 3)], images(1))


def test_ids_and_batches_are_checked(family: StitchableNet) -> None:
    for wrong in (-1, 35, 1.0, True):
        with pytest.raises(ValueError, match="ids go from 0 to 34"):
            family.set_stitch(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="ids go from 0 to 34"):
            family(images(1), wrong)
    with pytest.raises(ValueError, match="calibration batch is empty"):
        family.initialise(images(0))
    with pytest.raises(ValueError, match="anchor alone"):
        family.solution(0, images(4))
    with pytest.raises(ValueError, match="nothing was measured"):
        family.select(1e9)
    with pytest.raises(ValueError, match="distil"):
        stitch_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), distil=2)


# -- choosing ------------------------------------------------------------------------------------------------------------
def released(mirror: Callable[[str], Path], name: str) -> list[Point]:
    text = (mirror("search-tables") / "sn-net" / name).read_text()
    found = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [Point(p["cfg_id"], p["flops"], p["acc1"]) for p in found]


def test_selector_on_the_released_table(mirror: Callable[[str], Path]) -> None:
    points = released(mirror, "deit_ti_s_b.txt")
    assert len(points) == 71
    assert select(points, 3e9).id == 19 and round(select(points, 3e9).accuracy, 2) == 76.48
    assert select(points, 8e9).id == 62 and round(select(points, 8e9).accuracy, 2) == 79.96
    front = pareto_front(points)
    assert len(front) == 39
    for budget in np.linspace(1.3e9, 2e10, 50):
        assert select(points, budget) == select(front, budget)


def test_released_accuracy_rises_with_flops(mirror: Callable[[str], Path]) -> None:
    points = released(mirror, "deit_ti_s_b.txt")
    for low, high, expected in ((3, 37, 0.992), (37, 71, 0.961)):
        own = [p for p in points if low <= p.id < high]
        assert spearmanr([p.flops for p in own], [p.accuracy for p in own])[0] == pytest.approx(expected, abs=5e-4)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12), st.integers(1, 10))
@settings(deadline=None, max_examples=80)
def test_selection_is_the_best_below(found: list[tuple[int, int]], budget: int) -> None:
    points = [Point(i, float(f), float(a)) for i, (f, a) in enumerate(found)]
    below = [p for p in points if p.flops <= budget]
    if not below:
        with pytest.raises(ValueError, match="no stitch takes at most"):
            select(points, budget)
        return
    chosen = select(points, budget)
    assert chosen in pareto_front(points)
    assert chosen.accuracy == max(p.accuracy for p in below)
    assert chosen.flops == min(p.flops for p in below if p.accuracy == chosen.accuracy)


def test_measure_then_select_switches(family: StitchableNet) -> None:
    x, y = images(30), torch.arange(30) % CLASSES
    points = family.measure(x, y, batch=7)
    for p in points:
        assert p.accuracy == pytest.approx(float((family(x, p.id).argmax(1) == y).float().mean()))
    budget = family.flops_of(1)
    chosen = family.select(budget)
    assert chosen == select(points, budget).id and family.active == chosen
    assert torch.equal(family(x), family(x, chosen))
    family.set_stitch(2)
    assert torch.equal(family(x), family.anchors[2](x))


def test_loss_mixes_target_and_teacher() -> None:
    g = torch.Generator().manual_seed(0)
    logits, teacher, y = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g), torch.arange(6) % 4
    ce = nn.functional.cross_entropy
    expected = 0.7 * ce(logits, y) + 0.3 * ce(logits, teacher.argmax(1))
    assert torch.allclose(stitch_loss(logits, y, teacher, 0.3), expected)
    assert torch.equal(stitch_loss(logits, y), ce(logits, y))
    soft = torch.softmax(torch.randn(6, 4, generator=g), 1)
    assert torch.allclose(stitch_loss(logits, soft, teacher, 0.5), 0.5 * ce(logits, soft) + 0.5 * ce(logits, teacher.argmax(1)))
