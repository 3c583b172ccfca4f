"""Fuzzing of the borders: whatever comes in, the reader has a value or its own kind of error.

No input takes more time and memory than tests/fuzzing/bounds.py allows.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.rundir.journal import JournalEvent
from tests.fuzzing import borders, file_borders
from tests.fuzzing.bounds import bounded
from tests.fuzzing.targets import Target, targets

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
    with bounded():
        borders.manifest(json.dumps(content).encode())


@few
@given(MESSAGES)
def test_any_message_is_checked_or_refused(message: dict[str, Any]) -> None:
    """A message that passes the check has counts, durations and texts of the right types."""
    with bounded():
        borders.message(json.dumps(message).encode())


@pytest.mark.parametrize("name", file_borders.RUN_FILES)
@few
@given(
    st.binary(max_size=200) | (EVENTS | ERRORS | ANY_VALUE).map(lambda v: json.dumps(v).encode())
)
def test_any_content_of_a_file_is_read_or_refused(name: str, content: bytes) -> None:
    """Every file of a run directory is read, or refused with a message for its user."""
    with bounded():
        file_borders.run_file(name, content)


@few
@given(ANY_VALUE.map(json.dumps) | EVENTS.map(json.dumps) | ANY_TEXT)
def test_any_line_of_the_log_is_shown(line: str) -> None:
    """Whatever line is in supervisor.log, it is shown without control characters."""
    with bounded():
        borders.log_line(line.encode(errors="replace"))


TARGETS = targets()


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """A seed of the fuzzer of which a few parts are cut out, repeated or replaced."""
    content = draw(st.sampled_from(target.seeds))
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.integers(0, len(content)))
        end = draw(st.integers(begin, min(len(content), begin + 16)))
        new = draw(st.binary(max_size=8) | st.sampled_from((b"", content[begin:end] * 2)))
        content = content[:begin] + new + content[end:]
    return content


@pytest.mark.parametrize("name", TARGETS)
@few
@given(st.data())
def test_any_damage_is_survived_at_every_border(name: str, data: st.DataObject) -> None:
    """What each border accepts, damaged in a few places, is read or refused within the bounds."""
    target = TARGETS[name]
    content = data.draw(damaged(target))
    with bounded():
        target.read(content)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_of_the_fuzzer_are_accepted(name: str) -> None:
    """The fuzzer begins with inputs that pass each border."""
    for seed in TARGETS[name].seeds:
        TARGETS[name].read(seed)
