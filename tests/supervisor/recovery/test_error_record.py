"""error.json of a hostile or broken trainer: only what has the right types is judged."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rundir.paths import AttemptDir
from orchestrator.supervisor.recovery.diagnosis import ExitFacts, diagnose

HOSTILE: dict[str, Any] = {
    "surrogates": {"type": "\ud800", "message": "\udfff\0", "frame": "\0", "thread": "\ud800"},
    "lists": {"type": ["x"], "message": {}, "bases": [[1], {}], "errno": [2], "cause": [1]},
    "numbers": {"type": 1, "message": 2, "bases": 3, "errno": 1e300, "frame": 4},
    "long": {"type": "T" * 10**6, "message": "m" * 10**6, "bases": ["b"] * 10**4},
    "empty": {},
}
nested: dict[str, Any] = {"type": "ValueError"}
for _ in range(90):
    nested = {"type": "ValueError", "cause": nested}
HOSTILE["many causes"] = nested


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_record_of_an_exception_is_diagnosed(tmp_path: Path, content: dict[str, Any]) -> None:
    """Whatever a trainer leaves in error.json, the supervisor has a diagnosis that can be kept."""
    attempt = AttemptDir(tmp_path / "attempts" / "0001")
    attempt.root.mkdir(parents=True)
    attempt.error_file.write_text(json.dumps(content))
    error = attempt.read_error()
    assert error is not None
    assert len(json.dumps(error)) < 1 << 19
    found = diagnose(ExitFacts(1, True, None, False, 0, error))
    assert found.cause.encode()
    assert found.fingerprint
