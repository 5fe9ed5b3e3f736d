"""Mini-batches of graphs, cut from tensors that were joined once.

PyG's ``Batch.from_data_list`` looks at every attribute of every graph each time a batch is made; over a fit that is the same
work in each epoch. Here the graphs are joined once and a batch is a gather: equal to PyG's, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Batch, Data

Array = NDArray[Any]


class Packed:
    """Graphs joined along each attribute's own dimension (`Data.__cat_dim__`), with what it adds a graph (`Data.__inc__`).

    ``packed.batch(rows)`` equals ``Batch.from_data_list([graphs[r] for r in rows])`` for tensor attributes and numbers; where an
    attribute is anything else (a list, a sparse matrix, an increment that is no number), it is that call.
    """

    def __init__(self, graphs: Sequence[Data], device: str = "cpu") -> None:
        self.graphs, self.device = list(graphs), device
        self.joined: dict[str, tuple[Tensor, int, Array, Array | None]] = {}  # key -> values, dim, starts, increments
        self.sizes = np.array([int(g.num_nodes or 0) for g in self.graphs], np.int64)
        self.plain = bool(self.graphs) and self._join()

    def __len__(self) -> int:
        return len(self.graphs)

    def _join(self) -> bool:
        first = self.graphs[0]
        names = list(first.keys())
        self.counted = "num_nodes" in names
        joined: dict[str, tuple[Tensor, int, Array, Array | None]] = {}
        if any(set(g.keys()) != set(names) or type(g) is not type(first) for g in self.graphs):
            return False
        for key in names:
            if key in ("num_nodes", "ptr"):
                continue
            values = [g[key] for g in self.graphs]
            if all(isinstance(v, bool | int | float) for v in values):
                values = [torch.tensor([v]) for v in values]
            if not all(isinstance(v, Tensor) and v.layout == torch.strided for v in values):
                return False
            dim = first.__cat_dim__(key, first[key])
            if isinstance(dim, tuple):
                return False
            if dim is None or values[0].dim() == 0:
                values, dim = [v.unsqueeze(0) for v in values], 0
            added = [g.__inc__(key, g[key]) for g in self.graphs]
            if not all(isinstance(a, int) or (isinstance(a, Tensor) and a.dim() == 0) for a in added):
                return False
            starts = np.cumsum([0] + [v.size(dim) for v in values])
            increments = np.array([int(a) for a in added])
            joined[key] = torch.cat(values, dim).to(self.device), dim, starts, increments if increments.any() else None
        self.joined = joined
        return True

    def batch(self, rows: Tensor) -> Batch:
        """The graphs `rows` int64 [b] as one disjoint union, on the device."""
        if not self.plain:
            return Batch.from_data_list([self.graphs[int(r)] for r in rows]).to(self.device)
        chosen = rows.numpy()
        made: Any = Batch(_base_cls=type(self.graphs[0]))
        slices: dict[str, Tensor] = {}
        added: dict[str, Tensor] = {}
        # index arithmetic in numpy: torch's repeat_interleave costs milliseconds where threads are few
        for key, (values, dim, starts, increments) in self.joined.items():
            lengths = starts[chosen + 1] - starts[chosen]
            ends = np.cumsum(lengths)
            place = np.arange(ends[-1]) + np.repeat(starts[chosen] - ends + lengths, lengths)
            value = values.index_select(dim, self._here(place))
            before = np.zeros(len(chosen), np.int64)
            if increments is not None:
                before = np.cumsum(increments[chosen]) - increments[chosen]
                shape = [-1 if d == dim % value.dim() else 1 for d in range(value.dim())]
                value = value + self._here(np.repeat(before, lengths)).view(shape)
            made[key] = value
            slices[key], added[key] = torch.from_numpy(np.concatenate([[0], ends])), torch.from_numpy(before)
        sizes = self.sizes[chosen]
        if self.counted:
            made.num_nodes = int(sizes.sum())
            made._store._num_nodes = sizes.tolist()
        made.batch = self._here(np.repeat(np.arange(len(chosen)), sizes))
        made.ptr = self._here(np.concatenate([[0], np.cumsum(sizes)]))
        made._num_graphs, made._slice_dict, made._inc_dict = len(chosen), slices, added
        return made  # type: ignore[no-any-return]

    def _here(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def batches(self, size: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Rows of batches of `size` graphs, shuffled where there is a generator; a last one of a single graph joins the one before.

        Batch normalisation needs two graphs at least.
        """
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        cut = list(order.split(size)) if len(self) else []
        if len(cut) > 1 and len(cut[-1]) == 1:
            cut[-2:] = [torch.cat(cut[-2:])]
        return cut
