"""Sliding-window arithmetic: sizes, strides, paddings and dilations of convolutions and pooling.

All sizes are (height, width) in pixels. A `Window` is canonical: every kernel gets pairs, never "an int or a pair".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

Pair = tuple[int, int]


def pair(value: Any, name: str, least: int = 1) -> Pair:
    """An int or a pair of ints as a pair; ValueError naming `name` for anything else or for a value below `least`."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and min(value) >= least:
        return value  # most calls
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or any(isinstance(v, bool) or not hasattr(v, "__index__") for v in values):
        raise ValueError(f"{name}: got {value!r}, expected an int or a pair of ints")
    if min(values) < least:
        raise ValueError(f"{name}: got {value!r}, expected at least {least}")
    return int(values[0]), int(values[1])


def padding_pairs(padding: Any, name: str, kernel: Pair, stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """An int, a pair, ((top, bottom), (left, right)) or 'same' as ((top, bottom), (left, right)).

    'same' keeps the size at stride 1; where the total is odd the extra pixel goes to the bottom / right (PyTorch's
    rule).
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            raise ValueError(
                f"{name}: got {padding!r}, expected an int, a pair, ((top, bottom), (left, right)), 'same' or 'valid'"
            )
        if stride != (1, 1):
            raise ValueError(f"{name}: 'same' needs stride 1, got stride {stride}")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and all(isinstance(p, (tuple, list)) for p in padding):
        return pair(tuple(padding[0]), name, 0), pair(tuple(padding[1]), name, 0)
    top, left = pair(padding, name, 0)
    return (top, top), (left, left)


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
