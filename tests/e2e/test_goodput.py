"""The goodput of a real run, compared with what is measured from outside."""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestrator.rundir.journal import Journal
from tests.e2e.support import Supervised, forked_by, wait_for
from tests.rundir.support import history_of

SCRIPT = Path(__file__).with_name("timed_train.py")
STEPS, STEP_SECONDS = 220, 0.02
# Between two kills, with a checkpoint every ten.
LEAST_STEPS = 15
KILLS = ("trainer", "failure", "stop", "supervisor", "trainer", "failure", "stop", "supervisor",
         "both", "trainer")  # fmt: skip


class Step(NamedTuple):
    """A step that the script has completed, with times of the monotonic clock."""

    pid: int
    number: int
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def steps_in(folder: Path) -> list[Step]:
    lines = []
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "steps.txt").read_text().splitlines(keepends=True)
    words = [line.split() for line in lines if line.endswith("\n")]
    return [Step(int(p), int(n), float(b), float(e)) for p, n, b, e in words]


def measured(steps: list[Step]) -> tuple[float, float, float]:
    """Return the seconds of the steps that count, of their rounds of the loop, and of the others.

    Of each step the last time counts. A round has what the session does after a step too, such as a
    save, unless that was the last step of its process.
    """
    work: dict[int, float] = {}
    rounds: dict[int, float] = {}
    twice = 0.0
    for step, following in itertools.pairwise([*steps, steps[-1]]):
        twice += rounds.get(step.number, 0.0)
        is_last = following.pid != step.pid or following == step
        end = step.ended if is_last else following.began
        work[step.number], rounds[step.number] = step.seconds, end - step.began
    return sum(work.values()), sum(rounds.values()), twice


def wait_for_steps(folder: Path, known: int) -> Step:
    """Wait until the newest process has made enough steps; return the last one."""

    def newest() -> Step | None:
        steps = steps_in(folder)[known:]
        own = [step for step in steps if step.pid == steps[-1].pid]
        return own[-1] if len(own) >= LEAST_STEPS else None

    return wait_for(newest, "steps")


class KilledRun:
    """A run whose trainer and supervisor a test kills, and starts again."""

    def __init__(self, start: Callable[[], Supervised], folder: Path) -> None:
        self._start, self._folder = start, folder
        self.run = start()
        self.unfinished_seconds = 0.0
        """From the last step before each kill of a trainer to when its end was recorded."""

    def kill(self, what: str) -> None:
        """Kill in one of several ways, once enough steps were made; start again if needed."""
        last = wait_for_steps(self._folder, len(steps_in(self._folder)))
        exits = len(self._exits())
        match what:
            case "failure":
                (self._folder / "raise").touch()
            case "trainer":
                os.kill(last.pid, signal.SIGKILL)
            case "stop":
                self.run.signal(signal.SIGTERM)
            case "supervisor":
                self.run.signal(signal.SIGKILL)
            case "both":
                self.run.signal(signal.SIGSTOP)  # it does not see the end of the trainer
                os.kill(last.pid, signal.SIGKILL)
                self.run.signal(signal.SIGKILL)
        if what in ("failure", "trainer"):
            wait_for(lambda: len(self._exits()) > exits, "the end of the attempt")
            last = max(s for s in steps_in(self._folder) if s.pid == last.pid)
            self.unfinished_seconds += time.monotonic() - last.ended
        else:
            self.run.end()
            self.run = self._start()

    def _exits(self) -> list[dict[str, Any]]:
        return [e for e in self.events() if e["event"] == "attempt_exited"]

    def events(self) -> list[dict[str, Any]]:
        """Return the whole journal."""
        return Journal(self.run.run.journal_file).read()[0]


@pytest.mark.long
def test_goodput_of_a_run_with_ten_kills_is_that_measured_from_outside(
    supervise: Callable[..., Supervised], warm_server: Path, tmp_path: Path
) -> None:
    """Its parts add up to the wall time, and its training is that of the script, within 1 %."""
    command = [*forked_by(warm_server), str(SCRIPT), str(STEPS), str(STEP_SECONDS)]
    began = time.monotonic()
    killed = KilledRun(lambda: supervise(command=command, options=("--every", "10steps")), tmp_path)
    for what in KILLS:
        killed.kill(what)
    assert killed.run.end()[0] == 0
    elapsed = time.monotonic() - began
    events = killed.events()
    goodput = history_of(events).goodput.to_json()
    wall, seconds = goodput["wall_seconds"], goodput["seconds"]
    print(elapsed, goodput)
    first, last = (datetime.fromisoformat(events[end]["time"]) for end in (0, -1))
    assert sum(seconds.values()) == pytest.approx(wall, abs=0.01)
    assert wall == pytest.approx((last - first).total_seconds(), rel=0.01)
    assert wall <= elapsed
    assert seconds["unknown"] == 0

    work, rounds, twice = measured(steps_in(tmp_path))
    tolerance = 0.01 * wall
    print(work, rounds, twice, killed.unfinished_seconds)
    assert work - tolerance <= seconds["training"] <= rounds + tolerance
    assert seconds["training"] + seconds["saving"] >= rounds - tolerance
    assert seconds["done_twice"] >= twice - tolerance
    assert seconds["done_twice"] <= twice + killed.unfinished_seconds + tolerance
