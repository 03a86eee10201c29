"""Which device arrays live on, and which one is the default.

CuPy is optional. It is imported only when `AREOGRAD_DEVICE` or the caller asks for it (or allows it), and a missing or
broken CuPy never breaks the CPU path: `choose` falls back and says why.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a numpy.ndarray or a cupy.ndarray
CPU, CUDA = "cpu", "cuda"
NAMES = ("auto", CPU, CUDA)


class DeviceError(RuntimeError):
    """The requested device cannot be used; the message says why."""


@dataclass(frozen=True)
class Choice:
    """A chosen device and the reason for it; `str(choice)` is the one line shown to the user."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"device: {self.name} ({self.reason})"


_chosen: Choice | None = None
watchers: list[
    Callable[[], None]
] = []  # called after every copy from the device: an error that kernels have noted for the host is raised here


def choose(name: str | None = None) -> Choice:
    """Make `name` ('auto', 'cpu' or 'cuda'; None reads AREOGRAD_DEVICE, else 'auto') the default device.

    'auto' takes CUDA when CuPy imports and sees a device, else the CPU.
    Raises DeviceError when 'cuda' is requested and cannot be used, ValueError for another name.
    """
    global _chosen
    source = "asked for"
    if name is None:
        name = os.environ.get("AREOGRAD_DEVICE", "auto").strip().lower() or "auto"
        source = "AREOGRAD_DEVICE"
    if name not in NAMES:
        raise ValueError(
            f"{'device' if source == 'asked for' else source}: got {name!r}, expected one of {', '.join(NAMES)}"
        )
    if name == CPU:
        _chosen = Choice(CPU, source)
        return _chosen
    obstacle = cuda_obstacle()
    if obstacle is None:
        _chosen = Choice(CUDA, f"{source if name == CUDA else 'auto'}: {_cuda_name()}")
    elif name == CUDA:
        raise DeviceError(f"device: cuda was asked for, but {obstacle}")
    else:
        _chosen = Choice(CPU, f"auto: {obstacle}")
    return _chosen


def default() -> str:
    """The name of the default device: 'cpu' or 'cuda'."""
    return (_chosen or choose()).name


def cuda_obstacle() -> str | None:
    """Why CUDA arrays cannot be used here, in one clause; None when they can."""
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed (pip install cupy-cuda13x, or cupy-cuda12x for an older driver)"
    try:
        cupy = importlib.import_module("cupy")
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a broken CuPy or driver fails in many ways; each must only mean "no CUDA"
        return f"cupy does not work here: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None if count else "cupy sees no CUDA device"


def _cuda_name() -> str:
    cupy = importlib.import_module("cupy")
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return properties["name"].decode()


def array_module(*arrays: Array) -> ModuleType:
    """numpy or cupy: the module whose functions work on these arrays."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def module_of(device: str) -> ModuleType:
    """numpy for 'cpu', cupy for 'cuda'."""
    return importlib.import_module("cupy") if device == CUDA else np


def device_of(*arrays: Array) -> str:
    """'cuda' when any of the arrays is a CuPy array, else 'cpu'."""
    return CPU if array_module(*arrays) is np else CUDA


def to_numpy(array: Array) -> np.ndarray:
    """The array as a NumPy array (copied from the device if it is there)."""
    return _copied(array) if device_of(array) == CUDA else np.asarray(array)


def _copied(array: Array) -> np.ndarray:
    host = array.get()
    for watcher in watchers:
        watcher()
    return host


def fetch(scalars: list[Array]) -> list[float]:
    """0-d arrays of one dtype as Python floats; from CUDA by a single small copy."""
    if device_of(*scalars) == CPU:
        return [float(value) for value in scalars]
    return _copied(module_of(CUDA).stack(scalars)).tolist()


def to_device(array: Array, device: str) -> Array:
    """The array on `device`: unchanged when it is there already."""
    if device_of(array) == device:
        return array
    return _copied(array) if device == CPU else module_of(CUDA).asarray(array)
