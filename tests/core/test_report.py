"""The report: what it shows, that it holds no outside address, and that nothing given to it becomes markup."""

from __future__ import annotations

import base64
import itertools
import math
import re
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from latticework.core import report
from latticework.core.board import Board
from latticework.core.ledger import Ledger
from latticework.core.result import Score


def sibling(name: str) -> ModuleType:
    """Another test file's helpers."""
    spec = spec_from_file_location(f"shared_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # annotations are looked up there
    spec.loader.exec_module(module)
    return module


toys = sibling("test_board")
HOSTILE = "<script>document.title='owned'</script>"
SVG = "<svg width='200' height='60'><script>document.title='owned'</script><path d='M5,55 L60,20 L195,5' stroke='black' fill='none'/></svg>"


def synthetic(ledger: Ledger | None = None, sets: int = 4, names: tuple[str, ...] = ()) -> Board:
    """A board with everything on it: several data sets, failures, stopped fits, slices, curves, operating points, findings."""
    ledger = ledger or Ledger()
    rng = np.random.default_rng(11)
    means = {
        "dagnn": (0.842, 22.0), "gcn, tuned": (0.815, 65.0), "adpa(hops=5)": (0.836, 48.0), "fastrp + logistic regression": (0.771, 0.6),
        "label-propagation": (0.73, 0.05), "mlp": (0.745, 9.0), "majority": (0.302, 0.002), "graph-transformer": (0.81, 900.0),
    }  # fmt: skip
    unasked = {"majority", "gcn, tuned"}
    cases = []
    for which, data in enumerate(("cora", "citeseer", "squirrel-filtered-directed", "wiki")[:sets]):
        specs: list[Any] = []
        split = rng.normal(0, 0.006, 8)
        for name, (mean, _) in means.items():
            shown = names[0] if names and name == "dagnn" else name
            kind = (
                toys.Fixed if name in ("majority", "label-propagation") else toys.Classic if name in unasked else toys.ToyMethod
            )
            draws = [mean - 0.03 * which + split[i] + float(rng.normal(0, 0.007)) for i in range(8)]
            specs.append((shown, kind(title=shown), name in unasked, draws if kind.chance else draws[:1]))
        case, cells = toys.case_of(specs, data)
        full = []
        for cell, found in cells:
            original = cell.entry if cell.entry in means else "dagnn"
            mean, spent = means[original]
            if original == "graph-transformer" and which == 0 and cell.seed > 4:
                error = "RuntimeError: not enough memory: 12.4 GB were asked for, <8 GB are there>"
                trace = {"traceback": 'Traceback (most recent call last):\n  File "x.py", line 3\n' + error}
                full.append((cell, toys.result(found.cell, None, "failed", error=error, provenance=trace)))
                continue
            more = [
                Score("accuracy", (found.headline or 0) - 0.1 + 0.06 * i, {"slice": "degree", "range": text, "nodes": 300 - 60 * i + cell.seed})
                for i, text in enumerate(("0 to 2", "3 to 5", "6 and more"))
            ]  # fmt: skip
            if original in ("dagnn", "adpa(hops=5)", "gcn, tuned"):
                for bits in (8, 6, 4, 2):
                    at = {} if bits == 8 else {"bits": bits}
                    quality = 38 - 60 / (bits + 2) - 3 * (original != "dagnn") + 0.1 * cell.seed
                    rate = 0.02 * bits * (1 + 0.3 * (original != "dagnn"))
                    more += [Score("bpp", rate, at), Score("psnr", quality, {**at, "frames": "seen"})]
                    if at:
                        more.append(Score("accuracy", (found.headline or 0) - 0.3 / bits, at))
            steps = np.arange(0, 200, 4)
            curve = {
                "loss": [[int(s), 1.9 * math.exp(-s / (20 + 60 * (1 - mean))) + 0.4 * (1 - mean) + 0.01 * float(rng.normal())] for s in steps],
                "valid": [[int(s), mean - 0.4 * math.exp(-s / 30)] for s in steps],
            } if kind_of(original) else {}  # fmt: skip
            facts = {"row": cell.entry, "notes": ["the graph was made undirected"] if original == "dagnn" else [], "chosen": {"is": "classic", "title": "gcn", "bits": 4} if original == "gcn, tuned" else cell.method}  # fmt: skip
            status = "stopped" if original == "mlp" and which == 1 and cell.seed == 2 else "done"
            fit_s = spent * (1 + 0.1 * float(rng.random()))
            result = toys.result(found.cell, found.headline, status, more=more, fit_s=fit_s, curve=curve, facts=facts)
            full.append((cell, result))
            if original == "dagnn" and cell.seed == 0:
                said = {
                    "scalars": {"hops used": 7.25, "depth": 20, "converged": True},
                    "tables": {"gate per hop": [{"hop": i, "mean gate": 0.5**i} for i in range(4)], "attention": {"cites": 0.7, HOSTILE: 0.3}},
                    "figures": {"gate over hops": SVG, "not a figure": "plain words"},
                }  # fmt: skip
                ledger.put_result(result, said)
        cases.append((case, full))
    return toys.board_of(*cases, ledger=ledger)  # type: ignore[no-any-return]


def kind_of(name: str) -> bool:
    return name not in ("majority", "label-propagation")


class Reader(HTMLParser):
    """What a browser would make of it: tags with attributes, text, and whether tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.errors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.errors and not reader.open
    return reader


@pytest.fixture(scope="module")
def page() -> str:
    return report.html(synthetic())


def test_well_formed_with_headings_in_order(page: str) -> None:
    reader = read(page)
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for tag, attrs in reader.tags if tag == "a"}
    assert targets == {f"#{i}" for i in ids if i and not i.endswith("-title")}


def test_one_file_that_loads_nothing(page: str) -> None:
    reader = read(page)
    for tag, attrs in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        source = attrs.get("src")
        assert source is None or source.startswith("data:image/")
        assert not any(name.startswith("on") for name in attrs)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "http://" not in page and "https://" not in page
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_everything_is_on_it(page: str) -> None:
    words = " ".join(" ".join(read(page).words).split())
    for text in (
        "Leaderboard", "Means and 95 % intervals", "Quality against cost", "Rate and distortion", "Learning curves", "Slices",
        "What the models say about themselves", "Failures", "Provenance", "Run it again", "latticework compare toys",
        "the best baseline", "fastrp + logistic regression", "hops used", "7.25", "gate per hop", "0.125", "6 and more", "unasked",
        "3 failed", "graph-transformer: 3 failed", "fold fixed, seed 5; fold fixed, seed 6", "1 stopped", "not enough memory: 12.4 GB", "Friedman p", "Nemenyi", "critical difference", "ab" * 32, "Linux x86_64",
        "the graph was made undirected (8 of 8 repeats)", "tuning chose classic(title=gcn, bits=4)", "fixed/7", " min",
    ):  # fmt: skip
        assert text in words, text
    assert "not a figure" not in words  # what is no picture is no figure


def test_numbers_stand_as_the_board_has_them(page: str) -> None:
    board = synthetic()
    reader = read(page)
    shown = {attrs["data-v"] for tag, attrs in reader.tags if tag == "td" and "data-v" in attrs}
    for case in board.cases:
        for row in case.rows:
            if row.mean is not None and "transformer" not in row.label:
                assert any(v and v[:6] == f"{row.mean}"[:6] for v in shown)


def test_images_have_words_and_charts_have_labels(page: str) -> None:
    tags = read(page).tags
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    labelled = [attrs for tag, attrs in tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(labelled) > 20 and all(attrs.get("aria-label") for attrs in labelled)
    assert all(attrs.get("aria-label") for _, attrs in tags if attrs.get("role") == "region")
    assert sum("aria-sort" in attrs for tag, attrs in tags if tag == "th") == 4  # one a leaderboard
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in tags if tag == "th")


def test_hostile_names_stay_text() -> None:
    page = report.html(synthetic(sets=1, names=(HOSTILE,)))
    reader = read(page)
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert HOSTILE not in page and any("document.title='owned'" in w for w in reader.words)
    assert "owned" not in page[page.rindex("<script>") :]


def test_figures_are_images_in_which_nothing_runs(page: str) -> None:
    sources = [attrs["src"] or "" for tag, attrs in read(page).tags if tag == "img"]
    assert sources and all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    drawn = base64.b64decode(sources[0].split(",", 1)[1]).decode()
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "path" in drawn


def test_pictures() -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(8)
    text = base64.b64encode(png).decode()
    assert report.picture(png) == report.picture(text) == "data:image/png;base64," + text
    assert report.picture(b"GIF89a") is None and report.picture("words") is None and report.picture(3) is None
    named = "<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"
    assert base64.b64decode((report.picture(named) or "").split(",")[1]).decode() == named


@pytest.mark.parametrize(
    ("what", "head", "rows"),
    [
        ([{"a": 1, "b": 0.5}, {"a": 2}], ["a", "b"], [["1", "0.5"], ["2", ""]]),
        ({"a": [1, 2], "b": [3]}, ["a", "b"], [["1", "3"], ["2", ""]]),
        ({"x": {"p": 1}, "y": {"q": True}}, ["", "p", "q"], [["x", "1", ""], ["y", "", "yes"]]),
        ({"x": 1.5, "y": None}, ["", "value"], [["x", "1.5"], ["y", "–"]]),
        ([[1, 2], [3, 4]], ["", ""], [["1", "2"], ["3", "4"]]),
        ([], [], []),
        (4, ["value"], [["4"]]),
    ],
)
def test_tables_of_findings(what: Any, head: list[str], rows: list[list[str]]) -> None:
    assert report.grid_of(what) == (head, rows)


def test_ticks_are_round_and_inside() -> None:
    assert report.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert report.ticks(0.7832, 0.8511, 4) == [0.8, 0.82, 0.84]
    assert report.ticks(3.0, 3.0) == [3.0]
    assert report.log_ticks(-1.2, 2.1) == [-1.0, 0.0, 1.0, 2.0]
    few = report.log_ticks(0.1, 1.1)
    assert [round(10**t, 6) for t in few] == [2.0, 5.0, 10.0]
    assert len(report.log_ticks(-9, 9)) <= 7


def test_a_trivial_baseline_does_not_flatten_the_axis() -> None:
    case = synthetic(sets=1).cases[0]
    span = report._span(case)
    assert span is not None and span[0] > 0.4
    forest = report._forest(case, span)
    assert forest is not None and forest["outside"] == ["majority"]
    assert all(0 <= row["at"] <= 100 for row in forest["rows"])
    assert all(0 <= row["low"] <= row["at"] <= row["high"] <= 100 for row in forest["rows"] if row["low"] is not None)


def test_labels_of_points_do_not_collide() -> None:
    dots = [{"x": 50.0, "y": 100.0 + i, "label": f"method {i}"} for i in range(4)]
    report._place_labels(dots)
    boxes = []
    for dot in dots:
        x, long = dot["x"] * 3, 6.6 * len(dot["label"])
        left = x + 9 if dot["anchor"] == "start" else x - 9 - long
        boxes.append((left, dot["label_y"], left + long))
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or abs(a[1] - b[1]) >= 11


def test_the_front_is_what_nothing_dominates() -> None:
    case = synthetic(sets=1).cases[0]
    chart = report._scatter(case, report._span(case))
    assert chart is not None
    front = {dot["label"] for dot in chart["dots"] if dot["front"]}
    cost = {row.name: row.costs["fit_s"] + row.costs["refs_s"] for row in case.rows}
    mean = {row.name: row.mean or 0.0 for row in case.rows}
    expected = {
        n
        for n in mean
        if not any((mean[o] >= mean[n] and cost[o] < cost[n]) or (mean[o] > mean[n] and cost[o] <= cost[n]) for o in mean)
    }
    assert front == {report._clipped(n) for n in expected}


def test_ledes() -> None:
    text = report.lede(synthetic(sets=1).cases[0])
    assert (
        text.startswith("dagnn has the best mean, 0.8")
        and "Against the best baseline, gcn, tuned at 0.8" in text
        and "better, by 0.0" in text
    )
    plain = toys.board_of(toys.case_of([s for s in toys.SPECS if s[0] != "new"])).cases[0]
    assert "twin" in report.lede(plain)
    case, cells = toys.case_of(toys.SPECS)
    cut = [(c, r._replace(status="stopped") if c.entry == "classic" else r) for c, r in cells]
    stopped = report.lede(toys.board_of((case, cut)).cases[0])
    assert "the best baseline that finished, constant" in stopped and stopped.endswith(
        "classic did not finish and gives no evidence."
    )
    cut = [(c, r._replace(status="stopped") if c.entry == "new" else r) for c, r in cells]
    above = report.lede(toys.board_of((case, cut)).cases[0])
    assert "has the best mean of what finished" in above and above.endswith(
        "new has a better mean, but was stopped by the time limit."
    )
    empty = toys.board_of((toys.case_of(toys.SPECS)[0], []))
    assert report.lede(empty.cases[0]) == "Nothing has a score yet."
    assert "Nothing has a score yet." in report.html(empty)


def test_small_boards_render() -> None:
    one = toys.board_of(toys.case_of([("a", toys.ToyMethod(title="a"), False, [0.5])]))
    read(report.html(one))
    two = toys.board_of(*(toys.case_of(toys.SPECS[2:], d) for d in "pq"))
    read(report.html(two))
    negative = toys.board_of(toys.case_of([(n, m, u, [-v for v in values]) for n, m, u, values in toys.SPECS]))
    read(report.html(negative))
    same = toys.board_of(toys.case_of([(n, m, u, [0.5] * 3) for n, m, u, _ in toys.SPECS]))
    assert "tied (the same value" in report.html(same)
    read(report.html(Board("", {"is": "grid"}, [], [], {})))


def test_the_same_board_gives_the_same_bytes() -> None:
    assert report.html(synthetic(sets=2)) == report.html(synthetic(sets=2))
