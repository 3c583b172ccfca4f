"""From facts about a death to a decision: pure functions and values."""
