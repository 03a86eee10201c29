"""Reading a data set, whatever it is: built-in tiles, an .npz file, or a folder of images and masks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from engine.data.classes import MARS, Classes, declared
from engine.data.folder import load_folder
from engine.data.npz import load_npz
from engine.data.synthetic import synthetic
from engine.data.tiles import DataError, DataSet, described, finished
from engine.errors import reading
from engine.training.run_folder import holds_run


def load(
    source: str | Path,
    seed: int = 0,
    count: int = 2000,
    classes: Classes | str = "auto",
    masks: str = "",
    ignore: str = "",
    memory: int | None = None,
) -> DataSet:
    """Read a data set, checked to the last pixel.

    source: 'synthetic' (`count` training tiles and a tenth as many test tiles, made from `seed`);
      a .npz file in the original form: training_set (N, 2, H, W) with [:, 0] the image, grey levels 0..255, and [:, 1]
      the mask, labels 0..4; optional test_set (M, H, W), test_labels (M, H, W), train_group (N,) and test_group (M,);
      any real dtype; or a folder of images and masks (see folder.py).
    Fractional grey levels are rounded to the nearest; a fractional label is an error. In an .npz file H and W must be
    divisible by 8.
    classes, ignore: the settings of that name (engine/config.py), or the classes themselves.  masks: the masks' folder,
    where it is a separate one.
    memory: MiB that a folder's decoded tiles may take in memory, else they are read from a temporary file; 0: half of
    what is available; None: any. seed and count matter to 'synthetic' only. Raises DataError, or ConfigError for
    classes.
    """
    if str(source) == "synthetic":
        for name, value in (("classes", classes if classes not in ("auto", "mars", MARS) else ""), ("masks", masks)):
            if value:
                raise DataError(
                    f"{name}: got {value if isinstance(value, str) else 'other classes'}, but 'synthetic' has its own"
                )
        return synthetic(count, test=max(1, count // 10), seed=seed)
    path = Path(source)
    expected = "expected 'synthetic', an .npz file or a folder of images and masks"
    with reading(DataError, f"{source}: cannot be read"):
        try:
            is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        except FileNotFoundError:
            raise DataError(f"{source}: no such file or folder; {expected}") from None
    known = classes if isinstance(classes, Classes) else declared(classes, path if is_folder else None, ignore)
    if is_folder:
        with reading(DataError, f"{source}: cannot be read"):
            if holds_run(path) and not any(entry.is_dir() for entry in path.iterdir()):
                raise DataError(f"{source}: got a run folder, which holds no masks; {expected}")
            known, train, val, test, notes = load_folder(path, known, masks, memory)
        parts = [("train", train), ("val", val), ("test", test)]
        lines = [described(part, tiles) for part, tiles in parts if tiles is not None]
        return DataSet(path.resolve().name, train, test, (*lines, *notes), known, val)
    if masks:
        raise DataError(f"masks: got {masks!r}, which goes with a folder of images, but --data is {source}")
    if path.suffix.lower() != ".npz":
        raise DataError(f"{source}: got a file named *{path.suffix}, {expected}")
    return finished(path.stem, *load_npz(path, known), known)
