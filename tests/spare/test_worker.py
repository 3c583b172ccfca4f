"""A spare runs a script as the interpreter itself would."""

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
from orchestrator.spare.python_command import python_command
from orchestrator.spare.worker import command_line
from orchestrator.system.priority import BACKGROUND_NICE

pytestmark = pytest.mark.processes

CONFORMANCE = Path(__file__).parents[1] / "e2e" / "conformance.py"
DEADLINE_SECONDS = 60.0
OF_THE_ATTEMPT = {"ORCHESTRATOR_ATTEMPT": "7"}


class Setting:
    """A directory with scripts, an environment, and the kind of output that processes get."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.terminal = False
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def cold(self, *command: str) -> tuple[int, bytes]:
        """Run a command as the supervisor does without a spare: its status and its output."""
        with self._output_and_lock() as (reading, writing, lock):
            process = subprocess.Popen(
                command,
                env=self.environment | OF_THE_ATTEMPT,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                pass_fds=(lock,),
            )
            os.close(writing)
            return _end(process, reading)

    def warm(self, *command: str, **modules: list[str]) -> tuple[int, bytes]:
        """The same in a spare, which has imported these modules."""
        with (
            self._output_and_lock() as (reading, writing, lock),
            self.spare(*command, **modules) as (process, connection),
        ):
            assert receive(connection) == {"type": "ready"}
            begin = {"type": "begin", "environment": OF_THE_ATTEMPT, "may_fork": False}
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
        """A waiting spare, and the supervisor's end of its socket."""
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
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_SECONDS)
        with theirs, open(self.root / "waiting.log", "wb") as log:
            process = subprocess.Popen(
                command_line(parts.python, theirs.fileno(), modules_file, parts.words),
                env=self.environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )
        try:
            with ours:
                yield process, ours
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
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
        while data := os.read(reading, 65536):
            output += data
    return process.wait(DEADLINE_SECONDS), output


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message; None at the end."""
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(1)
        if not piece:
            return None
        data += piece
    message: dict[str, Any] = json.loads(data)
    return message


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


# --- what a script sees --------------------------------------------------------------------------

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
def test_a_script_sees_the_same(setting: Setting, words: list[str]) -> None:
    """Whatever the options and the form, a spare shows a script what the interpreter shows it."""
    cold, warm = see(setting, words)
    above, below = cold.pop("callers"), warm.pop("callers")
    assert cold == warm
    # What is known to differ: we are under the script on the stack.
    assert below[: len(above)] == above
    assert [Path(name).name for name in below[len(above) :]] == [
        "worker.py",
        "worker.py",
        "<string>",
    ]


@pytest.mark.parametrize(
    ("terminal", "unbuffered", "by_lines"),
    [(True, "", True), (False, "", False), (True, "1", False)],
)
def test_the_standard_streams_are_the_same(
    setting: Setting, terminal: bool, unbuffered: str, by_lines: bool
) -> None:
    """Buffering follows from the output that the attempt gets, and from the environment."""
    setting.terminal = terminal
    setting.environment["PYTHONUNBUFFERED"] = unbuffered
    cold, warm = see(setting, ["script.py"])
    assert cold["streams"] == warm["streams"]
    assert warm["streams"][1]["line_buffering"] is by_lines


def see(setting: Setting, words: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    root = setting.root
    (root / "package").mkdir()
    (root / "sub").mkdir()
    for name in ("script.py", "sub/script.py", "package/script.py", "package/__main__.py"):
        shutil.copy(CONFORMANCE, root / name)
    (root / "package" / "__init__.py").touch()
    (root / "link.py").symlink_to("sub/script.py")
    command, facts = [sys.executable, *words, "facts"], root / "facts7"
    cold = setting.cold(*command)
    assert cold[0] == 0, cold
    seen_cold = json.loads(facts.read_text())
    facts.unlink()
    some = ["asyncio", "xml.dom.minidom", "no_such_module"]
    assert setting.warm(*command, third_party=some) == cold
    return seen_cold, json.loads(facts.read_text())


# --- how it ends ---------------------------------------------------------------------------------

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
def test_it_ends_in_the_same_way(setting: Setting, words: list[str], code: str) -> None:
    """Status, signal, output and traceback are those of the interpreter, without our frames."""
    (setting.root / "end.py").write_bytes(code.encode("latin-1"))
    cold = setting.cold(sys.executable, *words)
    assert setting.warm(sys.executable, *words) == cold


def test_what_is_imported_beforehand_is_not_run_again(setting: Setting) -> None:
    """The modules that were asked for are there when the script begins, its own are not."""
    (setting.root / "helper.py").write_text("print('helper')")
    code = "import sys; print('colorsys' in sys.modules, 'helper' in sys.modules); import helper"
    (setting.root / "script.py").write_text(code)
    output = setting.warm(sys.executable, "script.py", third_party=["colorsys", "helper"])[1]
    assert output == b"True False\nhelper\n"


# --- when it does not become the trainer ---------------------------------------------------------


def test_a_module_that_the_script_has_itself_makes_it_refuse(setting: Setting) -> None:
    """A script's module that hides an installed one would be the other one in a spare."""
    (setting.root / "script.py").touch()
    command = (sys.executable, "script.py")
    with setting.spare(*command, third_party=["colorsys"], own=["colorsys"]) as (process, ours):
        message = receive(ours)
        assert message is not None
        assert message["type"] == "refused"
        assert "colorsys" in message["reason"]
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_variable_that_only_the_script_sets_makes_it_refuse(setting: Setting) -> None:
    """Modules that read the environment on import would be others in a spare than after a start."""
    (setting.root / "library").mkdir()
    (setting.root / "library" / "sets.py").write_text("import os; os.environ['BY_MODULE'] = '1'")
    (setting.root / "script.py").write_text(
        "import os, sys, sets; os.environ['BY_SCRIPT'] = '1'\n"
        "from orchestrator.spare.loaded_modules import changed_environment as c; print(c())"
    )
    setting.environment["PYTHONPATH"] = str(setting.root / "library")
    command = (sys.executable, "script.py")
    changed = ast.literal_eval(setting.cold(*command)[1].decode())
    with setting.spare(*command, third_party=["sets"], environment=changed) as (process, ours):
        message = receive(ours)
        assert message is not None
        assert message["type"] == "refused"
        assert "BY_SCRIPT" in message["reason"]
        assert process.wait(DEADLINE_SECONDS) == 0
    del changed["BY_SCRIPT"]
    assert "BY_MODULE" in changed
    with setting.spare(*command, third_party=["sets"], environment=changed) as (process, ours):
        assert receive(ours) == {"type": "ready"}


def test_a_script_that_is_gone_is_left_to_a_cold_start(setting: Setting) -> None:
    """What keeps the interpreter from beginning is for the interpreter to say."""
    (setting.root / "script.py").touch()
    with setting.spare(sys.executable, "script.py") as (process, ours):
        assert receive(ours) == {"type": "ready"}
        (setting.root / "script.py").unlink()
        null = os.open(os.devnull, os.O_RDWR)
        send_with_descriptors(
            ours, {"type": "begin", "environment": {}, "may_fork": True}, (null, null)
        )
        os.close(null)
        assert (receive(ours) or {})["type"] == "refused"
        assert process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.parametrize(
    "imports", ["", "import time; time.sleep(600)"], ids=["ready", "importing"]
)
def test_it_does_not_outlive_the_supervisor(setting: Setting, imports: str) -> None:
    """The end of the socket ends it, also in the middle of an import."""
    (setting.root / "library").mkdir()
    (setting.root / "library" / "slow.py").write_text(f"open('begun', 'w')\n{imports}")
    (setting.root / "script.py").touch()
    setting.environment["PYTHONPATH"] = str(setting.root / "library")
    with setting.spare(sys.executable, "script.py", third_party=["slow"]) as (process, ours):
        while not (setting.root / "begun").exists():
            assert process.poll() is None
        if not imports:
            receive(ours)
        ours.shutdown(socket.SHUT_RDWR)
        assert process.wait(DEADLINE_SECONDS) == 0


def test_imports_have_low_priority_and_leave_no_thread_with_it(setting: Setting) -> None:
    """While it imports one thread works, at low priority; afterwards none has it."""
    (setting.root / "library").mkdir()
    (setting.root / "library" / "look.py").write_text(
        "import os, threading\n"
        "me = threading.get_native_id()\n"
        "print(os.getpriority(0, me), os.getpriority(0, os.getpid()), flush=True)\n"
        "import numpy"
    )
    code = "import os\nprint([os.getpriority(0, int(t)) for t in os.listdir('/proc/self/task')])"
    (setting.root / "script.py").write_text(code)
    setting.environment["PYTHONPATH"] = str(setting.root / "library")
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert setting.warm(sys.executable, "script.py", third_party=["look"]) == (0, b"[%d]\n" % nice)
    assert (setting.root / "waiting.log").read_text().split() == [str(BACKGROUND_NICE), str(nice)]
