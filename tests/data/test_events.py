"""Events: reading, order, numbering, dates, writing; the catalogue; what is refused stands in the corpus of bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latticework as lw
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.events import Events, GivenEvents, in_order, match_schema, matched, read_events, schema_of
from latticework.testing import check_data


def written(folder: Path, text: str) -> Events:
    (folder / "events.csv").write_text(text, encoding="utf-8")
    return read_events(folder)


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_sorted_stably_and_numbered_by_first_appearance(rows: list[tuple[int, int, int]]) -> None:
    src, dst, t = (np.array(c) for c in zip(*rows, strict=True))
    events = in_order(Events(tuple("abcdefghij"), src, dst, t.astype(float), weight=np.arange(len(rows), dtype=np.float32)))
    told = sorted(range(len(rows)), key=lambda k: rows[k][2])
    names = [(("abcdefghij"[rows[k][0]]), "abcdefghij"[rows[k][1]]) for k in told]
    assert [(events.ids[a], events.ids[b]) for a, b in zip(events.src, events.dst, strict=True)] == names
    assert events.weight is not None and events.weight.tolist() == told
    assert list(events.ids) == list(dict.fromkeys(n for pair in names for n in pair))
    for k in range(len(rows) + 1):
        first = events.rows(0, k)
        assert first.nodes == len({*first.src, *first.dst}) and len(first) == k
        again = events.rows(k, len(events)).rows(0, 0)
        assert again.ids == first.ids  # a slice of a slice knows what came before


def test_other_header_bom_crlf_and_order(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes("\ufefftime,to,size,from\r\n5,b,2,a\r\n1,c,3,b\r\n1,a,4,c\r\n".encode())
    events = read_events(tmp_path)
    assert events.ids == ("b", "c", "a") and events.t.tolist() == [1, 1, 5] and events.features == ("size",)
    assert events.x is not None and events.x[:, 0].tolist() == [3, 4, 2]
    assert any("1 events stood before an earlier one" in n for n in events.notes)
    assert any("1 events share the time" in n for n in events.notes)


def test_dates_keep_their_zone(tmp_path: Path) -> None:
    events = written(tmp_path, "source,target,time\na,b,2024-01-01T00:00:00+01:00\nb,c,2024-01-01T00:30:00Z\n")
    assert (events.t[1] - events.t[0]) == 5400 and events.t[1] == 1704069000
    plain = written(tmp_path, "source,target,time\na,b,2024-01-01\nb,c,1969-12-31\n")
    assert plain.t.tolist() == [-86400, 1704067200] and any("in UTC" in n for n in plain.notes)


def test_times_keep_full_precision_and_ids_are_text(tmp_path: Path) -> None:
    events = written(tmp_path, "source,target,time\n01,1,1453684323.756\n1,1.0,1453684323.757\n")
    assert events.ids == ("01", "1", "1.0") and events.t[1] - events.t[0] == pytest.approx(0.001, abs=1e-6)


def test_signs(tmp_path: Path) -> None:
    signed = written(tmp_path, "source,target,time,sign,weight\na,b,1,+,3\nb,a,2,-,2\n")
    assert signed.signed and signed.weight is not None and signed.weight.tolist() == [3, -2]
    by_weight = written(tmp_path, "source,target,time,weight\na,b,1,3\nb,a,2,-2\n")
    assert by_weight.signed and by_weight.features == ()
    plain = written(tmp_path, "source,target,time,weight\na,b,1,3\nb,a,2,0\n")
    assert not plain.signed and plain.weight is not None


@pytest.mark.parametrize(
    "text",
    [
        "source,target,time,sign\na,b,1,1\nb,c,2,1\n",
        "source,target,time,weight\na,b,0.5,-1.5\nb,b,2,2\n",
        "source,target,time,x,y\na,b,1,0.1,2\nb,c,2,3,4\n",
    ],
)
def test_export_reads_back(text: str, tmp_path: Path) -> None:
    events = written(tmp_path, text)
    lw.dataset(events).write(tmp_path / "out")
    again = read_events(tmp_path / "out")
    for name in ("ids", "features", "signed"):
        assert getattr(events, name) == getattr(again, name)
    for name in ("src", "dst", "t", "weight", "x"):
        assert np.array_equal(getattr(events, name), getattr(again, name)) or getattr(events, name) is None


def test_pyg_and_kind_by_header(tmp_path: Path) -> None:
    from torch_geometric.data import TemporalData

    data = TemporalData(
        src=torch.tensor([3, 1]), dst=torch.tensor([1, 3]), t=torch.tensor([5, 2]), msg=torch.tensor([[1.0], [2.0]])
    )
    events = lw.dataset(data).read()
    assert events.ids == ("1", "3") and events.t.tolist() == [2, 5] and events.x.tolist() == [[2.0], [1.0]]
    (tmp_path / "log.csv").write_text("src,dst,timestamp\na,b,1\n")
    assert open_data(tmp_path / "log.csv").kind == "events"
    (tmp_path / "links.csv").write_text("src,dst\na,b\n")
    assert open_data(tmp_path / "links.csv").kind == "graph"


def test_matched_by_name() -> None:
    fitted = schema_of(Events(("a", "b", "c"), np.array([0]), np.array([1]), np.array([0.0])))
    new = in_order(Events(("z", "b"), np.array([0, 1]), np.array([1, 0]), np.array([1.0, 2.0])))
    found = match_schema(new, fitted)
    assert found.ids == ("a", "b", "c", "z") and found.src.tolist() == [3, 1] and found.dst.tolist() == [1, 3]
    assert matched(found, list(found.ids)).ids == found.ids
    with pytest.raises(UserError, match="fitted with the event column 'size'"):
        match_schema(new, {**fitted, "features": ["size"]})
    with pytest.raises(UserError, match="fitted on signed events"):
        match_schema(new, {**fitted, "signed": True})


@pytest.mark.parametrize(
    ("name", "events", "nodes"),
    [("college-msg", 59835, 1899), ("enron-temporal", 125235, 184), ("wikipedia-temporal", 157474, 9227),
     ("bitcoin-otc", 35592, 5881), ("bitcoin-alpha", 24186, 3783)],
)  # fmt: skip
def test_catalogue(name: str, events: int, nodes: int, mirror: Any) -> None:
    mirror(name)
    facts = lw.dataset(name).facts()
    assert (facts["events"], facts["nodes"]) == (events, nodes)
    assert facts["bipartite"] == (name == "wikipedia-temporal") and facts["signed"] == name.startswith("bitcoin")


def test_batteries() -> None:
    rng = np.random.default_rng(0)
    log = Events(tuple("abcd"), rng.integers(4, size=30), rng.integers(4, size=30), np.sort(rng.random(30)))
    check_data(GivenEvents.hold(log))


def test_events_made_in_python_are_looked_at() -> None:
    import torch
    from torch_geometric.data import TemporalData

    src, dst, t = torch.tensor([0, 10**8, 5]), torch.tensor([5, 5, 0]), torch.tensor([1.0, 2.0, 3.0])
    held = open_data(TemporalData(src=src, dst=dst, t=t, msg=torch.ones(3))).read()
    assert set(held.ids) == {"0", "5", "100000000"} and held.x is not None and held.x.shape == (3, 1)
    for fields, says in (
        ({"src": torch.tensor([0, -1, 5])}, "names node -1"),
        ({"t": torch.tensor([1.0, float("nan"), 3.0])}, r"the time of event 1, .* is nan \(1 such\)"),
        ({"msg": torch.tensor([[1.0], [1.0], [float("inf")]])}, "the x0 of event 2, '5' to '0', is inf"),
        ({"msg": torch.ones(2, 1)}, "2 rows of msg for 3 events"),
    ):
        with pytest.raises(UserError, match=says):
            open_data(TemporalData(**({"src": src, "dst": dst, "t": t} | fields)))
    with pytest.raises(UserError, match="the time of event 1, 'b' to 'a', is nan"):
        GivenEvents.hold(Events(("a", "b"), np.array([0, 1, 0]), np.array([1, 0, 1]), np.array([1.0, np.nan, 3.0])))


def test_a_column_of_the_first_name_is_taken_before_its_other_names(tmp_path: Path) -> None:
    events = written(tmp_path, "to,t,source,target,time\n9,7,a,b,1\n")
    assert events.ids == ("a", "b") and events.t.tolist() == [1.0] and events.features == ("to", "t")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source,target,time,weight\na,b,1,1e50\n", "line 2, column 'weight': 1e50 is too large"),
        ("source,target,time,weight\na,b,1,2\nb,a,2,-1e-50\n", "line 3, column 'weight': -1e-50 is too small"),
        ("source,target,time,sign,weight\na,b,1,-1,1e-60\n", "line 2, column 'weight': 1e-60 is too small"),
        ("source,target,time,size\na,b,1,2\nb,a,2,-1e60\n", "line 3, column 'size': -1e60 is too large"),
    ],
)
def test_numbers_that_single_precision_does_not_hold_are_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        written(tmp_path, text)
    tiny = written(tmp_path, "source,target,time,weight\na,b,1,1e-60\n")  # a weight without a sign may well be 0
    assert tiny.weight is not None and tiny.weight.tolist() == [0.0]


def test_times_that_come_out_tied_are_told(tmp_path: Path) -> None:
    near = written(tmp_path, "source,target,time\na,b,1700000000000000001\nb,a,1700000000000000002\n")
    assert near.t[0] == near.t[1] and any("keeps steps of 256" in n for n in near.notes)
    finer = written(tmp_path, "source,target,time\na,b,2024-01-01T00:00:00.0000001\nb,a,2024-01-01T00:00:00.500000000\n")
    assert any("1 dates name less than a millionth of a second" in n for n in finer.notes)


def test_a_parquet_column_of_another_kind_is_named(tmp_path: Path) -> None:
    import datetime

    import polars as pl

    columns = {"source": ["a"], "target": ["b"], "time": [datetime.timedelta(hours=1)]}
    pl.DataFrame(columns).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(UserError, match="column 'time': Duration"):
        read_events(tmp_path)


def test_columns_that_are_none_of_the_models_are_told() -> None:
    log = Events(("a", "b"), np.array([0]), np.array([1]), np.array([0.0]), x=np.array([[1.0, 2.0]]), features=("p", "q"))
    with pytest.warns(UserWarning, match="1 columns of the events are none of the model's and left out: 'q'"):
        found = match_schema(log, {**schema_of(log), "features": ["p"]})
    assert found.x is not None and found.x.tolist() == [[1.0]]
    with pytest.warns(UserWarning, match="2 columns"):
        assert match_schema(log, {**schema_of(log), "features": []}).x is None
