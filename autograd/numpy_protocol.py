"""NumPy's own functions on Tensors: ufuncs that have an operator become that operator; everything else sees plain
arrays.
"""

from __future__ import annotations

from typing import Any

from autograd import ops
from autograd.tensor import Tensor

_OPERATORS = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "floor_divide": "floor_divide",
    "remainder": "remainder",
    "power": "power",
    "matmul": "matmul",
    "negative": "neg",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "tanh": "tanh",
    "equal": "equal",
    "not_equal": "not_equal",
    "less": "less",
    "less_equal": "less_equal",
    "greater": "greater",
    "greater_equal": "greater_equal",
    "bitwise_and": "bitwise_and",
    "bitwise_or": "bitwise_or",
    "bitwise_xor": "bitwise_xor",
    "invert": "bitwise_not",
}


def apply_ufunc(ufunc: Any, method: str, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """ufunc(*inputs), for `Tensor.__array_ufunc__`: a Tensor, with its gradient where `ops` has the
    operator.

    Other ufuncs, and calls with settings such as `out` and `where`, take Tensors that require no gradient, and raise
    RuntimeError for one that does. Methods such as reduce give what NumPy gives.
    """
    name = _OPERATORS.get(ufunc.__name__)
    if method == "__call__" and name is not None and not settings:
        return getattr(ops, name)(*inputs)
    targets = settings.pop("out", ())
    arrays = [_plain(x, ufunc.__name__) for x in inputs]
    if targets:
        settings["out"] = tuple(t._written(f"{ufunc.__name__}(out=)") if isinstance(t, Tensor) else t for t in targets)
    result = getattr(ufunc, method)(*arrays, **{key: _plain(value, ufunc.__name__) for key, value in settings.items()})
    if targets:
        return targets[0] if len(targets) == 1 else targets
    if method != "__call__":
        return result
    return tuple(Tensor(r) for r in result) if isinstance(result, tuple) else Tensor(result)


def apply_function(function: Any, args: Any, settings: Any) -> Any:
    """function(*args, **settings) on the arrays of all Tensors, for `Tensor.__array_function__`."""
    return function(*_plain(args, function.__name__), **_plain(settings, function.__name__))


def _plain(value: Any, name: str) -> Any:
    """The same with arrays in place of Tensors, in lists, tuples and dicts, too."""
    if isinstance(value, Tensor):
        return value._plain(f"np.{name}")
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_plain(v, name) for v in value)
    if isinstance(value, dict):
        return {key: _plain(v, name) for key, v in value.items()}
    return value
