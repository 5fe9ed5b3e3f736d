"""A cloud from several sides, four times: what is said, the partition, its uncertainty, the bound."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SIDES = (("front", 10, -60), ("side", 10, 30), ("above", 75, -60))
MOST_POINTS = 300  # drawn of a cloud


def sides(xyz: Array, said: Array, parts: Array, uncertainty: Array, bound: Array, title: str) -> str:
    """SVG text: rows are the four things, columns the sides. Deterministic."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    chosen = np.arange(len(xyz))
    if len(xyz) > MOST_POINTS:
        chosen = np.random.default_rng(len(xyz)).permutation(len(xyz))[:MOST_POINTS]
    figure = Figure(figsize=(7.2, 9.0), layout="constrained")
    FigureCanvasSVG(figure)
    told = (
        ("predicted parts", said, "tab20", None), ("estimated partition", _shuffled(parts), "gist_ncar", None),
        ("uncertainty", uncertainty, "viridis", (0.0, 1.0)), ("bound: uncertainty + impure", bound, "magma", (0.0, 1.0)),
    )  # fmt: skip
    middle = (xyz.max(0) + xyz.min(0)) / 2
    half = max(float(np.ptp(xyz, axis=0).max()) / 2, 1e-12)
    for row, (name, values, colours, limits) in enumerate(told):
        drawn: Any = None
        axes: list[Any] = []
        for column, (side, high, around) in enumerate(SIDES):
            ax = figure.add_subplot(len(told), len(SIDES), row * len(SIDES) + column + 1, projection="3d")
            axes.append(ax)
            points = xyz[chosen]
            low, top = limits or (0.0, max(float(values.max(initial=1)), 1.0))
            drawn = ax.scatter(
                points[:, 0], points[:, 2], points[:, 1], c=values[chosen], cmap=colours, vmin=low, vmax=top, s=3, linewidths=0,
                depthshade=False,
            )  # fmt: skip
            for set_limits, centre in ((ax.set_xlim, middle[0]), (ax.set_ylim, middle[2]), (ax.set_zlim, middle[1])):
                set_limits(centre - half, centre + half)
            ax.view_init(high, around)
            ax.set_axis_off()
            ax.set_title(f"{name}, {side}" if column == 0 else side, fontsize=8)
        if limits:
            figure.colorbar(drawn, ax=axes, shrink=0.6).ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "latticework"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _shuffled(parts: Array) -> Array:
    """Numbers in another order, so that neighbours differ in colour."""
    many = int(parts.max(initial=0)) + 1
    return np.random.default_rng(many).permutation(many)[parts]
