"""Trained networks as safetensors files: weights, and in the metadata everything needed to use them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config import Config, ConfigError, from_dict
from engine.inference import Normalisation
from layers import UNet

_FORMAT = "areograd-1"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another program; the message says which."""


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


def save_checkpoint(path: Path, net: UNet, config: Config, normalisation: Normalisation, record: dict[str, Any]) -> None:
    """Write weights, buffers and metadata; the file appears whole or not at all."""
    from safetensors.numpy import save_file

    metadata = {
        "format": _FORMAT,
        "config": json.dumps(asdict(config)),
        "normalisation": json.dumps(asdict(normalisation)),
        "record": json.dumps(record),
    }
    part = path.with_name(path.name + ".part")
    save_file(net.state_dict(), part, metadata)
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
    try:
        config = from_dict(json.loads(metadata["config"]), "its config")
        normalisation = Normalisation(**json.loads(metadata["normalisation"]))
        net = build_network(config)
        net.load_state_dict(state)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    return Checkpoint(net.eval(), config, normalisation, json.loads(metadata.get("record", "{}")))
