"""The file with the metrics of a run."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator.errors import ConfigError
from orchestrator.telemetry.status import Status
from orchestrator.telemetry.textfile import LIBRARY, Textfile, check_metrics_file, file_of_run
from tests.support import NOBODY, in_child, wait_until
from tests.telemetry.support import FULL

INTERVAL_SECONDS = 0.005


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


def write_while(textfile: Textfile, condition: Callable[[], object], what: str) -> None:
    """Write again and again until a condition holds, then end as a supervisor does."""

    async def play() -> None:
        writing = asyncio.ensure_future(textfile.run())
        await until(condition, what)
        writing.cancel()
        await asyncio.wait([writing])

    asyncio.run(play())


def test_file_is_replaced_whole_and_ends_with_the_last_state(tmp_path: Path) -> None:
    """A reader finds a complete file at each moment, and no other file that it would read."""
    path, states = tmp_path / "train.prom", ["training"]
    (tmp_path / ".train.prom.0123abcd").write_text("left by a kill")
    written: set[int] = set()

    def status() -> Status:
        return replace(FULL, state=states[-1])

    def is_read_three_times() -> bool:
        if path.exists():
            with path.open() as file:
                assert file.read().splitlines()[-1].startswith("orchestrator_spare_memory_bytes{")
                written.add(os.fstat(file.fileno()).st_ino)
        assert {each.name for each in tmp_path.glob("*.prom")} <= {path.name}
        if len(written) == 3:
            states.append("completed")
        return len(written) == 3

    write_while(Textfile(path, status, INTERVAL_SECONDS), is_read_three_times, "three files")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert 'state="completed"} 1.0' in path.read_text()
    assert f'run_dir="{Path.cwd()}/runs/a"' in path.read_text()


def test_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """Each reason not to write is logged once, and writing goes on when it has passed."""
    path = tmp_path / "gone" / "train.prom"
    asked: list[Path] = []

    def status() -> Status:
        asked.append(path)
        return FULL

    def is_there() -> bool:
        if len(asked) > 3:
            path.parent.mkdir(exist_ok=True)
        return path.exists()

    with capture_logs() as logs:
        write_while(Textfile(path, status, INTERVAL_SECONDS), is_there, "the file")
    assert [log["event"] for log in logs] == [
        f"cannot write --metrics-file {path}: No such file or directory; training goes on"
    ]


def test_write_that_was_stuck_does_not_replace_a_later_one(tmp_path: Path) -> None:
    """A thread that comes late leaves the last state of the run in the file."""
    path, textfile = tmp_path / "train.prom", Textfile(tmp_path / "train.prom", lambda: FULL)
    for number, state in ((2, "completed"), (1, "training")):
        thread = threading.Thread(
            target=textfile._replace, args=(number, replace(FULL, state=state))
        )
        thread.start()
        thread.join(20)
    assert 'state="completed"} 1.0' in path.read_text()


def test_directory_gives_each_run_a_file_of_its_own(tmp_path: Path) -> None:
    """A directory in a settings file serves all runs of a machine."""
    check_metrics_file(tmp_path)
    assert file_of_run(tmp_path, "0123") == tmp_path / "orchestrator-0123.prom"
    check_metrics_file(tmp_path / "a.prom")
    assert file_of_run(tmp_path / "a.prom", "0123") == tmp_path / "a.prom"


@pytest.mark.parametrize(
    ("name", "refusal"),
    [("a.txt", "files that end in .prom"), ("none/a.prom", "there is no directory")],
)
def test_file_that_no_exporter_reads_is_refused(tmp_path: Path, name: str, refusal: str) -> None:
    """Another ending and a directory that is not there are named before anything starts."""
    with pytest.raises(ConfigError, match=refusal):
        check_metrics_file(tmp_path / name)


def test_directory_without_permission_is_refused(tmp_path: Path, as_root: None) -> None:
    """A directory of the node exporter's own user is named before anything starts."""

    def ask() -> None:
        os.chdir(tmp_path)
        os.setuid(NOBODY)
        with pytest.raises(ConfigError, match="you may not create files"):
            check_metrics_file(Path("a.prom"))

    tmp_path.chmod(0o755)
    assert in_child(ask) == 0


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the option is refused, and the message says what to install."""
    monkeypatch.setitem(sys.modules, LIBRARY, None)
    with pytest.raises(ConfigError, match=r"the extra `metrics`: install it \(pip"):
        check_metrics_file(tmp_path / "a.prom")
