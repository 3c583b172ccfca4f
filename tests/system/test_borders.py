"""Fuzzing of the borders: whatever comes in, the reader has a value or its own kind of error."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.checkpoint.manifest import Manifest
from orchestrator.errors import ConfigError
from orchestrator.ipc.message_schema import checked
from orchestrator.ipc.messages import LineBuffer
from orchestrator.rundir.error_record import checked_error
from orchestrator.rundir.history_index import read_history
from orchestrator.rundir.identity import RunIdentity
from orchestrator.rundir.journal import JournalEvent
from orchestrator.rundir.lock import lock_owner
from orchestrator.rundir.paths import RunDir
from orchestrator.spare.process import Modules
from orchestrator.supervisor.recovery.diagnosis import ExitFacts, diagnose
from orchestrator.telemetry.status import exit_status_after
from orchestrator.telemetry.trackers import mlflow_variables
from orchestrator.terminal.logs import text_of

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(ANY_TEXT, parts, max_size=3),
    max_leaves=6,
)
few = settings(max_examples=60)


def objects(**right: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which each key is right, wrong or absent, among other keys."""
    known = {key: value | ANY_VALUE for key, value in right.items()}
    others = st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=2)
    return st.tuples(st.fixed_dictionaries({}, optional=known), others).map(lambda t: t[1] | t[0])


FILES = st.dictionaries(ANY_TEXT, objects(bytes=st.integers(), xxh3_128=ANY_TEXT), max_size=2)
MANIFESTS = objects(
    format_version=st.just(1),
    run_id=ANY_TEXT,
    step=st.integers(),
    epoch=st.integers(),
    reason=st.just("periodic"),
    metrics=st.dictionaries(ANY_TEXT, st.floats() | ANY_TEXT, max_size=2),
    healthy=st.booleans(),
    time=ANY_TEXT,
    files=FILES,
    versions=st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=2),
    digests=st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=2),
    doubts=st.lists(ANY_VALUE, max_size=2),
    framework=ANY_TEXT,
)
MESSAGES = objects(
    type=st.sampled_from(["hello", "status", "snapshot", "metrics", "ended", "write", "published"]),
    attempt=st.integers() | ANY_TEXT,
    pid=st.integers(),
    step=st.integers(),
    seconds=st.floats(),
    metrics=st.dictionaries(ANY_TEXT, st.floats() | ANY_TEXT, max_size=2),
    name=ANY_TEXT,
)
EVENTS = objects(
    event=st.sampled_from(JournalEvent).map(str),
    attempt=st.integers(),
    status=st.integers(),
    cause=ANY_TEXT,
)
ERRORS = objects(
    type=ANY_TEXT, message=ANY_TEXT, errno=st.integers(), bases=st.lists(ANY_VALUE, max_size=2)
)


@few
@given(MANIFESTS)
def test_any_manifest_is_read_or_refused(content: dict[str, Any]) -> None:
    """A manifest is read, with names that stay below their directory, or is a ValueError."""
    try:
        manifest = Manifest.from_json(json.dumps(content).encode())
    except ValueError:
        return
    for name in manifest.files:
        assert os.fsencode(name)
        assert not name.startswith("/")
        assert ".." not in name.split("/")
    assert 0 <= manifest.step < 10**12
    Manifest.from_json(manifest.to_json())


@few
@given(MESSAGES)
def test_any_message_is_checked_or_refused(message: dict[str, Any]) -> None:
    """A message that passes the check has counts, durations and texts of the right types."""
    [received] = LineBuffer().feed(json.dumps(message).encode() + b"\n")
    try:
        usable = checked(received)
    except ValueError:
        return
    assert isinstance(usable["type"], str)
    assert type(usable.get("step")) in (int, type(None))
    assert "event" not in usable or usable["type"] == "hello"
    json.dumps(usable, ensure_ascii=False).encode()


@few
@given(ERRORS)
def test_any_exception_is_diagnosed(content: dict[str, Any]) -> None:
    """Whatever error.json has, there is a cause in words and a fingerprint."""
    content = json.loads(json.dumps(content))
    found = diagnose(ExitFacts(1, True, None, False, 0, checked_error(content)))
    assert found.cause


READERS: dict[str, Callable[[RunDir], object]] = {
    "lock": lock_owner,
    "run.json": lambda run: RunIdentity.open(run, []),
    "done.json": lambda run: run.read_done(),
    "tracking.json": lambda run: mlflow_variables(run, {}),
    "attempts/0001/error.json": lambda run: run.attempt(1).read_error(),
    "attempts/0001/modules.json": lambda run: Modules.read(run.attempt(1).modules_file),
    "journal.jsonl": lambda run: exit_status_after(read_history(run)),
    "journal.index.json": lambda run: exit_status_after(read_history(run)),
}


@pytest.mark.parametrize("name", READERS)
@few
@given(st.binary(max_size=200) | (EVENTS | ANY_VALUE).map(lambda v: json.dumps(v).encode()))
def test_any_content_of_a_file_is_read_or_refused(name: str, content: bytes) -> None:
    """Every file of a run directory is read, or refused with a message for its user."""
    with tempfile.TemporaryDirectory() as directory:
        run = RunDir(Path(directory))
        run.create()
        run.attempt(1).root.mkdir()
        (run.root / name).write_bytes(content)
        try:
            READERS[name](run)
        except ConfigError as error:
            assert str(error).startswith("cannot ")


@few
@given(ANY_VALUE.map(json.dumps) | EVENTS.map(json.dumps) | ANY_TEXT)
def test_any_line_of_the_log_is_shown(line: str) -> None:
    """Whatever line is in supervisor.log, it is shown without control characters."""
    assert not set(text_of(line, on_terminal=False)) & {"\x1b", "\x07", "\x9b", "\r"}
