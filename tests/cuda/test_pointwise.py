"""Activations, softmax and dropout on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.pointwise import cuda, reference
from tests.cuda.agreement import DTYPES, check, odd_shapes
from tests.cuda.planting import Mutant, assert_caught, planted

SHAPES = [*odd_shapes(4), (1,), (3,), (4, 257), (2, 3, 5, 16)]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
SLOPE = {"leaky_relu": (0.2,)}


def values(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers of several sizes, zeros among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * rng.choice([0.1, 1.0, 5.0], shape)
    x.reshape(-1)[::7] = 0
    return x


@DTYPE
@pytest.mark.parametrize("name", cuda.ACTIVATIONS)
def test_activations(cp: Any, served: list, name: str, dtype: Any) -> None:
    settings = SLOPE.get(name, ())
    for k, shape in enumerate(SHAPES):
        x, dy = values(*shape, seed=k), values(*shape, seed=k + 100)
        for way, arrays in (("forward", [x]), ("backward", [dy, x])):
            check(
                cp,
                getattr(cuda, f"{name}_{way}"),
                getattr(reference, f"{name}_{way}"),
                [*arrays, *settings],
                dtype,
                f"{name}_{way} {shape}",
            )
    assert len(served) == 2 * len(SHAPES)


# Slopes far out, by hand; the definition says it of others.
LIMITS = {
    "relu": (0, 1),
    "leaky_relu": (0.2, 1),
    "sigmoid": (None, None),
    "tanh": (None, None),
    "silu": (0, 1),
    "gelu": (0, 1),
}


@DTYPE
@pytest.mark.parametrize("name", cuda.ACTIVATIONS)
def test_far_out(cp: Any, name: str, dtype: Any) -> None:
    """No overflow, and what is not a number stays so."""
    x = np.array([-1e30, -800, 800, 1e30, np.nan]).astype(dtype)
    if name not in LIMITS:
        expected = getattr(reference, f"{name}_forward")(x.astype(np.float64)).astype(dtype)
    elif LIMITS[name][0] is None:
        expected = np.where(x > 0, 1.0, -1.0 if name == "tanh" else 0.0)
    else:
        low, high = LIMITS[name]
        expected = np.where(x > 0, high * x, dtype(low) * x)
    expected[-1] = np.nan
    np.testing.assert_array_equal(getattr(cuda, f"{name}_forward")(cp.asarray(x), *SLOPE.get(name, ())).get(), expected)


def test_plain_activation(cp: Any) -> None:
    x = cp.asarray(values(5, 7, 13), np.float32)
    y = cp.empty_like(x)
    cuda.MODULE.run(cuda.flat_launch("activation_plain<Gelu, float>", x.size, 1), x, y, np.float32(0), x.size)
    assert bool((y == cuda.gelu_forward(x)).all())


@DTYPE
@pytest.mark.parametrize("log", ["", "log_"], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((7, 5), -1),
        ((2, 3, 5, 33), -1),
        ((3, 40), 1),
        ((2, 7, 6), 1),
        ((2, 70, 3), 1),
        ((5, 3), 0),
        ((9,), 0),
        ((4, 1), -1),
    ],
    ids=str,
)
def test_softmax(cp: Any, served: list, shape: tuple[int, ...], axis: int, log: str, dtype: Any) -> None:
    x, dy = values(*shape), values(*shape, seed=1)
    forward, backward = f"{log}softmax_forward", f"{log}softmax_backward"
    check(cp, getattr(cuda, forward), getattr(reference, forward), [x, axis], dtype, forward)
    y = getattr(reference, forward)(x, axis)
    check(cp, getattr(cuda, backward), getattr(reference, backward), [dy, y, axis], dtype, backward)
    assert [launch.kernel.split("<")[0] for launch in served] == ["softmax_forward", "softmax_backward"]


@DTYPE
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_draws_the_same_bits(cp: Any, served: list, p: float, dtype: Any) -> None:
    """Value for value what the reference keeps, for streams whose seed and offset need all 64 bits."""
    for k, shape in enumerate(SHAPES):
        x = np.random.default_rng(k).uniform(1, 2, shape).astype(dtype)
        stream = (0x123456789ABCDEF0 + k, 0xFEDCBA9876543210 - k)
        found, expected = (
            cuda.dropout_forward(cp.asarray(x), p, *stream).get(),
            reference.dropout_forward(x, p, *stream),
        )
        np.testing.assert_array_equal(found, expected)
    assert len(served) == len(SHAPES)


def test_what_is_not_served(cp: Any) -> None:
    assert cuda.relu_forward(cp.zeros(3, np.float16)) is NotImplemented
    assert cuda.relu_forward(cp.zeros((0, 3), np.float32)) is NotImplemented
    assert cuda.relu_backward(cp.zeros((2, 3), np.float32), cp.zeros((1, 3), np.float32)) is NotImplemented
    assert cuda.dropout_forward(cp.zeros((0, 3), np.float32), 0.5, 0, 0) is NotImplemented


def test_unaligned_views(cp: Any) -> None:
    big = cp.asarray(values(1001), np.float32)
    for x in (big[1:], big[::2]):
        assert bool((cuda.relu_forward(x) == cp.maximum(x, 0)).all())


# Sectors per request: 16 for 512 bytes in 16-byte accesses, 4 for 128 in 4-byte ones.
CEILINGS = {
    "activation_forward": 16,
    "activation_backward": 16,
    "dropout": 16,
    "softmax_forward": 5,
    "softmax_backward": 5,
}


def test_accesses_are_coalesced(cp: Any, counted: Any) -> None:
    x = cp.asarray(values(64, 64, 8), np.float32)
    with counted() as report:
        cuda.silu_backward(x, cuda.silu_forward(x))
        cuda.dropout_forward(x, 0.3, 1, 2)
        cuda.softmax_backward(x, cuda.softmax_forward(x, -1), -1)
        cuda.softmax_backward(x, cuda.softmax_forward(x, 0), 0)
    for kernel, ceiling in CEILINGS.items():
        assert report.kernel(kernel).sectors_per_request <= ceiling, kernel
        assert report.kernel(kernel).global_efficiency >= 0.99, kernel


# -- planted mistakes --------------------------------------------------------------------------------------------------


def _silu(cp: Any) -> None:
    x = values(3, 5, 7)
    check(cp, cuda.silu_forward, reference.silu_forward, [x], np.float32)
    check(cp, cuda.silu_backward, reference.silu_backward, [values(3, 5, 7, seed=1), x], np.float32)


def _dropout(cp: Any) -> None:
    x = np.ones((3, 5, 7), np.float32)
    np.testing.assert_array_equal(
        cuda.dropout_forward(cp.asarray(x), 0.3, 2**40, 2**33).get(), reference.dropout_forward(x, 0.3, 2**40, 2**33)
    )


def _softmax(cp: Any) -> None:
    for shape, axis in (((7, 5), -1), ((2, 7, 6), 1)):
        check(cp, cuda.softmax_forward, reference.softmax_forward, [values(*shape), axis], np.float32)


_SILU = ("activation_forward<Silu, float>", "activation_backward<Silu, float>")
_DROPOUT, _SOFTMAX = ("dropout<float>",), ("softmax_forward<float>",)
_PACK = "Pack<T, V> pack = load_pack<T, V>(x"
MUTANTS = [
    Mutant("gradient without x", "dy * s * (1 + x * (1 - s))", "dy * s * (1 + (1 - s))", "fast", _silu, cuda, _SILU),
    Mutant("tail lost", "for (int k = i; k < n; ++k) y[k] = Op::forward(x[k], slope);", "", "fast", _silu, cuda, _SILU),
    Mutant(
        "pack beyond the end",
        f"if (i + V <= n) {{\n    {_PACK}",
        f"if (i < n) {{\n    {_PACK}",
        "check",
        _silu,
        cuda,
        _SILU,
    ),
    Mutant("nine rounds", "round < 10", "round < 9", "fast", _dropout, cuda, _DROPOUT),
    Mutant("key not moved on", "seed0 += 0x9E3779B9u, ", "", "fast", _dropout, cuda, _DROPOUT),
    Mutant(
        "offset's high word", "c2 = offset0, c3 = offset1", "c2 = offset0, c3 = 0", "fast", _dropout, cuda, _DROPOUT
    ),
    Mutant("one lane's maximum", "top = group_max(top, group);", "", "fast", _softmax, cuda, _SOFTMAX),
    Mutant(
        "row beyond the last", "thread % group, row < rows}", "thread % group, true}", "check", _softmax, cuda, _SOFTMAX
    ),
]


@planted(MUTANTS)
def test_planted_mistakes_are_caught(cp: Any, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(cp, mutant, monkeypatch)
