"""Compile a run's CPU kernels before it starts, by as many processes as there are cores; they stay on disk.

missing(configs)            the kernels that runs with these settings need and that are not on disk
precompile(configs, report) compile them; report(done, of, name) after each
"""

from __future__ import annotations

import contextlib
import gc
import json
import selectors
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.config import Config, from_dict
from kernels.core.cpu.cores import usable_cores
from kernels.core.cpu.jit import registry, store
from kernels.core.modules import PREFIX

if TYPE_CHECKING:
    from engine.build import Form

Report = Callable[[int, int, str], None]


def needed(config: Config, form: Form | None = None) -> list[Any]:
    """The CPU kernels of a training step, an evaluation and an augmentation with these settings: found by a dry run of
    the step.

    form: of the tiles and the network; None: the Mars tiles'.
    """
    from autograd import Tensor, no_grad, random
    from engine.build import Form, build_network, make_augmentation, make_loss
    from kernels import optimizer
    from kernels.core.cpu.jit import dry_run

    form = Form() if form is None else form
    classes = form.classes
    colour = () if form.channels == 1 else (form.channels,)
    size = form.size if config.bottleneck == "mhsa" else (64, 128)
    net = build_network(config, form)
    images = np.zeros((config.batch, *size, *colour), np.float32)
    masks = np.zeros((config.batch, *size), classes.dtype)
    vector = np.zeros(sum(-(-p.size // optimizer.LINE) * optimizer.LINE for p in net.parameters()), np.float32)
    # the dry run draws for dropout, and the run must draw the same
    with dry_run() as kernels, np.errstate(all="ignore"), random.replay(random.state()):
        make_augmentation(config, classes)(images, masks, np.random.default_rng(0))
        images = images.reshape(*images.shape[:3], form.channels)
        make_loss(config, np.ones(len(classes)), classes)(net(Tensor(images)), masks).backward()
        parts = [p.grad.data for p in net.parameters()]
        size = max(p.size for p in net.parameters())
        optimizer.gather(parts, np.zeros(size, np.float32), [0] * len(parts), [p.size for p in parts])
        optimizer.squared_norm(vector)
        adam = {
            "step": 1,
            "learning_rate": 0.0,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "clip": 1.0,
            "average_decay": 0.9,
        }
        g, m, v, average = (vector.copy() for _ in range(4))
        optimizer.adamw_step(vector, g, m, v, vector[:: optimizer.LINE].copy(), average, **adam)
        with no_grad():
            net.eval()(Tensor(images))
    return list(kernels)


def precompile_inference(config: Config, form: Form, batch: int, report: Report) -> int:
    """Compile, in this process, the CPU kernels that a trained network's inference needs and that are not on disk, and
    return how many they were. batch: the tiles of a forward pass.
    """
    from autograd import Tensor, inference
    from engine.build import build_network
    from kernels.core.cpu.jit import dry_run

    net = build_network(config, form).eval()  # not the trained one: what a dry run packs and folds is no number
    with dry_run() as kernels, np.errstate(all="ignore"), inference():
        net(Tensor(np.zeros((batch, *form.size, form.channels), np.float32)))
    return _in_memory([kernel.name for kernel in kernels if not kernel.is_cached()], report)


def missing(configs: Sequence[Config], form: Form | None = None) -> list[str]:
    """The names of the kernels among `needed` that are not on disk, each once."""
    kernels = {kernel.name: kernel for config in configs for kernel in needed(config, form)}
    return [name for name, kernel in kernels.items() if not kernel.is_cached()]


def precompile(configs: Sequence[Config], report: Report, form: Form | None = None) -> int:
    """Compile what is missing for runs with these settings; returns how many kernels were compiled.

    Where nothing can be kept on disk, this process compiles them for itself. A process that fails leaves its kernels to
    the run, which compiles
    them when it first needs them: a RuntimeWarning says so.
    """
    names = missing(configs) if form is None else missing(configs, form)
    if not names:
        return 0
    if store().why_not_writable():
        return _in_memory(names, report)
    count = min(len(names), usable_cores())
    settings = json.dumps([[asdict(config), None if form is None else asdict(form)] for config in configs])
    work = _Work(names)
    done = 0
    workers = [_Worker(settings) for _ in range(count)]
    try:
        with selectors.DefaultSelector() as selector:
            for worker in workers:
                worker.give(work)
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            while selector.get_map():
                for key, _ in selector.select():
                    worker = key.data
                    name = worker.process.stdout.readline().strip()
                    if name:
                        done += 1
                        report(done, len(names), name)
                    if not name or not worker.give(work):
                        selector.unregister(key.fileobj)
    finally:
        for worker in workers:
            worker.end()
    if done < len(names):
        warnings.warn(
            f"compiling ahead failed for {len(names) - done} of {len(names)} kernels: they are compiled when needed",
            RuntimeWarning,
            2,
        )
    return done


def _in_memory(names: Sequence[str], report: Report) -> int:
    """Compile in this process, where nothing can be kept on disk, or few kernels are missing."""
    for done, name in enumerate(names, 1):
        registry[name].compile()
        report(done, len(names), name)
    return len(names)


class _Work:
    """Names that no process has taken, by family: the kernels of one factory share device functions, which a process
    then compiles once.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.families: dict[str, list[str]] = {}
        self.begun: set[str] = set()
        for name in names:
            self.families.setdefault(self.family(name), []).append(name)

    @staticmethod
    def family(name: str) -> str:
        return name.split("[")[0]

    def take(self, last: str) -> str | None:
        """A name of the family of the last one, else of the largest family that no process has begun, else of any; None
        when all are taken.
        """
        family = self.family(last)
        if not self.families.get(family):
            family = max(
                self.families, key=lambda f: (bool(self.families[f]), f not in self.begun, len(self.families[f]))
            )
        self.begun.add(family)
        return self.families[family].pop(0) if self.families[family] else None


class _Worker:
    """A process that compiles one kernel after the other."""

    def __init__(self, settings: str) -> None:
        # the run itself says what is wrong with the cache
        command = [sys.executable, "-W", "ignore:kernel cache", "-m", f"{PREFIX}engine.precompile"]
        self.process: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.last = ""
        self._write(settings)

    def _write(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: its output ends, too
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def give(self, work: _Work) -> bool:
        """Hand over the next kernel; False when there is none."""
        name = work.take(self.last)
        if name is not None:
            self.last = name
            self._write(name)
        return name is not None

    def end(self) -> None:
        """Stop it, whatever it does."""
        self.process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def main() -> None:
    """A compiling process: settings and then names on stdin, a line each;
    the same names on stdout when they are done.
    """
    from kernels.core.cpu.thread_pool import launcher

    gc.disable()  # a tenth of the time goes into looking for cycles, and the process ends when all is compiled
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        from engine.training.checkpoint import form_from_dict

        lines = json.loads(sys.stdin.readline())
        known = {}
        settings = [(from_dict(config), None if form is None else form_from_dict(form)) for config, form in lines]
        for line in sys.stdin:
            name = line.strip()
            while name not in known:
                known |= {kernel.name: kernel for kernel in needed(*settings.pop(0))}
            known[name].compile()
            launcher(known[name])
            print(name, flush=True)


if __name__ == "__main__":
    main()
