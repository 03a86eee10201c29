"""A whole training step of the report's network: forward, combined loss, backward, AdamW + moving average, at equal
weights.

On a GPU the step runs in float32, TF32 and bfloat16 (PyTorch: autocast), ours replayed as a CUDA graph; the same
without a graph races along as `uncaptured`.

`training images` is the same with the augmentation of the batch before it: all that a run of preset small does with its
images. `training run` is a step of the very run that `make train` starts, against the same with every kernel served by
its reference (--against reference).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bench import xla
from bench.harness import Case
from bench.shapes import LAYOUTS, REDUCED, array, device, ours, torch_device, torch_precision, torch_tensor
from kernels.core.precision import use_precision

WEIGHTS = (0.0, 0.3, 0.4, 0.4, 2.9)
# (width, batch, FLOPs of an image's forward pass)
SIZES = ((32, 16, 2.92e9), (16, 32, 0.74e9), (8, 16, 0.19e9)) if REDUCED == 1 else ((4, 2, 0.05e9),)
CUDA_PRECISIONS = ("float32", "tf32", "bf16")


def cases() -> list[Case]:
    """Width 32 with batch 16, width 16 with batch 32, width 8 with batch 16."""
    if device() == "cuda":
        return _cuda_cases()
    out = []
    for width, batch, flops in SIZES:
        theirs = {mode: partial(torch_step, width, batch, mode) for mode in (*LAYOUTS, "compile")}
        text = f"width {width} batch {batch}"
        others = {"torch": theirs, "jax": xla.modes(jax_step, width, batch)}
        out.append(Case("training step", text, partial(our_step, width, batch), others, flops=int(3 * batch * flops)))
    theirs = {mode: partial(torch_step, 16, 32, mode, True) for mode in (*LAYOUTS, "compile")}
    out.append(Case("training images", "preset small, batch 32", partial(our_step, 16, 32, True), {"torch": theirs}))
    reference = {"reference": {"numpy": partial(training_run, "reference")}}
    out.append(Case("training run", "preset tiny, batch 16", partial(training_run, "fast"), reference))
    return out


def _cuda_cases() -> list[Case]:
    out = []
    for width, batch, flops in SIZES:
        for precision in CUDA_PRECISIONS:
            torch = {
                mode: partial(torch_step, width, batch, mode, precision=precision) for mode in (*LAYOUTS, "compile")
            }
            plain = {"launch by launch": partial(our_step, width, batch, precision=precision, graph=False)}
            ours = partial(our_step, width, batch, precision=precision)
            text = f"width {width} batch {batch} {precision}"
            others = {"torch": torch, "uncaptured": plain}
            out.append(Case("training step", text, ours, others, int(3 * batch * flops), precision=precision))
    theirs = {mode: partial(torch_step, width, batch, mode, True) for mode in (*LAYOUTS, "compile")}
    text = f"augmented, width {width} batch {batch}"
    out.append(Case("training images", text, partial(our_step, width, batch, True), {"torch": theirs}))
    return out


def _data(batch: int) -> tuple[np.ndarray, np.ndarray]:
    return array(batch, 64, 128, 1), np.random.default_rng(0).integers(0, 5, (batch, 64, 128))


def _tiles(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as tiles before augmentation: (N, H, W) grey values from 0 to 1, masks uint8."""
    images, labels = _data(batch)
    return abs(images[..., 0]) % 1, labels.astype(np.uint8)


def _our_batches(batch: int, augmented: bool) -> Callable[[], tuple[Any, Any]]:
    """Returns a function that gives the next images (N, H, W, 1) and labels."""
    from engine.training.augmentation import Augmentation

    if not augmented:
        images, labels = map(ours, _data(batch))
        return lambda: (images, labels)
    augment = Augmentation(affine=1.0, photometric=1.0)
    rng = np.random.default_rng(0)
    tiles, masks = map(ours, _tiles(batch))

    def following() -> tuple[Any, Any]:
        images, labels = augment(tiles, masks, rng)
        return images[..., None], labels

    return following


def our_step(
    width: int, batch: int, augmented: bool = False, precision: str = "float32", graph: bool = True
) -> Callable[[], float]:
    """Returns a function that does one step and returns its loss.

    precision: of the products, on a GPU. graph: capture the passes and replay them.
    """
    from engine.graphs.cpu_step import CapturedPasses
    from engine.graphs.cuda_graph import CudaGraphPasses
    from engine.training.optimizer import AdamW
    from engine.training.step import Passes
    from layers import CombinedLoss, UNet

    net = UNet(width=width, dropout=0.0, seed=0)
    optimizer = AdamW(net, clip=1.0, average=0.999)
    plain = Passes(net, CombinedLoss(WEIGHTS, background="mask"), optimizer, "cpu" if device() == "cpu" else "cuda")
    captured = CapturedPasses if device() == "cpu" else CudaGraphPasses
    passes: Any = captured(plain) if graph else plain
    next_batch = _our_batches(batch, augmented)

    def run() -> float:
        x, labels = next_batch()
        with use_precision(precision):
            terms = passes(x, labels)
        optimizer.step(1e-3, gathered=True)
        return float(terms["loss"])

    return run


def _torch_batches(batch: int, layout: str, mode: str, augmented: bool) -> Callable[[], tuple[Any, Any]]:
    """The same for PyTorch: images (N, 1, H, W) in `layout`."""
    import torch

    from bench.augment import torch_augmentation
    from bench.shapes import torch_image

    if not augmented:
        images, labels = _data(batch)
        x = torch_image(images, layout)
        y = torch_tensor(labels)
        return lambda: (x, y)
    augment = torch_augmentation(mode)
    tiles, masks = map(torch_tensor, _tiles(batch))

    def following() -> tuple[Any, Any]:
        with torch.no_grad():
            images, labels = augment(tiles, masks)
            return images[:, None], labels.long()

    return following


def torch_step(
    width: int, batch: int, mode: str, augmented: bool = False, precision: str = "float32"
) -> Callable[[], float]:
    """The same step by the PyTorch twin, from the same initial weights."""
    import torch

    from bench import twin
    from layers import UNet

    net = twin.TwinUNet(width)
    twin.load(net, UNet(width=width, dropout=0.0, seed=0).state_dict())
    net = net.to(torch_device())
    layout = "nchw" if mode == "nchw" else "channels_last"
    if layout == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    optimizer = twin.optimizer(net)
    average = twin.Average(net)
    next_batch = _torch_batches(batch, layout, mode, augmented)
    weight = torch.tensor(WEIGHTS, device=torch_device())
    forward: Any = torch.compile(net) if mode == "compile" else net
    loss_of: Any = torch.compile(twin.combined_loss) if mode == "compile" else twin.combined_loss

    def run() -> float:
        x, labels = next_batch()
        optimizer.zero_grad(set_to_none=True)
        with torch_precision(precision):
            loss = loss_of(forward(x), labels, weight)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.update()
        return float(loss.detach())

    return run


def jax_step(width: int, batch: int, mode: str) -> Callable[[], float]:
    """The same step by the JAX twin, one compiled function, from the same initial weights."""
    jax = xla.start(mode)
    from bench import jax_twin
    from layers import UNet

    weights, statistics, adamw = jax_twin.parts(UNet(width=width, dropout=0.0, seed=0))
    state = adamw.start(weights, statistics)
    data = jax.device_put((*_data(batch), np.array(WEIGHTS, np.float32)))
    step = jax.jit(partial(jax_twin.training_step, adamw), donate_argnums=0)

    def run() -> float:
        nonlocal state
        state, loss = jax.block_until_ready(step(state, *data, 1e-3))
        return float(loss)

    return run


def training_run(kernels: str) -> Callable[[], float]:
    """Returns a function that does one step of a run of preset tiny and returns its loss: batches, augmentation,
    dropout and all.
    """
    import os
    import tempfile
    from itertools import chain, repeat
    from pathlib import Path

    from engine.config import preset
    from engine.data import CLASSES
    from engine.training.batches import stratified_batches
    from engine.training.progress import PlainReporter
    from engine.training.trainer import Run
    from kernels.core.dispatch import use_kernels

    config = preset("tiny")
    with open(os.devnull, "w") as quiet, tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder), PlainReporter(CLASSES, quiet))
    run.net.train()
    epoch = partial(stratified_batches, len(run.data.train), run.rare, config.batch, config.rare_share, run.rng)
    batches = chain.from_iterable(make() for make in repeat(epoch))

    def step() -> float:
        with use_kernels(kernels):
            return run._step(next(batches), run.augmentation, config.learning_rate)["loss"]

    return step
