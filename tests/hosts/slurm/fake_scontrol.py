"""A scontrol program whose answers a test sets."""

import time
from pathlib import Path

from orchestrator.hosts.slurm.scontrol import Job, JobQuery
from orchestrator.system.subprocesses import SubprocessRunner

FAR_SECONDS = 100_000

# Prints the answers that a test has written, and records its arguments.
SCONTROL = """#!/bin/bash
echo "$*" >> {directory}/calls
if [ "$1" = requeue ]; then cat {directory}/refusal >&2 && exit 1; fi
case "$*" in *"show job"*) cat {directory}/job;; *config*) echo "KillWait = 30 sec";; esac
exit 0
"""


class Controller:
    """A scontrol program whose answers the test sets."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        program = directory / "scontrol"
        program.write_text(SCONTROL.format(directory=directory))
        program.chmod(0o755)
        self.set_job(FAR_SECONDS)

    def set_job(self, seconds_left: float, state: str = "RUNNING", **words: str) -> None:
        end = time.time() + seconds_left
        times = {
            "StartTime": int(end) - FAR_SECONDS,
            "EndTime": int(end),
            "PreemptTime": "None",
        }
        facts = {"JobState": state, "Restarts": 1, **times, **words}
        text = " ".join(f"{key}={value}" for key, value in facts.items())
        new = self._directory / "job.new"
        new.write_text(f"JobId=7 {text} Partition=main\n")
        new.replace(self._directory / "job")

    def refuse_requeue(self, text: str) -> None:
        (self._directory / "refusal").write_text(text)

    def count_calls(self, words: str) -> int:
        file = self._directory / "calls"
        return file.read_text().count(words) if file.exists() else 0


def query_of(known_end: int | None = None) -> JobQuery:
    """Return the query for a job that has been requeued once."""
    return JobQuery(Job("7", 1, known_end), SubprocessRunner())
