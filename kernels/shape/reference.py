"""Moving values between maps: concatenation along channels, its undoing, and the sum that gathers gradients."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.core.device import Array, array_module


def concat_channels(xs: Sequence[Array]) -> Array:
    """Maps (..., C_i) side by side: (..., sum C_i)."""
    return array_module(*xs).concatenate(xs, -1)


def split_channels(dy: Array, sizes: Sequence[int]) -> list[Array]:
    """The slices of (..., sum C_i) with C_i channels each (views or copies)."""
    out, start = [], 0
    for size in sizes:
        out.append(dy[..., start : start + size])
        start += size
    return out


def accumulate(total: Array, more: Array) -> None:
    """total += more, in place."""
    total += more
