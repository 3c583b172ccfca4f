"""The readers of bytes from outside: each takes any bytes, as the product would get them.

A reader here returns where the product has a value or its own kind of error, and raises
anything else. Hypothesis and the fuzzer call the same functions.
"""

import contextlib
import io
import os
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from orchestrator.adopt.pickle_reader import (
    DamagedPickleError,
    PickleTooLargeError,
    ends_with_pickle,
    read_pickle,
)
from orchestrator.checkpoint.manifest import Manifest
from orchestrator.cli.runs_table import runs_table
from orchestrator.cli.status_table import status_table
from orchestrator.client import seconds_in
from orchestrator.ipc.control_page import PAGE_BYTES, ControlPage, Phase
from orchestrator.ipc.message_schema import checked
from orchestrator.ipc.messages import LineBuffer, encode
from orchestrator.snapshot.rank_snapshots import RankSnapshots
from orchestrator.snapshot.slots import SLOT_COUNT, Slots
from orchestrator.system.json_input import parse_json
from orchestrator.system.text import shown_parts
from orchestrator.system.units import LONGEST_SECONDS
from orchestrator.telemetry.prometheus import prometheus_text
from orchestrator.telemetry.status_reply import checked_status
from orchestrator.terminal.logs import text_of

OBEYED = frozenset("\x1b\x07\x9b\r\u202e")


def json_text(data: bytes) -> None:
    """Any bytes are a value, each text of which can be stored and shown, or a ValueError."""
    with contextlib.suppress(ValueError):
        value = parse_json(data)
        encode({"value": value})
        assert not OBEYED & set(str(shown_parts(value)))


def manifest(data: bytes) -> None:
    """A manifest is read, with names that stay below their directory, or is a ValueError."""
    try:
        content = Manifest.from_json(data)
    except ValueError:
        return
    for name in content.files:
        assert os.fsencode(name)
        assert not name.startswith("/")
        assert ".." not in name.split("/")
    assert 0 <= content.step < 10**12
    Manifest.from_json(content.to_json())


def message(data: bytes) -> None:
    """Messages that pass the check have counts, durations and texts of the right types."""
    try:
        usable = [checked(received) for received in LineBuffer().feed(data + b"\n")]
    except ValueError:
        return
    for content in usable:
        assert isinstance(content["type"], str)
        assert type(content.get("step")) in (int, type(None))
        assert "event" not in content or content["type"] == "hello"
        encode(content)


def answer(data: bytes) -> None:
    """What a supervisor answers to `status` is shown, or refused; its waits have an end.

    Its metrics are what Prometheus can read.
    """
    with contextlib.suppress(ValueError):
        for reply in LineBuffer().feed(data + b"\n"):
            assert 0 <= seconds_in(reply, "grace_seconds") <= LONGEST_SECONDS
            with contextlib.suppress(ValueError):
                console = Console(file=io.StringIO(), width=200)
                console.print(status_table(checked_status(reply)), soft_wrap=True)
                console.print(runs_table([checked_status(reply)], Path("runs")), soft_wrap=True)
                assert not OBEYED & set(console.file.getvalue())  # type: ignore[attr-defined]
                text = prometheus_text([checked_status(reply)]).decode()
                assert not OBEYED & set(text)
                list(text_string_to_metric_families(text))


def control_page(data: bytes) -> None:
    """Whatever a trainer writes to its page and its manifests, the supervisor describes it."""
    page, descriptor = ControlPage.create()
    os.close(descriptor)
    slots = Slots.create(page)
    try:
        page_part, manifests = data[:PAGE_BYTES], data[PAGE_BYTES:]
        page.values.cast("B")[: len(page_part)] = page_part
        os.pwrite(slots.descriptors[-1], manifests, 0)
        assert isinstance(page.phase, Phase)
        memory = RankSnapshots([slots, slots])
        memory.newest_step_and_age()
        assert memory.next_slot() in range(SLOT_COUNT)
        assert all(snapshot.image_bytes > 0 for snapshot in memory.snapshots())
    finally:
        slots.close()


def log_line(data: bytes) -> None:
    """Whatever line is in supervisor.log, it is shown without control characters."""
    assert not OBEYED & set(text_of(data.decode(errors="replace"), on_terminal=False))


def pickled(data: bytes) -> None:
    """A pickle is read without loading it, or is damaged or too large."""
    ends_with_pickle(io.BytesIO(data), len(data))
    with contextlib.suppress(DamagedPickleError, PickleTooLargeError):
        read_pickle(io.BytesIO(data), len(data))
