"""Sliding-window arithmetic: sizes, strides, paddings and dilations of convolutions and pooling.

All sizes are (height, width) in pixels. A `Window` is canonical: every kernel gets pairs, never "an int or a pair".
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kernels.core.shapes import shown

Pair = tuple[int, int]
MOST = 2**31 - 1  # pixels: kernels keep sizes as 32-bit numbers


def pair(value: Any, name: str, least: int = 1) -> Pair:
    """An int or a pair of ints as a pair; ValueError naming `name` for anything else or for a value below `least`."""
    if (
        type(value) is tuple
        and len(value) == 2
        and type(value[0]) is type(value[1]) is int
        and least <= min(value) <= max(value) <= MOST
    ):
        return value  # most calls
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    first, second = map(as_index, values) if len(values) == 2 else (None, None)
    if first is None or second is None:
        raise ValueError(f"{name}: got {shown(value)}, expected an int or a pair of ints")
    if min(first, second) < least:
        raise ValueError(f"{name}: got {shown(value)}, expected at least {least}")
    if max(first, second) > MOST:
        raise ValueError(f"{name}: got {shown(value)}, expected at most {MOST}")
    return first, second


def padding_pairs(padding: Any, name: str, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """An int, a pair, ((top, bottom), (left, right)) or 'same' as ((top, bottom), (left, right)).

    'same' keeps the size at stride 1; where the total is odd the extra pixel goes to the bottom / right (PyTorch's
    rule).
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            expected = "an int, a pair, ((top, bottom), (left, right)), 'same' or 'valid'"
            raise ValueError(f"{name}: got {shown(padding)}, expected {expected}")
        if stride != (1, 1):
            raise ValueError(f"{name}: 'same' needs stride 1, got stride {stride}")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and all(isinstance(p, (tuple, list)) for p in padding):
        return pair(tuple(padding[0]), name, 0), pair(tuple(padding[1]), name, 0)
    top, left = pair(padding, name, 0)
    return (top, top), (left, left)


def row_settings(name: str, stride: Any, padding: Any, dilation: Any) -> tuple[Pair, Any, Pair]:
    """(stride, padding, dilation) along one axis as those of an image that is one row high.

    stride, dilation: an int, or a sequence that holds one. padding: an int, (before, after), 'same' or 'valid'.
    ValueError for anything else, here or in `Window.of`.
    """
    if not isinstance(padding, str):
        ends = padding if isinstance(padding, (tuple, list)) else (padding,)
        before, after = (as_index(ends[k]) if len(ends) in (1, 2) else None for k in (0, -1))
        if before is None or after is None:
            expected = "an int, (before, after), 'same' or 'valid'"
            raise ValueError(f"{name}: padding: got {shown(padding)}, expected {expected}")
        padding = ((0, 0), (before, after))
    return (1, one(name, "stride", stride)), padding, (1, one(name, "dilation", dilation))


def one(name: str, argument: str, value: Any) -> int:
    """An int, or the one in a sequence, as PyTorch takes them; ValueError for anything else and for less than 1."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    number = as_index(values[0]) if len(values) == 1 else None
    if number is None:
        raise ValueError(f"{name}: {argument}: got {shown(value)}, expected an int")
    return pair(number, f"{name}: {argument}")[0]


def as_index(value: Any) -> int | None:
    """The int that a value stands for; None for what is none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


@dataclass(frozen=True)
class Window:
    """A sliding window: kernel (R, S), stride, padding ((top, bottom), (left, right)), dilation. Hashable."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)

    def __hash__(self) -> int:
        """Taken once: windows are the keys of much that is looked up at every call."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.kernel, self.stride, self.padding, self.dilation))

    @classmethod
    def of(cls, name: str, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Window:
        """Normalise user arguments; errors start with `name`, the operator."""
        k = pair(kernel, f"{name}: kernel_size")
        s = pair(stride, f"{name}: stride")
        d = pair(dilation, f"{name}: dilation")
        return cls(k, s, padding_pairs(padding, f"{name}: padding", k, s, d), d)

    @property
    def extent(self) -> Pair:
        """Pixels spanned by the dilated kernel: d (k - 1) + 1."""
        r, s = self.kernel
        dr, ds = self.dilation
        return dr * (r - 1) + 1, ds * (s - 1) + 1

    def output_size(self, size: Pair) -> Pair:
        """P = floor((H + top + bottom - extent) / stride) + 1, likewise Q; may be 0 or less when nothing fits."""
        (top, bottom), (left, right) = self.padding
        r, s = self.extent
        sh, sw = self.stride
        h, w = size
        return (h + top + bottom - r) // sh + 1, (w + left + right - s) // sw + 1

    def checked_output_size(self, name: str, size: Pair) -> Pair:
        """`output_size`, or a ValueError naming the numbers when the window does not fit into the padded input."""
        out = self.output_size(size)
        if min(out) < 1:
            raise ValueError(
                f"{name}: the window spans {self.extent} pixels, but the input is {size} with padding {self.padding}"
            )
        return out

    def with_ceil_mode(self, size: Pair) -> Window:
        """The same window with bottom / right padding extended so that `output_size` is PyTorch's ceil_mode size.

        A window that would start inside the bottom / right padding is dropped (PyTorch's rule).
        """
        padding = []
        for n, pad, e, s in zip(size, self.padding, self.extent, self.stride, strict=True):
            out = -(-(n + sum(pad) - e) // s) + 1
            if (out - 1) * s >= n + pad[0]:
                out -= 1
            padding.append((pad[0], max(pad[1], (out - 1) * s + e - n - pad[0])))
        return Window(self.kernel, self.stride, (padding[0], padding[1]), self.dilation)

    def first_outputs(self, size: Pair, out: Pair) -> tuple[Window, Pair]:
        """The window and the part of an input of `size` that give the first `out` outputs only.

        Outputs beyond `out` cost a stride each: of the bottom / right padding first, then of the input.
        """
        if self.output_size(size) == out:
            return self, size
        padding, part = [], []
        for n, pad, e, s, wanted in zip(size, self.padding, self.extent, self.stride, out, strict=True):
            extra = max(0, n + sum(pad) - e - (wanted * s - 1))
            padding.append((pad[0], max(0, pad[1] - extra)))
            part.append(n - max(0, extra - pad[1]))
        return Window(self.kernel, self.stride, (padding[0], padding[1]), self.dilation), (part[0], part[1])

    def input_size(self, size: Pair, output_padding: Pair = (0, 0)) -> Pair:
        """The size whose windows give `size`: (P - 1) stride - padding + extent + output_padding (transposed
        convolution).
        """
        (h, w) = (
            (p - 1) * s - sum(pad) + e + extra
            for p, s, pad, e, extra in zip(size, self.stride, self.padding, self.extent, output_padding, strict=True)
        )
        return h, w

    def checked_input_size(self, name: str, size: Pair, output_padding: Any = 0) -> Pair:
        """`input_size` for an output padding as users give it, or a ValueError where one of both is none."""
        extra = pair(output_padding, f"{name}: output_padding", 0)
        if any(e >= max(s, d) for e, s, d in zip(extra, self.stride, self.dilation, strict=True)):
            raise ValueError(
                f"{name}: output_padding {extra} must be below stride {self.stride} or dilation {self.dilation}"
            )
        out = self.input_size(size, extra)
        if min(out) < 1:
            raise ValueError(f"{name}: the output would be {out} for input {size} with padding {self.padding}")
        return out


def pooling_window(
    name: str, size: Pair, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Window, Pair]:
    """The window of a pooling over an image of `size`, with the padding that ceil_mode adds to it, and the padding
    (bottom, right) that was given; ValueError as PyTorch's pooling. stride None: kernel_size.
    """
    window = Window.of(name, kernel_size, kernel_size if stride is None else stride, padding, dilation)
    for (before, after), extent in zip(window.padding, window.extent, strict=True):
        if max(before, after) > extent // 2:
            raise ValueError(
                f"{name}: padding {window.padding} must be at most half the kernel {window.kernel}, dilation "
                f"{window.dilation}"
            )
    whole = window.with_ceil_mode(size) if ceil_mode else window
    whole.checked_output_size(name, size)
    return whole, (window.padding[0][1], window.padding[1][1])
