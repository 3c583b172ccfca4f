"""The metrics that all attempts of a run recorded, as ``orchestrator.breakpoints`` writes them."""

import bisect
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

from orchestrator.system.json_input import parse_object

# An attempt of a framework's run begins at a step, and what it logs sums up the steps since then.
BEGIN = "begin"
LOG = "log"


class Key(NamedTuple):
    """What a value belongs to; ``kind`` is step, poll, batch or log."""

    rank: int
    kind: str
    step: int
    epoch: int
    metric: str


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
    rank: int = 0

    def values(self) -> Iterator[tuple[Key, str]]:
        """Yield each metric's key and value; a step without metrics has one with an empty name."""
        nameless = {"": ""} if self.kind == "step" else {}
        for name, value in (self.metrics or nameless).items():
            yield Key(self.rank, self.kind, self.step, self.epoch, name), value


@dataclass(frozen=True)
class Divergence:
    """A value that differs from the undisturbed run's, or a step that was never done."""

    at: float
    text: str


@dataclass
class History:
    """All records in the order of time, and the breakpoints that were reached.

    ``trainers`` has the newest process of each rank.
    """

    records: list[Record] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    trainers: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the file of a trial; it is empty if no session has written to it."""
        history = cls()
        for line in file.read_text().splitlines() if os.path.exists(file) else ():
            content = parse_object(line)
            pid = content.pop("pid")
            if "rank" in content:
                # A supervisor tells of the command that it has started, which may be a shell.
                history.trainers[content["rank"]] = content.get("trainer", pid)
            if "breakpoint" in content:
                history.reached.add(content["breakpoint"])
            elif "kind" in content:
                history.records.append(Record(**content))
        history.records.sort(key=lambda record: record.at)
        return history

    @property
    def steps(self) -> int:
        """The number of steps of the run."""
        return max((record.step for record in self.records), default=0)

    @property
    def longest_silence_seconds(self) -> float:
        """The longest time between two records."""
        times = [record.at for record in self.records]
        return max((after - before for before, after in pairwise(times)), default=0.0)

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
        return {
            key.metric for key in mine.keys() | others.keys() if mine.get(key) != others.get(key)
        }

    def divergences(self, other: "History", ignored: Collection[str]) -> Iterator[Divergence]:
        """Yield the values of ``other`` that this run does not have, and a step that it lacks.

        What a framework logs is compared only where the attempt has done all steps since the last
        such log of this run: it is often an average over them.
        """
        expected, logs, began = self.values(), self._steps_of_logs(), 0
        for record in other.records:
            began = record.step if record.kind == BEGIN else began
            for key, value in record.values():
                name = key.metric
                is_part = record.kind == LOG and began > _last_before(record.step, logs[name])
                if name not in ignored and not is_part and value not in expected.get(key, ()):
                    text = f"{name or 'a step'} of step {record.step}, epoch {record.epoch}"
                    text += _of_rank(record.rank)
                    yield Divergence(record.at, f"{text}: differs from the undisturbed run")
        missing = {(key.step, key.rank) for key in expected if key.kind == "step"}
        missing -= {(r.step, r.rank) for r in other.records if r.kind == "step"}
        if missing:
            step, rank = min(missing)
            yield Divergence(float("inf"), f"step {step}{_of_rank(rank)} was never done")

    def _steps_of_logs(self) -> dict[str, list[int]]:
        """Return the steps at which each name was logged, in their order."""
        steps = defaultdict[str, list[int]](list)
        for record in self.records:
            for name in record.metrics if record.kind == LOG else ():
                bisect.insort(steps[name], record.step)
        return steps

    def cost(self, at: float, until: float) -> tuple[int, float]:
        """Return the steps that were repeated after a fault, and the seconds until new ones came.

        ``at`` is the time of the fault, ``until`` that of the next fault or of the run's end. Of
        several ranks the one counts that lost most: one may still end a step as another dies.
        """
        ranks = {record.rank for record in self.records} or {0}
        costs = [self._cost_of(rank, at, until) for rank in ranks]
        return max(steps for steps, _ in costs), max(seconds for _, seconds in costs)

    def _cost_of(self, rank: int, at: float, until: float) -> tuple[int, float]:
        steps = [r for r in self.records if r.kind == "step" and r.rank == rank]
        reached = max((record.step for record in steps if record.at <= at), default=0)
        after = [record for record in steps if at < record.at <= until]
        beyond = next((record for record in after if record.step > reached), None)
        repeated = [r for r in after if r.step <= reached and (not beyond or r.at < beyond.at)]
        return len(repeated), (beyond.at if beyond else until) - at


def _of_rank(rank: int) -> str:
    return f", rank {rank}" if rank else ""


def _last_before(step: int, steps: list[int]) -> int:
    """Return the last of these steps before one; 0 without any."""
    index = bisect.bisect_left(steps, step)
    return steps[index - 1] if index else 0
