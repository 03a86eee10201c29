"""The command, and what the page says of a run: compared with what the run's own files and its network say."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine import evaluate, train
from engine.data.preparation import prepare
from engine.inference import predict_logits
from engine.report import command
from engine.report.tiles import choose, pictures
from engine.training.checkpoint import load_checkpoint
from engine.training.metrics import tile_scores
from engine.training.plots import ERROR, channels
from engine.training.run_folder import RunFolder
from tests.support.folders import write_pairs
from tests.support.paths import ROOT
from tests.support.tiny_runs import NETWORK, ended, flags, posix, run

Report = Callable[..., str]


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A run folder to write to."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Runs the command; gives what it printed: its notes, then its results."""

    def call(*runs: Path, **options: Any) -> str:
        capsys.readouterr()
        assert command.run(command.Arguments(runs, **options)) == 0
        results, notes = capsys.readouterr()
        return notes + results

    return call


def refused(*runs: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    """The one line with which the command ends."""
    code, line = ended([], capsys, lambda _: command.run(command.Arguments(runs, **options)))
    assert code == 2
    return line


def text_of(page: str) -> str:
    """What a page says, without its markup, style and script."""
    body = re.sub(r"<(style|script|noscript)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def table(page: str, label: str) -> list[list[str]]:
    """The cells of the first table in the region of that name."""
    inside = page.partition(f'aria-label="{label}"')[2].partition("<table")[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", inside, re.DOTALL)
    return [
        [
            html.unescape(re.sub(r"<[^>]*>", "", cell)).strip()
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


# -- what a run is ----------------------------------------------------------------------------------------------------


def test_training_ends_by_naming_a_page_that_needs_nothing_else(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page))
    assert not {a for a in addresses if not a.startswith(("#", "data:"))}
    for part in ("summary", "curves", "classes", "tiles", "time", "settings"):
        assert page.count(f'data-part="{part}"') == 1
    summary = json.loads((whole / "summary.json").read_text())
    said = text_of(page)
    assert f"mean IoU (fg) {summary['val_miou_fg']:.3f}" in said
    assert "margin is negative where the right class leads" in said
    for title in (
        "Validation mean IoU",
        "IoU of each class",
        "Training loss and its terms",
        "Gradient norm",
        "Learning rate",
    ):
        assert f"<h3>{title}</h3>" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_report_of_a_finished_run_is_the_page_that_training_wrote(whole: Path, copy: Path, report: Report) -> None:
    said = report(copy)
    assert f"report   {copy / 'report.html'}" in said.splitlines()[-1]
    there, here = ((folder / "report.html").read_text().replace(str(folder), "RUN") for folder in (whole, copy))
    differs = re.compile(r"<dt>time</dt><dd><b>[\d:]+")  # the state has the time of its saving
    assert differs.sub("", there) == differs.sub("", here)
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (whole, copy))
    assert after == before | {"seconds": after["seconds"]}


def test_scores_of_classes_and_the_confusion_matrix_are_those_of_the_network(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    best = load_checkpoint(whole / "best.safetensors")
    val = prepare(best.config).val
    said = 1 + predict_logits(best.net, val.images, best.normalisation)[..., 1:].argmax(-1)
    judged = val.labels() > 0
    pairs = np.zeros((5, 5), int)
    np.add.at(pairs, (val.labels()[judged], said[judged]), 1)
    intervals = evaluate.evaluate(evaluate.Arguments((whole / "best.safetensors",)))["iou_intervals"]
    matrix = table(page, "Confusion matrix")
    names = ["soil", "bedrock", "sand", "big rock"]
    assert matrix[0] == ["truth", *names, "pixels"]
    for k, name in enumerate(names, 1):
        shares = [f"{100 * pairs[k, j] / pairs[k].sum():.1f}" for j in range(1, 5)]
        assert matrix[k] == [name, *shares, f"{pairs[k].sum():,}"]
        row = table(page, "Scores of each class")[k]
        hit = pairs[k, k]
        precision = f"{100 * hit / pairs[:, k].sum():.1f} %" if pairs[:, k].sum() else "–"
        recall, share = (f"{100 * v:.1f} %" for v in (hit / pairs[k].sum(), pairs[k].sum() / pairs.sum()))
        iou = hit / (pairs[k].sum() + pairs[:, k].sum() - hit)
        low, high = intervals[name]
        assert row == [name, f"{iou:.3f}", "", f"{low:.3f} to {high:.3f}", precision, recall, share]


def test_settings_that_differ_from_the_preset(whole: Path) -> None:
    page = (whole / "report.html").read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in table(page, "Settings that differ from the preset")[1:]}
    assert rows["width"] == ["4", "8"]
    assert rows["cutmix"] == ["0.5", "0"]
    assert "learning-rate" not in rows
    assert ["learning-rate", "0.002"] in table(page, "Settings of the preset")


# -- tiles ------------------------------------------------------------------------------------------------------------


def picture(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))


def test_the_layers_of_a_tile_are_image_truth_prediction_and_error(whole: Path) -> None:
    best = load_checkpoint(whole / "best.safetensors")
    val = prepare(best.config).val
    classes = best.form.classes
    scores = tile_scores(best.confusion(val), classes)
    shown = pictures(best, val, scores, 2)
    assert {kind: len(some) for kind, some in shown.items()} == {"worst": 2, "best": 2, "random": 2}
    said = 1 + predict_logits(best.net, val.images, best.normalisation)[..., 1:].argmax(-1)
    colours = np.array([channels(colour) for colour in classes.colours])
    for tile in (tile for some in shown.values() for tile in some):
        row = int(tile.title.split()[1])
        truth = val.labels()[row]
        image, mask, prediction, error = (picture(layer.source) for layer in tile.layers)
        assert np.array_equal(mask, colours[truth])
        assert np.array_equal(prediction, colours[said[row]])
        wrong = (truth != 0) & (truth != said[row])
        assert np.array_equal((error == channels(ERROR)).all(-1), wrong)
        order = np.argsort(val.images[row].ravel(), kind="stable")
        assert (np.diff(image[..., 0].ravel()[order].astype(int)) >= 0).all(), "as bright as the tile"
        share = wrong.sum() / (truth != 0).sum()
        assert tile.caption == f"IoU {scores.iou[row]:.3f}, {share:.0%} wrong"
        alts = [layer.alt for layer in tile.layers]
        assert len(set(alts)) == 4
        assert f"{share:.0%} of the labelled pixels are wrong, most of them " in alts[3]
        assert tile.width % 24 == 0, "pixels are enlarged by a whole number"


def test_which_tiles_are_shown() -> None:
    """Ranked are tiles of which enough is labelled; the best have two classes or more."""
    from engine.data import Tiles

    masks = np.ones((40, 8, 8), np.uint8)
    masks[::2, :, 4:] = 2
    masks[7] = 0
    masks[7, 0, 0] = 1
    masks[9] = 0
    val = Tiles(np.zeros((40, 8, 8), np.uint8), masks)
    wrong = np.random.default_rng(1).permutation(60)[:40]
    counts = np.zeros((40, 5, 5), int)
    for k, mask in enumerate(masks):
        guess = mask.ravel().copy()
        guess[: wrong[k]] = 3
        np.add.at(counts[k], (mask.ravel(), guess), 1)
    scores = tile_scores(counts)
    chosen = choose(scores, val, 5)
    ranked = [k for k in range(40) if k not in (7, 9)]
    assert chosen["worst"] == sorted(ranked, key=lambda k: scores.iou[k])[:5]
    assert chosen["best"] == sorted((k for k in ranked if k % 2 == 0), key=lambda k: -scores.iou[k])[:5]
    assert chosen["random"] == choose(scores, val, 5)["random"] != choose(scores, val, 5, seed=1)["random"]
    assert all(9 not in rows for rows in choose(scores, val, 40).values()), "nothing of it is labelled"
    few = choose(tile_scores(counts[:3]), val[:3], 6)
    assert [len(rows) for rows in few.values()] == [2, 1]
    assert sorted([*few["worst"], *few["best"]]) == [0, 1, 2]
    assert "random" not in few, "all are shown"


@pytest.mark.parametrize(
    ("size", "shown", "stored", "kind"),
    [
        ((64, 128), (384, 192), (64, 128), "png"),
        ((64, 64), (384, 384), (64, 64), "png"),
        ((256, 256), (384, 384), (256, 256), "png"),
        ((512, 64), (73, 584), (512, 64), "png"),
        ((1024, 2048), (584, 292), (256, 512), "jpeg"),
    ],
)
def test_tiles_of_all_sizes_are_shown_at_a_readable_size(
    size: tuple[int, int], shown: tuple[int, int], stored: tuple[int, int], kind: str
) -> None:
    from engine.data import MARS
    from engine.report.tiles import _picture

    random = np.random.default_rng(0)
    image = random.integers(0, 256, size, dtype=np.uint8)
    mask = random.integers(0, 5, size, dtype=np.uint8)
    tile = _picture(3, "", (0.5, 0.25), image, mask, np.maximum(mask, 1), MARS)
    assert (tile.width, tile.height) == shown
    assert picture(tile.layers[1].source).shape[:2] == stored
    assert tile.layers[0].source.startswith(f"data:image/{kind};base64,")
    assert sum(len(layer.source) for layer in tile.layers) < 1_500_000


# -- several runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second run on the same tiles, of one epoch."""
    out = tmp_path_factory.mktemp("other") / "run"
    assert run(flags(tiles, out, "--learning-rate=0.01", epochs=1)) == 0
    return out


def test_several_runs_are_compared_and_only_read(whole: Path, other: Path, tmp_path: Path, report: Report) -> None:
    before = {path: path.stat().st_mtime_ns for folder in (whole, other) for path in folder.iterdir()}
    out = tmp_path / "compared.html"
    with RunFolder(whole):  # as while it is trained
        said = report(whole, other, out=out)
    assert said.splitlines()[-1] == f"report   {out}"
    assert {path: path.stat().st_mtime_ns for folder in (whole, other) for path in folder.iterdir()} == before
    page = out.read_text(encoding="utf-8")
    names = command.distinct_names([whole, other])
    assert len(set(names)) == 2
    assert table(page, "Settings that differ") == [
        ["setting", *names],
        ["epochs", "2", "1"],
        ["learning-rate", "0.002", "0.01"],
    ]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, other)]
    scores = {row[0]: row[1:] for row in table(page, "Scores of all runs")}
    assert scores["mean IoU (fg)"] == [f"{s['val_miou_fg']:.3f}" for s in summaries]
    assert scores["IoU sand"] == [f"{s['iou']['sand']:.3f}" for s in summaries]
    assert "different tiles" not in page
    assert page.count('class="run"') == 2
    assert page.count('name="run"') == 2


def test_the_default_page_of_several_runs_and_their_names(
    whole: Path, other: Path, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(whole, other).splitlines()[-1] == "report   report.html"
    assert (tmp_path / "report.html").exists()
    paths = [Path("/a/x/run"), Path("/a/y/run"), Path("/a/y/walk")]
    assert command.distinct_names(paths) == ["x/run", "y/run", "walk"]


def test_runs_on_other_tiles_or_classes_do_not_compare(
    whole: Path, tiles: Path, tmp_path: Path, report: Report
) -> None:
    data = write_pairs(tmp_path / "data", 3, sizes=((24, 32),))
    assert run([f"--data={data}", "--classes=3", "--epochs=1", "--batch=4", *NETWORK, f"--out={tmp_path / 'b'}"]) == 0
    report(whole, tmp_path / "b", out=tmp_path / "page.html")
    said = text_of((tmp_path / "page.html").read_text())
    assert "validated on different tiles" in said
    assert "These runs have different classes" in said


# -- what is missing --------------------------------------------------------------------------------------------------


def test_a_run_before_rows_held_norms_and_states_were_kept(copy: Path, report: Report) -> None:
    """As earlier versions left them."""
    known = (
        "epoch",
        "train_loss",
        "terms",
        "val_miou_fg",
        "val_miou_keras",
        "iou",
        "learning_rate",
        "images_per_second",
    )
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    (copy / "metrics.jsonl").write_text("".join(json.dumps({k: row[k] for k in known}) + "\n" for row in rows))
    for path in copy.glob("state-*"):
        path.unlink()
    (copy / "summary.json").unlink()
    report(copy)
    said = text_of((copy / "report.html").read_text())
    assert "This run did not record gradient norms." in said
    assert "Gradient norm by part" not in said
    assert json.loads((copy / "summary.json").read_text())["epochs"] == 2


def test_data_that_cannot_be_read_any_more(copy: Path, report: Report) -> None:
    settings = copy / "config.toml"
    settings.write_text(re.sub(r"(?m)^data = .*$", 'data = "/nowhere/tiles.npz"', settings.read_text()))
    before = json.loads((copy / "summary.json").read_text())
    (copy / "predictions.png").write_bytes(b"as it was")
    said = report(copy)
    line = "Without tiles and confusion matrix: the data cannot be read any more (/nowhere/tiles.npz: no such file"
    assert line in said
    page = (copy / "report.html").read_text()
    assert line in text_of(page)
    assert 'data-part="tiles"' not in page
    assert [row[3:] for row in table(page, "Scores of each class")[1:]] == [["–"] * 4] * 4
    assert (copy / "predictions.png").read_bytes() == b"as it was"
    after = json.loads((copy / "summary.json").read_text())
    assert after == before | {"seconds": after["seconds"]}


def test_logs_of_an_experiment(tmp_path: Path, report: Report) -> None:
    """Without weights, but with the confusion matrices that engine.experiment has measured."""
    source = ROOT / "docs" / "results" / "losses" / "combined-masked" / "seed-0"
    logs = Path(shutil.copytree(source, tmp_path / "logs"))
    said = report(logs)
    assert "only the logs were kept" in said
    page = (logs / "report.html").read_text()
    summary = json.loads((logs / "summary.json").read_text())
    assert summary == json.loads((source / "summary.json").read_text())
    scores = {row[0]: row[1] for row in table(page, "Scores of each class")[1:]}
    assert scores == {name: f"{value:.3f}" for name, value in summary["iou"].items()}
    with np.load(source / "validation.npz") as file:
        counts = file["best"].sum(0)
    assert table(page, "Confusion matrix")[1][-1] == f"{counts[1].sum():,}"


def test_time_per_operator(copy: Path, report: Report) -> None:
    report(copy)
    assert "python -m engine.profile" in (copy / "report.html").read_text()
    operators = [
        {"name": "relu", "calls": 7, "seconds": 0.001, "flops": 0, "bytes": 2_000_000},
        {"name": "conv2d", "calls": 3, "seconds": 0.006, "flops": 12_000_000, "bytes": 3_000_000},
    ]
    (copy / "profile.json").write_text(json.dumps({"operators": operators, "step_seconds": 0.01}))
    report(copy)
    rows = table((copy / "report.html").read_text(), "Time of each operator in a step")
    assert rows[1:] == [
        ["conv2d", "3", "6.00", "60.0 %", "", "2 G", "500 M"],
        ["relu", "7", "1.00", "10.0 %", "", "–", "2 G"],
        ["all else", "–", "3.00", "30.0 %", "", "–", "–"],
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"operators": [{"name": "x"}], "step_seconds": 1}', "[" * 5000])
def test_a_profile_of_another_form_is_one_line(copy: Path, report: Report, content: str) -> None:
    (copy / "profile.json").write_text(content)
    report(copy, tiles=0)
    page = (copy / "report.html").read_text()
    assert f"Without the times of operators: {copy / 'profile.json'}: cannot be read (" in text_of(page)
    assert 'data-part="tiles"' not in page


# -- what is refused --------------------------------------------------------------------------------------------------


def test_what_cannot_be_reported_is_one_line(
    copy: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "mine.html"
    foreign.write_text("<p>my own page</p>")
    (copy / "sub").mkdir()
    cases: list[tuple[tuple[Path, ...], dict[str, Any], str]] = [
        ((), {}, "RUN: got none, expected at least one run folder"),
        ((tmp_path,), {}, f"{tmp_path}: is no run folder (it holds no config.toml)"),
        ((copy, tmp_path / "none"), {}, "none: is no run folder"),
        ((copy, copy / "sub" / ".."), {}, "the run is given twice"),
        ((copy,), {"tiles": -1}, "--tiles: got -1, expected 0 to 100"),
        ((copy,), {"out": foreign}, "mine.html: is there and is no report; give another name"),
        ((copy,), {"out": tmp_path}, "is a folder, expected the name of a page"),
        ((copy,), {"out": tmp_path / "x" / "y.html"}, f"the folder {tmp_path / 'x'} does not exist"),
        ((copy,), {"threads": -1}, "--threads: got -1"),
    ]
    for runs, options, words in cases:
        assert words in refused(*runs, capsys=capsys, **options)
    assert foreign.read_text() == "<p>my own page</p>"
    (copy / "report.html").write_text("mine")
    assert "report.html: is there and is no report" in refused(copy, capsys=capsys)
    (copy / "report.html").unlink()
    first = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    for name, content, words in (
        ("metrics.jsonl", "{", "metrics.jsonl: cannot be read"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl: cannot be read"),
        ("metrics.jsonl", '{"epoch": 1, "train_loss": 1}\n', "metrics.jsonl: cannot be used ('val_miou_fg')"),
        ("metrics.jsonl", first.replace("[", "[0.5, ", 1), "epoch 1 has 5 IoUs, expected 4"),
        ("metrics.jsonl", first.replace('"learning_rate": ', '"learning_rate": "fast", "x": '), "expected numbers"),
        ("metrics.jsonl", 2 * first, "its epochs are [1, 1], expected ascending numbers"),
        ("best.safetensors", "x", "best.safetensors: not a readable safetensors file"),
        ("config.toml", "a = [", "config.toml: no valid TOML"),
    ):
        kept = (copy / name).read_bytes()
        (copy / name).write_text(content)
        assert words in refused(copy, capsys=capsys)
        (copy / name).write_bytes(kept)
    assert not (copy / "report.html").exists()


@posix
def test_a_run_that_is_trained_can_be_reported_elsewhere(
    copy: Path, tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(copy):
        assert "another process" in refused(copy, capsys=capsys)
        report(copy, out=tmp_path / "page.html")
    assert (tmp_path / "page.html").exists()


def test_names_from_data_are_text_on_the_page(tmp_path: Path, report: Report) -> None:
    """Class names that look like markup, colour images, 30 classes."""
    data = write_pairs(tmp_path / "data", 30, "rgb", sizes=((24, 32),))
    names = ['<script>alert("1")</script>', 'a\' & "b"', *(f"class {k}" for k in range(2, 30))]
    entries = "".join(f"[[class]]\nname = {json.dumps(name)}\n" for name in names)
    (data / "classes.toml").write_text(entries)
    assert run([f"--data={data}", "--epochs=1", "--batch=4", *NETWORK, f"--out={tmp_path / 'run'}"]) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert {row[0] for row in table(page, "Scores of each class")[1:]} == set(names)
    assert len(table(page, "Confusion matrix")) <= 25
    assert "the 12 classes that ended lowest" in page


def test_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--help"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("RUN...", "--out", "--tiles", "--tensorboard", "needs no network"):
        assert words in said
    assert train.Arguments.__dataclass_fields__["tensorboard"].default is False
