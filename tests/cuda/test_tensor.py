"""Tensor-core convolutions against float64 convolutions of operands rounded to the same type.

The bound is that of docs/accuracy.md: three times the error of a plain float32 sum over the same rounded operands, one
product after the other, plus one rounding of the result. Rounding the operands themselves changes results a thousand
times as much, so the types are tested, too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from kernels.conv import reference
from kernels.conv.cuda import tensor_core as tensor
from kernels.core.cuda import module
from kernels.core.geometry import Window
from kernels.core.precision import use_precision
from tests.cuda.tensor_shapes import (
    SAME3,
    Shape,
    assert_below_ceilings,
    naive_data,
    naive_filter,
    naive_forward,
    normal,
    random_shape,
    sequential,
)

POLICIES = tuple(tensor.TYPES)
EPS = float(np.finfo(np.float32).eps)


def rounded(x: np.ndarray, policy: str) -> np.ndarray:
    """float32 -> the nearest value of the policy's type (tf32: the low 13 bits cut off), as float32."""
    if policy == "float16":
        return x.astype(np.float16).astype(np.float32)
    bits = x.view(np.uint32)
    if policy == "bf16":
        bits = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)  # to nearest, ties to even
    return (bits & np.uint32(0xFFFFE000 if policy == "tf32" else 0xFFFF0000)).view(np.float32)


def check(fast, naive: np.ndarray, exact: np.ndarray) -> None:
    fast = fast.get()
    assert fast.shape == exact.shape
    assert fast.dtype == np.float32
    bound = 3 * abs(naive - exact).max() + EPS * abs(exact).max()
    assert abs(fast - exact).max() <= bound, f"error {abs(fast - exact).max():.3g}, bound {bound:.3g}"


SHAPES = [
    *(random_shape(seed) for seed in range(14)),
    Shape(1, (1, 1), 1, 1, Window((1, 1))),
    Shape(2, (16, 20), 8, 5, Window((1, 1))),
    Shape(2, (13, 11), 36, 68, SAME3),
    Shape(3, (19, 17), 4, 36, Window((5, 5), (1, 1), ((4, 4), (4, 4)), (2, 2)), 4),
    Shape(1, (7, 9), 3, 4, Window((2, 2), (1, 1), ((3, 2), (2, 3)))),  # more padding than the window reaches
]


def run_forward(cp, shape: Shape, policy: str) -> None:
    c = shape.c + shape.second
    x, w = normal(1, shape.n, *shape.size, c), normal(2, *shape.window.kernel, c, shape.k)
    b = normal(3, shape.k) if shape.bias else None
    maps = tuple(cp.asarray(part) for part in (x[..., : shape.c], x[..., shape.c :]) if part.size)
    with use_precision(policy):
        y = tensor.conv2d_forward(maps, cp.asarray(w), None if b is None else cp.asarray(b), shape.window)
    x, w = rounded(x, policy), rounded(w, policy)
    exact = reference.conv2d_forward((x.astype(np.float64),), w.astype(np.float64), b, shape.window)
    check(y, naive_forward(x, w, b, shape.window), exact)


def run_data(cp, shape: Shape, policy: str) -> None:
    c, out = shape.c + shape.second, shape.window.output_size(shape.size)
    dy, w = normal(4, shape.n, *out, shape.k), normal(5, *shape.window.kernel, c, shape.k)
    parts = (shape.c, shape.second) if shape.second else (c,)
    there = [normal(6 + i, shape.n, *shape.size, part) if shape.add else np.float32(0) for i, part in enumerate(parts)]
    accumulate_into = tuple(cp.asarray(t) if shape.add else None for t in there)
    with use_precision(policy):
        dxs = tensor.conv2d_backward_data(
            cp.asarray(dy), cp.asarray(w), shape.size, shape.window, 1, parts, accumulate_into
        )
    dy, w = rounded(dy, policy), rounded(w, policy)
    (exact,) = reference.conv2d_backward_data(dy.astype(np.float64), w.astype(np.float64), shape.size, shape.window)
    naive = naive_data(dy, w, shape.size, shape.window)
    start = 0
    for dx, part, t, total in zip(dxs, parts, there, accumulate_into, strict=True):
        assert total is None or dx is total
        check(dx, naive[..., start : start + part] + t, exact[..., start : start + part] + t)
        start += part


def run_filter(cp, shape: Shape, policy: str) -> None:
    c = shape.c + shape.second
    x, dy = normal(8, shape.n, *shape.size, c), normal(9, shape.n, *shape.window.output_size(shape.size), shape.k)
    maps = tuple(cp.asarray(part) for part in (x[..., : shape.c], x[..., shape.c :]) if part.size)
    with use_precision(policy):
        dw = tensor.conv2d_backward_filter(maps, cp.asarray(dy), shape.window)
    x, dy = rounded(x, policy), rounded(dy, policy)
    exact = reference.conv2d_backward_filter((x.astype(np.float64),), dy.astype(np.float64), shape.window)
    check(dw, naive_filter(x, dy, shape.window), exact)


def of_policy(log: list[module.Launch], name: str, policy: str) -> list[module.Launch]:
    return [launch for launch in log if launch.kernel.startswith(f"{name}<{tensor.TYPES[policy]},")]


# -- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.n}x{s.size}x{s.c}+{s.second}-{s.k}")
@pytest.mark.parametrize("policy", POLICIES)
def test_convolution_and_its_gradients(cp, served, shape: Shape, policy: str) -> None:
    run_forward(cp, shape, policy)
    assert len(of_policy(served, "forward", policy)) == 1
    run_filter(cp, shape, policy)
    assert len(of_policy(served, "filter", policy)) == 1
    run_data(cp, shape, policy)
    assert len(of_policy(served, "forward", policy)) > 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "shape", [Shape(2, (9, 15), 12, 132, SAME3), Shape(1, (11, 13), 20, 40, SAME3, 8)], ids=["wide", "middle"]
)
def test_large_tiles(cp, served, big_tiles, shape: Shape, policy: str) -> None:
    run_forward(cp, shape, policy)
    run_filter(cp, shape, policy)
    tile = "Middle" if shape.k < 65 else tensor.WIDE[tensor.TYPES[policy]]
    assert f"{tile}," in served[0].kernel
    assert "Middle," in served[1].kernel


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(20, 24))
def test_transposed_convolution(cp, served, policy: str, seed: int) -> None:
    shape = random_shape(seed)
    window, out = shape.window, shape.window.output_size(shape.size)
    x, w, b = normal(1, shape.n, *out, shape.c), normal(2, *window.kernel, shape.c, shape.k), normal(3, shape.k)
    dy = normal(4, shape.n, *shape.size, shape.k)
    X, W, B, DY = map(cp.asarray, (x, w, b, dy))
    with use_precision(policy):
        y = tensor.conv_transpose2d_forward(X, W, B, shape.size, window)
        dx = tensor.conv_transpose2d_backward_data(DY, W, window)
        dw = tensor.conv_transpose2d_backward_filter(X, DY, window)
    assert of_policy(served, "forward", policy)
    x, w, dy = (rounded(a, policy) for a in (x, w, dy))
    x64, w64, dy64 = (a.astype(np.float64) for a in (x, w, dy))
    flipped = w.swapaxes(2, 3)
    check(
        y,
        naive_data(x, flipped, shape.size, window) + b,
        reference.conv_transpose2d_forward(x64, w64, b, shape.size, window),
    )
    check(dx, naive_forward(dy, flipped, None, window), reference.conv_transpose2d_backward_data(dy64, w64, window))
    check(dw, naive_filter(dy, x, window).swapaxes(2, 3), reference.conv_transpose2d_backward_filter(x64, dy64, window))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_plain_kernel_agrees(cp, policy: str) -> None:
    x, w, b = normal(1, 2, 6, 7, 5), normal(2, 3, 3, 5, 6), normal(3, 6)
    with use_precision(policy):
        y = tensor.plain_forward((cp.asarray(x),), cp.asarray(w), cp.asarray(b), SAME3)
    x, w = rounded(x, policy), rounded(w, policy)
    check(
        y,
        naive_forward(x, w, b, SAME3),
        reference.conv2d_forward((x.astype(np.float64),), w.astype(np.float64), b, SAME3),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_matmul(cp, policy: str) -> None:
    a, b = normal(1, 70, 33), normal(2, 33, 41)
    with use_precision(policy):
        y = tensor.matmul(cp.asarray(a), cp.asarray(b))
    a, b = rounded(a, policy), rounded(b, policy)
    check(y, sequential(a, b), a.astype(np.float64) @ b.astype(np.float64))


def test_the_filter_gradient_has_the_same_bits_every_time(cp, served, monkeypatch) -> None:
    monkeypatch.setattr(tensor, "BLOCKS", 16)
    x, dy = cp.asarray(normal(1, 4, 16, 18, 8)), cp.asarray(normal(2, 4, 16, 18, 12))
    with use_precision("bf16"):
        first, second = (tensor.conv2d_backward_filter((x,), dy, SAME3).get() for _ in range(2))
    assert served[0].grid[1] > 1
    assert served[1].kernel == "add_parts"
    assert (first.view(np.uint32) == second.view(np.uint32)).all()


def test_float16_overflows_to_infinity_and_bfloat16_does_not(cp) -> None:
    x, w = cp.full((1, 1, 1, 4), 1e5, "f"), cp.ones((1, 1, 4, 4), "f")
    with use_precision("float16"):
        assert np.isinf(tensor.conv2d_forward((x,), w, None, Window((1, 1))).get()).all()
    with use_precision("bf16"):
        assert np.isfinite(tensor.conv2d_forward((x,), w, None, Window((1, 1))).get()).all()


def test_what_is_not_served_is_left_to_others(cp, served, monkeypatch) -> None:
    x, w, dy = cp.zeros((1, 4, 4, 4), "f"), cp.zeros((3, 3, 4, 4), "f"), cp.zeros((1, 4, 4, 4), "f")

    def answers(x, w, dy, groups=1):
        yield tensor.conv2d_forward((x,), w, None, SAME3, groups)
        yield tensor.conv2d_backward_data(dy, w, (4, 4), SAME3, groups)
        yield tensor.conv2d_backward_filter((x,), dy, SAME3, groups)
        yield tensor.conv_transpose2d_forward(x, w, None, (4, 4), SAME3, groups)
        yield tensor.conv_transpose2d_backward_data(dy, w, SAME3, groups)
        yield tensor.conv_transpose2d_backward_filter(x, dy, SAME3, groups)

    with use_precision("float32"):
        assert all(y is NotImplemented for y in answers(x, w, dy))
    with use_precision("tf32"):
        assert all(y is NotImplemented for y in answers(*(a.astype(np.float64) for a in (x, w, dy))))
        assert all(y is NotImplemented for y in answers(x, w[:, :, :2], dy, 2))
        assert all(y is NotImplemented for y in answers(x[:0], w, dy[:0]))
        assert (
            tensor.conv2d_forward((cp.zeros((1, 1, 2**15, 4), "f"),), w[:1, :1], None, Window((1, 1))) is NotImplemented
        )
        assert tensor.matmul(x[0, 0].astype(np.float64), w[0, 0]) is NotImplemented
        monkeypatch.setattr(tensor, "device_limits", lambda: (40, 65536, 75))
        assert all(y is NotImplemented for y in answers(x, w, dy))
    assert not served


def test_inputs_may_be_views_and_are_not_changed(cp) -> None:
    x, w = cp.asarray(normal(1, 2, 9, 9, 9))[:, ::2, :, 1:6], cp.asarray(normal(2, 3, 3, 7, 5)).swapaxes(2, 3)
    before = x.get(), w.get()
    with use_precision("tf32"):
        y = tensor.conv2d_forward((x,), w, None, SAME3)
        z = tensor.conv2d_forward((cp.ascontiguousarray(x),), cp.ascontiguousarray(w), None, SAME3)
    assert (y.get() == z.get()).all()
    assert (x.get() == before[0]).all()
    assert (w.get() == before[1]).all()


# -- launch geometry, without a device --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tensor.KINDS)
def test_launches_cover_the_result_with_known_kernels(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        pixels, depth, k = (int(2 ** rng.uniform(0, top)) for top in (18, 12, 9))
        v = tensor.RUN[kind] if k % tensor.RUN[kind] == 0 and depth % tensor.RUN[kind] == 0 else 1
        launch = tensor.forward_launch(kind, pixels, k, v)
        rows, columns, threads = tensor.TILES[launch.kernel.split(", ")[1]]
        assert launch.kernel in tensor.MODULE.instances
        assert launch.block == (threads,)
        assert launch.grid == (-(-pixels // rows) * -(-k // columns),)
        assert launch.shared <= 99 * 1024  # the least that 8.0 and later offer
        launch, addition, run = tensor.filter_launches(kind, pixels, depth, k, v)
        assert launch.kernel in tensor.FILTER_MODULE.instances
        assert launch.shared <= 99 * 1024
        assert run % tensor.DEPTH == 0
        assert run <= tensor.LONGEST
        assert launch.grid[1] * run >= pixels > (launch.grid[1] - 1) * run
        assert (addition is None) == (launch.grid[1] == 1)


def test_phases_name_every_tap_of_every_pixel_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, kernel, stride, before, dilation = (int(rng.integers(low, 6)) for low in (1, 1, 1, 0, 1))
        reached = [(h, r) for h in range(size) for r in range(kernel) if (h + before - r * dilation) % stride == 0]
        meant = {(h, r, (h + before - r * dilation) // stride) for h, r in reached}
        got = set()
        pixels = set()
        for phase in tensor.phases(size, kernel, stride, before, dilation):
            taps = list(range(kernel))[phase.taps][::-1]
            assert len(taps) == phase.length
            for a in range(phase.count):
                h = phase.first + a * stride
                assert h not in pixels
                pixels.add(h)
                got |= {(h, r, a - phase.before + u * phase.dilation) for u, r in enumerate(taps)}
        assert got == meant
        assert pixels == set(range(size))


# -- memory traffic (trace) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("k", [32, 64, 128])
def test_memory_traffic_is_below_the_stated_ceilings(cp, counted, big_tiles, policy: str, k: int) -> None:
    x, w = cp.asarray(normal(1, 2, 8, 16, 32)), cp.asarray(normal(2, 3, 3, 32, k))
    with use_precision(policy), counted() as report:
        y = tensor.conv2d_forward((x,), w, None, SAME3)
        tensor.conv2d_backward_filter((x,), y, SAME3)
    assert_below_ceilings(report)


# -- planted mistakes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """Forward and filter gradient of a shape under a policy (or its memory traffic):
    what a mistake is looked for with.
    """

    shape: Shape
    policy: str
    traffic: bool = False

    def instances(self, whole: module.Module) -> list[str]:
        """The one kernel that is needed, so that little is compiled."""
        v = 1 if self.shape.c % 4 else 4
        return [
            i for i in whole.instances if i == "add_parts" or i.endswith(f"<{tensor.TYPES[self.policy]}, Small, {v}>")
        ]

    def run(self, cp, counted) -> None:
        if self.traffic:
            test_memory_traffic_is_below_the_stated_ceilings(cp, counted, None, self.policy, 32)
        else:
            run_forward(cp, self.shape, self.policy)
            run_filter(cp, self.shape, self.policy)


ODD, EVEN = Shape(2, (9, 8), 5, 7, SAME3), Shape(2, (9, 8), 12, 20, SAME3)
PARTS = Shape(4, (16, 18), 8, 12, SAME3, bias=False)
# (name, old, new, the mode in which it is caught (trace sees what check sees), test)
MUTANTS = [
    (
        "fragments of A swapped",
        '"r"(a[0]), "r"(a[1]), "r"(a[2])',
        '"r"(a[0]), "r"(a[2]), "r"(a[1])',
        "check",
        Planted(EVEN, "tf32"),
    ),
    ("rows of B by the wrong lanes", "n + lane / 4 + j * 8", "n + lane / 8 + j * 8", "check", Planted(EVEN, "tf32")),
    (
        "halves of B swapped",
        "b[0][1] = r[1], b[1][0] = r[2]",
        "b[0][1] = r[2], b[1][0] = r[1]",
        "check",
        Planted(EVEN, "bf16"),
    ),
    (
        "matrices of A in the wrong order",
        "k + lane / 16 * 8 + lane % 8, m + lane / 8 % 2 * 8",
        "k + lane / 8 % 2 * 8 + lane % 8, m + lane / 16 * 8",
        "check",
        Planted(EVEN, "float16"),
    ),
    (
        "nobody waits for the copies",
        "if constexpr (Feed::ASYNCHRONOUS) cp_async_arrived();",
        "",
        "check",
        Planted(EVEN, "tf32"),
    ),
    (
        "no barrier between the rounds",
        "cp_async_arrived();\n    __syncthreads();",
        "cp_async_arrived();",
        "trace",
        Planted(EVEN, "tf32"),
    ),
    ("one stage instead of two", "shared + i % 2 *", "shared + 0 *", "check", Planted(EVEN, "bf16")),
    ("the right edge is not looked at", " || (unsigned)w >= (unsigned)g.w", "", "check", Planted(EVEN, "tf32")),
    ("the last row of pixels is not looked at", "if (m >= end)", "if (m > end)", "check", Planted(EVEN, "bf16")),
    ("columns beyond the filter are read", "inside && row < rows", "row < rows", "check", Planted(ODD, "float16")),
    (
        "results beyond the last pixel are stored",
        "if (at < 0 || col >= k)",
        "if (col >= k)",
        "check",
        Planted(EVEN, "tf32"),
    ),
    (
        "the last column is stored twice",
        "const bool both = V == 4 || col + 1 < k;",
        "const bool both = true;",
        "check",
        Planted(ODD, "tf32"),
    ),
    ("bf16 cuts off", "cvt.rn.bf16x2.f32", "cvt.rz.bf16x2.f32", "check", Planted(EVEN, "bf16")),
    (
        "neighbours change places",
        '"=r"(both) : "f"(high), "f"(low)',
        '"=r"(both) : "f"(low), "f"(high)',
        "check",
        Planted(EVEN, "float16"),
    ),
    ("taps move without the row", "tw = 0, th += g.dh", "tw = 0", "check", Planted(EVEN, "tf32")),
    (
        "the first part is lost",
        "for (int k = 0; k < parts",
        "for (int k = 1; k < parts",
        "check",
        Planted(PARTS, "bf16"),
    ),
    (
        "the table of pixels stays behind",
        "write_table(chunk + 1)",
        "write_table(chunk)",
        "check",
        Planted(EVEN, "tf32"),
    ),
    (
        "vectors are not permuted",
        "const int swizzle = ",
        "const int swizzle = 0 * ",
        "trace",
        Planted(EVEN, "tf32", traffic=True),
    ),
]


@pytest.mark.parametrize("check", sorted({mutant[4] for mutant in MUTANTS}, key=repr), ids=repr)
def test_what_catches_mistakes_passes_without_them(cp, check) -> None:
    emulator = sys.modules.get("cupy_on_cpu")
    if emulator is None or (check.traffic and emulator.mode() != "trace"):
        pytest.skip("needs the emulator, in trace mode for counters")
    with emulator.collect() as report:
        check.run(cp, emulator.collect)
    report.assert_clean()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m[0])
def test_planted_mistakes_are_caught(cp, monkeypatch, request, mutant) -> None:
    name, old, new, mode, planted = mutant
    emulator = sys.modules.get("cupy_on_cpu")
    if emulator is None or emulator.mode() not in (mode, "trace"):
        pytest.skip(f"needs the emulator's {mode} mode")
    monkeypatch.setattr(module, "registry", dict(module.registry))
    source_of, changed = module.source_of, []
    for attribute in ("MODULE", "FILTER_MODULE"):
        whole = getattr(tensor, attribute)
        if old in source_of(whole.path):
            changed.append(whole.path)
            monkeypatch.setattr(tensor, attribute, module.Module(whole.path, planted.instances(whole)))
    assert changed, f"{name}: its text is no longer there"
    monkeypatch.setattr(module, "source_of", lambda path: source_of(path).replace(old, new))
    with pytest.raises(AssertionError):  # noqa: PT012 - wrong numbers or a finding, either will do
        with emulator.collect() as report:
            planted.run(cp, emulator.collect)
        report.assert_clean()
