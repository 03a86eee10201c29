"""Tensors as views of one vector, so that one kernel steps them all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter, is_
from typing import Any

from autograd import Tensor
from kernels import optimizer as kernels
from kernels.core.device import Array, array_module, device_of


class Flat:
    """Tensors as views of one vector: `vector` (P,), of their dtype and on their device. Every Tensor begins a line of
    16 numbers.

    owner: whom messages name. Raises ValueError when the Tensors differ in dtype or device, or when two of them share
        one array.
    """

    def __init__(self, tensors: Sequence[Tensor], owner: str) -> None:
        self.tensors = list(tensors)
        self.owner = owner
        self.offsets = []
        self.total = 0
        for t in self.tensors:
            self.offsets.append(self.total)
            self.total += -(-t.size // kernels.LINE) * kernels.LINE
        self._lay()

    def _lay(self) -> None:
        kinds = sorted({f"{t.dtype} on {t.device}" for t in self.tensors})
        if len(kinds) > 1:
            raise ValueError(
                f"{self.owner}: its Tensors are {' and '.join(kinds)}, expected one dtype and one device (an "
                "optimizer for each)"
            )
        self._not_shared()
        first = self.tensors[0].data
        self.vector = array_module(first).zeros(self.total, first.dtype)
        self._arrays = self.views(self.vector)
        for t, view in zip(self.tensors, self._arrays, strict=True):
            view[...] = t.data
            t.data = view

    def _not_shared(self) -> None:
        if len({id(t.data) for t in self.tensors}) < len(self.tensors):
            raise ValueError(f"{self.owner}: two of its Tensors share one array; share the Tensor itself instead")

    def views(self, vector: Array) -> list[Array]:
        """Views of a vector of the same layout, in the Tensors' shapes."""
        return [vector[o : o + t.size].reshape(t.shape) for o, t in zip(self.offsets, self.tensors, strict=True)]

    def follow(self) -> bool:
        """Take over arrays that have replaced the views since (`t.data = ...`, `net.to(...)`).

        Returns True when the vector was replaced, because the Tensors have another dtype or device. Raises ValueError
        for another shape.
        """
        if all(map(is_, map(attrgetter("data"), self.tensors), self._arrays)):
            return False
        for k, (t, view) in enumerate(zip(self.tensors, self._arrays, strict=True)):
            if t.shape != view.shape:
                raise ValueError(
                    f"{self.owner}: Tensor {k} has the shape {t.shape} now and had {view.shape}; make a new optimizer"
                )
        if any(t.dtype != self.vector.dtype or t.device != device_of(self.vector) for t in self.tensors):
            self._lay()
            return True
        self._not_shared()
        changed = [
            (t, view, t.data.copy()) for t, view in zip(self.tensors, self._arrays, strict=True) if t.data is not view
        ]
        for t, view, values in changed:  # copied first: two Tensors may have exchanged their arrays
            view[...] = values
            t.data = view
        return False

    def gather_gradients(self, out: Array) -> None:
        """Write all gradients into `out` (P,); 0 where there is none."""
        kernels.gather(
            [None if t.grad is None else t.grad.data for t in self.tensors],
            out,
            self.offsets,
            [t.size for t in self.tensors],
        )

    def touch(self, first: int = 0, stop: int | None = None) -> None:
        """Record that the vector was written to, at the Tensors first .. stop."""
        for t in self.tensors[first:stop]:
            t.touch()


def unique(tensors: Iterable[Any]) -> list[Any]:
    """Each of the Tensors once: modules may be shared."""
    return list({id(t): t for t in tensors}.values())
