"""Counts the kills of the kernel's OOM killer."""

import os
from collections import deque
from pathlib import Path

from orchestrator.system.memory import ROOT, counters, memory_groups

# A kill before the oldest kept sample does not explain why the trainer ends now.
_SAMPLES_KEPT = 12


class OomKillCounter:
    """Counts the kernel's OOM kills in the control groups of a process.

    For a process without a control group it counts the kills of the whole system.
    """

    def __init__(self, pid: int, root: Path = ROOT) -> None:
        self._pid = str(pid)
        self._root = root
        self._files: set[Path] = set()
        self._samples: deque[dict[Path, int]] = deque(maxlen=_SAMPLES_KEPT)

    def sample(self) -> None:
        """Record the current counters, including those of a group the process has moved to."""
        groups = memory_groups(self._root, self._pid)
        own = (chain[0] / version.events for version, chain in groups)
        self._files |= {file for file in own if os.path.exists(file)}
        files = self._files or {self._root / "proc/vmstat"}
        self._samples.append({file: _oom_kills(file) for file in files})

    def recent_kills(self) -> int:
        """Take a sample, and return the number of kills since the oldest sample kept."""
        self.sample()
        first: dict[Path, int] = {}
        for sample in reversed(list(self._samples)):  # copied: another thread may append
            first |= sample
        return sum(count - first[file] for file, count in self._samples[-1].items())


def _oom_kills(file: Path) -> int:
    try:
        return counters(file).get("oom_kill", 0)
    except (OSError, ValueError):
        return 0
