"""Gates and blends on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels.gate import cuda, reference
from tests.cuda.agreement import DTYPES, check, odd_shapes
from tests.cuda.planting import Mutant, assert_caught, planted

SHAPES = [*odd_shapes(4), (1, 1, 1, 1), (2, 3, 5, 16), (1, 4, 3, 300)]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
SINGLE = pytest.mark.parametrize("single", [True, False], ids=["per pixel", "per channel"])


def arrays(shape: tuple[int, ...], single: bool) -> list[np.ndarray]:
    """dy, x, other, z."""
    rng = np.random.default_rng(0)
    return [
        *(rng.standard_normal(shape) for _ in range(3)),
        2 * rng.standard_normal((*shape[:-1], 1) if single else shape),
    ]


@DTYPE
@SINGLE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate_and_blend(cp: Any, served: list, shape: tuple[int, ...], single: bool, dtype: Any) -> None:
    dy, x, other, z = arrays(shape, single)
    check(cp, cuda.gate_forward, reference.gate_forward, [x, z], dtype, "gate")
    check(cp, cuda.gate_backward, reference.gate_backward, [dy, x, z], dtype, "gate backward")
    check(cp, cuda.blend_forward, reference.blend_forward, [x, other, z], dtype, "blend")
    check(cp, cuda.blend_backward, reference.blend_backward, [dy, x, other, z], dtype, "blend backward")
    assert [launch.kernel.split("<")[0] for launch in served] == ["blend_forward", "blend_backward"] * 2


def test_closed_and_open_gates(cp: Any) -> None:
    """No overflow at the ends: sigmoid(-800) is 0, sigmoid(800) is 1."""
    x, z = cp.ones((1, 1, 2, 4), np.float32), cp.asarray([[[[-800.0], [800.0]]]], np.float32)
    assert cuda.gate_forward(x, z).get().tolist() == [[[[0.0] * 4, [1.0] * 4]]]
    dx, dz = cuda.gate_backward(x, x, z)
    assert dx.get().tolist() == [[[[0.0] * 4, [1.0] * 4]]]
    assert not dz.get().any()


def test_what_is_not_served(cp: Any) -> None:
    x = cp.zeros((1, 2, 2, 4), np.float32)
    assert cuda.gate_forward(x, cp.zeros((1, 2, 2, 1))) is NotImplemented
    assert cuda.gate_forward(x[:0], x[:0]) is NotImplemented
    assert cuda.gate_forward(x, cp.zeros((1, 1, 1, 4), np.float32)) is NotImplemented


# Sectors per request: 16 for 512 bytes in 16-byte accesses; one gate serves 8 lanes, so its requests touch a sector or
# two.
CEILINGS = {"blend_forward": 16, "blend_backward": 16}


@SINGLE
def test_accesses_are_coalesced(cp: Any, counted: Any, single: bool) -> None:
    dy, x, other, z = (cp.asarray(a, np.float32) for a in arrays((2, 16, 16, 32), single))
    with counted() as report:
        cuda.blend_forward(x, other, z)
        cuda.blend_backward(dy, x, other, z)
    for kernel, ceiling in CEILINGS.items():
        assert report.kernel(kernel).sectors_per_request <= ceiling
        assert report.kernel(kernel).global_efficiency >= 0.99


# -- planted mistakes --------------------------------------------------------------------------------------------------


def _gate(cp: Any) -> None:
    dy, x, other, z = arrays((2, 3, 5, 11), True)
    check(cp, cuda.blend_forward, reference.blend_forward, [x, other, z], np.float32)
    check(cp, cuda.blend_backward, reference.blend_backward, [dy, x, other, z], np.float32)


_KERNELS = ("blend_forward<float, 1>", "blend_backward<float, 1>")
MUTANTS = [
    Mutant(
        "gate of the next pixel",
        "sigmoid(z[pixel]);\n    for",
        "sigmoid(z[pixel + 1]);\n    for",
        "fast",
        _gate,
        cuda,
        _KERNELS,
    ),
    Mutant("other not weighed", "(1 - gates.s[v]) * second.v[v]", "second.v[v]", "fast", _gate, cuda, _KERNELS),
    Mutant("one lane's share of dz", "sum = group_sum(sum, group);", "", "fast", _gate, cuda, _KERNELS),
    Mutant("a pack too many", "if (i >= count) return;", "if (i > count) return;", "check", _gate, cuda, _KERNELS),
    Mutant(
        "pixels beyond the last",
        "const bool inside = pixel < pixels;",
        "const bool inside = true;",
        "check",
        _gate,
        cuda,
        _KERNELS,
    ),
    Mutant(
        "lost slope of the sigmoid",
        "dz[pixel] = sum * s * (1 - s)",
        "dz[pixel] = sum * s",
        "fast",
        _gate,
        cuda,
        _KERNELS,
    ),
]


@planted(MUTANTS)
def test_planted_mistakes_are_caught(cp: Any, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(cp, mutant, monkeypatch)
