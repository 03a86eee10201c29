"""What the kernel cache believes: only what this user wrote, whole.
All else is compiled in memory, with one warning.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from engine import doctor, precompile
from engine.cli import Output, UsageError
from engine.config import Config
from kernels.core.cpu import jit as compiling
from kernels.core.cpu import store as storing
from kernels.core.cpu.store import CacheWarning, Store
from kernels.pointwise.cpu.activations import relu_forward
from tests.support.paths import ROOT

PROGRAM = """
import numpy as np
from kernels import pointwise
print("result", float(pointwise.relu_forward(np.linspace(-1, 1, 101, dtype=np.float32)).sum()))
"""
RESULT = "result 25.5"
NAME = "pointwise.cpu.activations.pointwise_map[relu_forward]"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A cache with one file."""
    monkeypatch.setattr(storing, "_noted", [])
    made = Store(tmp_path / "base" / "kernels")
    made.write("kernel", "key", b"payload")
    return made


def file_of(cache: Store) -> Path:
    assert cache.folder is not None
    return next(cache.folder.glob("*.bin"))


def refused(cache: Store, reason: str) -> None:
    """Reading gives nothing, with a warning; another look gives no second one."""
    storing._noted.clear()
    with pytest.warns(CacheWarning, match=reason) as caught:
        read = [cache.read("kernel", "key") for _ in range(2)]
    assert read == [None, None]
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def python(code: str, cache: Path | None, environment: dict[str, str | None] | None = None) -> list[str]:
    """What a fresh process prints on stdout; its stderr may hold one line, which is returned behind."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "AREOGRAD_CACHE": cache and str(cache), **(environment or {})}
    known = {name: value for name, value in known.items() if value is not None}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=known, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") <= 1, result.stderr
    return [*result.stdout.split("\n")[:-1], result.stderr.strip()]


def test_what_is_written_is_read_and_nothing_else(cache: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.read("kernel", "key") == b"payload"
        assert cache.read("kernel", "another key") is None
        assert cache.read("another kernel", "key") is None


def test_every_flipped_bit_and_every_length_is_noticed(cache: Store) -> None:
    """Exhaustively, for a short file: no damage of one bit, no prefix and no appended byte passes."""
    path = file_of(cache)
    whole = path.read_bytes()
    damaged = [whole[:k] for k in range(len(whole))] + [whole + b"\0"]
    damaged += [
        whole[:k] + bytes([whole[k] ^ 1 << bit]) + whole[k + 1 :] for k in range(len(whole)) for bit in range(8)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        for content in damaged:
            path.write_bytes(content)
            assert cache.read("kernel", "key") is None
    path.write_bytes(whole)
    assert cache.read("kernel", "key") == b"payload"


def test_a_file_of_another_kernel_is_not_taken(cache: Store) -> None:
    """Whole as it is: two files that changed places, or a copy from another version's folder."""
    path = file_of(cache)
    cache.write("kernel", "foreign", b"other")
    next(p for p in path.parent.iterdir() if p != path).replace(path)
    refused(cache, "made for something else")


def test_files_that_are_none(cache: Store) -> None:
    path = file_of(cache)
    for make in (Path.mkdir, os.mkfifo, lambda p: p.symlink_to(p), lambda p: p.symlink_to("/dev/zero")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)
        refused(cache, "not used, compiled anew")
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole of a terabyte: its size is looked at before memory is taken
    refused(cache, "1099511627776 bytes")


def test_a_good_cache_may_be_read_only(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading writes nothing; what is missing is compiled in memory, with one warning."""

    def read_only(path, flags, *mode, opened=os.open):  # type: ignore[no-untyped-def]
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    assert cache.read("kernel", "key") == b"payload"
    with pytest.warns(CacheWarning, match="Read-only file system.: kernels are compiled in memory") as caught:
        assert [cache.write(name, "key", b"") for name in ("second", "third")] == [None, None]
    assert len(caught) == 1
    assert cache.read("kernel", "key") == b"payload"


@pytest.mark.parametrize("part", ["file", "folder", "base"])
def test_what_others_can_write_is_refused(cache: Store, part: str) -> None:
    """A cache is code: it must be this user's own, and closed to all others."""
    file = file_of(cache)
    path = {"file": file, "folder": file.parent, "base": file.parent.parent}[part]
    for mode in (0o020, 0o002):
        path.chmod(path.stat().st_mode | mode)
        refused(cache, f"{path.name} can be written by others")
        path.chmod(path.stat().st_mode & ~mode)
        assert cache.read("kernel", "key") == b"payload"


@pytest.mark.parametrize("part", ["file", "folder", "base"])
def test_what_belongs_to_another_user_is_refused(cache: Store, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(cache)
    path = {"file": file, "folder": file.parent, "base": file.parent.parent}[part]
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    refused(cache, "belongs to user")


def test_a_link_to_a_folder_is_refused(cache: Store) -> None:
    """In a folder that all can write to, such as /tmp, anybody could put it there."""
    folder = file_of(cache).parent
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    refused(cache, "not a folder")


def test_a_folder_within_a_shared_one(cache: Store) -> None:
    """/tmp is open to all, but nobody can rename what is another's."""
    base = file_of(cache).parent.parent
    base.chmod(0o1777)
    assert cache.read("kernel", "key") == b"payload"


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_what_is_written_is_closed_to_others(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = Store(tmp_path / "base" / "kernels")
        made.write("kernel", "key", b"payload")
    finally:
        os.umask(before)
    for path in (file_of(made), made.folder, made.folder.parent):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022
    assert made.read("kernel", "key") == b"payload"


def test_a_folder_that_vanishes(cache: Store) -> None:
    shutil.rmtree(cache.folder.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.read("kernel", "key") is None
        cache.write("kernel", "key", b"again")
    assert cache.read("kernel", "key") == b"again"


def test_what_killed_processes_left_is_removed(cache: Store) -> None:
    """But not what another process is writing now."""
    old, young = cache.folder / "old.part", cache.folder / "young.part"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, time.time() - 7200))
    Store(cache.folder).write("second", "key", b"")
    assert not old.exists()
    assert young.exists()


def test_nobody_s_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user id that the password database does not know; a relative XDG_CACHE_HOME is to be ignored."""
    import pwd

    monkeypatch.setattr(storing, "_noted", [])
    for name in ("AREOGRAD_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    nowhere = compiling.store.__wrapped__()
    with pytest.warns(CacheWarning, match="no home folder .* compiled in memory"):
        assert nowhere.read("kernel", "key") is None
    assert nowhere.why_not_writable()
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(compiling.store.__wrapped__().folder).startswith("/home/somebody/.cache/areograd/kernels")


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: writing fails halfway. Nothing is left behind, and the result is
    right.
    """
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n{PROGRAM}"
    output, error = python(code, tmp_path / "cache")
    assert output == RESULT
    assert "cannot be written (File too large): kernels are compiled in memory" in error
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_places_that_cannot_be_folders(tmp_path: Path) -> None:
    """Too long a name, a file in the way, a user without a home: one note, and the result."""
    (tmp_path / "file").touch()
    assert python(PROGRAM, tmp_path / "file" / "cache")[0] == RESULT
    output, error = python(PROGRAM, tmp_path / ("x" * 300))
    assert output == RESULT
    assert "File name too long" in error
    code = f"import pwd\npwd.getpwuid = {{}}.__getitem__\n{PROGRAM}"
    output, error = python(code, None, {"HOME": None, "XDG_CACHE_HOME": None})
    assert output == RESULT
    assert "no home folder" in error


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Both compile, both write; every file is whole, and a third process compiles nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AREOGRAD_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROGRAM]
    both = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate() for process in both] == [(RESULT + "\n", "")] * 2
    code = (
        "from kernels.core.cpu.jit import on_compile; on_compile(lambda name, *_: print('compiled', name))\n" + PROGRAM
    )
    assert python(code, tmp_path / "cache") == [RESULT, ""]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_damaged_files_of_real_kernels() -> None:
    """A slice of tests/fuzz/damage.py, in processes of its own."""
    command = [sys.executable, "-m", "tests.fuzz.damage", "--only", "24", "--seed", str(int(time.time()) // 86400)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "24 damaged files: 24 fine" in result.stdout


def test_compiling_ahead_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own process compiles, since nobody else's work would reach it; --precompile alone has no purpose then
    and says so.
    """
    relu_forward(np.zeros(1, np.float32))  # the kernel is known from here on
    (tmp_path / "file").touch()
    monkeypatch.setattr(storing, "_noted", [])
    for module in (precompile, compiling):
        monkeypatch.setattr(module, "store", lambda: Store(tmp_path / "file" / "kernels"))
    monkeypatch.setattr(precompile, "missing", lambda _configs: [NAME])
    monkeypatch.setattr(precompile.subprocess, "Popen", None)
    reports = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        assert precompile.precompile([Config(width=4, batch=2)], lambda *report: reports.append(report)) == 1
    assert reports == [(1, 1, NAME)]
    with pytest.raises(UsageError, match=r"--precompile: .*file.*; AREOGRAD_CACHE can name another folder"):
        doctor.precompile_all(Output())
