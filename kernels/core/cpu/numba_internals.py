"""Everything private to numba that Areograd uses, in one place. It may change with any release, so pyproject.toml
bounds the version, and tests/kernels/core/test_numba_internals.py names every private thing that this file relies on.

Device functions. numba optimises every function that it compiles and makes machine code of it, and does so again in
each function that calls it, with everything that is called. A kernel's body is called by the function that unpacks its
arguments, and calls others: three rounds where one is enough. Here

    function = DeviceFunction(python_function, {"contract"})      is for kernels only: Python cannot call it
    with linked_first(): ...                            functions that numba compiles in this block are linked first,
    then optimised as a whole

halves the time that compiling takes.

Machine code as bytes: `payload_of` and `restored`, for our own cache in place of numba's (`MachineCodeCache`).
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from numba.core import caching, ccallback, codegen, compiler, dispatcher, registry, serialize


class _Library(codegen.JITCodeLibrary):
    """One function's LLVM module. Other functions link it before it is optimised.

    is_device_function: it never becomes machine code by itself.
    """

    is_device_function = False

    def _ensure_finalized(self) -> None:
        if not self.is_device_function:
            super()._ensure_finalized()

    def add_linking_library(self, library: Any) -> None:
        self._linking_libraries.append(library)

    def _get_module_for_linking(self) -> Any:
        if not self.is_device_function:
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
        # Device functions serve this kernel only, and LLVM has to know: it then inlines a function with one call and
        # propagates arguments that are the same in all calls. A gemm whose strides are no constants takes a tenth more.
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.linkonce_odr:
                function.linkage = llvm.Linkage.internal
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
        result.library.is_device_function = True
        result.target_context.insert_user_function(result.entry_point, result.fndesc, [result.library])
        return result


class DeviceFunction(registry.CPUDispatcher):
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
    """Within the block numba links functions before it optimises them."""
    maker = registry.cpu_target.target_context.codegen()
    before = maker._library_class
    maker._library_class = _Library
    try:
        yield
    finally:
        maker._library_class = before


def drop_bitcode(function: Any) -> None:
    """Free half a megabyte that numba keeps for linking a compiled function into other code; for functions that are
    only called. function: a C function, or the result of compiling a dispatcher.
    """
    name = "_library" if isinstance(function, ccallback.CFunc) else "library"
    library: Any = getattr(function, name)
    library._shared_module = None


def c_function(function: Callable[..., Any], signature: Any) -> Any:
    """A function that is compiled to be called by its address, from native code, without the interpreter's lock."""
    return ccallback.CFunc(
        function, (signature.args, signature.return_type), {}, {"nogil": True, "error_model": "numpy"}
    )


def payload_of(result: Any) -> bytes | None:
    """A compiled function as bytes; None where it holds addresses of this process."""
    return None if result.library.has_dynamic_globals else serialize.dumps(result._reduce())


def restored(context: Any, payload: bytes) -> Any:
    """The compiled function that `payload_of` turned into bytes."""
    return compiler.CompileResult._rebuild(context, *pickle.loads(payload))


def processor(codegen: Any) -> Any:
    """The tuple by which numba distinguishes processors."""
    return codegen.magic_tuple()


class MachineCodeCache(caching.NullCache):
    """numba's interface of a cache: it loads and saves one function's machine code by signature, with the two functions
    given.

    load(signature, codegen): a payload or None.   save(signature, codegen, payload).   note: called for a payload that
    cannot be loaded: it is intact, but these libraries cannot link it.
    """

    def __init__(
        self, load: Callable[..., bytes | None], save: Callable[..., None], note: Callable[[str], None]
    ) -> None:
        self.load, self.save, self.note = load, save, note

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None: then numba compiles it."""
        target_context.refresh()
        payload = self.load(sig, target_context.codegen())
        if payload is None:
            return None
        try:
            return restored(target_context, payload)
        except Exception as error:
            self.note(type(error).__name__)
            return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Keep a compiled function, unless it holds addresses of this process."""
        if (payload := payload_of(cres)) is not None:
            self.save(sig, cres.codegen, payload)


def set_cache(function: Any, cache: MachineCodeCache) -> None:
    """Give a dispatcher or C function a cache in place of numba's."""
    function._cache = cache


def is_kept(function: Any) -> bool:
    """Whether the cache of a C function has its machine code, whole."""
    cache = function._cache
    context = function._targetdescr.target_context
    return isinstance(cache, MachineCodeCache) and cache.load(function._sig, context.codegen()) is not None
