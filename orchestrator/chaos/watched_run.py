"""A run of the script whose processes can be held at breakpoints."""

import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.chaos.breakpoint_server import BreakpointServer, HeldProcess
from orchestrator.chaos.interrupts import Interrupts
from orchestrator.chaos.scheduler import RunLostError, Scheduler
from orchestrator.checkpoint.store import Store


class WatchedRun:
    """One run, from its start to ``close``; every wait has the same deadline."""

    def __init__(
        self,
        run_arguments: list[str],
        directory: Path,
        patience_seconds: float,
        interrupts: Interrupts,
    ) -> None:
        """Start it; ``run_arguments`` are those of `orchestrator run`."""
        self.breakpoints = BreakpointServer(directory)
        self.scheduler = Scheduler(run_arguments, directory)
        self._patience_seconds = patience_seconds
        self._interrupts = interrupts

    def close(self) -> None:
        """End all of its processes."""
        self.breakpoints.close()
        self.scheduler.end()

    def store(self) -> Store:
        """Open its checkpoints."""
        return Store.open(self.scheduler.run, command=[])

    def until_deadline(self, awaited: str) -> Iterator[None]:
        """Yield until the caller breaks out of the loop. Raises RunLostError at the deadline."""
        deadline = time.monotonic() + self._patience_seconds
        while time.monotonic() < deadline:
            yield
        raise RunLostError(f"gave up waiting for {awaited} after {self._patience_seconds:.0f} s")

    def poll(
        self, breakpoints: tuple[str, ...] = (), rank: int | None = None
    ) -> HeldProcess | None:
        """Take note of what has happened; return a process that is held at a breakpoint."""
        self._interrupts.check()
        held = self.breakpoints.poll(*breakpoints, rank=rank)
        self.scheduler.poll()
        return held

    def hold(self, place: str, rank: int, from_step: int = 0) -> HeldProcess | None:
        """Hold the next process at a breakpoint; return None if the run ends before.

        Of several ranks it is this one, where the breakpoint is one of ranks. The others go on.
        """
        self.breakpoints.arm(place, from_step=from_step)
        try:
            for _ in self.until_deadline(place):
                held = self.poll((place,), rank)
                if held is not None or self.scheduler.is_complete:
                    return held
        finally:
            self.breakpoints.disarm()
        return None

    def wait_until_down(self) -> None:
        """Wait for the end of processes that were killed, and do not start the run again."""
        for _ in self.until_deadline("the end of the processes that were killed"):
            if self.scheduler.is_down:
                break
            self._interrupts.check()
            self.breakpoints.poll()
