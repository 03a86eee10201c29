"""The forward and backward pass of a training step, run operator by operator."""

from __future__ import annotations

from autograd import Tensor
from engine.training.optimizer import Optimizer
from kernels.core.device import Array, array_module, to_device
from kernels.core.tracing import phase
from layers import Module, SegmentationLoss

Terms = dict[str, Array]


class Passes:
    """passes(x, labels, scale): gradients of scale times the loss, gathered in the optimizer; returns the loss and its
    terms, 0-d arrays.

    x (N, H, W, 1) float32 and labels (N, H, W) are NumPy arrays (they are moved to `device`) or are there already.
    """

    def __init__(self, net: Module, loss: SegmentationLoss, optimizer: Optimizer, device: str) -> None:
        self.net, self.loss, self.optimizer, self.device = net, loss, optimizer, device

    def __call__(self, x: Array, labels: Array, scale: float | None = None) -> Terms:
        """One pass forward and backward; scale None is 1."""
        x = to_device(x, self.device)
        labels = to_device(labels, self.device)
        return self.compute(x, labels, None if scale is None else array_module(x).full((), scale, x.dtype))

    def compute(self, x: Array, labels: Array, seed: Array | None) -> Terms:
        """The same with everything on the device. seed: where backward starts from, 0-d (None: 1). Parameters that the
        optimizer cannot follow are an error before anything is computed, so that no running statistic moves.
        """
        self.optimizer.follow()
        with phase("forward"):
            loss = self.loss(self.net(Tensor(x)), labels)
        self.net.zero_grad()
        loss.backward(None if seed is None else Tensor(seed))
        with phase("optimizer"):
            self.optimizer.gather()
        return {"loss": loss.data, **self.loss.terms}
