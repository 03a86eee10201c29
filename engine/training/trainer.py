"""A training run, from tiles to a run folder.

Mixed precision (`precision` other than float32, on CUDA) is about multiplying only: operands of convolutions are
rounded to the named type inside the kernels. Parameters (the master weights), activations, gradients and everything
else are stored and added as float32, so memory and the traffic of element-wise operators do not shrink.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autograd import random as tape_random
from engine.build import Form, build_network, make_augmentation, make_loss
from engine.config import Config, ConfigError, to_toml
from engine.data import class_weights
from engine.data.preparation import Prepared, prepare
from engine.data.stored import Stored
from engine.errors import TrainingError
from engine.files import write_json, write_text
from engine.graphs.cpu_step import CapturedPasses
from engine.graphs.cuda_graph import CudaGraphPasses
from engine.inference import WHOLE, Normalisation, evaluate_confusion
from engine.precompile import precompile
from engine.profile.steps import profile_run
from engine.report.record import Record
from engine.signals import Stop, requests
from engine.training.augmentation import Augmentation
from engine.training.batches import BatchSource, rare_tiles, stratified_batches
from engine.training.checkpoint import not_finite, save_checkpoint, take_weights
from engine.training.loss_scaling import LossScale
from engine.training.metrics import Scores, bootstrap, scores, tile_scores
from engine.training.mixing import CopyPaste, Mixing, patches_of
from engine.training.optimizer import AdamW
from engine.training.progress import Reporter, loss_line
from engine.training.reporting import draw, summary_of, write_rows
from engine.training.run_folder import BEST, LAST, SETTINGS, SUMMARY, clear
from engine.training.run_state import (
    RunState,
    StateError,
    changes,
    generator_state,
    put_together,
    save_state,
    set_generator_state,
    surroundings,
    take_apart,
)
from engine.training.schedules import cosine_schedule
from engine.training.step import Passes, Terms
from kernels.core import device
from kernels.core.cpu.cores import available_memory
from kernels.core.cuda.module import device_limits
from kernels.core.precision import use_precision
from kernels.core.tracing import phase
from layers import measure

NORM = "gradient_norm"  # its key in a row of metrics.jsonl


@dataclass
class _Here:
    """Where a run is within an epoch: steps done, their images, seconds and sums of losses and gradient norms; the
    largest gradient norm, and the norms by part of the network in the epoch's last step; the generator's state before
    the epoch's batches.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    largest_norm: float = 0.0
    norms: dict[str, float] = field(default_factory=dict)
    generator: dict[str, Any] | None = None

    @property
    def speed(self) -> float:
        """Images per second."""
        return self.images / max(self.seconds, 1e-9)

    def add(self, terms: dict[str, float], norm: float, images: int) -> None:
        """Count a step: its losses, its gradient norm and its images."""
        for name, value in {**terms, NORM: norm}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * images
        self.largest_norm = max(self.largest_norm, norm)
        self.steps = self.steps + 1
        self.images = self.images + images

    @property
    def means(self) -> dict[str, float]:
        """Losses and gradient norm, averaged over the images."""
        return {name: value / self.images for name, value in self.sums.items()}


class Run:
    """One training run. `train()` does it all and returns what summary.json holds.

    config: the settings.  out: the run's folder.  reporter: prints progress and notes.
    state: go on from there; `out` is then the folder that it lies in, and the result is the one of a run without the
    break, to the bit. Raises StateError when anything that decides the bits has changed, unless allow_changes.
    start: a checkpoint to take the first weights from.  save_every: minutes between states within an epoch; 0 keeps one
    per epoch.
    memory: MiB that a folder's decoded tiles may take in memory (see engine.data.load).  profile: write a profile of
    some steps before the first one.
    Raises ConfigError for settings that the device or its memory cannot serve, DataError for data that cannot be read;
    `train` raises TrainingError where numbers are no longer finite.
    """

    def __init__(
        self,
        config: Config,
        out: Path,
        reporter: Reporter,
        state: RunState | None = None,
        start: Path | None = None,
        save_every: float = 10.0,
        allow_changes: bool = False,
        memory: int = 0,
        profile: bool = False,
    ) -> None:
        self.config, self.out, self.report, self.save_every = config, out, reporter, save_every
        self.profile = profile
        self.choice = device.choose(None if config.device == "auto" else config.device)
        reporter.note(str(self.choice))
        _check_device(config, self.choice)
        self.scale = LossScale() if config.precision == "float16" else None
        self.data = prepare(config, memory=memory)
        self.classes = self.data.classes
        train = self.data.train
        size = train.size if config.crop == WHOLE else config.crop
        self.form = Form(self.classes, train.channels, size, train.images.dtype.name, self.data.absent)
        reporter.name(self.classes.scored_names)
        self.notes = list(self.data.notes)
        for note in self.notes:
            reporter.note(note)
        self.surroundings = surroundings(self.choice, self.data.classes, train, self.data.val)
        if state is not None:
            self._compare(state, allow_changes)
        self.normalisation = Normalisation.of(train.images, train.sizes)
        weighs = self.classes.weighs_background(config.background)
        self.weights = class_weights(
            train.labels(), config.class_weights, weighs, config.weight_cap or None, self.classes, train.counts
        )
        self.ignored = _ignored(self.data)
        self.source = BatchSource(train, config.crop, self.choice.name)
        self.upcoming: np.ndarray | None = None  # the batch after the one that is computed
        held_out = self.data.val.images, self.data.val.labels()
        self.held_out = (
            held_out
            if isinstance(held_out[0], Stored)
            else tuple(device.to_device(a, self.choice.name) for a in held_out)
        )
        tape_random.seed(config.seed)
        self._build(start)
        self.rng = np.random.Generator(np.random.Philox(config.seed))
        self.rare, rare_labels = rare_tiles(train.labels(), self.classes, train.counts)
        self.augmentation = self._mixing(rare_labels)
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.best_counts: np.ndarray | None = None  # `per_image` of that epoch, where this process has validated it
        self.stop = Stop()
        self.serial = 0
        self.begun = state is not None
        self.epoch = 0
        self.here = _Here()
        self.started = self.saved = time.monotonic()
        self.trained_images = 0
        self.training_seconds = 0.0
        self.norm = 0.0  # of the last step's gradient
        if state is not None:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError) as error:  # after changes that were allowed
                raise StateError(f"--resume {out}: its state does not fit this version ({error})") from None

    def _build(self, start: Path | None) -> None:
        """The network, and what computes with it."""
        config = self.config
        reporter = self.report
        self.net = build_network(config, self.form)
        if start is not None:
            self.notes.append(take_weights(self.net, start))
            reporter.note(self.notes[-1])
        self.size = measure(self.net, (1, *self.form.size, self.form.channels))
        reporter.note(f"network: {self.size}")
        if self.choice.name == device.CPU:
            _check_memory(min(config.batch, len(self.data.train)), self.size.activations)
        weights = [f"{name} {w:.3g}" for name, w in zip(self.classes.names, self.weights, strict=True)]
        reporter.note(
            "class weights: "
            + ", ".join(weights[:_SHOWN])
            + (f", ... ({len(weights)} classes)" if len(weights) > _SHOWN else "")
        )
        reporter.note(loss_line(config.loss_terms()))
        self._equip()
        if self.choice.name == device.CPU:
            precompile([config], reporter.compiling, self.form)

    def _equip(self, captured: bool = True) -> None:
        """What trains the network. captured: capture steps where that is possible."""
        config = self.config
        self.loss = make_loss(config, self.weights, self.classes, self.ignored)
        clip = config.clip or math.inf
        self.optimizer = AdamW(self.net, weight_decay=config.weight_decay, clip=clip, average=config.average)
        passes = Passes(self.net, self.loss, self.optimizer, self.choice.name)
        self.passes: Callable[..., Terms] = passes
        if captured and self.captures:
            self.passes = CudaGraphPasses(passes) if config.cuda_graph else CapturedPasses(passes)

    def _mixing(self, rare: list[int]) -> Mixing:
        """The augmentation, and what it mixes. rare: labels of the classes whose components are pasted."""
        config = self.config
        paste = None
        alone = make_augmentation(config, self.classes)
        if config.paste:
            tiles = self.data.train[self.rare]
            patches = patches_of(
                (self.normalisation.unit(image) for image in tiles.images), tiles.labels(), rare, self.form.size
            )
            paste = CopyPaste(
                patches, config.paste, self.ignored if alone.outside is None else alone.outside, self.classes.ignored
            )
            names = ", ".join(self.classes.names[label] for label in rare) or "no class is rare"
            self.report.note(f"copy-paste: {len(patches)} components ({names})")
        return Mixing(alone, paste, config.cutmix)

    def train(self) -> dict[str, Any] | None:
        """Train, validating after every epoch. Returns what summary.json holds; None when no epoch was finished.

        The first Ctrl-C or SIGTERM is obeyed after the current step: the state is saved, `stop.signal` is its number,
        and SIGINT gets the pictures of what there is. A second one ends the process at once.
        """
        with use_precision(self.config.precision):
            with requests() as self.stop:
                self._train()
            return self._finish()

    def _train(self) -> None:
        clear(self.out, everything=not self.begun)
        if not self.begun:
            self._save()
        elif not self.ended:
            self.report.note(f"resumed in epoch {self.epoch + 1}, after step {self.here.steps}")
        write_text(self.out / SETTINGS, to_toml(self.config))
        write_rows(self.out, self.rows)
        if self.profile and not self.ended:
            profile_run(self)
        while not self.ended and not self.stop.signal:
            self._epoch(self.epoch + 1)
            self._save()
        if self.stop.signal:
            self.report.note(f"interrupted by {self.stop.name}: the state is saved")
        elif self.epoch < self.config.epochs:
            self.report.note(f"stopped early: no better val mIoU for {self.config.patience} epochs")

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or the last `patience` of them brought nothing better."""
        stale = self.best is not None and 0 < self.config.patience <= self.epoch - self.best["epoch"]
        return self.epoch >= self.config.epochs or stale

    # -- steps for their own sake -------------------------------------------------------------------------------------

    @property
    def captures(self) -> bool:
        """Whether steps are captured and replayed."""
        return self.choice.name == device.CPU or self.config.cuda_graph

    def rehearsal(self, captured: bool) -> Run:
        """A run with the weights and the generator of this one, of which it changes nothing: `steps` may be taken from
        it. (They draw from the process's random stream, which the caller replays.)

        captured: capture its steps as this run does, else compute them operator by operator.
        """
        other = copy.copy(self)
        other.net = build_network(self.config, self.form)
        other.net.load_state_dict(self.net.state_dict())
        other.rng, other.scale, other.here = copy.deepcopy(self.rng), copy.deepcopy(self.scale), _Here()
        other._equip(captured)
        return other

    def steps(self) -> Iterator[dict[str, float]]:
        """Steps with whole batches at the first step's learning rate, without end, validation and states; each gives
        the loss and its terms.
        """
        self.net.train()
        while True:
            self.here.generator = None  # other batches than before
            batches = [index for index in self._batches() if len(index) == min(self.config.batch, len(self.data.train))]
            rate = self._rate(0, len(batches) * self.config.epochs)
            for index, self.upcoming in zip(batches, [*batches[1:], None], strict=True):
                yield self._step(index, self.augmentation, rate)

    # -- states -------------------------------------------------------------------------------------------------------

    def _compare(self, state: RunState, allow_changes: bool) -> None:
        """Raise StateError when the run would not go on bit for bit; a note when it may do so."""
        changed = changes(self.surroundings, state.surroundings)
        if changed and not allow_changes:
            raise StateError(
                f"--resume {self.out}: {'; '.join(changed)}: the run would not go on bit for bit (--allow-changes "
                "lets it go on)"
            )
        if changed:
            self.notes.append(f"resumed with changes, so no longer bit for bit: {'; '.join(changed)}")
            self.report.note(self.notes[-1])

    def _save(self) -> None:
        """Write everything that the run needs to go on from here. Raises TrainingError for weights that training has
        made infinite or NaN.
        """
        if self.serial and (bad := not_finite({name: tensor.data for name, tensor in self.net.named_tensors()})):
            raise TrainingError(f"the weights are not finite ({bad}); try a smaller learning rate")
        arrays: dict[str, np.ndarray] = {}
        progress = {
            "net": take_apart(self.net.state_dict(), "net", arrays),
            "optimizer": take_apart(self.optimizer.state_dict(), "optimizer", arrays),
            "tape_random": list(tape_random.state()),
            "generator": generator_state(self.rng),
            "loss_scale": None if self.scale is None else [self.scale.value, self.scale.good, self.scale.skipped],
            "epoch": self.epoch,
            "ended": self.ended,
            "here": asdict(self.here),
            "rows": self.rows,
            "best": self.best,
            "notes": self.notes,
            "seconds": time.monotonic() - self.started,
            "trained_images": self.trained_images,
            "training_seconds": self.training_seconds,
        }
        save_state(self.out, RunState(self.config, self.surroundings, progress, arrays, self.serial))
        self.serial = self.serial + 1
        self.saved = time.monotonic()

    def _restore(self, state: RunState) -> None:
        """Restore the run to where it was when it saved the state."""
        progress = state.progress
        self.net.load_state_dict(put_together(progress["net"], state.arrays))
        self.optimizer.load_state_dict(put_together(progress["optimizer"], state.arrays))
        tape_random.set_state(progress["tape_random"])
        set_generator_state(self.rng, progress["generator"])
        if self.scale is not None:
            self.scale.value, self.scale.good, self.scale.skipped = progress["loss_scale"]
        self.epoch = progress["epoch"]
        self.here = _Here(**progress["here"])
        self.serial = state.serial + 1
        self.rows, self.best = progress["rows"], progress["best"]
        self.notes = progress["notes"] + [note for note in self.notes if note not in progress["notes"]]
        self.started -= progress["seconds"]
        self.trained_images, self.training_seconds = progress["trained_images"], progress["training_seconds"]

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _batches(self) -> list[np.ndarray]:
        """The batches of the current epoch; in a resumed one they are drawn once more,
        and the generator is put back.
        """
        after = None
        if self.here.generator is None:
            self.here.generator = generator_state(self.rng)
        else:
            after = generator_state(self.rng)
            set_generator_state(self.rng, self.here.generator)
        batches = list(
            stratified_batches(len(self.data.train), self.rare, self.config.batch, self.config.rare_share, self.rng)
        )
        if after is not None:
            set_generator_state(self.rng, after)
        return batches

    def _epoch(self, epoch: int) -> None:
        """Train for an epoch, or for the rest of one, and validate. Returns early when a stop was requested."""
        config = self.config
        here = self.here
        batches = self._batches()
        augment: Mixing | Augmentation = self.augmentation
        if epoch > config.epochs * (1 - config.flips_only):
            augment = augment.flips_only()
        total = len(batches) * config.epochs
        self.net.train()
        rate = self._rate((epoch - 1) * len(batches) + here.steps - 1, total)
        for k in range(here.steps, len(batches)):
            start = time.monotonic()
            step = (epoch - 1) * len(batches) + k
            index = batches[k]
            rate = self._rate(step, total)
            self.upcoming = batches[k + 1] if k + 1 < len(batches) else None
            terms = self._step(index, augment, rate)
            for name, value in (("loss", terms["loss"]), ("gradient norm", self.norm)):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the {name} became {value} in epoch {epoch}, step {k + 1} (learning rate {rate:.2g}); try a "
                        "smaller one"
                    )
            here.add(terms, self.norm, len(index))
            if here.steps == len(batches):
                here.norms = self._norms()
            here.seconds = here.seconds + time.monotonic() - start
            remaining = (self.training_seconds + here.seconds) / (step + 1) * (total - step - 1)
            self.report.step(epoch, config.epochs, k + 1, len(batches), terms, here.speed, remaining)
            if self.stop.signal:
                return
            if self.save_every and time.monotonic() - self.saved >= 60 * self.save_every:
                self._save()
        self.trained_images = self.trained_images + here.images
        self.training_seconds = self.training_seconds + here.seconds
        self._validate(epoch, epoch * len(batches), rate)
        self.epoch = epoch
        self.here = _Here()

    def _rate(self, step: int, total: int) -> float:
        config = self.config
        return cosine_schedule(
            step, total, max(1, round(config.warmup * total)), config.learning_rate, config.final_rate
        )

    def _batch(self, index: np.ndarray, augment: Mixing | Augmentation) -> tuple[device.Array, device.Array]:
        """The augmented and standardised images and the labels of the tiles at `index`; the next batch is started."""
        images, masks = self.source.take(index, self.rng)
        images, masks = augment(self.normalisation.unit(images), masks, self.rng)
        if self.upcoming is not None:
            self.source.ahead(self.upcoming, self.rng)  # while this batch is computed
        return self.normalisation(images), masks

    def _step(self, index: np.ndarray, augment: Mixing | Augmentation, rate: float) -> dict[str, float]:
        """One update from the tiles at `index`; returns the loss and its terms."""
        with phase("batch"):
            images, masks = self._batch(index, augment)
        scale = None if self.scale is None else self.scale.value
        terms = self.passes(images, masks, scale)
        with phase("optimizer"):
            norm = self.optimizer.step(rate, scale, gathered=True)
        if self.scale is not None and norm is not None:
            # a step that was skipped has done no harm
            self.norm = norm if self.scale.update(norm) or scale == 1 else 0.0
            return dict(zip(terms, device.fetch(list(terms.values())), strict=True))
        # In one dtype with the terms, so that all come by one copy. A norm beyond 2^64, infinite then, has diverged as
        # well.
        *values, squared = device.fetch([*terms.values(), self.optimizer.squared.astype(terms["loss"].dtype)])
        self.norm = math.sqrt(squared) if squared >= 0 else math.nan
        return dict(zip(terms, values, strict=True))

    def _norms(self) -> dict[str, float]:
        """The norm of the last step's gradient by part of the network ('encoders.0', ..., 'head'), before clipping."""
        optimizer = self.optimizer
        scale = 1.0 if self.scale is None else optimizer.scale
        views = optimizer.flat.views(device.to_numpy(optimizer.gradient))
        part_of = {id(tensor): part_of_network(name) for name, tensor in self.net.named_parameters()}
        squares: dict[str, float] = {}
        for tensor, view in zip(optimizer.flat.tensors, views, strict=True):
            part = part_of[id(tensor)]
            squares[part] = squares.get(part, 0.0) + float((view.astype(np.float64) ** 2).sum())
        return {part: math.sqrt(square) / scale for part, square in squares.items()}

    def _validate(self, epoch: int, step: int, rate: float) -> None:
        """Measure the averaged weights after an epoch, `step` steps into the run, and write what came of it."""
        config = self.config
        here = self.here
        with self.optimizer.averaged():
            if bad := not_finite({name: tensor.data for name, tensor in self.net.named_tensors()}):
                raise TrainingError(
                    f"the weights are not finite after epoch {epoch} ({bad}); try a smaller learning rate"
                )
            self.per_image = evaluate_confusion(
                self.net,
                *self.held_out,
                self.normalisation,
                self.classes.barred(config.background, self.data.absent),
                crop=self.form.size,
                ignored=self.ignored,
            )
            result = scores(self.per_image.sum(0), self.classes, self.data.absent)
            means = here.means
            row = {
                "epoch": epoch,
                "step": step,
                "train_loss": means.get("loss", math.nan),
                "terms": {k: v for k, v in means.items() if k in config.loss_terms()},
                NORM: means.get(NORM),
                "largest_gradient_norm": here.largest_norm,
                "gradient_norms": here.norms,
                "val_miou_fg": result.miou_fg,
                "val_miou_keras": result.miou_keras,
                "iou": list(result.iou),
                "learning_rate": rate,
                "images_per_second": here.speed,
                "training_seconds": here.seconds,
                "seconds": time.monotonic() - self.started,
            }
            if self.scale is not None:
                row |= {"loss_scale": self.scale.value, "skipped_steps": self.scale.skipped}
            self.rows.append(row)
            record = self._record(epoch, result)
            best = self.best is None or result.miou_fg > self.best["val_miou_fg"]
            if best:
                self.best = record
                self.best_counts = self.per_image
                save_checkpoint(self.out / BEST, self.net, config, self.normalisation, record, self.form)
            save_checkpoint(self.out / LAST, self.net, config, self.normalisation, record, self.form)
        write_rows(self.out, self.rows)
        self.report.epoch(row, config.epochs, row["seconds"], best)

    def _record(self, epoch: int, result: Scores) -> dict[str, Any]:
        interval = bootstrap(self.per_image, self.data.val.units, classes=self.classes, absent=self.data.absent)
        return {
            "epoch": epoch,
            "val_miou_fg": result.miou_fg,
            "val_miou_keras": result.miou_keras,
            "val_miou_fg_interval": list(interval),
            "iou": dict(zip(self.classes.scored_names, result.iou, strict=True)),
            "accuracy": result.accuracy,
        }

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any] | None:
        """Write the summary, then the pictures and the page: an interrupt meanwhile leaves the summary."""
        if self.best is None:
            return None
        facts = {
            "seconds": time.monotonic() - self.started,
            "images_per_second": self.trained_images / self.training_seconds if self.training_seconds else 0.0,
            "parameters": self.size.parameters,
            "flops_per_image": self.size.flops,
            "train_tiles": len(self.data.train),
            "val_tiles": len(self.data.val),
            "device": str(self.choice),
            "interval_over": self.data.val.unit,
            "notes": self.notes,
        }
        summary = summary_of(self.best, self.rows, not self.ended, facts)
        write_json(self.out / SUMMARY, summary)
        if self.stop.signal != signal.SIGTERM:  # SIGTERM asks for a quick end
            name = self.out.resolve().name
            versions = self.surroundings
            record = Record(name, self.out, self.config, self.classes, self.rows, summary, versions=versions)
            val = self.data.val
            known = self.best_counts
            draw(record, val, None if known is None else tile_scores(known, self.classes, self.data.absent, val.units))
        return summary


def part_of_network(name: str) -> str:
    """The part of the network that a parameter belongs to: 'encoders.0.steps.1.w' -> 'encoders.0', 'head.weight' ->
    'head'.
    """
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if rest and rest[0].isdigit() else first


_SHOWN = 24  # classes whose weights are printed


def _check_memory(batch: int, activations: int) -> None:
    """Raise ConfigError for a batch whose activations, bytes per image, do not fit: the system would kill the process
    without a message.

    A step takes half as much again (measured at widths 8 to 32); the check requires a quarter more, so that it refuses
    nothing that fits.
    """
    each = 1.25 * activations
    room = available_memory()
    if batch * each > room:
        needed = f"{batch * each / 2**20:,.0f} MiB"
        most = int(room / each)
        raise ConfigError(
            f"batch: a training step of {batch} tiles takes at least {needed} with this network, but {room >> 20:,} "
            "MiB are available:"
            f" expected at most {most}"
        )


def _ignored(data: Prepared) -> int | None:
    """The label of pixels that count nowhere, where any tile has some."""
    return next((label for part in (data.train, data.val) if (label := part.ignored) is not None), None)


def _check_device(config: Config, choice: device.Choice) -> None:
    """Raise ConfigError when the device cannot do what the settings ask for."""
    if choice.name != device.CUDA:
        if config.precision != "float32":
            raise ConfigError(
                f"precision: got {config.precision!r}, expected 'float32' on the {choice.name} ({choice.reason})"
            )
        if config.cuda_graph:
            raise ConfigError(f"cuda_graph: needs CUDA, but the device is the {choice.name} ({choice.reason})")
    elif config.precision != "float32" and (capability := device_limits()[2]) < 80:
        raise ConfigError(
            f"precision: got {config.precision!r}, expected 'float32' below compute capability 8.0 (this device has "
            f"{capability / 10})"
        )
