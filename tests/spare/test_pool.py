"""When there is a spare, and why there is none."""

import asyncio
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.spare.forked_process import TrainerProcess
from orchestrator.spare.pool import (
    LEAST_MEMORY_BYTES,
    NEVER_READY,
    NO_MEMORY,
    NOT_PYTHON,
    OFF,
    OTHER_PROCESS,
    ROOM_BYTES,
    TOO_EARLY,
    SparePool,
)
from orchestrator.system import process_tree
from orchestrator.system.capabilities import WITHOUT_VARIABLE, Capability

DEADLINE_SECONDS = 60.0


class Setting:
    """A keeper for a script, and the memory that it finds."""

    def __init__(self, root: Path, *options: str, modules: list[str]) -> None:
        (root / "script.py").touch()  # unless the test has written one
        self.command = [sys.executable, *options, str(root / "script.py")]
        self.modules_file = root / "modules.json"
        self.modules_file.write_text(
            json.dumps({"third_party": modules, "own": [], "environment": {}})
        )
        self.available = ROOM_BYTES
        self.keeper = SparePool(self.command, True, lambda: False, lambda: self.available)

    def offer(self) -> None:
        self.keeper.trainer_has_loaded(self.modules_file, by_command_itself=True)

    async def until(self, state: str) -> dict[str, Any]:
        """Wait for a state of the spare, and return what is known of it."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (facts := self.keeper.facts())["state"] != state:
                await asyncio.sleep(0.01)
        return facts


def ended(process: TrainerProcess) -> int:
    """Wait for its end, as the supervisor does: its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])


Scene = Callable[[Setting], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Run a scene with a keeper that has been opened, and see that nothing is left of it."""

    def run(
        scene: Scene, *options: str, modules: list[str] | None = None, path: Path = tmp_path
    ) -> None:
        async def whole() -> None:
            setting = Setting(tmp_path, *options, modules=modules or [])
            setting.keeper.open({**os.environ, "PYTHONPATH": str(path)})
            try:
                await scene(setting)
            finally:
                await setting.keeper.close()

        before = {*psutil.Process().children()}  # other tests' servers
        process_tree.become_subreaper()
        try:
            asyncio.run(whole())
        finally:
            ctypes.CDLL(None).prctl(process_tree.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert {*psutil.Process().children()} <= before

    return run


@pytest.mark.parametrize(
    ("command", "wanted", "reason"),
    [(["bash", "-c", "x"], True, NOT_PYTHON), (["python", "-m", "x"], False, OFF)],
)
def test_commands_that_get_none(command: list[str], wanted: bool, reason: str) -> None:
    """What is no script or module of Python is started cold, and the status says so."""
    keeper = SparePool(command, wanted, lambda: False)
    keeper.trainer_has_loaded(Path("modules.json"), by_command_itself=True)
    assert keeper.facts() == {"state": "none", "reason": reason, "bytes": None}
    assert keeper.pid is None


def test_a_launcher_gets_none() -> None:
    """Where a child of the command trains, being the command would not help."""
    keeper = SparePool(["python", "-m", "torch.distributed.run"], True, lambda: False)
    assert keeper.facts()["reason"] == TOO_EARLY
    keeper.trainer_has_loaded(Path("modules.json"), by_command_itself=False)
    assert keeper.facts()["reason"] == OTHER_PROCESS


@pytest.mark.processes
def test_a_spare_waits_until_the_end_of_the_run(play: Callable[..., None]) -> None:
    """It gets ready beside the trainer, is shown with its memory, and ends with its keeper."""

    async def scene(setting: Setting) -> None:
        setting.offer()
        facts = await setting.until("ready")
        assert facts["bytes"] > 1 << 20
        assert setting.keeper.pid in setting.keeper.awaited
        setting.offer()  # the list has grown
        assert setting.keeper.pid in {p.pid for p in psutil.Process().children()}

    play(scene)


@pytest.mark.processes
def test_an_interpreter_without_the_package_is_tried_once(play: Callable[..., None]) -> None:
    """A spare that ends by itself at once is not started again, and its last words are shown."""

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("importing")
        facts = await setting.until("none")
        assert "status 1: ModuleNotFoundError" in facts["reason"]
        setting.offer()
        assert setting.keeper.pid is None
        assert await setting.keeper.make_trainer({}, 1, 2) is None

    play(scene, "-S")


@pytest.mark.processes
def test_a_spare_that_was_killed_is_replaced_for_the_next_time(play: Callable[..., None]) -> None:
    """An end from outside says nothing about the next one."""

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("ready")
        assert setting.keeper.pid is not None
        os.kill(setting.keeper.pid, signal.SIGTERM)
        assert (await setting.until("none"))["reason"] == "it was ended by SIGTERM"
        assert await setting.keeper.make_trainer({}, 1, 2) is None
        setting.offer()
        await setting.until("ready")

    play(scene)


@pytest.mark.processes
def test_it_gives_way_when_memory_is_short(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short of memory there is none; it comes back when there is room, if a trainer is there."""
    monkeypatch.setattr("orchestrator.spare.pool.MEMORY_CHECK_SECONDS", 0.02)

    async def scene(setting: Setting) -> None:
        setting.available = ROOM_BYTES - 1
        setting.offer()
        assert setting.keeper.facts()["reason"] == NO_MEMORY
        setting.available = ROOM_BYTES
        await setting.until("ready")
        setting.available = LEAST_MEMORY_BYTES - 1
        assert (await setting.until("none"))["reason"] == NO_MEMORY
        setting.keeper.trainer_has_ended()
        setting.available = ROOM_BYTES
        await asyncio.sleep(0.1)  # several checks
        assert setting.keeper.pid is None
        setting.offer()
        await setting.until("ready")

    play(scene)


@pytest.mark.processes
def test_one_that_does_not_answer_is_ended(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spare that is stopped, say, costs a moment and no more: the start is cold then."""
    monkeypatch.setattr("orchestrator.spare.process.TAKE_OVER_SECONDS", 0.1)

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("ready")
        pid = setting.keeper.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert await setting.keeper.make_trainer({}, 1, 2) is None
        assert pid not in {process.pid for process in psutil.Process().children()}

    play(scene)


@pytest.mark.processes
def test_one_that_makes_a_trainer_does_not_give_way(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short memory ends spares, and never one that is about to make a trainer."""
    monkeypatch.setattr("orchestrator.spare.pool.MEMORY_CHECK_SECONDS", 0.02)
    monkeypatch.setattr("orchestrator.spare.process.TAKE_OVER_SECONDS", DEADLINE_SECONDS)

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("ready")
        pid = setting.keeper.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        becoming = asyncio.ensure_future(setting.keeper.make_trainer({}, 1, 2))
        await asyncio.sleep(0)
        setting.available = 0
        await asyncio.sleep(0.1)  # several checks
        os.kill(pid, signal.SIGCONT)
        process = await becoming
        assert process is not None
        assert ended(process) == 0

    play(scene)


@pytest.mark.processes
def test_one_that_answers_too_late_is_not_taken_for_a_trainer(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it forks after it was given up is ended."""
    monkeypatch.setattr("orchestrator.spare.process.TAKE_OVER_SECONDS", 0.1)

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("ready")
        spare = setting.keeper._spare
        assert spare is not None
        before = {*process_tree.children_of(os.getpid())}  # it, and other tests' servers
        os.kill(spare.process.pid, signal.SIGSTOP)
        assert await spare.make_trainer({}, 1, 2) is None
        os.kill(spare.process.pid, signal.SIGCONT)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (late := {*process_tree.children_of(os.getpid())} - before):
                await asyncio.sleep(0.01)
            while not all(process_tree.Process.look(pid).is_dead for pid in late):
                await asyncio.sleep(0.01)
        assert [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in late] == [-signal.SIGKILL]

    (tmp_path / "script.py").write_text("import time; time.sleep(600)")
    play(scene)


@pytest.mark.processes
def test_one_spare_makes_trainers_one_after_the_other(
    play: Callable[..., None], tmp_path: Path
) -> None:
    """Each is our child, in a session of its own, and draws other random numbers."""

    async def scene(setting: Setting) -> None:
        (tmp_path / "script.py").write_text(
            "import os, random, sys, numpy\n"
            "print(os.getppid(), os.getsid(0), random.random(), numpy.random.random())\n"
            "sys.exit(5)"
        )
        setting.offer()
        await setting.until("ready")
        spare, seen = setting.keeper.pid, []
        for number in range(2):
            with open(tmp_path / f"{number}", "w+") as output, open(tmp_path / "lock", "w") as lock:
                process = await setting.keeper.make_trainer({}, output.fileno(), lock.fileno())
                assert process is not None
                assert process.pid in setting.keeper.awaited
                assert ended(process) == 5
                output.seek(0)
                parent, session, *drawn = output.read().split()
            assert (int(parent), int(session)) == (os.getpid(), process.pid)
            assert setting.keeper.pid == spare
            seen += [str(process.pid), *drawn]
        assert len({*seen}) == len(seen)

    play(scene, modules=["numpy"])


@pytest.mark.processes
@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"HF_HOME": "ab12"}},
        {"own": ["colorsys"]},
        {"third_party": ["colorsys", *(f"more{number}" for number in range(50))]},
    ],
    ids=["a variable", "a module of its own", "many more modules"],
)
def test_a_spare_follows_the_script(play: Callable[..., None], change: dict[str, Any]) -> None:
    """One that is for an older version of the script, or knows little of it, is replaced."""

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("ready")
        first = setting.keeper.pid
        setting.offer()  # nothing has changed
        await asyncio.sleep(0)
        assert setting.keeper.facts()["state"] == "ready"
        modules = json.loads(setting.modules_file.read_text())
        setting.modules_file.write_text(json.dumps(modules | change))
        setting.offer()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while setting.keeper.pid in (first, None):
                await asyncio.sleep(0.01)

    play(scene, modules=["colorsys"])


@pytest.mark.processes
def test_a_spare_with_old_packages_is_replaced(play: Callable[..., None], tmp_path: Path) -> None:
    """Once something has been installed the next trainer starts cold, and has a new spare."""
    packages = tmp_path / "site-packages"
    packages.mkdir()

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("ready")
        (packages / "new.py").touch()
        assert await setting.keeper.make_trainer({}, 1, 2) is None
        setting.offer()
        await setting.until("ready")

    play(scene, path=packages)


@pytest.mark.processes
def test_imports_that_do_not_end_are_waited_for_once(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run does not wait at each of its restarts for a module that blocks in a spare."""
    monkeypatch.setattr("orchestrator.spare.pool.READY_WAIT_SECONDS", 0.1)
    (tmp_path / "endless.py").write_text("import time; time.sleep(600)")

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.keeper.settle()
        assert await setting.keeper.make_trainer({}, 1, 2) is None
        setting.offer()
        assert (await setting.until("none"))["reason"] == NEVER_READY

    play(scene, modules=["endless"])


@pytest.mark.processes
def test_one_that_cannot_prepare_itself_says_so(play: Callable[..., None]) -> None:
    """Nobody waits for a spare whose list of modules cannot be read, say."""

    async def scene(setting: Setting) -> None:
        setting.modules_file.unlink()
        setting.offer()
        await setting.until("importing")
        assert "FileNotFoundError" in (await setting.until("none"))["reason"]

    play(scene)


@pytest.mark.processes
def test_one_that_is_not_ready_is_waited_for(play: Callable[..., None], tmp_path: Path) -> None:
    """A trainer that is needed during the imports begins right after them."""

    async def scene(setting: Setting) -> None:
        script, lock = tmp_path / "script.py", tmp_path / "lock"
        script.write_text(f"import sys; open({str(tmp_path / 'done')!r}, 'w'); sys.exit(7)")
        setting.offer()
        assert setting.keeper.facts()["state"] == "importing"
        await setting.keeper.settle()
        with lock.open("w") as held:
            process = await setting.keeper.make_trainer({}, 1, held.fileno())
        assert process is not None
        assert process.pid in setting.keeper.awaited
        assert ended(process) == 7
        assert (tmp_path / "done").exists()
        assert setting.keeper.facts()["state"] == "ready"

    play(scene, modules=["asyncio", "unittest.mock", "xml.dom.minidom"])


@pytest.mark.processes
def test_the_connections_that_come_after_it_are_heard(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However late the new trainer lets go of its connection, no other takes its place too soon."""
    monkeypatch.setenv(WITHOUT_VARIABLE, Capability.SUBREAPER)  # it becomes the trainer itself
    (tmp_path / "late.py").write_text(
        "import socket, time\nclose = socket.socket.close\n"
        "socket.socket.close = lambda self: (time.sleep(0.5), close(self))"
    )

    async def scene(setting: Setting) -> None:
        setting.offer()
        await setting.until("ready")
        process = await setting.keeper.make_trainer({}, 1, 2)
        assert process is not None
        loop = asyncio.get_running_loop()
        # Some of them get the number of whatever has been closed.
        pairs = [socket.socketpair() for _ in range(8)]
        for hearing, saying in [*pairs, *(pair[::-1] for pair in pairs)]:
            hearing.setblocking(False)
            heard = asyncio.ensure_future(loop.sock_recv(hearing, 1))
            await asyncio.sleep(0)
            saying.send(b"x")
            assert await asyncio.wait_for(heard, DEADLINE_SECONDS) == b"x"
        for end in itertools.chain(*pairs):
            end.close()
        assert ended(process) == 0

    play(scene, modules=["late"])
