"""Sums of products, named by their indices (Einstein's convention)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from string import ascii_letters, ascii_lowercase, ascii_uppercase
from typing import Any

from autograd.function import Function, unbroadcast
from autograd.operands import as_tensor
from autograd.tensor import Tensor
from kernels.core.device import Array, array_module
from kernels.shape import evaluate

__all__ = ["einsum"]


class Einsum(Function):
    """y[out] = sum over all other indices of the product of the operands;  dx_k[its indices] = sum of dy times the
    product of the others.

    An index that only x_k has was summed: dx_k is repeated along it. One that x_k has twice named a diagonal: dx_k is 0
        off it.
    """

    def __init__(self, terms: Sequence[str], out: str) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.out = out

    def forward(self, *operands: Array) -> Array:
        self.sizes = _sizes(self.terms, operands)
        self.save(*operands)
        return evaluate(partial(_product, self.terms, self.out), *operands)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        operands = self.saved
        return tuple(self._gradient(k, dy, operands) if need else None for k, need in enumerate(self.needs))

    def _gradient(self, k: int, dy: Array, operands: Sequence[Array]) -> Array:
        """The gradient of operand k."""
        others = [(t, x) for j, (t, x) in enumerate(zip(self.terms, operands, strict=True)) if j != k]
        terms = (self.out, *(t for t, _ in others))
        names = "".join(dict.fromkeys(self.terms[k]))
        reached = "".join(name for name in names if any(name in t for t in terms))
        dx = evaluate(partial(_product, terms, reached), dy, *(x for _, x in others))
        return evaluate(partial(self._laid_out, names, reached, self.terms[k], operands[k].shape), dx)

    def _laid_out(self, names: str, reached: str, term: str, shape: tuple[int, ...], dx: Array) -> Array:
        """dx with axes `reached` as an array of `shape` whose axes are `term`: repeated along what is missing, and on
        the diagonal.
        """
        xp = array_module(dx)
        dx = dx.reshape([dx.shape[reached.index(name)] if name in reached else 1 for name in names])
        own = dict(zip(term, shape, strict=True))
        full = xp.broadcast_to(dx, [self.sizes[name] for name in names])
        dx = unbroadcast(full, tuple(own[name] for name in names))
        if len(names) == len(term):
            return dx.copy()
        whole = xp.zeros(shape, dx.dtype)
        whole[tuple(xp.arange(own[name]).reshape([-1 if n == name else 1 for n in names]) for name in term)] = dx
        return whole

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        count = len(inputs)
        for size in self.sizes.values():
            count *= size
        return count

    def backward_flops(self, forward: int) -> int:
        return forward * sum(self.needs)


def _product(terms: Sequence[str], out: str, *operands: Array) -> Array:
    y = array_module(*operands).einsum(f"{','.join(terms)}->{out}", *operands, optimize=len(operands) > 1)
    return y.copy() if len(operands) == 1 else y  # of one operand it may be a view


def _sizes(terms: Sequence[str], operands: Sequence[Array]) -> dict[str, int]:
    """The length of every index: an axis of length 1 is repeated, as in broadcasting."""
    sizes: dict[str, int] = {}
    for term, x in zip(terms, operands, strict=True):
        for name, n in zip(term, x.shape, strict=True):
            if sizes.setdefault(name, n) == 1:
                sizes[name] = n
    return sizes


def einsum(equation: str | Tensor, *operands: Any) -> Tensor:
    """The sum of products that an equation names, as NumPy's and PyTorch's einsum: einsum("bij,bjk->bik", x, y) is a
    batched matrix product.

    A letter per axis. Without "->" the result has the letters that occur once, in alphabetical order. "..." stands for
    axes that are broadcast; a letter twice in an operand is its diagonal; axes of length 1 are repeated. Any number of
    operands, floating point of one dtype. In place of an equation each operand may be followed by the list of its
    indices, numbers from 0 to 51 or ..., and the last list is the result's: einsum(x, [0, 1, 2], y, [0, 2, 3], [0, 1,
    3]) is the same product. Raises ValueError for an equation that does not fit the operands, TypeError for unlike
    dtypes.
    """
    if not isinstance(equation, str):
        equation, operands = _written(equation, *operands)
    operands = tuple(as_tensor(f"einsum: operand {k}", x) for k, x in enumerate(operands))
    terms, out = _parsed(equation, [x.shape for x in operands])
    if len({x.dtype for x in operands}) > 1:
        raise TypeError(f"einsum: the operands are {', '.join(str(x.dtype) for x in operands)}, expected one dtype")
    return Einsum(terms, out)(*operands)


def _written(*given: Any) -> tuple[str, tuple[Tensor, ...]]:
    """The equation of operands that are followed by lists of indices, and the operands."""
    operands = given[: len(given) // 2 * 2 : 2]
    lists = given[1::2]
    if not lists or any(isinstance(x, (str, int, list, tuple)) for x in operands):
        raise TypeError(
            "einsum: expected an equation and its operands, or operands each of which is followed by a list of its "
            "indices"
        )
    terms = ",".join(map(_letters, lists))
    return (f"{terms}->{_letters(given[-1])}" if len(given) % 2 else terms), operands


def _letters(indices: Any) -> str:
    """A list of indices as letters, capitals first: their order is that of the numbers."""
    if not isinstance(indices, (list, tuple)):
        raise TypeError(f"einsum: got a {type(indices).__name__}, expected a list of indices after each operand")
    names = ascii_uppercase + ascii_lowercase
    for index in indices:
        if index is not ... and not (isinstance(index, int) and 0 <= index < len(names)):
            raise ValueError(
                f"einsum: the indices {list(indices)} hold {index!r}, expected 0 to {len(names) - 1} or ..."
            )
    return "".join("..." if index is ... else names[index] for index in indices)


def _parsed(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[str], str]:
    """A letter for every axis of every operand and of the result: "..." replaced by letters that the equation does not
    use.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    for term in (*terms, out):
        if not re.fullmatch(r"[a-zA-Z]*(\.\.\.)?[a-zA-Z]*", term):
            raise ValueError(f"einsum: got {term!r} in {equation!r}, expected letters and at most one '...'")
    if len(terms) != len(shapes):
        raise ValueError(f"einsum: {equation!r} names {len(terms)} operands, got {len(shapes)}")
    free = [name for name in ascii_letters if name not in equation]
    most = 0
    whole = []
    for k, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        named = len(term.replace("...", ""))
        if len(shape) < named or (len(shape) > named and "..." not in term):
            raise ValueError(f"einsum: operand {k} has shape {shape}, which does not fit {term!r}")
        rest = len(shape) - named
        most = max(most, rest)
        whole.append((term, rest))
    if most > len(free):
        raise ValueError(f"einsum: too many axes for the letters of the alphabet in {equation!r}")
    dots = "".join(free[:most])
    terms = [term.replace("...", dots[most - rest :]) for term, rest in whole]
    letters = "".join(terms)
    if not arrow:
        out = dots + "".join(sorted(name for name in set(letters) - set(dots) if letters.count(name) == 1))
    out = out.replace("...", dots)
    _check(equation, terms, out, shapes)
    return terms, out


def _check(equation: str, terms: Sequence[str], out: str, shapes: Sequence[tuple[int, ...]]) -> None:
    if len(set(out)) < len(out):
        raise ValueError(f"einsum: an index occurs twice in the result of {equation!r}")
    unknown = set(out) - set("".join(terms))
    if unknown:
        raise ValueError(f"einsum: the result of {equation!r} has {', '.join(sorted(unknown))}, which no operand has")
    sizes: dict[str, int] = {}
    for k, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        for name, n in zip(term, shape, strict=True):
            known = sizes.setdefault(name, n)
            if known == 1:
                sizes[name] = n
            elif n not in (1, known) or (term.count(name) > 1 and n != shape[term.index(name)]):
                raise ValueError(
                    f"einsum: operand {k} has shape {shape}: index {name!r} of {equation!r} is {n} there and {known} "
                    "elsewhere"
                )
