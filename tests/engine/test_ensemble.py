"""One network or several: labels and probabilities of images of any size, against sums written out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.build import Form
from engine.data import DataError
from engine.data.classes import counted
from engine.ensemble import Ensemble, load_ensemble
from engine.inference import labels_of, predict_logits
from engine.training.checkpoint import CheckpointError
from tests.support.networks import patchwork, write_run
from tests.support.paths import ROOT

FORM = Form(counted(3), 1, (16, 24), "uint8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / str(seed), FORM, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return patchwork((45, 70), 3)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(ensemble: Ensemble, image: np.ndarray, flips: bool = False) -> np.ndarray:
    """The mean probabilities, float64: windows at places given as numbers, weighted by their distance to the ends."""
    rows, columns = (0, 10, 19, 29), (0, 15, 31, 46)  # of 16 in 45, of 24 in 70
    total = 0.0
    for member in ensemble.members:
        sums, weights = np.zeros((45, 70, 3)), np.zeros((45, 70, 1))
        for top in rows:
            for left in columns:
                window = image[top : top + 16, left : left + 24]
                logits = predict_logits(member.net, window[None], member.normalisation, flips=flips)[0]
                down = np.array([min(k + 1, 16 - k) for k in range(16)])
                across = np.array([min(k + 1, 24 - k) for k in range(24)])
                weight = np.outer(down, across)[..., None]
                sums[top : top + 16, left : left + 24] += weight * logits
                weights[top : top + 16, left : left + 24] += weight
        # of a product of sums, the sum over all windows is the product of the sums along the axes
        total = total + softmax(sums / weights)
    return total / len(ensemble.members)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("flips", [False, True])
def test_a_large_image_against_windows_by_hand(count: int, flips: bool, runs: list[Path], image: np.ndarray) -> None:
    ensemble = load_ensemble(runs[:count])
    labels, probabilities = ensemble.predict(image, flips=flips)
    wanted = by_hand(ensemble, image, flips)
    np.testing.assert_allclose(probabilities, wanted, atol=2e-5)
    top = np.sort(wanted, -1)
    sure = top[..., -1] - top[..., -2] > 1e-4
    assert sure.mean() > 0.99
    assert (labels == wanted.argmax(-1))[sure].all()
    assert len(np.unique(labels)) == 3
    assert (labels.dtype, probabilities.dtype) == (np.uint8, np.float32)


def test_an_image_of_the_network_s_size_is_seen_whole(runs: list[Path]) -> None:
    tile = patchwork((16, 24), 4)
    member = load_ensemble(runs[:1]).members[0]
    labels, probabilities = load_ensemble(runs[:1]).predict(tile)
    logits = predict_logits(member.net, tile[None], member.normalisation)
    np.testing.assert_allclose(probabilities, softmax(logits[0]), atol=2e-5)
    assert (labels == labels_of(logits, ())[0]).mean() > 0.99


@pytest.mark.parametrize("count", [1, 2])
def test_a_result_does_not_depend_on_other_images(count: int, runs: list[Path]) -> None:
    """To the bit; nor, but for the last bits, on the size of a batch. Images and rows come in order."""
    sizes = [(16, 24), (7, 40), (45, 70), (1, 1), (16, 24), (33, 24)]
    images = [patchwork(size, k) for k, size in enumerate(sizes)]
    ensemble = load_ensemble(runs[:count])
    other = [ensemble.predict(image, batch=3)[1] for image in images]
    for batch in (1, 7, 32):
        alone = [ensemble.predict(image, batch) for image in images]
        found: dict[int, list[np.ndarray]] = {}
        order = []
        for strip in ensemble.strips(iter(images), batch):
            assert strip.image is images[strip.number]
            found.setdefault(strip.number, []).append(strip.probabilities)
            order.append((strip.number, strip.top))
        assert order == sorted(order)
        for k, (_, wanted) in enumerate(alone):
            assert np.concatenate(found[k]).tobytes() == wanted.tobytes(), (batch, k)
            np.testing.assert_allclose(wanted, other[k], atol=2e-5)


def test_tiles_batch_by_batch_are_what_predict_gives(runs: list[Path]) -> None:
    """Also where tiles are larger than the network's, or smaller in one direction."""
    ensemble = load_ensemble(runs[:2])
    for size in ((16, 24), (45, 70), (8, 64)):
        images = np.stack([patchwork(size, k) for k in range(5)])
        parts = list(ensemble.batches(images, batch=4))
        labels, probabilities = (np.concatenate([p[k] for p in parts]) for k in (1, 2))
        for k, image in enumerate(images):
            wanted = ensemble.predict(image)
            np.testing.assert_allclose(probabilities[k], wanted[1], atol=2e-5)
            assert (labels[k] == wanted[0]).mean() > 0.99


def test_classes_that_no_member_predicts(tmp_path: Path) -> None:
    """A class that training lacked has the probability 0; of an ensemble it is absent when all members lack it."""
    lacking = write_run(tmp_path / "a", replace(FORM, absent=(1,)))
    whole = write_run(tmp_path / "b", FORM, 1)
    image = patchwork((16, 24), 7)
    labels, probabilities = load_ensemble([lacking]).predict(image)
    assert (probabilities[..., 1] == 0).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    assert (labels != 1).all()
    both = load_ensemble([lacking, whole])
    np.testing.assert_allclose(
        both.predict(image)[1][..., 1], load_ensemble([whole]).predict(image)[1][..., 1] / 2, rtol=1e-6
    )
    assert (load_ensemble([lacking, lacking]).form.absent, both.form.absent) == ((1,), ())


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            replace(FORM, classes=counted(4)),
            "got the classes class 0, class 1, class 2, class 3, expected class 0, cla",
        ),
        (replace(FORM, classes=counted(3, (0,))), "got the classes class 1, class 2, class 3, expected"),
        (
            replace(FORM, classes=replace(counted(3), values=(0, 7, 2))),
            r"mask values \(0, 7, 2\), expected \(0, 1, 2\)",
        ),
        (replace(FORM, channels=3), "got channels 3, expected 1 like"),
        (replace(FORM, dtype="uint16"), "got levels of uint16, expected uint8 like"),
        (replace(FORM, size=(16, 32)), "got tiles of 16 x 32, expected 16 x 24 like"),
    ],
)
def test_unlike_networks_are_no_ensemble(form: Form, words: str, runs: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", form)
    with pytest.raises(CheckpointError, match=f"checkpoint {other}: .*{words}"):
        load_ensemble([runs[0], other])


def test_images_of_another_kind_are_refused(runs: list[Path]) -> None:
    with pytest.raises(DataError, match="image 0: got 3 channels of uint8, but the network was trained on 1 of uint8"):
        load_ensemble(runs[:1]).predict(np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(DataError, match="image 0: got 1 channels of uint16"):
        load_ensemble(runs[:1]).predict(np.zeros((16, 24), np.uint16))
    with pytest.raises(CheckpointError, match="got no checkpoint"):
        load_ensemble([])


MEMORY = """
import json, resource, sys
from pathlib import Path
import numpy as np
from engine.ensemble import load_ensemble
ensemble = load_ensemble([Path(sys.argv[1])])
def peak(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    for strip in ensemble.strips([image]):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps([peak(300, 1000), peak(3000, 1000)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_does_not_hold_what_an_image_s_logits_take(tmp_path: Path) -> None:
    """A network of 21 classes, 3 million pixels: the logits of the whole image are 240 MiB, and so are the
    probabilities.
    """
    run = write_run(tmp_path / "run", Form(counted(21), 1, (64, 128), "uint8"))
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(run)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    small, large = json.loads(result.stdout)
    assert large - small < 80, f"{small} MiB for a small image, {large} for a large one"
