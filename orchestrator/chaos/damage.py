"""What a disk does to a checkpoint: a bit, a page, the end or a whole file lost."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from orchestrator.chaos.faults import Action

PAGE_BYTES = 4096


def damage(file: Path, action: Action, chance: random.Random) -> None:
    """Damage a file in the way that the action names."""
    _DAMAGES[action](file, chance)


def _flip_a_bit(file: Path, chance: random.Random) -> None:
    place = chance.randrange(file.stat().st_size)
    with open(file, "r+b") as opened:
        opened.seek(place)
        value = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([value ^ (1 << chance.randrange(8))]))


def _tear_a_page(file: Path, chance: random.Random) -> None:
    """Zero a page of the disk, one of those that hold anything else."""
    content = file.read_bytes()
    pages = range(0, len(content), PAGE_BYTES)
    written = [start for start in pages if any(content[start : start + PAGE_BYTES])]
    start = chance.choice(written)
    with open(file, "r+b") as opened:
        opened.seek(start)
        opened.write(bytes(min(PAGE_BYTES, len(content) - start)))


def _truncate(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def _remove(file: Path, chance: random.Random) -> None:
    file.unlink()


_DAMAGES: dict[Action, Callable[[Path, random.Random], None]] = {
    Action.BIT_FLIP: _flip_a_bit,
    Action.TORN_PAGE: _tear_a_page,
    Action.TRUNCATION: _truncate,
    Action.MISSING_FILE: _remove,
}
