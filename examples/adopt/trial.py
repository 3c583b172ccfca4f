"""Puts one program through kills and stops under ``orchestrator run --adopt``."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from examples.adopt.programs import HERE, Program
from examples.adopt.saves_on_disk import SavesOnDisk, has_begun
from examples.adopt.supervised import (
    DEADLINE_SECONDS,
    Supervised,
    TooLateError,
    events,
    kill,
    output_of,
    processes_of,
    progress_of,
    wait_for,
)
from orchestrator.rundir.paths import RunDir

FAULTS = ("kill", "kill in a save", "SIGTERM", "Ctrl-C", "supervisor killed")
LEAST_SAVES = 2
SAVE_POLL_SECONDS = 0.001
TO_THE_END_SECONDS = 600.0


@dataclass
class Fault:
    """What a fault did: the counts are the program's own, None where it printed none.

    ``last`` is the last count before the fault, ``first`` the first one after it; ``offered`` tells
    whether the next attempt was given a checkpoint, ``resumed`` whether it printed that it resumes;
    ``status`` is the supervisor's, where it ended.
    """

    name: str
    last: int | None = None
    first: int | None = None
    offered: bool = False
    resumed: bool = False
    status: int | None = None
    problem: str = ""


@dataclass
class Outcome:
    """All that a trial has shown."""

    faults: list[Fault] = field(default_factory=list)
    beginning: int | None = None
    end: int | None = None
    status: int | None = None
    saves: int = 0
    attempts: int = 0
    set_aside: list[str] = field(default_factory=list)
    verified: bool = False
    loaded: int = 0
    torn: list[str] = field(default_factory=list)
    left: int = 0
    messages: list[str] = field(default_factory=list)
    problem: str = ""
    seconds: float = 0.0


class Trial:
    """A program's working directory, and the run in it."""

    def __init__(
        self,
        program: Program,
        python: str,
        checkouts: Path,
        directory: Path,
        most_pause_seconds: float = 2.0,
    ) -> None:
        """Prepare a trial whose faults come up to ``most_pause_seconds`` after the second save."""
        self._program = program
        self._python = python
        self._checkouts = checkouts
        self._directory = directory / "work"
        self.run = RunDir(self._directory / "run")
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("ORCHESTRATOR_")},
            "OMP_NUM_THREADS": "1",
            "TERM": "xterm",
            "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
            "HOME": str(directory / "home"),
            **self._filled(program.environment or {}),
        }
        self._most_pause_seconds = most_pause_seconds
        command = program.words(program.command, python, checkouts)
        self._saves = SavesOnDisk(self._directory, program.adopt, command)
        self._supervisor: Supervised | None = None
        self.outcome = Outcome()

    def _filled(self, variables: Any) -> dict[str, str]:
        return {
            name: value.format(
                here=HERE, checkout=self._checkouts / self._program.checkout, work=self._directory
            )
            for name, value in variables.items()
        }

    def prepare(self) -> None:
        """Copy the checkout, and make the data. Raises CalledProcessError."""
        source = self._checkouts / self._program.checkout / self._program.directory
        if self._program.checkout:
            shutil.copytree(source, self._directory, ignore=shutil.ignore_patterns(".git"))
        else:
            self._directory.mkdir(parents=True)
        Path(self._environment["HOME"]).mkdir()
        for text in self._program.prepare:
            subprocess.run(
                self._program.words(text, self._python, self._checkouts),
                cwd=self._directory,
                env=self._environment,
                check=True,
            )

    def start(self, terminal: bool = False) -> None:
        """Give the command, which is the same each time."""
        command = self._program.words(self._program.command, self._python, self._checkouts)
        options = ["--run-dir", "run", *self._program.adopt_options]
        self._supervisor = Supervised(
            self._directory, ["run", *options, "--", *command], self._environment, terminal
        )

    def go_through(self, chance: random.Random) -> Outcome:
        """Apply every fault in turn, let the program end, and look at what is left."""
        began = time.monotonic()
        try:
            self.start()
            for name in FAULTS:
                if not self._inject(name, chance):
                    break
            assert self._supervisor is not None
            self.outcome.status = self._supervisor.end(TO_THE_END_SECONDS)
        except TooLateError as error:
            self.outcome.problem = str(error)
        finally:
            kill(processes_of(self.run))
            if self._supervisor is not None and self._supervisor.alive():
                self._supervisor.signal(signal.SIGKILL)
                self._supervisor.end()
        self._look()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _inject(self, name: str, chance: random.Random) -> bool:
        """Apply one fault when the time has come; return whether the run still goes on."""
        assert self._supervisor is not None
        attempt = self._wait_for_saves(chance)
        if attempt is None:
            return False
        fault = Fault(name)
        self.outcome.faults.append(fault)
        trainer = self._trainer()
        if name == "kill in a save":
            self._wait_for_a_save()
        if name in ("kill", "kill in a save"):
            kill([trainer])
        elif name == "supervisor killed":
            self._supervisor.signal(signal.SIGKILL)
            fault.status = self._supervisor.end()
            self.start()
        else:
            if name == "Ctrl-C":
                self._supervisor.press_ctrl_c()
            else:
                self._supervisor.signal(signal.SIGTERM)
            fault.status = self._supervisor.end()
            self._count_left()
            self.start(terminal=FAULTS.index(name) + 1 == FAULTS.index("Ctrl-C"))
        return self._wait_for_next_attempt(attempt, fault)

    def _wait_for_saves(self, chance: random.Random) -> int | None:
        """Wait for two saves of the newest attempt and a while; None if the run ends instead."""
        attempt = int(events(self.run, "attempt_started")[-1]["attempt"]) if self._began() else 1

        def ready() -> bool:
            assert self._supervisor is not None
            if not self._supervisor.alive():
                return True
            printed = progress_of(self.run, attempt, self._program.progress)
            if not self._program.saves_at_all:
                return printed is not None and printed[1] - printed[0] >= LEAST_SAVES
            saves = events(self.run, "checkpoint_published")
            mine = [save for save in saves if save["attempt"] == attempt]
            return len(mine) >= LEAST_SAVES

        wait_for(ready, f"{LEAST_SAVES} saves of attempt {attempt}")
        assert self._supervisor is not None
        if self._supervisor.alive():
            time.sleep(chance.uniform(0, self._most_pause_seconds))
        return attempt if self._supervisor.alive() else None

    def _began(self) -> bool:
        wait_for(lambda: events(self.run, "attempt_started"), "a first attempt", 60)
        return True

    def _trainer(self) -> psutil.Process:
        return psutil.Process(int(events(self.run, "attempt_started")[-1]["pid"]))

    def _wait_for_a_save(self) -> None:
        """Return as soon as a save has begun: not at the end of one that was under way before."""
        before = self._saves.look()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self._program.saves_at_all:
            now = self._saves.look()
            if has_begun(before, now):
                return
            if time.monotonic() > deadline:
                raise TooLateError("no save could be seen under way")
            before = now
            time.sleep(SAVE_POLL_SECONDS)

    def _wait_for_next_attempt(self, attempt: int, fault: Fault) -> bool:
        """Wait until the next attempt has printed a count, and note where it stands."""

        def next_count() -> bool:
            assert self._supervisor is not None
            return not self._supervisor.alive() or bool(
                progress_of(self.run, attempt + 1, self._program.progress)
            )

        wait_for(next_count, f"the first count of attempt {attempt + 1}")
        before = progress_of(self.run, attempt, self._program.progress)
        after = progress_of(self.run, attempt + 1, self._program.progress)
        started = [
            event
            for event in events(self.run, "attempt_started")
            if event["attempt"] == attempt + 1
        ]
        fault.last = before[1] if before else None
        fault.first = after[0] if after else None
        fault.offered = any(event.get("resume_step") is not None for event in started)
        text = self._program.resumed
        fault.resumed = bool(text) and text in output_of(self.run, attempt + 1)
        if not after:
            fault.problem = "no attempt followed" if not started else "the next attempt failed"
        return bool(after)

    def _count_left(self) -> None:
        """Count the processes of a run whose supervisor has ended, after a moment for the dying."""
        deadline = time.monotonic() + 5
        while (left := processes_of(self.run)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.outcome.left += len(left)

    def _look(self) -> None:
        """Record what the run directory says, and load every saved file once more."""
        outcome, program = self.outcome, self._program
        self._count_left()
        attempts = events(self.run, "attempt_started")
        outcome.attempts = len(attempts)
        outcome.saves = len(events(self.run, "checkpoint_published"))
        counts = [progress_of(self.run, event["attempt"], program.progress) for event in attempts]
        printed = [count for count in counts if count]
        if printed:
            outcome.beginning, outcome.end = printed[0][0], printed[-1][1]
        outcome.set_aside = sorted(path.name for path in self.run.quarantine.glob("*"))
        verify = [sys.executable, "-m", "orchestrator", "checkpoints", "verify", "run"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        outcome.verified = (
            subprocess.run(verify, cwd=self._directory, check=False, **quiet).returncode == 0
        )
        loaded = subprocess.run(
            [self._python, str(HERE / "load_saved.py")],
            input="\0".join(self._files_to_load()),
            cwd=self._directory,
            env=self._environment | {"PYTHONPATH": str(self._directory)},
            capture_output=True,
            text=True,
            check=False,
        )
        outcome.messages = list(self._messages())
        found = json.loads(loaded.stdout) if loaded.returncode == 0 else {"error": loaded.stderr}
        outcome.loaded = found.get("loaded", 0)
        outcome.torn = found.get("torn", [found.get("error", "")])

    def _files_to_load(self) -> list[str]:
        """Return the files of all saves, and the copies that the run has of them."""
        files = [path for path in self._saves.look() if Path(path).is_file()]
        copies = [str(path) for path in self.run.checkpoints.glob("step-*/content/**/*")]
        return sorted({*files, *(path for path in copies if Path(path).is_file())})

    def _messages(self) -> Iterator[str]:
        """Yield each warning of the supervisors once."""
        seen = set()
        lines = self.run.log_file.read_text().splitlines() if self.run.log_file.exists() else []
        for line in lines:
            record = json.loads(line)
            text = str(record.get("event"))
            if record.get("level") in ("warning", "error") and text not in seen:
                seen.add(text)
                yield text
