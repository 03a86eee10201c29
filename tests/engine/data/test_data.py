"""Reading and writing of tiles: .npz files, folders of PNGs, and everything that can be wrong with them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data import (
    DataError,
    DataSet,
    Tiles,
    load,
    pixel_counts,
    save_npz,
)
from tests.support.paths import ROOT
from tests.support.tile_checks import assert_same

N, M, H, W = 6, 3, 16, 24


def pairs(dtype: str = "float64") -> dict[str, np.ndarray]:
    """A sound file in the original form, as a dict of arrays."""
    random = np.random.default_rng(7)
    train = np.stack([random.integers(0, 256, (N, H, W)), random.integers(0, 5, (N, H, W))], axis=1)
    return {
        "training_set": train.astype(dtype),
        "test_set": random.integers(0, 256, (M, H, W)).astype(dtype),
        "test_labels": random.integers(0, 5, (M, H, W)).astype(dtype),
        "train_group": np.array(["a", "a", "b", "", "c", "c"]),
        "test_group": np.array(["d", "d", "e"]),
    }


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path / "tiles.npz", **arrays)
    return path / "tiles.npz"


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- tiles ------------------------------------------------------------------------------------------------------------


def test_indexing_takes_tiles_with_their_masks_and_groups():
    arrays = pairs("uint8")
    tiles = Tiles(arrays["training_set"][:, 0], arrays["training_set"][:, 1], arrays["train_group"])
    for index in (slice(1, 4), np.array([4, 0, 0]), [2], np.arange(N) % 2 == 0, 3):
        part, rows = tiles[index], np.atleast_1d(np.arange(N)[index])
        assert len(part) == len(rows)
        assert_same(part, Tiles(tiles.images[rows], tiles.masks[rows], tiles.groups[rows]))
    assert_same(tiles.take([5]), tiles[5])
    assert Tiles(tiles.images)[1:].masks is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.zeros((2, 8, 8)),), r"images: got float64 \(2, 8, 8\), expected uint8"),
        ((np.zeros((8, 8), np.uint8),), r"images: got uint8 \(8, 8\)"),
        (
            (np.zeros((2, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)),
            r"masks: got uint8 \(3, 8, 8\), expected uint8 \(2, 8, 8\)",
        ),
        ((np.zeros((2, 8, 8), np.uint8), None, np.array(["a"])), r"groups: got <U1 \(1,\), expected str \(2,\)"),
    ],
)
def test_tiles_that_do_not_fit_together(arrays, message):
    with pytest.raises(DataError, match=message) as error:
        Tiles(*arrays)
    one_line(error)


def test_pixel_counts():
    masks = np.array([[[0, 0, 1], [1, 1, 4]], [[3, 3, 3], [3, 3, 3]]], np.uint8)
    np.testing.assert_array_equal(pixel_counts(masks), [[2, 3, 0, 0, 1], [0, 0, 0, 6, 0]])


# --- .npz -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_npz_round_trip(tmp_path, dtype):
    arrays = pairs(dtype)
    first = load(written(tmp_path, arrays))
    np.testing.assert_array_equal(first.train.images, arrays["training_set"][:, 0])
    np.testing.assert_array_equal(first.train.masks, arrays["training_set"][:, 1])
    np.testing.assert_array_equal(first.test.masks, arrays["test_labels"])
    np.testing.assert_array_equal(first.test.groups, arrays["test_group"])
    assert first.name == "tiles"
    assert first.notes == (
        f"train: {N} tiles of {H} x {W}, 3 source images",
        f"test: {M} tiles of {H} x {W}, 2 source images",
    )
    save_npz(first, tmp_path / "again.npz", dtype)
    with np.load(tmp_path / "again.npz") as again:
        assert again["training_set"].dtype == dtype
        assert again["training_set"].shape == (N, 2, H, W)
    second = load(str(tmp_path / "again.npz"))
    assert_same(second.train, first.train)
    assert_same(second.test, first.test)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.npz", "tiles.npz"]


def test_only_training_set_is_required(tmp_path):
    arrays = pairs()
    dataset = load(written(tmp_path, {"training_set": arrays["training_set"]}))
    assert dataset.test is None
    assert dataset.train.groups is None
    assert dataset.notes == (f"train: {N} tiles of {H} x {W}, source images unknown",)
    save_npz(dataset, tmp_path / "again.npz")
    assert_same(load(tmp_path / "again.npz").train, dataset.train)
    unlabelled = load(written(tmp_path, {key: arrays[key] for key in ("training_set", "test_set")}))
    assert unlabelled.test.masks is None
    assert unlabelled.notes[1].endswith("no masks")


def test_fractional_levels_are_rounded_to_the_nearest(tmp_path):
    arrays = pairs()
    arrays["training_set"][0, 0, 0, :4] = [10.4, 10.6, 254.7, 0.2]
    assert load(written(tmp_path, arrays)).train.images[0, 0, :4].tolist() == [10, 11, 255, 0]


def replaced(key: str, value: np.ndarray | None):
    def change(arrays):
        arrays.pop(key)
        if value is not None:
            arrays[key] = value

    return change


def poked(key: str, index: tuple, value: float):
    def change(arrays):
        arrays[key][index] = value

    return change


def normalised(arrays):
    arrays["training_set"][:, 0] /= 255


BAD_NPZ = {
    "no training set": (replaced("training_set", None), r"no key 'training_set', found test_set, test_labels"),
    "unknown key": (
        lambda a: a.update(train_groups=a.pop("train_group")),
        r"unknown key 'train_groups', expected only training_set",
    ),
    "dtype": (
        replaced("training_set", np.zeros((N, 2, H, W), bool)),
        r"training_set images: got dtype bool, expected uint8, float32",
    ),
    "strings": (replaced("test_set", np.full((M, H, W), "7")), r"test_set: got dtype <U1, expected"),
    "objects": (
        replaced("training_set", np.full((N, 2, H, W), None)),
        r"training_set: cannot be read.*allow_pickle=False",
    ),
    "axes": (
        replaced("training_set", np.zeros((N, H, W))),
        r"training_set: got 3 axes \(6, 16, 24\), expected 4: \(N, 2, H, W\)",
    ),
    "no mask": (
        replaced("training_set", np.zeros((N, 1, H, W))),
        r"training_set: got shape \(6, 1, 16, 24\), expected \(N, 2, H, W\)",
    ),
    "test axes": (replaced("test_set", np.zeros((M, 1, H, W))), r"test_set: got 4 axes .* expected 3"),
    "test size": (
        lambda a: a.update(test_set=np.zeros((M, H, 32)), test_labels=np.zeros((M, H, 32))),
        r"test tiles are 16 x 32, expected 16 x 24 like the training tiles",
    ),
    "label shape": (
        replaced("test_labels", np.zeros((M - 1, H, W))),
        r"test_labels: got shape \(2, 16, 24\), expected \(3, 16, 24\)",
    ),
    "labels alone": (replaced("test_set", None), r"got 'test_labels' without 'test_set'"),
    "label range": (
        poked("training_set", (2, 1, 3, 4), 5),
        r"training_set masks: got 5 in tile 2 at row 3, column 4, expected whole labels 0..4",
    ),
    "negative label": (poked("test_labels", (1, 0, 0), -1), r"test_labels: got -1 in tile 1"),
    "label fraction": (poked("training_set", (0, 1, 0, 0), 1.5), r"masks: got 1.5 in tile 0"),
    "label nan": (poked("training_set", (0, 1, 0, 0), np.nan), r"masks: got nan in tile 0"),
    "nan": (
        poked("training_set", (5, 0, 1, 2), np.nan),
        r"training_set images: got nan in tile 5 at row 1, column 2, expected grey levels 0..255",
    ),
    "inf": (poked("test_set", (0, 0, 0), np.inf), r"test_set: got inf in tile 0"),
    "too bright": (poked("training_set", (0, 0, 0, 0), 255.3), r"images: got 255.3 in tile 0"),
    "too dark": (poked("training_set", (0, 0, 0, 0), -0.1), r"images: got -0.1 in tile 0"),
    "normalised": (
        normalised,
        r"images: got fractional levels of at most 1, expected grey levels 0..255 \(scale by 255\)",
    ),
    "groups": (replaced("train_group", np.array(["a"])), r"train_group: got 1 names, expected 6"),
    "group dtype": (replaced("test_group", np.arange(M)), r"test_group: got dtype int64, expected strings"),
    "group axes": (replaced("train_group", np.full((N, 1), "a")), r"train_group: got 2 axes"),
    "empty": (replaced("training_set", np.zeros((0, 2, H, W))), r"train_group: got 6 names, expected 0"),
    "empty test": (
        lambda a: a.update(test_set=np.zeros((0, H, W)), test_labels=np.zeros((0, H, W)), test_group=np.array([], str)),
        r"got no test tile, expected at least one",
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_bad_npz(tmp_path, case):
    change, message = BAD_NPZ[case]
    arrays = pairs()
    change(arrays)
    with pytest.raises(DataError, match=message) as error:
        load(written(tmp_path, arrays))
    assert "tiles" in one_line(error)


def test_no_tiles_and_odd_sizes(tmp_path):
    with pytest.raises(DataError, match="got no train tile"):
        load(written(tmp_path, {"training_set": np.zeros((0, 2, H, W))}))
    with pytest.raises(DataError, match=r"train tiles are 16 x 20, expected sides divisible by 8 \(3 poolings\)"):
        load(written(tmp_path, {"training_set": np.zeros((2, 2, 16, 20))}))
    with pytest.raises(DataError, match="train tiles are 0 x 8"):
        load(written(tmp_path, {"training_set": np.zeros((2, 2, 0, 8))}))


def test_bad_tile_far_down_is_named_by_its_own_index(tmp_path):
    """Conversion goes in chunks; the index in the message must not be the chunk's."""
    arrays = {"training_set": np.zeros((700, 2, 8, 8), np.float32)}
    arrays["training_set"][601, 0, 7, 1] = 300
    with pytest.raises(DataError, match="got 300 in tile 601 at row 7, column 1"):
        load(written(tmp_path, arrays))


def test_truncated_file(tmp_path):
    whole = written(tmp_path, pairs()).read_bytes()
    path = tmp_path / "cut.npz"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npz: not a readable \.npz file, is it whole\?") as error:
            load(path)
        one_line(error)


def test_damage_inside_is_named_by_its_key(tmp_path):
    damaged = bytearray(written(tmp_path, pairs()).read_bytes())
    at = damaged.index(b"test_set.npy") + 500
    damaged[at] ^= 0xFF
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="test_set: cannot be read, is the file whole") as error:
        load(path)
    one_line(error)


def test_files_that_are_no_archive(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip file\n" * 20)
    with pytest.raises(DataError, match=r"text\.npz: not a readable \.npz file"):
        load(tmp_path / "text.npz")
    with open(tmp_path / "single.npz", "wb") as file:
        np.save(file, np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"got a single array of shape \(2, 3\)"):
        load(tmp_path / "single.npz")
    with pytest.raises(DataError, match=r"nowhere\.npz: no such file or folder"):
        load(tmp_path / "nowhere.npz")
    (tmp_path / "tiles.csv").write_text("")
    with pytest.raises(DataError, match=r"got a file named \*\.csv, expected 'synthetic', an \.npz file or a folder"):
        load(tmp_path / "tiles.csv")


def test_save_npz_refuses_and_never_leaves_a_half_written_file(tmp_path, monkeypatch):
    dataset = load(written(tmp_path, pairs()))
    with pytest.raises(DataError, match=r"got a file named \*\.zip"):
        save_npz(dataset, tmp_path / "tiles.zip")
    with pytest.raises(DataError, match="got dtype int16"):
        save_npz(dataset, tmp_path / "other.npz", "int16")
    with pytest.raises(DataError, match="these 6 tiles have no masks"):
        save_npz(DataSet("x", Tiles(dataset.train.images)), tmp_path / "other.npz")

    before = (tmp_path / "tiles.npz").read_bytes()

    def half(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(OSError, match="disk full"):
        save_npz(dataset, tmp_path / "tiles.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["tiles.npz"]
    assert (tmp_path / "tiles.npz").read_bytes() == before


# --- folders ----------------------------------------------------------------------------------------------------------


def write_folder(path: Path, tiles: Tiles, flat: bool, mode: str = "L") -> None:
    for sub in () if flat else ("images", "masks"):
        (path / sub).mkdir()
    for i, (image, mask) in enumerate(zip(tiles.images, tiles.masks, strict=True)):
        Image.fromarray(image).save(path / (f"t{i}.png" if flat else f"images/t{i}.png"))
        label = Image.fromarray(mask)
        if mode == "P":
            label.putpalette([0, 0, 0, 200, 90, 40, 90, 90, 200, 230, 210, 90, 220, 0, 0])
        label.save(path / (f"t{i}_mask.png" if flat else f"masks/t{i}.png"))


def folder_tiles() -> Tiles:
    arrays = pairs("uint8")
    return Tiles(arrays["training_set"][:, 0], arrays["training_set"][:, 1], arrays["train_group"])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_folder_round_trip(tmp_path, flat, mode):
    tiles = folder_tiles()
    write_folder(tmp_path, tiles, flat, mode)
    assert_same(load(tmp_path).train, Tiles(tiles.images, tiles.masks))
    with open(tmp_path / "groups.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "group"])
        rows.writerows((f"t{i}", group) for i, group in enumerate(tiles.groups) if group)  # t3 is not listed: unknown
    assert_same(load(tmp_path).train, tiles)
    assert load(tmp_path).name == tmp_path.name


def test_grey_images_stored_as_colour_are_read(tmp_path):
    tiles = folder_tiles()
    write_folder(tmp_path, tiles, flat=True)
    Image.fromarray(tiles.images[1]).convert("RGB").save(tmp_path / "t1.png")
    assert_same(load(tmp_path).train, Tiles(tiles.images, tiles.masks))


def saved(name: str, array: np.ndarray, mode: str | None = None):
    def change(path: Path):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path / name)

    return change


def text(name: str, content: str):
    return lambda path: (path / name).write_text(content)


GREY = np.full((H, W), 3, np.uint8)
BAD_FOLDERS = {
    "image without mask": (lambda p: (p / "masks/t2.png").unlink(), r"got 1 without mask: t2; expected a pair"),
    "mask without image": (lambda p: (p / "images/t0.png").unlink(), r"got 1 without image: t0"),
    "many orphans": (
        lambda p: [(p / f"masks/t{i}.png").unlink() for i in range(N)],
        r"got 6 without mask: t0, t1, t2, t3, t4, \.\.\.",
    ),
    "image size": (
        saved("images/t4.png", GREY[:8]),
        r"masks.t4\.png: got 16 x 24 pixels, expected 8 x 24 like .*images.t4\.png",
    ),
    "mask size": (saved("masks/t4.png", GREY[:, :8]), r"t4\.png: got 16 x 8 pixels, expected 16 x 24"),
    "all masks of another size": (
        lambda p: [saved(f"masks/t{i}.png", GREY[:8])(p) for i in range(N)],
        r"masks.t0\.png: got 8 x 24 pixels, expected 16 x 24 like .*images.t0\.png",
    ),
    "label": (saved("masks/t1.png", GREY + 4), r"masks.t1\.png: got 7 at row 0, column 0, expected whole labels 0..4"),
    "mask mode": (
        saved("masks/t1.png", np.stack([GREY, GREY, 2 * GREY], -1)),
        r"t1\.png: got a colour mask, but the classes have no colours",
    ),
    "image mode": (
        saved("images/t1.png", GREY.astype(np.uint16)),
        r"t1\.png: got uint16 levels, expected uint8 like .*t0\.png",
    ),
    "deep label": (saved("masks/t1.png", GREY.astype(np.uint16) + 256), r"masks.t1\.png: got 259 at row 0, column 0"),
    "one name twice": (
        saved("images/t1.PNG", GREY),
        r"t1\.png: got the name 't1' twice, here and in t1\.PNG; expected one file of each name",
    ),
    "one mask twice": (saved("masks/t1.PNG", GREY), r"masks.t1\.png: got the name 't1' twice"),
    "not a PNG": (text("images/t1.png", "hello"), r"t1\.png: not an image"),
    "cut PNG": (
        lambda p: (p / "images/t1.png").write_bytes((p / "images/t1.png").read_bytes()[:-60]),
        r"t1\.png: cannot be read as a PNG",
    ),
    "group header": (
        text("groups.csv", "tile,source\n"),
        r"groups\.csv: got the header 'tile,source', expected 'name,group'",
    ),
    "no group header": (text("groups.csv", ""), r"groups\.csv: got the header '', expected"),
    "group columns": (text("groups.csv", "name,group\nt0,a\nt1\n"), r"groups\.csv: line 3 has 1 columns, expected 2"),
    "unknown group name": (
        text("groups.csv", "name,group\nt9,a\n"),
        r"groups\.csv: line 2 names 't9', but no image has that name",
    ),
    "group twice": (
        text("groups.csv", "name,group\nt0,a\nt0,b\n"),
        r"groups\.csv: line 3 names 't0', for the second time",
    ),
    "group bytes": (
        lambda p: (p / "groups.csv").write_bytes(b"name,group\nt0,\xff\n"),
        r"groups\.csv: cannot be read as CSV",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder(tmp_path, case):
    change, message = BAD_FOLDERS[case]
    write_folder(tmp_path, folder_tiles(), flat=False)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path)
    one_line(error)


def test_folder_without_images(tmp_path):
    with pytest.raises(DataError, match=r"no image, expected images/NAME\.png with masks/NAME\.png"):
        load(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "photo.bmp").write_bytes(b"")
    with pytest.raises(DataError, match="no image"):
        load(tmp_path)


# --- the package ------------------------------------------------------------------------------------------------------


def test_importing_the_package_loads_no_plotting_or_imaging_library():
    code = (
        "import sys, engine.data; print([m for m in ('matplotlib', 'PIL', 'numba', 'cupy', 'torch') if m in "
        "sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        == "[]\n"
    )
