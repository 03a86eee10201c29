"""The bound on what a GPU could reach, computed: the larger of FLOPs / peak rate and bytes / peak bandwidth (Williams
et al., CACM 52(4), 2009).

Nothing here is measured. The peaks are the vendor's own figures, which no kernel reaches; the time is a lower bound and
shows which of the two resources a kernel is bound by. FLOPs and bytes are a case's own (bench/harness.py): bytes are
the ideal traffic, every array once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.harness import Case


@dataclass(frozen=True)
class Gpu:
    """Vendor's peaks: float32 TFLOP/s, TF32 tensor TFLOP/s (dense; 0: none), GB/s of memory; source."""

    name: str
    float32: float
    tf32: float
    bandwidth: float
    source: str

    def milliseconds(self, flops: float, traffic: float, tensor: bool = False) -> float:
        """The lower bound of a kernel's time."""
        peak = self.tf32 if tensor and self.tf32 else self.float32
        return 1e3 * max(flops / (peak * 1e12), traffic / (self.bandwidth * 1e9))

    def bound(self, flops: float, traffic: float) -> str:
        """'memory' or 'compute', in float32."""
        return "compute" if flops / (self.float32 * 1e12) > traffic / (self.bandwidth * 1e9) else "memory"


GPUS = (
    Gpu("T4", 8.1, 0, 320, "NVIDIA T4 datasheet"),
    Gpu("A100", 19.5, 156, 2039, "NVIDIA A100 datasheet, SXM 80 GB"),
    Gpu("RTX 3090", 35.6, 35.6, 936, "NVIDIA Ampere GA102 whitepaper"),
    Gpu("H100", 66.9, 494.7, 3350, "NVIDIA H100 whitepaper and datasheet, SXM5"),
    Gpu("RTX 5090", 104.8, 104.8, 1792, "NVIDIA RTX Blackwell whitepaper"),
)


def rows(family: str, cases: Iterator[Case] | list[Case]) -> list[dict[str, Any]]:
    """A JSON row per case whose FLOPs or bytes are stated."""
    out = []
    for case in cases:
        if not (case.flops or case.bytes):
            continue
        row: dict[str, Any] = {
            "name": case.name,
            "family": family,
            "shape": case.shape,
            "flops": case.flops,
            "bytes": case.bytes,
            "measured": False,
        }
        row["computed_ms"] = {gpu.name: round(gpu.milliseconds(case.flops, case.bytes), 5) for gpu in GPUS}
        row["computed_tf32_ms"] = {
            gpu.name: round(gpu.milliseconds(case.flops, case.bytes, tensor=True), 5) for gpu in GPUS if gpu.tf32
        }
        row["bound"] = {gpu.name: gpu.bound(case.flops, case.bytes) for gpu in GPUS}
        out.append(row)
    return out


def title() -> str:
    """The header: the columns, and the source of the peaks."""
    peaks = "; ".join(f"{g.name}: {g.float32} TFLOP/s, {g.bandwidth} GB/s ({g.source})" for g in GPUS)
    columns = " ".join(f"{g.name:>10}" for g in GPUS)
    return (
        "No GPU time is printed: none was measured. COMPUTED lower bounds in ms, float32, from FLOPs, ideal bytes and "
        "the vendor's peak figures\n"
        f"({peaks}); m: bound by memory, c: by arithmetic.\n"
        f"{'case':<36} {'shape':<26} {'MFLOP':>9} {'MB':>8} {'FLOP/B':>7} {columns}"
    )


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    flops, traffic = row["flops"], row["bytes"]
    intensity = f"{flops / traffic:.1f}" if flops and traffic else ""
    times = " ".join(f"{row['computed_ms'][g.name]:>8.4f} {row['bound'][g.name][0]}" for g in GPUS)
    return f"{row['name']:<36} {row['shape']:<26} {flops / 1e6:>9.1f} {traffic / 1e6:>8.2f} {intensity:>7} {times}"
