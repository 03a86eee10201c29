"""Named bugs for `--break` and for the power study: what a wrong backward pass looks like.

Two kinds. A `Spoiled` gradient is right until something is done to the finished arrays; it fits every operator. A
`Misprint` is a change in the text of the backward pass itself, made in a copy that stands in for the original for a
while.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autograd import Function, Tensor, enable_grad
from autograd.binding import bound
from engine.cli import UsageError
from engine.gradcheck.catalogue.entry import Built
from kernels.core.dispatch import registry
from kernels.core.modules import load

Change = Callable[[list[np.ndarray]], None]


@dataclass(frozen=True)
class Spoiled:
    """name, what it is in words, and change(gradients): writes to the list of gradients, one per input."""

    name: str
    text: str
    change: Change
    operator: str = "conv2d"
    settings: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def planted(self, built: Built) -> Iterator[Built]:
        """A copy of `built` whose backward has the bug."""
        if built.module is not None:
            # its parameters keep their right gradients: only the inputs' are spoiled
            built = Built(built.fn, built.arrays, built.names)
        yield Built(
            lambda *x: Spoil(built.fn, self.change)(*x),
            built.arrays,
            built.names,
            None,
            built.convention,
            built.convention_input,
        )


@dataclass(frozen=True)
class Misprint:
    """In the function `target` (module:function) `old` is replaced by `new`; shown by `operator` with `settings`."""

    name: str
    text: str
    target: str
    old: str
    new: str
    operator: str
    settings: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def planted(self, built: Built) -> Iterator[Built]:
        """`built` itself, while the misprinted copy stands in for the original."""
        with misprinted(self.target, self.old, self.new):
            yield built


Bug = Spoiled | Misprint


class Spoil(Function):
    """y = fn(x...);  the gradients of fn, then `change` on them."""

    def __init__(self, fn: Callable[..., Any], change: Change) -> None:
        super().__init__()
        self.fn, self.change = fn, change

    def forward(self, *arrays: Any) -> Any:
        self.leaves = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        with enable_grad():
            out = self.fn(*self.leaves)
        self.results = out if isinstance(out, tuple) else (out,)
        return tuple(r.data for r in self.results) if isinstance(out, tuple) else out.data

    def backward(self, *dys: Any) -> Any:
        for leaf in self.leaves:
            leaf.zero_grad()
        for result, dy in zip(self.results, dys, strict=True):
            result.backward(dy, retain_graph=True)
        gradients = [np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.data.copy() for leaf in self.leaves]
        self.change(gradients)
        return tuple(gradients)


def _times(where: Callable[[np.ndarray], Any], factor: float, which: int = 0) -> Change:
    def change(gradients: list[np.ndarray]) -> None:
        g = gradients[min(which, len(gradients) - 1)]
        g[where(g)] *= factor

    return change


def _row_axis(g: np.ndarray) -> int:
    return 1 if g.ndim == 4 else 0


def _last_row(g: np.ndarray) -> Any:
    return (slice(None),) * _row_axis(g) + (-1,) if g.ndim else ()


def _corner(g: np.ndarray) -> Any:
    return (0,) * g.ndim


def _middle(g: np.ndarray) -> Any:
    return tuple(n // 2 for n in g.shape)


def _border(g: np.ndarray) -> Any:
    mask = np.zeros(g.shape, bool)
    for axis in (1, 2) if g.ndim == 4 else range(g.ndim):
        mask[(slice(None),) * axis + (0,)] = mask[(slice(None),) * axis + (-1,)] = True
    return mask


def _last_channel(g: np.ndarray) -> Any:
    return (..., -1) if g.ndim else ()


def _moved(how: Callable[[np.ndarray], np.ndarray], which: int = 0) -> Change:
    def change(gradients: list[np.ndarray]) -> None:
        k = min(which, len(gradients) - 1)
        gradients[k][...] = how(gradients[k].copy())

    return change


def _everything(g: np.ndarray) -> Any:
    return ...


SPOILED = [
    Spoiled("corner", "the gradient of one corner entry of the first input is 10 % too large", _times(_corner, 1.1)),
    Spoiled("zeroed", "the gradient of one entry in the middle of the first input is 0", _times(_middle, 0.0)),
    Spoiled("last-row", "the gradient of the last row of the first input is 2 % too small", _times(_last_row, 0.98)),
    Spoiled("border", "the gradient at the border of the first input is counted twice", _times(_border, 2.0)),
    Spoiled("half", "a factor 2 is missing", _times(_everything, 0.5)),
    Spoiled("sign", "the sign of the last input's gradient is wrong", _times(_everything, -1.0, 9)),
    Spoiled(
        "flipped",
        "the second input's gradient (the filter's) is upside down",
        _moved(lambda g: np.flip(g, 0) if g.ndim else g, 1),
    ),
    Spoiled(
        "shifted",
        "the first input's gradient is shifted by one row",
        _moved(lambda g: np.roll(g, 1, _row_axis(g)) if g.ndim else g),
    ),
    Spoiled(
        "channel",
        "the last channel of the second input's gradient (the filter's) is missing",
        _times(_last_channel, 0.0, 1),
    ),
    Spoiled(
        "tiny", "the gradient of one entry of the first input is off by one part in 100 000", _times(_middle, 1 + 1e-5)
    ),
    Spoiled(
        "float32",
        "the gradient is rounded to float32 on its way",
        _moved(lambda g: g.astype(np.float32).astype(g.dtype)),
    ),
    Spoiled("constant", "a constant is added, whatever the cotangent", _moved(lambda g: g + 1e-3)),
]
_CONV, _NORM, _POINT = "kernels.conv.reference:", "kernels.norm.reference:", "kernels.pointwise.reference:"
_LOSS, _ATTENTION = "kernels.loss.reference:", "kernels.attention.reference:"
MISPRINTS = [
    Misprint(
        "no-dilation",
        "the data gradient forgets the dilation",
        _CONV + "unpatch",
        "i * dh : i * dh",
        "i : i",
        "conv2d",
        {"padding": 2, "dilation": 2},
    ),
    Misprint(
        "no-padding",
        "the data gradient forgets to cut the left padding",
        _CONV + "unpatch",
        "left : left + size[1]",
        ": size[1]",
        "conv2d",
        {"padding": 1},
    ),
    Misprint(
        "wrong-group",
        "the filter gradient mixes the groups up",
        _CONV + "conv2d_backward_filter",
        "transpose(1, 0, 2)",
        "transpose(1, 0, 2)[:, ::-1]",
        "conv2d",
        {"shape": (2, 6, 7, 6), "filters": 9, "groups": 3},
    ),
    Misprint(
        "last-maximum",
        "the last of equal maxima gets the gradient; seen only at the kink",
        "kernels.pool.reference:max_pool2d_forward",
        "offset = rank.argmax(3)",
        "offset = r * s - 1 - rank[:, :, :, ::-1].argmax(3)",
        "max_pool2d",
        {"values": "kink"},
    ),
    Misprint(
        "leaky-at-zero",
        "leaky ReLU's gradient at 0 is 1, not the slope; seen only at the kink",
        _POINT + "leaky_relu_backward",
        "x > 0",
        "x >= 0",
        "leaky_relu",
        {"values": "kink"},
    ),
    Misprint(
        "relu-mask", "the ReLU's mask lets everything through", _POINT + "relu_backward", "y <= 0", "y < 0", "relu"
    ),
    Misprint(
        "no-mean",
        "batch norm: the mean's share is missing",
        _NORM + "batch_norm_backward",
        "(dbias / rows)",
        "(0 * dbias)",
        "batch_norm",
    ),
    Misprint(
        "no-projection",
        "layer norm: one of three terms is missing",
        _NORM + "layer_norm_backward",
        "- xhat * (g * xhat).mean(-1, keepdims=True)",
        "",
        "layer_norm",
    ),
    Misprint(
        "diagonal",
        "softmax: only the Jacobian's diagonal",
        _POINT + "softmax_backward",
        "(dy - (dy * y).sum(axis, keepdims=True))",
        "dy",
        "softmax",
    ),
    Misprint(
        "no-density",
        "GELU: the term x phi(x) is missing",
        _POINT + "gelu_backward",
        "+ x * density",
        "",
        "gelu",
    ),
    Misprint(
        "no-scale",
        "attention: 1 / sqrt(d) is missing in dS",
        _ATTENTION + "attention_backward",
        "ds = scale * p",
        "ds = p",
        "scaled_dot_product_attention",
    ),
    Misprint(
        "no-slope",
        "gate: sigmoid's derivative is missing",
        "kernels.gate.reference:gate_backward",
        "* s * (1 - s)",
        "",
        "gate",
    ),
    Misprint(
        "no-inner",
        "focal loss: the inner derivative is missing",
        _LOSS + "focal",
        "* (1 + spec.gamma * xp.exp(log_py) * k)",
        "",
        "focal_loss",
    ),
    Misprint(
        "dice-2",
        "Dice loss: the factor 2 is missing",
        "kernels.loss.regions:dice",
        "-2 * scale",
        "-scale",
        "dice_loss",
    ),
    Misprint(
        "margin-r",
        "margin loss: the strongest wrong class gets no gradient",
        _LOSS + "margin",
        "(g * r - py * t",
        "(-py * t",
        "margin_loss",
    ),
]
BUGS: dict[str, Bug] = {bug.name: bug for bug in (*SPOILED, *MISPRINTS)}


def find_bug(name: str) -> Bug:
    """The bug of that name, or a UsageError."""
    if name not in BUGS:
        raise UsageError(f"--break: no bug is called {name!r}, expected one of {', '.join(BUGS)}")
    return BUGS[name]


@contextmanager
def misprinted(target: str, old: str, new: str) -> Iterator[None]:
    """Within the block a copy of `target` (module:function or module:Class.method), with `old` replaced by `new`,
    stands in for it everywhere.

    The original is put back in every place afterwards. Raises ValueError when the text no longer contains `old`.
    """
    module_name, path = target.split(":")
    module = load(module_name)
    owner: Any = module
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    raw = inspect.getattr_static(owner, name)
    original = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else inspect.unwrap(raw)
    source = textwrap.dedent(inspect.getsource(original))
    if old not in source:
        raise ValueError(f"{target} does not contain {old!r}")
    scope: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source.replace(old, new), f"<misprint in {target}>", "exec")
    exec(code, vars(module), scope)
    places = [(owner, name)] + [place for place in _holders(raw) if place != (owner, name)]
    places += [(bound, key) for key, value in vars(bound).items() if value is raw]
    tables = [
        (table, key)
        for table in vars(module).values()
        if isinstance(table, dict)
        for key, value in table.items()
        if value is raw
    ]
    operator = registry.get(name)
    if operator is not None and operator.reference is raw:
        places.append((operator, "reference"))
    try:
        for holder, key in places:
            setattr(holder, key, scope[name])
        for table, key in tables:
            table[key] = scope[name]
        yield
    finally:
        for holder, key in places:
            setattr(holder, key, raw)
        for table, key in tables:
            table[key] = raw


def _holders(raw: Any) -> list[tuple[Any, str]]:
    """(module, name) wherever this process knows the object by a module-level name."""
    modules = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    return [(m, key) for m in modules for key, value in list(vars(m).items()) if value is raw]
