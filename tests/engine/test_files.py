"""Files appear whole or not at all, whatever interrupts their writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.files import OutputError, OutputFile, output_file, write_bytes


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_ctrl_c_in_the_middle_of_a_write_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(f"engine.files.os.{call}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_written_in_parts_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a"
    output = OutputFile(path)
    output.file.write(b"one ")
    assert not path.exists()
    output.file.write(b"two")
    output.commit()
    assert path.read_bytes() == b"one two"
    output.discard()  # too late
    assert os.listdir(path.parent) == ["a"]


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "full"), OutputError)]
)
def test_a_block_that_raises_leaves_the_old_file(
    error: BaseException, seen: type[BaseException], tmp_path: Path
) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(seen):
        _write_half(tmp_path / "a", error)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def _write_half(path: Path, error: BaseException) -> None:
    with output_file(path) as file:
        file.write(b"new")
        raise error


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a: Is a directory"), output_file(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == ["a"]
