"""Inference of the report's network, width 32: batch 16 and batch 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench import xla
from bench.harness import Case
from bench.shapes import LAYOUTS, array, device, ours

WIDTH = 32
_block = ExitStack()


def cases() -> list[Case]:
    """Logits from images, evaluation mode."""
    out = []
    for batch in (16, 1):
        theirs = {mode: partial(_torch, batch, mode) for mode in (*LAYOUTS, "compile")}
        others = {"torch": theirs, "jax": xla.modes(_jax, batch), "onnxruntime": {"cpu": partial(_onnxruntime, batch)}}
        out.append(
            Case(
                "inference",
                f"width {WIDTH} batch {batch}",
                partial(our_inference, batch),
                others,
                flops=int(batch * 2.92e9),
            )
        )
    return out


def our_inference(batch: int) -> Callable[[], Any]:
    """Returns a function that runs the network once."""
    from autograd import inference
    from engine.graphs import cpu_inference
    from layers import UNet

    _block.enter_context(inference())  # all runs of the process in one block, as a server or an evaluation has them

    net = UNet(width=WIDTH, seed=0).eval()
    x = ours(array(batch, 64, 128, 1))
    return partial(cpu_inference.InferenceGraph(net, x) if device() == "cpu" else partial(cpu_inference.run, net), x)


def _torch(batch: int, mode: str) -> Callable[[], Any]:
    import torch

    from bench import twin
    from bench.shapes import torch_image
    from layers import UNet

    net = twin.TwinUNet(WIDTH).eval()
    twin.load(net, UNet(width=WIDTH, seed=0).state_dict())
    net = net.to(device())
    layout = "nchw" if mode == "nchw" else "channels_last"
    if layout == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    x = torch_image(array(batch, 64, 128, 1), layout)
    forward: Any = torch.compile(net) if mode == "compile" else net

    def run() -> Any:
        with torch.inference_mode():
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
