"""The command engine.evaluate: its figures against scikit-learn and loops over pixels, the data that it measures on,
ensembles, and what it says about bad input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import evaluate
from engine.build import Form
from engine.cli import parsed
from engine.config import Config
from engine.data import MARS
from engine.data.classes import counted
from engine.ensemble import load_ensemble
from engine.predict import __main__ as predict
from tests.support.networks import TINY, patchwork, write_run
from tests.support.tiny_runs import ended

FORM = Form(MARS, 1, (16, 24), "uint8")


def main(arguments: Sequence[object]) -> int:
    return evaluate.run(parsed(evaluate.Arguments, "evaluate", args=[str(a) for a in arguments]))


def measured(*arguments: object) -> dict[str, Any]:
    return evaluate.evaluate(parsed(evaluate.Arguments, "evaluate", args=[str(a) for a in arguments]))


def write_folder(folder: Path, count: int, size: tuple[int, int] = (16, 24), classes: int = 5) -> Path:
    """images/ and masks/ of patches; every class, unlabelled pixels included, is somewhere."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for k in range(count):
        pixels = patchwork(size, k)
        truth = np.roll(pixels // -(-256 // classes), 2, 1)
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
        Image.fromarray(truth).save(folder / "masks" / f"{k}.png")
    return folder


def read(folder: Path, what: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / what).iterdir())])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "set", 7)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / str(seed), FORM, seed) for seed in range(2)]


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_figures_against_scikit_learn(count: int, runs: list[Path], data: Path) -> None:
    """Of what the networks predict; unlabelled pixels are nowhere."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    result = measured(*runs[:count], "--data", data)
    ensemble = load_ensemble(runs[:count])
    images, truth = read(data, "images"), read(data, "masks")
    labels, probabilities = (np.concatenate([part[k] for part in ensemble.batches(images)]) for k in (1, 2))
    if count == 2:
        both = [load_ensemble([run]).members[0].probabilities(images) for run in runs]
        np.testing.assert_allclose(probabilities, (both[0] + both[1]) / 2, atol=1e-6)
        np.testing.assert_array_equal(labels, probabilities.argmax(-1))
    known = truth > 0
    t, p = truth[known], labels[known]
    assert result["pixels"] == known.sum() < truth.size
    whole = metrics.confusion_matrix(truth.ravel(), labels.ravel(), labels=range(5))
    np.testing.assert_array_equal(result["confusion"], whole)
    assert result["classes"] == list(MARS.names)
    names = MARS.names[1:]
    settings = {"labels": range(1, 5), "average": None}
    for key, function in (
        ("iou", metrics.jaccard_score),
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
    ):
        assert result[key] == pytest.approx(dict(zip(names, function(t, p, **settings), strict=True))), key
    assert result["miou_fg"] == pytest.approx(np.mean(list(result["iou"].values())))
    assert result["accuracy"] == pytest.approx((t == p).mean())
    fit = result["calibration"]
    assert fit["mean_confidence"] == pytest.approx(probabilities.max(-1)[known].mean(dtype=np.float64))
    accuracies = sum(row["accuracy"] * row["pixels"] for row in fit["bins"] if row["pixels"])
    assert accuracies / known.sum() == pytest.approx(result["accuracy"])
    assert 0 < fit["ece"] < 1


def test_the_boundary_score_by_distances(runs: list[Path], data: Path) -> None:
    """With the tolerance that is asked for, from all distances between boundary pixels."""
    images, truth = read(data, "images"), read(data, "masks")
    labels = np.concatenate([part[1] for part in load_ensemble(runs[:1]).batches(images)])
    known = truth > 0
    for tolerance in (0, 3):
        values, whole = [], np.zeros(4)
        for c in range(1, 5):
            sums = np.zeros(4)
            for n in range(len(truth)):
                points = []
                for map_ in (labels[n], truth[n]):
                    padded, sure = np.pad(map_, 1), np.pad(known[n], 1)
                    other = np.zeros_like(known[n])
                    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
                        shift = np.s_[dy : dy + map_.shape[0], dx : dx + map_.shape[1]]
                        other |= (padded[shift] != map_) & sure[shift]
                    points.append(np.argwhere(other & known[n] & (map_ == c)))
                distance = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
                matched = [(distance.min(axis, initial=np.inf) <= tolerance).sum() for axis in (1, 0)]
                sums += [len(points[0]), matched[0], len(points[1]), matched[1]]
            whole += sums
            precision, recall = sums[1] / sums[0], sums[3] / sums[2]
            values.append(2 * precision * recall / (precision + recall) if sums[1] else 0.0)
        result = measured(runs[0], "--data", data, "--tolerance", tolerance)
        assert list(result["boundary_f"].values()) == pytest.approx(values)
        assert result["boundary_f_mean"] == pytest.approx(np.mean(values))
        assert result["boundary_tolerance"] == tolerance
        assert result["boundary_pixels"] == {"true": whole[2], "predicted": whole[0]}


def test_old_keys_are_there_and_everything_is_json(
    runs: list[Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([runs[0], "--data", data, "--json", "--flips"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(runs[0])
    assert result.keys() >= {"data", "split", "tiles", "miou_fg", "miou_fg_interval", "miou_keras", "iou", "accuracy"}
    assert result.keys() >= {"pixels", "interval_over", "notes"}
    assert (result["tiles"], result["split"]) == (7, "all")
    assert result["miou_fg"] != measured(runs[0], "--data", data)["miou_fg"]


def test_a_binary_problem_and_classes_that_training_lacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One class: the confusion matrix has the background, the table has not. An absent class is in no figure."""
    data = write_folder(tmp_path / "two", 3, classes=2)
    run = write_run(tmp_path / "binary", Form(counted(1), 1, (16, 24)))
    result = measured(run, "--data", data)
    assert result["precision"].keys() == {"class"}
    assert np.sum(result["confusion"]) == result["pixels"] == 3 * 16 * 24
    main([run, "--data", data])
    printed = capsys.readouterr().out
    assert "  background  " in printed
    data = write_folder(tmp_path / "three", 3, classes=3)
    run = write_run(tmp_path / "lacking", Form(counted(3), 1, (16, 24), absent=(1,)))
    result = measured(run, "--data", data)
    for key in ("iou", "precision", "recall", "boundary_f"):
        assert result[key]["class 1"] is None
        assert result[key]["class 2"] is not None
    assert np.array(result["confusion"])[:, 1].sum() == 0 < np.array(result["confusion"])[1].sum()


def test_tables(runs: list[Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main([*runs, "--data", data])
    lines = capsys.readouterr().out.splitlines()
    result = measured(*runs, "--data", data)
    assert "an ensemble of 2 networks: the mean of their probabilities" in lines
    row = next(line.replace(" to ", " ").split() for line in lines if line.split()[0] == "bedrock")
    values = [result[key]["bedrock"] for key in ("precision", "recall", "boundary_f")]
    values = [result["iou"]["bedrock"], *result["iou_intervals"]["bedrock"], *values]
    assert [float(v) for v in row[1:]] == pytest.approx(values, abs=6e-5)
    row = [line.split() for line in lines if line.split()[0] == "sand"][1]
    counts = np.array(result["confusion"])
    assert [float(v) for v in row[1:]] == pytest.approx(100 * counts[3, 1:] / counts[3].sum(), abs=6e-3)
    assert f"expected error {result['calibration']['ece']:.4f}" in "\n".join(lines)
    many = write_folder(tmp_path / "many", 3, classes=20)
    main([write_run(tmp_path / "run", Form(counted(20), 1, (16, 24))), "--data", many])
    assert " predicted as class " in capsys.readouterr().out


# --- data -------------------------------------------------------------------------------------------------------------


def test_other_data_is_measured_whole(runs: list[Path], data: Path, tmp_path: Path) -> None:
    """A newcomer's folder: no part of it is held out, one image is enough, and what it lacks of the classes is barred
    from nothing. The data that the network was trained on is measured by its held-out part, however it is called.
    """
    result = measured(runs[0], "--data", data)
    assert (result["tiles"], result["split"]) == (7, "all")
    assert not any("barred" in note for note in result["notes"])
    assert any("--split val" in note for note in result["notes"])
    assert measured(runs[0], "--data", data, "--split=val")["tiles"] < 7
    assert measured(runs[0], "--data", write_folder(tmp_path / "one", 1))["tiles"] == 1
    own = write_run(tmp_path / "own", FORM, config=replace(TINY, data=str(data)))
    (tmp_path / "link").symlink_to(data)
    for again in ([], ["--data", data], ["--data", tmp_path / "link"]):
        assert measured(own, *again)["split"] == "val"
    assert measured(own, "--split=all")["tiles"] == 7


def test_networks_that_held_out_other_tiles_are_told(data: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(s), FORM, config=replace(TINY, data=str(data), seed=s)) for s in range(2)]
    told = f"warning: {runs[1]} held out another part of its data, so it may have been trained on these tiles"
    assert told in measured(*runs)["notes"]
    assert not any("warning" in note for note in measured(runs[0], runs[0])["notes"])
    assert told not in measured(*runs, "--split=all")["notes"]


def test_masks_in_a_folder_of_their_own(runs: list[Path], data: Path) -> None:
    apart = measured(runs[0], "--data", data / "images", "--masks", data / "masks")
    assert apart["confusion"] == measured(runs[0], "--data", data)["confusion"]


def test_a_run_folder_is_its_best_checkpoint(runs: list[Path], data: Path) -> None:
    one, other = (measured(path, "--data", data) for path in (runs[0], runs[0] / "best.safetensors"))
    assert one["checkpoints"] == [str(runs[0])]
    assert {**one, "checkpoint": 0, "checkpoints": 0} == {**other, "checkpoint": 0, "checkpoints": 0}


def test_images_of_another_size_are_measured_as_they_are_predicted(runs: list[Path], tmp_path: Path) -> None:
    """Through windows of the size that the network was trained on; padding counts nowhere."""
    data = write_folder(tmp_path / "large", 2, (45, 70))
    small = np.asarray(Image.open(data / "images" / "0.png"))[:30, :50]
    Image.fromarray(small).save(data / "images" / "0.png")
    Image.fromarray(np.asarray(Image.open(data / "masks" / "0.png"))[:30, :50]).save(data / "masks" / "0.png")
    result = measured(runs[0], "--data", data)
    line = [str(runs[0]), str(data), f"--out={tmp_path / 'out'}"]
    assert predict.run(parsed(predict.Arguments, "predict", args=line)) == 0
    right = pixels = 0
    for name in ("0.png", "1.png"):
        truth, labels = (np.asarray(Image.open(f / "masks" / name)) for f in (data, tmp_path / "out"))
        right, pixels = right + ((truth == labels) & (truth > 0)).sum(), pixels + (truth > 0).sum()
    assert result["pixels"] == pixels
    # the smaller image is mirrored to the size of the larger one, so that its last windows lie elsewhere
    assert result["accuracy"] == pytest.approx(right / pixels, abs=0.02)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "got no checkpoint, expected at least one"),
        (["DATA"], "checkpoint DATA: a folder that holds no run (it has no best.safetensors), expected a run folder"),
        (["UNFINISHED"], "checkpoint UNFINISHED: a run folder in which no epoch is finished"),
        (["RUN", "OTHER"], "checkpoint OTHER: got the classes class 0, class 1, class 2, expected background, soil"),
        (["RUN", "--data", "RUN"], "RUN: got a run folder, which holds no masks; expected 'synthetic', an .npz file"),
        (["RUN", "--data", "DATA/images"], "DATA/images: got 7 without mask"),
        (["RUN", "--masks", "DATA/masks"], "--masks DATA/masks: goes with --data"),
        (["RUN", "--data", "DATA", "--tolerance=-1"], "--tolerance: got -1, expected 0 to 1000"),
        (["RUN", "--data", "DATA", "--batch=0"], "--batch: got 0, expected 1 to"),
        (["RUN", "--data", "DATA", "--views=-1"], "--views: got -1, expected 0 to 1000"),
        (["RUN", "--data", "DATA", "--split=test"], "--split test: DATA has no test set with labels"),
        (["RUN", "--data", "nothing"], "nothing: no such file or folder"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    runs: list[Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.toml").write_text("")
    other = write_run(tmp_path / "other", Form(counted(3), 1, (16, 24)))
    known = {"RUN": runs[0], "OTHER": other, "DATA": data, "UNFINISHED": tmp_path / "unfinished"}

    def named(text: str) -> str:
        for name, path in known.items():
            text = text.replace(name, str(path))
        return text

    code, text = ended([named(argument) for argument in arguments], capsys, main)
    assert code == 2
    assert named(words) in text


def test_a_config_without_its_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", FORM, config=Config(**{**vars(TINY), "data": str(tmp_path / "gone.npz")}))
    code, text = ended([str(run)], capsys, main)
    assert code == 2
    assert "gone.npz: no such file" in text
