"""The network's state as a PyTorch state dict of its twin (twin.py), and back."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import check_regular, quoted, reading
from engine.export.channels import channels_first, channels_last
from engine.export.graph import ExportError
from engine.training.checkpoint import Checkpoint, not_finite
from layers import BatchNorm2d, Module

_COUNT = "num_batches_tracked"  # PyTorch's batch norms have it, ours do not; at a fixed momentum it is never used


def twin_state(net: Module) -> dict[str, np.ndarray]:
    """All that `TwinUNet.state_dict()` has, by name: channels first, and a count of 0 for every batch norm."""
    counts = {
        f"{path}.{_COUNT}": np.zeros((), np.int64)
        for path, module in net.named_modules()
        if isinstance(module, BatchNorm2d)
    }
    return channels_first(net) | counts


def torch_file(net: Module) -> bytes:
    """A .pt file of the twin's state dict, which `torch.load` reads with weights_only=True. Needs PyTorch."""
    import torch

    content = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in twin_state(net).items()}, content)
    return content.getvalue()


def with_weights(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint with the weights and statistics of a twin's state dict, and without its scores, which were those
    of other weights. Needs PyTorch.

    Raises ExportError with one line for a file that cannot be read, that holds no state dict, or whose arrays are not
    finite or not those of the network.
    """
    what = f"--from-torch {path}"
    net = checkpoint.net
    given = channels_last(net, _read(path, what))
    if bad := not_finite(given):
        raise ExportError(f"{what}: {bad}")
    try:
        net.load_state_dict(given)
    except ValueError as error:
        raise ExportError(f"{what}: {str(error).removeprefix('load_state_dict: ')}") from None
    return replace(checkpoint, record={})


def _read(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of a .pt file, in float32, without the counts of batches."""
    import torch

    with reading(ExportError, f"{what}: not a readable PyTorch file of tensors"):
        try:
            check_regular(path)
        except FileNotFoundError:
            raise ExportError(f"{what}: no such file") from None
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise ExportError(f"{what}: got a {type(state).__name__}, expected a state dict: tensors by name")
    arrays = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ExportError(
                f"{what}: its key {quoted(name)} holds a {type(tensor).__name__}, expected a state dict: tensors by "
                "name"
            )
        if name.rpartition(".")[2] != _COUNT:
            with reading(ExportError, f"{what}: {name} cannot be used"):
                arrays[name] = tensor.detach().to(torch.float32).numpy()
    return arrays
