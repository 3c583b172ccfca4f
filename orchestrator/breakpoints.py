"""Places at which `orchestrator chaos` holds a process: to kill it, or to refuse it the disk.

Nothing is installed unless ORCHESTRATOR_BREAKPOINTS names the directory of a trial. Then a few
methods are wrapped: each tells the history what has been reached, and when its place is armed asks
chaos over a socket and waits for the answer. So all faults go through the program's own paths, and
a process that is killed dies exactly there.
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
# The trial's directory may lie too deep for the path of a socket.
SOCKET_LINK = "socket"
HISTORY_FILE = "history.jsonl"
# What is armed is written at once and read at once, always so many bytes.
ARMED_BYTES = 256
SUPERVISOR = "supervisor"
TRAINER = "trainer"


def _nothing(owner: Any) -> dict[str, Any]:
    return {}


def _progress(session: Any) -> dict[str, Any]:
    return {"step": session.global_step, "epoch": session.epoch}


def _pid_of(attempt: Any) -> dict[str, Any]:
    return {"trainer": attempt.child.pid}


def _always(*arguments: Any) -> bool:
    return True


def _in_a_checkpoint(disk: Any, path: Path) -> bool:
    return path.parent.name.startswith(".writing-")


def _of_a_checkpoint(disk: Any, file: Any) -> bool:
    return _in_a_checkpoint(disk, Path(str(file.name)))


def _publishes(disk: Any, source: Path, target: Path) -> bool:
    return target.name.startswith("step-") and source.name.startswith(".writing-")


@dataclass(frozen=True)
class Breakpoint:
    """A method, named ``module:Class.method``, at whose beginning a process can be held.

    With ``after`` it is held at its end, with ``each`` at each item of a generator. ``when`` says
    of the arguments whether it counts; ``facts`` tells chaos more.
    """

    name: str
    method: str
    after: bool = False
    each: bool = False
    when: Callable[..., bool] = _always
    facts: Callable[[Any], dict[str, Any]] = _nothing


_SAVING = (
    Breakpoint("create", "orchestrator.system.durable:Disk.create", when=_in_a_checkpoint),
    Breakpoint("create", "orchestrator.system.durable:Disk.create_direct", when=_in_a_checkpoint),
    Breakpoint("write", "orchestrator.checkpoint.digesting_writer:DigestingWriter.write"),
    Breakpoint("sync", "orchestrator.system.durable:Disk.sync", when=_of_a_checkpoint),
    Breakpoint("publish", "orchestrator.system.durable:Disk.rename", when=_publishes),
    Breakpoint("published", "orchestrator.system.durable:Disk.rename", after=True, when=_publishes),
)
PLACES: dict[str, tuple[Breakpoint, ...]] = {
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
        Breakpoint("load", "orchestrator.training.state.registry:Registry.restore"),
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
# The metrics of a step are told before it is passed, and so belong to the step that they end.
_MEASURING = {"step": 1, "poll": 0}


def install(role: str) -> None:
    """Wrap the methods of this role, in a trial; otherwise do nothing at all."""
    if VARIABLE not in os.environ:
        return
    for place in PLACES[role]:
        module, _, path = place.method.partition(":")
        class_name, _, method = path.partition(".")
        owner = getattr(importlib.import_module(module), class_name)
        wrap = _wrap_generator if place.each else _wrap
        setattr(owner, method, wrap(getattr(owner, method), place, role))


def _wrap(original: Callable[..., Any], place: Breakpoint, role: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(owner: Any, *arguments: Any, **options: Any) -> Any:
        if not place.after and place.when(owner, *arguments):
            _reach(place, role, owner)
        if place.name in _MEASURING and options:
            _tell_metrics(owner, place.name, options)
        result = original(owner, *arguments, **options)
        if place.after and place.when(owner, *arguments):
            _reach(place, role, owner)
        return result

    return wrapper


def _wrap_generator(
    original: Callable[..., Any], place: Breakpoint, role: str
) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(owner: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for item in original(owner, *arguments, **options):
            _reach(place, role, owner)
            yield item

    return wrapper


# --- what a place does ---------------------------------------------------------------------------


def _reach(place: Breakpoint, role: str, owner: Any) -> None:
    if not (directory := os.environ.get(VARIABLE)):
        return  # forked, without a trial of its own, from a process that was in one
    name = f"{role}:{place.name}"
    _tell_reached(directory, name)
    facts = place.facts(owner)
    words = _armed(directory).split()
    if name in words[1:] and facts.get("step", 0) >= int(words[0]):
        _hold(directory, {"place": name, "pid": os.getpid(), **facts})


def _armed(directory: str) -> str:
    """The least step, and the places at which to stop; "0" where there is none."""
    data = os.pread(_descriptor(directory, ARMED_FILE, os.O_RDONLY), ARMED_BYTES, 0)
    return data.decode().rstrip("\0") or "0"


def _hold(directory: str, message: dict[str, Any]) -> None:
    """Wait until chaos lets us go on, or kills us. Raises the OSError that it asks for."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(os.readlink(os.path.join(directory, SOCKET_LINK)))
            connection.sendall(json.dumps(message).encode() + b"\n")
            with connection.makefile() as answers:
                answer = json.loads(answers.readline())
    except (OSError, ValueError):
        # Chaos has been killed: nobody would ever end this run, which nobody wants.
        os._exit(1)
    if (number := answer["errno"]) is not None:
        raise OSError(number, os.strerror(number))


@functools.cache
def _tell_reached(directory: str, name: str) -> None:
    """Tell the history, once a process."""
    _tell(directory, {"place": name})


def _tell_metrics(session: Any, kind: str, metrics: dict[str, Any]) -> None:
    values = {}
    for name, value in metrics.items():
        # What is no number the session itself judges.
        with contextlib.suppress(Exception):
            values[name] = float(value.detach() if hasattr(value, "detach") else value).hex()
    step = session.global_step + _MEASURING[kind]
    if directory := os.environ.get(VARIABLE):
        _tell(directory, {"kind": kind, "step": step, "epoch": session.epoch, "metrics": values})


def _tell(directory: str, record: dict[str, Any]) -> None:
    """Append a line at once: the process may be killed at any moment."""
    line = json.dumps({"at": time.monotonic(), "pid": os.getpid(), **record}).encode() + b"\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    os.write(_descriptor(directory, HISTORY_FILE, flags), line)


@functools.cache
def _descriptor(directory: str, name: str, flags: int) -> int:
    return os.open(os.path.join(directory, name), flags | os.O_CLOEXEC, 0o644)
