"""What command lines do with bad input, bad environments and outputs that nobody takes: one line, exit code 2, nothing
written, no traceback.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.build import SMALLEST_NETWORK, build_network
from engine.cli import UsageError
from engine.config import Config, ConfigError, from_dict, read_toml
from engine.data import DataError, load, npz
from engine.errors import InputError, printable, quoted, reading
from engine.inference import Normalisation
from engine.train import parse
from engine.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tests.support.paths import ROOT

BOTTLENECKS = ["aspp+psa+spp", "aspp+psa", "psa", "mhsa", "none"]
ENCODERS = ["residual+inception", "residual", "plain"]
ENVIRONMENT = ["KERNELS", "THREADS", "SIMD", "PRECISION", "DEVICE", "CONV"]


def command(*arguments: str, environment: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-m", *arguments], text=True, env=known, cwd=ROOT, check=False, **streams)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line with these words in it."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("name", ENVIRONMENT)
@pytest.mark.parametrize("value", ["nonsense", "²"])
def test_every_environment_variable_is_checked(name: str, value: str, tmp_path: Path) -> None:
    """By whatever command first needs it; here one that looks at everything, and one kernel."""
    code = """
from engine.cli import run_command
def main():
    import numpy as np
    from engine import doctor
    from kernels import conv, pointwise
    from kernels.core import device
    from kernels.core.precision import precision
    from kernels.conv.cpu import algorithm
    device.choose(), precision(), algorithm.mode()
    list(doctor.facts())
    pointwise.relu_forward(np.ones((1, 2, 2, 1), np.float32))
run_command(main)
"""
    variable = f"AREOGRAD_{name}"
    known = {**os.environ, "PYTHONPATH": str(ROOT), variable: value}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=known, cwd=ROOT, check=False
    )
    refused(result, f"error: {variable}: got {value!r}, ")


def test_a_bad_environment_is_no_error_of_an_import() -> None:
    result = command("engine.train", "--help", environment={f"AREOGRAD_{name}": "nonsense" for name in ENVIRONMENT})
    assert result.returncode == 0, result.stderr


def test_debug_shows_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("a = [")
    refused(command("engine.train", "--config", str(path)), "no valid TOML")
    result = command("engine.train", "--config", str(path), "--debug")
    assert result.returncode == 2
    assert "TOMLDecodeError" in result.stderr
    assert "direct cause" in result.stderr


def test_configs_that_are_no_files(tmp_path: Path) -> None:
    for path, words in (
        ("/dev/zero", "more than"),
        (str(tmp_path), "Is a directory"),
        ("x" * 5000, "File name too long"),
        (str(tmp_path / "\x1b[31m"), "\\x1b[31m"),
    ):
        refused(command("engine.train", "--config", path), words)


def test_outputs_that_nobody_takes(tmp_path: Path) -> None:
    """A reader who has gone is no error; a full disk is, in the end; a closed stream is no output."""
    with open("/dev/full", "w") as full:
        result = command("engine.doctor", stdout=full)
    assert result.returncode == 1
    assert result.stderr == "error: the output could not be written (No space left on device)\n"
    ours, theirs = os.pipe()
    os.close(ours)
    result = command("engine.doctor", stdout=theirs)
    os.close(theirs)
    assert (result.returncode, result.stderr) == (0, "")
    shell = f'exec "{sys.executable}" -m engine.doctor >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell], cwd=ROOT, check=False).returncode == 0


def test_ascii_terminals(tmp_path: Path) -> None:
    """What cannot be encoded is escaped."""
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    refused(command("engine.train", "--config", "Größe", environment=environment), "No such file")
    assert command("engine.train", "--help", environment=environment).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "x"], "Error parsing --epochs: invalid literal"),
        (["--epochs", "9" * 5000], "--epochs"),
        (["--nosuch", "3"], "Unrecognized options: --nosuch, 3"),
        (
            ["--preset", "foo"],
            "invalid choice 'foo' for argument '--preset'. Expected one of ('tiny', 'small', 'report')",
        ),
        (["--data"], "Missing value for argument '--data'"),
        (["--out", ""], "--out: got an empty name"),
        (["--batch", "0"], "batch: got 0, expected 2 to 100000"),
        (["--learning-rate", "1e999"], "learning_rate: got inf, expected a finite number"),
        (["[bold]", "[/x]"], "Unrecognized options"),
    ],
)
def test_command_lines(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError if "got" not in words or "empty" in words else ConfigError) as error:
        parse(arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# --- readers ----------------------------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def header(descr: object, shape: object, order: bool = False) -> bytes:
    text = str({"descr": descr, "fortran_order": order, "shape": shape}).encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


def saved(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


PAIRS = np.zeros((2, 2, 8, 8), np.uint8)
BOMBS = {
    "one string": (
        {"training_set.npy": saved(PAIRS), "train_group.npy": header("<U200000000", (2,)) + bytes(16_000_000)},
        "bytes",
    ),
    "long names": (
        {"training_set.npy": saved(PAIRS), "train_group.npy": header("<U100000", (2,)) + bytes(800_000)},
        "1000 characters at most",
    ),
    "many tiles": (
        {"training_set.npy": header("|u1", (2**15, 2, 8, 8)) + bytes(2**22)},
        "at most 262144 pixels a tile and 1048576 in a file",
    ),
    "a large tile": (
        {"training_set.npy": header("|u1", (1, 2, 1024, 1024)) + bytes(2**21)},
        "at most 262144 pixels a tile",
    ),
    "a shape that is said only": ({"training_set.npy": header("<f8", (2**40, 2, 8, 8)) + bytes(100)}, "the archive"),
    "a negative shape": ({"training_set.npy": header("<f8", (-1, 2, 8, 8)) + bytes(100)}, "the archive"),
    "a long header": (
        {"training_set.npy": b"\x93NUMPY\2\0" + (2**31).to_bytes(4, "little") + bytes(10**6)},
        "a header of 2147483648 bytes",
    ),
    "a nested header": (
        {"training_set.npy": b"\x93NUMPY\1\0" + (5000).to_bytes(2, "little") + b"(" * 5000},
        "cannot be read",
    ),
    "an open header": (
        {"training_set.npy": b"\x93NUMPY\1\0" + (9).to_bytes(2, "little") + b"{'descr':"},
        "cannot be read",
    ),
    "names that are no text": (
        {"training_set.npy": saved(PAIRS), "train_group.npy": header("<U1", (2,)) + b"\xff" * 8},
        "no text",
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_archives_that_want_much(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files that say, or hold, much: refused before memory is taken."""
    import tracemalloc

    monkeypatch.setattr(npz, "MOST_PIXELS", 1 << 20)
    monkeypatch.setattr(npz, "MOST_TILE", 1 << 18)
    members, words = BOMBS[case]
    path = archive(tmp_path / "bomb.npz", members)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_named(method: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"compressed by method {method}, expected 0 or 8"):
        load(archive(tmp_path / "t.npz", {"training_set.npy": saved(PAIRS)}, method))


def test_encrypted_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "t.npz", {"training_set.npy": saved(PAIRS)})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="it is encrypted"):
        load(path)


def test_a_long_directory(tmp_path: Path) -> None:
    """A million members of no content would take a gigabyte of names."""
    with pytest.raises(DataError, match="its directory is too long"):
        load(archive(tmp_path / "t.npz", {f"{'x' * 1000}{k}": b"" for k in range(1100)}))


def test_arrays_in_other_orders_and_types(tmp_path: Path) -> None:
    """What numpy writes is read: Fortran order, big-endian, integers, and chunks smaller than a tile count."""
    numbers = np.random.default_rng(0)
    pairs = np.stack([numbers.integers(0, 256, (600, 8, 16)), numbers.integers(0, 5, (600, 8, 16))], axis=1)
    names = np.array(["a", "bcd"] * 300)
    for changed in (np.asfortranarray(pairs), pairs.astype(">f4"), pairs.astype("<i2"), pairs.astype(np.float16)):
        np.savez(tmp_path / "t.npz", training_set=changed, train_group=names.astype(">U3"))
        tiles = load(tmp_path / "t.npz").train
        assert np.array_equal(tiles.images, pairs[:, 0])
        assert np.array_equal(tiles.masks, pairs[:, 1])
        assert tiles.groups.tolist() == names.tolist()


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for path, words in (
        (tmp_path / "pipe.npz", "not an ordinary file"),
        (tmp_path / "loop.npz", "Too many levels"),
        (tmp_path / "zero.npz", "not an ordinary file"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b", "null"),
    ):
        with pytest.raises(DataError, match=words):
            load(path)


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "9" * 5000,
        "seed = " + "[" * 3000,
        "dropout = " + "9" * 400,
        "preset = []",
        'preset = "x\\ny"',
        "a." * 2000 + "b = 1",
        "\xff",
        "'' = 1",
        "width = nan",
    ],
)
def test_toml_that_breaks_parsers(text: str, tmp_path: Path) -> None:
    """Recursion, numbers of thousands of digits, numbers that are no float, types that cannot be compared."""
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        read_toml(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_settings_that_are_none() -> None:
    for values in (None, [], "x", 3, {"epochs": 2**70}, {"dropout": 10**400}, {1: 2, "x": 3}):
        with pytest.raises(ConfigError):
            from_dict(values)  # type: ignore[arg-type]
    assert from_dict({}) == Config()


def test_messages_are_one_line_whatever_they_quote() -> None:
    assert quoted("x" * 10_000) == "'" + "x" * 56 + "..."
    assert quoted(10**5000) == "int (too large to show)"
    assert printable("a\nb\x1b[31m\udcff\u202e") == "a\\nb\\x1b[31m\\udcff\\u202e"
    assert len(printable("x" * 100_000)) < 700
    with pytest.raises(InputError, match=r"^file \(what happened\\t here\)$") as error, reading(InputError, "file"):
        raise RuntimeError("what happened\t here\nand there")
    assert isinstance(error.value.__cause__, RuntimeError)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint(path: Path, **changes: object) -> Path:
    """A small network's file with other metadata."""
    config = Config(width=4, bottleneck="none", encoder="plain", skips="plain")
    save_checkpoint(path, build_network(config), config, Normalisation(0.5, 0.25), {"epoch": 1})
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["areograd"])
    about = changes.pop("whole") if "whole" in changes else about | changes
    header["__metadata__"]["areograd"] = about if isinstance(about, str) else json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"whole": "[]"}, "its metadata is \\[\\], expected an object"),
        ({"whole": "[" * 5000}, "recursion"),
        ({"whole": "{"}, "Expecting property name"),
        ({"record": 3}, "its record is 3, expected an object"),
        ({"config": None}, "its config: got None"),
        ({"config": {"width": 1024}}, "width 1024, but its arrays hold 31[0-9]{3} numbers only"),
        ({"normalisation": {"mean": 0.5, "std": 0}}, "std 0, expected more than 0"),
        ({"normalisation": {"mean": float("nan"), "std": 1}}, "mean nan, expected a number"),
        ({"normalisation": {"mean": "x", "std": 1}}, "mean 'x', expected a number"),
        ({"normalisation": {"mean": 0.5}}, "missing 1 required"),
        ({"normalisation": []}, "mapping"),
        ({"format": {"a": 1}}, "its format is "),
    ],
)
def test_checkpoints_that_are_none(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"^checkpoint .*: .*{words}") as error:
        load_checkpoint(checkpoint(tmp_path / "c.safetensors", **changes))
    assert str(error.value).isprintable()
    assert load_checkpoint(checkpoint(tmp_path / "c.safetensors")).record == {"epoch": 1}


def test_a_width_is_believed_only_of_enough_numbers() -> None:
    """The bound holds for every kind of network: none is smaller."""
    for width in (4, 8, 16):
        config = Config(width=width, bottleneck="none", encoder="plain", skips="plain")
        assert (
            sum(array.size for array in build_network(config).state_dict().values())
            >= SMALLEST_NETWORK * config.width**2
        )
    leanest = [
        build_network(Config(width=4, bottleneck=b, encoder=e, skips=s))
        for b in BOTTLENECKS
        for e in ENCODERS
        for s in ("gated", "plain")
    ]
    assert min(sum(array.size for array in net.state_dict().values()) for net in leanest) >= SMALLEST_NETWORK * 16


def test_paths_of_checkpoints(tmp_path: Path) -> None:
    long, zero = tmp_path / ("x" * 300), Path("/dev/zero")
    for path, words in (
        (tmp_path, "a folder that holds no run"),
        (long, "too long"),
        (tmp_path / "none", "no such file"),
        (zero, "ordinary"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(path)


# --- images -----------------------------------------------------------------------------------------------------------


def image_pair(folder: Path, content: bytes) -> Path:
    """A folder with one pair, whose image has this content."""
    folder.mkdir()
    (folder / "a.png").write_bytes(content)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a_mask.png")
    return folder


def encoded(form: str, size: tuple[int, int] = (8, 8)) -> bytes:
    Image.new("L", size, 3).save(file := io.BytesIO(), form)
    return file.getvalue()


def test_images_are_told_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS of any name would start Ghostscript; it is no image here, nor are rarer formats."""
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(subprocess, "check_call", None)
    for form in ("EPS", "BMP", "GIF", "PCX"):
        with pytest.raises(DataError, match=r"a\.png: not an image, or none of PNG, JPEG, TIFF, WebP and PGM"):
            load(image_pair(tmp_path / form, encoded(form)))
    for form in ("PNG", "TIFF", "PPM"):
        assert (load(image_pair(tmp_path / form, encoded(form))).train.images == 3).all()


def test_images_that_want_much(tmp_path: Path) -> None:
    """A megabyte of compressed zeros; the size is in its header."""
    bomb = bytearray(encoded("PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"60000 x 60000 pixels, expected at most 67108864|cannot be read as a PNG"):
        load(image_pair(tmp_path / "a", bytes(bomb)))
    bomb[16:24] = (9000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match="9000 x 9000 pixels, expected at most 67108864 in all"):
        load(image_pair(tmp_path / "b", bytes(bomb)))


def test_many_images_that_want_much(tmp_path: Path) -> None:
    """Each is allowed, together they are not."""
    content = encoded("PNG", (8192, 8192))
    for k in range(3):
        for name in (f"{k}.png", f"{k}_mask.png"):
            (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="got 3 images of 67108864 pixels, expected at most 134217728 in all"):
        load(tmp_path)


def test_the_overview_lists_every_command() -> None:
    """Every module and package of engine/ with a command line of its own, and the benchmarks."""
    from engine.__main__ import COMMANDS

    folder = ROOT / "engine"
    modules = {path.stem for path in folder.glob("*.py") if "run_command(" in path.read_text()} - {"__main__", "cli"}
    assert set(COMMANDS) == {"bench"} | modules | {path.parent.name for path in folder.glob("*/__main__.py")}
    shown = command("engine").stdout
    for name, text in COMMANDS.items():
        assert f"  {name:<12}{text}\n" in shown
    assert command("engine", "--version").stdout.strip().count(".") == 2


def test_a_command_is_run_by_its_name() -> None:
    refused(command("engine", "trian"), "'trian'", "did you mean train?")
    refused(command("engine", "xyz"), "expected one of train, evaluate")
    refused(command("engine", "evaluate", "nothing.safetensors"), "no such file")
    assert command("engine", "gradcheck", "relu").returncode == 0


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--quiet", r"val mIoU .*\nmodel .*\nmetrics .*\npictures .*\nreport [^\n]*\n"),
        ("-v", r".*epoch +1/1  step 2/2  loss [\d.]+ margin .* dice .* focal .* iou .*\npictures .*"),
        ("--json", r'\{"epoch": 1, .*"train_loss": .*\}\n\{"val_miou_fg": .*\}\n'),
    ],
)
def test_what_training_prints(option: str, expected: str, tmp_path: Path) -> None:
    settings = ["--width=4", "--tiles=40", "--epochs=1", "--batch=16", f"--out={tmp_path / 'run'}"]
    result = command("engine.train", *settings, option, environment={"AREOGRAD_KERNELS": "reference"})
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(expected, result.stdout, re.DOTALL), result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    if option == "--json":
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert rows[0] == json.loads((tmp_path / "run/metrics.jsonl").read_text())
        assert rows[1] == json.loads((tmp_path / "run/summary.json").read_text())
        assert "split by source image" in result.stderr


def test_training_prints_one_way() -> None:
    refused(command("engine.train", "--json", "-q"), "error: --quiet: contradicts --json")


def test_make_lists_its_targets() -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    # A test that `make test` runs is itself below a make, whose flags and level would make this one report its folder.
    quiet = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    listed = subprocess.run(["make"], cwd=ROOT, env=quiet, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())
    assert {line.split()[1] for line in listed.splitlines()} == targets
