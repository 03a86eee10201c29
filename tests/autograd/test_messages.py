"""Arguments that do not fit: the message begins with the operator's name and holds the shapes, whoever found the fault,
this package or NumPy beneath it.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, ops
from tests.support.case import Case
from tests.support.cases import CASES
from tests.support.misfits import changed

NUMPY = ("broadcast together", "expected fit(", "cannot reshape", "zero-size array", "don't match", "repeated axis")
LEFT = Tensor(np.ones((2, 3), np.float32))
RIGHT = Tensor(np.ones((4, 3), np.float32))
BITS = {"bitwise_and", "bitwise_or", "bitwise_xor"}


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


def binary() -> Iterator[str]:
    """The operators that take two arrays whose shapes must fit, by their signatures: add to where, losses of values."""
    for name in (n for n in ops.__all__ if callable(getattr(ops, n))):
        needed = [
            p.name
            for p in inspect.signature(getattr(ops, name)).parameters.values()
            if p.default is inspect.Parameter.empty
        ]
        if needed in (["x", "y"], ["x", "other"], ["x", "exponent"], ["input", "target"]):
            yield name


BINARY = list(binary())


def message(name: str, call: Callable[[], Any], error: type[Exception] = ValueError) -> str:
    """What the call says, which must be of `error`, name the operator, and say nothing in NumPy's words."""
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert said.startswith(f"{name}: "), said
    assert "\n" not in said
    return said


def holds(said: str, *shapes: tuple[int, ...]) -> None:
    assert all(str(shape) in said for shape in shapes), said
    assert not any(words in said for words in NUMPY), said


def test_the_binary_operators_are_found() -> None:
    assert len(BINARY) >= 23
    assert {"add", "power", "maximum", "equal", "bitwise_xor", "matmul", "mse_loss"} <= set(BINARY)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("wrap", [Tensor, np.asarray], ids=["Tensor", "array"])
def test_two_shapes_that_do_not_fit(name: str, wrap: Callable[..., Any]) -> None:
    dtype = np.int64 if name in BITS else np.float32
    x = Tensor(np.ones((2, 3), dtype))
    y = wrap(np.ones((4, 3), dtype))
    holds(message(name, lambda: getattr(ops, name)(x, y)), (2, 3), (4, 3))


MISFITS = {
    "where condition": ("where", lambda: ops.where(np.ones(5, bool), LEFT, LEFT), (5,), (2, 3)),
    "where": ("where", lambda: ops.where(np.ones((2, 3), bool), LEFT, RIGHT), (2, 3), (4, 3)),
    "clip min": ("clip", lambda: ops.clip(LEFT, RIGHT), (2, 3), (4, 3)),
    "clip max": ("clip", lambda: ops.clip(LEFT, 0.0, RIGHT), (2, 3), (4, 3)),
    "matmul batches": ("matmul", lambda: zeros(2, 3, 4) @ zeros(3, 4, 5), (2, 3, 4), (3, 4, 5)),
    "reshape": ("reshape", lambda: ops.reshape(LEFT, (4, 2)), (2, 3), (4, 2)),
    "reshape of a view": ("reshape", lambda: ops.reshape(LEFT.T, (4, 2)), (3, 2), (4, 2)),
    "reshape -1": ("reshape", lambda: LEFT.reshape(4, -1), (2, 3), (4, -1)),
    "reshape -1 twice": ("reshape", lambda: ops.reshape(LEFT, (-1, -1)), (2, 3), (-1, -1)),
    "reshape of nothing": ("reshape", lambda: ops.reshape(zeros(0, 3), (0, -1)), (0, 3), (0, -1)),
    "broadcast_to": ("broadcast_to", lambda: ops.broadcast_to(LEFT, (4, 3)), (2, 3), (4, 3)),
    "broadcast_to fewer axes": ("broadcast_to", lambda: ops.broadcast_to(LEFT, (3,)), (2, 3), (3,)),
    "broadcast_to below 0": ("broadcast_to", lambda: ops.broadcast_to(LEFT, (2, -1)), (2, 3), (2, -1)),
    "transpose fewer axes": ("transpose", lambda: ops.transpose(LEFT, (0,)), (2, 3), (0,)),
    "transpose twice": ("transpose", lambda: LEFT.transpose(0, 0), (2, 3), (0, 0)),
    "transpose outside": ("transpose", lambda: ops.transpose(LEFT, (0, 2)), (2, 3), (0, 2)),
    "pad": ("pad", lambda: ops.pad(LEFT, ((1, 1),)), (2, 3)),
    "split": ("split", lambda: ops.split(LEFT, (1, 3)), (2, 3), (1, 3)),
    "concat": ("concat", lambda: ops.concat([LEFT, zeros(4, 2)]), (2, 3), (4, 2)),
    "stack": ("stack", lambda: ops.stack([LEFT, RIGHT]), (2, 3), (4, 3)),
}


@pytest.mark.parametrize("row", MISFITS.values(), ids=MISFITS)
def test_shapes_that_do_not_fit(row: tuple[Any, ...]) -> None:
    name, call, *shapes = row
    holds(message(name, call), *shapes)


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
@pytest.mark.parametrize("axis", [None, 0, -2])
def test_an_extreme_of_nothing(name: str, axis: int | None) -> None:
    holds(message(name, lambda: getattr(ops, name)(zeros(0, 3), axis=axis)), (0, 3))
    assert getattr(ops, name)(zeros(0, 3), axis=1).shape == (0,)


@pytest.mark.parametrize("name", ["max", "min"])
def test_an_extreme_of_nothing_along_two_axes(name: str) -> None:
    said = message(name, lambda: getattr(ops, name)(zeros(2, 0, 3), axis=(0, 1)))
    assert said.endswith("expected at least one value along the axes (0, 1)")
    assert getattr(ops, name)(zeros(2, 0, 3), axis=(0, 2)).shape == (0,)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var", "std", "prod", "logsumexp", "argmax", "argmin"])
def test_an_axis_that_is_not_there(name: str) -> None:
    said = message(name, lambda: getattr(ops, name)(LEFT, axis=5), np.exceptions.AxisError)
    assert said == f"{name}: axis is 5, expected -2 to 1 for 2 axes"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("reshape", lambda: ops.reshape(LEFT, 6)),  # type: ignore[arg-type]
        ("reshape", lambda: ops.reshape(LEFT, (2.0, 3))),  # type: ignore[arg-type]
        ("broadcast_to", lambda: ops.broadcast_to(LEFT, (2.0, 3))),  # type: ignore[arg-type]
        ("transpose", lambda: ops.transpose(LEFT, ("a", 0))),  # type: ignore[arg-type]
    ],
)
def test_shapes_that_are_no_integers(name: str, call: Callable[[], Any]) -> None:
    assert message(name, call, TypeError).endswith("expected a tuple of integers")


INDICES = {
    "outside": 5,
    "too many": (0, 0, 0),
    "mask": np.ones((3, 3), bool),
    "pairs": (np.zeros(2, int), np.zeros(3, int)),
    "floats": np.zeros(2),
    "two ellipses": (..., ...),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_an_index_that_does_not_fit(index: Any) -> None:
    assert "(2, 3)" in message("getitem", lambda: LEFT[index], IndexError)
    x = zeros(2, 3)
    assert "(2, 3)" in message("setitem", lambda: x.__setitem__(index, 1.0), IndexError)


def test_values_that_do_not_fit_an_index() -> None:
    x = zeros(2, 3)
    said = message("setitem", lambda: x.__setitem__(0, np.ones(4)))
    assert "(4,)" in said
    assert "(2, 3)" in said


def test_an_item_of_several() -> None:
    assert "(2, 3)" in message("item", LEFT.item)


def test_an_integer_to_negative_powers() -> None:
    base = Tensor(np.arange(1, 4))
    message("power", lambda: ops.power(base, -1))
    assert "int64" in message("power", lambda: ops.power(base, Tensor(np.array([-1, 0, 1]))))


def test_an_unknown_setting_of_a_loss() -> None:
    said = message("loss", lambda: ops.make_spec({"focal": 1.0}, gama=2.0), TypeError)
    assert "'gama'" in said
    assert "gamma" in said


def refused(case: Case, inputs: list[Any]) -> str:
    """What the operator says to these inputs; nothing where it takes them."""
    try:
        with np.errstate(all="ignore"):
            case.fn(*inputs, **case.samples[0].settings)
    except (ValueError, TypeError, IndexError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_array_of_another_shape(case: Case) -> None:
    """Whatever the operator refuses, it refuses in its own name and words."""
    name = case.name.split()[0]
    arrays = case.samples[0].arrays()
    for k, array in enumerate(arrays):
        for what, other in changed(array) if isinstance(array, np.ndarray) else ():
            inputs = [
                Tensor(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
                for a in (*arrays[:k], other, *arrays[k + 1 :])
            ]
            said = refused(case, inputs)
            assert not said or said.startswith(f"{name}: "), f"input {k}, {what}: {said}"
            assert not any(words in said for words in NUMPY), f"input {k}, {what}: {said}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_array_of_another_dtype(case: Case) -> None:
    """Integers, booleans and a narrower float in the place of each input, and of all, are taken or refused by name."""
    name = case.name.split()[0]
    arrays = case.samples[0].arrays()
    floats = [k for k, a in enumerate(arrays) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    for places in (floats, *([k] for k in floats)):
        for dtype in (np.int64, np.bool_, np.float32):
            inputs = [
                a if k not in floats else Tensor(a.astype(dtype) if k in places else a) for k, a in enumerate(arrays)
            ]
            said = refused(case, inputs)
            assert not said or said.startswith(f"{name}: "), f"inputs {places} of {dtype.__name__}: {said}"


NO_ARRAYS = {
    "a str": "words",
    "bytes": b"words",
    "an object": object(),
    "a class": int,
    "a dict": {"x": 1.0},
    "a generator": (k for k in range(3)),
    "a complex number": 1j,
    "strings": np.array(["a", "b"]),
    "rows of two lengths": [[1.0], [1.0, 2.0]],
    "None": None,
}
MAPS = {"conv2d", "conv2d_batch_norm"}  # a list stands for several maps
OPTIONAL = {  # the operators that have operands in whose place None may stand
    name
    for name in ops.__all__
    if any(
        kind in ("Tensor | None", "Operand | None")
        for kind in getattr(getattr(ops, name), "__annotations__", {}).values()
    )
}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_is_no_array(case: Case) -> None:
    """In the place of any operand it is refused, by the operator's name, and None where it stands for nothing."""
    name = case.name.split()[0]
    arrays = case.samples[0].arrays()
    for k, array in enumerate(arrays):
        if not isinstance(array, np.ndarray):
            continue
        for what, other in NO_ARRAYS.items():
            inputs = [Tensor(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arrays]
            inputs[k] = other
            said = refused(case, inputs)
            assert said.startswith(f"{name}: ") or (what == "None" and name in OPTIONAL), f"input {k}, {what}: {said}"


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_arrays_and_lists_are_operands(case: Case) -> None:
    """They give what Tensors give, in every place."""
    arrays = [
        a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for a in case.samples[0].arrays()
    ]
    forms: list[Callable[[np.ndarray], Any]] = [lambda a: a, lambda a: a.tolist()]
    if case.name.split()[0] in MAPS | {"einsum"}:
        forms.pop()
    settings = case.samples[0].settings
    expected = case.fn(*(Tensor(a) if isinstance(a, np.ndarray) else a for a in arrays), **settings)
    for form in forms:
        found = case.fn(*(form(a) if isinstance(a, np.ndarray) else a for a in arrays), **settings)
        several = isinstance(expected, (tuple, list))
        for y, t in zip(found if several else [found], expected if several else [expected], strict=True):
            assert isinstance(y, Tensor)
            assert y.dtype == t.dtype
            np.testing.assert_array_equal(y.data, t.data)


def test_operands_by_name_and_in_lists() -> None:
    assert "got str" in message("sum", lambda: ops.sum(x="words"), TypeError)  # type: ignore[arg-type]
    assert ops.sum(x=[1.0, 2.0]).item() == 3  # type: ignore[arg-type]
    assert "tensors[1]" in message("concat", lambda: ops.concat([LEFT, "words"]), TypeError)
    assert "tensors[0]" in message("stack", lambda: ops.stack([object()]), TypeError)  # type: ignore[list-item]
    assert "several" in message("concat", lambda: ops.concat(3), TypeError)  # type: ignore[arg-type]
    maps = (zeros(1, 4, 4, 2), "words")
    assert "input[1]" in message("conv2d", lambda: ops.conv2d(maps, zeros(1, 1, 4, 1)), TypeError)  # type: ignore[arg-type]
    assert "holds Tensors" in message("neg", lambda: ops.neg([LEFT, RIGHT]), TypeError)  # type: ignore[arg-type]
    assert "holds Tensors" in message("add", lambda: ops.add(LEFT, [LEFT, RIGHT]), TypeError)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        ops.relu()  # type: ignore[call-arg]


def test_operators_are_functions_of_their_package() -> None:
    """They can be pickled, and tell their signature and their docstring."""
    for name in ops.__all__:
        operator = getattr(ops, name)
        if callable(operator):
            assert pickle.loads(pickle.dumps(operator)) is operator
            assert operator.__doc__
            assert "return" in operator.__annotations__
    assert list(inspect.signature(ops.conv2d).parameters)[:2] == ["input", "weight"]
