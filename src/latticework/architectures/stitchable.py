"""Stitchable networks: trained nets of different sizes joined at their blocks by 1x1 maps, one set of weights for all.

A *stitch* runs the first blocks of a smaller net (an *anchor*), maps the features by ``h -> W h + b`` and goes on in the
next larger anchor. The maps start as the least-squares solution between the two nets' features, ``min ||[X 1] A - Y||_F``
with ``W = A[:-1]^T, b = A[-1]``, so that a stitch works before it was ever trained; one short joint training, a random
stitch a step, then serves dozens of points between the anchors' accuracies and costs, switched by an integer.

Source: "Stitchable Neural Networks" (CVPR 2023), section 3; details that the paper leaves open are as in the published code,
but for the calibration (here: anchors in evaluation mode, clean images) and the draw (here: a generator that is given).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

Pairing = Literal["auto", "paired", "unpaired"]


# -- which blocks are joined ---------------------------------------------------------------------------------------------
class Pair(NamedTuple):
    """Blocks 0..j of the smaller net, then k.. of the larger; `layer` counts the maps of this pair of nets."""

    j: int
    k: int
    layer: int


def paired(depth: int, window: int = 2, stride: int = 1) -> tuple[Pair, ...]:
    """Pairs of blocks for two nets of equal depth, by a sliding window.

    Window i holds the blocks ``{i s, .., min(i s + w, L) - 1}``; each (j, k) of its square that no window before held is a
    pair, and all pairs new in one window share a map. A window without a new pair has no map. With stride 1 and w <= L these
    are ``L (2w - 1) - w (w - 1)`` pairs and ``max(1, L - w + 1)`` maps. k may be <= j: such a stitch is deeper than a net.

    Errors: ``ValueError`` for depth, window or stride < 1. Source: section 3.4 and the published code (w = 2, s = 1).
    """
    if depth < 1 or window < 1 or stride < 1:
        raise ValueError(f"depth, window and stride must be >= 1, are {depth}, {window} and {stride}")
    met: set[tuple[int, int]] = set()
    pairs: list[Pair] = []
    layer = 0
    for start in range(0, depth, stride):
        ids = range(start, min(start + window, depth))
        new = [(j, k) for j in ids for k in ids if (j, k) not in met]
        met.update(new)
        pairs += [Pair(j, k, layer) for j, k in new]
        layer += bool(new)
    return tuple(pairs)


def unpaired(small: int, large: int) -> tuple[Pair, ...]:
    """Pairs of blocks for a shallower and a deeper net, by nearest interpolation.

    Block i of the `large` blocks has the source block ``e(i) = floor(i small / large)``; (j, i) is a pair where ``e(i) = j``
    and ``j < i``. The map is that of the source block, so there are `small` of them.

    Errors: ``ValueError`` for small < 1 or large <= small. Source: published code.
    """
    if small < 1 or large <= small:
        raise ValueError(f"unpaired stitching joins a shallower net to a deeper one, not {small} blocks to {large}")
    sources = [i * small // large for i in range(large)]
    return tuple(Pair(j, i, j) for i, j in enumerate(sources) if j < i)


# -- least squares -------------------------------------------------------------------------------------------------------
def least_squares(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """(W, b) that minimise ``||X W^T + b - Y||_F``; of several, those of least norm of (W, b).

    Shapes: X [N, D], Y [N, E] floating -> W [E, D], b [E] of the dtype and device of Y. Solved in float64 by singular values
    (LAPACK gelsd), so it equals the pseudo-inverse, also where [X 1] has not full rank.
    Errors: ``ValueError`` for no rows, other shapes, or values that are not finite. Source: section 3.3, equation 5.
    """
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
        raise ValueError(f"X and Y must be [N, D] and [N, E], are {list(X.shape)} and {list(Y.shape)}")
    if not len(X):
        raise ValueError("least squares needs at least one row: the calibration batch is empty")
    A = torch.cat([X.double().cpu(), torch.ones(len(X), 1, dtype=torch.float64)], dim=1)
    B = Y.double().cpu()
    if not bool(torch.isfinite(A).all() and torch.isfinite(B).all()):
        raise ValueError("the features hold NaN or infinite values; the anchors' outputs on the calibration images are broken")
    solution = torch.linalg.lstsq(A, B, driver="gelsd").solution
    return solution[:-1].T.to(Y), solution[-1].to(Y)


def rows(features: Tensor) -> Tensor:
    """Features as rows: [N, C, H, W] -> [N H W, C]; others [.., D] -> [.., D] flattened to two axes."""
    if features.ndim == 4:
        features = features.permute(0, 2, 3, 1)
    return features.reshape(-1, features.shape[-1])


class StitchLayer(nn.Module):
    """``W h + b`` at every token or pixel, from a smaller net's width to a larger one's.

    `form`: ``tokens`` maps the last axis; ``pixels`` maps the channels of [N, C, H, W]; ``pixels-to-tokens`` does so and
    gives [N, H W, C]. Parameters: ``D_in D_out + D_out``. Source: section 3.2; the third form as in the published code.
    """

    def __init__(self, width_in: int, width_out: int, form: Literal["tokens", "pixels", "pixels-to-tokens"] = "tokens") -> None:
        super().__init__()
        self.map = nn.Linear(width_in, width_out)
        self.form = form

    def forward(self, h: Tensor) -> Tensor:
        if self.form == "tokens":
            return self.map(h)
        h = F.conv2d(h, self.map.weight[:, :, None, None], self.map.bias)
        return h if self.form == "pixels" else h.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def put(self, W: Tensor, b: Tensor) -> None:
        """Set the map; W [D_out, D_in], b [D_out]."""
        self.map.weight.copy_(W)
        self.map.bias.copy_(b)


# -- operating points ----------------------------------------------------------------------------------------------------
class Point(NamedTuple):
    """One stitch as measured: its id, FLOPs an image, accuracy."""

    id: int
    flops: float
    accuracy: float


def pareto_front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other dominates (no fewer FLOPs at no less accuracy, one of them strictly), by FLOPs."""
    found = list(points)
    kept = [
        p
        for p in found
        if not any(
            q.flops <= p.flops and q.accuracy >= p.accuracy and (q.flops < p.flops or q.accuracy > p.accuracy) for q in found
        )
    ]
    return tuple(sorted(kept, key=lambda p: (p.flops, p.id)))


def select(points: Iterable[Point], max_flops: float) -> Point:
    """The most accurate point of at most `max_flops`; among equals the cheapest, then the lowest id.

    Errors: ``ValueError`` where no point is that cheap (the cheapest is named), or there is none at all.
    """
    found = list(points)
    if not found:
        raise ValueError("nothing was measured yet, so no stitch can be chosen by its accuracy")
    below = [p for p in found if p.flops <= max_flops]
    if not below:
        least = min(found, key=lambda p: p.flops)
        raise ValueError(f"no stitch takes at most {max_flops:g} FLOPs; the cheapest, {least.id}, takes {least.flops:g}")
    return min(below, key=lambda p: (-p.accuracy, p.flops, p.id))


def stitch_loss(logits: Tensor, target: Tensor, teacher: Tensor | None = None, distil: float = 0.5) -> Tensor:
    """``(1 - a) CE(logits, target) + a CE(logits, argmax teacher)``; without a teacher the cross-entropy alone.

    Shapes: logits [N, K]; target int64 [N] or probabilities [N, K]; teacher [N, K] (no gradient flows to it) -> scalar.
    Errors: ``ValueError`` for distil outside [0, 1]. Source: section 4.1 (hard distillation, a = 0.5).
    """
    if not 0 <= distil <= 1:
        raise ValueError(f"distil must lie in [0, 1], is {distil}")
    own = F.cross_entropy(logits, target)
    if teacher is None or distil == 0:
        return own
    return (1 - distil) * own + distil * F.cross_entropy(logits, teacher.detach().argmax(1))


# -- the net -------------------------------------------------------------------------------------------------------------
class Configuration(NamedTuple):
    """What an id runs: one anchor alone (`j`, `k`, `layer` none), or a stitch of two neighbours."""

    anchors: tuple[int, ...]
    j: int | None = None
    k: int | None = None
    layer: int | None = None  # counted over all pairs of anchors


SOCKET = (
    "`embed` (a module: images -> features), `blocks` (a ModuleList of modules: features -> features, or a ModuleList a "
    "stage) and `head` (a module: features -> logits)"
)


def check_socket(net: object, number: int = 0) -> None:
    """Raise ``ValueError`` naming what a net lacks to be an anchor: embed, blocks and head as modules."""
    name = f"anchor {number} ({type(net).__name__})"
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name} is not a torch module")
    missing = [part for part in ("embed", "blocks", "head") if not hasattr(net, part)]
    if missing:
        raise ValueError(f"{name} has no {' and no '.join(missing)}; a stitchable net has {SOCKET}")
    loose = [part for part in ("embed", "head") if not isinstance(getattr(net, part), nn.Module)]
    if not isinstance(net.blocks, nn.ModuleList | nn.Sequential):
        loose.append("blocks")
    if loose:
        raise ValueError(
            f"{name}: {' and '.join(loose)} must be modules, so that the weights of a path can be told from the rest; "
            f"a stitchable net has {SOCKET}"
        )
    if not len(net.blocks) or any(not len(s) for s in net.blocks if isinstance(s, nn.ModuleList)):
        raise ValueError(f"{name} has no blocks, or a stage without any")


class StitchableNet(nn.Module):
    """Anchors from small to large and the maps between neighbours: one module, many nets, switched by an id.

    Ids 0..M-1 are the anchors alone, then come the stitches of anchors (0, 1), of (1, 2), and so on, each pair in the order
    of :func:`paired` (equal depths) or :func:`unpaired` (a deeper larger net); ``pairing="auto"`` takes what fits. A net with
    stages (``blocks`` is a ModuleList of ModuleLists) is stitched inside `stages` only (left out: all but the first and
    last of three or more), never before a stage's first block.

    Arguments: `anchors` modules with ``embed``, ``blocks`` and ``head``, whose forward is their composition; `example`
    [1.., C, H, W] images like those to come: shapes and FLOPs are taken from it.
    Shapes: ``forward(x, stitch=id)``: x floating [N, C, H, W] -> logits [N, K]; without an id the active one runs, at first
    the largest anchor. FLOPs are for one image as torch counts them (a multiply-add is two).
    The maps start at random; see :meth:`initialise`. Gradients exist only on the path that ran: zero them with
    ``set_to_none``, else weight decay shrinks what did not run.
    Errors: ``ValueError`` for fewer than two anchors, a net without the socket or whose forward is another function, anchors
    not from small to large (by FLOPs), different numbers of classes, different grids at a stitch, unequal depths with
    ``pairing="paired"``, stages that do not match, and an id out of range.
    Source: section 3.
    """

    def __init__(
        self,
        anchors: Sequence[nn.Module],
        example: Tensor,
        window: int = 2,
        stride: int = 1,
        pairing: Pairing = "auto",
        stages: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if len(anchors) < 2:
            raise ValueError(f"stitching needs at least two anchors, not {len(anchors)}")
        for m, anchor in enumerate(anchors):
            check_socket(anchor, m)
        if not len(example):
            raise ValueError("the example holds no image")
        self.anchors = nn.ModuleList(anchors)
        self.measured: tuple[Point, ...] = ()
        self._blocks = [[b for stage in _stages(a) for b in stage] for a in anchors]
        self._shapes, self._costs = [], []
        for m in range(len(anchors)):
            shapes, costs = self._look(m, example[:1])
            self._shapes.append(shapes)
            self._costs.append(costs)
        self._check_family()
        self.stitches = nn.ModuleList()
        self.configurations: tuple[Configuration, ...] = tuple(Configuration((m,)) for m in range(len(anchors)))
        for m in range(len(anchors) - 1):
            self.configurations += self._join(m, window, stride, pairing, stages)
        self.stitches.to(example)
        self._paths = [self._path(c) for c in self.configurations]
        for c, path in zip(self.configurations, self._paths, strict=True):
            if c.layer is not None and not hasattr(self.stitches[c.layer], "flops"):
                self.stitches[c.layer].flops = _flops_of(
                    path[c.j + 2], example.new_zeros(1, *self._shapes[c.anchors[0]][c.j + 1])
                )
        self.active = len(anchors) - 1

    # -- building --------------------------------------------------------------------------------------------------------
    def _look(self, m: int, x: Tensor) -> tuple[list[tuple[int, ...]], list[int]]:
        """Shapes (without the batch) after embed and each block, and after head; FLOPs of embed, each block, head."""
        anchor = self.anchors[m]
        shapes, costs = [], []
        with _evaluating(anchor), torch.no_grad():
            h = x
            for part in (anchor.embed, *self._blocks[m], anchor.head):
                counter = FlopCounterMode(display=False)
                with counter:
                    h = part(h)
                shapes.append(tuple(h.shape[1:]))
                costs.append(counter.get_total_flops())
            if type(anchor).forward is not nn.Module.forward:  # the socket must be the net, not something beside it
                whole = anchor(x)
                if whole.shape != h.shape or not torch.allclose(whole, h, rtol=1e-3, atol=1e-4):
                    raise ValueError(
                        f"anchor {m} ({type(anchor).__name__}): its forward is not head(blocks(embed(x))); "
                        "move what stands between into embed, a block, or head"
                    )
        if len(shapes[-1]) != 1:
            raise ValueError(
                f"anchor {m} ({type(anchor).__name__}): head gives {list(shapes[-1])} an image, not class scores [K]"
            )
        return shapes, costs

    def _check_family(self) -> None:
        classes = [shapes[-1][0] for shapes in self._shapes]
        if len(set(classes)) > 1:
            raise ValueError(f"the anchors must tell the same classes apart; they have {', '.join(map(str, classes))} of them")
        totals = [sum(costs) for costs in self._costs]
        for m in range(len(totals) - 1):
            if totals[m] > totals[m + 1]:
                raise ValueError(
                    f"anchors go from small to large, but anchor {m} takes {totals[m]:,} FLOPs and anchor {m + 1} "
                    f"{totals[m + 1]:,}; reorder them"
                )
        counts = {len(_stages(a)) for a in self.anchors}
        if len(counts) > 1:
            raise ValueError(f"the anchors must have the same number of stages, not {sorted(counts)}")

    def _join(
        self, m: int, window: int, stride: int, pairing: Pairing, chosen: Sequence[int] | None
    ) -> tuple[Configuration, ...]:
        """The configurations of anchors (m, m+1); their maps are appended."""
        small, large = ([len(s) for s in _stages(self.anchors[i])] for i in (m, m + 1))
        count = len(small)
        inside = range(1, count - 1) if chosen is None and count > 2 else range(count) if chosen is None else chosen
        found: list[Configuration] = []
        for s in inside:
            if not 0 <= s < count:
                raise ValueError(f"there is no stage {s}: the anchors have {count}")
            kind = pairing if pairing != "auto" else "paired" if small[s] == large[s] else "unpaired"
            if kind == "paired" and small[s] != large[s]:
                raise ValueError(
                    f"paired stitching needs equal depths, but anchors {m} and {m + 1} have {small[s]} and {large[s]} blocks"
                    + (f" in stage {s}" if count > 1 else "")
                    + "; use unpaired stitching"
                )
            pairs = paired(small[s], window, stride) if kind == "paired" else unpaired(small[s], large[s])
            if count > 1:  # what enters a stage has another grid than what its blocks give
                pairs = tuple(p for p in pairs if p.k > 0)
            numbers: dict[int, int] = {}
            for p in pairs:
                j, k = p.j + sum(small[:s]), p.k + sum(large[:s])
                sizes = self._fit(m, j, k)
                if p.layer not in numbers:
                    numbers[p.layer] = len(self.stitches)
                    self.stitches.append(StitchLayer(*sizes))
                layer = self.stitches[numbers[p.layer]]
                if (layer.map.in_features, layer.map.out_features, layer.form) != sizes:
                    raise ValueError(f"blocks that share a map have different widths at ({j}, {k}) of anchors {m} and {m + 1}")
                found.append(Configuration((m, m + 1), j, k, numbers[p.layer]))
        if not found:
            raise ValueError(f"anchors {m} and {m + 1} have no place to be stitched at")
        return tuple(found)

    def _fit(self, m: int, j: int, k: int) -> tuple[int, int, Literal["tokens", "pixels", "pixels-to-tokens"]]:
        """Widths and form of a map from after block j of anchor m to before block k of m+1; grids must agree."""
        a, b = self._shapes[m][j + 1], self._shapes[m + 1][k]
        image = len(a) == 3, len(b) == 3
        grids = [s[1:] if len(s) == 3 else s[:-1] for s in (a, b)]
        if image == (True, False):
            grids[0] = (grids[0][0] * grids[0][1],)
        if image == (False, True) or grids[0] != grids[1]:
            raise ValueError(
                f"the grids differ where anchors {m} and {m + 1} are stitched: features {list(a)} after block {j}, "
                f"{list(b)} before block {k}; give both anchors the same patch size and class token"
            )
        form = "tokens" if image == (False, False) else "pixels" if image == (True, True) else "pixels-to-tokens"
        return (a[0] if image[0] else a[-1]), (b[0] if image[1] else b[-1]), form  # type: ignore[return-value]

    def _path(self, c: Configuration) -> tuple[nn.Module, ...]:
        first, last = self.anchors[c.anchors[0]], self.anchors[c.anchors[-1]]
        if c.layer is None:
            return (first.embed, *self._blocks[c.anchors[0]], first.head)
        assert c.j is not None
        before, after = self._blocks[c.anchors[0]][: c.j + 1], self._blocks[c.anchors[1]][c.k :]
        return (first.embed, *before, self.stitches[c.layer], *after, last.head)

    # -- running ---------------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        """How many ids there are."""
        return len(self.configurations)

    @property
    def classes(self) -> int:
        """How many classes the anchors tell apart."""
        return self._shapes[0][-1][0]

    def _known(self, stitch: int) -> int:
        if isinstance(stitch, bool) or not isinstance(stitch, int) or not 0 <= stitch < len(self):
            raise ValueError(f"there is no stitch {stitch}: ids go from 0 to {len(self) - 1}")
        return stitch

    def set_stitch(self, stitch: int) -> None:
        """Choose what ``forward`` runs from now on; no weight is touched."""
        self.active = self._known(stitch)

    def forward(self, x: Tensor, stitch: int | None = None) -> Tensor:
        for part in self._paths[self.active if stitch is None else self._known(stitch)]:
            x = part(x)
        return x

    def draw(self, generator: torch.Generator) -> int:
        """A uniform id among those whose path has a weight to train."""
        ids = [i for i, path in enumerate(self._paths) if any(p.requires_grad for part in path for p in part.parameters())]
        if not ids:
            raise ValueError("no weight is to be trained")
        return ids[int(torch.randint(len(ids), (1,), generator=generator))]

    def freeze_anchors(self, frozen: bool = True) -> None:
        """Train the maps only: the anchors keep their weights."""
        self.anchors.requires_grad_(not frozen)

    def extract(self, stitch: int) -> nn.Sequential:
        """A stand-alone copy of what an id runs: the same logits, none of the other weights."""
        return copy.deepcopy(nn.Sequential(*self._paths[self._known(stitch)]))

    # -- cost and accuracy -----------------------------------------------------------------------------------------------
    def parameters_of(self, stitch: int) -> int:
        """Parameters on an id's path: ``embed_m + blocks_m[0..j] + (D_m + 1) D_(m+1) + blocks_(m+1)[k..] + head_(m+1)``."""
        found = {id(p): p.numel() for part in self._paths[self._known(stitch)] for p in part.parameters()}
        return sum(found.values())

    def flops_of(self, stitch: int) -> int:
        """FLOPs of an id for one image: the sum over the modules of its path."""
        c = self.configurations[self._known(stitch)]
        costs = self._costs[c.anchors[0]]
        if c.layer is None or c.j is None or c.k is None:
            return sum(costs)
        return sum(costs[: c.j + 2]) + self.stitches[c.layer].flops + sum(self._costs[c.anchors[1]][c.k + 1 :])

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor, batch: int = 512) -> tuple[Point, ...]:
        """Accuracy of every id on x [N, C, H, W], y int64 [N], in evaluation mode; kept for :meth:`select`."""
        if not len(x):
            raise ValueError("accuracy needs at least one image")
        points = []
        with _evaluating(self):
            for i in range(len(self)):
                right = sum(int((self(a, i).argmax(1) == b).sum()) for a, b in zip(x.split(batch), y.split(batch), strict=True))
                points.append(Point(i, self.flops_of(i), right / len(x)))
        self.measured = tuple(points)
        return self.measured

    def select(self, max_flops: float) -> int:
        """Activate the most accurate measured stitch of at most `max_flops`; its id."""
        self.active = select(self.measured, max_flops).id
        return self.active

    # -- starting values -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def features(self, m: int, x: Tensor) -> list[Tensor]:
        """What anchor m gives after embed and after each block, in evaluation mode."""
        if not len(x):
            raise ValueError("the calibration batch is empty")
        with _evaluating(self.anchors[m]):
            found = [self.anchors[m].embed(x)]
            for block in self._blocks[m]:
                found.append(block(found[-1]))
        return found

    def solution(self, stitch: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """(W, b) of one stitch alone: least squares from after block j to before block k, on images x."""
        c = self.configurations[self._known(stitch)]
        if c.layer is None or c.j is None or c.k is None:
            raise ValueError(f"id {stitch} is an anchor alone and has no map")
        return least_squares(rows(self.features(c.anchors[0], x)[c.j + 1]), rows(self.features(c.anchors[1], x)[c.k]))

    def initialise(self, x: Tensor) -> None:
        """Set every map to the mean of the least-squares solutions of the stitches that share it, on images x [N, C, H, W].

        Anchors run in evaluation mode without gradients, whatever mode they are in, and are left in that mode.
        Errors: ``ValueError`` for no images or features that are not finite.
        """
        given = [self.features(m, x) for m in range(len(self.anchors))]
        solved: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for c in self.configurations:
            if c.layer is not None and c.j is not None and c.k is not None:
                X, Y = given[c.anchors[0]][c.j + 1], given[c.anchors[1]][c.k]
                solved.setdefault(c.layer, []).append(least_squares(rows(X), rows(Y)))
        for layer, found in solved.items():
            self.stitches[layer].put(torch.stack([W for W, _ in found]).mean(0), torch.stack([b for _, b in found]).mean(0))


def _stages(anchor: nn.Module) -> list[list[nn.Module]]:
    blocks = list(anchor.blocks)
    if isinstance(blocks[0], nn.ModuleList):
        return [list(stage) for stage in blocks]
    return [blocks]


def _flops_of(part: nn.Module, x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        part(x)
    return counter.get_total_flops()


class _evaluating:
    """A module in evaluation mode for a while; every submodule gets its own mode back."""

    def __init__(self, module: nn.Module) -> None:
        self.modes = [(m, m.training) for m in module.modules()]
        self.module = module

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes:
            module.training = mode
