"""Class weights against imbalance, from integer pixel counts.

With f_c the share of class c in all pixels and n_c the images that contain it, before normalisation

  none       1
  inverse    1 / f_c
  median     median(g) / g_c,  g_c = pixels of c / pixels of the images containing c    (Eigen, Fergus, arXiv:1411.4734)
  sqrt       1 / sqrt(f_c)
  enet       1 / ln(1.02 + f_c)                                                          (Paszke et al.,
  arXiv:1606.02147)
  effective  (1 - b) / (1 - b^n_c),  b = 0.999                                           (Cui et al., arXiv:1901.05555)

'effective' counts images: pixels of an image are no independent samples, and at 10^4 to 10^7 of them every usual b
gives equal weights. b = 0.999 is one over a thousand, the number of images a common class has here.
"""

from __future__ import annotations

import numpy as np

from engine.data.classes import MARS, Classes
from engine.data.tiles import DataError, pixel_counts

SCHEMES = ("none", "inverse", "median", "sqrt", "enet", "effective")
_ENET_OFFSET = 1.02
_EFFECTIVE_BETA = 0.999


def class_weights(
    masks: np.ndarray,
    scheme: str,
    background: bool = False,
    cap: float | None = None,
    classes: Classes = MARS,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """Weights of the classes in the loss. masks: labels (N, H, W) -> float64 (C,); see `weights_from_counts`.

    counts: pixels of each class in each mask, where they are known.
    """
    if masks.ndim != 3:
        raise DataError(f"class_weights: got masks of shape {masks.shape}, expected (N, H, W)")
    counts = pixel_counts(masks, classes) if counts is None else counts
    area = masks.shape[1] * masks.shape[2]
    return weights_from_counts(
        counts.sum(axis=0), np.count_nonzero(counts, axis=0), area, scheme, background, cap, classes.names
    )


def weights_from_counts(
    pixels: np.ndarray,
    images: np.ndarray,
    image_pixels: int,
    scheme: str,
    background: bool = False,
    cap: float | None = None,
    names: tuple[str, ...] = MARS.names,
) -> np.ndarray:
    """Weights from pixels of each class (C,), images containing each class (C,) and pixels per image -> float64 (C,).

    The classes used are those present, without background unless `background`; their weights have mean 1, all others
    are 0. (A class that is absent has no pixel to weigh, and no weight that could be computed from it.) `cap` bounds
    the ratio of the largest weight used to the smallest. Shares f_c are of all pixels, background included, whether or
    not it is used. Raises DataError for an unknown scheme, a cap below 1, or when no class is used.
    """
    if scheme not in SCHEMES:
        raise DataError(f"class_weights: got scheme '{scheme}', expected one of {', '.join(SCHEMES)}")
    if cap is not None and not cap >= 1:
        raise DataError(f"class_weights: got cap {cap}, expected at least 1: the largest weight over the smallest")
    used = np.asarray(pixels) > 0
    used[0] &= background
    if not used.any():
        wanted = names if background else names[1:]
        raise DataError(
            f"class_weights: got masks without any pixel of {', '.join(wanted)}; expected at least one class to weigh"
        )
    share = np.asarray(pixels)[used] / np.sum(pixels)
    count = np.asarray(images)[used].astype(np.float64)
    raw = _raw(scheme, share, np.asarray(pixels)[used] / (count * image_pixels), count)
    if cap is not None:
        raw = np.minimum(raw, cap * raw.min())
    weights = np.zeros(len(names))
    weights[used] = raw / raw.mean()
    return weights


def _raw(scheme: str, share: np.ndarray, share_where_present: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The formulas of the module's docstring, for the classes used."""
    if scheme == "none":
        return np.ones_like(share)
    if scheme == "inverse":
        return 1 / share
    if scheme == "median":
        return np.median(share_where_present) / share_where_present
    if scheme == "sqrt":
        return 1 / np.sqrt(share)
    if scheme == "enet":
        return 1 / np.log(_ENET_OFFSET + share)
    return (1 - _EFFECTIVE_BETA) / (1 - _EFFECTIVE_BETA**images)
