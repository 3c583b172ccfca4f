"""How long the host waits after its SIGTERM, against what --grace counts on."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from orchestrator.doctor.findings import Finding, Level, Subject
from orchestrator.system.units import duration_text, parse_duration

ASK_SECONDS = 10.0
OWN_GROUP = Path("/proc/self/cgroup")


def grace(subject: Subject) -> Finding:
    """Who would end us, and how long after asking."""
    wanted = subject.config.grace
    host, seconds = found_grace()
    if seconds is None:
        around = f"{host} is unknown" if host else "no systemd unit and no SLURM job around us"
        text = f"--grace is {wanted:g} s; {around}"
        advice = f"see to it that whatever ends the run waits for {wanted:g} s before SIGKILL"
        return Finding("grace", Level.WARN if host else Level.OK, text, advice if host else "")
    text = f"--grace is {wanted:g} s; {host} is {duration_text(seconds)}"
    if seconds < wanted:
        advice = f"raise that to {wanted:g} s, or say --grace {seconds:g}s"
        return Finding("grace", Level.FAIL, text, advice)
    if (took := subject.save_seconds) is not None and took > wanted:
        text += f"; the last save took {duration_text(took)}"
        return Finding("grace", Level.WARN, text, f"raise both to {2 * took:.0f} s")
    return Finding("grace", Level.OK, text)


def found_grace(environment: Mapping[str, str] = os.environ) -> tuple[str, float | None]:
    """The setting's name, and its seconds where it can be asked; both empty on a plain host."""
    if "SLURM_JOB_ID" in environment:
        answer = _ask("scontrol", "show", "config")
        match = re.search(r"^KillWait\s*=\s*(\d+) sec", answer, re.MULTILINE)
        return "KillWait of SLURM", float(match[1]) if match else None
    if "INVOCATION_ID" in environment and (unit := _own_unit()):
        answer = _ask("systemctl", "show", "--property=TimeoutStopUSec", "--value", unit)
        return f"TimeoutStopSec of {unit}", _systemd_seconds(answer.strip())
    return "", None


def _own_unit() -> str:
    """The service that our control group belongs to."""
    try:
        groups = OWN_GROUP.read_text()
    except OSError:
        return ""
    found = re.findall(r"([^/\n]+\.service)", groups)
    return str(found[-1]) if found else ""


def _systemd_seconds(text: str) -> float | None:
    """Seconds of a span such as ``1min 30s``; None where it is none, or not known."""
    if text == "infinity":
        return float("inf")
    try:
        words = text.replace("min", "m").replace("us", "").split()
        return sum(map(parse_duration, words)) if words else None
    except ValueError:
        return None


def _ask(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
