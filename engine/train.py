"""Train the Mars-terrain segmentation network:  python -m engine.train [--preset tiny|small|report] [--data ...] [--out DIR] ...

Tiles in, a run folder out: config.toml, metrics.jsonl (a line per epoch), summary.json, best.safetensors and last.safetensors,
curves.png, predictions.png. Without options it trains the smallest preset on built-in data in a few minutes.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from engine.command import UsageError, make_folder, run_command, use_threads
from engine.config import PRESETS, Config, preset, read_toml
from engine.data import CLASSES

SETTINGS_FILE = "config.toml"


@dataclass(frozen=True)
class Arguments:
    """Train the Mars-terrain segmentation network.

    Examples:
      python -m engine.train                                  built-in tiles, a few minutes
      python -m engine.train --preset small --data FILE.npz   real tiles, the middle network
      python -m engine.train --config runs/tiny-1/config.toml --seed 1 --out runs/again
    """

    settings: Annotated[Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run folder; by default the next free runs/PRESET-N."""
    config: Path | None = None
    """Take the settings from a config.toml; options given here win."""
    overwrite: bool = False
    """Allow --out to be a folder that already holds a run."""
    threads: int = 0
    """How many threads CPU kernels use (results do not depend on it); 0: as many as AREOGRAD_THREADS says, else one per core."""


def parse(arguments: list[str] | None = None) -> Arguments:
    """The command line as Arguments: defaults from --config, else from --preset, and what is given explicitly wins."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    chosen_preset, path = _peek(arguments, "--preset"), _peek(arguments, "--config")
    base = preset("tiny")
    if path is not None:
        base = read_toml(Path(path))
    elif chosen_preset in PRESETS:
        base = preset(chosen_preset)
    return tyro.cli(
        Arguments,
        prog="python -m engine.train",
        args=arguments,
        default=Arguments(base),
        use_underscores=False,
    )


def _peek(arguments: list[str], name: str) -> str | None:
    """The value of an option before the real parsing: `--name value` or `--name=value`."""
    for k, argument in enumerate(arguments):
        if argument == name and k + 1 < len(arguments):
            return arguments[k + 1]
        if argument.startswith(name + "="):
            return argument.split("=", 1)[1]
    return None


def choose_out(arguments: Arguments) -> Path:
    """The run folder: as given (not one that holds a run, unless --overwrite), or the next free runs/PRESET-N."""
    if arguments.out is None:
        number = 1
        while (out := Path("runs") / f"{arguments.settings.preset}-{number}").exists():
            number += 1
    else:
        out = arguments.out
        if (out / SETTINGS_FILE).exists() and not arguments.overwrite:
            raise UsageError(f"--out {out}: already holds a run; give another folder, or --overwrite")
    return out


def report_summary(summary: dict[str, Any], out: Path) -> str:
    """The last lines of a run: the scores, then which file is what."""
    low, high = summary["val_miou_fg_interval"]
    per_class = ", ".join(f"{name} {'absent' if summary['iou'][name] is None else format(summary['iou'][name], '.3f')}" for name in CLASSES[1:])
    return (
        f"val mIoU fg {summary['val_miou_fg']:.4f} (95 % {low:.3f} to {high:.3f}, by source image), "
        f"keras {summary['val_miou_keras']:.4f}; {per_class}\n"
        f"model    {out / 'best.safetensors'}  (epoch {summary['best_epoch']})\n"
        f"metrics  {out / 'summary.json'}, {out / 'metrics.jsonl'}\n"
        f"pictures {out / 'predictions.png'}, {out / 'curves.png'}"
    )


def run(arguments: Arguments) -> int:
    """Train as the Arguments say; returns the exit code."""
    from engine.passes import CaptureError
    from engine.progress import make_reporter
    from engine.training import Run, TrainingError

    use_threads(arguments.threads)
    out = choose_out(arguments)
    existed = out.exists()
    make_folder(out)
    reporter = make_reporter(CLASSES)
    try:
        summary = Run(dataclasses.replace(arguments.settings), out, reporter).train()
    except (TrainingError, CaptureError) as error:
        reporter.note(f"error: {error}")
        return 1
    except Exception:
        if not existed and not any(out.iterdir()):
            out.rmdir()  # nothing was written: leave no empty folder behind
        raise
    finally:
        reporter.close()
    print(report_summary(summary, out))
    return 0


def main() -> None:
    """The command line."""
    run_command(lambda: run(parse()))


if __name__ == "__main__":
    main()
