"""kernels.nn on CuPy arrays: PyTorch is the judge, nothing waits for the device, and nothing is copied to the host."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import cupyx
import numpy as np
import pytest

from kernels import nn
from kernels.core.device import to_numpy
from tests.support.nn_cases import CASES, FORMS, Case, judge, rounded, truth
from tests.support.paths import ROOT

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:cupyx.allow_synchronize")
SEEDS = range(3)


@pytest.mark.trace
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_pytorch(cp: Any, served: list, case: Case, dtype: str) -> None:
    """In both layouts. Whatever asked for a number of the device would raise."""
    results, winograd = [], False
    for seed in SEEDS:
        draw = rounded(case.draw(np.random.default_rng(seed)), dtype)
        given = {name: array.astype(dtype) for name, array in draw.arrays.items()}
        naive, exact = case.naive(given, draw.settings), truth(case, draw)
        winograd |= draw.winograd
        for form in FORMS:
            on_device = {name: cp.asarray(array) for name, array in given.items()}
            with cupyx.allow_synchronize(False):
                ours = case.ours(on_device, draw.settings, form)
            assert all(isinstance(array, cp.ndarray) and array.dtype == dtype for array in ours)
            results.append([[to_numpy(array) for array in ours], naive, exact])
    judge(case, results, dtype, winograd)
    assert served or dtype == "float16", "no kernel of ours was launched"


X = np.random.default_rng(0).standard_normal((2, 4, 9, 7)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((6, 2, 3, 3)).astype(np.float32)


def test_results_are_in_c_order(cp: Any) -> None:
    x, w, vector = cp.asarray(X), cp.asarray(W), cp.ones(4, np.float32)
    y, places = nn.max_pool2d(x, 2)
    for results in (
        nn.conv2d(x, w, groups=2, padding=1),
        nn.conv2d_backward_data(cp.ones((2, 6, 7, 5), np.float32), w, (9, 7), groups=2),
        nn.conv2d_backward_filter(x, cp.ones((2, 6, 7, 5), np.float32), 3, groups=2),
        nn.conv_transpose2d(x, w[:4], stride=2),
        nn.conv_transpose2d_backward_filter(x, x, 1),
        (y, places, nn.max_pool2d_backward(y, places, (9, 7), 2)),
        nn.avg_pool2d(x, 1),
        nn.batch_norm_training(x, vector, vector),
        nn.relu(x.transpose(3, 2, 1, 0)),
        nn.softmax(x[:, :, ::2], 1),
    ):
        for array in results if isinstance(results, tuple) else (results,):
            assert array.flags.c_contiguous
            assert not cp.shares_memory(array, x)


def test_running_statistics_move_as_on_the_host(cp: Any) -> None:
    vectors = [np.full(4, value, np.float32) for value in (1, 2, 3, 4)]
    on_device = [cp.asarray(vector) for vector in vectors]
    nn.batch_norm_training(X, *vectors)
    with cupyx.allow_synchronize(False):
        nn.batch_norm_training(cp.asarray(X), *on_device)
        y = nn.batch_norm_inference(cp.asarray(X), *on_device)
    for ours, host in zip((*on_device, y), (*vectors, nn.batch_norm_inference(X, *vectors)), strict=True):
        np.testing.assert_allclose(to_numpy(ours), host, rtol=1e-5, atol=1e-5)


def test_dropout_draws_the_bits_of_the_host(cp: Any) -> None:
    np.testing.assert_array_equal(to_numpy(nn.dropout(cp.asarray(X), 0.4, 5, 6)), nn.dropout(X, 0.4, 5, 6))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_empty_batch(cp: Any, served: list, dtype: str) -> None:
    x, w = cp.zeros((0, 4, 9, 7), dtype), cp.asarray(W, dtype)
    y = nn.conv2d(x, w, padding=1, groups=2)
    assert y.shape == (0, 6, 9, 7)
    assert nn.conv2d_backward_data(y, w, (9, 7), padding=1, groups=2).shape == x.shape
    assert not nn.conv2d_backward_filter(x, y, 3, padding=1, groups=2).any()
    assert not nn.bias_backward(y).any()
    y, places = nn.max_pool2d(x, 2)
    assert nn.max_pool2d_backward(y, places, (9, 7), 2).shape == nn.relu(x).shape == nn.softmax(x, 1).shape == x.shape


HOST, DEVICE = "an array on the host, expected CUDA device 0", "an array on CUDA device 0, expected the host"
MIXED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda cp: nn.conv2d(cp.asarray(X), W, groups=2), f"nn.conv2d: w: got {HOST} as x"),
    (lambda cp: nn.conv2d(X, cp.asarray(W), groups=2), f"nn.conv2d: w: got {DEVICE} as x"),
    (lambda cp: nn.conv2d(cp.asarray(X), cp.asarray(W), W[:, 0, 0, 0], groups=2), f"nn.conv2d: bias: got {HOST} as x"),
    (
        lambda cp: nn.batch_norm_training(cp.asarray(X), *cp.ones((2, 4), "f"), np.ones(4), np.ones(4)),
        f"nn.batch_norm_training: running_mean: got {HOST} as x",
    ),
    (
        lambda cp: nn.max_pool2d_backward(cp.asarray(X), np.zeros(X.shape, np.uint8), (18, 14), 2),
        f"nn.max_pool2d_backward: places: got {HOST} as dy",
    ),
    (
        lambda cp: nn.attention(*[cp.asarray(X)] * 3, mask=np.ones((9, 9), bool)),
        f"nn.attention: mask: got {HOST} as q",
    ),
]


@pytest.mark.parametrize(("call", "message"), MIXED, ids=[message for _, message in MIXED])
def test_arrays_of_two_devices_are_refused(cp: Any, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        call(cp)
    assert str(caught.value) == message


def test_the_example_trains_as_on_the_host(cp: Any) -> None:
    spec = importlib.util.spec_from_file_location("chainer_style", ROOT / "examples" / "chainer_style.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    first, last, _ = example.train(np, steps=2, batch=4)
    np.testing.assert_allclose(example.train(cp, steps=2, batch=4)[:2], (first, last), rtol=1e-4)
