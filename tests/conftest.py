"""What tests share: small graphs on disk, the command line in this process, the mirrored data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticework.cli import run as run_command
from latticework.data.graph import Graph, finish, write_graph


@pytest.fixture
def mirror() -> Callable[[str], Path]:
    """The path of a mirrored data set, or a skip that names it."""

    def find(name: str) -> Path:
        root = os.environ.get("LATTICEWORK_DATA")
        if not root or not (Path(root) / name).is_dir():
            pytest.skip(f"needs the data set {name} under LATTICEWORK_DATA")
        return Path(root) / name

    return find


def blocks(n: int = 60, classes: int = 3, seed: int = 0, features: int = 4, directed: bool = False) -> Graph:
    """A homophilous block graph whose features say a little about the class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    joined = np.triu(rng.random((n, n)) < np.where(y[:, None] == y[None], 0.3, 0.03), 1)
    u, v = np.nonzero(joined)
    x = rng.normal(size=(n, features)).astype(np.float32)
    x[:, 0] += y
    return finish(
        Graph(
            np.stack([u, v]), tuple(f"node {i}" for i in range(n)), x=x, y=y.astype(np.int64),
            classes=tuple(f"class {c}" for c in range(classes)), features=tuple(f"f{i}" for i in range(features)),
        ),
        None if directed else False,
    )  # fmt: skip


@pytest.fixture
def make_blocks() -> Callable[..., Graph]:
    return blocks


@pytest.fixture
def graph_folder(tmp_path: Path) -> Path:
    """A user's folder with a block graph."""
    write_graph(blocks(), tmp_path / "my-graph")
    return tmp_path / "my-graph"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command line: (exit status, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run_command([str(w) for w in words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
