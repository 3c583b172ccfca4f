"""`orchestrator systemd-unit`: prints a unit for a training command."""

import os
import pwd
import shutil
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from orchestrator.cli.module_words import MODULE_WORDS
from orchestrator.cli.run import check_program
from orchestrator.config import ENVIRONMENT_PREFIX, Config, option_words
from orchestrator.errors import ConfigError
from orchestrator.hosts.systemd.unit import ServiceSpec, check_unit_name, service_unit, slowest_save
from orchestrator.rundir.name_pattern import run_dir_of
from orchestrator.rundir.paths import RunDir, default_run_dir
from orchestrator.rundir.program import script_of
from orchestrator.rundir.start import Start
from orchestrator.terminal.printing import print_text

ROOT = "root"
# The unit sets this one as an environment variable, which its other commands read too.
RUN_DIR = "run_dir"
SYSTEM_STATE = Path("/var/lib/orchestrator")


def print_systemd_unit(arguments: Namespace) -> None:
    """Print a unit that runs a command as `orchestrator run` would here."""
    given = _settings(arguments)
    directory = Path.cwd()
    config = Config.resolve(given, {}, directory, arguments.command)
    command = [_absolute_program(arguments.command[0]), *arguments.command[1:]]
    script = script_of(command) or command[0]
    usual_run_dir = default_run_dir(script)
    name = check_unit_name(arguments.name or usual_run_dir.name)
    run_dir = None
    if config.run_dir is not None:
        run_dir = directory / run_dir_of(config.run_dir, script, Start.of_command(command))
    # Where a user's service manager keeps state depends on its version.
    measured_run = run_dir or (None if arguments.user else SYSTEM_STATE / name)
    account = None if arguments.user else _account(arguments.run_as)
    service = ServiceSpec(
        name=name,
        program=[sys.executable, *MODULE_WORDS],
        options=option_words({key: text for key, text in given.items() if key != RUN_DIR}),
        command=command,
        directory=directory,
        run_dir=run_dir,
        account=account,
        for_user=arguments.user,
        grace_seconds=config.grace,
        save_seconds=None if measured_run is None else slowest_save(RunDir(measured_run)),
    )
    print(service_unit(service), end="")
    if run_dir is None and os.path.exists(RunDir(usual_run_dir).run_file):
        _note(
            f"this unit starts a new run in systemd's state directory; to continue the run in "
            f"{usual_run_dir}, add --run-dir {usual_run_dir}"
        )
    if account == ROOT:
        _note("the training will run as root; name another account with --run-as")


def _settings(arguments: Namespace) -> dict[str, str]:
    """Return the settings of the command line, and those that `run` would find as variables.

    Each start reads a configuration file in the working directory again.
    """
    given = {}
    for setting in fields(Config):
        variable = ENVIRONMENT_PREFIX + setting.name.upper()
        text = getattr(arguments, setting.name) or os.environ.get(variable)
        if text is not None:
            given[setting.name] = text
    return given


def _absolute_program(program: str) -> str:
    check_program(program)
    found = shutil.which(program)
    assert found is not None
    # Links are kept: Python finds its virtual environment by the path of its link.
    return str(Path.cwd() / found)


def _account(name: str | None) -> str:
    """Return the account that runs the service: the named one, sudo's caller, or this user.

    Raises ConfigError when there is no such account.
    """
    try:
        if given := name or os.environ.get("SUDO_USER"):
            return pwd.getpwnam(given).pw_name
        return pwd.getpwuid(os.getuid()).pw_name
    except (KeyError, ValueError):
        raise ConfigError(
            f"cannot run the service as {given or os.getuid()}: there is no such account here; "
            "name one with --run-as"
        ) from None


def _note(text: str) -> None:
    print_text(f"note: {text}", to_stderr=True)
