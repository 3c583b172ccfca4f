"""Which events of the journal people are told of, and in which words."""

from typing import Any

import pytest

from orchestrator.telemetry.notable_events import NotableEvents

HEALTHY = {"event": "checkpoint_published", "healthy": True, "reason": "periodic"}
UNHEALTHY = HEALTHY | {"healthy": False}
DIFFER = {"event": "replicas_differ", "tensors": ["a"]}


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"event": "run_completed"}, ("done", "")),
        ({"event": "gave_up", "cause": "a", "reason": "b"}, ("gave_up", "a; b")),
        ({"event": "hang_detected", "seems": "it waits"}, ("hang", "it waits")),
        ({"event": "stalled", "reason": "no new checkpoint"}, ("stalled", "no new checkpoint")),
        ({"event": "run_stopped", "reason": "b"}, None),
        (HEALTHY, None),
        ({"event": "checkpoint_published"}, None),
    ],
)
def test_events_have_a_name_and_a_reason(record: dict[str, Any], told: tuple[str, str]) -> None:
    """The ends of a run and what threatens it are told; a stop on request is not."""
    assert NotableEvents().notice_of(record) == told


def test_unhealthy_weights_are_told_once_until_they_are_healthy() -> None:
    """A run that has diverged does not send a message with every checkpoint."""
    events, records = NotableEvents(), [HEALTHY, UNHEALTHY, UNHEALTHY, HEALTHY, UNHEALTHY]
    told = [events.notice_of(record) for record in records]
    assert [notice and notice.event for notice in told] == [
        *(None, "unhealthy"),
        *(None, None, "unhealthy"),
    ]
    assert told[1] is not None
    assert told[1].reason == "the weights are not finite: nothing resumes from what is saved now"


def test_ranks_that_have_drifted_apart_are_told_once() -> None:
    """The checkpoint that follows is unhealthy for the same reason."""
    events = NotableEvents()
    told = [events.notice_of(record) for record in (DIFFER, UNHEALTHY)]
    assert told[0] is not None
    assert told[0].reason.startswith("the ranks hold different values of the same tensors: ")
    assert told[1] is None
