"""Functions that kernels are made of: typed and lowered like any numba function, but machine code is made of them only
within a kernel.

numba optimises every function it compiles and makes machine code of it, and does so again in each function that calls
it, with all that is called. A kernel's body is called by the function that unpacks its arguments, and calls others:
three rounds where one is enough. Here

    function = Part(python_function, {"contract"})      is for kernels only: Python cannot call it
    with linked_first(): ...                            what numba compiles in this block is put together first, then
        optimised as a whole

halves the time that compiling takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from numba.core import codegen, compiler, dispatcher, registry


class _Library(codegen.JITCodeLibrary):
    """One function's LLVM module. Others link what it holds as it is, not what optimisation would make of it.

    is_part: no machine code is ever made of it alone, whoever links it.
    """

    is_part = False

    def _ensure_finalized(self) -> None:
        if not self.is_part:
            super()._ensure_finalized()

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)

    def _get_module_for_linking(self) -> Any:
        if not self.is_part:
            return super()._get_module_for_linking()
        if self._shared_module is None:
            for library in dict.fromkeys(self._linking_libraries):
                self._final_module.link_in(library._get_module_for_linking(), preserve=True)
            for function in self._final_module.functions:
                if not function.is_declaration and function.linkage == llvm.Linkage.external:
                    function.linkage = (
                        "linkonce_odr"  # several callers may bring it; dropped where all calls were inlined
                    )
            self._shared_module = self._final_module
        return self._shared_module

    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


class _Compiler(dispatcher._FunctionCompiler):  # type: ignore[name-defined]
    """Stops before the machine code."""

    def _customize_flags(self, flags: Any) -> Any:
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        return flags

    def compile(self, args: Any, return_type: Any) -> Any:
        with linked_first():
            # the key that callers find the function by
            result = super().compile(args, return_type)._replace(entry_point=object())
        result.library.is_part = True
        result.target_context.insert_user_function(result.entry_point, result.fndesc, [result.library])
        return result


class Part(registry.CPUDispatcher):
    """A numba function that only kernels call: lowered once for every combination of argument types."""

    def __init__(self, function: Callable[..., Any], fastmath: set[str]) -> None:
        options = {"nopython": True, "nogil": True, "error_model": "numpy", "fastmath": fastmath, "boundscheck": None}
        super().__init__(function, targetoptions=options)
        self._compiler = _Compiler(function, self.targetdescr, options, {}, compiler.Compiler)

    def add_overload(self, result: Any) -> None:
        self.overloads[tuple(result.signature.args)] = result

    def __call__(self, *_arguments: Any) -> Any:
        raise TypeError(f"{self.py_func.__qualname__}: got a call from Python, expected calls from kernels only")


@contextlib.contextmanager
def linked_first() -> Iterator[None]:
    """Within the block numba puts functions together before it optimises them."""
    maker = registry.cpu_target.target_context.codegen()
    before, maker._library_class = maker._library_class, _Library
    try:
        yield
    finally:
        maker._library_class = before
