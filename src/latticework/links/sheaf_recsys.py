"""Sheaf neural networks for recommendation: every edge of the user-item graph has learned restriction maps, and embeddings
diffuse by the sheaf Laplacian.

For an edge between v and u, ``F_v`` and ``F_u`` map the nodes' vectors (stalks) to the edge's; what they disagree on there is
``F_v x_v - F_u x_u``. The sheaf Laplacian ``(L x)_v = sum_e F_v^T (F_v x_v - F_u x_u)`` sums it up, and a layer takes a step
against it: ``X' = X - s L^ (X W + b)`` with ``L^ = N L N``, ``N = (G + I)^-1/2`` and G the diagonal blocks of L. The maps are
``tanh`` of a linear map of both ends' vectors, computed anew in every layer from its input. With the identity for all maps
it is the graph Laplacian.

Source: Purificato, Cassara, Siciliano, Lio, Silvestri, "Sheaf4Rec: Sheaf Neural Networks for Graph-based Recommender Systems"
(arXiv 2304.09097; ACM TORS), and the official code, whose stalks are scalars. The ``+ I`` keeps isolated and weakly bound
nodes from blowing up, so L^ is not the exact normalised Laplacian; its eigenvalues lie in [0, 2).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latticework.core.value import setting
from latticework.layers.first_order import first_order
from latticework.layers.sparse_product import symmetric_product

from .recommendation_baselines import GraphRecommender, Pairs, Vectors

Maps = Literal["scalar", "diagonal", "orthogonal", "general"]
CLAMP = 1e-6


# -- the graph -----------------------------------------------------------------------------------------------------------
class Arcs:
    """Undirected edges int64 [2, E] between `nodes` nodes as 2 E arcs, sorted by row, then column; rev(e) is the opposite arc.

    ``row``, ``column``, ``rev`` int64 [2 E]; ``start`` int64 [nodes + 1]. The order in which edges are given, and which of
    their ends stands first, changes nothing. ``ValueError`` for edges that stand twice (with their number), loops, and ends
    outside of the nodes.
    """

    def __init__(self, edges: Tensor, nodes: int) -> None:
        a, b = edges
        if edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < nodes):
            raise ValueError(f"an edge ends outside of the {nodes} nodes")
        if bool((a == b).any()):
            raise ValueError(f"{int((a == b).sum())} edges join a node to itself")
        self.nodes = nodes
        key = torch.sort(torch.cat([a * nodes + b, b * nodes + a])).values
        twice = int((key[1:] == key[:-1]).sum()) // 2
        if twice:
            raise ValueError(f"{twice} edges stand more than once; merge them first")
        self.row, self.column = key // nodes, key % nodes
        self.rev = torch.searchsorted(key, self.column * nodes + self.row)
        self.start = _starts(self.row, nodes)
        self._blocks: dict[tuple[int, bool], tuple[Tensor, Tensor, Tensor]] = {}

    def to(self, device: str | torch.device) -> Arcs:
        if self.row.device == torch.device(device):
            return self
        other = object.__new__(Arcs)
        other.nodes, other._blocks = self.nodes, {}
        for name in ("row", "column", "rev", "start"):
            setattr(other, name, getattr(self, name).to(device))
        return other

    def blocks(self, d: int, full: bool) -> tuple[Tensor, Tensor, Tensor]:
        """CSR (start, column) of d x d blocks, one an arc (their diagonals alone, unless `full`), and which entry of the
        flattened blocks [2 E, d, d] (or [2 E, d]) stands at each place."""
        if (d, full) not in self._blocks:
            index = torch.arange(d, device=self.row.device)
            row, column = self.row[:, None] * d + index, self.column[:, None] * d + index
            if full:
                row, column = row[:, :, None].expand(-1, -1, d), column[:, None].expand(-1, d, -1)
            order = torch.argsort((row * (self.nodes * d) + column).reshape(-1))
            row, column = row.reshape(-1)[order], column.reshape(-1)[order]
            self._blocks[d, full] = (_starts(row, self.nodes * d), column, order)
        return self._blocks[d, full]


def _starts(row: Tensor, nodes: int) -> Tensor:
    return torch.cat([row.new_zeros(1), torch.bincount(row, minlength=nodes).cumsum(0)])


def _summed(of_arcs: Tensor, arcs: Arcs) -> Tensor:
    found: Tensor = torch.segment_reduce(of_arcs.contiguous(), "sum", lengths=torch.diff(arcs.start), axis=0)
    return found


# Gathers along arcs and their sums are each other's derivative: as arcs are sorted, none needs a scattered addition.
class _RowSum(torch.autograd.Function):
    """[2 E, ...] -> [n, ...]: the sum over the arcs of each row."""

    @staticmethod
    def forward(ctx: Any, of_arcs: Tensor, arcs: Arcs) -> Tensor:
        ctx.arcs = arcs
        return _summed(of_arcs, arcs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return d.index_select(0, ctx.arcs.row), None


class _OfRow(torch.autograd.Function):
    """[n, ...] -> [2 E, ...]: what the arc's row holds."""

    @staticmethod
    def forward(ctx: Any, of_nodes: Tensor, arcs: Arcs) -> Tensor:
        ctx.arcs = arcs
        return of_nodes.index_select(0, arcs.row)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return _summed(d, ctx.arcs), None


class _Opposite(torch.autograd.Function):
    """[2 E, ...] -> [2 E, ...]: what the opposite arc holds."""

    @staticmethod
    def forward(ctx: Any, of_arcs: Tensor, arcs: Arcs) -> Tensor:
        ctx.arcs = arcs
        return of_arcs.index_select(0, arcs.rev)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None]:
        return d.index_select(0, ctx.arcs.rev), None


# -- the Laplacian -------------------------------------------------------------------------------------------------------
class SheafLaplacian:
    """``N L N`` of restriction maps, ready to be applied.

    `maps`: of each arc v -> u the map of v into the stalk of the edge, [2 E, d, d], or [2 E, d] where it is diagonal. Blocks:
    ``L_vu = - F_e^T F_rev(e)``, ``L_vv = G_v = sum_e F_e^T F_e``. `normalise`: ``augmented`` N = (G + I)^-1/2, ``exact``
    N = G^-1/2 (0 where G is 0), ``none`` N = I. `same_degree`: the maps are orthogonal, so G is the degree times I.
    A node without an edge has row and column 0.
    """

    def __init__(
        self,
        maps: Tensor,
        arcs: Arcs,
        normalise: Literal["augmented", "exact", "none"] = "augmented",
        same_degree: bool = False,
    ) -> None:
        if maps.ndim == 3 and maps.shape[-1] == 1:
            maps = maps[..., 0]
        self.arcs, self.d, self.full = arcs, maps.shape[1], maps.ndim == 3
        if self.d == 1:
            maps = maps[:, 0]  # a list of numbers is gathered faster than a column
        other = _Opposite.apply(maps, arcs)
        self.same = self.full and same_degree
        if not self.full:
            self.G = _RowSum.apply(maps * maps, arcs)
            self.N = _root(self.G, normalise)
            self.off = -(maps * other)
            return
        self.off = -(maps.transpose(1, 2) @ other)
        if self.same:
            self.G = torch.diff(arcs.start).to(maps.dtype)
            self.N = _root(self.G, normalise)
            return
        self.G = _RowSum.apply(maps.transpose(1, 2) @ maps, arcs)
        eye = torch.eye(self.d, dtype=maps.dtype, device=maps.device)
        if normalise == "none":
            self.N = eye.expand_as(self.G)
        else:
            self.N = inverse_root(self.G + eye if normalise == "augmented" else self.G)

    def __matmul__(self, Y: Tensor) -> Tensor:
        """[n, d k] -> [n, d k]: a node's vector is d rows of k. The blocks N are applied to nodes, not to arcs."""
        n, width = Y.shape
        start, column, order = self.arcs.blocks(self.d, self.full)
        z = self._own(self.N, Y.reshape(n, self.d, width // self.d))
        values = self.off if self.d == 1 else self.off.reshape(-1)[order]
        near = symmetric_product(values, z.reshape(n * self.d, -1), start, column).view_as(z)
        return self._own(self.N, self._own(self.G, z) + near).reshape(n, width)

    def _own(self, blocks: Tensor, y: Tensor) -> Tensor:
        """The diagonal blocks (their diagonals, or one number a node) times [n, d, k]."""
        if self.full and not self.same:
            return blocks @ y
        return blocks.reshape(len(y), -1, 1) * y


def _root(G: Tensor, normalise: str) -> Tensor:
    """Of diagonal G."""
    if normalise == "augmented":
        return torch.rsqrt(G + 1)
    if normalise == "exact":
        return torch.where(G > 0, torch.rsqrt(torch.where(G > 0, G, 1.0)), 0.0)
    if normalise == "none":
        return torch.ones_like(G)
    raise ValueError(f"normalise must be augmented, exact or none, not {normalise!r}")


def inverse_root(A: Tensor) -> Tensor:
    """``A^-1/2`` of symmetric positive matrices [..., d, d]; eigenvalues are taken for `CLAMP` at least.

    The derivative is the divided difference of ``x^-1/2`` in closed form, ``-1 / (a b (a + b))`` with a, b the roots of two
    eigenvalues: unlike that of an eigendecomposition it is finite where eigenvalues are equal.
    """
    return _InverseRoot.apply(A)  # type: ignore[no-any-return]


class _InverseRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        values, Q = torch.linalg.eigh(A)
        root = values.clamp(min=CLAMP).sqrt()
        ctx.save_for_backward(root, Q)
        return (Q / root[..., None, :]) @ Q.transpose(-1, -2)

    @staticmethod
    @first_order("take the root by torch.linalg.eigh, whose eigenvalues must differ")
    def backward(ctx: Any, dN: Tensor) -> Tensor:
        root, Q = ctx.saved_tensors
        a, b = root[..., :, None], root[..., None, :]
        inner = Q.transpose(-1, -2) @ ((dN + dN.transpose(-1, -2)) / 2) @ Q
        dA: Tensor = Q @ (inner * (-1 / (a * b * (a + b)))) @ Q.transpose(-1, -2)
        return dA


# -- the layer -----------------------------------------------------------------------------------------------------------
class RestrictionMaps(nn.Module):
    """``F_e = tanh(A [x_v || x_u])`` of each arc v -> u, without bias, in the form asked for.

    ``scalar`` (d = 1) and ``diagonal``: d numbers an arc, [2 E, d]; ``general``: [2 E, d, d]; ``orthogonal``: the Cayley
    transform ``(I + S)^-1 (I - S)`` of the skew matrix with these numbers above its diagonal, [2 E, d, d] (for d = 1: 1).
    """

    def __init__(self, width: int, d: int, kind: Maps) -> None:
        super().__init__()
        if kind not in get_args(Maps):
            raise ValueError(f"maps must be one of {', '.join(get_args(Maps))}, not {kind!r}")
        if kind == "scalar" and d != 1:
            raise ValueError(f"scalar maps are for stalks of 1, not {d}")
        self.d, self.kind = d, kind
        k = {"scalar": 1, "diagonal": d, "general": d * d, "orthogonal": d * (d - 1) // 2}[kind]
        self.ends = nn.Linear(2 * width, k, bias=False) if k else None

    def forward(self, X: Tensor, arcs: Arcs) -> Tensor:
        if self.ends is None:
            return X.new_ones(len(arcs.row), 1)
        own, other = self.ends.weight.chunk(2, dim=1)  # A [x_v || x_u] = A1 x_v + A2 x_u: mapped by node, added by arc
        ends = [X @ part.t() for part in (own, other)]
        if own.shape[0] == 1:
            ends = [part[:, 0] for part in ends]
        # what the column holds is what the row of the opposite arc holds
        f = torch.tanh(_OfRow.apply(ends[0], arcs) + _Opposite.apply(_OfRow.apply(ends[1], arcs), arcs)).view(len(arcs.row), -1)
        if self.kind == "general":
            return f.view(-1, self.d, self.d)
        if self.kind != "orthogonal":
            return f
        upper = torch.triu_indices(self.d, self.d, 1, device=f.device)
        S = f.new_zeros(len(f), self.d, self.d)
        S[:, upper[0], upper[1]] = f
        S = S - S.transpose(1, 2)
        eye = torch.eye(self.d, dtype=f.dtype, device=f.device)
        return torch.linalg.solve(eye + S, eye - S)


class SheafDiffusion(nn.Module):
    """One step of sheaf diffusion: ``X' = X - s L^ (X W + b)``, the maps computed from X (no non-linearity after it).

    Shapes: X [n, D], `Arcs` of n nodes -> [n, D]. Parameters: ``D^2 + D`` of the linear map and ``2 D k`` of the restriction
    maps, k = 1 (scalar), d (diagonal), d^2 (general) or d (d - 1) / 2 (orthogonal). ``ValueError`` where D is no multiple of
    the stalk d.
    """

    def __init__(
        self,
        width: int,
        stalk: int = 1,
        maps: Maps = "scalar",
        step: float = 1.0,
        normalise: Literal["augmented", "exact", "none"] = "augmented",
    ) -> None:
        super().__init__()
        if stalk < 1 or width % stalk:
            raise ValueError(f"a width of {width} is no multiple of a stalk of {stalk}")
        self.step, self.normalise = step, normalise
        self.maps = RestrictionMaps(width, stalk, maps)
        self.linear = nn.Linear(width, width)

    def laplacian(self, X: Tensor, arcs: Arcs) -> SheafLaplacian:
        """The operator that the layer would apply to X."""
        return SheafLaplacian(self.maps(X, arcs), arcs, self.normalise, same_degree=self.maps.kind == "orthogonal")

    def forward(self, X: Tensor, arcs: Arcs) -> Tensor:
        out: Tensor = X - self.step * (self.laplacian(X, arcs) @ self.linear(X))
        return out


class Sheaf4Rec(Vectors):
    """Vectors of users and items, diffused: ``[X^0 || ... || X^L]`` [n, (L + 1) D].

    Parameters: ``n D + L (D^2 + D + 2 D k)``. `pairs` are the interactions, users numbered before items.
    """

    def __init__(
        self, pairs: Pairs, width: int = 64, layers: int = 2, stalk: int = 1, maps: Maps = "scalar", step: float = 1.0
    ) -> None:
        super().__init__(pairs, width)
        self.arcs = Arcs(pairs.edges(), pairs.users + pairs.items)
        self.layers = nn.ModuleList(SheafDiffusion(width, stalk, maps, step) for _ in range(layers))

    def forward(self) -> Tensor:
        X = self.X
        self.arcs = self.arcs.to(X.device)
        found = [X]
        for layer in self.layers:
            X = layer(X, self.arcs)
            found.append(X)
        return torch.cat(found, 1)


# -- the recipe ----------------------------------------------------------------------------------------------------------
class SheafMethod(GraphRecommender):
    """Recommendation by sheaf diffusion on the user-item graph, trained by BPR.

    Every edge learns maps that say what its two ends should agree on, so neighbours need not become alike; scores are inner
    products of the states of all layers. `maps` and `stalk` choose the maps: scalar (the official code), diagonal,
    orthogonal or general d x d. The weights of the epoch with the best headline on the valid part are kept.

    A fitted model answers for the users and items of its train part; others get the popularity answer of the task.
    """

    name: ClassVar[str] = "sheaf"
    layers: int = setting(2, "diffusion steps", ge=1, le=16, search=(1, 3))
    stalk: int = setting(1, "dimension d of the stalks; divides the width", ge=1, le=64)
    maps: Maps = setting("scalar", "restriction maps; scalar needs stalk=1")
    step: float = setting(1.0, "step s of the diffusion", ge=0, le=10)
    reg: float = setting(1.0, "weight of the squared initial vectors", ge=0, le=100, search=(1e-5, 1.0, "log"))

    @model_validator(mode="after")
    def _stalks_fit(self) -> SheafMethod:
        if self.width % self.stalk:
            raise ValueError(f"width {self.width} is no multiple of stalk {self.stalk}")
        if self.maps == "scalar" and self.stalk != 1:
            raise ValueError(f"maps=scalar needs stalk=1, not {self.stalk}; use diagonal, orthogonal or general")
        return self

    def module(self, pairs: Pairs) -> Vectors:
        return Sheaf4Rec(pairs, self.width, self.layers, self.stalk, self.maps, self.step)
