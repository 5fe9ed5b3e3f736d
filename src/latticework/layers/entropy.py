"""Entropy coding of integer symbols: canonical Huffman codes, written and read bit for bit.

A canonical code is fixed by its code lengths alone: symbols sorted by (length, symbol) get consecutive code words, so the
table stores one length a symbol and no tree. The mean length lies within one bit of the symbols' entropy.
"""

from __future__ import annotations

import heapq
import struct
from typing import NamedTuple

import numpy as np
from numba import njit

MAX_LENGTH = 48  # a Huffman code this deep needs more symbols than memory holds (Fibonacci growth)


class HuffmanTable(NamedTuple):
    """Symbols (int64, ascending by (length, symbol)) and their code lengths in bits (uint8)."""

    symbols: np.ndarray
    lengths: np.ndarray

    def to_bytes(self) -> bytes:
        """Count (u32), then per symbol a zig-zag variable-length difference in ascending order, then the lengths."""
        order = np.argsort(self.symbols, kind="stable")
        out = bytearray(struct.pack("<I", len(self.symbols)))
        previous = 0
        for symbol in self.symbols[order].tolist():
            delta = symbol - previous
            previous = symbol
            value = (delta << 1) if delta >= 0 else ((-delta << 1) - 1)
            while value >= 0x80:
                out.append(value & 0x7F | 0x80)
                value >>= 7
            out.append(value)
        return bytes(out) + self.lengths[order].astype(np.uint8).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[HuffmanTable, int]:
        """The table and how many bytes it took; ValueError where the bytes are no table."""
        if len(data) < 4:
            raise ValueError("a Huffman table needs at least 4 bytes")
        (count,) = struct.unpack_from("<I", data)
        at, previous, symbols = 4, 0, []
        for _ in range(count):
            value, shift = 0, 0
            while True:
                if at >= len(data) or shift > 63:
                    raise ValueError("the Huffman table is cut short")
                byte = data[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            previous += -((value + 1) >> 1) if value & 1 else value >> 1
            symbols.append(previous)
        if at + count > len(data):
            raise ValueError("the Huffman table is cut short")
        lengths = np.frombuffer(data, np.uint8, count, at)
        table = _sorted(np.array(symbols, np.int64), lengths)
        if count and (lengths.min() < 1 or lengths.max() > MAX_LENGTH or _kraft(lengths) > 1 + 1e-12):
            raise ValueError("the Huffman table's code lengths are impossible")
        return table, at + count


def _kraft(lengths: np.ndarray) -> float:
    return float((2.0 ** -lengths.astype(np.float64)).sum())


def _sorted(symbols: np.ndarray, lengths: np.ndarray) -> HuffmanTable:
    order = np.lexsort((symbols, lengths))
    return HuffmanTable(symbols[order], lengths[order].astype(np.uint8))


def huffman_table(values: np.ndarray) -> HuffmanTable:
    """The optimal prefix code of these integers' own frequencies. A lone symbol gets one bit.

    values: integers of any shape. Source: Huffman, "A method for the construction of minimum-redundancy codes", 1952.
    """
    symbols, counts = np.unique(np.asarray(values, np.int64).ravel(), return_counts=True)
    if len(symbols) == 0:
        return HuffmanTable(np.zeros(0, np.int64), np.zeros(0, np.uint8))
    if len(symbols) == 1:
        return HuffmanTable(symbols, np.ones(1, np.uint8))
    # leaves are 0..n-1 and inner nodes follow; ties go to the older node, so the lengths are the same everywhere
    heap = [(int(c), i) for i, c in enumerate(counts)]
    heapq.heapify(heap)
    parent = np.zeros(2 * len(symbols) - 1, np.int64)
    for node in range(len(symbols), 2 * len(symbols) - 1):
        (a, i), (b, j) = heapq.heappop(heap), heapq.heappop(heap)
        parent[i] = parent[j] = node
        heapq.heappush(heap, (a + b, node))
    depth = np.zeros(len(parent), np.int64)
    for node in range(len(parent) - 2, -1, -1):
        depth[node] = depth[parent[node]] + 1
    return _sorted(symbols, depth[: len(symbols)])


def code_words(table: HuffmanTable) -> np.ndarray:
    """The canonical code word (int64) of each symbol, in the table's order."""
    codes = np.zeros(len(table.symbols), np.int64)
    code, previous = 0, int(table.lengths[0]) if len(codes) else 0
    for i, length in enumerate(table.lengths.tolist()):
        code <<= length - previous
        codes[i] = code
        code += 1
        previous = length
    return codes


def coded_bits(values: np.ndarray, table: HuffmanTable) -> int:
    """How many bits `encode` will write, without padding."""
    return int(table.lengths.astype(np.int64)[_rank(np.asarray(values, np.int64).ravel(), table)].sum())


def _rank(values: np.ndarray, table: HuffmanTable) -> np.ndarray:
    order = np.argsort(table.symbols, kind="stable")
    known = table.symbols[order]
    place = np.searchsorted(known, values)
    if len(values) and (len(known) == 0 or (known[np.minimum(place, len(known) - 1)] != values).any()):
        raise ValueError("a value has no code word in this table")
    return order[place]


def encode(values: np.ndarray, table: HuffmanTable) -> bytes:
    """The code words of the integers one after the other, most significant bit first, padded with zeros to whole bytes."""
    values = np.asarray(values, np.int64).ravel()
    if not len(values):
        return b""
    rank = _rank(values, table)
    lengths = table.lengths.astype(np.int64)[rank]
    words = code_words(table)[rank]
    start = np.cumsum(lengths) - lengths
    bits = np.zeros(int(lengths.sum()), np.uint8)
    for j in range(int(lengths.max())):
        has = lengths > j
        bits[start[has] + j] = (words[has] >> (lengths[has] - 1 - j)) & 1
    return np.packbits(bits).tobytes()


def decode(data: bytes, table: HuffmanTable, count: int) -> np.ndarray:
    """The first `count` integers (int64) of a stream that `encode` wrote; ValueError where it ends too early."""
    if count == 0:
        return np.zeros(0, np.int64)
    if not len(table.symbols):
        raise ValueError("an empty table decodes nothing")
    longest = int(table.lengths.max())
    number = np.bincount(table.lengths, minlength=longest + 1).astype(np.int64)
    index, used = _walk(np.frombuffer(data, np.uint8), number, longest, count)
    if used < 0:
        raise ValueError(f"the coded stream ends before its {count} symbols, or is damaged")
    symbols: np.ndarray = table.symbols[index]
    return symbols


@njit(cache=True)
def _walk(data, number, longest, count):  # type: ignore[no-untyped-def]
    """Read code words bit by bit: `number[l]` of them have length l, and those of one length are consecutive."""
    out = np.empty(count, np.int64)
    at, total = 0, len(data) * 8
    for i in range(count):
        code, first, base, length = 0, 0, 0, 0
        while True:
            if at >= total or length >= longest:
                return out, -1
            code = (code << 1) | ((data[at >> 3] >> (7 - (at & 7))) & 1)
            at += 1
            length += 1
            first <<= 1
            if code - first < number[length]:
                out[i] = base + code - first
                break
            first += number[length]
            base += number[length]
    return out, at
