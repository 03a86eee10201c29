"""Compiled CPU kernels: numba functions over a range of chunks, compiled on first use and kept on disk.

    @cpu_kernel()
    def scale(start, stop, scratch, x: F32, y: F32, n: int): ...        # computes the chunks start .. stop

    parallel(scale, chunks, x, y, n)                                    # kernels/core/cpu/thread_pool.py

The annotations are those of arguments.py. Every thread calls the kernel natively, without the interpreter in between.

The cache lives in the user's cache folder (AREOGRAD_CACHE, else XDG_CACHE_HOME or ~/.cache). A kernel is kept under a
digest of what it is made of (sources.py), so the cache survives a reinstallation and never serves stale code; store.py
guards its files. `on_compile` lets a program say what is being compiled; nothing here prints.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.core.cpu.arguments import POINTERS, Signature, count_of_arrays
from kernels.core.cpu.deferral import deferring
from kernels.core.cpu.numba_internals import (
    DeviceFunction,
    MachineCodeCache,
    c_function,
    drop_bitcode,
    is_kept,
    linked_first,
    processor,
    set_cache,
)
from kernels.core.cpu.sources import made_of, modules
from kernels.core.cpu.store import Store, note
from kernels.core.cpu.target import target
from kernels.core.modules import local

registry: dict[str, Kernel] = {}
_listeners: list[Callable[[str, int, int], None]] = []
_listed: list[Kernel] | None = None
_lock = threading.RLock()

_WORDS = types.CPointer(types.int64)
_RUN = types.void(types.int64, types.int64, types.CPointer(types.float32), _WORDS)


@lru_cache(maxsize=1)
def store() -> Store:
    """Where compiled kernels are kept."""
    asked = os.environ.get("AREOGRAD_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # A relative XDG_CACHE_HOME is to be ignored, says its specification.
        base = (
            Path(asked).absolute()
            if asked
            else (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "areograd"
        )
    except (RuntimeError, OSError, KeyError):  # nobody knows this user's home, or the working folder is gone
        return Store(None, "this user has no home folder (AREOGRAD_CACHE names another place)")
    return Store(base / "kernels")


class _Kept:
    """One numba function's machine code in `store`, a file for each combination of argument types. module: where it is
    written.
    """

    def __init__(self, name: str, module: str) -> None:
        self.name, self.module = name, module

    def _key(self, signature: Any, codegen: Any) -> str:
        """Everything on which machine code depends. Closures of vector programs differ from process to process; sources
        and name cover them.
        """
        versions = numba.__version__, llvmlite.__version__, np.__version__, sys.implementation.cache_tag
        return repr((self.name, signature, processor(codegen), str(target()), versions, made_of(self.module)))

    def load(self, signature: Any, codegen: Any) -> bytes | None:
        return store().read(self.name, self._key(signature, codegen))

    def save(self, signature: Any, codegen: Any, payload: bytes) -> None:
        store().write(self.name, self._key(signature, codegen), payload)

    def note(self, reason: str) -> None:
        note(f"{self.name} cannot be loaded, compiled anew ({reason})")


def cached(dispatcher: Any, function: Any, name: str) -> None:
    """Give a numba dispatcher or C function our cache instead of numba's; interrupts wait while it compiles.

    A function from outside `kernels` is compiled in memory: the cache cannot know its sources.
    """
    _rename(function, name)
    module = local(function.__module__)
    if module in modules():
        kept = _Kept(name, module)
        set_cache(dispatcher, MachineCodeCache(kept.load, kept.save, kept.note))
    dispatcher.compile = deferring(dispatcher.compile)


def _rename(function: Any, name: str) -> None:
    """Make the name unique: machine code from the cache is linked by name, and two functions of one factory would share
    one.
    """
    function.__qualname__ = re.sub(r"\W+", "_", name)


class Kernel:
    """A function over chunks, compiled on first use for the argument types that its annotations state."""

    def __init__(self, function: Callable[..., None], variant: str, fastmath: set[str]) -> None:
        self.name = (
            f"{local(function.__module__).removeprefix('kernels.')}.{function.__name__}{variant and f'[{variant}]'}"
        )
        self.signature = Signature(function, f"cpu_kernel {self.name}")
        _rename(function, f"{self.name}_body")
        body = DeviceFunction(function, fastmath)
        unpack = _unpacker(self.signature)

        def run(start, stop, scratch, words):  # type: ignore[no-untyped-def]
            body(start, stop, scratch, *unpack(words))

        run.__module__ = function.__module__
        self.callback: Any = c_function(run, _RUN)
        cached(self.callback, run, self.name)
        self.address = 0
        self.launcher: Any = None  # made by thread_pool.py on first use

    def compile(self) -> int:
        """Load from the cache or compile, unless that was done. Returns the machine code's address."""
        with _lock:
            if not self.address:
                if not self.is_cached():
                    done = sum(bool(k.address) for k in registry.values()) + 1
                    for listener in _listeners:
                        listener(self.name, done, len(registry))
                with linked_first():
                    self.callback.compile()
                self.address = self.callback.address
                drop_bitcode(self.callback)
        return self.address

    def is_cached(self) -> bool:
        """Whether the compiled code is on disk."""
        return is_kept(self.callback)


def _unpacker(signature: Signature) -> Callable[..., Any]:
    """unpack(words): the arguments of a kernel as a tuple, from one 64-bit word for each slot."""
    kinds: list[tuple[Any, Any]] = list(zip(signature.kinds.values(), signature.kernel_types(), strict=True))
    result = types.Tuple([kind for _, kind in kinds])

    def unpack(_context: Any, words: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            place = iter(range(len(signature.slots)))

            def word(base: ir.Value, index: int) -> ir.Value:
                return builder.load(builder.gep(base, [ir.IntType(64)(index)]))

            def pointer(kind: types.Type) -> ir.Value:
                return builder.inttoptr(word(values[0], next(place)), context.get_value_type(kind))

            out = []
            for annotation, kind in kinds:
                if arrays := count_of_arrays(annotation):
                    one = [pointer(kind.dtype) for _ in range(arrays)]
                    out.append(context.make_tuple(builder, kind, one))
                elif annotation in POINTERS:
                    out.append(pointer(kind))
                elif annotation is int:
                    out.append(word(values[0], next(place)))
                elif annotation is float:
                    double = builder.bitcast(word(values[0], next(place)), ir.DoubleType())
                    out.append(builder.fptrunc(double, ir.FloatType()))
                else:
                    base = pointer(types.CPointer(types.int64))
                    out.append(context.make_tuple(builder, kind, [word(base, k) for k in range(len(kind))]))
            return context.make_tuple(builder, result, out)

        return result(_WORDS), emit

    return intrinsic(unpack)


def cpu_kernel(variant: str = "", fastmath: Sequence[str] = ("contract",)) -> Callable[[Callable[..., None]], Kernel]:
    """Make a kernel of a function (start, stop, scratch, ...) that returns nothing; its further parameters are
    annotated (arguments.py).

    variant: distinguishes kernels that one factory makes of the same source (it is part of the cache's key).
    """

    def decorate(function: Callable[..., None]) -> Kernel:
        kernel = Kernel(function, variant, set(fastmath))
        registry[kernel.name] = kernel
        return kernel

    return decorate


def inline(variant: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function that kernels call; compiled into them. variant: distinguishes functions that one factory makes of
    the same source.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        _rename(function, f"{function.__qualname__}_{variant}")
        return DeviceFunction(function, {"contract"})

    return decorate


@contextlib.contextmanager
def dry_run() -> Iterator[list[Kernel]]:
    """A dry run: within the block launches only list their kernels, once each, and do not run. The numbers of a
    computation mean nothing then.
    """
    global _listed
    _listed = []
    try:
        yield _listed
    finally:
        _listed = None


def discovered(kernel: Kernel) -> bool:
    """Put a kernel on the list, if there is one; then it must not be run."""
    if _listed is None:
        return False
    if kernel not in _listed:
        _listed.append(kernel)
    return True


def on_compile(listener: Callable[[str, int, int], None]) -> None:
    """Call listener(name, how many, of how many known) before a kernel is compiled because it is not on disk."""
    _listeners.append(listener)
