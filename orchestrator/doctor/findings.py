"""What a check says, and about what it is asked."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import OrchestratorError
from orchestrator.rundir.journal import Journal, JournalEvent
from orchestrator.rundir.paths import RunDir


class Level(StrEnum):
    """How bad it is; with a FAIL a run does not work, or loses what it promises to keep."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the page; ``advice`` is what to do about it."""

    check: str
    level: Level
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Subject:
    """The run that is asked about, which need not exist yet, and what its past tells."""

    run: RunDir
    config: Config
    checkpoint_bytes: int | None = None
    kept_bytes: int = 0
    save_seconds: float | None = None

    @property
    def directory(self) -> Path:
        """The run directory, or what is there of the way to it."""
        path = self.run.root.absolute()
        while not path.is_dir():
            path = path.parent
        return path

    @classmethod
    def look(cls, run: RunDir, config: Config) -> "Subject":
        """Learn from the run's checkpoints and journal, as far as they can be read."""
        if not run.run_file.exists():
            return cls(run, config)
        try:
            sizes = [c.manifest.total_bytes for c in Store.open(run, command=[]).all()]
            events, _ = Journal(run.journal_file).read()
        except OrchestratorError:
            return cls(run, config)
        published = [e for e in events if e["event"] == JournalEvent.CHECKPOINT_PUBLISHED]
        seconds = [e["seconds"] for e in published if isinstance(e.get("seconds"), float)]
        return cls(
            run,
            config,
            checkpoint_bytes=sizes[-1] if sizes else None,
            kept_bytes=sum(sizes),
            save_seconds=seconds[-1] if seconds else None,
        )
