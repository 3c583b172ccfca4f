"""`orchestrator adopt`: a first look at a script that saves for itself."""

import os
import shlex
from argparse import Namespace
from pathlib import Path

from orchestrator.cli.run import check_command
from orchestrator.config import Config
from orchestrator.errors import ConfigError
from orchestrator.first_look.help_text import Help, answers_help, ask_for_help, source_of
from orchestrator.first_look.look import LookOptions, look_at
from orchestrator.first_look.proposal import findings
from orchestrator.first_look.report import report
from orchestrator.first_look.settings_file import write_settings
from orchestrator.first_look.stop_requests import StopRequests
from orchestrator.system.units import parse_duration
from orchestrator.terminal.printing import print_text

FOUND, NOTHING_FOUND = 0, 1
NOT_ASKED = "its source shows no --help"


def adopt(arguments: Namespace) -> int:
    """Look at the script, and print what to adopt; return 1 if it has saved nothing."""
    command: list[str] = arguments.command
    config = Config.resolve({}, os.environ, Path.cwd())
    check_command(command)
    seconds = _seconds(arguments.look_for)
    requests = StopRequests()
    source = source_of(command)
    asked = Help("", NOT_ASKED)
    if answers_help(source):
        _tell(f"asking for options: {shlex.join([*command, '--help'])}")
        asked = ask_for_help(command, requests.is_hurried)
    if requests.count:
        _tell("ended before the script was started")
        return NOTHING_FOUND
    _tell(
        f"starting: {shlex.join(command)}\n"
        f"it trains from zero until it has saved twice, for {arguments.look_for} at most; what "
        "it writes stays, and what it writes over is gone; Ctrl-C ends the look"
    )
    options = LookOptions(seconds, config.grace, config.stop_signal)
    look = look_at(command, options, requests)
    found = findings(look, command, source, asked)
    print_text(report(look, found, command))
    if found is None:
        return NOTHING_FOUND
    if arguments.write:
        path = write_settings(found.settings, Path.cwd())
        print_text(
            f"\nThe settings are in {path.name} now: orchestrator run -- {shlex.join(command)}"
        )
    return FOUND


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"cannot use --for = {text}: {error}") from None
    if seconds <= 0:
        raise ConfigError(f"cannot use --for = {text}: it must be longer than 0")
    return seconds


def _tell(text: str) -> None:
    print_text(text, to_stderr=True)
