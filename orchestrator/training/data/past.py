"""What a pass over the data has given before some batch, as a digest.

A resumed run that has to draw the indices, or to read the batches, up to the cut again compares the
digest of these with that of the attempt before.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from orchestrator.training.data.batch_digest import BatchHasher
from orchestrator.training.state.digests import Hasher, digest

CHUNK = 1 << 16  # indices
SAMPLE_BYTES = 1 << 8  # of each end of a tensor in a batch that is read
# The batches that are looked at: so many first ones, and then one of so many.
FIRST_BATCHES = 64
ONE_OF = 8


def encode(indices: list[Any]) -> bytes:
    """Return indices as bytes, one after another: numbers as 8 bytes, text, others as a digest."""
    try:
        return array("q", indices).tobytes()
    except Exception:  # whatever an object of the script raises that is no number
        return b"".join(map(_encode_any, indices))


def _encode_any(index: Any) -> bytes:
    if isinstance(index, str):
        return index.encode(errors="surrogatepass") + b"\n"
    try:
        return array("q", [index]).tobytes()
    except Exception:
        return digest(index).encode()


class DrawnIndices:
    """The indices that a pass has drawn: a digest of the past, and the last ones by batch.

    Batches may be drawn before they are needed, and are in the past only once they were used.
    """

    def __init__(self, ahead: int) -> None:
        """Expect ``ahead`` batches to be drawn before they are needed."""
        self._past = Hasher()
        self._past_end = 0
        self._recent: deque[tuple[int, bytes]] = deque()
        self._most_recent = ahead + 2

    def skip(self, indices: Iterator[Any], count: int) -> None:
        """Draw ``count`` indices, which are in the past."""
        while count > 0 and (chunk := list(islice(indices, min(count, CHUNK)))):
            self._past.update(encode(chunk))
            count -= len(chunk)

    def add_to_past(self, encoded: bytes) -> None:
        """Count the indices of a batch as past."""
        self._past.update(encoded)

    def begin(self, number: int) -> None:
        """Begin with batch ``number``: what was drawn so far is the past."""
        self._past_end = number

    def add(self, number: int, encoded: bytes) -> None:
        """Add the indices of the batch that was drawn last."""
        self._recent.append((number, encoded))
        if len(self._recent) > self._most_recent:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        number, encoded = self._recent.popleft()
        self._past.update(encoded)
        self._past_end = number + 1

    def digest_before(self, number: int) -> str | None:
        """Return a digest of all indices before a batch; None where it is not known.

        Batches before it are forgotten.
        """
        while self._recent and self._recent[0][0] < number:
            self._forget_oldest()
        return self._past.hexdigest() if self._past_end == number else None

    def digest_of(self, number: int) -> str | None:
        """Return a digest of the indices of a batch; None where it is not known."""
        return next((digest(encoded) for n, encoded in self._recent if n == number), None)


class ReadBatches:
    """The batches of a pass that is read from its beginning, from batch ``start`` on."""

    def __init__(self, batches: Iterable[Any], start: int) -> None:
        self._batches = batches
        self._start = start
        self._read = 0
        self._past = BatchHasher(sample_bytes=SAMPLE_BYTES)
        self._digest_at_start: str | None = None
        self._is_known = True

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            if self._read == self._start:
                self._digest_at_start = self.digest_before(self._read)
            # Before the loop gets it, which may change it in place.
            if self._read < FIRST_BATCHES or self._read % ONE_OF == 0:
                self._add(batch)
            self._read += 1
            if self._read > self._start:
                yield batch

    def _add(self, batch: Any) -> None:
        try:
            self._past.add(batch)
        except Exception:  # an object of the script that cannot be looked at
            self._is_known = False

    def digest_before(self, number: int) -> str | None:
        """Return a digest of all batches before this one; None where it is not known."""
        if not self._is_known:
            return None
        if number == self._read:
            return self._past.hexdigest()
        return self._digest_at_start if number == self._start else None
