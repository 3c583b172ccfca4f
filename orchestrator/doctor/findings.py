"""The input of every check, and its result."""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.client import store_of
from orchestrator.config import Config
from orchestrator.errors import OrchestratorError
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.paths import RunDir


class Level(StrEnum):
    """How bad a finding is. With FAIL, a run does not work or may lose what it should keep."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """The result of a check, one line of the report; ``advice`` says what to fix."""

    check: str
    level: Level
    text: str
    advice: str = ""


@dataclass(frozen=True)
class CheckedRun:
    """The run to check, which need not exist yet, its settings, and measurements of its past.

    ``checkpoint_bytes`` is the size of the newest checkpoint, ``kept_bytes`` that of all of them,
    and ``save_seconds`` the time of the last save.
    """

    run: RunDir
    config: Config
    checkpoint_bytes: int | None = None
    kept_bytes: int = 0
    save_seconds: float | None = None

    @property
    def directory(self) -> Path:
        """The run directory, or the nearest directory above it that exists."""
        path = self.run.root.absolute()
        while not os.path.isdir(path):
            path = path.parent
        return path

    @classmethod
    def read(cls, run: RunDir, config: Config) -> "CheckedRun":
        """Read the run's checkpoints and journal, as far as they are readable."""
        if not os.path.exists(run.run_file):
            return cls(run, config)
        try:
            sizes = [c.manifest.total_bytes for c in store_of(run).all()]
            seconds = read_history(run).save_seconds
        except OrchestratorError:
            return cls(run, config)
        return cls(
            run,
            config,
            checkpoint_bytes=sizes[-1] if sizes else None,
            kept_bytes=sum(sizes),
            save_seconds=seconds[-1] if seconds else None,
        )
