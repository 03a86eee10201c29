"""The optimiser's kernels against the float64 reference, over several steps, aligned and not; and what they cost."""

from __future__ import annotations

import cupy
import numpy as np
import pytest

from autograd import Tensor
from engine.training.optimizer import AdamW
from kernels.core.cuda.module import launch_log
from kernels.core.dispatch import kernel_log
from kernels.optimizer import adamw_step, clip_factor, cuda, gather, reference, squared_norm
from layers import Conv2d
from tests.cuda.bounds import ANY, Mutant, assert_caught, assert_close, clean, trace_only, wider

SETTINGS = {"learning_rate": 3e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "average_decay": 0.7}
LENGTHS = [1, 3, 16, 257, 4096, 5001]


def vectors(count: int, dtype: str) -> list[np.ndarray]:
    """p, g, m, v >= 0, decay, average."""
    rng = np.random.default_rng(count)
    made = [rng.standard_normal(count).astype(dtype) for _ in range(6)]
    made[3], made[4] = abs(made[3]), made[4] > 0
    made[4] = (0.1 * made[4][: -(-count // reference.LINE)]).astype(dtype)
    return made


def check_step(count: int, dtype: str, averaged: bool = True, offset: int = 0) -> None:
    """Three steps; `offset` numbers before the vectors spoil their alignment."""
    plain = vectors(count, dtype)
    fast = [cupy.concatenate([cupy.zeros(offset, dtype), cupy.asarray(a)])[offset:] for a in plain]
    exact = [wider(a) for a in plain]
    with clean(), launch_log() as log, kernel_log() as served:
        for step in (1, 2, 7):
            squared = squared_norm(fast[1])
            clip = clip_factor(squared, 1.5, dtype)
            adamw_step(*fast[:5], fast[5] if averaged else None, step=step, clip=clip, **SETTINGS)
    assert all(s.by == "fast" for s in served)
    runs = count * plain[0].itemsize % 16 == 0 and not offset
    assert sum(launch.kernel.startswith("adamw<") for launch in log) == (3 if runs else 0)
    for arrays in (plain, exact):
        for step in (1, 2, 7):
            factor = reference.clip_factor(reference.squared_norm(arrays[1]), 1.5, arrays[0].dtype)
            reference.adamw_step(*arrays[:5], arrays[5] if averaged else None, step=step, clip=factor, **SETTINGS)
    for got, naive, best in zip(fast, plain, exact, strict=True):
        assert_close(got, naive, best)
    if not averaged:
        assert (fast[5].get() == vectors(count, dtype)[5]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", LENGTHS)
def test_steps_equal_the_reference(count: int, dtype: str) -> None:
    check_step(count, dtype)


def test_without_average_and_unaligned() -> None:
    check_step(64, "float32", averaged=False)
    check_step(64, "float32", offset=3)
    check_step(64, "float64", averaged=False, offset=1)


def check_norm(count: int, dtype: str) -> None:
    g = vectors(count, dtype)[1]
    there = cupy.asarray(g)
    with clean(), launch_log() as log:
        total, again = squared_norm(there), squared_norm(there)
    assert total.get() == again.get()
    assert total.dtype == np.float64
    assert sum(launch.kernel == "squares_finish" for launch in log) == 2
    exact = (g.astype(np.longdouble) ** 2).sum()
    assert abs(total.get() - exact) <= 64 * np.finfo(np.float64).eps * exact


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [*LENGTHS, 300_000])
def test_norm_is_exact_to_float64(count: int, dtype: str) -> None:
    check_norm(count, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip_factor(dtype: str) -> None:
    for squared, largest in ((4.0, 1.0), (4.0, 3.0), (0.0, 1.0), (1e-300, np.inf), (2.0, np.inf)):
        got = clip_factor(cupy.asarray(squared), largest, dtype)
        expected = min(1.0, largest / squared**0.5) if squared else 1.0
        assert got.dtype == dtype
        assert got.get() == np.dtype(dtype).type(expected)


def test_an_empty_vector() -> None:
    nothing = [cupy.zeros(0, "f4") for _ in range(5)]
    assert squared_norm(nothing[0]).get() == 0
    adamw_step(*nothing, None, step=1, clip=1.0, **SETTINGS)


def check_gather() -> None:
    rng = np.random.default_rng(0)
    parts, offsets, sizes, at = [], [], [], 0
    for k in range(cuda.TABLE + 7):
        shape = tuple(rng.integers(1, 9, rng.integers(1, 4)))
        part = None if k % 11 == 3 else rng.standard_normal(shape).astype("f4")
        if k % 5 == 1 and part is not None:
            part = np.asfortranarray(part)
        parts.append(part)
        offsets.append(at)
        sizes.append(int(np.prod(shape)))
        at += sizes[-1] + k % 3
    expected, out = np.full(at, 7, "f4"), cupy.full(at, 7, "f4")
    with clean(), launch_log() as log:
        gather([None if p is None else cupy.asarray(p) for p in parts], out, offsets, sizes)
    assert len(log) == 2
    reference.gather(parts, expected, offsets, sizes)
    assert (out.get() == expected).all()


def test_gather() -> None:
    check_gather()


def test_a_step_of_the_engine_copies_nothing_to_the_host() -> None:
    """The same layer trained on both devices; no copy to the host within the steps."""
    import cupyx

    weights = []
    for device in ("cpu", "cuda"):
        layer = Conv2d(3, 5, 3).to(device)
        rng = np.random.default_rng(0)
        for p in layer.parameters():
            p.data[...] = (np if device == "cpu" else cupy).asarray(rng.standard_normal(p.shape).astype("f4"))
        optimizer = AdamW(layer, clip=0.5, average=0.999)
        gradients = [[rng.standard_normal(p.shape).astype("f4") for p in layer.parameters()] for _ in range(4)]
        if device == "cuda":
            gradients = [[cupy.asarray(g) for g in some] for some in gradients]
        with cupyx.allow_synchronize(device == "cpu"):
            for some in gradients:
                for p, g in zip(layer.parameters(), some, strict=True):
                    p.grad = Tensor(g)
                optimizer.step(1e-2)
        with optimizer.averaged():
            weights.append([p.numpy().copy() for p in layer.parameters()])
        assert optimizer.norm > 0.5
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)


def test_launch_geometry() -> None:
    assert cuda.step_launch(4096, "float", True) == cuda.Launch("adamw<float>", (4,), (256,))
    assert cuda.step_launch(4096, "double", False).grid == (16,)
    assert cuda.squares_launch(10**8, "float", True).grid == (cuda.MOST_PARTS,)
    assert cuda.gather_launch([3, 600, 5], "float").grid == (3, 3)
    assert cuda.in_runs(8, 4, 512, 528)
    assert not cuda.in_runs(8, 4, 512, 520)
    assert not cuda.in_runs(7, 4, 512)


@trace_only
def test_memory_moves_in_runs_of_16_bytes_per_lane() -> None:
    plain = [cupy.asarray(a) for a in vectors(4096, "float32")]
    with clean() as report:
        squared_norm(plain[1])
        adamw_step(*plain, step=1, clip=cupy.ones((), "f4"), **SETTINGS)
    assert report.kernel("adamw").sectors_per_request_of(kind="store") == 16
    assert report.kernel("adamw").global_efficiency == pytest.approx(1, abs=0.02)
    assert report.kernel("squares").global_efficiency > 0.95


def _step() -> None:
    check_step(257, "float32")


def _runs() -> None:
    check_step(4096 - 16, "float32")


MUTANTS = [
    Mutant(
        "runs beyond the last",
        cuda.MODULE,
        "  if (i >= count) return;\n  const T factor",
        "  if (i > count) return;\n  const T factor",
        ("check", "trace"),
        _runs,
    ),
    Mutant(
        "numbers beyond the last",
        cuda.MODULE,
        "  if (i >= count) return;\n  update",
        "  if (i > count) return;\n  update",
        ("check", "trace"),
        _step,
    ),
    Mutant(
        "a vector loses its last number",
        cuda.MODULE,
        "for (int k = 0; k < VECTOR<T>; ++k)\n    update",
        "for (int k = 0; k < VECTOR<T> - 1; ++k)\n    update",
        ANY,
        _runs,
    ),
    Mutant(
        "the moving average lags a step",
        cuda.MODULE,
        "s.kept * (weight.v[k] - old.v[k])",
        "s.kept * (p[i].v[k] - old.v[k]) * 0",
        ANY,
        _runs,
    ),
    Mutant(
        "a vector has the decay of another line",
        cuda.MODULE,
        "decay[i / (LINE / VECTOR<T>)]",
        "decay[i / LINE]",
        ANY,
        _runs,
    ),
    Mutant("decay after the step", cuda.MODULE, "p -= s.learning_rate * decay * p;", "", ANY, _step),
    Mutant("the clip factor is left out", cuda.MODULE, "g[i] * *clip", "g[i]", ANY, _step),
    Mutant(
        "partial sums are left out",
        cuda.MODULE,
        "i < parts; i += THREADS) sum",
        "i < parts - 1; i += THREADS) sum",
        ANY,
        lambda: check_norm(5001, "float32"),
    ),
    Mutant(
        "a tensor without a gradient is left alone",
        cuda.MODULE,
        "to[i] = from ? from[i] : T(0)",
        "if (from) to[i] = from[i]",
        ANY,
        check_gather,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutant, monkeypatch)
