"""A failure before the session that will pass, and a stop that reaches the command before it."""

import sys
from collections.abc import Callable

import pytest

from tests.e2e.support import Supervised, events

Start = Callable[..., Supervised]

FIRST = "import os, sys\nif os.path.exists('came'): sys.exit()\nopen('came', 'w').close()\n"
FAILURES = {
    "refused": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "unreachable": "import urllib.request as r; r.urlopen('http://127.0.0.1:9/')",
    "busy port": "import socket; s = socket.create_server(('', 0)); "
    "socket.create_server(('', s.getsockname()[1]))",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_command_starts_again_when_something_was_not_there_yet(
    supervise: Start, failure: str
) -> None:
    """It is restarted after a moment, although no safe point was ever reached."""
    run = supervise(command=[sys.executable, "-c", FIRST + FAILURES[failure]])
    status, _, stderr = run.end()
    assert status == 0, stderr
    assert events(run.run, "restart_scheduled")[0]["delay_seconds"] >= 2


@pytest.mark.parametrize(
    "wrapper",
    [("timeout", "1"), ("env", "X=1", "timeout", "1"), ("sh", "-c", 'timeout 1 "$@"', "")],
)
def test_stop_of_a_wrapper_before_the_session_is_no_failure(
    supervise: Start, wrapper: tuple[str, ...]
) -> None:
    """The run ends with 75, so that a scheduler runs it again."""
    run = supervise(command=[*wrapper, sys.executable, "-c", "import time; time.sleep(60)"])
    assert run.end()[0] == 75
