"""Labels and indices outside their range: one check and one message for every function that takes them, on every
device.

A value that names no class is an error, never a wrong count and never silently an ignored one. On the CPU
`check_labels` raises at once; kernels that read the labels anyway count the wrong ones in that pass, and raise
afterwards.

CUDA kernels do not make the host wait: a wrong label is noted in a slot of pinned host memory (core/cuda/labels.cuh),
and the error is raised by the next copy from the device to the host that this package makes: `Tensor.numpy`, `item`,
`float`, the losses that a training step fetches. A copy by CuPy's own `get` raises nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.core.device import CUDA, Array, module_of, watchers

NO_LABEL = -(2**63)  # the ignored label of kernels where none is ignored
_CLEAR = np.uint64(2**64 - 1)  # no wrong label so far: the kernels keep the minimum
_PAGE = 512  # slots allocated at a time


def check_labels(
    name: str,
    argument: str,
    values: Array,
    count: int,
    ignored: int | None = None,
    low: int = 0,
    error: type[Exception] = ValueError,
) -> None:
    """Raise TypeError unless `values` are integers; `error`, naming the first value that is not from `low` to count - 1
    nor the ignored one.

    Negative values of a range that starts at 0 are large numbers without their sign, so that a valid array is read
    once.
    """
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name}: {argument} is {values.dtype}, expected an integer array")
    if not values.size:
        return
    if low == 0 < count and int(values.view(values.dtype.str.replace("i", "u")).max()) < count:
        return
    bad = (values < low) | (values >= count)
    if ignored is not None:
        bad &= values != ignored
    if bad.any():
        first = int(bad.argmax())
        raise error(_message(name, argument, int(values.ravel()[first]), first, values.shape, low, count, ignored))


def check_held(name: str, argument: str, label: int, dtype: Any) -> None:
    """Raise ValueError unless an integer dtype holds the label."""
    bounds = np.iinfo(dtype)
    if not bounds.min <= label <= bounds.max:
        raise ValueError(
            f"{name}: {argument} is {label}, expected {bounds.min} to {bounds.max} for {bounds.dtype} labels"
        )


def check_places(name: str, index: Any, shape: tuple[int, ...]) -> None:
    """Raise IndexError, naming the first one, for integers of an index's arrays that are no places along their axes;
    CuPy would wrap them round.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if all(part is None or part is Ellipsis or isinstance(part, (slice, int)) for part in parts):
        return  # indices that pick a view are checked by NumPy and CuPy
    arrays = [np.asarray(part) if isinstance(part, (list, tuple)) else part for part in parts]
    taken = [0 if part is None or part is Ellipsis else part.ndim if _is_mask(part) else 1 for part in arrays]
    axis = 0
    for part, axes in zip(arrays, taken, strict=True):
        if part is Ellipsis:
            axes = len(shape) - sum(taken)
        elif axes == 1 and axis < len(shape) and getattr(part, "ndim", 0) and part.dtype.kind in "iu":
            check_labels(name, "index", part, shape[axis], low=-shape[axis], error=IndexError)
        axis += axes


def _is_mask(part: Any) -> bool:
    return hasattr(part, "dtype") and part.dtype.kind == "b"


def _message(
    name: str,
    argument: str,
    value: int | str,
    first: int,
    shape: tuple[int, ...],
    low: int,
    count: int,
    ignored: int | None,
) -> str:
    place = tuple(int(i) for i in np.unravel_index(first, shape)) if shape else ()
    expected = f"{low} to {count - 1}" + ("" if ignored is None else f", or {ignored} to ignore")
    return f"{name}: {argument} holds {value}{f' at {place}' if place else ''}, expected {expected}"


_slots: dict[tuple[Any, ...], int] = {}
_pages: list[np.ndarray] = []


def reported(name: str, argument: str, labels: Array, count: int, ignored: int | None = None) -> np.uint64:
    """The address at which a CUDA kernel notes the first of the `labels` that is wrong; the same for every launch with
    these arguments.
    """
    key = name, argument, labels.shape, count, ignored
    slot = _slots.setdefault(key, len(_slots))
    if slot >= _PAGE * len(_pages):
        # which the array keeps alive
        page = np.frombuffer(module_of(CUDA).cuda.alloc_pinned_memory(8 * _PAGE), np.uint64, _PAGE)
        page[:] = _CLEAR
        _pages.append(page)
    return np.uint64(_pages[slot // _PAGE].ctypes.data + 8 * (slot % _PAGE))


def raise_reported() -> None:
    """Raise ValueError for the first wrong label that a CUDA kernel has noted; all notes are cleared."""
    if all((page == _CLEAR).all() for page in _pages):
        return
    notes = np.concatenate(_pages)
    for page in _pages:
        page[:] = _CLEAR
    for (name, argument, shape, count, ignored), slot in _slots.items():
        if notes[slot] != _CLEAR:
            first = int(notes[slot]) >> 32
            value = int(np.uint32(int(notes[slot]) & 0xFFFFFFFF).astype(np.int32))
            text = f"{value} or {'less' if value < 0 else 'more'}" if value in (-(2**31), 2**31 - 1) else value
            raise ValueError(_message(name, argument, text, first, shape, 0, count, ignored))


watchers.append(raise_reported)
