"""Trained networks as safetensors files: weights, and in the metadata everything needed to use them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Config, ConfigError, from_dict
from engine.errors import InputError
from engine.files import write_bytes
from engine.inference import Normalisation
from kernels.core.device import Array, array_module
from layers import Module, UNet

_FORMAT = "areograd-2"
_KEY = "areograd"


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, not finite or of another program; the message says which."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded network (in evaluation mode) with its settings and what was recorded with it (epoch, scores)."""

    net: UNet
    config: Config
    normalisation: Normalisation
    record: dict[str, Any]


def build_network(config: Config) -> UNet:
    """The network that a Config describes, with initial weights from its seed."""
    return UNet(
        width=config.width,
        bottleneck=config.bottleneck,
        skips=config.skips,
        encoder=config.encoder,
        gate=config.gate,
        order=config.order,
        psa_mode=config.psa_mode,
        five=config.five,
        preactivation=config.preactivation,
        fppm=config.fppm,
        dropout=config.dropout,
        seed=config.seed,
    )


def not_finite(state: Mapping[str, Array]) -> str | None:
    """The first tensor that holds a NaN or an infinity, and how many, in words; None where there is none."""
    for name, values in state.items():
        count = values.size - int(array_module(values).isfinite(values).sum())
        if count:
            return f"{name} has {count} of {values.size} values that are NaN or infinite"
    return None


def save_checkpoint(path: Path, net: UNet, config: Config, normalisation: Normalisation, record: dict[str, Any]) -> None:
    """Write weights, buffers and metadata durably; the file appears whole or not at all, and equal networks give equal bytes.

    CheckpointError for weights that are not finite.
    """
    from safetensors.numpy import save

    state = net.state_dict()
    if bad := not_finite(state):
        raise CheckpointError(f"checkpoint {path}: not written, for {bad}")
    about = {"format": _FORMAT, "config": asdict(config), "normalisation": asdict(normalisation), "record": record}
    # One key, because the order of several would be that of a hash table, and change from process to process.
    write_bytes(path, save(state, {_KEY: json.dumps(about, sort_keys=True)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file written by `save_checkpoint`. CheckpointError with one line when that fails."""
    metadata, state = read_arrays(path)
    try:
        about = _about(metadata)
        if about.get("format") != _FORMAT:
            raise CheckpointError(f"checkpoint {path}: its format is {about.get('format')!r}, expected {_FORMAT!r}")
        if bad := not_finite(state):
            raise CheckpointError(f"checkpoint {path}: {bad}")
        config = from_dict(about["config"], "its config")
        normalisation = Normalisation(**about["normalisation"])
        net = build_network(config)
        net.load_state_dict(state)
    except CheckpointError:
        raise
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    return Checkpoint(net.eval(), config, normalisation, about.get("record", {}))


def _about(metadata: dict[str, str]) -> dict[str, Any]:
    """What is written about a network: one JSON object, or, in files of the first form, one per key."""
    if metadata.get("format") == "areograd-1":
        return {"format": _FORMAT} | {name: json.loads(metadata[name]) for name in ("config", "normalisation", "record") if name in metadata}
    return json.loads(metadata[_KEY]) if _KEY in metadata else metadata


def read_arrays(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and arrays of any safetensors file; CheckpointError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path}: not a readable safetensors file ({error})") from None


def take_weights(net: Module, path: Path) -> str:
    """Overwrite those parameters and buffers that a checkpoint has in the same shape; returns one line on what was taken and what was not.

    CheckpointError when nothing fits.
    """
    _, given = read_arrays(path)
    try:
        report = net.load_state_dict(given, strict=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"--from {path}: {error}") from None
    whole = len(report.loaded) + len(report.missing) + len(report.misfits)
    lists = {"not in the file": report.missing, "of another shape": report.misfits, "not in the network": report.unexpected}
    rest = "".join(f"; {len(names)} {what} ({_some(names)})" for what, names in lists.items() if names)
    if not report.loaded:
        raise CheckpointError(f"--from {path}: none of the network's {whole} arrays can be taken from it{rest}")
    return f"weights from {path}: {len(report.loaded)} of {whole} arrays taken{rest}"


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")
