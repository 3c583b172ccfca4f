"""Two unprivileged users of one machine, and run directories that one of them has prepared."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.checkpoint.store import Store
from orchestrator.rundir.paths import RunDir
from orchestrator.system.lock_holder import holder_of
from tests.support import in_child, wait_until
from tests.users import GROUP, OTHER, VICTIM, User

IDLE = ("sh", "-c", "echo trained")


@pytest.fixture
def place(as_root: None) -> Iterator[Path]:
    """A directory of the group, as administrators make them; pytest's own are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        os.chown(directory, 0, GROUP)
        directory.chmod(0o2775)
        yield directory


def start(user: User, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = ("run", "--run-dir", "run", "--log-format", "text", *options)
    return user.run(*words, "--", *IDLE, cwd=place)


def test_colleague_continues_a_run_of_the_group(place: Path) -> None:
    """With umask 002 in a group's directory another member can go on, and is told whose it is."""
    assert start(VICTIM, place).returncode == 0
    for path in (place / "run").rglob("*"):
        assert path.stat().st_mode & 0o020, f"the group cannot write {path}"
    second = start(OTHER, place)
    assert second.returncode == 0, second.stderr
    assert f"belongs to the user {VICTIM.number}" in second.stderr
    third = start(VICTIM, place)
    assert third.returncode == 0, third.stderr
    assert f"every member of the group {GROUP}" in third.stderr


def test_group_that_may_write_the_settings_is_named(place: Path) -> None:
    """A member of the group can set a command that runs as the victim, who is told so."""

    def set_event() -> None:
        VICTIM.become()
        (place / "orchestrator.toml").write_text("max_restarts = 3\n")

    in_child(set_event)
    ended = start(VICTIM, place)
    assert ended.returncode == 0, ended.stderr
    assert f"group {GROUP} can change the settings in" in ended.stderr


def test_links_of_another_user_lead_to_no_file_of_the_victim(place: Path) -> None:
    """Links that a member of the group has planted do not make the victim write elsewhere."""
    assert start(OTHER, place).returncode == 0
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, VICTIM.number, VICTIM.number)
    precious = home / "precious"
    precious.write_text("precious")
    os.chown(precious, VICTIM.number, VICTIM.number)
    names = ("journal.jsonl", "supervisor.log", "reserve", "metrics.jsonl", "lock")

    def plant(*planted: str) -> None:
        OTHER.become()
        for name in planted:
            path = place / "run" / name
            path.unlink(missing_ok=True)
            path.symlink_to(precious)

    in_child(lambda: plant(*names))
    refused = start(VICTIM, place)
    assert refused.returncode == 78, refused.stderr
    assert "lock: it is a symbolic link" in refused.stderr
    in_child(lambda: (OTHER.become(), (place / "run/lock").unlink()))
    assert "Traceback" not in start(VICTIM, place).stderr

    def replace_attempts() -> None:
        OTHER.become()
        (place / "run/attempts").rename(place / "run/old")
        (place / "run/attempts").symlink_to(home)

    in_child(replace_attempts)
    refused = start(VICTIM, place)
    assert refused.returncode == 78, refused.stderr
    assert "attempts is a symbolic link" in refused.stderr
    assert precious.read_text() == "precious"
    assert os.listdir(home) == ["precious"]


def test_stop_signals_no_process_that_another_user_names(place: Path) -> None:
    """A note that another user wrote does not make the victim signal the victim's processes."""
    assert start(OTHER, place).returncode == 0
    with subprocess.Popen(["sleep", "600"], user=VICTIM.number) as bystander:
        for pid in (bystander.pid, -1, 2**70):
            with open(place / "run/lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                lock.write(json.dumps({"pid": pid, "host": os.uname().nodename}))
                lock.flush()
                for command in ("stop", "checkpoint"):
                    result = VICTIM.run(command, "run", cwd=place)
                    assert result.returncode == 78, (pid, result.stderr)
        assert bystander.poll() is None
        bystander.kill()


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_stop_reaches_no_supervisor_of_another_run(place: Path) -> None:
    """A note that names the socket of another run of the victim does not stop that run."""
    assert start(OTHER, place).returncode == 0
    path, lock = place / "socket", place / "run/lock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.set_inheritable(True)
        listener.bind(str(path))
        os.chown(path, VICTIM.number, VICTIM.number)
        if (other_run := os.fork()) == 0:
            VICTIM.become()
            listener.listen()  # the kernel notes who does
            os.execvp("sleep", ["sleep", "600"])
        note = {"pid": other_run, "host": os.uname().nodename, "socket": str(path)}
        lock.write_text(json.dumps(note))
        # Until then the other run is a fork of root's, whose files its own user may not see.
        wait_until(lambda: b"sleep" in command_of(other_run), "the program of the other run")
        with subprocess.Popen(["flock", "-F", lock, "sleep", "600"]) as holder:
            try:
                wait_until(lambda: holder_of(lock) is not None, "the lock")
                for command in ("stop", "checkpoint"):
                    result = VICTIM.run(command, "run", cwd=place)
                    assert result.returncode == 78, result.stderr
                    assert "not of a process that holds this run" in result.stderr
                seen = VICTIM.run("status", "--json", "run", cwd=place)
                assert seen.returncode == 0, seen.stderr
            finally:
                holder.kill()
                os.kill(other_run, signal.SIGKILL)
                os.waitpid(other_run, 0)
        listener.setblocking(False)
        for _ in range(3):
            with listener.accept()[0] as client:
                assert client.recv(1) == b"", "a message has come"


def test_reader_cannot_hold_the_lock(place: Path) -> None:
    """A user who may only read a run cannot keep it from starting, and can see that it ended."""
    private = User(VICTIM.number)
    directory = place / "own"
    directory.mkdir()
    os.chown(directory, VICTIM.number, VICTIM.number)
    assert start(private, directory).returncode == 0

    def hold() -> None:
        OTHER.become()
        with pytest.raises(PermissionError):
            (directory / "run/lock").open("rb")

    in_child(hold)
    seen = OTHER.run("status", "--json", "run", cwd=directory)
    assert json.loads(seen.stdout)["state"] == "completed", seen.stderr


@pytest.mark.parametrize("user", [VICTIM, User(0)], ids=["another user", "root"])
def test_history_of_another_user_is_resumed_only_when_trusted(place: Path, user: User) -> None:
    """A run that another user has made is refused until --trust is given once."""
    assert start(OTHER, place).returncode == 0
    # Permissions alone would let these users go on: the run came here with its owner, by mv or tar.
    for path in (place / "run", *(place / "run").rglob("*")):
        os.chown(path, path.stat().st_uid if path.is_file() else user.number, OTHER.number)
        path.chmod(0o770 if path.is_dir() else 0o666)
    names = sorted(os.listdir(place / "run"))
    refused = start(user, place)
    assert refused.returncode == 78, refused.stderr
    assert f"belong to {OTHER.number}, and this run would train" in refused.stderr
    assert sorted(os.listdir(place / "run")) == names
    for options in (["--trust"], []):
        accepted = start(user, place, *options)
        assert accepted.returncode == 0, accepted.stderr


@pytest.mark.parametrize(
    "event",
    [
        '{"event": "attempt_exited", "attempt": 1, "last_lines": [{"a": 1}]}',
        '{"event": "attempt_exited", "attempt": 1, "last_lines": ' + "[" * 700 + "]" * 700 + "}",
        '{"event": "restart_scheduled", "attempt": 1' + "0" * 4290 + "}",
    ],
    ids=["other parts", "deep", "digits"],
)
def test_run_of_another_user_hides_no_run(place: Path, event: str) -> None:
    """A member of the group cannot end the commands by which the others look at their runs."""
    assert start(VICTIM, place).returncode == 0

    def spoil() -> None:
        OTHER.become()
        hostile = RunDir(place / "other")
        hostile.create()
        Store.open(hostile, command=[])
        hostile.journal_file.write_text(event + '\n{"event": "gave_up", "attempt": 1}\n')
        nested = RunDir(place / "other").checkpoints / "step-000000000001"
        nested.mkdir()
        (nested / "manifest.json").write_text('{"start": ' + "[" * 700 + "]" * 700 + "}")

    in_child(spoil)
    shown = VICTIM.run("runs", ".", cwd=place)
    assert "completed" in shown.stdout, shown.stderr
    assert "failed" in shown.stdout
    for words in (("status", "other"), ("checkpoints", "list", "other")):
        looked = VICTIM.run(*words, cwd=place)
        assert looked.returncode == 0, looked.stderr
        assert "Traceback" not in looked.stderr


def test_directory_that_every_user_may_write_is_refused(place: Path) -> None:
    """A run directory that everybody can write is refused with the command that helps."""
    assert start(VICTIM, place).returncode == 0
    for name in ("run", "run/checkpoints", "run/attempts"):
        (place / name).chmod(0o777)
        refused = start(VICTIM, place)
        assert refused.returncode == 78, refused.stderr
        assert f"chmod o-w {name}`" in refused.stderr
        (place / name).chmod(0o2775)


@pytest.mark.parametrize(
    "words",
    [
        ("status", "LOCKED"),
        ("checkpoints", "import", "LOCKED", "new"),
        ("run", "--run-dir", "new", "--", "LOCKED"),
        ("run", "--run-dir", "new", "--", "sh", "LOCKED"),
        ("run", "--run-dir", "new", "--", "echo", "LOCKED"),
        ("run", "--run-dir", "new", "--", "sh", "-ec", f"echo {'long ' * 100}"),
        ("slurm-script", "--", "echo", "LOCKED"),
        ("systemd-unit", "--", "echo", "long" * 100),
    ],
    ids=range(8),
)
def test_path_that_may_not_be_looked_at_gives_no_traceback(
    place: Path, words: tuple[str, ...]
) -> None:
    """What is in a closed directory, or has no name that a file can have, is as if not there."""
    (place / "closed").mkdir(mode=0o700)
    (place / "closed/file").touch()
    locked = str(place / "closed/file")
    result = VICTIM.run(*(locked if word == "LOCKED" else word for word in words), cwd=place)
    assert result.returncode in (0, 78), result.stderr
    assert "Traceback" not in result.stderr
