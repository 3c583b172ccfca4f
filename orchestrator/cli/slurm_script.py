"""`orchestrator slurm-script`: prints a batch script for a training command."""

import os
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from orchestrator.cli.module_words import MODULE_WORDS
from orchestrator.config import Config, option_words
from orchestrator.hosts.slurm.batch_script import batch_script
from orchestrator.rundir.name_pattern import run_dir_of
from orchestrator.rundir.program import script_of
from orchestrator.rundir.start import Start


def slurm_script(arguments: Namespace) -> None:
    """Print a batch script that passes the given options on to `orchestrator run`."""
    given = {setting.name: getattr(arguments, setting.name) for setting in fields(Config)}
    command: list[str] = arguments.command
    config = Config.resolve(given, os.environ, Path.cwd(), command)
    name = script_of(command) or command[0]
    run_dir = run_dir_of(config.run_dir, name, Start.of_command(command))
    options = {"slurm_requeue": "on"} | {
        name: text for name, text in given.items() if text is not None and name != "run_dir"
    }
    script = batch_script(
        # In the job, PATH may lack this environment's programs.
        [sys.executable, *MODULE_WORDS],
        option_words(options),
        run_dir,
        command,
        arguments.sbatch,
        config.grace,
    )
    print(script, end="")
