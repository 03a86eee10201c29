"""Software prefetch: a list of cache lines that a gemm works off while it multiplies (gemm_microkernel.py).

The list is memory of 8 bytes an address. Kernels enqueue the lines that the next block reads and writes; `share` deals
them out to the products of this block. It pays on AMD's processors (`Target.prefetches`): inference of 16 images is
1.14 times as fast, a step of width 16 1.05 times (bench/RESULTS.md, "What each mechanism is worth").
"""

from __future__ import annotations

from kernels.core.cpu.jit import inline
from kernels.core.cpu.simd import Code, Int, Pointer, program


@program
def _enqueue_lines(code: Code, lines: Pointer, at: Int, x: Pointer, x0: Int, length: Int) -> None:
    with code.loop(0, code.shifted(length + 15, 4)) as i:
        code.enqueue(x + (x0 + i * 16), lines, at + i)


@inline()
def enqueue(lines, at, x, x0, length):  # type: ignore[no-untyped-def]
    """Put the cache lines of x[x0 : x0 + length] on the list, as number `at` and following; returns the next number."""
    _enqueue_lines(lines, at, x, x0, length)
    return at + (length + 15) // 16


@inline()
def share(count: int, part: int, parts: int) -> tuple[int, int]:
    """The first of `count` things that belong to one of `parts` parts, and how many do."""
    first = count * part // parts
    return first, count * (part + 1) // parts - first


def with_list(floats: int, lines: int) -> tuple[int, int]:
    """Floats of scratch memory with a prefetch list of that many lines (of 8 bytes each) after the first `floats`;
    where it begins, in entries (0: no list).
    """
    start = (floats + 1) // 2
    return 2 * (start + lines), start if lines else 0
