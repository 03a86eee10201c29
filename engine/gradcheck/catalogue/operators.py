"""Operators with their settings. A builder takes the random generator and keyword settings; `shape` is always that of
the first input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autograd import ops, random
from engine.gradcheck.catalogue.entry import Built, Entry
from engine.gradcheck.catalogue.makers import away, distinct, halves, normal, pairs, positive

MAKERS = {"normal": normal, "positive": positive, "away": away, "distinct": distinct, "kink": halves, "ties": pairs}
Rng = np.random.Generator


def unary(
    op: Callable[..., Any], values: str = "normal", shape: tuple[int, ...] = (3, 5), kink: str = "", **fixed: Any
) -> Callable[..., Built]:
    """A builder for op(x, **settings). values: which maker; 'kink' and 'ties' hit kinks on purpose, where the
    convention `kink` holds.
    """
    default_values, default_shape = values, shape

    def build(
        rng: Rng, *, shape: tuple[int, ...] = default_shape, values: str = default_values, **settings: Any
    ) -> Built:
        if values not in MAKERS:
            raise ValueError(f"values is {values!r}, expected one of {', '.join(MAKERS)}")
        keywords = {**fixed, **settings}
        convention = kink if values in ("kink", "ties") and kink else None
        return Built(lambda x: op(x, **keywords), [MAKERS[values](*shape)(rng)], ["x"], convention=convention)

    return build


def binary(
    op: Callable[..., Any], other: str = "normal", shapes: tuple[Any, Any] = ((2, 1, 4), (3, 1))
) -> Callable[..., Built]:
    """A builder for op(x, y) with broadcasting."""

    def build(rng: Rng, *, shape: tuple[int, ...] = shapes[0], other_shape: tuple[int, ...] = shapes[1]) -> Built:
        return Built(lambda x, y: op(x, y), [normal(*shape)(rng), MAKERS[other](*other_shape)(rng)], ["x", "y"])

    return build


def remainder(rng: Rng, *, shape: tuple[int, ...] = (2, 3, 4)) -> Built:
    """Quotients at least 0.2 away from whole numbers, where the remainder jumps."""
    y = away(shape[-1])(rng)
    x = (rng.integers(-3, 3, shape) + rng.uniform(0.2, 0.8, shape)) * y
    return Built(lambda x, y: ops.remainder(x, y), [x, y], ["x", "y"])


def pad_widths(rng: Rng, *, shape: tuple[int, ...] = (2, 3, 4), value: float = 2.5) -> Built:
    """pad with 0, 1, 2, ... before and one fewer after, axis by axis."""
    widths = [(k, max(0, k - 1) + 1) for k in range(len(shape))]
    return Built(lambda x: ops.pad(x, widths, value), [normal(*shape)(rng)], ["x"])


def where(rng: Rng, *, shape: tuple[int, ...] = (2, 3)) -> Built:
    """A random condition."""
    condition = rng.random(shape) < 0.5
    return Built(lambda x, y: ops.where(condition, x, y), [normal(*shape)(rng), normal(shape[-1])(rng)], ["x", "y"])


def concat(rng: Rng, *, shape: tuple[int, ...] = (2, 3, 1), axis: int = -1) -> Built:
    """Three parts, longer and longer."""
    shapes = [tuple(n + k if a == axis % len(shape) else n for a, n in enumerate(shape)) for k in range(3)]
    return Built(lambda *x: ops.concat(x, axis), [normal(*s)(rng) for s in shapes], ["a", "b", "c"])


def split(rng: Rng, *, shape: tuple[int, ...] = (2, 3, 6), sizes: tuple[int, ...] = (1, 3, 2)) -> Built:
    """All parts are outputs."""
    return Built(lambda x: ops.split(x, sizes), [normal(*shape)(rng)], ["x"])


def dropout(rng: Rng, *, shape: tuple[int, ...] = (6, 7), p: float = 0.3) -> Built:
    """The same mask at every call."""

    def fn(x: Any) -> Any:
        random.seed(3)
        return ops.dropout(x, p)

    return Built(fn, [normal(*shape)(rng)], ["x"])


def conv2d(
    rng: Rng,
    *,
    shape: tuple[int, ...] = (2, 7, 9, 3),
    filters: int = 4,
    kernel: Any = 3,
    bias: bool = True,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Built:
    """x (N, H, W, C), filters of kernel x kernel."""
    r, s = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    w = (r, s, _axes4(shape) // groups, filters)
    arrays = [normal(*shape)(rng), normal(*w)(rng)] + ([normal(filters)(rng)] if bias else [])
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Built(lambda x, w, b=None: ops.conv2d(x, w, b, **settings), arrays, ["x", "w", "b"][: len(arrays)])


def conv_transpose2d(
    rng: Rng,
    *,
    shape: tuple[int, ...] = (2, 4, 5, 3),
    filters: int = 4,
    kernel: Any = 2,
    bias: bool = True,
    stride: Any = 2,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Built:
    """x (N, H, W, C), filters of kernel x kernel."""
    r, s = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    w = (r, s, _axes4(shape), filters // groups)
    arrays = [normal(*shape)(rng), normal(*w)(rng)] + ([normal(filters)(rng)] if bias else [])
    settings = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    return Built(lambda x, w, b=None: ops.conv_transpose2d(x, w, b, **settings), arrays, ["x", "w", "b"][: len(arrays)])


def batch_norm(
    rng: Rng,
    *,
    shape: tuple[int, ...] = (2, 4, 5, 3),
    training: bool = True,
    eps: float = 1e-5,
    residual: bool = False,
    activation: str | None = None,
    values: str = "normal",
) -> Built:
    """Running statistics are state, not inputs. values 'kink': x and the offsets are 0, so that the residual's zeros
    sit at the ReLU's kink.
    """
    c = shape[-1]
    kinked = values == "kink"
    if kinked and (training or not residual or activation != "relu"):
        raise ValueError("values 'kink' needs training=false, residual=true and activation=relu")
    x = np.zeros(shape) if kinked else normal(*shape)(rng)
    arrays = [x, positive(c)(rng), np.zeros(c) if kinked else normal(c)(rng)]
    arrays += [halves(*shape)(rng) if kinked else normal(*shape)(rng)] if residual else []
    mean = np.zeros(c) if kinked else normal(c)(rng)
    variance = positive(c)(rng)

    def fn(x: Any, weight: Any, bias: Any, residual: Any = None) -> Any:
        from autograd import Tensor

        xp_mean, xp_variance = (Tensor(a.astype(x.dtype)).to(x.device) for a in (mean, variance))
        return ops.batch_norm(x, weight, bias, xp_mean, xp_variance, training, 0.1, eps, residual, activation)

    names = ["x", "weight", "bias", "residual"][: len(arrays)]
    return Built(fn, arrays, names, convention="below" if kinked else None, convention_input=3 if kinked else 0)


def layer_norm(rng: Rng, *, shape: tuple[int, ...] = (2, 5, 6), eps: float = 1e-5) -> Built:
    """Over the last axis."""
    c = shape[-1]
    arrays = [normal(*shape)(rng), positive(c)(rng), normal(c)(rng)]
    return Built(lambda x, w, b: ops.layer_norm(x, w, b, eps), arrays, ["x", "weight", "bias"])


def gate(rng: Rng, *, shape: tuple[int, ...] = (2, 5, 7, 3), per_channel: bool = False) -> Built:
    """One gate per pixel, or per value."""
    z = shape if per_channel else (*shape[:-1], 1)
    return Built(lambda x, z: ops.gate(x, z), [normal(*shape)(rng), normal(*z)(rng)], ["x", "z"])


def blend(rng: Rng, *, shape: tuple[int, ...] = (2, 5, 7, 3), per_channel: bool = False) -> Built:
    """One gate per pixel, or per value."""
    z = shape if per_channel else (*shape[:-1], 1)
    return Built(
        lambda x, y, z: ops.blend(x, y, z),
        [normal(*shape)(rng), normal(*shape)(rng), normal(*z)(rng)],
        ["x", "other", "z"],
    )


def attention(
    rng: Rng,
    *,
    shape: tuple[int, ...] = (2, 3, 5, 4),
    keys: int = 7,
    values: int = 6,
    mask: str = "none",
    scale: float | None = None,
) -> Built:
    """q of `shape`, `keys` keys, values of width `values`; mask: 'none', 'causal' or 'additive'."""
    n, heads, t, d = _four(shape)
    if mask not in ("none", "causal", "additive"):
        raise ValueError(f"mask is {mask!r}, expected none, causal or additive")
    array = (
        None
        if mask == "none"
        else np.tril(np.ones((t, keys), bool))
        if mask == "causal"
        else rng.standard_normal((t, keys))
    )
    arrays = [normal(*shape)(rng), normal(n, heads, keys, d)(rng), normal(n, heads, keys, values)(rng)]
    return Built(
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, _like(array, q), scale), arrays, ["q", "k", "v"]
    )


def polarized_channel(rng: Rng, *, shape: tuple[int, ...] = (2, 12, 6), eps: float = 1e-5) -> Built:
    """x (N, L, C), inner width C / 2."""
    c = shape[-1]
    h = max(1, c // 2)
    shapes = [shape, (c,), (c, h), (h,), (h, c), (c,)]
    arrays = [normal(*s)(rng) for s in shapes] + [positive(c)(rng), normal(c)(rng)]
    return Built(
        lambda *a: ops.polarized_channel(*a, eps=eps), arrays, ["x", "wq", "wv", "bv", "wz", "bz", "gain", "offset"]
    )


def polarized_spatial(rng: Rng, *, shape: tuple[int, ...] = (2, 12, 6)) -> Built:
    """x (N, L, C), inner width C / 2."""
    c = shape[-1]
    h = max(1, c // 2)
    arrays = [normal(*s)(rng) for s in (shape, (c, h), (h,), (c, h), (h,))]
    return Built(lambda *a: ops.polarized_spatial(*a), arrays, ["x", "wq", "bq", "wv", "bv"])


def _axes4(shape: tuple[int, ...]) -> int:
    return _four(shape)[3]


def conv2d_batch_norm(
    rng: Rng,
    *,
    shape: tuple[int, ...] = (2, 5, 6, 3),
    filters: int = 4,
    kernel: int = 3,
    maps: int = 1,
    residual: bool = False,
    activation: str | None = None,
    stride: int = 1,
    padding: int = 0,
) -> Built:
    """x of so many equal maps; running statistics are state, not inputs."""
    n, h, w, c = _four(shape)
    p, q = ((size + 2 * padding - kernel) // stride + 1 for size in (h, w))
    shapes = [shape] * maps + [(kernel, kernel, maps * c, filters)]
    arrays = [normal(*some)(rng) for some in shapes] + [positive(filters)(rng), normal(filters)(rng)]
    arrays += [normal(n, p, q, filters)(rng)] if residual else []
    mean, variance = normal(filters)(rng), positive(filters)(rng)

    def fn(*given: Any) -> Any:
        from autograd import Tensor

        x = given[:maps]
        filter_, weight, bias, *other = given[maps:]
        running = (Tensor(a.astype(x[0].dtype)).to(x[0].device) for a in (mean, variance))
        settings = 0.1, 1e-5, other[0] if other else None, activation, stride, padding
        return ops.conv2d_batch_norm(x if maps > 1 else x[0], filter_, weight, bias, *running, *settings)

    names = [*(["x"] if maps == 1 else [f"x{k}" for k in range(maps)]), "filter", "weight", "bias", "residual"]
    return Built(fn, arrays, names[: len(arrays)])


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4:
        raise ValueError(f"shape is {shape}, expected 4 axes")
    return shape


def _like(array: Any, x: Any) -> Any:
    from kernels.core.device import to_device

    return None if array is None else to_device(array if array.dtype == bool else array.astype(x.dtype), x.device)


def _entry(
    name: str,
    build: Callable[..., Built],
    *variants: dict[str, Any],
    kinks: tuple[dict[str, Any], ...] = (),
    torch: str = "",
) -> Entry:
    return Entry(name, "operator", build, getattr(ops, name), variants or ({},), kinks, torch)


IMAGE = (2, 7, 9, 3)
OPERATORS = [
    _entry("add", binary(ops.add), {}, {"shape": (2, 3), "other_shape": ()}),
    _entry("sub", binary(ops.sub), torch="sub"),
    _entry("mul", binary(ops.mul)),
    _entry("div", binary(ops.div, "positive"), torch="div"),
    _entry("remainder", remainder),
    _entry("neg", unary(ops.neg), torch="neg"),
    _entry("power", unary(ops.power, "positive", exponent=2.5), {}, {"exponent": 3, "values": "normal"}),
    _entry("exp", unary(ops.exp), torch="exp"),
    _entry("log", unary(ops.log, "positive"), torch="log"),
    _entry("sqrt", unary(ops.sqrt, "positive"), torch="sqrt"),
    _entry("where", where),
    _entry("sum", unary(ops.sum, shape=(2, 3, 4)), {}, {"axis": (0, 2)}, {"axis": -1, "keepdims": True}),
    _entry("mean", unary(ops.mean, shape=(2, 3, 4)), {}, {"axis": (0, 1)}),
    _entry(
        "max", unary(ops.max, "distinct", (3, 4), "share", axis=-1), {}, {"axis": None}, kinks=({"values": "ties"},)
    ),
    _entry(
        "matmul",
        binary(ops.matmul, shapes=((3, 4), (4, 2))),
        {},
        {"shape": (2, 1, 3, 4), "other_shape": (5, 4, 2)},
        {"shape": (4,), "other_shape": (2, 4, 3)},
    ),
    _entry("reshape", unary(lambda x: ops.reshape(x, (-1,)), shape=(2, 3, 4))),
    _entry("flatten", unary(ops.flatten, shape=(2, 3, 4), start_dim=1)),
    _entry("squeeze", unary(ops.squeeze, shape=(1, 3, 1, 2)), {}, {"axis": 2}),
    _entry("unsqueeze", unary(ops.unsqueeze, axis=1)),
    _entry("transpose", unary(ops.transpose, shape=(2, 3, 4), axes=(2, 0, 1))),
    _entry("broadcast_to", unary(lambda x: ops.broadcast_to(x, (4, *x.shape[:-1], 5, x.shape[-1])), shape=(3,))),
    _entry("getitem", unary(lambda x: ops.getitem(x, ([0, 2, 2], slice(None, None, 2))), shape=(4, 5))),
    _entry("pad", pad_widths),
    _entry("concat", concat, {}, {"axis": 0}),
    _entry("split", split),
    _entry("relu", unary(ops.relu, "away", kink="below"), kinks=({"values": "kink"},)),
    _entry("add_relu", unary(lambda x: ops.add_relu(x, 0.5 * x), "away", kink="below"), kinks=({"values": "kink"},)),
    _entry(
        "leaky_relu",
        unary(ops.leaky_relu, "away", kink="below"),
        {},
        {"negative_slope": 0.2},
        kinks=({"values": "kink"},),
    ),
    _entry("sigmoid", unary(ops.sigmoid), torch="sigmoid"),
    _entry("tanh", unary(ops.tanh), torch="tanh"),
    _entry("silu", unary(ops.silu), torch="nn.functional.silu"),
    _entry("gelu", unary(ops.gelu), torch="nn.functional.gelu"),
    _entry("softmax", unary(ops.softmax), {}, {"shape": (2, 3, 4), "axis": 1}),
    _entry("log_softmax", unary(ops.log_softmax), {}, {"shape": (2, 3, 4), "axis": 1}),
    _entry("dropout", dropout),
    _entry(
        "conv2d",
        conv2d,
        {},
        {"stride": 2, "padding": 1},
        {"padding": 2, "dilation": 2},
        {"padding": "same", "kernel": (2, 4)},
        {"shape": (2, 6, 7, 6), "filters": 9, "groups": 3, "padding": 1},
        {"shape": (3, 5, 4, 7), "kernel": 1, "bias": False},
    ),
    _entry(
        "conv2d_batch_norm",
        conv2d_batch_norm,
        {},
        {"padding": 1, "residual": True, "activation": "relu"},
        {"stride": 2, "activation": "relu"},
        {"kernel": 1, "maps": 3, "activation": "relu"},
        {"maps": 2, "padding": 1, "residual": True},
    ),
    _entry(
        "conv_transpose2d",
        conv_transpose2d,
        {},
        {"kernel": 3, "padding": 1, "output_padding": 1},
        {"kernel": (3, 2), "stride": (1, 3), "padding": (1, 0), "output_padding": (0, 2), "dilation": (2, 1)},
    ),
    _entry(
        "max_pool2d",
        unary(ops.max_pool2d, "distinct", (1, 6, 8, 2), "first", kernel_size=2),
        {},
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
        kinks=({"values": "kink"},),
    ),
    _entry(
        "avg_pool2d",
        unary(ops.avg_pool2d, shape=IMAGE, kernel_size=2),
        {},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    ),
    _entry(
        "adaptive_avg_pool2d", unary(ops.adaptive_avg_pool2d, shape=IMAGE, output_size=(3, 4)), {}, {"output_size": 1}
    ),
    _entry("strip_pool2d", unary(ops.strip_pool2d, shape=IMAGE), {}, {"strips": 3, "axis": 2}),
    _entry(
        "resize_bilinear",
        unary(ops.resize_bilinear, shape=(2, 4, 5, 3), size=(7, 9)),
        {},
        {"size": (7, 3), "align_corners": True},
    ),
    _entry("resize_nearest", unary(ops.resize_nearest, shape=(2, 4, 5, 3), size=(7, 9))),
    _entry(
        "batch_norm",
        batch_norm,
        {},
        {"residual": True},
        {"residual": True, "activation": "relu"},
        {"training": False, "residual": True},
        kinks=({"training": False, "residual": True, "activation": "relu", "values": "kink"},),
    ),
    _entry("layer_norm", layer_norm, {}, {"shape": (3, 2, 2, 4), "eps": 1e-3}),
    _entry("gate", gate, {}, {"per_channel": True}),
    _entry("blend", blend, {}, {"per_channel": True}),
    _entry("scaled_dot_product_attention", attention, {}, {"mask": "causal"}, {"mask": "additive", "scale": 0.3}),
    _entry("polarized_channel", polarized_channel),
    _entry("polarized_spatial", polarized_spatial),
]
