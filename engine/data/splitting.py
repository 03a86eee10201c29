"""Training and validation parts that share no source image, with every class in both.

Tiles of one source image share light, ground and camera; a tile of it on either side of a split is a leak. So whole
groups are dealt out. Big rock is in some 3 % of the tiles: dealt at random, a part may get none. So the dealing is
stratified, rarest class first (after Sechidis, Tsoumakas, Vlahavas, "On the stratification of multi-label data", ECML
2011, with groups in place of samples).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.data.classes import MARS, Classes
from engine.data.tiles import DataError, Tiles


@dataclass(frozen=True, eq=False)
class Split:
    """train, val: int64 indices into the tiles, ascending, disjoint, together all. by: 'source image', 'folder' or
    'tile'. note: one line.
    """

    train: np.ndarray
    val: np.ndarray
    by: str
    note: str


def split(tiles: Tiles, fraction: float = 0.2, seed: int = 0, by: str = "image", classes: Classes = MARS) -> Split:
    """Part of the tiles for validation: close to `fraction` of all tiles and of the tiles of every class.

    By source image where groups are known (a tile of group '' is a group of its own): no group is in both parts. A
    class that occurs in two groups or more occurs in both parts. By tile where no group is known; the note says so.
    Deterministic in seed.
    by: 'image'; 'tile', which deals every tile alone, whatever its source, and leaks; or 'folder', which deals the
    folders the tiles lay in. Raises DataError for tiles without masks, a fraction outside (0, 1), or fewer than two
    groups.
    """
    if not 0 < fraction < 1:
        raise DataError(f"fraction: got {fraction}, expected a number between 0 and 1")
    part, what = _dealt_by(tiles, by, (1 - fraction, fraction), seed, classes)
    return _split(tiles, part == 1, what, classes)


def folds(tiles: Tiles, k: int = 5, seed: int = 0, by: str = "image", classes: Classes = MARS) -> list[Split]:
    """k splits for cross-validation, dealt like `split`: every tile is validated on exactly once, in a k-th of its
    class.

    Raises DataError for tiles without masks, k below 2, or fewer than k groups.
    """
    if k < 2:
        raise DataError(f"k: got {k}, expected at least 2")
    part, what = _dealt_by(tiles, by, (1 / k,) * k, seed, classes)
    return [_split(tiles, part == fold, what, classes) for fold in range(k)]


def sharing(tiles: Tiles, others: Tiles) -> np.ndarray:
    """Which tiles share a source image with any of `others`: bool (N,). Tiles of unknown sources share none."""
    return np.isin(tiles.sources, others.sources) & (tiles.sources != "")


def _split(tiles: Tiles, validation: np.ndarray, by: str, classes: Classes) -> Split:
    present = tiles.counts > 0
    rarest = min(reversed(classes.scored), key=lambda label: int(present[:, label].sum()))
    train = np.flatnonzero(~validation)
    val = np.flatnonzero(validation)
    caution = "" if by != "tile" else "; source images are unknown, tiles of one image may be in both parts"
    if by == "tile" and tiles.sources_known:
        shared = int(sharing(tiles[val], tiles[train]).sum())
        caution = (
            f"; warning: this leaks, {shared} of the tiles to validate share a source image with one to train, so "
            "scores are too high"
        )
    rock = f"{classes.names[rarest]} in {present[train, rarest].sum()} and {present[val, rarest].sum()}"
    return Split(train, val, by, f"split by {by}: {len(train)} tiles to train, {len(val)} to validate, {rock}{caution}")


def _dealt_by(tiles: Tiles, by: str, shares: tuple[float, ...], seed: int, classes: Classes) -> tuple[np.ndarray, str]:
    """The part (N,) of each tile, and what was dealt: 'source image', 'folder' or 'tile'."""
    if by != "folder":
        return _dealt(tiles if by == "image" else tiles.having(groups=None), shares, seed, classes)
    if tiles.folders is None:
        raise DataError("split: got 'folder', but the images lie in no folders of their own (images/NAME/...)")
    return _dealt(tiles.having(groups=np.where(tiles.folders == "", ".", tiles.folders)), shares, seed, classes)[
        0
    ], "folder"


def _dealt(tiles: Tiles, shares: tuple[float, ...], seed: int, classes: Classes) -> tuple[np.ndarray, str]:
    """The part (N,) of each tile, 0..len(shares) - 1, and what was dealt: 'source image' or 'tile'."""
    by = "source image" if tiles.sources_known else "tile"
    group = _group_numbers(tiles)
    groups = int(group.max(initial=-1)) + 1
    if groups < len(shares):
        raise DataError(f"split: got {len(tiles)} tiles of {groups} {by}s, expected at least {len(shares)} {by}s")
    # Columns: tiles holding each class, then all tiles: the last is a class that every group has.
    present = np.column_stack([tiles.counts > 0, np.ones(len(tiles), bool)])
    counts = np.zeros((groups, present.shape[1]), np.int64)
    np.add.at(counts, group, present)
    return _parts(counts, shares, np.random.default_rng(seed))[group], by


def _group_numbers(tiles: Tiles) -> np.ndarray:
    """The group of each tile as a number 0..groups - 1; unknown sources get a number each."""
    names, number = np.unique(tiles.sources, return_inverse=True)
    number = np.where(tiles.sources == "", len(names) + np.arange(len(tiles)), number)
    return np.unique(number, return_inverse=True)[1]


def _parts(counts: np.ndarray, shares: tuple[float, ...], random: np.random.Generator) -> np.ndarray:
    """Deal groups to parts. counts: tiles per group and class (G, K) -> part (G,).

    A part's fill in class k is (its tiles of k) / (its share of them). A group goes to the part filled least in the
    class being dealt; ties are settled by the mean fill over all classes the group has, so that it goes where its other
    classes lack.
    """
    part = np.full(len(counts), -1)
    due = [[share * float(total) for total in counts.sum(axis=0)] for share in shares]
    got = [[0] * counts.shape[1] for _ in shares]
    for k, group in _dealing_order(counts, random):
        if part[group] >= 0:
            continue
        row = counts[group].tolist()
        has = [j for j, n in enumerate(row) if n]
        fill = [(own[k] / goal[k], sum(own[j] / goal[j] for j in has)) for own, goal in zip(got, due, strict=True)]
        chosen = fill.index(min(fill))
        part[group] = chosen
        for j in has:
            got[chosen][j] += row[j]
    return part


def _dealing_order(counts: np.ndarray, random: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(class, group): the class in the fewest groups first; within it groups with most tiles of it first, equals in
    random order.
    """
    order = random.permutation(len(counts))
    groups_with = np.count_nonzero(counts, axis=0)
    for k in np.argsort(groups_with, kind="stable"):
        having = order[counts[order, k] > 0]
        for group in having[np.argsort(-counts[having, k], kind="stable")]:
            yield int(k), int(group)
