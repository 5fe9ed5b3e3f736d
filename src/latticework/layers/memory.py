"""How much memory is free, for estimates that are said before the work."""

from __future__ import annotations

import contextlib
from pathlib import Path


def free_memory() -> int | None:
    """Bytes that a process may still take: what the system calls available, or what a container leaves; none where neither says."""
    found = []
    with contextlib.suppress(OSError, StopIteration):
        line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
        found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(found), 0) if found else None
