"""A grid of training runs, described by a TOML file.

    title = "Table 1: losses"             # heads the table
    baseline = "combined"                 # the cell that all others are compared with
    [settings]                            # settings of every run, as in a config.toml
    preset = "small"
    epochs = 25
    [[axis]]                              # the grid is the product of its axes
    name = "loss"
    [[axis.option]]
    name = "combined"
    published = 0.6264                    # the figure of a publication to set against ours, if there is one
    settings = { margin = 0.4, dice = 0.2, focal = 0.2, iou = 0.2 }

A cell is one option of every axis. Its name joins the options' names; its settings are the grid's, overridden axis by
axis.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import MOST_TOML, Config, ConfigError, from_dict, parse_toml
from engine.errors import quoted, read_bytes, reading, reason

FOLDER = Path(__file__).parent / "grids"
_SEPARATOR = ", "


@dataclass(frozen=True)
class Cell:
    """One configuration. options: the chosen option of every axis.  published: a figure to compare with, mean IoU in
    [0, 1], or None.
    """

    name: str
    options: dict[str, str]
    settings: dict[str, Any]
    published: float | None = None

    @property
    def folder(self) -> str:
        """The name as a folder's name."""
        return re.sub(r"[^a-z0-9.+]+", "-", self.name.lower()).strip("-")

    def config(self, **overrides: Any) -> Config:
        """The settings of a run of this cell. Raises ConfigError for unknown settings or bad values."""
        return from_dict({**self.settings, **overrides}, f"cell {self.name!r}")


@dataclass(frozen=True)
class Grid:
    """A named grid. axes: the axes' names in order.  baseline: the cell that the others are compared with."""

    name: str
    title: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    baseline: Cell


def names() -> list[str]:
    """The grids that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_grid(source: str) -> Grid:
    """A grid of the package by name, or a TOML file. Raises ConfigError when it is missing or malformed."""
    path = FOLDER / f"{source}.toml" if source in names() else Path(source)
    try:
        text = read_bytes(path, MOST_TOML)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"grid {quoted(source)}: {reason(error)}; expected a TOML file or one of {', '.join(names())}"
        ) from error
    values = parse_toml(text, f"grid {path}")
    with reading(ConfigError, f"grid {path}: cannot be used"):
        return _grid(values, path)


def _grid(values: dict[str, Any], path: Path) -> Grid:
    _known(values, {"title": str, "baseline": str, "settings": dict, "axis": list}, f"grid {path}")
    axes = values.get("axis", [])
    for axis in axes:
        _known(axis, {"name": str, "option": list}, f"grid {path}: an axis")
        for option in axis.get("option", []):
            _known(
                option,
                {"name": str, "settings": dict, "published": float},
                f"grid {path}: an option of axis {axis.get('name')!r}",
            )
    if not axes or any(
        "name" not in axis or not axis.get("option") or any("name" not in o for o in axis["option"]) for axis in axes
    ):
        raise ConfigError(
            f"grid {path}: expected at least one [[axis]] with a name and [[axis.option]] entries, each with a name"
        )
    base = values.get("settings", {})
    cells = tuple(_cell(axes, options, base) for options in itertools.product(*(axis["option"] for axis in axes)))
    by_folder = {cell.folder: cell for cell in cells}
    if len(by_folder) < len(cells):
        raise ConfigError(f"grid {path}: two cells have the same name; expected distinct names of options")
    for cell in cells:
        cell.config()
    wanted = values.get("baseline", cells[0].name)
    baseline = next((cell for cell in cells if cell.name == wanted), None)
    if baseline is None:
        raise ConfigError(
            f"grid {path}: baseline is {wanted!r}, expected one of {'; '.join(cell.name for cell in cells)}"
        )
    return Grid(path.stem, values.get("title", path.stem), tuple(axis["name"] for axis in axes), cells, baseline)


def _cell(axes: list[dict[str, Any]], options: tuple[dict[str, Any], ...], base: dict[str, Any]) -> Cell:
    settings = dict(base)
    for option in options:
        settings |= option.get("settings", {})
    published = [option["published"] for option in options if "published" in option]
    chosen = {axis["name"]: option["name"] for axis, option in zip(axes, options, strict=True)}
    return Cell(_SEPARATOR.join(chosen.values()), chosen, settings, published[0] if published else None)


def _known(values: Any, kinds: dict[str, type], where: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: got {values!r}, expected a table with {', '.join(kinds)}")
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f"{where}: unknown key {key!r}, expected one of {', '.join(kinds)}")
        if not isinstance(value, kinds[key]):
            raise ConfigError(f"{where}: {key} is {value!r}, expected {kinds[key].__name__}")
