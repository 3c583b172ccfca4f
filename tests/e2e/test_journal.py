"""The journal has the same events, field by field, however the script trains."""

import subprocess
from pathlib import Path
from typing import Any

from orchestrator.rundir.journal import Journal
from orchestrator.rundir.paths import RunDir
from tests.e2e.support import DEADLINE_SECONDS, Supervised, clean_environment, forked_by

SCRIPT = Path(__file__).with_name("journalled.py")
SETTINGS = {"ORCHESTRATOR_EVERY": "5steps", "ORCHESTRATOR_KEEP": "2", "ORCHESTRATOR_CONTINUE": "on"}
COMPLETE, STOPPED_SAVED = 0, 75
CHECKPOINT_EVENTS = {
    "checkpoint_published",
    "checkpoint_failed",
    "checkpoint_quarantined",
    "checkpoint_deleted",
}
EVENTS = CHECKPOINT_EVENTS | {
    "run_started",
    "training_started",
    "resumed",
    "stop_noticed",
    "run_stopped",
    "run_completed",
}


def damage_newest(run: RunDir) -> None:
    """Change what the newest checkpoint holds, so that it is set aside."""
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    for file in newest.rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            file.write_bytes(b"damaged")


def fields_of_events(run: RunDir) -> dict[str, set[tuple[str, ...]]]:
    """Return the fields of the events of each kind, in their order."""
    events, damaged = Journal(run.journal_file).read()
    assert damaged == 0
    fields: dict[str, set[tuple[str, ...]]] = {}
    for event in events:
        fields.setdefault(event["event"], set()).add(tuple(event))
    return fields


def fields_of_run(root: Path, python: list[str], kind: str, *, supervised: bool) -> dict[str, Any]:
    """Return the fields of all events of a run that completes, resumes and is stopped."""
    root.mkdir()
    for task, status in (("fail", COMPLETE), ("stop", STOPPED_SAVED)):
        command = [*python, str(SCRIPT), kind, task]
        if supervised:
            started = Supervised(root, command=command, environment=SETTINGS)
            returned = started.end()[0]
        else:
            environment = clean_environment() | SETTINGS | {"ORCHESTRATOR_RUN_DIR": "run"}
            process = subprocess.run(
                command, cwd=root, env=environment, timeout=DEADLINE_SECONDS, check=False
            )
            returned = process.returncode
        assert returned == status
        if task == "fail":
            damage_newest(RunDir(root / "run"))
    return fields_of_events(RunDir(root / "run"))


def test_events_have_the_same_fields_in_every_kind_of_run(
    tmp_path: Path, warm_server: Path
) -> None:
    """A supervised, a standalone and a framework's run journal the same fields of each event."""
    python = forked_by(warm_server)
    fields = {
        (kind, supervised): fields_of_run(
            tmp_path / f"{kind}-{supervised}", python, kind, supervised=supervised
        )
        for kind in ("session", "framework")
        for supervised in (True, False)
    }
    for event in sorted(EVENTS):
        found = {run: fields[run].get(event) for run in fields}
        assert None not in found.values(), f"{event} is missing: {found}"
        expected = next(iter(found.values()))
        assert all(value == expected for value in found.values()), f"{event} differs: {found}"
    snapshots = {run: f.get("snapshot_taken") for run, f in fields.items() if run[0] == "session"}
    assert len(set(map(str, snapshots.values()))) == 1, snapshots
