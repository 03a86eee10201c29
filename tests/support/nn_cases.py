"""Generated calls of kernels.nn, forward and backward, with what PyTorch and plain loops make of them.

A draw's arrays have their channels on axis 1 and PyTorch's filters, in float64; a `Form` turns them into the layout of
a call, by plain transpositions, and its results back. `case.ours` calls the module, `case.torch` is the forward pass in
PyTorch, whose gradients are autograd's, and `case.naive` computes all results by sums from the first term to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from kernels import nn
from tests.support.plain_sums import naive_conv, naive_data, naive_filter, per_channel, total
from tests.support.torch_forms import _functional, _torch

Arrays = dict[str, Any]
Rng = np.random.Generator
ROUNDINGS = {"float16": 4, "float32": 4, "float64": 256}  # of the largest value that are allowed beside the naive rule
WINOGRAD = 3e-5  # the stated bound of its kernels, relative to the largest value


class Form(NamedTuple):
    """A layout, by the name of its 2-D form."""

    name: str

    def layout(self, array: Any) -> str:
        return self.name if array.ndim != 3 else self.name.replace("HW", "L")

    def map(self, array: Any) -> Any:
        """(N, C, ...) in this layout."""
        return array if self.name == "NCHW" else np_like(array).moveaxis(array, 1, -1).copy()

    def back(self, array: Any) -> Any:
        return array if self.name == "NCHW" else np_like(array).moveaxis(array, -1, 1)

    def filter(self, w: Any) -> Any:
        """(K, C, R, S) with the channels last: (R, S, C, K)."""
        return w if self.name == "NCHW" else w.transpose(*range(2, w.ndim), 1, 0).copy()

    def filter_back(self, w: Any) -> Any:
        return w if self.name == "NCHW" else w.transpose(w.ndim - 1, w.ndim - 2, *range(w.ndim - 2))


FORMS = (Form("NCHW"), Form("NHWC"))


class Draw(NamedTuple):
    """One call: its arrays, its settings, and whether Winograd may serve it in float32."""

    arrays: Arrays
    settings: dict[str, Any]
    winograd: bool = False


class Case(NamedTuple):
    """A function and its gradients. ours(arrays, settings, form) and naive(arrays, settings) give a list: the result,
    then the gradients of the arrays in their order, for the cotangent `dy` among them, which torch does without.
    """

    name: str
    draw: Callable[[Rng], Draw]
    ours: Callable[[Arrays, dict[str, Any], Form], list[Any]]
    torch: Callable[[Arrays, dict[str, Any]], Any]
    naive: Callable[[Arrays, dict[str, Any]], list[Any]]


def np_like(array: Any) -> Any:
    """NumPy, or CuPy for its arrays."""
    return np if isinstance(array, np.ndarray) else __import__("cupy")


def normal(rng: Rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def truth(case: Case, draw: Draw) -> list[np.ndarray]:
    """PyTorch's result and gradients, in float64."""
    given = {name: _torch().tensor(a) for name, a in draw.arrays.items()}
    dy = given.pop("dy")
    inputs = {name: a.requires_grad_() if a.is_floating_point() else a for name, a in given.items()}
    y = case.torch(inputs, draw.settings)
    y.backward(dy)
    return [y.detach().numpy(), *(a.grad.numpy() for a in inputs.values() if a.grad is not None)]


def rounded(draw: Draw, dtype: Any) -> Draw:
    """The draw with its floats rounded to a dtype, and kept in float64."""
    arrays = {name: a.astype(dtype).astype(a.dtype) for name, a in draw.arrays.items()}
    return draw._replace(arrays=arrays)


def judge(case: Case, results: list[list[list[Any]]], dtype: str, winograd: bool) -> None:
    """The naive rule (docs/accuracy.md) over all draws of a case: for each result, the largest error relative to the
    largest value is at most three times that of the naive version, plus roundings. results: [ours, naive, exact] each.
    """
    assert all(len(ours) == len(naive) == len(exact) > 1 for ours, naive, exact in results), case.name
    for k in range(max(len(exact) for _, _, exact in results)):
        errors = [0.0, 0.0]
        for draw in (draw for draw in results if len(draw[2]) > k):  # not all have a bias
            exact = draw[2][k]
            for side in (0, 1):
                assert draw[side][k].shape == exact.shape, f"{case.name}, result {k}: {draw[side][k].shape}"
                error = np.abs(draw[side][k].astype(np.float64) - exact).max(initial=0)
                errors[side] = max(errors[side], error / max(np.abs(exact).max(initial=0), 1e-300))
        bound = 3 * errors[1] + ROUNDINGS[dtype] * float(np.finfo(dtype).eps) / 2
        bound = max(bound, WINOGRAD) if winograd and dtype == "float32" else bound
        assert errors[0] <= bound, f"{case.name}, {dtype}, result {k}: error {errors[0]:.2e}, allowed {bound:.2e}"


# -- convolutions ------------------------------------------------------------------------------------------------------


def window(rng: Rng) -> dict[str, Any]:
    """Random settings of a window."""
    pads = ((0, 0), (1, 1), (1, 0), (0, 2))
    return {
        "stride": tuple(int(n) for n in rng.integers(1, 4, 2)),
        "padding": tuple(pads[rng.integers(len(pads))] for _ in range(2)),
        "dilation": tuple(int(n) for n in rng.integers(1, 3, 2)),
    }


def _groups(rng: Rng, kind: str) -> tuple[int, int, int]:
    """(groups, C, K)."""
    c, k = (int(n) for n in rng.integers(1, 9, 2))
    if kind == "depthwise":
        return c, c, c * int(rng.integers(1, 3))
    groups = int(rng.integers(2, 4)) if kind == "grouped" else 1
    return groups, groups * max(1, c // 2), groups * max(1, k // 2)


def _bias(rng: Rng, arrays: Arrays, k: int) -> Arrays:
    return {**arrays, "bias": normal(rng, k)} if rng.random() < 0.6 else arrays


def draw_conv(kind: str, rng: Rng) -> Draw:
    groups, c, k = _groups(rng, kind)
    settings = {**window(rng), "groups": groups}
    if kind == "3x3":
        settings |= {"stride": (1, 1), "dilation": (1, 1), "padding": ((1, 1), (1, 1))}
    kernel = (3, 3) if kind == "3x3" else (1, 1) if kind == "1x1" else tuple(int(n) for n in rng.integers(1, 4, 2))
    size = tuple(int(n) for n in rng.integers(6, 12, 2))
    n = int(rng.integers(1, 4))
    arrays = _bias(rng, {"x": normal(rng, n, c, *size), "w": normal(rng, k, c // groups, *kernel)}, k)
    y = naive_conv(arrays["x"], arrays["w"], settings)
    return Draw({**arrays, "dy": normal(rng, *y.shape)}, settings, groups == 1 and settings["stride"] == (1, 1))


def ours_conv(a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
    layout = {"layout": form.layout(a["x"])}
    x, w, dy = form.map(a["x"]), form.filter(a["w"]), form.map(a["dy"])
    y = nn.conv2d(x, w, a.get("bias"), **settings, **layout)
    dx = nn.conv2d_backward_data(dy, w, a["x"].shape[2:], **settings, **layout)
    dw = nn.conv2d_backward_filter(x, dy, a["w"].shape[2:], **settings, **layout)
    biases = [nn.bias_backward(dy, **layout)] if "bias" in a else []
    return [form.back(y), form.back(dx), form.filter_back(dw), *biases]


def torch_conv(t: Arrays, settings: dict[str, Any]) -> Any:
    (top, bottom), (left, right) = settings["padding"]
    x = _functional().pad(t["x"], (left, right, top, bottom))
    others = {key: settings[key] for key in ("stride", "dilation", "groups")}
    return _functional().conv2d(x, t["w"], t.get("bias"), **others)


def conv_results(a: Arrays, settings: dict[str, Any]) -> list[np.ndarray]:
    x, w, dy = a["x"], a["w"], a["dy"]
    y = naive_conv(x, w, settings)
    gradients = [naive_data(dy, w, x.shape, settings), naive_filter(x, dy, w.shape, settings)]
    if "bias" not in a:
        return [y, *gradients]
    return [y + a["bias"][:, None, None], *gradients, per_channel(dy)]


def draw_conv1d(rng: Rng) -> Draw:
    arrays, settings, _ = draw_conv("any", rng)
    n, c = arrays["x"].shape[:2]
    length, kernel = (int(m) for m in rng.integers((6, 1), (20, 4)))
    settings = {
        "stride": (1, settings["stride"][1]),
        "padding": ((0, 0), settings["padding"][1]),
        "dilation": (1, settings["dilation"][1]),
        "groups": 1,
    }
    k = arrays["w"].shape[0]
    arrays = _bias(rng, {"x": normal(rng, n, c, length), "w": normal(rng, k, c, kernel)}, k)
    y = naive_conv(arrays["x"][:, :, None], arrays["w"][:, :, None], settings)[:, :, 0]
    return Draw({**arrays, "dy": normal(rng, *y.shape)}, settings)


def ours_conv1d(a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
    settings = {
        "stride": settings["stride"][1],
        "padding": settings["padding"][1],
        "dilation": settings["dilation"][1],
        "layout": form.layout(a["x"]),
    }
    x, w, dy = form.map(a["x"]), form.filter(a["w"]), form.map(a["dy"])
    y = nn.conv1d(x, w, a.get("bias"), **settings)
    dx = nn.conv1d_backward_data(dy, w, a["x"].shape[2], **settings)
    dw = nn.conv1d_backward_filter(x, dy, a["w"].shape[2], **settings)
    biases = [nn.bias_backward(dy, layout=settings["layout"])] if "bias" in a else []
    return [form.back(y), form.back(dx), form.filter_back(dw), *biases]


def rows(function: Callable[..., Any], a: Arrays, settings: dict[str, Any]) -> list[Any]:
    """A function of images on sequences as images one row high."""
    lifted = {name: array if name == "bias" else array[:, :, None] for name, array in a.items()}
    return [result if result.ndim == 1 else result[:, :, 0] for result in function(lifted, settings)]


def torch_conv1d(t: Arrays, settings: dict[str, Any]) -> Any:
    x = _functional().pad(t["x"], settings["padding"][1])
    (_, stride), (_, dilation) = settings["stride"], settings["dilation"]
    return _functional().conv1d(x, t["w"], t.get("bias"), stride, 0, dilation)


def draw_transposed(rng: Rng) -> Draw:
    groups, c, k = _groups(rng, "grouped" if rng.random() < 0.4 else "any")
    settings = {**window(rng), "groups": groups}
    settings["padding"] = tuple((p, p) for p, _ in settings["padding"])
    extra = tuple(int(rng.integers(max(s, d))) for s, d in zip(settings["stride"], settings["dilation"], strict=True))
    kernel, size = (tuple(int(n) for n in rng.integers(low, high, 2)) for low, high in ((2, 4), (3, 7)))
    arrays = _bias(rng, {"x": normal(rng, 2, c, *size), "w": normal(rng, c, k // groups, *kernel)}, k)
    settings["output_padding"] = extra
    y = transposed_shape(arrays["x"], arrays["w"], settings)
    return Draw({**arrays, "dy": normal(rng, *y)}, settings)


def transposed_shape(x: np.ndarray, w: np.ndarray, settings: dict[str, Any]) -> tuple[int, ...]:
    size = (
        (n - 1) * s - sum(pad) + d * (k - 1) + 1 + extra
        for n, s, pad, d, k, extra in zip(
            x.shape[2:],
            settings["stride"],
            settings["padding"],
            settings["dilation"],
            w.shape[2:],
            settings["output_padding"],
            strict=True,
        )
    )
    return x.shape[0], w.shape[1] * settings["groups"], *size


def ours_transposed(a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
    back = {key: value for key, value in settings.items() if key != "output_padding"} | {"layout": form.name}
    x, dy = form.map(a["x"]), form.map(a["dy"])
    w = a["w"] if form.name == "NCHW" else a["w"].transpose(2, 3, 0, 1).copy()
    y = nn.conv_transpose2d(x, w, a.get("bias"), **settings, layout=form.name)
    dx = nn.conv_transpose2d_backward_data(dy, w, a["x"].shape[2:], **back)
    dw = nn.conv_transpose2d_backward_filter(x, dy, a["w"].shape[2:], **back)
    dw = dw if form.name == "NCHW" else dw.transpose(2, 3, 0, 1)
    biases = [nn.bias_backward(dy, layout=form.name)] if "bias" in a else []
    return [form.back(y), form.back(dx), dw, *biases]


def torch_transposed(t: Arrays, settings: dict[str, Any]) -> Any:
    padding = tuple(p for p, _ in settings["padding"])
    return _functional().conv_transpose2d(t["x"], t["w"], t.get("bias"), **{**settings, "padding": padding})


def transposed_results(a: Arrays, settings: dict[str, Any]) -> list[np.ndarray]:
    """By the plain convolution whose data gradient it is; rows and columns that belong to no pixel of x are cut off."""
    x, w, dy = a["x"], a["w"], a["dy"]
    p, q = x.shape[2:]
    dx = naive_conv(dy, w, settings)
    wide = np.zeros(dx.shape, x.dtype)
    wide[:, :, :p, :q] = x
    y = naive_data(wide, w, dy.shape, settings)
    gradients = [dx[:, :, :p, :q], naive_filter(dy, wide, w.shape, settings)]
    return [y, *gradients] if "bias" not in a else [y + a["bias"][:, None, None], *gradients, per_channel(dy)]


# -- pooling -----------------------------------------------------------------------------------------------------------


def draw_pool(mean: bool, rng: Rng) -> Draw:
    kernel = tuple(int(n) for n in rng.integers(1, 4, 2))
    settings: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": tuple(int(n) for n in rng.integers(1, 4, 2)),
        "padding": tuple(int(rng.integers(k // 2 + 1)) for k in kernel),
        "ceil_mode": bool(rng.integers(2)),
    }
    settings |= {"count_include_pad": bool(rng.integers(2))} if mean else {"dilation": int(rng.integers(1, 3))}
    x = normal(rng, 2, int(rng.integers(1, 9)), *(int(n) for n in rng.integers(6, 12, 2)))
    if not mean:
        x = np.round(2 * x)  # ties
    y = torch_pool({"x": _torch().tensor(x)}, settings)
    return Draw({"x": x, "dy": normal(rng, *y.shape)}, settings)


def ours_pool(a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
    x, dy = form.map(a["x"]), form.map(a["dy"])
    settings = {**settings, "layout": form.name}
    if "count_include_pad" in settings:
        y, dx = nn.avg_pool2d(x, **settings), nn.avg_pool2d_backward(dy, a["x"].shape[2:], **settings)
    else:
        y, places = nn.max_pool2d(x, **settings)
        dx = nn.max_pool2d_backward(dy, places, a["x"].shape[2:], **settings)
    return [form.back(y), form.back(dx)]


def torch_pool(t: Arrays, settings: dict[str, Any]) -> Any:
    pool = _functional().avg_pool2d if "count_include_pad" in settings else _functional().max_pool2d
    return pool(t["x"], **settings)


def naive_pool(a: Arrays, settings: dict[str, Any]) -> list[np.ndarray]:
    """Window by window; of equal maxima the first."""
    x, dy = a["x"], a["dy"]
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    mean, dilation = "count_include_pad" in settings, settings.get("dilation", 1)
    for p, q in np.ndindex(*dy.shape[2:]):
        lines = [
            [place for place in range(start, start + dilation * k, dilation) if place < n + pad or not mean]
            for start, k, n, pad in (
                (at * s - pad, k, n, pad)
                for at, s, pad, k, n in zip(
                    (p, q),
                    settings["stride"],
                    settings["padding"],
                    settings["kernel_size"],
                    x.shape[2:],
                    strict=True,
                )
            )
        ]
        inside = [[place for place in line if 0 <= place < n] for line, n in zip(lines, x.shape[2:], strict=True)]
        cells = np.ix_(range(x.shape[0]), range(x.shape[1]), *inside)
        values = x[cells].reshape(*x.shape[:2], -1)
        if mean:
            counted = lines if settings["count_include_pad"] else inside
            share = x.dtype.type(1 / (len(counted[0]) * len(counted[1])))
            y[:, :, p, q] = total(values) * share
            dx[cells] += (dy[:, :, p, q] * share)[:, :, None, None]
        else:
            y[:, :, p, q] = values.max(-1)
            chosen = np.arange(values.shape[-1]) == values.argmax(-1)[..., None]
            dx[cells] += (chosen * dy[:, :, p, q, None]).reshape(x[cells].shape)
    return [y, dx]


# -- batch norm --------------------------------------------------------------------------------------------------------


def draw_norm(axes: int, rng: Rng) -> Draw:
    c = int(rng.integers(1, 9))
    x = normal(rng, int(rng.integers(2, 5)), c, *(int(n) for n in rng.integers(1, 6, axes - 2)))
    arrays = {"x": x + rng.integers(-2, 3), "weight": normal(rng, c), "bias": normal(rng, c)}
    return Draw({**arrays, "dy": normal(rng, *x.shape)}, {"eps": 1e-3})


def ours_norm(a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
    layout = {"layout": form.layout(a["x"])}
    x, dy = form.map(a["x"]), form.map(a["dy"])
    y, mean, inverse = nn.batch_norm_training(x, a["weight"], a["bias"], **settings, **layout)
    dx, dweight, dbias = nn.batch_norm_backward(dy, x, a["weight"], mean, inverse, **layout)
    return [form.back(y), form.back(dx), dweight, dbias]


def torch_norm(t: Arrays, settings: dict[str, Any]) -> Any:
    return _functional().batch_norm(t["x"], None, None, t["weight"], t["bias"], training=True, **settings)


def naive_norm(a: Arrays, settings: dict[str, Any]) -> list[np.ndarray]:
    x, dy = a["x"], a["dy"]
    c, count = x.shape[1], x.dtype.type(x.size // x.shape[1])

    def wide(vector: np.ndarray) -> np.ndarray:
        return vector.reshape(1, c, *(1,) * (x.ndim - 2))

    mean = per_channel(x) / count
    variance = per_channel((x - wide(mean)) ** 2) / count
    inverse = 1 / np.sqrt(variance + x.dtype.type(settings["eps"]))
    xhat = (x - wide(mean)) * wide(inverse)
    dbias, dweight = per_channel(dy), per_channel(dy * xhat)
    inner = dy - (wide(dbias) + xhat * wide(dweight)) / count
    return [xhat * wide(a["weight"]) + wide(a["bias"]), wide(a["weight"] * inverse) * inner, dweight, dbias]


# -- activations, softmax, attention -----------------------------------------------------------------------------------


def draw_activation(rng: Rng) -> Draw:
    x = 3 * normal(rng, *(int(n) for n in rng.integers(1, 8, int(rng.integers(1, 5)))))
    return Draw({"x": x, "dy": normal(rng, *x.shape)}, {})


def activation(name: str, derivative: Callable[[Any, Any], Any], forward: Callable[[Any], Any]) -> Case:
    """y = forward(x), dx = dy derivative(x, y)."""

    def ours(a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
        y = getattr(nn, name)(a["x"])
        return [y, getattr(nn, f"{name}_backward")(a["dy"], y)]

    def naive(a: Arrays, settings: dict[str, Any]) -> list[np.ndarray]:
        y = forward(a["x"])
        return [y, a["dy"] * derivative(a["x"], y)]

    return Case(name, draw_activation, ours, lambda t, _: getattr(_torch(), name)(t["x"]), naive)


def draw_softmax(rng: Rng) -> Draw:
    arrays, _, _ = draw_activation(rng)
    return Draw(arrays, {"axis": int(rng.integers(-arrays["x"].ndim, arrays["x"].ndim))})


def ours_softmax(log: str, a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
    y = getattr(nn, f"{log}softmax")(a["x"], **settings)
    return [y, getattr(nn, f"{log}softmax_backward")(a["dy"], y, **settings)]


def naive_softmax(log: str, a: Arrays, settings: dict[str, Any]) -> list[np.ndarray]:
    x, dy = (np.moveaxis(array, settings["axis"], -1) for array in (a["x"], a["dy"]))
    moved = x - x.max(-1, keepdims=True)
    e = np.exp(moved)
    sums = total(e)[..., None]
    y = moved - np.log(sums) if log else e / sums
    dx = dy - np.exp(y) * total(dy)[..., None] if log else y * (dy - total(dy * y)[..., None])
    return [np.moveaxis(array, -1, settings["axis"]) for array in (y, dx)]


def draw_attention(mask: str, rng: Rng) -> Draw:
    n, heads, t, s, d, e = (int(m) for m in rng.integers(1, 8, 6))
    arrays = {"q": normal(rng, n, heads, t, d), "k": normal(rng, n, heads, s, d), "v": normal(rng, n, heads, s, e)}
    settings: dict[str, Any] = {} if rng.random() < 0.5 else {"scale": 0.4}
    if mask:
        settings["mask"] = rng.random((t, s)) < 0.6
        settings["mask"][:, 0] = True
    if mask == "float":
        settings["mask"] = np.where(settings["mask"], rng.integers(-2, 3, (t, s)) / 2, -4.0)
    return Draw({**arrays, "dy": normal(rng, n, heads, t, e)}, settings)


def ours_attention(a: Arrays, settings: dict[str, Any], form: Form) -> list[Any]:
    q, k, v, dy = (a[name] for name in ("q", "k", "v", "dy"))
    if "mask" in settings:
        settings = {**settings, "mask": np_like(q).asarray(settings["mask"])}
    o, lse = nn.attention(q, k, v, **settings)
    return [o, *nn.attention_backward(dy, q, k, v, o, lse, **settings)]


def torch_attention(t: Arrays, settings: dict[str, Any]) -> Any:
    given = {name: _torch().as_tensor(value) if name == "mask" else value for name, value in settings.items()}
    mask = given.pop("mask", None)
    return _functional().scaled_dot_product_attention(t["q"], t["k"], t["v"], mask, **given)


def naive_attention(a: Arrays, settings: dict[str, Any]) -> list[np.ndarray]:
    q, k, v, dy = (a[name] for name in ("q", "k", "v", "dy"))
    scale = q.dtype.type(settings.get("scale", q.shape[-1] ** -0.5))
    scores = total(q[:, :, :, None] * k[:, :, None]) * scale
    mask = settings.get("mask")
    if mask is not None:
        scores = np.where(mask, scores, q.dtype.type(-np.inf)) if mask.dtype == bool else scores + mask.astype(q.dtype)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    p = e / total(e)[..., None]
    o = total(p[:, :, :, None] * v.swapaxes(2, 3)[:, :, None])
    dp = total(dy[:, :, :, None] * v[:, :, None])
    ds = p * (dp - total(dy * o)[..., None]) * scale
    dq = total(ds[:, :, :, None] * k.swapaxes(2, 3)[:, :, None])
    dk = total(ds.swapaxes(2, 3)[:, :, :, None] * q.swapaxes(2, 3)[:, :, None])
    dv = total(p.swapaxes(2, 3)[:, :, :, None] * dy.swapaxes(2, 3)[:, :, None])
    return [o, dq, dk, dv]


def _convolution(kind: str) -> Case:
    return Case(f"conv2d {kind}", partial(draw_conv, kind), ours_conv, torch_conv, conv_results)


CASES = [
    *map(_convolution, ("any", "3x3", "1x1", "grouped", "depthwise")),
    Case("conv1d", draw_conv1d, ours_conv1d, torch_conv1d, partial(rows, conv_results)),
    Case("conv_transpose2d", draw_transposed, ours_transposed, torch_transposed, transposed_results),
    Case("max_pool2d", partial(draw_pool, False), ours_pool, torch_pool, naive_pool),
    Case("avg_pool2d", partial(draw_pool, True), ours_pool, torch_pool, naive_pool),
    *(Case(f"batch_norm {n} axes", partial(draw_norm, n), ours_norm, torch_norm, naive_norm) for n in (2, 3, 4, 5)),
    activation("relu", lambda x, y: y > 0, lambda x: np.maximum(x, 0)),
    activation("sigmoid", lambda x, y: y * (1 - y), lambda x: 1 / (1 + np.exp(-x))),
    activation("tanh", lambda x, y: 1 - y * y, np.tanh),
    *(
        Case(
            f"{log}softmax",
            draw_softmax,
            partial(ours_softmax, log),
            partial(lambda log, t, settings: getattr(t["x"], f"{log}softmax")(settings["axis"]), log),
            partial(naive_softmax, log),
        )
        for log in ("", "log_")
    ),
    *(
        Case(
            f"attention {m or 'no'} mask", partial(draw_attention, m), ours_attention, torch_attention, naive_attention
        )
        for m in ("", "bool", "float")
    ),
]
