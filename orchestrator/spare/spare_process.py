"""The spare process: imports the modules of the trainer, and forks the next trainer.

The supervisor starts it with the command's interpreter and options, with the rest of the command as
arguments, and with one end of a socket pair. While it waits it imports only modules of the standard
library and of site-packages. For an attempt, a fork of it does what ``python script.py`` or
``python -m module`` would do, and the spare waits for the next attempt. If it may not be forked, it
becomes the trainer itself (docs/reference/process-contract.md, The spare).
"""

import contextlib
import hashlib
import importlib
import io
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
from orchestrator.rundir.paths import real_parents_of
from orchestrator.rundir.records import MAXIMUM_JSON_BYTES
from orchestrator.spare.fork import fork_to_parent, reseed_generators, try_fork
from orchestrator.system.json_input import parse_object
from orchestrator.system.priority import lower_priority
from orchestrator.system.regular_files import read_regular

# Neither -m nor a file's path, since both would add a directory to sys.path.
BOOT_CODE = (
    "import sys; sys.flags.safe_path or sys.path.pop(0); "
    "from orchestrator.spare.spare_process import main; main()"
)
OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")
HIGHEST_OOM_SCORE = "1000"
DIGEST_DIGITS = 4
THREAD_EXIT_SECONDS = 0.5
PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class _Job:
    """The supervisor's order to start an attempt; ``output`` and ``lock`` are descriptors."""

    environment: dict[str, str]
    output: int
    lock: int
    may_fork: bool


def command_line(
    python: list[str], descriptor: int, modules_file: Path, words: list[str]
) -> list[str]:
    """Return the command that starts a spare for ``python + words``: python -u + script.py 3."""
    return [*python, "-c", BOOT_CODE, str(descriptor), str(modules_file), *words]


def environment_digest(name: str) -> str | None:
    """Return a digest of a variable's value, too short to reveal it; None if it is not set."""
    value = os.environ.get(name)
    return None if value is None else hashlib.sha256(os.fsencode(value)).hexdigest()[:DIGEST_DIGITS]


def main() -> None:
    """Run the spare; in a process that becomes the trainer, return after the script has ended."""
    descriptor, modules_file, *words = sys.argv[1:]
    sys.orig_argv[-len(sys.argv) - 1 :] = words
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    original_score = _raise_oom_score()
    packages = _package_folders()
    imports = threading.Thread(
        target=_prepare, args=(Path(modules_file), connection), name="imports", daemon=True
    )
    imports.start()
    while True:
        job = _wait_for_job(connection)
        _join_imports(imports)
        if _package_folders() != packages:
            _refuse(connection, "packages have changed since it was started", is_permanent=False)
        script = None if words[0].startswith("-m") else _read_script(words[0], connection)
        if _start_trainer(job, connection):
            break
        os.close(job.output)
        os.close(job.lock)
    connection.close()
    _restore_oom_score(original_score)
    _apply_job(job)
    _prepare_main(words)
    try:
        _run_script(words, script)
    except SystemExit:
        raise
    except BaseException:
        _hide_worker_frames()
        raise


def _start_trainer(job: _Job, connection: socket.socket) -> bool:
    """Fork the trainer, or become it if a fork is not safe; return True in the trainer."""

    def announce(pid: int) -> None:
        connection.send(encode({"type": "began", "pid": pid}))

    _flush()
    if job.may_fork and not _count_extra_threads(1) and try_fork():
        with contextlib.suppress(OSError):  # the system allows no further process
            if not fork_to_parent(announce):
                return False
            reseed_generators()
            return True
    announce(os.getpid())
    return True


# --- waiting -------------------------------------------------------------------------------------


def _raise_oom_score() -> str | None:
    """Make the OOM killer prefer this process to the trainer, and return the original score."""
    try:
        score = OOM_SCORE_FILE.read_text()
        OOM_SCORE_FILE.write_text(HIGHEST_OOM_SCORE)
    except OSError:
        return None  # not Linux
    return score


def _restore_oom_score(score: str | None) -> None:
    if score is not None:
        OOM_SCORE_FILE.write_text(score)


def _package_folders() -> dict[str, int]:
    """Return the folders of installed packages, each with the time of its last change in ns."""
    folders = [path for path in sys.path if path.endswith(PACKAGE_FOLDERS)]
    return {path: os.stat(path).st_mtime_ns for path in folders if os.path.isdir(path)}


def _wait_for_job(connection: socket.socket) -> _Job:
    """Wait for the next attempt, and exit when the supervisor has closed the connection."""
    buffer, descriptors = LineBuffer(), list[int]()
    while True:
        data, received, _, _ = socket.recv_fds(connection, RECEIVE_BYTES, 2)
        if not data:
            os._exit(0)
        descriptors += received
        for message in buffer.feed(data):
            output, lock = descriptors
            return _Job(message["environment"], output, lock, message["may_fork"])


def _prepare(modules_file: Path, connection: socket.socket) -> None:
    """Import the modules, in a thread whose priority is lowered.

    The priority of the main thread could not be raised again afterwards.
    """
    lower_priority()
    try:
        _import_modules(modules_file, connection)
    except BaseException as error:  # the supervisor waits for an answer in every case
        _refuse(connection, f"{type(error).__name__}: {error}")
    connection.send(encode({"type": "ready"}))


def _import_modules(modules_file: Path, connection: socket.socket) -> None:
    modules = parse_object(
        read_regular(modules_file, MAXIMUM_JSON_BYTES, real_parents=real_parents_of(modules_file))
    )
    for name in modules["third_party"]:
        if name.endswith(".__main__"):
            continue  # a program, which an import may start
        # If the import fails in the script too, the script reports it.
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    if clash := sorted(sys.modules.keys() & set(modules["own"])):
        _refuse(
            connection,
            f"the script's own module {clash[0]} has the name of a loaded one",
        )
    for name, digest in modules["environment"].items():
        if environment_digest(name) != digest:
            _refuse(connection, f"the script sets {name}, which modules may read at import")
    try_fork()
    if threads := _count_extra_threads(2):
        _refuse(connection, f"the modules start {threads} threads, which would keep low priority")


def _count_extra_threads(known: int) -> int:
    """Return the number of threads beyond ``known``.

    The result is 0 on systems that cannot tell, where a thread has no priority of its own either.
    """
    try:
        return len(os.listdir("/proc/self/task")) - known
    except OSError:
        return 0


def _join_imports(imports: threading.Thread) -> None:
    """Wait until the thread has ended for Python, and a moment later for the kernel."""
    imports.join()
    deadline = time.monotonic() + THREAD_EXIT_SECONDS
    while _count_extra_threads(1) and time.monotonic() < deadline:
        time.sleep(0.001)


def _refuse(connection: socket.socket, reason: str, *, is_permanent: bool = True) -> NoReturn:
    """Exit, so that the attempt starts cold; if ``is_permanent``, a new spare would refuse too."""
    message: Message = {"type": "refused", "reason": reason, "lasts": is_permanent}
    connection.send(encode(message))
    os._exit(0)


# --- becoming the trainer ------------------------------------------------------------------------


def _read_script(script: str, connection: socket.socket) -> bytes:
    try:
        with io.open_code(os.path.abspath(script)) as file:
            return file.read()
    except OSError as error:
        _refuse(connection, str(error))  # a cold start prints Python's own message


def _apply_job(job: _Job) -> None:
    os.dup2(job.output, 1)
    os.dup2(job.output, 2)
    os.close(job.output)
    os.set_inheritable(job.lock, True)
    os.environ.update(job.environment)
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.write_through:
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    importlib.invalidate_caches()


def _prepare_main(words: list[str]) -> None:
    """Set sys and ``__main__`` as they are when the interpreter starts with the script."""
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


def _run_script(words: list[str], script: bytes | None) -> None:
    main = sys.modules["__main__"].__dict__
    if script is not None:
        try:
            exec(compile(script, main["__file__"], "exec", dont_inherit=True), main)
        finally:
            _flush()  # the interpreter also flushes before it prints the traceback
    else:
        # The function that the interpreter itself calls for -m.
        runpy._run_module_as_main(words[0][2:] or words[1])  # type: ignore[attr-defined]


def _flush() -> None:
    for stream in (sys.stderr, sys.stdout):
        with contextlib.suppress(Exception):
            stream.flush()


def _hide_worker_frames() -> None:
    """Make the traceback of the current exception begin with the script's frame."""
    hook = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        sys.excepthook = hook
        while trace is not None and trace.tb_frame.f_code is not _run_script.__code__:
            trace = trace.tb_next
        if trace is not None:
            sys.last_traceback = error.__traceback__ = trace = trace.tb_next
        hook(kind, error, trace)

    sys.excepthook = excepthook
