"""Scans of what a script saves, with an injected clock."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from orchestrator.adopt.scan_events import LeftAlone, Moment, Sealed, SetAside, Withdrawn
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import NoValidCheckpointError
from tests.adopt.support import Script, kinds


@pytest.fixture
def numbered(tmp_path: Path) -> Script:
    return Script(tmp_path, "c-*")


@pytest.fixture
def one_file(tmp_path: Path) -> Script:
    return Script(tmp_path, "last.pt")


def test_directory_is_sealed_when_it_is_quiet(numbered: Script) -> None:
    """A directory that nothing proves whole must be unchanged for a long time."""
    numbered.scan(Moment.FIRST_START)
    numbered.save("c-1/a.pt")
    assert numbered.scan() == numbered.scan(after=20) == []
    numbered.save("c-1/b.pt")
    assert numbered.scan(after=5) == numbered.scan(after=20) == []
    assert kinds(numbered.scan(after=20)) == [Sealed]
    # What has all that an earlier one has needs no such wait.
    numbered.save("c-2/a.pt")
    numbered.scan()
    assert numbered.scan(after=5) == []
    numbered.save("c-2/b.pt")
    numbered.scan()
    assert kinds(numbered.scan(after=5)) == [Sealed]
    assert numbered.steps() == [1, 2]


def test_sealing_time_is_counted_apart_from_scanning(one_file: Script) -> None:
    """Reading all of a large checkpoint does not make scans less frequent."""
    one_file.scan(Moment.FIRST_START)
    torch.save({"a": torch.zeros(16 << 20)}, one_file.out / "last.pt")
    began = time.thread_time()
    assert kinds(one_file.scan()) == [Sealed]
    assert one_file.scanner.sealing_cpu_seconds > (time.thread_time() - began) / 2


def test_torn_save_is_set_aside_only_if_the_run_wrote_it(numbered: Script) -> None:
    """A torn file from before the run stays; the leftover of a killed save does not."""
    numbered.save("c-1")
    numbered.tear("c-1")
    assert kinds(numbered.scan(Moment.FIRST_START)) == [LeftAlone]
    numbered.save("c-2")
    numbered.tear("c-2")
    assert numbered.scan() == []
    assert kinds(numbered.scan(Moment.FAILED)) == [SetAside]
    assert [path.name for path in numbered.out.iterdir()] == ["c-1"]
    # It never was a checkpoint: the run starts from zero, as it would not after the loss of one.
    assert newest_valid(numbered.store) is None


def test_only_the_newest_earlier_saves_are_sealed(numbered: Script) -> None:
    """Years of checkpoints are not read before the first start; a torn one does not count."""
    for step in (9, 1, 10, 8, 2):
        numbered.save(f"c-{step}")
    numbered.tear("c-10")
    assert sorted(map(str, kinds(numbered.scan(Moment.FIRST_START)))) == sorted(
        map(str, [Sealed, Sealed, LeftAlone])
    )
    assert numbered.steps() == [8, 9]
    assert numbered.scan(after=100) == numbered.scan(Moment.FAILED) == []
    assert len(list(numbered.out.iterdir())) == 5


def test_only_some_of_many_rejected_saves_are_reported(numbered: Script) -> None:
    """A pattern that matches thousands of other files does not fill the screen."""
    for step in range(20):
        (numbered.out / f"c-{step}.pt").touch()
    assert kinds(numbered.scan(Moment.FIRST_START)) == 5 * [LeftAlone]
    assert numbered.scan(after=100) == numbered.scan(Moment.FAILED) == []
    numbered.save("c-3.pt")
    assert kinds(numbered.scan()) == [Sealed]


def test_file_added_to_an_earlier_save_does_not_make_it_work_of_the_run(numbered: Script) -> None:
    """Only a save whose every file was written again is the work of the run."""
    numbered.save("c-1/a.pt")
    numbered.save("c-2/a.pt")
    numbered.scan(Moment.FIRST_START)
    (numbered.out / "c-1" / "notes.txt").touch()
    numbered.scan()
    numbered.scan(after=60)
    assert [c.manifest.step for c in numbered.store.all()] == [1, 2]
    numbered.save("c-1/a.pt", 5.0)
    (numbered.out / "c-1" / "notes.txt").write_text("mine")
    numbered.scan()
    numbered.scan(after=60)
    of_run = [c.manifest.adopted.written_here for c in numbered.store.all() if c.manifest.adopted]
    assert of_run == [True, False]


def test_file_added_to_a_passed_over_save_does_not_make_it_work_of_the_run(
    numbered: Script,
) -> None:
    """A note that a person adds does not make an earlier save the work of the run."""
    for step in (1, 2, 3):
        numbered.save(f"c-{step}/a.pt")
    numbered.scan(Moment.FIRST_START)
    assert numbered.steps() == [2, 3]
    (numbered.out / "c-1" / "notes.txt").touch()
    numbered.scan()
    assert not numbered.ledger.was_written_here(numbered.out / "c-1")
    numbered.save("c-1/a.pt", 5.0)
    numbered.scan()
    assert numbered.ledger.was_written_here(numbered.out / "c-1")


def test_torn_file_of_an_unknown_format_is_set_aside(numbered: Script) -> None:
    """A killed save leaves the last name with half of its bytes; not every format shows that."""
    numbered.scan(Moment.FIRST_START)
    for step in (1, 2):
        (numbered.out / f"c-{step}").mkdir()
        (numbered.out / f"c-{step}" / "weights.npy").write_bytes(b"x" * (200 // step))
        numbered.scan()
        if step == 1:
            assert kinds(numbered.scan(after=60)) == [Sealed]
    (event,) = numbered.scan(Moment.FAILED, after=2)
    assert isinstance(event, SetAside)
    assert event.reason == "the format of weights.npy does not show whether it is complete"


def test_write_seen_by_a_dead_supervisor_is_known_to_the_next(tmp_path: Path) -> None:
    """A machine that failed in the middle of a save leaves a file that may be set aside."""
    script = Script(tmp_path, "c-*")
    script.scan(Moment.FIRST_START)
    script.save("c-2")
    script.tear("c-2")
    script.scan()
    assert kinds(Script(tmp_path, "c-*").scan(Moment.LATER_START)) == [SetAside]


def test_save_that_the_script_deletes_is_withdrawn(numbered: Script) -> None:
    """Its own rotation is followed; but the newest seal stays, and its loss is an error."""
    for step in (1, 2):
        numbered.save(f"c-{step}")
        numbered.scan(after=40)
    (numbered.out / "c-1").unlink()
    assert kinds(numbered.scan()) == [Withdrawn]
    (numbered.out / "c-2").unlink()
    assert numbered.scan() == []
    with pytest.raises(NoValidCheckpointError):
        newest_valid(numbered.store)


def test_directory_that_is_written_over_in_part_is_not_sealed(numbered: Script) -> None:
    """New weights beside an old optimizer state are not one state, though each file is whole."""
    for step in (1, 2):
        for name in ("a.pt", "b.pt"):
            numbered.save(f"c-{step}/{name}")
    assert kinds(numbered.scan(Moment.SUCCEEDED)) == [Sealed, Sealed]
    numbered.save("c-2/a.pt", 7.0)
    (event,) = numbered.scan(Moment.FAILED)
    assert isinstance(event, SetAside)
    assert event.reason == "it is partly overwritten: a.pt is new, b.pt is not"


def test_each_version_of_one_file_is_kept(one_file: Script) -> None:
    """A file written over in place is copied; after a torn save the last version is put back."""
    one_file.scan(Moment.FIRST_START)
    for value in (1.0, 2.0):
        one_file.save("last.pt", value)
        assert kinds(one_file.scan(after=1)) == [Sealed]
    one_file.save("last.pt", 3.0)
    one_file.tear("last.pt")
    assert one_file.scan() == []
    assert kinds(one_file.scan(Moment.FAILED)) == [SetAside]
    newest = newest_valid(one_file.store)
    assert newest is not None
    seal = one_file.seals.seals()[one_file.out / "last.pt"]
    assert seal.checkpoint == newest
    one_file.seals.put_back(seal)
    assert one_file.seals.is_in_place(seal)
    assert torch.load(one_file.out / "last.pt")["a"][0] == 2.0
    assert [path.name for path in one_file.out.iterdir()] == ["last.pt"]
    # It is the version that is known already.
    assert one_file.scan(Moment.LATER_START) == []


def test_script_that_replaces_its_file_gets_links(one_file: Script) -> None:
    """A hard link is a copy where the script puts a new file; the first version is copied."""
    for value in (1.0, 2.0, 3.0):
        one_file.save("next", value)
        os.replace(one_file.out / "next", one_file.out / "last.pt")
        one_file.scan(after=1)
    links = [
        (checkpoint.contents.folder / "last.pt").stat().st_nlink
        for checkpoint in one_file.store.all()
    ]
    assert links == [1, 1, 2]
    for checkpoint in one_file.store.all():
        verify(checkpoint)
    one_file.scanner.forget_write_habits()
    one_file.save("last.pt", 4.0)
    one_file.scan(after=1)
    # The one that was linked is the price of a script that changes its habit: it is noticed.
    assert (one_file.store.all()[-1].contents.folder / "last.pt").stat().st_nlink == 1


def test_saves_without_numbers_are_counted(tmp_path: Path) -> None:
    """They are ordered by time, and the count is marked as one."""
    script = Script(tmp_path, "*.pt")
    script.scan(Moment.FIRST_START)
    for name in ("b.pt", "a.pt"):
        script.save(name)
        script.scan(after=1)
    found = [checkpoint.manifest for checkpoint in script.store.all()]
    assert [Path(manifest.adopted.path).name for manifest in found if manifest.adopted] == [
        "b.pt",
        "a.pt",
    ]
    assert [manifest.step for manifest in found] == [1, 2]
    assert not any(manifest.adopted.numbered for manifest in found if manifest.adopted)


def test_save_on_another_disk_is_set_aside_beside_itself(tmp_path: Path) -> None:
    """Moving it would be a copy: a hidden name takes it out of sight."""
    elsewhere = Path("/dev/shm") / f"adopt-{os.getpid()}"
    if not elsewhere.parent.is_dir() or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two filesystems")
    elsewhere.mkdir()
    try:
        script = Script(tmp_path, "c-*")
        script.out = elsewhere
        script.scanner = script.scanner_of(f"{elsewhere}/c-*")
        script.scan(Moment.FIRST_START)
        script.save("c-1/a.pt")
        script.tear("c-1/a.pt")
        (event,) = script.scan(Moment.FAILED)
        assert isinstance(event, SetAside)
        assert event.moved_to.parent == elsewhere
        assert event.moved_to.name.startswith(".set-aside-")
    finally:
        shutil.rmtree(elsewhere)
