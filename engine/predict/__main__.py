"""Label images of any size with a trained network:  python -m engine.predict RUN IMAGES --out DIR"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from engine.cli import Output, UsageError, make_folder, parsed, run_command, use_threads

if TYPE_CHECKING:
    import numpy as np

    from engine.ensemble import Ensemble
    from engine.predict.inputs import Source
    from engine.predict.outputs import Item, Outputs, Wanted


@dataclass(frozen=True)
class Arguments:
    """Label images of any size with a trained network, or with several as one ensemble, whose probabilities are the
    mean of its members'.

    Examples:
      python -m engine.predict RUN PHOTOS --out LABELS                  every image in the folder PHOTOS
      python -m engine.predict RUN a.png 'sites/*/b.png' --out LABELS   a file, and those that match
      python -m engine.predict RUN OTHER PHOTOS --flips --out LABELS    an ensemble of two, averaged over flips
      python -m engine.predict RUN TILES.npz --csv --out LABELS         the tiles of test_set, and submission.csv

    Checkpoints and images may be given in any order. A folder with a best.safetensors and a file *.safetensors are
    checkpoints. A file *.npz holds tiles in the original form (its test_set, else the images of its training_set). All
    else are images: files, folders with all images in them at any depth but no masks, and globs.

    Images that are larger than what the network was trained on are seen through overlapping windows of that size, whose
    logits are blended; smaller ones are mirrored. Files are called as the images: LABELS/masks/NAME.png,
    LABELS/overlays/NAME.png, LABELS/probabilities/NAME.npz. A mask has the values that masks have in training.
    """

    GROUPS: ClassVar[dict[str, str]] = {"out": "what is written", "flips": "how it is computed"}

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT ... INPUT ...")]
    """Run folders or .safetensors files; images, folders, globs or .npz files."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write to, which is created. It must be given."""
    masks: Literal["auto", "png", "npz", "none"] = "auto"
    """PNG files with the classes' colours as their palette; .npz files with the array 'mask' (H, W), or of the tiles of
    an .npz file 'masks' (N, H, W); auto: PNG for image files, .npz for .npz files.
    """
    overlay: bool = False
    """Write the images tinted with the classes' colours, too."""
    probabilities: Literal["none", "float16", "float32"] = "none"
    """Write .npz files with the array 'probabilities' (H, W, classes), or (N, H, W, classes), of this type, and the
    names 'classes'.
    """
    csv: bool = False
    """Write submission.csv: the header id,0,1,...; then a row per image, its number from 0 and its mask row by row."""
    json: bool = False
    """Print a line of JSON for every image: its size, the share of each class, the mean confidence, and its files."""
    output: Annotated[Output, tyro.conf.arg(name="")] = field(default_factory=Output)
    overwrite: bool = False
    """Replace files that exist."""
    flips: bool = False
    """Average the logits over horizontal and vertical flips (test-time augmentation); four times as slow."""
    batch: int = 0
    """Windows per forward pass; 0: as many as have 131,072 pixels together (16 of 64 x 128)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    threads: int = 0
    """Number of threads for CPU kernels; 0: as many as AREOGRAD_THREADS says, else one per core."""


def run(arguments: Arguments) -> int:
    """Predict and write; errors as one line each, before anything is written, unless a file is damaged inside."""
    from engine.ensemble import load_ensemble
    from engine.predict.inputs import notes_on, opened, sorted_out
    from engine.predict.outputs import Outputs, Wanted, check_free, planned
    from kernels.core import device

    wanted = Wanted(arguments.masks, arguments.overlay, arguments.probabilities, arguments.csv)
    if wanted == Wanted("none") and not arguments.json:
        raise UsageError(
            "--masks none: nothing is left to do; expected --overlay, --probabilities, --csv or --json, too"
        )
    if not 0 <= arguments.batch <= 1 << 20:
        raise UsageError(f"--batch: got {arguments.batch}, expected 0 to {1 << 20}")
    use_threads(arguments.threads)
    choice = device.choose(None if arguments.device == "auto" else arguments.device)
    checkpoints, images = sorted_out(arguments.inputs, arguments.out)
    ensemble = load_ensemble(checkpoints)
    sources = opened(images, ensemble.form)
    items = planned(sources, wanted, arguments.out)
    check_free(items, wanted, arguments.out, arguments.overwrite)
    for note in notes_on(sources):
        arguments.output.note(note)
    with _folder(arguments.out):
        if choice.name == device.CPU:
            _compile(ensemble, arguments)
        with Outputs(items, wanted, ensemble.form.classes, arguments.out) as outputs:
            _predict(ensemble.to(choice.name), items, outputs, arguments)
    if not arguments.json and not arguments.output.quiet:
        print(_summary(len(items), ensemble, outputs, wanted, arguments.out))
    return 0


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Create the folder; one that was created for nothing is removed when the block raises."""
    from engine.predict.outputs import KINDS

    new = not out.exists()
    make_folder(out)
    try:
        yield
    except BaseException:
        if new:
            for folder in (*(out / kind for kind in KINDS), out):
                with contextlib.suppress(OSError):
                    folder.rmdir()  # fails unless it is empty
        raise


def _compile(ensemble: Ensemble, arguments: Arguments) -> None:
    """Compile what is missing on disk: a line says why the first image takes long."""
    from engine.precompile import precompile_inference
    from engine.predict.progress import compiling

    report = (lambda done, of, name: None) if arguments.output.quiet else compiling
    for member in ensemble.members:
        precompile_inference(member.config, member.form, ensemble.batch(arguments.batch), report)


def _predict(ensemble: Ensemble, items: Sequence[Item], outputs: Outputs, arguments: Arguments) -> None:
    """Write everything, and print the records that are asked for."""
    from engine.predict.progress import Progress
    from engine.windows import windows_over

    size = ensemble.form.size
    sources = list(dict.fromkeys(item.source for item in items))
    windows = sum(len(source) * len(windows_over(source.size, size)) for source in sources)
    with Progress(len(items), windows, arguments.json, arguments.output.quiet) as progress:
        for strip in ensemble.strips(_images(sources, ensemble.form.channels), arguments.batch, arguments.flips):
            record = outputs.put(strip)
            progress.advance(record is not None, len(windows_over(strip.image.shape[:2], size).columns))
            if record is not None and arguments.json:
                print(json.dumps(record), flush=True)


def _images(sources: Sequence[Source], channels: int) -> Iterator[np.ndarray]:
    return (image for source in sources for image in source.images(channels))


def _summary(count: int, ensemble: Ensemble, outputs: Outputs, wanted: Wanted, out: Path) -> str:
    """The last lines: the share of each class in all images, and where the files are."""
    from engine.predict.outputs import KINDS, SUBMISSION

    shares = outputs.shares(outputs.total).items()
    shown = sorted((item for item in shares if item[1]), key=lambda item: -item[1])
    of = "1 image" if count == 1 else f"{count} images"
    by = "" if len(ensemble.members) == 1 else f", by {len(ensemble.members)} networks"
    there = (wanted.masks != "none", wanted.overlay, wanted.probabilities != "none", wanted.csv)
    return "\n".join(
        [
            f"{of}{by}: {', '.join(f'{name} {share:.1%}' for name, share in shown)}",
            *(f"{kind:<14} {out / kind}" for kind, wrote in zip((*KINDS, SUBMISSION), there, strict=True) if wrote),
        ]
    )


def main() -> None:
    """The command line."""
    run_command(lambda: run(parsed(Arguments, "python -m engine.predict")))


if __name__ == "__main__":
    main()
