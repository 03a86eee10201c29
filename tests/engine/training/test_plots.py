"""The pictures of a run: curves that can be read after one epoch, and tiles of every size at a readable one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data import MARS
from engine.training import plots


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": k,
            "train_loss": -0.1 / k,
            "terms": {"margin": -0.2, "dice": 0.5 / k},
            "val_miou_fg": 0.5,
            "val_miou_keras": 0.4,
            "iou": [0.1, 0.2, None, 0.4],
            "learning_rate": 1e-3 / k,
        }
        for k in range(1, count + 1)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 9, 200])
def test_curves_have_markers_and_whole_ticks(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    save = plots._save

    def looked_at(figure: Any, path: Path, dpi: int) -> None:
        figure.canvas.draw()
        for axis in figure.axes:
            kept.append(([t.get_text() for t in axis.get_xticklabels()], axis.get_xlim(), axis.get_lines()))
        save(figure, path, dpi)

    monkeypatch.setattr(plots, "_save", looked_at)
    plots.draw_curves(tmp_path / "curves.png", rows(count), MARS)
    assert Image.open(tmp_path / "curves.png").size[0] > 900
    for labels, limits, lines in kept:
        shown = [float(text.replace("−", "-")) for text in labels if text]
        assert all(value == int(value) for value in shown), labels
        assert limits[0] < 1
        assert limits[1] > count
        assert limits[1] - limits[0] < 1.2 * count + 2
        assert all(line.get_marker() not in ("None", None, "") for line in lines) == (count <= 60)
    assert len({line.get_marker() for line in kept[2][2]}) == (4 if count <= 60 else 1)


@pytest.mark.parametrize(
    ("size", "least", "most"),
    [
        ((64, 128), (900, 1300), (1000, 1700)),
        ((64, 64), (900, 2400), (1000, 3000)),
        ((512, 512), (1500, 2200), (1700, 3000)),
        ((1024, 128), (900, 1900), (1000, 3000)),
        ((16, 24), (900, 1800), (1000, 2200)),
    ],
)
def test_tiles_are_readable_whatever_their_size(
    size: tuple[int, int], least: tuple[int, int], most: tuple[int, int], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    images = list(random.integers(0, 256, (12, *size), dtype=np.uint8))
    masks = list(random.integers(1, 5, (12, *size), dtype=np.uint8))
    plots.draw_predictions(tmp_path / "p.png", images, masks, masks, MARS, "a title")
    width, height = Image.open(tmp_path / "p.png").size
    assert least[0] <= width <= most[0]
    assert least[1] <= height <= most[1]


def test_a_wrong_pixel_is_a_labelled_one_that_differs() -> None:
    mask = np.array([[0, 1, 255, 3]], np.uint8)
    labelled, wrong = plots.wrong_pixels(mask, np.array([[2, 1, 2, 4]], np.uint8), MARS)
    assert labelled.tolist() == [[False, True, False, True]]
    assert wrong.tolist() == [[False, False, False, True]]
