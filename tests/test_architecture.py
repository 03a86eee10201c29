"""The house rules: which package may import which, and the rooms every operator family has."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autograd import ops
from autograd.ops import comparison
from engine.packaging.hook import SUFFIXES
from tests.support.cases import CASES
from tests.support.paths import ROOT

PACKAGES = ("kernels", "autograd", "layers", "engine")  # an arrow may only point to the left
OPERATORS = ("conv", "pool", "norm", "attention", "resample", "loss", "pointwise", "gate", "shape")
# families without a gradient, and who uses them
STEPS = {
    "metric": "engine/training/metrics.py",
    "optimizer": "engine/training/optimizer.py",
    "augment": "engine/training/augmentation.py",
}


def sources(*packages: str) -> list[Path]:
    return [p for package in packages for p in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of all modules a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.table
@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    for path in sources(package):
        wrong = imported(path) & ({*PACKAGES, "bench", "tests"} - set(allowed))
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: kernels <- autograd <- layers <- engine"


@pytest.mark.table
def test_families_are_the_known_ones() -> None:
    folders = {p.name for p in (ROOT / "kernels").iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert folders - {"core", "nn"} == {*OPERATORS, *STEPS}


@pytest.mark.table
def test_plain_functions_stand_above_the_families() -> None:
    """kernels/nn calls families and has no kernel of its own; no family knows of it."""
    folder = ROOT / "kernels" / "nn"
    assert {p.suffix for p in folder.iterdir() if p.is_file()} == {".py"}
    assert not {p.stem for p in folder.iterdir()} & {"reference", "cpu", "cuda"}
    for path in sources("kernels"):
        if path.parent != folder:
            assert "kernels.nn" not in path.read_text(), path.relative_to(ROOT)


@pytest.mark.table
@pytest.mark.parametrize("family", OPERATORS)
def test_each_operator_in_its_five_places(family: str) -> None:
    assert (ROOT / "kernels" / family / "reference.py").exists(), "the definition"
    assert (ROOT / "autograd" / "ops" / f"{family}.py").exists(), "the gradient"
    assert list((ROOT / "layers").glob(f"{family}.py")) or family in ("resample", "shape"), "the module"
    assert (ROOT / "bench" / f"{family}.py").exists(), "the benchmark"
    functions = {
        node.name
        for node in ast.parse((ROOT / "autograd" / "ops" / f"{family}.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    rows = {case.name.split()[0] for case in CASES} | {
        "dropout",
        "segmentation_loss",
        "make_spec",
        "conv2d_relu",
    }  # tested by hand: random, or no operator
    assert functions <= rows, f"no row in tests/support/cases.py for {functions - rows}"


@pytest.mark.table
def test_each_operator_has_a_row_in_the_table() -> None:
    rows = {case.name.split()[0] for case in CASES}
    # random, no operator, or no gradient
    by_hand = {"dropout", "segmentation_loss", "make_spec", "conv2d_relu", "argmax", "argmin", "argsort"}
    # tests/test_tensor_*.py
    by_hand |= {
        "cast",
        "floor_divide",
        *(name for name in vars(comparison) if name in ops.__all__),
    }
    public = {name for name in ops.__all__ if callable(getattr(ops, name))}
    assert public <= rows | by_hand, f"no row in tests/support/cases.py for {public - rows - by_hand}"


@pytest.mark.parametrize("family", STEPS)
def test_each_step_in_its_places(family: str) -> None:
    assert (ROOT / "kernels" / family / "reference.py").exists()
    assert (ROOT / STEPS[family]).exists()
    assert (ROOT / "bench" / f"{family}.py").exists()


@pytest.mark.table
def test_every_kernel_of_a_family_has_a_reference_and_a_docstring() -> None:
    for family in (*OPERATORS, *STEPS):
        tree = ast.parse((ROOT / "kernels" / family / "reference.py").read_text())
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
        assert public
        for function in public:
            assert ast.get_docstring(function), f"kernels/{family}/reference.py: {function.name} has no docstring"


@pytest.mark.table
def test_the_oracle_runs_nothing_but_itself() -> None:
    """References import other references, host checks and what describes a problem, never an operator or a kernel."""
    core = {"device", "geometry", "labels", "random", "reduction"}
    allowed = {f"kernels.core.{name}" for name in core} | {"kernels.loss.spec", "kernels.loss.regions"}
    allowed |= {f"kernels.{family}.reference" for family in (*OPERATORS, *STEPS)} | {
        "kernels.optimizer.layout",
        "kernels.norm.records",
    }
    for path in sorted((ROOT / "kernels").rglob("reference.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kernels"):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert node.module in allowed or names <= allowed, f"{path.relative_to(ROOT)} imports {node.module}"


TABLES = ("cases.py", "test_fast_mutants.py")  # a row per operator, or per planted mistake


@pytest.mark.table
def test_files_and_functions_are_of_readable_size() -> None:
    for path in sources(*PACKAGES, "bench", "tests"):
        assert not re.fullmatch(r"(utils?|helpers?|common|misc)\.py", path.name), path
        lines = path.read_text().count("\n")
        assert lines <= 600 or path.name in TABLES, f"{path.relative_to(ROOT)} has {lines} lines"
        if path.is_relative_to(ROOT / "kernels"):  # one kernel is one function
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 90, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


MOST_PARAMETERS = 10
# Why a function has more. A compiled kernel takes chunks and scratch memory, which are three, then an address for every
# array and the sizes that are no field of a record; its program takes the same. Settings have PyTorch's names, most are
# keywords with defaults, and a record of them would only move the list.
ADDRESSES = "a kernel or its program: an array or a size each"
SETTINGS = "settings that callers name"
MANY_PARAMETERS = {
    "autograd/gradcheck/check.py": ("gradcheck", SETTINGS),
    "autograd/ops/conv_norm.py": ("conv2d_batch_norm", SETTINGS),
    "engine/export/twin.py": ("__init__", SETTINGS),
    "kernels/attention/cpu/flash.py": ("attention_backward", "attention_forward", ADDRESSES),
    "kernels/attention/cpu/polarized.py": ("polarized_parameters", ADDRESSES),
    "kernels/augment/cpu.py": ("_augment_tile", "augment_batch", ADDRESSES),
    "kernels/conv/cpu/depthwise.py": ("depthwise_filter_gradient", ADDRESSES),
    "kernels/conv/cpu/direct/backward_filter.py": ("direct_filter_gradient", ADDRESSES),
    "kernels/conv/cpu/direct/forward.py": ("direct_forward", ADDRESSES),
    "kernels/conv/cpu/filters.py": ("pack_filter", ADDRESSES),
    "kernels/conv/cpu/fused_norm_backward/pointwise.py": ("norm_gradient_1x1", ADDRESSES),
    "kernels/conv/cpu/fused_norm_backward/winograd.py": ("norm_gradient_winograd", ADDRESSES),
    "kernels/conv/cpu/winograd/backward_filter.py": ("winograd_gradient_finish", ADDRESSES),
    "kernels/conv/cpu/winograd/filter_transform.py": ("winograd_filter", ADDRESSES),
    "kernels/conv/cpu/winograd/forward.py": ("winograd_forward", ADDRESSES),
    "kernels/gate/cpu.py": ("gate_backward", "gradients", ADDRESSES),
    "kernels/loss/cpu/distance_map.py": ("signed_distances", ADDRESSES),
    "kernels/loss/cpu/segmentation_loss.py": ("loss_backward", ADDRESSES),
    "kernels/norm/cpu/batch_norm.py": (
        "batch_norm_backward",
        "batch_norm_forward",
        "batch_norm_gradient_sums",
        ADDRESSES,
    ),
    "kernels/norm/cpu/channel_vectors.py": ("batch_norm_gradient_rows", "batch_norm_moments", ADDRESSES),
    "kernels/norm/cpu/layer_norm.py": ("layer_norm_backward", "layer_norm_forward", ADDRESSES),
    "kernels/optimizer/cpu.py": ("adamw_step", "sgd_step", ADDRESSES),
    "kernels/optimizer/cuda.py": ("adamw_step", SETTINGS),
    "kernels/optimizer/reference.py": ("adamw_step", "sgd_step", SETTINGS),
    "kernels/pointwise/cpu/dropout.py": ("_drop", "dropout", ADDRESSES),
    "kernels/resample/cpu.py": ("resample2d", ADDRESSES),
    "layers/unet.py": ("__init__", SETTINGS),
}


@pytest.mark.table
def test_functions_have_few_parameters() -> None:
    """Ten at most, but for those above; these are below 1.5 % of all."""
    found: dict[str, set[str]] = {}
    functions = 0
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions += 1
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg != "self"]
                if len(names) > MOST_PARAMETERS:
                    found.setdefault(path.relative_to(ROOT).as_posix(), set()).add(node.name)
    assert found == {path: set(names) for path, (*names, _) in MANY_PARAMETERS.items()}
    assert sum(map(len, found.values())) < 0.015 * functions


@pytest.mark.table
def test_public_functions_of_the_operators_have_docstrings() -> None:
    for path in sources(*PACKAGES):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name} has no docstring"


def test_user_input_is_never_checked_by_assert() -> None:
    for path in sources(*PACKAGES):
        asserts = [n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)]
        assert not asserts, f"{path.relative_to(ROOT)}: assert in line {asserts}"


def test_a_wheel_takes_every_folder_with_code_and_nothing_else() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    for path in files:
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), f"{path.parent.relative_to(ROOT)} is no package"
    for path in files:
        if path.suffix not in (".pyc", ".md"):
            assert path.suffix in SUFFIXES, f"SUFFIXES in engine/packaging/hook.py does not name that of {path}"


def test_import_of_the_kernels_needs_neither_cupy_nor_torch_nor_matplotlib() -> None:
    code = (
        "import sys, engine.train, engine.evaluate; print([m for m in ('cupy', 'torch', 'matplotlib', 'PIL', 'numba') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_no_text_cites_a_document_that_is_not_here() -> None:
    folders = [ROOT / name for name in (*PACKAGES, "bench", "tests", "docs", "examples")]
    files = [path for kind in ("py", "md", "cu", "cuh") for folder in folders for path in folder.rglob(f"*.{kind}")]
    assert len(files) > 300
    below = "|".join(path.name for path in (ROOT / "kernels").iterdir())
    named = re.compile(
        rf"(?<![\w/.<-])(?:(?:{'|'.join(PACKAGES)}|bench|tests|docs)/|((?:{below})/))[\w/-]+\.(?:py|cuh?|md)\b"
    )
    for path in (*files, ROOT / "README.md", ROOT / "CHANGELOG.md"):
        text = path.read_text(encoding="utf-8")
        for found in named.finditer(text):
            name = f"kernels/{found[0]}" if found[1] else found[0]
            placeholder = re.search(r"/(?:FAMILY|[XY])\b", name)  # a place for a name
            assert placeholder or (ROOT / name).exists(), f"{path.relative_to(ROOT)} cites {name}"
        cited = re.search(r"\b(?:DESIGN|SPEC|HOUSE)(?:'s| [0-9])", text)
        assert cited is None or path.name == "test_architecture.py", f"{path.relative_to(ROOT)} cites {cited}"


# -- imports ----------------------------------------------------------------------------------------------------------


def runtime_imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of this repository that a file imports, at its top or within functions, but not for types only."""
    found: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(path.read_text()))
    return found & modules.keys()


@pytest.mark.table
def test_imports_make_no_cycle() -> None:
    """Neither in the product nor in the tests: every module is below what imports it."""
    files = {path.relative_to(ROOT).with_suffix(""): path for path in sources(*PACKAGES, "bench", "tests")}
    modules = {".".join(name.parts).removesuffix(".__init__"): path for name, path in files.items()}
    assert "tests.support.cases" in runtime_imports(ROOT / "tests" / "test_architecture.py", modules)
    below = {name: runtime_imports(path, modules) - {name} for name, path in modules.items()}
    while free := [name for name, others in below.items() if not others]:
        for name in free:
            del below[name]
        for others in below.values():
            others.difference_update(free)
    # What is left is on a cycle, or above one.
    on_cycle = {name: others & below.keys() for name, others in below.items()}
    assert not on_cycle, sorted((name, sorted(others)) for name, others in on_cycle.items())[:20]


def test_no_test_module_imports_another() -> None:
    """Nor does anything else import one: what several tests need is in tests/support, or beside them in tests/cuda.
    Modules of tests have one name each, that from the root: none is looked for in a folder of tests.
    """
    files = sources("tests")
    folders = {path.parent for path in files} - {ROOT / "tests"}
    relative = {path.stem for path in files if path.stem not in ("__init__", "__main__", "conftest")}
    relative |= {folder.name for folder in folders} - {*PACKAGES, "bench"}
    assert {"test_architecture", "cases", "support", "bounds"} <= relative
    for path in (*sources(*PACKAGES, "bench"), *files):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                where = f"{path.relative_to(ROOT)}, line {node.lineno}: import of {name}"
                parts = name.split(".")
                assert not (parts[0] == "tests" and any(part.startswith("test_") for part in parts)), where
                assert parts[0] not in relative, where


def test_tests_mirror_the_packages() -> None:
    """A folder of tests is called as what it tests, or holds what has no package: tools, and tests of a kind."""
    own = {"support", "cuda", "conformance", "fuzz"}
    for folder in {path.parent.relative_to(ROOT / "tests") for path in sources("tests")}:
        if folder.parts and folder.parts[0] not in own:
            assert (ROOT / folder).is_dir(), f"tests/{folder}: there is no {folder}"
