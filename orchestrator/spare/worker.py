"""The spare: a process that has imported what trainers need, and forks the next one.

The supervisor starts it with the command's own interpreter and options, so that these are in force,
with the words of the command behind them, and with one end of a socket pair. Only modules of the
standard library and of site-packages are imported while it waits. Then a fork of it does what
``python script.py`` or ``python -m module`` would do, and it waits for the next time; where it may
not be forked, it does so itself (docs/reference/process-contract.md, The spare).
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import runpy
import socket
import sys
import threading
import time
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from orchestrator.ipc.messages import RECEIVE_BYTES, LineBuffer, Message, encode
from orchestrator.spare.fork import draw_anew, fork_to_parent, try_fork
from orchestrator.system.priority import lower_priority

# Not -m nor a file's path: both would put a directory on sys.path from which to import.
BOOT = (
    "import sys; sys.flags.safe_path or sys.path.pop(0); "
    "from orchestrator.spare.worker import main; main()"
)
OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")
FIRST_TO_BE_KILLED = "1000"
DIGEST_DIGITS = 4
LAST_THREAD_SECONDS = 0.5
PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class _Job:
    """What an attempt is given: its environment, its output, and the run lock."""

    environment: dict[str, str]
    output: int
    lock: int
    may_fork: bool


def command_line(
    python: list[str], descriptor: int, modules_file: Path, words: list[str]
) -> list[str]:
    """What starts a spare for the command ``python + words``, such as python -u + script.py 3."""
    return [*python, "-c", BOOT, str(descriptor), str(modules_file), *words]


def environment_digest(name: str) -> str | None:
    """Tells values of a variable apart, too short to give one away; None where it is not set."""
    value = os.environ.get(name)
    return None if value is None else hashlib.sha256(os.fsencode(value)).hexdigest()[:DIGEST_DIGITS]


def main() -> None:
    """Wait, and fork the trainer or be it; returns where its script has ended."""
    descriptor, modules_file, *words = sys.argv[1:]
    sys.orig_argv[-len(sys.argv) - 1 :] = words
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    own_score = _be_killed_first()
    packages = _packages()
    imports = threading.Thread(
        target=_get_ready, args=(Path(modules_file), connection), name="imports", daemon=True
    )
    imports.start()
    while True:
        job = _wait_for_job(connection)
        _join(imports)
        if _packages() != packages:
            _refuse(connection, "packages have changed since it was started", lasts=False)
        script = None if words[0].startswith("-m") else _read(words[0], connection)
        if _is_trainer(job, connection):
            break
        os.close(job.output)
        os.close(job.lock)
    connection.close()
    _restore_score(own_score)
    _take_over(job)
    _prepare_main(words)
    try:
        _run(words, script)
    except SystemExit:
        raise
    except BaseException:
        _hide_our_frames()
        raise


def _is_trainer(job: _Job, connection: socket.socket) -> bool:
    """Fork the trainer, or be it where a fork would not do; whether this process is the trainer."""

    def announce(pid: int) -> None:
        connection.send(encode({"type": "began", "pid": pid}))

    _flush()
    if job.may_fork and not _threads_beside(1) and try_fork():
        with contextlib.suppress(OSError):  # no room for another process
            if not fork_to_parent(announce):
                return False
            draw_anew()
            return True
    announce(os.getpid())
    return True


# --- waiting -------------------------------------------------------------------------------------


def _be_killed_first() -> str | None:
    """Have the kernel choose us before the trainer when memory is short; the score until now."""
    try:
        score = OOM_SCORE_FILE.read_text()
        OOM_SCORE_FILE.write_text(FIRST_TO_BE_KILLED)
    except OSError:
        return None  # not Linux
    return score


def _restore_score(score: str | None) -> None:
    if score is not None:
        OOM_SCORE_FILE.write_text(score)


def _packages() -> dict[str, int]:
    """The folders of installed packages, each with the time of its last change."""
    folders = [path for path in sys.path if path.endswith(PACKAGE_FOLDERS)]
    return {path: os.stat(path).st_mtime_ns for path in folders if os.path.isdir(path)}


def _wait_for_job(connection: socket.socket) -> _Job:
    """The next attempt; without a supervisor there is none."""
    buffer, descriptors = LineBuffer(), list[int]()
    while True:
        data, received, _, _ = socket.recv_fds(connection, RECEIVE_BYTES, 2)
        if not data:
            os._exit(0)
        descriptors += received
        for message in buffer.feed(data):
            output, lock = descriptors
            return _Job(message["environment"], output, lock, message["may_fork"])


def _get_ready(modules_file: Path, connection: socket.socket) -> None:
    """In a thread of low priority; main's could not be raised again afterwards."""
    lower_priority()
    try:
        _import_modules(modules_file, connection)
    except BaseException as error:  # nobody else would end the wait for us
        _refuse(connection, f"{type(error).__name__}: {error}")
    connection.send(encode({"type": "ready"}))


def _import_modules(modules_file: Path, connection: socket.socket) -> None:
    modules = json.loads(modules_file.read_text())
    for name in modules["third_party"]:
        # The script will meet what is wrong with it, or imports it in other circumstances.
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    if clash := sorted(sys.modules.keys() & set(modules["own"])):
        _refuse(connection, f"the script's own module {clash[0]} has the name of a loaded one")
    for name, digest in modules["environment"].items():
        if environment_digest(name) != digest:
            _refuse(connection, f"the script sets {name}, which modules may read on import")
    try_fork()
    if left := _threads_beside(2):
        _refuse(connection, f"the modules start {left} threads, which would keep low priority")


def _threads_beside(known: int) -> int:
    """How many there are more than ``known``; none where nobody says, and priorities are one."""
    try:
        return len(os.listdir("/proc/self/task")) - known
    except OSError:
        return 0


def _join(imports: threading.Thread) -> None:
    """Wait for its end, and for the system's word on that, which comes a moment after Python's."""
    imports.join()
    deadline = time.monotonic() + LAST_THREAD_SECONDS
    while _threads_beside(1) and time.monotonic() < deadline:
        time.sleep(0.001)


def _refuse(connection: socket.socket, reason: str, *, lasts: bool = True) -> NoReturn:
    """End, and leave the attempt to a cold start; whether the next spare would have to as well."""
    message: Message = {"type": "refused", "reason": reason, "lasts": lasts}
    connection.send(encode(message))
    os._exit(0)


# --- becoming the trainer ------------------------------------------------------------------------


def _read(script: str, connection: socket.socket) -> bytes:
    try:
        with io.open_code(os.path.abspath(script)) as file:
            return file.read()
    except OSError as error:
        _refuse(connection, str(error))  # a cold start says it in Python's words


def _take_over(job: _Job) -> None:
    os.dup2(job.output, 1)
    os.dup2(job.output, 2)
    os.close(job.output)
    os.set_inheritable(job.lock, True)
    os.environ.update(job.environment)
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.write_through:
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    importlib.invalidate_caches()


def _prepare_main(words: list[str]) -> None:
    """Have sys and ``__main__`` look as they do when the interpreter begins with the script."""
    sys.argv = list(words)
    main: dict[str, Any] = sys.modules["__main__"].__dict__
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]
    if words[0].startswith("-m"):
        sys.argv = ["-m", *words[1 if words[0] != "-m" else 2 :]]
        directory = os.getcwd()
    else:
        file = os.path.join(os.getcwd(), words[0])
        directory = os.path.dirname(os.path.realpath(file))
        main.update(__file__=file, __cached__=None, __loader__=SourceFileLoader("__main__", file))
    if not sys.flags.safe_path:
        sys.path.insert(0, directory)


def _run(words: list[str], script: bytes | None) -> None:
    main = sys.modules["__main__"].__dict__
    if script is not None:
        try:
            exec(compile(script, main["__file__"], "exec", dont_inherit=True), main)
        finally:
            _flush()  # so does the interpreter after a script, before it prints the traceback
    else:
        # What the interpreter itself calls for -m.
        runpy._run_module_as_main(words[0][2:] or words[1])  # type: ignore[attr-defined]


def _flush() -> None:
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(Exception):
            stream.flush()


def _hide_our_frames() -> None:
    """Have the traceback of the exception that is being raised begin with the script's frame."""
    hook = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        sys.excepthook = hook
        while trace is not None and trace.tb_frame.f_code is not _run.__code__:
            trace = trace.tb_next
        if trace is not None:
            sys.last_traceback = error.__traceback__ = trace = trace.tb_next
        hook(kind, error, trace)

    sys.excepthook = excepthook
