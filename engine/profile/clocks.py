"""Time and memory of a device, as a profile reads them."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from typing import Any, Protocol

from kernels.core.cpu import buffer_pool
from kernels.core.device import CUDA

_EMULATED = "emulated"  # in the name of a device whose times mean nothing


class Clock(Protocol):
    """The time and the memory of a device."""

    timed: bool

    def now(self) -> Any:
        """The present time."""

    def resume(self, stamp: Any) -> None:
        """Let time go on from `stamp`, which `now` gave: what was done since did not take any."""

    def nanoseconds(self, stamps: list[Any]) -> list[int]:
        """Stamps as nanoseconds since the first."""

    def in_use(self) -> int:
        """Bytes of the pool of buffers that arrays use."""


class HostClock:
    """The process's clock. It stands still while the profile keeps its books."""

    timed = True

    def __init__(self) -> None:
        self._lost = 0

    def now(self) -> int:
        return time.perf_counter_ns() - self._lost

    def resume(self, stamp: int) -> None:
        self._lost = time.perf_counter_ns() - stamp

    def nanoseconds(self, stamps: list[int]) -> list[int]:
        return [stamp - stamps[0] for stamp in stamps]

    def in_use(self) -> int:
        return buffer_pool.pool.live


class DeviceClock:
    """Events on CUDA's current stream: times are the device's own, also of work that the host has only enqueued.

    An emulated device gives an order, but no times.
    """

    def __init__(self) -> None:
        self._cupy = importlib.import_module("cupy")
        from kernels.core.cuda.peaks import name

        self.timed = _EMULATED not in name()

    def now(self) -> Any:
        event = self._cupy.cuda.Event()
        event.record()
        return event

    def resume(self, stamp: Any) -> None:
        """The device does not wait for the books of the host."""

    def nanoseconds(self, stamps: list[Any]) -> list[int]:
        if not self.timed:
            return list(range(len(stamps)))
        stamps[-1].synchronize()
        return [round(1e6 * self._cupy.cuda.get_elapsed_time(stamps[0], stamp)) for stamp in stamps]

    def in_use(self) -> int:
        return self._cupy.get_default_memory_pool().used_bytes()


def clock_of(device: str) -> Clock:
    """The clock of 'cpu' or 'cuda'."""
    return DeviceClock() if device == CUDA else HostClock()


class Resident:
    """The process's resident memory, read from /proc (0 elsewhere)."""

    def __init__(self) -> None:
        self._file = -1
        with contextlib.suppress(OSError):
            self._file = os.open("/proc/self/statm", os.O_RDONLY)

    def bytes(self) -> int:
        """Resident bytes now."""
        if self._file < 0:
            return 0
        return int(os.pread(self._file, 100, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
