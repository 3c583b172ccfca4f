"""The batch script for a training command."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.hosts.slurm.margins import CONTROLLER_SECONDS

_OPTION = re.compile(r"--?[A-Za-z][^\n\r]*")
_TASK = '"$SLURM_ARRAY_TASK_ID"'


def batch_script(
    orchestrator: Sequence[str],
    options: Sequence[str],
    run_dir: Path,
    command: Sequence[str],
    sbatch: Sequence[str],
    grace_seconds: float,
) -> str:
    """A script for sbatch that runs ``orchestrator run`` with these options and this command.

    ``sbatch`` are further options of sbatch, with or without their dashes. The tasks of an array
    get a run directory each. Raises ConfigError for an option that cannot be one.
    """
    name = re.sub(r"[^\w.-]+", "-", run_dir.name)
    notice_seconds = math.ceil(grace_seconds + CONTROLLER_SECONDS)
    head = [
        f"--job-name={name}",
        # Of a job that was queued again, sbatch would empty the file.
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{notice_seconds}",
        *map(_sbatch_option, sbatch),
    ]
    is_array = any(re.match(r"--array\b|-a", option) for option in head)
    place = shlex.quote(str(run_dir)) + (f"-{_TASK}" if is_array else "")
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in head),
        "",
        "# In the place of this shell the supervisor gets every signal that SLURM sends.",
        f"exec {shlex.join(orchestrator)} run \\",
        f"    {' '.join(['--run-dir', place, *map(shlex.quote, options)])} \\",
        f"    -- {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _sbatch_option(text: str) -> str:
    option = text if text.startswith("-") else f"--{text}"
    if not _OPTION.fullmatch(option):
        raise ConfigError(
            f"cannot use --sbatch {text!r}: write an option of sbatch, such as time=4:00:00"
        )
    return option
