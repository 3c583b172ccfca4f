"""Runs a training script like `python script.py`, forked from a process that has imported torch.

The import of torch takes seconds, too long for a test with hundreds of trainers. The server imports
torch and computes nothing, so that a fork is safe. The client is the command that a supervisor
runs: it passes its environment, directory and output to the server, which forks the trainer, and it
ends as the trainer ends. The trainer is a real process, and a SIGKILL of it is real. Only its
parent differs.

    python warm_trainer.py serve SOCKET MODULES...   (prints "ready")
    python warm_trainer.py SOCKET SCRIPT ARGS... (the client; the trainer's id is in SOCKET.pid)
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys


def serve(path: str, *modules: str) -> None:
    import torch._dynamo  # noqa: F401 - the first optimizer would import it, for a second

    import orchestrator.training  # noqa: F401

    for module in modules:
        importlib.import_module(module)

    # Without this, the first full collection of each trainer would copy the pages of all modules.
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            # A process between waits for the trainer, so that the server can continue.
            listener.close()
            watch(connection)


def watch(connection: socket.socket) -> None:
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    if not data:  # the client was killed before it has asked
        os._exit(0)
    request = json.loads(data)
    trainer = os.fork()
    if trainer == 0:
        connection.close()
        become_trainer(request, descriptors)
    with contextlib.suppress(BrokenPipeError):  # the client was killed at once
        connection.sendall(f"{trainer}\n".encode())
    ended = os.pidfd_open(trainer)
    if ended not in select.select([ended, connection], [], [])[0]:
        # The client was killed, and for the supervisor the client is the trainer.
        os.kill(trainer, signal.SIGKILL)
    _, status = os.waitpid(trainer, 0)
    # Kill its loader workers: for the supervisor they are no descendants of the client.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(trainer, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):  # the client has been killed
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become_trainer(request: dict[str, object], descriptors: list[int]) -> None:
    os.setpgid(0, 0)
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[arg-type]
    os.chdir(str(request["directory"]))
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()  # as the interpreter does at its start
    sys.argv = list(request["arguments"])  # type: ignore[arg-type]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        status = 1
    sys.stdout.flush()
    os._exit(status)


def forward(number: int, trainer: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # its status is on its way
        os.kill(trainer, number)


def run_client(path: str, arguments: list[str]) -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    request = {
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "arguments": arguments,
    }
    socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
    answers = connection.makefile()
    new = f"{path}.{os.getpid()}"  # another client may be at the same place
    with open(new, "w") as file:
        trainer = answers.readline()
        file.write(trainer)
    # For the supervisor and its lifeline the client is the trainer.
    signal.signal(signal.SIGTERM, lambda number, frame: forward(number, int(trainer)))
    os.rename(new, f"{path}.pid")
    status = int(answers.readline())
    if status < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    run_client(sys.argv[1], sys.argv[2:])
