"""What the tests of CUDA kernels share: the bound of docs/accuracy.md, and planted mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from kernels.core.cuda import module
from kernels.core.device import to_numpy
from tests.cuda.device import failures

try:
    import cupy_on_cpu
except ImportError:  # on a GPU
    cupy_on_cpu = None
MODE = cupy_on_cpu.mode() if cupy_on_cpu is not None and cupy_on_cpu.active() else "gpu"
trace_only = pytest.mark.skipif(MODE != "trace", reason="counts sectors and wavefronts: trace mode only")


def wider(array: np.ndarray) -> np.ndarray:
    """The same numbers in the next wider type, in which the reference counts as exact: float64 for float32, 80-bit long
    double for float64.
    """
    return array.astype({"float32": np.float64, "float64": np.longdouble}[array.dtype.name])


def assert_close(fast: Any, naive: Any, exact: Any) -> None:
    """max|fast - exact| <= 3 max|naive - exact| + 2 roundings of the largest value; naive: the reference in fast's
    dtype, exact: in a wider one.
    """
    fast, naive, exact = (np.asarray(to_numpy(a)) for a in (fast, naive, exact))
    assert fast.shape == exact.shape
    assert fast.dtype == naive.dtype
    assert np.isfinite(fast).all()
    if exact.size:
        tiny = 2 * np.finfo(fast.dtype).eps * np.abs(exact).max()
        error, bar = np.abs(fast - exact).max(), 3 * np.abs(naive - exact).max() + tiny
        assert error <= bar, f"error {error:.3g}, allowed {bar:.3g}"


@contextmanager
def clean() -> Iterator[Any]:
    """Within the block nothing may be found by the emulator; gives its report (None on a GPU)."""
    if MODE == "gpu":
        yield None
        return
    with cupy_on_cpu.collect() as report:
        yield report
    report.assert_clean()


class Mutant(NamedTuple):
    """In the source of `target`, a Module, `old` becomes `new`; `test` must then fail when the emulator runs in one of
    `modes`.
    """

    name: str
    target: module.Module
    old: str
    new: str
    modes: tuple[str, ...]
    test: Callable[[], None]


ANY = ("fast", "check", "trace", "gpu")


def assert_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is green, and fails once the mistake is planted."""
    if MODE not in mutant.modes:
        pytest.skip(f"caught in {', '.join(mutant.modes)} mode, this is {MODE}")
    with module.launch_log() as log:
        mutant.test()
    source = module.source_of(mutant.target.path)
    assert mutant.old in source, f"{mutant.target.path} no longer contains {mutant.old!r}"
    sources = {mutant.target.path: source.replace(mutant.old, mutant.new)}
    plain = module.source_of
    monkeypatch.setattr(module, "source_of", lambda path: sources.get(path) or plain(path))
    used = {launch.kernel for launch in log}  # compile no more than the test needs
    fresh = {name: value for name, value in vars(mutant.target).items() if name != "_module"}
    fresh |= {"_functions": {}, "instances": tuple(name for name in mutant.target.instances if name in used)}
    monkeypatch.setattr(mutant.target, "__dict__", fresh)
    with pytest.raises(failures()):
        mutant.test()
