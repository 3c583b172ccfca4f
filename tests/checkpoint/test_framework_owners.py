"""A framework's output directory in which another user may write, as two real users see it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator.checkpoint.external_files import (
    copy_tree_durably,
    link_or_copy,
    unlink_shared_files,
)
from orchestrator.system.durable import Disk
from tests.support import in_child
from tests.users import GROUP, OTHER, VICTIM, User

SECRET = b"a private key"


class Place(NamedTuple):
    root: Path
    out: Path
    home: Path


@pytest.fixture
def place(as_root: None) -> Iterator[Place]:
    """An output directory of the victim's that every user may write to, and a private one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        os.chown(root, VICTIM.number, VICTIM.number)
        root.chmod(0o755)
        for folder, mode in (("out", 0o777), ("home", 0o700)):
            (root / folder).mkdir()
            os.chown(root / folder, VICTIM.number, GROUP)
            (root / folder).chmod(mode)
        (root / "home" / "key").write_bytes(SECRET)
        os.chown(root / "home" / "key", VICTIM.number, VICTIM.number)
        os.link(root / "home" / "key", root / "home" / "again")
        yield Place(root, root / "out", root / "home")


def as_user(user: User, act: Callable[[], object]) -> None:
    def main() -> None:
        user.become()
        act()

    assert in_child(main) == 0


def save(place: Place, name: str = "checkpoint-4") -> None:
    (place.out / name / "shards").mkdir(parents=True, exist_ok=True)
    for file in ("model.bin", "shards/0.bin"):
        (place.out / name / file).write_bytes(b"weights")


def assert_refused(place: Place, match: str, *, unlinks: bool = False) -> None:
    def act() -> None:
        source = place.out / "checkpoint-4"
        for link in (True, False):
            with pytest.raises(OSError, match=match):
                copy_tree_durably(source, place.root / f"copy-{link}", Disk(), link=link)
        if unlinks:
            unlink_shared_files(source)
        else:
            with pytest.raises(OSError, match=match):
                unlink_shared_files(source)

    as_user(VICTIM, act)
    assert sorted(os.listdir(place.home)) == ["again", "key"]
    copies = [path for path in place.root.glob("copy-*/**/*") if path.is_file()]
    assert SECRET not in [path.read_bytes() for path in copies]


def test_directory_that_is_a_link_of_another_user(place: Place) -> None:
    as_user(OTHER, lambda: (place.out / "checkpoint-4").symlink_to(place.home))
    assert_refused(place, f"checkpoint-4 belongs to {OTHER.number}")


def test_directory_of_another_user(place: Place) -> None:
    def plant() -> None:
        save(place)
        (place.out / "checkpoint-4" / "notes.txt").symlink_to(place.home / "key")

    as_user(OTHER, plant)
    assert_refused(place, f"checkpoint-4 belongs to {OTHER.number}")


@pytest.mark.parametrize("folder", ["checkpoint-4", "checkpoint-4/shards"])
def test_link_of_another_user_in_the_own_directory(place: Place, folder: str) -> None:
    as_user(VICTIM, lambda: save(place))
    (place.out / folder).chmod(0o777)
    as_user(OTHER, lambda: (place.out / folder / "notes.txt").symlink_to(place.home / "key"))
    assert_refused(place, f"notes.txt belongs to {OTHER.number}")


def test_own_link_where_others_may_replace_it(place: Place) -> None:
    """The look at the link and the way through it are two steps, between which it may change."""
    as_user(VICTIM, lambda: save(place))
    as_user(VICTIM, lambda: (place.out / "checkpoint-4/notes.txt").symlink_to(place.home / "key"))
    (place.out / "checkpoint-4").chmod(0o777)
    assert_refused(place, "notes.txt is a link, and others may replace it", unlinks=True)


@pytest.mark.parametrize("link", [True, False])
def test_own_link_in_the_own_directory_is_copied(place: Place, link: bool) -> None:
    """A link to weights on a data disk is the user's own business."""

    def act() -> None:
        save(place)
        (place.out / "checkpoint-4").chmod(0o755)
        (place.root / "base.bin").write_bytes(b"base")
        (place.out / "checkpoint-4" / "base.bin").symlink_to(place.root / "base.bin")
        source, target = place.out / "checkpoint-4", place.root / "copy"
        records = copy_tree_durably(source, target, Disk(), link=link)
        assert sorted(records) == ["base.bin", "model.bin", "shards/0.bin"]
        assert not (target / "base.bin").is_symlink()
        assert (target / "base.bin").read_bytes() == b"base"
        unlink_shared_files(source)
        assert (source / "model.bin").exists() is not link
        assert (target / "model.bin").read_bytes() == b"weights"

    as_user(VICTIM, act)


def test_directory_of_a_colleague_is_used(place: Place) -> None:
    """In a directory that a group shares its members go on with what others have begun."""
    place.out.chmod(0o2775)
    as_user(OTHER, lambda: save(place))
    source = place.out / "checkpoint-4"

    def act() -> None:
        copy_tree_durably(source, place.root / "copy", Disk(), link=False)
        os.link(source / "model.bin", place.root / "again.bin")
        unlink_shared_files(source)
        assert not (source / "model.bin").exists()

    as_user(VICTIM, act)


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.parametrize("what", ["file", "link"])
def test_file_that_was_swapped_after_it_was_looked_at(
    tmp_path: Path, what: str, link: bool
) -> None:
    """Neither another file nor what a link names takes its place."""
    origin, secret = tmp_path / "model.bin", tmp_path / "key"
    origin.write_bytes(b"weights")
    facts = os.lstat(origin)
    secret.write_bytes(SECRET)
    origin.rename(tmp_path / "old.bin")
    if what == "file":
        secret.rename(origin)
    else:
        origin.symlink_to(secret)
    with pytest.raises(OSError, match="was replaced meanwhile"):
        link_or_copy(origin, tmp_path / "copy", Disk(), link=link, expected=facts)
    assert not (tmp_path / "copy").exists() or (tmp_path / "copy").read_bytes() != SECRET


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    unlink_shared_files(tmp_path / "checkpoint-4")
