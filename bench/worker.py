"""One side of one case, in a process of its own:  python -m bench.worker FAMILY INDEX SIDE, requests on stdin, JSON on stdout."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from typing import Any


def main() -> None:
    """Build the side, then answer `warm`, `run N` and `memory` until stdin ends."""
    family, index, side = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if side.startswith("torch"):
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    run = importlib.import_module(f"bench.{family}").cases()[index].build(side)
    for line in sys.stdin:
        words = line.split()
        answer: dict[str, Any]
        if words[0] == "warm":
            for _ in range(3):
                start = time.perf_counter()
                run()
                once = time.perf_counter() - start
            answer = {"ms": once * 1e3}
        elif words[0] == "run":
            times = []
            for _ in range(int(words[1])):
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3)
            answer = {"ms": times}
        else:
            answer = {"mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
