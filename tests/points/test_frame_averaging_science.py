"""Frame Averaging as a wrapper: exact for any network, in every form; training mode; degenerate clouds; layers; neighbourhoods."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latticework.core.grid import entry_of
from latticework.layers.frames import Finite, equivariance_error
from latticework.points.baselines import ParticleGNN
from latticework.points.frame_averaging import (
    E3,
    O3,
    SE3,
    SO3,
    E,
    FrameAveraging,
    FrameWarning,
    LayerwiseFrameAveraging,
    LocalVectors,
    Scale,
    Sn,
    Translations,
    cyclic,
)  # fmt: skip
from latticework.points.frame_averaging.graphs import FramedGraphs, add_frames, draw_places, repeated
from latticework.points.frame_averaging.method import FramedLayers, FramedPoints
from latticework.points.network import PointBackbone
from latticework.testing.equivariance import check_equivariance, check_graphs


class Net(nn.Module):
    """Points (and whatever stands beside them) [B, n, …] -> [B, n, out], or pooled [B, out]; no symmetry but that of the numbering."""

    def __init__(self, inputs: int = 3, out: int = 3, pooled: bool = False, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.pooled = nn.Linear(inputs, 24), nn.Linear(48, out), pooled
        self.dropout, self.norm = nn.Dropout(dropout), nn.BatchNorm1d(24) if norm else None

    def forward(self, *X: Tensor) -> Tensor:
        h = self.first(torch.cat([v.flatten(2) for v in X], -1))
        if self.norm is not None:
            h = self.norm(h.mT).mT
        h = torch.tanh(self.dropout(h))
        h = self.last(torch.cat([h, h.mean(1, keepdim=True).expand_as(h)], -1))
        return h.mean(1) if self.pooled else h


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def points(B: int = 3, n: int = 20, d: int = 3) -> Tensor:
    return torch.randn(B, n, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * torch.arange(1, d + 1) + 0.3


def random_graphs(B: int, n: int, p: float = 0.5, seed: int = 0) -> Tensor:
    A = (torch.rand(B, n, n, generator=torch.Generator().manual_seed(seed)) < p).double().triu(1)
    return A + A.mT


# -- exactness -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [E3(), SE3(), O3(), SO3(), Translations(), Scale(), SE3() * Scale()], ids=lambda g: g.name)
@pytest.mark.parametrize("output", ["points", "vectors", "directions", "invariant", "vector", "pooled"])
def test_any_network_becomes_exactly_symmetric(group: Any, output: str) -> None:
    pooled, kind = output in ("vector", "pooled"), "invariant" if output == "pooled" else output
    net = FrameAveraging(Net(out=5 if kind == "invariant" else 3, pooled=pooled), group, kind)
    found = check_equivariance(net, group, points(), kind, tolerance={torch.float64: 1e-12})
    assert found[torch.float64] < 1e-12 and found[torch.float32] < 1e-4


def test_rotations_do_not_commute_with_reflections_and_motions_do() -> None:
    mirror = Finite.of([np.diag([1.0, -1, 1])])
    X = points()
    for group, holds in ((SE3(), False), (E3(), True)):
        net = FrameAveraging(Net().double(), group, "points")
        error = equivariance_error(net, mirror, [("points", X)], "points")
        assert error < 1e-12 if holds else error > 1e-3
    with pytest.raises(AssertionError, match="not equivariant under E"):
        check_equivariance(FrameAveraging(Net(), SE3(), "points"), E3(), X, "points")


def test_several_inputs_and_outputs_of_every_type() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(3 + 3 + 6 + 3 + 4, 12)

        def forward(self, X: Tensor, V: Tensor, more: Tensor, N: Tensor, h: Tensor) -> tuple[Tensor, ...]:
            out = self.net(X, V, more, N, h)
            return out[..., :3], out[..., 3:6], out[..., 6:9], out[..., 9:].sum(1), out[:, 0, :3]

    g = torch.Generator().manual_seed(1)
    kinds = ("points", "vectors", "vectors", "directions", "invariant")
    shapes = ((3, 9, 3), (3, 9, 3), (3, 9, 2, 3), (3, 9, 3), (3, 9, 4))
    inputs = [(k, torch.randn(*s, generator=g, dtype=torch.float64)) for k, s in zip(kinds, shapes, strict=True)]
    outputs = ("points", "vectors", "directions", "invariant", "vector")
    for group in (E3(), SE3() * Scale()):
        check_equivariance(FrameAveraging(Two(), group, outputs, kinds), group, inputs, outputs, tolerance={torch.float64: 1e-11})
    lone = FrameAveraging(Two().double(), SE3(), outputs, kinds)
    together, alone = lone(*(v for _, v in inputs)), lone(*(v[1] for _, v in inputs))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1], b, rtol=0, atol=1e-12)


def test_a_symmetric_network_is_unchanged_and_a_finite_group_is_its_average() -> None:
    X = points()
    square = FrameAveraging(Distances(), E3())
    torch.testing.assert_close(square(X), Distances()(X), rtol=0, atol=1e-12)
    Y, net = points(d=2), Net(2, 2).double()
    turn = torch.tensor([[0.0, -1], [1, 0]], dtype=torch.float64)
    by_hand, R = 0, torch.eye(2, dtype=torch.float64)
    for _ in range(4):
        by_hand, R = by_hand + net(Y @ R) @ R.mT / 4, turn @ R
    torch.testing.assert_close(FrameAveraging(net, cyclic(4), "vectors")(Y), by_hand, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        FrameAveraging(net, E(2), "points")(Y).mean(), FrameAveraging(net, E(2), "points")(Y.flip(1)).mean()
    )


class Distances(nn.Module):
    def forward(self, X: Tensor) -> Tensor:
        return torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist").sort(-1).values


def test_worked_example() -> None:
    X = torch.tensor([[3.0, 0], [-1, 0], [-2, 0], [0, 1], [0, -1]])

    class Phi(nn.Module):
        def forward(self, Z: Tensor) -> Tensor:
            return torch.relu(Z[:, 0, 0]) + 2 * torch.relu(Z[:, 0, 1])

    assert float(FrameAveraging(Phi(), E(2))(X)) == 3.0


def test_gradients_reach_points_and_parameters_and_are_right() -> None:
    net, X = FrameAveraging(Net().double(), SE3(), "vectors"), points(1, 6).requires_grad_()
    net(X).square().sum().backward()
    assert X.grad is not None and all(p.grad is not None and bool((p.grad != 0).any()) for p in net.parameters())
    # the gradient of the framed map, frames held still (they are detached): as autograd through fixed frames
    frame = SE3().frame(X)
    Y = X.detach().requires_grad_()
    (frame.average(net.backbone(frame.into(Y, "points").flatten(0, 1)).unflatten(0, (1, 4)), "vectors").square().sum()).backward()
    torch.testing.assert_close(X.grad, Y.grad)


# -- training --------------------------------------------------------------------------------------------------------------
def test_batch_statistics_and_dropout_masks_are_shared_by_the_elements() -> None:
    for norm, dropout in ((True, 0.0), (False, 0.5), (True, 0.5)):
        net = FrameAveraging(Net(norm=norm, dropout=dropout), E3(), "points").train()
        check_equivariance(net, E3(), points(), "points", tolerance={torch.float64: 1e-11, torch.float32: 1e-3})
    apart = FrameAveraging(Net(dropout=0.5), E3(), "points", same_dropout=False).train()
    with pytest.raises(AssertionError, match="not equivariant"):
        check_equivariance(apart, E3(), points(), "points")
    net = FrameAveraging(Net(dropout=0.5), E3(), "points").train()
    first, second = net(points().float()), net(points().float())
    assert not torch.equal(first, second)  # another mask each time
    assert torch.equal(net.eval()(points().float()), net(points().float()))
    assert len(net.backbone.dropout._forward_hooks) == 0


@pytest.mark.parametrize("name", ["pointnet", "dgcnn", "deepsets"])
def test_the_dropout_of_the_librarys_point_backbones_is_shared(name: str) -> None:
    method = entry_of(name)
    assert method.dropout > 0
    schema = {"output": "class", "vectors": []}
    net = FramedPoints(method.module(0, 4, schema), E3(), "invariant", 0, None, None).double().train()
    X = points(3, 40)
    moved = X @ torch.linalg.qr(points(1, 3)[0])[0].mT + 2.0
    torch.manual_seed(1)
    first = net(X)
    again = net(X)
    torch.manual_seed(1)
    torch.testing.assert_close(net(moved), first, rtol=0, atol=1e-8)
    assert not torch.allclose(first, again)


def test_a_dropout_in_place_is_shared_too_and_is_in_place_afterwards() -> None:
    class Loud(Net):
        def forward(self, *X: Tensor) -> Tensor:
            h = self.first(X[0])
            return self.last(torch.cat([self.dropout(h), h.tanh()], -1))

    for inplace in (False, True):
        net = Loud(dropout=0.5)
        net.dropout = nn.Dropout(0.5, inplace=inplace)
        average = FrameAveraging(net, E3(), "points").train()
        check_equivariance(average, E3(), points(), "points", tolerance={torch.float64: 1e-11, torch.float32: 1e-3})
        assert net.dropout.inplace == inplace


def test_a_mask_that_cannot_be_shared_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.AlphaDropout(0.5), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="AlphaDropout cannot be shared"):
        FrameAveraging(net, E3(), "points").train()(points().float())
    FrameAveraging(net, E3(), "points", same_dropout=False).train()(points().float())
    FrameAveraging(net, E3(), "points").eval()(points().float())

    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, X: Tensor) -> Tensor:
            return X * self.dropout(X[:1])

    with pytest.raises(ValueError, match="a dropout of 1 rows in 24 elements"):
        FrameAveraging(Few(), E3(), "points").train()(points().float())


class Numbered(nn.Module):
    """A network that sees where a node stands: no symmetry under renumbering; with dropout."""

    def __init__(self, n: int, F: int, p: float) -> None:
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(n * n + n * F, 16), nn.Dropout(p), nn.Linear(16, 3)

    def forward(self, *given: Tensor) -> Tensor:
        h = self.first(torch.cat([v.flatten(1) for v in given], 1).to(self.first.weight.dtype))
        return self.last(self.dropout(h).tanh())


def test_dropout_is_shared_by_the_orderings_of_a_graph() -> None:
    A, order = random_graphs(4, 6), torch.randperm(6, generator=torch.Generator().manual_seed(5))
    turned = A[:, order][:, :, order]
    X = points(4, 6)
    for group, given, other in (
        (Sn(), (A,), (turned,)),
        (E3() * Sn(), (X, A), (X[:, order] @ torch.linalg.qr(points(1, 3)[0])[0].mT - 1.0, turned)),
    ):
        inputs = ("graph",) if len(given) == 1 else ("points", "graph")
        net = FrameAveraging(Numbered(6, 0 if len(given) == 1 else 3, 0.5), group, "invariant", inputs).double().train()
        torch.manual_seed(2)
        first = net(*given)
        again = net(*given)
        torch.manual_seed(2)
        torch.testing.assert_close(net(*other), first, rtol=0, atol=1e-9)
        assert not torch.allclose(first, again)


def test_one_drawn_element_is_an_unbiased_estimate() -> None:
    X = points(2, 8)
    whole = FrameAveraging(Net().double(), E3(), "vectors")
    one = FrameAveraging(whole.backbone, E3(), "vectors", samples=1)
    many = one(X.repeat(3000, 1, 1)).unflatten(0, (3000, 2))
    error = (many.mean(0) - whole(X)).abs() / (many.std(0) / 3000**0.5)
    assert float(error.max()) < 5
    drawn = FrameAveraging(whole.backbone, E3(), "vectors", train_samples=1)
    seen: list[int] = []
    drawn.backbone.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    drawn.train()(X)
    drawn.eval()(X)
    assert seen == [2, 16]


def test_elements_in_pieces_give_the_same_answer() -> None:
    """In eval mode without gradients alone; every row goes through once."""

    class Counted(Net):
        rows: tuple[int, ...] = ()

        def forward(self, *X: Tensor) -> Any:
            self.rows = (*self.rows, len(X[0]))
            found = super().forward(*X)
            return found, found.mean((1, 2))

    net, X = Counted(norm=True).double(), points()
    whole = FrameAveraging(net, E3(), ("points", "invariant"))
    pieces = FrameAveraging(net, E3(), ("points", "invariant"), at_once=7)
    for average in (whole, pieces):
        average(X)
        average.eval()(X)
    with torch.no_grad():
        wanted, found = whole(X), pieces(X)
    assert net.rows == (24, 24, 24, 24, 24, 7, 7, 7, 3)
    for a, b in zip(wanted, found, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() < 1e-12
    with pytest.raises(ValueError, match="at least 1"):
        FrameAveraging(net, E3(), at_once=0)


def test_padding_in_weights_changes_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(out=3)

        def forward(self, X: Tensor, mask: Tensor) -> Tensor:
            return self.net.first(X).tanh()[..., :3] * mask[..., None]

    net = FrameAveraging(Masked().double(), E3(), "vectors", ("points", "invariant"))
    X, mask = points(1, 9), torch.ones(1, 9, dtype=torch.float64)
    padded, longer = torch.cat([X, 5 + points(1, 4)], 1), torch.cat([mask, torch.zeros(1, 4)], 1)
    torch.testing.assert_close(net(padded, longer, weights=longer)[:, :9], net(X, mask), rtol=0, atol=1e-12)


def test_padding_may_hold_anything() -> None:
    net, X, weights = FrameAveraging(Net(pooled=True).double(), E3()), points(1, 9), torch.ones(1, 12, dtype=torch.float64)
    weights[:, 9:] = 0
    wanted = net.group.frame(X)
    for filling in (float("nan"), float("inf"), 1e300):
        frame = net.group.frame(torch.cat([X, torch.full((1, 3, 3), filling, dtype=torch.float64)], 1), weights)
        torch.testing.assert_close(frame.t, wanted.t)
        torch.testing.assert_close(frame.R, wanted.R)


def test_whole_numbers_are_points_too_and_what_stands_first_does_not_matter() -> None:
    X = (10 * points()).round()
    net = FrameAveraging(Net(pooled=True), E3())
    torch.testing.assert_close(net(X.long()), net(X.float()))

    class Swapped(Net):
        def forward(self, *X: Tensor) -> Tensor:
            return super().forward(X[1]) * X[0].mean()

    kinds = ("invariant", "points")
    lone = FrameAveraging(Swapped(pooled=True), E3(), inputs=kinds)
    h = torch.ones(20, 4, 2)
    torch.testing.assert_close(lone(h, X[0].float()), lone(h[None], X[:1].float())[0])


# -- degenerate ------------------------------------------------------------------------------------------------------------
def test_a_repeated_eigenvalue_is_warned_of_or_refused() -> None:
    square = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]], dtype=torch.float64)
    net = FrameAveraging(Net(pooled=True).double(), E3())
    with pytest.warns(FrameWarning, match="1 of 1 frames"):
        net(square)
    assert net.last_gap is not None and float(net.last_gap) < 1e-12
    with pytest.raises(ValueError, match="nearly degenerate"):
        FrameAveraging(Net(pooled=True).double(), E3(), degenerate="error")(torch.stack([square + 0.1 * points(1, 4)[0], square]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrameAveraging(Net(pooled=True).double(), E3(), degenerate="ignore")(square)
        net(points())


def test_mistakes_are_named() -> None:
    X = points()
    nan = X.clone()
    nan[0, 2, 1] = float("nan")
    for call, says in (
        (lambda: FrameAveraging(Net(), E3())(nan.float()), "not finite"),
        (lambda: FrameAveraging(Net(), E3())(X[:, :0].float()), "at least one point"),
        (lambda: FrameAveraging(Net(), E3())(X[:0].float()), "a batch of none"),
        (lambda: FrameAveraging(Net(), Sn())(torch.zeros(0, 4, 4)), "a batch of none"),
        (lambda: FrameAveraging(Net(), E3())(1e200 * X), "squares of what is above"),
        (lambda: FrameAveraging(Net(), E3())(X.float(), weights=torch.ones(3)), "one a point is needed"),
        (lambda: FrameAveraging(Net(), E3())(X.float(), weights=torch.ones(3, 20, 1)), "one a point is needed"),
        (lambda: FrameAveraging(Net(), E3())(X.float(), weights=-torch.ones(3, 20)), "at least 0"),
        (lambda: FrameAveraging(Net(), E(9)), "1 to 8"),
        (lambda: FrameAveraging(Net(), E3(), "normals"), "no kind of tensor"),
        (lambda: FrameAveraging(Net(6), E3())(X.float(), X.float()), "say with inputs"),
        (lambda: FrameAveraging(Net(6), E3(), inputs=("points",))(X.float(), X.float()), "2 arguments, inputs names 1"),
        (lambda: FrameAveraging(Net(), E3(), ("points", "vector"))(X.float()), "output names 2"),
        (lambda: FrameAveraging(Net(), E3(), samples=0), "at least 1 element"),
        (lambda: FrameAveraging(Net(), E3(), degenerate="maybe"), "warn, error or ignore"),
        (lambda: FrameAveraging(Net(), Sn())(X), "square"),
        (lambda: FrameAveraging(Net(), Sn())(torch.ones(1, 4, 4).triu()), "not symmetric"),
        (lambda: FrameAveraging(Net(), Sn(), inputs=("nodes",))(X), "Sn takes its frame from a graph"),
        (lambda: LayerwiseFrameAveraging(nn.Linear(3, 7), [nn.Identity(), nn.Identity()], nn.Linear(7, 3), E3())(X.float()), "3-vectors"),
        (lambda: LayerwiseFrameAveraging(nn.Identity(), [], nn.Identity(), SO3()), "E\\(d\\) or SE\\(d\\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            call()


# -- layers and neighbourhoods -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [E3(), SE3()], ids=lambda g: g.name)
def test_frames_between_layers_are_equivariant(group: Any) -> None:
    width = 60
    layers = [nn.Sequential(nn.Linear(width, width), nn.SiLU()) for _ in range(4)]
    net = LayerwiseFrameAveraging(nn.Linear(6, width), layers, nn.Linear(width, 3), group)
    X = points(4, 5)
    V = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = check_equivariance(
        net, group, {"points": X, "vectors": V}, "points", tolerance={torch.float64: 1e-9, torch.float32: 1e-3}
    )
    assert found[torch.float64] < 1e-11
    one = LayerwiseFrameAveraging(net.embed, [layers[0]], net.decode, group, "vectors").double()
    plain = FrameAveraging(nn.Sequential(net.embed, layers[0], net.decode), group, "vectors")
    torch.testing.assert_close(one(X), plain(torch.cat([X], -1))) if net.embed.in_features == 3 else None


def test_one_layer_is_the_plain_wrapper() -> None:
    embed, layer, decode = nn.Linear(3, 12), nn.Sequential(nn.Linear(12, 12), nn.Tanh()), nn.Linear(12, 3)
    X = points()
    one = LayerwiseFrameAveraging(embed, [layer], decode, E3(), "vectors").double()
    plain = FrameAveraging(nn.Sequential(embed, layer, decode), E3(), "vectors")
    torch.testing.assert_close(one(X), plain(X), rtol=0, atol=1e-12)


def particles() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    pos, v = (torch.randn(6, 5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    q = torch.randint(0, 2, (6, 5, 1), generator=g).double() * 2 - 1
    return pos, v, q


@pytest.mark.parametrize("form", ["plain", "layers"])
def test_particle_networks_behind_frames(form: str) -> None:
    """Float32 errors as the card measured them: a few 1e-5 between layers, below 1e-5 for the plain form."""
    net = ParticleGNN(4, 3, 1, 60, 4)
    inner = FramedLayers(net, E3()) if form == "layers" else FramedPoints(net, E3(), "vectors", 1, None, None)

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = inner

        def forward(self, X: Tensor, V: Tensor, q: Tensor) -> Tensor:
            return self.net(X, torch.cat([V, q], -1))

    pos, v, q = particles()
    inputs = {"points": pos, "vectors": v, "invariant": q}
    found = check_equivariance(Call(), E3(), inputs, "vectors", tolerance={torch.float64: 1e-10, torch.float32: 1e-3})
    assert found[torch.float64] < 1e-11
    with pytest.raises(AssertionError):
        bare = Call()
        bare.net = net
        check_equivariance(bare, E3(), inputs, "vectors")
    # padding: systems of other sizes beside change nothing
    x, mask = torch.cat([v, q], -1).float(), torch.ones(6, 7, dtype=torch.bool)
    mask[:, 5:] = False
    longer = [torch.cat([t, 9 * torch.ones(6, 2, t.shape[-1])], 1) for t in (pos.float(), x)]
    torch.testing.assert_close(inner.float()(*longer, mask)[:, :5], inner(pos.float(), x), rtol=1e-4, atol=1e-5)


def test_vectors_of_neighbourhoods_are_equivariant() -> None:
    X = points(2, 30)
    local = LocalVectors(6, 20, E3())
    check_equivariance(local, E3(), X, "vectors", tolerance={torch.float64: 1e-9, torch.float32: 1e-2})
    scaled = SE3() * Scale()
    check_equivariance(LocalVectors(6, 20, scaled), scaled, X, "vectors", tolerance={torch.float64: 1e-9, torch.float32: 1e-2})
    assert LocalVectors(6, 20).double()(X[:, :7]).shape == (2, 7, 6, 3)  # fewer points than neighbours
    moved = X.clone()
    moved[:, -1] += 100.0  # far away: no neighbourhood but its own feels it
    a, b = local.double()(X), local(moved)
    same = (a - b).abs().amax((2, 3)) < 1e-12
    assert bool(same[:, :-1].float().mean() > 0.2)


class Pool(PointBackbone):
    """A point backbone that reads columns and mask."""

    def __init__(self, inputs: int, out: int, per_point: bool, vectors: int = 0) -> None:
        super().__init__()
        self.per_point, self.vectors, self.net = per_point, vectors, Net(3 + inputs, out)

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = self.net.first(pos if x is None else torch.cat([pos, x], -1)).tanh()
        keep = torch.ones_like(h[..., :1]) if mask is None else mask[..., None].to(h.dtype)
        mean = (h * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)
        out = self.net.last(torch.cat([h, mean.expand_as(h)], -1))
        return out if self.per_point else (out * keep).sum(1)


@pytest.mark.parametrize("local", [None, LocalVectors(4, 8, E3())], ids=["whole", "local"])
@pytest.mark.parametrize("per_point", [True, False])
def test_point_backbones_behind_frames_are_point_backbones(per_point: bool, local: LocalVectors | None) -> None:
    extra = 0 if local is None else 12
    net = FramedPoints(Pool(3 + 2 + extra, 3, per_point), E3(), "vectors" if per_point else "invariant", 1, local, None)
    pos, v, _ = particles()
    x = torch.cat([v, torch.rand(6, 5, 2, dtype=torch.float64)], -1)

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, X: Tensor, V: Tensor, h: Tensor) -> Tensor:
            return self.net(X, torch.cat([V, h], -1))

    kind = "vectors" if per_point else "invariant"
    check_equivariance(
        Call(), E3(), {"points": pos, "vectors": v, "invariant": x[..., 3:]}, kind, tolerance={torch.float32: 1e-3}
    )
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[:, 5:] = False
    longer = [torch.cat([t, torch.full((6, 3, t.shape[-1]), torch.nan if t is pos else 7.0)], 1) for t in (pos, x)]
    padded, bare = net.double()(*longer, mask), net(pos, x)
    torch.testing.assert_close(padded[:, :5] if per_point else padded, bare, rtol=0, atol=1e-10)
    assert 0 < net.lowest_gap < 1


# -- graphs ----------------------------------------------------------------------------------------------------------------
class FlatNet(nn.Module):
    """A network of flattened (A, x): [M, n, n], [M, n, F] -> [M, out], or a row a node."""

    def __init__(self, n: int, features: int, out: int, nodes: bool) -> None:
        super().__init__()
        self.first, self.last, self.nodes, self.n = (
            nn.Linear(n * (n + features), 32),
            nn.Linear(32, n * out if nodes else out),
            nodes,
            n,
        )

    def forward(self, A: Tensor, x: Tensor | None = None) -> Tensor:
        flat = A.flatten(1) if x is None else torch.cat([A.flatten(1), x.flatten(1)], 1)
        h = self.last(torch.tanh(self.first(flat)))
        return h.unflatten(1, (self.n, -1)) if self.nodes else h


@pytest.mark.parametrize("nodes", [False, True])
def test_a_network_of_adjacencies_becomes_symmetric(nodes: bool) -> None:
    A = random_graphs(20, 6)
    x = torch.randint(0, 2, (20, 6, 2), generator=torch.Generator().manual_seed(1)).double()
    kind = "nodes" if nodes else "invariant"
    for given in ({"graph": A}, {"graph": A, "nodes": x}):
        net = FrameAveraging(FlatNet(6, 2 if len(given) > 1 else 0, 3, nodes), Sn(), kind)
        check_equivariance(net, Sn(), given, kind, tolerance={torch.float64: 1e-12})
        with pytest.raises(AssertionError, match="under Sn"):
            check_equivariance(net.backbone, Sn(), given, kind)
    alone = net.double()(A[3], x[3])
    torch.testing.assert_close(alone, net(A, x)[3], rtol=0, atol=1e-12)


def test_pose_and_numbering_at_once() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = FlatNet(5, 3, 3, True)

        def forward(self, X: Tensor, A: Tensor | None = None) -> Tensor:
            return self.net(torch.cdist(X, X) if A is None else A, X)

    group = E3() * Sn()
    net = FrameAveraging(Both(), group, "points")
    check_equivariance(
        net, group, {"points": points(3, 5), "graph": random_graphs(3, 5)}, "points", tolerance={torch.float64: 1e-11}
    )
    check_equivariance(net, group, points(3, 5), "points", tolerance={torch.float64: 1e-11})
    drawn = FrameAveraging(net.backbone.double(), group, "points", samples=2)
    assert drawn(points(3, 5)).shape == (3, 5, 3)


# -- networks of PyG batches behind frames of S_n -------------------------------------------------------------------------------
class PyGNet(nn.Module):
    """GIN with ids: three layers of sums over neighbours, a sum over nodes, a head."""

    def __init__(self, inputs: int, out: int = 10, width: int = 32) -> None:
        super().__init__()
        from torch_geometric.nn import GINConv

        self.layers = nn.ModuleList(GINConv(nn.Linear(i, width), train_eps=True) for i in (inputs, width, width))
        self.last = nn.Linear(width, out)

    def encode(self, batch: Any) -> Tensor:
        h = batch.x
        for layer in self.layers:
            h = torch.tanh(layer(h, batch.edge_index))
        return torch.zeros(batch.num_graphs, h.shape[1], dtype=h.dtype).index_add(0, batch.batch, h)

    def head(self, z: Tensor) -> Tensor:
        return torch.tanh(self.last(z))

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.encode(batch))


def pyg_graphs(sizes: tuple[int, ...] = (6, 6, 3, 1, 5), features: int = 2, seed: int = 0) -> list[Any]:
    from torch_geometric.data import Data

    made = []
    for i, n in enumerate(sizes):
        u, v = torch.nonzero(random_graphs(1, n, 0.5, seed + i)[0]).T
        x = torch.randint(0, 2, (n, features), generator=torch.Generator().manual_seed(i)).float()
        made.append(Data(edge_index=torch.stack([u, v]), num_nodes=n, **({"x": x} if features else {})))
    return made


@pytest.mark.parametrize("features", [0, 2])
def test_listed_frames_make_graph_networks_exactly_invariant(features: int) -> None:
    graphs = pyg_graphs(features=features)
    before = [dict(g.to_dict()) for g in graphs]
    net = FramedGraphs(PyGNet(features + 6), 6).eval()
    prepare = lambda given: add_frames(given, Sn())  # noqa: E731
    found = check_graphs(net, graphs, prepare=prepare)
    assert found[torch.float64] < 1e-12
    for g, kept in zip(graphs, before, strict=True):
        assert set(g.to_dict()) == set(kept)  # what is given stays
    with pytest.raises(AssertionError, match="change with the numbering"):
        net.samples = 1
        check_graphs(Seedless(net), graphs, prepare=prepare)
    made = add_frames(graphs, Sn())
    assert all(int(g.frame_copies) >= 1 for g in made)


class Seedless(nn.Module):
    """Draws go on from call to call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, batch: Any) -> Tensor:
        self.calls += 1
        torch.manual_seed(self.calls)
        return self.net(batch)


def test_batches_of_copies_equal_one_graph_at_a_time() -> None:
    from torch_geometric.data import Batch

    graphs = add_frames(pyg_graphs(), Sn())
    for g in graphs:
        g.edge_attr = torch.arange(float(g.num_edges)).unsqueeze(1)
    batch = Batch.from_data_list(graphs)
    copies = torch.tensor([2, 1, 0, 3, 1])
    many, owner = repeated(batch, copies)
    wanted = Batch.from_data_list([graphs[i] for i in owner.tolist()])
    assert owner.tolist() == [0, 0, 1, 3, 3, 3, 4]
    for key in wanted.keys():  # noqa: SIM118  (a Batch is no mapping)
        assert torch.equal(torch.as_tensor(many[key]), torch.as_tensor(wanted[key])), key
    net = FramedGraphs(PyGNet(8).double(), 6)
    net.eval()
    both = [b.apply(lambda v: v.double() if v.is_floating_point() else v) for b in (batch, Batch.from_data_list(graphs[1:2]))]
    torch.testing.assert_close(net(both[0])[1:2], net(both[1]), rtol=0, atol=1e-12)


def test_listed_averages_are_those_of_all_orderings() -> None:
    from torch_geometric.data import Batch

    graphs = add_frames(pyg_graphs((5, 4)), Sn())
    net = FramedGraphs(PyGNet(7).double(), 5).eval()
    for place, g in enumerate(graphs):
        A = torch.zeros(1, g.num_nodes, g.num_nodes)
        A[0, g.edge_index[0], g.edge_index[1]] = 1
        orders = Sn().frame(A, g.x[None]).order
        total = []
        for order in orders:
            code = torch.nn.functional.one_hot(order.argsort(), 5).double()
            one = Batch.from_data_list([g])
            one.x = torch.cat([g.x.double(), code], 1)
            total.append(net.net.encode(one))
        batch = Batch.from_data_list(graphs).apply(lambda v: v.double() if v.is_floating_point() else v)
        torch.testing.assert_close(net.encode(batch)[place], torch.cat(total).mean(0), rtol=0, atol=1e-12)


def test_places_are_drawn_from_all_sortings_of_the_ranks() -> None:
    ranks = torch.tensor([2, 0, 2, 0, 4])
    wanted = {p for p in itertools.permutations(range(5)) if bool((ranks[list(p)].diff() >= 0).all())}
    rank, ptr = torch.cat([ranks, torch.zeros(1, dtype=torch.long), ranks.flip(0)]), torch.tensor([0, 5, 6, 11])
    graph = torch.repeat_interleave(torch.arange(3), ptr.diff())
    torch.manual_seed(0)
    for number in (None, lambda seed: torch.tensor([seed, seed + 1000, seed + 2000])):
        seen = set()
        for seed in range(200):
            places = draw_places(rank, graph, ptr, number and number(seed))
            assert places[5] == 0 and tuple(places[:5].argsort().tolist()) in wanted
            assert places[6:].sort().values.tolist() == list(range(5))
            assert bool((ranks.flip(0)[places[6:].argsort()].diff() >= 0).all())
            seen.add(tuple(places[:5].argsort().tolist()))
        assert seen == wanted


def test_large_frames_are_drawn_and_places_beyond_share_a_column() -> None:
    from torch_geometric.data import Batch, Data

    edges = torch.combinations(torch.arange(12)).T
    whole = Data(edge_index=torch.cat([edges, edges.flip(0)], 1), num_nodes=12)  # K_12: 479,001,600 orderings, one framed graph
    empty = Data(edge_index=torch.zeros(2, 0, dtype=torch.long), num_nodes=11)
    made = add_frames([whole, empty, *pyg_graphs((4,), 0)], Sn())
    assert [int(g.frame_copies) for g in made[:2]] == [0, 0]
    net = FramedGraphs(PyGNet(6), 6, draws=3).eval()
    out = net(Batch.from_data_list(made))
    assert out.shape == (3, 10) and bool(torch.isfinite(out).all())
    rank, graph, ptr = made[0].frame_rank, torch.zeros(12, dtype=torch.long), torch.tensor([0, 12])
    assert sorted(draw_places(rank, graph, ptr).tolist()) == list(range(12))
    net.train()
    assert net(Batch.from_data_list(made)).shape == (3, 10)
