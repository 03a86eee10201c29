"""Everything that a run needs to go on where it was, bit for bit, in one file.

A run folder keeps the two last states. A new one replaces the older of the two, whole or not at all (engine/files.py),
so that at every moment there is a good one. Each holds a digest of its content; a damaged state is passed over in
favour of the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import Config, from_dict
from engine.data import MARS, Classes, Tiles
from engine.data.tiles import parts_of
from engine.errors import InputError, reason
from engine.files import write_bytes
from engine.training.run_folder import STATES
from kernels.core import device
from kernels.core.modules import version

_FORMAT = "areograd-state-1"
_KEY = "areograd"
_ARRAY = "an array"  # in place of an array, its name
_PACKAGES = ("kernels", "autograd", "layers", "engine")


class StateError(InputError):
    """A run cannot be resumed; the message is one line that says why."""


@dataclass(frozen=True)
class RunState:
    """A run between two steps.

    config: its settings.  surroundings: what else decides its bits, by name (see `surroundings`).  progress: numbers
    and lists, as JSON holds them.  arrays: weights, running statistics, the optimiser's vectors.  serial: which state
    of the run it is, counted from 0.
    """

    config: Config
    surroundings: dict[str, str]
    progress: dict[str, Any]
    arrays: dict[str, np.ndarray]
    serial: int = 0


def save_state(folder: Path, state: RunState) -> None:
    """Write a state in place of the older of the folder's two."""
    from safetensors.numpy import save

    head = {
        "format": _FORMAT,
        "serial": state.serial,
        "config": asdict(state.config),
        "surroundings": state.surroundings,
        "progress": state.progress,
    }
    text = json.dumps(head)  # unsorted: the rows of metrics.jsonl keep the order of their keys
    # One key, because the order of several would be that of a hash table, and change from process to process.
    content = save(state.arrays, {_KEY: json.dumps({"head": text, "digest": _digest(text, state.arrays)})})
    write_bytes(folder / STATES[state.serial % len(STATES)], content)


def load_state(folder: Path) -> RunState:
    """The newest state in a run folder that is not damaged; StateError when there is none."""
    states, problems = [], []
    for name in STATES:
        if (folder / name).exists():
            try:
                states.append(_read(folder / name))
            except StateError as error:
                problems.append(str(error))
    if states:
        return max(states, key=lambda state: state.serial)
    raise StateError("; ".join(problems) if problems else f"{folder}: holds no state of a run")


def _read(path: Path) -> RunState:
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        outer = json.loads(metadata[_KEY])
        if outer["digest"] != _digest(outer["head"], arrays):
            raise StateError(f"{path}: is damaged (its content does not fit its digest)")
        head = json.loads(outer["head"])
        if head["format"] != _FORMAT:
            raise StateError(f"{path}: its format is {head['format']!r}, expected {_FORMAT!r}")
        return RunState(
            from_dict(head["config"], str(path)), head["surroundings"], head["progress"], arrays, head["serial"]
        )
    except StateError:
        raise
    except Exception as error:
        raise StateError(f"{path}: is no readable state of a run ({reason(error)})") from error


def _digest(head: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(head.encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


# -- what decides a run's bits besides its settings --------------------------------------------------------------------


def surroundings(choice: device.Choice, classes: Classes, *parts: Tiles) -> dict[str, str]:
    """What decides the bits of a run besides its settings: versions, device, switches, and the tiles themselves."""
    found = {"areograd": f"{version()}, sources {_source_digest()}"}
    found |= {name: version(name) for name in ("numpy", "numba", "llvmlite")}
    found["device"] = choice.name
    if choice.name == device.CUDA:
        import cupy

        found |= {"cupy": cupy.__version__, "gpu": choice.reason.partition(": ")[2]}
    else:
        from kernels.core.cpu.target import target

        found["vector unit"] = target().name
    for name, default in (("AREOGRAD_CONV", "auto"), ("AREOGRAD_KERNELS", "fast")):
        found[name] = os.environ.get(name, "").strip().lower() or default
    digest = hashlib.blake2b(digest_size=16)
    for tiles in parts:
        for array in (tiles.images, tiles.labels(), *([] if tiles.sizes is None else [tiles.sizes])):
            digest.update(f"{array.shape}".encode())
            for part in parts_of(array):
                digest.update(np.ascontiguousarray(part).data)
    if classes != MARS:
        found["classes"] = hashlib.blake2b(repr(classes).encode(), digest_size=8).hexdigest()
    return {**found, "tiles": digest.hexdigest()}


def difference(config: Config, other: Config) -> str | None:
    """The first setting that differs, as 'epochs is 3, but the run has 2'; None when all are equal."""
    for field in fields(Config):
        mine = getattr(config, field.name)
        theirs = getattr(other, field.name)
        if mine != theirs:
            return f"{field.name} is {mine!r}, but the run has {theirs!r}"
    return None


def changes(now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
    """The changes in a run's surroundings: 'numpy is 2.3.0, but was 2.2.1'."""
    names = [name for name in {**then, **now} if now.get(name) != then.get(name)]
    return [
        "the tiles differ" if n == "tiles" else f"{n} is {now.get(n, 'absent')}, but was {then.get(n, 'absent')}"
        for n in names
    ]


@lru_cache(maxsize=1)
def _source_digest() -> str:
    """Eight letters that change with any line of the packages that compute (a version number does not, between two
    releases).
    """
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(
        p for package in _PACKAGES for p in (root / package).rglob("*") if p.suffix in (".py", ".cu", ".cuh")
    ):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


# -- generators --------------------------------------------------------------------------------------------------------


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of a NumPy generator (Philox) as JSON can hold it."""
    return json.loads(json.dumps(rng.bit_generator.state, default=lambda value: value.tolist()))


def set_generator_state(rng: np.random.Generator, state: dict[str, Any]) -> None:
    """Put a generator where `generator_state` found it."""

    def arrays(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: arrays(v) for k, v in value.items()}
        return np.array(value, np.uint64) if isinstance(value, list) else value

    rng.bit_generator.state = arrays(state)


# -- nested states -----------------------------------------------------------------------------------------------------


def take_apart(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Move the arrays of a nested state to `arrays`, under dotted names; returns the rest, as JSON can hold it."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {str(k): take_apart(v, f"{name}.{k}", arrays) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [take_apart(v, f"{name}.{k}", arrays) for k, v in enumerate(value)]
    return value


def put_together(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The nested state that `take_apart` took apart. Keys that are numbers, which JSON writes as text, are numbers
    again.
    """
    if isinstance(value, dict):
        if _ARRAY in value:
            return arrays[value[_ARRAY]]
        return {int(k) if k.isdigit() else k: put_together(v, arrays) for k, v in value.items()}
    return [put_together(v, arrays) for v in value] if isinstance(value, list) else value
