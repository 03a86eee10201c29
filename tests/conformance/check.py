"""One case, here and in PyTorch, and the comparison of the two outcomes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autograd import Tensor
from kernels.core.dispatch import use_kernels

from .operands import Case, Operand
from .table import Difference, Row

CLEAR = (ValueError, TypeError, IndexError, RuntimeError, ArithmeticError)
FEW = 8  # roundings
SAMPLES = 12  # further places at which PyTorch's error is measured
# what PyTorch says where it merely lacks a kernel for a dtype
LACKING = "not implemented for", "not supported for", "expected m1 and m2"


class Finding(AssertionError):
    """A difference from PyTorch that no row documents. kind: a word to sort findings by."""

    def __init__(self, row: Row, case: Case, kind: str, text: str) -> None:
        super().__init__(f"{row.name}: {kind}: {text}\n  {row.name}{case}")
        self.row, self.case, self.kind = row.name, case, kind


@dataclass
class Outcome:
    """What a call gave: its values and the gradients of its operands (None: none), or its error."""

    values: list[np.ndarray] = field(default_factory=list)
    recorded: list[bool] = field(default_factory=list)
    gradients: list[np.ndarray | None] = field(default_factory=list)
    error: Exception | None = None
    stage: str = "forward"


def cotangent(case: Case, k: int, like: np.ndarray) -> np.ndarray:
    """The cotangent of output k, from the case's seed."""
    rng = np.random.default_rng((case.seed, k))
    dy = rng.standard_normal(like.shape)
    if case.special_cotangent:
        dy = np.where(rng.random(like.shape) < 0.2, rng.choice((np.nan, np.inf, -np.inf, 0.0), like.shape), dy)
    return dy.astype(like.dtype.newbyteorder("="))


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def ours(row: Row, case: Case) -> Outcome:
    """Our outcome. An operand that is not what it was counts as an error."""
    result = Outcome()
    args = [
        Tensor(o.given, requires_grad=o.grad)
        if o is not None and o.form == "tensor"
        else None
        if o is None
        else o.given
        for o in case.operands
    ]
    with _quietly(), use_kernels(case.backend):
        try:
            made = row.ours(*args, **case.settings)
            outputs = list(made) if isinstance(made, (tuple, list)) else [made]
            result.values = [y.data if isinstance(y, Tensor) else np.asarray(y) for y in outputs]
            result.recorded = [isinstance(y, Tensor) and y.requires_grad for y in outputs]
            result.stage = "backward"
            roots = [k for k, recorded in enumerate(result.recorded) if recorded]
            for k in roots:
                outputs[k].backward(cotangent(case, k, result.values[k]), retain_graph=k != roots[-1])
            result.gradients = [a.grad.data if isinstance(a, Tensor) and a.grad is not None else None for a in args]
        except Exception as error:
            result.error = error
    return result


def _torch_operand(o: Operand | None, double: bool, noise: np.random.Generator | None) -> Any:
    if o is None or o.form in ("number", "scalar"):
        return None if o is None else o.values
    x = o.values
    if double and x.dtype.kind == "f":
        x = x.astype(np.float64)
        if noise is not None:
            x = x * (1 + np.finfo(o.values.dtype).eps * noise.choice((-1.0, 1.0), x.shape))
    t = torch.from_numpy(np.array(x))
    return t.requires_grad_() if o.grad else t


def theirs(
    row: Row, case: Case, double: bool = False, noise: np.random.Generator | None = None, like: Outcome | None = None
) -> Outcome:
    """PyTorch's outcome; double: on the operands in float64, with the cotangents that `like` had; noise: on operands
    off by a rounding.

    Without oneDNN: it leaves out padding in float32 only, and its gradient of a strided 1x1 filter writes outside of
        its array.
    """
    result = Outcome()
    with _quietly(), torch.backends.mkldnn.flags(enabled=False):
        try:
            args = [_torch_operand(o, double, noise) for o in case.operands]
            made = row.theirs(*args, **case.settings)
            outputs = list(made) if isinstance(made, (tuple, list)) else [made]
            result.values = [y.detach().numpy() for y in outputs]
            result.recorded = [y.requires_grad for y in outputs]
            result.stage = "backward"
            roots = [k for k, recorded in enumerate(result.recorded) if recorded]
            dys = [cotangent(case, k, (like or result).values[k]).astype(result.values[k].dtype) for k in roots]
            if noise is not None:
                dys = [
                    dy * (1 + np.finfo(like.values[k].dtype).eps * noise.choice((-1.0, 1.0), dy.shape))
                    for k, dy in zip(roots, dys, strict=True)
                ]
            if roots:
                torch.autograd.backward([outputs[k] for k in roots], [torch.from_numpy(np.array(dy)) for dy in dys])
            result.gradients = [
                a.grad.numpy() if isinstance(a, torch.Tensor) and a.grad is not None else None for a in args
            ]
        except Exception as error:
            result.error = error
    return result


def check(row: Row, case: Case) -> str:
    """Compare one case; Finding where the two differ. Says what was compared: 'values', 'errors', or which documented
    difference applied.
    """
    frozen = [None if o is None or not isinstance(o.given, np.ndarray) else o.given.copy() for o in case.operands]
    mine, native = ours(row, case), theirs(row, case)
    for k, (o, was) in enumerate(zip(case.operands, frozen, strict=True)):
        if o is not None and was is not None and not np.array_equal(o.given, was, equal_nan=was.dtype.kind == "f"):
            raise Finding(row, case, "mutated", f"operand {k} was written to")
    applying = next((d for d in row.differences if d.applies(case)), None)
    lacking = native.error is not None and any(words in str(native.error) for words in LACKING)
    if mine.error is not None:
        _check_error(row, case, mine, native, lacking, applying)
        return applying.what if applying and native.error is None else "errors"
    if native.error is not None:
        if applying is not None or lacking:
            return applying.what if applying is not None else "PyTorch lacks the dtype"
        raise Finding(
            row,
            case,
            "value where PyTorch raises",
            f"got {mine.values[0].dtype} {mine.values[0].shape}; {_short(native.error)}",
        )
    if applying is not None and applying.ours == "refuse":
        raise Finding(row, case, "value where a refusal is documented", applying.what)
    if applying is not None and applying.ours in ("other", "any"):
        return applying.what
    _compare(row, case, mine, native, "" if applying is None else applying.ours)
    return "values"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _check_error(
    row: Row, case: Case, mine: Outcome, native: Outcome, lacking: bool, applying: Difference | None
) -> None:
    error = mine.error
    text = _short(error)  # type: ignore[arg-type]
    if not isinstance(error, CLEAR):
        raise Finding(row, case, "crash", f"{mine.stage}: {text}")
    if native.error is None and (applying is None or applying.ours not in ("refuse", "may refuse", "any")):
        raise Finding(row, case, f"raises in {mine.stage} where PyTorch does not", text)
    said = " ".join([str(error), *getattr(error, "__notes__", ())]).lower().replace("_", "")
    if not any(word.lower().replace("_", "") in said for word in row.words or (row.name.split()[0],)):
        raise Finding(row, case, "message does not name the operator", text)


def _compare(row: Row, case: Case, mine: Outcome, native: Outcome, unlike: str) -> None:
    """unlike: in what the results may differ, as in Difference.ours."""
    if len(mine.values) != len(native.values):
        raise Finding(row, case, "outputs", f"got {len(mine.values)}, expected {len(native.values)}")
    has_floats = any(
        o is not None and isinstance(o.values, np.ndarray) and o.values.dtype.kind == "f" for o in case.operands
    )
    double = theirs(row, case, True, like=native) if has_floats else native
    if double.error is not None:
        double = native
    for k, (a, b, c) in enumerate(zip(mine.values, native.values, double.values, strict=True)):
        what = f"output {k}" if len(mine.values) > 1 else "value"
        _check_kind(row, case, what, a, b)
        if mine.recorded[k] != native.recorded[k]:
            raise Finding(row, case, "requires_grad", f"{what}: {mine.recorded[k]}, expected {native.recorded[k]}")
        _check_values(row, case, what, a, b, c, lambda o, k=k: o.values[k], row.scale == "element", unlike)
    for k, (o, a, b, c) in enumerate(
        zip(case.operands, mine.gradients, native.gradients, double.gradients, strict=True)
    ):
        if unlike == "value" or o is None or not o.grad or (a is None and b is None):
            continue
        zeros = np.zeros(o.values.shape, o.values.dtype)
        a, b, c = (zeros if g is None else g for g in (a, b, c))
        what = f"gradient of operand {k}"
        _check_kind(row, case, what, a, b)
        alone = row.scale == "element" and o.values.shape == native.values[0].shape
        _check_values(
            row,
            case,
            what,
            a,
            b,
            c,
            lambda o, k=k, z=zeros: z if o.gradients[k] is None else o.gradients[k],
            alone,
            unlike,
        )


def _check_kind(row: Row, case: Case, what: str, a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise Finding(row, case, f"shape of {what}", f"got {a.shape}, expected {b.shape}")
    if a.dtype != b.dtype:
        raise Finding(row, case, f"dtype of {what}", f"got {a.dtype.str}, expected {b.dtype.str}")


def _classes(x: np.ndarray) -> np.ndarray:
    """0 finite, 1 and -1 infinite, 2 NaN."""
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


def _check_values(
    row: Row, case: Case, what: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, part: Any, alone: bool, unlike: str
) -> None:
    """a: ours, b: PyTorch's in the same dtype, c: PyTorch's in float64. Either of b and c may say where NaN and
    infinities are.
    """
    if a.dtype.kind != "f":
        if not np.array_equal(a, b):
            raise Finding(row, case, what, f"got {_text(a)}, expected {_text(b)}")
        return
    if np.array_equal(a, b, equal_nan=True):
        return
    with np.errstate(all="ignore"):
        rounded = c.astype(a.dtype)
    kinds = _classes(a), _classes(b), _classes(rounded)
    alike = (kinds[0] == kinds[1]) | (kinds[0] == kinds[2])
    if unlike == "more":
        alike |= kinds[0] != 0
    if unlike == "infinite":
        alike |= (kinds[1] != 0) | (kinds[2] != 0)
    if not alike.all():
        raise Finding(row, case, f"NaN or infinity in {what}", f"got {_text(a)}, expected {_text(b)}")
    finite = (kinds[0] == 0) & (kinds[1] == 0) & (kinds[2] == 0)
    if not finite.any():
        return
    bar = _bar(a, b, c, finite, alone) + row.bound(case) * float(np.abs(c[finite]).max())
    error = _apart(a, c, finite)
    if (error <= bar).all():
        return
    bar = bar + 3 * _sampled(row, case, c, part, finite, alone)
    if (error <= bar).all():
        return
    if row.cancels and (what.startswith("gradient") or not row.cancels.endswith(", in the gradient")):
        bar = (
            bar
            + FEW * float(np.finfo(a.dtype).eps) * _largest(case)
            + (_allowance(row, case, c, part, finite, alone) if row.smooth else 0.0)
        )
    if not (error <= bar).all():
        worst = np.unravel_index(int(np.argmax(error - bar)), a.shape)
        numbers = (
            f"{float(a[worst])!r}, expected {float(c[worst])!r} (PyTorch {float(b[worst])!r}; off by "
            f"{error[worst]:.3g})"
        )
        raise Finding(
            row, case, what, f"at {tuple(int(i) for i in worst)} got {numbers}; got {_text(a)}, expected {_text(b)}"
        )


def _largest(case: Case) -> float:
    """The product of the largest inputs, and of a large cotangent: as large as what cancels may be."""
    size = 4.0
    for o in case.operands:
        x = getattr(o, "values", None)
        if isinstance(x, np.ndarray) and x.dtype.kind in "iuf" and np.isfinite(x).any():
            size *= max(1.0, float(np.abs(x[np.isfinite(x)]).max()))
    return size


def _bar(a: np.ndarray, b: np.ndarray, c: np.ndarray, finite: np.ndarray, alone: bool) -> Any:
    """3 x the error of PyTorch's version in the same dtype + a few roundings of the largest value (or of each value,
    where it stands alone).

    What lies below the normal numbers may come out as 0 on either side.
    """
    info = np.finfo(a.dtype)
    size, naive = np.where(finite, np.abs(c), 0.0), _apart(b, c, finite)
    if not alone:
        size, naive = size.max(), naive.max()
    return 3 * naive + FEW * float(info.eps) * size + 4 * float(info.smallest_normal)


def _sampled(row: Row, case: Case, c: np.ndarray, part: Any, finite: np.ndarray, alone: bool) -> Any:
    """The largest error of PyTorch's version in the same dtype at inputs near the case's: at a single one it may happen
    to be exact.

    In float64 there is nothing to compare PyTorch's version with: there it is the error of its float32 version, scaled
    to float64's rounding, or where float32 does not hold the numbers, what a rounding of every input and cotangent
    changes.
    """
    largest = np.zeros(c.shape)
    wide = any(o is not None and getattr(o.values, "dtype", None) == np.float64 for o in case.operands)
    for seed in range(SAMPLES):
        near = _narrow(_moved(case, seed)) if wide else _moved(case, seed)
        own = theirs(row, near)
        exact = theirs(row, near, True, like=own)
        if own.error is None and exact.error is None and part(own).shape == c.shape:
            error = _apart(part(own), part(exact), finite) * (2.0**-29 if wide else 1.0)
            if wide and not np.isfinite(error).all():
                error = _apart(part(theirs(row, case, True, np.random.default_rng(seed), theirs(row, case))), c, finite)
            largest = np.maximum(largest, np.nan_to_num(error, posinf=0.0))
    return largest if alone else largest.max()


def _allowance(row: Row, case: Case, c: np.ndarray, part: Any, finite: np.ndarray, alone: bool) -> Any:
    """How far the results move when every input is off by one rounding: what no algorithm in this dtype can be asked to
    beat, times a few.
    """
    moved = np.zeros(c.shape)
    like = theirs(row, case)
    for seed in range(3):
        other = theirs(row, case, True, np.random.default_rng(seed), like)
        if other.error is None and part(other).shape == c.shape:
            with np.errstate(all="ignore"):
                moved = np.maximum(moved, np.nan_to_num(np.where(finite, np.abs(part(other) - c), 0.0)))
    return FEW * (moved if alone else moved.max())


def _moved(case: Case, seed: int) -> Case:
    """The case with every input off by a rounding, and other cotangents: PyTorch's error there is another sample of
    what this dtype loses.
    """
    rng = np.random.default_rng(seed)
    operands = []
    for o in case.operands:
        x = getattr(o, "values", None)
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            with np.errstate(all="ignore"):
                moved = (x * (1 + 2 * np.finfo(x.dtype).eps * rng.choice((-1.0, 1.0), x.shape))).astype(x.dtype)
            o = dataclasses.replace(o, values=np.asarray(moved))  # type: ignore[type-var]
        operands.append(o)
    return dataclasses.replace(case, operands=operands, seed=case.seed + seed + 1)


def _narrow(case: Case) -> Case:
    """The case in float32: what PyTorch's float32 version loses, scaled to a rounding of float64, bounds what ours may
    lose in float64.
    """
    operands = [
        dataclasses.replace(o, values=o.values.astype(np.float32))
        if o is not None and getattr(o.values, "dtype", None) == np.float64
        else o
        for o in case.operands
    ]
    return dataclasses.replace(case, operands=operands)


def _apart(a: np.ndarray, c: np.ndarray, finite: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.where(finite, np.abs(a.astype(np.float64) - c), 0.0)


def _text(x: np.ndarray) -> str:
    return np.array2string(x, threshold=12, precision=6, separator=", ").replace("\n", "")
