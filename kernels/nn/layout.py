"""Where the channels of a caller's arrays are, and the way to the kernels and back.

Kernels take maps (N, H, W, C) and filters (R, S, C / groups, K). An array whose channels are elsewhere is copied on its
way in, and a result on its way out: each costs a read and a write of the array, once per call. Channels last cost
nothing. A sequence is an image that is one row high.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kernels.core.device import Array, array_module
from kernels.core.geometry import Pair
from kernels.core.shapes import shown


class Layout(NamedTuple):
    """The axes of a map: NCHW or NHWC, of a sequence NCL or NLC."""

    axes: str

    @property
    def is_last(self) -> bool:
        """Whether the channels are the last axis."""
        return self.axes[-1] == "C"

    @property
    def is_sequence(self) -> bool:
        """Whether there is one axis of places instead of two."""
        return "L" in self.axes

    def filter_axes(self, inputs: str, outputs: str) -> str:
        """The axes of a filter, in words; the channels are named as given."""
        places = "R" if self.is_sequence else "R, S"
        return f"({places}, {inputs}, {outputs})" if self.is_last else f"({outputs}, {inputs}, {places})"

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, Pair, int]:
        """(N, (H, W), C) of a map or a sequence."""
        n, *rest = shape
        places, c = (rest[:-1], rest[-1]) if self.is_last else (rest[1:], rest[0])
        return n, (1 if self.is_sequence else places[0], places[-1]), c

    def shape(self, n: int, size: Pair, c: int) -> tuple[int, ...]:
        """The shape of a map or a sequence: the inverse of `sizes`."""
        places = size[1:] if self.is_sequence else size
        return (n, *places, c) if self.is_last else (n, c, *places)

    def channels_last(self, array: Array) -> Array:
        """An array (N, C, ...) or (N, ..., C) of any number of axes as (N, ..., C)."""
        return array if self.is_last or array.ndim == 2 else _moved(array, 1, -1)

    def channels_back(self, array: Array) -> Array:
        """The inverse of `channels_last`, in C order."""
        return in_c_order(array if self.is_last or array.ndim == 2 else _moved(array, -1, 1))

    def map_in(self, array: Array) -> Array:
        """A map or a sequence as (N, H, W, C)."""
        array = self.channels_last(array)
        return array[:, None] if self.is_sequence else array

    def map_out(self, array: Array) -> Array:
        """(N, H, W, C) as a map or a sequence of this layout."""
        return self.channels_back(array[:, 0] if self.is_sequence else array)

    def filter_sizes(self, shape: tuple[int, ...]) -> tuple[Pair, int, int]:
        """((R, S), the second channels, the first ones) of a filter (first, second, R, S) or (R, S, second, first)."""
        *places, second, first = shape if self.is_last else (*shape[2:], shape[1], shape[0])
        return (1 if self.is_sequence else places[0], places[-1]), second, first

    def filter_in(self, w: Array) -> Array:
        """A filter (first, second, R, S), or of a sequence without the R, as (R, S, second, first)."""
        if not self.is_last:
            w = in_c_order(w.transpose(*range(2, w.ndim), 1, 0))
        return w[None] if self.is_sequence else w

    def filter_out(self, w: Array) -> Array:
        """The inverse of `filter_in`, in C order."""
        w = w[0] if self.is_sequence else w
        return in_c_order(w if self.is_last else w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2)))


IMAGES = "NCHW", "NHWC"
SEQUENCES = "NCL", "NLC"


def layout_of(name: str, layout: Any, names: tuple[str, ...] = IMAGES) -> Layout:
    """The layout of that name; ValueError, which begins with the caller's `name`, for none of `names`."""
    if not isinstance(layout, str) or layout not in names:
        raise ValueError(f"{name}: layout: got {shown(layout)}, expected {' or '.join(map(repr, names))}")
    return Layout(layout)


def in_c_order(array: Array) -> Array:
    """The array, or a copy of it in C order: what code that reads raw memory, such as a RawKernel, expects."""
    return array_module(array).asarray(array, order="C")


def _moved(array: Array, source: int, target: int) -> Array:
    return in_c_order(array_module(array).moveaxis(array, source, target))
