"""What a script saves, looked at with an injected clock."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from orchestrator.adopt.pattern import Pattern
from orchestrator.adopt.scan_events import LeftAlone, Moment, ScanEvent, Sealed, SetAside, Withdrawn
from orchestrator.adopt.scanner import SaveScanner
from orchestrator.adopt.store import AdoptedStore
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.manifest import Reason
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import NoValidCheckpointError
from orchestrator.rundir.paths import RunDir


class Script:
    """A directory in which a script saves, and who looks at it."""

    def __init__(self, root: Path, pattern: str) -> None:
        self.out = root / "out"
        self.out.mkdir(exist_ok=True)
        run = RunDir(root / "run")
        run.create()
        self.now = 0.0
        self.store = AdoptedStore(run, "0123456789abcdef")
        self.written = WriteLedger(run.written_file)
        self.sightings = SaveScanner(
            Pattern.parse(str(self.out / pattern)), self.store, self.written, lambda: self.now
        )

    def look(self, moment: Moment = Moment.RUNNING, after: float = 0.0) -> list[ScanEvent]:
        self.now += after
        return self.sightings.look(moment, Reason.PERIODIC)

    def save(self, name: str, value: float = 0.0) -> None:
        """In place, as torch.save does."""
        (self.out / name).parent.mkdir(exist_ok=True)
        torch.save({"a": torch.full((2000,), value)}, self.out / name)

    def tear(self, name: str) -> None:
        with open(self.out / name, "r+b") as file:
            file.truncate(file.seek(0, os.SEEK_END) // 2)

    def steps(self) -> list[int]:
        return [checkpoint.manifest.step for checkpoint in self.store.all()]


@pytest.fixture
def numbered(tmp_path: Path) -> Script:
    return Script(tmp_path, "c-*")


@pytest.fixture
def one_file(tmp_path: Path) -> Script:
    return Script(tmp_path, "last.pt")


def kinds(happenings: list[ScanEvent]) -> list[type]:
    return [type(happening) for happening in happenings]


def test_a_directory_counts_when_it_is_quiet(numbered: Script) -> None:
    """One that nothing proves to be whole has to be quiet for long."""
    numbered.look(Moment.FIRST)
    numbered.save("c-1/a.pt")
    assert numbered.look() == numbered.look(after=20) == []
    numbered.save("c-1/b.pt")
    assert numbered.look(after=5) == numbered.look(after=20) == []
    assert kinds(numbered.look(after=20)) == [Sealed]
    # What has all that an earlier one has needs no such wait.
    numbered.save("c-2/a.pt")
    numbered.look()
    assert numbered.look(after=5) == []
    numbered.save("c-2/b.pt")
    numbered.look()
    assert kinds(numbered.look(after=5)) == [Sealed]
    assert numbered.steps() == [1, 2]


def test_sealing_is_no_looking(one_file: Script) -> None:
    """After a large checkpoint, all of which is read, one does not look less often."""
    one_file.look(Moment.FIRST)
    torch.save({"a": torch.zeros(16 << 20)}, one_file.out / "last.pt")
    began = time.thread_time()
    assert kinds(one_file.look()) == [Sealed]
    assert one_file.sightings.sealing_cpu_seconds > (time.thread_time() - began) / 2


def test_only_what_was_seen_being_written_is_set_aside(numbered: Script) -> None:
    """A torn file from before the run stays where it is, one of a killed save does not."""
    numbered.save("c-1")
    numbered.tear("c-1")
    assert kinds(numbered.look(Moment.FIRST)) == [LeftAlone]
    numbered.save("c-2")
    numbered.tear("c-2")
    assert numbered.look() == []
    assert kinds(numbered.look(Moment.KILLED)) == [SetAside]
    assert [path.name for path in numbered.out.iterdir()] == ["c-1"]
    # It never was a checkpoint: the run begins anew, which it would not with one that is lost.
    assert numbered.store.newest_valid() is None


def test_of_what_others_wrote_only_the_newest_count(numbered: Script) -> None:
    """Years of checkpoints are not read before the first start; a torn one counts for none."""
    for step in (9, 1, 10, 8, 2):
        numbered.save(f"c-{step}")
    numbered.tear("c-10")
    assert sorted(map(str, kinds(numbered.look(Moment.FIRST)))) == sorted(
        map(str, [Sealed, Sealed, LeftAlone])
    )
    assert numbered.steps() == [8, 9]
    assert numbered.look(after=100) == numbered.look(Moment.KILLED) == []
    assert len(list(numbered.out.iterdir())) == 5


def test_of_many_that_do_not_count_some_are_named(numbered: Script) -> None:
    """A pattern that matches thousands of other files does not fill the screen; none is moved."""
    for step in range(20):
        (numbered.out / f"c-{step}.pt").touch()
    assert kinds(numbered.look(Moment.FIRST)) == 5 * [LeftAlone]
    assert numbered.look(after=100) == numbered.look(Moment.KILLED) == []
    numbered.save("c-3.pt")
    assert kinds(numbered.look()) == [Sealed]


def test_what_is_added_to_anothers_checkpoint_does_not_make_it_ours(numbered: Script) -> None:
    """Only where every file was written anew is the whole of it the work of our trainer."""
    numbered.save("c-1/a.pt")
    numbered.save("c-2/a.pt")
    numbered.look(Moment.FIRST)
    (numbered.out / "c-1" / "notes.txt").touch()
    numbered.look()
    numbered.look(after=60)
    assert [c.manifest.step for c in numbered.store.all()] == [1, 2]
    numbered.save("c-1/a.pt", 5.0)
    (numbered.out / "c-1" / "notes.txt").write_text("mine")
    numbered.look()
    numbered.look(after=60)
    ours = [c.manifest.adopted.written_here for c in numbered.store.all() if c.manifest.adopted]
    assert ours == [True, False]


def test_nor_does_what_is_added_to_one_that_was_passed_over(numbered: Script) -> None:
    """What does not count must not become ours by a note that somebody puts into it."""
    for step in (1, 2, 3):
        numbered.save(f"c-{step}/a.pt")
    numbered.look(Moment.FIRST)
    assert numbered.steps() == [2, 3]
    (numbered.out / "c-1" / "notes.txt").touch()
    numbered.look()
    assert not numbered.written.is_ours(numbered.out / "c-1")
    numbered.save("c-1/a.pt", 5.0)
    numbered.look()
    assert numbered.written.is_ours(numbered.out / "c-1")


def test_a_torn_file_in_a_directory_that_has_all_names(numbered: Script) -> None:
    """A killed save leaves the last name with half of its bytes; not every format shows that."""
    numbered.look(Moment.FIRST)
    for step in (1, 2):
        (numbered.out / f"c-{step}").mkdir()
        (numbered.out / f"c-{step}" / "weights.npy").write_bytes(b"x" * (200 // step))
        numbered.look()
        if step == 1:
            assert kinds(numbered.look(after=60)) == [Sealed]
    (happening,) = numbered.look(Moment.KILLED, after=2)
    assert isinstance(happening, SetAside)
    assert happening.reason == "the format of weights.npy does not show whether it is complete"


def test_what_a_dead_supervisor_saw_is_known_to_the_next(tmp_path: Path) -> None:
    """A machine that went away in the middle of a save leaves a file that we may set aside."""
    script = Script(tmp_path, "c-*")
    script.look(Moment.FIRST)
    script.save("c-2")
    script.tear("c-2")
    script.look()
    assert kinds(Script(tmp_path, "c-*").look(Moment.BEFORE)) == [SetAside]


def test_what_the_script_deletes_is_no_checkpoint_any_more(numbered: Script) -> None:
    """Its own rotation is followed; but the newest stays in the books, and its loss is loud."""
    for step in (1, 2):
        numbered.save(f"c-{step}")
        numbered.look(after=40)
    (numbered.out / "c-1").unlink()
    assert kinds(numbered.look()) == [Withdrawn]
    (numbered.out / "c-2").unlink()
    assert numbered.look() == []
    with pytest.raises(NoValidCheckpointError):
        numbered.store.newest_valid()


def test_a_directory_that_is_written_over_in_part_does_not_count(numbered: Script) -> None:
    """New weights beside an old optimizer state are not one state, though each file is whole."""
    for step in (1, 2):
        for name in ("a.pt", "b.pt"):
            numbered.save(f"c-{step}/{name}")
    assert kinds(numbered.look(Moment.ENDED_WELL)) == [Sealed, Sealed]
    numbered.save("c-2/a.pt", 7.0)
    (happening,) = numbered.look(Moment.KILLED)
    assert isinstance(happening, SetAside)
    assert happening.reason == "it is partly overwritten: a.pt is new, b.pt is not"


def test_each_version_of_one_file_is_kept(one_file: Script) -> None:
    """What is written over in place is copied; a half-written one is not, and what was is back."""
    one_file.look(Moment.FIRST)
    for value in (1.0, 2.0):
        one_file.save("last.pt", value)
        assert kinds(one_file.look(after=1)) == [Sealed]
    one_file.save("last.pt", 3.0)
    one_file.tear("last.pt")
    assert one_file.look() == []
    assert kinds(one_file.look(Moment.KILLED)) == [SetAside]
    newest = one_file.store.newest_valid()
    assert newest is not None
    one_file.store.put_back(newest)
    assert one_file.store.is_in_place(newest)
    assert torch.load(one_file.out / "last.pt")["a"][0] == 2.0
    assert [path.name for path in one_file.out.iterdir()] == ["last.pt"]
    # It is the version that is known already.
    assert one_file.look(Moment.BEFORE) == []


def test_a_script_that_replaces_its_file_gets_links(one_file: Script) -> None:
    """A hard link is a copy for whoever puts a new file there; a first version is always copied."""
    for value in (1.0, 2.0, 3.0):
        one_file.save("next", value)
        os.replace(one_file.out / "next", one_file.out / "last.pt")
        one_file.look(after=1)
    links = [
        (checkpoint.content / "last.pt").stat().st_nlink for checkpoint in one_file.store.all()
    ]
    assert links == [1, 1, 2]
    for checkpoint in one_file.store.all():
        verify(checkpoint)
    one_file.sightings.forget_habits()
    one_file.save("last.pt", 4.0)
    one_file.look(after=1)
    # The one that was linked is the price of a script that changes its habit: it is noticed.
    assert (one_file.store.all()[-1].content / "last.pt").stat().st_nlink == 1


def test_names_without_numbers_are_counted(tmp_path: Path) -> None:
    """They are ordered by time, and the count is marked as one."""
    script = Script(tmp_path, "*.pt")
    script.look(Moment.FIRST)
    for name in ("b.pt", "a.pt"):
        script.save(name)
        script.look(after=1)
    found = [checkpoint.manifest for checkpoint in script.store.all()]
    assert [Path(manifest.adopted.path).name for manifest in found if manifest.adopted] == [
        "b.pt",
        "a.pt",
    ]
    assert [manifest.step for manifest in found] == [1, 2]
    assert not any(manifest.adopted.numbered for manifest in found if manifest.adopted)


def test_a_checkpoint_on_another_disk_is_set_aside_beside_itself(tmp_path: Path) -> None:
    """Moving would be copying there: a hidden name takes it out of sight."""
    elsewhere = Path("/dev/shm") / f"adopt-{os.getpid()}"
    if not elsewhere.parent.is_dir() or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two filesystems")
    elsewhere.mkdir()
    try:
        script = Script(tmp_path, "c-*")
        script.out = elsewhere
        script.sightings = SaveScanner(
            Pattern.parse(f"{elsewhere}/c-*"), script.store, script.written, lambda: 0.0
        )
        script.look(Moment.FIRST)
        script.save("c-1/a.pt")
        script.tear("c-1/a.pt")
        (happening,) = script.look(Moment.KILLED)
        assert isinstance(happening, SetAside)
        assert happening.where.parent == elsewhere
        assert happening.where.name.startswith(".set-aside-")
    finally:
        shutil.rmtree(elsewhere)
