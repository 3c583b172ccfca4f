"""`orchestrator run`: opens the run and supervises a training command in it."""

import asyncio
import faulthandler
import os
import shlex
import shutil
import sys
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
from orchestrator.rundir.orphans import OrphanEnding
from orchestrator.rundir.ownership import others_who_may_write
from orchestrator.rundir.paths import RunDir, default_run_dir
from orchestrator.spare.python_command import missing_script
from orchestrator.supervisor.lifeline import lifeline
from orchestrator.supervisor.supervisor import Ending, Supervisor
from orchestrator.supervisor.wiring import wire
from orchestrator.system.given_descriptors import given_descriptors
from orchestrator.system.recorded_command import recorded
from orchestrator.system.stop_signals import end_by_interrupt
from orchestrator.terminal.console import Console
from orchestrator.terminal.logs import Log, is_journal


def run(arguments: Namespace) -> int:
    """Supervise a training command in the foreground, or with --detach in the background."""
    command: list[str] = arguments.command
    options = {setting.name: getattr(arguments, setting.name) for setting in fields(Config)}
    config = Config.resolve(options, os.environ, Path.cwd())
    check_program(command[0])
    if (script := missing_script(command)) is not None:
        raise ConfigError(
            f"cannot find the script {script} in {Path.cwd()}: correct its name, or change to its "
            "directory"
        )
    run_dir = RunDir(config.run_dir or default_run_dir(script_of(command) or command[0]))
    _check_adoption(config, run_dir)
    if arguments.detach:
        return detach.start(run_dir, ["run", *option_words(options), "--", *command])
    # When systemd's watchdog sends SIGABRT, the stacks show where the supervisor was stuck.
    faulthandler.enable()
    given = given_descriptors()
    with lifeline(run_dir.lock_file, _orphan_ending(config)):
        console = Console()
        log = Log(console.screen, in_json=_logs_json(config))
        try:
            ending = _run(config, command, run_dir, console, log, given)
        finally:
            log.close()
    if ending.by_interrupt and ending.status in (
        ExitStatus.STOPPED_SAVED,
        ExitStatus.STOPPED_UNSAVED,
    ):
        end_by_interrupt()
    return ending.status


def _logs_json(config: Config) -> bool:
    if config.log_format == "auto":
        # The journal makes an entry of each line: a paragraph would come apart.
        return is_journal(sys.stderr.fileno(), os.environ)
    return config.log_format == "json"


def _orphan_ending(config: Config) -> OrphanEnding:
    return OrphanEnding(config.grace, config.stop_signal)


def _run(
    config: Config,
    command: list[str],
    run_dir: RunDir,
    console: Console,
    log: Log,
    given: tuple[int, ...],
) -> Ending:
    notifier = Notifier.from_environment(os.environ)
    run_dir.create()
    lock = RunLock(run_dir, _orphan_ending(config))
    lock.write_owner()
    log.record_in(run_dir.log_file, config.log_size)
    if (others := others_who_may_write(run_dir.root)) is not None:
        structlog.get_logger().warning(others)
    disposal = ScriptFiles(config.adopt) if config.adopt else OwnFiles()
    store = Store.open(run_dir, command, script_of(command), disposal)
    for sentence in store.unrecognised():
        structlog.get_logger().warning(f"in {run_dir.checkpoints} {sentence}, and is passed over")
    _refuse_other_checkpoints(store, adopting=config.adopt is not None)
    if _already_complete(run_dir, command):
        notifier.send("READY=1")  # systemd counts a service that ends before this as failed
        return Ending(ExitStatus.COMPLETE, by_interrupt=False)
    supervisor = Supervisor(wire(config, command, store, lock, console, notifier), given)
    return asyncio.run(supervisor.run())


def _check_adoption(config: Config, run_dir: RunDir) -> None:
    """Check that the options of adopt mode work together. Raises ConfigError."""
    given = config.resume_arg.template
    if given and config.adopt is None:
        raise ConfigError(
            "cannot use --resume-arg without --adopt, which names the checkpoints to resume from; "
            "give both, or neither"
        )
    if config.adopt and config.resume_arg.needs_step and not config.adopt.tells_steps:
        raise ConfigError(
            f"cannot fill in {{step}} of --resume-arg: the last name in --adopt "
            f"{config.adopt.text} has no wildcard, and so holds no step; use {{path}}"
        )
    if config.adopt and any(
        map(config.adopt.covers, RunDir(Path(os.path.abspath(run_dir.root))).all_paths)
    ):
        raise ConfigError(
            f"cannot adopt {config.adopt.text}: the pattern also matches the run directory "
            f"{run_dir.root}, or a file in it; write a narrower pattern, or use another --run-dir"
        )


def _refuse_other_checkpoints(store: Store, *, adopting: bool) -> None:
    """Check that a run holds a script's own checkpoints only, or none. Raises ConfigError."""
    # Each start checks the newest, so all others are like it.
    if (checkpoint := next(store.newest_first(), None)) is not None:
        is_adopted = checkpoint.manifest.adopted is not None
        if is_adopted and not adopting:
            raise ConfigError(
                f"cannot resume without --adopt: the script itself has saved {checkpoint.path}; "
                "give --adopt again, or use another --run-dir"
            )
        if adopting and not is_adopted:
            raise ConfigError(
                f"cannot use --adopt in {store.run.root}: a Session has saved {checkpoint.name} "
                "there, not the script itself; leave --adopt out, or use another --run-dir"
            )


def check_program(program: str) -> None:
    """Check that a command can be started. Raises ConfigError."""
    if shutil.which(program) is None:
        raise ConfigError(f"cannot run {program}: {_why_not(Path(program))}")


def _why_not(program: Path) -> str:
    """Return why a program cannot be started, and what to write instead."""
    if program.is_dir():
        return "it is a directory; name a program after --"
    if program.is_file():
        return f"it is not executable; write `python {program}`, or chmod +x {program}"
    return "there is no such program; correct its name, or add its directory to PATH"


def script_of(command: list[str]) -> str | None:
    """Return what names the run: the first word that is a file, else the module of ``-m``.

    A file after ``-m`` is more likely data for that module, unless the module starts it as a
    script.
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


def _already_complete(run_dir: RunDir, command: list[str]) -> bool:
    if (done := run_dir.read_done()) is None:
        return False
    log = structlog.get_logger()
    if done.get("command") != recorded(command):
        log.info(
            "the run was complete, but the command has changed: continuing it; another training, "
            "such as the next fold, needs another --run-dir",
            completed_by=shlex.join(map(str, done.get("command") or [])),
        )
        return False
    if done.get("step") == 0:
        log.warning(
            "training is complete already, but no step was ever counted: call session.step() "
            f"after each optimizer step, delete {run_dir.done_file} and run again"
        )
        return True
    log.info(
        f"training is complete already (step {done.get('step')}); to train further, change the "
        f"command's arguments; if you have changed the script instead, delete {run_dir.done_file}"
    )
    return True
