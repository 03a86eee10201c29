"""Inference of the report's network, width 32: batch 16 and batch 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench import xla
from bench.harness import Case
from bench.shapes import LAYOUTS, REDUCED, array, device, ours, torch_device, torch_precision
from kernels.core.precision import use_precision

WIDTH = 32 if REDUCED == 1 else 4
_block = ExitStack()


def cases() -> list[Case]:
    """Logits from images, evaluation mode; on a GPU in each precision."""
    out = []
    for batch in (16, 1) if REDUCED == 1 else (1,):
        for precision in ("float32", "tf32", "bf16") if device() == "cuda" else ("float32",):
            theirs = {mode: partial(_torch, batch, mode, precision) for mode in (*LAYOUTS, "compile")}
            others = {"torch": theirs, "jax": xla.modes(_jax, batch)}
            if device() == "cpu":
                others["onnxruntime"] = {"cpu": partial(_onnxruntime, batch)}
            text = f"width {WIDTH} batch {batch}" + (f" {precision}" if device() == "cuda" else "")
            run = partial(our_inference, batch, precision)
            out.append(Case("inference", text, run, others, flops=int(batch * 2.92e9), precision=precision))
    return out


def our_inference(batch: int, precision: str = "float32") -> Callable[[], Any]:
    """Returns a function that runs the network once."""
    from autograd import inference
    from engine.graphs import cpu_inference
    from layers import UNet

    net = UNet(width=WIDTH, seed=0).eval()
    x = ours(array(batch, 64, 128, 1))
    if device() == "cpu":
        _block.enter_context(inference())  # all runs of the process in one block, as a server or an evaluation has them
        return partial(cpu_inference.InferenceGraph(net, x), x)

    def run() -> Any:
        with inference(), use_precision(precision):
            return cpu_inference.run(net, x)

    return run


def _torch(batch: int, mode: str, precision: str) -> Callable[[], Any]:
    import torch

    from bench import twin
    from bench.shapes import torch_image
    from layers import UNet

    net = twin.TwinUNet(WIDTH).eval()
    twin.load(net, UNet(width=WIDTH, seed=0).state_dict())
    net = net.to(torch_device())
    layout = "nchw" if mode == "nchw" else "channels_last"
    if layout == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    x = torch_image(array(batch, 64, 128, 1), layout)
    forward: Any = torch.compile(net) if mode == "compile" else net

    def run() -> Any:
        with torch.inference_mode(), torch_precision(precision):
            return forward(x)

    return run


def _onnxruntime(batch: int) -> Callable[[], Any]:
    """The twin, exported to ONNX; the runtime folds the norms itself."""
    import tempfile

    import onnxruntime
    import torch

    from bench import twin
    from layers import UNet

    net = twin.TwinUNet(WIDTH).eval()
    twin.load(net, UNet(width=WIDTH, seed=0).state_dict())
    x = torch.from_numpy(array(batch, 1, 64, 128))
    with tempfile.TemporaryDirectory() as folder:
        torch.onnx.export(net, (x,), f"{folder}/net.onnx", dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
        session = onnxruntime.InferenceSession(f"{folder}/net.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = x.numpy()
    return lambda: session.run(None, {name: images})


def _jax(batch: int, mode: str) -> Callable[[], Any]:
    """The twin, compiled with its weights as constants."""
    jax = xla.start(mode)
    from bench import jax_twin
    from layers import UNet

    state = UNet(width=WIDTH, seed=0).state_dict()
    return xla.compiled(jax, lambda x: jax_twin.unet(state, x, training=False)[0], array(batch, 64, 128, 1))
