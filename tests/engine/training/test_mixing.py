"""Copy-paste, CutMix and views at test time: components against a flood fill, what is pasted pixel by pixel, labels
that move with their pixels.
"""

from __future__ import annotations

import numpy as np
import pytest

from engine.inference import _with_views
from engine.training.augmentation import Augmentation, inverse_maps
from engine.training.mixing import SMALLEST, CopyPaste, Mixing, Patch, components, cutmix, dilated, patches_of

H, W = 24, 40


def flooded(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The components by a flood fill from every pixel."""
    left, found = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True)), []
    while left:
        edge, part = [left.pop()], set()
        while edge:
            y, x = edge.pop()
            part.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            edge += near
        found.append(part)
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_components_equal_a_flood_fill(share: float) -> None:
    mask = np.random.default_rng(0).random((17, 23)) < share
    numbers = components(mask)
    assert ((numbers > 0) == mask).all()
    ours = [
        set(zip(*(axis.tolist() for axis in np.nonzero(numbers == k)), strict=True)) for k in np.unique(numbers[mask])
    ]
    assert sorted(map(sorted, ours)) == sorted(map(sorted, flooded(mask)))


def test_dilation_by_hand() -> None:
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = mask[0, 0] = True
    y, x = np.indices((7, 7))
    assert (dilated(mask, 2) == ((abs(y - 3) + abs(x - 3) <= 2) | (y + x <= 2))).all()


def test_patches_are_components_with_a_ring() -> None:
    """A square of 4 x 5 in the middle, one at the corner, one that is too small and one that is too large."""
    masks = np.ones((2, H, W), np.uint8)
    masks[0, 8:12, 10:15] = masks[0, :4, :4] = masks[0, 20:22, 30:34] = 4
    masks[1, :, 3:30] = 4
    images = np.random.default_rng(0).random((2, H, W)).astype(np.float32)
    assert SMALLEST > 2 * 4
    corner, middle = sorted(patches_of(images, masks, [4], (16, 16)), key=lambda patch: patch.code.size)
    assert middle.code.shape == (4 + 6, 5 + 6)
    assert corner.code.shape == (4 + 3, 4 + 3)
    assert (middle.image == images[0, 5:15, 7:18]).all()
    assert (middle.code[3:7, 3:8] == 2).all()
    assert (middle.code == 2).sum() == 20
    assert middle.code[1:-1, 3:8].all(), "the ring is two pixels wide"
    assert not middle.code[0].any(), "and nothing is pasted of the pixel around it"
    assert {patch.label for patch in (corner, middle)} == {4}


@pytest.fixture
def paste() -> CopyPaste:
    """Pastes one bright square, 5 x 5 with its ring."""
    code = np.zeros((11, 11), np.uint8)
    code[1:-1, 1:-1], code[3:-3, 3:-3] = 1, 2
    return CopyPaste([Patch(np.full((11, 11), 0.9, np.float32), code, 4)], 1.0)


def ground(n: int = 60, label: int = 1) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(1).uniform(0, 0.5, (n, H, W)).astype(np.float32)
    return images, np.full((n, H, W), label, np.uint8)


def test_a_component_is_pasted_with_an_unlabelled_ring(paste) -> None:
    before, labels = ground()
    images, masks = paste(before, labels, np.random.default_rng(0))
    assert (labels == 1).all(), "the inputs stay as they were"
    assert (images[masks == 1] == before[masks == 1]).all(), "what is neither component nor ring stays"
    assert images[masks != 1] == pytest.approx(0.9), "both come with their pixels"
    sizes = (masks == 4).sum((1, 2))
    whole = [
        k for k in range(len(masks)) if not (masks[k, [0, -1]] != 1).any() and not (masks[k][:, [0, -1]] != 1).any()
    ]
    assert len(whole) > 10
    assert 25 / 1.4**2 * 0.6 < sizes[whole].min() < 25 < sizes[whole].max() < 25 * 1.4**2 * 1.4
    for mask in masks[whole]:
        assert (mask[dilated(mask == 4, 1) & (mask != 4)] == 0).all(), "the ring goes all around"


def test_pasted_places_and_sizes_cover_their_range(paste) -> None:
    """The scale's logarithm is uniform, so that the mean of its square is sinh(2 l) / (2 l), l = log 1.4. Of what a
    corner gets, a quarter of the places is in the tile.
    """
    masks = paste(*ground(4000), np.random.default_rng(0))[1]
    seen = (masks == 4).mean(0)
    length = np.log(1.4)
    expected = 25 / (H * W) * np.sinh(2 * length) / (2 * length)
    assert seen[5:-5, 5:-5].mean() == pytest.approx(expected, rel=0.05)
    assert seen.min() > expected / 4 * 0.5


def test_a_share_of_the_tiles_gets_it(paste) -> None:
    few = CopyPaste(paste.patches, 0.25)
    changed = (few(*ground(2000), np.random.default_rng(0))[1] != 1).any((1, 2)).mean()
    assert changed == pytest.approx(0.25, abs=0.04)
    images, masks = ground(3)
    assert CopyPaste([], 1.0)(images, masks, np.random.default_rng(0))[0] is images


def test_padding_stays_and_a_ring_without_label_is_left_out(paste) -> None:
    images, masks = ground()
    masks[:, :, 20:] = 255
    _, pasted = CopyPaste(paste.patches, 1.0, unlabelled=None, forbidden=255)(images, masks, np.random.default_rng(0))
    assert (pasted[:, :, 20:] == 255).all()
    assert set(np.unique(pasted)) == {1, 4, 255}


def test_channels_are_pasted_alike() -> None:
    code = np.full((5, 5), 2, np.uint8)
    patch = Patch(np.stack([np.full((5, 5), 0.9), np.full((5, 5), 0.7)], -1).astype(np.float32), code, 4)
    images = np.zeros((20, H, W, 2), np.float32)
    images, masks = CopyPaste([patch], 1.0)(images, np.ones((20, H, W), np.uint8), np.random.default_rng(0))
    pasted = images[masks == 4]
    assert len(pasted) > 100
    np.testing.assert_allclose(pasted[:, 0] * 0.7, pasted[:, 1] * 0.9, atol=1e-6)


def test_cutmix_moves_labels_with_their_pixels() -> None:
    """Every pixel holds its tile's number and place, in the image as in the mask."""
    n = 200
    masks = np.arange(n, dtype=np.uint8)[:, None, None] + np.zeros((1, H, W), np.uint8)
    images = (np.arange(n)[:, None, None] + np.arange(H * W).reshape(H, W) / (H * W)).astype(np.float32)
    mixed, labels = cutmix(images, masks, 0.5, np.random.default_rng(0))
    assert (mixed.astype(np.uint8) == labels).all()
    np.testing.assert_allclose(
        mixed - labels, np.broadcast_to(np.arange(H * W).reshape(H, W) / (H * W), mixed.shape), atol=1e-4
    )
    foreign = labels != masks
    for k in range(n):
        rows, columns = foreign[k].any(1), foreign[k].any(0)
        assert (foreign[k] == rows[:, None] & columns[None]).all(), "a rectangle"
        assert np.count_nonzero(np.diff(rows.astype(int))) <= 2
        assert len(np.unique(labels[k][foreign[k]])) <= 1, "of one other tile"
    assert foreign.any((1, 2)).mean() == pytest.approx(0.5, abs=0.1)
    assert foreign.mean((1, 2)).max() > 0.6


def test_cutmix_of_one_tile_changes_nothing() -> None:
    images, masks = ground(1)
    mixed, labels = cutmix(images, masks, 1.0, np.random.default_rng(0))
    assert (mixed == images).all()
    assert (labels == masks).all()


def test_the_last_epochs_mix_nothing(paste) -> None:
    mixing = Mixing(Augmentation(), paste, 1.0)
    masks = mixing.flips_only()(*ground(), np.random.default_rng(0))[1]
    assert (masks == 1).all()
    assert (mixing(*ground(), np.random.default_rng(0))[1] == 4).any()


# -- views at test time --------------------------------------------------------------------------------


def test_random_views_are_mapped_back() -> None:
    """A network that looks at pixels alone gives what it gave, but for two interpolations of a smooth image; what a
    view does not show counts
    nowhere: where the mirrored edge would be counted, the result would be off by up to the image's whole range.
    """
    y, x = np.indices((40, 60), np.float32)
    image = (0.2 + 0.6 * (0.7 * x / 60 + 0.3 * y / 40))[None]
    looked: list[np.ndarray] = []

    def forward(view: np.ndarray) -> np.ndarray:
        looked.append(view)
        return np.stack([4 * view - 2, 2 - 4 * view], -1)

    plain = forward(image)
    got = _with_views(plain, image, forward, 20, np.random.default_rng(0))
    assert len(looked) == 21
    assert max(abs(view - image).max() for view in looked) > 0.3, "views differ from the image"
    want = plain - np.log(np.exp(plain).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.exp(got), np.exp(want), atol=0.02)


def test_inverse_maps() -> None:
    maps = Augmentation(affine=1, rotate=170, scale=3, shift=0.5).draw_matrices(50, (16, 24), np.random.default_rng(0))
    points = np.array([[0.0, 23, 7], [0, 15, 3], [1, 1, 1]])
    there = np.concatenate([maps @ points, np.ones((50, 1, 3))], 1)
    np.testing.assert_allclose(inverse_maps(maps) @ there, np.broadcast_to(points[:2], (50, 2, 3)), atol=1e-9)
