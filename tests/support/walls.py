"""The fast CPU kernels with every array against memory that must not be touched: what reads or writes on is killed on
the spot.

    python -m tests.support.walls end [CHECK ...]   the checks of fast_checks.py, arrays ending at a wall
    python -m tests.support.walls start [CHECK ...] ... or beginning after one
    python -m tests.support.walls end --random 20   the random shapes of the fast kernels' tests, drawn anew, 20 times
                                                    as many as usual

Walls stand at an operator's arguments, at arrays from kernels/core/cpu/buffer_pool.py, at whatever else a launch is
given, and at the scratch memory that it asked for. A wall is a page without rights; arrays that end at one start at any
address that suits their numbers.
"""

from __future__ import annotations

import ctypes
import faulthandler
import inspect
import math
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.core.cpu import buffer_pool, thread_pool
from kernels.core.dispatch import Operator
from tests.support.paths import ROOT

SIDES = ("end", "start")
# tests over random shapes
RANDOM = (
    "tests/kernels/test_fast_kernels.py",
    "tests/kernels/conv/test_fast_conv.py",
    "tests/kernels/attention/test_fast_attention.py",
    "tests/kernels/conv/test_transposed.py",
)
_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Pages(mmap.mmap):
    """Pages of which one, at the address `wall`, must not be touched."""

    wall: int

    def build(self, offset: int) -> None:
        """Take the rights from the page at `offset`."""
        self.wall = thread_pool.address_of(np.frombuffer(self, np.uint8)) + offset
        if _LIBC.mprotect(ctypes.c_void_p(self.wall), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")


def empty(side: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array that ends at a wall, or starts behind one."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = -(-max(size, 1) // _PAGE) * _PAGE
    pages = _Pages(-1, room + _PAGE)
    pages.build(room if side == "end" else 0)
    first = room - size if side == "end" else _PAGE
    return np.frombuffer(pages, dtype, math.prod(shape), first).reshape(shape)


def _span(array: np.ndarray) -> tuple[int, int, np.dtype]:
    return thread_pool.address_of(array), array.nbytes, array.dtype


def stands(side: str, array: np.ndarray) -> bool:
    """Whether the array already lies at a wall."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = getattr(owner, "obj", owner)  # of a memoryview
    if not isinstance(owner, _Pages):
        return False
    first, size, _ = _span(array)
    return first + size == owner.wall if side == "end" else first == owner.wall + _PAGE


def placed(side: str, value: Any) -> Any:
    """Contiguous arrays of numbers at a wall, read-only ones read-only; everything else as it is."""
    if isinstance(value, (tuple, list)):
        parts = [placed(side, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not isinstance(value, np.ndarray) or not value.flags.c_contiguous or value.dtype.kind not in "fiub":
        return value
    out = empty(side, value.shape, value.dtype)
    out[...] = value
    out.setflags(write=value.flags.writeable)
    return out


def _returned(given: Any, there: Any) -> None:
    """Write back what a kernel wrote to a placed array."""
    if isinstance(given, (tuple, list)):
        for one, other in zip(given, there, strict=True):
            _returned(one, other)
    elif isinstance(given, np.ndarray) and there is not given and given.flags.writeable:
        given[...] = there


class Pool(buffer_pool.Pool):
    """A pool whose every array stands at a wall."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array at the wall."""
        return empty(self.side, shape, dtype)


def _call(side: str) -> Callable[..., Any]:
    """Operator.call with copies of its arrays at walls."""
    real = Operator.call

    def call(self: Operator, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(self.reference).bind(*args, **kwargs)
        given = dict(bound.arguments)
        bound.arguments.update({name: placed(side, value) for name, value in given.items()})
        result = real(self, *bound.args, **bound.kwargs)
        for item in self.shapes.items:
            name = item.name.partition(".")[0]
            if item.written and name in given:
                _returned(given[name], bound.arguments[name])
        return result

    return call


def _launcher(side: str) -> Callable[..., Any]:
    """thread_pool.launcher whose launches get copies at walls of whatever does not stand at one: parts of arrays, sums
    from np.empty.
    """
    real = thread_pool.launcher

    def launcher(kernel: Any) -> Any:
        launch = real(kernel)

        def walled(*given: Any) -> int:
            if thread_pool.recorder.tell is not None:  # it keeps the addresses
                return launch(*given)
            arrays = {_span(a): a for a in given if isinstance(a, np.ndarray) and a.size}
            free = {
                span: placed(side, a)
                for span, a in arrays.items()
                if not stands(side, a) and not any(np.may_share_memory(a, b) for b in arrays.values() if b is not a)
            }
            result = launch(*(free.get(_span(a), a) if isinstance(a, np.ndarray) else a for a in given))
            for span, copy in free.items():
                _returned(arrays[span], copy)
            return result

        return walled

    return launcher


def _reserve(side: str) -> Callable[..., thread_pool.Scratch]:
    """_ThreadPool.reserve that gives every member just what a launch asked for, at a wall of its own, full of NaN."""

    def reserve(self: Any, floats: int) -> thread_pool.Scratch:
        room = -(-max(4 * floats, 1) // _PAGE) * _PAGE
        stride = room + _PAGE
        pages = _Pages(-1, self.size * stride)
        for member in range(self.size):
            pages.build(member * stride + (room if side == "end" else 0))
        first = room - 4 * floats if side == "end" else _PAGE
        array = np.ndarray((self.size, floats), np.float32, pages, first, (stride, 4))
        array[...] = np.nan
        self.scratch = thread_pool.Scratch(
            array, thread_pool.address_of(array), stride, -1
        )  # the next launch asks again
        return self.scratch

    return reserve


def build(side: str) -> None:
    """From now on all memory that this process's kernels are given stands at walls. To be called before the first
    launch.
    """
    if side not in SIDES:
        raise ValueError(f"walls: got {side!r}, expected one of {', '.join(SIDES)}")
    Operator.call = _call(side)  # type: ignore[method-assign]
    buffer_pool._Current.pool = Pool(side)
    thread_pool.launcher = _launcher(side)
    thread_pool._ThreadPool.reserve = _reserve(side)  # type: ignore[method-assign]
    faulthandler.enable()


class More:
    """A plugin of pytest: so many times the random examples, drawn anew."""

    def __init__(self, times: int) -> None:
        self.times = times

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave the tests of random shapes only, with their new settings."""
        from hypothesis import settings

        items[:] = [item for item in items if hasattr(item.obj, "_hypothesis_internal_use_settings")]
        for function in {item.obj for item in items}:
            own = function._hypothesis_internal_use_settings
            function._hypothesis_internal_use_settings = settings(
                own, max_examples=own.max_examples * self.times, derandomize=False
            )


def run(side: str, names: list[str]) -> int:
    """The checks of these names, all where there are none; or `--random TIMES`. Exit code."""
    build(side)
    if names[:1] == ["--random"]:
        import pytest

        files = [str(ROOT / name) for name in RANDOM]
        return int(pytest.main(["-vv", "-s", "-p", "no:faulthandler", *files], plugins=[More(int(names[1]))]))
    from tests.support.fast_checks import CHECKS

    for name in names or CHECKS:
        print(name, flush=True)  # the last one that is printed is the one that was killed
        CHECKS[name]()
    print("passed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
