"""The whole network against its JAX twin, as test_twin.py does with PyTorch's: logits, loss, every gradient, the
optimiser's steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from autograd import Tensor, no_grad
from engine.training.optimizer import AdamW
from kernels.core.dispatch import use_kernels
from layers import CombinedLoss, UNet

jax = pytest.importorskip("jax", reason="JAX is not installed: nothing to compare with")
pytestmark = pytest.mark.slow  # XLA compiles the whole network for each
WEIGHTS = (0.0, 0.3, 0.4, 0.4, 2.9)
ROUNDING = 2.0**-24


def network(dtype: Any) -> UNet:
    """Width 4, with random weights everywhere (no silent branches)."""
    net = UNet(width=4, dropout=0.0, seed=0)
    rng = np.random.default_rng(0)
    with no_grad():
        for name, p in net.named_tensors():
            if p.data.ndim == 1:
                p.copy_(
                    (rng.uniform(0.5, 1.5, p.shape) if "var" in name else rng.standard_normal(p.shape) * 0.3).astype(
                        np.float32
                    )
                )
    return net.to(dtype=dtype)


def batch(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, 1) and labels; the strips of the bottleneck overlap at this size."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((2, 16, 24, 1)).astype(np.float32).astype(dtype), rng.integers(0, 5, (2, 16, 24))


def ours(dtype: Any, training: bool, weights: tuple[float, ...], background: str) -> dict[str, np.ndarray]:
    """logits, loss, all gradients and running statistics by name."""
    net = network(dtype).train(training)
    x, labels = batch(dtype)
    logits = net(Tensor(x))
    loss = CombinedLoss(weights, background=background)(logits, labels)
    loss.backward()
    gradients = {f"gradient of {name}": p.grad.data for name, p in net.named_parameters()}
    return {"logits": logits.data, "loss": np.asarray(loss.data), **gradients, **statistics(net)}


def theirs(dtype: Any, training: bool, weights: tuple[float, ...], background: str) -> dict[str, np.ndarray]:
    """The same by the twin."""
    from bench import jax_twin

    with jax.enable_x64(dtype is np.float64):
        trained, running, _ = jax_twin.parts(network(dtype))
        compiled = jax.jit(jax_twin.loss_and_gradients, static_argnums=(5, 6))
        (loss, (logits, updated)), gradients = compiled(
            trained, running, *batch(dtype), np.array(weights, dtype), background, training
        )
        out = {
            "logits": logits,
            "loss": loss,
            **{f"gradient of {name}": g for name, g in gradients.items()},
            **(updated or running),
        }
        return {name: np.asarray(a) for name, a in out.items()}


def statistics(net: UNet) -> dict[str, np.ndarray]:
    return {name: a for name, a in net.state_dict().items() if "running" in name}


@pytest.mark.parametrize("background", ["mask", "train"])
@pytest.mark.parametrize("training", [True, False])
def test_logits_loss_statistics_and_every_gradient(training: bool, background: str) -> None:
    weights = (0.5, *WEIGHTS[1:]) if background == "train" else WEIGHTS
    expected, found = (side(np.float64, training, weights, background) for side in (ours, theirs))
    assert found.keys() == expected.keys()
    largest = max(np.abs(g).max() for name, g in expected.items() if name.startswith("gradient"))
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-6 * largest if name.startswith("gradient") else 0)
        bar = 1e-9 if name.startswith("gradient") else 1e-11
        assert found[name].dtype == np.float64
        assert np.abs(found[name] - value).max() / scale < bar, name


def test_in_float32_neither_side_errs_more_than_the_rule_allows() -> None:
    """The naive rule (docs/accuracy.md) with errors relative to the largest value of a kind, for what a race runs: the
    twin as it is compiled there, and our fast kernels.
    """
    exact, fast, twin = (
        side(dtype, True, WEIGHTS, "mask")
        for side, dtype in ((ours, np.float64), (ours, np.float32), (theirs, np.float32))
    )
    with use_kernels("reference"):
        naive = ours(np.float32, True, WEIGHTS, "mask")
    kinds = {name: name.split()[0] if name.startswith("gradient") else name.split(".")[-1] for name in exact}
    for kind in set(kinds.values()):
        names = [name for name in kinds if kinds[name] == kind]
        largest = max(np.abs(exact[name]).max() for name in names)
        own, *errors = (
            max(np.abs(side[name].astype(np.float64) - exact[name]).max() for name in names)
            for side in (naive, fast, twin)
        )
        bound = 3 * own + 4 * ROUNDING * largest
        assert max(errors) <= bound, (
            f"{kind}: errors {errors[0]:.3g} (ours) and {errors[1]:.3g} (JAX), naive {own:.3g}, bound {bound:.3g}"
        )


def test_clipping_adamw_and_average_follow_ours_for_20_steps() -> None:
    from bench import jax_twin

    net = network(np.float64)
    x, labels = batch(np.float64)
    loss_of, optimizer, rng = (
        CombinedLoss(WEIGHTS, background="mask"),
        AdamW(net, clip=0.1, average=0.999),
        np.random.default_rng(2),
    )
    with jax.enable_x64(True):
        weights, running, adamw = jax_twin.parts(network(np.float64))
        state, weight = adamw.start(weights, running), np.array(WEIGHTS)
        step = jax.jit(partial(jax_twin.training_step, replace(adamw, clip=0.1)))
        for k in range(20):
            images, rate = x + 0.1 * rng.standard_normal(x.shape), 1e-2 / (1 + k)
            net.zero_grad()
            loss = loss_of(net(Tensor(images)), labels)
            loss.backward()
            optimizer.step(rate)
            state, other = step(state, images, labels, weight, rate)
            assert loss.item() == pytest.approx(float(other), rel=1e-9), k
            assert optimizer.norm > 0.1, "nothing was clipped"
        for name, tensor in net.named_tensors():
            assert np.abs(tensor.data - (state["weights"] | state["statistics"])[name]).max() < 1e-9, name
        with optimizer.averaged():
            for name, tensor in net.named_tensors():
                assert np.abs(tensor.data - state["average"][name]).max() < 1e-9, name
