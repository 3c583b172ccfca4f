"""`orchestrator run`: opens the run and supervises the command in it."""

import asyncio
import os
import shutil
import signal
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import structlog

from orchestrator import logs
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import Journal, JournalEvent
from orchestrator.rundir import RunDir, RunLock, default_run_dir
from orchestrator.supervisor.supervisor import Ending, Supervisor


def run(arguments: Namespace) -> ExitStatus:
    """Supervise a training command."""
    command: list[str] = arguments.command
    options = {setting.name: getattr(arguments, setting.name) for setting in fields(Config)}
    config = Config.resolve(options, os.environ, Path.cwd())
    if shutil.which(command[0]) is None:
        raise ConfigError(f"cannot run {command[0]}: {_why_not(Path(command[0]))}")
    logs.configure()
    place = RunDir(config.run_dir or default_run_dir(_script_of(command)))
    place.create()
    lock = RunLock(place)
    lock.sign()
    store = Store.open(place, command)
    if _already_complete(place, command):
        return ExitStatus.COMPLETE
    interactive = sys.stdin.isatty() or sys.stderr.isatty()
    ending = asyncio.run(_supervise(config, command, store, lock, interactive))
    if ending.by_interrupt and ending.status in (
        ExitStatus.STOPPED_SAVED,
        ExitStatus.STOPPED_UNSAVED,
    ):
        # A shell loop around us ends too only if we die of the signal, as it expects.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return ending.status


async def _supervise(
    config: Config, command: list[str], store: Store, lock: RunLock, interactive: bool
) -> Ending:
    return await Supervisor(config, command, store, lock, interactive).run()


def _why_not(program: Path) -> str:
    """What keeps a command that is no program from being run."""
    if program.is_dir():
        return "it is a directory; name a program after --"
    if program.is_file():
        return f"it is not executable; write `python {program}`, or chmod +x {program}"
    return "there is no such program"


def _script_of(command: list[str]) -> str:
    """What gives a command's run its name: the script or module, else the program."""
    for index, word in enumerate(command[1:], start=1):
        if word == "-m" and index + 1 < len(command):
            return command[index + 1].rpartition(".")[2]
        if word == "-c":
            break
        if not word.startswith("-"):
            return word if word.endswith(".py") else command[0]
    return command[0]


def _already_complete(place: RunDir, command: list[str]) -> bool:
    if (done := place.done()) is None:
        return False
    events, _ = Journal(place.journal_file).read()
    started = [e for e in events if e["event"] == JournalEvent.RUN_STARTED]
    log = structlog.get_logger()
    if started and started[-1].get("command") != command:
        log.info("the run was complete, but the command has changed: continuing")
        return False
    log.info(
        f"training is complete already (step {done.get('step')}); to train further, change the "
        f"command's arguments or delete {place.done_file}"
    )
    return True
