"""The checks of the machine: software versions, system features, memory, limits, GPUs."""

import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from orchestrator import __version__
from orchestrator.doctor.findings import CheckedRun, Finding, Level
from orchestrator.system.capabilities import Capability, describe_fallback, is_available
from orchestrator.system.memory import available_bytes, limit_bytes
from orchestrator.system.requirements import LEAST_VERSIONS, too_old
from orchestrator.system.units import size_text

GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
QUERY_SECONDS = 10.0
MIN_OPEN_FILES = 1024
MIN_PROCESSES = 1024
# Memory for two slots, each with room to grow, as a multiple of the state's size.
SLOTS_SHARE = 2 * 9 / 8


def versions(facts: CheckedRun) -> Finding:
    """Check that the required packages are installed and new enough, and report the versions."""
    shown, wrong = [f"orchestrator {__version__}", f"Python {platform.python_version()}"], []
    wanted = []
    for name in LEAST_VERSIONS:
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
            wanted.append(name)
            continue
        shown.append(f"{name} {installed}")
        if least := too_old(name, installed):
            wrong.append(f"{name} {installed} is too old, {least} or newer is needed")
            wanted.append(f"'{name}>={least}'")
    text = ", ".join(shown)
    if wrong:
        advice = f"pip install {' '.join(wanted)}"
        return Finding("versions", Level.FAIL, f"{text}; {'; '.join(wrong)}", advice)
    return Finding("versions", Level.OK, f"{text}, {platform.system()} {platform.release()}")


def memory(facts: CheckedRun) -> Finding:
    """Check that two snapshots of the state fit into memory."""
    available = available_bytes()
    allowed = limit_bytes("self")
    text = f"{size_text(available)} available"
    if allowed is not None:
        text += f", control groups allow {size_text(allowed)}"
    size = facts.checkpoint_bytes
    if size is None or facts.config.snapshot_share is None:
        return Finding("memory", Level.OK, text)
    text += f"; two snapshots take {size_text(int(SLOTS_SHARE * size))}"
    if available < SLOTS_SHARE * size:
        one_fits = available > SLOTS_SHARE * size / 2
        advice = (
            f"{'only one fits' if one_fits else 'none fits, so every save blocks training'}: free "
            "memory or use a machine with more (a run that trains here now has its own already)"
        )
        return Finding("memory", Level.WARN, text, advice)
    return Finding("memory", Level.OK, text)


def limits(facts: CheckedRun) -> Iterator[Finding]:
    """Check the limits on open files, processes, file sizes and address space (ulimit)."""
    found = []
    files, processes = _limit("RLIMIT_NOFILE"), _limit("RLIMIT_NPROC")
    if files is not None and files < MIN_OPEN_FILES:
        found.append((Level.WARN, f"{files} open files", "raise it: ulimit -n"))
    if processes is not None and processes < MIN_PROCESSES:
        found.append((Level.WARN, f"{processes} processes", "raise it: ulimit -u"))
    if (space := _limit("RLIMIT_AS")) is not None:
        text = f"{size_text(space)} of address space"
        advice = "snapshots and CUDA reserve much address space: ulimit -v unlimited"
        found.append((Level.WARN, text, advice))
    if (largest := _limit("RLIMIT_FSIZE")) is not None:
        is_too_small = largest < (facts.checkpoint_bytes or 0)
        level = Level.FAIL if is_too_small else Level.WARN
        text = f"files of at most {size_text(largest)}"
        found.append((level, text, "raise it: ulimit -f unlimited"))
    for level, text, advice in found:
        yield Finding("limits", level, text, advice)
    if not found:
        shown = [f"{'any number of' if files is None else files} open files"]
        shown.append(f"{'any number of' if processes is None else processes} processes")
        yield Finding("limits", Level.OK, ", ".join(shown))


def _limit(name: str) -> int | None:
    """Return the soft limit; None if there is none, or if the system does not know it."""
    number = getattr(resource, name, None)
    if number is None:
        return None
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft


def gpus(facts: CheckedRun) -> Finding:
    """Check that nvidia-smi answers, and report the GPUs."""
    if shutil.which(GPU_QUERY[0]) is None:
        return Finding("GPUs", Level.OK, "none: there is no nvidia-smi")
    try:
        answer = subprocess.run(
            GPU_QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        advice = "look for errors of the driver (dmesg), and reboot if it still does not answer"
        return Finding("GPUs", Level.WARN, f"nvidia-smi does not answer: {error}", advice)
    if answer.returncode:
        text = (answer.stdout + answer.stderr).strip().splitlines()
        advice = "reboot, or reload nvidia_uvm, after an upgrade of the driver or a suspend"
        return Finding("GPUs", Level.WARN, text[0] if text else "nvidia-smi fails", advice)
    return Finding("GPUs", Level.OK, "; ".join(answer.stdout.strip().splitlines()) or "none")


def capabilities(facts: CheckedRun) -> Iterator[Finding]:
    """Report the optional features that this system lacks, and what is done without them."""
    missing = [capability for capability in Capability if not is_available(capability)]
    for capability in missing:
        yield Finding("system", Level.WARN, f"no {capability}: {describe_fallback(capability)}")
    if not missing:
        yield Finding("system", Level.OK, f"has {', '.join(Capability)}")
