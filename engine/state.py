"""Whether a network is still what it was: what captured steps, plans and optimizers compare before they rely on it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from layers import Module


class State:
    """All that a network is: its modules' attributes, its Tensors' arrays and, if wanted, their versions: how often they were written to."""

    def __init__(self, net: Module, versions: bool = True) -> None:
        modules, self._versions = list(net.modules()), versions
        self._dicts = [vars(m) for m in modules]
        within = [container for m in modules for container in m.containers()]
        self._dicts += [c for c in within if isinstance(c, dict)]
        self._lists = [c for c in within if isinstance(c, list)]
        self.tensors = [t for _, t in net.named_tensors()]
        self._was = list(self._all())

    def _all(self) -> Iterator[Any]:
        attributes, versions = map(dict.values, self._dicts), self.tensors if self._versions else []
        return chain(*attributes, *self._lists, map(attrgetter("data"), self.tensors), map(attrgetter("version"), versions), [State])

    def unchanged(self) -> bool:
        """Whether everything is what it was, by identity."""
        return all(map(is_, self._all(), self._was))
