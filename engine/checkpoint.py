"""Trained networks as safetensors files: weights, and in the metadata everything needed to use them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config import Config, ConfigError, from_dict
from engine.inference import Normalisation
from kernels.core.device import Array, array_module
from layers import UNet

_FORMAT = "areograd-1"


class CheckpointError(ValueError):
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
    """Write weights, buffers and metadata; the file appears whole or not at all. CheckpointError for weights that are not finite."""
    from safetensors.numpy import save_file

    state = net.state_dict()
    if bad := not_finite(state):
        raise CheckpointError(f"checkpoint {path}: not written, for {bad}")
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(asdict(config)),
        "normalisation": json.dumps(asdict(normalisation)),
        "record": json.dumps(record),
    }
    part = path.with_name(path.name + ".part")
    save_file(state, part, metadata)
    os.replace(part, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file written by `save_checkpoint`. CheckpointError with one line when that fails."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path}: not a readable safetensors file ({error})") from None
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"checkpoint {path}: its format is {metadata.get('format')!r}, expected {_FORMAT!r}")
    if bad := not_finite(state):
        raise CheckpointError(f"checkpoint {path}: {bad}")
    try:
        config = from_dict(json.loads(metadata["config"]), "its config")
        normalisation = Normalisation(**json.loads(metadata["normalisation"]))
        net = build_network(config)
        net.load_state_dict(state)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    return Checkpoint(net.eval(), config, normalisation, json.loads(metadata.get("record", "{}")))
