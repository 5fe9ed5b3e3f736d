"""The ``.hnerv`` file: a quantised decoder and its embeddings, entropy-coded, with all that decoding needs.

Layout (little-endian): ``HNRV``, version u16, length of the whole file u64, length of the head u32; the head, deflated
JSON; minima and scales (float32 a tensor or float16 a slice); one Huffman table for all symbols; the code words; CRC-32 of
all before it. The official code counts these bits; here they are written, and reading them gives the same tensors.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from latticework.core.errors import UserError
from latticework.layers import entropy

from .quantise import WHOLE, Quantised

MAGIC, VERSION = b"HNRV", 1
_PREFIX = struct.Struct("<4sHQI")


class Stored(NamedTuple):
    """What a file holds: facts of clip and network (JSON-able), and quantised tensors by name, in order."""

    head: Mapping[str, Any]
    tensors: Mapping[str, Quantised]


def pack(stored: Stored) -> bytes:
    """The file's bytes; equal content gives equal bytes."""
    shapes = [[name, list(q.symbols.shape), q.axis, q.bits] for name, q in stored.tensors.items()]
    text = json.dumps({**stored.head, "tensors": shapes}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    head = zlib.compress(text.encode(), 9)
    side = b"".join(_floats(q.low) + _floats(q.scale) for q in stored.tensors.values())
    symbols = _symbols(stored)
    table = entropy.huffman_table(symbols)
    body = head + side + table.to_bytes() + entropy.encode(symbols, table)
    data = _PREFIX.pack(MAGIC, VERSION, _PREFIX.size + len(body) + 4, len(head)) + body
    return data + struct.pack("<I", zlib.crc32(data))


def counted_bits(stored: Stored) -> int:
    """Bits of code words, minima and scales, as the official code counts (but with float32 where float32 is kept)."""
    symbols = _symbols(stored)
    table = entropy.huffman_table(symbols)
    return entropy.coded_bits(symbols, table) + sum(q.side_bits for q in stored.tensors.values())


def overhead(stored: Stored) -> int:
    """Bytes of everything else in the file: prefix, head, table, check sum."""
    data = pack(stored)
    head = _PREFIX.unpack_from(data)[3]
    return _PREFIX.size + head + len(entropy.huffman_table(_symbols(stored)).to_bytes()) + 4


def unpack(data: bytes, where: str = "the file") -> Stored:
    """The content of a file; `UserError` where it is none, is cut short, is damaged, or is of another version."""
    if data[:4] != MAGIC:
        raise UserError(f"{where} is no .hnerv file: it begins with {data[:4]!r}, not {MAGIC!r}")
    if len(data) < _PREFIX.size + 4:
        raise UserError(f"{where} is cut short: {len(data)} bytes are less than a head; write or copy it again")
    _, version, length, head_length = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise UserError(
            f"{where} is a .hnerv file of version {version}, and this latticework reads version {VERSION}; "
            + ("upgrade latticework" if version > VERSION else "compress the clip again")
        )
    if len(data) != length:
        found = "is cut short" if len(data) < length else "has bytes after its end"
        raise UserError(f"{where} {found}: it declares {length} bytes and has {len(data)}; write or copy it again")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise UserError(f"{where} is damaged: its check sum does not fit; copy it again")
    try:
        return _content(data, head_length)
    except (ValueError, KeyError, TypeError, zlib.error, struct.error) as error:
        raise UserError(f"{where} is not a valid .hnerv file ({error}); compress the clip again") from None


def _content(data: bytes, head_length: int) -> Stored:
    at = _PREFIX.size + head_length
    head = json.loads(zlib.decompress(data[_PREFIX.size : at]))
    sides = []
    for _, shape, axis, _ in head["tensors"]:
        kind, each = (
            (np.dtype("<f4"), []) if axis == WHOLE else (np.dtype("<f2"), [1 if i == axis else n for i, n in enumerate(shape)])
        )
        size = math.prod(each)
        pair = []
        for _ in range(2):
            values = np.frombuffer(data, kind, size, at)
            pair.append(torch.from_numpy(values.astype(kind.newbyteorder("=")).reshape(each)))
            at += size * kind.itemsize
        sides.append(pair)
    table, used = entropy.HuffmanTable.from_bytes(data[at:-4])
    total = sum(math.prod(shape) for _, shape, _, _ in head["tensors"])
    symbols = torch.from_numpy(entropy.decode(data[at + used : -4], table, total))
    tensors, start = {}, 0
    for (name, shape, axis, bits), (low, scale) in zip(head["tensors"], sides, strict=True):
        size = math.prod(shape)
        tensors[name] = Quantised(symbols[start : start + size].reshape(shape), axis, low, scale, bits)
        start += size
    return Stored({k: v for k, v in head.items() if k != "tensors"}, tensors)


def _symbols(stored: Stored) -> np.ndarray:
    return torch.cat([q.symbols.flatten() for q in stored.tensors.values()]).numpy()


def _floats(x: torch.Tensor) -> bytes:
    values = x.numpy()
    return values.astype(values.dtype.newbyteorder("<")).tobytes()
