"""Devices, dispatch, window geometry, recycled memory, random bits, accurate sums."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from kernels.core import device, random
from kernels.core.cpu import buffer_pool
from kernels.core.cuda.module import Launch, parameter_counts
from kernels.core.dispatch import kernel_log, operator, registry, use_kernels
from kernels.core.geometry import Window, pair
from kernels.core.reduction import sum_pixels
from kernels.pointwise import cuda
from tests.support.misprints import Mutant, assert_caught, planted


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


# -- devices -----------------------------------------------------------------------------------------------------------


def test_device_choice_says_which_and_why() -> None:
    try:
        assert str(device.choose("cpu")) == "device: cpu (asked for)"
        with pytest.raises(ValueError, match=r"device: got 'gpu', expected one of auto, cpu, cuda"):
            device.choose("gpu")
        obstacle = device.cuda_obstacle()
        if obstacle:
            with pytest.raises(device.DeviceError, match="cuda was asked for, but"):
                device.choose("cuda")
            assert device.choose("auto").name == "cpu"
            assert obstacle in str(device.choose("auto"))
    finally:
        device.choose("cpu")


def test_device_from_the_environment() -> None:
    show = "from kernels.core import device; print(device.choose())"
    assert python(show, AREOGRAD_DEVICE="cpu").stdout.strip() == "device: cpu (AREOGRAD_DEVICE)"
    bad = python(show, AREOGRAD_DEVICE="tpu")
    assert "AREOGRAD_DEVICE: got 'tpu'" in bad.stderr


def test_a_broken_cupy_never_breaks_the_cpu_path(tmp_path) -> None:
    """A cupy that raises anything on import only means "no CUDA"."""
    (tmp_path / "cupy.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')\n")
    code = (
        "import numpy as np\nfrom kernels.core import device\nfrom autograd import Tensor, ops\n"
        "print(device.choose())\nprint(ops.relu(Tensor(np.ones(2))).data)"
    )
    result = python(code, PYTHONPATH=str(tmp_path), AREOGRAD_DEVICE="auto")
    assert result.returncode == 0, result.stderr
    assert "device: cpu (auto: cupy does not work here: OSError: libcuda.so.1" in result.stdout


# -- dispatch ----------------------------------------------------------------------------------------------------------


def test_dispatch_falls_back_to_the_reference(tmp_path, monkeypatch) -> None:
    (tmp_path / "fast_room.py").write_text(
        "def doubled(x):\n    return NotImplemented if x.dtype == 'float64' else ('fast', x * 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def doubled(x):
        return "reference", x * 2

    kernel = operator(doubled, "x (*S)", cpu="fast_room")
    try:
        with kernel_log() as log:
            assert kernel(np.ones(2, np.float32))[0] == "fast"
            assert kernel(np.ones(2))[0] == "reference"
            with use_kernels("reference"):
                assert kernel(np.ones(2, np.float32))[0] == "reference"
        assert [entry.by for entry in log] == ["fast", "reference", "reference"]
        assert log[0].shapes == ((2,),)
    finally:
        registry.pop("doubled")
    with pytest.raises(ValueError, match="got 'quick', expected one of fast, reference"), use_kernels("quick"):
        pass


# -- geometry ----------------------------------------------------------------------------------------------------------


def test_nested_kernel_logs_end_each_on_its_own() -> None:
    """Two logs with equal entries are still two logs."""
    twice = operator(lambda x: 2 * x, "x (*S)")
    with kernel_log() as outer:
        with kernel_log() as inner:
            twice(np.ones(1))
        twice(np.ones(1))
    assert (len(outer), len(inner)) == (2, 1)
    del registry[twice.name]


def test_same_padding_keeps_the_size() -> None:
    for k in range(1, 7):
        for d in range(1, 4):
            window = Window.of("conv2d", k, 1, "same", d)
            assert window.output_size((9, 10)) == (9, 10)
            assert window.padding[0][1] - window.padding[0][0] in (0, 1)


def test_input_size_inverts_output_size() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        k, s, d = rng.integers(1, 5, (3, 2))
        window = Window.of(
            "x", tuple(k.tolist()), tuple(s.tolist()), tuple(rng.integers(0, 3, 2).tolist()), tuple(d.tolist())
        )
        size = tuple(rng.integers(12, 20, 2).tolist())
        out = window.output_size(size)
        extra = tuple(
            (n + sum(p) - e) % t for n, p, e, t in zip(size, window.padding, window.extent, window.stride, strict=True)
        )
        assert window.input_size(out, extra) == size


def test_pairs_reject_what_is_no_size() -> None:
    assert pair(np.int64(3), "k") == (3, 3)
    for bad in (True, 1.5, (1, 2, 3), "3", None, (1, True)):
        with pytest.raises(ValueError, match="k: got"):
            pair(bad, "k")


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_is_recycled_only_when_the_last_view_dies() -> None:
    pool = buffer_pool.Pool()
    assert pool.largest == 0
    a = pool.empty((64, 1024), np.float32)
    a.fill(1)
    view = a.reshape(-1)[5:70].reshape(5, 13)
    address = a.ctypes.data
    assert address % buffer_pool.ALIGNMENT == 0
    del a
    gc.collect()
    b = pool.empty((64, 1024), np.float32)
    assert b.ctypes.data != address, "a live view must keep its memory"
    b.fill(7)
    assert (view == 1).all()
    del view
    gc.collect()
    assert pool.empty((64, 1000), np.float32).ctypes.data == address, "a nearly equal size must get the recycled block"
    assert pool.held > 0
    assert pool.largest == pool.size_class(64 * 1024 * 4)
    pool.release()
    assert pool.held == 0
    assert pool.peak == 2 * pool.size_class(64 * 1024 * 4)


def test_a_block_with_one_view_is_in_use_for_every_interpreter() -> None:
    """Python 3.14 counts a reference less for a local variable: a block with a single user looked free."""
    pool = buffer_pool.Pool()
    for _ in range(300):  # the interpreter specialises what runs often
        first = pool.empty((1 << 15,))
        assert (pool.references, pool.live > 0) == (1, True)
        second = pool.empty((1 << 15,))
        assert not np.shares_memory(first, second)
        pool.release()
        assert pool.references == 2
        del first, second
        assert (pool.references, pool.live) == (0, 0)
    pool.release()
    assert pool.largest == 0


def test_memory_size_classes_waste_little() -> None:
    for size in [2**16, 2**16 + 1, 10**5, 10**6, 12345678, 2**24 - 1]:
        rounded = buffer_pool.Pool.size_class(size)
        assert size <= rounded <= size * 1.13 + 4096


def test_memory_from_many_threads() -> None:
    pool = buffer_pool.Pool()
    errors = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            arrays = [
                (pool.empty((int(n),), np.float32), v)
                for n, v in zip(rng.integers(2**14, 2**17, 4), rng.random(4), strict=True)
            ]
            for array, value in arrays:
                array.fill(value)
            errors.extend(1 for array, value in arrays if not (array == np.float32(value)).all())

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    gc.collect()
    assert not errors
    assert pool.live == 0


# -- random ------------------------------------------------------------------------------------------------------------


def plain_philox(counter: list[int], key: list[int], bits: int) -> list[int]:
    """Philox with four words of 32 or 64 bits in Python integers. At 64 bits NumPy's generator is the judge of it."""
    multipliers = {32: (0xD2511F53, 0xCD9E8D57), 64: (0xD2E7470EE14C6C93, 0xCA5A826395121157)}[bits]
    weyl = {32: (0x9E3779B9, 0xBB67AE85), 64: (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)}[bits]
    mask = (1 << bits) - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = multipliers[0] * c[0], multipliers[1] * c[2]
        c = [(p1 >> bits) ^ c[1] ^ k[0], p1 & mask, (p0 >> bits) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + weyl[0]) & mask, (k[1] + weyl[1]) & mask]
    return c


def test_philox_against_numpys() -> None:
    """NumPy has the 64-bit variant: it checks the rounds of `plain_philox`, whose 32-bit form then checks ours."""
    theirs = np.random.Philox(counter=[4, 5, 6, 7], key=[123456789, 987654321])
    expected = plain_philox([5, 5, 6, 7], [123456789, 987654321], 64)  # NumPy counts up before its first block
    assert [int(v) for v in theirs.random_raw(4)] == expected
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (4, 50), dtype=np.uint32)
    ours = random.philox(counters, (0xDEADBEEF, 0x12345678))
    for i in range(50):
        assert ours[:, i].tolist() == plain_philox([int(v) for v in counters[:, i]], [0xDEADBEEF, 0x12345678], 32)


def test_philox_known_answers() -> None:
    """The published test vectors of Philox 4x32-10 (Random123)."""
    for counter, key, answer in (
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ):
        assert random.philox(np.array(counter, np.uint32)[:, None], key)[:, 0].tolist() == answer


def test_streams_are_functions_of_seed_offset_and_index() -> None:
    a = random.random_words(7, 3, 1000)
    assert (random.random_words(7, 3, 10) == a[:10]).all()
    assert (random.random_words(7, 4, 1000) != a).mean() > 0.99
    assert (random.random_words(8, 3, 1000) != a).mean() > 0.99
    u = random.uniform(1, 2**40, (300, 300))
    assert u.dtype == np.float32
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002
    stream = random.Stream(5)
    first = stream.generator().random(3)
    assert (random.Stream(5).generator().random(3) == first).all()
    assert (stream.generator().random(3) != first).all()


# -- sums --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 127, 128, 129, 1000, 100_003])
def test_sum_pixels_is_accurate_in_float32(rows: int) -> None:
    x = (np.random.default_rng(rows).standard_normal((rows, 3)) + 100).astype(np.float32)
    exact = x.astype(np.float64).sum(0)
    got = sum_pixels(x)
    assert got.dtype == np.float64
    assert np.abs(got - exact).max() <= 1e-6 * max(1, np.abs(exact).max())


def test_a_free_block_serves_a_smaller_array() -> None:
    from kernels.core.cpu.buffer_pool import _SLACK, Pool

    pool, megabyte = Pool(), 1 << 18
    large = pool.empty((8 * megabyte,))
    taken = pool.empty((3 * megabyte,))  # the large one is in use: a block of its own
    peak = pool.peak
    del large, taken
    first, second = pool.empty((6 * megabyte,)), pool.empty((2 * megabyte,))
    assert pool.peak == peak
    assert not np.shares_memory(first, second)
    pool.empty((8 * megabyte // (2 * _SLACK),))
    assert pool.peak > peak  # nothing free is of a size that suits


# -- CUDA sources ------------------------------------------------------------------------------------------------------


def test_parameters_of_kernels_are_counted() -> None:
    source = """
    // __global__ void left_out(int a) {
    template <class T, int V = pick(1, 2)> __global__ void __launch_bounds__(32 * WARPS<T>, resident(T(), 2)) many(
        const Pack<T, 4>* x,  // the input, once
        T* y, /* one, two */ int (*counts)[2], float scale) {}
    extern "C" __global__ void none() { call(1, 2); }
    """
    assert parameter_counts(source) == {"many": 4, "none": 0}


def test_a_launch_with_another_count_of_arguments_names_the_kernel_and_both_counts() -> None:
    """Before anything is compiled, so that no device is needed. All kernels: tests/cuda/test_resources.py."""
    with pytest.raises(TypeError, match=r"kernels/pointwise/pointwise.cu: dropout<float> got 2 arguments, expected 9"):
        cuda.MODULE.run(Launch("dropout<float>", (1,), (1,)), 1, 2)


def test_a_kernel_that_is_not_declared_is_named() -> None:
    with pytest.raises(KeyError, match=r"dropout<int>.* is not among its instances"):
        cuda.MODULE.run(Launch("dropout<int>", (1,), (1,)))


# -- planted mistakes --------------------------------------------------------------------------------------------------


MUTANTS = [
    Mutant(
        "Philox: rounds cut short",
        "kernels.core.random:philox",
        "range(ROUNDS)",
        "range(ROUNDS - 1)",
        test_philox_known_answers,
    ),
    Mutant(
        "recycled memory handed out while in use",
        "kernels.core.cpu.buffer_pool:Pool._free",
        "== _FREE",
        ">= _FREE",
        test_memory_from_many_threads,
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
