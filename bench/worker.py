"""One side of one case, in a process of its own:  python -m bench.worker FAMILY INDEX SIDE, requests on stdin, JSON on
stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from bench.emulation import real_gpus
from bench.shapes import device
from kernels.core.modules import load


def clock(run: Callable[[], Any]) -> float:
    """Wall clock of one run in ms."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


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


def on_gpu() -> bool:
    """Whether to time on a GPU; RuntimeError under emulation, whose times say nothing."""
    if device() == "cpu":
        return False
    if not real_gpus():
        raise RuntimeError("no GPU: emulated times say nothing and are not taken")
    return True


def main() -> None:
    """Build the side, then answer `warm`, `run N` and `memory` until stdin ends."""
    family = sys.argv[1]
    index = int(sys.argv[2])
    side = sys.argv[3]
    if side.startswith("torch"):
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    timed = events if on_gpu() else clock
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # no output of a library may be taken for an answer
    run = load(f"bench.{family}").cases()[index].build(side)
    for line in sys.stdin:
        words = line.split()
        answer: dict[str, Any]
        if words[0] == "warm":
            value = run()  # a loss, where there is one: both sides' first must agree
            for _ in range(3):
                once = timed(run)
            answer = {"ms": once, "value": value if isinstance(value, float) else None}
        elif words[0] == "run":
            answer = {"ms": [timed(run) for _ in range(int(words[1]))]}
        else:
            answer = {"mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
