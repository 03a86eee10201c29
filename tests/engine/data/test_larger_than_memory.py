"""Folders whose decoded tiles are in a file: the same tiles, bits and errors as in memory, and no more memory than was
allowed.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.config import Config
from engine.data import DataError, decoding, folder, load, stored, tiles
from engine.data.classes import counted
from engine.data.preparation import prepare
from engine.evaluate import Arguments, evaluate
from engine.training.batches import BatchSource
from engine.training.trainer import Run
from kernels.core.cpu.cores import group_memory
from tests.support.folders import labels, write_pairs
from tests.support.paths import ROOT
from tests.support.tiny_runs import NETWORK, ended, flags, results, run, stop_in_step, write_tiles

KINDS = {  # classes, kind of image, what masks hold, the setting `classes`
    "grey": (3, "grey", lambda t: t, "3"),
    "colour": (3, "rgb", lambda t: np.where(t == 2, 255, t), "2"),
    "16 bits": (5, "16", lambda t: t, "5"),
    "floating point": (5, "float", lambda t: t, "5"),
    "black and white": (2, "rgb", lambda t: 255 * t, "2"),
    "one logit": (2, "grey", lambda t: 255 * t, "1"),
}


@pytest.fixture
def in_a_file(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if nothing fitted into memory."""
    monkeypatch.setattr(folder, "fits", lambda size, memory: False)
    return monkeypatch


def children() -> set[str]:
    """This process's child processes, zombies too."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


# --- the same tiles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_a_file_are_those_in_memory(kind: str, tmp_path: Path, in_a_file: pytest.MonkeyPatch) -> None:
    count, pixels, values, classes = KINDS[kind]
    data = write_pairs(tmp_path / "data", count, pixels, stored=values, names=("a/{}.png", "a/{}_mask.png"))
    if kind == "colour":  # grey among colours
        Image.open(data / "a/p3.png").convert("L").save(data / "a/p3.png")
    expected, found = load(data, classes=classes), load(data, classes=classes, memory=0)
    assert "temporary file" in found.notes[1]
    assert [note for note in found.notes if "temporary" not in note] == list(expected.notes)
    assert found.classes == expected.classes
    want, got = expected.train, found.train
    assert (got.images.shape, got.images.dtype, got.images.ndim) == (
        want.images.shape,
        want.images.dtype,
        want.images.ndim,
    )
    assert (got.size, got.channels, got.ignored, len(got)) == (want.size, want.channels, want.ignored, len(want))
    rows = np.array([7, 0, 7, 3])
    for name in ("images", "masks"):
        mine, theirs = getattr(got, name), getattr(want, name)
        for index in (
            slice(None),
            slice(2, 5),
            rows,
            4,
            np.int64(9),
            (2, slice(0, 8), slice(3, 9)),
            (2, slice(8, 40), slice(20, 48)),
        ):
            np.testing.assert_array_equal(mine[index], theirs[index])
        np.testing.assert_array_equal(getattr(got[rows], name)[:], theirs[rows])
        fill = 255 if name == "masks" else None
        np.testing.assert_array_equal(stored.padded(mine, (64, 56), fill)[1], stored.padded(theirs, (64, 56), fill)[1])
        np.testing.assert_array_equal(stored.joined([mine, mine])[8:13], stored.joined([theirs, theirs])[8:13])
    for name in ("sizes", "folders", "counts"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    np.testing.assert_array_equal(got.counts.sum(1) + (want.masks == 255).sum((1, 2)), 40 * 48)


def test_grey_stored_as_colour_is_grey(tmp_path: Path, in_a_file: pytest.MonkeyPatch) -> None:
    data = write_pairs(tmp_path / "data", 3)
    for file in (data / "images").iterdir():
        Image.open(file).convert("RGB").save(file)
    assert load(data, classes="3", memory=0).train.images.shape == (10, 40, 48)


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--crop", "16", "24"]])
def test_a_run_from_a_file_has_the_bits_of_one_in_memory(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is stopped in its first epoch and goes on, and though the folder is gone while it trains."""
    data = write_pairs(tmp_path / "data", 3, "rgb")
    line = [f"--data={data}", "--classes=3", "--epochs=2", "--batch=4", *NETWORK, *more]
    assert run([*line, f"--out={tmp_path / 'memory'}"]) == 0
    monkeypatch.setattr(folder, "fits", lambda size, memory: False)
    train = Run.train

    def without_its_folder(self):
        assert isinstance(self.data.train.images, stored.Stored)
        data.rename(tmp_path / "away")
        try:
            return train(self)
        finally:
            (tmp_path / "away").rename(data)

    monkeypatch.setattr(Run, "train", without_its_folder)
    stop_in_step(2, 15, monkeypatch)
    assert run([*line, f"--out={tmp_path / 'file'}"]) == 143
    assert run([f"--resume={tmp_path / 'file'}"]) == 0
    assert results(tmp_path / "file") == results(tmp_path / "memory")
    found = evaluate(Arguments((tmp_path / "file",), split="all"))
    monkeypatch.undo()
    wanted = evaluate(Arguments((tmp_path / "file",), split="all"))
    assert {**found, "notes": 0} == {**wanted, "notes": 0}


def test_what_will_be_read_is_drawn_without_moving_the_generator(tmp_path: Path, in_a_file: pytest.MonkeyPatch) -> None:
    """And a window reads its own rows only: here 8 of 30, and what is fetched ahead is what is read."""
    data = write_pairs(tmp_path / "data", 3, sizes=((30, 41),))
    source, rng = BatchSource(load(data, classes="3", memory=0).train, (8, 16), "cpu"), np.random.default_rng(0)
    ahead, read, preadv = [], [], os.preadv

    def counting(descriptor: int, buffers: list, offset: int) -> int:
        read.append((offset, sum(len(b) for b in buffers)))
        return preadv(descriptor, buffers, offset)

    in_a_file.setattr(
        os, "posix_fadvise", lambda descriptor, offset, size, advice: ahead.append((offset, size)), raising=False
    )
    in_a_file.setattr(os, "preadv", counting)
    source.ahead(np.array([4, 1]), rng)
    source.take(np.array([4, 1]), rng)
    assert ahead == read
    assert [size for _, size in read] == [8 * 41] * 4


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two workers, however few pixels there are and whatever this machine has."""
    monkeypatch.setattr(decoding, "_MANY", 0)
    monkeypatch.setattr("kernels.core.cpu.cores.usable_cores", lambda: 2)
    return monkeypatch


def test_workers_decode_in_order_and_end(tmp_path: Path, workers: pytest.MonkeyPatch) -> None:
    before = children()
    data = write_pairs(tmp_path / "data", 3)
    found = load(data, classes="3").train
    np.testing.assert_array_equal(found.masks[9, :30, :41], labels(9, 3, (30, 41)))
    workers.undo()
    np.testing.assert_array_equal(found.images, load(data, classes="3").train.images)
    assert children() == before


@pytest.mark.parametrize("fault", ["a bad label", "a cut image", "interrupted"])
def test_nothing_is_left_when_workers_stop_early(
    fault: str, tmp_path: Path, workers: pytest.MonkeyPatch, in_a_file: pytest.MonkeyPatch
) -> None:
    before, place = children(), tmp_path / "place"
    place.mkdir()
    workers.setenv("TMPDIR", str(place))
    data = write_pairs(tmp_path / "data", 3)
    error, message = DataError, "masks/p4.png: got 7 at row 0, column 0"
    if fault == "a bad label":
        Image.fromarray(np.full((24, 37), 7, np.uint8)).save(data / "masks/p4.png")
    elif fault == "a cut image":
        (data / "images/p4.png").write_bytes((data / "images/p4.png").read_bytes()[:-30])
        message = "images/p4.png: cannot be read as a PNG"
    else:
        error, message = KeyboardInterrupt, "^$"
        workers.setattr(stored.TileFile, "append", lambda self, array: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(error, match=message):
        load(data, classes="3", memory=0)
    assert children() == before
    assert list(place.iterdir()) == []


def test_a_worker_that_dies_is_one_line(tmp_path: Path, workers: pytest.MonkeyPatch) -> None:
    data, give = write_pairs(tmp_path / "data", 3), decoding._Worker.give

    def killing(self, task):
        give(self, task)
        if task.image.name == "p4.png":
            self.process.kill()

    workers.setattr(decoding._Worker, "give", killing)
    with pytest.raises(DataError, match=r"images/p[0-9]\.png: the process that decoded it has died \(exit code -9\)"):
        load(data, classes="3")


def test_a_worker_ends_with_its_parent() -> None:
    worker = decoding._Worker(counted(3))
    worker.process.stdin.close()  # as the system closes it
    assert worker.process.wait(timeout=60) == 0
    worker.process.stdout.close()
    out = io.BytesIO()
    decoding.serve(
        io.BytesIO(pickle.dumps(counted(3)) + pickle.dumps(decoding.Task(Path("missing.png"), None, (8, 8)))), out
    )
    assert pickle.loads(out.getvalue()) == "missing.png: cannot be read as a PNG (No such file or directory)"


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 3)
    with pytest.raises(DataError, match=r"p0\.png: has changed while it was read"):
        decoding.decode(decoding.Task(data / "images/p0.png", None, (16, 16)), counted(3))


# --- memory -----------------------------------------------------------------------------------------------------------

_PROGRAM = """
import sys
import numpy as np
from engine.training.batches import BatchSource
from engine.config import Config
from engine.inference import Normalisation
from engine.data.preparation import prepare
from engine.training.run_state import surroundings
from kernels.core import device

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10

def through(part, memory):
    data = prepare(Config(data=f"{sys.argv[1]}/{part}", classes="3", split="tile"), memory=memory)
    surroundings(device.choose("cpu"), data.classes, data.train, data.val)
    Normalisation.of(data.train.images, data.train.sizes)
    source, rng = BatchSource(data.train, (0, 0), "cpu"), np.random.default_rng(0)
    for start in range(0, len(data.train), 4):
        source.take(np.arange(start, min(start + 4, len(data.train))), rng)

through("few", 1000)  # what libraries take
before = peak()
through("many", int(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_stays_below_the_setting(tmp_path: Path) -> None:
    """120 MiB of tiles: with a setting of 30 MiB the peak of all resident pages, of files too, grows by less; in memory
    by more.
    """
    many = write_pairs(tmp_path / "many", 3, "rgb", count=1, sizes=((512, 512),))
    for k in range(1, 120):
        for name in ("images", "masks"):
            os.link(many / name / "p0.png", many / name / f"p{k}.png")
    write_pairs(tmp_path / "few", 3, "rgb", count=4)
    grown = {}
    for memory in (30, 4000):
        command = [sys.executable, "-c", _PROGRAM, str(tmp_path), str(memory)]
        grown[memory] = int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert grown[30] < 30
    assert grown[4000] > 120


@pytest.mark.parametrize(
    ("limit", "used", "stat", "left"),
    [
        ("1000", "700", "anon 1\ninactive_file 100\n", 400),
        ("max", "700", "", np.inf),
        ("500", "700", "inactive_file 100\n", 0),
    ],
)
def test_memory_that_control_groups_leave(limit: str, used: str, stat: str, left: float, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("0::/a/b\n")
    inner = tmp_path / "fs/a"
    inner.mkdir(parents=True)
    for name, content in (("max", limit), ("current", used), ("stat", stat)):
        (inner / f"memory.{name}").write_text(content)
    assert group_memory(tmp_path / "fs", tmp_path / "mine") == left


def test_a_disk_without_room_is_one_line(tmp_path: Path, in_a_file: pytest.MonkeyPatch) -> None:
    data = write_pairs(tmp_path / "data", 3)
    with open("/dev/full", "wb", buffering=0) as full:
        file = stored.TileFile(0)
        file.file = full
        with pytest.raises(
            DataError, match=r"the decoded tiles cannot be written there \(No space left on device\); TMPDIR names"
        ):
            file.append(np.zeros(9))
    in_a_file.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 100))
    with pytest.raises(
        DataError, match=r"no temporary file of 0 MiB for the decoded tiles \(0 MiB are free\); TMPDIR names"
    ):
        load(data, classes="3", memory=0)


# --- one pass ---------------------------------------------------------------------------------------------------------


def test_masks_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When they are read: no other pass until training begins."""
    write_tiles(tmp_path / "tiles.npz")
    write_pairs(tmp_path / "data", 5)
    passes, count = [], tiles._counted

    def counting(masks, classes):
        passes.append(len(masks))
        return count(masks, classes)

    monkeypatch.setattr(tiles, "_counted", counting)
    data = prepare(Config(data=str(tmp_path / "tiles.npz"), split="tile"))
    assert passes == [30]
    np.testing.assert_array_equal(data.train.counts, count(data.train.masks, data.classes))
    assert run([f"--data={tmp_path / 'data'}", "--classes=5", f"--out={tmp_path / 'out'}", "--epochs=1", *NETWORK]) == 0
    assert passes == [30]


def test_a_batch_that_does_not_fit_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However large --batch is, a step takes no more than all tiles; what their activations need is compared with what
    there is.
    """
    tiles = tmp_path / "tiles.npz"
    write_tiles(tiles)
    assert run([*flags(tiles, tmp_path / "fits", epochs=1), "--batch=100000"]) == 0
    monkeypatch.setattr("engine.training.trainer.available_memory", lambda: 1 << 20)
    code, line = ended([*flags(tiles, tmp_path / "not", epochs=1), "--batch=100000"], capsys)
    assert code == 2
    assert re.search(
        (
            r"batch: a training step of \d+ tiles takes at least \d+ MiB with this network, but 1 MiB are available: "
            r"expected at most \d+$"
        ),
        line,
    )
    assert not (tmp_path / "not").exists()
