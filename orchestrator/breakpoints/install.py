"""Wraps the methods of the breakpoints, and holds the process where one is armed."""

import functools
import importlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.breakpoints.table import BREAKPOINTS, SUPERVISOR, TRAINER, Breakpoint
from orchestrator.breakpoints.trial_files import (
    ARMED_BYTES,
    ARMED_FILE,
    HISTORY_FILE,
    SOCKET_LINK,
    VARIABLE,
    rank_of_trainer,
)


def install(part: str) -> None:
    """Wrap the methods of this part of a process, if the process belongs to a trial."""
    if VARIABLE not in os.environ:
        return
    role = SUPERVISOR if part == SUPERVISOR else TRAINER
    for point in BREAKPOINTS[part]:
        module, _, path = point.method.partition(":")
        class_name, _, method = path.partition(".")
        owner = getattr(importlib.import_module(module), class_name)
        wrap = _wrap_generator if point.each else _wrap
        setattr(owner, method, wrap(getattr(owner, method), point, role))


def _wrap(original: Callable[..., Any], point: Breakpoint, role: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(owner: Any, *arguments: Any, **options: Any) -> Any:
        counts = point.when(owner, *arguments)
        if counts and not point.after:
            _reach(point, role, owner)
            _record(role, point.record(owner, *arguments, **options))
        result = original(owner, *arguments, **options)
        if counts and point.after:
            _record(role, point.record(result, owner, *arguments, **options))
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
    _record_reached(directory, role, name)
    facts = _of_rank(role) | point.facts(owner)
    arming, from_step, *armed = _armed(directory).split()
    if name in armed and facts.get("step", 0) >= int(from_step):
        message = {"breakpoint": name, "arming": int(arming), "pid": os.getpid()}
        _hold(directory, message | facts)


def _of_rank(role: str) -> dict[str, Any]:
    return {"rank": rank_of_trainer()} if role == TRAINER else {}


def _armed(directory: str) -> str:
    """Return the arming's number, the first step at which to stop, and the armed breakpoints."""
    data = os.pread(_descriptor(directory, ARMED_FILE, os.O_RDONLY), ARMED_BYTES, 0)
    return data.decode().rstrip("\0") or "0 0"


def _hold(directory: str, message: dict[str, Any]) -> None:
    """Wait until chaos releases or kills this process.

    Raises the OSError that chaos asks for, or a RuntimeError with the text that it gives.
    """
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
    if (text := answer["exception"]) is not None:
        raise RuntimeError(text)


@functools.cache
def _record_reached(directory: str, role: str, name: str) -> None:
    """Record in the history that a breakpoint was reached, once in each process."""
    _append(directory, role, {"breakpoint": name})


def _record(role: str, record: dict[str, Any] | None) -> None:
    if record is not None and (directory := os.environ.get(VARIABLE)):
        _append(directory, role, record)


def _append(directory: str, role: str, record: dict[str, Any]) -> None:
    """Append a line to the history in one write, since the process may be killed at any moment."""
    who = {"pid": os.getpid()} | _of_rank(role)
    line = json.dumps({"at": time.monotonic(), **who, **record}).encode() + b"\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    os.write(_descriptor(directory, HISTORY_FILE, flags), line)


@functools.cache
def _descriptor(directory: str, name: str, flags: int) -> int:
    return os.open(os.path.join(directory, name), flags | os.O_CLOEXEC, 0o644)
