"""Facts that hold for every backward pass, whatever its formula: checks that need no finite difference, or an exact
one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd.gradcheck.probe import ROUNDING, Probe
from autograd.tensor import Tensor
from kernels.core.device import array_module
from kernels.core.dispatch import definitions

# its square vanishes next to 1, so the imaginary part is the derivative, with no truncation and no subtraction
COMPLEX_STEP = 1e-30


@dataclass(frozen=True)
class Fact:
    """One check: its name, whether it holds, and what was seen."""

    name: str
    holds: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail or ('holds' if self.holds else 'does not hold')}"


def unchanged(probe: Probe, before: list[Any]) -> Iterator[Fact]:
    """Forward and backward did not write to the checked inputs, nor to arrays that came along (labels, masks)."""
    written = [
        name
        for name, x, old in zip(probe.names, probe.points, before, strict=False)
        if not bool((x == array_module(x).asarray(old)).all())
    ]
    others = [x for x in probe.inputs if isinstance(x, np.ndarray)]
    written += [
        f"array {k}"
        for k, (x, old) in enumerate(zip(others, before[len(probe.points) :], strict=True))
        if not np.array_equal(x, old)
    ]
    yield Fact("inputs unchanged", not written, f"{', '.join(written)} was changed by the operator" if written else "")


def snapshot(points: list[Any], inputs: tuple[Any, ...]) -> list[Any]:
    """Copies to compare with later: the leaves' arrays, then plain arrays among the inputs."""
    return [x.copy() for x in points] + [x.copy() for x in inputs if isinstance(x, np.ndarray)]


def repeatable(probe: Probe) -> Iterator[Fact]:
    """A second forward and backward give the same bits; a doubled cotangent doubles every bit; a zero one gives zeros;
    v is left alone.
    """
    second = probe.forward()
    outputs = [np.asarray(Tensor(out.data).numpy()) for out in second]
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(outputs, probe.outputs, strict=True))
    yield Fact("deterministic", same, "" if same else "two forward passes differ: fix the seed inside the function")
    again = probe.backward(second, probe.v, keep=True)
    doubled = probe.backward(second, [2 * v for v in probe.v], keep=True)
    zero = probe.backward(second, [0 * v for v in probe.v])
    yield _all("backward repeats bit by bit", probe, lambda k: np.array_equal(again[k], probe.gradients[k]))
    yield _all(
        "doubled cotangent, doubled gradient", probe, lambda k: np.array_equal(doubled[k], 2 * probe.gradients[k])
    )
    yield _all("zero cotangent, zero gradient", probe, lambda k: not zero[k].any())
    yield Fact(
        "cotangent unchanged",
        probe.cotangent_kept,
        "" if probe.cotangent_kept else "backward writes to the gradient it is given",
    )


def _all(name: str, probe: Probe, holds: Callable[[int], bool]) -> Fact:
    wrong = [probe.names[k] for k in range(len(probe.leaves)) if not holds(k)]
    return Fact(name, not wrong, f"not for {', '.join(wrong[:3])}" if wrong else "")


def layouts(probe: Probe, count: int, allowance: float) -> Iterator[Fact]:
    """The first `count` leaves (the inputs) in other memory layouts: same outputs, and the directional derivative stays
    within `allowance`.
    """
    for name, arrange in (("Fortran order", _fortran), ("every second element, backwards", _strided)):
        points = [arrange(x) if k < count else x for k, x in enumerate(probe.points)]
        yield _with_points(f"layout: {name}", probe, points, probe.outputs, probe.analytic(), allowance)


def broadcast_views(probe: Probe, count: int) -> Iterator[Fact]:
    """The first `count` leaves as views of one repeated slice (stride 0, read-only) against copies of those views."""
    views = [_repeated(x) if k < count else x for k, x in enumerate(probe.points)]
    if all(a is b for a, b in zip(views, probe.points, strict=True)):
        return
    outputs, gradients = _run(probe, [np.array(x, order="C") if k < count else x for k, x in enumerate(views)])
    if all(np.isfinite(g).all() for g in gradients):
        allowance = 2 * probe.rounding(gradients) + ROUNDING
        yield _with_points(
            "layout: broadcast view", probe, views, outputs, probe.analytic(gradients=gradients), allowance
        )


def _with_points(
    name: str, probe: Probe, points: list[Any], outputs: list[np.ndarray], expected: float, allowance: float
) -> Fact:
    try:
        values, gradients = _run(probe, points)
    except (ValueError, RuntimeError, TypeError) as error:
        return Fact(name, False, f"raised {type(error).__name__}: {error}")
    pairs = [(a, b) for a, b in zip(values, outputs, strict=True) if b.size]
    if not all(np.abs(a - b).max() <= ROUNDING * np.abs(b).max() for a, b in pairs if np.isfinite(b).all()):
        return Fact(name, False, "the output differs from that of a contiguous array")
    found = probe.analytic(gradients=gradients)
    holds = abs(found - expected) <= allowance
    return Fact(name, holds, "" if holds else f"the derivative is {found:.6e}, {expected:.6e} when contiguous")


def _run(probe: Probe, points: list[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs and gradients with the leaves at other points."""
    try:
        _place(probe, points)
        results = probe.forward()
        outputs = [np.array(Tensor(out.data).numpy()) for out in results]
        return outputs, probe.backward(results, probe.v)
    finally:
        probe.restore()


def _place(probe: Probe, points: list[Any]) -> None:
    for leaf, x in zip(probe.leaves, points, strict=True):
        leaf.data = x


def _fortran(x: Any) -> Any:
    return array_module(x).array(x, order="F")  # asfortranarray would give a single number an axis


def _strided(x: Any) -> Any:
    if not x.ndim:
        return x
    big = array_module(x).zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    big[..., ::-2] = x
    return big[..., ::-2]


def _repeated(x: Any) -> Any:
    return array_module(x).broadcast_to(x[:1], x.shape) if x.ndim and x.shape[0] > 1 and array_module(x) is np else x


def exact_steps(probe: Probe, count: int) -> Iterator[Fact]:
    """Inputs in which f is linear (the others fixed): a step of 1 has no truncation, so the gradient must agree to
    round-off.

    With A the linear map this is the adjoint test <A u, v> = <u, A^T v>. Linearity is seen from f itself: f(x + u) -
    f(x) changes sign with u, and doubles with it. A bilinear operator is linear in each of its inputs by itself.
    """
    for k in range(count):
        u: list[np.ndarray | None] = [probe.u[j] if j == k else None for j in range(len(probe.leaves))]
        plus = probe.differences(1.0, u)
        minus = probe.differences(-1.0, u)
        sizes = zip(probe.v, plus, probe.outputs, strict=True)
        noise = ROUNDING * float(sum(float((np.abs(v) * (np.abs(d) + np.abs(out))).sum()) for v, d, out in sizes))
        with np.errstate(all="ignore"):
            odd = all(
                bool((np.abs(p + m) <= ROUNDING * (np.abs(p) + np.abs(out))).all())
                for p, m, out in zip(plus, minus, probe.outputs, strict=True)
            )
        value = probe.against_v(plus)
        if not odd or not np.isfinite(value) or abs(probe.phi(2.0, u) - 2 * value) > 3 * noise:
            continue
        analytic = probe.analytic(u)
        error = abs(analytic - value)
        holds = error <= noise + probe.rounding()
        yield Fact(
            f"linear in {probe.names[k]}: exact step of 1 (adjoint test)",
            holds,
            f"{'error' if holds else 'off by'} {error / max(abs(value), 1e-300):.1e}",
        )


def complex_step(probe: Probe, numeric: float, allowance: float) -> Iterator[Fact]:
    """Im f(x + i h u) / h, h = 1e-30: the derivative to round-off, where the reference code is analytic (no abs, max or
    comparison in the way).

    Whether it is shows itself: the value must agree with the finite difference within its bar. Then the gradient is
        held to round-off.
    Source: Squire & Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review 40(1),
        1998.
    """
    try:
        with warnings.catch_warnings(), definitions():
            warnings.simplefilter("error")
            imaginary = [np.imag(d) for d in probe.differences(1j * COMPLEX_STEP)]  # type: ignore[arg-type]
    # code that does not know complex numbers fails in many ways; each only means that this opinion is not available
    except Exception:
        return
    value = probe.against_v(imaginary) / COMPLEX_STEP
    if not np.isfinite(value) or abs(value - numeric) > allowance:
        return
    error = abs(value - probe.analytic())
    noise = (
        2 * probe.rounding()
        + ROUNDING
        * float(sum(float(np.abs(v * d).sum()) for v, d in zip(probe.v, imaginary, strict=True)))
        / COMPLEX_STEP
    )
    holds = error <= noise
    yield Fact(
        "complex step (second opinion)",
        holds,
        f"{'error' if holds else 'off by'} {error / max(abs(value), 1e-300):.1e}",
    )
