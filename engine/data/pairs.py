"""Which image goes with which mask: the layouts of folders.

    images/NAME.*  masks/NAME.*            two folders of any names: --data IMAGES --masks MASKS
    NAME.*  NAME_mask.*                    one folder; also NAME.jpg with NAME.png
    train/  val/  test/                    each in one of these layouts; val/ and test/ may be missing, and so may the
    masks of test/
    images/train/  masks/train/  ...       the same the other way round

Folders may have folders within; NAME is then the path in them. Images are PNG, JPEG, TIFF, WebP or PGM files, masks are
not JPEG.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.data.tiles import DataError

PARTS = ("train", "val", "test")
_LOSSY = (".jpg", ".jpeg")
_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".pgm", ".ppm", *_LOSSY)
_MASK = "_mask"
_EXPECTED = "expected images/NAME.png with masks/NAME.png, or NAME.png with NAME_mask.png"


@dataclass(frozen=True)
class Pair:
    """An image and its mask. name: its path in the folder, without its suffix.  folder: the path's folder, '' at the
    top.
    """

    name: str
    image: Path
    mask: Path | None

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]


def parts_of(path: Path, masks: str = "") -> dict[str, tuple[Path, list[Pair]]]:
    """The parts of a data set by name ('train' alone, or some of PARTS): the folder of a part, and its pairs by name.

    masks: the folder of the masks, where `path` holds images only. Raises DataError, naming files, for orphans and
        names that occur twice.
    """
    if masks and not Path(masks).is_dir():
        raise DataError(f"masks: {masks}: no such folder")
    if (path / "train").is_dir():
        return {
            p: (path / p, _two(path / p, Path(masks) / p, p) if masks else _layout(path / p, p))
            for p in PARTS
            if (path / p).is_dir()
        }
    if masks:
        return {"train": (path, _two(path, Path(masks), "train"))}
    if (path / "images" / "train").is_dir():
        images, labels = path / "images", path / "masks"
        return {p: (images / p, _two(images / p, labels / p, p)) for p in PARTS if (images / p).is_dir()}
    return {"train": (path, _layout(path, "train"))}


def images_of(path: Path) -> dict[str, Path]:
    """The images of a folder by name, at any depth and in any layout, without masks. Raises DataError for a name that
    occurs twice.
    """
    path = path / "images" if (path / "images").is_dir() else path
    images = {}
    found = _files(path)
    for name, files in found.items():
        folders = files[0].relative_to(path).parents
        beside = any(f.name == "masks" and (path / f.parent / "images").is_dir() for f in folders)
        if beside or (name.endswith(_MASK) and name.removesuffix(_MASK) in found):
            continue
        lossy = [file for file in files if file.suffix.lower() in _LOSSY]
        images[name] = lossy[0] if len(files) == 2 and len(lossy) == 1 else _only(files)
    return images


def is_image_name(path: Path) -> bool:
    """Whether a file is called as images are."""
    return path.suffix.lower() in _SUFFIXES


def _layout(path: Path, part: str) -> list[Pair]:
    if (path / "images").is_dir():
        return _two(path / "images", path / "masks", part)
    return _one(path, part)


def _two(images: Path, masks: Path, part: str) -> list[Pair]:
    """Pairs of two folders. A mask may be called NAME_mask, too."""
    known = {name: _only(files) for name, files in _files(images).items()}
    found = {name: _only(files) for name, files in _files(masks).items()}
    found = {name if name in known else name.removesuffix(_MASK): file for name, file in found.items()}
    return _paired(images.parent if images.name == "images" else images, known, found, part)


def _one(path: Path, part: str) -> list[Pair]:
    """Pairs of one folder."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for name, files in _files(path).items():
        lossy = [file for file in files if file.suffix.lower() in _LOSSY]
        if name.endswith(_MASK):
            masks[name.removesuffix(_MASK)] = _only(files)
        elif len(files) == 2 and len(lossy) == 1:
            images[name] = lossy[0]
            masks[name] = next(file for file in files if file != lossy[0])
        else:
            images[name] = _only(files)
    return _paired(path, images, masks, part)


def _paired(path: Path, images: Mapping[str, Path], masks: Mapping[str, Path], part: str) -> list[Pair]:
    """The pairs by name; DataError for what has no partner, unless it is the images of a test set without any mask."""
    if not images:
        raise DataError(f"{path}: no image, {_EXPECTED}")
    if part == "test" and not masks:
        return [Pair(name, images[name], None) for name in sorted(images)]
    for have, lack, what in ((images, masks, "mask"), (masks, images, "image")):
        orphans = sorted(have.keys() - lack.keys())
        if orphans:
            shown = ", ".join(orphans[:5]) + (", ..." if len(orphans) > 5 else "")
            raise DataError(f"{path}: got {len(orphans)} without {what}: {shown}; expected a pair for every name")
    lossy = next((file for file in masks.values() if file.suffix.lower() in _LOSSY), None)
    if lossy is not None:
        raise DataError(f"{lossy}: got a mask that is a JPEG, which changes labels; expected a PNG or TIFF")
    return [Pair(name, images[name], masks[name]) for name in sorted(images)]


def _files(folder: Path) -> dict[str, list[Path]]:
    """Image files by name, at any depth; hidden ones are passed over."""
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in path.parts) and file.is_file():
            files.setdefault(path.with_suffix("").as_posix(), []).append(file)
    return files


def _only(files: list[Path]) -> Path:
    """The file; DataError where there are two."""
    if len(files) > 1:
        name = files[1].stem
        raise DataError(
            f"{files[1]}: got the name '{name}' twice, here and in {files[0].name}; expected one file of each name"
        )
    return files[0]
