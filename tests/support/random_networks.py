"""Networks of every option of the training system, with random weights and statistics everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from autograd import Tensor, inference, no_grad
from engine.build import Form, build_network
from engine.config import Config
from engine.data.classes import MARS, counted
from engine.inference import Normalisation
from engine.training.checkpoint import Checkpoint
from kernels.core.dispatch import use_kernels
from layers import Module

# One network per value of each option, by a name; and pairs that meet in one layer.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "aspp+psa": {"bottleneck": "aspp+psa"},
    "psa": {"bottleneck": "psa"},
    "mhsa": {"bottleneck": "mhsa"},
    "none": {"bottleneck": "none"},
    "plain skips": {"skips": "plain"},
    "residual": {"encoder": "residual"},
    "plain": {"encoder": "plain"},
    "attnC": {"gate": "attnC"},
    "blend": {"gate": "blend"},
    "gau": {"gate": "gau"},
    "parallel": {"order": "parallel"},
    "parallel psa": {"psa_mode": "parallel"},
    "3x3+3x3": {"five": "3x3+3x3"},
    "preactivation": {"preactivation": True},
    "residual preactivation": {"encoder": "residual", "preactivation": True},
    "fppm": {"fppm": True},
}
UINT8 = Normalisation(0.45, 0.21)
# The forms of tiles: their classes, channels and dtypes.
FORMS: dict[str, tuple[Form, Normalisation, dict[str, Any]]] = {
    "mars": (Form(), UINT8, {}),
    "background trained": (Form(), UINT8, {"background": "train"}),
    "absent": (Form(absent=(2, 4)), UINT8, {"background": "train"}),
    "binary": (Form(counted(1)), UINT8, {}),
    "two": (Form(counted(2)), UINT8, {}),
    "rgb": (
        Form(replace(MARS, unlabelled=None), 3),
        Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)),
        {},
    ),
    "uint16": (Form(dtype="uint16"), Normalisation(0.3, 0.2, 0.0, 4095.0), {}),
    "float32": (Form(dtype="float32"), Normalisation(0.3, 0.2, -1.5, 2.0), {}),
}


def random_checkpoint(
    form: Form = Form(),  # noqa: B008 - frozen
    normalisation: Normalisation = UINT8,
    record: dict[str, Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Checkpoint:
    """A network of width 4 in evaluation mode. Nothing in it starts silent: its gains, offsets and running statistics
    are random, too. Its logits have mean 0 and deviation 1 on noise, so that every class is predicted somewhere.
    """
    config = Config(**{"width": 4, **settings})
    net = build_network(config, form)
    rng = np.random.default_rng(seed)
    randomise(net.eval(), rng)
    noise = rng.standard_normal((2, 32, 48, form.channels)).astype(np.float32)
    with inference(), use_kernels("reference"):
        logits = net(Tensor(noise)).data[..., -net.head.bias.size :]
    deviation = logits.std((0, 1, 2))
    net.head.weight.data[...] /= deviation
    net.head.bias.data[...] = (net.head.bias.data - logits.mean((0, 1, 2))) / deviation
    return Checkpoint(net, config, normalisation, record or {}, form)


def randomise(module: Module, rng: np.random.Generator) -> None:
    """Random gains, offsets, statistics, and whatever else is one number per channel or starts at 0."""
    with no_grad():
        for name, tensor in module.named_tensors():
            if tensor.data.ndim == 1:
                positive = name.endswith(("running_var", "norm.weight"))
                values = rng.uniform(0.5, 1.5, tensor.shape) if positive else 0.3 * rng.standard_normal(tensor.shape)
                tensor.copy_(values.astype(np.float32))
            elif not tensor.data.any():
                tensor.copy_((0.3 * rng.standard_normal(tensor.shape)).astype(np.float32))
