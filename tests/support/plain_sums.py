"""Sums from the first term to the last, in the dtype of the terms, and the convolutions that are made of them.

Maps are (N, C, H, W) and filters (K, C / groups, R, S). settings: stride and dilation pairs, padding ((top, bottom),
(left, right)), groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def total(terms: np.ndarray) -> np.ndarray:
    """The sum over the last axis from the first term to the last, in the terms' own dtype."""
    if not terms.shape[-1]:
        return np.zeros(terms.shape[:-1], terms.dtype)
    return np.add.accumulate(terms, -1, terms.dtype)[..., -1]


def per_channel(terms: np.ndarray) -> np.ndarray:
    """The sum over all axes but the second."""
    return total(np.moveaxis(terms, 1, 0).reshape(terms.shape[1], -1))


def taps(x: np.ndarray, settings: dict[str, Any], kernel: tuple[int, int]) -> list[tuple[int, int, Any]]:
    """(r, s, the slices of padded x (N, C, H, W) that the tap reads)."""
    (sh, sw), (dh, dw) = settings["stride"], settings["dilation"]
    p, q = ((n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], (dh, dw), kernel, (sh, sw), strict=True))
    return [
        (r, s, np.s_[:, :, r * dh : r * dh + (p - 1) * sh + 1 : sh, s * dw : s * dw + (q - 1) * sw + 1 : sw])
        for r in range(kernel[0])
        for s in range(kernel[1])
    ]


def padded(x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), *settings["padding"]))


def cropped(x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    (top, bottom), (left, right) = settings["padding"]
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def naive_conv(x: np.ndarray, w: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """conv2d without a bias: for every output channel, the terms of channels and taps one after the other."""
    x, k = padded(x, settings), w.shape[0]
    per, channels = k // settings["groups"], w.shape[1]
    y: Any = None
    for c in range(channels):
        for r, s, part in taps(x, settings, w.shape[2:]):
            read = x[part][:, np.arange(k) // per * channels + c]
            term = read * w[None, :, c, r, s, None, None]
            y = term if y is None else y + term
    return y


def naive_data(dy: np.ndarray, w: np.ndarray, shape: tuple[int, ...], settings: dict[str, Any]) -> np.ndarray:
    """The gradient by x of that shape."""
    x = padded(np.zeros(shape, dy.dtype), settings)
    per, channels = w.shape[0] // settings["groups"], w.shape[1]
    for k in range(w.shape[0]):
        first = k // per * channels
        for r, s, part in taps(x, settings, w.shape[2:]):
            x[part][:, first : first + channels] += dy[:, k, None] * w[k, :, r, s, None, None]
    return cropped(x, settings)


def naive_filter(x: np.ndarray, dy: np.ndarray, shape: tuple[int, ...], settings: dict[str, Any]) -> np.ndarray:
    """The gradient by w of that shape."""
    x, dw = padded(x, settings), np.zeros(shape, dy.dtype)
    per, channels = shape[0] // settings["groups"], shape[1]
    for k in range(shape[0]):
        first = k // per * channels
        for r, s, part in taps(x, settings, shape[2:]):
            dw[k, :, r, s] = per_channel(x[part][:, first : first + channels] * dy[:, k, None])
    return dw
