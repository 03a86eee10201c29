"""JAX as a side of a race: the settings of XLA, and functions that are compiled whole and wait for their results.

Two modes, because on a CPU XLA has two libraries for convolutions and matrix products: YNNPACK, which it takes by
itself, and Eigen with oneDNN. XLA_FLAGS=--xla_cpu_max_isa=AVX2 binds the code that XLA makes, ONEDNN_MAX_CPU_ISA=AVX2
binds oneDNN, and nothing binds YNNPACK (jax 0.10: its AVX-512 kernels run all the same). So where a limit is set, JAX
races with Eigen alone. Import JAX only by `start`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bench.harness import Build, Run
from bench.shapes import device

WITHOUT_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="


def modes(build: Callable[..., Run], *args: Any) -> dict[str, Build]:
    """build(*args, mode) for each mode that keeps to the chosen instruction set."""
    if device() == "cuda":
        return {}  # raced on the CPU only
    limited = "--xla_cpu_max_isa" in os.environ.get("XLA_FLAGS", "")
    return {mode: partial(build, *args, mode) for mode in (("eigen",) if limited else ("ynnpack", "eigen"))}


def start(mode: str) -> Any:
    """The module jax in this mode. Its flags are read once per process, and a side has a process of its own."""
    if mode == "eigen" and WITHOUT_YNNPACK not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {WITHOUT_YNNPACK}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    return importlib.import_module("jax")


def compiled(jax: Any, fn: Callable[..., Any], *values: Any) -> Run:
    """fn(*values) as one compiled function; a run waits for what it gives."""
    call = jax.jit(fn)
    values = jax.device_put(values)
    return lambda: jax.block_until_ready(call(*values))


def forward_backward(
    fn: Callable[..., Any], arrays: Callable[[], Sequence[np.ndarray]], backward: bool, mode: str
) -> Run:
    """fn of JAX arrays, NHWC, and with `backward` its gradients for a cotangent of ones:
    bench.composite's third side.
    """
    jax = start(mode)
    values = list(arrays())
    if not backward:
        return compiled(jax, fn, *values)
    trained = [k for k, a in enumerate(values) if a.dtype.kind == "f"]

    def both(seed: Any, *values: Any) -> Any:
        def of(*floats: Any) -> Any:
            given = dict(zip(trained, floats, strict=True))
            return fn(*(given.get(k, a) for k, a in enumerate(values)))

        y, back = jax.vjp(of, *(values[k] for k in trained))
        return y, back(seed)

    y = jax.eval_shape(fn, *values)
    return compiled(jax, both, np.ones(y.shape, y.dtype), *values)
