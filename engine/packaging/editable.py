"""In an editable installation the packages stay where they are, in the checkout: areograd.layers is layers there."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from areograd import PACKAGES


class _Checkout(MetaPathFinder, Loader):
    """Finds areograd.X.Y as the module X.Y, so that there is one of it under both names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        _, _, name = fullname.partition("areograd.")
        return ModuleSpec(fullname, self) if name.partition(".")[0] in PACKAGES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(spec.name.removeprefix("areograd."))
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own  # it was made the alias's; the module has run already


sys.meta_path.insert(0, _Checkout())
