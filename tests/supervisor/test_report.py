"""The paragraph about the end of an attempt."""

from typing import Any

import pytest

from orchestrator.ipc.control_page import Phase
from orchestrator.supervisor.report import PHASES, log_interruption, paragraph, restart_text


def test_every_phase_is_described() -> None:
    """The paragraph has words for every phase of the trainer."""
    assert {phase.name.lower() for phase in Phase} <= PHASES.keys()


RECORD: dict[str, Any] = {
    "attempt": 2,
    "kind": "exception",
    "step": 8,
    "phase": "train",
    "loading_step": None,
    "since_safe_point_seconds": 0.25,
    "peak_memory_bytes": 1 << 30,
    "memory_limit_bytes": None,
}


@pytest.mark.parametrize(
    ("facts", "where"),
    [
        ({}, "attempt 2, while training, step 8, 0.2 s after its last safe point"),
        (
            {"phase": "start", "since_safe_point_seconds": None},
            "attempt 2, before its session began",
        ),
        ({"phase": "restore", "loading_step": 6}, "attempt 2, while loading the state of step 6"),
        (
            {"phase": "evaluate"},
            "attempt 2, while evaluating, step 8, 0.2 s after its last safe point",
        ),
        (
            {"kind": "oom_killed", "memory_limit_bytes": 2 << 30},
            "attempt 2, while training, step 8, 0.2 s after its last safe point; its processes "
            "held up to 1.0 GiB of memory, where 2.0 GiB are allowed",
        ),
    ],
)
def test_paragraph_says_where_and_what_next(facts: dict[str, Any], where: str) -> None:
    """The paragraph says where, what is saved, what happens now, and names the output."""
    lines = paragraph(RECORD | facts, "step 7", "gave up", "output.log")
    assert lines[0] == where
    assert lines[-3:] == ["saved: step 7", "now: gave up", "its whole output: output.log"]
    assert len(lines) == (5 if "kind" in facts else 4)


def test_restart_is_announced_with_its_delay() -> None:
    """The first restart comes at once, a later one after a delay."""
    assert restart_text(0, 1, 5, 1).startswith("starting again at once (restart 1; ")
    assert restart_text(2.04, 3, 5, 3).startswith("starting again in 2.0 s (restart 3; ")


def test_restart_text_counts_all_restarts() -> None:
    """A run that saves between its failures is told their whole number."""
    counts = "restart 8; failures since the last new checkpoint: 1 of at most 5, see --max-restarts"
    assert restart_text(0, 1, 5, 8).endswith(f"({counts})")


@pytest.mark.parametrize(
    ("recorded", "start", "text"),
    [
        (149, 110, "at least 39 steps are lost, and trained again from step 110"),
        (1, 0, "at least 1 step is lost, and trained again from step 0"),
        (110, 110, "no step after step 110 is known to be lost"),
        (None, 7, "its newest checkpoint is of step 7"),
        (None, 0, "it has no checkpoint"),
    ],
)
def test_death_of_supervisor_and_trainer_is_told_with_its_cost(
    recorded: int | None, start: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next supervisor says what the metrics tell of the lost steps."""
    log_interruption(recorded, start)
    said = capsys.readouterr().out
    assert "the last supervisor of this run was killed, or the machine went down" in said
    assert text in said
