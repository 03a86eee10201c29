"""The made data set: its form, its likeness to the real one in numbers, and that it is neither random nor trivial."""

from __future__ import annotations

import importlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from engine.data import CLASSES, ROCK, DataError, DataSet, Tiles, clean, load, pixel_counts, save_npz, split, synthetic
from engine.data.synthetic.ground import LEVELS, SIZE, Ground
from engine.data.synthetic.scene import render

COUNT, TEST = 1200, 120
module = importlib.import_module("engine.data.synthetic")  # the name in the package is the function's


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    return synthetic(COUNT, TEST, seed=3)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground(np.random.default_rng(0))


def natural(dataset: DataSet) -> Tiles:
    return dataset.train[dataset.train.groups != ""]


def test_form(dataset):
    for tiles, count in ((dataset.train, COUNT), (dataset.test, TEST)):
        assert len(tiles) == count
        assert tiles.size == (64, 128)
        assert tiles.masks.max() == ROCK
    assert dataset.name == "synthetic"
    assert dataset.notes[0] == f"synthetic: {COUNT} training tiles and {TEST} test tiles of 64 x 128, seed 3"


def test_groups_are_source_images_of_one_to_four_tiles(dataset):
    _, sizes = np.unique(np.concatenate([natural(dataset).groups, dataset.test.groups]), return_counts=True)
    assert set(sizes) == {1, 2, 3, 4}
    assert not set(natural(dataset).groups) & set(dataset.test.groups)
    assert "" not in dataset.test.groups


def test_tiles_of_one_source_image_share_light_and_ground(dataset):
    """Mean levels vary less within a group than between groups."""
    tiles = natural(dataset)
    _, group = np.unique(tiles.groups, return_inverse=True)
    level = tiles.images.mean(axis=(1, 2))
    own = np.bincount(group, level) / np.bincount(group)
    several = np.bincount(group)[group] > 1
    assert np.std((level - own[group])[several]) < 0.6 * np.std(level)


def test_same_arguments_same_bits():
    first, again, other = synthetic(30, 5, seed=8), synthetic(30, 5, seed=8), synthetic(30, 5, seed=9)
    for a, b in ((first.train, again.train), (first.test, again.test)):
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("images", "masks", "groups"))
    assert not np.array_equal(first.train.images, other.train.images)


def test_load_makes_the_same(tmp_path):
    made, loaded = synthetic(40, 4, seed=5), load("synthetic", seed=5, count=40)
    np.testing.assert_array_equal(loaded.train.images, made.train.images)
    np.testing.assert_array_equal(loaded.test.masks, made.test.masks)
    save_npz(made, tmp_path / "made.npz", "float64")
    again = load(tmp_path / "made.npz")
    np.testing.assert_array_equal(again.train.masks, made.train.masks)
    np.testing.assert_array_equal(again.train.groups, made.train.groups)
    np.testing.assert_array_equal(again.test.images, made.test.images)


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (96, 64)])
def test_other_sizes(size):
    dataset = synthetic(30, 0, seed=1, size=size)
    assert dataset.train.images.shape == (30, *size)
    assert dataset.test is None
    assert len(clean(dataset.train).removed) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "got count 0, expected at least 1"),
        ({"test": -1}, "got test -1, expected at least 0"),
        ({"size": (60, 128)}, "got tiles of 60 x 128, expected sides of at least 32, divisible by 8"),
        ({"size": (64, 24)}, "got tiles of 64 x 24"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(DataError, match=message):
        synthetic(**arguments)


# --- likeness to the real set -----------------------------------------------------------------------------------------


def test_class_shares_are_near_the_real_ones(dataset):
    counts = pixel_counts(natural(dataset).masks)
    share = dict(zip(CLASSES, counts.sum(axis=0) / counts.sum(), strict=True))
    assert share["background"] == pytest.approx(0.213, abs=0.06)
    assert share["soil"] == pytest.approx(0.355, abs=0.06)
    assert share["bedrock"] == pytest.approx(0.234, abs=0.06)
    assert share["sand"] == pytest.approx(0.196, abs=0.06)
    assert 0.0015 < share["big rock"] < 0.006


def test_most_tiles_show_one_terrain_and_few_a_big_rock(dataset):
    counts = pixel_counts(natural(dataset).masks)
    assert 0.55 < ((counts[:, 1:] > 0).sum(axis=1) == 1).mean() < 0.8
    rock = counts[:, ROCK]
    assert 0.025 < (rock > 0).mean() < 0.05
    assert rock[rock > 0].min() >= 40


def test_uniform_and_framed_masks_occur_and_are_shared(dataset):
    """What cleaning must leave alone is in the set, so that the alien test below means something."""
    masks = natural(dataset).masks
    varied = (masks != masks[:, :1, :1]).any(axis=(1, 2))
    assert 0.01 < 1 - varied.mean() < 0.2
    _, shared_by = np.unique(masks[varied].reshape(varied.sum(), -1), axis=0, return_counts=True)
    assert shared_by.max() >= 5


def test_grey_levels_are_a_dark_camera_s(dataset):
    low, median, high = np.percentile(natural(dataset).images, (5, 50, 95))
    assert 20 < low < 40
    assert 50 < median < 75
    assert 90 < high < 120


def level_accuracy(tiles: Tiles) -> float:
    """Accuracy on labelled pixels of the best rule that sees one pixel's grey level and nothing else."""
    labelled = tiles.masks > 0
    joint = np.bincount(tiles.masks[labelled].astype(int) * 256 + tiles.images[labelled], minlength=5 * 256).reshape(
        5, 256
    )
    return joint.max(axis=0).sum() / joint.sum()


def test_brightness_alone_does_not_tell_terrains(dataset):
    assert level_accuracy(natural(dataset)) < 0.6


def test_the_brightness_check_can_fail(monkeypatch):
    monkeypatch.setattr(module, "_BASE_ALBEDO", {1: (0.9, 0.01), 2: (2.4, 0.01), 3: (0.4, 0.01)})
    assert level_accuracy(synthetic(200, 0, aliens=False).train) > 0.6


# --- aliens -----------------------------------------------------------------------------------------------------------


def test_clean_removes_the_aliens_exactly(dataset):
    planted = np.flatnonzero(dataset.train.groups == "")
    assert len(planted) == round(0.042 * COUNT)
    assert (dataset.train.masks[planted] == dataset.train.masks[planted[0]]).all()
    assert set(np.unique(dataset.train.masks[planted[0]])) == {0, 1, 2, 3}
    cleaned = clean(dataset.train)
    np.testing.assert_array_equal(cleaned.removed, planted)
    assert len(cleaned.reasons) == 1
    assert len(clean(dataset.test).removed) == 0


def test_aliens_are_brighter_than_mars(dataset):
    aliens = dataset.train[dataset.train.groups == ""]
    assert ((aliens.images > 200).mean(axis=(1, 2)) > 0.1).all()
    assert (natural(dataset).images > 200).mean() == 0


@pytest.mark.parametrize(
    ("count", "aliens", "planted"), [(24, True, 0), (25, True, 5), (200, True, 8), (200, False, 0)]
)
def test_number_of_aliens(count, aliens, planted):
    train = synthetic(count, 0, seed=2, aliens=aliens).train
    assert len(train) == count
    assert (train.groups == "").sum() == planted == len(clean(train).removed)


def test_split_of_the_cleaned_set(dataset):
    tiles = clean(dataset.train).tiles
    parts = split(tiles, 0.2, seed=0)
    assert parts.by == "source image"
    assert not set(tiles.groups[parts.train]) & set(tiles.groups[parts.val])
    rock = pixel_counts(tiles.masks)[:, ROCK] > 0
    assert abs(rock[parts.val].sum() - 0.2 * rock.sum()) <= 2


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["broad", "cloud", "swell", "grain", "pebbles", "plates", "strata"])
def test_textures_are_standardised_seamless_and_lose_detail_by_level(ground, name):
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    levels = [ground.sample(name, x, y, level) for level in range(LEVELS)]
    assert abs(levels[0].mean()) < 1e-3
    assert levels[0].std() == pytest.approx(1, abs=1e-3)
    assert all(fine.std() >= coarse.std() for fine, coarse in pairwise(levels))
    for axis in (0, 1):
        step = np.abs(np.diff(levels[0], axis=axis)).mean(axis=1 - axis)
        seam = np.abs(levels[0].take(0, axis) - levels[0].take(-1, axis)).mean()
        assert seam <= 1.2 * step.max()
    np.testing.assert_array_equal(ground.sample(name, x - 3 * SIZE, y + SIZE, 0), levels[0])


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_windows_of_a_scene_fit_together(ground, quantile):
    random = np.random.default_rng(11)
    for _ in range(4):
        scene = replace(module._scene(random, (64, 128), quantile), noise=0.0)
        image, mask = render(scene, ground, 0, 0, scene.shape, (), random)
        for row, column in ((0, 0), (64, 128), (192, 0)):
            part_image, part_mask = render(scene, ground, row, column, (64, 128), (), random)
            window = np.s_[row : row + 64, column : column + 128]
            np.testing.assert_array_equal(part_mask, mask[window])
            assert np.abs(part_image.astype(int) - image[window]).max() <= 1
