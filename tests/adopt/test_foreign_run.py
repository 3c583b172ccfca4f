"""A run directory that others have written: what it says about paths is not acted on unchecked."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adopt.scan_events import LeftAlone, Moment
from orchestrator.adopt.seal_store import Seal
from orchestrator.checkpoint.checkpoint import read_checkpoint
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.errors import CheckpointInvalidError, NoValidCheckpointError
from tests.adopt.support import Script
from tests.support import NOBODY

Change = Callable[[dict[str, Any]], None]


def rewrite(script: Script, change: Change) -> Path:
    """Change the newest manifest as another person may do, and return its directory."""
    directory = script.store.directories()[-1]
    content = json.loads((directory / "manifest.json").read_text())
    change(content)
    (directory / "manifest.json").write_text(json.dumps(content))
    return directory


def sealed(root: Path, pattern: str, *names: str) -> Script:
    script = Script(root, pattern)
    script.scan(Moment.FIRST_START)
    for name in names:
        script.save(name)
        script.scan(Moment.SUCCEEDED)
    return script


def everything_below(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("pattern", ["c-*", "last.pt"])
@pytest.mark.parametrize("place", ["elsewhere", "deeper", "behind a link", "beside"])
def test_path_that_the_pattern_does_not_name_is_left_alone(
    tmp_path: Path, pattern: str, place: str
) -> None:
    """A manifest that points at a person's file has it neither written, moved nor deleted."""
    name = pattern.replace("*", "1")
    script = sealed(tmp_path, pattern, name)
    home = tmp_path / "home"
    (home / "deeper").mkdir(parents=True)
    victims = {
        "elsewhere": home / name,
        "deeper": script.out / "deeper" / name,
        "behind a link": script.out / "c-9",
        "beside": script.out / "d-1",
    }
    victim = victims[place]
    (home / name).write_bytes(b"precious")
    victim.parent.mkdir(exist_ok=True)
    if place == "behind a link":
        victim.symlink_to(home / name)
    else:
        victim.write_bytes(b"precious")

    def point_elsewhere(content: dict[str, Any]) -> None:
        content["adopted"] |= {"path": str(victim), "path_from_run": None}
        content["adopted"]["modified_ns"] = {victim.name: victim.stat().st_mtime_ns}
        content["files"] = {victim.name: next(iter(content["files"].values()))}

    directory = rewrite(script, point_elsewhere)
    if content := list(directory.glob("content/*")):
        content[0].rename(content[0].with_name(victim.name))
    before = everything_below(home) | everything_below(script.out)
    with pytest.raises(NoValidCheckpointError, match="does not name"):
        newest_valid(script.store)
    checkpoint = read_checkpoint(directory)
    script.store.apply_retention(RetentionPolicy(keep=2))
    assert not script.store.delete(checkpoint)
    script.scan(Moment.FAILED)
    script.store.quarantine(directory, "wrong digest")
    assert everything_below(home) | everything_below(script.out) == before
    assert victim.is_symlink() == (place == "behind a link")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["adopted"]["modified_ns"].update({"../../escaped": 1}),
        lambda c: c["adopted"]["modified_ns"].update({"another": 1}),
        lambda c: c["adopted"]["modified_ns"].clear(),
        lambda c: c["adopted"].update(modified_ns=dict.fromkeys(c["files"], 10**400)),
        lambda c: c["adopted"].update(modified_ns=dict.fromkeys(c["files"], "1")),
        lambda c: c["adopted"].update(number=10**400),
        lambda c: c["adopted"].update(path=c["adopted"]["path"] + "/../../x"),
        lambda c: c["adopted"].update(path="out/c-1"),
        lambda c: c["adopted"].update(path=c["adopted"]["path"].replace("/out", "//out")),
        lambda c: c["adopted"].update(path_from_run="../../out/../../etc/c-1"),
        lambda c: c["adopted"].update(path_from_run="/etc/c-1"),
        lambda c: c["adopted"].update(path=c["adopted"]["path"] + "\0"),
        lambda c: c["adopted"].update(path=c["adopted"]["path"] + "\ud800"),
        lambda c: c["files"].update({"..": c["files"]["c-1"]}),
    ],
)
def test_manifest_with_unclear_names_is_invalid(tmp_path: Path, change: Change) -> None:
    """Names are plain, paths are in their only form, and the times are those of the files."""
    script = sealed(tmp_path, "c-*", "c-1")
    directory = rewrite(script, change)
    with pytest.raises(CheckpointInvalidError):
        read_checkpoint(directory)
    with pytest.raises(ValueError, match="manifest"):
        Manifest.from_json((directory / "manifest.json").read_bytes())


@pytest.mark.parametrize("pattern", ["c-*", "last.pt"])
@pytest.mark.parametrize("removed", [True, False])
def test_moved_project_goes_on(tmp_path: Path, pattern: str, removed: bool) -> None:
    """Where run directory and saves move together, the seals stand for the saves in the new place.

    A copy of the project leaves the files of the old one alone.
    """
    name = pattern.replace("*", "1")
    (tmp_path / "old").mkdir()
    sealed(tmp_path / "old", pattern, name)
    shutil.copytree(tmp_path / "old", tmp_path / "new", copy_function=shutil.copy2)
    if removed:
        shutil.rmtree(tmp_path / "old")
    moved = Script(tmp_path / "new", pattern)
    newest = newest_valid(moved.store)
    assert newest is not None
    assert newest.resume_path == moved.out / name
    assert moved.scan(Moment.LATER_START) == []
    if pattern == "last.pt":
        os.remove(moved.out / name)
        newest = newest_valid(moved.store)
        assert newest is not None
        assert newest.manifest.adopted is not None
        moved.seals.put_back(Seal(newest, newest.manifest.adopted))
        assert (moved.out / name).exists()
    assert removed or (tmp_path / "old" / "out" / name).exists()


def test_run_directory_that_moves_alone_keeps_its_paths(tmp_path: Path) -> None:
    """The script's files are where they were."""
    script = sealed(tmp_path, "c-*", "c-1")
    (tmp_path / "far").mkdir()
    (tmp_path / "run").rename(tmp_path / "far" / "run")
    moved = Script(tmp_path / "far", "unused")
    moved.out = script.out
    assert moved.store.directories()
    assert read_checkpoint(moved.store.directories()[0]).resume_path == script.out / "c-1"


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("pattern", ["c-*", "last.pt"])
@pytest.mark.parametrize("moment", [Moment.FIRST_START, Moment.LATER_START, Moment.RUNNING])
def test_save_of_another_user_is_left_alone(tmp_path: Path, pattern: str, moment: Moment) -> None:
    """Who may write beside the script cannot give it a checkpoint to resume from."""
    script = Script(tmp_path, pattern)
    if moment is not Moment.FIRST_START:
        script.scan(Moment.FIRST_START)
    theirs = pattern.replace("*", "9")
    script.save(theirs)
    os.chown(script.out / theirs, NOBODY, NOBODY)
    before = everything_below(script.out)
    events = script.scan(moment)
    if moment is Moment.RUNNING:
        events += script.scan(Moment.SUCCEEDED, after=60)
    assert [type(event) for event in events] == [LeftAlone]
    assert "belongs to nobody" in events[0].reason
    assert script.steps() == []
    assert everything_below(script.out) == before


@pytest.mark.usefixtures("as_root")
def test_saves_of_another_user_do_not_push_out_the_own_ones(tmp_path: Path) -> None:
    """Newer saves of another user neither replace older ones nor end the wait for them."""
    script = Script(tmp_path, "c-*")
    for number in range(5):
        script.save(f"c-{number}")
    for number in (3, 4):
        os.chown(script.out / f"c-{number}", NOBODY, NOBODY)
    script.scan(Moment.FIRST_START)
    assert script.steps() == [1, 2]
    (script.out / "c-7").write_bytes(b"half of it")
    script.scan()
    (script.out / "c-8").write_bytes(b"theirs")
    os.chown(script.out / "c-8", NOBODY, NOBODY)
    assert script.scan(after=5) == []


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("mode", "group", "steps"),
    [(0o2775, 0, [1]), (0o2755, 0, []), (0o2777, 0, []), (0o775, 7, [])],
)
def test_save_of_a_member_of_the_group_is_the_scripts(
    tmp_path: Path, mode: int, group: int, steps: list[int]
) -> None:
    """A group shares its saves, if it may write to the directory and no other user may."""
    script = Script(tmp_path, "c-*")
    script.save("c-1")
    script.out.chmod(mode)
    os.chown(script.out / "c-1", NOBODY, group)
    script.scan(Moment.FIRST_START)
    assert script.steps() == steps


@pytest.mark.usefixtures("as_root")
def test_files_of_the_user_as_whom_the_trainer_runs_are_its_own(tmp_path: Path) -> None:
    """Where the command is started through sudo, the other user's saves are the script's."""
    script = Script(tmp_path, "c-*")
    script.scan(Moment.FIRST_START)
    with subprocess.Popen(["sleep", "600"], user=NOBODY) as trainer:
        script.save("c-1")
        os.chown(script.out / "c-1", NOBODY, NOBODY)
        script.scan()
        trainer.kill()
    script.save("c-2")
    os.chown(script.out / "c-2", NOBODY, NOBODY)
    script.scan()
    assert script.steps() == [1, 2]
