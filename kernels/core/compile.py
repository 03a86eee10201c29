"""Compiled CPU kernels: numba functions that release the GIL, compile on first use and stay compiled on disk.

    @cpu_kernel("f4[::1], i8, i8")            # the signature after (start, stop)
    def scale_range(start, stop, x, ...): ...

The cache lives in the user's cache folder (AREOGRAD_CACHE, else XDG_CACHE_HOME or ~/.cache) under a hash of all kernel sources, so it
survives a reinstallation and never serves stale code. `on_compile` lets a program say what is being compiled; nothing here prints.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

from kernels.core import simd

registry: dict[str, Kernel] = {}
_listeners: list[Callable[[str, int, int], None]] = []
_lock = threading.RLock()


@lru_cache(maxsize=1)
def source_hash() -> str:
    """A hash of all that decides the machine code: kernel sources, numba's version, the vector unit."""
    digest = hashlib.blake2b(digest_size=8)
    root = Path(__file__).resolve().parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    digest.update(f"{numba.__version__} {simd.target()}".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Where compiled kernels of these sources are kept."""
    base = os.environ.get("AREOGRAD_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "areograd"
    return Path(base) / f"kernels-{source_hash()}"


class _Locator(caching._CacheLocator):  # numba has no public way to choose the folder and the stamp per function
    """Puts a function's files into `cache_folder`, stamped with the hash of all sources instead of one file's date."""

    def __init__(self, function: Any, _source: str) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return source_hash()

    def get_disambiguator(self) -> str:
        return hashlib.blake2b(self._name.encode(), digest_size=4).hexdigest()

    @classmethod
    def from_function(cls, function: Any, source: str) -> _Locator | None:
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            probe = cache_folder() / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError:
            return None  # no place to write: compile in memory only
        return cls(function, source)


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _Cache(caching.FunctionCache):
    _impl_class = _Implementation

    def __init__(self, function: Any, variant: str) -> None:
        super().__init__(function)
        self.variant = variant

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # numba would hash closure contents, which for vector programs differ from process to process; source hash and variant cover them.
        return sig, self.variant, codegen.magic_tuple()


class Kernel:
    """A function compiled on first use for one signature. Call it like the function."""

    def __init__(self, function: Callable[..., None], signature: str, variant: str, fastmath: Any) -> None:
        self.function, self.signature = function, signature
        self.name = f"{function.__module__.removeprefix('kernels.')}.{function.__name__}{variant and f'[{variant}]'}"
        self.dispatcher = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
        try:
            self.dispatcher._cache = _Cache(function, variant)
        except RuntimeError:  # no locator: the cache folder cannot be written
            pass
        self.compiled = False

    def compile(self) -> None:
        """Load from the cache or compile, unless that was done."""
        with _lock:
            if self.compiled:
                return
            signature = f"void({self.signature})"
            if not self.is_cached():
                done = sum(k.compiled for k in registry.values()) + 1
                for listener in _listeners:
                    listener(self.name, done, len(registry))
            self.dispatcher.compile(signature)
            self.dispatcher.disable_compile()  # another type of argument is a mistake of ours, not a reason to compile again
            self.compiled = True

    def is_cached(self) -> bool:
        """Whether the compiled code is on disk."""
        cache = self.dispatcher._cache
        if not isinstance(cache, _Cache):
            return False
        signature = numba.core.sigutils.normalize_signature(f"void({self.signature})")[0]
        key = cache._index_key(signature, self.dispatcher.targetctx.codegen())
        return key in cache._cache_file._load_index()

    def __call__(self, *arguments: Any) -> None:
        if not self.compiled:
            self.compile()
        self.dispatcher(*arguments)


def cpu_kernel(signature: str, variant: str = "", fastmath: Any = frozenset({"contract"})) -> Callable[[Callable[..., None]], Kernel]:
    """Make a kernel of a plain function of arrays and numbers that returns nothing. signature: numba types of its arguments.

    variant: what tells apart kernels that one factory makes of the same source (it is part of the cache's key).
    """

    def decorate(function: Callable[..., None]) -> Kernel:
        kernel = Kernel(function, signature, variant, set(fastmath))
        registry[kernel.name] = kernel
        return kernel

    return decorate


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function called from kernels; compiled into them."""
    return numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)


def on_compile(listener: Callable[[str, int, int], None]) -> None:
    """Call listener(name, how many, of how many known) before a kernel is compiled because it is not on disk."""
    _listeners.append(listener)
