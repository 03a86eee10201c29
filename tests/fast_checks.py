"""A compact check of every family of fast CPU kernels, on fixed odd shapes. Each returns the results, for comparisons bit by bit.

They are run as they are, with 1, 2 and 4 threads, at every vector width, and against planted mistakes:
    python tests/fast_checks.py conv_direct/forward max_pool ...       (exit code 1 and the message of the first that fails)
Convolutions may be restricted to one of forward, data and filter.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from fast_rule import agree, agree_together, algorithm, array, flat, judge, left_to_right_data, plain, widened

from kernels import attention, augment, conv, gate, loss, norm, optimizer, pointwise, pool, resample, shape
from kernels.core import threads
from kernels.core.dispatch import kernel_log
from kernels.core.geometry import Window

# The stated largest errors of Winograd (kernels/conv/winograd_programs.py), relative to the largest output, per (m, r).
WINOGRAD = {(4, 3): 2e-5, (2, 3): 1e-6, (2, 5): 2e-5}

ALL = ("forward", "data", "filter")
STEPS = ALL  # of convolutions; narrowed by the command line
CHECKS: dict[str, Callable[[], Any]] = {}
SAME = ((1, 1), (1, 1))


def check(function: Callable[[np.random.Generator], Any]) -> Callable[[], Any]:
    """Register a check under its name; it gets a generator of its own."""

    def run() -> Any:
        return function(np.random.default_rng(7))

    CHECKS[function.__name__] = run
    return run


def convolution(rng, n: int, h: int, w: int, c: int, k: int, window: Window, groups: int = 1, winograd: float | None = None) -> list[Any]:
    """Forward, data gradient and filter gradient of one convolution."""
    x, filters, bias = array(rng, n, h, w, c), array(rng, *window.kernel, c // groups, k), array(rng, 1, k)[0]
    dy, out = array(rng, n, *window.output_size((h, w)), k), []
    if "forward" in STEPS:
        out.append(agree(conv.conv2d_forward, x, filters, bias, window, groups, winograd=winograd))
    if "data" in STEPS:
        out.append(agree(conv.conv2d_backward_data, dy, filters, (h, w), window, groups, winograd=winograd))
    if "filter" in STEPS:
        out.append(agree(conv.conv2d_backward_filter, x, dy, window, groups, winograd=winograd))
    return out


@check
def conv_direct(rng) -> Any:
    """Rows and columns of tiles with remainders, padding on all sides, a tail of channels."""
    with algorithm("direct"):
        return convolution(rng, 2, 7, 29, 5, 11, Window((3, 3), (1, 1), ((1, 2), (2, 0))))


@check
def conv_direct_strided(rng) -> Any:
    """Different strides and dilations for rows and columns; phases of the data gradient."""
    with algorithm("direct"):
        return convolution(rng, 2, 11, 13, 5, 11, Window((3, 2), (2, 3), ((1, 0), (2, 1)), (1, 2)))


@check
def conv_direct_grouped(rng) -> Any:
    """Three groups of three channels."""
    with algorithm("direct"):
        return convolution(rng, 2, 6, 7, 9, 33, Window((3, 3), (1, 1), SAME), 3)


@check
def conv_many_chunks(rng) -> Any:
    """Several strips per image and several chunks of the filter gradient."""
    with algorithm("direct"):
        return convolution(rng, 3, 41, 23, 61, 11, Window((3, 3), (1, 1), SAME))


@check
def conv_pointwise(rng) -> Any:
    """1x1: whole rows of pixels and a rest."""
    with algorithm("direct"):
        return convolution(rng, 3, 9, 31, 13, 11, Window((1, 1)))


@check
def conv_transpose(rng) -> Any:
    """Transposed, 2x2 with stride 2, and its gradients."""
    window = Window((2, 2), (2, 2))
    x, w, b = array(rng, 2, 7, 6, 9), array(rng, 2, 2, 9, 11), array(rng, 1, 11)[0]
    with algorithm("direct"):
        y = agree(conv.conv_transpose2d_forward, x, w, b, (14, 12), window)
        dy = array(rng, *y.shape)
        dx = agree(conv.conv_transpose2d_backward_data, dy, w, window)
        return [y, dx, agree(conv.conv_transpose2d_backward_filter, x, dy, window)]


@check
def conv_winograd4(rng) -> Any:
    """F(4x4, 3x3): border tiles, cut output tiles, tails."""
    with algorithm("winograd4"):
        return convolution(rng, 2, 11, 14, 7, 11, Window((3, 3), (1, 1), ((1, 0), (2, 1))), winograd=WINOGRAD[4, 3])


@check
def conv_winograd2(rng) -> Any:
    """F(2x2, 3x3), dilated: interleaved problems."""
    with algorithm("winograd2"):
        return convolution(rng, 2, 9, 10, 7, 11, Window((3, 3), (1, 1), ((2, 2), (2, 1)), (2, 2)), winograd=WINOGRAD[2, 3])


@check
def conv_depthwise(rng) -> Any:
    """One filter per channel: a border all around; strided; several strips, dilated, with borders that differ."""
    layers = [
        ((2, 9, 11), Window((3, 3), (1, 1), SAME)),
        ((2, 9, 23), Window((3, 3), (2, 2), ((0, 1), (1, 2)))),
        ((1, 70, 50), Window((3, 2), (1, 1), ((3, 1), (0, 4)), (2, 3))),
    ]
    return [convolution(rng, *size, 21, 21, window, 21) for size, window in layers]


def stem_norm(rng, size: tuple[int, int, int], k: int, window: Window) -> list[np.ndarray]:
    """A convolution of one channel and the batch norm behind it: mean and variance are those of the very z, to the accuracy of float32 sums."""
    x, w = array(rng, *size, 1), array(rng, *window.kernel, 1, k)
    vectors = [np.full(k, value, np.float32) for value in (1, 0, 0, 1)]
    with kernel_log() as log:
        y, z, _, mean, inverse = conv.conv2d_norm_forward(x, w, *vectors, 0.1, 1e-5, None, "relu", window, 1)
    assert {entry.by for entry in log} == {"fast"}
    rows = z.reshape(-1, k).astype(np.float64)
    scale = np.sqrt((rows**2).mean(0))
    assert (np.abs(mean - rows.mean(0)) <= 1e-6 * scale).all(), "mean"
    assert (np.abs(1 / inverse**2 - 1e-5 - rows.var(0)) <= 1e-5 * scale**2).all(), "variance"
    return [y, z, mean, inverse]


@check
def conv_stem(rng) -> Any:
    """One input channel: tiles at both borders, rests of pixels and of channels, several strips and pieces of rows; into what is there."""
    layers = [
        ((2, 9, 24), 11, Window((3, 3), (1, 1), SAME)),
        ((1, 61, 70), 32, Window((3, 3), (1, 1), ((1, 2), (2, 0)))),
        ((2, 5, 3), 21, Window((2, 3), (1, 1), ((0, 2), (2, 2)))),
    ]
    out = []
    for size, k, window in layers:
        out += convolution(rng, *size, 1, k, window)
        dy, w = array(rng, size[0], *window.output_size(size[1:]), k), array(rng, *window.kernel, 1, k)
        if "data" in STEPS:
            into = (array(rng, *size, 1),)
            out.append(agree(conv.conv2d_backward_data, dy, w, size[1:], window, 1, None, into, inplace=(6,)))
        if "forward" in STEPS:
            out.append(agree(conv.conv2d_forward, array(rng, *size, 1), w, array(rng, 1, k)[0], window, 1, True, dy))
            out.append(stem_norm(rng, size, k, window))
    return [*out, stem_norm(rng, (1, 2, 1100), 11, Window((3, 3), (1, 1), SAME))] if "forward" in STEPS else out


def norm_gradients(
    rng, size: tuple[int, int, int], channels: tuple[int, ...], k: int, window: Window, norm_: tuple[str | None, bool], into: bool, winograd=None
) -> list[Any]:
    """The gradients of a convolution of maps with so many channels and of the batch norm behind it; norm_: its activation, with a residual or not.

    dy is 0 where y is near the ReLU's kink: there the gradient is a matter of rounding.
    """
    activation, residual = norm_
    maps = tuple(array(rng, *size, c) for c in channels)
    x, w = maps if len(maps) > 1 else maps[0], array(rng, *window.kernel, sum(channels), k)
    z = array(rng, size[0], *window.output_size(size[1:]), k) + np.float32(2)
    weight, bias, dy = array(rng, 1, k)[0], array(rng, 1, k)[0], array(rng, *z.shape)
    mean, variance = norm.batch_norm_statistics.reference(np.float64(z))
    vectors = weight, bias, mean, 1 / np.sqrt(variance + 1e-5)
    other = array(rng, *z.shape) if residual else None
    masks = [norm.batch_norm_forward(z, *vectors, other, activation)[1]]
    masks += [norm.batch_norm_forward.reference(*widened((z, *vectors, other)), activation)[1]] * 2
    if activation:
        y, _ = norm.batch_norm_forward.reference(*widened((z, *vectors, other)))
        dy[np.abs(y) < 1e-3] = 0
    totals = tuple(array(rng, *m.shape) for m in maps) if into else (None,) * len(maps)
    results, rest = [], (activation, residual, window, 1)
    for kind, mask in zip((copy.deepcopy, plain, widened), masks, strict=True):
        given = (*kind((dy, x, w, z)), mask, *kind(vectors), *rest, kind(totals), False)
        if kind is copy.deepcopy:
            with kernel_log() as log:
                results.append(conv.conv2d_norm_backward(*given))
            assert {entry.by for entry in log} == {"fast"}
        else:
            steps = norm.batch_norm_backward.reference, conv.conv2d_backward_filter.reference, left_to_right_data
            results.append(conv.conv2d_norm_backward.reference(*given, steps=steps))
    judge("conv2d_norm_backward: vectors and residual", *((r[1:4]) for r in results))
    judge("conv2d_norm_backward: filter and maps", *((r[0], r[4]) for r in results), winograd=winograd)
    return results[0]


@check
def norm_gradients_pointwise(rng) -> Any:
    """1x1: one map and several, tails of channels and pixels, several strips and chunks; all forms of the norm."""
    forms = [(("relu", False), False), (("relu", True), True), ((None, False), True), ((None, True), False)]
    out = [norm_gradients(rng, (2, 9, 31), (13,), 11, Window((1, 1)), *form) for form in forms]
    out.append(norm_gradients(rng, (3, 17, 23), (5, 16, 3), 21, Window((1, 1)), ("relu", False), True))
    return [*out, norm_gradients(rng, (1, 20, 30), (90, 70), 70, Window((1, 1)), ("relu", False), False)]


@check
def norm_gradients_winograd(rng) -> Any:
    """Dense 3x3 and 5x5: border tiles, strips that take over rows, several blocks, paddings that differ, two maps."""
    out = []
    with algorithm("winograd4"):
        for form in ((("relu", False), False), (("relu", True), True)):
            for channels in ((7,), (5, 9)):
                window = Window((3, 3), (1, 1), ((1, 0), (2, 1)))
                out.append(norm_gradients(rng, (2, 14, 11), channels, 11, window, *form, winograd=WINOGRAD[4, 3]))
        out.append(norm_gradients(rng, (1, 67, 41), (21,), 6, Window((3, 3), (1, 1), SAME), (None, False), False, winograd=WINOGRAD[4, 3]))
    with algorithm("winograd2"):
        window = Window((5, 5), (1, 1), ((2, 2), (2, 2)))
        return [*out, norm_gradients(rng, (2, 9, 8), (6,), 5, window, ("relu", False), True, winograd=WINOGRAD[2, 5])]


@check
def max_pool(rng) -> Any:
    """Overlapping 3x3 with a border; 2x2 apart; strided and dilated; with and without `into`."""
    out = []
    windows = [
        (Window((3, 3), (1, 1), SAME), (6, 9)),
        (Window((2, 2), (2, 2)), (6, 10)),
        (Window((2, 3), (2, 1), ((1, 0), (1, 2))), (7, 8)),
    ]
    for window, size in windows:
        x = array(rng, 2, *size, 21).round(1)  # with ties
        y, offset = agree(pool.max_pool2d_forward, x, window)
        dy = array(rng, *y.shape)
        total = array(rng, *x.shape)
        out += [y, offset, agree(pool.max_pool2d_backward, dy, offset, size, window)]
        out.append(agree(pool.max_pool2d_backward, dy, offset, size, window, total, inplace=(4,)))
    return out


def normalisation(rng, channels: int, size: tuple[int, ...], residual: bool, activation: str | None, training: bool, view: bool = False) -> list[Any]:
    """Statistics, forward and backward of a batch norm. The reference's mask is the truth: what is compared is compared where both agree."""
    x = array(rng, *size, channels, view=view) + np.float32(3)
    weight, bias = array(rng, 1, channels)[0], array(rng, 1, channels)[0]
    mean, variance = agree(norm.batch_norm_statistics, x)
    inverse = 1 / np.sqrt(variance + 1e-5)
    other = array(rng, *size, channels, view=view) if residual else None
    # Nothing near the ReLU's kink: there the sign of y, and so the gradient, is a matter of rounding.
    y64 = norm.batch_norm_forward.reference(*(np.float64(a) for a in (x, weight, bias)), mean, inverse, None if other is None else np.float64(other))[
        0
    ]
    x = np.where(np.abs(y64) < 1e-3, x + np.float32(0.05), x)
    mean, variance = agree(norm.batch_norm_statistics, x)
    inverse = 1 / np.sqrt(variance + 1e-5)
    results = [operator_results(norm.batch_norm_forward, (x, weight, bias, mean, inverse, other, activation))]
    (y, mask), (_, plain), (_, wide) = results[0]
    judge_first(norm.batch_norm_forward.name, results[0])
    dy = array(rng, *size, channels)
    operator = norm.batch_norm_backward
    tail = (weight, bias, mean, inverse, training, activation, residual)
    got = operator(dy, x, mask, *tail)
    naive = operator.reference(dy, x, plain, *tail)
    ref64 = operator.reference(np.float64(dy), np.float64(x), wide, *(np.float64(v) for v in (weight, bias)), *tail[2:])

    judge(operator.name, got, naive, ref64)
    return [mean, variance, y, got]


def operator_results(operator: Any, args: tuple[Any, ...]) -> list[Any]:
    """A kernel's result, the reference's in float32, and in float64."""

    return [operator(*args), operator.reference(*args), operator.reference(*widened(args))]


def judge_first(name: str, results: list[Any]) -> None:
    """The rule for the first of several results (the others are of the implementation's own form)."""

    judge(name, *(r[0] for r in results))


@check
def batch_norm(rng) -> Any:
    """Several chunks, a tail; with and without a residual; training and evaluation."""
    return [
        normalisation(rng, 13, (2, 61, 67), True, "relu", True),
        normalisation(rng, 37, (2, 7, 9), False, "relu", True),
        normalisation(rng, 5, (1, 3, 3), False, None, False),
        norm.sum_pixels(array(rng, 3, 61, 67, 13)),
    ]


def standardisation(rng, channels: int, size: tuple[int, ...], view: bool = False, mean: float = 0.0) -> list[Any]:
    """Forward and backward of a layer norm of rows around `mean`."""
    x, dy = array(rng, *size, channels, view=view), array(rng, *size, channels, view=view)
    x += np.float32(mean)
    weight, bias = array(rng, 1, channels)[0], array(rng, 1, channels)[0]
    return [agree(norm.layer_norm_forward, x, weight, bias, 1e-5), agree(norm.layer_norm_backward, dy, x, weight, 1e-5)]


@check
def layer_norm(rng) -> Any:
    """Short rows and long ones, in float64, and those between; tails; several chunks and a rest; rows far from zero."""
    sizes = [(5, (3, 61, 67), 0.0), (45, (3, 21, 23), 0.0), (45, (2, 3), 1000.0), (1100, (1, 35), 0.0), (1, (2, 5), 0.0)]
    return [standardisation(rng, channels, size, mean=mean) for channels, size, mean in sizes]


SPEC = loss.LossSpec(
    (("margin", 0.7), ("dice", 1.0), ("focal", 0.4), ("iou", 0.3), ("cross_entropy", 0.9)),
    class_weights=(0.5, 1.0, 2.0, 1.5),
    ignore_index=7,
    background="mask",
    label_smoothing=0.1,
)


def losses(rng, shape: tuple[int, ...], classes: int, spec: Any, scale: float = 1.0) -> list[Any]:
    """Value, terms and gradient of a loss."""
    z = np.float32(scale) * array(rng, *shape, classes)
    labels = rng.integers(0, classes, shape)
    labels[..., 0] = spec.ignore_index if spec.ignore_index is not None else labels[..., 0]
    results = operator_results(loss.loss_forward, (z, labels, spec))

    for k in (0, 1):
        judge(f"loss_forward {spec.terms}", *(r[k] for r in results))
    state = results[0][2]
    assert state is not None, "the reference served"
    dy = np.float32(1.7)
    got = loss.loss_backward(dy, z, labels, spec, state)
    naive, ref64 = loss.loss_backward.reference(dy, z, labels, spec, None), loss.loss_backward.reference(float(dy), np.float64(z), labels, spec, None)
    judge(f"loss_backward {spec.terms}", got, naive, ref64)
    return [results[0][0], got]


@check
def loss_terms(rng) -> Any:
    """All terms, several chunks and a rest."""
    return losses(rng, (3, 61, 67), 4, SPEC)


@check
def gates(rng) -> Any:
    """Several blocks of pixels and a rest; a tail of channels."""
    x, z = array(rng, 2, 17, 31, 21), 3 * array(rng, 2, 17, 31, 1)
    return [agree(gate.gate_forward, x, z), agree(gate.gate_backward, array(rng, *x.shape), x, z)]


def polarized_operands(rng, branch: str, n: int, pixels: int, c: int, h: int) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """dy, x and the weights of a branch of polarized attention; eps where it has one."""
    shapes = [(c,), (c, h), (h,), (h, c), (c,), (c,), (c,)] if branch == "channel" else [(c, h), (h,), (c, h), (h,)]
    scales = [c**-0.5] * 4 + [1] * 3
    weights = [array(rng, 1, *shape)[0] * np.float32(scale) for shape, scale in zip(shapes, scales, strict=False)]
    return [array(rng, n, pixels, c), array(rng, n, pixels, c), *weights], (1e-5,) if branch == "channel" else ()


def polarized(rng, branch: str, n: int, pixels: int, c: int, h: int, draws: int = 6) -> list[Any]:
    """One branch, forward and backward."""
    given = [polarized_operands(rng, branch, n, pixels, c, h) for _ in range(draws)]
    forward, backward = (getattr(attention, f"polarized_{branch}_{step}") for step in ("forward", "backward"))
    return [agree_together(forward, [(*some[1:], *eps) for some, eps in given]), agree_together(backward, [(*some, *eps) for some, eps in given])]


@check
def polarized_attention(rng) -> Any:
    """Tails of pixels, channels and inner channels; two chunks of the parameters' sums."""
    return [polarized(rng, branch, *size) for branch in ("channel", "spatial") for size in ((3, 21, 61, 37), (2, 7, 5, 2))]


@check
def activations(rng) -> Any:
    """ReLU over two chunks and a rest, GELU's gradient, dropout."""
    x, dy = array(rng, 2, 53, 47, 29), array(rng, 2, 53, 47, 29)
    return [
        agree(pointwise.relu_forward, x),
        agree(pointwise.relu_backward, dy, x),
        agree(pointwise.gelu_backward, dy, x),
        agree(pointwise.dropout_forward, x, 0.3, 12345678901, 2**33 + 5),
    ]


@check
def resampling(rng) -> Any:
    """Bilinear up and average down, and their gradients."""
    up, down = resample.bilinear_matrix(5, 11, False), resample.adaptive_matrix(7, 3)
    x = array(rng, 3, 5, 7, 21)
    y = agree(resample.resample2d_forward, x, up, down)
    return [y, agree(resample.resample2d_backward, array(rng, *y.shape), up, down)]


@check
def channels(rng) -> Any:
    """Concatenation, its undoing and sums in place."""
    parts = [array(rng, 2, 31, 47, c) for c in (3, 8, 21)]
    repeated = agree(shape.concat_channels, [parts[0], np.broadcast_to(array(rng, 2, 1, 47, 13), (2, 31, 47, 13))])
    wide = agree(shape.concat_channels, parts)
    back = agree(shape.split_channels, wide, (3, 8, 21))
    total = parts[2].copy()
    agree(shape.accumulate, total, back[2], inplace=(0,))
    shape.accumulate(total, back[2])
    total = agree(shape.added, total, parts[2])
    return [repeated, wide, back, total]


@check
def adamw(rng) -> Any:
    """Two chunks and a rest, with the moving average; the gradient's norm."""
    n = 2 * 65_536 + 21
    vectors = [array(rng, 1, n)[0] for _ in range(6)]
    vectors[3], vectors[4] = np.abs(vectors[3]), np.abs(vectors[4]) * np.float32(0.1)
    settings = {"step": 3, "learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "clip": 0.7, "average_decay": 0.95}
    agree(optimizer.adamw_step, *vectors, inplace=(0, 2, 3, 5), **settings)
    optimizer.adamw_step(*vectors, **settings)
    return [vectors, agree(optimizer.squared_norm, vectors[1])]


@check
def gathering(rng) -> Any:
    """More gradients than a launch takes; long ones, one with its axes swapped, one missing."""
    parts = [array(rng, 3, 41, 7 * k + 1) for k in range(34)] + [array(rng, 2, 90, 210).swapaxes(1, 2), None]
    sizes = [400 if part is None else part.size for part in parts]
    offsets = [sum(sizes[:k]) + k for k in range(len(sizes))]
    out = array(rng, 1, sum(sizes) + len(sizes))[0]
    agree(optimizer.gather, parts, out, offsets, sizes, inplace=(1,))
    optimizer.gather(parts, out, offsets, sizes)
    return [out]


@check
def augmentation(rng) -> Any:
    """Rotations about the centre, out of the tile and back; tiles of one row, whose neighbours in memory are other tiles."""
    out = []
    for n, h, w in ((5, 13, 22), (3, 1, 9)):
        images, masks = rng.random((n, h, w)).astype(np.float32), rng.integers(0, 5, (n, h, w)).astype(np.uint8)
        angle, scale = rng.uniform(-3, 3, n), rng.uniform(0.7, 1.4, n)
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        matrices = np.stack([np.stack([c, -s, w / 2 - c * w / 2 + s * h / 2], 1), np.stack([s, c, h / 2 - s * w / 2 - c * h / 2], 1)], 1)
        settings = [rng.uniform(low, high, n).astype(np.float32) for low, high in ((0.7, 1.3), (-0.2, 0.2), (0.7, 1.4))]
        out += [agree(augment.augment_batch, images, masks, matrices, *settings, outside) for outside in (None, 0, 255)]
    return out


def arrays_of(name: str) -> list[np.ndarray]:
    """The results of a check."""
    return flat(CHECKS[name]())


if __name__ == "__main__":
    team = threads.current_team()
    team.reserve(1 << 20)
    team.scratch.fill(np.nan)  # a kernel that reads what it has not written must not pass because there happen to be zeros
    for given in sys.argv[1:]:
        name, _, step = given.partition("/")
        STEPS = (step,) if step else ALL
        CHECKS[name]()
    print("passed", *sys.argv[1:])
