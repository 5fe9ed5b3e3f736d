"""Every method for links that stands in the wing's own list, and the catalogue's graphs, through the batteries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latticework.core.grid import entry_of
from latticework.links.tasks import LinkPrediction
from latticework.testing import check_data, check_method
from latticework.testing.links import check_no_link_leak

FINGERPRINTS = Path(__file__).parent / "fingerprints_links.json"
TASK = LinkPrediction(k=5)
METHODS = (
    "common-neighbours", "adamic-adar", "resource-allocation", "katz", "personalised-pagerank", "link-mf(hidden=8; epochs=4)",
    "gcn-links(hidden=8; epochs=4)", "gcn-links(hidden=8; epochs=4; decoder=mlp; norm=layer; residual=true)",
    "sage-links(hidden=8; epochs=4)", "link-readout(encoder=fastrp(dim=8))", "link-readout(encoder=svd(dim=8))",
)  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    check_method(entry_of(name), "karate", TASK, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("name", METHODS)
def test_no_leak(name: str) -> None:
    check_no_link_leak(TASK, "karate", entry_of(name))


def test_hard_negatives_and_tuning() -> None:
    check_method(entry_of("gcn-links(hidden=8; epochs=3)"), "karate", LinkPrediction(k=5, negatives="hard", against=10))
    check_method(entry_of("tuned(method=gcn-links(hidden=8; epochs=2); trials=2)"), "karate", TASK)


def test_a_gradco_and_a_deepwalk_can_be_read() -> None:
    for name in ("gradco(dim=8)", "deepwalk(dim=8; walks=2; length=8)"):
        check_method(entry_of(f"link-readout(encoder={name})"), "karate", TASK)


@pytest.mark.parametrize("name", ["usair", "ns", "pb", "yeast", "celegans", "power", "router", "ecoli"])
def test_data(name: str, mirror: Any) -> None:
    mirror("seal-links")
    check_data(f"seal-links:{name}")
