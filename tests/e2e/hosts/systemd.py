"""A real systemd in its own namespaces, and training services in it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.rundir.paths import RunDir
from tests.e2e.hosts.need import skip_or_fail
from tests.e2e.support import TRAIN, wait_for

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("systemd_manager")
SYSTEMD = Path("/lib/systemd/systemd")
SECONDS = 60.0
TARGET = "keep-running.target"
MODULE = "-P -m orchestrator"


class Manager:
    """A systemd in its own namespaces, which can change files only in ``share``."""

    def __init__(self, mode: str, directory: Path) -> None:
        self.mode = mode
        self.share = directory / "share"
        self._words = [str(SCRIPT), mode, str(directory)]
        self.units = "/run/systemd/system" if mode == "system" else "/run/user/0/systemd/user"

    def start(self) -> None:
        self._call("start", READABLE=str(ROOT))

    def stop(self) -> None:
        self._call("stop")

    def run(self, *command: str) -> str:
        """Return the output of a command in systemd's namespaces."""
        return self._call("exec", *command)

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", f"--{self.mode}", "--no-pager", *words)

    def show(self, unit: str, name: str) -> str:
        """Return one property of a unit."""
        return self.systemctl("show", "--value", "-p", name, unit).strip()

    def wait_for(self, unit: str, name: str, value: str) -> None:
        """Wait until a property has a value."""
        wait_for(lambda: self.show(unit, name) == value, f"{name} of {unit} to be {value}")

    def journal(self, unit: str) -> str:
        """Return the journal of a system unit."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def install(self, name: str, text: str, **overrides: object) -> None:
        """Install a unit with a drop-in that contains further lines of its [Service] section."""
        folder = self.share / "units"
        for one in (f"{name}.d", f"{TARGET}.d"):
            (folder / one).mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        lines = [f"{key}={value}" for key, value in overrides.items()]
        (folder / f"{name}.d" / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
        # systemd forgets how a service ended unless another unit refers to it.
        (folder / TARGET).write_text("[Unit]\nDefaultDependencies=no\n")
        (folder / f"{TARGET}.d" / f"{name}.conf").write_text(f"[Unit]\nAfter={name}\n")
        self.run("mkdir", "-p", self.units)
        self.run("cp", "-r", f"{folder}/.", self.units)
        self.systemctl("daemon-reload")
        self.systemctl("start", TARGET)

    def _call(self, *words: str, **environment: str) -> str:
        result = subprocess.run(
            [*self._words, *words],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environment},
            timeout=SECONDS,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@contextmanager
def managed(mode: str, directory: Path) -> Iterator[Manager]:
    """Yield a running systemd; skip or fail without one."""
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        skip_or_fail("systemd is not installed")
    if os.geteuid() != 0:
        skip_or_fail("a private systemd needs root")
    probe = [
        "unshare",
        "--mount",
        "--pid",
        "--cgroup",
        "--fork",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/mnt",
    ]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        skip_or_fail("a private systemd needs the right to create namespaces and to mount")
    manager = Manager(mode, directory)
    manager.share.mkdir(parents=True)
    manager.start()
    try:
        yield manager
    finally:
        manager.stop()


class Job:
    """A training command as a service, with the unit of `orchestrator systemd-unit`."""

    def __init__(
        self,
        manager: Manager,
        name: str,
        command: list[str],
        options: tuple[str, ...] = (),
        program: str = MODULE,
        **overrides: object,
    ) -> None:
        """Replace `-m orchestrator` in ExecStart with ``program``."""
        self.manager = manager
        self.unit = f"{name}.service"
        self.directory = manager.share / name
        self.directory.mkdir()
        self.run = RunDir(self.directory / "run")
        own = ["--user"] if manager.mode == "user" else []
        words = [*own, "--no-spare", "--name", name, "--run-dir", str(self.run.root), *options]
        text = print_unit(*words, "--", *command, directory=self.directory)
        text = text.replace(f"{MODULE} run", f"{program} run")
        manager.install(self.unit, text, **{"RestartSec": 0} | overrides)

    def systemctl(self, verb: str) -> None:
        self.manager.systemctl(verb, self.unit)

    def show(self, name: str) -> str:
        return self.manager.show(self.unit, name)

    def wait_for(self, name: str, value: str) -> None:
        self.manager.wait_for(self.unit, name, value)

    def snapshot_beyond(self, checkpoints: list[int]) -> int | None:
        """Return the step of the newest snapshot if it is newer than the checkpoints."""
        words = [sys.executable, "-m", "orchestrator", "status", str(self.run.root), "--json"]
        snapshot = json.loads(self.manager.run(*words))["newest_snapshot"]
        if not snapshot or not checkpoints or snapshot["step"] <= max(checkpoints):
            return None
        return int(snapshot["step"])

    def kill(self, signal: str, pid: str) -> None:
        """Send a signal to a process, by its id inside the namespace: `kill("-STOP", "17")`."""
        self.manager.run("kill", signal, pid)


def training(*arguments: str) -> list[str]:
    """Return the command of a training that runs longer than any test."""
    return [sys.executable, str(TRAIN), "--epochs", "1000", "--step-seconds", "0.02", *arguments]


def print_unit(*words: str, directory: Path) -> str:
    """Return what `orchestrator systemd-unit` prints in a directory."""
    result = subprocess.run(
        [sys.executable, "-m", "orchestrator", "systemd-unit", *words],
        cwd=directory,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
