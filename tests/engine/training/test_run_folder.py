"""Run folders: one process each, whole files, and the same bits whatever the kernel cache holds."""

from __future__ import annotations

import os
import time

import pytest

from engine.files import OutputError, write_bytes
from engine.training.reporting import read_rows
from engine.training.run_folder import FolderError, RunFolder, next_folder
from engine.training.run_state import load_state
from tests.support.tiny_runs import flags, posix, run

# -- folders and files -------------------------------------------------------------------------------------------------


def test_two_runs_never_share_a_folder(tmp_path) -> None:
    with (
        RunFolder(tmp_path / "a"),
        pytest.raises(FolderError, match=rf"--out .*a: another process \({os.getpid()}\) is writing there"),
    ):
        RunFolder(tmp_path / "a").__enter__()
    assert not (tmp_path / "a").exists(), "nothing was put there"
    (tmp_path / "b").mkdir()
    with RunFolder(tmp_path / "b"):
        pass
    assert (tmp_path / "b").exists(), "it was there before"


@posix
def test_many_processes_get_a_folder_each(tmp_path) -> None:
    """Default names and claims of one folder, by processes that start at the same time."""
    children = []
    for _ in range(24):
        child = os.fork()
        if not child:
            code = 9
            try:
                path = next_folder(tmp_path / "runs", "tiny")
                write_bytes(path / "mine", str(os.getpid()).encode())
                try:
                    with RunFolder(tmp_path / "one"):
                        descriptor = os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL)
                        time.sleep(0.01)
                        os.unlink(tmp_path / "inside")
                        os.close(descriptor)
                    code = 0
                except FolderError:
                    code = 1
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(codes) <= {0, 1}, "whoever got the folder was alone in it"
    assert 0 in codes
    owners = {(path / "mine").read_text() for path in (tmp_path / "runs").iterdir()}
    assert owners == {str(child) for child in children}


def test_overwrite_removes_the_old_results_and_nothing_else(tiles, tmp_path) -> None:
    out = tmp_path / "run"
    assert run(flags(tiles, out, epochs=2)) == 0
    (out / "mine.txt").write_text("kept")
    assert run(flags(tiles, out, "--overwrite", epochs=1)) == 0
    assert len(read_rows(out)) == 1
    assert load_state(out).serial == 1
    assert (out / "mine.txt").read_text() == "kept"


@posix
def test_modes_of_all_files_are_the_same(whole) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in whole.iterdir()} == {0o666 & ~mask}


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    from engine import files

    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*_) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OutputError, match=r"cannot write .*file: No space left on device"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# -- one seed, one model -----------------------------------------------------------------------------------------------
