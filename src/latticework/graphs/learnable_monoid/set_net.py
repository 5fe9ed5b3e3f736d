"""A network for sets, ``head(aggregate(ReLU(W x_j + b)))``, with any of seven aggregators, and the constant it must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Watch, train
from latticework.core.value import setting
from latticework.data.sets import Sets

from .aggregation import Name, aggregation_of, ordered_in, ordering, penalty_in

Array = np.ndarray[Any, Any]
Late = Literal["random", "canonical"]
ANSWERED_AT_ONCE = 200_000  # elements


class SetNet(nn.Module):
    """``y = MLP(aggregate_j ReLU(W x_j + b))``: elements x [n, F] of sets index int64 [n] (of B) -> [B, 1].

    `aggregation`: lcm, gru, sum, mean, max, std or pna; with sum it is a DeepSets network. The head has one hidden layer of the same
    width. `histogram` int64 [k]: of the sizes of train sets, which pna normalises by. `monoid`: further words of `LearnableMonoid`.
    """

    def __init__(self, features: int, width: int, aggregation: Name, histogram: Tensor | None = None, **monoid: Any) -> None:
        super().__init__()
        self.lift = nn.Linear(features, width)
        self.aggregate = aggregation_of(aggregation, width, histogram, **monoid)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor, index: Tensor, count: int) -> Tensor:
        found: Tensor = self.head(self.aggregate(self.lift(x).relu(), index, dim_size=count))
        return found


class Held(NamedTuple):
    """Sets as tensors on a device: values on the train part's scale, sizes, and where each set starts."""

    values: Tensor
    sizes: Tensor
    start: Tensor

    @classmethod
    def of(cls, sets: Sets, centre: Tensor, scale: Tensor, device: str) -> Held:
        values = (torch.from_numpy(sets.values) - centre) / scale
        sizes = torch.from_numpy(sets.sizes)
        return cls(values.to(device), sizes.to(device), (sizes.cumsum(0) - sizes).to(device))

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, int]:
        """Elements and indices of some sets, numbered 0 to len(rows) - 1: what the network is called with."""
        sizes = self.sizes[rows]
        index = torch.arange(len(rows), device=sizes.device).repeat_interleave(sizes)
        place = torch.arange(len(index), device=sizes.device) + (self.start[rows] - sizes.cumsum(0) + sizes)[index]
        return self.values.index_select(0, place), index, len(rows)

    def batches(self) -> list[Tensor]:
        """All sets in their order, cut so that a batch has at most `ANSWERED_AT_ONCE` elements (or one set)."""
        group = (self.sizes.cumsum(0) - self.sizes) // ANSWERED_AT_ONCE
        counts = torch.unique_consecutive(group, return_counts=True)[1].tolist()
        return list(torch.arange(len(self.sizes), device=self.sizes.device).split(counts)) if len(group) else []


class SetModel(Model):
    """A trained network for sets. Its order at test and the number of orders averaged are late fields."""

    scope: Literal["fitted data", "new data"] = "new data"

    def __init__(self, method: SetNetMethod, schema: Mapping[str, Any], net: SetNet, scales: Mapping[str, Tensor]) -> None:
        self.method: SetNetMethod = method
        self.schema, self.net, self.scales = schema, net.eval(), scales

    def _numbers(self, part: Part, shift: int = 0) -> Array:
        device = str(next(self.net.parameters()).device)
        held = Held.of(part.data, self.scales["x.centre"], self.scales["x.scale"], device)
        with torch.no_grad(), ordering(self.net, self.method.order, self.method.draws, shift):
            out = [self.net(*held.batch(rows))[:, 0].cpu().double() for rows in held.batches()]
        found = torch.cat(out) if out else torch.zeros(0, dtype=torch.float64)
        return np.asarray((found * self.scales["y.scale"] + self.scales["y.centre"]).numpy()[part.query.rows])

    def predict(self, part: Part) -> Array:
        """Numbers float64 [q] in the units of the targets."""
        return self._numbers(part)

    def permutation_gap(self, part: Part) -> Array | None:
        """How far the numbers move [q] between two orders of the elements, under the order at test; none where order plays no part."""
        if not ordered_in(self.net):
            return None
        return np.abs(self._numbers(part) - self._numbers(part, shift=1))

    def state(self) -> Mapping[str, Any]:
        return {**{f"net.{k}": v for k, v in self.net.state_dict().items()}, **self.scales}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = method.module(len(schema["features"]))
        net.load_state_dict({k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})
        return cls(method, schema, net, {k: v for k, v in state.items() if not k.startswith("net.")})

    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())


class SetNetMethod(Backbone):
    """A network for sets whose elements are folded by a learned monoid (``aggregation=lcm``), a GRU, or a fixed function.

    `steps` batches of `batch` train sets, Adam with gradients cut at the norm `clip`, targets on the train part's scale; the weights
    with the least error on the valid part are kept, looked at every `look` steps. A random order of the elements is drawn for every
    set at every step. `associativity`, `identity_law` and `consistency` weigh the regularisers of the monoid (lcm alone; `identity_law` also
    makes the value of the empty set a learned one).

    The monoid pays where the target depends on the order of values or must carry over to sets of other sizes than those trained on;
    it costs a GRU step an element, in parallel, where a sum costs an addition.
    """

    name: ClassVar[str] = "set-net"
    revision: ClassVar[int] = 2  # orders in evaluation are each set's own
    tasks: ClassVar[tuple[str, ...]] = ("set-regression",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[SetModel]] = SetModel

    aggregation: Name = setting("lcm", "how elements become one vector: lcm, gru, sum, mean, max, std or pna")
    width: int = setting(32, "width of elements and of the head", ge=1, le=4096, search=[16, 32, 64])
    order: Late = setting("random", "order at test: drawn for each set, or canonical (sorted by value)", late=True)
    draws: int = setting(1, "random orders averaged at test", ge=1, le=1000, late=True)
    associativity: float = setting(0.0, "lcm: weight of the associativity loss", ge=0)
    identity_law: float = setting(0.0, "lcm: weight of the identity loss", ge=0)
    consistency: float = setting(0.0, "lcm: weight of the difference between two orders", ge=0)
    lr: float = setting(3e-3, "learning rate of Adam", gt=0, le=1, search=(5e-4, 1e-2, "log"))
    batch: int = setting(128, "sets in a batch", ge=1, le=1_000_000)
    steps: int = setting(1500, "batches in all", ge=1, le=10_000_000)
    look: int = setting(100, "steps between two looks at the valid part", ge=1)
    clip: float = setting(1.0, "largest norm of the gradient; 0: any", ge=0)
    error: Literal["absolute", "squared"] = setting("squared", "loss, on standardised targets")

    def module(self, features: int, histogram: Tensor | None = None) -> SetNet:
        return SetNet(features, self.width, self.aggregation, histogram, **laws_of(self))

    def build(self, train: Part, run: Run) -> SetNet:
        return self.module(len(train.schema["features"]), torch.bincount(torch.from_numpy(train.data.sizes)))

    def fit(self, train: Part, valid: Part | None, run: Run) -> SetModel:
        return fit_sets(self, train, valid, run)


def laws_of(method: Any) -> dict[str, Any]:
    """The words of `LearnableMonoid` that a recipe's fields mean; none where the aggregation is another."""
    found: dict[str, Any] = {word: getattr(method, word) for word in ("associativity", "identity_law", "consistency")}
    if method.aggregation == "lcm":
        return found | {"learn_identity": method.identity_law > 0}
    wrong = [word for word, weight in found.items() if weight]
    if wrong:
        raise UserError(
            f"{method.name}: {wrong[0]} is a law of the monoid, and aggregation={method.aggregation} has none; use lcm"
        )
    return {}


def fit_sets(method: SetNetMethod, part: Part, valid: Part | None, run: Run) -> SetModel:
    """Mini-batches of sets; the weights of the best look at the valid part are kept (the last, without one)."""
    scales = scales_of(part)
    net = method.build(part, run).to(run.device)
    held = Held.of(part.data, scales["x.centre"], scales["x.scale"], run.device)
    target = ((torch.from_numpy(part.truth) - scales["y.centre"]) / scales["y.scale"]).float().to(run.device)
    optimiser = torch.optim.Adam(net.parameters(), lr=method.lr)
    loss_of = F.l1_loss if method.error == "absolute" else F.mse_loss
    looks = -(-method.steps // method.look)

    def step(number: int) -> float:
        todo = min(method.look, method.steps - number * method.look)
        rng, total = run.generator(f"batches {number}"), torch.zeros((), device=run.device)
        for rows in drawn_batches(len(target), method.batch, todo, rng):
            rows = rows.to(run.device)
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(net(*held.batch(rows))[:, 0], target[rows])
            extra = penalty_in(net)
            (loss if extra is None else loss + extra).backward()
            if method.clip:
                nn.utils.clip_grad_norm_(net.parameters(), method.clip)
            optimiser.step()
            total += loss.detach()
        return float(total) / todo

    def look() -> Watch:
        assert valid is not None
        error = float(np.abs(SetModel(method, part.schema, net, scales).predict(valid) - valid.truth).mean())
        return Watch(error, {"valid": error})

    kept = train(net, step, run, epochs=looks, optimiser=optimiser, watch=None if valid is None else look)
    if valid is not None:
        run.notes.append(f"weights of step {min((kept + 1) * method.look, method.steps)}, chosen by the error on the valid part")
    return SetModel(method, dict(part.schema), net.cpu(), scales)


def drawn_batches(n: int, size: int, count: int, rng: torch.Generator) -> list[Tensor]:
    """`count` batches of `size` rows, each row as often as any other but for one time: shuffles of all, one after another."""
    wanted = min(size, n) * count
    rows = torch.cat([torch.randperm(n, generator=rng) for _ in range(-(-wanted // n))])
    return list(rows[:wanted].split(min(size, n)))


def scales_of(part: Part) -> dict[str, Tensor]:
    """Centre and scale of the columns of values float32 [F], and of the targets float64 []; a constant has scale 1."""
    values = torch.from_numpy(part.data.values).double()
    y = torch.from_numpy(part.truth)
    found = {}
    for name, x in (("x", values if len(values) else torch.zeros(1, values.shape[1])), ("y", y)):
        scale = x.std(0, correction=0)
        found[f"{name}.centre"] = x.mean(0)
        found[f"{name}.scale"] = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    return {name: value.float() if name.startswith("x") else value.double() for name, value in found.items()}


# -- the constant --------------------------------------------------------------------------------------------------------
class MedianModel(Model):
    """One number for everything that is asked."""

    def __init__(self, method: Method, schema: Mapping[str, Any], median: Tensor) -> None:
        self.method, self.schema, self.median = method, schema, median

    def predict(self, part: Part) -> Array:
        return np.full(len(part.query.rows), float(self.median))

    def state(self) -> Mapping[str, Any]:
        return {"median": self.median}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["median"])


class Median(Method):
    """The median of the train part's numbers, whatever is asked: the constant with the least absolute error."""

    name: ClassVar[str] = "median"
    tasks: ClassVar[tuple[str, ...]] = ("set-regression", "node-regression")
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[MedianModel]] = MedianModel
    chance: ClassVar[bool] = False

    def fit(self, train: Part, valid: Part | None, run: Run) -> MedianModel:
        return MedianModel(self, dict(train.schema), torch.tensor(float(np.median(train.truth)), dtype=torch.float64))
