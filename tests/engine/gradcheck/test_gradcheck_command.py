"""`python -m engine.gradcheck`: the catalogue passes, the bugs are found, exit codes, JSON,
and the page in a browser.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import layers
from autograd import assert_gradients, ops
from autograd.gradcheck import FAIL, KINK, PASS
from autograd.ops import comparison
from engine.cli import UsageError
from engine.gradcheck.bugs import BUGS, Misprint
from engine.gradcheck.catalogue import catalogue, find
from engine.gradcheck.checks import Plan, check
from engine.gradcheck.command import run
from engine.gradcheck.settings import parse, split_arguments
from kernels.core.dispatch import use_kernels
from tests.support.paths import ROOT

VARIANTS = [(e, v, False) for e in catalogue().values() for v in e.variants] + [
    (e, v, True) for e in catalogue().values() for v in e.kinks
]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SEEDS = (0, 1)  # seeds 0 to 19:  python -m engine.gradcheck --seeds 20


@pytest.mark.parametrize(("entry", "settings", "kinked"), VARIANTS, ids=[e.title(v) for e, v, _ in VARIANTS])
def test_everything_that_has_a_gradient_passes(entry, settings, kinked: bool) -> None:
    for seed in SEEDS if entry.kind != "network" else SEEDS[:1]:
        built = entry.make(seed, **settings)
        with use_kernels("reference"):
            report = assert_gradients(
                built.target,
                *built.tensors(),
                input_names=built.names,
                seed=seed,
                convention=built.convention,
                convention_input=built.convention_input,
            )
        assert report.verdict == (KINK if kinked else PASS)
        assert report.resampled == 0


@pytest.mark.table
def test_nothing_with_a_gradient_is_left_out() -> None:
    public = {name for name in ops.__all__ if callable(getattr(ops, name))} - {
        "make_spec",
        "segmentation_loss",
        "conv2d_relu",
        "argmax",
        "argmin",
        "argsort",
        "cast",
        "floor_divide",
    }  # behind combined_loss; no gradient; a change of dtype (tests/autograd/test_tensor_dtypes.py)
    public -= {name for name in vars(comparison) if name in ops.__all__ and name != "cast"}
    assert public <= set(catalogue())
    made = {
        type(m).__name__
        for e in catalogue().values()
        if e.kind in ("block", "network")
        for m in e.make(0).module.modules()
    }
    classes = {
        n
        for n in layers.__all__
        if isinstance(getattr(layers, n), type) and issubclass(getattr(layers, n), layers.Module)
    }
    losses = {n for n in classes if issubclass(getattr(layers, n), layers.SegmentationLoss)}
    operators = {
        "AdaptiveAvgPool2d",
        "AvgPool2d",
        "Dropout2d",
        "Embedding",
        "Flatten",
        "GELU",
        "LeakyReLU",
        "MaxPool2d",
        "ReLU",
        "Sigmoid",
        "SiLU",
        "Softplus",
        "Tanh",
    }
    between = {"BCEWithLogitsLoss", "L1Loss", "MSELoss", "SmoothL1Loss"}
    # thin names for an operator, or nothing
    without = {"Module", "ModuleDict", "ModuleList", "Identity", *operators, *between}
    assert classes - losses - without <= made


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_every_planted_bug_is_found_and_taken_out_again(bug) -> None:
    entry = find(bug.operator)
    found = check(entry, bug.settings, Plan(bug=bug))
    assert found.verdict == FAIL
    assert not found.ok
    if found.report.trials[0].smooth:
        assert found.report.location.entries
    after = check(entry, bug.settings, Plan())
    assert after.ok, "the bug must be gone afterwards"


def test_bugs_fit_other_operators_and_modules() -> None:
    assert check(find("layer_norm"), {}, Plan(bug=BUGS["corner"])).verdict == FAIL
    assert check(find("ConvNorm"), {}, Plan(bug=BUGS["half"])).verdict == FAIL
    assert any(isinstance(b, Misprint) for b in BUGS.values())


# -- the command line -------------------------------------------------------------------------------------------------


def test_settings_are_read_from_the_command_line() -> None:
    words = [
        "conv2d",
        "--stride",
        "2",
        "--shape",
        "2,9,11,3",
        "--seeds",
        "3",
        "--padding=same",
        "--bias",
        "false",
        "--json",
        "-",
    ]
    own, settings = split_arguments(words, {"--seeds": True, "--json": True})
    assert own == ["conv2d", "--seeds", "3", "--json", "-"]
    assert settings == {"stride": 2, "shape": (2, 9, 11, 3), "padding": "same", "bias": False}
    assert [parse(t) for t in ("1,2", "none", "0.5", "-1", "causal", "((1, 2), (0, 1))")] == [
        (1, 2),
        None,
        0.5,
        -1,
        "causal",
        ((1, 2), (0, 1)),
    ]
    assert split_arguments(["--shape", "5"], {})[1] == {"shape": (5,)}


def test_a_good_operator_exits_0_and_shows_a_table(capsys) -> None:
    assert run(["conv2d", "--stride", "2", "--padding", "1", "--dilation", "2", "--shape", "2,9,11,3"]) == 0
    text = capsys.readouterr().out
    assert "conv2d stride=2 padding=1 dilation=2 shape=2,9,11,3" in text
    assert "1 checks in" in text
    for word in ("verdict", "error", "bar", "evaluations", "seconds", "PASS"):
        assert word in text


def test_a_planted_bug_exits_1_and_shows_where(capsys) -> None:
    assert run(["conv2d", "--break", "corner"]) == 1
    text = capsys.readouterr().out
    assert "x[0, 0, 0, 0] (corner)" in text
    assert "analytic = 1.1 x numeric" in text
    assert re.search(r"^\|@ +\|$", text, re.MULTILINE), "the heat map is dark in the corner only"


def test_lists(capsys) -> None:
    assert run(["--list"]) == 0
    assert "conv2d" in (listed := capsys.readouterr().out)
    assert "stride" in listed
    assert run(["--break", "list"]) == 0
    assert all(name in listed for listed in [capsys.readouterr().out] for name in BUGS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["conv3d"], "no operator, block or loss is called 'conv3d': did you mean conv2d"),
        (["conv2d", "--strides", "2"], "conv2d has no setting 'strides'; it has shape, filters, kernel, bias, stride"),
        (["conv2d", "--stride", "0"], "stride.*0.*at least 1"),
        (["conv2d", "--shape", "2,9"], r"shape is \(2, 9\), expected 4 axes"),
        (["conv2d", "--shape", "big"], "--shape: got 'big', expected positive integers"),
        (["conv2d", "--stride", "2", "--stride", "3"], "--stride is given twice"),
        (["conv2d", "--threads=-1"], "--threads: got -1, expected the number of threads, or 0"),
        (["--stride", "2"], r"settings \(--stride\) need the name of one operator"),
        (["conv2d", "--break", "nothing"], "--break: no bug is called 'nothing', expected one of corner"),
        (["conv2d", "relu", "--break", "corner"], "name one operator to break"),
        (["conv2d", "--seeds", "0"], "--seeds: got 0, expected at least 1"),
        (["conv2d", "--dtype", "float32"], "--dtype float32: the reference is checked by finite differences"),
        (["conv2d", "--backend", "cpu", "--device", "cuda"], "--device cuda does not fit --backend cpu"),
        (
            ["conv2d", "--json", "no/such/folder/rows.json"],
            "--json no/such/folder/rows.json: its folder does not exist",
        ),
        (["relu", "--values", "odd"], "values is 'odd', expected one of normal"),
    ],
)
def test_bad_input_is_one_clear_line(words, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run(words)
    assert "\n" not in str(caught.value)


def test_exit_codes_of_the_process() -> None:
    for words, code, stream in (
        (["tanh"], 0, "stdout"),
        (["tanh", "--break", "half"], 1, "stdout"),
        (["tan"], 2, "stderr"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "engine.gradcheck", *words], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == code, done.stderr
        assert getattr(done, stream).strip()
        if code == 2:
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith("error: ")


def test_json_rows(tmp_path: Path, capsys) -> None:
    target = tmp_path / "rows.json"
    assert run(["relu", "softmax", "--seeds", "2", "--json", str(target)]) == 0
    rows = json.loads(target.read_text())
    assert [r["name"] for r in rows] == ["relu", "relu", "softmax", "softmax"]
    assert [r["verdict"] for r in rows] == [PASS, KINK, PASS, PASS]
    for row in rows:
        assert {"name", "verdict", "error", "bar", "evaluations", "seconds", "seeds", "settings", "facts"} <= row.keys()
        assert row["seeds"] == 2
        assert row["error"] <= row["bar"]
    capsys.readouterr()
    assert run(["tanh", "--break", "corner", "--json", "-"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["break"], row["wrong"][0]["index"]) == ("corner", [0, 0])


def test_fast_kernels_against_the_reference(capsys) -> None:
    assert run(["layer_norm", "cross_entropy", "--backend", "cpu"]) == 0
    assert run(["sigmoid", "--backend", "cpu", "--dtype", "float64"]) == 0
    capsys.readouterr()


def test_a_wrong_fast_kernel_is_seen(monkeypatch) -> None:
    from engine.gradcheck.fast import compare
    from kernels.core.dispatch import registry

    built = find("tanh").make(0)
    operator = registry["tanh_backward"]
    implementation = operator.implementation("cpu") or operator.reference
    monkeypatch.setitem(operator._loaded, "cpu", lambda dy, y: operator.reference(dy, y) * dy.dtype.type(1.00001))
    found = compare(built, "float32", "cpu")
    assert found.verdict == FAIL
    assert "gradient of x" in found.notes[0]
    monkeypatch.setitem(operator._loaded, "cpu", implementation)
    assert compare(built, "float32", "cpu").ok


def test_a_gradient_that_is_zero_by_construction_is_judged_by_the_terms_that_cancel(monkeypatch) -> None:
    from engine.gradcheck.catalogue import Built
    from engine.gradcheck.fast import compare
    from kernels.core.dispatch import registry

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((40, 6)), rng.standard_normal((40, 1))]
    built = Built(lambda x, b: ops.softmax(x + b), arrays, ["x", "b"])  # softmax does not see b
    assert compare(built, "float32", "cpu").ok
    reference = registry["softmax_backward"].reference
    monkeypatch.setitem(registry["softmax_backward"]._loaded, "cpu", lambda *args: reference(*args) + np.float32(1e-4))
    found = compare(built, "float32", "cpu")
    assert found.verdict == FAIL
    assert any("gradient of b" in note for note in found.notes)


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    good, bad = folder / "good.html", folder / "bad.html"
    assert run(["relu", "gelu", "max_pool2d", "dice_loss", "ConvNorm", "--html", str(good)]) == 0
    assert run(["conv2d", "--break", "last-row", "--html", str(bad)]) == 1
    return folder


def test_the_page_is_whole_and_needs_no_network(page: Path) -> None:
    text = (page / "good.html").read_text()
    assert len(text) < 3_000_000
    addresses = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", text))
    outside = {a for a in addresses if not a.startswith(("#", "data:"))}
    assert not outside, outside
    assert "<script" not in text
    assert text.count("<svg") >= 7
    assert text.count("data:image/png") >= 3 * 6
    assert "<b>GELU</b>\ny = x Phi(x);" in text, "the formula"
    assert "Kinks: how far" in text
    assert "as documented" in text
    for word in ("chosen step", "round-off", "truncation", "plain central difference"):
        assert word in text
    ids = re.findall(r'<section class="card" id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) >= 7
    assert set(re.findall(r'href="#(check-[^"]+)"', text)) == set(ids)


def test_the_page_of_a_failure_shows_where(page: Path) -> None:
    text = (page / "bad.html").read_text()
    assert "Where it is wrong" in text
    assert "x: all at index 6 of axis 1, the last" in text
    assert "planted: <b>last-row</b>" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page is not opened in a browser")
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", ["good", "bad"])
def test_the_page_in_a_browser(page: Path, name: str, width: int) -> None:
    """No console message, every picture there, nothing wider than the window (measured by a script that only the test
    adds).
    """
    probe = """<script>addEventListener("load", () => { const images = [...document.images];
    document.body.dataset.wide = document.documentElement.scrollWidth; document.body.dataset.window = innerWidth;
    document.body.dataset.broken = images.filter(i => !i.naturalWidth).length;
    document.body.dataset.images = images.length;
    document.body.dataset.curves = [...document.querySelectorAll(".curve svg")].filter(
      s => s.getBoundingClientRect().width > 200).length;
    document.body.dataset.sections = document.querySelectorAll("section").length; });</script>
    """
    copy = page / f"{name}-{width}.html"
    # Headless windows are at least 500 wide: a frame of the wanted width stands in for the phone.
    copy.write_text((page / f"{name}.html").read_text().replace("</body>", probe + "</body>"))
    frame = page / f"{name}-{width}-frame.html"
    frame.write_text(
        f'<body><iframe src="{copy.name}" width="{width}" height="800"></iframe><script>addEventListener("load", () '
        "=> setTimeout(() => "
        'Object.assign(document.body.dataset, document.querySelector("iframe").contentDocument.body.dataset), '
        "50))</script></body>"
    )
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
    ]
    command = [
        str(CHROMIUM),
        *options,
        f"--user-data-dir={page / 'profile'}",
        "--window-size=1400,900",
        "--dump-dom",
        frame.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = {k: int(v) for k, v in re.findall(r'data-(\w+)="(\d+)"', done.stdout)}
    assert found["window"] == width
    assert found["wide"] <= width
    assert found["broken"] == 0
    assert found["images"] >= 3
    assert found["curves"] == found["sections"] >= 1
