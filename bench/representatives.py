"""One representative, aligned call per CUDA kernel, small enough to trace. Ceilings, counters and the launch table are
made from these calls.

Maps are (2, 8, 16, 32): channels and pixels fill whole warps, so the counters show a kernel's access pattern and not a
ragged edge (those are tested elsewhere); 33 channels are for instances that move one value at a time. `calls()` maps a
name to a function of a dtype that builds inputs on the device, calls kernels and returns nothing. Plain kernels that no
operator launches are launched by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from kernels import attention, augment, conv, gate, loss, metric, norm, optimizer, pointwise, pool, resample, shape
from kernels.core.device import to_device
from kernels.core.geometry import Window
from kernels.core.precision import PRECISIONS, use_precision
from kernels.loss.spec import LossSpec
from kernels.norm.records import SavedBatchNorm
from kernels.resample.reference import adaptive_matrix, bilinear_matrix

Call = Callable[[str], None]
N, H, W, C, ODD = 2, 8, 16, 32, 33


def on_device(array: np.ndarray) -> Any:
    """A copy on the device."""
    return to_device(np.array(array, order="C"), "cuda")


def normal(dtype: str, *dims: int, seed: int = 0) -> Any:
    """Standard normal numbers on the device."""
    return on_device(np.random.default_rng(seed).standard_normal(dims).astype(dtype))


def maps(dtype: str, channels: int | None = None, scale: int = 1, seed: int = 0) -> Any:
    """(N, H, W, channels, by default C), `scale` times as high and wide."""
    return normal(dtype, N, H * scale, W * scale, channels or C, seed=seed)


@contextmanager
def forced(owner: Any, **values: Any) -> Iterator[None]:
    """Replace a launch module's choices within the block: small maps would never choose the large tiles."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _conv(kernel: int, stride: int, cin: int, cout: int, groups: int, dtype: str) -> None:
    window = Window.of("conv2d", kernel, stride, kernel // 2)
    x = maps(dtype, cin)
    w = normal(dtype, kernel, kernel, cin // groups, cout)
    b = normal(dtype, cout)
    y = conv.conv2d_forward((x,), w, b, window, groups)
    conv.conv2d_backward_data(y, w, (H, W), window, groups)
    conv.conv2d_backward_filter((x,), y, window, groups)


def _tiled(cin: int, cout: int, forward: Any, filters: Any, dtype: str) -> None:
    """A 3x3 convolution and its filter gradient by the given tiles, in two splits."""
    from kernels.conv.cuda import implicit_gemm

    window = Window.of("conv2d", 3, 1, 1)
    x = normal(dtype, 1, H, W, cin)
    w = normal(dtype, 3, 3, cin, cout)
    dy = normal(dtype, 1, H, W, cout)
    with forced(implicit_gemm, choose=lambda *_: (forward or filters, 2)):
        if forward:
            conv.conv2d_forward((x,), w, None, window)
        if filters:
            conv.conv2d_backward_filter((x,), dy, window)


def _winograd(dtype: str) -> None:
    from kernels.conv.cpu import algorithm

    with forced(algorithm, mode=lambda: "winograd4"):
        _conv(3, 1, C, C, 1, dtype)


def _tensor(policy: str, stored: str, cin: int, cout: int, dtype: str) -> None:
    """A 3x3 convolution of arrays of the type `stored` on tensor cores; BLOCKS = 1: the tile that the channels fill."""
    import ml_dtypes  # noqa: F401 - NumPy then knows the name bfloat16

    from kernels.conv.cuda import tensor_core

    if dtype != "float32":
        return
    window = Window.of("conv2d", 3, 1, 1)
    x = normal(stored, 1, H, W, cin)
    w = normal(stored, 3, 3, cin, cout)
    with use_precision(policy):
        with forced(tensor_core, BLOCKS=1):
            tensor_core.conv2d_forward((x,), w, None, window)
        # several parts
        tensor_core.conv2d_backward_filter((normal(stored, 8, H, W, cin),), normal(stored, 8, H, W, cout), window)
        tensor_core.plain_forward((x,), w, None, window)


def _transposed(dtype: str) -> None:
    window = Window((2, 2), (2, 2))
    x = maps(dtype)
    w = normal(dtype, 2, 2, C, C)
    b = normal(dtype, C)
    y = conv.conv_transpose2d_forward(x, w, b, (2 * H, 2 * W), window)
    conv.conv_transpose2d_backward_data(y, w, window)
    conv.conv_transpose2d_backward_filter(x, y, window)


def _pool(kernel: int, stride: int, pad: int, channels: int, dtype: str) -> None:
    window = Window.of("max_pool2d", kernel, stride, pad)
    y, offset = pool.max_pool2d_forward(maps(dtype, channels), window)
    pool.max_pool2d_backward(y, offset, (H, W), window)


def _batch_norm(channels: int, dtype: str) -> None:
    from kernels.norm import cuda

    x = maps(dtype, channels)
    dy = maps(dtype, channels, seed=1)
    weight, bias = normal(dtype, channels), normal(dtype, channels)
    mean, variance = norm.batch_norm_statistics(x)
    inverse = norm.batch_norm_inverse(variance, 1e-5)
    norm.batch_norm_running(0 * weight, 0 * weight, mean, variance, N * H * W, 0.1)
    _, mask = norm.batch_norm_forward(x, weight, bias, mean, inverse, dy, "relu")
    saved = SavedBatchNorm(mask, weight, bias, mean, inverse, "relu")
    norm.batch_norm_backward(dy, x, saved, True, True)
    norm.sum_pixels(x)
    cuda.batch_norm_statistics(x, plain=True)
    cuda.batch_norm_forward(x, weight, bias, mean, inverse, None, "relu", plain=True)
    cuda.batch_norm_backward(dy, x, saved, True, True, plain=True)


def _layer_norm(channels: int, dtype: str) -> None:
    x = normal(dtype, 256, channels)
    weight = normal(dtype, channels)
    bias = normal(dtype, channels)
    norm.layer_norm_forward(x, weight, bias, 1e-5)
    norm.layer_norm_backward(x, x, weight, 1e-5)


def _attention(width: int, plain: bool, dtype: str) -> None:
    from kernels.attention.cuda import dot_product

    q, k, v = (normal(dtype, 1, 2, 8 * H, width, seed=seed) for seed in range(3))
    # flash needs more than 0 bytes of shared memory
    with forced(dot_product, device_limits=(lambda: (1, 0, 75)) if plain else dot_product.device_limits):
        o, lse = attention.attention_forward(q, k, v, None, width**-0.5)
        attention.attention_backward(q, q, k, v, o, lse, None, width**-0.5)


def _polarized(dtype: str) -> None:
    x = normal(dtype, N, H * W, C)
    wq = normal(dtype, C)
    wv = normal(dtype, C, C // 2)
    wz = normal(dtype, C // 2, C)
    half = normal(dtype, C // 2)
    full = normal(dtype, C)
    y = attention.polarized_channel_forward(x, wq, wv, half, wz, full, full, full, 1e-5)
    attention.polarized_channel_backward(y, x, wq, wv, half, wz, full, full, full, 1e-5)
    y = attention.polarized_spatial_forward(x, wv, half, wv, half)
    attention.polarized_spatial_backward(y, x, wv, half, wv, half)


def _resample(size: tuple[int, int], mean: bool, channels: int, dtype: str) -> None:
    make = adaptive_matrix if mean else partial(bilinear_matrix, align_corners=False)
    a, b = make(H, size[0]), make(W, size[1])
    y = resample.resample2d_forward(maps(dtype, channels), a, b)
    resample.resample2d_backward(y, a, b)


TERMS = tuple((name, 1.0) for name in ("margin", "dice", "focal", "iou", "cross_entropy", "focal_tversky", "mcc"))


def _loss(background: str, classes: int, dtype: str) -> None:
    labels = on_device(np.random.default_rng(0).integers(0, classes, (N, 2 * H, 2 * W)))
    spec = LossSpec(TERMS, background=background)
    logits = normal(dtype, N, 2 * H, 2 * W, classes)
    _, _, state = loss.loss_forward(logits, labels, spec)
    loss.loss_backward(on_device(np.ones((), dtype)), logits, labels, spec, state)


def _pointwise(dtype: str) -> None:
    from kernels.pointwise import cuda

    x = maps(dtype)
    for name in cuda.ACTIVATIONS.keys() - {"leaky_relu"}:
        y = getattr(pointwise, f"{name}_forward")(x)
        getattr(pointwise, f"{name}_backward")(x, y)
    pointwise.leaky_relu_forward(x, 0.1)
    pointwise.leaky_relu_backward(x, x, 0.1)
    pointwise.dropout_forward(x, 0.25, 1, 0)
    if dtype == "float32":
        from kernels.pointwise import cuda

        launch = cuda.flat_launch("activation_plain<Gelu, float>", x.size, 1)
        cuda.MODULE.run(launch, x, 0 * x, np.float32(0), x.size)


def _softmax(dtype: str) -> None:
    x = maps(dtype)
    for name in ("softmax", "log_softmax"):
        y = getattr(pointwise, f"{name}_forward")(x, -1)
        getattr(pointwise, f"{name}_backward")(x, y, -1)


def _optimizer(count: int, dtype: str) -> None:
    p, g, m, v, average = (on_device(np.full(count, 0.1 * k, dtype)) for k in range(1, 6))
    decay = on_device(np.full(-(-count // optimizer.LINE), 0.1, dtype))
    squared = optimizer.squared_norm(g)
    clip = optimizer.clip_factor(squared, 1.0, p.dtype) if hasattr(optimizer, "clip_factor") else 1.0
    settings = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    optimizer.adamw_step(p, g, m, v, decay, average, step=1, clip=clip, average_decay=0.9, **settings)


def _gather(dtype: str) -> None:
    parts = [normal(dtype, 1024), None, normal(dtype, 512)]
    optimizer.gather(parts, normal(dtype, 2048), [0, 1024, 1536], [1024, 512, 512])


def _augment(dtype: str) -> None:
    from kernels.augment import cuda

    ones = on_device(np.ones(N, dtype))
    h = 4 * H
    w = 4 * W
    matrices = on_device(np.tile(np.array([[-1.0, 0, 63], [0, 1, 0]]), (N, 1, 1)))
    arrays = normal(dtype, N, h, w), on_device(np.zeros((N, h, w), np.uint8)), matrices, ones, 0 * ones, ones
    out, labels = augment.augment_batch(*arrays, 0)
    if dtype == "float32":
        cuda.MODULE.run(cuda.plain_launch(N), *arrays, out, labels, N, h, w, 0)


def _metric(dtype: str) -> None:
    from kernels.metric import cuda

    labels = metric.predicted_labels(normal(dtype, N, 2 * H, 2 * W, 5), 1)
    counts = metric.confusion_per_image(labels, labels, 5)
    cuda.MODULE.run(
        cuda.plain_launch(N, 4 * H * W),
        labels,
        labels,
        counts,
        4 * H * W,
        5,
        *cuda.notes(labels, labels, 5),
    )


def _gate(channels: int, wide: int, dtype: str) -> None:
    x = maps(dtype, wide)
    other = maps(dtype, wide, seed=1)
    z = maps(dtype, channels, seed=2)
    gate.gate_forward(x, z)
    gate.gate_backward(x, x, z)
    gate.blend_forward(x, other, z)
    gate.blend_backward(x, x, other, z)


def _shape(channels: int, dtype: str) -> None:
    x = maps(dtype, channels)
    other = maps(dtype, channels, seed=1)
    both = shape.concat_channels([x, other])
    shape.split_channels(both, (channels, channels))
    shape.accumulate(x, other)


DTYPES = ("float32", "float64")
RAGGED = {"N": 1, "H": 5, "W": 7, "C": 36, "ODD": 37}  # with these sizes every tile has an edge


def calls() -> dict[str, Call]:
    """The calls at the module's present sizes; of the tiled convolutions one per tile."""
    return _families() | _tiles()


def _families() -> dict[str, Call]:
    return {
        "conv 3x3": partial(_conv, 3, 1, C, C, 1),
        "conv 3x3 stride 2": partial(_conv, 3, 2, C, C, 1),
        "conv 1x1": partial(_conv, 1, 1, C, C, 1),
        "conv winograd": _winograd,
        "conv stem": partial(_conv, 3, 1, 1, C, 1),
        "conv depthwise": partial(_conv, 3, 1, C, C, C),
        "conv depthwise odd": partial(_conv, 3, 1, ODD, ODD, ODD),
        "conv groups": partial(_conv, 3, 1, C, C, 2),
        "conv transposed": _transposed,
        "max pool 2x2": partial(_pool, 2, 2, 0, C),
        "max pool 3x3": partial(_pool, 3, 1, 1, C),
        "max pool 5x5": partial(_pool, 5, 1, 2, C),
        "max pool 2x2 odd": partial(_pool, 2, 2, 0, ODD),
        "max pool 3x3 odd": partial(_pool, 3, 1, 1, ODD),
        "max pool 5x5 odd": partial(_pool, 5, 1, 2, ODD),
        "batch norm": partial(_batch_norm, C),
        "batch norm odd": partial(_batch_norm, ODD),
        "layer norm": partial(_layer_norm, C),
        "layer norm odd": partial(_layer_norm, ODD),
        **{f"attention {width}": partial(_attention, width, False) for width in (32, 64, 128)},
        "attention plain": partial(_attention, 32, True),
        "polarized": _polarized,
        "bilinear": partial(_resample, (2 * H, 2 * W), False, C),
        "bilinear odd": partial(_resample, (2 * H, 2 * W), False, ODD),
        "adaptive": partial(_resample, (2, 4), True, C),
        "adaptive odd": partial(_resample, (2, 4), True, ODD),
        "global odd": partial(_resample, (1, 1), True, ODD),
        "strips": partial(_resample, (1, W), True, C),
        "strips odd": partial(_resample, (1, W), True, ODD),
        "loss": partial(_loss, "train", 5),
        "loss masked": partial(_loss, "mask", 5),
        "loss of 4": partial(_loss, "train", 4),
        "loss of 7": partial(_loss, "train", 7),
        "pointwise": _pointwise,
        "softmax": _softmax,
        "optimizer": partial(_optimizer, 4096),
        "optimizer odd": partial(_optimizer, 4095),
        "gather": _gather,
        "augment": _augment,
        "metric": _metric,
        "gate per pixel": partial(_gate, 1, C),
        "gate per pixel odd": partial(_gate, 1, ODD),
        "gate per value": partial(_gate, C, C),
        "shape": partial(_shape, C),
        "shape even": partial(_shape, ODD + 1),
        "shape odd": partial(_shape, ODD),
    }


def _tiles() -> dict[str, Call]:
    from kernels.conv.cuda import implicit_gemm

    tiled: dict[str, Call] = {}
    for (step, forward), filters in zip(
        implicit_gemm.FORWARD_TILES.items(), implicit_gemm.FILTER_TILES.values(), strict=True
    ):
        cin, extra = (C, 0) if step == 4 else (ODD, 1)
        tiled |= {f"conv tile {t.m}x{t.n} by {step}": partial(_tiled, cin, t.n + extra, t, None) for t in forward}
        tiled |= {f"filter tile {t.m}x{t.n} by {step}": partial(_tiled, cin, t.n + extra, None, t) for t in filters}
    for c, k in ((C, 128), (C, 64), (C, C), (ODD, ODD)):
        tiled |= {f"tensor {p} {k}": partial(_tensor, p, "float32", c, k) for p in PRECISIONS[1:]}
        tiled |= {
            f"tensor {stored} arrays {k}": partial(_tensor, "float32", stored, c, k)
            for stored in ("float16", "bfloat16")
        }
    return tiled
