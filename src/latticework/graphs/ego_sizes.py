"""The probe `ego-sizes`: what a local equivariant network (`spen`) would hold of a graph set, against a global one (`ign`)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars, lines
from latticework.core.value import setting

from .spen.egos import alike, edge_channels, egos_of, union_of
from .spen.method import checked_cap, weight_sizes
from .spen.network import weight_size

Array = NDArray[Any]
STEPS = (1, 10, 20, 30, 50, 100, 200, 300, 500, 1000)


class EgoSizes(Probe):
    """Sizes of the ego networks, which of them carry own weights, how many are the same, and what is held a channel.

    A local network holds ``sum m^2`` numbers over the egos, a global one ``sum n^2`` over the graphs. Above 1 the ratio is what
    going local saves; below 1 it costs more. Egos are the same where the first layer of `spen` is given the same input, up to
    the order of their nodes: that layer computes them once.
    """

    name: ClassVar[str] = "ego-sizes"
    kinds: ClassVar[tuple[str, ...]] = ("graph-set",)
    hops: int = setting(1, "k: an ego holds the nodes within k hops of its root", ge=1, le=64)
    cap: int | str = setting("p90", "largest ego size with weights of its own; pK: the K-th percentile of all sizes")
    max_ego: int = setting(200, "egos with more nodes are counted as too large for spen as it is set", ge=1)

    _cap = field_validator("cap")(checked_cap)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("ego-sizes needs a graph set")
        given = data.read()
        graphs = given.graphs()
        union = union_of(graphs)
        egos = egos_of(union, self.hops)
        kinds = int(alike(graphs, union, egos, edge_channels(graphs, union))[1].max()) + 1
        nodes, area = np.diff(union.ptr), egos.size**2
        local = np.add.reduceat(area, egos.ptr[:-1])
        own = weight_sizes(egos.size, self.cap)
        largest = int(egos.size.argmax())
        graph = int(np.searchsorted(union.ptr, largest, "right")) - 1
        ratio = float((nodes**2).sum() / local.sum())
        scalars: dict[str, Any] = {
            "graphs": len(graphs),
            "egos": len(egos.size),
            "smallest ego": int(egos.size.min()),
            "median ego": float(np.median(egos.size)),
            "largest ego": int(egos.size[largest]),
            "where it is": f"node {largest - int(union.ptr[graph])} of graph {given.ids[graph]}",
            "egos above max_ego": int((egos.size > self.max_ego).sum()),
            "weight sets": len(own),
            "share of egos with weights of another size": float((~np.isin(egos.size, own)).mean()),
            "floats a channel, local": int(local.sum()),
            "floats a channel, global": int((nodes**2).sum()),
            "global over local": ratio,
            "says": f"egos of {self.hops} hop{'s' if self.hops > 1 else ''} hold "
            + (f"{ratio:.3g} times less than" if ratio > 1 else f"{1 / ratio:.3g} times as much as")
            + " a global network of equal width",
            "egos with different input": kinds,
            "share of egos computed once for several": 1 - kinds / len(egos.size),
        }
        values, counts = np.unique(egos.size, return_counts=True)
        sizes = [
            {
                "ego size": m, "egos": c, "share": c / len(egos.size), "weights": "its own" if m in own else f"of size {weight_size(m, own)}",
            }
            for m, c in zip(values.tolist(), counts.tolist(), strict=True)
        ]  # fmt: skip
        by_size = []
        for low, high in zip(STEPS, (*STEPS[1:], np.inf), strict=True):
            rows = (nodes >= low) & (nodes < high)
            if rows.any():
                word = f"{low} to {int(high) - 1}" if np.isfinite(high) else f"{low} or more"
                found = float((nodes[rows] ** 2).sum() / local[rows].sum())
                by_size.append({"nodes": word, "graphs": int(rows.sum()), "global over local": found})
        for low in (100, 300):
            rows = nodes >= low
            if rows.any():
                scalars[f"global over local, graphs of {low} nodes or more"] = float((nodes[rows] ** 2).sum() / local[rows].sum())
        order = np.argsort(nodes, kind="stable")
        points = [(float(nodes[g]), float(nodes[g] ** 2 / local[g])) for g in order[:: max(len(order) // 400, 1)].tolist()]
        figures = {
            "egos by size": bars(
                [str(r["ego size"]) for r in sizes], [float(r["egos"]) for r in sizes], "egos by size", "nodes in the ego"
            ),
            "global over local by graph": lines(
                {"graphs": points}, "numbers held, global over local", "nodes of the graph", dots=True
            ),
        }
        return Findings(scalars, {"ego sizes": sizes, "by nodes of the graph": by_size}, figures)
