"""What the networks on points share: the socket, batches, losses, training and the saved model.

The socket of a point backbone (what wrappers such as frame averaging hold) is ``points``:

    class PointBackbone(nn.Module):
        per_point: bool      # True: answers [B, n, out], one row a point; False: pooled answers [B, out]
        vectors: int         # the first 3 * vectors columns of x are vectors, which turn with the points; the rest are invariant
        def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor

`pos` float [B, n, 3]; `x` float [B, n, F] further columns of each point or none where F = 0; `mask` bool [B, n], True where there
is a point, or none where all clouds have n points. Rows that the mask leaves out may hold anything and change nothing.

A recipe is a `PointNetwork`: `module(inputs, outputs, schema)` builds the bare net (`inputs` = F, `outputs` = out), the rest is here:

    schema["output"]     "class" (pooled logits [B, C], cross-entropy) | "normal" (vectors [B, n, 3], loss 1 - cos^2) |
                         "position" (displacements [B, n, 3], mean squared error of pos + output) | "part" (logits [B, n, P])
    schema["vectors"]    names of the vectors in x, in their order (attributes of each `Data`: "normal", "velocity")
    schema["features"]   names of the invariant columns of x (attribute "x")
    schema["points"]     points of a cloud in training, 0: all; larger clouds are answered in pieces of as many points
    schema["turned"]     True: clouds come in any orientation, so training turns each at random, anew in every epoch

`inputs_of(schema)`, `outputs_of(schema)` and `per_point(schema)` give F, out and whether there is a row a point. With
``scale="cloud"`` each cloud is centred at its mean and divided by its root mean square distance from it before it reaches the net;
with ``scale="none"`` it comes as it is; ``auto`` is cloud, but none where positions are asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Patience, minibatches, train, watched
from latticework.core.value import setting

POINTS_AT_ONCE = 16_384  # of a batch that is answered


class PointBackbone(nn.Module):
    """The socket of a point backbone; see the head of this file."""

    per_point: bool = False
    vectors: int = 0

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def inputs_of(schema: Mapping[str, Any]) -> int:
    """F: how many columns a point has beside its coordinates."""
    return 3 * len(schema["vectors"]) + len(schema["features"])


def outputs_of(schema: Mapping[str, Any]) -> int:
    """How many numbers the net gives a point, or a cloud."""
    kind = schema["output"]
    return len(schema["classes"]) if kind == "class" else len(schema["parts"]) if kind == "part" else 3


def per_point(schema: Mapping[str, Any]) -> bool:
    """Whether the net answers each point, not each cloud."""
    return bool(schema["output"] != "class")


# -- batches -------------------------------------------------------------------------------------------------------------
class Batch(NamedTuple):
    """Clouds side by side: `pos` [B, n, 3], `x` [B, n, F] or none, `mask` bool [B, n] or none (no padding)."""

    pos: Tensor
    x: Tensor | None
    mask: Tensor | None

    def to(self, device: str | torch.device) -> Batch:
        return Batch(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]


def columns_of(cloud: Data, schema: Mapping[str, Any]) -> Tensor | None:
    """The further columns float32 [n, F] of a cloud, vectors first; none where F = 0."""
    held = [cloud[name] for name in schema["vectors"]] + ([cloud.x] if schema["features"] else [])
    return torch.cat(held, 1) if held else None


def collate(clouds: Sequence[Data], schema: Mapping[str, Any]) -> Batch:
    """Clouds as one batch, padded with zeros where they differ in size."""
    sizes = [len(c.pos) for c in clouds]
    columns = [columns_of(c, schema) for c in clouds]
    pos = pad([c.pos for c in clouds])
    x = None if columns[0] is None else pad(columns)  # type: ignore[arg-type]
    mask = None
    if len(set(sizes)) > 1:
        mask = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
    return Batch(pos, x, mask)


def pad(rows: Sequence[Tensor]) -> Tensor:
    """[n_i, F] -> [B, max n_i, F], zeros behind."""
    if len({len(r) for r in rows}) == 1:
        return torch.stack(list(rows))
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def scaled(batch: Batch) -> Batch:
    """Each cloud centred at its mean and divided by its root mean square distance from it (1 where that is 0)."""
    pos, mask = batch.pos, batch.mask
    weight = torch.ones_like(pos[..., :1]) if mask is None else mask[..., None].to(pos.dtype)
    if mask is not None:  # padding may hold anything
        pos = pos.masked_fill(~mask[..., None], 0.0)
    count = weight.sum(1, keepdim=True)
    pos = (pos - (pos * weight).sum(1, keepdim=True) / count) * weight
    size = (pos.square().sum(2, keepdim=True).sum(1, keepdim=True) / count).sqrt()
    return batch._replace(pos=pos / torch.where(size > 0, size, torch.ones_like(size)))


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """Uniformly random rotations float32 [n, 3, 3], by unit quaternions."""
    w, x, y, z = F.normalize(torch.randn(n, 4, generator=generator, dtype=torch.float64), dim=1).unbind(1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, 1).reshape(n, 3, 3).float()


def turn(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Row vectors [B, n, 3 c] turned by rotations [B, 3, 3]: each triple v becomes R v."""
    b, n, width = vectors.shape
    return (vectors.reshape(b, n * (width // 3), 3) @ rotation.transpose(1, 2)).reshape(b, n, width)


def turned(batch: Batch, rotation: Tensor, vectors: int) -> Batch:
    """A batch with points and vectors turned; invariant columns stay."""
    x = batch.x
    if x is not None and vectors:
        x = torch.cat([turn(x[..., : 3 * vectors], rotation), x[..., 3 * vectors :]], 2)
    return Batch(turn(batch.pos, rotation), x, batch.mask)


def nearest(h: Tensor, k: int, mask: Tensor | None = None, own: bool = True) -> Tensor:
    """int64 [B, n, k]: the k nearest rows of each row of h [B, n, c], itself among them (`own`), nearest first.

    k is cut to n; a cloud with fewer points repeats the point itself. Rows that the mask leaves out are nobody's neighbour.
    """
    b, n, c = h.shape
    k = min(k, n if own else max(n - 1, 1))
    exact = "donot_use_mm_for_euclid_dist" if c <= 3 else "use_mm_for_euclid_dist_if_necessary"
    block = max(1, min(n, 4_000_000 // max(b * n, 1)))
    found = []
    for start in range(0, n, block):
        rows = torch.arange(start, min(start + block, n), device=h.device)
        distance = torch.cdist(h[:, rows], h, compute_mode=exact)
        if mask is not None:
            distance = distance.masked_fill(~mask[:, None], torch.inf)
        distance[:, torch.arange(len(rows)), rows] = -1.0 if own else torch.inf  # the point itself is first, or never
        values, index = distance.topk(k, dim=2, largest=False)
        found.append(torch.where(values.isinf(), rows[None, :, None], index))
    return torch.cat(found, 1)


def gather(h: Tensor, index: Tensor) -> Tensor:
    """Rows of h [B, n, c] by index int64 [B, n, k] -> [B, n, k, c]."""
    b, n, k = index.shape
    flat = (index + n * torch.arange(b, device=h.device)[:, None, None]).reshape(-1)
    return h.reshape(b * n, -1)[flat].reshape(b, n, k, -1)


def pooled(h: Tensor, mask: Tensor | None, how: Literal["max", "mean", "sum"]) -> Tensor:
    """[B, n, c] -> [B, c] over the points that are there."""
    if how == "max":
        return (h if mask is None else h.masked_fill(~mask[..., None], -torch.inf)).amax(1)
    held = h if mask is None else h * mask[..., None]
    total = held.sum(1)
    if how == "sum":
        return total
    return total / (h.shape[1] if mask is None else mask.sum(1, keepdim=True).to(h.dtype))


class Rows(nn.Module):
    """A row-wise map: linear, optional BatchNorm, ReLU. [..., a] -> [..., b]; the mask keeps padding out of the statistics."""

    def __init__(self, a: int, b: int, norm: bool = True, slope: float = 0.0) -> None:
        super().__init__()
        self.map = nn.Linear(a, b, bias=not norm)
        self.norm = nn.BatchNorm1d(b) if norm else None
        self.slope = slope

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.leaky_relu(normed(self.map(h), self.norm, mask), self.slope)


def normed(h: Tensor, norm: nn.Module | None, mask: Tensor | None) -> Tensor:
    """BatchNorm over all rows that are there; [..., c] -> the same, zeros where they are not."""
    if norm is None:
        return h
    if mask is None:
        return norm(h.reshape(-1, h.shape[-1])).reshape(h.shape)
    there = h[mask]
    out = torch.zeros_like(h)
    out[mask] = norm(there.reshape(-1, h.shape[-1])).reshape(there.shape)
    return out


# -- losses --------------------------------------------------------------------------------------------------------------
def loss_of(kind: str, out: Tensor, batch: Batch, target: Tensor) -> Tensor:
    """The loss of a batch; targets: int64 [B], float [B, n, 3], or int64 [B, n] with -1 where a part is unknown."""
    if kind == "class":
        return F.cross_entropy(out, target)
    if kind == "part":
        known = target >= 0 if batch.mask is None else batch.mask & (target >= 0)
        return F.cross_entropy(out[known], target[known])
    if kind == "normal":
        values = 1 - (F.normalize(out, dim=-1) * target).sum(-1).square()
    else:
        values = (batch.pos + out - target).square().mean(-1)
    return values.mean() if batch.mask is None else values[batch.mask].mean()


# -- the model -----------------------------------------------------------------------------------------------------------
class PointModel(Model):
    """A trained point network, rebuilt from the method and the schema."""

    scope: Literal["fitted data", "new data"] = "new data"

    def __init__(self, method: PointNetwork, schema: Mapping[str, Any], net: nn.Module) -> None:
        self.method: PointNetwork = method
        self.schema, self.net = schema, net.eval()

    def predict(self, part: Part) -> np.ndarray[Any, Any]:
        """Class probabilities float64 [q, C]; or a row a point of the clouds that are asked, one cloud after another, float64
        [N, …]: unit normals [N, 3], positions [N, 3], part probabilities [N, P]."""
        kind = self.schema["output"]
        out = self.outputs([part.data[i] for i in part.query.rows])
        if kind in ("class", "part"):
            out = torch.softmax(out, -1)
        elif kind == "normal":
            out = F.normalize(out, dim=-1)
        else:
            out = out + torch.cat([part.data[i].pos for i in part.query.rows]).double()
        return np.asarray(out.numpy())

    def outputs(self, clouds: Sequence[Data]) -> Tensor:
        """What the net gives, float64: [q, out] a cloud, or [N, out] a point."""
        schema = self.schema
        limit = schema["points"] if per_point(schema) and schema["output"] != "position" else 0
        pieces = [_pieces(len(c.pos), limit) for c in clouds]
        parts = [(i, piece) for i, found in enumerate(pieces) for piece in found]
        order = sorted(range(len(parts)), key=lambda j: len(parts[j][1]))
        held: list[Tensor | None] = [None] * len(parts)
        device = device_of(self.net)
        with torch.no_grad():
            for some in _runs(order, [len(p) for _, p in parts]):
                chosen = [cut(clouds[parts[j][0]], parts[j][1]) for j in some]
                batch = self.method.prepared(collate(chosen, schema), schema).to(device)
                out = self.net(*batch).double().cpu()
                for j, rows in zip(some, out, strict=True):
                    held[j] = rows[: len(parts[j][1])] if per_point(schema) else rows
        if not per_point(schema):
            return torch.stack(held)  # type: ignore[arg-type]
        back = []
        for i, found in enumerate(pieces):
            mine = torch.cat([h for h, (owner, _) in zip(held, parts, strict=True) if owner == i and h is not None])
            order_of = torch.cat(found)
            row = torch.empty_like(mine)
            row[order_of] = mine
            back.append(row)
        return torch.cat(back)

    def state(self) -> Mapping[str, Any]:
        return self.net.state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = method.module(inputs_of(schema), outputs_of(schema), schema)
        net.load_state_dict(dict(state))
        return cls(method, schema, net)


def cut(cloud: Data, rows: Tensor) -> Data:
    """Some points of a cloud."""
    return Data(**{key: value[rows] for key, value in cloud.to_dict().items() if isinstance(value, Tensor)})


def _pieces(n: int, limit: int) -> list[Tensor]:
    """Rows of a cloud in pieces of about `limit` points, drawn evenly over it, so that a piece is as dense as in training."""
    if not limit or n < 2 * limit:
        return [torch.arange(n)]
    order = torch.from_numpy(np.random.default_rng([n, limit]).permutation(n))
    return list(order.tensor_split(n // limit))


def _runs(order: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours in size together, at most `POINTS_AT_ONCE` points with padding."""
    some: list[int] = []
    for j in order:
        if some and (len(some) + 1) * max(sizes[j], 1) > POINTS_AT_ONCE:
            yield some
            some = []
        some.append(j)
    if some:
        yield some


def device_of(net: nn.Module) -> str:
    found = next(iter(net.parameters()), None)
    return "cpu" if found is None else str(found.device)


# -- the recipe ----------------------------------------------------------------------------------------------------------
class PointNetwork(Backbone):
    """Fields and fit of a point network; subclasses give `module`."""

    tasks: ClassVar[tuple[str, ...]] = ("point-classification", "normal-estimation", "part-segmentation")
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[PointModel]] = PointModel
    socket: ClassVar[str] = "points"  # its net is a `PointBackbone`

    lr: float = setting(1e-3, "learning rate of Adam", gt=0, le=1, search=(1e-4, 1e-2, "log"))
    weight_decay: float = setting(0.0, "on all parameters", ge=0, le=1, search=(1e-8, 1e-3, "log"))
    batch: int = setting(32, "clouds of a step", ge=1, le=100_000)
    epochs: int = setting(100, "at most", ge=1, le=1_000_000)
    halve: int = setting(100, "the learning rate is halved after so many epochs; 0: never", ge=0)
    patience: int = setting(0, "epochs without a better validation value before the fit stops; 0: all epochs", ge=0)
    clip: float = setting(0.0, "largest norm of the gradient; 0: any", ge=0, later=True)
    scale: Literal["auto", "cloud", "none"] = setting(
        "auto", "cloud: each centred and divided by its size; none: as it is; auto: cloud, but none where positions are asked"
    )

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        """The bare net, a `PointBackbone`: `inputs` further columns a point, `outputs` numbers a point or a cloud."""
        raise NotImplementedError

    def build(self, train: Part, run: Run) -> nn.Module:
        return self.module(inputs_of(train.schema), outputs_of(train.schema), train.schema)

    def prepared(self, batch: Batch, schema: Mapping[str, Any]) -> Batch:
        """A batch as the net reads it."""
        positions = schema["output"] == "position"
        if positions and self.scale == "cloud":
            raise UserError(f"{self.name}: scale=cloud would lose where the points are, and positions are asked; use scale=none")
        return batch if positions or self.scale == "none" else scaled(batch)

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def jittered(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A training batch as the net sees it: what a recipe changes at random, after `prepared`."""
        return batch

    def extra_loss(self, net: nn.Module, batch: Batch, target: Tensor, run: Run) -> Tensor | None:
        """What a recipe adds to the task's loss."""
        return None

    def fit(self, train: Part, valid: Part | None, run: Run) -> PointModel:
        return fit_network(self, train, valid, run)

    def finished(self, net: nn.Module, part: Part) -> PointModel:
        return self.model(self, dict(part.schema), net)


def targets_of(part: Part) -> list[Tensor]:
    """The truth of each asked cloud: int64 [], float32 [n, 3], or int64 [n]."""
    kind = part.schema["output"]
    y = torch.from_numpy(np.ascontiguousarray(part.truth.y))
    y = y.long() if kind in ("class", "part") else y.float()
    if not per_point(part.schema):
        return list(y)
    return list(y.split([len(part.data[i].pos) for i in part.query.rows]))


def fit_network(method: PointNetwork, part: Part, valid: Part | None, run: Run) -> PointModel:
    """Mini-batch training; the weights of the best epoch on the valid part are kept. Training turns clouds where they come turned."""
    schema = part.schema
    kind, vectors = schema["output"], len(schema["vectors"])
    clouds = [part.data[i] for i in part.query.rows]
    targets = targets_of(part)
    net = method.build(part, run).to(run.device)
    if getattr(net, "per_point", per_point(schema)) != per_point(schema):
        raise UserError(
            f"{method.name} builds a net that answers {'points' if net.per_point else 'clouds'}, and the task asks the other"
        )
    optimiser = method.optimiser(net)

    def step(epoch: int) -> float:
        generator = run.generator(f"batches {epoch}")  # of the epoch alone: a fit that resumes draws the same
        total = 0.0
        for rows in minibatches(len(clouds), method.batch, generator):
            if len(rows) == 1 and len(clouds) > 1 and not per_point(schema):
                continue  # one cloud alone has no batch statistics
            chosen = rows.tolist()
            batch = collate([clouds[i] for i in chosen], schema)
            target = pad([targets[i] for i in chosen]) if per_point(schema) else torch.stack([targets[i] for i in chosen])
            if schema["turned"]:
                rotation = random_rotations(len(chosen), generator)
                batch = turned(batch, rotation, vectors)
                target = turn(target, rotation) if kind in ("normal", "position") else target
            batch, target = method.prepared(batch, schema), target.to(run.device)
            batch = method.jittered(batch, generator).to(run.device)
            optimiser.zero_grad(set_to_none=True)
            value = loss_of(kind, net(*batch), batch, target)
            more = method.extra_loss(net, batch, target, run)
            if more is not None:
                value = value + more
            value.backward()
            if method.clip:
                nn.utils.clip_grad_norm_(net.parameters(), method.clip)
            optimiser.step()
            total += float(value.detach()) * len(chosen)
        return total / len(clouds)

    model = method.finished(net, part)
    watch = None if valid is None else lambda: watched(model, valid, run)
    schedule = (lambda epoch: 0.5 ** (epoch // method.halve)) if method.halve else None
    patience = Patience(epochs=method.patience) if method.patience else None
    best = train(net, step, run, epochs=method.epochs, optimiser=optimiser, schedule=schedule, watch=watch, patience=patience)
    if valid is not None:
        run.notes.append(f"weights of epoch {best + 1}, chosen on the validation part")
    net.cpu()
    return method.finished(net, part)
