"""Write a trained network for other programs, with a model card:  python -m engine.export CHECKPOINT [--format onnx
torch safetensors] [--out FOLDER]
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from engine.cli import Output, UsageError, make_folder, parsed, run_command, use_threads
from engine.errors import reason
from engine.files import write_bytes
from engine.training.run_folder import BEST
from kernels.core.modules import PREFIX

if TYPE_CHECKING:
    from engine.training.checkpoint import Checkpoint

Format = Literal["onnx", "torch", "safetensors"]
ENDINGS: dict[str, Format] = {".onnx": "onnx", ".pt": "torch", ".pth": "torch", ".safetensors": "safetensors"}
_ENDING = {"onnx": ".onnx", "torch": ".pt", "safetensors": ".safetensors"}
_NEEDS = {"onnx": "onnx", "torch": "torch"}  # the package that writes a format
_NAME = "model"  # of the files in a folder


@dataclass(frozen=True)
class Arguments:
    """Write a trained network for other programs: an ONNX model, a PyTorch state dict or a safetensors file, and a
    model card beside it.

    Examples:
      python -m engine.export RUN                                    RUN/export/model.onnx and model.md
      python -m engine.export RUN --evaluate val test                the card has measured scores
      python -m engine.export RUN --format onnx torch --out mars     mars/model.onnx, model.pt and model.md
      python -m engine.export RUN/last.safetensors --out mars.onnx   mars.onnx and mars.md
      python -m engine.export RUN --from-torch tuned.pt              from PyTorch: RUN/export/model.safetensors

    The ONNX model takes raw tiles of any batch and size and gives logits and labels; before it is written it is run
    beside the network. All formats are described in docs/export.md.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run folder, whose best network is taken, or a best.safetensors or last.safetensors."""
    out: Path | None = None
    """A folder for model.onnx, model.pt, model.safetensors and the card model.md, or a file that ends in .onnx, .pt,
    .pth or .safetensors; by default the folder 'export' beside the checkpoint.
    """
    format: tuple[Format, ...] = ()
    """One or several of them; by default what --out ends in, else onnx (safetensors with --from-torch)."""
    from_torch: Path | None = None
    """Take the weights from a state dict of the PyTorch twin, and everything else from CHECKPOINT, whose network must
    have the same shapes. The result has no scores until they are measured.
    """
    evaluate: tuple[Literal["val", "test"], ...] = ()
    """Measure the network on these tiles, and put scores, intervals and confusion into the card; otherwise it quotes
    what training has recorded. Needs the data.
    """
    licence: str = ""
    """The licence of the weights, for the card."""
    overwrite: bool = False
    """Replace files that are there."""
    json: bool = False
    """Print one JSON object instead of lines: the path of each format and of the card."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""


def targets(arguments: Arguments) -> dict[str, Path]:
    """Where each format goes, and the 'card'. Raises UsageError for an --out that says another format than --format,
    and for files that are there.
    """
    out = arguments.out
    if out is None:
        path = arguments.checkpoint
        out = (path if path.is_dir() else path.parent) / "export"
    given = ENDINGS.get(out.suffix.lower())
    formats = arguments.format or (given or ("safetensors" if arguments.from_torch else "onnx"),)
    if given is not None and given not in formats:
        raise UsageError(f"--out {out}: is a file of {given}, but --format asks for {' '.join(formats)}")
    stem = out / _NAME if given is None else out.with_suffix("")
    places = {form: stem.with_name(stem.name + _ENDING[form]) for form in dict.fromkeys(formats)}
    if given is not None:
        places[given] = out
    places["card"] = stem.with_name(stem.name + ".md")
    inputs = [path for path in (_file(arguments.checkpoint), arguments.from_torch) if path is not None]
    for place in places.values():
        if place.is_dir():
            raise UsageError(f"--out {place}: is a folder, expected a file")
        if any(place.exists() and path.exists() and place.samefile(path) for path in inputs):
            raise UsageError(f"--out {place}: would replace what it is made from")
        if place.exists() and not arguments.overwrite:
            raise UsageError(f"--out {place}: is there already; give another name, or --overwrite")
    _check_writable(stem.parent)
    return places


def run(arguments: Arguments) -> int:
    """Write the files, and say what they are."""
    places = targets(arguments)
    for form in places:
        _require(f"--format {form}", _NEEDS.get(form))
    if arguments.from_torch is not None:
        _require("--from-torch", "torch")
    use_threads(arguments.threads)

    from engine.export.card import measured, model_card, recorded, run_facts
    from engine.training.checkpoint import load_checkpoint

    source = _file(arguments.checkpoint)
    checkpoint = load_checkpoint(source)
    facts = run_facts(source, checkpoint.record)
    weights = ""
    if arguments.from_torch is not None:
        from engine.export.torch_state import with_weights

        checkpoint = with_weights(checkpoint, arguments.from_torch)
        weights = f"the PyTorch state dict {arguments.from_torch.name}"
    contents = {}
    lines = []
    for form, place in places.items():
        if form != "card":
            contents[place], line = _made(form, checkpoint)
            lines.append(f"{form:<12} {place}  ({line})")
    tables = []
    for split in dict.fromkeys(arguments.evaluate):
        from engine import evaluate

        result = evaluate.evaluate(evaluate.Arguments((source,), split=split), checkpoint)
        arguments.output.note(f"measured on the {split} tiles")
        facts.setdefault("notes", result["notes"])
        tables += measured(checkpoint, result)
    tables = tables or [table for table in (recorded(checkpoint, facts),) if table is not None]
    card = places["card"]
    names = {form: place.name for form, place in places.items() if form != "card"}
    contents[card] = model_card(checkpoint, names, tables, facts, arguments.licence, weights).encode()
    make_folder(card.parent)
    for place, content in contents.items():
        write_bytes(place, content)
    if arguments.json:
        print(json.dumps({form: str(place) for form, place in places.items()}))
    elif not arguments.output.quiet:
        print("\n".join([*lines, f"{'card':<12} {card}"]))
    return 0


def _made(form: str, checkpoint: Checkpoint) -> tuple[bytes, str]:
    """A file's content, and a few words about it."""
    if form == "onnx":
        from engine.export.check import agreement
        from engine.export.graph import OPSET
        from engine.export.model import onnx_model

        content = onnx_model(checkpoint)
        return content, f"opset {OPSET}, {agreement(content, checkpoint)}"
    if form == "torch":
        from engine.export.torch_state import torch_file

        return torch_file(checkpoint.net), f"a state dict of {PREFIX}engine.export.twin.TwinUNet"
    from engine.training.checkpoint import checkpoint_file

    return checkpoint_file(checkpoint), "arrays by name; python -m engine.evaluate reads it, too"


def _file(path: Path) -> Path:
    """The checkpoint: that of the best epoch, if this is a run folder."""
    if not path.is_dir():
        return path
    if not (path / BEST).exists():
        raise UsageError(f"{path}: is no run folder with a trained network (it holds no {BEST})")
    return path / BEST


def _require(argument: str, package: str | None) -> None:
    """Raise UsageError where a package is missing."""
    try:
        if package is not None:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise UsageError(f"{argument}: {package} cannot be imported ({reason(error)})") from error
        raise UsageError(f"{argument}: {package} is not installed (pip install {package})") from None
    except Exception as error:  # a package can be broken in many ways
        raise UsageError(f"{argument}: {package} cannot be imported ({reason(error)})") from error


def _check_writable(folder: Path) -> None:
    """Raise UsageError where the folder can neither be written to nor be made."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise UsageError(f"--out {folder}: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"--out {folder}: cannot write there (Permission denied)")


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.export")))


if __name__ == "__main__":
    main()
