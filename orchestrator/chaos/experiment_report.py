"""The report on all injected faults, for --json and for the table."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.chaos.faults import FAULTS
from orchestrator.chaos.result import Injection


@dataclass
class FaultRow:
    """All injections of one fault."""

    fault: str
    injected: int = 0
    survived: int = 0
    exact: int = 0
    steps_lost: int = 0
    most_steps_lost: int = 0
    seconds_lost: float = 0.0
    most_seconds_lost: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether every injection was survived with the exact result."""
        return self.survived == self.exact == self.injected

    def add(self, injection: Injection) -> None:
        """Count one more injection."""
        self.injected += 1
        self.survived += injection.survived
        self.exact += injection.exact
        self.steps_lost += injection.steps_lost
        self.most_steps_lost = max(self.most_steps_lost, injection.steps_lost)
        self.seconds_lost = round(self.seconds_lost + injection.seconds_lost, 3)
        self.most_seconds_lost = round(max(self.most_seconds_lost, injection.seconds_lost), 3)


@dataclass
class Report:
    """The results of all trials."""

    command: list[str]
    seed: int
    ranks: int = 1
    steps: int = 0
    seconds: float = 0.0
    trials: int = 0
    injections: list[Injection] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """The directories of the trials that were lost or differ."""

    @property
    def is_good(self) -> bool:
        """Whether every fault was survived with the exact result."""
        return all(injection.survived and injection.exact for injection in self.injections)

    def rows(self) -> list[FaultRow]:
        """Return a row for each fault that was injected, in the order of the table of faults."""
        return list(_rows(self.injections))

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        return {
            "command": self.command,
            "seed": self.seed,
            "ranks": self.ranks,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "trials": self.trials,
            "injected": len(self.injections),
            "survived": sum(injection.survived for injection in self.injections),
            "exact": sum(injection.exact for injection in self.injections),
            "faults": [asdict(row) for row in self.rows()],
            "not_reached": self.not_reached,
            "problems": [
                {"fault": injection.name, "problem": injection.problem}
                for injection in self.injections
                if injection.problem is not None
            ],
            "kept": self.kept,
        }


def _rows(injections: Iterable[Injection]) -> Iterable[FaultRow]:
    by_name: dict[str, FaultRow] = {}
    for injection in injections:
        by_name.setdefault(injection.name, FaultRow(injection.name)).add(injection)
    return (by_name[fault.name] for fault in FAULTS if fault.name in by_name)
