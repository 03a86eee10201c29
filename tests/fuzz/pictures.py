"""Folders of pictures that nobody should make: classes, masks of every form, TIFF, PNG of 16 bits, and odd layouts."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.data import load
from engine.data.classes import declared
from tests.fuzz.mutations import EXTREME, WORDS, mutated, mutated_png, put

H, W = 8, 16
CALL = "call.json"  # what `load` is called with, beside the folder


def _load(path: Path) -> Any:
    return load(path, **json.loads((path.parent / CALL).read_text()))


def _folder(folder: Path, files: dict[str, bytes], **call: str) -> Path:
    """A folder of files, and beside it how `load` is to be called."""
    place = folder / "data"
    place.mkdir()
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    put(folder, CALL, json.dumps(call).encode())
    return place


# --- classes ----------------------------------------------------------------------------------------------------------

VALUES = [
    "0",
    "1",
    "255",
    "65535",
    "65536",
    "-1",
    "1.5",
    "true",
    "[]",
    "{}",
    '"a"',
    '"#ff0000"',
    '"#FF00ff"',
    '"#12345"',
    "[255, '#000000']",
    '""',
]
_LINES = [
    "ignore = 255",
    "ignore = []",
    "ignore = [255, '#00ff00']",
    "[[class]]",
    "[class]",
    'name = "road"',
    "value = 7",
    "value = [7, 8]",
    'colour = "#804080"',
]


def _classes(draw: random.Random, count: int, colours: bool = True, values: bool = True) -> str:
    """A file of classes that is sound: those of the masks below."""
    lines = [draw.choice(("ignore = 255", "ignore = []", ""))]
    for k in range(1, 2) if count == 1 else range(count):
        colour = f'colour = "#{k * 40 % 256:02x}{k * 40 // 256:02x}ff"'
        lines += [
            "[[class]]",
            f'name = "class {k}"',
            *([f"value = {k}"] if values else []),
            *([colour] if colours else []),
        ]
    return "\n".join(lines)


def write_classes(draw: random.Random, folder: Path) -> Path:
    """The settings `classes` and `ignore`: numbers, words, and files mutated as bytes or by other lines and values."""
    lines = _classes(draw, draw.choice((1, 2, 3, 20, 256, 257)), draw.random() < 0.5, draw.random() < 0.5).splitlines()
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        k = draw.randrange(len(lines))
        name = draw.choice((lines[k].split(" = ")[0], "name", "value", "colour", "ignore", draw.choice(WORDS)))
        lines[k] = draw.choice((draw.choice(_LINES), f"{name} = {draw.choice([*VALUES, *WORDS])}", f"[[{name}]]"))
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    path = put(folder, "classes.toml", mutated(draw, text, [text]) if draw.random() < 0.3 else text)
    setting = draw.choice((str(path), str(path), str(path), "auto", "mars", "1", "256", draw.choice(WORDS)))
    ignore = draw.choice(("", "", "none", "255", "0,255", "0,0", ",", "65536", draw.choice(WORDS)))
    return put(folder, CALL, json.dumps({"setting": setting, "ignore": ignore}).encode())


def read_classes(path: Path) -> None:
    """What engine.data.load makes of the settings, beside a folder; the tables by which masks are read, too."""
    classes = declared(beside=path.parent, **json.loads(path.read_text()))
    _ = classes.expected, classes.table, classes.colour_table


# --- masks ------------------------------------------------------------------------------------------------------------


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def _picture(mode: str, seed: int = 0, most: int = 4) -> Image.Image:
    """A picture of H x W whose numbers are labels 0..most; RGB by the colours of `_classes`."""
    labels = np.random.default_rng(seed).integers(0, most + 1, (H, W))
    if mode in ("RGB", "RGBA", "CMYK"):
        return Image.fromarray(np.stack([labels * 40, labels * 0, labels * 0 + 255], -1).astype(np.uint8)).convert(mode)
    if mode in ("F", "I", "I;16"):
        return Image.fromarray(labels.astype({"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]))
    image = Image.fromarray((labels * (255 if mode == "1" else 1)).astype(np.uint8))
    if mode == "P":
        image.putpalette(bytes(range(15)))
        return image
    return image.convert(mode)


@lru_cache(maxsize=1)
def _masks() -> list[tuple[str, bytes]]:
    made = [(".png", _saved(_picture(mode), "PNG")) for mode in ("L", "P", "RGB", "RGBA", "LA", "1", "I;16")]
    made += [(".tif", _saved(_picture(mode), "TIFF")) for mode in ("L", "P", "RGB", "RGBA", "1", "I;16", "F", "CMYK")]
    made += [(".webp", _saved(_picture("RGB"), "WEBP", lossless=True))]
    made += [(".pgm", _saved(_picture("L"), "PPM")), (".ppm", _saved(_picture("RGB"), "PPM"))]
    return [*made, (".png", _saved(_picture("L", 1, 255), "PNG")), (".png", _saved(_picture("RGB"), "JPEG"))]


def _damaged(draw: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """A picture with faults within its structure, or anywhere."""
    if draw.random() < 0.6 and content[:4] == b"\x89PNG":
        return mutated_png(draw, content)
    if draw.random() < 0.7 and content[:2] in (b"II", b"MM"):
        return mutated_tiff(draw, content)
    return mutated(draw, content, others)


def write_masks(draw: random.Random, folder: Path) -> Path:
    """Two pairs whose masks are of any form, with the classes that fit or others; a mask or the classes mutated."""
    image, masks = _saved(_picture("L"), "PNG"), _masks()
    files = {"a.png": image, "b.png": image}
    contents = [content for _, content in masks]
    for name in "ab":
        suffix, content = draw.choice(masks)
        files[f"{name}_mask{suffix}"] = _damaged(draw, content, contents) if draw.random() < 0.4 else content
    if draw.random() < 0.8:
        text = _classes(draw, draw.choice((1, 2, 5, 5, 5, 21))).encode()
        files["classes.toml"] = mutated(draw, text, [text]) if draw.random() < 0.2 else text
    call = {"classes": draw.choice(("5", "2", "mars"))} if draw.random() < 0.1 else {}
    return _folder(
        folder, files, **call, **({"ignore": draw.choice(("none", "255,3", "0"))} if draw.random() < 0.1 else {})
    )


# --- TIFF -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _tiffs() -> list[bytes]:
    made = [_saved(_picture(mode), "TIFF") for mode in ("L", "1", "I;16", "I", "F", "RGB", "RGBA", "LA", "P", "CMYK")]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        made += [_saved(_picture(mode), "TIFF", compression=compression) for mode in ("L", "I;16", "F", "RGB")]
    made += [_saved(_picture("RGB"), "TIFF", compression="jpeg"), _saved(_picture("1"), "TIFF", compression="group4")]
    levels = np.random.default_rng(2).integers(0, 1 << 16, (H, W, 3))
    return [
        *made,
        *(tiff16(order, levels, planar) for order in "<>" for planar in (1, 2)),
        tiff16(">", levels[..., :1], 1),
        tiff16("<", levels, 1, deflated=True),
    ]


def tiff16(order: str, levels: np.ndarray, planar: int, deflated: bool = False) -> bytes:
    """A TIFF of 16 bits per sample, of one strip (a strip per sample where planar is 2), in either order of bytes."""
    h, w, samples = levels.shape
    planes = [levels] if planar == 1 else [levels[..., k] for k in range(samples)]
    strips = [plane.astype(order + "u2").tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    at = 8
    places = []
    for strip in strips:
        places.append(at)
        at += len(strip)
    outside = b""

    def entry(tag: int, kind: int, values: list[int]) -> bytes:
        nonlocal outside
        packed = struct.pack(order + f"{len(values)}{'HI'[kind == 4]}", *values)
        if len(packed) > 4:
            packed, outside = struct.pack(order + "I", at + len(outside)), outside + packed
        return struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")

    entries = [
        entry(256, 3, [w]),
        entry(257, 3, [h]),
        entry(258, 3, [16] * samples),
        entry(259, 3, [8 if deflated else 1]),
        entry(262, 3, [2 if samples > 1 else 1]),
        entry(273, 4, places),
        entry(277, 3, [samples]),
        entry(278, 3, [h]),
        entry(279, 4, [len(strip) for strip in strips]),
        entry(284, 3, [planar]),
    ]
    start = at + len(outside)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + b"".join(strips) + outside + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)


_TAGS = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    330,
    338,
    339,
    347,
    700,
    34377,
    34665,
    34675,
)


def mutated_tiff(draw: random.Random, content: bytes) -> bytes:
    """A TIFF with other numbers in its directory: tags, types, counts, values; directories in a circle; strips that
    decompress to much.
    """
    data = bytearray(content)
    order = "<" if data[:2] == b"II" else ">"
    start = min(struct.unpack_from(order + "I", data, 4)[0], len(data) - 2)
    entries = min(struct.unpack_from(order + "H", data, start)[0], (len(data) - start - 6) // 12)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        at = start + 2 + 12 * draw.randrange(max(1, entries))
        kind = draw.randrange(8)
        if kind == 0:
            struct.pack_into(order + "H", data, at, draw.choice(_TAGS))
        elif kind == 1:
            struct.pack_into(order + "H", data, at + 2, draw.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 18, 65535)))
        elif kind == 2:
            struct.pack_into(order + "I", data, at + 4, draw.choice(EXTREME) & 0xFFFFFFFF)
        elif kind in (3, 4):
            struct.pack_into(
                order + "I", data, at + 8, draw.choice((*EXTREME, 3, 4, 5, 7, 8, 32773, 50000, len(data))) & 0xFFFFFFFF
            )
        elif kind == 5:
            struct.pack_into(order + "I", data, start + 2 + 12 * entries, draw.choice((start, 0, 8, len(data))))
        elif kind == 6:
            struct.pack_into(order + "H", data, start, draw.choice((0, 1, entries + 1, 65535)))
        else:
            data += zlib.compress(bytes(draw.choice((100, 10_000_000))))
    return bytes(data)


def write_tiff(draw: random.Random, folder: Path) -> Path:
    """Two pairs whose images are TIFF of any form, mutated."""
    tiffs = _tiffs()
    good = draw.choice(tiffs)
    mask = _saved(_picture("L"), "PNG")
    files = {"a.tif": _damaged(draw, good, tiffs), "b.tif": good, "a_mask.png": mask, "b_mask.png": mask}
    return _folder(folder, files)


# --- PNG of 16 bits ---------------------------------------------------------------------------------------------------

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png16(draw: random.Random) -> bytes:
    """A PNG whose header may say anything, its rows as long as they should be, or nearly; filters of all five kinds and
    a sixth.
    """
    (h, w), colour, depth, last = (H, W), draw.choice((0, 2, 2, 4, 6)), 16, [0, 0, draw.choice((0, 0, 0, 1))]
    if draw.random() < 0.3:
        h, w = draw.choice(((H, W), (1, 1), (0, 1), (2**31 - 1, 1), (H, 2**14)))
        colour, depth, last[draw.randrange(3)] = (
            draw.choice((2, 3, 5)),
            draw.choice((16, 8, 32)),
            draw.choice((0, 1, 2, 255)),
        )
    length = min(_CHANNELS.get(colour, 3) * depth // 8 * w, 1 << 12) + (
        draw.choice((1, -1)) if draw.random() < 0.1 else 0
    )
    filters = (0, 1, 2, 3, 4) if draw.random() < 0.9 else (0, 4, 5, 255)
    rows = b"".join(bytes([draw.choice(filters)]) + draw.randbytes(max(0, length)) for _ in range(min(h, H)))
    packed = zlib.compress(rows + bytes(20_000_000 if draw.random() < 0.01 else draw.choice((0, 0, 0, 5))))
    cuts = sorted(draw.randrange(len(packed) + 1) for _ in range(draw.choice((0, 0, 1, 3))))
    parts = [packed[a:b] for a, b in zip([0, *cuts], [*cuts, len(packed)], strict=True)]
    header = struct.pack(">IIBBBBB", w, h, depth, colour, *last)
    extra = draw.choice(
        (b"", b"", _chunk(b"tRNS", draw.randbytes(6)), _chunk(b"sBIT", b"\x0c\x0c\x0c"), _chunk(b"PLTE", bytes(15)))
    )
    body = b"".join(_chunk(b"IDAT", part) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + body + _chunk(b"IEND", b"")


def write_png16(draw: random.Random, folder: Path) -> Path:
    """Two pairs whose images, or masks, are PNG of 16 bits, mutated or not."""
    files = {
        "a.png": _png16(draw),
        "a_mask.png": _saved(_picture("L"), "PNG"),
        "b.png": _png16(draw),
        "b_mask.png": _saved(_picture("L"), "PNG"),
    }
    if draw.random() < 0.3:
        files["b.png"] = files["a.png"]
    if draw.random() < 0.1:
        files["a_mask.png"] = _png16(draw)
    if draw.random() < 0.3:
        name = draw.choice(list(files))
        files[name] = _damaged(draw, files[name], list(files.values()))
    return _folder(folder, files)


# --- layouts ----------------------------------------------------------------------------------------------------------

_NAMES = [
    "a",
    "b",
    "A",
    "a_mask",
    "_mask",
    "a_mask_mask",
    "é",
    "e\u0301",
    "x\ny",
    "x\x1b[31m",
    "\udcff",
    "\u202e",
    "-",
    " ",
    "a b",
    "a.b",
    "[x]",
    "%s",
]
_NAMES += ["%s", "{}", "~", "n" * 240]
_PLACES = [
    "",
    "images/",
    "masks/",
    "train/",
    "val/",
    "test/",
    "train/images/",
    "train/masks/",
    "images/train/",
    "masks/train/",
    "s/",
    "images/s/",
]
_PLACES += [".h/", "d/" * 9]
_SUFFIXES = [".png", ".PNG", ".jpg", ".tif", ".webp", ".pgm", ".txt", ""]


def _layout(draw: random.Random, image: bytes, mask: bytes) -> dict[str, bytes]:
    """A folder in one of the layouts, sound."""
    kind, names = draw.randrange(5), draw.sample(("a", "b", "s/c", "é", "x y"), draw.choice((1, 2, 4)))
    if kind == 0:
        return {f"{name}{end}.png": content for name in names for end, content in (("", image), ("_mask", mask))}
    if kind == 1:
        return {
            f"{part}/{name}.png": content for name in names for part, content in (("images", image), ("masks", mask))
        }
    if kind == 2:
        parts = ("train", "val", "test")[: draw.choice((1, 2, 3))]
        return {
            f"{part}/{name}{end}.png": content
            for part in parts
            for name in names
            for end, content in (("", image), ("_mask", mask))
        }
    if kind == 3:
        return {
            f"{what}/{part}/{name}.png": c
            for part in ("train", "test")
            for name in names
            for what, c in (("images", image), ("masks", mask))
        }
    return {
        f"{name}.{end}": content
        for name in names
        for end, content in (("jpg", _saved(_picture("L"), "JPEG")), ("png", mask))
    }


def _spoil(draw: random.Random, place: Path, image: bytes, mask: bytes) -> None:
    """One thing in a folder that is odd: a file more, less, renamed, of another content, or no file at all. Names may
    be too long, or taken.
    """
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    name = place / (draw.choice(_PLACES) + draw.choice(_NAMES) + draw.choice(_SUFFIXES))
    wider = _saved(_picture("L", 3).resize((24, 8)), "PNG")
    content = draw.choice(
        (image, mask, b"", image[:40], image.replace(b"IHDR\0\0", b"IHDR\xff\xff"), wider, b"P5 99999 99999 255\n")
    )
    old, kind = draw.choice([place / "a.png", *files]), draw.randrange(10)
    name = draw.choice((name, old.with_suffix(draw.choice(_SUFFIXES[1:-1]))))
    name.parent.mkdir(parents=True, exist_ok=True)
    if kind in (0, 1, 4) and (name.is_fifo() or old.is_fifo()):
        return  # nobody reads from it
    if kind in (0, 1):
        name.write_bytes(content)
    elif kind == 2:
        old.unlink()
    elif kind == 3:
        old.rename(name)
    elif kind == 4:
        old.write_bytes(content)
    elif kind == 5:
        name.mkdir()
    elif kind == 6:
        name.symlink_to(draw.choice((name.name, "/dev/zero", ".", "..", "missing.png", old)))
    elif kind == 7:
        os.mkfifo(name)
    elif kind == 8:
        old.chmod(0)
    else:
        table = b"name,group\na,x\n" + draw.choice((b"", b"b,\n", b"zz,1\n", b"a,y\n", b'"', b"\0,\xff\n"))
        (place / draw.choice(("", "train")) / draw.choice(("groups.csv", "classes.toml"))).write_bytes(table)


def write_layout(draw: random.Random, folder: Path) -> Path:
    """A sound folder, and then up to five odd things in it; the masks' folder may be told."""
    image, mask = _saved(_picture("L", 5, 255), "PNG"), _saved(_picture("L"), "PNG")
    call = (
        {"masks": draw.choice((f"{folder}/data/masks", f"{folder}/data", f"{folder}/none", *WORDS))}
        if draw.random() < 0.15
        else {}
    )
    place = _folder(folder, _layout(draw, image, mask), **call)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 5))):
        try:
            _spoil(draw, place, image, mask)
        except OSError:
            continue
    return place


PICTURES = (
    ("classes", write_classes, read_classes),
    ("masks", write_masks, _load),
    ("tiff", write_tiff, _load),
    ("png16", write_png16, _load),
    ("layout", write_layout, _load),
)
