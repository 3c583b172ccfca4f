"""A run as a service of a real systemd."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.systemd.unit import template_unit
from tests.e2e.hosts.systemd import Job, Manager, managed, print_unit, training
from tests.e2e.support import assert_all_valid, events, wait_for

pytestmark = pytest.mark.processes

SLOW_DISK = Path(__file__).with_name("slow_disk.py")


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    with managed("system", tmp_path_factory.mktemp("system")) as manager:
        yield manager


def checkpoints(job: Job, reason: str) -> list[int]:
    """Return the steps of the checkpoints that were saved for a reason."""
    published = events(job.run, "checkpoint_published")
    return [event["step"] for event in published if event["reason"] == reason]


def attempts(job: Job) -> list[dict[str, Any]]:
    return events(job.run, "attempt_started")


def test_service_starts_reports_its_status_saves_and_stops(systemd: Manager) -> None:
    """The service is active when it trains; its status line is current; reload and stop save."""
    job = Job(systemd, "first", training())
    job.systemctl("start")
    assert (job.show("ActiveState"), len(attempts(job))) == ("active", 1)
    wait_for(lambda: "; loss " in job.show("StatusText"), "a loss in the status line")
    job.systemctl("reload")
    assert len(checkpoints(job, "requested")) == 1
    saved = f"checkpoint of step {checkpoints(job, 'requested')[0]}, "
    wait_for(lambda: saved in job.show("StatusText"), "the checkpoint in the status line")
    trainer = str(attempts(job)[0]["pid"])
    environment = systemd.run("cat", f"/proc/{trainer}/environ")
    assert "ORCHESTRATOR_SOCKET" in environment
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & {
        e.split("=")[0] for e in environment.split("\0")
    }
    job.systemctl("stop")
    assert job.show("Result") == "success"
    assert job.show("ExecMainStatus") == str(ExitStatus.STOPPED_SAVED.value)
    assert job.show("ActiveState") == "inactive"
    assert len(checkpoints(job, "emergency")) == 1
    assert_all_valid(job.run)


def test_stop_gets_more_time_while_it_saves(systemd: Manager) -> None:
    """A save that makes progress is not cut off at TimeoutStopSec."""
    job = Job(
        systemd,
        "slow",
        training("--ballast", str(64 << 20)),
        ("--grace", "2s"),
        program=str(SLOW_DISK),
        TimeoutStopSec=4,
        WatchdogSec=3,
    )
    job.systemctl("start")
    wait_for(lambda: events(job.run, "snapshot_taken"), "a snapshot")
    began = time.monotonic()
    job.systemctl("stop")
    assert time.monotonic() - began > 4
    assert job.show("Result") == "success"
    assert checkpoints(job, "emergency") != []
    assert_all_valid(job.run)


def test_stop_without_progress_is_killed_at_its_timeout(systemd: Manager) -> None:
    """A command that neither saves nor ends is killed with its processes, and not restarted."""
    stubborn = ["/bin/sh", "-c", 'trap "" TERM; echo ready; while true; do sleep 1; done']
    job = Job(systemd, "stubborn", stubborn, ("--grace", "10m"), TimeoutStopSec=2)
    job.systemctl("start")
    output = job.run.attempt(1).output_file
    wait_for(lambda: "ready" in output.read_text(), "the trap")
    job.systemctl("stop")
    assert (job.show("Result"), job.show("NRestarts")) == ("timeout", "0")
    # The control group is gone, and so is every process in it.
    assert job.show("ControlGroup") == ""


def test_crash_of_the_trainer_does_not_restart_the_service(systemd: Manager) -> None:
    """The supervisor restarts its trainer, and the service stays active."""
    job = Job(systemd, "crash", training())
    job.systemctl("start")
    wait_for(lambda: events(job.run, "snapshot_taken"), "a snapshot")
    main = job.show("MainPID")
    job.kill("-KILL", str(attempts(job)[0]["pid"]))
    wait_for(lambda: events(job.run, "resumed"), "the second attempt")
    assert (job.show("ActiveState"), job.show("NRestarts")) == ("active", "0")
    assert job.show("MainPID") == main
    job.systemctl("stop")


def kill_all(job: Job) -> None:
    job.manager.systemctl("kill", "--signal=KILL", job.unit)


def kill_supervisor(job: Job) -> None:
    job.kill("-KILL", job.show("MainPID"))


def stop_supervisor(job: Job) -> None:
    job.kill("-STOP", job.show("MainPID"))


@pytest.mark.parametrize("harm", [kill_all, kill_supervisor, stop_supervisor])
def test_newest_snapshot_survives_the_supervisor(
    systemd: Manager, harm: Callable[[Job], None]
) -> None:
    """After the supervisor is killed or stuck, the next start resumes from the snapshot."""
    job = Job(systemd, harm.__name__, training(), WatchdogSec=2)
    job.systemctl("start")
    seen = wait_for(lambda: job.snapshot_beyond(checkpoints(job, "periodic")), "a newer snapshot")
    harm(job)
    wait_for(lambda: events(job.run, "resumed"), "the second attempt")
    second = attempts(job)[1]
    assert (second["from_memory"], job.show("NRestarts")) == (True, "1")
    assert second["resume_step"] >= seen
    assert second["resume_step"] in checkpoints(job, "crash")
    stuck = "Fatal Python error: Aborted" in systemd.journal(job.unit)
    assert stuck == (harm is stop_supervisor)
    job.systemctl("stop")
    assert_all_valid(job.run)


ENDS = {
    ExitStatus.COMPLETE: "success",
    ExitStatus.STOPPED_SAVED: "success",
    ExitStatus.STOPPED_UNSAVED: "success",
    ExitStatus.MISUSE: "exit-code",
    ExitStatus.NO_VALID_CHECKPOINT: "exit-code",
    ExitStatus.IN_USE: "exit-code",
    ExitStatus.GAVE_UP: "exit-code",
    ExitStatus.CONFIGURATION: "exit-code",
}


def test_restarts_follow_the_exit_status(systemd: Manager) -> None:
    """A documented exit status is never restarted, any other end is, up to five times."""
    assert ENDS.keys() == set(ExitStatus)
    text = print_unit("--name", "ends", "--", "true", directory=systemd.share)
    others = {"exit 1": "exit-code", "kill -9 $$$$": "signal"}
    ends = {f"exit {status.value}": result for status, result in ENDS.items()} | others
    units = {end: f"end-{number}.service" for number, end in enumerate(ends)}
    for end, unit in units.items():
        shell = f"\nExecStart=/bin/sh -c '{end}'"
        systemd.install(unit, text, Type="exec", ExecStart=shell, RestartSec=0)
    systemd.systemctl("start", "--no-block", *units.values())
    for end, unit in units.items():
        result, restarts = ends[end], 5 if end in others else 0
        wait_for(
            lambda unit=unit: (
                systemd.show(unit, "ActiveState") in ("inactive", "failed")
                and systemd.show(unit, "SubState") != "auto-restart"
            ),
            unit,
        )
        expected = "inactive" if result == "success" else "failed"
        found = [systemd.show(unit, name) for name in ("ActiveState", "NRestarts")]
        assert found == [expected, str(restarts)], end


def test_exit_statuses_of_the_supervisor_reach_systemd(systemd: Manager) -> None:
    """Systemd sees the status of a completed, an already completed and a failed run."""
    done = Job(systemd, "done", ["/bin/true"])
    before = Job(systemd, "before", ["/bin/true"])
    before.run.create()
    before.run.done_file.write_text('{"command": ["/bin/true"], "step": 1}')
    fails = Job(systemd, "fails", ["/bin/sh", "-c", "exit 3"])
    for job, status, state in ((done, 0, "dead"), (before, 0, "dead"), (fails, 70, "failed")):
        job.systemctl("start")
        job.wait_for("SubState", state)
        assert (job.show("ExecMainStatus"), job.show("NRestarts")) == (str(status), "0")
    assert attempts(before) == []


def test_words_reach_the_command_unchanged(systemd: Manager) -> None:
    """Words with characters that a shell or systemd would expand arrive unchanged."""
    odd = [
        "a b",
        'a"b',
        "$HOME",
        "${HOME}",
        "100%",
        "%n",
        "\\x41",
        "",
        "é",
        ";",
        "'",
        "\t",
        "--",
        "-x",
    ]
    job = Job(systemd, "words", [sys.executable, "-c", "import sys; print(sys.argv[1:])", *odd])
    job.systemctl("start")
    job.wait_for("SubState", "dead")
    assert job.run.attempt(1).output_file.read_text() == f"{odd}\n"


def test_unit_for_a_user_manager_starts_and_stops(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The unit with --user starts and stops in a user's service manager."""
    with managed("user", tmp_path_factory.mktemp("user")) as manager:
        job = Job(manager, "mine", training())
        job.systemctl("start")
        wait_for(lambda: "training, attempt 1" in job.show("StatusText"), "the status line")
        job.systemctl("stop")
        assert (job.show("Result"), job.show("ExecMainStatus")) == ("success", "75")
        assert_all_valid(job.run)


def test_template_unit_runs_the_command_of_its_file(systemd: Manager) -> None:
    """An instance reads its directory and its command, which a shell parses, from its file."""
    systemd.install("orchestrator@.service", template_unit(for_user=False))
    (systemd.share / "shown.env").write_text(
        f"DIRECTORY={systemd.share}\nPATH={Path(sys.executable).parent}:/usr/bin:/bin\n"
        """COMMAND=sh -c 'echo "$0 in $PWD"' "a b"\n"""
    )
    systemd.run("mkdir", "/etc/orchestrator")
    systemd.run("cp", f"{systemd.share}/shown.env", "/etc/orchestrator")
    systemd.systemctl("start", "orchestrator@shown")
    systemd.wait_for("orchestrator@shown", "SubState", "dead")
    output = systemd.run("cat", "/var/lib/orchestrator/shown/attempts/0001/output.log")
    assert output == f"a b in {systemd.share}\n"
