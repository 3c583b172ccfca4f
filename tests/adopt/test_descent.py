"""The steps of a script's saves: by what they descend from, then by number."""

import json
from pathlib import Path

import pytest
import torch

from orchestrator.adopt.descent import Descent
from orchestrator.adopt.scan_events import Moment, Renumbered, Sealed, SetAside
from orchestrator.adopt.write_ledger import WriteLedger
from orchestrator.checkpoint.newest_valid import newest_valid
from tests.adopt.support import Script, kinds

NOW = 1000


@pytest.mark.parametrize(
    ("descent", "number", "written", "step"),
    [
        # Nothing was resumed from: the number in the name, or a count.
        (Descent(NOW), 3, NOW, 3),
        (Descent(NOW), None, NOW, 8),
        # The script goes on with its numbers, also after an attempt that numbered anew.
        (Descent(NOW, step=5, number=5), 6, NOW, 6),
        (Descent(NOW, step=9, number=2), 3, NOW, 10),
        # It saves once more what it has resumed from.
        (Descent(NOW, step=5, number=5), 5, NOW, 5),
        # It counts from zero again: later than all that it descends from.
        (Descent(NOW, step=5, number=5), 0, NOW, 6),
        (Descent(NOW, step=5, number=5, numbers_anew=True), 5, NOW, 11),
        (Descent(NOW, step=5, number=5, numbers_anew=True), 9, NOW, 15),
        # What was written before the attempt keeps its number.
        (Descent(NOW, step=5, number=5), 1, NOW - 1, 1),
        # An attempt that has not read what it was offered begins from zero.
        (Descent(NOW, step=5, number=5, is_unread=True), 1, NOW, 1),
        (Descent(NOW, step=5, is_unread=True, unread_saves=2), None, NOW, 3),
    ],
)
def test_step_of_a_save(descent: Descent, number: int | None, written: int, step: int) -> None:
    """The highest step of the run is 7."""
    assert descent.step_of(number, written, 7) == step


@pytest.mark.parametrize("pattern", ["c-*", "c-*.pt", "run-*/last.pt"])
def test_renumbered_saves_come_after_what_they_descend_from(tmp_path: Path, pattern: str) -> None:
    """Three attempts count from zero; the newest checkpoint is always the one saved last."""
    script = Script(tmp_path, pattern)
    script.scan(Moment.FIRST_START)
    told = 0
    for attempt in range(3):
        script.scanner.begin_attempt(newest_valid(script.store))
        for number in range(3 - (attempt > 0)):
            name = pattern.replace("*", str(number))
            script.save(name, 10.0 * attempt + number)
            events = script.scan(after=20)
            told += kinds(events).count(Renumbered)
            assert Sealed in kinds(events)
            newest = newest_valid(script.store)
            assert newest is not None
            assert newest.resume_path == script.out / name
    numbered = pattern != "run-*/last.pt"
    assert told == (2 if numbered else 0)
    # A supervisor that comes later goes on from there.
    again = WriteLedger(script.store.run.write_ledger_file).descent
    assert again.step is not None


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("exp*/last.pt", "exp1/last.pt"), ("*.pt", "last.pt"), ("*", "model"), ("*.pt", "net50.pt")],
)
def test_rewritten_path_under_a_wildcard_is_versioned(
    tmp_path: Path, pattern: str, name: str
) -> None:
    """A kill in the middle of the second save costs that save only, and then of any save."""
    script = Script(tmp_path, pattern)
    script.scan(Moment.FIRST_START)
    for attempt in range(4):
        script.save(name, float(attempt))
        assert kinds(script.scan(after=20)) == [Sealed]
        script.save(name, -1.0)
        script.tear(name)
        script.scan(after=1)
        assert kinds(script.scan(Moment.FAILED, after=1)) == [SetAside]
        newest = newest_valid(script.store)
        assert newest is not None
        script.seals.put_back(script.seals.seals()[script.out / name])
        assert torch.load(script.out / name)["a"][0] == attempt
        script.scanner.begin_attempt(newest)
    # Only so many copies stay.
    assert len(script.store.all()) <= 2


def test_numbered_saves_are_not_copied(tmp_path: Path) -> None:
    """Only the first one is: nothing is known then of how the script names its saves."""
    script = Script(tmp_path, "c-*")
    script.scan(Moment.FIRST_START)
    for number in range(4):
        script.save(f"c-{number}", float(number))
        script.scan(after=20)
    manifests = [checkpoint.manifest.adopted for checkpoint in script.store.all()]
    assert [adopted.kept for adopted in manifests if adopted] == [True, False, False, False]


def test_unread_attempt_is_no_progress_and_is_not_sealed_again_and_again(tmp_path: Path) -> None:
    """Its saves have the steps of its own count, and a seal that was deleted stays deleted."""
    script = Script(tmp_path, "last.pt")
    script.scan(Moment.FIRST_START)
    for attempt in range(2):
        script.scanner.begin_attempt(newest_valid(script.store))
        script.scanner.record_reading(is_unread=attempt > 0)
        for count in range(3 - attempt):
            script.save("last.pt", 10.0 * attempt + count)
            script.scan(after=20)
    assert script.steps() == [1, 1, 2, 2, 3]
    lowest = [c for c in script.store.all() if c.name.endswith("2-2")]
    assert script.store.delete(lowest[0])
    assert script.scan(after=20) == script.scan(after=20) == []


def test_ledger_with_foreign_content_is_a_new_one(tmp_path: Path) -> None:
    """What others have written there costs the memory of the run and nothing else."""
    file = tmp_path / "written.json"
    for descent in (None, [], {"since_ns": "x"}, {**Descent(1).to_json(), "step": -3}):
        content = {"here": [], "previous": {}, "has_rewrites": True, "descent": descent}
        file.write_text(json.dumps(content))
        assert WriteLedger(file).descent == Descent(0)
    ledger = WriteLedger(file)
    ledger.record_descent(Descent(5, 4, 3))
    assert WriteLedger(file).descent == Descent(5, 4, 3)


def test_record_with_a_time_that_is_none_counts_for_nothing(tmp_path: Path) -> None:
    """What another program wrote into it does not reach the comparison of times."""
    file = tmp_path / "written.json"
    ledger = WriteLedger(file)
    ledger.record_rewrite(tmp_path / "a", {"1": 5})
    assert WriteLedger(file).times_before_rewrite(tmp_path / "a") == {"1": 5}
    file.write_text(file.read_text().replace("5", '"x"'))
    assert WriteLedger(file).times_before_rewrite(tmp_path / "a") == {}
