"""One side of one case, in a process of its own:  python -m bench.worker FAMILY INDEX SIDE, requests on stdin, JSON on
stdout.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from kernels.core.modules import load


def clock(run: Callable[[], Any]) -> float:
    """Wall clock of one run in ms."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Build the side, then answer `warm`, `run N` and `memory` until stdin ends."""
    family = sys.argv[1]
    index = int(sys.argv[2])
    side = sys.argv[3]
    if side.startswith("torch"):
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # no output of a library may be taken for an answer
    run = load(f"bench.{family}").cases()[index].build(side)
    for line in sys.stdin:
        words = line.split()
        answer: dict[str, Any]
        if words[0] == "warm":
            value = run()  # a loss, where there is one: both sides' first must agree
            for _ in range(3):
                once = clock(run)
            answer = {"ms": once, "value": value if isinstance(value, float) else None}
        elif words[0] == "run":
            answer = {"ms": [clock(run) for _ in range(int(words[1]))]}
        else:
            answer = {"mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
