"""Unpack the packages that this Python lacks from a folder of wheels:  python -m bench.gpu_check.wheels FOLDER TARGET

A wheel is a zip archive. Nothing is unpacked that this Python can import already, so that TARGET may come first on its
path. Uses the standard library alone: it runs before anything is there.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path, PurePosixPath


def packages(wheel: zipfile.ZipFile) -> set[str]:
    """The top-level modules and packages that a wheel installs."""
    paths = [PurePosixPath(name) for name in wheel.namelist()]
    tops = {path.parts[0] if len(path.parts) > 1 else path.stem for path in paths if path.suffix in (".py", ".so")}
    return {top for top in tops if not top.endswith((".dist-info", ".data"))}


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpack what is missing; returns a line per wheel."""
    lines = []
    for path in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            missing = [top for top in sorted(packages(wheel)) if importlib.util.find_spec(top) is None]
            if missing:
                wheel.extractall(target)
            lines.append(f"{path.name}: {'unpacked' if missing else 'not needed'}")
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"error: --wheels: no folder {' '.join(sys.argv[1:2])!r}")
    print("\n".join(unpack(Path(sys.argv[1]), Path(sys.argv[2]))))
