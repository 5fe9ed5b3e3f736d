"""Graphs by name that are published for link prediction: nodes without features or labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .graph import Graph, GraphDataset, finish
from .mirror import locate, read_arrays

# name -> (file name, SHA-256)
_FILES: Mapping[str, tuple[str, str]] = {
    "usair": ("USAir.npz", "9739fb9ee92a446e91583e35b15b5fc1dae896844a60a5ddef3467828db5f35b"),
    "ns": ("NS.npz", "8f15e4e1100e24dfd30639d80dba4920028944d8bbd9ff7351639a99a6fdfc83"),
    "pb": ("PB.npz", "9d1b3a30ce61f1b9829c870aa57686af744a0ae79dc82509995fae3e8ce7448b"),
    "yeast": ("Yeast.npz", "26410e4a1c90739b33d47fb79507927b218c98caca61f6987a7cd1c3954285f4"),
    "celegans": ("Celegans.npz", "dc7707e5b45a138fc0dc2140af660312b9ad15d62bee38f4ffbc186c33dc0a0e"),
    "power": ("Power.npz", "351e51ca9aaf30dd2eab209511c4d23a565c63e608c3616c46dbe801e1f14f35"),
    "router": ("Router.npz", "b7ab3858c67f2940e415eabb91460bbedfa3a7569fa60f667d040f2cac6c5552"),
    "ecoli": ("Ecoli.npz", "d257b7d841af35f255fc122617a6cd39a9c133fc9facc7fdddefa1ba8b8ab518"),
}


class MirroredLinks(GraphDataset):
    """One of the eight graphs that SEAL is judged on (Zhang and Chen, NeurIPS 2018): undirected, no weights, no features."""

    name: ClassVar[str] = "mirrored-links"
    file: str = setting(..., f"one of {', '.join(_FILES)}")

    def _entry(self) -> tuple[str, str]:
        if self.file not in _FILES:
            raise UserError(f"no graph of seal-links is called {self.file!r}; known: {', '.join(_FILES)}")
        return _FILES[self.file]

    def digest(self) -> str:
        return digest_of([self._entry()[1], self.revision])

    def read(self) -> Graph:
        file, sha = self._entry()
        return _read(locate("seal-links", file, sha))


@lru_cache(maxsize=8)
def _read(path: Path) -> Graph:
    parts = read_arrays(path)
    edges = parts["edges"].astype(np.int64).T
    return finish(Graph(np.ascontiguousarray(edges), tuple(str(i) for i in range(int(parts["num_nodes"])))), False)
