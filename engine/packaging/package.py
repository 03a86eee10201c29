"""Areograd: reverse-mode automatic differentiation with handwritten gradients, and a segmentation system on it.

    from areograd import autograd, layers
    from areograd.autograd import Tensor, ops

`autograd` holds Tensor, the operators and gradcheck, `layers` the modules, `kernels` the numerical kernels, `engine`
the training system, `bench` the benchmarks. The command `areograd` lists what can be run.
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

__version__ = version("areograd")
PACKAGES = ("autograd", "bench", "engine", "kernels", "layers")


def __getattr__(name: str) -> ModuleType:
    if name in PACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PACKAGES})
