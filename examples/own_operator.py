"""An operator of your own, hard swish, with a CPU kernel:  python examples/own_operator.py

A `Function` puts the definition, in NumPy, and a vector program for float32 on the tape. The gradient is proven, the
kernel compared with the definition. docs/tutorials/operator.md tells how it would become a part of the engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import engine
import layers
from autograd import Function, Tensor, gradcheck, ops
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import cpu_kernel
from kernels.core.cpu.simd import Code, Int, Pointer, program
from kernels.core.cpu.thread_pool import parallel
from kernels.core.cpu.vector_ops import vector_loop

CHUNK = 16_384  # numbers that one thread computes at a time


def definition(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x + 3, 0, 6) / 6


@program
def emit_forward(code: Code, x: Pointer, y: Pointer, at: Int, length: Int) -> None:
    """Machine code for one run of numbers, as many at once as the processor's vectors hold."""

    def one(i: Int, rest: Any) -> None:
        v = code.load(x, at + i, rest)
        code.store(v * code.minimum(code.maximum(v + 3, 0), 6) * (1 / 6), y, at + i, rest)

    vector_loop(code, length, one)  # the last vector need not be full: `rest` says how many numbers it has


@cpu_kernel()
def hard_swish(start, stop, scratch, x: F32, y: F32, n: int):  # type: ignore[no-untyped-def]
    for chunk in range(start, stop):
        emit_forward(x, y, chunk * CHUNK, min(CHUNK, n - chunk * CHUNK))


class HardSwish(Function):
    """y = x clip(x + 3, 0, 6) / 6;  dx = dy (2 x + 3) / 6, 0 below -3 and dy above 3.  (arXiv 1905.02244)"""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.save(x)
        if x.dtype != np.float32 or not x.flags.c_contiguous or not x.size:
            return definition(x)
        y = np.empty_like(x)
        parallel(hard_swish, -(-x.size // CHUNK), x.reshape(-1), y.reshape(-1), x.size)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        (x,) = self.saved
        return dy * np.where(abs(x) < 3, (2 * x + 3) / 6, x > 0).astype(dy.dtype)


class Activation(layers.Module):
    def forward(self, x: Tensor) -> Tensor:
        return HardSwish()(x)  # an instance serves one call


def main() -> None:
    """Prove the gradient, compare the kernel, and train a network with it."""
    x = 3 * np.random.default_rng(0).normal(size=100_003)
    print(gradcheck(Activation(), Tensor(x[:600], requires_grad=True), name="hard swish").table())
    y = HardSwish()(Tensor(x.astype(np.float32))).data
    print(f"the kernel is off by at most {np.abs(y - definition(x)).max():.1e}, from {len(x):,} numbers")
    points = x[:1200].reshape(300, 4)
    net = layers.Sequential(layers.Linear(4, 32), Activation(), layers.Linear(32, 4))
    loss = engine.fit(net, (points, points.argmax(1)), ops.cross_entropy, epochs=20, callbacks=[])["loss"]
    print(f"it learns which of four numbers is the largest: loss {loss[0]:.3f} to {loss[-1]:.3f}")


if __name__ == "__main__":
    main()
