"""What the end of an attempt means."""

from typing import Any

import pytest
from orchestrator.supervisor.judge import Facts, Outcome, judge


@pytest.mark.parametrize(
    ("facts", "outcome", "status"),
    [
        ({"reported": 0}, Outcome.COMPLETE, 0),
        ({"reported": 0, "returncode": 1}, Outcome.REFUSED, 70),
        ({"reported": 0, "returncode": -15, "stop_requested": True}, Outcome.COMPLETE, 0),
        ({"reported": 75, "returncode": 75}, Outcome.STOPPED, 75),
        ({"reported": 74, "returncode": 74, "lost_steps": 1}, Outcome.STOPPED, 74),
        ({"reported": 74, "returncode": 74}, Outcome.STOPPED, 75),
        ({"reported": 75, "returncode": -15}, Outcome.STOPPED, 75),
        ({"reported": 78, "returncode": 78}, Outcome.REFUSED, 78),
        ({"returncode": 65}, Outcome.REFUSED, 65),
        ({"reported": 78, "returncode": 1}, Outcome.REFUSED, 78),
        ({"returncode": -9, "stop_requested": True, "lost_steps": 3}, Outcome.STOPPED, 74),
        ({"returncode": -15, "stop_requested": True}, Outcome.STOPPED, 75),
        ({"returncode": 0}, Outcome.FAILED, 70),
        ({"returncode": 0, "connected": False}, Outcome.COMPLETE, 0),
        ({"returncode": 1, "connected": False}, Outcome.FAILED, 70),
        ({"returncode": -9}, Outcome.FAILED, 70),
    ],
)
def test_verdict(facts: dict[str, Any], outcome: Outcome, status: int) -> None:
    """Each kind of end has the outcome and the status of the contract."""
    usual: dict[str, Any] = {
        "returncode": 0,
        "connected": True,
        "reported": None,
        "stop_requested": False,
        "lost_steps": 0,
        "error": None,
    }
    verdict = judge(Facts(**(usual | facts)))
    assert (verdict.outcome, verdict.status) == (outcome, status)
