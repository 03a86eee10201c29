"""The sources of machine code: the key of a compiled kernel changes with them, and with nothing else.

A kernel's body is numba code and vector programs of its own module and of those that it imports, and of those that they
import. Modules that only run on the host (references, launchers of CUDA, dispatch, memory) contribute nothing to
machine code, so they are not followed. A module counts by its bytecode, as the interpreter compiled it, without line
numbers and docstrings. So a comment or another layout of the text changes nothing, nor does an edited CUDA launcher or
another family.

    made_of("kernels.gate.cpu")         16 hexadecimal digits
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Iterator
from dis import opmap
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from kernels.core.modules import PREFIX, local

ROOT = Path(__file__).resolve().parents[2]
_HOST = {
    *(f"kernels.core.{name}" for name in ("device", "dispatch", "held", "modules", "reduction", "shapes", "tracing")),
    *(f"kernels.core.cpu.{name}" for name in ("buffer_pool", "cores", "deferral", "sources", "store")),
}

_START = 40  # bytes of a module's or a class's bytecode within which its docstring is stored


def is_host_only(module: str) -> bool:
    """Whether nothing of a module gets into machine code: packages, references, CUDA's launchers and what `_HOST`
    names.
    """
    path = module.split(".")
    return module in _HOST or path[-1] == "reference" or "cuda" in path or module not in modules()


@cache
def modules() -> frozenset[str]:
    """All modules of the package `kernels` but the packages themselves."""
    paths = (path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py") if path.name != "__init__.py")
    return frozenset(".".join(path.parts) for path in paths)


@cache
def made_of(module: str) -> str:
    """A digest of a module of kernels and of all that it imports from there, directly or not."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(closure(module)):
        digest.update(f"{name} {_digest(name)}\n".encode())
    return digest.hexdigest()


def closure(module: str) -> set[str]:
    """The module and all modules that it imports, directly or not, but those that only run on the host."""
    found = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in imports(name) if not is_host_only(other)]
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of kernels that a module's code names in its imports, wherever they stand in it."""
    names = {local(name) for code in _codes(_code(module)) for name in code.co_names}
    packages = [name for name in names if name == "kernels" or name.startswith("kernels.")]
    return frozenset(packages) | {
        full for package in packages for name in names if (full := f"{package}.{name}") in modules()
    }


@cache
def _code(module: str) -> CodeType:
    """A module's bytecode, as the interpreter caches it."""
    full = PREFIX + module
    spec = importlib.util.find_spec(full)
    code = getattr(spec and spec.loader, "get_code", lambda _: None)(full)
    if code is None:
        raise ImportError(f"{module}: its code cannot be found, so its kernels cannot be kept")
    return code


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all that are defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@cache
def _digest(module: str) -> str:
    return hashlib.blake2b(repr(_content(_code(module))).encode(), digest_size=8).hexdigest()


def _content(value: Any) -> Any:
    """A code object without its lines and its file, a constant as it is; equal values of another type or sign are told
    apart.
    """
    if isinstance(value, CodeType):
        counts = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
        names = value.co_name, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
        return (
            counts,
            names,
            value.co_code,
            value.co_exceptiontable,
            [_content(constant) for constant in _constants(value)],
        )
    if isinstance(value, frozenset):  # its order changes from process to process
        return "frozenset", sorted(map(repr, value))
    return repr(value)


def _constants(code: CodeType) -> list[Any]:
    """A code object's constants, its docstring empty."""
    constants = list(code.co_consts)
    at = _docstring(code)
    if at is not None and isinstance(constants[at], str):
        constants[at] = ""
    return constants


def _docstring(code: CodeType) -> int | None:
    """Which constant the docstring is, if there may be one."""
    if code.co_flags & inspect.CO_OPTIMIZED:  # of a function it is the first, and a function without has None there
        flag = getattr(inspect, "CO_HASDOCSTRING", 0)  # from Python 3.13 on: there may be anything there
        has = code.co_flags & flag if flag else code.co_consts and not code.co_name.startswith("<")
        return 0 if has else None
    steps = code.co_code[:_START]  # of a module or a class it is stored under its name, before all else
    for i in range(2, len(steps), 2):
        name = steps[i] == opmap["STORE_NAME"] and code.co_names[steps[i + 1]]
        if name == "__doc__" and steps[i - 2] == opmap["LOAD_CONST"]:
            return steps[i - 1]
    return None
