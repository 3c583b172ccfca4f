"""`python WORDS` in a process that is forked from one that has done the imports.

The imports of a command take a quarter of a second of CPU time, those of torch one and a half, and
the tests start hundreds of each. The fork is a real process, which runs and ends as with the
interpreter. Only its parent differs, and /proc shows the server's command line and environment.

    python warm_python.py DESCRIPTOR MODULES...   (the server; DESCRIPTOR is its socket)
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

ORCHESTRATOR = ("orchestrator.cli.parser",)
# The first optimizer imports torch._dynamo.
TRAINING = ("torch._dynamo", "orchestrator.training")


class WarmPython:
    """A warm process, with the part of subprocess.Popen's interface that the tests use."""

    def __init__(
        self,
        words: Sequence[str],
        modules: tuple[str, ...],
        *,
        cwd: Path,
        env: dict[str, str],
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        new_session: bool = False,
    ) -> None:
        """Run ``words``: ``-m MODULE`` or a script, with arguments."""
        self.args = list(words)
        self.returncode: int | None = None
        own_end, server_end = socket.socketpair()
        self._answers = own_end.makefile("rb")
        own_end.close()
        request = {
            "words": self.args,
            "directory": str(cwd),
            "environment": env,
            "new_session": new_session,
        }
        with open(os.devnull, "r+") as null, server_end:
            self.stdout, out = _output(stdout, 1, null)
            self.stderr, err = _output(stderr, 2, null)
            descriptors = [server_end.fileno(), null.fileno(), out, err]
            socket.send_fds(_server(modules), [json.dumps(request).encode()], descriptors)
        for stream, end in ((self.stdout, out), (self.stderr, err)):
            if stream is not None:
                os.close(end)
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        if self.returncode is None and _readable([self._answers], 0):
            self.returncode = os.waitstatus_to_exitcode(int(self._answers.readline()))
            self._answers.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit status."""
        if self.returncode is None and not _readable([self._answers], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read the output until every writer has closed it, and wait for the end of the process."""
        deadline = None if timeout is None else time.monotonic() + timeout
        output = {stream: b"" for stream in (self.stdout, self.stderr) if stream is not None}
        while left := [stream for stream in output if not stream.closed]:
            ready = _readable(left, _left(deadline))
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            for stream in ready:
                data = os.read(stream.fileno(), 1 << 16)
                output[stream] += data
                if not data:
                    stream.close()
        self.wait(_left(deadline))
        out, err = (output[s].decode() if s is not None else "" for s in (self.stdout, self.stderr))
        return out, err

    def kill(self) -> None:
        """Send SIGKILL unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0)


def _output(wanted: Any, inherited: int, null: IO[str]) -> tuple[IO[str] | None, int]:
    """Return the stream from which to read, if it is a pipe, and the descriptor to write to."""
    if wanted == subprocess.DEVNULL:
        return None, null.fileno()
    if wanted == subprocess.PIPE:
        reading, writing = os.pipe()
        return open(reading), writing
    if wanted is None:
        return None, inherited
    return None, wanted if isinstance(wanted, int) else wanted.fileno()


def _readable(streams: Sequence[IO[Any]], timeout: float | None) -> list[IO[Any]]:
    """Return the streams that have data or have ended before the timeout."""
    # select() refuses descriptors above 1023, and the suite may have as many open.
    poll = select.poll()
    for stream in streams:
        poll.register(stream, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)}
    return [stream for stream in streams if stream.fileno() in ready]


@functools.cache
def _server(modules: tuple[str, ...]) -> socket.socket:
    """Start a server for this test process; it ends when the socket is closed."""
    own_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server_end:
        subprocess.run(
            [sys.executable, __file__, str(server_end.fileno()), *modules],
            pass_fds=(server_end.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # no terminal, as with the pipes
            env={k: v for k, v in os.environ.items() if not k.startswith("ORCHESTRATOR_")},
            check=True,
        )
    return own_end


def serve(requests: socket.socket, modules: Sequence[str]) -> list[str]:
    """Fork at each request, and return the words in the process that must run them."""
    if os.fork():
        os._exit(0)  # the server must not be a child of the test, which looks at its children
    for module in modules:
        importlib.import_module(module)
    # Without this, the first full collection of each fork would copy the pages of all modules.
    gc.collect()
    gc.freeze()
    # A Ctrl-C on the tests' terminal reaches the server too. The kernel reaps its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not data:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answers, *standard = descriptors
    if pid := os.fork():
        for descriptor in standard:
            os.close(descriptor)
        answer(answers, pid)
    os.close(answers)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return become(json.loads(data), standard)


def answer(descriptor: int, pid: int) -> None:
    """Send the process id, and later the wait status, to the test."""
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        connection.sendall(f"{status}\n".encode())
    os._exit(0)


def become(request: dict[str, Any], standard: Sequence[int]) -> list[str]:
    """Take over the request's directory, environment and output, and return the words."""
    if request["new_session"]:
        os.setsid()
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # What the server's own outputs knew of their files does not hold for these.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace", buffering=1)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    words: list[str] = request["words"]
    return words


if __name__ == "__main__":
    words = serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(words[0])), words
        runpy.run_path(words[0], run_name="__main__")
