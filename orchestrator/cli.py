"""The command line: parses, calls, prints, and ends the process with the right status."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from orchestrator import __version__, logs
from orchestrator.checkpoint.reading import Checkpoint, export_state, verify
from orchestrator.checkpoint.store import Store
from orchestrator.config import Config
from orchestrator.errors import ConfigError, NoValidCheckpointError, OrchestratorError
from orchestrator.exitcodes import ExitStatus
from orchestrator.journal import Journal, JournalEvent
from orchestrator.rundir import DEFAULT_PARENT, RunDir, RunLock, default_run_dir, lock_owner
from orchestrator.supervisor.status import status_from_disk
from orchestrator.supervisor.supervisor import Supervisor
from orchestrator.wire import Connection, Message

REPLY_SECONDS = 5.0
CHECKPOINT_WAIT_SECONDS = 600.0
STOP_MARGIN_SECONDS = 15.0
POLL_SECONDS = 0.1
WATCH_SECONDS = 1.0
PIPE_COLUMNS = 200

app = typer.Typer(
    help="Train so that you can stop or kill it any way you like and lose (almost) nothing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
checkpoints_app = typer.Typer(
    help="List, verify, pin and copy the checkpoints of a run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(checkpoints_app, name="checkpoints")

_HELP = {setting.name: setting.metadata["help"] for setting in fields(Config)}

RunDirArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[RUN_DIR]", help="The run; may be left out where there is only one in runs/."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StepOption = Annotated[
    int | None, typer.Option("--step", help="The checkpoint of this step. Default: the newest.")
]


def main() -> None:
    """Entry point; every error of ours becomes one line on standard error and its status."""
    try:
        app()
    except OrchestratorError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:
        # `orchestrator checkpoints list | head`: nobody reads the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="What to run: python train.py ...")
    ],
    run_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help=_HELP["run_dir"], show_default=False)
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="N", help=_HELP["keep"], show_default="3")
    ] = None,
    keep_best: Annotated[
        str | None, typer.Option(metavar="METRIC:MODE[:K]", help=_HELP["keep_best"])
    ] = None,
    every: Annotated[
        str | None, typer.Option(metavar="HOW_OFTEN", help=_HELP["every"], show_default="10m")
    ] = None,
    grace: Annotated[
        str | None, typer.Option(metavar="DURATION", help=_HELP["grace"], show_default="30s")
    ] = None,
    max_restarts: Annotated[
        str | None, typer.Option(metavar="N", help=_HELP["max_restarts"], show_default="5")
    ] = None,
) -> None:
    """Run a training command: save when stopped, restart when it fails, resume where it was.

    Running the same command again resumes. Exit status: 0 training is complete; 75 stopped, saved;
    74 stopped, the last steps not saved; 70 gave up; 65 no valid checkpoint; 78 configuration; 69
    the run is in use.
    """
    options = {
        "run_dir": run_dir,
        "keep": keep,
        "keep_best": keep_best,
        "every": every,
        "grace": grace,
        "max_restarts": max_restarts,
    }
    config = Config.resolve(options, os.environ, Path.cwd())
    if shutil.which(command[0]) is None:
        raise ConfigError(f"cannot run {command[0]}: there is no such program")
    logs.configure()
    place = RunDir(config.run_dir or default_run_dir(_script_of(command)))
    place.create()
    lock = RunLock(place)
    lock.sign()
    store = Store.open(place, command)
    if _already_complete(place, command):
        return
    interactive = sys.stdin.isatty() or sys.stderr.isatty()
    ending = asyncio.run(_supervise(config, command, store, lock, interactive))
    if ending.by_interrupt and ending.status in (
        ExitStatus.STOPPED_SAVED,
        ExitStatus.STOPPED_UNSAVED,
    ):
        # A shell loop around us ends too only if we die of the signal, as it expects.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    raise typer.Exit(ending.status)


async def _supervise(
    config: Config, command: list[str], store: Store, lock: RunLock, interactive: bool
) -> Any:
    return await Supervisor(config, command, store, lock, interactive).run()


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


@app.command()
def status(
    run_dir: RunDirArgument = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until the run ends.")] = False,
) -> None:
    """Show what a run is doing, how far it is, and what a kill now would lose."""
    place = _existing_run(run_dir)
    if as_json and not watch:
        print(json.dumps(_status_of(place)))
        return
    from rich.live import Live

    from orchestrator.tables import status_table

    if not watch:
        _console().print(status_table(_status_of(place)))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(auto_refresh=False) as live:
        while True:
            current = _status_of(place)
            if as_json:
                print(json.dumps(current), flush=True)
            else:
                live.update(status_table(current), refresh=True)
            if current["supervisor_pid"] is None:
                return
            time.sleep(WATCH_SECONDS)


@app.command()
def stop(run_dir: RunDirArgument = None) -> None:
    """Have a run save and stop, and wait for its end."""
    place = _existing_run(run_dir)
    owner = _owner_here(place)
    if owner is None:
        print(f"nothing works on {place.root}")
        return
    wait_seconds = STOP_MARGIN_SECONDS
    with _supervisor_of(owner) as connection:
        if connection is None:
            os.kill(owner["pid"], signal.SIGTERM)
        else:
            reply = _ask(connection, {"type": "stop"})
            wait_seconds += float(reply.get("grace_seconds", 0))
    deadline = time.monotonic() + wait_seconds
    while lock_owner(place) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"cannot see the end of {place.root} after {wait_seconds:g} s; "
                f"look with `orchestrator status {place.root}`"
            )
        time.sleep(POLL_SECONDS)
    final = _status_of(place)
    print(f"{final['state']} at step {final['step']}")


@app.command()
def checkpoint(run_dir: RunDirArgument = None) -> None:
    """Have a run save now and keep training; print the new checkpoint's path."""
    place = _existing_run(run_dir)
    owner = _owner_here(place)
    if owner is None:
        raise ConfigError(f"cannot save: nothing works on {place.root}")
    with _supervisor_of(owner) as connection:
        if connection is None:
            os.kill(owner["pid"], signal.SIGUSR2)
            print("asked the script to save at its next safe point")
            return
        reply = _ask(connection, {"type": "checkpoint"}, CHECKPOINT_WAIT_SECONDS)
    if reply.get("type") != "published":
        raise ConfigError(f"cannot save: {reply.get('problem', 'the supervisor ended')}")
    print(reply["path"])


@checkpoints_app.command("list")
def list_(run_dir: RunDirArgument = None, as_json: JsonOption = False) -> None:
    """List the checkpoints, newest last; every byte is verified."""
    _print_checkpoints(_open(run_dir), as_json)


@checkpoints_app.command("verify")
def verify_(run_dir: RunDirArgument = None, as_json: JsonOption = False) -> None:
    """Verify every checkpoint; ends with 65 if one is damaged. Changes nothing."""
    rows = _print_checkpoints(_open(run_dir), as_json)
    if any(not row["valid"] for row in rows):
        raise typer.Exit(ExitStatus.NO_VALID_CHECKPOINT)


@checkpoints_app.command()
def pin(run_dir: RunDirArgument = None, step: StepOption = None) -> None:
    """Keep a checkpoint whatever --keep says."""
    store = _open(run_dir)
    chosen = _choose(store, step)
    with _file_errors(f"cannot pin {chosen.path}"):
        store.pin(chosen)
    print(f"pinned {chosen.path}")


@checkpoints_app.command()
def unpin(run_dir: RunDirArgument = None, step: StepOption = None) -> None:
    """Let --keep decide about a checkpoint again."""
    store = _open(run_dir)
    chosen = _choose(store, step)
    with _file_errors(f"cannot unpin {chosen.path}"):
        store.unpin(chosen)
    print(f"unpinned {chosen.path}")


@checkpoints_app.command()
def export(
    run_dir: RunDirArgument = None,
    step: StepOption = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write; it must not exist.")
    ] = Path("checkpoint.pt"),
) -> None:
    """Copy a checkpoint's state.pt, verified on the way, to a file for torch.load."""
    chosen = _choose(_open(run_dir), step)
    with _file_errors(f"cannot write {output}"):
        export_state(chosen, output)
    print(f"wrote {output} (step {chosen.manifest.step})")


def _print_checkpoints(store: Store, as_json: bool) -> list[dict[str, Any]]:
    from orchestrator.listing import list_checkpoints

    rows = list_checkpoints(store)
    if as_json:
        print(json.dumps(rows))
    else:
        from orchestrator.tables import checkpoints_table

        _console().print(checkpoints_table(rows))
        if aside := store.quarantined():
            print(f"{len(aside)} in quarantine: {store.run.quarantine}")
    return rows


def _console() -> Any:
    from rich.console import Console

    # Into a file or a pipe nothing is cut off to fit a terminal that is not there.
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def _choose(store: Store, step: int | None) -> Checkpoint:
    """The newest verified checkpoint, or the newest of a step."""
    candidates = [c for c in store.all() if step is None or c.manifest.step == step]
    if not candidates:
        wanted = "" if step is None else f" of step {step}"
        raise NoValidCheckpointError(f"cannot find a checkpoint{wanted} in {store.run.checkpoints}")
    verify(candidates[-1])
    return candidates[-1]


def _existing_run(argument: Path | None) -> RunDir:
    """The run that the command line, the settings, or the contents of runs/ name."""
    root = argument or Config.resolve({}, os.environ, Path.cwd()).run_dir
    if root is None:
        found = sorted(path.parent for path in DEFAULT_PARENT.glob("*/run.json"))
        if len(found) != 1:
            names = ", ".join(map(str, found)) or "none"
            raise ConfigError(f"cannot tell which run is meant: name one (in runs/: {names})")
        root = found[0]
    place = RunDir(root)
    if not place.run_file.exists():
        raise ConfigError(f"cannot find a run in {root}: there is no {place.run_file}")
    return place


def _open(argument: Path | None) -> Store:
    return Store.open(_existing_run(argument), command=[])


def _status_of(place: RunDir) -> dict[str, Any]:
    owner = lock_owner(place)
    if owner is not None:
        with contextlib.suppress(OrchestratorError), _supervisor_of(owner) as connection:
            if connection is not None:
                return _ask(connection, {"type": "status"})
    status = status_from_disk(Store.open(place, command=[])).to_json()
    if owner is not None:
        # A script on its own, or a supervisor that is just beginning or on another machine.
        status |= {"state": "running", "supervisor_pid": owner.get("pid")}
    return status


def _owner_here(place: RunDir) -> dict[str, Any] | None:
    owner = lock_owner(place)
    if owner is not None and not isinstance(owner.get("pid"), int):
        raise ConfigError(
            f"cannot reach the run {place.root}: it is held by a process that has not signed the "
            "lock; try again in a moment"
        )
    if owner is not None and owner.get("host") not in (None, os.uname().nodename):
        raise ConfigError(
            f"cannot reach the run {place.root} from here: it runs on {owner['host']}, "
            f"process {owner.get('pid')}"
        )
    return owner


@contextlib.contextmanager
def _supervisor_of(owner: dict[str, Any]) -> Iterator[Connection | None]:
    """A connection to the supervisor; None for a script on its own, which has no socket."""
    path = owner.get("socket")
    if path is None:
        yield None
        return
    try:
        connection = Connection(path, REPLY_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"cannot reach the supervisor (process {owner.get('pid')}): {error}"
        ) from None
    try:
        yield connection
    finally:
        connection.close()


def _ask(
    connection: Connection, message: Message, timeout_seconds: float = REPLY_SECONDS
) -> Message:
    try:
        connection.send(message)
        connection.set_timeout(timeout_seconds)
        return connection.receive() or {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot talk to the supervisor: {error}") from None


@contextlib.contextmanager
def _file_errors(text: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{text}: {error.strerror}") from None
