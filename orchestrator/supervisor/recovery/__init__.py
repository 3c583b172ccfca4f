"""From facts about the end of an attempt to a decision: pure functions and values."""
