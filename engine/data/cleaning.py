"""Removal of the planted 'alien' samples: pasted figures that all share one identical mask.

How planted masks are told from others. Legitimate tiles do share masks: uniform ones (all soil, all sand), and ones
uniform but for the thin unlabelled frame at the edge of the source image, often dozens of them, bit by bit the same.
Where the interior holds a boundary, though, a person drew it, and no two drawings of two places agree in 8,192 pixels:
in the real set no such mask is shared by more than two tiles (an unlabelled range limit at the same row). So a mask is
planted when

  1. its interior, without a margin of an eighth of each side, is not uniform, and
  2. at least 5 different images carry it, bit by bit.

"Different images" keeps copies: a tile repeated to balance classes shares its mask with itself, but its image too.
The names of groups play no part: the original file has none.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from engine.data.classes import MARS, Classes
from engine.data.tiles import Tiles, parts_of

SHARED_BY = (
    5  # legitimate: at most 2; planted: 110. Nearer the legitimate end, so that a subset's aliens are found too.
)


@dataclass(frozen=True, eq=False)
class Cleaned:
    """tiles: those that stay. removed: int64 indices into the tiles given, ascending. reasons: one line per mask
    removed.

    masks: how many masks the removed tiles shared; in the original file it is one.
    """

    tiles: Tiles
    removed: np.ndarray
    reasons: list[str]

    @property
    def masks(self) -> int:
        return len(self.reasons)


def cleaned_by(policy: str, tiles: Tiles, original: bool, classes: Classes = MARS) -> tuple[Tiles, list[str]]:
    """The tiles that the setting `clean` leaves, and what it did or would do, a line each.

    policy: 'remove', 'report', 'off', or 'auto'. 'auto' removes by the rule of the original file, one mask on all
    planted samples, from data that have its form (`original`). Where several masks are shared, and in other data, it
    only reports, for a camera may stand still.
    """
    if policy == "off":
        return tiles, []
    found = clean(tiles, classes)
    if policy == "remove" or (policy == "auto" and original and found.masks == 1):
        return found.tiles, found.reasons
    hint = "kept; --clean remove removes them, --clean off says nothing"
    return tiles, [f"{reason.replace('removed ', '', 1)} ({hint})" for reason in found.reasons]


def clean(tiles: Tiles, classes: Classes = MARS) -> Cleaned:
    """Remove the samples whose mask is planted (rule above). Raises DataError when the tiles have no masks."""
    masks = tiles.labels()
    varies = [varies for part in parts_of(masks) for varies in _interior_varies(part)]
    sharing: dict[bytes, list[int]] = defaultdict(list)
    for i in np.flatnonzero(varies):
        sharing[_digest(masks[i])].append(int(i))
    removed: list[int] = []
    reasons: list[str] = []
    for rows in sharing.values():
        different = len({_digest(tiles.images[i]) for i in rows}) if len(rows) >= SHARED_BY else 0
        if different >= SHARED_BY:
            removed += rows
            labels = ", ".join(
                "ignored" if label == classes.ignored else classes.names[label] for label in np.unique(masks[rows[0]])
            )
            reasons.append(
                f"removed {len(rows)} samples: {different} different images carry one and the same drawn mask "
                f"({labels}), so they look planted"
            )
    index = np.array(sorted(removed), dtype=np.int64)
    return Cleaned(tiles[np.delete(np.arange(len(tiles)), index)], index, reasons)


def _interior_varies(masks: np.ndarray) -> np.ndarray:
    """masks (N, H, W) -> bool (N,): whether the mask without its margin holds more than one label."""
    _, h, w = masks.shape
    interior = masks[:, h // 8 : h - h // 8, w // 8 : w - w // 8]
    return (interior != interior[:, :1, :1]).any(axis=(1, 2))


def _digest(tile: np.ndarray) -> bytes:
    return hashlib.blake2b(tile.tobytes(), digest_size=16).digest()
