"""The number of processors and the memory that this process may use. Its affinity mask and its control groups decide,
not the machine's size.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_cores() -> int:
    """The cores that threads of this process can run on at a time, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, quota(_GROUPS, _MINE))))


def capped(count: int, source: str) -> int:
    """`count`, or all usable cores with a warning where that is more: threads that wait for each other's core are
    slower than one.
    """
    most = usable_cores()
    if count <= most:
        return count
    text = f"{source}: got {count}, but this process may use {most} {'core' if most == 1 else 'cores'}: using {most}"
    warnings.warn_explicit(text, RuntimeWarning, "areograd", 1)
    return most


def available_memory() -> int:
    """Bytes of memory that this process can have: what the system and the process's control groups leave."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 32
    return int(min(free, group_memory()))


def group_memory(groups: Path = _GROUPS, mine: Path = _MINE) -> float:
    """Bytes of memory that control groups leave to this process (inf: no limit). Cached files count as free memory."""
    return _least(groups, mine, "memory", _memory)


def quota(groups: Path, mine: Path) -> float:
    """Cores' worth of time that control groups leave to this process (inf: no limit), the least of its group's and of
    those around it.
    """
    return _least(groups, mine, "cpu", _limit)


def _least(groups: Path, mine: Path, controller: str, limit: Callable[[Path], float]) -> float:
    """The least of the limits of this process's control group and of those around it."""
    try:
        lines = [line.split(":", 2) for line in mine.read_text().splitlines()]
    except OSError:
        return math.inf
    least = math.inf
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            roots = [groups, groups / "unified"]
        elif controller in controllers.split(","):
            roots = [groups / controllers, groups / controller]
        else:
            continue
        for root in roots:
            inner = root / path.strip("/")
            for folder in (inner, *inner.parents):
                least = min(least, limit(folder))
                if folder == root:
                    break
    return least


def _memory(folder: Path) -> float:
    """The memory that one group leaves: `memory.max` of version 2, or `memory.limit_in_bytes` of version 1, less the
    memory in use, cached files aside.
    """
    for most, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            left = float((folder / most).read_text()) - float((folder / used).read_text())
            numbers = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
            return max(0.0, left + float(numbers.get(cached, 0)))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return math.inf


def _limit(folder: Path) -> float:
    """One group's limit: `cpu.max` of version 2, or `cpu.cfs_quota_us` of version 1."""
    try:
        text = (folder / "cpu.max").read_text().split()
    except OSError:
        try:
            text = [(folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except OSError:
            return math.inf
    try:
        time, period = float(text[0]), float(text[1])
    except (ValueError, IndexError):  # "max"
        return math.inf
    return time / period if time > 0 and period > 0 else math.inf
