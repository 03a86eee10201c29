"""CUDA sources: compiled by NVRTC on first use, one module per .cu file, launched by name.

    MODULE = Module("gate/gate.cu", ("gate_forward<float>", "gate_forward<double>"))

    def gate_forward(x, z):
        MODULE.run(forward_launch(x.shape, "float"), x, z, y, n, c)      # a Launch: pure geometry, testable without a
        device

Integers are passed as 32-bit, floats as 32-bit numbers; NumPy scalars and structures keep their own type. `launch_log`
records every launch. A source may say `#include "core/cuda/device.cuh"`: such lines are replaced by the file of that
name under kernels/, so that CuPy's cache, which is keyed by the source text, never serves stale code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kernels.core import tracing
from kernels.core.device import DeviceError

FOLDER = Path(__file__).resolve().parents[2]
OPTIONS = ("-std=c++17",)
_BRACKETS = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"  # with two more pairs inside
_KERNEL = re.compile(rf"__global__\s+void\s+(?:__launch_bounds__\s*{_BRACKETS}\s*)?(\w+)\s*\(")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INCLUDE = re.compile(r'^\s*#include\s+"([\w./]+)"\s*$')


@dataclass(frozen=True)
class Launch:
    """The parameters of a launch: name expression, blocks, threads of a block, bytes of dynamic shared memory."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int = 0

    @property
    def threads(self) -> int:
        """Threads in all."""
        return int(np.prod(self.grid)) * int(np.prod(self.block))


registry: dict[str, Module] = {}
_logs: list[list[Launch]] = []


def source_of(path: str) -> str:
    """The text of kernels/`path` with its includes of our own files put in, line numbers kept for messages and
    counters.
    """
    return _expanded(path, set())


def _expanded(path: str, seen: set[str]) -> str:
    seen.add(path)
    lines = [f'#line 1 "{path}"']
    for number, line in enumerate((FOLDER / path).read_text().splitlines(), 1):
        found = _INCLUDE.match(line)
        if found is None:
            lines.append(line)
        elif found[1] not in seen:
            lines += [_expanded(found[1], seen), f'#line {number + 1} "{path}"']
    return "\n".join(lines)


def parameter_counts(source: str) -> dict[str, int]:
    """How many parameters every kernel of a source has, by its name without template arguments."""
    text = _COMMENT.sub("", source)
    return {found[1]: _parameters(text, found.end()) for found in _KERNEL.finditer(text)}


def _parameters(text: str, start: int) -> int:
    """The number of parameters of a list whose opening parenthesis ends at `start`: its commas outside of further
    brackets, plus 1.
    """
    depth, commas = 1, 0
    for end in range(start, len(text)):
        depth += (text[end] in "(<[{") - (text[end] in ")>]}")
        commas += depth == 1 and text[end] == ","
        if not depth:
            return commas + 1 if text[start:end].strip() else 0
    raise ValueError(f"a kernel's list of parameters does not end: {text[start : start + 60]!r}")


class Module:
    """One .cu file with the template instances that are used (name expressions;
    a plain `extern "C"` name will do too).
    """

    def __init__(self, path: str, instances: Sequence[str], options: Sequence[str] = ()) -> None:
        self.path = path
        self.instances = tuple(instances)
        self.options = (*OPTIONS, *options)
        self._functions: dict[str, Any] = {}
        registry[path] = self

    @cached_property
    def _module(self) -> Any:
        cupy = importlib.import_module("cupy")
        try:
            module = cupy.RawModule(
                code=source_of(self.path), backend="nvrtc", options=self.options, name_expressions=self.instances
            )
            module.compile()
        except (ImportError, RuntimeError, OSError) as error:
            if "nvrtc" in str(error).lower() and not hasattr(error, "source"):
                raise DeviceError(
                    f"kernels/{self.path}: NVRTC or CUDA's headers are missing; pip install 'cupy-cuda13x[ctk]' "
                    f"({error})"
                ) from error
            raise
        return module

    @cached_property
    def _counts(self) -> dict[str, int]:
        """The number of parameters of every instance."""
        known = parameter_counts(source_of(self.path))
        return {name: known[name.partition("<")[0]] for name in self.instances}

    def function(self, name: str) -> Any:
        """The compiled kernel of a name expression; KeyError for one that is not declared."""
        if name not in self._functions:
            self.parameters(name)
            self._functions[name] = self._module.get_function(name)
        return self._functions[name]

    def parameters(self, name: str) -> int:
        """How many parameters the kernel of a name expression has; KeyError for one that is not declared."""
        if name not in self._counts:
            raise KeyError(f"kernels/{self.path}: {name!r} is not among its instances {self.instances}")
        return self._counts[name]

    def run(self, launch: Launch, *arguments: Any) -> None:
        """Launch on the current stream; nothing happens for an empty grid. Raises TypeError unless there are as many
        arguments as parameters.
        """
        if len(arguments) != self.parameters(launch.kernel):
            raise TypeError(
                f"kernels/{self.path}: {launch.kernel} got {len(arguments)} arguments, expected "
                f"{self.parameters(launch.kernel)}"
            )
        if not launch.threads:
            return
        function = self.function(launch.kernel)
        if launch.shared > 48 * 1024 and function.max_dynamic_shared_size_bytes < launch.shared:
            function.max_dynamic_shared_size_bytes = launch.shared
        for log in _logs:
            log.append(launch)
        given = launch.grid, launch.block, tuple(map(_argument, arguments))
        tracer = tracing.current.tracer
        if tracer is None:
            function(*given, shared_mem=launch.shared)
        else:
            name = f"{self.path.removesuffix('.cu').replace('/', '.')}.{launch.kernel}"
            tracer.run(tracing.KERNEL, name, function, *given, shared_mem=launch.shared)


def _argument(value: Any) -> Any:
    if isinstance(value, np.generic):  # first: np.float64 is a Python float too
        return value
    if isinstance(value, (bool, int)):
        return np.int32(value)
    return np.float32(value) if isinstance(value, float) else value


@contextmanager
def launch_log() -> Iterator[list[Launch]]:
    """Record every launch of our kernels within the block."""
    log: list[Launch] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs[:] = [other for other in _logs if other is not log]  # by identity: equal logs may be nested


@lru_cache(maxsize=8)
def device_limits() -> tuple[int, int, int]:
    """(multiprocessors, largest shared memory of a block in bytes, compute capability as 80 for 8.0) of the current
    device.
    """
    cupy = importlib.import_module("cupy")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return (
        properties["multiProcessorCount"],
        properties["sharedMemPerBlockOptin"],
        10 * properties["major"] + properties["minor"],
    )


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` cover `count`."""
    return -(-count // size)
