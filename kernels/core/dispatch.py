"""(operator, device) -> implementation, with the reference as fallback.

A family declares its public kernels once:

    conv2d_forward = operator(reference.conv2d_forward, "x (N, H, W, C); ...", cpu="kernels.conv.cpu",
    cuda="kernels.conv.cuda")

A call compares its arrays with the shapes that the operator declares (kernels/core/shapes.py), looks at the device of
its array arguments, imports that device's module on first use, and takes the function of the same name from it. A fast
implementation that does not serve some arguments (a dtype, a size) returns `NotImplemented`; the call then goes to the
operator's unfused form, if it has one, else to the reference, which serves everything.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kernels.core import tracing
from kernels.core.device import CPU, device_of
from kernels.core.modules import load
from kernels.core.shapes import Shapes
from kernels.core.tracing import OPERATOR

BACKENDS = ("fast", "reference")
_UNCHECKED = "unchecked"  # see `definitions`


class _State(threading.local):
    """Per thread: the chosen backend, the logs of which implementation served a call, and a capture in progress."""

    def __init__(self) -> None:
        self.backend = os.environ.get("AREOGRAD_KERNELS", "fast").strip().lower() or "fast"
        self.logs: list[list[Served]] = []
        self.recorder: Callable[..., Any] | None = None
        # random inputs of the captured launches: the numbers that a launch reads, and their offset in the random stream
        self.random_inputs: list[tuple[Any, int]] | None = None
        self.host_computed = False  # whether something other than a kernel launch computed on values


_state = _State()


def is_plain() -> bool:
    """Whether this thread's calls go to the fast kernels, and neither a log nor a tracer is told of them."""
    return _state.backend == "fast" and not _state.logs and tracing.current.tracer is None


def mark_host_computation() -> None:
    """Mark that Python around a CPU kernel computes on values itself, so a replay calls the operator again."""
    _state.host_computed = True


def mark_random_input(words: Any, offset: int) -> None:
    """Mark an array that holds a launch's place in the random stream: a replay writes another place there."""
    if _state.random_inputs is not None:
        _state.random_inputs.append((words, offset))


@contextmanager
def capture_with(recorder: Callable[..., Any], random_inputs: list[tuple[Any, int]]) -> Iterator[None]:
    """Within the block this thread's calls of operators go through recorder(call, args, kwargs), which has to call
    call(*args, **kwargs).

    Operators that an operator calls do not. `host_computed` tells of the last call. random_inputs: receives the
    arguments of `mark_random_input`.
    """
    before = _state.recorder, _state.random_inputs
    _state.recorder, _state.random_inputs = recorder, random_inputs
    try:
        yield
    finally:
        _state.recorder, _state.random_inputs = before


def host_computed() -> bool:
    """Whether anything but kernel launches computed on values since the last call of this function."""
    was = _state.host_computed
    _state.host_computed = False
    return was


registry: dict[str, Operator] = {}


@dataclass(frozen=True)
class Served:
    """One kernel call: which operator, on which device, and whether 'fast' or 'reference' code served it."""

    operator: str
    device: str
    by: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass
class Operator:
    """A kernel name that dispatches on the device of its arguments. Call it like the reference function."""

    reference: Callable[..., Any]
    line: str
    unfused: Callable[..., Any] | None = None
    modules: dict[str, str] = field(default_factory=dict)
    _loaded: dict[str, Callable[..., Any] | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.reference.__name__

    @functools.cached_property
    def shapes(self) -> Shapes:
        """The shapes of the operator's arrays."""
        return Shapes(self.reference, self.line)

    def implementation(self, device: str) -> Callable[..., Any] | None:
        """The fast implementation for `device`, imported on first use; None when there is none."""
        if device not in self._loaded:
            module = self.modules.get(device)
            self._loaded[device] = getattr(load(module), self.name, None) if module else None
        return self._loaded[device]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _state.backend == _UNCHECKED:
            return self.reference(*args, **kwargs)
        call = self.call if not self.line or self.shapes.fit(*args, **kwargs) else self.call_swapped
        recorder = _state.recorder
        if recorder is None:
            tracer = tracing.current.tracer
            return call(*args, **kwargs) if tracer is None else tracer.run(OPERATOR, self, call, *args, **kwargs)
        _state.recorder = None
        try:
            return recorder(call, args, kwargs)
        finally:
            _state.recorder = recorder

    def call_swapped(self, *args: Any, **kwargs: Any) -> Any:
        """The same where an array has the other byte order: the call gets copies in the processor's order."""
        mark_host_computation()
        args, kwargs = self.shapes.native(args, kwargs)
        return self.call(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The implementation's result for these arguments."""
        device = device_of(*_arrays(args)) if "cupy" in sys.modules else CPU
        result = NotImplemented
        by = "fast"
        if _state.backend == "fast":
            fast = self.implementation(device)
            if fast is not None:
                result = fast(*args, **kwargs)
            if result is NotImplemented and self.unfused is not None:
                result = self.unfused(*args, **kwargs)
        if result is NotImplemented:
            if _state.backend not in BACKENDS:  # an error of the first call, not of an import
                raise ValueError(f"AREOGRAD_KERNELS: got {_state.backend!r}, expected one of {', '.join(BACKENDS)}")
            result = self.reference(*args, **kwargs)
            by = "reference"
            _state.host_computed = True
        if _state.logs:
            entry = Served(self.name, device, by, tuple(a.shape for a in _arrays(args)))
            for log in _state.logs:
                log.append(entry)
        return result


def _arrays(arguments: tuple[Any, ...]) -> list[Any]:
    """The arrays among a call's arguments, and within its lists and tuples."""
    return [
        a
        for given in arguments
        for a in (given if isinstance(given, (list, tuple)) else (given,))
        if hasattr(a, "__array__")
    ]


def operator(
    reference: Callable[..., Any], shapes: str, unfused: Callable[..., Any] | None = None, /, **modules: str
) -> Operator:
    """Declare a public kernel: its reference, the shapes of its arrays, and per device the module that may hold a
    faster one of the same name.

    unfused: the same by other public operators, for arguments that the device's module does not serve.
    """
    made = Operator(reference, shapes, unfused, modules)
    functools.update_wrapper(made, reference)
    registry[made.name] = made
    return made


@contextmanager
def definitions() -> Iterator[None]:
    """Within the block operators are their references, for whatever numbers these compute with (complex steps):
    arguments are not compared.
    """
    before = _state.backend
    _state.backend = _UNCHECKED
    try:
        yield
    finally:
        _state.backend = before


@contextmanager
def use_kernels(backend: str) -> Iterator[None]:
    """Within the block, kernels are served by 'fast' implementations (the default) or by the 'reference' only."""
    if backend not in BACKENDS:
        raise ValueError(f"use_kernels: got {backend!r}, expected one of {', '.join(BACKENDS)}")
    before = _state.backend
    _state.backend = backend
    try:
        yield
    finally:
        _state.backend = before


@contextmanager
def kernel_log() -> Iterator[list[Served]]:
    """Record every kernel call within the block: which operator, which shapes, and who served it."""
    log: list[Served] = []
    _state.logs.append(log)
    try:
        yield log
    finally:
        _state.logs[:] = [other for other in _state.logs if other is not log]  # by identity: equal logs may be nested
