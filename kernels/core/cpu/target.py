"""The vector unit of this processor: its name, its width, its registers."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    """A vector unit: its name, float32 lanes of a vector, number of vector registers.

    prefetches: whether software prefetch far in advance pays. It does on AMD's processors. Intel's own prefetchers do
    as well, and the instructions cost a tenth of a convolution.
    """

    name: str
    lanes: int
    registers: int
    prefetches: bool = False


TARGETS = {
    t.name: t for t in (Target("avx512", 16, 32), Target("avx2", 8, 16), Target("neon", 4, 32), Target("scalar", 1, 16))
}

# processors that compute AVX-512 in two halves: AVX2 trains as fast or faster and needs fewer kernels
_HALVES = {"znver4"}


@lru_cache(maxsize=1)
def usable_targets() -> tuple[str, ...]:
    """The names of the vector units that this processor has, the one to use first."""
    features = dict(llvm.get_host_cpu_features())
    if all(features.get(f"avx512{part}") for part in ("f", "vl", "dq", "bw")):
        return ("avx2", "avx512", "scalar") if llvm.get_host_cpu_name() in _HALVES else ("avx512", "avx2", "scalar")
    if features.get("avx2") and features.get("fma"):
        return "avx2", "scalar"
    if features.get("neon") or llvm.get_process_triple().startswith("aarch64"):
        return "neon", "scalar"
    return ("scalar",)


@lru_cache(maxsize=1)
def target() -> Target:
    """The vector unit to use, or the one named by AREOGRAD_SIMD. Raises ValueError for an unknown or missing one."""
    asked = os.environ.get("AREOGRAD_SIMD", "").strip().lower() or usable_targets()[0]
    if asked not in usable_targets():
        raise ValueError(f"AREOGRAD_SIMD: got {asked!r}, this processor has {', '.join(usable_targets())}")
    return replace(TARGETS[asked], prefetches=llvm.get_host_cpu_name().startswith("znver"))


def mask_bytes(elements: int) -> int:
    """Bytes of the stored masks of so many elements: a bit each, a byte per vector at least."""
    lanes = target().lanes
    return -(-elements // lanes) * max(1, lanes // 8)
