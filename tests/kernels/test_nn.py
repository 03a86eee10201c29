"""kernels.nn on NumPy: PyTorch is the judge of every function, forward and backward, in both layouts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from kernels import nn
from tests.support.nn_cases import CASES, FORMS, Case, Form, judge, rounded, truth
from tests.support.paths import ROOT

pytest.importorskip("torch")
SEEDS = range(8)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_pytorch(case: Case, form: Form, dtype: str) -> None:
    results, winograd = [], False
    for seed in SEEDS:
        draw = rounded(case.draw(np.random.default_rng(seed)), dtype)
        given = {name: array.astype(dtype) for name, array in draw.arrays.items()}
        before = {name: array.copy() for name, array in given.items()}
        ours = case.ours(given, draw.settings, form)
        assert {array.dtype.name for array in ours} == {dtype}
        for name, array in given.items():
            np.testing.assert_array_equal(array, before[name])
        results.append([ours, case.naive(given, draw.settings), truth(case, draw)])
        winograd |= draw.winograd
    judge(case, results, dtype, winograd)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X, W, BIAS = normal(2, 4, 9, 7), normal(6, 2, 3, 3, seed=1), normal(6, seed=2)


@pytest.mark.parametrize("padding", [2, (0, 1), ((1, 0), (0, 2)), [1, 1], "same", "valid"], ids=str)
def test_every_form_of_padding(padding: Any) -> None:
    (top, bottom), (left, right) = {
        "2": ((2, 2), (2, 2)),
        "(0, 1)": ((0, 0), (1, 1)),
        "[1, 1]": ((1, 1), (1, 1)),
        "same": ((1, 1), (1, 1)),
        "valid": ((0, 0), (0, 0)),
    }.get(str(padding), padding)
    padded = np.pad(X, ((0, 0), (0, 0), (top, bottom), (left, right)))
    np.testing.assert_allclose(
        nn.conv2d(X, W, BIAS, padding=padding, groups=2), nn.conv2d(padded, W, BIAS, groups=2), atol=1e-5
    )


@pytest.mark.parametrize("padding", [2, np.int64(1), (0, 1), [3], "same", "valid"], ids=str)
def test_every_form_of_padding_of_a_sequence(padding: Any) -> None:
    x, w = normal(2, 4, 9), normal(3, 4, 3)
    before, after = {"2": (2, 2), "1": (1, 1), "[3]": (3, 3), "same": (1, 1), "valid": (0, 0)}.get(
        str(padding), padding
    )
    padded = np.pad(x, ((0, 0), (0, 0), (before, after)))
    np.testing.assert_allclose(nn.conv1d(x, w, padding=padding), nn.conv1d(padded, w), atol=1e-5)


def test_pooling_with_padding_on_one_side() -> None:
    """padding: ((top, bottom), (left, right)), which PyTorch lacks."""
    sides = ((1, 0), (0, 1))
    for value, pool in ((0, nn.avg_pool2d), (-np.inf, lambda *args, **kwargs: nn.max_pool2d(*args, **kwargs)[0])):
        padded = np.pad(X, ((0, 0), (0, 0), *sides), constant_values=value)
        np.testing.assert_allclose(pool(X, 3, padding=sides, stride=1), pool(padded, 3, stride=1), atol=1e-6)


# -- what comes out ----------------------------------------------------------------------------------------------------


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every call of every public function in one float32 draw of all cases, in both layouts."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def recorder(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in nn.__all__:
            patch.setattr(nn, name, recorder(name, getattr(nn, name)))
        for case in CASES:
            draw = case.draw(np.random.default_rng(1))
            for form in FORMS:
                case.ours({k: a.astype(np.float32) for k, a in draw.arrays.items()}, draw.settings, form)
    vectors = normal(4), normal(4), normal(4), np.abs(normal(4)) + 1
    calls.append(("batch_norm_inference", (X, *vectors), {"eps": 1e-5, "layout": "NCHW"}))
    calls.append(("dropout", (X, 0.5, 1, 2), {}))
    assert {name for name, _, _ in calls} == set(nn.__all__)
    return calls


def arrays_of(result: Any) -> list[np.ndarray]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_arrays_of_their_own_in_c_order(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    """For arguments in any order of memory and of bytes, which may be read-only."""
    for name, args, kwargs in recorded(monkeypatch):
        function = getattr(nn, name)
        args = [a.astype(dtype) if getattr(a, "dtype", None) == np.float32 else a for a in args]
        expected = arrays_of(function(*args, **kwargs))
        for made in (
            lambda a: a,
            lambda a: a.T.copy().T,
            lambda a: np.repeat(a, 2, -1)[..., ::2],
            lambda a: a.astype(a.dtype.newbyteorder()),
        ):
            given = [made(a) if isinstance(a, np.ndarray) else a for a in args]
            for a in given:
                if isinstance(a, np.ndarray):
                    a.setflags(write=False)
            for result, plain in zip(arrays_of(function(*given, **kwargs)), expected, strict=True):
                assert isinstance(result, np.ndarray), name
                assert result.flags.c_contiguous, name
                assert result.flags.writeable, name
                assert result.dtype == plain.dtype, name
                assert not any(np.shares_memory(result, a) for a in given if isinstance(a, np.ndarray)), name
                np.testing.assert_allclose(result, plain, rtol=1e-4, atol=1e-4, err_msg=name)


def test_an_empty_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image in, none out; gradients by parameters are zero."""
    for name, args, kwargs in recorded(monkeypatch):
        if name in ("batch_norm_training", "batch_norm_backward"):
            continue  # no statistics of nothing
        maps = ("x", "dy", "places", "y", "q", "k", "v", "do", "o", "lse")
        names = getattr(nn, name).__code__.co_varnames
        given = [a[:0] if n in maps else a for n, a in zip(names, args, strict=False)]
        for empty, whole in zip(
            arrays_of(getattr(nn, name)(*given, **kwargs)), arrays_of(getattr(nn, name)(*args, **kwargs)), strict=True
        ):
            assert empty.shape in ((0, *whole.shape[1:]), whole.shape), name
            assert not empty.any(), name


def test_running_statistics_move_as_pytorchs() -> None:
    import torch

    x = normal(3, 4, 5, 2).astype(np.float64)
    weight, bias, mean, variance = (normal(4, seed=s).astype(np.float64) for s in range(4))
    variance = np.abs(variance) + 0.5
    theirs = [torch.tensor(a) for a in (mean, variance)]
    torch.nn.functional.batch_norm(torch.tensor(x), *theirs, training=True, momentum=0.3)
    nn.batch_norm_training(x, weight, bias, mean, variance, momentum=0.3)
    for ours, other in zip((mean, variance), theirs, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-13)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_inference_and_its_gradient(form: Form) -> None:
    import torch

    x, dy = (normal(3, 4, 5, 2, seed=s).astype(np.float64) for s in (7, 8))
    weight, bias, mean, variance = (normal(4, seed=s).astype(np.float64) for s in range(4))
    variance = np.abs(variance) + 0.5
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    y = torch.nn.functional.batch_norm(
        leaves[0], torch.tensor(mean), torch.tensor(variance), *leaves[1:], training=False, eps=1e-3
    )
    y.backward(torch.tensor(dy))
    settings = {"layout": form.name}
    ours = nn.batch_norm_inference(form.map(x), weight, bias, mean, variance, eps=1e-3, **settings)
    np.testing.assert_allclose(form.back(ours), y.detach().numpy(), rtol=1e-12, atol=1e-12)
    inverse = 1 / np.sqrt(variance + 1e-3)
    gradients = nn.batch_norm_backward(form.map(dy), form.map(x), weight, mean, inverse, training=False, **settings)
    for k, (gradient, leaf) in enumerate(zip(gradients, leaves, strict=True)):
        gradient = form.back(gradient) if k == 0 else gradient
        np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_parameters_of_batch_norm_may_be_wider_than_its_input() -> None:
    """float16 maps with float32 vectors, as cuDNN had them."""
    x, weight, bias = normal(3, 4, 5, 2).astype(np.float16), normal(4, seed=1), normal(4, seed=2)
    y, mean, inverse = nn.batch_norm_training(x, weight, bias)
    dx, dweight, dbias = nn.batch_norm_backward(x, x, weight, mean, inverse)
    assert [a.dtype.name for a in (y, dx, dweight, dbias)] == ["float16", "float16", "float32", "float32"]
    exact, *_ = nn.batch_norm_training(x.astype(np.float64), *(a.astype(np.float64) for a in (weight, bias)))
    np.testing.assert_allclose(y, exact, rtol=2e-3, atol=2e-3)


def test_the_maximum_of_large_windows_and_of_nan() -> None:
    x = normal(1, 2, 20, 20)
    x[0, 1, 3, 4] = np.nan
    y, places = nn.max_pool2d(x, 20)
    assert places.dtype == np.int32
    assert places[0, :, 0, 0].tolist() == [x[0, 0].argmax(), 3 * 20 + 4]
    assert np.isnan(y[0, 1, 0, 0])
    dx = nn.max_pool2d_backward(np.ones_like(y), places, (20, 20), 20)
    assert dx.reshape(2, -1).argmax(1).tolist() == places[0, :, 0, 0].tolist()
    assert dx.sum() == 2


def test_dropout() -> None:
    x = np.ones((50, 8, 10), np.float32)
    y = nn.dropout(x, 0.25, 7)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / x.size)  # four standard errors
    np.testing.assert_array_equal(y, nn.dropout(x, 0.25, 7, 0))
    assert (y != nn.dropout(x, 0.25, 7, 1)).any()
    assert (y != nn.dropout(x, 0.25, 8)).any()
    np.testing.assert_array_equal(nn.dropout(x, 0.0, 7), x)


def test_a_row_that_keeps_nothing() -> None:
    q, k, v = normal(1, 1, 2, 3), normal(1, 1, 4, 3, seed=1), normal(1, 1, 4, 5, seed=2)
    mask = np.array([[True] * 4, [False] * 4])
    o, lse = nn.attention(q, k, v, mask=mask)
    assert (o[0, 0, 1] == 0).all()
    assert lse[0, 0, 1] == np.inf
    dq, dk, dv = nn.attention_backward(np.ones_like(o), q, k, v, o, lse, mask=mask)
    assert (dq[0, 0, 1] == 0).all()
    assert all(np.isfinite(a).all() for a in (dq, dk, dv))


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD = [
    (
        lambda: nn.conv2d(X, W),
        ValueError,
        "w: got shape (6, 2, 3, 3), expected (K, C / groups, R, S) with C / groups = 4",
    ),
    (lambda: nn.conv2d(X[0], W), ValueError, "x: got shape (4, 9, 7), expected 4 axes (N, C, H, W)"),
    (lambda: nn.conv2d(X, W[0]), ValueError, "w: got shape (2, 3, 3), expected 4 axes (K, C / groups, R, S)"),
    (lambda: nn.conv2d(X, W, BIAS[:3], groups=2), ValueError, "bias: got shape (3,), expected (6,) for w (6, 2, 3, 3)"),
    (lambda: nn.conv2d(X, W, groups=3), ValueError, "groups: got 3, expected a divisor of 4 input and 6 output"),
    (lambda: nn.conv2d(X, W, groups=0), ValueError, "groups: got 0, expected an int of at least 1"),
    (lambda: nn.conv2d(X, W, groups=2, stride=0), ValueError, "stride: got 0, expected at least 1"),
    (
        lambda: nn.conv2d(X, W, groups=2, dilation=5),
        ValueError,
        "the window spans (11, 11) pixels, but the input is (9, 7)",
    ),
    (lambda: nn.conv2d(X, W, layout="CHWN"), ValueError, "layout: got 'CHWN', expected 'NCHW' or 'NHWC'"),
    (lambda: nn.conv2d(X, W.astype("d")), TypeError, "w: got float64, expected float32 as x"),
    (lambda: nn.conv2d(X.astype(int), W), TypeError, "x: got int64, expected float16, float32 or float64"),
    (lambda: nn.conv2d(X.tolist(), W), TypeError, "x: got list, expected a NumPy or CuPy array"),
    (lambda: nn.conv2d_backward_data(X, W, 8), ValueError, "dy: got shape (2, 4, 9, 7), expected (2, 6, 6, 6)"),
    (lambda: nn.conv2d_backward_filter(X, X, 3), ValueError, "dy: got shape (2, 4, 9, 7), expected (2, 4, 7, 5)"),
    (lambda: nn.conv1d(X, W), ValueError, "x: got shape (2, 4, 9, 7), expected 3 axes (N, C, L)"),
    (lambda: nn.conv1d(X[0], W[0], layout="NLC"), ValueError, "expected (R, C / groups, K) with C / groups = 7"),
    (
        lambda: nn.conv_transpose2d(X, W),
        ValueError,
        "w: got shape (6, 2, 3, 3), expected (C, K / groups, R, S) with C = 4",
    ),
    (lambda: nn.conv_transpose2d(X, W[:4], output_padding=1), ValueError, "output_padding (1, 1) must be below stride"),
    (
        lambda: nn.conv_transpose2d_backward_data(X, W[:, [0, 0, 0, 0]], (3, 3), stride=2),
        ValueError,
        "dy: got size (9, 7), expected from (7, 7) to (8, 8) for x of size (3, 3)",
    ),
    (lambda: nn.bias_backward(BIAS), ValueError, "dy: got shape (6,), expected at least 2 axes"),
    (lambda: nn.max_pool2d(X[:, :0], 2), ValueError, "x: got shape (2, 0, 9, 7), expected at least one pixel and one"),
    (lambda: nn.max_pool2d(X, 3, padding=2), ValueError, "padding ((2, 2), (2, 2)) must be at most half the kernel"),
    (lambda: nn.max_pool2d_backward(X, X, (18, 14), 2), TypeError, "places: got float32, expected uint8 or int32"),
    (lambda: nn.avg_pool2d(X, 2, ceil_mode="no"), ValueError, "ceil_mode: got 'no', expected True or False"),
    (lambda: nn.avg_pool2d_backward(X, (20, 14), 2), ValueError, "dy: got shape (2, 4, 9, 7), expected (2, 4, 10, 7)"),
    (
        lambda: nn.batch_norm_training(X, BIAS, BIAS),
        ValueError,
        "weight: got shape (6,), expected (4,) for x (2, 4, 9, 7)",
    ),
    (
        lambda: nn.batch_norm_training(X[:1, :, 0, 0], *X[:2, :, 0, 0]),
        ValueError,
        "expected more than one value per channel in training",
    ),
    (lambda: nn.batch_norm_training(X, *X[:2, :, 0, 0], BIAS), TypeError, "got running_mean alone"),
    (
        lambda: nn.batch_norm_training(X, *X[:2, :, 0, 0], eps=-1),
        ValueError,
        "eps: got -1, expected a finite number of",
    ),
    (lambda: nn.softmax(X, 4), ValueError, "axis: got 4, expected an int from -4 to 3"),
    (lambda: nn.softmax_backward(X, X[:1], 1), ValueError, "y: got shape (1, 4, 9, 7), expected (2, 4, 9, 7)"),
    (lambda: nn.dropout(X, 1, 0), ValueError, "p: got 1, expected less than 1"),
    (lambda: nn.dropout(X, 0.5, -1), ValueError, "seed: got -1, expected an int from 0 to 18446744073709551615"),
    (lambda: nn.attention(X, X, W), ValueError, "v: got shape (6, 2, 3, 3), expected (2, 4, 9, 3) for k (2, 4, 9, 7)"),
    (
        lambda: nn.attention(X, X, X, mask=np.ones((2, 9), bool)),
        ValueError,
        "mask: got shape (2, 9), expected one that",
    ),
    (lambda: nn.attention_backward(X, X, X, X, X, X), ValueError, "lse: got shape (2, 4, 9, 7), expected (2, 4, 9)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_bad_argument_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert said.startswith("nn.")
    assert message in said


JUNK = [None, "x", 1.5, -1, 0, 2**70, True, float("nan"), [], (), (1,), (1, 2), (2, 1, 1), [1, "a"], {}, 1j, "same"]


def misfits(value: Any) -> list[Any]:
    """What is put in the place of an argument."""
    if not isinstance(value, np.ndarray):
        return [*JUNK, np.arange(3), np.ones((2, 2)), np.float64(0.5)]
    shapes = [value[None], value[:0], np.concatenate([value, value[:1]]), value[..., :-1]]
    other = np.float32 if value.dtype == np.float64 else np.float64
    kinds = [value.astype(dtype) for dtype in (other, np.int16, bool, complex, object)]
    return [
        *shapes,
        *([value[0], value.T] if value.ndim else []),
        *kinds,
        value.tolist(),
        None,
        "x",
        1.5,
        np.float32(2),
    ]


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_every_bad_argument_gives_a_line_or_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 0
    for name, args, kwargs in recorded(monkeypatch):
        function = getattr(nn, name)
        names = function.__code__.co_varnames[: len(args)]
        for argument, value in [*zip(names, args, strict=True), *kwargs.items()]:
            for junk in misfits(value):
                if isinstance(junk, int) and junk == 2**70 and argument in ("padding", "kernel_size", "size"):
                    continue  # a map that large is no mistake of form
                given = [junk if n == argument else a for n, a in zip(names, args, strict=True)]
                try:
                    function(*given, **({**kwargs, argument: junk} if argument in kwargs else kwargs))
                except (ValueError, TypeError) as error:
                    said = str(error)
                    assert said.startswith(f"nn.{name}: "), f"{name}({argument}={junk!r}): {said}"
                    assert "\n" not in said, said
                    refused += 1
    assert refused > 3000


def test_nothing_is_written_by_a_call_that_is_refused() -> None:
    x, weight, bias = normal(3, 4, 5), normal(4), normal(4)
    mean, variance = np.zeros(4, np.float32), np.ones(4, np.float32)
    variance.setflags(write=False)
    with pytest.raises(ValueError, match="running_var: got a read-only array"):
        nn.batch_norm_training(x, weight, bias, mean, variance)
    assert not mean.any()


def test_the_module_needs_no_tape_and_no_cupy() -> None:
    unwanted = "('autograd', 'cupy', 'numba', 'torch')"
    code = f"import sys; from kernels import nn; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
