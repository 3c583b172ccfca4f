"""Whether a script reads what it was offered, and saves that lie where no pattern looks."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.adopt.beside import find_beside
from orchestrator.adopt.ongoing_saves import OngoingSaves
from orchestrator.adopt.read_watcher import ReadWatcher
from orchestrator.adopt.unit_pattern import UnitPattern
from tests.support import NOBODY

READS = {
    "read": ("open(p, 'rb').read()", True),
    "mapped": ("f = open(p, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); f.close()", True),
    "written": ("open(p, 'wb').write(b'new'); open(p, 'rb').read()", False),
    "replaced": ("open(p + 'x', 'wb').write(b'new'); os.replace(p + 'x', p)", False),
    "looked at": ("os.stat(p); os.listdir(os.path.dirname(p))", False),
    "nothing": ("pass", False),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs inotify")
@pytest.mark.parametrize(("does", "reads"), READS.values(), ids=READS.keys())
@pytest.mark.parametrize("whole_directory", [False, True])
def test_read_of_an_offered_checkpoint_is_seen(
    tmp_path: Path, does: str, reads: bool, whole_directory: bool
) -> None:
    """Opening to read or to map counts; a save, a look and a replacement do not."""
    file = tmp_path / "c-1" / "model.pt"
    file.parent.mkdir()
    file.write_bytes(b"old" * 1000)
    watcher = ReadWatcher()
    assert not watcher.is_unread
    watcher.start([file.parent if whole_directory else file])
    assert watcher.is_unread
    script = f"import mmap, os, sys, time; p = sys.argv[1]; {does}; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        deadline = time.monotonic() + (10 if reads else 1.5)
        while watcher.is_unread and time.monotonic() < deadline:
            time.sleep(0.05)
        assert watcher.is_unread == (not reads)
        child.communicate(b"\n")
    watcher.stop()
    assert not watcher.is_unread


def test_nothing_is_said_of_reading_where_no_event_has_come(tmp_path: Path) -> None:
    """The watcher's own read proves that the system tells of reads; a directory has none."""
    watcher = ReadWatcher()
    watcher.start([tmp_path])
    assert not watcher.is_unread


@pytest.mark.parametrize(
    ("pattern", "saved", "suggested"),
    [
        ("out/exp/last.pt", "out/exp2/last.pt", "out/exp*/last.pt"),
        ("out/exp/weights/last.pt", "out/exp3/weights/last.pt", "out/exp*/weights/last.pt"),
        ("out/2026-01-31/c-*", "out/2026-02-01/c-5", "out/2026-0*/c-*"),
        ("o/2026-01-31/23-59-01/a.pt", "o/2026-02-01/00-10-07/a.pt", "o/2026-0*/*/a.pt"),
        ("out/model.pt", "out/model_2.pt", "out/model*.pt"),
        ("out/c-*.pt", "logs/c-1.pt", "*/c-*.pt"),
    ],
)
def test_save_beside_the_pattern_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, saved: str, suggested: str
) -> None:
    """The suggested pattern matches it, and what was written before the attempt is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    Path(saved).parent.mkdir(parents=True, exist_ok=True)
    Path(saved).write_bytes(b"x")
    found = find_beside(UnitPattern.parse(pattern), 0)
    assert found is not None
    assert (found.path, found.pattern_text) == (tmp_path / saved, suggested)
    assert tmp_path / saved in UnitPattern.parse(suggested).find()[1]
    assert find_beside(UnitPattern.parse(pattern), time.time_ns() + 10**12) is None
    assert find_beside(UnitPattern.parse(suggested), 0) is None
    elsewhere = Path("..") / "elsewhere" / pattern.replace("*", "7")
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    assert find_beside(UnitPattern.parse(suggested), 0) is None
    shutil.rmtree(Path("..") / "elsewhere")


@pytest.mark.usefixtures("as_root")
def test_save_of_another_user_beside_the_pattern_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No advice leads to a pattern that covers what others write."""
    monkeypatch.chdir(tmp_path)
    for name in ("out/a/last.pt", "out/b/last.pt"):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    pattern = UnitPattern.parse("out/a/last.pt")
    assert find_beside(pattern, 0) is not None
    os.chown("out/b/last.pt", NOBODY, -1)
    assert find_beside(pattern, 0) is None


WAYS: dict[str, tuple[str, Callable[[Path], Path], bool]] = {
    "file": ("c-*", lambda out: out / "c-1", True),
    "file in a directory": ("c-*", lambda out: out / "c-1" / "sub" / "a.bin", True),
    "file that is renamed later": ("c-*", lambda out: out / "c-1.tmp123", True),
    "hidden temporary file": ("last.pt", lambda out: out / ".last.pt.tmp", True),
    "log": ("last.pt", lambda out: out / "train.log", False),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("pattern", "name", "counts"), WAYS.values(), ids=WAYS.keys())
def test_save_is_under_way_while_its_file_is_open(
    tmp_path: Path, pattern: str, name: Callable[[Path], Path], counts: bool
) -> None:
    """A log in the same directory is open all the time, and no save."""
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    file = name(tmp_path / "out")
    file.parent.mkdir(parents=True, exist_ok=True)
    saves = OngoingSaves(UnitPattern.parse(str(tmp_path / "out" / pattern)))
    script = "import sys; f = open(sys.argv[1], 'wb'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert bool(saves.under_way()) == counts
        child.communicate(b"\n")
