"""Faults that a file may have: bits, lengths, places, numbers; in a PNG within its chunks, their checksums set right
again.
"""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

EXTREME = [
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**40,
    2**63 - 1,
    -(2**63),
]
WORDS = [
    "",
    "0",
    "-1",
    "1e999",
    "nan",
    "inf",
    "9" * 5000,
    "true",
    "[]",
    "{}",
    "'",
    '"',
    "\\",
    "\0",
    "é",
    "\u202e",
    "\ud800",
    "[" * 2000,
    "../x",
    "a" * 3000,
]


def mutated(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A file with one to eight faults in it."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        size = len(data)
        at, length = draw.randrange(size + 1), draw.choice((1, 2, 4, 8, 64, 1000))
        kind = draw.randrange(9)
        if kind == 0 and size:
            data[at % size] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = draw.randbytes(length)
        elif kind == 4:
            data[at : at + length] = draw.randbytes(length)
        elif kind == 5:
            data[at:at] = data[at : at + length] * draw.choice((1, 2, 100))
        elif kind == 6:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        elif kind == 7:
            form = draw.choice("<>") + draw.choice("bhiq")
            number = draw.choice(EXTREME) & (1 << 8 * struct.calcsize(form)) - 1
            data[at : at + struct.calcsize(form)] = struct.pack(form.upper(), number)
        else:
            data[at:at] = draw.choice(WORDS).encode("utf-8", "surrogatepass")
    return bytes(data)


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 8
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        parts.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    return parts


def mutated_png(draw: random.Random, content: bytes) -> bytes:
    """A PNG with mutated chunks, whose checksums are right."""
    parts = _chunks(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        k = draw.randrange(len(parts))
        kind, data = parts[k]
        choice = draw.randrange(6)
        if choice == 0 and kind == b"IHDR":
            data = (
                struct.pack(
                    ">II", draw.choice((0, 1, 16, 2**16, 2**31 - 1, 2**32 - 1)), draw.choice((0, 8, 2**14, 2**31 - 1))
                )
                + data[8:]
            )
        elif choice == 1:
            kind = draw.choice(
                (
                    b"IDAT",
                    b"PLTE",
                    b"tRNS",
                    b"iCCP",
                    b"zTXt",
                    b"iTXt",
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"eXIf",
                    b"pHYs",
                    b"abcd",
                )
            )
        elif choice == 2 and kind == b"IDAT":
            data = zlib.compress(bytes(draw.choice((0, 100, 10_000_000))))
        elif choice == 3:
            parts.insert(
                k,
                (
                    draw.choice((b"iCCP", b"zTXt", b"tEXt", b"tRNS", b"PLTE")),
                    draw.randbytes(draw.choice((0, 1, 5, 300))),
                ),
            )
            continue
        else:
            data = mutated(draw, data, [data, b"\0" * 9])
        parts[k] = kind, data
    return content[:8] + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    )
