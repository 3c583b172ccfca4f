"""What is gathered about a trainer from outside while it runs."""

import asyncio
import contextlib

from orchestrator.errors import NoThreadError
from orchestrator.system.memory import OomKillCounter, limit_bytes, process_tree_bytes
from orchestrator.system.threads import in_thread

# A look at a tree takes milliseconds: far under a percent of one core.
LOOK_SECONDS = 5.0


class MemoryWatch:
    """Memory of the trainer and its descendants, and the OOM killer's counts in their groups."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._oom_kills = OomKillCounter(pid)
        self._oom_kills.sample()
        self.peak_bytes = 0
        self.memory_limit_bytes = limit_bytes(pid)

    async def gather(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)  # the first seconds belong to the trainer
            with contextlib.suppress(NoThreadError):
                await in_thread(self._look)

    def oom_kills(self) -> int:
        """How often the OOM killer has struck there lately; also after the trainer's end."""
        return self._oom_kills.recent_kills()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, process_tree_bytes(self._pid))
        self._oom_kills.sample()
