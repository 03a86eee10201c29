"""The backward walk: from a result to the leaves, latest operator first."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from autograd.convert import is_array
from autograd.function import Edge, Function, check_finite, root
from autograd.modes import modes
from autograd.tensor import Tensor
from kernels.core import tracing
from kernels.core.device import Array, array_module
from kernels.core.tracing import BACKWARD, phase
from kernels.shape import accumulate, added, duplicate


class _Sum:
    """A gradient being accumulated: the first contribution is borrowed, later ones are added in place once we own a
    buffer.
    """

    __slots__ = ("array", "owned")

    def __init__(self, array: Array, owned: bool) -> None:
        self.array, self.owned = array, owned

    def add(self, array: Array, owned: bool) -> None:
        if self.owned:
            accumulate(self.array, array)
        elif owned:
            accumulate(array, self.array)
            self.array = array
            self.owned = True
        else:
            self.array = added(self.array, array)
            self.owned = True


def backward(result: Tensor, gradient: Any = None, retain_graph: bool = False) -> None:
    """Add the gradients of `result` to the `.grad` of its leaves; see Tensor.backward.

    Operators are visited in the reverse of the order in which they were recorded, which is a topological order.
    """
    with phase("backward"):
        seed = _seed(result, gradient)
        if result.creator is None:
            _accumulate_leaf(result, _Sum(seed, False))
        else:
            _walk(result, seed, retain_graph)


def _walk(result: Tensor, seed: Array, retain_graph: bool) -> None:
    pending: dict[Function, list[_Sum | None]] = {}
    queue: list[tuple[int, Function]] = []
    leaves: dict[int, tuple[Any, _Sum]] = {}  # by id: Tensors without a creator

    def deliver(tensor: Tensor | Edge, dy: Array, owned: bool) -> None:
        function = tensor.creator
        if function is None:
            if id(tensor) in leaves:
                leaves[id(tensor)][1].add(dy, owned)
            else:
                leaves[id(tensor)] = (tensor, _Sum(dy, owned))
            return
        if function not in pending:
            pending[function] = [None] * len(function.outputs)
            heapq.heappush(queue, (-function.sequence, function))
        slots = pending[function]
        slot = slots[tensor.index]
        if slot is None:
            slots[tensor.index] = _Sum(dy, owned)
        else:
            slot.add(dy, owned)

    tracer = tracing.current.tracer
    deliver(result, seed, False)
    while queue:
        _, function = heapq.heappop(queue)
        slots = pending.pop(function)
        dys = _filled(function, slots)
        function.donated = tuple(slot is not None and slot.owned for slot in slots)
        held = (a for a in vars(function).values() if isinstance(a, np.ndarray))
        borrowed = {id(root(a)) for a in (*dys, *function.saved, *held) if a is not None}
        given = [dy for dy, donated in zip(dys, function.donated, strict=True) if donated]
        function.accumulators = tuple(_accumulator(parent, pending, leaves) for parent in function.parents)
        grads = function.backward(*dys) if tracer is None else tracer.run(BACKWARD, function, function.backward, *dys)
        grads = tuple(grads) if isinstance(grads, (tuple, list)) else (grads,)
        if len(grads) != len(function.parents):
            raise RuntimeError(
                f"{function.name}: backward gave {len(grads)} gradients for {len(function.parents)} inputs"
            )
        roots = [id(root(grad)) for grad in grads]
        for k, (parent, grad) in enumerate(zip(function.parents, grads, strict=True)):
            if parent is not None and (grad is None or grad is not function.accumulators[k]):
                grad = _checked(function, k, parent, grad)
                # Ours to add to when no one else holds that memory: not a saved array, not another gradient, not dy
                # (unless that was ours).
                ours = roots[k] not in borrowed or any(grad is dy for dy in given)
                deliver(parent, grad, ours and roots.count(roots[k]) == 1 and _is_whole(grad))
        del slots, dys, given, grads, grad, held
        function.accumulators, function.donated = (), ()
        if not retain_graph:
            function.release()
    for tensor, total in leaves.values():
        _accumulate_leaf(tensor, total)


def _is_whole(array: Array) -> bool:
    """Whether each entry has memory of its own that may be written to, unlike those of an array that was broadcast."""
    return (array.flags.c_contiguous or 0 not in array.strides) and (
        not isinstance(array, np.ndarray) or array.flags.writeable
    )


def _accumulator(
    parent: Tensor | Edge | None, pending: dict[Function, list[_Sum | None]], leaves: dict[int, tuple[Any, _Sum]]
) -> Array | None:
    """The gradient that a parent has so far, if it may be added to in place."""
    if parent is None:
        return None
    if parent.creator is None:
        slot = leaves[id(parent)][1] if id(parent) in leaves else None
    else:
        slot = pending[parent.creator][parent.index] if parent.creator in pending else None
    return slot.array if slot is not None and slot.owned else None


def _seed(result: Tensor, gradient: Any) -> Array:
    if not result.requires_grad:
        raise RuntimeError(
            "backward: the result does not require gradients (no input does, or it was made within no_grad)"
        )
    xp = array_module(result.data)
    if gradient is None:
        if result.size != 1:
            raise ValueError(
                f"backward: the result has shape {result.shape}; pass a gradient of that shape (only a single number "
                "has a default)"
            )
        return xp.ones(result.shape, result.dtype)
    array = xp.asarray(gradient.data if isinstance(gradient, Tensor) else gradient, result.dtype)
    if array.shape != result.shape:
        raise ValueError(f"backward: the gradient has shape {array.shape} but the result has shape {result.shape}")
    return array


def _filled(function: Function, slots: list[_Sum | None]) -> list[Array]:
    """The cotangents of all outputs; zeros where no gradient arrived."""
    arrays = [None if slot is None else slot.array for slot in slots]
    like = next(a for a in arrays if a is not None)
    xp = array_module(like)
    return [
        xp.zeros(shape, dtype if dtype.kind == "f" else like.dtype) if a is None else a
        for a, (shape, dtype) in zip(arrays, function.outputs, strict=True)
    ]


def _checked(function: Function, k: int, parent: Tensor | Edge, grad: Any) -> Array:
    """The gradient as an array, so that it can be added to in place: NumPy gives a scalar where an expression of arrays
    has no axes.
    """
    if not isinstance(grad, np.ndarray):
        if grad is None:
            raise RuntimeError(f"{function.name}: backward gave no gradient for input {k}, which needs one")
        if isinstance(grad, np.generic):
            grad = np.asarray(grad)
        elif not is_array(grad):
            raise RuntimeError(
                f"{function.name}: backward gave a {type(grad).__name__} for input {k}, expected an array"
            )
    if grad.shape != parent.shape:
        raise RuntimeError(
            f"{function.name}: the gradient of input {k} has shape {grad.shape}, the input {parent.shape}"
        )
    if grad.dtype != parent.dtype:
        raise RuntimeError(f"{function.name}: the gradient of input {k} is {grad.dtype}, the input {parent.dtype}")
    if modes.anomaly:
        check_finite(grad, f"{function.name}: gradient of input {k}", function.input_shapes, function.created_at)
    return grad


def _accumulate_leaf(tensor: Tensor, total: _Sum) -> None:
    """Add to `.grad`. A borrowed array is copied: a leaf's gradient is its own."""
    if tensor.grad is None:
        tensor.grad = Tensor(total.array if total.owned else duplicate(total.array))
        return
    held = tensor.grad.data
    if held.shape != total.array.shape or held.dtype != total.array.dtype:
        raise RuntimeError(
            f"backward: the gradient of a leaf is {total.array.dtype} {total.array.shape}, but its .grad still holds "
            f"{held.dtype} {held.shape}; "
            f"set .grad to None"
        )
    held += total.array
    tensor.grad.touch()
