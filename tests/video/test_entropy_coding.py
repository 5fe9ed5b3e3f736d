"""Huffman coding: round trips, the optimal length, tables that survive their bytes, streams that end too early."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.layers.entropy import HuffmanTable, code_words, coded_bits, decode, encode, huffman_table

INTEGERS = st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 5), max_size=200)


def _slow_decode(data: bytes, table: HuffmanTable, count: int) -> list[int]:
    """The oracle: look every prefix up."""
    words = {(int(n), int(c)): int(s) for s, n, c in zip(table.symbols, table.lengths, code_words(table), strict=True)}
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).tolist()
    out, length, code = [], 0, 0
    for bit in bits:
        length, code = length + 1, code << 1 | bit
        if (length, code) in words:
            out.append(words[length, code])
            length, code = 0, 0
            if len(out) == count:
                break
    return out


@settings(deadline=None, max_examples=80)
@given(INTEGERS)
def test_round_trip(values: list[int]) -> None:
    x = np.array(values, np.int64)
    table = huffman_table(x)
    data = encode(x, table)
    assert len(data) == (coded_bits(x, table) + 7) // 8
    restored, used = HuffmanTable.from_bytes(table.to_bytes() + b"rest")
    assert used == len(table.to_bytes())
    assert np.array_equal(restored.symbols, table.symbols) and np.array_equal(restored.lengths, table.lengths)
    assert np.array_equal(decode(data, restored, len(x)), x)
    assert _slow_decode(data, table, len(x)) == values


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=300))
def test_length_is_within_a_bit_of_the_entropy(values: list[int]) -> None:
    x = np.array(values)
    counts = np.unique(x, return_counts=True)[1]
    share = counts / len(x)
    entropy = float(-(share * np.log2(share)).sum())
    mean = coded_bits(x, huffman_table(x)) / len(x)
    assert entropy - 1e-9 <= mean < max(entropy + 1, 1 + 1e-9)


def test_known_code() -> None:
    """Frequencies 4, 2, 1, 1 take 1, 2, 3, 3 bits, and canonical words count upwards."""
    table = huffman_table(np.array([7, 7, 7, 7, 3, 3, 9, 1]))
    assert table.symbols.tolist() == [7, 3, 1, 9] and table.lengths.tolist() == [1, 2, 3, 3]
    assert code_words(table).tolist() == [0b0, 0b10, 0b110, 0b111]
    assert encode(np.array([7, 3, 1, 9]), table) == bytes([0b01011011, 0b10000000])


def test_deep_code() -> None:
    """Fibonacci frequencies make the deepest tree there is."""
    counts = [1, 1]
    while len(counts) < 22:
        counts.append(counts[-1] + counts[-2])
    x = np.repeat(np.arange(22), counts)
    table = huffman_table(x)
    assert table.lengths.max() == 21
    assert np.array_equal(decode(encode(x, table), table, len(x)), x)


def test_bad_streams() -> None:
    x = np.random.default_rng(0).integers(0, 20, 300)
    table = huffman_table(x)
    data = encode(x, table)
    with pytest.raises(ValueError, match="ends before"):
        decode(data[:-5], table, 300)
    with pytest.raises(ValueError, match="no code word"):
        encode(np.array([99]), table)
    with pytest.raises(ValueError, match="cut short"):
        HuffmanTable.from_bytes(table.to_bytes()[:-3])
    with pytest.raises(ValueError, match="impossible"):
        HuffmanTable.from_bytes(table.to_bytes()[:-3] + bytes([1, 1, 1]))
    with pytest.raises(ValueError, match="empty table"):
        decode(b"\0", HuffmanTable(np.zeros(0, np.int64), np.zeros(0, np.uint8)), 1)
