"""What a call costs and who served it: FLOPs, bytes, algorithms.

FLOPs are those of the plain algorithm, as a Function states them: Winograd does with fewer. Bytes are the ideal
traffic: every array that a call is given, keeps for its backward pass or gives back, once; an array that is added to in
place twice. A call that only gives another view moves nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from autograd import Function
from autograd.function import root
from engine.profile.spans import Span
from kernels.core.device import Array
from kernels.core.dispatch import Operator, registry
from kernels.core.modules import local

_DIRECTIONS = ("forward", "backward", "backward_data", "backward_filter")
_PREPARING = ("filters", "filter_transform")  # modules that pack filters for the kernels that convolve
_FORM = re.compile(r"F\(\d, \d\)")  # of a Winograd kernel, in the brackets behind its name


def arrays_in(value: Any) -> Iterator[Array]:
    """The arrays in a value: itself, or those within its tuples and lists."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays_in(part)
    elif hasattr(value, "__array__") and hasattr(value, "strides"):
        yield value


def traffic(arrays: Iterable[Array]) -> int:
    """Bytes of the arrays' memory, what two of them share once."""
    return sum({_address(a): _bytes(a) for a in arrays}.values())


def _bytes(array: Array) -> int:
    """Bytes of an array's memory: an axis along which it is repeated has one place."""
    return array.itemsize * math.prod(n for n, step in zip(array.shape, array.strides, strict=True) if step)


def _address(array: Array) -> tuple[int, int]:
    known = getattr(array, "__array_interface__", None) or array.__cuda_array_interface__
    return known["data"][0], _bytes(array)


def _only_views(results: list[Array], given: list[Array]) -> bool:
    owners = {id(root(a)) for a in given}
    return all(id(root(a)) in owners for a in results)


def forward_cost(function: Function, inputs: Any, result: Any, worked: bool) -> tuple[int | None, int]:
    """(FLOPs, bytes) of a Function's forward call. worked: whether a kernel ran in it."""
    given, results = list(arrays_in(inputs)), list(arrays_in(result))
    flops = int(function.flops(inputs, tuple(results))) if type(function).flops is not Function.flops else None
    if not worked and _only_views(results, given):
        return flops, 0
    kept = function._saved if any(function.needs) else ()
    return flops, traffic([*given, *results, *_held(function), *arrays_in(kept)])


def backward_cost(
    function: Function, dys: Any, result: Any, worked: bool, forward_flops: int | None
) -> tuple[int | None, int]:
    """(FLOPs, bytes) of a Function's backward call. forward_flops: those of its forward call."""
    given, results = list(arrays_in(dys)), list(arrays_in(result))
    flops = None if forward_flops is None else function.backward_flops(forward_flops)
    if not worked and _only_views(results, given):
        return flops, 0
    added_to = [a for a in arrays_in(function.accumulators) if any(a is r for r in results)]
    everything = [*given, *results, *_held(function), *arrays_in(function.saved)]
    return flops, traffic(everything) + traffic(added_to)


def _held(function: Function) -> list[Array]:
    """The arrays among a Function's attributes, such as statistics and labels."""
    return [a for a in vars(function).values() if hasattr(a, "__array__") and hasattr(a, "strides")]


def operator_bytes(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes of a call of an operator of kernels/: arrays that it changes in place count twice."""
    given = [*arrays_in(args), *arrays_in(tuple(kwargs.values())), *arrays_in(result)]
    return traffic(given) + traffic(arrays_in(operator.shapes.written(*args, **kwargs)))


def algorithm_of(operator: Operator, by: str, kernels: list[str], called: list[Span]) -> str:
    """What served a call of an operator, in a few words.

    by: 'fast' or 'reference', as the dispatch says.  kernels: the names of the CPU or CUDA kernels that it launched
    itself.  called: the operators that it called.
    """
    family = _family(operator)
    if by != "fast" or not (kernels or called):
        return "array code"
    if not kernels:
        parts = [span.algorithm for span in called if _family(registry[span.name]) == family]
        return f"unfused: {' + '.join(dict.fromkeys(parts))}".removesuffix(": ")
    names = [name.partition("[")[0].partition("<")[0].split(".") for name in kernels]
    own = [k for k, (of, _, *path) in enumerate(names) if of == family and not any(part in _PREPARING for part in path)]
    if not own:
        return names[0][-1]
    *modules, function = names[own[0]][2:]
    form = _FORM.search(kernels[own[0]])
    words = [module for module in modules if module not in _DIRECTIONS] or [function]
    return " ".join([*(word.replace("_", " ") for word in words), *([form[0]] if form else [])])


def _family(operator: Operator) -> str:
    """The folder of kernels/ that an operator is from."""
    return local(operator.reference.__module__).split(".")[1]
