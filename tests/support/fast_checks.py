"""A compact check of every family of fast CPU kernels, on fixed odd shapes. Each returns the results, for comparisons
bit by bit.

They are run as they are, with 1, 2 and 4 threads, at every vector width, and against planted mistakes:
    python -m tests.support.fast_checks conv_direct/forward max_pool ...       (exit code 3 where one differs)
Convolutions may be restricted to one of forward, data and filter.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from kernels import attention, augment, gate, loss, norm, optimizer, pointwise, pool, resample, shape
from kernels.core.cpu import thread_pool
from kernels.core.dispatch import kernel_log
from kernels.core.geometry import Window
from kernels.norm.records import SavedBatchNorm
from tests.support import conv_checks
from tests.support.attention_masks import masks
from tests.support.conv_checks import ALL, CHECKS, SAME, check
from tests.support.fast_rule import agree, agree_together, array, flat, judge, outcomes, widened

FAILED = 3  # the exit code of a failed comparison


@check
def max_pool(rng) -> Any:
    """Overlapping 3x3 with a border; 2x2 apart; strided and dilated; with and without `accumulate_into`."""
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


def normalisation(
    rng,
    channels: int,
    size: tuple[int, ...],
    residual: bool,
    activation: str | None,
    training: bool,
    view: bool = False,
) -> list[Any]:
    """Statistics, forward and backward of a batch norm. The reference's mask is the truth: what is compared is compared
    where both agree.
    """
    x = array(rng, *size, channels, view=view) + np.float32(3)
    weight, bias = array(rng, 1, channels)[0], array(rng, 1, channels)[0]
    mean, variance = agree(norm.batch_norm_statistics, x)
    inverse = 1 / np.sqrt(variance + 1e-5)
    other = array(rng, *size, channels, view=view) if residual else None
    # Nothing near the ReLU's kink: there the sign of y, and so the gradient, is a matter of rounding.
    y64 = norm.batch_norm_forward.reference(
        *(np.float64(a) for a in (x, weight, bias)), mean, inverse, None if other is None else np.float64(other)
    )[0]
    x = np.where(np.abs(y64) < 1e-3, x + np.float32(0.05), x)
    mean, variance = agree(norm.batch_norm_statistics, x)
    inverse = 1 / np.sqrt(variance + 1e-5)
    results = [operator_results(norm.batch_norm_forward, (x, weight, bias, mean, inverse, other, activation))]
    (y, mask), (_, plain), (_, wide) = results[0]
    judge_first(norm.batch_norm_forward.name, results[0])
    dy = array(rng, *size, channels)
    operator = norm.batch_norm_backward
    saved = SavedBatchNorm(mask, weight, bias, mean, inverse, activation)
    got = operator(dy, x, saved, training, residual)
    naive = operator.reference(dy, x, saved._replace(mask=plain), training, residual)
    wider = saved._replace(mask=wide, weight=np.float64(weight), bias=np.float64(bias))
    ref64 = operator.reference(np.float64(dy), np.float64(x), wider, training, residual)

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
    sizes = [
        (5, (3, 61, 67), 0.0),
        (45, (3, 21, 23), 0.0),
        (45, (2, 3), 1000.0),
        (1100, (1, 35), 0.0),
        (1, (2, 5), 0.0),
    ]
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
    naive, ref64 = (
        loss.loss_backward.reference(dy, z, labels, spec, None),
        loss.loss_backward.reference(float(dy), np.float64(z), labels, spec, None),
    )
    judge(f"loss_backward {spec.terms}", got, naive, ref64)
    return [results[0][0], got]


@check
def loss_terms(rng) -> Any:
    """All terms, several chunks and a rest."""
    return losses(rng, (3, 61, 67), 4, SPEC)


def gating(rng, size: tuple[int, ...], gates: int, view: bool = False) -> list[Any]:
    """Gates and blends, so many gates per pixel."""
    x, other, dy = (array(rng, *size, view=view) for _ in range(3))
    z = 3 * array(rng, *size[:-1], gates, view=view)
    some = [agree(gate.gate_forward, x, z), agree(gate.gate_backward, dy, x, z)]
    return [*some, agree(gate.blend_forward, x, other, z), agree(gate.blend_backward, dy, x, other, z)]


@check
def gates(rng) -> Any:
    """One per pixel: several blocks of pixels and a rest, a tail of channels. One per channel: a block and a rest."""
    return [gating(rng, (2, 17, 31, 21), 1), gating(rng, (1, 23, 29, 5), 5)]


@check
def softmaxes(rng) -> Any:
    """Several chunks of rows; rows of whole vectors, with a tail, shorter than a vector."""
    return [softmax_of(rng, *size) for size in ((3, 47, 67, 21), (5, 64), (2, 3, 5), (7, 1))]


def distances(rng, size, classes: int, share: float, background: str) -> Any:
    """Signed distances; share: of the pixels that are of class 0. Some of the labels are ignored."""
    labels = np.where(rng.random(size) < share, 0, rng.integers(0, classes, size))
    labels[rng.random(size) < 0.1] = 255
    with kernel_log() as log:
        got = loss.signed_distances(labels, classes, background, 255, "float32")
    assert log[-1].by == "fast"
    want = loss.signed_distances.reference(labels, classes, background, 255, "float64")
    assert got.dtype == np.float32
    assert (np.abs(got - want) <= 2.0**-23 * (1 + np.abs(want))).all(), np.abs(got - want).max()
    return got


@check
def boundary_distances(rng) -> Any:
    """Rows and columns of one pixel, tails, several images; classes that an image lacks."""
    return [distances(rng, size, 4, 0.6, "mask") for size in ((2, 21, 37), (3, 1, 19), (1, 23, 1), (1, 1, 1))]


def softmax_of(rng, *size: int, view: bool = False, draws: int = 6) -> list[Any]:
    """Softmax and its logarithm, forward and backward. A row's gradient hangs on one sum, so the gradients of some
    draws are judged as one.
    """
    given = [(3 * array(rng, *size, view=view), array(rng, *size, view=view)) for _ in range(draws)]
    probabilities = [agree(pointwise.softmax_forward, x, -1) for x, _ in given]
    logarithms = [agree(pointwise.log_softmax_forward, x, len(size) - 1) for x, _ in given]
    out = [probabilities[0], logarithms[0]]
    for backward, ys in ((pointwise.softmax_backward, probabilities), (pointwise.log_softmax_backward, logarithms)):
        out.append(agree_together(backward, [(dy, y, -1) for (_, dy), y in zip(given, ys, strict=True)]))
    return out


def polarized_operands(
    rng, branch: str, n: int, pixels: int, c: int, h: int
) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """dy, x and the weights of a branch of polarized attention; eps where it has one."""
    shapes = [(c,), (c, h), (h,), (h, c), (c,), (c,), (c,)] if branch == "channel" else [(c, h), (h,), (c, h), (h,)]
    scales = [c**-0.5] * 4 + [1] * 3
    weights = [array(rng, 1, *shape)[0] * np.float32(scale) for shape, scale in zip(shapes, scales, strict=False)]
    return [array(rng, n, pixels, c), array(rng, n, pixels, c), *weights], (1e-5,) if branch == "channel" else ()


def polarized(rng, branch: str, n: int, pixels: int, c: int, h: int, draws: int = 6) -> list[Any]:
    """One branch, forward and backward."""
    given = [polarized_operands(rng, branch, n, pixels, c, h) for _ in range(draws)]
    forward, backward = (getattr(attention, f"polarized_{branch}_{step}") for step in ("forward", "backward"))
    return [
        agree_together(forward, [(*some[1:], *eps) for some, eps in given]),
        agree_together(backward, [(*some, *eps) for some, eps in given]),
    ]


@check
def polarized_attention(rng) -> Any:
    """Tails of pixels, channels and inner channels; two chunks of the parameters' sums."""
    return [
        polarized(rng, branch, *size) for branch in ("channel", "spatial") for size in ((3, 21, 61, 37), (2, 7, 5, 2))
    ]


def dot_product(
    rng,
    batch: tuple[int, int],
    lengths: tuple[int, int],
    widths: tuple[int, int],
    kind: str,
    view: bool = False,
    draws: int = 4,
) -> list[Any]:
    """Forward and backward; several draws judged as one, see `agree_together`. L is inf in rows where nothing is kept,
    for everyone.
    """
    (t, k), (d, e) = lengths, widths
    mask, scale = masks(kind, *batch, t, k, rng), d**-0.5
    if mask is not None and mask.dtype != bool:
        mask = mask.astype(np.float32)
    forward, backward = [], []
    for _ in range(draws):
        q, keys, values, dy = (array(rng, *batch, *size, view=view) for size in ((t, d), (k, d), (k, e), (t, e)))
        results = [result for (result,) in outcomes(attention.attention_forward, q, keys, values, mask, scale)]
        kept = [np.isfinite(lse) for _, lse in results]
        assert all((rows == kept[2]).all() for rows in kept), "rows where nothing is kept"
        forward.append([(o, np.where(rows, lse, 0)) for (o, lse), rows in zip(results, kept, strict=True)])
        backward.append((dy, q, keys, values, *results[0], mask, scale))
    judge(
        "attention_forward",
        *([np.stack(arrays) for arrays in zip(*some, strict=True)] for some in zip(*forward, strict=True)),
    )
    return [[call[4:6] for call in backward], agree_together(attention.attention_backward, backward)]


@check
def dot_product_attention(rng) -> Any:
    """Two blocks and a rest of queries and of keys, tails of features; whole vectors of them;
    a single query and key.
    """
    return [
        dot_product(rng, (2, 2), (133, 70), (19, 33), "added"),
        dot_product(rng, (1, 3), (37, 129), (40, 17), "empty row"),
        dot_product(rng, (1, 2), (66, 65), (64, 32), "none"),
        dot_product(rng, (2, 1), (1, 1), (1, 1), "none"),
    ]


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
    vectors[3], vectors[4] = np.abs(vectors[3]), np.abs(vectors[4][: -(-n // optimizer.LINE)]) * np.float32(0.1)
    settings = {
        "step": 3,
        "learning_rate": 1e-2,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "clip": 0.7,
        "average_decay": 0.95,
    }
    agree(optimizer.adamw_step, *vectors, inplace=(0, 2, 3, 5), **settings)
    optimizer.adamw_step(*vectors, **settings)
    return [vectors, agree(optimizer.squared_norm, vectors[1])]


@check
def sgd(rng) -> Any:
    """Two chunks and a rest: momentum and Nesterov's, with the moving average."""
    out = []
    for nesterov in (False, True):
        vectors = [array(rng, 1, 2 * 65_536 + 21)[0] for _ in range(5)]
        vectors[3] = np.abs(vectors[3][: -(-len(vectors[0]) // optimizer.LINE)])
        settings = {
            "learning_rate": 0.1,
            "momentum": 0.9,
            "dampening": 0.2,
            "nesterov": nesterov,
            "clip": 0.7,
            "average_decay": 0.95,
        }
        agree(optimizer.sgd_step, *vectors, inplace=(0, 2, 4), **settings)
        optimizer.sgd_step(*vectors, **settings)
        out.append(vectors)
    return out


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
    """Rotations about the centre, out of the tile and back; tiles of one row, whose neighbours in memory are other
    tiles.
    """
    out = []
    for n, h, w in ((5, 13, 22), (3, 1, 9)):
        images, masks = rng.random((n, h, w)).astype(np.float32), rng.integers(0, 5, (n, h, w)).astype(np.uint8)
        angle, scale = rng.uniform(-3, 3, n), rng.uniform(0.7, 1.4, n)
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        matrices = np.stack(
            [np.stack([c, -s, w / 2 - c * w / 2 + s * h / 2], 1), np.stack([s, c, h / 2 - s * w / 2 - c * h / 2], 1)], 1
        )
        settings = [rng.uniform(low, high, n).astype(np.float32) for low, high in ((0.7, 1.3), (-0.2, 0.2), (0.7, 1.4))]
        out += [agree(augment.augment_batch, images, masks, matrices, *settings, outside) for outside in (None, 0, 255)]
    return out


def kinds(result: Any) -> list[np.ndarray]:
    """Per array: 0 for a number, 1 for NaN, 2 for inf, 3 for -inf, 4 for zero: what a ReLU makes of a gradient that it
    does not pass.
    """
    return [np.select([np.isnan(a), a == np.inf, a == -np.inf, a == 0], [1, 2, 3, 4], 0) for a in flat(result)]


@check
def special_values(rng) -> Any:
    """NaN and infinity come out where the reference has them; those of pixels that do not count, nowhere."""
    x, dy = array(rng, 2, 3, 7, 21), array(rng, 2, 3, 7, 21)
    x[0, 0, 0, 1], x[0, 1, 2, 20], x[1, 2, 3, 5], dy[0, 0, 0, 1] = np.nan, np.inf, -np.inf, 2
    table = [array(rng, 1, 21)[0], array(rng, 1, 21)[0], np.zeros(21), np.ones(21)]
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (pointwise.relu_forward, (x,)),
        (pointwise.relu_backward, (dy, x)),
        (pointwise.add_relu_forward, (x, dy)),
        (pointwise.sigmoid_forward, (x,)),
        (pointwise.log_softmax_forward, (x, -1)),
        (norm.batch_norm_forward, (x, *table, dy, "relu")),
        (norm.batch_norm_backward, (dy, x, SavedBatchNorm(None, *table, "relu"), False, False)),
    ]
    out = []
    with np.errstate(all="ignore"):
        for operator, args in calls:
            got, given = operator(*args), list(args)
            if operator is norm.batch_norm_backward:  # the mask is of the implementation's own form
                given[2] = given[2]._replace(mask=norm.batch_norm_forward.reference(x, *table, None, "relu")[1])
            want = operator.reference(*given)
            got, want = (r[0] if operator is norm.batch_norm_forward else r for r in (got, want))
            for k, (a, b) in enumerate(zip(kinds(got), kinds(want), strict=True)):
                np.testing.assert_array_equal(a, b, err_msg=f"{operator.name}, result {k}")
                out.append(a)
    z, labels = array(rng, 3, 5, 5), rng.integers(1, 5, (3, 5))
    labels[1, 1] = SPEC.ignore_index
    z[1, 1] = np.nan
    spec = dataclasses.replace(SPEC, class_weights=None)
    value, _, state = loss.loss_forward(z, labels, spec)
    dz = loss.loss_backward(np.float32(1), z, labels, spec, state)
    assert np.isfinite(value), "the value of an ignored pixel counts"
    assert np.isfinite(dz).all(), "the gradient of an ignored pixel counts"
    return [*out, value, dz]


def arrays_of(name: str) -> list[np.ndarray]:
    """The results of a check."""
    return flat(CHECKS[name]())


def main(given: list[str]) -> int:
    """Run checks by name; exit code FAILED and "failed NAME" where a comparison fails. Any other error is raised."""
    pool = thread_pool.current_pool()
    pool.reserve(1 << 20)
    # a kernel that reads what it has not written must not pass because there happen to be zeros
    pool.scratch.array.fill(np.nan)
    for check_step in given:
        name, _, step = check_step.partition("/")
        conv_checks.STEPS = (step,) if step else ALL
        try:
            CHECKS[name]()
        except AssertionError as error:
            traceback.print_exc()
            innermost = traceback.extract_tb(error.__traceback__)[-1].filename
            if not innermost.startswith((str(Path(__file__).parent), str(Path(np.__file__).parent))):
                return 1  # an assertion of numba's compiler, not a comparison
            print("failed", check_step)
            return FAILED
    print("passed", *given)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
