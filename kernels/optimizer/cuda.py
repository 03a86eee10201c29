"""The optimiser on CUDA: a pass for the norm, a pass for the step, nothing copied to the host; see optimizer.cu.
float32 and float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.core.cuda.module import Launch, Module, blocks
from kernels.core.device import Array, module_of
from kernels.optimizer.layout import LINE

MODULE = Module(
    "optimizer/optimizer.cu",
    (
        *(
            f"{name}<{t}>"
            for name in ("adamw_plain", "adamw", "squares_plain", "squares", "clip", "gather")
            for t in ("float", "double")
        ),
        "squares_finish",
    ),
)
THREADS, MOST_PARTS, TABLE = 256, 1024, 160  # as in optimizer.cu
_TYPES = {"float32": "float", "float64": "double"}
_STEP = ("first", "second", "rate", "root", "eps", "learning_rate", "kept")


def _served(*arrays: Array) -> bool:
    first = arrays[0]
    return (
        first.dtype.name in _TYPES
        and first.size < 2**31
        and all(a.dtype == first.dtype and a.flags.c_contiguous for a in arrays)
    )


def in_runs(count: int, itemsize: int, *addresses: int) -> bool:
    """Whether the vectors can be read 16 bytes at a time: whole runs, all starting at multiples of 16."""
    return count * itemsize % 16 == 0 and all(a % 16 == 0 for a in addresses)


def squares_launch(count: int, kind: str, runs: bool) -> Launch:
    """A partial sum per block, at most MOST_PARTS. count: of numbers."""
    if runs:
        return Launch(
            f"squares<{kind}>", (min(blocks(count // (4 if kind == "float" else 2), THREADS), MOST_PARTS),), (THREADS,)
        )
    return Launch(f"squares_plain<{kind}>", (min(blocks(count, THREADS), MOST_PARTS),), (THREADS,))


def step_launch(count: int, kind: str, runs: bool) -> Launch:
    """A thread per run of 16 bytes, or per number."""
    if runs:
        return Launch(f"adamw<{kind}>", (blocks(count // (4 if kind == "float" else 2), THREADS),), (THREADS,))
    return Launch(f"adamw_plain<{kind}>", (blocks(count, THREADS),), (THREADS,))


def gather_launch(sizes: Sequence[int], kind: str) -> Launch:
    """At most 64 blocks per tensor, as many as the largest has use for."""
    return Launch(f"gather<{kind}>", (min(blocks(max(sizes), THREADS), 64), len(sizes)), (THREADS,))


def squared_norm(g: Array) -> Any:
    """As kernels.optimizer.reference.squared_norm; the result stays on the device."""
    if not _served(g):
        return NotImplemented
    xp = module_of("cuda")
    kind = _TYPES[g.dtype.name]
    runs = in_runs(g.size, g.itemsize, g.data.ptr)
    launch = squares_launch(g.size, kind, runs)
    partial = xp.empty(launch.grid[0], np.float64)
    total = xp.empty((), np.float64)
    MODULE.run(launch, g, partial, g.nbytes // 16 if runs else g.size)
    MODULE.run(Launch("squares_finish", (1,), (THREADS,)), partial, total, launch.grid[0])
    return total


def clip_factor(squared: Array, largest: float, dtype: Any) -> Any:
    """As kernels.optimizer.reference.clip_factor."""
    dtype = np.dtype(dtype)
    if dtype.name not in _TYPES or squared.dtype != np.float64:
        return NotImplemented
    factor = module_of("cuda").empty((), dtype)
    MODULE.run(Launch(f"clip<{_TYPES[dtype.name]}>", (1,), (1,)), squared, factor, np.float64(largest))
    return factor


def adamw_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    decay: Array,
    average: Array | None,
    *,
    step: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    clip: Any,
    average_decay: float,
) -> Any:
    """As kernels.optimizer.reference.adamw_step; clip may live on the device."""
    vectors = [p, g, m, v, *([] if average is None else [average])]
    if not _served(*vectors, decay) or any(a.shape != p.shape for a in vectors) or decay.shape != (-(-p.size // LINE),):
        return NotImplemented
    xp = module_of("cuda")
    kind = _TYPES[p.dtype.name]
    constants = np.zeros((), np.dtype([(name, p.dtype) for name in _STEP]))
    rate = learning_rate / (1 - beta1**step)
    root = (1 - beta2**step) ** -0.5
    for name, value in zip(
        _STEP, (1 - beta1, 1 - beta2, rate, root, eps, learning_rate, 1 - average_decay), strict=True
    ):
        constants[name] = value
    runs = in_runs(p.size, p.itemsize, *(a.data.ptr for a in vectors))
    factor = xp.asarray(clip, p.dtype)
    pointer = np.uint64(0) if average is None else average
    MODULE.run(
        step_launch(p.size, kind, runs),
        p,
        g,
        m,
        v,
        decay,
        pointer,
        factor,
        p.nbytes // 16 if runs else p.size,
        constants[()],
    )
    return None


def gather(parts: Sequence[Array | None], out: Array, offsets: Sequence[int], sizes: Sequence[int]) -> Any:
    """As kernels.optimizer.reference.gather: one launch per 160 tensors."""
    if not _served(out) or any(part is not None and part.dtype != out.dtype for part in parts):
        return NotImplemented
    xp = module_of("cuda")
    kind = _TYPES[out.dtype.name]
    kept = [None if part is None else xp.ascontiguousarray(part) for part in parts]
    layout = np.dtype([("from", np.uint64, TABLE), ("at", np.int32, TABLE), ("size", np.int32, TABLE)])
    for first in range(0, len(kept), TABLE):
        some = slice(first, first + TABLE)
        table = np.zeros((), layout)
        count = len(kept[some])
        table["from"][:count] = [0 if part is None else part.data.ptr for part in kept[some]]
        table["at"][:count], table["size"][:count] = offsets[some], sizes[some]
        MODULE.run(gather_launch(sizes[some], kind), out, table[()])
    return None
