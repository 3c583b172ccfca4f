"""Kills the supervisors of a run at random moments, and starts the same command again at once.

The moments begin with the first millisecond of the command. They are drawn from a seeded mixture,
so that some fall into each phase of a supervisor's life.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.checkpoint.temporary import TRASH_PREFIX, WRITING_PREFIX
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from orchestrator.system import process_tree
from tests.e2e.support import (
    DEADLINE_SECONDS,
    Supervised,
    assert_all_valid,
    assert_nothing_left,
    wait_for,
)

ALLOWED = (0, 74, 75)
# How often each is drawn, and within how many seconds of the start, or of what it waits for.
MOMENTS = {
    "at once": (3, 0.03),
    "in the start": (4, 0.5),
    "in the imports": (3, 3.0),
    "after a save": (2, 0.3),
    "in a save": (3, 0.02),
}
# The last kills of a run wait for the end of its training.
LAST_KILLS = 4
LAST_SECONDS = 0.4


@dataclass(frozen=True)
class Subject:
    """A command that is killed.

    It writes ``result`` when it has done everything, and prints ``last_words`` before that.
    """

    name: str
    command: list[str]
    last_words: str
    options: tuple[str, ...] = ()
    result: str = "result.pt"
    saves: str = "run/checkpoints/step-*"
    """What a save adds to its directory, or changes there."""
    environment: dict[str, str] = field(default_factory=dict)
    cold_share: float = 0.0
    """The share of its supervisors that the interpreter starts; the others are warm."""
    has_checkpoints: bool = True

    @property
    def is_detached(self) -> bool:
        """Whether the command returns while its supervisor goes on."""
        return "--detach" in self.options


class KilledRun:
    """A run of one subject, whose supervisors are killed until it is complete."""

    def __init__(self, subject: Subject, root: Path, chance: random.Random) -> None:
        root.mkdir()
        self._subject = subject
        self._root = root
        self._chance = chance
        self.run = RunDir(root / "run")
        self.phases: Counter[str] = Counter()
        """How many kills fell into each phase."""
        self._temporary = root.with_name(f"{root.name}-tmp")
        self._temporary.mkdir()
        self._output = open(root.with_name(f"{root.name}.log"), "ab")  # noqa: SIM115

    def close(self) -> None:
        self._output.close()

    def kill(self, count: int) -> None:
        """Kill ``count`` supervisors, or fewer if the run completes earlier; then let it end."""
        for number in range(count):
            supervised = self._start()
            self._await_moment(supervised, is_late=number >= count - LAST_KILLS)
            if self._is_over(supervised):
                break
            victim = self._supervisor(supervised)
            phase = self._phase(victim)
            with contextlib.suppress(ProcessLookupError):  # it has ended in this instant
                os.kill(victim, signal.SIGKILL)
                self.phases[phase] += 1
        self._complete()

    def check(self, undisturbed: "KilledRun") -> None:
        """Check that the run has left nothing but what an undisturbed one leaves."""
        assert_nothing_left(self.run)
        if self._subject.has_checkpoints:
            assert_all_valid(self.run)
        extra = self._names() - undisturbed._names()
        assert not extra, extra
        assert not list(self._temporary.iterdir()), list(self._temporary.iterdir())

    @property
    def result(self) -> Path:
        """The file with the result."""
        return self._root / self._subject.result

    def _start(self) -> Supervised:
        cold = {"stdin": subprocess.DEVNULL} if self._draws_cold() else {}
        where = dict.fromkeys(("TMPDIR", "XDG_RUNTIME_DIR"), str(self._temporary))
        self._journal_begin = self._journal_bytes()
        return Supervised(
            self._root,
            command=self._subject.command,
            options=self._subject.options,
            environment=self._subject.environment | where,
            stdout=self._output,
            stderr=self._output,
            **cold,
        )

    def _draws_cold(self) -> bool:
        return self._chance.random() < self._subject.cold_share

    # --- the moment --------------------------------------------------------------------------

    def _await_moment(self, supervised: Supervised, *, is_late: bool) -> None:
        """Wait for the moment of the kill; return earlier if the run is over."""
        begun = time.monotonic()
        weights = [weight for weight, _ in MOMENTS.values()]
        name = self._chance.choices([*MOMENTS], weights)[0]
        seconds = self._chance.uniform(0, LAST_SECONDS if is_late else MOMENTS[name][1])
        if is_late:
            begun = self._await(supervised, self._is_ending)
        elif name == "after a save":
            saved = self._saves()
            begun = self._await(supervised, lambda: self._saves() != saved)
        elif name == "in a save":
            begun = self._await(supervised, lambda: self._has_temporary(WRITING_PREFIX))
        while time.monotonic() < begun + seconds and not self._is_over(supervised):
            time.sleep(0.001)

    def _await(self, supervised: Supervised, condition: Callable[[], bool]) -> float:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition() and not self._is_over(supervised):
            assert time.monotonic() < deadline, self._last_output()
            time.sleep(0.001)
        return time.monotonic()

    def _has_temporary(self, prefix: str) -> bool:
        folder = self.run.checkpoints
        return folder.exists() and any(p.name.startswith(prefix) for p in folder.iterdir())

    def _saves(self) -> set[tuple[str, int]]:
        found = set()
        for path in self._root.glob(self._subject.saves):
            try:
                found.add((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return found

    def _is_ending(self) -> bool:
        if self.result.exists():
            return True
        file = self.run.attempt(self.run.last_attempt()).output_file
        return file.exists() and self._subject.last_words in file.read_text(errors="replace")

    def _is_over(self, supervised: Supervised) -> bool:
        """Return whether the run is complete; check the exit status if the command has ended."""
        status = supervised.process.poll()
        if status is None:
            return False
        assert status in ALLOWED, (status, self._last_output())
        return not (self._subject.is_detached and lock_owner(self.run) is not None)

    def _last_output(self) -> str:
        return Path(self._output.name).read_text(errors="replace")[-3000:]

    # --- the supervisor and its phase --------------------------------------------------------

    def _supervisor(self, supervised: Supervised) -> int:
        """Return the process id of the supervisor: with --detach, of the launcher at first."""
        if not self._subject.is_detached:
            return supervised.process.pid
        owner = lock_owner(self.run) or {}
        if not process_tree.has_ended(owner.get("pid", 0) or supervised.process.pid):
            return int(owner.get("pid", supervised.process.pid))
        children = psutil.Process(supervised.process.pid).children()
        return children[0].pid if children else supervised.process.pid

    def _phase(self, supervisor: int) -> str:
        """Return in which phase of its life the supervisor is."""
        if (lock_owner(self.run) or {}).get("pid") != supervisor:
            return "before it has the lock"
        if self._has_temporary(TRASH_PREFIX):
            return "in a rotation"
        if self._has_temporary(WRITING_PREFIX):
            return "in a save"
        return self._phase_by_journal()

    def _phase_by_journal(self) -> str:
        written = ""
        if self.run.journal_file.exists():
            with open(self.run.journal_file) as file:
                file.seek(self._journal_begin)
                written = file.read()
        for event, phase in (
            ("run_completed", "after the run is complete"),
            ("attempt_exited", "after the trainer's end"),
            ("checkpoint_published", "in training"),
            ("resumed", "in training"),
            ("attempt_started", "in the trainer's start"),
            ("run_started", "before the trainer's start"),
        ):
            if f'"{event}"' in written:
                return phase
        return "opening the run"

    def _journal_bytes(self) -> int:
        file = self.run.journal_file
        return file.stat().st_size if file.exists() else 0

    # --- the end -----------------------------------------------------------------------------

    def _complete(self) -> None:
        """Start the command until the run is complete."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.run.done_file.exists() or lock_owner(self.run) is not None:
            assert time.monotonic() < deadline, self._last_output()
            supervised = self._start()
            wait_for(lambda s=supervised: self._is_over(s), "the end of the run")
        supervised = self._start()
        assert supervised.process.wait(DEADLINE_SECONDS) == 0, self._last_output()

    def _names(self) -> set[str]:
        """Return the paths that the run has left, with the same sign for all numbers."""
        index = self.run.journal_index_file  # which only a long journal has
        found = (path for path in self._root.rglob("*") if path != index)
        paths = (str(path.relative_to(self._root)) for path in found)
        return {re.sub(r"[0-9]+(-[0-9]+)?", "#", path) for path in paths}
