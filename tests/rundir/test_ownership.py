"""Who else may write to a run directory: refused where it is everybody, else named."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.rundir.lock import RunLock, lock_owner
from orchestrator.rundir.ownership import others_who_may_write, owner_of_new_files
from orchestrator.rundir.paths import RunDir
from tests.support import NOBODY, in_child, swapped_in

OTHER_GROUP = 54321


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that other users may read; pytest's own are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.parametrize("name", ["", "checkpoints", "attempts"])
def test_directory_that_everybody_may_write_is_refused(run: RunDir, name: str) -> None:
    """A run directory in which every user can swap files is refused, sticky or not."""
    for mode in (0o777, 0o1777, 0o757):
        (run.root / name).chmod(mode)
        with pytest.raises(ConfigError, match="every user of this machine may write"):
            run.create()


@pytest.mark.parametrize("name", ["checkpoints", "attempts"])
def test_link_in_the_place_of_a_directory_is_refused(
    run: RunDir, tmp_path: Path, name: str
) -> None:
    """No directory of a run may be a link, which would lead writes and deletions elsewhere."""
    (run.root / name).rmdir()
    (tmp_path / "elsewhere").mkdir()
    (run.root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        run.create()


def test_run_directory_may_be_a_link(run: RunDir, tmp_path: Path) -> None:
    """A run directory that is itself a link, to another disk for example, is used."""
    (tmp_path / "link").symlink_to(run.root)
    RunDir(tmp_path / "link").create()


def test_own_directory_needs_no_warning(run: RunDir) -> None:
    """A directory that only its user may write is not worth a word."""
    assert others_who_may_write(run.root) is None


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: os.chown(path, NOBODY, -1), "belongs to the user nobody"),
        (lambda path: os.chown(path, 54321, -1), "belongs to the user 54321"),
        (lambda path: (os.chown(path, -1, OTHER_GROUP), path.chmod(0o2770)), "the group 54321"),
    ],
    ids=["a user", "a user without a name", "a group"],
)
def test_others_who_may_write_are_named(
    run: RunDir, change: Callable[[Path], object], told: str
) -> None:
    """Another owner and a group that may write are named to the user."""
    change(run.root)
    assert told in str(others_who_may_write(run.root))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o600), (0o002, 0o660), (0o077, 0o600)])
def test_lock_can_be_read_only_by_who_may_write_it(run: RunDir, umask: int, mode: int) -> None:
    """A user who may not write to a run can neither hold its lock, in an older run either."""
    before = os.umask(umask)
    try:
        RunLock(run).close()
        assert run.lock_file.stat().st_mode & 0o777 == mode
        run.lock_file.chmod(0o644 | mode)
        RunLock(run).close()
    finally:
        os.umask(before)
    assert run.lock_file.stat().st_mode & 0o777 == mode


@pytest.mark.usefixtures("as_root")
def test_lock_that_may_not_be_read_is_seen_to_be_held(public_directory: Path) -> None:
    """Another user still sees whether a run is in use, and cannot take its lock."""
    run = RunDir(public_directory / "run")
    run.create()
    seen: list[bool] = []

    def look() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(PermissionError):
            run.lock_file.open("rb")
        assert (lock_owner(run) == {}) is seen[-1]

    lock = RunLock(run)
    seen.append(True)
    in_child(look)
    lock.close()
    seen.append(False)
    in_child(look)


@pytest.mark.usefixtures("as_root")
def test_owner_of_new_files_is_not_another_users_word(tmp_path: Path) -> None:
    """Who may write to the directory cannot show a file of another owner in the new one's place."""
    (tmp_path / "shared").mkdir()

    def swap(new: Path) -> None:
        new.rename(tmp_path / "old")
        new.mkdir()
        os.chown(new, NOBODY, NOBODY)

    with swapped_in(tmp_path / "shared", swap) as shared:
        assert {owner_of_new_files(shared) for _ in range(10)} == {os.geteuid()}
