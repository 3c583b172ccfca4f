"""The checkpoints of a running run, as the supervisor keeps them."""

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.retention import RetentionPolicy
from orchestrator.checkpoint.store import Store
from orchestrator.rundir.journal import Journal
from orchestrator.supervisor.checkpoints.catalog import CheckpointCatalog
from orchestrator.supervisor.recovery.failure_budget import FailureBudget
from tests.checkpoint.support import names, new_store, publish
from tests.support import FailingDisk


def custodian_of(store: Store) -> CheckpointCatalog:
    journal = Journal(store.run.journal_file)
    return CheckpointCatalog(
        store, RetentionPolicy(keep=3), journal, FailureBudget(3), journal.read()[0]
    )


def demoted(store: Store, meanwhile: Callable[[], None] = lambda: None) -> bool:
    """Whether the checkpoint that a run would resume from could be set aside."""

    async def choose_and_demote() -> bool:
        custodian = custodian_of(store)
        assert await custodian.choose(None) is not None
        meanwhile()
        return await custodian.demote(None, "it failed")

    return asyncio.run(choose_and_demote())


def test_a_demoted_checkpoint_is_replaced_by_the_older_one(tmp_path: Path) -> None:
    """What may be poison goes into quarantine, and the next choice is the one before it."""
    store = new_store(tmp_path, [10, 20])
    assert demoted(store)
    newest = store.newest_valid()
    assert newest is not None
    assert newest.manifest.step == 10


def test_a_checkpoint_of_a_deleted_name_is_journalled_again(tmp_path: Path) -> None:
    """After a person has rolled the run back by hand, the same step is news once more."""
    store = new_store(tmp_path, [10, 20])
    custodian_of(store).notice_published()
    shutil.rmtree(store.all()[-1].path)
    custodian = custodian_of(store)
    publish(store, 20)
    custodian.notice_published()
    events, _ = Journal(store.run.journal_file).read()
    assert [event["step"] for event in events] == [10, 20, 20]


def test_what_could_not_be_moved_is_not_called_moved(tmp_path: Path) -> None:
    """On a disk that takes no change the journal does not tell of a quarantine."""
    store = new_store(tmp_path, [10, 20])
    store.all()[-1].state_file.write_bytes(b"")
    refuse_to_move(store)
    chosen = asyncio.run(custodian_of(store).choose(None))
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
def test_a_checkpoint_that_cannot_be_replaced_is_not_demoted(tmp_path: Path, spoil: object) -> None:
    """A bad fallback, a pin or a disk that takes no change leaves everything where it is."""
    store = new_store(tmp_path, [10, 20])
    assert callable(spoil)
    spoil(store)
    assert not demoted(store)
    assert [name for name in names(store) if name.startswith("step-")] == [
        "step-000000000010",
        "step-000000000020",
    ]


def test_a_checkpoint_that_cannot_be_judged_is_not_demoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that shows nothing now leaves everything where it is, and the run goes on."""
    store = new_store(tmp_path, [10, 20])

    def lose_the_disk() -> None:
        def refuse(*arguments: object) -> int:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        monkeypatch.setattr(os, "open", refuse)

    assert not demoted(store, lose_the_disk)
    monkeypatch.undo()
    assert len(store.all()) == 2
