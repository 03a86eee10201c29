"""A training run, from tiles to a run folder.

Mixed precision (`precision` other than float32, on CUDA) is about multiplying only: operands of convolutions are rounded to the named type
inside the kernels. Parameters (the master weights), activations, gradients and everything else are stored and added as float32, so memory
and the traffic of element-wise operators do not shrink.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autograd import random as tape_random
from engine.augmentation import Augmentation
from engine.batches import rare_tiles, stratified_batches
from engine.checkpoint import build_network, not_finite, save_checkpoint
from engine.config import Config, ConfigError, to_toml
from engine.data import CLASSES, DataError, Tiles, class_weights, clean, load, split
from engine.inference import Normalisation, evaluate_confusion, labels_of, predict_logits
from engine.metrics import Scores, bootstrap, scores
from engine.optimizer import AdamW
from engine.passes import GraphPasses, Passes
from engine.pictures import choose_rows, draw_curves, draw_predictions
from engine.progress import Reporter
from engine.recorded import RecordedPasses
from engine.scaling import LossScale
from engine.schedules import cosine_schedule
from engine.warm import warm
from kernels.core import device
from kernels.core.module import device_limits
from kernels.core.precision import use_precision
from layers import SegmentationLoss, measure


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and why."""


@dataclass(frozen=True)
class Prepared:
    """Cleaned and split data. notes: what was done to it, a line each."""

    train: Tiles
    val: Tiles
    test: Tiles | None
    notes: list[str]


def prepare(source: str, tiles: int, val_fraction: float, seed: int) -> Prepared:
    """Load, clean and split; DataError with one line when the source is bad."""
    data = load(source, seed=seed, count=tiles)
    if data.train.masks is None:
        raise DataError(f"--data {source}: its tiles have no masks")
    cleaned = clean(data.train)
    parts = split(cleaned.tiles, val_fraction, seed)
    notes = [*data.notes, *cleaned.reasons, parts.note]
    return Prepared(cleaned.tiles[parts.train], cleaned.tiles[parts.val], data.test, notes)


class Run:
    """One training run. `train()` does it all and returns the summary; the folder is complete whenever it returns."""

    def __init__(self, config: Config, out: Path, reporter: Reporter) -> None:
        self.config, self.out, self.report = config, out, reporter
        self.choice = device.choose(None if config.device == "auto" else config.device)
        reporter.note(str(self.choice))
        _check_device(config, self.choice)
        self.scale = LossScale() if config.precision == "float16" else None
        self.data = prepare(config.data, config.tiles, config.val_fraction, config.seed)
        for note in self.data.notes:
            reporter.note(note)
        self.normalisation = Normalisation.of(self.data.train.images)
        self.weights = class_weights(self.data.train.masks, config.class_weights, background=config.background != "mask")
        # uint8, copied to the device once; batches are cut out and augmented there
        self.tiles, self.held_out = (
            tuple(device.to_device(a, self.choice.name) for a in (part.images, part.masks)) for part in (self.data.train, self.data.val)
        )
        tape_random.seed(config.seed)
        self.net = build_network(config)
        self.size = measure(self.net, (1, *self.data.train.images.shape[1:], 1))
        reporter.note(f"network: {self.size}")
        reporter.note("class weights: " + ", ".join(f"{name} {w:.3g}" for name, w in zip(CLASSES, self.weights, strict=True)))
        self.loss = make_loss(config, self.weights)
        clip = config.clip or math.inf
        self.optimizer = AdamW(self.net, weight_decay=config.weight_decay, clip=clip, average=config.average)
        passes = Passes(self.net, self.loss, self.optimizer, self.choice.name)
        recorded = RecordedPasses(passes) if self.choice.name == device.CPU else passes
        self.passes = GraphPasses(passes) if config.cuda_graph else recorded
        self.augmentation = make_augmentation(config)
        if self.choice.name == device.CPU:
            warm([config], reporter.compiling)
        self.rng = np.random.Generator(np.random.Philox(config.seed))
        self.rare = rare_tiles(self.data.train.masks)
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.started = time.monotonic()
        self.trained_images, self.training_seconds = 0, 0.0
        self.norm = 0.0  # of the last step's gradient

    def train(self) -> dict[str, Any]:
        """Train, validating after every epoch; Ctrl-C ends the run cleanly. Returns what summary.json holds."""
        with use_precision(self.config.precision):
            return self._train()

    def _train(self) -> dict[str, Any]:
        config, interrupted = self.config, False
        write_text(self.out / "config.toml", to_toml(config))
        (self.out / "metrics.jsonl").write_text("")
        try:
            for epoch in range(1, config.epochs + 1):
                self._epoch(epoch)
                if config.patience and self.best and epoch - self.best["epoch"] >= config.patience:
                    self.report.note(f"stopped early: no better val mIoU for {config.patience} epochs")
                    break
        except KeyboardInterrupt:
            interrupted = True
            self.report.note("interrupted: writing what there is")
            if not self.rows:
                self._validate(0, {}, 0.0)
        return self._finish(interrupted)

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> None:
        config, train = self.config, self.data.train
        batches = list(stratified_batches(len(train), self.rare, config.batch, config.rare_share, self.rng))
        augment = self.augmentation
        if epoch > config.epochs * (1 - config.flips_only):
            augment = augment.flips_only()
        total = len(batches) * config.epochs
        sums: dict[str, float] = {}
        self.net.train()
        start = time.monotonic()
        for k, index in enumerate(batches, 1):
            step = (epoch - 1) * len(batches) + k - 1
            rate = cosine_schedule(step, total, max(1, round(config.warmup * total)), config.learning_rate, config.final_rate)
            terms = self._step(index, augment, rate)
            for name, value in (("loss", terms["loss"]), ("gradient norm", self.norm)):
                if not math.isfinite(value):
                    raise TrainingError(f"the {name} became {value} in epoch {epoch}, step {k} (learning rate {rate:.2g}); try a smaller one")
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value * len(index)
            self.trained_images += len(index)
            elapsed = time.monotonic() - start
            speed = sum(len(b) for b in batches[:k]) / elapsed
            remaining = (self.training_seconds + elapsed) / (step + 1) * (total - step - 1)
            self.report.step(epoch, config.epochs, k, len(batches), terms, speed, remaining)
        seconds = time.monotonic() - start
        self.training_seconds += seconds
        count = sum(len(b) for b in batches)
        self._validate(epoch, {name: value / count for name, value in sums.items()}, rate, count / seconds)

    def _step(self, index: np.ndarray, augment: Augmentation, rate: float) -> dict[str, float]:
        """One update from the tiles at `index`; returns the loss and its terms."""
        images, masks = self.tiles
        rows = device.to_device(index, self.choice.name)
        images, masks = augment(images[rows].astype(np.float32) * np.float32(1 / 255), masks[rows], self.rng)
        scale = None if self.scale is None else self.scale.value
        terms = self.passes(self.normalisation(images), masks, scale)
        norm = self.optimizer.step(rate, scale, gathered=True)
        if self.scale is not None and norm is not None:
            self.norm = norm if self.scale.update(norm) or scale == 1 else 0.0  # a step that was skipped has done no harm
            return dict(zip(terms, device.fetch(list(terms.values())), strict=True))
        # In one dtype with the terms, so that all come by one copy. A norm beyond 2^64, infinite then, has diverged as well.
        *values, squared = device.fetch([*terms.values(), self.optimizer.squared.astype(terms["loss"].dtype)])
        self.norm = math.sqrt(squared) if squared >= 0 else math.nan
        return dict(zip(terms, values, strict=True))

    def _validate(self, epoch: int, means: dict[str, float], rate: float, speed: float = 0.0) -> None:
        config = self.config
        with self.optimizer.averaged():
            if bad := not_finite({name: tensor.data for name, tensor in self.net.named_tensors()}):
                raise TrainingError(f"the weights are not finite after epoch {epoch} ({bad}); try a smaller learning rate")
            self.per_image = evaluate_confusion(self.net, *self.held_out, self.normalisation, config.background)
            result = scores(self.per_image.sum(0))
            row = {
                "epoch": epoch,
                "train_loss": means.get("loss", math.nan),
                "terms": {k: v for k, v in means.items() if k in config.loss_terms()},
                "val_miou_fg": result.miou_fg,
                "val_miou_keras": result.miou_keras,
                "iou": list(result.iou),
                "learning_rate": rate,
                "images_per_second": speed,
            }
            if self.scale is not None:
                row |= {"loss_scale": self.scale.value, "skipped_steps": self.scale.skipped}
            self.rows.append(row)
            best = self.best is None or result.miou_fg > self.best["val_miou_fg"]
            if best:
                self.best = self._record(epoch, result)
                save_checkpoint(self.out / "best.safetensors", self.net, config, self.normalisation, self.best)
            save_checkpoint(self.out / "last.safetensors", self.net, config, self.normalisation, self._record(epoch, result))
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(_finite(row)) + "\n")
        self.report.epoch(row, config.epochs, time.monotonic() - self.started, best)

    def _record(self, epoch: int, result: Scores) -> dict[str, Any]:
        groups = self.data.val.groups
        interval = bootstrap(self.per_image, groups)
        return {
            "epoch": epoch,
            "val_miou_fg": result.miou_fg,
            "val_miou_keras": result.miou_keras,
            "val_miou_fg_interval": list(interval),
            "iou": dict(zip(CLASSES[1:], result.iou, strict=True)),
            "accuracy": result.accuracy,
        }

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self, interrupted: bool) -> dict[str, Any]:
        from engine.checkpoint import load_checkpoint

        best = load_checkpoint(self.out / "best.safetensors")
        val = self.data.val
        rows = choose_rows(val.masks)
        labels = labels_of(predict_logits(best.net, val.images[rows], self.normalisation), self.config.background)
        title = f"validation tiles, epoch {best.record['epoch']}: mIoU {best.record['val_miou_fg']:.3f} (fg)"
        draw_predictions(self.out / "predictions.png", val.images[rows], val.masks[rows], labels, CLASSES, title)
        draw_curves(self.out / "curves.png", self.rows, CLASSES)
        summary = {
            **{k: best.record[k] for k in ("val_miou_fg", "val_miou_keras", "val_miou_fg_interval", "iou", "accuracy")},
            "best_epoch": best.record["epoch"],
            "epochs": self.rows[-1]["epoch"],
            "interrupted": interrupted,
            "seconds": time.monotonic() - self.started,
            "images_per_second": self.trained_images / self.training_seconds if self.training_seconds else 0.0,
            "parameters": self.size.parameters,
            "flops_per_image": self.size.flops,
            "train_tiles": len(self.data.train),
            "val_tiles": len(val),
            "device": str(self.choice),
            "notes": self.data.notes,
        }
        write_text(self.out / "summary.json", json.dumps(_finite(summary), indent=2) + "\n")
        return summary


def make_augmentation(config: Config) -> Augmentation:
    """The augmentation that the settings describe."""
    return Augmentation(
        config.flip_horizontal,
        config.flip_vertical,
        config.affine,
        config.rotate,
        config.scale,
        config.shift,
        config.photometric,
        config.contrast,
        config.brightness,
        config.gamma_range,
        outside=0 if config.background == "mask" else None,
    )


_MIXED = {"iou": "mask", "margin": "mask"}  # every other term trains class 0


def make_loss(config: Config, weights: np.ndarray) -> SegmentationLoss:
    """The loss that the settings describe, with these class weights."""
    return SegmentationLoss(
        config.loss_terms(),
        weights,
        background=_MIXED if config.background == "mixed" else config.background,
        gamma=config.gamma,
        smooth=config.smooth,
        label_smoothing=config.label_smoothing,
    )


def _check_device(config: Config, choice: device.Choice) -> None:
    """ConfigError when the device cannot do what is asked for."""
    if choice.name != device.CUDA:
        if config.precision != "float32":
            raise ConfigError(f"precision: got {config.precision!r}, expected 'float32' on the {choice.name} ({choice.reason})")
        if config.cuda_graph:
            raise ConfigError(f"cuda_graph: needs CUDA, but the device is the {choice.name} ({choice.reason})")
    elif config.precision != "float32" and (capability := device_limits()[2]) < 80:
        raise ConfigError(f"precision: got {config.precision!r}, expected 'float32' below compute capability 8.0 (this device has {capability / 10})")


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _finite(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
