"""The view that a run, or a fit, gets: lines, a live view, or an output of a notebook, which is a fake here."""

from __future__ import annotations

import io
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import engine
import layers
from autograd import ops
from engine.data import CLASSES
from engine.training.progress import LiveReporter, NotebookReporter, PlainReporter, in_notebook, make_reporter
from tests.support.html_checks import read

ROW = {
    "epoch": 1,
    "train_loss": 0.5,
    "terms": {},
    "val_miou_fg": 0.4,
    "val_miou_keras": 0.3,
    "iou": [0.1, None, 0.3, 0.45],
    "images_per_second": 9.0,
}
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = np.arange(40) % 3


class Handle:
    """An output that remembers what it showed."""

    def __init__(self, first: str) -> None:
        self.shown = [first]

    def update(self, html: str) -> None:
        self.shown.append(html)


def notebook(monkeypatch: pytest.MonkeyPatch, shell: str = "ZMQInteractiveShell") -> list[Handle]:
    """IPython as it is in a notebook, or another program of its; returns its outputs."""
    outputs: list[Handle] = []

    def display(html: str, display_id: bool) -> Handle:
        assert display_id is True
        outputs.append(Handle(html))
        return outputs[-1]

    ipython = ModuleType("IPython")
    ipython.get_ipython = type(shell, (), {})  # type: ignore[attr-defined]
    shown: Any = ModuleType("IPython.display")
    shown.display, shown.HTML = display, str
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return outputs


def test_where_the_view_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not in_notebook()
    assert type(make_reporter(CLASSES)) is PlainReporter
    notebook(monkeypatch, "TerminalInteractiveShell")
    assert not in_notebook()
    notebook(monkeypatch)
    assert in_notebook()
    assert isinstance(make_reporter(CLASSES), NotebookReporter)
    assert type(make_reporter(CLASSES, "quiet")) is not NotebookReporter


def test_a_shell_built_on_that_of_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook(monkeypatch)
    sys.modules["IPython"].get_ipython = type("Shell", (sys.modules["IPython"].get_ipython,), {})  # type: ignore[attr-defined]
    assert in_notebook()
    sys.modules["IPython"].get_ipython = lambda: None  # type: ignore[attr-defined]
    assert not in_notebook()


def test_ipython_is_not_imported_to_find_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert "IPython" not in sys.modules


def test_a_run_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = notebook(monkeypatch)
    view = NotebookReporter(CLASSES, rate=1e9)
    view.note("<b>a note")
    view.compiling(1, 3, "conv.direct")
    assert "compiling kernels 1/3 (conv.direct)" in read(outputs[0].shown[-1]).text
    view.compiling(3, 3, "conv.direct")
    view.step(1, 2, 3, 4, {"loss": 0.5, "dice": 0.25}, 100.0, 60.0)
    found = read(outputs[0].shown[-1])
    assert found.text == "<b>a note epoch 1/2 100 images/s run 1:00 to go loss 0.5000 dice 0.2500"
    filled = [re.match(r"width: ([\d.]+)%", a.get("style") or "") for a in found.of("div")]
    assert [match[1] for match in filled if match] == ["75.0", "37.5"]
    view.epoch(ROW, 2, 1.0, True)
    view.epoch({**ROW, "epoch": 2, "val_miou_fg": 0.2}, 2, 1.0, False)
    view.close()
    found = read(outputs[0].shown[-1])
    assert found.text.startswith(
        "<b>a note epoch loss mIoU fg keras soil bedrock sand big rock images/s 1 0.5000 0.4000"
    )
    assert found.text.endswith("2 0.5000 0.2000 0.3000 0.100 - 0.300 0.450 9")
    assert len(outputs) == 1
    bold = ["bold" in (a["style"] or "") for a in found.of("td")]
    assert bold == [True] * 9 + [False] * 9


def test_a_notebook_is_not_drawn_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = notebook(monkeypatch)
    view = NotebookReporter(CLASSES, rate=1e-9)
    for k in range(100):
        view.step(1, 2, k + 1, 100, {"loss": 0.5}, 100.0, 60.0)
    assert len(outputs[0].shown) == 1
    view.epoch(ROW, 2, 1.0, True)
    assert len(outputs[0].shown) == 2, "an epoch is always drawn"


@pytest.fixture
def net() -> layers.Module:
    return layers.Sequential(layers.Linear(4, 5), layers.ReLU(), layers.Linear(5, 3))


def test_a_fit_in_a_notebook(monkeypatch: pytest.MonkeyPatch, net: layers.Module) -> None:
    outputs = notebook(monkeypatch)
    history = engine.fit(net, (X, Y), ops.cross_entropy, epochs=3, validation=(X, Y))
    (output,) = outputs
    text = read(output.shown[-1]).text
    assert text.startswith("epoch loss val_loss lr 1 ")
    assert f"{history['val_loss'][-1]:.4g}" in text
    assert "to go" not in text


def test_a_fit_in_plain_lines(capsys: pytest.CaptureFixture[str], net: layers.Module) -> None:
    stop = engine.Callback()
    stop.on_epoch = lambda history: len(history) == 2  # type: ignore[method-assign]
    history = engine.fit(net, (X, Y), ops.cross_entropy, epochs=3, callbacks=[engine.Progress(), stop])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"epoch   1/3  loss [\d.]+  lr [\d.e-]+  0:0\d  best", lines[0])
    assert f"loss {history['loss'][1]:.4g}" in lines[1]
    assert lines[2] == "stopped: by a callback"
    engine.fit(net, (X, Y), ops.cross_entropy, epochs=1, callbacks=[])
    assert capsys.readouterr().out == ""


def test_steps_of_an_unknown_number() -> None:
    stream = io.StringIO()
    view = PlainReporter(CLASSES, stream, every=0.0)
    view.step(1, 2, 3, 0, {"loss": 0.5}, 100.0, 0.0)
    view.step(1, 2, 3, 9, {"loss": 0.5}, 100.0, 60.0)
    assert stream.getvalue().splitlines() == [
        "epoch   1/2  step 3/?  loss 0.5000  100 images/s",
        "epoch   1/2  step 3/9  loss 0.5000  100 images/s  1:00 to go",
    ]


def test_a_fit_in_a_terminal(net: layers.Module) -> None:
    from rich.console import Console

    from engine.training.callbacks import FIT

    view = LiveReporter((), content=FIT)
    try:
        view.step(1, 2, 3, 0, {"loss": 0.5}, 100.0, 0.0)
        view.epoch({"epoch": 1, "loss": 0.123456, "accuracy": 0.5, "seconds": 3.0}, 2, 3.0, True)
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(view._view())
    finally:
        view.close()
    text = console.export_text()
    assert text.splitlines()[0].split() == ["epoch", "loss", "accuracy"]
    assert text.splitlines()[1].split() == ["1", "0.1235", "0.5"]
    assert "epoch 1/2" in text
    assert "100 samples/s" in text


def test_progress_goes_on_when_training_fails(monkeypatch: pytest.MonkeyPatch, net: layers.Module) -> None:
    """The view is closed, whatever ends the training."""
    closed: list[bool] = []
    reporter = SimpleNamespace(step=lambda *a: None, epoch=lambda *a: None, close=lambda: closed.append(True))
    monkeypatch.setattr("engine.training.callbacks.make_reporter", lambda *a, **k: reporter)
    with pytest.raises(ValueError, match="loss"):
        engine.fit(net, (X, Y), lambda p, t: p)
    assert closed == [True]
