"""Time and memory of one run on a GPU, for races within one process (bench/harness.py)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def events(run: Callable[[], Any]) -> float:
    """Time of one run on the GPU in ms, by CUDA events around it, with a cold L2 cache. Both sides use the default
    stream, so the same events do. The host launches the run while the cache is still being flushed, so a kernel's time
    holds no time of the host.
    """
    cupy = importlib.import_module("cupy")
    flush_cache(cupy)
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop)


@lru_cache(maxsize=1)
def _large(cupy: Any) -> Any:
    size = 2 * cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["l2CacheSize"]
    return cupy.empty(max(size, 256 << 20), "u1")


@lru_cache(maxsize=1)
def _fills(cupy: Any) -> int:
    """How often to fill the large array, so that the device is busy for half a millisecond."""
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    _large(cupy).fill(0)
    start.record()
    _large(cupy).fill(0)
    stop.record()
    stop.synchronize()
    return max(1, round(0.5 / max(cupy.cuda.get_elapsed_time(start, stop), 1e-3)))


def flush_cache(cupy: Any) -> None:
    """Write at least twice as many bytes as the L2 cache holds, so that nothing of the run before is in it."""
    for _ in range(_fills(cupy)):
        _large(cupy).fill(0)


def device_memory() -> float:
    """MB of the device's memory that are taken, by whichever library."""
    free, total = importlib.import_module("cupy").cuda.runtime.memGetInfo()
    return (total - free) / 1e6
