"""How PyTorch computes what the operators of array_cases.py compute; the same rules as in torch_forms.py."""

from __future__ import annotations

from typing import Any

from tests.support.torch_forms import _functional, _torch


def abs(x: Any) -> Any:
    return x.abs()


def clip(x: Any, low: Any = None, high: Any = None, **limits: Any) -> Any:
    limits = {"min": low, "max": high} | limits
    if any(hasattr(bound, "shape") for bound in limits.values()):
        limits = {
            key: _torch().as_tensor(bound, dtype=x.dtype) if isinstance(bound, float) else bound
            for key, bound in limits.items()
        }
    return x.clamp(**limits)


def minimum(x: Any, y: Any) -> Any:
    return _torch().minimum(x, y)


def maximum(x: Any, y: Any) -> Any:
    return _torch().maximum(x, y)


def sin(x: Any) -> Any:
    return x.sin()


def cos(x: Any) -> Any:
    return x.cos()


def erf(x: Any) -> Any:
    return x.erf()


def softplus(x: Any, **settings: Any) -> Any:
    return _functional().softplus(x, **settings)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.amin() if axis is None else x.amin(axis, keepdim=keepdims)


def var(x: Any, axis: Any = None, keepdims: bool = False, correction: float = 1) -> Any:
    return x.var(axis, correction=correction, keepdim=keepdims)


def std(x: Any, axis: Any = None, keepdims: bool = False, correction: float = 1) -> Any:
    return x.std(axis, correction=correction, keepdim=keepdims)


def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """PyTorch's has one axis; several are multiplied one after the other."""
    if axis is None:
        return x.prod()
    for a in sorted((a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))), reverse=True):
        x = x.prod(a, keepdim=keepdims)
    return x


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return x.logsumexp(tuple(range(x.ndim)) if axis is None else axis, keepdim=keepdims)


def cumsum(x: Any, axis: int) -> Any:
    return x.cumsum(axis)


def stack(*xs: Any, axis: int = 0) -> Any:
    return _torch().stack(xs, axis)


def flip(x: Any, axis: Any = None) -> Any:
    return x.flip(tuple(range(x.ndim)) if axis is None else axis)


def einsum(*xs: Any, equation: str) -> Any:
    return _torch().einsum(equation, *xs)


def listed(function: Any) -> Any:
    """The function with a list behind each operand, and the last one behind all."""
    return lambda *xs, lists: function(
        *(part for pair in zip(xs, lists, strict=False) for part in pair), *lists[len(xs) :]
    )


def einsum_of_lists(*xs: Any, lists: Any) -> Any:
    return listed(_torch().einsum)(*xs, lists=lists)


def take(x: Any, index: Any, axis: int | None = None) -> Any:
    if axis is None:
        return x.take(index)
    shape = (*x.shape[: axis % x.ndim], *index.shape, *x.shape[axis % x.ndim + 1 :])
    return x.index_select(axis, index.reshape(-1)).reshape(shape)


def gather(x: Any, index: Any, axis: int) -> Any:
    return x.gather(axis, index)


def scatter_add(x: Any, index: Any, src: Any, axis: int) -> Any:
    """PyTorch's own backward pass fails for a source that is longer than the index."""
    return x.scatter_add(axis, index, src[tuple(map(slice, index.shape))])


def sort(x: Any, axis: int = -1, descending: bool = False) -> Any:
    return x.sort(axis, descending)[0]


def topk(x: Any, k: int, axis: int = -1, largest: bool = True) -> Any:
    return x.topk(k, axis, largest)[0]


def embedding(index: Any, weight: Any, padding_idx: int | None = None) -> Any:
    return _functional().embedding(index, weight, padding_idx)


def mse_loss(x: Any, t: Any, **settings: Any) -> Any:
    return _functional().mse_loss(x, t, **settings)


def l1_loss(x: Any, t: Any, **settings: Any) -> Any:
    return _functional().l1_loss(x, t, **settings)


def smooth_l1_loss(x: Any, t: Any, **settings: Any) -> Any:
    return _functional().smooth_l1_loss(x, t, **settings)


def binary_cross_entropy_with_logits(x: Any, t: Any, **settings: Any) -> Any:
    weights = {k: _torch().as_tensor(v) if k.endswith("weight") else v for k, v in settings.items()}
    return _functional().binary_cross_entropy_with_logits(x, t, **weights)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    return _functional().linear(x, weight, bias)


def conv1d(x: Any, w: Any, b: Any = None, stride: int = 1, padding: Any = 0, dilation: int = 1, groups: int = 1) -> Any:
    x = x.permute(0, 2, 1)
    if isinstance(padding, tuple):
        x, padding = _functional().pad(x, padding), 0
    return _functional().conv1d(x, w.permute(2, 1, 0), b, stride, padding, dilation, groups).permute(0, 2, 1)


def group_norm(x: Any, weight: Any = None, bias: Any = None, num_groups: int = 1, eps: float = 1e-5) -> Any:
    return _functional().group_norm(x.movedim(-1, 1), num_groups, weight, bias, eps).movedim(1, -1)


def instance_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return _functional().instance_norm(x.movedim(-1, 1), weight=weight, bias=bias, eps=eps).movedim(1, -1)


def rms_norm(x: Any, weight: Any = None, eps: float | None = None) -> Any:
    return _functional().rms_norm(x, x.shape[-1:], weight, eps)
