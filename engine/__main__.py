"""List the commands, or run one:  python -m engine [COMMAND ...]

`python -m engine train --preset small` is `python -m engine.train --preset small`.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from engine.cli import UsageError, run_command
from engine.errors import quoted
from kernels.core.modules import load, version

COMMANDS = {
    "train": "train a network, or go on with a run",
    "evaluate": "measure a trained network, or several together: IoU, precision, boundaries, calibration",
    "predict": "label images of any size: masks, overlays, probabilities, a submission file",
    "export": "write a trained network as ONNX, a PyTorch state dict or safetensors, with a model card",
    "report": "write a page about a run, or one that compares several",
    "experiment": "train a grid of configurations over seeds or folds, and compare them",
    "dual": "measure a network together with a second one that knows a rare class",
    "profile": "say where the time and the memory of a training step go",
    "gradcheck": "prove gradients against finite differences, or plant a bug and see where it is",
    "bench": "race the kernels against other frameworks",
    "doctor": "say what this machine has, and compile every kernel",
}


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m engine COMMAND ...",
            "",
            *lines,
            "",
            "python -m engine COMMAND --help shows its options, python -m engine --version the version.",
        ]
    )


def main() -> int:
    """Run the command that was asked for."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(overview())
        return 0
    if name == "--version":
        print(version())
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        raise UsageError(f"no command is called {quoted(name)}: {hint}")
    sys.argv = [f"python -m engine {name}", *sys.argv[2:]]
    module = load("bench" if name == "bench" else f"engine.{name}")
    if hasattr(module, "__path__"):  # a package
        module = importlib.import_module(".__main__", module.__name__)
    module.main()
    return 0


def command() -> None:
    """What an installation calls `areograd`."""
    run_command(main)


if __name__ == "__main__":
    command()
