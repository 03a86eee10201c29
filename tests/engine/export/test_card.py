"""The model card: its code runs, its command trains the same, its figures are those of the scores."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.build import Form
from engine.config import from_dict
from engine.data.classes import Classes
from engine.export.card import measured, model_card, recorded, run_facts, training_command
from engine.files import write_json
from engine.inference import labels_of, predict_logits
from engine.train import parse
from engine.training.checkpoint import Checkpoint
from tests.support.random_networks import FORMS, UINT8, random_checkpoint

FILES = {"onnx": "model.onnx", "torch": "model.pt", "safetensors": "model.safetensors"}
RECORD = {
    "epoch": 7,
    "val_miou_fg": 0.6125,
    "val_miou_keras": 0.5871,
    "val_miou_fg_interval": [0.5561, 0.664],
    "iou": {"soil": 0.77, "bedrock": 0.71, "sand": None, "big rock": 0.2269},
    "accuracy": 0.8498,
}


def card(checkpoint: Checkpoint, tables: list[Any] | None = None, **given: Any) -> str:
    facts = given.pop("facts", {})
    if tables is None:
        tables = [table for table in (recorded(checkpoint, facts),) if table is not None]
    return model_card(checkpoint, FILES, tables, facts, **given)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["mars", "rgb", "uint16", "float32", "binary"])
def test_its_code_runs_and_gives_our_labels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from engine.export.check import noise
    from engine.export.model import onnx_model
    from engine.export.torch_state import torch_file

    form, normalisation, settings = FORMS[name]
    checkpoint = random_checkpoint(form, normalisation, bottleneck="psa", psa_mode="parallel", fppm=True, **settings)
    monkeypatch.chdir(tmp_path)
    images = noise((1, 16, 24), form, normalisation, np.random.default_rng(0))
    Image.fromarray(images[0]).save("tile.png" if form.dtype == "uint8" else "tile.tif")
    Path("model.onnx").write_bytes(onnx_model(checkpoint))
    Path("model.pt").write_bytes(torch_file(checkpoint.net))
    ours = predict_logits(checkpoint.net, images, normalisation)
    of_onnx, of_torch = blocks(card(checkpoint))
    assert len([line for line in of_onnx.splitlines() if line and not line.startswith(("import", "from"))]) <= 5

    found: dict[str, Any] = {}
    exec(of_onnx, found)
    np.testing.assert_allclose(found["logits"], ours, atol=1e-3)
    np.testing.assert_array_equal(found["labels"], labels_of(found["logits"], checkpoint.barred))
    found = {}
    exec(of_torch, found)
    np.testing.assert_allclose(found["logits"].permute(0, 2, 3, 1).numpy(), ours, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preset": "small", "epochs": 3, "data": "a folder/it's"},
        {"preset": "report", "preactivation": True, "crop": [64, 32], "dropout": 0.0, "gate": "gau", "seed": 7},
    ],
    ids=["tiny", "small", "report"],
)
def test_its_command_trains_with_the_same_settings(settings: dict[str, Any]) -> None:
    import shlex

    config = from_dict(settings)
    words = shlex.split(training_command(config))
    assert words[:3] == ["python", "-m", "engine.train"]
    assert parse(words[3:]).settings == config


def test_recorded_scores() -> None:
    text = card(random_checkpoint(record=RECORD), facts={"epochs": 8})
    for line in (
        "| mean IoU, fg | 0.613 | 0.556 to 0.664 |",
        "| mean IoU, keras | 0.587 | |",
        "| accuracy | 0.850 | |",
        "| IoU, soil | 0.770 | |",
        "| IoU, sand | absent | |",
        "- It is weak on big rock: IoU 0.227.",
        "These are the weights of epoch 7 of 8.",
    ):
        assert f"{line}\n" in text or f"{line} " in text, line
    assert "weak on soil" not in text
    assert "have not been scored" not in text


def test_measured_scores_with_confusion_and_without_tiles_that_leak() -> None:
    """Percentages of rows; no row for pixels without a label, no column for what is never predicted."""
    figures = {
        "miou_fg": 0.5,
        "miou_fg_interval": [0.4, 0.6],
        "miou_keras": 0.5,
        "accuracy": 0.75,
        "iou": {"soil": 0.5, "bedrock": None, "sand": 0.3, "big rock": 0.9},
        "iou_intervals": {"soil": [0.4, 0.61], "bedrock": None, "sand": [0.25, 0.35], "big rock": [0.8, 0.95]},
        "confusion": [[0, 9, 0, 0, 0], [0, 750, 250, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 2, 0], [0, 0, 0, 0, 7000]],
    }
    result = {
        "split": "test",
        "tiles": 10,
        "interval_over": "source image",
        "tiles_sharing_a_source_image_with_training": 4,
        "without_them": {**figures, "miou_fg": 0.45},
        **figures,
    }
    checkpoint = random_checkpoint()
    text = card(checkpoint, measured(checkpoint, result))
    for line in (
        "### 10 test tiles",
        "4 of them share a source image with training, so that this score may be too high.",
        "### The 6 test tiles that share no source image with training",
        "| score | value | 95 % interval, drawn over source images |",
        "| mean IoU, fg | 0.450 | 0.400 to 0.600 |",
        "| IoU, soil | 0.500 | 0.400 to 0.610 |",
        "| truth | soil | bedrock | sand | big rock | pixels |",
        "| soil | 75.0 | 25.0 | 0.0 | 0.0 | 1,000 |",
        "| bedrock |  |  |  |  | 0 |",
        "| sand | 33.3 | 0.0 | 66.7 | 0.0 | 3 |",
        "| big rock | 0.0 | 0.0 | 0.0 | 100.0 | 7,000 |",
        "- It is weak on sand: IoU 0.300.",
    ):
        assert f"\n{line}\n" in text, line
    assert "| background | 0" not in text


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"val_miou_fg": "high", "iou": 3},
        {"val_miou_fg": float("nan")},
        {"val_miou_fg": True},
        {"epoch": 3, "val_miou_keras": 0.5},
    ],
)
def test_without_scores_it_says_so(record: dict[str, Any]) -> None:
    text = card(random_checkpoint(record=record), weights="the PyTorch state dict a_b.pt")
    assert "These weights have not been scored." in text
    assert r"Its weights come from the PyTorch state dict a\_b.pt, not from the training below." in text
    assert "| mean IoU" not in text


@pytest.mark.parametrize("interval", [None, [0.5], ["a", "b"], [0.5, float("inf")], 7])
def test_odd_intervals_and_classes_of_a_record_are_left_out(interval: Any) -> None:
    text = card(random_checkpoint(record={"val_miou_fg": 0.5, "val_miou_fg_interval": interval, "iou": ["soil"]}))
    assert "| mean IoU, fg | 0.500 | |\n" in text
    assert "IoU, soil" not in text


def test_names_cannot_break_the_page() -> None:
    classes = Classes(("a|b", "*c* <i>"), ("#000000", "#ffffff"), (3, 4), further=((9, 1),))
    text = card(random_checkpoint(Form(classes), bottleneck="none"), licence="CC [x](y)")
    assert "| 0 | a\\|b | `#000000` | 3 | yes |" in text
    assert "| 1 | \\*c\\* \\<i\\> | `#ffffff` | 4, 9 | yes |" in text
    assert "Of the weights: CC \\[x\\](y)." in text


def test_limits_follow_the_settings() -> None:
    plain = card(random_checkpoint())
    assert "trained on 64 x 128 pixels" in plain
    assert 'Label 0 means "unlabelled"' in plain
    assert "It knows 4 classes." in plain
    assert "None is stated for the weights" in plain
    other = card(
        random_checkpoint(Form(absent=(2,)), bottleneck="mhsa", crop=(16, 24), background="train", data="synthetic")
    )
    assert "trained on 16 x 24 pixels" in other
    assert "windows of 16 x 24" in other
    assert "Training had no pixel of bedrock: never predicted." in other
    assert "positions are interpolated" in other
    assert "unlabelled" not in other
    assert "| 2 | bedrock | `#8fb3c9` | 2 | no |" in other


def test_facts_come_from_the_summary_of_the_same_network(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    assert run_facts(path, RECORD) == {}
    summary = {"best_epoch": 7, "val_miou_fg": 0.6125, "epochs": 8, "notes": ["a *note*"], "train_tiles": "many"}
    write_json(tmp_path / "summary.json", summary)
    facts = run_facts(path, RECORD)
    assert facts == {"epochs": 8, "notes": ["a *note*"]}
    assert "\n- a \\*note\\*\n" in card(random_checkpoint(record=RECORD), facts=facts)
    assert run_facts(path, {**RECORD, "epoch": 6}) == {}
    for text in ("", "[1]", "{" * 5000):
        (tmp_path / "summary.json").write_text(text)
        assert run_facts(path, RECORD) == {}


def test_many_classes_have_no_matrix() -> None:
    classes = Classes(tuple(f"c{k}" for k in range(21)), tuple(f"#0000{k:02x}" for k in range(21)), tuple(range(21)))
    checkpoint = replace(random_checkpoint(bottleneck="none"), form=Form(classes), normalisation=UINT8)
    figures = {
        "miou_fg": 0.5,
        "miou_fg_interval": [0.4, 0.6],
        "miou_keras": 0.5,
        "accuracy": 0.5,
        "iou": dict.fromkeys(classes.names, 0.5),
        "iou_intervals": dict.fromkeys(classes.names),
        "confusion": np.eye(21, dtype=int).tolist(),
    }
    text = card(checkpoint, measured(checkpoint, {"split": "val", "tiles": 3, "interval_over": "tile", **figures}))
    assert "Confusion" not in text
    assert "| IoU, c20 | 0.500 | |" in text
