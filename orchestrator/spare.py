"""The spare: a process that has imported what the trainer needs, and becomes the next trainer.

The supervisor starts it with the command's own interpreter and options, so that these are in force,
with the words of the command behind them, and with one end of a socket pair. Only modules of the
standard library and of site-packages are imported while it waits. Then the process does what
``python script.py`` or ``python -m module`` would do (docs/process-contract.md, The spare).
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
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from orchestrator.priority import lower_priority
from orchestrator.wire import RECEIVE_BYTES, LineBuffer, Message, encode

# Not -m nor a file's path: both would put a directory on sys.path from which to import.
BOOT = (
    "import sys; sys.flags.safe_path or sys.path.pop(0); "
    "from orchestrator.spare import main; main()"
)
OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")
FIRST_TO_BE_KILLED = "1000"
DIGEST_DIGITS = 4


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
    """Wait, and be the trainer from the job on; returns when its script has ended."""
    descriptor, modules_file, *words = sys.argv[1:]
    sys.orig_argv[-len(sys.argv) - 1 :] = words
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    own_score = _be_killed_first()
    imports = threading.Thread(
        target=_get_ready, args=(Path(modules_file), connection), name="imports", daemon=True
    )
    imports.start()
    environment, output, lock = _wait_for_job(connection)
    imports.join()
    _restore_score(own_score)
    script = None if words[0].startswith("-m") else _read(words[0], connection)
    _take_over(environment, output, lock)
    connection.send(encode({"type": "began"}))
    connection.close()
    _prepare_main(words)
    try:
        _run(words, script)
    except SystemExit:
        raise
    except BaseException:
        _hide_our_frames()
        raise


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


def _wait_for_job(connection: socket.socket) -> tuple[dict[str, str], int, int]:
    """The environment, output and run lock of the attempt; without a supervisor there is none."""
    buffer, descriptors = LineBuffer(), list[int]()
    while True:
        data, received, _, _ = socket.recv_fds(connection, RECEIVE_BYTES, 2)
        if not data:
            os._exit(0)
        descriptors += received
        for message in buffer.feed(data):
            output, lock = descriptors
            return message["environment"], output, lock


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
        _refuse(connection, f"the script has a module {clash[0]} of its own, we know another one")
    for name, digest in modules["environment"].items():
        if environment_digest(name) != digest:
            _refuse(connection, f"the script sets {name}, which modules may read on import")
    _end_thread_pools()
    if left := len(_threads()) - 2:
        _refuse(connection, f"the modules start {left} threads, which would keep low priority")


def _end_thread_pools() -> None:
    """End the threads that BLAS libraries start when they are imported, with our priority.

    They do so before a fork, and start them anew, from a thread of ordinary priority, when they
    have something to compute.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _threads() -> list[str]:
    try:
        return os.listdir("/proc/self/task")
    except OSError:
        return ["main", "imports"]  # not Linux, where priorities are not lowered either


def _refuse(connection: socket.socket, reason: str) -> NoReturn:
    """End, and leave the attempt to a cold start."""
    message: Message = {"type": "refused", "reason": reason}
    connection.send(encode(message))
    os._exit(0)


# --- becoming the trainer ------------------------------------------------------------------------


def _read(script: str, connection: socket.socket) -> bytes:
    try:
        with io.open_code(os.path.abspath(script)) as file:
            return file.read()
    except OSError as error:
        _refuse(connection, str(error))  # a cold start says it in Python's words


def _take_over(environment: dict[str, str], output: int, lock: int) -> None:
    _flush()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.set_inheritable(lock, True)
    os.environ.update(environment)
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
