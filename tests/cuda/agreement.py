"""How a CUDA kernel is compared with the definition: the naive rule of docs/accuracy.md, on the device and in the type
under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels.core.device import to_numpy

DTYPES = (np.float32, np.float64)
SEEDS = range(4)
ROUNDINGS = {"float32": 1, "float64": 256}


def flat(result: Any) -> list[Any]:
    """The arrays of a result, None left out."""
    return (
        [a for part in result for a in flat(part)]
        if isinstance(result, (tuple, list))
        else []
        if result is None
        else [result]
    )


def agree(fast: Any, naive: Any, exact: Any, what: str = "") -> None:
    """max|fast - exact| <= 3 max|naive - exact| + tiny.  naive: the reference in the type under test, exact: in
    float64.

    tiny is one rounding of the largest value: what even an exact sum costs when it is stored. In float64 naive and
    exact are the same, so nothing is known of their own error; tiny is then what 256 terms, more than any sum here has,
    may lose by being added in another order.
    """
    fast, naive, exact = flat(fast), flat(naive), flat(exact)
    assert len(fast) == len(naive) == len(exact) > 0
    for k, (a, b, e) in enumerate(zip(fast, naive, exact, strict=True)):
        a, b, e = (to_numpy(array) for array in (a, b, e))
        assert a.shape == e.shape, f"{what}: result {k} is {a.shape}, expected {e.shape}"
        if not e.size:
            continue
        roundoff = ROUNDINGS[b.dtype.name] * np.finfo(b.dtype).eps / 2 if b.dtype.kind == "f" else 0
        bar = 3 * np.abs(b.astype(float) - e).max() + roundoff * np.abs(e).max()
        error = np.abs(a.astype(float) - e).max()
        assert error <= bar, f"{what}: result {k} is off by {error:.2e}, allowed {bar:.2e}"


def rounded(arguments: Sequence[Any], dtype: Any) -> list[Any]:
    """float64 arrays rounded to the type under test."""
    return [a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in arguments]


def check(
    cp: Any, fast: Callable[..., Any], reference: Callable[..., Any], arguments: Any, dtype: Any, what: str = ""
) -> None:
    """Compare fast(CuPy arrays) with reference(NumPy arrays), both on the inputs rounded to `dtype`.

    arguments: a list, or a function that makes one from a seed; then several seeds are judged together, as the error
    that naive code makes in a few numbers may be small by luck.
    """
    found, naive, exact = [], [], []
    for seed in SEEDS if callable(arguments) else SEEDS[:1]:
        host = rounded(arguments(seed) if callable(arguments) else arguments, dtype)
        result = fast(*(cp.asarray(a) if isinstance(a, np.ndarray) else a for a in host))
        assert result is not NotImplemented
        found.append([to_numpy(a) for a in flat(result)])
        naive.append(flat(reference(*host)))
        exact.append(
            flat(
                reference(
                    *(a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == dtype else a for a in host)
                )
            )
        )
    agree(*([np.stack(parts) for parts in zip(*results, strict=True)] for results in (found, naive, exact)), what)


def odd_shapes(count: int, seed: int = 0) -> list[tuple[int, int, int, int]]:
    """Random (N, H, W, C): batch 1 to 3, sizes 1 to 19, channels 1 to 40."""
    rng = np.random.default_rng(seed)
    return [
        (int(rng.integers(1, 4)), *map(int, rng.integers(1, 20, 2)), int(rng.integers(1, 41))) for _ in range(count)
    ]


def pack_accesses(kernel: Any) -> tuple[float, float]:
    """(sectors per request, needed over moved sectors) of a kernel's load_pack and store_pack: what it does per
    element, without its constants.
    """
    lines = [line for line in kernel.lines if line["space"] == "global" and line["file"].endswith("device.cuh")]
    requests, sectors, ideal = (sum(line[key] for line in lines) for key in ("requests", "sectors", "ideal_sectors"))
    return sectors / requests, ideal / sectors
