"""What all lives of a run have measured, step by step; written by ``orchestrator.breakpoints``."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.system.json_input import parse_object

# Kind (step or poll), completed steps, completed epochs, the metric's name.
Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class Record:
    """The metrics of one step or poll, as hexadecimal floats; ``at`` is CLOCK_MONOTONIC."""

    at: float
    kind: str
    step: int
    epoch: int
    metrics: dict[str, str]

    def values(self) -> Iterator[tuple[Key, str]]:
        """Each metric's place and value; a step that measures nothing has one without a name."""
        for name, value in (self.metrics or {"": ""}).items():
            yield (self.kind, self.step, self.epoch, name), value


@dataclass(frozen=True)
class Divergence:
    """The first value that is not the undisturbed run's."""

    at: float
    text: str


@dataclass
class History:
    """All records in the order of time, and the places that were reached."""

    records: list[Record] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, file: Path) -> Self:
        """From the file of a trial; one that no session has written to is empty."""
        history = cls()
        for line in file.read_text().splitlines() if file.exists() else ():
            content = parse_object(line)
            if "place" in content:
                history.places.add(content["place"])
            else:
                content.pop("pid")
                history.records.append(Record(**content))
        history.records.sort(key=lambda record: record.at)
        return history

    @property
    def steps(self) -> int:
        """How many steps the run has."""
        return max((record.step for record in self.records), default=0)

    def values(self) -> dict[Key, set[str]]:
        """All that was measured at each place."""
        found: dict[Key, set[str]] = {}
        for record in self.records:
            for key, value in record.values():
                found.setdefault(key, set()).add(value)
        return found

    def metrics_unlike(self, other: "History") -> set[str]:
        """The names of metrics in which two runs differ."""
        mine, others = self.values(), other.values()
        return {key[3] for key in mine.keys() | others.keys() if mine.get(key) != others.get(key)}

    def divergence(self, other: "History", passed_over: Collection[str]) -> Divergence | None:
        """Where ``other`` first measures what this run does not, or at last lacks a step."""
        expected = self.values()
        for record in other.records:
            for key, value in record.values():
                if key[3] not in passed_over and value not in expected.get(key, ()):
                    text = f"{key[3] or 'a step'} of step {record.step}, epoch {record.epoch}"
                    return Divergence(record.at, f"{text}: not as in the undisturbed run")
        missing = {key[1] for key in expected if key[0] == "step"}
        missing -= {record.step for record in other.records if record.kind == "step"}
        if missing:
            return Divergence(float("inf"), f"step {min(missing)} was never done")
        return None

    def cost(self, at: float, until: float) -> tuple[int, float]:
        """Steps that a fault at ``at`` had done again, and seconds until training was as far.

        ``until`` is when the next fault came, or the run ended.
        """
        steps = [record for record in self.records if record.kind == "step"]
        reached = max((record.step for record in steps if record.at <= at), default=0)
        after = [record for record in steps if at < record.at <= until]
        beyond = next((record for record in after if record.step > reached), None)
        repeated = [r for r in after if r.step <= reached and (not beyond or r.at < beyond.at)]
        return len(repeated), (beyond.at if beyond else until) - at
