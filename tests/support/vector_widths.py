"""The vector widths that this processor has."""

from __future__ import annotations

from kernels.core.cpu.target import target, usable_targets


def other_widths() -> list[str]:
    """The targets beside the one in force that this processor has."""
    return [name for name in usable_targets() if name != target().name]


# The environment of a process with narrow vectors, where there are any: they compile faster, and most processors have
# no wider ones.
NARROW = {"AREOGRAD_SIMD": "avx2"} if "avx2" in other_widths() else {}
