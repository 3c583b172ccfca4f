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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

from orchestrator.checkpoint.temporary import TRASH_PREFIX, WRITING_PREFIX
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from tests.e2e.support import (
    DEADLINE_SECONDS,
    Supervised,
    assert_all_valid,
    assert_nothing_left,
    assert_same_result,
    kill_leftovers,
    wait_for,
)

ALLOWED = (0, 74, 75)


class Phase(StrEnum):
    """A phase of a supervisor's life, in their order."""

    BEGINNING = "before the lock"
    WAITING = "waiting for the lock"
    OPENING = "opening the run"
    LAUNCHING = "before the trainer's start"
    IMPORTING = "in the trainer's start"
    TRAINING = "in training"
    SAVING = "in a save"
    ROTATING = "in a rotation"
    ENDING = "after the trainer's end"
    COMPLETE = "after the run is complete"


ORDER = [*Phase]
# The first of these events that a supervisor has written tells its phase.
PHASE_OF_EVENT = {
    "run_completed": Phase.COMPLETE,
    "attempt_exited": Phase.ENDING,
    "checkpoint_published": Phase.TRAINING,
    "resumed": Phase.TRAINING,
    "attempt_started": Phase.IMPORTING,
    "run_started": Phase.LAUNCHING,
}


@dataclass(frozen=True)
class Moment:
    """A moment within ``seconds`` after the supervisor has reached a phase."""

    weight: int
    phase: Phase
    seconds: float


MOMENTS = (
    Moment(4, Phase.BEGINNING, 0.02),
    Moment(3, Phase.BEGINNING, 1.0),
    Moment(2, Phase.OPENING, 0.05),
    Moment(3, Phase.LAUNCHING, 0.2),
    Moment(3, Phase.IMPORTING, 2.0),
    Moment(2, Phase.TRAINING, 1.0),
    Moment(3, Phase.SAVING, 0.02),
    Moment(2, Phase.ROTATING, 0.0),
)
# The last kills of a run wait for the last words of its training before they choose a moment.
LAST_KILLS = 4
LAST_MOMENTS = (
    Moment(2, Phase.BEGINNING, 0.4),
    Moment(1, Phase.ENDING, 0.02),
    Moment(1, Phase.COMPLETE, 0.1),
)


@dataclass(frozen=True)
class Subject:
    """A command that is killed.

    It writes ``result`` when it has done everything, and prints ``last_words`` before that.
    """

    command: list[str]
    last_words: str
    options: tuple[str, ...] = ()
    result: str = "result.pt"
    environment: dict[str, str] = field(default_factory=dict)
    cold_share: float = 0.0
    """The share of its supervisors that the interpreter starts; the others are warm."""
    has_session: bool = True

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
        self.phases: Counter[Phase] = Counter()
        """How many kills fell into each phase."""
        self._temporary = root.with_name(f"{root.name}-tmp")
        self._temporary.mkdir()
        self._output = open(root.with_name(f"{root.name}.log"), "ab")  # noqa: SIM115

    def close(self) -> None:
        """Kill what a failed test has left."""
        kill_leftovers(self.run)
        self._output.close()

    def kill(self, count: int) -> None:
        """Kill ``count`` supervisors, or fewer if the run completes earlier; then let it end."""
        for number in range(count):
            supervised = self._start()
            self._await_moment(supervised, is_late=number >= count - LAST_KILLS)
            if self._is_over(supervised):
                break
            with self._launcher_stopped(supervised):
                victim = self._supervisor(supervised)
                phase = self._phase(victim)
                with contextlib.suppress(ProcessLookupError):  # it has ended in this instant
                    os.kill(victim, signal.SIGKILL)
                    self.phases[phase] += 1
        self._complete()

    def check(self, undisturbed: "KilledRun") -> None:
        """Check that the run has the result of an undisturbed one, and has left nothing else."""
        assert_nothing_left(self.run)
        if self._subject.has_session:
            assert_all_valid(self.run)
            assert_same_result(self.result, undisturbed.result)
        assert self.result.read_bytes() == undisturbed.result.read_bytes()
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
        moments = LAST_MOMENTS if is_late else MOMENTS
        moment = self._chance.choices(moments, [moment.weight for moment in moments])[0]
        seconds = self._chance.uniform(0, moment.seconds)
        if is_late:
            self._await(supervised, self._is_ending)
        if moment.phase is not Phase.BEGINNING:
            self._await(supervised, lambda: self._has_reached(moment.phase, supervised))
        reached = time.monotonic()
        while time.monotonic() < reached + seconds and not self._is_over(supervised):
            time.sleep(0.001)

    def _await(self, supervised: Supervised, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition() and not self._is_over(supervised):
            assert time.monotonic() < deadline, self._last_output()
            time.sleep(0.001)

    def _has_reached(self, wanted: Phase, supervised: Supervised) -> bool:
        phase = self._phase(self._supervisor(supervised))
        if not self._subject.has_session:
            wanted = min(wanted, Phase.IMPORTING, key=ORDER.index)
        if wanted in (Phase.SAVING, Phase.ROTATING):  # which end again
            return phase in (wanted, Phase.ENDING, Phase.COMPLETE)
        return ORDER.index(phase) >= ORDER.index(wanted)

    def _is_ending(self) -> bool:
        if self.result.exists() or not self.run.attempts.exists():
            return self.result.exists()
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
        launcher = supervised.process.pid
        if not self._subject.is_detached:
            return launcher
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            # A launcher has other children too, such as git.
            children = [child.pid for child in psutil.Process(launcher).children()]
            return next((pid for pid in children if os.getsid(pid) == pid), launcher)
        return int((lock_owner(self.run) or {}).get("pid", launcher))

    @contextlib.contextmanager
    def _launcher_stopped(self, supervised: Supervised) -> Iterator[None]:
        """Stop the launcher, which must not start its supervisor after this was looked for."""
        launcher = supervised.process.pid
        is_running = self._subject.is_detached and supervised.process.poll() is None
        if is_running:
            with contextlib.suppress(ProcessLookupError):  # it has ended in this instant
                os.kill(launcher, signal.SIGSTOP)
        try:
            yield
        finally:
            if is_running:
                with contextlib.suppress(ProcessLookupError):  # it was the one to kill
                    os.kill(launcher, signal.SIGCONT)

    def _phase(self, supervisor: int) -> Phase:
        """Return in which phase of its life the supervisor is."""
        owner = lock_owner(self.run)
        if owner is None:
            return Phase.BEGINNING
        if owner.get("pid") != supervisor:
            return Phase.WAITING
        if self._has_temporary(TRASH_PREFIX):
            return Phase.ROTATING
        if self._has_temporary(WRITING_PREFIX):
            return Phase.SAVING
        written = b""
        if self.run.journal_file.exists():
            with open(self.run.journal_file, "rb") as file:
                file.seek(self._journal_begin)
                written = file.read()
        found = (p for event, p in PHASE_OF_EVENT.items() if f'"{event}"'.encode() in written)
        return next(found, Phase.OPENING)

    def _has_temporary(self, prefix: str) -> bool:
        folder = self.run.checkpoints
        return folder.exists() and any(p.name.startswith(prefix) for p in folder.iterdir())

    def _journal_bytes(self) -> int:
        file = self.run.journal_file
        return file.stat().st_size if file.exists() else 0

    # --- the end -----------------------------------------------------------------------------

    def _complete(self) -> None:
        """Start the command, also if it was complete, until it ends as complete."""
        is_complete = False
        while not is_complete:
            supervised = self._start()
            wait_for(lambda s=supervised: self._is_over(s), "the end of the run")
            is_complete = supervised.process.returncode == 0
            if self._subject.is_detached:
                is_complete = self.run.done_file.exists()

    def _names(self) -> set[str]:
        """Return the paths that the run has left, with the same sign for all numbers."""
        index = self.run.journal_index_file  # which only a long journal has
        found = (path for path in self._root.rglob("*") if path != index)
        paths = (str(path.relative_to(self._root)) for path in found)
        return {re.sub(r"[0-9]+(-[0-9]+)?", "#", path) for path in paths}
