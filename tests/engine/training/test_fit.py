"""`engine.fit`: the numbers of a loop written by hand and of PyTorch's, whatever callbacks do; what ends it, and what
it says to arguments that do not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
import layers
from autograd import Tensor, ops, random
from engine.errors import TrainingError
from engine.training.optimizer import SGD, Adam, AdamW
from engine.training.schedules import Plateau, StepDecay
from tests.support.html_checks import read

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 50)
OTHERS = (RNG.normal(size=(20, 6)).astype(np.float32), RNG.integers(0, 3, 20))
BATCHES = [(X[:20], Y[:20]), (X[20:30], Y[20:30]), (X[30:], Y[30:])]


def net(dropout: float = 0.0) -> layers.Module:
    """A dense network, with a norm, and the same weights every time."""
    with layers.seeded(0):
        inner: list[layers.Module] = [layers.Dropout(dropout)] if dropout else []
        return layers.Sequential(
            layers.Linear(6, 8), layers.BatchNorm2d(8, activation="relu"), *inner, layers.Linear(8, 3)
        )


def weights(model: layers.Module) -> bytes:
    return b"".join(array.tobytes() for array in model.state_dict().values())


def quietly(model: layers.Module, data: Any = (X, Y), loss: Any = ops.cross_entropy, **settings: Any) -> engine.History:
    return engine.fit(model, data, loss, **{"epochs": 2, "callbacks": [], **settings})


def without_seconds(history: engine.History) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_the_bits_of_a_loop_by_hand() -> None:
    """Batches as they are given, a schedule of steps, the mean loss over samples."""
    mine = net()
    optimizer = Adam(mine, lr=1e-2, clip=0.5)
    schedule = StepDecay(optimizer, size=2, gamma=0.5)
    losses = []
    mine.train()
    for _ in range(3):
        total = 0.0
        for x, y in BATCHES:
            loss = ops.cross_entropy(mine(Tensor(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(y)
        losses.append(total / len(X))
    model = net()
    history = quietly(model, BATCHES, optimizer=StepDecay(Adam(model, lr=1e-2, clip=0.5), size=2, gamma=0.5), epochs=3)
    assert weights(model) == weights(mine)
    assert history["loss"] == losses
    assert history["lr"] == [1e-2 / 2, 1e-2 / 4, 1e-2 / 16]
    assert not model.training


def test_the_losses_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    with layers.seeded(0):
        model = layers.Sequential(layers.Linear(6, 8), layers.Tanh(), layers.Linear(8, 3))
    twin = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for theirs, ours in zip(twin.parameters(), model.parameters(), strict=True):
            theirs.copy_(torch.tensor(ours.data))
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    expected = []
    for _ in range(20):  # of one batch, whose order is of no account
        loss = torch.nn.functional.cross_entropy(twin(torch.tensor(X)), torch.tensor(Y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    # torch decays biases, too: a plain list of Tensors does the same
    history = quietly(model, batch=50, epochs=20, optimizer=AdamW(model.parameters(), lr=1e-2))
    np.testing.assert_allclose(history["loss"], expected, rtol=2e-5)
    assert expected[-1] < 0.9 * expected[0]


def test_the_same_seed_gives_the_same_bits() -> None:
    runs = []
    for seed in (3, 3, 4):
        model = net(dropout=0.5)
        history = quietly(model, seed=seed, validation=OTHERS)
        runs.append((weights(model), without_seconds(history)))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


class Meddler(engine.Callback):
    """Draws random numbers, changes the mode and leaves gradients behind."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def meddle(self, what: str, model: layers.Module | None = None) -> None:
        self.calls.append(what)
        random.seed(99)
        ops.dropout(Tensor(np.ones(10, np.float32)), 0.5)
        if model is not None:
            model.eval()
            model(Tensor(X)).sum().backward()

    def on_start(self, history: engine.History) -> None:
        self.model = history.model
        self.meddle("start", history.model)

    def on_step(self, step: engine.Step) -> None:
        self.meddle("step", self.model)

    def on_epoch(self, history: engine.History) -> None:
        self.meddle("epoch", history.model)

    def on_end(self, history: engine.History) -> None:
        self.meddle("end")


def test_callbacks_change_no_bit() -> None:
    plain, watched = net(dropout=0.5), net(dropout=0.5)
    history = quietly(plain, validation=OTHERS)
    meddler = Meddler()
    others = [meddler, engine.EarlyStopping(50, restore=False), lambda history: None]
    again = quietly(watched, validation=OTHERS, callbacks=others)
    assert weights(plain) == weights(watched)
    assert without_seconds(history) == without_seconds(again)
    assert meddler.calls == ["start", "step", "step", "epoch", "step", "step", "epoch", "end"]


def test_random_numbers_outside_go_on_as_before() -> None:
    random.seed(5)
    before = random.state()
    quietly(net(dropout=0.5))
    assert random.state() == before


def test_every_sample_is_seen_once_in_steps_of_equal_size() -> None:
    seen: list[np.ndarray] = []

    def loss(prediction: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets.numpy())
        return (prediction.mean(axis=1) - targets).mean()

    quietly(net(), (X, np.arange(50)), loss, batch=16)
    assert [len(part) for part in seen] == [13, 13, 12, 12] * 2
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)


def test_validation_and_metrics_are_of_the_whole() -> None:
    def spread(prediction: Tensor, targets: Tensor) -> float:
        """No mean over batches gives this."""
        return float(prediction.numpy().std() + targets.numpy().std())

    model = net()
    history = quietly(model, validation=OTHERS, metrics={"spread": spread}, batch=7, epochs=1)
    x = OTHERS[0].astype(np.float64)
    first, norm, last = model.steps  # type: ignore[attr-defined]
    h = x @ first.weight.data.T.astype(np.float64) + first.bias.data
    h = (h - norm.running_mean.data) / np.sqrt(norm.running_var.data + norm.eps) * norm.weight.data + norm.bias.data
    z = np.maximum(h, 0) @ last.weight.data.T + last.bias.data
    expected = np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(20), OTHERS[1]])
    assert history["val_loss"] == [pytest.approx(expected, rel=1e-5)]
    assert history["spread"] == [pytest.approx(z.std() + OTHERS[1].std(), rel=1e-5)]


def test_forms_of_data() -> None:
    """Lists, float64, foreign and generated batches; several inputs."""

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return iter([[x.astype(np.float64), Tensor(y.astype(np.uint8))] for x, y in BATCHES])

    model = net()
    quietly(model, Again(), optimizer=AdamW(model))
    by_hand = net()
    quietly(by_hand, BATCHES, optimizer=AdamW(by_hand))
    assert weights(model) == weights(by_hand)
    assert quietly(net(), (X.tolist(), Y.tolist())).rows[0]["loss"] == quietly(net()).rows[0]["loss"]
    xor = net()
    quietly(xor, ([[0.0] * 6, [1.0] * 6], [0, 1]))

    class Both(layers.Module):
        def __init__(self) -> None:
            self.inner = net()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.inner(ops.concat([a, b], 1))

    history = quietly(Both(), ((X[:, :2], X[:, 2:]), Y))
    assert history["loss"] == quietly(net())["loss"]
    assert quietly(Both(), [((x[:, :2], x[:, 2:]), y) for x, y in BATCHES])["loss"] == quietly(net(), BATCHES)["loss"]


def test_how_many_batches_there_are_is_known_after_an_epoch() -> None:
    class Again:
        def __iter__(self) -> Iterator[Any]:
            return iter(BATCHES)

    class Steps(engine.Callback):
        def __init__(self) -> None:
            self.steps: list[tuple[int, int, int, int]] = []

        def on_step(self, step: engine.Step) -> None:
            self.steps.append((step.epoch, step.step, step.steps, step.samples))

    steps = Steps()
    history = quietly(net(), Again(), callbacks=[steps])
    assert steps.steps == [(1, 1, 0, 20), (1, 2, 0, 10), (1, 3, 0, 20), (2, 1, 3, 20), (2, 2, 3, 10), (2, 3, 3, 20)]
    assert history["lr"] == [1e-3, 1e-3], "a constant rate, where no schedule can be laid out"
    assert quietly(net(), iter(BATCHES), epochs=1).rows[0]["loss"] > 0


def test_a_plateau_goes_on_after_epochs() -> None:
    model = net()
    plateau = Plateau(SGD(model, lr=0.0), factor=0.5, patience=1)
    history = quietly(model, optimizer=plateau, epochs=6, validation=OTHERS, loss=lambda p, t: (p * 0).sum() + 1.0)
    assert history["lr"] == [0.0] * 6
    model = net()
    plateau = Plateau(SGD(model, lr=1e-3), factor=0.5, patience=1)
    history = quietly(model, optimizer=plateau, epochs=6, loss=lambda p, t: (p * 0).sum() + 1.0)
    assert history["lr"] == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]


def test_modes() -> None:
    """A norm that is frozen stays so; the model trains although an earlier call left it in evaluation mode."""
    model = net()
    norm = model.steps[1]  # type: ignore[attr-defined]
    norm.eval()
    before = norm.running_mean.data.copy()
    quietly(model)
    np.testing.assert_array_equal(norm.running_mean.data, before)
    assert not model.training
    quietly(model)
    assert (norm.running_mean.data != before).any()


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite() -> None:
    """The weights are those before the step that it ended."""
    model = net()
    before: list[bytes] = []

    def parameters() -> bytes:
        return b"".join(p.data.tobytes() for p in model.parameters())

    def loss(prediction: Tensor, targets: Tensor) -> Tensor:
        before.append(parameters())
        return ops.cross_entropy(prediction, targets) * (np.nan if len(before) == 6 else 1.0)

    with pytest.raises(TrainingError, match=r"^fit: the loss became nan in epoch 2, step 2 \(learning rate [\d.e-]+\)"):
        quietly(model, loss=loss, batch=13, epochs=3)
    assert parameters() == before[5] != before[4]
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    with layers.seeded(0):
        model = layers.Linear(6, 3)
    before = weights(model)

    def loss(prediction: Tensor, targets: Tensor) -> Tensor:
        return ops.sqrt(prediction * 0).sum()  # 0, with an infinite slope

    norm = r"^fit: the gradient norm became nan in epoch 1, step 1"
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=norm):
        quietly(model, loss=loss)
    assert weights(model) == before


@pytest.mark.parametrize("where", ["loss", "step", "epoch"])
def test_an_interrupt_ends_with_the_history(where: str) -> None:
    class Interrupting(engine.Callback):
        def on_step(self, step: engine.Step) -> None:
            if where == "step" and step.epoch == 2:
                raise KeyboardInterrupt

        def on_epoch(self, history: engine.History) -> None:
            if where == "epoch":
                raise KeyboardInterrupt

    calls: list[int] = []

    def loss(prediction: Tensor, targets: Tensor) -> Tensor:
        calls.append(0)
        if where == "loss" and len(calls) == 3:
            raise KeyboardInterrupt
        return ops.cross_entropy(prediction, targets)

    model = net()
    history = quietly(model, loss=loss, callbacks=[Interrupting()], epochs=5)
    assert len(history) == 1
    assert history.stopped == "interrupted in epoch 2"
    assert model(Tensor(X)).shape == (50, 3)
    assert quietly(model).stopped == ""


def test_callbacks_end_the_training() -> None:
    class Enough(engine.Callback):
        def on_step(self, step: engine.Step) -> bool:
            return step.epoch == 2

    class Raising(engine.Callback):
        def on_epoch(self, history: engine.History) -> None:
            raise engine.StopTraining("seen enough")

    assert len(quietly(net(), callbacks=[Enough()], epochs=9)) == 1
    assert len(quietly(net(), callbacks=[lambda history: len(history) == 3], epochs=9)) == 3
    history = quietly(net(), callbacks=[Raising()], epochs=9)
    assert (len(history), history.stopped) == (1, "seen enough")
    assert quietly(net(), callbacks=[Enough()], epochs=9).stopped == "by a callback"


def test_early_stopping_gives_the_best_weights_back(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    kept: list[bytes] = []

    class Keep(engine.Callback):
        def on_epoch(self, history: engine.History) -> None:
            kept.append(weights(history.model))

    model = net()
    path = tmp_path / "best.safetensors"
    callbacks = [
        Keep(),
        engine.SaveBest(path, watch="score", largest=True),
        engine.EarlyStopping(2, watch="score", largest=True),
    ]
    history = quietly(
        model, validation=OTHERS, metrics={"score": lambda p, t: next(scores)}, callbacks=callbacks, epochs=5
    )
    assert history.stopped == "no better score for 2 epochs"
    assert len(history) == len(kept) == 4
    assert weights(model) == kept[1]
    other = net()
    other.load_state_dict(load_file(path))
    assert weights(other) == kept[1]
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]
    plain = net()
    quietly(plain, callbacks=[engine.EarlyStopping(1, restore=False)], epochs=2)
    assert weights(plain) == weights_after(2)
    with pytest.raises(ValueError, match="EarlyStopping: patience is 0, expected at least 1"):
        engine.EarlyStopping(0)


def weights_after(epochs: int) -> bytes:
    model = net()
    quietly(model, epochs=epochs)
    return weights(model)


# -- messages ----------------------------------------------------------------------------------------------------------


class Nothing(layers.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: quietly(lambda x: x), TypeError, r"model: got function, expected a Module of layers"),  # type: ignore[arg-type]
    "no parameters": (lambda: quietly(Nothing()), ValueError, r"model: Nothing has no parameter that is trained"),
    "counts": (
        lambda: quietly(net(), (X[:5], Y[:4])),
        ValueError,
        r"data: got 5 inputs and 4 targets, expected as many",
    ),
    "no samples": (lambda: quietly(net(), (X[:0], Y[:0])), ValueError, r"data: got no samples, expected at least one"),
    "an array": (
        lambda: quietly(net(), X),
        TypeError,
        r"data: got numpy.ndarray of shape \(50, 6\), expected \(inputs, ",
    ),
    "a dict": (
        lambda: quietly(net(), {}),
        TypeError,
        r"data: got dict of 0, expected \(inputs, targets\) or an iterable",
    ),
    "strings": (lambda: quietly(net(), (["a"], [0])), TypeError, r"data: inputs: got list \(as an array: <U1\)"),
    "an iterator": (
        lambda: quietly(net(), iter(BATCHES)),
        ValueError,
        r"data: got list_iterator, which can be .* once",
    ),
    "no batch": (lambda: quietly(net(), []), ValueError, r"data: got no batch, expected at least one in each epoch"),
    "three": (lambda: quietly(net(), [(X, Y, Y)]), TypeError, r"data: batch 0: got tuple of 3, expected a pair"),
    "a number": (lambda: quietly(net(), (X, 3)), ValueError, r"data: got 50 inputs and 0 targets, expected as many"),
    "validation": (
        lambda: quietly(net(), validation=(X[:2], Y[:1])),
        ValueError,
        r"validation: got 2 inputs and 1 targets, expected as many",
    ),
    "epochs": (lambda: quietly(net(), epochs=0), ValueError, r"epochs: got 0, expected at least 1"),
    "half an epoch": (lambda: quietly(net(), epochs=0.5), TypeError, r"epochs: got 0.5, expected a whole number"),
    "batch": (lambda: quietly(net(), batch=-1), ValueError, r"batch: got -1, expected at least 1"),
    "optimizer": (lambda: quietly(net(), optimizer="adam"), TypeError, r"optimizer: got str, expected an Optimizer"),
    "another's": (
        lambda: quietly(net(), optimizer=SGD(net())),
        ValueError,
        r"optimizer: it has no parameter of the model",
    ),
    "metrics alone": (
        lambda: quietly(net(), metrics={"a": max}),
        ValueError,
        r"metrics: got a, but no validation data",
    ),
    "a metric's name": (
        lambda: quietly(net(), validation=OTHERS, metrics={"lr": max}),
        ValueError,
        r"metrics: 'lr' is a column of the history already, expected another name",
    ),
    "no metric": (
        lambda: quietly(net(), validation=OTHERS, metrics={"a": 3}),
        TypeError,
        r"metrics: a is int, expected a function",
    ),
    "callbacks": (
        lambda: quietly(net(), callbacks=[3]),
        TypeError,
        r"callbacks: got 3, expected a Callback or a function",
    ),
    "a class": (lambda: quietly(net(), callbacks=[engine.Progress]), TypeError, r"callbacks: got <class .*Progress'>"),
    "a loss of each": (lambda: quietly(net(), loss=lambda p, t: p), ValueError, r"loss: the result is shape \(25, 3\)"),
    "a number as loss": (
        lambda: quietly(net(), loss=lambda p, t: 3.0),
        ValueError,
        r"loss: the result is float, expected",
    ),
    "a loss of nothing": (
        lambda: quietly(net(), loss=lambda p, t: ops.mean(p.detach())),
        ValueError,
        r"loss: the result depends on no parameter that is trained",
    ),
}


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_arguments_that_do_not_fit(row: tuple[Callable[[], Any], type[Exception], str]) -> None:
    call, error, pattern = row
    with pytest.raises(error) as caught:
        call()
    assert re.match(f"fit: {pattern}", str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


# -- the history -------------------------------------------------------------------------------------------------------


def history_of(**columns: list[float]) -> engine.History:
    model = net()
    history = engine.History(model, SGD(model), 4)
    history.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return history


def test_what_a_history_tells() -> None:
    history = history_of(epoch=[1, 2, 3], loss=[3.0, 2.0, 1.0], val_loss=[math.nan, 0.5, 0.75])
    assert history.best is history.rows[1]
    assert history.best_by("loss") is history.rows[2]
    assert history.best_by("loss", largest=True) is history.rows[0]
    assert (len(history), history["loss"]) == (3, [3.0, 2.0, 1.0])
    with pytest.raises(KeyError, match="there is no column 'acc', but epoch, loss, val_loss"):
        history["acc"]
    lines = repr(history).splitlines()
    assert lines[0] == "History(3 of 4 epochs)"
    assert [line.split() for line in lines[1:]] == [
        ["epoch", "loss", "val_loss"],
        ["1", "3", "nan"],
        ["2", "2", "0.5"],
        ["3", "1", "0.75"],
    ]
    empty = history_of(epoch=[], loss=[])
    assert empty.best is None
    assert repr(empty) == "History(0 of 4 epochs)"


def test_a_history_in_a_notebook() -> None:
    columns = {"epoch": list(range(1, 15)), "loss": [1 / k for k in range(1, 15)], "<b>&": [0.5] * 14}
    history = history_of(**columns, seconds=[1.0] * 14)  # type: ignore[arg-type]
    history.stopped = "<i>enough"
    found = read(history._repr_html_())
    assert "History 14 of 4 epochs, <i>enough the last 12 epoch loss <b>& seconds 3 0.3333" in found.text
    assert [len((line["points"] or "").split()) for line in found.of("polyline")] == [14, 14]
    assert "bold" in (found.of("td")[-1]["style"] or "")
    assert read(history_of(epoch=[], loss=[])._repr_html_()).text == "History 0 of 4 epochs"


def test_a_plot() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    history = history_of(epoch=[1, 2], loss=[2.0, 1.0], val_loss=[3.0, 4.0], accuracy=[0.5, 0.75], lr=[1.0, 0.1])
    figure = history.plot()
    drawn = [{line.get_label(): list(line.get_ydata()) for line in axis.lines} for axis in figure.axes]
    assert drawn == [{"loss": [2.0, 1.0], "val_loss": [3.0, 4.0]}, {"accuracy": [0.5, 0.75]}]
    (axis,) = history.plot("lr").axes
    assert list(axis.lines[0].get_ydata()) == [1.0, 0.1]
    plt.close("all")
