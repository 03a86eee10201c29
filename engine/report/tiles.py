"""The tiles of a report: which are shown, and their pictures as parts of a page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autograd.html import address
from engine.data import Classes, Tiles
from engine.inference import labels_of, predict_logits
from engine.training.metrics import TileScores
from engine.training.plots import ERROR, IGNORED, channels, stretch, wrong_pixels

if TYPE_CHECKING:
    from engine.training.checkpoint import Checkpoint

LAYERS = ("image", "truth", "prediction", "error")
_ENOUGH = 0.1  # share of a tile's pixels that must be labelled for it to be ranked
_LOGITS = 1 << 24  # held at a time
_LARGEST = 640  # pixels of a side; larger tiles are reduced
_PHOTO = 1 << 16  # pixels above which an image is stored as JPEG
_SMALL = 256  # pixels of a side, up to which a tile is small
_ROOM = (384, 480), (584, 584)  # CSS pixels for a small tile and for a larger one: three or two beside each other


class Layer(NamedTuple):
    """One of a tile's pictures: a data: address, and what it shows in words."""

    source: str
    alt: str


class Picture(NamedTuple):
    """A tile. layers: in the order of LAYERS.  width, height: on the page, in CSS pixels."""

    title: str
    caption: str
    origin: str
    layers: tuple[Layer, ...]
    width: int
    height: int


def pictures(best: Checkpoint, val: Tiles, scores: TileScores, count: int) -> dict[str, list[Picture]]:
    """The pictures of the worst, the best and some random validation tiles, `count` of each."""
    chosen = choose(scores, val, count)
    rows = sorted({row for some in chosen.values() for row in some})
    if not rows:
        return {}
    shown = val[rows].loaded()
    labels = _predicted(best, shown.images)
    made = {}
    for k, row in enumerate(rows):
        h, w = val.size if shown.sizes is None else (int(side) for side in shown.sizes[k])
        arrays = (a[k, :h, :w] for a in (shown.images, shown.labels(), labels))
        origin = str(val.sources[row])
        judged = float(scores.iou[row]), float(scores.wrong[row])
        made[row] = _picture(row, origin, judged, *arrays, classes=best.form.classes)
    return {kind: [made[row] for row in some] for kind, some in chosen.items()}


def _predicted(best: Checkpoint, images: np.ndarray) -> np.ndarray:
    """The labels of some tiles, a few at a time, for logits of large ones take much memory."""
    step = max(1, _LOGITS // (images.shape[1] * images.shape[2] * len(best.form.classes)))
    parts = []
    for start in range(0, len(images), step):
        some = images[start : start + step]
        logits = predict_logits(best.net, some, best.normalisation, crop=best.window)
        parts.append(labels_of(logits, best.barred))
    return np.concatenate(parts)


def choose(scores: TileScores, val: Tiles, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Rows of the worst and the best tiles by IoU, and of random ones, the same for the same tiles.

    Ranked are tiles of which at least a tenth is labelled; among the best are those of two classes or more where there
    are enough, for a tile of one class is easy.
    """
    pixels = np.full(len(val), val.size[0] * val.size[1]) if val.sizes is None else val.sizes.prod(1)
    judged = np.isfinite(scores.iou)
    ranked = judged & (scores.labelled >= _ENOUGH * pixels)
    ranked = ranked if ranked.sum() >= count else judged
    order = np.argsort(np.where(ranked, scores.iou, np.inf), kind="stable")[: ranked.sum()]
    worst = [int(row) for row in order[: min(count, (len(order) + 1) // 2)]]
    rest = [int(row) for row in order[::-1] if row not in worst]
    kinds = (val.counts[:, list(val.classes.scored)] > 0).sum(1)
    mixed = [row for row in rest if kinds[row] > 1]
    best = (mixed if len(mixed) >= count else rest)[:count]
    there = np.flatnonzero(judged)
    drawn = np.sort(np.random.default_rng(seed).permutation(there)[:count])
    all_shown = {*worst, *best} >= {*there.tolist()}
    chosen = {"worst": worst, "best": best, "random": [] if all_shown else [int(row) for row in drawn]}
    return {kind: rows for kind, rows in chosen.items() if rows}


def _picture(
    row: int,
    origin: str,
    judged: tuple[float, float],
    image: np.ndarray,
    mask: np.ndarray,
    labels: np.ndarray,
    classes: Classes,
) -> Picture:
    """judged: the tile's IoU, and the share of its labelled pixels that are wrong."""
    iou, share = judged
    title = f"tile {row}"
    wrong = wrong_pixels(mask, labels, classes)[1]
    said = (
        f"{title}, image",
        f"{title}, truth: {_shares(mask, classes)}",
        f"{title}, prediction: {_shares(labels, classes)}",
        f"{title}, error: {_mistakes(mask, labels, wrong, share, classes)}",
    )
    levels = np.rint(255 * stretch(_reduced(image))).astype(np.uint8)
    sources = (
        _image(levels),
        _labels(_reduced(mask), classes),
        _labels(_reduced(labels), classes),
        _errors(levels, _reduced(wrong)),
    )
    layers = tuple(Layer(source, alt) for source, alt in zip(sources, said, strict=True))
    h, w = image.shape[:2]
    width, height = _ROOM[max(h, w) > _SMALL]
    scale = min(width / w, height / h)
    scale = int(scale) if scale > 2 else scale  # pixels that are seen are alike
    return Picture(title, f"IoU {iou:.3f}, {share:.0%} wrong", origin, layers, round(scale * w), round(scale * h))


def _reduced(array: np.ndarray) -> np.ndarray:
    """A large tile with every n-th pixel."""
    every = -(-max(array.shape[:2]) // _LARGEST)
    return array[::every, ::every]


def _image(levels: np.ndarray) -> str:
    from PIL import Image

    return _address(Image.fromarray(levels), _form(levels))


def _labels(labels: np.ndarray, classes: Classes) -> str:
    """A label map as a picture with a palette; what is ignored has a colour of its own, where one is left."""
    from PIL import Image

    colours = [channels(colour) for colour in (*classes.colours, IGNORED)]
    index = np.minimum(labels, len(classes))
    if len(colours) > 256:
        return _address(Image.fromarray(np.array(colours, np.uint8)[index]), "PNG")
    image = Image.fromarray(index.astype(np.uint8))
    image.putpalette([number for colour in colours for number in colour])
    return _address(image, "PNG")


def _errors(levels: np.ndarray, wrong: np.ndarray) -> str:
    """The image, darker, with wrong pixels in a colour that no terrain has."""
    from PIL import Image

    rgb = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, 2)
    dark = (0.6 * rgb).astype(np.uint8)
    dark[wrong] = channels(ERROR)
    return _address(Image.fromarray(dark), _form(levels))


def _form(levels: np.ndarray) -> str:
    """The format of an image: large ones are photographs, which JPEG keeps small."""
    return "JPEG" if levels.shape[0] * levels.shape[1] > _PHOTO else "PNG"


def _address(image: Any, form: str) -> str:
    content = io.BytesIO()
    image.save(content, form, **({"optimize": True} if form == "PNG" else {"quality": 80, "subsampling": 0}))
    return address(content.getvalue(), form.lower())


def _name(label: int, classes: Classes) -> str:
    if label >= len(classes):
        return "ignored"
    return "unlabelled" if label == classes.unlabelled else classes.names[label]


def _shares(labels: np.ndarray, classes: Classes) -> str:
    """'soil 60 %, sand 40 %', the largest four."""
    values, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    parts = [f"{_name(int(values[k]), classes)} {counts[k] / labels.size:.0%}" for k in order[:4]]
    return ", ".join(parts) + (f" and {len(order) - 4} more" if len(order) > 4 else "")


def _mistakes(mask: np.ndarray, labels: np.ndarray, wrong: np.ndarray, share: float, classes: Classes) -> str:
    if not wrong.any():
        return "every labelled pixel is right"
    pairs, counts = np.unique(np.stack([mask[wrong], labels[wrong]]), axis=1, return_counts=True)
    truth, said = (int(label) for label in pairs[:, np.argmax(counts)])
    most = f"{_name(truth, classes)} taken for {_name(said, classes)}"
    return f"{share:.0%} of the labelled pixels are wrong, most of them {most}"
