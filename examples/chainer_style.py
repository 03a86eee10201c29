"""A project in the style of Chainer, whose convolutions were cuDNN's:  python examples/chainer_style.py [--device cuda]

Variable and Function are the project's own, a define-by-run graph in thirty lines. What CuPy 14 took away, the calls of
cudnn in forward and backward, are calls of kernels.nn, on NumPy arrays or on CuPy's. With Chainer itself the bodies of
forward and backward are the same. In an installation: from areograd.kernels import nn.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import numpy as np

from kernels import nn

SIZE, CLASSES = 12, 4


# -- the project's own define-by-run graph -----------------------------------------------------------------------------


class Variable:
    """An array, its gradient, and the function that made it."""

    def __init__(self, data: Any, creator: Function | None = None) -> None:
        self.data, self.creator, self.grad = data, creator, None
        self.rank = 0 if creator is None else creator.rank + 1

    def backward(self) -> None:
        """Set the gradient of every variable that this one was made of: the functions from the last to the first."""
        self.grad = self.data * 0 + 1
        waiting = [self.creator]
        while waiting:
            function = max(waiting, key=lambda f: f.rank)
            waiting = [f for f in waiting if f is not function]
            inputs = tuple(v.data for v in function.inputs)
            for variable, grad in zip(function.inputs, function.backward(inputs, (function.output.grad,)), strict=True):
                variable.grad = grad if variable.grad is None else variable.grad + grad
                waiting += [variable.creator] if variable.creator else []


class Function:
    """forward(inputs) gives a tuple of arrays, backward(inputs, grad_outputs) a gradient for every input."""

    def __call__(self, *inputs: Variable) -> Variable:
        self.inputs, self.rank = inputs, max(v.rank for v in inputs)
        (y,) = self.forward(tuple(v.data for v in inputs))
        self.output = Variable(y, self)
        return self.output


# -- functions on cuDNN, now on kernels.nn -----------------------------------------------------------------------------


class Convolution2D(Function):
    """x (N, C, H, W), W (K, C, R, S), b (K,)."""

    def __init__(self, stride: int = 1, pad: int = 0) -> None:
        self.settings = {"stride": stride, "padding": pad}

    def forward(self, inputs):
        x, W, b = inputs
        return (nn.conv2d(x, W, b, **self.settings),)  # cudnn.convolution_forward(x, W, b, y, pad, stride, ...)

    def backward(self, inputs, grad_outputs):
        (x, W, _), (gy,) = inputs, grad_outputs
        gx = nn.conv2d_backward_data(gy, W, x.shape[2:], **self.settings)  # cudnn.convolution_backward_data
        gW = nn.conv2d_backward_filter(x, gy, W.shape[2:], **self.settings)  # cudnn.convolution_backward_filter
        return gx, gW, nn.bias_backward(gy)


class BatchNormalization(Function):
    """Running statistics move by 1 - decay."""

    def __init__(self, mean: Any, var: Any, decay: float = 0.9) -> None:
        self.running, self.decay = (mean, var), decay

    def forward(self, inputs):
        y, self.mean, self.inv_std = nn.batch_norm_training(*inputs, *self.running, momentum=1 - self.decay)
        return (y,)

    def backward(self, inputs, grad_outputs):
        x, gamma, _ = inputs
        return nn.batch_norm_backward(*grad_outputs, x, gamma, self.mean, self.inv_std)


class FixedBatchNormalization(Function):
    """By the running statistics, for predictions."""

    def __init__(self, mean: Any, var: Any) -> None:
        self.running = mean, var

    def forward(self, inputs):
        return (nn.batch_norm_inference(*inputs, *self.running),)


class ReLU(Function):
    """max(x, 0)."""

    def forward(self, inputs):
        self.y = nn.relu(*inputs)
        return (self.y,)

    def backward(self, inputs, grad_outputs):
        return (nn.relu_backward(*grad_outputs, self.y),)


class MaxPooling2D(Function):
    """The maximum of every window."""

    def __init__(self, ksize: int) -> None:
        self.ksize = ksize

    def forward(self, inputs):
        y, self.places = nn.max_pool2d(*inputs, self.ksize)
        return (y,)

    def backward(self, inputs, grad_outputs):
        return (nn.max_pool2d_backward(*grad_outputs, self.places, inputs[0].shape[2:], self.ksize),)


# -- functions that never needed it ------------------------------------------------------------------------------------


class Linear(Function):
    """x (N, ...) flattened, times W, plus b."""

    def forward(self, inputs):
        x, W, b = inputs
        return (x.reshape(len(x), -1) @ W + b,)

    def backward(self, inputs, grad_outputs):
        (x, W, _), (gy,) = inputs, grad_outputs
        return (gy @ W.T).reshape(x.shape), x.reshape(len(x), -1).T @ gy, gy.sum(0)


class SoftmaxCrossEntropy(Function):
    """The mean of -log p of the labels; one_hot (N, classes)."""

    def __init__(self, one_hot: Any) -> None:
        self.one_hot = one_hot

    def forward(self, inputs):
        self.y = nn.log_softmax(*inputs, axis=1)
        return (-(self.one_hot * self.y).sum() / len(self.y),)

    def backward(self, inputs, grad_outputs):
        return (nn.log_softmax_backward(-grad_outputs[0] * self.one_hot / len(self.y), self.y, axis=1),)


# -- a network, data, a loop -------------------------------------------------------------------------------------------


class Net:
    """Convolution, batch norm, ReLU and pooling, twice, then a dense layer."""

    def __init__(self, xp: Any, rng: np.random.Generator) -> None:
        def normal(*shape: int) -> Variable:
            return Variable(xp.asarray(rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape), np.float32))

        def zeros(n: int) -> Variable:
            return Variable(xp.zeros(n, np.float32))

        def ones(n: int) -> Variable:
            return Variable(xp.ones(n, np.float32))

        self.layers = [
            (normal(8, 1, 3, 3), zeros(8), ones(8), zeros(8)),
            (normal(16, 8, 3, 3), zeros(16), ones(16), zeros(16)),
        ]
        self.dense = Variable(xp.asarray(rng.normal(0, 0.05, (16 * 9, CLASSES)), np.float32)), zeros(CLASSES)
        self.running = [(zeros(n).data, ones(n).data) for n in (8, 16)]

    def parameters(self) -> list[Variable]:
        return [variable for layer in (*self.layers, self.dense) for variable in layer]

    def __call__(self, x: Any, train: bool) -> Variable:
        h = Variable(x)
        for (W, b, gamma, beta), running in zip(self.layers, self.running, strict=True):
            norm = BatchNormalization(*running) if train else FixedBatchNormalization(*running)
            h = MaxPooling2D(2)(ReLU()(norm(Convolution2D(pad=1)(h, W, b), gamma, beta)))
        return Linear()(h, *self.dense)


def stripes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (N, 1, 12, 12), float32, of stripes in one of four directions, and the directions (N,)."""
    labels = rng.integers(CLASSES, size=count)
    row, column = np.mgrid[:SIZE, :SIZE]
    across = np.stack([row, column, (row + column) / np.sqrt(2), (row - column) / np.sqrt(2)])[labels]
    waves = np.sin(2 * np.pi * (across / rng.uniform(3, 5, (count, 1, 1)) + rng.random((count, 1, 1))))
    return (waves + rng.normal(0, 0.7, waves.shape))[:, None].astype(np.float32), labels


def train(xp: Any, steps: int = 40, batch: int = 64) -> tuple[float, float, float]:
    """(first loss, last loss, the share of held-out images whose direction is found)."""
    rng = np.random.default_rng(0)
    net, losses = Net(xp, rng), []
    for _ in range(steps):
        images, labels = stripes(batch, rng)
        loss = SoftmaxCrossEntropy(xp.asarray(np.eye(CLASSES, dtype=np.float32)[labels]))(net(xp.asarray(images), True))
        for parameter in net.parameters():
            parameter.grad = None
        loss.backward()
        for parameter in net.parameters():
            parameter.data -= 0.2 * parameter.grad
        losses.append(float(loss.data))
    images, labels = stripes(400, rng)
    found = net(xp.asarray(images), False).data.argmax(1) == xp.asarray(labels)
    return losses[0], losses[-1], float(found.mean())


def main() -> None:
    """Train, and print the losses and the score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="NumPy, or CuPy")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    xp = importlib.import_module("cupy") if options.device == "cuda" else np
    first, last, share = train(xp, options.steps)
    print(f"{xp.__name__}: loss {first:.3f} to {last:.3f}, {share:.1%} of 400 held-out images right")


if __name__ == "__main__":
    main()
