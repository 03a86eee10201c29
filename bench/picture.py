"""The roofline of a bench run: GFLOP/s against FLOPs per byte, under what the machine was measured to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernels.core.cpu.peaks import Machine


def draw(path: Path, table: list[dict[str, Any]], machine: Machine) -> None:
    """Every row with FLOPs and bytes: ours as a dot, the best other as a cross, joined. Writes a PNG or SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in table if row["gflops"] and row["flops_per_byte"]]
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    low = 0.1
    high = max([1000.0, *(2 * row["flops_per_byte"] for row in rows)])
    bend = machine.gflops / machine.gbytes
    axes.plot(
        [low, bend, high], [low * machine.gbytes, machine.gflops, machine.gflops], color="0.3", label="measured peaks"
    )
    for family, colour in zip(sorted({row["family"] for row in rows}), pyplot.cm.tab10.colors, strict=False):
        mine = [row for row in rows if row["family"] == family]
        axes.scatter(
            [r["flops_per_byte"] for r in mine], [r["gflops"] for r in mine], color=colour, s=22, label=family, zorder=3
        )
        for row in mine:
            if "ratio" in row:
                x = row["flops_per_byte"]
                theirs = row["gflops"] / row["ratio"]
                axes.plot([x, x], [row["gflops"], theirs], color=colour, linewidth=0.6)
                axes.scatter([x], [theirs], color=colour, marker="x", s=22)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="FLOPs per byte of ideal traffic",
        ylabel="GFLOP/s (FLOPs of the plain algorithm)",
    )
    axes.set_title(
        f"{machine}\ndots: ours; crosses: the best other. Winograd does with fewer FLOPs and may pass the peak.",
        fontsize=9,
    )
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
