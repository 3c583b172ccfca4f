"""Makes runs with checkpoints, without torch: to the store a state is only bytes."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.checkpoint import Checkpoint
from orchestrator.checkpoint.digesting_writer import DigestingWriter
from orchestrator.checkpoint.manifest import Manifest, Reason
from orchestrator.checkpoint.publication import publish_state
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verification import verify
from orchestrator.errors import CheckpointInvalidError
from orchestrator.rundir.journal import utc_now
from orchestrator.rundir.paths import RunDir
from orchestrator.system.durable import Disk

RUN_ID = "0123456789abcdef"
STATE_BYTES = 20_000


def state_of(step: int) -> bytes:
    """The bytes of the state at a step: random, so that every change of them shows."""
    return random.Random(step).randbytes(STATE_BYTES)


def manifest_of(step: int, **changes: Any) -> Manifest:
    """A manifest as a session hands it to the store, without files."""
    facts: dict[str, Any] = {
        "run_id": RUN_ID,
        "step": step,
        "epoch": step // 100,
        "reason": Reason.PERIODIC,
        "metrics": {"loss": 1 / (step + 1)},
        "healthy": True,
        "time": utc_now(),
        "files": {},
        "versions": {"python": "3.11.7"},
        "digests": {"rng": "06b05ab6"},
    }
    return Manifest(**(facts | changes))


def publish(store: Store, step: int, **changes: Any) -> Checkpoint:
    """Publish ``state_of(step)`` in several writes, as torch.save does."""

    def write(file: DigestingWriter) -> None:
        state = memoryview(state_of(step))
        for start in range(0, STATE_BYTES, 8192):
            file.write(state[start : start + 8192])

    return publish_state(store, manifest_of(step, **changes), write)


def new_store(root: Path, steps: Iterable[int] = (), disk: Disk | None = None) -> Store:
    """The store of a new run in ``root``, with a checkpoint of each of ``steps``."""
    run = RunDir(root)
    run.create()
    store = Store(run, RUN_ID, disk or Disk())
    for step in steps:
        publish(store, step)
    return store


def reopened(store: Store) -> Store:
    """The store as another process sees it, which has verified nothing yet."""
    return Store(store.run, store.run_id)


def names(store: Store) -> list[str]:
    """The names in the directory of checkpoints, hidden ones too."""
    return sorted(path.name for path in store.run.checkpoints.iterdir())


def path_of(store: Store, step: int) -> Path:
    """The directory of the checkpoint of a step."""
    return store.run.checkpoints / f"step-{step:012d}"


def valid_steps(store: Store) -> list[int]:
    """Steps of the checkpoints whose every byte is right, oldest first."""
    steps = []
    for checkpoint in reopened(store).all():
        try:
            verify(checkpoint)
        except CheckpointInvalidError:
            continue
        assert checkpoint.state_file.read_bytes() == state_of(checkpoint.manifest.step)
        steps.append(checkpoint.manifest.step)
    return steps
