"""`fit`: training any Module with any loss, on arrays or on batches, in a line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np

from autograd import Tensor, inference, ops, random
from autograd.convert import array_from, kind_of
from engine.errors import TrainingError
from engine.training.callbacks import Callback, Progress, Step, StopTraining
from engine.training.history import History
from engine.training.optimizer import AdamW, Optimizer
from engine.training.schedules import Plateau, Schedule, WarmupCosine
from kernels.core.device import Array, device_of, to_device
from layers import Module

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], Any]
_TAKEN = ("epoch", "loss", "val_loss", "lr", "seconds")


def fit(
    model: Module,
    data: Any,
    loss: Loss,
    *,
    epochs: int = 10,
    batch: int = 32,
    optimizer: Optimizer | Schedule | Plateau | None = None,
    validation: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    callbacks: Iterable[Callback | Callable[[History], Any]] | None = None,
    seed: int = 0,
) -> History:
    """Train a model where its parameters are, in place; returns the History, a row per epoch.

        history = engine.fit(net, (images, labels), ops.cross_entropy, epochs=5, validation=(others, their_labels))

    data: (inputs, targets), arrays with a sample per row, or an iterable of batches of that form, which is iterated
        once per epoch. Inputs may be a tuple of arrays: the arguments of a model that takes several.  Floating-point
        arrays become the dtype of the parameters.
    loss: of (prediction, targets), both Tensors, a Tensor without axes: an operator, a loss of `layers`, any function.
    batch: samples per step, of arrays. An epoch, shuffled, is cut into ceil(samples / batch) steps of as equal size as
        can be, so that no step is too small for the statistics of a norm.
    optimizer: an Optimizer of the model's parameters, or a schedule, whose optimizer it then is: a Schedule goes on
        after each step, a Plateau after each epoch, by the loss that History.watched names. None: AdamW with the
        rate 3e-3, after a short warm-up along a cosine to 0 (a constant 1e-3 where the number of batches is not known).
    validation: as data. After each epoch the loss is computed on it, and the metrics, in evaluation mode.
    metrics: by name, functions of (prediction, targets) of the whole validation data, both Tensors, that give a number.
    callbacks: see engine.Callback; [engine.Progress()] by default, and [] is silence. What they do with random numbers
        or with the mode of the model changes nothing here.
    seed: of the order of the samples and of dropout. The same call gives the same bits.

    Modules that are in evaluation mode within a model that trains (frozen norms) stay so. The model is left in
    evaluation mode. Ctrl-C ends the training after the epochs so far: the history is returned, and the model is as the
    last step left it.

    Raises ValueError and TypeError for arguments that do not fit, before anything is trained as far as that can be
    seen, and TrainingError where the loss or its gradient is not finite: then the weights are those before that step.
    """
    if not isinstance(model, Module):
        raise TypeError(f"fit: model: got {kind_of(model)}, expected a Module of layers")
    _check_count("epochs", epochs)
    _check_count("batch", batch)
    place = _place_of(model)
    source = _source("data", data, batch, place, np.random.Generator(np.random.Philox(seed)), epochs)
    held_out = None if validation is None else _source("validation", validation, batch, place, None, epochs)
    metrics = dict(metrics or {})
    _check_metrics(metrics, held_out)
    schedule = _schedule(optimizer, model, source.steps, epochs)
    if not {id(p) for p in model.parameters()} & {id(p) for p in schedule.optimizer.flat.tensors}:
        raise ValueError("fit: optimizer: it has no parameter of the model, expected one of the model's")
    history = History(model, schedule.optimizer, epochs)
    listed = [Progress()] if callbacks is None else [_callback(c) for c in callbacks]
    with random.replay((seed & (2**64 - 1), 0)):
        _Fit(model, loss, source, held_out, metrics, schedule, history, listed).run()
    return history


# -- data --------------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a model computes, and its floating dtype."""

    device: str
    dtype: np.dtype

    def tensor(self, values: Any, what: str) -> Tensor:
        """The values there; floating-point ones in its dtype."""
        array = values.data if isinstance(values, Tensor) else array_from(values, what)
        if array.dtype.kind == "f" and array.dtype != self.dtype:
            array = array.astype(self.dtype)
        return Tensor(to_device(array, self.device))


class _Batch(NamedTuple):
    inputs: tuple[Tensor, ...]
    targets: Tensor

    @property
    def samples(self) -> int:
        return len(self.targets) if self.targets.ndim else 1


class _Arrays:
    """Batches of arrays in memory. rng: shuffles each epoch, if there is one."""

    def __init__(
        self, name: str, inputs: tuple[Array, ...], targets: Array, batch: int, place: _Place, rng: Any
    ) -> None:
        self.name, self.inputs, self.targets, self.place, self.rng = name, inputs, targets, place, rng
        count = len(targets)
        self.steps = -(-count // batch)
        self.count = count

    def __iter__(self) -> Iterator[_Batch]:
        order = np.arange(self.count) if self.rng is None else self.rng.permutation(self.count)
        for rows in np.array_split(order, self.steps):
            yield _Batch(tuple(self._rows(x, rows) for x in self.inputs), self._rows(self.targets, rows))

    def _rows(self, array: Array, rows: np.ndarray) -> Tensor:
        return self.place.tensor(array[to_device(rows, device_of(array))], f"fit: {self.name}")


class _Batches:
    """The batches of an iterable; how many there are is known from the start where it has a length, else after one
    epoch.
    """

    def __init__(self, name: str, batches: Iterable[Any], place: _Place) -> None:
        self.name, self.batches, self.place = name, batches, place
        self.steps = len(batches) if isinstance(batches, Sized) else 0

    def __iter__(self) -> Iterator[_Batch]:
        count = 0
        for item in self.batches:
            what = f"fit: {self.name}: batch {count}"
            if not _is_pair(item):
                raise TypeError(f"{what}: got {_described(item)}, expected a pair (inputs, targets)")
            inputs = item[0] if isinstance(item[0], tuple) else (item[0],)
            yield _Batch(
                tuple(self.place.tensor(x, f"{what}: inputs") for x in inputs),
                self.place.tensor(item[1], f"{what}: targets"),
            )
            count += 1
        if not count:
            raise ValueError(f"fit: {self.name}: got no batch, expected at least one in each epoch")
        self.steps = count


def _source(name: str, data: Any, batch: int, place: _Place, rng: Any, epochs: int) -> _Arrays | _Batches:
    """Where batches come from. Raises ValueError or TypeError for what gives none."""
    if not _is_pair(data) or not isinstance(data, tuple) or all(map(_is_batch, data)):
        if not isinstance(data, Iterable) or isinstance(data, (str, bytes, dict, Tensor, np.ndarray)):
            raise TypeError(
                f"fit: {name}: got {_described(data)}, expected (inputs, targets) or an iterable of batches"
            )
        if isinstance(data, Iterator) and epochs > 1:
            raise ValueError(
                f"fit: {name}: got {kind_of(data)}, which can be iterated over once, expected batches for {epochs} "
                "epochs (a list, or an object with __iter__)"
            )
        return _Batches(name, data, place)
    inputs, targets = data
    arrays = [
        x.data if isinstance(x, Tensor) else array_from(x, f"fit: {name}: {what}")
        for x, what in [
            *((x, "inputs") for x in (inputs if isinstance(inputs, tuple) else (inputs,))),
            (targets, "targets"),
        ]
    ]
    counts = [len(array) if array.ndim else 0 for array in arrays]
    for count in counts[:-1]:
        if count != counts[-1]:
            raise ValueError(f"fit: {name}: got {count} inputs and {counts[-1]} targets, expected as many")
    if not counts[-1]:
        raise ValueError(f"fit: {name}: got no samples, expected at least one")
    return _Arrays(name, tuple(arrays[:-1]), arrays[-1], batch, place, rng)


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2


def _is_batch(item: Any) -> bool:
    """Whether an element of a pair is a batch itself: a pair of arrays, not of numbers."""
    return _is_pair(item) and all(hasattr(part, "shape") or isinstance(part, tuple) for part in item)


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{kind_of(value)} of shape {tuple(shape)}"
    return f"{kind_of(value)} of {len(value)}" if isinstance(value, (tuple, list, dict)) else kind_of(value)


# -- settings ----------------------------------------------------------------------------------------------------------


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"fit: {name}: got {value!r}, expected a whole number")
    if value < 1:
        raise ValueError(f"fit: {name}: got {value}, expected at least 1")


def _check_metrics(metrics: Mapping[str, Metric], held_out: _Arrays | _Batches | None) -> None:
    if metrics and held_out is None:
        raise ValueError(f"fit: metrics: got {', '.join(metrics)}, but no validation data to compute them on")
    for name, metric in metrics.items():
        if name in _TAKEN:
            raise ValueError(f"fit: metrics: {name!r} is a column of the history already, expected another name")
        if not callable(metric):
            raise TypeError(f"fit: metrics: {name} is {kind_of(metric)}, expected a function")


def _place_of(model: Module) -> _Place:
    parameters = model.parameters()
    if not any(p.requires_grad for p in parameters):
        raise ValueError(f"fit: model: {type(model).__name__} has no parameter that is trained")
    return _Place(parameters[0].device, parameters[0].dtype)


def _schedule(
    given: Optimizer | Schedule | Plateau | None, model: Module, steps: int, epochs: int
) -> Schedule | Plateau:
    """The schedule, and with it the optimizer."""
    if isinstance(given, (Schedule, Plateau)):
        return given
    if isinstance(given, Optimizer):
        return Schedule(given)
    if given is not None:
        raise TypeError(f"fit: optimizer: got {kind_of(given)}, expected an Optimizer or a schedule")
    total = steps * epochs
    return WarmupCosine(AdamW(model, lr=3e-3), total, warmup=total // 20) if total else Schedule(AdamW(model))


class _Function(Callback):
    """A function of the history as a callback."""

    def __init__(self, function: Callable[[History], Any]) -> None:
        self.function = function

    def on_epoch(self, history: History) -> bool | None:
        return self.function(history)


def _callback(given: Any) -> Callback:
    if isinstance(given, Callback):
        return given
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"fit: callbacks: got {given!r}, expected a Callback or a function of the history")
    return _Function(given)


# -- training ----------------------------------------------------------------------------------------------------------


class _Fit(NamedTuple):
    """A training that is under way."""

    model: Module
    loss: Loss
    source: _Arrays | _Batches
    held_out: _Arrays | _Batches | None
    metrics: Mapping[str, Metric]
    schedule: Schedule | Plateau
    history: History
    callbacks: Sequence[Callback]

    def run(self) -> None:
        started = time.monotonic()
        frozen = [m for m in self.model.modules() if not m.training] if self.model.training else []
        steppers = [c for c in self.callbacks if getattr(c.on_step, "__func__", None) is not Callback.on_step]
        try:
            self._call("on_start", self.history, self.callbacks)
            for epoch in range(1, self.history.epochs + 1):
                self.history.rows.append(self._epoch(epoch, started, frozen, steppers))
                self._call("on_epoch", self.history, self.callbacks)
        except StopTraining as stop:
            self.history.stopped = str(stop) or "by a callback"
        except KeyboardInterrupt:
            self.history.stopped = f"interrupted in epoch {len(self.history) + 1}"
        finally:
            self.model.zero_grad()
            self.model.eval()
            for callback in self.callbacks:
                callback.on_end(self.history)

    def _epoch(
        self, epoch: int, started: float, frozen: Sequence[Module], steppers: Sequence[Callback]
    ) -> dict[str, float]:
        """Train for an epoch and validate; returns its row."""
        total = 0.0
        samples = 0
        self._train_mode(frozen)
        for k, batch in enumerate(self.source, 1):
            rate = self.history.optimizer.param_groups[0]["lr"]
            value = self._step(batch, f"epoch {epoch}, step {k} (learning rate {rate:.2g})")
            total += value * batch.samples
            samples += batch.samples
            if steppers:
                step = Step(epoch, self.history.epochs, k, self.source.steps, batch.samples, value, rate)
                self._call("on_step", step, steppers)
                self._train_mode(frozen)
        row: dict[str, float] = {"epoch": epoch, "loss": total / samples}
        if self.held_out is not None:
            row |= self._validated(self.held_out)
        if isinstance(self.schedule, Plateau):
            self.schedule.step(row.get("val_loss", row["loss"]))
        return {**row, "lr": rate, "seconds": time.monotonic() - started}

    def _step(self, batch: _Batch, where: str) -> float:
        """One update; returns the loss. Raises TrainingError, the weights untouched, where numbers are not finite."""
        optimizer = self.history.optimizer
        loss = self._loss_of(batch)
        if not loss.requires_grad:
            raise ValueError("fit: loss: the result depends on no parameter that is trained")
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(f"fit: the loss became {value} in {where}; try a smaller one, or look at the data")
        self.model.zero_grad()
        loss.backward()
        norm = optimizer.step(scale=1.0)
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(f"fit: the gradient norm became {norm} in {where}; try a smaller one")
        if isinstance(self.schedule, Schedule):
            self.schedule.step()
        return value

    def _loss_of(self, batch: _Batch, prediction: Any = None) -> Tensor:
        loss = self.loss(self.model(*batch.inputs) if prediction is None else prediction, batch.targets)
        if not isinstance(loss, Tensor) or loss.size != 1:
            got = f"shape {loss.shape}" if isinstance(loss, Tensor) else kind_of(loss)
            raise ValueError(f"fit: loss: the result is {got}, expected a Tensor of one number (its mean, say)")
        return loss

    def _validated(self, source: _Arrays | _Batches) -> dict[str, float]:
        """The mean loss and the metrics of the validation data."""
        total = 0.0
        samples = 0
        predictions: list[Tensor] = []
        targets: list[Tensor] = []
        self.model.eval()
        with inference():
            for batch in source:
                prediction = self.model(*batch.inputs)
                total += self._loss_of(batch, prediction).item() * batch.samples
                samples += batch.samples
                if self.metrics:
                    predictions.append(prediction)
                    targets.append(batch.targets)
            row = {"val_loss": total / samples}
            if self.metrics:
                whole = ops.concat(predictions, 0), ops.concat(targets, 0)
                row |= {name: float(metric(*whole)) for name, metric in self.metrics.items()}
        return row

    def _train_mode(self, frozen: Sequence[Module]) -> None:
        self.model.train()
        for module in frozen:
            module.training = False

    def _call(self, method: str, argument: Any, callbacks: Sequence[Callback]) -> None:
        """Call callbacks; what they draw from the random stream does not count. Raises StopTraining if one says so."""
        with random.replay(random.state()):
            for callback in callbacks:
                if getattr(callback, method)(argument):
                    raise StopTraining
