"""What the wall time of a run was spent for, by its journal."""

import contextlib
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.rundir.goodput import Goodput
from orchestrator.rundir.goodput_json import checked_goodput
from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.moments import Moment
from orchestrator.rundir.time_ledger import RECENT_ATTEMPTS, Part

BEGAN = datetime(2026, 12, 1, tzinfo=UTC)
TRAINED = {"starting_seconds": 2, "training_seconds": 50, "saving_seconds": 3}


class Journal:
    """A journal whose events have times by the clock and by the uptime of their supervisor."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._supervisor_began = 0.0
        self.ahead_seconds = 0.0
        """How far the clock is ahead."""
        self.asleep_seconds = 0.0

    def add(self, now: float, name: str, attempt: int | None = None, **facts: Any) -> None:
        """Add an event, so many seconds after the run began."""
        if name == "run_started":
            self._supervisor_began, self.asleep_seconds = now, 0.0
        event = {"time": at(now + self.ahead_seconds), "event": name, "attempt": attempt}
        uptime = {"uptime_seconds": now - self._supervisor_began}
        self.events.append(event | uptime | {"asleep_seconds": self.asleep_seconds} | facts)

    def parts(self) -> dict[str, float]:
        """Return the parts that have any time, after checking that they add up."""
        return parts_of(goodput_of(self.events))


def at(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).isoformat()


def goodput_of(events: list[dict[str, Any]]) -> Goodput:
    goodput = Goodput()
    for event in events:
        goodput.add(event)
    return goodput


def parts_of(goodput: Goodput, *live: Any) -> dict[str, float]:
    report = goodput.to_json(*live)
    check(report)
    return {part: seconds for part, seconds in report["seconds"].items() if seconds}


def check(report: dict[str, Any]) -> None:
    """Check that nothing is negative, and that parts and attempts add up to the whole."""
    json.dumps(report, allow_nan=False)
    shares = [share["seconds"] for share in report["attempts"]]
    assert all(seconds >= 0 for parts in (report["seconds"], *shares) for seconds in parts.values())
    wall = sum(report["seconds"].values())
    tolerance = 0.01 + 1e-9 * wall
    assert report["wall_seconds"] == pytest.approx(wall, abs=tolerance)
    in_shares = sum(sum(parts.values()) for parts in shares)
    if len(shares) < RECENT_ATTEMPTS:
        assert in_shares == pytest.approx(wall, abs=tolerance)
    else:
        assert in_shares <= wall + tolerance
    assert report["percent"] is None or 0 <= report["percent"] <= 100


@pytest.fixture
def journal() -> Journal:
    return Journal()


def add_first_attempt(journal: Journal) -> None:
    """Add 1 s of preparation, and an attempt of 60 s that is killed with 10 s in no checkpoint."""
    journal.add(0, "run_started")
    journal.add(1, "attempt_started", 1, resume_step=None)
    journal.add(4, "training_started", 1, step=0, starting_seconds=2)
    journal.add(
        61, "attempt_exited", 1, outcome="failed", phase="train", connected=True, step=60,
        left_step=50, lost_seconds=10, unfinished_seconds=1, **TRAINED,
    )  # fmt: skip


def test_every_part_of_a_run_with_a_failure(journal: Journal) -> None:
    """A run that is killed once, waits, goes on and completes has its time in seven parts."""
    add_first_attempt(journal)
    journal.add(61, "restart_scheduled", delay_seconds=5)
    journal.add(68, "attempt_started", 2, resume_step=50)
    journal.add(
        128, "attempt_exited", 2, outcome="complete", phase="done", connected=True, step=100,
        unfinished_seconds=1, **TRAINED,
    )  # fmt: skip
    journal.add(128.5, "run_completed", 2)
    assert journal.parts() == {
        "training": 40 + 50,
        "done_twice": 10 + 1,  # and the step under way
        "saving": 6,
        "starting": 1 + 2,
        "restarting": 4 + 2 + 2,  # to the diagnosis, the next attempt, and its first step
        "stopping": 1 + 4 + 0.5,
        "waiting": 5,
    }


def test_goodput_is_the_share_of_the_training_that_counts(journal: Journal) -> None:
    """It is rounded down, so that 100 means all."""
    add_first_attempt(journal)
    report = goodput_of(journal.events).to_json()
    assert (report["percent"], report["wall_seconds"]) == (int(1000 * 50 / 61) / 10, 61)
    assert Goodput().to_json()["percent"] is None


def test_time_before_an_attempt_belongs_to_it(journal: Journal) -> None:
    """By attempt: its own time, and what was needed or waited for before it."""
    add_first_attempt(journal)
    journal.add(61, "restart_scheduled", delay_seconds=5)
    journal.add(68, "attempt_started", 2, resume_step=50)
    first, second = goodput_of(journal.events).to_json()["attempts"]
    assert (first["attempt"], sum(first["seconds"].values())) == (1, 61)
    assert first["seconds"]["done_twice"] == 11
    assert (second["attempt"], sum(second["seconds"].values())) == (2, 7)


def test_step_that_is_not_known_exactly_is_reckoned_from_the_pace(journal: Journal) -> None:
    """Where another state than the last snapshot is resumed from, each step took as long."""
    add_first_attempt(journal)
    journal.add(61, "attempt_started", 2, resume_step=25)
    assert journal.parts()["training"] == 20
    journal.add(62, "attempt_exited", 2, outcome="failed", training_seconds=None, phase="restore")
    journal.add(62, "attempt_started", 3, resume_step=None)
    assert "training" not in journal.parts()
    assert journal.parts()["done_twice"] == 51


@pytest.mark.parametrize(
    ("end", "part"),
    [
        ({"outcome": "failed", "phase": "train", "hang": "no progress"}, "restarting"),
        ({"outcome": "failed", "phase": "save"}, "saving"),
        ({"outcome": "failed", "phase": "train", "hang": None}, "done_twice"),
        ({"outcome": "stopped", "phase": "done"}, "stopping"),
    ],
)
def test_time_after_the_last_step(journal: Journal, end: dict[str, Any], part: str) -> None:
    """It is a hang, a save that did not end, a step that did not end, or the end of the process."""
    journal.add(0, "run_started")
    journal.add(0, "attempt_started", 1)
    journal.add(175, "attempt_exited", 1, step=9, unfinished_seconds=120, **end, **TRAINED)
    parts = {"training": 50, "saving": 3, "starting": 2}
    assert journal.parts() == parts | {part: parts.get(part, 0) + 120}


@pytest.mark.parametrize(
    ("end", "part"),
    [
        ({"outcome": "failed", "connected": False, "phase": "start"}, "starting"),
        ({"outcome": "refused", "connected": True, "phase": "restore"}, "starting"),
        ({"outcome": "complete", "connected": False, "phase": "start"}, "unknown"),
    ],
)
def test_attempt_that_never_trained(journal: Journal, end: dict[str, Any], part: str) -> None:
    """It was a start; of a command that opens no session nothing is known."""
    journal.add(0, "run_started")
    journal.add(0, "attempt_started", 1)
    journal.add(9, "attempt_exited", 1, training_seconds=None, **end)
    assert journal.parts() == {part: 9}


def test_journal_of_an_older_version_has_an_unknown_part(journal: Journal) -> None:
    """An attempt whose end lacks the parts is not guessed at; the rest of the run is known."""
    journal.add(0, "run_started")
    journal.add(1, "attempt_started", 1)
    journal.add(61, "attempt_exited", 1, outcome="failed", seconds=60, step=5)
    journal.add(61, "restart_scheduled", delay_seconds=5)
    journal.add(67, "attempt_started", 2)
    for event in journal.events:
        del event["uptime_seconds"]
    assert journal.parts() == {"starting": 1, "unknown": 60, "waiting": 5, "restarting": 1}


def test_history_of_an_older_version_is_unknown(journal: Journal) -> None:
    """Of a rotated journal that knows no goodput, only the time since its begin is known."""
    goodput = Goodput()
    goodput.add_unknown(at(0), {"event": "journal_rotated", "time": at(100)})
    journal.add(101, "run_started")
    goodput.add(journal.events[0])
    assert parts_of(goodput) == {"unknown": 100, "idle": 1}


# --- between supervisors ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "part"), [(None, "idle"), ({}, "waiting"), ({"problem": "no scontrol"}, "idle")]
)
def test_time_between_two_jobs(journal: Journal, facts: dict[str, Any] | None, part: str) -> None:
    """A job that is queued again waits; otherwise the run is idle."""
    journal.add(0, "run_started")
    journal.add(5, "run_stopped", status=75)
    if facts is not None:
        journal.add(6, "requeued", job="7", **facts)
    journal.add(105, "run_started")
    assert journal.parts() == {"starting": 5, part: 100}


def test_supervisor_that_was_killed_leaves_its_trainer_saving(journal: Journal) -> None:
    """The trainer trains up to the safe point at which it notices; then nobody is there."""
    journal.add(0, "run_started")
    journal.add(0, "attempt_started", 1)
    journal.add(2, "training_started", 1, step=0, starting_seconds=2)
    journal.add(15, "snapshot_taken", 1, step=14, saving_seconds=2)
    journal.add(30, "stop_noticed", 1, step=28, source="SIGTERM", saving_seconds=3)
    journal.add(90, "run_started")
    journal.add(91, "attempt_started", 2, resume_step=28)
    assert journal.parts() == {"starting": 3, "training": 25, "saving": 3, "idle": 60}


def test_machine_that_went_down_has_trained_up_to_its_last_metrics(journal: Journal) -> None:
    """What its metrics record beyond the newest checkpoint is done twice."""
    journal.add(0, "run_started")
    journal.add(0, "attempt_started", 1)
    journal.add(2, "training_started", 1, step=0, starting_seconds=2)
    journal.add(22, "checkpoint_published", 1, step=20)
    journal.add(90, "run_started", last_step=40, last_step_time=at(42))
    journal.add(90, "attempt_started", 2, resume_step=20)
    assert journal.parts() == {"starting": 2, "training": 20, "done_twice": 20, "idle": 48}
    journal.add(92, "training_started", 2, step=20, starting_seconds=2)
    journal.add(95, "checkpoint_published", 2, step=30)
    journal.add(99, "run_started", last_step=29, last_step_time=at(94.9))
    assert journal.parts() == {"starting": 4, "training": 23, "done_twice": 20, "idle": 52}


def test_machine_that_went_down_without_metrics_leaves_an_unknown_time(journal: Journal) -> None:
    """Up to its last event it has trained; when it went down, nobody knows."""
    journal.add(0, "run_started")
    journal.add(0, "attempt_started", 1)
    journal.add(2, "training_started", 1, step=0, starting_seconds=2)
    journal.add(22, "checkpoint_published", 1, step=20)
    journal.add(80, "checkpoint_published", None, step=99, source="imported.pt")
    journal.add(90, "run_started")
    assert journal.parts() == {"starting": 2, "training": 20, "unknown": 68}


def test_run_goes_on_where_the_clock_is_behind(journal: Journal) -> None:
    """Another machine's clock may be an hour behind: nothing is negative, and the rest is right."""
    journal.add(0, "run_started")
    journal.add(5, "run_stopped")
    journal.ahead_seconds = -3600
    journal.add(10, "run_started")
    journal.add(12, "run_stopped")
    assert journal.parts() == {"starting": 7}


@pytest.mark.parametrize("jump", [-7200, 7200])
def test_clock_that_is_set_changes_nothing_within_a_supervisor(
    journal: Journal, jump: float
) -> None:
    """Within a supervisor its uptime counts."""
    journal.add(0, "run_started")
    journal.add(1, "attempt_started", 1)
    journal.ahead_seconds = jump
    end = {"outcome": "failed", "step": 9, "unfinished_seconds": 4}
    journal.add(61, "attempt_exited", 1, **end, **TRAINED)
    journal.add(61, "restart_scheduled", delay_seconds=1)
    assert parts_of(goodput_of(journal.events), Moment(None, 63.0))["restarting"] == 2
    assert sum(journal.parts().values()) == 61


def test_sleep_of_the_machine_is_waiting(journal: Journal) -> None:
    """A laptop that was closed for an hour has waited for an hour."""
    journal.add(0, "run_started")
    journal.add(0, "attempt_started", 1)
    journal.asleep_seconds = 3600
    journal.add(3660, "attempt_exited", 1, outcome="failed", unfinished_seconds=5, **TRAINED)
    assert journal.parts()["waiting"] == 3600
    assert journal.parts()["training"] == 50


# --- scripts without a session, or without a supervisor --------------------------------------

ADOPTED = {"phase": None, "connected": True, "training_seconds": None}


def test_script_that_saves_for_itself_has_trained_up_to_its_last_save(journal: Journal) -> None:
    """Its starts and its saves are not seen; what came after the last save is lost."""
    journal.add(0, "run_started")
    journal.add(0, "attempt_started", 1)
    journal.add(40, "checkpoint_published", 1, step=4, adopted="last.pt")
    journal.add(50, "attempt_exited", 1, outcome="failed", step=4, **ADOPTED)
    journal.add(50, "attempt_started", 2, resume_step=4)
    journal.add(70, "attempt_exited", 2, outcome="complete", step=6, **ADOPTED)
    assert journal.parts() == {"training": 60, "done_twice": 10}


def test_script_without_a_supervisor_tells_its_own_time(journal: Journal) -> None:
    """Its journal has no attempts; what it lost is known by the step at which it goes on."""
    journal.add(0, "run_started")
    journal.add(4, "training_started", step=0, starting_seconds=2)
    end = {"outcome": "stopped", "unfinished_seconds": 5}
    journal.add(60, "training_ended", step=100, **end, **TRAINED)
    journal.add(60, "run_stopped", step=100)
    journal.add(70, "run_started")
    journal.add(72, "training_started", step=80, starting_seconds=1)
    assert journal.parts() == {
        "starting": 3,
        "training": 41,
        "done_twice": 10,
        "saving": 3,
        "stopping": 5,
        "idle": 10,
    }
    journal.add(
        90,
        "training_ended",
        outcome="failed",
        step=95,
        unfinished_seconds=7,
        starting_seconds=1,
        training_seconds=11,
        saving_seconds=0,
    )
    journal.add(99, "run_started")
    parts = journal.parts()
    assert (parts["done_twice"], parts["idle"]) == (17, 19)  # fmt: skip


# --- live ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "parts"),
    [
        ({"starting_seconds": None, "is_adopted": False}, {"starting": 31}),
        (
            {"starting_seconds": 9, "saving_seconds": 1, "is_adopted": False},
            {"starting": 10, "saving": 1, "training": 20},
        ),
        ({"starting_seconds": None, "is_adopted": True}, {"starting": 1, "training": 30}),
    ],
)
def test_running_attempt_counts_so_far(
    journal: Journal, running: dict[str, Any], parts: dict[str, float]
) -> None:
    """While it runs, all of its training counts."""
    journal.add(0, "run_started")
    journal.add(1, "attempt_started", 1)
    goodput = goodput_of(journal.events)
    before = asdict(goodput)
    assert parts_of(goodput, Moment(None, 31.0), running) == parts
    assert asdict(goodput) == before


# --- any journal -----------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-5, 200), st.floats(-5, 2000), st.just(10**400), st.just(1e308))
VALUES = st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=3), st.just([]))
TIMES = st.one_of(st.floats(-1e9, 1e9).map(at), st.none(), st.text(max_size=5))
OUTCOMES = st.sampled_from(["complete", "stopped", "failed", "refused", None])
EVENTS = st.builds(
    lambda required, facts, times: {**times, **facts, **required},
    st.fixed_dictionaries({"event": st.sampled_from(list(JournalEvent))}),
    st.dictionaries(
        st.sampled_from(
            [*TRAINED, "unfinished_seconds", "lost_seconds", "delay_seconds", "uptime_seconds",
             "asleep_seconds", "hang", "phase", "connected", "source", "problem", "last_step"]
        ),
        VALUES,
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "time": TIMES, "last_step_time": TIMES, "outcome": OUTCOMES,
            "attempt": st.integers(0, 5) | st.none(), "step": st.integers(-5, 200) | st.none(),
            "left_step": st.integers(-5, 200) | st.none(), "resume_step": VALUES,
        },
    ),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=40))
def test_parts_add_up_whatever_the_journal_says(events: list[dict[str, Any]]) -> None:
    """Any events in any order, with any values: nothing is negative, and all adds up."""
    goodput = Goodput()
    for event in events:
        goodput.add(event)
        check(goodput.to_json())
        check(goodput.to_json(Moment(at(0), 50.0), {"starting_seconds": 1, "saving_seconds": 2,
                                                    "is_adopted": False}))  # fmt: skip


@given(st.lists(EVENTS, max_size=20), st.lists(EVENTS, max_size=20))
def test_stored_goodput_goes_on_as_the_one_that_was_not(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    """What the index and a rotated journal keep is all that the rest depends on."""
    whole = goodput_of(before + after)
    stored = checked_goodput(json.loads(json.dumps(asdict(goodput_of(before)))))
    for event in after:
        stored.add(event)
    assert stored == whole


DURATIONS = st.integers(0, 100_000).map(lambda tenths: tenths / 10)
LIFE = st.tuples(DURATIONS, DURATIONS, DURATIONS, DURATIONS, st.integers(0, 50), OUTCOMES)


@given(st.lists(LIFE, min_size=1, max_size=30), st.integers(1, 5))
def test_wall_time_is_the_time_from_the_first_event_to_the_last(
    lives: list[tuple[Any, ...]], attempts: int
) -> None:
    """Over supervisors and attempts of any length, no time is lost and none counted twice."""
    journal, now = Journal(), 0.0
    for number, (idle, start, training, tail, step, outcome) in enumerate(lives):
        if number % attempts == 0:
            if number:
                journal.add(now, "run_stopped")
            now += idle
            journal.add(now, "run_started")
        now += start
        journal.add(now, "attempt_started", number, resume_step=step)
        now += start + training + tail
        facts = {"starting_seconds": start, "training_seconds": training, "saving_seconds": 0.0}
        facts |= {"unfinished_seconds": tail, "phase": "train", "connected": True}
        journal.add(now, "attempt_exited", number, outcome=outcome, step=step + 10, **facts)
    goodput = goodput_of(journal.events)
    first = datetime.fromisoformat(journal.events[0]["time"])
    wall = (BEGAN + timedelta(seconds=now) - first).total_seconds()
    assert sum(parts_of(goodput).values()) == pytest.approx(wall, abs=0.01)
    parts = goodput.ledger.seconds
    trained = sum(training for _, _, training, *_ in lives)
    counted = parts.get(Part.TRAINING, 0) + parts.get(Part.DONE_TWICE, 0)
    assert counted >= trained - 0.01


@pytest.mark.parametrize("key", [*asdict(Goodput()), *asdict(Goodput())["ledger"]])
@pytest.mark.parametrize(
    "value",
    [None, -1, float("nan"), "x", [], [None], {"x": 1}, [{}], 1e306, {"training": 1e306}],
)
def test_damaged_store_is_refused(key: str, value: Any) -> None:
    """A value of another type is no goodput: the journal is read again."""
    content = asdict(Goodput())
    (content if key in content else content["ledger"])[key] = value
    with contextlib.suppress(ValueError, TypeError, KeyError):
        check(checked_goodput(content).to_json())
