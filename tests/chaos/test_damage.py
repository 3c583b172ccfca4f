"""Damage changes a file in the chosen way."""

import random
from pathlib import Path

import pytest

from orchestrator.chaos.damage import PAGE_BYTES, damage
from orchestrator.chaos.faults import DAMAGES, Action


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("action", DAMAGES)
def test_damage(tmp_path: Path, action: Action, seed: int) -> None:
    """One bit, one page, the end or the whole file is changed or gone; something always is."""
    file = tmp_path / "state.pt"
    # Zeroing one of the pages of zeros, which lie between aligned storages, would be no damage.
    before = bytes(2 * PAGE_BYTES) + b"\1" * PAGE_BYTES + b"\2" * 100
    file.write_bytes(before)
    damage(file, action, random.Random(seed))
    after = file.read_bytes() if file.exists() else None
    match action:
        case Action.MISSING_FILE | Action.MISSING_PART:
            assert after is None
        case Action.TRUNCATION:
            assert after is not None
            assert len(after) < len(before)
            assert before.startswith(after)
        case _:
            assert after is not None
            assert len(after) == len(before)
            changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
            assert changed
            if action in (Action.BIT_FLIP, Action.BIT_FLIP_PART):
                assert len(changed) == 1
                assert (before[changed[0]] ^ after[changed[0]]).bit_count() == 1
            else:
                assert changed[0] % PAGE_BYTES == 0
                assert not any(after[changed[0] : changed[0] + PAGE_BYTES])
