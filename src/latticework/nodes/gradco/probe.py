"""The recipe of the probe `orbit-adjacencies`: the matrices as files, written block by block, and what they add up to."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pydantic import field_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import disk_errors, write_whole
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars
from latticework.core.value import setting
from latticework.layers.memory import free_memory

from .counts import DEGREE_ORBITS, GRAPHLETS, ORBITS, SIZES, Orbit, OrbitCounts, orbit_name, read_orbits
from .method import simple_adjacency

Array = NDArray[Any]
_ENTRY = 12  # bytes on disk: int64 value, int32 column
_CHUNK = 1 << 20


class CsrFile:
    """A CSR matrix [n, n] that is written as its rows come: the file that ``scipy.sparse.load_npz`` reads.

    Columns and values wait in two files beside it, since their number is known only at the end; :meth:`close` puts them
    together under the final name, at once. As a context manager it leaves nothing behind where an error comes between.
    """

    def __init__(self, path: Path, n: int, compress: bool = True) -> None:
        self.path, self.n, self.compress = path, n, compress
        self.sizes = [np.zeros(1, np.int64)]
        self._folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
        draft = Path(self._folder.name)
        self._drafts = draft / "columns", draft / "values"
        self._columns, self._values = self._drafts[0].open("wb"), self._drafts[1].open("wb")

    def __enter__(self) -> CsrFile:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for file in (self._columns, self._values):
            file.close()
        self._folder.cleanup()

    def append(self, block: sp.csr_array) -> None:
        """The next rows, int64, columns sorted."""
        with disk_errors(self.path):
            self._columns.write(np.ascontiguousarray(block.indices, np.int32))
            self._values.write(np.ascontiguousarray(block.data, np.int64))
        self.sizes.append(np.diff(block.indptr))

    def close(self) -> None:
        """Write the file."""
        with disk_errors(self.path):
            for file in (self._columns, self._values):
                file.close()
            indptr = np.cumsum(np.concatenate(self.sizes))
            entries = int(indptr[-1])
            draft = Path(self._folder.name) / "whole"
            kind = zipfile.ZIP_DEFLATED if self.compress else zipfile.ZIP_STORED
            with zipfile.ZipFile(draft, "w", kind, compresslevel=1 if self.compress else None) as archive:
                small = {
                    "indptr": indptr.astype(np.int32 if entries < 2**31 else np.int64), "format": np.array(b"csr"),
                    "shape": np.array([self.n, self.n]), "_is_array": np.array(True),
                }  # fmt: skip
                for name, array in small.items():
                    with archive.open(f"{name}.npy", "w") as member:
                        np.lib.format.write_array(member, array)
                for name, path, dtype in zip(("indices", "data"), self._drafts, ("<i4", "<i8"), strict=True):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member, path.open("rb") as source:
                        head = {"descr": dtype, "fortran_order": False, "shape": (entries,)}
                        np.lib.format.write_array_header_1_0(member, head)
                        shutil.copyfileobj(source, member, _CHUNK)
                    path.unlink()
            os.replace(draft, self.path)
        self._folder.cleanup()


class _Totals:
    """What is kept of a matrix that has passed by."""

    def __init__(self, n: int) -> None:
        self.entries, self.sum, self.largest = 0, 0, 0
        self.rows = np.zeros(n, np.int64)

    def add(self, start: int, block: sp.csr_array) -> None:
        sums = np.asarray(block.sum(axis=1)).ravel()
        self.rows[start : start + block.shape[0]] = sums
        self.entries += block.nnz
        self.sum += sum(int(part.sum()) for part in np.array_split(sums, 64))
        self.largest = max(self.largest, int(block.data.max(initial=0)))


class OrbitAdjacencies(Probe):
    """The 28 orbit adjacency matrices of a graph: how often two nodes sit together on two positions of a small pattern.

    ``O^h_ab[i, j]`` counts the graphlets (connected induced subgraphs of up to four nodes) that hold i on orbit a and j on
    orbit b at distance h inside the graphlet. With a folder to write to, each matrix becomes a file ``orbit-h-a-b.npz``
    (``scipy.sparse.load_npz``; CSR, sorted columns, int64; rows and columns in the order of ``nodes.csv``), and the graphlet
    degree vectors ``graphlet-degrees.csv`` (left out, and said so, where their memory lacks); without one they are counted and left. Rows are taken in blocks, so no matrix is
    ever in memory as a whole, and what memory and disk could be needed at most is worked out first and refused where there
    is less. Edges are taken both ways, self-loops are dropped, repeats count once, weights are refused.
    """

    name: ClassVar[str] = "orbit-adjacencies"
    kinds: ClassVar[tuple[str, ...]] = ("graph",)
    orbits: tuple[Orbit, ...] = setting(ORBITS, "all, or some of them, as in 2:1-1,3:4-4")
    compress: bool = setting(True, "smaller files, about a fifth of the size, written more slowly")
    block: int = setting(64, "megabytes of a block of rows", ge=1, le=65_536)

    @field_validator("orbits", mode="before")
    @classmethod
    def _some_of_28(cls, given: Any) -> tuple[Orbit, ...]:
        return read_orbits(given)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("orbit-adjacencies needs a graph")
        graph = data.read()
        A, notes = simple_adjacency(graph.edge_index, graph.nodes, graph.weight)
        try:
            counts = OrbitCounts(A)
        except ValueError as reason:
            raise UserError(f"orbits cannot be counted on this graph: {reason}") from None
        folder: Path | None = getattr(run, "folder", None)
        memory, disk = self._affordable(counts, folder)
        run.log(0, **{"memory at most, MB": memory / 1e6, "disk at most, MB": disk / 1e6})
        totals = {orbit: _Totals(counts.n) for orbit in self.orbits}
        files = self._pass(counts, totals, folder, run)
        degrees, left_out = self._degrees(counts)
        memory = max(memory, 0 if degrees is None else counts.need(DEGREE_ORBITS).memory)
        if folder is not None and degrees is not None:
            files.append(_write_degrees(degrees, graph.ids, folder))
        scalars: dict[str, Any] = {"nodes": counts.n, "edges": counts.m}
        for name, orbits in GRAPHLETS.items():
            if set(orbits) <= set(self.orbits):
                held = sum(totals[o].sum for o in orbits)
                scalars[f"graphlets: {name}"] = held // (SIZES[name] * (SIZES[name] - 1))
        scalars |= {"memory at most, MB": round(memory / 1e6, 1), "disk at most, MB": round(disk / 1e6, 1)}
        if notes:
            scalars["read as"] = "; ".join(notes)
        tables = {"orbit adjacencies": _rows(totals, counts.n, folder)}
        if degrees is None:
            scalars["graphlet degrees"] = left_out
        else:
            tables["graphlet degrees"] = _degree_rows(degrees)
        density = [totals[o].entries / max(counts.n * (counts.n - 1), 1) for o in self.orbits]
        figure = bars([orbit_name(o) for o in self.orbits], density, "share of pairs that are joined", "orbits")
        return Findings(scalars, tables, {"density": figure}, files)

    @staticmethod
    def _degrees(counts: OrbitCounts) -> tuple[Array | None, str]:
        """The graphlet degree vectors, which need the triangles whichever orbits are asked for; where memory lacks, why not."""
        need, free = counts.need(DEGREE_ORBITS).memory, free_memory()
        if free is not None and need > free:
            return None, f"left out: they may take {need / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
        return counts.node_orbits(), ""

    def _affordable(self, counts: OrbitCounts, folder: Path | None) -> tuple[int, int]:
        """Bytes of memory and of disk at most; refused where there are fewer."""
        need, free = counts.need(self.orbits, self.block << 20), free_memory()
        if free is not None and need.memory > free:
            raise UserError(
                f"counting may take {need.memory / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; leave out the patterns "
                "with triangles, as in -s orbits=1:1-2,2:1-1, or take a smaller -s block"
            )
        entries = sum(need.far if h == 3 else need.pairs if h == 2 else 2 * counts.m for h, _, _ in self.orbits)
        if folder is None:
            return need.memory, 0
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # a matrix stands twice while its file is put together, one at a time
        disk = _ENTRY * (entries + max(need.far, need.pairs, 2 * counts.m))
        room = shutil.disk_usage(folder).free
        if disk > room:
            raise UserError(
                f"the matrices may take {disk / 1e9:.1f} GB in {folder} while they are written (3:4-4 up to {need.far:,} entries, "
                f"each at distance two up to {need.pairs:,}), and {room / 1e9:.1f} GB are free; ask for fewer with -s orbits=…"
            )
        return need.memory, disk

    def _pass(self, counts: OrbitCounts, totals: Mapping[Orbit, _Totals], folder: Path | None, run: Run) -> list[Path]:
        files: list[Path] = []
        with ExitStack() as stack:
            open_files: dict[Orbit, CsrFile] = {}
            if folder is not None:
                for orbit in self.orbits:
                    path = folder / "orbit-{}-{}-{}.npz".format(*orbit)
                    open_files[orbit] = stack.enter_context(CsrFile(path, counts.n, self.compress))
            for step, (start, found) in enumerate(counts.blocks(self.orbits, self.block << 20)):
                for orbit, part in found.items():
                    totals[orbit].add(start, part)
                    if folder is not None:
                        open_files[orbit].append(part)
                run.log(step, rows=start)
            for step, file in enumerate(open_files.values()):
                file.close()
                files.append(file.path)
                run.log(step, files=step + 1)
        return files


def _rows(totals: Mapping[Orbit, _Totals], n: int, folder: Path | None) -> list[dict[str, Any]]:
    graphlet = {orbit: name for name, orbits in GRAPHLETS.items() for orbit in orbits}
    return [
        {
            "orbits": orbit_name(orbit), "graphlet": graphlet[orbit], "entries": found.entries,
            "density": found.entries / max(n * (n - 1), 1), "sum": found.sum, "largest": found.largest,
            "file": "" if folder is None else "orbit-{}-{}-{}.npz".format(*orbit),
        }
        for orbit, found in totals.items()
    ]  # fmt: skip


def _degree_rows(degrees: Array) -> list[dict[str, Any]]:
    return [
        {"orbit": o, "nodes on it": int((column > 0).sum()), "mean": float(column.mean()), "largest": int(column.max(initial=0))}
        for o, column in enumerate(degrees.T)
    ]


def _write_degrees(degrees: Array, ids: tuple[str, ...], folder: Path) -> Path:
    import polars as pl

    path = folder / "graphlet-degrees.csv"
    columns = {f"orbit {o}": degrees[:, o] for o in range(degrees.shape[1])}
    write_whole(path, pl.DataFrame({"id": list(ids), **columns}).write_csv())
    return path
