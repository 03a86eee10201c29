"""Fast kernels against the reference: outputs and gradients, under the rule of every fast kernel here.

    max|fast - ref64| <= 3 max|naive - ref64| + tiny

ref64 is the reference in float64 (whose gradients the finite differences prove), naive the reference in the dtype in
question, tiny four roundings of the largest value. Convolutions may be computed by Winograd's transforms, whose stated
bound is 2e-5 of the largest value per convolution.

Some gradients are zero by construction, such as that of a bias whose effect a softmax or a normalisation takes away.
Then every version sums terms that cancel, and what is left is rounding, in float64 too: its largest value divided by
float64's precision is the size of the terms, and takes its place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd import Tensor
from engine.gradcheck.catalogue import Built
from kernels.conv.cpu import algorithm
from kernels.core.device import to_numpy
from kernels.core.dispatch import kernel_log, use_kernels

WINOGRAD = 2e-5
CONVOLUTIONS = ("conv2d_forward", "conv2d_backward_data", "conv2d_backward_filter")


@dataclass
class Comparison:
    """The worst array: error and bar relative to its largest value; served: how many kernel calls the fast code served,
    and of how many.
    """

    verdict: str
    error: float
    bar: float
    seconds: float
    served: tuple[int, int]
    notes: list[str]

    @property
    def ok(self) -> bool:
        """Whether every array is within its bar."""
        return self.verdict == "PASS"


def compare(built: Built, dtype: str, device: str) -> Comparison:
    """Outputs and gradients of `built` by the fast kernels in `dtype` on `device`, against the float64 reference."""
    start = time.perf_counter()
    rounded = Built(built.fn, [a.astype(dtype) for a in built.arrays], built.names, built.module)
    exact = _run(rounded, np.float64, "cpu", "reference")
    naive = _run(rounded, dtype, "cpu", "reference")
    with kernel_log() as log:
        fast = _run(rounded, dtype, device, "fast")
    _to(rounded, np.float64, "cpu")
    fast_calls = [entry for entry in log if entry.by == "fast"]
    winograd = (
        WINOGRAD
        * sum(entry.operator in CONVOLUTIONS for entry in fast_calls)
        * (algorithm.mode() not in ("exact", "direct"))
    )
    worst = (-1.0, 0.0, 0.0)
    notes = []
    for name, a, b, c in ((n, fast[n], naive[n], exact[n]) for n in exact):
        if not c.size:
            continue
        largest = float(np.abs(c).max()) or 1.0
        error, naive_error = (float(np.abs(v.astype(np.float64) - c).max()) for v in (a, b))
        scale = largest / float(np.finfo(np.float64).eps) if naive_error > largest else largest
        bar = max(3 * naive_error + 2 * float(np.finfo(dtype).eps) * scale, winograd * scale)
        if not error <= bar:
            notes.append(f"{name}: error {error:.2e}, bar {bar:.2e}, largest value {largest:.2e}")
        worst = max(worst, (error / bar, error / largest, bar / largest))
    served = len(fast_calls), len(log)
    if log and not fast_calls:
        notes.append("the reference served every call")
    verdict = "FAIL" if any("error" in n for n in notes) else "PASS"
    return Comparison(verdict, worst[1], worst[2], time.perf_counter() - start, served, notes)


def _to(built: Built, dtype: Any, device: str) -> None:
    if built.module is not None:
        built.module.to(device, dtype)


def _run(built: Built, dtype: Any, device: str, backend: str) -> dict[str, np.ndarray]:
    """Outputs, then gradients of all inputs and parameters, by name; the cotangents are the same at every call."""
    rng = np.random.default_rng(0)
    _to(built, dtype, device)
    inputs = built.tensors(dtype, device)
    with use_kernels(backend):
        results = built.fn(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        total = None
        for out in results:
            v = Tensor(rng.standard_normal(out.shape).astype(dtype)).to(device)
            part = (out * v).sum()
            total = part if total is None else total + part
        total.backward()  # type: ignore[union-attr]
    found = {f"output {k}": to_numpy(out.data) for k, out in enumerate(results)}
    found |= {
        f"gradient of {n}": to_numpy(x.grad.data)
        for n, x in zip(built.names, inputs, strict=True)
        if x.grad is not None
    }
    if built.module is not None:
        found |= {
            f"gradient of {n}": to_numpy(p.grad.data) for n, p in built.module.named_parameters() if p.grad is not None
        }
        built.module.zero_grad()
    return found
