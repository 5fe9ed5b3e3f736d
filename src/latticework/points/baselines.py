"""What must be beaten on points: the shares of the classes, a constant normal, the normals of fitted planes, constant velocity;
and the networks PointNet, DeepSets and DGCNN, a plain graph network of particles, and EGNN.

Sources: PointNet (CVPR 2017, arXiv 1612.00593), Deep Sets (NeurIPS 2017, arXiv 1703.06114), Dynamic Graph CNN (ACM TOG 2019,
arXiv 1801.07829), E(n) equivariant graph networks (ICML 2021, arXiv 2102.09844).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.majority import MajorityModel, shares_of
from latticework.core.errors import UserError
from latticework.core.method import Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting

from .network import PointBackbone, PointNetwork, Rows, gather, nearest, normed, pooled
from .tasks import sizes_of

Array = np.ndarray[Any, Any]


# -- without training ----------------------------------------------------------------------------------------------------
class MajorityPoints(Method):
    """Answers every cloud with the shares of the classes among the train clouds."""

    name: ClassVar[str] = "majority-points"
    tasks: ClassVar[tuple[str, ...]] = ("point-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[MajorityModel]] = MajorityModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> MajorityModel:
        return MajorityModel(self, dict(train.schema), shares_of(train.truth.y, len(train.schema["classes"])))


class ConstantNormalModel(Model):
    """The same direction for every point."""

    def __init__(self, method: Method, schema: Mapping[str, Any], direction: Tensor) -> None:
        self.method, self.schema, self.direction = method, schema, direction

    def predict(self, part: Part) -> Array:
        return np.tile(self.direction.double().numpy(), (int(sizes_of(part).sum()), 1))

    def state(self) -> Mapping[str, Any]:
        return {"direction": self.direction}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["direction"])


class ConstantNormal(Method):
    """The one direction with the least mean 1 - cos^2 to the train normals: their scatter's first eigenvector."""

    name: ClassVar[str] = "constant-normal"
    tasks: ClassVar[tuple[str, ...]] = ("normal-estimation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[ConstantNormalModel]] = ConstantNormalModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> ConstantNormalModel:
        y = train.truth.y.astype(np.float64)
        return ConstantNormalModel(self, dict(train.schema), torch.from_numpy(np.linalg.eigh(y.T @ y)[1][:, -1].copy()))


def pca_normals(xyz: Array, k: int = 16) -> Array:
    """Unit normals float64 [n, 3] of the planes fitted to the k nearest points of each (itself among them): the eigenvector of their
    scatter's least eigenvalue. The sign is arbitrary. Fewer than three points, or points on a line, leave it arbitrary, too.
    """
    from scipy.spatial import cKDTree

    xyz = np.asarray(xyz, np.float64)
    k = min(k, len(xyz))
    if k == 1:
        return np.tile([0.0, 0.0, 1.0], (len(xyz), 1))
    _, index = cKDTree(xyz).query(xyz, k)
    near = xyz[index]
    near = near - near.mean(1, keepdims=True)
    return np.asarray(np.linalg.eigh(np.einsum("nki,nkj->nij", near, near))[1][:, :, 0])


class PCANormalsModel(Model):
    """Nothing is learnt but, where `k` is chosen by validation, k."""

    method: PCANormals

    def __init__(self, method: PCANormals, schema: Mapping[str, Any]) -> None:
        self.method, self.schema = method, schema

    def predict(self, part: Part) -> Array:
        return np.concatenate([pca_normals(part.data[i].pos.numpy(), self.method.k) for i in part.query.rows])

    def state(self) -> Mapping[str, Any]:
        return {}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema)


class PCANormals(Method):
    """The normal of the plane through the nearest points."""

    name: ClassVar[str] = "pca-normals"
    tasks: ClassVar[tuple[str, ...]] = ("normal-estimation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[PCANormalsModel]] = PCANormalsModel

    k: int = setting(16, "nearest points, the point itself among them", ge=3, le=1000, search=[4, 6, 8, 12, 16, 24])

    def fit(self, train: Part, valid: Part | None, run: Run) -> PCANormalsModel:
        return PCANormalsModel(self, dict(train.schema))


class ConstantVelocityModel(Model):
    """Every particle goes on as it moves."""

    def __init__(self, method: Method, schema: Mapping[str, Any]) -> None:
        self.method, self.schema = method, schema

    def predict(self, part: Part) -> Array:
        asked = [part.data[i] for i in part.query.rows]
        return np.asarray(torch.cat([c.pos.double() + self.schema["span"] * c.velocity.double() for c in asked]).numpy())

    def state(self) -> Mapping[str, Any]:
        return {}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema)


class ConstantVelocity(Method):
    """y = x + v t, t the time to the asked frame."""

    name: ClassVar[str] = "constant-velocity"
    tasks: ClassVar[tuple[str, ...]] = ("n-body",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[ConstantVelocityModel]] = ConstantVelocityModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> ConstantVelocityModel:
        return ConstantVelocityModel(self, dict(train.schema))


# -- PointNet ------------------------------------------------------------------------------------------------------------
class Head(nn.Module):
    """Rows to outputs: hidden layers with BatchNorm and ReLU, dropout before the last, linear map."""

    def __init__(self, width: int, hidden: tuple[int, ...], outputs: int, dropout: float, norm: bool = True) -> None:
        super().__init__()
        sizes = (width, *hidden)
        self.rows = nn.ModuleList(Rows(a, b, norm) for a, b in zip(sizes, hidden, strict=False))
        self.out = nn.Linear(sizes[-1], outputs)
        self.dropout = nn.Dropout(dropout)  # a module, so that frames can share its masks

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        for row in self.rows:
            h = row(h, mask)
        return self.out(self.dropout(h))


class PointNet(PointBackbone):
    """A map of each point, the maximum over points, a head: g(max_i h(x_i)); for points, g(h(x_i), max_j h(x_j)).

    Without the paper's transformation nets (T-Net). `widths` are the layers of h; the local state beside the global one is that of
    the second layer, as in the paper. See `PointBackbone` for shapes.
    """

    def __init__(
        self, inputs: int, outputs: int, per_point: bool, vectors: int = 0,
        widths: tuple[int, ...] = (64, 64, 64, 128, 1024), head: tuple[int, ...] = (512, 256), dropout: float = 0.3,
        norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.per_point, self.vectors = per_point, vectors
        sizes = (3 + inputs, *widths)
        self.rows = nn.ModuleList(Rows(a, b, norm) for a, b in zip(sizes, widths, strict=False))
        self.local = min(1, len(widths) - 1)
        self.head = Head(widths[-1] + (widths[self.local] if per_point else 0), head, outputs, dropout, norm)

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = pos if x is None else torch.cat([pos, x], 2)
        local = h
        for i, row in enumerate(self.rows):
            h = row(h, mask)
            local = h if i == self.local else local
        whole = pooled(h, mask, "max")
        if not self.per_point:
            return self.head(whole)
        return self.head(torch.cat([local, whole[:, None].expand(-1, h.shape[1], -1)], 2), mask)


class Widths(PointNetwork):
    """Fields of the networks that are named by their widths."""

    head: tuple[int, ...] = setting((512, 256), "hidden layers of the head")
    dropout: float = setting(0.3, "before the last map", ge=0, lt=1, search=(0.0, 0.5))
    norm: bool = setting(True, "BatchNorm after each map")

    @field_validator("head", "widths", mode="before", check_fields=False)
    @classmethod
    def _several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int) else given

    @field_validator("head", "widths", check_fields=False)
    @classmethod
    def _positive(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= w <= 65_536 for w in given):
            raise ValueError("widths are between 1 and 65,536")
        return given


def _common(method: Widths, inputs: int, outputs: int, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "inputs": inputs, "outputs": outputs, "per_point": schema["output"] != "class", "vectors": len(schema["vectors"]),
        "head": method.head, "dropout": method.dropout, "norm": method.norm,
    }  # fmt: skip


class PointNetMethod(Widths):
    """PointNet without its transformation nets."""

    name: ClassVar[str] = "pointnet"

    widths: tuple[int, ...] = setting((64, 64, 64, 128, 1024), "layers of the map of each point")

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> PointNet:
        if not self.widths:
            raise UserError("pointnet.widths: name one layer at least")
        return PointNet(**_common(self, inputs, outputs, schema), widths=self.widths)


# -- DeepSets ------------------------------------------------------------------------------------------------------------
class DeepSets(PointBackbone):
    """Layers x_i -> ReLU(A x_i - B pool_j x_j + b), equivariant to the order of points; then the mean, or the point itself, and a head."""

    def __init__(
        self, inputs: int, outputs: int, per_point: bool, vectors: int = 0, widths: tuple[int, ...] = (256, 256, 256),
        head: tuple[int, ...] = (256,), dropout: float = 0.3, norm: bool = True, pool: Literal["max", "mean"] = "max",
    ) -> None:  # fmt: skip
        super().__init__()
        self.per_point, self.vectors, self.pool = per_point, vectors, pool
        sizes = (3 + inputs, *widths)
        self.own = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, widths, strict=False))
        self.rest = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(sizes, widths, strict=False))
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) if norm else nn.Identity() for b in widths)
        self.head = Head(sizes[-1], head, outputs, dropout, norm)

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = pos if x is None else torch.cat([pos, x], 2)
        for own, rest, norm in zip(self.own, self.rest, self.norms, strict=True):
            h = F.relu(normed(own(h) - rest(pooled(h, mask, self.pool))[:, None], norm, mask))  # type: ignore[arg-type]
        return self.head(h, mask) if self.per_point else self.head(pooled(h, mask, self.pool))


class DeepSetsMethod(Widths):
    """Deep Sets with layers that are equivariant to the order of points."""

    name: ClassVar[str] = "deepsets"

    widths: tuple[int, ...] = setting((256, 256, 256), "equivariant layers")
    head: tuple[int, ...] = setting((256,), "hidden layers of the head")
    pool: Literal["max", "mean"] = setting("max", "over the points of a cloud")

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> DeepSets:
        return DeepSets(**_common(self, inputs, outputs, schema), widths=self.widths, pool=self.pool)


# -- DGCNN ---------------------------------------------------------------------------------------------------------------
class EdgeConv(nn.Module):
    """x_i -> max_j ReLU(norm(A (x_j - x_i) + B x_i)) over the k nearest rows j, in the space of x itself. [B, n, a] -> [B, n, b].

    The map of the difference is taken apart, A x_j + (B - A) x_i, so that it is done once a point and not once an edge.
    """

    def __init__(self, a: int, b: int, norm: bool = True) -> None:
        super().__init__()
        self.apart = nn.Linear(a, b, bias=False)
        self.own = nn.Linear(a, b, bias=not norm)
        self.norm = nn.BatchNorm1d(b) if norm else None

    def forward(self, h: Tensor, index: Tensor, mask: Tensor | None = None) -> Tensor:
        far = self.apart(h)
        edges = gather(far, index) + (self.own(h) - far)[:, :, None]
        return F.leaky_relu(normed(edges, self.norm, mask), 0.2).amax(2)


class DGCNN(PointBackbone):
    """EdgeConv layers, each on the nearest neighbours among its own inputs; all their outputs side by side, a map, the maximum, a head.

    The first graph is by coordinates alone. See `PointBackbone` for shapes.
    """

    def __init__(
        self, inputs: int, outputs: int, per_point: bool, vectors: int = 0, k: int = 20,
        widths: tuple[int, ...] = (64, 64, 128, 256), whole: int = 1024, head: tuple[int, ...] = (512, 256), dropout: float = 0.5,
        norm: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.per_point, self.vectors, self.k = per_point, vectors, k
        sizes = (3 + inputs, *widths)
        self.convs = nn.ModuleList(EdgeConv(a, b, norm) for a, b in zip(sizes, widths, strict=False))
        self.whole = Rows(sum(widths), whole, norm, slope=0.2)
        self.head = Head(whole + sum(widths) if per_point else 2 * whole, head, outputs, dropout, norm)

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h, near, found = pos if x is None else torch.cat([pos, x], 2), pos, []
        for conv in self.convs:
            h = conv(h, nearest(near.detach(), self.k, mask), mask)
            near = h
            found.append(h)
        side = torch.cat(found, 2)
        whole = self.whole(side, mask)
        top = pooled(whole, mask, "max")
        if not self.per_point:
            return self.head(torch.cat([top, pooled(whole, mask, "mean")], 1))
        return self.head(torch.cat([side, top[:, None].expand(-1, side.shape[1], -1)], 2), mask)


class DGCNNMethod(Widths):
    """Dynamic graph CNN."""

    name: ClassVar[str] = "dgcnn"

    k: int = setting(20, "nearest neighbours, the point itself among them", ge=1, le=1000, search=[10, 20, 30])
    widths: tuple[int, ...] = setting((64, 64, 128, 256), "edge convolutions")
    whole: int = setting(1024, "width of the state of the whole cloud", ge=1, le=65_536)
    dropout: float = setting(0.5, "before the last map", ge=0, lt=1, search=(0.0, 0.6))

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> DGCNN:
        if not self.widths:
            raise UserError("dgcnn.widths: name one layer at least")
        return DGCNN(**_common(self, inputs, outputs, schema), k=self.k, widths=self.widths, whole=self.whole)


# -- particles -----------------------------------------------------------------------------------------------------------
def two_layers(a: int, hidden: int, b: int, last: bool = False) -> nn.Sequential:
    """Linear, SiLU, linear (and SiLU, with `last`)."""
    return nn.Sequential(nn.Linear(a, hidden), nn.SiLU(), nn.Linear(hidden, b), *([nn.SiLU()] if last else []))


def pairs_of(n: int, mask: Tensor | None) -> Tensor:
    """How much each ordered pair counts, float [B or 1, n, n, 1]: 0 for a particle with itself and where one is not there."""
    apart = 1 - torch.eye(n, device=None if mask is None else mask.device)
    if mask is None:
        return apart[None, :, :, None]
    return (apart[None] * mask[:, :, None] * mask[:, None])[..., None]


def charge_products(x: Tensor | None, vectors: int) -> Tensor | None:
    """q_i q_j of each pair [B, n, n, F'], of the invariant columns; none where there are none."""
    if x is None or x.shape[2] == 3 * vectors:
        return None
    q = x[..., 3 * vectors :]
    return q[:, :, None] * q[:, None]


class ParticleGNN(PointBackbone):
    """Messages between all pairs: m_ij = phi_e(h_i, h_j, q_i q_j, |x_i - x_j|^2), h_i += phi_h(h_i, sum_j m_ij), y_i = decode(h_i).

    h_0 is a linear map of (position, velocity), so nothing here is equivariant but to the order of particles. `layers` rounds.
    """

    per_point = True

    def __init__(self, inputs: int, outputs: int = 3, vectors: int = 1, width: int = 60, layers: int = 4) -> None:
        super().__init__()
        self.vectors = vectors
        scalars = inputs - 3 * vectors
        self.embed = nn.Linear(3 + 3 * vectors, width)
        self.message = nn.ModuleList(two_layers(2 * width + 1 + scalars, width, width, last=True) for _ in range(layers))
        self.update = nn.ModuleList(two_layers(2 * width, width, width) for _ in range(layers))
        self.decode = two_layers(width, width, outputs)

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        n = pos.shape[1]
        pairs, products = pairs_of(n, mask).to(pos), charge_products(x, self.vectors)
        held = [(pos[:, :, None] - pos[:, None]).square().sum(3, keepdim=True)]
        edges = torch.cat(held if products is None else [products, *held], 3)
        h = self.embed(pos if x is None else torch.cat([pos, x[..., : 3 * self.vectors]], 2))
        for message, update in zip(self.message, self.update, strict=True):
            both = torch.cat([h[:, :, None].expand(-1, -1, n, -1), h[:, None].expand(-1, n, -1, -1), edges], 3)
            h = h + update(torch.cat([h, (message(both) * pairs).sum(2)], 2))
        return self.decode(h)


class EGNN(PointBackbone):
    """E(n) equivariant graph network with velocities (equations 3 to 7 of the paper):

        m_ij = phi_e(h_i, h_j, |x_i - x_j|^2, q_i q_j)
        v_i <- phi_v(h_i) v_i + 1/(n - 1) sum_j (x_i - x_j) phi_x(m_ij)
        x_i <- x_i + v_i,  h_i <- h_i + phi_h(h_i, sum_j m_ij)

    h_0 is a linear map of the speed and the invariant columns. The answer is the displacement of x: it turns with the
    particles and does not change when they are moved, exactly.
    """

    per_point = True

    def __init__(self, inputs: int, vectors: int = 1, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.vectors = vectors
        scalars = inputs - 3 * vectors
        self.embed = nn.Linear(max(vectors, 1) + scalars, width)
        self.message = nn.ModuleList(two_layers(2 * width + 1 + scalars, width, width, last=True) for _ in range(layers))
        self.update = nn.ModuleList(two_layers(2 * width, width, width) for _ in range(layers))
        self.along = nn.ModuleList(two_layers(width, width, 1) for _ in range(layers))
        self.speed = nn.ModuleList(two_layers(width, width, 1) for _ in range(layers))
        for along in self.along:  # the paper's code starts with small steps
            nn.init.xavier_uniform_(along[2].weight, gain=1e-3)

    def forward(self, pos: Tensor, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        b, n, _ = pos.shape
        pairs, products = pairs_of(n, mask).to(pos), charge_products(x, self.vectors)
        others = pairs.sum(2).clamp(min=1)
        v = x[..., :3] if x is not None and self.vectors else torch.zeros_like(pos)
        speeds = [x[..., 3 * k : 3 * k + 3].norm(dim=2, keepdim=True) for k in range(self.vectors)] if x is not None else []
        scalars = [] if x is None else [x[..., 3 * self.vectors :]]
        h = self.embed(torch.cat([*(speeds or [torch.zeros_like(pos[..., :1])]), *scalars], 2))
        now = pos
        for message, update, along, speed in zip(self.message, self.update, self.along, self.speed, strict=True):
            apart = now[:, :, None] - now[:, None]
            held = [apart.square().sum(3, keepdim=True)] + ([] if products is None else [products])
            both = torch.cat([h[:, :, None].expand(b, n, n, -1), h[:, None].expand(b, n, n, -1), *held], 3)
            m = message(both) * pairs
            v = speed(h) * v + (apart * along(m) * pairs).sum(2) / others
            now = now + v
            h = h + update(torch.cat([h, m.sum(2)], 2))
        return now - pos


class ParticleNetwork(PointNetwork):
    """Fields of the networks on particles: the settings of the n-body experiment."""

    tasks: ClassVar[tuple[str, ...]] = ("n-body",)

    layers: int = setting(4, "rounds of messages", ge=1, le=64)
    width: int = setting(60, "of the states", ge=1, le=4096)
    lr: float = setting(1e-3, "learning rate of Adam", gt=0, le=1, search=(1e-4, 1e-2, "log"))
    weight_decay: float = setting(1e-12, "on all parameters", ge=0, le=1)
    batch: int = setting(100, "systems of a step", ge=1, le=100_000)
    epochs: int = setting(10_000, "at most", ge=1, le=1_000_000)
    halve: int = setting(0, "the learning rate is halved after so many epochs; 0: never", ge=0)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        n = facts.get("particles", 0)
        return f"it sends messages between all pairs of {n} particles, which takes too much memory" if n > 2000 else None


class ParticleGNNMethod(ParticleNetwork):
    """Plain messages between all pairs of particles; not equivariant."""

    name: ClassVar[str] = "particle-gnn"

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> ParticleGNN:
        return ParticleGNN(inputs, outputs, len(schema["vectors"]), self.width, self.layers)


class EGNNMethod(ParticleNetwork):
    """E(n) equivariant graph network with velocities."""

    name: ClassVar[str] = "egnn"

    width: int = setting(64, "of the states", ge=1, le=4096)
    lr: float = setting(5e-4, "learning rate of Adam", gt=0, le=1, search=(1e-4, 1e-2, "log"))

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> EGNN:
        return EGNN(inputs, len(schema["vectors"]), self.width, self.layers)
