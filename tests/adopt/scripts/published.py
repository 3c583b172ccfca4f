"""What a script of a test knows of its run: how many checkpoints there have been."""

import os
import time
from pathlib import Path

DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.05


def count_checkpoints() -> int:
    """Return how many checkpoints the run has published."""
    journal = Path(os.environ["ORCHESTRATOR_RUN_DIR"], "journal.jsonl")
    return journal.read_text().count('"checkpoint_published"')


def wait_for_checkpoint(earlier: int) -> None:
    """Wait until there are more than there were, so that what was saved may be written over."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while count_checkpoints() <= earlier:
        assert time.monotonic() < deadline, "the save has become no checkpoint"
        time.sleep(POLL_SECONDS)
