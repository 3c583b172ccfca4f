"""The metrics that all attempts of a run recorded, as ``orchestrator.breakpoints`` writes them."""

import bisect
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.system.json_input import parse_object

# An attempt of a framework's run begins at a step, and what it logs sums up the steps since then.
BEGIN = "begin"
LOG = "log"
# Kind (step, poll, batch or log), completed steps, completed epochs, the metric's name.
Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class Record:
    """The metrics of one step, poll, batch or log, as hexadecimal floats.

    ``at`` is in monotonic seconds. A beginning has no metrics.
    """

    at: float
    kind: str
    step: int
    epoch: int
    metrics: dict[str, str]

    def values(self) -> Iterator[tuple[Key, str]]:
        """Yield each metric's key and value; a step without metrics has one with an empty name."""
        nameless = {"": ""} if self.kind == "step" else {}
        for name, value in (self.metrics or nameless).items():
            yield (self.kind, self.step, self.epoch, name), value


@dataclass(frozen=True)
class Divergence:
    """A value that differs from the undisturbed run's, or a step that was never done."""

    at: float
    text: str


@dataclass
class History:
    """All records in the order of time, and the breakpoints that were reached."""

    records: list[Record] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the file of a trial; it is empty if no session has written to it."""
        history = cls()
        for line in file.read_text().splitlines() if os.path.exists(file) else ():
            content = parse_object(line)
            if "breakpoint" in content:
                history.reached.add(content["breakpoint"])
            else:
                content.pop("pid")
                history.records.append(Record(**content))
        history.records.sort(key=lambda record: record.at)
        return history

    @property
    def steps(self) -> int:
        """The number of steps of the run."""
        return max((record.step for record in self.records), default=0)

    @property
    def is_of_framework(self) -> bool:
        """Whether the loop is a framework's, and not a session's."""
        return any(record.kind == BEGIN for record in self.records)

    def values(self) -> dict[Key, set[str]]:
        """Return every value that was recorded for each key."""
        found: dict[Key, set[str]] = {}
        for record in self.records:
            for key, value in record.values():
                found.setdefault(key, set()).add(value)
        return found

    def differing_metrics(self, other: "History") -> set[str]:
        """Return the names of the metrics in which two runs differ."""
        mine, others = self.values(), other.values()
        return {key[3] for key in mine.keys() | others.keys() if mine.get(key) != others.get(key)}

    def divergences(self, other: "History", ignored: Collection[str]) -> Iterator[Divergence]:
        """Yield the values of ``other`` that this run does not have, and a step that it lacks.

        What a framework logs is compared only where the attempt has done all steps since the last
        such log of this run: it is often an average over them.
        """
        expected, logs, began = self.values(), self._steps_of_logs(), 0
        for record in other.records:
            began = record.step if record.kind == BEGIN else began
            for key, value in record.values():
                is_part = record.kind == LOG and began > _last_before(record.step, logs[key[3]])
                if key[3] not in ignored and not is_part and value not in expected.get(key, ()):
                    text = f"{key[3] or 'a step'} of step {record.step}, epoch {record.epoch}"
                    yield Divergence(record.at, f"{text}: differs from the undisturbed run")
        missing = {key[1] for key in expected if key[0] == "step"}
        missing -= {record.step for record in other.records if record.kind == "step"}
        if missing:
            yield Divergence(float("inf"), f"step {min(missing)} was never done")

    def _steps_of_logs(self) -> dict[str, list[int]]:
        """Return the steps at which each name was logged, in their order."""
        steps = defaultdict[str, list[int]](list)
        for record in self.records:
            for name in record.metrics if record.kind == LOG else ():
                bisect.insort(steps[name], record.step)
        return steps

    def cost(self, at: float, until: float) -> tuple[int, float]:
        """Return the steps that were repeated after a fault, and the seconds until new ones came.

        ``at`` is the time of the fault, ``until`` that of the next fault or of the run's end.
        """
        steps = [record for record in self.records if record.kind == "step"]
        reached = max((record.step for record in steps if record.at <= at), default=0)
        after = [record for record in steps if at < record.at <= until]
        beyond = next((record for record in after if record.step > reached), None)
        repeated = [r for r in after if r.step <= reached and (not beyond or r.at < beyond.at)]
        return len(repeated), (beyond.at if beyond else until) - at


def _last_before(step: int, steps: list[int]) -> int:
    """Return the last of these steps before one; 0 without any."""
    index = bisect.bisect_left(steps, step)
    return steps[index - 1] if index else 0
