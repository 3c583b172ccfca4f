"""The rows of `checkpoints list` and `checkpoints verify`, whatever a checkpoint holds."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.checkpoint_list import list_checkpoints, list_quarantined
from tests.checkpoint.support import new_store, path_of


def change_manifest(checkpoint: Path, **changes: Any) -> None:
    """Write other facts into the manifest of a checkpoint."""
    file = checkpoint / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def start_of(**changes: Any) -> dict[str, Any]:
    """Return the record of a start."""
    return {"command": ["x"], "arguments": ["x"], "directory": "/", **changes}


@pytest.mark.parametrize(
    "start",
    [
        {"command": json.loads("[" * 300 + "]" * 300)},
        start_of(git={"revision": ["x" * 100]}),
        start_of(git={"revision": {}}, configuration={"a": [[]]}),
    ],
    ids=["nested", "list", "object"],
)
def test_start_of_any_content_ends_no_list(tmp_path: Path, start: dict[str, Any]) -> None:
    """A record of a start that is no such record tells no difference."""
    store = new_store(tmp_path, [1, 2, 3])
    change_manifest(path_of(store, 1), start=start_of(git={"revision": "abc"}))
    change_manifest(path_of(store, 2), start=start)
    change_manifest(path_of(store, 3), start=start_of(git={"revision": "def"}))
    rows = list_checkpoints(store)
    assert [row["valid"] for row in rows] == [True, len(start) > 1, True]
    assert rows[1]["differences"] == []
    assert rows[2]["differences"] == ["git revision then: abc, now: def"]


def test_file_of_holes_is_not_read(tmp_path: Path) -> None:
    """A manifest that agrees with a file of terabytes without content keeps no command busy."""
    store = new_store(tmp_path, [1, 2])
    size = 15 << 40
    with open(path_of(store, 1) / "state.pt", "r+b") as file:
        try:
            os.truncate(file.fileno(), size)
        except OSError:
            pytest.skip("no file of this size here")
    record = {"state.pt": {"bytes": size, "xxh3_128": "0" * 32}}
    change_manifest(path_of(store, 1), files=record)
    rows = list_checkpoints(store)
    assert [row["valid"] for row in rows] == [False, True]
    assert rows[0]["problem"].startswith("state.pt is mostly holes")


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ('{"reason": "bad digest"}', "bad digest"),
        ('{"reason": ["bad"]}', "quarantined without a recorded reason"),
        ('{"reason": 5}', "quarantined without a recorded reason"),
        ("{}", "quarantined without a recorded reason"),
        ("[]", "quarantined without a recorded reason"),
    ],
)
def test_reason_of_a_quarantine_is_a_text(tmp_path: Path, note: str, reason: str) -> None:
    """A note of other content is no reason."""
    store = new_store(tmp_path)
    quarantined = store.run.quarantine / "step-000000000001"
    quarantined.mkdir(parents=True)
    (quarantined / "quarantine.json").write_text(note)
    assert [row["reason"] for row in list_quarantined(store)] == [reason]
