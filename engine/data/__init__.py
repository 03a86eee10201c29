"""Data: reading and checking it, cleaning it, splitting it, weighing its classes, making it.

    dataset = load("tiles.npz")                     # or a folder of images and masks, or 'synthetic'
    tiles = clean(dataset.train).tiles              # without the planted samples
    parts = split(tiles, fraction=0.2, seed=0)      # by source image where known
    train, val = tiles[parts.train], tiles[parts.val]
    weights = class_weights(train.masks, "median")

Bad data is a `DataError`, one line that can be printed as it stands.
"""

from engine.data.classes import MARS, Classes, declared
from engine.data.cleaning import Cleaned, clean, cleaned_by
from engine.data.loading import load
from engine.data.splitting import Split, folds, sharing, split
from engine.data.synthetic import synthetic
from engine.data.tiles import CLASSES, ROCK, DataError, DataSet, Tiles, pixel_counts, save_npz
from engine.data.weights import SCHEMES, class_weights, weights_from_counts

__all__ = [
    "CLASSES",
    "MARS",
    "ROCK",
    "SCHEMES",
    "Classes",
    "Cleaned",
    "DataError",
    "DataSet",
    "Split",
    "Tiles",
    "class_weights",
    "clean",
    "cleaned_by",
    "declared",
    "folds",
    "load",
    "pixel_counts",
    "save_npz",
    "sharing",
    "split",
    "synthetic",
    "weights_from_counts",
]
