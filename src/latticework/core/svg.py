"""Small charts as SVG text for findings, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


def bars(labels: Sequence[str], values: Sequence[float], title: str, along: str) -> str:
    """A bar for each label."""

    def draw(axes: Any) -> None:
        axes.bar(range(len(values)), values, color="#3b6ea5")
        stride = max(len(labels) // 20, 1)
        axes.set_xticks(range(0, len(labels), stride), labels[::stride])
        axes.set_xlabel(along)

    return picture(draw, title)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, along: str, *, log: bool = False, dots: bool = False
) -> str:
    """A line for each name through its points."""

    def draw(axes: Any) -> None:
        for name, points in series.items():
            axes.plot([p[0] for p in points], [p[1] for p in points], "o-" if dots else "-", label=name, markersize=3)
        axes.set_xlabel(along)
        if log:
            axes.set_xscale("log")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)

    return picture(draw, title)


def picture(draw: Any, title: str) -> str:
    """What `draw(axes)` paints, as SVG text."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.8), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    buffer = io.StringIO()
    # no date and a fixed salt: the same findings give the same bytes
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "latticework"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
