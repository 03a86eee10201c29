"""Compiled CPU kernels: numba functions over a range of chunks, compiled on first use and kept on disk.

    @cpu_kernel("ppi")                                  # a letter per argument after the first three
    def scale(start, stop, scratch, x, y, n): ...       # does the chunks start .. stop

    parallel(scale, chunks, x, y, n)                    # kernels/core/threads.py

Letters: p, b, d, l an array of float32, uint8, float64, int64 (in the kernel: a pointer); i an integer; f a float32; tN a tuple of N
integers. Arrays must be C-contiguous. The kernel is called natively by every thread, without the interpreter in between.

The cache lives in the user's cache folder (AREOGRAD_CACHE, else XDG_CACHE_HOME or ~/.cache) under a hash of all kernel sources, so it
survives a reinstallation and never serves stale code. `on_compile` lets a program say what is being compiled; nothing here prints.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import caching, ccallback
from numba.extending import intrinsic

from kernels.core import simd

registry: dict[str, Kernel] = {}
_listeners: list[Callable[[str, int, int], None]] = []
_lock = threading.RLock()

_POINTERS = {
    "p": (types.float32, np.float32),
    "b": (types.uint8, np.uint8),
    "d": (types.float64, np.float64),
    "l": (types.int64, np.int64),
}
_WORDS = types.CPointer(types.int64)
_RUN = types.void(types.int64, types.int64, types.CPointer(types.float32), _WORDS)


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

    def __init__(self, function: Any, name: str) -> None:
        super().__init__(function)
        self.name = name

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        # numba would hash closure contents, which for vector programs differ from process to process; source hash and name cover them.
        return sig, self.name, codegen.magic_tuple()


def cached(compiler: Any, function: Any, name: str) -> None:
    """Give a numba dispatcher or C function our cache instead of numba's."""
    try:
        compiler._cache = _Cache(function, name)
    except RuntimeError:  # no locator: the cache folder cannot be written
        pass


class Kernel:
    """A function over chunks, compiled on first use for the argument letters of its decorator."""

    def __init__(self, function: Callable[..., None], letters: str, variant: str, fastmath: set[str]) -> None:
        self.name = f"{function.__module__.removeprefix('kernels.')}.{function.__name__}{variant and f'[{variant}]'}"
        self.letters: list[str] = re.findall(r"t\d+|[pbdlif]", letters)
        if "".join(self.letters) != letters:
            raise ValueError(f"cpu_kernel {self.name}: got arguments {letters!r}, expected the letters p b d l i f and tN")
        self.packer = struct.Struct("".join({"t": f"{t[1:]}q", "f": "d"}.get(t[0], "q") for t in self.letters))
        body = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
        unpack = _unpacker(self.letters)

        def run(start, stop, scratch, words):  # type: ignore[no-untyped-def]
            body(start, stop, scratch, *unpack(words))

        run.__qualname__, run.__module__ = f"{function.__qualname__}.run", function.__module__
        self.callback = ccallback.CFunc(run, (_RUN.args, _RUN.return_type), {}, {"nogil": True, "error_model": "numpy"})
        cached(self.callback, run, self.name)
        self.address = 0

    def compile(self) -> int:
        """Load from the cache or compile, unless that was done. Returns the machine code's address."""
        with _lock:
            if not self.address:
                if not self.is_cached():
                    done = sum(bool(k.address) for k in registry.values()) + 1
                    for listener in _listeners:
                        listener(self.name, done, len(registry))
                self.callback.compile()
                self.address = self.callback.address
        return self.address

    def is_cached(self) -> bool:
        """Whether the compiled code is on disk."""
        cache = self.callback._cache
        if not isinstance(cache, _Cache):
            return False
        key = cache._index_key(self.callback._sig, self.callback._targetdescr.target_context.codegen())
        return key in cache._cache_file._load_index()

    def pack(self, arguments: Sequence[Any]) -> bytes:
        """The arguments as 64-bit words. TypeError for an array of another type or layout: a mistake of ours, so it must not pass."""
        words: list[Any] = []
        for letter, value in zip(self.letters, arguments, strict=True):
            if letter in _POINTERS:
                if value.dtype != _POINTERS[letter][1] or not value.flags.c_contiguous:
                    raise TypeError(
                        f"{self.name}: got an array {value.dtype}, strides {value.strides}; expected contiguous {_POINTERS[letter][1].__name__}"
                    )
                words.append(value.__array_interface__["data"][0])
            elif letter[0] == "t":
                words.extend(value)
            else:
                words.append(value)
        return self.packer.pack(*words)


def _unpacker(letters: Sequence[str]) -> Callable[..., Any]:
    """unpack(words): the arguments of a kernel as a tuple of pointers, numbers and tuples."""

    def kind(letter: str) -> types.Type:
        if letter in _POINTERS:
            return types.CPointer(_POINTERS[letter][0])
        return {"i": types.int64, "f": types.float32}.get(letter) or types.UniTuple(types.int64, int(letter[1:]))

    result = types.Tuple([kind(letter) for letter in letters])

    def unpack(_context: Any, words: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            place = 0

            def word() -> ir.Value:
                nonlocal place
                place += 1
                return builder.load(builder.gep(values[0], [ir.IntType(64)(place - 1)]))

            out = []
            for letter in letters:
                if letter in _POINTERS:
                    out.append(builder.inttoptr(word(), context.get_value_type(kind(letter))))
                elif letter == "f":
                    out.append(builder.fptrunc(builder.bitcast(word(), ir.DoubleType()), ir.FloatType()))
                elif letter == "i":
                    out.append(word())
                else:
                    out.append(context.make_tuple(builder, kind(letter), [word() for _ in range(int(letter[1:]))]))
            return context.make_tuple(builder, result, out)

        return result(_WORDS), emit

    return intrinsic(unpack)


def cpu_kernel(letters: str, variant: str = "", fastmath: Sequence[str] = ("contract",)) -> Callable[[Callable[..., None]], Kernel]:
    """Make a kernel of a function (start, stop, scratch, ...) that returns nothing. letters: its further arguments, see above.

    variant: what tells apart kernels that one factory makes of the same source (it is part of the cache's key).
    """

    def decorate(function: Callable[..., None]) -> Kernel:
        kernel = Kernel(function, letters, variant, set(fastmath))
        registry[kernel.name] = kernel
        return kernel

    return decorate


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function called from kernels; compiled into them."""
    return numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)


def on_compile(listener: Callable[[str, int, int], None]) -> None:
    """Call listener(name, how many, of how many known) before a kernel is compiled because it is not on disk."""
    _listeners.append(listener)
