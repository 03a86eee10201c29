"""A Tensor in a notebook: shape, dtype, where it is, and its values as a small table or, of images, as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from autograd.html import Markup, block, code, faint, number, picture, table, tag
from kernels.core.device import Array, array_module, to_numpy

if TYPE_CHECKING:
    from autograd.tensor import Tensor

_ROWS, _COLUMNS = 6, 8  # of a table
_IMAGES = 8
_SMALLEST, _LARGEST = 8, 192  # pixels of an image's side: of what counts as one, and of what is shown
_COUNTED = 1 << 26  # numbers of which the extremes are shown


def tensor_html(tensor: Tensor) -> Markup:
    """What `Tensor._repr_html_` returns. Only the values that are shown are copied from the device."""
    made = "made by " + type(tensor.creator).__name__ if tensor.creator else "requires_grad" * tensor.requires_grad
    facts = [str(tensor.shape), str(tensor.dtype), tensor.device, *([made] if made else [])]
    values = tensor.data
    shown = _pictures(values) if _is_images(values) else _numbers(values)
    return block(tag("div", tag("b", type(tensor).__name__), " ", code(", ".join(facts))), _extremes(values), shown)


def _extremes(values: Array) -> Markup:
    """The smallest, mean and largest number, and how many are none."""
    if values.dtype.kind not in "iuf" or values.size < 2 or values.size > _COUNTED:
        return Markup("")
    finite = array_module(values).isfinite(values)
    count = int(finite.sum())
    wrong = f", {values.size - count} of {values.size} NaN or infinite" if count < values.size else ""
    some = values if not wrong else values[finite]
    if not count:
        return faint(wrong.removeprefix(", "))
    low, mean, high = (float(some.min()), float(some.mean(dtype="float64")), float(some.max()))
    return faint(f"min {low:.4g}, mean {mean:.4g}, max {high:.4g}{wrong}")


def _is_images(values: Array) -> bool:
    shape = values.shape
    return (
        len(shape) == 4 and shape[3] in (1, 3) and min(shape[1:3]) >= _SMALLEST and shape[0] > 0
    ) and values.dtype.kind in "biuf"


def _pictures(values: Array) -> Markup:
    """Images (N, H, W, 1 or 3): bytes as they are, other numbers from black for the smallest to white."""
    step = -(-max(values.shape[1:3]) // _LARGEST)
    some = to_numpy(values[:_IMAGES, ::step, ::step])
    note = ""
    if some.dtype != np.uint8:
        finite = some[np.isfinite(some)].astype(np.float64)
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        note = f"black is {low:.4g}, white is {high:.4g}"
        unit = (np.nan_to_num(some.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1.0)
        some = (255 * unit).round().astype(np.uint8)
    if len(values) > len(some):
        note = f"{note}; " * bool(note) + f"the first {len(some)} of {len(values)}"
    width = some.shape[2] * max(1, 96 // max(some.shape[1:3]))
    images = [picture(x[..., 0] if x.shape[2] == 1 else x, width, f"image {k}") for k, x in enumerate(some)]
    return tag("div", tag("div", *images, style="margin: 4px 0"), faint(note))


def _numbers(values: Array) -> Markup:
    """The values, or the corner of the last two axes."""
    if not values.size:
        return Markup("")
    place = ", ".join(["0"] * (values.ndim - 2) + [":", ":"])
    plane = values.reshape(1, -1)[:, : _COLUMNS + 1] if values.ndim < 2 else values[(0,) * (values.ndim - 2)]
    width = values.size if values.ndim < 2 else plane.shape[1]
    corner = to_numpy(plane[:_ROWS, :_COLUMNS])
    rows = [[number(value) for value in row] + ["\u2026"] * (width > _COLUMNS) for row in corner]
    if plane.shape[0] > _ROWS:
        rows.append(["\u2026"] * len(rows[0]))
    where = [faint(f"[{place}]")] if values.ndim > 2 else []
    return tag("div", *where, table(rows, left=0))
