"""Damages a checkpoint's file as a failing disk does."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from orchestrator.chaos.faults import Action

PAGE_BYTES = 4096


def damage(file: Path, action: Action, rng: random.Random) -> None:
    """Damage a file as the action says. ``rng`` chooses where."""
    _DAMAGES[action](file, rng)


def _flip_a_bit(file: Path, rng: random.Random) -> None:
    offset = rng.randrange(file.stat().st_size)
    with open(file, "r+b") as opened:
        opened.seek(offset)
        value = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([value ^ (1 << rng.randrange(8))]))


def _tear_a_page(file: Path, rng: random.Random) -> None:
    """Zero a page of the disk that holds anything but zeros."""
    content = file.read_bytes()
    pages = range(0, len(content), PAGE_BYTES)
    written = [start for start in pages if any(content[start : start + PAGE_BYTES])]
    start = rng.choice(written)
    with open(file, "r+b") as opened:
        opened.seek(start)
        opened.write(bytes(min(PAGE_BYTES, len(content) - start)))


def _truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def _remove(file: Path, rng: random.Random) -> None:
    file.unlink()


_DAMAGES: dict[Action, Callable[[Path, random.Random], None]] = {
    Action.BIT_FLIP: _flip_a_bit,
    Action.TORN_PAGE: _tear_a_page,
    Action.TRUNCATION: _truncate,
    Action.MISSING_FILE: _remove,
    Action.BIT_FLIP_PART: _flip_a_bit,
    Action.MISSING_PART: _remove,
}
