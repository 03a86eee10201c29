"""`Module`: something with parameters. `Parameter` and `Buffer`: the two kinds of Tensors a module owns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from autograd import Tensor, no_grad
from kernels.core.device import default, module_of, to_device, to_numpy

M = TypeVar("M", bound="Module")


class Parameter(Tensor):
    """A trained Tensor. decay: whether weight decay applies to it (not to biases and normalisation gains)."""

    __slots__ = ("decay",)

    def __init__(self, array: Any, decay: bool = True) -> None:
        super().__init__(module_of(default()).asarray(array), requires_grad=True)
        self.decay = decay


class Buffer(Tensor):
    """State that is saved with the module but not trained, such as running statistics."""

    __slots__ = ()

    def __init__(self, array: Any) -> None:
        super().__init__(module_of(default()).asarray(array))


class Module:
    """Base of all layers: call it to run `forward`. Parameters, buffers and modules are found among the attributes, in the order
    of their assignment; lists of modules count too.
    """

    training = True

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}: forward is not implemented")

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        return self.forward(*inputs, **settings)

    # -- what is inside -----------------------------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules directly inside."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{k}", item) for k, item in enumerate(value) if isinstance(item, Module))

    def modules(self) -> Iterator[Module]:
        """This module and all inside it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def named_tensors(self, kind: type[Tensor] = Tensor, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(dotted name, Tensor) of all Parameters and Buffers inside (or of one `kind`)."""
        for name, value in vars(self).items():
            if isinstance(value, (Parameter, Buffer)) and isinstance(value, kind):
                yield prefix + name, value
        for name, child in self.children():
            yield from child.named_tensors(kind, f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, Parameter) of all parameters inside."""
        return self.named_tensors(Parameter)  # type: ignore[return-value]

    def parameters(self) -> list[Parameter]:
        """All parameters inside."""
        return [p for _, p in self.named_parameters()]

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(p.size for p in self.parameters())

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by dotted name, as NumPy arrays."""
        return {name: to_numpy(t.data).copy() for name, t in self.named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Overwrite parameters and buffers; ValueError naming what is missing, left over or of another shape (then nothing is changed)."""
        own = dict(self.named_tensors())
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            lists = [
                f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
                for what, names in (("missing", missing), ("unknown", extra))
                if names
            ]
            raise ValueError(f"load_state_dict: {len(missing) + len(extra)} names do not fit: {'; '.join(lists)}")
        for name, tensor in own.items():
            if tuple(state[name].shape) != tensor.shape:
                raise ValueError(f"load_state_dict: {name} has shape {tuple(state[name].shape)}, expected {tensor.shape}")
        with no_grad():
            for name, tensor in own.items():
                tensor.copy_(to_device(np.asarray(state[name], tensor.dtype), tensor.device))

    def to(self: M, device: str | None = None, dtype: Any = None) -> M:
        """Move all parameters and buffers to a device and / or a float dtype, in place; gradients are dropped."""
        for _, tensor in self.named_tensors():
            array = tensor.data if dtype is None else tensor.data.astype(dtype)
            tensor.data = array if device is None else to_device(array, device)
            tensor.grad = None
            tensor.touch()
        return self

    def train(self: M, mode: bool = True) -> M:
        """Training behaviour (batch statistics, dropout) on or off, for all modules inside."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Evaluation behaviour: `train(False)`."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.zero_grad()


class Sequential(Module):
    """Modules one after another."""

    def __init__(self, *modules: Module) -> None:
        self.steps = list(modules)

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x


class Identity(Module):
    """Returns its input."""

    def forward(self, x: Any) -> Any:
        return x
