"""One trained network, or several that are asked together: labels and probabilities of images of any size.

    ensemble = load_ensemble([Path("RUN"), Path("OTHER/best.safetensors")])
    labels, probabilities = ensemble.predict(image)

The probabilities of an ensemble are the mean of its members', each taken after its own windows and flips have been
averaged; the label is the most probable class. A single network's label is the class of its largest logit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autograd import inference
from engine.build import Form
from engine.inference import forward_flips, labels_of, logit_batches
from engine.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from engine.windows import Strips, windows_over
from kernels.core.device import device_of, to_device, to_numpy

PIXELS = 1 << 17  # of a batch of `strips`, unless something else is said: 16 tiles of 64 x 128


class Strip(NamedTuple):
    """Rows of an image that are finished.

    number: of the image, counted from 0.   image: (H, W) or (H, W, C), as it is stored.   top: the first row.
    labels: uint8 (h, W).   probabilities: float32 (h, W, classes).
    """

    number: int
    image: np.ndarray
    top: int
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def rows(self) -> slice:
        """Which rows of the image they are."""
        return slice(self.top, self.top + len(self.labels))

    @property
    def is_last(self) -> bool:
        """Whether the image ends here."""
        return self.rows.stop == len(self.image)


class _Open(NamedTuple):
    """An image whose windows are on their way."""

    number: int
    image: np.ndarray
    strips: Strips


@dataclass(frozen=True)
class Ensemble:
    """Networks of one form, in evaluation mode; see `load_ensemble`."""

    members: tuple[Checkpoint, ...]

    @property
    def form(self) -> Form:
        """Classes, channels, size and dtype, which all members share; absent: what no member has seen in training."""
        first = self.members[0].form
        return replace(first, absent=tuple(c for c in first.absent if all(c in m.form.absent for m in self.members)))

    def to(self, device: str) -> Ensemble:
        """Move the networks to 'cpu' or 'cuda'."""
        for member in self.members:
            member.net.to(device)
        return self

    def batch(self, given: int = 0) -> int:
        """The windows of a batch of `strips`: as many as given, or, for 0, as many as have PIXELS pixels together, at
        least 1.
        """
        h, w = self.form.size
        return given or max(1, PIXELS // (h * w))

    def decide(self, logits: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Labels uint8 (...) and probabilities float32 (..., C) from every member's logits (..., C), which are
        overwritten.
        """
        if len(self.members) == 1:
            member = self.members[0]
            labels = labels_of(logits[0], member.barred)
            return labels, member.probabilities_of(logits[0])
        total = sum(member.probabilities_of(given) for member, given in zip(self.members, logits, strict=True))
        probabilities = total / np.float32(len(self.members))
        return probabilities.argmax(-1).astype(np.uint8), probabilities

    def batches(
        self, images: np.ndarray, batch: int = 32, flips: bool = False, views: int = 0
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(rows, labels (n, H, W), probabilities (n, H, W, C)) of tiles as they are stored, batch by batch.

        batch, flips, views: see `predict_logits`. The bits are those of a validation, with the same batch.
        """
        runs = [logit_batches(m.net, images, m.normalisation, batch, flips, m.window, views) for m in self.members]
        for parts in zip(*runs, strict=True):
            yield parts[0][0], *self.decide([to_numpy(logits) for _, logits in parts])

    def strips(self, images: Iterable[np.ndarray], batch: int = 0, flips: bool = False) -> Iterator[Strip]:
        """Labels and probabilities of images of any sizes, strip after strip and image after image.

        images: (H, W) or (H, W, C), as they are stored; the next one is taken when the windows of those before it do
            not fill a batch. Neither logits nor probabilities of a whole image are in memory, only those of one row of
            windows. Raises DataError for another form.
        batch: windows at a time; 0: see `batch`. The last batch is filled up: a convolution's algorithm, and so the
            last bits of its result, may depend on how many images there are, and thus nothing depends on which images
            share a batch.
        """
        count = self.batch(batch)
        waiting: list[tuple[_Open, np.ndarray]] = []
        for number, image in enumerate(images):
            self.form.check(1 if image.ndim == 2 else image.shape[2], image.dtype, f"image {number}")
            windows = windows_over(image.shape[:2], self.form.size)
            if len(windows) > count:  # a large image is alone in memory
                yield from self._finished(waiting, count, flips)
                waiting = []
            entry = _Open(number, image, Strips(windows))
            for window in windows.cut(image):
                waiting.append((entry, window))
                if len(waiting) == count:
                    yield from self._finished(waiting, count, flips)
                    waiting = []
            del image, entry, window  # before the next image is read
        yield from self._finished(waiting, count, flips)

    def _finished(self, waiting: Sequence[tuple[_Open, np.ndarray]], count: int, flips: bool) -> Iterator[Strip]:
        """The strips that these windows complete, up to `count`, for which others are made up."""
        if not waiting:
            return
        windows = [window for _, window in waiting]
        logits = self._logits(np.stack(windows + [windows[-1]] * (count - len(windows))), flips)
        for k, (entry, _) in enumerate(waiting):
            done = entry.strips.add(logits[k])
            if done is not None:
                top, rows = done
                labels, probabilities = self.decide([np.ascontiguousarray(rows[:, :, m]) for m in range(rows.shape[2])])
                yield Strip(entry.number, entry.image, top, labels, probabilities)

    def _logits(self, windows: np.ndarray, flips: bool) -> np.ndarray:
        """float32 (n, h, w, members, C) of windows as they are stored."""
        results = []
        with inference():  # weights hold still for all flips
            for member in self.members:
                given = to_device(windows, device_of(member.net.parameters()[0].data))
                x = member.normalisation(member.normalisation.unit(given))
                results.append(to_numpy(forward_flips(member.net, x, flips)))
        return np.stack(results, 3)

    def predict(self, image: np.ndarray, batch: int = 0, flips: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Labels uint8 (H, W) and probabilities float32 (H, W, C) of one image (H, W) or (H, W, C) of any size."""
        parts = list(self.strips([image], batch, flips))
        return np.concatenate([p.labels for p in parts]), np.concatenate([p.probabilities for p in parts])


def load_ensemble(paths: Sequence[Path]) -> Ensemble:
    """The networks of checkpoints or run folders. Raises CheckpointError where one cannot be read, and where two were
    not trained on the same classes and on images of one kind and size.
    """
    if not paths:
        raise CheckpointError("got no checkpoint, expected at least one")
    members = tuple(load_checkpoint(path) for path in paths)
    first = members[0].form
    for path, member in zip(paths[1:], members[1:], strict=True):
        form = member.form
        for what, got, expected in (
            ("the classes", _listed(form), _listed(first)),
            ("mask values", form.classes.values, first.classes.values),
            ("channels", form.channels, first.channels),
            ("levels of", form.dtype, first.dtype),
            ("tiles of", " x ".join(map(str, form.size)), " x ".join(map(str, first.size))),
        ):
            if got != expected:
                raise CheckpointError(f"checkpoint {path}: got {what} {got}, expected {expected} like {paths[0]}")
    return Ensemble(members)


def _listed(form: Form) -> str:
    names = form.classes.names
    return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")
