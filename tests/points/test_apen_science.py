"""APEN by identities and oracles: motions of parts, partitions finer and coarser, EM, gradients through its fixed point."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latticework.layers.frames import E3, SE3
from latticework.points.apen.network import (
    APEN,
    PiecewiseLayer,
    merged_small,
    motion_of_parts,
    neighbours,
    seed_loss,
    total_by,
    views,
)  # fmt: skip
from latticework.points.apen.partition import (
    Mixture,
    drop,
    em,
    farthest_points,
    implicit,
    impure,
    log_responsibilities,
    merge,
    partition,
    unrolled,
)  # fmt: skip
from latticework.points.frame_averaging.wrapper import FrameAveraging
from latticework.testing.equivariance import check_equivariance

F64 = torch.float64
TRUE = torch.arange(60) // 15  # 4 parts of 60 points
SMALL: dict[str, Any] = {"widths": (16, 16, 32), "head": (32, 16)}


def cloud(seed: int = 0, n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Points, a unit vector each, two numbers each; float64."""
    generator = torch.Generator().manual_seed(seed)
    X, v, s = (torch.randn(n, *more, generator=generator, dtype=F64) for more in ((3,), (1, 3), (2,)))
    return X, v / v.norm(dim=2, keepdim=True), s


def layer_of(seed: int = 0, frames: int = 8, **more: Any) -> PiecewiseLayer:
    torch.manual_seed(seed)
    return PiecewiseLayer(2, 1, 4, 3, frames, **{**SMALL, **more}).double()


def hard(layer: PiecewiseLayer, X: Tensor, v: Tensor, s: Tensor, part: Tensor) -> Any:
    _, part = torch.unique(part, return_inverse=True)
    return layer(X, s, v, views(X, part, int(part.max()) + 1, layer.frames, layer.near))


def error_of(layer: PiecewiseLayer, how: Any, true: Tensor = TRUE, reflect: bool = True, seeds: int = 3) -> float:
    """Largest error of seeds, vectors and scalars under motions of the true parts; `how(X, v, s)` runs the layer."""
    X, v, s = cloud(n=len(true))
    worst = 0.0
    with torch.no_grad():
        for seed in range(seeds):
            R, t = motion_of_parts(true, torch.Generator().manual_seed(seed), reflect=reflect)
            R, t = R[true], t[true]
            before, after = how(X, v, s), how((R @ X[..., None])[..., 0] + t, v @ R.mT, s)
            wanted = (R @ before.seeds[..., None])[..., 0] + t
            for a, b in ((after.seeds, wanted), (after.vectors, before.vectors @ R.mT), (after.scalars, before.scalars)):
                worst = max(worst, float((a - b).abs().max()))
    return worst


# -- the layer -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("frames", [8, 4])
def test_true_and_finer_partitions_are_exact_and_coarser_ones_are_not(frames: int) -> None:
    layer = layer_of(frames=frames)

    def with_parts(part: Tensor) -> float:
        return error_of(layer, lambda X, v, s: hard(layer, X, v, s, part), reflect=frames == 8)

    wrong = TRUE.clone()
    wrong[[0, 20, 40]] = (wrong[[0, 20, 40]] + 1) % 4  # three points mislabelled
    assert with_parts(TRUE) < 1e-12 and with_parts(torch.arange(60) // 5) < 1e-12
    for part in (TRUE // 2, 0 * TRUE, wrong):
        assert with_parts(part) > 1e-2
    if frames == 4:  # rotations alone do not mirror
        assert error_of(layer, lambda X, v, s: hard(layer, X, v, s, TRUE)) > 1e-2


@settings(max_examples=15, deadline=None)
@given(cuts=st.integers(1, 3), seed=st.integers(0, 50))
def test_any_refinement_of_the_true_partition_is_exact(cuts: int, seed: int) -> None:
    layer = layer_of(seed)
    parts = TRUE * cuts + torch.randint(cuts, (60,), generator=torch.Generator().manual_seed(seed))
    size = torch.bincount(parts)
    if int(size[size > 0].min()) < 4:
        return
    assert error_of(layer, lambda X, v, s: hard(layer, X, v, s, parts), seeds=1) < 1e-12


def test_soft_assignments_err_in_proportion_to_their_softness() -> None:
    layer = layer_of()
    Z = nn.functional.one_hot(TRUE, 4).double()

    def soft(e: float) -> float:
        return error_of(layer, lambda X, v, s: layer.soft(X, s, v, (1 - e) * Z + e / 4))

    found = [soft(e) for e in (0.1, 0.01, 1e-3, 1e-4, 1e-5)]
    assert soft(0.0) < 1e-12 and all(a > b for a, b in itertools.pairwise(found)) and found[0] > 1e-2
    for a, b in itertools.pairwise(found[2:]):  # linear below .001
        assert 7 < a / b < 13


@pytest.mark.parametrize("parts", [TRUE, torch.arange(60) // 5, torch.arange(60) // 3, torch.arange(60), 0 * TRUE])
def test_the_sparse_layer_is_the_dense_one_with_one_hot_assignments(parts: Tensor) -> None:
    layer, (X, v, s) = layer_of(), cloud()
    dense = layer.soft(X, s, v, nn.functional.one_hot(parts).double())
    for a, b in zip(hard(layer, X, v, s, parts), dense, strict=True):
        assert (a - b).abs().max() < 1e-12


class Seeds(nn.Module):
    """The shared network on a whole cloud, without frames: what frame averaging would be put around."""

    def __init__(self, layer: PiecewiseLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, X: Tensor, v: Tensor, s: Tensor) -> Tensor:
        found = []
        for points, vectors, scalars in zip(X, v, s, strict=True):
            near = neighbours(points, torch.zeros(len(points), dtype=torch.int64), self.layer.near)
            rows = torch.cat([points[near], vectors], 1).flatten(1)
            own, last = self.layer.phi.stage(torch.cat([rows, scalars], 1))
            out = self.layer.phi.finish(own, self.layer.phi.mean(last.mean(0)))
            found.append(points + out[:, -3:])
        return torch.stack(found)


@pytest.mark.parametrize(("frames", "group"), [(8, E3()), (4, SE3())])
def test_one_part_is_frame_averaging(frames: int, group: Any) -> None:
    layer, (X, v, s) = layer_of(frames=frames), cloud()
    wrapper = FrameAveraging(Seeds(layer), group, output="points", inputs=("points", "vectors", "invariant"))
    wanted = wrapper(X[None], v[None], s[None])[0]
    assert (hard(layer, X, v, s, 0 * TRUE).seeds - wanted).abs().max() < 1e-12


def test_points_alone_are_moved_by_a_constant() -> None:
    """Every point its own part: it sees itself at the origin, so its seed is x + const (in the axes as they are)."""
    layer = layer_of()
    X, _, _ = cloud()
    out = layer(X, X.new_zeros(60, 2), X.new_zeros(60, 1, 3), views(X, torch.arange(60), 60, 8, 10))
    shift = out.seeds - X
    assert (shift - shift[0]).abs().max() < 1e-12 and shift[0].abs().max() > 1e-3


def test_order_of_points_and_names_of_parts_change_nothing() -> None:
    layer, (X, v, s) = layer_of(), cloud()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    before = hard(layer, X, v, s, TRUE)
    after = hard(layer, X[order], v[order], s[order], TRUE[order])
    renamed = hard(layer, X, v, s, torch.tensor([2, 0, 3, 1])[TRUE])
    for a, b, c in zip(before, after, renamed, strict=True):
        assert (a[order] - b).abs().max() < 1e-12 and (a - c).abs().max() < 1e-12


def test_neighbours_are_the_nearest_of_the_part() -> None:
    X, _, _ = cloud()
    parts = torch.arange(60) // 7
    found = neighbours(X, parts, 10)
    for i in range(60):
        mine = torch.nonzero(parts == parts[i])[:, 0]
        wanted = mine[(X[mine] - X[i]).norm(dim=1).argsort()]
        assert found[i].tolist() == (wanted.tolist() + [60] * 10)[:10]
    doubled = torch.zeros(5, 3, dtype=F64)  # all in one place: each is its own first
    assert neighbours(doubled, torch.zeros(5, dtype=torch.int64), 3)[:, 0].tolist() == list(range(5))


def test_small_parts_are_flagged_or_join_the_nearest() -> None:
    X, _, _ = cloud()
    parts = torch.zeros(60, dtype=torch.int64)
    parts[30:58], parts[58:] = 1, 2
    seen = views(X, parts, 3, 8, 10)
    assert torch.equal(seen.small, parts == 2) and torch.equal(seen.frame.R[2], torch.eye(3, dtype=F64).expand(8, 3, 3))
    joined = merged_small(X, parts, 3)
    centre = total_by(X, parts, 3) / torch.bincount(parts)[:, None]
    wanted = (centre[:2] - centre[2]).norm(dim=1).argmin()
    assert (joined[58:] == wanted).all() and torch.equal(joined[:58], parts[:58])
    assert (merged_small(X[:6], torch.tensor([0, 0, 1, 1, 2, 2]), 3) == 0).all()  # none is large: all are one


def test_the_network_moves_with_the_whole_cloud() -> None:
    """A global motion is one of every part: partitions, seeds and answers go along, in EM, too."""
    torch.manual_seed(0)
    X = torch.randn(2, 40, 3, dtype=F64)
    inputs = {"points": X, "vectors": torch.nn.functional.normalize(torch.randn(2, 40, 3, dtype=F64), dim=2)}
    net = APEN(3, 5, True, 1, components=6, blocks=2, em_rounds=8, small_part="merge", **SMALL).eval()
    # in float32 a point between two parts may change sides, so the whole net is held to this in float64 alone
    check_equivariance(net, E3(), inputs, "invariant", (F64,), tolerance=1e-9)
    net.double()(X, inputs["vectors"])
    assert net.trace is not None and net.trace.small == 0
    net.small_part = "identity"  # parts without a frame of their own break it, and it is said how many points are in them
    with pytest.raises(AssertionError, match="not invariant"):
        check_equivariance(net, E3(), inputs, "invariant", (F64,), tolerance=1e-9)
    net(X, inputs["vectors"])
    assert net.trace.small > 0


class Fixed(nn.Module):
    """A layer with its partition held."""

    def __init__(self, part: Tensor) -> None:
        super().__init__()
        self.layer, self.part = layer_of(), part

    def forward(self, X: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        out = hard(self.layer, X[0], v[0], s[0], self.part)
        return out.seeds[None], out.vectors[None], out.scalars[None]


def test_a_layer_is_equivariant_in_both_precisions() -> None:
    X, v, s = (a[None] for a in cloud())
    inputs = {"points": X, "vectors": v, "invariant": s}
    check_equivariance(Fixed(TRUE), E3(), inputs, ("points", "vectors", "invariant"), tolerance={torch.float32: 1e-4, F64: 1e-12})


def test_batches_of_different_sizes_equal_one_by_one_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    for more in ({}, {"small_part": "merge"}):
        net = APEN(1, 5, True, components=6, blocks=2, **SMALL, **more).double().eval()
        clouds = [torch.randn(n, 4, dtype=F64) for n in (30, 45, 21)]
        n = 45
        both = torch.stack([nn.functional.pad(c, (0, 0, 0, n - len(c)), value=torch.nan) for c in clouds])
        mask = torch.arange(n)[None] < torch.tensor([len(c) for c in clouds])[:, None]
        with torch.no_grad():
            together = net(both[..., :3], both[..., 3:], mask)
            for i, c in enumerate(clouds):
                alone = net(c[None, :, :3], c[None, :, 3:])[0]
                assert (together[i, : len(c)] - alone).abs().max() < 1e-10
                order = torch.randperm(len(c))
                assert (net(c[order][None, :, :3], c[order][None, :, 3:])[0] - alone[order]).abs().max() < 1e-10
        assert not together[0, 30:].any()


def test_given_parts_make_the_whole_network_exact_for_motions_of_parts() -> None:
    torch.manual_seed(0)
    net = APEN(4, 5, True, 1, components=4, blocks=2, own_parts=True, **SMALL).double().eval()
    X, v, _ = cloud()
    R, t = (a[TRUE] for a in motion_of_parts(TRUE, torch.Generator().manual_seed(3)))
    column = TRUE.double()[:, None]
    with torch.no_grad():
        a = net(X[None], torch.cat([v[:, 0], column], 1)[None])
        b = net(((R @ X[..., None])[..., 0] + t)[None], torch.cat([(v @ R.mT)[:, 0], column], 1)[None])
    assert (a - b).abs().max() < 1e-12 and a.std() > 1e-4


def test_uncertainty_stands_beside_where_it_is_asked() -> None:
    torch.manual_seed(0)
    net = APEN(0, 5, True, components=6, blocks=2, **SMALL).eval()
    X = torch.randn(1, 40, 3)
    with torch.no_grad():
        plain = net(X)
        net.beside = True
        both = net(X)
    assert torch.equal(both[..., :5], plain) and both.shape == (1, 40, 6)
    assert net.trace is not None and torch.equal(both[0, :, 5], torch.stack(net.trace.uncertainty).mean(0))
    assert len(net.trace.parts) == 3 and float(both[..., 5].min()) >= 0 and float(both[..., 5].max()) < 1


def test_seeds_are_pulled_to_the_centres_of_the_true_parts() -> None:
    torch.manual_seed(0)
    X = torch.randn(1, 40, 3, dtype=F64)
    net = APEN(0, 4, True, components=4, blocks=2, **SMALL).double()
    net(X)
    truth = torch.arange(40) // 10
    truth[:3] = -1
    assert net.trace is not None
    found = seed_loss(net.trace, X[0], truth, torch.zeros(40, dtype=torch.int64))
    wanted = 0.0
    for seeds in net.trace.seeds:
        centre = torch.stack([X[0][truth == p].mean(0) for p in range(4)])
        rows = truth >= 0
        wanted += float((seeds.detach()[rows] - centre[truth[rows]]).square().sum(1).mean())
    assert abs(float(found) - wanted) < 1e-12
    found.backward()
    grads = [p.grad for p in net.blocks.parameters()]
    assert any(g is not None and bool(g.abs().sum() > 0) for g in grads)


# -- the mixture ---------------------------------------------------------------------------------------------------------
def blobs(apart: float = 1.0, n: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = apart * torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 1.2, 0]], dtype=F64)
    return torch.cat([0.3 * torch.randn(n, 3, generator=generator, dtype=F64) + p for p in places])[None]


@settings(max_examples=20, deadline=None)
@given(k=st.integers(1, 12), var=st.sampled_from([0.005, 0.05, 0.5]), seed=st.integers(0, 100))
def test_the_likelihood_never_falls_between_merges(k: int, var: float, seed: int) -> None:
    Y = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    found = em(Y, k, var, 16)
    steps = found.likelihood.diff(dim=0)
    for number, step in enumerate(steps):  # step number is from before round number to after it
        if number + 1 not in found.merged:
            assert (step > -1e-10 * found.likelihood.abs().max()).all()
    assert torch.allclose(found.log_pi.exp().sum(1), torch.ones(2, dtype=F64))
    r = log_responsibilities(Y, found).exp()
    assert torch.allclose(r.sum(2), torch.ones(2, 30, dtype=F64))


def test_means_are_those_of_scikit_learn() -> None:
    from sklearn.mixture import GaussianMixture

    Y, var = blobs(), 0.09

    class Fixed(GaussianMixture):  # spherical, and the variance stays
        def _m_step(self, X: Any, log_resp: Any, xp: Any = None) -> None:
            r = np.exp(log_resp)
            self.weights_ = r.sum(0) / len(X)
            self.means_ = r.T @ X / r.sum(0)[:, None]
            self.covariances_ = np.full(3, var)
            self.precisions_cholesky_ = np.full(3, 1 / np.sqrt(var))

    start = Y[0][farthest_points(Y, 3)[0]].numpy()
    oracle = Fixed(3, covariance_type="spherical", means_init=start, precisions_init=np.full(3, 1 / var), max_iter=100, tol=0)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle.fit(Y[0].numpy())
    found = em(Y, 3, var, 100, closer=0, lighter=0).mu[0]
    distance = torch.cdist(found, torch.from_numpy(oracle.means_))
    assert distance.amin(1).max() < 1e-4 and len(set(distance.argmin(1).tolist())) == 3


def test_farthest_points_by_brute_force_and_with_masks() -> None:
    Y = torch.randn(2, 25, 3, dtype=F64)
    mask = torch.ones(2, 25, dtype=torch.bool)
    mask[1, 20:] = False
    Y[1, 20:] = 100.0
    found = farthest_points(Y, 6, mask)
    for b, n in ((0, 25), (1, 20)):
        X = Y[b, :n]
        chosen = [int((X - X.mean(0)).norm(dim=1).argmax())]
        while len(chosen) < 6:
            chosen.append(int(torch.cdist(X, X[chosen]).amin(1).argmax()))
        assert found[b].tolist() == chosen


@pytest.mark.parametrize("mode", ["implicit", "unrolled"])
def test_gradients_are_those_of_finite_differences(mode: str) -> None:
    """Implicit: of the fixed point itself. Unrolled: of one round from constants."""
    Y, var = blobs(), 0.2
    fixed = em(Y, 3, var, 300, closer=0, lighter=0)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 3, generator=generator, dtype=F64), torch.randn(3, generator=generator, dtype=F64)

    def value(Y: Tensor) -> Tensor:
        if mode == "unrolled":
            found = unrolled(Y, fixed)
        else:
            found = em(Y, 3, var, 150, closer=0, lighter=0, start=fixed.mu)
        return (found.mu * a).sum() + (found.log_pi * b).sum()

    given = Y.clone().requires_grad_()
    found = (implicit if mode == "implicit" else unrolled)(given, fixed)
    assert torch.allclose(found.mu, fixed.mu, atol=1e-9)
    ((found.mu * a).sum() + (found.log_pi * b).sum()).backward()
    assert given.grad is not None
    for i, c in ((3, 0), (17, 2), (50, 1), (100, 2), (119, 0)):
        up, down = Y.clone(), Y.clone()
        up[0, i, c] += 1e-4
        down[0, i, c] -= 1e-4
        wanted = float(value(up) - value(down)) / 2e-4
        assert abs(float(given.grad[0, i, c]) - wanted) < 1e-4 * max(abs(wanted), 1e-2)


def test_the_implicit_gradient_leaves_padding_and_dead_components_out() -> None:
    Y = torch.cat([blobs(), torch.tensor([50.0, torch.nan, torch.inf, 1e300, 0.0], dtype=F64)[None, :, None].expand(1, 5, 3)], 1)
    mask = torch.arange(125)[None] < 120
    fixed = em(blobs(), 3, 0.2, 300, closer=0, lighter=0)
    padded = Mixture(
        torch.cat([fixed.mu, torch.zeros(1, 2, 3, dtype=F64)], 1),
        torch.cat([fixed.log_pi, torch.full((1, 2), -torch.inf, dtype=F64)], 1), 0.2, fixed.likelihood,
    )  # fmt: skip
    assert (em(Y, 3, 0.2, 300, mask, closer=0, lighter=0).mu - fixed.mu).abs().max() < 1e-10
    for step in (implicit, unrolled):
        grads = []
        for points, mixture, m in ((blobs(), fixed, None), (Y, padded, mask)):
            given = points.clone().requires_grad_()
            step(given, mixture, m).mu[:, :3].square().sum().backward()
            assert given.grad is not None
            grads.append(given.grad)
        assert (grads[0] - grads[1][:, :120]).abs().max() < 1e-10 and not grads[1][:, 120:].any()


def test_merging_is_by_mahalanobis_distance_along_chains() -> None:
    mu = torch.tensor([[[0.0, 0, 0], [0.09, 0, 0], [0.18, 0, 0], [1, 0, 0]]], dtype=F64)
    log_pi = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=F64).log()
    moved, weight = merge(mu, log_pi, 0.04, 0.5)  # closer than .5 standard deviations: .1
    assert torch.allclose(weight.exp(), torch.tensor([[0.6, 0, 0, 0.4]], dtype=F64))
    assert torch.allclose(moved[0, 0, 0], torch.tensor((0.2 * 0.09 + 0.3 * 0.18) / 0.6, dtype=F64)) and moved[0, 3, 0] == 1
    same, kept = merge(mu, log_pi, 0.01, 0.5)
    assert torch.equal(kept, log_pi) and torch.allclose(same, mu)
    light = drop(torch.tensor([[0.5, 0.49995, 0.00005]], dtype=F64).log(), 1e-4)
    assert light[0, 2] == -torch.inf and torch.allclose(light.exp().sum(), torch.tensor(1.0, dtype=F64))


def test_a_wide_variance_lets_components_collapse() -> None:
    """Why the first variance is not the .2 of the paper's code: 40 components on a body in metres become a handful."""
    Y = torch.rand(1, 600, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.tensor([0.5, 1.7, 0.3], dtype=F64)
    wide, narrow = em(Y, 40, 0.2, 100), em(Y, 40, 0.001, 100)
    assert int(wide.alive) < 10 and int(narrow.alive) > 30


def test_later_blocks_drop_heavier_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Card: components of a weight below 1e-4 x 2^block vanish."""
    from latticework.points.apen import network

    seen: list[float] = []
    plain = network.partition
    monkeypatch.setattr(network, "partition", lambda *given, **how: (seen.append(how["lighter"]), plain(*given, **how))[1])
    net = APEN(0, 4, True, components=4, blocks=3, **SMALL).eval()
    net(torch.randn(2, 30, 3))
    assert seen == [1e-4, 2e-4, 4e-4, 8e-4]


def test_draws_are_seeded_and_follow_the_responsibilities() -> None:
    Y = blobs(apart=0.3)

    def drawn(seed: int) -> Tensor:
        return partition(Y, 3, 0.2, 4, draw="sampled", generator=torch.Generator().manual_seed(seed), closer=0).part

    likely = partition(Y, 3, 0.2, 4, closer=0)
    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    shares = torch.stack([nn.functional.one_hot(drawn(s), 3).double() for s in range(100)]).mean(0)
    assert (shares - likely.log_r.exp()).abs().mean() < 0.06
    assert torch.allclose(likely.uncertainty, 1 - likely.log_r.exp().amax(2)) and torch.equal(likely.part, likely.log_r.argmax(2))


def test_the_assignment_carries_a_gradient_and_is_one_in_value() -> None:
    for draw in ("argmax", "sampled"):
        Y = blobs(apart=0.4).requires_grad_()
        found = partition(Y, 3, 0.1, draw=draw, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        assert torch.allclose(found.W, torch.ones_like(found.W))
        (found.W * torch.arange(120)).sum().backward()
        assert Y.grad is not None and torch.isfinite(Y.grad).all() and Y.grad.abs().sum() > 0


def test_impure_counts_the_points_of_mixed_parts() -> None:
    part, truth = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([5, 5, 5, 6, 6, -1])
    assert impure(part, truth).tolist() == [0, 0, 1, 1, 1, 0]
    assert impure(torch.arange(6), truth).sum() == 0


# -- bad input -----------------------------------------------------------------------------------------------------------
def test_what_cannot_be_parted_is_named() -> None:
    Y = torch.randn(1, 5, 3)
    for call, says in (
        (lambda: em(Y, 0, 0.1), "at least 1"), (lambda: em(Y, 6, 0.1), "5 points and 6 components"),
        (lambda: em(Y[:0], 2, 0.1), "no cloud"), (lambda: em(Y * torch.nan, 2, 0.1), "not finite"), (lambda: em(Y, 2, 0.0), "above 0"),
        (lambda: views(Y[0] * torch.inf, torch.zeros(5, dtype=torch.int64), 1, 8, 3), "point 0 is not finite"),
        (lambda: PiecewiseLayer(0, 0, 1, 1, frames=6), "8 .* or 4"), (lambda: APEN(0, 3, True, components=0), "1 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            call()


def test_all_points_in_one_place_give_one_part_and_a_finite_answer() -> None:
    torch.manual_seed(0)
    net = APEN(0, 4, True, components=6, blocks=2, **SMALL).eval()
    with torch.no_grad():
        out = net(torch.ones(1, 20, 3))
    assert torch.isfinite(out).all() and net.trace is not None
    assert all(int(c) == 1 for c in net.trace.components[:1]) and net.trace.gap == 0 and not net.trace.uncertainty[0].any()
    assert (out - out[:, :1]).abs().max() < 1e-6
