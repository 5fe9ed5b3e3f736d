"""Latticework: published methods for learning on networks and frames behind one small interface.

    import latticework as lw

    board = lw.compare("digits-knn", methods=["mlp", "gcn", "dagnn"], repeats=5)
    board.report("report.html")
    model = lw.fit("dagnn", "my-graph/", hops=20)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ._face import Answers, Board, Fitted, compare, dataset, datasets, embed, fit, load, methods, probe, report, score

__all__ = [
    "Answers", "Board", "Fitted", "__version__", "compare", "dataset", "datasets", "embed", "fit", "load", "methods", "probe",
    "report", "score",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import _face

        return getattr(_face, name)
    raise AttributeError(f"module 'latticework' has no attribute {name!r}")
