"""Saves in which another user of the machine has put something, as two real users see them."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.adopt.scan_events import LeftAlone, Moment, Sealed, Withdrawn
from tests.adopt.support import Script, kinds
from tests.support import in_child
from tests.users import GROUP, OTHER, VICTIM, User

Act = Callable[[], object]


@pytest.fixture
def place(as_root: None) -> Iterator[Path]:
    """A directory that both users reach; `out` is the victim's, and every user may write there."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        for folder in ("out", "theirs"):
            (place / folder).mkdir()
            (place / folder).chmod(0o777)
        os.chown(place, VICTIM.number, VICTIM.number)
        os.chown(place / "out", VICTIM.number, GROUP)
        yield place


def as_user(user: User, act: Act) -> None:
    def main() -> None:
        user.become()
        act()

    assert in_child(main) == 0


def save(place: Path, name: str) -> None:
    """Write a directory of two files, one of which is not torch's."""
    out = place / "out"
    (out / name).mkdir(exist_ok=True)
    Script(place, "c-*").save(f"{name}/model.pt")
    (out / name / "meta.json").write_text('{"step": 1}')


def assert_left_alone(place: Path, moment: Moment = Moment.FIRST_START) -> None:
    def scan() -> None:
        script = Script(place, "c-*")
        events = script.scan(moment)
        assert kinds(events) == [LeftAlone], events
        assert isinstance(events[0], LeftAlone)
        assert f"belongs to {OTHER.number}" in events[0].reason
        assert script.steps() == []

    before = sorted((place / "out").rglob("*"))
    as_user(VICTIM, scan)
    assert sorted((place / "out").rglob("*")) == before


def assert_accepted(place: Path) -> None:
    def scan() -> None:
        script = Script(place, "c-*")
        events = script.scan(Moment.FIRST_START)
        assert kinds(events) == [Sealed], events

    as_user(VICTIM, scan)


def give_to_group(directory: Path, mode: int) -> None:
    for path in (directory, *directory.iterdir()):
        os.chown(path, -1, GROUP)
    directory.chmod(mode)


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o755, 0o2775])
def test_directory_says_nothing_that_a_stranger_has_made(place: Path, mode: int) -> None:
    """A common group alone makes no directory shared: that must be the one of the pattern."""

    def plant() -> None:
        (place / "theirs/out").mkdir()
        (place / "theirs/run").mkdir()
        Script(place / "theirs", "c-*").save("c-9/model.pt")
        give_to_group(place / "theirs/out/c-9", 0o775)

    as_user(OTHER, plant)
    (place / "theirs/out/c-9").rename(place / "out/c-9")
    (place / "out").chmod(mode)
    if mode == 0o2775:
        assert_accepted(place)
    else:
        assert_left_alone(place)


def test_own_directory_of_the_group_below_the_base_is_shared(place: Path) -> None:
    """A directory of the user's own says who may write in it, wherever it is."""
    (place / "out").chmod(0o755)
    as_user(VICTIM, lambda: save(place, "c-1"))
    give_to_group(place / "out/c-1", 0o2775)
    as_user(OTHER, lambda: shutil.copy(place / "out/c-1/model.pt", place / "out/c-1/ema.pt"))
    assert (place / "out/c-1/ema.pt").stat().st_uid == OTHER.number
    assert_accepted(place)


def test_own_file_and_a_link_in_the_directory_of_another_user(place: Path) -> None:
    """The victim's own log is moved in, and what a script would load is behind a link."""
    as_user(VICTIM, lambda: (place / "out/log.txt").write_text("step 1"))

    def plant() -> None:
        (place / "theirs/evil.pt").write_bytes(b"a pickle with code")
        (place / "out/c-9").mkdir()
        (place / "out/log.txt").rename(place / "out/c-9/log.txt")
        (place / "out/c-9/model.pt").symlink_to(place / "theirs/evil.pt")

    as_user(OTHER, plant)
    assert_left_alone(place)


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "empty directory deeper"])
def test_anything_of_another_user_in_the_own_directory(place: Path, what: str) -> None:
    """A link, a special file and a directory count as files do, at every depth."""
    as_user(VICTIM, lambda: save(place, "c-1"))
    inside = place / "out/c-1"
    as_user(VICTIM, lambda: (inside / "deep").mkdir())
    for path in (inside, inside / "deep"):
        path.chmod(0o777)

    def plant() -> None:
        match what:
            case "link":
                (inside / "optimizer.pt").symlink_to(inside / "model.pt")
            case "fifo":
                os.mkfifo(inside / "optimizer.pt")
            case "directory":
                (inside / "x").mkdir()
            case _:
                (inside / "deep/x").mkdir()

    as_user(OTHER, plant)
    assert_left_alone(place)


@pytest.mark.parametrize("owner", [VICTIM, OTHER], ids=["own file", "file of another"])
def test_own_link_counts_as_what_it_names(place: Path, owner: User) -> None:
    """A link that the user made to a data disk is fine; to a stranger's file it is not."""
    target = place / "theirs/base.pt"
    as_user(owner, lambda: target.write_bytes(b"weights"))
    as_user(VICTIM, lambda: save(place, "c-1"))
    as_user(VICTIM, lambda: (place / "out/c-1/base.pt").symlink_to(target))
    if owner is VICTIM:
        assert_accepted(place)
    else:
        assert_left_alone(place)


def test_sealed_save_that_another_user_has_replaced_is_withdrawn(place: Path) -> None:
    """A copy with the same bytes and times is not resumed from: more may be beside them."""
    out = place / "out"
    as_user(VICTIM, lambda: save(place, "c-1"))
    assert_accepted(place)

    def replace() -> None:
        (out / "c-1").rename(place / "theirs/c-1")
        shutil.copytree(place / "theirs/c-1", out / "c-1", copy_function=shutil.copy2)
        (out / "c-1/optimizer.pt").symlink_to(place / "theirs/evil.pt")

    (out / "c-1").chmod(0o777)
    as_user(OTHER, replace)

    def scan() -> None:
        script = Script(place, "c-*")
        assert script.steps() == [1]
        events = script.scan(Moment.LATER_START)
        assert kinds(events) == [Withdrawn, LeftAlone], events
        assert script.steps() == []

    as_user(VICTIM, scan)
    assert (out / "c-1/model.pt").exists()


def test_copy_in_place_of_a_kept_version_is_put_aside(place: Path) -> None:
    """Where the run holds a copy of its own, that is resumed from, and not the one in its place."""
    out = place / "out"

    def keep() -> None:
        script = Script(place, "last.pt")
        script.scan(Moment.FIRST_START)
        script.save("last.pt")
        assert kinds(script.scan(Moment.SUCCEEDED)) == [Sealed]

    as_user(VICTIM, keep)

    def replace() -> None:
        (out / "last.pt").rename(place / "theirs/last.pt")
        shutil.copy2(place / "theirs/last.pt", out / "last.pt")

    as_user(OTHER, replace)

    def resume() -> None:
        script = Script(place, "last.pt")
        (seal,) = script.seals.seals().values()
        assert not script.seals.is_in_place(seal)
        script.seals.put_back(seal)
        assert script.seals.is_in_place(seal)

    as_user(VICTIM, resume)
    assert (out / "last.pt").stat().st_uid == VICTIM.number
