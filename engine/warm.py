"""Compile a run's CPU kernels before it starts, by as many processes as there are cores; they stay on disk.

missing(config)             the kernels that a run with these settings needs and that are not on disk
warm(config, report)        compile them; report(done, of, name) after each
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.config import Config, from_dict

Report = Callable[[int, int, str], None]


def needed(config: Config) -> list[Any]:
    """The CPU kernels of a training step, an evaluation and an augmentation with these settings: the step is walked through, not computed."""
    from autograd import Tensor, no_grad, random
    from engine.checkpoint import build_network
    from engine.training import make_augmentation, make_loss
    from kernels import optimizer
    from kernels.core.compile import listing

    net = build_network(config)
    images, masks = np.zeros((config.batch, 64, 128), np.float32), np.zeros((config.batch, 64, 128), np.uint8)
    vector = np.zeros(sum(-(-p.size // 16) * 16 for p in net.parameters()), np.float32)
    with listing() as kernels, np.errstate(all="ignore"), random.replay(random.state()):  # dropout draws, and the run is to draw the same
        make_augmentation(config)(images, masks, np.random.default_rng(0))
        make_loss(config, np.ones(5))(net(Tensor(images[..., None])), masks).backward()
        parts, size = [p.grad.data for p in net.parameters()], max(p.size for p in net.parameters())
        optimizer.gather(parts, np.zeros(size, np.float32), [0] * len(parts), [p.size for p in parts])
        optimizer.squared_norm(vector)
        adam = {"step": 1, "learning_rate": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip": 1.0, "average_decay": 0.9}
        optimizer.adamw_step(vector, *(vector.copy() for _ in range(5)), **adam)
        with no_grad():
            net.eval()(Tensor(images[..., None]))
    return list(kernels)


def missing(config: Config) -> list[Any]:
    """Those of `needed` that are not on disk."""
    return [kernel for kernel in needed(config) if not kernel.is_cached()]


def warm(config: Config, report: Report) -> int:
    """Compile what is missing; returns how many kernels that was."""
    names = sorted(kernel.name for kernel in missing(config))  # neighbours are alike: every process gets as many of each sort
    if not names:
        return 0
    workers = min(len(names), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    processes = []
    for k in range(workers):
        process = subprocess.Popen([sys.executable, "-m", "engine.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process.stdin.write(json.dumps({"config": asdict(config), "names": names[k::workers]}))
        process.stdin.close()
        processes.append(process)
    done = 0
    try:
        for name in _lines(processes):
            done += 1
            report(done, len(names), name)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    return done


def _lines(processes: list[subprocess.Popen[str]]) -> Iterator[str]:
    """What the processes print, line by line, as it comes."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.stdout, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()
                if line:
                    yield line.strip()
                else:
                    selector.unregister(key.fileobj)


def main() -> None:
    """A compiling process: settings and names on stdin, a line on stdout for each kernel that is done."""
    from kernels.core.threads import launcher

    gc.disable()  # a tenth of the time goes into looking for cycles, and the process ends when all is compiled
    request = json.load(sys.stdin)
    wanted = set(request["names"])
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for kernel in needed(from_dict(request["config"])):
            if kernel.name in wanted:
                kernel.compile()
                launcher(kernel)
                print(kernel.name, flush=True)


if __name__ == "__main__":
    main()
