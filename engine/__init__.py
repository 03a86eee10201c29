"""The complete system: data, training, evaluation, reports and the command lines."""

import sys
from importlib.util import find_spec
from pathlib import Path


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
