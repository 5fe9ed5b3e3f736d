"""The bound, measured: how far a layer's answer moves when the true parts do, beside what its partition gets wrong."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Ref
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import picture
from latticework.core.value import setting
from latticework.data.points import Clouds

from ..network import Batch, scaled
from ..part_tasks import PartSegmentation
from .network import PiecewiseLayer, motion_of_parts
from .partition import impure, partition

if TYPE_CHECKING:
    from .recipe import APENModel


def random_partition(X: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """A soft partition W float64 [n, k] of points X [n, 3] with true parts int64 [n]: cells of random points, of which those over two
    true parts are cut with a probability of the draw's own, mixed with the even assignment by e, 1e-4 to .5: W = (1 - e) Z + e / k.
    """
    n = len(X)
    cells = int(torch.randint(4, 60, (1,), generator=generator))
    chosen = torch.randperm(n, generator=generator)[: min(cells, n)]
    part = torch.cdist(X, X[chosen]).argmin(1)
    often = float(torch.rand(1, generator=generator))
    cut = torch.rand(len(chosen), generator=generator) < often
    number = torch.where(cut[part], part * (int(truth.max()) + 2) + truth + 1, part * (int(truth.max()) + 2))
    _, part = torch.unique(number, return_inverse=True)
    k = int(part.max()) + 1
    e = 10 ** (-4 + 3.7 * float(torch.rand(1, generator=generator)))
    Z = torch.nn.functional.one_hot(part, k).to(X.dtype)
    return (1 - e) * Z + e / k


def measured_error(
    layer: PiecewiseLayer, X: Tensor, normals: Tensor, truth: Tensor, W: Tensor, generator: torch.Generator, far: float = 1.0
) -> float:
    """How far the layer's seeds are from where they should be after a random motion of each true part, over how far they are from
    their points: mean |psi(g X) - g psi(X)| / mean |psi(X) - X|, about 1 and more where nothing is left of the symmetry. W moves with
    the points.

    X [n, 3], normals [n, b, 3] (b = 0: none), truth int64 [n] of 0 or more, W [n, k].
    """
    R, t = motion_of_parts(truth, generator, far, reflect=layer.frames == 8)
    R, t = R.to(X)[truth], t.to(X)[truth]

    def moved(points: Tensor) -> Tensor:
        return (R @ points[..., None])[..., 0] + t

    none = X.new_zeros(len(X), layer.phi.stages[0].in_features - 3 * (layer.near + normals.shape[1]))
    with torch.no_grad():
        before = layer.soft(X, none, normals, W).seeds
        after = layer.soft(moved(X), none, normals @ R.mT, W).seeds
    far_off = (after - moved(before)).norm(dim=1).mean()
    return float(far_off / (before - X).norm(dim=1).mean().clamp(min=torch.finfo(X.dtype).tiny))


def own_partitions(clouds: Clouds, model: APENModel | None, most: int = 16) -> list[float]:
    """Mean share of points in parts of two true ones, layer by layer, over clouds that are large enough; points of no known part count not."""
    from .recipe import APENMethod

    method = APENMethod() if model is None else model.method
    found: list[list[float]] = []
    for i in np.unique(np.linspace(0, len(clouds) - 1, most).round().astype(np.int64)).tolist():
        one = clouds.cloud(i)
        truth = torch.from_numpy(one["parts"])
        if len(truth) < method.components:
            continue
        if model is None:
            X = scaled(Batch(torch.from_numpy(one["xyz"])[None], None, None)).pos
            parts = [partition(X, method.components, method.variances[0], method.em_rounds, gradient="none").part[0]]
        else:
            cloud = Data(pos=torch.from_numpy(one["xyz"]))
            if "normal" in model.schema["vectors"]:
                cloud.normal = torch.from_numpy(one["normals"])
            parts = model.passed(cloud)[1].parts
        found.append([float(impure(part, truth)[truth >= 0].mean()) for part in parts])
    return np.mean(found, 0).tolist() if found else []


class PiecewiseEquivariance(Probe):
    """The error of a layer under motions of the true parts against its bound, uncertainty + impure, over random soft partitions.

    Each draw takes a cloud with part labels, scaled to root mean square 1, a random soft partition of it and a random motion of E(3) for
    each true part. The error is relative: of a layer's shifts of points, to their size. ``uncertainty`` is the mean of 1 - max_j W_ij,
    ``impure`` the share of points in parts that hold two true ones. The layer is the first of `net` (a fitted apen), or an untrained
    one, the same for all draws: the constants of the bound are a layer's.

    Beside the draws stand the partitions that apen itself makes of 16 whole clouds at most, spread evenly: ``impure, layer 1`` of the points
    alone (with apen's defaults where no `net` is given), and those of the further layers of `net`.
    """

    name: ClassVar[str] = "piecewise-equivariance"
    kinds: ClassVar[tuple[str, ...]] = ("points",)
    net: Ref = setting(Ref(), "a fitted apen: net.saved=MODEL, or net.method=apen, fitted here; left out: an untrained layer")
    partitions: int = setting(200, "draws", ge=3, le=100_000)
    points: int = setting(256, "of each cloud, drawn at random", ge=8, le=100_000)
    far: float = setting(1.0, "how far parts are shifted; a cloud's root mean square is 1", ge=0, le=1000)
    frames: int = setting(8, "of an untrained layer: 8 or 4", ge=4, le=8)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("piecewise-equivariance needs clouds with part labels")
        clouds: Clouds = data.read()
        if clouds.parts is None or not len(clouds.part_names):
            raise UserError("piecewise-equivariance needs part labels: a column part (or -s data.label=NAME)")
        if self.frames not in (4, 8):
            raise UserError(f"piecewise-equivariance: {self.frames} frames; there are 8 (E(3)) or 4 (SE(3))")
        model = self.fitted(data, run)
        with_normals = clouds.normals is not None and (model is None or "normal" in model.schema["vectors"])
        layer: Any = (
            copy.deepcopy(model.net.blocks[0]).double() if model else self.untrained(with_normals, run.generator("layer"))
        )
        rows: list[dict[str, Any]] = []
        for number in range(self.partitions):
            generator = run.generator(f"partition {number}")
            i = int(torch.randint(len(clouds), (1,), generator=generator))
            one = clouds.cloud(i)
            keep = np.flatnonzero(one["parts"] >= 0)
            keep = keep[torch.randperm(len(keep), generator=generator)[: self.points].numpy()]
            if len(keep) < 4:
                continue
            pos = torch.from_numpy(one["xyz"][keep].astype(np.float64))[None]
            X = scaled(Batch(pos, None, None)).pos[0]
            truth = torch.from_numpy(one["parts"][keep])
            normals = X.new_zeros(len(X), 0, 3)
            if with_normals:
                normals = torch.from_numpy(one["normals"][keep].astype(np.float64))[:, None]
            W = random_partition(X, truth, generator)
            error = measured_error(layer, X, normals, truth, W, generator, self.far)
            u, p = float((1 - W.amax(1)).mean()), float(impure(W.argmax(1), truth).mean())
            rows.append(
                {"cloud": clouds.ids[i], "parts": W.shape[1], "error": error, "uncertainty": u, "impure": p, "bound": u + p}
            )
            run.log(number, error=error)
        return self.findings(rows, own_partitions(clouds, model))

    def untrained(self, vectors: int | bool, generator: torch.Generator) -> PiecewiseLayer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            return PiecewiseLayer(0, int(vectors), 8, 8, self.frames, widths=(32, 32, 64), head=(64, 32)).double()

    def fitted(self, data: Dataset, run: Run) -> APENModel | None:
        from .recipe import APENModel

        if self.net.method is None and self.net.saved is None and self.net.net is None:
            return None
        ref = self.net
        if ref.method is not None and ref.task is None:
            task = PartSegmentation().for_data(data)
            ref = ref.but(task=task, data=ref.data or data)
        model = run.model(ref, None)  # type: ignore[arg-type]
        if not isinstance(model, APENModel):
            raise UserError("piecewise-equivariance: net must be a fitted apen (net.method=apen or net.saved=MODEL)")
        if model.schema["features"]:
            raise UserError(
                "piecewise-equivariance: the model reads further columns of the points; fit one on points and normals"
            )
        if "normal" in model.schema["vectors"] and data.read().normals is None:
            raise UserError("piecewise-equivariance: the model reads normals, and these clouds have none; add columns nx ny nz")
        return model

    def findings(self, rows: list[dict[str, Any]], layers: list[float]) -> Findings:
        from scipy.stats import spearmanr

        if len(rows) < 3:
            raise UserError("piecewise-equivariance: fewer than 3 clouds have 4 labelled points or more")
        columns = {key: np.array([r[key] for r in rows]) for key in ("error", "uncertainty", "impure", "bound")}
        rank = spearmanr(columns["error"], columns["bound"])[0]
        ratio = columns["error"] / np.maximum(columns["bound"], 1e-12)
        scalars: dict[str, Any] = {
            "Spearman of error and bound": float(rank) if np.isfinite(rank) else None,
            "error": float(columns["error"].mean()), "uncertainty": float(columns["uncertainty"].mean()),
            "impure": float(columns["impure"].mean()), "largest error over bound": float(ratio.max()),
            **{f"impure, layer {k}": v for k, v in enumerate(layers, 1)},
        }  # fmt: skip

        def draw(axes: Any) -> None:
            axes.scatter(columns["bound"], columns["error"], s=6, color="#3b6ea5")
            axes.set_xlabel("uncertainty + impure")

        return Findings(
            scalars, {"partitions": rows}, {"error by bound": picture(draw, "error of a layer under motions of the parts")}
        )
