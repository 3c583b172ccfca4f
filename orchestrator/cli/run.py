"""`orchestrator run`: opens the run and supervises the command in it."""

import asyncio
import faulthandler
import os
import shutil
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import structlog

from orchestrator.adopt.script_files import ScriptFiles
from orchestrator.checkpoint.disposal import OwnFiles
from orchestrator.checkpoint.store import Store
from orchestrator.cli import detach
from orchestrator.config import Config, option_words
from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.systemd.notify import Notifier
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.ownership import others_who_may_write
from orchestrator.rundir.paths import RunDir, default_run_dir
from orchestrator.supervisor.supervisor import Ending, Supervisor
from orchestrator.system.recorded_command import recorded
from orchestrator.system.stop_signals import end_by_interrupt
from orchestrator.terminal.console import Console
from orchestrator.terminal.logs import Log


def run(arguments: Namespace) -> int:
    """Supervise a training command, here or in the background."""
    command: list[str] = arguments.command
    options = {setting.name: getattr(arguments, setting.name) for setting in fields(Config)}
    config = Config.resolve(options, os.environ, Path.cwd())
    check_program(command[0])
    place = RunDir(config.run_dir or default_run_dir(script_of(command) or command[0]))
    _check_adoption(config, place)
    if arguments.detach:
        return detach.start(place, ["run", *option_words(options), "--", *command])
    # A watchdog's SIGABRT is to leave behind what we were stuck in.
    faulthandler.enable()
    console = Console()
    log = Log(console.screen)
    try:
        ending = _run(config, command, place, console, log)
    finally:
        log.close()
    if ending.by_interrupt and ending.status in (
        ExitStatus.STOPPED_SAVED,
        ExitStatus.STOPPED_UNSAVED,
    ):
        end_by_interrupt()
    return ending.status


def _run(config: Config, command: list[str], place: RunDir, console: Console, log: Log) -> Ending:
    notifier = Notifier.from_environment(os.environ)
    place.create()
    lock = RunLock(place)
    lock.write_owner()
    log.record_in(place.log_file)
    if (others := others_who_may_write(place.root)) is not None:
        structlog.get_logger().warning(others)
    disposal = ScriptFiles() if config.adopt else OwnFiles()
    store = Store.open(place, command, script_of(command), disposal)
    for sentence in store.unrecognised():
        structlog.get_logger().warning(f"in {place.checkpoints} {sentence}, and is passed over")
    _refuse_mixture(store, by_script=config.adopt is not None)
    if _already_complete(place, command):
        notifier.send("READY=1")  # systemd calls it a failure when a service ends before that
        return Ending(ExitStatus.COMPLETE, by_interrupt=False)
    return asyncio.run(Supervisor(config, command, store, lock, console, notifier).run())


def _check_adoption(config: Config, place: RunDir) -> None:
    """Refuse options that cannot work together, before training for hours. Raises ConfigError."""
    given = config.resume_arg.template
    if given and config.adopt is None:
        raise ConfigError(
            "cannot use --resume-arg without --adopt, which names the checkpoints to resume from"
        )
    if config.adopt and config.resume_arg.needs_step and not config.adopt.tells_steps:
        raise ConfigError(
            f"cannot fill {{step}} of --resume-arg: the last name in --adopt {config.adopt.text} "
            "has no wildcard, and so tells no step; use {path}"
        )
    if config.adopt and any(
        map(config.adopt.covers, RunDir(Path(os.path.abspath(place.root))).all_paths)
    ):
        raise ConfigError(
            f"cannot adopt {config.adopt.text}: that takes in the run directory {place.root}, or "
            "what lies there; name what the script saves more closely, or take another --run-dir"
        )


def _refuse_mixture(store: Store, *, by_script: bool) -> None:
    """What a Session has saved is nothing for --adopt, nor the other way. Raises ConfigError."""
    for checkpoint in store.all():
        is_scripts = checkpoint.manifest.adopted is not None
        if is_scripts and not by_script:
            raise ConfigError(
                f"cannot go on without --adopt: {checkpoint.path} is what the script itself has "
                "saved; give --adopt again, or take another --run-dir"
            )
        if by_script and not is_scripts:
            raise ConfigError(
                f"cannot use --adopt in {store.run.root}: {checkpoint.name} there was not saved by "
                "the script itself; leave --adopt out, or take another --run-dir"
            )


def check_program(program: str) -> None:
    """Refuse a command that is no program. Raises ConfigError."""
    if shutil.which(program) is None:
        raise ConfigError(f"cannot run {program}: {_why_not(Path(program))}")


def _why_not(program: Path) -> str:
    """What keeps a command that is no program from being run."""
    if program.is_dir():
        return "it is a directory; name a program after --"
    if program.is_file():
        return f"it is not executable; write `python {program}`, or chmod +x {program}"
    return "there is no such program"


def script_of(command: list[str]) -> str | None:
    """What gives a command's run its name: the first word that is a file, else the module of -m.

    After -m a file is more likely that module's data, unless it is a script that the module starts.
    """
    module = None
    words = command[1:]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "-m" and module is None:
            module = following.rpartition(".")[2]
        elif (
            (module is None or word.endswith(".py"))
            and Path(word).is_file()
            and not Path(word).name.startswith("python")
        ):
            return word
    return module or None


def _already_complete(place: RunDir, command: list[str]) -> bool:
    if (done := place.read_done()) is None:
        return False
    log = structlog.get_logger()
    if done.get("command") != recorded(command):
        log.info(
            "the run was complete, but the command has changed: continuing it; a training of its "
            "own, such as the next fold, needs another --run-dir"
        )
        return False
    log.info(
        f"training is complete already (step {done.get('step')}); to train further, change the "
        f"command's arguments or delete {place.done_file}"
    )
    return True
