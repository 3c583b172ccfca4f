"""What chaos wraps inside the processes of a trial, and how it holds them there."""

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.breakpoints import PLACES, SUPERVISOR, VARIABLE, Breakpoint, install
from orchestrator.chaos.control import Control, Held
from orchestrator.chaos.history import History
from orchestrator.system.durable import Disk
from tests.support import wait_until

REMOVE = """
import sys
from pathlib import Path
from orchestrator import breakpoints
from orchestrator.system.durable import Disk
breakpoints.install("supervisor")
Disk().remove(Path(sys.argv[1]))
"""


def name_of(place: Breakpoint) -> str:
    return place.name


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    """A trial's directory and socket."""
    control = Control(tmp_path / "trial")
    yield control
    control.close()


def start(control: Control, file: Path) -> subprocess.Popen[str]:
    """A process of the trial that removes a file by way of Disk."""
    file.touch()
    return subprocess.Popen(
        [sys.executable, "-c", REMOVE, str(file)],
        env=os.environ | {VARIABLE: str(control.directory)},
        stderr=subprocess.PIPE,
        text=True,
    )


def held_at(control: Control, place: str) -> Held:
    found: list[Held] = []

    def look() -> bool:
        if (held := control.look(place)) is not None:
            found.append(held)
        return bool(found)

    wait_until(look, f"a process at {place}")
    return found[0]


@pytest.mark.parametrize("place", [p for all_ in PLACES.values() for p in all_], ids=name_of)
def test_each_place_exists(place: Breakpoint) -> None:
    """The methods that are wrapped are there, in the classes that are named."""
    module, _, path = place.method.partition(":")
    class_name, _, method = path.partition(".")
    assert callable(getattr(getattr(importlib.import_module(module), class_name), method))


def test_nothing_is_wrapped_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a trial the program is as it was written."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before = Disk.remove
    install(SUPERVISOR)
    assert Disk.remove is before


def test_unarmed_place_is_passed_and_told(control: Control, tmp_path: Path) -> None:
    """A process goes on where nothing is armed, and the history knows where it has been."""
    with start(control, tmp_path / "file") as process:
        assert process.wait(20) == 0
    assert not (tmp_path / "file").exists()
    assert History.read(control.history_file).places == {"supervisor:remove"}


def test_held_process_waits_and_gets_the_error(control: Control, tmp_path: Path) -> None:
    """At an armed place it does nothing until it is let go; the error comes from the operation."""
    control.arm("supervisor:remove")
    with start(control, tmp_path / "file") as process:
        held = held_at(control, "supervisor:remove")
        assert held.facts["pid"] == process.pid
        assert (tmp_path / "file").exists()
        held.release(errno.EIO)
        _, stderr = process.communicate(timeout=20)
    assert "OSError: [Errno 5] Input/output error" in stderr
    assert (tmp_path / "file").exists()


def test_held_process_ends_with_chaos(tmp_path: Path) -> None:
    """Where chaos has been killed, nobody is left waiting for it."""
    control = Control(tmp_path / "trial")
    control.arm("supervisor:remove")
    with start(control, tmp_path / "file") as process:
        held = held_at(control, "supervisor:remove")
        control.close()
        del held
        assert process.wait(20) == 1
    assert (tmp_path / "file").exists()
