"""`engine.load`, and what the package `engine` offers: imported when it is asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import engine
from autograd import Tensor, no_grad
from engine.data import DataError
from engine.ensemble import load_ensemble
from engine.evaluate import Arguments, evaluate
from engine.training.checkpoint import CheckpointError, load_checkpoint
from tests.support.html_checks import read
from tests.support.paths import ROOT


@pytest.fixture
def images(tiles: Path) -> np.ndarray:
    with np.load(tiles) as file:
        return file["training_set"][:6, 0]


def test_the_classes_of_the_largest_logits(whole: Path, images: np.ndarray) -> None:
    """Without the class that stands for unlabelled, computed from the network's own output."""
    trained = engine.load(whole)
    norm = load_checkpoint(whole / "best.safetensors").normalisation
    with no_grad():
        logits = trained.net(Tensor(((images / 255 - norm.mean) / norm.std).astype(np.float32)[..., None])).numpy()
    labels = trained.predict(images)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits[..., 1:].argmax(-1) + 1)
    e = np.exp(logits[..., 1:].astype(np.float64))
    probabilities = trained.probabilities(images)
    assert probabilities.dtype == np.float32
    # Two float32 computations of a network with Winograd convolutions, each 10 roundings of the largest logit away from
    # the same network in float64.
    roundings = 32 * np.finfo(np.float32).eps * np.abs(logits).max()
    np.testing.assert_allclose(probabilities[..., 1:], e / e.sum(-1, keepdims=True), atol=roundings)
    assert (probabilities[..., 0] == 0).all()
    np.testing.assert_array_equal(trained.predict(images[2]), labels[2])
    np.testing.assert_array_equal(trained.predict(images[..., None]), labels)
    np.testing.assert_array_equal(trained.probabilities(images[2]), trained.probabilities(images[2:3])[0])
    assert trained.predict(images, batch=2, flips=True).shape == labels.shape


def test_what_is_known_about_a_run(whole: Path) -> None:
    trained = engine.load(str(whole))
    assert trained.path == whole / "best.safetensors"
    assert [row["epoch"] for row in trained.rows] == [1, 2]
    assert trained.summary == json.loads((whole / "summary.json").read_text())
    assert trained.record["val_miou_fg"] == trained.summary["val_miou_fg"]
    assert trained.config.width == 4
    assert trained.classes.names[1] == "soil"
    assert not trained.net.training
    assert repr(trained) == f"Trained(path={whole / 'best.safetensors'!r})"
    last = engine.load(whole / "last.safetensors")
    assert last.record["epoch"] == 2
    assert last.rows == trained.rows


def test_a_checkpoint_alone(whole: Path, tmp_path: Path, images: np.ndarray) -> None:
    shutil.copy(whole / "best.safetensors", tmp_path / "x.safetensors")
    trained = engine.load(tmp_path / "x.safetensors")
    assert (trained.rows, trained.summary) == ([], {})
    np.testing.assert_array_equal(trained.predict(images), engine.load(whole).predict(images))
    assert "polyline" not in trained._repr_html_()


def test_the_runs_of_a_grid(whole: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        shutil.copytree(whole, tmp_path / "cell" / f"seed-{seed}")
        if not seed:
            assert engine.load(tmp_path / "cell").path == tmp_path / "cell/seed-0/best.safetensors"
    assert engine.load(tmp_path / "cell" / "seed-1").rows
    with pytest.raises(CheckpointError, match=r"cell: a folder of 2 runs, expected one of them: seed-0, seed-1$"):
        engine.load(tmp_path / "cell")


def test_scores(whole: Path, tiles: Path) -> None:
    trained = engine.load(whole)
    expected = evaluate(Arguments((whole / "best.safetensors",)))
    assert trained.evaluate() == expected
    assert trained.evaluate(tiles, "all")["tiles"] == 30
    with np.load(tiles) as file:
        images, masks = file["training_set"][:, 0], file["training_set"][:, 1]
    found = trained.evaluate((images, masks.astype(np.int64)))
    labels = trained.predict(images)
    here = masks != 0
    ious = [
        ((labels == c) & (masks == c)).sum() / ((labels == c)[here] | (masks == c)[here]).sum() for c in range(1, 5)
    ]
    assert list(found["iou"].values()) == pytest.approx(ious)
    assert found["miou_fg"] == pytest.approx(np.mean(ious))
    assert found["accuracy"] == pytest.approx((labels == masks)[here].mean())
    assert (found["tiles"], found["pixels"]) == (30, here.sum())


def test_images_of_another_size_are_seen_through_windows(whole: Path, images: np.ndarray) -> None:
    trained = engine.load(whole)
    large = np.concatenate([images[0]] * 2, 1)[:, :43]
    labels, probabilities = load_ensemble([whole]).predict(large)
    np.testing.assert_array_equal(trained.predict(large), labels)
    np.testing.assert_allclose(trained.probabilities(large[None])[0], probabilities, atol=1e-5)
    assert trained.predict(images[:, :10]).shape == (6, 10, 24)


def test_images_that_do_not_fit(whole: Path, images: np.ndarray) -> None:
    trained = engine.load(whole)
    for wrong, words in (
        (images.astype(np.float32), "images: got 1 channels of float32, but the network was trained on 1 of uint8"),
        (images[:, None, None], r"images: got shape (6, 1, 1, 16, 24), expected (N, H, W), or one image"),
        (np.zeros((2, 16, 24, 3), np.uint8), r"images: got shape (2, 16, 24, 3), expected (N, H, W), or one image"),
        (images[:0], "images: got shape (0, 16, 24)"),
    ):
        for call in (trained.predict, trained.probabilities):
            with pytest.raises(DataError) as caught:
                call(wrong)
            assert str(caught.value).startswith(words)
    with pytest.raises(DataError, match="evaluate: got 3 arrays, expected"):
        trained.evaluate((images, images, images))
    with pytest.raises(DataError, match=r"masks: got uint8 \(6, 16, 24\), expected uint8 \(2, 16, 24\)"):
        trained.evaluate((images[:2], images))
    with pytest.raises(DataError, match=r"masks: got int64"):
        trained.evaluate((images, np.full(images.shape, 257)))
    with pytest.raises(DataError, match=r"nothing\.npz"):
        trained.evaluate("nothing.npz")


def test_what_is_no_run(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such file"):
        engine.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"a folder without best.safetensors, expected the folder of a run that"):
        engine.load(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"x.safetensors: not a readable safetensors file"):
        engine.load(tmp_path / "x.safetensors")
    for name in ("metrics.jsonl", "summary.json"):
        damaged = tmp_path / name.partition(".")[0]
        shutil.copytree(whole, damaged)
        (damaged / name).write_text('{"epoch"')
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(.*\)$"):
            engine.load(damaged)


def test_a_run_in_a_notebook(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>&"
    shutil.copytree(whole, folder)
    trained = engine.load(folder)
    found = read(trained._repr_html_())
    assert str(trained.path) in found.text
    assert f"{trained.net.parameter_count():,} parameters" in found.text
    for name, value in trained.record["iou"].items():
        assert f"{name} {value:.4g}" in found.text
    assert f"mean IoU (fg) {trained.record['val_miou_fg']:.4g}" in found.text
    assert "bottleneck none" in found.text
    assert [len((line["points"] or "").split()) for line in found.of("polyline")] == [2, 2]
    assert len([a for a in found.of("span") if "#" in (a.get("style") or "")]) >= len(trained.classes)


def test_the_package_loads_nothing_until_it_is_asked() -> None:
    code = (
        "import sys, engine\n"
        "assert not {'numpy', 'autograd', 'layers', 'engine.trained'} & sys.modules.keys()\n"
        "assert {'fit', 'load', 'Callback', 'History'} <= set(dir(engine))\n"
        "from engine import *\n"
        "assert fit is engine.fit and callable(load) and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_names_of_the_package() -> None:
    for name in engine.__all__:
        assert getattr(engine, name).__name__ == name
        assert getattr(engine, name).__doc__
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'fitt'"):
        engine.fitt  # noqa: B018
