"""Sets of small graphs: reading tu-nci1 against PyG's TUDataset and a loop over lines, graph6 and WL against networkx, by size."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from latticework.core.dataset import open_data
from latticework.data.graph_texts import read_graph6, read_text, read_tu, write_graphs
from latticework.data.graphs import GraphSet, facts, wl_colours
from latticework.data.mirror import locate
from latticework.data.tu_sets import _FILES


def seconds(call: Callable[[], Any], times: int = 2) -> tuple[float, Any]:
    """(the shortest of some calls, what the last gave)."""
    best, found = float("inf"), None
    for _ in range(times):
        before = time.perf_counter()
        found = call()
        best = min(best, time.perf_counter() - before)
    return best, found


def loop(path: Path) -> list[Any]:
    """The text form as training scripts read it: line by line into lists, one Data a graph."""
    import torch
    from torch_geometric.data import Data

    graphs = []
    with path.open() as file:
        for _ in range(int(file.readline())):
            n, label = map(int, file.readline().split())
            tags, ends = [], []
            for v in range(n):
                words = [int(w) for w in file.readline().split()]
                tags.append(words[0])
                ends += [(v, u) for u in words[2 : 2 + words[1]]]
            graphs.append((tags, torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).t(), label))
    place = {t: i for i, t in enumerate(sorted({t for tags, _, _ in graphs for t in tags}))}
    eye = torch.eye(len(place))
    return [Data(x=eye[[place[t] for t in tags]], edge_index=edges, y=label) for tags, edges, label in graphs]


def as_list(of: GraphSet) -> list[Any]:
    return of.graphs()


def run() -> list[dict[str, Any]]:
    import networkx as nx
    from torch_geometric.data import Data
    from torch_geometric.io import read_tu_data

    rows: list[dict[str, Any]] = []
    entry = _FILES["tu-nci1"]
    text = locate(entry.folder, entry.file, entry.sha)
    ours, of = seconds(lambda: read_text(text))
    listed, graphs = seconds(lambda: as_list(read_text(text)))
    peer, theirs = seconds(lambda: loop(text))
    assert all(
        (a.x == b.x).all() and (a.edge_index == b.edge_index).all() for a, b in zip(graphs[::97], theirs[::97], strict=True)
    )
    rows.append(
        {
            "name": "tu-nci1 from its text to a list of Data", "ours_s": listed, "reading_s": ours, "peer": "a loop over lines",
            "peer_s": peer, "ratio": peer / listed, "graphs": len(of), "graphs a second": len(of) / listed,
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_graphs(of, Path(folder) / "NCI1")

        def pyg() -> list[Any]:
            data, slices, _ = read_tu_data(str(Path(folder) / "NCI1"), "NCI1")
            x, e = slices["x"].tolist(), slices["edge_index"].tolist()
            ends = zip(x[:-1], x[1:], e[:-1], e[1:], strict=True)
            return [Data(x=data.x[a:b], edge_index=data.edge_index[:, c:d], y=data.y[g]) for g, (a, b, c, d) in enumerate(ends)]

        listed, graphs = seconds(lambda: as_list(read_tu(Path(folder) / "NCI1")))
        peer, theirs = seconds(pyg)
    assert all(
        (a.x == b.x).all() and (a.edge_index == b.edge_index).all() for a, b in zip(graphs[::97], theirs[::97], strict=True)
    )
    rows.append(
        {
            "name": "tu-nci1 from a TUDataset folder to a list of Data", "ours_s": listed, "peer": "PyG's read_tu_data and slices",
            "peer_s": peer, "ratio": peer / listed,
        }
    )  # fmt: skip
    for share in (4, 2, 1):  # growth with size
        part = of.take(np.arange(0, len(of), share))
        with tempfile.TemporaryDirectory() as folder:
            write_graphs(part, Path(folder) / "PART")
            taken, _ = seconds(lambda folder=folder: read_tu(Path(folder) / "PART"))  # type: ignore[misc]
        fact, _ = seconds(lambda part=part: (part._cache.clear(), facts(part)))  # type: ignore[misc]
        rows.append(
            {
                "name": f"reading {len(part)} graphs of tu-nci1 from a folder",
                "ours_s": taken,
                "nodes": part.nodes,
                "facts_s": fact,
            }
        )

    entry = _FILES["graph-separation:graph8c"]
    lines = locate(entry.folder, entry.file, entry.sha)
    ours, eight = seconds(lambda: read_graph6(lines))
    peer, _ = seconds(lambda: [np.array(nx.from_graph6_bytes(line).edges) for line in lines.read_bytes().split()])
    rows.append(
        {
            "name": "11,117 graphs of graph6", "ours_s": ours, "peer": "networkx.from_graph6_bytes", "peer_s": peer, "ratio": peer / ours,
            "graphs a second": len(eight) / ours,
        }
    )  # fmt: skip
    small = open_data("tu-mutag").read()
    with_tags = []
    for data in small.graphs():
        graph = nx.Graph(data.edge_index.T.tolist())
        nx.set_node_attributes(graph, dict(enumerate(map(str, data.x.argmax(1).tolist()))), "tag")
        with_tags.append(graph)
    ours, colours = seconds(lambda: (small._cache.clear(), wl_colours(small, 3))[1])
    peer, hashes = seconds(lambda: [nx.weisfeiler_lehman_graph_hash(g, node_attr="tag", iterations=3) for g in with_tags])
    rows.append(
        {
            "name": "WL classes of tu-mutag, 3 rounds", "ours_s": ours, "peer": "networkx.weisfeiler_lehman_graph_hash", "peer_s": peer,
            "ratio": peer / ours, "classes": int(colours.max()) + 1, "theirs": len(set(hashes)),
        }
    )  # fmt: skip
    return rows
