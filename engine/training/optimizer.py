"""SGD, Adam and AdamW over one flat vector (engine/training/flat.py), with clipping and a moving average of weights and
running statistics.

    optimizer = AdamW(net, lr=1e-3)                        # or net.parameters(), or groups: [{"params": ..., "lr":
    ...}, ...] loss.backward(); optimizer.step(); optimizer.zero_grad()

The rules are torch.optim's. A parameter without a gradient (frozen or unused) is left alone, with its momentum and its
average, and every parameter counts its own steps. engine/training/schedules.py changes the learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from autograd import Tensor
from engine.graphs.network_state import State
from engine.training.flat import Flat, unique
from kernels import optimizer as kernels
from kernels.core.device import Array, array_module, device_of, to_device, to_numpy
from layers import Buffer, Module


class _Run(NamedTuple):
    """Neighbours that are stepped together: the Tensors first .. stop, where they lie, and what they share."""

    group: int
    first: int
    stop: int
    part: slice  # of the vectors
    lines: slice  # of the decays


class Optimizer:
    """The base of all optimizers: groups of parameters as views of one flat vector, clipping, a moving average, and
    their state.

    params: a Module (no decay on Parameters whose `decay` is False: biases, normalisation), an iterable of Tensors, or
    an iterable of dicts as torch.optim's: {"params": a Module or Tensors, "lr": ..., ...}. `param_groups` lists the
    groups; their settings may be changed.
    clip: the largest norm of all gradients together (inf: no clipping). average: decay d of the moving average, warmed
    up as min(d, (1 + t) / (10 + t)); 0 keeps none; the running statistics of a Module are averaged, too.

    Raises ValueError for no parameters, for a parameter in two groups and for settings out of range; RuntimeError in
    `step` when a Module has parameters that the optimizer does not know.
    """

    vectors: tuple[str, ...] = ()  # names of the state, one number per parameter

    def __init__(self, params: Any, defaults: dict[str, Any], clip: float, average: float) -> None:
        name = type(self).__name__
        given = params if isinstance(params, Module) else list(_several(params))
        groups = given if isinstance(given, list) and any(isinstance(g, dict) for g in given) else [{"params": given}]
        if not groups or not all(isinstance(g, dict) for g in groups):
            raise TypeError(f"{name}: params mixes dicts with others, expected Tensors only or dicts only")
        self.defaults, self.clip, self.average_decay = defaults, clip, average
        self.param_groups: list[dict[str, Any]] = []
        self._modules: list[Module] = []
        decays: list[bool] = []
        for group in groups:
            tensors, plain = self._members(group["params"])
            self.param_groups.append({**defaults, **group, "params": tensors})
            self._check(self.param_groups[-1])
            decays += plain
        parameters = [t for g in self.param_groups for t in g["params"]]
        if not parameters:
            raise ValueError(f"{name}: got an empty parameter list")
        if len({id(t) for t in parameters}) < len(parameters):
            raise ValueError(f"{name}: some parameters appear in more than one parameter group")
        self._group_of = [k for k, g in enumerate(self.param_groups) for _ in g["params"]]
        self.flat = Flat(parameters, name)
        buffers = unique(t for m in self._modules for _, t in m.named_tensors(Buffer))
        self.buffers = Flat(buffers, f"{name}: running statistics") if buffers and average else None
        self._decays = decays
        self._decay_of = []
        self.decay = self.flat.vector[:0]
        for vector in ("gradient", *self.vectors):
            setattr(self, vector, array_module(self.flat.vector).zeros_like(self.flat.vector))
        self.average = self.flat.vector.copy() if average else None
        self.average_buffers = self.buffers.vector.copy() if self.buffers else None
        self.counts = np.zeros(len(parameters), np.int64)  # steps of every parameter
        self.started = np.zeros(len(parameters), bool)  # whether a parameter has a momentum
        self.steps = 0
        self.present: tuple[bool, ...] = ()  # which parameters had a gradient at the last `gather`
        self._runs_of: tuple[bool, ...] | None = None
        self._runs: list[_Run] = []
        self._new: dict[int, list[str]] = {}  # by module: names of parameters that came after the optimizer
        self._states = [State(m, versions=False) for m in self._modules]
        self._squared: Array | None = None  # squared norm of the last gradient, where the parameters are
        self.scale = 1.0  # the loss scale of that gradient

    def _members(self, params: Any) -> tuple[list[Tensor], list[bool]]:
        """A group's parameters, each once, and which of them decay."""
        name = type(self).__name__
        if isinstance(params, Module):
            self._modules.append(params)
            found: list[Any] = unique(params.parameters())
            return found, [p.decay for p in found]
        found = [params] if isinstance(params, Tensor) else list(_several(params))
        for k, t in enumerate(found):
            if not isinstance(t, Tensor):
                raise TypeError(f"{name}: params[{k}] is {type(t).__name__}, expected a Tensor")
            if not t.is_leaf or t.dtype.kind != "f":
                raise ValueError(
                    f"{name}: params[{k}] {t.shape} is {'no leaf' if not t.is_leaf else t.dtype}, expected a leaf of "
                    "floating point"
                )
        found = unique(found)
        return found, [True] * len(found)

    def _check(self, group: Mapping[str, Any]) -> None:
        name = type(self).__name__
        for key in ("lr", "eps", "weight_decay", "momentum"):
            if key in group and not group[key] >= 0:
                raise ValueError(f"{name}: {key} is {group[key]}, expected at least 0")
        for k, beta in enumerate(group.get("betas", ())):
            if not 0 <= beta < 1:
                raise ValueError(f"{name}: betas[{k}] is {beta}, expected 0 <= beta < 1")
        if group.get("nesterov") and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"{name}: nesterov needs a momentum and no dampening, got {group['momentum']} and {group['dampening']}"
            )

    # -- gradients ----------------------------------------------------------------------------------------------------

    @property
    def squared(self) -> Array:
        """The squared norm of the last gradient, times the scale's square, a 0-d array where the parameters are."""
        if self._squared is None:
            self._squared = kernels.squared_norm(self.gradient)
        return self._squared

    @property
    def norm(self) -> float:
        """The gradient norm of the last step, before clipping and without the scale (on CUDA this waits for the
        device).
        """
        return math.sqrt(float(to_numpy(self.squared))) / self.scale

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for t in self.flat.tensors:
            t.grad = None

    def gather(self) -> None:
        """Copy all gradients into one vector."""
        self._look_for_new()
        self.follow()
        self.present = tuple([t.grad is not None for t in self.flat.tensors])
        self.flat.gather_gradients(self.gradient)

    def _look_for_new(self) -> None:
        """Record the parameters of the modules that the optimizer does not know."""
        for k, module in enumerate(self._modules):
            if not self._states[k].unchanged():
                known = set(map(id, self.flat.tensors))
                self._new[k] = [name for name, p in module.named_parameters() if id(p) not in known and p.requires_grad]
                self._states[k] = State(module, versions=False)

    def follow(self) -> None:
        """Take over arrays that have replaced the parameters'; the state follows to another dtype or device."""
        if self.flat.follow():
            vector = self.flat.vector
            for name in ("gradient", "average", *self.vectors):
                if (old := getattr(self, name)) is not None:
                    setattr(self, name, to_device(old.astype(vector.dtype), device_of(vector)))
            self._decay_of = []
        if self.buffers is not None and self.buffers.follow():
            vector = self.buffers.vector
            self.average_buffers = to_device(self.average_buffers.astype(vector.dtype), device_of(vector))

    # -- a step -------------------------------------------------------------------------------------------------------

    def step(
        self, learning_rate: float | None = None, scale: float | None = None, gathered: bool = False
    ) -> float | None:
        """Update, in place, all parameters that have a gradient. Nothing comes back to the host: the norm and the clip
        factor stay where the parameters are.

        learning_rate: for this step, in place of every group's lr. scale: the gradients are those of scale times the
        loss; they are divided by it in passing, and when their norm is not finite nothing is changed: for that the norm
        is copied to the host, and
        returned. gathered: `gather` was called.
        """
        if gathered:
            self.follow()
        else:
            self.gather()
        if new := [name for names in self._new.values() for name in names]:
            listed = f"{', '.join(new[:3])}{' ...' if len(new) > 3 else ''}"
            raise RuntimeError(
                f"{type(self).__name__}: the module has other parameters than before ({listed}); make a new optimizer"
            )
        self._squared = None
        self.scale = scale or 1.0
        norm = None if scale is None else self.norm
        if norm is not None and not math.isfinite(norm):
            return norm
        clip: Any = 1.0
        if self.clip < math.inf:
            clip = kernels.clip_factor(self.squared, self.clip * self.scale, self.gradient.dtype)
        clip = clip if scale is None else clip / scale
        self._set_decays()
        if self._runs_of != self.present:
            self._runs_of, self._runs = self.present, self._found_runs()
        self.steps += 1
        for run in self._runs:
            group = self.param_groups[run.group]
            self.counts[run.first : run.stop] += 1
            count = int(self.counts[run.first])
            self._update(
                run, group, count, group["lr"] if learning_rate is None else learning_rate, clip, self._kept(count)
            )
            self.flat.touch(run.first, run.stop)
        if self.average_buffers is not None and self.buffers is not None:
            self.average_buffers += (1 - self._kept(self.steps)) * (self.buffers.vector - self.average_buffers)
        return norm

    def _kept(self, count: int) -> float:
        return min(self.average_decay, (1 + count) / (10 + count))

    def _key(self, k: int) -> tuple[Any, ...]:
        """The settings that parameters stepped together share."""
        return self._group_of[k], self.counts[k]

    def _found_runs(self) -> list[_Run]:
        """Neighbours with gradients, of one group and as many steps: in the ordinary case all parameters."""
        runs: list[_Run] = []
        ends = [*self.flat.offsets[1:], self.flat.total]
        for k, present in enumerate(self.present):
            if not present:
                continue
            first = k
            if runs and runs[-1].stop == k and self._key(k) == self._key(k - 1):
                first = runs.pop().first
            at = self.flat.offsets[first]
            end = ends[k]
            runs.append(
                _Run(self._group_of[k], first, k + 1, slice(at, end), slice(at // kernels.LINE, end // kernels.LINE))
            )
        return runs

    def _set_decays(self) -> None:
        """`decay`: the weight decay of every line of the vector, made again when a group has changed it."""
        now = [g["weight_decay"] for g in self.param_groups]
        if now != self._decay_of:
            lines = [-(-t.size // kernels.LINE) for t in self.flat.tensors]
            values = [now[k] if plain else 0.0 for k, plain in zip(self._group_of, self._decays, strict=True)]
            self.decay = array_module(self.flat.vector).asarray(np.repeat(values, lines).astype(self.flat.vector.dtype))
            self._decay_of = now

    def _update(self, run: _Run, group: Mapping[str, Any], count: int, rate: float, clip: Any, kept: float) -> None:
        """Step number `count` of the parameters of a run. kept: the decay of their average now."""
        raise NotImplementedError(f"{type(self).__name__}: _update is not implemented")

    # -- the average --------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the module holds the averaged weights and statistics (the plain ones when no average is
        kept).
        """
        self.follow()
        pairs = [(self.flat, self.average), (self.buffers, self.average_buffers)]
        live = [
            (flat, average, flat.vector.copy()) for flat, average in pairs if flat is not None and average is not None
        ]
        for flat, average, _ in live:
            flat.vector[...] = average
            flat.touch()
        try:
            yield
        finally:
            for flat, _, plain in live:
                flat.vector[...] = plain
                flat.touch()

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything that a step depends on, as NumPy arrays and numbers, in torch.optim's form.

        {"state": {k: {"step": n, "started": with momentum, vector: array, ...}}, "param_groups": [{"lr": ..., "params":
        [k, ...]}, ...], "steps": n}, where k counts the parameters of all groups; with an average also "average" in
        every state, and "average_buffers".
        """
        self.follow()
        names = [*self.vectors, *(["average"] if self.average is not None else [])]
        arrays = {name: [to_numpy(a).copy() for a in self.flat.views(getattr(self, name))] for name in names}
        state = {
            k: {"step": int(n), "started": bool(self.started[k]), **{name: arrays[name][k] for name in names}}
            for k, n in enumerate(self.counts)
        }
        groups = []
        at = 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(at, at + count))})
            at += count
        result: dict[str, Any] = {"state": state, "param_groups": groups, "steps": self.steps}
        if self.buffers is not None:
            result["average_buffers"] = [to_numpy(a).copy() for a in self.buffers.views(self.average_buffers)]
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`. Raises ValueError, and changes nothing, when it belongs to another optimizer."""
        self.follow()
        name = type(self).__name__
        groups = state["param_groups"]
        counts = [len(g["params"]) for g in groups], [len(g["params"]) for g in self.param_groups]
        if counts[0] != counts[1]:
            raise ValueError(f"{name}: load_state_dict: the groups have {counts[0]} parameters, expected {counts[1]}")
        names = [*self.vectors, *(["average"] if self.average is not None else [])]
        for k, t in enumerate(self.flat.tensors):
            for key in names:
                array = state["state"].get(k, {}).get(key)
                if array is None or array.shape != t.shape:
                    got = "missing" if array is None else f"of shape {array.shape}"
                    raise ValueError(
                        f"{name}: load_state_dict: {key} of parameter {k} is {got}, expected shape {t.shape}"
                    )
        if self.buffers is not None:
            shapes = [a.shape for a in state.get("average_buffers", ())], [t.shape for t in self.buffers.tensors]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{name}: load_state_dict: average_buffers have the shapes {shapes[0][:3]}, expected "
                    f"{shapes[1][:3]}"
                )
            _write(self.buffers.views(self.average_buffers), state["average_buffers"])
        for key in names:
            _write(self.flat.views(getattr(self, key)), [state["state"][k][key] for k in range(len(self.flat.tensors))])
        for own, group in zip(self.param_groups, groups, strict=True):
            own.update({key: value for key, value in group.items() if key != "params"})
        self.counts[:] = [state["state"][k]["step"] for k in range(len(self.counts))]
        self.started[:] = [state["state"][k]["started"] for k in range(len(self.counts))]
        self.steps = state["steps"]
        self._runs_of = None


class SGD(Optimizer):
    """Stochastic gradient descent as torch.optim.SGD, with momentum (optionally Nesterov's).

    d = clip g + weight_decay p    buffer <- momentum buffer + (1 - dampening) d (at first: d)
    p <- p - lr (d without momentum, d + momentum buffer with nesterov, else buffer)

    See Optimizer for params, clip and average.  (Sutskever et al., ICML 2013)
    """

    vectors = ("momentum_buffer",)
    momentum_buffer: Array

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        clip: float = math.inf,
        average: float = 0.0,
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, settings, clip, average)

    def _key(self, k: int) -> tuple[Any, ...]:
        return *super()._key(k), self.started[k]

    def _update(self, run: _Run, group: Mapping[str, Any], count: int, rate: float, clip: Any, kept: float) -> None:
        moving = group["momentum"] != 0
        first = moving and not self.started[run.first]
        kernels.sgd_step(
            self.flat.vector[run.part],
            self.gradient[run.part],
            self.momentum_buffer[run.part] if moving else None,
            self.decay[run.lines],
            None if self.average is None else self.average[run.part],
            learning_rate=rate,
            momentum=group["momentum"],
            dampening=0.0 if first else group["dampening"],
            nesterov=group["nesterov"],
            clip=clip,
            average_decay=kept,
        )
        if first:
            self.started[run.first : run.stop] = True
            self._runs_of = None


class Adam(Optimizer):
    """Adam as torch.optim.Adam: weight_decay (None: 0) is added to the gradient (L2).

    g <- clip g + weight_decay p    m <- b1 m + (1 - b1) g    v <- b2 v + (1 - b2) g^2    p <- p - lr (m / (1 - b1^t)) /
    (sqrt(v / (1 - b2^t)) + eps)

    See Optimizer for params, clip and average.  (Kingma & Ba, arXiv 1412.6980)
    """

    vectors = ("m", "v")
    m: Array
    v: Array
    gradient: Array
    decoupled = False  # whether the decay stays out of the moments
    usual_decay = 0.0

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | None = None,
        *,
        clip: float = math.inf,
        average: float = 0.0,
    ) -> None:
        decay = self.usual_decay if weight_decay is None else weight_decay
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay}, clip, average)

    def _update(self, run: _Run, group: Mapping[str, Any], count: int, rate: float, clip: Any, kept: float) -> None:
        weights = self.flat.vector[run.part]
        gradient = self.gradient[run.part]
        decay = self.decay[run.lines]
        if group["weight_decay"] and not self.decoupled:
            gradient = gradient * clip + array_module(decay).repeat(decay, kernels.LINE) * weights
            clip = 1.0
            decay = decay * 0
        kernels.adamw_step(
            weights,
            gradient,
            self.m[run.part],
            self.v[run.part],
            decay,
            None if self.average is None else self.average[run.part],
            step=count,
            learning_rate=rate,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            clip=clip,
            average_decay=kept,
        )


class AdamW(Adam):
    """AdamW as torch.optim.AdamW: p <- p - lr weight_decay p first (weight_decay None: 0.01), then Adam's step without
    decay.

    See Optimizer for params, clip and average.  (Loshchilov & Hutter, arXiv 1711.05101)
    """

    decoupled = True
    usual_decay = 1e-2


def _several(params: Any) -> Iterable[Any]:
    if isinstance(params, (Tensor, Mapping)) or not isinstance(params, Iterable):
        raise TypeError(
            f"optimizer: params is {type(params).__name__}, expected a Module, or an iterable of Tensors or dicts"
        )
    return params


def _write(views: Sequence[Array], arrays: Sequence[np.ndarray]) -> None:
    for view, array in zip(views, arrays, strict=True):
        view[...] = to_device(np.asarray(array, view.dtype), device_of(view))
