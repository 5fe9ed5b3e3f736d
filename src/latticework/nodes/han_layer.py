"""PyG's ``HANConv`` by row sums: on whole meta-path graphs its messages, edges x width, would not fit into a small memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.nn import HANConv

from latticework.layers.attention import Edges, attend, attention_weights


class HANLayer(HANConv):
    """The same parameters, maps and attention over meta-paths; node attention is `attend`'s, along `Edges` [targets, sources]."""

    def propagate(self, edge_index: Edges, size: Any = None, **inputs: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        (sources, _), (there, here) = inputs["x"], inputs["alpha"]
        a = attention_weights(here, there, edge_index, self.negative_slope, self.dropout, self.training)
        return attend(a, sources, edge_index).flatten(1)
