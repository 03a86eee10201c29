"""Layers of convolutions, their comparison with the reference in a wider type, and mistakes planted in kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cupy
import numpy as np
import pytest

from kernels.conv import cuda, reference
from kernels.core.cuda import module as modules
from kernels.core.geometry import Window

F4 = np.dtype(np.float32)
F8 = np.dtype(np.float64)
WIDER = {F4: np.float64, F8: np.longdouble}  # in which the truth is computed


@dataclass(frozen=True)
class Layer:
    """One convolution: x (n, h, w, sum(maps)), k outputs, and a word of the kernel that must serve forward, data and
    filter gradient.
    """

    n: int
    h: int
    w: int
    maps: tuple[int, ...]
    k: int
    kernel: Any = 3
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    by: tuple[str, str, str] = ("convolve", "convolve", "filter_gradient")

    @property
    def window(self) -> Window:
        return Window.of("conv2d", self.kernel, self.stride, self.padding, self.dilation)

    def arrays(self, dtype: Any = F4, seed: int = 0) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
        """maps, w, b, dy."""
        rng = np.random.default_rng(seed)
        c, window = sum(self.maps), self.window
        xs = tuple(rng.standard_normal((self.n, self.h, self.w, m)).astype(dtype) for m in self.maps)
        w = rng.standard_normal((*window.kernel, c // self.groups, self.k)).astype(dtype)
        dy = rng.standard_normal((self.n, *window.output_size((self.h, self.w)), self.k)).astype(dtype)
        return xs, w, rng.standard_normal(self.k).astype(dtype), dy


DEPTHWISE = ("depthwise<", "depthwise<", "depthwise_filter")
PLAIN = ("conv_forward", "conv_backward_data", "conv_backward_filter")
LAYERS = {
    "vectors": Layer(2, 7, 9, (8,), 12, padding=1),
    "scalars": Layer(2, 7, 9, (5,), 7, padding=1),
    "one pixel": Layer(1, 1, 1, (1,), 1, padding=1),
    "two maps": Layer(2, 6, 7, (4, 8), 20, padding=1),
    "two odd maps": Layer(2, 6, 7, (5, 3), 6, padding=1),
    "strided": Layer(2, 9, 8, (4,), 36, (3, 2), (2, 3), ((1, 0), (2, 1)), (2, 1)),
    "strided and dilated alike": Layer(1, 11, 10, (8,), 8, 3, 2, 2, 2),
    "kernel below stride": Layer(2, 7, 5, (3,), 5, kernel=1, stride=3),
    "stride above four": Layer(1, 12, 11, (4,), 4, 3, (5, 2), 1, by=("convolve", PLAIN[1], "filter")),
    "much padding": Layer(1, 3, 3, (4,), 4, 2, 1, ((3, 0), (1, 4))),
    "long sum": Layer(1, 4, 5, (200,), 8, padding=1),
    "many pixels": Layer(4, 16, 20, (8,), 8, padding=1),
    "wide": Layer(2, 8, 8, (16,), 132, padding=2, dilation=2),
    "stem": Layer(2, 5, 70, (1,), 12, padding=1, by=("single_channel", "convolve", "filter")),
    "stem, large stride": Layer(
        2, 19, 18, (1,), 20, (7, 3), (2, 3), ((3, 2), (2, 1)), (1, 2), by=("single_channel", "convolve", "filter")
    ),
    "depthwise": Layer(2, 9, 11, (8,), 8, 3, padding=1, groups=8, by=DEPTHWISE),
    "depthwise, odd": Layer(2, 9, 10, (35,), 35, (4, 3), (2, 1), 1, (1, 2), groups=35, by=DEPTHWISE),
    "groups": Layer(2, 6, 5, (6,), 4, padding=2, dilation=2, groups=2, by=PLAIN),
    "depthwise with two outputs": Layer(2, 6, 5, (3,), 6, padding=1, groups=3, by=PLAIN),
}


def random_layer(seed: int) -> Layer:
    """Channels 1..40, sizes 1..19, windows up to 5 x 5, anything that fits."""
    rng = np.random.default_rng(seed)

    def pair(low: int, high: int) -> tuple[int, int]:
        return int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1))

    while True:
        maps = tuple(int(c) for c in rng.integers(1, 41, rng.integers(1, 3)))
        layer = Layer(
            int(rng.integers(1, 4)),
            *pair(1, 19),
            maps,
            int(rng.integers(1, 41)),
            pair(1, 5),
            pair(1, 3),
            (pair(0, 3), pair(0, 3)),
            pair(1, 3),
        )
        if min(layer.window.output_size((layer.h, layer.w))) > 0:
            return replace(layer, by=("", "", ""))


LAYERS |= {f"random {seed}": random_layer(seed) for seed in range(12)}


def device(a: Any) -> Any:
    return tuple(map(cupy.asarray, a)) if isinstance(a, tuple) else a if a is None else cupy.asarray(a)


def exact(a: Any) -> Any:
    return tuple(map(exact, a)) if isinstance(a, tuple) else a if a is None else a.astype(WIDER[a.dtype])


def agree(fast: Any, naive: Any, truth: np.ndarray, what: str, least: float = 0.0) -> None:
    """max|fast - truth| <= 3 max|naive - truth| + one rounding of the largest result (or `least` of it, a stated
    bound).
    """
    fast = fast.get()
    assert fast.shape == truth.shape
    if not truth.size:
        return
    largest, bound = np.abs(truth).max(), np.abs(naive - truth).max()
    error = np.abs(fast - truth).max()
    allowed = max(3 * bound + np.finfo(naive.dtype).eps * largest, least * largest)
    assert error <= allowed, (
        f"{what}: error {error:.3g}, at most {allowed:.3g} is allowed (naive: {bound:.3g}, largest result "
        f"{largest:.3g})"
    )


def three(layer: Layer, module: Any, x: Any, w: Any, b: Any, dy: Any, accumulate_into: Any = None) -> list[Any]:
    """y, dx of every map, dw by one module."""
    size, window = (layer.h, layer.w), layer.window
    accumulate_into = accumulate_into or (None,) * len(layer.maps)
    return [
        module.conv2d_forward(x, w, b, window, layer.groups),
        *module.conv2d_backward_data(dy, w, size, window, layer.groups, layer.maps, accumulate_into),
        module.conv2d_backward_filter(x, dy, window, layer.groups),
    ]


def compare(
    layer: Layer, dtype: Any = F4, accumulate_into: bool = False, bias: bool = True, least: float = 0.0
) -> None:
    x, w, b, dy = layer.arrays(dtype)
    b = b if bias else None
    rng = np.random.default_rng(1)
    totals = (
        tuple(rng.standard_normal((layer.n, layer.h, layer.w, m)).astype(dtype) for m in layer.maps)
        if accumulate_into
        else None
    )
    fast = three(layer, cuda, device(x), device(w), device(b), device(dy), device(totals))
    truth = three(layer, reference, *map(exact, (x, w, b, dy, totals)))
    naive = three(layer, reference, x, w, b, dy, totals and tuple(t.copy() for t in totals))
    names = ("y", *(f"dx {i}" for i in range(len(layer.maps))), "dw")
    for name, ours, plain, exactly in zip(names, fast, naive, truth, strict=True):
        assert ours is not NotImplemented
        agree(ours, plain, exactly, f"{name} of {layer}", least)


@contextmanager
def planted(module: modules.Module, old: str, new: str) -> Iterator[None]:
    """Within the block, `module` is compiled from a source with a mistake; only the kernels that the test launches."""
    source, kept = modules.source_of(module.path).replace(old, new), dict(vars(module))
    assert source != modules.source_of(module.path), "the text to be replaced is not there"
    original = modules.source_of
    try:
        vars(module).pop("_module", None)
        module._functions = {}
        modules.source_of = lambda path: source if path == module.path else original(path)
        yield
    finally:
        modules.source_of = original
        vars(module).clear()
        vars(module).update(kept)


def assert_caught(module: Any, old: str, new: str, modes: str, test: Callable[[], None]) -> None:
    """`test` passes, and fails (or the emulator finds something) once `old` is `new` in the module's source."""
    emulator = sys.modules.get("cupy_on_cpu")
    if emulator is None or not emulator.active() or emulator.mode() not in modes.split():
        pytest.skip(f"caught by the emulator in mode {modes}")
    with modules.launch_log() as log:
        test()
    with planted(module, old, new):
        module.instances = tuple(dict.fromkeys(launch.kernel for launch in log if launch.kernel in module.instances))
        with pytest.raises(AssertionError):  # noqa: PT012 - wrong numbers or a finding, either will do
            with emulator.collect() as report:
                test()
            report.assert_clean()
