"""Functions that kernels are made of: machine code is made once for a kernel, with all that it calls."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from kernels.core.cpu import numba_internals as parts
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import cpu_kernel, inline
from kernels.core.cpu.thread_pool import parallel


@inline("tests")
def doubled(x: float) -> float:
    return 2 * x


@inline("tests")
def doubled_and_more(x: float, more: float) -> float:
    return doubled(x) + more


def fresh_kernel(name: str):
    """A kernel, not on disk, whose body calls functions that call others."""

    @cpu_kernel(name)
    def shifted(start, stop, scratch, x: F32, y: F32, n: int):  # type: ignore[no-untyped-def]
        for i in range(start * n, stop * n):
            y[i] = doubled_and_more(x[i], start) + doubled(1.0)

    return shifted


def test_machine_code_is_made_once(monkeypatch) -> None:
    """Of a kernel, its body and the functions that the body calls, only the kernel is optimised and handed to the code
    generator.
    """
    made = []
    finish = parts._Library._finalize_specific
    monkeypatch.setattr(
        parts._Library, "_finalize_specific", lambda library: (made.append(library.name), finish(library))
    )
    kernel = fresh_kernel("once")
    x, y = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    parallel(kernel, 2, x, y, 3)
    assert np.array_equal(y, 2 * x + [2, 2, 2, 3, 3, 3])
    # nrt: numba's own, once a process
    assert [name for name in made if name != "nrt"] == [__name__.replace(".", "_") + "_shifted_once_"]


def test_kernels_share_their_parts() -> None:
    """A function that several kernels call is part of each."""
    x, results = np.ones(2, np.float32), []
    for name in ("first", "second"):
        y = np.zeros(2, np.float32)
        parallel(fresh_kernel(name), 1, x, y, 2)
        results.append(y)
    assert np.array_equal(results, np.full((2, 2), 4))


def test_device_functions_are_not_called_from_python() -> None:
    with pytest.raises(TypeError, match="expected calls from kernels only"):
        doubled(1.0)


def test_device_functions_within_other_functions() -> None:
    """An ordinary numba function may call what kernels call, before and after them."""
    caller = numba.njit(lambda x: doubled_and_more(x, 3))
    assert caller(np.float32(2)) == 7
    y = np.zeros(2, np.float32)
    parallel(fresh_kernel("between"), 1, np.ones(2, np.float32), y, 2)
    assert y.tolist() == [4, 4]
    another = numba.njit(lambda x, more: doubled_and_more(x, more) + doubled(1.0))
    assert another(np.float32(2), 3) == 9  # the types that the kernel has used
    assert caller(np.float32(4)) == 11


def test_other_functions_are_compiled_as_ever() -> None:
    """After a kernel's compilation numba makes its own kind of library again, and what it compiles can be called."""
    parallel(fresh_kernel("before"), 1, np.ones(2, np.float32), np.zeros(2, np.float32), 2)
    function = numba.njit(lambda x: x + 1)
    assert function(1) == 2
    assert not isinstance(next(iter(function.overloads.values())).library, parts._Library)
