"""Reading, cleaning, splitting and weighing: every contract of engine.data, and that the checks can fail."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data import (
    CLASSES,
    ROCK,
    SCHEMES,
    DataError,
    DataSet,
    Tiles,
    class_weights,
    clean,
    cleaning,
    folds,
    load,
    pixel_counts,
    save_npz,
    split,
    splitting,
    weights_from_counts,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "mars_ai4mars_64x128.npz"
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


def assert_same(got: Tiles | None, expected: Tiles | None) -> None:
    assert (got is None) == (expected is None)
    for name in ("images", "masks", "groups") if got is not None else ():
        a, b = getattr(got, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype.kind == b.dtype.kind
            np.testing.assert_array_equal(a, b, err_msg=name)


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- tiles ---------------------------------------------------------------------------------------------------------------------


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
        ((np.zeros((2, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)), r"masks: got uint8 \(3, 8, 8\), expected uint8 \(2, 8, 8\)"),
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


# --- .npz ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_npz_round_trip(tmp_path, dtype):
    arrays = pairs(dtype)
    first = load(written(tmp_path, arrays))
    np.testing.assert_array_equal(first.train.images, arrays["training_set"][:, 0])
    np.testing.assert_array_equal(first.train.masks, arrays["training_set"][:, 1])
    np.testing.assert_array_equal(first.test.masks, arrays["test_labels"])
    np.testing.assert_array_equal(first.test.groups, arrays["test_group"])
    assert first.name == "tiles"
    assert first.notes == (f"train: {N} tiles of {H} x {W}, 3 source images", f"test: {M} tiles of {H} x {W}, 2 source images")
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
    "unknown key": (lambda a: a.update(train_groups=a.pop("train_group")), r"unknown key 'train_groups', expected only training_set"),
    "dtype": (replaced("training_set", np.zeros((N, 2, H, W), bool)), r"training_set images: got dtype bool, expected uint8, float32"),
    "strings": (replaced("test_set", np.full((M, H, W), "7")), r"test_set: got dtype <U1, expected"),
    "objects": (replaced("training_set", np.full((N, 2, H, W), None)), r"training_set: cannot be read.*allow_pickle=False"),
    "axes": (replaced("training_set", np.zeros((N, H, W))), r"training_set: got 3 axes \(6, 16, 24\), expected 4: \(N, 2, H, W\)"),
    "no mask": (replaced("training_set", np.zeros((N, 1, H, W))), r"training_set: got shape \(6, 1, 16, 24\), expected \(N, 2, H, W\)"),
    "test axes": (replaced("test_set", np.zeros((M, 1, H, W))), r"test_set: got 4 axes .* expected 3"),
    "test size": (
        lambda a: a.update(test_set=np.zeros((M, H, 32)), test_labels=np.zeros((M, H, 32))),
        r"test tiles are 16 x 32, expected 16 x 24 like the training tiles",
    ),
    "label shape": (replaced("test_labels", np.zeros((M - 1, H, W))), r"test_labels: got shape \(2, 16, 24\), expected \(3, 16, 24\)"),
    "labels alone": (replaced("test_set", None), r"got 'test_labels' without 'test_set'"),
    "label range": (poked("training_set", (2, 1, 3, 4), 5), r"training_set masks: got 5 in tile 2 at row 3, column 4, expected whole labels 0..4"),
    "negative label": (poked("test_labels", (1, 0, 0), -1), r"test_labels: got -1 in tile 1"),
    "label fraction": (poked("training_set", (0, 1, 0, 0), 1.5), r"masks: got 1.5 in tile 0"),
    "label nan": (poked("training_set", (0, 1, 0, 0), np.nan), r"masks: got nan in tile 0"),
    "nan": (poked("training_set", (5, 0, 1, 2), np.nan), r"training_set images: got nan in tile 5 at row 1, column 2, expected grey levels 0..255"),
    "inf": (poked("test_set", (0, 0, 0), np.inf), r"test_set: got inf in tile 0"),
    "too bright": (poked("training_set", (0, 0, 0, 0), 255.3), r"images: got 255.3 in tile 0"),
    "too dark": (poked("training_set", (0, 0, 0, 0), -0.1), r"images: got -0.1 in tile 0"),
    "normalised": (normalised, r"images: got fractional levels of at most 1, expected grey levels 0..255 \(scale by 255\)"),
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


# --- folders -------------------------------------------------------------------------------------------------------------------


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
    "many orphans": (lambda p: [(p / f"masks/t{i}.png").unlink() for i in range(N)], r"got 6 without mask: t0, t1, t2, t3, t4, \.\.\."),
    "image size": (saved("images/t4.png", GREY[:8]), r"t4\.png: got 8 x 24 pixels, expected 16 x 24 like .*t0\.png"),
    "mask size": (saved("masks/t4.png", GREY[:, :8]), r"t4\.png: got 16 x 8 pixels, expected 16 x 24"),
    "all masks of another size": (
        lambda p: [saved(f"masks/t{i}.png", GREY[:8])(p) for i in range(N)],
        r"masks: got uint8 \(6, 8, 24\), expected uint8 \(6, 16, 24\) like the images",
    ),
    "label": (saved("masks/t1.png", GREY + 4), r"masks, sorted by name: got 7 in tile 1 at row 0, column 0, expected whole labels 0..4"),
    "mask mode": (saved("masks/t1.png", GREY, "RGB"), r"t1\.png: got an image of mode RGB, expected L or P"),
    "image mode": (saved("images/t1.png", GREY.astype(np.uint16)), r"t1\.png: got an image of mode I;16, expected L or RGB"),
    "colour": (saved("images/t1.png", np.stack([GREY, GREY, 2 * GREY], -1)), r"t1\.png: got a colour image, expected a grey one"),
    "not a PNG": (text("images/t1.png", "hello"), r"t1\.png: not an image"),
    "cut PNG": (lambda p: (p / "images/t1.png").write_bytes((p / "images/t1.png").read_bytes()[:-60]), r"t1\.png: cannot be read as a PNG"),
    "group header": (text("groups.csv", "tile,source\n"), r"groups\.csv: got the header 'tile,source', expected 'name,group'"),
    "no group header": (text("groups.csv", ""), r"groups\.csv: got the header '', expected"),
    "group columns": (text("groups.csv", "name,group\nt0,a\nt1\n"), r"groups\.csv: line 3 has 1 columns, expected 2"),
    "unknown group name": (text("groups.csv", "name,group\nt9,a\n"), r"groups\.csv: line 2 names 't9', but no image has that name"),
    "group twice": (text("groups.csv", "name,group\nt0,a\nt0,b\n"), r"groups\.csv: line 3 names 't0', for the second time"),
    "group bytes": (lambda p: (p / "groups.csv").write_bytes(b"name,group\nt0,\xff\n"), r"groups\.csv: cannot be read as CSV"),
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
    (tmp_path / "images" / "photo.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no image"):
        load(tmp_path)


# --- cleaning ------------------------------------------------------------------------------------------------------------------


def suspicious_set() -> tuple[Tiles, list[int]]:
    """Tiles with every kind of shared mask, and the indices of those that are planted."""
    random = np.random.default_rng(3)
    masks = np.zeros((60, 64, 128), np.uint8)
    planted = [1, 9, 17, 30, 31, 44]
    masks[:12] = 1  # uniform
    masks[12:24] = 2
    masks[12:24, :, :2] = masks[12:24, -2:] = 0  # uniform but for a frame
    masks[24:28, :30] = 3  # a drawn boundary, shared by four
    masks[32:40, 20:40, 30:90] = 4  # one image eight times, mask and all
    masks[46:, 5:50] = 2
    masks[np.arange(46, 60), 20, np.arange(46, 60)] = 1  # drawn boundaries, all different
    masks[planted] = 0
    masks[planted, 10:30, 20:80], masks[planted, 15:20, 30:60] = 1, 3
    images = random.integers(0, 256, masks.shape, dtype=np.uint8)
    images[32:40] = images[32]
    return Tiles(images, masks), planted


def assert_cleaned_exactly(tiles: Tiles, planted: list[int]) -> None:
    cleaned = clean(tiles)
    assert cleaned.removed.tolist() == planted
    assert_same(cleaned.tiles, tiles[np.setdiff1d(np.arange(len(tiles)), planted)])


def test_clean_removes_planted_masks_and_nothing_else():
    tiles, planted = suspicious_set()
    assert_cleaned_exactly(tiles, planted)
    assert clean(tiles).reasons == ["removed 6 samples: 6 different images share one mask bit by bit, with a drawn interior (background, soil, sand)"]
    again = clean(clean(tiles).tiles)
    assert len(again.removed) == 0
    assert again.reasons == []


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("_interior_varies", lambda masks: np.ones(len(masks), bool)),  # would remove uniform and framed masks
        ("_interior_varies", lambda masks: (masks != masks[:, :1, :1]).any(axis=(1, 2))),  # no margin: framed masks
        ("SHARED_BY", 2),
        ("SHARED_BY", 7),
    ],
)
def test_a_wrong_cleaning_is_noticed(monkeypatch, name, mutant):
    monkeypatch.setattr(cleaning, name, mutant)
    with pytest.raises(AssertionError):
        assert_cleaned_exactly(*suspicious_set())


def test_clean_needs_masks():
    with pytest.raises(DataError, match="have no masks"):
        clean(Tiles(np.zeros((2, 8, 8), np.uint8)))


@pytest.mark.skipif(not REAL.exists(), reason="the real tiles (../shared/data) are not on this machine")
def test_clean_and_split_on_the_real_tiles():
    tiles = load(REAL).train
    cleaned = clean(tiles)
    np.testing.assert_array_equal(cleaned.removed, np.flatnonzero(tiles.groups == ""))
    assert len(cleaned.removed) == 110
    assert len(cleaned.tiles) == 2505
    nameless = clean(Tiles(tiles.images, tiles.masks))  # the names of groups play no part
    np.testing.assert_array_equal(nameless.removed, cleaned.removed)
    assert_sound_split(cleaned.tiles, split(cleaned.tiles, 0.2, seed=1), 0.2)


# --- splitting -----------------------------------------------------------------------------------------------------------------


def grouped_tiles(seed: int, count: int = 400) -> Tiles:
    """Tiles of groups of 1 to 6 with rare rock, the classes of a group alike."""
    random = np.random.default_rng(seed)
    group = np.sort(random.integers(0, count // 2, count))
    main = random.integers(1, 4, count // 2)[group]
    masks = np.zeros((count, 8, 8), np.uint8)
    masks[:, 1:] = main[:, None, None]
    second = random.uniform(size=count) < 0.25
    masks[second, 4:] = random.integers(1, 4, second.sum())[:, None, None]
    masks[random.choice(count, 12, replace=False), 3, 3:6] = ROCK
    names = np.array([f"image_{g}" for g in group])
    names[random.uniform(size=count) < 0.1] = ""
    return Tiles(np.zeros_like(masks), masks, names)[random.permutation(count)]


def assert_sound_split(tiles: Tiles, parts, fraction: float) -> None:
    """The whole contract of a split by source image."""
    np.testing.assert_array_equal(np.sort(np.concatenate([parts.train, parts.val])), np.arange(len(tiles)))
    assert (np.diff(parts.train) > 0).all()
    assert (np.diff(parts.val) > 0).all()
    named = [set(tiles.groups[rows]) - {""} for rows in (parts.train, parts.val)]
    assert not named[0] & named[1]
    assert abs(len(parts.val) - fraction * len(tiles)) <= 0.02 * len(tiles)
    present = pixel_counts(tiles.masks) > 0
    for label in range(1, len(CLASSES)):
        total, held_out = present[:, label].sum(), present[parts.val, label].sum()
        assert abs(held_out - fraction * total) <= max(2.0, 0.03 * total), CLASSES[label]
        assert 0 < held_out < total, CLASSES[label]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_split_by_source_image(seed, fraction):
    tiles = grouped_tiles(seed)
    parts = split(tiles, fraction, seed)
    assert_sound_split(tiles, parts, fraction)
    assert parts.by == "source image"
    again, other = split(tiles, fraction, seed), split(tiles, fraction, seed + 1)
    np.testing.assert_array_equal(again.val, parts.val)
    assert set(other.val) != set(parts.val)


def test_split_note():
    tiles = grouped_tiles(0)
    parts = split(tiles, 0.2, 0)
    rocky = (tiles.masks == ROCK).any(axis=(1, 2))
    assert parts.note == (
        f"split by source image: {len(parts.train)} tiles to train, {len(parts.val)} to validate, "
        f"big rock in {rocky[parts.train].sum()} and {rocky[parts.val].sum()}"
    )


@pytest.mark.parametrize("groups", [None, ""])
def test_split_by_tile_says_so(groups):
    tiles = grouped_tiles(1)
    parts = split(Tiles(tiles.images, tiles.masks, None if groups is None else np.full(len(tiles), "")), 0.25)
    assert parts.by == "tile"
    assert "source images are unknown, tiles of one image may be in both parts" in parts.note
    assert abs(len(parts.val) - 100) <= 8
    assert (tiles.masks[parts.val] == ROCK).any(axis=(1, 2)).sum() == 3


@pytest.mark.parametrize("k", [2, 5])
def test_folds_validate_every_tile_once(k):
    tiles = grouped_tiles(2)
    parts = folds(tiles, k, seed=3)
    assert len(parts) == k
    np.testing.assert_array_equal(np.sort(np.concatenate([part.val for part in parts])), np.arange(len(tiles)))
    for part in parts:
        assert_sound_split(tiles, part, 1 / k)


def test_a_class_in_two_groups_is_in_both_parts():
    for seed in range(20):
        random = np.random.default_rng(seed)
        masks = np.ones((30, 8, 8), np.uint8)
        pair_of_groups = random.choice(15, 2, replace=False)
        masks[np.isin(np.arange(30) // 2, pair_of_groups), 2] = ROCK
        masks[random.choice(30, 4, replace=False), 5] = 2
        tiles = Tiles(np.zeros_like(masks), masks, np.array([f"g{i // 2}" for i in range(30)]))
        parts = split(tiles, 0.1, seed)
        for rows in (parts.train, parts.val):
            assert (masks[rows] == ROCK).any()


def by_tile(tiles: Tiles) -> np.ndarray:
    return np.arange(len(tiles))


def at_random(counts: np.ndarray, shares: tuple[float, ...], random: np.random.Generator) -> np.ndarray:
    return random.choice(len(shares), len(counts), p=shares)


@pytest.mark.parametrize(("name", "mutant"), [("_group_numbers", by_tile), ("_parts", at_random)])
def test_a_wrong_split_is_noticed(monkeypatch, name, mutant):
    monkeypatch.setattr(splitting, name, mutant)
    tiles = grouped_tiles(0)
    with pytest.raises(AssertionError):
        assert_sound_split(tiles, split(tiles, 0.2, seed=0), 0.2)


def test_bad_splits():
    tiles = grouped_tiles(0)
    for fraction in (0, 1, -0.2, float("nan")):
        with pytest.raises(DataError, match=r"fraction: got .*, expected a number between 0 and 1"):
            split(tiles, fraction)
    with pytest.raises(DataError, match="k: got 1, expected at least 2"):
        folds(tiles, 1)
    single = Tiles(tiles.images[:4], tiles.masks[:4], np.full(4, "one"))
    with pytest.raises(DataError, match="got 4 tiles of 1 source images, expected at least 2 source images"):
        split(single)
    with pytest.raises(DataError, match="got 3 tiles of 3 tiles, expected at least 5 tiles"):
        folds(Tiles(tiles.images[:3], tiles.masks[:3]), 5)
    with pytest.raises(DataError, match="have no masks"):
        split(Tiles(tiles.images))


# --- weights -------------------------------------------------------------------------------------------------------------------

# Shares of the classes in the original data, images containing each, and the weights known for them (up to a common factor).
PIXELS = np.rint(np.array([0.244, 0.339, 0.235, 0.181, 0.00139]) * 2505 * 64 * 128).astype(np.int64)
IMAGES = np.array([2087, 1281, 1160, 863, 63])
KNOWN = {
    "none": (1, 1, 1, 1, 1),
    "inverse": (0.82, 0.59, 0.85, 1.11, 143.9),
    "median": (1.73, 0.76, 1, 0.97, 9.2),
    "sqrt": (0.91, 0.77, 0.92, 1.05, 12.0),
    "enet": (4.3, 3.3, 4.4, 5.5, 47),
}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("scheme", KNOWN)
def test_weights_against_known_numbers(scheme, background):
    known = np.array(KNOWN[scheme], float)
    known[0] *= background
    known /= known[known > 0].mean()
    got = weights_from_counts(PIXELS, IMAGES, 64 * 128, scheme, background)
    np.testing.assert_allclose(got, known, rtol=0.02)  # the known numbers have two digits
    assert got.dtype == np.float64


def test_effective_number_by_hand():
    expected = 0.001 / (1 - 0.999 ** np.array([1281, 1160, 863, 63]))
    got = weights_from_counts(PIXELS, IMAGES, 64 * 128, "effective")
    np.testing.assert_allclose(got, [0, *(expected / expected.mean())], rtol=1e-12)
    assert 5 < got[ROCK] / got[1] < 15


def masks_by_hand() -> np.ndarray:
    """16 pixels per image. Background 4 + 8, soil 12 + 6, rock 2; soil and background in two images, rock in one; sand fills the third."""
    masks = np.full((3, 2, 8), 3, np.uint8)
    masks[0].flat = [0] * 4 + [1] * 12
    masks[1].flat = [0] * 8 + [1] * 6 + [4] * 2
    return masks


def test_weights_of_masks_by_hand():
    masks = masks_by_hand()
    raw = {  # soil 18 of 48 pixels, sand 16, rock 2; where present 18 / 32, 16 / 16, 2 / 16
        "inverse": [48 / 18, 48 / 16, 48 / 2],
        "sqrt": np.sqrt([48 / 18, 48 / 16, 48 / 2]),
        "median": np.array([32 / 18, 1, 8]) * (18 / 32),
        "enet": 1 / np.log(1.02 + np.array([18, 16, 2]) / 48),
        "effective": 1 / (1 - 0.999 ** np.array([2, 1, 1])),
    }
    for scheme, values in raw.items():
        got = class_weights(masks, scheme)
        assert got[0] == got[2] == 0  # background is not used, bedrock is absent
        np.testing.assert_allclose(got[[1, 3, 4]], values / np.mean(values), rtol=1e-12, err_msg=scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_have_mean_one_over_the_classes_used(scheme):
    for background, used in ((False, [1, 3, 4]), (True, [0, 1, 3, 4])):
        got = class_weights(masks_by_hand(), scheme, background)
        assert np.flatnonzero(got).tolist() == used
        assert got[used].mean() == pytest.approx(1, abs=1e-12)


def test_cap_bounds_the_ratio():
    free, capped = (weights_from_counts(PIXELS, IMAGES, 64 * 128, "inverse", cap=cap) for cap in (None, 10))
    assert free[ROCK] / free[1] > 200
    assert capped[ROCK] / capped[1:].min() == pytest.approx(10)
    np.testing.assert_allclose(capped[1:4] / capped[1], free[1:4] / free[1])  # the others keep their ratios
    assert capped[1:].mean() == pytest.approx(1)
    np.testing.assert_array_equal(
        weights_from_counts(PIXELS, IMAGES, 64 * 128, "median", cap=1e6), weights_from_counts(PIXELS, IMAGES, 8192, "median")
    )


def test_bad_weights():
    masks = masks_by_hand()
    with pytest.raises(DataError, match="got scheme 'squared', expected one of none, inverse, median, sqrt, enet, effective"):
        class_weights(masks, "squared")
    with pytest.raises(DataError, match=r"got cap 0.5, expected at least 1"):
        class_weights(masks, "inverse", cap=0.5)
    with pytest.raises(DataError, match="without any pixel of soil, bedrock, sand, big rock"):
        class_weights(np.zeros_like(masks), "inverse")
    assert class_weights(np.zeros_like(masks), "inverse", background=True).tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"got masks of shape \(2, 8\), expected \(N, H, W\)"):
        class_weights(masks[0], "none")


# --- the package ---------------------------------------------------------------------------------------------------------------


def test_importing_the_package_loads_no_plotting_or_imaging_library():
    code = "import sys, engine.data; print([m for m in ('matplotlib', 'PIL', 'numba', 'cupy', 'torch') if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout == "[]\n"
