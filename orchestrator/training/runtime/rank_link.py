"""What one of several ranks shares with the others, by way of the supervisor."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.ipc.messages import RANK_VARIABLE, Message
from orchestrator.rundir.paths import RunDir
from orchestrator.snapshot.slots import Image
from orchestrator.training.runtime.write_answers import complete, write_error


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


class RankLink:
    """What this rank hears of the others: the saves that are announced, and rank 0's snapshot.

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
            written.set_exception(write_error(step, problem))
        return written

    def skip(self, generation: int, problem: str) -> None:
        """Tell the supervisor that this rank does not take a generation."""
        self._send("skipped", generation=generation, problem=problem)

    def on_message(self, message: Message) -> bool:
        """Complete the save that the supervisor's answer is about; return whether there is one."""
        generation = message.get("generation", 0)
        with self._changing:
            expected = self._expected.pop(generation, None)
            if expected is None and message.get("type") == "write_failed":
                self._failed_early[generation] = str(message.get("problem"))
        if expected is None:
            return False
        step, written = expected
        complete(written, message, self._run, step)
        return True
