"""The picture of README: a network's predictions on held-out tiles, chosen by a rule and not by hand.

    python -m engine.train --out RUN
    python docs/picture.py RUN

The held-out tiles are ranked by their IoU, averaged over the classes of each tile's truth. The rows are the tiles at
the quantiles TYPICAL, around the median; the median of those with a rock, the rare class; and one failure, the tile at
the quantile FAILURE.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.data import ROCK  # noqa: E402
from engine.data.preparation import prepare  # noqa: E402
from engine.inference import labels_of, predict_logits  # noqa: E402
from engine.training.checkpoint import load_checkpoint  # noqa: E402
from engine.training.metrics import tile_scores  # noqa: E402
from engine.training.plots import channels, pyplot, stretch  # noqa: E402

TYPICAL = (0.4, 0.45, 0.5, 0.55, 0.6)
FAILURE = 0.1
# Told apart by lightness as well as by hue; class 0 is white: unlabelled, neither learnt nor judged.
COLOURS = ("#ffffff", "#b5762a", "#2f6690", "#f2d98d", "#8e2d3a")
ERROR = "#e0218a"


def painted(labels: np.ndarray) -> np.ndarray:
    """A label map (H, W) in COLOURS, float (H, W, 3)."""
    table = np.array([channels(colour) for colour in COLOURS]) / 255
    return table[labels]


def draw(rows: list[dict[str, Any]], names: tuple[str, ...], caption: str, out: Path) -> None:
    """The picture: a row per tile, with the image, the truth, the prediction and what of it is wrong."""
    from matplotlib.patches import Patch

    plt = pyplot()
    figure, axes = plt.subplots(len(rows), 4, figsize=(9, 1.2 * len(rows) + 1.3), layout="constrained")
    for k, row in enumerate(rows):
        image, truth, said = row["image"], row["truth"], row["said"]
        wrong = (truth != 0) & (truth != said)
        errors = np.repeat(0.35 + 0.65 * stretch(image)[..., None], 3, 2)
        errors[wrong] = [int(ERROR[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        for axis, shown in zip(axes[k], (stretch(image), painted(truth), painted(said), errors), strict=True):
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color="0.6", linewidth=0.6)
        axes[k, 0].set_ylabel(row["name"], fontsize=13)
        axes[k, 3].yaxis.set_label_position("right")
        axes[k, 3].set_ylabel(f"IoU {row['iou']:.2f}", fontsize=13)
    for axis, title in zip(axes[0], ("image", "truth", "prediction", "wrong pixels"), strict=True):
        axis.set_title(title, fontsize=15)
    handles = [
        Patch(facecolor=colour, edgecolor="0.5", label=name)
        for colour, name in zip((*COLOURS[1:], COLOURS[0], ERROR), (*names[1:], "unlabelled", "wrong"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=13, frameon=False)
    figure.suptitle(caption, fontsize=13)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def at(order: np.ndarray, quantile: float) -> int:
    """The tile at a quantile of an order."""
    return int(order[round(quantile * (len(order) - 1))])


def main() -> None:
    """Choose the tiles and draw them."""
    parser = argparse.ArgumentParser(description="Draw the picture of README from a run on built-in tiles.")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "predictions.png", help="where the picture goes")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.run / "best.safetensors")
    tiles = prepare(checkpoint.config).val
    ious = np.nan_to_num(tile_scores(checkpoint.confusion(tiles)).iou)
    order = np.argsort(ious, kind="stable")
    rocks = order[(tiles.labels()[order] == ROCK).any((1, 2))]
    chosen = {f"{quantile:.0%}": at(order, quantile) for quantile in TYPICAL}
    chosen |= {"with rock": at(rocks, 0.5), "failure": at(order, FAILURE)}
    rows = []
    for name, k in chosen.items():
        logits = predict_logits(checkpoint.net, tiles.images[k : k + 1], checkpoint.normalisation)
        truth, said = tiles.labels()[k], labels_of(logits)[0]
        rows.append({"name": name, "image": tiles.images[k], "truth": truth, "said": said, "iou": ious[k]})
    caption = (
        f"{len(order)} held-out tiles ranked by IoU: five around the median, at these quantiles;\n"
        f"the median of the {len(rocks)} tiles with a big rock; and one failure, at {FAILURE:.0%}"
    )
    draw(rows, checkpoint.form.classes.names, caption, options.out)
    print(f"{options.out}: {len(order)} tiles, median IoU {np.median(ious):.3f}, mean {ious.mean():.3f}")


if __name__ == "__main__":
    main()
