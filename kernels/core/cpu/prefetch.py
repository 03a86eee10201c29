"""Software prefetch: a list of cache lines that register tiles ask for while they multiply, and a plain walk."""

from __future__ import annotations

from kernels.core.cpu.jit import inline
from kernels.core.cpu.simd import Code, Int, Pointer, program


@program("pii")
def touch(code: Code, x: Pointer, x0: Int, length: Int) -> None:
    """Ask the memory for x[x0 : x0 + length] in advance."""
    with code.loop(0, length, 16) as i:
        code.prefetch(x, x0 + i, near=False)


# A list of cache lines: addresses of 8 bytes. Register tiles go through it while they multiply
# (kernels/core/cpu/gemm_microkernel.py).
@program("pipii")
def _note_lines(code: Code, noted: Pointer, at: Int, x: Pointer, x0: Int, length: Int) -> None:
    with code.loop(0, code.shifted(length + 15, 4)) as i:
        code.note(x + (x0 + i * 16), noted, at + i)


@inline()
def note(noted, at, x, x0, length):  # type: ignore[no-untyped-def]
    """Note the cache lines of x[x0 : x0 + length] as number `at` and following of a list; returns the next number."""
    _note_lines(noted, at, x, x0, length)
    return at + (length + 15) // 16


@inline()
def share(count: int, part: int, parts: int) -> tuple[int, int]:
    """The first of `count` things that belong to one of `parts` parts, and how many do."""
    first = count * part // parts
    return first, count * (part + 1) // parts - first
