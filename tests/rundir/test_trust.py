"""Files of another user in a run directory: refused, until they are trusted once."""

import os
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.trust import refuse_foreign
from orchestrator.system.durable import replace_disposable_file, write_json
from tests.checkpoint.support import new_store
from tests.support import NOBODY

OTHER = 54321
HISTORY = (
    "run.json",
    "journal.jsonl",
    "done.json",
    "attempts/0001",
    "checkpoints/step-000000000007",
    "checkpoints/step-000000000007/manifest.json",
)

needs_root = pytest.mark.usefixtures("as_root")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with a history that belongs to this user."""
    run = RunDir(tmp_path / "run")
    run.create()
    for name in HISTORY:
        path = run.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}") if path.suffix else path.mkdir()
    return run


def give(path: Path, user: int, group: int = -1) -> None:
    os.chown(path, user, group, follow_symlinks=False)


@needs_root
@pytest.mark.parametrize("name", HISTORY)
def test_file_of_another_user_is_refused(run: RunDir, name: str) -> None:
    """Whatever part of the history belongs to another user, the start is refused and names both."""
    refuse_foreign(run, trusted=False)
    give(run.root / name, NOBODY)
    with pytest.raises(ConfigError, match=f"^cannot resume in .*{name} there .*to nobody,"):
        refuse_foreign(run, trusted=False)


@needs_root
def test_trust_is_remembered_for_the_user(run: RunDir) -> None:
    """Who was trusted once is accepted from then on; a second user is not."""
    give(run.run_file, NOBODY)
    refuse_foreign(run, trusted=True)
    refuse_foreign(run, trusted=False)
    give(run.journal_file, NOBODY)
    refuse_foreign(run, trusted=False)
    give(run.checkpoints / "step-000000000007/manifest.json", OTHER)
    with pytest.raises(ConfigError, match="belong to 54321 and nobody"):
        refuse_foreign(run, trusted=False)
    refuse_foreign(run, trusted=True)
    refuse_foreign(run, trusted=False)


@needs_root
@pytest.mark.parametrize("forgery", ["owner", "mode", "link", "hard link", "content"])
def test_record_that_another_user_could_have_written_counts_for_nothing(
    run: RunDir, tmp_path: Path, forgery: str
) -> None:
    """A record of trust counts only as this user's own regular file, in which no other writes."""
    give(run.run_file, NOBODY)
    refuse_foreign(run, trusted=True)
    record = run.trust_file
    match forgery:
        case "owner":
            give(record, NOBODY)
        case "mode":
            record.chmod(0o664)
        case "link":
            record.rename(tmp_path / "record")
            record.symlink_to(tmp_path / "record")
        case "hard link":
            os.link(record, tmp_path / "record")
        case "content":
            record.write_text('{"users": ["65534", true, null]}')
    with pytest.raises(ConfigError, match="add --trust once"):
        refuse_foreign(run, trusted=False)


@needs_root
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_record_is_not_writable_by_others_under_any_umask(run: RunDir, umask: int) -> None:
    """The record of trust is accepted by the next start whatever the umask was."""
    give(run.run_file, NOBODY)
    before = os.umask(umask)
    try:
        refuse_foreign(run, trusted=True)
    finally:
        os.umask(before)
    refuse_foreign(run, trusted=False)


@needs_root
def test_group_that_shares_a_run_is_no_stranger(run: RunDir) -> None:
    """A member's files are accepted in a directory that a group of this user's may write."""
    group = os.getegid()
    for path in (run.root, *(run.root / name for name in HISTORY)):
        give(path, NOBODY, group)
    with pytest.raises(ConfigError):
        refuse_foreign(run, trusted=False)
    directories = [run.root, *(path for path in run.root.rglob("*") if path.is_dir())]
    for directory in directories:
        directory.chmod(0o2775)
    refuse_foreign(run, trusted=False)
    for directory in directories:
        directory.chmod(0o2777)  # a new file of anybody gets the group
        with pytest.raises(ConfigError):
            refuse_foreign(run, trusted=False)
        directory.chmod(0o2775)
    give(run.run_file, NOBODY, OTHER)
    with pytest.raises(ConfigError, match="run.json there belongs to nobody"):
        refuse_foreign(run, trusted=False)


@needs_root
def test_directory_of_another_user_without_a_history_is_used(run: RunDir) -> None:
    """A new run in a directory of another user, as containers mount them, asks for nothing."""
    for path in (run.root, run.checkpoints, run.attempts):
        give(path, NOBODY)
    refuse_foreign(run, trusted=False)


@needs_root
def test_copied_run_belongs_to_who_copied_it(run: RunDir, tmp_path: Path) -> None:
    """A run that was copied to another place, or from another machine, asks for nothing."""
    for name in HISTORY:
        give(run.root / name, NOBODY)
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.root, copy.root)
    refuse_foreign(copy, trusted=False)


@pytest.mark.parametrize("name", HISTORY)
def test_file_that_every_user_may_write_is_refused(run: RunDir, name: str) -> None:
    """A stranger could have written into it, or put a file of the owner's group there."""
    path = run.root / name
    path.chmod(path.stat().st_mode | 0o002)
    for trusted in (False, True):
        with pytest.raises(ConfigError, match=f"every user of this machine may write to {name}"):
            refuse_foreign(run, trusted=trusted)
    path.parent.chmod(0o770)
    refuse_foreign(run, trusted=False)
    path.parent.chmod(0o775)
    path.unlink() if path.is_file() else path.rename(run.root / "elsewhere")
    path.symlink_to("/dev/null")
    refuse_foreign(run, trusted=False)


def test_run_under_umask_0_is_accepted_by_its_next_start(tmp_path: Path) -> None:
    """Nothing that a run makes may be written by every user, as containers without a umask ask."""
    before = os.umask(0)
    try:
        store = new_store(tmp_path / "run", (1, 2))
        Journal(store.run.journal_file).write(JournalEvent.RUN_STARTED)
        write_json(store.run.run_file, {})
        replace_disposable_file(store.run.journal_index_file, b"{}")
    finally:
        os.umask(before)
    refuse_foreign(store.run, trusted=False)
    assert not [path for path in store.run.root.rglob("*") if path.stat().st_mode & 0o002]
    assert store.run.root.stat().st_mode & 0o777 == 0o775


def test_own_history_needs_no_word(run: RunDir) -> None:
    """A run of this user's asks for nothing, and no record of trust is written."""
    refuse_foreign(run, trusted=False)
    refuse_foreign(run, trusted=True)
    assert not run.trust_file.exists()
