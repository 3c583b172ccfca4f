"""`orchestrator run`: opens the run and supervises a training command in it.

Its options are the settings of config.py; parser.py adds them to the command line.
"""

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
from orchestrator.checkpoint.disposal import FilesOfAnyRun, OwnFiles
from orchestrator.checkpoint.store import Store
from orchestrator.cli import detach
from orchestrator.cli.start_traces import StartTraces
from orchestrator.config import Config, option_words
from orchestrator.config_file import others_who_may_set
from orchestrator.errors import ConfigError
from orchestrator.exitcodes import ExitStatus
from orchestrator.hosts.systemd.notify_socket import Notifier
from orchestrator.ipc.stale_sockets import remove_stale_sockets
from orchestrator.rundir.completion import (
    CONTINUE_VARIABLE,
    has_other_arguments,
    refuse_other_arguments,
    words_of,
)
from orchestrator.rundir.lock import RunLock
from orchestrator.rundir.name_pattern import run_dir_of
from orchestrator.rundir.orphans import OrphanEnding
from orchestrator.rundir.ownership import others_who_may_write
from orchestrator.rundir.paths import RunDir
from orchestrator.rundir.program import script_of
from orchestrator.rundir.start import OTHER_EXPERIMENT, Start
from orchestrator.rundir.trust import TRUST_VARIABLE, refuse_foreign
from orchestrator.supervisor.lifeline import lifeline
from orchestrator.supervisor.supervisor import Ending, Supervisor
from orchestrator.supervisor.wiring import wire
from orchestrator.system.given_descriptors import given_descriptors
from orchestrator.system.python_command import missing_script
from orchestrator.system.stop_signals import end_by_interrupt
from orchestrator.telemetry.textfile import check_metrics_file
from orchestrator.terminal.console import Console
from orchestrator.terminal.logs import Log, is_journal


def run(arguments: Namespace) -> int:
    """Supervise a training command in the foreground, or with --detach in the background."""
    command: list[str] = arguments.command
    options = {setting.name: getattr(arguments, setting.name) for setting in fields(Config)}
    config = Config.resolve(options, os.environ, Path.cwd(), command)
    check_command(command)
    start = Start.of_command(command)
    run_dir = RunDir(run_dir_of(config.run_dir, script_of(command) or command[0], start))
    _check_adoption(config, run_dir)
    if config.metrics_file is not None:
        check_metrics_file(config.metrics_file)
    if arguments.detach:
        words = option_words(options)
        words += ["--continue"] if arguments.accept_other else []
        words += ["--trust"] if arguments.trust else []
        return detach.start(run_dir, ["run", *words, "--", *command])
    # When systemd's watchdog sends SIGABRT, the stacks show where the supervisor was stuck.
    faulthandler.enable()
    given = given_descriptors()
    accept_other = arguments.accept_other or os.environ.get(CONTINUE_VARIABLE) == "on"
    traces = StartTraces(run_dir)
    lock: RunLock | None = None
    with lifeline(run_dir, _orphan_ending(config)) as name_lock:
        console = Console()
        log = Log(console.screen, in_json=_logs_json(config))
        try:
            run_dir.create()
            trusted = arguments.trust or os.environ.get(TRUST_VARIABLE) == "on"
            refuse_foreign(run_dir, trusted=trusted)
            lock = RunLock(run_dir, _orphan_ending(config))
            name_lock(lock)
            _take_over(config, run_dir, lock, log)
            store = _open_store(config, run_dir, start, accept_other=accept_other)
            ending = _run(config, store, lock, console, given)
        finally:
            log.close()
            traces.remove_if_nothing_ran(lock)
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


def _take_over(config: Config, run_dir: RunDir, lock: RunLock, log: Log) -> None:
    """Sign the lock, clean up after its previous owner, and begin the log."""
    # Before the note of the owner is replaced: nothing else knows where its socket is.
    remove_stale_sockets(run_dir.root, lock.previous_owner.get("socket"))
    lock.write_owner()
    run_dir.remove_temporaries()
    log.record_in(run_dir.log_file, config.log_size)
    for others in (others_who_may_write(run_dir.root), others_who_may_set(Path.cwd())):
        if others is not None:
            structlog.get_logger().warning(others)


def _open_store(config: Config, run_dir: RunDir, start: Start, *, accept_other: bool) -> Store:
    """Open the run's store; raise ConfigError where this command must not train in the run."""
    command = start.command
    disposal = ScriptFiles(config.adopt) if config.adopt else OwnFiles()
    store = Store.open(
        run_dir, command, script_of(command), disposal, start, accept_other=accept_other
    )
    for sentence in store.unrecognised():
        structlog.get_logger().warning(f"in {run_dir.checkpoints} {sentence}, and is passed over")
    _refuse_other_checkpoints(store, adopting=config.adopt is not None)
    if not accept_other:
        refuse_other_arguments(run_dir, start)
    return store


def _run(
    config: Config, store: Store, lock: RunLock, console: Console, given: tuple[int, ...]
) -> Ending:
    assert store.start is not None
    notifier = Notifier.from_environment(os.environ)
    if _already_complete(store.run, store.start):
        store.sweep()  # the process that completed it may have been killed
        notifier.send("READY=1")  # systemd counts a service that ends before this as failed
        return Ending(ExitStatus.COMPLETE, by_interrupt=False)
    if config.adopt is not None:
        _tell_differences(store, store.start)
    parts = wire(config, store.start.command, store, lock, console, notifier)
    return asyncio.run(Supervisor(parts, given).run())


def _tell_differences(store: Store, start: Start) -> None:
    """Tell what differs from the start that made the newest checkpoint; a session tells itself."""
    newest = next(store.newest_first(), None)
    earlier = None if newest is None else Start.from_json(newest.manifest.start)
    if newest is not None and earlier and (lines := start.differences_from(earlier)):
        structlog.get_logger().warning(
            f"{newest.name} was made by another start; {OTHER_EXPERIMENT}", details=lines
        )


def _check_adoption(config: Config, run_dir: RunDir) -> None:
    """Check that the options of adopt mode work together. Raises ConfigError."""
    given = config.resume_arg.template
    if given and config.adopt is None:
        raise ConfigError(
            "cannot use --resume-arg without --adopt, which names the checkpoints to resume from; "
            "give both, or neither"
        )
    if config.adopt is not None and config.world_size() > 1:
        raise ConfigError(
            "cannot use --adopt with --nproc-per-node yet: several ranks need a Session; let the "
            "script open one, or start the one process that torchrun is"
        )
    if config.adopt is not None:
        config.resume_arg.check_names(config.adopt.names)
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
    # The newest tells of what kind the run is; one of the other kind is never resumed from.
    any_kind = Store(store.run, store.run_id, disposal=FilesOfAnyRun())
    if (checkpoint := next(any_kind.newest_first(), None)) is not None:
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


def check_command(command: list[str]) -> None:
    """Check that a command's program and script are there. Raises ConfigError."""
    check_program(command[0])
    if (script := missing_script(command)) is not None:
        raise ConfigError(
            f"cannot find the script {script} in {Path.cwd()}: correct its name, or change to its "
            "directory"
        )


def check_program(program: str) -> None:
    """Check that a command can be started. Raises ConfigError."""
    if shutil.which(program) is None:
        raise ConfigError(f"cannot run {program}: {_why_not(Path(program))}")


def _why_not(program: Path) -> str:
    """Return why a program cannot be started, and what to write instead."""
    if os.path.isdir(program):
        return "it is a directory; name a program after --"
    if os.path.isfile(program):
        return f"it is not executable; write `python {program}`, or chmod +x {program}"
    return "there is no such program; correct its name, or add its directory to PATH"


def _already_complete(run_dir: RunDir, start: Start) -> bool:
    if (done := run_dir.read_done()) is None:
        return False
    log = structlog.get_logger()
    if has_other_arguments(done, start):
        log.info(
            "the run was complete; it is trained further with other arguments (--continue)",
            completed_by=shlex.join(words_of(done.get("command"))),
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
        "command's arguments and add --continue; if you have changed the script instead, delete "
        f"{run_dir.done_file}"
    )
    earlier = Start.from_json(done.get("start"))
    if earlier is not None and (lines := start.differences_from(earlier)):
        log.warning("it was trained by another start, and this one trains nothing", details=lines)
    return True
