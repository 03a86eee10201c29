"""The whole network against its PyTorch twin: logits, loss, every parameter's gradient, and trajectories of the
optimiser.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from autograd import Tensor, no_grad
from engine.training.optimizer import AdamW
from engine.training.schedules import cosine_schedule
from layers import CombinedLoss, UNet
from tests.support.misprints import Mutant, assert_caught, planted

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
WEIGHTS = (0.0, 0.3, 0.4, 0.4, 2.9)


@pytest.fixture
def pair():
    """(our network, its twin, images (N, H, W, 1), labels) in float64, with random weights everywhere (no silent
    branches).
    """
    from bench import twin

    net = UNet(width=4, dropout=0.0, seed=0).to(dtype=np.float64)
    rng = np.random.default_rng(0)
    with no_grad():
        for name, p in net.named_tensors():
            if p.data.ndim == 1:
                p.copy_(rng.uniform(0.5, 1.5, p.shape) if "var" in name else rng.standard_normal(p.shape) * 0.3)
    other = twin.TwinUNet(4).double()
    twin.load(other, net.state_dict())
    x = rng.standard_normal((2, 16, 24, 1))
    labels = rng.integers(0, 5, (2, 16, 24))
    return net, other, x, labels


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


@pytest.mark.parametrize("background", ["mask", "train"])
@pytest.mark.parametrize("training", [True, False])
def test_logits_loss_and_every_gradient(pair, training: bool, background: str) -> None:
    from bench import twin

    net, other, x, labels = pair
    net.train(training)
    other.train(training)
    weights = (0.5, *WEIGHTS[1:]) if background == "train" else WEIGHTS
    logits = net(Tensor(x))
    loss = CombinedLoss(weights, background=background)(logits, labels)
    loss.backward()
    t_logits = other(torch.tensor(x).permute(0, 3, 1, 2))
    t_loss = twin.combined_loss(t_logits, torch.tensor(labels), torch.tensor(weights, dtype=torch.float64), background)
    t_loss.backward()
    assert relative(logits.data, t_logits.detach().permute(0, 2, 3, 1).numpy()) < 1e-11
    assert loss.item() == pytest.approx(t_loss.item(), rel=1e-12)
    expected = twin.gradients(other)
    largest = max(np.abs(g).max() for g in expected.values())
    names = dict(net.named_parameters())
    assert names.keys() == expected.keys()
    for name, parameter in names.items():
        scale = max(np.abs(expected[name]).max(), 1e-6 * largest)
        assert np.abs(parameter.grad.data - expected[name]).max() / scale < 1e-9, name
    for name, buffer in net.named_tensors():
        if "running" in name:
            assert relative(buffer.data, other.state_dict()[name].numpy()) < 1e-12, name


def test_optimiser_schedule_and_average_follow_pytorch_for_20_steps(pair) -> None:
    from bench import twin

    net, other, x, labels = pair
    ours = AdamW(net, weight_decay=0.05, clip=1.0, average=0.999)
    theirs = twin.optimizer(other, 0.05)
    average = twin.Average(other)
    loss = CombinedLoss(WEIGHTS, background="mask")
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    total, warmup = 20, 4
    schedule = torch.optim.lr_scheduler.LambdaLR(
        theirs,
        lambda k: (
            10
            * (
                (k + 1) / warmup
                if k < warmup
                else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (k - warmup) / (total - warmup)))
            )
        ),
    )
    rng = np.random.default_rng(2)
    for step in range(total):
        batch = x + 0.1 * rng.standard_normal(x.shape)
        net.zero_grad()
        loss(net(Tensor(batch)), labels).backward()
        ours.step(cosine_schedule(step, total, warmup, 1e-2, 1e-4))
        theirs.zero_grad()
        twin.combined_loss(other(torch.tensor(batch).permute(0, 3, 1, 2)), torch.tensor(labels), weight).backward()
        their_norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        theirs.step()
        schedule.step()
        average.update()
        # Clipping divides by (norm + 1e-6) there and by norm here: the trajectories agree to that, not to the last
        # digit.
        assert ours.norm == pytest.approx(their_norm.item(), rel=1e-4), step
    state = other.state_dict()
    for name, tensor in net.named_tensors():
        assert np.abs(tensor.data - twin_array(state[name], name)).max() < 2e-4, name
    with ours.averaged():
        smooth = dict(zip([n for n in state if not n.endswith("num_batches_tracked")], average.average, strict=True))
        for name, tensor in net.named_tensors():
            assert np.abs(tensor.data - twin_array(smooth[name], name)).max() < 2e-4, name


def twin_array(tensor, name: str) -> np.ndarray:
    array = tensor.detach().numpy()
    if array.ndim == 4:
        array = array.transpose(2, 3, 0, 1) if name.endswith("up.weight") else array.transpose(2, 3, 1, 0)
    return array


def test_adamw_alone_is_exact() -> None:
    """Without clipping, on given gradients, 20 steps agree to rounding."""
    from layers import Conv2d

    layer = Conv2d(3, 4, 3)
    layer.to(dtype=np.float64)
    w, b = (torch.tensor(p.data.copy(), requires_grad=True) for p in (layer.weight, layer.bias))
    ours = AdamW(layer, weight_decay=0.1, clip=math.inf, average=0.9)
    theirs = torch.optim.AdamW([{"params": [w], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.0}], lr=3e-3)
    mean, rng = w.detach().clone(), np.random.default_rng(0)
    for t in range(1, 21):
        for mine, other in ((layer.weight, w), (layer.bias, b)):
            g = rng.standard_normal(mine.shape)
            mine.grad, other.grad = Tensor(g), torch.tensor(g)
        ours.step(3e-3)
        theirs.step()
        kept = min(0.9, (1 + t) / (10 + t))
        mean = kept * mean + (1 - kept) * w.detach()
        assert relative(layer.weight.data, w.detach().numpy()) < 1e-13
        assert relative(layer.bias.data, b.detach().numpy()) < 1e-13
    with ours.averaged():
        assert relative(layer.weight.data, mean.numpy()) < 1e-13
    assert relative(layer.weight.data, w.detach().numpy()) < 1e-13


# -- planted mistakes --------------------------------------------------------------------------------------------------


MUTANTS = [
    Mutant(
        "stale moving average",
        "kernels.optimizer.reference:adamw_step",
        "average += (1 - average_decay) * (p - average)",
        "average += (1 - average_decay) * (p + learning_rate * mhat / (xp.sqrt(vhat) + eps) - average)",
        test_adamw_alone_is_exact,
    ),
    Mutant(
        "weight decay inside the gradient",
        "kernels.optimizer.reference:adamw_step",
        "g = g * clip",
        "g = g * clip + decay * p",
        test_adamw_alone_is_exact,
    ),
    Mutant(
        "bias correction off by a step",
        "kernels.optimizer.reference:adamw_step",
        "(1 - beta2**step)",
        "(1 - beta2**(step + 1))",
        test_adamw_alone_is_exact,
    ),
]


@planted(MUTANTS)
def test_planted_mistake_is_caught(mutant: Mutant) -> None:
    assert_caught(mutant)
