"""The goodput in words."""

import pytest

from orchestrator.rundir.goodput import Goodput
from orchestrator.rundir.moments import Moment
from orchestrator.rundir.time_ledger import Part
from orchestrator.telemetry.goodput_text import goodput_text


def test_run_without_a_past_has_no_line() -> None:
    """Before any time has passed there is nothing to say."""
    assert goodput_text(Goodput().to_json()) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ({Part.TRAINING: 90.0}, "100.0 % of 1 min 30 s was training that counts"),
        (
            {Part.TRAINING: 9311.0, Part.DONE_TWICE: 200.0, Part.SAVING: 489.0, Part.IDLE: 4.0},
            "93.0 % of 2 h 46 min was training that counts; done twice 2.0 %, saving 4.9 %",
        ),
    ],
)
def test_line_names_what_the_rest_was_spent_for(seconds: dict[str, float], text: str) -> None:
    """The share that counts comes first; parts too small to be shown are left out."""
    goodput = Goodput()
    goodput.ledger.add(seconds)
    assert goodput_text(goodput.to_json(Moment())) == text
