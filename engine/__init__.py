"""The complete system: data, training, evaluation, reports and the command lines.

import engine
history = engine.fit(net, (images, labels), ops.cross_entropy)      # train any Module with any loss
labels = engine.load("runs/tiny-1").predict(images)                 # use what `python -m engine.train` has trained
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.trained import Trained, load
    from engine.training.callbacks import Callback, EarlyStopping, Progress, SaveBest, Step, StopTraining
    from engine.training.fit import fit
    from engine.training.history import History

__all__ = [
    "Callback",
    "EarlyStopping",
    "History",
    "Progress",
    "SaveBest",
    "Step",
    "StopTraining",
    "Trained",
    "fit",
    "load",
]
# Where these are: imported when they are asked for, because every command imports this module.
_MODULES = {
    **dict.fromkeys(("Trained", "load"), "trained"),
    "History": "training.history",
    "fit": "training.fit",
}


def _check_neighbours() -> None:
    """Raise ImportError where Python finds other packages of the names that ours have. A command ends with the line."""
    ours = Path(__file__).parent.parent
    for name in ("kernels", "autograd", "layers"):
        spec = find_spec(f"{__package__.removesuffix('engine')}{name}")
        origin = spec and spec.origin
        if origin != str(ours / name / "__init__.py"):
            found = origin or "a folder without __init__.py"
            line = f"{name}: found {found}, expected {ours / name}; start elsewhere, or rename it"
            if sys.argv[:1] == ["-m"]:  # so says Python until it has found the module to run
                print(f"error: {line}", file=sys.stderr)
                sys.exit(2)
            raise ImportError(line)


_check_neighbours()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'training.callbacks')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
