"""The line of `orchestrator status` about the goodput of a run."""

from typing import Any

from orchestrator.rundir.time_ledger import Part
from orchestrator.system.units import duration_text

# What is less than half of the last digit is not worth a word.
LEAST_SHARE = 0.0005
_WORDS = {part: part.value.replace("_", " ") for part in Part if part is not Part.TRAINING}


def goodput_text(goodput: dict[str, Any]) -> str:
    """Return a line about the ``goodput`` object; empty where no time has passed yet."""
    wall, seconds = goodput["wall_seconds"], goodput["seconds"]
    if not wall or goodput["percent"] is None:
        return ""
    # A supervisor of another version may have sent any numbers.
    shares = ((words, seconds[part] / wall) for part, words in _WORDS.items())
    losses = [f"{words} {100 * share:.1f} %" for words, share in shares if share >= LEAST_SHARE]
    counted = f"{goodput['percent']:.1f} % of {duration_text(wall)} was training that counts"
    return "; ".join(filter(None, (counted, ", ".join(losses))))
