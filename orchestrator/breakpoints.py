"""Breakpoints at which `orchestrator chaos` holds a process, to kill it or to fail its disk.

Nothing is installed unless ORCHESTRATOR_BREAKPOINTS names the directory of a trial. Then a few
methods are wrapped. Each one records in the history that it was reached; where its breakpoint is
armed, it also asks chaos over a socket and waits for the answer. So every fault goes through the
program's own code, and a process that is killed dies exactly there.
"""

import contextlib
import functools
import importlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "ORCHESTRATOR_BREAKPOINTS"
ARMED_FILE = "armed"
# The path of the trial's directory may be too long for a socket.
SOCKET_LINK = "socket"
HISTORY_FILE = "history.jsonl"
# The armed breakpoints are written and read in one call of this size, so that none is seen halved.
ARMED_BYTES = 256
SUPERVISOR = "supervisor"
TRAINER = "trainer"


def _no_facts(owner: Any) -> dict[str, Any]:
    return {}


def _progress(session: Any) -> dict[str, Any]:
    return {"step": session.global_step, "epoch": session.epoch}


def _pid_of(attempt: Any) -> dict[str, Any]:
    return {"trainer": attempt.main.process.pid}


def _always(*arguments: Any) -> bool:
    return True


def _path_in_checkpoint(disk: Any, path: Path) -> bool:
    return path.parent.name.startswith(".writing-")


def _file_in_checkpoint(disk: Any, file: Any) -> bool:
    return _path_in_checkpoint(disk, Path(str(file.name)))


def _publishes(disk: Any, source: Path, target: Path) -> bool:
    return target.name.startswith("step-") and source.name.startswith(".writing-")


@dataclass(frozen=True)
class Breakpoint:
    """A method, written ``module:Class.method``, at whose start a process can be held.

    With ``after`` the process is held at the method's end, with ``each`` at each item of a
    generator. ``when`` says whether a call with these arguments counts. ``facts`` returns what
    chaos learns about the process beside its pid.
    """

    name: str
    method: str
    after: bool = False
    each: bool = False
    when: Callable[..., bool] = _always
    facts: Callable[[Any], dict[str, Any]] = _no_facts


_SAVING = (
    Breakpoint("create", "orchestrator.system.durable:Disk.create", when=_path_in_checkpoint),
    Breakpoint(
        "create", "orchestrator.system.durable:Disk.create_direct", when=_path_in_checkpoint
    ),
    Breakpoint("write", "orchestrator.checkpoint.digesting_writer:DigestingWriter.write"),
    Breakpoint("sync", "orchestrator.system.durable:Disk.sync", when=_file_in_checkpoint),
    Breakpoint("publish", "orchestrator.system.durable:Disk.rename", when=_publishes),
    Breakpoint("published", "orchestrator.system.durable:Disk.rename", after=True, when=_publishes),
)
BREAKPOINTS: dict[str, tuple[Breakpoint, ...]] = {
    SUPERVISOR: (
        *_SAVING,
        Breakpoint(
            "launch",
            "orchestrator.supervisor.attempt.attempt:Attempt.begin",
            after=True,
            facts=_pid_of,
        ),
        Breakpoint("delete", "orchestrator.checkpoint.store:Store.delete"),
        Breakpoint("remove", "orchestrator.system.durable:Disk.remove"),
    ),
    TRAINER: (
        *_SAVING,
        Breakpoint("load", "orchestrator.training.state.registered_objects:Registry.restore"),
        Breakpoint(
            "batch", "orchestrator.training.session:Session.batches", each=True, facts=_progress
        ),
        Breakpoint("step", "orchestrator.training.session:Session._end_step", facts=_progress),
        Breakpoint("poll", "orchestrator.training.session:Session.poll", facts=_progress),
        Breakpoint("edge", "orchestrator.training.loop.loop_state:LoopState.end_epoch", after=True),
        Breakpoint("begin", "orchestrator.snapshot.slots:Slots.begin", after=True),
        Breakpoint("commit", "orchestrator.snapshot.slots:Slots.commit"),
        Breakpoint("final", "orchestrator.training.session:Session._complete"),
        Breakpoint("done", "orchestrator.training.session:Session._complete", after=True),
        Breakpoint("left", "orchestrator.training.session:Session._leave", after=True),
    ),
}
# The metrics of a step are recorded before it is counted: their step is this much further.
_MEASURED_STEP_OFFSET = {"step": 1, "poll": 0}


def install(role: str) -> None:
    """Wrap the methods of this role, if the process belongs to a trial."""
    if VARIABLE not in os.environ:
        return
    for point in BREAKPOINTS[role]:
        module, _, path = point.method.partition(":")
        class_name, _, method = path.partition(".")
        owner = getattr(importlib.import_module(module), class_name)
        wrap = _wrap_generator if point.each else _wrap
        setattr(owner, method, wrap(getattr(owner, method), point, role))


def _wrap(original: Callable[..., Any], point: Breakpoint, role: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(owner: Any, *arguments: Any, **options: Any) -> Any:
        if not point.after and point.when(owner, *arguments):
            _reach(point, role, owner)
        # A step without metrics is a step; a poll without metrics tells nothing.
        if point.name == "step" or (point.name == "poll" and options):
            _record_metrics(owner, point.name, options)
        result = original(owner, *arguments, **options)
        if point.after and point.when(owner, *arguments):
            _reach(point, role, owner)
        return result

    return wrapper


def _wrap_generator(
    original: Callable[..., Any], point: Breakpoint, role: str
) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(owner: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for item in original(owner, *arguments, **options):
            _reach(point, role, owner)
            yield item

    return wrapper


# --- what a breakpoint does ----------------------------------------------------------------------


def _reach(point: Breakpoint, role: str, owner: Any) -> None:
    if not (directory := os.environ.get(VARIABLE)):
        return  # a process outside the trial was forked from one inside
    name = f"{role}:{point.name}"
    _record_reached(directory, name)
    facts = point.facts(owner)
    from_step, *armed = _armed(directory).split()
    if name in armed and facts.get("step", 0) >= int(from_step):
        _hold(directory, {"breakpoint": name, "pid": os.getpid(), **facts})


def _armed(directory: str) -> str:
    """Return the first step at which to stop, and the armed breakpoints; "0" if there are none."""
    data = os.pread(_descriptor(directory, ARMED_FILE, os.O_RDONLY), ARMED_BYTES, 0)
    return data.decode().rstrip("\0") or "0"


def _hold(directory: str, message: dict[str, Any]) -> None:
    """Wait until chaos releases or kills this process. Raises the OSError that it asks for."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(os.readlink(os.path.join(directory, SOCKET_LINK)))
            connection.sendall(json.dumps(message).encode() + b"\n")
            with connection.makefile() as answers:
                answer = json.loads(answers.readline())
    except (OSError, ValueError):
        # Chaos was killed, so no process is left to end this run.
        os._exit(1)
    if (number := answer["errno"]) is not None:
        raise OSError(number, os.strerror(number))


@functools.cache
def _record_reached(directory: str, name: str) -> None:
    """Record in the history that a breakpoint was reached, once in each process."""
    _record(directory, {"breakpoint": name})


def _record_metrics(session: Any, kind: str, metrics: dict[str, Any]) -> None:
    values = {}
    for name, value in metrics.items():
        # The session itself judges a value that is not a number.
        with contextlib.suppress(Exception):
            values[name] = float(value.detach() if hasattr(value, "detach") else value).hex()
    step = session.global_step + _MEASURED_STEP_OFFSET[kind]
    if directory := os.environ.get(VARIABLE):
        _record(directory, {"kind": kind, "step": step, "epoch": session.epoch, "metrics": values})


def _record(directory: str, record: dict[str, Any]) -> None:
    """Append a line to the history in one write, since the process may be killed at any moment."""
    line = json.dumps({"at": time.monotonic(), "pid": os.getpid(), **record}).encode() + b"\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    os.write(_descriptor(directory, HISTORY_FILE, flags), line)


@functools.cache
def _descriptor(directory: str, name: str, flags: int) -> int:
    return os.open(os.path.join(directory, name), flags | os.O_CLOEXEC, 0o644)
