"""Links: no test link is in what a method sees, by eye and by experiment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from latticework.core.dataset import Dataset, open_data
from latticework.core.evaluate import suited
from latticework.core.grid import entry_of, task_of
from latticework.core.method import Method
from latticework.core.run import Run, fitted, part_digest
from latticework.core.task import Part, Task

from . import arrays_in


def check_no_link_leak(task: Task | str, data: Any, method: Method | str | None = None) -> None:
    """No test link is in the message passing, the features or a heuristic of a link-prediction task (and of a method on it).

    Two looks at the first split of a graph. (1) No link that is asked is an edge of a graph that its part shows, and no link
    stands among another part's non-links. (2) The test links of the data are replaced by other pairs that fall to the test part
    as well: train and valid parts and all that the test part shows beside its query (graph, features, schema) must stay the same
    bit for bit, and so must the answers of `method` to the same questions, fitted on either data. What is computed from the
    whole graph, such as degrees as features, a heuristic or a list of hard negatives, moves with the test links.
    Raises ``AssertionError`` that says what moved.
    """
    given = open_data(data)
    assert given.kind == "graph", "test links are exchanged in graphs; for events see check_no_future_leak"
    chosen: Any = (task_of(task) if isinstance(task, str) else task).for_data(given)
    name, seed = chosen.plan(given, 1)[0]
    fold, n = chosen.fold(given, name), given.read().nodes
    test, y = fold.test, fold.test.truth.y
    asked = [(word, part) for word, part in (("valid", fold.valid), ("test", fold.test)) if part is not None]
    for word, part in asked:
        hidden = _keys(part.query.pairs[:, part.truth.y], n)
        for other, shown in [("train", fold.train), *asked]:
            if other == "test" and word == "valid" and getattr(chosen, "add_valid", False):
                continue
            for array in arrays_in(shown.data):
                if array.ndim == 2 and array.shape[0] == 2 and array.dtype.kind in "iu":
                    common = np.intersect1d(hidden, _keys(array, n))
                    assert not len(common), (
                        f"the {word} link {divmod(int(common[0]), n)} is an edge of the graph of the {other} part ({len(common)} such)"
                    )
        if word == "test":
            false = _keys(part.query.pairs[:, ~part.truth.y], n)
            true = np.concatenate([_keys(p.query.pairs[:, p.truth.y], n) for p in (fold.train, *(p for _, p in asked))])
            assert not len(np.intersect1d(false, true)), f"a link stands among the non-links of the {word} part"

    other_data = exchanged(given, chosen, name, test.query.pairs[:, y])
    moved = chosen.fold(other_data, name)
    assert not np.array_equal(
        np.sort(_keys(moved.test.query.pairs[:, moved.test.truth.y], n)), np.sort(_keys(test.query.pairs[:, y], n))
    )
    for word, one, two in (
        ("the train part", fold.train, moved.train),
        ("the valid part", fold.valid, moved.valid),
        ("what the test part shows", _shown(fold.test), _shown(moved.test)),
    ):
        if one is not None and two is not None:
            assert part_digest(one) == part_digest(two), f"{word} changes with the test links: {_first(one, two)}"
    if method is None:
        return
    value = suited(chosen, entry_of(method) if isinstance(method, str) else method)
    answers = [_answers(value, d, chosen, f, name, seed, test) for d, f in ((given, fold), (other_data, moved))]
    same = np.array_equal(answers[0], answers[1], equal_nan=True)
    assert same, f"{value.name}: answers change with the test links, so they are within its reach"


def exchanged(data: Dataset, task: Any, name: str, links: Any) -> Dataset:
    """The same graph with other pairs, which are joined nowhere, in the place of its test links; the split deals them alike."""
    from latticework.links.tasks import TEST, links_of

    graph = data.read()
    n, rng = graph.nodes, np.random.default_rng(0)
    joined = set(_keys(graph.edge_index, n).tolist())
    old, new = _keys(links, n), []
    while len(new) < len(old):
        pair = np.sort(rng.choice(n, 2, replace=False))
        if int(pair[0] * n + pair[1]) not in joined:
            # one is exchanged at a time, and stays exchanged where the split says that it is a test link now
            tried = _with(graph, old[: len(new) + 1], [*new, pair])
            of = links_of(open_data(tried))
            code = task.cut(of, name)
            at = int(np.flatnonzero((of.pairs == pair[:, None]).all(0))[0])
            if code[at] == TEST:
                new.append(pair)
                joined.add(int(pair[0] * n + pair[1]))
    return open_data(_with(graph, old, new))


def _with(graph: Any, old: Any, new: Any) -> Any:
    n = graph.nodes
    order = np.argsort(old)
    keys, pairs = old[order], np.stack(new)[order]
    place = np.minimum(np.searchsorted(keys, _keys(graph.edge_index, n)), len(keys) - 1)
    mine = keys[place] == _keys(graph.edge_index, n)
    edges = graph.edge_index.copy()
    turned = edges[0] > edges[1]
    edges[:, mine] = pairs[place[mine]].T
    edges[:, mine & turned] = edges[::-1, mine & turned]
    return replace(graph, edge_index=edges, _cache={})


def _keys(pairs: Any, n: int) -> Any:
    low, high = np.minimum(pairs[0], pairs[1]).astype(np.int64), np.maximum(pairs[0], pairs[1]).astype(np.int64)
    return low * n + high


def _shown(part: Part) -> Part:
    return Part(part.data, None, None, part.schema)


def _first(one: Part, two: Part) -> str:
    pairs: Iterator[Any] = zip(arrays_in(tuple(one)), arrays_in(tuple(two)), strict=False)
    for a, b in pairs:
        if not np.array_equal(a, b):
            return f"an array {a.dtype} {list(a.shape)}"
    return "something that is no array"


def _answers(method: Method, data: Dataset, task: Task, fold: Any, name: str, seed: int, asked: Part) -> Any:
    run = Run(task=task, digest=data.digest(), fold=name, seed=seed, label=method.name)
    with run.seeded():
        model = fitted(method, fold.train, fold.valid, run)
    with run.seeded("answer"):
        return np.asarray(task.answer(model, asked.blind()._replace(data=fold.test.data), run))
