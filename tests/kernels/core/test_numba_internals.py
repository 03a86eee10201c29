"""The private parts of numba that Areograd relies on: all in one file, and each of them there.

A release of numba that fails here needs a look at kernels/core/cpu/numba_internals.py before the bound in
pyproject.toml is raised.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib.metadata import version

import numpy as np
import pytest
from numba.core import caching, ccallback, codegen, compiler, dispatcher, registry, serialize

from kernels import pointwise
from kernels.core.cpu.jit import registry as kernels
from tests.support.paths import ROOT

FILE = ROOT / "kernels" / "core" / "cpu" / "numba_internals.py"
METHODS = {  # what is called or overridden -> its parameters
    codegen.JITCodeLibrary._ensure_finalized: "self",
    codegen.JITCodeLibrary._get_module_for_linking: "self",
    codegen.JITCodeLibrary._optimize_functions: "self ll_module",
    codegen.JITCodeLibrary._optimize_final_module: "self",
    codegen.JITCodeLibrary.add_linking_library: "self library",
    codegen.CPUCodegen._module_pass_manager: "self kwargs",
    codegen.CPUCodegen.magic_tuple: "self",
    dispatcher._FunctionCompiler.compile: "self args return_type",
    dispatcher._FunctionCompiler._customize_flags: "self flags",
    dispatcher._FunctionCompiler.__init__: "self py_func targetdescr targetoptions locals pipeline_class",
    ccallback.CFunc.__init__: "self pyfunc sig locals options pipeline_class",
    compiler.CompileResult._reduce: "self",
    caching.NullCache.load_overload: "self sig target_context",
    caching.NullCache.save_overload: "self sig cres",
}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__qualname__)
def test_a_method_takes_what_it_took(method) -> None:
    assert " ".join(inspect.signature(method).parameters) == METHODS[method]


def test_attributes_are_there() -> None:
    pointwise.relu_forward(np.ones(3, np.float32))
    function = next(kernel for kernel in kernels.values() if kernel.address).callback
    for name in ("_library", "_cache", "_sig", "_targetdescr"):
        assert hasattr(function, name), name
    for name in ("_shared_module", "_linking_libraries", "_final_module", "_codegen", "has_dynamic_globals"):
        assert hasattr(function._library, name), name
    assert hasattr(function._library._codegen, "_data_layout")
    assert hasattr(registry.cpu_target.target_context.codegen(), "_library_class")
    assert callable(compiler.CompileResult._rebuild)
    assert callable(serialize.dumps)


def test_nothing_else_reaches_into_numba() -> None:
    private = re.compile(r"numba\.core|\.(_library|_sig|_targetdescr|_cache|_shared_module)\b")
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        if path != FILE:
            assert not private.search(path.read_text()), path


def test_the_version_is_bounded_above_what_is_tested() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = [re.fullmatch(r"numba>=([\d.]+),<([\d.]+)", wanted) for wanted in dependencies]
    (found,) = (bound for bound in bounds if bound)
    low, high = (tuple(map(int, bound.split("."))) for bound in found.groups())
    assert low <= tuple(map(int, version("numba").split(".")[:2])) < high
