"""Trained networks as safetensors files: weights, and in the metadata everything needed to use them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.build import MARS_TILES, SMALLEST_NETWORK, Form, build_network
from engine.config import Config, from_dict
from engine.data import Tiles
from engine.data.classes import from_dict as classes_from_dict
from engine.errors import InputError, check_regular, quoted, reading, reason
from engine.files import write_bytes
from engine.inference import WHOLE, Normalisation, evaluate_confusion, predict_logits
from engine.training.run_folder import BEST, holds_run
from kernels.core.device import Array, array_module
from kernels.pointwise import softmax_forward
from layers import Module, UNet

_FORMAT = "areograd-2"
_KEY = "areograd"


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, not finite or of another program; the message says which."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded network (in evaluation mode) with its settings and what was recorded with it (epoch, scores).

    window: the size (H, W) of the windows through which it sees images of another size: that of its training, or
        (0, 0), whole images, where an old file does not say it.
    """

    net: UNet
    config: Config
    normalisation: Normalisation
    record: dict[str, Any]
    form: Form = MARS_TILES
    window: tuple[int, int] = WHOLE

    @property
    def barred(self) -> tuple[int, ...]:
        """The classes that the network never predicts."""
        return self.form.classes.barred(self.config.background, self.form.absent)

    def confusion(self, tiles: Tiles, batch: int = 32, flips: bool = False, views: int = 0) -> np.ndarray:
        """int64 (N, C, C): the confusion matrix of every tile, seen by windows where it is not of the size that the
        network was trained on; see `evaluate_confusion`.
        """
        return evaluate_confusion(
            self.net,
            tiles.images,
            tiles.labels(),
            self.normalisation,
            self.barred,
            batch,
            flips,
            self.window,
            tiles.ignored,
            views,
        )

    def probabilities(self, images: np.ndarray, batch: int = 32, flips: bool = False) -> np.ndarray:
        """float32 (N, H, W, C): the classes' probabilities in tiles as they are stored; 0 for classes that are never
        predicted.
        """
        logits = predict_logits(self.net, images, self.normalisation, batch, flips, self.window)
        return self.probabilities_of(logits)

    def probabilities_of(self, logits: np.ndarray) -> np.ndarray:
        """float32 (..., C): the probabilities that logits stand for, 0 for classes that are never predicted. The array
        of logits is written to.
        """
        logits[..., list(self.barred)] = -np.inf
        return softmax_forward(logits, -1)


def not_finite(state: Mapping[str, Array]) -> str | None:
    """The first tensor that holds a NaN or an infinity, and how many, in words; None where there is none."""
    for name, values in state.items():
        count = values.size - int(array_module(values).isfinite(values).sum())
        if count:
            return f"{name} has {count} of {values.size} values that are NaN or infinite"
    return None


def save_checkpoint(
    path: Path, net: UNet, config: Config, normalisation: Normalisation, record: dict[str, Any], form: Form = MARS_TILES
) -> None:
    """Write weights, buffers and metadata durably; the file appears whole or not at all, and equal networks give equal
    bytes.

    Raises CheckpointError for weights that are not finite.
    """
    if bad := not_finite({name: tensor.data for name, tensor in net.named_tensors()}):
        raise CheckpointError(f"checkpoint {path}: not written, for {bad}")
    write_bytes(path, checkpoint_file(Checkpoint(net, config, normalisation, record, form)))


def checkpoint_file(checkpoint: Checkpoint) -> bytes:
    """A safetensors file: the arrays of `Module.state_dict` by their names, and one JSON object with all else."""
    from safetensors.numpy import save

    about = {
        "format": _FORMAT,
        "config": asdict(checkpoint.config),
        "form": asdict(checkpoint.form),
        "normalisation": asdict(checkpoint.normalisation),
        "record": checkpoint.record,
    }
    # One key, because the order of several would be that of a hash table, and change from process to process.
    return save(checkpoint.net.state_dict(), {_KEY: json.dumps(about)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file written by `save_checkpoint`, or the best one of a run folder. Raises CheckpointError with one line
    when that fails.
    """
    metadata, state = read_arrays(path)
    try:
        about = _about(metadata)
        if about.get("format") != _FORMAT:
            raise ValueError(f"its format is {quoted(about.get('format'))}, expected {_FORMAT!r}")
        if bad := not_finite(state):
            raise ValueError(bad)
        config = from_dict(about["config"], "its config")
        record = about.get("record", {})
        if not isinstance(record, dict):
            raise TypeError(f"its record is {quoted(record)}, expected an object")
        size = sum(array.size for array in state.values())
        if size < SMALLEST_NETWORK * config.width**2:  # before memory is taken for the network
            raise ValueError(f"its config says width {config.width}, but its arrays hold {size} numbers only")
        form = form_from_dict(about["form"]) if "form" in about else Form()
        normalisation = _normalisation(about["normalisation"], form.channels)
        net = build_network(config, form)
        net.load_state_dict(state)
    except Exception as error:  # the edge at which a file of any content becomes a message
        raise CheckpointError(
            f"checkpoint {path}: {f'no {error}' if isinstance(error, KeyError) else reason(error)}"
        ) from error
    return Checkpoint(net.eval(), config, normalisation, record, form, form.size if "form" in about else WHOLE)


def form_from_dict(values: Any) -> Form:
    """Raise ValueError or TypeError unless a network can be built for the form."""
    if not isinstance(values, dict):
        raise TypeError(f"its form is {quoted(values)}, expected an object")
    given = Form(
        **values
        | {"classes": classes_from_dict(values["classes"])}
        | {name: tuple(values[name]) for name in ("size", "absent")}
    )
    whole = (given.channels, *given.size, *given.absent)
    if len(given.size) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in whole):
        raise ValueError(f"its form has {quoted(whole)}, expected whole numbers")
    if (
        given.channels not in (1, 3)
        or not all(8 <= side <= 1 << 16 for side in given.size)
        or math.prod(given.size) > 1 << 24
    ):
        raise ValueError(
            f"its form has {given.channels} channels and the size {quoted(given.size)}, expected 1 or 3, and 8 to 65536"
        )
    if given.dtype not in ("uint8", "uint16", "float32") or not all(
        0 <= label < len(given.classes) for label in given.absent
    ):
        raise ValueError(
            f"its form has {quoted(given.dtype)} and {quoted(given.absent)}, expected a dtype of images, and labels"
        )
    return given


def _normalisation(values: Any, channels: int = 1) -> Normalisation:
    """Raise ValueError or TypeError unless the normalisation can be computed with."""
    if not isinstance(values, dict):
        raise TypeError(f"its normalisation is {quoted(values)}, expected a mapping")
    given = Normalisation(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
    for name, value in asdict(given).items():
        several = isinstance(value, tuple) and name in ("mean", "std")
        if several and len(value) != channels:
            raise ValueError(f"its normalisation has {name} {quoted(value)}, expected {channels} numbers")
        for number in value if several else (value,):
            largest = 1e6 if name in ("mean", "std") else 1e30
            if not isinstance(number, (int, float)) or not math.isfinite(number) or abs(number) > largest:
                raise ValueError(f"its normalisation has {name} {quoted(number)}, expected a number")
    if isinstance(given.mean, tuple) != isinstance(given.std, tuple) or isinstance(given.mean, tuple) != (channels > 1):
        raise ValueError(
            f"its normalisation has mean {quoted(given.mean)} and std {quoted(given.std)} for {channels} channels"
        )
    if min(given.std if isinstance(given.std, tuple) else (given.std,)) <= 0:
        raise ValueError(f"its normalisation has std {quoted(given.std)}, expected more than 0")
    if given.high <= given.low:
        raise ValueError(f"its normalisation has low {given.low} and high {given.high}, expected a range")
    return given


def _about(metadata: dict[str, str]) -> dict[str, Any]:
    """The record of a network: one JSON object, or, in files of the first form, one per key."""
    if metadata.get("format") == "areograd-1":
        return {"format": _FORMAT} | {
            name: json.loads(metadata[name]) for name in ("config", "normalisation", "record") if name in metadata
        }
    about = json.loads(metadata[_KEY]) if _KEY in metadata else metadata
    if not isinstance(about, dict):
        raise TypeError(f"its metadata is {quoted(about)}, expected an object")
    return about


def best_in(path: Path) -> Path:
    """The path, or, of a folder, the best checkpoint in it. Raises CheckpointError for a folder without one."""
    if not path.is_dir():
        return path
    best = path / BEST
    if not best.exists():
        what = "a run folder in which no epoch is finished" if holds_run(path) else "a folder that holds no run"
        raise CheckpointError(
            f"checkpoint {path}: {what} (it has no {BEST}), expected a run folder or a .safetensors file"
        )
    return best


def read_arrays(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and arrays of any safetensors file, or of a run folder's best one; CheckpointError when it cannot be
    read.
    """
    from safetensors import safe_open

    with reading(CheckpointError, f"checkpoint {path}: not a readable safetensors file"):
        path = best_in(path)
        try:
            check_regular(path)
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {path}: no such file") from None
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping


def take_weights(net: Module, path: Path) -> str:
    """Overwrite those parameters and buffers that a checkpoint has in the same shape; returns one line that counts
    those taken and lists the others.

    Raises CheckpointError when nothing fits.
    """
    _, given = read_arrays(path)
    try:
        report = net.load_state_dict(given, strict=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"--from {path}: {error}") from None
    whole = len(report.loaded) + len(report.missing) + len(report.misfits)
    lists = {
        "not in the file": report.missing,
        "of another shape": report.misfits,
        "not in the network": report.unexpected,
    }
    rest = "".join(f"; {len(names)} {what} ({_some(names)})" for what, names in lists.items() if names)
    if not report.loaded:
        raise CheckpointError(f"--from {path}: none of the network's {whole} arrays can be taken from it{rest}")
    return f"weights from {path}: {len(report.loaded)} of {whole} arrays taken{rest}"


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")
