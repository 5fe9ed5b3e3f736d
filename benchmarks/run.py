"""All benchmarks: ``make bench`` prints a table and writes ``benchmarks/results.json``.

Each file here has ``run() -> list of rows``; a row has a name, seconds of ours, and the peer's with the ratio (above 1 where
ours is faster), measured in one process. Nothing here is a test: machines are noisy, ratios less so.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = (
    "start", "table", "grid", "propagation", "attention", "fastrp", "dagnn", "adpa", "hnerv", "stitchable",
    "gradco", "lagnn", "hei", "latte", "meow", "light_hgnn", "fed_pub", "events",
    "neural_common_neighbor", "topological_concentration", "sheaf_recsys", "nat", "evolvegcn", "semba", "pres",
    "graph_sets", "graph_tasks", "k_path", "spen", "learnable_monoid", "selective_scan", "graph_mamba", "points", "frame_averaging",
    "apen",
)  # fmt: skip


def main(names: list[str]) -> None:
    """Run the benchmarks of these names, all where none is given."""
    sys.path.insert(0, str(HERE))
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    path = HERE / "results.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names or NAMES:
        started = time.monotonic()
        try:
            rows = importlib.import_module(name).run()
        except Exception as error:  # one benchmark without its data or its peer does not stop the rest
            rows = [{"name": f"did not run: {type(error).__name__}: {error}"}]
        found[name] = {
            "rows": rows,
            "seconds": round(time.monotonic() - started, 1),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        print(f"\n{name} ({found[name]['seconds']} s)")
        for row in rows:
            shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "name")
            print(f"  {row['name']}: {shown}", flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
