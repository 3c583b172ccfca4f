"""What people read when a stop begins."""

import pytest
from structlog.testing import capture_logs

from orchestrator.supervisor.termination.announcements import announce_stop


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("SIGINT", "Ctrl-C again: do not wait for that; a third time: kill at once"),
        ("SIGTERM", "the same signal again: do not wait for that; a third time: kill at once"),
        ("orchestrator stop", "a stop signal: do not wait for that; a second one: kill at once"),
        ("the notice file x", "a stop signal: do not wait for that; a second one: kill at once"),
        ("--give-up-after", "a stop signal: do not wait for that; a second one: kill at once"),
    ],
)
def test_announcement_says_what_hurries_this_stop(source: str, how: str) -> None:
    """A signal is repeated; a command and a notice never escalate, so a signal must follow."""
    with capture_logs() as logs:
        announce_stop(source, 28.0, has_session=True)
    assert logs[0]["details"][-1] == how
