"""The catalog of a running run's checkpoints."""

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from orchestrator.checkpoint.newest_valid import newest_valid
from orchestrator.checkpoint.store import Store
from orchestrator.rundir.journal import Journal
from tests.checkpoint.support import names, new_store, publish
from tests.supervisor.support import catalog_of
from tests.support import FailingDisk


def demoted(store: Store, meanwhile: Callable[[], None] = lambda: None) -> bool:
    """Return whether the checkpoint that a run would resume from could be set aside."""

    async def choose_and_demote() -> bool:
        catalog = catalog_of(store)
        assert await catalog.choose(None) is not None
        meanwhile()
        return await catalog.demote(None, "it failed")

    return asyncio.run(choose_and_demote())


def test_demoted_checkpoint_is_replaced_by_the_older_one(tmp_path: Path) -> None:
    """A suspect checkpoint goes into quarantine, and the one before it is chosen next."""
    store = new_store(tmp_path, [10, 20])
    assert demoted(store)
    newest = newest_valid(store)
    assert newest is not None
    assert newest.manifest.step == 10


def test_checkpoint_with_the_name_of_a_deleted_one_is_journalled_again(tmp_path: Path) -> None:
    """After a person has rolled the run back by hand, a new checkpoint of that step is recorded."""
    store = new_store(tmp_path, [10, 20])
    catalog_of(store).record_unknown()
    shutil.rmtree(store.all()[-1].path)
    catalog = catalog_of(store)
    publish(store, 20)
    catalog.record_unknown()
    events, _ = Journal(store.run.journal_file).read()
    assert [event["step"] for event in events] == [10, 20, 20]


@pytest.mark.parametrize("problem", [RecursionError("too deep"), OSError("no disk")])
def test_rotation_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    """Whatever old checkpoints do to the retention, the training goes on."""
    store = new_store(tmp_path, [10, 20])

    def fail(*arguments: object) -> None:
        raise problem

    monkeypatch.setattr(store, "apply_retention", fail)
    with capture_logs() as logs:
        asyncio.run(catalog_of(store).rotate())
    assert [entry["problem"] for entry in logs] == [str(problem)]


@pytest.mark.parametrize("name", ["{}", "../../other/checkpoints/{}", "/{}", "./{}", "x/../{}"])
def test_name_that_a_trainer_tells_is_one_of_the_run(tmp_path: Path, name: str) -> None:
    """A checkpoint of another run is not taken for this one's, whatever a message says."""
    other = new_store(tmp_path / "other", [90]).all()[-1]
    catalog = catalog_of(new_store(tmp_path / "own", [10]))
    for told in (name.format(other.name), str(other.path)):
        assert catalog.record_published(told) is None
    assert catalog.newest is None


def test_checkpoint_that_could_not_be_moved_is_not_journalled_as_quarantined(
    tmp_path: Path,
) -> None:
    """On a read-only disk the journal does not claim a quarantine."""
    store = new_store(tmp_path, [10, 20])
    store.all()[-1].state_file.write_bytes(b"")
    refuse_to_move(store)
    chosen = asyncio.run(catalog_of(store).choose(None))
    assert chosen is not None
    assert chosen.manifest.step == 10
    events, _ = Journal(store.run.journal_file).read()
    assert "checkpoint_quarantined" not in [event["event"] for event in events]


def spoil_the_older_one(store: Store) -> None:
    store.all()[0].state_file.write_bytes(b"not what was saved")


def pin_the_newest(store: Store) -> None:
    store.pin(store.all()[-1])


def refuse_to_move(store: Store) -> None:
    store.disk = FailingDisk(fail_at=1, forever=True)


@pytest.mark.parametrize("spoil", [spoil_the_older_one, pin_the_newest, refuse_to_move])
def test_checkpoint_that_cannot_be_replaced_is_not_demoted(tmp_path: Path, spoil: object) -> None:
    """A bad fallback, a pin or a read-only disk leaves every checkpoint where it is."""
    store = new_store(tmp_path, [10, 20])
    assert callable(spoil)
    spoil(store)
    assert not demoted(store)
    assert [name for name in names(store) if name.startswith("step-")] == [
        "step-000000000010",
        "step-000000000020",
    ]


def test_checkpoint_that_cannot_be_read_now_is_not_demoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that cannot be read now every checkpoint stays, and the run goes on."""
    store = new_store(tmp_path, [10, 20])

    def lose_the_disk() -> None:
        def refuse(*arguments: object) -> int:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        monkeypatch.setattr(os, "open", refuse)

    assert not demoted(store, lose_the_disk)
    monkeypatch.undo()
    assert len(store.all()) == 2
