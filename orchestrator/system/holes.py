"""Recognizes large files that were only stretched to their length: to read them takes days."""

import os

# Of a file of this size, at least this part must be on the disk. Filesystems that compress reach no
# such ratio with weights.
LARGE_FILE_BYTES = 4 << 30
LEAST_ALLOCATED_SHARE = 1 / 16


def problem_of_holes(facts: os.stat_result) -> str | None:
    """Return how much of a large file is there if that is little, as the end of a sentence."""
    size, allocated = facts.st_size, facts.st_blocks * 512
    if size < LARGE_FILE_BYTES or allocated >= size * LEAST_ALLOCATED_SHARE:
        return None
    return f"is mostly holes: {allocated} of {size} bytes are there"


def has_hole(descriptor: int) -> bool:
    """Return whether an opened file has a hole; one that was moved to tapes has none."""
    size = os.fstat(descriptor).st_size
    first = os.lseek(descriptor, 0, os.SEEK_HOLE)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return first < size
