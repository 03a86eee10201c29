"""The classes of a data set: their names, their colours, their values in a mask, and the values that count nowhere.

Everything that depends on classes (data, weights, losses, metrics, pictures, checkpoints) takes a `Classes`. The Mars
tiles' are a preset, `MARS`. Others come from a file, `classes.toml` beside the images or `--classes FILE`:

    ignore = 255                # mask values (or colours) that count nowhere; 255 where nothing is said, [] for none

    [[class]]
    name = "road"
    value = 7                   # what masks hold for it, or several values, as [7, 8]; counted from 0 where nothing is
    said
    colour = "#804080"          # in pictures, and in masks that are RGB images

A file with one class is a binary problem: the network has one logit, and 0 in a mask is the background.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import MOST_TOML, ConfigError, parse_toml
from engine.errors import quoted, read_bytes, reading

FILE = "classes.toml"
MOST = 256  # classes
VALUES = 1 << 16  # a mask holds 0..65535
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_IGNORED = 255  # unless something else is said
_LONGEST = 100  # characters of a name


@dataclass(frozen=True)
class Classes:
    """Names and '#rrggbb' colours by label 0..C-1; values: what a mask holds for each of them.

    further: (value, label) pairs of classes for which a mask may hold other values, too.

    ignore: mask values that count nowhere; in labels they are all `ignored`, as is padding.   ignore_colours: the same
        in RGB masks.
    unlabelled: 0 where class 0 means "unlabelled" but has a logit (the Mars tiles); None otherwise.
    single: a binary problem of one logit: label 0 is everything but the class, and is not scored.
    own_colours: whether the colours are the data's own, so that RGB masks can be read by them.
    plain: whether neither values nor ignored values were given.
    ignores: whether labels may be `ignored`; the Mars tiles' are not, unless they are padded.
    Raises ConfigError where these do not fit together.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    values: tuple[int, ...]
    ignore: tuple[int, ...] = ()
    ignore_colours: tuple[str, ...] = ()
    unlabelled: int | None = None
    single: bool = False
    own_colours: bool = False
    plain: bool = False
    ignores: bool = True
    further: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if (
            not 2 <= count <= MOST
            or len(self.colours) != count
            or len(self.values) != count
            or (self.single and count != 2)
        ):
            sizes = f"{count} names, {len(self.colours)} colours and {len(self.values)} values"
            raise ConfigError(f"classes: got {sizes}, expected 2 to {MOST} of each")
        further = tuple(value for value, _ in self.further)
        for what, entries in (
            ("name", self.names),
            ("value", (*self.values, *further, *self.ignore)),
            ("colour", self._own()),
        ):
            twice = next((e for e in entries if entries.count(e) > 1), None)
            if twice is not None:
                raise ConfigError(
                    f"classes: the {what} {quoted(twice)} stands for two things (classes, or what is ignored), "
                    "expected one"
                )
        if any(
            not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _LONGEST
            for name in self.names
        ):
            raise ConfigError(
                f"classes: got the names {quoted(self.names)}, expected printable text of at most {_LONGEST} "
                "characters for each"
            )
        for value in (*self.values, *further, *self.ignore):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < VALUES:
                raise ConfigError(f"classes: got the value {quoted(value)}, expected a whole number 0 to {VALUES - 1}")
        for colour in (*self.colours, *self.ignore_colours):
            if not isinstance(colour, str) or not _COLOUR.fullmatch(colour):
                raise ConfigError(f"classes: got the colour {quoted(colour)}, expected one like '#804080'")
        if any(not isinstance(label, int) or not 0 <= label < count for _, label in self.further):
            raise ConfigError(
                f"classes: got the further values {quoted(self.further)}, expected pairs of a value and a label below "
                f"{count}"
            )
        if self.unlabelled not in (None, 0):
            raise ConfigError(f"classes: got unlabelled {quoted(self.unlabelled)}, expected 0 or none")

    def _own(self) -> tuple[str, ...]:
        return (*self.colours, *self.ignore_colours) if self.own_colours else ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def logits(self) -> int:
        """The number of logits per pixel: one per class, or a single one."""
        return 1 if self.single else len(self)

    @property
    def ignored(self) -> int:
        """The label of pixels that count nowhere: 255, or 65535 where 255 is a class."""
        return _IGNORED if len(self) <= _IGNORED else VALUES - 1

    @property
    def allowed(self) -> int | None:
        """The ignored label, where labels may be that."""
        return self.ignored if self.ignores else None

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The dtype of labels."""
        return np.uint8 if len(self) <= _IGNORED else np.uint16

    @property
    def scored(self) -> tuple[int, ...]:
        """The labels whose IoU enters the mean: all but the unlabelled one, or, of a binary problem, the one class."""
        return tuple(range(1 if self.single or self.unlabelled == 0 else 0, len(self)))

    @property
    def scored_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.names[label] for label in self.scored)

    def background(self, policy: str) -> str:
        """The setting `background` as it applies: class 0 is a class like any other where none is unlabelled."""
        return "train" if self.unlabelled is None else policy

    def barred(self, policy: str, absent: Sequence[int]) -> tuple[int, ...]:
        """The classes that are never predicted: the background where the setting `background` is 'mask', and those
        that the training set lacks.
        """
        return *([0] if self.background(policy) == "mask" else []), *absent

    def weighs_background(self, policy: str) -> bool:
        """Whether class 0 has a weight in the loss."""
        return self.background(policy) != "mask"

    @cached_property
    def table(self) -> np.ndarray:
        """Labels by mask value: int32 (65536,), -1 for values that stand for nothing."""
        table = np.full(VALUES, -1, np.int32)
        table[list(self.values)] = range(len(self))
        for value, label in self.further:
            table[value] = label
        if self.single and self.plain:
            table[_IGNORED] = 1
        table[list(self.ignore)] = self.ignored
        return table

    @cached_property
    def colour_table(self) -> tuple[np.ndarray, np.ndarray]:
        """(codes, labels) of RGB masks: codes r * 65536 + g * 256 + b, ascending."""
        own = {int(colour[1:], 16): label for label, colour in enumerate(self.colours)}
        own |= {int(colour[1:], 16): self.ignored for colour in self.ignore_colours}
        codes = sorted(own)
        return np.array(codes, np.int64), np.array([own[code] for code in codes], np.int32)

    @property
    def expected(self) -> str:
        """The known mask values, in words."""
        known = sorted({*(int(v) for v in np.flatnonzero(self.table >= 0))})
        runs = known == list(range(known[0], known[-1] + 1)) and len(known) > 2
        text = (
            f"{known[0]}..{known[-1]}"
            if runs
            else ", ".join(map(str, known[:12])) + (", ..." if len(known) > 12 else "")
        )
        return f"whole labels {text}"


MARS = Classes(
    ("background", "soil", "bedrock", "sand", "big rock"),
    ("#3b3b3b", "#c9a36a", "#8fb3c9", "#e8d9a0", "#d1495b"),
    (0, 1, 2, 3, 4),
    unlabelled=0,
    ignores=False,
)


def counted(count: int, ignore: tuple[int, ...] | None = None) -> Classes:
    """`count` classes without names: masks hold the lowest numbers that are not ignored. One class is binary: 0, and 1
    or 255.
    """
    if not 1 <= count <= MOST:
        raise ConfigError(f"classes: got {count}, expected 1 to {MOST}")
    return _made([{"name": "class" if count == 1 else None} for _ in range(count)], ignore)


def read_classes(path: Path, ignore: tuple[int, ...] | None = None) -> Classes:
    """The classes that a file declares (see above). Raises ConfigError with one line. ignore:
    instead of what the file says.
    """
    with reading(ConfigError, f"{path}: cannot be read"):
        text = read_bytes(path, MOST_TOML)
    values = parse_toml(text, str(path))
    with reading(ConfigError, f"{path}: cannot be used"):
        return _declared_by(values, path, ignore)


def _declared_by(values: dict[str, Any], path: Path, ignore: tuple[int, ...] | None) -> Classes:
    try:
        unknown = sorted(values.keys() - {"class", "ignore"})
        if unknown:
            raise ConfigError(f"unknown key {quoted(unknown[0])}, expected 'ignore' and [[class]] tables")
        entries = values.get("class")
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ConfigError(f"got no [[class]] table, expected 1 to {MOST}")
        if len(entries) > MOST:
            raise ConfigError(f"got {len(entries)} classes, expected 1 to {MOST}")
        given = values.get("ignore")
        if ignore is None and given is not None:
            entries_ignored = given if isinstance(given, list) else [given]
            colours = tuple(entry for entry in entries_ignored if isinstance(entry, str))
            return _made(entries, tuple(entry for entry in entries_ignored if not isinstance(entry, str)), colours)
        return _made(entries, ignore)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('classes: ')}") from None


def _made(
    entries: list[dict[str, Any]], ignore: tuple[Any, ...] | None, ignore_colours: tuple[str, ...] = ()
) -> Classes:
    """Classes from the tables of a file. ignore: None where nothing is said."""
    for entry in entries:
        unknown = sorted(entry.keys() - {"name", "value", "colour"}, key=str)
        if unknown:
            raise ConfigError(f"classes: unknown key {quoted(unknown[0])} of a class, expected name, value and colour")
    single = len(entries) == 1
    own = [entry.get("colour") for entry in entries]
    coloured = [c for c in own if c is not None]
    numbered = [e for e in entries if "value" in e]
    for what, some in (("colour", coloured), ("value", numbered)):
        if some and len(some) < len(entries):
            raise ConfigError(f"classes: {len(some)} of {len(entries)} classes have a {what}, expected all or none")
    plain = ignore is None and not numbered
    start = 1 if single else 0
    lists = [entry["value"] if isinstance(entry["value"], list) else [entry["value"]] for entry in numbered]
    if not all(lists):
        raise ConfigError("classes: got an empty list for a value, expected whole numbers")
    values = [several[0] for several in lists]
    further = tuple((value, label) for label, several in enumerate(lists, start) for value in several[1:])
    skipped = set(ignore or ())
    free = (value for value in range(start, VALUES) if value not in skipped)
    values = values or [next(free) for _ in entries]
    if ignore is None:
        ignore = () if single or any(_IGNORED in several for several in lists) else (_IGNORED,)
    names = [entry.get("name") or f"class {value}" for entry, value in zip(entries, values, strict=True)]
    colours = coloured or list(_palette(len(entries) + single))[single:]
    if single:
        black = "#000000" if coloured != ["#000000"] else "#ffffff"
        names = ["background", *names]
        colours = [black, *colours]
        values = [0, *values]
    colours = [c.lower() if isinstance(c, str) else c for c in colours]
    ignored = tuple(c.lower() for c in ignore_colours)
    return Classes(
        tuple(names),
        tuple(colours),
        tuple(values),
        tuple(ignore),
        ignored,
        None,
        single,
        bool(coloured),
        plain,
        further=further,
    )


def _palette(count: int) -> tuple[str, ...]:
    """Colours that differ: steps of the golden ratio around the hues, in three brightnesses."""
    levels = ((0.60, 0.90), (0.45, 0.65), (0.85, 0.75))
    made = (colorsys.hsv_to_rgb(0.58 + k * 0.618034, *levels[k % 3]) for k in range(count))
    return tuple("#" + "".join(f"{round(255 * c):02x}" for c in rgb) for rgb in made)


def declared(setting: str, beside: Path | None, ignore: str = "") -> Classes:
    """The classes that the settings `classes` and `ignore` name. beside: the folder of the images, for 'auto'.

    setting: 'auto' (the folder's classes.toml where it has one, else 'mars'), 'mars', how many classes there are, or a
        file.
    ignore: '' (what the classes say), 'none', or mask values with commas between them.
    """
    values = None if not ignore else () if ignore == "none" else _numbers(ignore)
    if setting == "auto":
        path = None if beside is None else beside / FILE
        with reading(ConfigError, f"{path}: cannot be read"):
            if path is not None and path.exists():
                return read_classes(path, values)
    if setting in ("auto", "mars"):
        if values not in (None, ()):
            raise ConfigError(
                f"ignore: got {quoted(ignore)}, expected nothing, for class 0 of the Mars tiles is what is unlabelled "
                "(--classes)"
            )
        return MARS
    if setting.isascii() and setting.isdigit() and len(setting) < 10:
        return counted(int(setting), values)
    return read_classes(Path(setting), values)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"ignore: got {quoted(text)}, expected 'none', or mask values like 0 or 0,255") from None


def from_dict(values: Any) -> Classes:
    """Classes from the mapping that dataclasses.asdict makes of them, through JSON or not; ValueError or TypeError for
    anything else.
    """
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in dict(values).items()}
    if "further" in lists:
        lists["further"] = tuple((value, label) for value, label in lists["further"])
    return Classes(**lists)
