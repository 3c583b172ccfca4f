"""Digests of what a pass has given before some batch."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.training.data.data_pass import DataPass
from orchestrator.training.data.data_position import DataPosition
from orchestrator.training.data.other_loaders import Opened
from orchestrator.training.data.past import CHUNK, DrawnIndices, ReadBatches, encode

ORDER = [5, 3, 8, 1, 0, 2, 9, 4]


def drawn(order: list[int], start: int, until: int, ahead: int = 0) -> DrawnIndices:
    """Batches of two indices: those before ``start`` skipped, the others drawn one by one."""
    indices = DrawnIndices(ahead)
    left = iter(order)
    indices.skip(left, 2 * start)
    indices.begin(start)
    for number in range(start, until):
        indices.add(number, encode([next(left), next(left)]))
    return indices


def test_skipped_and_drawn_indices_have_the_same_digest() -> None:
    """Wherever a pass was cut, the digest of its past is that of the uncut one."""
    expected = [drawn(ORDER, 0, n, ahead=9).digest_before(n) for n in range(5)]
    assert len(set(expected)) == 5
    for start in range(5):
        for number in range(start, 5):
            assert drawn(ORDER, start, 4, ahead=9).digest_before(number) == expected[number]


def test_batches_drawn_ahead_are_not_past() -> None:
    """The digest ends where the loop is, and one that is behind is not known any more."""
    indices = drawn(ORDER, 0, 4, ahead=2)
    at_two = indices.digest_before(2)
    assert at_two == drawn(ORDER, 0, 2).digest_before(2)
    assert indices.digest_of(3) == drawn(ORDER, 3, 4).digest_of(3)
    assert indices.digest_before(1) is None
    assert drawn(ORDER, 0, 4, ahead=0).digest_before(1) is None


@pytest.mark.parametrize("make", [np.int64, torch.tensor, lambda index: index])
def test_numbers_of_all_kinds_count_the_same(make: Any) -> None:
    """A sampler may give tensors in one version of a library, and numbers in another."""
    assert encode([make(index) for index in ORDER]) == encode(ORDER)


@pytest.mark.parametrize("other", ["text", (1, 2), 1.5, 2**70, None, b"bytes", [3, 4]])
def test_other_indices_do_not_depend_on_their_neighbours(other: Any) -> None:
    """Keys, pairs and numbers may be mixed, and are the same in chunks and in batches."""
    assert encode([1, other, 2]) == encode([1]) + encode([other]) + encode([2])
    assert encode([other]) != encode([7])


def test_more_than_a_chunk_is_skipped_in_chunks() -> None:
    """A billion indices are never in memory together, and count as one sequence."""
    whole, split = DrawnIndices(0), DrawnIndices(0)
    whole.skip(iter(range(CHUNK + 5)), CHUNK + 5)
    split.add_to_past(encode(list(range(CHUNK + 5))))
    whole.begin(1)
    split.begin(1)
    assert whole.digest_before(1) == split.digest_before(1)


def test_read_batches_know_their_past_at_the_cut_and_now() -> None:
    """A pass that is read again knows both digests, and gives the batches after the cut."""
    whole = ReadBatches([1, 2, 3, 4], 0)
    at_two = next(whole.digest_before(2) for batch in whole if batch == 2)
    again = ReadBatches([1, 2, 3, 4], 2)
    assert [(batch, again.digest_before(2)) for batch in again] == [(3, at_two), (4, at_two)]
    assert again.digest_before(4) not in (at_two, None)
    assert again.digest_before(3) is None


def test_pass_that_was_used_up_keeps_its_past() -> None:
    """A resumed pass without batches may draw nothing, and what was known of it stays."""
    saved = {"batches": 3, "past": "a digest", "ended": False}
    this = DataPass(None, saved, 3, Opened(iter(())))
    this.ended = True
    assert this.state()["past"] == "a digest"


def test_pass_of_an_ended_epoch_has_no_past() -> None:
    """Whether it was cut makes no difference to what is kept of it."""
    position = DataPosition(0)
    for _ in position.batches([1, 2], 0):
        position.consume()
    assert position.state()["passes"][0]["past"] is not None
    position.begin_epoch()
    assert position.state()["last_epoch"][0]["past"] is None


def test_batch_that_the_loop_changes_counts_as_it_was_read() -> None:
    """A loop may normalise its batch in place."""
    digests = []
    for change in (0, 1):
        read = ReadBatches([torch.zeros(2), torch.zeros(2)], 0)
        for batch in read:
            batch += change
        digests.append(read.digest_before(2))
    assert digests[0] == digests[1]


def test_batch_that_cannot_be_looked_at_ends_nothing() -> None:
    """An object of the script may raise whatever it likes; the past is not known then."""

    class Hostile(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("not now")

    batches = [Hostile(), Hostile(x=1)]
    read = ReadBatches(batches, 0)
    assert list(read) == batches
    assert read.digest_before(2) is None
