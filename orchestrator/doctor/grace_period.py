"""Compares --grace with the time that the host gives between SIGTERM and SIGKILL."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from orchestrator.doctor.findings import CheckedRun, Finding, Level
from orchestrator.hosts.slurm.scontrol import SHOW_CONFIG_COMMAND, StopTimes
from orchestrator.system.units import duration_text, parse_duration

QUERY_SECONDS = 10.0
OWN_GROUP = Path("/proc/self/cgroup")


def grace(facts: CheckedRun) -> Finding:
    """Check that the host waits as long as --grace says before it kills the run."""
    wanted = facts.config.grace
    host, seconds = host_grace()
    if seconds is None:
        around = f"{host} is unknown" if host else "this is no systemd unit and no SLURM job"
        text = f"--grace is {wanted:g} s; {around}"
        advice = f"make sure that the host waits {wanted:g} s between SIGTERM and SIGKILL"
        return Finding("grace", Level.WARN if host else Level.OK, text, advice if host else "")
    text = f"--grace is {wanted:g} s; {host} is {duration_text(seconds)}"
    if seconds < wanted:
        advice = f"raise {host} to {wanted:g} s, or run with --grace {seconds:g}s"
        return Finding("grace", Level.FAIL, text, advice)
    if (took := facts.save_seconds) is not None and took > wanted:
        text += f"; the last save took {duration_text(took)}"
        return Finding("grace", Level.WARN, text, f"raise {host} and --grace to {2 * took:.0f} s")
    return Finding("grace", Level.OK, text)


def host_grace(environment: Mapping[str, str] = os.environ) -> tuple[str, float | None]:
    """Return the host's setting and its seconds, None if unknown; on a plain host "" and None."""
    if "SLURM_JOB_ID" in environment:
        times = StopTimes.parse(_output_of(*SHOW_CONFIG_COMMAND), partition="")
        return "KillWait of SLURM", times.kill_wait_seconds
    if "INVOCATION_ID" in environment and (unit := _own_unit()):
        answer = _output_of("systemctl", "show", "--property=TimeoutStopUSec", "--value", unit)
        return f"TimeoutStopSec of {unit}", _systemd_seconds(answer.strip())
    return "", None


def _own_unit() -> str:
    """Return the service that this process's control group belongs to."""
    try:
        groups = OWN_GROUP.read_text()
    except OSError:
        return ""
    found = re.findall(r"([^/\n]+\.service)", groups)
    return str(found[-1]) if found else ""


def _systemd_seconds(text: str) -> float | None:
    """Return the seconds of a time span such as ``1min 30s``; None if it cannot be read."""
    if text == "infinity":
        return float("inf")
    try:
        words = text.replace("min", "m").replace("us", "").split()
        return sum(map(parse_duration, words)) if words else None
    except ValueError:
        return None


def _output_of(*command: str) -> str:
    """Return what a program prints; empty if it is missing or does not answer."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
