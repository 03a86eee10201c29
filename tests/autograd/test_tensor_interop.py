"""Tensors among NumPy, PyTorch, matplotlib and Python's own protocols."""

from __future__ import annotations

import array
import copy
import pickle
import re

import numpy as np
import pytest

from autograd import Tensor, no_grad, ops
from layers import Buffer, Conv2d, Parameter
from tests.support.paths import ROOT


def values() -> np.ndarray:
    return np.arange(6.0, dtype=np.float32).reshape(2, 3)


def test_numpy_takes_a_tensor_for_an_array() -> None:
    x = Tensor(values())
    assert np.asarray(x).dtype == np.float32
    assert np.shares_memory(np.asarray(x), x.data)
    assert not np.shares_memory(np.array(x), x.data)
    assert np.asarray(x, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.array(x, dtype=np.float64, copy=False)
    assert np.mean(x) == 2.5
    assert np.max(x, axis=0).tolist() == [3, 4, 5]
    assert np.sum(x, axis=1).tolist() == [3, 12]
    assert np.concatenate([x, values()]).shape == (4, 3)
    assert np.array_equal(x, values())
    assert np.add.reduce(x).tolist() == [3, 5, 7]
    assert np.stack([x, x]).shape == (2, 2, 3)
    np.testing.assert_allclose(x, values())
    out = np.zeros((2, 3), np.float32)
    assert np.add(x, 1, out=out) is out
    out += x
    np.testing.assert_array_equal(out, 2 * values() + 1)


def test_numpy_refuses_a_tensor_whose_gradient_would_be_lost() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    x = Tensor(values(), requires_grad=True)
    out = np.zeros((2, 3), np.float32)

    def add_in_place() -> None:
        nonlocal out
        out += x

    for wrong in (
        lambda: np.asarray(x),
        lambda: np.mean(x),
        lambda: np.concatenate([x, values()]),
        lambda: np.floor(x),
        add_in_place,
        lambda: np.array([x, x]),
        lambda: torch.from_dlpack(x),
    ):
        with pytest.raises(RuntimeError, match=r"requires gradients, which .* would lose; use tensor.detach\(\)"):
            wrong()
    assert np.mean(x.detach()) == 2.5
    assert x.numpy() is x.data


def test_ufuncs_with_an_operator_keep_the_gradient() -> None:
    x = Tensor(values() + 1, requires_grad=True)
    w = np.full((2, 3), 2.0)
    for y, expected in (
        (w * x, 2.0 * np.ones((2, 3))),
        (w + x, np.ones((2, 3))),
        (w - x, -np.ones((2, 3))),
        (w / x, -2 / x.data**2),
        (np.float64(3) * x, np.full((2, 3), 3.0)),
        (np.exp(x), np.exp(x.data)),
        (np.multiply(x, w), w),
        (np.log(x), 1 / x.data),
        (w**x, np.log(2) * 2**x.data),
        (np.eye(2) @ x, np.ones((2, 3))),
        (-x, -np.ones((2, 3))),
        (np.negative(x), -np.ones((2, 3))),
    ):
        assert isinstance(y, Tensor)
        assert y.dtype == np.float32
        x.zero_grad()
        y.sum().backward()
        np.testing.assert_allclose(x.grad.data, expected, rtol=1e-6)
    free = np.floor(Tensor([1.5, 2.5]))
    assert isinstance(free, Tensor)
    assert free.data.tolist() == [1, 2]
    assert [part.data.tolist() for part in np.modf(Tensor([1.5]))] == [[0.5], [1.0]]
    assert (np.ones(3) == Tensor([1.0, 2.0, 1.0])).data.tolist() == [True, False, True]


def test_numbers() -> None:
    x = Tensor(np.asarray(2.5, np.float32))
    assert float(x) == 2.5
    assert int(x) == 2
    assert f"{x:.3f}" == "2.500"
    assert f"{x}" == "2.5"
    assert float(Tensor([[3.0]])) == 3.0
    assert [10, 20, 30][Tensor(np.asarray(1))] == 20
    assert list(range(5))[Tensor(np.asarray(1)) : Tensor(np.asarray(3))] == [1, 2]
    loss = (Tensor([1.0, 2.0], requires_grad=True) * 2).sum()
    assert float(loss) == 6.0
    assert f"{loss:.1f}" == "6.0"
    with pytest.raises(TypeError, match="only an integer Tensor can be an index, got float32"):
        [1, 2][x]
    with pytest.raises(ValueError, match=r"float: a Tensor of shape \(2,\) is no single number"):
        float(Tensor([1.0, 2.0]))
    with pytest.raises(TypeError, match=r"format: a Tensor of shape \(2,\) has no format '.2f'"):
        format(Tensor([1.0, 2.0]), ".2f")
    assert "Tensor(" in f"{Tensor([1.0, 2.0])}"


def test_sequences() -> None:
    x = Tensor(values(), requires_grad=True)
    rows = list(x)
    assert len(rows) == len(x) == 2
    (rows[1] * 2).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[0, 0, 0], [2, 2, 2]])
    a, b = x
    assert a.shape == b.shape == (3,)
    assert x.tolist() == values().tolist()
    for wrong in (len, iter, list):
        with pytest.raises(TypeError, match="without axes"):
            wrong(Tensor(1.0))


def test_shapes_as_numpy_writes_them() -> None:
    x = Tensor(values())
    for shape in ((3, 2), [3, 2]):
        assert x.reshape(shape).shape == (3, 2)
        assert x.reshape(*shape).shape == (3, 2)
    assert x.reshape(-1).shape == (6,)
    y = Tensor(np.zeros((2, 3, 4)))
    for order in ((2, 0, 1), [2, 0, 1]):
        assert y.transpose(order).shape == y.transpose(*order).shape == (4, 2, 3)
    assert y.transpose().shape == y.transpose(None).shape == y.T.shape == (4, 3, 2)
    assert y.flatten().shape == (24,)
    assert y.flatten(1).shape == (2, 12)
    assert y.unsqueeze(-1).squeeze().shape == (2, 3, 4)
    assert y.exp().log().sqrt().shape == (2, 3, 4)


def test_foreign_arrays_are_converted_or_refused_by_name() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    foreign = torch.arange(3, dtype=torch.float32)
    x = Tensor(foreign)
    assert isinstance(x.data, np.ndarray)
    foreign[0] = 7
    assert x.data[0] == 7, "shared, not copied"
    assert (x * torch.ones(3)).data.tolist() == [7, 1, 2]
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64):
        assert Tensor(torch.ones(2, dtype=dtype)).dtype == str(dtype).removeprefix("torch.")
    assert Tensor(array.array("f", [1.0, 2.0])).dtype == np.float32
    assert Tensor(range(3)).dtype == np.int64
    assert Tensor(memoryview(np.ones(2, np.float32))).dtype == np.float32
    assert type(Tensor(np.ones(2).view(np.memmap)).data) is np.ndarray
    assert Tensor(np.float64(2)).dtype == np.float64

    class Has:
        def __array__(self, dtype=None, copy=None):
            return np.array([1, 2], np.int16)

    assert Tensor(Has()).dtype == np.int16
    for wrong, message in (
        (None, "got NoneType"),
        ("text", "got str"),
        ({"a": 1}, "got dict"),
        ([None, 1.0], "got list"),
        (np.array(["a"]), r"got numpy.ndarray \(as an array: <U1\)"),
        (np.array([object()]), "as an array: object"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "masked array"),
        (torch.ones(2, requires_grad=True), r"torch.Tensor cannot be converted.*detach"),
        (torch.ones(2, dtype=torch.bfloat16), "torch.Tensor cannot be converted"),
        (object(), "got object"),
    ):
        with pytest.raises(TypeError, match=f"Tensor: .*{message}"):
            Tensor(wrong)
    with pytest.raises(ValueError, match="Tensor: list gives no array"):
        Tensor([[1.0, 2.0], [3.0]])


def test_dlpack_both_ways() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    x = Tensor(values())
    theirs = torch.from_dlpack(x)
    theirs[0, 0] = 9
    assert x.data[0, 0] == 9
    assert np.shares_memory(np.from_dlpack(x), x.data)
    assert x.__dlpack_device__() == (1, 0)


def test_copies_and_pickles() -> None:
    p = Parameter(values(), decay=False)
    p.grad = np.ones((2, 3), np.float32)
    for other in (copy.deepcopy(p), pickle.loads(pickle.dumps(p)), pickle.loads(pickle.dumps(p, 0))):
        assert type(other) is Parameter
        assert (other.decay, other.requires_grad) == (False, True)
        np.testing.assert_array_equal(other.data, p.data)
        np.testing.assert_array_equal(other.grad.data, p.grad.data)
        assert not np.shares_memory(other.data, p.data)
        (other * 2).sum().backward()
    shallow = copy.copy(p)
    assert shallow.data is p.data
    with no_grad():
        shallow += 1
    assert p.version == 1, "one storage, one version"
    assert type(copy.deepcopy(Buffer(values()))) is Buffer
    shared = copy.deepcopy([p, p])
    assert shared[0] is shared[1]
    layer = Conv2d(3, 4, 3)
    twin = copy.deepcopy(layer)
    x = Tensor(np.ones((1, 5, 5, 3), np.float32))
    np.testing.assert_array_equal(layer(x).data, twin(x).data)
    made = p * 2
    for wrong in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(RuntimeError, match=r"made by Mul, whose tape cannot be copied; use detach\(\)"):
            wrong(made)


def test_repr_is_short() -> None:
    assert repr(Tensor([1.0, 2.0])) == "Tensor(array([1., 2.], dtype=float32))"
    for shape in ((1000, 1000), (3, 4, 5, 6, 7), (2,) * 12, (100_000,)):
        text = repr(Tensor(np.zeros(shape, np.float32)))
        assert len(text) < 1000
        assert "float32" in text
    assert "requires_grad" in repr(Tensor([1.0], requires_grad=True))


def test_matplotlib_plots_tensors() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    (line,) = axes.plot(Tensor([1.0, 2.0, 3.0]), Tensor([1.0, 4.0, 9.0], requires_grad=True).detach())
    assert line.get_ydata().tolist() == [1, 4, 9]
    axes.scatter(Tensor([1.0]), Tensor([2.0]))
    axes.hist(Tensor([1.0, 2.0]))
    axes.imshow(Tensor(np.ones((2, 2))))
    pyplot.close(figure)


def test_python_keeps_sums_and_lists_of_tensors() -> None:
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    total = sum(x * k for k in range(3))
    assert isinstance(total, Tensor)
    total.sum().backward()
    assert x.grad.data.tolist() == [3, 3, 3]
    assert max(Tensor(1.0), Tensor(2.0)).item() == 2.0
    assert sorted([Tensor(2.0), Tensor(1.0)])[0].item() == 1.0
    assert ops.add(1, 2).item() == 3


def test_the_code_of_the_documentation_runs() -> None:
    text = (ROOT / "docs" / "tensor.md").read_text()
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), {})
