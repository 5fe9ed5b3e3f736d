"""All linear maps between tensors of order 2, 1 and 0 on m nodes that commute with every permutation of the nodes.

A tensor of order 2 is a value X_ij for each ordered pair of nodes, of order 1 a value v_i for each node, of order 0 one value. The
spaces of such maps have 15 (2 to 2), 5 (2 to 1), 5 (1 to 2), 2 (1 to 1), 2 (2 to 0) and 1 (1 to 0) dimensions, whatever m is (fewer
for m < 4, where some of them coincide). `basis` gives them one by one; `EquivariantLinear` is a learned combination of them over
channels. Every sum is divided by m and a double sum by m^2, so that one set of weights may serve several sizes.

Source: Maron et al., "Invariant and Equivariant Graph Networks" (ICLR 2019, arXiv 1812.09902), section 3; the scaling by m is that of
"Subgraph Permutation Equivariant Networks" (arXiv 2111.11840).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

DIMENSIONS = {(2, 2): 15, (2, 1): 5, (1, 2): 5, (1, 1): 2, (2, 0): 2, (1, 0): 1}


class Sums(NamedTuple):
    """Of X [B, m, m, c]: `diagonal`, `rows` (sum over j) and `columns` (sum over i) [B, m, c]; `trace` and `total` [B, c]."""

    diagonal: Tensor
    rows: Tensor
    columns: Tensor
    trace: Tensor
    total: Tensor


def sums_of(X: Tensor, size: Tensor | None = None) -> Sums:
    """The scaled sums that all maps of X [B, m, m, c] rest on; `size` [B] where graphs of fewer nodes are padded with zeros."""
    diagonal = X.diagonal(dim1=1, dim2=2).transpose(1, 2)
    m: Tensor | int = max(X.shape[1], 1) if size is None else size.clamp(min=1).to(X.dtype)[:, None, None]
    rows, columns = X.sum(2) / m, X.sum(1) / m
    one = m if isinstance(m, int) else m[:, 0]
    return Sums(diagonal, rows, columns, diagonal.sum(1) / one, rows.sum(1) / one)


def basis(x: Tensor, order: int, to: int) -> Tensor:
    """The maps from order `order` to order `to`, one by one: [B, m (, m), c] -> [B (, m (, m)), maps, c].

    In this order, with d the diagonal of X, r_i its row means, q_j its column means, t = mean(d), s the mean of X:
    2 to 2, on (i, j): X_ij, X_ji; then of each y in d, r, q: y on the diagonal, y_i, y_j; then of each y in t, s: y on the
    diagonal, y everywhere. 2 to 1: d, r, q, t, s. 2 to 0: t, s. 1 to 2: v on the diagonal, v_i, v_j, mean v on the diagonal,
    mean v everywhere. 1 to 1: v, mean v. 1 to 0: mean v.
    It is the definition, for checks and for one's own layers; `EquivariantLinear` does the same without holding all maps.
    """
    if (order, to) not in DIMENSIONS:
        raise ValueError(f"maps from order {order} to order {to} are not among {sorted(DIMENSIONS)}")
    if x.ndim != order + 2:
        raise ValueError(f"a tensor of order {order} has the shape [B{', m' * order}, c], not {list(x.shape)}")
    m = x.shape[1]
    wide = (x.shape[0], m, m, x.shape[-1])
    if order == 2:
        nodes, wholes = list(sums_of(x)[:3]), list(sums_of(x)[3:])
        found = [x, x.transpose(1, 2)]
    else:
        nodes, wholes, found = [x], [x.sum(1) / max(m, 1)], []
    if to == 0:
        return torch.stack(wholes, -2)
    spread = [y[:, None].expand(-1, m, -1) for y in wholes]
    if to == 1:
        return torch.stack([*nodes, *spread], -2)
    for y in nodes:
        found += [_on_diagonal(y), y[:, :, None].expand(wide), y[:, None].expand(wide)]
    for y in spread:
        found += [_on_diagonal(y), y[:, None].expand(wide)]
    return torch.stack(found, -2)


def _on_diagonal(v: Tensor) -> Tensor:
    return torch.diag_embed(v.transpose(1, 2)).permute(0, 2, 3, 1)


class EquivariantLinear(nn.Module):
    """A learned combination of all maps from tensors of order `order` to order `to`: ``y_. = sum_k basis_k(x)_. W_k + bias``.

    ``weight`` [maps, c, c'], drawn from N(0, 2 / (c + c')); ``bias`` [1, c'], and for order 2 a second row for the diagonal alone,
    both from 0. Parameters: ``maps c c' + c'`` (and c' more for order 2).

    Sums, rows and diagonals are mixed before they are spread over the pairs, so no more than [B, m, m, 2 c'] is held, where the
    stack of `basis` needs 15 c. With `size` int [B] the first size_b nodes of graph b count and the rest is padding, which must be
    0 and stays 0. Shapes: [B, m, m, c] or [B, m, c] -> [B, m, m, c'], [B, m, c'] or [B, c'] by the orders. A caller that has
    `sums_of` its x hands them over as `sums`.
    """

    def __init__(self, order: int, to: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        if (order, to) not in DIMENSIONS:
            raise ValueError(f"maps from order {order} to order {to} are not among {sorted(DIMENSIONS)}")
        if inputs < 1 or outputs < 1:
            raise ValueError(f"channels must be 1 or more, are {inputs} and {outputs}")
        self.order, self.to, self.inputs, self.outputs = order, to, inputs, outputs
        spread = math.sqrt(2 / (inputs + outputs))
        self.weight = nn.Parameter(torch.randn(DIMENSIONS[order, to], inputs, outputs) * spread)
        self.bias = nn.Parameter(torch.zeros(2 if to == 2 else 1, outputs)) if bias else None

    def forward(self, x: Tensor, size: Tensor | None = None, sums: Sums | None = None) -> Tensor:
        if x.ndim != self.order + 2 or x.shape[-1] != self.inputs:
            raise ValueError(f"expected [B{', m' * self.order}, {self.inputs}], found {list(x.shape)}")
        if self.order == 2:
            y = self._from_pairs(x, sums_of(x, size) if sums is None else sums)
        else:
            y = self._from_nodes(x, size)
        if size is None or self.to == 0:
            return y
        there = torch.arange(x.shape[1], device=x.device) < size[:, None]
        return y * (there[..., None] if self.to == 1 else (there[:, None] & there[:, :, None])[..., None])

    def _from_pairs(self, X: Tensor, sums: Sums) -> Tensor:
        d, r, q, t, s = sums
        node, whole = torch.cat([d, r, q], -1), torch.cat([t, s], -1)
        if self.to == 0:
            return self._biased(whole @ self.weight.flatten(0, 1))
        if self.to == 1:
            of_node, of_whole = self.weight.split([3, 2])
            return self._biased(node @ of_node.flatten(0, 1) + (whole @ of_whole.flatten(0, 1))[:, None])
        of_pair, of_node, of_whole = self.weight.split([2, 9, 4])
        as_is, turned = (X @ _beside(of_pair, 1, 2)).split(self.outputs, -1)
        return self._spread(as_is + turned.transpose(1, 2), node @ _beside(of_node, 3, 3), whole @ _beside(of_whole, 2, 2))

    def _from_nodes(self, v: Tensor, size: Tensor | None) -> Tensor:
        mean = v.sum(1) / (max(v.shape[1], 1) if size is None else size.clamp(min=1).to(v.dtype)[:, None])
        if self.to == 0:
            return self._biased(mean @ self.weight[0])
        if self.to == 1:
            own, of_mean = self.weight.unbind()
            return self._biased(v @ own + (mean @ of_mean)[:, None])
        of_node, of_whole = self.weight.split([3, 2])
        return self._spread(None, v @ _beside(of_node, 1, 3), mean @ _beside(of_whole, 1, 2))

    def _spread(self, pair: Tensor | None, node: Tensor, whole: Tensor) -> Tensor:
        """What stands on pairs [B, m, m, c'], nodes [B, m, 3 c'] and the whole [B, 2 c'] put where it goes."""
        on_diagonal, row, column = node.split(self.outputs, -1)
        if self.bias is not None:
            whole = whole + self.bias.flip(0).flatten()
        diagonal, everywhere = whole.split(self.outputs, -1)
        column = column + everywhere[:, None]
        y = row[:, :, None] + column[:, None] if pair is None else pair + row[:, :, None] + column[:, None]
        y.diagonal(dim1=1, dim2=2).add_((on_diagonal + diagonal[:, None]).transpose(1, 2))
        return y

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias[0]


def _beside(weight: Tensor, sources: int, places: int) -> Tensor:
    """Maps [sources places, c, c'] as one matrix [sources c, places c']: sources below one another, places side by side."""
    c, to = weight.shape[1:]
    return weight.view(sources, places, c, to).transpose(1, 2).reshape(sources * c, places * to)
