"""SN-Net as a recipe: anchors are fetched or fitted, the maps solved by least squares, all paths trained together.

The fitted model is a Predictor with late fields: `stitch` (an id) or `max_flops` (the best known at or below it). Its file
holds weights and the table of ids; the anchors' networks are built again from their method values, a user's net from what is
given again with ``--net``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from scipy.stats import spearmanr
from torch import Tensor, nn

from latticework.common.small_cnn import (
    ImageNetwork,
    Operating,
    as_input,
    full_batches,
    images_of,
    network_of,
    one_cycle,
    probabilities,
)
from latticework.common.tiny_vit import TinyViTMethod
from latticework.core import registry
from latticework.core.errors import UserError
from latticework.core.method import Method, Model, Predictor, Ref
from latticework.core.result import Findings
from latticework.core.run import Run, user_net
from latticework.core.task import Part
from latticework.core.training import Watch, train
from latticework.core.value import setting

from .stitchable import Point, StitchableNet, check_socket, pareto_front, select, stitch_loss

# Where users' own nets are, by the name in the method: what this process was told, so that a model it fitted can be read back.
_TOLD: dict[str, str] = {}

LOOK = 256  # validation images of the curve that is drawn while training
DEFAULT_ANCHORS = tuple(Ref(method=TinyViTMethod(width=w, heads=h)) for w, h in ((16, 2), (32, 4), (64, 4)))


class SNNetModel(Model):
    """A stitchable net with its table of operating points."""

    method: SNNetMethod

    def __init__(
        self, method: SNNetMethod, schema: Mapping[str, Any], net: StitchableNet | None, state: Mapping[str, Tensor] | None = None
    ) -> None:
        """`schema` holds the table and what the anchors are; without `net`, it is built from them and `state` when needed."""
        self.method, self.schema = method, schema
        # one holder for all copies that `at` makes, so that the net is built once
        self._held: dict[str, Any] = {"net": None if net is None else net.eval(), "state": state, "nets": {}}

    # -- the net -----------------------------------------------------------------------------------------------------
    @property
    def network(self) -> StitchableNet:
        """The stitchable net; built at first use where a user's own net had to be given first."""
        if self._held["net"] is None:
            nets = [anchor_of(plain, self.schema, self._held["nets"]) for plain in self.schema["anchors"]]
            net = join(self.method, nets, torch.zeros(1, *(self.schema[k] for k in ("channels", "height", "width"))))
            try:
                net.load_state_dict(self._held["state"])
            except RuntimeError as error:
                raise UserError(
                    f"sn-net: the anchors given are not those that were fitted: {str(error).splitlines()[0]}"
                ) from None
            self._held.update(net=net.eval(), state=None)
        found: StitchableNet = self._held["net"]
        return found

    def lend(self, nets: Mapping[str, str]) -> None:
        """Say where users' own nets are (name in the method -> module:function)."""
        self._held["nets"] = {**self._held["nets"], **nets}

    def to(self, device: str) -> Self:
        """Answer on this device from now on."""
        self.network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the net is; all copies that `at` makes share it."""
        return next(self.network.parameters()).device

    # -- operating points ----------------------------------------------------------------------------------------------
    def table(self) -> tuple[Point, ...]:
        """Every id with its FLOPs and its accuracy on validation."""
        return tuple(Point(row["id"], row["flops"], row["accuracy"]) for row in self.schema["table"])

    def at(self, **late: Any) -> Self:
        """`stitch` and `max_flops` replace each other."""
        if len(late) == 1:
            late = {"stitch": None, "max_flops": None} | late
        return super().at(**late)

    def points(self) -> Sequence[Mapping[str, Any]]:
        """All ids, then the budgets of the task that it was fitted under."""
        return (*({"stitch": p.id} for p in self.table()), *({"max_flops": b} for b in self.schema["budgets"]))

    def chosen(self) -> Point:
        """The id that the late fields choose: `stitch`, or the most accurate on validation (of at most `max_flops`)."""
        table = self.table()
        if self.method.stitch is not None:
            if self.method.stitch >= len(table):
                raise UserError(f"sn-net: there is no stitch {self.method.stitch}: ids go from 0 to {len(table) - 1}")
            return table[self.method.stitch]
        limit = float("inf") if self.method.max_flops is None else self.method.max_flops
        try:
            return select(table, limit)
        except ValueError as error:
            raise UserError(f"sn-net: {error}") from None

    def operating(self) -> Operating:
        budget = self.method.max_flops
        try:
            point = self.chosen()
        except UserError as error:
            if budget is None:
                raise
            return Operating(None, None, budget, str(error), many=True)
        where = {} if budget is not None else {"anchors": "-".join(map(str, self.schema["table"][point.id]["anchors"]))}
        return Operating(point.flops, point.accuracy, budget, many=True, where=where)

    def predict(self, part: Part) -> np.ndarray:
        return probabilities(partial(self.network, stitch=self.chosen().id), images_of(part), self.device)

    def extract(self, stitch: int | None = None) -> nn.Sequential:
        """A stand-alone network of one id (left out: the chosen one)."""
        return self.network.extract(self.chosen().id if stitch is None else self.at(stitch=stitch).chosen().id)

    # -- model ---------------------------------------------------------------------------------------------------------
    def state(self) -> Mapping[str, Any]:
        return self._held["state"] if self._held["net"] is None else self._held["net"].state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        own = {k: v for k, v in schema.items() if k != "nets"}
        model = cls(method, own, None, state)
        model.lend(schema.get("nets", {}))
        return model

    def parameters(self) -> int:
        if self._held["net"] is None:
            return super().parameters()
        return sum(p.numel() for p in self._held["net"].parameters())

    def explain(self, part: Part) -> Findings:
        """The table of ids with a time for one image on this machine, the front, and what is stored."""
        net, rows = self.network, self.schema["table"]
        height, width, channels = (self.schema[k] for k in ("height", "width", "channels"))
        x = torch.zeros(1, channels, height, width, device=self.device)
        front = {p.id for p in pareto_front(self.table())}
        shown = [
            {
                "id": row["id"],
                "anchors": "-".join(map(str, row["anchors"])),
                "blocks": "all" if row["j"] is None else f"0..{row['j']}, {row['k']}..",
                "MFLOPs": round(row["flops"] / 1e6, 4),
                "ms": round(1e3 * _seconds(net, x, row["id"]), 4),
                "parameters": row["parameters"],
                "accuracy on validation": round(row["accuracy"], 4),
                "on the front": row["id"] in front,
            }
            for row in rows
        ]
        stored, apart = self.parameters(), sum(row["parameters"] for row in rows)
        scalars: dict[str, Any] = {
            "operating points": len(rows),
            "points on the front": len(front),
            "parameters stored": stored,
            "parameters of all points apart": apart,
            "stored over apart": stored / apart,
        }
        rho = spearmanr([row["flops"] for row in rows], [row["accuracy"] for row in rows])[0]
        if np.isfinite(rho):
            scalars["rank correlation of accuracy and FLOPs"] = float(rho)
        return Findings(scalars=scalars, tables={"stitches": shown}, figures={"accuracy against MFLOPs": self._chart()})

    def _chart(self) -> str:
        from latticework.core.svg import lines

        groups: dict[str, list[tuple[float, float]]] = {}
        for row in self.schema["table"]:
            name = "anchors" if row["j"] is None else "stitches " + "-".join(map(str, row["anchors"]))
            groups.setdefault(name, []).append((row["flops"] / 1e6, row["accuracy"]))
        groups["front"] = [(p.flops / 1e6, p.accuracy) for p in pareto_front(self.table())]
        return lines({name: sorted(points) for name, points in groups.items()}, "accuracy on validation", "MFLOPs", dots=True)


def _seconds(net: StitchableNet, x: Tensor, stitch: int) -> float:
    """The least of three timings of one image."""
    taken = []
    with torch.inference_mode():
        for _ in range(3):
            before = time.perf_counter()
            net(x, stitch)
            taken.append(time.perf_counter() - before)
    return min(taken)


# -- anchors ---------------------------------------------------------------------------------------------------------------
def anchor_of(plain: Mapping[str, Any], schema: Mapping[str, Any], nets: Mapping[str, str]) -> nn.Module:
    """An anchor's network, freshly built: from its method's value, or from where the user says the net is."""
    if "net" in plain:
        name = plain["net"]
        told = nets.get(name) or _TOLD.get(name)
        if told is None:
            raise UserError(
                f"sn-net: this model has the user's net {name!r} as an anchor, and a model file names no code; "
                f"give it again: --net {name}={name if ':' in name else 'MODULE:FUNCTION'}"
            )
        return user_net(told)
    fields = {k: v for k, v in plain["method"].items() if k != "is"}
    method = registry.class_of("method", plain["method"]["is"]).make(fields)
    if isinstance(method, ImageNetwork):
        return method.network(schema)
    network: nn.Module = method.build(Part(None, None, None, schema), Run(task=None))
    return network


def join(method: SNNetMethod, nets: Sequence[nn.Module], example: Tensor) -> StitchableNet:
    """The stitchable net of some anchors, with errors for users."""
    try:
        return StitchableNet(nets, example, window=method.window, pairing=method.pairing)
    except ValueError as error:
        raise UserError(f"sn-net: {error}") from None


class SNNetMethod(Method):
    """Anchors of rising size stitched into one net; every stitch is an operating point of the same weights."""

    name: ClassVar[str] = "sn-net"
    tasks: ClassVar[tuple[str, ...]] = ("image-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[SNNetModel]] = SNNetModel

    anchors: tuple[Ref, ...] = setting(DEFAULT_ANCHORS, "nets from small to large: fitted here, saved, or the user's")
    window: int = setting(2, "blocks of a sliding window: pairs inside it are stitched", ge=1, le=64)
    pairing: Literal["auto", "paired", "unpaired"] = setting("auto", "equal depths are paired, others unpaired")
    init: Literal["least-squares", "random"] = setting("least-squares", "how the maps start")
    calibration: int = setting(100, "train images for the least squares", ge=1, le=100_000)
    epochs: int = setting(10, "passes of joint training; 0: none", ge=0, le=10_000)
    batch: int = setting(32, "images a step", ge=1, le=65_536)
    lr: float = setting(2e-4, "peak learning rate of AdamW", gt=0, le=1, search=(5e-5, 2e-3, "log"))
    anchor_lr: float = setting(1.0, "factor on the learning rate of the anchors (the paper's 0.1 for Swin)", gt=0, le=1)
    weight_decay: float = setting(0.01, "AdamW's", ge=0, le=10)
    distil: float = setting(0.5, "share of the loss against the largest anchor's classes (before joint training)", ge=0, le=1)
    freeze: bool = setting(False, "train the maps only")
    stitch: int | None = setting(None, "run this id", ge=0, late=True)
    max_flops: float | None = setting(
        None, "run the most accurate id of at most so many FLOPs an image (a multiply-add is two)", gt=0, late=True
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.anchors) < 2:
            raise ValueError(f"stitching needs at least two anchors, not {len(self.anchors)}")
        if self.stitch is not None and self.max_flops is not None:
            raise ValueError("give stitch or max_flops, not both")
        return self

    # -- the fit -------------------------------------------------------------------------------------------------------
    def fit(self, train_part: Part, valid: Part | None, run: Run) -> SNNetModel:
        nets, plains = self._anchors(train_part, valid, run)
        pixels, y = images_of(train_part), torch.from_numpy(train_part.truth)
        net = join(self, [n.to(run.device).eval() for n in nets], as_input(pixels[:1]).to(run.device))
        if net.classes != len(train_part.schema["classes"]):
            raise UserError(
                f"sn-net: the anchors tell {net.classes} classes apart, and the data have {len(train_part.schema['classes'])}"
            )
        if self.init == "least-squares":
            chosen = run.rng("calibration").permutation(len(y))[: self.calibration]
            try:
                net.initialise(as_input(pixels[np.sort(chosen)]).to(run.device))
            except ValueError as error:
                raise UserError(f"sn-net: {error}") from None
        if self.freeze:
            net.freeze_anchors()
        self._train(net, pixels, y, valid, run)
        part = valid if valid is not None and len(valid.truth) else train_part
        if part is train_part:
            run.notes.append("no validation part: the table's accuracies are those on the train images")
        x, truth = as_input(images_of(part)).to(run.device), torch.from_numpy(part.truth).to(run.device)
        measured = net.eval().measure(x, truth)
        table = [
            {
                "id": p.id, "anchors": list(c.anchors), "j": c.j, "k": c.k, "flops": p.flops,
                "parameters": net.parameters_of(p.id), "accuracy": p.accuracy,
            }
            for p, c in zip(measured, net.configurations, strict=True)
        ]  # fmt: skip
        budgets = [float(b) for b in getattr(run.task, "budgets", ())]
        schema = {**train_part.schema, "anchors": plains, "table": table, "budgets": budgets}
        run.notes.append(f"{len(table)} operating points from {len(nets)} anchors and {len(net.stitches)} maps")
        return SNNetModel(self, schema, net.cpu())

    def _anchors(self, train_part: Part, valid: Part | None, run: Run) -> tuple[list[nn.Module], list[dict[str, Any]]]:
        """The anchors' networks, and what a model file says of each; users' nets are looked at before anything is fitted."""
        nets: dict[int, nn.Module] = {}
        plains: dict[int, dict[str, Any]] = {}
        for i, ref in sorted(enumerate(self.anchors), key=lambda pair: pair[1].net is None or pair[1].saved is not None):
            made = run.model(ref, train_part, valid)
            if ref.saved is None and ref.net is not None:
                _TOLD[ref.net] = run.nets.get(ref.net, ref.net)
                nets[i], plains[i] = made, {"net": ref.net}
                run.notes.append(f"anchor {i} is the user's net {ref.net}, with the weights that it came with")
            elif isinstance(made, nn.Module):
                assert ref.method is not None
                nets[i], plains[i] = made, {"method": ref.method.plain()}
            else:
                wanted, found = list(train_part.schema["classes"]), list(made.schema.get("classes", ()))
                if found != wanted:
                    raise UserError(f"sn-net: anchor {i} was fitted on the classes {found}, and the data have {wanted}")
                nets[i], plains[i] = network_of(made), {"method": made.method.plain()}
            try:
                check_socket(nets[i], i)
            except ValueError as error:
                raise UserError(f"sn-net: {error}") from None
        order = range(len(self.anchors))
        return [nets[i] for i in order], [plains[i] for i in order]

    def _train(self, net: StitchableNet, pixels: np.ndarray, y: Tensor, valid: Part | None, run: Run) -> None:
        """A stitch a step, drawn uniformly; the teacher is the largest anchor as it came."""
        if not self.epochs:
            return
        with torch.no_grad():
            largest = partial(net, stitch=len(self.anchors) - 1)
            teacher = torch.from_numpy(probabilities(largest, pixels, run.device)).float()
        groups = ((net.stitches, 1.0), (net.anchors, self.anchor_lr))
        optimiser = torch.optim.AdamW(
            [
                {"params": list(part.parameters()), "lr": self.lr * f}
                for part, f in groups
                if not (self.freeze and part is net.anchors)
            ],
            weight_decay=self.weight_decay,
        )
        peaks = [group["lr"] for group in optimiser.param_groups]
        latest = [0.0]

        def step(epoch: int) -> float:
            latest[0] = float(epoch)
            if self.freeze:
                net.anchors.eval()
            draws = run.generator(f"stitches of epoch {epoch}")
            batches = full_batches(len(y), self.batch, run.generator(f"epoch {epoch}"))
            total = 0.0
            for i, batch in enumerate(batches):
                for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                    group["lr"] = peak * one_cycle((epoch + i / len(batches)) / self.epochs, rise=0.1)
                x = as_input(pixels[batch.numpy()]).to(run.device)
                said = net(x, net.draw(draws))
                loss = stitch_loss(said, y[batch].to(run.device), teacher[batch].to(run.device), self.distil)
                optimiser.zero_grad(set_to_none=True)  # what did not run has no gradient, so it does not decay either
                loss.backward()
                optimiser.step()
                total += loss.item() * len(batch)
            return total / len(y)

        looked = valid if valid is not None and len(valid.truth) else Part(None, None)
        x = as_input(images_of(looked)[:LOOK]).to(run.device) if looked.data is not None else None

        def watch() -> Watch:
            curves = {"lr": optimiser.param_groups[0]["lr"]}
            if x is not None:
                truth = torch.from_numpy(looked.truth[:LOOK]).to(run.device)
                curves = {"valid": float(np.mean([p.accuracy for p in net.measure(x, truth)]))}
            return Watch(-latest[0], curves)  # the newest is always the best: a schedule runs to its end

        train(net, step, run, epochs=self.epochs, optimiser=optimiser, watch=watch)
