"""A spare runs a script as the interpreter itself does."""

import ast
import contextlib
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ipc.messages import send_with_descriptors
from orchestrator.spare.spare_process import command_line
from orchestrator.system.priority import BACKGROUND_NICE
from orchestrator.system.python_command import python_command

pytestmark = pytest.mark.processes

CONFORMANCE = Path(__file__).parents[1] / "e2e" / "conformance.py"
DEADLINE_SECONDS = 60.0
ATTEMPT_VARIABLES = {"ORCHESTRATOR_ATTEMPT": "7"}


class SpareSetup:
    """A directory with scripts, an environment, and the kind of output that processes get."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.terminal = False
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run_cold(self, *command: str) -> tuple[int, bytes]:
        """Run a command without a spare, and return its status and its output."""
        with self._output_and_lock() as (reading, writing, lock):
            process = subprocess.Popen(
                command,
                env=self.environment | ATTEMPT_VARIABLES,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                pass_fds=(lock,),
            )
            os.close(writing)
            return _end(process, reading)

    def run_in_spare(self, *command: str, **modules: list[str]) -> tuple[int, bytes]:
        """Run a command in a spare with these modules, and return its status and its output."""
        with (
            self._output_and_lock() as (reading, writing, lock),
            self.spare(*command, **modules) as (process, connection),
        ):
            assert receive(connection) == {"type": "ready"}
            begin = {"type": "begin", "environment": ATTEMPT_VARIABLES, "may_fork": False}
            send_with_descriptors(connection, begin, (writing, lock))
            os.close(writing)
            assert receive(connection) == {"type": "began", "pid": process.pid}
            assert receive(connection) is None
            return _end(process, reading)

    @contextlib.contextmanager
    def spare(
        self,
        *command: str,
        third_party: list[str] | None = None,
        own: list[str] | None = None,
        environment: dict[str, str | None] | None = None,
    ) -> Iterator[tuple["subprocess.Popen[bytes]", socket.socket]]:
        """Yield a waiting spare and the supervisor's end of its socket."""
        modules_file = self.root / "modules.json"
        modules = {
            "third_party": third_party or [],
            "own": own or [],
            "environment": environment or {},
        }
        modules_file.write_text(json.dumps(modules))
        with contextlib.chdir(self.root):
            parts = python_command(list(command))
        assert parts is not None
        supervisor_end, spare_end = socket.socketpair()
        supervisor_end.settimeout(DEADLINE_SECONDS)
        with spare_end, open(self.root / "waiting.log", "wb") as log:
            process = subprocess.Popen(
                command_line(parts.python, spare_end.fileno(), modules_file, parts.words),
                env=self.environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(spare_end.fileno(),),
            )
        try:
            with supervisor_end:
                yield process, supervisor_end
        finally:
            process.kill()
            process.wait(DEADLINE_SECONDS)

    @contextlib.contextmanager
    def _output_and_lock(self) -> Iterator[tuple[int, int, int]]:
        reading, writing = pty.openpty() if self.terminal else os.pipe()
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT)
        yield reading, writing, lock
        os.close(reading)
        os.close(lock)


def _end(process: "subprocess.Popen[bytes]", reading: int) -> tuple[int, bytes]:
    output = b""
    with contextlib.suppress(OSError):  # a terminal without a writer raises
        while data := os.read(reading, 65536):
            output += data
    return process.wait(DEADLINE_SECONDS), output


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next message; None at the end of the stream."""
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(1)
        if not piece:
            return None
        data += piece
    message: dict[str, Any] = json.loads(data)
    return message


@pytest.fixture
def setup(tmp_path: Path) -> SpareSetup:
    return SpareSetup(tmp_path)


# --- the script's environment --------------------------------------------------------------------

FORMS = {
    "script": ["script.py"],
    "roundabout": ["./sub/../script.py"],
    "symlink": ["link.py"],
    "options": ["-u", "-X", "dev", "-W", "error::UserWarning", "-O", "-B", "script.py"],
    "isolated": ["-I", "script.py"],
    "safe path": ["-P", "script.py"],
    "flags": ["-s", "-E", "-OOb", "script.py"],
    "joined": ["-bb", "-Xutf8=0", "-Wignore", "script.py"],
    "module": ["-m", "package.script"],
    "joined module": ["-X", "faulthandler", "-mpackage.script"],
    "package": ["-Werror::UserWarning", "-O", "-m", "package"],
}


@pytest.mark.parametrize("words", FORMS.values(), ids=FORMS)
def test_script_in_a_spare_sees_what_the_interpreter_shows(
    setup: SpareSetup, words: list[str]
) -> None:
    """With any options and form of command, a script sees the same in a spare and without one."""
    cold, warm = run_both_ways(setup, words)
    above, below = cold.pop("callers"), warm.pop("callers")
    assert cold == warm
    # The known difference: the frames of the worker are below the script on the stack.
    assert below[: len(above)] == above
    assert [Path(name).name for name in below[len(above) :]] == [
        "spare_process.py",
        "spare_process.py",
        "<string>",
    ]


@pytest.mark.parametrize(
    ("terminal", "unbuffered", "by_lines"),
    [(True, "", True), (False, "", False), (True, "1", False)],
)
def test_standard_streams_are_those_of_the_interpreter(
    setup: SpareSetup, terminal: bool, unbuffered: str, by_lines: bool
) -> None:
    """The buffering follows from the attempt's output and environment."""
    setup.terminal = terminal
    setup.environment["PYTHONUNBUFFERED"] = unbuffered
    cold, warm = run_both_ways(setup, ["script.py"])
    assert cold["streams"] == warm["streams"]
    assert warm["streams"][1]["line_buffering"] is by_lines


def run_both_ways(setup: SpareSetup, words: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    root = setup.root
    (root / "package").mkdir()
    (root / "sub").mkdir()
    for name in ("script.py", "sub/script.py", "package/script.py", "package/__main__.py"):
        shutil.copy(CONFORMANCE, root / name)
    (root / "package" / "__init__.py").touch()
    (root / "link.py").symlink_to("sub/script.py")
    command, facts = [sys.executable, *words, "facts"], root / "facts7"
    cold = setup.run_cold(*command)
    assert cold[0] == 0, cold
    cold_facts = json.loads(facts.read_text())
    facts.unlink()
    some = ["asyncio", "xml.dom.minidom", "no_such_module"]
    assert setup.run_in_spare(*command, third_party=some) == cold
    return cold_facts, json.loads(facts.read_text())


# --- the script's end ----------------------------------------------------------------------------

ENDINGS = {
    "normally": "",
    "number": "import sys; sys.exit(3)",
    "text": "raise SystemExit('no data')",
    "none": "raise SystemExit",
    "os._exit": "import os; os._exit(4)",
    "error": "def f(): raise ValueError('bad')\nf()",
    "chained": "try: 1 / 0\nexcept Exception as e: raise OSError('x') from e",
    "syntax": "x = (",
    "import": "import no_such_module",
    "interrupt": "raise KeyboardInterrupt",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "hook": "import sys\nsys.excepthook = lambda *e: print(e[:2], e[2].tb_lasti)\n1 / 0",
    "thread": "import threading; threading.Timer(0.2, lambda: print('late')).start(); 1 / 0",
    "last": "import atexit, sys; atexit.register(lambda: print(sys.last_traceback.tb_lineno)); a",
    "latin": "# coding: latin-1\nprint(ascii('\xe9')); raise ValueError('\xe9')",
}


@pytest.mark.parametrize("words", [["end.py"], ["-m", "end"]], ids=["script", "module"])
@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_script_in_a_spare_ends_as_without_one(
    setup: SpareSetup, words: list[str], code: str
) -> None:
    """Status, signal, output and traceback are the interpreter's, without frames of the worker."""
    (setup.root / "end.py").write_bytes(code.encode("latin-1"))
    cold = setup.run_cold(sys.executable, *words)
    assert setup.run_in_spare(sys.executable, *words) == cold


def test_only_third_party_modules_are_imported_beforehand(setup: SpareSetup) -> None:
    """Third-party modules are loaded when the script begins; its own modules are not."""
    (setup.root / "helper.py").write_text("print('helper')")
    code = "import sys; print('colorsys' in sys.modules, 'helper' in sys.modules); import helper"
    (setup.root / "script.py").write_text(code)
    output = setup.run_in_spare(sys.executable, "script.py", third_party=["colorsys", "helper"])[1]
    assert output == b"True False\nhelper\n"


# --- refusals ------------------------------------------------------------------------------------


def test_spare_refuses_a_module_that_the_script_hides(setup: SpareSetup) -> None:
    """A spare refuses to run if the script has its own module of an imported name."""
    (setup.root / "script.py").touch()
    command = (sys.executable, "script.py")
    with setup.spare(*command, third_party=["colorsys"], own=["colorsys"]) as (
        process,
        supervisor_end,
    ):
        message = receive(supervisor_end)
        assert message is not None
        assert message["type"] == "refused"
        assert "colorsys" in message["reason"]
        assert process.wait(DEADLINE_SECONDS) == 0


def test_spare_refuses_a_variable_that_the_script_sets(setup: SpareSetup) -> None:
    """A spare refuses to run if the script sets a variable that no imported module sets."""
    (setup.root / "library").mkdir()
    (setup.root / "library" / "sets.py").write_text("import os; os.environ['BY_MODULE'] = '1'")
    (setup.root / "script.py").write_text(
        "import os, sys, sets; os.environ['BY_SCRIPT'] = '1'\n"
        "from orchestrator.spare.loaded_modules import changed_environment as c; print(c())"
    )
    setup.environment["PYTHONPATH"] = str(setup.root / "library")
    command = (sys.executable, "script.py")
    changed = ast.literal_eval(setup.run_cold(*command)[1].decode())
    with setup.spare(*command, third_party=["sets"], environment=changed) as (
        process,
        supervisor_end,
    ):
        message = receive(supervisor_end)
        assert message is not None
        assert message["type"] == "refused"
        assert "BY_SCRIPT" in message["reason"]
        assert process.wait(DEADLINE_SECONDS) == 0
    del changed["BY_SCRIPT"]
    assert "BY_MODULE" in changed
    with setup.spare(*command, third_party=["sets"], environment=changed) as (
        process,
        supervisor_end,
    ):
        assert receive(supervisor_end) == {"type": "ready"}


def test_missing_script_is_left_to_a_cold_start(setup: SpareSetup) -> None:
    """A spare refuses a script that does not exist, so that the interpreter reports it."""
    (setup.root / "script.py").touch()
    with setup.spare(sys.executable, "script.py") as (process, supervisor_end):
        assert receive(supervisor_end) == {"type": "ready"}
        (setup.root / "script.py").unlink()
        null = os.open(os.devnull, os.O_RDWR)
        send_with_descriptors(
            supervisor_end, {"type": "begin", "environment": {}, "may_fork": True}, (null, null)
        )
        os.close(null)
        assert (receive(supervisor_end) or {})["type"] == "refused"
        assert process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.parametrize(
    "imports", ["", "import time; time.sleep(600)"], ids=["ready", "importing"]
)
def test_spare_ends_with_the_supervisor(setup: SpareSetup, imports: str) -> None:
    """The end of the connection ends the spare, also in the middle of an import."""
    (setup.root / "library").mkdir()
    (setup.root / "library" / "slow.py").write_text(f"open('begun', 'w')\n{imports}")
    (setup.root / "script.py").touch()
    setup.environment["PYTHONPATH"] = str(setup.root / "library")
    with setup.spare(sys.executable, "script.py", third_party=["slow"]) as (
        process,
        supervisor_end,
    ):
        while not (setup.root / "begun").exists():
            assert process.poll() is None
        if not imports:
            receive(supervisor_end)
        supervisor_end.shutdown(socket.SHUT_RDWR)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_imports_have_low_priority_and_the_trainer_does_not(setup: SpareSetup) -> None:
    """Imports run in one thread with low priority, and no thread keeps it afterwards."""
    (setup.root / "library").mkdir()
    (setup.root / "library" / "look.py").write_text(
        "import os, threading\n"
        "me = threading.get_native_id()\n"
        "print(os.getpriority(0, me), os.getpriority(0, os.getpid()), flush=True)\n"
        "import numpy"
    )
    code = "import os\nprint([os.getpriority(0, int(t)) for t in os.listdir('/proc/self/task')])"
    (setup.root / "script.py").write_text(code)
    setup.environment["PYTHONPATH"] = str(setup.root / "library")
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert setup.run_in_spare(sys.executable, "script.py", third_party=["look"]) == (
        0,
        b"[%d]\n" % nice,
    )
    assert (setup.root / "waiting.log").read_text().split() == [str(BACKGROUND_NICE), str(nice)]


def test_program_among_the_modules_is_not_started(tmp_path: Path) -> None:
    """An import of a package's __main__ may start the package, and the spare imports none."""
    setup = SpareSetup(tmp_path)
    setup.environment["PYTHONPATH"] = str(tmp_path)
    (tmp_path / "package").mkdir()
    for name in ("__init__", "__main__", "module"):
        (tmp_path / f"package/{name}.py").write_text("open(__file__ + '.imported', 'w').close()\n")
    (tmp_path / "script.py").write_text("")
    names = ["package.module", "package.__main__"]
    setup.run_in_spare(sys.executable, "script.py", third_party=names)
    imported = {path.name for path in (tmp_path / "package").glob("*.imported")}
    assert imported == {"__init__.py.imported", "module.py.imported"}
