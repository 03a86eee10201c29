"""Training on anyone's data: folders of any layout, depth, size and number of classes train, resume and evaluate; what
is wrong is one line.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autograd import Tensor
from engine import evaluate
from engine.cli import parsed
from engine.data import DataError, load
from engine.inference import Normalisation, predict_logits
from engine.training.checkpoint import load_checkpoint
from layers import Conv2d, Module
from tests.support.folders import labels, write_pairs
from tests.support.tiny_runs import NETWORK, ended, results, run, stop_in_step
from tests.support.tiny_runs import write_tiles as write_mars

TOML = """ignore = [9, "#ff00ff"]
[[class]]
name = "road"
value = 3
colour = "#804080"
[[class]]
name = "tree"
value = 7
colour = "#008000"
"""


def measured(*arguments: str) -> dict:
    return evaluate.evaluate(parsed(evaluate.Arguments, "evaluate", args=list(arguments)))


# --- runs -------------------------------------------------------------------------------------------------------------

KINDS = {  # classes in the images, kind of image, what masks hold, --classes, other options
    "binary, RGB": (2, "rgb", lambda t: 255 * t, "1", []),
    "2 classes, 0 and 255, grey": (2, "grey", lambda t: 255 * t, "2", []),
    "5 classes, 16 bits, crops": (5, "16", lambda t: t, "5", ["--crop", "16", "24"]),
    # one never occurs: its pixels are ignored
    "21 classes, grey": (21, "grey", lambda t: np.where(t == 20, 255, t), "21", []),
    "3 classes, floating point": (3, "float", lambda t: t + 1, "3", ["--ignore", "0"]),
    "the Mars classes, RGBA": (5, "rgba", lambda t: t, "auto", []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_train_resume_and_evaluate(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd and mixed sizes; a run stopped in its second epoch and resumed gives the whole run's bits; evaluate gives its
    figure again.
    """
    count, pixels, stored, classes, more = KINDS[kind]
    data = write_pairs(tmp_path / "data", count, pixels, stored=stored)
    line = [
        f"--data={data}",
        f"--classes={classes}",
        "--epochs=2",
        "--batch=4",
        "--learning-rate=0.02",
        *NETWORK,
        *more,
    ]
    assert run([*line, f"--out={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        stop_in_step(3, 2, patch)
        assert run([*line, f"--out={tmp_path / 'stopped'}"]) == 130
    assert run([f"--resume={tmp_path / 'stopped'}"]) == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    result = measured(str(tmp_path / "whole" / "best.safetensors"))
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert result["miou_fg"] == pytest.approx(summary["val_miou_fg"], abs=1e-12)
    assert result["iou"].keys() == summary["iou"].keys()
    assert result["interval_over"] == summary["interval_over"] == "tile"
    expected = {"1": 1, "auto": 4}.get(classes, int(classes) if classes.isdigit() else 0)
    assert len(result["iou"]) == expected
    assert (tmp_path / "whole" / "predictions.png").stat().st_size > 1000


def test_one_logit_learns_a_binary_problem(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 2, sizes=((24, 32),), stored=lambda t: 255 * t, count=16)
    (data / "classes.toml").write_text('[[class]]\nname = "dark"\n')
    line = [
        f"--data={data}",
        f"--out={tmp_path / 'out'}",
        "--epochs=12",
        "--batch=4",
        "--learning-rate=0.02",
        "--average=0.9",
        *NETWORK,
    ]
    assert run([*line, "--affine=0", "--photometric=0"]) == 0
    checkpoint = load_checkpoint(tmp_path / "out" / "best.safetensors")
    assert checkpoint.form.classes.names == ("background", "dark")
    assert checkpoint.net.head.weight.shape[-1] == 1
    images = load(data).train.images
    logits = predict_logits(checkpoint.net, images, checkpoint.normalisation)
    assert (logits[..., 0] == 0).all()
    assert checkpoint.record["val_miou_fg"] > 0.8
    truth = np.stack([labels(int(name[1:]), 2, (24, 32)) for name in sorted(f"p{k}" for k in range(16))])
    assert ((logits[..., 1] > 0) == truth).mean() > 0.9


def test_mars_tiles_know_nothing_of_all_this(tmp_path: Path) -> None:
    """The preset: five logits, class 0 unlabelled, one channel; a checkpoint without a form is one of these."""
    write_mars(tmp_path / "tiles.npz")
    assert (
        run([f"--data={tmp_path / 'tiles.npz'}", f"--out={tmp_path / 'out'}", "--epochs=1", "--batch=8", *NETWORK]) == 0
    )
    path = tmp_path / "out" / "best.safetensors"
    new = load_checkpoint(path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["areograd"])
    assert about["form"]["classes"]["names"] == ["background", "soil", "bedrock", "sand", "big rock"]
    del about["form"], about["normalisation"]["low"], about["normalisation"]["high"]
    for name in ("masks", "classes", "ignore", "split", "clean", "crop"):
        del about["config"][name]
    header["__metadata__"]["areograd"] = json.dumps(about)
    text = json.dumps(header).encode()
    (tmp_path / "old.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    old = load_checkpoint(tmp_path / "old.safetensors")
    assert (old.config, old.normalisation, old.form.classes) == (new.config, new.normalisation, new.form.classes)
    first, second = (measured(str(p), f"--data={tmp_path / 'tiles.npz'}") for p in (path, tmp_path / "old.safetensors"))
    assert first["miou_fg"] == second["miou_fg"]


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.png", "masks/{}_mask.png"),
        ("{}.png", "{}_mask.png"),
        ("{}.png", "{}_mask.tif"),
        ("images/a/{}.tif", "masks/a/{}.png"),
    ],
)
def test_layouts(tmp_path: Path, names: tuple[str, str]) -> None:
    tiles = load(write_pairs(tmp_path / "data", 5, names=names)).train
    assert len(tiles) == 10
    assert tiles.size == (40, 48)
    np.testing.assert_array_equal(tiles.sizes[0], (30, 41))
    np.testing.assert_array_equal(tiles.masks[0, :30, :41], labels(0, 5, (30, 41)))
    assert (tiles.masks[0, 30:] == 255).all()
    assert (tiles.masks[0, :, 41:] == 255).all()
    np.testing.assert_array_equal(tiles.images[0, :, 41:], tiles.images[0, :, 40:33:-1])  # mirrored
    assert (tiles.folders is not None) == ("a/" in names[0])


def test_two_folders_and_parts(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5, names=("photos/{}.png", "labels/{}.png"))
    assert len(load(tmp_path / "photos", masks=str(tmp_path / "labels")).train) == 10
    for outer in (
        "{part}/images/{{}}.png {part}/masks/{{}}.png",
        "{part}/{{}}.png {part}/{{}}_mask.png",
        "images/{part}/{{}}.png masks/{part}/{{}}.png",
    ):
        root = tmp_path / "parts"
        shutil.rmtree(root, ignore_errors=True)
        for part, count, first in (("train", 6, 0), ("val", 3, 20), ("test", 2, 40)):
            image, mask = outer.format(part=part).split()
            write_pairs(root, 5, names=(image, mask), count=count, first=first)
        dataset = load(root)
        assert [len(tiles) for tiles in (dataset.train, dataset.val, dataset.test)] == [6, 3, 2]
        np.testing.assert_array_equal(dataset.val.masks[0, :40, :32], labels(20, 5, (40, 32)))
    shutil.rmtree(root / "masks" / "test")
    assert load(root).test.masks is None


def test_jpeg_images_go_with_png_masks_of_the_same_name(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 5, "rgb", names=("{}.jpg", "{}.png"))
    tiles = load(data).train
    assert tiles.images.shape == (10, 40, 48, 3)
    np.testing.assert_array_equal(tiles.masks[0, :30, :41], labels(0, 5, (30, 41)))


@pytest.mark.parametrize("form", ["grey", "palette", "colours", "16 bits"])
def test_masks_of_every_form_say_the_same(tmp_path: Path, form: str) -> None:
    data = write_pairs(tmp_path / "data", 3, count=3)
    (data / "classes.toml").write_text(TOML)
    values, colours = np.array([3, 7, 9]), np.array([[0x80, 0x40, 0x80], [0, 0x80, 0], [0xFF, 0, 0xFF]], np.uint8)
    for k, size in enumerate(((30, 41), (24, 37), (40, 32))):
        truth = labels(k, 3, size)
        pixels = values[truth].astype(np.uint16 if form == "16 bits" else np.uint8)
        picture = Image.fromarray(colours[truth] if form == "colours" else pixels)
        if form == "palette":
            picture.putpalette([0] * 30)
        picture.save(data / f"masks/p{k}.png")
    tiles = load(data).train
    expected = np.array([0, 1, 255])[labels(0, 3, (30, 41))]
    np.testing.assert_array_equal(tiles.masks[0, :30, :41], expected)


def test_the_original_sizes_and_levels_are_what_is_learnt_from(tmp_path: Path) -> None:
    """16-bit levels are kept; alpha is dropped with a note; grey stored as colour is grey."""
    deep = load(write_pairs(tmp_path / "deep", 5, "16")).train
    assert deep.images.dtype == np.uint16
    assert deep.images.max() > 255
    alpha = load(write_pairs(tmp_path / "alpha", 5, "rgba"))
    assert alpha.train.channels == 3
    assert "10 images have an alpha channel, which is dropped" in alpha.notes[-1]


# --- what is wrong is one line ----------------------------------------------------------------------------------------


def changed(data: Path, file: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(data / file)


WRONG = {
    "unknown value": (
        lambda d: changed(d, "masks/p1.png", np.full((24, 37), 8)),
        "masks/p1.png: got 8 at row 0, column 0, expected whole labels 3, 7, 9",
    ),
    "unknown colour": (
        lambda d: changed(d, "masks/p1.png", np.full((24, 37, 3), (1, 2, 3))),
        "masks/p1.png: got #010203 at row 0, column 0",
    ),
    "size of a mask": (
        lambda d: changed(d, "masks/p1.png", np.full((8, 8), 3)),
        "masks/p1.png: got 8 x 8 pixels, expected 24 x 37 like",
    ),
    "a JPEG mask": (
        lambda d: (d / "masks/p1.png").rename(d / "masks/p1.jpg"),
        "masks/p1.jpg: got a mask that is a JPEG",
    ),
    "no mask": (lambda d: (d / "masks/p1.png").unlink(), "got 1 without mask: p1"),
    "unknown key": (
        lambda d: (d / "classes.toml").write_text("[[class]]\nvalu = 3\n"),
        "classes.toml: unknown key 'valu' of a class",
    ),
    "one value twice": (
        lambda d: (d / "classes.toml").write_text("[[class]]\nvalue = 3\n" * 2),
        "classes.toml: the name 'class 3' stands for two",
    ),
    "no classes": (lambda d: (d / "classes.toml").write_text("ignore = 3\n"), "classes.toml: got no [[class]] table"),
    "a bad colour": (
        lambda d: (d / "classes.toml").write_text('[[class]]\ncolour = "red"\n'),
        "got the colour 'red', expected one like '#804080'",
    ),
    "broken TOML": (lambda d: (d / "classes.toml").write_text("[[class"), "classes.toml: no valid TOML"),
    "NaN": (
        lambda d: [
            Image.fromarray(np.full((24, 37), np.nan, np.float32)).save(d / "images/p1.tif"),
            (d / "images/p1.png").unlink(),
        ],
        "images/p1.tif: got float32 levels, expected uint8 like",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_folders_are_one_line_that_names_the_file(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 3, stored=lambda t: np.array([3, 7, 9])[t])
    (data / "classes.toml").write_text(TOML)
    change, message = WRONG[case]
    change(data)
    code, line = ended([f"--data={data}", f"--out={tmp_path / 'out'}", *NETWORK], capsys)
    assert code == 2
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes=0"], "classes: got 0, expected 1 to 256"),
        (["--classes=257"], "classes: got 257, expected 1 to 256"),
        (["--classes=nowhere.toml"], "nowhere.toml: cannot be read"),
        (["--classes=5", "--ignore=x"], "ignore: got 'x', expected 'none', or mask values"),
        (["--classes=mars", "--ignore=255"], "ignore: got '255', expected nothing"),
        (["--classes=5", "--crop", "10", "16"], "crop: got 10 16, expected multiples of 8"),
        (["--classes=5", "--masks=nowhere"], "masks: nowhere: no such folder"),
        (["--classes=6", "--split=folder"], "split: got 'folder', but the images lie in no folders of their own"),
        ([], "expected whole labels 0..4 (the Mars tiles' classes; classes.toml or --classes names others)"),
    ],
)
def test_wrong_settings_are_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "data", 6)
    code, line = ended([f"--data={data}", f"--out={tmp_path / 'out'}", *NETWORK, *options], capsys)
    assert code == 2
    assert message in line


# --- honest figures ---------------------------------------------------------------------------------------------------


def test_evaluate_tells_how_many_test_tiles_training_has_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both figures: with them, and without; an interval says what it was drawn over."""
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.integers(0, 256, (30, 16, 24)), rng.integers(0, 5, (30, 16, 24))], 1).astype(np.uint8)
    groups = np.array([f"image {k // 2}" for k in range(30)])
    test_groups = np.array(["image 0", "image 1", "image 2", "image 3", "new", "new", "other", ""])
    test = {"test_set": pixels[:8, 0], "test_labels": pixels[8:16, 1], "test_group": test_groups}
    np.savez(tmp_path / "tiles.npz", training_set=pixels, train_group=groups, **test)
    line = [f"--data={tmp_path / 'tiles.npz'}", f"--out={tmp_path / 'out'}", "--epochs=1", "--batch=8", *NETWORK]
    assert run(line) == 0
    arguments = [str(tmp_path / "out" / "best.safetensors"), "--split=test"]
    result = measured(*arguments)
    seen = {f"image {k}" for k in range(4)} & set(load(tmp_path / "tiles.npz").train.groups)
    shared = result["tiles_sharing_a_source_image_with_training"]
    assert 0 < shared <= len(seen)
    assert result["interval_over"] == "source image"
    assert 0 < result["without_them"]["pixels"] < result["pixels"]
    capsys.readouterr()
    assert evaluate.run(parsed(evaluate.Arguments, "evaluate", args=arguments)) == 0
    printed = capsys.readouterr().out
    assert f"{shared} of the 8 tiles share a source image with training, so that this leaks" in printed
    assert f"without them: {8 - shared} tiles" in printed
    assert printed.count("drawn over source images") == 2


def test_given_parts_of_other_sizes_are_measured_each_and_together(tmp_path: Path) -> None:
    for part, count, size in (("train", 6, (24, 32)), ("val", 3, (30, 20)), ("test", 2, (17, 50))):
        names = f"{part}/images/{{}}.png", f"{part}/masks/{{}}.png"
        write_pairs(tmp_path / "data", 3, names=names, count=count, sizes=(size,), first=len(part) * 7)
    line = [
        f"--data={tmp_path / 'data'}",
        f"--out={tmp_path / 'out'}",
        "--classes=3",
        "--epochs=1",
        "--batch=4",
        *NETWORK,
    ]
    assert run(line) == 0
    sizes = {"val": (3, 3 * 30 * 20), "test": (2, 2 * 17 * 50), "all": (9, 6 * 24 * 32 + 3 * 30 * 20)}
    for part, expected in sizes.items():
        result = measured(str(tmp_path / "out" / "best.safetensors"), f"--split={part}")
        assert (result["tiles"], result["pixels"]) == expected  # padding is no pixel


def test_other_data_must_have_the_network_s_classes_and_channels(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 3, "rgb")
    assert run([f"--data={data}", f"--out={tmp_path / 'out'}", "--classes=3", "--epochs=1", "--batch=4", *NETWORK]) == 0
    checkpoint = str(tmp_path / "out" / "best.safetensors")
    same = write_pairs(tmp_path / "same", 3, "rgb", first=5)
    assert measured(checkpoint, f"--data={same}")["tiles"] == 10
    assert measured(checkpoint, f"--data={same}", "--split=val")["tiles"] == 2
    with pytest.raises(DataError, match="got 1 channels of uint8, but the network was trained on 3 of uint8"):
        measured(checkpoint, f"--data={write_pairs(tmp_path / 'grey', 3)}")
    (same / "classes.toml").write_text(TOML)
    with pytest.raises(DataError, match="its classes are road, tree, but the network knows class 0, class 1, class 2"):
        measured(checkpoint, f"--data={same}")
    with pytest.raises(DataError, match="no test set with labels"):
        measured(checkpoint, "--split=test")


def test_a_window_as_large_as_the_image_changes_nothing(tmp_path: Path) -> None:
    """And smaller ones are blended: a network that looks at each pixel alone gives the same logits."""

    class Pointwise(Module):
        def __init__(self) -> None:
            self.head = Conv2d(1, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    net, images = Pointwise(), np.random.default_rng(0).integers(0, 256, (2, 24, 40), np.uint8)
    whole = predict_logits(net, images, Normalisation(0.5, 0.25))
    np.testing.assert_array_equal(predict_logits(net, images, Normalisation(0.5, 0.25), crop=(24, 40)), whole)
    np.testing.assert_allclose(
        predict_logits(net, images, Normalisation(0.5, 0.25), crop=(16, 16)), whole, rtol=1e-5, atol=1e-5
    )


def test_normalisation_of_channels_and_depths() -> None:
    """Against NumPy in float64; padding is left out."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 200, (4, 16, 24, 3)).astype(np.uint8)
    colour[..., 1] //= 2
    got = Normalisation.of(colour)
    np.testing.assert_allclose(got.mean, (colour / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(got.std, (colour / 255).std((0, 1, 2)))
    x = got(colour)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-5)
    for levels in (
        rng.integers(0, 4000, (4, 16, 24)).astype(np.uint16),
        (rng.standard_normal((4, 16, 24)) - 7).astype(np.float32),
    ):
        got = Normalisation.of(levels)
        unit = got.unit(levels)
        assert unit.max() == pytest.approx(1, abs=1e-5)
        assert unit.min() >= -1e-5
        np.testing.assert_allclose([got(unit).mean(), got(unit).std()], [0, 1], atol=1e-4)
    sizes = np.array([[16, 24], [8, 8], [16, 3], [1, 1]])
    inside = np.concatenate([image[:h, :w].ravel() for image, (h, w) in zip(colour[..., 0], sizes, strict=True)])
    got = Normalisation.of(np.ascontiguousarray(colour[..., 0]), sizes)
    assert got.mean == pytest.approx((inside / 255).mean())
