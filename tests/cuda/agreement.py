"""How a CUDA kernel is compared with its definition (DESIGN 7), and the random odd shapes it is compared on.

    check(kernels.gate_forward, [x, z], np.float32, served)

runs the reference in float64 on NumPy (exact), the reference in the kernel's dtype on NumPy (naive) and the dispatching kernel on CuPy
(fast), and demands max|fast - exact| <= 3 max|naive - exact| + tiny for every result, and that our code, not the reference, served the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cupy as cp
import numpy as np

from kernels.core.dispatch import Operator, kernel_log, use_kernels

FACTOR = 3.0


def tiny(exact: np.ndarray, dtype: Any) -> float:
    """One rounding unit of the largest result: what a naive version that happens to be exact may still be missed by."""
    largest = np.abs(exact[np.isfinite(exact)]).max(initial=0.0)
    return float(np.finfo(dtype).eps * largest + np.finfo(dtype).tiny)


def agree(fast: Any, naive: Any, exact: Any, dtype: Any, what: str = "") -> None:
    """DESIGN 7's rule for one result. Integers must be equal; infinities and NaN must be in the same places."""
    fast, naive, exact = (np.asarray(a.get() if isinstance(a, cp.ndarray) else a) for a in (fast, naive, exact))
    assert fast.shape == exact.shape, f"{what}: shape {fast.shape}, expected {exact.shape}"
    if not np.issubdtype(exact.dtype, np.floating):
        assert (fast == exact).all(), f"{what}: {(fast != exact).sum()} of {fast.size} integers differ"
        return
    fast, naive = fast.astype(np.float64), naive.astype(np.float64)
    usual = np.isfinite(exact)
    assert ((fast == exact) | np.isnan(exact) & np.isnan(fast))[~usual].all(), f"{what}: infinities or NaN differ"
    assert np.isfinite(fast[usual]).all(), f"{what}: {(~np.isfinite(fast[usual])).sum()} of {fast.size} values are not finite"
    error, bound = np.abs(fast - exact)[usual].max(initial=0.0), np.abs(naive - exact)[usual].max(initial=0.0)
    allowed = FACTOR * bound + tiny(exact, dtype)
    assert error <= allowed, f"{what}: error {error:.3g}, but the naive version's is {bound:.3g}: at most {allowed:.3g} is allowed"


def check(
    kernel: Operator, arguments: Sequence[Any], dtype: Any = np.float32, log: list | None = None, factor: float = FACTOR, **settings: Any
) -> Any:
    """Compare `kernel` on CuPy with its reference on NumPy. arguments: float64 arrays (cast to dtype), integer arrays and plain values.

    The exact result is computed from the inputs rounded to dtype, so that only the computation's own error counts. Inputs must not be written to.
    log: the `served` fixture; when given, at least one of our kernels must have been launched unless all results are empty.
    """
    rounded = [a.astype(dtype) if _floating(a) else a for a in arguments]
    on_device = [cp.asarray(a) if isinstance(a, np.ndarray) else a for a in rounded]
    before = len(log) if log is not None else 0
    with kernel_log() as calls:
        fast = kernel(*on_device, **settings)
    assert [c.by for c in calls if c.operator == kernel.name] == ["fast"], f"{kernel.name} was not served by our CUDA code: {calls}"
    with use_kernels("reference"):
        naive = kernel(*rounded, **settings)
        exact = kernel(*(a.astype(np.float64) if _floating(a) else a for a in rounded), **settings)
    results = list(zip(*map(_several, (fast, naive, exact)), strict=True))
    for k, (ours, plain, truth) in enumerate(results):
        if truth is None:
            assert ours is None, f"{kernel.name}: result {k} is None in the reference"
            continue
        agree(ours, plain, truth, dtype, f"{kernel.name}, result {k}, {[np.shape(a) for a in rounded]}")
    for mine, theirs in zip(on_device, rounded, strict=True):
        if isinstance(theirs, np.ndarray):
            assert np.array_equal(mine.get(), theirs, equal_nan=_floating(theirs)), f"{kernel.name}: an input of shape {theirs.shape} was written to"
    if log is not None and any(np.size(truth) for _, _, truth in results if truth is not None):
        assert len(log) > before, f"{kernel.name}: none of our kernels was launched"
    return fast


def _floating(a: Any) -> bool:
    return isinstance(a, np.ndarray) and np.issubdtype(a.dtype, np.floating)


def _several(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def maps(count: int, seed: int = 0, channels: int = 40, size: int = 19, batch: int = 3) -> Iterator[tuple[int, int, int, int]]:
    """Feature map shapes (N, H, W, C): one pixel with one channel, an empty batch, then `count` random odd ones."""
    yield 1, 1, 1, 1
    yield 0, 3, 5, 4
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield tuple(int(rng.integers(1, top + 1)) for top in (batch, size, size, channels))  # type: ignore[misc]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """float64 standard normal."""
    return np.random.default_rng(seed).standard_normal(shape)
