"""The run directory: its creation, its identity and its lock."""

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, RunInUseError
from orchestrator.rundir.identity import FORMAT_VERSION, RunIdentity
from orchestrator.rundir.lock import BUSY_TIMEOUT_SECONDS, RunLock, lock_owner
from orchestrator.rundir.paths import RunDir, default_run_dir
from tests.support import DEADLINE_SECONDS, NOBODY, in_child, wait_until

# Takes the lock, starts a process that inherits it, as the trainer does, and waits.
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.lock import RunLock
lock = RunLock(RunDir(Path(sys.argv[1])))
lock.write_owner(socket="/tmp/socket")
trainer = subprocess.Popen(["sleep", "1000"], pass_fds=(lock.descriptor,))
print(trainer.pid, flush=True)
time.sleep(1000)
"""

# Prints a line, and takes the lock.
TAKER = """
import sys
from pathlib import Path
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.lock import RunLock
print("about to", flush=True)
RunLock(RunDir(Path(sys.argv[1])))
"""


# --- the directory -------------------------------------------------------------------------------


def test_create_makes_all_directories_and_keeps_existing_files(tmp_path: Path) -> None:
    """Missing parent directories are created, and an existing run directory is kept."""
    run = RunDir(tmp_path / "deep" / "er")
    run.create()
    (run.checkpoints / "step-000000000001").mkdir()
    run.create()
    assert sorted(os.listdir(run.root)) == ["attempts", "checkpoints"]
    assert os.listdir(run.checkpoints) == ["step-000000000001"]


@pytest.mark.parametrize(
    "path",
    ["a_file", "a_file/below", "a_file/far/below", "checkpoints_is_a_file", "x" * 300, "/proc/run"],
    ids=lambda path: path[:30],
)
def test_unusable_run_directory_is_refused(tmp_path: Path, path: str) -> None:
    """The refusal names the directory and the option --run-dir."""
    (tmp_path / "a_file").write_text("precious")
    (tmp_path / "checkpoints_is_a_file").mkdir()
    (tmp_path / "checkpoints_is_a_file" / "checkpoints").touch()
    root = tmp_path / path
    with pytest.raises(ConfigError, match=r"^cannot .*--run-dir") as caught:
        RunDir(root).create()
    assert str(root) in str(caught.value)
    assert (tmp_path / "a_file").read_text() == "precious"


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """Yield a directory that other users can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["", "new", "old"], ids=["itself", "below", "existing-run"])
def test_directory_without_write_permission_is_refused(public_directory: Path, name: str) -> None:
    """A user who may not write to the directory gets an error before anything starts."""
    if name == "old":
        RunDir(public_directory / name).create()
    if os.getuid() != 0:
        public_directory.chmod(0o555)

    def create() -> None:
        if os.getuid() == 0:
            os.setuid(NOBODY)
        with pytest.raises(ConfigError, match=r"^cannot .*--run-dir"):
            RunDir(public_directory / name).create()

    assert in_child(create) == 0


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("train.py", "runs/train"),
        ("/home/me/project/train.v2.py", "runs/train.v2"),
        ("package/__main__.py", "runs/package"),
        ("/usr/bin/python", "runs/python"),
        ("", "runs/run"),
        ("__main__.py", "runs/run"),
    ],
)
def test_run_is_named_after_its_script(script: str, expected: str) -> None:
    """The default run directory depends only on the script."""
    assert default_run_dir(script) == Path(expected)


def test_each_attempt_has_its_own_directory(run: RunDir) -> None:
    """Attempts are numbered from 1 in four digits, so that they sort in order."""
    assert run.attempt(7).root == run.root / "attempts" / "0007"
    assert run.attempt(7).error_file.parent == run.attempt(7).root


def test_what_a_killed_process_was_writing_is_removed(run: RunDir) -> None:
    """Temporary files of the run and of each rank of its newest attempt go, and no others."""
    older, newest = run.attempt(1), run.attempt(2)
    for directory in (older.root, newest.root, newest.rank(1).root, newest.root / "rank-x"):
        directory.mkdir(parents=True)
    left = ".error.json.0123abcd"
    for directory in (newest.root, newest.rank(1).root):
        (directory / left).touch()
    (run.root / ".run.json.0123abcd").touch()
    kept = [newest.rank(1).root / ".mine.0123abcd", newest.root / "rank-x" / left]
    for file in kept:
        file.touch()
    run.remove_temporaries()
    assert sorted(path for path in run.root.rglob(".*")) == sorted(kept)


def test_damaged_error_file_is_ignored(run: RunDir) -> None:
    """A damaged or missing error.json gives None and raises nothing."""
    attempt = run.attempt(1)
    assert attempt.read_error() is None
    attempt.root.mkdir()
    attempt.error_file.write_text('{"type": "Val')
    assert attempt.read_error() is None
    attempt.error_file.write_text('{"type": "ValueError"}')
    assert attempt.read_error() == {"type": "ValueError"}


def test_run_is_done_only_with_a_valid_done_file(run: RunDir) -> None:
    """A missing done.json means not complete; a damaged one is refused."""
    assert run.read_done() is None
    run.done_file.write_text('{"step": 5}')
    assert run.read_done() == {"step": 5}
    run.done_file.write_text("")
    with pytest.raises(ConfigError, match=r"done\.json.*damaged.*to continue the run from"):
        run.read_done()


# --- the identity --------------------------------------------------------------------------------


def test_run_keeps_its_identity(run: RunDir) -> None:
    """The id, the first command and the creation time stay those of the first start."""
    first = RunIdentity.open(run, ["python", "train.py"])
    assert RunIdentity.open(run, ["python", "train.py", "--epochs", "20"]) == first
    assert json.loads(run.run_file.read_bytes()) == {
        "format_version": FORMAT_VERSION,
        "run_id": first.run_id,
        "command": ["python", "train.py"],
        "created": first.created,
        "script": None,
    }


def test_run_of_another_script_is_refused(run: RunDir) -> None:
    """Another script is refused; the same script in another directory is accepted."""
    first = RunIdentity.open(run, ["bash", "exp1.sh"], script="exp1.sh")
    assert RunIdentity.open(run, ["bash", "new/exp1.sh"], script="new/exp1.sh") == first
    assert RunIdentity.open(run, []) == first
    with pytest.raises(ConfigError, match=r"^cannot train exp2 .* run of exp1.*--run-dir"):
        RunIdentity.open(run, ["bash", "exp2.sh"], script="exp2.sh")


def test_runs_have_different_ids(tmp_path: Path) -> None:
    """Two new runs of one command get different ids."""
    ids = set()
    for name in "ab":
        run = RunDir(tmp_path / name)
        run.create()
        ids.add(RunIdentity.open(run, ["python"]).run_id)
    assert len(ids) == 2


def test_checkpoint_run_id_is_used_only_without_a_run_file(run: RunDir) -> None:
    """The id in the checkpoints names a run whose run.json is lost, and never replaces one."""
    assert (
        RunIdentity.open(run, [], checkpoint_run_id="of-the-checkpoints").run_id
        == "of-the-checkpoints"
    )
    assert RunIdentity.open(run, [], checkpoint_run_id="another").run_id == "of-the-checkpoints"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format_version": 1, "run_id": "abc", "comm',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"run_id": "abc", "command": []}',
        b'{"format_version": 2, "run_id": "abc", "command": []}',
        b'{"format_version": 1, "command": []}',
        b'{"format_version": 1, "run_id": 7, "command": []}',
        b'{"format_version": 1, "run_id": "abc", "command": "python"}',
        pytest.param(b"[" * 100_000, id="nested"),
    ],
)
def test_damaged_run_file_is_refused(run: RunDir, content: bytes) -> None:
    """A damaged run.json is named, refused and kept."""
    run.run_file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^cannot use .*run\.json"):
        RunIdentity.open(run, [])
    assert run.run_file.read_bytes() == content


def test_run_file_without_a_version_is_damaged(run: RunDir) -> None:
    """A run.json without a version is reported as damaged, not as another version."""
    run.run_file.write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json: it is damaged .*move it away"):
        RunIdentity.open(run, [])


def test_unreadable_run_file_is_refused(run: RunDir) -> None:
    """A directory in place of run.json gives an error with the system's reason."""
    run.run_file.mkdir()
    with pytest.raises(ConfigError, match=r"^cannot read .*run\.json: Is a directory"):
        RunIdentity.open(run, [])


# --- the lock ------------------------------------------------------------------------------------


def test_free_lock_has_no_owner(run: RunDir) -> None:
    """The lock has no owner before the first start and after the end, although the file remains."""
    assert lock_owner(run) is None
    lock = RunLock(run)
    lock.write_owner(socket="/tmp/socket")
    lock.close()
    assert lock_owner(run) is None
    assert b"/tmp/socket" in run.lock_file.read_bytes()


def test_owner_of_a_held_lock_is_read(run: RunDir) -> None:
    """Other processes read the owner of a held lock; a shorter record replaces a longer one."""
    lock = RunLock(run)
    assert lock_owner(run) == {}
    lock.write_owner(socket="/tmp/" + "x" * 80)
    lock.write_owner(socket="/tmp/socket")
    host = os.uname().nodename
    assert lock_owner(run) == {"pid": os.getpid(), "host": host, "socket": "/tmp/socket"}
    lock.close()


def test_previous_owner_is_read(run: RunDir) -> None:
    """The next owner reads what the previous one wrote, even if it is damaged."""
    first = RunLock(run)
    assert first.previous_owner == {}
    first.write_owner(socket="/tmp/socket")
    first.close()
    second = RunLock(run)
    assert second.previous_owner["socket"] == "/tmp/socket"
    second.close()
    run.lock_file.write_bytes(b'{"pid": 12')
    third = RunLock(run)
    assert third.previous_owner == {}
    third.close()


@pytest.mark.parametrize("note", [b'{"pid": 12', b"[]", b"\xff", b""])
def test_damaged_owner_does_not_free_the_lock(run: RunDir, note: bytes) -> None:
    """A held lock has an owner even if its file cannot be parsed."""
    lock = RunLock(run)
    run.lock_file.write_bytes(note)
    assert lock_owner(run) == {}
    with pytest.raises(RunInUseError):
        RunLock(run)
    lock.close()


def test_second_holder_is_refused(run: RunDir) -> None:
    """The refusal names the holder and how to stop it, and leaves the lock file unchanged."""
    lock = RunLock(run)
    lock.write_owner()
    with pytest.raises(RunInUseError, match=f"^cannot use .*process {os.getpid()} on"):
        RunLock(run)
    assert lock_owner(run) is not None
    lock.close()
    RunLock(run).close()


def test_start_waits_while_the_lock_is_tested(run: RunDir) -> None:
    """A start waits while `orchestrator status` holds the lock for an instant."""
    with open(run.lock_file, "w") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.01, fcntl.flock, (looker, fcntl.LOCK_UN)).start()
        RunLock(run).close()


@pytest.mark.parametrize("is_made_again", [True, False])
def test_lock_that_is_no_longer_the_run_s_is_refused(run: RunDir, is_made_again: bool) -> None:
    """A start that waited for a lock which is gone by then does not train beside the next one."""
    first = RunLock(run)

    def replace() -> None:
        run.lock_file.unlink()
        if is_made_again:
            run.lock_file.touch()
        first.close()

    ending = threading.Timer(0.05, replace)
    ending.start()
    with pytest.raises(ConfigError, match=r"its lock was removed or replaced .* run the command"):
        RunLock(run)
    ending.join()


@pytest.mark.processes
def test_lock_is_held_until_its_last_inheritor_ends(run: RunDir) -> None:
    """The trainer of a killed supervisor holds the lock, and the next start waits for its end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.root)], stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        trainer = int(supervisor.stdout.readline())
        try:
            owner = lock_owner(run)
            assert owner is not None
            assert owner["pid"] == supervisor.pid
            with pytest.raises(RunInUseError, match=f"process {supervisor.pid} on"):
                RunLock(run)
            supervisor.kill()
            supervisor.wait()
            waiting = subprocess.Popen([sys.executable, "-c", TAKER, str(run.root)], stdout=-1)
            assert waiting.stdout is not None
            waiting.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(5 * BUSY_TIMEOUT_SECONDS)
        finally:
            supervisor.kill()
            os.kill(trainer, signal.SIGKILL)
    with waiting:
        assert waiting.wait(DEADLINE_SECONDS) == 0


@pytest.mark.processes
def test_lock_is_not_inherited_by_other_children(run: RunDir) -> None:
    """A process that the holder starts for another purpose does not hold the lock."""
    lock = RunLock(run)
    with subprocess.Popen(["sleep", "1000"], close_fds=False) as other:
        lock.close()
        try:
            wait_until(lambda: lock_owner(run) is None, "the lock to be free")
        finally:
            other.kill()


def test_lock_file_that_cannot_be_opened_is_refused(run: RunDir) -> None:
    """A directory in place of the lock file gives an error with the system's reason."""
    run.lock_file.mkdir()
    with pytest.raises(ConfigError, match=r"^cannot open .*lock: Is a directory"):
        RunLock(run)


@pytest.mark.processes
def test_full_disk_does_not_prevent_locking(run: RunDir) -> None:
    """A lock whose owner cannot be written is held all the same."""

    def lock_without_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        RunLock(run).write_owner()

    assert in_child(lock_without_space) == 0
