"""The recipe: the network trained on part labels and on the centres of the true parts, and what a model shows of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch_geometric.data import Data

from latticework.core.errors import UserError
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting

from ..network import Batch, PointModel, PointNetwork, collate
from .network import APEN, LEAST_POINTS, Trace, seed_loss
from .partition import impure

Array = np.ndarray[Any, Any]
PARTITION = "partition"  # the invariant column with the true partition, where the task brings it


class APENModel(PointModel):
    """A trained network; `draw` may change after the fit."""

    method: APENMethod
    net: APEN

    def predict(self, part: Part) -> Array:
        """float64 [N, P + 1]: part probabilities of each point and its uncertainty, 1 - max_j W_ij, the mean over layers; where clouds are
        asked, class probabilities float64 [q, C]. Draws are the same in every call."""
        clouds = [part.data[i] for i in part.query.rows]
        self.enough(clouds, part.query.ids)
        parts = self.schema["output"] == "part"
        net, method = self.net, self.method
        net.draw, net.beside, net.generator = method.draw, parts, torch.Generator().manual_seed(0)
        try:
            out = self.outputs(clouds)
        finally:
            net.beside, net.generator = False, None
        if not parts:
            return np.asarray(torch.softmax(out, 1).numpy())
        return np.asarray(torch.cat([torch.softmax(out[:, :-1], 1), out[:, -1:]], 1).numpy())

    def enough(self, clouds: Sequence[Data], ids: Sequence[str]) -> None:
        k = self.method.components
        for cloud, name in zip(clouds, ids, strict=True):
            if len(cloud.pos) < k:
                raise UserError(
                    f"the cloud {name!r} has {len(cloud.pos)} points and the partition has {k} components; ask for clouds of {k} points "
                    f"or more, or fit with fewer components (-s components={max(len(cloud.pos) // 4, 1)})"
                )

    def passed(self, cloud: Data) -> tuple[Tensor, Trace]:
        """What the net says of one cloud, and the partitions it made on the way."""
        net = self.net
        net.draw, net.generator = self.method.draw, torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                out = net(*self.method.prepared(collate([cloud], self.schema), self.schema))
        finally:
            net.generator = None
        assert net.trace is not None
        return out, net.trace

    def explain(self, part: Part, most: int = 16) -> Findings:
        """Numbers of the partitions layer by layer over the first clouds, and for the first of them, from several sides, what is said, the
        estimated partition, its uncertainty and the bound: uncertainty plus 1 where a part holds two of the predicted parts."""
        from .figures import sides

        net = self.net
        rows: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        files = [int(i) for i in part.query.rows][:most]
        few: list[float] = []
        gaps: list[float] = []
        for place, i in enumerate(files):
            cloud = part.data[i]
            self.enough([cloud], (part.query.ids[place],))
            out, trace = self.passed(cloud)
            few.append(trace.small)
            gaps.append(trace.gap)
            said = out[0].argmax(1) if net.per_point else torch.zeros(len(cloud.pos), dtype=torch.long)
            unsure = torch.stack(trace.uncertainty).mean(0).numpy()
            mixed = torch.stack([impure(p, said) for p in trace.parts])
            for layer, (parts, u) in enumerate(zip(trace.parts, trace.uncertainty, strict=True)):
                rows.append({
                    "cloud": str(part.query.ids[place]), "layer": layer + 1, "parts": int(parts.max()) + 1, "uncertainty": float(u.mean()),
                    "impure by the predicted parts": float(mixed[layer].mean()),
                })  # fmt: skip
            if place == 0:
                figures["parts"] = sides(
                    cloud.pos.numpy(), said.numpy(), trace.parts[-1].numpy(), unsure,
                    np.minimum(unsure + mixed.mean(0).numpy(), 1.0), str(part.query.ids[0]),
                )  # fmt: skip
        scalars: dict[str, Any] = {}
        if rows:
            by_layer = {
                layer: [r for r in rows if r["layer"] == layer] for layer in range(1, 2 + len(net.blocks))
            }  # the decoder is the last
            for layer, mine in by_layer.items():
                scalars[f"uncertainty, layer {layer}"] = float(np.mean([r["uncertainty"] for r in mine]))
                scalars[f"impure by the predicted parts, layer {layer}"] = float(
                    np.mean([r["impure by the predicted parts"] for r in mine])
                )
            scalars["bound, mean over layers"] = float(
                np.mean([r["uncertainty"] + r["impure by the predicted parts"] for r in rows])
            )
            scalars["points in parts without a frame"] = float(np.mean(few))
            scalars["smallest frame gap"] = float(min(gaps))
        return Findings(scalars, {"layers": rows}, figures)


class APENMethod(PointNetwork):
    """Piecewise equivariant point network (Atzmon et al., ICLR 2024): parts are found while they are learnt.

    Its answer holds when parts of a body move by themselves, as far as its partition lies inside the true one and is certain; both are
    reported. The loss pulls each point's seed to the centre of its true part in every block, and adds `label_weight` times the cross-entropy. Clouds are
    scaled to root mean square 1; the paper's variances are those of bodies in metres, .001, .003 and .005, which are the defaults here in
    units of such a body. Its first, .2, lets 40 components on a body collapse to a handful, against its own aim of an over-segmentation: here it is
    .005. Training is the paper's: AdamW, gradients clipped, noise on the points. ``components=1`` is Frame Averaging with the same shared network.
    """

    name: ClassVar[str] = "apen"
    tasks: ClassVar[tuple[str, ...]] = ("part-segmentation", "point-classification")
    model: ClassVar[type[PointModel]] = APENModel
    socket: ClassVar[str] = ""  # its frames are inside

    components: int = setting(40, "Gaussians of a partition: at most so many parts", ge=1, le=4096, search=[20, 40, 80])
    blocks: int = setting(4, "piecewise layers with a partition each, before the decoder", ge=1, le=32)
    em_rounds: int = setting(16, "rounds of EM in a partition", ge=1, le=1000)
    frames: Literal[8, 4] = setting(8, "of each part: 8, parts move and may be mirrored (E(3)); 4, they move (SE(3))")
    draw: Literal["argmax", "sampled"] = setting(
        "argmax", "a point's part: the likeliest, or a draw from its responsibilities (seeded)", late=True
    )
    small_part: Literal["identity", "merge"] = setting(
        "merge",
        "a part of fewer than 4 points: it joins the nearest part; or takes the axes as they are, which is not equivariant",
    )
    gradient: Literal["implicit", "unrolled"] = setting(
        "implicit", "through the fixed point of EM: by the implicit function theorem, or through its last round"
    )
    near: int = setting(10, "nearest points inside the part that a point sees, itself among them", ge=1, le=256)
    variances: tuple[float, ...] = setting(
        (0.005, 0.0043, 0.013, 0.022),
        "of the partitions: of the points, then after each block (the last holds on); root mean square 1",
    )
    widths: tuple[int, ...] = setting((64, 64, 128, 128, 256), "point-wise layers of the shared network")
    head: tuple[int, ...] = setting((256, 256, 128), "its layers after the mean over a part")
    scalars: tuple[int, ...] = setting((8, 8, 8, 32), "invariant numbers of each block (the last holds on)")
    inner_vectors: tuple[int, ...] = setting((8, 8, 8, 32), "vectors of each block (the last holds on)")
    label_weight: float = setting(
        0.1, "of the cross-entropy beside the loss of the seeds", gt=0, le=1000, search=(0.03, 3.0, "log")
    )
    seeds: Literal["pieces", "parts"] = setting(
        "pieces",
        "what seeds are pulled to: the centre of a part's connected piece (two arms of one name are two), or of all of it",
    )
    batch: int = setting(8, "clouds of a step", ge=1, le=100_000)
    weight_decay: float = setting(0.01, "of AdamW, on all parameters", ge=0, le=1, search=(1e-8, 1e-1, "log"))
    clip: float = setting(
        1.0, "largest norm of the gradient; 0: any. The paper's .1 is of a loss that is label_weight times this one", ge=0
    )
    noise: float = setting(
        0.02,
        "deviation of the noise on training points; root mean square 1 (the paper's .01 is of bodies in metres)",
        ge=0,
        le=10,
    )

    @field_validator("widths", "head", "scalars", "inner_vectors", "variances", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int | float) and not isinstance(given, bool) else given

    @field_validator("widths", "head")
    @classmethod
    def _some(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if not given or min(given) < 1:
            raise ValueError("name one layer at least, of width 1 or more")
        return given

    @field_validator("scalars", "inner_vectors")
    @classmethod
    def _none_below(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if not given or min(given) < 0:
            raise ValueError("name one number at least, 0 or more")
        return given

    @field_validator("variances")
    @classmethod
    def _positive(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if not given or not min(given) > 0:
            raise ValueError("name one variance at least, above 0")
        return given

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        points = getattr(task, "points", 0)
        smallest = min(facts.get("smallest", self.components), points or 10**9)
        if not facts.get("faces") and smallest < self.components:
            return (
                f"a cloud of {smallest} points cannot make {self.components} components; use components={max(smallest // 4, 1)}"
            )
        return None

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> APEN:
        return APEN(
            inputs, outputs, schema["output"] == "part", len(schema["vectors"]), components=self.components, blocks=self.blocks,
            em_rounds=self.em_rounds, frames=self.frames, draw=self.draw, small_part=self.small_part, gradient=self.gradient, near=self.near,
            variances=self.variances, widths=self.widths, head=self.head, scalars=self.scalars, inner_vectors=self.inner_vectors,
            own_parts=PARTITION in schema["features"],
        )  # fmt: skip

    def build(self, train: Part, run: Run) -> nn.Module:
        short = [len(c.pos) for c in train.data if len(c.pos) < self.components]
        if short:
            raise UserError(
                f"{len(short)} clouds have fewer points ({min(short)}) than components ({self.components}); use components="
                f"{max(min(short) // LEAST_POINTS, 1)}, or larger clouds"
            )
        return super().build(train, run)

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def jittered(self, batch: Batch, generator: torch.Generator) -> Batch:
        if not self.noise:
            return batch
        noise = self.noise * torch.randn(batch.pos.shape, generator=generator)
        return batch._replace(pos=batch.pos + (noise if batch.mask is None else noise * batch.mask[..., None]))

    def extra_loss(self, net: nn.Module, batch: Batch, target: Tensor, run: Run) -> Tensor | None:
        """The seeds' loss over `label_weight` (the task's cross-entropy counts 1, which is the same to Adam). None without part labels."""
        trace = getattr(net, "trace", None)
        if trace is None or target.ndim != 2:
            return None
        there = torch.ones(target.shape, dtype=torch.bool, device=target.device) if batch.mask is None else batch.mask
        cloud = torch.nonzero(there)[:, 0]
        return seed_loss(trace, batch.pos[there], target[there], cloud, self.seeds == "pieces") / self.label_weight

    def fit(self, train: Part, valid: Part | None, run: Run) -> PointModel:
        model = super().fit(train, valid, run)
        trace = model.net.trace
        if isinstance(trace, tuple):
            run.notes.append(f"points in parts without a frame of their own, last batch: {trace.small:.1%}")
        return model
