"""Everything that has a gradient, ready to be built from a seed and settings: operators, losses, blocks, the network.

    entry = find("conv2d")
    built = entry.make(seed=0, stride=2, padding=1)
    gradcheck(built.target, *built.tensors(), input_names=built.names)

makers.py: input arrays.   entry.py: Entry and Built.   operators.py, array_operators.py, losses.py, blocks.py: the
    lists.
"""

from __future__ import annotations

import difflib
import functools

from engine.cli import UsageError
from engine.gradcheck.catalogue.entry import KINDS, Built, Entry

__all__ = ["KINDS", "Built", "Entry", "catalogue", "find"]


@functools.cache
def catalogue() -> dict[str, Entry]:
    """All entries by name, operators first."""
    from engine.gradcheck.catalogue.array_operators import ARRAY_OPERATORS
    from engine.gradcheck.catalogue.blocks import entries
    from engine.gradcheck.catalogue.losses import LOSSES
    from engine.gradcheck.catalogue.operators import OPERATORS

    return {entry.name: entry for entry in (*OPERATORS, *ARRAY_OPERATORS, *LOSSES, *entries())}


def find(name: str) -> Entry:
    """The entry of that name; UsageError with the nearest names otherwise."""
    known = catalogue()
    if name not in known:
        close = difflib.get_close_matches(name, known, 3, 0.5)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"it may be one of {', '.join(list(known)[:8])}, ...; --list shows all"
        )
        raise UsageError(f"no operator, block or loss is called {name!r}: {hint}")
    return known[name]
