"""Manifests are read when something needs them, and again only after a change."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.checkpoint.checkpoint import MANIFEST_FILE
from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.telemetry.status import status_from_disk
from tests.checkpoint.support import new_store, publish
from tests.supervisor.support import catalog_of

CHECKPOINTS = 40

_opened: list[str] | None = None


def _record_open(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(str(arguments[0]))


sys.addaudithook(_record_open)


@contextmanager
def manifests_read() -> Iterator[list[str]]:
    """Yield a list that has the directory's name of each manifest opened inside the block."""
    global _opened
    _opened, names = [], []
    try:
        yield names
    finally:
        # A manifest is opened by its name in the directory that was opened just before it.
        names += [folder for folder, name in pairwise(_opened) if name == MANIFEST_FILE]
        _opened = None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "run", range(100, 100 + CHECKPOINTS))


def reopened(store: Store) -> Store:
    return Store.open(store.run, [])


def start(store: Store) -> CheckpointCatalog:
    return catalog_of(store)


@pytest.mark.parametrize(
    "work",
    [
        reopened,
        newest_valid,
        lambda store: status_from_disk(store),
        lambda store: store.newest_verified(),
        lambda store: store.apply_retention(RetentionPolicy(keep=CHECKPOINTS)),
    ],
    ids=["opening", "choice", "status", "newest verified", "retention that keeps all"],
)
def test_old_manifests_are_not_read(store: Store, work: Callable[[Store], object]) -> None:
    """A start, a choice, a status and a save read a few manifests, however many there are."""
    store = reopened(store)
    newest_valid(store)
    with manifests_read() as read:
        work(store)
    assert len(read) <= 4


def test_start_journals_unknown_checkpoints_only(store: Store) -> None:
    """Of checkpoints that the journal has, no manifest is read to record the others."""
    start(store).record_unknown()
    publish(store, 900)
    with manifests_read() as read:
        start(store).record_unknown()
    assert set(read) == {"step-000000000900"}


def test_manifests_are_read_once(store: Store) -> None:
    """A second list reads what is new."""
    store.all()
    publish(store, 900)
    with manifests_read() as read:
        assert len(store.all()) == CHECKPOINTS + 1
    assert len(read) == 1


def _rewrite(path: Path) -> None:
    manifest = path / MANIFEST_FILE
    content = json.loads(manifest.read_bytes()) | {"time": "2026-01-01T00:00:00+00:00"}
    manifest.write_text(json.dumps(content))


def _link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (_rewrite, lambda found: found[0].manifest.time.startswith("2026-01-01")),
        (lambda path: (path / "pinned").touch(), lambda found: found[0].pinned),
        (lambda path: os.truncate(path / MANIFEST_FILE, 9), lambda found: len(found) == 2),
        (lambda path: (path / MANIFEST_FILE).unlink(), lambda found: len(found) == 2),
        (_link, lambda found: len(found) == 2),
    ],
    ids=["rewritten", "pinned", "cut", "deleted", "a link"],
)
def test_changed_checkpoint_is_read_again(
    tmp_path: Path, change: Callable[[Path], object], seen: Callable[[list[object]], bool]
) -> None:
    """A change to a checkpoint that was read before is seen."""
    store = new_store(tmp_path / "run", (100, 200, 300))
    store.all()
    change(store.run.checkpoints / "step-000000000100")
    assert seen(list(store.all()))
