"""The table of bench/RESULTS.md from the JSON of bench runs:  python -m bench.results rows.json [more.json ...]

A bar is the smallest ratio (their best mode's time / ours) that is required; where it covers several shapes, their
geometric mean counts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.cli import UsageError, run_command


@dataclass(frozen=True)
class Bar:
    """what: its name in the table. name: a pattern for rows' names. shape: one for their shapes. least: the ratio.
    against: the other framework.
    """

    what: str
    name: str
    least: float
    shape: str = ""
    against: str = "torch"

    def rows(self, table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that count."""
        return [
            row
            for row in table
            if re.fullmatch(self.name, row["name"])
            and re.search(self.shape, row["shape"])
            and row.get("against") == self.against
            and "ratio" in row
        ]


BARS = (Bar("3x3 stride 1, forward", "conv2d 3x3 forward", 2.2),
        Bar("3x3 stride 1, data gradient", "conv2d 3x3 backward_data", 2.0),
        Bar("3x3 stride 1, filter gradient", "conv2d 3x3 backward_filter", 1.8),
        Bar("3x3 dilated 2 and 4, all directions", "conv2d 3x3 dilated .*", 1.2),
        Bar("5x5, all directions", "conv2d 5x5 .*", 1.0), Bar("1x1, all directions", "conv2d 1x1 .*", 1.0),
        Bar("transposed k2 s2, all directions", "conv_transpose2d .*", 1.5),
        Bar("stem 1 -> 32, all directions", "conv2d stem .*", 1.5),
        Bar("depthwise 3x3, all directions", "conv2d depthwise .*", 1.5),
        Bar("max-pool, forward and backward", "max_pool2d .*", 1.5),
        Bar("batch norm (+ residual) + ReLU, forward and backward", "batch_norm.*", 1.5),
        Bar("combined loss, forward and backward", "combined loss", 4.0),
        Bar("AdamW + moving average", "adamw .*", 1.5), Bar("augmentation of a batch of 32", "augmentation", 3.0),
        Bar("training step", "training step", 2.5, "width 32"), Bar("training step", "training step", 2.5, "width 16"),
        Bar("images of a training run (augmentation, loss, moving average included)", "training images", 2.5),
        Bar("inference", "inference", 2.0, "batch 16$"), Bar("inference", "inference", 2.0, "batch 1$"),
        Bar("inference, against ONNX Runtime", "inference", 1.2, "batch 16$", "onnxruntime"),
        Bar("inference, against ONNX Runtime", "inference", 1.2, "batch 1$", "onnxruntime"),
        Bar("a run of `make train`, against the reference kernels", "training run", 4.0, "", "reference"))  # fmt: skip


def mean(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def bars(table: Sequence[dict[str, Any]]) -> str:
    """The bars with the figures reached, as Markdown."""
    lines = ["| what | shapes | bar | reached | each | |", "|---|---|---|---|---|---|"]
    for bar in BARS:
        ratios = [row["ratio"] for row in bar.rows(table)]
        what = bar.what + (f", {bar.shape.rstrip('$')}" if bar.shape else "")
        if not ratios:
            lines.append(f"| {what} | | {bar.least} | not measured | | |")
            continue
        reached = mean(ratios)
        each = ", ".join(f"{r:.2f}" for r in ratios) if len(ratios) > 1 else ""
        lines.append(
            f"| {what} | {len(ratios)} | {bar.least} | **{reached:.2f}** | {each} | "
            f"{'met' if reached >= bar.least else 'not met'} |"
        )
    return "\n".join(lines)


def beside(table: Sequence[dict[str, Any]], against: str) -> str:
    """The cases of PyTorch's bars raced against another framework, which has no bars, as Markdown."""
    lines = [f"| what | shapes | ratio against {against} | each |", "|---|---|---|---|"]
    for bar in BARS:
        ratios = [row["ratio"] for row in replace(bar, against=against).rows(table)] if bar.against == "torch" else []
        if ratios:
            what = bar.what + (f", {bar.shape.rstrip('$')}" if bar.shape else "")
            lines.append(
                f"| {what} | {len(ratios)} | **{mean(ratios):.2f}** | "
                f"{', '.join(f'{r:.2f}' for r in ratios) if len(ratios) > 1 else ''} |"
            )
    return "\n".join(lines)


def details(table: Sequence[dict[str, Any]]) -> str:
    """Every row, as Markdown."""
    lines = [
        "| what | shape | ours ms (quartiles) | GFLOP/s | GB/s | best other | its ms (quartiles) | ratio | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        low, high = row["ours_quartiles"]
        cells = [
            row["name"],
            row["shape"],
            f"{row['ours_ms']:.2f} ({low:.2f} to {high:.2f})",
            _number(row["gflops"]),
            _number(row["gbytes"]),
        ]
        if "ratio" in row:
            low, high = row["against_quartiles"]
            other = (
                f"{row['against']} {row['against_mode']}",
                f"{row['against_ms']:.2f} ({low:.2f} to {high:.2f})",
                f"{row['ratio']:.2f}",
            )
            cells += [*other, f"{row['ours_peak_mb']:.0f} and {row['against_peak_mb']:.0f}"]
        else:
            cells += ["", "", "", f"{row['ours_peak_mb']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; expected what `python -m bench --json FILE` wrote") from None


def run() -> int:
    """Print the tables."""
    arguments = argparse.ArgumentParser(prog="python -m bench.results", description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("files", nargs="+", type=Path, help="what `python -m bench --json FILE` wrote")
    table = [row for path in arguments.parse_args().files for row in _rows(path)]
    print(bars(table), beside(table, "jax"), details(table), sep="\n\n")
    return 0


if __name__ == "__main__":
    run_command(run)
