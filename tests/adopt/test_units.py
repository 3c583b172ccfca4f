"""Scans of what a script saves in several files, which are a checkpoint only together."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from orchestrator.adopt.scan_events import (
    Lacking,
    LeftAlone,
    Moment,
    ScanEvent,
    Sealed,
    SetAside,
    Withdrawn,
)
from orchestrator.adopt.seal_store import Seal
from orchestrator.adopt.unit_pattern import UnitPattern
from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.errors import NoValidCheckpointError
from tests.adopt.support import Script, kinds

NUMBERED = ["net{G,D}_*.pth", "{gen,disc}/c_*.pt", "{model,optim}-*"]
FIXED = ["{netG,netD,optim}.pth", "{gen,disc}/last.pt", "{a,b}_latest*.pt"]


class Unit(Script):
    """A script that saves a file, or a directory of two, for each pattern."""

    def __init__(self, root: Path, pattern: str) -> None:
        super().__init__(root, pattern)
        self.text = pattern
        self.pattern = UnitPattern.parse(f"{self.out}/{pattern}")
        self.of_directories = "." not in pattern
        self.clock_ns = time.time_ns() - 10**12

    def names(self, text: str) -> list[str]:
        patterns = self.pattern.patterns
        return [str(p.filled([text] * p.wildcards).relative_to(self.out)) for p in patterns]

    def save_part(self, name: str, value: float = 0.0) -> None:
        """Write one part, a tenth of a second after the one before it."""
        parts = [f"{name}/x.pt", f"{name}/y.pt"] if self.of_directories else [name]
        for part in parts:
            self.save(part, value)
            self.clock_ns += 10**8
            os.utime(self.out / part, ns=(self.clock_ns, self.clock_ns))

    def save_all(self, text: str = "", value: float = 0.0) -> None:
        for name in self.names(text):
            self.save_part(name, value)
        self.clock_ns += 10**9

    def exist(self, text: str = "") -> list[bool]:
        return [(self.out / name).exists() for name in self.names(text)]

    def newest(self) -> Checkpoint:
        newest = newest_valid(self.store)
        assert newest is not None
        return newest

    def values(self, text: str = "") -> set[float]:
        """Return the values in all files of a unit."""
        files = [f for n in self.names(text) for f in ((self.out / n), *(self.out / n).glob("*"))]
        return {float(torch.load(file)["a"][0]) for file in files if file.is_file()}


def seal_of(checkpoint: Checkpoint) -> Seal:
    assert checkpoint.manifest.adopted is not None
    return Seal(checkpoint, checkpoint.manifest.adopted)


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> Unit:
    script = Unit(tmp_path, request.param)
    script.scan(Moment.FIRST_START)
    return script


numbered = pytest.mark.parametrize("script", NUMBERED, indirect=True)
fixed = pytest.mark.parametrize("script", FIXED, indirect=True)


@numbered
def test_unit_is_whole_only_with_all_of_it(script: Unit) -> None:
    """One checkpoint, one number, all files in its manifest, and a path for each name."""
    script.save_all("4")
    script.scan(after=40)
    script.scan(after=40)
    *first, last = script.names("5")
    for name in first:
        script.save_part(name)
        assert script.scan(after=5) == script.scan(after=9) == []
    script.save_part(last)
    script.scan()
    script.scan(after=31)
    assert script.steps() == [4, 5]
    newest = script.newest()
    assert newest.resume_path == script.out / script.names("5")[0]
    assert list(newest.script_paths.values()) == [script.out / n for n in script.names("5")]
    assert len(newest.manifest.files) == len(script.names("5")) * (1 + script.of_directories)
    assert newest.contents.folder == script.out
    assert list(newest.script_paths) == list(script.pattern.names)


@numbered
@pytest.mark.parametrize("torn", [False, True])
def test_half_a_unit_is_set_aside_together(script: Unit, torn: bool) -> None:
    """After a kill in the middle of a save nothing of it is left where the script looks."""
    script.save_all("1")
    script.scan(after=40)
    assert kinds(script.scan(Moment.SUCCEEDED)) == [Sealed] or script.steps() == [1]
    for name in script.names("2") if torn else script.names("2")[1:]:
        script.save_part(name)
    if torn:
        script.tear(script.names("2")[-1] + ("/y.pt" if script.of_directories else ""))
    script.scan()
    (event,) = script.scan(Moment.FAILED)
    assert isinstance(event, SetAside)
    assert not any(script.exist("2"))
    assert all(script.exist("1"))
    kept = next(path for path in event.moved_to.parents if path.name == "content")
    assert len([f for f in kept.rglob("*") if f.is_file()]) >= len(script.names("2")) - 1
    assert script.newest().manifest.step == 1


@numbered
def test_unit_that_never_comes_is_told_once_and_stays(script: Unit) -> None:
    """A script that goes on without a part keeps what it has saved, and a person is told."""
    told: list[ScanEvent] = []
    for epoch in ("1", "2", "3"):
        script.save_part(script.names(epoch)[0])
        told += script.scan(after=20)
        told += script.scan(after=20)
    (event,) = told
    assert isinstance(event, Lacking)
    assert Path(script.names("1")[1]).name in event.problem
    assert script.scan(Moment.SUCCEEDED) == []
    assert script.scan(Moment.LATER_START) == script.scan(after=40) == []
    assert all(script.exist(epoch)[0] for epoch in ("1", "2", "3"))
    assert newest_valid(script.store) is None


@numbered
def test_script_that_deletes_a_part_of_old_units_keeps_the_rest(script: Unit) -> None:
    """Models without their old optimizer states are no checkpoint, and no leftover of a kill."""
    for epoch in ("1", "2", "3"):
        script.save_all(epoch)
        script.scan(after=40)
        script.scan(after=40)
    assert script.steps() == [1, 2, 3]
    last = script.out / script.names("2")[-1]
    for file in [*last.glob("*")] if last.is_dir() else [last]:
        file.unlink()
    (event,) = script.scan()
    assert isinstance(event, Withdrawn)
    assert event.reason.startswith("the script has deleted")
    assert script.scan() == script.scan(Moment.FAILED, after=100) == []
    assert script.scan(Moment.LATER_START) == []
    assert script.exist("2")[0]


@numbered
def test_unit_is_rotated_and_quarantined_as_one(script: Unit) -> None:
    """Retention deletes every file of it; damage to one moves all of them away."""
    for epoch in ("1", "2", "3", "4"):
        script.save_all(epoch, float(epoch))
        script.scan(after=40)
        script.scan(after=40)
    assert script.steps() == [1, 2, 3, 4]
    deleted = script.store.apply_retention(RetentionPolicy(keep=3))
    assert [checkpoint.manifest.step for checkpoint in deleted] == [1]
    assert not any(script.exist("1"))
    damaged = script.out / script.names("4")[1]
    file = next(iter(damaged.glob("*")), damaged)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert script.newest().manifest.step == 3
    assert not any(script.exist("4"))
    (moved,) = script.store.quarantine_folder.checkpoints()
    assert len([f for f in (moved / "content").rglob("*") if f.is_file()]) >= len(script.names("4"))


def test_parts_from_before_the_run_do_not_complete_a_unit(tmp_path: Path) -> None:
    """A file that another run has left is no part of what this one saves, and stays."""
    script = Unit(tmp_path, "net{G,D}_*.pth")
    script.save_part("netD_1.pth")
    script.scan(Moment.FIRST_START)
    script.save_part("netG_1.pth")
    assert script.scan() == []
    (event,) = script.scan(Moment.FAILED)
    assert isinstance(event, LeftAlone)
    assert all(script.exist("1"))


@fixed
def test_versions_of_overwritten_files_are_kept_together(script: Unit) -> None:
    """After a kill in the middle of a save all files of the last version are put back."""
    script.save_all(value=1.0)
    assert script.scan() == []
    assert kinds(script.scan(after=2)) == [Sealed]
    script.save_all(value=2.0)
    assert kinds(script.scan(after=2)) == [Sealed]
    script.save_part(script.names("")[0], 3.0)
    assert script.scan() == []
    assert kinds(script.scan(Moment.FAILED)) == [SetAside]
    newest = script.newest()
    seal = seal_of(newest)
    assert not script.seals.is_in_place(seal)
    script.seals.put_back(seal)
    assert script.seals.is_in_place(seal)
    assert script.values() == {2.0}
    assert script.scan(Moment.LATER_START) == []
    assert not list(script.out.rglob(".*"))


@fixed
def test_parts_of_two_saves_are_no_checkpoint(script: Unit) -> None:
    """Where a save was not seen, the next one's first file makes all of them newer than sealed."""
    script.save_all(value=1.0)
    script.scan()
    script.scan(after=2)
    script.save_all(value=2.0)
    script.save_part(script.names("")[0], 3.0)
    assert script.scan(after=2) == []
    (event,) = script.scan(Moment.FAILED)
    assert isinstance(event, SetAside)
    assert "which was written after it before" in event.reason
    script.seals.put_back(seal_of(script.newest()))
    assert script.values() == {1.0}


@fixed
def test_order_of_a_first_save_is_learned_from_a_look_at_it(script: Unit) -> None:
    """Without an earlier version, files of a save and of the next are told apart all the same."""
    first, *others = script.names("")
    script.save_part(first, 1.0)
    assert script.scan() == []
    for name in others:
        script.save_part(name, 1.0)
    script.save_part(first, 2.0)
    assert script.scan() == script.scan(after=2) == []
    for name in others:
        script.save_part(name, 2.0)
    assert kinds(script.scan()) == [Sealed]


@fixed
def test_first_save_must_rest_where_no_order_is_known(script: Unit) -> None:
    """The first files may already be those of the next save."""
    first, *_ = script.names("")
    script.save_all(value=1.0)
    script.clock_ns = time.time_ns()
    script.save_part(first, 2.0)
    assert script.scan() == script.scan(after=2) == []
    (event,) = script.scan(Moment.FAILED)
    assert isinstance(event, SetAside)
    assert "in which order" in event.reason


@fixed
def test_part_that_is_not_written_again_is_told(script: Unit) -> None:
    """An optimizer that is saved every tenth time belongs to no version in between."""
    script.save_all(value=1.0)
    script.scan()
    script.scan(after=2)
    script.save_part(script.names("")[0], 2.0)
    assert script.scan() == []
    assert kinds(script.scan(after=40)) == [Lacking]
    assert script.scan(after=40) == []


@pytest.mark.parametrize("script", ["net{G,D}_*.pth", "{gen,disc}/c_*.pt"], indirect=True)
@pytest.mark.parametrize("harm", ["fewer", "other", "elsewhere", "nested", "link"])
def test_unit_of_a_stranger_is_left_alone(script: Unit, tmp_path: Path, harm: str) -> None:
    """Of what a manifest names, only exactly the unit that the patterns name is acted on."""
    script.save_all("1")
    script.scan(Moment.SUCCEEDED)
    victim = tmp_path / "precious.pth"
    victim.write_bytes(b"mine")
    (directory,) = script.store.directories()
    text = (directory / "manifest.json").read_text()
    content = json.loads(text)
    adopted, names = content["adopted"], script.names("1")
    adopted["path_from_run"] = None
    if harm == "fewer":
        del adopted["members"][script.pattern.names[1]]
    elif harm == "nested":
        adopted["members"][script.pattern.names[1]] = names[0] + "/x"
    elif harm in ("other", "elsewhere"):
        new = names[1].replace("1", "2") if harm == "other" else f"../{victim.name}"
        text = json.dumps(content).replace(json.dumps(names[1]), json.dumps(new))
        content = json.loads(text)
        (script.out / names[1].replace("1", "2")).write_bytes(b"mine")
    else:
        (script.out / names[1]).unlink()
        (script.out / names[1]).symlink_to(victim)
    (directory / "manifest.json").write_text(json.dumps(content))
    before = {p: p.read_bytes() for p in (*script.out.rglob("*.p*"), victim)}
    if harm in ("other", "link"):
        with pytest.raises(NoValidCheckpointError, match="does not name"):
            newest_valid(script.store)
        assert not script.store.delete(read_checkpoint(directory))
    script.store.quarantine(directory, "wrong digest")
    assert {p: p.read_bytes() for p in (*script.out.rglob("*.p*"), victim)} == before


@numbered
def test_moved_project_of_units_goes_on(script: Unit, tmp_path: Path) -> None:
    """Run directory and files move together, and the names are those of this command."""
    script.save_all("1")
    script.scan(Moment.SUCCEEDED)
    (tmp_path / "new").mkdir()
    (tmp_path / "out").rename(tmp_path / "new" / "out")
    (tmp_path / "run").rename(tmp_path / "new" / "run")
    moved = Unit(tmp_path / "new", script.text)
    names = moved.names("1")
    assert moved.newest().resume_path == moved.out / names[0]
    assert list(moved.newest().script_paths.values()) == [moved.out / name for name in names]
    assert moved.scan(Moment.LATER_START) == []


def test_order_and_names_of_the_patterns_are_those_of_the_command(tmp_path: Path) -> None:
    """Another order of the same patterns finds the units of before, with the other file first."""
    script = Unit(tmp_path, "net{G,D}_*.pth")
    script.save_all("1")
    script.scan(Moment.SUCCEEDED)
    other = Unit(tmp_path, "net{D,G}_*.pth")
    assert other.newest().resume_path == other.out / "netD_1.pth"
    assert list(other.newest().script_paths) == ["netD", "netG"]
    assert other.scan(Moment.LATER_START) == []
    longer = Unit(tmp_path, "{net,}{G,D}_*.pth")
    with pytest.raises(NoValidCheckpointError, match="does not name"):
        newest_valid(longer.store)
    root = tmp_path.name
    named = Unit(tmp_path, f"../../{root}/out/netG_*.pth\n{tmp_path}/out/netD_*.pth")
    assert list(named.newest().script_paths) == list(named.pattern.names) != ["netG", "netD"]
    fewer = Unit(tmp_path, "netG_*.pth")
    with pytest.raises(NoValidCheckpointError, match="does not name"):
        newest_valid(fewer.store)
