"""AdamW over one flat vector, with gradient clipping and an exponential moving average of weights and running statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from autograd import Tensor
from kernels import optimizer as kernels
from kernels.core.device import Array, array_module, to_numpy
from layers import Buffer, Module


class Flat:
    """The Tensors of a module as views of one vector: `vector` (P,), float32. Every Tensor begins a line of 16 floats."""

    def __init__(self, tensors: list[Tensor]) -> None:
        xp = array_module(tensors[0].data)
        self.tensors = tensors
        self.offsets, total = [], 0
        for t in tensors:
            self.offsets.append(total)
            total += -(-t.size // kernels.LINE) * kernels.LINE
        self.vector = xp.zeros(total, tensors[0].dtype)
        for t, view in zip(tensors, self.views(self.vector), strict=True):
            view[...] = t.data
            t.data = view

    def views(self, vector: Array) -> list[Array]:
        """Pieces of a vector of the same layout, in the Tensors' shapes."""
        return [vector[o : o + t.size].reshape(t.shape) for o, t in zip(self.offsets, self.tensors, strict=True)]

    def gather_gradients(self, out: Array) -> None:
        """Write all gradients into `out` (P,); 0 where there is none."""
        kernels.gather([None if t.grad is None else t.grad.data for t in self.tensors], out, self.offsets, [t.size for t in self.tensors])

    def touch(self) -> None:
        """The vector was written to."""
        for t in self.tensors:
            t.touch()


class AdamW:
    """AdamW with decoupled decay (none on biases and normalisation), global-norm clipping and a moving average.

    Call `step(learning_rate)` after backward. clip: largest gradient norm (inf: no clipping). average: decay d of the moving average, warmed
    up as min(d, (1 + t) / (10 + t)); 0 keeps none. The module's parameters become views of one flat vector.
    """

    def __init__(
        self,
        module: Module,
        weight_decay: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        clip: float = 1.0,
        average: float = 0.999,
    ) -> None:
        parameters = module.parameters()
        self.flat = Flat(list(parameters))
        buffers = [t for _, t in module.named_tensors(Buffer)]
        self.buffers = Flat(buffers) if buffers else None
        vector = self.flat.vector
        xp = array_module(vector)
        self.gradient, self.m, self.v = (xp.zeros_like(vector) for _ in range(3))
        lines = [-(-p.size // kernels.LINE) for p in parameters]
        self.decay = xp.asarray(np.repeat([weight_decay if p.decay else 0.0 for p in parameters], lines).astype(vector.dtype))
        self.average = vector.copy() if average else None
        self.average_buffers = self.buffers.vector.copy() if average and self.buffers else None
        self.beta1, self.beta2, self.eps, self.clip, self.average_decay = beta1, beta2, eps, clip, average
        self.steps = 0
        self.squared: Array = np.zeros(())  # of the last gradient, where the parameters are
        self.scale = 1.0  # of that gradient

    @property
    def norm(self) -> float:
        """The gradient norm of the last step, before clipping and without the scale (on CUDA this waits for the device)."""
        return math.sqrt(float(to_numpy(self.squared))) / self.scale

    def gather(self) -> None:
        """Copy all gradients into one vector."""
        self.flat.gather_gradients(self.gradient)

    def step(self, learning_rate: float, scale: float | None = None, gathered: bool = False) -> float | None:
        """Update all parameters in place. Nothing comes back to the host: the norm and the clip factor stay where the parameters are.

        scale: the gradients are those of scale times the loss; they are divided by it in passing, and when their norm is not finite
        nothing is changed: for that the norm is copied to the host, and returned. gathered: `gather` was called.
        """
        if not gathered:
            self.gather()
        self.squared, self.scale = kernels.squared_norm(self.gradient), scale or 1.0
        norm = None if scale is None else self.norm
        if norm is not None and not math.isfinite(norm):
            return norm
        self.steps += 1
        kept = min(self.average_decay, (1 + self.steps) / (10 + self.steps))
        clip = kernels.clip_factor(self.squared, self.clip * self.scale, self.gradient.dtype)
        kernels.adamw_step(
            self.flat.vector,
            self.gradient,
            self.m,
            self.v,
            self.decay,
            self.average,
            step=self.steps,
            learning_rate=learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            clip=clip if scale is None else clip / scale,
            average_decay=kept,
        )
        if self.average_buffers is not None and self.buffers is not None:
            self.average_buffers += (1 - kept) * (self.buffers.vector - self.average_buffers)
        self.flat.touch()
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the module holds the averaged weights and statistics (the plain ones when no average is kept)."""
        pairs = [(self.flat, self.average), (self.buffers, self.average_buffers)]
        live = [(flat, average, flat.vector.copy()) for flat, average in pairs if flat is not None and average is not None]
        for flat, average, _ in live:
            flat.vector[...] = average
            flat.touch()
        try:
            yield
        finally:
            for flat, _, plain in live:
                flat.vector[...] = plain
                flat.touch()


def cosine_schedule(step: int, total: int, warmup: int, peak: float, floor: float) -> float:
    """Learning rate at `step` (0-based) of `total`: linear from peak / warmup to peak over `warmup` steps, then half a cosine to floor."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))
