"""The run directory: whether it can be used, whose it is, and who works on it."""

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
from orchestrator.rundir.lock import LOOK_SECONDS, RunLock, lock_owner
from orchestrator.rundir.paths import FORMAT_VERSION, RunDir, RunIdentity, default_run_dir
from tests.support import DEADLINE_SECONDS, NOBODY, in_child, wait_until

# Takes the lock, starts a process that inherits it, as the trainer does, and waits.
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.lock import RunLock
lock = RunLock(RunDir(Path(sys.argv[1])))
lock.sign(socket="/tmp/socket")
trainer = subprocess.Popen(["sleep", "1000"], pass_fds=(lock.descriptor,))
print(trainer.pid, flush=True)
time.sleep(1000)
"""

# Says that it is about to take the lock, and takes it.
TAKER = """
import sys
from pathlib import Path
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.lock import RunLock
print("about to", flush=True)
RunLock(RunDir(Path(sys.argv[1])))
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


# --- the directory -------------------------------------------------------------------------------


def test_creating_makes_all_directories_and_keeps_what_is_there(tmp_path: Path) -> None:
    """A new run directory may lie in directories that do not exist yet; an old one is kept."""
    run = RunDir(tmp_path / "deep" / "er")
    run.create()
    (run.checkpoints / "step-000000000001").mkdir()
    run.create()
    assert sorted(os.listdir(run.root)) == ["attempts", "checkpoints"]
    assert os.listdir(run.checkpoints) == ["step-000000000001"]


@pytest.mark.parametrize(
    "place",
    ["a_file", "a_file/below", "a_file/far/below", "checkpoints_is_a_file", "x" * 300, "/proc/run"],
    ids=lambda place: place[:30],
)
def test_a_place_that_cannot_hold_a_run_is_refused(tmp_path: Path, place: str) -> None:
    """The refusal names the directory and the option, whoever the user is."""
    (tmp_path / "a_file").write_text("precious")
    (tmp_path / "checkpoints_is_a_file").mkdir()
    (tmp_path / "checkpoints_is_a_file" / "checkpoints").touch()
    root = tmp_path / place
    with pytest.raises(ConfigError, match=r"^cannot .*--run-dir") as caught:
        RunDir(root).create()
    assert str(root) in str(caught.value)
    assert (tmp_path / "a_file").read_text() == "precious"


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.processes
@pytest.mark.parametrize("name", ["", "new", "old"], ids=["itself", "below", "existing-run"])
def test_a_directory_of_others_is_refused(public_directory: Path, name: str) -> None:
    """A user who may not write there is told so before anything is started."""
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
def test_a_run_is_named_after_its_script(script: str, expected: str) -> None:
    """The default run directory depends on the script alone."""
    assert default_run_dir(script) == Path(expected)


def test_attempts_have_directories_of_their_own(run: RunDir) -> None:
    """Attempts are numbered from 1, in four digits, so that they list in order."""
    assert run.attempt(7).root == run.root / "attempts" / "0007"
    assert run.attempt(7).error_file.parent == run.attempt(7).root


def test_records_of_an_attempt_may_be_damaged(run: RunDir) -> None:
    """An error.json that is torn or missing says nothing, and is no error."""
    attempt = run.attempt(1)
    assert attempt.error() is None
    attempt.root.mkdir()
    attempt.error_file.write_text('{"type": "Val')
    assert attempt.error() is None
    attempt.error_file.write_text('{"type": "ValueError"}')
    assert attempt.error() == {"type": "ValueError"}


def test_done_is_told_only_by_a_whole_file(run: RunDir) -> None:
    """No done.json means not done; a damaged one is refused, never taken for either."""
    assert run.done() is None
    run.done_file.write_text('{"step": 5}')
    assert run.done() == {"step": 5}
    run.done_file.write_text("")
    with pytest.raises(ConfigError, match=r"done\.json.*damaged.*the run then goes on from"):
        run.done()


# --- the identity --------------------------------------------------------------------------------


def test_a_run_keeps_its_identity(run: RunDir) -> None:
    """The id, the first command and the time of creation are those of the first start."""
    first = RunIdentity.open(run, ["python", "train.py"])
    assert RunIdentity.open(run, ["python", "train.py", "--epochs", "20"]) == first
    assert json.loads(run.run_file.read_bytes()) == {
        "format_version": FORMAT_VERSION,
        "run_id": first.run_id,
        "command": ["python", "train.py"],
        "created": first.created,
        "script": None,
    }


def test_another_script_is_refused(run: RunDir) -> None:
    """It would resume from checkpoints that are not its own; the same script may have moved."""
    first = RunIdentity.open(run, ["bash", "exp1.sh"], script="exp1.sh")
    assert RunIdentity.open(run, ["bash", "new/exp1.sh"], script="new/exp1.sh") == first
    assert RunIdentity.open(run, []) == first
    with pytest.raises(ConfigError, match=r"^cannot train exp2 .* run of exp1.*--run-dir"):
        RunIdentity.open(run, ["bash", "exp2.sh"], script="exp2.sh")


def test_runs_have_different_ids(tmp_path: Path) -> None:
    """Two new runs of one command are not taken for each other."""
    ids = set()
    for name in "ab":
        run = RunDir(tmp_path / name)
        run.create()
        ids.add(RunIdentity.open(run, ["python"]).run_id)
    assert len(ids) == 2


def test_an_id_is_adopted_only_for_a_lost_run_file(run: RunDir) -> None:
    """The id that checkpoints carry names the run when run.json is gone, and never replaces it."""
    assert RunIdentity.open(run, [], adopted_id="of-the-checkpoints").run_id == "of-the-checkpoints"
    assert RunIdentity.open(run, [], adopted_id="another").run_id == "of-the-checkpoints"


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
def test_a_damaged_run_file_is_refused(run: RunDir, content: bytes) -> None:
    """Guessing an identity would mix runs: a damaged run.json is named, refused and kept."""
    run.run_file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^cannot use .*run\.json"):
        RunIdentity.open(run, [])
    assert run.run_file.read_bytes() == content


def test_an_empty_run_file_is_damage_and_no_other_version(run: RunDir) -> None:
    """Where the version is missing, the advice is how to get a whole file again."""
    run.run_file.write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json: it is damaged .*move it away"):
        RunIdentity.open(run, [])


def test_a_run_file_that_cannot_be_read_is_refused(run: RunDir) -> None:
    """A directory in the place of run.json is an error with the system's reason."""
    run.run_file.mkdir()
    with pytest.raises(ConfigError, match=r"^cannot read .*run\.json: Is a directory"):
        RunIdentity.open(run, [])


# --- the lock ------------------------------------------------------------------------------------


def test_a_free_run_has_no_owner(run: RunDir) -> None:
    """No owner before the first start, nor after the end, though the note is still there."""
    assert lock_owner(run) is None
    lock = RunLock(run)
    lock.sign(socket="/tmp/socket")
    lock.release()
    assert lock_owner(run) is None
    assert b"/tmp/socket" in run.lock_file.read_bytes()


def test_the_owner_is_told(run: RunDir) -> None:
    """While the run is held, others read who holds it; a shorter note replaces a longer one."""
    lock = RunLock(run)
    assert lock_owner(run) == {}
    lock.sign(socket="/tmp/" + "x" * 80)
    lock.sign(socket="/tmp/socket")
    host = os.uname().nodename
    assert lock_owner(run) == {"pid": os.getpid(), "host": host, "socket": "/tmp/socket"}
    lock.release()


def test_the_note_of_the_former_owner_is_read(run: RunDir) -> None:
    """Who takes the lock learns what the one before left, however damaged the note is."""
    first = RunLock(run)
    assert first.former_owner == {}
    first.sign(socket="/tmp/socket")
    first.release()
    second = RunLock(run)
    assert second.former_owner["socket"] == "/tmp/socket"
    second.release()
    run.lock_file.write_bytes(b'{"pid": 12')
    third = RunLock(run)
    assert third.former_owner == {}
    third.release()


@pytest.mark.parametrize("note", [b'{"pid": 12', b"[]", b"\xff", b""])
def test_a_damaged_note_does_not_free_the_lock(run: RunDir, note: bytes) -> None:
    """A held run has an owner also when the note about it cannot be read."""
    lock = RunLock(run)
    run.lock_file.write_bytes(note)
    assert lock_owner(run) == {}
    with pytest.raises(RunInUseError):
        RunLock(run)
    lock.release()


def test_a_second_holder_is_refused(run: RunDir) -> None:
    """The refusal says who works on the run and how to end that; it does not touch the note."""
    lock = RunLock(run)
    lock.sign()
    with pytest.raises(RunInUseError, match=f"^cannot use .*process {os.getpid()} on"):
        RunLock(run)
    assert lock_owner(run) is not None
    lock.release()
    RunLock(run).release()


def test_looking_at_the_lock_does_not_refuse_a_start(run: RunDir) -> None:
    """`orchestrator status` holds the lock for an instant: a start waits that long."""
    with open(run.lock_file, "w") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.01, fcntl.flock, (looker, fcntl.LOCK_UN)).start()
        RunLock(run).release()


@pytest.mark.processes
def test_the_lock_is_free_when_its_last_inheritor_has_ended(run: RunDir) -> None:
    """A killed supervisor's trainer still holds the run; who comes then waits for its end."""
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
                waiting.wait(5 * LOOK_SECONDS)
        finally:
            supervisor.kill()
            os.kill(trainer, signal.SIGKILL)
    with waiting:
        assert waiting.wait(DEADLINE_SECONDS) == 0


@pytest.mark.processes
def test_the_lock_is_not_inherited_by_chance(run: RunDir) -> None:
    """A process that the holder starts for something else does not keep the run locked."""
    lock = RunLock(run)
    with subprocess.Popen(["sleep", "1000"], close_fds=False) as other:
        lock.release()
        try:
            wait_until(lambda: lock_owner(run) is None, "the lock to be free")
        finally:
            other.kill()


def test_a_lock_that_cannot_be_opened_is_refused(run: RunDir) -> None:
    """A directory in the place of the lock file is an error with the system's reason."""
    run.lock_file.mkdir()
    with pytest.raises(ConfigError, match=r"^cannot open .*lock: Is a directory"):
        RunLock(run)


@pytest.mark.processes
def test_a_full_disk_does_not_keep_a_run_from_being_locked(run: RunDir) -> None:
    """The note in the lock file helps people; that it cannot be written is no reason to end."""

    def lock_without_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        RunLock(run).sign()

    assert in_child(lock_without_space) == 0
