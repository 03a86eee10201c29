"""Modules by the names that they have in a checkout: kernels.conv.cpu, engine.train.

The installed package holds the four packages and the benchmarks below `areograd`, so that no other package's names are
taken; there the full name is areograd.kernels.conv.cpu. Code that needs a module by its name goes through here.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

PREFIX = __name__.removesuffix("kernels.core.modules")  # empty in a checkout, "areograd." where it is installed
PLACE = Path(__file__).resolve().parents[2 + PREFIX.count(".")]  # the folder of sys.path from which all are imported


def load(name: str) -> ModuleType:
    """Import the module that a checkout calls `name`."""
    return importlib.import_module(PREFIX + name)


def version(package: str = "areograd") -> str:
    """The version of an installed package, 'unknown' of one that is not installed, as a checkout need not be."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def local(full: str) -> str:
    """What a checkout calls the module `full`."""
    return full.removeprefix(PREFIX)
