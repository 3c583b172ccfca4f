"""The log's two forms, and the choice between them."""

import json
import os

from orchestrator.terminal.logs import is_journal, text_of

EVENT = {
    "event": "the trainer failed",
    "level": "error",
    "timestamp": "2026-11-30T10:00:00Z",
    "step": 7,
}


def test_journal_is_known_by_the_file_that_the_variable_names() -> None:
    """Only the file whose device and inode stand in JOURNAL_STREAM is the journal."""
    reader, writer = os.pipe()
    status = os.fstat(writer)
    environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    other, _ = other_pipe = os.pipe()
    try:
        assert is_journal(writer, environment)
        assert not is_journal(writer, {})
        assert not is_journal(other, environment)
    finally:
        for descriptor in (reader, writer, *other_pipe):
            os.close(descriptor)


def test_event_becomes_one_line_of_text() -> None:
    """Away from a terminal the text has the date and no colours."""
    text = text_of(json.dumps(EVENT), on_terminal=False)
    assert text.startswith("20")
    assert text.endswith("[error    ] the trainer failed step=7")


def test_details_become_a_paragraph() -> None:
    """The details of an event stand below it, in the place of its other facts."""
    line = json.dumps(EVENT | {"details": ["attempt 1, step 7", "saved: nothing yet"]})
    head, *below = text_of(line, on_terminal=False).splitlines()
    assert head.endswith("the trainer failed")
    assert below == ["    attempt 1, step 7", "    saved: nothing yet"]


# Here they are before the first year or after the last, or no times.
OTHER_TIMES = ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "soon")


def test_line_that_is_no_event_is_unchanged() -> None:
    """A warning of Python's, or a JSON value that is no event, is shown as it is."""
    other_times = [json.dumps(EVENT | {"timestamp": time}) for time in OTHER_TIMES]
    for line in ("UserWarning: careful", "[1, 2]", "{}", '{"level": "info"}', *other_times):
        assert text_of(line, on_terminal=True) == line
