"""Makes the batch script for a training command."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.hosts.slurm.scontrol import CONTROLLER_SECONDS

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
    """Return a script for sbatch that runs ``orchestrator run`` with the options and the command.

    ``sbatch`` contains further options of sbatch, with or without their dashes. Each task of an
    array gets its own run directory. Raises ConfigError for an invalid option.
    """
    name = re.sub(r"[^\w.-]+", "-", run_dir.name)
    notice_seconds = math.ceil(grace_seconds + CONTROLLER_SECONDS)
    head = [
        f"--job-name={name}",
        # Without this, a requeued job would empty its output file.
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{notice_seconds}",
        *map(_sbatch_option, sbatch),
    ]
    is_array = any(re.match(r"--array\b|-a", option) for option in head)
    quoted_run_dir = shlex.quote(str(run_dir)) + (f"-{_TASK}" if is_array else "")
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in head),
        "",
        "# exec replaces this shell, so that the supervisor gets every signal that SLURM sends.",
        f"exec {shlex.join(orchestrator)} run \\",
        f"    {' '.join(['--run-dir', quoted_run_dir, *map(shlex.quote, options)])} \\",
        f"    -- {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _sbatch_option(text: str) -> str:
    option = text if text.startswith("-") else f"--{text}"
    if not _OPTION.fullmatch(option):
        raise ConfigError(
            f"cannot use --sbatch {text!r}: give an option of sbatch, such as time=4:00:00"
        )
    return option
