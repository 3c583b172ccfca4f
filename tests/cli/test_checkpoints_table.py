"""The tables of `checkpoints list`: complete, and with names unchanged."""

from typing import Any

import pytest

from orchestrator.cli.checkpoints_table import checkpoints_table, quarantine_table
from tests.cli.support import shown

NAME = "step-000012345678-2"


def row(**facts: Any) -> dict[str, Any]:
    """Make a row as `checkpoints list --json` prints it."""
    return {
        "path": f"runs/train/checkpoints/{NAME}",
        "step": 12345678,
        "epoch": 100,
        "reason": "emergency",
        "bytes": 1000 << 20,
        "time": "2026-11-24T08:21:20.123+00:00",
        "metrics": {"loss": 0.123456, "accuracy": 0.987654},
        "healthy": True,
        "valid": True,
        "pinned": True,
        "exactness": "EXACT",
        "problem": None,
    } | facts


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_list_cuts_nothing_off(columns: int) -> None:
    """At any width, every fact of a checkpoint is shown in full."""
    problem = "state.pt has 100 bytes, not 20931, and more to say"
    rows = [row(), row(valid=False, problem=problem, metrics={})]
    text = shown(checkpoints_table(rows, columns), columns)
    assert text.count(NAME) == 2
    assert text.count(" 12345678 ") == 2
    for fact in ("100", "emergency", "1000.0 MiB", "2026-11-24 08:21:20", "accuracy 0.987654"):
        assert fact in text
    assert f"INVALID: {problem}, pinned" in text
    assert "…" not in text


def test_list_folds_what_does_not_fit() -> None:
    """Metrics and notes follow on an indented line at 100 columns, on the same line at 200."""
    narrow = shown(checkpoints_table([row()], 100), 100).splitlines()
    assert len(narrow) == 3
    assert max(map(len, narrow)) <= 100
    assert narrow[2] == "    loss 0.123456  accuracy 0.987654  pinned"
    wide = shown(checkpoints_table([row()], 200), 200).splitlines()
    assert len(wide) == 2
    assert wide[1].endswith("08:21:20  EXACT  loss 0.123456  accuracy 0.987654  pinned")


def test_list_says_what_is_not_exact() -> None:
    """A column says whether a checkpoint is exact, and a note says why it is not."""
    rows = [row(metrics={}), row(metrics={}, exactness="APPROXIMATE: torch is another")]
    rows.append(row(metrics={}, exactness=None, valid=False, problem="manifest.json is missing"))
    title, exact, approximate, unknown = shown(checkpoints_table(rows, 200), 200).splitlines()
    column = title.index("exact")
    assert exact[column:].split("  ", 1) == ["EXACT", "      pinned"]
    assert approximate[column:] == "APPROXIMATE  torch is another, pinned"
    assert unknown[column:].strip() == "INVALID: manifest.json is missing, pinned"


def test_quarantine_says_why() -> None:
    """A checkpoint in quarantine is named with its reason."""
    rows = [{"path": f"q/{NAME}", "reason": "state.pt has changed: wrong digest"}]
    text = shown(quarantine_table(rows), 80)
    assert text == f"in quarantine:\n  {NAME}  state.pt has changed: wrong digest\n"
