"""The answers of a supervisor, which may be another user's: shown only if they can be."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.runs_table import runs_table
from orchestrator.cli.status_table import status_table
from orchestrator.client import seconds_in
from orchestrator.system.units import LONGEST_SECONDS
from orchestrator.telemetry import status_reply
from orchestrator.telemetry.progress import Progress
from orchestrator.telemetry.prometheus import prometheus_text
from orchestrator.telemetry.status import Status
from orchestrator.telemetry.status_reply import checked_status
from tests.telemetry.support import FULL


def test_status_is_shown_as_the_supervisor_has_it() -> None:
    """What a supervisor of this version says passes unchanged, whatever is known of the run."""
    for status in (FULL, Status(run_id="0123", state="starting", run_dir="runs/a")):
        reply = json.loads(json.dumps(status.to_json()))
        assert checked_status(reply) == reply
    parts = {"progress", "goodput", "metrics", "ranks", "restarts_by_kind"}
    known = {*status_reply._STATUS, *status_reply._PARTS, *parts}
    assert known == {field.name for field in fields(Status)}
    assert status_reply._PROGRESS.keys() == {field.name for field in fields(Progress)}


def test_supervisor_that_knows_no_progress_is_shown_with_its_step() -> None:
    """An older supervisor says only which step and epoch are complete."""
    reply = {key: value for key, value in FULL.to_json().items() if key != "progress"}
    assert checked_status(reply)["progress"] == asdict(Progress(step=40, epoch=3))


def test_what_this_version_does_not_know_is_left_out() -> None:
    """Only what is checked is shown and printed: the rest may be of any size and depth."""
    reply = json.loads(json.dumps(FULL.to_json()))
    unknown = {"new": [[[]]], "state_2": "x"}
    more = reply | unknown | {"spare": reply["spare"] | unknown}
    more["ranks"] = [rank | unknown for rank in reply["ranks"]]
    assert checked_status(more) == reply


@pytest.mark.parametrize("key", [field.name for field in fields(Status)])
@pytest.mark.parametrize(
    "value",
    [None, 0, -1, 1.5, 1e308, 10**4000, float("nan"), True, "", "\x1b[2J", [], [1], {}, {"a": []}],
    ids=range(14),
)
def test_every_answer_can_be_shown_or_is_refused(key: str, value: Any) -> None:
    """A wrong type, an absent part and a number beyond all bounds give no traceback."""
    reply = FULL.to_json()
    replies = [reply | {key: value}, {k: v for k, v in reply.items() if k != key}]
    replies += [
        reply | {part: reply[part] | {inner: value}}
        for part, shape in status_reply._PARTS.items()
        for inner in shape
        if part == key
    ]
    if key == "progress":
        replies += [reply | {key: reply[key] | {inner: value}} for inner in reply[key]]
    if key == "goodput":
        goodput = reply[key]
        replies += [reply | {key: goodput | {inner: value}} for inner in goodput]
        replies += [reply | {key: goodput | {"attempts": [{"attempt": 1, "seconds": value}]}}]
        replies += [reply | {key: goodput | {"attempts": [value]}}]
        replies += [reply | {key: goodput | {"seconds": {"training": value}}}]
    if key == "ranks":
        rank = reply[key][0]
        replies += [reply | {key: [rank, rank | {inner: value}]} for inner in rank]
    for changed in replies:
        try:
            status = checked_status(changed)
            status_table(status)
            runs_table([status], Path("runs"))
            prometheus_text([status])
        except ValueError as error:
            assert str(error).startswith("its ")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(30, 30), (0.5, 0.5), (None, 0), ("30", 0), (-5, 0), (1e300, 0), (1e14, LONGEST_SECONDS)],
)
def test_wait_that_an_answer_asks_for_has_an_end(value: object, seconds: float) -> None:
    """A command waits for as long as a supervisor says, if that is a duration."""
    assert seconds_in({"grace_seconds": value}, "grace_seconds") == seconds
