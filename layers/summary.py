"""How big a network is: parameters and floating-point operations, measured by running it once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd import Tensor, no_grad, observe
from layers.module import Module


@dataclass(frozen=True)
class Size:
    """parameters: trained numbers.  flops: multiplications and additions of one image, forward.  by_operator: the share
    of each.

    activations: bytes of all operators' results for one image, most of which a training step keeps for its backward
    pass.
    """

    parameters: int
    flops: int
    by_operator: dict[str, int]
    activations: int = 0

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f} M parameters, {self.flops / 1e9:.2f} GFLOP per image forward"


def measure(net: Module, shape: tuple[int, ...] = (1, 64, 128, 1)) -> Size:
    """Run `net` once in evaluation on zeros of `shape` (one image) and add up what its operators say they cost."""
    from kernels.core.cpu.jit import dry_run

    counts: dict[str, int] = {}
    sizes: list[int] = []

    def count(function: Any, inputs: Any, outputs: Any) -> None:
        sizes.extend(y.nbytes for y in (outputs if isinstance(outputs, (tuple, list)) else (outputs,)))
        counts[function.name] = counts.get(function.name, 0) + int(function.flops(inputs, outputs))

    first = next((t for _, t in net.named_tensors()), None)
    was_training = net.training
    x = Tensor(np.zeros(shape, np.float32)) if first is None else Tensor(np.zeros(shape, first.dtype)).to(first.device)
    try:
        with no_grad(), observe(count), dry_run(), np.errstate(all="ignore"):  # only shapes matter
            net.eval()(x)
    finally:
        net.train(was_training)
    return Size(net.parameter_count(), sum(counts.values()) // shape[0], counts, sum(sizes) // shape[0])
