"""What one of several ranks shares with the others, by way of the supervisor."""

import errno
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.checkpoint.checkpoint import Checkpoint, read_checkpoint
from orchestrator.errors import CheckpointWriteError, OrchestratorError
from orchestrator.ipc.messages import RANK_VARIABLE, Message
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.slots import Image


@dataclass(frozen=True)
class World:
    """Which rank this process is, and of how many."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether it is rank 0, of which each run has one."""
        return self.rank == 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "World":
        """Return the place of a process that a supervisor has started with this environment.

        A script that has changed the variables counts as a single process, and is refused.
        """
        try:
            return cls(int(environment[RANK_VARIABLE]), int(environment["WORLD_SIZE"]))
        except (KeyError, ValueError):
            return cls()


class Send(Protocol):
    """Sends a message to the supervisor."""

    def __call__(self, kind: str, **facts: Any) -> None:
        """Send it; nothing happens where the supervisor is gone."""


class Coordination:
    """The saves that the supervisor has announced to this rank.

    Attributes:
        world: Which rank this is.
        common: What rank 0 holds of the snapshot to resume from; None in rank 0, and where there is
            no snapshot.
    """

    def __init__(self, world: World, run: RunDir, send: Send, common: Image | None) -> None:
        self.world = world
        self.common = common
        self._run = run
        self._send = send
        self._changing = threading.Lock()
        self._expected: dict[int, tuple[int, Future[Checkpoint]]] = {}
        self._failed_early: dict[int, str] = {}
        """Generations that another rank could not take, before this one has come to their place."""

    def expect(self, generation: int, step: int) -> Future[Checkpoint]:
        """Return what gets the checkpoint that the supervisor makes of a generation.

        It gets a CheckpointWriteError where that fails, or has failed already. Call it before this
        rank's part is complete: the answer may follow at once.
        """
        written: Future[Checkpoint] = Future()
        with self._changing:
            problem = self._failed_early.pop(generation, None)
            self._failed_early.clear()  # of places that this rank has passed
            if problem is None:
                self._expected[generation] = step, written
        if problem is not None:
            written.set_exception(_failure(step, problem))
        return written

    def skip(self, generation: int, problem: str) -> None:
        """Tell the supervisor that this rank does not take a generation."""
        self._send("skipped", generation=generation, problem=problem)

    def on_message(self, message: Message) -> bool:
        """Complete the save that the supervisor's answer is about; return whether there is one."""
        generation, problem = message.get("generation", 0), str(message.get("problem"))
        with self._changing:
            expected = self._expected.pop(generation, None)
            if expected is None and message.get("type") == "write_failed":
                self._failed_early[generation] = problem
        if expected is None:
            return False
        step, written = expected
        if message.get("type") == "written":
            try:
                written.set_result(read_checkpoint(self._run.checkpoints / str(message["name"])))
            except OrchestratorError as error:
                written.set_exception(error)
        else:
            written.set_exception(_failure(step, problem))
        return True


def _failure(step: int, problem: str) -> CheckpointWriteError:
    return CheckpointWriteError(step, OSError(errno.EIO, problem))
