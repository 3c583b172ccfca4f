"""The record of an exception is removed where it was written."""

import os
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.ipc.messages import ATTEMPT_VARIABLE, RUN_DIR_VARIABLE, SOCKET_VARIABLE
from orchestrator.rundir.paths import RunDir
from orchestrator.training.runtime import crash_record


@pytest.mark.parametrize("swaps", [False, True])
def test_record_of_a_thread_that_did_not_end_the_training_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    """A link that takes the place of the attempt's directory meanwhile leads to no other file."""
    run, home = RunDir(tmp_path / "run"), tmp_path / "home"
    file = run.attempt(1).rank(0).error_file
    for directory in (file.parent, home):
        directory.mkdir(parents=True)
    (home / file.name).write_text("precious")
    seen = []

    def swap(arguments: threading.ExceptHookArgs) -> None:
        seen.append(file.exists())
        if swaps:
            file.parent.rename(tmp_path / "moved")
            file.parent.symlink_to(home)

    for variable, text in {
        ATTEMPT_VARIABLE: "1",
        RUN_DIR_VARIABLE: str(run.root),
        SOCKET_VARIABLE: "socket",
    }.items():
        monkeypatch.setenv(variable, text)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", swap)
    crash_record.install()

    def fail() -> None:
        raise ValueError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert seen == [True]
    assert (home / file.name).read_text() == "precious"
    assert swaps or os.listdir(file.parent) == []
