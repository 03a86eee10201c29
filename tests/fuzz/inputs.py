"""What the fuzzers feed the readers: real files, mutated, and files made from grammars."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.build import build_network
from engine.config import Config, read_toml, to_toml
from engine.data import load
from engine.inference import Normalisation
from engine.training.checkpoint import load_checkpoint, save_checkpoint
from tests.fuzz.mutations import WORDS, mutated, mutated_png, put
from tests.fuzz.pictures import PICTURES


@dataclass(frozen=True)
class Reader:
    """write(draw, folder) makes an input there, read(path) reads it. share: how often it is drawn."""

    name: str
    write: Callable[[random.Random, Path], Path]
    read: Callable[[Path], Any]
    share: float = 1.0


# --- npz --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _arrays() -> list[dict[str, np.ndarray]]:
    numbers = np.random.default_rng(0)
    made = []
    for dtype in (np.uint8, np.float32, np.float64):
        pairs = np.stack([numbers.integers(0, 256, (3, 8, 16)), numbers.integers(0, 5, (3, 8, 16))], axis=1).astype(
            dtype
        )
        made.append({"training_set": pairs, "train_group": np.array(["a", "b", ""])})
        made.append(
            {**made[-1], "test_set": pairs[:, 0], "test_labels": pairs[:, 1], "test_group": np.array(["c", "d", "e"])}
        )
    return made


@lru_cache(maxsize=1)
def _npz() -> list[bytes]:
    files = []
    for save in (np.savez, np.savez_compressed):
        for arrays in _arrays():
            save(file := io.BytesIO(), **arrays)
            files.append(file.getvalue())
    return files


def write_npz(draw: random.Random, folder: Path) -> Path:
    """A mutated archive, or a sound archive of mutated arrays: headers with other shapes and types, members that
    decompress to much.
    """
    if draw.random() < 0.5:
        return put(folder, "t.npz", mutated(draw, draw.choice(_npz()), _npz()))
    file = io.BytesIO()
    with zipfile.ZipFile(
        file,
        "w",
        draw.choice(
            (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ),
    ) as archive:
        for key, array in draw.choice(_arrays()).items():
            np.save(member := io.BytesIO(), array)
            content = member.getvalue()
            if draw.random() < 0.4:
                content = _header(draw) + content[128:] + bytes(draw.choice((0, 0, 10_000, 3_000_000)))
            elif draw.random() < 0.3:
                content = mutated(draw, content, [content])
            archive.writestr(draw.choice((key, f"{key}.npy", f"{key}.npy", f"{key}.npy", "x.npy")), content)
    return put(folder, "t.npz", file.getvalue())


def _header(draw: random.Random) -> bytes:
    kinds = [
        "|u1",
        "<f8",
        "<f4",
        "<U1",
        "<U100000000",
        ">U3",
        "|O",
        "|b1",
        "<c16",
        "|V8",
        "<f2",
        "<i8",
        "<m8[s]",
        "|S5",
        "<f16",
        "x",
        "",
        [("a", "<f8")],
    ]
    shapes = [
        (3, 2, 8, 16),
        (3,),
        (3, 8, 16),
        (),
        (0,),
        (-1, 2),
        (2**62, 2, 8, 8),
        (3, 2, 2**20, 2**20),
        (10**30,),
        (3, 2, 8, 8, 1),
        (70000, 2, 8, 8),
        "x",
        (1.5,),
    ]
    text = str(
        {
            "descr": draw.choice(kinds),
            "fortran_order": draw.choice((False, False, True, 0)),
            "shape": draw.choice(shapes),
        }
    )
    if draw.random() < 0.3:
        text = mutated(draw, text.encode(), [b"(" * 500, b"[" * 500, b"{'descr': "]).decode("latin-1")
    content = text.encode("latin-1", "replace")
    version = draw.choice((1, 1, 1, 2, 3, 9))
    size = (
        struct.pack("<H", len(content) % 65536)
        if version == 1
        else struct.pack("<I", draw.choice((len(content), len(content), 2**31)))
    )
    return b"\x93NUMPY" + bytes((version, 0)) + size + content


# --- images and their folders -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _images() -> list[bytes]:
    numbers = np.random.default_rng(0)
    grey = Image.fromarray(numbers.integers(0, 5, (8, 16), np.uint8))
    palette = grey.copy()
    palette.putpalette([0, 0, 0, 200, 90, 40, 90, 90, 200, 230, 210, 90, 220, 0, 0])
    files = []
    for image, form, options in [
        (grey, "PNG", {}),
        (palette, "PNG", {"transparency": 0}),
        (grey.convert("RGB"), "PNG", {"icc_profile": b"profile" * 40}),
        (grey.convert("1"), "PNG", {}),
        (grey.convert("I;16"), "PNG", {}),
        (grey, "JPEG", {}),
        (grey, "TIFF", {}),
        (grey, "TIFF", {"compression": "tiff_lzw"}),
        (grey.convert("RGB"), "WEBP", {}),
        (grey, "PPM", {}),
        (grey, "EPS", {}),
        (grey.convert("RGB"), "GIF", {}),
        (grey, "BMP", {}),
    ]:
        image.save(file := io.BytesIO(), form, **options)
        files.append(file.getvalue())
    return files


def write_folder(draw: random.Random, folder: Path) -> Path:
    """Two pairs, of which one image is mutated; a mutated groups.csv at times."""
    images = _images()
    place = folder / "data"
    place.mkdir()
    good = images[0]
    files = {"a.png": good, "a_mask.png": good, "b.png": good, "b_mask.png": good}
    name, content = draw.choice(list(files)), draw.choice(images[:5] if draw.random() < 0.6 else images)
    files[name] = (
        mutated_png(draw, content)
        if content[:4] == b"\x89PNG" and draw.random() < 0.6
        else mutated(draw, content, images)
    )
    if draw.random() < 0.3:
        table = b"name,group\na,x\nb,y\n"
        files["groups.csv"] = mutated(draw, table, [table, b'"' * 9, b"\0", b'"' + b"a" * 200_000])
    for file, data in files.items():
        (place / file).write_bytes(data)
    return place


# --- TOML -------------------------------------------------------------------------------------------------------------

VALUES = [
    *WORDS,
    "1",
    "8",
    "1.5",
    "'tiny'",
    '"report"',
    "1979-05-27",
    "07:32:00",
    "0x" + "f" * 3000,
    "1_0",
    "-0.0",
    "[1, [2]]",
    "{a = 1}",
    '"\\ud800"',
    '"""x"""',
    "1e308",
]


def write_toml(draw: random.Random, folder: Path) -> Path:
    """The settings of a run, mutated as bytes or by other values and names."""
    text = to_toml(Config())
    if draw.random() < 0.4:
        return put(folder, "c.toml", mutated(draw, text.encode(), [text.encode(), b"[" * 3000, b"a." * 3000]))
    lines = text.splitlines()
    for _ in range(draw.choice((1, 1, 2, 5))):
        k = draw.randrange(len(lines))
        name = lines[k].split(" = ")[0]
        name = draw.choice(
            (name, name, name, draw.choice(WORDS), f'"{draw.choice(WORDS)}"', "a." * draw.choice((1, 2000)) + "b")
        )
        lines[k] = draw.choice(
            (f"{name} = {draw.choice(VALUES)}", f"{name} = {draw.choice(VALUES)}", f"[{name}]", f"[[{name}]]", name)
        )
    return put(folder, "c.toml", "\n".join(lines).encode("utf-8", "surrogatepass"))


# --- checkpoints ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _checkpoint() -> bytes:
    import tempfile

    config = Config(width=4, bottleneck="none", encoder="plain", skips="plain")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.safetensors")
        save_checkpoint(path, build_network(config), config, Normalisation(0.5, 0.25), {"epoch": 3})
        return path.read_bytes()


def write_checkpoint(draw: random.Random, folder: Path) -> Path:
    """A trained network, mutated as bytes, or with another header or other metadata of the right form."""
    content = _checkpoint()
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = draw.randrange(4)
    if kind == 0:
        return put(folder, "c.safetensors", mutated(draw, content, [content[:4000]]))
    if kind == 1:
        text = mutated(draw, content[8 : 8 + size], [content[8 : 8 + size]])
    else:
        place = (
            header["__metadata__"]
            if kind == 2
            else header[draw.choice([name for name in header if name != "__metadata__"])]
        )
        _edit(draw, place)
        if draw.random() < 0.2:
            header["__metadata__"] = draw.choice((None, 1, [], "x", {}, {"format": 3}))
        text = json.dumps(header).encode()
    return put(folder, "c.safetensors", len(text).to_bytes(8, "little") + text + body)


def _edit(draw: random.Random, place: dict[str, Any]) -> None:
    """Other values somewhere in nested JSON, within its strings of JSON too."""
    key = draw.choice(list(place))
    value = place[key]
    others = [
        None,
        0,
        -1,
        2**70,
        1e308,
        float("nan"),
        [],
        {},
        "",
        "x",
        True,
        [[]],
        1024,
        10**400,
        "[" * 3000,
        "\ud800",
        "{" * 9,
        "null",
        "3",
        "[]",
    ]
    if isinstance(value, str) and value[:1] == "{" and draw.random() < 0.8:
        inner = json.loads(value)
        if inner:
            _edit(draw, inner)
            place[key] = json.dumps(inner)
            return
    if isinstance(value, dict) and value and draw.random() < 0.8:
        _edit(draw, value)
        return
    if draw.random() < 0.2:
        del place[key]
    elif isinstance(value, list) and value and draw.random() < 0.7:
        value[draw.randrange(len(value))] = draw.choice(others)
    else:
        place[key] = draw.choice(others)


# --- command lines ----------------------------------------------------------------------------------------------------


def write_command(draw: random.Random, folder: Path) -> Path:
    """Options of engine.train with values of all kinds, a line each."""
    names = [
        "--preset",
        "--data",
        "--epochs",
        "--batch",
        "--width",
        "--seed",
        "--device",
        "--out",
        "--config",
        "--threads",
        "--dropout",
        "--no-fppm",
        "--learning-rate",
    ]
    words = [
        *[w for w in WORDS if "\0" not in w],
        "tiny",
        "3",
        "0.5",
        "--",
        "-",
        "--help",
        "=",
        "[bold]",
        "[/x]",
        "{}",
        "100000",
        str(folder),
        "/dev/null",
    ]
    tokens = []
    for _ in range(draw.choice((1, 2, 3, 6))):
        name, word = draw.choice([*names, draw.choice(words)]), draw.choice(words)
        tokens += draw.choice(([name, word], [f"{name}={word}"], [name], [word]))
    return put(folder, "command", "\n".join(t.replace("\n", " ") for t in tokens).encode("utf-8", "surrogatepass"))


def read_command(path: Path) -> None:
    """Parse the line as engine.train does."""
    from engine.train import parse

    parse(path.read_bytes().decode("utf-8", "surrogatepass").split("\n"))


READERS = {
    reader.name: reader
    for reader in (
        Reader("npz", write_npz, load, 1.0),
        Reader("folder", write_folder, load, 1.0),
        Reader("toml", write_toml, read_toml, 1.0),
        Reader("checkpoint", write_checkpoint, load_checkpoint, 0.5),
        Reader("command", write_command, read_command, 0.04),
        *(Reader(name, write, read, 0.5) for name, write, read in PICTURES),
    )
}
