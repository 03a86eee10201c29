"""The results of a grid as files: results.csv (a row per run), results.md (a row per cell), results.png."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from engine.experiment.grid import Grid
from engine.experiment.runs import Run, outcome
from engine.experiment.statistics import Difference, Outcome, Summary, difference, summarise
from engine.training.plots import pyplot


def write_results(grid: Grid, runs: list[Run], out: Path) -> str:
    """Write the three files from all finished runs; returns the Markdown table."""
    finished = [run for run in runs if run.finished]
    outcomes: dict[str, list[Outcome]] = {cell.name: [] for cell in grid.cells}
    for run in finished:
        outcomes[run.cell.name].append(outcome(run))
    _write_csv(out / "results.csv", grid, finished)
    baseline = outcomes[grid.baseline.name]
    measured = {
        cell.name: (
            summarise(outcomes[cell.name]),
            None if cell is grid.baseline else difference(outcomes[cell.name], baseline),
        )
        for cell in grid.cells
        if outcomes[cell.name]
    }
    text = _markdown(grid, measured, list(finished[0].summary["iou"]) if finished else [])
    (out / "results.md").write_text(text, encoding="utf-8")
    if measured:
        _draw(out / "results.png", grid, measured, outcomes)
    return text


def _write_csv(path: Path, grid: Grid, runs: list[Run]) -> None:
    """A row per run: what it was, and every score of its best and last epoch."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        measured = outcome(run)
        summary = run.summary
        best = measured.scores
        last = outcome(run, "last").scores
        rows.append(
            {
                "grid": grid.name,
                "cell": run.cell.name,
                **{f"axis:{axis}": option for axis, option in run.cell.options.items()},
                "seed": run.seed,
                "revision": measured.revision,
                "epochs": summary["epochs"],
                "best_epoch": summary["best_epoch"],
                "miou_fg": best.miou_fg,
                "miou_keras": best.miou_keras,
                **{f"iou:{name}": value for name, value in zip(summary["iou"], best.iou, strict=True)},
                "accuracy": best.accuracy,
                **{f"{kind}_miou_fg": outcome(run, kind).scores.miou_fg for kind in ("flips", "views")},
                "last_miou_fg": last.miou_fg,
                "last_miou_keras": last.miou_keras,
                "parameters": summary["parameters"],
                "seconds": round(summary["seconds"], 1),
                "settings": " ".join(f"{key}={value}" for key, value in run.cell.settings.items()),
            }
        )
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["grid", "cell", "seed"])
        writer.writeheader()
        writer.writerows(rows)


def _markdown(grid: Grid, measured: dict[str, tuple[Summary, Difference | None]], classes: list[str]) -> str:
    """A row per cell: mean and deviation over seeds, pooled score with interval, IoU per class, difference to the
    baseline, published.
    """
    heads = [
        "configuration",
        "runs",
        "fg, mean ± sd of seeds",
        "fg, pooled (95 %)",
        "keras",
        *classes,
        f"minus {grid.baseline.name} (95 %)",
    ]
    with_published = any(cell.published is not None for cell in grid.cells)
    lines = [
        f"# {grid.title}",
        "",
        _row([*heads, *(["published"] if with_published else [])]),
        _row(["---"] * (len(heads) + with_published)),
    ]
    for cell in grid.cells:
        if cell.name not in measured:
            continue
        summary, versus = measured[cell.name]
        low, high = summary.interval
        spread = "" if math.isnan(summary.deviation) else f" ± {summary.deviation:.3f}"
        row = [
            cell.name,
            str(summary.runs),
            f"{summary.mean:.3f}{spread}",
            f"{summary.pooled.miou_fg:.3f} ({low:.3f} to {high:.3f})",
        ]
        row += [
            f"{summary.mean_keras:.3f}",
            *("absent" if v is None else f"{v:.3f}" for v in summary.pooled.iou),
            _difference(versus),
        ]
        if with_published:
            row.append("" if cell.published is None else f"{cell.published:.4f}")
        lines.append(_row(row))
    return "\n".join([*lines, ""])


def _difference(versus: Difference | None) -> str:
    if versus is None:
        return ""
    low, high = versus.interval
    text = f"{versus.value:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if versus.clear else text


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(
    path: Path, grid: Grid, measured: dict[str, tuple[Summary, Difference | None]], outcomes: dict[str, list[Outcome]]
) -> None:
    """Per cell a dot for every seed, the pooled score with its interval, and the published figure."""
    plt = pyplot()
    names = [cell.name for cell in grid.cells if cell.name in measured]
    published = {cell.name: cell.published for cell in grid.cells}
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.45 * len(names)), layout="constrained")
    for k, name in enumerate(names):
        summary = measured[name][0]
        low, high = summary.interval
        axis.plot(
            [low, high],
            [k, k],
            color="0.4",
            lw=2,
            label="pooled over seeds, 95 % over source images" if k == 0 else None,
        )
        axis.plot(summary.pooled.miou_fg, k, "ks", ms=5)
        seeds = [o.scores.miou_fg for o in outcomes[name]]
        axis.plot(seeds, [k + 0.22] * len(seeds), "o", color="#1f77b4", ms=5, label="single seeds" if k == 0 else None)
        if published[name] is not None:
            axis.plot(published[name], k, "x", color="#d1495b", ms=8, mew=2)
    if any(published[name] is not None for name in names):
        axis.plot([], [], "x", color="#d1495b", ms=8, mew=2, label="published, on other tiles")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("mean IoU of the scored classes")
    axis.set_title(grid.title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="best")
    figure.savefig(path, dpi=100)
    plt.close(figure)
