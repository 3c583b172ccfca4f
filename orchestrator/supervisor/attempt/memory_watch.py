"""Samples a trainer's memory use and its cgroup's count of OOM kills."""

import asyncio
import contextlib

from orchestrator.errors import NoThreadError
from orchestrator.system.memory import limit_bytes, process_tree_bytes
from orchestrator.system.oom_kills import OomKillCounter
from orchestrator.system.threads import in_thread

# Sampling a process tree takes milliseconds: far under a percent of one core.
SAMPLE_SECONDS = 5.0


class MemoryWatch:
    """The memory of the trainer and its descendants, and the OOM kills in their groups."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._oom_kills = OomKillCounter(pid)
        self._oom_kills.sample()
        self.peak_bytes = 0
        self.memory_limit_bytes = limit_bytes(pid)

    async def run(self) -> None:
        """Sample every SAMPLE_SECONDS, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)  # the first seconds belong to the trainer
            with contextlib.suppress(NoThreadError):
                await in_thread(self._sample)

    def oom_kills(self) -> int:
        """Return the number of recent OOM kills; also after the trainer's end."""
        return self._oom_kills.recent_kills()

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, process_tree_bytes(self._pid))
        self._oom_kills.sample()
