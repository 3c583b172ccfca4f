"""When there is a spare, and how the pool provides a trainer."""

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

from orchestrator.spare.forked_process import ProcessHandle
from orchestrator.spare.pool import (
    LEAST_MEMORY_BYTES,
    NEVER_READY,
    NO_MEMORY,
    NOT_PYTHON,
    OFF,
    OTHER_PROCESS,
    START_MEMORY_BYTES,
    TOO_EARLY,
    SparePool,
    SparePoolTimings,
)
from orchestrator.system import process_tree
from orchestrator.system.capabilities import WITHOUT_VARIABLE, Capability

DEADLINE_SECONDS = 60.0


class PoolSetup:
    """A pool for a script, and the available memory that the pool sees."""

    def __init__(
        self, root: Path, *options: str, modules: list[str], timings: SparePoolTimings
    ) -> None:
        (root / "script.py").touch()  # unless the test has written one
        self.command = [sys.executable, *options, str(root / "script.py")]
        self.modules_file = root / "modules.json"
        self.modules_file.write_text(
            json.dumps({"third_party": modules, "own": [], "environment": {}})
        )
        self.available = START_MEMORY_BYTES
        self._memory_reads = 0
        self.pool = SparePool(
            self.command, True, lambda: False, self._read_available_bytes, timings
        )

    def _read_available_bytes(self) -> int:
        self._memory_reads += 1
        return self.available

    def report_modules(self) -> None:
        self.pool.on_trainer_modules(self.modules_file, by_command_itself=True)

    async def wait_for_state(self, state: str) -> dict[str, Any]:
        """Wait for a state of the spare, and return the status."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (status := self.pool.status())["state"] != state:
                await asyncio.sleep(0.01)
        return status

    async def wait_for_memory_checks(self) -> None:
        """Wait until the pool has completed a memory check that began after the call."""
        target = self._memory_reads + 2
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self._memory_reads < target:
                await asyncio.sleep(0.01)


def wait_for_exit(process: ProcessHandle) -> int:
    """Wait for the process's end, and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])


Scenario = Callable[[PoolSetup], Coroutine[Any, Any, None]]


@pytest.fixture
def run_scenario(tmp_path: Path) -> Callable[..., None]:
    """Return a function that runs a scenario with an open pool and checks that no child is left."""

    def run(
        scenario: Scenario,
        *options: str,
        modules: list[str] | None = None,
        path: Path = tmp_path,
        timings: SparePoolTimings | None = None,
    ) -> None:
        async def main() -> None:
            setup = PoolSetup(
                tmp_path, *options, modules=modules or [], timings=timings or SparePoolTimings()
            )
            setup.pool.open({**os.environ, "PYTHONPATH": str(path)})
            try:
                await scenario(setup)
            finally:
                await setup.pool.close()

        before = {*psutil.Process().children()}  # servers of other tests
        process_tree.become_subreaper()
        try:
            asyncio.run(main())
        finally:
            ctypes.CDLL(None).prctl(process_tree.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        assert {*psutil.Process().children()} <= before

    return run


@pytest.mark.parametrize(
    ("command", "wanted", "reason"),
    [(["bash", "-c", "x"], True, NOT_PYTHON), (["python", "-m", "x"], False, OFF)],
)
def test_other_commands_get_no_spare(command: list[str], wanted: bool, reason: str) -> None:
    """A command that is not a Python script or module starts cold, and the status says why."""
    pool = SparePool(command, wanted, lambda: False)
    pool.on_trainer_modules(Path("modules.json"), by_command_itself=True)
    assert pool.status() == {"state": "none", "reason": reason, "bytes": None}
    assert pool.pid is None


def test_launcher_gets_no_spare() -> None:
    """A command whose child trains gets no spare, since a spare would run the command."""
    pool = SparePool(["python", "-m", "torch.distributed.run"], True, lambda: False)
    assert pool.status()["reason"] == TOO_EARLY
    pool.on_trainer_modules(Path("modules.json"), by_command_itself=False)
    assert pool.status()["reason"] == OTHER_PROCESS


@pytest.mark.processes
def test_spare_waits_until_the_pool_is_closed(run_scenario: Callable[..., None]) -> None:
    """The spare gets ready beside the trainer, is shown with its memory, and ends with the pool."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        status = await setup.wait_for_state("ready")
        assert status["bytes"] > 1 << 20
        assert setup.pool.pid in setup.pool.pids_with_waiter
        setup.report_modules()  # the list has grown
        assert setup.pool.pid in {p.pid for p in psutil.Process().children()}

    run_scenario(scenario)


@pytest.mark.processes
def test_spare_that_fails_at_its_start_is_not_started_again(
    run_scenario: Callable[..., None],
) -> None:
    """A spare that fails by itself is not started again, and the status shows its last output."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("importing")
        status = await setup.wait_for_state("none")
        assert "status 1: ModuleNotFoundError" in status["reason"]
        setup.report_modules()
        assert setup.pool.pid is None
        assert await setup.pool.make_trainer({}, 1, 2) is None

    run_scenario(scenario, "-S")


@pytest.mark.processes
def test_killed_spare_is_replaced_beside_the_next_trainer(
    run_scenario: Callable[..., None],
) -> None:
    """A spare that was killed by a signal does not prevent the next one."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("ready")
        assert setup.pool.pid is not None
        os.kill(setup.pool.pid, signal.SIGTERM)
        assert (await setup.wait_for_state("none"))["reason"] == "it was killed by SIGTERM"
        assert await setup.pool.make_trainer({}, 1, 2) is None
        setup.report_modules()
        await setup.wait_for_state("ready")

    run_scenario(scenario)


@pytest.mark.processes
def test_spare_is_ended_while_memory_is_short(
    run_scenario: Callable[..., None],
) -> None:
    """Short memory ends the spare; it starts again when there is memory and a trainer."""

    async def scenario(setup: PoolSetup) -> None:
        setup.available = START_MEMORY_BYTES - 1
        setup.report_modules()
        assert setup.pool.status()["reason"] == NO_MEMORY
        setup.available = START_MEMORY_BYTES
        await setup.wait_for_state("ready")
        setup.available = LEAST_MEMORY_BYTES - 1
        assert (await setup.wait_for_state("none"))["reason"] == NO_MEMORY
        setup.pool.on_trainer_exit()
        setup.available = START_MEMORY_BYTES
        await setup.wait_for_memory_checks()
        assert setup.pool.pid is None
        setup.report_modules()
        await setup.wait_for_state("ready")

    run_scenario(scenario, timings=SparePoolTimings(memory_check_seconds=0.02))


@pytest.mark.processes
def test_spare_that_does_not_answer_is_ended(
    run_scenario: Callable[..., None],
) -> None:
    """A spare that does not answer in time is killed, and the attempt starts cold."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("ready")
        pid = setup.pool.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert await setup.pool.make_trainer({}, 1, 2) is None
        assert pid not in {process.pid for process in psutil.Process().children()}

    run_scenario(scenario, timings=SparePoolTimings(take_over_timeout_seconds=0.1))


@pytest.mark.processes
def test_spare_is_not_reclaimed_while_it_becomes_the_trainer(
    run_scenario: Callable[..., None],
) -> None:
    """Short memory does not end a spare that has been asked for a trainer."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("ready")
        pid = setup.pool.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        becoming = asyncio.ensure_future(setup.pool.make_trainer({}, 1, 2))
        await asyncio.sleep(0)
        setup.available = 0
        await setup.wait_for_memory_checks()
        os.kill(pid, signal.SIGCONT)
        process = await becoming
        assert process is not None
        assert wait_for_exit(process) == 0

    timings = SparePoolTimings(
        memory_check_seconds=0.02, take_over_timeout_seconds=DEADLINE_SECONDS
    )
    run_scenario(scenario, timings=timings)


@pytest.mark.processes
def test_trainer_announced_too_late_is_killed(
    run_scenario: Callable[..., None], tmp_path: Path
) -> None:
    """A trainer that the spare forks after the timeout is killed."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("ready")
        spare = setup.pool._spare
        assert spare is not None
        before = {*process_tree.children_of(os.getpid())}  # the spare, and servers of other tests
        os.kill(spare.process.pid, signal.SIGSTOP)
        assert await spare.make_trainer({}, 1, 2, timeout_seconds=0.1) is None
        os.kill(spare.process.pid, signal.SIGCONT)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (late := {*process_tree.children_of(os.getpid())} - before):
                await asyncio.sleep(0.01)
            while not all(process_tree.Process.read(pid).is_dead for pid in late):
                await asyncio.sleep(0.01)
        assert [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in late] == [-signal.SIGKILL]

    (tmp_path / "script.py").write_text("import time; time.sleep(600)")
    run_scenario(scenario)


@pytest.mark.processes
def test_spare_forks_one_trainer_after_the_other(
    run_scenario: Callable[..., None], tmp_path: Path
) -> None:
    """Each trainer is a child of this process, in its own session, with other random numbers."""

    async def scenario(setup: PoolSetup) -> None:
        (tmp_path / "script.py").write_text(
            "import os, random, sys, numpy\n"
            "print(os.getppid(), os.getsid(0), random.random(), numpy.random.random())\n"
            "sys.exit(5)"
        )
        setup.report_modules()
        await setup.wait_for_state("ready")
        spare, distinct = setup.pool.pid, []
        for number in range(2):
            with open(tmp_path / f"{number}", "w+") as output, open(tmp_path / "lock", "w") as lock:
                process = await setup.pool.make_trainer({}, output.fileno(), lock.fileno())
                assert process is not None
                assert process.pid in setup.pool.pids_with_waiter
                assert wait_for_exit(process) == 5
                output.seek(0)
                parent, session, *drawn = output.read().split()
            assert (int(parent), int(session)) == (os.getpid(), process.pid)
            assert setup.pool.pid == spare
            distinct += [str(process.pid), *drawn]
        assert len({*distinct}) == len(distinct)

    run_scenario(scenario, modules=["numpy"])


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
def test_spare_is_replaced_when_the_script_changes(
    run_scenario: Callable[..., None], change: dict[str, Any]
) -> None:
    """A spare that does not fit the modules or variables of the script any more is replaced."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("ready")
        first = setup.pool.pid
        setup.report_modules()  # nothing has changed
        await asyncio.sleep(0)
        assert setup.pool.status()["state"] == "ready"
        modules = json.loads(setup.modules_file.read_text())
        setup.modules_file.write_text(json.dumps(modules | change))
        setup.report_modules()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while setup.pool.pid in (first, None):
                await asyncio.sleep(0.01)

    run_scenario(scenario, modules=["colorsys"])


@pytest.mark.processes
def test_spare_with_old_packages_is_replaced(
    run_scenario: Callable[..., None], tmp_path: Path
) -> None:
    """After a package is installed, the next trainer starts cold and gets a new spare."""
    packages = tmp_path / "site-packages"
    packages.mkdir()

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("ready")
        (packages / "new.py").touch()
        assert await setup.pool.make_trainer({}, 1, 2) is None
        setup.report_modules()
        await setup.wait_for_state("ready")

    run_scenario(scenario, path=packages)


@pytest.mark.processes
def test_endless_imports_are_waited_for_only_once(
    run_scenario: Callable[..., None], tmp_path: Path
) -> None:
    """A module that blocks in the spare delays only one restart."""
    (tmp_path / "endless.py").write_text("import time; time.sleep(600)")

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.pool.wait_until_ready()
        assert await setup.pool.make_trainer({}, 1, 2) is None
        setup.report_modules()
        assert (await setup.wait_for_state("none"))["reason"] == NEVER_READY

    timings = SparePoolTimings(ready_timeout_seconds=0.1)
    run_scenario(scenario, modules=["endless"], timings=timings)


@pytest.mark.processes
@pytest.mark.parametrize("age_seconds", [0.0, 1.0], ids=["younger", "older"])
def test_spare_is_not_waited_for_longer_than_a_cold_start_takes(
    run_scenario: Callable[..., None], tmp_path: Path, age_seconds: float
) -> None:
    """A spare that a cold start would overtake is given up, and another one is tried later."""
    (tmp_path / "endless.py").write_text("import time; time.sleep(600)")

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        setup.pool.on_cold_start(0.5)
        await asyncio.sleep(age_seconds)
        begun = asyncio.get_running_loop().time()
        await setup.pool.wait_until_ready()
        waited = asyncio.get_running_loop().time() - begun
        assert waited < SparePoolTimings().ready_timeout_seconds / 2
        assert await setup.pool.make_trainer({}, 1, 2) is None
        setup.report_modules()
        assert setup.pool.status()["state"] == "importing"

    run_scenario(scenario, modules=["endless"], timings=SparePoolTimings())


@pytest.mark.processes
def test_spare_that_is_ready_before_a_cold_start_would_be_is_waited_for(
    run_scenario: Callable[..., None],
) -> None:
    """The wait for a spare that becomes ready in time ends with it."""

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        setup.pool.on_cold_start(DEADLINE_SECONDS)
        await setup.pool.wait_until_ready()
        assert setup.pool.status()["state"] == "ready"

    run_scenario(scenario, modules=["json"])


@pytest.mark.processes
def test_spare_that_cannot_read_its_modules_says_so(run_scenario: Callable[..., None]) -> None:
    """A spare whose list of modules cannot be read ends with a reason."""

    async def scenario(setup: PoolSetup) -> None:
        setup.modules_file.unlink()
        setup.report_modules()
        await setup.wait_for_state("importing")
        assert "FileNotFoundError" in (await setup.wait_for_state("none"))["reason"]

    run_scenario(scenario)


@pytest.mark.processes
def test_importing_spare_is_waited_for(run_scenario: Callable[..., None], tmp_path: Path) -> None:
    """A trainer that is needed during the imports starts right after them."""

    async def scenario(setup: PoolSetup) -> None:
        script, lock = tmp_path / "script.py", tmp_path / "lock"
        script.write_text(f"import sys; open({str(tmp_path / 'done')!r}, 'w'); sys.exit(7)")
        setup.report_modules()
        assert setup.pool.status()["state"] == "importing"
        await setup.pool.wait_until_ready()
        with lock.open("w") as held:
            process = await setup.pool.make_trainer({}, 1, held.fileno())
        assert process is not None
        assert process.pid in setup.pool.pids_with_waiter
        assert wait_for_exit(process) == 7
        assert (tmp_path / "done").exists()
        assert setup.pool.status()["state"] == "ready"

    run_scenario(scenario, modules=["asyncio", "unittest.mock", "xml.dom.minidom"])


@pytest.mark.processes
def test_connections_opened_after_the_spare_receive_data(
    run_scenario: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A spare that closes its connection late does not disturb connections with the same number."""
    monkeypatch.setenv(
        WITHOUT_VARIABLE, Capability.SUBREAPER
    )  # so the spare becomes the trainer itself
    (tmp_path / "late.py").write_text(
        "import socket, time\nclose = socket.socket.close\n"
        "socket.socket.close = lambda self: (time.sleep(0.5), close(self))"
    )

    async def scenario(setup: PoolSetup) -> None:
        setup.report_modules()
        await setup.wait_for_state("ready")
        process = await setup.pool.make_trainer({}, 1, 2)
        assert process is not None
        loop = asyncio.get_running_loop()
        # Some of them get the number of a descriptor that has been closed.
        pairs = [socket.socketpair() for _ in range(8)]
        for receiver, sender in [*pairs, *(pair[::-1] for pair in pairs)]:
            receiver.setblocking(False)
            received = asyncio.ensure_future(loop.sock_recv(receiver, 1))
            await asyncio.sleep(0)
            sender.send(b"x")
            assert await asyncio.wait_for(received, DEADLINE_SECONDS) == b"x"
        for end in itertools.chain(*pairs):
            end.close()
        assert wait_for_exit(process) == 0

    run_scenario(scenario, modules=["late"])
