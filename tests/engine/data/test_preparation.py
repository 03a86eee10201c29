"""Cleaning, splitting and weighing of tiles, and that their checks can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.config import Config
from engine.data import (
    CLASSES,
    ROCK,
    SCHEMES,
    DataError,
    Tiles,
    class_weights,
    clean,
    cleaned_by,
    cleaning,
    folds,
    load,
    pixel_counts,
    sharing,
    split,
    splitting,
    weights_from_counts,
)
from engine.data.classes import counted
from engine.data.preparation import Prepared, prepare
from engine.inference import labels_of
from engine.training.metrics import scores
from tests.support.paths import REAL_TILES
from tests.support.tile_checks import assert_same

# --- cleaning ---------------------------------------------------------------------------------------------------------


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
    assert clean(tiles).reasons == [
        (
            "removed 6 samples: 6 different images carry one and the same drawn mask (background, soil, sand), so they "
            "look planted"
        )
    ]
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


@pytest.mark.skipif(not REAL_TILES.exists(), reason="the real tiles (../shared/data) are not on this machine")
def test_clean_and_split_on_the_real_tiles():
    tiles = load(REAL_TILES).train
    cleaned = clean(tiles)
    np.testing.assert_array_equal(cleaned.removed, np.flatnonzero(tiles.groups == ""))
    assert len(cleaned.removed) == 110
    assert len(cleaned.tiles) == 2505
    nameless = clean(Tiles(tiles.images, tiles.masks))  # the names of groups play no part
    np.testing.assert_array_equal(nameless.removed, cleaned.removed)
    assert_sound_split(cleaned.tiles, split(cleaned.tiles, 0.2, seed=1), 0.2)


# --- splitting --------------------------------------------------------------------------------------------------------


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


# --- weights ----------------------------------------------------------------------------------------------------------

# Shares of the classes in the original data, images containing each, and the weights known for them (up to a common
# factor).
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
    """16 pixels per image. Background 4 + 8, soil 12 + 6, rock 2; soil and background in two images, rock in one; sand
    fills the third.
    """
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
        weights_from_counts(PIXELS, IMAGES, 64 * 128, "median", cap=1e6),
        weights_from_counts(PIXELS, IMAGES, 8192, "median"),
    )


def test_bad_weights():
    masks = masks_by_hand()
    with pytest.raises(
        DataError, match="got scheme 'squared', expected one of none, inverse, median, sqrt, enet, effective"
    ):
        class_weights(masks, "squared")
    with pytest.raises(DataError, match=r"got cap 0.5, expected at least 1"):
        class_weights(masks, "inverse", cap=0.5)
    with pytest.raises(DataError, match="without any pixel of soil, bedrock, sand, big rock"):
        class_weights(np.zeros_like(masks), "inverse")
    assert class_weights(np.zeros_like(masks), "inverse", background=True).tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"got masks of shape \(2, 8\), expected \(N, H, W\)"):
        class_weights(masks[0], "none")


# --- other data than the original file --------------------------------------------------------------------------------


def test_a_camera_that_stands_still_loses_nothing():
    """A folder of 60 photos by a fixed camera, of which half share a handful of drawn masks: reported, never removed
    unless asked for.
    """
    random = np.random.default_rng(0)
    masks = np.repeat(random.integers(0, 3, (8, 16, 24)).astype(np.uint8), 6, 0)
    tiles = Tiles(random.integers(0, 256, masks.shape, dtype=np.uint8), masks)
    classes = counted(3)
    kept, reasons = cleaned_by("auto", tiles, original=False, classes=classes)
    assert kept is tiles
    assert len(reasons) == 8
    assert reasons[0].startswith(
        "6 samples: 6 different images carry one and the same drawn mask (class 0, class 1, class 2), so they look "
        "planted (kept;"
    )
    assert cleaned_by("report", tiles, original=True, classes=classes) == (tiles, reasons)
    assert cleaned_by("off", tiles, original=True, classes=classes) == (tiles, [])
    assert len(cleaned_by("remove", tiles, original=False, classes=classes)[0]) == 0
    # the original file's aliens have one mask, these have eight
    assert cleaned_by("auto", tiles, original=True)[0] is tiles
    suspicious, planted = suspicious_set()
    assert len(cleaned_by("auto", suspicious, original=True)[0]) == len(suspicious) - len(planted)
    assert cleaned_by("auto", suspicious, original=False)[0] is suspicious


def test_a_split_by_tile_says_that_it_leaks():
    tiles = grouped_tiles(0)
    parts = split(tiles, 0.2, 0, by="tile")
    shared = int(np.isin(tiles.groups[parts.val], np.setdiff1d(tiles.groups[parts.train], [""])).sum())
    assert shared > 20
    assert (
        f"warning: this leaks, {shared} of the tiles to validate share a source image with one to train" in parts.note
    )
    np.testing.assert_array_equal(sharing(tiles[parts.val], tiles[parts.train]).sum(), shared)
    honest = split(tiles, 0.2, 0)
    assert not sharing(tiles[honest.val], tiles[honest.train]).any()


def test_a_split_by_folder_keeps_folders_whole():
    tiles = grouped_tiles(0)
    folders = np.array([f"site {k % 7}" for k in range(len(tiles))])
    parts = split(replace(tiles, folders=folders), 0.3, 0, by="folder")
    assert parts.by == "folder"
    assert not set(folders[parts.train]) & set(folders[parts.val])
    with pytest.raises(DataError, match="lie in no folders of their own"):
        split(tiles, 0.2, by="folder")


def test_weights_of_other_classes_by_hand():
    masks = np.array([[[0, 0, 1], [1, 255, 255]], [[0, 0, 0], [0, 0, 0]]], np.uint8)
    got = class_weights(masks, "inverse", background=True, classes=counted(3))
    # what is ignored is no pixel
    np.testing.assert_allclose(got, np.array([10 / 8, 10 / 2, 0]) / np.mean([10 / 8, 10 / 2]))


def prepared(path: Path, masks: np.ndarray, **settings: object) -> Prepared:
    images = np.random.default_rng(0).integers(0, 256, masks.shape)
    np.savez(path, training_set=np.stack([images, masks], 1).astype(np.uint8))
    return prepare(Config(data=str(path), **settings))


def test_classes_that_never_occur_are_told_and_barred(tmp_path):
    masks = np.random.default_rng(1).integers(0, 3, (20, 16, 16))
    data = prepared(tmp_path / "t.npz", masks, classes="5")
    assert data.absent == (3, 4)
    assert (
        "warning: 3 of 5 classes occur in training; without a pixel, and so barred from predictions and not in the "
        "mean: class 3, class 4" in data.notes
    )
    logits = np.zeros((1, 1, 2, 5), np.float32)
    logits[..., 4], logits[..., 1] = 9, 1
    assert (labels_of(logits, data.absent) == 1).all()
    assert (logits[..., 4] == 9).all()
    # a pixel of class 4 is predicted as 3, of 3 as 2
    confusion = np.diag([5, 5, 0, 0, 0]) + np.eye(5, k=-1, dtype=np.int64)
    result = scores(confusion, data.classes, data.absent)
    assert result.iou == (5 / 6, 5 / 7, 0.0, None, None)
    assert result.miou_fg == pytest.approx((5 / 6 + 5 / 7 + 0) / 3)


def test_nothing_to_validate_is_an_error(tmp_path):
    masks = np.zeros((20, 16, 16), np.uint8)
    masks[0, 0, 0] = 1
    with pytest.raises(DataError, match="nothing to validate: the 4 tiles held out hold no pixel of soil"):
        prepared(tmp_path / "t.npz", masks)
    with pytest.raises(DataError, match="the 16 tiles to train on hold no pixel of soil"):
        prepared(tmp_path / "t.npz", np.zeros_like(masks))
