"""Modules that hold modules and compute nothing themselves; a plain list or dict does as well."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from layers.module import Module


class ModuleList(Module):
    """A list of modules, named "0", "1" and so on, as in PyTorch."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """All of `modules` at the end; returns this list."""
        for module in modules:
            self.append(module)
        return self

    def append(self, module: Module) -> ModuleList:
        """One more at the end; returns this list."""
        vars(self)[str(len(self))] = _checked("ModuleList", module)
        return self

    def __len__(self) -> int:
        return sum(isinstance(value, Module) for value in vars(self).values())

    def __iter__(self) -> Iterator[Any]:
        return (module for _, module in self.children())

    def __getitem__(self, index: Any) -> Any:
        """A module, or for a slice a ModuleList of them."""
        return ModuleList(list(self)[index]) if isinstance(index, slice) else list(self)[index]

    def __setitem__(self, index: int, module: Module) -> None:
        vars(self)[str(range(len(self))[index])] = _checked("ModuleList", module)


class ModuleDict(Module):
    """Modules by name, as in PyTorch; a name must be a string that is no attribute of a module."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        for name, module in (modules or {}).items():
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(name, str) or hasattr(ModuleDict, name):
            raise KeyError(f"ModuleDict: got the name {name!r}, expected a string that is no attribute of a module")
        vars(self)[name] = _checked("ModuleDict", module)

    def __getitem__(self, name: str) -> Any:
        return dict(self.children())[name]

    def __delitem__(self, name: str) -> None:
        del vars(self)[name]

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        """The names."""
        return [name for name, _ in self.children()]

    def values(self) -> list[Any]:
        """The modules."""
        return [module for _, module in self.children()]

    def items(self) -> list[tuple[str, Any]]:
        """(name, module) of all."""
        return list(self.children())


def _checked(name: str, module: Any) -> Module:
    if not isinstance(module, Module):
        raise TypeError(f"{name}: got a {type(module).__name__}, expected a Module")
    return module
