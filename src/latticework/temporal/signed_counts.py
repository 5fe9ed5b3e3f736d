"""Fourteen running counts of a signed pair: what each end gave and got so far, the triads that they close, the way back.

For a pair (u, v) at a time, with the links before it: how many positive and negative links u gave and got, and v (8 counts, as
log(1 + c)); the smoothed negative share of what u gave, u got, v gave, v got ((c- + 1/2) / (c + 5)), hence 2 that count most are
kept: u's giving and v's getting; the triads u - k - v by their signs' product, balanced and unbalanced (log(1 + c)); the latest
sign of the link v -> u and whether there is one. Triads take each neighbour once, with the latest sign of its link, in either
direction. One numba loop over linked lists: a row costs deg(u) + deg(v).

The logistic regression on such counts is the classic of signed link prediction: Leskovec, Huttenlocher, Kleinberg, "Predicting
Positive and Negative Links in Online Social Networks" (WWW 2010), sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

NAMES = (
    "source gave +", "source gave -", "source got +", "source got -", "target gave +", "target gave -", "target got +",
    "target got -", "negative share given by source", "negative share got by target", "balanced triads", "unbalanced triads",
    "sign of the way back", "way back exists",
)  # fmt: skip


class SignedCounts:
    """Signed links so far, as linked lists by node.

    `insert(src, dst, sign)` takes links in, int64 [m] and signs of any number type; `of(src, dst)` gives float64 [q, 14]
    (`NAMES`), reading alone; `walk(src, dst, sign)` takes links in and gives [m, 14], each row of the state before its own link
    (`asked` int64 [m]: of the pairs of `src` with these instead). Nodes
    that are new make the tables grow; a node that is not known has counts 0. Memory: five numbers a node, six a link.
    """

    def __init__(self, nodes: int = 0) -> None:
        self.degree = np.zeros((nodes, 4), np.int64)  # gave +, gave -, got +, got -
        self.head = np.full(nodes, -1, np.int64)
        self.links = 0
        self.next, self.other = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.sign = np.zeros(0, np.int8)  # entries 2e (at the source) and 2e + 1 (at the target) are link e

    @property
    def nodes(self) -> int:
        return len(self.head)

    def room(self, nodes: int, links: int) -> None:
        """Space for so many nodes and entries; lists double, so that growing costs little."""
        if nodes > self.nodes:
            more = nodes - self.nodes
            self.degree = np.concatenate([self.degree, np.zeros((more, 4), np.int64)])
            self.head = np.concatenate([self.head, np.full(more, -1, np.int64)])
        if 2 * links > len(self.next):
            size = max(2 * links, 2 * len(self.next))
            self.next, self.other, self.sign = (np.resize(a, size) for a in (self.next, self.other, self.sign))

    def walk(self, src: Array, dst: Array, sign: Array, asked: Array | None = None) -> Array:
        return self._take(src, dst, sign, np.ascontiguousarray(dst if asked is None else asked, np.int64))

    def insert(self, src: Array, dst: Array, sign: Array) -> None:
        self._take(src, dst, sign, np.zeros(0, np.int64))

    def _take(self, src: Array, dst: Array, sign: Array, asked: Array) -> Array:
        m = len(src)
        if not m:
            return np.zeros((0, len(NAMES)))
        src, dst = np.ascontiguousarray(src, np.int64), np.ascontiguousarray(dst, np.int64)
        self.room(int(max(src.max(), dst.max())) + 1, self.links + m)
        positive = np.where(np.asarray(sign) > 0, 1, -1).astype(np.int8)
        out = np.zeros((len(asked), len(NAMES)))
        marks = np.zeros(self.nodes, np.int64), np.zeros(self.nodes, np.int8)
        _take(
            src, dst, positive, asked, self.links, self.head, self.next, self.other, self.sign, self.degree, *marks, out
        )  # fmt: skip
        self.links += m
        return out

    def of(self, src: Array, dst: Array) -> Array:
        src, dst = np.ascontiguousarray(src, np.int64), np.ascontiguousarray(dst, np.int64)
        out = np.zeros((len(src), len(NAMES)))
        marks = np.zeros(self.nodes, np.int64), np.zeros(self.nodes, np.int8)
        _ask(src, dst, self.head, self.next, self.other, self.sign, self.degree, *marks, out)
        return out

    def copy(self) -> SignedCounts:
        other = SignedCounts()
        other.degree, other.head, other.links = self.degree.copy(), self.head.copy(), self.links
        other.next, other.other, other.sign = self.next.copy(), self.other.copy(), self.sign.copy()
        return other

    def __deepcopy__(self, memo: Any) -> SignedCounts:
        return self.copy()

    def arrays(self) -> dict[str, Array]:
        """What `load` needs."""
        k = 2 * self.links
        return {
            "degree": self.degree, "head": self.head, "next": self.next[:k], "other": self.other[:k], "sign": self.sign[:k],
        }  # fmt: skip

    def load(self, arrays: Mapping[str, Array]) -> None:
        self.degree, self.head = np.array(arrays["degree"]), np.array(arrays["head"])
        self.next, self.other, self.sign = (np.array(arrays[k]) for k in ("next", "other", "sign"))
        self.links = len(self.next) // 2


@njit(cache=True)  # type: ignore[untyped-decorator]
def _row(u, v, stamp, head, nxt, other, sign, degree, mark, held, out):  # type: ignore[no-untyped-def]
    """One row of counts. `mark` and `held` are scratch by node: stamp +-`stamp` says seen from u, and from v."""
    n = len(head)
    if u < n:
        for k in range(4):
            out[k] = np.log1p(degree[u, k])
        out[8] = (degree[u, 1] + 0.5) / (degree[u, 0] + degree[u, 1] + 5.0)
    else:
        out[8] = 0.1
    if v < n:
        for k in range(4):
            out[4 + k] = np.log1p(degree[v, k])
        out[9] = (degree[v, 3] + 0.5) / (degree[v, 2] + degree[v, 3] + 5.0)
    else:
        out[9] = 0.1
    if u >= n or v >= n:
        return
    at = head[u]
    back = 0
    while at >= 0:  # the latest link first: an older one of the same neighbour does not count
        k = other[at]
        if mark[k] != stamp:
            mark[k] = stamp
            held[k] = sign[at]
        if k == v and back == 0 and at % 2 == 1:
            back = sign[at]
        at = nxt[at]
    balanced, unbalanced = 0, 0
    at = head[v]
    while at >= 0:
        k = other[at]
        if mark[k] == stamp:
            mark[k] = -stamp  # counted
            if k != u and k != v:
                if held[k] * sign[at] > 0:
                    balanced += 1
                else:
                    unbalanced += 1
        at = nxt[at]
    out[10] = np.log1p(balanced)
    out[11] = np.log1p(unbalanced)
    out[12] = back
    out[13] = abs(back)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _ask(src, dst, head, nxt, other, sign, degree, mark, held, out):  # type: ignore[no-untyped-def]
    for row in range(len(src)):
        _row(src[row], dst[row], row + 1, head, nxt, other, sign, degree, mark, held, out[row])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _take(src, dst, signs, asked, start, head, nxt, other, sign, degree, mark, held, out):  # type: ignore[no-untyped-def]
    for row in range(len(src)):
        u, v, s = src[row], dst[row], signs[row]
        if len(out):
            _row(u, asked[row], row + 1, head, nxt, other, sign, degree, mark, held, out[row])
        at = 2 * (start + row)
        nxt[at], other[at], sign[at] = head[u], v, s
        head[u] = at
        nxt[at + 1], other[at + 1], sign[at + 1] = head[v], u, s
        head[v] = at + 1
        column = 0 if s > 0 else 1
        degree[u, column] += 1
        degree[v, 2 + column] += 1
