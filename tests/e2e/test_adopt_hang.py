"""Scripts under `orchestrator run --adopt` that hang, and others that only look as if they did."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.support import Supervised, assert_nothing_left, events, live_status, wait_for

SCRIPTS = Path(__file__).parent.parent / "adopt" / "scripts"
HANGING = [sys.executable, str(SCRIPTS / "hanging.py")]
QUIET = [sys.executable, str(SCRIPTS / "quiet.py")]
ADOPT = ("--adopt", "out/m_*.json")
OPTIONS = (*ADOPT, "--hang-timeout", "2s", "--grace", "2s")

Start = Callable[..., Supervised]


@pytest.mark.parametrize(
    ("way", "seems"),
    [
        ("sleeps", "is waiting"),
        ("stopped", "is stopped"),
        ("spins", "is running"),
        ("lock", "is waiting"),
        ("pipe", "is waiting"),
        ("worker", "its descendant"),
    ],
)
def test_hung_script_is_restarted_from_its_newest_save(
    supervise: Start, tmp_path: Path, way: str, seems: str
) -> None:
    """However it hangs, it is described, ended and resumed; no signal of its own is used."""
    run = supervise(command=[*HANGING, way], options=OPTIONS)
    assert run.end()[0] == 0
    (hang,) = events(run.run, "hang_detected")
    assert hang["phase"] == "script"
    assert seems in hang["seems"]
    assert f"=== process {events(run.run, 'attempt_started')[0]['pid']}" in (
        run.run.attempt(1).stacks_file.read_text()
    )
    assert events(run.run, "attempt_exited")[0]["kind"] == "hang"
    assert events(run.run, "attempt_started")[-1]["resume_step"] == 3
    assert not (tmp_path / "disturbed").exists()
    assert_nothing_left(run.run)


@pytest.mark.parametrize("way", ["sleeps", "stopped"])
def test_hung_script_may_save_on_its_stop_signal(supervise: Start, way: str) -> None:
    """It gets the signal and the grace period, is continued for it, and resumes from that save."""
    run = supervise(command=[*HANGING, way, "--saves-on-sigterm"], options=OPTIONS)
    assert run.end()[0] == 0
    first, _ = events(run.run, "attempt_exited")
    assert (first["kind"], first["status"]) == ("hang", 0)
    assert events(run.run, "attempt_started")[-1]["resume_step"] == 4


def test_script_that_hangs_twice_without_a_new_save_stops_the_run(supervise: Start) -> None:
    """One that ignores the signal is killed, and a second hang at the same place is final."""
    command = [*HANGING, "sleeps", "--for-ever", "--ignores-sigterm"]
    run = supervise(command=command, options=OPTIONS)
    status, _, stderr = run.end()
    assert status == 70
    assert "it shows no progress: killing it" in stderr
    kinds = [(e["kind"], e["signal"]) for e in events(run.run, "attempt_exited")]
    assert kinds == [("hang", signal.SIGKILL)] * 2


@pytest.mark.parametrize("kind", ["prints", "reads"])
def test_script_with_one_sign_of_life_is_not_hung(supervise: Start, kind: str) -> None:
    """Output alone or I/O alone is enough for longer than the timeout."""
    run = supervise(command=[*QUIET, kind, "5"], options=(*ADOPT, "--hang-timeout", "3s"))
    assert run.end()[0] == 0
    assert events(run.run, "hang_detected") == []
    assert len(events(run.run, "attempt_started")) == 1


def test_files_that_a_container_writes_are_signs_of_life(supervise: Start, tmp_path: Path) -> None:
    """A command that only waits is not hung while files of the pattern change."""
    file = tmp_path / "out" / "m_1.json"
    file.parent.mkdir()
    run = supervise(command=["sleep", "5"], options=(*ADOPT, "--hang-timeout", "3s"))
    while run.process.poll() is None:
        file.write_text("{ never whole, so that it is no checkpoint")
        time.sleep(0.3)
    assert run.end()[0] == 0
    assert events(run.run, "hang_detected") == []
    assert events(run.run, "checkpoint_published") == []


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_script_has_no_timeout_before_one_is_learned(supervise: Start, setting: str) -> None:
    """Its silence is shown and not judged."""
    run = supervise(
        command=[*HANGING, "sleeps"], options=(*ADOPT, "--hang-timeout", setting, "--grace", "2s")
    )
    run.wait_for_event("checkpoint_published", 3)
    wait_for(lambda: (live_status(run)["silent_seconds"] or 0) > 2, "a silence")
    status = live_status(run)
    assert status["hang_budget_seconds"] is None
    assert status["phase"] is None
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 74
    assert events(run.run, "hang_detected") == []


def test_status_of_a_script_shows_its_silence_and_its_timeout(supervise: Start) -> None:
    """The person sees how long nothing has come, and when it will be restarted."""
    run = supervise(command=[*HANGING, "sleeps"], options=(*ADOPT, "--hang-timeout", "1h"))
    run.wait_for_event("checkpoint_published", 3)
    wait_for(lambda: live_status(run)["silent_seconds"], "a silence")
    assert live_status(run)["hang_budget_seconds"] == 3600
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 74
