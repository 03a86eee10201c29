"""The command engine.predict: what it writes, of what it is given, and what it says about bad input."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.build import Form
from engine.cli import parsed
from engine.data import MARS, load
from engine.data.classes import Classes, counted
from engine.data.images import read_stored
from engine.ensemble import load_ensemble
from engine.predict import __main__ as command
from engine.predict import outputs
from tests.support.networks import patchwork, write_run
from tests.support.paths import ROOT
from tests.support.tiny_runs import ended, posix

FORM = Form(replace(MARS, names=(*MARS.names[:3], "sänd", "big rock")), 1, (16, 24), "uint8", (3,))
SIZES = {"a.png": (16, 24), "deep/b.png": (45, 70), "deep/c.jpg": (9, 11)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / str(seed), FORM, seed) for seed in range(2)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k, (name, size) in enumerate(SIZES.items()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patchwork(size, k)).save(path)
    return tmp_path / "photos"


def main(arguments: Sequence[object]) -> int:
    return command.run(parsed(command.Arguments, "predict", args=[str(a) for a in arguments]))


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# --- what is written --------------------------------------------------------------------------------------------------


def test_masks_are_palette_images_of_the_labels(runs: list[Path], photos: Path, tmp_path: Path) -> None:
    assert main([runs[0], photos, "--out", tmp_path / "out"]) == 0
    assert written(tmp_path / "out") == {"masks/a.png", "masks/deep/b.png", "masks/deep/c.png"}
    seen = set()
    for name in SIZES:
        labels, _ = load_ensemble(runs[:1]).predict(levels(photos / name))
        path = (tmp_path / "out" / "masks" / name).with_suffix(".png")
        image = Image.open(path)
        assert image.mode == "P"
        np.testing.assert_array_equal(read_stored(path), labels)
        colours = [[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in MARS.colours]
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(colours)[labels])
        seen |= set(np.unique(labels).tolist())
    assert len(seen) >= 3
    assert seen <= {1, 2, 4}  # neither unlabelled, nor what training lacked


VALUES = replace(counted(3), values=(3, 7, 250), plain=False, names=("a", "b", "c"))


@pytest.mark.parametrize(
    ("classes", "mode"), [(VALUES, "P"), (replace(VALUES, values=(3, 300, 65535)), "I;16"), (counted(1), "P")]
)
def test_masks_hold_what_masks_hold_in_training(classes: Classes, mode: str, tmp_path: Path) -> None:
    """So that they can be trained on: the folder of images and predicted masks is a data set of the same classes."""
    run = write_run(tmp_path / "run", Form(classes, 1, (16, 24)))
    pixels = patchwork((40, 56), 3)
    (tmp_path / "set" / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "set" / "images" / "x.png")
    assert main([run, tmp_path / "set" / "images", "--out", tmp_path / "set" / "new"]) == 0
    (tmp_path / "set" / "new" / "masks").rename(tmp_path / "set" / "masks")
    labels, _ = load_ensemble([run]).predict(pixels)
    assert len(np.unique(labels)) > 1
    assert Image.open(tmp_path / "set" / "masks" / "x.png").mode == mode
    np.testing.assert_array_equal(read_stored(tmp_path / "set" / "masks" / "x.png"), np.array(classes.values)[labels])
    np.testing.assert_array_equal(load(tmp_path / "set", classes=classes).train.labels()[0], labels)


def test_masks_and_probabilities_as_arrays(runs: list[Path], photos: Path, tmp_path: Path) -> None:
    line = [*runs, photos / "deep" / "b.png", "--masks=npz", "--flips", "--out", tmp_path]
    assert main([*line, "--probabilities=float32"]) == 0
    assert written(tmp_path) >= {"masks/b.npz", "probabilities/b.npz"}
    labels, probabilities = load_ensemble(runs).predict(levels(photos / "deep" / "b.png"), flips=True)
    with np.load(tmp_path / "masks" / "b.npz") as stored:
        assert list(stored) == ["mask"]
        assert stored["mask"].dtype == np.uint8
        np.testing.assert_array_equal(stored["mask"], labels)
    with np.load(tmp_path / "probabilities" / "b.npz") as stored:
        assert stored["classes"].tolist() == list(FORM.classes.names)
        assert stored["probabilities"].dtype == np.float32
        np.testing.assert_array_equal(stored["probabilities"], probabilities)
    assert main([*line, "--probabilities=float16", "--overwrite"]) == 0
    with np.load(tmp_path / "probabilities" / "b.npz") as stored:
        assert stored["probabilities"].dtype == np.float16
        np.testing.assert_array_equal(stored["probabilities"], probabilities.astype(np.float16))


def test_an_overlay_is_the_image_tinted(runs: list[Path], photos: Path, tmp_path: Path) -> None:
    """Half of the class's colour, half of the level stretched between the 1st and the 99th percentile."""
    assert main([runs[0], photos, "--overlay", "--masks=none", "--out", tmp_path / "out"]) == 0
    assert written(tmp_path / "out") == {"overlays/a.png", "overlays/deep/b.png", "overlays/deep/c.png"}
    pixels, got = levels(photos / "deep" / "b.png"), levels(tmp_path / "out" / "overlays" / "deep" / "b.png")
    labels, _ = load_ensemble(runs[:1]).predict(pixels)
    low, high = np.percentile(pixels, (1, 99))
    for y, x in ((0, 0), (13, 44), (44, 69), (30, 2)):
        grey = min(max((pixels[y, x] - low) / (high - low), 0), 1) * 255
        colour = MARS.colours[labels[y, x]]
        wanted = [0.5 * grey + 0.5 * int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        np.testing.assert_allclose(got[y, x], wanted, atol=0.51)


def test_the_background_of_one_class_is_not_tinted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Form(counted(1), 3, (16, 24)))
    pixels = patchwork((16, 24), 0, channels=3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert main([run, tmp_path / "a.png", "--overlay", "--out", tmp_path / "out"]) == 0
    labels = read_stored(tmp_path / "out" / "masks" / "a.png")
    got = levels(tmp_path / "out" / "overlays" / "a.png")
    low, high = np.percentile(pixels, (1, 99))
    stretched = ((pixels - low) / (high - low) * 255).clip(0, 255)
    assert 0 < labels.mean() < 1
    np.testing.assert_allclose(got[labels == 0], stretched[labels == 0], atol=0.51)
    assert np.abs(got[labels == 1] - stretched[labels == 1]).max() > 20


def test_the_submission_is_read_back(tmp_path: Path) -> None:
    """The form of the homework: id first, then the columns 0 to 8191, the mask row by row, a row per test image."""
    run = write_run(tmp_path / "run", Form())
    tiles = np.stack([patchwork((64, 128), k) for k in range(12)]).astype(np.float64)
    training = np.stack([tiles[:2], np.ones((2, 64, 128))], 1)
    np.savez(tmp_path / "tiles.npz", training_set=training, test_set=tiles)
    assert main([run, tmp_path / "tiles.npz", "--csv", "--out", tmp_path / "out"]) == 0
    assert written(tmp_path / "out") == {"masks/tiles.npz", "submission.csv"}
    text = (tmp_path / "out" / "submission.csv").read_text()
    assert text.endswith("\n")
    assert "\r" not in text
    head, *rows = csv.reader(text.splitlines())
    assert head == ["id", *map(str, range(8192))]
    assert [row[0] for row in rows] == [str(k) for k in range(12)]
    ensemble = load_ensemble([run])
    for row, tile in zip(rows, tiles, strict=True):
        labels, _ = ensemble.predict(tile.astype(np.uint8))
        assert [int(value) for value in row[1:]] == [int(labels[y, x]) for y in range(64) for x in range(128)]
        assert len(set(row[1:])) > 1
    with np.load(tmp_path / "out" / "masks" / "tiles.npz") as stored:
        assert stored["masks"].shape == (12, 64, 128)
        assert stored["masks"][7].ravel().tolist() == [int(value) for value in rows[7][1:]]


def test_tiles_of_an_npz_file_one_by_one(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no test set, the training images; the numbers in names have equal lengths."""
    tiles = np.stack([patchwork((20, 30), k) for k in range(11)])
    np.savez(tmp_path / "tiles.npz", training_set=np.stack([tiles, 77 * np.ones_like(tiles)], 1))
    line = [runs[0], tmp_path / "tiles.npz", "--masks=png", "--probabilities=float16", "--out", tmp_path / "out"]
    assert main(line) == 0
    assert "has no test_set, so the 11 images of its training_set are taken" in capsys.readouterr().err
    names = {f"masks/tiles/{k:02d}.png" for k in range(11)}
    assert written(tmp_path / "out") == names | {"probabilities/tiles.npz"}
    labels, probabilities = load_ensemble(runs[:1]).predict(tiles[10])
    np.testing.assert_array_equal(read_stored(tmp_path / "out" / "masks" / "tiles" / "10.png"), labels)
    with np.load(tmp_path / "out" / "probabilities" / "tiles.npz") as stored:
        np.testing.assert_array_equal(stored["probabilities"][10], probabilities.astype(np.float16))


def test_a_line_of_json_for_every_image(
    runs: list[Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "t.npz", test_set=np.stack([patchwork((16, 24), k) for k in range(2)]))
    capsys.readouterr()
    assert main([*runs, photos, tmp_path / "t.npz", "--json", "--overlay", "--out", tmp_path / "out"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(Path(line["image"]).name, line.get("index")) for line in lines] == [
        ("a.png", None),
        ("b.png", None),
        ("c.jpg", None),
        ("t.npz", 0),
        ("t.npz", 1),
    ]
    for line in lines:
        stored = read_stored(Path(line["mask"])) if "mask" in line else np.load(line["masks"])["masks"][line["index"]]
        assert stored.shape == (line["height"], line["width"]) == levels(Path(line["overlay"])).shape[:2]
        shares = {name: float((stored == label).mean()) for label, name in enumerate(FORM.classes.names)}
        assert line["shares"] == pytest.approx(shares, abs=1e-6)
    _, probabilities = load_ensemble(runs).predict(levels(photos / "deep" / "b.png"))
    assert lines[1]["confidence"] == pytest.approx(float(probabilities.max(-1).mean()), abs=1e-5)


@posix
def test_the_bar_in_a_terminal_leaves_the_lines_alone(runs: list[Path], photos: Path, tmp_path: Path) -> None:
    """stderr is a terminal of 80 columns, stdout a pipe: every line is JSON, whatever its length."""
    import pty  # there is none on Windows

    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "engine.predict", runs[0], photos, "--json", "--out", tmp_path / "out"]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    shown: list[bytes] = []
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=theirs, text=True, env=known, cwd=ROOT) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while part := os.read(ours, 1 << 16):
                shown.append(part)
        lines = process.stdout.read().splitlines()
    os.close(ours)
    assert process.returncode == 0
    assert b" of 3 images" in b"".join(shown)
    assert b"confidence" not in b"".join(shown)
    assert [Path(json.loads(line)["image"]).name for line in lines] == ["a.png", "b.png", "c.jpg"]
    assert min(map(len, lines)) > 100


def test_a_summary_without_json(
    runs: list[Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([*runs, photos, "--overlay", "--out", tmp_path / "out"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("3 images, by 2 networks: ")
    assert first.count("%") >= 2
    assert [Path(line.split()[1]) for line in rest] == [tmp_path / "out" / "masks", tmp_path / "out" / "overlays"]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_files_folders_globs_and_archives_together(runs: list[Path], photos: Path, tmp_path: Path) -> None:
    """In any order with the checkpoints; the name of a match begins after what the pattern gives without wildcards."""
    np.savez(tmp_path / "t.npz", test_set=patchwork((16, 24))[None])
    for site in ("one", "two"):
        (tmp_path / "sites" / site).mkdir(parents=True)
        Image.fromarray(patchwork((16, 24))).save(tmp_path / "sites" / site / "x.png")
        (tmp_path / "sites" / site / "notes.txt").write_text("no image")
    given = [
        photos / "a.png",
        runs[0] / "best.safetensors",
        tmp_path / "sites" / "*" / "*",
        tmp_path / "t.npz",
        runs[1],
    ]
    assert main([*given, photos / "deep", "--out", tmp_path / "out"]) == 0
    assert written(tmp_path / "out" / "masks") == {"a.png", "b.png", "c.png", "t.npz", "one/x.png", "two/x.png"}
    assert main([tmp_path / "sites" / "*", runs[0], "--out", tmp_path / "again"]) == 0  # folders that match
    assert written(tmp_path / "again" / "masks") == {"one/x.png", "two/x.png"}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["images/x.png", "masks/x.png"], {"x"}),
        (["x.png", "x_mask.png", "y_mask.png"], {"x", "y_mask"}),
        (["x.jpg", "x.png"], {"x"}),
        (["train/images/x.png", "train/masks/x.png", "test/images/x.png"], {"train/images/x", "test/images/x"}),
        (["masks/x.png", ".hidden/y.png", "classes.toml"], {"masks/x"}),
        (["out/masks/x.png", "y.png"], {"y"}),
    ],
)
def test_a_folder_s_images_without_its_masks(
    files: list[str], names: set[str], runs: list[Path], tmp_path: Path
) -> None:
    """Nor what an earlier prediction has written there."""
    for name in files:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("") if path.suffix == ".toml" else Image.fromarray(patchwork((16, 24))).save(path)
    assert main([runs[0], tmp_path / "data", "--masks=npz", "--out", tmp_path / "data" / "out"]) == 0
    assert {name for name in written(tmp_path / "data" / "out" / "masks") if name.endswith(".npz")} == {
        f"{name}.npz" for name in names
    }


@pytest.mark.parametrize(("dtype", "suffix"), [("uint16", ".png"), ("float32", ".tif")])
def test_other_depths(dtype: str, suffix: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Form(counted(3), 1, (16, 24), dtype))
    pixels = patchwork((20, 50), 1, dtype=dtype)
    Image.fromarray(pixels).save(tmp_path / f"x{suffix}")
    assert main([run, tmp_path / f"x{suffix}", "--overlay", "--out", tmp_path / "out"]) == 0
    labels, _ = load_ensemble([run]).predict(pixels)
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(read_stored(tmp_path / "out" / "masks" / "x.png"), labels)


def test_grey_and_colour_as_in_training(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Colours that are all grey are grey for a grey network; among colour images grey ones are colour. Alpha is
    dropped, with a note.
    """
    grey = patchwork((16, 24), 2)
    three = np.repeat(grey[..., None], 3, 2)
    colour = patchwork((16, 24), 3, channels=3)
    for name, pixels in (("grey", grey), ("three", three), ("colour", colour), ("alpha", np.stack([grey, grey], -1))):
        Image.fromarray(pixels, "LA" if name == "alpha" else None).save(tmp_path / f"{name}.png")
    names = ["grey", "three", "alpha"]
    assert main([runs[0], *(tmp_path / f"{name}.png" for name in names), "--out", tmp_path / "out"]) == 0
    assert "1 images have an alpha channel, which is dropped" in capsys.readouterr().err
    wanted, _ = load_ensemble(runs[:1]).predict(grey)
    for name in names:
        np.testing.assert_array_equal(read_stored(tmp_path / "out" / "masks" / f"{name}.png"), wanted)
    run = write_run(tmp_path / "rgb", Form(counted(3), 3, (16, 24)))
    assert main([run, tmp_path / "grey.png", tmp_path / "colour.png", "--out", tmp_path / "rgb"]) == 0
    for name, pixels in (("grey", three), ("colour", colour)):
        labels, _ = load_ensemble([run]).predict(pixels)
        np.testing.assert_array_equal(read_stored(tmp_path / "rgb" / "masks" / f"{name}.png"), labels)


# --- bad input --------------------------------------------------------------------------------------------------------


def broken(folder: Path) -> None:
    """Files that cannot be predicted."""
    Image.fromarray(patchwork((16, 24), channels=3)).save(folder / "rgb.png")
    Image.fromarray(patchwork((16, 24), dtype="uint16")).save(folder / "deep.png")
    Image.fromarray(patchwork((16, 24))).save(folder / "grey.png")
    Image.fromarray(patchwork((8, 24))).save(folder / "low.png")
    (folder / "text.png").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "grey.png").read_bytes()[:200])
    np.savez(folder / "keys.npz", images=patchwork((16, 24)))
    np.savez(folder / "labels.npz", test_labels=np.zeros((1, 16, 24)))
    np.savez(folder / "none.npz", test_set=np.zeros((0, 16, 24)))
    (folder / "empty").mkdir()
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "config.toml").write_text("")
    (folder / "best.safetensors").write_text("damaged")
    (folder / "twice").mkdir()
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(patchwork((16, 24))).save(folder / "twice" / name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "got no checkpoint among 0 arguments"),
        (["grey.png"], "got no checkpoint among 1 arguments"),
        (["RUN"], "got no images"),
        (["RUN", "nothing"], "nothing: no such file or folder; expected a run folder"),
        (["RUN", "q*"], "q*: matches no image"),
        (["none.safetensors", "grey.png"], "none.safetensors: no such file"),
        (["best.safetensors", "grey.png"], "best.safetensors: not a readable safetensors file"),
        (["RUN", "rgb.png"], "rgb.png: got 3 channels of uint8, but the network was trained on 1 of uint8"),
        (["RUN", "grey.png", "deep.png"], "deep.png: got 1 channels of uint16, but the network was trained on 1 of"),
        (["RGB", "grey.png"], "grey.png: got 1 channels of uint8, but the network was trained on 3 of uint8"),
        (["RUN", "RGB", "grey.png"], "got channels 3, expected 1 like"),
        (["RUN", "grey.png", "text.png"], "text.png: not an image"),
        (["RUN", "keys.npz"], "keys.npz: unknown key 'images'"),
        (["RUN", "labels.npz"], "labels.npz: no key 'training_set', found test_labels"),
        (["RUN", "none.npz"], "none.npz: test_set: got no tile"),
        (["RUN", "empty"], "empty: got a folder without images"),
        (["RUN", "unfinished"], "unfinished: got a run folder in which no epoch is finished"),
        (["RUN", "twice"], "got the name 'grey' twice"),
        (["RUN", "grey.png", "twice/grey.tif"], "twice/grey.tif and HERE/grey.png would both be written to"),
        (["RUN", "grey.png", "low.png", "--csv"], "--csv: HERE/low.png: got 8 x 24 pixels, expected 16 x 24"),
        (["RUN", "grey.png", "--masks=none"], "--masks none: nothing is left to do"),
        (["RUN", "grey.png", "--batch=-1"], "--batch: got -1, expected 0 to"),
        (["RUN", "grey.png", "--threads=-1"], "--threads: got -1"),
        (["RUN", "cut.png", "--csv", "--probabilities=float16"], "cut.png: cannot be read as a PNG"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], words: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(tmp_path)
    known = {"RUN": runs[0], "RGB": tmp_path / "rgb"}
    if "RGB" in arguments:
        write_run(known["RGB"], Form(FORM.classes, 3, (16, 24)))
    line = [str(known.get(a, a if a.startswith("-") else tmp_path / a)) for a in arguments]
    code, text = ended([*line, f"--out={tmp_path / 'out'}"], capsys, main)
    assert code == 2
    assert text.startswith("error: ")
    assert words.replace("HERE", str(tmp_path)) in text
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(
    runs: list[Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless that is asked for; an input never is."""
    line = [str(runs[0]), str(photos), f"--out={tmp_path / 'out'}"]
    assert main(line) == 0
    before = (tmp_path / "out" / "masks" / "a.png").read_bytes()
    (tmp_path / "out" / "masks" / "a.png").write_bytes(b"mine")
    code, text = ended(line, capsys, main)
    assert code == 2
    assert "a.png exists (and 2 more), expected a free name, or --overwrite" in text
    assert (tmp_path / "out" / "masks" / "a.png").read_bytes() == b"mine"
    assert main([*line, "--overwrite"]) == 0
    assert (tmp_path / "out" / "masks" / "a.png").read_bytes() == before
    mask = tmp_path / "out" / "masks" / "a.png"
    Image.fromarray(patchwork((16, 24))).save(mask)
    for more, words in (
        ([str(mask)], "is an input, expected another folder"),
        ([str(tmp_path / "out")], "is a folder"),
    ):
        code, text = ended([str(runs[0]), *more, f"--out={tmp_path / 'out'}", "--overwrite"], capsys, main)
        assert code == 2
        assert words in text


def test_a_file_that_is_damaged_inside_ends_it_and_leaves_what_is_whole(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(tmp_path)
    line = [str(runs[0]), str(tmp_path / "grey.png"), str(tmp_path / "cut.png"), "--csv", f"--out={tmp_path / 'out'}"]
    code, text = ended([*line, "--batch=1"], capsys, main)
    assert code == 2
    assert "cut.png: cannot be read as a PNG" in text
    assert written(tmp_path / "out") == {"masks/grey.png"}


@pytest.mark.parametrize("moment", ["mask", "overlay", "strip"])
def test_an_interrupt_leaves_no_part_of_a_file(
    moment: str, runs: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a picture, or between two strips of a large image; pictures that are whole stay."""
    save, put, calls = Image.Image.save, outputs.Outputs.put, []

    def interrupted(image: Image.Image, file: object, *rest: object) -> None:
        if image.size == (70, 45) and image.mode == {"mask": "P", "overlay": "RGB"}[moment]:
            file.write(b"half")  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        save(image, file, *rest)  # type: ignore[arg-type]

    def stopped(self: outputs.Outputs, strip: object) -> object:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return put(self, strip)  # type: ignore[arg-type]

    if moment == "strip":
        monkeypatch.setattr(outputs.Outputs, "put", stopped)
    else:
        monkeypatch.setattr(Image.Image, "save", interrupted)
    line = [runs[0], photos, "--overlay", "--probabilities=float16", "--out", tmp_path / "out", "--batch=1"]
    with pytest.raises(KeyboardInterrupt):
        main(line)
    whole = {"masks/a.png", "overlays/a.png", "probabilities/a.npz"}
    assert written(tmp_path / "out") == whole | ({"masks/deep/b.png"} if moment == "overlay" else set())
    monkeypatch.undo()
    assert main([*line, "--overwrite"]) == 0


@posix
@pytest.mark.parametrize("file", ["a.png", "b.npz", "submission.csv"])
def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(
    file: str,
    runs: list[Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever file is the one that does not fit."""
    (photos / "deep" / "c.jpg").unlink()
    Image.fromarray(patchwork((16, 24))).save(photos / "deep" / "b.png")

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"{file}.part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("engine.files.os.fsync", full)
    line = [str(runs[0]), str(photos), "--csv", "--probabilities=float16", f"--out={tmp_path / 'out'}"]
    code, text = ended(line, capsys, main)
    assert code == 2
    assert f"{file}: No space left on device" in text
    assert not any(name.endswith((".part", file)) for name in written(tmp_path / "out"))


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: predict [OPTIONS] CHECKPOINT ... INPUT ...\n")
    assert text.count("\n  python -m engine.predict RUN") == 4
