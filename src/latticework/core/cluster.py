"""Cells as Ray tasks over a shared ledger folder. A worker that dies is retried; its lock dies with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .evaluate import Options
    from .grid import Cell


def ray_map(
    todo: Sequence[int], cells: Sequence[Cell], root: str, options: Options, retry: bool, jobs: int
) -> Iterator[tuple[int, str]]:
    """Run cells on the Ray that is connected, or on a local one of `jobs` processors."""
    try:
        import ray
    except ImportError:
        raise UserError("--cluster ray needs Ray: pip install 'latticework[cluster]'") from None
    if not ray.is_initialized():
        ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False, configure_logging=False)
    from .grid import run_cell

    remote: Any = ray.remote(num_cpus=1, max_retries=10)(run_cell)
    waiting = {remote.remote(cells[i], root, options, retry): i for i in todo}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        for ref in done:
            yield waiting.pop(ref), ray.get(ref)
