"""The programs of polarized self-attention on the CPU: products of a matrix with a vector, from either side, layer norm
and gates.

Matrices are row-major and used in place: an image (pixels, channels) as well as a weight. Vectors are given as
(array, first float).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kernels.core.cpu.simd import Code, Float, Int, Pointer, Vec, program
from kernels.core.cpu.vector_ops import vector_loop

_ROWS_AT_ONCE = 4  # rows whose products are summed at the same time
_BLOCKS = (8, 4)  # vectors of columns that are summed at the same time


# -- matrix times vector -----------------------------------------------------------------------------------------------


def _make_dots(paired: bool) -> Callable[..., None]:
    @program
    def dots(
        code: Code, a: Pointer, a0: Int, b: Pointer, b0: Int, y: Pointer, y0: Int, rows: Int, columns: Int
    ) -> None:
        """y[i] = <A[i], b>; paired: <A[i], B[i]>."""

        def some(first: Int, count: int) -> None:
            sums = [code.variable(0.0) for _ in range(count)]

            def body(j: Int, rest: Any) -> None:
                shared = None if paired else code.load(b, b0 + j, rest)
                for k in range(count):
                    at = (first + k) * columns + j
                    other = code.load(b, b0 + at, rest) if shared is None else shared
                    sums[k].set(code.fma(code.load(a, a0 + at, rest), other, sums[k].get()))

            vector_loop(code, columns, body)
            for k in range(count):
                code.store(code.total(sums[k].get()), y, y0 + first + k, code.int(1))

        whole = code.rounded_to(rows, code.int(_ROWS_AT_ONCE))
        with code.loop(0, whole, _ROWS_AT_ONCE) as i:
            some(i, _ROWS_AT_ONCE)
        with code.loop(whole, rows) as i:
            some(i, 1)

    return dots


def _make_combine(paired: bool) -> Callable[..., None]:
    @program
    def combine(
        code: Code, f: Pointer, f0: Int, f_step: Int, a: Pointer, a0: Int, y: Pointer, y0: Int, rows: Int, columns: Int
    ) -> None:
        """y[j] += sum_i f[i f_step] A[i, j]; paired: sum_i F[i, j] A[i, j] (no f_step then)."""

        def block(j: Int, vectors: int, rest: Any) -> None:
            places = [j + k * code.lanes for k in range(vectors)]
            sums = [code.variable(code.load(y, y0 + place, rest)) for place in places]
            with code.loop(0, rows) as i:
                shared = None if paired else code.broadcast(f, f0 + i * f_step)
                for place, total in zip(places, sums, strict=True):
                    factor = code.load(f, f0 + i * columns + place, rest) if shared is None else shared
                    total.set(code.fma(factor, code.load(a, a0 + i * columns + place, rest), total.get()))
            for place, total in zip(places, sums, strict=True):
                code.store(total.get(), y, y0 + place, rest)

        done = code.int(0)
        for vectors in _BLOCKS:
            end = done + code.rounded_to(columns - done, code.int(vectors * code.lanes))
            with code.loop(done, end, vectors * code.lanes) as j:
                block(j, vectors, None)
            done = end
        vector_loop(code, columns - done, lambda j, rest: block(done + j, 1, rest))

    return combine


dots, dots_of_pairs = _make_dots(False), _make_dots(True)
combine, combine_pairs = _make_combine(False), _make_combine(True)


# -- gates of channels: sigmoid of a layer norm, in float64 but for the exponential (its gradient is what is left of lar


def _wide(code: Code, x: Pointer, at: Int, rest: Any) -> Vec:
    return code.wide.converted(code.load(x, at, rest))


def _standard(code: Code, o: Pointer, o0: Int, channels: Int, eps: Any) -> tuple[Callable[[Int, Any], Vec], Vec]:
    """xhat(i, rest) = (o - mean) inverse, and inverse = 1 / sqrt(var + eps)."""
    wide = code.wide
    count = wide.number(channels)
    total = wide.variable(0.0)
    squares = wide.variable(0.0)
    vector_loop(code, channels, lambda i, rest: total.set(total.get() + _wide(code, o, o0 + i, rest)))
    mean = wide.total(total.get()) / count

    def square(i: Int, rest: Any) -> None:
        d = wide.kept(_wide(code, o, o0 + i, rest) - mean, rest)
        squares.set(wide.fma(d, d, squares.get()))

    vector_loop(code, channels, square)
    inverse = 1 / wide.sqrt(wide.total(squares.get()) / count + wide.converted(code.splat(eps)))
    return lambda i, rest: (_wide(code, o, o0 + i, rest) - mean) * inverse, inverse


@program
def channel_gates(
    code: Code, o: Pointer, o0: Int, gain: Pointer, offset: Pointer, channels: Int, s: Pointer, s0: Int, eps: Float
) -> None:
    """s = sigmoid(xhat gain + offset)."""
    xhat, _ = _standard(code, o, o0, channels, eps)

    def body(i: Int, rest: Any) -> None:
        z = code.wide.fma(xhat(i, rest), _wide(code, gain, i, rest), _wide(code, offset, i, rest))
        code.store(code.sigmoid(code.converted(z)), s, s0 + i, rest)

    vector_loop(code, channels, body)


@program
def channel_gates_gradient(
    code: Code, t: Pointer, ds0: Int, s0: Int, o0: Int, gain: Pointer, out: Pointer, at: Int, channels: Int, eps: Float
) -> None:
    """out[at :] = do, dgain, doffset of one image, a row of channels each; ds, s and o are in t.  With g = ds s (1 -
    s):

    doffset = g    dgain = g xhat    do = inverse (g gain - mean(g gain) - xhat mean(g gain xhat))
    """
    wide = code.wide
    xhat, inverse = _standard(code, t, o0, channels, eps)
    first = wide.variable(0.0)
    second = wide.variable(0.0)
    count = wide.number(channels)

    def parameters(i: Int, rest: Any) -> None:
        gate = _wide(code, t, s0 + i, rest)
        normal = xhat(i, rest)
        g = _wide(code, t, ds0 + i, rest) * gate * (1 - gate)
        code.store(code.converted(g * normal), out, at + channels + i, rest)
        code.store(code.converted(g), out, at + channels * 2 + i, rest)
        # rounded: the subtraction below must use the number that was summed here
        weighted = code.converted(g * _wide(code, gain, i, rest))
        code.store(weighted, out, at + i, rest)
        first.set(first.get() + wide.converted(weighted))
        second.set(wide.fma(wide.converted(weighted), normal, second.get()))

    vector_loop(code, channels, parameters)
    mean = wide.total(first.get()) / count
    along = wide.total(second.get()) / count

    def gradient(i: Int, rest: Any) -> None:
        centred = _wide(code, out, at + i, rest) - mean
        code.store(code.converted(inverse * (centred - xhat(i, rest) * along)), out, at + i, rest)

    vector_loop(code, channels, gradient)


# -- gates of pixels ---------------------------------------------------------------------------------------------------


@program
def pixel_gates(code: Code, z: Pointer, z0: Int, shift: Int, pixels: Int) -> None:
    """z <- sigmoid(z + the number at `shift`)."""
    more = code.broadcast(z, shift)
    vector_loop(
        code, pixels, lambda i, rest: code.store(code.sigmoid(code.load(z, z0 + i, rest) + more), z, z0 + i, rest)
    )


@program
def pixel_gates_gradient(code: Code, t: Pointer, ds0: Int, s0: Int, total: Int, pixels: Int) -> None:
    """ds <- ds s (1 - s), and their sum at `total`."""
    sums = code.variable(0.0)

    def body(i: Int, rest: Any) -> None:
        gate = code.load(t, s0 + i, rest)
        value = code.load(t, ds0 + i, rest) * gate * (1 - gate)
        code.store(value, t, ds0 + i, rest)
        sums.set(sums.get() + value)

    vector_loop(code, pixels, body)
    code.store(code.total(sums.get()), t, total, code.int(1))


# -- maps --------------------------------------------------------------------------------------------------------------


def _gates(code: Code, of_pixels: bool, t: Pointer, s0: Int, pixel: Int) -> Callable[[Int, Any], Vec]:
    """s(c, rest): the gates of a pixel's channels."""
    if not of_pixels:
        return lambda c, rest: code.load(t, s0 + c, rest)
    gate = code.broadcast(t, s0 + pixel)
    return lambda _c, _rest: gate


def _make_scale(of_pixels: bool) -> Callable[..., None]:
    @program
    def scale(code: Code, x: Pointer, x0: Int, t: Pointer, s0: Int, y: Pointer, pixels: Int, channels: Int) -> None:
        """y = s x."""
        with code.loop(0, pixels) as pixel:
            at = x0 + pixel * channels
            gates = _gates(code, of_pixels, t, s0, pixel)
            vector_loop(
                code, channels, lambda c, rest: code.store(code.load(x, at + c, rest) * gates(c, rest), y, at + c, rest)
            )

    return scale


class Gates(NamedTuple):
    """The factors of the gradient of a gated map, all in t: the gates s, the factors f of a vector v, and g, `g_step`
    apart, of a vector w.
    """

    t: Any
    s: Any
    f: Any
    v: Any
    g: Any
    g_step: Any
    w: Any


def _make_scale_gradient(of_pixels: bool) -> Callable[..., None]:
    @program
    def scale_gradient(code: Code, dy: Pointer, x0: Int, gates: Gates, dx: Pointer, pixels: Int, channels: Int) -> None:
        """dx[l] = s dy[l] + f[l] v + g[l g_step] w."""
        t = gates.t
        with code.loop(0, pixels) as pixel:
            at = x0 + pixel * channels
            scale = _gates(code, of_pixels, t, gates.s, pixel)
            f = code.broadcast(t, gates.f + pixel)
            g = code.broadcast(t, gates.g + pixel * gates.g_step)

            def body(c: Int, rest: Any) -> None:
                value = code.fma(f, code.load(t, gates.v + c, rest), g * code.load(t, gates.w + c, rest))
                code.store(code.fma(code.load(dy, at + c, rest), scale(c, rest), value), dx, at + c, rest)

            vector_loop(code, channels, body)

    return scale_gradient


scale_channels, scale_pixels = _make_scale(False), _make_scale(True)
scale_channels_gradient = _make_scale_gradient(False)
scale_pixels_gradient = _make_scale_gradient(True)


# -- sums over images --------------------------------------------------------------------------------------------------


@program
def sum_rows(code: Code, a: Pointer, a0: Int, rows: Int, row: Int, y: Pointer, y0: Int, columns: Int) -> None:
    """y = the sum of so many rows of A, `row` floats apart, in float64."""

    def body(j: Int, rest: Any) -> None:
        total = code.wide.variable(0.0)
        with code.loop(0, rows) as i:
            total.set(total.get() + _wide(code, a, a0 + i * row + j, rest))
        code.store(code.converted(total.get()), y, y0 + j, rest)

    vector_loop(code, columns, body)
